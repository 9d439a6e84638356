//! E5: the Huber regression against a search that knows its objective and nothing else.

use rand::Rng;
use segment_rlhf::equations::normalizer::{
    HUBER_EPSILON, HUBER_RIDGE, LOCATION_EPSILON, Line, huber,
};
use segment_rlhf::rng::stream;
use serde::Deserialize;

use super::standard_normal;
use crate::goldens::cases;
use crate::support::assert_close;
use crate::tolerance;

/// `Σ_i (σ + σ h(r_i / σ))`: the objective without its ridge.
fn loss(residuals: impl Iterator<Item = f64>, scale: f64) -> f64 {
    residuals
        .map(|residual| {
            let z = residual.abs() / scale;
            let quadratic = z <= HUBER_EPSILON;
            let h = if quadratic { z * z } else { HUBER_EPSILON * (2.0 * z - HUBER_EPSILON) };
            scale + scale * h
        })
        .sum()
}

fn objective(x: &[f64], y: &[f64], Line { slope, intercept }: Line, scale: f64) -> f64 {
    loss(x.iter().zip(y).map(|(x, y)| y - slope * x - intercept), scale)
        + HUBER_RIDGE * slope * slope
}

/// Where a convex function is least between `low` and `high`, and how low: a golden-section search.
fn least(low: f64, high: f64, mut f: impl FnMut(f64) -> f64) -> (f64, f64) {
    let section = (5f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (low, high);
    let (mut left, mut right) = (high - section * (high - low), low + section * (high - low));
    let (mut at_left, mut at_right) = (f(left), f(right));
    for _ in 0..60 {
        if at_left < at_right {
            (high, right, at_right) = (right, left, at_left);
            left = high - section * (high - low);
            at_left = f(left);
        } else {
            (low, left, at_left) = (left, right, at_right);
            right = low + section * (high - low);
            at_right = f(right);
        }
    }
    if at_left < at_right { (left, at_left) } else { (right, at_right) }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

/// The minimum by search: over slopes, for each over intercepts, for each over scales. The slope lies
/// between the slopes of pairs of points or, by the ridge, nearer to 0; intercept and scale lie within
/// the range of what the slope leaves over.
fn search(x: &[f64], y: &[f64]) -> (Line, f64) {
    let pairs = (0..x.len()).flat_map(|i| (0..i).map(move |j| (i, j)));
    let slopes = pairs.filter(|&(i, j)| x[i] != x[j]).map(|(i, j)| (y[i] - y[j]) / (x[i] - x[j]));
    let (low, high) = range(slopes);
    let rest = |slope: f64| x.iter().zip(y).map(|(x, y)| y - slope * x).collect::<Vec<_>>();
    let best_scale = |rest: &[f64], intercept: f64, spread: f64| {
        least(0.0, spread, |scale| loss(rest.iter().map(|r| r - intercept), scale))
    };
    let best_intercept = |rest: &[f64]| {
        let (low, high) = range(rest.iter().copied());
        least(low, high, |intercept| best_scale(rest, intercept, high - low).1)
    };
    let (slope, _) = least(low.min(0.0), high.max(0.0), |slope| {
        best_intercept(&rest(slope)).1 + HUBER_RIDGE * slope * slope
    });
    let rest = rest(slope);
    let (low, high) = range(rest.iter().copied());
    let (intercept, _) = best_intercept(&rest);
    let (scale, _) = best_scale(&rest, intercept, high - low);
    (Line { slope, intercept }, scale)
}

#[track_caller]
fn assert_least(x: &[f64], y: &[f64]) {
    let (line, scale) = huber(x, y, HUBER_EPSILON).unwrap();
    let (found, found_scale) = search(x, y);
    assert_close(
        &[objective(x, y, line, scale)],
        &[objective(x, y, found, found_scale)],
        tolerance::HOST_F64,
    );
    assert_close(
        &[line.slope, line.intercept, scale],
        &[found.slope, found.intercept, found_scale],
        tolerance::GOLDEN_SECTION,
    );
}

#[derive(Deserialize)]
struct Case {
    location: Vec<f64>,
    statistic: Vec<f64>,
}

#[test]
fn on_the_goldens_the_huber_regression_is_where_a_search_finds_the_minimum() {
    for case in cases::<Case>("normalizer_fit") {
        let x: Vec<f64> = case.location.iter().map(|p| (p + LOCATION_EPSILON).ln()).collect();
        assert_least(&x, &case.statistic);
    }
}

/// Normal noise about a line over ln p; every fifth point is an outlier.
#[test]
fn on_random_points_the_huber_regression_is_where_a_search_finds_the_minimum() {
    for index in 0..20 {
        let mut draws = stream(3, "huber points", index);
        let x: Vec<f64> =
            (0..draws.random_range(6..20)).map(|_| draws.random_range(0.01f64..1.0).ln()).collect();
        let noise = |(i, x): (usize, &f64)| {
            let spread = if i % 5 == 4 { 10.0 } else { 1.0 };
            0.8 * x + 0.5 + spread * standard_normal(&mut draws)
        };
        let y: Vec<f64> = x.iter().enumerate().map(noise).collect();
        assert_least(&x, &y);
    }
}

/// Points so near to each other that the ridge of 1e-4 takes 1e-3 off the slope.
#[test]
fn the_search_and_the_huber_regression_agree_on_the_ridge() {
    let mut draws = stream(3, "huber ridge", 0);
    let x: Vec<f64> = (0..12).map(|i| f64::from(i) / 50.0).collect();
    let y: Vec<f64> = x.iter().map(|x| 9.0 * x + 0.3 * standard_normal(&mut draws)).collect();
    assert_least(&x, &y);
}
