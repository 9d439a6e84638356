//! ReMedy's calibration, and the regularizer of scores.

use burn::tensor::DType;
use proptest::prelude::*;
use segment_rlhf::equations::bt_loss::{score_regularizer, segment_bt_loss};
use segment_rlhf::equations::calibration::*;

use crate::support::{
    assert_close, assert_gradient, cpu, devices, host, matrix, panic_of, value_and_gradient, vector,
};
use crate::tolerance;

// 1. Worked example

#[test]
fn the_best_temperature_spreads_two_clusters_over_their_bins() {
    // Each cluster is of two scores; apart at a temperature of about their distance, in one bin each far below it.
    let scores = [-40.0, -20.0, 20.0, 40.0];
    assert_close(&[histogram_entropy(&scores, 1.0)], &[2f64.ln()], tolerance::HOST_F64);
    let best = best_temperature(&scores).unwrap();
    assert_close(&[histogram_entropy(&scores, best)], &[4f64.ln()], tolerance::HOST_F64);
}

// 2. No goldens: ReMedy's repository holds inference alone, without the search.

// 3. Identities and limits

proptest! {
    #[test]
    fn a_calibrated_score_keeps_the_order_and_its_sign(
        a in -50.0..50.0f64, b in -50.0..50.0f64, temperature in 0.1..100.0f64,
    ) {
        let [x, y] = [a, b].map(|score| calibrated(score, temperature));
        prop_assert!((a < b) <= (x <= y));
        prop_assert!((x - 0.5) * a >= 0.0);
        prop_assert!((calibrated(-a, temperature) - (1.0 - x)).abs() < 1e-12);
    }

    #[test]
    fn no_temperature_of_the_search_has_more_entropy_and_none_more_than_ln_20(
        scores in prop::collection::vec(-30.0..30.0f64, 1..60), at in 0.01..10.0f64,
    ) {
        let largest = scores.iter().fold(0.0f64, |max, s| max.max(s.abs()));
        prop_assume!(largest > 1e-6);
        let best = histogram_entropy(&scores, best_temperature(&scores).unwrap());
        prop_assert!(best <= (BINS as f64).ln() + 1e-12);
        // Another temperature may fall between two of the grid; one of the grid may not be better.
        let step = (at.log10() * 60.0).round().clamp(-120.0, 60.0);
        let other = largest * 10f64.powf(step / 60.0);
        prop_assert!(histogram_entropy(&scores, other) <= best + 1e-12);
    }
}

#[test]
fn scores_of_zero_have_no_temperature_and_no_scores_no_entropy() {
    assert_eq!(best_temperature(&[0.0, 0.0]), None);
    assert_eq!(best_temperature(&[]), None);
    assert_eq!(histogram_entropy(&[], 1.0), 0.0);
    // σ of a huge score is 1, and belongs to the last bin.
    assert_eq!(histogram_entropy(&[1e9], 1.0), 0.0);
}

#[test]
fn the_regularizer_alone_pulls_scores_to_zero_and_a_shift_that_the_loss_does_not_see_costs() {
    for (device, tolerance) in devices() {
        let score = |x: &[f64]| vector(x, &device, DType::F32);
        let both = |shift: f64| {
            let (chosen, rejected) = (score(&[1.0 + shift, shift]), score(&[shift - 1.0, shift]));
            let loss = host(segment_bt_loss(chosen.clone(), rejected.clone(), None))[0];
            [loss, host(score_regularizer(chosen, rejected))[0]]
        };
        let ([loss, near], [shifted, far]) = (both(0.0), both(3.0));
        assert_close(&[shifted], &[loss], tolerance);
        assert_close(&[near, far], &[0.5, 9.5], tolerance); // mean of (1, 0, 1, 0) and of (16, 9, 4, 9)
        let rows = vec![vec![2.0], vec![-1.0]];
        let of = |x: burn::tensor::Tensor<2>| {
            let row = |i: usize| x.clone().narrow(0, i, 1).squeeze_dim::<1>(0);
            score_regularizer(row(0), row(1))
        };
        let (_, gradient) = value_and_gradient(of, &rows, &device, DType::F32);
        assert_close(&gradient, &[2.0, -1.0], tolerance); // each is a mean's half
    }
}

// 4. Gradient

#[test]
fn the_regularizer_has_the_gradient_of_central_differences() {
    let rows = vec![vec![0.5, -1.5, 2.0], vec![-0.25, 1.0, 0.75]];
    let of = |x: burn::tensor::Tensor<2>| {
        let row = |i: usize| x.clone().narrow(0, i, 1).squeeze_dim::<1>(0);
        score_regularizer(row(0), row(1))
    };
    assert_gradient(of, &rows);
}

// 5. No padding: scores are of whole responses.

// 6. Bad input

#[test]
fn scores_of_other_numbers_of_pairs_are_refused() {
    let row = |n: usize| matrix(&[vec![0.0; n]], &cpu(), DType::F32).squeeze_dim::<1>(0);
    let panic = panic_of(|| score_regularizer(row(2), row(3)));
    assert!(panic.contains("shape") || panic.contains("dim"), "{panic}");
}
