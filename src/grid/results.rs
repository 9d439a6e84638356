//! The results of a grid: `results.json`, identical to the last bit however often the run was killed.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::run::folder::Origin;
use crate::run::metrics::IterationMetrics;
use crate::stage::fit_normalizer::NormalizerFile;
use crate::stage::task::HeldOut;
use crate::stage::{dpo, evaluate, online, preferences, reward};
use crate::systems::Method;

/// The layout of `grid.json` and `results.json` that this version writes and reads.
pub const FORMAT: u32 = 2;

/// All experiments of a grid, and the cells that they share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The [`FORMAT`] of the program that wrote it.
    pub format: u32,
    pub version: String,
    pub device: String,
    /// The experiments, in the order of their files.
    pub experiments: Vec<Experiment>,
    /// Each cell once, in the order in which the experiments first name it.
    pub cells: Vec<Cell>,
}

impl Results {
    /// How many cells have figures.
    pub fn finished(&self) -> usize {
        self.cells.iter().filter(|cell| cell.figures().is_some()).count()
    }

    /// Every cell of every arm of every experiment, in their order.
    pub fn rows(&self) -> impl Iterator<Item = (&Experiment, &Arm, &Cell)> {
        let cells: HashMap<&str, &Cell> = self.cells.iter().map(|c| (c.id.as_str(), c)).collect();
        let arms = self.experiments.iter().flat_map(|e| e.arms.iter().map(move |arm| (e, arm)));
        arms.flat_map(move |(experiment, arm)| {
            let cells: Vec<&Cell> =
                arm.cells.iter().filter_map(|id| cells.get(id.as_str()).copied()).collect();
            cells.into_iter().map(move |cell| (experiment, arm, cell))
        })
    }
}

/// A table or figure: arms that differ in some settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Experiment {
    pub name: String,
    pub title: String,
    pub note: Option<String>,
    pub paper_table: Option<u32>,
    pub arms: Vec<Arm>,
}

/// One row of an experiment: settings, run with every seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    pub name: String,
    /// Whether the paper has no such arm.
    pub ours: bool,
    pub method: Method,
    /// The settings that it changes in the experiment's base.
    pub settings: toml::Table,
    /// The ids of its cells, one a seed, in the order of the seeds.
    pub cells: Vec<String>,
}

/// One arm with one seed. Arms with equal settings share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The hash of its resolved settings and inputs.
    pub id: String,
    pub seed: u64,
    pub state: State,
    /// The program that made each of its stages; empty unless it is finished.
    pub stages: BTreeMap<String, Origin>,
}

impl Cell {
    /// Its figures, if it is finished.
    pub fn figures(&self) -> Option<&Figures> {
        match &self.state {
            State::Finished(figures) => Some(figures),
            _ => None,
        }
    }
}

/// The progress of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Some stages are still to run.
    Pending,
    /// All stages are finished.
    Finished(Box<Figures>),
    /// A stage ended with an error.
    Failed { stage: String, error: String },
    /// A file of a finished stage cannot be read.
    Corrupt { error: String },
}

/// The figures of a finished cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The embedded task's pairs; absent with the user's data.
    pub preferences: Option<preferences::Summary>,
    /// The reward model on held-out pairs; absent with a verdict.
    #[serde(default)]
    pub reward: Option<reward::Summary>,
    /// The normalizer; `statistics` is left empty here. Absent with a verdict.
    #[serde(default)]
    pub normalizer: Option<NormalizerFile>,
    /// The policy's training on rollouts; absent for a method that learns from pairs.
    #[serde(default)]
    pub policy: Option<online::keep::Summary>,
    /// The policy's training on pairs; absent for a method that learns from rollouts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dpo: Option<dpo::Summary>,
    /// The policy against the SFT model.
    pub evaluation: evaluate::Summary,
    /// One value for each iteration, over its rollouts; empty without rollouts.
    pub curve: Curve,
    /// Held-out evaluations during training, the SFT model's (iteration 0) first.
    pub evaluations: Vec<online::keep::EvaluationLine>,
}

impl Figures {
    /// What was held out, of the reward model's pairs and of the policy's prompts.
    pub fn held_out(&self) -> impl Iterator<Item = HeldOut> {
        let reward = self.reward.as_ref().map(|reward| reward.held_out);
        reward.into_iter().chain([self.evaluation.held_out])
    }
}

/// Declares [`Curve`]: each column has the name and the type of its field in [`IterationMetrics`].
macro_rules! curve {
    ($($column:ident: $type:ty,)*) => {
        /// Columns of `metrics.jsonl`, defined by [`IterationMetrics`].
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(default)] // results from before a column
        pub struct Curve { $(pub $column: Vec<$type>,)* }

        impl Curve {
            /// The columns of these lines.
            pub fn of(lines: &[IterationMetrics]) -> Self {
                Self { $($column: lines.iter().map(|line| line.$column).collect(),)* }
            }
        }
    };
}

curve! {
    gold: Option<f64>,
    sequence_score: f64,
    kl_k1: f64,
    kl_coefficient: f64,
    entropy: f64,
    response_tokens: f64,
    sampled_tokens: usize,
    segments: f64,
    eos_rate: f64,
    clip_fraction: f64,
    explained_variance: Option<f64>,
    advantage_spread: f64,
    cause_advantage_share: Option<f64>,
    cause_token_share: Option<f64>,
    credit_correlation: Option<f64>,
}
