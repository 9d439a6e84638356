//! What can be wrong with the files of a model.

use std::path::PathBuf;

/// Why a model could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file could not be read.
    #[error(
        "{path}: cannot read: {source}; a model's folder holds config.json and model.safetensors"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error(
        "{path}: cannot write: {source}; free space or mend what the system names, then run the same \
         command again"
    )]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file is malformed or lacks a key.
    #[error("{path}: not the expected JSON: {source}; give the file that came with the model")]
    Json {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        source: serde_json::Error,
    },
    /// The configuration names something that this decoder does not implement.
    #[error("{path}: unsupported {what}")]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The option, and what is supported instead.
        what: String,
    },
    /// Adapters name a base that is not there.
    #[error(
        "{path}: base_model_name_or_path names {base}, which holds no model; put the folder of the base \
         there, or its place here"
    )]
    NoBase {
        /// The file.
        path: PathBuf,
        /// The folder that it names.
        base: PathBuf,
    },
    /// The file of parameters is no safetensors file.
    #[error(
        "{path}: not a safetensors file, or a truncated one: {detail}; copy the model again, or run the \
         stage again that wrote it"
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        detail: String,
    },
    /// The parameters are not those of the architecture.
    #[error("{path}: the tensors are not those of this architecture:{}", problems.iter().map(|p| format!("\n  {p}")).collect::<String>())]
    Tensors {
        /// The file.
        path: PathBuf,
        /// One line for each missing, extra or misshaped tensor.
        problems: Vec<String>,
    },
}
