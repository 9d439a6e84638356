//! Group baselines: the advantage of a response over the others to the same prompt, instead of a critic.
//!
//! ```text
//! GRPO       A_k = (R_k - mean R) / (std R + 1e-4)
//! Dr. GRPO   A_k = R_k - mean R
//! RLOO       A_k = R_k - mean of the other R
//! ```

use crate::statistics::mean;

/// Added to a group's standard deviation.
pub const STD_EPSILON: f64 = 1e-4;

/// GRPO's advantages of one group: rewards less their mean, over their standard deviation.
///
/// # Formula
///
/// `(R - mean) / (std + 1e-4)`, with the unbiased standard deviation. Equal rewards give 0, and so does a group of one.
///
/// # Source
///
/// Shao et al. 2024 (arXiv 2402.03300), section 4.1.2; estimator and ε are TRL's.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::group_baseline::over_std;
/// let advantages = over_std(&[1.0, 3.0]); // mean 2, unbiased standard deviation √2
/// assert!((advantages[1] - 1.0 / (2f64.sqrt() + 1e-4)).abs() < 1e-12);
/// ```
pub fn over_std(rewards: &[f64]) -> Vec<f64> {
    let deviations = over_mean(rewards);
    let squares: f64 = deviations.iter().map(|deviation| deviation * deviation).sum();
    let std = (squares / rewards.len().saturating_sub(1).max(1) as f64).sqrt();
    deviations.iter().map(|deviation| deviation / (std + STD_EPSILON)).collect()
}

/// Dr. GRPO's advantages of one group: rewards less their mean.
///
/// # Source
///
/// Liu et al. 2025 (arXiv 2503.20783), section 3.2: dividing by the standard deviation would weigh prompts by how
/// alike their responses are.
///
/// # Examples
///
/// ```
/// assert_eq!(segment_rlhf::equations::group_baseline::over_mean(&[1.0, 3.0]), [-1.0, 1.0]);
/// ```
pub fn over_mean(rewards: &[f64]) -> Vec<f64> {
    let baseline = mean(rewards.iter().copied());
    rewards.iter().map(|reward| reward - baseline).collect()
}

/// RLOO's advantages of one group: rewards less the mean of the others'. A group of one has no others, and gives 0.
///
/// # Source
///
/// Ahmadian et al. 2024 (arXiv 2402.14740), section 3.2.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::group_baseline::leave_one_out;
/// assert_eq!(leave_one_out(&[1.0, 2.0, 6.0]), [-3.0, -1.5, 4.5]);
/// ```
pub fn leave_one_out(rewards: &[f64]) -> Vec<f64> {
    let (total, others) = (rewards.iter().sum::<f64>(), rewards.len().saturating_sub(1) as f64);
    let advantage = |&reward: &f64| match others {
        0.0 => 0.0,
        others => reward - (total - reward) / others,
    };
    rewards.iter().map(advantage).collect()
}
