//! `ablate` on a cluster: submitting a grid, and one element of what was submitted.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::error::Error;
use super::{Common, show, use_threads};
use crate::file_error::FileError;
use crate::grid::plan::Plan;
use crate::grid::slurm;
use crate::grid::submit::{self, Arrays, Options, Surroundings};
use crate::run::lock::SILENCE;
use crate::run::progress::Progress;

/// Where a grid runs if not in this process.
#[derive(Clone, Copy, ValueEnum)]
enum Cluster {
    /// Job arrays of Slurm
    Slurm,
}

/// Arguments of `ablate` for a cluster.
#[derive(Args)]
pub(super) struct ClusterArgs {
    /// Run each stage as a job of this cluster instead: what is unfinished is submitted, and results.json is written
    /// by a job at the end
    #[arg(long, value_name = "CLUSTER")]
    submit: Option<Cluster>,
    /// Options for every job, as sbatch takes them, such as "--partition=gpu --gres=gpu:1 --time=4:00:00"
    #[arg(long, value_name = "OPTIONS", requires = "submit", allow_hyphen_values = true)]
    sbatch: Option<String>,
    /// In a job: run the task of this number of the submission in this folder, or without a number write the results
    #[arg(long, hide = true, num_args = 1..=2, value_names = ["DIR", "TASK"], conflicts_with = "files")]
    element: Option<Vec<String>>,
}

/// What one job does.
pub(super) struct Element<'a>(&'a [String]);

impl ClusterArgs {
    pub(super) fn element(&self) -> Option<Element<'_>> {
        self.element.as_deref().map(Element)
    }

    pub(super) fn submits(&self) -> bool {
        self.submit.is_some()
    }

    /// Submits the unfinished stages of `plan`, or prints what would be submitted.
    pub(super) fn submit(&self, common: &Common, plan: &Plan, dry: bool) -> Result<(), Error> {
        if self.sbatch.as_deref().is_some_and(|options| options.contains('\n')) {
            return Err(Error::Usage(
                "--sbatch: a line break in the options; give them on one line".into(),
            ));
        }
        let program =
            std::env::current_exe().map_err(FileError::reading("the program".as_ref()))?;
        let options =
            Options { program, arguments: arguments(common), sbatch: self.sbatch.clone() };
        if dry {
            let limit = slurm::array_limit().unwrap_or(slurm::USUAL_LIMIT);
            return show::out(&Arrays::new(plan, &options, limit).show());
        }
        let arrays = Arrays::new(plan, &options, slurm::array_limit()?);
        show::out(&arrays.submit()?)
    }
}

/// The arguments that an element needs to run as this process would.
fn arguments(common: &Common) -> Vec<String> {
    let mut arguments = Vec::new();
    arguments.extend(common.threads.map(|threads| format!("--threads={threads}")));
    arguments.extend(common.without_locks.then(|| "--without-locks".to_owned()));
    arguments.extend(common.tensorboard.then(|| "--tensorboard".to_owned()));
    let silence = (common.silence != SILENCE.as_secs()).then_some(common.silence);
    arguments.extend(silence.map(|seconds| format!("--silence={seconds}")));
    arguments
}

impl Element<'_> {
    /// Does it.
    pub(super) fn run(&self, common: &Common) -> Result<(), Error> {
        let cores = || std::env::var("SLURM_CPUS_PER_TASK").ok()?.parse().ok();
        use_threads(common.threads.or_else(cores).or(Some(1)));
        let given = Surroundings {
            locks: common.locks(),
            stop: common.stop(),
            progress: Progress::new().of_many(),
            tensorboard: common.tensorboard,
        };
        let dir = PathBuf::from(&self.0[0]);
        let Some(task) = self.0.get(1) else {
            let results = submit::report(&dir, &given)?;
            return show::out(&format!("{} cells; results.json is written", results.cells.len()));
        };
        let number =
            task.parse().map_err(|_| Error::Usage(format!("--element: {task} is no number")))?;
        Ok(submit::element(&dir, number, &given)?)
    }
}
