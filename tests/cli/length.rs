//! No command reads past the length that a model was made for: of longrope, what the short factors serve.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use segment_rlhf::data::chat::{Message, Role};
use segment_rlhf::data::tokenizer::Tokenizer;
use segment_rlhf::model::{CausalLm, FreshHead, ModelConfig, ScalarModel};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{SENTENCES, assert_no_result, characters, json_lines, program, reward_model};

/// `original_max_position_embeddings` of tests/data/hf/phi3_long, half of its `max_position_embeddings`.
const LIMIT: usize = 64;

/// A language model of the shape of tests/data/hf/phi3_long with a tokenizer of one character a token, and a reward
/// model over it.
struct LongRope {
    language: TempDir,
    reward: TempDir,
    folder: TempDir,
}

impl LongRope {
    fn new() -> Self {
        let hf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hf/phi3_long");
        let config = ModelConfig { vocab_size: 96, ..ModelConfig::from_dir(&hf).unwrap() };
        let [language, reward, folder] = [(); 3].map(|()| TempDir::new().unwrap());
        let model = CausalLm::fresh(&config, 1, &Device::flex());
        model.save(&config, language.path()).unwrap();
        let scalar = ScalarModel::over(&model, FreshHead::official("reward", 1));
        scalar.save(&config, reward.path()).unwrap();
        for dir in [&language, &reward] {
            fs::write(dir.path().join("tokenizer.json"), characters(96).to_string()).unwrap();
        }
        Self { language, reward, folder }
    }

    fn run(&self, arguments: &[&str]) -> crate::support::Output {
        let [language, reward] = [&self.language, &self.reward].map(|dir| dir.path());
        let named = arguments.iter().map(|&argument| match argument {
            "LANGUAGE" => language.to_str().unwrap().to_owned(),
            "REWARD" => reward.to_str().unwrap().to_owned(),
            name if name.starts_with('@') => self.path(&name[1..]),
            text => text.to_owned(),
        });
        let named: Vec<String> = named.collect();
        let named: Vec<&str> = named.iter().map(String::as_str).collect();
        program(&self.folder.path().join("run"), &named)
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, rows: &[Value]) {
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(self.path(name), lines).unwrap();
    }

    /// The prompt "a" takes so many tokens.
    fn prompt(&self) -> usize {
        let tokenizer = Tokenizer::from_dir(self.language.path()).unwrap();
        let user = Message { role: Role::User, content: "a".to_owned() };
        tokenizer.encode_prompt(&[user]).unwrap().len()
    }

    /// A response to the prompt "a" with which both take `tokens`; one of them ends it.
    fn response(&self, tokens: usize) -> String {
        let tokenizer = Tokenizer::from_dir(self.language.path()).unwrap();
        let message = |role, content: &str| Message { role, content: content.to_owned() };
        let user = message(Role::User, "a");
        let text = "b".repeat(tokens - self.prompt() - 1);
        let answer = message(Role::Assistant, &text);
        let (prompt, response) = tokenizer.encode_conversation(&[user], &answer).unwrap();
        assert_eq!(prompt.len() + response.len(), tokens);
        text
    }
}

/// What every command says of one token too many.
const REFUSAL: &str = "a prompt with its response takes 65 tokens, but the model was made for 64 \
                       (original_max_position_embeddings): ";

#[test]
fn generate_leaves_room_for_the_longest_response() {
    let models = LongRope::new();
    let generate = |command: &str, tokens: usize| {
        let limit = format!("sampling.max_new_tokens={}", tokens - models.prompt());
        models.run(&[command, "--model", "LANGUAGE", "--prompt", "a", "--set", &limit])
    };
    for command in ["generate", "segment"] {
        generate(command, LIMIT).ended_with(0);
        let refused = generate(command, LIMIT + 1).ended_with(2);
        let remedy = "shorten the text, or lower sampling.max_new_tokens";
        refused.says(&[&format!("--prompt: {REFUSAL}{remedy}")]);
    }
}

#[test]
fn segment_refuses_a_response_that_is_too_long() {
    let models = LongRope::new();
    let segment = |tokens: usize| {
        let response = models.response(tokens);
        let text = ["--prompt", "a", "--response", &response];
        models.run(&[&["segment", "--model", "LANGUAGE"], &text[..]].concat())
    };
    segment(LIMIT).ended_with(0);
    segment(LIMIT + 1).ended_with(2).says(&[&format!("--response: {REFUSAL}")]);
}

#[test]
fn score_names_the_row_that_is_too_long_for_either_model() {
    let (models, other) = (LongRope::new(), reward_model());
    let row = |tokens| json!({"prompt": "a", "response": models.response(tokens)});
    let other = [
        "--actions",
        "segment",
        "--model",
        "LANGUAGE",
        "--reward-model",
        other.path().to_str().unwrap(),
    ];
    for given in [&["--reward-model", "REWARD"][..], &other] {
        models.write("texts.jsonl", &[row(LIMIT), row(LIMIT)]);
        models.run(&[&["score", "@texts.jsonl"], given].concat()).ended_with(0);
        models.write("texts.jsonl", &[row(LIMIT), row(LIMIT + 1)]);
        let refused = models.run(&[&["score", "@texts.jsonl"], given].concat()).ended_with(2);
        refused.says(&[&format!("texts.jsonl:2: {REFUSAL}shorten the text")]);
    }
}

#[test]
fn win_rate_names_the_answer_that_is_too_long() {
    let models = LongRope::new();
    let answer = |tokens| json!({"instruction": "a", "output": models.response(tokens)});
    models.write("a.jsonl", &[answer(LIMIT)]);
    models.write("b.jsonl", &[answer(LIMIT + 1)]);
    let compare = |b: &str| {
        let judge = ["--judge", "reward", "--reward-model", "REWARD"];
        models.run(&[&["evaluate", "win-rate", "@a.jsonl", b], &judge[..]].concat())
    };
    compare("@a.jsonl").ended_with(0);
    compare("@b.jsonl").ended_with(2).says(&[&format!("b.jsonl:1: {REFUSAL}")]);
}

#[test]
fn reward_bench_cuts_to_the_limit_and_says_so() {
    let models = LongRope::new();
    let pair = |tokens: usize| {
        let chosen = models.response(tokens);
        json!({"prompt": "a", "chosen": chosen, "rejected": "b", "subset": "mine"})
    };
    let cut = |rows: &[Value]| {
        models.write("pairs.jsonl", rows);
        let judge = ["--reward-model", "REWARD", "--data", "@pairs.jsonl", "--json"];
        let report = models.run(&[&["evaluate", "reward-bench"], &judge[..]].concat());
        let report: Value = serde_json::from_str(&report.ended_with(0).stdout).unwrap();
        report["cut"].as_u64().unwrap()
    };
    assert_eq!(cut(&[pair(LIMIT), pair(LIMIT)]), 0);
    assert_eq!(cut(&[pair(LIMIT), pair(LIMIT + 1)]), 1);
}

#[test]
fn an_answer_ends_at_the_limit_and_a_question_without_room_for_one_is_refused() {
    let models = LongRope::new();
    let question = |id: usize, prompt: usize| json!({"uid": id, "prompt": "a".repeat(prompt + 1 - models.prompt())});
    let ask = |rows: &[Value], out: &str| {
        models.write("questions.jsonl", rows);
        let files = ["--questions", "@questions.jsonl", "--out", out, "--max-new-tokens", "30"];
        models.run(&[&["evaluate", "arena-hard", "--model", "LANGUAGE"], &files[..]].concat())
    };
    let lengths = |out: &str| -> Vec<u64> {
        let answers = json_lines(Path::new(&models.path(out)));
        answers.iter().map(|answer| answer["metadata"]["token_len"].as_u64().unwrap()).collect()
    };
    ask(&[question(1, 20), question(2, LIMIT - 4), question(3, LIMIT - 1)], "@out").ended_with(0);
    assert_eq!(lengths("out"), [30, 4, 1]);
    let refused = ask(&[question(1, 20), question(2, LIMIT)], "@refused").ended_with(2);
    let remedy = "remove the question, or give a model for longer texts";
    refused.says(&[&format!("questions.jsonl:2: {REFUSAL}{remedy}")]);
    assert!(!Path::new(&models.path("refused.partial")).exists(), "nothing is asked");
}

#[test]
fn stages_name_the_data_and_the_key() {
    let models = LongRope::new();
    for stage in ["sft", "train-reward"] {
        let refused =
            models.run(&[stage, "--model", "LANGUAGE", "--data", SENTENCES]).ended_with(2);
        refused.says(&[
            "sentences.jsonl: a prompt with its response takes ",
            " tokens, but the model was made for 64 (original_max_position_embeddings): lower \
             data.total_tokens, sampling.prompt_tokens or sampling.max_new_tokens",
        ]);
        assert_no_result(&models.folder.path().join("run"));
    }
}
