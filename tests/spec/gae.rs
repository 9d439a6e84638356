//! E8: generalised advantage estimation, and whitening.

use proptest::prelude::*;
use segment_rlhf::equations::gae::{WHITENING_EPSILON, gae, whiten};
use serde::Deserialize;

use crate::goldens::cases;
use crate::support::assert_close;
use crate::tolerance;

// 1. Worked example

#[test]
fn advantages_are_discounted_sums_of_temporal_differences() {
    // δ = (1 + 0.5·2 - 1, 2 + 0.5·4 - 2, 3 - 4) = (1, 2, -1); γλ = 0.25.
    let got = gae(&[1.0, 2.0, 3.0], &[1.0, 2.0, 4.0], 0.5, 0.5);
    assert_close(&got.advantages, &[1.4375, 1.75, -1.0], tolerance::HOST_F64);
    assert_close(&got.returns, &[2.4375, 3.75, 3.0], tolerance::HOST_F64);
}

#[test]
fn advantages_are_whitened_by_their_mean_and_biased_variance() {
    let mut rows = [vec![3.0], vec![1.0, 5.0, 7.0]]; // mean 4, variance (1 + 9 + 1 + 9) / 4
    whiten(&mut rows);
    let unit = 1.0 / (5.0 + WHITENING_EPSILON).sqrt();
    let expected = [-1.0, -3.0, 1.0, 3.0].map(|deviation| deviation * unit);
    assert_close(&rows.concat(), &expected, tolerance::HOST_F64);
}

#[test]
fn whitening_adds_its_epsilon_to_the_variance_and_not_to_the_root() {
    let mut rows = [vec![1e-4, -1e-4]]; // variance 1e-8, as much as the epsilon
    whiten(&mut rows);
    assert_close(&rows[0], &[0.5f64.sqrt(), -0.5f64.sqrt()], tolerance::HOST_F64);
}

// 2. Goldens

#[derive(Deserialize)]
struct Case {
    gamma: f64,
    lambda: f64,
    num_actions: Vec<usize>,
    values: Vec<Vec<f64>>,
    rewards: Vec<Vec<f64>>,
    advantages: Vec<Vec<f64>>,
    returns: Vec<Vec<f64>>,
    whitened: Vec<Vec<f64>>,
}

#[test]
fn advantages_returns_and_whitening_are_the_official_code_s() {
    for case in cases::<Case>("gae") {
        let mut rows = Vec::new();
        for (row, &n) in case.num_actions.iter().enumerate() {
            let got = gae(&case.rewards[row][..n], &case.values[row][..n], case.gamma, case.lambda);
            assert_close(&got.advantages, &case.advantages[row][..n], tolerance::CPU_F32);
            assert_close(&got.returns, &case.returns[row][..n], tolerance::CPU_F32);
            rows.push(got.advantages);
        }
        whiten(&mut rows);
        assert_close(&rows.concat(), &case.whitened.concat(), tolerance::CPU_F32);
    }
}

// 3. Identities and limits

#[test]
fn a_response_of_no_tokens_has_no_advantages_and_whitening_nothing_is_nothing() {
    assert!(gae(&[], &[], 1.0, 0.95).advantages.is_empty());
    let mut rows = [vec![], vec![]];
    whiten(&mut rows);
    assert!(rows.concat().is_empty());
}

#[test]
fn equal_advantages_whiten_to_zero() {
    let mut rows = [vec![2.0, 2.0], vec![2.0]];
    whiten(&mut rows);
    assert_eq!(rows, [vec![0.0, 0.0], vec![0.0]]);
}

fn response() -> impl Strategy<Value = (Vec<f64>, Vec<f64>)> {
    proptest::collection::vec((-5f64..5.0, -5f64..5.0), 1..40)
        .prop_map(|tokens| tokens.into_iter().unzip())
}

proptest! {
    #[test]
    fn the_recursion_is_the_double_sum(
        (rewards, values) in response(), gamma in 0f64..=1.0, lambda in 0f64..=1.0,
    ) {
        let n = rewards.len();
        let value = |i: usize| values.get(i).copied().unwrap_or(0.0);
        let naive: Vec<f64> = (0..n)
            .map(|i| {
                (0..n - i)
                    .map(|k| {
                        let delta = rewards[i + k] + gamma * value(i + k + 1) - value(i + k);
                        (gamma * lambda).powi(k as i32) * delta
                    })
                    .sum()
            })
            .collect();
        assert_close(&gae(&rewards, &values, gamma, lambda).advantages, &naive, 100.0 * tolerance::HOST_F64);
    }

    #[test]
    fn at_lambda_one_the_return_is_the_rewards_to_come((rewards, values) in response()) {
        let got = gae(&rewards, &values, 1.0, 1.0);
        let to_come: Vec<f64> = (0..rewards.len()).map(|i| rewards[i..].iter().sum()).collect();
        assert_close(&got.returns, &to_come, 100.0 * tolerance::HOST_F64);
    }

    #[test]
    fn at_lambda_zero_the_advantage_is_one_temporal_difference((rewards, values) in response()) {
        let got = gae(&rewards, &values, 1.0, 0.0);
        let next = values[1..].iter().chain([&0.0]);
        let deltas: Vec<f64> =
            rewards.iter().zip(next).zip(&values).map(|((r, next), v)| r + next - v).collect();
        assert_close(&got.advantages, &deltas, tolerance::HOST_F64);
    }

    #[test]
    fn whitened_advantages_have_mean_zero_and_variance_one_over_all_tokens(
        mut rows in proptest::collection::vec(proptest::collection::vec(-9f64..9.0, 0..9), 1..9),
    ) {
        rows.push(vec![-1.0, 1.0]);
        whiten(&mut rows);
        let all = rows.concat();
        let n = all.len() as f64;
        let mean = all.iter().sum::<f64>() / n;
        let variance = all.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / n;
        prop_assert!(mean.abs() <= tolerance::HOST_F64);
        prop_assert!((variance - 1.0).abs() <= tolerance::WHITENED);
    }
}

// 4. Gradients: none; advantages and returns are constants of the losses.

// 5. Padding and batch size: a response at a time, without padding; whitening joins the rows of a rollout.

proptest! {
    #[test]
    fn whitening_depends_neither_on_the_rows_cut_nor_on_their_order_nor_on_a_shift(
        values in proptest::collection::vec(-9f64..9.0, 3..30), cut in 1usize..3, shift in -9f64..9.0,
    ) {
        let (a, b) = values.split_at(cut);
        let mut rows = [a.to_vec(), b.to_vec()];
        let mut shifted = [values.iter().map(|v| v + shift).collect::<Vec<_>>()];
        whiten(&mut rows);
        whiten(&mut shifted);
        // Nearly equal advantages lose digits to the shift.
        assert_close(&rows.concat(), &shifted[0], tolerance::WHITENED);
        let mut turned = [b.to_vec(), a.to_vec()];
        whiten(&mut turned);
        turned.reverse();
        assert_close(&turned.concat(), &rows.concat(), tolerance::WHITENED);
    }
}

// 6. Errors

#[test]
#[should_panic(expected = "one value a reward")]
fn a_reward_without_a_value_is_refused() {
    gae(&[1.0, 2.0], &[0.5], 1.0, 0.95);
}

// 7. Devices: none; advantages are f64 on the host.
