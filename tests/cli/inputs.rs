//! What a result depends on: a finished stage whose input was edited is not taken for that of the edited one.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{SENTENCES, copy, edit_json, finish, llama, program};

/// A change of a model's folder, with what it changes.
type Edit = (&'static str, fn(&Path));

/// One valid edit of each file besides the weights.
const EDITS: [Edit; 6] = [
    ("config.json", |file| edit_json(file, |config| config["rope_theta"] = json!(20000.0))),
    ("config.json", |file| edit_json(file, |config| config["rms_norm_eps"] = json!(1e-3))),
    ("generation_config.json", |file| {
        edit_json(file, |config| config["eos_token_id"] = json!([2, 40]));
    }),
    ("tokenizer.json", |file| {
        edit_json(file, |tokenizer| {
            let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
            let (a, b) = (vocab["a"].clone(), vocab["b"].clone());
            vocab.extend([("a".to_owned(), b), ("b".to_owned(), a)]);
        });
    }),
    ("tokenizer_config.json", |file| fs::write(file, r#"{"pad_token": "</s>"}"#).unwrap()),
    ("chat_template.jinja", |file| {
        fs::write(file, "{% for m in messages %}{{ m.content }}{% endfor %}\n").unwrap();
    }),
];

#[test]
fn an_edited_file_of_a_model_is_another_model_to_every_finished_stage() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let on =
        |model: &Path| ["--model", model.to_str().unwrap(), "--data", SENTENCES].map(str::to_owned);
    let repeat = |stage: &str, model: &Path| {
        let input = on(model);
        let input: Vec<&str> =
            [stage].into_iter().chain(input.iter().map(String::as_str)).collect();
        program(run.path(), &input)
    };
    for stage in ["sft", "train-reward", "fit-normalizer", "ppo", "evaluate"] {
        repeat(stage, model.path()).ended_with(0);
    }
    for (name, edit) in EDITS {
        let other = copy(model.path());
        edit(&other.path().join(name));
        for stage in ["sft", "train-reward", "fit-normalizer", "evaluate"] {
            let said = repeat(stage, other.path()).ended_with(2);
            said.says(&["started with other settings", "\n  inputs.model: "]);
        }
        let said = repeat("ppo", other.path()).ended_with(2);
        said.says(&["reward.json: made for the reference model"]);
    }
    // The same model elsewhere is the same model.
    let moved = copy(model.path());
    for stage in ["sft", "train-reward", "fit-normalizer", "ppo", "evaluate"] {
        repeat(stage, moved.path()).ended_with(0);
    }
}

#[test]
fn an_edited_card_is_another_reward_model() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let input = ["--model", model.path().to_str().unwrap(), "--data", SENTENCES];
    finish(run.path(), &["train-reward", "fit-normalizer"], &input);
    let card = run.path().join("segment/reward/reward.json");
    edit_json(&card, |card: &mut Value| {
        assert_eq!(card["aggregation"], "average");
        card["aggregation"] = "sum".into();
    });
    program(run.path(), &[&["fit-normalizer"], &input[..]].concat())
        .ended_with(2)
        .says(&["started with other settings", "\n  inputs.reward_model: "]);
    program(run.path(), &[&["ppo"], &input[..]].concat())
        .ended_with(2)
        .says(&["normalizer.json: made for the reward model"]);
}

/// A file of twelve pairs, all of one prompt, in the folder `dir`.
fn pairs_of_one_prompt(dir: &Path) -> String {
    let pair = |i: u8| {
        let chosen = format!("{} so", char::from(b'a' + i));
        json!({"prompt": "Why is the sky blue?", "chosen": chosen, "rejected": "no"}).to_string()
    };
    let path = dir.join("one_prompt.jsonl");
    fs::write(&path, (0..12).map(pair).collect::<Vec<_>>().join("\n")).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn of_one_prompt_what_is_held_out_is_said_and_recorded() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let data = pairs_of_one_prompt(model.path());
    let input = ["--model", model.path().to_str().unwrap(), "--data", &data];
    let settings =
        ["--set", "data.held_out_share=0.4", "--set", "normalizer.regression=least_squares"];
    let input = [&input[..], &settings].concat();
    let summary = |path: &str| -> Value {
        serde_json::from_slice(&fs::read(run.path().join(path).join("summary.json")).unwrap())
            .unwrap()
    };
    let pairs = "all preference pairs are of one prompt: pairs are held out, not prompts";
    let conversations = "all conversations start with one prompt: conversations are held out";
    let nothing = "there is one prompt: nothing is held out";
    for (stage, said, dir, what) in [
        ("sft", Some(conversations), "sft", Some("conversations")),
        ("train-reward", Some(pairs), "segment/reward", Some("pairs")),
        ("fit-normalizer", None, "segment/normalizer", None),
        ("ppo", Some(nothing), "segment/ppo", Some("nothing")),
        ("evaluate", Some(nothing), "segment/evaluation", Some("nothing")),
    ] {
        let output = program(run.path(), &[&[stage], &input[..]].concat()).ended_with(0);
        output.says(said.as_slice());
        if let Some(what) = what {
            assert_eq!(summary(dir)["held_out"], what, "{stage}");
        }
    }
    let held_out = summary("segment/reward")["pairs"].as_u64().unwrap();
    assert!((1..12).contains(&held_out), "{held_out} of 12 pairs");
    // Of many prompts, prompts are held out, and nothing is to be said.
    let other = TempDir::new().unwrap();
    let input = ["--model", model.path().to_str().unwrap(), "--data", SENTENCES];
    let output = program(other.path(), &[&["train-reward"], &input[..]].concat()).ended_with(0);
    assert!(!output.stderr.contains("held out"), "{}", output.stderr);
    let path = other.path().join("segment/reward/summary.json");
    edit_json(&path, |summary| assert_eq!(summary["held_out"], "prompts"));
}

#[test]
fn columns_of_other_names_are_read_and_are_a_part_of_the_input() {
    let (run, model) = (TempDir::new().unwrap(), llama());
    let rows = fs::read_to_string(SENTENCES).unwrap();
    let renamed = rows.replace("\"chosen\"", "\"good\"").replace("\"rejected\"", "\"bad\"");
    assert_ne!(rows, renamed);
    let data = model.path().join("renamed.jsonl.gz");
    let file = fs::File::create(&data).unwrap();
    let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, renamed.as_bytes()).unwrap();
    encoder.finish().unwrap();
    let model_path = model.path().to_str().unwrap();
    let train = |run: &Path, data: &str, columns: &[&str]| {
        let input = ["train-reward", "--model", model_path, "--data", data];
        program(run, &[&input[..], columns].concat())
    };
    let data = data.to_str().unwrap();
    train(run.path(), data, &["--columns", "chosen=good,rejected=bad"]).ended_with(0);
    let own = TempDir::new().unwrap();
    train(own.path(), SENTENCES, &[]).ended_with(0);
    let weights =
        |run: &Path| fs::read(run.join("segment/reward/model/model.safetensors")).unwrap();
    assert!(weights(run.path()) == weights(own.path()));
    // The other way round they are other pairs.
    train(run.path(), data, &["--columns", "chosen=bad,rejected=good"])
        .ended_with(2)
        .says(&["started with other settings", "\n  inputs."]);
}
