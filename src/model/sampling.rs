//! Drawing the next token from logits, on the host, so that draws are the same on every device.

use rand::Rng;
use serde::{Deserialize, Serialize};

use super::kernels::weights::{BLOCK, weights};
use crate::rng::Stream;

/// How the next token is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Keeps the k most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the most likely tokens that together reach this probability; 1 keeps all.
    pub top_p: f64,
}

impl Sampling {
    /// Draws from the model's own distribution.
    pub const PLAIN: Self = Self { temperature: 1.0, top_k: 0, top_p: 1.0 };
    /// Always the most likely token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0 };

    /// Draws a token id from one row of logits, `[vocabulary]`.
    ///
    /// # Panics
    ///
    /// Of no logits.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::{model::sampling::Sampling, rng::stream};
    /// assert_eq!(Sampling::GREEDY.draw(&[0.1, 2.0, -1.0], &mut stream(0, "doc", 0)), 1);
    /// ```
    pub fn draw(&self, logits: &[f32], rng: &mut Stream) -> u32 {
        if self.temperature == 0.0 {
            return argmax(logits);
        }
        let (weights, sums) = weights(logits, self.temperature);
        if self.top_k == 0 && self.top_p >= 1.0 {
            return draw_from_all(&weights, &sums, rng);
        }
        let each = weights.iter().enumerate();
        let mut candidates: Vec<(u32, f64)> =
            each.map(|(id, &weight)| (id as u32, f64::from(weight))).collect();
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.top_k > 0 {
            candidates.truncate(self.top_k);
        }
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut reached = 0.0;
        let kept = candidates.iter().position(|c| {
            reached += c.1 / total;
            reached >= self.top_p
        });
        candidates.truncate(kept.map_or(candidates.len(), |i| i + 1));
        let total: f64 = candidates.iter().map(|c| c.1).sum();
        let mut left = rng.random::<f64>() * total;
        for &(id, weight) in &candidates {
            left -= weight;
            if left < 0.0 {
                return id;
            }
        }
        candidates.last().expect("a row of logits is not empty").0
    }
}

/// A token drawn by its weight, `sums` being those of the blocks of weights.
fn draw_from_all(weights: &[f32], sums: &[f32], rng: &mut Stream) -> u32 {
    let total: f64 = sums.iter().map(|&sum| f64::from(sum)).sum();
    let mut left = rng.random::<f64>() * total;
    let mut block = 0;
    while block + 1 < sums.len() && left >= f64::from(sums[block]) {
        left -= f64::from(sums[block]);
        block += 1;
    }
    let mut last = 0;
    for (id, &weight) in weights.iter().enumerate().skip(block * BLOCK).take(BLOCK) {
        if weight > 0.0 {
            last = id;
            left -= f64::from(weight);
            if left < 0.0 {
                break;
            }
        }
    }
    last as u32
}

fn argmax(logits: &[f32]) -> u32 {
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
    best.expect("a row of logits is not empty") as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::stream;

    /// Probabilities .5, .3, .2.
    const LOGITS: [f32; 3] = [-std::f32::consts::LN_2, -1.203_972_8, -1.609_438];

    fn frequencies(sampling: Sampling) -> [f64; 3] {
        let mut rng = stream(0, "sampling test", 0);
        let mut counts = [0.0; 3];
        for _ in 0..20_000 {
            counts[sampling.draw(&LOGITS, &mut rng) as usize] += 1.0 / 20_000.0;
        }
        counts
    }

    fn close(found: [f64; 3], expected: [f64; 3]) {
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 0.015, "{found} {expected}"); // four standard errors
        }
    }

    #[test]
    fn plain_sampling_draws_from_the_softmax() {
        close(frequencies(Sampling::PLAIN), [0.5, 0.3, 0.2]);
    }

    #[test]
    fn a_temperature_of_one_half_squares_the_odds() {
        let cold = Sampling { temperature: 0.5, ..Sampling::PLAIN };
        close(frequencies(cold), [0.25 / 0.38, 0.09 / 0.38, 0.04 / 0.38]);
    }

    #[test]
    fn top_k_keeps_the_k_most_likely_tokens() {
        close(frequencies(Sampling { top_k: 2, ..Sampling::PLAIN }), [0.625, 0.375, 0.0]);
    }

    #[test]
    fn top_p_keeps_the_fewest_tokens_that_reach_it() {
        close(frequencies(Sampling { top_p: 0.79, ..Sampling::PLAIN }), [0.625, 0.375, 0.0]);
        close(frequencies(Sampling { top_p: 0.49, ..Sampling::PLAIN }), [1.0, 0.0, 0.0]);
        // One of two equals is half of them, and enough.
        let half = Sampling { top_p: 0.5, ..Sampling::PLAIN };
        let mut rng = stream(0, "sampling test", 0);
        assert!((0..20).all(|_| half.draw(&[1.0, 1.0], &mut rng) == 0));
    }

    #[test]
    fn top_p_counts_in_shares_of_what_top_k_kept() {
        let both = Sampling { top_k: 2, top_p: 0.6, ..Sampling::PLAIN };
        close(frequencies(both), [1.0, 0.0, 0.0]); // .5 of all, .625 of what is left
    }

    #[test]
    fn ties_of_greedy_choice_go_to_the_lower_id() {
        assert_eq!(Sampling::GREEDY.draw(&[1.0, 3.0, 3.0], &mut stream(0, "t", 0)), 1);
    }
}
