//! CARDS: segments of a response by rejection sampling.
//!
//! A candidate for the next segment ends before a token of high entropy. It is accepted by its reward, against a
//! threshold that rises with the length of the response, linearly to the target r*:
//!
//! ```text
//! r_0 = (1-α) r(x) + α r*,   τ(L) = min(r*, r_0 + L (r* - r_0) / n)
//! P(accept) = min(1, exp((r(x, y) - τ(L)) / β))
//! ```
//!
//! After too many rejections the best candidate is taken. ARGS, a baseline, takes the token of the largest
//! `logit + w r(x, y with the token)` among the most likely ones. Entropies are those of
//! [`segmentation::entropy`](super::segmentation::entropy), untempered. Deviations D42 and D45 in `paper/deviations.md`.

/// Where candidates for a segment end.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SegmentLimits {
    /// τ_u in nats, infinity allowed.
    pub entropy: f64,
    /// Tokens that a segment has at least.
    pub least: usize,
    /// Tokens that it has at most.
    pub most: usize,
}

impl SegmentLimits {
    /// Whether a candidate of so many tokens is full, whatever comes next.
    pub fn is_full(&self, tokens: usize) -> bool {
        tokens >= self.most
    }

    /// Whether it ends before a token of this entropy, nats.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::equations::cards::SegmentLimits;
    /// let limits = SegmentLimits { entropy: 3.0, least: 4, most: 64 };
    /// assert!(limits.ends_before(4, 3.0));
    /// assert!(!limits.ends_before(3, 9.0) && !limits.ends_before(4, 2.9));
    /// ```
    pub fn ends_before(&self, tokens: usize, entropy: f64) -> bool {
        tokens >= self.least && entropy >= self.entropy
    }
}

/// τ(L), the reward that a response of L tokens should have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    start: f64,
    target: f64,
    longest: usize,
}

impl Threshold {
    /// The threshold that rises to the target r* at `longest` tokens, n, from between the prompt's reward (α = 0) and the
    /// target (α = 1). A prompt above the target gives the target at once.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::equations::cards::Threshold;
    /// let threshold = Threshold::rising(1.0, 9.0, 0.5, 10); // from 5 to 9
    /// assert_eq!([0, 5, 10, 20].map(|length| threshold.at(length)), [5.0, 7.0, 9.0, 9.0]);
    /// ```
    ///
    /// # Panics
    ///
    /// If `longest` is 0.
    pub fn rising(prompt_reward: f64, target: f64, alpha: f64, longest: usize) -> Self {
        assert!(longest > 0, "a response has a token");
        Self { start: (1.0 - alpha) * prompt_reward + alpha * target, target, longest }
    }

    /// The target at every length.
    pub fn flat(target: f64) -> Self {
        Self { start: target, target, longest: 1 }
    }

    /// τ(`length`).
    pub fn at(&self, length: usize) -> f64 {
        let rise = length as f64 * (self.target - self.start) / self.longest as f64;
        (self.start + rise).min(self.target)
    }
}

/// The probability that a candidate of this reward is accepted; at β = 0 it is 1 from the threshold on and 0 below.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::cards::acceptance;
/// assert_eq!(acceptance(3.0, 2.0, 0.7), 1.0);
/// assert_eq!(acceptance(1.0, 2.0, 0.5), (-2f64).exp());
/// assert_eq!(acceptance(1e9, 0.0, 1e-9), 1.0); // exp((r - τ)/β) alone would overflow
/// ```
pub fn acceptance(reward: f64, threshold: f64, beta: f64) -> f64 {
    match reward >= threshold {
        true => 1.0,
        false => ((reward - threshold) / beta).exp(),
    }
}

/// The index of the largest reward, of equals the first.
///
/// # Panics
///
/// Of none.
///
/// # Examples
///
/// ```
/// assert_eq!(segment_rlhf::equations::cards::best(&[1.0, 3.0, 3.0, 2.0]), 1);
/// ```
pub fn best(rewards: &[f64]) -> usize {
    assert!(!rewards.is_empty(), "the best of some");
    (1..rewards.len()).fold(0, |best, i| if rewards[i] > rewards[best] { i } else { best })
}

/// ARGS: the index of the token of the largest `logit + weight · reward`, of equals the first.
///
/// # Panics
///
/// Of none, or unless there is a reward for each logit.
///
/// # Source
///
/// Khanov et al. 2024 (arXiv 2402.01694), greedy; `token_bon_generate` in CARDS's `reward_sampling.py`.
///
/// # Examples
///
/// ```
/// assert_eq!(segment_rlhf::equations::cards::guided(&[2.0, 1.0], &[0.0, 1.0], 1.5), 1);
/// ```
pub fn guided(logits: &[f32], rewards: &[f64], weight: f64) -> usize {
    assert_eq!(logits.len(), rewards.len(), "a reward for each logit");
    let pairs = logits.iter().zip(rewards);
    best(&pairs.map(|(&logit, reward)| f64::from(logit) + weight * reward).collect::<Vec<_>>())
}

/// What becomes of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The response goes on from it.
    Accept,
    /// Another is drawn in its place.
    Reject,
    /// The response goes on from this one of the candidates for the segment, by its number, untested.
    Best(usize),
}

/// The candidates for one segment, and what becomes of each.
#[derive(Clone, Debug)]
pub struct Trial {
    threshold: Threshold,
    beta: f64,
    /// Rejections after which the best is taken.
    rejects: usize,
    rewards: Vec<f64>,
}

impl Trial {
    /// Without a candidate yet.
    pub fn new(threshold: Threshold, beta: f64, rejects: usize) -> Self {
        Self { threshold, beta, rejects, rewards: Vec::new() }
    }

    /// Decides on the next candidate, with which the response has `length` tokens; `draw` is uniform in [0, 1). The
    /// candidate after `rejects` rejections is the last.
    ///
    /// # Source
    ///
    /// `seg_rs_generate` in `reward_sampling.py` of the official code.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::equations::cards::{Decision, Threshold, Trial};
    /// let mut trial = Trial::new(Threshold::flat(2.0), 1.0, 2);
    /// assert_eq!(trial.decide(4, 1.0, 0.5), Decision::Reject); // e^-1 is less
    /// assert_eq!(trial.decide(4, 1.5, 0.7), Decision::Reject); // e^-0.5
    /// assert_eq!(trial.decide(4, 0.0, 0.0), Decision::Best(1));
    /// ```
    pub fn decide(&mut self, length: usize, reward: f64, draw: f64) -> Decision {
        self.rewards.push(reward);
        if self.rewards.len() > self.rejects {
            Decision::Best(best(&self.rewards))
        } else if draw < acceptance(reward, self.threshold.at(length), self.beta) {
            Decision::Accept
        } else {
            Decision::Reject
        }
    }
}
