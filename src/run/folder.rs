//! A stage's folder: its settings, its metrics, its checkpoints, its result.
//!
//! ```text
//! settings.toml    what the folder was started with: settings, inputs, version, commit, numerics, device, seed
//! metrics.jsonl    one line a step or iteration; the same numbers in every run with one seed
//! timings.jsonl    seconds and tokens a second of the same steps
//! checkpoints/     the last two, each whole: step-00000100/{*.safetensors, *.adamw, state.json, manifest.json};
//!                  *.jsonl: what passes over a data set have given so far, one line a batch
//! model/           the result in Hugging Face's layout
//! summary.json     the result in figures; its presence says that the stage is finished
//! resume/          the last checkpoint of a finished ppo, from which it goes on if `ppo.iterations` grows
//! run.toml         what the command was given: model, data and all settings, for commands that read the run
//! took.json        seconds that it took in a grid or a reproduction, all tries together
//! failed.json      why its last try in a grid failed
//! events.out.tfevents.segment-rlhf   the logs for TensorBoard, if --tensorboard asks for them
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::agreement::{check_shared, compare_ranks};
pub use super::files::{FolderError, read_json, read_json_lines, write_file, write_json};
use super::files::{parse, read_if_there};
use super::given::GIVEN;
use super::lock::{self, Lock, Locks};
pub use super::log::{Log, Parts};
use super::record::{self, Difference};
use super::tensorboard::{self, Events};
use crate::atomic::{self, NewFile};
use crate::file_error::FileError;
use crate::ranks;
use crate::rng::Fnv1a;

/// The file whose presence says that a stage is finished.
pub const SUMMARY: &str = "summary.json";
const CHECKPOINTS: &str = "checkpoints";
const SETTINGS: &str = "settings.toml";
/// The last checkpoint of a finished stage that may grow.
const RESUME: &str = "resume";
/// A file in a stage's folder that says why its last try ended.
pub const FAILED: &str = "failed.json";
/// A file in a stage's folder that says what its tries took.
pub const TOOK: &str = "took.json";

/// A stage's folder, opened for the settings that it was started with.
pub struct StageFolder {
    dir: PathBuf,
    /// Keeps other processes out while the stage runs; a finished stage is read without it.
    lock: Option<Arc<Lock>>,
    /// What TensorBoard shows, if it is asked for.
    events: Option<Arc<Mutex<Events>>>,
    /// What a damaged checkpoint was, if the one before it was used instead.
    pub warnings: Vec<String>,
    /// What the number was that has grown since, as in [`StageFolder::open`].
    pub grown_from: Option<String>,
}

/// Files of one moment: models, optimizer states, counters.
#[derive(Serialize, Deserialize)]
pub struct Checkpoint {
    /// Optimizer steps or PPO iterations done.
    pub step: usize,
    /// Its folder.
    pub dir: PathBuf,
}

/// The sizes and hashes by which a damaged checkpoint is recognised.
#[derive(Serialize, Deserialize)]
struct Manifest {
    step: usize,
    files: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize, PartialEq)]
struct Entry {
    bytes: u64,
    fnv1a: String,
}

impl Entry {
    fn of(path: &Path) -> io::Result<Self> {
        let mut hash = Fnv1a::default();
        let bytes = hash.read(File::open(path)?)?;
        Ok(Self { bytes, fnv1a: format!("{:016x}", hash.finish()) })
    }
}

impl StageFolder {
    /// Opens `dir` for a stage with the given `record` (settings, inputs, device, seed), creating it if it is
    /// not there, and keeps it locked; what a kill left there goes. A folder that holds nothing but another record,
    /// since its stage was rejected before it began, gets the new one. A finished stage is opened whoever else
    /// has it open. If nothing but the number `grows` differs and is larger than it was, the stage goes on from its last
    /// checkpoint, even a finished one. Of several ranks, the first opens it for all.
    ///
    /// # Errors
    ///
    /// [`FolderError::OtherRank`] when the ranks have different records, and [`FolderError::NotShared`] when they do not
    /// see the same folder; [`FolderError::Lock`] when another process runs the stage; [`FolderError::OtherSettings`] when the folder was
    /// started with another record; [`FolderError::File`], [`FolderError::File`] and [`FolderError::Corrupt`].
    pub fn open(
        dir: PathBuf,
        record: &toml::Table,
        locks: &Locks,
        grows: Option<&str>,
    ) -> Result<Self, FolderError> {
        compare_ranks(&dir, record)?;
        let mut opened = None;
        let grown_from = ranks::of_first(|| {
            let folder = Self::open_alone(dir.clone(), record, locks, grows)?;
            let grown_from = folder.grown_from.clone();
            opened = Some(folder);
            Ok::<_, FolderError>(grown_from)
        })?;
        let folder = opened.unwrap_or(Self {
            dir,
            lock: None,
            events: None,
            warnings: Vec::new(),
            grown_from,
        });
        check_shared(&folder.dir)?;
        Ok(folder)
    }

    fn open_alone(
        dir: PathBuf,
        record: &toml::Table,
        locks: &Locks,
        grows: Option<&str>,
    ) -> Result<Self, FolderError> {
        let grown = |differences: &[Difference]| {
            let [only] = differences else { return false };
            let has_checkpoint = !is_finished(&dir) || dir.join(RESUME).exists();
            has_checkpoint && grows.is_some_and(|key| only.grows(key))
        };
        let lock = if is_settled(&dir)? && !grown(&differences(&dir, record)?) {
            None
        } else {
            match locks.take(&dir) {
                Ok(lock) => {
                    clear(&dir)?;
                    Some(lock)
                }
                Err(_) if is_finished(&dir) => None,
                Err(error) => return Err(error.into()),
            }
        };
        let path = dir.join(SETTINGS);
        let begun = read_if_there(&path)?.is_some() && has_begun(&dir)?;
        let differences = if begun { differences(&dir, record)? } else { Vec::new() };
        let grown = grown(&differences);
        if !differences.is_empty() && !grown {
            let differences = differences.iter().map(Difference::to_string).collect();
            return Err(FolderError::OtherSettings { dir, differences });
        }
        if !begun || grown {
            remove_file(&dir.join(SUMMARY))?;
            atomic::create_dir_all(&dir).map_err(FileError::writing(&dir))?;
            let text = toml::to_string(record).expect("a table serialises");
            write_file(&path, text.as_bytes())?;
        }
        if lock.is_some() && !is_finished(&dir) {
            take_up(&dir)?;
        }
        let grown_from = differences.into_iter().find_map(|grown| grown.there);
        Ok(Self { dir, lock, events: None, warnings: Vec::new(), grown_from })
    }

    /// The same, with TensorBoard's event file: at once for a finished stage, else beside its logs as they grow.
    ///
    /// # Errors
    ///
    /// [`FolderError::File`] and [`FolderError::Corrupt`].
    pub fn with_events(self) -> Result<Self, FolderError> {
        if !ranks::is_first() {
            return Ok(self);
        }
        let events = match is_finished(&self.dir) {
            true => ranks::apart(|| write_events(&self.dir)).map(|()| None)?,
            false => Some(Arc::new(Mutex::new(Events::new(self.dir.clone())))),
        };
        Ok(Self { events, ..self })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder, for one that is about to write into it.
    ///
    /// # Errors
    ///
    /// [`FolderError::Lock`] when another process has taken it over.
    pub fn to_write(&self) -> Result<&Path, FolderError> {
        self.lock.as_ref().map_or(Ok(()), |lock| lock.check())?;
        Ok(&self.dir)
    }

    /// The result of a finished stage.
    ///
    /// # Errors
    ///
    /// [`FolderError::File`] and [`FolderError::Corrupt`].
    pub fn summary<T: DeserializeOwned>(&self) -> Result<Option<T>, FolderError> {
        let path = self.dir.join(SUMMARY);
        read_if_there(&path)?.map(|bytes| parse(&path, &bytes)).transpose()
    }

    /// Marks the stage as finished, with its result, and removes its checkpoints.
    pub fn finish<T: Serialize>(&self, summary: &T) -> Result<(), FolderError> {
        if let Some(events) = &self.events {
            ranks::apart(|| events.lock().expect("no writer panics").catch_up())?;
        }
        self.sync_logs()?;
        write_json(&self.to_write()?.join(SUMMARY), summary)?;
        remove_checkpoints(&self.dir)?;
        ranks::wait();
        Ok(())
    }

    /// Lays the newest checkpoint aside, so that the stage can go on after its end.
    pub fn keep_last(&self) -> Result<(), FolderError> {
        let Some(last) = self.checkpoint_dirs()?.pop() else { return Ok(()) };
        let path = self.to_write()?.join(RESUME);
        Ok(atomic::rename_dir(&last, &path).map_err(FileError::writing(&path))?)
    }

    /// Makes the lines that were logged durable.
    fn sync_logs(&self) -> Result<(), FolderError> {
        for log in entries(self.to_write()?)?.iter().filter(|path| name(path).ends_with(".jsonl")) {
            atomic::sync(log).map_err(FileError::writing(log))?;
        }
        Ok(())
    }

    /// Writes the checkpoint of `step`, one file after the other, and keeps the one before it. Older ones go once it
    /// is durable.
    ///
    /// # Errors
    ///
    /// [`FolderError::File`] and [`FolderError::Lock`]; the earlier checkpoints are then intact.
    pub fn save(&self, step: usize, files: Vec<NewFile<'_>>) -> Result<(), FolderError> {
        if !ranks::is_first() {
            return Ok(());
        }
        let path = self.dir.join(CHECKPOINTS).join(format!("step-{step:08}"));
        self.sync_logs()?; // the lines that go with the checkpoint are on the disk before it
        let refused = |source| FileError::writing(&path)(source).into();
        let written = atomic::write_dir(&path, refused, |dir| {
            let mut manifest = Manifest { step, files: BTreeMap::new() };
            for (name, fill) in files {
                let file = dir.join(&name);
                let written = fill(&file).and_then(|()| {
                    atomic::sync(&file)?;
                    Entry::of(&file)
                });
                let entry = written.map_err(FileError::writing(&path.join(&name)))?;
                manifest.files.insert(name, entry);
            }
            write_json(&dir.join("manifest.json"), &manifest)?;
            self.to_write().map(drop) // now that the files are written, which takes time
        });
        if written.is_err() {
            self.to_write()?; // who takes a folder over removes what is half-written
        }
        written?;
        let dirs = self.checkpoint_dirs()?;
        for old in &dirs[..dirs.len().saturating_sub(2)] {
            atomic::remove_dir(old).map_err(FileError::writing(old))?;
        }
        Ok(())
    }

    /// The newest undamaged checkpoint; damaged ones are named in `warnings`.
    ///
    /// # Errors
    ///
    /// [`FolderError::NoGoodCheckpoint`] when there are checkpoints and all are damaged.
    pub fn latest(&mut self) -> Result<Option<Checkpoint>, FolderError> {
        let (checkpoint, warnings) = ranks::of_first(|| self.newest())?;
        self.warnings.extend(warnings);
        Ok(checkpoint)
    }

    /// The newest undamaged checkpoint, and what is to be told of damaged ones.
    fn newest(&self) -> Result<(Option<Checkpoint>, Vec<String>), FolderError> {
        let dirs = self.checkpoint_dirs()?;
        let mut damaged = Vec::new();
        for dir in dirs.iter().rev() {
            match read_checkpoint(dir) {
                Ok(checkpoint) => {
                    let other = format!("using step {}", checkpoint.step);
                    let warnings = damaged.iter().map(|what| format!("{what}; {other}"));
                    return Ok((Some(checkpoint), warnings.collect()));
                }
                Err(detail) => {
                    damaged.push(format!("checkpoint {} is damaged ({detail})", name(dir)));
                }
            }
        }
        if damaged.is_empty() {
            return Ok((None, Vec::new()));
        }
        let dir = self.dir.join(CHECKPOINTS);
        Err(FolderError::NoGoodCheckpoint { dir, detail: damaged.join("; ") })
    }

    /// Opens the log `name` and drops what follows its first `lines` lines, half a line for instance.
    ///
    /// # Errors
    ///
    /// [`FolderError::Corrupt`] when it has fewer lines; [`FolderError::File`].
    pub fn log(&self, name: &str, lines: usize) -> Result<Log, FolderError> {
        Ok(Log::open(self.to_write()?.join(name), lines)?.shown_in(self.events.clone()))
    }

    /// The batches that a pass over a data set has given so far, under the name `name`. They are valid for the
    /// folder's settings and inputs, and go with the checkpoints. What a kill left of a last batch is dropped.
    pub fn parts<T: DeserializeOwned>(&self, name: &str) -> Result<Parts<T>, FolderError> {
        let path = self.dir.join(CHECKPOINTS).join(format!("{name}.jsonl"));
        Ok(Parts::read(path)?.within(self.lock.clone()))
    }

    fn checkpoint_dirs(&self) -> Result<Vec<PathBuf>, FolderError> {
        let mut dirs = entries(&self.dir.join(CHECKPOINTS))?;
        dirs.retain(|path| name(path).starts_with("step-"));
        dirs.sort();
        Ok(dirs)
    }
}

/// What the folder `dir` holds, if it is there.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(FileError::reading(dir))?,
    };
    let paths: io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    Ok(paths.map_err(FileError::reading(dir))?)
}

fn name(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// Whether the stage in the folder `dir` is finished.
pub fn is_finished(dir: &Path) -> bool {
    dir.join(SUMMARY).exists()
}

/// Whether the stage in the folder `dir` is finished, nobody has it, and a kill left nothing in it: there is nothing
/// to do but to read it.
pub fn is_settled(dir: &Path) -> Result<bool, FolderError> {
    if !is_finished(dir) || lock::is_named(dir) || dir.join(CHECKPOINTS).exists() {
        return Ok(false);
    }
    Ok(!entries(dir)?.iter().any(|path| atomic::is_temporary(&name(path))))
}

/// Writes TensorBoard's event file of the finished stage in the folder `dir`, unless it is there.
pub fn write_events(dir: &Path) -> Result<(), FolderError> {
    tensorboard::derive(dir).map(drop)
}

/// Removes what a kill left half-written in the folder `dir`, and the checkpoints of a finished stage; for the holder
/// of its lock.
pub fn clear(dir: &Path) -> Result<(), FolderError> {
    for dir in [dir, &dir.join(CHECKPOINTS)] {
        atomic::remove_leftovers(dir).map_err(FileError::writing(dir))?;
    }
    if is_finished(dir) { remove_checkpoints(dir) } else { Ok(()) }
}

/// Removes the checkpoints of the stage in the folder `dir`, and what its passes over data sets have given so far.
pub fn remove_checkpoints(dir: &Path) -> Result<(), FolderError> {
    let checkpoints = dir.join(CHECKPOINTS);
    Ok(atomic::remove_dir(&checkpoints).map_err(FileError::writing(&checkpoints))?)
}

/// Whether the folder of a stage holds more than its settings and what is noted of a try that was rejected.
fn has_begun(dir: &Path) -> Result<bool, FolderError> {
    let begun = |name: &str| {
        !atomic::is_temporary(name) && ![SETTINGS, GIVEN, TOOK, FAILED].contains(&name)
    };
    Ok(entries(dir)?.iter().any(|path| begun(&name(path))))
}

/// What the stage in the folder `dir` was started with.
pub fn read_record(dir: &Path) -> Result<toml::Table, FolderError> {
    let missing = || FileError::reading(&dir.join(SETTINGS))(io::ErrorKind::NotFound.into());
    Ok(record_in(dir)?.ok_or_else(missing)?)
}

/// The same, if the folder has one.
fn record_in(dir: &Path) -> Result<Option<toml::Table>, FolderError> {
    let path = dir.join(SETTINGS);
    let Some(text) = read_if_there(&path)? else { return Ok(None) };
    let record = String::from_utf8_lossy(&text).parse();
    record.map(Some).map_err(|error: toml::de::Error| {
        let detail = error.to_string();
        FolderError::Corrupt { path, detail }
    })
}

/// Which program began a stage, as its `settings.toml` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The number of the stage's numerics.
    pub numerics: u32,
    /// The program's commit, if it was known.
    pub commit: Option<String>,
}

impl Origin {
    /// The origin of the stage in the folder `dir`.
    ///
    /// # Errors
    ///
    /// [`FolderError::File`], and [`FolderError::Corrupt`] for settings without the number.
    pub fn read(dir: &Path) -> Result<Self, FolderError> {
        let path = dir.join(SETTINGS);
        let text = fs::read_to_string(&path).map_err(FileError::reading(&path))?;
        toml::from_str(&text)
            .map_err(|error| FolderError::Corrupt { path, detail: error.to_string() })
    }
}

fn read_checkpoint(dir: &Path) -> Result<Checkpoint, String> {
    let read = |name: &str| fs::read(dir.join(name)).map_err(|error| format!("{name}: {error}"));
    let manifest: Manifest = serde_json::from_slice(&read("manifest.json")?)
        .map_err(|error| format!("manifest.json: {error}"))?;
    for (name, entry) in manifest.files {
        let found = Entry::of(&dir.join(&name)).map_err(|error| format!("{name}: {error}"))?;
        if found != entry {
            let (found, written) = (found.bytes, entry.bytes);
            return Err(format!("{name}: {found} bytes that are not the {written} written"));
        }
    }
    Ok(Checkpoint { step: manifest.step, dir: dir.to_owned() })
}

/// Puts the checkpoint that [`StageFolder::keep_last`] laid aside back among the others.
fn take_up(dir: &Path) -> Result<(), FolderError> {
    let kept = dir.join(RESUME);
    if !kept.exists() {
        return Ok(());
    }
    let Manifest { step, .. } = read_json(&kept.join("manifest.json"), "ppo")?;
    let path = dir.join(CHECKPOINTS).join(format!("step-{step:08}"));
    let moved = atomic::create_dir_all(&dir.join(CHECKPOINTS))
        .and_then(|()| atomic::rename_dir(&kept, &path));
    Ok(moved.map_err(FileError::writing(&path))?)
}

fn remove_file(path: &Path) -> Result<(), FolderError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::writing(path)(error).into())
        }
        _ => Ok(()),
    }
}

/// Each key in which the record in the folder `dir`, if it has one, differs from `new`, as [`record::differences`] says.
fn differences(dir: &Path, new: &toml::Table) -> Result<Vec<Difference>, FolderError> {
    Ok(record_in(dir)?.map_or_else(Vec::new, |old| record::differences(&old, new)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;
    use crate::run::lock::LockError;
    use tempfile::TempDir;

    /// The folder of a stage with the seed `seed`.
    fn open(run: &TempDir, seed: i64) -> Result<StageFolder, FolderError> {
        let record = toml::Table::from_iter([("seed".to_owned(), seed.into())]);
        StageFolder::open(run.path().join("sft"), &record, &Locks::default(), None)
    }

    fn save(folder: &StageFolder, step: usize) {
        let state = |path: &Path| fs::write(path, "state");
        folder.save(step, vec![("state.json".into(), Box::new(state))]).unwrap();
    }

    #[test]
    fn an_old_checkpoint_goes_after_the_new_one_is_durable() {
        let run = TempDir::new().unwrap();
        let folder = open(&run, 0).unwrap();
        folder.log("metrics.jsonl", 0).unwrap();
        (1..=2).for_each(|step| save(&folder, step));
        let steps = atomic::steps(|| save(&folder, 3));
        let checkpoint = [
            "sync metrics.jsonl",
            "sync state.json",
            "sync .manifest.json.ME.tmp",
            "rename .manifest.json.ME.tmp to manifest.json",
            "sync folder .step-00000003.ME.tmp",
            "sync folder .step-00000003.ME.tmp",
            "rename .step-00000003.ME.tmp to step-00000003",
            "sync folder checkpoints",
            "remove step-00000001",
        ];
        assert_eq!(steps, checkpoint);
        let steps = atomic::steps(|| folder.finish(&1).unwrap());
        let finish = [
            "sync metrics.jsonl",
            "sync .summary.json.ME.tmp",
            "rename .summary.json.ME.tmp to summary.json",
            "sync folder sft",
            "remove checkpoints",
        ];
        assert_eq!(steps, finish);
    }

    #[test]
    fn a_stage_that_has_not_begun_takes_other_settings() {
        let run = TempDir::new().unwrap();
        let dir = open(&run, 0).unwrap().dir().to_owned();
        for note in [TOOK, FAILED, ".metrics.jsonl.elsewhere-1.tmp"] {
            fs::write(dir.join(note), "{}").unwrap();
        }
        drop(open(&run, 1).unwrap());
        let settings = fs::read_to_string(dir.join(SETTINGS)).unwrap();
        assert_eq!(settings, "seed = 1\n");
        fs::write(dir.join("metrics.jsonl"), "").unwrap();
        assert!(matches!(open(&run, 2), Err(FolderError::OtherSettings { .. })));
    }

    #[test]
    fn a_stage_goes_on_from_its_last_checkpoint_when_its_number_grows() {
        let run = TempDir::new().unwrap();
        let dir = run.path().join("ppo");
        let record = |iterations: i64, clip: i64| {
            let pairs = [("iterations", iterations), ("clip", clip)];
            toml::Table::from_iter(pairs.map(|(key, value)| (key.to_owned(), value.into())))
        };
        let open = |iterations, clip| {
            let (record, grows) = (record(iterations, clip), Some("iterations"));
            StageFolder::open(dir.clone(), &record, &Locks::default(), grows)
        };
        let finish = |folder: &StageFolder, step: usize| {
            (step - 1..=step).for_each(|step| save(folder, step));
            folder.keep_last().unwrap();
            folder.finish(&step).unwrap();
        };
        finish(&open(4, 1).unwrap(), 4);
        let refused = |opened| matches!(opened, Err(FolderError::OtherSettings { .. }));
        assert!(refused(open(3, 1)) && refused(open(5, 2)) && is_finished(&dir));
        let mut folder = open(5, 1).unwrap();
        assert_eq!(folder.grown_from.as_deref(), Some("4"));
        assert_eq!(folder.latest().unwrap().map(|checkpoint| checkpoint.step), Some(4));
        assert_eq!(folder.summary::<usize>().unwrap(), None);
        finish(&folder, 5);
        drop(folder);
        let again = open(5, 1).unwrap();
        assert_eq!((again.grown_from.clone(), again.summary::<usize>().unwrap()), (None, Some(5)));
        assert!(is_settled(&dir).unwrap(), "what is laid aside is nothing that a kill left");
        // Without the checkpoint it cannot go on.
        fs::remove_dir_all(dir.join(RESUME)).unwrap();
        assert!(refused(open(6, 1)));
    }

    #[test]
    fn a_stage_has_one_runner_and_a_result_any_number_of_readers() {
        let run = TempDir::new().unwrap();
        let folder = open(&run, 0).unwrap();
        let held = |opened| matches!(opened, Err(FolderError::Lock(LockError::Held { .. })));
        assert!(held(open(&run, 0)));
        assert!(held(open(&run, 1)), "whatever its settings");
        save(&folder, 1);
        write_json(&folder.dir().join(SUMMARY), &7).unwrap();
        let reader = open(&run, 0).unwrap();
        assert_eq!(reader.summary::<u8>().unwrap(), Some(7));
        assert!(folder.dir().join(CHECKPOINTS).exists(), "they are the runner's to remove");
        folder.finish(&8).unwrap();
        drop(folder);
        // Read alone, a stage is not locked.
        let readers = [(); 2].map(|()| open(&run, 0).unwrap());
        assert!(readers.iter().all(|reader| reader.summary::<u8>().unwrap() == Some(8)));
        assert!(!lock::is_held(reader.dir()));
    }

    #[test]
    fn nothing_is_written_into_a_folder_that_another_process_has_taken_over() {
        let run = TempDir::new().unwrap();
        let mut folder = open(&run, 0).unwrap();
        let (mut log, mut parts) = (folder.log("a.jsonl", 0).unwrap(), folder.parts("b").unwrap());
        save(&folder, 1);
        let owner = run.path().join("sft.owner.json");
        let taken = fs::read_to_string(&owner).unwrap().replace(host::name(), "elsewhere");
        fs::write(&owner, taken).unwrap();
        // The new owner opens the log first of all.
        Log::open(folder.dir().join("a.jsonl"), 0).unwrap();
        log.write(&1).unwrap();
        let file = |path: &Path| fs::write(path, "state");
        let tries = [
            folder.save(2, vec![("state.json".into(), Box::new(file))]),
            folder.keep_last(),
            folder.finish(&1),
            folder.log("a.jsonl", 0).map(drop),
            parts.push(vec![1]),
            folder.to_write().map(drop),
        ];
        for (i, tried) in tries.into_iter().enumerate() {
            let lost = matches!(tried, Err(FolderError::Lock(LockError::Lost { .. })));
            assert!(lost, "the try {i} was let through");
        }
        assert_eq!(folder.latest().unwrap().map(|checkpoint| checkpoint.step), Some(1));
        assert!(!folder.dir().join(RESUME).exists() && !is_finished(folder.dir()));
        assert_eq!(fs::read(folder.dir().join("a.jsonl")).unwrap(), b"");
    }

    #[test]
    fn what_a_kill_left_in_a_finished_stage_goes() {
        let run = TempDir::new().unwrap();
        let folder = open(&run, 0).unwrap();
        folder.finish(&1).unwrap();
        let dir = folder.dir().to_owned();
        drop(folder);
        assert!(is_settled(&dir).unwrap());
        let killed = r#"{"host": "HOST", "boot": "BOOT", "process": 4294967295, "since": ""}"#;
        let killed = killed.replace("HOST", host::name()).replace("BOOT", host::boot());
        for left in [".took.json.elsewhere-1.tmp", "../sft.owner.json"] {
            fs::write(dir.join(left), &killed).unwrap();
            assert!(!is_settled(&dir).unwrap(), "{left}");
            open(&run, 0).unwrap();
            assert!(is_settled(&dir).unwrap(), "{left}");
        }
    }

    #[test]
    fn a_pass_goes_on_behind_its_last_whole_batch() {
        let run = TempDir::new().unwrap();
        let folder = open(&run, 0).unwrap();
        let path = folder.dir().join("checkpoints/scores.jsonl");
        let open = || folder.parts::<f64>("scores").unwrap();
        let mut parts = open();
        assert_eq!((parts.left(5, 2), parts.batches()), (Some(0..2), 0));
        assert!(!path.exists(), "a pass that has given nothing leaves nothing");
        let scores = [0.1 + 0.2, f64::MIN_POSITIVE, -1.0 / 3.0, 4.0, 5.0];
        parts.push(scores[..2].to_vec()).unwrap();
        parts.push(scores[2..4].to_vec()).unwrap();
        drop(parts);
        let text = fs::read_to_string(&path).unwrap();
        // A kill can leave half of a line, a power loss zeros.
        for left in ["[5.0", "[5.0]", "\0\0\0\0\n", "[5.0\n[6.0]\n"] {
            fs::write(&path, text.clone() + left).unwrap();
            let mut parts = open();
            assert_eq!((parts.left(5, 2), parts.batches()), (Some(4..5), 2), "{left:?}");
            parts.push(vec![scores[4]]).unwrap();
            assert_eq!(parts.left(5, 2), None);
            assert_eq!(open().into_items(), scores);
            assert_eq!(fs::read_to_string(&path).unwrap(), text.clone() + "[5.0]\n");
        }
        folder.finish(&1).unwrap();
        assert!(!path.exists());
    }
}
