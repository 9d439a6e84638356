//! The commands on grids of experiments.

use std::path::{Path, PathBuf};

use clap::Args;

use super::error::Error;
use super::{Common, show, use_threads};
use crate::grid::analysis::Analysis;
use crate::grid::plan::{Grid, Plan};
use crate::grid::results::{FORMAT, State};
use crate::grid::{GridError, ablate, file, tables};
use crate::report::extras::extras;
use crate::report::page::{self, Page};
use crate::run::folder::{FolderError, write_file, write_json};
use crate::run::lock::Locks;
use crate::run::progress::Progress;
use crate::settings::Settings;
use crate::stop::{Stop, say};

/// Arguments of `ablate`.
#[derive(Args)]
pub(super) struct AblateArgs {
    /// The experiments' files, such as experiments/table1.toml; the results go to --run [default: runs/ and their
    /// names]
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
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

/// Runs the experiments of one or more files.
pub(super) fn ablate(common: &Common, args: &AblateArgs) -> Result<(), Error> {
    if common.method.is_some() {
        return Err(Error::Usage("--method goes with single stages: the arms have methods".into()));
    }
    let overlays: Result<Vec<_>, _> =
        common.settings.iter().map(|path| Settings::read(path)).collect();
    let mut sets = common.set.clone();
    sets.extend(common.seed.map(|seed| format!("seed={seed}")));
    let experiments = file::read(&args.files, &overlays?, &sets)?;
    let stems = args.files.iter().map(|file| file.file_stem().unwrap_or_default());
    let name = stems.collect::<Vec<_>>().join("-".as_ref());
    let run = common.run.clone().unwrap_or_else(|| Path::new("runs").join(name));
    use_threads(common.threads.or(Some(1)));
    let mut firsts = experiments.iter().flat_map(|e| &e.arms).map(|arm| arm.settings.seed);
    let first = firsts.next().unwrap_or_default();
    if firsts.any(|other| other != first) {
        return Err(Error::Usage("base files with different seeds: give --seed".into()));
    }
    let seeds = (0..u64::from(args.seeds)).map(|i| first + i).collect();
    let grid = Grid {
        format: FORMAT,
        device: common.device,
        seeds,
        model: common.model.clone(),
        reward_model: common.reward_model.clone(),
        data: common.data.clone(),
        prompts: common.prompts.clone(),
        experiments,
    };
    let progress = Progress::new().of_many();
    let plan = grid.plan(&run, &common.locks(), &common.stop(), &progress)?;
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
pub(super) fn status(common: &Common, run: Option<&Path>) -> Result<(), Error> {
    show::out(&plan(folder(common, run)?)?.status(2))
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
    /// The folder that `ablate` writes into; or --run
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
}

/// Writes the report of what is there of a grid.
pub(super) fn report(common: &Common, args: &ReportArgs) -> Result<(), Error> {
    let run = folder(common, args.run.as_deref())?;
    let plan = plan(run)?;
    let results = plan.results();
    let mut corrupt = 0;
    for cell in &results.cells {
        if let State::Corrupt { error } = &cell.state {
            say(&format!("left out: cell {}: {error}", cell.id));
            corrupt += 1;
        }
    }
    let analysis = Analysis::of(&results);
    if !analysis.has_figures() {
        return Err(GridError::NothingFinished { dir: run.to_owned() }.into());
    }
    let extras = extras(&plan, &results)?;
    let dir = args.out.clone().unwrap_or_else(|| run.join("report"));
    std::fs::create_dir_all(&dir)
        .map_err(|source| FolderError::Write { path: dir.clone(), source })?;
    write_json(&dir.join("results.json"), &results)?;
    write_json(&dir.join("extras.json"), &extras)?;
    tables::write(&analysis, &results, &dir)?;
    let path = dir.join("report.html");
    page::write(&Page { results: &results, analysis: &analysis, extras: &extras }, &path)?;
    if let Some(readme) = &args.readme {
        put_into(readme, &analysis)?;
    }
    let (finished, of) = (results.finished(), results.cells.len());
    show::out(&format!("{finished} of {of} cells, {corrupt} left out; {}", path.display()))?;
    if args.open {
        open::that(&path).map_err(|error| {
            Error::Usage(format!("--open: {error}; open {} yourself", path.display()))
        })?;
    }
    Ok(())
}

/// Replaces the generated section of a README.
fn put_into(readme: &Path, analysis: &Analysis) -> Result<(), Error> {
    let text = std::fs::read_to_string(readme)
        .map_err(|source| FolderError::Read { path: readme.to_owned(), source })?;
    let Some(text) = tables::replace_section(&text, &tables::readme(analysis)) else {
        let [start, end] = tables::MARKERS;
        return Err(Error::Usage(format!(
            "{}: no lines {start} and {end}, between which the tables go",
            readme.display()
        )));
    };
    Ok(write_file(readme, text.as_bytes())?)
}

/// The grid in the folder `run`, to be read.
fn plan(run: &Path) -> Result<Plan, Error> {
    Ok(Grid::read(run)?.plan(run, &Locks::default(), &Stop::default(), &Progress::silent())?)
}
