//! The stages in their order, and what the result of each depends on.

use crate::settings::{Settings, TaskReward, TaskSettings};

/// Settings by their names.
macro_rules! keys {
    [$($name:ident),*] => {
        toml::Table::from_iter([
            $((stringify!($name).to_owned(), toml::Value::try_from($name).expect("settings serialise"))),*
        ])
    };
}

/// A stage of the pipeline. Each needs the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Fine-tuning of the reference model.
    Sft,
    /// Sampling of the embedded task's pairs.
    Preferences,
    /// Training of the reward model.
    TrainReward,
    /// Fitting of the normalizer.
    FitNormalizer,
    /// Training of a policy on its rollouts.
    Ppo,
    /// Training of a policy on preference pairs.
    Dpo,
    /// Judging of the policy.
    Evaluate,
}

impl Stage {
    /// All, in their order.
    pub const ALL: [Self; 7] = [
        Self::Sft,
        Self::Preferences,
        Self::TrainReward,
        Self::FitNormalizer,
        Self::Ppo,
        Self::Dpo,
        Self::Evaluate,
    ];

    /// The command that runs it.
    pub fn command(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Preferences => "preferences",
            Self::TrainReward => "train-reward",
            Self::FitNormalizer => "fit-normalizer",
            Self::Ppo => "ppo",
            Self::Dpo => "dpo",
            Self::Evaluate => "evaluate",
        }
    }

    /// The name of its folder.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Preferences => "preferences",
            Self::TrainReward => "reward",
            Self::FitNormalizer => "normalizer",
            Self::Ppo => "ppo",
            Self::Dpo => "dpo",
            Self::Evaluate => "evaluation",
        }
    }

    /// The settings that its result depends on.
    pub(super) fn settings(self, all: &Settings) -> toml::Table {
        let Settings { seed, method, model, lora, heads, task, data, segmentation, sft, .. } = all;
        let Settings { reward, normalizer, sampling, ppo, dpo, evaluation, decode, .. } = all;
        match self {
            Self::Sft => {
                let TaskSettings { letters, .. } = task;
                let mut own = keys![letters];
                own.extend(verdict(task));
                let task = own;
                keys![seed, model, lora, task, data, sft]
            }
            Self::Preferences => {
                let TaskSettings { pairs, held_out_pairs, label_temperature, aligned, .. } = task;
                let mut own = keys![pairs, held_out_pairs, label_temperature];
                if aligned.pairs {
                    own.extend(keys![aligned]);
                }
                let task = own;
                keys![seed, task, sampling]
            }
            Self::TrainReward => keys![seed, data, segmentation, lora, heads, reward],
            Self::FitNormalizer => keys![seed, method, data, segmentation, normalizer, sampling],
            Self::Ppo => {
                let mut table =
                    keys![seed, method, data, segmentation, lora, heads, sampling, ppo, evaluation];
                table.extend(own_section(all));
                table.extend(verdict(task));
                table
            }
            Self::Dpo => {
                let mut table = keys![seed, method, data, lora, dpo];
                table.extend(own_section(all));
                if all.weights().is_some_and(|weights| weights.reads_rewards()) {
                    table.extend(keys![segmentation]);
                }
                table
            }
            Self::Evaluate => {
                let mut table = keys![seed, method, data, segmentation, sampling, evaluation];
                table.extend(verdict(task));
                // A result from before there were decoders keeps its key.
                if !decode.is_plain() {
                    table.extend(keys![decode]);
                }
                table
            }
        }
    }

    /// The number of its numerics, raised when the same settings and inputs give other results. It goes
    /// into the stage's record and key, so no result of an earlier program passes for this one's.
    /// `tests/pipeline/numerics.rs` pins what each stage computes to it.
    pub fn numerics(self) -> u32 {
        match self {
            Self::Sft
            | Self::Preferences
            | Self::TrainReward
            | Self::FitNormalizer
            | Self::Ppo
            | Self::Dpo
            | Self::Evaluate => 1,
        }
    }
}

/// The section of the method's system, if it has one.
fn own_section(all: &Settings) -> Option<(String, toml::Value)> {
    all.systems.section(all.method).map(|own| ("system".to_owned(), own))
}

/// The key `reward` of the section `[task]` where it is not the default: a result from before it had a choice keeps its key.
fn verdict(task: &TaskSettings) -> Option<(String, toml::Value)> {
    let TaskSettings { reward, .. } = task;
    (*reward != TaskReward::default()).then(|| keys![reward].into_iter().next()).flatten()
}
