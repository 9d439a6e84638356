//! `evaluate BENCHMARK` and `score`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::error::Error;
use super::show;
use crate::benchmark::alpaca_eval::ALPACA_EVAL;
use crate::benchmark::answering::{self, Request};
use crate::benchmark::arena_hard::ARENA_HARD;
use crate::benchmark::mt_bench::MT_BENCH;
use crate::benchmark::reward_bench;
use crate::benchmark::win_rate::{self, Judge, Match};
use crate::data::chat::{Message, Role};
use crate::run::Context;
use crate::stage::score_text::{Place, Rater, ReadAs, Text, TextRow, read_texts};
use crate::stage::segmented_text::SegmentedText;

/// A public benchmark. The model is --model DIR, or the policy of --run and --method.
#[derive(Subcommand)]
pub(super) enum Benchmark {
    /// Answers AlpacaEval's instructions: model_outputs.json for `alpaca_eval evaluate`
    AlpacaEval(AnswerArgs),
    /// Answers Arena-Hard's questions, of v0.1 or v2: the answer JSONL of one model
    ArenaHard(AnswerArgs),
    /// Answers MT-Bench's questions, two turns each: FastChat's answer JSONL of one model
    MtBench(AnswerArgs),
    /// Accuracy of a reward model on RewardBench's pairs, which --data names, by subset and section
    RewardBench(RewardBenchArgs),
    /// How often the answers in file A beat those in file B, plain and length-controlled
    WinRate(WinRateArgs),
}

/// Arguments of a benchmark that is judged elsewhere.
#[derive(Args)]
pub(super) struct AnswerArgs {
    /// The benchmark's question file
    #[arg(long, value_name = "FILE")]
    questions: PathBuf,
    /// The answer file to write; FILE.partial holds the answers of a stopped run
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The model's name in the answers [default: the folder of --model, or the method]
    #[arg(long)]
    name: Option<String>,
    /// The longest answer in tokens [default: 2048 for AlpacaEval, 4096 for Arena-Hard, 1024 for MT-Bench]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_new_tokens: Option<u32>,
    /// The sampling temperature [default: 0, the most likely token; for MT-Bench by category, as published]
    #[arg(long, value_name = "T", value_parser = temperature)]
    temperature: Option<f64>,
    /// Ask the run's reference model instead of the policy
    #[arg(long)]
    reference: bool,
}

/// Arguments of `reward-bench`.
#[derive(Args)]
pub(super) struct RewardBenchArgs {
    /// What one action is to a published reward model [default: bandit]
    #[arg(long)]
    actions: Option<ReadAs>,
    /// Cut texts at the left to this many tokens
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(2..))]
    max_length: u32,
}

/// Arguments of `win-rate`.
#[derive(Args)]
pub(super) struct WinRateArgs {
    /// Answers, in the format of any of the benchmarks
    a: PathBuf,
    /// The answers that they are compared with
    b: PathBuf,
    /// Who judges
    #[arg(long)]
    judge: JudgeName,
    /// The question file, for answers that do not repeat their questions (MT-Bench, Arena-Hard v0.1)
    #[arg(long, value_name = "FILE")]
    questions: Option<PathBuf>,
    /// What one action is to a published reward model [default: bandit]
    #[arg(long)]
    actions: Option<ReadAs>,
}

/// Arguments of `score`.
#[derive(Args)]
pub(super) struct ScoreArgs {
    /// Rows of a prompt and a response, or of messages: JSONL, a JSON list or Parquet
    #[arg(required_unless_present = "prompt", conflicts_with = "prompt")]
    file: Option<PathBuf>,
    /// What the user says, instead of a file
    #[arg(long, value_name = "TEXT", requires = "response")]
    prompt: Option<String>,
    /// The response to score
    #[arg(long, value_name = "TEXT", requires = "prompt")]
    response: Option<String>,
    /// What one action is to a published reward model [default: bandit]
    #[arg(long)]
    actions: Option<ReadAs>,
    /// Add the rewards as normalized by the run's normalizer
    #[arg(long)]
    normalized: bool,
    /// Add the score and the rewards between 0 and 1, at the temperature of most entropy on held-out responses
    #[arg(long)]
    calibrated: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum JudgeName {
    /// A reward model: that of the run, or --reward-model
    Reward,
    /// The gold reward of the embedded task
    Gold,
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(temperature) if f64::is_finite(temperature) && temperature >= 0.0 => Ok(temperature),
        _ => Err("expected a number of at least 0".into()),
    }
}

impl Benchmark {
    /// Runs the benchmark and prints its result; `model` is a model in place of the run's.
    pub(super) fn run(
        &self,
        context: &Context,
        model: Option<&Path>,
        json: bool,
    ) -> Result<(), Error> {
        let (benchmark, args) = match self {
            Self::AlpacaEval(args) => (&ALPACA_EVAL, args),
            Self::ArenaHard(args) => (&ARENA_HARD, args),
            Self::MtBench(args) => (&MT_BENCH, args),
            Self::RewardBench(args) => return reward_bench(context, args, json),
            Self::WinRate(args) => return win_rate(context, args, json),
        };
        let request = args.request(context, model)?;
        answering::run(context, benchmark, &request)?;
        Ok(())
    }
}

impl AnswerArgs {
    fn request(&self, context: &Context, model: Option<&Path>) -> Result<Request, Error> {
        let method = context.settings.method.name();
        let (model, name) = match model {
            Some(dir) => {
                let name = dir.file_name().map(|name| name.to_string_lossy().into_owned());
                (dir.to_owned(), name.unwrap_or("model".to_owned()))
            }
            None if self.reference => (context.reference_dir()?, "reference".to_owned()),
            None => (context.policy_dir()?.join("model"), method.to_owned()),
        };
        Ok(Request {
            questions: self.questions.clone(),
            out: self.out.clone(),
            model,
            name: self.name.clone().unwrap_or(name),
            max_new_tokens: self.max_new_tokens.map(|n| n as usize),
            temperature: self.temperature,
        })
    }
}

fn reward_bench(context: &Context, args: &RewardBenchArgs, json: bool) -> Result<(), Error> {
    let Some(data) = &context.data else {
        return Err(Error::Usage("reward-bench needs --data FILE with RewardBench's pairs".into()));
    };
    let rater = Rater::load(context, args.actions, Some(args.max_length as usize))?;
    let report = reward_bench::run(context, &rater, data)?;
    if json { show::json(&report) } else { show::out(&report.table()) }
}

fn win_rate(context: &Context, args: &WinRateArgs, json: bool) -> Result<(), Error> {
    let judge = match args.judge {
        JudgeName::Reward => Judge::Reward(Box::new(Rater::load(context, args.actions, None)?)),
        JudgeName::Gold => Judge::gold()?,
    };
    let questions = args.questions.clone();
    let files = Match { a: args.a.clone(), b: args.b.clone(), questions };
    let report = win_rate::run(context, &judge, &files)?;
    if json { show::json(&report) } else { show::out(&report.table()) }
}

/// A line of `score --json`.
#[derive(Serialize)]
struct Line {
    /// The text's row in its file, from 1.
    row: usize,
    #[serde(flatten)]
    text: SegmentedText,
}

/// Prints the segments of texts with their rewards.
pub(super) fn score(context: &Context, args: &ScoreArgs, json: bool) -> Result<(), Error> {
    let (texts, path) = match (&args.file, &args.prompt, &args.response) {
        (Some(path), ..) => (read_texts(path)?, path.clone()),
        (None, Some(prompt), Some(response)) => {
            let prompt = vec![Message { role: Role::User, content: prompt.clone() }];
            let text = TextRow { place: 1, prompt, response: response.clone() };
            (vec![text], PathBuf::from("--response"))
        }
        _ => unreachable!("clap requires a file, or a prompt with its response"),
    };
    let rater = Rater::load(context, args.actions, None)?;
    let normalizer = args.normalized.then(|| rater.normalizer(context)).transpose()?;
    let temperature = args.calibrated.then(|| rater.temperature(context)).transpose()?;
    for chunk in texts.chunks(context.settings.ppo.rows_at_once.max(1)) {
        let encode = |text: &TextRow| {
            let place = Place { path: &path, row: text.place };
            rater.encode(Text { prompt: &text.prompt, response: &text.response }, place)
        };
        let encoded = chunk.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        for (text, mut shown) in chunk.iter().zip(rater.show(&encoded, normalizer.as_ref())?) {
            if let Some(temperature) = temperature {
                shown.calibrate(temperature);
            }
            if json {
                let line = Line { row: text.place, text: shown };
                show::out(&serde_json::to_string(&line).expect("a plain struct serialises"))?;
            } else {
                show::out(&format!("{}\n", shown.table(show::colour())))?;
            }
        }
    }
    Ok(())
}
