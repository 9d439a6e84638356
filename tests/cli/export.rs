//! Models of every family through every stage and out again, for transformers to load.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use safetensors::SafeTensors;
use segment_rlhf::model::config::{Activation, AttentionBias, Family, Residual, WindowedLayers};
use segment_rlhf::model::config::{RopeScaling, SlidingWindow};
use segment_rlhf::model::generate::to_vec;
use segment_rlhf::model::{CausalLm, Grid, ModelConfig, ScalarModel};
use serde::Deserialize;
use serde_json::json;
use tempfile::TempDir;

#[cfg(unix)]
use crate::support::program_with_file_limit;
use crate::support::{SENTENCES, characters, files, finish, llama, program, python_with};

/// A small model of a family.
fn config(family: Family) -> ModelConfig {
    let plain = ModelConfig {
        family,
        vocab_size: 96,
        hidden_size: 16,
        intermediate_size: 24,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        max_position_embeddings: 512,
        ..ModelConfig::default()
    };
    let window = Some(SlidingWindow { tokens: 9, layers: WindowedLayers::From(0) });
    match family {
        Family::Llama => ModelConfig {
            tie_word_embeddings: true,
            rope_scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original: 64,
            },
            ..plain
        },
        Family::Mistral => ModelConfig { sliding_window: window, ..plain },
        Family::Qwen2 => ModelConfig {
            attention_bias: AttentionBias::Inputs,
            sliding_window: Some(SlidingWindow { tokens: 9, layers: WindowedLayers::From(1) }),
            ..plain
        },
        Family::Qwen3 => ModelConfig { head_dim: 12, tie_word_embeddings: true, ..plain },
        Family::Phi3 => ModelConfig {
            sliding_window: window,
            rope_scaling: RopeScaling::LongRope {
                short_factor: vec![1.0, 1.5, 2.0, 2.5],
                long_factor: vec![4.0; 4],
                attention_factor: None,
                original: 256,
            },
            ..plain
        },
        Family::GptNeox => ModelConfig {
            kv_heads: 2,
            attention_bias: AttentionBias::All,
            mlp_bias: true,
            activation: Activation::Gelu,
            residual: Residual::Parallel,
            rotary_fraction: 0.25,
            norm_eps: 1e-5,
            ..plain
        },
    }
}

const TEMPLATE: &str = "{% for message in messages %}{{ message.role + ': ' + message.content }}\
    {% if message.role == 'assistant' %}{{ eos_token }}{% else %}{{ '\\n' }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}";

/// A folder with a fresh model of a family, a tokenizer of one character a token, and a chat template.
fn fresh(family: Family) -> TempDir {
    let (config, dir) = (config(family), TempDir::new().unwrap());
    CausalLm::fresh(&config, 3, &Device::flex()).save(&config, dir.path()).unwrap();
    let write = |name: &str, content: String| fs::write(dir.path().join(name), content).unwrap();
    write("tokenizer.json", characters(96).to_string());
    let settings = json!({"eos_token": "</s>", "pad_token": "<pad>", "chat_template": TEMPLATE});
    write("tokenizer_config.json", settings.to_string());
    dir
}

/// What transformers computes with a folder.
#[derive(Deserialize)]
struct Computed {
    dtype: String,
    values: Vec<f32>,
}

const IDS: [u32; 14] = [9, 21, 40, 3, 77, 21, 64, 13, 50, 31, 8, 8, 95, 30];

/// What transformers computes with each folder; nothing where there is no transformers.
fn by_transformers(folders: &[PathBuf]) -> Option<Vec<Computed>> {
    let mut python = python_with(&["torch", "transformers"])?;
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/logits.py");
    let output = python.arg(script).args(folders).arg("--").args(IDS.map(|id| id.to_string()));
    let output = output.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[track_caller]
fn assert_close(actual: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(actual.len(), expected.len());
    for (a, e) in actual.iter().zip(expected) {
        assert!((a - e).abs() <= tolerance * e.abs().max(1.0), "{a}, expected {e}");
    }
}

/// Our logits of [`IDS`].
fn logits(dir: &Path) -> Vec<f32> {
    let (model, _) = CausalLm::load(dir, &Device::flex()).unwrap();
    to_vec(model.logits(&Grid::new([(0, IDS.to_vec())], IDS.len()), 0..IDS.len()))
}

/// Our score of the last of [`IDS`].
fn score(dir: &Path) -> Vec<f32> {
    let (model, _) = ScalarModel::load(dir, &Device::flex()).unwrap();
    let n = IDS.len();
    to_vec(model.scores(&Grid::new([(0, IDS.to_vec())], n), n - 1..n))
}

#[track_caller]
fn assert_same_tensors(left: &Path, right: &Path) {
    let [left, right] = [left, right].map(|dir| fs::read(dir.join("model.safetensors")).unwrap());
    let [left, right] = [&left, &right].map(|bytes| SafeTensors::deserialize(bytes).unwrap());
    assert_eq!(left.len(), right.len());
    for (name, tensor) in left.tensors() {
        assert_eq!(tensor, right.tensor(&name).unwrap(), "{name}");
    }
}

fn export(run: &Path, to: &Path, arguments: &[&str]) {
    let start = ["export", "--hf", to.to_str().unwrap()];
    program(run, &[&start, arguments].concat()).ended_with(0);
}

#[test]
fn a_model_of_each_family_is_trained_exported_and_computes_the_same_in_transformers() {
    let everything = TempDir::new().unwrap();
    let (mut folders, mut expected) = (Vec::new(), Vec::new());
    for family in Family::ALL {
        let (model, run) = (fresh(family), TempDir::new().unwrap());
        let run = run.path();
        let model = model.path().to_str().unwrap();
        // So few pairs are no matter for a robust fit.
        let least_squares = "normalizer.regression=\"least_squares\"";
        let data = ["--data", SENTENCES, "--set", "ppo.iterations=2", "--set", least_squares];
        finish(run, &["sft"], &[&data[..], &["--model", model]].concat());
        finish(run, &["train-reward", "fit-normalizer", "ppo"], &data);

        let named = |what: &str| everything.path().join(format!("{family:?}-{what}"));
        let (policy, reward) = (named("policy"), named("reward"));
        export(run, &policy, &[]);
        export(run, &reward, &["--what", "reward"]);
        let of_run = |stage: &str| run.join("segment").join(stage).join("model");
        assert_same_tensors(&policy, &of_run("ppo"));
        assert_same_tensors(&reward, &of_run("reward"));
        let again = named("again");
        export(run, &again, &["--model", policy.to_str().unwrap()]);
        let written = |dir: &Path| {
            let read = |name: &PathBuf| fs::read(dir.join(name)).unwrap();
            files(dir).iter().map(read).collect::<Vec<_>>()
        };
        assert_eq!(files(&again), files(&policy));
        assert!(written(&again) == written(&policy), "export(import(export(m))) is export(m)");
        program(run, &["generate", "--model", policy.to_str().unwrap(), "--prompt", "Hi"])
            .ended_with(0);
        expected.extend([logits(&of_run("ppo")), score(&of_run("reward"))]);
        folders.extend([policy, reward]);
    }
    for (i, computed) in by_transformers(&folders).into_iter().flatten().enumerate() {
        println!("{}", folders[i].display());
        assert_eq!(computed.dtype, "torch.float32");
        assert_close(&computed.values, &expected[i], 1e-4);
    }
}

#[test]
fn weights_are_exported_in_the_type_asked_for_else_in_their_own() {
    let everything = TempDir::new().unwrap();
    let model = fresh(Family::Phi3);
    let mut folders = Vec::new();
    let mut from = model.path().to_str().unwrap().to_owned();
    let cases = [("f32", None), ("bf16", Some("bf16")), ("bf16", None), ("f16", Some("f16"))];
    for (i, (_, asked)) in cases.into_iter().enumerate() {
        let to = everything.path().join(i.to_string());
        let dtype = asked.map(|dtype| vec!["--dtype", dtype]).unwrap_or_default();
        export(everything.path(), &to, &[&["--model", &from], &dtype[..]].concat());
        from = to.to_str().unwrap().to_owned();
        folders.push(to);
    }
    assert_same_tensors(&folders[1], &folders[2]);
    let sizes =
        folders.iter().map(|dir| fs::metadata(dir.join("model.safetensors")).unwrap().len());
    let sizes: Vec<f64> = sizes.map(|size| size as f64).collect();
    assert!(sizes[1..].iter().all(|size| size / sizes[0] < 0.6), "{sizes:?}");
    for (i, computed) in by_transformers(&folders).into_iter().flatten().enumerate() {
        let name = ["torch.float32", "torch.bfloat16", "torch.bfloat16", "torch.float16"][i];
        assert_eq!(computed.dtype, name);
        assert_close(&computed.values, &logits(&folders[i]), 1e-4);
    }
}

#[test]
fn keys_and_tokens_that_a_checkpoint_came_with_are_exported() {
    let (model, to) = (llama(), TempDir::new().unwrap());
    let read = |dir: &Path, name: &str| -> serde_json::Map<String, serde_json::Value> {
        serde_json::from_slice(&fs::read(dir.join(name)).unwrap()).unwrap()
    };
    let exported = to.path().join("hf");
    export(to.path(), &exported, &["--model", model.path().to_str().unwrap()]);
    for name in ["config.json", "generation_config.json"] {
        let (old, new) = (read(model.path(), name), read(&exported, name));
        for (key, value) in old {
            if key != "rope_parameters" {
                assert_eq!(new[&key], value, "{key} of {name}");
            }
        }
    }
    let scaling = read(&exported, "config.json");
    assert_eq!(scaling["rope_theta"], scaling["rope_parameters"]["rope_theta"]);
}

#[test]
fn a_folder_that_holds_something_is_left_alone() {
    let (model, to) = (llama(), TempDir::new().unwrap());
    fs::write(to.path().join("notes.txt"), "mine").unwrap();
    let model = model.path().to_str().unwrap();
    program(to.path(), &["export", "--model", model, "--hf", to.path().to_str().unwrap()])
        .ended_with(2)
        .says(&["holds files already; name a new folder with --hf"]);
    assert_eq!(files(to.path()), [PathBuf::from("notes.txt")]);
}

#[test]
fn large_models_are_exported_in_shards_with_an_index() {
    let everything = TempDir::new().unwrap();
    let model = fresh(Family::Phi3);
    let from = ["--model", model.path().to_str().unwrap()];
    let [whole, shards] = ["whole", "shards"].map(|name| everything.path().join(name));
    export(everything.path(), &whole, &from);
    export(everything.path(), &shards, &[&from[..], &["--shard-size", "8KB"]].concat());
    let weights = |dir: &Path| {
        let names = files(dir).into_iter().map(|path| path.to_str().unwrap().to_owned());
        names.filter(|name| name.starts_with("model")).collect::<Vec<_>>()
    };
    assert_eq!(weights(&whole), ["model.safetensors"]);
    let names = weights(&shards);
    let n = names.len() - 1;
    assert!(n > 2, "{names:?}");
    let numbered = (1..=n).map(|i| format!("model-{i:05}-of-{n:05}.safetensors"));
    let index = "model.safetensors.index.json".to_owned();
    assert_eq!(names, numbered.chain([index.clone()]).collect::<Vec<_>>());

    let bytes = fs::read(whole.join("model.safetensors")).unwrap();
    let whole_tensors = SafeTensors::deserialize(&bytes).unwrap();
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(shards.join(index)).unwrap()).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    let (mut seen, mut total) = (0, 0);
    for name in &names[..n] {
        let bytes = fs::read(shards.join(name)).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        let held: usize = tensors.iter().map(|(_, tensor)| tensor.data().len()).sum();
        assert!(held <= 8000 || tensors.len() == 1, "{name}: {held}");
        for (tensor, view) in tensors {
            assert_eq!(map[&tensor], json!(name));
            assert_eq!(view, whole_tensors.tensor(&tensor).unwrap());
            seen += 1;
        }
        total += held;
    }
    assert_eq!((seen, map.len()), (whole_tensors.len(), whole_tensors.len()));
    assert_eq!(index["metadata"]["total_size"], json!(total));
    assert_eq!(logits(&shards), logits(&whole));
    for computed in by_transformers(std::slice::from_ref(&shards)).into_iter().flatten() {
        assert_close(&computed.values, &logits(&whole), 1e-4);
    }
}

#[cfg(unix)]
#[test]
fn an_export_that_fails_leaves_nothing() {
    let (model, to) = (llama(), TempDir::new().unwrap());
    let hf = to.path().join("hf");
    let arguments = ["export", "--model", model.path().to_str().unwrap(), "--hf"];
    let arguments = [&arguments[..], &[hf.to_str().unwrap()]].concat();
    program_with_file_limit(to.path(), 20, &arguments)
        .ended_with(1)
        .says(&["model.safetensors: cannot write: File too large"]);
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
    // Neither do shards of which the first are written.
    program_with_file_limit(to.path(), 7, &[&arguments[..], &["--shard-size", "6KB"]].concat())
        .ended_with(1)
        .says(&["safetensors: cannot write: File too large"]);
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
}
