//! The comparison of the paper's methods: the experiment that `[reproduce]` in the settings names, and its table.

use std::collections::BTreeSet;

use super::analysis::Quantity;
use super::driver;
use super::error::GridError;
use super::file::{Planned, PlannedArm};
use super::plan::Plan;
use super::results::{Figures, Results};
use super::schedule::OnFailure;
use crate::run::folder::write_file;
use crate::settings::Settings;
use crate::statistics::{mean, standard_error};
use crate::systems::Method;
use crate::table::{markdown, rate, with_error};

/// The experiment `name` with an arm for each of the settings' methods.
pub fn experiment(name: &str, settings: &Settings) -> Planned {
    let mut seen = BTreeSet::new();
    let methods = settings.reproduce.methods.iter().copied();
    // Seeds and jobs belong to no arm and change no file.
    let Settings { reproduce, .. } = Settings::defaults();
    let settings = Settings { reproduce, ..settings.clone() };
    let arm = |method: Method| PlannedArm {
        name: method.name().to_owned(),
        ours: false,
        changes: toml::Table::from_iter([("method".to_owned(), method.name().into())]),
        settings: Settings { method, ..settings.clone() },
    };
    Planned {
        name: name.to_owned(),
        title: "The paper's methods on the embedded task".to_owned(),
        note: None,
        paper_table: Some(1),
        arms: methods.filter(|method| seen.insert(method.name())).map(arm).collect(),
    }
}

/// Runs the unfinished stages of the comparison, `jobs` at a time, and writes [`table`] to `table.md` beside
/// `results.json`.
pub fn run(plan: &Plan, jobs: usize) -> Result<Results, GridError> {
    let results = driver::run(plan, jobs, OnFailure::Stop)?;
    let path = plan.cells[0].context.run.join("table.md");
    write_file(&path, table(&results).as_bytes())?;
    Ok(results)
}

type Figure = fn(&Figures) -> Option<f64>;

/// The columns: a title, the quantity, and its standard error over held-out prompts.
const COLUMNS: [(&str, Quantity, Figure); 9] = [
    ("gold", Quantity::Gold, |f| f.evaluation.after.gold_error),
    ("win rate", Quantity::WinRate, |f| f.evaluation.after.win_rate_error),
    ("KL", Quantity::Kl, |_| None),
    ("tokens", Quantity::Tokens, |_| None),
    ("RM acc.", Quantity::RewardAccuracy, |_| None),
    ("RM acc. (gold)", Quantity::RewardGoldAccuracy, |_| None),
    ("ρ responses", Quantity::SequenceRankCorrelation, |_| None),
    ("ρ segments", Quantity::RankCorrelation, |_| None),
    ("F1 bounds", Quantity::BoundaryF1, |_| None),
];

/// The table: a row for the SFT model and one for each method. With one seed, errors are standard errors over
/// held-out prompts; with several, over seeds. The header of a share gives its number of responses or pairs for each
/// seed.
pub fn table(results: &Results) -> String {
    let of = |method: Method| -> Vec<&Figures> {
        let rows = results.rows().filter(|(_, arm, _)| arm.method == method);
        rows.filter_map(|(.., cell)| cell.figures()).collect()
    };
    let methods = Method::all().iter().map(|&method| (method.name().replace('_', " "), of(method)));
    let methods = methods.filter(|(_, seeds)| !seeds.is_empty());
    let methods: Vec<(String, Vec<&Figures>)> = methods.collect();
    let title = |(title, quantity, _): (&str, Quantity, Figure)| {
        let counts = || {
            let seeds = methods.iter().flat_map(|(_, seeds)| seeds);
            seeds.filter_map(|figures| quantity.count()?.of(figures))
        };
        match (counts().reduce(f64::min), counts().reduce(f64::max)) {
            (Some(least), Some(most)) if least == most => format!("{title} (n {most})"),
            (Some(least), Some(most)) => format!("{title} (n {least}–{most})"),
            _ => title.to_owned(),
        }
    };
    let header: Vec<String> = ["method".to_owned()].into_iter().chain(COLUMNS.map(title)).collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (name, seeds) in &methods {
        if rows.is_empty() {
            let gold =
                figure(seeds, |f| f.evaluation.before.gold, |f| f.evaluation.before.gold_error);
            let tokens = figure(seeds, |f| Some(f.evaluation.before.tokens), |_| None);
            let mut base =
                ["SFT".to_owned(), gold, "0.50".to_owned(), "0.00".to_owned(), tokens].to_vec();
            base.resize(header.len(), "–".to_owned());
            rows.push(base);
        }
        let figures = COLUMNS.iter().map(|&(_, quantity, error)| {
            let one = |figures| quantity.count().and_then(|count| count.of(figures)) == Some(1.0);
            match seeds[..] {
                [only] if one(only) => {
                    quantity.of(only).map_or("–".to_owned(), |share| rate(share, 1))
                }
                _ => figure(seeds, |f| quantity.of(f), error),
            }
        });
        rows.push([name.clone()].into_iter().chain(figures).collect());
    }
    markdown(&header, &rows)
}

/// A figure: for one seed with its own error, for several with the standard error over them; unknown unless all seeds
/// have it.
fn figure(seeds: &[&Figures], of: impl Fn(&Figures) -> Option<f64>, error: Figure) -> String {
    let values: Option<Vec<f64>> = seeds.iter().map(|figures| of(figures)).collect();
    let values = values.unwrap_or_default();
    let error = match seeds {
        [only] => error(only),
        _ => standard_error(&values),
    };
    with_error((!values.is_empty()).then(|| mean(values.iter().copied())), error)
}
