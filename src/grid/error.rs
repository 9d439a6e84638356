//! Why an experiment file or a grid was rejected, or what failed in it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::results::FORMAT;
use crate::data::error::DataError;
use crate::device::DeviceError;
use crate::file_error::FileError;
use crate::model::CheckpointError;
use crate::run::error::wrap_stage_errors;
use crate::run::{Error, FolderError};
use crate::settings::SettingsError;

/// Why a grid stopped early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GridError {
    /// An experiment file, or the base of one, could not be read.
    #[error("{error}; {wanted}")]
    Read { error: FileError, wanted: String },
    /// An experiment file was rejected.
    #[error("{at}: {message}")]
    File { at: Place, message: String },
    /// A stage failed, or one of its files could not be used.
    #[error(transparent)]
    Stage(#[from] Error),
    /// The settings of a base file, of the user or of an arm were rejected.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A folder without a grid.
    #[error(
        "{dir}: no grid.json and no stage; name the --run of a stage, or the folder that `segment-rlhf ablate` or \
         `reproduce` wrote into"
    )]
    NoGrid { dir: PathBuf },
    /// A grid without a finished cell or a log.
    #[error(
        "{dir}: no cell is finished and none has a log, so there is nothing to report; run `segment-rlhf ablate`, and see \
         `segment-rlhf status` for what failed"
    )]
    NothingFinished { dir: PathBuf },
    /// A grid that another version of the program wrote.
    #[error(
        "{path}: format {found}, but this program reads format {FORMAT}; use the program that wrote it, or another \
         --run"
    )]
    OtherFormat { path: PathBuf, found: u32 },
    /// A folder that `reproduce` of an earlier version wrote.
    #[error(
        "{dir}: an earlier version's `reproduce` wrote here, with stages in seed-N, which this program does not read; \
         name another --run, or remove the folder"
    )]
    EarlierLayout { dir: PathBuf },
    /// Cells ended with errors; the others are finished.
    #[error(
        "{failed} of {of} cells failed, the first one with: {first}\nrun the same command again to try them again; \
         `segment-rlhf status` tells all"
    )]
    Cells { failed: usize, of: usize, first: String },
    /// A command of Slurm that is not on this machine.
    #[error(
        "{command}: cannot run: {source}; --submit slurm and its status need Slurm's commands, as on a cluster's login \
         node; --jobs N runs a grid without Slurm"
    )]
    NoSlurm { command: String, source: io::Error },
    /// Slurm refused what it was asked.
    #[error(
        "{command}: {said}; mend what Slurm names (`sinfo` lists partitions; --sbatch \"--partition=…\" gives options), \
         then run the same command again"
    )]
    Slurm { command: String, said: String },
    /// A cluster whose Slurm has no job arrays.
    #[error(
        "this cluster allows no job arrays (MaxArraySize = 0); run `ablate` with --jobs inside a job of your own"
    )]
    NoArrays,
    /// Jobs of an earlier submission that have not ended.
    #[error(
        "{dir}: its jobs {jobs} are still queued; let them end, or `scancel {jobs}`, then submit again"
    )]
    Queued { dir: PathBuf, jobs: String },
    /// A stage whose turn came although one that it needs is not finished.
    #[error("{stage} needs {dir}, which {why}; submit again to run what is unfinished")]
    NotReady { stage: &'static str, dir: PathBuf, why: String },
    /// A submission whose grid has other stages now.
    #[error(
        "{dir}: the model, the data or the program changed since it was submitted, or it has no such stage; submit again"
    )]
    Changed { dir: PathBuf },
}

wrap_stage_errors!(GridError: FolderError, CheckpointError, DataError, DeviceError);

/// A file, with a line where one is to blame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    path: PathBuf,
    line: Option<usize>,
}

impl Place {
    pub(super) fn new(path: &Path, line: impl Into<Option<usize>>) -> Self {
        Self { path: path.to_owned(), line: line.into() }
    }

    /// An error at this place.
    pub(super) fn refused(self, message: impl Into<String>) -> GridError {
        GridError::File { at: self, message: message.into() }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.line.map_or(Ok(()), |line| write!(f, ":{line}"))
    }
}
