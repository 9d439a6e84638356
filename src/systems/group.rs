//! Group-relative PPO without a critic: a response's baseline comes from the other responses to its prompt.
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
//! - the reward is normalized by the run's normalizer; the group's baseline cancels all of it but its scale;
//! - β is 0.04, as in GRPO's paper, for all three (TRL: 0 for GRPO, 0.05 for RLOO);
//! - the mean over tokens is the paper's (TRL's `dapo` is over all tokens of the batch).

use super::error::SystemError;
use super::interface::{Credit, Draw, Method, Parts, Rollouts, Row, System, Training};
use super::loss::Loss;
use super::rewards::NormalizedRewards;
use super::sample::{Sample, response_tokens};
use super::settings::PpoSettings;
use crate::bounds::{AtLeast, Bounds, section};
use crate::equations::clip_k3::TokenMean;
use crate::equations::group_baseline::{leave_one_out, over_mean, over_std};
use crate::equations::kl::k1;
use crate::equations::segmentation::Rule;

section! {
    /// The section `[systems.group]`.
    Settings {
        size: usize = AtLeast(2),
        kl_coefficient: f64 = Bounds::NotNegative,
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
    check,
    training: Training::Online(|parts| {
        let (clip, mean) = (parts.ppo.clip, TokenMean::Response);
        build(parts, over_std, Loss::ClipK3 { clip, mean })
    }),
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
        training: Training::Online(|parts| {
            let (clip, mean) = (parts.ppo.clip, TokenMean::Constant(parts.max_new_tokens as f64));
            build(parts, over_mean, Loss::ClipK3 { clip, mean })
        }),
        ..ROW
    });
    /// Rewards less the mean of the others'.
    pub const RLOO: Self = Self(&Row {
        name: "rloo",
        about: "Rewards less the mean of the others to the same prompt, without a critic",
        paper: "Ahmadian et al. 2024, arXiv 2402.14740",
        credit: "reward less KL, less the mean of the others",
        loss: "clip of the response's ratio",
        training: Training::Online(|parts| {
            build(parts, leave_one_out, Loss::ResponseClip { clip: parts.ppo.clip })
        }),
        ..ROW
    });
}

/// The three methods.
pub const METHODS: [Method; 3] = [Method::GRPO, Method::DR_GRPO, Method::RLOO];

fn own(section: toml::Value) -> Settings {
    section.try_into().expect("checked when it was read")
}

fn check(ppo: &PpoSettings, section: toml::Value) -> Option<(String, String)> {
    ppo.check_group_size(own(section).size)
}

fn build<'a>(parts: &Parts<'a>, baseline: Baseline, loss: Loss) -> Result<System<'a>, SystemError> {
    let Parts { judge, normalizer, ref section, .. } = *parts;
    let Settings { size, kl_coefficient } = own(section.clone().expect("a system with a section"));
    let kl_in_reward = matches!(loss, Loss::ResponseClip { .. });
    Ok(System {
        rollouts: Rollouts::Group(size),
        rewards: Box::new(NormalizedRewards { judge, normalizer, length_neutral: false }),
        credit: Box::new(GroupBaseline { size, baseline, kl_in_reward }),
        loss,
        replay: None,
        value_clip: None,
        kl_coefficient,
        files: Vec::new(),
    })
}

/// The advantages of a group, of its rewards.
pub(super) type Baseline = fn(&[f64]) -> Vec<f64>;

/// One advantage a response, for each of its tokens.
pub(super) struct GroupBaseline {
    /// Responses of a group.
    pub size: usize,
    /// Their advantages.
    pub baseline: Baseline,
    /// Whether the KL from the reference is taken off the reward.
    pub kl_in_reward: bool,
}

impl Credit for GroupBaseline {
    fn assign(&self, samples: &mut [Sample], draw: &Draw<'_>) -> Result<usize, SystemError> {
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
                sample.earn_at_the_end(reward);
                sample.advantages = vec![advantage; sample.response.len()];
            }
        }
        Ok(response_tokens(samples))
    }
}
