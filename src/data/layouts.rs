//! The layouts that a row of preference pairs, prompts or conversations may have.

use std::ops::Range;

use serde_json::Value;

use super::chat::{Message, Role};
use super::error::DataError;
use super::fields::Fields;

/// The keys of the chosen and the rejected response's score.
const SCORES: [[&str; 2]; 2] =
    [["chosen_score", "rejected_score"], ["score_chosen", "score_rejected"]];
/// The largest score or margin: larger ones would leave f32.
const MOST_SCORE: f64 = 1e30;

/// Why a row is skipped.
pub(super) enum Skip {
    Empty,
    Equal,
    Parted,
}

/// Why a row gives nothing.
pub(super) enum Refusal {
    Skip(Skip),
    Error(DataError),
}

impl From<DataError> for Refusal {
    fn from(error: DataError) -> Self {
        Self::Error(error)
    }
}

/// A prompt with two responses, as texts.
pub(super) struct Sides {
    pub(super) prompt: Vec<Message>,
    pub(super) chosen: String,
    pub(super) rejected: String,
}

/// A span of a text, and its label: 1 for a good one, -1 for a bad one, 0 for neither.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextSpan {
    /// Its characters.
    pub characters: Range<usize>,
    /// What it is marked as.
    pub label: i8,
}

/// A row of preference pairs, prompts or conversations.
impl Fields<'_> {
    /// The labelled segments of the chosen and the rejected text: of both the same characters, unless a segment has others
    /// of the rejected one.
    pub(super) fn segments(&self, texts: &[String; 2]) -> Result<[Vec<TextSpan>; 2], DataError> {
        self.list("segments")?;
        let own = |_: &Value| ["start", "end"];
        let of_rejected = |segment: &Value| {
            let names = ["rejected_start", "rejected_end"];
            let has = |name: &str| segment.get(name).is_some_and(|value| !value.is_null());
            if names.iter().any(|name| has(name)) { names } else { own(segment) }
        };
        let length = |side: usize| texts[side].chars().count();
        Ok([
            self.spans("segments", own, ("chosen response", length(0)))?,
            self.spans("segments", of_rejected, ("rejected response", length(1)))?,
        ])
    }

    /// The labelled spans in the list `key`, whose ends have the names that `ends` gives; of a text, with its name, of so many
    /// characters.
    pub(super) fn spans(
        &self,
        key: &str,
        ends: impl Fn(&Value) -> [&'static str; 2],
        (text, length): (&str, usize),
    ) -> Result<Vec<TextSpan>, DataError> {
        let (path, line) = (self.path(), self.place);
        let value = self.require(key)?;
        let list = value.as_array().ok_or_else(|| self.wrong_type(key, "a list", value))?;
        let mut spans: Vec<TextSpan> = Vec::with_capacity(list.len());
        for (i, value) in list.iter().enumerate() {
            let number = |name: &str| {
                let key = format!("{key}[{i}].{name}");
                let found = value.get(name).filter(|value| !value.is_null());
                let found = found.ok_or_else(|| self.missing(&key))?;
                found.as_i64().ok_or_else(|| self.wrong_type(&key, "a whole number", found))
            };
            let [start, end] = ends(value);
            let (start, end, label) = (number(start)?, number(end)?, number("label")?);
            let place = |at: i64| usize::try_from(at).ok();
            let characters = match (place(start), place(end)) {
                (Some(first), Some(last)) if first < last && last <= length => first..last,
                _ => {
                    let span = format!("{key}[{i}] is {start} to {end}");
                    return Err(DataError::span_outside(path, line, span, text, length));
                }
            };
            let label = match label {
                -1..=1 => label as i8,
                other => return Err(DataError::span_label(path, line, key, i, other)),
            };
            let overlaps = |other: &TextSpan| {
                other.characters.start < characters.end && characters.start < other.characters.end
            };
            if let Some(j) = spans.iter().position(overlaps) {
                return Err(DataError::span_overlap(path, line, key, j, i));
            }
            spans.push(TextSpan { characters, label });
        }
        Ok(spans)
    }

    /// Whether `key` holds a text.
    pub(super) fn is_text(&self, key: &str) -> bool {
        self.get(key).is_some_and(Value::is_string)
    }

    /// The length of the list that `key` holds, else 0.
    pub(super) fn turns(&self, key: &str) -> usize {
        self.get(key).and_then(Value::as_array).map_or(0, Vec::len)
    }

    /// What the chosen response scores more than the rejected one.
    pub(super) fn score_gap(&self) -> Result<Option<f32>, DataError> {
        let number = |key: &str| match self.get(key) {
            None => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.abs() <= MOST_SCORE) {
                None => Err(self.wrong_type(key, "a number within ±1e30", value)),
                number => Ok(number),
            },
        };
        if let Some(margin) = number("margin")? {
            return Ok(Some(margin as f32));
        }
        for [chosen, rejected] in SCORES {
            match (number(chosen)?, number(rejected)?) {
                (None, None) => {}
                (Some(better), Some(worse)) => return Ok(Some((better - worse) as f32)),
                (None, Some(_)) => return Err(self.missing(chosen)),
                (Some(_), None) => return Err(self.missing(rejected)),
            }
        }
        Ok(None)
    }

    /// The prompt and the chosen and rejected responses of a preference pair.
    pub(super) fn pair(&self) -> Result<Sides, Refusal> {
        let explicit = self.prompt()?;
        if let (None, Some(Value::String(chosen)), Some(Value::String(rejected))) =
            (&explicit, self.get("chosen"), self.get("rejected"))
        {
            return self.shared_start(chosen, rejected);
        }
        let (prompt, chosen) = self.side("chosen", explicit.as_deref())?;
        let (other, rejected) = self.side("rejected", explicit.as_deref())?;
        match prompt == other {
            true => Ok(Sides { prompt, chosen, rejected }),
            false => Err(Refusal::Skip(Skip::Parted)),
        }
    }

    /// The pair of two texts that start with their prompt.
    fn shared_start(&self, chosen: &str, rejected: &str) -> Result<Sides, Refusal> {
        if chosen == rejected {
            return Err(Refusal::Skip(Skip::Equal));
        }
        let same = chosen.chars().zip(rejected.chars()).take_while(|(a, b)| a == b);
        let length = same.map(|(a, _)| a.len_utf8()).sum();
        let start = &chosen[..length];
        let start = start.strip_suffix(' ').unwrap_or(start);
        if start.trim().is_empty() {
            return Err(self.missing("prompt").into());
        }
        let prompt = vec![Message { role: Role::User, content: start.into() }];
        let [chosen, rejected] = [chosen, rejected].map(|text| text[start.len()..].to_owned());
        Ok(Sides { prompt, chosen, rejected })
    }

    /// The messages of the key `prompt`, if it is there; a text is one message of the user.
    pub(super) fn prompt(&self) -> Result<Option<Vec<Message>>, DataError> {
        self.get("prompt").map(|_| self.messages("prompt")).transpose()
    }

    /// The prompt and the response that `key` holds, given what the key `prompt` holds.
    pub(super) fn side(
        &self,
        key: &'static str,
        explicit: Option<&[Message]>,
    ) -> Result<(Vec<Message>, String), DataError> {
        let value = self.get(key).ok_or_else(|| self.missing(key))?;
        if let (Value::String(response), true) = (value, key != "messages") {
            let prompt = explicit.ok_or_else(|| self.missing("prompt"))?;
            return Ok((prompt.to_vec(), response.clone()));
        }
        let mut prompt = self.message_list(key, value)?;
        let Some(Message { role: Role::Assistant, content: response }) = prompt.pop() else {
            let (path, line) = (self.path(), self.place);
            return Err(DataError::no_response(path, line, key));
        };
        match explicit {
            Some(explicit) if prompt.is_empty() => Ok((explicit.to_vec(), response)),
            Some(explicit) if prompt != explicit && !self.is_text("prompt") => {
                let (path, line) = (self.path(), self.place);
                Err(DataError::prompt_mismatch(path, line, "prompt", key))
            }
            _ => Ok((prompt, response)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::data::rows::Row;

    #[test]
    fn two_texts_may_differ_inside_a_word() {
        let row = Row { place: 1, object: serde_json::Map::new() };
        let line = Fields::new(Path::new("data.jsonl").into(), row, "a pair");
        let sides = |chosen, rejected| match line.shared_start(chosen, rejected) {
            Ok(Sides { prompt, chosen, rejected }) => (prompt[0].content.clone(), chosen, rejected),
            Err(_) => panic!("{chosen:?} {rejected:?}"),
        };
        let texts = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        assert_eq!(
            sides("The sky is blue.", "The sky is green."),
            texts("The sky is", " blue.", " green.")
        );
        assert_eq!(sides("naïve été", "naïve étonné"), texts("naïve ét", "é", "onné"));
    }
}
