//! The clipped loss over the tokens that the policy was unsure of, and the whitening that goes with it.
//!
//! ```text
//! M_t = 1[π_old(y_t|·) < ρ]
//! L   = -(1/Z) Σ M min(r A, clip(r, 1-ε, 1+ε) A) + β mean over rows of Σ M (e^d - d - 1),   Z = Σ M
//! ```
//!
//! `ln r` and `d = ln π_ref - ln π_θ` are held within ±10.

use burn::tensor::{Bool, Tensor, assert_shape};

use super::clip_k3::k3_of;
use super::ppo::{ClippedTerms, PolicyLoss};
use crate::statistics::mean;

/// Added to the variance of masked advantages.
pub const MASKED_WHITENING_EPSILON: f64 = 1e-8;
/// The largest |ln r| and |d|, nats.
pub const LOG_RATIO_CLAMP: f64 = 10.0;
/// A batch whose mean ratio is above this teaches nothing.
pub const LARGEST_MEAN_RATIO: f64 = 10.0;

/// Whether the policy was unsure of each token when it was drawn: less probable than `threshold`.
///
/// # Source
///
/// Guo et al. 2025 (arXiv 2505.23564): ρ = 0.9.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::masked_clip::unsure;
/// assert_eq!(unsure(&[0.95f64.ln(), 0.5f64.ln()], 0.9), [false, true]);
/// ```
pub fn unsure(old_log_probs: &[f64], threshold: f64) -> Vec<bool> {
    old_log_probs.iter().map(|log_prob| log_prob.exp() < threshold).collect()
}

/// Whitens the advantages of all rows together by the masked ones: `(A - mean) / √(var + 1e-8)`, the unbiased variance.
/// The others become 0, and so does a masked advantage without a second one.
///
/// # Panics
///
/// Where a mask is not as long as its row.
///
/// # Source
///
/// The official code of Guo et al. 2025, which gives NaN for one masked token, and whitens over all tokens where none is
/// masked.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::masked_clip::whiten_masked;
/// let mut rows = vec![vec![1.0, 9.0, 3.0]];
/// whiten_masked(&mut rows, &[vec![true, false, true]]); // mean 2, unbiased variance 2
/// assert!((rows[0][2] - 0.5f64.sqrt()).abs() < 1e-8 && rows[0][1] == 0.0);
/// ```
pub fn whiten_masked(advantages: &mut [Vec<f64>], mask: &[Vec<bool>]) {
    assert_eq!(advantages.len(), mask.len(), "a mask for each row");
    let mut masked = Vec::new();
    for (row, mask) in advantages.iter().zip(mask) {
        assert_eq!(row.len(), mask.len(), "a mask for each token");
        masked.extend(row.iter().zip(mask).filter(|(_, unsure)| **unsure).map(|(a, _)| *a));
    }
    let center = mean(masked.iter().copied());
    let squares: f64 = masked.iter().map(|a| (a - center).powi(2)).sum();
    let others = masked.len().saturating_sub(1).max(1) as f64;
    let scale = (squares / others + MASKED_WHITENING_EPSILON).sqrt();
    for (row, mask) in advantages.iter_mut().zip(mask) {
        for (advantage, &unsure) in row.iter_mut().zip(mask) {
            *advantage = if unsure { (*advantage - center) / scale } else { 0.0 };
        }
    }
}

/// The clipped loss over masked tokens with β times the k3 penalty; 0 where no token is masked, or where the mean ratio
/// is above 10. Z is `count`: for some rows of a larger batch its masked tokens times their share of the rows, so that the
/// losses weighted by those shares sum to the loss of the whole; without it, the masked tokens.
///
/// # Shapes
///
/// `[B, T]` each: log-probabilities under the policy, when the tokens were drawn and under the reference, nats, then
/// advantages. Where the mask is false nothing is read.
///
/// # Panics
///
/// Where the shapes differ.
///
/// # Source
///
/// Guo et al. 2025 (arXiv 2505.23564); bounds and the rejected batch are the official code's.
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Bool, Device, Tensor};
/// # let device = Device::flex();
/// use segment_rlhf::equations::masked_clip::masked_clip_loss;
/// let row = |x: [f32; 2]| Tensor::<2>::from_floats([x.map(f32::ln)], &device);
/// let (new, old) = (row([0.5, 0.9]), row([0.25, 0.95])); // a ratio of 2, and one that is masked out
/// let advantages = Tensor::<2>::from_floats([[1.0, 1.0]], &device);
/// let mask = Tensor::<2, Bool>::from_data([[true, false]], &device);
/// let loss = masked_clip_loss([new.clone(), old, new, advantages], mask, 0.2, 1e-4, None).loss;
/// assert!((loss.into_scalar::<f32>() + 1.2).abs() < 1e-6);
/// ```
pub fn masked_clip_loss(
    [log_probs, old_log_probs, ref_log_probs, advantages]: [Tensor<2>; 4],
    mask: Tensor<2, Bool>,
    clip: f64,
    beta: f64,
    count: Option<f64>,
) -> PolicyLoss {
    let [batch, tokens] = log_probs.dims();
    assert_shape!(old_log_probs, [batch, tokens]);
    assert_shape!(ref_log_probs, [batch, tokens]);
    assert_shape!(advantages, [batch, tokens]);
    assert_shape!(mask, [batch, tokens]);
    let others = mask.clone().bool_not();
    let read = |x: Tensor<2>| x.mask_fill(others.clone(), 0.0);
    let clamp = |x: Tensor<2>| x.clamp(-LOG_RATIO_CLAMP, LOG_RATIO_CLAMP);
    let log_probs = read(log_probs);
    let penalty = k3_of(clamp(read(ref_log_probs) - log_probs.clone()));
    let penalty = read(penalty).sum_dim(1).mean().mul_scalar(beta);

    let log_ratio = clamp(log_probs - read(old_log_probs));
    let origin = log_ratio.zeros_like();
    let terms = ClippedTerms::of(log_ratio, origin.clone(), read(advantages), &mask, clip);
    let masked = read(origin.ones_like()).sum().clamp_min(1.0); // [1]
    let mean_ratio = read(terms.ratio.clone().detach()).sum() / masked.clone();
    let over_masked = |x: Tensor<2>| match count {
        Some(count) => read(x).sum().div_scalar(if count > 0.0 { count } else { 1.0 }),
        None => read(x).sum() / masked.clone(),
    };
    let loss = over_masked(terms.terms).neg() + penalty;
    let rejected = mean_ratio.greater_elem(LARGEST_MEAN_RATIO);
    PolicyLoss {
        loss: loss.mask_fill(rejected, 0.0),
        clip_fraction: over_masked(terms.clipped),
        ratio: over_masked(terms.ratio.detach()),
    }
}
