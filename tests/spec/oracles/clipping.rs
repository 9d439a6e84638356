//! E9 and E10, case by case: on which side of the clip a token stands, and what it then costs and moves.

use burn::tensor::{DType, Device};
use rand::Rng;
use segment_rlhf::equations::ppo::{policy_loss, value_loss};
use segment_rlhf::rng::stream;

use crate::support::{assert_close, cpu, devices, mask, matrix, value_and_gradient};
use crate::tolerance;

const CLIP: f64 = 0.2;
const VALUE_CLIP: f64 = 0.25;

/// E9 of one token: the loss, and its derivative by ln π_θ. Where the unclipped term counts, the
/// derivative of ρA is ρA itself.
fn policy_case(ratio: f64, advantage: f64) -> (f64, f64) {
    let (good, bad) = (advantage > 0.0, advantage < 0.0);
    if good && ratio > 1.0 + CLIP {
        (-(1.0 + CLIP) * advantage, 0.0) // already likelier than one update may make it
    } else if bad && ratio < 1.0 - CLIP {
        (-(1.0 - CLIP) * advantage, 0.0) // already unlikelier
    } else if good || bad {
        (-ratio * advantage, -ratio * advantage) // free to go, or led back
    } else {
        (0.0, 0.0)
    }
}

/// E10 of one token: the loss, and its derivative by V.
fn value_case(value: f64, old: f64, target: f64) -> (f64, f64) {
    let (low, high) = (old - VALUE_CLIP, old + VALUE_CLIP);
    let half_square = |error: f64| 0.5 * error * error;
    // V has moved beyond the clip: the clipped value counts, and V no more, where it is further off.
    if value < low && (low - target).abs() > (value - target).abs() {
        (half_square(low - target), 0.0)
    } else if value > high && (high - target).abs() > (value - target).abs() {
        (half_square(high - target), 0.0)
    } else {
        (half_square(value - target), value - target)
    }
}

/// What [`policy_loss`] makes of a response of one token, whose log-probability was `old`.
fn policy_token([ratio, advantage]: [f64; 2], old: f64, device: &Device, dtype: DType) -> [f64; 2] {
    let loss = |log_prob| {
        let old = matrix(&[vec![old]], device, dtype);
        let advantage = matrix(&[vec![advantage]], device, dtype);
        policy_loss(log_prob, old, advantage, mask(&[1], 1, device), CLIP).loss
    };
    let (loss, gradient) = value_and_gradient(loss, &[vec![old + ratio.ln()]], device, dtype);
    [loss, gradient[0]]
}

/// What [`value_loss`] makes of a response of one token.
fn value_token([value, old, target]: [f64; 3], device: &Device, dtype: DType) -> [f64; 2] {
    let loss = |value| {
        let old = matrix(&[vec![old]], device, dtype);
        let target = matrix(&[vec![target]], device, dtype);
        value_loss(value, old, target, mask(&[1], 1, device), VALUE_CLIP)
    };
    let (loss, gradient) = value_and_gradient(loss, &[vec![value]], device, dtype);
    [loss, gradient[0]]
}

/// f64 on the CPU, then f32 on every device.
fn precisions() -> Vec<(Device, DType, f64)> {
    let single = devices().into_iter().map(|(device, tolerance)| (device, DType::F32, tolerance));
    [(cpu(), DType::F64, tolerance::HOST_F64)].into_iter().chain(single).collect()
}

#[test]
fn a_token_s_policy_loss_and_gradient_are_those_of_its_side_of_the_clip() {
    let mut draws = stream(11, "policy tokens", 0);
    let random = (0..200).map(|_| [draws.random_range(0.2..2.0), draws.random_range(-3.0..3.0)]);
    let below_inside_above = [0.5, 0.9, 1.1, 1.5];
    let grid = below_inside_above.iter().flat_map(|&ratio| [2.0, -2.0, 0.0].map(|a| [ratio, a]));
    for token in grid.chain(random) {
        for (device, dtype, tolerance) in precisions() {
            let (loss, gradient) = policy_case(token[0], token[1]);
            assert_close(&policy_token(token, -1.5, &device, dtype), &[loss, gradient], tolerance);
        }
    }
}

/// Both terms are equal there, and the unclipped one's gradient counts.
#[test]
fn a_ratio_on_the_edge_of_the_clip_is_inside() {
    for edge in [1.0 - CLIP, 1.0 + CLIP] {
        assert_eq!(edge.ln().exp(), edge, "no rounding takes it off the edge");
        for advantage in [2.0, -2.0, 0.0] {
            let loss_and_gradient = policy_token([edge, advantage], 0.0, &cpu(), DType::F64);
            assert_eq!(loss_and_gradient, [-edge * advantage; 2]);
        }
    }
}

/// The old value is 1: values below the clip, on its edge, inside, on the other edge and above it, with
/// the return on either side and between.
#[test]
fn a_token_s_value_loss_and_gradient_are_those_of_its_side_of_the_clip() {
    let mut draws = stream(11, "value tokens", 0);
    let random = (0..200).map(|_| [0; 3].map(|_| draws.random_range(-1.0..1.0)));
    let values = [0.5, 0.75, 1.125, 1.25, 1.5];
    let grid = values.iter().flat_map(|&value| [0.0, 1.0, 2.0].map(|target| [value, 1.0, target]));
    for token in grid.chain(random) {
        for (device, dtype, tolerance) in precisions() {
            let (loss, gradient) = value_case(token[0], token[1], token[2]);
            assert_close(&value_token(token, &device, dtype), &[loss, gradient], tolerance);
        }
    }
}
