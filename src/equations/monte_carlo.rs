//! Segment advantages from Monte Carlo values, along a chain and in a tree, instead of a critic.
//!
//! ```text
//! cutpoints   t with π_θ(y_t|·) < ρ, every k-th of them, the first included
//! chain       A_k = V(s_{k+1}) - V(s_k) for the tokens from cutpoint k to the next, V(end) the response's score
//! tree        V(n) = mean of V(children),  A(n) = V(n) - V(parent), or over the std of the siblings
//! ```
//!
//! V(s) is the mean reward of the continuations sampled from s.

use super::masked_clip::unsure;
use crate::statistics::mean;

/// Added to the standard deviation of a node's children.
pub const SIBLING_STD_EPSILON: f64 = 1e-8;

/// The tokens before which a chain is cut: every `interval`-th of those less probable than `threshold`, the first
/// included.
///
/// `log_probs` are the policy's, nats, of the softmax that tokens were drawn from.
///
/// # Panics
///
/// For an interval of 0.
///
/// # Source
///
/// Guo et al. 2025 (arXiv 2505.23564): ρ = 0.9, k = 5; the official code compares strictly.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::monte_carlo::cutpoints;
/// let log_probs = [0.99, 0.5, 0.95, 0.1, 0.2].map(f64::ln);
/// assert_eq!(cutpoints(&log_probs, 0.9, 1), [1, 3, 4]);
/// assert_eq!(cutpoints(&log_probs, 0.9, 2), [1, 4]);
/// ```
pub fn cutpoints(log_probs: &[f64], threshold: f64, interval: usize) -> Vec<usize> {
    let unsure = unsure(log_probs, threshold).into_iter().enumerate();
    unsure.filter(|(_, unsure)| *unsure).map(|(t, _)| t).step_by(interval).collect()
}

/// The advantage of each of a response's tokens: what the value gains from the cutpoint before it to the next.
///
/// `values` are those of the states at the cutpoints, before their tokens are drawn; `score` is what the whole response
/// earned. Tokens before the first cutpoint have none, and so have those more probable than `threshold`.
///
/// # Panics
///
/// Where the values are not as many as the cutpoints, or those are not ascending tokens of the response.
///
/// # Source
///
/// Guo et al. 2025 (arXiv 2505.23564), and the official code, whose boundaries are the tokens before the
/// cutpoints.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::monte_carlo::chain_advantages;
/// let log_probs = [0.99, 0.5, 0.95, 0.1].map(f64::ln);
/// // A value of 0.25 before token 1, 0.75 before token 3, and a score of 1; token 2 is sure.
/// let advantages = chain_advantages(&log_probs, 0.9, &[1, 3], &[0.25, 0.75], 1.0);
/// assert_eq!(advantages, [0.0, 0.5, 0.0, 0.25]);
/// ```
pub fn chain_advantages(
    log_probs: &[f64],
    threshold: f64,
    cutpoints: &[usize],
    values: &[f64],
    score: f64,
) -> Vec<f64> {
    assert_eq!(cutpoints.len(), values.len(), "a value for each cutpoint");
    let mut advantages = vec![0.0; log_probs.len()];
    let ends = cutpoints.iter().skip(1).copied().chain([log_probs.len()]);
    let next = values.iter().skip(1).copied().chain([score]);
    for ((&start, end), (value, next)) in cutpoints.iter().zip(ends).zip(values.iter().zip(next)) {
        for (advantage, log_prob) in advantages[start..end].iter_mut().zip(&log_probs[start..end]) {
            *advantage = if log_prob.exp() > threshold { 0.0 } else { next - value };
        }
    }
    advantages
}

/// A node of a tree of continuations, after its parent in the list of nodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    /// Its parent's number; none for the root.
    pub parent: Option<usize>,
    /// What its response earned, if the response ends here.
    pub reward: Option<f64>,
}

/// V of each node: its reward, or the mean of its children's values.
///
/// # Panics
///
/// For a node before its parent, or one that has neither a reward nor children.
///
/// # Source
///
/// Guo et al. 2025 (arXiv 2505.23564).
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::monte_carlo::{Node, tree_advantages, tree_values};
/// let node = |parent, reward| Node { parent, reward };
/// // A root with a finished child and one that has two finished children.
/// let tree = [
///     node(None, None), node(Some(0), Some(0.0)), node(Some(0), None),
///     node(Some(2), Some(1.0)), node(Some(2), Some(0.0)),
/// ];
/// let values = tree_values(&tree);
/// assert_eq!(values, [0.25, 0.0, 0.5, 1.0, 0.0]);
/// assert_eq!(tree_advantages(&tree, &values, false), [0.0, -0.25, 0.25, 0.5, -0.5]);
/// ```
pub fn tree_values(nodes: &[Node]) -> Vec<f64> {
    let mut children: Vec<Vec<f64>> = vec![Vec::new(); nodes.len()];
    let mut values = vec![0.0; nodes.len()];
    for (number, node) in nodes.iter().enumerate().rev() {
        let below = std::mem::take(&mut children[number]);
        values[number] = match node.reward {
            Some(reward) => reward,
            None => {
                assert!(!below.is_empty(), "node {number} has neither a reward nor children");
                mean(below.into_iter())
            }
        };
        if let Some(parent) = node.parent {
            assert!(parent < number, "node {number} is before its parent {parent}");
            children[parent].push(values[number]);
        }
    }
    values
}

/// A of the edge to each node: its value less its parent's; 0 for the root.
///
/// `over_std` divides by the standard deviation of the parent's children (population, plus 1e-8).
///
/// # Panics
///
/// Where the values are not as many as the nodes.
///
/// # Source
///
/// Guo et al. 2025 (arXiv 2505.23564); the official code calls the difference `rloo` and the other `grpo`.
pub fn tree_advantages(nodes: &[Node], values: &[f64], over_std: bool) -> Vec<f64> {
    assert_eq!(nodes.len(), values.len(), "a value for each node");
    let mut squares = vec![(0.0, 0.0); nodes.len()];
    for (node, value) in nodes.iter().zip(values) {
        if let Some(parent) = node.parent {
            let (sum, count) = &mut squares[parent];
            *sum += (value - values[parent]).powi(2);
            *count += 1.0;
        }
    }
    let advantage = |(node, value): (&Node, &f64)| match node.parent {
        None => 0.0,
        Some(parent) => {
            let (sum, count) = squares[parent];
            let std = (sum / count).sqrt();
            let difference = value - values[parent];
            if over_std { difference / (std + SIBLING_STD_EPSILON) } else { difference }
        }
    };
    nodes.iter().zip(values).map(advantage).collect()
}
