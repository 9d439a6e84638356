//! Spans of responses by their characters: read from a file or from a critique, and as tokens.
//!
//! A row of a file holds a `prompt` (a text or messages), the text of a `response` without the token that ends it, and
//! `spans`: a list of `{"start", "end", "label"}`. Characters count from 0, the end excluded; the label is 1 for a good
//! span, -1 for a bad one, 0 for neither. Spans of a response do not overlap.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::error::DataError;
use super::fields::read_rows;
pub use super::layouts::TextSpan;
use super::pairs::{Counts, Encoder, Limits};
use super::tokenizer::Tokenizer;

const LAYOUT: &str =
    "an object with `prompt`, `response` and `spans`, a list of {start, end, label}";

/// The spans of responses, by the tokens of the prompt and the text of the response.
#[derive(Clone, Debug, Default)]
pub struct SpanFile {
    rows: HashMap<(Vec<u32>, String), Vec<TextSpan>>,
}

impl SpanFile {
    /// Reads a file whose prompts are all `known`, given their tokens, of which the last `prompt_tokens` count.
    ///
    /// # Errors
    ///
    /// [`DataError`], which names the row, for what is no such file: a prompt that is not known, a span outside of the
    /// response, spans that overlap, a label other than -1, 0 and 1, a response that was there before.
    pub fn read(
        path: &Path,
        tokenizer: &Tokenizer,
        prompt_tokens: usize,
        known: impl Fn(&[u32]) -> bool,
    ) -> Result<Self, DataError> {
        let total_tokens = prompt_tokens.saturating_add(2);
        let limits = Limits { prompt_tokens, response_tokens: 2, total_tokens };
        let encoder = Encoder::new(tokenizer, limits)?;
        let rows = read_rows(path, LAYOUT, |row| {
            let messages = row.prompt()?.ok_or_else(|| row.missing("prompt"))?;
            let prompt = encoder.prompt(row, &messages)?;
            let prompt = encoder.cut_prompt(prompt, &mut Counts::default());
            if !known(&prompt) {
                return Err(DataError::unknown_prompt(path, row.place));
            }
            let response = row.text("response")?.to_owned();
            let text = ("response", response.chars().count());
            let spans = row.spans("spans", |_| ["start", "end"], text)?;
            Ok((row.place, (prompt, response), spans))
        })?;
        let (mut file, mut places) = (Self::default(), HashMap::new());
        for (place, key, spans) in rows {
            if let Some(first) = places.insert(key.clone(), place) {
                return Err(DataError::response_again(path, place, first));
            }
            file.rows.insert(key, spans);
        }
        Ok(file)
    }

    /// The spans of a response; none where the file does not have it.
    pub fn spans(&self, prompt: &[u32], response: &str) -> &[TextSpan] {
        let key = (prompt.to_vec(), response.to_owned());
        self.rows.get(&key).map_or(&[], Vec::as_slice)
    }
}

/// The tokens of a span of characters, given the text that each token adds: those whose first character, white space
/// aside, is in the span. Spans that do not overlap share no token.
///
/// # Examples
///
/// ```
/// use segment_rlhf::data::spans::tokens_of;
/// let pieces = ["dear", " gina", " ,", " music"].map(str::to_owned);
/// assert_eq!(tokens_of(&pieces, &(4..11)), 1..3); // " gina ,"
/// assert_eq!(tokens_of(&pieces, &(6..9)), 0..0); // "ina" begins no token
/// ```
pub fn tokens_of(pieces: &[String], characters: &Range<usize>) -> Range<usize> {
    let mut start = 0;
    let firsts = pieces.iter().map(|piece| {
        let blank = piece.chars().take_while(|c| c.is_whitespace()).count();
        let length = piece.chars().count();
        let first = start + if blank < length { blank } else { 0 };
        start += length;
        first
    });
    let inside = firsts.enumerate().filter(|(_, first)| characters.contains(first));
    let inside: Vec<usize> = inside.map(|(token, _)| token).collect();
    inside.first().map_or(0..0, |&first| first..first + inside.len())
}

/// How a critique is written: each item is a mark, a quote of the response and an end.
#[derive(Clone, Copy, Debug)]
pub struct Marks<'a> {
    /// Before a good quote.
    pub good: &'a str,
    /// Before a bad quote.
    pub bad: &'a str,
    /// Behind each quote.
    pub end: &'a str,
}

/// The spans of `response` that a critique quotes, in their order in the response; white space around quotes does not
/// count. `None` where a part of the critique is no item, or a quote is not whole words behind the quote before it.
///
/// # Examples
///
/// ```
/// use segment_rlhf::data::spans::{Marks, TextSpan, read_critique};
/// let marks = Marks { good: "+\"", bad: "-\"", end: "\"" };
/// let read = |critique| read_critique(critique, "a fine day , a bad night", marks);
/// let good = TextSpan { characters: 2..6, label: 1 };
/// let bad = TextSpan { characters: 15..24, label: -1 };
/// assert_eq!(read("+\"fine\" -\"bad night\""), Some(vec![good, bad]));
/// assert_eq!(read("+\"fine\" and no more"), None);
/// ```
pub fn read_critique(critique: &str, response: &str, marks: Marks<'_>) -> Option<Vec<TextSpan>> {
    let (mut spans, mut rest, mut from) = (Vec::new(), critique.trim(), 0);
    while !rest.is_empty() {
        let good = rest.strip_prefix(marks.good).map(|rest| (1, rest));
        let (label, item) = good.or_else(|| rest.strip_prefix(marks.bad).map(|rest| (-1, rest)))?;
        let (quote, behind) = item.split_once(marks.end)?;
        let quoted = find_words(response, quote.trim(), from)?;
        let count = |end: usize| response[..end].chars().count();
        spans.push(TextSpan { characters: count(quoted.start)..count(quoted.end), label });
        (rest, from) = (behind.trim_start(), quoted.end);
    }
    Some(spans)
}

/// The bytes of the first place of `words` in `text[from..]` that cuts no word.
fn find_words(text: &str, words: &str, from: usize) -> Option<Range<usize>> {
    let places =
        text[from..].match_indices(words).map(|(at, _)| from + at..from + at + words.len());
    let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let whole = |place: &Range<usize>| {
        let before =
            letter(text[..place.start].chars().next_back()) && letter(words.chars().next());
        let after = letter(text[place.end..].chars().next()) && letter(words.chars().next_back());
        !before && !after
    };
    places.into_iter().find(whole).filter(|_| !words.is_empty())
}
