//! Every stage on a Hugging Face checkpoint and a user's preference pairs.

use std::path::Path;
use std::process::Command;

use burn::tensor::Device;
use segment_rlhf::data::tokenizer::Tokenizer;
use segment_rlhf::model::{CausalLm, ScalarModel};
use segment_rlhf::run::metrics::IterationMetrics;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    PROGRAM, SENTENCES, command_line, edit_json, finish, json_lines, llama, program,
};

const PIPELINE: [&str; 4] = ["train-reward", "fit-normalizer", "ppo", "evaluate"];

/// Metrics that only the embedded task knows.
const TRUTHS: [&str; 4] =
    ["gold", "cause_advantage_share", "cause_token_share", "credit_correlation"];

/// The results of a method's stages are there, load, and hold numbers.
fn check(run: &Path, method: &str) {
    let dir = |stage: &str| run.join(method).join(stage);
    let device = Device::flex();
    for model in ["ppo/model", "ppo/best/model"] {
        let (_, config) = CausalLm::load(&dir(model), &device).unwrap();
        assert_eq!(config.vocab_size, 96);
        assert_eq!(Tokenizer::from_dir(&dir(model)).unwrap().eos(), 2);
    }
    ScalarModel::load(&dir("reward/model"), &device).unwrap();
    assert_eq!(json_lines(&dir("reward/metrics.jsonl")).len(), 4, "two epochs of nine pairs");

    let lines = json_lines(&dir("ppo/metrics.jsonl"));
    assert_eq!(lines.len(), 3);
    let glossary = serde_json::to_value(IterationMetrics::default()).unwrap();
    let glossary: Vec<&String> = glossary.as_object().unwrap().keys().collect();
    for (iteration, line) in lines.iter().enumerate() {
        let line = line.as_object().unwrap();
        assert_eq!(line.keys().collect::<Vec<_>>(), glossary);
        assert_eq!(line["iteration"], iteration);
        for (key, value) in line {
            // JSON has no NaN: what is not finite would be null.
            let absent = TRUTHS.contains(&key.as_str());
            assert_eq!(value.is_number(), !absent, "{key}: {value} in iteration {iteration}");
        }
        let figure = |key: &str| line[key].as_f64().unwrap();
        assert!(figure("advantage_mean").abs() < 1e-6 && figure("kl_k3") >= 0.0);
        assert!((1.0..=16.0).contains(&figure("response_tokens")));
    }
    let first = |key: &str| lines[0][key].as_f64().unwrap();
    assert!(first("kl_k1").abs() < 1e-3, "the first policy is the reference: {}", first("kl_k1"));
    assert_eq!(json_lines(&dir("ppo/timings.jsonl")).len(), 3);

    let text = std::fs::read_to_string(dir("evaluation/summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&text).unwrap();
    assert!(summary["after"]["win_rate"].is_number() && summary["after"]["gold"].is_null());
}

#[test]
fn a_checkpoint_and_a_file_of_pairs_pass_through_every_stage() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let run = run.path();
    let model = model.path().to_str().unwrap();
    let input = ["--model", model, "--data", SENTENCES, "--set", "ppo.iterations=3"];
    for method in ["segment", "bandit"] {
        finish(run, &PIPELINE, &[&input[..], &["--method", method]].concat());
        check(run, method);
        let segments = |line: &Value| line["segments"].as_f64().unwrap();
        let lines = json_lines(&run.join(method).join("ppo/metrics.jsonl"));
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|line| (segments(line) == 1.0) == (method == "bandit")));
    }
    let prompt = ["--model", model, "--prompt", "How do I boil an egg?"];
    let generated = program(run, &[&["generate"], &prompt[..]].concat()).ended_with(0).stdout;
    assert!(generated.starts_with("User: How do I boil an egg?"), "{generated}");
    let shown = program(run, &[&["segment", "--json"], &prompt[..]].concat()).ended_with(0).stdout;
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert!(shown["segments"][0]["normalized"].is_number(), "{shown}");
}

/// A checkpoint as most are: a chat template, a second token that ends turns, and padding by EOS.
#[test]
fn a_checkpoint_with_a_chat_template_passes_through_every_stage() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let (run, dir) = (run.path(), model.path());
    let template = "Today is {{ strftime_now('%d %b %Y') }}. {{ bos_token }}{% for m in messages %}\
        {{ m.role }}: {{ m.content | trim }}{{ eos_token if m.role == 'assistant' }}\n{% endfor %}\
        {% if add_generation_prompt %}assistant: {% endif %}";
    std::fs::write(dir.join("chat_template.jinja"), template).unwrap();
    let config = r#"{"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}"#;
    std::fs::write(dir.join("tokenizer_config.json"), config).unwrap();
    let generation = dir.join("generation_config.json");
    edit_json(&generation, |config| config["eos_token_id"] = json!([2, 40]));
    let model = dir.to_str().unwrap();
    let input = ["--model", model, "--data", SENTENCES, "--set", "ppo.iterations=3"];
    finish(run, &PIPELINE, &input);
    check(run, "segment");
    for model in ["ppo/model", "ppo/best/model"] {
        let saved = run.join("segment").join(model);
        let text = std::fs::read_to_string(saved.join("chat_template.jinja")).unwrap();
        assert_eq!(text, template);
        let tokenizer = Tokenizer::from_dir(&saved).unwrap();
        assert_eq!((tokenizer.stop_tokens(), tokenizer.pad()), (&[2, 40][..], 2));
    }
    let arguments = command_line(run, &["generate", "--prompt", " Who wrote Faust?"], "1");
    let output = Command::new(PROGRAM).args(arguments).env("SOURCE_DATE_EPOCH", "86400").output();
    let text = String::from_utf8(output.unwrap().stdout).unwrap();
    let prompt = "Today is 02 Jan 1970. <s>user: Who wrote Faust?\nassistant:";
    assert!(text.starts_with(prompt), "{text}");
}

#[test]
fn sft_on_a_file_makes_the_reference_of_the_stages_after_it() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let start = ["--model", model.path().to_str().unwrap(), "--data", SENTENCES];
    finish(run.path(), &["sft"], &start);
    finish(run.path(), &PIPELINE, &["--data", SENTENCES, "--set", "ppo.iterations=3"]);
    check(run.path(), "segment");
}

#[test]
fn other_prompts_are_another_evaluation() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let input = ["--model", model.path().to_str().unwrap(), "--data", SENTENCES];
    finish(run.path(), &PIPELINE, &input);
    let prompts = run.path().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"Who wrote Faust?\"}\n").unwrap();
    let other = [&["evaluate"], &input[..], &["--prompts", prompts.to_str().unwrap()]].concat();
    program(run.path(), &other)
        .ended_with(2)
        .says(&["started with other settings", "inputs.prompts: absent there"]);
}

/// The folders of pairs in `RUN/data`, each with the moment at which its tokens were written.
fn stores(run: &Path) -> Vec<(String, std::time::SystemTime)> {
    let entries = std::fs::read_dir(run.join("data")).unwrap().map(|entry| entry.unwrap());
    let mut stores: Vec<_> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("pairs-"))
        .map(|entry| {
            let written = std::fs::metadata(entry.path().join("tokens")).unwrap().modified();
            (entry.file_name().into_string().unwrap(), written.unwrap())
        })
        .collect();
    stores.sort();
    stores
}

#[test]
fn data_are_tokenised_once_for_all_stages_and_methods() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let run = run.path();
    let input = ["--model", model.path().to_str().unwrap(), "--data", SENTENCES];
    finish(run, &["train-reward"], &input);
    let first = stores(run);
    assert_eq!(first.len(), 1);
    finish(run, &["fit-normalizer", "ppo"], &input);
    finish(run, &["train-reward"], &[&input[..], &["--method", "bandit"]].concat());
    assert_eq!(stores(run), first);
    // Other limits are other tokens.
    let other = ["--method", "token", "--set", "data.prompt_tokens=30"];
    finish(run, &["train-reward"], &[&input[..], &other].concat());
    assert_eq!(stores(run).len(), 2);
}

#[test]
fn a_damaged_store_is_named_and_made_again_with_the_same_result() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let run = run.path();
    let train = ["train-reward", "--model", model.path().to_str().unwrap(), "--data", SENTENCES];
    let output = program(run, &train).ended_with(0);
    assert!(!output.stderr.contains("made again"), "{}", output.stderr);
    let reward = run.join("segment/reward");
    let trained = std::fs::read(reward.join("model/model.safetensors")).unwrap();
    let store = run.join("data").join(&stores(run)[0].0);
    let files = ["tokens", "index", "summary.json"];
    let whole = files.map(|name| std::fs::read(store.join(name)).unwrap());
    for (name, whole) in files.iter().zip(&whole) {
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 1;
        std::fs::write(store.join(name), damaged).unwrap();
        std::fs::remove_dir_all(&reward).unwrap();
        let named = format!(
            "{}: damaged, or of an older version; it is made again from {SENTENCES}\n",
            store.join(name).display()
        );
        let output = program(run, &train).ended_with(0).says(&[&named]);
        assert_eq!(output.stderr.matches("made again").count(), 1, "{}", output.stderr);
        assert!(
            std::fs::read(reward.join("model/model.safetensors")).unwrap() == trained,
            "{name}"
        );
    }
    assert_eq!(files.map(|name| std::fs::read(store.join(name)).unwrap()), whole);
    // An older version wrote no hash of the tokens.
    edit_json(&store.join("summary.json"), |summary| {
        let summary = summary.as_object_mut().unwrap();
        summary.remove("token_hash").and(summary.remove("summary_hash")).unwrap();
    });
    std::fs::remove_dir_all(&reward).unwrap();
    program(run, &train).ended_with(0).says(&["summary.json: damaged, or of an older version"]);
    assert_eq!(files.map(|name| std::fs::read(store.join(name)).unwrap()), whole);
}

#[test]
fn a_process_waits_while_another_tokenises_for_the_same_run() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let folder = run.path().join("data");
    std::fs::create_dir(&folder).unwrap();
    let other = std::fs::File::create(folder.join("store.lock")).unwrap();
    other.lock().unwrap();
    let arguments =
        ["train-reward", "--model", model.path().to_str().unwrap(), "--data", SENTENCES];
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| program(run.path(), &arguments));
        std::thread::sleep(std::time::Duration::from_secs(2));
        assert!(!waiting.is_finished());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1, "the lock alone");
        other.unlock().unwrap();
        waiting.join().unwrap().ended_with(0);
    });
    assert_eq!(stores(run.path()).len(), 1);
}

#[cfg(feature = "parquet")]
#[test]
fn a_parquet_file_and_its_rows_as_json_lines_train_the_same_models() {
    let [run, other] = [(); 2].map(|()| TempDir::new().unwrap());
    let model = llama();
    let parquet = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/pairs/preference_700k.parquet");
    let rows = segment_rlhf::data::rows::rows(Path::new(parquet)).unwrap();
    let lines: Vec<String> =
        rows.map(|row| Value::Object(row.unwrap().object).to_string()).collect();
    let jsonl = model.path().join("pairs.jsonl");
    std::fs::write(&jsonl, lines.join("\n")).unwrap();
    let model = model.path().to_str().unwrap();
    for (run, data) in [(&run, parquet), (&other, jsonl.to_str().unwrap())] {
        let input = ["--model", model, "--data", data, "--set", "ppo.iterations=1"];
        let input = [&input[..], &["--set", "reward.margin_scale=0.5"]].concat();
        let trained = program(run.path(), &[&["train-reward"], &input[..]].concat()).ended_with(0);
        trained.says(&["1 of 3 pairs have no scores: their margin is reward.margin"]);
        finish(run.path(), &["sft"], &input);
        finish(run.path(), &["fit-normalizer", "ppo"], &input);
    }
    for stage in ["segment/reward", "sft", "segment/ppo"] {
        let file = |run: &TempDir| {
            std::fs::read(run.path().join(stage).join("model/model.safetensors")).unwrap()
        };
        assert!(file(&run) == file(&other), "{stage}");
    }
}
