//! A sampled response, and what the policy learns from it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::model::generate::TokenView;

/// A response's segments and what each is worth.
#[derive(Clone, Debug)]
pub struct Rewarded {
    /// The segments.
    pub segments: Vec<Range<usize>>,
    /// r of each segment.
    pub rewards: Vec<f64>,
    /// r̂ of each segment.
    pub normalized: Vec<f64>,
    /// The score of the whole response.
    pub sequence_score: f64,
}

impl Rewarded {
    /// r̂ of each of so many tokens: its segment's, and in none, as EOS can be, that of the token before.
    ///
    /// # Panics
    ///
    /// If a segment reaches past the tokens.
    pub fn of_tokens(&self, tokens: usize) -> Vec<f64> {
        let mut rewards = vec![f64::NAN; tokens];
        for (segment, &reward) in self.segments.iter().zip(&self.normalized) {
            rewards[segment.clone()].fill(reward);
        }
        let mut last = 0.0;
        for reward in &mut rewards {
            last = if reward.is_nan() { last } else { *reward };
            *reward = last;
        }
        rewards
    }
}

/// A response, with what the policy learns from it. Every list but `segments`, `rewards` and `normalized` has one
/// entry a response token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    /// The response's tokens.
    pub response: Vec<u32>,
    /// ln π_θ when it was sampled, nats.
    pub log_probs: Vec<f32>,
    /// The policy's entropies, nats; for the log alone.
    pub entropies: Vec<f32>,
    /// ln π_SFT, nats.
    pub ref_log_probs: Vec<f32>,
    /// V of the state before each token, if the system has a critic.
    pub values: Option<Vec<f32>>,
    /// The segments.
    pub segments: Vec<Range<usize>>,
    /// r of each segment.
    pub rewards: Vec<f64>,
    /// r̂ of each segment.
    pub normalized: Vec<f64>,
    /// e_φ, before normalization.
    pub sequence_score: f64,
    /// r̃: the reward that each token earns, from `Credit::assign` on.
    pub token_rewards: Vec<f64>,
    /// A, from `Credit::assign` on.
    pub advantages: Vec<f64>,
    /// The critic's targets, from `Credit::assign` on, if there is a critic.
    pub returns: Option<Vec<f64>>,
    /// Whether the policy learns from each token, from `Credit::assign` on, if not from all.
    pub teaches: Option<Vec<bool>>,
    /// Its place in a tree of continuations; empty outside of one.
    pub path: Path,
}

/// The way from the root of a tree of continuations to a leaf.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// The tree's number in the iteration.
    pub tree: usize,
    /// The edges, the root's first.
    pub edges: Vec<Edge>,
}

/// Tokens of a response that lead to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// The number of the node in its tree: the root is 0, and each is after its parent.
    pub node: usize,
    /// The place behind the edge's last token in the response.
    pub end: usize,
}

impl Sample {
    /// A response as the models see it, before credit is assigned.
    pub fn new(
        prompt: &[u32],
        response: &[u32],
        view: TokenView,
        reference: TokenView,
        values: Option<Vec<f32>>,
        rewarded: Rewarded,
    ) -> Self {
        let Rewarded { segments, rewards, normalized, sequence_score } = rewarded;
        Self {
            prompt: prompt.to_vec(),
            response: response.to_vec(),
            log_probs: view.log_probs,
            entropies: view.entropies,
            ref_log_probs: reference.log_probs,
            values,
            segments,
            rewards,
            normalized,
            sequence_score,
            token_rewards: Vec::new(),
            advantages: Vec::new(),
            returns: None,
            teaches: None,
            path: Path::default(),
        }
    }

    /// Earns `reward` at the last token, and nothing before it.
    pub(super) fn earn_at_the_end(&mut self, reward: f64) {
        let tokens = self.response.len();
        self.token_rewards = vec![0.0; tokens];
        self.token_rewards[tokens - 1] = reward;
    }

    /// The edges of the sample's path that teach, each a sample that ends with it and teaches in it alone. None for a sample
    /// outside of a tree, and for one without a mask.
    pub(super) fn teaching_edges(&self) -> impl Iterator<Item = Self> + '_ {
        let mut start = 0;
        let edges = self
            .path
            .edges
            .iter()
            .map(move |edge| std::mem::replace(&mut start, edge.end)..edge.end);
        edges.filter_map(|edge| {
            let teaches = self.teaches.as_ref()?;
            teaches[edge.clone()].contains(&true).then(|| self.up_to(edge))
        })
    }

    /// The sample up to the end of some tokens, in which it teaches as before, and nowhere else.
    fn up_to(&self, tokens: Range<usize>) -> Self {
        let end = tokens.end;
        let teaches = self.teaches.as_ref().map(|teaches| {
            (0..end).map(|t| tokens.contains(&t) && teaches[t]).collect::<Vec<bool>>()
        });
        Self {
            prompt: self.prompt.clone(),
            response: self.response[..end].to_vec(),
            log_probs: self.log_probs[..end].to_vec(),
            entropies: self.entropies[..end].to_vec(),
            ref_log_probs: self.ref_log_probs[..end].to_vec(),
            values: self.values.as_ref().map(|values| values[..end].to_vec()),
            segments: vec![0..end],
            rewards: self.rewards.clone(),
            normalized: self.normalized.clone(),
            sequence_score: self.sequence_score,
            token_rewards: self.token_rewards[..end].to_vec(),
            advantages: self.advantages[..end].to_vec(),
            returns: self.returns.as_ref().map(|returns| returns[..end].to_vec()),
            teaches,
            path: Path { tree: self.path.tree, edges: Vec::new() },
        }
    }

    /// The number of tokens that the policy learns from.
    pub fn teaching_tokens(&self) -> usize {
        match &self.teaches {
            Some(teaches) => teaches.iter().filter(|&&teaches| teaches).count(),
            None => self.response.len(),
        }
    }
}

/// The tokens of all responses.
pub(super) fn response_tokens(samples: &[Sample]) -> usize {
    samples.iter().map(|sample| sample.response.len()).sum()
}

/// Numbers of the models in the precision in which credit is computed.
pub(super) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}
