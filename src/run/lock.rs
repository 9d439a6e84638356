//! Locks: no two processes write into one stage's folder at a time.
//!
//! The lock of the folder `DIR` is the system's lock on the file `DIR.lock`. It ends with the process, however that ends.
//! Who holds it is written to `DIR.owner.json`, for those who do not get it: a file of its own, whole or not at all,
//! since some systems let nobody read a locked file. It goes with the lock; what a kill leaves of it the next holder
//! replaces.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::file_error::FileError;
use crate::{atomic, host};

/// How long a lock must be held by others to count as held: longer than [`is_held`] needs for its look, and than a new
/// holder needs to write who it is.
const PATIENCE: Duration = Duration::from_millis(200);

/// Why a lock was not got.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields' names say it
pub enum LockError {
    /// Another process has it.
    #[error(
        "{dir}: in use by {}; wait until that ends, or name another folder with --run",
        owner.as_ref().map_or_else(|| "another process".into(), Owner::to_string)
    )]
    Held { dir: PathBuf, owner: Option<Owner> },
    /// The system does not lock the file.
    #[error(
        "{path}: cannot lock: {source}; where the file system has no locks, and no other process uses the folder, \
         give --without-locks"
    )]
    Unsupported { path: PathBuf, source: io::Error },
    /// The lock's file cannot be made.
    #[error("{0}; {advice}", advice = .0.advice("check the path and its permissions"))]
    File(#[from] FileError),
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub host: String,
    pub process: u32,
    pub since: String,
}

impl Owner {
    fn this_process() -> Self {
        let since = chrono::Utc::now().format("%Y-%m-%d %H:%M:%S UTC").to_string();
        Self { host: host::name().to_owned(), process: std::process::id(), since }
    }

    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(owner_path(dir)).ok()?).ok()
    }

    /// Writes it down for others. A full disk costs them the name, and nothing else.
    fn write(&self, dir: &Path) {
        let path = owner_path(dir);
        let text = serde_json::to_vec(self).expect("a plain struct serialises");
        if atomic::write_file(&path, &text).is_err() {
            let _ = fs::remove_file(&path); // an earlier holder's
        }
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "process {} on {} since {}", self.process, self.host, self.since)
    }
}

/// What to do if the file system has no locks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unsupported {
    /// Refuse to run.
    #[default]
    Refuse,
    /// Run without: nothing keeps two processes apart then.
    GoOn,
}

impl Unsupported {
    fn check(self, path: &Path, source: io::Error) -> Result<(), LockError> {
        match self {
            Self::GoOn => Ok(()),
            Self::Refuse => Err(LockError::Unsupported { path: path.to_owned(), source }),
        }
    }
}

/// A stage's folder that no other process writes into while this lives.
#[derive(Debug)]
pub struct Lock {
    dir: PathBuf,
    _file: File,
}

impl Lock {
    fn take(dir: &Path, unsupported: Unsupported) -> Result<Self, LockError> {
        let path = lock_path(dir);
        let file = create(&path)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < until => sleep(PATIENCE / 10),
                Err(TryLockError::WouldBlock) => {
                    return Err(LockError::Held { dir: dir.to_owned(), owner: Owner::read(dir) });
                }
                Err(TryLockError::Error(source)) => break unsupported.check(&path, source)?,
            }
        }
        Owner::this_process().write(dir);
        Ok(Self { dir: dir.to_owned(), _file: file })
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(owner_path(&self.dir)); // while the lock is still held
    }
}

/// A turn at what several processes write one after the other; it ends when this is dropped.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

/// How a run gets its locks, and the one that it already has.
#[derive(Clone, Debug, Default)]
pub struct Locks {
    unsupported: Unsupported,
    held: Option<Arc<Lock>>,
}

impl Locks {
    /// Locks with this rule for file systems that have none.
    pub fn new(unsupported: Unsupported) -> Self {
        Self { unsupported, held: None }
    }

    /// The lock of the stage's folder `dir`, which need not be there yet.
    pub fn take(&self, dir: &Path) -> Result<Arc<Lock>, LockError> {
        match &self.held {
            Some(lock) if lock.dir == dir => Ok(lock.clone()),
            _ => Lock::take(dir, self.unsupported).map(Arc::new),
        }
    }

    /// The same locks with one that [`Locks::take`] then gives again, to whoever runs the stage.
    #[must_use]
    pub fn holding(&self, lock: Arc<Lock>) -> Self {
        Self { held: Some(lock), ..self.clone() }
    }

    /// The turn of the file `path`, unless another process has it.
    pub fn turn(&self, path: &Path) -> Result<Option<Turn>, LockError> {
        let file = create(path)?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(source)) => self.unsupported.check(path, source)?,
            Ok(()) => {}
        }
        Ok(Some(Turn { _file: file }))
    }

    /// Waits for the turn of the file `path`.
    pub fn wait(&self, path: &Path) -> Result<Turn, LockError> {
        let file = create(path)?;
        loop {
            match file.lock() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => break self.unsupported.check(path, source)?,
                Ok(()) => break,
            }
        }
        Ok(Turn { _file: file })
    }
}

/// Whether a process holds the lock of the folder `dir` now. Writes nothing.
pub fn is_held(dir: &Path) -> bool {
    let Ok(file) = File::open(lock_path(dir)) else { return false };
    // Shared, so that two who look are not in each other's way.
    matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock))
}

/// Whether the lock of the folder `dir` has an owner's name: its holder's, or a killed process's.
pub(super) fn is_named(dir: &Path) -> bool {
    owner_path(dir).exists()
}

fn lock_path(dir: &Path) -> PathBuf {
    dir.with_extension("lock")
}

fn owner_path(dir: &Path) -> PathBuf {
    dir.with_extension("owner.json")
}

/// Opens the file of a lock, which is empty.
fn create(path: &Path) -> Result<File, LockError> {
    let parent = path.parent().unwrap_or(Path::new(""));
    atomic::create_dir_all(parent)
        .and_then(|()| OpenOptions::new().write(true).create(true).truncate(false).open(path))
        .map_err(|source| LockError::from(FileError::writing(path)(source)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn folder() -> (TempDir, PathBuf) {
        let run = TempDir::new().unwrap();
        let dir = run.path().join("segment/ppo");
        (run, dir)
    }

    #[test]
    fn the_second_is_told_who_the_first_is() {
        let (_run, dir) = folder();
        let locks = Locks::default();
        let first = locks.take(&dir).unwrap();
        assert!(is_held(&dir) && is_named(&dir));
        let Err(LockError::Held { dir: of, owner: Some(owner) }) = locks.take(&dir) else {
            panic!("held")
        };
        assert_eq!((of, &owner.host[..]), (dir.clone(), host::name()));
        assert_eq!(owner.process, std::process::id());
        let since = chrono::NaiveDateTime::parse_from_str(&owner.since, "%Y-%m-%d %H:%M:%S UTC");
        let age = chrono::Utc::now().naive_utc() - since.unwrap();
        assert!((0..60).contains(&age.num_seconds()), "{owner}");
        // The file is not the lock: without it, the second is rejected all the same.
        fs::remove_file(owner_path(&dir)).unwrap();
        let error = locks.take(&dir).unwrap_err();
        assert!(matches!(error, LockError::Held { owner: None, .. }));
        assert!(error.to_string().contains("in use by another process; wait until that ends"));
        drop(first);
        assert!(!is_held(&dir) && !is_named(&dir));
        locks.take(&dir).unwrap();
    }

    #[test]
    fn what_a_killed_process_left_is_no_lock() {
        let (_run, dir) = folder();
        drop(Locks::default().take(&dir).unwrap());
        let killed = Owner { host: "elsewhere".into(), process: 1, since: "long ago".into() };
        killed.write(&dir);
        assert!(!is_held(&dir));
        let _lock = Locks::default().take(&dir).unwrap();
        assert_eq!(Owner::read(&dir).unwrap().host, host::name());
    }

    #[test]
    fn a_lock_is_handed_on_for_its_own_folder_alone() {
        let (run, dir) = folder();
        let locks = Locks::default();
        let lock = locks.take(&dir).unwrap();
        let handed = locks.holding(lock.clone());
        let again = handed.take(&dir).unwrap();
        assert!(Arc::ptr_eq(&lock, &again));
        let other = handed.take(&run.path().join("sft")).unwrap();
        assert!(!Arc::ptr_eq(&lock, &other));
        drop((lock, handed));
        assert!(is_held(&dir), "one is left");
        drop(again);
        assert!(!is_held(&dir));
    }

    #[test]
    fn looking_takes_no_lock_and_makes_no_file() {
        let (run, dir) = folder();
        assert!(!is_held(&dir));
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 0);
        drop(Locks::default().take(&dir).unwrap());
        let looking = File::open(lock_path(&dir)).unwrap();
        looking.lock_shared().unwrap();
        assert!(!is_held(&dir), "somebody who looks is no holder");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sleep(PATIENCE / 4);
                looking.unlock().unwrap();
            });
            Locks::default().take(&dir).unwrap();
        });
    }

    #[test]
    fn a_file_system_without_locks_is_refused_unless_told_otherwise() {
        let path = Path::new("run/sft.lock");
        let unsupported = || io::Error::from(io::ErrorKind::Unsupported);
        let error = Unsupported::Refuse.check(path, unsupported()).unwrap_err();
        assert!(matches!(error, LockError::Unsupported { .. }));
        let said = "run/sft.lock: cannot lock: unsupported; where the file system has no locks, and no other \
                    process uses the folder, give --without-locks";
        assert_eq!(error.to_string(), said);
        Unsupported::GoOn.check(path, unsupported()).unwrap();
        assert_eq!(Locks::default().unsupported, Unsupported::Refuse);
        // Told so, a lock that is there still counts.
        let (_run, dir) = folder();
        let _first = Locks::default().take(&dir).unwrap();
        let second = Locks::new(Unsupported::GoOn).take(&dir);
        assert!(matches!(second, Err(LockError::Held { .. })));
    }

    #[test]
    fn a_turn_is_waited_for() {
        let (run, _) = folder();
        let path = run.path().join("data/lock");
        let first = Locks::default().wait(&path).unwrap();
        std::thread::scope(|scope| {
            let second = scope.spawn(|| Locks::default().wait(&path).map(drop));
            sleep(PATIENCE);
            assert!(!second.is_finished());
            drop(first);
            second.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_lock_that_cannot_be_written_is_no_lock() {
        let (_run, dir) = folder();
        fs::create_dir_all(lock_path(&dir)).unwrap();
        let error = Locks::default().take(&dir).unwrap_err();
        assert!(matches!(error, LockError::File(_)), "{error}");
    }
}
