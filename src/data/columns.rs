//! The names of a user's columns.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Which column of a data file stands for each key of a row, as in `prompt=question,chosen=good`. A key that is not
/// named is the column of its own name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Columns(BTreeMap<String, String>);

/// The keys of rows that may have other names.
const KEYS: [&str; 12] = [
    "prompt",
    "chosen",
    "rejected",
    "messages",
    "response",
    "completion",
    "chosen_score",
    "rejected_score",
    "score_chosen",
    "score_rejected",
    "margin",
    "segments",
];

impl Columns {
    /// Whether every key is the column of its own name.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The column that stands for `key`, if it has another name.
    pub(super) fn of(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// The row `object` with its columns under the keys that they stand for.
    pub(super) fn rename(&self, mut object: Map<String, Value>) -> Map<String, Value> {
        let given: Vec<Option<Value>> =
            self.0.values().map(|column| object.get(column).cloned()).collect();
        for key in self.0.keys().chain(self.0.values()) {
            object.remove(key);
        }
        let renamed = self.0.keys().cloned().zip(given);
        object.extend(renamed.filter_map(|(key, value)| Some((key, value?))));
        object
    }
}

impl FromStr for Columns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut columns = BTreeMap::new();
        for part in text.split(',') {
            let pair = part.split_once('=').map(|(key, column)| (key.trim(), column.trim()));
            let Some((key, column)) = pair.filter(|(_, column)| !column.is_empty()) else {
                return Err(format!(
                    "{part:?}; expected KEY=COLUMN, as in prompt=question,chosen=good"
                ));
            };
            if !KEYS.contains(&key) {
                return Err(format!(
                    "no row has the key {key:?}; expected some of {}",
                    KEYS.join(", ")
                ));
            }
            if columns.insert(key.to_owned(), column.to_owned()).is_some() {
                return Err(format!("{key} is given twice"));
            }
        }
        Ok(Self(columns))
    }
}

impl fmt::Display for Columns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs = self.0.iter().map(|(key, column)| format!("{key}={column}"));
        f.write_str(&pairs.collect::<Vec<_>>().join(","))
    }
}

/// A file or folder of data, and what its columns stand for.
#[derive(Clone, Copy, Debug)]
pub struct DataFile<'a> {
    /// The path, as [`files`](super::files::files) understands it.
    pub path: &'a Path,
    /// The names of its columns, where they may be given.
    pub columns: Option<&'a Columns>,
}

impl<'a> From<&'a Path> for DataFile<'a> {
    fn from(path: &'a Path) -> Self {
        Self { path, columns: None }
    }
}

impl<'a> From<&'a PathBuf> for DataFile<'a> {
    fn from(path: &'a PathBuf) -> Self {
        path.as_path().into()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn columns_stand_for_keys_and_hide_those_of_the_keys_names() {
        let rename = |columns: &str, row: Value| {
            let columns: Columns = columns.parse().unwrap();
            Value::Object(columns.rename(row.as_object().unwrap().clone()))
        };
        let row = json!({"question": "q", "good": "g", "chosen": 3, "other": 1});
        let renamed = json!({"prompt": "q", "chosen": "g", "other": 1});
        assert_eq!(rename("prompt=question,chosen=good", row), renamed);
        let swapped =
            rename("chosen=rejected,rejected=chosen", json!({"chosen": 1, "rejected": 2}));
        assert_eq!(swapped, json!({"chosen": 2, "rejected": 1}));
        assert_eq!(rename("chosen=gone", json!({"chosen": 1})), json!({}));
    }

    #[test]
    fn a_fault_in_columns_is_named() {
        let fault = |text: &str| text.parse::<Columns>().unwrap_err();
        assert!(fault("prompt").starts_with("\"prompt\"; expected KEY=COLUMN"));
        assert!(fault("prompt=").starts_with("\"prompt=\"; expected"));
        assert!(
            fault("promt=a").starts_with("no row has the key \"promt\"; expected some of prompt,")
        );
        assert_eq!(fault("prompt=a,prompt=b"), "prompt is given twice");
        let columns: Columns = "prompt=a, chosen = b".parse().unwrap();
        assert_eq!(columns.to_string(), "chosen=b,prompt=a");
    }
}
