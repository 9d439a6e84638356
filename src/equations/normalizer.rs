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
use thiserror::Error;

/// What the fit adds to p before the logarithm: a location can be rounded to 0.
pub const LOCATION_EPSILON: f64 = 1e-10;

/// Where Huber's loss turns linear, in units of the scale: 95 % efficient on normal errors.
pub const HUBER_EPSILON: f64 = 1.35;

/// The ridge penalty on the slope in [`huber`]: scikit-learn's default.
pub const HUBER_RIDGE: f64 = 1e-4;

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

/// Why there is no normalizer.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum NormalizerError {
    /// Too few points for a fit.
    #[error(
        "{points} point(s) to fit a normalizer to, expected at least {needed}: calibrate on more responses"
    )]
    TooFewPoints {
        /// Points given.
        points: usize,
        /// Points needed.
        needed: usize,
    },
    /// Unequal numbers of coordinates.
    #[error("{x} abscissas but {y} ordinates")]
    LengthMismatch {
        /// Abscissas.
        x: usize,
        /// Ordinates.
        y: usize,
    },
    /// A number is NaN or infinite.
    #[error("{what} is {value}, expected a finite number")]
    NotFinite {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// All points lie at one location, so that no line is determined.
    #[error(
        "all points lie at one location: a line over locations needs responses of more than one \
         segment; fit a scalar normalizer instead"
    )]
    OneLocation,
    /// Huber's ε is below 1.
    #[error("Huber's epsilon is {epsilon}, expected at least 1 (1.35 is published)")]
    InvalidEpsilon {
        /// The offending ε.
        epsilon: f64,
    },
    /// The robust regression did not settle.
    #[error("the Huber regression did not converge in {iterations} iterations: use least squares")]
    NotConverged {
        /// Iterations made.
        iterations: usize,
    },
    /// The standard deviation is zero or negative wherever one looks.
    #[error("the standard deviation is {std}, expected more than 0: do the rewards vary?")]
    NonPositiveStd {
        /// The standard deviation.
        std: f64,
    },
    /// The fitted standard deviation is not positive at a location that a response can have.
    #[error(
        "Std(p) = {w_std} ln p + {b_std} reaches 0 at p = {crossing:.6} and is {std:.6} at \
         p = {location:.6}, but must be positive on [{min_location:.6}, 1]: limit responses to fewer \
         segments, refit on a calibration set that holds such responses, or set std_floor"
    )]
    StdCrossesZero {
        /// w_σ of the fit.
        w_std: f64,
        /// b_σ of the fit.
        b_std: f64,
        /// Where Std(p) is 0.
        crossing: f64,
        /// The end of the range where Std(p) is not positive.
        location: f64,
        /// Std there.
        std: f64,
        /// The start of the range.
        min_location: f64,
    },
    /// The floor is not a positive number.
    #[error("std_floor is {floor}, expected a finite number above 0")]
    InvalidFloor {
        /// The offending floor.
        floor: f64,
    },
    /// A location outside (0, 1].
    #[error("the location is {location}, expected a fraction in (0, 1]")]
    InvalidLocation {
        /// The offending location.
        location: f64,
    },
}

/// How a line is fitted to the statistics of each location.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Regression {
    /// [`huber`]: what the official code does.
    #[default]
    Huber,
    /// [`least_squares`]: the paper's linear regression.
    LeastSquares,
}

/// `y = slope · x + intercept`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Change of y over a change of x.
    pub slope: f64,
    /// y at x = 0.
    pub intercept: f64,
}

impl Line {
    fn residuals(&self, x: &[f64], y: &[f64]) -> Vec<f64> {
        x.iter().zip(y).map(|(x, y)| y - self.slope * x - self.intercept).collect()
    }
}

/// The line of least squared vertical distance to the points.
///
/// # Errors
///
/// [`NormalizerError::TooFewPoints`] of fewer than two points, [`NormalizerError::OneLocation`] of points at
/// one x alone, [`NormalizerError::LengthMismatch`], and [`NormalizerError::NotFinite`].
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::normalizer::{least_squares, Line};
/// let line = least_squares(&[0.0, 1.0, 2.0], &[1.0, 0.0, 5.0]).unwrap();
/// assert_eq!(line, Line { slope: 2.0, intercept: 0.0 });
/// ```
pub fn least_squares(x: &[f64], y: &[f64]) -> Result<Line, NormalizerError> {
    check_points(x, y)?;
    Ok(weighted_ridge(x, y, &vec![1.0; x.len()], 0.0))
}

/// The line of a Huber regression, and its scale σ.
///
/// # Formula
///
/// The minimum over slope, intercept and σ of `Σ_i (σ + σ h(r_i / σ)) + 1e-4 slope²`, where r_i are the
/// residuals and `h(z) = z²` for |z| ≤ ε, `2ε|z| - ε²` beyond. The problem is convex; each step
/// minimises a quadratic bound of it, so that the objective never rises. Where most points lie on one line, as
/// the deviations of few responses do, σ falls to 0 slowly; after the last step the line is then accepted if that
/// moved it by less than 1e-8 of the largest |y|.
///
/// # Errors
///
/// Those of [`least_squares`], [`NormalizerError::InvalidEpsilon`] for an ε below 1, and
/// [`NormalizerError::NotConverged`].
///
/// # Source
///
/// Huber 1981; scikit-learn's `HuberRegressor`, which the official code calls with ε = 1.35.
///
/// # Examples
///
/// ```
/// use segment_rlhf::equations::normalizer::{huber, HUBER_EPSILON};
/// // The last of nine points is far off y = x: least squares would tilt, Huber hardly does.
/// let x: Vec<f64> = (0..9).map(f64::from).collect();
/// let mut y: Vec<f64> = x.iter().enumerate().map(|(i, x)| x + [0.1, -0.1][i % 2]).collect();
/// y[8] = 1000.0;
/// let (line, _scale) = huber(&x, &y, HUBER_EPSILON).unwrap();
/// assert!((line.slope - 1.0).abs() < 0.1);
/// ```
pub fn huber(x: &[f64], y: &[f64], epsilon: f64) -> Result<(Line, f64), NormalizerError> {
    const ITERATIONS: usize = 100_000;
    check_points(x, y)?;
    if epsilon.is_nan() || epsilon < 1.0 {
        return Err(NormalizerError::InvalidEpsilon { epsilon });
    }
    let n = x.len() as f64;
    let floor = 10.0 * f64::EPSILON; // the scale of points that lie on a line: scikit-learn's bound
    let mut line = weighted_ridge(x, y, &vec![1.0; x.len()], 0.0);
    let mut scale = rms(&line.residuals(x, y)).max(floor);
    let mut change = f64::INFINITY;
    for _ in 0..ITERATIONS {
        let z: Vec<f64> = line.residuals(x, y).iter().map(|r| r.abs() / scale).collect();
        let weights: Vec<f64> =
            z.iter().map(|z| if *z > epsilon { epsilon / z } else { 1.0 }).collect();
        let linear: f64 = z.iter().map(|z| (epsilon * z - epsilon * epsilon).max(0.0)).sum();
        let next = weighted_ridge(x, y, &weights, HUBER_RIDGE * scale);
        let squares: f64 =
            next.residuals(x, y).iter().zip(&weights).map(|(r, weight)| weight * r * r).sum();
        let next_scale = (squares / (n + linear)).sqrt().max(floor);
        change = (next.slope - line.slope).abs()
            + (next.intercept - line.intercept).abs()
            + (next_scale - scale).abs();
        (line, scale) = (next, next_scale);
        if change <= 1e-14 * (line.slope.abs() + line.intercept.abs() + scale) {
            return Ok((line, scale));
        }
    }
    let largest = y.iter().fold(0.0, |max: f64, y| max.max(y.abs()));
    match change <= 1e-8 * largest {
        true => Ok((line, scale)),
        false => Err(NormalizerError::NotConverged { iterations: ITERATIONS }),
    }
}

/// The minimum of `Σ_i weight_i (y_i - slope x_i - intercept)² + ridge · slope²`.
fn weighted_ridge(x: &[f64], y: &[f64], weights: &[f64], ridge: f64) -> Line {
    let total: f64 = weights.iter().sum();
    let mean = |v: &[f64]| v.iter().zip(weights).map(|(v, w)| w * v).sum::<f64>() / total;
    let (mean_x, mean_y) = (mean(x), mean(y));
    let (mut xx, mut xy) = (ridge, 0.0);
    for ((x, y), weight) in x.iter().zip(y).zip(weights) {
        xx += weight * (x - mean_x) * (x - mean_x);
        xy += weight * (x - mean_x) * (y - mean_y);
    }
    let slope = xy / xx;
    Line { slope, intercept: mean_y - slope * mean_x }
}

fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
}

fn mean_and_std(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let deviations: Vec<f64> = values.iter().map(|v| v - mean).collect();
    (mean, rms(&deviations))
}

fn check_points(x: &[f64], y: &[f64]) -> Result<(), NormalizerError> {
    if x.len() != y.len() {
        return Err(NormalizerError::LengthMismatch { x: x.len(), y: y.len() });
    }
    if x.len() < 2 {
        return Err(NormalizerError::TooFewPoints { points: x.len(), needed: 2 });
    }
    x.iter().try_for_each(|x| finite("an abscissa", *x))?;
    y.iter().try_for_each(|y| finite("an ordinate", *y))?;
    if x.iter().all(|other| *other == x[0]) {
        return Err(NormalizerError::OneLocation);
    }
    Ok(())
}

fn finite(what: &'static str, value: f64) -> Result<(), NormalizerError> {
    if value.is_finite() { Ok(()) } else { Err(NormalizerError::NotFinite { what, value }) }
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
