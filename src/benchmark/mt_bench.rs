//! MT-Bench: two turns a question, the second asked with the first answer in the conversation.
//!
//! # Source
//!
//! `fastchat/llm_judge` of lm-sys/FastChat: `common.py` reads `question_id`, `category` and the texts `turns`
//! of a question, and `question_id` and `choices[0].turns`, a text a turn, of an answer, which
//! `gen_model_answer.py` writes with `answer_id`, `model_id` and `tstamp`. The temperature of each category is
//! `temperature_config` of `common.py`, 0.7 for others, and an answer has at most 1024 tokens.

use serde_json::{Value, json};

use super::BenchmarkError;
use super::answering::{Answer, Benchmark, Layout, Question};
use super::arena_hard::{answer_id, turns};
use crate::data::fields::Fields;

/// MT-Bench, at the temperature of each question's category.
pub const MT_BENCH: Benchmark = Benchmark {
    name: "mt-bench",
    layouts: "{\"question_id\", \"category\", \"turns\"}, as in FastChat's question.jsonl",
    max_new_tokens: 1024,
    layout: Layout::Lines,
    read,
    write,
};

/// The published sampling temperature of a category.
///
/// # Examples
///
/// ```
/// use segment_rlhf::benchmark::mt_bench::temperature;
/// assert_eq!([temperature("writing"), temperature("math"), temperature("stem")], [0.7, 0.0, 0.1]);
/// ```
pub fn temperature(category: &str) -> f64 {
    match category {
        "extraction" | "math" | "coding" | "reasoning" => 0.0,
        "stem" | "humanities" => 0.1,
        _ => 0.7, // writing, roleplay, and what is not MT-Bench's
    }
}

fn read(row: &Fields) -> Result<Question, BenchmarkError> {
    let id = row.require("question_id")?.clone();
    Ok(Question {
        place: row.place,
        turns: turns(row)?,
        temperature: temperature(row.text("category")?),
        kept: json!({}),
        id: Some(id),
    })
}

fn write(question: &Question, answers: &[Answer], name: &str, time: f64) -> Value {
    let turns: Vec<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
    json!({
        "question_id": question.id,
        "answer_id": answer_id(question, answers, name),
        "model_id": name,
        "choices": [{"index": 0, "turns": turns}],
        "tstamp": time,
    })
}
