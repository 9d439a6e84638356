//! Asks a model a benchmark's questions and saves its answers.
//!
//! Each question has its own random stream, so an answer depends neither on the other questions nor on where a run
//! was stopped. Answers are appended to `FILE.partial`; the same command resumes after them, and the last answer
//! turns them into `FILE`.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::error::BenchmarkError;
use crate::atomic;
use crate::data::chat::{Message, Role};
use crate::data::error::DataError;
use crate::data::fields::{Fields, read_rows};
use crate::data::tokenizer::Tokenizer;
use crate::file_error::FileError;
use crate::model::generate::{Generation, generate};
use crate::model::sampling::Sampling;
use crate::model::{CausalLm, ModelConfig};
use crate::rng::stream;
use crate::run::Context;
use crate::run::fingerprint::{file_fingerprint, model_fingerprint};
use crate::stage::task::model_tokenizer;
use crate::stop::Stop;

/// A benchmark that is judged elsewhere: the format of its questions and answers.
pub struct Benchmark {
    /// Its name on the command line.
    pub name: &'static str,
    /// The layout of a row in its question file.
    pub layouts: &'static str,
    /// The published limit of an answer, in tokens.
    pub max_new_tokens: usize,
    /// The layout of its answer file.
    pub layout: Layout,
    pub read: fn(&Fields) -> Result<Question, BenchmarkError>,
    /// The entry of a question's answers, given the model's name and the time.
    pub write: fn(&Question, &[Answer], &str, f64) -> Value,
}

/// The layout of a file of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One JSON list.
    List,
    /// One JSON object a line.
    Lines,
}

/// A question of one or more turns.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its row in the file, from 1.
    pub place: usize,
    /// The identifier that answers are matched by, if it has one.
    pub id: Option<Value>,
    /// What the user says, turn by turn; at least one.
    pub turns: Vec<String>,
    /// The published sampling temperature; 0 is greedy.
    pub temperature: f64,
    /// The fields that the answer's entry repeats.
    pub kept: Value,
}

/// The model's answer in one turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The text, without white space around it.
    pub text: String,
    /// Its tokens, without the one that ends it.
    pub tokens: usize,
}

/// A request for answers.
#[allow(missing_docs)] // the names say it
pub struct Request {
    pub questions: PathBuf,
    pub out: PathBuf,
    /// The folder of the model that answers.
    pub model: PathBuf,
    pub name: String,
    /// The limit of an answer, instead of the published one.
    pub max_new_tokens: Option<usize>,
    /// The temperature, instead of the published ones.
    pub temperature: Option<f64>,
}

/// Answers every question of a benchmark and returns their number.
pub fn run(
    context: &Context,
    benchmark: &Benchmark,
    request: &Request,
) -> Result<usize, BenchmarkError> {
    let questions = read_questions(&request.questions, benchmark)?;
    let respondent = Respondent::load(context, benchmark, request)?;
    questions.iter().try_for_each(|question| respondent.check(question))?;
    let name = request.name.as_str();
    let mut answers = Answers::open(&request.out, &respondent.circumstances(context)?)?;
    let stop = context.stop.saving_in(&answers.partial);
    let done = answers.entries.len().min(questions.len());
    let title = format!("{} {name}", benchmark.name);
    let stage = context.progress.stage(context.title(&title), questions.len(), done);
    let rows_at_once = context.settings.sampling.rows_at_once.max(1);
    let same = |a: &Question, b: &Question| a.temperature == b.temperature;
    for alike in questions[done..].chunk_by(same) {
        for batch in alike.chunks(rows_at_once) {
            for (question, answer) in batch.iter().zip(respondent.answer(batch, &stop)?) {
                answers.push((benchmark.write)(question, &answer, name, now()))?;
                stage.step("");
            }
            if context.stop.after_step() && answers.entries.len() < questions.len() {
                return Err(stop.interrupted().into());
            }
        }
    }
    answers.finish(&request.out, benchmark.layout)?;
    stage.finish(format!("{} answers in {}", questions.len(), request.out.display()));
    Ok(questions.len())
}

/// The questions of a benchmark's file.
pub fn read_questions(path: &Path, benchmark: &Benchmark) -> Result<Vec<Question>, BenchmarkError> {
    let mut seen = HashSet::new();
    read_rows(path, benchmark.layouts, |row| {
        let question = (benchmark.read)(row)?;
        match question.id.as_ref().map(Value::to_string) {
            Some(id) if !seen.insert(id.clone()) => {
                let (path, place) = (path.into(), row.place);
                Err(BenchmarkError::SameQuestion { path, place, id })
            }
            _ => Ok(question),
        }
    })
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// A model that answers.
struct Respondent<'a> {
    request: &'a Request,
    benchmark: &'static str,
    model: CausalLm,
    config: ModelConfig,
    tokenizer: Tokenizer,
    seed: u64,
    max_new_tokens: usize,
}

impl<'a> Respondent<'a> {
    fn load(
        context: &Context,
        benchmark: &Benchmark,
        request: &'a Request,
    ) -> Result<Self, BenchmarkError> {
        let tokenizer = model_tokenizer(&request.model)?;
        let (model, config) = CausalLm::load(&request.model, context.frozen())?;
        let max_new_tokens = request.max_new_tokens.unwrap_or(benchmark.max_new_tokens);
        let seed = context.settings.seed;
        let benchmark = benchmark.name;
        Ok(Self { request, benchmark, model, config, tokenizer, seed, max_new_tokens })
    }

    /// Everything that the answers depend on.
    fn circumstances(&self, context: &Context) -> Result<Value, BenchmarkError> {
        let request = self.request;
        Ok(json!({
            "benchmark": self.benchmark,
            "questions": file_fingerprint(&request.questions)?,
            "model": model_fingerprint(&request.model)?,
            "name": request.name,
            "device": context.device_name.name(),
            "dtype": context.settings.precision.compute.name(),
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "temperature": request.temperature,
        }))
    }

    /// The tokens of a conversation with a question, leaving room for an answer.
    fn prompt(
        &self,
        question: &Question,
        conversation: &[Message],
    ) -> Result<Vec<u32>, BenchmarkError> {
        let (path, place) = (self.request.questions.clone(), question.place);
        let prompt = match self.tokenizer.encode_prompt(conversation) {
            Ok(prompt) => prompt,
            Err(source) => {
                return Err(DataError::encode_line(path, place, source).into());
            }
        };
        if prompt.is_empty() {
            return Err(DataError::empty_prompt(path, place).into());
        }
        let origin = format_args!("{}:{place}", path.display());
        let remedy = "remove the question, or give a model for longer texts";
        self.config.length_limit().check(prompt.len() + 1, origin, remedy)?;
        Ok(prompt)
    }

    /// Rejects a question that cannot be asked, before any is answered.
    fn check(&self, question: &Question) -> Result<(), BenchmarkError> {
        let first = Message { role: Role::User, content: question.turns[0].clone() };
        self.prompt(question, &[first]).map(|_| ())
    }

    /// The answers to each question's turns; all questions have one temperature.
    fn answer(
        &self,
        questions: &[Question],
        stop: &Stop,
    ) -> Result<Vec<Vec<Answer>>, BenchmarkError> {
        let mut conversations: Vec<Vec<Message>> = vec![Vec::new(); questions.len()];
        let mut answers: Vec<Vec<Answer>> = vec![Vec::new(); questions.len()];
        let most = questions.iter().map(|question| question.turns.len()).max().unwrap_or(0);
        for turn in 0..most {
            let asked: Vec<usize> =
                (0..questions.len()).filter(|&i| turn < questions[i].turns.len()).collect();
            for &i in &asked {
                let content = questions[i].turns[turn].clone();
                conversations[i].push(Message { role: Role::User, content });
            }
            let given = self.turn(turn, &asked, questions, &conversations, stop)?;
            for (i, answer) in asked.into_iter().zip(given) {
                let content = answer.text.clone();
                conversations[i].push(Message { role: Role::Assistant, content });
                answers[i].push(answer);
            }
        }
        Ok(answers)
    }

    /// The next answer in each conversation of the questions `asked`.
    fn turn(
        &self,
        turn: usize,
        asked: &[usize],
        questions: &[Question],
        conversations: &[Vec<Message>],
        stop: &Stop,
    ) -> Result<Vec<Answer>, BenchmarkError> {
        let prompt = |&i: &usize| self.prompt(&questions[i], &conversations[i]);
        let prompts = asked.iter().map(prompt).collect::<Result<Vec<_>, _>>()?;
        let shortest = prompts.iter().map(Vec::len).min().unwrap_or(0);
        let room = self.config.length_limit().tokens - shortest;
        let temperature = self.request.temperature.unwrap_or(questions[asked[0]].temperature);
        let generation = Generation {
            sampling: Sampling { temperature, ..Sampling::PLAIN },
            max_new_tokens: self.max_new_tokens.min(room),
            rows_at_once: asked.len(),
            stops: self.tokenizer.stop_tokens(),
        };
        let purpose = format!("{}, turn {turn}", self.benchmark);
        let stream_of = |&i: &usize| stream(self.seed, &purpose, questions[i].place as u64);
        let streams = asked.iter().map(stream_of).collect();
        let rows: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let responses = generate(&self.model, &self.config, &rows, generation, streams, stop)?;
        let answer = |mut response: Vec<u32>| {
            let stops = self.tokenizer.stop_tokens();
            if response.last().is_some_and(|last| stops.contains(last)) {
                response.pop();
            }
            let text = self.tokenizer.decode(&response).trim().to_owned();
            Answer { text, tokens: response.len() }
        };
        Ok(responses.into_iter().map(answer).collect())
    }
}

/// The answers so far, in `FILE.partial`: first what they depend on, then one entry a line.
struct Answers {
    partial: PathBuf,
    file: File,
    entries: Vec<Value>,
}

impl Answers {
    /// Opens the file of answers so far, or starts one.
    fn open(out: &Path, circumstances: &Value) -> Result<Self, BenchmarkError> {
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(".partial");
        let partial = out.with_file_name(name);
        let kept = read_partial(&partial)?;
        let mut lines = kept.iter();
        if let Some(there) = lines.next()
            && let Some(difference) = difference(there, circumstances)
        {
            return Err(BenchmarkError::OtherAnswers { path: partial, difference });
        }
        let entries: Vec<Value> = lines.cloned().collect();
        // Drops a last line that a kill cut short.
        let whole = std::iter::once(circumstances).chain(&entries).map(|line| format!("{line}\n"));
        let text: String = whole.collect();
        let write = || {
            fs::create_dir_all(out.parent().unwrap_or(Path::new("")))?;
            atomic::write_file(&partial, text.as_bytes())?;
            OpenOptions::new().append(true).open(&partial)
        };
        let file = write().map_err(FileError::writing(&partial)).map_err(DataError::from)?;
        Ok(Self { partial, file, entries })
    }

    fn push(&mut self, entry: Value) -> Result<(), DataError> {
        self.file
            .write_all(format!("{entry}\n").as_bytes())
            .map_err(FileError::writing(&self.partial))?;
        self.entries.push(entry);
        Ok(())
    }

    /// Turns the entries into the answer file.
    fn finish(self, out: &Path, layout: Layout) -> Result<(), DataError> {
        let text = match layout {
            Layout::List => format!("{:#}\n", Value::Array(self.entries)),
            Layout::Lines => self.entries.iter().map(|entry| format!("{entry}\n")).collect(),
        };
        atomic::write_file(out, text.as_bytes()).map_err(FileError::writing(out))?;
        Ok(fs::remove_file(&self.partial).map_err(FileError::writing(&self.partial))?)
    }
}

/// The whole lines of a file of answers so far, none if there is no such file.
fn read_partial(path: &Path) -> Result<Vec<Value>, DataError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(FileError::reading(path)(source).into()),
    };
    let whole = bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    let parse = |(line, number): (&[u8], usize)| {
        serde_json::from_slice(line).map_err(|error| DataError::json(path, number, &error))
    };
    whole.zip(1..).map(parse).collect()
}

/// The first difference between the circumstances of two runs.
fn difference(there: &Value, here: &Value) -> Option<String> {
    let keys = here.as_object().into_iter().flat_map(serde_json::Map::keys);
    let differs = |key: &&String| there.get(key) != here.get(key);
    keys.into_iter().find(differs).map(|key| {
        let show = |of: &Value| of.get(key).map_or("nothing".into(), Value::to_string);
        format!("{key}: {} there, {} here", show(there), show(here))
    })
}
