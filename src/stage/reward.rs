//! Training a reward model of segments from preference pairs (E1 to E4).

use std::ops::Range;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::context::{Context, model_fingerprint};
use super::preferences::{self, Pair};
use super::score::{RewardCard, Segmenter, entropies};
use super::supervised::{BatchResult, Epochs, train};
use super::task::Task;
use crate::bt_loss::segment_bt_loss;
use crate::data::diagnostics::{BoundaryCounts, segment_credits, spearman};
use crate::error::Error;
use crate::experiment::folder::write_json;
use crate::model::generate::{ReadAt, pad_rows, read_scalars};
use crate::model::optim::Trainer;
use crate::model::{Grid, ModelConfig, ScalarModel};
use crate::segment_reward::{aggregate, aggregation_weights, segment_rewards, sequence_scores};
use crate::segmentation::Actions;

/// The result of the stage, on held-out pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Share of pairs whose chosen response scores higher; ties count half.
    pub accuracy: f64,
    /// The same with the gold reward in place of the label, where it is known.
    pub gold_accuracy: Option<f64>,
    /// Spearman's rank correlation of segment rewards with the true credit of their tokens.
    pub rank_correlation: Option<f64>,
    /// F1 of segment starts against true phrase starts.
    pub boundary_f1: Option<f64>,
    /// Mean segments of a response.
    pub segments: f64,
    /// Mean tokens of a segment.
    pub segment_tokens: f64,
}

/// A response as the loss needs it.
struct Side {
    tokens: Vec<u32>,
    segments: Vec<Range<usize>>,
    weights: Vec<f32>,
}

/// A prompt with both responses, cut into segments.
struct Example {
    prompt: Vec<u32>,
    sides: [Side; 2],
}

/// Trains the reward model of the run's method, or of the method whose reward model it uses.
///
/// # Errors
///
/// Every [`Error`].
pub fn run(context: &Context) -> Result<Summary, Error> {
    let settings = &context.settings;
    let method = settings.method.reward_model();
    let reference_dir = context.reference_dir()?;
    let reference = model_fingerprint(&reference_dir)?;
    let task = Task::open(context, Some(&reference_dir))?;
    let (pairs, fingerprint) = preferences::load(context, &task)?;
    let inputs =
        [("method", method.name().into()), ("model", reference.clone()), ("pairs", fingerprint)];
    let sections = ["data", "segmentation", "lora", "reward"];
    let dir = context.method_dir(method, "reward");
    let mut folder = context.open(dir, "train-reward", &sections, &inputs)?;
    if let Some(summary) = folder.summary()? {
        return Ok(summary);
    }
    let actions = method.reward_actions(settings.segmentation.entropy_cutoff);
    let tokenizer = &task.tokenizer;
    let segmenter = Segmenter::new(settings, actions, tokenizer.sentence_ends(), tokenizer.eos());
    let prepare = |pairs: &[Pair]| examples(context, &reference_dir, &segmenter, pairs);
    let (examples, held_out) = (prepare(&pairs.train)?, prepare(&pairs.held_out)?);

    let config = ModelConfig::from_dir(&reference_dir)?;
    let model = context.trained_scalar_model(&reference_dir, None, "reward")?;
    let reward = &settings.reward;
    let epochs = Epochs { items: examples.len(), epochs: reward.epochs, batch: reward.batch };
    let trainer = Trainer::new("reward", model, &reward.optimizer, epochs.steps());
    let trainer =
        train(context, &mut folder, "train-reward", &epochs, trainer, |trainer, batch| {
            accumulate(trainer, batch, &examples, reward.rows_at_once, reward.margin)
        })?;
    let summary =
        evaluate(context, &task, &trainer.model().inference(), &held_out, &pairs.held_out);
    let card = RewardCard {
        method,
        actions,
        eos: settings.segmentation.eos,
        aggregation: reward.aggregation,
        reference,
    };
    write_json(&folder.dir().join("reward.json"), &card)?;
    let model = trainer.model().valid();
    context.write_scalar_model(folder.dir(), &task, &model, &config, &reference_dir)?;
    folder.finish(&summary)?;
    Ok(summary)
}

/// Cuts both responses of each pair. Entropies are read for entropy segments alone.
fn examples(
    context: &Context,
    reference: &Path,
    segmenter: &Segmenter,
    pairs: &[Pair],
) -> Result<Vec<Example>, Error> {
    let aggregation = context.settings.reward.aggregation;
    let rows: Vec<(&[u32], &[u32])> = pairs.iter().flat_map(Pair::rows).collect();
    let entropies = if matches!(segmenter.actions, Actions::Segment { .. }) {
        entropies(reference, context.frozen(), &rows, 2 * context.settings.reward.rows_at_once)?
    } else {
        rows.iter().map(|(_, response)| vec![0.0; response.len()]).collect()
    };
    let side = |response: &[u32], entropies: &[f32]| {
        let segments = segmenter.cut(response, entropies)?;
        let weights = aggregation_weights(&segments, response.len(), aggregation);
        Ok::<_, Error>(Side { tokens: response.to_vec(), segments, weights })
    };
    let example = |(pair, entropies): (&Pair, &[Vec<f32>])| {
        let sides = [side(&pair.chosen, &entropies[0])?, side(&pair.rejected, &entropies[1])?];
        Ok(Example { prompt: pair.prompt.clone(), sides })
    };
    pairs.iter().zip(entropies.chunks(2)).map(example).collect()
}

/// Adds the gradient of the segment Bradley-Terry loss, averaged over the batch's pairs.
fn accumulate(
    trainer: &mut Trainer<ScalarModel>,
    batch: &[usize],
    examples: &[Example],
    pairs_at_once: usize,
    margin: f64,
) -> Result<BatchResult, Error> {
    let mut result = BatchResult { loss: 0.0, tokens: 0 };
    for chunk in batch.chunks(pairs_at_once) {
        let n = chunk.len();
        let side = |which: usize| chunk.iter().map(move |&i| (i, which));
        let rows: Vec<(&[u32], &Side)> = side(0)
            .chain(side(1))
            .map(|(i, which)| (&examples[i].prompt[..], &examples[i].sides[which]))
            .collect();
        let (grid, first) = Grid::aligned(rows.iter().map(|(p, side)| (*p, &side.tokens[..])));
        let scores = trainer.model().scores(&grid, ReadAt::Token.columns(&grid, first));
        let weights = rows.iter().map(|(_, side)| &side.weights[..]);
        let weights = pad_rows(weights, grid.width() - first, 0.0, &scores.device());
        let scores = sequence_scores(scores, weights); // [2n]
        let (chosen, rejected) = (scores.clone().narrow(0, 0, n), scores.narrow(0, n, n));
        let margin = (margin != 0.0).then(|| {
            let data = TensorData::new(vec![margin as f32; n], [n]);
            Tensor::<1>::from_data(data, &chosen.device())
        });
        let loss = segment_bt_loss(chosen, rejected, margin);
        result.loss += trainer.accumulate(loss.mul_scalar(n as f64 / batch.len() as f64))?;
        result.tokens += grid.tokens();
    }
    Ok(result)
}

fn evaluate(
    context: &Context,
    task: &Task,
    model: &ScalarModel,
    examples: &[Example],
    pairs: &[Pair],
) -> Summary {
    let settings = &context.settings.reward;
    let rows: Vec<(&[u32], &[u32])> = examples
        .iter()
        .flat_map(|e| e.sides.each_ref().map(|side| (&e.prompt[..], &side.tokens[..])))
        .collect();
    let scores = read_scalars(model, &rows, ReadAt::Token, 2 * settings.rows_at_once);
    let (mut learned, mut truth) = (Vec::new(), Vec::new());
    let mut boundaries = BoundaryCounts::default();
    let (mut segments, mut segment_tokens) = (0, 0);
    let mut sequence = Vec::with_capacity(rows.len());
    let sides = examples.iter().flat_map(|example| &example.sides);
    for ((row, side), scores) in rows.iter().zip(sides).zip(&scores) {
        let rewards = segment_rewards(scores, &side.segments);
        sequence.push(aggregate(&rewards, settings.aggregation));
        segments += side.segments.len();
        segment_tokens += side.segments.last().map_or(0, |last| last.end);
        if let Some(gold) = task.gold(row.0, row.1) {
            truth.extend(segment_credits(&side.segments, &gold.credits));
            learned.extend(rewards);
            boundaries.add(&side.segments, &gold.phrase_starts);
        }
    }
    let gaps: Vec<f64> = sequence.chunks(2).map(|pair| pair[0] - pair[1]).collect();
    let right = |gap: f64| if gap == 0.0 { 0.5 } else { f64::from(gap > 0.0) };
    let share = |rights: Vec<f64>| rights.iter().sum::<f64>() / rights.len().max(1) as f64;
    let gold_gaps: Option<Vec<f64>> =
        pairs.iter().map(|pair| pair.gold.map(|[chosen, rejected]| chosen - rejected)).collect();
    let gold_accuracy = gold_gaps.map(|gold| {
        let decided = gaps.iter().zip(gold).filter(|(_, gold)| *gold != 0.0);
        share(decided.map(|(gap, gold)| right(gap * gold.signum())).collect())
    });
    Summary {
        accuracy: share(gaps.iter().map(|&gap| right(gap)).collect()),
        gold_accuracy,
        rank_correlation: spearman(&learned, &truth),
        boundary_f1: (!truth.is_empty()).then(|| boundaries.score().f1),
        segments: segments as f64 / rows.len() as f64,
        segment_tokens: segment_tokens as f64 / segments.max(1) as f64,
    }
}
