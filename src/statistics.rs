//! Means, variances, standard errors and intervals.

pub mod length_control;

use std::f64::consts::{FRAC_2_PI, FRAC_PI_2};

use serde::{Deserialize, Serialize};

/// The probability with which an [`Estimate`]'s interval holds the true mean.
pub const CONFIDENCE: f64 = 0.95;

/// The mean; 0 of nothing.
///
/// # Examples
///
/// ```
/// assert_eq!(segment_rlhf::statistics::mean([1.0, 2.0, 6.0].into_iter()), 3.0);
/// ```
pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), value| (sum + value, count + 1));
    sum / count.max(1) as f64
}

/// The biased variance, the mean squared distance from the mean; 0 of nothing.
///
/// # Examples
///
/// ```
/// assert_eq!(segment_rlhf::statistics::variance(&[1.0, 3.0]), 1.0);
/// ```
pub fn variance(values: &[f64]) -> f64 {
    let center = mean(values.iter().copied());
    mean(values.iter().map(|value| (value - center).powi(2)))
}

/// The standard error of the mean: √(unbiased variance / n); nothing for fewer than two values.
///
/// # Examples
///
/// ```
/// use segment_rlhf::statistics::standard_error;
/// assert_eq!(standard_error(&[1.0, 3.0]), Some(1.0)); // √(2 / 2)
/// assert_eq!(standard_error(&[1.0]), None);
/// ```
pub fn standard_error(values: &[f64]) -> Option<f64> {
    let n = values.len() as f64;
    (values.len() > 1).then(|| (variance(values) / (n - 1.0)).sqrt())
}

/// The t with P(|T| ≤ t) = `confidence`, T of Student's distribution.
///
/// # Formula
///
/// For whole degrees of freedom ν, with θ = atan(t / √ν), P(|T| ≤ t) is a finite sum (Abramowitz and Stegun,
/// 26.7.3 and 26.7.4):
///
/// ```text
/// ν even:  sin θ (1 + 1/2 cos²θ + (1·3)/(2·4) cos⁴θ + … up to cos^(ν-2) θ)
/// ν odd:   2/π (θ + sin θ cos θ (1 + 2/3 cos²θ + (2·4)/(3·5) cos⁴θ + … up to cos^(ν-3) θ))
/// ```
///
/// It grows with θ, which bisection finds.
///
/// # Panics
///
/// Without degrees of freedom, and for a confidence outside [0, 1).
///
/// # Examples
///
/// ```
/// let t = segment_rlhf::statistics::student_t(0.95, 4);
/// assert!((t - 2.7764451052).abs() < 1e-9);
/// ```
pub fn student_t(confidence: f64, degrees: usize) -> f64 {
    assert!(degrees > 0, "a distribution has degrees of freedom");
    assert!((0.0..1.0).contains(&confidence), "a confidence is in [0, 1)");
    let odd = degrees % 2;
    let probability = |theta: f64| {
        let (sin, cos) = theta.sin_cos();
        let (mut term, mut sum) = (1.0, 0.0);
        for k in 0..degrees / 2 {
            sum += term;
            term *= cos * cos * (2 * k + 1 + odd) as f64 / (2 * k + 2 + odd) as f64;
        }
        if odd == 1 { FRAC_2_PI * (theta + sin * cos * sum) } else { sin * sum }
    };
    let (mut low, mut high) = (0.0, FRAC_PI_2);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if probability(middle) < confidence { low = middle } else { high = middle }
    }
    (degrees as f64).sqrt() * high.tan()
}

/// A mean over independent values, seeds for instance, and how far off it may be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its [`standard_error`]; absent for a single value.
    pub error: Option<f64>,
    /// mean ∓ t · error, t of Student's distribution with n - 1 degrees of freedom: if the values are normal,
    /// it holds the true mean with probability [`CONFIDENCE`]. Absent for a single value.
    pub interval: Option<[f64; 2]>,
    /// Values.
    pub n: usize,
}

impl Estimate {
    /// The estimate from these values; nothing from none, or if one is not finite.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::statistics::Estimate;
    /// let of = Estimate::of([1.0, 2.0, 3.0]).unwrap(); // error 1 / √3, t 4.3027
    /// assert_eq!((of.mean, of.n), (2.0, 3));
    /// let [low, high] = of.interval.unwrap();
    /// assert!((low - -0.4841).abs() < 1e-4 && (high - 4.4841).abs() < 1e-4);
    /// ```
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let n = values.len();
        let mean = mean(values.iter().copied());
        let error = standard_error(&values);
        let finite = mean.is_finite() && error.is_none_or(f64::is_finite);
        let interval = error.map(|error| {
            let reach = student_t(CONFIDENCE, n - 1) * error;
            [mean - reach, mean + reach]
        });
        (n > 0 && finite).then_some(Self { mean, error, interval, n })
    }

    /// Whether the interval lies on one side of 0; a single value has none that does.
    pub fn excludes_zero(&self) -> bool {
        self.interval.is_some_and(|[low, high]| low > 0.0 || high < 0.0)
    }

    /// Whether the whole interval lies within ± `margin`; a single value has none that does.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::statistics::Estimate;
    /// let of = Estimate::of([-0.1, 0.0, 0.1]).unwrap(); // ± 0.25
    /// assert!(of.within(0.3) && !of.within(0.2));
    /// ```
    pub fn within(&self, margin: f64) -> bool {
        self.interval.is_some_and(|[low, high]| -margin <= low && high <= margin)
    }
}
