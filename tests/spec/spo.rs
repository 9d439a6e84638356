//! SPO: cutpoints, advantages from Monte Carlo values along a chain and in a tree, and the loss over unsure tokens.

use burn::tensor::{Bool, DType, Device, Tensor, TensorData};
use proptest::prelude::*;
use segment_rlhf::equations::clip_k3::{TokenMean, clip_k3_loss};
use segment_rlhf::equations::masked_clip::{
    LARGEST_MEAN_RATIO, LOG_RATIO_CLAMP, MASKED_WHITENING_EPSILON, masked_clip_loss, unsure,
    whiten_masked,
};
use segment_rlhf::equations::monte_carlo::{
    Node, SIBLING_STD_EPSILON, chain_advantages, cutpoints, tree_advantages, tree_values,
};
use segment_rlhf::equations::ppo::PolicyLoss;
use segment_rlhf::rng::stream;
use segment_rlhf::statistics::mean;
use segment_rlhf::systems::Pool;
use serde::Deserialize;
use serde_json::Value;

use crate::goldens::cases;
use crate::support::{
    assert_close, assert_gradient, cpu, devices, host, matrix, padded, panic_of, value_and_gradient,
};
use crate::tolerance;

const THRESHOLD: f64 = 0.9;

// 1. Worked example

#[test]
fn a_segment_is_worth_what_the_value_gains_until_the_next_cutpoint() {
    let log_probs = [0.99, 0.5, 0.95, 0.1, 0.2, 0.3].map(f64::ln);
    // Unsure are 1, 3, 4 and 5; every second of them cuts.
    let cuts = cutpoints(&log_probs, THRESHOLD, 2);
    assert_eq!(cuts, [1, 4]);
    let advantages = chain_advantages(&log_probs, THRESHOLD, &cuts, &[0.25, 0.75], 1.0);
    assert_eq!(advantages, [0.0, 0.5, 0.0, 0.5, 0.25, 0.25]);
}

#[test]
fn an_edge_of_a_tree_is_worth_what_its_end_is_above_its_start() {
    // The root has a finished child of 1 and one with the finished children 0 and 1.
    let node = |parent, reward| Node { parent, reward };
    let tree = [
        node(None, None),
        node(Some(0), Some(1.0)),
        node(Some(0), None),
        node(Some(2), Some(0.0)),
        node(Some(2), Some(1.0)),
    ];
    let values = tree_values(&tree);
    assert_eq!(values, [0.75, 1.0, 0.5, 0.0, 1.0]);
    assert_eq!(tree_advantages(&tree, &values, false), [0.0, 0.25, -0.25, -0.5, 0.5]);
    // The standard deviations of the siblings are 0.25 and 0.5.
    let [above, below] = [0.25, 0.5].map(|std| std / (std + SIBLING_STD_EPSILON));
    let over_std = tree_advantages(&tree, &values, true);
    assert_close(&over_std, &[0.0, above, -above, -below, below], tolerance::HOST_F64);
}

#[test]
fn the_loss_is_over_unsure_tokens_alone() {
    for (device, tolerance) in devices() {
        let row = |row: [f64; 3]| matrix(&[row.to_vec()], &device, DType::F32);
        let mask = marks(&[vec![true, false, true]], &device);
        // Ratios of 1.5 and 1 count, of advantages 1 and -1 and ε = 0.2: 1.2 - 1; the second token is another's.
        let new = [1.5f64.ln(), 9.0, 0.0];
        let reference = [1.5f64.ln(), 3.0, 2f64.ln()];
        let rows = [row(new), row([0.0; 3]), row(reference), row([1.0, 7.0, -1.0])];
        let loss = masked_clip_loss(rows, mask, 0.2, 0.5, None);
        let penalty = 0.5 * (1.0 - 2f64.ln());
        assert_close(&host(loss.loss), &[-(1.2 - 1.0) / 2.0 + penalty], tolerance);
        assert_close(&host(loss.clip_fraction), &[0.5], tolerance);
        assert_close(&host(loss.ratio), &[1.25], tolerance);
    }
}

// 2. Goldens: SPO's own code

#[derive(Deserialize)]
struct Chain {
    kind: String,
    interval: usize,
    threshold: f64,
    use_prob_mask: bool,
    clip: f64,
    kl_coef: f64,
    ratio_threshold: f64,
    scores: Vec<f64>,
    log_probs: Vec<Vec<f64>>,
    old_log_probs: Vec<Vec<f64>>,
    ref_log_probs: Vec<Vec<f64>>,
    boundaries: Vec<Vec<i64>>,
    rollouts: Vec<Vec<Vec<Option<f64>>>>,
    values: Vec<Vec<f64>>,
    advantages: Vec<Vec<f64>>,
    whitened: Vec<Vec<Option<f64>>>,
    loss: Option<f64>,
    grad_log_probs: Vec<Vec<Option<f64>>>,
    mean_ratio: Option<f64>,
    clip_fraction: Option<f64>,
    skipped: bool,
}

impl Chain {
    fn width(&self) -> usize {
        self.log_probs.iter().map(Vec::len).max().unwrap()
    }

    /// The tokens that count, without padding.
    fn mask(&self) -> Vec<Vec<bool>> {
        let of = |row: &Vec<f64>| match self.use_prob_mask {
            true => unsure(row, self.threshold),
            false => vec![true; row.len()],
        };
        self.old_log_probs.iter().map(of).collect()
    }

    fn whitened(&self) -> Vec<Vec<f64>> {
        let mut advantages = self.advantages.clone();
        whiten_masked(&mut advantages, &self.mask());
        advantages
    }

    fn policy(&self, log_probs: Tensor<2>, device: &Device) -> PolicyLoss {
        let dtype = log_probs.dtype();
        let row = |rows: &[Vec<f64>]| matrix(&padded(rows, self.width(), f64::NAN), device, dtype);
        let (old, reference) = (row(&self.old_log_probs), row(&self.ref_log_probs));
        let rows = [log_probs, old, reference, row(&self.whitened())];
        let mut mask = self.mask();
        mask.iter_mut().for_each(|row| row.resize(self.width(), false));
        masked_clip_loss(rows, marks(&mask, device), self.clip, self.kl_coef, None)
    }

    /// Whether the official code gives numbers: it has none for fewer than two masked tokens.
    fn is_defined(&self) -> bool {
        self.loss.is_some()
    }
}

fn marks(rows: &[Vec<bool>], device: &Device) -> Tensor<2, Bool> {
    Tensor::from_data(TensorData::new(rows.concat(), [rows.len(), rows[0].len()]), device)
}

#[test]
fn cutpoints_and_values_are_those_of_the_official_code() {
    for case in cases::<Chain>("spo_chain") {
        for (row, boundaries) in case.old_log_probs.iter().zip(&case.boundaries) {
            // A boundary is the last token before a cutpoint.
            let cuts = cutpoints(row, case.threshold, case.interval);
            let before: Vec<i64> = cuts.iter().map(|&t| t as i64 - 1).collect();
            assert_eq!(&before, boundaries, "{}", case.kind);
        }
        for (rollouts, values) in case.rollouts.iter().zip(&case.values) {
            // A continuation that was cut off earned nothing.
            let value = |of: &Vec<Option<f64>>| mean(of.iter().map(|r| r.unwrap_or(0.0)));
            let own: Vec<f64> = rollouts.iter().map(value).collect();
            assert_close(&own, values, tolerance::HOST_F64);
        }
    }
}

#[test]
fn chain_advantages_and_their_whitening_are_those_of_the_official_code() {
    let mut whitened = 0;
    for case in cases::<Chain>("spo_chain") {
        for (i, expected) in case.advantages.iter().enumerate() {
            let (log_probs, values) = (&case.old_log_probs[i], &case.values[i]);
            let cuts = cutpoints(log_probs, case.threshold, case.interval);
            let own = chain_advantages(log_probs, case.threshold, &cuts, values, case.scores[i]);
            assert_close(&own, expected, tolerance::HOST_F64);
        }
        if case.is_defined() {
            let rows = case.whitened().into_iter().zip(&case.whitened).zip(case.mask());
            for ((own, expected), mask) in rows {
                for t in (0..own.len()).filter(|&t| mask[t]) {
                    assert_close(&own[t..=t], &[expected[t].unwrap()], tolerance::HOST_F64);
                }
            }
            whitened += 1;
        }
    }
    assert_eq!(whitened, 10);
}

#[test]
fn the_masked_loss_and_its_gradient_are_those_of_the_official_code() {
    let mut rejected = 0;
    for case in cases::<Chain>("spo_chain") {
        assert_eq!(case.ratio_threshold, LARGEST_MEAN_RATIO);
        for (device, tolerance) in devices() {
            let x = padded(&case.log_probs, case.width(), f64::NAN);
            let loss = |x| case.policy(x, &device).loss;
            let (loss, gradient) = value_and_gradient(loss, &x, &device, DType::F32);
            let policy = case.policy(matrix(&x, &device, DType::F32), &device);
            if !case.is_defined() {
                // One masked token has the advantage 0 and pays its penalty; none has nothing.
                assert!(loss.is_finite() && loss >= 0.0, "{}: {loss}", case.kind);
                assert!(gradient.iter().all(|g| g.is_finite() && g.abs() < 1e-3), "{}", case.kind);
                continue;
            }
            let expected = case.grad_log_probs.iter();
            let expected: Vec<Vec<f64>> =
                expected.map(|row| row.iter().map(|g| g.unwrap()).collect()).collect();
            assert_close(&[loss], &[case.loss.unwrap()], tolerance);
            assert_close(&gradient, &padded(&expected, case.width(), 0.0).concat(), tolerance);
            let relative = [host(policy.ratio)[0] / case.mean_ratio.unwrap()];
            assert_close(&relative, &[1.0], tolerance);
            assert_close(&host(policy.clip_fraction), &[case.clip_fraction.unwrap()], tolerance);
            if case.skipped {
                assert_eq!((loss, gradient.iter().all(|g| *g == 0.0)), (0.0, true));
                rejected += 1;
            }
        }
    }
    assert!(rejected >= 1);
}

#[derive(Deserialize)]
struct Tree {
    kind: String,
    #[serde(default)]
    tree: Value,
    #[serde(default)]
    values: Vec<f64>,
    #[serde(default)]
    advantages: Vec<f64>,
    #[serde(default)]
    advantages_over_std: Vec<f64>,
}

/// The nodes of nested lists in preorder; a number is a finished node's reward.
fn nodes(tree: &Value, parent: Option<usize>, into: &mut Vec<Node>) {
    let number = into.len();
    into.push(Node { parent, reward: tree.as_f64() });
    for child in tree.as_array().into_iter().flatten() {
        nodes(child, Some(number), into);
    }
}

#[test]
fn values_and_advantages_of_trees_are_those_of_the_official_code() {
    let mut count = 0;
    for case in cases::<Tree>("spo_tree").iter().filter(|case| case.kind == "tree") {
        let mut all = Vec::new();
        nodes(&case.tree, None, &mut all);
        let values = tree_values(&all);
        assert_close(&values, &case.values, tolerance::HOST_F64);
        // Theirs are of edges: every node but the root.
        let own = tree_advantages(&all, &values, false);
        assert_close(&own[1..], &case.advantages, tolerance::HOST_F64);
        let own = tree_advantages(&all, &values, true);
        assert_close(&own[1..], &case.advantages_over_std, tolerance::TABLE);
        count += 1;
    }
    assert_eq!(count, 9);
}

#[derive(Deserialize)]
struct ReplayCase {
    kind: String,
    #[serde(default)]
    age_limit: usize,
    #[serde(default)]
    edges_per_question: usize,
    #[serde(default)]
    trace: Vec<ReplayStep>,
}

#[derive(Deserialize)]
struct ReplayStep {
    iteration: usize,
    /// Questions with the number of their new edges.
    added: Vec<[usize; 2]>,
    dropped: usize,
    /// Edges learned from, question by question.
    used: Vec<usize>,
    /// Questions with an iteration of birth and the number of edges that were drawn; and those that are left.
    picked: Vec<[usize; 3]>,
    left: Vec<[usize; 3]>,
}

/// The questions and births of what waits, with their numbers, in order.
fn waiting(pool: &Pool<()>) -> Vec<[usize; 3]> {
    let mut counts = std::collections::BTreeMap::new();
    for (prompt, born) in pool.waiting() {
        *counts.entry([prompt[0] as usize, born]).or_insert(0) += 1;
    }
    counts.into_iter().map(|([question, born], n)| [question, born, n]).collect()
}

#[test]
fn edges_wait_are_used_and_are_dropped_as_in_the_official_code() {
    let (mut steps, mut dropped) = (0, 0);
    for case in cases::<ReplayCase>("spo_tree").iter().filter(|case| case.kind == "replay") {
        let mut pool = Pool::default();
        for step in &case.trace {
            let before = pool.waiting().count();
            let edges = |&[question, n]: &[usize; 2]| vec![(vec![question as u32], ()); n];
            let added: usize = step.added.iter().map(|[_, n]| n).sum();
            pool.admit(step.added.iter().flat_map(edges), step.iteration, case.age_limit);
            assert_eq!(before + added - pool.waiting().count(), step.dropped);
            dropped += step.dropped;
            // As many of each question as theirs draws; which ones is theirs to say.
            let drawn = pool.draw(case.edges_per_question, &mut stream(0, "golden", 0));
            let all: Vec<(u32, usize)> =
                pool.waiting().map(|(prompt, born)| (prompt[0], born)).collect();
            let of =
                |question: usize| drawn.iter().filter(|&&i| all[i].0 as usize == question).count();
            let used: Vec<usize> = (0..step.used.len()).map(of).collect();
            assert_eq!(used, step.used);
            let mut left = step.picked.clone();
            let mut theirs = Vec::new();
            for (i, &(question, born)) in all.iter().enumerate() {
                let mut picks = left.iter_mut();
                let same = |p: &&mut [usize; 3]| p[..2] == [question as usize, born] && p[2] > 0;
                if let Some(pick) = picks.find(same) {
                    pick[2] -= 1;
                    theirs.push(i);
                }
            }
            assert_eq!(pool.take(&theirs).len(), theirs.len());
            assert_eq!(waiting(&pool), step.left);
            steps += 1;
        }
    }
    assert!(steps > 12 && dropped > 0, "{steps} steps, {dropped} dropped");
}

// 3. Identities and limits

proptest! {
    #[test]
    fn nothing_is_learned_from_twice_and_without_a_cap_all_at_once(
        counts in prop::collection::vec(0usize..6, 1..8), most in 1usize..5,
    ) {
        let mut pool = Pool::default();
        let (mut next, mut used) = (0, Vec::new());
        for (iteration, &count) in counts.iter().enumerate() {
            let new = (next..next + count).map(|item| (vec![item as u32 % 2], item));
            pool.admit(new, iteration, 100);
            next += count;
            let drawn = pool.draw(most, &mut stream(0, "replay", iteration as u64));
            prop_assert!(drawn.len() <= 2 * most);
            used.extend(pool.take(&drawn));
        }
        let all = pool.draw(usize::MAX, &mut stream(0, "replay", 99));
        used.extend(pool.take(&all));
        prop_assert_eq!(pool.waiting().count(), 0);
        used.sort_unstable();
        prop_assert_eq!(used, (0..next).collect::<Vec<_>>());
    }
}

fn probabilities() -> impl Strategy<Value = Vec<f64>> {
    let token = prop_oneof![0.01..0.9f64, 0.9..1.0f64];
    prop::collection::vec(token.prop_map(f64::ln), 1..20)
}

proptest! {
    #[test]
    fn a_chain_s_advantages_telescope_to_the_score_less_the_first_value(
        log_probs in probabilities(), interval in 1usize..4, values in prop::collection::vec(0.0..1.0f64, 20),
        score in 0.0..1.0f64,
    ) {
        let cuts = cutpoints(&log_probs, THRESHOLD, interval);
        let values = &values[..cuts.len()];
        // Without the mask, so that no token of a segment is left out.
        let advantages = chain_advantages(&log_probs, f64::INFINITY, &cuts, values, score);
        let sum: f64 = cuts.iter().map(|&t| advantages[t]).sum();
        match values.first() {
            Some(first) => prop_assert!((sum - (score - first)).abs() < 1e-12),
            None => prop_assert!(advantages.iter().all(|a| *a == 0.0)),
        }
        let before = cuts.first().copied().unwrap_or(log_probs.len());
        prop_assert!(advantages[..before].iter().all(|a| *a == 0.0));
    }

    #[test]
    fn every_kth_cutpoint_is_one_of_all_and_the_first_is_kept(
        log_probs in probabilities(), interval in 1usize..6,
    ) {
        let all = cutpoints(&log_probs, THRESHOLD, 1);
        let kept = cutpoints(&log_probs, THRESHOLD, interval);
        prop_assert_eq!(kept.first(), all.first());
        prop_assert_eq!(kept.len(), all.len().div_ceil(interval));
        prop_assert!(kept.iter().all(|t| all.contains(t)));
        prop_assert_eq!(cutpoints(&log_probs, 0.0, interval), Vec::<usize>::new());
        prop_assert_eq!(cutpoints(&log_probs, 2.0, 1).len(), log_probs.len());
    }

    #[test]
    fn the_advantages_of_a_node_s_children_sum_to_nothing(
        rewards in prop::collection::vec(prop::collection::vec(0.0..1.0f64, 1..5), 1..5),
    ) {
        let mut tree = vec![Node { parent: None, reward: None }];
        for children in &rewards {
            let parent = tree.len();
            tree.push(Node { parent: Some(0), reward: None });
            let leaf = |&reward: &f64| Node { parent: Some(parent), reward: Some(reward) };
            tree.extend(children.iter().map(leaf));
        }
        let values = tree_values(&tree);
        for over_std in [false, true] {
            let advantages = tree_advantages(&tree, &values, over_std);
            for number in 0..tree.len() {
                let of = tree.iter().zip(&advantages).filter(|(n, _)| n.parent == Some(number));
                prop_assert!(of.map(|(_, a)| a).sum::<f64>().abs() < 1e-6);
            }
        }
    }

    #[test]
    fn whitened_advantages_have_mean_0_and_variance_1_but_for_epsilon_under_the_mask(
        rows in prop::collection::vec(prop::collection::vec((-5.0..5.0f64, any::<bool>()), 1..6), 1..5),
    ) {
        let mask: Vec<Vec<bool>> = rows.iter().map(|r| r.iter().map(|t| t.1).collect()).collect();
        let before: Vec<Vec<f64>> = rows.iter().map(|r| r.iter().map(|t| t.0).collect()).collect();
        let mut own = before.clone();
        whiten_masked(&mut own, &mask);
        let flat: Vec<(f64, bool)> = own.concat().into_iter().zip(mask.concat()).collect();
        prop_assert!(flat.iter().all(|(a, masked)| *masked || *a == 0.0));
        let chosen = |rows: Vec<f64>| -> Vec<f64> {
            rows.into_iter().zip(mask.concat()).filter(|t| t.1).map(|t| t.0).collect()
        };
        let unbiased = |of: &[f64]| {
            let center = mean(of.iter().copied());
            of.iter().map(|a| (a - center).powi(2)).sum::<f64>() / (of.len() - 1) as f64
        };
        let (before, own) = (chosen(before.concat()), chosen(own.concat()));
        prop_assert!(mean(own.iter().copied()).abs() < 1e-9);
        if own.len() > 1 {
            let variance = unbiased(&before);
            let expected = variance / (variance + MASKED_WHITENING_EPSILON);
            prop_assert!((unbiased(&own) - expected).abs() < 1e-9);
        }
    }
}

#[test]
fn a_probability_of_exactly_the_threshold_neither_cuts_nor_loses_its_advantage() {
    let log_probs = [0.0, (0.5f64).ln(), 0.0]; // e^0 is exactly 1
    assert_eq!(cutpoints(&log_probs, 1.0, 1), [1]);
    assert_eq!(unsure(&log_probs, 1.0), [false, true, false]);
    assert_eq!(chain_advantages(&log_probs, 1.0, &[1], &[0.5], 1.0), [0.0, 0.5, 0.5]);
}

#[test]
fn one_masked_token_is_worth_nothing_and_none_gives_no_loss_nor_gradient() {
    let mut rows = vec![vec![3.0, 4.0]];
    whiten_masked(&mut rows, &[vec![false, true]]);
    assert_eq!(rows, [[0.0, 0.0]]);
    let mut equal = vec![vec![0.5; 3]];
    whiten_masked(&mut equal, &[vec![true; 3]]);
    assert_eq!(equal, [[0.0; 3]]);
    let mut spread = vec![vec![0.0, 2e-4]];
    whiten_masked(&mut spread, &[vec![true; 2]]);
    // Variance 2e-8, and the ε beside it.
    let expected = 1e-4 / (2e-8 + MASKED_WHITENING_EPSILON).sqrt();
    assert_close(&spread[0], &[-expected, expected], tolerance::HOST_F64);
    for (device, _) in devices() {
        let none = |x: Tensor<2>| {
            let rows = [x.clone(), x.zeros_like(), x.zeros_like(), x.ones_like()];
            masked_clip_loss(rows, marks(&[vec![false; 2]], &device), 0.2, 0.1, None).loss
        };
        let (loss, gradient) = value_and_gradient(none, &[vec![-1.0, -2.0]], &device, DType::F32);
        assert_eq!((loss, gradient), (0.0, vec![0.0; 2]));
    }
}

#[test]
fn with_every_token_masked_and_rows_of_one_length_the_policy_s_part_is_that_of_grpo() {
    let device = cpu();
    let row = |rows: &[Vec<f64>]| matrix(rows, &device, DType::F64);
    let new = row(&[vec![-1.0, -0.5], vec![-0.25, -1.5]]);
    let old = row(&[vec![-1.25, -0.25], vec![-0.5, -1.0]]);
    let advantages = row(&[vec![1.0, -1.0], vec![0.5, 2.0]]);
    let mask = marks(&vec![vec![true; 2]; 2], &device);
    let rows = [new.clone(), old, new, advantages]; // no distance from the reference
    let ours = masked_clip_loss(rows.clone(), mask.clone(), 0.2, 0.1, None);
    let grpo = clip_k3_loss(rows, mask, 0.2, 0.1, TokenMean::Response);
    assert_close(&host(ours.loss), &host(grpo.loss), tolerance::HOST_F64);
    assert_close(&host(ours.ratio), &host(grpo.ratio), tolerance::HOST_F64);
}

#[test]
fn shards_weighted_by_their_share_of_the_rows_sum_to_the_loss_of_the_minibatch() {
    let device = cpu();
    let new = [vec![-1.0, -0.5], vec![-0.25, -1.5], vec![-0.75, -0.5]];
    let old = [vec![-1.25, -0.25], vec![-0.5, -1.0], vec![-0.75, -2.0]];
    let advantages = [vec![1.0, -1.0], vec![0.5, 2.0], vec![-1.0, 0.25]];
    let mask = [vec![true, false], vec![true, true], vec![false, false]];
    let loss = |rows: std::ops::Range<usize>, count| {
        let row = |of: &[Vec<f64>]| matrix(&of[rows.clone()], &device, DType::F64);
        let all = [row(&new), row(&old), row(&old), row(&advantages)];
        let losses = masked_clip_loss(all, marks(&mask[rows.clone()], &device), 0.2, 0.1, count);
        [losses.loss, losses.ratio, losses.clip_fraction].map(|of| host(of)[0])
    };
    let whole = loss(0..3, None);
    for shards in [vec![0..1, 1..3], vec![0..2, 2..3], vec![0..1, 1..2, 2..3]] {
        let mut sum = [0.0; 3];
        for shard in shards {
            let share = shard.len() as f64 / 3.0;
            let part = loss(shard, Some(3.0 * share));
            sum = std::array::from_fn(|i| sum[i] + share * part[i]);
        }
        assert_close(&sum, &whole, tolerance::HOST_F64);
    }
}

#[test]
fn log_ratios_are_held_within_ten_nats() {
    let device = cpu();
    let row = |x: f64| matrix(&[vec![x]], &device, DType::F64);
    let loss = |new: f64, reference: f64, beta: f64| {
        let rows = [row(new), row(0.0), row(reference), row(-1.0)];
        host(masked_clip_loss(rows, marks(&[vec![true]], &device), 0.2, beta, None).loss)[0]
    };
    // d = -20 counts as -10; the ratio is e^-20, held at e^-10, and min(-r, -0.8) is -0.8.
    let k3 = |d: f64| d.exp() - d - 1.0;
    assert_close(&[loss(-20.0, -40.0, 1.0)], &[0.8 + k3(-LOG_RATIO_CLAMP)], tolerance::HOST_F64);
    // A ratio of e^20 would be e^10 when held, which is above the largest mean: nothing is learned.
    assert_eq!(loss(20.0, 20.0, 1.0), 0.0);
}

// 4. Gradient

#[test]
fn gradients_are_those_of_central_differences() {
    let smooth = ["random", "first_token", "no_mask_in_the_loss", "one_row_without_cutpoints"];
    let cases = cases::<Chain>("spo_chain");
    let own: Vec<&Chain> = cases.iter().filter(|c| smooth.contains(&c.kind.as_str())).collect();
    assert!(own.len() >= 6);
    for case in own {
        assert_gradient(
            |x| case.policy(x, &cpu()).loss,
            &padded(&case.log_probs, case.width(), 0.0),
        );
    }
}

// 5. Padding: the goldens' rows are padded with NaN. The loss is a mean over the tokens of all rows, so a row alone has
// another weight.

// 6. Bad input

#[test]
fn no_argument_is_broadcast_and_what_does_not_fit_is_named() {
    let device = cpu();
    let of = |rows: usize| matrix(&vec![vec![-1.0; 2]; rows], &device, DType::F32);
    for wrong in 0..5 {
        let rows = |i: usize| of(if wrong == i { 1 } else { 2 });
        let mask = marks(&vec![vec![true; 2]; if wrong == 4 { 1 } else { 2 }], &device);
        let all = [rows(0), rows(1), rows(2), rows(3)];
        let panic = panic_of(|| masked_clip_loss(all, mask, 0.2, 0.1, None));
        assert!(panic.contains("shape") || panic.contains("dim"), "{wrong}: {panic}");
    }
    let chain = || chain_advantages(&[0.0; 2], THRESHOLD, &[0, 1], &[0.5], 1.0);
    assert!(panic_of(chain).contains("a value for each cutpoint"));
    let childless = [Node { parent: None, reward: None }];
    let panic = panic_of(|| tree_values(&childless));
    assert_eq!(panic, "node 0 has neither a reward nor children");
    let node = |parent| Node { parent, reward: Some(1.0) };
    let panic = panic_of(|| tree_values(&[node(Some(1)), node(None)]));
    assert_eq!(panic, "node 0 is before its parent 1");
    let short = || whiten_masked(&mut [vec![1.0; 2]], &[vec![true]]);
    assert!(panic_of(short).contains("a mask for each token"));
}

// 7. The devices are in the loops above.
