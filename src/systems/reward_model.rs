//! Rewards of a segment reward model: responses cut into segments, each with its reward (E1 to E3).

use std::ops::Range;

use burn::tensor::Tensor;

use super::error::SystemError;
use crate::equations::segment_reward::{
    Aggregation, aggregate, aggregation_weights, segment_rewards, sequence_scores,
};
use crate::equations::segmentation::{EosPolicy, ResponseView, Rule, SegmentationError, segments};
use crate::model::generate::{ReadAt, Rows, TokenView, pad_rows, to_vec};
use crate::model::optim::NonFinite;
use crate::model::{CausalLm, Grid, ScalarModel};
use crate::stop::Stop;

/// Cuts responses into segments.
#[derive(Clone, Debug)]
pub struct Segmenter {
    /// What a segment is.
    pub rule: Rule,
    /// Whether EOS belongs to the last one.
    pub eos_policy: EosPolicy,
    /// The ids of the tokens that count as EOS: those that end a response.
    pub stops: Vec<u32>,
    /// By token id, whether the token ends a sentence.
    pub sentence_ends: Vec<bool>,
}

impl Segmenter {
    /// The segments of `response`, given the reference model's entropy at each token, nats (read for entropy
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
        segments(self.rule, policy, view)
    }
}

/// A prompt, its response and the response's segments.
pub type Segmented<'a> = ((&'a [u32], &'a [u32]), &'a [Range<usize>]);

/// e_φ of responses (E2, E3), `[B]`, with gradients if the model has them.
pub fn score_sequences(
    model: &ScalarModel,
    rows: &[Segmented<'_>],
    aggregation: Aggregation,
) -> Tensor<1> {
    let (grid, first) = Grid::aligned(rows.iter().map(|(row, _)| *row));
    let scores = model.scores(&grid, ReadAt::Token.columns(&grid, first));
    let weights: Vec<Vec<f32>> = rows
        .iter()
        .map(|((_, response), cut)| aggregation_weights(cut, response.len(), aggregation))
        .collect();
    let weights = weights.iter().map(Vec::as_slice);
    let weights = pad_rows(weights, grid.width() - first, 0.0, &scores.device());
    sequence_scores(scores, weights)
}

/// A segment reward model, and how the method reads it.
pub struct RewardModel {
    /// The model.
    pub model: ScalarModel,
    /// How its training cut responses.
    pub reward_segmenter: Segmenter,
    /// How the policy's responses are cut.
    pub policy_segmenter: Segmenter,
    /// How segment rewards make the sequence score.
    pub aggregation: Aggregation,
    /// Asks for an end before the next forward pass.
    pub stop: Stop,
}

/// A response's segments and their rewards.
#[derive(Clone, Debug, PartialEq)]
pub struct SegmentRewards {
    /// The segments.
    pub segments: Vec<Range<usize>>,
    /// The reward of each, before normalization.
    pub rewards: Vec<f64>,
    /// e_φ: the reward model's score of the whole response.
    pub sequence_score: f64,
}

impl RewardModel {
    /// Cuts responses where the reference model's view of them says, and scores the segments.
    ///
    /// # Errors
    ///
    /// [`SystemError`]; [`SystemError::NonFinite`] for a reward that is NaN or infinite.
    pub fn score(
        &self,
        responses: &Rows<'_>,
        reference: &[TokenView],
    ) -> Result<Vec<SegmentRewards>, SystemError> {
        let scores = responses.scalars(&self.model, ReadAt::Token, &self.stop)?;
        let scored = responses.rows().iter().zip(reference).zip(scores);
        let segments = |((&(_, response), reference), scores): ((_, &TokenView), Vec<f32>)| {
            self.segment_rewards(response, &reference.entropies, &scores)
        };
        scored.map(segments).collect()
    }

    /// e_φ of responses, whole or still being written: what is written since the last boundary is then the last segment.
    /// `reference` reads them where its entropies cut.
    ///
    /// # Errors
    ///
    /// As [`RewardModel::score`].
    pub fn sequence_scores(
        &self,
        responses: &Rows<'_>,
        reference: &CausalLm,
    ) -> Result<Vec<f64>, SystemError> {
        let entropies: Vec<Vec<f32>> = match self.reward_segmenter.rule {
            Rule::Entropy { .. } => {
                let views = responses.view(reference, &self.stop)?.into_iter();
                views.map(|view| view.entropies).collect()
            }
            _ => responses.rows().iter().map(|(_, response)| vec![0.0; response.len()]).collect(),
        };
        let scores = responses.scalars(&self.model, ReadAt::Token, &self.stop)?;
        let rows = responses.rows().iter().zip(entropies).zip(scores);
        rows.map(|((&(_, response), entropies), scores)| {
            let segments = self.reward_segmenter.cut(response, &entropies)?;
            finite(aggregate(&segment_rewards(&scores, &segments), self.aggregation), "a response")
        })
        .collect()
    }

    /// The reward model's score of a prompt's last token: what a response begins with.
    ///
    /// # Errors
    ///
    /// As [`RewardModel::score`].
    pub fn prompt_score(&self, prompt: &[u32]) -> Result<f64, SystemError> {
        self.stop.check()?;
        let grid = Grid::new([(0, prompt.to_vec())], prompt.len());
        let score = self.model.scores(&grid, prompt.len() - 1..prompt.len());
        finite(f64::from(to_vec(score)[0]), "a prompt")
    }

    /// Cuts a response by the reference model's entropies, nats, and reads the rewards of its segments from the model's
    /// scores of its tokens.
    ///
    /// # Errors
    ///
    /// As [`RewardModel::score`].
    pub fn segment_rewards(
        &self,
        response: &[u32],
        entropies: &[f32],
        scores: &[f32],
    ) -> Result<SegmentRewards, SystemError> {
        let own = self.reward_segmenter.cut(response, entropies)?;
        let sequence_score = aggregate(&segment_rewards(scores, &own), self.aggregation);
        let segments = self.policy_segmenter.cut(response, entropies)?;
        // One reward for a response of several reward-model segments is its sequence score.
        let whole = self.policy_segmenter.rule == Rule::Whole;
        let rewards = if whole { vec![sequence_score] } else { segment_rewards(scores, &segments) };
        for (t, &reward) in rewards.iter().enumerate() {
            finite(reward, &format!("segment {t}"))?;
        }
        Ok(SegmentRewards { segments, rewards, sequence_score })
    }
}

/// The reward of `what`, unless it is NaN or infinite.
fn finite(reward: f64, what: &str) -> Result<f64, SystemError> {
    match reward.is_finite() {
        true => Ok(reward),
        false => Err(NonFinite { tensor: format!("the reward of {what}"), step: 0 }.into()),
    }
}
