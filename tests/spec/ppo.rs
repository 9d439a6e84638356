//! E9 and E10: the clipped losses.

use burn::tensor::{DType, Device, Tensor};
use segment_rlhf::equations::ppo::{PolicyLoss, policy_loss, sequence_mean, value_loss};
use serde::Deserialize;

use crate::goldens::cases;
use crate::support::{
    assert_close, assert_gradient, cpu, devices, host, mask, matrix, panic_of, value_and_gradient,
    with_nan_padding,
};

#[derive(Clone, Deserialize)]
struct Case {
    num_actions: Vec<usize>,
    clip_eps: f64,
    log_probs: Vec<Vec<f64>>,
    old_log_probs: Vec<Vec<f64>>,
    advantages: Vec<Vec<f64>>,
    policy_loss: f64,
    grad_log_probs: Vec<Vec<f64>>,
    mean_ratio: f64,
    value_clip: f64,
    values: Vec<Vec<f64>>,
    old_values: Vec<Vec<f64>>,
    returns: Vec<Vec<f64>>,
    value_loss: f64,
    grad_values: Vec<Vec<f64>>,
}

impl Case {
    fn policy(&self, log_probs: Tensor<2>, device: &Device) -> PolicyLoss {
        let dtype = log_probs.dtype();
        policy_loss(
            log_probs,
            matrix(&self.old_log_probs, device, dtype),
            matrix(&self.advantages, device, dtype),
            mask(&self.num_actions, self.log_probs[0].len(), device),
            self.clip_eps,
        )
    }

    fn value(&self, values: Tensor<2>, device: &Device) -> Tensor<1> {
        let dtype = values.dtype();
        value_loss(
            values,
            matrix(&self.old_values, device, dtype),
            matrix(&self.returns, device, dtype),
            mask(&self.num_actions, self.values[0].len(), device),
            self.value_clip,
        )
    }

    /// Both losses, both gradients.
    fn losses(&self, device: &Device) -> [(f64, Vec<f64>); 2] {
        let policy = |x| self.policy(x, device).loss;
        let value = |x| self.value(x, device);
        [
            value_and_gradient(policy, &self.log_probs, device, DType::F32),
            value_and_gradient(value, &self.values, device, DType::F32),
        ]
    }

    fn rows(&self) -> [&Vec<Vec<f64>>; 6] {
        [
            &self.log_probs,
            &self.old_log_probs,
            &self.advantages,
            &self.values,
            &self.old_values,
            &self.returns,
        ]
    }

    fn map(&self, f: impl Fn(&Vec<Vec<f64>>) -> Vec<Vec<f64>>) -> Self {
        let [log_probs, old_log_probs, advantages, values, old_values, returns] =
            self.rows().map(f);
        Self { log_probs, old_log_probs, advantages, values, old_values, returns, ..self.clone() }
    }
}

fn cases_of_losses() -> Vec<Case> {
    cases("ppo_loss")
}

// 1. Worked example

#[test]
fn a_ratio_beyond_the_clip_counts_as_the_clip_where_that_is_worse() {
    // Ratios 1.5, 0.5, 1.5, 0.5, 1.5 with advantages 1, 1, -1, -1, 1 and ε = 0.2: the lesser terms are
    // 1.2 (clipped), 0.5, -1.5, -0.8 (clipped), 1.2 (clipped).
    for (device, tolerance) in devices() {
        let (more, less) = (1.5f64.ln(), 0.5f64.ln());
        let tensor = |row: [f64; 5]| matrix(&[row.to_vec()], &device, DType::F32);
        let policy = policy_loss(
            tensor([more, less, more, less, more]),
            tensor([0.0; 5]),
            tensor([1.0, 1.0, -1.0, -1.0, 1.0]),
            mask(&[5], 5, &device),
            0.2,
        );
        assert_close(&host(policy.loss), &[-(1.2 + 0.5 - 1.5 - 0.8 + 1.2) / 5.0], tolerance);
        assert_close(&host(policy.clip_fraction), &[0.6], tolerance);
        assert_close(&host(policy.ratio), &[1.1], tolerance);
    }
}

#[test]
fn a_value_beyond_the_clip_costs_the_greater_of_both_errors() {
    // Return 0, old value 1, ε = 0.25. V = 0 is clipped to 0.75, which is further off; V = 2 is
    // clipped to 1.25, which is nearer: ½ (0.75² + 2²) / 2.
    for (device, tolerance) in devices() {
        let tensor = |row: [f64; 2]| matrix(&[row.to_vec()], &device, DType::F32);
        let loss = value_loss(
            tensor([0.0, 2.0]),
            tensor([1.0, 1.0]),
            tensor([0.0, 0.0]),
            mask(&[2], 2, &device),
            0.25,
        );
        assert_close(&host(loss), &[0.5 * (0.5625 + 4.0) / 2.0], tolerance);
    }
}

#[test]
fn the_mean_is_over_the_tokens_of_a_sequence_then_over_sequences() {
    for (device, tolerance) in devices() {
        // (2 + 6) / 2, where the mean over tokens is 10 / 3.
        let x = matrix(&[vec![1.0, 3.0], vec![6.0, 9.0]], &device, DType::F32);
        assert_close(&host(sequence_mean(x, mask(&[2, 1], 2, &device))), &[4.0], tolerance);
    }
}

// 2. Goldens

#[test]
fn losses_gradients_and_the_mean_ratio_are_the_official_code_s() {
    for (device, tolerance) in devices() {
        for case in cases_of_losses() {
            let [(policy, policy_gradient), (value, value_gradient)] = case.losses(&device);
            assert_close(&[policy, value], &[case.policy_loss, case.value_loss], tolerance);
            assert_close(&policy_gradient, &case.grad_log_probs.concat(), tolerance);
            assert_close(&value_gradient, &case.grad_values.concat(), tolerance);
            let ratio = case.policy(matrix(&case.log_probs, &device, DType::F32), &device).ratio;
            assert_close(&host(ratio), &[case.mean_ratio], tolerance);
        }
    }
}

// 3. Identities and limits

#[test]
fn before_the_first_update_the_ratio_is_exactly_one_and_the_loss_minus_the_mean_advantage() {
    for (device, tolerance) in devices() {
        for mut case in cases_of_losses() {
            case.old_log_probs = case.log_probs.clone();
            let policy = case.policy(matrix(&case.log_probs, &device, DType::F32), &device);
            assert_eq!(host(policy.ratio), [1.0]);
            assert_eq!(host(policy.clip_fraction), [0.0]);
            let advantage = sequence_mean(
                matrix(&case.advantages, &device, DType::F32),
                mask(&case.num_actions, case.advantages[0].len(), &device),
            );
            assert_close(&host(policy.loss), &host(advantage.neg()), tolerance);
        }
    }
}

#[test]
fn zero_advantage_gives_zero_gradient() {
    for (device, _) in devices() {
        let case = cases_of_losses().remove(0);
        let zero = vec![vec![0.0; case.log_probs[0].len()]; case.log_probs.len()];
        let case = Case { advantages: zero.clone(), ..case };
        let (loss, gradient) = case.losses(&device)[0].clone();
        assert_eq!(loss, 0.0);
        assert_eq!(gradient, zero.concat());
    }
}

#[test]
fn an_infinite_value_clip_or_an_unmoved_critic_leaves_half_the_squared_error() {
    for (device, tolerance) in devices() {
        for case in cases_of_losses() {
            let tensor = |rows| matrix(rows, &device, DType::F32);
            let mask = mask(&case.num_actions, case.values[0].len(), &device);
            let error = (tensor(&case.values) - tensor(&case.returns)).square();
            let half = host(sequence_mean(error, mask) * 0.5);
            let infinite = Case { value_clip: 1e9, ..case.clone() };
            assert_close(&host(infinite.value(tensor(&case.values), &device)), &half, tolerance);
            let unmoved = Case { old_values: case.values.clone(), ..case.clone() };
            assert_close(&host(unmoved.value(tensor(&case.values), &device)), &half, tolerance);
        }
    }
}

// 4. Gradients

#[test]
fn the_gradients_are_those_of_central_differences() {
    let device = cpu();
    for case in cases_of_losses() {
        assert_gradient(|log_probs| case.policy(log_probs, &device).loss, &case.log_probs);
        assert_gradient(|values| case.value(values, &device), &case.values);
    }
}

#[test]
fn a_clipped_token_and_what_is_logged_carry_no_gradient() {
    for (device, _) in devices() {
        let row = |x: f64| matrix(&[vec![x]], &device, DType::F32);
        let policy = |log_ratio: f64, advantage: f64| {
            let loss = |log_probs| {
                let mask = mask(&[1], 1, &device);
                policy_loss(log_probs, row(0.0), row(advantage), mask, 0.2)
            };
            let log_probs = row(log_ratio).autodiff().require_grad();
            let PolicyLoss { loss: tracked, clip_fraction, ratio } = loss(log_probs);
            assert!(tracked.is_tracked() && !clip_fraction.is_tracked() && !ratio.is_tracked());
            let gradient =
                value_and_gradient(|x| loss(x).loss, &[vec![log_ratio]], &device, DType::F32).1;
            (gradient[0] == 0.0, host(clip_fraction)[0] == 1.0)
        };
        // Far enough in the wanted direction; the other way there is no bound.
        assert_eq!(policy(1.0, 1.0), (true, true));
        assert_eq!(policy(-1.0, -1.0), (true, true));
        assert_eq!(policy(1.0, -1.0), (false, false));
        assert_eq!(policy(-1.0, 1.0), (false, false));
    }
}

// 5. Padding and batch size

#[test]
fn nan_in_the_padding_changes_neither_losses_nor_gradients() {
    for (device, _) in devices() {
        for case in cases_of_losses() {
            let padded = case.map(|rows| with_nan_padding(rows, &case.num_actions));
            assert_eq!(padded.losses(&device), case.losses(&device));
            let log = |case: &Case| {
                let policy = case.policy(matrix(&case.log_probs, &device, DType::F32), &device);
                [host(policy.clip_fraction), host(policy.ratio)]
            };
            assert_eq!(log(&padded), log(&case));
        }
    }
}

#[test]
fn a_batch_is_the_mean_of_its_sequences_however_long_they_are_and_wherever_padded() {
    for (device, tolerance) in devices() {
        for case in cases_of_losses() {
            let alone: Vec<[f64; 2]> = (0..case.num_actions.len())
                .map(|row| {
                    let n = case.num_actions[row];
                    let one =
                        Case { num_actions: vec![n], ..case.map(|x| vec![x[row][..n].to_vec()]) };
                    one.losses(&device).map(|(loss, _)| loss)
                })
                .collect();
            let mean = |i: usize| alone.iter().map(|x| x[i]).sum::<f64>() / alone.len() as f64;
            let batch = case.losses(&device).map(|(loss, _)| loss);
            assert_close(&batch, &[mean(0), mean(1)], tolerance);
        }
    }
}

#[test]
fn a_row_without_response_tokens_counts_as_zero() {
    for (device, tolerance) in devices() {
        let x = matrix(&[vec![2.0, 4.0], vec![f64::NAN, f64::NAN]], &device, DType::F32);
        let mean = sequence_mean(x, mask(&[2, 0], 2, &device));
        assert_close(&host(mean), &[1.5], tolerance);
    }
}

// 6. Errors

/// Tensors of 2 rows and 3 tokens, but one token alone in the one with this number.
fn narrow_at<const N: usize>(narrow: usize) -> [Tensor<2>; N] {
    std::array::from_fn(|i| Tensor::zeros([2, if i == narrow { 1 } else { 3 }], &cpu()))
}

/// One token alone in the argument `name` would be broadcast over three.
fn broadcast(name: &str) -> String {
    format!("assert_shape!({name}, [batch, tokens]): axis 1 expected 3, got 1 (dims [2, 1])")
}

#[test]
fn the_policy_loss_broadcasts_none_of_its_arguments() {
    let names = ["old_log_probs", "advantages", "mask"];
    for (i, name) in names.into_iter().enumerate() {
        let [new, old, advantages, mask] = narrow_at(i + 1);
        let of = || policy_loss(new, old, advantages, mask.equal_elem(0.0), 0.2);
        assert_eq!(panic_of(of), broadcast(name));
    }
}

#[test]
fn the_value_loss_broadcasts_none_of_its_arguments() {
    for (i, name) in ["old_values", "returns", "mask"].into_iter().enumerate() {
        let [values, old, returns, mask] = narrow_at(i + 1);
        let of = || value_loss(values, old, returns, mask.equal_elem(0.0), 0.2);
        assert_eq!(panic_of(of), broadcast(name));
    }
}

#[test]
fn the_mean_broadcasts_no_mask() {
    let [x, mask] = narrow_at(1);
    assert_eq!(panic_of(|| sequence_mean(x, mask.equal_elem(0.0))), broadcast("mask"));
}

// 7. Devices: every test above that asks for `devices()`.
