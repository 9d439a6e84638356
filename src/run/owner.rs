//! Who has a stage's folder `DIR`: the file `DIR.owner.json`, for nodes that do not see each other's locks.
//!
//! It is created exclusively, whole or not at all. Its owner rewrites it every half minute, so that its time of
//! modification, by the clock of the file system, is the last sign of life. An owner is gone if its process has
//! ended on this start of this machine, or after ten minutes without a sign.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::{atomic, host};

/// How long an owner may give no sign of life before another process takes its folder over.
pub const SILENCE: Duration = Duration::from_secs(600);
/// Signs of life within that time.
const SIGNS: u32 = 20;

/// A process that has a stage's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields' names say it
pub struct Owner {
    pub host: String,
    /// The start of the machine, as in [`host::boot`].
    #[serde(default)]
    pub boot: String,
    pub process: u32,
    /// The process's own start, as in [`host::born`].
    #[serde(default)]
    pub born: u64,
    /// The Slurm job that it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<String>,
    pub since: String,
}

impl Owner {
    pub(super) fn this_process() -> Self {
        let process = std::process::id();
        Self {
            host: host::name().to_owned(),
            boot: host::boot().to_owned(),
            process,
            born: host::born(process).unwrap_or_default(),
            job: job(|name| std::env::var(name).ok()),
            since: chrono::Utc::now().format("%Y-%m-%d %H:%M:%S UTC").to_string(),
        }
    }

    /// The owner of the folder `dir`, if it is named.
    pub(super) fn read(dir: &Path) -> Option<Self> {
        Found::read(dir).ok()??.owner
    }

    /// Whether its process is numbered as this one is, so that this process can tell whether it runs.
    pub(super) fn is_here(&self) -> bool {
        (&self.host[..], &self.boot[..]) == (host::name(), host::boot())
    }

    fn runs(&self) -> bool {
        host::born(self.process) == Some(self.born)
    }

    /// Writes it down for the folder `dir`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if the folder has an owner.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).expect("a plain struct serialises");
        atomic::create_file(&path(dir), &text)
    }

    /// Removes it from the folder `dir`, if it is still the owner.
    pub(super) fn leave(&self, dir: &Path) {
        if Self::read(dir).as_ref() == Some(self) {
            let _ = fs::remove_file(path(dir));
        }
    }

    /// Gives a sign of life in the folder `dir`: by a write, since the file system dates that by its own clock.
    fn sign(&self, dir: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().read(true).write(true).open(path(dir))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        if serde_json::from_slice::<Self>(&text).is_ok_and(|owner| owner == *self) {
            file.rewind()?;
            file.write_all(&text[..1])?;
            file.sync_all()?;
        }
        Ok(())
    }

    /// Gives signs of life in the folder `dir` until what this returns is dropped.
    pub(super) fn live(self, dir: PathBuf, silence: Duration) -> Sender<()> {
        let (ends, ended) = mpsc::channel();
        std::thread::spawn(move || {
            while ended.recv_timeout(silence / SIGNS) == Err(RecvTimeoutError::Timeout) {
                let _ = self.sign(&dir); // the next one may succeed
            }
        });
        ends
    }
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let job = self.job.iter().map(|job| format!(" (Slurm job {job})")).collect::<String>();
        write!(f, "process {} on {}{job} since {}", self.process, self.host, self.since)
    }
}

/// The Slurm job that these variables of the environment name, a task of an array as `ARRAY_TASK`.
fn job(variable: impl Fn(&str) -> Option<String>) -> Option<String> {
    let task = variable("SLURM_ARRAY_JOB_ID").zip(variable("SLURM_ARRAY_TASK_ID"));
    task.map(|(array, task)| format!("{array}_{task}")).or_else(|| variable("SLURM_JOB_ID"))
}

/// An owner's file as it was read.
#[derive(PartialEq)]
pub(super) struct Found {
    text: Vec<u8>,
    modified: SystemTime,
    /// `None` if the file is none of this program's.
    pub(super) owner: Option<Owner>,
}

impl Found {
    /// The file of the folder `dir`, if it has one.
    pub(super) fn read(dir: &Path) -> io::Result<Option<Self>> {
        Self::at(&path(dir))
    }

    /// Opens the file for its times, too: a network file system may remember others.
    fn at(path: &Path) -> io::Result<Option<Self>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let owner = serde_json::from_slice(&text).ok();
        Ok(Some(Self { modified: file.metadata()?.modified()?, text, owner }))
    }

    /// Whether its process has ended, as far as this machine can tell.
    fn has_ended(&self) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.is_here() && !owner.runs())
    }

    fn was_silent(&self, now: SystemTime, silence: Duration) -> bool {
        now.duration_since(self.modified).is_ok_and(|time| time >= silence)
    }

    /// Whether the owner is gone, by the clock of the file system of the folder `dir`.
    pub(super) fn is_gone(&self, dir: &Path, silence: Duration) -> io::Result<bool> {
        Ok(self.has_ended() || self.was_silent(atomic::now(&path(dir))?, silence))
    }

    /// The same for a reader, who writes nothing and so has this machine's clock alone.
    pub(super) fn seems_gone(&self, silence: Duration) -> bool {
        self.has_ended() || self.was_silent(SystemTime::now(), silence)
    }

    /// Removes the file of an owner that is gone from the folder `dir`. If another process was quicker, what that wrote
    /// stays.
    pub(super) fn remove(&self, dir: &Path) -> io::Result<()> {
        let path = path(dir);
        if Self::at(&path)?.as_ref() != Some(self) {
            return Ok(());
        }
        let aside = atomic::aside(&path);
        match fs::rename(&path, &aside) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            moved => moved?,
        }
        if Self::at(&aside)?.as_ref() != Some(self) {
            // A file system without hard links has nothing better.
            let back = fs::hard_link(&aside, &path);
            if back.is_err() && !path.exists() {
                return fs::rename(&aside, &path);
            }
        }
        fs::remove_file(&aside)
    }
}

pub(super) fn path(dir: &Path) -> PathBuf {
    dir.with_extension("owner.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// A folder whose owner is this one, which was last heard of `seconds` ago.
    fn folder(owner: &Owner, seconds: u64) -> (TempDir, PathBuf, Found) {
        let run = TempDir::new().unwrap();
        let dir = run.path().join("sft");
        owner.write(&dir).unwrap();
        let file = File::options().write(true).open(path(&dir)).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        let found = Found::read(&dir).unwrap().unwrap();
        (run, dir, found)
    }

    fn elsewhere() -> Owner {
        Owner { host: "elsewhere".into(), ..Owner::this_process() }
    }

    #[test]
    fn an_owner_is_gone_with_its_process_or_after_ten_minutes_of_silence() {
        let me = Owner::this_process();
        let dead = [
            Owner { process: u32::MAX, ..me.clone() },
            Owner { born: me.born + 1, ..me.clone() }, // another process had the id before
        ];
        let other_start = Owner { boot: "another".into(), process: u32::MAX, ..me.clone() };
        let gone = |owner: &Owner, seconds| {
            let (_run, dir, found) = folder(owner, seconds);
            let gone = found.is_gone(&dir, SILENCE).unwrap();
            assert_eq!(found.seems_gone(SILENCE), gone);
            gone
        };
        for owner in [me, elsewhere(), other_start] {
            assert!(!gone(&owner, 590), "{owner}");
            assert!(gone(&owner, 610), "{owner}");
        }
        assert!(dead.iter().all(|owner| gone(owner, 0)));
    }

    #[test]
    fn a_folder_has_one_owner_whose_file_is_whole() {
        let (run, dir, _) = folder(&elsewhere(), 0);
        let error = Owner::this_process().write(&dir).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(Owner::read(&dir), Some(elsewhere()));
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 1);
        // Of 16 who would like to be it at once, one is.
        fs::remove_file(path(&dir)).unwrap();
        let won = std::thread::scope(|scope| {
            let owner = |process| Owner { process, ..elsewhere() };
            let tries = (0..16).map(|i| (owner(i), dir.clone()));
            let tries = tries.map(|(owner, dir)| scope.spawn(move || owner.write(&dir).is_ok()));
            let tries: Vec<_> = tries.collect();
            tries.into_iter().filter_map(|of| of.join().unwrap().then_some(())).count()
        });
        assert_eq!(won, 1);
    }

    #[test]
    fn of_two_who_judged_the_same_owner_the_second_leaves_the_first_alone() {
        let (run, dir, found) = folder(&elsewhere(), 3600);
        found.remove(&dir).unwrap();
        assert!(!path(&dir).exists());
        let first = Owner::this_process();
        first.write(&dir).unwrap();
        found.remove(&dir).unwrap();
        assert_eq!(Owner::read(&dir), Some(first));
        // An owner that was only asleep is left alone, too.
        let (_run, dir, found) = folder(&elsewhere(), 3600);
        found.owner.clone().unwrap().sign(&dir).unwrap();
        found.remove(&dir).unwrap();
        assert!(path(&dir).exists());
        assert_eq!(fs::read_dir(run.path()).unwrap().count(), 1);
    }

    #[test]
    fn signs_of_life_are_given_until_the_end_and_to_no_other_owner() {
        let (_run, dir, found) = folder(&elsewhere(), 3600);
        let modified = || Found::read(&dir).unwrap().unwrap().modified;
        Owner::this_process().sign(&dir).unwrap();
        assert_eq!(modified(), found.modified, "another's");
        let life =
            found.owner.clone().unwrap().live(dir.clone(), Duration::from_millis(20) * SIGNS);
        let start = std::time::Instant::now();
        while modified() == found.modified {
            assert!(start.elapsed() < Duration::from_secs(20));
        }
        assert_eq!(Found::read(&dir).unwrap().unwrap().text, found.text);
        drop(life);
        std::thread::sleep(Duration::from_millis(200));
        let last = modified();
        std::thread::sleep(Duration::from_millis(200));
        assert_eq!(modified(), last);
    }

    #[test]
    fn slurm_names_a_task_by_its_array() {
        let of = |variables: &[(&str, &str)]| {
            job(|name| Some(variables.iter().find(|(key, _)| *key == name)?.1.to_owned()))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("SLURM_JOB_ID", "7")]).unwrap(), "7");
        let task =
            [("SLURM_JOB_ID", "7"), ("SLURM_ARRAY_JOB_ID", "5"), ("SLURM_ARRAY_TASK_ID", "2")];
        assert_eq!(of(&task).unwrap(), "5_2");
        let owner = Owner { job: of(&task), ..elsewhere() };
        assert!(owner.to_string().contains(" on elsewhere (Slurm job 5_2) since "), "{owner}");
    }
}
