//! What can be wrong with a system, or with the responses that it scores.

use crate::equations::segmentation::SegmentationError;
use crate::model::optim::NonFinite;
use crate::stop::Interrupted;

/// Why a system could not be built, or responses not be scored.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// A response could not be cut.
    #[error(transparent)]
    Segmentation(#[from] SegmentationError),
    /// A reward is NaN or infinite.
    #[error(transparent)]
    NonFinite(#[from] NonFinite),
    /// The run was stopped.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// Settings that the system cannot serve.
    #[error("{0}")]
    Settings(String),
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
