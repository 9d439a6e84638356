//! E5: a fit gives back the law that the rewards were drawn from.

use segment_rlhf::equations::normalizer::{
    LocationStatistic, Normalizer, Regression, location, location_statistics,
};
use segment_rlhf::rng::stream;
use segment_rlhf::statistics::{mean, variance};

use super::standard_normal;
use crate::tolerance;

/// The law is r ~ N(Mean(p), Std(p)²), with these w_μ, b_μ, w_σ and b_σ.
const LAW: [f64; 4] = [0.8, 0.5, 0.3, 2.5];

/// Mean(p) and Std(p).
fn law(p: f64) -> (f64, f64) {
    let [w_mean, b_mean, w_std, b_std] = LAW;
    (w_mean * p.ln() + b_mean, w_std * p.ln() + b_std)
}

const LONGEST: usize = 12;

/// The segment rewards of 500 responses of each number of segments from 1 to 12.
fn responses(purpose: &str) -> Vec<Vec<f64>> {
    let mut draws = stream(29, purpose, 0);
    let mut reward = |t: usize, segments: usize| {
        let (mean, std) = law((t + 1) as f64 / segments as f64);
        mean + std * standard_normal(&mut draws)
    };
    (1..=LONGEST)
        .flat_map(|segments| std::iter::repeat_n(segments, 500))
        .map(|segments| (0..segments).map(|t| reward(t, segments)).collect())
        .collect()
}

fn points(responses: &[Vec<f64>]) -> impl Iterator<Item = (f64, f64)> {
    responses.iter().flat_map(|rewards| {
        rewards.iter().enumerate().map(|(t, &reward)| (location(t, rewards.len()), reward))
    })
}

fn coefficients(normalizer: Normalizer) -> [f64; 4] {
    let Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, .. } = normalizer else {
        panic!("{normalizer:?}");
    };
    [w_mean, b_mean, w_std, b_std]
}

/// The standard errors of w_μ, b_μ, w_σ and b_σ by least squares. The slope is `Σ_j c_j y_j` over
/// locations j, `c_j = (x_j - x̄) / Σ (x - x̄)²`, the intercept `Σ_j (1/J - x̄ c_j) y_j`; the mean of n_j
/// rewards has variance Std²/n_j, their standard deviation half of that.
fn standard_errors(stats: &[LocationStatistic]) -> [f64; 4] {
    let x: Vec<f64> = stats.iter().map(|s| s.location.ln()).collect();
    let (center, n) = (mean(x.iter().copied()), x.len() as f64);
    let xx = n * variance(&x);
    let (mut slope, mut intercept) = (0.0, 0.0);
    for (x, s) in x.iter().zip(stats) {
        let (c, variance) = ((x - center) / xx, law(s.location).1.powi(2) / s.count as f64);
        slope += c * c * variance;
        intercept += (1.0 / n - center * c).powi(2) * variance;
    }
    [slope, intercept, slope / 2.0, intercept / 2.0].map(f64::sqrt)
}

/// Huber's regression is 95 % efficient on normal errors: one bound does for both.
#[test]
fn a_fit_to_samples_of_a_law_gives_its_lines_back_within_standard_errors() {
    let stats = location_statistics(points(&responses("law")));
    let bounds = standard_errors(&stats).map(|error| tolerance::STANDARD_ERRORS * error);
    assert!(bounds.iter().all(|&bound| bound < 0.2), "a bound that says something: {bounds:?}");
    for regression in [Regression::Huber, Regression::LeastSquares] {
        let min = 1.0 / LONGEST as f64;
        let fit = Normalizer::fit_location_aware(&stats, regression, min, None).unwrap();
        for ((fit, truth), bound) in coefficients(fit).iter().zip(LAW).zip(bounds) {
            assert!(
                (fit - truth).abs() < bound,
                "{fit} by {regression:?}, in truth {truth} ± {bound}"
            );
        }
    }
}

/// Mean and standard deviation of the normalized rewards in the first, second and last third.
fn thirds(normalizer: Normalizer, responses: &[Vec<f64>]) -> [[f64; 2]; 3] {
    let normalized: Vec<Vec<f64>> = responses.iter().map(|r| normalizer.normalize_all(r)).collect();
    [1, 2, 3].map(|third| {
        let inside = |p: f64| (p * 3.0).ceil() as usize == third;
        let rewards: Vec<f64> =
            points(&normalized).filter(|(p, _)| inside(*p)).map(|(_, reward)| reward).collect();
        [mean(rewards.iter().copied()), variance(&rewards).sqrt()]
    })
}

#[test]
fn rewards_not_seen_in_the_fit_have_mean_0_and_spread_1_early_midway_and_late() {
    let calibration = responses("law");
    let unseen = responses("unseen");
    let stats = location_statistics(points(&calibration));
    for regression in [Regression::Huber, Regression::LeastSquares] {
        let min = 1.0 / LONGEST as f64;
        let fit = Normalizer::fit_location_aware(&stats, regression, min, None).unwrap();
        for [mean, spread] in thirds(fit, &unseen) {
            assert!(mean.abs() < tolerance::NORMALIZED_THIRD, "{mean} by {regression:?}");
            assert!(
                (spread - 1.0).abs() < tolerance::NORMALIZED_THIRD,
                "{spread} by {regression:?}"
            );
        }
    }
    // One scalar for all locations leaves early rewards low and late ones high.
    let rewards: Vec<f64> = calibration.concat();
    let [early, _, late] = thirds(Normalizer::fit_scalar(&rewards).unwrap(), &unseen);
    assert!(early[0] < -0.2 && late[0] > 0.1, "{early:?} {late:?}");
}
