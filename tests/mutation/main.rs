//! A mutation check: each small fault of `faults.toml`, put into a copy of this crate, must fail a test.
//!
//! `cargo test --release --test mutation -- --ignored --nocapture` builds and tests the crate once a fault,
//! about half a minute each, and prints the table. FAULTS=gae runs those whose name or file holds "gae".

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Faults {
    fault: Vec<Fault>,
}

/// A change of one place of one file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fault {
    /// What is wrong then, in words.
    name: String,
    /// Below `src`.
    file: String,
    /// The text that stands there, once in the file.
    find: String,
    /// The text in its place.
    replace: String,
}

impl Fault {
    fn apply(&self, source: &str) -> Option<String> {
        let once = source.matches(&self.find).count() == 1;
        once.then(|| source.replacen(&self.find, &self.replace, 1))
    }
}

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn faults() -> Vec<Fault> {
    let text = fs::read_to_string(crate_dir().join("tests/mutation/faults.toml")).unwrap();
    toml::from_str::<Faults>(&text).unwrap().fault
}

#[test]
fn every_fault_still_has_its_place_and_a_name_of_its_own() {
    let faults = faults();
    let names: BTreeSet<&str> = faults.iter().map(|fault| &fault.name[..]).collect();
    assert_eq!(names.len(), faults.len(), "two faults of one name");
    let lost: Vec<&str> = faults
        .iter()
        .filter(|fault| {
            let source = fs::read_to_string(crate_dir().join("src").join(&fault.file)).unwrap();
            fault.find == fault.replace || fault.apply(&source).is_none()
        })
        .map(|fault| &fault.name[..])
        .collect();
    assert!(lost.is_empty(), "`find` must occur once, and `replace` differ: {lost:#?}");
}

/// The test binaries, quickest first; a fault that the first ones catch is not put to the others.
const ROUNDS: [&[&str]; 3] = [&["--test", "spec"], &["--lib", "--test", "pipeline"], &["--doc"]];

#[test]
#[ignore = "builds the crate once a fault: half an hour and more"]
fn every_fault_is_caught() {
    let filter = std::env::var("FAULTS").unwrap_or_default();
    let faults: Vec<Fault> = faults()
        .into_iter()
        .filter(|fault| fault.name.contains(&filter) || fault.file.contains(&filter))
        .collect();
    let copy = Copy::new();
    for round in ROUNDS {
        let output = copy.cargo(round);
        assert!(output.status.success(), "the tests fail without any fault:\n{}", text(&output));
    }
    println!("| fault | in | failing tests | one of them |\n| --- | --- | ---: | --- |");
    let mut survivors = Vec::new();
    for fault in &faults {
        let caught = ROUNDS.iter().map(|round| copy.failing(fault, round)).find(|f| !f.is_empty());
        match caught {
            Some(tests) => println!(
                "| {} | `{}` | {} | `{}` |",
                fault.name,
                fault.file,
                tests.len(),
                tests.first().unwrap()
            ),
            None => {
                println!("| {} | `{}` | 0 | **none** |", fault.name, fault.file);
                survivors.push(&fault.name);
            }
        }
    }
    println!("\n{} faults, {} caught", faults.len(), faults.len() - survivors.len());
    assert!(survivors.is_empty(), "not caught: {survivors:#?}");
}

/// A copy of the crate, with a target folder of its own that is kept for the next time.
struct Copy {
    dir: PathBuf,
}

impl Copy {
    fn new() -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutation");
        let parts = [
            "Cargo.toml",
            "Cargo.lock",
            "README.md",
            "docs",
            "src",
            "tests",
            "benches",
            "experiments",
            "paper",
        ];
        fs::create_dir_all(&dir).unwrap();
        for name in parts {
            copy(&crate_dir().join(name), &dir.join(name));
        }
        Self { dir }
    }

    fn cargo(&self, tests: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO"));
        command.args(["test", "--release", "--no-fail-fast"]).args(tests);
        // Quick to build again: Burn stays optimised, and what did not change is kept.
        command.args(["--config", "profile.release.package.segment-rlhf.opt-level=0"]);
        command.env("CARGO_INCREMENTAL", "1");
        command.current_dir(&self.dir).env("CARGO_TARGET_DIR", self.dir.join("target"));
        command.output().unwrap()
    }

    /// The tests that fail with the fault.
    fn failing(&self, fault: &Fault, tests: &[&str]) -> BTreeSet<String> {
        let path = self.dir.join("src").join(&fault.file);
        let sound = fs::read_to_string(&path).unwrap();
        fs::write(&path, fault.apply(&sound).unwrap()).unwrap();
        let output = self.cargo(tests);
        fs::write(&path, sound).unwrap();
        let compiled = !text(&output).contains("could not compile");
        assert!(compiled, "{} does not compile:\n{}", fault.name, text(&output));
        let failed =
            |line: &str| line.strip_prefix("test ")?.strip_suffix(" ... FAILED").map(str::to_owned);
        let failing: BTreeSet<String> = text(&output).lines().filter_map(failed).collect();
        assert_eq!(output.status.success(), failing.is_empty(), "{}", text(&output));
        failing
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(to).unwrap() {
            let entry = entry.unwrap();
            if !from.join(entry.file_name()).exists() {
                fs::remove_file(entry.path())
                    .or_else(|_| fs::remove_dir_all(entry.path()))
                    .unwrap();
            }
        }
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else if fs::read(from).ok() != fs::read(to).ok() {
        fs::copy(from, to).unwrap(); // an equal file keeps its time, so that nothing is built for it
    }
}

fn text(output: &Output) -> String {
    let stdout = String::from_utf8_lossy(&output.stdout);
    stdout.into_owned() + &String::from_utf8_lossy(&output.stderr)
}
