//! Experiment files: one base, and arms that name what they change.
//!
//! ```toml
//! title = "Table 1: what one action is"
//! paper_table = 1                # optional: the paper's table to compare with
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
//! A file with `include = ["table1.toml", …]` means the files that it names, relative to itself.
//!
//! Later settings override earlier ones: the defaults, the base, the user's settings files, the user's `--set`, the
//! arm. No arm sets the seed: all run with the same seeds.

use std::fmt;
use std::fs;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::de::{Deserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use toml::{Spanned, Table, Value};

use super::error::{GridError, Place};
use crate::file_error::FileError;
use crate::settings::{Settings, line_at, merge};

/// The error for a file without an experiment.
const EMPTY: &str =
    "no experiment; give [arms] or [axes], or include = [\"FILE\"] with other experiment files";

/// An experiment with the resolved settings of every arm, except the seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Planned {
    pub name: String,
    pub title: String,
    pub note: Option<String>,
    pub paper_table: Option<u32>,
    pub arms: Vec<PlannedArm>,
}

/// One row of an experiment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedArm {
    /// Its name, with its value on each axis.
    pub name: String,
    /// Whether the paper has no such arm.
    pub ours: bool,
    /// The settings that it changes.
    #[serde(with = "as_toml")]
    pub changes: Table,
    #[serde(with = "as_toml")]
    pub settings: Settings,
}

/// Settings as TOML text inside JSON, which has no infinite numbers.
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

/// The experiments of the files `paths` and of those that they include, in their order; `overlays` and `sets` are
/// the user's, as [`Settings::resolve`] takes them.
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

/// The content of a file.
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

/// The entries of a table in file order, each key with its position.
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

/// An arm before its settings are resolved: the changes that it makes, in order.
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
    /// The files being read, each included by the one before it.
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
        let failed =
            |source| GridError::Read { error: FileError::reading(path)(source), wanted: wanted() };
        let text = fs::read_to_string(path).map_err(failed)?;
        let canonical = path.canonicalize().map_err(failed)?;
        if let Some(at) = from.filter(|_| self.open.contains(&canonical)) {
            let path = path.display();
            return Err(at.refused(format!("{path} includes itself; take one of them out")));
        }
        let place = |at: usize| Place::new(path, line_at(&text, at));
        let mut file: File = toml::from_str(&text).map_err(|error| {
            place(error.span().map_or(0, |span| span.start)).refused(error.message())
        })?;
        let Some(include) = file.include.take() else {
            let planned = self.plan(path, file, place)?;
            let same = |(_, other): &&(PathBuf, Planned)| other.name == planned.name;
            if let Some((first, _)) = self.found.iter().find(same) {
                return Err(Place::new(path, None).refused(format!(
                    "a second experiment {:?}, after {}; the stem of the file is its name, so rename one, or include it \
                     once",
                    planned.name,
                    first.display()
                )));
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
            return Err(place(span.start).refused(format!(
                "`{key}` beside `include`; a file that includes others has no experiment of its own"
            )));
        }
        if include.is_empty() {
            return Err(Place::new(path, None).refused(EMPTY));
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
                error: FileError::reading(&own)(source),
                wanted: format!("{} names it as base", place(base.span().start)),
            })?;
            overlays.push((own.display().to_string(), text));
        }
        overlays.extend_from_slice(self.overlays);
        let base = Settings::resolve(&overlays, self.sets)?;

        let arms = file.arms.map_or_else(Vec::new, |arms| arms.into_inner().0);
        let axes = file.axes.map_or_else(Vec::new, |axes| axes.into_inner().0);
        if arms.is_empty() && axes.is_empty() {
            return Err(Place::new(path, None).refused(EMPTY));
        }
        let drafts = drafts(arms, axes, &place)?;
        let ours = file.ours.map_or_else(Vec::new, Spanned::into_inner);
        for arm in &ours {
            let name = arm.get_ref();
            if !drafts.iter().any(|draft| draft.own == *name || draft.name == *name) {
                let arms: Vec<&String> = drafts.iter().map(|draft| &draft.name).collect();
                return Err(place(arm.span().start)
                    .refused(format!("`ours` names {name:?}, but the arms are {arms:?}")));
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
                return Err(at.refused(format!(
                    "{name:?} has the same settings as {:?}; take one of them out or change what it sets",
                    first.name
                )));
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
            Some(key) => Err(at.refused(format!(
                "{whose}: `{key}` holds for all arms; give --seed, --seeds and --jobs on the command line"
            ))),
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
            return Err(place(key.span().start)
                .refused(format!("the axis {axis:?} has no values; give at least one")));
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
