//! One method is another at the ends of its settings, bit by bit: segments as tokens (E1 at cutoff 0), segments as
//! the bandit (E1 at an infinite cutoff), a location-aware normalizer as a scalar (E5 with flat lines).

use std::path::Path;

use segment_rlhf::equations::normalizer::Normalizer;
use segment_rlhf::model::{CausalLm, ScalarModel, checkpoint};
use segment_rlhf::run::{Context, Stage};
use segment_rlhf::stage::{fit_normalizer, online, reward, sft};

use crate::support::{context, pipeline};

/// The reward model's weights and the losses of its training, bit by bit.
fn reward_model(context: &Context) -> (String, Vec<u8>) {
    let folder = context.dir(Stage::TrainReward);
    let (model, _) = ScalarModel::load(&folder.join("model"), &context.device).unwrap();
    (checkpoint::fingerprint(&model), std::fs::read(folder.join("metrics.jsonl")).unwrap())
}

/// The policy's weights and the metrics of its training, bit by bit.
fn trained_policy(context: &Context) -> (String, Vec<u8>) {
    let folder = context.dir(Stage::Ppo);
    let (model, _) = CausalLm::load(&folder.join("model"), &context.device).unwrap();
    (checkpoint::fingerprint(&model), std::fs::read(folder.join("metrics.jsonl")).unwrap())
}

#[test]
fn cutoff_zero_trains_the_reward_model_and_the_policy_of_the_token_level() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let segment = |dir: &Path, cutoff: &str| {
        let cutoff = format!("segmentation.entropy_cutoff={cutoff}");
        pipeline(dir, &["method=segment", &cutoff, "sft.epochs=20", "sft.batch=8"])
    };
    let zero = segment(dirs[0].path(), "0");
    let token = pipeline(dirs[1].path(), &["method=token", "sft.epochs=20", "sft.batch=8"]);
    assert_eq!(reward_model(&zero), reward_model(&token));
    assert_eq!(trained_policy(&zero), trained_policy(&token));
    // And not those of another cutoff.
    let other = tempfile::tempdir().unwrap();
    let other = segment(other.path(), "2.5");
    assert_ne!(reward_model(&other), reward_model(&token));
    assert_ne!(trained_policy(&other), trained_policy(&token));
}

#[test]
fn an_infinite_cutoff_with_eos_included_is_the_bandit() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let infinite = [
        "method=segment",
        "segmentation.entropy_cutoff=inf",
        "segmentation.eos=included",
        // What the paper sets apart for the bandit: its reward stands at its end, and its value clip.
        "ppo.interpolation=last_token",
        "ppo.value_clip_dense=0.2",
    ];
    let infinite = pipeline(dirs[0].path(), &infinite);
    let bandit = pipeline(dirs[1].path(), &["method=bandit"]);
    assert_eq!(bandit.settings.ppo.value_clip_bandit, 0.2);
    assert_eq!(reward_model(&infinite), reward_model(&bandit));
    assert_eq!(trained_policy(&infinite), trained_policy(&bandit));
}

#[test]
fn a_normalizer_of_zero_slopes_is_the_bandit_s_scalar() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let scalar = pipeline(dirs[0].path(), &["method=segment", "normalizer.kind=global"]);
    let flat = context(dirs[1].path(), &["method=segment", "normalizer.kind=global"]);
    sft::run(&flat).unwrap();
    reward::run(&flat).unwrap();
    let mut file = fit_normalizer::run(&flat).unwrap();
    let Normalizer::Scalar { mean, std } = file.normalizer else { panic!("{file:?}") };
    file.normalizer = Normalizer::LocationAware {
        w_mean: 0.0,
        b_mean: mean,
        w_std: 0.0,
        b_std: std,
        std_floor: None,
    };
    let path = flat.dir(Stage::FitNormalizer).join("normalizer.json");
    std::fs::write(path, serde_json::to_vec(&file).unwrap()).unwrap();
    online::run(&flat).unwrap();
    assert_eq!(trained_policy(&flat), trained_policy(&scalar));
}
