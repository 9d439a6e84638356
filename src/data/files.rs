//! The files that a path of data names: a file, or those of one split of a folder.
//!
//! Published data sets name their splits in their files, as `data/train-00000-of-00002.parquet` or `default/train/0.parquet`.
//! A folder's split is the training split; `FOLDER:SPLIT` names another, or a file or folder in it.
//!
//! # Source
//!
//! The names of splits are those of `data_files.py` in <https://github.com/huggingface/datasets>.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use super::error::DataError;
use crate::file_error::FileError;

/// The endings of data files.
const ENDS: [&str; 3] = ["parquet", "jsonl", "json"];
/// Files of a data set that hold no rows.
const NO_DATA: [&str; 5] =
    ["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];
/// The words that stand for each split.
const SPLITS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The files that `path` names, in the order of their names: itself, or of a folder those of its training split.
///
/// # Errors
///
/// [`DataError::File`], and [`DataError::Refused`] for a folder without data files or with several splits of which none
/// is for training.
pub fn files(path: &Path) -> Result<Vec<PathBuf>, DataError> {
    let (dir, what) = parts(path);
    if !dir.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let names = names(&dir)?;
    match choose(&names, what.as_deref()) {
        Ok(chosen) if chosen.is_empty() => Err(DataError::no_files(&dir)),
        Ok(chosen) => Ok(chosen.into_iter().map(|name| dir.join(name)).collect()),
        Err(problem) => Err(DataError::splits(&dir, problem)),
    }
}

/// Whether the file or folder that `path` names is there.
pub fn is_there(path: &Path) -> bool {
    parts(path).0.exists()
}

/// What the files of `path` are, if they are some of a folder's.
pub fn note(path: &Path) -> Option<String> {
    let (dir, what) = parts(path);
    let names = names(&dir).ok().filter(|_| dir.is_dir())?;
    let all = names.iter().filter(|name| is_data(name)).count();
    let chosen = choose(&names, what.as_deref()).ok()?;
    let split = chosen.first().and_then(|name| split(name)).unwrap_or_else(|| "train".into());
    let (path, n) = (path.display(), chosen.len());
    (what.is_none() && n < all).then(|| {
        format!("{path}: the split {split}, {n} of {all} files; {path}:SPLIT names another")
    })
}

/// The folder that a path names, and what in it, if it is `FOLDER:WHAT`.
fn parts(path: &Path) -> (PathBuf, Option<String>) {
    let text = path.to_string_lossy();
    match text.rsplit_once(':') {
        Some((dir, what)) if !path.exists() && Path::new(dir).is_dir() => {
            (dir.into(), Some(what.to_owned()))
        }
        _ => (path.to_owned(), None),
    }
}

/// The names of all files below `dir`, with `/` between their parts.
fn names(dir: &Path) -> Result<Vec<String>, DataError> {
    fn visit(dir: &Path, prefix: &str, into: &mut Vec<String>) -> io::Result<()> {
        for entry in dir.read_dir()? {
            let entry = entry?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            match entry.file_type()?.is_dir() {
                true => visit(&entry.path(), &format!("{name}/"), into)?,
                false => into.push(name),
            }
        }
        Ok(())
    }
    let mut names = Vec::new();
    visit(dir, "", &mut names).map_err(FileError::reading(dir))?;
    names.sort();
    Ok(names)
}

/// Whether a file of this name, with `/` between its parts, holds data.
pub fn is_data(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or_default();
    let hidden = name.split('/').any(|part| part.starts_with('.'));
    let end = file.strip_suffix(".gz").unwrap_or(file).rsplit_once('.').map(|(_, end)| end);
    !hidden && !NO_DATA.contains(&file) && end.is_some_and(|end| ENDS.contains(&end))
}

/// Of the files `names` those that are read: of the split `what`, or at or below the path `what`; by default of the
/// training split. Files that name no split are for training.
///
/// # Errors
///
/// What is to be named, and what can be.
pub fn choose(names: &[String], what: Option<&str>) -> Result<Vec<String>, String> {
    let mut data: Vec<&String> = names.iter().filter(|name| is_data(name)).collect();
    let mut what = what;
    if let Some(path) = what {
        let within = |name: &str| {
            name.strip_prefix(path.trim_end_matches('/'))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        if data.iter().any(|name| within(name)) {
            data.retain(|name| within(name));
            what = None;
        }
    }
    let splits: Vec<Option<String>> = data.iter().map(|name| split(name)).collect();
    let named: BTreeSet<&str> = splits.iter().flatten().map(String::as_str).collect();
    let of = |wanted: Option<&str>| {
        let is_it = |(_, split): &(&&String, &Option<String>)| split.as_deref() == wanted;
        data.iter().zip(&splits).filter(is_it).map(|(name, _)| (*name).clone()).collect::<Vec<_>>()
    };
    let all = named.iter().copied().collect::<Vec<_>>().join(", ");
    match what {
        Some(split) if named.contains(split) => Ok(of(Some(split))),
        Some("train") if splits.contains(&None) => Ok(of(None)),
        Some(other) if named.is_empty() => Err(format!("no split or file {other} in it")),
        Some(other) => Err(format!("no split or file {other} in it; its splits: {all}")),
        None if named.contains("train") => Ok(of(Some("train"))),
        None if splits.contains(&None) => Ok(of(None)),
        None => match named.len() {
            0 | 1 => Ok(of(named.first().copied())),
            _ => {
                let trains = named.iter().find(|split| split.starts_with("train"));
                let first = trains.or(named.first()).copied().unwrap_or_default();
                Err(format!("none of its splits is `train`; name one of {all}, as in …:{first}"))
            }
        },
    }
}

/// The split that a file's name tells: of a numbered part what stands before its number, else the last word that stands for
/// one, in the file's own name or in its folders'.
fn split(name: &str) -> Option<String> {
    let (folders, file) = name.rsplit_once('/').unwrap_or(("", name));
    if let Some((before, _)) = part_number(file)
        && before.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.')
    {
        return Some(before.to_owned());
    }
    [file, folders].iter().find_map(|text| {
        let mut words = text.rsplit(|c: char| !c.is_alphabetic()).map(str::to_lowercase);
        words.find_map(|word| {
            let known = SPLITS.iter().find(|(_, words)| words.contains(&word.as_str()));
            known.map(|(split, _)| (*split).to_owned())
        })
    })
}

/// What stands before `-00001-of-00003` in a file's name, and the number of parts.
fn part_number(file: &str) -> Option<(&str, usize)> {
    let (before, of) = file.split_once("-of-")?;
    let (before, number) = before.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let of = of.get(..5).filter(|of| digits(of) && digits(number))?;
    Some((before, of.parse().ok()?))
}

/// A numbered part that is missing beside those that `choose` gives of the files below `dir`.
pub fn lacks(dir: &Path, what: Option<&str>) -> Option<String> {
    let names = names(dir).ok()?;
    let Ok(chosen) = choose(&names, what) else {
        return Some(what.map_or_else(|| "data files".to_owned(), |what| format!("`{what}`")));
    };
    if chosen.is_empty() {
        return Some("data files".into());
    }
    chosen.iter().find_map(|name| {
        let (folder, file) = name
            .rsplit_once('/')
            .map_or(("", &**name), |(_, file)| (&name[..name.len() - file.len()], file));
        let (before, of) = part_number(file)?;
        let end = file.rsplit_once("-of-").map_or("", |(_, of)| &of[5..]);
        (0..of)
            .map(|i| format!("{folder}{before}-{i:05}-of-{of:05}{end}"))
            .find(|part| !dir.join(part).exists())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[&str], what: Option<&str>) -> Result<Vec<String>, String> {
        choose(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>(), what)
    }

    #[test]
    fn a_file_tells_its_split_as_published_data_sets_do() {
        for (name, expected) in [
            ("data/train-00000-of-00001.parquet", Some("train")),
            ("data/train_prefs-00000-of-00001-b0.parquet", Some("train_prefs")),
            ("default/test/0000.parquet", Some("test")),
            ("helpful-base/train.jsonl.gz", Some("train")),
            ("my-set-dev.jsonl", Some("validation")),
            ("eval_2.jsonl", Some("test")),
            ("pretrained.jsonl", None),
            ("pairs.jsonl", None),
        ] {
            assert_eq!(split(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn by_default_the_training_split_is_read() {
        let names = [
            ".gitattributes",
            "README.md",
            "dataset_infos.json",
            "a/train.jsonl",
            "a/test.jsonl",
            "b/train.jsonl.gz",
            "b/.hidden.json",
            "other.jsonl",
        ];
        assert_eq!(chosen(&names, None).unwrap(), ["a/train.jsonl", "b/train.jsonl.gz"]);
        assert_eq!(chosen(&names, Some("test")).unwrap(), ["a/test.jsonl"]);
        assert_eq!(chosen(&names, Some("a")).unwrap(), ["a/train.jsonl"]);
        assert_eq!(chosen(&names, Some("a/test.jsonl")).unwrap(), ["a/test.jsonl"]);
        assert_eq!(
            chosen(&names, Some("dev")).unwrap_err(),
            "no split or file dev in it; its splits: test, train"
        );
        assert_eq!(chosen(&["1.jsonl", "2.jsonl"], None).unwrap(), ["1.jsonl", "2.jsonl"]);
        assert_eq!(chosen(&["1.jsonl", "test.jsonl"], None).unwrap(), ["1.jsonl"]);
        assert_eq!(chosen(&["test.jsonl"], None).unwrap(), ["test.jsonl"]);
        assert_eq!(chosen(&["README.md"], None).unwrap(), [""; 0]);
    }

    #[test]
    fn several_splits_for_training_are_named() {
        let names =
            ["data/train_prefs-00000-of-00001.parquet", "data/test_prefs-00000-of-00001.parquet"];
        assert_eq!(
            chosen(&names, None).unwrap_err(),
            "none of its splits is `train`; name one of test_prefs, train_prefs, as in …:train_prefs"
        );
        assert_eq!(chosen(&names, Some("train_prefs")).unwrap(), names[..1]);
    }

    #[test]
    fn a_missing_part_is_named() {
        let dir = tempfile::TempDir::new().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        let part = |i| format!("data/train-{i:05}-of-00002.parquet");
        assert_eq!(lacks(dir.path(), None), Some("data files".into()));
        std::fs::write(dir.path().join(part(0)), "").unwrap();
        assert_eq!(lacks(dir.path(), None), Some(part(1)));
        assert_eq!(lacks(dir.path(), Some("test")), Some("`test`".into()));
        std::fs::write(dir.path().join(part(1)), "").unwrap();
        assert_eq!(lacks(dir.path(), None), None);
    }
}
