//! The progress of a grid, and the time left as estimated from its finished stages.

use std::path::Path;
use std::time::Duration;

use super::plan::{Plan, PlannedCell};
use super::results::State;
use super::schedule::{Task, Took};
use crate::run::Stage;
use crate::run::folder::FAILED;
use crate::run::lock::is_held;
use crate::run::progress::{Gauge, Progress};
use crate::settings::Settings;
use crate::table::markdown;

/// In a terminal, a progress bar for each experiment and one for the grid; elsewhere, a line for each cell.
pub(super) struct Board<'a> {
    plan: &'a Plan,
    jobs: usize,
    progress: &'a Progress,
    experiments: Vec<Gauge>,
    all: Gauge,
    finished: usize,
}

impl<'a> Board<'a> {
    pub(super) fn new(plan: &'a Plan, jobs: usize) -> Self {
        let progress = &plan.cells[0].context.progress;
        let experiments = plan.grid.experiments.iter().zip(&plan.numbers);
        let experiments = experiments
            .map(|(e, arms)| progress.gauge(&e.name, arms.iter().map(Vec::len).sum()))
            .collect();
        let all = progress.gauge("all cells", plan.cells.len());
        progress.line(&format!("{} with {jobs} jobs", plan.outlook(jobs)));
        let mut board = Self { plan, jobs, progress, experiments, all, finished: plan.finished() };
        board.update();
        board
    }

    pub(super) fn update(&mut self) {
        for (gauge, arms) in self.experiments.iter().zip(&self.plan.numbers) {
            let cells = arms.iter().flatten().map(|&number| &self.plan.cells[number]);
            gauge.set(cells.filter(|cell| self.plan.is_finished(cell)).count(), String::new());
        }
        let done = self.plan.finished();
        self.all.set(done, format!("{} left", self.plan.time_left(self.jobs)));
        if done > self.finished && !self.progress.is_terminal() {
            self.progress.line(&self.plan.outlook(self.jobs));
        }
        self.finished = done;
    }
}

/// The columns of [`Plan::status`].
const STATES: [&str; 5] = ["finished", "running", "begun", "waiting", "failed"];

impl Plan {
    fn is_finished(&self, cell: &PlannedCell) -> bool {
        self.tasks.all()[cell.last].is_finished()
    }

    fn finished(&self) -> usize {
        self.cells.iter().filter(|cell| self.is_finished(cell)).count()
    }

    /// How long the unfinished stages will take with `jobs` of them at a time.
    fn time_left(&self, jobs: usize) -> String {
        let tasks = self.tasks.all();
        let rates = Rates::measured(tasks);
        let left = tasks.iter().filter(|task| !task.is_finished());
        time(left.map(|task| rates.seconds(task)).sum::<f64>() / jobs as f64)
    }

    fn outlook(&self, jobs: usize) -> String {
        let (finished, all, left) = (self.finished(), self.cells.len(), self.time_left(jobs));
        format!("{finished} of {all} cells finished, about {left} left")
    }

    /// Each cell with the stages that no cell before it has, and how long they will take.
    pub fn list(&self, jobs: usize) -> String {
        let tasks = self.tasks.all();
        let rates = Rates::measured(tasks);
        let mut counted = vec![false; tasks.len()];
        let mut row = |cell: &PlannedCell| {
            let (mut stages, mut seconds) = (Vec::new(), 0.0);
            for number in self.tasks.chain(cell.last) {
                let task = &tasks[number];
                if !task.is_finished() && !std::mem::replace(&mut counted[number], true) {
                    stages.push(task.stage.command());
                    seconds += rates.seconds(task);
                }
            }
            let experiment = &self.grid.experiments[cell.arm[0]];
            let (experiment, arm) = (&experiment.name, &experiment.arms[cell.arm[1]].name);
            let (seed, id) = (cell.seed.to_string(), cell.id.clone());
            let stages = if stages.is_empty() { "finished".into() } else { stages.join(" ") };
            vec![experiment.clone(), arm.clone(), seed, id, time(seconds), stages]
        };
        let rows: Vec<Vec<String>> = self.cells.iter().map(&mut row).collect();
        let header = ["experiment", "arm", "seed", "cell", "time", "stages of its own"];
        let named: usize = self.numbers.iter().flatten().map(Vec::len).sum();
        format!(
            "{}\n{} with {jobs} jobs; {} more cells of the experiments are the same as these",
            markdown(&header, &rows),
            self.outlook(jobs),
            named - self.cells.len()
        )
    }

    /// How many of each arm's cells are in each state, and what went wrong.
    pub fn status(&self, jobs: usize) -> String {
        let mut rows = Vec::new();
        for (experiment, numbers) in self.grid.experiments.iter().zip(&self.numbers) {
            for (arm, numbers) in experiment.arms.iter().zip(numbers) {
                let states: Vec<&str> =
                    numbers.iter().map(|&n| self.state(&self.cells[n])).collect();
                let count = |state| match states.iter().filter(|&&of| of == state).count() {
                    0 => String::new(),
                    n => n.to_string(),
                };
                let names = [experiment.name.clone(), arm.name.clone()];
                rows.push(names.into_iter().chain(STATES.map(count)).collect());
            }
        }
        let header = [&["experiment", "arm"], &STATES[..]].concat();
        let mut text =
            format!("{}\n{} with {jobs} jobs", markdown(&header, &rows), self.outlook(jobs));
        for cell in self.results().cells {
            match cell.state {
                State::Failed { stage, error } => {
                    text += &format!("\ncell {}: {stage}: {error}", cell.id);
                }
                State::Corrupt { error } => text += &format!("\ncell {}: {error}", cell.id),
                _ => {}
            }
        }
        text
    }

    /// One of [`STATES`], without reading results.
    fn state(&self, cell: &PlannedCell) -> &'static str {
        let chain = self.tasks.chain(cell.last);
        let any = |of: &dyn Fn(&Path) -> bool| {
            chain.iter().any(|&number| of(&self.tasks.all()[number].dir))
        };
        match () {
            () if self.is_finished(cell) => "finished",
            () if any(&is_held) => "running",
            () if any(&|dir| dir.join(FAILED).exists()) => "failed",
            () if any(&Path::exists) => "begun",
            () => "waiting",
        }
    }
}

/// Seconds for a unit of [`work`] on the embedded task, on one core of an AMD EPYC with AVX-512 (see
/// `experiments/LOG.md`): used until a stage of the kind is finished.
fn usual_rate(stage: Stage) -> f64 {
    match stage {
        Stage::Sft => 1.1e-3,
        Stage::Preferences => 1.3e-3,
        Stage::TrainReward => 4.5e-3,
        Stage::FitNormalizer => 2.5e-3,
        Stage::Ppo => 5.5e-3,
        Stage::Dpo => 4.5e-3,
        Stage::Evaluate => 5.0e-3,
    }
}

/// Roughly the sequences that a stage reads or writes: its time is proportional to them.
fn work(stage: Stage, settings: &Settings) -> f64 {
    let task = &settings.task;
    let evaluation = settings.evaluation.prompts * settings.evaluation.samples;
    let sequences = match stage {
        Stage::Sft => task.letters * settings.sft.epochs,
        Stage::Preferences => task.pairs + task.held_out_pairs,
        Stage::TrainReward => task.pairs * settings.reward.epochs + task.held_out_pairs,
        Stage::FitNormalizer => settings.normalizer.pairs,
        Stage::Ppo => {
            let ppo = &settings.ppo;
            let evaluations = 1 + ppo.iterations.div_ceil(ppo.evaluate_every);
            ppo.iterations * ppo.rollouts * (1 + ppo.epochs) + evaluations * evaluation
        }
        Stage::Dpo => task.pairs * settings.dpo.epochs + task.held_out_pairs,
        Stage::Evaluate => 2 * evaluation,
    };
    sequences as f64
}

/// Seconds for a unit of work, stage by stage.
struct Rates([f64; Stage::ALL.len()]);

impl Rates {
    /// The rates of the finished tasks, or the usual one where no stage of the kind is finished.
    fn measured(tasks: &[Task]) -> Self {
        Self(Stage::ALL.map(|stage| {
            let finished = tasks.iter().filter(|task| task.stage == stage && task.is_finished());
            let took = finished.filter_map(|task| {
                Some((Took::read(&task.dir)?.seconds, work(stage, &task.context.settings)))
            });
            let (seconds, units) =
                took.fold((0.0, 0.0), |(s, u), (seconds, units)| (s + seconds, u + units));
            if units > 0.0 { seconds / units } else { usual_rate(stage) }
        }))
    }

    /// The time that a whole task takes.
    fn seconds(&self, task: &Task) -> f64 {
        self.0[task.stage as usize] * work(task.stage, &task.context.settings)
    }
}

fn time(seconds: f64) -> String {
    let seconds = Duration::from_secs_f64(seconds.clamp(0.0, 1e9)).as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}
