//! E6: a segment's normalized reward, handed to its tokens.
//!
//! ```text
//! r̂_t / |a_t| for every token of a_t      (even split: the sum over the segment is r̂_t)
//! ```

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How a segment's reward reaches its tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// `r̂_t / |a_t|` on every token: the paper's choice.
    #[default]
    EvenSplit,
    /// `r̂_t` on every token.
    Repeat,
    /// `r̂_t` on the last token, 0 on the others: "none" in the paper and the official code.
    #[serde(alias = "none")]
    LastToken,
}

/// E6: the reward of each of `len` response tokens, before the clamp of E7.
///
/// A token in no segment (an end of sequence that was left out) gets 0.
///
/// # Panics
///
/// Unless there is one reward a segment, and `len` covers the segments.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::interpolation::{interpolate, Interpolation::*};
/// let (rewards, segments) = ([6.0, 1.0], [0..3, 3..4]);
/// assert_eq!(interpolate(EvenSplit, &rewards, &segments, 5), [2.0, 2.0, 2.0, 1.0, 0.0]);
/// assert_eq!(interpolate(Repeat, &rewards, &segments, 5), [6.0, 6.0, 6.0, 1.0, 0.0]);
/// assert_eq!(interpolate(LastToken, &rewards, &segments, 5), [0.0, 0.0, 6.0, 1.0, 0.0]);
/// ```
pub fn interpolate(
    strategy: Interpolation,
    rewards: &[f64],
    segments: &[Range<usize>],
    len: usize,
) -> Vec<f64> {
    assert_eq!(rewards.len(), segments.len(), "one reward a segment");
    let mut token_rewards = vec![0.0; len];
    for (&reward, segment) in rewards.iter().zip(segments) {
        match strategy {
            Interpolation::EvenSplit => {
                token_rewards[segment.clone()].fill(reward / segment.len() as f64)
            }
            Interpolation::Repeat => token_rewards[segment.clone()].fill(reward),
            Interpolation::LastToken => token_rewards[segment.end - 1] = reward,
        }
    }
    token_rewards
}
