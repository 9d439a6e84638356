//! What --model, --reward-model, --data and --prompts name: a path, or a repository of the Hugging Face Hub.

use std::path::{Path, PathBuf};

use super::error::Error;
use super::{Common, Reads};
use crate::data::columns::Columns;
use crate::data::files;
use crate::hub::{self, HubError, Kind, Repository, Wanted};
use crate::model::{lora, weights};
use crate::run::Context;
use crate::run::fingerprint::MODEL_FILES;
use crate::run::given::Given;
use crate::stop::say;

/// The inputs as paths.
pub(super) struct Inputs {
    pub model: Option<PathBuf>,
    pub reward_model: Option<PathBuf>,
    pub data: Option<PathBuf>,
    pub prompts: Option<PathBuf>,
    pub columns: Option<Columns>,
}

impl Inputs {
    /// Those of a grid's cell.
    pub(super) fn of(cell: Context) -> Self {
        Self {
            model: cell.model,
            reward_model: cell.reward_model,
            data: cell.data,
            prompts: cell.prompts,
            columns: Some(cell.columns),
        }
    }

    /// Those that the stages of a run were given, as the file `path` says, of which `common` may replace some; data only
    /// where they are read again.
    pub(super) fn given(
        given: Given,
        path: &Path,
        common: &Common,
        reads: Reads,
    ) -> Result<Self, Error> {
        let known = |of: Option<PathBuf>, name: &str, own: &Option<PathBuf>| match of {
            Some(found) if own.is_none() && !files::is_there(&found) => Err(Error::Usage(format!(
                "{}: {name} was {}, which is not there any more; give it as --{name}",
                path.display(),
                found.display()
            ))),
            found => Ok(found),
        };
        let (data, prompts) = match reads {
            Reads::Policy => (given.data, given.prompts),
            _ => (None, None),
        };
        Ok(Self {
            model: known(given.model, "model", &common.model)?,
            reward_model: known(given.reward_model, "reward-model", &common.reward_model)?,
            data: known(data, "data", &common.data)?,
            prompts: known(prompts, "prompts", &common.prompts)?,
            columns: Some(given.columns),
        })
    }

    /// Gives `context` those that are there.
    pub(super) fn give(self, context: &mut Context) {
        for (into, from) in [
            (&mut context.model, self.model),
            (&mut context.reward_model, self.reward_model),
            (&mut context.data, self.data),
            (&mut context.prompts, self.prompts),
        ] {
            if from.is_some() {
                *into = from;
            }
        }
        if let Some(columns) = self.columns {
            context.columns = columns;
        }
    }
}

impl Common {
    /// The inputs, each found in the Hub's cache or downloaded into it if it is a name and not a path.
    pub(super) fn inputs(&self) -> Result<Inputs, Error> {
        let model = |path: &Option<PathBuf>| path.as_deref().map(model).transpose();
        let data = |path: &Option<PathBuf>| path.as_deref().map(data).transpose();
        Ok(Inputs {
            model: model(&self.model)?,
            reward_model: model(&self.reward_model)?,
            data: data(&self.data)?,
            prompts: data(&self.prompts)?,
            columns: self.columns.clone(),
        })
    }
}

/// The folder of the model that `path` names. The base of adapters, and of those that it may hold, is found too.
fn model(path: &Path) -> Result<PathBuf, HubError> {
    let named = path.to_str().filter(|_| !path.exists());
    let dir = match named.and_then(|text| Repository::parse(Kind::Model, text)) {
        Some(repository) => found(&repository, &Model)?,
        None => path.to_owned(),
    };
    check(&dir)?;
    let mut top = dir.clone();
    // Where the model is read, more are refused.
    for _ in 0..hub::DEEPEST {
        let Some(base) = hub::base_name(&top) else { break };
        top = match Repository::parse(Kind::Model, &base).filter(|_| !hub::is_local(&top, &base)) {
            Some(repository) => found(&repository, &Model)?,
            None => hub::base_dir(&top, &base),
        };
    }
    Ok(dir)
}

/// Refuses a path whose files are a model in another format.
fn check(path: &Path) -> Result<(), HubError> {
    let has_parameters = || {
        let known = [weights::WEIGHTS, weights::INDEX, lora::ADAPTER_CONFIG];
        known.iter().any(|name| path.join(name).exists())
    };
    let files: Vec<PathBuf> = match path.read_dir() {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) if path.is_file() => vec![path.to_owned()],
        Err(_) => return Ok(()), // the reader says what is wrong
    };
    let names = files.iter().filter_map(|file| file.file_name()?.to_str());
    let others: Vec<&str> = names.filter(|name| weights::is_other_format(name)).collect();
    if others.is_empty() || has_parameters() {
        return Ok(());
    }
    let (name, problem) = (path.display().to_string(), weights::without(&others));
    Err(HubError::Refused { name, problem })
}

/// The file or folder of data that `path` names.
fn data(path: &Path) -> Result<PathBuf, HubError> {
    let text = path.to_str().filter(|_| !path.exists()).unwrap_or_default();
    let (name, what) = match text.split_once(':') {
        Some((name, what)) => (name, Some(what)),
        None => (text, None),
    };
    let is_path = Path::new(name).exists() || files::is_data(name);
    let path = match Repository::parse(Kind::Dataset, name).filter(|_| !is_path) {
        None => path.to_owned(),
        Some(repository) => {
            let dir = found(&repository, &DataSet { what })?;
            match what {
                Some(what) => format!("{}:{what}", dir.display()).into(),
                None => dir,
            }
        }
    };
    if let Some(note) = files::note(&path) {
        say(&note);
    }
    Ok(path)
}

fn found(repository: &Repository, wanted: &impl Wanted) -> Result<PathBuf, HubError> {
    let dir = hub::find(repository, wanted)?;
    say(&format!("{repository} is {}", dir.display()));
    Ok(dir)
}

/// The files of a model, or of adapters.
struct Model;

impl Wanted for Model {
    fn choose(&self, files: &[String]) -> Result<Vec<String>, String> {
        let has = |name: &str| files.iter().any(|file| file == name);
        let is_shard = |name: &str| {
            !name.contains('/') && name.starts_with("model-") && name.ends_with(".safetensors")
        };
        let parameters: Vec<&str> = if has(weights::WEIGHTS) {
            vec![weights::WEIGHTS]
        } else if has(weights::INDEX) {
            let shards = files.iter().map(String::as_str).filter(|name| is_shard(name));
            [weights::INDEX].into_iter().chain(shards).collect()
        } else if has(lora::ADAPTER_CONFIG) && has(lora::ADAPTER_WEIGHTS) {
            vec![lora::ADAPTER_CONFIG, lora::ADAPTER_WEIGHTS]
        } else {
            let names = files.iter().map(String::as_str).collect::<Vec<_>>();
            return Err(weights::without(&names));
        };
        let read = MODEL_FILES.into_iter().filter(|name| has(name)).chain(parameters);
        Ok(read.map(str::to_owned).collect())
    }

    fn lacks(&self, dir: &Path) -> Option<String> {
        let missing = |names: &[&str]| {
            let name = names.iter().find(|name| !dir.join(name).exists());
            name.map(|name| (*name).to_owned())
        };
        if hub::base_name(dir).is_some() {
            return missing(&[lora::ADAPTER_WEIGHTS]);
        }
        missing(&["config.json", "tokenizer.json"]).or_else(|| {
            let files = weights::files(dir).unwrap_or_default();
            let file = files.iter().find(|file| !file.exists())?;
            Some(file.file_name()?.to_string_lossy().into_owned())
        })
    }
}

/// The files of a data set, or of one of its splits.
struct DataSet<'a> {
    what: Option<&'a str>,
}

impl Wanted for DataSet<'_> {
    fn choose(&self, files: &[String]) -> Result<Vec<String>, String> {
        match files::choose(files, self.what)? {
            chosen if chosen.is_empty() => Err("no Parquet or JSON Lines files".into()),
            chosen => Ok(chosen),
        }
    }

    fn lacks(&self, dir: &Path) -> Option<String> {
        files::lacks(dir, self.what)
    }
}
