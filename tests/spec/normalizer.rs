//! E5: location-aware normalizers.

use std::f64::consts::LN_2;

use proptest::prelude::*;
use rand::Rng;
use segment_rlhf::equations::normalizer::{
    HUBER_EPSILON, HUBER_RIDGE, LOCATION_EPSILON, Line, LocationStatistic, Normalizer,
    NormalizerError, Regression, huber, least_squares, length_neutral, location,
    location_statistics,
};
use segment_rlhf::rng::stream;
use serde::Deserialize;

use crate::goldens::cases;
use crate::support::assert_close;
use crate::tolerance;

fn fit(w_mean: f64, w_std: f64, b_mean: f64, b_std: f64) -> Normalizer {
    Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, std_floor: None }
}

/// Phi-3-mini, segments at cutoff 1.75.
fn phi_segment() -> Normalizer {
    fit(0.7668, 0.2569, 0.4705, 2.8339)
}

/// Llama-3-8B, token level.
fn llama_token() -> Normalizer {
    fit(1.7340, 0.9906, 1.3212, 5.4513)
}

// 1. Worked example

#[test]
fn a_reward_is_shifted_by_the_mean_and_divided_by_the_spread_of_its_location() {
    // At p = 1 both logarithms are 0; at p = 1/2 they are -ln 2.
    let normalized = phi_segment().normalize_all(&[1.0, 1.0]);
    let half = (1.0 - (0.4705 - 0.7668 * LN_2)) / (2.8339 - 0.2569 * LN_2);
    assert_close(&normalized, &[half, (1.0 - 0.4705) / 2.8339], tolerance::HOST_F64);
}

#[test]
fn locations_run_from_one_over_t_to_one() {
    let locations: Vec<f64> = (0..4).map(|t| location(t, 4)).collect();
    assert_eq!(locations, [0.25, 0.5, 0.75, 1.0]);
}

#[test]
fn statistics_are_taken_at_locations_of_three_decimals_with_a_biased_spread() {
    let stats = location_statistics([(0.50049, 1.0), (1.0, 4.0), (0.4996, 3.0), (0.0004, 7.0)]);
    let statistic = |location, mean, std, count| LocationStatistic { location, mean, std, count };
    assert_eq!(
        stats,
        [statistic(0.0, 7.0, 0.0, 1), statistic(0.5, 2.0, 1.0, 2), statistic(1.0, 4.0, 0.0, 1)]
    );
}

#[test]
fn a_location_halfway_between_two_is_rounded_to_the_even_one() {
    // Exact binary fractions whose thousandfold is a half: 62.5 and 187.5.
    let stats = location_statistics([(0.0625, 1.0), (0.1875, 1.0)]);
    assert_eq!(stats.iter().map(|s| s.location).collect::<Vec<_>>(), [0.062, 0.188]);
}

#[test]
fn a_scalar_fit_is_the_mean_and_biased_spread() {
    let fitted = Normalizer::fit_scalar(&[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
    assert_eq!(fitted, Normalizer::Scalar { mean: 5.0, std: 2.0 });
}

#[test]
fn a_location_rounded_to_zero_is_fitted_at_the_logarithm_of_the_epsilon() {
    let at = |location, mean| LocationStatistic { location, mean, std: 1.0, count: 1 };
    let (stats, least_squares) = ([at(0.0, 1.0), at(1.0, 24.0)], Regression::LeastSquares);
    let fitted = Normalizer::fit_location_aware(&stats, least_squares, 1.0, None).unwrap();
    let Normalizer::LocationAware { w_mean, .. } = fitted else { unreachable!() };
    assert_close(&[w_mean], &[23.0 / -LOCATION_EPSILON.ln()], 2.0 * LOCATION_EPSILON);
}

// 2. Goldens

#[derive(Deserialize)]
struct FitCase {
    location: Vec<f64>,
    statistic: Vec<f64>,
    huber: [f64; 2],
    huber_scale: f64,
    ols: [f64; 2],
}

fn abscissas(case: &FitCase) -> Vec<f64> {
    case.location.iter().map(|p| (p + LOCATION_EPSILON).ln()).collect()
}

#[test]
fn least_squares_is_scikit_learn_s() {
    for case in cases::<FitCase>("normalizer_fit") {
        let line = least_squares(&abscissas(&case), &case.statistic).unwrap();
        assert_close(&[line.slope, line.intercept], &case.ols, tolerance::HOST_F64);
    }
}

/// HuberRegressor's objective.
fn objective(x: &[f64], y: &[f64], line: Line, scale: f64) -> f64 {
    let huber = |z: f64| {
        if z.abs() <= HUBER_EPSILON {
            z * z
        } else {
            2.0 * HUBER_EPSILON * z.abs() - HUBER_EPSILON * HUBER_EPSILON
        }
    };
    let loss =
        |(x, y): (&f64, &f64)| scale + scale * huber((y - line.slope * x - line.intercept) / scale);
    x.iter().zip(y).map(loss).sum::<f64>() + HUBER_RIDGE * line.slope * line.slope
}

#[test]
fn the_huber_regression_is_scikit_learn_s_at_a_minimum_as_low_or_lower() {
    for case in cases::<FitCase>("normalizer_fit") {
        let x = abscissas(&case);
        let (line, scale) = huber(&x, &case.statistic, HUBER_EPSILON).unwrap();
        let [slope, intercept] = case.huber;
        assert_close(
            &[line.slope, line.intercept, scale],
            &[slope, intercept, case.huber_scale],
            tolerance::HUBER_GOLDEN,
        );
        let ours = objective(&x, &case.statistic, line, scale);
        let theirs = objective(&x, &case.statistic, Line { slope, intercept }, case.huber_scale);
        assert!(ours <= theirs * (1.0 + tolerance::HOST_F64), "{ours} > {theirs}");
    }
}

#[test]
fn the_official_fit_keeps_scikit_learn_s_default_ridge() {
    // On the first case its optimiser got within 5e-8 of the minimum; leaving the ridge out would move
    // that by 6e-7.
    let case = cases::<FitCase>("normalizer_fit").remove(0);
    let (line, _) = huber(&abscissas(&case), &case.statistic, HUBER_EPSILON).unwrap();
    assert_close(&[line.slope, line.intercept], &case.huber, tolerance::HUBER_RIDGE_SHOWS);
}

#[test]
fn released_fits_can_be_used_over_the_segments_they_were_fitted_on() {
    let segment_fits = [
        phi_segment(),
        fit(0.7209, 0.2330, 0.6055, 2.6555),
        fit(0.8967, 0.5680, 0.8572, 4.1667),
        fit(0.8345, 0.4780, 0.8798, 3.7358),
    ];
    for fit in segment_fits {
        fit.check(1.0 / 1024.0).unwrap();
    }
    for (mean, std) in [(-0.5195, 2.1563), (-0.8164, 2.9531), (-0.8281, 2.9375)] {
        let bandit = Normalizer::Scalar { mean, std };
        bandit.check(1.0).unwrap();
        assert_close(&bandit.normalize_all(&[mean + std]), &[1.0], tolerance::HOST_F64);
    }
}

#[test]
fn the_released_llama_token_fit_is_refused_beyond_245_tokens() {
    // 0.9906 ln p + 5.4513 = 0 at p = e^-5.50303 = 0.0040744, between 1/245 and 1/246.
    llama_token().check(1.0 / 245.0).unwrap();
    let error = llama_token().check(1.0 / 246.0).unwrap_err();
    let NormalizerError::StdCrossesZero { crossing, location, std, .. } = error.clone() else {
        panic!("{error}");
    };
    assert_close(&[crossing], &[(-5.4513f64 / 0.9906).exp()], tolerance::HOST_F64);
    assert_eq!(location, 1.0 / 246.0);
    assert!(std < 0.0);
    for part in ["0.9906", "5.4513", "0.004074", "std_floor"] {
        assert!(error.to_string().contains(part), "{error}");
    }
    // The other released token fits hold to about 10,000 and 2,600 tokens.
    fit(0.9628, 0.3796, 1.2917, 3.5006).check(1.0 / 10_000.0).unwrap();
    fit(1.6268, 0.6254, 0.6419, 4.9217).check(1.0 / 2_600.0).unwrap();
}

// 3. Identities and limits

#[test]
fn one_segment_or_flat_lines_leave_the_bandit_s_scalar() {
    let scalar = Normalizer::Scalar { mean: 0.4705, std: 2.8339 };
    assert_eq!(phi_segment().normalize_all(&[3.0]), scalar.normalize_all(&[3.0]));
    let rewards = [3.0, -1.0, 0.5];
    let flat = fit(0.0, 0.0, 0.4705, 2.8339);
    assert_eq!(flat.normalize_all(&rewards), scalar.normalize_all(&rewards));
}

#[test]
fn a_length_neutral_return_is_the_mean_of_the_normalized_rewards() {
    let normalized = phi_segment().normalize_all(&[3.0, -1.0, 0.5, 2.0]);
    let sum = |rewards: &[f64]| rewards.iter().sum::<f64>();
    let mean = sum(&normalized) / 4.0;
    assert_close(&[sum(&length_neutral(&normalized))], &[mean], tolerance::HOST_F64);
    // Saying everything twice changes a sum, and not a mean.
    let twice = [&normalized[..], &normalized].concat();
    assert_close(&[sum(&length_neutral(&twice))], &[mean], tolerance::HOST_F64);
    // A response of one action, the bandit's, keeps its reward.
    assert_eq!(length_neutral(&normalized[..1]), normalized[..1]);
}

#[test]
fn no_normalizer_changes_nothing_and_is_asked_for_by_name() {
    assert_eq!(Normalizer::None.normalize_all(&[3.0, -1.0]), [3.0, -1.0]);
    assert_eq!(Normalizer::None.check(0.001), Ok(()));
    let read = serde_json::from_str::<Normalizer>;
    assert_eq!(read(r#"{"kind": "none"}"#).unwrap(), Normalizer::None);
    assert!(read("{}").is_err() && read("null").is_err());
}

#[test]
fn a_fit_survives_its_file_and_unknown_fields_are_refused() {
    let text = serde_json::to_string(&phi_segment()).unwrap();
    assert_eq!(serde_json::from_str::<Normalizer>(&text).unwrap(), phi_segment());
    let scalar = r#"{"kind": "scalar", "mean": 0.0, "std": 1.0, "w": 1.0}"#;
    assert!(serde_json::from_str::<Normalizer>(scalar).is_err());
    let no_floor = r#"{"kind": "location_aware", "w_mean": 0.7668, "b_mean": 0.4705, "w_std": 0.2569, "b_std": 2.8339}"#;
    assert_eq!(serde_json::from_str::<Normalizer>(no_floor).unwrap(), phi_segment());
}

#[test]
fn a_floor_keeps_the_spread_positive_where_the_fit_is_not() {
    let Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, .. } = llama_token() else {
        unreachable!()
    };
    let floored = Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, std_floor: Some(0.5) };
    floored.check(1.0 / 1024.0).unwrap();
    assert_eq!(floored.std(1.0 / 1024.0), 0.5);
    assert_eq!(floored.std(1.0), 5.4513);
    assert!(floored.normalize(1.0, 1.0 / 1024.0) > 0.0);
}

#[test]
fn points_on_a_line_are_fitted_exactly_by_either_regression() {
    let x: Vec<f64> = (1..20).map(|i| f64::from(i).ln()).collect();
    let y: Vec<f64> = x.iter().map(|x| 2.0 - 0.5 * x).collect();
    let line = least_squares(&x, &y).unwrap();
    assert_close(&[line.slope, line.intercept], &[-0.5, 2.0], tolerance::HOST_F64);
    let (line, scale) = huber(&x, &y, HUBER_EPSILON).unwrap();
    assert_close(&[line.slope, line.intercept, scale], &[-0.5, 2.0, 0.0], tolerance::HOST_F64);
}

#[test]
fn means_and_spreads_on_two_lines_give_these_lines_back() {
    let truth = phi_segment();
    let stats: Vec<LocationStatistic> = (1..=100)
        .map(|i| f64::from(i) / 100.0)
        .map(|p| LocationStatistic {
            location: p,
            mean: truth.mean(p),
            std: truth.std(p),
            count: 9,
        })
        .collect();
    for regression in [Regression::Huber, Regression::LeastSquares] {
        let fitted = Normalizer::fit_location_aware(&stats, regression, 0.01, None).unwrap();
        // Each location counts once, however many rewards lie there.
        let mut counted = stats.clone();
        counted.iter_mut().zip(1..).for_each(|(statistic, count)| statistic.count = count);
        let again = Normalizer::fit_location_aware(&counted, regression, 0.01, None).unwrap();
        assert_eq!(again, fitted);
        for p in [0.01, 0.3, 1.0] {
            assert_close(
                &[fitted.mean(p), fitted.std(p)],
                &[truth.mean(p), truth.std(p)],
                // The fit's abscissa is ln(p + 1e-10): 1e-8 off at p = 0.01.
                2.0 * LOCATION_EPSILON / 0.01,
            );
        }
    }
}

#[test]
fn a_huge_epsilon_makes_huber_least_squares_but_for_the_ridge() {
    let case = cases::<FitCase>("normalizer_fit").remove(0);
    let x = abscissas(&case);
    let (line, scale) = huber(&x, &case.statistic, 1e6).unwrap();
    // Then the minimum is that of least squares with the ridge times the scale.
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let xx: f64 = x.iter().map(|x| (x - mean).powi(2)).sum();
    let slope = case.ols[0] * xx / (xx + 1e-4 * scale);
    assert_close(&[line.slope], &[slope], tolerance::HOST_F64);
}

#[test]
fn points_that_mostly_lie_on_a_line_have_that_line() {
    // Deviations of few responses: none where only one of them has a segment. σ then falls to 0, slowly.
    let x: Vec<f64> = (1..=11).map(|k| (f64::from(k) / 11.0).ln()).collect();
    for outliers in [&[3, 8][..], &[4, 6], &[5]] {
        for (slope, intercept) in [(0.0, 0.0), (0.5, -1.0)] {
            let mut y: Vec<f64> = x.iter().map(|x| slope * x + intercept).collect();
            outliers.iter().for_each(|&i| y[i] += 0.7);
            let (line, scale) = huber(&x, &y, HUBER_EPSILON).unwrap();
            let found = [line.slope, line.intercept, scale];
            assert_close(&found, &[slope, intercept, 0.0], tolerance::HUBER_ON_A_LINE);
        }
    }
}

#[test]
fn the_huber_regression_settles_on_a_thousand_locations_at_any_scale_of_reward() {
    let mut draws = stream(7, "huber", 0);
    let x: Vec<f64> = (1..=1000).map(|p| (f64::from(p) / 1e3).ln()).collect();
    // Cubed uniform noise: many small residuals, a tenth far off.
    let noise: Vec<f64> = x.iter().map(|_| draws.random_range(-2f64..2.0).powi(3)).collect();
    for scale in [1e-3, 1.0, 1e4] {
        let y: Vec<f64> =
            x.iter().zip(&noise).map(|(x, noise)| scale * (0.8 * x + 0.5 + noise)).collect();
        let (line, _) = huber(&x, &y, HUBER_EPSILON).unwrap();
        assert!((line.slope / scale - 0.8).abs() < 0.1, "{line:?} at {scale}");
    }
}

/// Every kind that passes its check down to p = 0.001.
fn usable() -> impl Strategy<Value = Normalizer> {
    let fits =
        (-3f64..3.0, -2f64..2.0, -3f64..3.0, -3f64..15.0, proptest::option::of(0.01f64..2.0));
    let location_aware = fits.prop_map(|(w_mean, w_std, b_mean, b_std, std_floor)| {
        Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, std_floor }
    });
    prop_oneof![
        1 => Just(Normalizer::None),
        2 => (-9f64..9.0, 0.01f64..9.0).prop_map(|(mean, std)| Normalizer::Scalar { mean, std }),
        5 => location_aware.prop_filter("Std(p) > 0", |fit| fit.check(0.001).is_ok()),
    ]
}

proptest! {
    #[test]
    fn denormalizing_undoes_normalizing(
        normalizer in usable(), reward in -50f64..50.0, p in 0.001f64..=1.0,
    ) {
        let normalized = normalizer.normalize(reward, p);
        let back = normalized * normalizer.std(p) + normalizer.mean(p);
        prop_assert!((back - reward).abs() <= 100.0 * tolerance::HOST_F64);
    }

    #[test]
    fn a_fit_that_is_not_refused_has_a_positive_spread_at_every_location_it_was_checked_for(
        normalizer in usable(), p in 0.001f64..=1.0,
    ) {
        prop_assert!(normalizer.std(p) > 0.0);
    }

    #[test]
    fn huber_stands_still_at_its_minimum(
        y in proptest::collection::vec(-3f64..3.0, 5..40), dw in -0.1f64..0.1, db in -0.1f64..0.1, ds in 0.9f64..1.1,
    ) {
        let x: Vec<f64> = (1..=y.len()).map(|i| (i as f64).ln()).collect();
        let (line, scale) = huber(&x, &y, HUBER_EPSILON).unwrap();
        let moved = Line { slope: line.slope + dw, intercept: line.intercept + db };
        let (here, there) = (objective(&x, &y, line, scale), objective(&x, &y, moved, scale * ds));
        prop_assert!(here <= there * (1.0 + tolerance::HOST_F64));
    }
}

// 4. Gradients: none; a fit is a constant of policy training.

// 5. Padding and batch size: a response at a time, without padding.

#[test]
fn statistics_do_not_depend_on_the_order_of_the_calibration_set() {
    let mut points = [(0.5, 1.0), (1.0, 4.0), (0.5, 3.0), (0.25, 7.0), (1.0, -2.0)];
    let stats = location_statistics(points);
    points.reverse();
    assert_eq!(location_statistics(points), stats);
}

// 6. Errors

#[test]
fn a_fit_that_would_divide_by_zero_or_less_is_refused() {
    // A spread that falls along the response crosses 0 before its end: ln p = -1 at p = e^-1.
    let crosses = |std, crossing, w_std, b_std, min_location| {
        let location = 1.0;
        Err(NormalizerError::StdCrossesZero { w_std, b_std, crossing, location, std, min_location })
    };
    assert_eq!(fit(0.0, -1.0, 0.0, -1.0).check(0.1), crosses(-1.0, (-1f64).exp(), -1.0, -1.0, 0.1));
    // Zero itself is refused: ln 1 + 0.
    assert_eq!(fit(0.0, 1.0, 0.0, 0.0).check(1.0), crosses(0.0, 1.0, 1.0, 0.0, 1.0));
    assert_eq!(
        fit(0.0, 0.0, 0.0, -2.0).check(1.0),
        Err(NormalizerError::NonPositiveStd { std: -2.0 })
    );
    assert_eq!(
        Normalizer::Scalar { mean: 0.0, std: 0.0 }.check(1.0),
        Err(NormalizerError::NonPositiveStd { std: 0.0 })
    );
}

#[test]
fn numbers_that_are_not_finite_are_refused_by_name() {
    let named = |normalizer: Normalizer| match normalizer.check(1.0) {
        Err(NormalizerError::NotFinite { what, .. }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(named(fit(f64::NAN, 0.0, 0.0, 1.0)), "w_mean");
    assert_eq!(named(fit(0.0, f64::NAN, 0.0, 1.0)), "w_std");
    assert_eq!(named(fit(0.0, 0.0, f64::INFINITY, 1.0)), "b_mean");
    assert_eq!(named(fit(0.0, 0.0, 0.0, f64::NAN)), "b_std");
    assert_eq!(named(Normalizer::Scalar { mean: f64::NAN, std: 1.0 }), "the mean");
    assert_eq!(named(Normalizer::Scalar { mean: 0.0, std: f64::NAN }), "the standard deviation");
}

#[test]
fn floors_and_locations_out_of_range_are_refused() {
    for floor in [0.0, -1.0, f64::INFINITY] {
        let normalizer = Normalizer::LocationAware {
            w_mean: 0.0,
            b_mean: 0.0,
            w_std: 0.0,
            b_std: 1.0,
            std_floor: Some(floor),
        };
        assert_eq!(normalizer.check(1.0), Err(NormalizerError::InvalidFloor { floor }));
    }
    for location in [0.0, -0.1, 1.1] {
        let refused = Err(NormalizerError::InvalidLocation { location });
        assert_eq!(phi_segment().check(location), refused);
    }
}

#[test]
fn points_that_determine_no_line_are_refused() {
    let both = |x: &[f64], y: &[f64]| {
        let line = least_squares(x, y).unwrap_err();
        let robust = huber(x, y, HUBER_EPSILON).unwrap_err();
        assert_eq!(format!("{line}"), format!("{robust}"));
        line
    };
    assert_eq!(both(&[], &[]), NormalizerError::TooFewPoints { points: 0, needed: 2 });
    assert_eq!(both(&[1.0], &[1.0]), NormalizerError::TooFewPoints { points: 1, needed: 2 });
    assert_eq!(both(&[1.0, 2.0], &[1.0]), NormalizerError::LengthMismatch { x: 2, y: 1 });
    assert_eq!(both(&[2.0, 2.0], &[1.0, 3.0]), NormalizerError::OneLocation);
    assert!(matches!(
        both(&[1.0, f64::NAN], &[1.0, 3.0]),
        NormalizerError::NotFinite { what: "an abscissa", .. }
    ));
    assert_eq!(
        both(&[1.0, 2.0], &[1.0, f64::INFINITY]),
        NormalizerError::NotFinite { what: "an ordinate", value: f64::INFINITY }
    );
    let robust = |epsilon| huber(&[1.0, 2.0, 3.0], &[3.0, 5.0, 7.0], epsilon);
    assert_eq!(robust(0.9), Err(NormalizerError::InvalidEpsilon { epsilon: 0.9 }));
    assert!(matches!(robust(f64::NAN), Err(NormalizerError::InvalidEpsilon { .. })));
    robust(1.0).unwrap();
}

#[test]
fn ordinates_whose_squares_overflow_never_converge() {
    let (x, y) = ([1.0, 2.0, 3.0], [1e200, -1e200, 1e200]);
    assert_eq!(
        huber(&x, &y, HUBER_EPSILON),
        Err(NormalizerError::NotConverged { iterations: 100_000 })
    );
}

#[test]
fn a_calibration_set_that_fits_nothing_is_refused() {
    assert_eq!(
        Normalizer::fit_scalar(&[]),
        Err(NormalizerError::TooFewPoints { points: 0, needed: 1 })
    );
    assert_eq!(
        Normalizer::fit_scalar(&[2.0, 2.0]),
        Err(NormalizerError::NonPositiveStd { std: 0.0 })
    );
    assert_eq!(
        Normalizer::fit_scalar(&[2.0, f64::INFINITY]),
        Err(NormalizerError::NotFinite { what: "a reward", value: f64::INFINITY })
    );
    // Bandits have one location.
    let stats = location_statistics([(1.0, 2.0), (1.0, 3.0)]);
    assert_eq!(
        Normalizer::fit_location_aware(&stats, Regression::Huber, 1.0, None),
        Err(NormalizerError::TooFewPoints { points: 1, needed: 2 })
    );
    // Spreads that grow so fast that the line is negative early on.
    let stats = location_statistics([(0.1, 0.0), (0.5, -1.0), (0.5, 1.0), (1.0, 4.0), (1.0, -4.0)]);
    assert!(matches!(
        Normalizer::fit_location_aware(&stats, Regression::LeastSquares, 0.05, None),
        Err(NormalizerError::StdCrossesZero { .. })
    ));
    Normalizer::fit_location_aware(&stats, Regression::LeastSquares, 0.05, Some(0.1)).unwrap();
}

// 7. Devices: none; fits and rewards are f64 on the host.
