//! The commands on grids of experiments.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Common, show, use_threads};
use crate::control::{Progress, Stop};
use crate::error::Error;
use crate::experiment::settings::Settings;
use crate::grid::plan::{Grid, Plan};
use crate::grid::{ablate, file};
use crate::stage::Context;

/// Arguments of `ablate`.
#[derive(Args)]
pub(super) struct AblateArgs {
    /// The experiments' file, such as experiments/table1.toml; its results go to --run [default: runs/ and its name]
    file: PathBuf,
    /// Seeds of every arm: 0, 1, … or --seed and on
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    seeds: u16,
    /// Stages that run at the same time, each on its own core
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Print the cells and what they will take, and run nothing
    #[arg(long)]
    dry_run: bool,
}

/// Runs the experiments of a file.
pub(super) fn ablate(common: &Common, args: &AblateArgs) -> Result<(), Error> {
    if common.method.is_some() {
        return Err(Error::Usage("--method goes with single stages: the arms have methods".into()));
    }
    let overlays: Result<Vec<_>, _> =
        common.settings.iter().map(|path| Settings::read(path)).collect();
    let experiments = file::read(&args.file, &overlays?, &common.set)?;
    let stem = args.file.file_stem().unwrap_or_default();
    let run = common.run.clone().unwrap_or_else(|| Path::new("runs").join(stem));
    use_threads(common.threads.or(Some(1)));
    let first = common.seed.unwrap_or(0);
    let seeds = (0..u64::from(args.seeds)).map(|i| first + i).collect();
    let mut context = Context::new(Settings::defaults(), common.device, run.clone())?;
    context.model = common.model.clone();
    context.reward_model = common.reward_model.clone();
    context.data = common.data.clone();
    context.prompts = common.prompts.clone();
    let stop = common.stop();
    let progress = Progress::new().of_many();
    let plan = Grid::new(&context, experiments, seeds).plan(&run, &stop, &progress)?;
    let jobs = usize::from(args.jobs);
    if args.dry_run {
        return show::out(&plan.list(jobs));
    }
    let start = std::time::Instant::now();
    let results = ablate::run(&plan, &run, jobs)?;
    let (cells, seconds) = (results.cells.len(), start.elapsed().as_secs_f64());
    show::out(&format!("{cells} cells, {seconds:.0} s; results.json in {}", run.display()))
}

/// Prints how far a grid is.
pub(super) fn status(run: &Path) -> Result<(), Error> {
    show::out(&plan(run)?.status(2))
}

/// The grid in the folder `run`, to be read.
fn plan(run: &Path) -> Result<Plan, Error> {
    Grid::read(run)?.plan(run, &Stop::default(), &Progress::silent())
}
