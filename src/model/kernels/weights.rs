//! The weights by which a token is drawn: exp((logit - largest) / temperature), and their sums by blocks.

use super::simd::{exp, max, sum, vectorized};

/// Tokens of a block.
pub const BLOCK: usize = 256;

/// The weight of each token, and the sum of each [`BLOCK`] of them; what is less than e⁻⁸⁷ of the largest weighs nothing.
pub fn weights(logits: &[f32], temperature: f64) -> (Vec<f32>, Vec<f32>) {
    let mut weights = vec![0.0; logits.len()];
    let mut sums = vec![0.0; logits.len().div_ceil(BLOCK)];
    fill(logits, (1.0 / temperature) as f32, &mut weights, &mut sums);
    (weights, sums)
}

vectorized! {
    fn fill(logits: &'a [f32], factor: f32, weights: &'a mut [f32], sums: &'a mut [f32]) {
        let largest = max(logits);
        let blocks = logits.chunks(BLOCK).zip(weights.chunks_mut(BLOCK));
        for ((logits, weights), total) in blocks.zip(sums) {
            for (logit, weight) in logits.iter().zip(weights.iter_mut()) {
                let below = (logit - largest) * factor;
                *weight = if below < -87.0 { 0.0 } else { exp(below) };
            }
            *total = sum(weights.len(), |i| weights[i]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_and_their_sums_are_those_of_the_formula() {
        let logits: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin() * 5.0).collect();
        let (weights, sums) = weights(&logits, 0.7);
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exact = |logit: &f32| (f64::from(logit - largest) / 0.7).exp();
        for (weight, logit) in weights.iter().zip(&logits) {
            assert!((f64::from(*weight) / exact(logit) - 1.0).abs() < 2e-6);
        }
        for (sum, block) in sums.iter().zip(logits.chunks(BLOCK)) {
            let exact: f64 = block.iter().map(exact).sum();
            assert!((f64::from(*sum) / exact - 1.0).abs() < 2e-6);
        }
    }

    #[test]
    fn a_logit_of_minus_infinity_weighs_nothing() {
        assert_eq!(weights(&[0.0, f32::NEG_INFINITY], 1.0).0, [1.0, 0.0]);
    }
}
