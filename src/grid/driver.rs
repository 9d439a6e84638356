//! Running a grid: what is to do, how far it is, what came of it.

use std::sync::Mutex;

use super::GridError;
use super::estimate::{Rates, time};
use super::plan::{Plan, PlannedCell, Progressed};
use super::results::{Cell, Results, State};
use super::schedule::{self, OnFailure, Outcome};
use crate::run::Context;
use crate::run::progress::{Gauge, Progress};
use crate::table::markdown;

/// Runs what is not finished of the grid on `jobs` threads; writes `grid.json` into its folder before, and
/// `results.json` after. With [`OnFailure::KeepGoing`] it also shows how far all is.
///
/// # Errors
///
/// [`GridError::Stage`] of a stop, of a folder that cannot be used, and with [`OnFailure::Stop`] of the first stage that
/// fails; [`GridError::Cells`] when cells failed or cannot be read, after all others are finished.
pub fn run(plan: &Plan, jobs: usize, on_failure: OnFailure) -> Result<Results, GridError> {
    let Context { run, locks, .. } = &plan.cells[0].context;
    plan.grid.write(run, locks)?;
    let board = (on_failure == OnFailure::KeepGoing).then(|| Mutex::new(Board::new(plan, jobs)));
    let finished = || {
        if let Some(board) = &board {
            board.lock().expect("no worker panics with the lock").update(plan, jobs);
        }
    };
    finished();
    let outcomes = schedule::run(&plan.tasks, jobs, on_failure, finished);
    drop(board);
    let results = plan.results();
    schedule::write_in_turn(&run.join("results.json"), &results, locks)?;
    let mut errors = outcomes?.into_iter().filter_map(|outcome| match outcome {
        Outcome::Failed(error) => Some(error),
        _ => None,
    });
    let first = match errors.next() {
        Some(error) if on_failure == OnFailure::Stop => return Err(error.into()),
        error => error.map(|error| error.to_string()),
    };
    let corrupt = |cell: &Cell| match &cell.state {
        State::Corrupt { error } => Some(error.clone()),
        _ => None,
    };
    match first.or_else(|| results.cells.iter().find_map(corrupt)) {
        None => Ok(results),
        Some(first) => {
            let of = results.cells.len();
            Err(GridError::Cells { failed: of - results.finished(), of, first })
        }
    }
}

/// One bar an experiment and one for all, in a terminal; elsewhere a line a cell.
struct Board {
    progress: Progress,
    experiments: Vec<Gauge>,
    all: Gauge,
    finished: usize,
}

impl Board {
    fn new(plan: &Plan, jobs: usize) -> Self {
        let progress = plan.cells[0].context.progress.clone();
        let experiments = plan.grid.experiments.iter().zip(&plan.numbers);
        let gauge = |(experiment, arms): (&super::file::Planned, &Vec<Vec<usize>>)| {
            progress.gauge(&experiment.name, arms.iter().map(Vec::len).sum())
        };
        let experiments = experiments.map(gauge).collect();
        let all = progress.gauge("all cells", plan.cells.len());
        progress.line(&format!("{} with {jobs} jobs", plan.outlook(jobs)));
        Self { progress, experiments, all, finished: count(&plan.finished()) }
    }

    fn update(&mut self, plan: &Plan, jobs: usize) {
        let finished = plan.finished();
        let of_arm = |numbers: &[usize]| numbers.iter().filter(|&&cell| finished[cell]).count();
        for (gauge, arms) in self.experiments.iter().zip(&plan.numbers) {
            gauge.set(arms.iter().map(|numbers| of_arm(numbers)).sum(), String::new());
        }
        let done = count(&finished);
        self.all.set(done, format!("{} left", time(plan.seconds_left() / jobs as f64)));
        if done > self.finished && !self.progress.is_terminal() {
            self.progress.line(&plan.outlook(jobs));
        }
        self.finished = done;
    }
}

fn count(finished: &[bool]) -> usize {
    finished.iter().filter(|finished| **finished).count()
}

impl Plan {
    /// Of each cell, whether it is finished.
    pub fn finished(&self) -> Vec<bool> {
        let tasks = self.tasks.all();
        self.cells.iter().map(|cell| tasks[cell.last].is_finished()).collect()
    }

    /// Seconds of one core that the unfinished stages will take.
    pub fn seconds_left(&self) -> f64 {
        let tasks = self.tasks.all();
        let rates = Rates::measured(tasks);
        tasks.iter().filter(|task| !task.is_finished()).map(|task| rates.seconds(task)).sum()
    }

    /// How many cells are finished, and how long the others will take.
    pub fn outlook(&self, jobs: usize) -> String {
        let finished = count(&self.finished());
        let left = time(self.seconds_left() / jobs as f64);
        format!("{finished} of {} cells finished, about {left} left", self.cells.len())
    }

    /// Every cell with the stages that it adds to those before it, and what they will take.
    pub fn list(&self, jobs: usize) -> String {
        let tasks = self.tasks.all();
        let rates = Rates::measured(tasks);
        let mut counted = vec![false; tasks.len()];
        let mut row = |cell: &PlannedCell| {
            let [experiment, arm] = cell.arm;
            let experiment = &self.grid.experiments[experiment];
            let mut stages = Vec::new();
            let mut seconds = 0.0;
            for number in self.tasks.chain(cell.last) {
                let task = &tasks[number];
                if !task.is_finished() && !counted[number] {
                    counted[number] = true;
                    stages.push(task.stage.command());
                    seconds += rates.seconds(task);
                }
            }
            let arm = experiment.arms[arm].name.clone();
            let (seed, id) = (cell.seed.to_string(), cell.id.clone());
            let stages = if stages.is_empty() { "finished".into() } else { stages.join(" ") };
            vec![experiment.name.clone(), arm, seed, id, time(seconds), stages]
        };
        let rows: Vec<Vec<String>> = self.cells.iter().map(&mut row).collect();
        let header = ["experiment", "arm", "seed", "cell", "time", "stages of its own"];
        let named: usize = self.numbers.iter().flatten().map(Vec::len).sum();
        let shared = named - self.cells.len();
        format!(
            "{}\n{} with {jobs} jobs; {shared} more cells of the experiments are the same as these",
            markdown(&header, &rows),
            self.outlook(jobs)
        )
    }

    /// Every arm with how far its seeds are.
    pub fn status(&self, jobs: usize) -> String {
        let mut rows = Vec::new();
        for (experiment, numbers) in self.grid.experiments.iter().zip(&self.numbers) {
            for (arm, numbers) in experiment.arms.iter().zip(numbers) {
                let states: Vec<Progressed> =
                    numbers.iter().map(|&cell| self.progressed(&self.cells[cell])).collect();
                let count = |state| match states.iter().filter(|&&s| s == state).count() {
                    0 => String::new(),
                    n => n.to_string(),
                };
                let columns = [
                    Progressed::Finished,
                    Progressed::Running,
                    Progressed::Begun,
                    Progressed::Waiting,
                    Progressed::Failed,
                ];
                let names = [experiment.name.clone(), arm.name.clone()];
                rows.push(names.into_iter().chain(columns.map(count)).collect());
            }
        }
        let header = ["experiment", "arm", "finished", "running", "begun", "waiting", "failed"];
        let mut text =
            format!("{}\n{} with {jobs} jobs", markdown(&header, &rows), self.outlook(jobs));
        for cell in self.results().cells {
            match cell.state {
                State::Failed { stage, error } => {
                    text += &format!("\ncell {}: {stage}: {error}", cell.id);
                }
                State::Corrupt { error } => text += &format!("\ncell {}: {error}", cell.id),
                _ => {}
            }
        }
        text
    }
}
