//! Every estimator of advantages against values that are enumerated: of a policy with a probability for each token after
//! each prefix, and a verdict on each response.

use segment_rlhf::data::tabular::{END, Tabular};
use segment_rlhf::equations::gae::gae;
use segment_rlhf::equations::group_baseline::{leave_one_out, over_mean};
use segment_rlhf::equations::monte_carlo::{
    Node, chain_advantages, cutpoints, tree_advantages, tree_values,
};
use segment_rlhf::rng::stream;
use segment_rlhf::statistics::{mean, standard_error};

use crate::support::assert_close;
use crate::tolerance;

fn tables() -> impl Iterator<Item = Tabular> {
    [(2, 6), (3, 4), (6, 3)].into_iter().enumerate().map(|(seed, (vocabulary, length))| {
        Tabular::random(vocabulary, length, 1.5, 0.3, seed as u64)
    })
}

/// The mean of `of` over the responses that begin with `prefix`, each with its chance.
fn expected(table: &Tabular, prefix: &[u32], of: impl Fn(&[u32]) -> f64) -> f64 {
    let all = table.responses();
    let own = all.iter().filter(|response| response.starts_with(prefix));
    own.map(|response| table.probability(response) * of(response)).sum::<f64>()
        / table.probability(prefix)
}

/// Every proper prefix of every response, each once.
fn prefixes(table: &Tabular) -> Vec<Vec<u32>> {
    let all = table.responses();
    let mut prefixes: Vec<Vec<u32>> =
        all.iter().flat_map(|r| (0..r.len()).map(|t| r[..t].to_vec())).collect();
    prefixes.sort();
    prefixes.dedup();
    prefixes
}

#[test]
fn probabilities_sum_to_one_and_values_are_the_mean_verdict() {
    let counts: Vec<usize> = tables().map(|table| table.responses().len()).collect();
    // Over V tokens and at most L: Σ_{l<L} (V-1)^l · 1 that end by token, and (V-1)^L at the limit.
    assert_eq!(counts, [7, 1 + 2 + 4 + 8 + 16, 1 + 5 + 25 + 125]);
    for table in tables() {
        assert_close(&[expected(&table, &[], |_| 1.0)], &[1.0], tolerance::HOST_F64);
        for prefix in prefixes(&table) {
            let value = expected(&table, &prefix, |response| table.verdict(response));
            assert_close(&[table.value(&prefix)], &[value], tolerance::HOST_F64);
        }
        let ended = table.responses().into_iter().filter(|r| r.last() == Some(&END)).count();
        assert!(ended > 0 && ended < table.responses().len());
    }
}

#[test]
fn gae_with_the_true_values_and_lambda_0_is_the_exact_advantage() {
    for table in tables() {
        for response in table.responses() {
            let values: Vec<f64> =
                (0..response.len()).map(|t| table.value(&response[..t])).collect();
            let mut rewards = vec![0.0; response.len()];
            *rewards.last_mut().unwrap() = table.verdict(&response);
            let exact = table.advantages(&response);
            assert_close(&gae(&rewards, &values, 1.0, 0.0).advantages, &exact, tolerance::HOST_F64);
        }
    }
}

#[test]
fn gae_with_the_true_values_is_unbiased_for_every_lambda() {
    let table = Tabular::random(3, 4, 1.5, 0.3, 1);
    for lambda in [0.5, 0.95, 1.0] {
        for prefix in prefixes(&table) {
            for token in 0..3u32 {
                let next = [&prefix[..], &[token]].concat();
                let advantage = |response: &[u32]| {
                    let values: Vec<f64> =
                        (0..response.len()).map(|t| table.value(&response[..t])).collect();
                    let mut rewards = vec![0.0; response.len()];
                    *rewards.last_mut().unwrap() = table.verdict(response);
                    gae(&rewards, &values, 1.0, lambda).advantages[prefix.len()]
                };
                let exact = table.value(&next) - table.value(&prefix);
                assert_close(&[expected(&table, &next, advantage)], &[exact], tolerance::HOST_F64);
            }
        }
    }
}

#[test]
fn a_group_of_two_gives_the_advantage_of_the_whole_response_on_average() {
    for table in tables() {
        let all = table.responses();
        for response in &all {
            let own = table.verdict(response);
            let on_average = |baseline: fn(&[f64]) -> Vec<f64>| {
                expected(&table, &[], |other| baseline(&[own, table.verdict(other)])[0])
            };
            let exact = own - table.value(&[]);
            assert_close(&[on_average(leave_one_out)], &[exact], tolerance::HOST_F64);
            // With its own reward in the mean, half of it is left.
            assert_close(&[on_average(over_mean)], &[exact / 2.0], tolerance::HOST_F64);
        }
    }
}

#[test]
fn a_chain_of_true_values_sums_the_exact_advantages_of_its_tokens() {
    for table in tables() {
        for (response, interval) in table.responses().iter().flat_map(|r| [(r, 1), (r, 2)]) {
            let log_probs = table.log_probs(response);
            let cuts = cutpoints(&log_probs, 0.5, interval);
            let values: Vec<f64> = cuts.iter().map(|&t| table.value(&response[..t])).collect();
            let verdict = table.verdict(response);
            let chain = chain_advantages(&log_probs, f64::INFINITY, &cuts, &values, verdict);
            let exact = table.advantages(response);
            let ends = cuts.iter().skip(1).copied().chain([response.len()]);
            for (&start, end) in cuts.iter().zip(ends) {
                let sum: f64 = exact[start..end].iter().sum();
                assert_close(&[chain[start]], &[sum], tolerance::HOST_F64);
                assert!(chain[start..end].iter().all(|advantage| *advantage == chain[start]));
            }
        }
    }
}

/// The mean of `estimates` is `exact`, as far as their spread can tell.
fn assert_unbiased(estimates: &[f64], exact: f64) {
    let error = standard_error(estimates).unwrap();
    let off = mean(estimates.iter().copied()) - exact;
    assert!(error > 0.0 && off.abs() < tolerance::STANDARD_ERRORS * error, "{off} ± {error}");
}

#[test]
fn monte_carlo_values_make_an_unbiased_chain() {
    let table = Tabular::random(4, 5, 1.5, 0.3, 3);
    // A response on whose way nothing is decided before its last token.
    let open = |r: &Vec<u32>| (0..5).all(|t| (0.01..0.99).contains(&table.value(&r[..t])));
    let response = table.responses().into_iter().find(|r| r.len() == 5 && open(r)).unwrap();
    let log_probs = table.log_probs(&response);
    let cuts = [0, 2, 4];
    let mut draws = stream(0, "continuations", 0);
    let mut estimates: [Vec<f64>; 3] = Default::default();
    for _ in 0..2000 {
        // Nine continuations from each cutpoint.
        let values = cuts
            .map(|t| mean((0..9).map(|_| table.verdict(&table.draw(&response[..t], &mut draws)))));
        let verdict = table.verdict(&response);
        let chain = chain_advantages(&log_probs, f64::INFINITY, &cuts, &values, verdict);
        cuts.iter().zip(&mut estimates).for_each(|(&t, of)| of.push(chain[t]));
    }
    let exact = table.advantages(&response);
    assert_unbiased(&estimates[0], exact[0] + exact[1]);
    assert_unbiased(&estimates[1], exact[2] + exact[3]);
    assert_unbiased(&estimates[2], exact[4]);
}

#[test]
fn a_tree_s_values_are_unbiased_and_an_edge_lacks_the_child_s_own_share() {
    let table = Tabular::random(4, 5, 1.5, 0.3, 4);
    let mut draws = stream(0, "trees", 0);
    let branches = 4;
    let (mut roots, mut edges) = (Vec::new(), Vec::new());
    for _ in 0..2000 {
        // Two levels: a token, then the rest.
        let mut tree = vec![Node { parent: None, reward: None }];
        let mut firsts = Vec::new();
        for _ in 0..branches {
            let first = table.draw(&[], &mut draws)[..1].to_vec();
            let parent = tree.len();
            firsts.push((parent, first.clone()));
            if first == [END] {
                tree.push(Node { parent: Some(0), reward: Some(table.verdict(&first)) });
                continue;
            }
            tree.push(Node { parent: Some(0), reward: None });
            for _ in 0..branches {
                let reward = Some(table.verdict(&table.draw(&first, &mut draws)));
                tree.push(Node { parent: Some(parent), reward });
            }
        }
        let values = tree_values(&tree);
        roots.push(values[0]);
        let advantages = tree_advantages(&tree, &values, false);
        // The parent's value has the child in it: a share of 1/4 of the distance is missing.
        if firsts[0].1 == [1] {
            let exact = table.value(&[1]) - table.value(&[]);
            edges.push(advantages[firsts[0].0] - exact * (1.0 - 1.0 / branches as f64));
        }
    }
    assert_unbiased(&roots, table.value(&[]));
    assert_unbiased(&edges, 0.0);
}
