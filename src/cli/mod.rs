//! The command line: arguments become checked settings, then one call. It has no logic of its own.

#![doc(hidden)]

mod benchmark;
pub mod error;
mod grid;
mod inputs;
mod show;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use self::error::Error;
use crate::data::columns::Columns;
use crate::device::DeviceName;
use crate::run::lock::{Locks, Unsupported};
use crate::run::progress::Progress;
use crate::run::{Context, Layout};
use crate::settings::{DEFAULTS, Settings};
use crate::stage::{dpo, evaluate, export, fit_normalizer, online, preferences, reward, sft};
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
    Reproduce {
        /// How much to run
        #[arg(long, default_value = "quick")]
        preset: grid::Preset,
    },
    /// Runs the experiments of one or more files: every arm with every seed; what is finished is not run again
    Ablate(grid::AblateArgs),
    /// Prints the progress of the experiments in a folder
    Status {
        /// The folder that `ablate` or `reproduce` writes into; or --run
        #[arg(id = "folder", value_name = "RUN")]
        run: Option<PathBuf>,
    },
    /// Writes the page, tables and figures of the experiments in a folder, even unfinished ones
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
    /// Shows a text cut into segments, with entropies and rewards
    Segment(show::SegmentArgs),
    /// Prints the reward of each segment of given texts
    Score(benchmark::ScoreArgs),
    /// Prints how much memory each stage needs, for rows as long as the settings allow
    Memory,
    /// Prints every method with its paper, rollouts, rule, rewards, credit and loss
    Systems,
    /// Prints every setting with its default
    Settings,
    /// Prints the tables of the paper
    Reported,
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
}

/// Where settings come from, and their TOML.
type Overlay = (String, String);

#[derive(Args, Clone)]
struct Common {
    /// The run's folder [default: runs/quick or runs/full for reproduce, else runs/default]. Where `reproduce` or
    /// `ablate` wrote, --method and --seed choose a model
    #[arg(long, global = true, value_name = "DIR")]
    run: Option<PathBuf>,
    /// A settings file over the defaults; may be repeated
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
    /// The device that tensors live on
    #[arg(long, global = true, default_value = "flex")]
    device: DeviceName,
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
    /// Run even if the file system has no locks: make sure yourself that no two processes run the same stage
    #[arg(long, global = true)]
    without_locks: bool,
}

impl Common {
    /// The user's settings over the overlays `base`.
    fn settings(&self, base: impl IntoIterator<Item = Overlay>) -> Result<Settings, Error> {
        let mut overlays: Vec<Overlay> = base.into_iter().collect();
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

    fn locks(&self) -> Locks {
        Locks::new(if self.without_locks { Unsupported::GoOn } else { Unsupported::Refuse })
    }

    fn stop(&self) -> Stop {
        self.stop_after.map_or_else(Stop::default, Stop::after).on_signals()
    }
}

impl Cli {
    /// Does what the arguments ask for.
    pub fn run(self) -> Result<(), Error> {
        let command = self.command.unwrap_or(Command::Reproduce { preset: grid::Preset::Quick });
        let decode = match &command {
            Command::Evaluate { decode, .. } => *decode,
            Command::Generate(args) => args.decode,
            _ => None,
        };
        let mut common = self.common;
        common.set.extend(decode.map(|kind| format!("decode.kind={:?}", kind.name())));
        let common = &common;
        let stage = || context(common, false);
        let cell = || context(common, true);
        match command {
            Command::Settings => show::out(DEFAULTS),
            Command::Systems => show::systems(),
            Command::Reported => show::reported(),
            Command::Reproduce { preset } => grid::reproduce(common, preset),
            Command::Ablate(args) => grid::ablate(common, &args),
            Command::Status { run } => grid::status(common, run.as_deref()),
            Command::Report(args) => grid::report(common, &args),
            Command::Sft => show::json(&sft::run(&stage()?)?),
            Command::Preferences if common.data.is_some() => Err(Error::Usage(
                "preferences samples pairs of the embedded task: leave it out, the stages after it read --data"
                    .into(),
            )),
            Command::Preferences => show::json(&preferences::run(&stage()?)?.0),
            Command::TrainReward => show::json(&reward::run(&stage()?)?),
            Command::FitNormalizer => show::json(&fit_normalizer::run(&stage()?)?.normalizer),
            Command::Ppo => show::json(&online::run(&stage()?)?),
            Command::Dpo => show::json(&dpo::run(&stage()?)?),
            Command::Evaluate { benchmark: None, .. } => show::json(&evaluate::run(&stage()?)?),
            Command::Evaluate { benchmark: Some(benchmark), .. } => benchmark.run(&cell()?),
            Command::Export(ExportArgs { hf, what, dtype }) => {
                show::json(&export::run(&cell()?, &hf, what, dtype)?)
            }
            Command::Generate(args) => show::generate(&cell()?, &args),
            Command::Segment(args) => show::segment(&cell()?, &args),
            Command::Score(args) => benchmark::score(&cell()?, &args),
            Command::Memory => show::memory(&stage()?),
        }
    }
}

/// Sets the number of CPU threads; without a number, all cores are used.
fn use_threads(threads: Option<usize>) {
    if let Some(threads) = threads {
        // Fails only if there is a pool already, which will do.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
}

/// The context of a single stage, or of a command that reads a model: of a cell, if the folder is a grid's.
fn context(common: &Common, reads: bool) -> Result<Context, Error> {
    let run = common.run.clone().unwrap_or_else(|| PathBuf::from("runs/default"));
    let cell = if reads { grid::cell(common, &run)? } else { None };
    let base = cell.iter().map(|cell| {
        ("grid.json".to_owned(), toml::to_string(&cell.settings).expect("settings serialise"))
    });
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
        context.model = cell.model;
        context.reward_model = cell.reward_model;
        context.data = cell.data;
        context.prompts = cell.prompts;
        context.columns = cell.columns;
    }
    let inputs = common.inputs()?;
    for (own, given) in [
        (&mut context.model, &inputs.model),
        (&mut context.reward_model, &inputs.reward_model),
        (&mut context.data, &inputs.data),
        (&mut context.prompts, &inputs.prompts),
    ] {
        if given.is_some() {
            own.clone_from(given);
        }
    }
    if let Some(columns) = &common.columns {
        context.columns.clone_from(columns);
    }
    context.locks = common.locks();
    context.stop = common.stop();
    context.progress = Progress::new();
    Ok(context)
}
