//! E4: the segment Bradley-Terry loss, and the DPO baseline.

use burn::tensor::{DType, Device, Tensor};
use segment_rlhf::equations::bt_loss::{DpoLoss, dpo_loss, segment_bt_loss};
use segment_rlhf::equations::segment_reward::{Aggregation, aggregation_weights, sequence_scores};
use serde::Deserialize;

use crate::goldens::{cases, ranges};
use crate::support::{
    assert_close, assert_gradient, cpu, devices, host, matrix, panic_of, value_and_gradient, vector,
};

/// E4 of the rows of `[2, P]`: chosen, rejected.
fn loss_of_pairs(scores: Tensor<2>) -> Tensor<1> {
    let [chosen, rejected] = two_rows(scores);
    segment_bt_loss(chosen, rejected, None)
}

fn two_rows(x: Tensor<2>) -> [Tensor<1>; 2] {
    [0, 1].map(|i| x.clone().narrow(0, i, 1).squeeze_dim(0))
}

// 1. Worked example

#[test]
fn a_pair_costs_minus_the_log_of_the_chance_that_the_chosen_wins() {
    // Odds of 3 to 1 and of 1 to 1: ln (4/3) and ln 2.
    let expected = ((4f64 / 3.0).ln() + 2f64.ln()) / 2.0;
    for (device, tolerance) in devices() {
        let chosen = vector(&[3f64.ln(), 0.5], &device, DType::F32);
        let rejected = vector(&[0.0, 0.5], &device, DType::F32);
        assert_close(&host(segment_bt_loss(chosen, rejected, None)), &[expected], tolerance);
    }
}

#[test]
fn dpo_is_the_loss_of_beta_times_the_log_ratios_smoothed_toward_the_other_choice() {
    // Log-ratios 2 and -2 at β = ½: rewards 1 and -1, d = 2, and -ln σ(-d) = d - ln σ(d).
    for (device, tolerance) in devices() {
        let one = |x: f64| vector(&[x], &device, DType::F32);
        let dpo = dpo_loss(one(-1.0), one(-5.0), one(-3.0), one(-3.0), 0.5, 0.1);
        assert_close(&host(dpo.chosen_rewards), &[1.0], tolerance);
        assert_close(&host(dpo.rejected_rewards), &[-1.0], tolerance);
        assert_close(&host(dpo.loss), &[(1.0 + (-2f64).exp()).ln() + 0.1 * 2.0], tolerance);
    }
}

// 2. Goldens

#[derive(Deserialize)]
struct Case {
    values: Vec<Vec<f64>>,
    segment_ends: Vec<Vec<usize>>,
    pairs: usize,
    margin: Option<f64>,
    loss: f64,
    grad_values: Vec<Vec<f64>>,
}

/// E2 to E4 of per-token scores, chosen rows first.
fn loss_of_tokens(case: &Case, values: Tensor<2>, device: &Device, dtype: DType) -> Tensor<1> {
    let width = case.values[0].len();
    let weights: Vec<Vec<f64>> = (case.segment_ends.iter())
        .map(|ends| aggregation_weights(&ranges(ends), width, Aggregation::Average))
        .map(|row| row.into_iter().map(f64::from).collect())
        .collect();
    let scores = sequence_scores(values, matrix(&weights, device, dtype));
    let margin = case.margin.map(|m| vector(&vec![m; case.pairs], device, dtype));
    let half = |i: usize| scores.clone().slice([i * case.pairs..(i + 1) * case.pairs]);
    segment_bt_loss(half(0), half(1), margin)
}

#[test]
fn loss_and_gradient_of_token_scores_are_the_official_code_s() {
    for (device, tolerance) in devices() {
        for case in cases::<Case>("segment_bt_loss") {
            let loss = |values| loss_of_tokens(&case, values, &device, DType::F32);
            let (value, gradient) = value_and_gradient(loss, &case.values, &device, DType::F32);
            assert_close(&[value], &[case.loss], tolerance);
            assert_close(&gradient, &case.grad_values.concat(), tolerance);
        }
    }
}

#[derive(Deserialize)]
struct DpoCase {
    beta: f64,
    label_smoothing: f64,
    policy_chosen: Vec<f64>,
    policy_rejected: Vec<f64>,
    ref_chosen: Vec<f64>,
    ref_rejected: Vec<f64>,
    loss: f64,
    chosen_rewards: Vec<f64>,
    rejected_rewards: Vec<f64>,
}

#[test]
fn the_dpo_baseline_is_the_official_code_s() {
    for (device, tolerance) in devices() {
        for case in cases::<DpoCase>("dpo_loss") {
            let tensor = |values: &[f64]| vector(values, &device, DType::F32);
            let dpo = dpo_loss(
                tensor(&case.policy_chosen),
                tensor(&case.policy_rejected),
                tensor(&case.ref_chosen),
                tensor(&case.ref_rejected),
                case.beta,
                case.label_smoothing,
            );
            assert_close(&host(dpo.loss), &[case.loss], tolerance);
            assert_close(&host(dpo.chosen_rewards), &case.chosen_rewards, tolerance);
            assert_close(&host(dpo.rejected_rewards), &case.rejected_rewards, tolerance);
        }
    }
}

// 3. Identities and limits

#[test]
fn one_segment_a_response_is_the_bandit_loss_of_last_token_scores() {
    for (device, _) in devices() {
        let mut case = cases::<Case>("segment_bt_loss").remove(0);
        case.margin = None;
        let last = case.values[0].len() - 1;
        case.segment_ends.iter_mut().for_each(|ends| *ends = vec![last]);
        let values = matrix(&case.values, &device, DType::F32);
        let segment = loss_of_tokens(&case, values, &device, DType::F32);
        let scores: Vec<f64> = case.values.iter().map(|row| row[last]).collect();
        let (chosen, rejected) = scores.split_at(case.pairs);
        let bandit = segment_bt_loss(
            vector(chosen, &device, DType::F32),
            vector(rejected, &device, DType::F32),
            None,
        );
        assert_eq!(host(segment), host(bandit));
    }
}

#[test]
fn only_the_difference_of_scores_counts_and_a_margin_is_taken_off_it() {
    for (device, tolerance) in devices() {
        let loss = |chosen: f64, rejected: f64, margin: Option<f64>| {
            let score = |x: f64| vector(&[x], &device, DType::F32);
            host(segment_bt_loss(score(chosen), score(rejected), margin.map(score)))
        };
        assert_close(&loss(5.0, 4.0, None), &loss(1.0, 0.0, None), tolerance);
        assert_close(&loss(1.0, 0.0, Some(0.25)), &loss(0.75, 0.0, None), tolerance);
        assert_eq!(loss(1.0, 0.0, Some(0.0)), loss(1.0, 0.0, None));
    }
}

#[test]
fn scores_ten_thousand_apart_overflow_neither_loss_nor_gradient() {
    for (device, tolerance) in devices() {
        let loss = |chosen: f64| {
            value_and_gradient(loss_of_pairs, &[vec![chosen], vec![0.0]], &device, DType::F32)
        };
        assert_eq!(loss(1e4), (0.0, vec![0.0, 0.0]));
        let (value, gradient) = loss(-1e4);
        assert_close(&[value], &[1e4], tolerance);
        assert_close(&gradient, &[-1.0, 1.0], tolerance);
    }
}

#[test]
fn dpo_before_any_training_costs_ln_2_whatever_the_smoothing() {
    for (device, tolerance) in devices() {
        for smoothing in [0.0, 0.1, 0.4] {
            let log_probs = || vector(&[-3.0, -8.0], &device, DType::F32);
            let dpo = dpo_loss(log_probs(), log_probs(), log_probs(), log_probs(), 0.1, smoothing);
            assert_close(&host(dpo.loss), &[2f64.ln()], tolerance);
        }
    }
}

// 4. Gradients

#[test]
fn the_gradient_is_that_of_central_differences() {
    for case in cases::<Case>("segment_bt_loss") {
        let loss = |values| loss_of_tokens(&case, values, &Device::flex(), DType::F64);
        assert_gradient(loss, &case.values);
    }
}

#[test]
fn with_a_margin_or_without_the_gradient_is_that_of_central_differences() {
    let scores = [vec![0.3, -1.2, 2.0], vec![0.1, 0.7, -0.5]];
    assert_gradient(loss_of_pairs, &scores);
    let margin = vector(&[0.5, 0.0, -1.5], &cpu(), DType::F64);
    let with_margin = |scores| {
        let [chosen, rejected] = two_rows(scores);
        segment_bt_loss(chosen, rejected, Some(margin.clone()))
    };
    assert_gradient(with_margin, &scores);
}

/// DPO of the rows of `[2, 2]`, the policy's log-probabilities of chosen and rejected.
fn dpo_of_policy(log_probs: Tensor<2>, label_smoothing: f64) -> DpoLoss {
    let [chosen, rejected] = two_rows(log_probs);
    let reference = |values: [f64; 2]| vector(&values, &cpu(), chosen.dtype());
    let (ref_chosen, ref_rejected) = (reference([-4.0, -2.5]), reference([-3.5, -6.0]));
    dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.5, label_smoothing)
}

#[test]
fn dpo_s_gradient_is_that_of_central_differences_and_its_rewards_carry_none() {
    let log_probs = [vec![-3.0, -4.0], vec![-5.0, -2.0]];
    for smoothing in [0.0, 0.1] {
        assert_gradient(|x| dpo_of_policy(x, smoothing).loss, &log_probs);
    }
    let policy = matrix(&log_probs, &cpu(), DType::F64).autodiff().require_grad();
    let dpo = dpo_of_policy(policy, 0.1);
    assert!(dpo.loss.is_tracked());
    assert!(!dpo.chosen_rewards.is_tracked() && !dpo.rejected_rewards.is_tracked());
}

// 5. Padding and batch size: scores have no padding; that of the tokens behind them is in `segment_reward`.

#[test]
fn a_batch_costs_the_mean_of_its_pairs_in_any_order() {
    for (device, tolerance) in devices() {
        let loss = |pairs: &[[f64; 2]]| {
            let side = |i: usize| pairs.iter().map(|pair| pair[i]).collect();
            host(loss_of_pairs(matrix(&[side(0), side(1)], &device, DType::F32)))[0]
        };
        let pairs = [[0.3, 0.1], [-1.2, 0.7], [2.0, -0.5]];
        let mean = pairs.iter().map(|pair| loss(&[*pair])).sum::<f64>() / 3.0;
        assert_close(&[loss(&pairs), loss(&[pairs[2], pairs[0], pairs[1]])], &[mean; 2], tolerance);
    }
}

// 6. Errors

/// Tensors of 3 pairs, but one pair alone in the one with this number.
fn narrow_at<const N: usize>(narrow: usize) -> [Tensor<1>; N] {
    std::array::from_fn(|i| Tensor::zeros([if i == narrow { 1 } else { 3 }], &cpu()))
}

/// One pair alone in the argument `name` would be broadcast over three.
fn broadcast(name: &str) -> String {
    format!("assert_shape!({name}, [pairs]): axis 0 expected 3, got 1 (dims [1])")
}

#[test]
fn the_loss_broadcasts_none_of_its_arguments() {
    for (i, name) in ["rejected", "margin"].into_iter().enumerate() {
        let [chosen, rejected, margin] = narrow_at(i + 1);
        assert_eq!(panic_of(|| segment_bt_loss(chosen, rejected, Some(margin))), broadcast(name));
    }
}

#[test]
fn dpo_broadcasts_none_of_its_arguments() {
    for (i, name) in ["policy_rejected", "ref_chosen", "ref_rejected"].into_iter().enumerate() {
        let [chosen, rejected, ref_chosen, ref_rejected] = narrow_at(i + 1);
        let of = || dpo_loss(chosen, rejected, ref_chosen, ref_rejected, 0.1, 0.0);
        assert_eq!(panic_of(of), broadcast(name));
    }
}

// 7. Devices: every test above that asks for `devices()`.
