//! Experiments and their arms over seeds.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::curves::{BandPoint, Column, SeedPath, gold_at_kl, path};
use super::orderings::{Ordering, Outcome, Verdict, orderings};
use super::quantity::Quantity;
use super::seeds::{Finished, band, base, known, paired};
use crate::grid::results::{self, Cell, Results, State};
use crate::stage::task::HeldOut;
use crate::statistics::Estimate;
use crate::systems::Method;
use crate::table;

/// Why β alone does not say how strong the KL term is.
pub const ONE_BETA: &str = "One β is not one strength: PPO divides advantages, and with them the KL term, by their \
     spread, which differs by method. β / spread is the coefficient in units of the whitened advantage.";

/// The statistics of all experiments: `analysis.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Analysis {
    pub format: u32,
    pub version: String,
    pub device: String,
    /// The [margin](Quantity::margin) of each quantity that has one.
    pub margins: BTreeMap<Quantity, f64>,
    pub experiments: Vec<Experiment>,
}

/// One experiment: its arms, their differences, and the paper's claims about them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Experiment {
    pub name: String,
    pub title: String,
    pub note: Option<String>,
    pub paper_table: Option<u32>,
    /// The SFT model on held-out prompts: the known values that are the same for all arms.
    pub base: BTreeMap<Quantity, Estimate>,
    /// The arms, in the results' order.
    pub arms: Vec<Arm>,
    pub differences: Vec<Difference>,
    /// The claims of the paper's table, in the order of its rows; empty without `paper_table`.
    pub orderings: Vec<Ordering>,
}

/// One arm over its seeds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    pub name: String,
    /// Whether the paper has no such arm.
    pub ours: bool,
    pub method: Method,
    /// The settings that it changes in the experiment's base.
    pub settings: toml::Table,
    /// The ids of its cells by ascending seed. Arms with the same ids are the same arm.
    pub cells: Vec<String>,
    pub seeds: Seeds,
    /// Why some cells have no figures, in the order of the seeds.
    pub problems: Vec<Problem>,
    /// Each quantity over the `n` finished seeds that have it. Gold at a KL is absent unless all of them
    /// [reach](Self::reached) it.
    pub figures: BTreeMap<Quantity, Estimate>,
    /// For each gold at a KL, the finished seeds whose held-out evaluations reach that KL, ascending; empty if gold
    /// is unknown.
    pub reached: BTreeMap<Quantity, Vec<u64>>,
    /// Learning curves: means and intervals over the seeds that have the point, iterations ascending.
    pub bands: BTreeMap<Column, Vec<BandPoint>>,
    /// Gold reward against KL on held-out prompts, of each finished seed.
    pub paths: Vec<SeedPath>,
}

/// Seeds by the state of their cells, each list ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seeds {
    pub finished: Vec<u64>,
    /// A stage ended with an error.
    pub failed: Vec<u64>,
    pub corrupt: Vec<u64>,
    /// Some stages are still to run.
    pub pending: Vec<u64>,
}

/// Why a cell gave no figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    pub seed: u64,
    /// The stage that failed; absent if a file cannot be read.
    pub stage: Option<String>,
    pub error: String,
}

/// The difference between two arms, paired by seed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Difference {
    pub arm: String,
    /// The arm that is subtracted, which comes earlier in the experiment.
    pub baseline: String,
    /// `arm` minus `baseline` over the seeds that both finished, for the known quantities of [`Quantity::COMPARED`].
    pub figures: BTreeMap<Quantity, Estimate>,
}

impl Analysis {
    /// The statistics of these results.
    pub fn of(results: &Results) -> Self {
        let cells: BTreeMap<&str, &Cell> =
            results.cells.iter().map(|cell| (cell.id.as_str(), cell)).collect();
        let experiments = results.experiments.iter().map(|e| Experiment::of(e, &cells)).collect();
        let Results { format, version, device, .. } = results;
        let margins = Quantity::ALL.iter().filter_map(|&q| Some((q, q.margin()?))).collect();
        let (version, device) = (version.clone(), device.clone());
        Self { format: *format, version, device, margins, experiments }
    }

    /// Whether any cell is finished.
    pub fn has_figures(&self) -> bool {
        self.experiments.iter().flat_map(|e| &e.arms).any(|arm| !arm.seeds.finished.is_empty())
    }
}

impl Experiment {
    fn of(experiment: &results::Experiment, cells: &BTreeMap<&str, &Cell>) -> Self {
        let results::Experiment { name, title, note, paper_table, arms } = experiment;
        let cells: Vec<Vec<&Cell>> = (arms.iter())
            .map(|arm| arm.cells.iter().filter_map(|id| cells.get(id.as_str()).copied()).collect())
            .collect();
        let finished: Vec<Finished> = (cells.iter())
            .map(|cells| cells.iter().filter_map(|c| Some((c.seed, c.figures()?))).collect())
            .collect();
        let pairs = (0..arms.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
        let difference = |(i, j): (usize, usize)| Difference {
            arm: arms[j].name.clone(),
            baseline: arms[i].name.clone(),
            figures: known(Quantity::COMPARED, |q| {
                let both = finished[j].keys().filter(|seed| finished[i].contains_key(seed));
                let every = q.needs_every_seed().then(|| both.count());
                paired(&finished[j], &finished[i], |f| q.of(f), |f| q.of(f))
                    .filter(|estimate| every.is_none_or(|seeds| estimate.n == seeds))
            }),
        };
        Self {
            name: name.clone(),
            title: title.clone(),
            note: noted(note.as_deref(), &finished),
            paper_table: *paper_table,
            base: known(Quantity::ALL, |quantity| base(quantity, &finished)),
            differences: pairs.map(difference).collect(),
            orderings: paper_table.map_or(Vec::new(), |table| orderings(table, arms, &finished)),
            arms: (arms.iter().zip(&cells).zip(&finished))
                .map(|((arm, cells), finished)| Arm::of(arm, cells, finished))
                .collect(),
        }
    }

    /// The arm of this name.
    pub fn arm(&self, name: &str) -> Option<&Arm> {
        self.arms.iter().find(|arm| arm.name == name)
    }

    /// The quantities of `wanted` that some arm has for some seed. A share whose count differs between arms or seeds
    /// is preceded by that count.
    pub fn columns(&self, wanted: &[Quantity]) -> Vec<Quantity> {
        let known = |q: &Quantity| {
            let seeds = |arm: &Arm| arm.reached.get(q).is_some_and(|seeds| !seeds.is_empty());
            self.arms.iter().any(|arm| arm.figure(*q).is_some() || seeds(arm))
        };
        let mut columns: Vec<Quantity> = Vec::new();
        for quantity in wanted.iter().copied().filter(known) {
            let count =
                quantity.count().filter(|count| known(count) && self.count(quantity).is_none());
            columns.extend(count.filter(|count| !columns.contains(count)));
            columns.push(quantity);
        }
        columns
    }

    /// The number of responses or pairs that a share is of, if it is the same for all arms and seeds.
    pub fn count(&self, share: Quantity) -> Option<f64> {
        let counts = self.arms.iter().filter_map(|arm| arm.figure(share.count()?));
        let mut counts = counts.map(|of| (of.error.unwrap_or(0.0) == 0.0).then_some(of.mean));
        let first = counts.next()??;
        counts.all(|count| count == Some(first)).then_some(first)
    }

    /// The quantity's title, with the [count](Self::count) of a share: `win rate (n 384)`.
    pub fn title(&self, quantity: Quantity) -> String {
        let count = self.count(quantity).map(|n| format!(" (n {n})"));
        quantity.title().to_owned() + &count.unwrap_or_default()
    }
}

/// The note of an experiment, with a caution if its figures are not of held-out prompts.
fn noted(note: Option<&str>, finished: &[Finished]) -> Option<String> {
    let what: BTreeSet<HeldOut> =
        finished.iter().flat_map(BTreeMap::values).flat_map(|figures| figures.held_out()).collect();
    let cautions =
        what.into_iter().filter_map(HeldOut::caution).map(|text| format!("Note: {text}."));
    let parts: Vec<String> = note.map(str::to_owned).into_iter().chain(cautions).collect();
    (!parts.is_empty()).then(|| parts.join(" "))
}

impl Arm {
    fn of(arm: &results::Arm, cells: &[&Cell], finished: &Finished) -> Self {
        let results::Arm { name, ours, method, settings, .. } = arm;
        let mut cells = cells.to_vec();
        cells.sort_by_key(|cell| cell.seed);
        let ids = cells.iter().map(|cell| cell.id.clone()).collect();
        let mut seeds = Seeds::default();
        let mut problems = Vec::new();
        for Cell { seed, state, .. } in cells {
            let (list, problem) = match state {
                State::Finished(_) => (&mut seeds.finished, None),
                State::Pending => (&mut seeds.pending, None),
                State::Failed { stage, error } => (&mut seeds.failed, Some((Some(stage), error))),
                State::Corrupt { error } => (&mut seeds.corrupt, Some((None, error))),
            };
            list.push(*seed);
            problems.extend(problem.map(|(stage, error)| Problem {
                seed: *seed,
                stage: stage.cloned(),
                error: error.clone(),
            }));
        }
        let over_seeds = |q: Quantity| {
            let of = Estimate::of(finished.values().filter_map(|f| q.of(f)))?;
            (!q.needs_every_seed() || of.n == finished.len()).then_some(of)
        };
        let paths: Vec<SeedPath> = (finished.iter())
            .filter_map(|(&seed, f)| Some(SeedPath { seed, points: path(f)? }))
            .collect();
        let reached = |(level, quantity): (f64, Quantity)| {
            let reach = paths.iter().filter(|path| gold_at_kl(&path.points, level).is_some());
            (quantity, reach.map(|path| path.seed).collect())
        };
        let reached = Quantity::AT_KL.into_iter().filter(|_| !paths.is_empty()).map(reached);
        let bands = Column::ALL.into_iter().map(|column| (column, band(column, finished)));
        Self {
            name: name.clone(),
            ours: *ours,
            method: *method,
            settings: settings.clone(),
            cells: ids,
            seeds,
            problems,
            figures: known(Quantity::ALL, over_seeds),
            reached: reached.collect(),
            bands: bands.filter(|(_, points)| !points.is_empty()).collect(),
            paths,
        }
    }

    /// The estimate of a quantity.
    pub fn figure(&self, quantity: Quantity) -> Option<&Estimate> {
        self.figures.get(&quantity)
    }

    /// The text for a share of a single response or pair: `1 of 1`. A single comparison has no length-controlled
    /// rate.
    pub fn of_one(&self, share: Quantity) -> Option<String> {
        let (rate, count) = (self.figure(share)?, self.figure(share.count()?)?);
        let one = rate.n == 1 && count.mean == 1.0;
        one.then(|| match share {
            Quantity::LengthControlledWinRate => "–".to_owned(),
            _ => table::rate(rate.mean, 1),
        })
    }

    /// The points of a learning curve; empty if it is unknown.
    pub fn band(&self, column: Column) -> &[BandPoint] {
        self.bands.get(&column).map_or(&[], Vec::as_slice)
    }
}

/// How many of the paper's orderings hold over all experiments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The tables of the paper that claim them.
    pub tables: Vec<u32>,
    /// The verdict on each, in the order of the experiments.
    pub verdicts: Vec<Verdict>,
    pub arms: usize,
}

impl Claims {
    /// How many have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.verdicts.iter().filter(|of| **of == verdict).count()
    }

    /// The counts as a paragraph; `by` names the quantity that decides.
    pub fn text(&self, by: &str) -> String {
        let tables: Vec<String> = self.tables.iter().map(u32::to_string).collect();
        let claimed = match &tables[..] {
            [before @ .., last] if !before.is_empty() => {
                format!("tables {} and {last} of the paper claim", before.join(", "))
            }
            one => format!("table {} of the paper claims", one.concat()),
        };
        let counts = Verdict::ALL.map(|verdict| {
            format!("{} {} ({})", self.count(verdict), verdict.title(), verdict.interval())
        });
        format!(
            "Of {} orderings that {claimed}, by {by}: {}. All come from {} arms, so that the luck of one arm shows in \
             several orderings.",
            self.verdicts.len(),
            counts.join(", "),
            self.arms
        )
    }
}

impl Analysis {
    /// The verdicts on the paper's orderings by one of their outcomes; `None` if no ordering has it.
    pub fn claims(&self, answer: impl Fn(&Ordering) -> Option<Outcome>) -> Option<Claims> {
        let mut claims = Claims { tables: Vec::new(), verdicts: Vec::new(), arms: 0 };
        let mut compared = BTreeSet::new();
        for experiment in &self.experiments {
            let judged = experiment.orderings.iter().filter_map(|o| Some((o, answer(o)?)));
            for (ordering, outcome) in judged {
                claims.verdicts.push(outcome.verdict);
                let arms = [&ordering.better, &ordering.worse].map(|name| experiment.arm(name));
                compared.extend(arms.into_iter().flatten().map(|arm| &arm.cells));
                claims.tables.extend(experiment.paper_table);
            }
        }
        claims.tables.sort_unstable();
        claims.tables.dedup();
        claims.arms = compared.len();
        (!claims.verdicts.is_empty()).then_some(claims)
    }
}
