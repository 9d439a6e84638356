//! The settings of the loops that train a policy.

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

section! {
    /// The section `[dpo]`.
    DpoSettings {
        epochs: usize = AtLeast(1),
        batch: usize = AtLeast(1),
        rows_at_once: usize = AtLeast(1),
        beta: f64 = Bounds::Positive,
        label_smoothing: f64 = Bounds::BelowHalf,
        optimizer: OptimizerSettings = Nested,
    }
}

impl PpoSettings {
    /// The key `size` with what is wrong with it, if not every prompt of an iteration has as many responses.
    pub(super) fn check_group_size(&self, size: usize) -> Option<(String, String)> {
        let rollouts = self.rollouts;
        let problem = format!("{size}; expected a divisor of ppo.rollouts = {rollouts}");
        (!rollouts.is_multiple_of(size)).then(|| ("size".to_owned(), problem))
    }
}
