//! What an iteration logs of its samples.

use crate::data::diagnostics::credit_assignment;
use crate::data::letters::Gold;
use crate::equations::kl::{k1, k3};
use crate::run::metrics::IterationMetrics;
use crate::statistics::{mean, variance};
use crate::systems::Sample;

/// The fields of an iteration's metrics that samples alone decide; the rest are 0.
pub(super) fn metrics_of(
    iteration: usize,
    samples: &[Sample],
    stops: &[u32],
    kl_coefficient: f64,
) -> IterationMetrics {
    let per_response = |f: &dyn Fn(&Sample) -> f64| mean(samples.iter().map(f));
    let tokens = |f: fn(&Sample) -> Vec<f64>| samples.iter().flat_map(f).collect::<Vec<_>>();
    let kl = |of: fn(f64, f64) -> f64| {
        per_response(&|s| {
            let pairs = s.log_probs.iter().zip(&s.ref_log_probs);
            pairs.map(|(&l, &reference)| of(f64::from(l), f64::from(reference))).sum()
        })
    };
    let advantages = tokens(|s| s.advantages.clone());
    let returns = tokens(|s| s.returns.clone().unwrap_or_default());
    // The advantages before whitening: with a critic what it did not foresee.
    let residuals = tokens(|s| match (&s.returns, &s.values) {
        (Some(returns), Some(values)) => {
            returns.iter().zip(values).map(|(a, &v)| a - f64::from(v)).collect()
        }
        _ => s.advantages.clone(),
    });
    let critic = |value: f64| (!returns.is_empty()).then_some(value);
    let lengths = |s: &Sample| s.segments.iter().map(ExactSizeIterator::len).collect::<Vec<_>>();
    IterationMetrics {
        iteration,
        sequence_score: per_response(&|s| s.sequence_score),
        reward: per_response(&|s| s.normalized.iter().sum()),
        token_reward: per_response(&|s| s.token_rewards.iter().sum()),
        kl_k1: kl(k1),
        kl_k3: kl(k3),
        kl_coefficient,
        return_mean: critic(mean(returns.iter().copied())),
        return_std: critic(variance(&returns).sqrt()),
        advantage_spread: variance(&residuals).sqrt(),
        advantage_mean: mean(advantages.iter().copied()),
        advantage_std: variance(&advantages).sqrt(),
        advantage_max: advantages.iter().fold(0.0, |max, a| a.abs().max(max)),
        explained_variance: (!returns.is_empty() && variance(&returns) > 0.0)
            .then(|| 1.0 - variance(&residuals) / variance(&returns)),
        entropy: mean(tokens(|s| s.entropies.iter().map(|&h| f64::from(h)).collect()).into_iter()),
        response_tokens: per_response(&|s| s.response.len() as f64),
        segments: per_response(&|s| s.segments.len() as f64),
        segment_tokens: mean(samples.iter().flat_map(lengths).map(|len| len as f64)),
        eos_rate: per_response(&|s| {
            f64::from(s.response.last().is_some_and(|token| stops.contains(token)))
        }),
        ..IterationMetrics::default()
    }
}

/// Fills in the fields that compare samples with the truth of each.
pub(super) fn compare_with_truth(line: &mut IterationMetrics, samples: &[Sample], truth: &[Gold]) {
    let advantages = samples.iter().flat_map(|s| &s.advantages).copied().collect::<Vec<_>>();
    let credits = truth.iter().flat_map(|gold| &gold.credits).copied().collect::<Vec<_>>();
    let credit = credit_assignment(&advantages, &credits);
    line.gold = Some(mean(truth.iter().map(Gold::reward)));
    line.cause_advantage_share = credit.advantage_share;
    line.cause_token_share = credit.token_share;
    line.credit_correlation = credit.correlation;
}
