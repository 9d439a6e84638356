//! Settings: read from TOML, overridden key by key, checked once.
//!
//! The defaults are in one file that a person can read, `experiments/default.toml`; a settings file and
//! `--set` override single keys of it. Unknown keys are rejected.

mod overlay;

use std::path::Path;

use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde::{Deserialize, Serialize};

pub(crate) use self::overlay::{line_at, merge};
use self::overlay::{origin, parse_set, refusal, refused_line};

use crate::bounds::{AtLeast, Bounds, Limit, Nested, Section, section};
use crate::device::{Checkpointing, Precision};
use crate::equations::normalizer::Regression;
use crate::equations::segment_reward::Aggregation;
use crate::equations::segmentation::EosPolicy;
use crate::file_error::FileError;
use crate::model::ModelConfig;
use crate::model::generate::Generation;
use crate::model::lora::LoraSettings;
use crate::model::optim::OptimizerSettings;
use crate::model::sampling::Sampling;
use crate::systems::{DpoSettings, Method, PpoSettings, SystemsSettings, Weights, decode};

/// Every setting with its default.
pub const DEFAULTS: &str = include_str!("../experiments/default.toml");

/// Overrides of [`DEFAULTS`] with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// The embedded task: four methods, one seed, at most 5 minutes on 2 cores
    Quick,
    /// The embedded task: six methods, three seeds, twice the iterations
    Full,
    /// A model of 0.1 to 2 billion parameters, all weights
    Small,
    /// A model of 0.1 to 2 billion parameters, adapters
    SmallLora,
    /// A model of 2 to 10 billion parameters, adapters
    LargeLora,
    /// Phi-3-mini as in the paper, all weights
    Phi3Mini,
    /// Llama-3-8B as in the paper, all weights
    #[value(name = "llama3-8b")]
    Llama3,
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Quick,
        Self::Full,
        Self::Small,
        Self::SmallLora,
        Self::LargeLora,
        Self::Phi3Mini,
        Self::Llama3,
    ];

    /// Its name, which is also that of its file in `experiments`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Full => "full",
            Self::Small => "small",
            Self::SmallLora => "small-lora",
            Self::LargeLora => "large-lora",
            Self::Phi3Mini => "phi3-mini",
            Self::Llama3 => "llama3-8b",
        }
    }

    /// Its TOML, with a name for errors.
    pub fn overlay(self) -> (String, String) {
        let text = match self {
            Self::Quick => include_str!("../experiments/quick.toml"),
            Self::Full => include_str!("../experiments/full.toml"),
            Self::Small => include_str!("../experiments/small.toml"),
            Self::SmallLora => include_str!("../experiments/small-lora.toml"),
            Self::LargeLora => include_str!("../experiments/large-lora.toml"),
            Self::Phi3Mini => include_str!("../experiments/phi3-mini.toml"),
            Self::Llama3 => include_str!("../experiments/llama3-8b.toml"),
        };
        (format!("{}.toml", self.name()), text.to_owned())
    }

    /// The one for a pretrained model of so many parameters.
    pub fn for_model(parameters: u128, adapters: bool) -> Self {
        match (parameters < 2_000_000_000, adapters) {
            (true, false) => Self::Small,
            (true, true) => Self::SmallLora,
            (false, false) => Self::Phi3Mini,
            (false, true) => Self::LargeLora,
        }
    }
}

/// Why settings were rejected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields' names say it
pub enum SettingsError {
    /// The settings file could not be read.
    #[error("{0}; --settings expects a TOML file")]
    File(#[from] FileError),
    /// TOML that does not parse, an unknown key, or a value of the wrong type.
    #[error("{origin}: {message}")]
    Toml { origin: String, message: String },
    /// A value out of range.
    #[error("{origin}: {key} = {problem}")]
    Range { origin: String, key: String, problem: String },
}

section! {
    /// The resolved settings of a run; every key is documented in `experiments/default.toml`.
    Settings {
        seed: u64 = Seed,
        method: Method,
        model: ModelSettings = Shape,
        precision: PrecisionSettings,
        lora: LoraSettings = Nested,
        heads: HeadsSettings = Nested,
        task: TaskSettings = Nested,
        data: DataSettings = Rows,
        segmentation: SegmentationSettings = Nested,
        sft: SftSettings = Nested,
        reward: RewardSettings = Nested,
        normalizer: NormalizerSettings = Nested,
        sampling: SamplingSettings = Nested,
        ppo: PpoSettings = Nested,
        #[serde(default = "default_dpo")] // a grid of before there was one
        dpo: DpoSettings = Nested,
        #[serde(default = "default_systems", deserialize_with = "systems")]
        systems: SystemsSettings = Nested,
        evaluation: EvaluationSettings = Nested,
        #[serde(default = "default_decode")] // a grid of before there were decoders
        decode: decode::Settings = Nested,
        reproduce: ReproduceSettings = Nested,
        checkpoint: CheckpointSettings = Nested,
        #[serde(default = "default_alarms")] // a grid of before there were any
        alarms: AlarmSettings = Nested,
    }
}

/// A section of the defaults, by its keys.
fn default_section<T: DeserializeOwned>(keys: &[&str]) -> T {
    let defaults: toml::Table = DEFAULTS.parse().expect("the defaults parse");
    let section = keys.iter().fold(toml::Value::from(defaults), |all, &key| all[key].clone());
    section.try_into().expect("the defaults hold")
}

fn default_alarms() -> AlarmSettings {
    default_section(&["alarms"])
}

fn default_keep_last() -> bool {
    default_section(&["checkpoint", "keep_last"])
}

fn default_aligned() -> AlignedSettings {
    default_section(&["task", "aligned"])
}

fn default_systems() -> SystemsSettings {
    default_section(&["systems"])
}

fn default_dpo() -> DpoSettings {
    default_section(&["dpo"])
}

fn default_decode() -> decode::Settings {
    default_section(&["decode"])
}

/// The sections of systems, over the defaults: a grid of before there was a system lacks its section.
fn systems<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemsSettings, D::Error> {
    let mut all = toml::Table::try_from(default_systems()).expect("settings serialise");
    merge(&mut all, toml::Table::deserialize(deserializer)?);
    all.try_into().map_err(|error: toml::de::Error| D::Error::custom(error.message()))
}

section! {
    /// The section `[model]`, checked as the shape that it gives.
    ModelSettings {
        hidden_size: usize,
        intermediate_size: usize,
        layers: usize,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        rope_theta: f64,
        rms_norm_eps: f64,
        tie_word_embeddings: bool,
    }
}
section! {
    /// The section `[precision]`.
    PrecisionSettings { compute: Precision, checkpointing: Checkpointing }
}
section! {
    /// The section `[heads]`.
    HeadsSettings {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        init_std: Option<f64> = Bounds::NotNegative,
    }
}
section! {
    /// The section `[task]`.
    TaskSettings {
        #[serde(default)] // a grid of before there was a choice
        reward: TaskReward,
        letters: usize = AtLeast(1),
        pairs: usize = AtLeast(1),
        held_out_pairs: usize = AtLeast(1),
        label_temperature: f64 = Bounds::Positive,
        #[serde(default = "default_aligned")] // a grid of before there were any
        aligned: AlignedSettings = Nested,
    }
}
section! {
    /// The section `[task.aligned]`.
    AlignedSettings {
        pairs: bool,
        resampled_share: f64 = Bounds::UpToOne,
        label_flips: f64 = Bounds::ZeroToOne,
    }
}
section! {
    /// The section `[data]`.
    DataSettings {
        prompt_tokens: usize = AtLeast(1),
        response_tokens: usize = AtLeast(2), // a token and EOS
        total_tokens: usize,
        held_out_share: f64 = Bounds::BelowOne,
    }
}
section! {
    /// The section `[segmentation]`.
    SegmentationSettings { entropy_cutoff: f64 = Bounds::NotNegativeOrInfinite, eos: EosPolicy }
}
section! {
    /// The section `[sft]`.
    SftSettings {
        epochs: usize = AtLeast(1),
        batch: usize = AtLeast(1),
        rows_at_once: usize = AtLeast(1),
        optimizer: OptimizerSettings = Nested,
    }
}
section! {
    /// The section `[reward]`.
    RewardSettings {
        epochs: usize = AtLeast(1),
        batch: usize = AtLeast(1),
        rows_at_once: usize = AtLeast(1),
        aggregation: Aggregation,
        margin: f64 = Bounds::Finite,
        margin_scale: f64 = Bounds::Finite,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        regularizer: Option<f64> = Bounds::Positive,
        optimizer: OptimizerSettings = Nested,
    }
}
section! {
    /// The section `[normalizer]`.
    NormalizerSettings {
        kind: NormalizerKind,
        regression: Regression,
        pairs: usize = AtLeast(1),
        #[serde(default, skip_serializing_if = "Option::is_none")]
        std_floor: Option<f64> = Bounds::Positive,
    }
}
section! {
    /// The section `[sampling]`.
    SamplingSettings {
        temperature: f64 = Bounds::NotNegative,
        top_k: usize,
        top_p: f64 = Bounds::UpToOne,
        prompt_tokens: usize = AtLeast(1),
        max_new_tokens: usize = AtLeast(1),
        rows_at_once: usize = AtLeast(1),
    }
}
section! {
    /// The section `[evaluation]`.
    EvaluationSettings { prompts: usize = AtLeast(1), samples: usize = AtLeast(1) }
}
section! {
    /// The section `[reproduce]`.
    ReproduceSettings {
        methods: Vec<Method> = Methods,
        seeds: usize = AtLeast(1),
        jobs: usize = AtLeast(1),
    }
}
section! {
    /// The section `[checkpoint]`.
    CheckpointSettings {
        every: usize = AtLeast(1),
        #[serde(default = "default_keep_last")] // a grid of before there was a choice
        keep_last: bool,
    }
}

section! {
    /// The section `[alarms]`.
    AlarmSettings {
        loss: f64 = Bounds::Positive,
        reward: f64 = Bounds::Positive,
        kl: f64 = Bounds::Positive,
        unfinished: f64 = Bounds::ZeroToOne,
        entropy: f64 = Bounds::ZeroToOne,
    }
}

/// What the embedded task rewards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskReward {
    /// What a reward model has learned from pairs: letters on two topics.
    #[default]
    Preferences,
    /// Whether a letter does what was asked, by program: letters on one, two or three topics.
    Verdict,
}

/// What normalizes segment rewards: table 4 of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormalizerKind {
    /// Mean and standard deviation by regression on the location (E5).
    Regression,
    /// Mean and standard deviation of all segment rewards.
    Global,
    /// Mean and standard deviation of the last segment's reward.
    Last,
    /// No normalization.
    None,
}

impl ModelSettings {
    /// The model that `sft` trains from nothing, for a vocabulary and a longest sequence in tokens.
    pub fn config(&self, vocab_size: usize, longest: usize) -> ModelConfig {
        ModelConfig {
            vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            rope_theta: self.rope_theta,
            norm_eps: self.rms_norm_eps,
            tie_word_embeddings: self.tie_word_embeddings,
            max_position_embeddings: longest,
            ..ModelConfig::default()
        }
    }
}

impl Settings {
    /// The defaults, then `overlays` in order (each a name for errors, and TOML text), then `sets`
    /// (`key=value`, the key with its sections).
    ///
    /// # Errors
    ///
    /// [`SettingsError`]; the whole is checked before anything runs.
    pub fn resolve(overlays: &[(String, String)], sets: &[String]) -> Result<Self, SettingsError> {
        let mut table: toml::Table = DEFAULTS.parse().expect("the defaults parse");
        for (origin, text) in overlays {
            let at = |line: Option<usize>| match line {
                Some(line) => format!("{origin}:{line}"),
                None => origin.clone(),
            };
            let overlay: toml::Table = text.parse().map_err(|error: toml::de::Error| {
                let line = error.span().map(|span| line_at(text, span.start));
                SettingsError::Toml { origin: at(line), message: error.message().to_owned() }
            })?;
            let mut merged = table.clone();
            merge(&mut merged, overlay);
            if let Err(error) = Self::deserialize(merged.clone()) {
                let message = refusal(&error, &table);
                return Err(SettingsError::Toml {
                    origin: at(refused_line(&table, text, &|table| {
                        Self::deserialize(table).is_ok()
                    })),
                    message,
                });
            }
            table = merged;
        }
        for set in sets {
            let toml =
                |message: String| SettingsError::Toml { origin: format!("--set {set}"), message };
            let overlay = parse_set(set).map_err(toml)?;
            let mut merged = table.clone();
            merge(&mut merged, overlay);
            if let Err(error) = Self::deserialize(merged.clone()) {
                return Err(toml(refusal(&error, &table)));
            }
            table = merged;
        }
        let settings = Self::deserialize(table).expect("each overlay was deserialised");
        match settings.first_problem() {
            None => Ok(settings),
            Some((key, problem)) => {
                let origin = origin(&key, overlays, sets);
                Err(SettingsError::Range { origin, key, problem })
            }
        }
    }

    /// These settings with `changes` over them, section by section; `origin` names the changes in errors.
    pub fn with(&self, origin: &str, changes: &toml::Table) -> Result<Self, SettingsError> {
        let origin = origin.to_owned();
        let table = toml::Table::try_from(self).expect("settings serialise");
        let mut merged = table.clone();
        merge(&mut merged, changes.clone());
        match Self::deserialize(merged) {
            Err(error) => Err(SettingsError::Toml { origin, message: refusal(&error, &table) }),
            Ok(settings) => match settings.first_problem() {
                None => Ok(settings),
                Some((key, problem)) => Err(SettingsError::Range { origin, key, problem }),
            },
        }
    }

    /// The defaults.
    pub fn defaults() -> Self {
        Self::resolve(&[], &[]).expect("the defaults hold")
    }

    /// The text of a settings file, named for errors.
    pub fn read(path: &Path) -> Result<(String, String), SettingsError> {
        let text = std::fs::read_to_string(path).map_err(FileError::reading(path))?;
        Ok((path.display().to_string(), text))
    }

    /// What the tokens of a pair count for a method that learns from pairs.
    pub fn weights(&self) -> Option<Weights> {
        self.method.weights(self.systems.section(self.method))
    }

    /// Whether a program's verdict is the reward, and no reward model.
    pub fn has_verdict(&self) -> bool {
        self.task.reward == TaskReward::Verdict
    }

    /// Whether the reference model writes the responses that are evaluated, and no policy is needed.
    pub fn reference_writes(&self) -> bool {
        self.decode.model == decode::Writing::Reference
    }

    /// How evaluation and rollouts draw a token.
    pub fn sampling(&self) -> Sampling {
        let s = &self.sampling;
        Sampling { temperature: s.temperature, top_k: s.top_k, top_p: s.top_p }
    }

    /// How responses that end with one of the tokens `stops` are generated.
    pub fn generation<'a>(&self, stops: &'a [u32]) -> Generation<'a> {
        let SamplingSettings { max_new_tokens, rows_at_once, .. } = self.sampling;
        Generation { sampling: self.sampling(), max_new_tokens, rows_at_once, stops }
    }

    /// The first key whose value is out of range, or does not go with another, with what was expected.
    fn first_problem(&self) -> Option<(String, String)> {
        let without_pairs = || {
            let method = self.method.name();
            (self.has_verdict() && self.weights().is_some()).then(|| {
                let expected = "expected a method that learns from rollouts, since task.reward = \"verdict\" has no pairs";
                ("method".to_owned(), format!("{method:?}; {expected}"))
            })
        };
        let system = || self.systems.check(self.method, &self.ppo);
        self.problem().or_else(system).or_else(without_pairs)
    }
}

/// The largest seed: readers of JSON keep it, and TOML keeps those counted up from it.
const LARGEST_SEED: u64 = 1 << 53;

/// The most parameters of a model that `sft` draws: with gradients and both moments, 16 GB.
const LARGEST_MODEL: u128 = 1_000_000_000;

struct Seed;

impl Limit<u64> for Seed {
    fn problem(&self, seed: &u64) -> Option<(String, String)> {
        let expected = format!("expected a whole number from 0 to {LARGEST_SEED}");
        (*seed > LARGEST_SEED).then(|| (String::new(), format!("{seed}; {expected}")))
    }
}

/// At least one method.
struct Methods;

impl Limit<Vec<Method>> for Methods {
    fn problem(&self, methods: &Vec<Method>) -> Option<(String, String)> {
        methods.is_empty().then(|| (String::new(), "[]; expected at least one method".into()))
    }
}

/// Limits of rows: a whole row holds a prompt, a token and EOS.
struct Rows;

impl Limit<DataSettings> for Rows {
    fn problem(&self, data: &DataSettings) -> Option<(String, String)> {
        let whole = || AtLeast(data.prompt_tokens.saturating_add(2)).problem(&data.total_tokens);
        let whole = || whole().map(|(_, problem)| ("total_tokens".to_owned(), problem));
        data.problem().or_else(whole)
    }
}

/// The shape of a model that `sft` draws.
struct Shape;

impl Limit<ModelSettings> for Shape {
    fn problem(&self, model: &ModelSettings) -> Option<(String, String)> {
        let config = model.config(1, 1);
        if let Some((key, problem)) = config.problem() {
            let own = match key {
                "num_hidden_layers" => "layers",
                "num_attention_heads" => "heads",
                "num_key_value_heads" => "kv_heads",
                same => same,
            };
            return Some((own.to_owned(), problem));
        }
        let parameters = config.parameters();
        (parameters > LARGEST_MODEL).then(|| {
            let dimensions = [
                ("hidden_size", config.hidden_size),
                ("intermediate_size", config.intermediate_size),
                ("layers", config.layers),
                ("heads", config.heads),
                ("head_dim", config.head_dim),
            ];
            let (key, value) = dimensions.into_iter().max_by_key(|(_, n)| *n).expect("not empty");
            let expected = format!(
                "expected a model of at most {LARGEST_MODEL:e} parameters, not {parameters:e}"
            );
            (key.to_owned(), format!("{value}; {expected}"))
        })
    }
}
