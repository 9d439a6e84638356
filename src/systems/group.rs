//! Group-relative PPO without a critic: the baseline of a response is that of the others to its prompt.
//!
//! | method | advantage of a response | loss | KL |
//! | --- | --- | --- | --- |
//! | `grpo` | reward less the group's mean, over its standard deviation | clip, mean over its tokens | k3 in the loss |
//! | `dr_grpo` | reward less the group's mean | clip, sum over its tokens | k3 in the loss |
//! | `rloo` | reward less the mean of the others | clip of the whole response's ratio | taken off the reward |
//!
//! GRPO is Shao et al. 2024 (arXiv 2402.03300), Dr. GRPO Liu et al. 2025 (arXiv 2503.20783), RLOO Ahmadian et al. 2024
//! (arXiv 2402.14740); where a paper leaves something open, TRL 1.16.0 decides. Rewards are the bandit's: one a response.
//! Deviations, from TRL's defaults:
//! - the reward is normalized by the run's normalizer, for which the group's baseline makes up but for its scale;
//! - β is 0.04, that of GRPO's paper, for all three (TRL: 0 for GRPO, 0.05 for RLOO);
//! - the mean over tokens is the paper's (TRL's `dapo` is over all tokens of the batch).

use serde::{Deserialize, Serialize};

use super::error::SystemError;
use super::interface::{Credit, Draw, Method, Parts, Rollouts, Row, System};
use super::loss::Loss;
use super::rewards::NormalizedRewards;
use super::sample::Sample;
use crate::equations::clip_k3::TokenMean;
use crate::equations::group_baseline::{leave_one_out, over_mean, over_std};
use crate::equations::kl::k1;
use crate::equations::segmentation::Rule;

/// The section `[systems.group]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // each key is documented, with its unit, where its default stands
pub struct Settings {
    pub size: usize,
    pub kl_coefficient: f64,
}

impl Settings {
    /// The first key whose value is out of range, with the value and what was expected.
    pub fn problem(&self) -> Option<(String, String)> {
        if self.size < 2 {
            let problem = format!("{}; expected at least 2 responses to compare", self.size);
            return Some(("size".into(), problem));
        }
        let finite = self.kl_coefficient.is_finite() && self.kl_coefficient >= 0.0;
        let problem = || format!("{}; expected a number, at least 0", self.kl_coefficient);
        (!finite).then(|| ("kl_coefficient".into(), problem()))
    }
}

/// What the rows of the table share; each names what is its own.
const ROW: Row = Row {
    name: "",
    about: "",
    paper: "",
    reward_model: Some(Method::BANDIT),
    rollouts: "a group a prompt",
    reward_rule: |_| Rule::Whole,
    policy_rule: |_| Rule::Whole,
    rewards: "bandit reward model, normalized (E5)",
    credit: "",
    loss: "clip, k3",
    critic: false,
    section: Some("group"),
    build: |parts| build(parts, over_std, TokenMean::Response),
};

impl Method {
    /// Group-relative advantages over their standard deviation.
    pub const GRPO: Self = Self(&Row {
        name: "grpo",
        about: "Group-relative advantages over their standard deviation, without a critic",
        paper: "Shao et al. 2024, arXiv 2402.03300",
        credit: "reward less the group's mean, over its std",
        ..ROW
    });
    /// Group-relative advantages, without the weights of standard deviation and length.
    pub const DR_GRPO: Self = Self(&Row {
        name: "dr_grpo",
        about: "GRPO without the weights of standard deviation and length",
        paper: "Liu et al. 2025, arXiv 2503.20783",
        credit: "reward less the group's mean",
        loss: "clip, k3, sum over tokens",
        build: |parts| build(parts, over_mean, TokenMean::Constant(parts.max_new_tokens as f64)),
        ..ROW
    });
    /// Rewards less the mean of the others'.
    pub const RLOO: Self = Self(&Row {
        name: "rloo",
        about: "Rewards less the mean of the others to the same prompt, without a critic",
        paper: "Ahmadian et al. 2024, arXiv 2402.14740",
        credit: "reward less KL, less the mean of the others",
        loss: "clip of the response's ratio",
        build: build_rloo,
        ..ROW
    });
}

/// The three methods.
pub const METHODS: [Method; 3] = [Method::GRPO, Method::DR_GRPO, Method::RLOO];

fn build<'a>(parts: &Parts<'a>, baseline: Baseline, mean: TokenMean) -> Result<System<'a>, String> {
    let Parts { ppo, reward_model, normalizer, ref section, .. } = *parts;
    let section = section.clone().expect("a system with a section");
    let Settings { size, kl_coefficient } = section.try_into().expect("checked when it was read");
    if !ppo.rollouts.is_multiple_of(size) {
        return Err(format!(
            "ppo.rollouts = {} is no multiple of systems.group.size = {size}: every prompt of an iteration has \
             as many responses; set ppo.rollouts = {}",
            ppo.rollouts,
            ppo.rollouts.next_multiple_of(size)
        ));
    }
    Ok(System {
        rollouts: Rollouts::Group(size),
        rewards: Box::new(NormalizedRewards { reward_model, normalizer, length_neutral: false }),
        credit: Box::new(GroupBaseline { size, baseline, kl_in_reward: false }),
        loss: Loss::ClipK3 { clip: ppo.clip, mean },
        value_clip: None,
        kl_coefficient,
    })
}

fn build_rloo<'a>(parts: &Parts<'a>) -> Result<System<'a>, String> {
    let system = build(parts, leave_one_out, TokenMean::Response)?;
    let Rollouts::Group(size) = system.rollouts else { unreachable!("built above") };
    Ok(System {
        credit: Box::new(GroupBaseline { size, baseline: leave_one_out, kl_in_reward: true }),
        loss: Loss::ResponseClip { clip: parts.ppo.clip },
        ..system
    })
}

/// The advantages of a group, of its rewards.
type Baseline = fn(&[f64]) -> Vec<f64>;

/// One advantage a response, for each of its tokens.
struct GroupBaseline {
    size: usize,
    baseline: Baseline,
    /// Whether the KL from the reference is taken off the reward.
    kl_in_reward: bool,
}

impl Credit for GroupBaseline {
    fn assign(&self, samples: &mut [Sample], draw: &Draw<'_>) -> Result<(), SystemError> {
        for group in samples.chunks_mut(self.size) {
            let reward = |sample: &Sample| {
                let reward: f64 = sample.normalized.iter().sum();
                let pairs = sample.log_probs.iter().zip(&sample.ref_log_probs);
                let kl: f64 = pairs.map(|(&l, &r)| k1(f64::from(l), f64::from(r))).sum();
                if self.kl_in_reward { reward - draw.kl_coefficient * kl } else { reward }
            };
            let rewards: Vec<f64> = group.iter().map(reward).collect();
            let advantages = (self.baseline)(&rewards);
            for ((sample, reward), advantage) in group.iter_mut().zip(rewards).zip(advantages) {
                let tokens = sample.response.len();
                sample.token_rewards = vec![0.0; tokens];
                sample.token_rewards[tokens - 1] = reward;
                sample.advantages = vec![advantage; tokens];
            }
        }
        Ok(())
    }
}
