//! Inputs and outputs of the official code.

use std::ops::Range;
use std::path::PathBuf;

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The cases of a topic, from tests/data/official, or from the folder in SEGMENT_RLHF_GOLDENS.
pub fn cases<C: DeserializeOwned>(topic: &str) -> Vec<C> {
    #[derive(Deserialize)]
    struct Topic<C> {
        cases: Vec<C>,
    }
    let folder = std::env::var_os("SEGMENT_RLHF_GOLDENS").map(PathBuf::from);
    let folder = folder.unwrap_or_else(|| {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join("data").join("official")
    });
    let path = folder.join(format!("{topic}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let topic: Topic<C> =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(!topic.cases.is_empty(), "{} holds no case", path.display());
    topic.cases
}

/// The official code's inclusive segment ends, as half-open ranges from token 0.
pub fn ranges(ends: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    ends.iter().map(|end| std::mem::replace(&mut start, end + 1)..end + 1).collect()
}
