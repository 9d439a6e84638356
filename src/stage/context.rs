//! What every stage of a run shares: settings, device, folders, stop and progress.

use std::fs::File;
use std::path::{Path, PathBuf};

use burn::tensor::Device;

use super::pipeline::{Layout, Stage};
use crate::COMMIT;
use crate::control::{Progress, Stop};
use crate::data::error::DataError;
use crate::data::rows::files;
use crate::device::DeviceName;
use crate::error::Error;
use crate::experiment::folder::{FolderError, StageFolder, is_finished};
use crate::experiment::lock::Locks;
use crate::experiment::settings::Settings;
use crate::memory::{Advice, Estimator, Lengths, Need};
use crate::model::ModelConfig;
use crate::model::{CheckpointError, lora};
use crate::rng::Fnv1a;

/// A run: where it lives, what it runs on, and its settings.
#[derive(Clone)]
pub struct Context {
    /// The checked settings.
    pub settings: Settings,
    /// The device's name.
    pub device_name: DeviceName,
    /// The device, without autodiff.
    pub device: Device,
    /// The run's folder.
    pub run: PathBuf,
    /// Where in it the stages live.
    pub layout: Layout,
    /// The model to start from, in place of the run's own SFT model.
    pub model: Option<PathBuf>,
    /// The reward model's folder, in place of the run's own.
    pub reward_model: Option<PathBuf>,
    /// Preference pairs or conversations in JSON Lines or Parquet, in place of the embedded task.
    pub data: Option<PathBuf>,
    /// Prompts in JSON Lines or Parquet, in place of those of `data`.
    pub prompts: Option<PathBuf>,
    /// Keeps other processes out of the stages' folders.
    pub locks: Locks,
    /// Asks the run to end.
    pub stop: Stop,
    /// Shows how far it is.
    pub progress: Progress,
    /// Written before stage names on display, to tell parallel runs apart.
    pub label: String,
}

impl Context {
    /// A run with the given settings in the folder `run`, on the embedded task.
    ///
    /// # Errors
    ///
    /// [`Error::Device`].
    pub fn new(settings: Settings, device_name: DeviceName, run: PathBuf) -> Result<Self, Error> {
        Ok(Self {
            settings,
            device_name,
            device: device_name.open()?,
            run,
            layout: Layout::Named,
            model: None,
            reward_model: None,
            data: None,
            prompts: None,
            locks: Locks::default(),
            stop: Stop::default(),
            progress: Progress::silent(),
            label: String::new(),
        })
    }

    /// The folder of the model that serves as SFT model and reference.
    ///
    /// # Errors
    ///
    /// [`FolderError::Missing`] when the run has none yet.
    pub fn reference_dir(&self) -> Result<PathBuf, FolderError> {
        match &self.model {
            Some(dir) => Ok(dir.clone()),
            None => require(self.dir(Stage::Sft), "sft").map(|dir| dir.join("model")),
        }
    }

    /// The folder of the finished reward stage that the run's method uses.
    ///
    /// # Errors
    ///
    /// [`FolderError::Missing`] when the run has none yet.
    pub fn reward_dir(&self) -> Result<PathBuf, FolderError> {
        let method = self.settings.method.reward_model();
        let dir = self.reward_model.clone().unwrap_or_else(|| self.dir(Stage::TrainReward));
        require(dir, &format!("train-reward --method {}", method.name()))
    }

    /// The fingerprints of the files that `--data` and `--prompts` name, each with its argument's name.
    ///
    /// # Errors
    ///
    /// [`Error::Data`] when one cannot be read.
    pub fn data_fingerprints(&self) -> Result<Vec<(&'static str, String)>, Error> {
        [("data", &self.data), ("prompts", &self.prompts)]
            .into_iter()
            .filter_map(|(name, path)| path.as_ref().map(|path| (name, path)))
            .map(|(name, path)| Ok((name, file_fingerprint(path)?)))
            .collect()
    }

    /// The folder of the finished PPO stage of the run's method.
    ///
    /// # Errors
    ///
    /// [`FolderError::Missing`] when the run has none yet.
    pub fn policy_dir(&self) -> Result<PathBuf, FolderError> {
        let method = self.settings.method;
        require(self.dir(Stage::Ppo), &format!("ppo --method {}", method.name()))
    }

    /// Opens the folder of a stage that depends on its settings and on `inputs`, each a name and a
    /// fingerprint.
    ///
    /// # Errors
    ///
    /// [`FolderError`].
    pub fn open(
        &self,
        stage: Stage,
        inputs: &[(&str, String)],
    ) -> Result<StageFolder, FolderError> {
        let mut record = toml::Table::new();
        record.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        record.extend(COMMIT.map(|commit| ("commit".to_owned(), commit.into())));
        let settings = self.record(stage);
        let mut table = toml::Table::new();
        table.extend(inputs.iter().map(|(name, value)| ((*name).into(), value.clone().into())));
        record.insert("inputs".into(), table.into());
        record.extend(settings);
        StageFolder::open(self.dir(stage), &record, &self.locks)
    }

    /// Tells what memory a stage on a user's data will need, unless its folder `dir` holds its result: `need`
    /// of an estimator and the longest prompt and response, where `longest` knows them.
    ///
    /// # Errors
    ///
    /// [`Error::Memory`] when the device has less free.
    pub fn announce(
        &self,
        dir: &Path,
        config: &ModelConfig,
        longest: Option<(usize, usize)>,
        need: impl Fn(Estimator<'_>, Lengths) -> Need,
    ) -> Result<(), Error> {
        let Some((prompt, response)) = longest else { return Ok(()) };
        if is_finished(dir) {
            return Ok(());
        }
        let lengths = Lengths { prompt, response };
        let with = |settings: &Settings| {
            need(Estimator::new(settings, config, self.device_name), lengths.within(settings))
        };
        let own = with(&self.settings);
        self.progress.line(&own.to_string());
        let free = self.device_name.free_memory().map(|free| free as f64);
        own.check(free, |free| Advice::find(&self.settings, free, |other| with(other).total()))
    }

    /// A stage's name on display.
    pub fn title(&self, stage: &str) -> String {
        if self.label.is_empty() { stage.to_owned() } else { format!("{} {stage}", self.label) }
    }

    /// The same for the work of `stage`, whose folder a stop names.
    #[must_use]
    pub(super) fn within(&self, stage: Stage) -> Self {
        Self { stop: self.stop.saving_in(&self.dir(stage)), ..self.clone() }
    }
}

/// `dir`, if the stage in it is finished.
fn require(dir: PathBuf, command: &str) -> Result<PathBuf, FolderError> {
    if is_finished(&dir) {
        Ok(dir)
    } else {
        Err(FolderError::Missing { dir, command: command.to_owned() })
    }
}

/// A fingerprint of the data file at `path`, or of the files in a folder.
///
/// # Errors
///
/// [`Error::Data`] when it cannot be read.
pub fn file_fingerprint(path: &Path) -> Result<String, Error> {
    let mut hash = Fnv1a::default();
    for path in files(path)? {
        let read = File::open(&path).and_then(|file| hash.read(file));
        read.map_err(|source| DataError::Read { path, source })?;
    }
    Ok(format!("{:016x}", hash.finish()))
}

/// A fingerprint of the model in the folder `dir`: of its adapters and of their base, where it has them.
///
/// # Errors
///
/// [`Error::Checkpoint`] when it cannot be read.
pub fn model_fingerprint(dir: &Path) -> Result<String, Error> {
    let mut hash = Fnv1a::default();
    let (files, scales) = lora::files(dir)?;
    scales.iter().for_each(|scale| hash.write(&scale.to_le_bytes()));
    for path in files {
        let hashed = File::open(&path).and_then(|file| hash.read(file));
        hashed.map_err(|source| CheckpointError::Read { path, source })?;
    }
    Ok(format!("{:016x}", hash.finish()))
}
