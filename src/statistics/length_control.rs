//! The win rate that remains when both answers are of the same length.
//!
//! ```text
//! x_i = tanh(d_i / std(d)),  d_i: characters of A's answer to question i less those of B's
//! P(A beats B on i) = σ(θ + φ x_i)
//! length-controlled win rate = σ(θ): at a difference of 0
//! ```
//!
//! θ and φ maximise the log-likelihood less [`RIDGE`]/2 (θ² + φ²); the optimum is found by Newton's method.
//!
//! # Source
//!
//! Dubois et al., "Length-Controlled AlpacaEval" (arXiv 2404.04475), and `metrics/glm_winrate.py` of
//! tatsu-lab/alpaca_eval. Three things differ. Theirs has a third term, the difficulty of each instruction,
//! fitted once on all models of their leaderboard for their judge; for another judge there is none. Their
//! penalty is absolute (L1), by cross-validation, and pulls towards two gamed copies of their baseline; here
//! it is a normal prior of standard deviation 2.5 on both coefficients. And there the preference of the judge
//! is a probability: here it is a win, a tie (½) or a loss, though the fit takes any number in [0, 1].

use crate::statistics::{mean, variance};

/// The penalty's weight: 1 / 2.5². It moves a fit on hundreds of questions by a small part of its standard
/// error, and keeps it finite where lengths alone decide all.
pub const RIDGE: f64 = 0.16;

/// One question: how far the judge prefers A's answer, and how much longer it is than B's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// 1 where A wins, 0 where B does, ½ for a tie.
    pub preference: f64,
    /// In characters, A's less B's.
    pub length_difference: f64,
}

/// The fit, and what it says at equal lengths.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LengthControl {
    /// θ: the log-odds that A beats B at equal lengths.
    pub model: f64,
    /// φ: how far they grow with the length.
    pub length: f64,
    /// σ(θ).
    pub win_rate: f64,
    /// Its standard error by the delta method, with the variance of θ that holds for ties too; none where the
    /// answers' lengths separate wins from losses, for then θ is the penalty's choice.
    pub standard_error: Option<f64>,
}

/// Fits the model to comparisons.
///
/// # Panics
///
/// Without comparisons, for a preference outside [0, 1], and for a length that is not finite.
///
/// # Examples
///
/// ```
/// use segment_rlhf::statistics::length_control::{Comparison, length_control};
/// let of = |preference, length_difference| Comparison { preference, length_difference };
/// // The longer answer wins, whoever gave it, and mostly A did: its rate of 3/5 is owed to length.
/// let all = [of(1.0, 90.0), of(1.0, 70.0), of(0.0, -80.0), of(1.0, 80.0), of(0.0, -80.0)];
/// let fit = length_control(&all);
/// assert!((fit.win_rate - 0.5).abs() < 0.05);
/// assert_eq!(fit.standard_error, None); // length explains everything
/// ```
pub fn length_control(comparisons: &[Comparison]) -> LengthControl {
    assert!(!comparisons.is_empty(), "there is something to compare");
    let x = covariates(comparisons);
    let y: Vec<f64> = comparisons.iter().map(|c| c.preference).collect();
    assert!(y.iter().all(|y| (0.0..=1.0).contains(y)), "a preference is in [0, 1]");
    let [model, length] = maximise(&x, &y);
    let win_rate = sigmoid(model);
    let slope = win_rate * (1.0 - win_rate); // of σ at θ
    let standard_error =
        (!separated(&x, &y)).then(|| slope * variance_of_model(&x, &y, model, length).sqrt());
    LengthControl { model, length, win_rate, standard_error }
}

/// x_i of each comparison: 0 for all if the differences are the same.
fn covariates(comparisons: &[Comparison]) -> Vec<f64> {
    let d: Vec<f64> = comparisons.iter().map(|c| c.length_difference).collect();
    assert!(d.iter().all(|d| d.is_finite()), "a length is a number");
    let n = d.len() as f64;
    let std = (variance(&d) * n / (n - 1.0)).sqrt(); // unbiased, as published; NaN of one
    d.iter().map(|d| if std > 0.0 { (d / std).tanh() } else { 0.0 }).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The penalised log-likelihood. ln(1 + e^η) is written so that it cannot overflow.
fn objective(x: &[f64], y: &[f64], [theta, phi]: [f64; 2]) -> f64 {
    let terms = x.iter().zip(y).map(|(x, y)| {
        let eta = theta + phi * x;
        y * eta - eta.max(0.0) - (-eta.abs()).exp().ln_1p()
    });
    terms.sum::<f64>() - RIDGE / 2.0 * (theta * theta + phi * phi)
}

/// Newton's method, with a step halved until the objective rises: it is strictly concave.
fn maximise(x: &[f64], y: &[f64]) -> [f64; 2] {
    let mut at = [0.0, 0.0];
    for _ in 0..100 {
        let Curvature { gradient, information } = curvature(x, y, at);
        let [step_theta, step_phi] = solve(information, gradient);
        let here = objective(x, y, at);
        let moved = |size: f64| [at[0] + size * step_theta, at[1] + size * step_phi];
        let sizes = std::iter::successors(Some(1.0), |size| Some(size / 2.0)).take(50);
        match sizes.map(moved).find(|&there| objective(x, y, there) > here) {
            Some(there) => at = there,
            None => break, // nothing higher in f64
        }
    }
    at
}

/// The gradient of the objective, and its Hessian with the sign turned.
struct Curvature {
    gradient: [f64; 2],
    information: [[f64; 2]; 2],
}

fn curvature(x: &[f64], y: &[f64], [theta, phi]: [f64; 2]) -> Curvature {
    let mut gradient = [-RIDGE * theta, -RIDGE * phi];
    let mut information = [[RIDGE, 0.0], [0.0, RIDGE]];
    for (&x, y) in x.iter().zip(y) {
        let p = sigmoid(theta + phi * x);
        let weight = p * (1.0 - p);
        gradient[0] += y - p;
        gradient[1] += x * (y - p);
        information[0][0] += weight;
        information[0][1] += weight * x;
        information[1][0] += weight * x;
        information[1][1] += weight * x * x;
    }
    Curvature { gradient, information }
}

/// The solution of a 2 × 2 system of a positive definite matrix.
fn solve([[a, b], [c, d]]: [[f64; 2]; 2], [u, v]: [f64; 2]) -> [f64; 2] {
    let determinant = a * d - b * c;
    [(d * u - b * v) / determinant, (a * v - c * u) / determinant]
}

/// The variance of θ: information⁻¹ · Σ_i (y_i - p_i)² x_i x_iᵀ · information⁻¹, which holds whatever the
/// variance of a preference is (a tie's is not a coin's).
fn variance_of_model(x: &[f64], y: &[f64], theta: f64, phi: f64) -> f64 {
    let [a, b] = solve(curvature(x, y, [theta, phi]).information, [1.0, 0.0]); // its first row, inverted
    let terms = x.iter().zip(y).map(|(x, y)| {
        let residual = y - sigmoid(theta + phi * x);
        (residual * (a + b * x)).powi(2)
    });
    terms.sum()
}

/// Whether without a penalty some coefficient would be infinite: a length divides wins from losses (a tie is
/// a part of both), or there is only one of them.
fn separated(x: &[f64], y: &[f64]) -> bool {
    let ends = |of: fn(f64) -> bool| {
        let x = x.iter().zip(y).filter(|(_, y)| of(**y)).map(|(x, _)| *x);
        x.fold(None, |ends: Option<(f64, f64)>, x| {
            let (low, high) = ends.unwrap_or((x, x));
            Some((low.min(x), high.max(x)))
        })
    };
    match (ends(|y| y > 0.0), ends(|y| y < 1.0)) {
        (Some(wins), Some(losses)) => {
            let one_length = wins.0 == wins.1 && wins == losses;
            !one_length && (wins.0 >= losses.1 || losses.0 >= wins.1)
        }
        _ => true,
    }
}

/// The mean preference and its standard error.
pub fn plain(comparisons: &[Comparison]) -> (f64, Option<f64>) {
    let preferences: Vec<f64> = comparisons.iter().map(|c| c.preference).collect();
    (mean(preferences.iter().copied()), crate::statistics::standard_error(&preferences))
}
