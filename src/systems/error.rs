//! What can be wrong with what a system reads and with the responses that it scores.

use crate::data::error::DataError;
use crate::equations::segmentation::SegmentationError;
use crate::model::optim::NonFinite;
use crate::stop::Interrupted;

/// Why a system could not be made, or responses not be scored.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// Its settings do not go with the run's task.
    #[error("{0}")]
    Settings(String),
    /// A file of its own was refused.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A response could not be cut.
    #[error(transparent)]
    Segmentation(#[from] SegmentationError),
    /// A reward is NaN or infinite.
    #[error(transparent)]
    NonFinite(#[from] NonFinite),
    /// The run was stopped.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl SystemError {
    /// The same, of a step of a stage.
    #[must_use]
    pub fn at(self, step: usize) -> Self {
        match self {
            Self::NonFinite(NonFinite { tensor, .. }) => NonFinite { tensor, step }.into(),
            other => other,
        }
    }
}
