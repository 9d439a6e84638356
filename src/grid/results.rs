//! The results of a grid: `results.json`, identical to the last bit however often the run was killed.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use crate::run::folder::Origin;
use crate::run::metrics::IterationMetrics;
use crate::stage::fit_normalizer::NormalizerFile;
use crate::stage::{evaluate, online, preferences, reward};
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
    /// The stem of its file.
    pub name: String,
    pub title: String,
    pub note: Option<String>,
    pub paper_table: Option<u32>,
    pub arms: Vec<Arm>,
}

/// One row of an experiment: settings, run with every seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    /// Its name in the experiment.
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
    /// The reward model on held-out pairs.
    pub reward: reward::Summary,
    /// The normalizer; `statistics` is left empty here.
    pub normalizer: NormalizerFile,
    /// The policy during training.
    pub policy: online::keep::Summary,
    /// The policy against the SFT model.
    pub evaluation: evaluate::Summary,
    /// One value for each iteration, over its rollouts.
    pub curve: Curve,
    /// Held-out evaluations during training, the SFT model's (iteration 0) first.
    pub evaluations: Vec<online::keep::EvaluationLine>,
}

/// Columns of `metrics.jsonl`, whose docs define them: [`IterationMetrics`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Curve {
    pub gold: Vec<Option<f64>>,
    pub sequence_score: Vec<f64>,
    pub kl_k1: Vec<f64>,
    pub kl_coefficient: Vec<f64>,
    pub entropy: Vec<f64>,
    pub response_tokens: Vec<f64>,
    pub segments: Vec<f64>,
    pub eos_rate: Vec<f64>,
    pub clip_fraction: Vec<f64>,
    pub explained_variance: Vec<Option<f64>>,
    pub advantage_spread: Vec<f64>,
    pub cause_advantage_share: Vec<Option<f64>>,
    pub cause_token_share: Vec<Option<f64>>,
    pub credit_correlation: Vec<Option<f64>>,
}

impl Curve {
    /// The columns of these lines.
    pub fn of(lines: &[IterationMetrics]) -> Self {
        fn column<T>(lines: &[IterationMetrics], of: impl Fn(&IterationMetrics) -> T) -> Vec<T> {
            lines.iter().map(of).collect()
        }
        Self {
            gold: column(lines, |l| l.gold),
            sequence_score: column(lines, |l| l.sequence_score),
            kl_k1: column(lines, |l| l.kl_k1),
            kl_coefficient: column(lines, |l| l.kl_coefficient),
            entropy: column(lines, |l| l.entropy),
            response_tokens: column(lines, |l| l.response_tokens),
            segments: column(lines, |l| l.segments),
            eos_rate: column(lines, |l| l.eos_rate),
            clip_fraction: column(lines, |l| l.clip_fraction),
            explained_variance: column(lines, |l| l.explained_variance),
            advantage_spread: column(lines, |l| l.advantage_spread),
            cause_advantage_share: column(lines, |l| l.cause_advantage_share),
            cause_token_share: column(lines, |l| l.cause_token_share),
            credit_correlation: column(lines, |l| l.credit_correlation),
        }
    }
}
