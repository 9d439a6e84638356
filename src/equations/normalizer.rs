//! E5: rewards made comparable along the response, by location-aware normalizers.
//!
//! ```text
//! Mean(p) = w_μ ln p + b_μ,     Std(p) = w_σ ln p + b_σ,     r̂_t = (r_t - Mean(p_t)) / Std(p_t)
//! ```
//!
//! Both lines are regressed on ln p over the segment rewards of a calibration set, p = (t+1)/T. They
//! generalise the bandit's scalar (r - μ) / σ, which is what is left for T = 1, or for w = 0.
//! Deviations D4, D9, D10 and D11 in `paper/deviations.md`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use super::regression::{
    HUBER_EPSILON, HUBER_RIDGE, Line, NormalizerError, Regression, huber, least_squares,
};
use super::regression::{finite, mean_and_std};

/// What the fit adds to p before the logarithm: a location can be rounded to 0.
pub const LOCATION_EPSILON: f64 = 1e-10;

/// Where segment t = 0 … T-1 of T lies in its response: (t+1)/T, a fraction in (0, 1].
///
/// # Examples
///
/// ```
/// assert_eq!(segment_rlhf::equations::normalizer::location(0, 4), 0.25);
/// assert_eq!(segment_rlhf::equations::normalizer::location(3, 4), 1.0);
/// ```
pub fn location(t: usize, segments: usize) -> f64 {
    (t + 1) as f64 / segments as f64
}

/// Mean and spread of the segment rewards at one location.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LocationStatistic {
    /// p rounded to 3 decimals.
    pub location: f64,
    /// Mean of the rewards there.
    pub mean: f64,
    /// Biased standard deviation of the rewards there.
    pub std: f64,
    /// Number of rewards there.
    pub count: usize,
}

/// The statistics of each distinct location, in order, from points (location, reward).
///
/// Locations are rounded to 3 decimals, ties to even, as published.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::normalizer::location_statistics;
/// let stats = location_statistics([(1.0, 5.0), (0.3333, 1.0), (0.333, 3.0)]);
/// assert_eq!((stats[0].location, stats[0].mean, stats[0].std, stats[0].count), (0.333, 2.0, 1.0, 2));
/// assert_eq!((stats[1].location, stats[1].mean, stats[1].std, stats[1].count), (1.0, 5.0, 0.0, 1));
/// ```
pub fn location_statistics(points: impl IntoIterator<Item = (f64, f64)>) -> Vec<LocationStatistic> {
    let mut rewards: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
    for (location, reward) in points {
        rewards.entry((location * 1e3).round_ties_even() as i64).or_default().push(reward);
    }
    let statistic = |(thousandths, rewards): (i64, Vec<f64>)| {
        let (mean, std) = mean_and_std(&rewards);
        LocationStatistic { location: thousandths as f64 / 1e3, mean, std, count: rewards.len() }
    };
    rewards.into_iter().map(statistic).collect()
}

/// What makes r̂_t of r_t.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Normalizer {
    /// r̂ = r: asked for by name, never a fallback.
    None,
    /// r̂ = (r - mean) / std: the bandit's, and the ablations over all or over last segments.
    Scalar {
        /// μ.
        mean: f64,
        /// σ > 0.
        std: f64,
    },
    /// r̂ = (r - Mean(p)) / Std(p): the paper's.
    LocationAware {
        /// w_μ.
        w_mean: f64,
        /// b_μ, the mean at the last segment.
        b_mean: f64,
        /// w_σ.
        w_std: f64,
        /// b_σ, the standard deviation at the last segment.
        b_std: f64,
        /// The least Std(p), if one is wanted: max(Std(p), floor).
        #[serde(default)]
        std_floor: Option<f64>,
    },
}

impl Normalizer {
    /// Mean(p), for p in (0, 1].
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::equations::normalizer::Normalizer;
    /// let fit = Normalizer::LocationAware { w_mean: 1.0, b_mean: 0.5, w_std: 0.0, b_std: 2.0, std_floor: None };
    /// assert_eq!(fit.mean(1.0), 0.5);
    /// assert_eq!(fit.mean(0.5), 0.5 - 2f64.ln());
    /// ```
    pub fn mean(&self, p: f64) -> f64 {
        match *self {
            Normalizer::None => 0.0,
            Normalizer::Scalar { mean, .. } => mean,
            Normalizer::LocationAware { w_mean, b_mean, .. } => w_mean * p.ln() + b_mean,
        }
    }

    /// Std(p), for p in (0, 1], not less than the floor.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::equations::normalizer::Normalizer;
    /// let (w_mean, b_mean, w_std, b_std) = (0.0, 0.0, 0.5, 1.0);
    /// let fit = |std_floor| Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, std_floor };
    /// let p = (-4f64).exp(); // 0.5 · -4 + 1 = -1
    /// assert_eq!((fit(None).std(1.0), fit(None).std(p)), (1.0, -1.0));
    /// assert_eq!((fit(Some(0.2)).std(1.0), fit(Some(0.2)).std(p)), (1.0, 0.2));
    /// ```
    pub fn std(&self, p: f64) -> f64 {
        match *self {
            Normalizer::None => 1.0,
            Normalizer::Scalar { std, .. } => std,
            Normalizer::LocationAware { w_std, b_std, std_floor, .. } => {
                let std = w_std * p.ln() + b_std;
                std_floor.map_or(std, |floor| std.max(floor))
            }
        }
    }

    /// E5: r̂ of a reward at location p.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::equations::normalizer::Normalizer;
    /// assert_eq!(Normalizer::Scalar { mean: 1.0, std: 2.0 }.normalize(5.0, 1.0), 2.0);
    /// ```
    pub fn normalize(&self, reward: f64, p: f64) -> f64 {
        (reward - self.mean(p)) / self.std(p)
    }

    /// E5 for one response: r̂_t of its segment rewards r_t, t = 0 … T-1, at p = (t+1)/T.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::equations::normalizer::Normalizer;
    /// // Mean(p) = ln p is -ln 2 halfway and 0 at the end.
    /// let fit = Normalizer::LocationAware { w_mean: 1.0, b_mean: 0.0, w_std: 0.0, b_std: 2.0, std_floor: None };
    /// assert_eq!(fit.normalize_all(&[0.0, 6.0]), [2f64.ln() / 2.0, 3.0]);
    /// ```
    pub fn normalize_all(&self, rewards: &[f64]) -> Vec<f64> {
        let normalize = |(t, &r): (usize, &f64)| self.normalize(r, location(t, rewards.len()));
        rewards.iter().enumerate().map(normalize).collect()
    }

    /// Whether the normalizer can divide by its Std(p) at every p in `[min_location, 1]`.
    ///
    /// The least location of a response of at most T segments is 1/T.
    ///
    /// # Errors
    ///
    /// [`NormalizerError::InvalidLocation`] for a `min_location` outside (0, 1],
    /// [`NormalizerError::NotFinite`] for a number of the fit, [`NormalizerError::NonPositiveStd`] and
    /// [`NormalizerError::StdCrossesZero`] for a Std(p) without a floor, [`NormalizerError::InvalidFloor`] for a
    /// floor that is not a positive number.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::equations::normalizer::Normalizer;
    /// // Std(p) = ln p + 2 is 0 at e^-2 = 0.135.
    /// let fit = Normalizer::LocationAware { w_mean: 0.0, b_mean: 0.0, w_std: 1.0, b_std: 2.0, std_floor: None };
    /// assert!(fit.check(1.0 / 7.0).is_ok());
    /// assert!(fit.check(1.0 / 8.0).is_err());
    /// ```
    pub fn check(&self, min_location: f64) -> Result<(), NormalizerError> {
        if !(min_location > 0.0 && min_location <= 1.0) {
            return Err(NormalizerError::InvalidLocation { location: min_location });
        }
        match *self {
            Normalizer::None => Ok(()),
            Normalizer::Scalar { mean, std } => {
                finite("the mean", mean)?;
                finite("the standard deviation", std)?;
                if std > 0.0 { Ok(()) } else { Err(NormalizerError::NonPositiveStd { std }) }
            }
            Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, std_floor } => {
                finite("w_mean", w_mean)?;
                finite("b_mean", b_mean)?;
                finite("w_std", w_std)?;
                finite("b_std", b_std)?;
                if let Some(floor) = std_floor.filter(|floor| !(floor.is_finite() && *floor > 0.0))
                {
                    return Err(NormalizerError::InvalidFloor { floor });
                }
                // Both are monotone in p, and finite at p = 1.
                finite("the mean at the first location", self.mean(min_location))?;
                finite("the standard deviation at the first location", self.std(min_location))?;
                // Std is monotone in p: its least value stands at an end of the range.
                let location = if w_std > 0.0 { min_location } else { 1.0 };
                let std = self.std(location);
                if std > 0.0 {
                    return Ok(());
                }
                if w_std == 0.0 {
                    return Err(NormalizerError::NonPositiveStd { std });
                }
                let crossing = (-b_std / w_std).exp();
                Err(NormalizerError::StdCrossesZero {
                    w_std,
                    b_std,
                    crossing,
                    location,
                    std,
                    min_location,
                })
            }
        }
    }

    /// The lines through the statistics of each location, on `ln(p + 1e-10)`, unweighted.
    ///
    /// # Errors
    ///
    /// Those of the regression, [`huber`] or [`least_squares`], and of [`Normalizer::check`].
    ///
    /// # Source
    ///
    /// Section 2.3; the official code fits means and standard deviations by the same regression.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::equations::normalizer::{LocationStatistic, Normalizer, Regression};
    /// // Means on the line 2 ln p + 1, and a standard deviation of 3 everywhere.
    /// let at = |location: f64| {
    ///     LocationStatistic { location, mean: 2.0 * location.ln() + 1.0, std: 3.0, count: 9 }
    /// };
    /// let statistics = [0.25, 0.5, 1.0].map(at);
    /// let fit = Normalizer::fit_location_aware(&statistics, Regression::LeastSquares, 0.01, None);
    /// let fit = fit.unwrap();
    /// assert!((fit.mean(0.1) - (2.0 * 0.1f64.ln() + 1.0)).abs() < 1e-8);
    /// assert!((fit.std(0.1) - 3.0).abs() < 1e-8);
    /// ```
    pub fn fit_location_aware(
        stats: &[LocationStatistic],
        regression: Regression,
        min_location: f64,
        std_floor: Option<f64>,
    ) -> Result<Self, NormalizerError> {
        let x: Vec<f64> = stats.iter().map(|s| (s.location + LOCATION_EPSILON).ln()).collect();
        let fit = |y: fn(&LocationStatistic) -> f64| {
            let y: Vec<f64> = stats.iter().map(y).collect();
            match regression {
                Regression::Huber => huber(&x, &y, HUBER_EPSILON).map(|(line, _scale)| line),
                Regression::LeastSquares => least_squares(&x, &y),
            }
        };
        let Line { slope: w_mean, intercept: b_mean } = fit(|s| s.mean)?;
        let Line { slope: w_std, intercept: b_std } = fit(|s| s.std)?;
        let normalizer = Self::LocationAware { w_mean, b_mean, w_std, b_std, std_floor };
        normalizer.check(min_location).map(|()| normalizer)
    }

    /// The mean and the biased standard deviation of rewards.
    ///
    /// # Errors
    ///
    /// [`NormalizerError::TooFewPoints`] of no reward, [`NormalizerError::NotFinite`] for one that is not, and
    /// [`NormalizerError::NonPositiveStd`] for rewards that do not vary.
    ///
    /// # Examples
    ///
    /// ```
    /// use segment_rlhf::equations::normalizer::Normalizer;
    /// let fit = Normalizer::fit_scalar(&[1.0, 3.0]).unwrap();
    /// assert_eq!(fit, Normalizer::Scalar { mean: 2.0, std: 1.0 });
    /// ```
    pub fn fit_scalar(rewards: &[f64]) -> Result<Self, NormalizerError> {
        if rewards.is_empty() {
            return Err(NormalizerError::TooFewPoints { points: 0, needed: 1 });
        }
        rewards.iter().try_for_each(|reward| finite("a reward", *reward))?;
        let (mean, std) = mean_and_std(rewards);
        let normalizer = Self::Scalar { mean, std };
        normalizer.check(1.0).map(|()| normalizer)
    }
}
/// The rewards r̂ of a response's T actions, each divided by T: their sum is then the average that E3 trains.
///
/// Ours, not the paper's (deviation D30): E3 learns an average while PPO maximises a sum, so that a policy better than
/// average earns by every further action.
///
/// # Examples
///
/// ```
/// assert_eq!(segment_rlhf::equations::normalizer::length_neutral(&[1.0, 3.0]), [0.5, 1.5]);
/// ```
pub fn length_neutral(rewards: &[f64]) -> Vec<f64> {
    rewards.iter().map(|reward| reward / rewards.len() as f64).collect()
}
