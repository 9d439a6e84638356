//! Rows of preference pairs, prompts and conversations as token ids.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use segment_rlhf::data::chat::RoleFormat;
use segment_rlhf::data::error::DataError;
use segment_rlhf::data::pairs::*;
use segment_rlhf::data::tokenizer::Tokenizer;
use serde_json::{Value, json};
use tempfile::TempDir;

/// What errors say a row is.
const PAIR: &str =
    "{\"chosen\", \"rejected\"} of message lists, or {\"prompt\", \"chosen\", \"rejected\"}";
const PROMPT: &str = "{\"prompt\"}, or a preference pair";
const CONVERSATION: &str = "{\"messages\"}, {\"prompt\", \"response\"}, or a preference pair";

/// Rows that are tokenised at the same time.
const BLOCK: usize = 256;

const FILE: &str = "data.jsonl";
const WIDE: Limits = Limits { prompt_tokens: 100, response_tokens: 100, total_tokens: 200 };
const EOS: u32 = 1;

/// The words `a` to `h` are 10 to 17, `S`, `U` and `A` open the turns of the roles.
fn tokenizer() -> Tokenizer {
    let json = json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {"type": "WordLevel", "unk_token": "none", "vocab": {
            "<eos>": EOS, "S": 2, "U": 3, "A": 4,
            "a": 10, "b": 11, "c": 12, "d": 13, "e": 14, "f": 15, "g": 16, "h": 17,
        }},
    });
    let format = RoleFormat::new("S {} ", "U {} ", "A {} ").unwrap();
    Tokenizer::from_json(&json.to_string(), "<eos>", "<eos>", format).unwrap()
}

/// What `read` makes of a file of these bytes; errors name the file `data.jsonl`.
fn with_file<T>(bytes: impl AsRef<[u8]>, read: impl FnOnce(&Path) -> T) -> T {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(FILE);
    fs::write(&path, bytes).unwrap();
    read(&path)
}

fn all_pairs(
    path: &Path,
    tokenizer: &Tokenizer,
    limits: Limits,
) -> Result<(Vec<PreferencePair>, Counts), DataError> {
    let mut pairs = Vec::new();
    let counts = read_pairs(path, tokenizer, limits, false, |pair, _| {
        pairs.push(pair);
        Ok(())
    })?;
    Ok((pairs, counts))
}

fn all_prompts(
    path: &Path,
    tokenizer: &Tokenizer,
    limits: Limits,
) -> Result<(Vec<Vec<u32>>, Counts), DataError> {
    let mut prompts = Vec::new();
    let counts = read_prompts(path, tokenizer, limits, |prompt, _| {
        prompts.push(prompt);
        Ok(())
    })?;
    Ok((prompts, counts))
}

fn all_conversations(
    path: &Path,
    tokenizer: &Tokenizer,
    limits: Limits,
) -> Result<(Vec<Conversation>, Counts), DataError> {
    let mut conversations = Vec::new();
    let counts = read_conversations(path, tokenizer, limits, |conversation, _| {
        conversations.push(conversation);
        Ok(())
    })?;
    Ok((conversations, counts))
}

fn counted(bytes: impl AsRef<[u8]>) -> (Vec<PreferencePair>, Counts) {
    with_file(bytes, |path| all_pairs(path, &tokenizer(), WIDE)).unwrap()
}

fn pairs(text: &str) -> Vec<PreferencePair> {
    counted(text).0
}

fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> PreferencePair {
    let [prompt, chosen, rejected] = [prompt, chosen, rejected].map(<[u32]>::to_vec);
    PreferencePair { prompt, chosen, rejected, score_gap: None, labels: None }
}

/// The error of `read` for this file, and its text without the folder.
fn failure<T: std::fmt::Debug>(
    bytes: impl AsRef<[u8]>,
    read: impl FnOnce(&Path, &Tokenizer, Limits) -> Result<T, DataError>,
) -> (DataError, String) {
    with_file(bytes, |path| {
        let error = read(path, &tokenizer(), WIDE).unwrap_err();
        let folder = format!("{}/", path.parent().unwrap().display());
        let text = error.to_string().replace(&folder, "");
        (error, text)
    })
}

const GOOD: &str = r#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#;

#[test]
fn every_layout_is_read() {
    let system = r#"{"role":"system","content":"a"}"#;
    let user = r#"{"role":"user","content":"b","name":"ignored"}"#;
    let chosen = r#"{"role":"assistant","content":"c"}"#;
    let rejected = r#"{"role":"assistant","content":"d e"}"#;
    let (prompt, better, worse) = ([2, 10, 3, 11, 4], [12, EOS], [13, 14, EOS]);
    let long = pair(&prompt, &better, &worse);
    let short = pair(&[3, 11, 4], &better, &worse);
    let cases = [
        // All messages, without and with the prompt.
        (
            format!(
                r#"{{"chosen":[{system},{user},{chosen}],"rejected":[{system},{user},{rejected}]}}"#
            ),
            &long,
        ),
        (
            format!(
                r#"{{"prompt":[{user}],"chosen":[{user},{chosen}],"rejected":[{user},{rejected}]}}"#
            ),
            &short,
        ),
        // The responses alone.
        (
            format!(
                r#"{{"prompt":[{system},{user}],"chosen":[{chosen}],"rejected":[{rejected}],"n":1}}"#
            ),
            &long,
        ),
        // Texts, alone and mixed with messages; a null is no key.
        (r#"{"prompt":"b","chosen":"c","rejected":"d e","messages":null}"#.into(), &short),
        (
            format!(
                r#"{{"prompt":"b","chosen":[{user},{chosen}],"rejected":[{user},{rejected}]}}"#
            ),
            &short,
        ),
        (format!(r#"{{"prompt":[{system},{user}],"chosen":"c","rejected":"d e"}}"#), &long),
    ];
    for (line, expected) in &cases {
        assert_eq!(pairs(line), [(*expected).clone()], "{line}");
    }
    let file = cases.map(|(line, _)| line).join("\r\n\r\n \n");
    assert_eq!(pairs(&format!("\u{FEFF}{file}\n\n")).len(), 6);
}

#[test]
fn a_turn_of_the_assistant_may_be_part_of_the_prompt() {
    let turns = |last| {
        json!([
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
            {"role": "assistant", "content": last},
        ])
    };
    let line = json!({"chosen": turns("d"), "rejected": turns("e")}).to_string();
    assert_eq!(pairs(&line), [pair(&[3, 10, 4, 11, 3, 12, 4], &[13, EOS], &[14, EOS])]);
}

#[test]
fn an_eos_at_the_end_of_a_response_is_not_doubled() {
    let line = r#"{"prompt":"a","chosen":"b <eos>","rejected":"b <eos> c <eos> <eos>"}"#;
    assert_eq!(pairs(line), [pair(&[3, 10, 4], &[11, EOS], &[11, EOS, 12, EOS])]);
}

/// The prompt `U a b A` has 4 tokens, the responses 2 and 3, and EOS one more.
#[test]
fn prompts_are_cut_at_the_left_and_responses_at_the_right() {
    let line = r#"{"prompt":"a b","chosen":"c d","rejected":"e f g"}"#;
    let read = |prompt_tokens, response_tokens, total_tokens| {
        let limits = Limits { prompt_tokens, response_tokens, total_tokens };
        let (pairs, counts) =
            with_file(line, |path| all_pairs(path, &tokenizer(), limits)).unwrap();
        (pairs[0].clone(), counts.cut_prompts, counts.cut_responses)
    };
    let full = pair(&[3, 10, 11, 4], &[12, 13, EOS], &[14, 15, 16, EOS]);
    assert_eq!(read(4, 4, 8), (full.clone(), 0, 0));
    assert_eq!(read(3, 3, 6), (pair(&[10, 11, 4], &[12, 13, EOS], &[14, 15, EOS]), 1, 1));
    assert_eq!(read(1, 2, 3), (pair(&[4], &[12, EOS], &[14, EOS]), 1, 2));
    // Both together: a response has what its prompt leaves.
    let shorter = pair(&[3, 10, 11, 4], &[12, 13, EOS], &[14, 15, EOS]);
    assert_eq!(read(4, 4, 7), (shorter, 0, 1));
    let longer_prompts = pair(&[3, 10, 11, 4], &[12, EOS], &[14, EOS]);
    assert_eq!(read(4, 100, 6), (longer_prompts, 0, 2));
    assert_eq!(read(6, 100, 8), (full, 0, 0));
}

#[test]
fn what_was_cut_and_skipped_is_told_in_one_line() {
    let mut counts = Counts { cut_prompts: 1, cut_responses: 20, ..Counts::default() };
    let cut = "cut to the token limits: 1 prompt (at the left), 20 responses (at the right)";
    assert_eq!(counts.to_string(), cut);
    counts += Counts { empty: 2, parted: 1, ..Counts::default() };
    assert_eq!(
        counts.to_string(),
        format!("{cut}; skipped rows: 2 with an empty response, 1 without a common prompt")
    );
}

#[test]
fn prompts_are_read_once_and_in_order() {
    let text = [
        r#"{"prompt":"b"}"#,
        r#"{"prompt":[{"role":"user","content":"a a a"}]}"#,
        r#"{"prompt":"b","chosen":3}"#,
        r#"{"prompt":"a a a","chosen":"c","rejected":"d"}"#,
        r#"{"chosen":[{"role":"user","content":"c"},{"role":"assistant","content":"d"}],
            "rejected":[{"role":"user","content":"c"},{"role":"assistant","content":"e"}]}"#,
    ]
    .map(|line| line.replace('\n', " "))
    .join("\n");
    let limits = Limits { prompt_tokens: 3, ..WIDE };
    let (prompts, counts) =
        with_file(text, |path| all_prompts(path, &tokenizer(), limits)).unwrap();
    assert_eq!(prompts, [[3, 11, 4], [10, 10, 4], [3, 12, 4]]);
    assert_eq!(counts, Counts { cut_prompts: 1, ..Counts::default() });
}

#[test]
fn conversations_are_read_in_every_layout() {
    let text = [
        r#"{"prompt":"a","response":"b"}"#,
        r#"{"prompt":[{"role":"user","content":"a"}],"response":[{"role":"assistant","content":"b"}]}"#,
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
        r#"{"prompt":"a","completion":[{"role":"assistant","content":"b"}]}"#,
        r#"{"prompt":"a","chosen":"b","rejected":"c"}"#,
        r#"{"chosen":"a b","rejected":"a c"}"#,
        r#"{"prompt":"x","chosen":"y","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
    ]
    .join("\n");
    let (conversations, counts) =
        with_file(text, |path| all_conversations(path, &tokenizer(), WIDE)).unwrap();
    assert_eq!(conversations, vec![(vec![3, 10, 4], vec![11, EOS]); 7]);
    assert_eq!(counts, Counts::default());
}

#[test]
fn two_texts_share_their_prompt_up_to_the_space_before_they_differ() {
    let shared = |chosen: &str, rejected: &str| {
        pairs(&json!({"chosen": chosen, "rejected": rejected}).to_string())
    };
    let expected = pair(&[3, 10, 11, 4], &[12, EOS], &[13, 14, EOS]);
    assert_eq!(shared("a b c", "a b d e")[0], expected);
    assert_eq!(shared("a b\nc", "a b\nd e")[0], expected);
}

#[test]
fn the_lists_own_prompt_counts_where_a_text_stands_beside_them() {
    let turns = |last| {
        json!([
            {"role": "system", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": last},
        ])
    };
    let line = json!({"prompt": "b", "chosen": turns("c"), "rejected": turns("d")}).to_string();
    assert_eq!(pairs(&line), [pair(&[2, 10, 3, 11, 4], &[12, EOS], &[13, EOS])]);
    let read = with_file(&line, |path| all_prompts(path, &tokenizer(), WIDE));
    assert_eq!(read.unwrap().0, [[2, 10, 3, 11, 4]]);
}

#[test]
fn scores_are_kept_as_their_difference() {
    let gap = |scores: &str| {
        let line = format!(r#"{{"prompt":"a","chosen":"b","rejected":"c",{scores}}}"#);
        pairs(&line)[0].score_gap
    };
    assert_eq!(gap(r#""chosen_score": 9.5, "rejected_score": 2"#), Some(7.5));
    assert_eq!(gap(r#""score_chosen": 4.0, "score_rejected": 4.5"#), Some(-0.5));
    assert_eq!(gap(r#""margin": 0.25, "chosen_score": 1, "rejected_score": 0"#), Some(0.25));
    assert_eq!(gap(r#""margin": null, "score_chosen": null"#), None);
}

#[test]
fn rows_that_teach_nothing_are_skipped_and_counted() {
    let turns = |user, answer| {
        json!([
            {"role": "user", "content": user}, {"role": "assistant", "content": answer},
        ])
    };
    let texts = |chosen, rejected| json!({"prompt": "a", "chosen": chosen, "rejected": rejected});
    let rows = [
        texts("b", ""),
        texts(" \n\u{a0}", "b"),
        texts("b", "<eos>"),
        texts("b c", "b  c"),
        json!({"chosen": "a b", "rejected": "a b"}),
        json!({"chosen": turns("a", "b"), "rejected": turns("c", "d")}),
        texts("b", "c"),
    ];
    let file = rows.map(|row| row.to_string()).join("\n");
    let (pairs, counts) = counted(&file);
    assert_eq!(pairs, [pair(&[3, 10, 4], &[11, EOS], &[12, EOS])]);
    let skipped = Counts { empty: 3, equal: 2, parted: 1, ..Counts::default() };
    assert_eq!(counts, skipped);
    // What differs beyond the limit is the same within it, and no cut of a skipped row counts.
    let limits = Limits { prompt_tokens: 2, response_tokens: 3, total_tokens: 5 };
    let line = format!("{}\n{}", texts("b c d", "b c e"), texts("b", "c"));
    let (pairs, counts) = with_file(line, |path| all_pairs(path, &tokenizer(), limits)).unwrap();
    assert_eq!(pairs.len(), 1);
    assert_eq!(counts, Counts { cut_prompts: 1, equal: 1, ..Counts::default() });
    let (error, text) = failure(texts("", "b").to_string(), all_pairs);
    assert!(matches!(error, DataError::Refused(_)));
    assert_eq!(
        text,
        "data.jsonl: no preference pairs (skipped rows: 1 with an empty response); expected one \
         a row, in JSON Lines or Parquet"
    );
}

#[test]
fn more_rows_than_a_block_come_in_order() {
    let words = ["a", "b", "c", "d", "e", "f", "g", "h"];
    let word = |n: usize| words[n % words.len()];
    let row = |n: usize| {
        let chosen = [word(n), word(n / 8), word(n / 64), "a"].join(" ");
        json!({"prompt": "a", "chosen": chosen, "rejected": "b"}).to_string()
    };
    let file: Vec<String> = (0..2 * BLOCK + 3).map(row).collect();
    for (n, pair) in pairs(&file.join("\n")).iter().enumerate() {
        let id = |n: usize| 10 + (n % 8) as u32;
        assert_eq!(pair.chosen, [id(n), id(n / 8), id(n / 64), 10, EOS]);
    }
    let file = file.join("\n") + "\n[]";
    let (_, text) = failure(&file, all_pairs);
    assert!(text.starts_with(&format!("data.jsonl:{}: the line is", 2 * BLOCK + 4)), "{text}");
}

/// Rows that pyarrow wrote, in the layouts of public data sets: `tests/data/pairs/make.py`.
#[cfg(feature = "parquet")]
#[test]
fn the_layouts_of_public_data_sets_are_read_from_parquet() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let tokenizer = Tokenizer::from_dir(&dir.join("tokenizer")).unwrap();
    let read = |name: &str| {
        let path = dir.join("pairs").join(name).with_extension("parquet");
        all_pairs(&path, &tokenizer, WIDE).unwrap().0
    };
    let text = |pair: &PreferencePair| {
        [&pair.prompt, &pair.chosen, &pair.rejected].map(|ids| tokenizer.decode(ids))
    };
    let published = read("preference_700k");
    let expected = [
        "User: Hello.\n\nAssistant: Hi! How are you?\n\nUser: Fine. Name a colour.\n\nAssistant: ",
        "Green.<|eos|>",
        "No.<|eos|>",
    ];
    assert_eq!(text(&published[1]), expected);
    let gaps = |pairs: &[PreferencePair]| pairs.iter().map(|p| p.score_gap).collect::<Vec<_>>();
    assert_eq!(gaps(&published), [Some(7.5), None, Some(-0.5)]);
    let binarized = read("ultrafeedback_binarized");
    assert_eq!(
        binarized.iter().map(text).collect::<Vec<_>>(),
        published.iter().map(text).collect::<Vec<_>>()
    );
    assert_eq!(gaps(&binarized), [Some(7.5), Some(1.0), Some(-0.5)]);
    let shared = text(&read("trl_implicit")[1]);
    let expected = ["User: The sun is\n\nAssistant: ", " hot.<|eos|>", " in the sea.<|eos|>"];
    assert_eq!(shared, expected);
}

#[test]
fn each_bad_line_is_its_error() {
    macro_rules! fails {
        ($line:expr, $variant:pat, $text:expr) => {
            let (error, text) = failure($line, all_pairs);
            assert!(matches!(error, $variant), "{error:?}");
            assert_eq!(text, $text);
        };
    }
    let after_good = |line: &str| format!("{GOOD}\n\n{line}\n{{later faults do not matter");
    fails!(
        after_good(r#"{"prompt": "a", "chosen" "b"}"#),
        DataError::Refused(_),
        "data.jsonl:3: not JSON (expected `:`, column 26); expected one JSON object"
    );
    fails!(
        after_good("{"),
        DataError::Refused(_),
        "data.jsonl:3: not JSON (EOF while parsing an object, column 1); expected one JSON object"
    );
    fails!(
        [GOOD.as_bytes(), b"\n{\"a\": \"\xFF\"}"].concat(),
        DataError::Refused(_),
        "data.jsonl:2: not UTF-8 (byte 8 of the line); save the file as UTF-8"
    );
    fails!(
        after_good("[1]"),
        DataError::Refused(_),
        "data.jsonl:3: the line is a list; expected an object"
    );
    fails!(
        after_good(r#"{"prompt": "a", "chosen": 3, "rejected": "c"}"#),
        DataError::Refused(_),
        "data.jsonl:3: `chosen` is a number; expected a text or a list of messages"
    );
    fails!(
        after_good(r#"{"prompt": "a", "chosen": ["b"], "rejected": "c"}"#),
        DataError::Refused(_),
        "data.jsonl:3: `chosen[0]` is a text; expected an object"
    );
    fails!(
        after_good(r#"{"chosen": [{"role": "user", "content": true}], "rejected": []}"#),
        DataError::Refused(_),
        "data.jsonl:3: `chosen[0].content` is a boolean; expected a text"
    );
    fails!(
        after_good(r#"{"prompt": "a", "chosen": "b", "rejected": null}"#),
        DataError::Refused(_),
        format!("data.jsonl:3: the key `rejected` is missing; a row is {PAIR}")
    );
    fails!(
        r#"{"chosen": "b", "rejected": "c"}"#,
        DataError::Refused(_),
        format!("data.jsonl:1: the key `prompt` is missing; a row is {PAIR}")
    );
    fails!(
        r#"{"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"}"#,
        DataError::Refused(_),
        format!("data.jsonl:1: the key `prompt[0].content` is missing; a row is {PAIR}")
    );
    fails!(
        r#"{"prompt": [{"role": "human", "content": "a"}], "chosen": "b", "rejected": "c"}"#,
        DataError::Refused(_),
        "data.jsonl:1: the role of `prompt[0]` is \"human\"; expected system, user or assistant"
    );
    for (which, line) in [
        ("chosen", r#"{"chosen": [], "rejected": []}"#),
        (
            "rejected",
            r#"{"prompt": "a", "chosen": "b", "rejected": [{"role":"user","content":"c"}]}"#,
        ),
    ] {
        fails!(
            line,
            DataError::Refused(_),
            format!(
                "data.jsonl:1: `{which}` must end with a message of the assistant: the response"
            )
        );
    }
    let with =
        |scores| after_good(&format!(r#"{{"prompt":"a","chosen":"b","rejected":"c",{scores}}}"#));
    fails!(
        with(r#""margin": "wide""#),
        DataError::Refused(_),
        "data.jsonl:3: `margin` is a text; expected a number within ±1e30"
    );
    fails!(
        with(r#""score_chosen": 1"#),
        DataError::Refused(_),
        format!("data.jsonl:3: the key `score_rejected` is missing; a row is {PAIR}")
    );
    let only = r#"[{"role": "assistant", "content": "b"}]"#;
    fails!(
        format!(r#"{{"chosen": {only}, "rejected": {only}}}"#),
        DataError::Refused(_),
        "data.jsonl:1: the prompt is empty; a model needs at least one token to start from"
    );
    let user = |text| json!({"role": "user", "content": text});
    let list = |text, answer| json!([user(text), {"role": "assistant", "content": answer}]);
    fails!(
        json!({"prompt": [user("a")], "chosen": list("a", "b"), "rejected": list("c", "d")})
            .to_string(),
        DataError::Refused(_),
        "data.jsonl:1: `prompt` and `rejected` have different prompts; both must answer the same \
         one"
    );
    fails!(
        after_good(r#"{"prompt":"a","chosen":"b","rejected":"unheard of"}"#),
        DataError::Refused(_),
        "data.jsonl:3: the tokenizer cannot encode the text (WordLevel error: Missing [UNK] token \
         from the vocabulary)"
    );
    fails!(
        "\n \n",
        DataError::Refused(_),
        "data.jsonl: no preference pairs; expected one a row, in JSON Lines or Parquet"
    );
}

#[test]
fn bad_prompts_and_conversations_are_errors_too() {
    let (error, text) = failure("{}", all_prompts);
    assert!(matches!(error, DataError::Refused(_)));
    assert_eq!(text, format!("data.jsonl:1: the key `prompt` is missing; a row is {PROMPT}"));
    let (error, text) = failure("", all_prompts);
    assert!(matches!(error, DataError::Refused(_)));
    assert_eq!(text, "data.jsonl: no prompts; expected one a row, in JSON Lines or Parquet");
    for (line, key) in [("{}", "messages"), (r#"{"prompt": "a"}"#, "response")] {
        let (error, text) = failure(line, all_conversations);
        assert!(matches!(error, DataError::Refused(_)));
        let expected = format!("the key `{key}` is missing; a row is {CONVERSATION}");
        assert_eq!(text, format!("data.jsonl:1: {expected}"));
    }
    let (error, text) = failure(r#"{"messages": "a"}"#, all_conversations);
    assert!(matches!(error, DataError::Refused(_)));
    assert_eq!(text, "data.jsonl:1: `messages` is a text; expected a list of messages");
    let (error, text) = failure("", all_conversations);
    assert!(matches!(error, DataError::Refused(_)));
    assert_eq!(text, "data.jsonl: no conversations; expected one a row, in JSON Lines or Parquet");
}

#[test]
fn a_missing_file_and_a_folder_without_data_are_errors() {
    let path = "no/such/file.jsonl";
    let error = all_pairs(Path::new(path), &tokenizer(), WIDE).unwrap_err();
    assert!(matches!(error, DataError::File(_)));
    assert!(error.to_string().starts_with(&format!("{path}: cannot read: ")));
    let path = &Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let error = all_pairs(path, &tokenizer(), WIDE).unwrap_err();
    let start = format!("{}: a folder without .parquet", path.display());
    assert!(error.to_string().starts_with(&start), "{error}");
}

#[test]
fn a_folder_is_its_parts_in_the_order_of_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let line = |word| format!(r#"{{"prompt":"a","chosen":"{word}","rejected":"a"}}"#);
    for (name, word) in [("2.jsonl", "d"), ("1.jsonl", "b"), ("3.json", "e"), ("README.md", "?")] {
        let text = if name == "3.json" { format!("[{}]", line(word)) } else { line(word) };
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    let (pairs, _) = all_pairs(dir.path(), &tokenizer(), WIDE).unwrap();
    let chosen: Vec<u32> = pairs.iter().map(|pair| pair.chosen[0]).collect();
    assert_eq!(chosen, [11, 13, 14]);
    // An error names the part.
    std::fs::write(dir.path().join("2.jsonl"), "{").unwrap();
    let error = all_pairs(dir.path(), &tokenizer(), WIDE).unwrap_err();
    let start = format!("{}:1: not JSON", dir.path().join("2.jsonl").display());
    assert!(error.to_string().starts_with(&start), "{error}");
}

#[test]
fn limits_too_small_are_an_error() {
    for (prompt_tokens, response_tokens, text) in [
        (0, 2, "the limit of prompt tokens is 0; it must be at least 1"),
        (1, 1, "the limit of response tokens is 1; it must be at least 2"),
    ] {
        let limits = Limits { prompt_tokens, response_tokens, total_tokens: 9 };
        let error = all_pairs(Path::new("unread"), &tokenizer(), limits).unwrap_err();
        assert!(matches!(error, DataError::Refused(_)));
        assert_eq!(error.to_string(), text);
    }
}

/// JSON that looks like data, right or wrong in any place.
fn any_line() -> impl Strategy<Value = Value> {
    let text = prop::sample::select(vec!["", "a", "b c", "user", "assistant", "system", "é"]);
    let key = prop::sample::select(vec![
        "prompt", "chosen", "rejected", "messages", "role", "content", "margin",
    ]);
    let leaf = prop_oneof![
        6 => text.prop_map(Value::from),
        1 => any::<i32>().prop_map(Value::from),
        1 => Just(Value::Null),
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..5).prop_map(|entries| {
                entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            }),
        ]
    })
}

fn read_all(bytes: &[u8]) {
    let limits = Limits { prompt_tokens: 2, response_tokens: 2, total_tokens: 4 };
    with_file(bytes, |path| {
        let tokenizer = tokenizer();
        if let Ok((pairs, _)) = all_pairs(path, &tokenizer, limits) {
            for PreferencePair { prompt, chosen, rejected, .. } in pairs {
                assert!((1..=2).contains(&prompt.len()));
                assert_eq!((chosen.len(), chosen[1]), (2, EOS));
                assert_eq!((rejected.len(), rejected[1]), (2, EOS));
            }
        }
        let _ = all_prompts(path, &tokenizer, limits);
        let _ = all_conversations(path, &tokenizer, limits);
    });
}

proptest! {
    #[test]
    fn raw_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_all(&bytes);
    }

    #[test]
    fn any_json_never_panics(lines in prop::collection::vec(any_line(), 0..4)) {
        let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
        read_all(lines.join("\n").as_bytes());
    }
}
