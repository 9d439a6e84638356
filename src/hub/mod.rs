//! Models and data sets by their names in the Hugging Face Hub: `org/name` or `org/name@revision`, as folders of its
//! local cache.
//!
//! With the cargo feature `hub`, what the cache lacks is downloaded into it. The cache is that of transformers and
//! `huggingface_hub`, and each finds what another has downloaded.

pub mod cache;
#[cfg(feature = "hub")]
mod download;
mod error;

use std::path::{Path, PathBuf};

pub use self::cache::{
    ADAPTER_CONFIG, DEEPEST, INDEX, Kind, Repository, WEIGHTS, are_scalar, base_dir, base_name,
    has_adapters, holding, is_local, named,
};
pub use self::error::HubError;

/// What is read of a repository.
pub trait Wanted {
    /// Of a repository's files those that are read, or why they cannot be.
    fn choose(&self, files: &[String]) -> Result<Vec<String>, String>;

    /// A file that the snapshot in `dir` lacks.
    fn lacks(&self, dir: &Path) -> Option<String>;
}

/// The folder of the repository's snapshot, with every file that is wanted.
///
/// # Errors
///
/// [`HubError`]: without the feature `hub` or a network, if the cache lacks something.
pub fn find(repository: &Repository, wanted: &impl Wanted) -> Result<PathBuf, HubError> {
    let snapshot = repository.snapshot();
    let lacking = match &snapshot {
        Some(dir) => wanted.lacks(dir),
        None => None,
    };
    if let (Some(dir), None) = (&snapshot, &lacking) {
        return Ok(dir.clone());
    }
    #[cfg(feature = "hub")]
    if !cache::is_offline() {
        return download::download(repository, wanted);
    }
    Err(match (snapshot, lacking) {
        (Some(dir), Some(file)) => HubError::partial(repository, &dir, file),
        _ => HubError::not_cached(repository),
    })
}
