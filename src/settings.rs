//! Settings: read from TOML, overridden key by key, checked once.
//!
//! The defaults stand in one place that a person can read, `experiments/default.toml`; a settings file and
//! `--set` override single keys of it. Unknown keys are refused.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use toml::de::{DeTable, DeValue};

use crate::bounds::Bounds;
use crate::device::{Checkpointing, Precision};
use crate::equations::normalizer::Regression;
use crate::equations::segment_reward::Aggregation;
use crate::equations::segmentation::EosPolicy;
use crate::model::ModelConfig;
use crate::model::generate::Generation;
use crate::model::lora::LoraSettings;
use crate::model::optim::OptimizerSettings;
use crate::model::sampling::Sampling;
use crate::systems::{Method, PpoSettings, SystemsSettings};

/// Every setting with its default.
pub const DEFAULTS: &str = include_str!("../experiments/default.toml");
/// The preset `quick`, as overrides of [`DEFAULTS`].
pub const QUICK: &str = include_str!("../experiments/quick.toml");
/// The preset `full`, as overrides of [`DEFAULTS`].
pub const FULL: &str = include_str!("../experiments/full.toml");

/// Why settings were refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// The settings file could not be read.
    #[error("{path}: cannot read: {source}; --settings expects a TOML file")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// TOML that does not parse, an unknown key, or a value of the wrong type.
    #[error("{origin}: {message}")]
    Toml {
        /// The file, or the `--set` argument.
        origin: String,
        /// What the parser said, with the line where there is one.
        message: String,
    },
    /// A value out of range.
    #[error("{origin}: {key} = {problem}")]
    Range {
        /// The file and line, or the `--set` argument, that gave the value.
        origin: String,
        /// The key, with its section.
        key: String,
        /// What it is, and what was expected.
        problem: String,
    },
}

/// The resolved settings of a run; every key is documented in `experiments/default.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // each key is documented, with its unit, where its default stands
pub struct Settings {
    pub seed: u64,
    pub method: Method,
    pub model: ModelSettings,
    pub precision: PrecisionSettings,
    pub lora: LoraSettings,
    pub heads: HeadsSettings,
    pub task: TaskSettings,
    pub data: DataSettings,
    pub segmentation: SegmentationSettings,
    pub sft: SftSettings,
    pub reward: RewardSettings,
    pub normalizer: NormalizerSettings,
    pub sampling: SamplingSettings,
    pub ppo: PpoSettings,
    #[serde(default = "default_systems")] // a grid of before there were any
    pub systems: SystemsSettings,
    pub evaluation: EvaluationSettings,
    pub reproduce: ReproduceSettings,
    pub checkpoint: CheckpointSettings,
}

fn default_systems() -> SystemsSettings {
    let defaults: toml::Table = DEFAULTS.parse().expect("the defaults parse");
    defaults["systems"].clone().try_into().expect("the defaults hold")
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        #[allow(missing_docs)] // each key is documented, with its unit, where its default stands
        pub struct $name { $(pub $field: $kind),* }
    };
}

section! {
    /// The section `[model]`.
    ModelSettings {
        hidden_size: usize, intermediate_size: usize, layers: usize, heads: usize, kv_heads: usize,
        head_dim: usize, rope_theta: f64, rms_norm_eps: f64, tie_word_embeddings: bool,
    }
}
section! {
    /// The section `[precision]`.
    PrecisionSettings { compute: Precision, checkpointing: Checkpointing }
}
section! {
    /// The section `[task]`.
    TaskSettings {
        letters: usize, pairs: usize, held_out_pairs: usize, label_temperature: f64,
    }
}
section! {
    /// The section `[data]`.
    DataSettings {
        prompt_tokens: usize, response_tokens: usize, total_tokens: usize, held_out_share: f64,
    }
}
section! {
    /// The section `[segmentation]`.
    SegmentationSettings { entropy_cutoff: f64, eos: EosPolicy }
}
section! {
    /// The section `[sft]`.
    SftSettings { epochs: usize, batch: usize, rows_at_once: usize, optimizer: OptimizerSettings }
}
section! {
    /// The section `[reward]`.
    RewardSettings {
        epochs: usize, batch: usize, rows_at_once: usize, aggregation: Aggregation, margin: f64,
        margin_scale: f64, optimizer: OptimizerSettings,
    }
}
section! {
    /// The section `[sampling]`.
    SamplingSettings {
        temperature: f64, top_k: usize, top_p: f64, prompt_tokens: usize, max_new_tokens: usize,
        rows_at_once: usize,
    }
}
section! {
    /// The section `[evaluation]`.
    EvaluationSettings { prompts: usize, samples: usize }
}
section! {
    /// The section `[reproduce]`.
    ReproduceSettings { methods: Vec<Method>, seeds: usize, jobs: usize }
}
section! {
    /// The section `[checkpoint]`.
    CheckpointSettings { every: usize }
}

/// The section `[heads]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // each key is documented, with its unit, where its default stands
pub struct HeadsSettings {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_std: Option<f64>,
}

/// The section `[normalizer]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // each key is documented, with its unit, where its default stands
pub struct NormalizerSettings {
    pub kind: NormalizerKind,
    pub regression: Regression,
    pub pairs: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub std_floor: Option<f64>,
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
                let message = error.to_string().trim().to_owned();
                return Err(SettingsError::Toml {
                    origin: at(refused_line(&table, text)),
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
                return Err(toml(error.to_string().trim().to_owned()));
            }
            table = merged;
        }
        let settings = Self::deserialize(table).expect("each overlay was deserialised");
        match settings.problem() {
            None => Ok(settings),
            Some((key, problem)) => {
                let origin = origin(&key, overlays, sets);
                Err(SettingsError::Range { origin, key, problem })
            }
        }
    }

    /// These settings with `changes` over them, section by section; `origin` names the changes in errors.
    ///
    /// # Errors
    ///
    /// [`SettingsError`].
    pub fn with(&self, origin: &str, changes: &toml::Table) -> Result<Self, SettingsError> {
        let origin = origin.to_owned();
        let mut table = toml::Table::try_from(self).expect("settings serialise");
        merge(&mut table, changes.clone());
        match Self::deserialize(table) {
            Err(error) => {
                Err(SettingsError::Toml { origin, message: error.to_string().trim().to_owned() })
            }
            Ok(settings) => match settings.problem() {
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
    ///
    /// # Errors
    ///
    /// [`SettingsError::Read`].
    pub fn read(path: &Path) -> Result<(String, String), SettingsError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| SettingsError::Read { path: path.to_owned(), source })?;
        Ok((path.display().to_string(), text))
    }

    /// The model that `sft` trains from nothing, for a vocabulary and a longest sequence in tokens.
    pub fn model_config(&self, vocab_size: usize, longest: usize) -> ModelConfig {
        let m = &self.model;
        ModelConfig {
            vocab_size,
            hidden_size: m.hidden_size,
            intermediate_size: m.intermediate_size,
            layers: m.layers,
            heads: m.heads,
            kv_heads: m.kv_heads,
            head_dim: m.head_dim,
            rope_theta: m.rope_theta,
            norm_eps: m.rms_norm_eps,
            tie_word_embeddings: m.tie_word_embeddings,
            max_position_embeddings: longest,
            ..ModelConfig::default()
        }
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

    /// The first key whose value is out of range, with the value and what was expected.
    fn problem(&self) -> Option<(String, String)> {
        let counts = [
            ("task.letters", self.task.letters),
            ("task.pairs", self.task.pairs),
            ("task.held_out_pairs", self.task.held_out_pairs),
            ("data.prompt_tokens", self.data.prompt_tokens),
            ("sft.epochs", self.sft.epochs),
            ("sft.batch", self.sft.batch),
            ("sft.rows_at_once", self.sft.rows_at_once),
            ("reward.epochs", self.reward.epochs),
            ("reward.batch", self.reward.batch),
            ("reward.rows_at_once", self.reward.rows_at_once),
            ("normalizer.pairs", self.normalizer.pairs),
            ("sampling.prompt_tokens", self.sampling.prompt_tokens),
            ("sampling.max_new_tokens", self.sampling.max_new_tokens),
            ("sampling.rows_at_once", self.sampling.rows_at_once),
            ("ppo.iterations", self.ppo.iterations),
            ("ppo.rollouts", self.ppo.rollouts),
            ("ppo.minibatch", self.ppo.minibatch),
            ("ppo.rows_at_once", self.ppo.rows_at_once),
            ("ppo.epochs", self.ppo.epochs),
            ("ppo.evaluate_every", self.ppo.evaluate_every),
            ("evaluation.prompts", self.evaluation.prompts),
            ("evaluation.samples", self.evaluation.samples),
            ("reproduce.seeds", self.reproduce.seeds),
            ("reproduce.jobs", self.reproduce.jobs),
            ("checkpoint.every", self.checkpoint.every),
        ];
        // A response holds a token and EOS.
        let counts = counts.map(|(key, count)| (key, count, 1));
        let data = &self.data;
        let counts = counts.into_iter().chain([
            ("data.response_tokens", data.response_tokens, 2),
            ("data.total_tokens", data.total_tokens, data.prompt_tokens.saturating_add(2)),
        ]);
        for (key, count, least) in counts {
            if !(least..=MOST).contains(&count) {
                let expected = format!("expected a whole number from {least} to {MOST}");
                return Some((key.to_owned(), format!("{count}; {expected}")));
            }
        }
        if self.seed > LARGEST_SEED {
            let expected = format!("expected a whole number from 0 to {LARGEST_SEED}");
            return Some(("seed".into(), format!("{}; {expected}", self.seed)));
        }
        if self.reproduce.methods.is_empty() {
            return Some(("reproduce.methods".into(), "[]; expected at least one method".into()));
        }
        if let Some((key, problem)) = self.lora.problem() {
            return Some((format!("lora.{key}"), problem));
        }
        if let Some((key, problem)) = self.systems.problem() {
            return Some((format!("systems.{key}"), problem));
        }
        let Self { segmentation, reward, sampling, ppo, data, normalizer, .. } = self;
        let numbers = [
            (
                "segmentation.entropy_cutoff",
                segmentation.entropy_cutoff,
                Bounds::NotNegativeOrInfinite,
            ),
            ("heads.init_std", self.heads.init_std.unwrap_or(0.0), Bounds::NotNegative),
            ("task.label_temperature", self.task.label_temperature, Bounds::Positive),
            ("reward.margin", reward.margin, Bounds::Finite),
            ("reward.margin_scale", reward.margin_scale, Bounds::Finite),
            ("sampling.temperature", sampling.temperature, Bounds::NotNegative),
            ("sampling.top_p", sampling.top_p, Bounds::UpToOne),
            ("ppo.kl_coefficient", ppo.kl_coefficient, Bounds::NotNegative),
            ("ppo.kl_target", ppo.kl_target.unwrap_or(1.0), Bounds::Positive),
            ("ppo.kl_horizon", ppo.kl_horizon, Bounds::Positive),
            ("ppo.gamma", ppo.gamma, Bounds::ZeroToOne),
            ("ppo.lambda", ppo.lambda, Bounds::ZeroToOne),
            ("ppo.clip", ppo.clip, Bounds::Positive),
            ("ppo.value_clip_dense", ppo.value_clip_dense, Bounds::Positive),
            ("ppo.value_clip_bandit", ppo.value_clip_bandit, Bounds::Positive),
            ("data.held_out_share", data.held_out_share, Bounds::BelowOne),
            ("normalizer.std_floor", normalizer.std_floor.unwrap_or(1.0), Bounds::Positive),
        ];
        let numbers = numbers.map(|(key, value, bounds)| (key.to_owned(), value, bounds));
        let optimizers = [
            ("sft.optimizer", &self.sft.optimizer),
            ("reward.optimizer", &self.reward.optimizer),
            ("ppo.actor", &self.ppo.actor),
            ("ppo.critic", &self.ppo.critic),
        ];
        let of_optimizers = optimizers.iter().flat_map(|(section, optimizer)| {
            let full = move |(key, value, bounds)| (format!("{section}.{key}"), value, bounds);
            optimizer.bounds().map(full)
        });
        for (key, value, bounds) in numbers.into_iter().chain(of_optimizers) {
            if !bounds.hold(value) {
                return Some((key, format!("{value}; expected {bounds}")));
            }
        }
        self.model_problem()
    }

    /// The same for the section `[model]`.
    fn model_problem(&self) -> Option<(String, String)> {
        let config = self.model_config(1, 1);
        if let Some((key, problem)) = config.problem() {
            let own = match key {
                "num_hidden_layers" => "layers",
                "num_attention_heads" => "heads",
                "num_key_value_heads" => "kv_heads",
                same => same,
            };
            return Some((format!("model.{own}"), problem));
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
            (format!("model.{key}"), format!("{value}; {expected}"))
        })
    }
}

/// The largest count: products of two fit in 64 bits.
const MOST: usize = 100_000_000;

/// The largest seed: readers of JSON keep it, and TOML keeps those counted up from it.
const LARGEST_SEED: u64 = 1 << 53;

/// The most parameters of a model that `sft` draws: with gradients and both moments, 16 GB.
const LARGEST_MODEL: u128 = 1_000_000_000;

/// `a.b=value` as the table `{a: {b: value}}`; a value that is no TOML is taken as a string.
fn parse_set(set: &str) -> Result<toml::Table, String> {
    let Some((key, value)) = set.split_once('=') else {
        return Err("expected key=value, such as ppo.iterations=24".into());
    };
    let (key, value) = (key.trim(), value.trim());
    let parsed: Result<toml::Table, _> = format!("{key} = {value}").parse();
    parsed
        .or_else(|_| format!("{key} = {}", toml::Value::from(value)).parse())
        .map_err(|error: toml::de::Error| error.message().to_owned())
}

/// The line of the TOML `text`, from 1, whose key cannot be laid over `table`: an unknown one, or a value
/// of the wrong type.
fn refused_line(table: &toml::Table, text: &str) -> Option<usize> {
    /// Where the first refused key below the sections `path` stands; `entries` and `values` hold the keys
    /// there, with their places and with their values.
    fn refused(
        table: &toml::Table,
        path: &[&str],
        entries: &DeTable<'_>,
        values: &toml::Table,
    ) -> Option<usize> {
        entries.iter().find_map(|(key, entry)| {
            let name: &str = key.get_ref();
            match (entry.get_ref(), &values[name]) {
                (DeValue::Table(entries), toml::Value::Table(values)) if !values.is_empty() => {
                    refused(table, &[path, &[name]].concat(), entries, values)
                }
                (_, value) => {
                    let mut over = toml::Table::from_iter([(name.to_owned(), value.clone())]);
                    for &section in path.iter().rev() {
                        over = toml::Table::from_iter([(section.to_owned(), over.into())]);
                    }
                    let mut merged = table.clone();
                    merge(&mut merged, over);
                    Settings::deserialize(merged).is_err().then(|| key.span().start)
                }
            }
        })
    }
    let at = refused(table, &[], DeTable::parse(text).ok()?.get_ref(), &text.parse().ok()?)?;
    Some(line_at(text, at))
}

/// The line, from 1, that holds the byte `at` of `text`.
pub(crate) fn line_at(text: &str, at: usize) -> usize {
    1 + text.as_bytes()[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

/// What gave `key` its value: the last `--set` or file with it, else the last with its section (a value can
/// be out of range because of its neighbours).
fn origin(key: &str, overlays: &[(String, String)], sets: &[String]) -> String {
    let of = |path: &[&str]| {
        let set =
            sets.iter().rev().find(|set| parse_set(set).is_ok_and(|table| holds(&table, path)));
        let line =
            |(origin, text): &(String, String)| Some(format!("{origin}:{}", key_line(text, path)?));
        set.map(|set| format!("--set {set}")).or_else(|| overlays.iter().rev().find_map(line))
    };
    let path: Vec<&str> = key.split('.').collect();
    of(&path).or_else(|| of(&path[..1])).unwrap_or_else(|| "settings".to_owned())
}

fn holds(table: &toml::Table, path: &[&str]) -> bool {
    let (key, rest) = path.split_first().expect("a key is not empty");
    match table.get(*key) {
        Some(toml::Value::Table(table)) if !rest.is_empty() => holds(table, rest),
        value => value.is_some() && rest.is_empty(),
    }
}

/// The line of the TOML `text`, from 1, where the key `path` stands.
fn key_line(text: &str, path: &[&str]) -> Option<usize> {
    fn find(table: &DeTable<'_>, path: &[&str]) -> Option<usize> {
        let (name, rest) = path.split_first()?;
        let (key, value) = table.iter().find(|(key, _)| key.get_ref() == name)?;
        match value.get_ref() {
            DeValue::Table(table) if !rest.is_empty() => find(table, rest),
            _ => rest.is_empty().then(|| key.span().start),
        }
    }
    find(DeTable::parse(text).ok()?.get_ref(), path).map(|at| line_at(text, at))
}

/// Lays `over` over `table`, section by section.
pub(crate) fn merge(table: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}
