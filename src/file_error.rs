//! A file that the system would not read or write.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What was tried with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // the names say it
pub enum Action {
    Read,
    Write,
}

/// The system rejected to read or write a file.
#[derive(Debug)]
#[allow(missing_docs)] // the names say it
pub struct FileError {
    pub path: PathBuf,
    pub action: Action,
    pub source: io::Error,
}

impl FileError {
    /// What the system's refusal to read `path` becomes.
    pub fn reading(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self { path: path.clone(), action: Action::Read, source }
    }

    /// What the system's refusal to write `path` becomes.
    pub fn writing(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self { path: path.clone(), action: Action::Write, source }
    }

    /// What to do: `reading` for a file that cannot be read.
    pub fn advice(&self, reading: &'static str) -> &'static str {
        match self.action {
            Action::Read => reading,
            Action::Write => {
                "free space or mend what the system names, then run the same command again"
            }
        }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let action = match self.action {
            Action::Read => "read",
            Action::Write => "write",
        };
        write!(f, "{}: cannot {action}: {}", self.path.display(), self.source)
    }
}

impl std::error::Error for FileError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
