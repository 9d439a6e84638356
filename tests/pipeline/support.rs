//! Runs of the embedded task that take a second.

use std::path::Path;

use segment_rlhf::device::{DeviceId, DeviceName};
use segment_rlhf::run::Context;
use segment_rlhf::settings::Settings;
use segment_rlhf::stage::{fit_normalizer, online, reward, sft};

/// Settings of a run that takes a second.
const TINY: &[&str] = &[
    "model.hidden_size=16",
    "model.intermediate_size=24",
    "model.layers=1",
    "model.heads=2",
    "model.kv_heads=1",
    "model.head_dim=8",
    "task.letters=96",
    "task.pairs=32",
    "task.held_out_pairs=8",
    "sft.epochs=1",
    "reward.epochs=1",
    "normalizer.pairs=32",
    "normalizer.std_floor=0.1",
    "sampling.max_new_tokens=20",
    "ppo.iterations=2",
    "ppo.rollouts=8",
    "ppo.minibatch=8",
    "ppo.rows_at_once=3",
    "ppo.evaluate_every=2",
    "dpo.batch=8",
    "dpo.rows_at_once=3",
    "evaluation.prompts=4",
    "evaluation.samples=1",
];

/// A run in `dir` with the further settings `more`.
pub fn context(dir: &Path, more: &[&str]) -> Context {
    context_on(DeviceName::Flex.into(), dir, more)
}

/// The same on another device.
pub fn context_on(device: DeviceId, dir: &Path, more: &[&str]) -> Context {
    let sets: Vec<String> = TINY.iter().chain(more).map(|&set| set.to_owned()).collect();
    let settings = Settings::resolve(&[], &sets).unwrap();
    Context::new(settings, device, dir.to_owned()).unwrap()
}

/// The whole pipeline with the settings `more`.
pub fn pipeline(dir: &Path, more: &[&str]) -> Context {
    pipeline_of(context(dir, more))
}

/// The whole pipeline of a context.
pub fn pipeline_of(context: Context) -> Context {
    sft::run(&context).unwrap();
    reward::run(&context).unwrap();
    fit_normalizer::run(&context).unwrap();
    online::run(&context).unwrap();
    context
}
