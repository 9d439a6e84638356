//! The settings of the PPO loop.

use serde::{Deserialize, Serialize};

use crate::equations::interpolation::Interpolation;
use crate::model::optim::OptimizerSettings;

/// The section `[ppo]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // each key is documented, with its unit, where its default stands
pub struct PpoSettings {
    pub iterations: usize,
    pub rollouts: usize,
    pub minibatch: usize,
    pub rows_at_once: usize,
    pub epochs: usize,
    pub interpolation: Interpolation,
    pub length_neutral: bool,
    pub kl_coefficient: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl_target: Option<f64>,
    pub kl_horizon: f64,
    pub gamma: f64,
    pub lambda: f64,
    pub clip: f64,
    pub value_clip_dense: f64,
    pub value_clip_bandit: f64,
    pub evaluate_every: usize,
    pub actor: OptimizerSettings,
    pub critic: OptimizerSettings,
}
