//! E2 and E3: segment rewards and the score of a response. Goldens: see `bt_loss`, which shares them.

use burn::tensor::{DType, Tensor};
use proptest::prelude::*;
use segment_rlhf::equations::segment_reward::{
    Aggregation, aggregate, aggregation_weights, segment_rewards, sequence_scores,
};
use serde::Deserialize;

use crate::goldens::{cases, ranges};
use crate::support::{
    assert_close, assert_gradient, cpu, devices, host, matrix, panic_of, value_and_gradient,
};
use crate::tolerance;

const ALL: [Aggregation; 3] = [Aggregation::Average, Aggregation::Sum, Aggregation::Last];

fn rows(rows: &[Vec<f32>]) -> Vec<Vec<f64>> {
    rows.iter().map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
}

// 1. Worked example

#[test]
fn a_segment_s_reward_is_the_score_of_its_last_token() {
    let scores = [1.0, 2.0, 3.0, 4.0, 5.0];
    assert_eq!(segment_rewards(&scores, &[0..2, 2..3, 3..4]), [2.0, 3.0, 4.0]);
}

#[test]
fn the_score_of_a_response_is_the_average_of_its_segment_rewards() {
    let scores = [1.0, 2.0, 3.0, 4.0, 5.0];
    let rewards = segment_rewards(&scores, &[0..2, 2..3, 3..4]);
    assert_eq!(aggregate(&rewards, Aggregation::Average), 3.0);
    assert_eq!(aggregate(&rewards, Aggregation::Sum), 9.0);
    assert_eq!(aggregate(&rewards, Aggregation::Last), 4.0);
    assert_eq!(Aggregation::default(), Aggregation::Average);
}

// 2. Goldens

#[derive(Deserialize)]
struct Case {
    values: Vec<Vec<f64>>,
    segment_ends: Vec<Vec<usize>>,
    scores: Vec<f64>,
}

#[test]
fn sequence_scores_are_the_official_code_s() {
    for (device, tolerance) in devices() {
        for case in cases::<Case>("segment_bt_loss") {
            let width = case.values[0].len();
            let weights: Vec<Vec<f32>> = (case.segment_ends.iter())
                .map(|ends| aggregation_weights(&ranges(ends), width, Aggregation::Average))
                .collect();
            let scores = sequence_scores(
                matrix(&case.values, &device, DType::F32),
                matrix(&rows(&weights), &device, DType::F32),
            );
            assert_close(&host(scores), &case.scores, tolerance);
            for ((values, ends), score) in
                case.values.iter().zip(&case.segment_ends).zip(&case.scores)
            {
                let values: Vec<f32> = values.iter().map(|&v| v as f32).collect();
                let rewards = segment_rewards(&values, &ranges(ends));
                let actual = aggregate(&rewards, Aggregation::Average);
                assert_close(&[actual], &[*score], tolerance::CPU_F32);
            }
        }
    }
}

// 3. Identities and limits

#[test]
fn one_segment_is_the_bandit_under_every_aggregation() {
    for aggregation in ALL {
        let segments = ranges(&[3]);
        assert_eq!(aggregation_weights(&segments, 4, aggregation), [0.0, 0.0, 0.0, 1.0]);
        assert_eq!(aggregate(&segment_rewards(&[1.0, 2.0, 3.0, 4.0], &segments), aggregation), 4.0);
    }
}

proptest! {
    #[test]
    fn weights_pick_what_aggregation_of_the_segment_rewards_gives(
        scores in proptest::collection::vec(-4f32..4.0, 1..40), cuts in any::<u64>(),
    ) {
        let n = scores.len();
        let ends: Vec<usize> = (0..n).filter(|i| i + 1 == n || cuts >> (i % 64) & 1 == 1).collect();
        let segments = ranges(&ends);
        for aggregation in ALL {
            let weights = aggregation_weights(&segments, n, aggregation);
            let weighted: f64 =
                weights.iter().zip(&scores).map(|(w, s)| f64::from(*w) * f64::from(*s)).sum();
            let direct = aggregate(&segment_rewards(&scores, &segments), aggregation);
            // The weights are f32: a third is not exact.
            prop_assert!((weighted - direct).abs() <= tolerance::CPU_F32);
        }
    }
}

// 4. Gradients

#[test]
fn a_score_s_gradient_is_that_of_central_differences_under_every_aggregation() {
    let scores = [vec![1.0, 2.0, 4.0, 0.3], vec![7.0, 0.1, -0.2, 5.0]];
    for aggregation in ALL {
        let weights = rows(&[
            aggregation_weights(&[0..1, 1..3], 4, aggregation),
            aggregation_weights(&[0..2, 2..3, 3..4], 4, aggregation),
        ]);
        let weights = matrix(&weights, &cpu(), DType::F64);
        // Squared, so that each row's gradient has its own size.
        assert_gradient(|x| sequence_scores(x, weights.clone()).square().sum(), &scores);
    }
}

// 5. Padding and batch size

#[test]
fn a_score_of_no_weight_reaches_neither_value_nor_gradient_even_as_nan() {
    for (device, tolerance) in devices() {
        let weights = vec![vec![0.0, 0.5, 0.5, 0.0], vec![1.0, 0.0, 0.0, 0.0]];
        let score = |nan: f64| {
            let scores = vec![vec![nan, 2.0, 4.0, nan], vec![7.0, nan, nan, nan]];
            let loss = |scores: Tensor<2>| {
                sequence_scores(scores, matrix(&weights, &device, DType::F32)).square().sum()
            };
            value_and_gradient(loss, &scores, &device, DType::F32)
        };
        let (value, gradient) = score(f64::NAN);
        assert_close(&[value], &[58.0], tolerance); // 3² + 7²
        assert_close(&gradient, &[0.0, 3.0, 3.0, 0.0, 14.0, 0.0, 0.0, 0.0], tolerance);
        assert_eq!((value, gradient), score(0.0));
    }
}

#[test]
fn a_row_scores_the_same_alone_and_in_a_batch() {
    for (device, _) in devices() {
        let scores = vec![vec![1.0, 2.0, 4.0, 0.3], vec![7.0, 0.1, 0.2, 5.0]];
        let weights = vec![vec![0.0, 0.5, 0.5, 0.0], vec![0.25, 0.25, 0.25, 0.25]];
        let score = |s: &[Vec<f64>], w: &[Vec<f64>]| {
            let dtype = DType::F32;
            host(sequence_scores(matrix(s, &device, dtype), matrix(w, &device, dtype)))
        };
        let alone: Vec<f64> = (0..2).flat_map(|b| score(&scores[b..=b], &weights[b..=b])).collect();
        assert_eq!(score(&scores, &weights), alone);
        let turned = |rows: &[Vec<f64>]| [rows[1].clone(), rows[0].clone()];
        assert_eq!(score(&turned(&scores), &turned(&weights)), [alone[1], alone[0]]);
    }
}

// 6. Errors

#[test]
#[should_panic(expected = "a segment holds a token")]
fn an_empty_segment_has_no_reward() {
    segment_rewards(&[1.0, 2.0], &[0..1, 1..1]);
}

#[test]
#[should_panic(expected = "a segment holds a token")]
fn an_empty_segment_has_no_weight() {
    aggregation_weights(&[0..1, 1..1], 2, Aggregation::Average);
}

#[test]
#[should_panic(expected = "index out of bounds: the len is 2 but the index is 2")]
fn a_segment_past_the_scores_has_no_reward() {
    segment_rewards(&[1.0, 2.0], &[0..3]);
}

#[test]
#[should_panic(expected = "index out of bounds: the len is 2 but the index is 2")]
fn a_segment_past_the_response_has_no_weight() {
    aggregation_weights(&[0..3], 2, Aggregation::Average);
}

#[test]
#[should_panic(expected = "a response has at least one segment")]
fn a_response_of_no_segments_has_no_score() {
    aggregate(&[], Aggregation::Sum);
}

#[test]
fn weights_of_one_token_are_not_broadcast_over_a_response() {
    let (scores, weights) = (Tensor::zeros([2, 3], &cpu()), Tensor::ones([2, 1], &cpu()));
    let expected =
        "assert_shape!(weights, [batch, tokens]): axis 1 expected 3, got 1 (dims [2, 1])";
    assert_eq!(panic_of(|| sequence_scores(scores, weights)), expected);
}

// 7. Devices: every test above that asks for `devices()`; the rest is on the host.
