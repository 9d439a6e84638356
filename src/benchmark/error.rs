//! The errors of benchmark files, beyond those of any data file.

use std::path::PathBuf;

use crate::data::error::DataError;
use crate::model::{CheckpointError, TooLong};
use crate::run::error::wrap_stage_errors;
use crate::run::{Error, FolderError};
use crate::stop::Interrupted;

/// Why a benchmark failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the texts say what the fields are
pub enum BenchmarkError {
    /// The model, its data or a folder could not be used, or the run was stopped.
    #[error(transparent)]
    Stage(#[from] Error),
    /// Two rows of one file have the same identifier.
    #[error("{path}:{place}: the question {id} a second time; each must have its own identifier")]
    SameQuestion { path: PathBuf, place: usize, id: String },
    /// The answers of an interrupted run were given with other settings or files.
    #[error(
        "{path}: answers of an interrupted run with other {difference}; give the same to go on, or remove \
         the file to start again"
    )]
    OtherAnswers { path: PathBuf, difference: String },
    /// A file holds answers without their questions, and no question file was given.
    #[error("{path}:{place}: an answer without the text of its question; give --questions FILE")]
    WithoutQuestion { path: PathBuf, place: usize },
    /// Two answer files have no question in common.
    #[error("{a} and {b} answer no question in common; both must answer the same question file")]
    NothingInCommon { a: PathBuf, b: PathBuf },
    /// The gold reward was asked for a question outside the embedded task.
    #[error(
        "{path}:{place}: not a request of the embedded task with an answer in its words, which alone has a \
         gold reward; give --judge reward"
    )]
    NoGold { path: PathBuf, place: usize },
}

wrap_stage_errors!(BenchmarkError: DataError, CheckpointError, TooLong, FolderError, Interrupted);
