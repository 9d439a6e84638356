//! The stages on a tiny embedded task: crossings, normalizers, and the first PPO step.

use std::fs;
use std::path::Path;

use segment_rlhf::equations::normalizer::Normalizer;
use segment_rlhf::equations::segmentation::{EosPolicy, Rule, SegmentationError};
use segment_rlhf::grid::plan::Grid;
use segment_rlhf::grid::reproduce;
use segment_rlhf::grid::results::FORMAT;
use segment_rlhf::model::{CausalLm, checkpoint};
use segment_rlhf::run::metrics::IterationMetrics;
use segment_rlhf::run::{Context, Error, Stage};
use segment_rlhf::stage::evaluate::{Evaluator, Kept, Side};
use segment_rlhf::stage::score::Scorer;
use segment_rlhf::stage::task::Task;
use segment_rlhf::stage::{fit_normalizer, online, preferences, reward, sft};
use segment_rlhf::systems::Method;
use segment_rlhf::systems::Segmenter;
use segment_rlhf::systems::paper::METHODS;

use crate::support::{context, pipeline};

fn metrics(context: &Context) -> Vec<IterationMetrics> {
    let path = context.dir(Stage::Ppo).join("metrics.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_first_optimizer_step_of_an_iteration_has_ratio_one() {
    let bf16 = "precision.compute=\"bf16\"";
    let layers = "precision.checkpointing=\"layers\"";
    let settings: [&[&str]; 6] = [
        &[],
        &[layers],
        &[bf16],
        &[bf16, layers],
        &[bf16, "lora.rank=2"],
        &[bf16, layers, "lora.rank=2"],
    ];
    for more in settings {
        let dir = tempfile::tempdir().unwrap();
        // One minibatch an iteration.
        let context = pipeline(dir.path(), &[&["method=segment"], more].concat());
        let lines = metrics(&context);
        assert_eq!(lines.len(), 2);
        for line in lines {
            // In f32 the attention of training is made of other operations.
            let allowed = if more.contains(&bf16) { 0.0 } else { 1e-5 };
            assert!((line.ratio - 1.0).abs() <= allowed, "{more:?}: {}", line.ratio);
            assert_eq!(line.clip_fraction, 0.0);
            assert!(line.advantage_mean.abs() < 1e-6 && (line.advantage_std - 1.0).abs() < 1e-6);
        }
    }
}

#[test]
fn where_the_truth_is_known_rewards_and_advantages_are_compared_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let context = pipeline(dir.path(), &["method=token", "task.held_out_pairs=25"]);
    let reward = reward::run(&context).unwrap(); // finished: read again
    // Of topic and quality words an untrained model writes too few.
    assert!(reward.rank_correlation.is_some() && reward.clause_correlation.is_some());
    let sizes: Vec<usize> = reward.calibration.iter().map(|group| group.pairs).collect();
    assert_eq!((sizes.len(), sizes.iter().sum::<usize>()), (10, 25));
    let right: f64 = reward.calibration.iter().map(|g| g.observed * g.pairs as f64).sum();
    assert!((right / 25.0 - reward.accuracy).abs() < 1e-12);
    for line in metrics(&context) {
        let (advantage, tokens) = (line.cause_advantage_share, line.cause_token_share);
        assert!(advantage.is_some_and(|share| share > 0.0 && share < 1.0), "{advantage:?}");
        assert!(tokens.is_some_and(|share| share > 0.0 && share < 1.0), "{tokens:?}");
        assert!(line.credit_correlation.is_some_and(|rho| rho.abs() <= 1.0));
    }
}

#[test]
fn heads_start_with_the_spread_that_settings_name() {
    let dir = tempfile::tempdir().unwrap();
    let context = pipeline(dir.path(), &["method=token", "heads.init_std=0"]);
    // Every score is 0, and so is every value: -ln σ(0), and nothing explained.
    let log = fs::read_to_string(context.dir(Stage::TrainReward).join("metrics.jsonl")).unwrap();
    let first: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert!((first["loss"].as_f64().unwrap() - 2f64.ln()).abs() < 1e-6, "{first}");
    assert_eq!(metrics(&context)[0].explained_variance, Some(0.0));
}

#[test]
fn each_side_of_a_win_rate_draws_its_own_responses() {
    let dir = tempfile::tempdir().unwrap();
    let context = pipeline(dir.path(), &["method=bandit", "evaluation.prompts=16"]);
    let reference_dir = context.reference_dir().unwrap();
    let task = Task::open(&context, Some(&reference_dir)).unwrap();
    let (stops, ends) = (task.tokenizer.stop_tokens(), task.tokenizer.sentence_ends());
    let scorer = Scorer::load(&context, ends, stops, 3).unwrap();
    let (model, config) = CausalLm::load(&reference_dir, &context.device).unwrap();
    let evaluator = Evaluator::new(&context, &task, &scorer).unwrap();
    let judge = |side| evaluator.judge(&model, &config, side, Kept::default(), &|| ()).unwrap();
    let (policy, baseline) = (judge(Side::Policy), judge(Side::Baseline));
    assert_eq!(policy.responses, judge(Side::Policy).responses);
    assert_eq!(policy.prompts, baseline.prompts);
    assert_eq!(policy.evaluation.responses, 16);
    // One model, so that the same draws would give the same responses.
    let same = policy.responses.iter().zip(&baseline.responses).filter(|(a, b)| a == b).count();
    assert!(same < 4, "{same} of 16 responses are the same");
}

#[test]
fn a_method_with_one_action_a_response_has_a_rank_correlation_of_sequences_alone() {
    let dir = tempfile::tempdir().unwrap();
    let summary = |method: &str| {
        let context = pipeline(dir.path(), &[method, "task.held_out_pairs=20"]);
        let summary = reward::run(&context).unwrap();
        assert_eq!(summary.pairs, 20);
        assert!(summary.gold_pairs.is_some_and(|pairs| pairs > 0 && pairs <= 20));
        (summary.sequence_rank_correlation.is_some(), summary.rank_correlation.is_some())
    };
    assert_eq!(summary("method=bandit"), (true, false));
    assert_eq!(summary("method=token"), (true, true));
}

#[test]
fn gradient_accumulation_changes_nothing_but_rounding() {
    let train = |rows_at_once: &str| {
        let dir = tempfile::tempdir().unwrap();
        let sft_rows = format!("sft.rows_at_once={rows_at_once}");
        let reward_rows = format!("reward.rows_at_once={rows_at_once}");
        let context = context(dir.path(), &["method=token", &sft_rows, &reward_rows]);
        sft::run(&context).unwrap();
        reward::run(&context).unwrap();
        let losses = |stage: &str| -> Vec<f64> {
            let text =
                std::fs::read_to_string(dir.path().join(stage).join("metrics.jsonl")).unwrap();
            let loss = |line: &str| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                line["loss"].as_f64().unwrap()
            };
            text.lines().map(loss).collect()
        };
        (losses("sft"), losses("token/reward"))
    };
    let (whole, parts) = (train("32"), train("5"));
    for (a, b) in whole.0.iter().zip(&parts.0) {
        assert!((a - b).abs() < 1e-4, "sft: {a} {b}");
    }
    // The pairs are samples of two models that differ by rounding; the first loss is before any step.
    assert!((whole.1[0] - parts.1[0]).abs() < 1e-4, "reward: {} {}", whole.1[0], parts.1[0]);
}

#[test]
fn all_six_methods_run_and_share_two_reward_models() {
    let dir = tempfile::tempdir().unwrap();
    let methods: Vec<String> = METHODS.iter().map(|m| format!("{:?}", m.name())).collect();
    let methods = format!("reproduce.methods=[{}]", methods.join(","));
    let context = context(dir.path(), &[&methods]);
    let grid = Grid {
        format: FORMAT,
        device: context.device_id(),
        seeds: vec![context.settings.seed],
        model: None,
        reward_model: None,
        data: None,
        prompts: None,
        columns: Default::default(),
        experiments: vec![reproduce::experiment("all", &context.settings)],
    };
    let Context { run, locks, stop, progress, .. } = &context;
    let results = reproduce::run(&grid.plan(run, locks, stop, progress).unwrap(), 2).unwrap();
    assert_eq!(results.cells.len(), 6);
    let of = |method| {
        let (.., cell) = results.rows().find(|(_, arm, _)| arm.method == method).unwrap();
        cell.figures().unwrap()
    };
    let reward_model = |method| &of(method).normalizer.as_ref().unwrap().reward_model;
    assert_eq!(reward_model(Method::BANDIT), reward_model(Method::BANDIT_AS_SEGMENT));
    assert_eq!(reward_model(Method::SEGMENT), reward_model(Method::SEGMENT_AS_BANDIT));
    assert_ne!(reward_model(Method::SEGMENT), reward_model(Method::BANDIT));
    for method in [Method::BANDIT, Method::SEGMENT_AS_BANDIT] {
        assert!(matches!(
            of(method).normalizer.as_ref().unwrap().normalizer,
            Normalizer::Scalar { .. }
        ));
    }
    for method in [Method::SENTENCE, Method::TOKEN, Method::SEGMENT, Method::BANDIT_AS_SEGMENT] {
        assert!(matches!(
            of(method).normalizer.as_ref().unwrap().normalizer,
            Normalizer::LocationAware { .. }
        ));
    }
    let before = results.cells.iter().map(|cell| cell.figures().unwrap().evaluation.before.gold);
    let before: Vec<_> = before.collect();
    assert!(before.windows(2).all(|pair| pair[0] == pair[1]), "one SFT model, one set of draws");
}

#[test]
fn a_normalizer_fitted_on_other_actions_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut context = context(dir.path(), &["method=bandit_as_segment"]);
    sft::run(&context).unwrap();
    reward::run(&context).unwrap(); // the bandit's, which no cutoff concerns
    fit_normalizer::run(&context).unwrap();
    context.settings.segmentation.entropy_cutoff = 2.0;
    let error = online::run(&context).unwrap_err();
    assert!(matches!(error, Error::Mismatch { what: "rule", .. }), "{error}");
}

#[test]
fn the_best_policy_is_kept_beside_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let context =
        context(dir.path(), &["method=token", "ppo.evaluate_every=1", "ppo.iterations=3"]);
    sft::run(&context).unwrap();
    reward::run(&context).unwrap();
    fit_normalizer::run(&context).unwrap();
    let summary = online::run(&context).unwrap();
    let folder = context.dir(Stage::Ppo);
    let fingerprint = |dir: &Path| {
        let (model, _) = CausalLm::load(dir, &context.device).unwrap();
        checkpoint::fingerprint(&model)
    };
    let (last, best) =
        (fingerprint(&folder.join("model")), fingerprint(&folder.join("best/model")));
    assert_eq!(summary.best_iteration == 3, last == best);
    assert!(summary.best.gold >= summary.last.gold);
}

#[test]
fn segment_as_bandit_is_rewarded_once_with_the_sequence_score() {
    let dir = tempfile::tempdir().unwrap();
    let context = context(dir.path(), &["method=segment_as_bandit"]);
    sft::run(&context).unwrap();
    reward::run(&context).unwrap();
    let reference = context.reference_dir().unwrap();
    let task = Task::open(&context, Some(&reference)).unwrap();
    let tokenizer = &task.tokenizer;
    let ends = tokenizer.sentence_ends();
    let scorer = Scorer::load(&context, ends, tokenizer.stop_tokens(), 4).unwrap();
    let (pairs, _) = preferences::load(&context, &task, false).unwrap();
    let pairs = pairs.train.read(0..pairs.train.len()).unwrap();
    let rows: Vec<(&[u32], &[u32])> =
        pairs.iter().map(|pair| (&pair.prompt[..], &pair.chosen[..])).collect();
    // The same reward model, asked for the rewards of its segments: E3 averages them.
    let mut own = context.clone();
    own.settings.method = Method::SEGMENT;
    let of_segments = Scorer::load(&own, ends, tokenizer.stop_tokens(), 4).unwrap();
    let of_segments = of_segments.score(&rows).unwrap();
    assert!(of_segments.iter().any(|(_, scored)| scored.segments.len() > 1));
    let scored = scorer.score(&rows).unwrap();
    for ((row, (_, scored)), (_, of_segments)) in rows.iter().zip(scored).zip(of_segments) {
        let mean = of_segments.rewards.iter().sum::<f64>() / of_segments.rewards.len() as f64;
        assert!((scored.sequence_score - mean).abs() < 1e-9, "{}, {mean}", scored.sequence_score);
        assert_eq!(scored.rewards, [scored.sequence_score]);
        assert_eq!(scored.segments.len(), 1);
        assert_eq!(scored.segments[0], 0..row.1.len());
    }
}

#[test]
fn a_response_of_eos_alone_is_one_segment_to_the_stages_and_an_error_to_the_equation() {
    let segmenter = Segmenter {
        rule: Rule::Token,
        eos_policy: EosPolicy::AsPublished,
        stops: vec![1, 3],
        sentence_ends: vec![false; 4],
    };
    assert_eq!(segmenter.cut(&[1], &[0.5]).unwrap().len(), 1);
    assert_eq!(segmenter.cut(&[3], &[0.5]).unwrap().len(), 1);
    assert_eq!(segmenter.cut(&[], &[]), Err(SegmentationError::Empty { tokens: 0 }));
    for stop in [1, 3] {
        assert_eq!(segmenter.cut(&[2, stop], &[0.5, 0.5]).unwrap()[0], 0..1);
    }
    assert_eq!(segmenter.cut(&[2, 2], &[0.5, 0.5]).unwrap(), [0..1, 1..2]);
}
