//! E1: what one action is. A response is cut into segments of consecutive tokens.
//!
//! Token i starts a new segment where the reference model was unsure before it:
//!
//! ```text
//! H_i = -Σ_v π_SFT(v | x, y_<i) ln π_SFT(v | x, y_<i),      token i starts a segment iff H_i > c_ent
//! ```
//!
//! Entropies always come from the frozen reference model π_SFT, in reward training and in policy
//! training alike. Bandit, sentence and token actions are the paper's baselines.
//! Deviations D5, D6, D7 and D8 in `paper/deviations.md`.

use std::ops::Range;

use burn::tensor::{FloatDType, Tensor, activation::log_softmax};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Entropy in nats of the next-token distribution at every position, in f32 and untempered.
///
/// # Formula
///
/// `H = -Σ_v p_v ln p_v`, `p = softmax(logits)`, over the whole vocabulary. A logit of -∞ adds nothing.
///
/// # Shapes
///
/// `[B, T, V] -> [B, T]`. Position j holds the distribution that produces token j + 1.
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// use segment_rlhf::equations::segmentation::entropy;
/// // Four equally likely tokens: ln 4.
/// let h = entropy(Tensor::<3>::zeros([1, 1, 4], &Device::flex())).into_scalar::<f32>();
/// assert!((h - 4f32.ln()).abs() < 1e-6);
/// ```
pub fn entropy(logits: Tensor<3>) -> Tensor<2> {
    let log_p = log_softmax(logits.cast(FloatDType::F32), 2); // [B, T, V]
    // exp(-1e4) is 0 in f32, so the bound changes no value but 0 · ln 0, which is 0 and not NaN.
    let p_log_p = log_p.clone().exp() * log_p.clamp_min(-1e4);
    p_log_p.sum_dim(2).squeeze_dim::<2>(2).neg() // [B, T]
}

/// How a response is cut into segments: what one action is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// The whole response is one action: ordinary RLHF.
    #[serde(rename = "bandit")]
    Whole,
    /// A segment ends where a sentence ends.
    Sentence,
    /// Every token is a segment.
    Token,
    /// A segment is a run of tokens that the reference model found predictable: the paper's choice.
    #[serde(rename = "segment")]
    Entropy {
        /// c_ent in nats, ≥ 0: a token of strictly greater entropy starts a segment. Infinity is allowed,
        /// and written as the text `inf`, since JSON has no number for it.
        #[serde(with = "cutoff", rename = "entropy_cutoff")]
        cutoff: f64,
    },
}

impl Rule {
    /// The rule in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Sentence => "sentence",
            Self::Token => "token",
            Self::Entropy { .. } => "entropy",
        }
    }
}

/// A cutoff in files: a number, or `inf`.
mod cutoff {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    #[derive(Deserialize, Serialize)]
    #[serde(untagged, expecting = "expected nats, or \"inf\"")]
    enum Written {
        Nats(f64),
        Name(String),
    }

    pub fn serialize<S: Serializer>(cutoff: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        let infinite = *cutoff == f64::INFINITY;
        let written = if infinite { Written::Name("inf".into()) } else { Written::Nats(*cutoff) };
        written.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        match Written::deserialize(deserializer)? {
            Written::Nats(cutoff) => Ok(cutoff),
            Written::Name(name) if name == "inf" => Ok(f64::INFINITY),
            Written::Name(name) => {
                Err(D::Error::custom(format!("cutoff {name:?}: expected nats, or \"inf\"")))
            }
        }
    }
}

/// Whether the end-of-sequence token belongs to a segment, in a response that ends with one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EosPolicy {
    /// A whole response includes it; every other rule leaves it out.
    #[default]
    AsPublished,
    /// It belongs to a segment like any other token.
    Included,
    /// It belongs to no segment and earns the KL term alone.
    Excluded,
}

impl EosPolicy {
    /// Whether this rule leaves the end-of-sequence token out of every segment.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::equations::segmentation::{Rule, EosPolicy};
    /// assert!(EosPolicy::AsPublished.excludes_eos(Rule::Token));
    /// assert!(!EosPolicy::AsPublished.excludes_eos(Rule::Whole));
    /// ```
    pub fn excludes_eos(self, rule: Rule) -> bool {
        match self {
            EosPolicy::AsPublished => rule != Rule::Whole,
            EosPolicy::Included => false,
            EosPolicy::Excluded => true,
        }
    }
}

/// What segmentation needs to know of one response of n tokens.
#[derive(Clone, Copy, Debug)]
pub struct ResponseView<'a> {
    /// H_i in nats, of the distribution that produced token i; i = 0 … n-1.
    pub entropies: &'a [f32],
    /// Whether token i ends a sentence; i = 0 … n-1.
    pub sentence_ends: &'a [bool],
    /// Whether token n-1 is the end-of-sequence token, and not just where generation was cut.
    pub ends_with_eos: bool,
}

/// Why a response has no segments.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum SegmentationError {
    /// No token is left to segment.
    #[error(
        "nothing to segment in a response of {tokens} token(s): it is empty, or holds the \
         end-of-sequence token alone while that belongs to no segment; drop the response, or \
         include the end-of-sequence token"
    )]
    Empty {
        /// Tokens of the response, end of sequence included.
        tokens: usize,
    },
    /// The response's parts disagree on its length.
    #[error("a response has {entropies} entropies but {sentence_ends} sentence marks")]
    LengthMismatch {
        /// Length of `entropies`.
        entropies: usize,
        /// Length of `sentence_ends`.
        sentence_ends: usize,
    },
    /// An entropy is NaN or infinite.
    #[error(
        "the entropy of response token {token} is not finite: look at the reference model's logits"
    )]
    NotFinite {
        /// Index of the first such token.
        token: usize,
    },
    /// The cutoff is NaN or negative.
    #[error("the entropy cutoff is {cutoff}: expected nats, from 0 (token level) up to infinity")]
    InvalidCutoff {
        /// The offending cutoff.
        cutoff: f64,
    },
}

/// Half-open ranges of response tokens, one an action.
///
/// They are non-empty, ordered and contiguous from token 0, and cover the response, less the
/// end-of-sequence token where that is left out. Token 0 always starts a segment. A response that
/// was cut before it ended keeps all its tokens, whatever the policy.
///
/// # Errors
///
/// [`SegmentationError`]: nothing to segment, unequal lengths, an invalid cutoff, and for
/// [`Rule::Entropy`] an entropy that is not finite.
///
/// # Source
///
/// Section 2.2; the official code marks the token *before* a jump in entropy as a segment's end, which
/// is the same rule: `H_{j+1} > c_ent` means that token j ends a segment.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::segmentation::{segments, Rule, EosPolicy, ResponseView};
/// let response = ResponseView {
///     entropies: &[0.1, 0.2, 2.5, 0.3, 3.0],
///     sentence_ends: &[false; 5],
///     ends_with_eos: true,
/// };
/// let cut = Rule::Entropy { cutoff: 1.75 };
/// assert_eq!(segments(cut, EosPolicy::AsPublished, response).unwrap(), [0..2, 2..4]);
/// assert_eq!(segments(cut, EosPolicy::Included, response).unwrap(), [0..2, 2..4, 4..5]);
/// ```
pub fn segments(
    rule: Rule,
    eos: EosPolicy,
    response: ResponseView<'_>,
) -> Result<Vec<Range<usize>>, SegmentationError> {
    let ResponseView { entropies, sentence_ends, ends_with_eos } = response;
    let tokens = entropies.len();
    if sentence_ends.len() != tokens {
        let sentence_ends = sentence_ends.len();
        return Err(SegmentationError::LengthMismatch { entropies: tokens, sentence_ends });
    }
    if let Rule::Entropy { cutoff } = rule {
        if cutoff.is_nan() || cutoff < 0.0 {
            return Err(SegmentationError::InvalidCutoff { cutoff });
        }
        if let Some(token) = entropies.iter().position(|h| !h.is_finite()) {
            return Err(SegmentationError::NotFinite { token });
        }
    }
    let left_out = usize::from(ends_with_eos && eos.excludes_eos(rule));
    let end = tokens.saturating_sub(left_out);
    if end == 0 {
        return Err(SegmentationError::Empty { tokens });
    }
    let starts_segment = |&i: &usize| match rule {
        Rule::Whole => false,
        Rule::Sentence => sentence_ends[i - 1],
        Rule::Token => true,
        Rule::Entropy { cutoff } => f64::from(entropies[i]) > cutoff,
    };
    let mut start = 0;
    let ends = (1..end).filter(starts_segment).chain([end]);
    Ok(ends.map(|end| std::mem::replace(&mut start, end)..end).collect())
}
