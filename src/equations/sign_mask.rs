//! Masks by the sign of local rewards: a token counts where its reward agrees with the verdict on its response.
//!
//! ```text
//! chosen     m = 1[ρ > b],   rejected  m = 1[ρ < b]
//! A ≥ b      m = 1[V > b],   A < b     m = 1[V < b]
//! ```
//!
//! Of tokens, or of segments by their mean reward. A reconstruction: the paper (arXiv 2411.00809) has no code, and what
//! a segment is we had to choose.

use std::ops::Range;

use crate::statistics::mean;

/// Which side of b agrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A chosen response: rewards above b agree.
    Chosen,
    /// A rejected response: rewards below b agree.
    Rejected,
}

impl Verdict {
    fn agrees(self, reward: f64, b: f64) -> bool {
        match self {
            Self::Chosen => reward > b,
            Self::Rejected => reward < b,
        }
    }
}

/// Where token rewards change: a segment starts at a jump of more than `jump`, and, with `flips`, where the sign
/// changes. None for a response without tokens.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::sign_mask::reward_segments;
/// let rewards = [0.5, 0.75, -0.25, -2.0];
/// assert_eq!(reward_segments(&rewards, 1.5, false), [0..3, 3..4]);
/// assert_eq!(reward_segments(&rewards, 1.5, true), [0..2, 2..3, 3..4]);
/// ```
pub fn reward_segments(rewards: &[f64], jump: f64, flips: bool) -> Vec<Range<usize>> {
    if rewards.is_empty() {
        return Vec::new();
    }
    let starts = |&t: &usize| {
        let (before, now) = (rewards[t - 1], rewards[t]);
        (now - before).abs() > jump || (flips && (now > 0.0) != (before > 0.0))
    };
    let mut start = 0;
    let ends = (1..rewards.len()).filter(starts).chain([rewards.len()]);
    ends.map(|end| std::mem::replace(&mut start, end)..end).collect()
}

/// The tokens whose segment agrees, by its mean reward. Where none does, all count.
///
/// With every token a segment of its own it is the mask over tokens.
///
/// # Panics
///
/// Where a segment reaches past the rewards.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::sign_mask::{Verdict, sign_mask};
/// let rewards = [0.5, 0.75, -0.25];
/// assert_eq!(sign_mask(&rewards, &[0..2, 2..3], 0.0, Verdict::Chosen), [true, true, false]);
/// assert_eq!(sign_mask(&rewards, &[0..3], 0.0, Verdict::Rejected), [true; 3]); // none agrees
/// ```
pub fn sign_mask(
    rewards: &[f64],
    segments: &[Range<usize>],
    b: f64,
    verdict: Verdict,
) -> Vec<bool> {
    let mut mask = vec![false; rewards.len()];
    for segment in segments {
        let reward = mean(rewards[segment.clone()].iter().copied());
        mask[segment.clone()].fill(verdict.agrees(reward, b));
    }
    all_if_none(mask)
}

/// The tokens whose value agrees with their advantage. Where none does, all count.
///
/// # Panics
///
/// Where the values are not as many as the advantages.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::sign_mask::advantage_mask;
/// assert_eq!(advantage_mask(&[1.0, 1.0, -1.0], &[0.5, -0.5, -0.5], 0.0), [true, false, true]);
/// ```
pub fn advantage_mask(advantages: &[f64], values: &[f64], b: f64) -> Vec<bool> {
    assert_eq!(advantages.len(), values.len(), "a value for each advantage");
    let agrees = |(&advantage, &value): (&f64, &f64)| {
        let verdict = if advantage >= b { Verdict::Chosen } else { Verdict::Rejected };
        verdict.agrees(value, b)
    };
    all_if_none(advantages.iter().zip(values).map(agrees).collect())
}

fn all_if_none(mask: Vec<bool>) -> Vec<bool> {
    if mask.contains(&true) { mask } else { vec![true; mask.len()] }
}
