//! Each stage, and a whole reproduction, ended by a signal at random moments and started again, gives bit for
//! bit what an unbroken run gives. The moments are drawn over the time that an unbroken run takes: startup,
//! steps, and the writing of checkpoints, which stand after every step here.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rand::Rng;
use segment_rlhf::rng::stream;
use tempfile::TempDir;

use crate::support::{PROGRAM, assert_same, command_line, copy, files, finish};

/// The stages, each with those that must run before it.
const STAGES: [(&str, &[&str]); 7] = [
    ("sft", &[]),
    ("preferences", &["sft"]),
    ("train-reward", &["sft"]),
    ("fit-normalizer", &["sft", "train-reward"]),
    ("ppo", &["sft", "train-reward", "fit-normalizer"]),
    ("evaluate", &["sft", "train-reward", "fit-normalizer", "ppo"]),
    ("reproduce", &[]),
];

const ARGUMENTS: [&str; 4] =
    ["--set", "checkpoint.every=1", "--set", r#"reproduce.methods=["segment_as_bandit", "token"]"#];

/// What the signals that met the running program left.
#[derive(Default)]
struct Hits {
    /// No checkpoint, and no result of a stage.
    before: usize,
    /// A checkpoint, or the result of a stage of a reproduction.
    between: usize,
    /// The result of the whole.
    after: usize,
    /// Among all of them: something half-written.
    writing: usize,
    /// Runs that came to their end, and were compared with the unbroken one.
    compared: usize,
}

fn start(run: &Path, stage: &str) -> Child {
    Command::new(PROGRAM)
        .args(command_line(run, &[&[stage], &ARGUMENTS[..]].concat(), "1"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Sends `signal` to `stage` at random moments until it has met the running program `moments` times.
fn strike(stage: &str, before: &[&str], signal: &str, moments: usize) -> Hits {
    let ready = TempDir::new().unwrap();
    finish(ready.path(), before, &ARGUMENTS);
    let unbroken = copy(ready.path());
    let begin = Instant::now();
    finish(unbroken.path(), &[stage], &ARGUMENTS);
    let whole = begin.elapsed().as_secs_f64();

    let mut hits = Hits::default();
    let mut draw = stream(0, &format!("{signal} {stage}"), 0);
    let mut run = copy(ready.path());
    let mut met = 0;
    while met < moments {
        let mut child = start(run.path(), stage);
        sleep(Duration::from_secs_f64(draw.random_range(0.0..whole)));
        let running = child.try_wait().unwrap().is_none();
        if running {
            send(signal, &mut child);
        }
        let status = child.wait().unwrap();
        if running {
            met += 1;
            hits.record(run.path(), stage);
        }
        match status.code() {
            // The end came before the signal, or the signal after the last forward pass.
            Some(0) => {
                compare(&unbroken, &run, &mut hits);
                run = copy(ready.path());
            }
            Some(130) => assert_ne!(signal, "KILL"),
            // The signal ended the program: TERM and INT do before their handler is set.
            None => {}
            other => panic!("{stage} ended with {other:?} after {signal}"),
        }
    }
    finish(run.path(), &[stage], &ARGUMENTS);
    compare(&unbroken, &run, &mut hits);
    hits
}

fn send(signal: &str, child: &mut Child) {
    if signal == "KILL" {
        child.kill().unwrap();
    } else {
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    }
}

fn compare(unbroken: &TempDir, run: &TempDir, hits: &mut Hits) {
    assert_same(unbroken.path(), run.path());
    hits.compared += 1;
}

impl Hits {
    fn record(&mut self, run: &Path, stage: &str) {
        let own = match stage {
            "train-reward" => "segment/reward",
            "fit-normalizer" => "segment/normalizer",
            "ppo" => "segment/ppo",
            "evaluate" => "segment/evaluation",
            "reproduce" => "",
            same => same,
        };
        let result = if stage == "reproduce" { "table.md" } else { "summary.json" };
        let dir = run.join(own);
        let left = if dir.exists() { files(&dir) } else { Vec::new() };
        let any = |name: &str| left.iter().any(|path| path.ends_with(name));
        let hidden = |path: &std::path::PathBuf| {
            path.iter().any(|part| part.to_string_lossy().starts_with('.'))
        };
        self.writing += usize::from(left.iter().any(hidden));
        if dir.join(result).exists() {
            self.after += 1;
        } else if any("manifest.json") || any("summary.json") {
            self.between += 1;
        } else {
            self.before += 1;
        }
    }
}

fn each_signal(stage: usize) {
    let (stage, before) = STAGES[stage];
    strike(stage, before, "KILL", 10);
    strike(stage, before, "TERM", 3);
    strike(stage, before, "INT", 3);
}

#[test]
fn sft_ended_at_any_moment_is_bit_identical() {
    each_signal(0);
}

#[test]
fn preferences_ended_at_any_moment_are_bit_identical() {
    each_signal(1);
}

#[test]
fn train_reward_ended_at_any_moment_is_bit_identical() {
    each_signal(2);
}

#[test]
fn fit_normalizer_ended_at_any_moment_is_bit_identical() {
    each_signal(3);
}

#[test]
fn ppo_ended_at_any_moment_is_bit_identical() {
    each_signal(4);
}

#[test]
fn evaluate_ended_at_any_moment_is_bit_identical() {
    each_signal(5);
}

#[test]
fn reproduce_ended_at_any_moment_is_bit_identical() {
    each_signal(6);
}

/// The crash table: `cargo test --release --test cli -- --ignored --nocapture crash_table`.
#[test]
#[ignore = "takes minutes: 100 moments of each signal in each stage"]
fn crash_table() {
    println!(
        "| stage | signal | met | no checkpoint | checkpoint | result | half-written | compared |"
    );
    println!("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |");
    for (stage, before) in STAGES {
        for signal in ["KILL", "TERM", "INT"] {
            let hits = strike(stage, before, signal, 100);
            println!(
                "| {stage} | {signal} | 100 | {} | {} | {} | {} | {} |",
                hits.before, hits.between, hits.after, hits.writing, hits.compared
            );
        }
    }
}
