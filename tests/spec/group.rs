//! Group-relative PPO: baselines of groups, the k3 penalty and the clipped losses over tokens and responses.

use burn::tensor::{DType, Device, Tensor};
use proptest::prelude::*;
use segment_rlhf::equations::clip_k3::{TokenMean, clip_k3_loss, k3_penalty, response_clip_loss};
use segment_rlhf::equations::group_baseline::{STD_EPSILON, leave_one_out, over_mean, over_std};
use segment_rlhf::equations::kl::{k1, k3};
use segment_rlhf::equations::ppo::{PolicyLoss, policy_loss};
use serde::Deserialize;

use crate::goldens::cases;
use crate::support::{
    assert_close, assert_gradient, cpu, devices, host, mask, matrix, padded, panic_of,
    value_and_gradient, with_nan_padding,
};
use crate::tolerance;

// 1. Worked example

#[test]
fn a_response_is_worth_what_it_earns_beyond_its_group() {
    // Mean 2, deviations -2, 0, 2; unbiased variance 4.
    let rewards = [0.0, 2.0, 4.0];
    assert_close(&over_mean(&rewards), &[-2.0, 0.0, 2.0], tolerance::HOST_F64);
    let unit = 2.0 / (2.0 + STD_EPSILON);
    assert_close(&over_std(&rewards), &[-unit, 0.0, unit], tolerance::HOST_F64);
    // The others' means are 3, 2 and 1.
    assert_close(&leave_one_out(&rewards), &[-3.0, 0.0, 3.0], tolerance::HOST_F64);
}

#[test]
fn a_token_pays_beta_for_its_k3_and_a_response_is_clipped_as_one() {
    for (device, tolerance) in devices() {
        let row = |row: [f64; 2]| matrix(&[row.to_vec()], &device, DType::F32);
        let ones = mask(&[2], 2, &device);
        // Ratios 1.5 and 1, advantage 1, ε = 0.2: 1.2 and 1. k3 at the reference's double probability is 1 - ln 2.
        let new = [1.5f64.ln(), 0.0];
        let reference = [1.5f64.ln(), 2f64.ln()];
        let rows = [row(new), row([0.0; 2]), row(reference), row([1.0; 2])];
        let loss = clip_k3_loss(rows, ones.clone(), 0.2, 0.5, TokenMean::Response);
        let penalty = 0.5 * (1.0 - 2f64.ln()) / 2.0;
        assert_close(&host(loss.loss), &[-(1.2 + 1.0) / 2.0 + penalty], tolerance);
        assert_close(&host(loss.clip_fraction), &[0.5], tolerance);
        // One ratio of 1.5 for both tokens: -1.2 A.
        let loss = response_clip_loss(row(new), row([0.0; 2]), row([3.0; 2]), ones, 0.2);
        assert_close(&host(loss.loss), &[-3.6], tolerance);
        assert_close(&host(loss.ratio), &[1.5], tolerance);
    }
}

// 2. Goldens: TRL's trainers

#[derive(Deserialize)]
struct Case {
    loss_type: Option<String>,
    scale_rewards: Option<String>,
    #[serde(default)]
    normalize_advantages: bool,
    group_size: usize,
    beta: f64,
    #[serde(alias = "clip")]
    clip_high: f64,
    clip_low: Option<f64>,
    max_completion_length: Option<f64>,
    rewards: Vec<f64>,
    #[serde(default)]
    rewards_less_kl: Vec<f64>,
    advantages: Vec<f64>,
    log_probs: Vec<Vec<f64>>,
    old_log_probs: Vec<Vec<f64>>,
    ref_log_probs: Vec<Vec<f64>>,
    loss: f64,
    clipped_fraction: Option<f64>,
    grad_log_probs: Vec<Vec<f64>>,
}

impl Case {
    fn lengths(&self) -> Vec<usize> {
        self.log_probs.iter().map(Vec::len).collect()
    }

    /// Rows of different lengths on one rectangle, NaN behind them.
    fn padded(&self, rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
        padded(rows, self.lengths().into_iter().max().unwrap(), f64::NAN)
    }

    /// Each response's advantage at each of its tokens.
    fn token_advantages(&self) -> Vec<Vec<f64>> {
        let rows = self.advantages.iter().zip(self.lengths());
        self.padded(&rows.map(|(&a, n)| vec![a; n]).collect::<Vec<_>>())
    }

    fn mean(&self) -> TokenMean {
        match self.loss_type.as_deref() {
            Some("dr_grpo") => TokenMean::Constant(self.max_completion_length.unwrap()),
            _ => TokenMean::Response,
        }
    }

    fn policy(&self, log_probs: Tensor<2>, device: &Device) -> PolicyLoss {
        let dtype = log_probs.dtype();
        let row = |rows: &[Vec<f64>]| matrix(&self.padded(rows), device, dtype);
        let (old, reference) = (row(&self.old_log_probs), row(&self.ref_log_probs));
        let advantages = matrix(&self.token_advantages(), device, dtype);
        let mask = mask(&self.lengths(), log_probs.dims()[1], device);
        match self.loss_type {
            Some(_) => {
                let rows = [log_probs, old, reference, advantages];
                clip_k3_loss(rows, mask, self.clip_high, self.beta, self.mean())
            }
            None => response_clip_loss(log_probs, old, advantages, mask, self.clip_high),
        }
    }

    /// Whether TRL's other options are off: one bound of the clip for each side, and the means of BNPO and DAPO.
    fn has_our_loss(&self) -> bool {
        self.clip_low.is_none_or(|low| low == self.clip_high)
            && !["bnpo", "dapo"].contains(&self.loss_type.as_deref().unwrap_or(""))
    }
}

/// The cases of a topic with the given baseline.
fn assert_advantages(topic: &str, scale: Option<&str>, baseline: fn(&[f64]) -> Vec<f64>) {
    let cases: Vec<Case> = cases(topic);
    let own = cases
        .iter()
        .filter(|case| case.scale_rewards.as_deref() == scale && !case.normalize_advantages);
    let mut count = 0;
    for case in own {
        let rewards = if scale.is_none() { &case.rewards_less_kl } else { &case.rewards };
        let groups = rewards.chunks(case.group_size).flat_map(baseline).collect::<Vec<_>>();
        assert_close(&groups, &case.advantages, tolerance::CPU_F32);
        count += 1;
    }
    assert!(count >= 4, "{topic}: {count} cases");
}

#[test]
fn advantages_of_groups_are_those_of_trl() {
    assert_advantages("grpo", Some("group"), over_std);
    assert_advantages("dr_grpo", Some("none"), over_mean);
    assert_advantages("rloo", None, leave_one_out);
}

#[test]
fn rloo_takes_beta_times_the_kl_off_the_reward() {
    for case in cases::<Case>("rloo") {
        let rows = case.old_log_probs.iter().zip(&case.ref_log_probs);
        let kl =
            rows.map(|(old, reference)| old.iter().zip(reference).map(|(&o, &r)| k1(o, r)).sum());
        let less: Vec<f64> = case
            .rewards
            .iter()
            .zip(kl)
            .map(|(reward, kl): (_, f64)| reward - case.beta * kl)
            .collect();
        assert_close(&less, &case.rewards_less_kl, tolerance::CPU_F32);
    }
}

#[test]
fn losses_gradients_and_clipped_shares_are_those_of_trl() {
    for (device, tolerance) in devices() {
        for topic in ["grpo", "dr_grpo", "rloo"] {
            let own: Vec<Case> = cases(topic);
            let own: Vec<Case> = own.into_iter().filter(Case::has_our_loss).collect();
            assert!(own.len() >= 4, "{topic}: {} cases", own.len());
            for case in own {
                let loss = |x| case.policy(x, &device).loss;
                let x = case.padded(&case.log_probs);
                let (loss, gradient) = value_and_gradient(loss, &x, &device, DType::F32);
                assert_close(&[loss], &[case.loss], tolerance);
                let zero = |row: &Vec<f64>| {
                    row.iter().map(|g| if g.is_nan() { 0.0 } else { *g }).collect()
                };
                let expected: Vec<Vec<f64>> =
                    case.padded(&case.grad_log_probs).iter().map(zero).collect();
                assert_close(&gradient, &expected.concat(), tolerance);
                // TRL's share is over all tokens, ours over those of a response first: equal where lengths are.
                if let Some(clipped) = case.clipped_fraction
                    && case.lengths().windows(2).all(|two| two[0] == two[1])
                {
                    let own = case.policy(matrix(&x, &device, DType::F32), &device).clip_fraction;
                    assert_close(&host(own), &[clipped], tolerance);
                }
            }
        }
    }
}

// 3. Identities and limits

#[test]
fn the_penalty_on_the_device_is_the_host_s_k3() {
    let (new, reference) = ([-1.0, -0.1, -3.0], [-1.0, -2.0, -0.5]);
    let expected: Vec<f64> = new.iter().zip(&reference).map(|(&n, &r)| k3(n, r)).collect();
    for (device, tolerance) in devices() {
        let row = |row: &[f64]| matrix(&[row.to_vec()], &device, DType::F32);
        assert_close(&host(k3_penalty(row(&new), row(&reference))), &expected, tolerance);
    }
}

proptest! {
    #[test]
    fn a_group_s_advantages_sum_to_nothing_and_rank_as_its_rewards(
        rewards in prop::collection::vec(-5.0..5.0f64, 2..9), shift in -9.0..9.0f64,
    ) {
        let shifted: Vec<f64> = rewards.iter().map(|reward| reward + shift).collect();
        for baseline in [over_std, over_mean, leave_one_out] {
            let advantages = baseline(&rewards);
            prop_assert!(advantages.iter().sum::<f64>().abs() < 1e-9);
            for (a, b) in advantages.iter().zip(baseline(&shifted)) {
                prop_assert!((a - b).abs() < 1e-9, "a reward for all changes nothing");
            }
            for (i, j) in (0..rewards.len()).flat_map(|i| (0..i).map(move |j| (i, j))) {
                prop_assert_eq!(rewards[i] > rewards[j], advantages[i] > advantages[j]);
            }
        }
        // The mean of the others leaves n / (n - 1) of the distance from the mean of all.
        let n = rewards.len() as f64;
        for (a, b) in leave_one_out(&rewards).iter().zip(over_mean(&rewards)) {
            prop_assert!((a - b * n / (n - 1.0)).abs() < 1e-9);
        }
    }
}

#[test]
fn a_group_of_equals_or_of_one_teaches_nothing() {
    for baseline in [over_std, over_mean, leave_one_out] {
        assert_eq!(baseline(&[0.25; 4]), [0.0; 4]);
        assert_eq!(baseline(&[3.0]), [0.0]);
        assert_eq!(baseline(&[]), [0.0; 0]);
    }
}

#[test]
fn without_beta_the_loss_is_that_of_ppo_and_of_one_token_that_of_the_response() {
    for case in cases::<Case>("grpo") {
        let device = cpu();
        let row = |rows: &[Vec<f64>]| matrix(&case.padded(rows), &device, DType::F64);
        let [new, old, reference] =
            [&case.log_probs, &case.old_log_probs, &case.ref_log_probs].map(|rows| row(rows));
        let advantages = matrix(&case.token_advantages(), &device, DType::F64);
        let mask = mask(&case.lengths(), new.dims()[1], &device);
        let rows = [new.clone(), old.clone(), reference, advantages.clone()];
        let ours = clip_k3_loss(rows, mask.clone(), 0.2, 0.0, TokenMean::Response).loss;
        let ppo = policy_loss(new.clone(), old.clone(), advantages.clone(), mask.clone(), 0.2).loss;
        assert_close(&host(ours), &host(ppo), tolerance::HOST_F64);
        let first = |x: Tensor<2>| x.narrow(1, 0, 1);
        let one = mask.narrow(1, 0, 1);
        let (new, old, advantages) = (first(new), first(old), first(advantages));
        let response =
            response_clip_loss(new.clone(), old.clone(), advantages.clone(), one.clone(), 0.2).loss;
        let token = policy_loss(new, old, advantages, one, 0.2).loss;
        assert_close(&host(response), &host(token), tolerance::HOST_F64);
    }
}

// 4. Gradient

#[test]
fn gradients_are_those_of_central_differences() {
    for topic in ["grpo", "dr_grpo", "rloo"] {
        for case in cases::<Case>(topic).iter().filter(|case| case.advantages[0] != 0.0) {
            // No NaN in the differences: padding is 0.
            let zero = |row: Vec<f64>| row.into_iter().map(|x| if x.is_nan() { 0.0 } else { x });
            let x: Vec<Vec<f64>> =
                case.padded(&case.log_probs).into_iter().map(|row| zero(row).collect()).collect();
            assert_gradient(|x| case.policy(x, &cpu()).loss, &x);
        }
    }
}

// 5. Padding and batch size

#[test]
fn padding_and_the_other_rows_change_no_row_s_loss() {
    for (device, tolerance) in devices() {
        let (rows, lengths) = (vec![vec![-1.0, -0.5, -2.0], vec![-0.25, -1.5, -0.75]], [3, 2]);
        let other = vec![vec![-1.5, -0.25, -2.0], vec![-0.5, -1.0, -0.125]];
        let advantages = vec![vec![1.0; 3], vec![-2.0; 3]];
        let losses = |rows: [&[Vec<f64>]; 3], lengths: &[usize]| {
            let [new, old, advantages] =
                rows.map(|rows| matrix(&with_nan_padding(rows, lengths), &device, DType::F32));
            let mask = mask(lengths, 3, &device);
            let all = [new.clone(), old.clone(), old.clone(), advantages.clone()];
            let mean = |mean| clip_k3_loss(all.clone(), mask.clone(), 0.2, 0.1, mean).loss;
            let tokens = [mean(TokenMean::Response), mean(TokenMean::Constant(4.0))];
            let response = response_clip_loss(new, old, advantages, mask.clone(), 0.2).loss;
            [&tokens[..], &[response]].concat().into_iter().flat_map(host).collect::<Vec<_>>()
        };
        let both = losses([&rows, &other, &advantages], &lengths);
        let one =
            |i: usize| losses([&rows[i..=i], &other[i..=i], &advantages[i..=i]], &lengths[i..=i]);
        let (first, second) = (one(0), one(1));
        let mean: Vec<f64> = first.iter().zip(&second).map(|(a, b)| (a + b) / 2.0).collect();
        assert!(both.iter().all(|loss| loss.is_finite()));
        assert_close(&both, &mean, tolerance);
    }
}

// 6. Bad input

#[test]
fn no_argument_is_broadcast() {
    let device = cpu();
    let of = |rows: usize| matrix(&vec![vec![-1.0; 2]; rows], &device, DType::F32);
    let mask_of = |rows: usize| mask(&vec![2; rows], 2, &device);
    for wrong in 0..5 {
        let rows = |i: usize| of(if wrong == i { 1 } else { 2 });
        let mask = || mask_of(if wrong == 4 { 1 } else { 2 });
        let all = || [rows(0), rows(1), rows(2), rows(3)];
        let panic = panic_of(|| clip_k3_loss(all(), mask(), 0.2, 0.1, TokenMean::Response));
        assert!(panic.contains("shape") || panic.contains("dim"), "{wrong}: {panic}");
        if wrong != 2 {
            let panic = panic_of(|| response_clip_loss(rows(0), rows(1), rows(3), mask(), 0.2));
            assert!(panic.contains("shape") || panic.contains("dim"), "{wrong}: {panic}");
        }
    }
    assert!(panic_of(|| k3_penalty(of(2), of(1))).contains("dim"));
}

// 7. The devices are in the loops above.
