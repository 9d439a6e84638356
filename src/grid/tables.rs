//! The statistics of a grid for people and for other programs: Markdown, CSV and JSON.

use std::path::Path;

use super::analysis::{
    Analysis, Arm, BASE, Column, Difference, Experiment, ONE_BETA, Ordering, Outcome, Quantity,
    Verdict,
};
use super::results::{Results, State};
use crate::run::folder::{FolderError, write_file};
use crate::statistics::Estimate;
use crate::table;

/// Around the section of the README that [`readme`] gives.
pub const MARKERS: [&str; 2] = ["<!-- results -->", "<!-- /results -->"];

/// Writes the statistics into `dir`, each file whole or not at all: `analysis.json`, `tables.md`, and as CSV
///
/// - `cells.csv`: a line for each seed of each arm, with every [`Quantity`];
/// - `curves.csv`: a line for each of their iterations, with every [`Column`];
/// - `arms.csv`: a line for each quantity of each arm, over its seeds;
/// - `differences.csv`: a line for each quantity of each pair of arms;
/// - `orderings.csv`: a line for each ordering that the paper's tables claim;
///
/// in both `no_difference` says whether the interval lies within the quantity's [margin](Quantity::margin).
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
fn reading() -> String {
    let margin = |q: Quantity| q.margin().expect("it has one");
    format!(
        "Figures are means over seeds ± their standard error; in brackets is the 95 % interval (Student's t over \
         seeds). A difference is paired by seed, so that both sides start from the same SFT model. \\* marks a \
         difference whose interval excludes 0; each interval speaks for itself alone, and of twenty, one misses the \
         truth by chance. ≈ marks one whose whole interval lies within ±{} gold reward or ±{} win rate: no difference. \
         Without either mark it is undecided. In a column's head (n 384) means a share of 384 responses or pairs of each \
         seed; in a cell (n 2) means that only two seeds know the figure, and – (2 of 5) that two of five seeds reach \
         that KL. –: not known.",
        margin(Quantity::Gold),
        margin(Quantity::WinRate)
    )
}

/// All experiments in Markdown: figures, gold reward at matched KL, the policy and the reward model, paired
/// differences, what the paper claims, and the cells that gave nothing.
pub fn markdown(analysis: &Analysis) -> String {
    let Analysis { version, device, experiments, .. } = analysis;
    let mut parts = vec![
        "# Results".to_owned(),
        format!("segment-rlhf {version}, device {device}."),
        reading(),
    ];
    parts.extend(claims(analysis));
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
        let strength = arms(experiment, STRENGTH);
        section("The KL term", strength.map(|table| format!("{ONE_BETA}\n\n{table}")));
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
    let mut parts = vec![MARKERS[0].to_owned(), reading()];
    parts.extend(claims(analysis));
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
    Quantity::SequenceRankCorrelation,
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
const STRENGTH: &[Quantity] = &[
    Quantity::AdvantageSpreadAtFirst,
    Quantity::AdvantageSpread,
    Quantity::EffectiveKlCoefficient,
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
    let columns = experiment.columns(columns);
    let header = ["arm", "seeds", score.title(), "95 %"].map(str::to_owned).into_iter();
    let header: Vec<String> = header.chain(columns.iter().map(|&q| experiment.title(q))).collect();
    let base = (!experiment.base.is_empty()).then(|| {
        let of = |q: Quantity| with_error(q, experiment.base.get(&q), 0);
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
    markdown_table(&header, &rows)
}

/// The arms with those of `columns` that are known; nothing where none is.
fn arms(experiment: &Experiment, columns: &[Quantity]) -> Option<String> {
    let columns = experiment.columns(columns);
    let titles = columns.iter().map(|&q| experiment.title(q));
    let header: Vec<String> = ["arm".to_owned()].into_iter().chain(titles).collect();
    let row =
        |arm: &Arm| [name(arm)].into_iter().chain(columns.iter().map(|&q| of(arm, q))).collect();
    let rows: Vec<Vec<String>> = experiment.arms.iter().map(row).collect();
    (!columns.is_empty()).then(|| markdown_table(&header, &rows))
}

fn markdown_table(header: &[String], rows: &[Vec<String>]) -> String {
    table::markdown(&header.iter().map(String::as_str).collect::<Vec<_>>(), rows)
}

/// Every pair of arms with seeds in common.
fn differences(experiment: &Experiment) -> Option<String> {
    let known: Vec<&Difference> =
        experiment.differences.iter().filter(|d| !d.figures.is_empty()).collect();
    let score = score(experiment);
    let is_known = |q: &Quantity| known.iter().any(|d| d.figures.contains_key(q));
    let rest = DIFFERENCES.iter().copied().filter(|&q| q != Quantity::Gold && is_known(&q));
    let columns: Vec<Quantity> = [score].into_iter().chain(rest).collect();
    let titles = columns.iter().map(|&q| experiment.title(q));
    let header: Vec<String> = ["difference".to_owned()].into_iter().chain(titles).collect();
    let row = |d: &&Difference| {
        let pair = format!("{} − {}", cell(&d.arm), cell(&d.baseline));
        let n = d.figures.values().map(|e| e.n).max().unwrap_or_default();
        let cells = columns.iter().map(|&q| difference(q, d.figures.get(&q), n));
        [pair].into_iter().chain(cells).collect()
    };
    let rows: Vec<Vec<String>> = known.iter().map(row).collect();
    (!known.is_empty()).then(|| markdown_table(&header, &rows))
}

/// The paper's orderings beside ours.
fn orderings(experiment: &Experiment) -> Option<String> {
    let orderings = &experiment.orderings;
    let first = orderings.first()?;
    let benchmarks: Vec<&str> = first.reported.iter().map(|r| r.benchmark.title()).collect();
    let controlled = Quantity::LengthControlledWinRate;
    let by_win_rate = format!("{}, here", experiment.title(controlled));
    let header = ["the paper"].into_iter().chain(benchmarks.iter().copied());
    let header: Vec<&str> =
        header.chain(["gold, here", "verdict", &by_win_rate, "verdict"]).collect();
    let row = |ordering: &Ordering| {
        let reported = benchmarks.iter().map(|title| {
            let pair = ordering.reported.iter().find(|r| r.benchmark.title() == *title);
            pair.map_or("–".into(), |pair| {
                let sign = ["<", "=", ">"][(pair.sign + 1) as usize];
                let decimals = pair.benchmark.decimals();
                format!("{:.decimals$} {sign} {:.decimals$}", pair.better, pair.worse)
            })
        });
        let outcome = |quantity: Quantity, outcome: &Option<Outcome>| match outcome {
            Some(Outcome { difference: d, verdict }) => {
                [difference(quantity, Some(d), d.n), verdict.title().to_owned()]
            }
            None => ["–".to_owned(), "–".to_owned()],
        };
        [claim(ordering)]
            .into_iter()
            .chain(reported)
            .chain(outcome(Quantity::Gold, &ordering.gold))
            .chain(outcome(controlled, &ordering.length_controlled_win_rate))
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

/// How many of the paper's orderings show here by gold reward, over all experiments.
fn claims(analysis: &Analysis) -> Option<String> {
    Some(analysis.claims(|ordering| ordering.gold)?.text("gold reward"))
}

/// The orderings of each verdict by gold reward.
fn verdicts(experiment: &Experiment) -> Option<String> {
    let judged: Vec<(&Ordering, Outcome)> = (experiment.orderings.iter())
        .filter_map(|ordering| Some((ordering, ordering.gold?)))
        .collect();
    let list = |verdict: Verdict| {
        let of = judged.iter().filter(|(_, outcome)| outcome.verdict == verdict);
        let claims: Vec<String> = of
            .map(|(ordering, outcome)| {
                claim(ordering) + no_difference(Quantity::Gold, &outcome.difference)
            })
            .collect();
        let colon = if claims.is_empty() { "" } else { ": " };
        let (title, interval) = (verdict.title(), verdict.interval());
        format!("- {title}, {interval} ({}){colon}{}", claims.len(), claims.join(", "))
    };
    let head = format!(
        "Of the {} orderings that table {} of the paper claims, by gold reward:\n\n",
        judged.len(),
        experiment.paper_table.unwrap_or_default()
    );
    (!judged.is_empty()).then(|| head + &Verdict::ALL.map(list).join("\n"))
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
    let finished = arm.seeds.finished.len();
    match (arm.figure(quantity), arm.reached.get(&quantity)) {
        (None, Some(seeds)) => format!("– ({} of {finished})", seeds.len()),
        (None, None) => "–".into(),
        (estimate, _) => {
            let one = arm.of_one(quantity);
            one.unwrap_or_else(|| with_error(quantity, estimate, finished))
        }
    }
}

/// `3.30 ± 0.16`, and the number of values if it is below `n`.
fn with_error(quantity: Quantity, estimate: Option<&Estimate>, n: usize) -> String {
    let Some(estimate) = estimate else { return "–".into() };
    let decimals = if quantity == Quantity::EffectiveKlCoefficient { 3 } else { 2 };
    let error = estimate.error.map(|error| format!(" ± {error:.decimals$}")).unwrap_or_default();
    format!("{}{error}{}", number(estimate.mean, decimals), fewer(estimate, n))
}

/// `+0.68 [+0.10, +1.26]*`, the star if the interval excludes 0, ≈ if it is no difference, and the number of values if
/// it is below `n`.
fn difference(quantity: Quantity, estimate: Option<&Estimate>, n: usize) -> String {
    let Some(estimate) = estimate else { return "–".into() };
    let interval = estimate.interval.map(|[low, high]| format!(" [{low:+.2}, {high:+.2}]"));
    let marks = star(estimate).to_owned() + no_difference(quantity, estimate);
    format!("{:+.2}{}{marks}{}", estimate.mean, interval.unwrap_or_default(), fewer(estimate, n))
}

/// The mark of a difference that is none.
fn no_difference(quantity: Quantity, difference: &Estimate) -> &'static str {
    if quantity.is_no_difference(difference) { " ≈" } else { "" }
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
    interval
        .map_or("–".into(), |[low, high]| format!("[{}, {}]", number(low, 2), number(high, 2)))
}

/// A number without a minus before a zero.
fn number(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    match text.strip_prefix('-') {
        Some(zero) if zero.chars().all(|c| matches!(c, '0' | '.')) => zero.to_owned(),
        _ => text,
    }
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

/// The column that says whether a difference is none by the quantity's margin; empty where it has none.
const NO_DIFFERENCE: &str = "no_difference";

fn is_no_difference(quantity: Quantity, difference: &Estimate) -> String {
    let is = quantity.margin().map(|_| quantity.is_no_difference(difference).to_string());
    is.unwrap_or_default()
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

fn orderings_csv(analysis: &Analysis) -> String {
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
