//! What the stages of a run share: settings, device, folders, stop and progress.

use std::path::{Path, PathBuf};

use burn::tensor::Device;

use super::alarms::{Alarm, Raised};
use super::fingerprint::{file_fingerprint, model_fingerprint, reward_fingerprint};
use super::given::Given;
use super::stage::Stage;
use crate::COMMIT;
use crate::data::columns::{Columns, DataFile};
use crate::device::{DeviceError, DeviceId, DeviceName};
use crate::file_error::FileError;
use crate::hub;
use crate::ranks;
use crate::rng::Fnv1a;
use crate::run::error::Error;
use crate::run::folder::{FolderError, StageFolder, is_finished};
use crate::run::lock::Locks;
use crate::run::progress::Progress;
use crate::settings::Settings;
use crate::stop::Stop;

/// A run: where it lives, what it runs on, and its settings.
#[derive(Clone)]
pub struct Context {
    /// The checked settings.
    pub settings: Settings,
    /// The device's backend.
    pub device_name: DeviceName,
    /// Its number among those of the backend, if one was named.
    pub device_index: Option<usize>,
    /// The device, without autodiff.
    pub device: Device,
    /// The run's folder.
    pub run: PathBuf,
    /// Where in it the stages live.
    pub layout: Layout,
    /// The model to start from, instead of the run's own SFT model.
    pub model: Option<PathBuf>,
    /// The reward model's folder, instead of the run's own.
    pub reward_model: Option<PathBuf>,
    /// Preference pairs or conversations in JSON Lines or Parquet, instead of the embedded task.
    pub data: Option<PathBuf>,
    /// Prompts in JSON Lines or Parquet, instead of those in `data`.
    pub prompts: Option<PathBuf>,
    /// What the columns of `data` and `prompts` stand for.
    pub columns: Columns,
    /// Keeps other processes out of the folders of stages.
    pub locks: Locks,
    /// Asks the run to end.
    pub stop: Stop,
    /// Alarms that end the training that raises them.
    pub stop_on: Vec<Alarm>,
    /// Shows how far it is.
    pub progress: Progress,
    /// Shown before stage names, to tell parallel runs apart.
    pub label: String,
    /// Writes TensorBoard's event files beside the logs of stages.
    pub tensorboard: bool,
}

impl Context {
    /// A run with the given settings in the folder `run`, on the embedded task.
    pub fn new(
        settings: Settings,
        device: impl Into<DeviceId>,
        run: PathBuf,
    ) -> Result<Self, Error> {
        let device: DeviceId = device.into();
        Ok(Self {
            settings,
            device_name: device.name,
            device_index: device.index,
            device: device.open()?,
            run,
            layout: Layout::Named,
            model: None,
            reward_model: None,
            data: None,
            prompts: None,
            columns: Columns::default(),
            locks: Locks::default(),
            stop: Stop::default(),
            stop_on: Vec::new(),
            progress: Progress::silent(),
            label: String::new(),
            tensorboard: false,
        })
    }

    /// The device's name, with its index if it has one.
    pub fn device_id(&self) -> DeviceId {
        DeviceId { name: self.device_name, index: self.device_index }
    }

    /// Fails unless this machine has the device, and it computes in what the settings ask for.
    ///
    /// # Errors
    ///
    /// [`DeviceError`].
    pub fn check_device(&self) -> Result<(), DeviceError> {
        let dtype = self.settings.precision.compute.dtype();
        let remedy = "set precision.compute = \"f32\", such as by --set precision.compute=f32";
        self.device_id().check(&self.device, dtype, remedy)
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
            .map(|(name, path)| Ok((name, self.data_fingerprint(path)?)))
            .collect()
    }

    /// The fingerprint of the data at `path`, with what their columns stand for.
    ///
    /// # Errors
    ///
    /// [`Error::Data`] when they cannot be read.
    pub fn data_fingerprint(&self, path: &Path) -> Result<String, Error> {
        let columns = if self.columns.is_empty() { "" } else { &format!(" {}", self.columns) };
        Ok(file_fingerprint(path)? + columns)
    }

    /// The data at `path`, with what their columns stand for.
    pub fn file<'a>(&'a self, path: &'a Path) -> DataFile<'a> {
        DataFile { path, columns: Some(&self.columns) }
    }

    /// The stage that trains the policy of the run's method.
    pub fn policy_stage(&self) -> Stage {
        match self.settings.weights() {
            Some(_) => Stage::Dpo,
            None => Stage::Ppo,
        }
    }

    /// The folder of the finished stage that trained the policy of the run's method.
    ///
    /// # Errors
    ///
    /// [`FolderError::Missing`] when the run has none yet.
    pub fn policy_dir(&self) -> Result<PathBuf, FolderError> {
        let (stage, method) = (self.policy_stage(), self.settings.method);
        require(self.dir(stage), &format!("{} --method {}", stage.command(), method.name()))
    }

    /// Opens the folder of a stage that depends on its settings and on `inputs`, each a name and a
    /// fingerprint.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] when the device is not there or lacks what the settings ask for, and [`Error::Folder`].
    pub fn open(&self, stage: Stage, inputs: &[(&str, String)]) -> Result<StageFolder, Error> {
        self.check_device()?;
        let mut record = toml::Table::new();
        record.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        record.extend(COMMIT.map(|commit| ("commit".to_owned(), commit.into())));
        let settings = self.record(stage);
        let sources = self.sources();
        if !sources.is_empty() {
            record.insert("sources".into(), sources.into());
        }
        let mut table = toml::Table::new();
        table.extend(inputs.iter().map(|(name, value)| ((*name).into(), value.clone().into())));
        record.insert("inputs".into(), table.into());
        record.extend(settings);
        let grows = (stage == Stage::Ppo).then_some("settings.ppo.iterations");
        let folder = StageFolder::open(self.dir(stage), &record, &self.locks, grows)?;
        if self.layout == Layout::Named && !is_finished(folder.dir()) {
            self.given().write(folder.dir())?;
        }
        if let Some(iterations) = &folder.grown_from {
            let went_on = format!(
                "{} goes on behind iteration {iterations}; from there its learning rates are those of the longer run",
                folder.dir().display()
            );
            self.progress.line(&went_on);
            self.lay_aside(Stage::Evaluate, iterations)?;
        }
        Ok(if self.tensorboard { folder.with_events()? } else { folder })
    }

    /// What its command was given.
    fn given(&self) -> Given {
        let absolute = |path: &Option<PathBuf>| {
            path.as_ref().map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()))
        };
        Given {
            model: absolute(&self.model),
            reward_model: absolute(&self.reward_model),
            data: absolute(&self.data),
            prompts: absolute(&self.prompts),
            columns: self.columns.clone(),
            device: self.device_name,
            settings: toml::Table::try_from(&self.settings).expect("settings serialise"),
        }
    }

    /// Renames the folder of a stage that judged the policy of an earlier iteration.
    fn lay_aside(&self, stage: Stage, iteration: &str) -> Result<(), FolderError> {
        let dir = self.dir(stage);
        if !dir.exists() || !ranks::is_first() {
            return Ok(());
        }
        let to = dir.with_file_name(format!("{}-{iteration}", stage.folder()));
        std::fs::rename(&dir, &to).map_err(FileError::writing(&to))?;
        self.progress
            .line(&format!("the evaluation behind iteration {iteration} is now {}", to.display()));
        Ok(())
    }

    /// The names and commits of the inputs that are in the Hub's cache. They are on record, and a copy elsewhere is the same
    /// input.
    fn sources(&self) -> toml::Table {
        let base = |dir: &PathBuf| Some(hub::base_dir(dir, &hub::base_name(dir)?));
        let model = self.model.as_ref();
        let inputs = [
            ("model", model.cloned()),
            ("model_base", model.and_then(base)),
            ("reward_model", self.reward_model.clone()),
            ("reward_model_base", self.reward_model.as_ref().and_then(base)),
            ("data", self.data.clone()),
            ("prompts", self.prompts.clone()),
        ];
        let named = |(key, path): (&str, Option<PathBuf>)| {
            Some((key.to_owned(), hub::named(&path?)?.into()))
        };
        inputs.into_iter().filter_map(named).collect()
    }

    /// A stage's name on display.
    pub fn title(&self, stage: &str) -> String {
        if self.label.is_empty() { stage.to_owned() } else { format!("{} {stage}", self.label) }
    }

    /// Tells an alarm of `stage`; gives the error if it ends the training.
    pub(crate) fn raise(&self, stage: Stage, raised: &Raised) -> Option<Error> {
        self.progress.line(&format!("{:28} {raised}", self.title(stage.command())));
        let stops = self.stop_on.contains(&raised.alarm);
        let saved_in = self.dir(stage);
        stops.then(|| Error::Alarm { raised: Box::new(raised.clone()), saved_in })
    }

    /// Refuses what needs a reward model in a run that has a verdict.
    pub(crate) fn needs_reward_model(&self, what: &str) -> Result<(), Error> {
        if self.settings.has_verdict() {
            return Err(Error::Usage(format!(
                "{what}: task.reward = \"verdict\" judges by program and has no reward model; leave this out, or set \
                 task.reward = \"preferences\""
            )));
        }
        Ok(())
    }

    /// Refuses more ranks than rows, given the settings that say how many are read at a time.
    pub(crate) fn check_ranks(&self, rows: &[(&str, usize)]) -> Result<(), Error> {
        let ranks = ranks::size();
        match rows.iter().find(|(_, rows)| *rows < ranks) {
            None => Ok(()),
            Some((key, rows)) => Err(Error::Usage(format!(
                "{key} = {rows} gives {ranks} ranks fewer rows than one each: raise it, or start fewer ranks"
            ))),
        }
    }

    /// The context of `stage`: a stop names its folder.
    #[must_use]
    pub(crate) fn within(&self, stage: Stage) -> Self {
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

/// Where the stages of a context live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layout {
    /// By their names: `RUN/sft`, `RUN/preferences`, `RUN/METHOD/{reward, normalizer, ppo or dpo, evaluation}`.
    Named,
    /// By a hash of all that their results depend on, `RUN/store/STAGE-HASH`: what several contexts share is there once.
    Hashed {
        /// The fingerprints of the user's model, reward model and data.
        inputs: String,
    },
    /// Each where another context has it, by the order of [`Stage::ALL`].
    Given([PathBuf; Stage::ALL.len()]),
}

impl Layout {
    /// The folders of `context`, whatever the settings.
    pub fn of(context: &Context) -> Self {
        Self::Given(Stage::ALL.map(|stage| context.dir(stage)))
    }

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
    /// The stages of the run: the user's model, data or reward model replaces the stage that makes it, and a verdict those
    /// of a reward model. A method that learns from pairs has no rollouts, and needs a normalizer only where it reads rewards.
    /// If the reference model writes what is evaluated, there is no policy.
    pub fn stages(&self) -> impl Iterator<Item = Stage> {
        let verdict = self.settings.has_verdict();
        let no_policy = self.settings.reference_writes();
        let weights = self.settings.weights();
        let unrewarded = weights.as_ref().is_some_and(|weights| !weights.reads_rewards());
        let left_out = [
            (Stage::Sft, self.model.is_some()),
            (Stage::Preferences, verdict || self.data.is_some()),
            (Stage::TrainReward, verdict || self.reward_model.is_some()),
            (Stage::FitNormalizer, verdict || unrewarded || no_policy),
            (Stage::Ppo, no_policy || weights.is_some()),
            (Stage::Dpo, no_policy || weights.is_none()),
        ];
        Stage::ALL.into_iter().filter(move |stage| !left_out.contains(&(*stage, true)))
    }

    /// The folder of a stage.
    pub fn dir(&self, stage: Stage) -> PathBuf {
        match &self.layout {
            Layout::Named => match stage {
                Stage::Sft | Stage::Preferences => self.run.join(stage.folder()),
                Stage::TrainReward => {
                    self.run.join(self.settings.method.reward_model().name()).join(stage.folder())
                }
                Stage::Evaluate if !self.settings.decode.is_plain() => {
                    let name = format!("{}-{}", stage.folder(), self.settings.decode.kind.name());
                    self.run.join(self.settings.method.name()).join(name)
                }
                _ => self.run.join(self.settings.method.name()).join(stage.folder()),
            },
            Layout::Hashed { inputs } => {
                let name = format!("{}-{:016x}", stage.folder(), self.key(stage, inputs));
                self.run.join("store").join(name)
            }
            Layout::Given(dirs) => dirs[stage as usize].clone(),
        }
    }

    /// A hash of the user's inputs and of what `stage` and the stages before it depend on.
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

    /// What the result of `stage` depends on: device, number format, the stage's numerics, settings and seed.
    fn record(&self, stage: Stage) -> toml::Table {
        let mut record = toml::Table::new();
        let mut put = |key: &str, value: &str| record.insert(key.into(), value.into());
        put("stage", stage.command());
        put("device", self.device_name.name());
        put("dtype", self.settings.precision.compute.name());
        if stage == Stage::TrainReward {
            put("method", self.settings.method.reward_model().name());
        }
        record.insert("numerics".into(), stage.numerics().into());
        record.insert("settings".into(), stage.settings(&self.settings).into());
        record
    }
}
