//! Arms beside each other and beside the paper: the headline, the orderings, every experiment.

use super::training::series;
use super::{
    Shown, arm_cell, count, figure, heading, known, knows_gold, main_experiment, note, table, text,
    title,
};
use crate::grid::analysis::{
    Arm, BASE, Benchmark, Experiment, Ordering, Outcome, Quantity, Verdict,
};
use crate::report::page::plots::{Layer, Plot, Style};
use crate::report::page::view::{Block, Cell, Drawing, Entry, Section};
use crate::report::page::{ArmTime, Page};
use crate::statistics::Estimate;

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

/// A row for each arm and a column for each quantity, with the SFT model on top and the paper's figures on the right.
fn arms_table(
    experiment: &Experiment,
    caption: &str,
    columns: &[Shown],
    benchmarks: &[Benchmark],
) -> Option<Block> {
    let columns = known(experiment, columns);
    let reported = |arm: &str, b: Benchmark| reported_figure(experiment, arm, b);
    let benchmarks: Vec<Benchmark> = benchmarks
        .iter()
        .copied()
        .filter(|&b| experiment.arms.iter().any(|arm| reported(&arm.name, b).is_some()))
        .collect();
    let paper = |name: &str| {
        let cells = benchmarks.iter().map(|&b| {
            let mut cell = Cell::figure(reported(name, b), b.decimals());
            cell.class = "number paper";
            cell
        });
        cells.collect::<Vec<_>>()
    };
    let row = |name: String, key: &str, n: usize, cell: &dyn Fn(Quantity, usize) -> Cell| {
        let figures = columns.iter().map(|(quantity, decimals)| cell(*quantity, *decimals));
        let head = [Cell::name(name), Cell::number(n.to_string())];
        head.into_iter().chain(figures).chain(paper(key)).collect::<Vec<_>>()
    };
    let base = experiment.base.values().next().map(|estimate| estimate.n);
    let base = base.map(|n| {
        row("SFT model".into(), BASE, n, &|q, d| Cell::estimate(experiment.base.get(&q), d))
    });
    let finished = experiment.arms.iter().filter(|arm| !arm.figures.is_empty());
    let arms = finished.map(|arm| {
        row(title(arm), &arm.name, arm.seeds.finished.len(), &|q, d| arm_cell(arm, q, d))
    });
    let paper_titles = benchmarks.iter().map(|b| format!("paper: {}", b.title()));
    let header: Vec<String> = ["arm", "seeds"]
        .map(str::to_owned)
        .into_iter()
        .chain(columns.iter().map(|(quantity, _)| experiment.title(*quantity)))
        .chain(paper_titles)
        .collect();
    let rows: Vec<_> = base.into_iter().chain(arms).collect();
    table(caption, &header, rows)
}

/// The quantity that judges policies, and what it is.
fn judge(experiment: &Experiment, gold: bool) -> (Quantity, &'static str) {
    let verdict = experiment.arms.iter().any(|arm| arm.figure(Quantity::PassRate).is_some());
    match (verdict, gold) {
        (true, _) => (Quantity::PassRate, "the verdict of the task"),
        (_, true) => (Quantity::Gold, "the gold reward of the task"),
        _ => (Quantity::SequenceScore, "e_φ, the reward model's own score"),
    }
}

/// The columns that judge the policy, then `further` ones; without e_φ if gold is known, and without a pass rate if there
/// is no verdict.
fn judged(experiment: &Experiment, gold: bool, further: &[Shown]) -> Vec<Shown> {
    let verdict = judge(experiment, gold).0 == Quantity::PassRate;
    let columns = [
        (Quantity::PassRate, 2),
        (Quantity::Gold, 2),
        (Quantity::SequenceScore, 2),
        (Quantity::WinRate, 2),
        (Quantity::LengthControlledWinRate, 2),
        (Quantity::Kl, 2),
        (Quantity::Tokens, 1),
    ];
    let columns = columns.iter().filter(|(q, _)| match q {
        Quantity::PassRate => verdict,
        Quantity::SequenceScore => !gold,
        _ => true,
    });
    columns.chain(further).copied().collect()
}

pub(super) fn headline(page: &Page) -> Option<Section> {
    let experiment = main_experiment(page.analysis)?;
    let gold = knows_gold(page.analysis);
    let columns = judged(experiment, gold, &[]);
    let (quantity, judge) = judge(experiment, gold);
    let paper = match experiment.orderings.is_empty() {
        true => "",
        false => {
            " The paper's figures are of other models and other judges: only the order of rows can be compared."
        }
    };
    let caption = format!(
        "{}. On held-out prompts: mean ± standard error over seeds, below it the 95 % interval (Student's t). \
         Responses are judged by {judge}; (n …) is the number of responses of each seed that a win rate is a share of.{paper}",
        experiment.title.trim_end_matches('.')
    );
    let main = arms_table(experiment, &caption, &columns, &Benchmark::ALL);
    let figure = intervals(experiment, quantity);
    Section::new("headline", "Headline", main.into_iter().chain(figure).collect())
}

/// The arms of an experiment below each other in a few quantities.
fn intervals(experiment: &Experiment, first: Quantity) -> Option<Block> {
    let quantities = [first, Quantity::WinRate, Quantity::LengthControlledWinRate];
    let plots = quantities.iter().filter_map(|&quantity| {
        let styles = series(&experiment.arms.iter().collect::<Vec<_>>());
        let arms = styles.iter().zip(&experiment.arms);
        let arms = arms.filter(|(_, arm)| arm.of_one(quantity).is_none());
        let known: Vec<_> =
            arms.filter_map(|(style, arm)| Some((*style, arm, arm.figure(quantity)?))).collect();
        let spreads = known.iter().enumerate().map(|(row, (style, _, of))| {
            let interval = of.interval.unwrap_or([of.mean; 2]);
            Layer::Spread(*style, vec![(row, of.mean, interval)])
        });
        let ends = [0.5, known.len() as f64 + 0.5];
        let base = experiment.base.get(&quantity).map(|base| Layer::Line {
            style: Style::Reference,
            points: ends.iter().map(|&y| (base.mean, y)).collect(),
            marked: false,
        });
        let plot = Plot {
            y: capital(&experiment.title(quantity)),
            description: format!("{} of each arm, with 95 % intervals", quantity.title()),
            rows: known.iter().map(|(_, arm, _)| title(arm)).collect(),
            layers: base.into_iter().chain(spreads).collect(),
            ..Plot::default()
        };
        (!known.is_empty()).then(|| Drawing::of(None, &plot))?
    });
    let caption = "The same as a picture: means and 95 % intervals over seeds, cut where they leave the plot; the dotted line is the SFT model. \
                   Arms whose intervals overlap may still differ, since the same seeds share data and models: the \
                   differences below are paired by seed.";
    figure(caption, vec![Entry::new(Style::Reference, "SFT model")], plots.collect())
}

/// The text with an initial capital, except e_φ.
fn capital(text: &str) -> String {
    let mut characters = text.chars();
    match characters.next() {
        Some(first) if characters.clone().next() != Some('_') => {
            first.to_uppercase().chain(characters).collect()
        }
        _ => text.to_owned(),
    }
}

pub(super) fn claims(page: &Page, truth: bool) -> Option<Section> {
    let mut blocks = Vec::new();
    for experiment in &page.analysis.experiments {
        let orderings = &experiment.orderings;
        let benchmarks = Benchmark::ALL.into_iter();
        let benchmarks: Vec<Benchmark> = benchmarks
            .filter(|b| orderings.iter().flat_map(|o| &o.reported).any(|pair| pair.benchmark == *b))
            .collect();
        let rows = orderings.iter().filter_map(|o| ordering_row(o, &benchmarks, truth)).collect();
        let caption = format!(
            "{}. A row is a pair of which the paper has the first ahead: the verdict of our difference, paired by seed, \
             with its standard error and 95 % interval; then the paper's figures of both.",
            experiment.title.trim_end_matches('.')
        );
        let controlled = experiment.title(Quantity::LengthControlledWinRate);
        let ours = [
            ("by gold".to_owned(), truth),
            ("Δ gold".to_owned(), truth),
            ("by LC win rate".to_owned(), true),
            (format!("Δ {controlled}"), true),
        ];
        let ours = ours.into_iter().filter(|(_, known)| *known).map(|(name, _)| name);
        let paper = benchmarks.iter().map(|b| format!("paper: {}", b.title()));
        let header: Vec<String> =
            ["the paper's ordering".to_owned()].into_iter().chain(ours).chain(paper).collect();
        blocks.extend(table(caption, &header, rows));
    }
    let (by, claims) = match truth {
        true => ("gold reward", page.analysis.claims(|ordering| ordering.gold)),
        false => {
            let claims = page.analysis.claims(|ordering| ordering.length_controlled_win_rate);
            ("the length-controlled win rate", claims)
        }
    };
    let summary = claims.map(|claims| text(format!("{} {}", claims.text(by), equivalence(truth))));
    blocks.splice(0..0, summary);
    Section::new("claims", "The paper's orderings", blocks)
}

/// The meaning of the mark of no difference.
fn equivalence(truth: bool) -> String {
    let margin = |quantity: Quantity| quantity.margin().unwrap_or_default();
    let gold =
        if truth { format!("±{} gold reward or ", margin(Quantity::Gold)) } else { String::new() };
    let rate = margin(Quantity::WinRate);
    format!("≈ marks a difference whose whole interval lies within {gold}±{rate} win rate: none.")
}

/// A difference in a quantity.
fn difference_cell(quantity: Quantity, difference: Option<&Estimate>, decimals: usize) -> Cell {
    let none = difference.is_some_and(|difference| quantity.is_no_difference(difference));
    Cell::difference(difference, decimals, none)
}

fn ordering_row(ordering: &Ordering, benchmarks: &[Benchmark], truth: bool) -> Option<Vec<Cell>> {
    if ordering.gold.is_none() && ordering.length_controlled_win_rate.is_none() {
        return None;
    }
    let paper = benchmarks.iter().map(|benchmark| {
        let pair = ordering.reported.iter().find(|pair| pair.benchmark == *benchmark);
        let text = pair.map_or("–".into(), |pair| {
            let sign = ["<", "=", ">"][(1 + pair.sign.signum()) as usize];
            let decimals = benchmark.decimals();
            format!("{:.decimals$} {sign} {:.decimals$}", pair.better, pair.worse)
        });
        Cell { text, note: None, class: "number paper" }
    });
    let outcome = |quantity, outcome: Option<Outcome>, decimals| match outcome {
        Some(Outcome { difference, verdict }) => {
            [verdict_cell(verdict), difference_cell(quantity, Some(&difference), decimals)]
        }
        None => [Cell::words("–"), Cell::number("–")],
    };
    let pair = Cell::name(format!("{} > {}", ordering.better, ordering.worse));
    let gold = truth.then(|| outcome(Quantity::Gold, ordering.gold, 2)).into_iter().flatten();
    let by_win_rate = ordering.length_controlled_win_rate;
    let controlled = outcome(Quantity::LengthControlledWinRate, by_win_rate, 3);
    Some([pair].into_iter().chain(gold).chain(controlled).chain(paper).collect())
}

/// A verdict, told apart by a sign as well as by colour.
fn verdict_cell(verdict: Verdict) -> Cell {
    let (sign, class) = match verdict {
        Verdict::AsInThePaper => ("●", "verdict yes"),
        Verdict::Undecided => ("○", "verdict perhaps"),
        Verdict::Opposite => ("×", "verdict no"),
    };
    Cell { text: format!("{sign} {}", verdict.title()), note: None, class }
}

pub(super) fn experiments(page: &Page, truth: bool) -> Option<Section> {
    let further = [
        (Quantity::Area, 2),
        (Quantity::GoldAtOneNat, 2),
        (Quantity::RewardAccuracy, 3),
        (Quantity::SequenceRankCorrelation, 2),
        (Quantity::RankCorrelation, 2),
    ];
    let mut blocks = Vec::new();
    for experiment in &page.analysis.experiments {
        let columns = judged(experiment, truth, &further);
        let note = note(experiment).map_or(String::new(), |note| format!(" {note}"));
        let caption =
            format!("Mean ± standard error over seeds, below it the 95 % interval.{note}");
        let Some(arms) = arms_table(experiment, &caption, &columns, &[]) else { continue };
        blocks.push(heading(&experiment.title));
        blocks.push(arms);
        blocks.extend(taken(experiment, &page.extras.training, TRAINING));
        blocks.extend(taken(experiment, &page.extras.decoding, DECODING));
        blocks.extend(differences(experiment, truth));
    }
    Section::new("experiments", "Every experiment", blocks)
}

const TRAINING: (&str, &[Shown]) = (
    "What the training of a policy took: mean ± standard error over seeds. Seconds are wall time of the stage, beside \
     whatever else ran.",
    &[(Quantity::SampledTokens, 1), (Quantity::TrainedTokens, 1)],
);
const DECODING: (&str, &[Shown]) = (
    "What a response took: mean ± standard error over seeds. Seconds are wall time of a batch over its responses, which \
     are written side by side, beside whatever else ran.",
    &[(Quantity::ModelCalls, 1), (Quantity::RewardCalls, 1), (Quantity::DrawnTokens, 1)],
);

/// What the arms with a time took.
fn taken(
    experiment: &Experiment,
    times: &[ArmTime],
    (caption, columns): (&str, &[Shown]),
) -> Option<Block> {
    let columns = known(experiment, columns);
    let row = |arm: &Arm| {
        let of_arm = |time: &&ArmTime| time.experiment == experiment.name && time.arm == arm.name;
        let seconds = times.iter().find(of_arm)?.seconds;
        let seconds = Cell::number(format!("{seconds:.*}", if seconds < 1.0 { 3 } else { 1 }));
        let figures = columns.iter().map(|&(quantity, decimals)| arm_cell(arm, quantity, decimals));
        Some([Cell::name(title(arm))].into_iter().chain(figures).chain([seconds]).collect())
    };
    let titles = columns.iter().map(|(quantity, _)| experiment.title(*quantity));
    let header: Vec<String> =
        ["arm".to_owned()].into_iter().chain(titles).chain(["seconds".to_owned()]).collect();
    table(caption, &header, experiment.arms.iter().filter_map(row).collect())
}

fn differences(experiment: &Experiment, truth: bool) -> Option<Block> {
    let columns = [
        (judge(experiment, truth).0, 2),
        (Quantity::WinRate, 3),
        (Quantity::LengthControlledWinRate, 3),
        (Quantity::GoldAtOneNat, 2),
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
                difference_cell(quantity, difference.figures.get(&quantity), decimals)
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
    let header = header
        .chain(columns.iter().map(|(quantity, _)| format!("Δ {}", experiment.title(*quantity))));
    let summary = Some(format!("Differences paired by seed: {}", count(rows.len(), "pair")));
    let caption = format!(
        "Mean difference over the seeds that both finished ± standard error, below it the 95 % interval; bold where that \
         excludes 0. With many pairs some exclude 0 by chance: 1 in 20 where nothing differs. {}",
        equivalence(truth)
    );
    let header = header.collect();
    (!rows.is_empty()).then_some(Block::Table { caption, header, rows, summary })
}
