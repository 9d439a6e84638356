//! What PPO logs of each iteration: the fields' docs are the glossary of `metrics.jsonl`.

use serde::{Deserialize, Serialize};

use crate::table::digits;

/// One line of `metrics.jsonl`. Means are over responses unless a field says otherwise; sums over a
/// response's tokens are in nats or units of reward a response.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct IterationMetrics {
    /// Iteration, from 0.
    pub iteration: usize,
    /// Gold reward, if the truth is known (embedded task).
    pub gold: Option<f64>,
    /// e_φ: the reward model's sequence score, before normalization.
    pub sequence_score: f64,
    /// Σ r̂ over the response's segments: normalized rewards before interpolation, clip and KL; their mean
    /// where `ppo.length_neutral` is set.
    pub reward: f64,
    /// Σ r̃ over the response's tokens: the return that PPO maximises (γ = 1).
    pub token_reward: f64,
    /// Σ (ln π_θ - ln π_SFT): the k1 estimate of the KL from the reference, nats a response.
    pub kl_k1: f64,
    /// Σ (e^{-d} - 1 + d), d = ln π_θ - ln π_SFT: the k3 estimate, never negative, nats a response.
    pub kl_k3: f64,
    /// β in force.
    pub kl_coefficient: f64,
    /// A + V of a token, mean over tokens. Absent without a critic, like its other figures.
    pub return_mean: Option<f64>,
    /// Its standard deviation over tokens.
    pub return_std: Option<f64>,
    /// Standard deviation of a token's advantage before whitening, over the iteration's tokens. Whitening divides
    /// by it, the KL term included: β / this is the strength of that term in units of the whitened advantage.
    pub advantage_spread: f64,
    /// Mean advantage of a token, whitened with a critic: then 0 up to rounding.
    pub advantage_mean: f64,
    /// Its standard deviation; with a critic 1 up to rounding.
    pub advantage_std: f64,
    /// The largest |advantage|.
    pub advantage_max: f64,
    /// Share of tokens whose policy loss was clipped, mean over optimizer steps.
    pub clip_fraction: f64,
    /// π_θ / π_old, mean over optimizer steps; 1 in the first.
    pub ratio: f64,
    /// Policy loss (E9), mean over optimizer steps.
    pub policy_loss: f64,
    /// Value loss (E10), mean over optimizer steps.
    pub value_loss: Option<f64>,
    /// 1 - Var(return - value) / Var(return) over tokens, for the critic before its update; nothing where
    /// the returns do not vary.
    pub explained_variance: Option<f64>,
    /// Entropy of the policy at a response token, nats, mean over tokens.
    pub entropy: f64,
    /// Tokens of a response, EOS included.
    pub response_tokens: f64,
    /// Tokens that the iteration drew: those of the responses and of continuations; edges that responses share in a tree
    /// count once.
    #[serde(default)]
    pub sampled_tokens: usize,
    /// Segments (actions) of a response.
    pub segments: f64,
    /// Tokens of a segment, mean over segments.
    pub segment_tokens: f64,
    /// Share of responses that ended in EOS.
    pub eos_rate: f64,
    /// Share of Σ |A| that lies on tokens with a true credit, over the batch; if the truth is known.
    pub cause_advantage_share: Option<f64>,
    /// Share of tokens that have a true credit: what the share of |A| would be if all |A| were equal.
    pub cause_token_share: Option<f64>,
    /// Pearson's correlation of A with the true credit over the batch's tokens.
    pub credit_correlation: Option<f64>,
    /// Global norm of the policy's gradient before the clip, mean over optimizer steps.
    pub actor_gradient_norm: f64,
    /// Global norm of the critic's gradient before the clip, mean over optimizer steps.
    pub critic_gradient_norm: Option<f64>,
    /// Learning rate of the policy's last step.
    pub actor_learning_rate: f64,
    /// Learning rate of the critic's last step.
    pub critic_learning_rate: Option<f64>,
}

/// The gold reward if the truth is known, else the reward, on display.
pub(crate) fn told(gold: Option<f64>, reward: f64) -> String {
    let (name, value) = gold.map_or(("reward", reward), |gold| ("gold", gold));
    format!("{name} {}", digits(value, 2))
}

impl IterationMetrics {
    /// The iteration in a few figures, on display.
    pub fn line(&self) -> String {
        format!(
            "{}, KL {}, {:.1} tokens, EOS {:.0} %",
            told(self.gold, self.reward),
            digits(self.kl_k1, 2),
            self.response_tokens,
            100.0 * self.eos_rate
        )
    }
}

/// One line of `timings.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IterationTimings {
    /// Iteration, from 0.
    pub iteration: usize,
    /// Seconds of the rollout: sampling, reference, reward model, critic.
    pub rollout_seconds: f64,
    /// Seconds of the update of policy and critic.
    pub update_seconds: f64,
    /// Response tokens sampled and scored a second.
    pub rollout_tokens_per_second: f64,
    /// Tokens (prompts included) trained on a second, policy and critic together.
    pub update_tokens_per_second: f64,
}
