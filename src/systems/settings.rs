//! The settings of the PPO loop.

use crate::bounds::{AtLeast, Bounds, Nested, section};
use crate::equations::interpolation::Interpolation;
use crate::model::optim::OptimizerSettings;

section! {
    /// The section `[ppo]`.
    PpoSettings {
        iterations: usize = AtLeast(1),
        rollouts: usize = AtLeast(1),
        minibatch: usize = AtLeast(1),
        rows_at_once: usize = AtLeast(1),
        epochs: usize = AtLeast(1),
        interpolation: Interpolation,
        length_neutral: bool,
        kl_coefficient: f64 = Bounds::NotNegative,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kl_target: Option<f64> = Bounds::Positive,
        kl_horizon: f64 = Bounds::Positive,
        gamma: f64 = Bounds::ZeroToOne,
        lambda: f64 = Bounds::ZeroToOne,
        clip: f64 = Bounds::Positive,
        value_clip_dense: f64 = Bounds::Positive,
        value_clip_bandit: f64 = Bounds::Positive,
        evaluate_every: usize = AtLeast(1),
        actor: OptimizerSettings = Nested,
        critic: OptimizerSettings = Nested,
    }
}
