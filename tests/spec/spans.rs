//! Spans of responses: rows of a file, critiques, and their tokens.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use segment_rlhf::data::spans::{Marks, SpanFile, TextSpan, read_critique, tokens_of};
use segment_rlhf::data::tokenizer::Tokenizer;
use segment_rlhf::stage::task::letters_tokenizer;
use serde_json::{Value, json};

const PROMPT: &str = "write to gina about the lake . gina loves music and history , not food .";
const LETTER: &str = "dear gina , music : bands play dull songs .";
const MARKS: Marks<'_> = Marks { good: "lovely :", bad: "awful :", end: "." };

fn span(start: usize, end: usize, label: i8) -> TextSpan {
    TextSpan { characters: start..end, label }
}

fn row(spans: Value) -> Value {
    json!({"prompt": PROMPT, "response": LETTER, "spans": spans})
}

/// What the file of these rows gives, or the error without the folder's name; prompts that mention gina are known.
fn read(rows: &[Value]) -> Result<SpanFile, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("spans.jsonl");
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    let tokenizer = letters_tokenizer().unwrap();
    let known = |prompt: &[u32]| tokenizer.decode(prompt).contains("gina");
    SpanFile::read(&path, &tokenizer, 1024, known)
        .map_err(|error| error.to_string().replace(&format!("{}/", dir.path().display()), ""))
}

fn refused(row: Value) -> String {
    let sound = json!({"prompt": PROMPT, "response": "dear gina", "spans": []});
    read(&[sound, row]).unwrap_err()
}

fn prompt() -> Vec<u32> {
    letters_tokenizer().unwrap().encode(&format!("<user> {PROMPT} <answer>")).unwrap()
}

#[test]
fn a_file_has_the_spans_of_a_response_by_prompt_and_text() {
    let spans = json!([{"start": 12, "end": 41, "label": -1}, {"start": 0, "end": 4, "label": 1}]);
    let file = read(&[row(spans)]).unwrap();
    assert_eq!(file.spans(&prompt(), LETTER), [span(12, 41, -1), span(0, 4, 1)]);
    assert!(file.spans(&prompt(), "dear gina").is_empty());
    assert!(file.spans(&prompt()[1..], LETTER).is_empty());
    let pieces = {
        let tokenizer = letters_tokenizer().unwrap();
        tokenizer.pieces(&tokenizer.encode(LETTER).unwrap())
    };
    assert_eq!(pieces.concat(), LETTER);
    assert_eq!(tokens_of(&pieces, &(12..41)), 3..9); // music : bands play dull songs
    assert_eq!(tokens_of(&pieces, &(0..4)), 0..1);
}

#[test]
fn characters_are_counted_whatever_their_bytes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer");
    let tokenizer = Tokenizer::from_dir(&dir).unwrap();
    let text = "naïve 東京 ok";
    let pieces = tokenizer.pieces(&tokenizer.encode(text).unwrap());
    assert_eq!(pieces.concat(), text);
    let of = |span| pieces[tokens_of(&pieces, &span)].concat().trim().to_owned();
    assert_eq!([of(0..5), of(6..8), of(9..11)], ["naïve", "東京", "ok"]);
}

proptest! {
    #[test]
    fn spans_that_do_not_overlap_share_no_token(
        words in prop::collection::vec("[ a-zé]{0,4}", 1..12), cuts in prop::collection::vec(0usize..40, 2..6),
    ) {
        let length: usize = words.iter().map(|word| word.chars().count()).sum();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(length)).collect();
        cuts.sort();
        let tokens: Vec<_> =
            cuts.windows(2).map(|cut| tokens_of(&words, &(cut[0]..cut[1]))).collect();
        let all: Vec<usize> = tokens.iter().cloned().flatten().collect();
        prop_assert!(all.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", tokens);
        // The span of all characters holds every token that adds a character.
        let whole = tokens_of(&words, &(0..length));
        let last = words.iter().rposition(|word| !word.is_empty());
        prop_assert!(last.is_none_or(|last| whole.start == 0 && whole.end > last));
    }
}

#[test]
fn each_bad_row_is_named_with_what_to_do() {
    let one = |start: i64, end: i64, label: i64| {
        refused(row(json!([{"start": start, "end": end, "label": label}])))
    };
    let outside = "in a response of 43 characters; expected 0 <= start < end <= 43";
    for (start, end) in [(40, 44), (-1, 3), (5, 5), (7, 6)] {
        let expected = format!("spans.jsonl:2: spans[0] is {start} to {end} {outside}");
        assert_eq!(one(start, end, 1), expected);
    }
    let label = "spans.jsonl:2: the label of spans[0] is 2; expected -1, 0 or 1";
    assert_eq!(one(0, 4, 2), label);
    let spans = [(0, 9), (20, 30), (8, 12)]
        .map(|(start, end)| json!({"start": start, "end": end, "label": 1}));
    assert_eq!(
        refused(row(json!(spans))),
        "spans.jsonl:2: spans[0] and spans[2] overlap; part them, or take one of them out"
    );
    let other = json!({"prompt": PROMPT.replace("gina", "hugo"), "response": LETTER, "spans": []});
    assert_eq!(
        refused(other),
        "spans.jsonl:2: the prompt is none of the run's; take the row out, or name the file with its prompts as \
         --prompts"
    );
    let again = json!({"prompt": PROMPT, "response": "dear gina", "spans": []});
    assert_eq!(
        refused(again),
        "spans.jsonl:2: the same prompt and response as in row 1; put all its spans into one row"
    );
    let layout =
        "a row is an object with `prompt`, `response` and `spans`, a list of {start, end, label}";
    for key in ["prompt", "response", "spans"] {
        let mut lacks = row(json!([]));
        lacks.as_object_mut().unwrap().remove(key);
        let expected = format!("spans.jsonl:2: the key `{key}` is missing; {layout}");
        assert_eq!(refused(lacks), expected);
    }
    let lacks = refused(row(json!([{"start": 0, "end": 4}])));
    assert_eq!(lacks, format!("spans.jsonl:2: the key `spans[0].label` is missing; {layout}"));
    let fraction = refused(row(json!([{"start": 0.5, "end": 4, "label": 1}])));
    assert_eq!(fraction, "spans.jsonl:2: `spans[0].start` is a number; expected a whole number");
    let object = refused(row(json!({"start": 0})));
    assert_eq!(object, "spans.jsonl:2: `spans` is an object; expected a list");
    let empty = read(&[]).unwrap_err();
    assert_eq!(
        empty,
        "spans.jsonl: no rows; expected an object with `prompt`, `response` and `spans`, a list of {start, end, label}"
    );
}

#[test]
fn a_critique_that_follows_the_grammar_quotes_spans_in_their_order() {
    let read = |critique| read_critique(critique, LETTER, MARKS);
    assert_eq!(read(" awful : dull songs . "), Some(vec![span(31, 41, -1)]));
    let two = "lovely : music : bands play . awful : dull songs .";
    assert_eq!(read(two), Some(vec![span(12, 30, 1), span(31, 41, -1)]));
    assert_eq!(read(""), Some(vec![]));
    // A quote that is said twice is the next one each time.
    let twice = "music and music and music";
    let marks = Marks { good: "+", bad: "-", end: ";" };
    let spans = read_critique("+ music ; - music ;", twice, marks);
    assert_eq!(spans, Some(vec![span(0, 5, 1), span(10, 15, -1)]));
}

#[test]
fn a_critique_with_any_fault_marks_nothing() {
    for critique in [
        "dull songs .",                              // no mark
        "awful : dull songs",                        // no end
        "awful : .",                                 // no quote
        "awful : old songs .",                       // not in the response
        "awful : ull songs .",                       // a part of a word
        "awful : dull songs . lovely : gina .",      // against the order
        "awful : dull songs . and so on",            // more behind it
        "awful : dull songs . awful : dull songs .", // the same place twice
        "Awful : dull songs .",
    ] {
        assert_eq!(read_critique(critique, LETTER, MARKS), None, "{critique}");
    }
}
