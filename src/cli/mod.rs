//! The command line: arguments in, checked settings out, then one stage. No logic of its own.

mod ablate;
mod benchmark;
pub mod error;
mod show;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::error::Error;
use crate::device::DeviceName;
use crate::grid::reproduce;
use crate::run::Context;
use crate::run::lock::{Locks, Unsupported};
use crate::run::progress::Progress;
use crate::settings::{DEFAULTS, FULL, QUICK, Settings};
use crate::stage::{evaluate, export, fit_normalizer, online, preferences, reward, sft};
use crate::stop::Stop;
use crate::systems::Method;

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
        preset: Preset,
    },
    /// Runs the experiments of one or more files: every arm with every seed; what is finished is not run again
    Ablate(ablate::AblateArgs),
    /// Prints how far the experiments in a folder are
    Status {
        /// The folder that `ablate` writes into; or --run
        #[arg(id = "folder", value_name = "RUN")]
        run: Option<PathBuf>,
    },
    /// Writes the page, tables and figures of the experiments in a folder, finished or not
    Report(ablate::ReportArgs),
    /// Fine-tunes the reference model on responses
    Sft,
    /// Samples preference pairs of the embedded task from the reference model
    Preferences,
    /// Trains the reward model of a method on preference pairs
    TrainReward,
    /// Fits mean and standard deviation of a method's rewards by location
    FitNormalizer,
    /// Trains the policy of a method
    Ppo,
    /// Compares the policy of a method with the reference model, or runs a public benchmark
    Evaluate {
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
    /// The folder to write: a new or an empty one
    #[arg(long, value_name = "DIR")]
    hf: PathBuf,
    /// Which model of the run [default: policy]; without --model, which names another
    #[arg(long)]
    what: Option<export::What>,
    /// The type of the weights [default: that of the model's own files]
    #[arg(long)]
    dtype: Option<export::Weights>,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Preset {
    /// Four methods, one seed, at most 5 minutes on 2 cores
    Quick,
    /// Six methods, three seeds, twice the iterations
    Full,
}

#[derive(Args, Clone)]
struct Common {
    /// The run's folder [default: runs/quick or runs/full for reproduce, else runs/default]
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
    /// A Hugging Face checkpoint to start from (Llama, Mistral, Qwen2, Qwen3, Phi-3, GPT-NeoX): config.json,
    /// model.safetensors or shards with an index, tokenizer.json
    #[arg(long, global = true, value_name = "DIR")]
    model: Option<PathBuf>,
    /// The folder of a train-reward stage, in place of the run's own; to evaluate and score also a published
    /// reward model's
    #[arg(long, global = true, value_name = "DIR")]
    reward_model: Option<PathBuf>,
    /// Preference pairs in JSON Lines, a JSON array or Parquet, or a folder of such files, in place of the embedded task
    #[arg(long, global = true, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Prompts for ppo and evaluate in such a file or folder, in place of those of --data
    #[arg(long, global = true, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// CPU threads of one tensor operation [default: 1 for reproduce, else all]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Stop with a checkpoint after N optimizer steps or PPO iterations
    #[arg(long, global = true, value_name = "N")]
    stop_after: Option<usize>,
    /// Run even where the file system has no locks: see to it yourself that no two processes run one stage
    #[arg(long, global = true)]
    without_locks: bool,
}

impl Common {
    fn locks(&self) -> Locks {
        Locks::new(if self.without_locks { Unsupported::GoOn } else { Unsupported::Refuse })
    }

    fn stop(&self) -> Stop {
        self.stop_after.map_or_else(Stop::default, Stop::after).on_signals()
    }
}

impl Cli {
    /// Does what the arguments ask for.
    ///
    /// # Errors
    ///
    /// Every [`Error`].
    pub fn run(self) -> Result<(), Error> {
        let command = self.command.unwrap_or(Command::Reproduce { preset: Preset::Quick });
        let command = match command {
            Command::Settings => return show::out(DEFAULTS),
            Command::Systems => return show::systems(),
            Command::Reported => return show::reported(),
            Command::Ablate(args) => return ablate::ablate(&self.common, &args),
            Command::Status { run } => return ablate::status(&self.common, run.as_deref()),
            Command::Report(args) => return ablate::report(&self.common, &args),
            command => command,
        };
        let context = context(&self.common, &command)?;
        match command {
            Command::Reproduce { .. } => {
                let start = std::time::Instant::now();
                let results = reproduce::run(&context)?;
                show::results(&context, &results, start.elapsed())
            }
            Command::Sft => show::json(&sft::run(&context)?),
            Command::Preferences => show::json(&preferences::run(&context)?.0),
            Command::TrainReward => show::json(&reward::run(&context)?),
            Command::FitNormalizer => show::json(&fit_normalizer::run(&context)?.normalizer),
            Command::Ppo => show::json(&online::run(&context)?),
            Command::Evaluate { benchmark: None } => show::json(&evaluate::run(&context)?),
            Command::Evaluate { benchmark: Some(benchmark) } => benchmark.run(&context),
            Command::Export(ExportArgs { hf, what, dtype }) => {
                show::json(&export::run(&context, &hf, what, dtype)?)
            }
            Command::Generate(args) => show::generate(&context, &args),
            Command::Segment(args) => show::segment(&context, &args),
            Command::Score(args) => benchmark::score(&context, &args),
            Command::Memory => show::memory(&context),
            Command::Settings
            | Command::Systems
            | Command::Reported
            | Command::Ablate(_)
            | Command::Status { .. }
            | Command::Report(_) => {
                unreachable!("done above")
            }
        }
    }
}

/// The CPU threads of one tensor operation; without a number, as many as there are.
fn use_threads(threads: Option<usize>) {
    if let Some(threads) = threads {
        // Fails only where a pool exists already, which then serves.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
}

fn context(common: &Common, command: &Command) -> Result<Context, Error> {
    let (preset, folder) = match command {
        Command::Reproduce { preset: Preset::Quick } => (Some(("quick.toml", QUICK)), "quick"),
        Command::Reproduce { preset: Preset::Full } => (Some(("full.toml", FULL)), "full"),
        _ => (None, "default"),
    };
    let mut overlays: Vec<(String, String)> =
        preset.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
    for path in &common.settings {
        overlays.push(Settings::read(path)?);
    }
    let mut sets = common.set.clone();
    sets.extend(common.method.map(|method| format!("method={:?}", method.name())));
    sets.extend(common.seed.map(|seed| format!("seed={seed}")));
    let settings = Settings::resolve(&overlays, &sets)?;
    let single_stages = [
        ("--method", common.method.is_some()),
        ("--model", common.model.is_some()),
        ("--reward-model", common.reward_model.is_some()),
        ("--data", common.data.is_some()),
        ("--prompts", common.prompts.is_some()),
    ];
    if let Some((name, _)) = single_stages.iter().find(|(_, given)| preset.is_some() && *given) {
        return Err(Error::Usage(format!(
            "reproduce runs the methods of reproduce.methods on the embedded task: {name} goes with the \
             single stages"
        )));
    }
    if common.prompts.is_some() && common.data.is_none() {
        return Err(Error::Usage(
            "--prompts goes with --data: the embedded task has its own".into(),
        ));
    }
    if common.data.is_some() && matches!(command, Command::Preferences) {
        return Err(Error::Usage(
            "preferences samples pairs of the embedded task: leave it out, the stages after it read --data"
                .into(),
        ));
    }
    let threads = common.threads.or(preset.map(|_| 1));
    use_threads(threads);
    let run = common.run.clone().unwrap_or_else(|| PathBuf::from("runs").join(folder));
    let mut context = Context::new(settings, common.device, run)?;
    context.model = common.model.clone();
    context.reward_model = common.reward_model.clone();
    context.data = common.data.clone();
    context.prompts = common.prompts.clone();
    context.locks = common.locks();
    context.stop = common.stop();
    context.progress = Progress::new();
    Ok(context)
}
