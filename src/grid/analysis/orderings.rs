//! The orderings that the paper's tables claim, and whether they hold here.

use serde::{Deserialize, Serialize};

use super::quantity::Quantity;
use super::seeds::{Finished, paired};
use crate::equations::interpolation::Interpolation;
use crate::grid::reported::{self, Row, Source, Subject};
use crate::grid::results::{self, Figures};
use crate::settings::{NormalizerKind, Settings};
use crate::statistics::Estimate;
use crate::systems::Method;

/// The name of the model that all policies start from, among the arms.
pub const BASE: &str = "SFT";

/// An ordering that a table of the paper claims, and whether it holds here.
///
/// If benchmarks disagree, the first of [`Benchmark::ALL`] with figures for both and no tie decides; the signs of the
/// others are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ordering {
    /// The better arm in the paper; [`BASE`] is the model that training starts from.
    pub better: String,
    /// The worse arm in the paper.
    pub worse: String,
    /// The paper's figures, in the order of [`Benchmark::ALL`].
    pub reported: Vec<ReportedPair>,
    pub gold: Option<Outcome>,
    /// The outcome by the length-controlled win rate over the SFT model.
    pub length_controlled_win_rate: Option<Outcome>,
}

/// The paper's figures of two rows on one benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportedPair {
    pub benchmark: Benchmark,
    pub better: f64,
    pub worse: f64,
    /// The sign of their difference: 1, 0 or -1.
    pub sign: i8,
}

/// A difference, better minus worse, paired by seed, with its verdict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Over the seeds that both finished.
    pub difference: Estimate,
    pub verdict: Verdict,
}

/// Whether our difference agrees with the paper's ordering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Same sign as in the paper, and the interval excludes 0.
    AsInThePaper,
    /// The interval contains 0, or there is a single seed and so no interval.
    Undecided,
    /// Opposite sign, and the interval excludes 0.
    Opposite,
}

impl Verdict {
    /// All, in the order of tables.
    pub const ALL: [Self; 3] = [Self::AsInThePaper, Self::Undecided, Self::Opposite];

    /// The verdict on a difference that is positive in the paper.
    pub fn of(difference: &Estimate) -> Self {
        match difference.excludes_zero() {
            false => Self::Undecided,
            true if difference.mean > 0.0 => Self::AsInThePaper,
            true => Self::Opposite,
        }
    }

    /// In words.
    pub fn title(self) -> &'static str {
        match self {
            Self::AsInThePaper => "as in the paper",
            Self::Undecided => "undecided",
            Self::Opposite => "opposite",
        }
    }

    /// What the interval says, in words.
    pub fn interval(self) -> &'static str {
        match self {
            Self::Undecided => "the interval does not exclude 0",
            Self::AsInThePaper | Self::Opposite => "the interval excludes 0",
        }
    }
}

/// Where the paper compares its methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Benchmark {
    /// AlpacaEval 2, length-controlled win rate, %.
    AlpacaLc,
    /// Arena-Hard, %.
    ArenaHard,
    /// MT-Bench, 1 to 10.
    MtBench,
    /// OpenLLM leaderboard, average, %.
    OpenLlm,
}

impl Benchmark {
    /// All, in the order in which they decide.
    pub const ALL: [Self; 4] = [Self::AlpacaLc, Self::ArenaHard, Self::MtBench, Self::OpenLlm];

    /// Its name, with the unit.
    pub fn title(self) -> &'static str {
        match self {
            Self::AlpacaLc => "AlpacaEval LC %",
            Self::ArenaHard => "Arena-Hard %",
            Self::MtBench => "MT-Bench",
            Self::OpenLlm => "OpenLLM %",
        }
    }

    /// Decimals of its figures in the paper.
    pub fn decimals(self) -> usize {
        if self == Self::ArenaHard { 1 } else { 2 }
    }

    /// The row's figure.
    fn of(self, row: &Row) -> Option<f64> {
        match self {
            Self::AlpacaLc => row.alpaca_lc,
            Self::ArenaHard => row.arena_hard,
            Self::MtBench => row.mt_bench,
            Self::OpenLlm => row.open_llm,
        }
    }
}

/// The orderings for every pair of the table's rows whose arms differ in nothing else.
pub(super) fn orderings(
    number: u32,
    arms: &[results::Arm],
    finished: &[Finished],
) -> Vec<Ordering> {
    let here = |source| matches!(source, Source::PaperTable(n) if u32::from(n) == number);
    let Some(table) = reported::reported().tables.iter().find(|table| here(table.source)) else {
        return Vec::new();
    };
    let mut likes = Vec::new();
    for row in &table.rows {
        if row.of == Subject::Base {
            likes.push(Like { row, name: BASE, cells: None, rest: None });
        }
        for (arm, finished) in arms.iter().zip(finished) {
            if let Some(rest) = rest(row.of, arm) {
                likes.push(Like { row, name: &arm.name, cells: Some(finished), rest: Some(rest) });
            }
        }
    }
    let pairs = (0..likes.len()).flat_map(|j| (0..j).map(move |i| (i, j)));
    pairs.filter_map(|(i, j)| ordering(&likes[i], &likes[j])).collect()
}

/// A row of the paper's table with the matching arm; the model that training starts from has no arm.
struct Like<'a> {
    row: &'a Row,
    name: &'a str,
    cells: Option<&'a Finished<'a>>,
    /// The arm's settings, apart from the one that the row varies.
    rest: Option<Settings>,
}

/// If the arm matches the row: its settings, with the varied one replaced by the paper's choice.
fn rest(of: Subject, arm: &results::Arm) -> Option<Settings> {
    let mut settings = Settings::defaults().with(&arm.name, &arm.settings).ok()?;
    let found = match of {
        Subject::Base => return None,
        Subject::Method(_) => Subject::Method(arm.method),
        Subject::Normalizer(_) => Subject::Normalizer(settings.normalizer.kind),
        Subject::Interpolation(_) => Subject::Interpolation(settings.ppo.interpolation),
    };
    settings.method = arm.method;
    match of {
        Subject::Method(_) => settings.method = Method::SEGMENT,
        Subject::Normalizer(_) => settings.normalizer.kind = NormalizerKind::Regression,
        _ => settings.ppo.interpolation = Interpolation::EvenSplit,
    }
    let is_like = found == of && !arm.ours && settings.method == Method::SEGMENT;
    is_like.then_some(settings)
}

/// The paper's claim about two rows and the outcome here; `None` if there is no claim, or the arms differ in more
/// than the rows do.
fn ordering(a: &Like, b: &Like) -> Option<Ordering> {
    if a.row.of == b.row.of || (a.rest.is_some() && b.rest.is_some() && a.rest != b.rest) {
        return None;
    }
    let figures =
        |benchmark: Benchmark| Some((benchmark, benchmark.of(a.row)?, benchmark.of(b.row)?));
    let figures: Vec<_> = Benchmark::ALL.into_iter().filter_map(figures).collect();
    let (_, x, y) = figures.iter().find(|(_, x, y)| x != y)?;
    let (better, worse) = if x > y { (a, b) } else { (b, a) };
    let pair = |&(benchmark, x, y): &(Benchmark, f64, f64)| {
        let (better, worse) = if std::ptr::eq(better, a) { (x, y) } else { (y, x) };
        let sign = i8::from(better > worse) - i8::from(better < worse);
        ReportedPair { benchmark, better, worse, sign }
    };
    let outcome = |quantity: Quantity| {
        let value = |like: &Like, figures: &Figures| match like.cells {
            Some(_) => quantity.of(figures),
            None => quantity.of_base(figures),
        };
        // The SFT model is compared with the policy trained from it, cell by cell.
        let cells = [better.cells.or(worse.cells)?, worse.cells.or(better.cells)?];
        let difference = paired(cells[0], cells[1], |f| value(better, f), |f| value(worse, f))?;
        Some(Outcome { difference, verdict: Verdict::of(&difference) })
    };
    Some(Ordering {
        better: better.name.to_owned(),
        worse: worse.name.to_owned(),
        reported: figures.iter().map(pair).collect(),
        gold: outcome(Quantity::Gold),
        length_controlled_win_rate: outcome(Quantity::LengthControlledWinRate),
    })
}
