//! Bad input: the exit status, the message, and nothing half-written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{SafeTensors, TensorView};
use tempfile::TempDir;

use crate::support::{SENTENCES, assert_no_result, edit_json, finish, json_lines, llama, program};

#[test]
fn a_refused_command_serves_once_its_input_is_right() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let path = model.path().join("pairs.jsonl");
    let good = fs::read_to_string(SENTENCES).unwrap();
    let arguments = [
        "train-reward",
        "--model",
        model.path().to_str().unwrap(),
        "--data",
        path.to_str().unwrap(),
    ];
    fs::write(&path, format!("{good}[]\n")).unwrap();
    program(run.path(), &arguments).ended_with(2).says(&["pairs.jsonl:11: the line is a list"]);
    assert_no_result(run.path());
    fs::write(&path, good).unwrap();
    program(run.path(), &arguments).ended_with(0);
}

#[test]
fn a_normalizer_edited_by_hand_is_left_alone_and_said_to_be() {
    let run = TempDir::new().unwrap();
    finish(run.path(), &["sft", "train-reward", "fit-normalizer"], &[]);
    let path = run.path().join("segment/normalizer/normalizer.json");
    edit_json(&path, |file| file["normalizer"]["b_mean"] = 0.25.into());
    let edited = fs::read(&path).unwrap();
    let output = program(run.path(), &["fit-normalizer"]).ended_with(0);
    output.says(&[
        "normalizer.json: edited by hand, and left alone",
        "remove its folder to fit it again",
    ]);
    assert_eq!(fs::read(&path).unwrap(), edited);
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
    let output = program(run.path(), &["fit-normalizer"]).ended_with(0);
    assert!(!output.stderr.contains("by hand"), "{}", output.stderr);
}

#[test]
fn all_wrong_tensors_of_a_checkpoint_are_listed_at_once() {
    let spoil = |dir: &Path| {
        let path = dir.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let read = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: BTreeMap<String, TensorView<'_>> = read.tensors().into_iter().collect();
        let head = tensors.remove("lm_head.weight").unwrap();
        let reshaped = TensorView::new(head.dtype(), vec![48, 64], head.data()).unwrap();
        let norm = tensors.remove("model.norm.weight").unwrap();
        tensors.insert("model.embed_tokens.weight".into(), reshaped);
        tensors.insert("lm_head.weight".into(), head);
        tensors.insert("model.surplus.weight".into(), norm);
        fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
    };
    let (run, model) = (TempDir::new().unwrap(), llama());
    spoil(model.path());
    for stage in ["sft", "train-reward"] {
        let path = model.path().to_str().unwrap();
        let output = program(run.path(), &[stage, "--model", path, "--data", SENTENCES]);
        output.ended_with(2).says(&[
            "model.safetensors: the tensors are not those of this architecture:",
            "\n  model.embed_tokens.weight: shape [48, 64], expected [96, 32]",
            "\n  model.norm.weight: missing, expected shape [32]",
            "\n  model.surplus.weight: extra",
        ]);
        assert_no_result(run.path());
    }
}

#[test]
fn a_stage_before_the_one_it_needs_says_which_to_run() {
    let run = TempDir::new().unwrap();
    let run = run.path();
    let needs = |stages: &[&str], command: &str| {
        for stage in stages {
            let say = format!("not there or not finished; run `segment-rlhf {command}` first");
            program(run, &[stage]).ended_with(2).says(&[&say]);
        }
    };
    needs(&["preferences", "train-reward", "ppo", "evaluate", "segment", "generate"], "sft");
    assert_no_result(run);
    program(run, &["sft", "--stop-after", "1"]).ended_with(130);
    needs(&["train-reward"], "sft");
    finish(run, &["sft"], &[]);
    needs(&["fit-normalizer", "ppo"], "train-reward --method segment");
    finish(run, &["train-reward"], &[]);
    let output = program(run, &["ppo"]).ended_with(2);
    output.says(&["normalizer.json", "run `segment-rlhf fit-normalizer --method segment` first"]);
    finish(run, &["fit-normalizer"], &[]);
    needs(&["evaluate"], "ppo --method segment");
    program(run, &["ppo", "--stop-after", "1"]).ended_with(130);
    needs(&["evaluate"], "ppo --method segment");
}

#[test]
fn a_folder_of_other_settings_is_left_alone_and_the_keys_are_listed() {
    let run = TempDir::new().unwrap();
    finish(run.path(), &["sft"], &[]);
    let other = ["sft", "--seed", "3", "--set", "sft.optimizer.learning_rate=0.1"];
    program(run.path(), &other).ended_with(2).says(&[
        "sft: started with other settings:",
        "\n  settings.seed: 0 there, 3 here",
        "\n  settings.sft.optimizer.learning_rate: 0.003 there, 0.1 here",
        "\nname another folder with --run, remove this one, or give the same settings",
    ]);
    // What the stage does not depend on may differ.
    finish(run.path(), &["sft"], &["--set", "ppo.iterations=7"]);
}

#[test]
fn training_that_leaves_the_numbers_stops_and_keeps_its_checkpoints() {
    let run = TempDir::new().unwrap();
    let high = ["sft", "--set", "sft.optimizer.learning_rate=1e30", "--set", "checkpoint.every=1"];
    let output = program(run.path(), &high).ended_with(1);
    output.says(&["is not finite at step 1", "the policy gradient of model.", "learning rate"]);
    let sft = run.path().join("sft");
    assert_eq!(json_lines(&sft.join("metrics.jsonl")).len(), 1);
    assert!(sft.join("checkpoints/step-00000001/manifest.json").exists());
    assert!(!sft.join("summary.json").exists() && !sft.join("model").exists());
    // Going on from the checkpoint meets the same fault; other settings need another folder.
    program(run.path(), &high).ended_with(1).says(&["is not finite at step 1"]);
    let output = program(run.path(), &["sft"]).ended_with(2);
    output.says(&["started with other settings", "sft.optimizer.learning_rate"]);
}
