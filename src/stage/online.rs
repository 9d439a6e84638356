//! The loop of every PPO-like system: sample → score → credit → loss → step.
//!
//! What is sampled, where rewards come from, whose credit they are and which loss learns from them is the
//! [`System`]'s choice. Logs, checkpoints and the best policy are the business of [`keep`].

pub mod keep;
mod learner;
mod measure;

use std::time::Instant;

use burn::tensor::Tensor;

use self::keep::{Keeper, Summary};
use self::learner::Learner;
use self::measure::{compare_with_truth, metrics_of};
use super::fit_normalizer::NormalizerFile;
use super::score::Scorer;
use super::task::{Task, permutation};
use super::{memory, rates};
use crate::data::letters::Gold;
use crate::equations::kl::AdaptiveKl;
use crate::model::generate::{ReadAt, Rows, to_vec};
use crate::model::optim::{StepResult, Trainer};
use crate::model::sampling::Sampling;
use crate::model::{CausalLm, ModelConfig, ScalarModel};
use crate::rng::stream;
use crate::run::fingerprint::file_fingerprint;
use crate::run::metrics::{IterationMetrics, IterationTimings};
use crate::run::{Context, Error, Stage};
use crate::settings::Settings;
use crate::systems::interface::Leaf;
use crate::systems::{
    Chunk, Clipped, Draw, Minibatch, Parts, Path, PpoSettings, Replay, Rollouts, Sample, System,
    SystemError, TaskParts,
};

/// Trains the policy of the run's method.
pub fn run(context: &Context) -> Result<Summary, Error> {
    let context = &context.within(Stage::Ppo);
    let settings = &context.settings;
    if settings.weights().is_some() {
        let method = settings.method.name();
        return Err(Error::Usage(format!(
            "ppo: {method} learns from preference pairs: run dpo --method {method}"
        )));
    }
    if settings.sampling() != Sampling::PLAIN {
        return Err(Error::SamplingForPpo(settings.sampling()));
    }
    let ppo = &settings.ppo;
    context
        .check_ranks(&[("ppo.minibatch", ppo.minibatch), ("ppo.rows_at_once", ppo.rows_at_once)])?;
    let reference_dir = context.reference_dir()?;
    let task = Task::open(context, Some(&reference_dir))?;
    let config = ModelConfig::from_dir(&reference_dir)?;
    let longest = task.longest_rollout(context)?;
    memory::announce(context, &context.dir(Stage::Ppo), &config, longest, |e, lengths| {
        e.ppo(lengths)
    })?;
    let (stops, ends) = (task.tokenizer.stop_tokens(), task.tokenizer.sentence_ends());
    let scorer = Scorer::load(context, ends, stops, settings.ppo.rows_at_once)?;
    let normalizer = NormalizerFile::normalizer_of(context, &scorer)?;
    let prompts = task.prompts(context)?;
    let lists = [&prompts.train, &prompts.held_out];
    let fit = serde_json::to_string(&normalizer).expect("a plain enum serialises");
    let system = settings.method.build(&Parts {
        method: settings.method,
        ppo: &settings.ppo,
        section: settings.systems.section(settings.method),
        max_new_tokens: settings.sampling.max_new_tokens,
        judge: &scorer.judge,
        normalizer: &normalizer,
        task: TaskParts {
            tokenizer: &task.tokenizer,
            prompts: &lists,
            prompt_tokens: settings.sampling.prompt_tokens,
            truth: task.truth(),
        },
    })?;
    let mut inputs = scorer.fingerprints.inputs();
    inputs.push(("normalizer", fit));
    for (name, path) in &system.files {
        inputs.push((name, file_fingerprint(path)?));
    }
    inputs.extend(context.data_fingerprints()?);
    let mut folder = context.open(Stage::Ppo, &inputs)?;
    if let Some(summary) = folder.summary()? {
        return Ok(summary);
    }
    let optimizers = ["ppo.actor", "ppo.critic"];
    let trained = if system.value_clip.is_some() { &optimizers[..] } else { &optimizers[..1] };
    rates::tell(context, &config, trained);
    let mut learner = Learner::new(context, &task, &scorer, system, &prompts.train, config)?;
    let mut keeper = Keeper::resume(&mut learner, &mut folder)?;
    while learner.iteration < settings.ppo.iterations {
        let (metrics, timings) = learner.iterate()?;
        keeper.keep(&learner, &metrics, &timings)?;
    }
    keeper.finish(&learner)
}

impl Learner<'_> {
    /// One iteration: rollouts, and the optimizer steps over them.
    fn iterate(&mut self) -> Result<(IterationMetrics, IterationTimings), Error> {
        let (iteration, stops) = (self.iteration, self.task.tokenizer.stop_tokens());
        let start = Instant::now();
        let (samples, drawn) = self.roll_out()?;
        let rollout_seconds = start.elapsed().as_secs_f64();
        let mut line = metrics_of(iteration, &samples, stops, self.kl_coefficient);
        line.sampled_tokens = drawn;
        let truth = samples.iter().map(|s| self.task.gold(&s.prompt, &s.response));
        if let Some(truth) = truth.collect::<Option<Vec<Gold>>>() {
            compare_with_truth(&mut line, &samples, &truth);
        }
        let start = Instant::now();
        let edges = self.system.replay.map(|replay| self.exchange(&samples, replay));
        let tokens = self.update(edges.as_ref().unwrap_or(&samples), &mut line)?;
        let update_seconds = start.elapsed().as_secs_f64();
        self.adapt_kl(line.kl_k1);
        self.iteration += 1;
        let timings = IterationTimings {
            iteration,
            rollout_seconds,
            update_seconds,
            rollout_tokens_per_second: drawn as f64 / rollout_seconds,
            update_tokens_per_second: tokens as f64 / update_seconds,
        };
        Ok((line, timings))
    }

    /// The samples of an iteration, and the tokens that were drawn.
    fn roll_out(&self) -> Result<(Vec<Sample>, usize), Error> {
        let settings = &self.context.settings;
        let policy = self.policy.model().inference();
        let critic = self.critic.as_ref().map(|critic| critic.model().inference());
        let draw = Draw {
            policy: &policy,
            config: &self.config,
            generation: settings.generation(self.task.tokenizer.stop_tokens()),
            seed: settings.seed,
            iteration: self.iteration,
            kl_coefficient: self.kl_coefficient,
            rows_at_once: settings.ppo.rows_at_once,
            stop: &self.context.stop,
        };
        let prompts = self.choose_prompts()?;
        let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
        let samples =
            roll_out(&self.system, &draw, &self.scorer.reference, critic.as_ref(), &prompts);
        Ok(samples.map_err(|error| error.at(self.iteration))?)
    }

    /// The prompts of an iteration, each as often as the system samples it, those of trees once: a random choice without repetition, as long
    /// as there are enough.
    fn choose_prompts(&self) -> Result<Vec<Vec<u32>>, Error> {
        let (settings, responses) = (&self.context.settings, self.system.rollouts.responses());
        let count = settings.ppo.rollouts / responses;
        let order =
            permutation(settings.seed, "rollout prompts", self.iteration, self.prompts.len());
        let chosen = self.prompts.read(order.iter().copied().cycle().take(count))?;
        let copies = match self.system.rollouts {
            Rollouts::Tree { .. } => 1,
            _ => responses,
        };
        Ok(chosen.into_iter().flat_map(|prompt| vec![prompt; copies]).collect())
    }

    /// The edges that the iteration learns from in place of its samples.
    fn exchange(&mut self, samples: &[Sample], replay: Replay) -> Vec<Sample> {
        let Settings { ppo, seed, .. } = &self.context.settings;
        let mut rng = stream(*seed, "replay", self.iteration as u64);
        let least = ppo.rollouts.div_ceil(ppo.minibatch);
        self.waiting.exchange(samples, self.iteration, replay, least, &mut rng)
    }

    /// Loss → step: epochs of minibatches over the samples. Fills in the metrics of the update; gives the tokens that
    /// the models read.
    fn update(&mut self, samples: &[Sample], line: &mut IterationMetrics) -> Result<usize, Error> {
        let (settings, stop) = (&self.context.settings, &self.context.stop);
        let ppo = &settings.ppo;
        let (mut means, mut tokens) = (Means::default(), 0);
        for epoch in 0..ppo.epochs {
            let index = self.iteration * ppo.epochs + epoch;
            let order = permutation(settings.seed, "minibatches", index, samples.len());
            for minibatch in minibatches(&order, ppo) {
                line.actor_learning_rate = self.policy.rate();
                line.critic_learning_rate = self.critic.as_ref().map(Trainer::rate);
                let whole = Minibatch::of(minibatch.iter().map(|&i| &samples[i]));
                for chunk in minibatch.chunks(ppo.rows_at_once) {
                    let rows = chunk.iter().map(|&i| &samples[i]).collect();
                    let chunk = Chunk::new(rows, whole, &self.device);
                    stop.check()?;
                    let loss = self.system.loss;
                    for clipped in chunk.learn_policy(&mut self.policy, loss, self.kl_coefficient) {
                        means.add(clipped);
                    }
                    tokens += chunk.tokens();
                    if let (Some(critic), Some(clip)) = (&mut self.critic, self.system.value_clip) {
                        stop.check()?;
                        chunk.learn_values(critic, clip);
                        tokens += chunk.tokens();
                    }
                }
                let StepResult { loss, gradient_norm } = self.policy.update()?;
                means.policy_loss += loss;
                means.norms[0] += gradient_norm;
                if let Some(critic) = &mut self.critic {
                    let StepResult { loss, gradient_norm } = critic.update()?;
                    means.value_loss += loss;
                    means.norms[1] += gradient_norm;
                }
                means.steps += 1.0;
            }
        }
        means.fill(line, self.critic.is_some());
        Ok(tokens)
    }

    fn adapt_kl(&mut self, kl: f64) {
        let ppo = &self.context.settings.ppo;
        if let Some(target) = ppo.kl_target {
            let coefficient = self.kl_coefficient;
            let mut adaptive = AdaptiveKl { coefficient, target, horizon: ppo.kl_horizon };
            adaptive.update(kl, ppo.rollouts);
            self.kl_coefficient = adaptive.coefficient;
        }
    }
}

/// The minibatches of an epoch over samples in this order: as many for each iteration, so that a tree with fewer leaves has
/// smaller ones.
fn minibatches<'a>(order: &'a [usize], ppo: &PpoSettings) -> Vec<&'a [usize]> {
    if order.len() == ppo.rollouts {
        return order.chunks(ppo.minibatch).collect();
    }
    let (n, count) = (order.len(), ppo.rollouts.div_ceil(ppo.minibatch));
    (0..count).map(|i| &order[i * n / count..(i + 1) * n / count]).collect()
}

/// Sample → score → credit: a response to each prompt, or the leaves of its tree, those of one prompt side by side, with
/// rewards and advantages; and the number of tokens that were drawn.
pub fn roll_out(
    system: &System<'_>,
    draw: &Draw<'_>,
    reference: &CausalLm,
    critic: Option<&ScalarModel>,
    prompts: &[&[u32]],
) -> Result<(Vec<Sample>, usize), SystemError> {
    let leaves = match &system.rollouts {
        Rollouts::Tree { branches, level_tokens } => {
            draw.trees(prompts, branches, *level_tokens)?
        }
        _ => {
            let responses = draw.responses("rollouts", prompts)?.into_iter().enumerate();
            let leaf = |(tree, response)| Leaf { response, path: Path { tree, edges: vec![] } };
            responses.map(leaf).collect()
        }
    };
    let rows = leaves.iter().map(|leaf| (prompts[leaf.path.tree], &leaf.response[..]));
    let rows: Vec<(&[u32], &[u32])> = rows.collect();

    let rows = Rows::new(&rows, draw.rows_at_once);
    // A second pass, not the log-probabilities of sampling: with the cache, one column at a time, half of them differ in
    // their last bits (by up to 1e-6 in f32), and the first ratio of the update would not be exactly 1.
    let views = rows.view(draw.policy, draw.stop)?;
    let values = critic.map(|critic| rows.scalars(critic, ReadAt::State, draw.stop)).transpose()?;
    let reference = rows.view(reference, draw.stop)?;
    let rewarded = system.rewards.score(&rows, &reference)?;

    let mut values = values.map(Vec::into_iter);
    let read = rows.rows().iter().zip(views).zip(reference).zip(rewarded);
    let sample = |(((&(prompt, response), view), reference), rewarded)| {
        let values = values.as_mut().map(|of| of.next().expect("values of each row"));
        Sample::new(prompt, response, view, reference, values, rewarded)
    };
    let mut samples: Vec<Sample> = read.map(sample).collect();
    for (sample, leaf) in samples.iter_mut().zip(&leaves) {
        sample.path = leaf.path.clone();
    }
    let drawn = system.credit.assign(&mut samples, draw)?;
    Ok((samples, drawn))
}

/// Sums over the optimizer steps of an iteration, for their means.
#[derive(Default)]
struct Means {
    steps: f64,
    policy_loss: f64,
    value_loss: f64,
    norms: [f64; 2],
    /// Each batch's share of a step; the tensors stay on the device and are read at the end, in one transfer.
    shares: Vec<f64>,
    clip_fractions: Vec<Tensor<1>>,
    ratios: Vec<Tensor<1>>,
}

impl Means {
    fn add(&mut self, clipped: Clipped) {
        self.shares.push(clipped.share);
        self.clip_fractions.push(clipped.fraction);
        self.ratios.push(clipped.ratio);
    }

    fn fill(mut self, line: &mut IterationMetrics, critic: bool) {
        let n = self.shares.len();
        self.clip_fractions.append(&mut self.ratios);
        let read = to_vec(Tensor::cat(self.clip_fractions, 0));
        let mean = |values: &[f32]| {
            let values = values.iter().zip(&self.shares);
            values.fold(0.0, |sum, (&value, share)| sum + share * f64::from(value)) / self.steps
        };
        line.clip_fraction = mean(&read[..n]);
        line.ratio = mean(&read[n..]);
        line.policy_loss = self.policy_loss / self.steps;
        line.actor_gradient_norm = self.norms[0] / self.steps;
        line.value_loss = critic.then_some(self.value_loss / self.steps);
        line.critic_gradient_norm = critic.then_some(self.norms[1] / self.steps);
    }
}
