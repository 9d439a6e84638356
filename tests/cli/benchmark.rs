//! The public benchmarks, each written file against its judge's schema, and `score`.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use segment_rlhf::data::chat::{Message, Role};
use segment_rlhf::data::letters;
use segment_rlhf::data::tokenizer::Tokenizer;
use segment_rlhf::model::CausalLm;
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::rng::streams;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{copy, edit_json, finish, json_lines, llama, program, reward_model};

/// The tiny checkpoint with a chat template, and a folder for questions and answers.
struct Bench {
    model: TempDir,
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        let model = llama();
        let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                        {% if add_generation_prompt %}assistant: {% endif %}";
        fs::write(model.path().join("chat_template.jinja"), template).unwrap();
        Self { model, folder: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn model(&self) -> &str {
        self.model.path().to_str().unwrap()
    }

    /// Writes the rows as JSON lines.
    fn lines(&self, name: &str, rows: &[Value]) -> PathBuf {
        write_lines(&self.path(name), rows)
    }

    /// Answers the questions of a benchmark, and gives the answer file.
    #[track_caller]
    fn answer(&self, benchmark: &str, questions: &Path, out: &str, further: &[&str]) -> PathBuf {
        let path = self.path(out);
        self.try_answer(benchmark, questions, out, further).ended_with(0);
        assert!(!self.path(&format!("{out}.partial")).exists());
        path
    }

    fn try_answer(
        &self,
        benchmark: &str,
        questions: &Path,
        out: &str,
        further: &[&str],
    ) -> crate::support::Output {
        let (questions, path) = (questions.to_str().unwrap(), self.path(out));
        let arguments = ["evaluate", benchmark, "--model", self.model(), "--questions", questions];
        let out = ["--out", path.to_str().unwrap(), "--name", "tiny", "--max-new-tokens", "6"];
        program(&self.path("run"), &[&arguments[..], &out, further].concat())
    }

    /// The model's greedy answer at the end of a conversation, of at most six tokens.
    fn greedy(&self, conversation: &[(Role, &str)]) -> String {
        let message =
            |(role, content): &(Role, &str)| Message { role: *role, content: (*content).into() };
        let messages: Vec<Message> = conversation.iter().map(message).collect();
        let (model, config) = CausalLm::load(self.model.path(), &Device::flex()).unwrap();
        let tokenizer = Tokenizer::from_dir(self.model.path()).unwrap();
        let mut prompt = tokenizer.encode_prompt(&messages).unwrap();
        let (start, mut rng) = (prompt.len(), streams(0, "unused", 0..1).remove(0));
        while prompt.len() < start + 6 {
            let row = [(&prompt[..], &[][..])];
            let (grid, width) = segment_rlhf::model::Grid::aligned(row);
            let logits =
                segment_rlhf::model::generate::to_vec(model.logits(&grid, width - 1..width));
            assert_eq!(logits.len(), config.vocab_size);
            match Sampling::GREEDY.draw(&logits, &mut rng) {
                stop if tokenizer.stop_tokens().contains(&stop) => break,
                token => prompt.push(token),
            }
        }
        tokenizer.decode(&prompt[start..]).trim().to_owned()
    }
}

fn write_lines(path: &Path, rows: &[Value]) -> PathBuf {
    fs::write(path, rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
    path.to_owned()
}

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The same without what tells the time.
fn timeless(mut answers: Vec<Value>) -> Vec<Value> {
    for answer in &mut answers {
        assert!(answer["tstamp"].take().as_f64().unwrap() > 1.7e9, "seconds since 1970");
    }
    answers
}

const INSTRUCTIONS: [&str; 3] =
    ["Name three cities.", "Why is the sky blue?", "Write a poem: one line"];

/// AlpacaEval's file: a list whose elements hold the reference model's answers.
fn alpaca_questions(bench: &Bench) -> PathBuf {
    let element = |instruction: &&str| {
        json!({
            "instruction": instruction, "output": "Of the reference.",
            "generator": "text_davinci_003", "dataset": "helpful_base",
        })
    };
    let mut list: Vec<Value> = INSTRUCTIONS.iter().map(element).collect();
    list[1].as_object_mut().unwrap().remove("dataset");
    let path = bench.path("alpaca_eval.json");
    fs::write(&path, Value::from(list).to_string()).unwrap();
    path
}

#[test]
fn alpaca_eval_gets_a_list_of_the_model_s_own_answers() {
    let bench = Bench::new();
    let questions = alpaca_questions(&bench);
    let out = bench.answer("alpaca-eval", &questions, "model_outputs.json", &[]);
    let outputs = read(&out);
    let outputs = outputs.as_array().unwrap();
    assert_eq!(outputs.len(), 3);
    for (i, (entry, instruction)) in outputs.iter().zip(INSTRUCTIONS).enumerate() {
        let with_dataset: &[&str] = if i == 1 { &[] } else { &["dataset"] };
        assert_eq!(keys(entry), [with_dataset, &["instruction", "output", "generator"]].concat());
        assert_eq!(
            (&entry["instruction"], &entry["generator"]),
            (&instruction.into(), &"tiny".into())
        );
        assert_eq!(entry["output"], bench.greedy(&[(Role::User, instruction)]), "{instruction}");
    }
    let again = bench.answer("alpaca-eval", &questions, "again.json", &[]);
    assert_eq!(fs::read(again).unwrap(), fs::read(out).unwrap());
}

#[test]
fn arena_hard_gets_answers_of_the_version_of_its_questions() {
    let bench = Bench::new();
    let text = "Which is taller?";
    let answer = bench.greedy(&[(Role::User, text)]);
    let first = json!({
        "question_id": "328c149e", "category": "arena-hard-v0.1", "cluster": "Heights",
        "turns": [{"content": text}],
    });
    let questions = bench.lines("v01.jsonl", &[first]);
    let out = bench.answer("arena-hard", &questions, "tiny.jsonl", &[]);
    let entry = &json_lines(&out)[0];
    let expected = ["question_id", "answer_id", "model_id", "choices", "tstamp", "conv_metadata"];
    assert_eq!(keys(entry), expected);
    assert_eq!((&entry["question_id"], &entry["model_id"]), (&"328c149e".into(), &"tiny".into()));
    assert!(!entry["answer_id"].as_str().unwrap().is_empty());
    let turn = &entry["choices"][0]["turns"][0];
    assert_eq!(entry["choices"], json!([{"index": 0, "turns": [turn]}]));
    assert_eq!(
        (keys(turn), &turn["content"]),
        (vec!["content", "token_len"], &answer.clone().into())
    );
    assert!((1..=6).contains(&turn["token_len"].as_u64().unwrap()));

    let second = json!({
        "uid": "0a1b", "category": "hard_prompt", "subcategory": "coding", "prompt": text,
    });
    let questions = bench.lines("v2.jsonl", &[second]);
    let entry = &json_lines(&bench.answer("arena-hard", &questions, "tiny2.jsonl", &[]))[0];
    assert_eq!(keys(entry), ["uid", "ans_id", "model", "messages", "tstamp", "metadata"]);
    assert_eq!((&entry["uid"], &entry["model"]), (&"0a1b".into(), &"tiny".into()));
    let messages = json!([
        {"role": "user", "content": text}, {"role": "assistant", "content": {"answer": answer}},
    ]);
    assert_eq!(entry["messages"], messages);
    assert_eq!(keys(&entry["metadata"]), ["token_len", "header_count", "list_count", "bold_count"]);
    assert_eq!(entry["metadata"]["token_len"], turn["token_len"]);
}

fn mt_questions(bench: &Bench) -> PathBuf {
    let question = |(id, category): (u64, &str)| {
        json!({
            "question_id": id, "category": category,
            "turns": ["Add 2 and 3.", "Now double it."], "reference": ["5", "10"],
        })
    };
    let rows: Vec<Value> = [(81, "writing"), (111, "math"), (141, "stem")].map(question).into();
    bench.lines("question.jsonl", &rows)
}

#[test]
fn mt_bench_asks_the_second_turn_in_the_conversation_of_the_first() {
    let bench = Bench::new();
    let questions = mt_questions(&bench);
    let answers = json_lines(&bench.answer("mt-bench", &questions, "tiny.jsonl", &[]));
    let first = bench.greedy(&[(Role::User, "Add 2 and 3.")]);
    let conversation =
        [(Role::User, "Add 2 and 3."), (Role::Assistant, &first), (Role::User, "Now double it.")];
    let greedy = json!([{"index": 0, "turns": [first, bench.greedy(&conversation)]}]);
    assert_eq!(answers.len(), 3);
    for (answer, id) in answers.iter().zip([81, 111, 141]) {
        assert_eq!(keys(answer), ["question_id", "answer_id", "model_id", "choices", "tstamp"]);
        assert_eq!((&answer["question_id"], &answer["model_id"]), (&id.into(), &"tiny".into()));
        let turns = answer["choices"][0]["turns"].as_array().unwrap();
        assert!(turns.len() == 2 && turns.iter().all(Value::is_string));
    }
    // Mathematics is answered greedily, writing at 0.7; a temperature of one's own is for all.
    assert_eq!(answers[1]["choices"], greedy);
    assert_ne!(answers[0]["choices"], greedy);
    let out = bench.answer("mt-bench", &questions, "cold.jsonl", &["--temperature", "0"]);
    let cold = json_lines(&out);
    assert_eq!(cold.len(), 3);
    assert!(cold.iter().all(|answer| answer["choices"] == greedy));
}

#[test]
fn answers_go_on_where_they_were_stopped() {
    let bench = Bench::new();
    let questions = mt_questions(&bench);
    let whole = bench.answer("mt-bench", &questions, "whole.jsonl", &[]);
    let stop = ["--stop-after", "2", "--set", "sampling.rows_at_once=1"];
    let stopped = bench.try_answer("mt-bench", &questions, "tiny.jsonl", &stop).ended_with(130);
    stopped.says(&["run the same command again to go on", "tiny.jsonl.partial"]);
    let partial = bench.path("tiny.jsonl.partial");
    assert!(!bench.path("tiny.jsonl").exists() && json_lines(&partial).len() == 3);
    // Half a line is what a kill may leave; and other answers are not mixed in.
    let text = fs::read_to_string(&partial).unwrap();
    fs::write(&partial, text.clone() + "{\"question_id\": 14").unwrap();
    bench.try_answer("mt-bench", &questions, "tiny.jsonl", &["--seed", "1"]).ended_with(2);
    let out = bench.answer("mt-bench", &questions, "tiny.jsonl", &[]);
    let kept: Vec<Value> = text.lines().skip(1).map(|l| serde_json::from_str(l).unwrap()).collect();
    let resumed = json_lines(&out);
    assert_eq!(resumed[..2], kept);
    assert_eq!(timeless(resumed), timeless(json_lines(&whole)));
}

/// Pairs of two subsets: each with its mirror image, of which one is right, and a tie.
fn reward_bench_pairs(bench: &Bench) -> PathBuf {
    let pair = |subset: &str, chosen: &str, rejected: &str| {
        json!({
            "prompt": "How do I boil an egg?", "chosen": chosen, "rejected": rejected,
            "chosen_model": "a", "rejected_model": "b", "subset": subset, "id": 1,
        })
    };
    let (long, short) = ("In water, for six minutes.", "You do not.");
    let list = |text: &str| {
        json!([
            {"role": "user", "content": "How do I boil an egg?"},
            {"role": "assistant", "content": text},
        ])
    };
    let mut turned = pair("math-prm", "", "");
    turned["chosen"] = list(short);
    turned["rejected"] = list(long);
    let rows = [
        pair("math-prm", long, short),
        turned,
        pair("hep-go", long, long),
        pair("of my own", short, long),
    ];
    bench.lines("pairs.jsonl", &rows)
}

#[test]
fn reward_bench_is_accuracy_by_subset_and_section() {
    let bench = Bench::new();
    let (reward, data) = (reward_model(), reward_bench_pairs(&bench));
    let (reward, data) = (reward.path().to_str().unwrap(), data.to_str().unwrap());
    let base = ["evaluate", "reward-bench", "--reward-model", reward, "--data", data];
    let segment = ["--actions", "segment", "--model", bench.model()];
    let run = |further: &[&str]| program(&bench.path("run"), &[&base, further].concat());
    for actions in [&[][..], &["--actions", "token"], &segment] {
        let report = run(&[actions, &["--json"]].concat()).ended_with(0).stdout;
        let report: Value = serde_json::from_str(&report).unwrap();
        let subset = |i: usize| {
            let of = &report["subsets"][i];
            (
                of["name"].as_str().unwrap(),
                of["pairs"].as_u64().unwrap(),
                of["accuracy"].as_f64().unwrap(),
            )
        };
        // One of a pair and its mirror image is right, and a tie is not.
        assert_eq!((subset(0), subset(1)), (("math-prm", 2, 0.5), ("hep-go", 1, 0.0)));
        assert_eq!(report["subsets"][0]["standard_error"], 0.5);
        assert!(subset(2).2 == 0.0 || subset(2).2 == 1.0);
        let sections = report["sections"].as_array().unwrap();
        assert_eq!((sections.len(), &sections[0]["name"]), (1, &"Reasoning".into()));
        let weighted = 0.5 * 984.0 / (984.0 + 164.0);
        assert!((sections[0]["accuracy"].as_f64().unwrap() - weighted).abs() < 1e-12);
        assert_eq!(report["score"]["accuracy"], sections[0]["accuracy"]);
        assert_eq!(report["missing"].as_array().unwrap().len(), 5 + 6 + 5 + 5);
    }
    let table = run(&[]).ended_with(0).stdout;
    assert!(table.contains("| math-prm  |     2 |       50.0 |   50.0 |"), "{table}");
    assert!(table.contains("not in the file: alpacaeval-easy, "), "{table}");
    // 12 tokens leave the end of the response: both are cut.
    let cut = run(&["--max-length", "12", "--json"]).ended_with(0).stdout;
    assert_eq!(serde_json::from_str::<Value>(&cut).unwrap()["cut"], 4);
}

/// A trained run of the embedded task.
fn trained() -> TempDir {
    let run = TempDir::new().unwrap();
    finish(run.path(), &["sft", "train-reward", "fit-normalizer"], &[]);
    run
}

/// What a user of the embedded task says, and a letter that is worth more than none.
fn letter() -> (String, String) {
    let prompt = letters::split(letters::prompts()).1.remove(0);
    let mut rng = streams(0, "letter", 0..1).remove(0);
    let letter = letters::write_letter(&prompt, &mut rng);
    assert!(letters::gold(&prompt, &letter).reward() > letters::gold(&prompt, &[1]).reward());
    let text = prompt.to_string();
    let text = text.strip_prefix("<user> ").unwrap().strip_suffix(" <answer>").unwrap();
    (text.to_owned(), letters::decode(&letter[..letter.len() - 1]))
}

fn win_rate(run: &Path, a: &Path, b: &Path, further: &[&str]) -> Value {
    let (a, b) = (a.to_str().unwrap(), b.to_str().unwrap());
    let arguments = [&["evaluate", "win-rate", a, b, "--json"], further].concat();
    serde_json::from_str(&program(run, &arguments).ended_with(0).stdout).unwrap()
}

#[test]
fn the_gold_judge_prefers_a_letter_to_none_and_what_one_wins_the_other_loses() {
    let (run, bench) = (TempDir::new().unwrap(), Bench::new());
    let (request, letter) = letter();
    let answers = |name: &str, output: &str| {
        let row = |text: &str, output: &str| json!({"instruction": text, "output": output});
        let other = request.replace("loves", "loves ."); // one that the other file lacks
        let mut rows = vec![row(&request, output), row(&request, output)];
        rows.extend((name == "a").then(|| row(&other, output)));
        let path = bench.path(name);
        fs::write(&path, Value::from(rows).to_string()).unwrap();
        path
    };
    let (a, b) = (answers("a", &letter), answers("b", ""));
    let report = win_rate(run.path(), &a, &b, &["--judge", "gold"]);
    assert_eq!((&report["questions"], &report["unmatched"]), (&2.into(), &1.into()));
    assert_eq!((&report["wins"], &report["win_rate"]), (&2.into(), &1.0.into()));
    assert_eq!(report["length_controlled_error"], Value::Null, "the letter is always longer");
    assert_eq!(report["mean_length_a"], letter.chars().count() as f64);
    let turned = win_rate(run.path(), &b, &a, &["--judge", "gold"]);
    assert_eq!((&turned["losses"], &turned["win_rate"]), (&2.into(), &0.0.into()));
    let rate = |report: &Value| report["length_controlled_win_rate"].as_f64().unwrap();
    assert!((rate(&report) + rate(&turned) - 1.0).abs() < 1e-9);
    let same = win_rate(run.path(), &b, &b, &["--judge", "gold"]);
    assert_eq!((&same["ties"], &same["win_rate"], rate(&same)), (&2.into(), &0.5.into(), 0.5));
    let arguments = ["evaluate", "win-rate", a.to_str().unwrap(), b.to_str().unwrap()];
    let table = program(run.path(), &[&arguments[..], &["--judge", "gold"]].concat()).stdout;
    assert!(table.contains("| win rate          | 100.0 |    0.0 |"), "{table}");
    assert!(
        table.contains("2 questions: 2 wins, 0 ties, 0 losses; 1 answered by one file"),
        "{table}"
    );
}

#[test]
fn a_run_s_policy_answers_and_its_reward_model_judges_files_of_every_format() {
    let (run, bench) = (trained(), Bench::new());
    let (request, letter) = letter();
    let run = run.path();
    let words = |model: &str| json!({"instruction": request, "output": letter, "generator": model});
    let questions = bench.path("alpaca_eval.json");
    fs::write(&questions, json!([words("x")]).to_string()).unwrap();
    let out = bench.path("model_outputs.json");
    let ask = ["evaluate", "alpaca-eval", "--questions", questions.to_str().unwrap()];
    let ask = [&ask[..], &["--out", out.to_str().unwrap()]].concat();
    program(run, &ask).ended_with(2).says(&["ppo: not there or not finished"]);
    program(run, &[&ask[..], &["--reference"]].concat()).ended_with(0);
    assert_eq!(read(&out)[0]["generator"], "reference");
    finish(run, &["ppo"], &["--set", "ppo.iterations=1"]);
    program(run, &[&ask[..], &["--set", "ppo.iterations=1"]].concat()).ended_with(0);
    assert_eq!(read(&out)[0]["generator"], "segment");

    // The same answer in four formats, against the same other one.
    let turns = |turns: Value| json!({"question_id": 1, "choices": [{"index": 0, "turns": turns}]});
    let messages = |text: &str| {
        let user = json!({"role": "user", "content": request});
        json!({"uid": 1, "messages": [user, {"role": "assistant", "content": {"answer": text}}]})
    };
    let formats = |text: &str| {
        let alpaca = json!({"instruction": request, "output": text});
        [alpaca, messages(text), turns(json!([text])), turns(json!([{"content": text}]))]
    };
    let asked = bench.lines("question.jsonl", &[json!({"question_id": 1, "turns": [request]})]);
    let judge = ["--judge", "reward", "--questions", asked.to_str().unwrap()];
    let mut scores = Vec::new();
    for (a, b) in formats(&letter).into_iter().zip(formats("dear")) {
        let (a, b) = (bench.lines("a.jsonl", &[a]), bench.lines("b.jsonl", &[b]));
        let report = win_rate(run, &a, &b, &judge);
        scores.push((report["mean_score_a"].clone(), report["mean_score_b"].clone()));
    }
    assert!(scores.iter().all(|of| *of == scores[0]), "{scores:?}");
    assert_ne!(scores[0].0, scores[0].1);
}

#[test]
fn score_prints_what_segment_shows_for_every_row_of_a_file() {
    let (run, bench) = (trained(), Bench::new());
    let (request, letter) = letter();
    let texts = ["--prompt", &request, "--response", &letter];
    let shown = program(run.path(), &[&["segment", "--json"], &texts[..]].concat()).ended_with(0);
    let mut shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    assert!(shown["segments"][0]["normalized"].is_number());
    let rows = [
        json!({"prompt": request, "response": letter}),
        json!({"messages": [
            {"role": "user", "content": request}, {"role": "assistant", "content": letter},
        ]}),
    ];
    let file = bench.lines("texts.jsonl", &rows);
    let score = ["score", file.to_str().unwrap(), "--json"];
    let lines = |further: &[&str]| -> Vec<Value> {
        let printed = program(run.path(), &[&score[..], further].concat()).ended_with(0).stdout;
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    for (i, mut line) in lines(&["--normalized"]).into_iter().enumerate() {
        assert_eq!(line.as_object_mut().unwrap().shift_remove("row"), Some((i + 1).into()));
        assert_eq!(line, shown);
    }
    for segment in shown["segments"].as_array_mut().unwrap() {
        segment["normalized"] = Value::Null;
    }
    assert_eq!(lines(&[])[1]["segments"], shown["segments"]);
    let printed = program(run.path(), &[&["score"], &texts[..]].concat()).ended_with(0).stdout;
    assert!(printed.contains("segment  reward  normalized") && !printed.contains('\x1b'));
}

#[test]
fn score_reads_published_folders_without_a_run() {
    let (bench, reward) = (Bench::new(), reward_model());
    let base = ["score", "--prompt", "Was it clean?", "--response", "Clean. But loud!", "--json"];
    let folder = ["--reward-model", reward.path().to_str().unwrap()];
    let score = |further: &[&str]| -> Value {
        let output = program(&bench.path("run"), &[&base[..], &folder, further].concat());
        serde_json::from_str(&output.ended_with(0).stdout).unwrap()
    };
    let rewards = |shown: &Value| -> Vec<f64> {
        let segments = shown["segments"].as_array().unwrap();
        segments.iter().map(|segment| segment["reward"].as_f64().unwrap()).collect()
    };
    let bandit = score(&[]);
    let tokens = bandit["tokens"].as_array().unwrap();
    assert_eq!((rewards(&bandit).len(), &bandit["segments"][0]["end"]), (1, &tokens.len().into()));
    assert_eq!(bandit["sequence_score"], bandit["segments"][0]["reward"]);
    assert_eq!(tokens[0]["entropy"], Value::Null, "there is no reference model");
    assert_eq!(rewards(&score(&["--actions", "sentence"])).len(), 2);
    let token = score(&["--actions", "token", "--set", "segmentation.eos=included"]);
    assert_eq!(rewards(&token).last(), rewards(&bandit).last(), "both are read at EOS");
    let segment = score(&["--actions", "segment", "--model", bench.model()]);
    assert!(segment["tokens"][0]["entropy"].is_number());
    let mean = rewards(&segment).iter().sum::<f64>() / rewards(&segment).len() as f64;
    assert!((segment["sequence_score"].as_f64().unwrap() - mean).abs() < 1e-9);
    // A response without text is what ends it, and has a reward too.
    let base = ["score", "--prompt", "Was it clean?", "--response", "", "--json"];
    let silent = program(&bench.path("run"), &[&base[..], &folder].concat()).ended_with(0).stdout;
    let silent: Value = serde_json::from_str(&silent).unwrap();
    assert_eq!((rewards(&silent).len(), silent["tokens"].as_array().unwrap().len()), (1, 1));
    assert!(!bench.path("run").exists(), "nothing is written");
}

#[test]
fn an_answer_ends_where_the_model_s_positions_do() {
    let bench = Bench::new();
    let questions = alpaca_questions(&bench);
    let free = read(&bench.answer("alpaca-eval", &questions, "free.json", &[]));
    let short = copy(bench.model.path());
    let tokenizer = Tokenizer::from_dir(short.path()).unwrap();
    let user = Message { role: Role::User, content: INSTRUCTIONS[2].into() };
    let longest = tokenizer.encode_prompt(&[user]).unwrap().len();
    edit_json(&short.path().join("config.json"), |config| {
        config["max_position_embeddings"] = (longest + 2).into();
    });
    let bench = Bench { model: short, folder: TempDir::new().unwrap() };
    let questions = alpaca_questions(&bench);
    let bound = read(&bench.answer("alpaca-eval", &questions, "bound.json", &[]));
    for i in 0..3 {
        let (free, bound) =
            (free[i]["output"].as_str().unwrap(), bound[i]["output"].as_str().unwrap());
        assert!(free.starts_with(bound), "{free} {bound}");
    }
    assert!(bound[2]["output"].as_str().unwrap().chars().count() <= 2);
}
