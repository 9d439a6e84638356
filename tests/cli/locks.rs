//! Two runners of one stage, on one node or two, and readers beside them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use segment_rlhf::host;
use tempfile::TempDir;

use crate::ablate::stages;
use crate::support::{
    PROGRAM, assert_same, command_line, edit_json, files, finish, output, owner, program,
};

const ENDLESS: [&str; 3] = ["sft", "--set", "sft.epochs=100000"];

/// Starts `sft` with these arguments, and waits for its first step.
fn start(run: &Path, arguments: &[&str]) -> Child {
    let child = Command::new(PROGRAM)
        .args(command_line(run, arguments, "1"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let metrics = run.join("sft/metrics.jsonl");
    let start = Instant::now();
    while fs::metadata(&metrics).map_or(0, |file| file.len()) == 0 {
        assert!(start.elapsed() < Duration::from_secs(60), "the first runner has not begun");
        sleep(Duration::from_millis(10));
    }
    child
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_second_runner_of_a_stage_is_refused_and_told_who_the_first_is() {
    let run = TempDir::new().unwrap();
    let endless = ENDLESS;
    let first = start(run.path(), &endless);
    let named = format!("sft: in use by process {} on {} since 2", first.id(), host::name());
    let second = program(run.path(), &endless);
    // Told to go on without locks, it still sees one.
    let third = program(run.path(), &[&endless[..], &["--without-locks"]].concat());
    kill(first);
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
    let named = stage.with_extension("owner.json");
    fs::write(&named, owner(std::process::id())).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| program(run.path(), &arguments));
        sleep(Duration::from_secs(3));
        assert!(!waiting.is_finished());
        assert!(!stage.exists());
        let status = program(run.path(), &["status"]).ended_with(0).stdout;
        let row = status.lines().find(|line| line.contains("bandit")).unwrap();
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(columns[3..5], ["", "1"], "running: {status}");
        fs::remove_file(&named).unwrap();
        waiting.join().unwrap().ended_with(0);
    });
    assert_eq!(fs::read(stage.join("summary.json")).unwrap(), summary);
}

/// A folder as two nodes see it: by two mounts, of which neither sees the other's locks.
struct Nodes {
    folder: TempDir,
}

impl Nodes {
    fn new() -> Option<Self> {
        let nodes = Self { folder: TempDir::new().unwrap() };
        let shared = nodes.folder.path().join("shared");
        fs::create_dir(&shared).unwrap();
        for mount in [nodes.at(0), nodes.at(1)] {
            fs::create_dir(&mount).unwrap();
            let bound = Command::new("bindfs").args([&shared, &mount]).output();
            if !bound.is_ok_and(|output| output.status.success()) {
                println!("skipped: no bindfs that may mount here (Debian's package bindfs)");
                return None;
            }
        }
        let file = |node: usize| File::create(nodes.at(node).join("lock")).unwrap();
        let locks = [file(0), file(1)];
        locks.iter().for_each(|file| file.try_lock().unwrap());
        Some(nodes)
    }

    /// Where the node 0 or 1 has the folder.
    fn at(&self, node: usize) -> PathBuf {
        self.folder.path().join(format!("node-{node}"))
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for mount in [self.at(0), self.at(1)] {
            for command in [["umount", "-l"], ["fusermount", "-uz"]] {
                let mut unmount = Command::new(command[0]);
                let done = unmount.arg(command[1]).arg(&mount).stderr(Stdio::null()).status();
                if done.is_ok_and(|status| status.success()) {
                    break;
                }
            }
        }
    }
}

/// After 2 s without a sign of life, a folder is taken over.
const SHORT: [&str; 2] = ["--silence", "2"];

#[test]
fn on_another_node_the_second_runner_is_refused_too() {
    let Some(nodes) = Nodes::new() else { return };
    let first = start(&nodes.at(0), &[&ENDLESS[..], &SHORT].concat());
    let named = format!("sft: in use by process {} on {} since 2", first.id(), host::name());
    sleep(Duration::from_secs(3)); // it gives signs of life
    for further in [&SHORT[..], &["--without-locks"]] {
        let second = program(&nodes.at(1), &[&ENDLESS[..], further].concat());
        second.ended_with(2).says(&[&named]);
    }
    let status = program(&nodes.at(1), &["status"]).ended_with(0).stdout;
    let row = status.lines().find(|line| line.contains("segment")).unwrap();
    assert_eq!(row.split('|').nth(4).unwrap().trim(), "1", "running: {status}");
    kill(first);
    // On its own machine, its end is seen at once.
    program(&nodes.at(1), &[&ENDLESS[..], &["--stop-after", "1"]].concat()).ended_with(130);
}

#[test]
fn the_stage_of_a_node_that_was_lost_is_taken_over_after_a_silence() {
    let Some(nodes) = Nodes::new() else { return };
    let settings = ["sft", "--set", "sft.epochs=300", "--set", "checkpoint.every=50"];
    let unbroken = TempDir::new().unwrap();
    program(unbroken.path(), &settings).ended_with(0);
    kill(start(&nodes.at(0), &settings));
    let owner = nodes.at(1).join("sft.owner.json");
    edit_json(&owner, |owner| owner["host"] = "node-3".into());
    let arguments = [&settings[..], &SHORT].concat();
    program(&nodes.at(1), &arguments)
        .ended_with(2)
        .says(&["on node-3 since ", "the folder is free ten minutes after its last sign of life"]);
    sleep(Duration::from_secs(3));
    program(&nodes.at(1), &arguments).ended_with(0);
    assert!(!owner.exists());
    assert_same(&unbroken.path().join("sft"), &nodes.at(1).join("sft"));
}

/// Every file of the node's folder with its content and the time of its last change.
fn state(run: &Path) -> Vec<(PathBuf, Vec<u8>, SystemTime)> {
    let state = |path: PathBuf| {
        let (at, time) = (run.join(&path), |at: &Path| fs::metadata(at).unwrap().modified());
        (path, fs::read(&at).unwrap(), time(&at).unwrap())
    };
    files(run).into_iter().map(state).collect()
}

#[test]
fn a_runner_that_was_paused_finds_its_folder_taken_over_and_leaves_it_alone() {
    let Some(nodes) = Nodes::new() else { return };
    let settings = ["sft", "--set", "sft.epochs=300", "--set", "checkpoint.every=50"];
    let settings = [&settings[..], &SHORT].concat();
    let unbroken = TempDir::new().unwrap();
    program(unbroken.path(), &settings).ended_with(0);
    let signal = |child: &Child, signal: &str| {
        let id = child.id().to_string();
        assert!(Command::new("kill").args(["-s", signal, &id]).status().unwrap().success());
    };
    let first = start(&nodes.at(0), &settings);
    signal(&first, "STOP");
    let named = format!("in use by process {}", first.id());
    program(&nodes.at(1), &settings).ended_with(2).says(&[&named]);
    sleep(Duration::from_secs(3));
    program(&nodes.at(1), &settings).ended_with(0);
    let before = state(&nodes.at(1));
    signal(&first, "CONT");
    let ended = first.wait_with_output().unwrap();
    let said = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{said}");
    let lost = "sft: taken over by another process while this process gave no sign of life";
    assert!(said.contains(lost), "{said}");
    assert!(state(&nodes.at(1)) == before, "it wrote into the folder of another");
    assert_same(&unbroken.path().join("sft"), &nodes.at(1).join("sft"));
}

#[test]
fn two_nodes_on_one_grid_share_its_stages() {
    let Some(nodes) = Nodes::new() else { return };
    let alone = TempDir::new().unwrap();
    let file = alone.path().join("grid.toml");
    let text =
        "title = 'Two'\n[arms]\nbandit = { method = 'bandit' }\ntoken = { method = 'token' }";
    fs::write(&file, text).unwrap();
    let arguments = ["ablate", file.to_str().unwrap(), "--seeds", "2"];
    let single = program(&alone.path().join("run"), &arguments).ended_with(0);
    let both = std::thread::scope(|scope| {
        let run = |node: usize| {
            let line = command_line(&nodes.at(node).join("run"), &arguments, "1");
            scope.spawn(move || output(Command::new(PROGRAM).args(line)).ended_with(0))
        };
        [run(0), run(1)].map(|node| node.join().unwrap().stderr)
    });
    assert_eq!(stages(&both.concat()), stages(&single.stderr));
    let results = |run: &Path| fs::read(run.join("run/results.json")).unwrap();
    assert!(results(alone.path()) == results(&nodes.at(0)));
    assert_same(&alone.path().join("run/store"), &nodes.at(0).join("run/store"));
}
