//! The statistics of a grid as comma-separated values.

use crate::grid::analysis::{Analysis, BASE, Column, Difference, Outcome, Quantity};
use crate::grid::results::{Results, State};
use crate::statistics::Estimate;

pub(super) fn cells(results: &Results) -> String {
    let head = ["experiment", "arm", "ours", "method", "seed", "cell", "state", "stage", "error"];
    let quantities = Quantity::ALL.iter().map(|q| q.name());
    let mut csv = Csv::new(head.into_iter().chain(quantities));
    for (experiment, arm, cell) in results.rows() {
        let (state, stage, error) = match &cell.state {
            State::Finished(_) => ("finished", "", ""),
            State::Pending => ("pending", "", ""),
            State::Failed { stage, error } => ("failed", &stage[..], &error[..]),
            State::Corrupt { error } => ("corrupt", "", &error[..]),
        };
        let (ours, seed) = (arm.ours.to_string(), cell.seed.to_string());
        let head = [
            &experiment.name,
            &arm.name,
            &ours,
            arm.method.name(),
            &seed,
            &cell.id,
            state,
            stage,
            error,
        ];
        let value = |q: &Quantity| optional(cell.figures().and_then(|figures| q.of(figures)));
        csv.row(head.map(str::to_owned).into_iter().chain(Quantity::ALL.iter().map(value)));
    }
    csv.0
}

pub(super) fn curves(results: &Results) -> String {
    let names = Column::ALL.map(Column::name);
    let head = ["experiment", "arm", "seed", "iteration"].map(str::to_owned);
    let mut csv = Csv::new(head.into_iter().chain(names));
    for (experiment, arm, cell) in results.rows() {
        let Some(figures) = cell.figures() else { continue };
        let columns = Column::ALL.map(|column| column.of(figures));
        let last = columns.iter().filter_map(|column| column.keys().next_back()).max();
        for iteration in 0..last.map_or(0, |last| last + 1) {
            let values = columns.iter().map(|column| optional(column.get(&iteration).copied()));
            let head = [
                experiment.name.clone(),
                arm.name.clone(),
                cell.seed.to_string(),
                iteration.to_string(),
            ];
            csv.row(head.into_iter().chain(values));
        }
    }
    csv.0
}

const ESTIMATE: [&str; 5] = ["mean", "standard_error", "low", "high", "n"];

fn estimate(estimate: &Estimate) -> [String; 5] {
    let Estimate { mean, error, interval, n } = estimate;
    let ends = interval.map_or([None; 2], |ends| ends.map(Some));
    [mean.to_string(), optional(*error), optional(ends[0]), optional(ends[1]), n.to_string()]
}

/// Whether a difference counts as none by the quantity's margin; empty if it has no margin.
const NO_DIFFERENCE: &str = "no_difference";

fn is_no_difference(quantity: Quantity, difference: &Estimate) -> String {
    let is = quantity.margin().map(|_| quantity.is_no_difference(difference).to_string());
    is.unwrap_or_default()
}

pub(super) fn arms(analysis: &Analysis) -> String {
    let mut csv = Csv::new(["experiment", "arm", "quantity"].into_iter().chain(ESTIMATE));
    for experiment in &analysis.experiments {
        let base = [(BASE, &experiment.base)];
        let arms = experiment.arms.iter().map(|arm| (&arm.name[..], &arm.figures));
        for (name, figures) in base.into_iter().chain(arms) {
            for (quantity, figure) in figures {
                let head = [&experiment.name, name, quantity.name()].map(str::to_owned);
                csv.row(head.into_iter().chain(estimate(figure)));
            }
        }
    }
    csv.0
}

pub(super) fn differences(analysis: &Analysis) -> String {
    let head = ["experiment", "arm", "baseline", "quantity"].into_iter();
    let mut csv = Csv::new(head.chain(ESTIMATE).chain([NO_DIFFERENCE]));
    for experiment in &analysis.experiments {
        for difference in &experiment.differences {
            let Difference { arm, baseline, figures } = difference;
            for (quantity, figure) in figures {
                let head = [&experiment.name, arm, baseline, quantity.name()].map(str::to_owned);
                let none = is_no_difference(*quantity, figure);
                csv.row(head.into_iter().chain(estimate(figure)).chain([none]));
            }
        }
    }
    csv.0
}

pub(super) fn orderings(analysis: &Analysis) -> String {
    let head = ["experiment", "better", "worse", "benchmark", "paper_better", "paper_worse"];
    let ours = ["by"].into_iter().chain(ESTIMATE).chain(["verdict", NO_DIFFERENCE]);
    let mut csv = Csv::new(head.into_iter().chain(ours));
    for experiment in &analysis.experiments {
        for ordering in &experiment.orderings {
            let outcomes = [
                (Quantity::Gold, ordering.gold),
                (Quantity::LengthControlledWinRate, ordering.length_controlled_win_rate),
            ];
            let Some(decides) = ordering.reported.iter().find(|pair| pair.sign != 0) else {
                continue;
            };
            for (by, outcome) in outcomes {
                let Some(Outcome { difference, verdict }) = outcome else { continue };
                let names = [
                    &experiment.name,
                    &ordering.better,
                    &ordering.worse,
                    decides.benchmark.title(),
                ];
                let row = names.map(str::to_owned).into_iter();
                let row = row.chain([decides.better.to_string(), decides.worse.to_string()]);
                let row = row.chain([by.name().to_owned()]).chain(estimate(&difference));
                let none = is_no_difference(by, &difference);
                csv.row(row.chain([verdict.title().to_owned(), none]));
            }
        }
    }
    csv.0
}

/// Comma-separated values (RFC 4180, with Unix line ends).
struct Csv(String);

impl Csv {
    fn new(header: impl IntoIterator<Item = impl AsRef<str>>) -> Self {
        let mut csv = Self(String::new());
        csv.row(header);
        csv
    }

    fn row(&mut self, fields: impl IntoIterator<Item = impl AsRef<str>>) {
        let quoted = |field: &str| match field.contains([',', '"', '\n', '\r']) {
            true => format!("\"{}\"", field.replace('"', "\"\"")),
            false => field.to_owned(),
        };
        let fields: Vec<String> = fields.into_iter().map(|field| quoted(field.as_ref())).collect();
        self.0 += &(fields.join(",") + "\n");
    }
}

/// A number with all its digits; empty if it is unknown.
fn optional(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map(|value| value.to_string()).unwrap_or_default()
}
