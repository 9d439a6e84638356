//! LoRA: adapters beside a frozen base, and their folder in PEFT's layout.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Command;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use safetensors::tensor::SafeTensors;
use segment_rlhf::device::{Checkpointing, Precision};
use segment_rlhf::model::checkpoint::{fingerprint, parameters};
use segment_rlhf::model::generate::response_log_probs;
use segment_rlhf::model::lora::{ADAPTER_WEIGHTS, Adapter, LoraSettings, PROJECTIONS};
use segment_rlhf::model::optim::{OptimizerSettings, Trainer};
use segment_rlhf::model::recompute::is_adapted;
use segment_rlhf::model::{
    CausalLm, CheckpointError, FreshHead, Grid, ModelConfig, Placement, ScalarModel,
};
use segment_rlhf::settings::Settings;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{assert_close, cpu, devices, devices_with, host};
use crate::tiny_model::{assert_model_gradient, edited, grouped, tokens};
use crate::tolerance;

fn lora() -> LoraSettings {
    LoraSettings { rank: 2, alpha: 3.0, targets: vec!["all-linear".into()] }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf").join(name)
}

fn base(device: &Device) -> CausalLm {
    CausalLm::fresh(&grouped(), 3, device)
}

/// `model` whose adapters count: every number of theirs is changed.
pub fn spoken<M: Module>(model: M) -> M {
    let mut drawn = 0.0;
    edited(model, DType::F32, |name, values| {
        for value in values.iter_mut().filter(|_| name.contains(".lora.")) {
            drawn += 1.0;
            *value += 0.3 * f64::sin(drawn);
        }
    })
}

fn logits(model: &CausalLm) -> Vec<f64> {
    host(model.logits(&Grid::new([(0, tokens(1, 9))], 9), 0..9))
}

fn scores(model: &ScalarModel) -> Vec<f64> {
    host(model.scores(&Grid::new([(0, tokens(1, 9))], 9), 0..9))
}

#[test]
fn fresh_adapters_leave_a_model_exactly_as_it_is() {
    for (device, _) in devices() {
        let plain = base(&device);
        let adapted = lora().attach(plain.clone(), &device.clone().autodiff(), "policy", 0);
        assert!(is_adapted(&adapted) && !is_adapted(&plain));
        assert_eq!(logits(&adapted.valid()), logits(&plain));
        assert_ne!(logits(&spoken(adapted).valid()), logits(&plain));
    }
    for (device, _) in devices_with(DType::BF16) {
        let half = Placement { device: device.clone(), dtype: DType::BF16 };
        let half = CausalLm::fresh(&grouped(), 3, half);
        let adapted = lora().attach(half.clone(), &device.clone().autodiff(), "policy", 0);
        assert_eq!(logits(&adapted.valid()), logits(&half));
    }
}

#[test]
fn an_adapter_stands_on_each_target_and_starts_with_what_its_purpose_and_seed_draw() {
    let autodiff = cpu().autodiff();
    let drawn = |settings: &LoraSettings, purpose, seed| -> BTreeMap<String, Vec<f64>> {
        let model = settings.attach(base(&cpu()), &autodiff, purpose, seed);
        let own = parameters(&model).into_iter().filter(|(name, _)| name.contains(".lora."));
        own.map(|(name, data)| (name, data.iter::<f64>().collect())).collect()
    };
    let all = drawn(&lora(), "policy", 0);
    assert_eq!(all.len(), 2 * 2 * PROJECTIONS.len(), "a and b in both layers");
    assert!(all.iter().all(|(name, a)| name.ends_with('b') || a.iter().all(|&x| x == 0.0)));
    let two = LoraSettings { targets: vec!["q_proj".into(), "up_proj".into()], ..lora() };
    let two = drawn(&two, "policy", 0);
    assert_eq!(two.len(), 2 * 2 * 2);
    assert!(two.iter().all(|(name, values)| all[name] == *values), "whatever the others are");
    assert_ne!(drawn(&lora(), "critic", 0), all);
    assert_ne!(drawn(&lora(), "policy", 1), all);
    // The variance of PEFT's uniform draws.
    let wide = LoraSettings { rank: 400, ..lora() };
    let b = &drawn(&wide, "policy", 0)["model.layers.0.mlp.up_proj.weight.lora.b"];
    let mean_square = b.iter().map(|x| x * x).sum::<f64>() / b.len() as f64;
    assert!((mean_square * 3.0 * 16.0 - 1.0).abs() < 0.08, "{mean_square}"); // four standard errors
}

#[test]
fn adapters_have_the_gradient_of_central_differences() {
    let config = ModelConfig {
        vocab_size: 5,
        hidden_size: 4,
        intermediate_size: 3,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        ..grouped()
    };
    let model = CausalLm::fresh(&config, 0, &cpu());
    let model = spoken(lora().attach(model, &cpu().autodiff(), "policy", 0));
    let model = edited(model, DType::F64, |_, _| ());
    let (grid, first) = Grid::aligned([(&[1][..], &[2, 3, 1, 4][..]), (&[4, 2, 2], &[3, 1])]);
    assert_model_gradient(&model, |model| {
        response_log_probs(model, &grid, first).0.slice([0..2, 0..2]).sum()
    });
}

#[test]
fn training_changes_adapters_and_a_scalar_head_alone() {
    let optimizer = OptimizerSettings {
        learning_rate: 1e-2,
        weight_decay: 0.1,
        ..Settings::defaults().sft.optimizer
    };
    let grid = Grid::new([(0, tokens(1, 9)), (0, tokens(2, 9))], 9);
    for (device, _) in devices() {
        for checkpointing in [Checkpointing::None, Checkpointing::Layers] {
            let autodiff = device.clone().autodiff();
            let scalar = ScalarModel::over(&base(&device), FreshHead::official("critic", 0));
            let model = lora().attach(scalar, &autodiff, "critic", 0);
            let model = model.computing(Precision::F32, checkpointing);
            let before = parameters(&model);
            let mut trainer = Trainer::new("critic", model, &optimizer, 4);
            for _ in 0..2 {
                trainer.accumulate(vec![()], |model, ()| {
                    (model.scores(&grid, 0..9).square().mean(), [])
                });
                assert!(trainer.update().unwrap().gradient_norm > 0.0);
            }
            for (name, after) in parameters(trainer.model()) {
                let trained = name.contains(".lora.") || name == "score.weight";
                assert_eq!(before[&name] != after, trained, "{name}");
            }
            let dir = TempDir::new().unwrap();
            for (name, fill) in trainer.files() {
                fill(&dir.path().join(name)).unwrap();
            }
            let bytes = std::fs::read(dir.path().join("critic.safetensors")).unwrap();
            let names = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(names.len(), 4 * PROJECTIONS.len() + 1, "what is trained is what is saved");
            let again = lora().attach(
                ScalarModel::over(&base(&device), FreshHead::official("other", 1)),
                &autodiff,
                "other",
                1,
            );
            let mut again = Trainer::new("critic", again, &optimizer, 4);
            again.resume(2, dir.path()).unwrap();
            assert_eq!(fingerprint(again.model()), fingerprint(trainer.model()));
        }
    }
}

/// A folder with the base, and one with adapters that stand on it; and the model that they make.
fn saved(device: &Device) -> (TempDir, TempDir, CausalLm) {
    let (base_dir, dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    base(device).save(&grouped(), base_dir.path()).unwrap();
    let model = spoken(lora().attach(base(device), &device.clone().autodiff(), "policy", 0));
    let model = model.valid();
    model.save_adapter(&grouped(), &lora(), base_dir.path(), dir.path()).unwrap();
    (base_dir, dir, model)
}

#[test]
fn adapters_are_read_back_bit_by_bit_and_merged_they_make_the_same_model() {
    for (device, tolerance) in devices() {
        let (base_dir, dir, model) = saved(&device);
        let adapter = Adapter::open(dir.path()).unwrap().unwrap();
        assert!(adapter.stands_on(base_dir.path()) && !adapter.stands_on(dir.path()));
        assert!(Adapter::open(base_dir.path()).unwrap().is_none());
        let factored = base(&device).adapted(&adapter).unwrap();
        assert_eq!(fingerprint(&factored), fingerprint(&model));
        assert_eq!(logits(&factored), logits(&model));
        let (merged, config) = CausalLm::load(dir.path(), &device).unwrap();
        assert_eq!(config, grouped());
        assert!(!is_adapted(&merged));
        assert_close(&logits(&merged), &logits(&model), tolerance);
    }
}

#[test]
fn adapters_stand_on_every_family_in_f32_and_in_bf16() {
    for (device, _) in devices() {
        let in_bf16 = devices_with(DType::BF16).any(|(other, _)| other == device);
        for name in ["llama", "mistral", "qwen2", "qwen3", "phi3", "gpt_neox"] {
            println!("{name}");
            let (base_dir, dir) = (fixture(name), TempDir::new().unwrap());
            let (base, config) = CausalLm::load(&base_dir, &device).unwrap();
            let trained = device.clone().autodiff();
            let model = spoken(lora().attach(base.clone(), &trained, "policy", 0)).valid();
            model.save_adapter(&config, &lora(), &base_dir, dir.path()).unwrap();
            let (merged, read) = CausalLm::load(dir.path(), &device).unwrap();
            assert_eq!(read.family, config.family);
            assert_close(&logits(&merged), &logits(&model), tolerance::TRANSFORMERS);
            let differences = logits(&model).into_iter().zip(logits(&base));
            let largest = differences.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(largest > 0.1, "the adapters count");
            if !in_bf16 {
                continue;
            }
            let half = Placement { device: device.clone(), dtype: DType::BF16 };
            let (half, _) = CausalLm::load(&base_dir, half).unwrap();
            let adapter = Adapter::open(dir.path()).unwrap().unwrap();
            let adapted = half.adapted(&adapter).unwrap();
            assert_eq!(adapted.dtype(), DType::BF16);
            assert_ne!(logits(&adapted), logits(&half));
        }
    }
}

#[test]
fn a_scalar_model_of_adapters_keeps_its_head() {
    for (device, tolerance) in devices() {
        let (base_dir, dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        base(&device).save(&grouped(), base_dir.path()).unwrap();
        let scalar = ScalarModel::over(&base(&device), FreshHead::official("reward", 0));
        let read = |seed| {
            let autodiff = &device;
            ScalarModel::from_language_model(
                base_dir.path(),
                FreshHead::official("reward", seed),
                autodiff,
            )
            .unwrap()
            .0
        };
        assert_eq!(fingerprint(&scalar), fingerprint(&read(0)), "the head is drawn alike");
        let model = spoken(lora().attach(scalar, &device.clone().autodiff(), "reward", 0)).valid();
        model.save_adapter(&grouped(), &lora(), base_dir.path(), dir.path()).unwrap();
        let adapter = Adapter::open(dir.path()).unwrap().unwrap();
        let factored = ScalarModel::adapted(&base(&device), &adapter).unwrap();
        assert_eq!(scores(&factored), scores(&model));
        let (merged, _) = ScalarModel::load(dir.path(), &device).unwrap();
        assert_close(&scores(&merged), &scores(&model), tolerance);
    }
}

#[test]
fn adapters_stand_on_adapters() {
    let device = cpu();
    let (_base, first, model) = saved(&device);
    let second = TempDir::new().unwrap();
    let (merged, _) = CausalLm::load(first.path(), &device).unwrap();
    assert_close(&logits(&merged), &logits(&model), tolerance::CPU_F32);
    let further = spoken(lora().attach(merged, &device.clone().autodiff(), "policy", 1)).valid();
    further.save_adapter(&grouped(), &lora(), first.path(), second.path()).unwrap();
    let (read, _) = CausalLm::load(second.path(), &device).unwrap();
    assert_close(&logits(&read), &logits(&further), tolerance::CPU_F32);
    let distance =
        logits(&read).iter().zip(logits(&model)).map(|(a, b)| (a - b).abs()).sum::<f64>();
    assert!(distance > 1.0, "the second adapters count");
}

#[test]
fn the_folder_is_peft_s() {
    let (base_dir, dir, model) = saved(&cpu());
    let text = std::fs::read_to_string(dir.path().join("adapter_config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(2), &json!(3.0)));
    assert_eq!(config["target_modules"], json!(PROJECTIONS));
    let named = Path::new(config["base_model_name_or_path"].as_str().unwrap());
    assert_eq!(named, base_dir.path().canonicalize().unwrap());
    let bytes = std::fs::read(dir.path().join(ADAPTER_WEIGHTS)).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let layer = "base_model.model.model.layers.1.self_attn.k_proj";
    let shape = |part: &str| tensors.tensor(&format!("{layer}.{part}.weight")).unwrap();
    assert_eq!(shape("lora_A").shape(), [2, 16]);
    assert_eq!(shape("lora_B").shape(), [8, 2]);
    let a = &parameters(&model)["model.layers.1.self_attn.k_proj.weight.lora.a"];
    assert_eq!(shape("lora_B").data(), a.as_bytes());
}

#[test]
fn adapters_that_do_not_fit_or_that_we_cannot_read_are_refused() {
    let change = |key: &str, value: Value| {
        let (base_dir, dir, _) = saved(&cpu());
        let path = dir.path().join("adapter_config.json");
        let mut config: Value =
            serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        config[key] = value;
        std::fs::write(&path, config.to_string()).unwrap();
        let error = CausalLm::load(dir.path(), &cpu()).map(drop).unwrap_err();
        drop(base_dir);
        error
    };
    let unsupported = [
        ("peft_type", json!("IA3"), "peft_type \"IA3\"; supported: LORA"),
        ("r", json!(0), "r 0; supported: a rank from 1"),
        ("bias", json!("all"), "bias \"all\"; supported: none"),
        ("use_rslora", json!(true), "use_rslora; supported: a scale of lora_alpha / r"),
        ("use_dora", json!(true), "use_dora; supported: plain LoRA"),
        ("fan_in_fan_out", json!(true), "fan_in_fan_out; supported: weights of [outputs, inputs]"),
        (
            "alpha_pattern",
            json!({"q_proj": 1}),
            "rank_pattern or alpha_pattern; supported: one r and one lora_alpha",
        ),
        (
            "target_modules",
            json!(["wq"]),
            "targets \"wq\" is none of them; expected \"all-linear\"",
        ),
    ];
    for (key, value, expected) in unsupported {
        match change(key, value) {
            CheckpointError::Unsupported { path, what } => {
                assert!(path.ends_with("adapter_config.json") && what.contains(expected), "{what}");
            }
            other => panic!("{other}"),
        }
    }
    let CheckpointError::Tensors { problems, .. } = change("r", json!(3)) else { panic!() };
    assert!(problems[0].contains("shape [16, 2], expected [16, 3]"), "{problems:?}");
    let CheckpointError::NoBase { base, .. } =
        change("base_model_name_or_path", json!("/no/where"))
    else {
        panic!()
    };
    assert_eq!(base, Path::new("/no/where"));
    let (_base, dir, _) = saved(&cpu());
    let circle = dir.path().join("adapter_config.json");
    let text = std::fs::read_to_string(&circle).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    config["base_model_name_or_path"] = json!(dir.path());
    std::fs::write(&circle, config.to_string()).unwrap();
    let error = CausalLm::load(dir.path(), &cpu()).map(drop).unwrap_err().to_string();
    assert!(error.contains("adapters on adapters, 9 deep"), "{error}");
}

#[test]
fn settings_of_adapters_are_checked() {
    let refused = |set: &str| Settings::resolve(&[], &[set.to_owned()]).unwrap_err().to_string();
    assert!(refused("lora.alpha=0").contains("lora.alpha = 0; expected"));
    assert!(refused("lora.rank=100000").contains("expected a whole number from 0 to 65536"));
    let unknown = refused(r#"lora.targets=["q_proj", "wo"]"#);
    assert!(unknown.contains(r#"lora.targets = "wo" is none of them; expected "all-linear""#));
    assert!(refused("lora.targets=[]").contains("lora.targets = []; expected"));
}

/// The Python that has transformers and PEFT: the one that SEGMENT_RLHF_PYTHON names, or python3.
fn python_with_peft() -> Option<OsString> {
    let python = std::env::var_os("SEGMENT_RLHF_PYTHON").unwrap_or_else(|| "python3".into());
    let mut try_import = Command::new(&python);
    let found = try_import.args(["-c", "import peft, transformers, torch"]).output();
    found.is_ok_and(|output| output.status.success()).then_some(python)
}

#[test]
fn peft_computes_the_same_logits_and_scores() {
    let Some(python) = python_with_peft() else {
        println!("skipped: no Python with peft (SEGMENT_RLHF_PYTHON names one)");
        return;
    };
    // The families whose projections transformers calls as we do.
    for name in ["llama", "mistral", "qwen2", "qwen3"] {
        println!("{name}");
        peft_agrees(&python, &fixture(name));
    }
}

#[track_caller]
fn peft_agrees(python: &OsStr, base_dir: &Path) {
    let device = cpu();
    let (policy_dir, reward_dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (base, config) = CausalLm::load(base_dir, &device).unwrap();
    let autodiff = device.clone().autodiff();
    let policy = spoken(lora().attach(base.clone(), &autodiff, "policy", 0)).valid();
    policy.save_adapter(&config, &lora(), base_dir, policy_dir.path()).unwrap();
    let reward = ScalarModel::over(&base, FreshHead::official("reward", 0));
    let reward = spoken(lora().attach(reward, &autodiff, "reward", 0)).valid();
    reward.save_adapter(&config, &lora(), base_dir, reward_dir.path()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf/peft_logits.py");
    let output = Command::new(python)
        .args([&script, &policy_dir.path().to_owned(), &reward_dir.path().to_owned()])
        .args(tokens(1, 9).iter().map(u32::to_string))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let theirs: Value = serde_json::from_slice(&output.stdout).expect("one line of JSON");
    let list = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    assert_close(&logits(&policy), &list(&theirs["logits"]), tolerance::TRANSFORMERS);
    let last: Tensor<1> = reward.scores(&Grid::new([(0, tokens(1, 9))], 9), 8..9).squeeze_dim(0);
    assert_close(&host(last), &list(&theirs["score"]), tolerance::TRANSFORMERS);
}
