//! Training a policy on preference pairs: the DPO family.
//!
//! pairs → the reference's log-probabilities → weights of tokens → loss → step. The weights are the method's choice
//! ([`Weights`]); the loop is that of supervised training.

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::fit_normalizer::NormalizerFile;
use super::preferences::{self, Pair, is_right};
use super::score::Scorer;
use super::supervised::{Epochs, or_save, train};
use super::task::{HeldOut, Task};
use super::{memory, rates};
use crate::data::store::Items;
use crate::equations::bt_loss::DpoLoss;
use crate::equations::normalizer::Normalizer;
use crate::model::generate::{Rows, TokenView, pad_rows, response_log_probs, to_vec};
use crate::model::optim::Trainer;
use crate::model::shards::shards;
use crate::model::{CausalLm, ModelConfig};
use crate::run::alarms::of_accuracy;
use crate::run::fingerprint::model_fingerprint;
use crate::run::{Context, Error, Stage};
use crate::statistics::mean;
use crate::stop::Stop;
use crate::systems::pairs::WeightedPair;
use crate::systems::rewards::NormalizedRewards;
use crate::systems::{DpoSettings, PairBatch, PairView, Rewarded, Weights};

/// The result of the stage, on held-out pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Held-out pairs.
    pub pairs: usize,
    /// What was held out: prompts with their pairs, or of a single prompt some of the pairs.
    pub held_out: HeldOut,
    /// The loss, nats.
    pub loss: f64,
    /// Share of pairs whose chosen response has the higher reward; ties count half.
    pub accuracy: f64,
    /// Mean β Σ w (ln π - ln π_ref) of chosen responses.
    pub chosen_reward: f64,
    /// The same of rejected responses.
    pub rejected_reward: f64,
    /// Mean ln π - ln π_ref of a token of a chosen response that has a negative true credit, nats; if the truth is known.
    pub wrong_in_chosen: Option<f64>,
    /// The same of a token of a rejected response that has a positive true credit.
    pub right_in_rejected: Option<f64>,
    /// Share of response tokens whose weight is not 0.
    pub teaching_share: f64,
    /// Tokens of prompts and responses that the policy was trained on, over all epochs.
    pub trained_tokens: usize,
}

/// What a step's line in `metrics.jsonl` says beside the loss.
#[derive(Serialize)]
struct Step {
    chosen_reward: f64,
    rejected_reward: f64,
    accuracy: f64,
}

/// Trains the policy of the run's method.
pub fn run(context: &Context) -> Result<Summary, Error> {
    let context = &context.within(Stage::Dpo);
    let settings = &context.settings;
    let Some(weights) = settings.weights() else {
        let method = settings.method.name();
        return Err(Error::Usage(format!(
            "dpo: {method} learns from its rollouts: run ppo --method {method}, or dpo --method dpo"
        )));
    };
    let dpo = &settings.dpo;
    context.check_ranks(&[("dpo.batch", dpo.batch), ("dpo.rows_at_once", dpo.rows_at_once)])?;
    let reference_dir = context.reference_dir()?;
    let reference_fingerprint = model_fingerprint(&reference_dir)?;
    let task = Task::open(context, Some(&reference_dir))?;
    let (pairs, fingerprint) = preferences::load(context, &task, weights.reads_labels())?;
    let config = ModelConfig::from_dir(&reference_dir)?;
    let longest = pairs.train.longest_parts();
    memory::announce(context, &context.dir(Stage::Dpo), &config, longest, |e, lengths| {
        e.dpo(lengths)
    })?;
    let mut inputs = vec![("model", reference_fingerprint), ("pairs", fingerprint)];
    let judge = match weights.reads_rewards() {
        false => None,
        true => {
            let (stops, ends) = (task.tokenizer.stop_tokens(), task.tokenizer.sentence_ends());
            let scorer = Scorer::load(context, ends, stops, 2 * settings.dpo.rows_at_once)?;
            let reward_model = scorer.fingerprints.reward_model.clone();
            let normalizer = NormalizerFile::normalizer_of(context, &scorer)?;
            let fit = serde_json::to_string(&normalizer).expect("a plain enum serialises");
            inputs.extend([("reward_model", reward_model), ("normalizer", fit)]);
            Some((scorer, normalizer))
        }
    };
    check_labels(weights, &pairs.train)?;
    let mut folder = context.open(Stage::Dpo, &inputs)?;
    if let Some(summary) = folder.summary()? {
        return Ok(summary);
    }
    pairs.what.tell(context);
    rates::tell(context, &config, &["dpo.optimizer"]);
    let own;
    let (reference, judge) = match &judge {
        Some((scorer, normalizer)) => (&scorer.reference, Some((scorer, normalizer))),
        None => {
            own = CausalLm::load(&reference_dir, context.frozen())?.0;
            (&own, None)
        }
    };
    let weigher = Weigher { weights, reference, judge, stop: &context.stop };
    let policy = context.trained_policy(&reference_dir, Some(reference))?;
    let epochs = Epochs { items: pairs.train.len(), epochs: dpo.epochs, batch: dpo.batch };
    let trainer = Trainer::new("policy", policy, &dpo.optimizer, epochs.steps());
    let trainer = train(context, &mut folder, Stage::Dpo, &epochs, trainer, |trainer, batch| {
        let batch = pairs.train.read(batch.iter().copied())?;
        accumulate(trainer, &batch, &weigher, dpo)
    })?;
    let policy = trainer.model().inference();
    let summary = evaluate(&task, &policy, &weigher, &pairs.held_out, dpo);
    let mut summary = or_save(&folder, &trainer, summary)?;
    if let Some(raised) = of_accuracy(summary.accuracy, summary.pairs, epochs.steps() - 1) {
        context.raise(Stage::Dpo, &raised);
    }
    summary.held_out = pairs.what;
    summary.trained_tokens = dpo.epochs * tokens_of(&pairs.train, dpo.batch)?;
    let trained = trainer.model().valid();
    context.write_policy(folder.to_write()?, &task, &trained, &config, Some(&reference_dir))?;
    folder.finish(&summary)?;
    Ok(summary)
}

/// Rejects pairs without labels where the weights read them; those of `--data` were checked when they were read.
fn check_labels(weights: Weights, pairs: &Items<Pair>) -> Result<(), Error> {
    let Items::Memory(pairs) = pairs else { return Ok(()) };
    if weights.reads_labels() && pairs.iter().any(|pair| pair.labels.is_none()) {
        return Err(Error::Usage(
            "segment_dpo needs labels of segments, and pairs of two samples have none: set task.aligned.pairs = true, \
             or give --data with `segments`"
                .into(),
        ));
    }
    Ok(())
}

/// The tokens of prompts and responses of pairs.
fn tokens_of(pairs: &Items<Pair>, at_once: usize) -> Result<usize, Error> {
    pairs.chunks(at_once).map(|chunk| Ok(chunk?.iter().map(tokens).sum::<usize>())).sum()
}

fn tokens(pair: &Pair) -> usize {
    pair.rows().iter().map(|(prompt, response)| prompt.len() + response.len()).sum()
}

/// What reads the reference's log-probabilities and weighs tokens.
struct Weigher<'a> {
    weights: Weights,
    reference: &'a CausalLm,
    /// The judge and the normalizer of its rewards, if the weights read them.
    judge: Option<(&'a Scorer, &'a Normalizer)>,
    stop: &'a Stop,
}

/// A pair, what the reference says of its responses, and what their tokens count.
struct Weighed<'a> {
    pair: &'a Pair,
    reference: [TokenView; 2],
    weights: [Vec<f32>; 2],
}

impl Weighed<'_> {
    fn view(&self) -> WeightedPair<'_> {
        WeightedPair {
            rows: self.pair.rows(),
            ref_log_probs: self.reference.each_ref().map(|view| &view.log_probs[..]),
            weights: &self.weights,
        }
    }
}

impl Weigher<'_> {
    fn weigh<'p>(&self, pairs: &'p [Pair]) -> Result<Vec<Weighed<'p>>, Error> {
        let rows: Vec<(&[u32], &[u32])> = pairs.iter().flat_map(Pair::rows).collect();
        let rows = Rows::new(&rows, rows.len());
        let reference = rows.view(self.reference, self.stop)?;
        let rewards = match self.judge {
            None => None,
            Some((scorer, normalizer)) => {
                let rewards =
                    NormalizedRewards { judge: &scorer.judge, normalizer, length_neutral: false };
                let rewarded = scorer.judge.score(&rows, &reference)?.into_iter();
                Some(rewarded.map(|of| rewards.normalize(of)).collect::<Vec<Rewarded>>())
            }
        };
        let mut reference = reference.into_iter();
        let mut rewards = rewards.map(Vec::into_iter);
        let weigh = |pair: &'p Pair| {
            let tokens = pair.rows().map(|(_, response)| response.len());
            let mut next = || reference.next().expect("a view of each response");
            let reference = [next(), next()];
            let rewards = rewards.as_mut().map(|rewards| {
                let mut next =
                    |tokens| rewards.next().expect("rewards of each response").of_tokens(tokens);
                [next(tokens[0]), next(tokens[1])]
            });
            let (labels, rewards) = (pair.labels.as_ref(), rewards.as_ref());
            let weights = self.weights.of(&PairView { tokens, labels, rewards });
            Weighed { pair, reference, weights }
        };
        Ok(pairs.iter().map(weigh).collect())
    }
}

/// Adds the gradient of the loss, averaged over the batch's pairs; gives the tokens read.
fn accumulate(
    trainer: &mut Trainer<CausalLm>,
    batch: &[Pair],
    weigher: &Weigher<'_>,
    settings: &DpoSettings,
) -> Result<(usize, Step), Error> {
    let mut read = 0;
    let (mut chosen, mut rejected) = (Vec::new(), Vec::new());
    for chunk in batch.chunks(settings.rows_at_once) {
        let weighed = weigher.weigh(chunk)?;
        weigher.stop.check()?;
        let lengths: Vec<usize> = chunk.iter().map(tokens).collect();
        let device = trainer.model().device();
        let rewards = trainer.accumulate(shards(&lengths, &device), |model, pairs| {
            let share = pairs.len() as f64 / batch.len() as f64;
            let views: Vec<WeightedPair<'_>> = weighed[pairs].iter().map(Weighed::view).collect();
            let pairs = PairBatch::new(&views);
            let log_probs = response_log_probs(model, &pairs.grid, pairs.first).0;
            let loss = pairs.loss(log_probs, settings.beta, settings.label_smoothing);
            let rewards = [loss.chosen_rewards.inner(), loss.rejected_rewards.inner()];
            (loss.loss.mul_scalar(share), rewards)
        });
        for [better, worse] in rewards {
            chosen.extend(wide(better));
            rejected.extend(wide(worse));
        }
        read += lengths.iter().sum::<usize>();
    }
    let step = Step {
        chosen_reward: mean(chosen.iter().copied()),
        rejected_reward: mean(rejected.iter().copied()),
        accuracy: mean(chosen.iter().zip(&rejected).map(|(&c, &r)| is_right(c - r))),
    };
    Ok((read, step))
}

/// The numbers of a tensor, for sums.
fn wide(values: Tensor<1>) -> Vec<f64> {
    to_vec(values).into_iter().map(f64::from).collect()
}

/// The figures of held-out pairs.
fn evaluate(
    task: &Task,
    policy: &CausalLm,
    weigher: &Weigher<'_>,
    pairs: &Items<Pair>,
    settings: &DpoSettings,
) -> Result<Summary, Error> {
    let (mut losses, mut chosen, mut rejected) = (0.0, Vec::new(), Vec::new());
    let (mut all, mut teaching) = (0, 0);
    // ln π - ln π_ref of tokens whose credit has the sign that their response's label has not.
    let mut against: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    let mut is_known = true;
    for chunk in pairs.chunks(settings.rows_at_once) {
        let chunk = chunk?;
        let weighed = weigher.weigh(&chunk)?;
        let rows: Vec<(&[u32], &[u32])> = chunk.iter().flat_map(Pair::rows).collect();
        let views = Rows::new(&rows, rows.len()).view(policy, weigher.stop)?;
        let log_probs = |pair: usize, side: usize| &views[2 * pair + side].log_probs[..];
        let read: Vec<WeightedPair<'_>> = weighed.iter().map(Weighed::view).collect();
        let batch = PairBatch::new(&read);
        let sides = [0, 1].into_iter().flat_map(|side| (0..chunk.len()).map(move |i| (i, side)));
        let width = batch.grid.width() - batch.first;
        let tensor =
            pad_rows(sides.map(|(i, side)| log_probs(i, side)), width, 0.0, &policy.device());
        let loss = batch.loss(tensor, settings.beta, settings.label_smoothing);
        let DpoLoss { loss, chosen_rewards, rejected_rewards } = loss;
        losses += wide(loss)[0] * chunk.len() as f64;
        chosen.extend(wide(chosen_rewards));
        rejected.extend(wide(rejected_rewards));
        for (i, weighed) in weighed.iter().enumerate() {
            for (side, (prompt, response)) in weighed.pair.rows().into_iter().enumerate() {
                all += response.len();
                teaching += weighed.weights[side].iter().filter(|&&weight| weight != 0.0).count();
                let Some(gold) = task.gold(prompt, response) else {
                    is_known = false;
                    continue;
                };
                let label = [1.0, -1.0][side];
                let reference = &weighed.reference[side].log_probs;
                let tokens = log_probs(i, side).iter().zip(reference).zip(&gold.credits);
                let wrong = tokens.filter(|&(_, credit)| credit * label < 0.0);
                against[side].extend(wrong.map(|((&l, &r), _)| f64::from(l) - f64::from(r)));
            }
        }
    }
    let known = |of: &[f64]| (is_known && !of.is_empty()).then(|| mean(of.iter().copied()));
    Ok(Summary {
        pairs: pairs.len(),
        held_out: HeldOut::default(),
        loss: losses / pairs.len() as f64,
        accuracy: mean(chosen.iter().zip(&rejected).map(|(&c, &r)| is_right(c - r))),
        chosen_reward: mean(chosen.iter().copied()),
        rejected_reward: mean(rejected.iter().copied()),
        wrong_in_chosen: known(&against[0]),
        right_in_rejected: known(&against[1]),
        teaching_share: teaching as f64 / all as f64,
        trained_tokens: 0,
    })
}
