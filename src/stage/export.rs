//! Writing a model for the rest of the world: a folder that transformers, and what builds on it, loads.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use burn::tensor::DType;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::card::card;
use super::task::model_tokenizer;
use crate::atomic;
use crate::data::tokenizer::Tokenizer;
use crate::file_error::FileError;
use crate::model::checkpoint::save_in_shards;
use crate::model::{CausalLm, CheckpointError, Head, ModelConfig, Placement, ScalarModel, lora};
use crate::run::{Context, Error};

/// Which model of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum What {
    /// The policy that `ppo` or `dpo` trained.
    Policy,
    /// The reward model that `train-reward` trained.
    Reward,
    /// The model that `sft` trained, which gives entropies and KL.
    Reference,
}

/// The type of the weights in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[allow(missing_docs)]
pub enum Weights {
    F32,
    Bf16,
    F16,
}

impl Weights {
    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
            Self::F16 => DType::F16,
        }
    }
}

/// The most bytes of tensors that a file of weights may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardSize(pub u64);

impl Default for ShardSize {
    /// 5 GB.
    fn default() -> Self {
        Self(5_000_000_000)
    }
}

impl FromStr for ShardSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("KB", 1_000u64), ("MB", 1_000_000), ("GB", 1_000_000_000)];
        let read = units.iter().find_map(|(unit, bytes)| {
            let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
            number.checked_mul(*bytes).filter(|bytes| *bytes > 0)
        });
        read.map(Self).ok_or_else(|| "expected a number of KB, MB or GB, such as 5GB".into())
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The model that it was made of.
    pub from: PathBuf,
    pub hf: PathBuf,
    pub model_type: &'static str,
    pub dtype: &'static str,
}

/// Writes a loaded model into a folder.
type Save = Box<dyn FnOnce(&ModelConfig, &Path) -> Result<(), CheckpointError>>;

/// Writes the model in the folder `model`, else the run's policy or reward model, into the new or
/// empty folder `hf`: config.json, generation_config.json, the weights (adapters merged, of type `weights`,
/// else of the type that the model's files have), the tokenizer's files, and a model card, unless the model came with one.
pub fn run(
    context: &Context,
    model: Option<&Path>,
    hf: &Path,
    what: Option<What>,
    weights: Option<Weights>,
) -> Result<Summary, Error> {
    run_in_shards(context, model, hf, what, weights, ShardSize::default())
}

/// The same with the weights in files of another size.
pub fn run_in_shards(
    context: &Context,
    model: Option<&Path>,
    hf: &Path,
    what: Option<What>,
    weights: Option<Weights>,
    ShardSize(most): ShardSize,
) -> Result<Summary, Error> {
    let from = match (model, what) {
        (Some(_), Some(_)) => {
            return Err(Error::Usage(
                "--what names a model of the run: leave it out, or --model".into(),
            ));
        }
        (Some(dir), None) => dir.to_owned(),
        (None, None | Some(What::Policy)) => context.policy_dir()?.join("model"),
        (None, Some(What::Reward)) => context.reward_dir()?.join("model"),
        (None, Some(What::Reference)) => context.reference_dir()?,
    };
    let io = |source| Error::Folder(FileError::writing(hf)(source).into());
    let held = match hf.read_dir() {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(io(error)),
    };
    if held {
        return Err(Error::Usage(format!(
            "{}: holds files already; name a new folder with --hf",
            hf.display()
        )));
    }
    let tokenizer = model_tokenizer(&from)?;
    let head = Head::of(&from)?;
    let dtype = match weights {
        Some(weights) => weights.dtype(),
        None => stored_type(&from)?,
    };
    let remedy = "leave --device out: what is exported does not depend on it";
    context.device_id().check(&context.device, dtype, remedy)?;
    let placement = Placement { device: context.device.clone(), dtype };
    let (mut config, save): (ModelConfig, Save) = match head {
        Head::CausalLm => {
            let (model, config) = CausalLm::load(&from, placement)?;
            (config, Box::new(move |config, dir| save_in_shards(&model, config, head, dir, most)))
        }
        Head::Score => {
            let (model, config) = ScalarModel::load(&from, placement)?;
            (config, Box::new(move |config, dir| save_in_shards(&model, config, head, dir, most)))
        }
    };
    let card = match read_card(&from)? {
        Some(own) => own,
        None => card(context, &from, head, &config, &tokenizer)?.into_bytes(),
    };
    let ids = token_ids(&tokenizer);
    for (key, id) in &ids {
        config.other.entry(key.clone()).or_insert_with(|| id.clone());
    }
    atomic::write_dir(hf, io, |dir| {
        save(&config, dir)?;
        tokenizer.save(dir)?;
        if head == Head::CausalLm {
            write_generation_config(&from, dir, ids)?;
        }
        name_tokenizer_class(dir)?;
        write_card(dir, &card)
    })?;
    let model_type = config.family.model_type();
    Ok(Summary { from, hf: hf.to_owned(), model_type, dtype: dtype.name() })
}

/// The model card of the Hub.
const CARD: &str = "README.md";

/// The card that a model came with.
fn read_card(from: &Path) -> Result<Option<Vec<u8>>, Error> {
    let path = from.join(CARD);
    match std::fs::read(&path) {
        Ok(card) => Ok(Some(card)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CheckpointError::from(FileError::reading(&path)(source)).into()),
    }
}

fn write_card(dir: &Path, card: &[u8]) -> Result<(), Error> {
    let path = dir.join(CARD);
    let written = atomic::write_file(&path, card);
    Ok(written.map_err(FileError::writing(&path)).map_err(CheckpointError::from)?)
}

/// The type that the weights of the model in `dir` have on disk; with adapters, those of their base.
fn stored_type(dir: &Path) -> Result<DType, CheckpointError> {
    let (_, base) = lora::open(dir)?;
    crate::model::weights::stored_type(&base)
}

/// The ids of the tokens that end a text and that pad one.
fn token_ids(tokenizer: &Tokenizer) -> Map<String, Value> {
    let eos = match tokenizer.stop_tokens() {
        [eos] => json!(eos),
        several => json!(several),
    };
    Map::from_iter([
        ("eos_token_id".to_owned(), eos),
        ("pad_token_id".to_owned(), tokenizer.pad().into()),
    ])
}

/// What the model came with, with the tokens that end a text.
fn write_generation_config(from: &Path, to: &Path, ids: Map<String, Value>) -> Result<(), Error> {
    const NAME: &str = "generation_config.json";
    let mut keys = read_object(&from.join(NAME))?.unwrap_or_default();
    keys.extend(ids);
    write_object(&to.join(NAME), keys)
}

/// Says that tokenizer.json is all there is to the tokenizer, where the files name no class of their own.
fn name_tokenizer_class(dir: &Path) -> Result<(), Error> {
    let path = dir.join("tokenizer_config.json");
    let mut keys = read_object(&path)?.unwrap_or_default();
    keys.entry("tokenizer_class").or_insert_with(|| "PreTrainedTokenizerFast".into());
    write_object(&path, keys)
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>, CheckpointError> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|source| CheckpointError::Json { path: path.to_owned(), source }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::reading(path)(source).into()),
    }
}

fn write_object(path: &Path, keys: Map<String, Value>) -> Result<(), Error> {
    let text = format!("{:#}\n", Value::Object(keys));
    let written = atomic::write_file(path, text.as_bytes());
    Ok(written.map_err(FileError::writing(path)).map_err(CheckpointError::from)?)
}
