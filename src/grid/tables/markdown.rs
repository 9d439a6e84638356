//! The statistics of a grid in Markdown.

use crate::grid::analysis::{
    Analysis, Arm, BASE, Difference, Experiment, ONE_BETA, Ordering, Outcome, Quantity, Verdict,
};
use crate::statistics::Estimate;
use crate::table::{self, digits};

/// The markers around [`readme`] in the README.
pub const MARKERS: [&str; 2] = ["<!-- results -->", "<!-- /results -->"];

/// How to read the tables.
fn reading() -> String {
    let margin = |q: Quantity| q.margin().expect("it has one");
    format!(
        "Figures are means over seeds ± their standard error; in brackets is the 95 % interval (Student's t over \
         seeds). A difference is paired by seed, so that both sides start from the same SFT model. \\* marks a \
         difference whose interval excludes 0; each interval speaks for itself alone, and of twenty, one misses the \
         truth by chance. ≈ marks one whose whole interval lies within ±{} gold reward or ±{} win rate: no difference. \
         Without either mark it is undecided. In a column's head (n 384) means a share of 384 responses or pairs of each \
         seed; in a cell (n 2) means that only two seeds know the figure, and – (2 of 5) that two of five seeds reach \
         that KL. –: not known.",
        margin(Quantity::Gold),
        margin(Quantity::WinRate)
    )
}

/// All experiments in Markdown: figures, gold reward at matched KL, the policy and the reward model, paired
/// differences, the paper's claims, and the cells without figures.
pub fn markdown(analysis: &Analysis) -> String {
    let Analysis { version, device, experiments, .. } = analysis;
    let mut parts = vec![
        "# Results".to_owned(),
        format!("segment-rlhf {version}, device {device}."),
        reading(),
    ];
    parts.extend(claims(analysis));
    for experiment in experiments {
        parts.push(format!("## {}", line(&experiment.title)));
        parts.extend(experiment.note.as_ref().map(|note| line(note)));
        parts.push(figures(experiment, MAIN));
        let mut section = |title: &str, body: Option<String>| {
            parts.extend(body.into_iter().flat_map(|body| [format!("### {title}"), body]));
        };
        section(
            "Gold reward at matched KL",
            arms(experiment, &Quantity::AT_KL.map(|(_, quantity)| quantity)),
        );
        section("Policy", arms(experiment, POLICY));
        let strength = arms(experiment, STRENGTH);
        section("The KL term", strength.map(|table| format!("{ONE_BETA}\n\n{table}")));
        section("Reward model and normalizer", arms(experiment, REWARD));
        section("Differences paired by seed", differences(experiment));
        section("What the paper claims", orderings(experiment));
        section("Cells without figures", problems(experiment));
    }
    parts.push("## Glossary".to_owned());
    let all = || experiments.iter().flat_map(|experiment| &experiment.arms);
    let known = |q: &&Quantity| all().any(|arm| arm.figures.contains_key(q));
    let term = |q: &Quantity| format!("- {}: {}", q.title(), q.description());
    parts.push(Quantity::ALL.iter().filter(known).map(term).collect::<Vec<_>>().join("\n"));
    parts.join("\n\n").replace("\n\n\n", "\n\n") + "\n"
}

/// The section of the README: the main figures of each experiment, and how many of the paper's orderings hold.
pub fn readme(analysis: &Analysis) -> String {
    let mut parts = vec![MARKERS[0].to_owned(), reading()];
    parts.extend(claims(analysis));
    for experiment in &analysis.experiments {
        parts.push(format!("### {}", line(&experiment.title)));
        parts.push(figures(experiment, SHORT));
        parts.extend(verdicts(experiment));
    }
    parts.push(MARKERS[1].to_owned());
    parts.join("\n\n").replace("\n\n\n", "\n\n")
}

/// `text` with the part from the first marker to the second replaced by `section`; `None` unless it has both.
///
/// # Examples
///
/// ```
/// use segment_rlhf::grid::tables::replace_section;
/// let text = "before\n<!-- results -->\nold\n<!-- /results -->\nafter\n";
/// assert_eq!(replace_section(text, "new").as_deref(), Some("before\nnew\nafter\n"));
/// assert_eq!(replace_section("nothing", "new"), None);
/// ```
pub fn replace_section(text: &str, section: &str) -> Option<String> {
    let (before, rest) = text.split_once(MARKERS[0])?;
    let (_, after) = rest.split_once(MARKERS[1])?;
    Some(format!("{before}{section}{after}"))
}

const MAIN: &[Quantity] = &[
    Quantity::WinRate,
    Quantity::LengthControlledWinRate,
    Quantity::Kl,
    Quantity::Tokens,
    Quantity::Repeats,
    Quantity::Area,
    Quantity::RewardAccuracy,
    Quantity::SequenceRankCorrelation,
    Quantity::RankCorrelation,
];
const SHORT: &[Quantity] = &[
    Quantity::LengthControlledWinRate,
    Quantity::Kl,
    Quantity::Tokens,
    Quantity::Area,
    Quantity::GoldAtOneNat,
];
const POLICY: &[Quantity] = &[
    Quantity::SampledTokens,
    Quantity::TrainedTokens,
    Quantity::PairAccuracy,
    Quantity::TeachingShare,
    Quantity::WrongInChosen,
    Quantity::RightInRejected,
    Quantity::ModelCalls,
    Quantity::RewardCalls,
    Quantity::DrawnTokens,
    Quantity::SamplesToGoldTwo,
    Quantity::SamplesToGoldThree,
    Quantity::Segments,
    Quantity::EosRate,
    Quantity::BestGold,
    Quantity::BestIteration,
    Quantity::CauseAdvantageShare,
    Quantity::CauseTokenShare,
    Quantity::CreditCorrelation,
];
const STRENGTH: &[Quantity] = &[
    Quantity::AdvantageSpreadAtFirst,
    Quantity::AdvantageSpread,
    Quantity::EffectiveKlCoefficient,
];
const REWARD: &[Quantity] = &[
    Quantity::RewardGoldAccuracy,
    Quantity::RewardAccuracyNarrowGaps,
    Quantity::RewardAccuracyWideGaps,
    Quantity::CalibrationError,
    Quantity::RewardTemperature,
    Quantity::ClauseCorrelation,
    Quantity::TopicCorrelation,
    Quantity::QualityCorrelation,
    Quantity::BoundaryPrecision,
    Quantity::BoundaryRecall,
    Quantity::BoundaryF1,
    Quantity::SegmentTokens,
    Quantity::NormalizerMeanR2,
    Quantity::NormalizerStdR2,
];
const DIFFERENCES: &[Quantity] = &[
    Quantity::Gold,
    Quantity::LengthControlledWinRate,
    Quantity::Area,
    Quantity::GoldAtQuarterNat,
    Quantity::GoldAtOneNat,
    Quantity::Tokens,
];

/// The quantity that judges arms: the pass rate if there is a verdict, else gold reward, or e_φ if no arm has it.
fn score(experiment: &Experiment) -> Quantity {
    if experiment.arms.iter().any(|arm| arm.figure(Quantity::PassRate).is_some()) {
        return Quantity::PassRate;
    }
    let gold = experiment.arms.iter().any(|arm| arm.figure(Quantity::Gold).is_some());
    if gold || experiment.arms.iter().all(|arm| arm.figures.is_empty()) {
        Quantity::Gold
    } else {
        Quantity::SequenceScore
    }
}

/// The SFT model and the arms: seeds, the score with its interval, and the known ones of `columns`.
fn figures(experiment: &Experiment, columns: &[Quantity]) -> String {
    let score = score(experiment);
    let columns = experiment.columns(columns);
    let header = ["arm", "seeds", score.title(), "95 %"].map(str::to_owned).into_iter();
    let header: Vec<String> = header.chain(columns.iter().map(|&q| experiment.title(q))).collect();
    let base = (!experiment.base.is_empty()).then(|| {
        let of = |q: Quantity| with_error(q, experiment.base.get(&q), 0);
        let seeds = experiment.base.values().map(|e| e.n).max().unwrap_or_default();
        let head =
            [BASE.into(), seeds.to_string(), of(score), interval(experiment.base.get(&score))];
        head.into_iter().chain(columns.iter().map(|&q| of(q))).collect()
    });
    let row = |arm: &Arm| {
        let head = [name(arm), seeds(arm), of(arm, score), interval(arm.figure(score))];
        head.into_iter().chain(columns.iter().map(|&q| of(arm, q))).collect()
    };
    let rows: Vec<Vec<String>> = base.into_iter().chain(experiment.arms.iter().map(row)).collect();
    table::markdown(&header, &rows)
}

/// The arms with the known ones of `columns`; `None` if there are none.
fn arms(experiment: &Experiment, columns: &[Quantity]) -> Option<String> {
    let columns = experiment.columns(columns);
    let titles = columns.iter().map(|&q| experiment.title(q));
    let header: Vec<String> = ["arm".to_owned()].into_iter().chain(titles).collect();
    let row =
        |arm: &Arm| [name(arm)].into_iter().chain(columns.iter().map(|&q| of(arm, q))).collect();
    let rows: Vec<Vec<String>> = experiment.arms.iter().map(row).collect();
    (!columns.is_empty()).then(|| table::markdown(&header, &rows))
}

/// Every pair of arms with seeds in common.
fn differences(experiment: &Experiment) -> Option<String> {
    let known: Vec<&Difference> =
        experiment.differences.iter().filter(|d| !d.figures.is_empty()).collect();
    let score = score(experiment);
    let is_known = |q: &Quantity| known.iter().any(|d| d.figures.contains_key(q));
    let rest = DIFFERENCES.iter().copied().filter(|&q| q != score && is_known(&q));
    let columns: Vec<Quantity> = [score].into_iter().chain(rest).collect();
    let titles = columns.iter().map(|&q| experiment.title(q));
    let header: Vec<String> = ["difference".to_owned()].into_iter().chain(titles).collect();
    let row = |d: &&Difference| {
        let pair = format!("{} − {}", cell(&d.arm), cell(&d.baseline));
        let n = d.figures.values().map(|e| e.n).max().unwrap_or_default();
        let cells = columns.iter().map(|&q| difference(q, d.figures.get(&q), n));
        [pair].into_iter().chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = known.iter().map(row).collect();
    (!known.is_empty()).then(|| table::markdown(&header, &rows))
}

/// The paper's orderings beside ours.
fn orderings(experiment: &Experiment) -> Option<String> {
    let orderings = &experiment.orderings;
    let first = orderings.first()?;
    let benchmarks: Vec<&str> = first.reported.iter().map(|r| r.benchmark.title()).collect();
    let controlled = Quantity::LengthControlledWinRate;
    let by_win_rate = format!("{}, here", experiment.title(controlled));
    let header = ["the paper"].into_iter().chain(benchmarks.iter().copied());
    let header: Vec<&str> =
        header.chain(["gold, here", "verdict", &by_win_rate, "verdict"]).collect();
    let row = |ordering: &Ordering| {
        let reported = benchmarks.iter().map(|title| {
            let pair = ordering.reported.iter().find(|r| r.benchmark.title() == *title);
            pair.map_or("–".into(), |pair| {
                let sign = ["<", "=", ">"][(pair.sign + 1) as usize];
                let decimals = pair.benchmark.decimals();
                format!("{:.decimals$} {sign} {:.decimals$}", pair.better, pair.worse)
            })
        });
        let outcome = |quantity: Quantity, outcome: &Option<Outcome>| match outcome {
            Some(Outcome { difference: d, verdict }) => {
                [difference(quantity, Some(d), d.n), verdict.title().to_owned()]
            }
            None => ["–".to_owned(), "–".to_owned()],
        };
        [claim(ordering)]
            .into_iter()
            .chain(reported)
            .chain(outcome(Quantity::Gold, &ordering.gold))
            .chain(outcome(controlled, &ordering.length_controlled_win_rate))
            .collect()
    };
    let rows: Vec<Vec<String>> = orderings.iter().map(row).collect();
    let table = table::markdown(&header, &rows);
    let note = "The first benchmark says which arm the paper has ahead; where another disagrees, its sign shows.";
    Some(
        [table, note.to_owned()]
            .into_iter()
            .chain(verdicts(experiment))
            .collect::<Vec<_>>()
            .join("\n\n"),
    )
}

fn claim(ordering: &Ordering) -> String {
    format!("{} > {}", cell(&ordering.better), cell(&ordering.worse))
}

/// How many of the paper's orderings hold here by gold reward, over all experiments.
fn claims(analysis: &Analysis) -> Option<String> {
    Some(analysis.claims(|ordering| ordering.gold)?.text("gold reward"))
}

/// The orderings of each verdict by gold reward.
fn verdicts(experiment: &Experiment) -> Option<String> {
    let judged: Vec<(&Ordering, Outcome)> = (experiment.orderings.iter())
        .filter_map(|ordering| Some((ordering, ordering.gold?)))
        .collect();
    let list = |verdict: Verdict| {
        let of = judged.iter().filter(|(_, outcome)| outcome.verdict == verdict);
        let claims: Vec<String> = of
            .map(|(ordering, outcome)| {
                claim(ordering) + no_difference(Quantity::Gold, &outcome.difference)
            })
            .collect();
        let colon = if claims.is_empty() { "" } else { ": " };
        let (title, interval) = (verdict.title(), verdict.interval());
        format!("- {title}, {interval} ({}){colon}{}", claims.len(), claims.join(", "))
    };
    let head = format!(
        "Of the {} orderings that table {} of the paper claims, by gold reward:\n\n",
        judged.len(),
        experiment.paper_table.unwrap_or_default()
    );
    (!judged.is_empty()).then(|| head + &Verdict::ALL.map(list).join("\n"))
}

/// Failed, corrupt and pending cells.
fn problems(experiment: &Experiment) -> Option<String> {
    let mut lines = Vec::new();
    for arm in &experiment.arms {
        for problem in &arm.problems {
            let what = problem
                .stage
                .as_ref()
                .map_or("unreadable".into(), |stage| format!("{stage} failed"));
            lines.push(format!(
                "- {}, seed {}: {what}: {}",
                arm.name,
                problem.seed,
                line(&problem.error)
            ));
        }
        if !arm.seeds.pending.is_empty() {
            let seeds: Vec<String> = arm.seeds.pending.iter().map(u64::to_string).collect();
            lines.push(format!("- {}, not yet finished: seed {}", arm.name, seeds.join(", ")));
        }
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

fn name(arm: &Arm) -> String {
    format!("{}{}", cell(&arm.name), if arm.ours { " (ours)" } else { "" })
}

/// The number of finished seeds, and of all if some are not finished.
fn seeds(arm: &Arm) -> String {
    let seeds = &arm.seeds;
    let finished = seeds.finished.len();
    match seeds.failed.len() + seeds.corrupt.len() + seeds.pending.len() {
        0 => finished.to_string(),
        rest => format!("{finished} of {}", finished + rest),
    }
}

fn of(arm: &Arm, quantity: Quantity) -> String {
    let finished = arm.seeds.finished.len();
    match (arm.figure(quantity), arm.reached.get(&quantity)) {
        (None, Some(seeds)) => format!("– ({} of {finished})", seeds.len()),
        (None, None) => "–".into(),
        (estimate, _) => {
            let one = arm.of_one(quantity);
            one.unwrap_or_else(|| with_error(quantity, estimate, finished))
        }
    }
}

/// `3.30 ± 0.16`, and the number of values if it is below `n`.
fn with_error(quantity: Quantity, estimate: Option<&Estimate>, n: usize) -> String {
    let Some(estimate) = estimate else { return "–".into() };
    let decimals = if quantity == Quantity::EffectiveKlCoefficient { 3 } else { 2 };
    let error = estimate.error.map(|error| format!(" ± {error:.decimals$}")).unwrap_or_default();
    format!("{}{error}{}", digits(estimate.mean, decimals), fewer(estimate, n))
}

/// `+0.68 [+0.10, +1.26]*`, the star if the interval excludes 0, ≈ if it is no difference, and the number of values if
/// it is below `n`.
fn difference(quantity: Quantity, estimate: Option<&Estimate>, n: usize) -> String {
    let Some(estimate) = estimate else { return "–".into() };
    let interval = estimate.interval.map(|[low, high]| format!(" [{low:+.2}, {high:+.2}]"));
    let marks = star(estimate).to_owned() + no_difference(quantity, estimate);
    format!("{:+.2}{}{marks}{}", estimate.mean, interval.unwrap_or_default(), fewer(estimate, n))
}

/// The mark of no difference.
fn no_difference(quantity: Quantity, difference: &Estimate) -> &'static str {
    if quantity.is_no_difference(difference) { " ≈" } else { "" }
}

/// The mark of an interval that excludes 0.
fn star(difference: &Estimate) -> &'static str {
    if difference.excludes_zero() { "\\*" } else { "" }
}

fn fewer(estimate: &Estimate, n: usize) -> String {
    if estimate.n < n { format!(" (n {})", estimate.n) } else { String::new() }
}

fn interval(estimate: Option<&Estimate>) -> String {
    let interval = estimate.and_then(|estimate| estimate.interval);
    interval
        .map_or("–".into(), |[low, high]| format!("[{}, {}]", digits(low, 2), digits(high, 2)))
}

/// Text for a cell of a Markdown table.
fn cell(text: &str) -> String {
    line(text).replace('|', "\\|")
}

/// Text on one line.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
