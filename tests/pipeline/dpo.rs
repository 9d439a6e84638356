//! The DPO family as stages.

use std::path::Path;

use segment_rlhf::data::letters;
use segment_rlhf::run::{Context, Stage};
use segment_rlhf::settings::Settings;
use segment_rlhf::stage::task::Task;
use segment_rlhf::stage::{dpo, evaluate, online, preferences, reward, sft};
use segment_rlhf::systems::Method;

use crate::support::context;

const OFFLINE: [Method; 4] =
    [Method::DPO, Method::SEGMENT_DPO, Method::TOKEN_ADPO, Method::SEGMENT_ADPO];

fn of(method: Method) -> String {
    format!("method={}", method.name())
}

fn run_all(context: &Context) {
    context.stages().for_each(|stage| segment_rlhf::stage::run(stage, context).unwrap());
}

#[test]
fn every_method_of_pairs_trains_and_evaluates_without_rollouts() {
    for method in OFFLINE {
        let dir = tempfile::tempdir().unwrap();
        let rate = "dpo.optimizer.learning_rate=1e-2";
        let more = ["task.aligned.pairs=true", "dpo.epochs=8", rate, &of(method)];
        let context = context(dir.path(), &more);
        let mut expected = vec![Stage::Sft, Stage::Preferences, Stage::TrainReward];
        if [Method::TOKEN_ADPO, Method::SEGMENT_ADPO].contains(&method) {
            expected.push(Stage::FitNormalizer);
        }
        expected.extend([Stage::Dpo, Stage::Evaluate]);
        assert_eq!(context.stages().collect::<Vec<_>>(), expected);
        run_all(&context);
        let summary = dpo::run(&context).unwrap();
        assert_eq!(summary.teaching_share < 1.0, method != Method::DPO);
        assert!(summary.wrong_in_chosen.is_some() && summary.right_in_rejected.is_some());
        let log = std::fs::read_to_string(context.dir(Stage::Dpo).join("metrics.jsonl")).unwrap();
        assert_eq!(log.lines().count(), 8 * 4, "32 pairs in batches of 8");
        let last: serde_json::Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        let figure = |key: &str| last[key].as_f64().unwrap();
        assert!(figure("loss") < 2f64.ln() && figure("accuracy") > 0.5, "{method:?}: {last}");
        assert!(figure("chosen_reward") > figure("rejected_reward"));
        assert!(evaluate::run(&context).unwrap().after.kl > 0.0);
    }
}

#[test]
fn rows_at_once_change_no_figure_but_in_its_last_digits() {
    let summary = |rows: usize| {
        let dir = tempfile::tempdir().unwrap();
        let context = context(dir.path(), &[&of(Method::DPO), &format!("dpo.rows_at_once={rows}")]);
        sft::run(&context).unwrap();
        dpo::run(&context).unwrap()
    };
    let (one, all) = (summary(1), summary(8));
    assert!((one.loss - all.loss).abs() < 1e-4, "{} and {}", one.loss, all.loss);
    assert_eq!(one.trained_tokens, all.trained_tokens);
}

#[test]
fn a_method_is_trained_by_the_stage_that_it_has() {
    let dir = tempfile::tempdir().unwrap();
    let context = context(dir.path(), &[]);
    sft::run(&context).unwrap();
    let with = |method: Method| {
        let mut own = context.clone();
        own.settings.method = method;
        own
    };
    assert_eq!(
        online::run(&with(Method::DPO)).unwrap_err().to_string(),
        "ppo: dpo learns from preference pairs: run dpo --method dpo"
    );
    assert_eq!(
        dpo::run(&with(Method::SEGMENT)).unwrap_err().to_string(),
        "dpo: segment learns from its rollouts: run ppo --method segment, or dpo --method dpo"
    );
    assert!(!dir.path().join("dpo").exists() && !dir.path().join("segment").exists());
}

#[test]
fn pairs_without_labels_are_refused_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let context = context(dir.path(), &[&of(Method::SEGMENT_DPO)]);
    sft::run(&context).unwrap();
    let error = dpo::run(&context).unwrap_err().to_string();
    assert_eq!(
        error,
        "segment_dpo needs labels of segments, and pairs of two samples have none: set task.aligned.pairs = true, or \
         give --data with `segments`"
    );
    assert!(!context.dir(Stage::Dpo).exists());
}

#[test]
fn a_verdict_has_no_pairs() {
    let sets = [of(Method::DPO), "task.reward=verdict".to_owned()];
    let error = Settings::resolve(&[], &sets).unwrap_err().to_string();
    assert_eq!(
        error,
        "--set method=dpo: method = \"dpo\"; expected a method that learns from rollouts, since task.reward = \
         \"verdict\" has no pairs"
    );
}

#[test]
fn labels_of_aligned_pairs_are_the_truth_but_for_the_flips() {
    let labels = |flips: &str| {
        let dir = tempfile::tempdir().unwrap();
        let flips = format!("task.aligned.label_flips={flips}");
        let sets = ["task.aligned.pairs=true", "task.pairs=400", &flips];
        let context = context(dir.path(), &sets);
        sft::run(&context).unwrap();
        let reference = context.reference_dir().unwrap();
        let task = Task::open(&context, Some(&reference)).unwrap();
        let pairs = preferences::load(&context, &task, true).unwrap().0.train;
        let (mut right, mut wrong, mut turned) = (0, 0, 0);
        for pair in pairs.read(0..400).unwrap() {
            let prompt = letters::Prompt::from_tokens(&pair.prompt).unwrap();
            let [chosen, rejected] =
                pair.rows().map(|(_, letter)| letters::gold(&prompt, letter).clauses);
            let labels = pair.labels.unwrap();
            for (a, b) in chosen.iter().zip(&rejected) {
                let label = labels[0][a.range.start];
                assert!(labels[0][a.range.clone()].iter().all(|&of| of == label));
                assert!(labels[1][b.range.clone()].iter().all(|&of| of == label));
                match f64::from(label) * (a.credit - b.credit) {
                    x if x > 1e-9 => right += 1,
                    x if x < -1e-9 => wrong += 1,
                    _ => assert_eq!((label, (a.credit - b.credit).abs() < 1e-9), (0, true)),
                }
            }
            let [chosen, rejected] = pair.gold.unwrap();
            turned += usize::from(chosen < rejected);
        }
        (right, wrong, turned)
    };
    let (right, wrong, turned) = labels("0.0");
    assert!(right > 200 && wrong == 0 && turned == 0, "{right}, {wrong}, {turned}");
    let (right, wrong, turned) = labels("0.2");
    let share = f64::from(wrong) / f64::from(wrong + right);
    assert!((share - 0.2).abs() < 0.08 && (40..120).contains(&turned), "{share}, {turned}");
}

/// A file of pairs with labels of segments, and the run that reads it.
fn labelled(dir: &Path, rows: &[serde_json::Value], more: &[&str]) -> Context {
    let data = dir.join("pairs.jsonl");
    let lines: Vec<String> = rows.iter().map(ToString::to_string).collect();
    std::fs::write(&data, lines.join("\n")).unwrap();
    let own = context(dir, &[&[&of(Method::SEGMENT_DPO)[..]], more].concat());
    sft::run(&own).unwrap();
    let model = Some(own.reference_dir().unwrap());
    Context { data: Some(data), model, run: dir.join("run"), ..own }
}

fn row(i: usize, segments: &serde_json::Value) -> serde_json::Value {
    let names = ["ana", "ben", "carla", "david"];
    serde_json::json!({
        "prompt": format!("write to {} about the lake .", names[i % 4]),
        "chosen": "dear ana , music",
        "rejected": "dear ben , food",
        "segments": segments,
    })
}

#[test]
fn labels_of_a_file_are_those_of_the_characters() {
    let dir = tempfile::tempdir().unwrap();
    let segments = serde_json::json!([
        {"start": 11, "end": 16, "rejected_start": 11, "rejected_end": 15, "label": -1},
        {"start": 0, "end": 7, "label": 1},
    ]);
    let rows: Vec<_> = (0..4).map(|i| row(i, &segments)).collect();
    let context = labelled(dir.path(), &rows, &[]);
    let task = Task::open(&context, context.model.as_deref()).unwrap();
    let (pairs, with) = preferences::load(&context, &task, true).unwrap();
    // dear, the name, whose first character is in the segment, the comma, the topic, EOS
    let expected = vec![1, 1, 0, -1, 0];
    for pair in pairs.train.read(0..pairs.train.len()).unwrap() {
        assert_eq!(pair.labels, Some([expected.clone(), expected.clone()]));
    }
    let (pairs, without) = preferences::load(&context, &task, false).unwrap();
    assert_eq!(pairs.train.get(0).unwrap().labels, None);
    assert_ne!(with, without);
    dpo::run(&context).unwrap();
    reward::run(&context).unwrap();
}

#[test]
fn a_bad_label_or_range_is_named_with_its_file_and_line() {
    let bad = [
        (serde_json::json!(null), "the key `segments` is missing"),
        (serde_json::json!([]), "`segments` is an empty list; expected a list that is not empty"),
        (
            serde_json::json!([{"start": 0, "end": 4, "label": 2}]),
            "the label of segments[0] is 2; expected -1, 0 or 1",
        ),
        (serde_json::json!([{"start": 0, "label": 1}]), "the key `segments[0].end` is missing"),
        (
            serde_json::json!([{"start": -1, "end": 4, "label": 1}]),
            "segments[0] is -1 to 4 in a chosen response of 16 characters; expected 0 <= start < end <= 16",
        ),
        (
            serde_json::json!([{"start": 5, "end": 16, "label": 1}]),
            "segments[0] is 5 to 16 in a rejected response of 15 characters; expected 0 <= start < end <= 15",
        ),
        (
            serde_json::json!([{"start": 4, "end": 4, "label": 1}]),
            "segments[0] is 4 to 4 in a chosen response of 16 characters; expected 0 <= start < end <= 16",
        ),
        (
            serde_json::json!([{"start": 0, "end": 4, "label": 1}, {"start": 3, "end": 9, "label": 0}]),
            "segments[0] and segments[1] overlap; part them, or take one of them out",
        ),
        (
            serde_json::json!([{"start": 0, "end": 4, "rejected_start": 1, "label": 1}]),
            "the key `segments[0].rejected_end` is missing",
        ),
    ];
    let good = serde_json::json!([{"start": 0, "end": 4, "label": 1}]);
    for (segments, problem) in bad {
        let dir = tempfile::tempdir().unwrap();
        let rows = [row(0, &good), row(1, &segments)];
        let context = labelled(dir.path(), &rows, &[]);
        let error = dpo::run(&context).unwrap_err().to_string();
        let place = format!("{}:2: ", context.data.as_ref().unwrap().display());
        assert!(error.starts_with(&format!("{place}{problem}")), "{error}\n{problem}");
        assert!(
            !context.dir(Stage::Dpo).exists() && !context.run.join("data").join("labels").exists()
        );
    }
}
