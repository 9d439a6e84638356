//! Preference pairs, prompts and conversations: JSON Lines files as token ids.
//!
//! A line of preference pairs holds the prompt and two responses, in one of these layouts:
//!
//! ```text
//! {"chosen": MESSAGES, "rejected": MESSAGES}  the prompt is all before the last message
//! {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}  all, or the last alone
//! {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}  the prompt is a message of the user
//! MESSAGES: [{"role": "system" | "user" | "assistant", "content": TEXT}, ...]
//! ```
//!
//! Each of the three may be a text or messages, whatever the others are. Other keys are ignored, a
//! null counts as a missing key. Empty lines are skipped; a byte-order mark and CRLF are accepted.
//!
//! Cutting is as published: prompts lose tokens at the left, responses at the right, and the last
//! token of a cut response is overwritten by EOS. A response that fits gets EOS appended, and
//! counts it.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde_json::{Map, Value};

use super::chat::{Message, Role};
use super::error::DataError;
use super::rows::{Row, kind, rows};
use super::tokenizer::Tokenizer;

const PAIR: &str =
    "{\"chosen\", \"rejected\"} of message lists, or {\"prompt\", \"chosen\", \"rejected\"}";
const PROMPT: &str = "{\"prompt\"}, or a preference pair";
const CONVERSATION: &str = "{\"messages\"}, {\"prompt\", \"response\"}, or a preference pair";

/// A prompt and two responses to it, as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreferencePair {
    /// The prompt, never empty.
    pub prompt: Vec<u32>,
    /// The better response; the last token is EOS.
    pub chosen: Vec<u32>,
    /// The worse response; the last token is EOS.
    pub rejected: Vec<u32>,
}

/// A prompt and the response to it, as token ids; the response ends with EOS.
pub type Conversation = (Vec<u32>, Vec<u32>);

/// How long prompts and responses may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most tokens of a prompt; at least 1.
    pub prompt_tokens: usize,
    /// The most tokens of a response, EOS among them; at least 2.
    pub response_tokens: usize,
}

/// How many prompts and responses were cut to fit the [`Limits`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cuts {
    /// Prompts cut at the left.
    pub prompts: usize,
    /// Responses cut at the right.
    pub responses: usize,
}

impl fmt::Display for Cuts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: usize, noun| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
        let (prompts, responses) =
            (count(self.prompts, "prompt"), count(self.responses, "response"));
        write!(f, "cut to the token limits: {prompts} (at the left), {responses} (at the right)")
    }
}

/// The preference pairs in a file, and how many texts were cut.
///
/// # Errors
///
/// The [`DataError`] of the first bad line, or [`DataError::NoPairs`]; the whole file is checked
/// before anything is returned.
pub fn read_pairs(
    path: &Path,
    tokenizer: &Tokenizer,
    limits: Limits,
) -> Result<(Vec<PreferencePair>, Cuts), DataError> {
    let mut encoder = Encoder::new(tokenizer, limits)?;
    let mut pairs = Vec::new();
    for_each_line(path, PAIR, |line| {
        let (prompt, chosen, rejected) = line.pair()?;
        pairs.push(PreferencePair {
            prompt: encoder.prompt(&line, &prompt)?,
            chosen: encoder.response(&line, "chosen", &chosen)?,
            rejected: encoder.response(&line, "rejected", &rejected)?,
        });
        Ok(())
    })?;
    match pairs.is_empty() {
        true => Err(DataError::NoPairs { path: path.into() }),
        false => Ok((pairs, encoder.cuts)),
    }
}

/// The prompts in a file, each once and in the file's order, and how many of them were cut.
///
/// A line holds a `prompt` (a text or messages), or is a preference pair.
///
/// # Errors
///
/// The [`DataError`] of the first bad line, or [`DataError::NoPrompts`].
pub fn read_prompts(
    path: &Path,
    tokenizer: &Tokenizer,
    limits: Limits,
) -> Result<(Vec<Vec<u32>>, Cuts), DataError> {
    let mut encoder = Encoder::new(tokenizer, limits)?;
    let mut prompts = Vec::new();
    let mut seen = HashSet::new();
    for_each_line(path, PROMPT, |line| {
        let prompt = match line.prompt()? {
            Some(prompt) => prompt,
            None if line.get("chosen").is_some() => line.pair()?.0,
            None => return Err(line.missing("prompt")),
        };
        let cuts = encoder.cuts;
        let prompt = encoder.prompt(&line, &prompt)?;
        match seen.insert(prompt.clone()) {
            true => prompts.push(prompt),
            false => encoder.cuts = cuts,
        }
        Ok(())
    })?;
    match prompts.is_empty() {
        true => Err(DataError::NoPrompts { path: path.into() }),
        false => Ok((prompts, encoder.cuts)),
    }
}

/// The prompts and responses in a file, for supervised training, and how many texts were cut.
///
/// A line holds `messages` that end with the assistant's, or a `prompt` and a `response`, or is a
/// preference pair, of which the chosen side is taken. The first of these that is there counts.
///
/// # Errors
///
/// The [`DataError`] of the first bad line, or [`DataError::NoConversations`].
pub fn read_conversations(
    path: &Path,
    tokenizer: &Tokenizer,
    limits: Limits,
) -> Result<(Vec<Conversation>, Cuts), DataError> {
    let mut encoder = Encoder::new(tokenizer, limits)?;
    let mut conversations = Vec::new();
    for_each_line(path, CONVERSATION, |line| {
        let known =
            ["messages", "response", "chosen"].into_iter().find(|key| line.get(key).is_some());
        let (key, (prompt, response)) = match known {
            // Data sets put the first turn beside the messages as `prompt`: not of this layout.
            Some(key @ "messages") => (key, line.side(key, None)?),
            Some(key) => (key, line.side(key, line.prompt()?.as_deref())?),
            None => {
                let prompt_only = line.get("prompt").is_some();
                return Err(line.missing(if prompt_only { "response" } else { "messages" }));
            }
        };
        let prompt = encoder.prompt(&line, &prompt)?;
        conversations.push((prompt, encoder.response(&line, key, &response)?));
        Ok(())
    })?;
    match conversations.is_empty() {
        true => Err(DataError::NoConversations { path: path.into() }),
        false => Ok((conversations, encoder.cuts)),
    }
}

/// Calls `visit` with each line of the file that is not empty, up to the first error.
fn for_each_line(
    path: &Path,
    layouts: &'static str,
    mut visit: impl FnMut(Line) -> Result<(), DataError>,
) -> Result<(), DataError> {
    rows(path)?.try_for_each(|row| {
        let Row { place: number, object } = row?;
        visit(Line { path, number, layouts, object })
    })
}

/// One line of a data file: a JSON object, and where it stands.
struct Line<'a> {
    path: &'a Path,
    number: usize,
    layouts: &'static str,
    object: Map<String, Value>,
}

impl Line<'_> {
    /// The value of `key`; a null counts as missing.
    fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    fn missing(&self, key: &str) -> DataError {
        let (path, line, layouts) = (self.path.into(), self.number, self.layouts);
        DataError::MissingKey { path, line, key: key.into(), layouts }
    }

    fn wrong_type(&self, key: &str, expected: &'static str, value: &Value) -> DataError {
        let found = kind(value);
        let (path, line) = (self.path.into(), self.number);
        DataError::WrongType { path, line, key: key.into(), expected, found }
    }

    /// The prompt and the chosen and rejected responses of a preference pair.
    fn pair(&self) -> Result<(Vec<Message>, String, String), DataError> {
        let explicit = self.prompt()?;
        let (prompt, chosen) = self.side("chosen", explicit.as_deref())?;
        let (other, rejected) = self.side("rejected", explicit.as_deref())?;
        match prompt == other {
            true => Ok((prompt, chosen, rejected)),
            false => Err(self.mismatch("chosen", "rejected")),
        }
    }

    fn mismatch(&self, left: &'static str, right: &'static str) -> DataError {
        DataError::PromptMismatch { path: self.path.into(), line: self.number, left, right }
    }

    /// The messages of the key `prompt`, if it is there; a text is one message of the user.
    fn prompt(&self) -> Result<Option<Vec<Message>>, DataError> {
        match self.get("prompt") {
            None => Ok(None),
            Some(Value::String(text)) => {
                Ok(Some(vec![Message { role: Role::User, content: text.clone() }]))
            }
            Some(value) => self.messages("prompt", value).map(Some),
        }
    }

    /// The prompt and the response that `key` holds, given what the key `prompt` holds.
    fn side(
        &self,
        key: &'static str,
        explicit: Option<&[Message]>,
    ) -> Result<(Vec<Message>, String), DataError> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        if let (Value::String(response), true) = (value, key != "messages") {
            let prompt = explicit.ok_or_else(|| self.missing("prompt"))?;
            return Ok((prompt.to_vec(), response.clone()));
        }
        let mut prompt = self.messages(key, value)?;
        let Some(Message { role: Role::Assistant, content: response }) = prompt.pop() else {
            let (path, line) = (self.path.into(), self.number);
            return Err(DataError::NoResponse { path, line, which: key.into() });
        };
        match explicit {
            Some(explicit) if prompt.is_empty() => Ok((explicit.to_vec(), response)),
            Some(explicit) if prompt != explicit => Err(self.mismatch("prompt", key)),
            _ => Ok((prompt, response)),
        }
    }

    /// The message list `value`, which `key` holds.
    fn messages(&self, key: &str, value: &Value) -> Result<Vec<Message>, DataError> {
        let Value::Array(list) = value else {
            let expected = match key {
                "messages" => "a list of messages",
                _ => "a text or a list of messages",
            };
            return Err(self.wrong_type(&format!("`{key}`"), expected, value));
        };
        list.iter()
            .enumerate()
            .map(|(i, value)| self.message(&format!("{key}[{i}]"), value))
            .collect()
    }

    fn message(&self, key: &str, value: &Value) -> Result<Message, DataError> {
        let Value::Object(message) = value else {
            return Err(self.wrong_type(&format!("`{key}`"), "an object", value));
        };
        let text = |name: &str| match message.get(name) {
            Some(Value::String(text)) => Ok(text.as_str()),
            None | Some(Value::Null) => Err(self.missing(&format!("{key}.{name}"))),
            Some(other) => Err(self.wrong_type(&format!("`{key}.{name}`"), "a text", other)),
        };
        let name = text("role")?;
        let role = Role::from_name(name).ok_or_else(|| DataError::UnknownRole {
            path: self.path.into(),
            line: self.number,
            key: key.into(),
            role: name.into(),
        })?;
        Ok(Message { role, content: text("content")?.into() })
    }
}

/// Texts to token ids within the limits, counting cuts.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    limits: Limits,
    cuts: Cuts,
}

impl<'a> Encoder<'a> {
    fn new(tokenizer: &'a Tokenizer, limits: Limits) -> Result<Self, DataError> {
        for (name, value, least) in [
            ("prompt tokens", limits.prompt_tokens, 1),
            ("response tokens", limits.response_tokens, 2),
        ] {
            if value < least {
                return Err(DataError::Limit { name, value, least });
            }
        }
        Ok(Self { tokenizer, limits, cuts: Cuts::default() })
    }

    fn encode(&self, line: &Line, text: &str) -> Result<Vec<u32>, DataError> {
        self.tokenizer.encode(text).map_err(|source| DataError::EncodeLine {
            path: line.path.into(),
            line: line.number,
            source: source.into(),
        })
    }

    fn prompt(&mut self, line: &Line, messages: &[Message]) -> Result<Vec<u32>, DataError> {
        let ids = self.tokenizer.encode_prompt(messages);
        let mut ids = ids.map_err(|source| DataError::EncodeLine {
            path: line.path.into(),
            line: line.number,
            source: source.into(),
        })?;
        if messages.is_empty() || ids.is_empty() {
            return Err(DataError::EmptyPrompt { path: line.path.into(), line: line.number });
        }
        if let Some(surplus @ 1..) = ids.len().checked_sub(self.limits.prompt_tokens) {
            ids.drain(..surplus);
            self.cuts.prompts += 1;
        }
        Ok(ids)
    }

    fn response(&mut self, line: &Line, key: &str, text: &str) -> Result<Vec<u32>, DataError> {
        let eos = self.tokenizer.eos();
        let mut ids = self.encode(line, text)?;
        // Some data sets write EOS at the end of the response: one is enough.
        ids.truncate(ids.iter().rposition(|&id| id != eos).map_or(0, |last| last + 1));
        if text.trim().is_empty() || ids.is_empty() {
            let (path, line) = (line.path.into(), line.number);
            return Err(DataError::EmptyResponse { path, line, which: key.into() });
        }
        ids.push(eos);
        if ids.len() > self.limits.response_tokens {
            ids.truncate(self.limits.response_tokens);
            ids[self.limits.response_tokens - 1] = eos;
            self.cuts.responses += 1;
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::chat::RoleFormat;
    use proptest::prelude::*;
    use serde_json::json;
    use std::fs;
    use tempfile::TempDir;

    const FILE: &str = "data.jsonl";
    const WIDE: Limits = Limits { prompt_tokens: 100, response_tokens: 100 };
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

    fn pairs(text: &str) -> Vec<PreferencePair> {
        with_file(text, |path| read_pairs(path, &tokenizer(), WIDE)).unwrap().0
    }

    fn pair(prompt: &[u32], chosen: &[u32], rejected: &[u32]) -> PreferencePair {
        let [prompt, chosen, rejected] = [prompt, chosen, rejected].map(<[u32]>::to_vec);
        PreferencePair { prompt, chosen, rejected }
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
        let read = |prompt_tokens, response_tokens| {
            let limits = Limits { prompt_tokens, response_tokens };
            let (pairs, cuts) =
                with_file(line, |path| read_pairs(path, &tokenizer(), limits)).unwrap();
            (pairs[0].clone(), cuts.prompts, cuts.responses)
        };
        let full = pair(&[3, 10, 11, 4], &[12, 13, EOS], &[14, 15, 16, EOS]);
        assert_eq!(read(4, 4), (full, 0, 0));
        assert_eq!(read(3, 3), (pair(&[10, 11, 4], &[12, 13, EOS], &[14, 15, EOS]), 1, 1));
        assert_eq!(read(1, 2), (pair(&[4], &[12, EOS], &[14, EOS]), 1, 2));
    }

    #[test]
    fn cuts_are_told_in_one_line() {
        assert_eq!(
            Cuts { prompts: 1, responses: 20 }.to_string(),
            "cut to the token limits: 1 prompt (at the left), 20 responses (at the right)"
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
        let (prompts, cuts) =
            with_file(text, |path| read_prompts(path, &tokenizer(), limits)).unwrap();
        assert_eq!(prompts, [[3, 11, 4], [10, 10, 4], [3, 12, 4]]);
        assert_eq!(cuts, Cuts { prompts: 1, responses: 0 });
    }

    #[test]
    fn conversations_are_read_in_every_layout() {
        let text = [
            r#"{"prompt":"a","response":"b"}"#,
            r#"{"prompt":[{"role":"user","content":"a"}],"response":[{"role":"assistant","content":"b"}]}"#,
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
            r#"{"prompt":"a","chosen":"b","rejected":"c"}"#,
            r#"{"prompt":"x","chosen":"y","messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
        ]
        .join("\n");
        let (conversations, cuts) =
            with_file(text, |path| read_conversations(path, &tokenizer(), WIDE)).unwrap();
        assert_eq!(conversations, vec![(vec![3, 10, 4], vec![11, EOS]); 5]);
        assert_eq!(cuts, Cuts::default());
    }

    #[test]
    fn each_bad_line_is_its_error() {
        macro_rules! fails {
            ($line:expr, $variant:pat, $text:expr) => {
                let (error, text) = failure($line, read_pairs);
                assert!(matches!(error, $variant), "{error:?}");
                assert_eq!(text, $text);
            };
        }
        let after_good = |line: &str| format!("{GOOD}\n\n{line}\n{{later faults do not matter");
        fails!(
            after_good(r#"{"prompt": "a", "chosen" "b"}"#),
            DataError::Json { line: 3, column: 26, .. },
            "data.jsonl:3: not JSON (expected `:`, column 26); expected one JSON object"
        );
        fails!(
            after_good("{"),
            DataError::Json { line: 3, .. },
            "data.jsonl:3: not JSON (EOF while parsing an object, column 1); expected one JSON object"
        );
        fails!(
            [GOOD.as_bytes(), b"\n{\"a\": \"\xFF\"}"].concat(),
            DataError::Utf8 { line: 2, byte: 8, .. },
            "data.jsonl:2: not UTF-8 (byte 8 of the line); save the file as UTF-8"
        );
        fails!(
            after_good("[1]"),
            DataError::WrongType { line: 3, .. },
            "data.jsonl:3: the line is a list; expected an object"
        );
        fails!(
            after_good(r#"{"prompt": "a", "chosen": 3, "rejected": "c"}"#),
            DataError::WrongType { line: 3, .. },
            "data.jsonl:3: `chosen` is a number; expected a text or a list of messages"
        );
        fails!(
            after_good(r#"{"prompt": "a", "chosen": ["b"], "rejected": "c"}"#),
            DataError::WrongType { line: 3, .. },
            "data.jsonl:3: `chosen[0]` is a text; expected an object"
        );
        fails!(
            after_good(r#"{"chosen": [{"role": "user", "content": true}], "rejected": []}"#),
            DataError::WrongType { line: 3, .. },
            "data.jsonl:3: `chosen[0].content` is a boolean; expected a text"
        );
        fails!(
            after_good(r#"{"prompt": "a", "chosen": "b", "rejected": null}"#),
            DataError::MissingKey { line: 3, .. },
            format!("data.jsonl:3: the key `rejected` is missing; a line is {PAIR}")
        );
        fails!(
            r#"{"chosen": "b", "rejected": "c"}"#,
            DataError::MissingKey { line: 1, .. },
            format!("data.jsonl:1: the key `prompt` is missing; a line is {PAIR}")
        );
        fails!(
            r#"{"prompt": [{"role": "user"}], "chosen": "b", "rejected": "c"}"#,
            DataError::MissingKey { line: 1, .. },
            format!("data.jsonl:1: the key `prompt[0].content` is missing; a line is {PAIR}")
        );
        fails!(
            r#"{"prompt": [{"role": "human", "content": "a"}], "chosen": "b", "rejected": "c"}"#,
            DataError::UnknownRole { line: 1, .. },
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
                DataError::NoResponse { line: 1, .. },
                format!(
                    "data.jsonl:1: `{which}` must end with a message of the assistant: the response"
                )
            );
        }
        for empty in ["", " \\n\\u00a0", "<eos>"] {
            fails!(
                after_good(&format!(r#"{{"prompt":"a","chosen":"b","rejected":"{empty}"}}"#)),
                DataError::EmptyResponse { line: 3, .. },
                "data.jsonl:3: the response in `rejected` is empty; remove the line"
            );
        }
        let only = r#"[{"role": "assistant", "content": "b"}]"#;
        fails!(
            format!(r#"{{"chosen": {only}, "rejected": {only}}}"#),
            DataError::EmptyPrompt { line: 1, .. },
            "data.jsonl:1: the prompt is empty; a model needs at least one token to start from"
        );
        let list = |user, answer| {
            let user = json!({"role": "user", "content": user});
            json!([user, {"role": "assistant", "content": answer}])
        };
        fails!(
            json!({"chosen": list("a", "b"), "rejected": list("c", "d")}).to_string(),
            DataError::PromptMismatch { line: 1, left: "chosen", right: "rejected", .. },
            "data.jsonl:1: `chosen` and `rejected` have different prompts; both must answer the same \
             one"
        );
        fails!(
            json!({"prompt": "a", "chosen": list("a", "b"), "rejected": list("c", "d")})
                .to_string(),
            DataError::PromptMismatch { line: 1, left: "prompt", right: "rejected", .. },
            "data.jsonl:1: `prompt` and `rejected` have different prompts; both must answer the same \
             one"
        );
        fails!(
            after_good(r#"{"prompt":"a","chosen":"b","rejected":"unheard of"}"#),
            DataError::EncodeLine { line: 3, .. },
            "data.jsonl:3: the tokenizer cannot encode the text (WordLevel error: Missing [UNK] token \
             from the vocabulary)"
        );
        fails!(
            "\n \n",
            DataError::NoPairs { .. },
            "data.jsonl: no preference pairs; expected one JSON object a line"
        );
    }

    #[test]
    fn bad_prompts_and_conversations_are_errors_too() {
        let (error, text) = failure("{}", read_prompts);
        assert!(matches!(error, DataError::MissingKey { line: 1, .. }));
        assert_eq!(text, format!("data.jsonl:1: the key `prompt` is missing; a line is {PROMPT}"));
        let (error, text) = failure("", read_prompts);
        assert!(matches!(error, DataError::NoPrompts { .. }));
        assert_eq!(text, "data.jsonl: no prompts; expected one JSON object a line");
        for (line, key) in [("{}", "messages"), (r#"{"prompt": "a"}"#, "response")] {
            let (error, text) = failure(line, read_conversations);
            assert!(matches!(error, DataError::MissingKey { line: 1, .. }));
            let expected = format!("the key `{key}` is missing; a line is {CONVERSATION}");
            assert_eq!(text, format!("data.jsonl:1: {expected}"));
        }
        let (error, text) = failure(r#"{"messages": "a"}"#, read_conversations);
        assert!(matches!(error, DataError::WrongType { line: 1, .. }));
        assert_eq!(text, "data.jsonl:1: `messages` is a text; expected a list of messages");
        let (error, text) = failure("", read_conversations);
        assert!(matches!(error, DataError::NoConversations { .. }));
        assert_eq!(text, "data.jsonl: no conversations; expected one JSON object a line");
    }

    #[test]
    fn a_missing_file_and_a_folder_are_errors() {
        for path in ["no/such/file.jsonl", env!("CARGO_MANIFEST_DIR")] {
            let error = read_pairs(Path::new(path), &tokenizer(), WIDE).unwrap_err();
            assert!(matches!(error, DataError::Read { .. }));
            assert!(error.to_string().starts_with(&format!("{path}: cannot be read (")));
        }
    }

    #[test]
    fn limits_too_small_are_an_error() {
        for (prompt_tokens, response_tokens, text) in [
            (0, 2, "the limit of prompt tokens is 0; it must be at least 1"),
            (1, 1, "the limit of response tokens is 1; it must be at least 2"),
        ] {
            let limits = Limits { prompt_tokens, response_tokens };
            let error = read_pairs(Path::new("unread"), &tokenizer(), limits).unwrap_err();
            assert!(matches!(error, DataError::Limit { .. }));
            assert_eq!(error.to_string(), text);
        }
    }

    /// JSON that looks like data, right or wrong in any place.
    fn any_line() -> impl Strategy<Value = Value> {
        let text = prop::sample::select(vec!["", "a", "b c", "user", "assistant", "system", "é"]);
        let key = prop::sample::select(vec![
            "prompt", "chosen", "rejected", "messages", "role", "content",
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
        let limits = Limits { prompt_tokens: 2, response_tokens: 2 };
        with_file(bytes, |path| {
            let tokenizer = tokenizer();
            if let Ok((pairs, _)) = read_pairs(path, &tokenizer, limits) {
                for PreferencePair { prompt, chosen, rejected } in pairs {
                    assert!((1..=2).contains(&prompt.len()));
                    assert_eq!((chosen.len(), chosen[1]), (2, EOS));
                    assert_eq!((rejected.len(), rejected[1]), (2, EOS));
                }
            }
            let _ = read_prompts(path, &tokenizer, limits);
            let _ = read_conversations(path, &tokenizer, limits);
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
}
