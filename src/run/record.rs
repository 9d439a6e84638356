//! The records of two runs, key by key.

use std::collections::{BTreeMap, BTreeSet};

/// A key in which two records differ, with both values as TOML.
pub(super) struct Difference {
    key: String,
    /// The older one.
    pub(super) there: Option<String>,
    here: Option<String>,
}

impl Difference {
    /// Whether `key` is what differs, and is a larger number here than there.
    pub(super) fn grows(&self, key: &str) -> bool {
        let number = |value: &Option<String>| value.as_ref()?.parse::<u64>().ok();
        self.key == key && number(&self.there).is_some_and(|old| number(&self.here) > Some(old))
    }
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".into());
        write!(f, "{}: {} there, {} here", self.key, show(&self.there), show(&self.here))
    }
}

/// Each key in which a stage's record `new` differs from its older one; the program's version and commit and the names of
/// its inputs may differ.
pub(super) fn differences(old: &toml::Table, new: &toml::Table) -> Vec<Difference> {
    let mut differences = all_differences(old, new);
    differences.retain(|Difference { key, .. }| {
        !["version", "commit"].contains(&&key[..]) && !key.starts_with("sources.")
    });
    differences
}

/// Each key in which two records differ.
pub(super) fn all_differences(old: &toml::Table, new: &toml::Table) -> Vec<Difference> {
    let (mut old, mut new) = (flat(old), flat(new));
    let keys: BTreeSet<String> = old.keys().chain(new.keys()).cloned().collect();
    let difference = |key: String| {
        let (there, here) = (old.remove(&key), new.remove(&key));
        (there != here).then_some(Difference { key, there, here })
    };
    keys.into_iter().filter_map(difference).collect()
}

/// The values of a table by their dotted keys.
fn flat(table: &toml::Table) -> BTreeMap<String, String> {
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
    let mut values = BTreeMap::new();
    for (key, value) in table {
        flatten(key, value, &mut values);
    }
    values
}
