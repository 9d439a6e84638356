//! What can be wrong with the files of a model.

use std::path::PathBuf;

use crate::file_error::FileError;

/// Why a model could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields' names say it
pub enum CheckpointError {
    /// A file could not be read or written.
    #[error("{0}; {advice}", advice = .0.advice("a model's folder holds config.json and model.safetensors"))]
    File(#[from] FileError),
    /// A JSON file is malformed or lacks a key.
    #[error("{path}: not the expected JSON: {source}; give the file that came with the model")]
    Json { path: PathBuf, source: serde_json::Error },
    /// The configuration names something that this decoder does not implement.
    #[error("{path}: unsupported {what}")]
    Unsupported { path: PathBuf, what: String },
    /// Adapters name a base that is not there.
    #[error(
        "{path}: base_model_name_or_path names {base}, which holds no model; put the folder of the base \
         there, or write its place here, or download it if it is a name in the Hub"
    )]
    NoBase { path: PathBuf, base: PathBuf },
    /// The file of parameters is no safetensors file.
    #[error(
        "{path}: not a safetensors file, or a truncated one: {detail}; copy the model again, or run the \
         stage again that wrote it"
    )]
    Format { path: PathBuf, detail: String },
    /// The parameters are not those of the architecture.
    #[error("{path}: the tensors are not those of this architecture:{}", problems.iter().map(|p| format!("\n  {p}")).collect::<String>())]
    Tensors { path: PathBuf, problems: Vec<String> },
}
