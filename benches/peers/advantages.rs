//! How far the advantages of each estimator are from the enumerated ones, at equal sampled tokens.
//!
//! `cargo run --release --example advantages` prints a Markdown table. Policies over 4 tokens and at most 6 places, with
//! verdicts, whose exact values are known (`segment_rlhf::data::tabular`); every estimator draws the same number of
//! tokens from the same policy. The error is that of a token's advantage, mean over the sampled tokens; beside it
//! Pearson's correlation with the exact advantage, which a scale does not change.

use std::collections::HashMap;

use segment_rlhf::data::diagnostics::pearson;
use segment_rlhf::data::tabular::{END, Tabular};
use segment_rlhf::equations::gae::gae;
use segment_rlhf::equations::group_baseline::{leave_one_out, over_mean, over_std};
use segment_rlhf::equations::monte_carlo::{
    Node, chain_advantages, cutpoints, tree_advantages, tree_values,
};
use segment_rlhf::rng::{Stream, stream};
use segment_rlhf::statistics::{mean, standard_error};

const TABLES: u64 = 200;
const VOCABULARY: usize = 4;
const LENGTH: usize = 6;
const BUDGETS: [usize; 3] = [100, 400, 1600];
/// Responses of a group.
const GROUP: usize = 8;
/// Continuations of a boundary.
const CONTINUATIONS: usize = 9;
/// Children of a node.
const BRANCHES: usize = 6;
/// The chance below which the policy is unsure of a token.
const THRESHOLD: f64 = 0.9;

/// A token's estimated advantage and its exact one.
type Pair = (f64, f64);

/// Draws from a policy, and counts tokens.
struct Draws<'a> {
    table: &'a Tabular,
    stream: Stream,
    tokens: usize,
}

impl Draws<'_> {
    fn response(&mut self, prefix: &[u32]) -> Vec<u32> {
        let response = self.table.draw(prefix, &mut self.stream);
        self.tokens += response.len() - prefix.len();
        response
    }

    /// At most `tokens` more.
    fn piece(&mut self, prefix: &[u32], tokens: usize) -> Vec<u32> {
        let mut response = self.table.draw(prefix, &mut self.stream);
        response.truncate(prefix.len() + tokens);
        self.tokens += response.len() - prefix.len();
        response
    }

    fn value(&mut self, prefix: &[u32]) -> f64 {
        mean((0..CONTINUATIONS).map(|_| self.table.verdict(&self.response(prefix))))
    }

    fn pairs(&self, response: &[u32], advantages: Vec<f64>) -> Vec<Pair> {
        advantages.into_iter().zip(self.table.advantages(response)).collect()
    }
}

/// GAE with a critic that was fitted on the first half of the tokens: the mean verdict on what began with a prefix.
fn critic(draws: &mut Draws<'_>, budget: usize) -> Vec<Pair> {
    let mut seen: HashMap<Vec<u32>, (f64, f64)> = HashMap::new();
    while draws.tokens < budget / 2 {
        let response = draws.response(&[]);
        for t in 0..response.len() {
            let (sum, count) = seen.entry(response[..t].to_vec()).or_default();
            (*sum, *count) = (*sum + draws.table.verdict(&response), *count + 1.0);
        }
    }
    let mut pairs = Vec::new();
    while draws.tokens < budget {
        let response = draws.response(&[]);
        // A prefix that was not seen has the value of the longest one that was.
        let value = |t: usize| {
            let (sum, count) = (0..=t).rev().find_map(|t| seen.get(&response[..t])).unwrap();
            sum / count
        };
        let values: Vec<f64> = (0..response.len()).map(value).collect();
        let mut rewards = vec![0.0; response.len()];
        rewards[response.len() - 1] = draws.table.verdict(&response);
        let advantages = gae(&rewards, &values, 1.0, 0.95).advantages;
        pairs.extend(draws.pairs(&response, advantages));
    }
    pairs
}

fn group(draws: &mut Draws<'_>, budget: usize, baseline: fn(&[f64]) -> Vec<f64>) -> Vec<Pair> {
    let mut pairs = Vec::new();
    while draws.tokens < budget {
        let responses: Vec<Vec<u32>> = (0..GROUP).map(|_| draws.response(&[])).collect();
        let rewards: Vec<f64> = responses.iter().map(|r| draws.table.verdict(r)).collect();
        for (response, advantage) in responses.iter().zip(baseline(&rewards)) {
            pairs.extend(draws.pairs(response, vec![advantage; response.len()]));
        }
    }
    pairs
}

fn chain(draws: &mut Draws<'_>, budget: usize, interval: usize) -> Vec<Pair> {
    let mut pairs = Vec::new();
    let mut values: HashMap<Vec<u32>, f64> = HashMap::new();
    while draws.tokens < budget {
        let response = draws.response(&[]);
        let log_probs = draws.table.log_probs(&response);
        let cuts = cutpoints(&log_probs, THRESHOLD, interval);
        for &cut in &cuts {
            if !values.contains_key(&response[..cut]) {
                let value = draws.value(&response[..cut]);
                values.insert(response[..cut].to_vec(), value);
            }
        }
        let of: Vec<f64> = cuts.iter().map(|&cut| values[&response[..cut]]).collect();
        let verdict = draws.table.verdict(&response);
        let advantages = chain_advantages(&log_probs, THRESHOLD, &cuts, &of, verdict);
        pairs.extend(draws.pairs(&response, advantages));
    }
    pairs
}

/// Three levels, of two tokens and two tokens and to the end.
fn tree(draws: &mut Draws<'_>, budget: usize) -> Vec<Pair> {
    let mut pairs = Vec::new();
    while draws.tokens < budget {
        let mut nodes = vec![Node { parent: None, reward: None }];
        let mut edges: Vec<(usize, Vec<u32>)> = Vec::new(); // from a place, and the response up to the node
        let mut open = vec![(0, Vec::new())];
        for tokens in [2, 2, LENGTH] {
            let mut next = Vec::new();
            for (parent, prefix) in &open {
                for _ in 0..BRANCHES {
                    let written = draws.piece(prefix, tokens);
                    let ended = written.last() == Some(&END) || written.len() == LENGTH;
                    let reward = ended.then(|| draws.table.verdict(&written));
                    edges.push((prefix.len(), written.clone()));
                    nodes.push(Node { parent: Some(*parent), reward });
                    if !ended {
                        next.push((nodes.len() - 1, written));
                    }
                }
            }
            open = next;
        }
        let advantages = tree_advantages(&nodes, &tree_values(&nodes), false);
        for ((start, written), advantage) in edges.iter().zip(&advantages[1..]) {
            let exact = draws.table.advantages(written);
            pairs.extend(exact[*start..].iter().map(|&exact| (*advantage, exact)));
        }
    }
    pairs
}

type Estimator = fn(&mut Draws<'_>, usize) -> Vec<Pair>;

fn main() {
    let estimators: [(&str, Estimator); 8] = [
        ("no advantage", |d, b| {
            group(d, b, over_mean).into_iter().map(|(_, exact)| (0.0, exact)).collect()
        }),
        ("critic + GAE (λ 0.95)", critic),
        ("GRPO", |d, b| group(d, b, over_std)),
        ("Dr. GRPO", |d, b| group(d, b, over_mean)),
        ("RLOO", |d, b| group(d, b, leave_one_out)),
        ("SPO-chain, every cutpoint", |d, b| chain(d, b, 1)),
        ("SPO-chain, every second", |d, b| chain(d, b, 2)),
        ("SPO-tree, 6-6-6, 2 tokens a level", tree),
    ];
    let columns = BUDGETS.map(|budget| format!("{budget} tokens: error | r"));
    println!("| estimator | {} |", columns.join(" | "));
    println!("| --- |{}", " ---: |".repeat(2 * BUDGETS.len()));
    for (name, estimate) in estimators {
        let cells = BUDGETS.map(|budget| {
            let (mut errors, mut correlations) = (Vec::new(), Vec::new());
            for seed in 0..TABLES {
                let table = Tabular::random(VOCABULARY, LENGTH, 1.5, 0.3, seed);
                let mut draws = Draws { table: &table, stream: stream(seed, name, 0), tokens: 0 };
                let pairs = estimate(&mut draws, budget);
                errors.push(mean(pairs.iter().map(|(a, exact)| (a - exact).powi(2))));
                let (estimated, exact): (Vec<f64>, Vec<f64>) = pairs.into_iter().unzip();
                correlations.extend(pearson(&estimated, &exact));
            }
            let cell = |of: &[f64]| {
                let error = standard_error(of).unwrap_or_default();
                format!("{:.3} ± {error:.3}", mean(of.iter().copied()))
            };
            let r = if correlations.is_empty() { "–".into() } else { cell(&correlations) };
            format!("{} | {r}", cell(&errors))
        });
        println!("| {name} | {} |", cells.join(" | "));
    }
}
