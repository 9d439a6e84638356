//! Grids of experiments: what cells share is trained once, a kill costs nothing but time, a cell that fails leaves
//! the others alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use rand::Rng;
use segment_rlhf::rng::stream;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Output, PROGRAM, assert_same, command_line, files, program};

/// Two cells that share the SFT model and the pairs.
const TWO: &str = r#"
title = "Two"
[arms]
bandit = { method = "bandit" }
token = { method = "token" }
"#;

/// A folder with an experiment file `grid.toml` of this text; the grid goes to the folder `run` beside it.
struct Grid(TempDir);

impl Grid {
    fn new(text: &str) -> Self {
        let grid = Self(TempDir::new().unwrap());
        grid.write(text);
        grid
    }

    fn write(&self, text: &str) {
        fs::write(self.file(), text).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("grid.toml")
    }

    fn run(&self) -> PathBuf {
        self.0.path().join("run")
    }

    fn arguments<'a>(&self, file: &'a str, further: &[&'a str]) -> Vec<String> {
        command_line(&self.run(), &[&["ablate", file], further].concat(), "1")
    }

    fn ablate(&self, further: &[&str]) -> Output {
        let file = self.file();
        program(&self.run(), &[&["ablate", file.to_str().unwrap()], further].concat())
    }

    /// Starts `ablate`, its standard error to be read from the process.
    fn start(&self) -> Child {
        let file = self.file();
        Command::new(PROGRAM)
            .args(self.arguments(file.to_str().unwrap(), &[]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn status(&self) -> Output {
        program(&self.run(), &["status"])
    }

    fn report(&self) -> Output {
        program(&self.run(), &["report"])
    }

    fn results(&self) -> Vec<u8> {
        fs::read(self.run().join("results.json")).unwrap()
    }

    fn cells(&self) -> Vec<Value> {
        let results: Value = serde_json::from_slice(&self.results()).unwrap();
        results["cells"].as_array().unwrap().clone()
    }

    /// The state of each cell in the results.
    fn states(&self) -> Vec<String> {
        let name = |cell: &Value| match &cell["state"] {
            Value::String(name) => name.clone(),
            state => state.as_object().unwrap().keys().next().unwrap().clone(),
        };
        self.cells().iter().map(name).collect()
    }

    /// The folders of this stage.
    fn folders(&self, stage: &str) -> Vec<PathBuf> {
        let own = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            path.is_dir() && name.starts_with(&format!("{stage}-"))
        };
        let store = fs::read_dir(self.run().join("store")).unwrap();
        store.map(|entry| entry.unwrap().path()).filter(own).collect()
    }

    /// When each file of the stages was written last.
    fn written(&self) -> BTreeMap<PathBuf, SystemTime> {
        let store = self.run().join("store");
        let mut files = files(&store);
        files.retain(|path| path.extension().is_none_or(|extension| extension != "lock"));
        let time = |path: &PathBuf| fs::metadata(store.join(path)).unwrap().modified().unwrap();
        files.into_iter().map(|path| (path.clone(), time(&path))).collect()
    }
}

/// The stages that standard error tells of, each with its result, in order.
pub fn stages(stderr: &str) -> Vec<&str> {
    let told = stderr.lines().filter(|line| line.ends_with(" s)"));
    let mut stages: Vec<&str> = told.map(|line| line.rsplit_once(" (").unwrap().0).collect();
    stages.sort_unstable();
    stages
}

#[test]
fn what_cells_share_is_trained_once() {
    let all = r#"
        title = "Six"
        [arms]
        bandit = { method = "bandit" }
        sentence = { method = "sentence" }
        token = { method = "token" }
        segment = { method = "segment" }
        "bandit as segment" = { method = "bandit_as_segment" }
        "segment as bandit" = { method = "segment_as_bandit" }
    "#;
    let grid = Grid::new(all);
    grid.ablate(&["--seeds", "2"]).ended_with(0);
    let count = |stage| grid.folders(stage).len();
    let counts = ["sft", "preferences", "reward", "normalizer", "ppo", "evaluation"].map(count);
    assert_eq!(counts, [2, 2, 8, 12, 12, 12]);
    assert_eq!(grid.states(), ["finished"; 12]);
}

#[test]
fn experiments_share_the_cells_with_the_same_settings() {
    let grid = Grid::new("title = 'Both'\ninclude = ['one.toml', 'two.toml']");
    let write = |name: &str, text: &str| fs::write(grid.0.path().join(name), text).unwrap();
    write("one.toml", "title = '1'\n[arms]\nours = {}\nbandit = { method = 'bandit' }");
    write("two.toml", "title = '2'\nours = ['few']\n[arms]\nfew = { task.pairs = 12 }\nmany = {}");
    grid.ablate(&[]).ended_with(0);
    let results: Value = serde_json::from_slice(&grid.results()).unwrap();
    let cells = |experiment: usize, arm: usize| {
        results["experiments"][experiment]["arms"][arm]["cells"].clone()
    };
    assert_eq!(cells(0, 0), cells(1, 1));
    assert_eq!(results["cells"].as_array().unwrap().len(), 3);
    assert_eq!(results["experiments"][1]["arms"][0]["ours"], true);
    let alone = Grid::new("title = '1'\n[arms]\nours = {}\nbandit = { method = 'bandit' }");
    alone.ablate(&[]).ended_with(0);
    assert_eq!(alone.cells(), grid.cells()[..2], "what a cell gives is its own matter");
}

#[test]
fn a_grid_killed_at_any_moment_and_started_again_gives_the_same_results() {
    let unbroken = Grid::new(TWO);
    let begin = Instant::now();
    unbroken.ablate(&[]).ended_with(0);
    let whole = begin.elapsed().as_secs_f64();
    let mut draw = stream(0, "kill a grid", 0);
    let mut met = 0;
    while met < 12 {
        let grid = Grid::new(TWO);
        // Some are killed twice.
        for _ in 0..draw.random_range(1..=2) {
            let mut child = grid.start();
            sleep(Duration::from_secs_f64(draw.random_range(0.0..whole)));
            met += usize::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap();
            child.wait().unwrap();
        }
        grid.ablate(&[]).ended_with(0);
        assert!(grid.results() == unbroken.results(), "results.json differs");
        assert_same(&unbroken.run().join("store"), &grid.run().join("store"));
    }
}

#[test]
fn what_is_finished_is_not_run_again() {
    let grid = Grid::new(TWO);
    grid.ablate(&[]).ended_with(0);
    let (written, results) = (grid.written(), grid.results());
    let again = grid.ablate(&[]).ended_with(0);
    assert_eq!(stages(&again.stderr), [""; 0]);
    assert_eq!(grid.written(), written);
    assert!(grid.results() == results);

    // A further seed and a further arm leave the old cells as they are.
    grid.write(&format!("{TWO}\nsegment = {{}}"));
    grid.ablate(&["--seeds", "2"]).ended_with(0);
    let now = grid.written();
    assert!(written.iter().all(|(path, time)| now[path] == *time));
    let cells = grid.cells();
    assert_eq!(cells.len(), 6);
    let old: Value = serde_json::from_slice(&results).unwrap();
    assert_eq!(cells[..2], old["cells"].as_array().unwrap()[..]);
}

#[test]
fn jobs_change_no_result() {
    let (one, three) = (Grid::new(TWO), Grid::new(TWO));
    one.ablate(&["--jobs", "1", "--seeds", "2"]).ended_with(0);
    three.ablate(&["--jobs", "3", "--seeds", "2"]).ended_with(0);
    assert!(one.results() == three.results());
    assert_same(&one.run().join("store"), &three.run().join("store"));
}

#[test]
fn two_runners_on_one_folder_share_the_stages() {
    let (alone, shared) = (Grid::new(TWO), Grid::new(TWO));
    let single = alone.ablate(&[]).ended_with(0).stderr;
    let runners = [shared.start(), shared.start()];
    let told = runners.map(|runner| {
        let output = runner.wait_with_output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        stderr
    });
    assert_eq!(stages(&told.concat()), stages(&single), "each stage runs in one of the two");
    assert!(shared.results() == alone.results());
    assert_same(&alone.run().join("store"), &shared.run().join("store"));
}

#[test]
fn a_cell_that_fails_is_recorded_and_the_others_go_on() {
    let text = format!("{TWO}\ncold = {{ sampling.temperature = 0.5 }}\n");
    let wild = r#""too fast" = { reward.optimizer.learning_rate = 1e30 }"#;
    let grid = Grid::new(&format!("{text}{wild}"));
    let output = grid.ablate(&[]).ended_with(1).says(&[
        "cold ppo failed: settings sampling.*: PPO samples from the policy itself",
        "too fast train-reward failed: the reward gradient of model.",
        "error: 2 of 4 cells failed, the first one with: ",
    ]);
    assert_eq!(output.stdout, "");
    assert_eq!(grid.states(), ["finished", "finished", "failed", "failed"]);
    let failed = &grid.cells()[3]["state"]["failed"];
    assert_eq!(failed["stage"], "train-reward");
    assert!(failed["error"].as_str().unwrap().contains("is not finite at step 1"), "{failed}");
    let status = grid.status().ended_with(0).stdout;
    assert!(status.contains(": train-reward: the reward gradient of model."), "{status}");
    // They are tried again, and nothing else is.
    let written = grid.written();
    let again = grid.ablate(&[]).ended_with(1);
    assert!(stages(&again.stderr).iter().all(|stage| stage.starts_with("too fast")));
    let now = grid.written();
    let changed: Vec<_> = written.iter().filter(|(path, time)| now[*path] != **time).collect();
    let of_failed = |path: &PathBuf| {
        let folder = grid.run().join("store").join(path);
        folder.parent().unwrap().join("failed.json").exists()
    };
    assert!(!changed.is_empty() && changed.iter().all(|(path, _)| of_failed(path)), "{changed:?}");
}

#[test]
fn a_cell_that_failed_is_finished_once_its_cause_is_mended() {
    let unbroken = Grid::new(TWO);
    unbroken.ablate(&[]).ended_with(0);
    let grid = Grid::new(TWO);
    grid.ablate(&[]).ended_with(0);
    for folder in [grid.folders("ppo"), grid.folders("evaluation")].concat() {
        fs::remove_dir_all(folder).unwrap();
    }
    let hidden = grid.0.path().join("hidden");
    let model = grid.folders("sft").remove(0).join("model");
    fs::rename(&model, &hidden).unwrap();
    grid.ablate(&[]).ended_with(1).says(&["2 of 2 cells failed, the first one with: "]);
    assert_eq!(grid.states(), ["failed"; 2]);
    fs::rename(&hidden, &model).unwrap();
    grid.ablate(&[]).ended_with(0);
    assert!(grid.results() == unbroken.results());
    assert_same(&unbroken.run().join("store"), &grid.run().join("store"));
}

#[test]
fn a_dry_run_lists_the_cells_and_writes_nothing() {
    let grid = Grid::new(TWO);
    let listed = grid.ablate(&["--dry-run", "--seeds", "3", "--seed", "7"]).ended_with(0).stdout;
    let rows: Vec<&str> = listed.lines().filter(|line| line.starts_with("| grid")).collect();
    assert_eq!(rows.len(), 6, "{listed}");
    assert!(rows[0].contains("sft preferences train-reward fit-normalizer ppo evaluate"));
    assert!(rows[1].contains(" train-reward fit-normalizer ppo evaluate"), "{listed}");
    let seeds: Vec<&str> = rows.iter().map(|row| row.split('|').nth(3).unwrap().trim()).collect();
    assert_eq!(seeds, ["7", "7", "8", "8", "9", "9"]);
    assert!(listed.contains("0 of 6 cells finished, about "), "{listed}");
    assert!(!grid.run().exists());
    // The seed of the settings is the first one, too.
    let set = grid.ablate(&["--dry-run", "--set", "seed=7"]).ended_with(0).stdout;
    assert_eq!(set.lines().nth(2), listed.lines().nth(2));
}

#[test]
fn status_tells_how_far_a_grid_is() {
    let grid = Grid::new(TWO);
    // 8 steps of SFT, 6 of the first reward model, 4 iterations; 2 steps of the second.
    let stopped = grid.ablate(&["--jobs", "1", "--stop-after", "20"]).ended_with(130);
    stopped.says(&["stopped; run the same command again to go on from what is saved in"]);
    assert_eq!(grid.states(), ["finished", "pending"]);
    let rows = |status: &str| -> Vec<Vec<String>> {
        let rows = status.lines().filter(|line| line.starts_with("| grid"));
        rows.map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
    };
    let status = grid.status().ended_with(0).stdout;
    let found = rows(&status);
    assert_eq!(found[0][2..8], ["bandit", "1", "", "", "", ""], "{status}");
    assert_eq!(found[1][2..8], ["token", "", "", "1", "", ""], "{status}");
    assert!(status.contains("1 of 2 cells finished, about "), "{status}");
    grid.ablate(&[]).ended_with(0);
    assert!(grid.status().ended_with(0).stdout.contains("2 of 2 cells finished"));
}

#[test]
fn a_report_stands_on_what_is_finished() {
    let grid = Grid::new(TWO);
    grid.ablate(&["--jobs", "1", "--stop-after", "20"]).ended_with(130);
    let report = grid.report().ended_with(0).stdout;
    assert!(report.starts_with("1 of 2 cells, 0 left out; "), "{report}");
    let folder = grid.run().join("report");
    let tables = fs::read_to_string(folder.join("tables.md")).unwrap();
    assert!(tables.contains("bandit"), "{tables}");
    grid.ablate(&[]).ended_with(0);
    let report = grid.report().ended_with(0).stdout;
    assert!(report.starts_with("2 of 2 cells, 0 left out; "), "{report}");
    let written = fs::read(folder.join("results.json")).unwrap();
    assert!(written == grid.results());
    assert!(fs::read_to_string(folder.join("report.html")).unwrap().contains("</html>"));
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_its_cell_left_out() {
    let grid = Grid::new(TWO);
    grid.ablate(&[]).ended_with(0);
    let unbroken = grid.results();
    for (stage, name) in [
        ("reward", "summary.json"),
        ("normalizer", "normalizer.json"),
        ("ppo", "metrics.jsonl"),
        ("ppo", "evaluations.jsonl"),
        ("evaluation", "summary.json"),
    ] {
        let folder = grid.folders(stage).remove(0);
        let text = fs::read_to_string(folder.join(name)).unwrap();
        fs::write(folder.join(name), text.replacen(':', ":?", 1)).unwrap();
        let named = format!("{name}: not the expected content: ");
        let status = grid.status().ended_with(0).stdout;
        assert!(status.contains(&named), "{status}");
        assert!(status.contains("remove the folder of this file to run its stage again"));
        grid.ablate(&[]).ended_with(1).says(&["1 of 2 cells failed", &named]);
        let mut states = grid.states();
        states.sort();
        assert_eq!(states, ["corrupt", "finished"]);
        let report = grid.report().ended_with(0).says(&["left out: cell ", &named]).stdout;
        assert!(report.starts_with("1 of 2 cells, 1 left out; "), "{report}");
        fs::remove_dir_all(folder).unwrap();
        grid.ablate(&[]).ended_with(0);
        assert!(grid.results() == unbroken, "{stage}");
    }
}

#[test]
fn an_infinite_cutoff_is_a_setting_as_any_other() {
    let text = "title = 't'\n[axes]\n'segmentation.entropy_cutoff' = [0.0, inf]";
    let grid = Grid::new(text);
    grid.ablate(&[]).ended_with(0);
    let status = grid.status().ended_with(0).stdout;
    assert!(status.contains("2 of 2 cells finished"), "{status}");
    let results: segment_rlhf::grid::results::Results =
        serde_json::from_slice(&grid.results()).unwrap();
    let lengths = results.cells.iter().map(|cell| cell.figures().unwrap().curve.segments[0]);
    let lengths: Vec<f64> = lengths.collect();
    assert!(lengths[0] > 1.0, "{lengths:?}");
    assert_eq!(lengths[1], 1.0);
}
