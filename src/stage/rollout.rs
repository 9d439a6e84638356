//! Rollouts: sampled responses with everything PPO needs of them, kept on the host (E5 to E8).

use std::ops::Range;

use super::score::Scorer;
use crate::data::diagnostics::credit_assignment;
use crate::data::letters::Gold;
use crate::equations::gae::{gae, whiten};
use crate::equations::interpolation::{Interpolation, interpolate};
use crate::equations::kl::{k1, k3, token_rewards};
use crate::equations::normalizer::{Normalizer, length_neutral};
use crate::model::generate::{Generation, ReadAt, generate, read_scalars, view_tokens};
use crate::model::{CausalLm, ModelConfig, ScalarModel};
use crate::rng::Stream;
use crate::run::error::Error;
use crate::run::metrics::IterationMetrics;
use crate::settings::PpoSettings;
use crate::statistics::{mean, variance};
use crate::stop::Stop;

/// One response, as PPO learns from it. Every list but `segments`, `rewards` and `normalized` has one entry
/// a response token.
#[derive(Clone, Debug)]
pub struct Rollout {
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
    /// V of the state before each token.
    pub values: Vec<f32>,
    /// The actions.
    pub segments: Vec<Range<usize>>,
    /// r of each action.
    pub rewards: Vec<f64>,
    /// r̂ of each action.
    pub normalized: Vec<f64>,
    /// e_φ, before normalization.
    pub sequence_score: f64,
    /// r̃: interpolated, clipped, less the KL term.
    pub token_rewards: Vec<f64>,
    /// A, whitened over the batch.
    pub advantages: Vec<f64>,
    /// A + V, with A before whitening: the critic's target.
    pub returns: Vec<f64>,
}

/// The frozen and the current models, and how rewards become advantages.
pub struct Sampler<'a> {
    /// The policy, without autodiff.
    pub policy: &'a CausalLm,
    /// Its shape.
    pub config: &'a ModelConfig,
    /// The critic, without autodiff.
    pub critic: &'a ScalarModel,
    /// Reference and reward model.
    pub scorer: &'a Scorer,
    /// E5.
    pub normalizer: &'a Normalizer,
    /// E6 to E8.
    pub settings: &'a PpoSettings,
    /// E6: how an action's reward spreads over its tokens.
    pub interpolation: Interpolation,
    /// β now.
    pub kl_coefficient: f64,
    /// How tokens are drawn.
    pub generation: Generation<'a>,
    /// Asks for an end before the next forward pass.
    pub stop: &'a Stop,
}

impl Sampler<'_> {
    /// Samples a response to each prompt and computes its rewards and advantages; `step` is what errors
    /// name.
    ///
    /// # Errors
    ///
    /// [`Error::Segmentation`], [`Error::NonFinite`] and [`Error::Interrupted`].
    pub fn roll_out(
        &self,
        prompts: &[&[u32]],
        streams: Vec<Stream>,
        step: usize,
    ) -> Result<Vec<Rollout>, Error> {
        let rows_at_once = self.settings.rows_at_once;
        let stop = self.stop;
        let responses =
            generate(self.policy, self.config, prompts, self.generation, streams, stop)?;
        let rows: Vec<(&[u32], &[u32])> = prompts
            .iter()
            .zip(&responses)
            .map(|(&prompt, response)| (prompt, &response[..]))
            .collect();
        let views = view_tokens(self.policy, &rows, rows_at_once, stop)?;
        let values = read_scalars(self.critic, &rows, ReadAt::State, rows_at_once, stop)?;
        let scored = self.scorer.score(&rows, step)?;
        let mut rollouts: Vec<Rollout> = Vec::with_capacity(rows.len());
        for (((row, view), values), scored) in rows.iter().zip(views).zip(values).zip(scored) {
            let mut normalized = self.normalizer.normalize_all(&scored.rewards);
            if self.settings.length_neutral {
                normalized = length_neutral(&normalized);
            }
            let dense = interpolate(self.interpolation, &normalized, &scored.segments, row.1.len());
            let token_rewards = token_rewards(
                &dense,
                &wide(&view.log_probs),
                &wide(&scored.reference.log_probs),
                self.kl_coefficient,
            );
            let PpoSettings { gamma, lambda, .. } = *self.settings;
            let estimate = gae(&token_rewards, &wide(&values), gamma, lambda);
            rollouts.push(Rollout {
                prompt: row.0.to_vec(),
                response: row.1.to_vec(),
                log_probs: view.log_probs,
                entropies: view.entropies,
                ref_log_probs: scored.reference.log_probs,
                values,
                segments: scored.segments,
                rewards: scored.rewards,
                normalized,
                sequence_score: scored.sequence_score,
                token_rewards,
                advantages: estimate.advantages,
                returns: estimate.returns,
            });
        }
        let mut advantages: Vec<Vec<f64>> =
            rollouts.iter_mut().map(|rollout| std::mem::take(&mut rollout.advantages)).collect();
        whiten(&mut advantages);
        for (rollout, advantages) in rollouts.iter_mut().zip(advantages) {
            rollout.advantages = advantages;
        }
        Ok(rollouts)
    }
}

/// f32 of the device as f64 of the host.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&value| f64::from(value)).collect()
}

/// The fields of an iteration's metrics that rollouts alone decide; the rest are 0.
pub fn metrics_of(
    iteration: usize,
    rollouts: &[Rollout],
    stops: &[u32],
    kl_coefficient: f64,
) -> IterationMetrics {
    let per_response = |f: &dyn Fn(&Rollout) -> f64| mean(rollouts.iter().map(f));
    let tokens = |f: fn(&Rollout) -> Vec<f64>| rollouts.iter().flat_map(f).collect::<Vec<_>>();
    let kl = |of: fn(f64, f64) -> f64| {
        per_response(&|r| {
            let pairs = r.log_probs.iter().zip(&r.ref_log_probs);
            pairs.map(|(&l, &reference)| of(f64::from(l), f64::from(reference))).sum()
        })
    };
    let (returns, advantages) = (tokens(|r| r.returns.clone()), tokens(|r| r.advantages.clone()));
    // The advantages before whitening: what the critic did not foresee.
    let residuals =
        tokens(|r| r.returns.iter().zip(&r.values).map(|(a, &v)| a - f64::from(v)).collect());
    let segment = |r: &Rollout| r.segments.iter().map(ExactSizeIterator::len).collect::<Vec<_>>();
    IterationMetrics {
        iteration,
        sequence_score: per_response(&|r| r.sequence_score),
        reward: per_response(&|r| r.normalized.iter().sum()),
        token_reward: per_response(&|r| r.token_rewards.iter().sum()),
        kl_k1: kl(k1),
        kl_k3: kl(k3),
        kl_coefficient,
        return_mean: mean(returns.iter().copied()),
        return_std: variance(&returns).sqrt(),
        advantage_spread: variance(&residuals).sqrt(),
        advantage_mean: mean(advantages.iter().copied()),
        advantage_std: variance(&advantages).sqrt(),
        advantage_max: advantages.iter().fold(0.0, |max, a| a.abs().max(max)),
        explained_variance: (variance(&returns) > 0.0)
            .then(|| 1.0 - variance(&residuals) / variance(&returns)),
        entropy: mean(tokens(|r| wide(&r.entropies)).into_iter()),
        response_tokens: per_response(&|r| r.response.len() as f64),
        segments: per_response(&|r| r.segments.len() as f64),
        segment_tokens: mean(rollouts.iter().flat_map(segment).map(|len| len as f64)),
        eos_rate: per_response(&|r| {
            f64::from(r.response.last().is_some_and(|token| stops.contains(token)))
        }),
        ..IterationMetrics::default()
    }
}

/// Fills in the fields that compare rollouts with the truth of each.
pub fn compare_with_truth(line: &mut IterationMetrics, rollouts: &[Rollout], truth: &[Gold]) {
    let advantages = rollouts.iter().flat_map(|r| &r.advantages).copied().collect::<Vec<_>>();
    let credits = truth.iter().flat_map(|gold| &gold.credits).copied().collect::<Vec<_>>();
    let credit = credit_assignment(&advantages, &credits);
    line.gold = Some(mean(truth.iter().map(Gold::reward)));
    line.cause_advantage_share = credit.advantage_share;
    line.cause_token_share = credit.token_share;
    line.credit_correlation = credit.correlation;
}
