//! What the report shows besides figures, from the first seed of a grid that has it.

use std::collections::BTreeSet;

use super::page::{
    ArmAlarm, ArmLog, ArmTime, Extras, Fit, Link, SampleText, SegmentLengths, StageTime,
};
use super::texts::texts;
use crate::equations::normalizer::Normalizer;
use crate::equations::segmentation::Rule;
use crate::grid::plan::{Plan, PlannedCell};
use crate::grid::results::Results;
use crate::grid::schedule::Took;
use crate::model::CausalLm;
use crate::model::generate::Rows;
use crate::run::folder::read_json;
use crate::run::{Error, Stage};
use crate::stage::evaluate::{self, Timing};
use crate::stage::fit_normalizer::NormalizerFile;
use crate::stage::log::{StageLog, alarms};
use crate::stage::preferences::{self, Pair};
use crate::stage::score::segmenter;
use crate::stage::task::Task;
use crate::statistics::mean;
use crate::systems::Method;

/// The files beside a report, and their content.
const FILES: [(&str, &str); 9] = [
    ("results.json", "every cell with its figures, its curve and its evaluations"),
    ("analysis.json", "means, intervals, paired differences and orderings"),
    ("extras.json", "normalizer fits, segment lengths, texts and samples of one seed"),
    ("tables.md", "the tables in Markdown"),
    ("cells.csv", "a line a cell"),
    ("curves.csv", "a line an iteration of each cell"),
    ("arms.csv", "a line a quantity of each arm"),
    ("differences.csv", "a line a quantity of each pair of arms"),
    ("orderings.csv", "a line an ordering that the paper's tables claim"),
];

/// Collects what the report shows besides figures; of a grid also what the models have to read again.
pub fn extras(plan: &Plan, results: &Results, of: Source) -> Result<Extras, Error> {
    let is_grid = of == Source::Grid;
    let settings = plan.cells.first().map(|cell| {
        toml::to_string(&cell.context.settings).expect("settings are a table of plain values")
    });
    Ok(Extras {
        settings,
        times: times(plan),
        fits: fits(plan, results)?,
        segment_lengths: if is_grid { segment_lengths(plan, results)? } else { Vec::new() },
        training: arm_times(plan, training),
        decoding: arm_times(plan, |cell| Timing::a_response(&cell.context.dir(Stage::Evaluate))),
        texts: if is_grid { shaded(plan, results)? } else { Vec::new() },
        logs: logs(plan, of),
        alarms: alarms_of(plan),
        refresh: None,
        samples: samples(plan, results)?,
        files: FILES.map(|(file, what)| Link { file: file.into(), what: what.into() }).into(),
    })
}

/// What is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The cells of a grid.
    Grid,
    /// Single stages, each with its own command.
    Stages,
}

impl PlannedCell {
    /// The arm's name.
    fn arm_name(&self, plan: &Plan) -> String {
        plan.grid.experiments[self.arm[0]].arms[self.arm[1]].name.clone()
    }
}

/// The logs of cells that are not finished; of single stages those of all.
fn logs(plan: &Plan, of: Source) -> Vec<ArmLog> {
    let mut found = Vec::new();
    for cell in &plan.cells {
        if of == Source::Grid && plan.tasks.all()[cell.last].is_finished() {
            continue;
        }
        let mut stages = Vec::new();
        for stage in cell.context.stages() {
            // A stage that is running may be in the middle of a line.
            let log = StageLog::read(&cell.context, stage).unwrap_or_default();
            if !log.is_empty() {
                stages.push((stage.command().to_owned(), log));
            }
        }
        if !stages.is_empty() {
            found.push(ArmLog { arm: cell.arm_name(plan), seed: cell.seed, stages });
        }
    }
    found
}

/// The alarms of all cells, those of a stage that several share once.
fn alarms_of(plan: &Plan) -> Vec<ArmAlarm> {
    let (mut found, mut seen) = (Vec::new(), BTreeSet::new());
    for cell in &plan.cells {
        for stage in cell.context.stages() {
            if !seen.insert(cell.context.dir(stage)) {
                continue;
            }
            // What cannot be read leaves its cell out, and is named there.
            let raised = alarms(&cell.context, stage).unwrap_or_default().into_iter();
            found.extend(raised.map(|raised| ArmAlarm {
                arm: cell.arm_name(plan),
                seed: cell.seed,
                stage: stage.command().to_owned(),
                raised,
            }));
        }
    }
    found
}

fn times(plan: &Plan) -> Vec<StageTime> {
    let tasks = plan.tasks.all();
    let time = |stage: Stage| {
        let of_stage = tasks.iter().filter(|task| task.stage == stage);
        let took: Vec<f64> =
            of_stage.filter_map(|task| Some(Took::read(&task.dir)?.seconds)).collect();
        let (runs, seconds) = (took.len(), took.iter().sum());
        StageTime { stage: stage.command().into(), runs, seconds }
    };
    Stage::ALL.map(time).into_iter().filter(|time| time.runs > 0).collect()
}

impl Plan {
    /// Each arm of an experiment with its first cell that has figures.
    fn arms(&self, results: &Results, experiment: usize) -> Vec<(&str, &PlannedCell)> {
        let arms = self.grid.experiments[experiment].arms.iter().zip(&self.numbers[experiment]);
        arms.filter_map(|(arm, numbers)| {
            let number =
                numbers.iter().find(|&&number| results.cells[number].figures().is_some())?;
            Some((arm.name.as_str(), &self.cells[*number]))
        })
        .collect()
    }

    fn experiments(&self) -> std::ops::Range<usize> {
        0..self.grid.experiments.len()
    }
}

/// A time of each arm, by its cells, where it is known.
fn arm_times(plan: &Plan, of: impl Fn(&PlannedCell) -> Option<f64>) -> Vec<ArmTime> {
    let mut found = Vec::new();
    for (experiment, numbers) in plan.grid.experiments.iter().zip(&plan.numbers) {
        for (arm, cells) in experiment.arms.iter().zip(numbers) {
            let seconds: Vec<f64> =
                cells.iter().filter_map(|&cell| of(&plan.cells[cell])).collect();
            if !seconds.is_empty() {
                let (experiment, arm) = (experiment.name.clone(), arm.name.clone());
                found.push(ArmTime { experiment, arm, seconds: mean(seconds.into_iter()) });
            }
        }
    }
    found
}

/// The time that the training of a cell's policy took.
fn training(cell: &PlannedCell) -> Option<f64> {
    let stage = cell.context.policy_stage();
    let trained = cell.context.stages().any(|of| of == stage);
    Some(Took::read(&cell.context.dir(stage)).filter(|_| trained)?.seconds)
}

/// Whether a normalizer is fitted for a cell.
fn has_normalizer(cell: &PlannedCell) -> bool {
    cell.context.stages().any(|stage| stage == Stage::FitNormalizer)
}

/// The fits by location, of the first experiment that has some.
fn fits(plan: &Plan, results: &Results) -> Result<Vec<Fit>, Error> {
    for experiment in plan.experiments() {
        let mut fits = Vec::new();
        for (arm, cell) in plan.arms(results, experiment) {
            if !has_normalizer(cell) {
                continue;
            }
            let path = cell.context.dir(Stage::FitNormalizer).join("normalizer.json");
            let file: NormalizerFile = read_json(&path, "ablate")?;
            if matches!(file.normalizer, Normalizer::LocationAware { .. }) {
                fits.push(Fit { arm: arm.to_owned(), seed: cell.seed, file });
            }
        }
        if !fits.is_empty() {
            return Ok(fits);
        }
    }
    Ok(Vec::new())
}

/// For each cutoff of an arm, the lengths of the segments in held-out pairs.
fn segment_lengths(plan: &Plan, results: &Results) -> Result<Vec<SegmentLengths>, Error> {
    let mut cells: Vec<(Rule, &PlannedCell)> = Vec::new();
    for (_, cell) in plan.experiments().flat_map(|experiment| plan.arms(results, experiment)) {
        let settings = &cell.context.settings;
        let actions = settings.method.policy_rule(settings.segmentation.entropy_cutoff);
        let entropy = matches!(actions, Rule::Entropy { .. });
        if entropy && !cells.iter().any(|(known, _)| *known == actions) {
            cells.push((actions, cell));
        }
    }
    let Some(&(_, first)) = cells.first() else { return Ok(Vec::new()) };
    let context = &first.context;
    let reference = context.reference_dir()?;
    let task = Task::open(context, Some(&reference))?;
    context.check_device()?;
    let (model, _) = CausalLm::load(&reference, context.frozen())?;
    let pairs = preferences::load(context, &task, false)?.0.held_out;
    let pairs = pairs.read(0..pairs.len().min(context.settings.normalizer.pairs))?;
    let rows: Vec<(&[u32], &[u32])> = pairs.iter().flat_map(Pair::rows).collect();
    let rows_at_once = context.settings.ppo.rows_at_once;
    let views = Rows::new(&rows, rows_at_once).view(&model, &context.stop)?;
    let mut found = Vec::new();
    for (actions, cell) in cells {
        let (stops, ends) = (task.tokenizer.stop_tokens(), task.tokenizer.sentence_ends());
        let cutter = segmenter(&cell.context.settings, actions, ends, stops);
        let mut counts = Vec::new();
        for ((_, response), view) in rows.iter().zip(&views) {
            for segment in cutter.cut(response, &view.entropies)? {
                counts.resize(counts.len().max(segment.len()), 0);
                counts[segment.len() - 1] += 1;
            }
        }
        let cutoff = cell.context.settings.segmentation.entropy_cutoff;
        found.push((
            cutoff,
            SegmentLengths { arm: format!("cutoff {cutoff}"), seed: first.seed, counts },
        ));
    }
    found.sort_by(|(a, _), (b, _)| a.total_cmp(b));
    Ok(found.into_iter().map(|(_, lengths)| lengths).collect())
}

/// Figure 3 of the first experiment that has both a segment and a token arm with one seed.
fn shaded(plan: &Plan, results: &Results) -> Result<Vec<super::texts::ShadedText>, Error> {
    for experiment in plan.experiments() {
        let arms = plan.arms(results, experiment);
        let of = |method| {
            let of_method = |cell: &&PlannedCell| cell.context.settings.method == method;
            arms.iter().map(|(_, cell)| *cell).find(|cell| of_method(cell) && has_normalizer(cell))
        };
        if let (Some(segment), Some(token)) = (of(Method::SEGMENT), of(Method::TOKEN))
            && segment.seed == token.seed
        {
            return texts(&segment.context, &token.context);
        }
    }
    Ok(Vec::new())
}

/// A response of each arm before and after training, of the first experiment that has some.
fn samples(plan: &Plan, results: &Results) -> Result<Vec<SampleText>, Error> {
    for experiment in plan.experiments() {
        let mut samples = Vec::new();
        for (arm, cell) in plan.arms(results, experiment) {
            let context = &cell.context;
            let summary: evaluate::Summary =
                read_json(&context.dir(Stage::Evaluate).join("summary.json"), "ablate")?;
            let task = Task::open(context, Some(&context.reference_dir()?))?;
            let evaluate::Sample { prompt, before, after } = summary.sample;
            let text = |tokens: &[u32]| task.tokenizer.decode(tokens).trim().to_owned();
            let gold = |response: &[u32]| task.gold(&prompt, response).map(|gold| gold.reward());
            samples.push(SampleText {
                arm: arm.to_owned(),
                seed: cell.seed,
                prompt: text(&prompt),
                before: text(&before),
                after: text(&after),
                gold: gold(&before).zip(gold(&after)).map(|(before, after)| [before, after]),
            });
        }
        if !samples.is_empty() {
            return Ok(samples);
        }
    }
    Ok(Vec::new())
}
