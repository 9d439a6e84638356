//! A stage's folder: its settings, its metrics, its checkpoints, its result.
//!
//! ```text
//! settings.toml    what the folder was started with: settings, inputs, version, commit, numerics, device, seed
//! metrics.jsonl    one line a step or iteration; the same numbers in every run with one seed
//! timings.jsonl    seconds and tokens a second of the same steps
//! checkpoints/     the last two, each whole: step-00000100/{*.safetensors, *.adamw, state.json, manifest.json}
//! model/           the result in Hugging Face's layout
//! summary.json     the result in figures; its presence says that the stage is finished
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::atomic::{self, NewFile};
use crate::rng::Fnv1a;

/// Why a run folder could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// The system refused a read.
    #[error("{path}: cannot read: {source}; check its permissions")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused a write: a full disk, for instance.
    #[error(
        "{path}: cannot write: {source}; free space or mend what the system names, then run the same \
         command again: the last checkpoint is intact"
    )]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file in the folder is not what it should be.
    #[error(
        "{path}: not the expected content: {detail}; remove the folder of this file to run its stage again"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// The folder was started with other settings.
    #[error("{dir}: started with other settings:{}\nname another folder with --run, remove this one, or give the same settings", differences.iter().map(|d| format!("\n  {d}")).collect::<String>())]
    OtherSettings {
        /// The folder.
        dir: PathBuf,
        /// `key: there, here` for each key that differs.
        differences: Vec<String>,
    },
    /// A stage needs another one's result.
    #[error("{dir}: not there or not finished; run `segment-rlhf {command}` first")]
    Missing {
        /// The stage's folder.
        dir: PathBuf,
        /// The command that makes it.
        command: String,
    },
    /// Every checkpoint is damaged.
    #[error(
        "{dir}: no checkpoint can be used: {detail}; remove the folder to start the stage again"
    )]
    NoGoodCheckpoint {
        /// The folder of the checkpoints.
        dir: PathBuf,
        /// Which, and how.
        detail: String,
    },
}

/// A stage's folder, opened for the settings that it was started with.
pub struct StageFolder {
    dir: PathBuf,
    /// What a damaged checkpoint was, where the one before it was used instead.
    pub warnings: Vec<String>,
}

/// Files of one moment: models, optimizer states, counters.
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
    /// not there. A folder that holds nothing but another record, since its stage was refused before it
    /// began, gets the new one.
    ///
    /// # Errors
    ///
    /// [`FolderError::OtherSettings`] when the folder was started with another record;
    /// [`FolderError::Read`], [`FolderError::Write`] and [`FolderError::Corrupt`].
    pub fn open(dir: PathBuf, record: &toml::Table) -> Result<Self, FolderError> {
        let path = dir.join("settings.toml");
        if let Some(text) = read_if_there(&path)?
            && has_begun(&dir)?
        {
            let old: toml::Table =
                String::from_utf8_lossy(&text).parse().map_err(|error: toml::de::Error| {
                    FolderError::Corrupt { path: path.clone(), detail: error.to_string() }
                })?;
            let differences = differences(&old, record);
            if !differences.is_empty() {
                return Err(FolderError::OtherSettings { dir, differences });
            }
        } else {
            fs::create_dir_all(&dir).map_err(writing(&dir))?;
            let text = toml::to_string(record).expect("a table serialises");
            write_file(&path, text.as_bytes())?;
        }
        Ok(Self { dir, warnings: Vec::new() })
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The result of a finished stage, whose checkpoints go where a kill left them.
    ///
    /// # Errors
    ///
    /// [`FolderError::Read`], [`FolderError::Write`] and [`FolderError::Corrupt`].
    pub fn summary<T: DeserializeOwned>(&self) -> Result<Option<T>, FolderError> {
        let path = self.dir.join("summary.json");
        let Some(bytes) = read_if_there(&path)? else { return Ok(None) };
        let summary = parse(&path, &bytes)?;
        self.remove_checkpoints()?;
        Ok(Some(summary))
    }

    /// Marks the stage as finished, with its result, and removes its checkpoints.
    ///
    /// # Errors
    ///
    /// [`FolderError::Write`].
    pub fn finish<T: Serialize>(&self, summary: &T) -> Result<(), FolderError> {
        write_json(&self.dir.join("summary.json"), summary)?;
        self.remove_checkpoints()
    }

    fn remove_checkpoints(&self) -> Result<(), FolderError> {
        let checkpoints = self.dir.join("checkpoints");
        atomic::remove_dir(&checkpoints).map_err(writing(&checkpoints))
    }

    /// Writes the checkpoint of `step`, one file after the other, and keeps the one before it.
    ///
    /// # Errors
    ///
    /// [`FolderError::Write`]; the earlier checkpoints are then intact.
    pub fn save(&self, step: usize, files: Vec<NewFile<'_>>) -> Result<(), FolderError> {
        let checkpoints = self.dir.join("checkpoints");
        let path = checkpoints.join(format!("step-{step:08}"));
        // The lines that go with the checkpoint are on the disk before it.
        for log in entries(&self.dir)?.iter().filter(|path| name(path).ends_with(".jsonl")) {
            File::open(log).and_then(|file| file.sync_all()).map_err(writing(log))?;
        }
        fs::create_dir_all(&checkpoints).map_err(writing(&checkpoints))?;
        atomic::write_dir(&path, writing(&path), |dir| {
            let mut manifest = Manifest { step, files: BTreeMap::new() };
            for (name, fill) in files {
                let file = dir.join(&name);
                let written = fill(&file).and_then(|()| {
                    File::open(&file)?.sync_all()?;
                    Entry::of(&file)
                });
                let entry = written.map_err(writing(&path.join(&name)))?;
                manifest.files.insert(name, entry);
            }
            write_json(&dir.join("manifest.json"), &manifest)
        })?;
        let dirs = self.checkpoint_dirs()?;
        let kept = &dirs[dirs.len().saturating_sub(2)..];
        // Older ones, and what a kill left half-written.
        let is_checkpoint =
            |path: &PathBuf| name(path).trim_start_matches('.').starts_with("step-");
        let all = entries(&checkpoints)?;
        for old in all.iter().filter(|path| is_checkpoint(path) && !kept.contains(path)) {
            atomic::remove_dir(old).map_err(writing(old))?;
        }
        Ok(())
    }

    /// The newest undamaged checkpoint; damaged ones are named in `warnings`.
    ///
    /// # Errors
    ///
    /// [`FolderError::NoGoodCheckpoint`] when there are checkpoints and all are damaged.
    pub fn latest(&mut self) -> Result<Option<Checkpoint>, FolderError> {
        let dirs = self.checkpoint_dirs()?;
        let mut damaged = Vec::new();
        for dir in dirs.iter().rev() {
            match read_checkpoint(dir) {
                Ok(checkpoint) => {
                    let other = format!("using step {}", checkpoint.step);
                    self.warnings.extend(damaged.iter().map(|what| format!("{what}; {other}")));
                    return Ok(Some(checkpoint));
                }
                Err(detail) => {
                    damaged.push(format!("checkpoint {} is damaged ({detail})", name(dir)));
                }
            }
        }
        if damaged.is_empty() {
            return Ok(None);
        }
        let dir = self.dir.join("checkpoints");
        Err(FolderError::NoGoodCheckpoint { dir, detail: damaged.join("; ") })
    }

    /// Opens the log `name` and drops what stands behind its first `lines` lines, half a line for instance.
    ///
    /// # Errors
    ///
    /// [`FolderError::Corrupt`] when it has fewer lines; [`FolderError::Read`] and [`FolderError::Write`].
    pub fn log(&self, name: &str, lines: usize) -> Result<Log, FolderError> {
        let path = self.dir.join(name);
        let text = read_if_there(&path)?.unwrap_or_default();
        let whole =
            text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let kept: Vec<&[u8]> = whole.take(lines).collect();
        if kept.len() < lines {
            let detail =
                format!("{} lines, but the checkpoint was written after {lines}", kept.len());
            return Err(FolderError::Corrupt { path, detail });
        }
        write_file(&path, &kept.concat())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(writing(&path))?;
        Ok(Log { path, file, lines })
    }

    fn checkpoint_dirs(&self) -> Result<Vec<PathBuf>, FolderError> {
        let mut dirs = entries(&self.dir.join("checkpoints"))?;
        dirs.retain(|path| name(path).starts_with("step-"));
        dirs.sort();
        Ok(dirs)
    }
}

/// What the folder `dir` holds, if it is there.
fn entries(dir: &Path) -> Result<Vec<PathBuf>, FolderError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(reading(dir))?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(reading(dir))).collect()
}

fn name(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// Whether the folder of a stage holds more than its settings, or than the half that a kill left of them.
fn has_begun(dir: &Path) -> Result<bool, FolderError> {
    let settings = ["settings.toml", ".settings.toml.tmp"];
    Ok(entries(dir)?.iter().any(|path| !settings.contains(&&*name(path))))
}

/// A file of JSON lines that grows.
pub struct Log {
    path: PathBuf,
    file: File,
    lines: usize,
}

impl Log {
    /// Appends one line.
    ///
    /// # Errors
    ///
    /// [`FolderError::Write`].
    pub fn write<T: Serialize>(&mut self, line: &T) -> Result<(), FolderError> {
        let mut text = serde_json::to_string(line).expect("a plain struct serialises");
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(writing(&self.path))?;
        self.lines += 1;
        Ok(())
    }

    /// Lines written so far.
    pub fn lines(&self) -> usize {
        self.lines
    }
}

/// Which program began a stage, as its `settings.toml` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The number of the stage's numerics.
    pub numerics: u32,
    /// The program's commit, where it was known.
    pub commit: Option<String>,
}

impl Origin {
    /// That of the stage in the folder `dir`.
    ///
    /// # Errors
    ///
    /// [`FolderError::Read`], and [`FolderError::Corrupt`] for settings without the number.
    pub fn read(dir: &Path) -> Result<Self, FolderError> {
        let path = dir.join("settings.toml");
        let text = fs::read_to_string(&path).map_err(reading(&path))?;
        toml::from_str(&text)
            .map_err(|error| FolderError::Corrupt { path, detail: error.to_string() })
    }
}

/// Writes `value` as JSON to `path`, whole or not at all.
///
/// # Errors
///
/// [`FolderError::Write`].
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), FolderError> {
    write_file(path, &serde_json::to_vec_pretty(value).expect("a plain struct serialises"))
}

/// Writes `bytes` to `path`, whole or not at all.
///
/// # Errors
///
/// [`FolderError::Write`].
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    atomic::write_file(path, bytes).map_err(writing(path))
}

/// Reads a file of JSON Lines.
///
/// # Errors
///
/// [`FolderError::Read`], and [`FolderError::Corrupt`] with the line.
pub fn read_json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, FolderError> {
    let parse = |(number, line): (usize, io::Result<String>)| {
        serde_json::from_str(&line.map_err(reading(path))?).map_err(|error| FolderError::Corrupt {
            path: path.to_owned(),
            detail: format!("line {}: {error}", number + 1),
        })
    };
    BufReader::new(File::open(path).map_err(reading(path))?)
        .lines()
        .enumerate()
        .map(parse)
        .collect()
}

/// Reads JSON from `path`; `command` is what makes the file where it is missing.
///
/// # Errors
///
/// [`FolderError::Missing`], [`FolderError::Read`] and [`FolderError::Corrupt`].
pub fn read_json<T: DeserializeOwned>(path: &Path, command: &str) -> Result<T, FolderError> {
    let bytes = read_if_there(path)?.ok_or_else(|| FolderError::Missing {
        dir: path.to_owned(),
        command: command.to_owned(),
    })?;
    parse(path, &bytes)
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, FolderError> {
    serde_json::from_slice(bytes)
        .map_err(|error| FolderError::Corrupt { path: path.to_owned(), detail: error.to_string() })
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, FolderError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(reading(path)(source)),
    }
}

fn reading(path: &Path) -> impl Fn(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Read { path: path.clone(), source }
}

fn writing(path: &Path) -> impl Fn(io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Write { path: path.clone(), source }
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

/// Each key in which two tables differ, with both values; the program's version and commit may differ.
fn differences(old: &toml::Table, new: &toml::Table) -> Vec<String> {
    fn flatten(prefix: &str, value: &toml::Value, into: &mut BTreeMap<String, String>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    let path =
                        if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    flatten(&path, value, into);
                }
            }
            value => {
                into.insert(prefix.to_owned(), value.to_string());
            }
        }
    }
    let flat = |table: &toml::Table| {
        let mut flat = BTreeMap::new();
        flatten("", &toml::Value::Table(table.clone()), &mut flat);
        flat.remove("version");
        flat.remove("commit");
        flat
    };
    let (old, new) = (flat(old), flat(new));
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort();
    keys.dedup();
    let show = |value: Option<&String>| value.cloned().unwrap_or_else(|| "absent".into());
    keys.iter()
        .filter(|key| old.get(**key) != new.get(**key))
        .map(|key| format!("{key}: {} there, {} here", show(old.get(*key)), show(new.get(*key))))
        .collect()
}
