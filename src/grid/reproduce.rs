//! All methods on one run: SFT, then for each method its reward model, normalizer, PPO and evaluation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::origins;
use super::schedule::{self, OnFailure, Outcome, Tasks};
use crate::run::Context;
use crate::run::error::Error;
use crate::run::folder::{Origin, write_file, write_json};
use crate::stage::fit_normalizer::NormalizerFile;
use crate::stage::{evaluate, fit_normalizer, online, reward};
use crate::statistics::{mean, standard_error};
use crate::systems::Method;
use crate::table::{markdown, rate, with_error};

/// The figures of one method with one seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell {
    /// The method.
    pub method: Method,
    /// The seed.
    pub seed: u64,
    /// By the name of its stages: which program made each.
    pub stages: BTreeMap<String, Origin>,
    /// Its reward model on held-out pairs.
    pub reward: reward::Summary,
    /// Its normalizer.
    pub normalizer: NormalizerFile,
    /// Its policy during training.
    pub policy: online::keep::Summary,
    /// Its policy against the SFT model.
    pub evaluation: evaluate::Summary,
}

/// Everything that a run gave: `results.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// The program's version.
    pub version: String,
    /// The device.
    pub device: String,
    /// One cell a method and seed.
    pub cells: Vec<Cell>,
}

/// Runs what `[reproduce]` in the settings names, `jobs` stages at a time, and writes `results.json` and
/// `table.md` into the run's folder. What is finished is not run again.
///
/// # Errors
///
/// Every [`Error`]: the first, after the stages that run beside it have ended.
pub fn run(context: &Context) -> Result<Results, Error> {
    let plan = &context.settings.reproduce;
    let seeds = (0..plan.seeds as u64).map(|i| context.settings.seed + i);
    let contexts: Vec<Context> = seeds
        .flat_map(|seed| plan.methods.iter().map(move |&method| (seed, method)))
        .map(|(seed, method)| {
            let mut own = cell_context(context, seed, method);
            own.label = method.name().to_owned();
            if plan.seeds > 1 {
                own.label = format!("seed {seed} {}", own.label);
            }
            own
        })
        .collect();
    let mut tasks = Tasks::default();
    for own in &contexts {
        tasks.add(own);
    }
    for outcome in schedule::run(&tasks, plan.jobs, OnFailure::Stop, || ())? {
        if let Outcome::Failed(error) = outcome {
            return Err(error);
        }
    }
    let cell = |own: &Context| {
        Ok(Cell {
            method: own.settings.method,
            seed: own.settings.seed,
            stages: origins(own)?,
            reward: reward::run(own)?,
            normalizer: fit_normalizer::run(own)?,
            policy: online::run(own)?,
            evaluation: evaluate::run(own)?,
        })
    };
    let results = Results {
        version: env!("CARGO_PKG_VERSION").into(),
        device: context.device_name.name().into(),
        cells: contexts.iter().map(cell).collect::<Result<_, Error>>()?,
    };
    write_json(&context.run.join("results.json"), &results)?;
    write_file(&context.run.join("table.md"), table(&results).as_bytes())?;
    Ok(results)
}

/// The context of one cell: its own seed, method and folder.
pub fn cell_context(context: &Context, seed: u64, method: Method) -> Context {
    let mut own = context.clone();
    own.settings.seed = seed;
    own.settings.method = method;
    own.run = context.run.join(format!("seed-{seed}"));
    own
}

/// What a column of the table shows of a cell.
struct Column {
    title: &'static str,
    value: fn(&Cell) -> Option<f64>,
    /// Its standard error over held-out prompts.
    error: fn(&Cell) -> Option<f64>,
    /// How many responses or pairs it is a share of.
    count: fn(&Cell) -> Option<usize>,
}

impl Column {
    const fn of(title: &'static str, value: fn(&Cell) -> Option<f64>) -> Self {
        Self { title, value, error: |_| None, count: |_| None }
    }

    const fn with_error(mut self, error: fn(&Cell) -> Option<f64>) -> Self {
        self.error = error;
        self
    }

    const fn share(mut self, count: fn(&Cell) -> Option<usize>) -> Self {
        self.count = count;
        self
    }

    /// Its title, with the count of a share: the least and the greatest where cells differ.
    fn title(&self, cells: &[Cell]) -> String {
        let counts = || cells.iter().filter_map(self.count);
        match (counts().min(), counts().max()) {
            (Some(least), Some(most)) if least == most => format!("{} (n {most})", self.title),
            (Some(least), Some(most)) => format!("{} (n {least}–{most})", self.title),
            _ => self.title.to_owned(),
        }
    }

    /// A method's figure: with its own error for one seed, with the standard error over several.
    fn figure(&self, cells: &[&Cell]) -> String {
        let values: Option<Vec<f64>> = cells.iter().map(|cell| (self.value)(cell)).collect();
        match (values, cells) {
            (None, _) => with_error(None, None),
            (Some(values), [only]) if (self.count)(only) == Some(1) => rate(values[0], 1),
            (Some(values), [only]) => with_error(Some(values[0]), (self.error)(only)),
            (Some(values), _) => {
                with_error(Some(mean(values.iter().copied())), standard_error(&values))
            }
        }
    }
}

const BASE_GOLD: Column =
    Column::of("gold", |c| c.evaluation.before.gold).with_error(|c| c.evaluation.before.gold_error);
const BASE_TOKENS: Column = Column::of("tokens", |c| Some(c.evaluation.before.tokens));
const COLUMNS: [Column; 9] = [
    Column::of("gold", |c| c.evaluation.after.gold).with_error(|c| c.evaluation.after.gold_error),
    Column::of("win rate", |c| c.evaluation.after.win_rate)
        .with_error(|c| c.evaluation.after.win_rate_error)
        .share(|c| Some(c.evaluation.after.responses)),
    Column::of("KL", |c| Some(c.evaluation.after.kl)),
    Column::of("tokens", |c| Some(c.evaluation.after.tokens)),
    Column::of("RM acc.", |c| Some(c.reward.accuracy)).share(|c| Some(c.reward.pairs)),
    Column::of("RM acc. (gold)", |c| c.reward.gold_accuracy).share(|c| c.reward.gold_pairs),
    Column::of("ρ responses", |c| c.reward.sequence_rank_correlation),
    Column::of("ρ segments", |c| c.reward.rank_correlation),
    Column::of("F1 bounds", |c| c.reward.boundary_f1),
];

/// The table: one line for the SFT model, one a method. With one seed, errors are standard errors over
/// held-out prompts; with several, over seeds. The head of a share says how many responses or pairs of a seed it is of.
pub fn table(results: &Results) -> String {
    let cells = &results.cells;
    let of = |method: Method| cells.iter().filter(|c| c.method == method).collect::<Vec<_>>();
    let methods = || Method::all().iter().copied().filter(|&method| !of(method).is_empty());
    let titles = COLUMNS.iter().map(|column| column.title(cells));
    let header: Vec<String> = ["method".to_owned()].into_iter().chain(titles).collect();
    let base = methods().next().map(|first| {
        let [gold, tokens] = [BASE_GOLD, BASE_TOKENS].map(|column| column.figure(&of(first)));
        let mut row = vec!["SFT".to_owned(), gold, "0.50".to_owned(), "0.00".to_owned(), tokens];
        row.resize(header.len(), "–".into());
        row
    });
    let row = |method: Method| {
        let figures = COLUMNS.iter().map(|column| column.figure(&of(method)));
        [method.name().replace('_', " ")].into_iter().chain(figures).collect()
    };
    let rows: Vec<Vec<String>> = base.into_iter().chain(methods().map(row)).collect();
    markdown(&header.iter().map(String::as_str).collect::<Vec<_>>(), &rows)
}
