//! The Hub's cache on disk.
//!
//! ```text
//! models--ORG--NAME/refs/REVISION              the commit that a branch or tag was at
//! models--ORG--NAME/snapshots/COMMIT/FILE      a link to a blob
//! models--ORG--NAME/blobs/HASH                 HASH.incomplete while it is downloaded
//! datasets--ORG--NAME/…                        the same
//! ```
//!
//! # Source
//!
//! `constants.py` and `file_download.py` of <https://github.com/huggingface/huggingface_hub>.

use std::env;
use std::fmt;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A model.
    Model,
    /// A data set.
    Dataset,
}

impl Kind {
    /// What it is called in an error.
    pub fn noun(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "data set",
        }
    }

    /// What its folders and addresses begin with.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }
}

/// A repository at a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// What it holds.
    pub kind: Kind,
    /// `org/name`.
    pub name: String,
    /// A branch, a tag or a commit.
    pub revision: Option<String>,
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        self.revision.as_ref().map_or(Ok(()), |revision| write!(f, "@{revision}"))
    }
}

impl Repository {
    /// The repository that `text` names, `org/name` or `org/name@revision`; none if it cannot be such a name.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::hub::{Kind, Repository};
    /// let named = |text| Repository::parse(Kind::Model, text).map(|found| (found.name, found.revision));
    /// assert_eq!(named("org/a-1.5B"), Some(("org/a-1.5B".into(), None)));
    /// assert_eq!(named("org/a@v1.0"), Some(("org/a".into(), Some("v1.0".into()))));
    /// assert_eq!(named("./a"), None);
    /// assert_eq!(named("runs/sft/model"), None);
    /// ```
    pub fn parse(kind: Kind, text: &str) -> Option<Self> {
        let (name, revision) = match text.split_once('@') {
            Some((name, revision)) => (name, Some(revision)),
            None => (text, None),
        };
        let of_word = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_part = |part: &str| {
            !part.is_empty()
                && part.chars().all(of_word)
                && !part.starts_with(['-', '.'])
                && !part.ends_with(['-', '.'])
                && !part.contains("--")
                && !part.contains("..")
        };
        let (org, own) = name.split_once('/')?;
        let named = is_part(org) && is_part(own) && revision.is_none_or(is_below);
        named.then(|| Self { kind, name: name.into(), revision: revision.map(str::to_owned) })
    }

    /// The revision, by default the branch `main`.
    pub(super) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Its folder in the cache, whether it is there or not.
    pub(super) fn dir(&self) -> PathBuf {
        root().join(self.folder())
    }

    pub(super) fn folder(&self) -> String {
        format!("{}--{}", self.kind.plural(), self.name.replace('/', "--"))
    }

    /// The folder of its snapshot in the cache, if it is there.
    pub fn snapshot(&self) -> Option<PathBuf> {
        let dir = self.dir();
        let commit = fs::read_to_string(dir.join("refs").join(self.revision()));
        let commit = commit.as_deref().map_or(self.revision(), str::trim);
        let snapshot = dir.join("snapshots").join(commit);
        (is_below(commit) && snapshot.is_dir()).then_some(snapshot)
    }

    /// Whether a download was broken off.
    pub(super) fn has_incomplete(&self) -> bool {
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let blobs = fs::read_dir(self.dir().join("blobs"));
        blobs.is_ok_and(|all| all.flatten().any(|entry| name(entry).ends_with(".incomplete")))
    }

    /// The command of `huggingface_hub` that downloads it.
    pub(super) fn download_command(&self) -> String {
        let revision = self.revision.iter().map(|revision| format!(" --revision {revision}"));
        let kind = match self.kind {
            Kind::Model => "",
            Kind::Dataset => " --repo-type dataset",
        };
        format!("hf download {}{kind}{}", self.name, revision.collect::<String>())
    }
}

/// Whether `path` stays below the folder that it is joined to.
pub(super) fn is_below(path: &str) -> bool {
    let normal = |part| matches!(part, Component::Normal(_));
    !path.is_empty() && Path::new(path).components().all(normal)
}

/// `org/name@commit` for a path in a snapshot of the cache, with what follows the commit.
pub fn named(path: &Path) -> Option<String> {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    let at = parts.iter().rposition(|part| part == "snapshots")?;
    let folder = parts.get(at.checked_sub(1)?)?;
    let name = ["models--", "datasets--"].iter().find_map(|kind| folder.strip_prefix(kind))?;
    let commit = parts.get(at + 1..).filter(|rest| !rest.is_empty())?.join("/");
    Some(format!("{}@{commit}", name.replacen("--", "/", 1)))
}

/// The cache's folder: `HF_HUB_CACHE`, else `HF_HOME/hub`, else `~/.cache/huggingface/hub`.
pub fn root() -> PathBuf {
    let named = ["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"].into_iter().find_map(variable);
    named.map_or_else(|| home().join("hub"), |path| expanded(&path))
}

/// The Hub's folder: `HF_HOME`, else `XDG_CACHE_HOME/huggingface`, else `~/.cache/huggingface`.
pub(super) fn home() -> PathBuf {
    let of_cache = || match variable("XDG_CACHE_HOME") {
        Some(path) => expanded(&path).join("huggingface"),
        None => expanded("~/.cache/huggingface"),
    };
    variable("HF_HOME").map_or_else(of_cache, |path| expanded(&path))
}

/// Whether `HF_HUB_OFFLINE` or `TRANSFORMERS_OFFLINE` forbids downloads.
pub(super) fn is_offline() -> bool {
    let is_set = |name| {
        let yes = ["1", "on", "yes", "true"];
        variable(name).is_some_and(|value| yes.contains(&value.to_lowercase().as_str()))
    };
    is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE")
}

/// A variable of the environment that is not empty.
pub(super) fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// `path`, in which a `~` at the start is the user's folder.
fn expanded(path: &str) -> PathBuf {
    match (path.strip_prefix('~'), env::home_dir()) {
        (Some(rest), Some(home)) => home.join(rest.trim_start_matches('/')),
        _ => path.into(),
    }
}

/// The file that holds a model's parameters, where they are in one.
pub const WEIGHTS: &str = "model.safetensors";
/// The file that names the shards of a model's parameters, if there are more.
pub const INDEX: &str = "model.safetensors.index.json";
/// The settings of adapters in PEFT's layout, which name their base.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";

/// Whether the folder `dir` holds adapters, and no whole model.
pub fn has_adapters(dir: &Path) -> bool {
    ![WEIGHTS, INDEX].iter().any(|name| dir.join(name).exists())
        && dir.join(ADAPTER_CONFIG).exists()
}

/// What the adapters in `dir` name as their base: a path, or a name in the Hub; none if it holds a whole model.
pub fn base_name(dir: &Path) -> Option<String> {
    has_adapters(dir).then(|| adapter_setting(dir, "base_model_name_or_path"))?
}

/// Whether the adapters in `dir` are those of a scalar model.
pub fn are_scalar(dir: &Path) -> bool {
    adapter_setting(dir, "task_type").is_some_and(|task| task == "SEQ_CLS")
}

fn adapter_setting(dir: &Path, key: &str) -> Option<String> {
    let text = fs::read(dir.join(ADAPTER_CONFIG)).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    Some(config.get(key)?.as_str()?.to_owned())
}

/// Whether the base that the adapters in `dir` name `base` is a folder, relative to `dir` or to the working folder.
pub fn is_local(dir: &Path, base: &str) -> bool {
    dir.join(base).is_dir() || Path::new(base).is_dir()
}

/// The folder of the base that the adapters in `dir` name `base`: relative to `dir`, to the working folder, or in the
/// cache.
pub fn base_dir(dir: &Path, base: &str) -> PathBuf {
    let below = dir.join(base);
    let cached = || Repository::parse(Kind::Model, base)?.snapshot();
    match (below.is_dir(), is_local(dir, base)) {
        (true, _) => below,
        (false, true) => base.into(),
        (false, false) => cached().unwrap_or_else(|| base.into()),
    }
}

/// The most adapters on adapters.
pub const DEEPEST: usize = 8;

/// The folder that has the file `name` of the model in `dir`: itself, or for adapters without it their base.
pub fn holding(dir: &Path, name: &str) -> PathBuf {
    let base = |dir: &PathBuf| Some(base_dir(dir, &base_name(dir)?));
    let mut dirs = std::iter::successors(Some(dir.to_owned()), base).take(1 + DEEPEST);
    dirs.find(|dir| dir.join(name).exists()).unwrap_or_else(|| dir.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_name_is_a_path() {
        let parse = |text| Repository::parse(Kind::Model, text);
        for text in
            ["a", "/a/b", "a/b/c", "../a", "a/..", "a/b@", "a/b@..", "-a/b", "a/b--c", "~/a"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
        let of_pull_request = parse("org/name@refs/pr/1").unwrap();
        assert_eq!(of_pull_request.revision(), "refs/pr/1");
        assert_eq!(of_pull_request.folder(), "models--org--name");
    }

    #[test]
    fn a_snapshot_has_the_name_that_it_was_found_by() {
        let named = |path: &str| named(Path::new(path));
        assert_eq!(named("/c/models--org--a_b/snapshots/0af"), Some("org/a_b@0af".into()));
        let split = named("/c/datasets--org--d/snapshots/0af:test");
        assert_eq!(split, Some("org/d@0af:test".into()));
        for path in ["/runs/models--org--a", "/snapshots/0af", "/c/models--org--a/snapshots"] {
            assert_eq!(named(path), None, "{path}");
        }
    }
}
