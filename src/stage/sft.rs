//! Supervised fine-tuning: the reference model, and where policy, critic and reward model start.

use std::path::Path;

use burn::module::Module;
use serde::{Deserialize, Serialize};

use super::supervised::{Epochs, NoMore, or_save, train};
use super::task::{HeldOut, Task, longest_letter_prompt};
use super::{memory, rates};
use crate::atomic;
use crate::data::letters;
use crate::data::pairs::Conversation;
use crate::data::store::Items;
use crate::file_error::FileError;
use crate::model::generate::{Rows, response_log_probs};
use crate::model::optim::Trainer;
use crate::model::shards::shards;
use crate::model::{CausalLm, CheckpointError, Grid, ModelConfig};
use crate::run::fingerprint::model_fingerprint;
use crate::run::{Context, Error, Stage};
use crate::settings::PrecisionSettings;
use crate::stop::Stop;

/// The result of the stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Mean negative log-probability of a held-out response token, nats.
    pub held_out_cross_entropy: f64,
    /// What was held out: prompts with their responses, or of a single prompt some of the conversations.
    #[serde(default)]
    pub held_out: HeldOut,
    /// Number of parameters.
    pub parameters: usize,
}

/// Fine-tunes `--model`, or a fresh model on the embedded task, on responses; the loss counts response
/// tokens alone.
pub fn run(context: &Context) -> Result<Summary, Error> {
    let context = &context.within(Stage::Sft);
    let settings = &context.settings;
    if context.data.is_some() && context.model.is_none() {
        return Err(Error::Usage("sft on --data needs --model DIR to start from".into()));
    }
    let sft = &settings.sft;
    context.check_ranks(&[("sft.batch", sft.batch), ("sft.rows_at_once", sft.rows_at_once)])?;
    let mut inputs = Vec::new();
    if let Some(model) = &context.model {
        inputs.push(("model", model_fingerprint(model)?));
    }
    if let Some(data) = &context.data {
        inputs.push(("data", context.data_fingerprint(data)?));
    }
    let mut folder = context.open(Stage::Sft, &inputs)?;
    if let Some(summary) = folder.summary()? {
        return Ok(summary);
    }
    let task = Task::open(context, context.model.as_deref())?;
    let data = task.conversations(context)?;
    data.what.tell(context);
    if let Some(dir) = &context.model {
        let config = ModelConfig::from_dir(dir)?;
        let longest = data.train.longest_parts();
        memory::announce(context, folder.dir(), &config, longest, |e, lengths| e.sft(lengths))?;
        rates::tell(context, &config, &["sft.optimizer"]);
    }
    let (model, config) = match &context.model {
        Some(dir) => (context.trained_policy(dir, None)?, ModelConfig::from_dir(dir)?),
        None => {
            let longest = longest_letter_prompt(settings) + letters::RESPONSE_LIMIT;
            let config = settings.model.config(letters::vocabulary().len(), longest);
            let PrecisionSettings { compute, checkpointing } = settings.precision;
            let device = checkpointing.autodiff(&context.device);
            let model = CausalLm::fresh(&config, settings.seed, &device);
            (model.computing(compute, checkpointing), config)
        }
    };
    let epochs = Epochs { items: data.train.len(), epochs: sft.epochs, batch: sft.batch };
    let trainer = Trainer::new("policy", model, &sft.optimizer, epochs.steps());
    let trainer = train(context, &mut folder, Stage::Sft, &epochs, trainer, |trainer, batch| {
        Ok((accumulate(trainer, batch, &data.train, sft.rows_at_once, &context.stop)?, NoMore {}))
    })?;
    let model = trainer.model().inference();
    let held_out = cross_entropy(&model, &data.held_out, sft.rows_at_once, &context.stop);
    let summary = Summary {
        held_out_cross_entropy: or_save(&folder, &trainer, held_out)?,
        held_out: data.what,
        parameters: model.num_params(),
    };
    let (trained, base) = (trainer.model().valid(), context.model.as_deref());
    context.write_policy(folder.to_write()?, &task, &trained, &config, base)?;
    folder.finish(&summary)?;
    Ok(summary)
}

/// Writes a model, by `save`, and its tokenizer to `dir/model`.
pub(super) fn write_model(
    dir: &Path,
    task: &Task,
    save: impl FnOnce(&Path) -> Result<(), CheckpointError>,
) -> Result<(), Error> {
    let path = dir.join("model");
    let io = |source| Error::Folder(FileError::writing(&path)(source).into());
    atomic::write_dir(&path, io, |dir| {
        save(dir)?;
        Ok(task.tokenizer.save(dir)?)
    })
}

/// Adds the gradient of the mean negative log-probability over the batch's response tokens; gives the tokens read.
fn accumulate(
    trainer: &mut Trainer<CausalLm>,
    batch: &[usize],
    data: &Items<Conversation>,
    rows_at_once: usize,
    stop: &Stop,
) -> Result<usize, Error> {
    let batch = data.read(batch.iter().copied())?;
    let response_tokens: usize = batch.iter().map(|(_, response)| response.len()).sum();
    let mut tokens = 0;
    for chunk in batch.chunks(rows_at_once) {
        stop.check()?;
        let lengths: Vec<usize> = chunk.iter().map(|(p, r)| p.len() + r.len()).collect();
        let device = trainer.model().device();
        trainer.accumulate(shards(&lengths, &device), |model, rows| {
            let rows = chunk[rows].iter().map(|(p, r)| (&p[..], &r[..]));
            let (grid, first) = Grid::aligned(rows);
            let (log_probs, _) = response_log_probs(model, &grid, first); // 0 in the padding
            (log_probs.sum().div_scalar(-(response_tokens as f64)), [])
        });
        tokens += lengths.iter().sum::<usize>();
    }
    Ok(tokens)
}

fn cross_entropy(
    model: &CausalLm,
    data: &Items<Conversation>,
    rows_at_once: usize,
    stop: &Stop,
) -> Result<f64, Error> {
    let (mut sum, mut count) = (0.0, 0.0f64);
    for chunk in data.chunks(rows_at_once) {
        let chunk = chunk?;
        let rows: Vec<(&[u32], &[u32])> = chunk.iter().map(|(p, r)| (&p[..], &r[..])).collect();
        let views = Rows::new(&rows, rows_at_once).view(model, stop)?;
        for &log_prob in views.iter().flat_map(|view| &view.log_probs) {
            sum += f64::from(log_prob);
            count += 1.0;
        }
    }
    Ok(-sum / count.max(1.0))
}
