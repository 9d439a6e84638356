//! E8: generalised advantage estimation over tokens, and the whitening of advantages.
//!
//! ```text
//! δ_i = r̃_i + γ V_{i+1} - V_i,     A_i = Σ_k (γλ)^k δ_{i+k},     R_i = A_i + V_i,     V_n = 0
//! ```

/// Added to the variance by [`whiten`].
pub const WHITENING_EPSILON: f64 = 1e-8;

/// Advantages and returns of the tokens of one response.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Advantages {
    /// A_i, i = 0 … n-1, not whitened.
    pub advantages: Vec<f64>,
    /// R_i = A_i + V_i, i = 0 … n-1: the critic's targets.
    pub returns: Vec<f64>,
}

/// E8 for one response: `rewards` r̃_i and `values` V_i of its tokens i = 0 … n-1, with V = 0 after the last.
///
/// The discount `gamma` and the decay `lambda` lie in [0, 1].
///
/// # Panics
///
/// Unless there is one value a reward.
///
/// # Source
///
/// Schulman et al. 2016; section 2.3 takes γ = 1 and λ = 0.95.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::gae::gae;
/// // λ = 1: the return is the sum of the rewards to come.
/// let got = gae(&[1.0, 2.0], &[0.5, 0.25], 1.0, 1.0);
/// assert_eq!(got.returns, [3.0, 2.0]);
/// assert_eq!(got.advantages, [2.5, 1.75]);
/// ```
pub fn gae(rewards: &[f64], values: &[f64], gamma: f64, lambda: f64) -> Advantages {
    assert_eq!(rewards.len(), values.len(), "one value a reward");
    let mut advantages = vec![0.0; rewards.len()];
    let (mut next_value, mut next_advantage) = (0.0, 0.0);
    for i in (0..rewards.len()).rev() {
        let delta = rewards[i] + gamma * next_value - values[i];
        next_advantage = delta + gamma * lambda * next_advantage;
        next_value = values[i];
        advantages[i] = next_advantage;
    }
    let returns = advantages.iter().zip(values).map(|(a, v)| a + v).collect();
    Advantages { advantages, returns }
}

/// Shifts and scales advantages to mean 0 and variance 1 over all tokens of all rows, one row a response.
///
/// # Formula
///
/// `(A - mean) / √(var + 1e-8)`, with the biased variance. Equal advantages become 0.
///
/// # Source
///
/// The official code whitens all advantages of a rollout at once, padding left out.
///
/// # Examples
///
/// ```
/// let mut rows = [vec![3.0], vec![1.0, 5.0, 7.0]]; // mean 4, variance 5
/// segment_rlhf::equations::gae::whiten(&mut rows);
/// assert!((rows[1][1] - 1.0 / 5f64.sqrt()).abs() < 1e-8);
/// ```
pub fn whiten(rows: &mut [Vec<f64>]) {
    let n = rows.iter().map(Vec::len).sum::<usize>() as f64;
    let mean = rows.iter().flatten().sum::<f64>() / n;
    let variance = rows.iter().flatten().map(|a| (a - mean).powi(2)).sum::<f64>() / n;
    let scale = (variance + WHITENING_EPSILON).sqrt();
    rows.iter_mut().flatten().for_each(|a| *a = (*a - mean) / scale);
}
