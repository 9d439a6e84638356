//! The paper's six methods: PPO with a critic on the rewards of segments (Yin et al., arXiv 2501.02790).
//!
//! | method | reward model cuts | policy cuts |
//! | --- | --- | --- |
//! | `bandit` | the whole response | the whole response |
//! | `sentence` | sentences | sentences |
//! | `token` | tokens | tokens |
//! | `segment` | entropy segments | entropy segments |
//! | `bandit_as_segment` | the whole response | entropy segments |
//! | `segment_as_bandit` | entropy segments | the whole response |
//!
//! Rewards are a segment reward model's, normalized by location (E5). Credit: each segment's reward is spread over its
//! tokens (E6), less the KL term (E7), and GAE with a critic makes advantages of it (E8), whitened over the iteration.
//! The loss is PPO's (E9), and the critic's E10. The numbered deviations are in `paper/deviations.md`; defaults are
//! in `experiments/default.toml`, the official ones in `paper/reported.toml`.

use super::error::SystemError;
use super::interface::{Credit, Draw, Method, Parts, Rollouts, Row, System, Training};
use super::loss::Loss;
use super::rewards::NormalizedRewards;
use super::sample::{Sample, response_tokens, wide};
use crate::equations::gae::{gae, whiten};
use crate::equations::interpolation::{Interpolation, interpolate};
use crate::equations::kl::token_rewards;
use crate::equations::segmentation::Rule;

/// What the rows of the table share; each names what is its own.
pub(super) const ROW: Row = Row {
    name: "",
    about: "",
    paper: "Yin et al. 2025, arXiv 2501.02790",
    reward_model: None,
    rollouts: "one a prompt",
    reward_rule: whole,
    policy_rule: whole,
    rewards: "segment reward model, normalized (E5)",
    credit: "spread (E6), KL (E7), GAE with a critic (E8)",
    loss: "clip (E9), the critic's (E10)",
    critic: true,
    section: None,
    check: |_, _| None,
    training: Training::Online(build),
};

fn whole(_: f64) -> Rule {
    Rule::Whole
}

fn entropy(cutoff: f64) -> Rule {
    Rule::Entropy { cutoff }
}

impl Method {
    /// One reward for the whole response: ordinary RLHF.
    pub const BANDIT: Self =
        Self(&Row { name: "bandit", about: "One reward for the whole response", ..ROW });
    /// A reward for each sentence.
    pub const SENTENCE: Self = Self(&Row {
        name: "sentence",
        about: "A reward for each sentence",
        reward_rule: |_| Rule::Sentence,
        policy_rule: |_| Rule::Sentence,
        ..ROW
    });
    /// A reward for each token.
    pub const TOKEN: Self = Self(&Row {
        name: "token",
        about: "A reward for each token",
        reward_rule: |_| Rule::Token,
        policy_rule: |_| Rule::Token,
        ..ROW
    });
    /// A reward for each entropy segment: the paper's method.
    pub const SEGMENT: Self = Self(&Row {
        name: "segment",
        about: "A reward for each entropy segment",
        reward_rule: entropy,
        policy_rule: entropy,
        ..ROW
    });
    /// The bandit's reward model, asked for segment rewards.
    pub const BANDIT_AS_SEGMENT: Self = Self(&Row {
        name: "bandit_as_segment",
        about: "The bandit's reward model, asked for segment rewards",
        reward_model: Some(Self::BANDIT),
        policy_rule: entropy,
        ..ROW
    });
    /// The segment reward model's sequence score, as one reward at the end.
    pub const SEGMENT_AS_BANDIT: Self = Self(&Row {
        name: "segment_as_bandit",
        about: "The segment reward model's sequence score, as one reward at the end",
        reward_model: Some(Self::SEGMENT),
        reward_rule: entropy,
        ..ROW
    });
}

/// All six, in the order of the paper's table 1.
pub const METHODS: [Method; 6] = [
    Method::BANDIT,
    Method::SENTENCE,
    Method::TOKEN,
    Method::SEGMENT,
    Method::BANDIT_AS_SEGMENT,
    Method::SEGMENT_AS_BANDIT,
];

pub(super) fn build<'a>(parts: &Parts<'a>) -> Result<System<'a>, SystemError> {
    let Parts { ppo, judge, normalizer, .. } = *parts;
    let whole = judge.policy_segmenter().rule == Rule::Whole;
    Ok(System {
        rollouts: Rollouts::Single,
        rewards: Box::new(NormalizedRewards {
            judge,
            normalizer,
            length_neutral: ppo.length_neutral,
        }),
        credit: Box::new(SpreadGae::of(parts)),
        loss: Loss::Clip { clip: ppo.clip },
        replay: None,
        value_clip: Some(if whole { ppo.value_clip_bandit } else { ppo.value_clip_dense }),
        kl_coefficient: ppo.kl_coefficient,
        files: Vec::new(),
    })
}

/// Rewards spread over the tokens of their segments, less the KL term, and GAE over them (E6 to E8).
pub(super) struct SpreadGae {
    interpolation: Interpolation,
    gamma: f64,
    lambda: f64,
}

impl SpreadGae {
    pub(super) fn of(parts: &Parts<'_>) -> Self {
        let Parts { ppo, judge, .. } = *parts;
        // One reward a response stands at its end, as published.
        let interpolation = match judge.policy_segmenter().rule {
            Rule::Whole => Interpolation::LastToken,
            _ => ppo.interpolation,
        };
        Self { interpolation, gamma: ppo.gamma, lambda: ppo.lambda }
    }

    /// Gives each token its share of the segments' rewards (E6).
    pub(super) fn spread(&self, samples: &mut [Sample]) {
        for sample in samples {
            let (tokens, strategy) = (sample.response.len(), self.interpolation);
            sample.token_rewards =
                interpolate(strategy, &sample.normalized, &sample.segments, tokens);
        }
    }

    /// Takes the KL term off the tokens' rewards (E7), and makes advantages of them (E8).
    pub(super) fn estimate(&self, samples: &mut [Sample], kl_coefficient: f64) {
        for sample in &mut *samples {
            let (log_probs, reference) = (wide(&sample.log_probs), wide(&sample.ref_log_probs));
            sample.token_rewards =
                token_rewards(&sample.token_rewards, &log_probs, &reference, kl_coefficient);
            let values = wide(sample.values.as_ref().expect("a system with a critic"));
            let estimate = gae(&sample.token_rewards, &values, self.gamma, self.lambda);
            sample.advantages = estimate.advantages;
            sample.returns = Some(estimate.returns);
        }
        let mut advantages: Vec<Vec<f64>> =
            samples.iter_mut().map(|sample| std::mem::take(&mut sample.advantages)).collect();
        whiten(&mut advantages);
        for (sample, advantages) in samples.iter_mut().zip(advantages) {
            sample.advantages = advantages;
        }
    }
}

impl Credit for SpreadGae {
    fn assign(&self, samples: &mut [Sample], draw: &Draw<'_>) -> Result<usize, SystemError> {
        self.spread(samples);
        self.estimate(samples, draw.kl_coefficient);
        Ok(response_tokens(samples))
    }
}
