//! Decoders from the command line, on the embedded task and with a published reward model.

use tempfile::TempDir;

use crate::support::{SENTENCES, edit_json, files, finish, llama, program, reward_model};

const REFERENCE: [&str; 2] = ["--set", "decode.model=reference"];

#[test]
fn a_run_without_a_policy_generates_and_evaluates_by_a_decoder() {
    let run = TempDir::new().unwrap();
    finish(run.path(), &["sft", "preferences", "train-reward"], &[]);
    let cards = [&["evaluate", "--json", "--decode", "cards"], &REFERENCE[..]].concat();
    let output = program(run.path(), &cards).ended_with(0);
    let summary: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert!(summary["after"]["model_calls"].as_f64().unwrap() > 0.0);
    assert!(summary["before"].get("model_calls").is_none());
    // Each decoder has a folder of its own, and what is finished is not done again.
    let again = program(run.path(), &cards).ended_with(0);
    assert_eq!(output.stdout, again.stdout);
    let best = [&["evaluate", "--decode", "best_of_n"], &REFERENCE[..]].concat();
    program(run.path(), &best).ended_with(0);
    let found = files(run.path());
    for kind in ["cards", "best_of_n"] {
        let file = format!("segment/evaluation-{kind}/summary.json");
        assert!(found.iter().any(|path| path.ends_with(&file)), "{file}");
    }
    let generate = ["generate", "--decode", "cards", "--samples", "2"];
    let output = program(run.path(), &generate).ended_with(0);
    let told = output.stdout.lines().filter(|line| line.contains(" of the reward model, "));
    assert_eq!(told.count(), 2, "{}", output.stdout);
}

#[test]
fn a_published_reward_model_of_the_same_tokenizer_decodes_and_one_of_another_is_refused_by_file() {
    let (model, reward) = (llama(), reward_model());
    let path = |dir: &TempDir| dir.path().to_str().unwrap().to_owned();
    let (model, published) = (path(&model), path(&reward));
    let arguments =
        ["evaluate", "--json", "--decode", "cards", "--model", &model, "--data", SENTENCES];
    let arguments = [&arguments[..], &["--reward-model", &published], &REFERENCE].concat();

    let run = TempDir::new().unwrap();
    edit_json(&reward.path().join("tokenizer.json"), |file| {
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove("b").unwrap();
        vocab.insert("ß".into(), id);
    });
    program(run.path(), &arguments).ended_with(2).says(&[
        &format!(
            "{published}/tokenizer.json: token 4 is \"ß\", but \"b\" in {model}/tokenizer.json"
        ),
        "give one of the same tokenizer as --reward-model",
    ]);
    assert!(files(run.path()).is_empty(), "{:?}", files(run.path()));

    edit_json(&reward.path().join("tokenizer.json"), |file| {
        let vocab = file["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove("ß").unwrap();
        vocab.insert("b".into(), id);
    });
    let output = program(run.path(), &arguments).ended_with(0);
    let summary: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert!(summary["after"]["reward_calls"].as_f64().unwrap() >= 2.0);
}
