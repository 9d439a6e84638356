//! All methods on one run: SFT, then for each method its reward model, normalizer, PPO and evaluation.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::plan::origins;
use super::schedule::{self, OnFailure, Outcome, Tasks};
use crate::error::Error;
use crate::experiment::folder::{Origin, write_file, write_json};
use crate::experiment::settings::Method;
use crate::report::table::{markdown, with_error};
use crate::stage::fit_normalizer::NormalizerFile;
use crate::stage::{Context, evaluate, fit_normalizer, policy, reward};
use crate::statistics::{mean, standard_error};

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
    pub policy: policy::Summary,
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
            policy: policy::run(own)?,
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

/// The table: one line for the SFT model, one a method. With one seed, errors are standard errors over
/// held-out prompts; with several, over seeds.
pub fn table(results: &Results) -> String {
    let header = [
        "method",
        "gold",
        "win rate",
        "KL",
        "tokens",
        "RM acc.",
        "RM acc. (gold)",
        "ρ segments",
        "F1 bounds",
    ];
    let methods: Vec<Method> =
        Method::ALL.into_iter().filter(|m| results.cells.iter().any(|c| c.method == *m)).collect();
    let mut rows = Vec::new();
    if let Some(&first) = methods.first() {
        let of =
            |f: fn(&Cell) -> Option<f64>, e: fn(&Cell) -> Option<f64>| figure(results, first, f, e);
        let mut row = vec!["SFT".to_owned()];
        row.push(of(|c| c.evaluation.before.gold, |c| c.evaluation.before.gold_error));
        row.push("0.50".into());
        row.push("0.00".into());
        row.push(of(|c| Some(c.evaluation.before.tokens), |_| None));
        row.resize(header.len(), "–".into());
        rows.push(row);
    }
    for method in methods {
        let of = |f: fn(&Cell) -> Option<f64>, e: fn(&Cell) -> Option<f64>| {
            figure(results, method, f, e)
        };
        rows.push(vec![
            method.name().replace('_', " "),
            of(|c| c.evaluation.after.gold, |c| c.evaluation.after.gold_error),
            of(|c| c.evaluation.after.win_rate, |c| c.evaluation.after.win_rate_error),
            of(|c| Some(c.evaluation.after.kl), |_| None),
            of(|c| Some(c.evaluation.after.tokens), |_| None),
            of(|c| Some(c.reward.accuracy), |_| None),
            of(|c| c.reward.gold_accuracy, |_| None),
            of(|c| c.reward.rank_correlation, |_| None),
            of(|c| c.reward.boundary_f1, |_| None),
        ]);
    }
    markdown(&header, &rows)
}

/// One figure of a method: with its own error for one seed, with the standard error over several.
fn figure(
    results: &Results,
    method: Method,
    value: fn(&Cell) -> Option<f64>,
    error: fn(&Cell) -> Option<f64>,
) -> String {
    let cells: Vec<&Cell> = results.cells.iter().filter(|c| c.method == method).collect();
    let values: Option<Vec<f64>> = cells.iter().map(|cell| value(cell)).collect();
    match (values, cells.as_slice()) {
        (None, _) => with_error(None, None),
        (Some(values), [only]) => with_error(Some(values[0]), error(only)),
        (Some(values), _) => {
            with_error(Some(mean(values.iter().copied())), standard_error(&values))
        }
    }
}
