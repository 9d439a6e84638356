//! A grid as stored in `RUN/grid.json`: experiments and seeds; its cells, stages and results.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, DirEntry};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::GridError;
use super::file::Planned;
use super::results::{Arm, Cell, Curve, Experiment, FORMAT, Figures, Results, State};
use super::schedule::{Failure, Tasks, write_in_turn};
use crate::data::columns::Columns;
use crate::device::DeviceId;
use crate::run::folder::{FAILED, Origin, read_json, read_json_lines};
use crate::run::lock::Locks;
use crate::run::metrics::IterationMetrics;
use crate::run::progress::Progress;
use crate::run::{Context, FolderError, Layout, Stage};
use crate::stage::fit_normalizer::NormalizerFile;
use crate::stage::online::keep::EvaluationLine;
use crate::stop::Stop;

/// The content of `RUN/grid.json`: everything that the grid's cells depend on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Grid {
    /// The [`FORMAT`] of the program that wrote it.
    pub format: u32,
    pub device: DeviceId,
    /// The seeds, the same for every arm.
    pub seeds: Vec<u64>,
    /// The user's model, instead of the run's own SFT model.
    pub model: Option<PathBuf>,
    pub reward_model: Option<PathBuf>,
    pub data: Option<PathBuf>,
    pub prompts: Option<PathBuf>,
    /// What the columns of the data stand for.
    #[serde(default, skip_serializing_if = "Columns::is_empty")]
    pub columns: Columns,
    pub experiments: Vec<Planned>,
}

/// One arm with one seed, ready to run.
pub struct PlannedCell {
    /// The first experiment that names it, and the arm in it.
    pub arm: [usize; 2],
    pub seed: u64,
    pub id: String,
    pub context: Context,
    /// The number of its last task.
    pub last: usize,
}

/// The cells of a grid, each once, and their stages, each once.
pub struct Plan {
    pub grid: Grid,
    /// The number of each cell, by experiment, arm and seed.
    pub numbers: Vec<Vec<Vec<usize>>>,
    /// The cells, sorted by seed, then in the order of the experiments.
    pub cells: Vec<PlannedCell>,
    pub tasks: Tasks,
}

impl Grid {
    /// The grid in the folder `run`.
    pub fn read(run: &Path) -> Result<Self, GridError> {
        let path = path(run);
        if !path.exists() {
            check_layout(run)?;
            return Err(GridError::NoGrid { dir: run.to_owned() });
        }
        check_format(&path)?;
        Ok(read_json(&path, "ablate")?)
    }

    /// Writes the grid into the folder `run`. The stages of another grid there stay, and both share what they have in
    /// common.
    pub fn write(&self, run: &Path, locks: &Locks) -> Result<(), GridError> {
        check_layout(run)?;
        let path = path(run);
        if path.exists() {
            check_format(&path)?;
        }
        Ok(write_in_turn(&path, self, locks)?)
    }

    /// The cells and stages of the grid in the folder `run`.
    pub fn plan(
        self,
        run: &Path,
        locks: &Locks,
        stop: &Stop,
        progress: &Progress,
    ) -> Result<Plan, GridError> {
        let Some(any) = self.experiments.iter().flat_map(|e| &e.arms).next() else {
            return Err(GridError::NoGrid { dir: run.to_owned() });
        };
        let mut common = Context::new(any.settings.clone(), self.device, run.to_owned())?;
        common.model = self.model.clone();
        common.reward_model = self.reward_model.clone();
        common.data = self.data.clone();
        common.prompts = self.prompts.clone();
        common.columns = self.columns.clone();
        common.locks = locks.clone();
        common.stop = stop.clone();
        common.progress = progress.clone();
        common.layout = Layout::hashed(&common)?;
        let mut plan = Plan {
            numbers: self.experiments.iter().map(|e| vec![Vec::new(); e.arms.len()]).collect(),
            cells: Vec::new(),
            tasks: Tasks::default(),
            grid: self,
        };
        let mut known: HashMap<String, usize> = HashMap::new();
        // Seed by seed, so that a stopped grid has all arms for some seeds.
        for &seed in &plan.grid.seeds {
            for (e, experiment) in plan.grid.experiments.iter().enumerate() {
                for (a, arm) in experiment.arms.iter().enumerate() {
                    let mut context = common.clone();
                    context.settings = arm.settings.clone();
                    context.settings.seed = seed;
                    context.label = match plan.grid.seeds.len() {
                        1 => arm.name.clone(),
                        _ => format!("seed {seed} {}", arm.name),
                    };
                    let id = id(&context);
                    let number = *known.entry(id.clone()).or_insert_with(|| {
                        let last = plan.tasks.add(&context);
                        plan.cells.push(PlannedCell { arm: [e, a], seed, id, context, last });
                        plan.cells.len() - 1
                    });
                    plan.numbers[e][a].push(number);
                }
            }
        }
        Ok(plan)
    }
}

/// The hash in the name of a cell's last folder, which covers all that the cell depends on.
fn id(context: &Context) -> String {
    let dir = context.dir(Stage::Evaluate);
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.rsplit('-').next().unwrap_or_default().to_owned()
}

fn path(run: &Path) -> PathBuf {
    run.join("grid.json")
}

/// Rejects a folder written by an earlier `reproduce`, which kept its stages in `seed-N`.
fn check_layout(run: &Path) -> Result<(), GridError> {
    let is_seed = |entry: DirEntry| {
        let name = entry.file_name();
        let seed = name.to_str().and_then(|name| name.strip_prefix("seed-"));
        entry.path().is_dir() && seed.is_some_and(|seed| seed.parse::<u64>().is_ok())
    };
    let has_seeds =
        fs::read_dir(run).is_ok_and(|mut all| all.any(|entry| entry.is_ok_and(is_seed)));
    let results: Option<serde_json::Map<_, _>> = fs::read(run.join("results.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    match has_seeds || results.is_some_and(|results| !results.contains_key("format")) {
        true => Err(GridError::EarlierLayout { dir: run.to_owned() }),
        false => Ok(()),
    }
}

fn check_format(path: &Path) -> Result<(), GridError> {
    #[derive(Deserialize)]
    struct Head {
        format: u32,
    }
    match read_json::<Head>(path, "ablate")?.format {
        FORMAT => Ok(()),
        found => Err(GridError::OtherFormat { path: path.to_owned(), found }),
    }
}

impl Plan {
    /// The same, with TensorBoard's event files in the folders of its stages.
    #[must_use]
    pub fn with_events(mut self) -> Self {
        self.tasks.write_events();
        self
    }

    /// The grid's results so far.
    pub fn results(&self) -> Results {
        let experiment = |(planned, numbers): (&Planned, &Vec<Vec<usize>>)| Experiment {
            name: planned.name.clone(),
            title: planned.title.clone(),
            note: planned.note.clone(),
            paper_table: planned.paper_table,
            arms: (planned.arms.iter().zip(numbers))
                .map(|(arm, numbers)| Arm {
                    name: arm.name.clone(),
                    ours: arm.ours,
                    method: arm.settings.method,
                    settings: for_json(arm.changes.clone()),
                    cells: numbers.iter().map(|&cell| self.cells[cell].id.clone()).collect(),
                })
                .collect(),
        };
        Results {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            device: self.grid.device.name.name().into(),
            experiments: self.grid.experiments.iter().zip(&self.numbers).map(experiment).collect(),
            cells: self.cells.iter().map(|cell| self.cell(cell)).collect(),
        }
    }

    fn cell(&self, cell: &PlannedCell) -> Cell {
        let (state, stages) = match self.read(cell) {
            finished @ State::Finished(_) => match origins(&cell.context) {
                Ok(stages) => (finished, stages),
                Err(error) => (State::Corrupt { error: error.to_string() }, BTreeMap::new()),
            },
            other => (other, BTreeMap::new()),
        };
        Cell { id: cell.id.clone(), seed: cell.seed, state, stages }
    }

    fn read(&self, cell: &PlannedCell) -> State {
        let tasks = self.tasks.all();
        for number in self.tasks.chain(cell.last) {
            let task = &tasks[number];
            if task.is_finished() {
                continue;
            }
            let failure: Option<Failure> = read_json(&task.dir.join(FAILED), "ablate").ok();
            return match failure {
                Some(Failure { error }) => {
                    State::Failed { stage: task.stage.command().into(), error }
                }
                None => State::Pending,
            };
        }
        match figures(&cell.context) {
            Ok(figures) => State::Finished(Box::new(figures)),
            Err(error) => State::Corrupt { error: error.to_string() },
        }
    }
}

/// The program that made each of a cell's stages.
pub(super) fn origins(context: &Context) -> Result<BTreeMap<String, Origin>, FolderError> {
    let origin = |stage: Stage| Ok((stage.folder().to_owned(), Origin::read(&context.dir(stage))?));
    context.stages().map(origin).collect()
}

/// The figures of a cell whose stages are finished.
fn figures(context: &Context) -> Result<Figures, FolderError> {
    let has = |stage| context.stages().any(|of| of == stage);
    let reward_dir = match &context.reward_model {
        Some(dir) => dir.clone(),
        None => context.dir(Stage::TrainReward),
    };
    let path = context.dir(Stage::FitNormalizer).join("normalizer.json");
    let normalizer =
        has(Stage::FitNormalizer).then(|| read_json::<NormalizerFile>(&path, "ablate"));
    let normalizer = normalizer.transpose()?;
    let normalizer = normalizer.map(|file| NormalizerFile { statistics: Vec::new(), ..file });
    let judged = !context.settings.has_verdict();
    let reward = judged.then(|| read_json(&reward_dir.join("summary.json"), "ablate"));
    let preferences = has(Stage::Preferences)
        .then(|| read_json(&context.dir(Stage::Preferences).join("summary.json"), "ablate"));
    let (mut policy, mut curve, mut evaluations) = (None, Curve::default(), Vec::new());
    if has(Stage::Ppo) {
        let dir = context.dir(Stage::Ppo);
        policy = Some(read_json(&dir.join("summary.json"), "ablate")?);
        let metrics: Vec<IterationMetrics> = read_json_lines(&dir.join("metrics.jsonl"))?;
        curve = Curve::of(&metrics);
        let lines: Vec<EvaluationLine> = read_json_lines(&dir.join("evaluations.jsonl"))?;
        let figures = lines.into_iter().map(|line| EvaluationLine { sample: None, ..line });
        evaluations = figures.collect();
    }
    let dpo = context.dir(Stage::Dpo).join("summary.json");
    let dpo = has(Stage::Dpo).then(|| read_json(&dpo, "ablate")).transpose()?;
    Ok(Figures {
        preferences: preferences.transpose()?,
        reward: reward.transpose()?,
        normalizer,
        policy,
        dpo,
        evaluation: read_json(&context.dir(Stage::Evaluate).join("summary.json"), "ablate")?,
        curve,
        evaluations,
    })
}

/// The table with text instead of the numbers that JSON lacks, such as an infinite cutoff.
fn for_json(mut table: toml::Table) -> toml::Table {
    for (_, value) in table.iter_mut() {
        *value = match std::mem::replace(value, false.into()) {
            toml::Value::Table(inner) => for_json(inner).into(),
            toml::Value::Float(number) if !number.is_finite() => number.to_string().into(),
            other => other,
        };
    }
    table
}
