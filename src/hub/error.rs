//! Why a name gives no folder.

use std::path::{Path, PathBuf};

use super::cache::{Repository, is_offline};
use crate::file_error::FileError;

/// Why a model or data set of the Hub cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields' names say it
pub enum HubError {
    /// Neither a folder nor in the cache.
    #[error("{name}: not here, and no {kind} of that name is in the Hub's cache {cache}; {advice}")]
    NotCached { name: String, kind: &'static str, cache: PathBuf, advice: String },
    /// The cache holds a part of it.
    #[error("{name}: its snapshot {dir} lacks {file}{broken_off}; {advice}")]
    Partial { name: String, dir: PathBuf, file: String, broken_off: &'static str, advice: String },
    /// A file of the cache could not be read or written.
    #[error("{0}; {advice}", advice = .0.advice("check the path and its permissions"))]
    File(#[from] FileError),
    /// The Hub does not give it, or it is nothing that this program reads.
    #[error("{name}: {problem}")]
    Refused { name: String, problem: String },
    /// A download failed.
    #[error("{name}: {problem}; run the same command again to go on")]
    Broken { name: String, problem: String },
}

impl HubError {
    pub(super) fn not_cached(repository: &Repository) -> Self {
        Self::NotCached {
            name: repository.to_string(),
            kind: repository.kind.noun(),
            cache: super::cache::root(),
            advice: advice(repository),
        }
    }

    pub(super) fn partial(repository: &Repository, dir: &Path, file: String) -> Self {
        let broken_off = match repository.has_incomplete() {
            true => ", and its blobs hold an .incomplete file: a download was broken off",
            false => "",
        };
        let (name, dir) = (repository.to_string(), dir.to_owned());
        Self::Partial { name, dir, file, broken_off, advice: advice(repository) }
    }

    /// Whether it is the run that failed, rather than the input.
    pub(crate) fn is_failure(&self) -> bool {
        match self {
            Self::Broken { .. } => true,
            Self::File(error) => error.action == crate::file_error::Action::Write,
            _ => false,
        }
    }
}

/// How to get it.
fn advice(repository: &Repository) -> String {
    let command = repository.download_command();
    let other = match (cfg!(feature = "hub"), is_offline()) {
        (true, true) => ", or unset HF_HUB_OFFLINE",
        (true, false) => "",
        (false, _) => ", or build with `--features hub`",
    };
    format!("check the name, or run `{command}` (pip install huggingface_hub){other}")
}
