//! The errors that end a command, with their exit status.

use crate::benchmark::BenchmarkError;
use crate::data::error::DataError;
use crate::device::DeviceError;
use crate::equations::segmentation::SegmentationError;
use crate::file_error::{Action, FileError};
use crate::grid::GridError;
use crate::hub::HubError;
use crate::model::{CheckpointError, TooLong};
use crate::run::FolderError;
use crate::run::error::{Error as StageError, wrap_stage_errors};
use crate::run::lock::LockError;
use crate::settings::SettingsError;
use crate::stop::Interrupted;
use crate::systems::SystemError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A stage failed or was stopped.
    #[error(transparent)]
    Stage(StageError),
    /// An experiment file or a grid was rejected, or some of its cells failed.
    #[error(transparent)]
    Grid(GridError),
    /// A benchmark's files were rejected.
    #[error(transparent)]
    Benchmark(BenchmarkError),
    /// Settings were rejected.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A name of the Hub gave no folder.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The result could not be printed.
    #[error("standard output: {0}; free space or mend what the system names")]
    Output(#[source] std::io::Error),
    /// Arguments that do not go together.
    #[error("{0}")]
    Usage(String),
    /// A rank other than the first failed.
    #[error("rank {rank}: {error}")]
    Rank {
        /// Which.
        rank: usize,
        /// With what.
        error: Box<Error>,
    },
}

wrap_stage_errors!(Error: StageError, DeviceError, FileError, FolderError, DataError, CheckpointError, TooLong, Interrupted, SegmentationError, SystemError);

impl From<GridError> for Error {
    fn from(error: GridError) -> Self {
        match error {
            GridError::Stage(error) => Self::Stage(error),
            error => Self::Grid(error),
        }
    }
}

impl From<BenchmarkError> for Error {
    fn from(error: BenchmarkError) -> Self {
        match error {
            BenchmarkError::Stage(error) => Self::Stage(error),
            error => Self::Benchmark(error),
        }
    }
}

impl Error {
    /// The exit status: 2 for rejected input, 130 after a stop, 1 for a run that failed (non-finite numbers, a full
    /// disk, a folder that another process took over, failed cells of a grid).
    pub fn exit_code(&self) -> u8 {
        let failed = match self {
            Self::Stage(StageError::Interrupted(_)) => return 130,
            Self::Stage(
                StageError::NonFinite(_)
                | StageError::Alarm { .. }
                | StageError::OutOfMemory { .. }
                | StageError::Folder(FolderError::Lock(LockError::Lost { .. })),
            )
            | Self::Output(_)
            | Self::Grid(
                GridError::Cells { .. } | GridError::NotReady { .. } | GridError::Changed { .. },
            ) => true,
            Self::Hub(error) => error.is_failure(),
            Self::Rank { error, .. } => return error.exit_code(),
            Self::Stage(
                StageError::Folder(
                    FolderError::File(error) | FolderError::Lock(LockError::File(error)),
                )
                | StageError::Checkpoint(CheckpointError::File(error))
                | StageError::Data(DataError::File(error)),
            ) => error.action == Action::Write,
            _ => false,
        };
        if failed { 1 } else { 2 }
    }
}
