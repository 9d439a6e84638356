//! Two runners of one stage, and readers beside them.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use segment_rlhf::host;
use tempfile::TempDir;

use crate::support::{PROGRAM, command_line, finish, program};

#[test]
fn the_second_runner_of_a_stage_is_refused_and_told_who_the_first_is() {
    let run = TempDir::new().unwrap();
    let endless = ["sft", "--set", "sft.epochs=100000"];
    let mut first = Command::new(PROGRAM)
        .args(command_line(run.path(), &endless, "1"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let metrics = run.path().join("sft/metrics.jsonl");
    let start = Instant::now();
    while fs::metadata(&metrics).map_or(0, |file| file.len()) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "the first runner has not begun");
        sleep(Duration::from_millis(10));
    }
    let named = format!("sft: in use by process {} on {} since 2", first.id(), host::name());
    let second = program(run.path(), &endless);
    // Told to go on without locks, it still sees one.
    let third = program(run.path(), &[&endless[..], &["--without-locks"]].concat());
    first.kill().unwrap();
    first.wait().unwrap();
    for refused in [second, third] {
        refused.ended_with(2).says(&[&named, "; wait until that ends, or name another folder"]);
    }
    // A kill leaves the name of the first, and no lock.
    let owner = run.path().join("sft.owner.json");
    assert!(owner.exists());
    program(run.path(), &[&endless[..], &["--stop-after", "1"]].concat()).ended_with(130);
    assert!(!owner.exists());
}

#[test]
fn a_finished_stage_is_read_whoever_has_its_lock() {
    let run = TempDir::new().unwrap();
    let path = |name: &str| run.path().join(name);
    let said = program(run.path(), &["sft"]).ended_with(0).stdout;
    // What the holder has not cleared away yet is its own.
    for left in ["sft.owner.json", "sft/checkpoints"] {
        fs::create_dir(path(left)).unwrap();
    }
    let held = File::create(path("sft.lock")).unwrap();
    held.lock().unwrap();
    assert_eq!(program(run.path(), &["sft"]).ended_with(0).stdout, said);
    finish(run.path(), &["preferences"], &[]);
    assert!(path("sft/checkpoints").exists());
    // And where there can be no lock at all.
    drop(held);
    fs::remove_file(path("sft.lock")).unwrap();
    fs::create_dir(path("sft.lock")).unwrap();
    assert_eq!(program(run.path(), &["sft"]).ended_with(0).stdout, said);
}

#[test]
fn a_grid_waits_for_a_stage_that_another_process_runs() {
    let run = TempDir::new().unwrap();
    let file = run.path().join("grid.toml");
    fs::write(&file, "title = 'One'\n[arms]\nbandit = { method = 'bandit' }").unwrap();
    let arguments = ["ablate", file.to_str().unwrap()];
    let listed = program(run.path(), &[&arguments[..], &["--jobs", "1"]].concat()).ended_with(0);
    assert!(listed.stdout.starts_with("1 cells"), "{}", listed.stdout);
    let store = run.path().join("store");
    let stage = fs::read_dir(&store).unwrap().map(|entry| entry.unwrap().path()).find(|path| {
        path.is_dir() && path.file_name().unwrap().to_str().unwrap().starts_with("evaluation-")
    });
    let stage = stage.unwrap();
    let summary = fs::read(stage.join("summary.json")).unwrap();
    fs::remove_dir_all(&stage).unwrap();
    let held = File::options().write(true).open(stage.with_extension("lock")).unwrap();
    held.lock().unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| program(run.path(), &arguments));
        sleep(Duration::from_secs(3));
        assert!(!waiting.is_finished());
        assert!(!stage.exists());
        let status = program(run.path(), &["status"]).ended_with(0).stdout;
        let row = status.lines().find(|line| line.contains("bandit")).unwrap();
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(columns[3..5], ["", "1"], "running: {status}");
        held.unlock().unwrap();
        waiting.join().unwrap().ended_with(0);
    });
    assert_eq!(fs::read(stage.join("summary.json")).unwrap(), summary);
}
