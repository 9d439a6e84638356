//! The files of a run's folders, and what can be wrong with them.

use std::fs;
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::lock::LockError;
use crate::file_error::{Action, FileError};
use crate::{atomic, ranks};

/// Why a run folder could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields' names say it
pub enum FolderError {
    /// A file or folder could not be read or written: a full disk, for instance.
    #[error("{0}; {advice}", advice = advice(.0))]
    File(#[from] FileError),
    /// A file in the folder is not what it should be.
    #[error(
        "{path}: not the expected content: {detail}; remove the folder of this file to run its stage again"
    )]
    Corrupt { path: PathBuf, detail: String },
    /// The folder was started with other settings.
    #[error("{dir}: started with other settings:{}\nname another folder with --run, remove this one, or give the same settings", differences.iter().map(|d| format!("\n  {d}")).collect::<String>())]
    OtherSettings { dir: PathBuf, differences: Vec<String> },
    /// Another process uses the folder, or it cannot be locked.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// A stage needs another one's result.
    #[error("{dir}: not there or not finished; run `segment-rlhf {command}` first")]
    Missing { dir: PathBuf, command: String },
    /// Every checkpoint is damaged.
    #[error(
        "{dir}: no checkpoint can be used: {detail}; remove the folder to start the stage again"
    )]
    NoGoodCheckpoint { dir: PathBuf, detail: String },
    /// A rank was started with something else than the first.
    #[error(
        "{dir}: rank {rank} on {host} differs from the first rank:{}\ngive all ranks the same program, settings and files",
        differences.iter().map(|d| format!("\n  {d}")).collect::<String>()
    )]
    OtherRank { dir: PathBuf, rank: usize, host: &'static str, differences: Vec<String> },
    /// A rank does not see what the first has written.
    #[error(
        "{dir}: rank {rank} on {host} does not see this folder as the first rank on {first} does; give --run a folder \
         that all nodes share"
    )]
    NotShared { dir: PathBuf, rank: usize, host: &'static str, first: String },
}

fn advice(error: &FileError) -> String {
    let intact = if error.action == Action::Write { ": the last checkpoint is intact" } else { "" };
    format!("{}{intact}", error.advice("check the path and its permissions"))
}

/// Writes `value` as JSON to `path`, whole or not at all.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FolderError> {
    write_file(path, &serde_json::to_vec_pretty(value).expect("a plain struct serialises"))
}

/// Writes `bytes` to `path`, whole or not at all.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    Ok(atomic::write_file(path, bytes).map_err(FileError::writing(path))?)
}

/// Reads a file of JSON Lines.
pub fn read_json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, FolderError> {
    let bytes = read_if_there(path)?
        .ok_or_else(|| FileError::reading(path)(io::ErrorKind::NotFound.into()))?;
    let parse = |(number, line): (usize, io::Result<String>)| {
        serde_json::from_str(&line.map_err(FileError::reading(path))?).map_err(|error| {
            FolderError::Corrupt {
                path: path.to_owned(),
                detail: format!("line {}: {error}", number + 1),
            }
        })
    };
    bytes.lines().enumerate().map(parse).collect()
}

/// Reads JSON from `path`; `command` is what makes the file if it is missing.
pub fn read_json<T: DeserializeOwned>(path: &Path, command: &str) -> Result<T, FolderError> {
    let bytes = read_if_there(path)?.ok_or_else(|| FolderError::Missing {
        dir: path.to_owned(),
        command: command.to_owned(),
    })?;
    parse(path, &bytes)
}

pub(super) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, FolderError> {
    serde_json::from_slice(bytes)
        .map_err(|error| FolderError::Corrupt { path: path.to_owned(), detail: error.to_string() })
}

/// The file, as the first rank reads it.
pub(super) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, FolderError> {
    ranks::bytes_of_first(|| match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FileError::reading(path)(source).into()),
    })
}
