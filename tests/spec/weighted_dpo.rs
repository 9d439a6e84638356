//! DPO over weighted tokens: segment-DPO, and the sign masks of ASR.

use std::ops::Range;

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use segment_rlhf::equations::bt_loss::dpo_loss;
use segment_rlhf::equations::sign_mask::{Verdict, advantage_mask, reward_segments, sign_mask};
use segment_rlhf::equations::weighted_dpo::{token_weights, weighted_dpo_loss};
use serde::Deserialize;

use crate::goldens::cases;
use crate::support::{
    assert_close, assert_gradient, cpu, devices, host, mask, matrix, padded, panic_of,
    value_and_gradient, vector,
};
use crate::tolerance;

/// The responses of pairs, first ones first, with what the loss reads of each.
struct Rows {
    log_probs: Vec<Vec<f64>>,
    reference: Vec<Vec<f64>>,
    weights: Vec<Vec<f64>>,
}

impl Rows {
    fn width(&self) -> usize {
        self.log_probs.iter().map(Vec::len).max().unwrap()
    }

    fn loss(&self, log_probs: Tensor<2>, beta: f64, device: &Device) -> Tensor<1> {
        let dtype = log_probs.dtype();
        let row = |rows: &[Vec<f64>]| matrix(&padded(rows, self.width(), f64::NAN), device, dtype);
        let lengths: Vec<usize> = self.log_probs.iter().map(Vec::len).collect();
        let rows = [log_probs, row(&self.reference), row(&self.weights)];
        weighted_dpo_loss(rows, mask(&lengths, self.width(), device), beta, 0.0).loss
    }

    fn assert_golden(&self, beta: f64, loss: f64, gradient: &[Vec<f64>]) {
        for (device, tolerance) in devices() {
            let x = padded(&self.log_probs, self.width(), f64::NAN);
            let of = |x| self.loss(x, beta, &device);
            let (value, own) = value_and_gradient(of, &x, &device, DType::F32);
            assert_close(&[value], &[loss], tolerance);
            assert_close(&own, &padded(gradient, self.width(), 0.0).concat(), tolerance);
        }
    }
}

fn segments(ends: &[usize]) -> Vec<Range<usize>> {
    let mut start = 0;
    ends.iter().map(|&end| std::mem::replace(&mut start, end)..end).collect()
}

// 1. Worked example

#[test]
fn a_segment_counts_for_its_better_side_and_a_tie_for_neither() {
    for (device, tolerance) in devices() {
        let rows = |rows: [[f64; 3]; 2]| matrix(&rows.map(|row| row.to_vec()), &device, DType::F32);
        // Segments of tokens 0..1, 1..2 and 2..3; the first is better in the first response, the second in the other.
        let weights: Vec<f64> =
            token_weights(&[0..1, 1..2, 2..3], &[1, -1, 0], 3).into_iter().map(f64::from).collect();
        assert_eq!(weights, [1.0, -1.0, 0.0]);
        let weights = rows([[1.0, -1.0, 0.0]; 2]);
        let (policy, reference) = (rows([[2.0, 1.0, 9.0], [1.0, 4.0, 7.0]]), rows([[0.0; 3]; 2]));
        let mask = mask(&[3, 3], 3, &device);
        let loss = weighted_dpo_loss([policy, reference, weights], mask, 0.5, 0.0).loss;
        // 0.5 · [(2 - 1) - (1 - 4)] = 2.
        assert_close(&host(loss), &[(-2f64).exp().ln_1p()], tolerance);
    }
}

#[test]
fn a_chosen_response_keeps_its_good_segments_and_a_rejected_one_its_bad_ones() {
    let rewards = [0.5, 1.0, -2.0, -1.5, 0.25];
    let cut = reward_segments(&rewards, 1.0, false);
    assert_eq!(cut, [0..2, 2..4, 4..5]);
    let chosen = sign_mask(&rewards, &cut, 0.0, Verdict::Chosen);
    assert_eq!(chosen, [true, true, false, false, true]);
    let rejected = sign_mask(&rewards, &cut, 0.0, Verdict::Rejected);
    assert_eq!(rejected, [false, false, true, true, false]);
    assert_eq!(advantage_mask(&[0.0, -1.0], &[0.5, 0.5], 0.0), [true, false]);
}

// 2. Goldens: TRL's DPO, and the formulas of segment-DPO and ASR in PyTorch

#[derive(Deserialize)]
struct SegmentDpo {
    beta: f64,
    pairs: Vec<SegmentPair>,
    loss: f64,
}

#[derive(Deserialize)]
struct SegmentPair {
    segment_ends: [Vec<usize>; 2],
    labels: Vec<i8>,
    log_probs: [Vec<f64>; 2],
    ref_log_probs: [Vec<f64>; 2],
    loss: f64,
    grad_log_probs: [Vec<f64>; 2],
}

impl SegmentDpo {
    fn side<T>(&self, of: impl Fn(&SegmentPair, usize) -> T) -> Vec<T> {
        (0..2)
            .flat_map(|side| self.pairs.iter().map(move |pair| (pair, side)))
            .map(|(p, s)| of(p, s))
            .collect()
    }

    fn rows(&self) -> Rows {
        Rows {
            log_probs: self.side(|pair, side| pair.log_probs[side].clone()),
            reference: self.side(|pair, side| pair.ref_log_probs[side].clone()),
            weights: self.side(|pair, side| {
                let cut = segments(&pair.segment_ends[side]);
                let weights = token_weights(&cut, &pair.labels, pair.log_probs[side].len());
                weights.into_iter().map(f64::from).collect()
            }),
        }
    }
}

#[test]
fn segment_dpo_is_that_of_the_formula_in_pytorch() {
    for case in cases::<SegmentDpo>("segment_dpo") {
        let mean = case.pairs.iter().map(|pair| pair.loss).sum::<f64>() / case.pairs.len() as f64;
        assert_close(&[mean], &[case.loss], tolerance::HOST_F64);
        let gradient = case.side(|pair, side| pair.grad_log_probs[side].clone());
        case.rows().assert_golden(case.beta, case.loss, &gradient);
    }
}

#[derive(Deserialize)]
struct Asr {
    kind: String,
    b: f64,
    #[serde(default)]
    tau: f64,
    #[serde(default)]
    beta: f64,
    sides: Option<Sides>,
    loss: Option<Losses>,
    #[serde(default)]
    advantages: Vec<f64>,
    #[serde(default)]
    values: Vec<f64>,
    #[serde(default)]
    mask: Vec<u8>,
}

#[derive(Deserialize)]
struct Sides {
    chosen: Side,
    rejected: Side,
}

#[derive(Deserialize)]
struct Side {
    token_rewards: Vec<f64>,
    log_probs: Vec<f64>,
    ref_log_probs: Vec<f64>,
    token: Masked,
    jump_or_flip: Masked,
    jump: Masked,
}

#[derive(Deserialize)]
struct Masked {
    #[serde(default)]
    segments: Vec<[usize; 2]>,
    mask: Vec<u8>,
    grad: Vec<f64>,
}

#[derive(Deserialize)]
struct Losses {
    token: f64,
    jump_or_flip: f64,
    jump: f64,
}

#[test]
fn sign_masks_and_their_dpo_are_those_of_the_formula_in_pytorch() {
    type Cut = fn(&Asr, &[f64]) -> Vec<Range<usize>>;
    type Golden = fn(&Side) -> &Masked;
    type Loss = fn(&Losses) -> f64;
    let ways: [(Cut, Golden, Loss); 3] = [
        (|_, rewards| (0..rewards.len()).map(|t| t..t + 1).collect(), |s| &s.token, |l| l.token),
        (
            |c, rewards| reward_segments(rewards, c.tau, true),
            |s| &s.jump_or_flip,
            |l| l.jump_or_flip,
        ),
        (|c, rewards| reward_segments(rewards, c.tau, false), |s| &s.jump, |l| l.jump),
    ];
    let mut count = 0;
    for case in cases::<Asr>("asr_masks").iter().filter(|case| case.kind == "dpo") {
        let sides = case.sides.as_ref().unwrap();
        let both = [(&sides.chosen, Verdict::Chosen), (&sides.rejected, Verdict::Rejected)];
        for (cut, golden, loss) in &ways {
            let masks = both.map(|(side, verdict)| {
                let segments = cut(case, &side.token_rewards);
                let expected = &golden(side).segments;
                if !expected.is_empty() {
                    let expected: Vec<Range<usize>> = expected.iter().map(|&[a, b]| a..b).collect();
                    assert_eq!(segments, expected);
                }
                let mask = sign_mask(&side.token_rewards, &segments, case.b, verdict);
                let expected: Vec<bool> = golden(side).mask.iter().map(|&m| m == 1).collect();
                assert_eq!(mask, expected);
                mask.into_iter().map(f64::from).collect::<Vec<f64>>()
            });
            let rows = Rows {
                log_probs: both.map(|(side, _)| side.log_probs.clone()).to_vec(),
                reference: both.map(|(side, _)| side.ref_log_probs.clone()).to_vec(),
                weights: masks.to_vec(),
            };
            let gradient = both.map(|(side, _)| golden(side).grad.clone());
            rows.assert_golden(case.beta, loss(case.loss.as_ref().unwrap()), &gradient);
            count += 1;
        }
    }
    assert_eq!(count, 24);
}

#[test]
fn masks_of_values_are_those_of_the_formula_in_pytorch() {
    let mut count = 0;
    for case in cases::<Asr>("asr_masks").iter().filter(|case| case.kind == "ppo") {
        let expected: Vec<bool> = case.mask.iter().map(|&m| m == 1).collect();
        assert_eq!(advantage_mask(&case.advantages, &case.values, case.b), expected);
        count += 1;
    }
    assert_eq!(count, 2);
}

#[derive(Deserialize)]
struct Trl {
    from: String,
    beta: f64,
    #[serde(default)]
    label_smoothing: f64,
    #[serde(default)]
    reference_free: bool,
    #[serde(default)]
    policy_chosen: Vec<f64>,
    #[serde(default)]
    policy_rejected: Vec<f64>,
    #[serde(default)]
    ref_chosen: Vec<f64>,
    #[serde(default)]
    ref_rejected: Vec<f64>,
    loss: f64,
    #[serde(default)]
    chosen_rewards: Vec<f64>,
    #[serde(default)]
    rejected_rewards: Vec<f64>,
    #[serde(default)]
    grad_chosen: Vec<f64>,
    #[serde(default)]
    grad_rejected: Vec<f64>,
}

#[test]
fn dpo_of_whole_responses_is_trl_s_and_with_weights_of_one_ours_is_the_same() {
    let mut counts = [0, 0];
    for case in cases::<Trl>("dpo") {
        if case.reference_free || case.policy_chosen.is_empty() {
            continue; // reference-free is gone from TRL; its per-token case has its own padding
        }
        assert!(case.from.starts_with("trl 0.28.0"), "{}", case.from);
        for (device, tolerance) in devices() {
            let x = [case.policy_chosen.clone(), case.policy_rejected.clone()];
            let of = |x: Tensor<2>| {
                let row = |i: usize| x.clone().narrow(0, i, 1).squeeze_dim::<1>(0);
                let [chosen, rejected] =
                    [&case.ref_chosen, &case.ref_rejected].map(|of| vector(of, &device, x.dtype()));
                dpo_loss(row(0), row(1), chosen, rejected, case.beta, case.label_smoothing)
            };
            let (loss, gradient) = value_and_gradient(|x| of(x).loss, &x, &device, DType::F32);
            assert_close(&[loss], &[case.loss], tolerance);
            let expected = [&case.grad_chosen[..], &case.grad_rejected].concat();
            assert_close(&gradient, &expected, tolerance);
            let dpo = of(matrix(&x, &device, DType::F32));
            assert_close(&host(dpo.chosen_rewards), &case.chosen_rewards, tolerance);
            assert_close(&host(dpo.rejected_rewards), &case.rejected_rewards, tolerance);
            counts[0] += 1;
        }
        if case.label_smoothing == 0.0 {
            // A response of one token has the log-probability of that token.
            let one =
                |a: &[f64], b: &[f64]| a.iter().chain(b).map(|&x| vec![x]).collect::<Vec<_>>();
            let rows = Rows {
                log_probs: one(&case.policy_chosen, &case.policy_rejected),
                reference: one(&case.ref_chosen, &case.ref_rejected),
                weights: vec![vec![1.0]; 2 * case.policy_chosen.len()],
            };
            rows.assert_golden(case.beta, case.loss, &one(&case.grad_chosen, &case.grad_rejected));
            counts[1] += 1;
        }
    }
    assert!(counts[0] >= 5 && counts[1] >= 2, "{counts:?}");
}

// 3. Identities and limits

proptest! {
    #[test]
    fn labels_of_one_are_dpo_and_swapped_labels_with_swapped_responses_the_same_loss(
        tokens in prop::collection::vec((-4.0..0.0f64, -4.0..0.0f64, -4.0..0.0f64, -4.0..0.0f64, -1i8..2), 1..8),
        beta in 0.01..1.0f64,
    ) {
        let device = cpu();
        let column = |of: fn(&(f64, f64, f64, f64, i8)) -> f64| tokens.iter().map(of).collect::<Vec<_>>();
        let (a, ra, b, rb) = (column(|t| t.0), column(|t| t.1), column(|t| t.2), column(|t| t.3));
        let labels = column(|t| f64::from(t.4));
        let loss = |log_probs: [&Vec<f64>; 2], reference: [&Vec<f64>; 2], weights: &[f64]| {
            let rows = Rows {
                log_probs: log_probs.map(Clone::clone).to_vec(),
                reference: reference.map(Clone::clone).to_vec(),
                weights: vec![weights.to_vec(); 2],
            };
            let x = matrix(&rows.log_probs, &device, DType::F64);
            host(rows.loss(x, beta, &device))[0]
        };
        let sum = |row: &[f64]| vector(&[row.iter().sum()], &device, DType::F64);
        let ones = vec![1.0; tokens.len()];
        let dpo = dpo_loss(sum(&a), sum(&b), sum(&ra), sum(&rb), beta, 0.0).loss;
        prop_assert!((loss([&a, &b], [&ra, &rb], &ones) - host(dpo)[0]).abs() < 1e-12);
        let minus: Vec<f64> = labels.iter().map(|label| -label).collect();
        let (one, other) = (loss([&a, &b], [&ra, &rb], &labels), loss([&b, &a], [&rb, &ra], &minus));
        prop_assert!((one - other).abs() < 1e-12);
    }

    #[test]
    fn segments_of_rewards_cover_the_response_and_a_mask_never_is_empty(
        rewards in prop::collection::vec(-2.0..2.0f64, 1..12), jump in 0.0..3.0f64, flips in any::<bool>(),
        b in -1.0..1.0f64,
    ) {
        let cut = reward_segments(&rewards, jump, flips);
        prop_assert_eq!(cut[0].start, 0);
        prop_assert_eq!(cut.last().unwrap().end, rewards.len());
        prop_assert!(cut.windows(2).all(|two| two[0].end == two[1].start));
        prop_assert_eq!(reward_segments(&rewards, f64::INFINITY, false).len(), 1);
        let tokens: Vec<Range<usize>> = (0..rewards.len()).map(|t| t..t + 1).collect();
        for verdict in [Verdict::Chosen, Verdict::Rejected] {
            prop_assert!(sign_mask(&rewards, &cut, b, verdict).contains(&true));
            if flips {
                // A segment of one sign has a mean of that sign.
                let whole = sign_mask(&rewards, &cut, 0.0, verdict);
                prop_assert_eq!(whole, sign_mask(&rewards, &tokens, 0.0, verdict));
            }
        }
    }
}

#[test]
fn labels_of_zero_cost_ln_2_and_teach_nothing() {
    for (device, tolerance) in devices() {
        let rows = Rows {
            log_probs: vec![vec![-1.0, -2.0], vec![-3.0, -0.5]],
            reference: vec![vec![-2.0, -1.0], vec![-0.5, -1.0]],
            weights: vec![vec![0.0; 2]; 2],
        };
        let of = |x| rows.loss(x, 0.5, &device);
        let (loss, gradient) = value_and_gradient(of, &rows.log_probs, &device, DType::F32);
        assert_close(&[loss], &[2f64.ln()], tolerance);
        assert!(gradient.iter().all(|g| *g == 0.0));
    }
}

#[test]
fn a_response_without_tokens_has_no_segments() {
    assert!(reward_segments(&[], 1.0, true).is_empty());
    assert!(sign_mask(&[], &[], 0.0, Verdict::Chosen).is_empty());
}

// 4. Gradient

#[test]
fn gradients_are_those_of_central_differences() {
    for case in cases::<SegmentDpo>("segment_dpo") {
        let rows = case.rows();
        if rows.weights.concat().iter().any(|weight| *weight != 0.0) {
            let x = padded(&rows.log_probs, rows.width(), 0.0);
            assert_gradient(|x| rows.loss(x, case.beta, &cpu()), &x);
        }
    }
}

// 5. Padding is NaN in all of the above; pairs of a batch have the mean of their losses in the goldens.

// 6. Bad input

#[test]
fn no_argument_is_broadcast_and_what_does_not_fit_is_named() {
    let device = cpu();
    let of = |rows: usize| matrix(&vec![vec![-1.0; 2]; rows], &device, DType::F32);
    for wrong in 0..4 {
        let rows = |i: usize| of(if wrong == i { 1 } else { 2 });
        let marks = vec![true; if wrong == 3 { 2 } else { 4 }];
        let shape = [marks.len() / 2, 2];
        let mask: Tensor<2, Bool> = Tensor::from_data(TensorData::new(marks, shape), &device);
        let panic = panic_of(|| weighted_dpo_loss([rows(0), rows(1), rows(2)], mask, 0.1, 0.0));
        assert!(panic.contains("shape") || panic.contains("dim"), "{wrong}: {panic}");
    }
    let odd = || weighted_dpo_loss([of(3), of(3), of(3)], mask(&[2; 3], 2, &device), 0.1, 0.0);
    assert!(panic_of(odd).contains("a second response for each first one, not 3 rows"));
    let labels = || token_weights(&[0..1, 1..2], &[1], 2);
    assert!(panic_of(labels).contains("a label for each segment"));
    let values = || advantage_mask(&[1.0], &[], 0.0);
    assert!(panic_of(values).contains("a value for each advantage"));
}

// 7. The devices are in the loops above.
