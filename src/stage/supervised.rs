//! The loop of SFT, reward training and the DPO family: epochs of shuffled batches, logged and checkpointed.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::task::permutation;
use crate::model::optim::{StepResult, Trainer};
use crate::model::recompute::Trainable;
use crate::run::alarms::LossWatch;
use crate::run::folder::{StageFolder, read_json_lines};
use crate::run::{Context, Error, Stage};

/// Epochs of batches over a number of items.
pub struct Epochs {
    pub items: usize,
    /// Passes over them.
    pub epochs: usize,
    pub batch: usize,
}

impl Epochs {
    /// Optimizer steps of the whole.
    pub fn steps(&self) -> usize {
        self.epochs * self.steps_an_epoch()
    }

    fn steps_an_epoch(&self) -> usize {
        self.items.div_ceil(self.batch)
    }

    /// The items of each step from `start` on; their order depends on the seed and the epoch alone.
    fn batches(&self, seed: u64, purpose: &str, start: usize) -> impl Iterator<Item = Vec<usize>> {
        let steps = self.steps_an_epoch();
        let epochs = (start / steps..self.epochs).flat_map(move |epoch| {
            let order = permutation(seed, purpose, epoch, self.items);
            order.chunks(self.batch).map(<[usize]>::to_vec).collect::<Vec<_>>()
        });
        epochs.skip(start % steps)
    }
}

/// One line of `metrics.jsonl`.
#[derive(Serialize)]
struct Line<T> {
    step: usize,
    epoch: f64,
    loss: f64,
    learning_rate: f64,
    gradient_norm: f64,
    #[serde(flatten)]
    more: T,
}

/// What alarms read of a line.
#[derive(Deserialize)]
pub struct Loss {
    pub loss: f64,
}

/// What a line of `metrics.jsonl` says of a step where the loss says all.
#[derive(Serialize)]
pub struct NoMore {}

/// One line of `timings.jsonl`.
#[derive(Serialize)]
struct Timing {
    step: usize,
    seconds: f64,
    tokens_per_second: f64,
}

/// Trains to the end, from the folder's last checkpoint if it has one. `accumulate` adds the gradient of
/// the given items to the trainer's, and gives the tokens that they hold, prompts included, and what the log says of the
/// step beside the loss.
pub fn train<M: Trainable, T: Serialize>(
    context: &Context,
    folder: &mut StageFolder,
    of: Stage,
    epochs: &Epochs,
    mut trainer: Trainer<M>,
    mut accumulate: impl FnMut(&mut Trainer<M>, &[usize]) -> Result<(usize, T), Error>,
) -> Result<Trainer<M>, Error> {
    if let Some(checkpoint) = folder.latest()? {
        folder.warnings.drain(..).for_each(|warning| context.progress.line(&warning));
        trainer.resume(checkpoint.step, &checkpoint.dir)?;
    }
    let mut metrics = folder.log("metrics.jsonl", trainer.step())?;
    let mut timings = folder.log("timings.jsonl", trainer.step())?;
    let total = epochs.steps();
    let title = of.command();
    let stage = context.progress.stage(context.title(title), total, trainer.step());
    let mut watch = LossWatch::new(&context.settings.alarms);
    for line in read_json_lines::<Loss>(&folder.dir().join("metrics.jsonl"))? {
        watch.see(line.loss); // what it raises was told then
    }
    let mut last = String::new();
    for batch in epochs.batches(context.settings.seed, title, trainer.step()) {
        let (start, step, rate) = (Instant::now(), trainer.step(), trainer.rate());
        let result = accumulate(&mut trainer, &batch);
        let (tokens, more) = or_save(folder, &trainer, result)?;
        let StepResult { loss, gradient_norm } = trainer.update()?;
        let epoch = (step * epochs.epochs) as f64 / total as f64;
        metrics.write(&Line { step, epoch, loss, learning_rate: rate, gradient_norm, more })?;
        let seconds = start.elapsed().as_secs_f64();
        timings.write(&Timing { step, seconds, tokens_per_second: tokens as f64 / seconds })?;
        last = format!(", last loss {loss:.3}");
        stage.step(format!("loss {loss:.3}"));
        let ends = watch.see(loss).and_then(|raised| context.raise(of, &raised));
        let unfinished = trainer.step() < total;
        let stop = context.stop.after_step() && unfinished;
        let due = trainer.step().is_multiple_of(context.settings.checkpoint.every) && unfinished;
        let ends = ends.filter(|_| unfinished);
        if stop || due || ends.is_some() {
            folder.save(trainer.step(), trainer.files().into())?;
        }
        if let Some(alarm) = ends {
            return Err(alarm);
        }
        if stop {
            return Err(context.stop.interrupted().into());
        }
    }
    stage.finish(format!("{total} steps{last}"));
    Ok(trainer)
}

/// `result`; if it was interrupted, after a checkpoint of the steps that `trainer` has done.
pub fn or_save<M: Trainable, T>(
    folder: &StageFolder,
    trainer: &Trainer<M>,
    result: Result<T, Error>,
) -> Result<T, Error> {
    if matches!(result, Err(Error::Interrupted(_))) && trainer.step() > 0 {
        folder.save(trainer.step(), trainer.files().into())?;
    }
    result
}
