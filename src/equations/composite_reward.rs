//! LENS: one reward of several, each of another granularity.
//!
//! ```text
//! R = Σ_k w_k R_k
//! ```

/// The weighted sum of rewards, each with its weight. A reward of weight 0 is not read.
///
/// # Source
///
/// Zhu et al. 2025 (arXiv 2508.14153): a verdict on the format, the box's IoU² and the mask's IoU², each of weight 1.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::composite_reward::composite;
/// assert_eq!(composite(&[(1.0, 0.5), (2.0, -0.75), (0.0, f64::NAN)]), -1.0);
/// ```
pub fn composite(weighted: &[(f64, f64)]) -> f64 {
    weighted.iter().filter(|(weight, _)| *weight != 0.0).map(|(w, reward)| w * reward).sum()
}
