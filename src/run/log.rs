//! Files of JSON lines that grow: logs, and the results of passes over data sets.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::files::{FolderError, read_if_there, write_file};
use super::lock::Lock;
use super::tensorboard::Events;
use crate::file_error::FileError;
use crate::{atomic, ranks};

/// The lines of `bytes` that end.
fn whole_lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"))
}

/// The results of a pass over a data set, kept batch by batch, so that a stage that was stopped goes on behind them.
pub struct Parts<T> {
    /// Where they are kept; `None` for a pass that starts again.
    path: Option<PathBuf>,
    /// The lock under which they are kept there.
    lock: Option<Arc<Lock>>,
    /// Open from the first batch on.
    log: Option<Log>,
    items: Vec<T>,
    batches: usize,
}

impl<T> Default for Parts<T> {
    /// Those of a pass that starts again after a stop.
    fn default() -> Self {
        Self { path: None, lock: None, log: None, items: Vec::new(), batches: 0 }
    }
}

impl<T: DeserializeOwned> Parts<T> {
    /// The batches in the file `path`; half of a last one is dropped.
    pub(super) fn read(path: PathBuf) -> Result<Self, FolderError> {
        let bytes = read_if_there(&path)?.unwrap_or_default();
        let batches: Vec<Vec<T>> =
            whole_lines(&bytes).map_while(|line| serde_json::from_slice(line).ok()).collect();
        let count = batches.len();
        let items = batches.into_iter().flatten().collect();
        Ok(Self { path: Some(path), lock: None, log: None, items, batches: count })
    }

    /// The same, kept under the lock of their folder.
    pub(super) fn within(self, lock: Option<Arc<Lock>>) -> Self {
        Self { lock, ..self }
    }
}

impl<T: Serialize> Parts<T> {
    /// The results, when they are complete.
    pub fn into_items(self) -> Vec<T> {
        self.items
    }

    /// Batches so far.
    pub fn batches(&self) -> usize {
        self.batches
    }

    /// The next items of `total`, at most `size` of them; `None` when all are done.
    pub fn left(&self, total: usize, size: usize) -> Option<Range<usize>> {
        let start = self.items.len();
        (start < total).then(|| start..total.min(start + size.max(1)))
    }

    /// Adds the results of the next items.
    pub fn push(&mut self, batch: Vec<T>) -> Result<(), FolderError> {
        self.lock.as_ref().map_or(Ok(()), |lock| lock.check())?;
        if let Some(path) = &self.path {
            if self.log.is_none() {
                let dir = path.parent().expect("a file is in a folder");
                atomic::create_dir_all(dir).map_err(FileError::writing(dir))?;
                self.log = Some(Log::open(path.clone(), self.batches)?);
            }
            self.log.as_mut().expect("opened above").write(&batch)?;
        }
        self.items.extend(batch);
        self.batches += 1;
        Ok(())
    }
}

/// A file of JSON lines that grows.
pub struct Log {
    path: PathBuf,
    /// `None` on a rank that does not write.
    file: Option<File>,
    lines: usize,
    /// Where its lines go, too.
    events: Option<Arc<Mutex<Events>>>,
}

impl Log {
    /// Opens the log `path` behind its first `lines` lines.
    pub(super) fn open(path: PathBuf, lines: usize) -> Result<Self, FolderError> {
        if !ranks::is_first() {
            return Ok(Self { path, file: None, lines, events: None });
        }
        let text = ranks::apart(|| read_if_there(&path))?.unwrap_or_default();
        let kept: Vec<&[u8]> = whole_lines(&text).take(lines).collect();
        if kept.len() < lines {
            let detail =
                format!("{} lines, but the checkpoint was written after {lines}", kept.len());
            return Err(FolderError::Corrupt { path, detail });
        }
        write_file(&path, &kept.concat())?;
        let file =
            OpenOptions::new().append(true).open(&path).map_err(FileError::writing(&path))?;
        Ok(Self { path, file: Some(file), lines, events: None })
    }

    /// The same, with TensorBoard's `events` of its lines.
    pub(super) fn shown_in(self, events: Option<Arc<Mutex<Events>>>) -> Self {
        Self { events, ..self }
    }

    /// Appends one line.
    pub fn write<T: Serialize>(&mut self, line: &T) -> Result<(), FolderError> {
        self.lines += 1;
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut text = serde_json::to_string(line).expect("a plain struct serialises");
        text.push('\n');
        file.write_all(text.as_bytes()).map_err(FileError::writing(&self.path))?;
        if let (Some(events), Some(name)) = (&self.events, self.path.file_name()) {
            let mut events = events.lock().expect("no writer panics");
            ranks::apart(|| events.add(&name.to_string_lossy(), &text))?;
        }
        Ok(())
    }

    /// Lines written so far.
    pub fn lines(&self) -> usize {
        self.lines
    }
}
