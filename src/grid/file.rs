//! Experiment files: one base, and arms that name what they change.
//!
//! ```toml
//! title = "Table 1: what one action is"
//! paper_table = 1                # optional: the table of the paper that it stands beside
//! note = "…"                     # optional: what to know about it
//! base = "quick.toml"            # optional: a settings file over the defaults, relative to this file
//! ours = ["short"]               # optional: arms that the paper does not have
//!
//! [arms]
//! token = { method = "token" }
//! short = { method = "token", ppo.iterations = 6 }
//!
//! [axes]                         # optional: every arm with every value; without arms, the values alone
//! "task.pairs" = [1000, 4000]    # token, pairs 1000; token, pairs 4000; short, pairs 1000; …
//! ```
//!
//! A file of `include = ["table1.toml", …]` stands for those files, relative to it.
//!
//! Settings are laid over each other in this order: the defaults, the base, the user's settings files, the
//! user's `--set`, the arm. The seed is no arm's: every arm runs with the same seeds.

use std::fmt;
use std::fs;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use toml::{Spanned, Table, Value};

use super::results::FORMAT;
use crate::data::error::DataError;
use crate::device::DeviceError;
use crate::model::CheckpointError;
use crate::run::error::{Error, wrap_stage_errors};
use crate::run::folder::FolderError;
use crate::settings::{Settings, SettingsError, line_at, merge};

/// An experiment, with the settings of every arm resolved but for the seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    /// The stem of its file.
    pub name: String,
    /// What it shows.
    pub title: String,
    /// What to know about it.
    pub note: Option<String>,
    /// The paper's table that it stands beside.
    pub paper_table: Option<u32>,
    /// Its rows.
    pub arms: Vec<PlannedArm>,
}

/// One row of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedArm {
    /// Its name, with its place on each axis.
    pub name: String,
    /// Whether the paper has no such arm.
    pub ours: bool,
    /// What it changes.
    #[serde(with = "as_toml")]
    pub changes: Table,
    /// All its settings.
    #[serde(with = "as_toml")]
    pub settings: Settings,
}

/// Settings as a text of TOML in a file of JSON, which knows no infinite cutoff.
mod as_toml {
    use serde::de::{DeserializeOwned, Error};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        toml::to_string(value).expect("settings serialise").serialize(to)
    }

    pub fn deserialize<'de, T: DeserializeOwned, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        toml::from_str(&String::deserialize(from)?).map_err(Error::custom)
    }
}

wrap_stage_errors!(GridError: FolderError, CheckpointError, DataError, DeviceError);

/// Why an experiment file was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GridError {
    /// A file could not be read.
    #[error("{path}: cannot read: {source}; {wanted}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What it was read for.
        wanted: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// TOML that does not parse, such as two arms of one name; an unknown key; a value of the wrong type.
    #[error("{at}: {message}")]
    Toml {
        /// The line.
        at: Place,
        /// What the parser said.
        message: String,
    },
    /// A stage failed, or a file of it could not be used.
    #[error(transparent)]
    Stage(#[from] Error),
    /// A base file, the user's settings, or those of an arm were refused.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A folder without a grid.
    #[error(
        "{dir}: no grid.json; name the folder that `segment-rlhf ablate` or `reproduce` wrote into"
    )]
    NoGrid {
        /// The folder.
        dir: PathBuf,
    },
    /// A grid without a finished cell.
    #[error(
        "{dir}: no cell is finished, so there is nothing to report; run `segment-rlhf ablate`, and see \
         `segment-rlhf status` for what failed"
    )]
    NothingFinished {
        /// The folder.
        dir: PathBuf,
    },
    /// A grid that another version of the program wrote.
    #[error(
        "{path}: format {found}, but this program reads format {FORMAT}; use the program that wrote it, or another --run"
    )]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// A folder that `reproduce` of an earlier version wrote.
    #[error(
        "{dir}: an earlier version's `reproduce` wrote here, with stages in seed-N, which this program does not read; \
         name another --run, or remove the folder"
    )]
    EarlierLayout {
        /// The folder.
        dir: PathBuf,
    },
    /// Cells ended with errors; the others are finished.
    #[error(
        "{failed} of {of} cells failed, the first one with: {first}\nrun the same command again to try them again; \
         `segment-rlhf status` tells all"
    )]
    Cells {
        /// How many.
        failed: usize,
        /// Of how many.
        of: usize,
        /// The first error.
        first: String,
    },
    /// Neither arms, nor axes, nor other files.
    #[error(
        "{path}: no experiment; give [arms] or [axes], or include = [\"FILE\"] with other experiment files"
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// An axis without values.
    #[error("{at}: the axis {axis:?} has no values; give at least one")]
    EmptyAxis {
        /// The line.
        at: Place,
        /// The setting.
        axis: String,
    },
    /// `ours` names an arm that is not there.
    #[error("{at}: `ours` names {arm:?}, but the arms are {arms:?}")]
    NoSuchArm {
        /// The line.
        at: Place,
        /// The name.
        arm: String,
        /// Those that are there.
        arms: Vec<String>,
    },
    /// An arm or an axis that sets what holds for the whole grid.
    #[error(
        "{at}: {whose}: `{key}` holds for all arms; give --seed, --seeds and --jobs on the command line"
    )]
    NotOfAnArm {
        /// The line.
        at: Place,
        /// The arm or the axis.
        whose: String,
        /// The setting.
        key: &'static str,
    },
    /// A file that includes others and has something of its own.
    #[error(
        "{at}: `{key}` beside `include`; a file that includes others has no experiment of its own"
    )]
    BesideInclude {
        /// The line.
        at: Place,
        /// What stands beside.
        key: &'static str,
    },
    /// A file that includes itself, by way of others or not.
    #[error("{at}: {path} includes itself; take one of them out")]
    Cycle {
        /// The line that closes the circle.
        at: Place,
        /// The file.
        path: PathBuf,
    },
    /// Two experiments of one name.
    #[error(
        "{path}: a second experiment {name:?}, after {first}; the stem of the file is its name, \
         so rename one, or include it once"
    )]
    SameName {
        /// The second file.
        path: PathBuf,
        /// The name.
        name: String,
        /// The first file.
        first: PathBuf,
    },
    /// Two arms that would run the same.
    #[error(
        "{at}: {arm:?} has the same settings as {first:?}; take one of them out or change what it sets"
    )]
    SameSettings {
        /// The line of the second.
        at: Place,
        /// The second.
        arm: String,
        /// The first.
        first: String,
    },
}

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// The experiments of the files `paths` and of those that they include, in their order; `overlays` and `sets` are
/// the user's, as [`Settings::resolve`] takes them.
///
/// # Errors
///
/// [`GridError`]; every file and every arm is checked.
pub fn read(
    paths: &[impl AsRef<Path>],
    overlays: &[(String, String)],
    sets: &[String],
) -> Result<Vec<Planned>, GridError> {
    let mut reader = Reader { overlays, sets, open: Vec::new(), found: Vec::new() };
    for path in paths {
        reader.read(path.as_ref(), None)?;
    }
    Ok(reader.found.into_iter().map(|(_, planned)| planned).collect())
}

/// What stands in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    title: String,
    note: Option<String>,
    paper_table: Option<Spanned<u32>>,
    base: Option<Spanned<PathBuf>>,
    ours: Option<Spanned<Vec<Spanned<String>>>>,
    arms: Option<Spanned<Entries<Table>>>,
    axes: Option<Spanned<Entries<Vec<Value>>>>,
    include: Option<Vec<Spanned<PathBuf>>>,
}

/// The entries of a table in their order, each key with its place.
struct Entries<T>(Vec<(Spanned<String>, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Entries<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Entries<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(InOrder(PhantomData))
    }
}

/// An arm before its settings are resolved: what it changes, one step after the other.
#[derive(Clone)]
struct Draft {
    /// Its name before any axis.
    own: String,
    name: String,
    steps: Vec<Step>,
}

#[derive(Clone)]
struct Step {
    /// The arm or the axis, for errors.
    whose: String,
    at: Place,
    changes: Table,
}

struct Reader<'a> {
    overlays: &'a [(String, String)],
    sets: &'a [String],
    /// The files that are being read, each included by the one before.
    open: Vec<PathBuf>,
    /// The experiments, each with its file.
    found: Vec<(PathBuf, Planned)>,
}

impl Reader<'_> {
    /// Reads `path`, which is included at `from`.
    fn read(&mut self, path: &Path, from: Option<Place>) -> Result<(), GridError> {
        let wanted = || match &from {
            None => "expected an experiment file, such as experiments/table1.toml".to_owned(),
            Some(at) => format!("{at} includes it"),
        };
        let failed = |source| GridError::Read { path: path.to_owned(), wanted: wanted(), source };
        let text = fs::read_to_string(path).map_err(failed)?;
        let canonical = path.canonicalize().map_err(failed)?;
        if let Some(at) = from.filter(|_| self.open.contains(&canonical)) {
            return Err(GridError::Cycle { at, path: path.to_owned() });
        }
        let place = |at: usize| Place { path: path.to_owned(), line: line_at(&text, at) };
        let mut file: File = toml::from_str(&text).map_err(|error| GridError::Toml {
            at: place(error.span().map_or(0, |span| span.start)),
            message: error.message().to_owned(),
        })?;
        let Some(include) = file.include.take() else {
            let planned = self.plan(path, file, place)?;
            let same = |(_, other): &&(PathBuf, Planned)| other.name == planned.name;
            if let Some((first, _)) = self.found.iter().find(same) {
                let (path, first) = (path.to_owned(), first.clone());
                return Err(GridError::SameName { path, name: planned.name, first });
            }
            self.found.push((path.to_owned(), planned));
            return Ok(());
        };
        let beside = [
            ("paper_table", file.paper_table.map(|value| value.span())),
            ("base", file.base.map(|value| value.span())),
            ("ours", file.ours.map(|value| value.span())),
            ("arms", file.arms.map(|value| value.span())),
            ("axes", file.axes.map(|value| value.span())),
        ];
        if let Some((key, span)) = beside.into_iter().find_map(|(key, span)| Some((key, span?))) {
            return Err(GridError::BesideInclude { at: place(span.start), key });
        }
        if include.is_empty() {
            return Err(GridError::Empty { path: path.to_owned() });
        }
        self.open.push(canonical);
        for other in include {
            self.read(&beside_file(path, other.get_ref()), Some(place(other.span().start)))?;
        }
        self.open.pop();
        Ok(())
    }

    /// The experiment of a file that includes no others.
    fn plan(
        &self,
        path: &Path,
        file: File,
        place: impl Fn(usize) -> Place,
    ) -> Result<Planned, GridError> {
        let mut overlays = Vec::new();
        if let Some(base) = &file.base {
            let own = beside_file(path, base.get_ref());
            let text = fs::read_to_string(&own).map_err(|source| GridError::Read {
                path: own.clone(),
                wanted: format!("{} names it as base", place(base.span().start)),
                source,
            })?;
            overlays.push((own.display().to_string(), text));
        }
        overlays.extend_from_slice(self.overlays);
        let base = Settings::resolve(&overlays, self.sets)?;

        let arms = file.arms.map_or_else(Vec::new, |arms| arms.into_inner().0);
        let axes = file.axes.map_or_else(Vec::new, |axes| axes.into_inner().0);
        if arms.is_empty() && axes.is_empty() {
            return Err(GridError::Empty { path: path.to_owned() });
        }
        let drafts = drafts(arms, axes, &place)?;
        let ours = file.ours.map_or_else(Vec::new, Spanned::into_inner);
        for arm in &ours {
            let name = arm.get_ref();
            if !drafts.iter().any(|draft| draft.own == *name || draft.name == *name) {
                let arms = drafts.iter().map(|draft| draft.name.clone()).collect();
                let at = place(arm.span().start);
                return Err(GridError::NoSuchArm { at, arm: name.clone(), arms });
            }
        }
        let mut planned: Vec<PlannedArm> = Vec::new();
        for Draft { own, name, steps } in drafts {
            let (mut changes, mut settings) = (Table::new(), base.clone());
            for Step { whose, at, changes: step } in &steps {
                settings = settings.with(&format!("{at}: {whose}"), step)?;
                merge(&mut changes, step.clone());
            }
            if let Some(first) = planned.iter().find(|other| other.settings == settings) {
                let at = steps.last().expect("an arm has a step").at.clone();
                return Err(GridError::SameSettings { at, arm: name, first: first.name.clone() });
            }
            let ours = ours.iter().any(|arm| [&own, &name].contains(&arm.get_ref()));
            planned.push(PlannedArm { name, ours, changes, settings });
        }
        Ok(Planned {
            name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            title: file.title,
            note: file.note,
            paper_table: file.paper_table.map(Spanned::into_inner),
            arms: planned,
        })
    }
}

/// Every arm with every value of every axis.
fn drafts(
    arms: Vec<(Spanned<String>, Table)>,
    axes: Vec<(Spanned<String>, Vec<Value>)>,
    place: &impl Fn(usize) -> Place,
) -> Result<Vec<Draft>, GridError> {
    let step = |whose: String, key: &Spanned<String>, changes: Table| {
        let at = place(key.span().start);
        match ["seed", "reproduce"].into_iter().find(|&key| changes.contains_key(key)) {
            Some(key) => Err(GridError::NotOfAnArm { at, whose, key }),
            None => Ok(Step { whose, at, changes }),
        }
    };
    let mut drafts = Vec::new();
    for (key, changes) in arms {
        let name = key.get_ref().clone();
        let steps = vec![step(format!("arm {name:?}"), &key, changes)?];
        drafts.push(Draft { own: name.clone(), name, steps });
    }
    if drafts.is_empty() {
        drafts.push(Draft { own: String::new(), name: String::new(), steps: Vec::new() });
    }
    for (key, values) in axes {
        let axis = key.get_ref();
        if values.is_empty() {
            return Err(GridError::EmptyAxis { at: place(key.span().start), axis: axis.clone() });
        }
        let (sections, last) = axis.rsplit_once('.').unwrap_or(("", axis));
        let mut points = Vec::new();
        for value in values {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let mut changes = Table::from_iter([(last.to_owned(), value)]);
            for section in sections.rsplit('.').filter(|section| !section.is_empty()) {
                changes = Table::from_iter([(section.to_owned(), changes.into())]);
            }
            points
                .push((format!("{last} {shown}"), step(format!("axis {axis:?}"), &key, changes)?));
        }
        let cross = |draft: &Draft| -> Vec<Draft> {
            let at = |(point, step): &(String, Step)| {
                let mut crossed = draft.clone();
                crossed.name +=
                    &if draft.name.is_empty() { point.clone() } else { format!(", {point}") };
                crossed.steps.push(step.clone());
                crossed
            };
            points.iter().map(at).collect()
        };
        drafts = drafts.iter().flat_map(cross).collect();
    }
    Ok(drafts)
}

/// `other`, as a path relative to the file `path`.
fn beside_file(path: &Path, other: &Path) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    /// The experiments of a file of the repository.
    fn own(name: &str) -> Vec<Planned> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
        read(&[folder.join(name)], &[], &[]).unwrap()
    }

    /// A folder with these files.
    fn folder(files: &[(&str, &str)]) -> TempDir {
        let dir = TempDir::new().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        dir
    }

    /// The experiment of this text over a base, with a user's settings file and `--set`.
    fn planned(text: &str, sets: &[&str]) -> Planned {
        let dir = folder(&[("own.toml", text), ("base.toml", "[ppo]\niterations = 5\nepochs = 5")]);
        let overlay = ("user.toml".to_owned(), "[ppo]\nepochs = 6\nclip = 0.6".to_owned());
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        read(&[dir.path().join("own.toml")], &[overlay], &sets).unwrap().remove(0)
    }

    /// The error of the first of these files, without the name of their folder.
    fn refused(files: &[(&str, &str)]) -> String {
        let dir = folder(files);
        let error = read(&[dir.path().join(files[0].0)], &[], &[]).unwrap_err().to_string();
        error.replace(&format!("{}/", dir.path().display()), "")
    }

    fn names(planned: &Planned) -> Vec<&str> {
        planned.arms.iter().map(|arm| arm.name.as_str()).collect()
    }

    #[test]
    fn settings_are_laid_over_each_other_from_the_base_to_the_arm() {
        let text = "title = 't'\nbase = 'base.toml'\n[arms]\na = {}\nb = { ppo.rollouts = 8 }";
        let found = planned(text, &["ppo.clip=0.7", "ppo.rollouts=7", "seed=3"]);
        let [a, b] = [0, 1].map(|i| &found.arms[i].settings);
        assert_eq!((a.ppo.iterations, a.ppo.epochs, a.ppo.clip), (5, 6, 0.7));
        assert_eq!((a.ppo.rollouts, b.ppo.rollouts), (7, 8));
        assert_eq!((a.seed, b.seed), (3, 3));
        assert_eq!(found.arms[1].changes, "ppo.rollouts = 8".parse().unwrap());
        assert!(found.arms[0].changes.is_empty());
        assert_eq!((found.name.as_str(), found.title.as_str()), ("own", "t"));
    }

    #[test]
    fn several_files_give_their_experiments_in_order_and_may_not_share_a_name() {
        let [one, two] = ["1", "2"].map(|name| format!("title = '{name}'\n[arms]\na = {{}}"));
        let dir = folder(&[("one.toml", &one), ("two.toml", &two)]);
        let path = |name| dir.path().join(name);
        let titles: Vec<String> = (read(&[path("two.toml"), path("one.toml")], &[], &[]).unwrap())
            .into_iter()
            .map(|planned| planned.title)
            .collect();
        assert_eq!(titles, ["2", "1"]);
        let error = read(&[path("one.toml"), path("one.toml")], &[], &[]).unwrap_err();
        assert!(matches!(error, GridError::SameName { name, .. } if name == "one"));
    }

    #[test]
    fn every_arm_is_crossed_with_every_value_of_every_axis() {
        let axes = "[axes]\n'task.pairs' = [10, 20]\nmethod = ['token', 'segment']";
        let found = planned(&format!("title = 't'\n{axes}"), &[]);
        let at = ["pairs 10, method token", "pairs 10, method segment"];
        assert_eq!(names(&found)[..2], at);
        assert_eq!(found.arms.len(), 4);
        assert_eq!(found.arms[3].settings.task.pairs, 20);
        assert_eq!(found.arms[3].changes, "task.pairs = 20\nmethod = 'segment'".parse().unwrap());

        let arms = "[arms]\n\"long\" = { ppo.iterations = 9 }\nshort = { ppo.iterations = 1 }";
        let head = "title = 't'\nours = ['long', 'short, eos included']";
        let axes = "[axes]\n'segmentation.eos' = ['included', 'excluded']";
        let found = planned(&format!("{head}\n{arms}\n{axes}"), &[]);
        let expected = [
            "long, eos included",
            "long, eos excluded",
            "short, eos included",
            "short, eos excluded",
        ];
        assert_eq!(names(&found), expected);
        let ours: Vec<bool> = found.arms.iter().map(|arm| arm.ours).collect();
        assert_eq!(ours, [true, true, true, false]);
        assert_eq!(found.arms[2].settings.ppo.iterations, 1);
    }

    #[test]
    fn the_experiments_that_come_with_the_program_hold() {
        let all = own("all.toml");
        let names: Vec<&str> = all.iter().map(|planned| planned.name.as_str()).collect();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments");
        let mut others: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
            .filter(|path| fs::read_to_string(path).unwrap().starts_with("title = "))
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .filter(|name| name != "all" && !names.contains(&name.as_str()))
            .collect();
        others.sort();
        assert_eq!(others, ["noise"], "all.toml lacks what has a run of its own");
        let ours: Vec<bool> = own("noise.toml")[0].arms.iter().map(|arm| arm.ours).collect();
        assert_eq!(ours, [false, true, false, true, false, true], "the paper's temperature is 1");
        assert_eq!(all[0].arms.len(), 6, "the methods of table 1");
        assert_eq!((all[0].paper_table, all[1].paper_table), (Some(1), Some(4)));
    }

    #[test]
    fn experiments_share_the_arms_that_are_the_paper_s_own_choice() {
        let all = own("all.toml");
        let settings = |experiment: &str, arm: &str| {
            let planned = all.iter().find(|planned| planned.name == experiment).unwrap();
            let found = planned.arms.iter().find(|own| own.name == arm);
            &found.unwrap_or_else(|| panic!("{experiment}: {:?}", names(planned))).settings
        };
        let segment = settings("table1", "segment");
        for (experiment, arm) in [
            ("table4", "regression"),
            ("table5", "even split"),
            ("figure4", "entropy_cutoff 1.2"),
            ("aggregation", "average"),
            ("regression", "huber"),
            ("pairs", "segment, pairs 4000"),
            ("horizon", "segment, iterations 12"),
            ("length_neutral", "segment"),
        ] {
            assert_eq!(settings(experiment, arm), segment, "{experiment}: {arm}");
        }
        for method in ["bandit", "sentence", "token"] {
            let own = settings("table1", method);
            assert_eq!(settings("pairs", &format!("{method}, pairs 4000")), own);
            assert_eq!(settings("horizon", &format!("{method}, iterations 12")), own);
        }
        assert_eq!(settings("length_neutral", "token"), settings("table1", "token"));
    }

    #[test]
    fn toml_that_is_no_experiment_is_named_with_its_line() {
        let twice = "title = 't'\n[arms]\na = { method = 'token' }\na = { method = 'segment' }";
        assert_eq!(refused(&[("own.toml", twice)]), "own.toml:4: duplicate key");
        let unknown = refused(&[("own.toml", "title = 't'\n\narm = 3")]);
        assert!(
            unknown.starts_with("own.toml:3: unknown field `arm`, expected one of"),
            "{unknown}"
        );
        let kind = refused(&[("own.toml", "title = 't'\n[arms]\na = {}\nb = 'token'")]);
        assert!(kind.starts_with("own.toml:4: invalid type: string \"token\""), "{kind}");
        let axis = refused(&[("own.toml", "title = 't'\n[axes]\ntask.pairs = [1]")]);
        assert!(axis.starts_with("own.toml:3: invalid type: map, expected a sequence"), "{axis}");
    }

    #[test]
    fn settings_that_are_refused_name_the_arm_or_the_axis() {
        let arms = "title = 't'\n[arms]\na = {}\n";
        let unknown = refused(&[("own.toml", &format!("{arms}b = {{ ppo.clipp = 1 }}"))]);
        assert!(unknown.starts_with("own.toml:4: arm \"b\": unknown field `clipp`"), "{unknown}");
        let range = refused(&[("own.toml", &format!("{arms}b = {{ ppo.clip = 0.0 }}"))]);
        assert_eq!(range, "own.toml:4: arm \"b\": ppo.clip = 0; expected above 0");
        let axis = refused(&[("own.toml", &format!("{arms}[axes]\n'task.pairs' = [1, 0]"))]);
        assert!(axis.starts_with("own.toml:5: axis \"task.pairs\": task.pairs = 0;"), "{axis}");
        let base = ("base.toml", "[ppo]\nclipp = 1");
        let based = refused(&[("own.toml", &format!("base = 'base.toml'\n{arms}")), base]);
        assert!(based.starts_with("base.toml:2: unknown field `clipp`"), "{based}");
    }

    #[test]
    fn a_seed_is_no_arm_s_to_set() {
        let seed = refused(&[("own.toml", "title = 't'\n[axes]\nseed = [1, 2]")]);
        assert!(seed.starts_with("own.toml:3: axis \"seed\": `seed` holds for all arms"), "{seed}");
        let jobs = refused(&[("own.toml", "title = 't'\n[arms]\na = { reproduce.jobs = 2 }")]);
        assert!(
            jobs.starts_with("own.toml:3: arm \"a\": `reproduce` holds for all arms"),
            "{jobs}"
        );
    }

    #[test]
    fn an_experiment_without_arms_or_values_is_refused() {
        for text in ["title = 't'", "title = 't'\n[arms]\n[axes]", "title = 't'\ninclude = []"] {
            assert!(refused(&[("own.toml", text)]).starts_with("own.toml: no experiment; give"));
        }
        let axis = "title = 't'\n[arms]\na = {}\n[axes]\n'task.pairs' = []";
        let expected = "own.toml:5: the axis \"task.pairs\" has no values; give at least one";
        assert_eq!(refused(&[("own.toml", axis)]), expected);
    }

    #[test]
    fn an_arm_of_ours_is_one_of_the_arms() {
        let text = "title = 't'\nours = [\n  'a',\n  'c',\n]\n[arms]\na = {}";
        let expected = "own.toml:4: `ours` names \"c\", but the arms are [\"a\"]";
        assert_eq!(refused(&[("own.toml", text)]), expected);
    }

    #[test]
    fn two_arms_with_the_same_settings_are_refused() {
        let text = "title = 't'\n[arms]\na = {}\nb = { method = 'segment' }";
        let expected = "own.toml:4: \"b\" has the same settings as \"a\"; take one of them out";
        assert!(refused(&[("own.toml", text)]).starts_with(expected));
    }

    #[test]
    fn a_file_that_cannot_be_read_says_who_asked_for_it() {
        let missing = |text| refused(&[("own.toml", text), ("other.toml", "")]);
        let base = missing("title = 't'\nbase = 'none.toml'\n[arms]\na = {}");
        assert!(base.starts_with("none.toml: cannot read: No such file"), "{base}");
        assert!(base.ends_with("; own.toml:2 names it as base"), "{base}");
        let include = missing("title = 't'\ninclude = [\n  'none.toml',\n]");
        assert!(include.ends_with("; own.toml:3 includes it"), "{include}");
        let alone = read(&["none.toml"], &[], &[]).unwrap_err().to_string();
        assert!(alone.ends_with("expected an experiment file, such as experiments/table1.toml"));
    }

    #[test]
    fn a_file_includes_others_once_and_has_nothing_of_its_own() {
        let one = ("one.toml", "title = '1'\n[arms]\na = {}");
        let two = ("two.toml", "title = '2'\ninclude = ['one.toml']");
        let text = "title = 't'\ninclude = ['two.toml', 'one.toml']";
        let expected = "one.toml: a second experiment \"one\", after one.toml; the stem";
        assert!(refused(&[("own.toml", text), one, two]).starts_with(expected));
        let text = "title = 't'\ninclude = ['one.toml']\n[arms]\na = {}";
        let expected = "own.toml:3: `arms` beside `include`; a file that includes others";
        assert!(refused(&[("own.toml", text), one]).starts_with(expected));
    }

    #[test]
    fn a_circle_of_files_is_refused() {
        let own = ("own.toml", "title = 't'\ninclude = ['two.toml']");
        let two = ("two.toml", "title = '2'\ninclude = [\n  './own.toml',\n]");
        assert_eq!(
            refused(&[own, two]),
            "two.toml:3: ./own.toml includes itself; take one of them out"
        );
    }
}
