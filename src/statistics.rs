//! Means, variances and standard errors.

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
