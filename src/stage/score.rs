//! Segments and their rewards: the one place where reference model, reward model, segmentation and
//! aggregation meet. Reward training, normalizer, rollouts, evaluation and display all read it.

use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::models::Base;
use crate::equations::segment_reward::{Aggregation, aggregate, segment_rewards};
use crate::equations::segmentation::{
    Actions, EosPolicy, ResponseView, SegmentationError, segments,
};
use crate::model::generate::{ReadAt, TokenView, read_scalars, view_tokens};
use crate::model::optim::NonFinite;
use crate::model::{CausalLm, ScalarModel};
use crate::run::context::Context;
use crate::run::error::Error;
use crate::run::fingerprint::{REWARD_CARD, model_fingerprint, reward_fingerprint};
use crate::run::folder::read_json;
use crate::settings::{Method, Settings};
use crate::stop::Stop;

/// Cuts responses into actions.
#[derive(Clone, Debug)]
pub struct Segmenter {
    /// What one action is.
    pub actions: Actions,
    /// Whether EOS belongs to the last one.
    pub eos_policy: EosPolicy,
    /// The ids of the tokens that count as EOS: those that end a response.
    pub stops: Vec<u32>,
    /// By token id, whether the token ends a sentence.
    pub sentence_ends: Vec<bool>,
}

impl Segmenter {
    /// The segmenter of a run for the given actions.
    pub fn new(
        settings: &Settings,
        actions: Actions,
        sentence_ends: &[bool],
        stops: &[u32],
    ) -> Self {
        let eos_policy = settings.segmentation.eos;
        let (stops, sentence_ends) = (stops.to_vec(), sentence_ends.to_vec());
        Self { actions, eos_policy, stops, sentence_ends }
    }

    /// The segments of `response`, given the reference model's entropy at each token (read for entropy
    /// segments only).
    ///
    /// A response of EOS alone, which a policy under training can write, has one segment: that token.
    ///
    /// # Errors
    ///
    /// [`SegmentationError`].
    pub fn cut(
        &self,
        response: &[u32],
        entropies: &[f32],
    ) -> Result<Vec<Range<usize>>, SegmentationError> {
        let ends = |&token: &u32| self.sentence_ends.get(token as usize) == Some(&true);
        let sentence_ends: Vec<bool> = response.iter().map(ends).collect();
        let ends_with_eos = response.last().is_some_and(|token| self.stops.contains(token));
        let view = ResponseView { entropies, sentence_ends: &sentence_ends, ends_with_eos };
        let policy = match response {
            [_] if ends_with_eos => EosPolicy::Included,
            _ => self.eos_policy,
        };
        segments(self.actions, policy, view)
    }
}

/// What a reward model was trained for; `reward.json` beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RewardCard {
    /// The method it belongs to.
    pub method: Method,
    /// One action of its training.
    pub actions: Actions,
    /// Whether EOS belonged to the last action.
    pub eos: EosPolicy,
    /// How segment rewards made the sequence score.
    pub aggregation: Aggregation,
    /// The fingerprint of the reference model that gave the entropies.
    pub reference: String,
}

impl RewardCard {
    /// Reads the card of the reward stage in `dir`.
    ///
    /// # Errors
    ///
    /// [`Error::Folder`].
    pub fn read(dir: &Path) -> Result<Self, Error> {
        Ok(read_json(&dir.join(REWARD_CARD), "train-reward")?)
    }
}

/// A response with its segments and their rewards.
#[derive(Clone, Debug)]
pub struct Scored {
    /// The reference model's log-probabilities and entropies.
    pub reference: TokenView,
    /// The actions.
    pub segments: Vec<Range<usize>>,
    /// The reward of each action, before normalization.
    pub rewards: Vec<f64>,
    /// e_φ: the reward model's score of the whole.
    pub sequence_score: f64,
}

/// Reference model, reward model, and how the method reads them.
pub struct Scorer {
    /// π_SFT.
    pub reference: CausalLm,
    reference_dir: PathBuf,
    reward: ScalarModel,
    reward_segmenter: Segmenter,
    /// How the policy's responses are cut into actions.
    pub policy_segmenter: Segmenter,
    aggregation: Aggregation,
    rows_at_once: usize,
    stop: Stop,
    /// The fingerprints of both models.
    pub fingerprints: Fingerprints,
}

/// The fingerprints of the models that a [`Scorer`] reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprints {
    /// That of the reference model.
    pub reference: String,
    /// That of the reward model with its card.
    pub reward_model: String,
}

impl Fingerprints {
    /// Those of the run's models; reads each once.
    ///
    /// # Errors
    ///
    /// [`Error::Folder`] and [`Error::Checkpoint`] when one is not there or cannot be read.
    pub fn of(context: &Context) -> Result<Self, Error> {
        let (reference, reward) = (context.reference_dir()?, context.reward_dir()?);
        Ok(Self {
            reference: model_fingerprint(&reference)?,
            reward_model: reward_fingerprint(&reward)?,
        })
    }

    /// Both as inputs of a stage.
    pub fn inputs(&self) -> Vec<(&'static str, String)> {
        vec![("model", self.reference.clone()), ("reward_model", self.reward_model.clone())]
    }
}

impl Scorer {
    /// The scorer of the run's method.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] when the reward model was trained for other actions or with another reference;
    /// [`Error::Checkpoint`] and [`Error::Folder`].
    pub fn load(
        context: &Context,
        sentence_ends: &[bool],
        stops: &[u32],
        rows_at_once: usize,
    ) -> Result<Self, Error> {
        Self::of(context, Fingerprints::of(context)?, sentence_ends, stops, rows_at_once)
    }

    /// The same where the fingerprints of its models are known already.
    ///
    /// # Errors
    ///
    /// As [`Scorer::load`].
    pub fn of(
        context: &Context,
        fingerprints: Fingerprints,
        sentence_ends: &[bool],
        stops: &[u32],
        rows_at_once: usize,
    ) -> Result<Self, Error> {
        let settings = &context.settings;
        let reference_dir = context.reference_dir()?;
        let reward_dir = context.reward_dir()?;
        let card = RewardCard::read(&reward_dir)?;
        let model_dir = reward_dir.join("model");
        let path = reward_dir.join(REWARD_CARD);
        let mismatch = |what, expected: String, found: String, remedy| {
            let path = path.clone();
            if expected == found {
                Ok(())
            } else {
                Err(Error::Mismatch { path, what, expected, found, remedy })
            }
        };
        let cutoff = settings.segmentation.entropy_cutoff;
        let actions = settings.method.reward_actions(cutoff);
        mismatch(
            "reference model",
            card.reference.clone(),
            fingerprints.reference.clone(),
            "give the --model that the reward model was trained from",
        )?;
        mismatch(
            "actions",
            format!("{:?}", card.actions),
            format!("{actions:?}"),
            "set the same method and segmentation, or train a reward model for these",
        )?;
        mismatch(
            "EOS policy",
            format!("{:?}", card.eos),
            format!("{:?}", settings.segmentation.eos),
            "set the same segmentation.eos, or train a reward model for this one",
        )?;
        let segmenter = |actions| Segmenter::new(settings, actions, sentence_ends, stops);
        let (reference, _) = CausalLm::load(&reference_dir, context.frozen())?;
        let base = Base { dir: &reference_dir, model: &reference };
        let reward = base.scalar_model(&model_dir, context.frozen())?;
        Ok(Self {
            reference,
            reference_dir,
            reward,
            reward_segmenter: segmenter(actions),
            policy_segmenter: segmenter(settings.method.policy_actions(cutoff)),
            aggregation: card.aggregation,
            rows_at_once,
            stop: context.stop.clone(),
            fingerprints,
        })
    }

    /// The reference model as the base of others.
    pub fn base(&self) -> Base<'_> {
        Base { dir: &self.reference_dir, model: &self.reference }
    }

    /// Cuts and scores responses; `step` is what an error names.
    ///
    /// # Errors
    ///
    /// [`Error::Segmentation`]; [`Error::NonFinite`] for a reward that is NaN or infinite;
    /// [`Error::Interrupted`] when the run's stop is asked for.
    pub fn score(&self, rows: &[(&[u32], &[u32])], step: usize) -> Result<Vec<Scored>, Error> {
        let Self { rows_at_once, ref stop, .. } = *self;
        let views = view_tokens(&self.reference, rows, rows_at_once, stop)?;
        let scores = read_scalars(&self.reward, rows, ReadAt::Token, rows_at_once, stop)?;
        let scored = rows.iter().zip(views).zip(scores).map(|((row, reference), scores)| {
            let own = self.reward_segmenter.cut(row.1, &reference.entropies)?;
            let sequence_score = aggregate(&segment_rewards(&scores, &own), self.aggregation);
            let segments = self.policy_segmenter.cut(row.1, &reference.entropies)?;
            // One reward for a response of several reward-model actions is its sequence score.
            let whole = self.policy_segmenter.actions == Actions::Bandit;
            let rewards =
                if whole { vec![sequence_score] } else { segment_rewards(&scores, &segments) };
            if let Some(t) = rewards.iter().position(|reward| !reward.is_finite()) {
                let tensor = format!("the reward of segment {t}");
                return Err(Error::NonFinite(NonFinite { tensor, step }));
            }
            Ok(Scored { reference, segments, rewards, sequence_score })
        });
        scored.collect()
    }
}
