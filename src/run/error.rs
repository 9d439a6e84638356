//! What can end a stage.

use std::path::PathBuf;

use super::alarms::Raised;
use super::folder::FolderError;
use super::memory::{Advice, MemoryError, Need};
use crate::data::error::DataError;
use crate::device::DeviceError;
use crate::equations::normalizer::NormalizerError;
use crate::equations::segmentation::SegmentationError;
use crate::file_error::FileError;
use crate::model::optim::NonFinite;
use crate::model::sampling::Sampling;
use crate::model::{CheckpointError, TooLong};
use crate::stop::Interrupted;
use crate::systems::SystemError;

/// Why a stage ended before its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields' names say it
pub enum Error {
    /// Data or a tokenizer was rejected.
    #[error(transparent)]
    Data(DataError),
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
    UnusableNormalizer { path: PathBuf, source: NormalizerError },
    /// Sampling settings under which the KL and the ratio of PPO would be wrong.
    #[error(
        "settings sampling.*: PPO samples from the policy itself, since the KL and the ratio are computed for it; \
         set temperature = 1, top_k = 0 and top_p = 1 (now {}, {} and {})", .0.temperature, .0.top_k, .0.top_p
    )]
    SamplingForPpo(Sampling),
    /// A loss, gradient or reward was NaN or infinite.
    #[error(transparent)]
    NonFinite(#[from] NonFinite),
    /// A file was made for another model or method.
    #[error("{path}: made for the {what} {expected}, but this run has {found}; {remedy}")]
    Mismatch {
        path: PathBuf,
        what: &'static str,
        expected: String,
        found: String,
        remedy: &'static str,
    },
    /// A device that this build or machine lacks.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The stage needs more memory than the device has.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The device had no memory left while the stage ran.
    #[error(
        "the device ran out of memory: {need}, for rows as long as the settings allow; {advice}. What is saved in \
         {saved_in} is intact: precision.checkpointing = \"layers\" goes on from there, other settings begin anew in \
         another --run"
    )]
    OutOfMemory { need: Need, advice: Advice, saved_in: PathBuf },
    /// Arguments that do not go together.
    #[error("{0}")]
    Usage(String),
    /// An alarm that `--stop-on` names.
    #[error(
        "{raised}. Stopped by --stop-on; the same command goes on from what is saved in {saved_in}"
    )]
    Alarm { raised: Box<Raised>, saved_in: PathBuf },
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

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        Self::Data(error.into())
    }
}

impl From<SystemError> for Error {
    fn from(error: SystemError) -> Self {
        match error {
            SystemError::Settings(problem) => Self::Usage(problem),
            SystemError::Data(error) => error.into(),
            SystemError::Segmentation(error) => error.into(),
            SystemError::NonFinite(error) => error.into(),
            SystemError::Interrupted(error) => error.into(),
        }
    }
}

/// Lets an error of a higher floor, with a variant `Stage`, hold what a stage meets.
macro_rules! wrap_stage_errors {
    ($outer:ty: $($error:ty),*) => { $(
        impl From<$error> for $outer {
            fn from(error: $error) -> Self {
                Self::Stage(error.into())
            }
        }
    )* };
}

pub(crate) use wrap_stage_errors;
