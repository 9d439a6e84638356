//! Running a grid.

use crate::run::Context;
use std::sync::Mutex;

use super::error::GridError;
use super::outlook::Board;
use super::plan::Plan;
use super::results::{Cell, Results, State};
use super::schedule::{self, OnFailure, Outcome};

/// Runs the unfinished stages of a grid on `jobs` threads. Writes `grid.json` before and `results.json` after; with
/// [`OnFailure::KeepGoing`] also shows the progress of the whole grid.
pub fn run(plan: &Plan, jobs: usize, on_failure: OnFailure) -> Result<Results, GridError> {
    let Context { run, locks, .. } = &plan.cells[0].context;
    plan.grid.write(run, locks)?;
    let board = (on_failure == OnFailure::KeepGoing).then(|| Mutex::new(Board::new(plan, jobs)));
    let finished = || {
        if let Some(board) = &board {
            board.lock().expect("no worker panics with the lock").update();
        }
    };
    let outcomes = schedule::run(&plan.tasks, jobs, on_failure, finished);
    drop(board);
    let results = write(plan)?;
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
        Some(first) => Err(failed(&results, first)),
    }
}

/// Writes `results.json` of what the stages of a grid have given so far, for a grid that others run.
pub fn report(plan: &Plan) -> Result<Results, GridError> {
    let results = write(plan)?;
    let unfinished = |cell: &Cell| match &cell.state {
        State::Finished(_) => None,
        State::Failed { error, .. } | State::Corrupt { error } => Some(error.clone()),
        State::Pending => Some(format!("the cell {} is not finished", cell.id)),
    };
    match results.cells.iter().find_map(unfinished) {
        None => Ok(results),
        Some(first) => Err(failed(&results, first)),
    }
}

fn write(plan: &Plan) -> Result<Results, GridError> {
    let Context { run, locks, .. } = &plan.cells[0].context;
    let results = plan.results();
    schedule::write_in_turn(&run.join("results.json"), &results, locks)?;
    Ok(results)
}

fn failed(results: &Results, first: String) -> GridError {
    let of = results.cells.len();
    GridError::Cells { failed: of - results.finished(), of, first }
}
