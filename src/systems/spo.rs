//! SPO: segment advantages by Monte Carlo, without a critic (Guo et al. 2025, arXiv 2505.23564).
//!
//! | method | what is sampled | advantage of a segment |
//! | --- | --- | --- |
//! | `spo_chain` | responses, and N continuations from each boundary between segments | value after it less value before it |
//! | `spo_tree` | a tree of continuations a prompt, some tokens a level | value of the node less its parent's |
//!
//! A value is the mean reward of what was sampled from there. Segments of a chain end before every k-th token of which
//! the policy was unsure. The loss is over the tokens of which it was unsure, with advantages whitened over them, and k3.
//! Rewards are a verdict, or the bandit's reward model. The official settings are in `experiments/spo-official.toml`.
//! Deviations:
//! - advantages are whitened over an iteration, as the paper's methods are here (theirs: over a micro-batch);
//! - a response that was cut off is judged as it is: a verdict fails it, a reward model scores it (theirs: 0);
//! - the leaves of a tree are the samples, and an edge that several share teaches in the first of them: the gradient is
//!   that of theirs, where each edge is a sample of its own, with fewer passes over what edges share;
//! - all edges of an iteration are learned from in it, unless `replay_edges` and `replay_age` say how they wait; each edge is then
//!   a sample of its own, as in theirs.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::error::SystemError;
use super::interface::{Credit, Draw, Method, Parts, Rewards, Rollouts, Row, System, Training};
use super::loss::Loss;
use super::replay::Replay;
use super::rewards::NormalizedRewards;
use super::sample::{Sample, response_tokens, wide};
use super::settings::PpoSettings;
use crate::bounds::{AtLeast, Bounds, Limit, section};
use crate::equations::masked_clip::{unsure, whiten_masked};
use crate::equations::monte_carlo::{
    Node, chain_advantages, cutpoints, tree_advantages, tree_values,
};
use crate::equations::segmentation::Rule;
use crate::model::generate::{Rows, TokenView};
use crate::statistics::mean;

section! {
    /// The section `[systems.spo]`.
    Settings {
        threshold: f64 = Bounds::UpToOne,
        mask: bool,
        kl_coefficient: f64 = Bounds::NotNegative,
        size: usize = AtLeast(1),
        cut: Cut,
        interval: usize = AtLeast(1),
        continuations: usize = AtLeast(1),
        branches: Vec<usize> = Branches,
        level_tokens: usize = AtLeast(1),
        over_std: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replay_edges: Option<usize> = AtLeast(1),
        #[serde(default, skip_serializing_if = "Option::is_none")]
        replay_age: Option<usize> = AtLeast(1),
    }
}

/// Where a chain is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// Before every `interval`-th token of which the policy was unsure.
    Probability,
    /// Before every `interval`-th token.
    Length,
}

/// Children of a node, level by level.
struct Branches;

impl Limit<Vec<usize>> for Branches {
    fn problem(&self, branches: &Vec<usize>) -> Option<(String, String)> {
        let problem = match branches.iter().find(|&&count| !(2..=64).contains(&count)) {
            Some(count) => format!("{count}; expected from 2 to 64 branches a level"),
            None if branches.is_empty() => {
                "[]; expected a number of branches for each level".into()
            }
            None => return None,
        };
        Some((String::new(), problem))
    }
}

/// What both rows share; each names what is its own.
const ROW: Row = Row {
    name: "",
    about: "",
    paper: "Guo et al. 2025, arXiv 2505.23564",
    reward_model: Some(Method::BANDIT),
    rollouts: "",
    reward_rule: |_| Rule::Whole,
    policy_rule: |_| Rule::Whole,
    rewards: "verdict, or bandit reward model, normalized (E5)",
    credit: "",
    loss: "clip over unsure tokens, k3",
    critic: false,
    section: Some("spo"),
    check: |_, _| None,
    training: Training::Online(chain),
};

impl Method {
    /// Values by continuations from the boundaries of a response.
    pub const SPO_CHAIN: Self = Self(&Row {
        name: "spo_chain",
        about: "Segment advantages from continuations at the segments' boundaries, without a critic",
        rollouts: "a group a prompt, continuations from its boundaries",
        credit: "value after the segment less value before it",
        check: check_chain,
        ..ROW
    });
    /// Values by a tree of continuations.
    pub const SPO_TREE: Self = Self(&Row {
        name: "spo_tree",
        about: "Segment advantages from a tree of continuations, without a critic",
        rollouts: "a tree a prompt",
        credit: "value of a node less its parent's",
        check: check_tree,
        training: Training::Online(tree),
        ..ROW
    });
}

/// Both methods.
pub const METHODS: [Method; 2] = [Method::SPO_CHAIN, Method::SPO_TREE];

fn own(section: toml::Value) -> Settings {
    section.try_into().expect("checked when it was read")
}

fn check_chain(ppo: &PpoSettings, section: toml::Value) -> Option<(String, String)> {
    ppo.check_group_size(own(section).size)
}

/// The leaves of whole trees are an iteration's rollouts, and even trees that end early fill its minibatches.
fn check_tree(ppo: &PpoSettings, section: toml::Value) -> Option<(String, String)> {
    let Settings { branches, replay_edges, replay_age, .. } = own(section);
    for (key, is_set, other) in [
        ("replay_age", replay_age.is_some(), replay_edges),
        ("replay_edges", replay_edges.is_some(), replay_age),
    ] {
        if let (false, Some(other)) = (is_set, other) {
            let problem = format!("none; expected a number beside the other, {other}");
            return Some((key.to_owned(), problem));
        }
    }
    let (leaves, rollouts) = (branches.iter().product::<usize>(), ppo.rollouts);
    let problem = |expected: String| {
        Some(("branches".to_owned(), format!("{branches:?}; expected {expected}")))
    };
    if leaves == 0 || !rollouts.is_multiple_of(leaves) {
        return problem(format!("a product that divides ppo.rollouts = {rollouts}"));
    }
    let (least, minibatches) = (rollouts / leaves * branches[0], rollouts.div_ceil(ppo.minibatch));
    if least < minibatches {
        return problem(format!(
            "at least {minibatches} children of the roots for as many minibatches, not {least}"
        ));
    }
    None
}

fn system<'a>(
    parts: &Parts<'a>,
    rollouts: impl FnOnce(&Settings) -> Rollouts,
    credit: impl FnOnce(Settings, NormalizedRewards<'a>) -> Box<dyn Credit + 'a>,
) -> Result<System<'a>, SystemError> {
    let Parts { judge, normalizer, ref section, .. } = *parts;
    let settings = own(section.clone().expect("a system with a section"));
    let rewards = || NormalizedRewards { judge, normalizer, length_neutral: false };
    Ok(System {
        rollouts: rollouts(&settings),
        rewards: Box::new(rewards()),
        loss: Loss::MaskedClip { clip: parts.ppo.clip },
        replay: None,
        value_clip: None,
        kl_coefficient: settings.kl_coefficient,
        credit: credit(settings, rewards()),
        files: Vec::new(),
    })
}

fn chain<'a>(parts: &Parts<'a>) -> Result<System<'a>, SystemError> {
    let rollouts = |settings: &Settings| Rollouts::Group(settings.size);
    system(parts, rollouts, |settings, rewards| Box::new(Chain { settings, rewards }))
}

fn tree<'a>(parts: &Parts<'a>) -> Result<System<'a>, SystemError> {
    let rollouts = |settings: &Settings| Rollouts::Tree {
        branches: settings.branches.clone(),
        level_tokens: settings.level_tokens,
    };
    let settings = own(parts.section.clone().expect("a system with a section"));
    let replay = settings.replay_edges.zip(settings.replay_age);
    let replay = replay.map(|(edges, age)| Replay { edges, age });
    let tree = system(parts, rollouts, |settings, _| Box::new(Tree { settings }))?;
    Ok(System { replay, ..tree })
}

/// The tokens from which the policy may learn: those of which it was unsure, or all.
fn mask(settings: &Settings, log_probs: &[f64]) -> Vec<bool> {
    match settings.mask {
        true => unsure(log_probs, settings.threshold),
        false => vec![true; log_probs.len()],
    }
}

/// Gives each sample its advantages, whitened over the tokens that teach, and its reward at its last token.
fn give(samples: &mut [Sample], mut advantages: Vec<Vec<f64>>, teaches: Vec<Vec<bool>>) {
    whiten_masked(&mut advantages, &teaches);
    for ((sample, advantages), teaches) in samples.iter_mut().zip(advantages).zip(teaches) {
        sample.earn_at_the_end(sample.normalized.iter().sum());
        sample.advantages = advantages;
        sample.teaches = Some(teaches);
    }
}

/// Values by continuations from the boundaries of each response.
struct Chain<'a> {
    settings: Settings,
    rewards: NormalizedRewards<'a>,
}

impl Chain<'_> {
    fn cuts(&self, log_probs: &[f64]) -> Vec<usize> {
        let Settings { threshold, cut, interval, .. } = self.settings;
        match cut {
            Cut::Probability => cutpoints(log_probs, threshold, interval),
            Cut::Length => (0..log_probs.len()).step_by(interval).collect(),
        }
    }
}

impl Credit for Chain<'_> {
    fn assign(&self, samples: &mut [Sample], draw: &Draw<'_>) -> Result<usize, SystemError> {
        let Settings { threshold, continuations, .. } = self.settings;
        let log_probs: Vec<Vec<f64>> = samples.iter().map(|s| wide(&s.log_probs)).collect();
        let cuts: Vec<Vec<usize>> = log_probs.iter().map(|of| self.cuts(of)).collect();
        // The states to value, each once, with the length of its prompt; and the numbers of those of each sample.
        let mut numbers: HashMap<Vec<u32>, usize> = HashMap::new();
        let mut states: Vec<(usize, Vec<u32>)> = Vec::new();
        let mut number = |sample: &Sample, cut: usize| {
            let state = [&sample.prompt[..], &sample.response[..cut]].concat();
            *numbers.entry(state.clone()).or_insert_with(|| {
                states.push((sample.prompt.len(), state));
                states.len() - 1
            })
        };
        let valued: Vec<Vec<usize>> = (samples.iter().zip(&cuts))
            .map(|(sample, cuts)| cuts.iter().map(|&cut| number(sample, cut)).collect())
            .collect();
        let (values, drawn) = self.values(&states, continuations, draw)?;
        let advantages = samples.iter().zip(&log_probs).zip(&cuts).zip(&valued);
        let advantages = advantages.map(|(((sample, log_probs), cuts), valued)| {
            let values: Vec<f64> = valued.iter().map(|&state| values[state]).collect();
            let score = sample.normalized.iter().sum();
            chain_advantages(log_probs, threshold, cuts, &values, score)
        });
        let advantages = advantages.collect();
        let teaches = log_probs.iter().map(|of| mask(&self.settings, of)).collect();
        give(samples, advantages, teaches);
        Ok(response_tokens(samples) + drawn)
    }
}

impl Chain<'_> {
    /// V of each state: the mean reward of `count` continuations. With the number of tokens drawn.
    fn values(
        &self,
        states: &[(usize, Vec<u32>)],
        count: usize,
        draw: &Draw<'_>,
    ) -> Result<(Vec<f64>, usize), SystemError> {
        let each = || states.iter().flat_map(|state| std::iter::repeat_n(state, count));
        let prefixes: Vec<&[u32]> = each().map(|(_, state)| &state[..]).collect();
        let longest = draw.generation.max_new_tokens;
        let limits: Vec<usize> =
            each().map(|(prompt, state)| longest - (state.len() - prompt)).collect();
        let drawn = draw.continuations("continuations", &prefixes, &limits)?;
        let whole: Vec<(&[u32], Vec<u32>)> = each()
            .zip(&drawn)
            .map(|((prompt, state), drawn)| {
                let (prompt, written) = state.split_at(*prompt);
                (prompt, [written, drawn].concat())
            })
            .collect();
        let rows: Vec<(&[u32], &[u32])> = whole.iter().map(|(p, r)| (*p, &r[..])).collect();
        // One reward a response: no entropy is read.
        let unread: Vec<TokenView> = (rows.iter())
            .map(|(_, response)| vec![0.0; response.len()])
            .map(|zeros| TokenView { log_probs: zeros.clone(), entropies: zeros })
            .collect();
        let rewarded = self.rewards.score(&Rows::new(&rows, draw.rows_at_once), &unread)?;
        let rewards: Vec<f64> =
            rewarded.iter().map(|rewarded| rewarded.normalized.iter().sum()).collect();
        let values = rewards.chunks(count).map(|chunk| mean(chunk.iter().copied())).collect();
        Ok((values, drawn.iter().map(Vec::len).sum()))
    }
}

/// The least |A| of an edge that teaches.
const LEAST_ADVANTAGE: f64 = 1e-12;

/// Values by the leaves below each node.
struct Tree {
    settings: Settings,
}

impl Credit for Tree {
    fn assign(&self, samples: &mut [Sample], _draw: &Draw<'_>) -> Result<usize, SystemError> {
        let (mut advantages, mut teaches) = (Vec::new(), Vec::new());
        let mut drawn = 0;
        for leaves in samples.chunk_by(|a, b| a.path.tree == b.path.tree) {
            let nodes = nodes(leaves);
            let edges = tree_advantages(&nodes, &tree_values(&nodes), self.settings.over_std);
            let mut seen = vec![false; nodes.len()];
            for leaf in leaves {
                let mut of_leaf = vec![0.0; leaf.response.len()];
                let mut teaching = mask(&self.settings, &wide(&leaf.log_probs));
                let mut start = 0;
                for edge in &leaf.path.edges {
                    let first = !std::mem::replace(&mut seen[edge.node], true);
                    let advantage = edges[edge.node];
                    if first {
                        drawn += edge.end - start;
                    }
                    if first && advantage.abs() > LEAST_ADVANTAGE {
                        of_leaf[start..edge.end].fill(advantage);
                    } else {
                        teaching[start..edge.end].fill(false);
                    }
                    start = edge.end;
                }
                advantages.push(of_leaf);
                teaches.push(teaching);
            }
        }
        give(samples, advantages, teaches);
        Ok(drawn)
    }
}

/// The nodes of the tree with these leaves.
fn nodes(leaves: &[Sample]) -> Vec<Node> {
    let numbers = leaves.iter().flat_map(|leaf| leaf.path.edges.iter().map(|edge| edge.node));
    let count = 1 + numbers.max().expect("a leaf has a path");
    let mut nodes = vec![Node { parent: None, reward: None }; count];
    for leaf in leaves {
        let mut parent = 0;
        for edge in &leaf.path.edges {
            nodes[edge.node].parent = Some(parent);
            parent = edge.node;
        }
        nodes[parent].reward = Some(leaf.normalized.iter().sum());
    }
    nodes
}
