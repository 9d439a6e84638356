//! The content of the page, from results, statistics and extras: one function for each section.

mod comparison;
mod logs;
mod models;
mod training;

use super::view::{Block, Cell, Drawing, Entry, Section, View};
use super::{Page, SampleText};
use crate::grid::analysis::{Analysis, Arm, Experiment, Quantity};
use crate::grid::results::State;

/// Everything that the page shows.
pub fn view(page: &Page) -> View {
    let truth = knows_gold(page.analysis);
    let sections = [
        run(page),
        logs::alarms(page),
        comparison::headline(page),
        comparison::claims(page, truth),
        logs::logs(page),
        training::curves(page, truth),
        training::frontier(page, truth),
        models::normalizer(page),
        models::segments(page, truth),
        models::reward_model(page),
        models::texts(page),
        models::ground_truth(page),
        comparison::experiments(page, truth),
        problems(page),
        samples(page),
        files(page),
        terms(page),
    ];
    let experiments = page.analysis.experiments.len();
    let cells = cells(page);
    View {
        title: "Segment-level RLHF: report".into(),
        refresh: page.extras.refresh,
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

/// The experiment of the summary: the first with a table of the paper, else the first.
fn main_experiment(analysis: &Analysis) -> Option<&Experiment> {
    let experiments = &analysis.experiments;
    experiments.iter().find(|e| e.paper_table.is_some()).or(experiments.first())
}

/// An arm's name, marked if the paper has no such arm.
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

/// Seconds in a readable unit.
fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

/// An experiment's note, without Markdown.
fn note(experiment: &Experiment) -> Option<String> {
    experiment.note.as_ref().map(|note| note.replace('`', ""))
}

fn heading(text: impl Into<String>) -> Block {
    Block::Heading { text: text.into() }
}

fn text(text: impl Into<String>) -> Block {
    Block::Text { text: text.into() }
}

fn table(
    caption: impl Into<String>,
    header: &[impl AsRef<str>],
    rows: Vec<Vec<Cell>>,
) -> Option<Block> {
    let whole =
        |title: &_| AsRef::<str>::as_ref(title).replace(" %", "\u{a0}%").replace("(n ", "(n\u{a0}");
    let header: Vec<String> = header.iter().map(whole).collect();
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
            Cell::words(&experiment.title).with_note(note(experiment)),
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

/// A column of a table of arms: the quantity and its decimals.
type Shown = (Quantity, usize);

/// The columns that some arm has, with the counts that differ between arms.
fn known(experiment: &Experiment, columns: &[Shown]) -> Vec<Shown> {
    let wanted: Vec<Quantity> = columns.iter().map(|(quantity, _)| *quantity).collect();
    let decimals = |q| columns.iter().find(|(of, _)| *of == q).map_or(0, |(_, decimals)| *decimals);
    experiment.columns(&wanted).into_iter().map(|quantity| (quantity, decimals(quantity))).collect()
}

/// An arm's figure; if only some seeds have it, how many do.
fn arm_cell(arm: &Arm, quantity: Quantity, decimals: usize) -> Cell {
    match (arm.of_one(quantity), arm.figure(quantity), arm.reached.get(&quantity)) {
        (Some(one), ..) => Cell::number(one),
        (None, None, Some(seeds)) => {
            let of = arm.seeds.finished.len();
            Cell::number("–").with_note(Some(format!("{} of {of} seeds", seeds.len())))
        }
        (None, estimate, _) => Cell::estimate(estimate, decimals),
    }
}

/// A table of arms without the SFT model and the paper.
fn arms_only(experiment: &Experiment, caption: &str, columns: &[Shown]) -> Option<Block> {
    let columns = known(experiment, columns);
    let rows = experiment.arms.iter().filter(|arm| !arm.figures.is_empty()).map(|arm| {
        let figures =
            columns.iter().map(|(quantity, decimals)| arm_cell(arm, *quantity, *decimals));
        [Cell::name(title(arm))].into_iter().chain(figures).collect()
    });
    let titles = columns.iter().map(|(quantity, _)| experiment.title(*quantity));
    let header: Vec<String> = ["arm".to_owned()].into_iter().chain(titles).collect();
    (!columns.is_empty()).then(|| table(caption, &header, rows.collect()))?
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
    let mut pending = table(
        "Cells that are still to run: the figures above are of the others.",
        &["arm", "seeds to run", "seeds finished"],
        pending.collect(),
    );
    if let Some(Block::Table { rows, summary, .. }) = &mut pending {
        *summary = Some(format!("Still to run: cells of {}", count(rows.len(), "arm")));
    }
    let blocks = [failed, pending];
    Section::new("problems", "Cells without figures", blocks.into_iter().flatten().collect())
}

fn samples(page: &Page) -> Option<Section> {
    let answer = |name: &str, gold: Option<f64>, text: &str| {
        let gold =
            gold.map_or(String::new(), |gold| format!(" (gold {gold:+.1})").replace('-', "−"));
        (format!("{name}{gold}"), text.to_owned())
    };
    // Arms that start from the same SFT model share its response.
    let mut blocks: Vec<(&SampleText, Vec<(String, String)>)> = Vec::new();
    for sample in &page.extras.samples {
        let after = answer(&sample.arm, sample.gold.map(|[_, after]| after), &sample.after);
        let same = |first: &SampleText| {
            (first.seed, &first.prompt, &first.before)
                == (sample.seed, &sample.prompt, &sample.before)
        };
        match blocks.iter_mut().find(|(first, _)| same(first)) {
            Some((_, answers)) => answers.push(after),
            None => {
                let before = sample.gold.map(|[before, _]| before);
                blocks.push((sample, vec![answer("SFT model", before, &sample.before), after]));
            }
        }
    }
    let blocks = blocks.into_iter().map(|(sample, answers)| Block::Sample {
        title: format!("Seed {}", sample.seed),
        prompt: sample.prompt.clone(),
        answers,
    });
    let words = text(
        "The held-out prompt whose score changed by the median, answered by the SFT model and by the policies that it became.",
    );
    Section::new("samples", "Before and after", [words].into_iter().chain(blocks).collect())
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
