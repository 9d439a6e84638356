//! TensorBoard's event file of a stage: the numbers and texts of its logs.
//!
//! The file is derived. When a stage begins or goes on, it is made what the logs say, so that it holds each step once however
//! often the stage was stopped; then it grows with them. The times alone are its own.
//!
//! ```text
//! file     record*            the first is the version, then one a line of the logs
//! record   length: u64, masked CRC-32C of length: u32, event, masked CRC-32C of event: u32   (little endian)
//! ```
//!
//! # Source
//!
//! tensorflow/core/lib/io/record_writer.h; tensorflow/core/util/event.proto; tensorflow/core/framework/summary.proto.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use serde_json::{Map, Value};

use super::files::{FolderError, read_if_there, read_json_lines};
use crate::file_error::FileError;

/// TensorBoard reads the files whose names have `tfevents` in them.
const NAME: &str = "events.out.tfevents.segment-rlhf";

/// The logs that it shows, with what their tags begin with; of one step, in the order in which a stage writes them.
const LOGS: [(&str, &str); 2] = [("evaluations.jsonl", "evaluation"), ("metrics.jsonl", "train")];

/// The event file of a stage that is running.
pub(super) struct Events {
    dir: PathBuf,
    /// Open once it is what the logs say.
    file: Option<File>,
}

impl Events {
    /// The event file of the stage in the folder `dir`.
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, file: None }
    }

    /// Adds the line that was just written to the log `log`, if it shows that.
    pub(super) fn add(&mut self, log: &str, line: &str) -> Result<(), FolderError> {
        let Some(order) = LOGS.iter().position(|(name, _)| *name == log) else { return Ok(()) };
        let Some(file) = &mut self.file else { return self.catch_up() };
        let line = Line { order, fields: serde_json::from_str(line).expect("just written") };
        let record = record(&line.event(seconds(SystemTime::now())));
        Ok(file.write_all(&record).map_err(FileError::writing(&self.dir.join(NAME)))?)
    }

    /// Makes it what the logs say, unless it is.
    pub(super) fn catch_up(&mut self) -> Result<(), FolderError> {
        if self.file.is_none() {
            self.file = derive(&self.dir)?;
        }
        Ok(())
    }
}

/// Makes the event file of the stage in the folder `dir` what the logs say, and returns it, open at its end; `None`
/// for a stage without such logs. What is right stays in its place, for a TensorBoard that has it open.
pub(super) fn derive(dir: &Path) -> Result<Option<File>, FolderError> {
    let (path, mut lines, mut written) = (dir.join(NAME), Vec::new(), UNIX_EPOCH);
    for (order, (name, _)) in LOGS.iter().enumerate() {
        let log = dir.join(name);
        if let Ok(metadata) = fs::metadata(&log) {
            written = written.max(metadata.modified().map_err(FileError::reading(&log))?);
            lines.extend(read_json_lines(&log)?.into_iter().map(|fields| Line { order, fields }));
        }
    }
    if lines.is_empty() {
        return Ok(None);
    }
    lines.sort_by_key(|line| (line.step(), line.order));
    let old = read_if_there(&path)?.unwrap_or_default();
    let mut times = events(&old).into_iter().map(|event| event.wall_time);
    let mut time = || times.next().unwrap_or(seconds(written));
    let version = Some("brain.Event:2".to_owned());
    let mut new = record(&Event { wall_time: time(), file_version: version, ..Event::default() });
    lines.iter().for_each(|line| new.extend(record(&line.event(time()))));
    let right = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let write = || {
        let mut file = File::options().create(true).write(true).truncate(false).open(&path)?;
        file.set_len(right as u64)?;
        file.seek(SeekFrom::End(0))?;
        file.write_all(&new[right..])?;
        Ok(file)
    };
    Ok(Some(write().map_err(FileError::writing(&path))?))
}

/// A line of a log.
struct Line {
    /// Of the log, among [`LOGS`].
    order: usize,
    fields: Map<String, Value>,
}

impl Line {
    /// Steps or iterations done before it.
    fn step(&self) -> i64 {
        STEPS.iter().find_map(|key| self.fields.get(*key)?.as_i64()).unwrap_or_default()
    }

    fn event(&self, wall_time: f64) -> Event {
        let mut value = Vec::new();
        for (key, of) in &self.fields {
            if !STEPS.contains(&key.as_str()) {
                add_values(&format!("{}/{key}", LOGS[self.order].1), of, &mut value);
            }
        }
        let summary = Some(Summary { value });
        Event { wall_time, step: self.step(), file_version: None, summary }
    }
}

/// What counts the lines of a log.
const STEPS: [&str; 2] = ["step", "iteration"];

/// Adds a number or a text under `tag`, and what an object holds under longer ones; what is absent, or NaN, is left out.
fn add_values(tag: &str, of: &Value, values: &mut Vec<SummaryValue>) {
    let tag = tag.to_owned();
    match of {
        Value::Number(number) => {
            let number = number.as_f64().map(|number| number as f32);
            values.push(SummaryValue { tag, simple_value: number, ..SummaryValue::default() });
        }
        Value::String(text) => {
            let string_val = vec![text.clone().into_bytes()];
            let tensor = Some(Tensor { dtype: STRING, shape: Some(Shape {}), string_val });
            let plugin = Some(Plugin { name: "text".to_owned() });
            let metadata = Some(Metadata { plugin, data_class: TENSOR });
            values.push(SummaryValue { tag, tensor, metadata, simple_value: None });
        }
        Value::Object(fields) => {
            fields.iter().for_each(|(key, of)| add_values(&format!("{tag}/{key}"), of, values));
        }
        _ => {}
    }
}

fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn record(event: &Event) -> Vec<u8> {
    let event = event.encode_to_vec();
    let length = (event.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), &event, &masked_crc(&event)].concat()
}

fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// The events of a file, up to the first that is damaged.
fn events(mut bytes: &[u8]) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some((event, rest)) = first(bytes) {
        events.push(event);
        bytes = rest;
    }
    events
}

fn first(bytes: &[u8]) -> Option<(Event, &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (length_crc, rest) = rest.split_first_chunk::<4>()?;
    let (event, rest) = rest.split_at_checked(u64::from_le_bytes(*length).try_into().ok()?)?;
    let (event_crc, rest) = rest.split_first_chunk::<4>()?;
    let sound = masked_crc(length) == *length_crc && masked_crc(event) == *event_crc;
    Some((Event::decode(event).ok().filter(|_| sound)?, rest))
}

/// `DT_STRING`.
const STRING: i32 = 7;
/// `DATA_CLASS_TENSOR`.
const TENSOR: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(message, optional, tag = "8")]
    tensor: Option<Tensor>,
    #[prost(message, optional, tag = "9")]
    metadata: Option<Metadata>,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(int32, tag = "1")]
    dtype: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<Shape>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    string_val: Vec<Vec<u8>>,
}

/// Of a single value.
#[derive(Clone, PartialEq, Message)]
struct Shape {}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(message, optional, tag = "1")]
    plugin: Option<Plugin>,
    #[prost(int32, tag = "4")]
    data_class: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Plugin {
    #[prost(string, tag = "1")]
    name: String,
}
