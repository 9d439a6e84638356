//! Everything that can end a command, with its exit code.

use std::path::PathBuf;

use crate::benchmark::BenchmarkError;
use crate::control::Interrupted;
use crate::data::error::DataError;
use crate::experiment::folder::FolderError;
use crate::experiment::lock::LockError;
use crate::experiment::settings::SettingsError;
use crate::grid::file::GridError;
use crate::memory::{Advice, Bytes, Need};
use crate::model::optim::NonFinite;
use crate::model::{CheckpointError, TooLong};
use crate::normalizer::NormalizerError;
use crate::segmentation::SegmentationError;

/// Why a stage ended before its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Settings were refused.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// An experiment file was refused.
    #[error(transparent)]
    Grid(#[from] GridError),
    /// Data or a tokenizer was refused.
    #[error(transparent)]
    Data(DataError),
    /// A benchmark's files were refused.
    #[error(transparent)]
    Benchmark(#[from] BenchmarkError),
    /// A model could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A sequence is longer than the model was made for.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// A run folder could not be used.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A response could not be cut into segments.
    #[error(transparent)]
    Segmentation(#[from] SegmentationError),
    /// A normalizer could not be fitted.
    #[error("normalizer: {0}")]
    Normalizer(#[from] NormalizerError),
    /// A fitted normalizer must not be used with the run's settings.
    #[error("{path}: {source}")]
    UnusableNormalizer {
        /// The file.
        path: PathBuf,
        /// Why.
        source: NormalizerError,
    },
    /// Training left the numbers.
    #[error(transparent)]
    NonFinite(#[from] NonFinite),
    /// A file made for one model was given with another.
    #[error("{path}: made for the {what} {expected}, but this run has {found}; {remedy}")]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// What it belongs to.
        what: &'static str,
        /// The fingerprint or name that the file names.
        expected: String,
        /// That of the run.
        found: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A device that this build or this machine lacks.
    #[error("--device {name}: {problem}")]
    Device {
        /// The device.
        name: &'static str,
        /// What is wrong, and what to do.
        problem: String,
    },
    /// The stage needs more memory than the device has.
    #[error("{need}, and {available} are free; {advice}")]
    Memory {
        /// What it needs.
        need: Need,
        /// What there is.
        available: Bytes,
        /// What would bring it down.
        advice: Advice,
    },
    /// The result could not be printed.
    #[error("standard output: {0}; free space or mend what the system names")]
    Output(#[source] std::io::Error),
    /// Arguments that do not go together.
    #[error("{0}")]
    Usage(String),
    /// The run was stopped by a signal or by `--stop-after`; what it has done is saved.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl From<DataError> for Error {
    fn from(error: DataError) -> Self {
        match error {
            DataError::Interrupted(interrupted) => interrupted.into(),
            error => Self::Data(error),
        }
    }
}

impl Error {
    /// The program's exit status: 2 for input that was refused, 130 for a stop, 1 for a run
    /// that failed: numbers that are not finite, a disk that is full, cells of a grid.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Interrupted { .. } => 130,
            Self::NonFinite(_)
            | Self::Output(_)
            | Self::Grid(GridError::Cells { .. })
            | Self::Folder(
                FolderError::Write { .. } | FolderError::Lock(LockError::Write { .. }),
            )
            | Self::Checkpoint(CheckpointError::Write { .. })
            | Self::Data(DataError::Write { .. }) => 1,
            _ => 2,
        }
    }
}
