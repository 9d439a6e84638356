//! What commands print for people and for programs.

use std::fs;

use segment_rlhf::settings::Settings;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{SENTENCES, finish, llama, program};

#[test]
fn settings_prints_defaults_that_parse_to_the_defaults() {
    let folder = TempDir::new().unwrap();
    let printed = program(folder.path(), &["settings"]).ended_with(0).stdout;
    let parsed = Settings::resolve(&[("printed".into(), printed.clone())], &[]).unwrap();
    assert_eq!(parsed, Settings::defaults());
    let keys = |text: &str| text.parse::<toml::Table>().unwrap();
    let all = toml::Table::try_from(Settings::defaults()).unwrap();
    assert_eq!(keys(&printed), all);
}

#[test]
fn a_piped_segment_display_is_plain_text() {
    let folder = TempDir::new().unwrap();
    finish(folder.path(), &["sft", "train-reward", "fit-normalizer"], &[]);
    let printed = program(folder.path(), &["segment"]).ended_with(0).stdout;
    assert!(!printed.contains('\x1b'), "{printed:?}");
    assert!(printed.starts_with("prompt: <user> write to"), "{printed}");
    assert!(printed.contains("segment  reward  normalized"), "{printed}");
    assert!(printed.contains("sequence score:"), "{printed}");
}

#[test]
fn segments_as_json_cover_the_response_less_eos() {
    let run = TempDir::new().unwrap();
    let model = llama();
    let model = ["--model", model.path().to_str().unwrap()];
    let text = ["--prompt", "How was the room?", "--response", "Clean. But the lift was out!"];
    // Without a reward model there are no rewards; with one, there are.
    for rewarded in [false, true] {
        if rewarded {
            finish(run.path(), &["train-reward"], &[&model[..], &["--data", SENTENCES]].concat());
        }
        let arguments = [&["segment", "--json"], &model[..], &text].concat();
        let printed = program(run.path(), &arguments).ended_with(0).stdout;
        let shown: Value = serde_json::from_str(&printed).unwrap();
        let tokens = shown["tokens"].as_array().unwrap();
        assert_eq!(tokens.last().unwrap()["id"], 2, "EOS ends the response");
        let texts: String = tokens.iter().map(|token| token["text"].as_str().unwrap()).collect();
        assert_eq!(texts, "Clean. But the lift was out!</s>");
        let segments = shown["segments"].as_array().unwrap();
        let mut next = 0;
        for segment in segments {
            assert_eq!(segment["start"], next);
            next = segment["end"].as_u64().unwrap();
            assert_eq!(segment["reward"].is_number(), rewarded);
        }
        assert_eq!(next as usize, tokens.len() - 1, "EOS is in no segment");
        assert!(segments.len() > 1, "{printed}");
        assert_eq!(shown["sequence_score"].is_number(), rewarded);
    }
}

#[test]
fn a_response_over_the_limit_is_cut_and_counted() {
    let run = TempDir::new().unwrap();
    let model = llama();
    let model = model.path().to_str().unwrap();
    let limits = ["--set", "data.response_tokens=20", "--set", "data.prompt_tokens=60"];
    let arguments = [&["train-reward", "--model", model, "--data", SENTENCES], &limits[..]];
    // Every response is longer than 20 characters; a prompt counts once a pair.
    let output = program(run.path(), &arguments.concat()).ended_with(0);
    output.says(&[
        "cut to the token limits: ",
        " prompts (at the left), 20 responses (at the right)",
    ]);
    let run = TempDir::new().unwrap();
    let output = program(run.path(), arguments[0]).ended_with(0);
    assert!(!output.stderr.contains("cut to the token limits"), "{}", output.stderr);
}

#[test]
fn a_response_goes_to_standard_output_and_progress_to_standard_error() {
    let run = TempDir::new().unwrap();
    let output = program(run.path(), &["sft", "--json"]).ended_with(0);
    let summary: Value = serde_json::from_str(&output.stdout).unwrap();
    assert!(summary["held_out_cross_entropy"].is_f64());
    output.says(&["sft", "8 steps, last loss"]);
    let arguments = ["generate", "--prompt", "write to emma", "--samples", "3"];
    let printed = program(run.path(), &arguments).ended_with(0).stdout;
    assert_eq!(printed.lines().count(), 4, "the prompt and three responses: {printed}");
    assert_eq!(printed, program(run.path(), &arguments).stdout, "one seed, one answer");
}

#[test]
fn a_reproduction_is_a_grid_whose_models_can_be_read() {
    let run = TempDir::new().unwrap();
    let methods =
        ["--set", "reproduce.methods=['bandit', 'segment']", "--set", "reproduce.seeds=2"];
    let printed = program(run.path(), &[&["reproduce"], &methods[..]].concat()).ended_with(0);
    let table = fs::read_to_string(run.path().join("table.md")).unwrap();
    assert!(printed.stdout.contains(&table) && table.contains("\n| bandit "), "{}", printed.stdout);
    assert!(printed.stdout.contains("±: standard error over seeds."), "{}", printed.stdout);
    printed.says(&["seed 0 bandit sft ", "seed 1 segment evaluate "]);
    let status = program(run.path(), &["status"]).ended_with(0).stdout;
    assert!(status.contains("4 of 4 cells finished"), "{status}");
    let report = program(run.path(), &["report"]).ended_with(0).stdout;
    assert!(report.starts_with("4 of 4 cells, 0 left out; "), "{report}");

    // The policy of a cell, with its settings: what generate writes differs by method and by seed.
    let generate = |cell: &[&str]| {
        let arguments = [&["generate", "--prompt", "write to emma"], cell].concat();
        program(run.path(), &arguments).ended_with(0).stdout
    };
    let segment = generate(&[]);
    assert_eq!(segment, generate(&["--method", "segment", "--seed", "0"]));
    assert_eq!(segment, generate(&["--set", "method=segment"]));
    assert_ne!(segment, generate(&["--seed", "1"]));
    let shown = |cell: &[&str]| {
        let text = ["--prompt", "write to emma", "--response", "dear emma , music : bands play"];
        let arguments = [&["segment", "--json"], &text[..], cell].concat();
        let printed = program(run.path(), &arguments).ended_with(0).stdout;
        let shown: Value = serde_json::from_str(&printed).unwrap();
        let segments = shown["segments"].as_array().unwrap();
        assert!(segments.iter().all(|segment| segment["normalized"].is_number()), "{printed}");
        printed
    };
    let [first, second, bandit] = [&[][..], &["--seed", "1"], &["--method", "bandit"]].map(shown);
    assert!(first != second && first != bandit, "{first}");
    let hf = run.path().join("hf");
    program(run.path(), &["export", "--hf", hf.to_str().unwrap(), "--method", "bandit"])
        .ended_with(0);
    assert!(hf.join("model.safetensors").exists());
}
