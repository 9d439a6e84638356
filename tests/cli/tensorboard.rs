//! TensorBoard's event files, read by a reader of the test's own, and by TensorBoard where it is installed.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{copy, files, finish, json_lines, program, python_with};

const NAME: &str = "events.out.tfevents.segment-rlhf";

/// A record without its wall time: the step, numbers by tag, texts by tag.
type Record = (u64, BTreeMap<String, f32>, BTreeMap<String, String>);

/// CRC-32C bit by bit, masked as TFRecord has it.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The events of a file, whose checksums are right.
fn events(mut bytes: &[u8]) -> Vec<&[u8]> {
    let crc = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!(masked_crc(&bytes[..8]), crc(&bytes[8..12]));
        let event = &bytes[12..12 + length];
        assert_eq!(masked_crc(event), crc(&bytes[12 + length..16 + length]));
        events.push(event);
        bytes = &bytes[16 + length..];
    }
    events
}

/// The fields of a protocol buffer, by number: bytes, or a number as its bytes.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let content = match key & 7 {
            0 => varint(&mut bytes).to_le_bytes().to_vec(),
            wire => {
                let length = match wire {
                    1 => 8,
                    2 => varint(&mut bytes) as usize,
                    5 => 4,
                    other => panic!("wire type {other}"),
                };
                let (content, rest) = bytes.split_at(length);
                bytes = rest;
                content.to_vec()
            }
        };
        fields.push((key >> 3, content));
    }
    fields
}

/// The field of this number, which is there once.
fn field(bytes: &[u8], number: u64) -> Option<Vec<u8>> {
    let mut found = fields(bytes).into_iter().filter(|(n, _)| *n == number).map(|(_, of)| of);
    let first = found.next();
    assert!(found.next().is_none(), "field {number} is there twice");
    first
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// The wall times and the records of the event file in the folder `dir`, after the version.
#[track_caller]
fn read(dir: &Path) -> (Vec<f64>, Vec<Record>) {
    let bytes = fs::read(dir.join(NAME)).unwrap();
    let events = events(&bytes);
    let time = |event: &&[u8]| f64::from_le_bytes(field(event, 1).unwrap().try_into().unwrap());
    assert_eq!(field(events[0], 3).map(text).as_deref(), Some("brain.Event:2"));
    let record = |event: &&[u8]| {
        let step = field(event, 2).map_or(0, |step| u64::from_le_bytes(step.try_into().unwrap()));
        let (mut numbers, mut texts) = (BTreeMap::new(), BTreeMap::new());
        for (number, value) in fields(&field(event, 5).unwrap()) {
            assert_eq!(number, 1);
            let tag = text(field(&value, 1).unwrap());
            match field(&value, 2) {
                Some(number) => {
                    assert!(
                        numbers
                            .insert(tag, f32::from_le_bytes(number.try_into().unwrap()))
                            .is_none()
                    );
                }
                None => {
                    let tensor = field(&value, 8).unwrap();
                    assert_eq!(field(&tensor, 1).unwrap()[0], 7, "DT_STRING");
                    let plugin = field(&field(&value, 9).unwrap(), 1).unwrap();
                    assert_eq!(text(field(&plugin, 1).unwrap()), "text");
                    texts.insert(tag, text(field(&tensor, 8).unwrap()));
                }
            }
        }
        (step, numbers, texts)
    };
    (events.iter().map(time).collect(), events[1..].iter().map(record).collect())
}

/// What the logs in the folder `dir` say, as records.
fn of_logs(dir: &Path) -> Vec<Record> {
    let mut records = Vec::new();
    for (order, (log, group)) in
        [("evaluations.jsonl", "evaluation"), ("metrics.jsonl", "train")].into_iter().enumerate()
    {
        let path = dir.join(log);
        for line in path.exists().then(|| json_lines(&path)).into_iter().flatten() {
            let (mut step, mut numbers, mut texts) = (0, BTreeMap::new(), BTreeMap::new());
            for (key, value) in line.as_object().unwrap() {
                let tag = format!("{group}/{key}");
                match value {
                    Value::Number(number) if ["step", "iteration"].contains(&key.as_str()) => {
                        step = number.as_u64().unwrap()
                    }
                    Value::Number(number) => {
                        numbers.insert(tag, number.as_f64().unwrap() as f32);
                    }
                    Value::Object(sample) => texts.extend(sample.iter().map(|(key, text)| {
                        (format!("{tag}/{key}"), text.as_str().unwrap().to_owned())
                    })),
                    other => assert_eq!(*other, Value::Null),
                }
            }
            records.push((order, (step, numbers, texts)));
        }
    }
    records.sort_by_key(|(order, (step, ..))| (*step, *order));
    records.into_iter().map(|(_, record)| record).collect()
}

const BEFORE_PPO: [&str; 3] = ["sft", "train-reward", "fit-normalizer"];

#[test]
fn the_checksum_is_the_published_one() {
    // The check value of CRC-32C, before the mask: https://reveng.sourceforge.io/crc-catalogue, CRC-32/ISCSI.
    let unmasked = masked_crc(b"123456789").wrapping_sub(0xa282_ead8).rotate_left(15);
    assert_eq!(unmasked, 0xe306_9283);
}

#[test]
fn the_events_are_the_logs_and_the_same_after_stops() {
    let ready = TempDir::new().unwrap();
    finish(ready.path(), &BEFORE_PPO, &[]);
    let (unbroken, stopped) = (copy(ready.path()), copy(ready.path()));
    finish(unbroken.path(), &["ppo"], &["--tensorboard"]);
    for _ in 0..2 {
        program(stopped.path(), &["ppo", "--tensorboard", "--stop-after", "1"]).ended_with(130);
    }
    // A kill leaves half a record, and lines behind the checkpoint.
    let dir = stopped.path().join("segment/ppo");
    let metrics = fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    fs::write(
        dir.join("metrics.jsonl"),
        format!("{metrics}{}\n{{", metrics.lines().last().unwrap()),
    )
    .unwrap();
    let written = fs::read(dir.join(NAME)).unwrap();
    fs::write(dir.join(NAME), &written[..written.len() - 9]).unwrap();
    let before = fs::metadata(dir.join(NAME)).unwrap();
    finish(stopped.path(), &["ppo"], &["--tensorboard"]);
    let (walls, records) = read(&dir);
    let (_, expected) = read(&unbroken.path().join("segment/ppo"));
    assert_eq!(records, expected);
    assert_eq!(records, of_logs(&dir));
    assert!(walls.is_sorted(), "{walls:?}");
    let time = |event: &&[u8]| f64::from_le_bytes(field(event, 1).unwrap().try_into().unwrap());
    let known: Vec<f64> = events(&written).iter().map(time).collect();
    let whole = known.len() - 1;
    assert!(whole > 3);
    assert_eq!(walls[..whole], known[..whole], "times of what was done before stay");
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let inode = fs::metadata(dir.join(NAME)).unwrap().ino();
        assert_eq!(inode, before.ino(), "a TensorBoard that has the file open goes on");
    }

    // The steps and tags that a user looks for.
    let steps: Vec<u64> = records.iter().map(|(step, ..)| *step).collect();
    assert_eq!(steps, [0, 0, 1, 2, 2, 3, 4], "4 iterations, evaluations after 0, 2 and 4");
    assert!(records[1].1.contains_key("train/kl_k1"));
    assert!(records[0].1.contains_key("evaluation/gold"));
    assert!(records[0].2["evaluation/sample/prompt"].starts_with("<user> write to"));
    assert!(!records[6].2["evaluation/sample/response"].is_empty());
}

#[test]
fn the_flag_comes_and_goes_and_changes_no_result() {
    for (stage, before, dir) in [
        ("sft", &[][..], "sft"),
        ("train-reward", &["sft"], "segment/reward"),
        ("dpo", &["sft"], "dpo/dpo"),
    ] {
        let method = ["--method", "dpo", "--set", "dpo.batch=4"];
        let method: &[&str] = if stage == "dpo" { &method } else { &[] };
        let ready = TempDir::new().unwrap();
        finish(ready.path(), before, &[]);
        let runs = [(); 3].map(|()| copy(ready.path()));
        let [always, later, afterwards] = &runs;
        let stop = [&[stage, "--stop-after", "1"], method].concat();
        finish(always.path(), &[stage], &[&["--tensorboard"], method].concat());
        program(later.path(), &stop).ended_with(130);
        finish(later.path(), &[stage], &[&["--tensorboard"], method].concat());
        finish(afterwards.path(), &[stage], method);
        let without: Vec<PathBuf> = files(&afterwards.path().join(dir));
        finish(afterwards.path(), &[stage], &[&["--tensorboard"], method].concat());
        let dirs = runs.each_ref().map(|run| run.path().join(dir));
        let expected = of_logs(&dirs[0]);
        assert!(expected.iter().all(|(_, numbers, _)| numbers.contains_key("train/loss")));
        for dir in &dirs {
            assert_eq!(read(dir).1, expected, "{}", dir.display());
            let summary = |dir: &Path| fs::read(dir.join("summary.json")).unwrap();
            assert_eq!(summary(dir), summary(&dirs[0]));
        }
        let with: Vec<PathBuf> =
            files(&dirs[2]).into_iter().filter(|path| !path.ends_with(NAME)).collect();
        assert_eq!(with, without);
        // What is right is not written again.
        let written = fs::read(dirs[2].join(NAME)).unwrap();
        finish(afterwards.path(), &[stage], &[&["--tensorboard"], method].concat());
        assert_eq!(fs::read(dirs[2].join(NAME)).unwrap(), written);
    }
}

#[test]
fn a_grid_has_them_in_the_folders_of_its_stages() {
    let run = TempDir::new().unwrap();
    let grid = ["reproduce", "--set", r#"reproduce.methods=["bandit"]"#];
    program(run.path(), &grid).ended_with(0);
    let before = files(run.path());
    program(run.path(), &[&grid[..], &["--tensorboard"]].concat()).ended_with(0);
    let (events, others): (Vec<PathBuf>, Vec<PathBuf>) =
        files(run.path()).into_iter().partition(|path| path.ends_with(NAME));
    assert_eq!(others, before, "the same folders, nothing else new");
    assert_eq!(events.len(), 3, "sft, reward, ppo: {events:?}");
    for path in events {
        let dir = run.path().join(path.parent().unwrap());
        assert_eq!(read(&dir).1, of_logs(&dir));
    }
}

#[test]
fn tensorboard_reads_them() {
    let Some(mut python) = python_with(&["tensorboard"]) else { return };
    let run = TempDir::new().unwrap();
    finish(run.path(), &BEFORE_PPO, &[]);
    finish(run.path(), &["ppo"], &["--tensorboard"]);
    let script = "\
import json, sys
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
events = EventAccumulator(sys.argv[1], size_guidance=dict(scalars=0, tensors=0)).Reload()
scalars = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()['scalars']}
texts = {tag: [(e.step, e.tensor_proto.string_val[0].decode()) for e in events.Tensors(tag)]
         for tag in events.Tags()['tensors']}
assert set(texts) == set(events.summary_metadata) & set(texts)
assert {events.summary_metadata[tag].plugin_data.plugin_name for tag in texts} == {'text'}
print(json.dumps([scalars, texts]))";
    let dir = run.path().join("segment/ppo");
    let output = python.args(["-c", script]).arg(&dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [mut scalars, mut texts] = [(); 2].map(|()| BTreeMap::<String, Vec<Value>>::new());
    for (step, numbers, written) in of_logs(&dir) {
        for (tag, number) in numbers {
            scalars.entry(tag).or_default().push(json!([step, f64::from(number)]));
        }
        for (tag, text) in written {
            texts.entry(tag).or_default().push(json!([step, text]));
        }
    }
    assert_eq!(read, json!([scalars, texts]));
}
