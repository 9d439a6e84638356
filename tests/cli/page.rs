//! The report's page, made from results that nobody ran, as a reader's browser shows it.

use std::fs;
use std::path::{Path, PathBuf};

use segment_rlhf::data::letters;
use segment_rlhf::equations::normalizer::{LocationStatistic, Normalizer};
use segment_rlhf::grid::analysis::Analysis;
use segment_rlhf::grid::results::{Results, State};
use segment_rlhf::report::page::{
    ArmAlarm, ArmLog, ArmTime, Extras, Fit, Link, Page, SampleText, SegmentLengths, StageTime,
    html, write,
};
use segment_rlhf::report::texts::ShadedText;
use segment_rlhf::run::alarms::{Alarm, Raised};
use segment_rlhf::stage::fit_normalizer::NormalizerFile;
use segment_rlhf::stage::log::StageLog;
use segment_rlhf::stage::segmented_text::SegmentedText;
use serde_json::Value;
use tempfile::TempDir;

#[cfg(unix)]
use crate::browser::Browser;

const RESULTS: &str = include_str!("../data/grid/results.json");

fn results() -> Results {
    serde_json::from_str(RESULTS).unwrap()
}

fn page(results: &Results, extras: &Extras) -> String {
    html(&Page { results, analysis: &Analysis::of(results), extras })
}

/// Everything that a report can show besides results.
fn extras() -> Extras {
    let fits = [("sentence", 0.1), ("token", 0.79), ("segment", 0.76)];
    Extras {
        settings: Some("method = \"segment\"\n".into()),
        times: vec![
            StageTime { stage: "sft".into(), runs: 3, seconds: 63.0 },
            StageTime { stage: "ppo".into(), runs: 24, seconds: 5400.0 },
        ],
        fits: fits.map(|(arm, slope)| fit(arm, slope)).into(),
        segment_lengths: [("sentence", 8.0), ("segment", 2.5)]
            .map(|(arm, mean)| lengths(arm, mean))
            .into(),
        training: vec![],
        decoding: vec![],
        texts: vec![shaded(LETTER, 0), shaded(REPEATING, 8)],
        logs: vec![ArmLog {
            arm: "token".into(),
            seed: 2,
            stages: vec![(
                "sft".into(),
                StageLog { losses: vec![3.0, 2.0, 1.5], ..StageLog::default() },
            )],
        }],
        alarms: vec![ArmAlarm {
            arm: "token".into(),
            seed: 2,
            stage: "ppo".into(),
            raised: Raised { alarm: Alarm::Kl, step: 7, what: "KL 63.1 nats a response".into() },
        }],
        refresh: None,
        samples: vec![SampleText {
            arm: "segment".into(),
            seed: 1,
            prompt: "<user> write to gina about the abbey . <answer>".into(),
            before: LETTER.into(),
            after: REPEATING.into(),
            gold: Some([2.1, -0.4]),
        }],
        files: vec![Link { file: "results.json".into(), what: "what each cell gave".into() }],
    }
}

const LETTER: &str =
    "dear gina , music : choirs sing charming hymns . history : ruins hold plain graves . <eos>";
const REPEATING: &str = "dear gina , music : choirs sing charming hymns . music : choirs sing charming hymns . \
     music : choirs sing charming hymns . history : ruins hold plain graves . <eos>";

fn fit(arm: &str, slope: f64) -> Fit {
    let normalizer: Normalizer = toml::from_str(&format!(
        "kind = \"location_aware\"\nw_mean = {slope}\nw_std = 0.65\nb_mean = 1.47\nb_std = 3.5"
    ))
    .unwrap();
    let noise = |i: usize| ((i * 7919) % 13) as f64 / 13.0 - 0.5;
    let statistic = |i: usize| {
        let location = i as f64 / 300.0;
        LocationStatistic {
            location,
            mean: normalizer.mean(location) + noise(i),
            std: normalizer.std(location) + noise(i + 5) / 2.0,
            count: 10 + i % 40,
        }
    };
    let results = results();
    let (.., cell) = results.rows().find(|(_, of, _)| of.name == arm).unwrap();
    let file = cell.figures().unwrap().normalizer.as_ref().unwrap();
    let statistics = (5..=300).map(statistic).collect();
    Fit {
        arm: arm.into(),
        seed: 1,
        file: NormalizerFile { normalizer, statistics, ..file.clone() },
    }
}

fn lengths(arm: &str, mean: f64) -> SegmentLengths {
    let counts = (1..=16).map(|n| (1000.0 * (-f64::from(n) / mean).exp()) as usize).collect();
    SegmentLengths { arm: arm.into(), seed: 1, counts }
}

/// A letter cut before topics, heads and quality words, with rewards by formula; `repeats` tokens from the
/// eleventh on say something again.
fn shaded(letter: &str, repeats: usize) -> ShadedText {
    let ids = letters::encode(letter).unwrap();
    let pieces = || letter.split(' ').map(|word| format!("{word} ")).collect::<Vec<_>>();
    let tokens = ids.len();
    let segmented = |length: usize, wave: f64| {
        let starts = (0..tokens - 1).step_by(length);
        let segments: Vec<_> = starts.map(|i| i..(i + length).min(tokens - 1)).collect();
        let rewards: Vec<f64> =
            (0..segments.len()).map(|t| (t as f64 * wave).sin() * 2.0).collect();
        let entropies = vec![0.5; tokens];
        SegmentedText::new(
            "write to gina".into(),
            &ids,
            pieces(),
            &entropies,
            &segments,
            &rewards,
            &rewards,
        )
    };
    ShadedText {
        by_segment: segmented(3, 1.3),
        by_token: segmented(1, 0.7),
        credits: Some((0..tokens).map(|i| [0.0, 0.0, 1.5, -1.0, 0.8][i % 5]).collect()),
        repeats: (repeats > 0).then_some(10..10 + repeats).into_iter().collect(),
    }
}

/// The anchors of the page's sections, in order.
fn sections(html: &str) -> Vec<&str> {
    html.split("<section id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

const ALL: [&str; 17] = [
    "run",
    "alarms",
    "headline",
    "claims",
    "logs",
    "curves",
    "frontier",
    "normalizer",
    "segments",
    "reward",
    "texts",
    "truth",
    "experiments",
    "problems",
    "samples",
    "files",
    "terms",
];

#[test]
fn a_whole_report_has_every_section() {
    assert_eq!(sections(&page(&results(), &extras())), ALL);
}

#[test]
fn what_is_not_there_is_left_out() {
    let without = page(&results(), &Extras::default());
    let left = ALL
        .into_iter()
        .filter(|s| !["alarms", "logs", "normalizer", "texts", "samples", "files"].contains(s));
    assert_eq!(sections(&without), left.collect::<Vec<_>>());
    let mut nothing = results();
    nothing.cells.iter_mut().for_each(|cell| cell.state = State::Pending);
    assert_eq!(sections(&page(&nothing, &Extras::default())), ["run", "problems"]);
}

#[test]
fn policies_of_one_sft_model_answer_below_it() {
    let mut extras = extras();
    let other = SampleText { arm: "token".into(), ..extras.samples[0].clone() };
    extras.samples.push(other);
    let html = page(&results(), &extras);
    assert_eq!(html.matches("<blockquote>").count(), 3, "before, segment, token");
}

#[test]
fn what_decoders_took_has_a_table() {
    let (mut results, mut extras) = (results(), extras());
    assert!(!page(&results, &extras).contains("What a response took"));
    let (experiment, arm) = {
        let experiment = &results.experiments[0];
        (experiment.name.clone(), experiment.arms[0].name.clone())
    };
    let cells = results.experiments[0].arms[0].cells.clone();
    for cell in results.cells.iter_mut().filter(|cell| cells.contains(&cell.id)) {
        let State::Finished(figures) = &mut cell.state else { continue };
        let after = &mut figures.evaluation.after;
        (after.model_calls, after.reward_calls) = (Some(143.25), Some(15.5));
        after.sampled_tokens = Some(131.0);
    }
    let time = |seconds| ArmTime { experiment: experiment.clone(), arm: arm.clone(), seconds };
    (extras.training, extras.decoding) = (vec![time(61.25)], vec![time(0.0125)]);
    let html = page(&results, &extras);
    let of_decoding = ["What a response took", "model calls", "RM calls", "tokens drawn", "143.2"];
    let of_training = ["What the training of a policy took", "61.2"];
    for text in of_decoding.iter().chain(&of_training).chain(&["0.013"]) {
        assert!(html.contains(text), "{text}");
    }
}

/// What the results say of data whose gold reward nobody knows.
fn without_truth() -> Results {
    fn forget(value: &mut Value) {
        const TRUTHS: [&str; 18] = [
            "gold",
            "gold_error",
            "repeats",
            "gold_accuracy",
            "gold_pairs",
            "sequence_rank_correlation",
            "rank_correlation",
            "clause_correlation",
            "topic_correlation",
            "quality_correlation",
            "boundary_precision",
            "boundary_recall",
            "boundary_f1",
            "cause_advantage_share",
            "cause_token_share",
            "credit_correlation",
            "preferences",
            "",
        ];
        match value {
            Value::Object(map) => map.iter_mut().for_each(|(key, value)| match value {
                Value::Array(list) if TRUTHS.contains(&key.as_str()) => list.fill(Value::Null),
                _ if key == "stages" => {} // named as figures are
                _ if TRUTHS.contains(&key.as_str()) => *value = Value::Null,
                _ => forget(value),
            }),
            Value::Array(list) => list.iter_mut().for_each(forget),
            _ => {}
        }
    }
    let mut value: Value = serde_json::from_str(RESULTS).unwrap();
    forget(&mut value);
    serde_json::from_value(value).unwrap()
}

#[test]
fn without_the_truth_e_phi_takes_golds_place() {
    let html = page(&without_truth(), &Extras::default());
    assert!(!sections(&html).contains(&"truth"), "{:?}", sections(&html));
    let shown = html.split("<body>").nth(1).unwrap();
    let at = shown.to_lowercase().find("gold");
    assert_eq!(at.map(|at| &shown[at.saturating_sub(80)..at + 20]), None);
    assert!(shown.contains(">e_φ of a rollout<"), "the learning curves' axis");
    assert!(shown.contains(">e_φ on held-out prompts<"), "the frontier's axis");
}

#[test]
fn text_of_models_and_files_is_escaped() {
    const EVIL: &str = "<script>alert('1')</script><img src=x onerror=alert(2)>&amp;";
    let mut results = results();
    results.experiments[0].title = EVIL.into();
    results.experiments[0].note = Some(EVIL.into());
    results.experiments[0].arms[0].name = EVIL.into();
    results.cells[0].state = State::Failed { stage: EVIL.into(), error: EVIL.into() };
    let mut extras = extras();
    extras.settings = Some(EVIL.into());
    for text in &mut extras.texts {
        text.by_segment.prompt = EVIL.into();
        text.by_segment.tokens[0].text = EVIL.into();
        text.by_token.tokens[0].text = EVIL.into();
    }
    extras.fits[0].arm = EVIL.into();
    extras.samples[0].prompt = EVIL.into();
    extras.samples[0].before = EVIL.into();
    extras.files[0].file = EVIL.into();
    let html = page(&results, &extras);
    assert!(!html.contains("<script") && !html.contains("<img"), "something is not escaped");
    assert!(html.contains("&lt;script&gt;alert("));
    assert!(html.matches("&lt;script&gt;").count() > 15);
}

#[test]
fn the_page_is_whole_in_itself() {
    let html = page(&results(), &extras());
    for outside in ["http:", "https:", "src=", "@import", "url(", "<script", "<link"] {
        assert!(!html.contains(outside), "{outside}");
    }
    assert!(html.contains("Content-Security-Policy\" content=\"default-src 'none'"));
}

#[test]
fn no_number_is_nan_or_infinite() {
    let html = page(&results(), &extras());
    let shown = html.split("<body>").nth(1).unwrap();
    let shown = shown.replace("the policy loss is NaN", ""); // a cell's error
    assert!(!shown.contains("NaN") && !shown.contains(">inf") && !shown.contains(">−inf"));
}

#[test]
fn a_failed_write_leaves_nothing() {
    let results = results();
    let page =
        Page { results: &results, analysis: &Analysis::of(&results), extras: &Extras::default() };
    let folder = TempDir::new().unwrap();
    let error = write(&page, &folder.path().join("missing/report.html")).unwrap_err().to_string();
    assert!(error.contains("missing/report.html: cannot write"), "{error}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// The page as a file that stays there to be looked at.
fn shown(name: &str, results: &Results, extras: &Extras) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("page");
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    write(&Page { results, analysis: &Analysis::of(results), extras }, &path).unwrap();
    path
}

/// What the browser knows of the page's layout and colours.
const LOOK: &str = r#"(() => {
  const box = e => { const r = e.getBoundingClientRect(); return [r.left, r.right, r.width, r.height]; };
  const plots = [...document.querySelectorAll("svg.plot")];
  const colours = selector => [...new Set(plots.flatMap(plot => [...plot.querySelectorAll(selector)]).map(e =>
    getComputedStyle(e)[selector.startsWith(".mark") || selector.startsWith("text") ? "fill" : "stroke"]))];
  return {
    width: document.documentElement.clientWidth,
    page: document.documentElement.scrollWidth,
    paper: getComputedStyle(document.body).backgroundColor,
    plots: plots.map(plot => ({
      of: plot.querySelector("title").textContent,
      box: box(plot),
      visible: plot.checkVisibility({ opacityProperty: true, visibilityProperty: true }),
      marks: plot.querySelectorAll(".line, .mark, .band, .whisker").length,
      text: Math.min(...[...plot.querySelectorAll("text")].map(e =>
        parseFloat(getComputedStyle(e).fontSize) * plot.getBoundingClientRect().width / plot.viewBox.baseVal.width)),
      outside: [...plot.querySelectorAll("text")].filter(e => {
        const t = e.getBBox(), v = plot.viewBox.baseVal;
        return t.x < 0 || t.y < 0 || t.x + t.width > v.width || t.y + t.height > v.height;
      }).map(e => e.textContent),
    })),
    text: [getComputedStyle(document.body).color, ...colours("text")],
    marks: [...colours(".line"), ...colours(".mark")],
  };
})()"#;

#[test]
#[cfg(unix)]
fn a_browser_shows_every_plot_at_every_width_in_both_themes() {
    let Some(mut browser) = Browser::start() else {
        return eprintln!("skipped: there is no Chromium in the path");
    };
    let whole = shown("report.html", &results(), &extras());
    let untrue = shown("without-truth.html", &without_truth(), &Extras::default());
    for path in [&whole, &untrue] {
        let mut papers = Vec::new();
        for (width, theme) in [(400, "light"), (1400, "light"), (400, "dark"), (1400, "dark")] {
            browser.open(path, width, theme);
            let look = browser.evaluate(LOOK);
            let at = format!("{} at {width} px, {theme}", path.display());
            assert_eq!(browser.complaints(), Vec::<&Value>::new(), "{at}");
            assert_eq!(browser.requests(), [format!("file://{}", path.display())], "{at}");
            assert_eq!(look["page"], look["width"], "{at}: the page is as wide as the window");
            let plots = look["plots"].as_array().unwrap();
            assert!(plots.len() > 20, "{at}: {} plots", plots.len());
            for plot in plots {
                let [left, right, wide, high] =
                    [0, 1, 2, 3].map(|i| plot["box"][i].as_f64().unwrap());
                let inside =
                    left >= 0.0 && right <= f64::from(width) && wide > 250.0 && high > 150.0;
                assert!(inside && plot["visible"] == true, "{at}: {plot}");
                assert!(plot["marks"].as_u64() > Some(0), "{at}: nothing is drawn: {plot}");
                assert!(plot["text"].as_f64() > Some(10.0), "{at}: too small to read: {plot}");
                assert_eq!(plot["outside"], Value::Array(Vec::new()), "{at}: {plot}");
            }
            let paper = look["paper"].as_str().unwrap();
            for (what, least) in [("text", 7.0), ("marks", 3.0)] {
                for colour in look[what].as_array().unwrap() {
                    let contrast = contrast(colour.as_str().unwrap(), paper);
                    assert!(contrast >= least, "{at}: {what} {colour} on {paper}: {contrast}");
                }
            }
            papers.push(luminance(paper));
        }
        assert!(papers[..2].iter().all(|light| *light > 0.8), "{papers:?}");
        assert!(papers[2..].iter().all(|dark| *dark < 0.05), "{papers:?}");
    }
}

/// The contrast of two colours as WCAG 2 defines it: 1 to 21.
fn contrast(a: &str, b: &str) -> f64 {
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

/// The relative luminance of `rgb(r, g, b)`.
fn luminance(colour: &str) -> f64 {
    let numbers = colour.trim_start_matches("rgb(").trim_end_matches(')').split(", ");
    let linear = numbers.map(|number| {
        let share = number.parse::<f64>().unwrap_or_else(|_| panic!("{colour}")) / 255.0;
        if share <= 0.04045 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
    });
    linear.zip([0.2126, 0.7152, 0.0722]).map(|(share, weight)| share * weight).sum()
}
