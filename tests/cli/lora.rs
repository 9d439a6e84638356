//! Adapters over a frozen base in bf16: every stage, a stop, and what the folders hold.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use segment_rlhf::model::CausalLm;
use segment_rlhf::model::checkpoint::parameters;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    SENTENCES, assert_same, copy, edit_json, files, finish, json_lines, llama, program,
};

const PIPELINE: [&str; 4] = ["train-reward", "fit-normalizer", "ppo", "evaluate"];
const LORA: [&str; 6] =
    ["--set", "lora.rank=2", "--set", "precision.compute=bf16", "--data", SENTENCES];

fn summary(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path.join("summary.json")).unwrap()).unwrap()
}

/// The folder holds adapters that stand on the model in `base`, and no whole model.
#[track_caller]
fn assert_adapters(dir: &Path, base: &Path) {
    let names: Vec<_> = files(dir).iter().map(|path| path.display().to_string()).collect();
    assert!(names.contains(&"adapter_model.safetensors".into()), "{names:?}");
    assert!(!names.contains(&"model.safetensors".into()), "{names:?}");
    assert!(names.contains(&"tokenizer.json".into()), "{names:?}");
    let config = fs::read(dir.join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let base = base.canonicalize().unwrap();
    assert_eq!(config["base_model_name_or_path"].as_str().unwrap(), base.to_str().unwrap());
}

#[test]
fn every_stage_trains_adapters_over_one_base_in_bf16() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let run = run.path();
    let start = ["--model", model.path().to_str().unwrap()];
    finish(run, &["sft"], &[&LORA[..], &start].concat());
    // The stages after it stand on the fine-tuned model: adapters on adapters.
    finish(run, &PIPELINE, &[&LORA[..], &["--set", "ppo.iterations=3"]].concat());
    let reference = run.join("sft/model");
    assert_adapters(&reference, model.path());
    for dir in ["reward/model", "ppo/model", "ppo/best/model"] {
        assert_adapters(&run.join("segment").join(dir), &reference);
    }
    let lines = json_lines(&run.join("segment/ppo/metrics.jsonl"));
    assert_eq!(lines[0]["kl_k1"], 0.0, "fresh adapters over the shared base are the reference");
    assert!(lines[2]["kl_k3"].as_f64().unwrap() > 0.0, "then the policy moves");
    let record = fs::read_to_string(run.join("segment/ppo/settings.toml")).unwrap();
    assert!(record.contains("dtype = \"bf16\"") && record.contains("rank = 2"), "{record}");
    assert!(summary(&run.join("segment/evaluation"))["after"]["win_rate"].is_number());
    // A folder of adapters goes wherever a model goes; exported, it is a whole model.
    let policy = run.join("segment/ppo/model");
    let whole = run.join("exported");
    let export = ["export", "--hf", whole.to_str().unwrap(), "--dtype", "f32"];
    program(run, &export).ended_with(0);
    assert!(
        whole.join("model.safetensors").exists() && !whole.join("adapter_config.json").exists()
    );
    let merged = |dir: &Path| parameters(&CausalLm::load(dir, &Device::flex()).unwrap().0);
    assert_eq!(merged(&whole), merged(&policy));
    let prompt = ["--model", policy.to_str().unwrap(), "--prompt", "How do I boil an egg?"];
    let said = program(run, &[&["generate"], &prompt[..]].concat()).ended_with(0).stdout;
    assert!(said.starts_with("User: How do I boil an egg?"), "{said}");
    let other = TempDir::new().unwrap();
    let next = [&LORA[..], &["--model", policy.to_str().unwrap()]].concat();
    finish(other.path(), &["train-reward"], &next);
    assert_adapters(&other.path().join("segment/reward/model"), &policy);
}

#[test]
fn adapters_stopped_twice_are_bit_identical() {
    let (ready, model) = (TempDir::new().unwrap(), llama());
    let start = ["--model", model.path().to_str().unwrap()];
    let input = [&LORA[..], &start, &["--set", "precision.checkpointing=layers"]].concat();
    for (stage, before, dir) in [
        ("train-reward", &[][..], "segment/reward"),
        ("ppo", &["train-reward", "fit-normalizer"], "segment/ppo"),
    ] {
        finish(ready.path(), before, &input);
        let (unbroken, stopped) = (copy(ready.path()), copy(ready.path()));
        finish(unbroken.path(), &[stage], &input);
        for _ in 0..2 {
            let once = [&[stage, "--stop-after", "1"], &input[..]].concat();
            program(stopped.path(), &once).ended_with(130);
        }
        finish(stopped.path(), &[stage], &input);
        assert_same(&unbroken.path().join(dir), &stopped.path().join(dir));
    }
}

#[test]
fn other_adapters_are_other_settings() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let input = [&LORA[..], &["--model", model.path().to_str().unwrap()]].concat();
    finish(run.path(), &["train-reward"], &input);
    for (set, said) in [
        ("lora.rank=3", "settings.lora.rank: 2 there, 3 here"),
        ("precision.compute=f32", "dtype: \"bf16\" there, \"f32\" here"),
    ] {
        let other = [&["train-reward"], &input[..], &["--set", set]].concat();
        program(run.path(), &other).ended_with(2).says(&["started with other settings", said]);
    }
    // How much memory a run takes changes nothing else.
    let same = [&["train-reward"], &input[..], &["--set", "precision.checkpointing=layers"]];
    program(run.path(), &same.concat()).ended_with(0);
}

#[test]
fn adapters_of_another_base_are_another_model() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let input = [&LORA[..], &["--model", model.path().to_str().unwrap()]].concat();
    finish(run.path(), &["train-reward", "fit-normalizer"], &input);
    // The same adapters, which count twice as much.
    let config = run.path().join("segment/reward/model/adapter_config.json");
    edit_json(&config, |config| config["lora_alpha"] = 32.0.into());
    program(run.path(), &[&["ppo"], &input[..]].concat())
        .ended_with(2)
        .says(&["normalizer.json: made for the reward model"]);
}
