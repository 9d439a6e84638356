//! How long the stages of a grid will take, from what those took that are finished.

use std::time::Duration;

use super::schedule::{Task, Took};
use crate::run::Stage;
use crate::settings::Settings;

/// Seconds of a unit of [`work`] on the embedded task, one core of an AMD EPYC with AVX-512 (see `experiments/LOG.md`);
/// in force as long as no stage of the kind is finished.
fn usual_rate(stage: Stage) -> f64 {
    match stage {
        Stage::Sft => 1.1e-3,
        Stage::Preferences => 1.3e-3,
        Stage::TrainReward => 4.5e-3,
        Stage::FitNormalizer => 2.5e-3,
        Stage::Ppo => 5.5e-3,
        Stage::Evaluate => 5.0e-3,
    }
}

/// The sequences that a stage reads or writes, roughly: what its time is proportional to.
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
        Stage::Evaluate => 2 * evaluation,
    };
    sequences as f64
}

/// Seconds of a unit of work, stage by stage.
pub struct Rates([f64; Stage::ALL.len()]);

impl Rates {
    /// The rates of the finished tasks; those usual on the embedded task where there is none of a kind.
    pub fn measured(tasks: &[Task]) -> Self {
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

    /// What a task takes from its start to its end.
    pub fn seconds(&self, task: &Task) -> f64 {
        self.0[task.stage as usize] * work(task.stage, &task.context.settings)
    }
}

/// A time on display.
pub fn time(seconds: f64) -> String {
    let seconds = Duration::from_secs_f64(seconds.clamp(0.0, 1e9)).as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}
