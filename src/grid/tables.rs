//! The statistics of a grid for people and for other programs: Markdown, CSV and JSON.

use std::path::Path;

use super::analysis::{
    Analysis, Arm, BASE, Column, Difference, Experiment, Ordering, Outcome, Quantity, Verdict,
};
use super::results::{Results, State};
use crate::experiment::folder::{FolderError, write_file};
use crate::report::table;
use crate::statistics::Estimate;

/// Around the section of the README that [`readme`] gives.
pub const MARKERS: [&str; 2] = ["<!-- results -->", "<!-- /results -->"];

/// Writes the statistics into `dir`, each file whole or not at all: `analysis.json`, `tables.md`, and as CSV
///
/// - `cells.csv`: a line for each seed of each arm, with every [`Quantity`];
/// - `curves.csv`: a line for each of their iterations, with every [`Column`];
/// - `arms.csv`: a line for each quantity of each arm, over its seeds;
/// - `differences.csv`: a line for each quantity of each pair of arms;
/// - `orderings.csv`: a line for each ordering that the paper's tables claim.
///
/// # Errors
///
/// [`FolderError::Write`].
pub fn write(analysis: &Analysis, results: &Results, dir: &Path) -> Result<(), FolderError> {
    let json = serde_json::to_string(analysis).expect("a plain struct serialises");
    let texts = [
        ("analysis.json", json + "\n"),
        ("tables.md", markdown(analysis)),
        ("cells.csv", cells_csv(results)),
        ("curves.csv", curves_csv(results)),
        ("arms.csv", arms_csv(analysis)),
        ("differences.csv", differences_csv(analysis)),
        ("orderings.csv", orderings_csv(analysis)),
    ];
    for (name, text) in texts {
        write_file(&dir.join(name), text.as_bytes())?;
    }
    Ok(())
}

/// How to read the tables.
const READING: &str = "\
Figures are means over seeds ± their standard error; in brackets stands the 95 % interval (Student's t over seeds). A
difference is paired by seed, so that both sides start from the same SFT model. \\* marks a difference whose interval
excludes 0; each interval speaks for itself alone, and of twenty, one misses the truth by chance. (n 2): only two seeds
know the figure. –: not known.";

/// All experiments in Markdown: figures, gold reward at matched KL, the policy and the reward model, paired
/// differences, what the paper claims, and the cells that gave nothing.
pub fn markdown(analysis: &Analysis) -> String {
    let Analysis { version, device, experiments, .. } = analysis;
    let mut parts = vec![
        "# Results".to_owned(),
        format!("segment-rlhf {version}, device {device}."),
        READING.to_owned(),
    ];
    for experiment in experiments {
        parts.push(format!("## {}", line(&experiment.title)));
        parts.extend(experiment.note.as_ref().map(|note| line(note)));
        parts.push(figures(experiment, MAIN));
        let mut section = |title: &str, body: Option<String>| {
            parts.extend(body.into_iter().flat_map(|body| [format!("### {title}"), body]));
        };
        section(
            "Gold reward at matched KL",
            arms(experiment, &Quantity::AT_KL.map(|(_, quantity)| quantity)),
        );
        section("Policy", arms(experiment, POLICY));
        section("Reward model and normalizer", arms(experiment, REWARD));
        section("Differences paired by seed", differences(experiment));
        section("What the paper claims", orderings(experiment));
        section("Cells without figures", problems(experiment));
    }
    parts.push("## Glossary".to_owned());
    let all = || experiments.iter().flat_map(|experiment| &experiment.arms);
    let known = |q: &&Quantity| all().any(|arm| arm.figures.contains_key(q));
    let term = |q: &Quantity| format!("- {}: {}", q.title(), q.description());
    parts.push(Quantity::ALL.iter().filter(known).map(term).collect::<Vec<_>>().join("\n"));
    parts.join("\n\n").replace("\n\n\n", "\n\n") + "\n"
}

/// The section of the README: for each experiment its main figures, and how many of the paper's orderings show.
pub fn readme(analysis: &Analysis) -> String {
    let mut parts = vec![MARKERS[0].to_owned(), READING.to_owned()];
    for experiment in &analysis.experiments {
        parts.push(format!("### {}", line(&experiment.title)));
        parts.push(figures(experiment, SHORT));
        parts.extend(verdicts(experiment));
    }
    parts.push(MARKERS[1].to_owned());
    parts.join("\n\n").replace("\n\n\n", "\n\n")
}

/// `text` with what stands from the first marker to the second replaced by `section`; nothing unless both are there.
///
/// # Examples
///
/// ```
/// use segment_rlhf::grid::tables::replace_section;
/// let text = "before\n<!-- results -->\nold\n<!-- /results -->\nafter\n";
/// assert_eq!(replace_section(text, "new").as_deref(), Some("before\nnew\nafter\n"));
/// assert_eq!(replace_section("nothing", "new"), None);
/// ```
pub fn replace_section(text: &str, section: &str) -> Option<String> {
    let (before, rest) = text.split_once(MARKERS[0])?;
    let (_, after) = rest.split_once(MARKERS[1])?;
    Some(format!("{before}{section}{after}"))
}

const MAIN: &[Quantity] = &[
    Quantity::WinRate,
    Quantity::LengthControlledWinRate,
    Quantity::Kl,
    Quantity::Tokens,
    Quantity::Repeats,
    Quantity::Area,
    Quantity::RewardAccuracy,
    Quantity::RankCorrelation,
];
const SHORT: &[Quantity] = &[
    Quantity::LengthControlledWinRate,
    Quantity::Kl,
    Quantity::Tokens,
    Quantity::Area,
    Quantity::GoldAtOneNat,
];
const POLICY: &[Quantity] = &[
    Quantity::Segments,
    Quantity::EosRate,
    Quantity::BestGold,
    Quantity::BestIteration,
    Quantity::CauseAdvantageShare,
    Quantity::CauseTokenShare,
    Quantity::CreditCorrelation,
];
const REWARD: &[Quantity] = &[
    Quantity::RewardGoldAccuracy,
    Quantity::ClauseCorrelation,
    Quantity::TopicCorrelation,
    Quantity::QualityCorrelation,
    Quantity::BoundaryPrecision,
    Quantity::BoundaryRecall,
    Quantity::BoundaryF1,
    Quantity::SegmentTokens,
    Quantity::NormalizerMeanR2,
    Quantity::NormalizerStdR2,
];
const DIFFERENCES: &[Quantity] = &[
    Quantity::Gold,
    Quantity::LengthControlledWinRate,
    Quantity::Area,
    Quantity::GoldAtQuarterNat,
    Quantity::GoldAtOneNat,
    Quantity::Tokens,
];

/// What arms are judged by: gold reward, or e_φ where no arm knows it.
fn score(experiment: &Experiment) -> Quantity {
    let gold = experiment.arms.iter().any(|arm| arm.figure(Quantity::Gold).is_some());
    if gold || experiment.arms.iter().all(|arm| arm.figures.is_empty()) {
        Quantity::Gold
    } else {
        Quantity::SequenceScore
    }
}

/// The SFT model and the arms: seeds, the score with its interval, and those of `columns` that are known.
fn figures(experiment: &Experiment, columns: &[Quantity]) -> String {
    let score = score(experiment);
    let columns = known(experiment, columns);
    let header = ["arm", "seeds", score.title(), "95 %"].into_iter();
    let header: Vec<&str> = header.chain(columns.iter().map(|q| q.title())).collect();
    let base = (!experiment.base.is_empty()).then(|| {
        let of = |q: Quantity| with_error(experiment.base.get(&q), 0);
        let seeds = experiment.base.values().map(|e| e.n).max().unwrap_or_default();
        let head =
            [BASE.into(), seeds.to_string(), of(score), interval(experiment.base.get(&score))];
        head.into_iter().chain(columns.iter().map(|&q| of(q))).collect()
    });
    let row = |arm: &Arm| {
        let head = [name(arm), seeds(arm), of(arm, score), interval(arm.figure(score))];
        head.into_iter().chain(columns.iter().map(|&q| of(arm, q))).collect()
    };
    let rows: Vec<Vec<String>> = base.into_iter().chain(experiment.arms.iter().map(row)).collect();
    table::markdown(&header, &rows)
}

/// The arms with those of `columns` that are known; nothing where none is.
fn arms(experiment: &Experiment, columns: &[Quantity]) -> Option<String> {
    let columns = known(experiment, columns);
    let header: Vec<&str> = ["arm"].into_iter().chain(columns.iter().map(|q| q.title())).collect();
    let row =
        |arm: &Arm| [name(arm)].into_iter().chain(columns.iter().map(|&q| of(arm, q))).collect();
    let rows: Vec<Vec<String>> = experiment.arms.iter().map(row).collect();
    (!columns.is_empty()).then(|| table::markdown(&header, &rows))
}

/// Every pair of arms with seeds in common.
fn differences(experiment: &Experiment) -> Option<String> {
    let known: Vec<&Difference> =
        experiment.differences.iter().filter(|d| !d.figures.is_empty()).collect();
    let score = score(experiment);
    let is_known = |q: &Quantity| known.iter().any(|d| d.figures.contains_key(q));
    let rest = DIFFERENCES.iter().copied().filter(|&q| q != Quantity::Gold && is_known(&q));
    let columns: Vec<Quantity> = [score].into_iter().chain(rest).collect();
    let header: Vec<&str> =
        ["difference"].into_iter().chain(columns.iter().map(|q| q.title())).collect();
    let row = |d: &&Difference| {
        let pair = format!("{} − {}", cell(&d.arm), cell(&d.baseline));
        let n = d.figures.values().map(|e| e.n).max().unwrap_or_default();
        let cells = columns.iter().map(|q| difference(d.figures.get(q), n));
        [pair].into_iter().chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = known.iter().map(row).collect();
    (!known.is_empty()).then(|| table::markdown(&header, &rows))
}

/// The paper's orderings beside ours.
fn orderings(experiment: &Experiment) -> Option<String> {
    let orderings = &experiment.orderings;
    let first = orderings.first()?;
    let benchmarks: Vec<&str> = first.reported.iter().map(|r| r.benchmark.title()).collect();
    let header = ["the paper"].into_iter().chain(benchmarks.iter().copied());
    let header: Vec<&str> =
        header.chain(["gold, here", "verdict", "LC win rate, here", "verdict"]).collect();
    let row = |ordering: &Ordering| {
        let reported = benchmarks.iter().map(|title| {
            let pair = ordering.reported.iter().find(|r| r.benchmark.title() == *title);
            pair.map_or("–".into(), |pair| {
                let sign = ["<", "=", ">"][(pair.sign + 1) as usize];
                let decimals = pair.benchmark.decimals();
                format!("{:.decimals$} {sign} {:.decimals$}", pair.better, pair.worse)
            })
        });
        let outcome = |outcome: &Option<Outcome>| match outcome {
            Some(Outcome { difference: d, verdict }) => {
                [difference(Some(d), d.n), verdict.title().to_owned()]
            }
            None => ["–".to_owned(), "–".to_owned()],
        };
        [claim(ordering)]
            .into_iter()
            .chain(reported)
            .chain(outcome(&ordering.gold))
            .chain(outcome(&ordering.length_controlled_win_rate))
            .collect()
    };
    let rows: Vec<Vec<String>> = orderings.iter().map(row).collect();
    let table = table::markdown(&header, &rows);
    let note = "The first benchmark says which arm the paper has ahead; where another disagrees, its sign shows.";
    Some(
        [table, note.to_owned()]
            .into_iter()
            .chain(verdicts(experiment))
            .collect::<Vec<_>>()
            .join("\n\n"),
    )
}

fn claim(ordering: &Ordering) -> String {
    format!("{} > {}", cell(&ordering.better), cell(&ordering.worse))
}

/// How many of the paper's orderings show here by gold reward, and which.
fn verdicts(experiment: &Experiment) -> Option<String> {
    let judged: Vec<(&Ordering, Outcome)> = (experiment.orderings.iter())
        .filter_map(|ordering| Some((ordering, ordering.gold?)))
        .collect();
    let list = |verdict: Verdict| {
        let of = judged.iter().filter(|(_, outcome)| outcome.verdict == verdict);
        let claims: Vec<String> = of
            .map(|(ordering, outcome)| format!("{}{}", claim(ordering), star(&outcome.difference)))
            .collect();
        let colon = if claims.is_empty() { "" } else { ": " };
        format!("- {} ({}){colon}{}", verdict.title(), claims.len(), claims.join(", "))
    };
    let head = format!(
        "Of the {} orderings that table {} of the paper claims, by gold reward:\n\n",
        judged.len(),
        experiment.paper_table.unwrap_or_default()
    );
    let all = [Verdict::SameSignExcludesZero, Verdict::SameSign, Verdict::Opposite];
    (!judged.is_empty()).then(|| head + &all.map(list).join("\n"))
}

/// Failed, corrupt and pending cells.
fn problems(experiment: &Experiment) -> Option<String> {
    let mut lines = Vec::new();
    for arm in &experiment.arms {
        for problem in &arm.problems {
            let what = problem
                .stage
                .as_ref()
                .map_or("unreadable".into(), |stage| format!("{stage} failed"));
            lines.push(format!(
                "- {}, seed {}: {what}: {}",
                arm.name,
                problem.seed,
                line(&problem.error)
            ));
        }
        if !arm.seeds.pending.is_empty() {
            let seeds: Vec<String> = arm.seeds.pending.iter().map(u64::to_string).collect();
            lines.push(format!("- {}, not yet finished: seed {}", arm.name, seeds.join(", ")));
        }
    }
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// Those of `columns` that any arm knows.
fn known(experiment: &Experiment, columns: &[Quantity]) -> Vec<Quantity> {
    let known = |q: &Quantity| experiment.arms.iter().any(|arm| arm.figures.contains_key(q));
    columns.iter().copied().filter(known).collect()
}

fn name(arm: &Arm) -> String {
    format!("{}{}", cell(&arm.name), if arm.ours { " (ours)" } else { "" })
}

/// Finished seeds, of all if some are not.
fn seeds(arm: &Arm) -> String {
    let seeds = &arm.seeds;
    let finished = seeds.finished.len();
    match seeds.failed.len() + seeds.corrupt.len() + seeds.pending.len() {
        0 => finished.to_string(),
        rest => format!("{finished} of {}", finished + rest),
    }
}

fn of(arm: &Arm, quantity: Quantity) -> String {
    with_error(arm.figure(quantity), arm.seeds.finished.len())
}

/// `3.30 ± 0.16`, and the number of values if it is below `n`.
fn with_error(estimate: Option<&Estimate>, n: usize) -> String {
    let Some(estimate) = estimate else { return "–".into() };
    let error = estimate.error.map(|error| format!(" ± {error:.2}")).unwrap_or_default();
    format!("{}{error}{}", number(estimate.mean), fewer(estimate, n))
}

/// `+0.68 [+0.10, +1.26]*`, the star if the interval excludes 0, and the number of values if it is below `n`.
fn difference(estimate: Option<&Estimate>, n: usize) -> String {
    let Some(estimate) = estimate else { return "–".into() };
    let interval = estimate.interval.map(|[low, high]| format!(" [{low:+.2}, {high:+.2}]"));
    let interval = interval.unwrap_or_default() + star(estimate);
    format!("{:+.2}{interval}{}", estimate.mean, fewer(estimate, n))
}

/// The mark of an interval that excludes 0.
fn star(difference: &Estimate) -> &'static str {
    if difference.excludes_zero() { "\\*" } else { "" }
}

fn fewer(estimate: &Estimate, n: usize) -> String {
    if estimate.n < n { format!(" (n {})", estimate.n) } else { String::new() }
}

fn interval(estimate: Option<&Estimate>) -> String {
    let interval = estimate.and_then(|estimate| estimate.interval);
    interval.map_or("–".into(), |[low, high]| format!("[{}, {}]", number(low), number(high)))
}

/// Two decimals, and no minus before a zero.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    if text == "-0.00" { "0.00".into() } else { text }
}

/// Text for a cell of a Markdown table.
fn cell(text: &str) -> String {
    line(text).replace('|', "\\|")
}

/// Text on one line.
fn line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn cells_csv(results: &Results) -> String {
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

fn curves_csv(results: &Results) -> String {
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

fn arms_csv(analysis: &Analysis) -> String {
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

fn differences_csv(analysis: &Analysis) -> String {
    let head = ["experiment", "arm", "baseline", "quantity"].into_iter();
    let mut csv = Csv::new(head.chain(ESTIMATE));
    for experiment in &analysis.experiments {
        for difference in &experiment.differences {
            let Difference { arm, baseline, figures } = difference;
            for (quantity, figure) in figures {
                let head = [&experiment.name, arm, baseline, quantity.name()].map(str::to_owned);
                csv.row(head.into_iter().chain(estimate(figure)));
            }
        }
    }
    csv.0
}

fn orderings_csv(analysis: &Analysis) -> String {
    let head = ["experiment", "better", "worse", "benchmark", "paper_better", "paper_worse"];
    let ours = ["by"].into_iter().chain(ESTIMATE).chain(["verdict"]);
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
                csv.row(row.chain([verdict.title().to_owned()]));
            }
        }
    }
    csv.0
}

/// A text of comma-separated values (RFC 4180, with the line ends of Unix).
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

/// A number so that reading it gives the same one; empty where it is not known.
fn optional(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map(|value| value.to_string()).unwrap_or_default()
}
