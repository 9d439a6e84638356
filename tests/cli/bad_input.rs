//! Bad input: the exit status, the message, and nothing half-written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{SafeTensors, TensorView};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{
    SENTENCES, assert_no_result, characters, edit_json, files, finish, json_lines, llama, program,
};

#[test]
fn a_bad_line_of_data_is_named_and_nothing_is_left() {
    let model = llama();
    let model = model.path().to_str().unwrap();
    let data = TempDir::new().unwrap();
    let path = data.path().join("pairs.jsonl");
    let good = fs::read_to_string(SENTENCES).unwrap();
    let run = TempDir::new().unwrap();
    let arguments = ["train-reward", "--model", model, "--data", path.to_str().unwrap()];

    let missing = program(run.path(), &arguments).ended_with(2);
    missing.says(&["pairs.jsonl: cannot be read", "check the path and its permissions"]);
    let cases: [(&str, &[&str]); 9] = [
        ("{\"prompt\": ", &["not JSON", "column", "expected one JSON object"]),
        ("[1, 2]", &["the line is a list", "expected an object"]),
        (
            r#"{"prompt": "p", "chosen": "c"}"#,
            &["the key `rejected` is missing", "a line is", "message lists"],
        ),
        (r#"{"chosen": "c", "rejected": "r"}"#, &["the key `prompt` is missing"]),
        (
            r#"{"prompt": "p", "chosen": "c", "rejected": "  "}"#,
            &["the response in `rejected` is empty", "remove the line"],
        ),
        (
            r#"{"prompt": "p", "chosen": [{"role": "robot", "content": "c"}], "rejected": "r"}"#,
            &["the role of `chosen[0]` is \"robot\"", "expected system, user or assistant"],
        ),
        (
            r#"{"prompt": "p", "chosen": [{"role": "user", "content": "c"}], "rejected": "r"}"#,
            &["`chosen` must end with a message of the assistant"],
        ),
        (
            r#"{"prompt": "p", "chosen": 3, "rejected": "r"}"#,
            &["`chosen` is a number", "expected a text or a list of messages"],
        ),
        (r#"{"prompt": "", "chosen": [], "rejected": "r"}"#, &["pairs.jsonl:11: "]),
    ];
    for (line, texts) in cases {
        fs::write(&path, format!("{good}{line}\n")).unwrap();
        let output = program(run.path(), &arguments).ended_with(2);
        output.says(&["error: ", "pairs.jsonl:11: "]).says(texts);
        assert_no_result(run.path());
    }
    fs::write(&path, "\n").unwrap();
    program(run.path(), &arguments).ended_with(2).says(&["no preference pairs"]);
    // Once the file is right, the same command and folder serve.
    fs::write(&path, good).unwrap();
    program(run.path(), &arguments).ended_with(0);
}

/// What `sft` says of a model folder that `spoil` has changed.
#[track_caller]
fn refused_model(spoil: impl FnOnce(&Path), texts: &[&str]) {
    let (run, model) = (TempDir::new().unwrap(), llama());
    spoil(model.path());
    for stage in ["sft", "train-reward"] {
        let path = model.path().to_str().unwrap();
        let arguments = [stage, "--model", path, "--data", SENTENCES];
        program(run.path(), &arguments).ended_with(2).says(texts);
        assert_no_result(run.path());
    }
}

#[test]
fn a_model_that_cannot_be_used_is_refused_with_its_file() {
    refused_model(
        |dir| fs::remove_dir_all(dir).unwrap(),
        &["model.safetensors: cannot read", "--model expects a folder with config.json"],
    );
    refused_model(
        |dir| fs::remove_file(dir.join("tokenizer.json")).unwrap(),
        &["tokenizer.json: cannot be read"],
    );
    refused_model(
        |dir| edit_json(&dir.join("config.json"), |c| c["model_type"] = "mistral".into()),
        &["config.json: unsupported model_type Some(\"mistral\")", "supported: \"llama\""],
    );
    refused_model(
        |dir| fs::write(dir.join("config.json"), "{}").unwrap(),
        &["config.json: not the expected JSON", "missing field"],
    );
    refused_model(
        |dir| {
            let path = dir.join("model.safetensors");
            let bytes = fs::read(&path).unwrap();
            fs::write(path, &bytes[..bytes.len() - 100]).unwrap();
        },
        &["model.safetensors: not a safetensors file, or a truncated one"],
    );
    refused_model(
        |dir| fs::write(dir.join("tokenizer.json"), characters(200).to_string()).unwrap(),
        &["tokenizer.json has 200 token ids", "vocab_size 96"],
    );
    refused_model(
        |dir| {
            for name in ["config.json", "generation_config.json"] {
                edit_json(&dir.join(name), |c| c["eos_token_id"] = json!(null));
            }
        },
        &["no end-of-sequence token; name one"],
    );
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
    refused_model(
        spoil,
        &[
            "model.safetensors: the tensors are not those of this architecture:",
            "\n  model.embed_tokens.weight: shape [48, 64], expected [96, 32]",
            "\n  model.norm.weight: missing, expected shape [32]",
            "\n  model.surplus.weight: extra",
        ],
    );
}

#[test]
fn a_model_of_another_vocabulary_needs_data() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let model = model.path().to_str().unwrap();
    let output = program(run.path(), &["train-reward", "--model", model]).ended_with(2);
    output.says(&["the embedded task needs a model of its own vocabulary", "give --data"]);
    let output = program(run.path(), &["sft", "--data", SENTENCES]).ended_with(2);
    output.says(&["sft on --data needs --model DIR"]);
    let output = program(run.path(), &["generate", "--model", model]).ended_with(2);
    output.says(&["give --prompt TEXT"]);
    assert_no_result(run.path());
}

#[test]
fn a_setting_that_cannot_be_is_refused_before_anything_runs() {
    let cases: [(&str, &[&str]); 14] = [
        ("ppo.rolouts=3", &["--set ppo.rolouts=3: unknown field `rolouts`", "`rollouts`"]),
        ("pppo.rollouts=3", &["unknown field `pppo`"]),
        ("seed", &["--set seed: expected key=value, such as"]),
        ("seed=-1", &["--set seed=-1: ", "in `seed`"]),
        ("ppo.rollouts=many", &["expected usize", "in `ppo.rollouts`"]),
        ("method=sequence", &["unknown variant `sequence`", "`segment_as_bandit`"]),
        ("ppo.rollouts=0", &["setting ppo.rollouts: 0; expected a whole number from 1 up"]),
        ("sampling.top_p=0", &["setting sampling: top_p 0 is not in (0, 1]"]),
        (
            "segmentation.entropy_cutoff=-1",
            &["setting segmentation.entropy_cutoff: -1; expected nats, 0 or above"],
        ),
        ("model.kv_heads=3", &["setting model: 3 key-value heads do not divide 2 query heads"]),
        ("model.head_dim=7", &["head_dim 7 is odd"]),
        ("ppo.gamma=1.5", &["setting ppo.gamma: 1.5; expected in [0, 1]"]),
        ("ppo.actor.learning_rate=0", &["setting ppo.actor: learning_rate must be above 0"]),
        ("data.held_out_share=1", &["setting data.held_out_share: 1; expected in [0, 1)"]),
    ];
    let run = TempDir::new().unwrap();
    for (set, texts) in cases {
        program(run.path(), &["sft", "--set", set]).ended_with(2).says(texts);
        assert_no_result(run.path());
    }
}

#[test]
fn a_settings_file_that_cannot_be_is_refused_with_its_line() {
    let run = TempDir::new().unwrap();
    let cases: [(&str, &[&str]); 5] = [
        ("seed = 1\n\n[ppo]\nrolouts = 3\n", &["own.toml:4: unknown field `rolouts`", "in `ppo`"]),
        ("[ppo]\nclip = 0.1\n[ppo.actor]\nrate = 1\n", &["own.toml:4: unknown field `rate`"]),
        ("[pppo]\n", &["own.toml:1: unknown field `pppo`"]),
        ("# text\n[ppo]\nepochs = \"x\"\n", &["own.toml:3: ", "expected usize", "`ppo.epochs`"]),
        ("seed = 1\n[ppo\n", &["own.toml: ", "line 2, column", "expected `]`"]),
    ];
    let path = run.path().join("own.toml");
    let arguments = ["sft", "--settings", path.to_str().unwrap()];
    for (text, texts) in cases {
        fs::write(&path, text).unwrap();
        program(run.path(), &arguments).ended_with(2).says(texts);
        assert_eq!(files(run.path()).len(), 1, "only the settings file is there");
    }
    fs::remove_file(&path).unwrap();
    program(run.path(), &arguments).ended_with(2).says(&["own.toml: cannot read"]);
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
fn ppo_samples_from_the_policy_itself() {
    let run = TempDir::new().unwrap();
    for set in ["sampling.temperature=0.7", "sampling.top_k=5", "sampling.top_p=0.9"] {
        let output = program(run.path(), &["ppo", "--set", set]).ended_with(2);
        output.says(&["PPO samples from the policy itself, since the KL", "set temperature = 1"]);
    }
    assert_no_result(run.path());
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let run = TempDir::new().unwrap();
    finish(run.path(), &["sft", "train-reward", "fit-normalizer"], &[]);
    let path = run.path().join("segment/normalizer/normalizer.json");
    let fitted = fs::read(&path).unwrap();
    let refused = |texts: &[&str]| {
        program(run.path(), &["ppo"]).ended_with(2).says(texts);
        assert!(!run.path().join("segment/ppo").exists());
    };

    edit_json(&path, |file| file["reward_model"] = "0123456789abcdef".into());
    refused(&["normalizer.json: made for the reward model 0123456789abcdef", "fit-normalizer"]);
    fs::write(&path, &fitted).unwrap();
    edit_json(&path, |file| file["method"] = "token".into());
    refused(&["normalizer.json: made for the method token, but this run has segment"]);
    fs::write(&path, &fitted).unwrap();
    edit_json(&path, |file| {
        file["normalizer"] = json!({
            "kind": "location_aware", "w_mean": 0.0, "b_mean": 0.0, "w_std": 1.0, "b_std": 0.5,
        });
    });
    // 0.5 + ln p is 0 at p = e^-0.5.
    refused(&["normalizer.json: Std(p) = 1 ln p + 0.5 reaches 0 at p = 0.606531", "std_floor"]);
    fs::write(&path, "{\"method\": ").unwrap();
    refused(&["normalizer.json: not the expected content"]);
    fs::write(&path, &fitted).unwrap();

    let cutoff = ["--set", "segmentation.entropy_cutoff=2"];
    let output = program(run.path(), &[&["ppo"], &cutoff[..]].concat()).ended_with(2);
    output.says(&["reward.json: made for the actions", "set the same method and segmentation"]);
    let eos = ["ppo", "--set", "segmentation.eos=included"];
    program(run.path(), &eos).ended_with(2).says(&["made for the EOS policy", "segmentation.eos"]);

    let other = TempDir::new().unwrap();
    finish(other.path(), &["sft"], &["--seed", "1"]);
    let reward_model = run.path().join("segment/reward");
    let arguments =
        ["fit-normalizer", "--seed", "1", "--reward-model", reward_model.to_str().unwrap()];
    program(other.path(), &arguments).ended_with(2).says(&[
        "reward.json: made for the reference model",
        "give the --model that the reward model was trained from",
    ]);
    assert_no_result(&other.path().join("segment"));
    finish(run.path(), &["ppo"], &[]);
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

#[test]
fn arguments_that_do_not_go_together_are_refused() {
    let run = TempDir::new().unwrap();
    let output = program(run.path(), &["reproduce", "--model", "m"]).ended_with(2);
    output.says(&["goes with the single stages"]);
    program(run.path(), &["sft", "--sed", "1"]).ended_with(2).says(&["'--sed'"]);
    program(run.path(), &["sft", "--method", "all"]).ended_with(2).says(&["possible values"]);
    assert_no_result(run.path());
}

#[cfg(not(feature = "wgpu"))]
#[test]
fn a_device_that_this_build_lacks_is_refused_with_the_build_that_has_it() {
    let run = TempDir::new().unwrap();
    program(run.path(), &["sft", "--device", "wgpu"])
        .ended_with(2)
        .says(&["--device wgpu: this build lacks it", "cargo build --release --features wgpu"]);
    assert_no_result(run.path());
}
