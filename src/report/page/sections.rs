//! What the page says, from results, statistics and extras: one function a section.

use std::collections::BTreeMap;
use std::ops::Range;

use super::plots::{Layer, Plot, Style};
use super::view::{Block, Cell, Drawing, Entry, Piece, Section, ShadedRow, View};
use super::{Fit, Page};
use crate::grid::analysis::{
    Analysis, Arm, BASE, BandPoint, Benchmark, Column, Experiment, Ordering, Outcome, PathPoint,
    Quantity, Verdict,
};
use crate::grid::results::{Figures, State};
use crate::normalizer::{LocationStatistic, Normalizer};
use crate::report::reported::reported;
use crate::report::segments::SegmentedText;
use crate::report::texts::ShadedText;
use crate::statistics::Estimate;

/// Everything that the page shows.
pub fn view(page: &Page) -> View {
    let truth = knows_gold(page.analysis);
    let sections = [
        run(page),
        headline(page),
        claims(page, truth),
        curves(page, truth),
        frontier(page, truth),
        normalizer(page),
        segments(page, truth),
        reward_model(page),
        texts(page),
        ground_truth(page),
        experiments(page, truth),
        problems(page),
        samples(page),
        files(page),
        terms(page),
    ];
    let experiments = page.analysis.experiments.len();
    let cells = cells(page);
    View {
        title: "Segment-level RLHF: report".into(),
        subtitle: format!(
            "{}, {} of {} cells finished",
            count(experiments, "experiment"),
            cells.finished,
            cells.all
        ),
        sections: sections.into_iter().flatten().collect(),
    }
}

fn count(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn knows_gold(analysis: &Analysis) -> bool {
    arms(analysis).any(|arm| arm.figure(Quantity::Gold).is_some())
}

fn arms(analysis: &Analysis) -> impl Iterator<Item = &Arm> {
    analysis.experiments.iter().flat_map(|experiment| &experiment.arms)
}

/// The experiment that the summary is of: the first that stands beside a table of the paper, else the first.
fn main_experiment(analysis: &Analysis) -> Option<&Experiment> {
    let experiments = &analysis.experiments;
    experiments.iter().find(|e| e.paper_table.is_some()).or(experiments.first())
}

/// An arm's name, with a word where the paper has no such arm.
fn title(arm: &Arm) -> String {
    if arm.ours { format!("{} (ours)", arm.name) } else { arm.name.clone() }
}

#[derive(Default)]
struct Cells {
    all: usize,
    finished: usize,
    pending: usize,
    failed: usize,
    corrupt: usize,
}

fn cells(page: &Page) -> Cells {
    let mut cells = Cells { all: page.results.cells.len(), ..Cells::default() };
    for cell in &page.results.cells {
        *match &cell.state {
            State::Pending => &mut cells.pending,
            State::Finished(_) => &mut cells.finished,
            State::Failed { .. } => &mut cells.failed,
            State::Corrupt { .. } => &mut cells.corrupt,
        } += 1;
    }
    cells
}

/// Seconds in the unit that a person would choose.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

fn heading(text: impl Into<String>) -> Block {
    Block::Heading { text: text.into() }
}

fn text(text: impl Into<String>) -> Block {
    Block::Text { text: text.into() }
}

fn table(caption: impl Into<String>, header: &[&str], rows: Vec<Vec<Cell>>) -> Option<Block> {
    let header: Vec<String> = header.iter().map(|&h| h.to_owned()).collect();
    let (caption, summary) = (caption.into(), None);
    (!rows.is_empty()).then_some(Block::Table { caption, header, rows, summary })
}

fn figure(caption: impl Into<String>, legend: Vec<Entry>, plots: Vec<Drawing>) -> Option<Block> {
    let caption = caption.into();
    (!plots.is_empty()).then_some(Block::Figure { caption, legend, plots })
}

fn run(page: &Page) -> Option<Section> {
    let (results, cells) = (page.results, cells(page));
    let mut seeds: Vec<u64> = results.cells.iter().map(|cell| cell.seed).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    let states = [
        (cells.finished, "finished"),
        (cells.pending, "pending"),
        (cells.failed, "failed"),
        (cells.corrupt, "unreadable"),
    ];
    let states = states.iter().filter(|(n, what)| *n > 0 || *what == "finished");
    let states: Vec<String> = states.map(|(n, what)| format!("{n} {what}")).collect();
    let names: Vec<&str> = results.experiments.iter().map(|e| e.name.as_str()).collect();
    let mut facts = vec![
        ("program", format!("segment-rlhf {}", results.version)),
        ("device", results.device.clone()),
        ("experiments", names.join(", ")),
        ("seeds", seeds.join(", ")),
        ("cells", format!("{} of {}", states.join(", "), cells.all)),
    ];
    let seconds: f64 = page.extras.times.iter().map(|time| time.seconds).sum();
    if seconds > 0.0 {
        facts.push(("time", format!("{} over all stages", duration(seconds))));
    }
    let facts = facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let times = page.extras.times.iter().map(|time| {
        vec![
            Cell::name(&time.stage),
            Cell::number(time.runs.to_string()),
            Cell::number(duration(time.seconds / time.runs.max(1) as f64)),
            Cell::number(duration(time.seconds)),
        ]
    });
    let experiments = page.analysis.experiments.iter().map(|experiment| {
        let arms: Vec<&str> = experiment.arms.iter().map(|arm| arm.name.as_str()).collect();
        vec![
            Cell::name(&experiment.name),
            Cell::words(&experiment.title).with_note(experiment.note.clone()),
            Cell::words(arms.join(" · ")),
        ]
    });
    let settings = page.extras.settings.iter().map(|settings| Block::Verbatim {
        summary: "The settings that all arms start from".into(),
        text: settings.clone(),
    });
    let blocks = [
        Some(Block::Facts { facts }),
        table(
            "The experiments. Each arm is run with every seed; arms with the same settings share their cells.",
            &["experiment", "what it asks", "arms"],
            experiments.collect(),
        ),
        table(
            "Time spent. What several cells share is trained once.",
            &["stage", "runs", "each", "all"],
            times.collect(),
        ),
    ];
    Section::new("run", "What was run", blocks.into_iter().flatten().chain(settings).collect())
}

/// The paper's figure of an arm on a benchmark.
fn reported_figure(experiment: &Experiment, arm: &str, benchmark: Benchmark) -> Option<f64> {
    experiment.orderings.iter().find_map(|ordering| {
        let pair = ordering.reported.iter().find(|pair| pair.benchmark == benchmark)?;
        match arm {
            arm if arm == ordering.better => Some(pair.better),
            arm if arm == ordering.worse => Some(pair.worse),
            _ => None,
        }
    })
}

/// A column of a table of arms: the quantity and its decimals.
type Shown = (Quantity, usize);

/// Those that some arm knows.
fn known<'a>(arms: &[Arm], columns: impl IntoIterator<Item = &'a Shown>) -> Vec<Shown> {
    let known = |quantity| arms.iter().any(|arm| arm.figure(quantity).is_some());
    columns.into_iter().copied().filter(|&(quantity, _)| known(quantity)).collect()
}

/// A row an arm, a column a quantity, with the SFT model on top, and the paper's figures at the right.
fn arms_table(
    experiment: &Experiment,
    caption: &str,
    columns: &[Shown],
    benchmarks: &[Benchmark],
) -> Option<Block> {
    let columns = known(&experiment.arms, columns);
    let reported = |arm: &str, b: Benchmark| reported_figure(experiment, arm, b);
    let benchmarks: Vec<Benchmark> = benchmarks
        .iter()
        .copied()
        .filter(|&b| experiment.arms.iter().any(|arm| reported(&arm.name, b).is_some()))
        .collect();
    let paper = |name: &str| {
        let cells = benchmarks.iter().map(|&b| {
            let mut cell = Cell::figure(reported(name, b), decimals(b));
            cell.class = "number paper";
            cell
        });
        cells.collect::<Vec<_>>()
    };
    let row = |name: String, key: &str, n: usize, figures: &BTreeMap<Quantity, Estimate>| {
        let figures = columns.iter().map(|(q, decimals)| Cell::estimate(figures.get(q), *decimals));
        let head = [Cell::name(name), Cell::number(n.to_string())];
        head.into_iter().chain(figures).chain(paper(key)).collect::<Vec<_>>()
    };
    let base = experiment.base.values().next().map(|estimate| estimate.n);
    let base = base.map(|n| row("SFT model".into(), BASE, n, &experiment.base));
    let finished = experiment.arms.iter().filter(|arm| !arm.figures.is_empty());
    let arms = finished.map(|a| row(title(a), &a.name, a.seeds.finished.len(), &a.figures));
    let paper_titles = benchmarks.iter().map(|b| format!("paper: {}", b.title()));
    let header: Vec<String> = ["arm", "seeds"]
        .map(str::to_owned)
        .into_iter()
        .chain(columns.iter().map(|(quantity, _)| quantity.title().to_owned()))
        .chain(paper_titles)
        .collect();
    let rows: Vec<_> = base.into_iter().chain(arms).collect();
    table(caption, &header.iter().map(String::as_str).collect::<Vec<_>>(), rows)
}

fn headline(page: &Page) -> Option<Section> {
    let experiment = main_experiment(page.analysis)?;
    let columns = [
        (Quantity::Gold, 2),
        (Quantity::SequenceScore, 2),
        (Quantity::WinRate, 2),
        (Quantity::LengthControlledWinRate, 2),
        (Quantity::Kl, 2),
        (Quantity::Tokens, 1),
    ];
    let gold = knows_gold(page.analysis);
    let columns = columns.iter().filter(|(q, _)| *q != Quantity::SequenceScore || !gold);
    let columns: Vec<Shown> = columns.copied().collect();
    let judge =
        if gold { "the gold reward of the task" } else { "e_φ, the reward model's own score" };
    let caption = format!(
        "{}. On held-out prompts: mean ± standard error over seeds, below it the 95 % interval (Student's t). \
         Responses are judged by {judge}. The paper's figures are of other models and other judges: only the \
         order of rows can be compared.",
        experiment.title.trim_end_matches('.')
    );
    let main = arms_table(experiment, &caption, &columns, &Benchmark::ALL);
    let quantity = if gold { Quantity::Gold } else { Quantity::SequenceScore };
    let figure = intervals(experiment, quantity);
    Section::new("headline", "Headline", main.into_iter().chain(figure).collect())
}

/// The arms of an experiment below each other in a few quantities.
fn intervals(experiment: &Experiment, first: Quantity) -> Option<Block> {
    let quantities = [first, Quantity::WinRate, Quantity::LengthControlledWinRate];
    let plots = quantities.iter().filter_map(|&quantity| {
        let arms = experiment.arms.iter().enumerate();
        let known: Vec<_> =
            arms.filter_map(|(i, arm)| Some((i, arm, arm.figure(quantity)?))).collect();
        let spreads = known.iter().enumerate().map(|(row, (i, _, of))| {
            let interval = of.interval.unwrap_or([of.mean; 2]);
            Layer::Spread(Style::Series(*i), vec![(row, of.mean, interval)])
        });
        let ends = [0.5, known.len() as f64 + 0.5];
        let base = experiment.base.get(&quantity).map(|base| Layer::Line {
            style: Style::Reference,
            points: ends.iter().map(|&y| (base.mean, y)).collect(),
            marked: false,
        });
        let plot = Plot {
            y: capital(quantity.title()),
            description: format!("{} of each arm, with 95 % intervals", quantity.title()),
            rows: known.iter().map(|(_, arm, _)| title(arm)).collect(),
            layers: base.into_iter().chain(spreads).collect(),
            ..Plot::default()
        };
        (!known.is_empty()).then(|| Drawing::of(None, &plot))?
    });
    let caption = "The same as a picture: means and 95 % intervals over seeds; the dotted line is the SFT model. \
                   Arms whose intervals overlap may still differ, since the same seeds share data and models: the \
                   differences below are paired by seed.";
    figure(caption, vec![Entry::new(Style::Reference, "SFT model")], plots.collect())
}

/// The text with a capital at its start; e_φ has none.
fn capital(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) if characters.clone().next() != Some('_') => {
            first.to_uppercase().chain(characters).collect()
        }
        _ => text.to_owned(),
    }
}

fn claims(page: &Page, truth: bool) -> Option<Section> {
    let mut blocks = Vec::new();
    let mut verdicts: Vec<Verdict> = Vec::new();
    for experiment in &page.analysis.experiments {
        let orderings = &experiment.orderings;
        let benchmarks = Benchmark::ALL.into_iter();
        let benchmarks: Vec<Benchmark> = benchmarks
            .filter(|b| orderings.iter().flat_map(|o| &o.reported).any(|pair| pair.benchmark == *b))
            .collect();
        let rows = orderings.iter().filter_map(|o| ordering_row(o, &benchmarks, truth)).collect();
        let caption = format!(
            "{}. A row is a pair of which the paper has the first ahead, and what its benchmarks say of it; then our \
             difference, paired by seed, with its standard error and 95 % interval.",
            experiment.title.trim_end_matches('.')
        );
        let ours =
            [("Δ gold", truth), ("verdict", truth), ("Δ LC win rate", true), ("verdict", true)];
        let ours = ours.into_iter().filter(|(_, known)| *known).map(|(name, _)| name);
        let paper = benchmarks.iter().map(|benchmark| benchmark.title());
        let header: Vec<&str> =
            ["the paper's ordering"].into_iter().chain(paper).chain(ours).collect();
        blocks.extend(table(caption, &header, rows));
        let outcome = |o: &Ordering| if truth { o.gold } else { o.length_controlled_win_rate };
        verdicts.extend(orderings.iter().filter_map(outcome).map(|outcome| outcome.verdict));
    }
    let of = |verdict: Verdict| verdicts.iter().filter(|v| **v == verdict).count();
    let summary = format!(
        "Of {} that the paper's tables claim, {} shows {} with the same sign and an interval that excludes 0, {} with \
         the same sign, {} with the opposite sign.",
        count(verdicts.len(), "ordering"),
        if truth { "gold reward" } else { "the length-controlled win rate" },
        of(Verdict::SameSignExcludesZero),
        of(Verdict::SameSign),
        of(Verdict::Opposite)
    );
    blocks.insert(0, text(summary));
    Section::new("claims", "The paper's orderings", blocks)
}

fn ordering_row(ordering: &Ordering, benchmarks: &[Benchmark], truth: bool) -> Option<Vec<Cell>> {
    if ordering.gold.is_none() && ordering.length_controlled_win_rate.is_none() {
        return None;
    }
    let paper = benchmarks.iter().map(|benchmark| {
        let pair = ordering.reported.iter().find(|pair| pair.benchmark == *benchmark);
        let text = pair.map_or("–".into(), |pair| {
            let sign = ["<", "=", ">"][(1 + pair.sign.signum()) as usize];
            let decimals = decimals(*benchmark);
            format!("{:.decimals$} {sign} {:.decimals$}", pair.better, pair.worse)
        });
        Cell { text, note: None, class: "number paper" }
    });
    let outcome = |outcome: Option<Outcome>, decimals| match outcome {
        Some(Outcome { difference, verdict }) => {
            [Cell::difference(Some(&difference), decimals), verdict_cell(verdict)]
        }
        None => [Cell::number("–"), Cell::words("–")],
    };
    let pair = Cell::name(format!("{} > {}", ordering.better, ordering.worse));
    let gold = truth.then(|| outcome(ordering.gold, 2)).into_iter().flatten();
    let controlled = outcome(ordering.length_controlled_win_rate, 3);
    Some([pair].into_iter().chain(paper).chain(gold).chain(controlled).collect())
}

/// How many the paper gives.
fn decimals(benchmark: Benchmark) -> usize {
    if benchmark == Benchmark::ArenaHard { 1 } else { 2 }
}

/// A verdict, which a sign tells apart as well as its colour.
fn verdict_cell(verdict: Verdict) -> Cell {
    let (sign, class) = match verdict {
        Verdict::SameSignExcludesZero => ("●", "verdict yes"),
        Verdict::SameSign => ("○", "verdict perhaps"),
        Verdict::Opposite => ("×", "verdict no"),
    };
    Cell { text: format!("{sign} {}", verdict.title()), note: None, class }
}

/// Arms that are drawn together: all of an experiment, or, where each has a place on an axis and they are too many
/// for one plot, those with the same place.
struct Group<'a> {
    name: Option<&'a str>,
    /// Each with the name that tells it from the others.
    arms: Vec<(String, &'a Arm)>,
}

fn groups(experiment: &Experiment) -> Vec<Group<'_>> {
    let one = || {
        let arms = experiment.arms.iter().map(|arm| (title(arm), arm)).collect();
        vec![Group { name: None, arms }]
    };
    if experiment.arms.len() <= 6 {
        return one();
    }
    let mut groups: Vec<Group> = Vec::new();
    for arm in &experiment.arms {
        let Some((base, place)) = arm.name.rsplit_once(", ") else { return one() };
        let base = if arm.ours { format!("{base} (ours)") } else { base.to_owned() };
        match groups.iter_mut().find(|group| group.name == Some(place)) {
            Some(group) => group.arms.push((base, arm)),
            None => groups.push(Group { name: Some(place), arms: vec![(base, arm)] }),
        }
    }
    groups
}

impl Group<'_> {
    fn legend(&self) -> Vec<Entry> {
        let arms = self.arms.iter().enumerate();
        arms.map(|(i, (name, _))| Entry::new(Style::Series(i), name)).collect()
    }

    /// One curve an arm, with a band where there are several seeds.
    fn plot(&self, column: Column, y: &str) -> Option<Drawing> {
        let arms = self.arms.iter().enumerate();
        let bands = arms.clone().map(|(i, (_, arm))| band(Style::Series(i), arm.band(column)));
        let lines = arms.map(|(i, (_, arm))| Layer::Line {
            style: Style::Series(i),
            points: arm
                .band(column)
                .iter()
                .map(|p| (p.iteration as f64, p.estimate.mean))
                .collect(),
            marked: true,
        });
        let plot = Plot {
            y: y.to_owned(),
            x: "updates of the policy".into(),
            description: format!("{y} over updates of the policy, one curve an arm"),
            layers: bands.chain(lines).collect(),
            ..Plot::default()
        };
        Drawing::of(None, &plot)
    }
}

/// The 95 % intervals of a curve.
fn band(style: Style, points: &[BandPoint]) -> Layer {
    let point =
        |p: &BandPoint| p.estimate.interval.map(|[low, high]| (p.iteration as f64, low, high));
    Layer::Band(style, points.iter().filter_map(point).collect())
}

/// What a policy is judged by in training.
fn score(truth: bool) -> (Column, &'static str) {
    match truth {
        true => (Column::Gold, "Gold reward of a response"),
        false => (Column::SequenceScore, "e_φ of a response"),
    }
}

fn curves(page: &Page, truth: bool) -> Option<Section> {
    let columns = [
        score(truth),
        (Column::WinRate, "Win rate over the SFT model"),
        (Column::Kl, "KL from the SFT model, nats a response"),
        (Column::Tokens, "Tokens of a response"),
        (Column::Entropy, "Entropy of the policy, nats a token"),
    ];
    let mut blocks = Vec::new();
    for experiment in &page.analysis.experiments {
        let mut figures = Vec::new();
        for group in groups(experiment) {
            let plots = columns.iter().filter_map(|&(column, y)| group.plot(column, y)).collect();
            let name = group.name.map_or(String::new(), |name| format!(", {name}"));
            let caption = format!(
                "{}{name}: training over updates of the policy. Lines are means over seeds, bands their 95 % \
                 intervals, cut where they leave the plot. Win rates are of held-out prompts, the rest of rollouts, \
                 which the policy draws before its update.",
                experiment.title.trim_end_matches('.')
            );
            figures.extend(figure(caption, group.legend(), plots));
        }
        if !figures.is_empty() {
            blocks.push(heading(&experiment.title));
            blocks.append(&mut figures);
        }
    }
    Section::new("curves", "Learning curves", blocks)
}

/// Where a KL lies on the frontier's axis: its estimate may be a little below 0.
fn root(kl: f64) -> f64 {
    kl.max(0.0).sqrt()
}

fn frontier(page: &Page, truth: bool) -> Option<Section> {
    let (column, score) = score(truth);
    let mut blocks = vec![text(
        "A policy pays for reward in KL from the SFT model. At the same KL, the higher curve is the better method; a \
         curve that bends down has begun to exploit its reward model.",
    )];
    for experiment in &page.analysis.experiments {
        for group in groups(experiment) {
            let arms =
                || group.arms.iter().enumerate().map(|(i, (_, arm))| (Style::Series(i), *arm));
            let faint = arms().flat_map(|(style, arm)| {
                let path = |points: &[PathPoint]| {
                    Layer::Faint(style, points.iter().map(|p| (root(p.kl), p.gold)).collect())
                };
                arm.paths.iter().map(move |seed| path(&seed.points)).collect::<Vec<_>>()
            });
            let mean = arms().map(|(style, arm)| {
                let points = arm.band(Column::Kl).iter().zip(arm.band(column));
                let points =
                    points.map(|(kl, score)| (root(kl.estimate.mean), score.estimate.mean));
                Layer::Line { style, points: points.collect(), marked: true }
            });
            let path = Plot {
                y: score.into(),
                x: "KL from the SFT model, nats a response, by its root".into(),
                x_squares: true,
                description: format!("{score} against KL, one curve an arm"),
                layers: faint.chain(mean).collect(),
                ..Plot::default()
            };
            let count = group.arms.len() as f64;
            let matched = arms().enumerate().map(|(i, (style, arm))| {
                let levels =
                    Quantity::AT_KL.iter().enumerate().filter_map(|(level, (_, quantity))| {
                        let of = arm.figure(*quantity)?;
                        let x = level as f64 + 1.0 + 0.7 * ((i as f64 + 0.5) / count - 0.5);
                        Some((x, of.mean, of.interval.unwrap_or([of.mean; 2])))
                    });
                Layer::Intervals(style, levels.collect())
            });
            let matched = Plot {
                y: "Gold reward where the KL is first reached".into(),
                x: "KL from the SFT model, nats a response".into(),
                description: "Gold reward at matched KL, one marker an arm".into(),
                x_range: Some([0.5, 4.5]),
                x_names: &["½", "1", "2", "4"],
                layers: matched.collect(),
                ..Plot::default()
            };
            let plots = [Drawing::of(None, &path), Drawing::of(None, &matched)];
            let name = group.name.map_or(String::new(), |name| format!(", {name}"));
            let title = experiment.title.trim_end_matches('.');
            let caption = match truth {
                true => format!(
                    "{title}{name}. First: gold reward against KL, one faint line a seed, and the mean over seeds of \
                     each iteration; the KL's axis is that of its root, by which reward tends to grow evenly. Second: gold reward where training first reaches a KL of ½, 1, 2 and 4 nats, \
                     with 95 % intervals, over the seeds that get there."
                ),
                false => format!(
                    "{title}{name}. e_φ against KL, means over seeds of each iteration. Every reward model has its \
                     own scale: compare only arms that share theirs."
                ),
            };
            if path.is_empty() {
                continue;
            }
            blocks.extend(figure(caption, group.legend(), plots.into_iter().flatten().collect()));
        }
    }
    let matched = Quantity::AT_KL.iter().map(|(_, quantity)| *quantity);
    let columns = matched.chain([Quantity::Area, Quantity::BestGold, Quantity::BestIteration]);
    let columns: Vec<Shown> = columns.map(|quantity| (quantity, 2)).collect();
    let caption = "Gold reward at matched KL; the mean during training; and the best evaluation, with the update after \
                   which it was.";
    let table = main_experiment(page.analysis).and_then(|e| arms_only(e, caption, &columns));
    blocks.extend(table.filter(|_| truth));
    Section::new("frontier", "Reward against KL", blocks)
}

/// At most this many points are drawn of a fit: a location may have few rewards, and there may be hundreds of them.
const LOCATIONS: usize = 80;

/// The statistics, pooled over neighbouring locations where there are too many to draw.
fn pooled(statistics: &[LocationStatistic]) -> Vec<LocationStatistic> {
    if statistics.len() <= LOCATIONS {
        return statistics.to_vec();
    }
    let mut bins: BTreeMap<usize, Vec<&LocationStatistic>> = BTreeMap::new();
    for statistic in statistics {
        bins.entry((statistic.location * LOCATIONS as f64).ceil() as usize)
            .or_default()
            .push(statistic);
    }
    let pool = |bin: Vec<&LocationStatistic>| {
        let count: usize = bin.iter().map(|s| s.count).sum();
        let mean = |of: fn(&LocationStatistic) -> f64| {
            bin.iter().map(|s| s.count as f64 * of(s)).sum::<f64>() / count.max(1) as f64
        };
        LocationStatistic {
            location: mean(|s| s.location),
            mean: mean(|s| s.mean),
            std: mean(|s| s.std),
            count,
        }
    };
    bins.into_values().map(pool).filter(|s| s.count > 0).collect()
}

fn normalizer(page: &Page) -> Option<Section> {
    let (mean, std) = (Style::Series(0), Style::Series(1));
    let fits = page.extras.fits.iter();
    let fits = fits.filter(|fit| matches!(fit.file.normalizer, Normalizer::LocationAware { .. }));
    let plots = fits.filter_map(|fit: &Fit| {
        let statistics = pooled(&fit.file.statistics);
        let points = |of: fn(&LocationStatistic) -> f64| {
            statistics.iter().map(|s| (s.location, of(s))).collect::<Vec<_>>()
        };
        let first = statistics.first()?.location.max(fit.file.min_location);
        let curve = |of: &dyn Fn(f64) -> f64| {
            let x = (0..=60).map(|i| first * (1.0 / first).powf(f64::from(i) / 60.0));
            x.map(|p| (p, of(p))).collect::<Vec<_>>()
        };
        let normalizer = fit.file.normalizer;
        let line = |style, points| Layer::Line { style, points, marked: false };
        let plot = Plot {
            y: "Reward of a segment".into(),
            x: "location p in the response".into(),
            description: format!(
                "Mean and standard deviation of segment rewards by location, {}",
                fit.arm
            ),
            x_range: Some([0.0, 1.0]),
            layers: vec![
                Layer::Dots(mean, points(|s| s.mean)),
                Layer::Dots(std, points(|s| s.std)),
                line(mean, curve(&|p| normalizer.mean(p))),
                line(std, curve(&|p| normalizer.std(p))),
            ],
            ..Plot::default()
        };
        Drawing::of(Some(&format!("{}, seed {}", fit.arm, fit.seed)), &plot)
    });
    let legend = vec![
        Entry::new(mean, "mean, and Mean(p)"),
        Entry::new(std, "standard deviation, and Std(p)"),
    ];
    let caption = format!(
        "The paper's regression: rewards of the calibration set by location p = (t + 1) / T of segment t of T. Markers \
         are the statistics of a location, weighted means of neighbours where there are more than {LOCATIONS}; the \
         curves w ln p + b are what was fitted to them. A reward is normalized by both at its location."
    );
    let rows = page.extras.fits.iter().map(|fit| {
        let file = &fit.file;
        let numbers = match file.normalizer {
            Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, .. } => {
                [Some(w_mean), Some(b_mean), Some(w_std), Some(b_std)]
            }
            Normalizer::Scalar { mean, std } => [None, Some(mean), None, Some(std)],
            Normalizer::None => [None; 4],
        };
        let numbers = numbers.map(|number| Cell::figure(number, 3));
        let rest = [
            Cell::figure(file.r_squared_mean, 2),
            Cell::figure(file.r_squared_std, 2),
            Cell::number(file.rewards.to_string()),
        ];
        let name = Cell::name(format!("{}, seed {}", fit.arm, fit.seed));
        [name].into_iter().chain(numbers).chain(rest).collect()
    });
    let fitted = table(
        "The fits. R²: share of the variance over locations that the curve explains.",
        &["arm", "w mean", "b mean", "w std", "b std", "R² mean", "R² std", "rewards"],
        rows.collect(),
    );
    let blocks = [figure(caption, legend, plots.collect()), fitted];
    Section::new("normalizer", "Normalizers", blocks.into_iter().flatten().collect())
}

/// The cutoff that an arm sets, in nats.
fn cutoff(arm: &Arm) -> Option<f64> {
    let value = arm.settings.get("segmentation")?.get("entropy_cutoff")?;
    value.as_float().or(value.as_integer().map(|whole| whole as f64)).filter(|c| c.is_finite())
}

/// The experiment that varies the cutoff, with the arms' cutoffs.
fn sweep(analysis: &Analysis) -> Option<Vec<(f64, &Arm)>> {
    let swept = |experiment: &'_ Experiment| {
        experiment.arms.iter().filter(|a| cutoff(a).is_some()).count() > 2
    };
    let experiment = analysis.experiments.iter().find(|e| swept(e))?;
    let mut arms: Vec<(f64, &Arm)> =
        experiment.arms.iter().filter_map(|arm| Some((cutoff(arm)?, arm))).collect();
    arms.sort_by(|a, b| a.0.total_cmp(&b.0));
    Some(arms)
}

/// Quantities over cutoffs in one plot, with their intervals.
fn over_cutoffs(arms: &[(f64, &Arm)], y: &str, quantities: &[Quantity]) -> Option<Drawing> {
    let layers = quantities.iter().enumerate().flat_map(|(i, quantity)| {
        let style = Style::Series(i);
        let known = arms.iter().filter_map(|(cutoff, arm)| Some((*cutoff, arm.figure(*quantity)?)));
        let line = known.clone().map(|(x, of)| (x, of.mean)).collect();
        let points = known.map(|(x, of)| (x, of.mean, of.interval.unwrap_or([of.mean; 2])));
        [
            Layer::Line { style, points: line, marked: false },
            Layer::Intervals(style, points.collect()),
        ]
    });
    let plot = Plot {
        y: y.to_owned(),
        x: "entropy cutoff, nats".into(),
        description: format!("{y} over the entropy cutoff"),
        x_range: None,
        layers: layers.collect(),
        ..Plot::default()
    };
    Drawing::of(None, &plot)
}

fn segments(page: &Page, truth: bool) -> Option<Section> {
    let lengths = page.extras.segment_lengths.iter().filter_map(|lengths| {
        let all: usize = lengths.counts.iter().sum();
        let bar = |(i, &n): (usize, &usize)| {
            (i as f64 + 0.5, i as f64 + 1.5, 100.0 * n as f64 / all.max(1) as f64)
        };
        let plot = Plot {
            y: "Share of segments, %".into(),
            x: "tokens of a segment".into(),
            description: format!("Lengths of segments, {}", lengths.arm),
            y_holds: vec![0.0],
            layers: vec![Layer::Bars(
                Style::Series(0),
                lengths.counts.iter().enumerate().map(bar).collect(),
            )],
            ..Plot::default()
        };
        Drawing::of(Some(&format!("{}, seed {}", lengths.arm, lengths.seed)), &plot)
    });
    let histogram = figure(
        "Lengths of the segments of the calibration set, in tokens.",
        Vec::new(),
        lengths.collect(),
    );
    let sweep = sweep(page.analysis).and_then(|arms| {
        let score = match truth {
            true => (Quantity::Gold, "Gold reward of a held-out response"),
            false => (Quantity::SequenceScore, "e_φ of a held-out response"),
        };
        let plots = [
            over_cutoffs(&arms, "Tokens of a segment", &[Quantity::SegmentTokens]),
            over_cutoffs(&arms, score.1, &[score.0]),
            over_cutoffs(&arms, "Win rate over the SFT model", &[Quantity::WinRate, Quantity::LengthControlledWinRate]),
        ];
        let paper = &reported().cutoff_sweep;
        let ([from, to], [short, long], [low, high]) =
            (paper.entropy_cutoff, paper.segment_tokens, paper.best_entropy_cutoff);
        let caption = format!(
            "The cutoff sweep: means and 95 % intervals over seeds. In the win rates' plot the second series is the \
             win rate at equal lengths. The paper's figure 4 has cutoffs from {from} to {to} nats, which cut segments \
             of {short} to {long} tokens, and finds those from {low} to {high} best."
        );
        let legend = vec![
            Entry::new(Style::Series(0), "the quantity above the plot"),
            Entry::new(Style::Series(1), "win rate at equal lengths"),
        ];
        figure(caption, legend, plots.into_iter().flatten().collect())
    });
    Section::new("segments", "Segments", [histogram, sweep].into_iter().flatten().collect())
}

/// The figures of an arm's finished cells.
fn finished<'a>(page: &Page<'a>, experiment: &str, arm: &str) -> Vec<&'a Figures> {
    let rows = page.results.rows().filter(|(e, a, _)| e.name == experiment && a.name == arm);
    rows.filter_map(|(.., cell)| cell.figures()).collect()
}

fn reward_model(page: &Page) -> Option<Section> {
    let experiment = main_experiment(page.analysis)?;
    let own = experiment.arms.iter().filter(|arm| arm.method.reward_model() == arm.method);
    let mut seen: Vec<Vec<(f64, f64, [f64; 2])>> = Vec::new(); // arms may share their reward models
    let plots = own.filter_map(|arm| {
        let bins: Vec<_> = finished(page, &experiment.name, &arm.name)
            .into_iter()
            .map(|figures| &figures.reward.calibration)
            .collect();
        let most = bins.iter().map(|bins| bins.len()).max()?;
        let points = (0..most).filter_map(|i| {
            let bins = bins.iter().filter(|bins| bins.len() == most).map(|bins| &bins[i]);
            let predicted = Estimate::of(bins.clone().map(|bin| bin.predicted))?;
            let observed = Estimate::of(bins.map(|bin| bin.observed))?;
            let interval = observed.interval.unwrap_or([observed.mean; 2]);
            Some((predicted.mean, observed.mean, interval))
        });
        let points: Vec<_> = points.collect();
        if points.is_empty() || seen.contains(&points) {
            return None;
        }
        seen.push(points.clone());
        let diagonal = vec![(0.5, 0.5), (1.0, 1.0)];
        let plot = Plot {
            y: "Share of pairs that it gets right".into(),
            x: "predicted share, σ of the score gap".into(),
            description: format!("Calibration of the reward model, {}", arm.name),
            x_range: Some([0.5, 1.0]),
            y_holds: vec![0.5, 1.0],
            layers: vec![
                Layer::Line { style: Style::Reference, points: diagonal, marked: false },
                Layer::Line {
                    style: Style::Series(0),
                    points: points.iter().map(|&(x, y, _)| (x, y)).collect(),
                    marked: false,
                },
                Layer::Intervals(Style::Series(0), points),
            ],
            ..Plot::default()
        };
        Drawing::of(Some(&title(arm)), &plot)
    });
    let legend = vec![
        Entry::new(Style::Series(0), "held-out pairs, by how sure the model is"),
        Entry::new(Style::Reference, "perfectly calibrated"),
    ];
    let calibration = figure(
        "Calibration of the reward models: held-out pairs in groups of equal size by σ of the gap between their \
         scores. Below the dotted line a model is surer than it ought to be. Means and 95 % intervals over seeds.",
        legend,
        plots.collect(),
    );
    let columns = [
        (Quantity::RewardAccuracy, 3),
        (Quantity::RewardGoldAccuracy, 3),
        (Quantity::SegmentTokens, 2),
        (Quantity::NormalizerMeanR2, 2),
        (Quantity::NormalizerStdR2, 2),
    ];
    let accuracy = arms_only(
        experiment,
        "Reward models on held-out pairs, tokens of their segments there, and how much of the variation over \
         locations the normalizers explain.",
        &columns,
    );
    let blocks = [accuracy, calibration];
    Section::new("reward", "Reward models", blocks.into_iter().flatten().collect())
}

/// A table of arms without the SFT model and the paper.
fn arms_only(experiment: &Experiment, caption: &str, columns: &[Shown]) -> Option<Block> {
    let columns = known(&experiment.arms, columns);
    let rows = experiment.arms.iter().filter(|arm| !arm.figures.is_empty()).map(|arm| {
        let figures = columns.iter().map(|(q, decimals)| Cell::estimate(arm.figure(*q), *decimals));
        [Cell::name(title(arm))].into_iter().chain(figures).collect()
    });
    let titles = columns.iter().map(|(quantity, _)| quantity.title());
    let header: Vec<&str> = ["arm"].into_iter().chain(titles).collect();
    (!columns.is_empty()).then(|| table(caption, &header, rows.collect()))?
}

fn texts(page: &Page) -> Option<Section> {
    let shaded = page.extras.texts.iter().map(|text| {
        let credits = text.credits.iter().map(|credits| {
            let tokens = text.by_token.tokens.iter().zip(credits).enumerate();
            let pieces = tokens.map(|(i, (token, &credit))| Piece {
                text: token.text.clone(),
                value: Some(credit),
                repeated: is_repeated(text, i),
            });
            ShadedRow::new("true credit", pieces.collect())
        });
        let rows = [
            ShadedRow::new("segment rewards", pieces(text, &text.by_segment)),
            ShadedRow::new("token rewards", pieces(text, &text.by_token)),
        ];
        let title = match text.repeats.len() {
            0 => "A normal response",
            _ => "The same with a repetition",
        };
        Block::Shaded {
            title: title.into(),
            prompt: text.by_segment.prompt.clone(),
            rows: rows.into_iter().chain(credits).collect(),
        }
    });
    let words = text(
        "The same text as two reward models see it: the paper's figure 3. Blue is a normalized reward above 0, orange \
         with a dotted line one below, the stronger the farther from it; the figure below each piece says how far. \
         Shades are relative to the strongest of their row. What is said again is in italics.",
    );
    Section::new("texts", "Rewards in texts", [words].into_iter().chain(shaded).collect())
}

fn is_repeated(text: &ShadedText, token: usize) -> bool {
    text.repeats.iter().any(|range| range.contains(&token))
}

/// A response's segments with their rewards, and between them the tokens that are in none.
fn pieces(text: &ShadedText, shown: &SegmentedText) -> Vec<Piece> {
    let joined = |range: Range<usize>| {
        let tokens = shown.tokens.get(range).unwrap_or_default();
        tokens.iter().map(|token| token.text.as_str()).collect::<String>()
    };
    let piece = |range: Range<usize>, value| Piece {
        repeated: is_repeated(text, range.start),
        text: joined(range),
        value,
    };
    let mut pieces = Vec::new();
    let mut next = 0;
    for segment in &shown.segments {
        if next < segment.start {
            pieces.push(piece(next..segment.start, None));
        }
        pieces.push(piece(segment.start..segment.end, segment.normalized.or(segment.reward)));
        next = segment.end;
    }
    if next < shown.tokens.len() {
        pieces.push(piece(next..shown.tokens.len(), None)); // EOS is in no segment
    }
    pieces
}

fn ground_truth(page: &Page) -> Option<Section> {
    let experiment = main_experiment(page.analysis)?;
    let boundaries = sweep(page.analysis).and_then(|arms| {
        let quantities = [Quantity::BoundaryPrecision, Quantity::BoundaryRecall, Quantity::BoundaryF1];
        let plots = over_cutoffs(&arms, "Segment starts against phrase starts", &quantities);
        let legend = quantities.iter().enumerate();
        let legend = legend.map(|(i, q)| Entry::new(Style::Series(i), q.title())).collect();
        figure(
            "What segmentation finds of the true phrases, by cutoff: precision, recall and F1 of segment starts, \
             means and 95 % intervals over seeds.",
            legend,
            plots.into_iter().collect(),
        )
    });
    let learned = arms_only(
        experiment,
        "What reward models know of the truth: Spearman's ρ of learned with true rewards, by what an action is; \
         boundaries: segment starts against true phrase starts.",
        &[
            (Quantity::RankCorrelation, 2),
            (Quantity::ClauseCorrelation, 2),
            (Quantity::TopicCorrelation, 2),
            (Quantity::QualityCorrelation, 2),
            (Quantity::BoundaryPrecision, 2),
            (Quantity::BoundaryRecall, 2),
            (Quantity::BoundaryF1, 2),
        ],
    );
    let advantage = arms_only(
        experiment,
        "Where the advantage lands: the share of Σ |A| on tokens that caused a reward, beside the share of such \
         tokens, and the correlation of a token's advantage with its credit; means over iterations.",
        &[
            (Quantity::CauseAdvantageShare, 3),
            (Quantity::CauseTokenShare, 3),
            (Quantity::CreditCorrelation, 3),
        ],
    );
    let curves = groups(experiment).into_iter().filter_map(|group| {
        let columns = [
            (Column::CauseAdvantageShare, "Share of Σ |A| on causes"),
            (Column::CauseTokenShare, "Share of tokens that are causes"),
            (Column::CreditCorrelation, "Correlation of advantage and credit"),
        ];
        let plots = columns.iter().filter_map(|&(column, y)| group.plot(column, y)).collect();
        let caption = "Credit during training: where the advantage lands. Lines are means over seeds, bands their \
                       95 % intervals.";
        figure(caption, group.legend(), plots)
    });
    let blocks: Vec<Block> =
        [boundaries, learned, advantage].into_iter().flatten().chain(curves).collect();
    let truth = arms(page.analysis).any(|arm| {
        [Quantity::BoundaryF1, Quantity::RankCorrelation, Quantity::CauseAdvantageShare]
            .iter()
            .any(|&quantity| arm.figure(quantity).is_some())
    });
    truth.then(|| Section::new("truth", "Against the known truth", blocks))?
}

fn experiments(page: &Page, truth: bool) -> Option<Section> {
    let columns = [
        (Quantity::Gold, 2),
        (Quantity::SequenceScore, 2),
        (Quantity::WinRate, 2),
        (Quantity::LengthControlledWinRate, 2),
        (Quantity::Kl, 2),
        (Quantity::Tokens, 1),
        (Quantity::Area, 2),
        (Quantity::BestGold, 2),
        (Quantity::GoldAtOneNat, 2),
        (Quantity::GoldAtTwoNats, 2),
        (Quantity::RewardAccuracy, 3),
        (Quantity::RankCorrelation, 2),
    ];
    let columns = columns.iter().filter(|(q, _)| *q != Quantity::SequenceScore || !truth);
    let columns: Vec<Shown> = columns.copied().collect();
    let mut blocks = Vec::new();
    for experiment in &page.analysis.experiments {
        let note = experiment.note.as_ref().map_or(String::new(), |note| format!(" {note}"));
        let caption =
            format!("Mean ± standard error over seeds, below it the 95 % interval.{note}");
        let Some(arms) = arms_table(experiment, &caption, &columns, &[]) else { continue };
        blocks.push(heading(&experiment.title));
        blocks.push(arms);
        blocks.extend(differences(experiment, truth));
    }
    Section::new("experiments", "Every experiment", blocks)
}

fn differences(experiment: &Experiment, truth: bool) -> Option<Block> {
    let score = if truth { Quantity::Gold } else { Quantity::SequenceScore };
    let columns = [
        (score, 2),
        (Quantity::WinRate, 3),
        (Quantity::LengthControlledWinRate, 3),
        (Quantity::GoldAtTwoNats, 2),
        (Quantity::Area, 2),
        (Quantity::Tokens, 1),
    ];
    let known = |quantity| experiment.differences.iter().any(|d| d.figures.contains_key(&quantity));
    let columns: Vec<Shown> =
        columns.into_iter().filter(|&(quantity, _)| known(quantity)).collect();
    let shown = experiment.differences.iter().filter(|d| !d.figures.is_empty());
    let rows: Vec<Vec<Cell>> = shown
        .map(|difference| {
            let of = |&(quantity, decimals): &Shown| {
                Cell::difference(difference.figures.get(&quantity), decimals)
            };
            let name = Cell::name(format!("{} − {}", difference.arm, difference.baseline));
            let seeds = difference.figures.values().map(|estimate| estimate.n).max().unwrap_or(0);
            [name, Cell::number(seeds.to_string())]
                .into_iter()
                .chain(columns.iter().map(of))
                .collect()
        })
        .collect();
    let header = ["pair", "seeds"].map(str::to_owned).into_iter();
    let header =
        header.chain(columns.iter().map(|(quantity, _)| format!("Δ {}", quantity.title())));
    let summary = Some(format!("Differences paired by seed: {}", count(rows.len(), "pair")));
    let caption = "Mean difference over the seeds that both finished ± standard error, below it the 95 % interval; \
                   bold where that excludes 0. With many pairs some exclude 0 by chance: 1 in 20 where nothing \
                   differs.";
    let (caption, header) = (caption.into(), header.collect());
    (!rows.is_empty()).then_some(Block::Table { caption, header, rows, summary })
}

fn problems(page: &Page) -> Option<Section> {
    let mut rows = Vec::new();
    let mut seen = Vec::new();
    for experiment in &page.analysis.experiments {
        for arm in &experiment.arms {
            for problem in &arm.problems {
                let same = (problem.seed, &problem.error);
                if !seen.contains(&same) {
                    seen.push(same);
                    rows.push(vec![
                        Cell::name(format!("{}: {}", experiment.name, arm.name)),
                        Cell::number(problem.seed.to_string()),
                        Cell::words(problem.stage.as_deref().unwrap_or("reading its results")),
                        Cell::words(&problem.error),
                    ]);
                }
            }
        }
    }
    let failed = table(
        "Cells that gave no figures; nothing above counts them.",
        &["arm", "seed", "stage", "error"],
        rows,
    );
    let pending = page.analysis.experiments.iter().flat_map(|experiment| {
        let waiting = experiment.arms.iter().filter(|arm| !arm.seeds.pending.is_empty());
        waiting.map(|arm| {
            let seeds: Vec<String> = arm.seeds.pending.iter().map(u64::to_string).collect();
            vec![
                Cell::name(format!("{}: {}", experiment.name, arm.name)),
                Cell::words(seeds.join(", ")),
                Cell::number(arm.seeds.finished.len().to_string()),
            ]
        })
    });
    let pending = table(
        "Cells that are still to run: the figures above are of the others.",
        &["arm", "seeds to run", "seeds finished"],
        pending.collect(),
    );
    let blocks = [failed, pending];
    Section::new("problems", "Cells without figures", blocks.into_iter().flatten().collect())
}

fn samples(page: &Page) -> Option<Section> {
    let samples = page.extras.samples.iter().map(|sample| {
        let gold = |which: usize| {
            let gold = sample.gold.map(|gold| gold[which]);
            gold.map_or(String::new(), |gold| format!(" (gold {gold:+.1})").replace('-', "−"))
        };
        Block::Sample {
            title: format!("{}, seed {}", sample.arm, sample.seed),
            prompt: sample.prompt.clone(),
            answers: vec![
                (format!("SFT model{}", gold(0)), sample.before.clone()),
                (format!("after PPO{}", gold(1)), sample.after.clone()),
            ],
        }
    });
    let words = text(
        "The first held-out prompt, answered by the SFT model and by the policy that it became.",
    );
    Section::new("samples", "Before and after", [words].into_iter().chain(samples).collect())
}

fn files(page: &Page) -> Option<Section> {
    let files: Vec<(String, String)> =
        page.extras.files.iter().map(|link| (link.file.clone(), link.what.clone())).collect();
    let files = (!files.is_empty()).then_some(Block::Files { files });
    Section::new("files", "Every number, for programs", files.into_iter().collect())
}

/// What the tables' columns mean.
fn terms(page: &Page) -> Option<Section> {
    let known = |q: &&Quantity| arms(page.analysis).any(|arm| arm.figure(**q).is_some());
    let facts = Quantity::ALL.iter().filter(known);
    let facts: Vec<(String, String)> =
        facts.map(|q| (q.title().to_owned(), q.description().to_owned())).collect();
    let facts = (!facts.is_empty()).then_some(Block::Facts { facts });
    Section::new("terms", "Terms", facts.into_iter().collect())
}
