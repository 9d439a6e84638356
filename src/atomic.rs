//! Files and folders that appear whole or not at all, whatever ends the program or the machine.
//!
//! The new content is written under a temporary name and synced, then renamed; then the folder is synced, and only then
//! is what it replaces removed. A temporary name carries host and process, `.NAME.HOST-PID.tmp`, so that no two
//! writers share one. Of several ranks, the first alone writes and removes; on the others these functions do nothing.
//! The next write of the same name removes what a process of this host left behind that was
//! killed; [`remove_leftovers`] removes it all, for whoever has a folder to itself.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use crate::{host, ranks};

/// A file to be: its name, and what writes it to the path that it is given.
pub type NewFile<'a> = (String, Box<dyn FnOnce(&Path) -> io::Result<()> + 'a>);

/// New content before its rename.
const NEW: &str = "tmp";
/// A folder that is being replaced.
const OLD: &str = "old";

/// Writes `bytes` to `path`: a reader finds the old content or the new, never a part.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_with(path, |path| fs::write(path, bytes))
}

/// Writes what `fill` puts under the temporary name that it is given.
pub fn write_with(path: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    if !ranks::is_first() {
        return Ok(());
    }
    remove_abandoned(path, NEW);
    let temporary = sibling(path, NEW);
    let _ = fs::remove_file(&temporary); // of an earlier process with this id
    let written = fill(&temporary)
        .and_then(|()| disk::sync(&temporary))
        .and_then(|()| disk::rename(&temporary, path));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.and_then(|()| disk::sync_folder(parent(path)))
}

/// Writes `bytes` to `path`, whole or not at all, unless there is something: of many writers, on whatever machines, one
/// succeeds.
///
/// # Errors
///
/// [`io::ErrorKind::AlreadyExists`] if there is something; whatever the system refuses.
pub fn create_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    [NEW, OLD].iter().for_each(|suffix| remove_abandoned(path, suffix));
    let temporary = unique(path, NEW);
    let written =
        fs::write(&temporary, bytes).and_then(|()| disk::sync(&temporary)).and_then(|()| {
            match fs::hard_link(&temporary, path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    create_in_place(path, bytes)
                }
                linked => linked,
            }
        });
    let _ = fs::remove_file(&temporary);
    written.and_then(|()| disk::sync_folder(parent(path)))
}

/// [`create_file`] for a file system without hard links: a kill can leave half of the file.
fn create_in_place(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

/// What time it is on the clock of the file system that holds `path`, or will: that of another machine, perhaps.
pub fn now(path: &Path) -> io::Result<SystemTime> {
    let temporary = unique(path, NEW);
    let time = File::create(&temporary).and_then(|mut file| {
        file.write_all(b"now")?;
        file.sync_all()?;
        file.metadata()?.modified()
    });
    let _ = fs::remove_file(&temporary);
    time
}

/// A name in the folder of `path` that nothing has, for what is about to go.
pub fn aside(path: &Path) -> PathBuf {
    unique(path, OLD)
}

/// Fills a new folder by `fill` and then gives it the name `dir`, replacing a folder that is there.
pub fn write_dir<E>(
    dir: &Path,
    io: impl Fn(io::Error) -> E,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    if !ranks::is_first() {
        return Ok(());
    }
    remove_abandoned(dir, NEW);
    let temporary = sibling(dir, NEW);
    create_dir_all(parent(dir))
        .and_then(|()| remove_dir(&temporary))
        .and_then(|()| fs::create_dir(&temporary))
        .map_err(&io)?;
    let written = fill(&temporary).and_then(|()| replace(dir, &temporary).map_err(io));
    if written.is_err() {
        let _ = fs::remove_dir_all(&temporary);
    }
    written
}

/// Gives the folder `new` the name `dir`.
fn replace(dir: &Path, new: &Path) -> io::Result<()> {
    disk::sync_folder(new)?;
    let old = sibling(dir, OLD);
    remove_dir(&old)?;
    if dir.exists() {
        disk::rename(dir, &old)?;
    }
    if let Err(error) = disk::rename(new, dir) {
        let _ = fs::rename(&old, dir);
        return Err(error);
    }
    disk::sync_folder(parent(dir))?;
    remove_abandoned(dir, OLD);
    remove_dir(&old)
}

/// Makes the folder `dir` and those above it that are not there, so that a power loss does not take them away.
pub fn create_dir_all(dir: &Path) -> io::Result<()> {
    if dir.as_os_str().is_empty() || dir.is_dir() || !ranks::is_first() {
        return Ok(());
    }
    create_dir_all(parent(dir))?;
    match fs::create_dir(dir) {
        Err(_) if dir.is_dir() => Ok(()), // another process was quicker
        made => made.and_then(|()| disk::sync_folder(parent(dir))),
    }
}

/// Removes the folder `dir` if it is there.
pub fn remove_dir(dir: &Path) -> io::Result<()> {
    if !ranks::is_first() {
        return Ok(());
    }
    match disk::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Gives the folder `from` the name `to`, in place of a folder of that name.
pub fn rename_dir(from: &Path, to: &Path) -> io::Result<()> {
    if !ranks::is_first() {
        return Ok(());
    }
    remove_dir(to)?;
    disk::rename(from, to)?;
    [from, to].iter().try_for_each(|path| disk::sync_folder(parent(path)))
}

/// Makes the content of `file` durable.
pub fn sync(file: &Path) -> io::Result<()> {
    if !ranks::is_first() {
        return Ok(());
    }
    disk::sync(file)
}

/// Whether a file of this name is one that is being written, or was when its process was killed.
pub fn is_temporary(name: &str) -> bool {
    let mut parts = name.rsplit('.');
    name.starts_with('.') && parts.next().is_some_and(|suffix| [NEW, OLD].contains(&suffix))
}

/// Removes everything in the folder `dir` that is half-written, whoever wrote it: for a process that has the folder
/// to itself.
pub fn remove_leftovers(dir: &Path) -> io::Result<()> {
    if !ranks::is_first() {
        return Ok(());
    }
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if is_temporary(&entry.file_name().to_string_lossy()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes what processes of this host that have ended since left of the temporary names of `path`; what cannot be
/// removed is in nobody's way.
fn remove_abandoned(path: &Path, suffix: &str) {
    let start = format!(".{}.{}-", name(path), host::name());
    let end = format!(".{suffix}");
    let writer = |name: &str| {
        let writer = name.strip_prefix(&start)?.strip_suffix(&end)?;
        writer.split('.').next()?.parse().ok()
    };
    for entry in fs::read_dir(parent(path)).into_iter().flatten().flatten() {
        let process: Option<u32> = writer(&entry.file_name().to_string_lossy());
        if process.is_some_and(|process| !host::runs(process)) {
            let _ = remove(&entry.path());
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// This process's temporary name for `path`, in the same folder.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let (name, host, process) = (name(path), host::name(), std::process::id());
    path.with_file_name(format!(".{name}.{host}-{process}.{suffix}"))
}

/// The same for one of several threads that write `path` at once.
fn unique(path: &Path, suffix: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    sibling(path, &format!("{count}.{suffix}"))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The operations whose order decides what a power loss leaves. Tests read what was done.
mod disk {
    use super::*;

    pub(super) fn sync(file: &Path) -> io::Result<()> {
        note(format_args!("sync {}", name(file)));
        File::open(file)?.sync_all()
    }

    pub(super) fn rename(from: &Path, to: &Path) -> io::Result<()> {
        note(format_args!("rename {} to {}", name(from), name(to)));
        fs::rename(from, to)
    }

    /// Makes the names in the folder `dir` durable, if the platform can open a folder.
    pub(super) fn sync_folder(dir: &Path) -> io::Result<()> {
        note(format_args!("sync folder {}", name(dir)));
        if !cfg!(unix) {
            return Ok(());
        }
        match File::open(dir)?.sync_all() {
            // Some network file systems have nothing to sync there, and say so.
            Err(error)
                if [io::ErrorKind::InvalidInput, io::ErrorKind::Unsupported]
                    .contains(&error.kind()) =>
            {
                Ok(())
            }
            synced => synced,
        }
    }

    pub(super) fn remove_dir(dir: &Path) -> io::Result<()> {
        fs::remove_dir_all(dir).inspect(|()| note(format_args!("remove {}", name(dir))))
    }

    #[cfg(not(test))]
    fn note(_: std::fmt::Arguments) {}

    #[cfg(test)]
    fn note(step: std::fmt::Arguments) {
        let writer = format!("{}-{}", host::name(), std::process::id());
        STEPS.with_borrow_mut(|steps| steps.push(step.to_string().replace(&writer, "ME")));
    }

    #[cfg(test)]
    thread_local! {
        pub(super) static STEPS: std::cell::RefCell<Vec<String>> = const { std::cell::RefCell::new(Vec::new()) };
    }
}

/// What `run` does to the disk, in order; this process's mark in temporary names is `ME`.
#[cfg(test)]
pub(crate) fn steps(run: impl FnOnce()) -> Vec<String> {
    disk::STEPS.take();
    run();
    disk::STEPS.take()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    #[test]
    fn a_file_is_durable_before_it_has_its_name_and_its_name_before_the_write_returns() {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("a.json");
        let here = format!("sync folder {}", name(folder.path()));
        let steps = steps(|| write_file(&path, b"new").unwrap());
        assert_eq!(steps, ["sync .a.json.ME.tmp", "rename .a.json.ME.tmp to a.json", &here]);
        assert_eq!(fs::read(path).unwrap(), b"new");
    }

    #[test]
    fn a_folder_is_removed_after_the_one_that_replaces_it_is_durable() {
        let folder = TempDir::new().unwrap();
        let dir = folder.path().join("model");
        let write = |bytes: &'static [u8]| {
            write_dir(&dir, |error| error, |dir| write_file(&dir.join("w"), bytes)).unwrap();
        };
        let here = format!("sync folder {}", name(folder.path()));
        let filled = [
            "sync .w.ME.tmp",
            "rename .w.ME.tmp to w",
            "sync folder .model.ME.tmp",
            "sync folder .model.ME.tmp",
        ];
        let first = ["rename .model.ME.tmp to model", &here];
        assert_eq!(steps(|| write(b"1")), [&filled[..], &first].concat());
        let second = [
            "rename model to .model.ME.old",
            "rename .model.ME.tmp to model",
            &here,
            "remove .model.ME.old",
        ];
        assert_eq!(steps(|| write(b"2")), [&filled[..], &second].concat());
        assert_eq!(fs::read(dir.join("w")).unwrap(), b"2");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn new_folders_are_durable_down_from_the_first() {
        let folder = TempDir::new().unwrap();
        let dir = folder.path().join("run/sft");
        let synced = [format!("sync folder {}", name(folder.path())), "sync folder run".into()];
        assert_eq!(steps(|| create_dir_all(&dir).unwrap()), synced);
        assert_eq!(steps(|| create_dir_all(&dir).unwrap()), [""; 0]);
        assert!(dir.is_dir());
    }

    #[test]
    fn a_write_that_fails_leaves_what_was_there() {
        let folder = TempDir::new().unwrap();
        let (path, dir) = (folder.path().join("a"), folder.path().join("d"));
        write_file(&path, b"old").unwrap();
        fs::create_dir(&dir).unwrap();
        let fail = |path: &Path| {
            fs::write(path, "half")?;
            Err(io::Error::other("full"))
        };
        assert_eq!(write_with(&path, fail).unwrap_err().to_string(), "full");
        let failed = write_dir(&dir, |error| error, |dir| fail(&dir.join("half")));
        assert_eq!(failed.unwrap_err().to_string(), "full");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }

    /// The id of a process that has ended.
    #[cfg(unix)]
    fn ended() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[cfg(unix)]
    #[test]
    fn a_write_removes_what_a_killed_process_left_and_touches_no_other_writer() {
        let folder = TempDir::new().unwrap();
        let left = |name: &str, host: &str, process: u32, suffix: &str| {
            let path = folder.path().join(format!(".{name}.{host}-{process}.{suffix}"));
            fs::create_dir(&path).unwrap();
            fs::write(path.join("half"), "half").unwrap();
            path
        };
        let (here, parent) = (host::name(), std::os::unix::process::parent_id());
        let gone = [left("m", here, ended(), NEW), left("m", here, ended(), OLD)];
        let kept = [
            left("m", here, parent, NEW),
            left("m", "elsewhere", ended(), NEW),
            left("m.json", here, ended(), NEW),
        ];
        write_dir(&folder.path().join("m"), |error| error, |_| Ok(())).unwrap();
        assert_eq!(gone.map(|path| path.exists()), [false; 2]);
        assert_eq!(kept.each_ref().map(|path| path.exists()), [true; 3]);
        remove_leftovers(folder.path()).unwrap();
        assert_eq!(kept.map(|path| path.exists()), [false; 3]);
        assert!(folder.path().join("m").exists());
        remove_leftovers(&folder.path().join("nowhere")).unwrap();
    }

    #[test]
    fn temporary_names_are_hidden_and_end_so() {
        for name in [".a.json.node-3.x-17.tmp", ".model.h-1.old", ".summary.json.tmp"] {
            assert!(is_temporary(name), "{name}");
        }
        for name in ["a.tmp", "model.old", ".gitignore", "metrics.jsonl", ".a.tmpx"] {
            assert!(!is_temporary(name), "{name}");
        }
    }
}
