//! E7: the token reward, and the adaptive controller of its KL coefficient.
//!
//! ```text
//! r̃_i = clip(r̂_t / |a_t|, -10, 10) - β (ln π_θ(y_i|·) - ln π_SFT(y_i|·))
//! ```
//!
//! The clip bounds the reward alone, never the KL term.

use serde::{Deserialize, Serialize};

/// The bound of a token's interpolated reward, either way.
pub const REWARD_CLIP: f64 = 10.0;

/// The k1 estimate of KL(π_θ, π_SFT) at one token, in nats: unbiased, and of either sign.
///
/// # Examples
///
/// ```
/// assert_eq!(segment_rlhf::equations::kl::k1(-1.0, -3.0), 2.0);
/// ```
pub fn k1(log_prob: f64, ref_log_prob: f64) -> f64 {
    log_prob - ref_log_prob
}

/// The k3 estimate of KL(π_θ, π_SFT) at one token, in nats: unbiased, and never negative.
///
/// # Formula
///
/// `q - 1 - ln q`, `q = π_SFT(y_i|·) / π_θ(y_i|·)`.
///
/// # Source
///
/// Schulman, "Approximating KL Divergence" (2020).
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::kl::k3;
/// // q = 2: 2 - 1 - ln 2.
/// assert!((k3(0.25f64.ln(), 0.5f64.ln()) - (1.0 - 2f64.ln())).abs() < 1e-12);
/// ```
pub fn k3(log_prob: f64, ref_log_prob: f64) -> f64 {
    let log_q = ref_log_prob - log_prob;
    log_q.exp_m1() - log_q
}

/// E7: the reward r̃_i of each response token i = 0 … n-1.
///
/// `interpolated` is what E6 gives each token; the log-probabilities of policy and reference are in nats, `beta`
/// is a reward a nat.
///
/// # Panics
///
/// Where the lengths differ.
///
/// # Source
///
/// Section 2.3, with β = 0.01; the clip is the official code's.
///
/// # Examples
///
/// ```
/// // Clipped to 10, then 0.5 · (-1 - (-3)) = 1 off for the KL.
/// assert_eq!(segment_rlhf::equations::kl::token_rewards(&[12.0], &[-1.0], &[-3.0], 0.5), [9.0]);
/// ```
pub fn token_rewards(
    interpolated: &[f64],
    log_probs: &[f64],
    ref_log_probs: &[f64],
    beta: f64,
) -> Vec<f64> {
    assert_eq!(interpolated.len(), log_probs.len(), "one log-probability a token");
    assert_eq!(interpolated.len(), ref_log_probs.len(), "one reference log-probability a token");
    let log_probs = log_probs.iter().zip(ref_log_probs);
    let token_reward = |(&reward, (&log_prob, &ref_log_prob)): (&f64, (&f64, &f64))| {
        reward.clamp(-REWARD_CLIP, REWARD_CLIP) - beta * k1(log_prob, ref_log_prob)
    };
    interpolated.iter().zip(log_probs).map(token_reward).collect()
}

/// A KL coefficient that follows a target; not used by default.
///
/// # Source
///
/// Ziegler et al. 2019, section 2.2.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveKl {
    /// β now.
    pub coefficient: f64,
    /// The KL to hold, in nats.
    pub target: f64,
    /// Steps over which β may change by a factor of about 1.2.
    pub horizon: f64,
}

impl AdaptiveKl {
    /// Moves the coefficient toward what holds the target, after `n_steps` steps at `observed_kl` nats.
    ///
    /// # Formula
    ///
    /// `β *= 1 + clip(KL / target - 1, -0.2, 0.2) · n_steps / horizon`.
    ///
    /// # Examples
    ///
    /// ```
    /// let mut kl = segment_rlhf::equations::kl::AdaptiveKl { coefficient: 0.02, target: 6.0, horizon: 1e4 };
    /// kl.update(60.0, 1000); // far above: 1 + 0.2 · 0.1
    /// assert!((kl.coefficient - 0.0204).abs() < 1e-12);
    /// ```
    pub fn update(&mut self, observed_kl: f64, n_steps: usize) {
        let error = (observed_kl / self.target - 1.0).clamp(-0.2, 0.2);
        self.coefficient *= 1.0 + error * n_steps as f64 / self.horizon;
    }
}
