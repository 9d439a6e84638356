//! A signal ends every command at once, with status 130, and what a stage gives after it is what an unbroken run gives.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::{PROGRAM, assert_same, command_line, copy, finish};

/// Starts the program, which writes into pipes.
fn start(run: &Path, arguments: &[&str]) -> Child {
    Command::new(PROGRAM)
        .args(command_line(run, arguments, "1"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Sends the signal, and returns what the program writes to standard error until it has ended with status 130.
#[track_caller]
fn interrupt(mut child: Child, signal: &str) -> String {
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{text}");
    assert!(text.contains("stopping after this forward pass; again to stop at once"), "{text}");
    text
}

/// Interrupts `stage`, of a second or more with these settings, when the file `progress` has these numbers of lines; each
/// try goes on from the one before. The numbers are far apart: one that was passed before would be met while the program
/// starts, when a signal simply kills it.
#[track_caller]
fn stopped_is_unbroken(
    stage: &str,
    before: &[&str],
    settings: &[&str],
    progress: &str,
    moments: [usize; 3],
) {
    let settings: Vec<&str> = settings.iter().flat_map(|set| ["--set", set]).collect();
    let run = TempDir::new().unwrap();
    finish(run.path(), before, &settings);
    let unbroken = copy(run.path());
    finish(unbroken.path(), &[stage], &settings);
    let path = run.path().join(progress);
    for (moment, signal) in moments.into_iter().zip(["TERM", "INT", "TERM"]) {
        let mut child = start(run.path(), &[&[stage], &settings[..]].concat());
        let lines = || fs::read_to_string(&path).map_or(0, |text| text.lines().count());
        while lines() < moment {
            assert!(child.try_wait().unwrap().is_none(), "ended before line {moment}");
            sleep(Duration::from_millis(2));
        }
        let text = interrupt(child, signal);
        let again = "stopped; run the same command again to go on from what is saved in";
        assert!(text.contains(again), "{text}");
        let dir = progress.split("/checkpoints/").next().unwrap();
        let dir = run.path().join(dir.trim_end_matches("/metrics.jsonl"));
        assert!(text.contains(dir.to_str().unwrap()), "{text}");
        assert!(!dir.join("summary.json").exists());
    }
    finish(run.path(), &[stage], &settings);
    assert_same(unbroken.path(), run.path());
}

#[test]
fn a_signal_ends_sft() {
    let settings = ["sft.epochs=300", "checkpoint.every=3000"];
    stopped_is_unbroken("sft", &[], &settings, "sft/metrics.jsonl", [1, 400, 800]);
}

#[test]
fn a_signal_ends_preferences() {
    let settings = ["task.pairs=3200", "sampling.rows_at_once=16"];
    let progress = "preferences/checkpoints/train.jsonl";
    stopped_is_unbroken("preferences", &["sft"], &settings, progress, [1, 130, 260]);
}

#[test]
fn a_signal_ends_the_cutting_of_pairs_into_segments() {
    let settings = ["task.pairs=2400", "reward.rows_at_once=1", "reward.epochs=1"];
    let progress = "segment/reward/checkpoints/segments-train.jsonl";
    let before = ["sft", "preferences"];
    stopped_is_unbroken("train-reward", &before, &settings, progress, [1, 800, 1600]);
}

#[test]
fn a_signal_ends_fit_normalizer() {
    let settings =
        ["task.pairs=2400", "reward.epochs=1", "normalizer.pairs=2400", "reward.rows_at_once=1"];
    let progress = "segment/normalizer/checkpoints/rewards.jsonl";
    let before = ["sft", "train-reward"];
    stopped_is_unbroken("fit-normalizer", &before, &settings, progress, [1, 800, 1600]);
}

#[test]
fn a_signal_ends_ppo() {
    let settings = ["ppo.iterations=60"];
    let before = ["sft", "train-reward", "fit-normalizer"];
    stopped_is_unbroken("ppo", &before, &settings, "segment/ppo/metrics.jsonl", [1, 20, 40]);
}

#[test]
fn a_signal_ends_evaluate() {
    let settings = ["evaluation.samples=400", "sampling.rows_at_once=4", "ppo.evaluate_every=4"];
    let progress = "segment/evaluation/checkpoints/policy-responses.jsonl";
    let before = ["sft", "train-reward", "fit-normalizer", "ppo"];
    stopped_is_unbroken("evaluate", &before, &settings, progress, [1, 130, 260]);
}

/// Interrupts a command that keeps nothing once it has printed its first line.
#[track_caller]
fn ends_without_a_trace(run: &Path, arguments: &[&str]) {
    let mut child = start(run, arguments);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    assert_ne!(stdout.read_line(&mut String::new()).unwrap(), 0, "it prints a line");
    let rest = std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
    let text = interrupt(child, "TERM");
    rest.join().unwrap().unwrap();
    let last = "stopped; this command saves nothing before its end: run it again";
    assert!(text.contains(last), "{text}");
}

#[test]
fn a_signal_ends_generate_and_score() {
    let run = TempDir::new().unwrap();
    finish(run.path(), &["sft", "train-reward"], &[]);
    ends_without_a_trace(run.path(), &["generate", "--reference", "--samples", "20000"]);
    let texts = run.path().join("texts.jsonl");
    let row = r#"{"prompt": "write to emma .", "response": "dear emma , the abbey ."}"#;
    fs::write(&texts, [row, "\n"].concat().repeat(20_000)).unwrap();
    ends_without_a_trace(run.path(), &["score", texts.to_str().unwrap(), "--json"]);
}
