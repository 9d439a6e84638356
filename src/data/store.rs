//! Token ids on disk: a data file that was tokenised once, row after row, and read one row at a time.
//!
//! ```text
//! tokens        every row's prompt, then its responses; a token is 4 bytes
//! labels        of pairs with labels of segments, a byte for each token of every row's responses
//! index         32 bytes a row: where its tokens start, how many each part has, the gap of its scores,
//!               and a hash of its prompt, whole
//! summary.json  sizes, hashes of the other files, and what was cut and skipped
//! ```
//!
//! All numbers are little-endian. In memory a row takes 24 bytes, whatever its length. Every byte is verified
//! when a store is opened, so that a damaged one is made again instead of trained on.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::pairs::{Conversation, Counts, PreferencePair};
use crate::atomic;
use crate::file_error::FileError;
use crate::rng::{Fnv1a, Lanes, fnv1a};

const TOKENS: &str = "tokens";
const LABELS: &str = "labels";
const INDEX: &str = "index";
const SUMMARY: &str = "summary.json";
/// The number of the format. Since 2, rows hold the hash of the whole prompt, not of what the limits left of it.
pub const FORMAT: u32 = 2;
/// Bytes of a row in the index.
const ENTRY: usize = 32;
const TOKEN: usize = size_of::<u32>();

/// A prompt with its responses: two of a preference pair, one of a conversation, none of a prompt alone.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRow {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// The responses' tokens; those that are not there are empty.
    pub responses: [Vec<u32>; 2],
    /// What the first scores more than the second, if that is known.
    pub score_gap: Option<f32>,
    /// The label of the segment of each response token, if there are labels: of all rows of a store or of none.
    pub labels: Option<[Vec<i8>; 2]>,
}

impl StoredRow {
    /// A hash of the prompt and the responses, in whichever order these are.
    pub fn content_hash(&self) -> u64 {
        let mut parts = self.responses.each_ref().map(|tokens| bytes_of(tokens));
        parts.sort();
        let mut hash = Fnv1a::default();
        for part in [bytes_of(&self.prompt)].iter().chain(&parts) {
            hash.write(&(part.len() as u64).to_le_bytes());
            hash.write(part);
        }
        hash.finish()
    }
}

impl From<PreferencePair> for StoredRow {
    fn from(pair: PreferencePair) -> Self {
        let PreferencePair { prompt, chosen, rejected, score_gap, labels } = pair;
        Self { prompt, responses: [chosen, rejected], score_gap, labels }
    }
}

impl From<Conversation> for StoredRow {
    fn from((prompt, response): Conversation) -> Self {
        Self { prompt, responses: [response, Vec::new()], score_gap: None, labels: None }
    }
}

impl From<Vec<u32>> for StoredRow {
    fn from(prompt: Vec<u32>) -> Self {
        Self { prompt, responses: [Vec::new(), Vec::new()], score_gap: None, labels: None }
    }
}

impl From<StoredRow> for Vec<u32> {
    fn from(row: StoredRow) -> Self {
        row.prompt
    }
}

impl From<StoredRow> for Conversation {
    fn from(row: StoredRow) -> Self {
        let [response, _] = row.responses;
        (row.prompt, response)
    }
}

fn bytes_of(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

/// Where a row stands.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Its first token, counted in tokens.
    start: u64,
    prompt: u32,
    responses: [u32; 2],
    /// NaN if there are no scores.
    score_gap: f32,
}

impl Place {
    fn parts(&self) -> [usize; 3] {
        [self.prompt, self.responses[0], self.responses[1]].map(|tokens| tokens as usize)
    }

    fn to_bytes(self, prompt_hash: u64) -> Vec<u8> {
        let [chosen, rejected] = self.responses;
        let mut bytes = self.start.to_le_bytes().to_vec();
        [self.prompt, chosen, rejected].iter().for_each(|n| bytes.extend(n.to_le_bytes()));
        bytes.extend(self.score_gap.to_le_bytes());
        bytes.extend(prompt_hash.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> (Self, u64) {
        let at = |start: usize| bytes[start..start + 4].try_into().expect("four bytes");
        let long = |start: usize| {
            u64::from_le_bytes(bytes[start..start + 8].try_into().expect("eight bytes"))
        };
        let place = Self {
            start: long(0),
            prompt: u32::from_le_bytes(at(8)),
            responses: [12, 16].map(|start| u32::from_le_bytes(at(start))),
            score_gap: f32::from_le_bytes(at(20)),
        };
        (place, long(24))
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Summary {
    rows: u64,
    tokens: u64,
    token_hash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    label_hash: Option<String>,
    index_hash: String,
    fingerprint: String,
    counts: Counts,
    /// The hash of this summary while this field is empty.
    summary_hash: String,
}

impl Summary {
    /// The summary as a file holds it.
    fn into_bytes(mut self) -> Vec<u8> {
        let bytes =
            |summary: &Self| serde_json::to_vec_pretty(summary).expect("a plain struct serialises");
        self.summary_hash.clear();
        self.summary_hash = hex(fnv1a(&bytes(&self)));
        bytes(&self)
    }

    /// The summary that a file holds, unless a byte of it was changed.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let read = || serde_json::from_slice::<Self>(bytes).ok();
        (read()?.into_bytes() == bytes).then(read)?
    }
}

fn hex(hash: u64) -> String {
    format!("{hash:016x}")
}

/// A tokenised data file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    tokens: Mutex<File>,
    places: Vec<Place>,
    /// Where the labels of each row start, and all of them; of a store without labels neither.
    labels: Option<(Vec<usize>, Vec<u8>)>,
    prompt_hashes: Vec<u64>,
    /// A hash of all its rows.
    pub fingerprint: String,
    /// What was cut and skipped.
    pub counts: Counts,
}

/// What is found where a store should be.
#[derive(Debug)]
pub enum Opened {
    /// A store, every byte of which is as it was written.
    Whole(Store),
    /// Nothing.
    Missing,
    /// A store whose file here was changed, is gone, or is of an older version.
    Damaged(PathBuf),
}

impl Opened {
    /// The store, if it is whole.
    pub fn whole(self) -> Option<Store> {
        match self {
            Self::Whole(store) => Some(store),
            _ => None,
        }
    }
}

/// Writes the rows of a store.
pub struct StoreWriter<'a> {
    dir: &'a Path,
    tokens: BufWriter<File>,
    /// In memory: a byte a token.
    labels: Option<Vec<u8>>,
    index: BufWriter<File>,
    rows: u64,
    written: u64,
    /// Verified when the store is opened: it keeps up with reading.
    lanes: Lanes,
    /// A part of the fingerprint, on which checkpoints depend.
    token_hash: Fnv1a,
    index_hash: Fnv1a,
}

impl StoreWriter<'_> {
    /// Appends a row, whose whole prompt has this hash.
    pub fn push(&mut self, row: &StoredRow, prompt_hash: u64) -> Result<(), DataError> {
        let count = |tokens: &[u32]| u32::try_from(tokens.len()).expect("limits are below 2^32");
        let [first, second] = &row.responses;
        let place = Place {
            start: self.written,
            prompt: count(&row.prompt),
            responses: [count(first), count(second)],
            score_gap: row.score_gap.unwrap_or(f32::NAN),
        };
        let entry = place.to_bytes(prompt_hash);
        if let Some([first, second]) = &row.labels {
            let labels = first.iter().chain(second).map(|&label| label as u8);
            self.labels.get_or_insert_default().extend(labels);
        }
        let tokens = bytes_of(&[&row.prompt[..], first, second].concat());
        self.token_hash.write(&tokens);
        self.lanes.write(&tokens);
        self.index_hash.write(&entry);
        let written = self.tokens.write_all(&tokens).and_then(|()| self.index.write_all(&entry));
        self.rows += 1;
        self.written += (tokens.len() / TOKEN) as u64;
        Ok(written.map_err(FileError::writing(self.dir))?)
    }

    fn finish(mut self, counts: Counts) -> Result<(), DataError> {
        let (tokens, index) = (self.token_hash.finish(), self.index_hash.finish());
        let label_hash = self.labels.as_ref().map(|labels| hex(fnv1a(labels)));
        if let Some(labels) = &self.labels {
            let path = self.dir.join(LABELS);
            atomic::write_file(&path, labels).map_err(FileError::writing(&path))?;
        }
        let summary = Summary {
            rows: self.rows,
            tokens: self.written,
            token_hash: hex(self.lanes.finish()),
            index_hash: hex(index),
            fingerprint: hex(tokens) + label_hash.as_deref().unwrap_or("") + &hex(index),
            label_hash,
            counts,
            summary_hash: String::new(),
        };
        let summary = summary.into_bytes();
        let written = [&mut self.tokens, &mut self.index]
            .into_iter()
            .try_for_each(|file| file.flush().and_then(|()| file.get_ref().sync_all()))
            .and_then(|()| atomic::write_file(&self.dir.join(SUMMARY), &summary));
        Ok(written.map_err(FileError::writing(self.dir))?)
    }
}

impl Store {
    /// Makes the store `dir` of the rows that `fill` pushes; it appears whole or not at all.
    pub fn write(
        dir: &Path,
        fill: impl FnOnce(&mut StoreWriter) -> Result<Counts, DataError>,
    ) -> Result<(), DataError> {
        let refused = |source| FileError::writing(dir)(source).into();
        atomic::write_dir(dir, refused, |temporary| {
            let create = |name| File::create(temporary.join(name)).map(BufWriter::new);
            let mut writer = StoreWriter {
                dir: temporary,
                tokens: create(TOKENS).map_err(FileError::writing(dir))?,
                labels: None,
                index: create(INDEX).map_err(FileError::writing(dir))?,
                rows: 0,
                written: 0,
                lanes: Lanes::default(),
                token_hash: Fnv1a::default(),
                index_hash: Fnv1a::default(),
            };
            let counts = fill(&mut writer)?;
            writer.finish(counts)
        })
    }

    /// The store `dir`, if it is there and undamaged. Its tokens are read once, in order.
    pub fn open(dir: &Path) -> Result<Opened, DataError> {
        if !dir.exists() {
            return Ok(Opened::Missing);
        }
        let whole = |name: &str| match fs::read(dir.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other.map(Some).map_err(FileError::reading(&dir.join(name))),
        };
        let damaged = |name| Ok(Opened::Damaged(dir.join(name)));
        let Some(summary) = whole(SUMMARY)?.and_then(|bytes| Summary::from_bytes(&bytes)) else {
            return damaged(SUMMARY);
        };
        let right = |index: &Vec<u8>| hex(fnv1a(index)) == summary.index_hash;
        let Some(index) = whole(INDEX)?.filter(right) else { return damaged(INDEX) };
        let path = dir.join(TOKENS);
        let mut tokens = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return damaged(TOKENS),
            other => other.map_err(FileError::reading(&path))?,
        };
        let hash = Lanes::of(&mut tokens).map_err(FileError::reading(&path))?;
        if hex(hash) != summary.token_hash {
            return damaged(TOKENS);
        }
        let (places, prompt_hashes) =
            index.chunks_exact(ENTRY).map(Place::from_bytes).unzip::<_, _, Vec<_>, _>();
        let labels = match &summary.label_hash {
            None => None,
            Some(hash) => {
                let right = |labels: &Vec<u8>| hex(fnv1a(labels)) == *hash;
                let Some(labels) = whole(LABELS)?.filter(right) else { return damaged(LABELS) };
                let starts = places.iter().scan(0, |next, place: &Place| {
                    let [_, first, second] = place.parts();
                    Some(std::mem::replace(next, *next + first + second))
                });
                Some((starts.collect(), labels))
            }
        };
        let Summary { fingerprint, counts, .. } = summary;
        let tokens = tokens.into();
        Ok(Opened::Whole(Self { path, tokens, places, labels, prompt_hashes, fingerprint, counts }))
    }

    /// The hash of each row's whole prompt, which is given once, since it need not stay in memory.
    pub fn take_prompt_hashes(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.prompt_hashes)
    }

    /// How many rows it holds.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Rows whose scores are known.
    pub fn scored(&self) -> usize {
        self.places.iter().filter(|place| !place.score_gap.is_nan()).count()
    }

    /// The tokens of the longest prompt with a response.
    pub fn longest(&self) -> usize {
        let lengths = self.places.iter().map(|place| {
            let [prompt, first, second] = place.parts();
            prompt + first.max(second)
        });
        lengths.max().unwrap_or(0)
    }

    /// The tokens of the longest prompt, and of the longest response.
    pub fn longest_parts(&self) -> (usize, usize) {
        self.places
            .iter()
            .map(Place::parts)
            .fold((0, 0), |(prompt, response), [p, a, b]| (prompt.max(p), response.max(a).max(b)))
    }

    /// The row `i`, from 0.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub fn row(&self, i: usize) -> Result<StoredRow, DataError> {
        let place = self.places[i];
        let parts = place.parts();
        let mut bytes = vec![0; TOKEN * parts.iter().sum::<usize>()];
        let mut file = self.tokens.lock().expect("no reader panics");
        file.seek(SeekFrom::Start(place.start * TOKEN as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(FileError::reading(&self.path))?;
        let mut tokens = bytes
            .chunks_exact(TOKEN)
            .map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")));
        let [prompt, first, second] = parts.map(|n| tokens.by_ref().take(n).collect());
        let score_gap = Some(place.score_gap).filter(|gap| !gap.is_nan());
        let labels = self.labels.as_ref().map(|(starts, labels)| {
            let mut of = labels[starts[i]..].iter().map(|&label| label as i8);
            [parts[1], parts[2]].map(|n| of.by_ref().take(n).collect())
        });
        Ok(StoredRow { prompt, responses: [first, second], score_gap, labels })
    }
}

/// A list of items, in memory or in a store.
#[derive(Clone, Debug)]
pub enum Items<T> {
    /// In memory.
    Memory(Vec<T>),
    /// Rows of a store, by their numbers.
    Stored(Arc<Store>, Vec<u32>),
}

impl<T: PartialEq> Items<T> {
    /// Whether these are the same items, in the same order; rows of two stores are not.
    pub fn are(&self, others: &Self) -> bool {
        match (self, others) {
            (Self::Memory(items), Self::Memory(others)) => items == others,
            (Self::Stored(store, rows), Self::Stored(other, others)) => {
                Arc::ptr_eq(store, other) && rows == others
            }
            _ => false,
        }
    }
}

impl<T: Clone + From<StoredRow>> Items<T> {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Memory(items) => items.len(),
            Self::Stored(_, rows) => rows.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of the longest prompt and of the longest response in the store, if there is one.
    pub fn longest_parts(&self) -> Option<(usize, usize)> {
        match self {
            Self::Memory(_) => None,
            Self::Stored(store, _) => Some(store.longest_parts()),
        }
    }

    /// The item `i`, from 0.
    ///
    /// # Panics
    ///
    /// If there is no such item.
    pub fn get(&self, i: usize) -> Result<T, DataError> {
        match self {
            Self::Memory(items) => Ok(items[i].clone()),
            Self::Stored(store, rows) => store.row(rows[i] as usize).map(T::from),
        }
    }

    /// The items with these numbers.
    pub fn read(&self, items: impl IntoIterator<Item = usize>) -> Result<Vec<T>, DataError> {
        items.into_iter().map(|i| self.get(i)).collect()
    }

    /// All items in order, `size` of them in memory at a time.
    pub fn chunks(&self, size: usize) -> impl Iterator<Item = Result<Vec<T>, DataError>> {
        let starts = (0..self.len()).step_by(size.max(1));
        starts.map(move |start| self.read(start..self.len().min(start + size.max(1))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_place_is_what_its_bytes_say(
            start in any::<u64>(), prompt in any::<u32>(), responses in any::<[u32; 2]>(),
            score_gap in -1e30f32..1e30, hash in any::<u64>(),
        ) {
            let bytes = Place { start, prompt, responses, score_gap }.to_bytes(hash);
            prop_assert_eq!(bytes.len(), ENTRY);
            let (place, read) = Place::from_bytes(&bytes);
            prop_assert_eq!((place.start, place.prompt, place.responses), (start, prompt, responses));
            prop_assert_eq!((place.score_gap, read), (score_gap, hash));
        }
    }
}
