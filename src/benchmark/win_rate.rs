//! How often the answers in one file beat those in another, plain and at equal lengths.
//!
//! A question is judged by the mean score of its turns' answers; the higher one wins, and equal ones tie. The
//! length of an answer is in characters, as in AlpacaEval, over all its turns.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::Value;

use super::arena_hard::turns;
use super::error::BenchmarkError;
use crate::data::chat::{Message, Role};
use crate::data::error::DataError;
use crate::data::fields::{Fields, read_rows};
use crate::data::letters::{self, Prompt};
use crate::data::tokenizer::Tokenizer;
use crate::run::Context;
use crate::stage::score_text::{Place, Rater, Text};
use crate::stage::task::letters_tokenizer;
use crate::statistics::length_control::{Comparison, length_control, plain};
use crate::statistics::mean;
use crate::table::{markdown, rate};

const ANSWERS: &str = "{\"instruction\", \"output\"} (AlpacaEval), {\"uid\", \"messages\"} (Arena-Hard v2), or \
                       {\"question_id\", \"choices\"} (MT-Bench, Arena-Hard v0.1)";
const QUESTIONS: &str = "{\"question_id\", \"turns\"}";

/// The judge of which answer is better.
pub enum Judge {
    /// The sequence score of a reward model.
    Reward(Box<Rater>),
    /// The gold reward of the embedded task.
    Gold(Box<Tokenizer>),
}

impl Judge {
    /// The judge that knows the embedded task.
    pub fn gold() -> Result<Self, BenchmarkError> {
        Ok(Self::Gold(Box::new(letters_tokenizer()?)))
    }

    /// The score of each answer: the mean over its turns.
    fn scores(&self, answers: &[(&Path, &Answered)]) -> Result<Vec<f64>, BenchmarkError> {
        let turns = answers.iter().flat_map(|&(path, answer)| {
            let place = Place { path, row: answer.place };
            answer.turns.iter().map(move |turn| (turn, place))
        });
        let scores: Vec<f64> = match self {
            Self::Reward(rater) => {
                let encode = |(turn, place): (&Turn, Place)| {
                    rater.encode(Text { prompt: &turn.prompt, response: &turn.answer }, place)
                };
                let rows = turns.map(encode).collect::<Result<Vec<_>, _>>()?;
                rater.rate(&rows)?.into_iter().map(|rating| rating.sequence_score).collect()
            }
            Self::Gold(tokenizer) => {
                let score = |(turn, place): (&Turn, Place)| {
                    let no_gold =
                        || BenchmarkError::NoGold { path: place.path.into(), place: place.row };
                    gold(tokenizer, turn).ok_or_else(no_gold)
                };
                turns.map(score).collect::<Result<_, _>>()?
            }
        };
        let mut rest = scores.into_iter();
        let mean_of =
            |(_, answer): &(&Path, &Answered)| mean(rest.by_ref().take(answer.turns.len()));
        Ok(answers.iter().map(mean_of).collect())
    }
}

/// The gold reward of an answer, if it and its prompt are in the embedded task's language.
fn gold(tokenizer: &Tokenizer, turn: &Turn) -> Option<f64> {
    let prompt = Prompt::from_tokens(&tokenizer.encode_prompt(&turn.prompt).ok()?)?;
    let mut response = letters::encode(&turn.answer)?;
    response.push(tokenizer.eos());
    Some(letters::gold(&prompt, &response).reward())
}

/// Two answer files, and the question file if they lack the questions.
pub struct Match {
    /// The answers whose win rate is wanted.
    pub a: PathBuf,
    /// Those that they are compared with.
    pub b: PathBuf,
    pub questions: Option<PathBuf>,
}

/// The win rate of A over B.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    pub questions: usize,
    /// Questions that only one of them answers: left out.
    pub unmatched: usize,
    pub wins: usize,
    /// Ties, each half a win.
    pub ties: usize,
    pub losses: usize,
    pub win_rate: f64,
    /// Its standard error, over questions.
    pub win_rate_error: Option<f64>,
    pub length_controlled_win_rate: f64,
    /// Its standard error; none where lengths alone tell wins from losses.
    pub length_controlled_error: Option<f64>,
    /// φ: the judge's preference for length, as log-odds for a difference of many standard deviations.
    pub length_coefficient: f64,
    /// Characters of A's answer to a question.
    pub mean_length_a: f64,
    pub mean_length_b: f64,
    /// The judge's score of A's answers.
    pub mean_score_a: f64,
    pub mean_score_b: f64,
}

/// Compares the answers of two files.
pub fn run(context: &Context, judge: &Judge, files: &Match) -> Result<Report, BenchmarkError> {
    let questions = files.questions.as_deref().map(read_questions).transpose()?;
    let read = |path: &Path| read_answers(path, questions.as_ref());
    let (a, b) = (read(&files.a)?, read(&files.b)?);
    let keys: HashMap<&Key, &Answered> = b.iter().map(|answer| (&answer.key, answer)).collect();
    let pairs: Vec<(&Answered, &Answered)> =
        a.iter().filter_map(|answer| Some((answer, *keys.get(&answer.key)?))).collect();
    if pairs.is_empty() {
        let (a, b) = (files.a.clone(), files.b.clone());
        return Err(BenchmarkError::NothingInCommon { a, b });
    }
    let stage = context.progress.stage(context.title("win-rate"), pairs.len(), 0);
    let mut scores = Vec::with_capacity(pairs.len());
    for chunk in pairs.chunks(context.settings.ppo.rows_at_once.max(1)) {
        let of_a: Vec<_> = chunk.iter().map(|(a, _)| (files.a.as_path(), *a)).collect();
        let of_b: Vec<_> = chunk.iter().map(|(_, b)| (files.b.as_path(), *b)).collect();
        scores.extend(judge.scores(&of_a)?.into_iter().zip(judge.scores(&of_b)?));
        chunk.iter().for_each(|_| stage.step(""));
    }
    let comparison = |((a, b), (score_a, score_b)): (&(&Answered, &Answered), &(f64, f64))| {
        let preference = if score_a == score_b { 0.5 } else { f64::from(score_a > score_b) };
        Comparison { preference, length_difference: a.length() - b.length() }
    };
    let comparisons: Vec<Comparison> = pairs.iter().zip(&scores).map(comparison).collect();
    let fit = length_control(&comparisons);
    let (win_rate, win_rate_error) = plain(&comparisons);
    let count = |preference| comparisons.iter().filter(|c| c.preference == preference).count();
    let report = Report {
        questions: pairs.len(),
        unmatched: a.len() + b.len() - 2 * pairs.len(),
        wins: count(1.0),
        ties: count(0.5),
        losses: count(0.0),
        win_rate,
        win_rate_error,
        length_controlled_win_rate: fit.win_rate,
        length_controlled_error: fit.standard_error,
        length_coefficient: fit.length,
        mean_length_a: mean(pairs.iter().map(|(a, _)| a.length())),
        mean_length_b: mean(pairs.iter().map(|(_, b)| b.length())),
        mean_score_a: mean(scores.iter().map(|(a, _)| *a)),
        mean_score_b: mean(scores.iter().map(|(_, b)| *b)),
    };
    stage.finish(format!("win rate {}", rate(report.win_rate, report.questions)));
    Ok(report)
}

impl Report {
    /// The report as a Markdown table and a line on what was left out.
    pub fn table(&self) -> String {
        let n = self.questions;
        let percent = |share: f64, error: Option<f64>| {
            let error = error.map_or("–".into(), |error| format!("{:.1}", 100.0 * error));
            [format!("{:.1}", 100.0 * share), error]
        };
        // One question has a winner, but no rate and nothing to control for.
        let [plain, controlled] = match n {
            1 => [[rate(self.win_rate, 1), "–".into()], ["–".into(), "–".into()]],
            _ => [
                percent(self.win_rate, self.win_rate_error),
                percent(self.length_controlled_win_rate, self.length_controlled_error),
            ],
        };
        let row = |name: &str, [share, error]: [String; 2]| {
            vec![name.to_owned(), share, error, n.to_string()]
        };
        let rows = [row("win rate", plain), row("length-controlled", controlled)];
        let mut text = markdown(&["A over B", "%", "± s.e.", "n"], &rows);
        text += &format!(
            "\n{} questions: {} wins, {} ties, {} losses; {} answered by one file alone\n",
            self.questions, self.wins, self.ties, self.losses, self.unmatched
        );
        text += &format!(
            "characters an answer: {:.0} and {:.0}; score: {:.3} and {:.3}\n",
            self.mean_length_a, self.mean_length_b, self.mean_score_a, self.mean_score_b
        );
        if n > 1 && self.length_controlled_error.is_none() {
            text += "lengths alone tell wins from losses: the length-controlled rate rests on its penalty\n";
        }
        text
    }
}

/// A question's identifier and its earlier occurrences in the file: instructions may repeat.
type Key = (String, usize);

/// The answer to one question.
struct Answered {
    place: usize,
    key: Key,
    turns: Vec<Turn>,
}

/// One turn: the conversation up to the answer, and the answer.
struct Turn {
    prompt: Vec<Message>,
    answer: String,
}

impl Answered {
    /// Characters of all turns' answers.
    fn length(&self) -> f64 {
        self.turns.iter().map(|turn| turn.answer.chars().count()).sum::<usize>() as f64
    }
}

/// The turns of each question, by its identifier.
type Questions = HashMap<String, Vec<String>>;

fn read_questions(path: &Path) -> Result<Questions, BenchmarkError> {
    let read = |row: &Fields| {
        Ok::<_, BenchmarkError>((row.require("question_id")?.to_string(), turns(row)?))
    };
    Ok(read_rows(path, QUESTIONS, read)?.into_iter().collect())
}

fn read_answers(
    path: &Path,
    questions: Option<&Questions>,
) -> Result<Vec<Answered>, BenchmarkError> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    read_rows(path, ANSWERS, |row| {
        let (id, turns) = answered(path, row, questions)?;
        let before = seen.entry(id.clone()).or_default();
        let key = (id, *before);
        *before += 1;
        Ok(Answered { place: row.place, key, turns })
    })
}

/// The identifier of the question that a row answers, and its turns.
fn answered(
    path: &Path,
    row: &Fields,
    questions: Option<&Questions>,
) -> Result<(String, Vec<Turn>), BenchmarkError> {
    if row.get("uid").is_some() {
        let id = row.require("uid")?.to_string();
        let messages = row.list("messages")?;
        let (last, before) = messages.split_last().expect("a list that is not empty");
        let answer = match last.get("content") {
            Some(Value::Object(content)) => content.get("answer").and_then(Value::as_str),
            Some(Value::String(text)) => Some(text.as_str()),
            _ => None,
        };
        let answer = answer.ok_or_else(|| row.missing("messages[-1].content.answer"))?.to_owned();
        let user = |(i, message): (usize, &Value)| {
            let role = message.get("role").and_then(Value::as_str).and_then(Role::from_name);
            let role = role.ok_or_else(|| row.missing(&format!("messages[{i}].role")))?;
            let content = row.turn(&format!("messages[{i}]"), message)?.to_owned();
            Ok::<Message, DataError>(Message { role, content })
        };
        let prompt = before.iter().enumerate().map(user).collect::<Result<_, _>>()?;
        return Ok((id, vec![Turn { prompt, answer }]));
    }
    if row.get("question_id").is_none() {
        let instruction = row.text("instruction")?;
        let prompt = vec![Message { role: Role::User, content: instruction.to_owned() }];
        let answer = row.text("output")?.to_owned();
        return Ok((instruction.to_owned(), vec![Turn { prompt, answer }]));
    }
    let id = row.require("question_id")?.to_string();
    let choice = &row.list("choices")?[0];
    let Some(Value::Array(answers)) = choice.get("turns") else {
        return Err(row.missing("choices[0].turns").into());
    };
    let without = || BenchmarkError::WithoutQuestion { path: path.into(), place: row.place };
    let asked = questions.and_then(|questions| questions.get(&id)).ok_or_else(without)?;
    let (mut conversation, mut turns) = (Vec::new(), Vec::new());
    for (i, (question, answer)) in asked.iter().zip(answers).enumerate() {
        let answer = row.turn(&format!("choices[0].turns[{i}]"), answer)?.to_owned();
        conversation.push(Message { role: Role::User, content: question.clone() });
        turns.push(Turn { prompt: conversation.clone(), answer: answer.clone() });
        conversation.push(Message { role: Role::Assistant, content: answer });
    }
    match turns.is_empty() {
        true => Err(row.missing("choices[0].turns[0]").into()),
        false => Ok((id, turns)),
    }
}
