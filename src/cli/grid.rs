//! The commands on grids of experiments.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;

use super::cluster::ClusterArgs;
use super::error::Error;
use super::inputs::Inputs;
use super::{Common, show, use_threads};
use crate::file_error::FileError;
use crate::grid::analysis::Analysis;
use crate::grid::file::{self, Planned};
use crate::grid::plan::{Grid, Plan, PlannedCell};
use crate::grid::results::{FORMAT, State};
use crate::grid::schedule::OnFailure;
use crate::grid::{GridError, driver, reproduce, submit, tables};
use crate::report::extras::{Source, extras};
use crate::report::page::{self, Page};
use crate::run::Context;
use crate::run::folder::{write_file, write_json};
use crate::run::lock::Locks;
use crate::run::progress::Progress;
use crate::settings::{Preset, Settings};
use crate::stop::{Stop, say};

/// Compares the methods of `[reproduce]` on the embedded task.
pub(super) fn reproduce(common: &Common) -> Result<(), Error> {
    let preset = common.preset.unwrap_or(Preset::Quick);
    let name = preset.name();
    if !matches!(preset, Preset::Quick | Preset::Full) {
        return Err(Error::Usage(format!(
            "--preset {name} is for a pretrained model and the single stages; reproduce runs the embedded task: give \
             --preset quick or full"
        )));
    }
    let settings = common.settings([preset.overlay()])?;
    let single_stages = [
        ("--method", common.method.is_some()),
        ("--model", common.model.is_some()),
        ("--reward-model", common.reward_model.is_some()),
        ("--data", common.data.is_some()),
        ("--prompts", common.prompts.is_some()),
    ];
    if let Some((name, _)) = single_stages.iter().find(|(_, given)| *given) {
        return Err(Error::Usage(format!(
            "reproduce runs the methods of reproduce.methods on the embedded task: {name} goes with the \
             single stages"
        )));
    }
    let run = common.run.clone().unwrap_or_else(|| Path::new("runs").join(name));
    let seeds = settings.reproduce.seeds as u64;
    let grid = grid(common, settings.seed, seeds, vec![reproduce::experiment(name, &settings)])?;
    let plan = grid.plan(&run, &common.locks(), &common.stop(), &Progress::new())?;
    let plan = with_events(common, plan);
    let start = Instant::now();
    let results = reproduce::run(&plan, settings.reproduce.jobs)?;
    show::results(&plan, &results, start.elapsed())
}

/// The plan, with TensorBoard's event files if they are asked for.
fn with_events(common: &Common, plan: Plan) -> Plan {
    if common.tensorboard { plan.with_events() } else { plan }
}

/// A grid of these experiments with this many seeds.
fn grid(common: &Common, first: u64, seeds: u64, experiments: Vec<Planned>) -> Result<Grid, Error> {
    use_threads(common.threads.or(Some(1)));
    let Inputs { model, reward_model, data, prompts, columns } = common.inputs()?;
    Ok(Grid {
        format: FORMAT,
        device: common.device,
        seeds: (first..).take(seeds as usize).collect(),
        model,
        reward_model,
        data,
        prompts,
        columns: columns.unwrap_or_default(),
        experiments,
    })
}

/// The cell that a command reads in a grid's folder `run`, chosen by --method and --seed: by default `segment` and
/// the first seed. `None` if the folder has no grid.
pub(super) fn cell(common: &Common, run: &Path) -> Result<Option<Context>, Error> {
    if common.model.is_some() || !has_grid(run) {
        return Ok(None);
    }
    let plan = plan(run)?;
    let first = format!("seed = {}", plan.grid.seeds[0]);
    let Settings { method, seed, .. } = common.settings([("grid.json".to_owned(), first)])?;
    let is_it = |cell: &&PlannedCell| cell.seed == seed && cell.context.settings.method == method;
    let mut found = plan.cells.iter().filter(is_it);
    match (found.next(), found.next()) {
        (Some(cell), None) => Ok(Some(cell.context.clone())),
        (first, _) => Err(Error::Usage(format!(
            "{}: {} cell of the method {} with seed {seed}; give --method and --seed of one cell, or a model with --model",
            run.display(),
            if first.is_some() { "more than one" } else { "no" },
            method.name(),
        ))),
    }
}

/// Arguments of `ablate`.
#[derive(Args)]
pub(super) struct AblateArgs {
    /// Experiment files, such as experiments/table1.toml; the results go to --run [default: runs/ and their names]
    #[arg(required_unless_present = "element", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Number of seeds: 0, 1, … or counted from --seed
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    seeds: u16,
    /// Stages to run at the same time, each on its own core
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    jobs: u16,
    /// Print the cells and the time that they will take, and run nothing; with --submit also the jobs and their scripts
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// Runs the experiments of one or more files.
pub(super) fn ablate(common: &Common, args: &AblateArgs) -> Result<(), Error> {
    if let Some(element) = args.cluster.element() {
        return element.run(common);
    }
    if common.method.is_some() {
        return Err(Error::Usage("--method goes with single stages: the arms have methods".into()));
    }
    let overlays: Result<Vec<_>, _> =
        common.settings.iter().map(|path| Settings::read(path)).collect();
    let experiments = file::read(&args.files, &overlays?, &common.sets())?;
    let stems = args.files.iter().map(|file| file.file_stem().unwrap_or_default());
    let name = stems.collect::<Vec<_>>().join("-".as_ref());
    let run = common.run.clone().unwrap_or_else(|| Path::new("runs").join(name));
    let run = if args.cluster.submits() { absolute(&run)? } else { run };
    let mut firsts = experiments.iter().flat_map(|e| &e.arms).map(|arm| arm.settings.seed);
    let first = firsts.next().unwrap_or_default();
    if firsts.any(|other| other != first) {
        return Err(Error::Usage("base files with different seeds: give --seed".into()));
    }
    let grid = grid(common, first, args.seeds.into(), experiments)?;
    let progress = Progress::new().of_many();
    let plan = grid.plan(&run, &common.locks(), &common.stop(), &progress)?;
    let jobs = usize::from(args.jobs);
    if args.dry_run {
        show::out(&plan.list(jobs))?;
    }
    if args.cluster.submits() {
        return args.cluster.submit(common, &plan, args.dry_run);
    }
    if args.dry_run {
        return Ok(());
    }
    let plan = with_events(common, plan);
    let start = Instant::now();
    let results = driver::run(&plan, jobs, OnFailure::KeepGoing)?;
    let (cells, seconds) = (results.cells.len(), start.elapsed().as_secs_f64());
    show::out(&format!("{cells} cells, {seconds:.0} s; results.json in {}", run.display()))
}

/// The path for a process that may run elsewhere.
fn absolute(path: &Path) -> Result<PathBuf, Error> {
    Ok(std::path::absolute(path).map_err(FileError::reading(path))?)
}

/// Prints the progress of a grid or of single stages.
pub(super) fn status(common: &Common, run: Option<&Path>) -> Result<(), Error> {
    let run = folder(common, run)?;
    let status = plan(run)?.status();
    show::out(&[status].into_iter().chain(submit::status(run)).collect::<Vec<_>>().join("\n\n"))
}

/// The folder of a grid, as an argument of its own or as --run.
fn folder<'a>(common: &'a Common, own: Option<&'a Path>) -> Result<&'a Path, Error> {
    match (own, common.run.as_deref()) {
        (Some(run), None) | (None, Some(run)) => Ok(run),
        _ => Err(Error::Usage("name the folder of one grid, such as runs/table1".into())),
    }
}

/// Arguments of `report`.
#[derive(Args)]
pub(super) struct ReportArgs {
    /// The folder of a run, of `ablate` or of `reproduce`; or --run
    #[arg(id = "folder", value_name = "RUN")]
    run: Option<PathBuf>,
    /// The folder for report.html and the files beside it [default: RUN/report]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Also put the tables between the markers `<!-- results -->` and `<!-- /results -->` of this file
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    /// Open the page in the browser
    #[arg(long)]
    open: bool,
    /// Write the page again every 10 seconds, and let it load itself again, until all is finished
    #[arg(long)]
    watch: bool,
}

/// Seconds between two pages of `--watch`.
const WATCH: u64 = 10;

/// Writes the report of a grid or of single stages, finished or not.
pub(super) fn report(common: &Common, args: &ReportArgs) -> Result<(), Error> {
    let run = folder(common, args.run.as_deref())?;
    let stop = common.stop();
    let mut open = args.open;
    loop {
        let finished = write_report(run, args, open)?;
        if finished || !args.watch {
            return Ok(());
        }
        open = false;
        for _ in 0..10 * WATCH {
            stop.check()?;
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Writes the report once; gives whether there is nothing more to come.
fn write_report(run: &Path, args: &ReportArgs, open: bool) -> Result<bool, Error> {
    let plan = plan(run)?;
    let source = if has_grid(run) { Source::Grid } else { Source::Stages };
    let results = plan.results();
    let mut corrupt = 0;
    for cell in &results.cells {
        if let State::Corrupt { error } = &cell.state {
            say(&format!("left out: cell {}: {error}", cell.id));
            corrupt += 1;
        }
    }
    let analysis = Analysis::of(&results);
    let mut extras = extras(&plan, &results, source)?;
    if !analysis.has_figures() && extras.logs.is_empty() {
        return Err(GridError::NothingFinished { dir: run.to_owned() }.into());
    }
    let (finished, of) = (results.finished(), results.cells.len());
    let ended = finished + corrupt == of;
    extras.refresh = (args.watch && !ended).then_some(WATCH);
    let dir = args.out.clone().unwrap_or_else(|| run.join("report"));
    std::fs::create_dir_all(&dir).map_err(FileError::writing(&dir))?;
    write_json(&dir.join("results.json"), &results)?;
    write_json(&dir.join("extras.json"), &extras)?;
    tables::write(&analysis, &results, &dir)?;
    let path = dir.join("report.html");
    page::write(&Page { results: &results, analysis: &analysis, extras: &extras }, &path)?;
    if let Some(readme) = &args.readme {
        put_into(readme, &analysis)?;
    }
    show::out(&format!("{finished} of {of} cells, {corrupt} left out; {}", path.display()))?;
    if open {
        open::that(&path).map_err(|error| {
            Error::Usage(format!("--open: {error}; open {} yourself", path.display()))
        })?;
    }
    Ok(ended)
}

/// Replaces the generated section of a README.
fn put_into(readme: &Path, analysis: &Analysis) -> Result<(), Error> {
    let text = std::fs::read_to_string(readme).map_err(FileError::reading(readme))?;
    let Some(text) = tables::replace_section(&text, &tables::readme(analysis)) else {
        let [start, end] = tables::MARKERS;
        return Err(Error::Usage(format!(
            "{}: no lines {start} and {end}, between which the tables go",
            readme.display()
        )));
    };
    Ok(write_file(readme, text.as_bytes())?)
}

fn has_grid(run: &Path) -> bool {
    run.join("grid.json").exists()
}

/// The grid in the folder `run`, or its single stages, for reading only.
fn plan(run: &Path) -> Result<Plan, Error> {
    if !has_grid(run)
        && let Some(stages) = Plan::of_stages(run)?
    {
        return Ok(stages);
    }
    Ok(Grid::read(run)?.plan(run, &Locks::default(), &Stop::default(), &Progress::silent())?)
}
