//! Preference pairs, prompts and conversations: the rows of a data file as token ids.
//!
//! A row of preference pairs ([`rows`]: JSON Lines, a JSON array or Parquet) holds two responses to one
//! prompt, in one of these layouts:
//!
//! ```text
//! {"chosen": MESSAGES, "rejected": MESSAGES}  the prompt is all before the last message
//! {"prompt": MESSAGES, "chosen": MESSAGES, "rejected": MESSAGES}  all, or the last alone
//! {"prompt": TEXT, "chosen": MESSAGES, "rejected": MESSAGES}  the lists' own prompt counts, if any
//! {"prompt": TEXT, "chosen": TEXT, "rejected": TEXT}  the prompt is a message of the user
//! {"chosen": TEXT, "rejected": TEXT}  the prompt is the start that both share, a message of the user
//! MESSAGES: [{"role": "system" | "user" | "assistant", "content": TEXT}, ...]
//! ```
//!
//! The first is that of preference_700K, the third that of UltraFeedback-binarized; all are TRL's. A
//! shared start ends before a space that stands before the first difference, as TRL has it.
//!
//! Scores may stand beside them: `chosen_score` and `rejected_score`, `score_chosen` and
//! `score_rejected`, or their difference as `margin`. Other keys are ignored, a null counts as a missing
//! key.
//!
//! Where labels of segments are read, each row has them: `segments`, a list of `{"start", "end", "label"}`, of characters
//! from 0, the end excluded. Label 1 says that the chosen response is better there, -1 that the rejected one is, 0 that
//! they are as good. The range is of both responses; `rejected_start` and `rejected_end` give the rejected one another.
//! A token has the label of the segment that holds its first character, white space aside, and 0 in none.
//!
//! Cutting is as published: prompts lose tokens at the left, responses at the right, and the last
//! token of a cut response is overwritten by EOS. A response that fits gets EOS appended, unless the
//! chat template ends it with a stop token, and counts it.
//!
//! Rows that teach nothing are skipped and counted ([`Counts`]); any other fault is an error.

use std::collections::HashSet;
use std::fmt;
use std::ops::{AddAssign, Range};
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::chat::{Message, Role};
use super::columns::DataFile;
use super::error::DataError;
use super::fields::Fields;
use super::files::files;
use super::layouts::{Refusal, Sides, Skip, TextSpan};
use super::rows::{Row, rows};
use super::tokenizer::Tokenizer;
use crate::rng::Fnv1a;

const PAIR: &str =
    "{\"chosen\", \"rejected\"} of message lists, or {\"prompt\", \"chosen\", \"rejected\"}";
const PROMPT: &str = "{\"prompt\"}, or a preference pair";
const CONVERSATION: &str = "{\"messages\"}, {\"prompt\", \"response\"}, or a preference pair";

/// Rows that are tokenised at the same time.
const BLOCK: usize = 256;

/// A prompt and two responses to it, as token ids.
#[derive(Clone, Debug, PartialEq)]
pub struct PreferencePair {
    /// The prompt, never empty.
    pub prompt: Vec<u32>,
    /// The better response; the last token is EOS.
    pub chosen: Vec<u32>,
    /// The worse response; the last token is EOS.
    pub rejected: Vec<u32>,
    /// The better response's score less the worse one's, if the row has scores.
    pub score_gap: Option<f32>,
    /// The label of the segment of each token of both responses, if labels were read.
    pub labels: Option<[Vec<i8>; 2]>,
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
    /// The most tokens of a prompt and its response together; at least 2 more than a prompt's.
    pub total_tokens: usize,
}

/// What was cut to fit the [`Limits`], and what was skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counts {
    /// Prompts cut at the left.
    pub cut_prompts: usize,
    /// Responses cut at the right.
    pub cut_responses: usize,
    /// Rows skipped because a response holds no text.
    pub empty: usize,
    /// Pairs skipped because both responses are the same tokens, after cutting.
    pub equal: usize,
    /// Pairs skipped because the lists part before their last messages: two conversations, not two
    /// responses to one prompt.
    pub parted: usize,
}

impl Counts {
    /// What was skipped, in words; nothing where nothing was.
    fn skipped(&self) -> Option<String> {
        let whys = [
            (self.empty, "with an empty response"),
            (self.equal, "of equal responses"),
            (self.parted, "without a common prompt"),
        ];
        let words = whys.iter().filter(|(n, _)| *n > 0).map(|(n, why)| format!("{n} {why}"));
        let words = words.collect::<Vec<_>>().join(", ");
        (!words.is_empty()).then(|| format!("skipped rows: {words}"))
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.cut_prompts += other.cut_prompts;
        self.cut_responses += other.cut_responses;
        self.empty += other.empty;
        self.equal += other.equal;
        self.parted += other.parted;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: usize, noun| format!("{n} {noun}{}", if n == 1 { "" } else { "s" });
        let prompts = count(self.cut_prompts, "prompt");
        let responses = count(self.cut_responses, "response");
        write!(f, "cut to the token limits: {prompts} (at the left), {responses} (at the right)")?;
        self.skipped().map_or(Ok(()), |skipped| write!(f, "; {skipped}"))
    }
}

impl From<Skip> for Counts {
    fn from(skip: Skip) -> Self {
        let mut counts = Self::default();
        match skip {
            Skip::Empty => counts.empty = 1,
            Skip::Equal => counts.equal = 1,
            Skip::Parted => counts.parted = 1,
        }
        counts
    }
}

/// A hash of a prompt's tokens. The hash of a whole prompt, before cutting, decides its side of the held-out split.
pub fn prompt_hash(prompt: &[u32]) -> u64 {
    let mut hash = Fnv1a::default();
    prompt.iter().for_each(|token| hash.write(&token.to_le_bytes()));
    hash.finish()
}

/// Calls `visit` with each preference pair in a file, in order, and the [hash](prompt_hash) of its whole prompt,
/// before cutting; returns what was cut and skipped. Where `labelled`, labels of segments are read with them.
///
/// # Errors
///
/// The [`DataError`] of the first bad row, [`DataError::Refused`], or what `visit` says; the pairs before
/// a bad row have been visited then.
pub fn read_pairs<'a>(
    file: impl Into<DataFile<'a>>,
    tokenizer: &Tokenizer,
    limits: Limits,
    labelled: bool,
    mut visit: impl FnMut(PreferencePair, u64) -> Result<(), DataError>,
) -> Result<Counts, DataError> {
    let file = file.into();
    let encoder = Encoder::new(tokenizer, limits)?;
    let read = |line: &Fields, counts: &mut Counts| {
        let score_gap = line.score_gap()?;
        let Sides { prompt: messages, chosen, rejected } = line.pair()?;
        let texts = [chosen, rejected];
        let segments = labelled.then(|| line.segments(&texts)).transpose()?;
        let (prompt, chosen) = encoder.conversation(line, &messages, &texts[0])?;
        let (_, rejected) = encoder.conversation(line, &messages, &texts[1])?;
        let hash = prompt_hash(&prompt);
        let prompt = encoder.cut_prompt(prompt, counts);
        let [chosen, rejected] =
            [chosen, rejected].map(|ids| encoder.cut_response(prompt.len(), ids, counts));
        if chosen == rejected {
            return Err(Refusal::Skip(Skip::Equal));
        }
        let labels = |(segments, text): (Vec<TextSpan>, &str), response: &[u32]| {
            let spans = encoder.spans(line, &messages, text)?;
            Ok::<_, DataError>(token_labels(&segments, &spans, text, response.len()))
        };
        let labels = match segments {
            None => None,
            Some([first, second]) => Some([
                labels((first, &texts[0]), &chosen)?,
                labels((second, &texts[1]), &rejected)?,
            ]),
        };
        Ok((PreferencePair { prompt, chosen, rejected, score_gap, labels }, hash))
    };
    let (mut total, mut any) = (Counts::default(), false);
    for_each_row(file, PAIR, read, |pair, counts| {
        total += counts;
        any |= pair.is_some();
        pair.map_or(Ok(()), |(pair, hash)| visit(pair, hash))
    })?;
    match any {
        true => Ok(total),
        false => Err(DataError::no_pairs(file.path, in_brackets(total))),
    }
}

/// Calls `visit` with each prompt in a file, once and in the file's order, and the [hash](prompt_hash) of it whole,
/// before cutting; returns what was cut and skipped.
///
/// A row holds a `prompt` (a text or messages), or is a preference pair. A prompt is known again by the
/// hash of its tokens, cut, so that they need not stay in memory.
///
/// # Errors
///
/// The [`DataError`] of the first bad row, [`DataError::Refused`], or what `visit` says.
pub fn read_prompts<'a>(
    file: impl Into<DataFile<'a>>,
    tokenizer: &Tokenizer,
    limits: Limits,
    mut visit: impl FnMut(Vec<u32>, u64) -> Result<(), DataError>,
) -> Result<Counts, DataError> {
    let file = file.into();
    let encoder = Encoder::new(tokenizer, limits)?;
    let read = |line: &Fields, counts: &mut Counts| {
        let prompt = match line.prompt()? {
            // The lists' own prompt counts, as in a pair.
            Some(_) if line.is_text("prompt") && line.turns("chosen") > 1 => line.pair()?.prompt,
            Some(prompt) => prompt,
            None if line.get("chosen").is_some() => line.pair()?.prompt,
            None => return Err(line.missing("prompt").into()),
        };
        let prompt = encoder.prompt(line, &prompt)?;
        let hash = prompt_hash(&prompt);
        Ok((encoder.cut_prompt(prompt, counts), hash))
    };
    let (mut seen, mut total) = (HashSet::new(), Counts::default());
    for_each_row(file, PROMPT, read, |prompt, counts| match prompt {
        Some((prompt, _)) if !seen.insert(prompt_hash(&prompt)) => Ok(()),
        other => {
            total += counts;
            other.map_or(Ok(()), |(prompt, hash)| visit(prompt, hash))
        }
    })?;
    match seen.is_empty() {
        true => Err(DataError::no_prompts(file.path, in_brackets(total))),
        false => Ok(total),
    }
}

/// Calls `visit` with each prompt and response in a file, for supervised training, and the [hash](prompt_hash) of
/// its whole prompt, before cutting; returns what was cut and skipped.
///
/// A row holds `messages` that end with the assistant's, or a `prompt` and a `response` (or
/// `completion`), or is a preference pair, of which the chosen side is taken. The first of these that
/// is there counts.
///
/// # Errors
///
/// The [`DataError`] of the first bad row, [`DataError::Refused`], or what `visit` says.
pub fn read_conversations<'a>(
    file: impl Into<DataFile<'a>>,
    tokenizer: &Tokenizer,
    limits: Limits,
    mut visit: impl FnMut(Conversation, u64) -> Result<(), DataError>,
) -> Result<Counts, DataError> {
    let file = file.into();
    let encoder = Encoder::new(tokenizer, limits)?;
    let read = |line: &Fields, counts: &mut Counts| encoder.row_conversation(line, counts);
    let (mut total, mut any) = (Counts::default(), false);
    for_each_row(file, CONVERSATION, read, |conversation, counts| {
        total += counts;
        any |= conversation.is_some();
        conversation.map_or(Ok(()), |(conversation, hash)| visit(conversation, hash))
    })?;
    match any {
        true => Ok(total),
        false => Err(DataError::no_conversations(file.path, in_brackets(total))),
    }
}

/// The first `most` conversations in a file.
///
/// # Errors
///
/// Those of [`read_conversations`], of the rows that are read.
pub fn first_conversations(
    file: DataFile,
    tokenizer: &Tokenizer,
    limits: Limits,
    most: usize,
) -> Result<Vec<Conversation>, DataError> {
    let encoder = Encoder::new(tokenizer, limits)?;
    let mut found = Vec::new();
    for path in files(file.path)? {
        let own = DataFile { path: &path, ..file };
        for row in rows(&path)? {
            if found.len() == most {
                return Ok(found);
            }
            let line = Fields::new(own, row?, CONVERSATION);
            match encoder.row_conversation(&line, &mut Counts::default()) {
                Ok((conversation, _)) => found.push(conversation),
                Err(Refusal::Skip(_)) => {}
                Err(Refusal::Error(error)) => return Err(error),
            }
        }
    }
    match found.is_empty() {
        true => Err(DataError::no_conversations(file.path, String::new())),
        false => Ok(found),
    }
}

fn in_brackets(counts: Counts) -> String {
    counts.skipped().map_or_else(String::new, |skipped| format!(" ({skipped})"))
}

/// Reads each row of the file, a block of them at the same time, and calls `visit` in their order with
/// what a row gives, if it is not skipped, and what it counts; up to the first error.
fn for_each_row<T: Send>(
    file: DataFile,
    layouts: &'static str,
    read: impl Fn(&Fields, &mut Counts) -> Result<T, Refusal> + Sync,
    mut visit: impl FnMut(Option<T>, Counts) -> Result<(), DataError>,
) -> Result<(), DataError> {
    let read = |(path, row): (&Path, Result<Row, DataError>)| {
        let mut counts = Counts::default();
        let file = DataFile { path, columns: file.columns };
        match read(&Fields::new(file, row?, layouts), &mut counts) {
            Ok(item) => Ok((Some(item), counts)),
            Err(Refusal::Skip(skip)) => Ok((None, skip.into())),
            Err(Refusal::Error(error)) => Err(error),
        }
    };
    for path in files(file.path)? {
        let mut rows = rows(&path)?.map(|row| (&*path, row));
        loop {
            let block: Vec<_> = rows.by_ref().take(BLOCK).collect();
            if block.is_empty() {
                break;
            }
            let items: Vec<Result<_, DataError>> = block.into_par_iter().map(read).collect();
            for item in items {
                let (item, counts) = item?;
                visit(item, counts)?;
            }
        }
    }
    Ok(())
}

/// The label of each of a response's tokens, given the characters that each covers: that of the segment that holds its
/// first one, white space aside, and 0 in none.
fn token_labels(
    segments: &[TextSpan],
    spans: &[Range<usize>],
    text: &str,
    tokens: usize,
) -> Vec<i8> {
    let is_space: Vec<bool> = text.chars().map(char::is_whitespace).collect();
    let label = |span: &Range<usize>| {
        let first = span.clone().find(|&at| !is_space[at]).or(span.clone().next());
        let holds = |segment: &&TextSpan| first.is_some_and(|at| segment.characters.contains(&at));
        segments.iter().find(holds).map_or(0, |segment| segment.label)
    };
    let mut labels: Vec<i8> = spans.iter().map(label).collect();
    labels.resize(tokens, 0); // EOS has no text
    labels
}

/// Messages to token ids within the limits, counting cuts.
pub(super) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    limits: Limits,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer, limits: Limits) -> Result<Self, DataError> {
        for (name, value, least) in [
            ("prompt tokens", limits.prompt_tokens, 1),
            ("response tokens", limits.response_tokens, 2),
            ("prompt and response tokens together", limits.total_tokens, limits.prompt_tokens + 2),
        ] {
            if value < least {
                return Err(DataError::limit(name, value, least));
            }
        }
        Ok(Self { tokenizer, limits })
    }

    pub(super) fn prompt(
        &self,
        line: &Fields,
        messages: &[Message],
    ) -> Result<Vec<u32>, DataError> {
        let ids = self.tokenizer.encode_prompt(messages).map_err(|error| at(line, error))?;
        self.not_empty(line, messages, ids)
    }

    /// The conversation that a row holds, cut to the limits, and the hash of its whole prompt.
    fn row_conversation(
        &self,
        line: &Fields,
        counts: &mut Counts,
    ) -> Result<(Conversation, u64), Refusal> {
        let keys = ["messages", "response", "completion", "chosen"];
        let (prompt, response) = match keys.into_iter().find(|key| line.get(key).is_some()) {
            // Data sets put the first turn beside the messages as `prompt`: not of this layout.
            Some(key @ "messages") => line.side(key, None)?,
            Some("chosen") if line.prompt()?.is_none() && line.is_text("chosen") => {
                let Sides { prompt, chosen, .. } = line.pair()?;
                (prompt, chosen)
            }
            Some(key) => line.side(key, line.prompt()?.as_deref())?,
            None => {
                let prompt_only = line.get("prompt").is_some();
                return Err(line.missing(if prompt_only { "response" } else { "messages" }).into());
            }
        };
        let (prompt, response) = self.conversation(line, &prompt, &response)?;
        let hash = prompt_hash(&prompt);
        let prompt = self.cut_prompt(prompt, counts);
        let response = self.cut_response(prompt.len(), response, counts);
        Ok(((prompt, response), hash))
    }

    /// The prompt and the response.
    fn conversation(
        &self,
        line: &Fields,
        messages: &[Message],
        response: &str,
    ) -> Result<Conversation, Refusal> {
        let message = Message { role: Role::Assistant, content: response.into() };
        let encoded = self.tokenizer.encode_conversation(messages, &message);
        let (prompt, ids) = encoded.map_err(|error| at(line, error))?;
        let prompt = self.not_empty(line, messages, prompt)?;
        let stops = self.tokenizer.stop_tokens();
        match response.trim().is_empty() || ids.iter().all(|id| stops.contains(id)) {
            true => Err(Refusal::Skip(Skip::Empty)),
            false => Ok((prompt, ids)),
        }
    }

    /// The characters of the response that each of its tokens covers.
    fn spans(
        &self,
        line: &Fields,
        messages: &[Message],
        response: &str,
    ) -> Result<Vec<Range<usize>>, DataError> {
        let message = Message { role: Role::Assistant, content: response.into() };
        let spans = self.tokenizer.response_spans(messages, &message);
        spans.map_err(|error| at(line, error))
    }

    fn not_empty(
        &self,
        line: &Fields,
        messages: &[Message],
        prompt: Vec<u32>,
    ) -> Result<Vec<u32>, DataError> {
        match messages.is_empty() || prompt.is_empty() {
            true => Err(DataError::empty_prompt(line.path(), line.place)),
            false => Ok(prompt),
        }
    }

    pub(super) fn cut_prompt(&self, mut ids: Vec<u32>, counts: &mut Counts) -> Vec<u32> {
        if let Some(surplus @ 1..) = ids.len().checked_sub(self.limits.prompt_tokens) {
            ids.drain(..surplus);
            counts.cut_prompts += 1;
        }
        ids
    }

    /// The response to a prompt that has been cut to `prompt` tokens.
    fn cut_response(&self, prompt: usize, mut ids: Vec<u32>, counts: &mut Counts) -> Vec<u32> {
        let most = self.limits.response_tokens.min(self.limits.total_tokens - prompt);
        if ids.len() > most {
            ids.truncate(most);
            ids[most - 1] = self.tokenizer.eos();
            counts.cut_responses += 1;
        }
        ids
    }
}

/// The tokenizer's error, with the row that it met.
fn at(line: &Fields, error: DataError) -> DataError {
    DataError::encode_line(line.path(), line.place, error)
}
