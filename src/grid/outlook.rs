//! The progress of a grid, and the time left as estimated from its finished stages.

use std::path::Path;
use std::time::Duration;

use super::plan::{Plan, PlannedCell};
use super::results::State;
use super::schedule::{Task, Took};
use crate::data::letters;
use crate::run::Stage;
use crate::run::folder::FAILED;
use crate::run::lock::is_held;
use crate::run::progress::{Gauge, Progress};
use crate::settings::Settings;
use crate::stage::task::longest_letter_prompt;
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
        progress.line(&plan.outlook(jobs));
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
        let left = rates.sum(tasks.iter().filter(|task| !task.is_finished()));
        time(left.map(|left| left / jobs as f64))
    }

    fn outlook(&self, jobs: usize) -> String {
        let (finished, all) = (self.finished(), self.cells.len());
        let left = match self.time_left(jobs).as_str() {
            "unknown" => "time left unknown until a stage of each kind is finished".to_owned(),
            left if jobs == 1 => format!("about {left} left, one stage at a time"),
            left => format!("about {left} left, {jobs} stages at a time"),
        };
        format!("{finished} of {all} cells finished, {left}")
    }

    /// Each cell with the stages that no cell before it has, and how long they will take.
    pub fn list(&self, jobs: usize) -> String {
        let tasks = self.tasks.all();
        let rates = Rates::measured(tasks);
        let mut counted = vec![false; tasks.len()];
        let mut row = |cell: &PlannedCell| {
            let (mut stages, mut own) = (Vec::new(), Vec::new());
            for number in self.tasks.chain(cell.last) {
                let task = &tasks[number];
                if !task.is_finished() && !std::mem::replace(&mut counted[number], true) {
                    stages.push(task.stage.command());
                    own.push(task);
                }
            }
            let experiment = &self.grid.experiments[cell.arm[0]];
            let (experiment, arm) = (&experiment.name, &experiment.arms[cell.arm[1]].name);
            let (seed, id) = (cell.seed.to_string(), cell.id.clone());
            let stages = if stages.is_empty() { "finished".into() } else { stages.join(" ") };
            let seconds = time(rates.sum(own.into_iter()));
            vec![experiment.clone(), arm.clone(), seed, id, seconds, stages]
        };
        let rows: Vec<Vec<String>> = self.cells.iter().map(&mut row).collect();
        let header = ["experiment", "arm", "seed", "cell", "time", "stages of its own"];
        let named: usize = self.numbers.iter().flatten().map(Vec::len).sum();
        format!(
            "{}\n{}; {} more cells of the experiments are the same as these",
            markdown(&header, &rows),
            self.outlook(jobs),
            named - self.cells.len()
        )
    }

    /// How many of each arm's cells are in each state, and what went wrong.
    pub fn status(&self) -> String {
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
        let mut text = format!("{}\n{}", markdown(&header, &rows), self.outlook(1));
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

/// Seconds for a unit of [`work`] on the embedded task with the default model, on one core of an AMD EPYC with AVX-512 (see
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

/// Roughly the sequences that a stage reads or writes: its time is proportional to them. Of a user's data, whose rows are not
/// counted here, the passes over them.
fn work(stage: Stage, settings: &Settings, own_data: bool) -> f64 {
    let task = &settings.task;
    let evaluation = settings.evaluation.prompts * settings.evaluation.samples;
    let of_data = |rows: usize, passes: usize, held_out: usize| match own_data {
        true => passes,
        false => rows * passes + held_out,
    };
    let sequences = match stage {
        Stage::Sft => of_data(task.letters, settings.sft.epochs, 0),
        Stage::Preferences => task.pairs + task.held_out_pairs,
        Stage::TrainReward => of_data(task.pairs, settings.reward.epochs, task.held_out_pairs),
        Stage::FitNormalizer => settings.normalizer.pairs,
        Stage::Ppo => {
            let ppo = &settings.ppo;
            let evaluations = 1 + ppo.iterations.div_ceil(ppo.evaluate_every);
            ppo.iterations * ppo.rollouts * (1 + ppo.epochs) + evaluations * evaluation
        }
        Stage::Dpo => of_data(task.pairs, settings.dpo.epochs, task.held_out_pairs),
        Stage::Evaluate => 2 * evaluation,
    };
    sequences as f64
}

/// Parameters × tokens of a sequence that a stage writes, relative to those of the defaults on the embedded task.
fn size(settings: &Settings) -> f64 {
    let of = |settings: &Settings| {
        let longest = longest_letter_prompt(settings) + settings.sampling.max_new_tokens;
        let config = settings.model.config(letters::vocabulary().len(), longest);
        config.parameters() as f64 * longest as f64
    };
    of(settings) / of(&Settings::defaults())
}

/// Seconds for a unit of work, stage by stage.
struct Rates([Option<f64>; Stage::ALL.len()]);

impl Rates {
    /// The rates of the finished tasks. Where no stage of the kind is finished, the usual rate times the model's size; of a
    /// user's model or data, whose speed nobody has measured, none.
    fn measured(tasks: &[Task]) -> Self {
        Self(Stage::ALL.map(|stage| {
            let of_kind = tasks.iter().filter(|task| task.stage == stage);
            let took = of_kind
                .clone()
                .filter(|task| task.is_finished())
                .filter_map(|task| Some((Took::read(&task.dir)?.seconds, work_of(task))));
            let (seconds, units) =
                took.fold((0.0, 0.0), |(s, u), (seconds, units)| (s + seconds, u + units));
            if units > 0.0 {
                return Some(seconds / units);
            }
            let any = of_kind.clone().next()?;
            (!is_own(any)).then(|| usual_rate(stage) * size(&any.context.settings))
        }))
    }

    /// The time that a whole task takes, if it can be told.
    fn seconds(&self, task: &Task) -> Option<f64> {
        Some(self.0[task.stage as usize]? * work_of(task))
    }

    /// The time that these tasks take together, if that of each can be told.
    fn sum<'a>(&self, tasks: impl Iterator<Item = &'a Task>) -> Option<f64> {
        tasks.map(|task| self.seconds(task)).sum()
    }
}

/// Whether a task's model or data are the user's.
fn is_own(task: &Task) -> bool {
    task.context.model.is_some() || task.context.data.is_some()
}

fn work_of(task: &Task) -> f64 {
    work(task.stage, &task.context.settings, task.context.data.is_some())
}

fn time(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return "unknown".into() };
    let seconds = Duration::from_secs_f64(seconds.clamp(0.0, 1e9)).as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_run_has_the_usual_rate_and_a_larger_model_takes_longer() {
        assert_eq!(size(&Settings::defaults()), 1.0);
        let larger = ["model.hidden_size=128".to_owned(), "model.layers=4".to_owned()];
        let larger = Settings::resolve(&[], &larger).unwrap();
        assert!((3.0..10.0).contains(&size(&larger)), "{}", size(&larger));
    }

    #[test]
    fn what_cannot_be_told_is_unknown() {
        assert_eq!(time(None), "unknown");
        assert_eq!(
            [time(Some(59.4)), time(Some(90.0)), time(Some(3720.0))],
            ["59 s", "2 min", "1 h 02 min"]
        );
    }
}
