//! Scores any text, a prompt and a response, with a trained reward stage or a published reward model.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fit_normalizer::NormalizerFile;
use super::reward;
use super::score::{Scorer, published};
use super::task::model_tokenizer;
use crate::data::chat::{Message, Role};
use crate::data::error::DataError;
use crate::data::fields::read_rows;
use crate::data::tokenizer::Tokenizer;
use crate::equations::normalizer::{Normalizer, location};
use crate::equations::segmentation::{EosPolicy, Rule};
use crate::model::generate::{Rows, TokenView};
use crate::model::{CausalLm, LengthLimit, ModelConfig, ScalarModel};
use crate::run::folder::read_json;
use crate::run::{Context, Error};
use crate::stage::segmented_text::SegmentedText;
use crate::systems::reward_model::SegmentRewards;
use crate::systems::{Judge, RewardModel, Segmenter};

/// A row to be scored.
#[derive(Clone, Debug, PartialEq)]
pub struct TextRow {
    /// Its row in the file, from 1.
    pub place: usize,
    pub prompt: Vec<Message>,
    pub response: String,
}

/// The texts in a file: rows of a `prompt` (a text or messages) and a `response`, or of `messages` that end
/// with the response.
pub fn read_texts(path: &Path) -> Result<Vec<TextRow>, DataError> {
    const LAYOUTS: &str = "{\"prompt\", \"response\"}, or {\"messages\"}";
    read_rows(path, LAYOUTS, |row| {
        let key = if row.get("messages").is_some() { "messages" } else { "response" };
        let (before, response) = row.response(key)?;
        let prompt = match before {
            Some(before) => before,
            None => row.messages("prompt")?,
        };
        Ok(TextRow { place: row.place, prompt, response })
    })
}

/// A prompt and a response to it.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    pub prompt: &'a [Message],
    pub response: &'a str,
}

/// The place of a text, for errors.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub path: &'a Path,
    pub row: usize,
}

/// A text as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The prompt, never empty.
    pub prompt: Vec<u32>,
    /// The response; its last token ends it.
    pub response: Vec<u32>,
    /// Whether tokens were cut at the left to fit the model.
    pub cut: bool,
}

/// A response's entropies, segments and rewards.
#[derive(Clone, Debug, PartialEq)]
pub struct Rating {
    /// The reference model's entropy at each token, nats; NaN if there is no reference model.
    pub entropies: Vec<f32>,
    pub segments: Vec<std::ops::Range<usize>>,
    pub rewards: Vec<f64>,
    /// e_φ.
    pub sequence_score: f64,
}

/// How a published reward model is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ReadAs {
    /// One reward at the last token: ordinary RLHF's
    Bandit,
    /// A reward at the end of each sentence
    Sentence,
    /// A reward at each token
    Token,
    /// A reward at the end of each entropy segment: the paper's
    Segment,
}

/// A reward model, a reference model if entropies are wanted, and their tokenizer.
pub struct Rater {
    pub tokenizer: Tokenizer,
    reference: Option<CausalLm>,
    reward_model: RewardModel,
    rows_at_once: usize,
    /// The fingerprint of a reward stage of this program; a published model has none.
    fingerprint: Option<String>,
    /// The longest text that all models can read.
    length_limit: LengthLimit,
    /// The tokens that a longer text is cut to; `None` rejects it.
    cut_to: Option<usize>,
}

impl Rater {
    /// The reward model of the run, or of `--reward-model`: a reward stage, or a published model's folder,
    /// which is read as `read_as` says (if nothing, as a bandit's). Texts are cut to `cut_to` tokens, or to as many
    /// as the models were made for; without it, one that is longer than they were made for is rejected.
    pub fn load(
        context: &Context,
        read_as: Option<ReadAs>,
        cut_to: Option<usize>,
    ) -> Result<Self, Error> {
        if let Some(dir) = published(context) {
            let rater = Self::published(context, dir, read_as.unwrap_or(ReadAs::Bandit))?;
            return Ok(Self { cut_to, ..rater });
        }
        if read_as.is_some() {
            return Err(Error::Usage(
                "--actions goes with the folder of a published reward model: a reward stage was trained for \
                 its own, which --method names"
                    .into(),
            ));
        }
        Ok(Self { cut_to, ..Self::trained(context)? })
    }

    /// The reward model of the run, or the reward stage in the folder of `--reward-model`.
    pub fn trained(context: &Context) -> Result<Self, Error> {
        context.needs_reward_model("a reward model's scores")?;
        let reference_dir = context.reference_dir()?;
        let tokenizer = model_tokenizer(&reference_dir)?;
        let (ends, stops) = (tokenizer.sentence_ends(), tokenizer.stop_tokens());
        let rows_at_once = context.settings.ppo.rows_at_once;
        let scorer = Scorer::load(context, ends, stops, rows_at_once)?;
        let length_limit = ModelConfig::from_dir(&reference_dir)?.length_limit();
        let Scorer { reference, judge, fingerprints, .. } = scorer;
        let Judge::RewardModel(reward_model) = judge else { unreachable!("refused above") };
        Ok(Self {
            tokenizer,
            reference: Some(reference),
            reward_model,
            rows_at_once,
            fingerprint: Some(fingerprints.reward_model),
            length_limit,
            cut_to: None,
        })
    }

    fn published(context: &Context, dir: &Path, read_as: ReadAs) -> Result<Self, Error> {
        let settings = &context.settings;
        let entropy_cutoff = settings.segmentation.entropy_cutoff;
        let (rule, eos_policy) = match read_as {
            ReadAs::Bandit => (Rule::Whole, EosPolicy::AsPublished), // EOS is in its action
            ReadAs::Sentence => (Rule::Sentence, settings.segmentation.eos),
            ReadAs::Token => (Rule::Token, settings.segmentation.eos),
            ReadAs::Segment => {
                (Rule::Entropy { cutoff: entropy_cutoff }, settings.segmentation.eos)
            }
        };
        if read_as == ReadAs::Segment && context.model.is_none() {
            return Err(Error::Usage(
                "--actions segment cuts where the reference model is unsure: give it as --model DIR".into(),
            ));
        }
        let tokenizer = model_tokenizer(dir)?;
        let reference = |reference_dir: &PathBuf| {
            let other = model_tokenizer(reference_dir)?.vocab_size();
            let own = tokenizer.vocab_size();
            if own != other {
                return Err(Error::Usage(format!(
                    "{} has {own} token ids and {} has {other}: reward model and reference model must share a \
                     tokenizer",
                    dir.display(),
                    reference_dir.display()
                )));
            }
            Ok(CausalLm::load(reference_dir, context.frozen())?)
        };
        let reference = context.model.as_ref().map(reference).transpose()?;
        let (reward, config) = ScalarModel::load(dir, context.frozen())?;
        let (reference, reference_config) = reference.unzip();
        let length_limit = reference_config
            .iter()
            .map(ModelConfig::length_limit)
            .fold(config.length_limit(), LengthLimit::min);
        let segmenter = Segmenter {
            rule,
            eos_policy,
            stops: tokenizer.stop_tokens().to_vec(),
            sentence_ends: tokenizer.sentence_ends().to_vec(),
        };
        let reward_model = RewardModel {
            model: reward,
            reward_segmenter: segmenter.clone(),
            policy_segmenter: segmenter,
            aggregation: settings.reward.aggregation,
            stop: context.stop.clone(),
        };
        Ok(Self {
            tokenizer,
            reference,
            reward_model,
            rows_at_once: settings.ppo.rows_at_once,
            fingerprint: None,
            length_limit,
            cut_to: None,
        })
    }

    /// The normalizer that the run fitted for this reward model.
    pub fn normalizer(&self, context: &Context) -> Result<Normalizer, Error> {
        match &self.fingerprint {
            Some(fingerprint) => {
                let rule = self.reward_model.policy_segmenter.rule;
                Ok(NormalizerFile::read(context, rule, fingerprint)?.normalizer)
            }
            None => Err(Error::Usage(
                "--normalized needs the normalizer of a run: leave it out, or train a reward model and fit \
                 one"
                .into(),
            )),
        }
    }

    /// The temperature that calibrates the scores of the run's reward model.
    pub fn temperature(&self, context: &Context) -> Result<f64, Error> {
        if self.fingerprint.is_none() {
            return Err(Error::Usage(
                "--calibrated needs the temperature of a run's reward model: leave it out, or train a reward model"
                    .into(),
            ));
        }
        let path = context.reward_dir()?.join("summary.json");
        let summary: reward::Summary = read_json(&path, "train-reward")?;
        summary.temperature.ok_or_else(|| {
            let path = path.display();
            Error::Usage(format!(
                "{path}: no temperature, since the stage was run before there was one or all its scores are 0: leave \
                 --calibrated out, or train the reward model again"
            ))
        })
    }

    /// The tokens of a text. One that is cut loses tokens at the left, as RewardBench cuts, but keeps a token of
    /// the prompt.
    pub fn encode(&self, text: Text, place: Place) -> Result<Encoded, Error> {
        let (path, line) = (place.path, place.row);
        let at_place = |source: DataError| DataError::encode_line(path, line, source);
        let response = Message { role: Role::Assistant, content: text.response.to_owned() };
        let both = self.tokenizer.encode_conversation(text.prompt, &response);
        let (mut prompt, mut response) = both.map_err(at_place)?;
        if text.prompt.is_empty() || prompt.is_empty() {
            return Err(DataError::empty_prompt(path, line).into());
        }
        let (tokens, limit) = (prompt.len() + response.len(), self.length_limit);
        let Some(cut_to) = self.cut_to else {
            let remedy = "shorten the text, or give models for longer ones";
            limit.check(tokens, format_args!("{}:{line}", path.display()), remedy)?;
            return Ok(Encoded { prompt, response, cut: false });
        };
        let surplus = tokens.saturating_sub(cut_to.min(limit.tokens));
        let from_prompt = surplus.min(prompt.len() - 1);
        prompt.drain(..from_prompt);
        response.drain(..surplus - from_prompt);
        Ok(Encoded { prompt, response, cut: surplus > 0 })
    }

    /// Cuts and scores responses.
    pub fn rate(&self, texts: &[Encoded]) -> Result<Vec<Rating>, Error> {
        let rows: Vec<(&[u32], &[u32])> =
            texts.iter().map(|text| (&text.prompt[..], &text.response[..])).collect();
        let (rows, stop) = (Rows::new(&rows, self.rows_at_once), &self.reward_model.stop);
        let unknown = |&(_, response): &(&[u32], &[u32])| TokenView {
            log_probs: Vec::new(),
            entropies: vec![f32::NAN; response.len()],
        };
        let views = match &self.reference {
            Some(model) => rows.view(model, stop)?,
            None => rows.rows().iter().map(unknown).collect(),
        };
        let rewards = self.reward_model.score(&rows, &views)?;
        let rating = |(view, rewards): (TokenView, SegmentRewards)| {
            let SegmentRewards { segments, rewards, sequence_score } = rewards;
            Rating { entropies: view.entropies, segments, rewards, sequence_score }
        };
        Ok(views.into_iter().zip(rewards).map(rating).collect())
    }

    /// Rated texts for display, with normalized rewards if there is a normalizer.
    pub fn show(
        &self,
        texts: &[Encoded],
        normalizer: Option<&Normalizer>,
    ) -> Result<Vec<SegmentedText>, Error> {
        let show = |(text, rating): (&Encoded, Rating)| {
            let normalized = match normalizer {
                Some(normalizer) => {
                    normalizer.check(location(0, rating.rewards.len()))?;
                    normalizer.normalize_all(&rating.rewards)
                }
                None => Vec::new(),
            };
            let mut shown = SegmentedText::new(
                self.tokenizer.decode(&text.prompt),
                &text.response,
                self.tokenizer.pieces(&text.response),
                &rating.entropies,
                &rating.segments,
                &rating.rewards,
                &normalized,
            );
            shown.sequence_score = Some(rating.sequence_score);
            Ok(shown)
        };
        texts.iter().zip(self.rate(texts)?).map(show).collect()
    }
}
