//! The stages in their order: what the result of each depends on, and where it lives.

use std::path::PathBuf;

use super::context::{Context, model_fingerprint};
use super::score::reward_fingerprint;
use super::{evaluate, fit_normalizer, policy, preferences, reward, sft};
use crate::error::Error;
use crate::rng::Fnv1a;

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
    /// Training of the policy.
    Ppo,
    /// Judging of the policy.
    Evaluate,
}

impl Stage {
    /// All, in their order.
    pub const ALL: [Self; 6] = [
        Self::Sft,
        Self::Preferences,
        Self::TrainReward,
        Self::FitNormalizer,
        Self::Ppo,
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
            Self::Evaluate => "evaluation",
        }
    }

    /// The settings that its result depends on besides the seed: sections, or single keys.
    pub fn settings(self) -> &'static [&'static str] {
        match self {
            Self::Sft => &["model", "lora", "task.letters", "data", "sft"],
            Self::Preferences => {
                &["task.pairs", "task.held_out_pairs", "task.label_temperature", "sampling"]
            }
            Self::TrainReward => &["data", "segmentation", "lora", "heads", "reward"],
            Self::FitNormalizer => &["method", "data", "segmentation", "normalizer", "sampling"],
            Self::Ppo => &[
                "method",
                "data",
                "segmentation",
                "lora",
                "heads",
                "sampling",
                "ppo",
                "evaluation",
            ],
            Self::Evaluate => &["method", "data", "segmentation", "sampling", "evaluation"],
        }
    }

    /// The number of its numerics: with another one, the same settings and inputs give other results. It goes
    /// into the stage's record and key, so that no result of an earlier program passes for this one's.
    /// `tests/pipeline/numerics.rs` pins what each stage computes to it.
    pub fn numerics(self) -> u32 {
        match self {
            Self::Sft
            | Self::Preferences
            | Self::TrainReward
            | Self::FitNormalizer
            | Self::Ppo
            | Self::Evaluate => 1,
        }
    }

    /// Runs it, unless its result is there.
    ///
    /// # Errors
    ///
    /// Every [`Error`].
    pub fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Self::Sft => sft::run(context).map(drop),
            Self::Preferences => preferences::run(context).map(drop),
            Self::TrainReward => reward::run(context).map(drop),
            Self::FitNormalizer => fit_normalizer::run(context).map(drop),
            Self::Ppo => policy::run(context).map(drop),
            Self::Evaluate => evaluate::run(context).map(drop),
        }
    }
}

/// Where the stages of a context live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// By their names: `RUN/sft`, `RUN/preferences`, `RUN/METHOD/{reward, normalizer, ppo, evaluation}`.
    Named,
    /// By a hash of all that their results depend on, `RUN/store/STAGE-HASH`: what several contexts share is there once.
    Hashed {
        /// The fingerprints of the user's model, reward model and data.
        inputs: String,
    },
}

impl Layout {
    /// The layout by hashes for a context; reads the user's files once.
    ///
    /// # Errors
    ///
    /// [`Error::Checkpoint`] and [`Error::Data`] when they cannot be read.
    pub fn hashed(context: &Context) -> Result<Self, Error> {
        let mut inputs = Vec::new();
        if let Some(dir) = &context.model {
            inputs.push(("model", model_fingerprint(dir)?));
        }
        if context.reward_model.is_some() {
            inputs.push(("reward model", reward_fingerprint(&context.reward_dir()?)?));
        }
        inputs.extend(context.data_fingerprints()?);
        let inputs = if inputs.is_empty() { String::new() } else { format!("{inputs:?}") };
        Ok(Self::Hashed { inputs })
    }
}

impl Context {
    /// The stages that the run takes: with the user's model, data or reward model, those that give them fall away.
    pub fn stages(&self) -> impl Iterator<Item = Stage> {
        let given = [
            (Stage::Sft, self.model.is_some()),
            (Stage::Preferences, self.data.is_some()),
            (Stage::TrainReward, self.reward_model.is_some()),
        ];
        Stage::ALL.into_iter().filter(move |stage| !given.contains(&(*stage, true)))
    }

    /// The folder of a stage.
    pub fn dir(&self, stage: Stage) -> PathBuf {
        match &self.layout {
            Layout::Named => match stage {
                Stage::Sft | Stage::Preferences => self.run.join(stage.folder()),
                Stage::TrainReward => {
                    self.run.join(self.settings.method.reward_model().name()).join(stage.folder())
                }
                _ => self.run.join(self.settings.method.name()).join(stage.folder()),
            },
            Layout::Hashed { inputs } => {
                let name = format!("{}-{:016x}", stage.folder(), self.key(stage, inputs));
                self.run.join("store").join(name)
            }
        }
    }

    /// A hash of the user's inputs and of what `stage` and those before it depend on.
    fn key(&self, stage: Stage, inputs: &str) -> u64 {
        let mut hash = Fnv1a::default();
        hash.write(inputs.as_bytes());
        for stage in self.stages().take_while(|before| *before != stage).chain([stage]) {
            hash.write(
                toml::to_string(&self.record(stage)).expect("a table serialises").as_bytes(),
            );
        }
        hash.finish()
    }

    /// What the result of `stage` depends on: the device, the number format, the stage's numerics, settings and seed.
    pub(super) fn record(&self, stage: Stage) -> toml::Table {
        let all = toml::Table::try_from(&self.settings).expect("settings serialise");
        let mut record = toml::Table::new();
        let mut put = |key: &str, value: &str| record.insert(key.into(), value.into());
        put("stage", stage.command());
        put("device", self.device_name.name());
        put("dtype", self.settings.precision.compute.name());
        if stage == Stage::TrainReward {
            put("method", self.settings.method.reward_model().name());
        }
        record.insert("numerics".into(), stage.numerics().into());
        let mut settings = toml::Table::new();
        for name in ["seed"].iter().chain(stage.settings()) {
            match name.split_once('.') {
                None => {
                    settings.insert((*name).to_owned(), all[*name].clone());
                }
                Some((section, key)) => {
                    let part = settings.entry(section).or_insert_with(|| toml::Table::new().into());
                    let part = part.as_table_mut().expect("a section is a table");
                    part.insert(key.to_owned(), all[section][key].clone());
                }
            }
        }
        record.insert("settings".into(), settings.into());
        record
    }
}
