//! DRLC: rewards of spans that an annotator marks, beside the reward of the whole response.
//!
//! ```text
//! r_t = 1[t = T] r_ex + v⁺ 1[t in S⁺] + v⁻ 1[t in S⁻],   S⁺ and S⁻ empty where r_ex > θ
//! ```

use std::ops::Range;

/// A span of response tokens, and what it is marked as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its tokens.
    pub tokens: Range<usize>,
    /// 1 for a good span, -1 for a bad one, 0 for neither.
    pub label: i8,
}

/// What a token of a marked span earns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SpanValues {
    /// v⁺, of a good span.
    pub positive: f64,
    /// v⁻, of a bad span.
    pub negative: f64,
}

/// Whether the annotator is asked about a response of this extrinsic reward.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::span_reward::asks;
/// assert!(asks(0.5, 0.5) && !asks(0.6, 0.5));
/// ```
pub fn asks(extrinsic: f64, threshold: f64) -> bool {
    extrinsic <= threshold
}

/// The reward of each token, given its extrinsic reward: r_ex for the last one, 0 for the others.
///
/// A token in a good and in a bad span earns both values.
///
/// # Panics
///
/// Where a span is empty or reaches past the response, a label is not -1, 0 or 1, or spans of one label overlap.
///
/// # Source
///
/// Cao et al. 2024 (arXiv 2401.07382), section 3.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::span_reward::{Span, SpanValues, span_rewards};
/// let values = SpanValues { positive: 0.5, negative: -0.25 };
/// let spans = [Span { tokens: 0..2, label: 1 }, Span { tokens: 3..4, label: -1 }];
/// assert_eq!(span_rewards(&[0.0, 0.0, 0.0, 2.0], &spans, values), [0.5, 0.5, 0.0, 1.75]);
/// ```
pub fn span_rewards(extrinsic: &[f64], spans: &[Span], values: SpanValues) -> Vec<f64> {
    let mut rewards = extrinsic.to_vec();
    for Span { tokens, label } in spans {
        let value = match label {
            1 => values.positive,
            0 => 0.0,
            -1 => values.negative,
            other => panic!("a label is -1, 0 or 1, not {other}"),
        };
        assert!(!tokens.is_empty(), "a span holds a token, not {tokens:?}");
        assert!(tokens.end <= rewards.len(), "a span lies in the response, not {tokens:?}");
        let alike = spans.iter().filter(|other| other.label == *label).map(|other| &other.tokens);
        let overlapping =
            alike.filter(|other| other.start < tokens.end && tokens.start < other.end);
        assert_eq!(overlapping.count(), 1, "spans of one label do not overlap");
        rewards[tokens.clone()].iter_mut().for_each(|reward| *reward += value);
    }
    rewards
}
