//! Token-level PPO on segment rewards (E5 to E10).

use std::collections::BTreeMap;
use std::time::Instant;

use burn::module::Module;
use burn::tensor::Tensor;
use serde::{Deserialize, Serialize};

use super::context::{Context, model_fingerprint};
use super::evaluate::{Evaluation, Evaluator};
use super::fit_normalizer::NormalizerFile;
use super::rollout::{Rollout, Sampler};
use super::score::Scorer;
use super::sft::write_model;
use super::task::{Task, permutation};
use crate::error::Error;
use crate::experiment::folder::{Checkpoint, FolderError};
use crate::kl::AdaptiveKl;
use crate::model::checkpoint::{restore, to_safetensors};
use crate::model::generate::{Generation, ReadAt, pad_rows, response_log_probs};
use crate::model::optim::Trainer;
use crate::model::{CausalLm, Grid, ScalarModel};
use crate::ppo::{policy_loss, value_loss};
use crate::report::metrics::{IterationMetrics, IterationTimings, mean};
use crate::rng::stream;

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

/// One line of `evaluations.jsonl`.
#[derive(Serialize)]
struct EvaluationLine<'a> {
    iteration: usize,
    #[serde(flatten)]
    evaluation: &'a Evaluation,
}

const STATE: &str = "state.json";
const BEST: &str = "best.safetensors";

/// Trains the policy of the run's method.
///
/// # Errors
///
/// Every [`Error`].
pub fn run(context: &Context) -> Result<Summary, Error> {
    let settings = &context.settings;
    settings.check_for_ppo()?;
    let ppo = &settings.ppo;
    let reference_dir = context.reference_dir()?;
    let task = Task::open(context, Some(&reference_dir))?;
    let (eos, ends) = (task.tokenizer.eos(), task.tokenizer.sentence_ends());
    let scorer = Scorer::load(context, ends, eos, ppo.rows_at_once)?;
    let file = NormalizerFile::read(context, &scorer)?;
    let fit = serde_json::to_string(&file.normalizer).expect("a plain enum serialises");
    let mut inputs = vec![
        ("model", model_fingerprint(&reference_dir)?),
        ("reward_model", scorer.reward_fingerprint.clone()),
        ("normalizer", fit),
    ];
    inputs.extend(context.data_fingerprints()?);
    let sections = ["method", "data", "segmentation", "sampling", "ppo", "evaluation"];
    let dir = context.method_dir(settings.method, "ppo");
    let mut folder = context.open(dir, "ppo", &sections, &inputs)?;
    if let Some(summary) = folder.summary()? {
        return Ok(summary);
    }

    let device = context.device.clone().autodiff();
    let (policy, config) = CausalLm::load(&reference_dir, &device)?;
    let (critic, _) = ScalarModel::from_language_model(&reference_dir, settings.seed, &device)?;
    let steps = ppo.iterations * ppo.epochs * ppo.rollouts.div_ceil(ppo.minibatch);
    let mut policy = Trainer::new("policy", policy, &ppo.actor, steps);
    let mut critic = Trainer::new("critic", critic, &ppo.critic, steps);
    let mut state =
        State { kl_coefficient: ppo.kl_coefficient, evaluations: 0, best: None, last: None };
    let mut best_weights = Vec::new();
    let mut done = 0;
    if let Some(checkpoint) = folder.latest()? {
        folder.warnings.drain(..).for_each(|warning| context.progress.line(&warning));
        done = checkpoint.step;
        let step = done * steps / ppo.iterations;
        let files = |names: [String; 2]| names.map(|name| checkpoint.file(&name).to_vec());
        let own = files([policy.weights_file(), policy.state_file()]);
        policy = policy.resume(step, [&own[0], &own[1]])?;
        let own = files([critic.weights_file(), critic.state_file()]);
        critic = critic.resume(step, [&own[0], &own[1]])?;
        state = serde_json::from_slice(checkpoint.file(STATE)).map_err(|error| {
            FolderError::Corrupt { path: folder.dir().join(STATE), detail: error.to_string() }
        })?;
        best_weights = checkpoint.file(BEST).to_vec();
    }
    let mut metrics = folder.log("metrics.jsonl", done)?;
    let mut timings = folder.log("timings.jsonl", done)?;
    let mut evaluations = folder.log("evaluations.jsonl", state.evaluations)?;
    let evaluator = Evaluator::new(context, &task, &scorer)?;
    let prompts = task.prompts(context)?.train;
    let generation = Generation {
        sampling: settings.sampling(),
        max_new_tokens: settings.sampling.max_new_tokens,
        eos,
    };
    let stage = context.progress.stage(context.title("ppo"), ppo.iterations, done);
    for iteration in done..ppo.iterations {
        let start = Instant::now();
        let rollouts = Sampler {
            policy: &policy.model().valid(),
            config: &config,
            critic: &critic.model().valid(),
            scorer: &scorer,
            normalizer: &file.normalizer,
            settings: ppo,
            interpolation: settings.interpolation(),
            kl_coefficient: state.kl_coefficient,
            generation,
        }
        .roll_out(
            &choose(&prompts, ppo.rollouts, settings.seed, iteration),
            &mut stream(settings.seed, "rollouts", iteration as u64),
            iteration,
        )?;
        let rollout_seconds = start.elapsed().as_secs_f64();

        let mut line =
            IterationMetrics::of_rollouts(iteration, &rollouts, eos, state.kl_coefficient);
        let gold: Option<Vec<f64>> = rollouts
            .iter()
            .map(|r| task.gold(&r.prompt, &r.response).map(|gold| gold.reward()))
            .collect();
        line.gold = gold.map(|gold| mean(gold.into_iter()));
        let start = Instant::now();
        let update = update(context, &mut policy, &mut critic, &rollouts, iteration)?;
        let update_seconds = start.elapsed().as_secs_f64();
        update.fill(&mut line);
        metrics.write(&line)?;
        let response_tokens: usize = rollouts.iter().map(|r| r.response.len()).sum();
        timings.write(&IterationTimings {
            iteration,
            rollout_seconds,
            update_seconds,
            rollout_tokens_per_second: response_tokens as f64 / rollout_seconds,
            update_tokens_per_second: update.tokens as f64 / update_seconds,
        })?;
        if let Some(target) = ppo.kl_target {
            let coefficient = state.kl_coefficient;
            let mut adaptive = AdaptiveKl { coefficient, target, horizon: ppo.kl_horizon };
            adaptive.update(line.kl_k1, rollouts.len());
            state.kl_coefficient = adaptive.coefficient;
        }

        let finished = iteration + 1;
        if finished.is_multiple_of(ppo.evaluate_every) || finished == ppo.iterations {
            let model = policy.model().valid();
            let evaluation = evaluator.judge(&model, &config)?.evaluation;
            evaluations.write(&EvaluationLine { iteration: finished, evaluation: &evaluation })?;
            state.evaluations = evaluations.lines();
            let score = |e: &Evaluation| e.gold.unwrap_or(e.sequence_score);
            if state.best.as_ref().is_none_or(|(_, best)| score(&evaluation) > score(best)) {
                state.best = Some((finished, evaluation.clone()));
                best_weights = to_safetensors(&model);
            }
            state.last = Some(evaluation);
        }
        let reward =
            line.gold.map_or(format!("reward {:.2}", line.reward), |g| format!("gold {g:.2}"));
        stage.step(format!("{reward}, KL {:.2}", line.kl_k1));
        if finished == ppo.iterations {
            break;
        }
        let mut files: BTreeMap<String, Vec<u8>> =
            policy.files().into_iter().chain(critic.files()).collect();
        files.insert(STATE.into(), serde_json::to_vec(&state).expect("a plain struct serialises"));
        files.insert(BEST.into(), best_weights.clone());
        folder.save(&Checkpoint { step: finished, files })?;
        if context.stop.after_step() {
            return Err(context.interrupted(folder.dir()));
        }
    }

    let model = policy.model().valid();
    let best_model = restore(model.clone(), BEST.as_ref(), &best_weights)?;
    write_model(folder.dir(), &task, |dir| model.save(&config, dir))?;
    write_model(&folder.dir().join("best"), &task, |dir| best_model.save(&config, dir))?;
    let last = state.last.expect("the last iteration is evaluated");
    let (best_iteration, best) = state.best.expect("the last iteration is evaluated");
    let summary = Summary { iterations: ppo.iterations, last, best_iteration, best };
    folder.finish(&summary)?;
    let score = summary.last.gold.map(|gold| format!("gold {gold:.2}"));
    let score = score.unwrap_or_else(|| format!("reward {:.2}", summary.last.sequence_score));
    stage.finish(format!("{} iterations, {score}, KL {:.2}", ppo.iterations, summary.last.kl));
    Ok(summary)
}

/// The prompts of an iteration: a random choice without repetition, as long as there are enough.
fn choose(prompts: &[Vec<u32>], count: usize, seed: u64, iteration: usize) -> Vec<&[u32]> {
    let order = permutation(seed, "rollout prompts", iteration, prompts.len());
    order.iter().cycle().take(count).map(|&i| &prompts[i][..]).collect()
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
                let losses = batch.policy_loss(policy.model(), ppo.clip);
                sums.clip_fraction += share * scalar(losses.clip_fraction);
                sums.ratio += share * scalar(losses.ratio);
                sums.policy_loss += policy.accumulate(losses.loss.mul_scalar(share))?;
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

    fn policy_loss(&self, policy: &CausalLm, clip: f64) -> crate::ppo::PolicyLoss {
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
