//! Token-level PPO on segment rewards (E5 to E10).

use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{fs, io};

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::evaluate::{Evaluation, Evaluator, Judged, Kept, Side};
use super::fit_normalizer::NormalizerFile;
use super::memory;
use super::rollout::{Rollout, Sampler, compare_with_truth, metrics_of};
use super::score::Scorer;
use super::task::{HeldOut, Task, permutation};
use crate::atomic::{self, NewFile};
use crate::data::letters::Gold;
use crate::data::store::Items;
use crate::equations::kl::AdaptiveKl;
use crate::equations::normalizer::Normalizer;
use crate::equations::ppo::{policy_loss, value_loss};
use crate::model::generate::{ReadAt, pad_rows, response_log_probs};
use crate::model::optim::Trainer;
use crate::model::sampling::Sampling;
use crate::model::{CausalLm, Grid, ModelConfig, ScalarModel};
use crate::rng::streams;
use crate::run::context::Context;
use crate::run::error::Error;
use crate::run::folder::{Checkpoint, FolderError, Log, StageFolder, read_json};
use crate::run::metrics::{IterationMetrics, IterationTimings};
use crate::run::stage::Stage;
use crate::settings::PpoSettings;

/// The result of the stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Iterations done.
    pub iterations: usize,
    /// The policy after the last iteration, kept in `model`.
    pub last: Evaluation,
    /// The iteration after which the evaluation was best, from 1; its policy is kept in `best/model`.
    pub best_iteration: usize,
    /// That evaluation.
    pub best: Evaluation,
    /// What was held out of training for the evaluations: prompts, or nothing if there is a single prompt.
    #[serde(default)]
    pub held_out: HeldOut,
}

/// What a checkpoint holds besides models and optimizers. The generator and the data cursor are the
/// iteration itself, since every stream is drawn from the seed, a purpose and an index.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    kl_coefficient: f64,
    evaluations: usize,
    best: Option<(usize, Evaluation)>,
    last: Option<Evaluation>,
}

/// One line of `evaluations.jsonl`: the policy on held-out prompts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationLine {
    /// Iterations done: 0 is the SFT model.
    pub iteration: usize,
    /// What the policy was worth then.
    #[serde(flatten)]
    pub evaluation: Evaluation,
}

const STATE: &str = "state.json";
const BEST: &str = "best.safetensors";

/// Trains the policy of the run's method.
///
/// # Errors
///
/// Every [`Error`].
pub fn run(context: &Context) -> Result<Summary, Error> {
    let context = &context.within(Stage::Ppo);
    let settings = &context.settings;
    if settings.sampling() != Sampling::PLAIN {
        return Err(Error::SamplingForPpo(settings.sampling()));
    }
    let reference_dir = context.reference_dir()?;
    let task = Task::open(context, Some(&reference_dir))?;
    let dir = context.dir(Stage::Ppo);
    let config = ModelConfig::from_dir(&reference_dir)?;
    let longest = task.longest_rollout(context)?;
    memory::announce(context, &dir, &config, longest, |e, lengths| e.ppo(lengths))?;
    let (stops, ends) = (task.tokenizer.stop_tokens(), task.tokenizer.sentence_ends());
    let scorer = Scorer::load(context, ends, stops, settings.ppo.rows_at_once)?;
    let normalizer = NormalizerFile::read(context, &scorer)?.normalizer;
    let fit = serde_json::to_string(&normalizer).expect("a plain enum serialises");
    let mut inputs = scorer.fingerprints.inputs();
    inputs.push(("normalizer", fit));
    inputs.extend(context.data_fingerprints()?);
    let mut folder = context.open(Stage::Ppo, &inputs)?;
    if let Some(summary) = folder.summary()? {
        return Ok(summary);
    }
    let mut ppo =
        Ppo::new(context, &task, &scorer, normalizer, &reference_dir, folder.dir().join(BEST))?;
    if let Some(checkpoint) = folder.latest()? {
        folder.warnings.drain(..).for_each(|warning| context.progress.line(&warning));
        ppo = ppo.resume(&checkpoint)?;
    }
    let summary = ppo.train(&folder)?;
    folder.finish(&summary)?;
    Ok(summary)
}

/// Everything that one run of PPO holds.
struct Ppo<'a> {
    context: &'a Context,
    task: &'a Task,
    scorer: &'a Scorer,
    normalizer: Normalizer,
    evaluator: Evaluator<'a>,
    prompts: Items<Vec<u32>>,
    config: ModelConfig,
    policy: Trainer<CausalLm>,
    critic: Trainer<ScalarModel>,
    state: State,
    /// The file with the parameters of the best policy so far, once there is one.
    best_weights: PathBuf,
    /// Iterations done.
    done: usize,
}

impl<'a> Ppo<'a> {
    fn new(
        context: &'a Context,
        task: &'a Task,
        scorer: &'a Scorer,
        normalizer: Normalizer,
        reference_dir: &Path,
        best_weights: PathBuf,
    ) -> Result<Self, Error> {
        let settings = &context.settings;
        let ppo = &settings.ppo;
        let base = Some(&scorer.reference);
        let policy = context.trained_policy(reference_dir, base)?;
        let critic = context.trained_scalar_model(reference_dir, base, "critic")?;
        let steps = ppo.iterations * steps_an_iteration(ppo);
        let coefficient = ppo.kl_coefficient;
        Ok(Self {
            context,
            task,
            scorer,
            normalizer,
            evaluator: Evaluator::new(context, task, scorer)?,
            prompts: task.prompts(context)?.train,
            config: ModelConfig::from_dir(reference_dir)?,
            policy: Trainer::new("policy", policy, &ppo.actor, steps),
            critic: Trainer::new("critic", critic, &ppo.critic, steps),
            state: State { kl_coefficient: coefficient, evaluations: 0, best: None, last: None },
            best_weights,
            done: 0,
        })
    }

    fn resume(mut self, checkpoint: &Checkpoint) -> Result<Self, Error> {
        self.done = checkpoint.step;
        let step = self.done * steps_an_iteration(&self.context.settings.ppo);
        self.policy = self.policy.resume(step, &checkpoint.dir)?;
        self.critic = self.critic.resume(step, &checkpoint.dir)?;
        self.state = read_json(&checkpoint.dir.join(STATE), "ppo")?;
        if self.state.best.is_some() {
            let (kept, path) = (checkpoint.dir.join(BEST), &self.best_weights);
            let _ = fs::remove_file(path); // of a later iteration than the checkpoint's
            link(&kept, path)
                .map_err(|source| FolderError::Write { path: path.clone(), source })?;
        }
        Ok(self)
    }

    fn train(mut self, folder: &StageFolder) -> Result<Summary, Error> {
        let ppo = &self.context.settings.ppo;
        let mut metrics = folder.log("metrics.jsonl", self.done)?;
        let mut timings = folder.log("timings.jsonl", self.done)?;
        let mut evaluations = folder.log("evaluations.jsonl", self.state.evaluations)?;
        let stage =
            self.context.progress.stage(self.context.title("ppo"), ppo.iterations, self.done);
        // Every evaluation is compared with the SFT model's own responses; it is the policy after 0 iterations.
        let (model, kept) = (&self.scorer.reference, Kept::open(folder, "baseline")?);
        let baseline = self.evaluator.judge(model, &self.config, Side::Baseline, kept, &|| ())?;
        if self.state.evaluations == 0 {
            let evaluation = baseline.evaluation.clone();
            evaluations.write(&EvaluationLine { iteration: 0, evaluation })?;
            self.state.evaluations = evaluations.lines();
        }
        while self.done < ppo.iterations {
            let (line, timing) = self.iterate()?;
            metrics.write(&line)?;
            timings.write(&timing)?;
            self.adapt_kl(&line);
            self.done += 1;
            if self.done.is_multiple_of(ppo.evaluate_every) || self.done == ppo.iterations {
                self.evaluate(&baseline, &mut evaluations)?;
            }
            let reward = line.gold.map(|gold| format!("gold {gold:.2}"));
            let reward = reward.unwrap_or_else(|| format!("reward {:.2}", line.reward));
            stage.step(format!("{reward}, KL {:.2}", line.kl_k1));
            if self.done < ppo.iterations {
                folder.save(self.done, self.checkpoint())?;
                if self.context.stop.after_step() {
                    return Err(self.context.stop.interrupted().into());
                }
            }
        }
        let summary = self.save(folder)?;
        let reward = summary.last.gold.map(|gold| format!("gold {gold:.2}"));
        let reward = reward.unwrap_or_else(|| format!("reward {:.2}", summary.last.sequence_score));
        stage.finish(format!("{} iterations, {reward}, KL {:.2}", ppo.iterations, summary.last.kl));
        Ok(summary)
    }

    /// Rollouts, and the optimizer steps over them.
    fn iterate(&mut self) -> Result<(IterationMetrics, IterationTimings), Error> {
        let (iteration, stops) = (self.done, self.task.tokenizer.stop_tokens());
        let start = Instant::now();
        let rollouts = self.roll_out()?;
        let rollout_seconds = start.elapsed().as_secs_f64();
        let mut line = metrics_of(iteration, &rollouts, stops, self.state.kl_coefficient);
        let truth = rollouts.iter().map(|r| self.task.gold(&r.prompt, &r.response));
        if let Some(truth) = truth.collect::<Option<Vec<Gold>>>() {
            compare_with_truth(&mut line, &rollouts, &truth);
        }

        let start = Instant::now();
        let update =
            update(self.context, &mut self.policy, &mut self.critic, &rollouts, iteration)?;
        let update_seconds = start.elapsed().as_secs_f64();
        update.fill(&mut line);
        let response_tokens: usize = rollouts.iter().map(|r| r.response.len()).sum();
        let timing = IterationTimings {
            iteration,
            rollout_seconds,
            update_seconds,
            rollout_tokens_per_second: response_tokens as f64 / rollout_seconds,
            update_tokens_per_second: update.tokens as f64 / update_seconds,
        };
        Ok((line, timing))
    }

    fn roll_out(&self) -> Result<Vec<Rollout>, Error> {
        let (settings, iteration) = (&self.context.settings, self.done);
        let count = settings.ppo.rollouts;
        let prompts = choose(&self.prompts, count, settings.seed, iteration)?;
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let draws = streams(settings.seed, "rollouts", iteration * count..(iteration + 1) * count);
        let sampler = Sampler {
            policy: &self.policy.model().inference(),
            config: &self.config,
            critic: &self.critic.model().inference(),
            scorer: self.scorer,
            normalizer: &self.normalizer,
            settings: &settings.ppo,
            interpolation: settings.interpolation(),
            kl_coefficient: self.state.kl_coefficient,
            generation: settings.generation(self.task.tokenizer.stop_tokens()),
            stop: &self.context.stop,
        };
        sampler.roll_out(&prompts, draws, iteration)
    }

    fn adapt_kl(&mut self, line: &IterationMetrics) {
        let ppo = &self.context.settings.ppo;
        if let Some(target) = ppo.kl_target {
            let coefficient = self.state.kl_coefficient;
            let mut adaptive = AdaptiveKl { coefficient, target, horizon: ppo.kl_horizon };
            adaptive.update(line.kl_k1, ppo.rollouts);
            self.state.kl_coefficient = adaptive.coefficient;
        }
    }

    /// Judges the policy on held-out prompts, and keeps it if it is the best so far.
    fn evaluate(&mut self, baseline: &Judged, log: &mut Log) -> Result<(), Error> {
        let model = self.policy.model().inference();
        let (side, kept) = (Side::Policy, Kept::default());
        let mut judged = self.evaluator.judge(&model, &self.config, side, kept, &|| ())?;
        self.evaluator.compare(&mut judged, baseline);
        let evaluation = judged.evaluation;
        log.write(&EvaluationLine { iteration: self.done, evaluation: evaluation.clone() })?;
        self.state.evaluations = log.lines();
        if self.state.best.as_ref().is_none_or(|(_, best)| evaluation.score() > best.score()) {
            self.state.best = Some((self.done, evaluation.clone()));
            let path = &self.best_weights;
            atomic::write_with(path, |path| self.policy.write_weights(path))
                .map_err(|source| FolderError::Write { path: path.clone(), source })?;
        }
        self.state.last = Some(evaluation);
        Ok(())
    }

    fn checkpoint(&self) -> Vec<NewFile<'_>> {
        let state = serde_json::to_vec(&self.state).expect("a plain struct serialises");
        let mut files = vec![file(STATE, move |path| fs::write(path, state))];
        if self.state.best.is_some() {
            files.push(file(BEST, |path| link(&self.best_weights, path)));
        }
        files.extend(self.policy.files());
        files.extend(self.critic.files());
        files
    }

    /// Writes the last and the best policy.
    fn save(&self, folder: &StageFolder) -> Result<Summary, Error> {
        let best_model = self.policy.model_with(&self.best_weights)?;
        let best_dir = folder.dir().join("best");
        let base = Some(self.scorer.base().dir);
        for (model, dir) in [(self.policy.model(), folder.dir()), (&best_model, &best_dir)] {
            self.context.write_policy(dir, self.task, &model.valid(), &self.config, base)?;
        }
        let path = &self.best_weights;
        fs::remove_file(path)
            .map_err(|source| FolderError::Write { path: path.clone(), source })?;
        let State { last, best, .. } = self.state.clone();
        let last = last.expect("the last iteration is evaluated");
        let (best_iteration, best) = best.expect("the last iteration is evaluated");
        let held_out = self.evaluator.held_out;
        Ok(Summary { iterations: self.done, last, best_iteration, best, held_out })
    }
}

fn file<'a>(name: &str, fill: impl FnOnce(&Path) -> io::Result<()> + 'a) -> NewFile<'a> {
    (name.to_owned(), Box::new(fill))
}

/// Gives the content of the file `from` the name `to`, too: without a copy where the file system can.
fn link(from: &Path, to: &Path) -> io::Result<()> {
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))
}

/// Optimizer steps of one iteration.
fn steps_an_iteration(ppo: &PpoSettings) -> usize {
    ppo.epochs * ppo.rollouts.div_ceil(ppo.minibatch)
}

/// The prompts of an iteration: a random choice without repetition, as long as there are enough.
fn choose(
    prompts: &Items<Vec<u32>>,
    count: usize,
    seed: u64,
    iteration: usize,
) -> Result<Vec<Vec<u32>>, Error> {
    let order = permutation(seed, "rollout prompts", iteration, prompts.len());
    Ok(prompts.read(order.iter().copied().cycle().take(count))?)
}

/// Means over the optimizer steps of an iteration.
#[derive(Default)]
struct Update {
    steps: f64,
    tokens: usize,
    clip_fraction: f64,
    ratio: f64,
    policy_loss: f64,
    value_loss: f64,
    norms: [f64; 2],
    rates: [f64; 2],
}

impl Update {
    fn fill(&self, line: &mut IterationMetrics) {
        line.clip_fraction = self.clip_fraction / self.steps;
        line.ratio = self.ratio / self.steps;
        line.policy_loss = self.policy_loss / self.steps;
        line.value_loss = self.value_loss / self.steps;
        [line.actor_gradient_norm, line.critic_gradient_norm] = self.norms.map(|n| n / self.steps);
        [line.actor_learning_rate, line.critic_learning_rate] = self.rates;
    }
}

/// Epochs of minibatch steps over one iteration's rollouts.
fn update(
    context: &Context,
    policy: &mut Trainer<CausalLm>,
    critic: &mut Trainer<ScalarModel>,
    rollouts: &[Rollout],
    iteration: usize,
) -> Result<Update, Error> {
    let ppo = &context.settings.ppo;
    let dense = context.settings.method.is_dense();
    let value_clip = if dense { ppo.value_clip_dense } else { ppo.value_clip_bandit };
    let mut sums = Update::default();
    for epoch in 0..ppo.epochs {
        let index = iteration * ppo.epochs + epoch;
        let order = permutation(context.settings.seed, "minibatches", index, rollouts.len());
        for minibatch in order.chunks(ppo.minibatch) {
            sums.rates = [policy.rate(), critic.rate()];
            for chunk in minibatch.chunks(ppo.rows_at_once) {
                let share = chunk.len() as f64 / minibatch.len() as f64;
                let rows: Vec<&Rollout> = chunk.iter().map(|&i| &rollouts[i]).collect();
                let batch = Batch::new(&rows, context);
                sums.tokens += 2 * batch.grid.tokens();
                context.stop.check()?;
                let losses = batch.policy_loss(policy.model(), ppo.clip);
                sums.clip_fraction += share * scalar(losses.clip_fraction);
                sums.ratio += share * scalar(losses.ratio);
                sums.policy_loss += policy.accumulate(losses.loss.mul_scalar(share))?;
                context.stop.check()?;
                let loss = batch.value_loss(critic.model(), value_clip);
                sums.value_loss += critic.accumulate(loss.mul_scalar(share))?;
            }
            sums.norms[0] += policy.update()?;
            sums.norms[1] += critic.update()?;
            sums.steps += 1.0;
        }
    }
    Ok(sums)
}

fn scalar(tensor: Tensor<1>) -> f64 {
    f64::from(tensor.into_scalar::<f32>())
}

/// Rollouts on the device.
struct Batch<'a> {
    rows: &'a [&'a Rollout],
    grid: Grid,
    first: usize,
    device: burn::tensor::Device,
}

impl<'a> Batch<'a> {
    fn new(rows: &'a [&'a Rollout], context: &Context) -> Self {
        let (grid, first) = Grid::aligned(rows.iter().map(|r| (&r.prompt[..], &r.response[..])));
        Self { rows, grid, first, device: context.device.clone().autodiff() }
    }

    /// One value a response token, `[B, R]`; the padding is never read.
    fn pad(&self, of: impl Fn(&Rollout) -> Vec<f32>) -> Tensor<2> {
        let rows: Vec<Vec<f32>> = self.rows.iter().map(|rollout| of(rollout)).collect();
        let width = self.grid.width() - self.first;
        pad_rows(rows.iter().map(Vec::as_slice), width, 0.0, &self.device)
    }

    fn mask(&self) -> Tensor<2, burn::tensor::Bool> {
        self.grid.mask(self.first..self.grid.width(), &self.device)
    }

    fn policy_loss(&self, policy: &CausalLm, clip: f64) -> crate::equations::ppo::PolicyLoss {
        let (log_probs, _) = response_log_probs(policy, &self.grid, self.first);
        let old = self.pad(|r| r.log_probs.clone());
        let advantages = self.pad(|r| narrow(&r.advantages));
        policy_loss(log_probs, old, advantages, self.mask(), clip)
    }

    fn value_loss(&self, critic: &ScalarModel, clip: f64) -> Tensor<1> {
        let values = critic.scores(&self.grid, ReadAt::State.columns(&self.grid, self.first));
        let old = self.pad(|r| r.values.clone());
        let returns = self.pad(|r| narrow(&r.returns));
        value_loss(values, old, returns, self.mask(), clip)
    }
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}
