//! The regressions of E5: least squares, and Huber's as scikit-learn computes it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Where Huber's loss turns linear, in units of the scale: 95 % efficient on normal errors.
pub const HUBER_EPSILON: f64 = 1.35;

/// The ridge penalty on the slope in [`huber`]: scikit-learn's default.
pub const HUBER_RIDGE: f64 = 1e-4;

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

pub(super) fn rms(values: &[f64]) -> f64 {
    (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt()
}

pub(super) fn mean_and_std(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let deviations: Vec<f64> = values.iter().map(|v| v - mean).collect();
    (mean, rms(&deviations))
}

pub(super) fn check_points(x: &[f64], y: &[f64]) -> Result<(), NormalizerError> {
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

pub(super) fn finite(what: &'static str, value: f64) -> Result<(), NormalizerError> {
    if value.is_finite() { Ok(()) } else { Err(NormalizerError::NotFinite { what, value }) }
}
