//! Files and folders that appear whole or not at all: written under a temporary name, then renamed.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// A file to be: its name, and what writes it to the path that it is given.
pub type NewFile<'a> = (String, Box<dyn FnOnce(&Path) -> io::Result<()> + 'a>);

/// Writes `bytes` to `path`: a reader finds the old content or the new, never a part.
///
/// # Errors
///
/// Whatever the system says, a full disk for instance; the old content is then untouched.
pub fn write_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_with(path, |path| fs::write(path, bytes))
}

/// The same with what `fill` writes to the temporary name that it is given.
///
/// # Errors
///
/// Those of `fill`, and whatever the system says; the old content is then untouched.
pub fn write_with(path: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    let temporary = sibling(path, "tmp");
    let _ = fs::remove_file(&temporary); // what a kill left
    let written = fill(&temporary).and_then(|()| File::open(&temporary)?.sync_all());
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

/// Fills a new folder by `fill` and then gives it the name `dir`, replacing a folder that is there.
///
/// # Errors
///
/// Those of `fill`, and whatever the system says, through `io`; `dir` is then untouched.
pub fn write_dir<E>(
    dir: &Path,
    io: impl Fn(io::Error) -> E,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let temporary = sibling(dir, "tmp");
    remove_dir(&temporary).and_then(|()| fs::create_dir_all(&temporary)).map_err(&io)?;
    if let Err(error) = fill(&temporary) {
        let _ = remove_dir(&temporary);
        return Err(error);
    }
    let old = sibling(dir, "old");
    let replace = || {
        remove_dir(&old)?;
        if dir.exists() {
            fs::rename(dir, &old)?;
        }
        fs::rename(&temporary, dir)?;
        remove_dir(&old)
    };
    replace().map_err(io)
}

/// Removes the folder `dir` if it is there.
///
/// # Errors
///
/// Whatever the system says, except that the folder is not there.
pub fn remove_dir(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// `path` with a dot before its name and `.suffix` behind it, in the same folder.
fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{suffix}"))
}
