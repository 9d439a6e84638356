//! DPO over tokens with weights: labels of segments, or masks of 0 and 1.
//!
//! ```text
//! L = -E ln σ(β [Σ_t w_t d_t of the first response - Σ_t w_t d_t of the second]),   d = ln π_θ - ln π_ref
//! ```
//!
//! With weights of 1 it is DPO of the first response against the second, label smoothing as there. In segment-DPO the two responses are cut into
//! as many segments, and a pair of segments has one label: +1 where the first response's is better, -1 where the
//! second's is, 0 for a tie.

use std::ops::Range;

use burn::tensor::{Bool, Tensor, assert_shape};

use super::bt_loss::DpoLoss;

/// The weight of each of a response's tokens: its segment's label; 0 for tokens in none.
///
/// # Panics
///
/// Where the labels are not as many as the segments, or a segment reaches past the response.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::weighted_dpo::token_weights;
/// assert_eq!(token_weights(&[0..2, 2..3], &[1, -1], 4), [1.0, 1.0, -1.0, 0.0]);
/// ```
pub fn token_weights(segments: &[Range<usize>], labels: &[i8], tokens: usize) -> Vec<f32> {
    assert_eq!(segments.len(), labels.len(), "a label for each segment");
    let mut weights = vec![0.0; tokens];
    for (segment, &label) in segments.iter().zip(labels) {
        weights[segment.clone()].fill(f32::from(label));
    }
    weights
}

/// The loss, averaged over P pairs, in nats, with the rewards `β Σ_t w_t d_t` of both responses of each; label smoothing
/// in [0, 0.5).
///
/// # Shapes
///
/// `[2P, T]` each, the first responses of all pairs, then the second ones: log-probabilities under the policy and under
/// the reference, nats, and weights. The mask is true at response tokens; the others are never read. `-> [1]`, and
/// rewards `[P]`.
///
/// # Panics
///
/// Where the shapes differ.
///
/// # Source
///
/// Rafailov et al. 2023 (arXiv 2305.18290); with labels the text analogue of DenseDPO (Wu et al. 2025, arXiv
/// 2506.03517).
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Bool, Device, Tensor};
/// # let device = Device::flex();
/// use segment_rlhf::equations::weighted_dpo::weighted_dpo_loss;
/// let rows = |x: [[f32; 2]; 2]| Tensor::<2>::from_floats(x, &device);
/// // Log-ratios of 1 and 2 in the first response, of 3 and 0 in the second; the second segments tie.
/// let policy = rows([[-1.0, -1.0], [-1.0, -1.0]]);
/// let reference = rows([[-2.0, -3.0], [-4.0, -1.0]]);
/// let weights = rows([[1.0, 0.0], [1.0, 0.0]]);
/// let mask = Tensor::<2, Bool>::from_data([[true, true], [true, true]], &device);
/// let dpo = weighted_dpo_loss([policy, reference, weights], mask, 0.5, 0.0);
/// assert_eq!(dpo.rejected_rewards.into_scalar::<f32>(), 1.5);
/// let loss = dpo.loss.into_scalar::<f32>();
/// assert!((loss - 1f32.exp().ln_1p()).abs() < 1e-6); // -ln σ(0.5 · (1 - 3))
/// ```
pub fn weighted_dpo_loss(
    [log_probs, ref_log_probs, weights]: [Tensor<2>; 3],
    mask: Tensor<2, Bool>,
    beta: f64,
    label_smoothing: f64,
) -> DpoLoss {
    let [rows, tokens] = log_probs.dims();
    assert_shape!(ref_log_probs, [rows, tokens]);
    assert_shape!(weights, [rows, tokens]);
    assert_shape!(mask, [rows, tokens]);
    assert!(rows.is_multiple_of(2), "a second response for each first one, not {rows} rows");
    let padding = mask.bool_not();
    let read = |x: Tensor<2>| x.mask_fill(padding.clone(), 0.0);
    let log_ratios = read(log_probs) - read(ref_log_probs);
    let rewards: Tensor<1> =
        (log_ratios * read(weights)).sum_dim(1).squeeze_dim::<1>(1).mul_scalar(beta);
    let pairs = rows / 2;
    let both = [rewards.clone().narrow(0, 0, pairs), rewards.narrow(0, pairs, pairs)];
    DpoLoss::of(both, label_smoothing)
}
