//! Examples, completions and man pages.

use std::path::Path;

use clap::CommandFactory;
use segment_rlhf::cli::Cli;
use tempfile::TempDir;

use crate::support::{files, run_plain};

/// The words of a command line, as a shell splits it, up to what is the shell's own: a comment, a pipe or a file.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match c {
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    assert!(!quoted, "{line}");
    words.extend(word);
    let own = words.iter().position(|word| ["#", "|", ">"].contains(&word.as_str()));
    words.truncate(own.unwrap_or(words.len()));
    words
}

/// The path of every command, without the program's name.
fn paths() -> Vec<Vec<String>> {
    fn visit(command: &clap::Command, path: &[String], into: &mut Vec<Vec<String>>) {
        into.push(path.to_vec());
        for sub in command.get_subcommands() {
            visit(sub, &[path, &[sub.get_name().to_owned()]].concat(), into);
        }
    }
    let mut all = Vec::new();
    visit(&Cli::command(), &[], &mut all);
    all
}

fn examples(path: &[String]) -> Vec<Vec<String>> {
    let path: Vec<&str> = path.iter().map(String::as_str).collect();
    let help = run_plain(&[&path[..], &["--help"]].concat()).ended_with(0).stdout;
    let lines = help.lines().skip_while(|line| *line != "Examples:").skip(1);
    lines.filter(|line| !line.is_empty()).map(words).collect()
}

#[test]
fn every_command_has_examples_and_each_is_a_command_line_of_it() {
    for path in paths() {
        let examples = examples(&path);
        assert!((2..=3).contains(&examples.len()), "{path:?}: {examples:?}");
        for example in examples {
            let parsed = Cli::command().try_get_matches_from(&example);
            let parsed = parsed.unwrap_or_else(|error| panic!("{example:?}: {error}"));
            let mut at = Some(&parsed);
            for name in &path {
                let (found, below) = at.unwrap().subcommand().unwrap();
                assert_eq!(found, name, "{example:?}");
                at = Some(below);
            }
        }
    }
}

#[test]
fn the_shells_get_scripts_with_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run_plain(&["completions", shell]).ended_with(0).stdout;
        for name in paths().concat() {
            assert!(script.contains(&name), "{name} is not in the script for {shell}");
        }
    }
    run_plain(&["completions", "sh"]).ended_with(2).says(&["possible values: bash"]);
}

#[test]
fn every_command_has_a_man_page() {
    let page = run_plain(&["man"]).ended_with(0).stdout;
    for part in
        [".TH segment-rlhf 1", ".SH OPTIONS", ".SH EXAMPLES", "segment\\-rlhf\\-train\\-reward(1)"]
    {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    let dir = TempDir::new().unwrap();
    let pages = dir.path().join("man1");
    let written = run_plain(&["man", "--out", pages.to_str().unwrap()]).ended_with(0).stdout;
    let name = |path: Vec<String>| {
        let words = [&["segment-rlhf".to_owned()], &path[..]].concat();
        Path::new(&format!("{}.1", words.join("-"))).to_owned()
    };
    let mut names: Vec<_> = paths().into_iter().map(name).collect();
    names.sort();
    assert_eq!(files(&pages), names);
    assert_eq!(written, format!("{} pages in {}\n", names.len(), pages.display()));
    let page = std::fs::read_to_string(pages.join("segment-rlhf-evaluate-win-rate.1")).unwrap();
    assert!(page.contains("segment\\-rlhf evaluate win\\-rate segment.json"), "{page}");
    // Over a file there is no folder.
    let file = pages.join("segment-rlhf.1");
    run_plain(&["man", "--out", file.join("x").to_str().unwrap()])
        .ended_with(1)
        .says(&["segment-rlhf.1/x: cannot write: File exists"]);
}
