//! Decoders: a model that is trained no further writes what a reward model likes.
//!
//! | kind | a response |
//! | --- | --- |
//! | `sample` | is sampled, as `[sampling]` says |
//! | `cards` | grows by segments, each sampled until one is accepted |
//! | `items` | is sampled whole until one is accepted |
//! | `best_of_n` | is the best of n samples |
//! | `args` | grows by the token of the largest logit plus weighted reward |
//!
//! CARDS is Li et al. 2024 (arXiv 2406.16306), ARGS Khanov et al. 2024 (arXiv 2402.01694). Where a paper leaves something
//! open, CARDS's official code decides; `experiments/cards-official.toml` has its figures. Deviations D40 to D45, among them:
//! - EOS ends a response, and no response is longer than `sampling.max_new_tokens`;
//! - a rejected candidate is taken back from the cache; theirs reads prompt and response anew for each token;
//! - a bandit's reward of a response under way is its score so far, that of a segment reward model e_φ of the segments so
//!   far, the one under way included.
//!
//! Calls are counted as the paper counts them: one of the model for each sampled token, and one for each candidate that a
//! high entropy ends; one of the reward model for each prompt and candidate that it scores.

use clap::builder::PossibleValue;
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::error::SystemError;
use super::reward_model::RewardModel;
use crate::bounds::{AtLeast, Bounds, section};
use crate::equations::cards::{Decision, SegmentLimits, Threshold, Trial, best, guided};
use crate::model::generate::{Generation, Rows, generate};
use crate::model::sampling::Sampling;
use crate::model::writer::{Writer, write_each};
use crate::model::{CausalLm, ModelConfig};
use crate::rng::Stream;
use crate::stop::Stop;

/// How responses are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Sampled.
    #[default]
    Sample,
    /// CARDS.
    Cards,
    /// Rejection sampling of whole responses.
    Items,
    /// Best of n.
    BestOfN,
    /// ARGS.
    Args,
}

impl Kind {
    /// All.
    pub const ALL: [Self; 5] = [Self::Sample, Self::Cards, Self::Items, Self::BestOfN, Self::Args];

    /// Its name in settings and folders.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sample => "sample",
            Self::Cards => "cards",
            Self::Items => "items",
            Self::BestOfN => "best_of_n",
            Self::Args => "args",
        }
    }

    /// What it does, in one line.
    pub fn about(self) -> &'static str {
        match self {
            Self::Sample => "samples, as the section [sampling] says",
            Self::Cards => {
                "segments that end before unsure tokens, each sampled until one is accepted"
            }
            Self::Items => "whole responses, sampled until one is accepted",
            Self::BestOfN => "the best of n sampled responses",
            Self::Args => "the tokens of the largest logit plus weighted reward",
        }
    }

    /// Where it was published.
    pub fn paper(self) -> &'static str {
        match self {
            Self::Sample => "-",
            Self::Cards | Self::Items | Self::BestOfN => "Li et al. 2024, arXiv 2406.16306",
            Self::Args => "Khanov et al. 2024, arXiv 2402.01694",
        }
    }
}

impl clap::ValueEnum for Kind {
    fn value_variants<'a>() -> &'a [Self] {
        &Self::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()).help(self.about()))
    }
}

/// Which model writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Writing {
    /// The trained policy.
    #[default]
    Policy,
    /// The reference model: no policy is needed.
    Reference,
}

section! {
    /// The section `[decode]`.
    Settings {
        kind: Kind,
        model: Writing,
        temperature: f64 = Bounds::Positive,
        top_k: usize,
        target: f64 = Bounds::Finite,
        beta: f64 = Bounds::NotNegative,
        rejects: usize = AtLeast(0),
        alpha: f64 = Bounds::ZeroToOne,
        entropy_threshold: f64 = Bounds::NotNegativeOrInfinite,
        least_tokens: usize = AtLeast(1),
        most_tokens: usize = AtLeast(1),
        best_of: usize = AtLeast(1),
        args_weight: f64 = Bounds::NotNegative,
        args_candidates: usize = AtLeast(1),
    }
}

impl Settings {
    /// Whether the policy is sampled, as if there were no decoders.
    pub fn is_plain(&self) -> bool {
        self.kind == Kind::Sample && self.model == Writing::Policy
    }

    /// These, but sampling.
    pub fn plain(&self) -> Self {
        Self { kind: Kind::Sample, model: Writing::Policy, ..self.clone() }
    }
}

/// What a response took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// Of the language model.
    pub model_calls: usize,
    /// Of the reward model.
    pub reward_calls: usize,
    /// Tokens drawn, those of rejected candidates included.
    pub sampled_tokens: usize,
}

/// A response, and what it took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decoded {
    /// Its tokens.
    pub response: Vec<u32>,
    /// What it took.
    pub calls: Calls,
}

/// A decoder.
pub struct Decoder<'a> {
    /// The section `[decode]`.
    pub settings: &'a Settings,
    /// How `sample` draws, and the limits of every response.
    pub generation: Generation<'a>,
    /// The reward model; `sample` alone needs none.
    pub reward_model: Option<&'a RewardModel>,
    /// The reference model, whose entropies cut where the reward model's rule says so.
    pub reference: &'a CausalLm,
    /// Asks for an end before the next forward pass.
    pub stop: &'a Stop,
}

impl Decoder<'_> {
    /// A response of `model` to each prompt, which depends on neither the other prompts nor their number.
    ///
    /// # Errors
    ///
    /// [`SystemError`].
    ///
    /// # Panics
    ///
    /// As [`generate`], and without the reward model that the kind needs.
    pub fn decode(
        &self,
        model: &CausalLm,
        config: &ModelConfig,
        prompts: &[&[u32]],
        streams: Vec<Stream>,
    ) -> Result<Vec<Decoded>, SystemError> {
        if self.settings.kind == Kind::Sample {
            let responses =
                generate(model, config, prompts, self.generation, streams, self.stop)?.into_iter();
            let decoded = |response: Vec<u32>| {
                let tokens = response.len();
                let calls = Calls { model_calls: tokens, reward_calls: 0, sampled_tokens: tokens };
                Decoded { response, calls }
            };
            return Ok(responses.map(decoded).collect());
        }
        let most = self.generation.max_new_tokens;
        write_each(model, config, prompts, most, streams, self.stop, |prompt, writer, stream| {
            let reward_model = self.reward_model.expect("a reward model for this kind");
            let calls = Calls::default();
            let mut row = Row { of: self, reward_model, prompt, writer, stream, calls };
            match self.settings.kind {
                Kind::Sample => unreachable!("generated above"),
                Kind::Cards | Kind::Items => row.by_rejection()?,
                Kind::BestOfN => row.best_of_n()?,
                Kind::Args => row.args()?,
            }
            Ok(Decoded { response: row.writer.response().to_vec(), calls: row.calls })
        })
    }
}

/// One response under way.
struct Row<'a> {
    of: &'a Decoder<'a>,
    reward_model: &'a RewardModel,
    prompt: &'a [u32],
    writer: Writer<'a>,
    stream: Stream,
    calls: Calls,
}

impl Row<'_> {
    /// CARDS; with whole responses as segments and a flat threshold, rejection sampling of whole responses.
    fn by_rejection(&mut self) -> Result<(), SystemError> {
        let s = self.of.settings;
        let segments = (s.kind == Kind::Cards).then_some(SegmentLimits {
            entropy: s.entropy_threshold,
            least: s.least_tokens,
            most: s.most_tokens,
        });
        // With α = 1 the prompt's reward counts nothing.
        let threshold = match s.kind == Kind::Cards && s.alpha < 1.0 {
            true => {
                self.calls.reward_calls += 1;
                let reward = self.reward_model.prompt_score(self.prompt)?;
                Threshold::rising(reward, s.target, s.alpha, self.of.generation.max_new_tokens)
            }
            false => Threshold::flat(s.target),
        };
        while !self.has_ended() {
            let start = self.writer.mark()?;
            let written = self.writer.response().len();
            let mut trial = Trial::new(threshold, s.beta, s.rejects);
            let mut candidates = Vec::new();
            loop {
                let reward = self.candidate(segments)?;
                let length = self.writer.response().len();
                match trial.decide(length, reward, self.stream.random()) {
                    Decision::Accept => break,
                    Decision::Reject => {
                        candidates.push(self.writer.response()[written..].to_vec());
                        self.writer.back_to(&start);
                    }
                    // The last is there already.
                    Decision::Best(number) if number == candidates.len() => break,
                    Decision::Best(number) => {
                        self.writer.back_to(&start);
                        candidates[number].iter().for_each(|&token| self.writer.push(token));
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    fn best_of_n(&mut self) -> Result<(), SystemError> {
        let start = self.writer.mark()?;
        let (mut rewards, mut responses) = (Vec::new(), Vec::new());
        for _ in 0..self.of.settings.best_of {
            self.writer.back_to(&start);
            rewards.push(self.candidate(None)?);
            responses.push(self.writer.response().to_vec());
        }
        self.writer.back_to(&start);
        responses[best(&rewards)].iter().for_each(|&token| self.writer.push(token));
        Ok(())
    }

    fn args(&mut self) -> Result<(), SystemError> {
        let Settings { args_weight, args_candidates, .. } = *self.of.settings;
        while !self.has_ended() {
            self.calls.model_calls += 1;
            let logits = self.writer.logits()?;
            let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
            tokens.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
            tokens.truncate(args_candidates);
            let logits: Vec<f32> = tokens.iter().map(|&token| logits[token as usize]).collect();
            let responses: Vec<Vec<u32>> =
                tokens.iter().map(|&token| [self.writer.response(), &[token]].concat()).collect();
            let rewards = self.rewards(&responses)?;
            self.writer.push(tokens[guided(&logits, &rewards, args_weight)]);
            self.calls.sampled_tokens += 1;
        }
        Ok(())
    }

    /// Writes on, to the end of a segment or of the response, and scores what is there then.
    fn candidate(&mut self, segments: Option<SegmentLimits>) -> Result<f64, SystemError> {
        let Settings { temperature, top_k, .. } = *self.of.settings;
        let sampling = Sampling { temperature, top_k, top_p: 1.0 };
        let start = self.writer.response().len();
        while !self.has_ended() {
            let tokens = self.writer.response().len() - start;
            if segments.is_some_and(|limits| limits.is_full(tokens)) {
                break;
            }
            self.calls.model_calls += 1;
            if let Some(limits) = segments
                && limits.ends_before(tokens, self.writer.entropy()?)
            {
                break;
            }
            let token = sampling.draw(self.writer.logits()?, &mut self.stream);
            self.writer.push(token);
            self.calls.sampled_tokens += 1;
        }
        Ok(self.rewards(&[self.writer.response().to_vec()])?[0])
    }

    fn rewards(&mut self, responses: &[Vec<u32>]) -> Result<Vec<f64>, SystemError> {
        self.calls.reward_calls += responses.len();
        let rows: Vec<(&[u32], &[u32])> =
            responses.iter().map(|response| (self.prompt, &response[..])).collect();
        self.reward_model.sequence_scores(&Rows::new(&rows, rows.len()), self.of.reference)
    }

    fn has_ended(&self) -> bool {
        let last = self.writer.response().last();
        self.writer.is_full() || last.is_some_and(|token| self.of.generation.stops.contains(token))
    }
}
