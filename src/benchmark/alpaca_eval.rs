//! AlpacaEval: one instruction, one answer.
//!
//! # Source
//!
//! Questions: `alpaca_eval.json` of the data set tatsu-lab/alpaca_eval, whose elements hold `instruction`,
//! `output` (of the reference model), `generator` and `dataset`. Answers: `evaluate` in
//! `src/alpaca_eval/main.py` of tatsu-lab/alpaca_eval reads `instruction` and `output` of each element of
//! `model_outputs`, and the name from `generator`; like `evaluate_from_model` there, this keeps `dataset` and
//! strips white space around an output.

use serde_json::{Value, json};

use super::BenchmarkError;
use super::answering::{Answer, Benchmark, Layout, Question};
use crate::data::fields::Fields;

/// AlpacaEval, greedily unless told otherwise: its generators have no common temperature.
pub const ALPACA_EVAL: Benchmark = Benchmark {
    name: "alpaca-eval",
    layouts: "{\"instruction\"}, as in alpaca_eval.json",
    max_new_tokens: 2048,
    layout: Layout::List,
    read,
    write,
};

fn read(row: &Fields) -> Result<Question, BenchmarkError> {
    let instruction = row.text("instruction")?;
    let kept = json!({ "dataset": row.get("dataset"), "instruction": instruction });
    Ok(Question {
        place: row.place,
        id: None, // instructions may repeat
        turns: vec![instruction.to_owned()],
        temperature: 0.0,
        kept,
    })
}

fn write(question: &Question, answers: &[Answer], name: &str, _: f64) -> Value {
    let mut entry = question.kept.clone();
    let object = entry.as_object_mut().expect("made as one");
    object.retain(|_, value| !value.is_null());
    object.insert("output".into(), answers[0].text.clone().into());
    object.insert("generator".into(), name.into());
    entry
}
