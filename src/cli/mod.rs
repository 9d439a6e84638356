//! The command line: arguments become checked settings, then one call. It has no logic of its own.

#![doc(hidden)]

mod benchmark;
mod chat;
mod cluster;
mod devices;
pub mod error;
mod grid;
mod help;
mod inputs;
mod outcome;
mod ranks;
mod show;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, FromArgMatches, Parser, Subcommand};
use serde::Serialize;

use self::error::Error;
use self::outcome::Outcome;
use crate::data::columns::Columns;
use crate::device::{DeviceId, DeviceName};
use crate::run::alarms::Alarm;
use crate::run::given::{self, Given};
use crate::run::lock::{Locks, SILENCE, Unsupported};
use crate::run::progress::Progress;
use crate::run::{Context, Error as StageError, Layout, Stage};
use crate::settings::{DEFAULTS, Preset, Settings};
use crate::stage::{
    dpo, evaluate, export, fit_normalizer, memory, online, preferences, reward, sft,
};
use crate::stop::Stop;
use crate::systems::Method;
use crate::systems::decode::Kind;

/// Segment-level RLHF: entropy segments, segment reward models, location-aware normalizers and PPO.
///
/// Without a command, reproduces the comparison of the paper's methods on the embedded task.
#[derive(Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    common: Common,
}

#[derive(Subcommand)]
enum Command {
    /// Runs every stage for every method, and prints the table (the default)
    Reproduce,
    /// Runs the experiments of one or more files: every arm with every seed; what is finished is not run again
    Ablate(grid::AblateArgs),
    /// Prints the progress of the stages or experiments in a folder
    Status {
        /// The folder of a run, of `ablate` or of `reproduce`; or --run
        #[arg(id = "folder", value_name = "RUN")]
        run: Option<PathBuf>,
    },
    /// Writes the page, tables and figures of the stages or experiments in a folder, even unfinished ones
    Report(grid::ReportArgs),
    /// Fine-tunes the reference model on responses
    Sft,
    /// Samples preference pairs of the embedded task from the reference model
    Preferences,
    /// Trains the reward model of a method on preference pairs
    TrainReward,
    /// Fits mean and standard deviation of a method's rewards by location
    FitNormalizer,
    /// Trains the policy of a method that learns from its rollouts
    Ppo,
    /// Trains the policy of a method that learns from preference pairs, such as --method dpo
    Dpo,
    /// Compares the policy of a method with the reference model, or runs a public benchmark
    #[command(args_conflicts_with_subcommands = true)]
    Evaluate {
        /// How the policy writes, short for --set decode.kind=…
        #[arg(long, value_name = "KIND")]
        decode: Option<Kind>,
        #[command(subcommand)]
        benchmark: Option<benchmark::Benchmark>,
    },
    /// Writes a model, its tokenizer and settings into a folder that transformers loads
    Export(ExportArgs),
    /// Writes responses to a prompt
    Generate(show::GenerateArgs),
    /// Talks with a run's policy, or with --model
    Chat(chat::ChatArgs),
    /// Shows a text cut into segments, with entropies and rewards; with --data a table of cutoffs
    Segment(show::SegmentArgs),
    /// Prints the reward of each segment of given texts
    Score(benchmark::ScoreArgs),
    /// Prints how much memory each stage needs, for rows as long as the settings allow
    Memory {
        /// Of each of N ranks
        #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
        ranks: u16,
    },
    /// Lists the devices of this build and machine, what they compute in, and why others are missing
    Devices,
    /// Prints every method with its paper, rollouts, rule, rewards, credit and loss
    Systems,
    /// Prints every setting with its default
    Settings,
    /// Prints the tables of the paper
    Reported,
    /// Prints the script by which a shell completes the arguments
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Prints the program's man page, or writes those of all commands
    Man(help::ManArgs),
}

#[derive(Args)]
struct ExportArgs {
    /// The folder to write; it must be new or empty
    #[arg(long, value_name = "DIR")]
    hf: PathBuf,
    /// Which model of the run [default: policy]; without --model, which names another
    #[arg(long)]
    what: Option<export::What>,
    /// The type of the weights [default: as in the model's own files]
    #[arg(long)]
    dtype: Option<export::Weights>,
    /// The most that a file of weights holds, such as 500MB; more is written in shards with an index [default: 5GB]
    #[arg(long, value_name = "SIZE")]
    shard_size: Option<export::ShardSize>,
}

/// Where settings come from, and their TOML.
type Overlay = (String, String);

#[derive(Args, Clone)]
struct Common {
    /// The run's folder [default: runs/quick or runs/full for reproduce, else runs/default]. Where `reproduce` or
    /// `ablate` wrote, --method and --seed choose a model
    #[arg(long, global = true, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Settings for a task or a size of model, over the defaults [default: quick for reproduce, else none]
    #[arg(long, global = true)]
    preset: Option<Preset>,
    /// A settings file over the defaults or the preset; may be repeated
    #[arg(long, global = true, value_name = "FILE")]
    settings: Vec<PathBuf>,
    /// One setting, such as ppo.iterations=24; may be repeated
    #[arg(long, global = true, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The method, short for --set method=…
    #[arg(long, global = true)]
    method: Option<Method>,
    /// The seed, short for --set seed=…
    #[arg(long, global = true)]
    seed: Option<u64>,
    /// The device that tensors live on: flex (the CPU), wgpu or cuda; cuda:1 is the second GPU. `devices` lists them
    #[arg(long, global = true, default_value = "flex")]
    device: DeviceId,
    /// The devices of a stage's ranks, such as cuda:0,cuda:1: each reads its share of the rows. Under mpirun, those of one
    /// machine's ranks
    #[arg(
        long,
        global = true,
        value_name = "DEVICE,…",
        value_delimiter = ',',
        conflicts_with = "device"
    )]
    devices: Vec<DeviceId>,
    /// A Hugging Face checkpoint to start from (Llama, Mistral, Qwen2, Qwen3, Phi-3, GPT-NeoX): a folder with config.json,
    /// model.safetensors or shards with an index, and tokenizer.json; or its name in the Hub, org/name or
    /// org/name@revision
    #[arg(long, global = true, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The folder of a train-reward stage, instead of the run's own; for evaluate and score also a published reward
    /// model
    #[arg(long, global = true, value_name = "DIR")]
    reward_model: Option<PathBuf>,
    /// Preference pairs in JSON Lines, a JSON array or Parquet, or a folder of such files, instead of the embedded task;
    /// or a data set's name in the Hub, org/name or org/name@revision. FOLDER:SPLIT and org/name:SPLIT name a split
    #[arg(long, global = true, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Prompts for ppo and evaluate in such a file or folder, instead of those of --data
    #[arg(long, global = true, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// The columns of --data and --prompts that stand for the keys of a row, such as
    /// prompt=question,chosen=good,rejected=bad
    #[arg(long, global = true, value_name = "KEY=COLUMN,…")]
    columns: Option<Columns>,
    /// CPU threads, which read shards of a batch side by side; results are the same for every number [default: 1 for reproduce, else all]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Stop with a checkpoint after N optimizer steps or PPO iterations
    #[arg(long, global = true, value_name = "N")]
    stop_after: Option<usize>,
    /// Stop with a checkpoint, and status 1, when training raises this alarm; may be repeated
    #[arg(long, global = true, value_name = "ALARM")]
    stop_on: Vec<Alarm>,
    /// Print JSON for programs: a stage's whole result, or a line a text
    #[arg(long, global = true)]
    json: bool,
    /// Also write TensorBoard's event files into the folders of stages, those of finished ones too
    #[arg(long, global = true)]
    tensorboard: bool,
    /// Run even if the file system has no locks: make sure yourself that no two processes run the same stage
    #[arg(long, global = true)]
    without_locks: bool,
    /// For tests: seconds without a sign of life after which a stage's folder is taken over
    #[arg(long, global = true, hide = true, value_name = "SECONDS", default_value_t = SILENCE.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    silence: u64,
}

impl Common {
    /// The user's settings over the overlays `base`.
    fn settings(&self, base: impl IntoIterator<Item = Overlay>) -> Result<Settings, Error> {
        let mut overlays: Vec<Overlay> = base.into_iter().collect();
        overlays.extend(self.preset.map(Preset::overlay));
        for path in &self.settings {
            overlays.push(Settings::read(path)?);
        }
        Ok(Settings::resolve(&overlays, &self.sets())?)
    }

    /// The settings of `--set` and its short forms.
    fn sets(&self) -> Vec<String> {
        let mut sets = self.set.clone();
        sets.extend(self.method.map(|method| format!("method={:?}", method.name())));
        sets.extend(self.seed.map(|seed| format!("seed={seed}")));
        sets
    }

    /// The same arguments, for this device.
    fn on(&self, device: DeviceId) -> Self {
        Self { device, ..self.clone() }
    }

    fn locks(&self) -> Locks {
        let unsupported = if self.without_locks { Unsupported::GoOn } else { Unsupported::Refuse };
        Locks::new(unsupported, Duration::from_secs(self.silence))
    }

    fn stop(&self) -> Stop {
        self.stop_after.map_or_else(Stop::default, Stop::after).on_signals()
    }
}

impl Cli {
    /// The arguments of the process; ends it if they are wrong, or ask for help.
    pub fn from_process() -> Self {
        Self::from_arg_matches(&help::command().get_matches()).unwrap_or_else(|error| error.exit())
    }

    /// Does what the arguments ask for.
    pub fn run(self) -> Result<(), Error> {
        let command = self.command.unwrap_or(Command::Reproduce);
        let decode = match &command {
            Command::Evaluate { decode, .. } => *decode,
            Command::Generate(args) => args.decode,
            _ => None,
        };
        let mut common = self.common;
        common.set.extend(decode.map(|kind| format!("decode.kind={:?}", kind.name())));
        ranks::on_each(&common, command.is_shared(), |common| command.run(common))
    }
}

impl Command {
    /// Whether ranks share its work.
    fn is_shared(&self) -> bool {
        matches!(
            self,
            Self::Sft
                | Self::Preferences
                | Self::TrainReward
                | Self::FitNormalizer
                | Self::Ppo
                | Self::Dpo
                | Self::Evaluate { benchmark: None, .. }
        )
    }

    fn run(&self, common: &Common) -> Result<(), Error> {
        let stage = || context(common, Reads::Nothing);
        let cell = || {
            let context = context(common, Reads::Models)?;
            context.check_device()?;
            Ok::<_, Error>(context)
        };
        fn own(context: &Context, given: bool) -> Option<&Path> {
            context.model.as_deref().filter(|_| given)
        }
        match self {
            Self::Devices => devices::devices(common.json),
            Self::Settings => show::out(DEFAULTS),
            Self::Systems => show::systems(),
            Self::Reported => show::reported(),
            Self::Reproduce => grid::reproduce(common),
            Self::Completions { shell } => help::completions(*shell),
            Self::Man(args) => help::man(args),
            Self::Ablate(args) => grid::ablate(common, args),
            Self::Status { run } => grid::status(common, run.as_deref()),
            Self::Report(args) => grid::report(common, args),
            Self::Sft => tell(common, &stage()?, Stage::Sft, sft::run),
            Self::Preferences if common.data.is_some() => Err(Error::Usage(
                "preferences samples pairs of the embedded task: leave it out, the stages after it read --data"
                    .into(),
            )),
            Self::Preferences => {
                tell(common, &stage()?, Stage::Preferences, |context| Ok(preferences::run(context)?.0))
            }
            Self::TrainReward => tell(common, &stage()?, Stage::TrainReward, reward::run),
            Self::FitNormalizer => {
                tell(common, &stage()?, Stage::FitNormalizer, fit_normalizer::run)
            }
            Self::Ppo => tell(common, &stage()?, Stage::Ppo, online::run),
            Self::Dpo => tell(common, &stage()?, Stage::Dpo, dpo::run),
            Self::Evaluate { benchmark: None, .. } => {
                tell(common, &context(common, Reads::Policy)?, Stage::Evaluate, evaluate::run)
            }
            Self::Evaluate { benchmark: Some(benchmark), .. } => {
                let context = cell()?;
                benchmark.run(&context, own(&context, common.model.is_some()), common.json)
            }
            Self::Export(ExportArgs { hf, what, dtype, shard_size }) => {
                let context = cell()?;
                let own = own(&context, common.model.is_some());
                let shards = shard_size.unwrap_or_default();
                show::json(&export::run_in_shards(&context, own, hf, *what, *dtype, shards)?)
            }
            Self::Generate(args) => show::generate(&cell()?, args, common.model.is_some()),
            Self::Chat(args) => chat::chat(&cell()?, args, common.model.is_some()),
            Self::Segment(args) => show::segment(&cell()?, args, common.json),
            Self::Score(args) => benchmark::score(&cell()?, args, common.json),
            Self::Memory { ranks } => {
                // The device may be another machine's.
                let here = common.device.open().map_or(DeviceName::Flex.into(), |_| common.device);
                let mut context = context(&common.on(here), Reads::Nothing)?;
                context.device_name = common.device.name;
                context.device_index = common.device.index;
                show::memory(&context, usize::from(*ranks))
            }
        }
    }
}

/// Runs a stage and prints its outcome: in a few lines, or with `--json` the whole.
fn tell<T: Outcome + Serialize>(
    common: &Common,
    context: &Context,
    stage: Stage,
    run: impl FnOnce(&Context) -> Result<T, StageError>,
) -> Result<(), Error> {
    context.check_device()?;
    let summary = memory::guard(context, stage, || run(context))?;
    if !crate::ranks::is_first() {
        return Ok(());
    }
    crate::ranks::apart(|| match common.json {
        true => show::json(&summary),
        false => outcome::print(context, stage, &summary),
    })
}

/// Sets the number of CPU threads; without a number, all cores are used.
fn use_threads(threads: Option<usize>) {
    if let Some(threads) = threads {
        // Fails only if there is a pool already, which will do.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
}

/// What a command reads of a run that others have made.
#[derive(Clone, Copy, PartialEq)]
enum Reads {
    /// It is a stage of its own, and is given all that it needs.
    Nothing,
    /// Reference model, reward model or policy.
    Models,
    /// The policy, which it evaluates as before if it did before.
    Policy,
}

/// The context of a single stage, or of a command that reads a run: of a cell, if the folder is a grid's, else with
/// model, data and settings as its stages were given.
fn context(common: &Common, reads: Reads) -> Result<Context, Error> {
    let run = common.run.clone().unwrap_or_else(|| PathBuf::from("runs/default"));
    let (mut cell, mut given) = (None, None);
    if reads != Reads::Nothing {
        cell = grid::cell(common, &run)?;
        if cell.is_none() {
            given = given_to(common, &run, reads == Reads::Policy)?;
        }
    }
    let base = cell.iter().map(|cell| {
        ("grid.json".to_owned(), toml::to_string(&cell.settings).expect("settings serialise"))
    });
    let base = base.chain(given.iter().map(|(path, given)| given.overlay(path)));
    let settings = common.settings(base)?;
    if common.columns.is_some() && common.data.is_none() && cell.is_none() {
        return Err(Error::Usage("--columns goes with --data".into()));
    }
    if common.prompts.is_some() && common.data.is_none() {
        return Err(Error::Usage(
            "--prompts goes with --data: the embedded task has its own".into(),
        ));
    }
    use_threads(common.threads);
    let mut context = Context::new(settings, common.device, run)?;
    if let Some(cell) = cell {
        context.layout = Layout::of(&cell);
        inputs::Inputs::of(cell).give(&mut context);
    }
    if let Some((path, given)) = given {
        inputs::Inputs::given(given, &path, common, reads)?.give(&mut context);
    }
    crate::ranks::in_turn(|| common.inputs())?.give(&mut context);
    context.locks = common.locks();
    context.stop = crate::ranks::heeding(common.stop());
    context.stop_on.clone_from(&common.stop_on);
    if crate::ranks::is_first() {
        context.progress = Progress::new();
    }
    context.tensorboard = common.tensorboard;
    Ok(context)
}

/// What the stages of the run's method in the folder `run` were given, with the file that says so.
fn given_to(
    common: &Common,
    run: &Path,
    evaluation: bool,
) -> Result<Option<(PathBuf, Given)>, Error> {
    let method = given::method_of(run).map(|method| format!("method = {:?}", method.name()));
    let method = method.map(|text| (run.display().to_string(), text));
    let Settings { method, .. } = common.settings(method)?;
    Ok(Given::read(run, method, evaluation)?)
}
