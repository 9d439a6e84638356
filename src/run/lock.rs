//! Locks: no two processes write into one stage's folder at a time.
//!
//! The lock of the folder `DIR` is two things at once. One is the system's lock on the file `DIR.lock`, which ends with
//! the process, however that ends. The other is the file `DIR.owner.json`, see [`Owner`], for nodes that share a folder
//! and do not see each other's locks. Its owner reads it again before it writes anything that counts, and stops if
//! another process has taken the folder over.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::owner::{self, Found};
pub use super::owner::{Owner, SILENCE};
use crate::file_error::FileError;
use crate::{atomic, host};

/// How long a lock must be held by others to count as held: longer than a new holder needs to write who it is, and
/// than two who take over one folder need to settle who has it.
const PATIENCE: Duration = Duration::from_millis(200);

/// Why a lock was not got, or is lost.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)] // the fields' names say it
pub enum LockError {
    /// Another process has it.
    #[error(
        "{dir}: in use by {}; wait until that ends, or name another folder with --run{}",
        name(owner),
        killed(owner)
    )]
    Held { dir: PathBuf, owner: Option<Box<Owner>> },
    /// Another process has taken it over.
    #[error(
        "{dir}: taken over by {} while this process gave no sign of life (was it paused, or the file system away?); \
         nothing was written since: once that ends, the same command goes on from what is saved",
        name(owner)
    )]
    Lost { dir: PathBuf, owner: Option<Box<Owner>> },
    /// The system does not lock the file, or only seems to.
    #[error(
        "{path}: cannot lock: {source}{}; name a --run on a file system with locks (NFS 4, GPFS, Lustre mounted with \
         `flock`), or, where no other process uses the folder, give --without-locks",
        host::file_system(path).map_or_else(String::new, |kind| format!(" (file system {kind})"))
    )]
    Unsupported { path: PathBuf, source: io::Error },
    /// A file of the lock cannot be made.
    #[error("{0}; {advice}", advice = .0.advice("check the path and its permissions"))]
    File(#[from] FileError),
}

fn name(owner: &Option<Box<Owner>>) -> String {
    owner.as_ref().map_or_else(|| "another process".into(), |owner| owner.to_string())
}

/// When the folder is free if its owner cannot end in an orderly way.
fn killed(owner: &Option<Box<Owner>>) -> &'static str {
    match owner {
        Some(owner) if !owner.is_here() => {
            " (if it was killed, the folder is free ten minutes after its last sign of life)"
        }
        _ => "",
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
    /// What the outcome of a try to lock the file `path` means.
    fn check(self, path: &Path, outcome: io::Result<()>) -> Result<(), LockError> {
        match (self, outcome) {
            (Self::GoOn, _) | (_, Ok(())) => Ok(()),
            (Self::Refuse, Err(source)) => {
                Err(LockError::Unsupported { path: path.to_owned(), source })
            }
        }
    }
}

/// A stage's folder that no other process writes into while this lives.
#[derive(Debug)]
pub struct Lock {
    dir: PathBuf,
    owner: Owner,
    _file: File,
    /// Ends the signs of life when it is dropped.
    _life: Sender<()>,
}

impl Lock {
    fn take(dir: &Path, locks: &Locks) -> Result<Self, LockError> {
        let path = lock_path(dir);
        let file = create(&path)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match file.try_lock() {
                Ok(()) => break locks.unsupported.check(&path, probe(&path))?,
                Err(TryLockError::WouldBlock) if Instant::now() < until => sleep(PATIENCE / 10),
                Err(TryLockError::WouldBlock) => {
                    let owner = Owner::read(dir).map(Box::new);
                    return Err(LockError::Held { dir: dir.to_owned(), owner });
                }
                Err(TryLockError::Error(source)) => {
                    break locks.unsupported.check(&path, Err(source))?;
                }
            }
        }
        let owner = Owner::this_process();
        own(&owner, dir, locks)?;
        let life = owner.clone().live(dir.to_owned(), locks.silence);
        Ok(Self { dir: dir.to_owned(), owner, _file: file, _life: life })
    }

    /// Whether the folder is still this process's, for one that is about to write into it.
    ///
    /// # Errors
    ///
    /// [`LockError::Lost`] if another process has taken it over.
    pub fn check(&self) -> Result<(), LockError> {
        let until = Instant::now() + PATIENCE;
        loop {
            let found = Owner::read(&self.dir);
            if found.as_ref() == Some(&self.owner) {
                return Ok(());
            }
            // One who would take the folder over too late moves the file away and back.
            if Instant::now() >= until {
                let owner = found.map(Box::new);
                return Err(LockError::Lost { dir: self.dir.clone(), owner });
            }
            sleep(PATIENCE / 10);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.owner.leave(&self.dir); // while the lock is still held
    }
}

/// Makes this process the owner of the folder `dir`, in place of one that is gone.
fn own(owner: &Owner, dir: &Path, locks: &Locks) -> Result<(), LockError> {
    let path = owner::path(dir);
    let refused = |source| LockError::from(FileError::writing(&path)(source));
    loop {
        match owner.write(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            written => {
                written.map_err(refused)?;
                let again = File::options().write(true).create_new(true).open(&path);
                let twice = |_| Err(io::Error::other("a new file can be created twice"));
                return locks.unsupported.check(&path, again.map_or(Ok(()), twice));
            }
        }
        let Some(found) = Found::read(dir).map_err(refused)? else { continue };
        if found.owner.as_ref() == Some(owner) {
            return Ok(()); // a network took the request twice
        }
        if !found.is_gone(dir, locks.silence).map_err(refused)? {
            let owner = found.owner.map(Box::new);
            return Err(LockError::Held { dir: dir.to_owned(), owner });
        }
        found.remove(dir).map_err(refused)?;
    }
}

/// Whether a lock of the file `path`, which this process has, keeps others out: some network file systems grant it to
/// all.
fn probe(path: &Path) -> io::Result<()> {
    match File::options().write(true).open(path)?.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(()),
        Err(TryLockError::Error(source)) => Err(source),
        Ok(()) => Err(io::Error::other("a lock is granted twice")),
    }
}

/// A turn at what several processes write one after the other; it ends when this is dropped.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

/// How a run gets its locks, and the one that it already has.
#[derive(Clone, Debug)]
pub struct Locks {
    unsupported: Unsupported,
    silence: Duration,
    held: Option<Arc<Lock>>,
}

impl Default for Locks {
    fn default() -> Self {
        Self::new(Unsupported::Refuse, SILENCE)
    }
}

impl Locks {
    /// Locks with this rule for file systems that have none; an owner who has given no sign of life for the time
    /// `silence` has lost its folder.
    pub fn new(unsupported: Unsupported, silence: Duration) -> Self {
        Self { unsupported, silence, held: None }
    }

    /// The lock of the stage's folder `dir`, which need not be there yet.
    pub fn take(&self, dir: &Path) -> Result<Arc<Lock>, LockError> {
        match &self.held {
            Some(lock) if lock.dir == dir => Ok(lock.clone()),
            _ => Lock::take(dir, self).map(Arc::new),
        }
    }

    /// The same locks with one that [`Locks::take`] then gives again, to whoever runs the stage.
    #[must_use]
    pub fn holding(&self, lock: Arc<Lock>) -> Self {
        Self { held: Some(lock), ..self.clone() }
    }

    /// Waits for the turn of the file `path`.
    pub fn wait(&self, path: &Path) -> Result<Turn, LockError> {
        let file = create(path)?;
        loop {
            match file.lock() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => break self.unsupported.check(path, Err(source))?,
                Ok(()) => break,
            }
        }
        Ok(Turn { _file: file })
    }
}

/// Whether a process seems to have the folder `dir` now: for readers. Takes no lock and writes nothing.
pub fn is_held(dir: &Path) -> bool {
    Found::read(dir).is_ok_and(|found| found.is_some_and(|found| !found.seems_gone(SILENCE)))
}

/// Whether the lock of the folder `dir` has an owner's name: its holder's, or a killed process's.
pub(super) fn is_named(dir: &Path) -> bool {
    owner::path(dir).exists()
}

fn lock_path(dir: &Path) -> PathBuf {
    dir.with_extension("lock")
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
    use std::fs;

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
        fs::remove_file(owner::path(&dir)).unwrap();
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
        let killed = Owner { process: u32::MAX, ..Owner::this_process() };
        killed.write(&dir).unwrap();
        assert!(!is_held(&dir) && is_named(&dir));
        let _lock = Locks::default().take(&dir).unwrap();
        assert_eq!(Owner::read(&dir).unwrap().process, std::process::id());
    }

    #[test]
    fn an_owner_elsewhere_has_its_folder_until_it_is_silent() {
        let (_run, dir) = folder();
        drop(Locks::default().take(&dir).unwrap());
        let other = Owner { host: "elsewhere".into(), ..Owner::this_process() };
        other.write(&dir).unwrap();
        let short = Locks::new(Unsupported::Refuse, Duration::from_millis(500));
        for locks in [&Locks::default(), &short, &Locks::new(Unsupported::GoOn, SILENCE)] {
            let error = locks.take(&dir).unwrap_err();
            assert!(matches!(&error, LockError::Held { owner: Some(of), .. } if **of == other));
            let said =
                "(if it was killed, the folder is free ten minutes after its last sign of life)";
            assert!(error.to_string().ends_with(said), "{error}");
        }
        let life = other.clone().live(dir.clone(), Duration::from_millis(500));
        sleep(Duration::from_secs(1));
        assert!(matches!(short.take(&dir), Err(LockError::Held { .. })), "it gives signs of life");
        drop(life);
        sleep(Duration::from_secs(1));
        let lock = short.take(&dir).unwrap();
        lock.check().unwrap();
        other.leave(&dir);
        lock.check().unwrap();
    }

    #[test]
    fn who_has_lost_a_folder_is_told_to_whom_and_leaves_it_alone() {
        let (_run, dir) = folder();
        let lock = Locks::default().take(&dir).unwrap();
        let (path, text) = (owner::path(&dir), fs::read(owner::path(&dir)).unwrap());
        fs::remove_file(&path).unwrap();
        assert!(matches!(lock.check(), Err(LockError::Lost { owner: None, .. })));
        // Away for a moment, the file is not lost.
        std::thread::scope(|scope| {
            let checked = scope.spawn(|| lock.check());
            sleep(PATIENCE / 4);
            atomic::write_file(&path, &text).unwrap();
            checked.join().unwrap().unwrap();
        });
        fs::remove_file(&path).unwrap();
        let taker = Owner { host: "elsewhere".into(), ..Owner::this_process() };
        taker.write(&dir).unwrap();
        let error = lock.check().unwrap_err();
        let said = format!("ppo: taken over by process {} on elsewhere since ", taker.process);
        assert!(error.to_string().contains(&said), "{error}");
        drop(lock);
        assert_eq!(Owner::read(&dir), Some(taker));
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
        // Whoever has the system's lock alone, such as a `flock` in a shell, is no owner of the stage.
        let other = File::open(lock_path(&dir)).unwrap();
        other.lock().unwrap();
        assert!(!is_held(&dir));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                sleep(PATIENCE / 4);
                other.unlock().unwrap();
            });
            Locks::default().take(&dir).unwrap();
        });
    }

    #[test]
    fn a_file_system_without_locks_is_refused_unless_told_otherwise() {
        let path = Path::new("run/sft.lock");
        let unsupported = || Err(io::Error::from(io::ErrorKind::Unsupported));
        let error = Unsupported::Refuse.check(path, unsupported()).unwrap_err();
        assert!(matches!(error, LockError::Unsupported { .. }));
        let error = error.to_string();
        assert!(error.starts_with("run/sft.lock: cannot lock: unsupported"), "{error}");
        let advice = "; name a --run on a file system with locks (NFS 4, GPFS, Lustre mounted with `flock`), or, where \
                      no other process uses the folder, give --without-locks";
        assert!(error.ends_with(advice), "{error}");
        Unsupported::GoOn.check(path, unsupported()).unwrap();
        assert_eq!(Locks::default().unsupported, Unsupported::Refuse);
        // Told so, a lock that is there still counts.
        let (_run, dir) = folder();
        let _first = Locks::default().take(&dir).unwrap();
        let second = Locks::new(Unsupported::GoOn, SILENCE).take(&dir);
        assert!(matches!(second, Err(LockError::Held { .. })));
    }

    #[test]
    fn a_lock_that_all_are_granted_is_none() {
        let (_run, dir) = folder();
        let path = lock_path(&dir);
        let file = create(&path).unwrap();
        assert_eq!(probe(&path).unwrap_err().to_string(), "a lock is granted twice");
        file.lock().unwrap();
        probe(&path).unwrap();
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
