//! Runs that have a verdict in place of a reward model.

use segment_rlhf::run::metrics::IterationMetrics;
use segment_rlhf::run::{Context, Stage};
use segment_rlhf::stage::{evaluate, fit_normalizer, online, preferences, reward, sft};
use segment_rlhf::systems::Method;

use crate::support::context;

#[test]
fn every_method_learns_from_a_verdict_without_the_stages_of_a_reward_model() {
    let dir = tempfile::tempdir().unwrap();
    let settings = segment_rlhf::settings::Settings::defaults();
    let of_rollouts =
        |method: &&Method| method.weights(settings.systems.section(**method)).is_none();
    for &method in Method::all().iter().filter(of_rollouts) {
        let sums = method == Method::LENS; // the verdict with others
        let method = format!("method={}", method.name());
        let context = context(dir.path(), &[&method, "task.reward=verdict"]);
        let stages: Vec<Stage> = context.stages().collect();
        assert_eq!(stages, [Stage::Sft, Stage::Ppo, Stage::Evaluate]);
        sft::run(&context).unwrap();
        online::run(&context).unwrap();
        let summary = evaluate::run(&context).unwrap();
        let after = summary.after;
        assert_eq!(after.pass_rate, Some(after.sequence_score));
        assert_eq!(after.score(), after.sequence_score);
        assert!(after.gold.is_some() && after.win_rate.is_some());
        let log = context.dir(Stage::Ppo).join("metrics.jsonl");
        let last = std::fs::read_to_string(log).unwrap().lines().last().unwrap().to_owned();
        let line: IterationMetrics = serde_json::from_str(&last).unwrap();
        assert!(line.sampled_tokens > 0);
        assert!((0.0..=1.0).contains(&line.sequence_score));
        assert!(sums || line.reward == line.sequence_score);
    }
}

#[test]
fn a_stage_of_the_reward_model_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let context = context(dir.path(), &["task.reward=verdict"]);
    let errors = [
        preferences::run(&context).unwrap_err(),
        reward::run(&context).unwrap_err(),
        fit_normalizer::run(&context).unwrap_err(),
    ];
    for (error, stage) in errors.iter().zip(["preferences", "train-reward", "fit-normalizer"]) {
        assert_eq!(
            error.to_string(),
            format!(
                "{stage}: task.reward = \"verdict\" judges by program and has no reward model; leave this out, or set \
                 task.reward = \"preferences\""
            )
        );
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_user_s_data_has_no_verdict() {
    let dir = tempfile::tempdir().unwrap();
    let own = context(dir.path(), &["task.reward=verdict"]);
    sft::run(&own).unwrap();
    let data = Some(dir.path().join("pairs.jsonl"));
    let error = online::run(&Context { data, ..own }).unwrap_err().to_string();
    assert!(
        error.starts_with("--data: task.reward = \"verdict\" judges the embedded task"),
        "{error}"
    );
}
