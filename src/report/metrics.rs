//! What PPO logs of each iteration: the fields' docs are the glossary of `metrics.jsonl`.

use serde::{Deserialize, Serialize};

use crate::kl::{k1, k3};
use crate::stage::rollout::{Rollout, wide};

/// One line of `metrics.jsonl`. Means are over responses unless a field says otherwise; sums over a
/// response's tokens are in nats or units of reward a response.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IterationMetrics {
    /// Iteration, from 0.
    pub iteration: usize,
    /// Gold reward, where the truth is known (embedded task).
    pub gold: Option<f64>,
    /// e_φ: the reward model's sequence score, before normalization.
    pub sequence_score: f64,
    /// Σ r̂ over the response's segments: normalized rewards before interpolation, clip and KL.
    pub reward: f64,
    /// Σ r̃ over the response's tokens: the return that PPO maximises (γ = 1).
    pub token_reward: f64,
    /// Σ (ln π_θ - ln π_SFT): the k1 estimate of the KL from the reference, nats a response.
    pub kl_k1: f64,
    /// Σ (e^{-d} - 1 + d), d = ln π_θ - ln π_SFT: the k3 estimate, never negative, nats a response.
    pub kl_k3: f64,
    /// β in force.
    pub kl_coefficient: f64,
    /// A + V of a token, mean over tokens.
    pub return_mean: f64,
    /// Its standard deviation over tokens.
    pub return_std: f64,
    /// Mean whitened advantage of a token; 0 but for rounding.
    pub advantage_mean: f64,
    /// Its standard deviation; 1 but for rounding.
    pub advantage_std: f64,
    /// The largest |whitened advantage|.
    pub advantage_max: f64,
    /// Share of tokens whose policy loss was clipped, mean over optimizer steps.
    pub clip_fraction: f64,
    /// π_θ / π_old, mean over optimizer steps; 1 in the first.
    pub ratio: f64,
    /// Policy loss (E9), mean over optimizer steps.
    pub policy_loss: f64,
    /// Value loss (E10), mean over optimizer steps.
    pub value_loss: f64,
    /// 1 - Var(return - value) / Var(return) over tokens, for the critic before its update.
    pub explained_variance: f64,
    /// Entropy of the policy at a response token, nats, mean over tokens.
    pub entropy: f64,
    /// Tokens of a response, EOS included.
    pub response_tokens: f64,
    /// Segments (actions) of a response.
    pub segments: f64,
    /// Tokens of a segment, mean over segments.
    pub segment_tokens: f64,
    /// Share of responses that ended in EOS.
    pub eos_rate: f64,
    /// Global norm of the policy's gradient before the clip, mean over optimizer steps.
    pub actor_gradient_norm: f64,
    /// Global norm of the critic's gradient before the clip, mean over optimizer steps.
    pub critic_gradient_norm: f64,
    /// Learning rate of the policy's last step.
    pub actor_learning_rate: f64,
    /// Learning rate of the critic's last step.
    pub critic_learning_rate: f64,
}

/// One line of `timings.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IterationTimings {
    /// Iteration, from 0.
    pub iteration: usize,
    /// Seconds of the rollout: sampling, reference, reward model, critic.
    pub rollout_seconds: f64,
    /// Seconds of the update of policy and critic.
    pub update_seconds: f64,
    /// Response tokens sampled and scored a second.
    pub rollout_tokens_per_second: f64,
    /// Tokens (prompts included) trained on a second, policy and critic together.
    pub update_tokens_per_second: f64,
}

impl IterationMetrics {
    /// The fields that rollouts alone decide; the rest are 0.
    pub fn of_rollouts(
        iteration: usize,
        rollouts: &[Rollout],
        eos: u32,
        kl_coefficient: f64,
    ) -> Self {
        let per_response = |f: &dyn Fn(&Rollout) -> f64| mean(rollouts.iter().map(f));
        let tokens = |f: fn(&Rollout) -> Vec<f64>| rollouts.iter().flat_map(f).collect::<Vec<_>>();
        let kl = |of: fn(f64, f64) -> f64| {
            per_response(&|r| {
                let pairs = r.log_probs.iter().zip(&r.ref_log_probs);
                pairs.map(|(&l, &reference)| of(f64::from(l), f64::from(reference))).sum()
            })
        };
        let (returns, advantages) =
            (tokens(|r| r.returns.clone()), tokens(|r| r.advantages.clone()));
        let residuals =
            tokens(|r| r.returns.iter().zip(&r.values).map(|(a, &v)| a - f64::from(v)).collect());
        let segment =
            |r: &Rollout| r.segments.iter().map(ExactSizeIterator::len).collect::<Vec<_>>();
        Self {
            iteration,
            sequence_score: per_response(&|r| r.sequence_score),
            reward: per_response(&|r| r.normalized.iter().sum()),
            token_reward: per_response(&|r| r.token_rewards.iter().sum()),
            kl_k1: kl(k1),
            kl_k3: kl(k3),
            kl_coefficient,
            return_mean: mean(returns.iter().copied()),
            return_std: variance(&returns).sqrt(),
            advantage_mean: mean(advantages.iter().copied()),
            advantage_std: variance(&advantages).sqrt(),
            advantage_max: advantages.iter().fold(0.0, |max, a| a.abs().max(max)),
            explained_variance: 1.0 - variance(&residuals) / variance(&returns),
            entropy: mean(tokens(|r| wide(&r.entropies)).into_iter()),
            response_tokens: per_response(&|r| r.response.len() as f64),
            segments: per_response(&|r| r.segments.len() as f64),
            segment_tokens: mean(rollouts.iter().flat_map(segment).map(|len| len as f64)),
            eos_rate: per_response(&|r| f64::from(r.response.last() == Some(&eos))),
            ..Self::default()
        }
    }
}

/// The mean; 0 of nothing.
pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    sum / count.max(1) as f64
}

/// The biased variance; 0 of nothing.
pub fn variance(values: &[f64]) -> f64 {
    let center = mean(values.iter().copied());
    mean(values.iter().map(|value| (value - center).powi(2)))
}

/// The standard error of the mean: √(unbiased variance / n); nothing for fewer than two values.
///
/// # Examples
///
/// ```
/// use segment_rlhf::report::metrics::standard_error;
/// assert_eq!(standard_error(&[1.0, 3.0]), Some(1.0)); // √(2 / 2)
/// assert_eq!(standard_error(&[1.0]), None);
/// ```
pub fn standard_error(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    (values.len() > 1).then(|| (variance(values) / (n - 1.0)).sqrt())
}
