//! E2 and E3: the reward of a segment, and the score of a response.
//!
//! The reward model's linear head gives a score to every token; a segment's reward is the score of
//! its last token, and a response's score is f of its segments' rewards:
//!
//! ```text
//! E2   r_φ(s_t, a_t) = head(hidden state at the last token of a_t)
//! E3   e_φ(x, y)     = f(r_φ(s_0, a_0), …, r_φ(s_{T-1}, a_{T-1})),   f = the average
//! ```

use std::ops::Range;

use burn::tensor::{Tensor, assert_shape};
use serde::{Deserialize, Serialize};

/// f of E3: how segment rewards make one score.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Their mean: the paper's choice.
    #[default]
    Average,
    /// Their sum.
    Sum,
    /// The last one alone.
    Last,
}

/// E2: the reward at the last token of each segment.
///
/// # Panics
///
/// Where a segment is empty or reaches past the scores.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::segment_reward::segment_rewards;
/// assert_eq!(segment_rewards(&[1.0, 2.0, 3.0, 4.0], &[0..1, 1..3]), [1.0, 3.0]);
/// ```
pub fn segment_rewards(token_scores: &[f32], segments: &[Range<usize>]) -> Vec<f64> {
    segments.iter().map(|segment| f64::from(token_scores[last_token(segment)])).collect()
}

fn last_token(segment: &Range<usize>) -> usize {
    assert!(!segment.is_empty(), "a segment holds a token");
    segment.end - 1
}

/// E3 on the host: f of the segment rewards r_t, t = 0 … T-1.
///
/// # Panics
///
/// Without rewards: segmentation gives at least one segment.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::segment_reward::{aggregate, Aggregation};
/// assert_eq!(aggregate(&[1.0, 2.0, 6.0], Aggregation::Average), 3.0);
/// assert_eq!(aggregate(&[1.0, 2.0, 6.0], Aggregation::Sum), 9.0);
/// assert_eq!(aggregate(&[1.0, 2.0, 6.0], Aggregation::Last), 6.0);
/// ```
pub fn aggregate(rewards: &[f64], aggregation: Aggregation) -> f64 {
    let last = *rewards.last().expect("a response has at least one segment");
    match aggregation {
        Aggregation::Average => rewards.iter().sum::<f64>() / rewards.len() as f64,
        Aggregation::Sum => rewards.iter().sum(),
        Aggregation::Last => last,
    }
}

/// The weights that turn per-token scores into a response's score: `e_φ = Σ_i weight_i · score_i`.
///
/// f's weight at the last token of each segment, 0 at the other of `len` tokens.
///
/// # Panics
///
/// Where a segment is empty or reaches past `len`.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::segment_reward::{aggregation_weights, Aggregation};
/// assert_eq!(aggregation_weights(&[0..1, 1..3], 4, Aggregation::Average), [0.5, 0.0, 0.5, 0.0]);
/// assert_eq!(aggregation_weights(&[0..1, 1..3], 4, Aggregation::Last), [0.0, 0.0, 1.0, 0.0]);
/// ```
pub fn aggregation_weights(
    segments: &[Range<usize>],
    len: usize,
    aggregation: Aggregation,
) -> Vec<f32> {
    let mut weights = vec![0.0; len];
    for (t, segment) in segments.iter().enumerate() {
        weights[last_token(segment)] = match aggregation {
            Aggregation::Average => 1.0 / segments.len() as f32,
            Aggregation::Sum => 1.0,
            Aggregation::Last => f32::from(t + 1 == segments.len()),
        };
    }
    weights
}

/// E3 for a batch: `e_φ = Σ_i weight_i · score_i` of each row.
///
/// A score of weight 0 is never read, so that NaN in padding reaches neither value nor gradient.
///
/// # Shapes
///
/// `[B, T], [B, T] -> [B]`; the weights are those of [`aggregation_weights`], 0 in padding.
///
/// # Panics
///
/// Where the shapes differ.
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// use segment_rlhf::equations::segment_reward::sequence_scores;
/// let row = |x: [f32; 4]| Tensor::<2>::from_floats([x], &Device::flex());
/// // Two segments that end at tokens 0 and 2; the last column is padding.
/// let score = sequence_scores(row([1.0, 9.0, 3.0, f32::NAN]), row([0.5, 0.0, 0.5, 0.0]));
/// assert_eq!(score.into_scalar::<f32>(), 2.0);
/// ```
pub fn sequence_scores(token_scores: Tensor<2>, weights: Tensor<2>) -> Tensor<1> {
    let [batch, tokens] = token_scores.dims();
    assert_shape!(weights, [batch, tokens]);
    let unread = weights.clone().equal_elem(0.0);
    (token_scores.mask_fill(unread, 0.0) * weights).sum_dim(1).squeeze_dim(1)
}
