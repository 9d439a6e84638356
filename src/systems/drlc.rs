//! DRLC: rewards of spans that an annotator marks, beside the reward of the response (Cao et al. 2024, arXiv 2401.07382).
//!
//! | annotator | marks |
//! | --- | --- |
//! | `program` | the embedded task's clauses, each as what it is with the chance p, as what it is not with the chance q |
//! | `file` | the spans of a JSONL file, by prompt and response |
//! | `self` | what the policy's own weights quote as good and bad behind a critic prefix |
//!
//! Everything else is the bandit's: one reward a response, KL, GAE with a critic, the clip. The annotator is asked about
//! responses whose reward is at most θ. A critique has at most as many tokens as a response, and is read strictly: one that
//! does not follow its grammar to the end, or is cut off, marks nothing. The official settings are in
//! `experiments/drlc-official.toml`. Deviations:
//! - the reward of a response is normalized by the run's normalizer (theirs: as it is), and θ compared with that;
//! - a token is marked by its place (theirs: wherever its text occurs in the text of a span);
//! - a critique without the heading of its bad spans marks nothing (theirs: all of it marks good tokens);
//! - the critic reads its prefix behind prompt and response (theirs: instructions and examples before both);
//! - policy and critic are models of their own (theirs: one, whose value loss counts 0.1), and losses are means over the
//!   tokens of a response, then over responses, as the paper's methods are here (theirs: over all tokens).

use std::collections::HashSet;
use std::path::PathBuf;

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::error::SystemError;
use super::interface::{Credit, Draw, Method, Parts, Row, System, Training, Truth};
use super::paper::SpreadGae;
use super::sample::{Sample, response_tokens};
use super::settings::PpoSettings;
use crate::bounds::{Bounds, Limit, Nested, section};
use crate::data::pairs::prompt_hash;
use crate::data::spans::{Marks, SpanFile, TextSpan, read_critique, tokens_of};
use crate::data::tokenizer::Tokenizer;
use crate::equations::span_reward::{Span, SpanValues, asks, span_rewards};
use crate::rng::Stream;

section! {
    /// The section `[systems.drlc]`.
    Settings {
        annotator: AnnotatorKind,
        threshold: f64 = Bounds::NotNan,
        positive: f64 = Bounds::Finite,
        negative: f64 = Bounds::Finite,
        recall: f64 = Bounds::ZeroToOne,
        false_positive_rate: f64 = Bounds::ZeroToOne,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        spans: Option<PathBuf>,
        critic: CriticSettings = Nested,
    }
}

section! {
    /// The section `[systems.drlc.critic]`.
    CriticSettings {
        prefix: String = NotEmpty,
        good: String = NotEmpty,
        bad: String = NotEmpty,
        end: String = NotEmpty,
    }
}

/// A text that is not empty.
struct NotEmpty;

impl Limit<String> for NotEmpty {
    fn problem(&self, text: &String) -> Option<(String, String)> {
        text.trim().is_empty().then(|| (String::new(), format!("{text:?}; expected a text")))
    }
}

/// Who marks spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnnotatorKind {
    /// A program that knows the truth, and errs at given rates.
    Program,
    /// A file of spans.
    File,
    /// The policy.
    #[serde(rename = "self")]
    Critic,
}

impl Method {
    /// Rewards of spans that an annotator marks, beside the bandit's.
    pub const DRLC: Self = Self(&Row {
        name: "drlc",
        about: "The bandit's reward, and rewards of spans that an annotator marks",
        paper: "Cao et al. 2024, arXiv 2401.07382",
        reward_model: Some(Self::BANDIT),
        rewards: "bandit reward model, normalized (E5), and marked spans",
        credit: "each token its own, KL (E7), GAE with a critic (E8)",
        section: Some("drlc"),
        check,
        training: Training::Online(build),
        ..*Self::BANDIT.0
    });
}

/// The method.
pub const METHODS: [Method; 1] = [Method::DRLC];

fn own(section: toml::Value) -> Settings {
    section.try_into().expect("checked when it was read")
}

fn check(_: &PpoSettings, section: toml::Value) -> Option<(String, String)> {
    let Settings { annotator, spans, .. } = own(section);
    let problem = "none; expected the path of a file, since annotator = \"file\"".to_owned();
    (annotator == AnnotatorKind::File && spans.is_none()).then(|| ("spans".to_owned(), problem))
}

fn build<'a>(parts: &Parts<'a>) -> Result<System<'a>, SystemError> {
    let settings = own(parts.section.clone().expect("a system with a section"));
    let Settings { threshold, positive, negative, .. } = settings;
    let files = match (settings.annotator, &settings.spans) {
        (AnnotatorKind::File, Some(path)) => vec![("spans", path.clone())],
        _ => Vec::new(),
    };
    let credit = SpanCredit {
        annotator: Annotator::new(settings, parts)?,
        threshold,
        values: SpanValues { positive, negative },
        gae: SpreadGae::of(parts),
    };
    Ok(System { credit: Box::new(credit), files, ..Method::BANDIT.build(parts)? })
}

const NO_TRUTH: &str = "systems.drlc.annotator = \"program\" knows the clauses of the embedded task alone; with --data, \
                        set \"file\" or \"self\"";

/// Who marks spans, with what it knows.
enum Annotator<'a> {
    Program { truth: Truth, recall: f64, false_positive_rate: f64 },
    File { spans: SpanFile, tokenizer: &'a Tokenizer },
    Critic { prefix: Vec<u32>, marks: CriticSettings, tokenizer: &'a Tokenizer },
}

impl<'a> Annotator<'a> {
    fn new(settings: Settings, parts: &Parts<'a>) -> Result<Self, SystemError> {
        let Settings { recall, false_positive_rate, critic: marks, .. } = settings;
        let tokenizer = parts.task.tokenizer;
        match settings.annotator {
            AnnotatorKind::Program => {
                let truth =
                    parts.task.truth.ok_or_else(|| SystemError::Settings(NO_TRUTH.into()))?;
                Ok(Self::Program { truth, recall, false_positive_rate })
            }
            AnnotatorKind::File => {
                let path = settings.spans.expect("checked when it was read");
                let mut known = HashSet::new();
                for prompts in parts.task.prompts {
                    for i in 0..prompts.len() {
                        known.insert(prompt_hash(&prompts.get(i)?));
                    }
                }
                let known = |prompt: &[u32]| known.contains(&prompt_hash(prompt));
                let spans = SpanFile::read(&path, tokenizer, parts.task.prompt_tokens, known)?;
                Ok(Self::File { spans, tokenizer })
            }
            AnnotatorKind::Critic => {
                let prefix = tokenizer.encode(&marks.prefix).map_err(|error| {
                    SystemError::Settings(format!(
                        "systems.drlc.critic.prefix: {error}; write it in words of the model's vocabulary"
                    ))
                })?;
                Ok(Self::Critic { prefix, marks, tokenizer })
            }
        }
    }

    /// The marked spans of samples, each with its place in the iteration, and the number of tokens drawn for them.
    fn annotate(
        &self,
        samples: &[(usize, &Sample)],
        draw: &Draw<'_>,
    ) -> Result<(Vec<Vec<Span>>, usize), SystemError> {
        match self {
            &Self::Program { truth, recall, false_positive_rate } => {
                let mark = |&(place, sample): &(usize, &Sample)| {
                    let stream = draw.stream("annotator", place);
                    marked_clauses(sample, truth, [recall, false_positive_rate], stream)
                };
                Ok((samples.iter().map(mark).collect(), 0))
            }
            Self::File { spans, tokenizer } => {
                let mark = |(_, sample): &(usize, &Sample)| {
                    let pieces = written(sample, tokenizer, draw);
                    on_tokens(&pieces, spans.spans(&sample.prompt, &pieces.concat()))
                };
                Ok((samples.iter().map(mark).collect(), 0))
            }
            Self::Critic { prefix, marks, tokenizer } => {
                let samples: Vec<&Sample> = samples.iter().map(|(_, sample)| *sample).collect();
                criticise(&samples, prefix, marks, tokenizer, draw)
            }
        }
    }
}

/// The clauses of a sample that two detectors mark, one of good clauses and one of bad ones, each with a recall and a rate
/// of false positives.
fn marked_clauses(
    sample: &Sample,
    truth: Truth,
    [recall, false_positive_rate]: [f64; 2],
    mut stream: Stream,
) -> Vec<Span> {
    let Some(gold) = truth(&sample.prompt, &sample.response) else { return Vec::new() };
    let mut spans = Vec::new();
    for clause in &gold.clauses {
        for label in [1, -1] {
            let right = f64::from(label) * clause.credit > 0.0;
            let chance = if right { recall } else { false_positive_rate };
            if stream.random::<f64>() < chance {
                spans.push(Span { tokens: clause.range.clone(), label });
            }
        }
    }
    spans
}

/// The text that each token of a response adds, without the token that ends it.
fn written(sample: &Sample, tokenizer: &Tokenizer, draw: &Draw<'_>) -> Vec<String> {
    let response = &sample.response;
    let ended = response.last().is_some_and(|token| draw.generation.stops.contains(token));
    tokenizer.pieces(&response[..response.len() - usize::from(ended)])
}

/// Spans of characters as spans of tokens; those that hold no token's beginning go.
fn on_tokens(pieces: &[String], spans: &[TextSpan]) -> Vec<Span> {
    let spans = spans.iter().map(|TextSpan { characters, label }| Span {
        tokens: tokens_of(pieces, characters),
        label: *label,
    });
    spans.filter(|span| !span.tokens.is_empty()).collect()
}

/// What the policy says of samples that leave room for it, as far as that can be read.
fn criticise(
    samples: &[&Sample],
    prefix: &[u32],
    marks: &CriticSettings,
    tokenizer: &Tokenizer,
    draw: &Draw<'_>,
) -> Result<(Vec<Vec<Span>>, usize), SystemError> {
    let CriticSettings { good, bad, end, .. } = marks;
    let marks = Marks { good, bad, end };
    let asked = |sample: &&Sample| [&sample.prompt, &sample.response, prefix].concat();
    let asked: Vec<Vec<u32>> = samples.iter().map(asked).collect();
    let longest = draw.config.length_limit().tokens;
    let (places, asked): (Vec<usize>, Vec<&[u32]>) = (asked.iter().enumerate())
        .filter(|(_, asked)| asked.len() < longest)
        .map(|(place, asked)| (place, &asked[..]))
        .unzip();
    let limits = vec![draw.generation.max_new_tokens; asked.len()];
    let critiques = draw.continuations("critiques", &asked, &limits)?;
    let drawn = critiques.iter().map(Vec::len).sum();
    let mut marked = vec![Vec::new(); samples.len()];
    for (place, critique) in places.into_iter().zip(critiques) {
        let Some((last, said)) = critique.split_last() else { continue };
        if !draw.generation.stops.contains(last) {
            continue; // cut off
        }
        let pieces = written(samples[place], tokenizer, draw);
        let spans = read_critique(&tokenizer.decode(said), &pieces.concat(), marks);
        marked[place] = on_tokens(&pieces, &spans.unwrap_or_default());
    }
    Ok((marked, drawn))
}

/// The bandit's reward and those of marked spans, less the KL term, and GAE over them.
struct SpanCredit<'a> {
    annotator: Annotator<'a>,
    threshold: f64,
    values: SpanValues,
    gae: SpreadGae,
}

impl Credit for SpanCredit<'_> {
    fn assign(&self, samples: &mut [Sample], draw: &Draw<'_>) -> Result<usize, SystemError> {
        self.gae.spread(samples);
        let asked: Vec<usize> = (0..samples.len())
            .filter(|&i| asks(samples[i].normalized.iter().sum(), self.threshold))
            .collect();
        let about: Vec<(usize, &Sample)> = asked.iter().map(|&i| (i, &samples[i])).collect();
        let (spans, drawn) = self.annotator.annotate(&about, draw)?;
        for (i, spans) in asked.into_iter().zip(spans) {
            let sample = &mut samples[i];
            sample.token_rewards = span_rewards(&sample.token_rewards, &spans, self.values);
        }
        self.gae.estimate(samples, draw.kl_coefficient);
        Ok(response_tokens(samples) + drawn)
    }
}
