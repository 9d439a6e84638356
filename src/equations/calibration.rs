//! ReMedy's calibration: the temperature at which scores spread most evenly over (0, 1).
//!
//! ```text
//! T* = argmax_T H(histogram of σ(s / T))
//! ```
//!
//! With 20 bins of equal width. Scores of a Bradley-Terry model crowd near 0 or 1 after a plain σ; at T* they use the whole
//! range. Order and ties are kept.

/// The bins of the histogram.
pub const BINS: usize = 20;

/// A score between 0 and 1: σ(s / T).
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::calibration::calibrated;
/// assert_eq!(calibrated(0.0, 2.0), 0.5);
/// assert!((calibrated(2.0 * 3f64.ln(), 2.0) - 0.75).abs() < 1e-12);
/// ```
pub fn calibrated(score: f64, temperature: f64) -> f64 {
    1.0 / (1.0 + (-score / temperature).exp())
}

/// The entropy, nats, of the histogram of calibrated scores over [`BINS`] bins; 0 without scores.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::calibration::histogram_entropy;
/// // Two scores in two bins, and at a high temperature both next to 1/2: in the tenth and the eleventh.
/// assert!((histogram_entropy(&[-3.0, 3.0], 1.0) - 2f64.ln()).abs() < 1e-12);
/// // Both in the last bin: σ(9) and σ(8) are above 0.95.
/// assert_eq!(histogram_entropy(&[9.0, 8.0], 1.0), 0.0);
/// ```
pub fn histogram_entropy(scores: &[f64], temperature: f64) -> f64 {
    let mut counts = [0usize; BINS];
    for &score in scores {
        let bin = (calibrated(score, temperature) * BINS as f64) as usize;
        counts[bin.min(BINS - 1)] += 1;
    }
    let shares = counts.iter().filter(|&&n| n > 0).map(|&n| n as f64 / scores.len() as f64);
    shares.map(|share| -share * share.ln()).sum()
}

/// The temperature of most entropy: of those from a hundredth of the largest |score| to ten times it, 60 a factor of 10, the
/// lowest of equals. None where all scores are 0, or there are none.
///
/// # Source
///
/// Tan & Monz 2025 (arXiv 2504.13630); the search is ours.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::calibration::{best_temperature, histogram_entropy};
/// let scores = [-8.0, -2.0, 1.0, 5.0, 9.0];
/// let best = best_temperature(&scores).unwrap();
/// assert!(histogram_entropy(&scores, best) > histogram_entropy(&scores, 0.5));
/// // Twice the scores want twice the temperature.
/// let twice = scores.map(|score| 2.0 * score);
/// assert!((best_temperature(&twice).unwrap() - 2.0 * best).abs() < 1e-9);
/// ```
pub fn best_temperature(scores: &[f64]) -> Option<f64> {
    let largest = scores.iter().fold(0.0f64, |max, score| max.max(score.abs()));
    if largest == 0.0 {
        return None;
    }
    let temperatures = (-120..=60).map(|step| largest * 10f64.powf(f64::from(step) / 60.0));
    let entropies = temperatures.map(|t| (t, histogram_entropy(scores, t)));
    let better = |best: (f64, f64), next: (f64, f64)| if next.1 > best.1 { next } else { best };
    entropies.reduce(better).map(|(temperature, _)| temperature)
}
