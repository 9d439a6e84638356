//! Arena-Hard, v0.1 and v2: hard requests of one turn.
//!
//! # Source
//!
//! lmarena/arena-hard-auto. v0.1: `gen_judgment.py` reads `question_id` and `turns[i].content` of a question,
//! and `question_id`, `model_id` and `choices[0].turns[i].content` of an answer; `show_result.py` reads the
//! length in `choices[0].turns[0].token_len`, and with style control `conv_metadata`. v2:
//! `gen_judgment.py` reads `uid`, `prompt` and `category` of a question, and `uid`, `model` and
//! `messages[-1].content.answer` of an answer; `show_result.py` reads `metadata`. What `metadata` counts is
//! `count_markdown_elements` of `utils/add_markdown_info.py`, outside code blocks. The temperature is that of
//! the published `config/gen_answer_config.yaml`: 0.
//!
//! Token lengths are those of the answering model's tokenizer; the published ones are GPT's. With style
//! control, run `utils/add_markdown_info.py` on the answers to have those.

use serde_json::{Value, json};

use super::BenchmarkError;
use super::answering::{Answer, Benchmark, Layout, Question};
use crate::data::fields::Fields;
use crate::rng::fnv1a;

/// Arena-Hard; a question file's rows say which version they are of.
pub const ARENA_HARD: Benchmark = Benchmark {
    name: "arena-hard",
    layouts: "{\"question_id\", \"turns\"} (v0.1) or {\"uid\", \"prompt\"} (v2)",
    max_new_tokens: 4096,
    layout: Layout::Lines,
    read,
    write,
};

fn read(row: &Fields) -> Result<Question, BenchmarkError> {
    let (key, turns) = match row.get("uid") {
        Some(_) => ("uid", vec![row.text("prompt")?.to_owned()]),
        None => ("question_id", turns(row)?),
    };
    let id = row.require(key)?.clone();
    let kept = json!({ key: id });
    Ok(Question { place: row.place, id: Some(id), turns, temperature: 0.0, kept })
}

/// The texts of `turns`, each a text or an object with a `content`.
pub(super) fn turns(row: &Fields) -> Result<Vec<String>, BenchmarkError> {
    let turn =
        |(i, turn): (usize, &Value)| row.turn(&format!("turns[{i}]"), turn).map(str::to_owned);
    Ok(row.list("turns")?.iter().enumerate().map(turn).collect::<Result<_, _>>()?)
}

fn write(question: &Question, answers: &[Answer], name: &str, time: f64) -> Value {
    let id = answer_id(question, answers, name);
    match question.kept.get("uid") {
        Some(uid) => json!({
            "uid": uid,
            "ans_id": id,
            "model": name,
            "messages": [
                {"role": "user", "content": question.turns[0]},
                {"role": "assistant", "content": {"answer": answers[0].text}},
            ],
            "tstamp": time,
            "metadata": style(&answers[0]),
        }),
        None => {
            let turn =
                |answer: &Answer| json!({"content": answer.text, "token_len": answer.tokens});
            let turns: Vec<Value> = answers.iter().map(turn).collect();
            let mut entry = json!({
                "question_id": question.id,
                "answer_id": id,
                "model_id": name,
                "choices": [{"index": 0, "turns": turns}],
                "tstamp": time,
            });
            if let [only] = answers {
                entry["conv_metadata"] = style(only);
            }
            entry
        }
    }
}

/// An identifier of an answer, the same in every run.
pub(super) fn answer_id(question: &Question, answers: &[Answer], name: &str) -> String {
    let texts: Vec<&str> = answers.iter().map(|answer| answer.text.as_str()).collect();
    format!("{:016x}", fnv1a(json!([name, question.id, texts]).to_string().as_bytes()))
}

/// The length in tokens, and Markdown's headers, lists and bold texts outside code blocks.
fn style(answer: &Answer) -> Value {
    let text = without_code_blocks(&answer.text);
    let headers: serde_json::Map<String, Value> =
        (1..=6).map(|level| (format!("h{level}"), headers(&text, level).into())).collect();
    json!({
        "token_len": answer.tokens,
        "header_count": headers,
        "list_count": {"ordered": items(&text, ordered), "unordered": items(&text, unordered)},
        "bold_count": {"**": marked(&text, '*'), "__": marked(&text, '_')},
    })
}

/// The text without what is between two fences of three backticks; as published, the same words are removed
/// everywhere else, too.
fn without_code_blocks(text: &str) -> String {
    const FENCE: &str = "```";
    let mut kept = text.to_owned();
    let mut rest = text;
    while let Some(start) = rest.find(FENCE) {
        let inside = &rest[start + FENCE.len()..];
        let block = &inside[..inside.find('`').unwrap_or(inside.len())];
        match inside[block.len()..].strip_prefix(FENCE) {
            Some(behind) => {
                kept = kept.replace(block, "");
                rest = behind;
            }
            None => rest = &rest[start + 1..],
        }
    }
    kept
}

fn headers(text: &str, level: usize) -> usize {
    let is_header = |line: &&str| {
        let rest = line.trim_start_matches('#');
        line.len() - rest.len() == level && rest.starts_with(char::is_whitespace)
    };
    text.split_inclusive('\n').filter(is_header).count()
}

/// The number of lines that start with a list mark and white space.
fn items(text: &str, mark: fn(&str) -> Option<&str>) -> usize {
    let is_item = |line: &&str| {
        mark(line.trim_start()).is_some_and(|rest| rest.starts_with(char::is_whitespace))
    };
    text.split_inclusive('\n').filter(is_item).count()
}

fn ordered(line: &str) -> Option<&str> {
    let rest = line.trim_start_matches(|c: char| c.is_ascii_digit());
    if rest.len() < line.len() { rest.strip_prefix('.') } else { None }
}

fn unordered(line: &str) -> Option<&str> {
    line.strip_prefix(['-', '*', '+'])
}

/// The number of texts on one line between two doubled `mark`s, with no `mark` inside.
fn marked(text: &str, mark: char) -> usize {
    let fence = format!("{mark}{mark}");
    let mut count = 0;
    let mut rest = text;
    while let Some(start) = rest.find(&fence) {
        let inside = &rest[start + 2..];
        let end = inside.find([mark, '\n']).unwrap_or(inside.len());
        if end > 0 && inside[end..].starts_with(&fence) {
            count += 1;
            rest = &inside[end + 2..];
        } else {
            rest = &rest[start + 1..];
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn style_counts_what_the_published_script_counts() {
        // Text; h1, h2, h6; ordered, unordered; **, __: from count_markdown_elements after remove_pattern.
        let goldens = [
            (
                "# One\n## Two\n##Not\n1. a\n 2. b\n- c\n* d\n**bold** and __too__, **not\n** it\n```\n# code\n\
                 - x **y**\n```\n# Last",
                [2, 1, 0, 2, 2, 1, 1],
            ),
            (
                "```a```b```c```\n***x*** **a** **b**__c__d__e__\n\n-\n- \n12.\n12. \n+ x ####### y\n\
                 ###### z\n```\n- open",
                [0, 0, 1, 2, 4, 2, 1],
            ),
            ("a ```x`y``` **b** ```- c```\n\t- d\n__a____b__ **** **a*b**", [0, 0, 0, 0, 1, 1, 2]),
        ];
        for (text, [h1, h2, h6, ordered, unordered, stars, lines]) in goldens {
            let headers = json!({"h1": h1, "h2": h2, "h3": 0, "h4": 0, "h5": 0, "h6": h6});
            let expected = json!({
                "token_len": 9,
                "header_count": headers,
                "list_count": {"ordered": ordered, "unordered": unordered},
                "bold_count": {"**": stars, "__": lines},
            });
            assert_eq!(style(&Answer { text: text.into(), tokens: 9 }), expected, "{text}");
        }
    }
}
