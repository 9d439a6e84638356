//! How the stages put the equations together: every number of a rollout computed a second time, from the models'
//! outputs for one response at a time, in plain loops over f64.

use std::ops::Range;
use std::path::Path;

use segment_rlhf::equations::interpolation::Interpolation;
use segment_rlhf::equations::normalizer::Normalizer;
use segment_rlhf::model::generate::to_vec;
use segment_rlhf::model::{CausalLm, FreshHead, Grid, ScalarModel};
use segment_rlhf::run::metrics::IterationMetrics;
use segment_rlhf::run::{Context, Stage};
use segment_rlhf::stage::online::roll_out;
use segment_rlhf::stage::score::Scorer;
use segment_rlhf::stage::task::{Task, permutation};
use segment_rlhf::stage::{fit_normalizer, preferences, reward, sft};
use segment_rlhf::systems::{Draw, Parts, PpoSettings, Sample, System, TaskParts};

use crate::support::{context, pipeline};

/// f32 on a CPU, summed over some twenty tokens of magnitude 10.
const CLOSE: f64 = 1e-3;

#[track_caller]
fn close(actual: f64, expected: f64, what: &str) {
    assert!((actual - expected).abs() <= CLOSE, "{what}: {actual}, expected {expected}");
}

/// The models of a run, and what a rollout needs beside them.
struct Models {
    reference: CausalLm,
    policy: CausalLm,
    reward: ScalarModel,
    critic: ScalarModel,
    normalizer: Normalizer,
}

/// Rollouts of the run's last policy with a fresh critic, and the parts they were made of.
fn rollouts(context: &Context, interpolation: Interpolation) -> (Vec<Sample>, Models) {
    let (settings, device) = (&context.settings, &context.device);
    let reference_dir = context.reference_dir().unwrap();
    let task = Task::open(context, Some(&reference_dir)).unwrap();
    let (stops, ends) = (task.tokenizer.stop_tokens(), task.tokenizer.sentence_ends());
    let scorer = Scorer::load(context, ends, stops, 3).unwrap();
    let (policy, config) =
        CausalLm::load(&context.policy_dir().unwrap().join("model"), device).unwrap();
    let critic =
        ScalarModel::from_language_model(&reference_dir, FreshHead::official("critic", 7), device)
            .unwrap()
            .0;
    let reward_dir = context.reward_dir().unwrap().join("model");
    let parts = Models {
        reference: CausalLm::load(&reference_dir, device).unwrap().0,
        policy,
        reward: ScalarModel::load(&reward_dir, device).unwrap().0,
        critic,
        normalizer: fit_normalizer::run(context).unwrap().normalizer,
    };
    let prompts = task.prompts(context).unwrap().train.read(0..8).unwrap();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let mut ppo = settings.ppo.clone();
    ppo.interpolation = interpolation;
    let system = system(context, &ppo, &scorer, &parts.normalizer, &task);
    let draw = Draw {
        policy: &parts.policy,
        config: &config,
        generation: settings.generation(stops),
        seed: 3,
        iteration: 0,
        kl_coefficient: 0.05,
        rows_at_once: ppo.rows_at_once,
        stop: &context.stop,
    };
    let critic = Some(&parts.critic);
    let rollouts = roll_out(&system, &draw, &scorer.reference, critic, &prompts).unwrap().0;
    drop(system);
    (rollouts, parts)
}

/// The choices of the run's method.
fn system<'a>(
    context: &'a Context,
    ppo: &'a PpoSettings,
    scorer: &'a Scorer,
    normalizer: &'a Normalizer,
    task: &'a Task,
) -> System<'a> {
    let settings = &context.settings;
    let parts = Parts {
        method: settings.method,
        ppo,
        section: None,
        max_new_tokens: settings.sampling.max_new_tokens,
        judge: &scorer.judge,
        normalizer,
        task: TaskParts::of(&task.tokenizer),
    };
    settings.method.build(&parts).unwrap()
}

/// ln π of every response token, and the entropy of the distribution that it was drawn from.
fn read(model: &CausalLm, rollout: &Sample) -> (Vec<f64>, Vec<f64>) {
    let row = [&rollout.prompt[..], &rollout.response[..]].concat();
    let (n, first) = (row.len(), rollout.prompt.len());
    let logits = to_vec(model.logits(&Grid::new([(0, row.clone())], n), 0..n));
    let vocabulary = logits.len() / n;
    let token = |i: usize| {
        let logits: Vec<f64> = logits[(i - 1) * vocabulary..i * vocabulary]
            .iter()
            .map(|&logit| f64::from(logit))
            .collect();
        let total = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
        let entropy: f64 =
            logits.iter().map(|logit| -(logit - total).exp() * (logit - total)).sum();
        (logits[row[i] as usize] - total, entropy)
    };
    (first..n).map(token).unzip()
}

/// The scalar at every token of prompt and response.
fn scalars(model: &ScalarModel, rollout: &Sample) -> Vec<f64> {
    let row = [&rollout.prompt[..], &rollout.response[..]].concat();
    let n = row.len();
    let all = to_vec(model.scores(&Grid::new([(0, row)], n), 0..n));
    all.into_iter().map(f64::from).collect()
}

/// E1, as published: EOS belongs to no segment, unless it stands alone.
fn cut(entropies: &[f64], cutoff: f64, ends_with_eos: bool) -> Vec<Range<usize>> {
    let n = entropies.len();
    let end = if ends_with_eos && n > 1 { n - 1 } else { n };
    let mut starts = vec![0];
    starts.extend((1..end).filter(|&i| entropies[i] > cutoff));
    let ends = starts.iter().skip(1).copied().chain([end]);
    starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect()
}

/// A run whose responses have several segments.
const SEVERAL_SEGMENTS: [&str; 4] =
    ["method=segment", "segmentation.entropy_cutoff=2.5", "sft.epochs=20", "sft.batch=8"];

#[test]
fn every_number_of_a_rollout_is_what_the_equations_give() {
    let dir = tempfile::tempdir().unwrap();
    let context = pipeline(dir.path(), &SEVERAL_SEGMENTS);
    let eos =
        Task::open(&context, Some(&context.reference_dir().unwrap())).unwrap().tokenizer.eos();
    let (rollouts, parts) = rollouts(&context, Interpolation::EvenSplit);
    let Normalizer::LocationAware { w_mean, b_mean, w_std, b_std, std_floor: Some(floor) } =
        parts.normalizer
    else {
        panic!("{:?}", parts.normalizer)
    };
    assert!(rollouts.iter().any(|r| r.segments.len() > 2), "more than one segment is cut");
    assert!(rollouts.iter().any(|r| r.log_probs != r.ref_log_probs), "the policy has moved");
    let mut advantages = Vec::new();
    for rollout in &rollouts {
        let (n, prompt) = (rollout.response.len(), rollout.prompt.len());
        let (log_probs, policy_entropies) = read(&parts.policy, rollout);
        let (ref_log_probs, entropies) = read(&parts.reference, rollout);
        let scores = scalars(&parts.reward, rollout);
        let values = scalars(&parts.critic, rollout);
        // E1: of the reference's entropies, whatever the policy thinks.
        let segments = cut(&entropies, 2.5, rollout.response[n - 1] == eos);
        assert_eq!(rollout.segments, segments);
        // E2, E3: read at each segment's last token; E5 at p = (t+1)/T.
        let rewards: Vec<f64> = segments.iter().map(|s| scores[prompt + s.end - 1]).collect();
        let count = rewards.len() as f64;
        close(rollout.sequence_score, rewards.iter().sum::<f64>() / count, "e_φ");
        let mut dense = vec![0.0; n];
        for (t, (segment, reward)) in segments.iter().zip(&rewards).enumerate() {
            close(rollout.rewards[t], *reward, "r");
            let log_p = ((t as f64 + 1.0) / count).ln();
            let std = (w_std * log_p + b_std).max(floor);
            let normalized = (reward - (w_mean * log_p + b_mean)) / std;
            close(rollout.normalized[t], normalized, "r̂");
            // E6: an even share for each token.
            for i in segment.clone() {
                dense[i] = normalized / segment.len() as f64;
            }
        }
        // E7, and the value of the state *before* each token.
        let value = |i: usize| if i < n { values[prompt + i - 1] } else { 0.0 };
        let reward =
            |i: usize| dense[i].clamp(-10.0, 10.0) - 0.05 * (log_probs[i] - ref_log_probs[i]);
        let (gamma, lambda) = (context.settings.ppo.gamma, context.settings.ppo.lambda);
        for i in 0..n {
            close(f64::from(rollout.log_probs[i]), log_probs[i], "ln π_θ");
            close(f64::from(rollout.ref_log_probs[i]), ref_log_probs[i], "ln π_SFT");
            close(f64::from(rollout.entropies[i]), policy_entropies[i], "the policy's entropy");
            close(f64::from(rollout.values.as_ref().unwrap()[i]), value(i), "V");
            close(rollout.token_rewards[i], reward(i), "r̃");
            // E8: the double sum.
            let advantage: f64 = (i..n)
                .map(|k| {
                    let delta = reward(k) + gamma * value(k + 1) - value(k);
                    (gamma * lambda).powi((k - i) as i32) * delta
                })
                .sum();
            close(
                rollout.returns.as_ref().unwrap()[i],
                advantage + value(i),
                "A + V before whitening",
            );
            advantages.push(advantage);
        }
    }
    // Whitened over all tokens of all rollouts.
    let count = advantages.len() as f64;
    let mean = advantages.iter().sum::<f64>() / count;
    let variance = advantages.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / count;
    let whitened = rollouts.iter().flat_map(|r| &r.advantages);
    for (actual, advantage) in whitened.zip(&advantages) {
        close(*actual, (advantage - mean) / variance.sqrt(), "A, whitened");
    }
}

#[test]
fn a_length_neutral_return_shares_each_reward_by_the_number_of_segments() {
    let dir = tempfile::tempdir().unwrap();
    let mut context = pipeline(dir.path(), &SEVERAL_SEGMENTS);
    let (summed, _) = rollouts(&context, Interpolation::EvenSplit);
    context.settings.ppo.length_neutral = true;
    let (neutral, _) = rollouts(&context, Interpolation::EvenSplit);
    assert!(summed.iter().any(|r| r.segments.len() > 2), "more than one segment is cut");
    for (summed, neutral) in summed.iter().zip(&neutral) {
        assert_eq!((&summed.response, &summed.rewards), (&neutral.response, &neutral.rewards));
        let total = |rewards: &[f64]| rewards.iter().sum::<f64>();
        let mean = total(&summed.normalized) / summed.segments.len() as f64;
        close(total(&neutral.normalized), mean, "Σ r̂");
        // The KL term is the same sum in both returns.
        let kl = total(&summed.normalized) - total(&summed.token_rewards);
        close(total(&neutral.token_rewards), mean - kl, "Σ r̃");
    }
}

fn metrics(context: &Context) -> Vec<IterationMetrics> {
    let path = context.dir(Stage::Ppo).join("metrics.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn the_losses_of_the_first_step_are_minus_the_mean_advantage_and_half_the_squared_return_error() {
    let dir = tempfile::tempdir().unwrap();
    let context = pipeline(dir.path(), &["method=segment", "ppo.iterations=1"]);
    let first = metrics(&context).remove(0);
    // The same rollouts: the policy still is the reference, and the draws have names.
    let settings = &context.settings;
    let reference_dir = context.reference_dir().unwrap();
    let task = Task::open(&context, Some(&reference_dir)).unwrap();
    let (stops, ends) = (task.tokenizer.stop_tokens(), task.tokenizer.sentence_ends());
    let scorer = Scorer::load(&context, ends, stops, 3).unwrap();
    let (policy, config) = CausalLm::load(&reference_dir, &context.device).unwrap();
    let critic = ScalarModel::from_language_model(
        &reference_dir,
        FreshHead::official("critic", settings.seed),
        &context.device,
    );
    let normalizer = fit_normalizer::run(&context).unwrap().normalizer;
    let system = system(&context, &settings.ppo, &scorer, &normalizer, &task);
    let draw = Draw {
        policy: &policy,
        config: &config,
        generation: settings.generation(stops),
        seed: settings.seed,
        iteration: 0,
        kl_coefficient: settings.ppo.kl_coefficient,
        rows_at_once: settings.ppo.rows_at_once,
        stop: &context.stop,
    };
    let prompts = task.prompts(&context).unwrap().train;
    let order = permutation(settings.seed, "rollout prompts", 0, prompts.len());
    let prompts = prompts.read(order.iter().copied().cycle().take(8)).unwrap();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let critic = critic.unwrap().0;
    let rolled_out = roll_out(&system, &draw, &scorer.reference, Some(&critic), &prompts);
    let rollouts = rolled_out.unwrap().0;
    let mean_of = |row: &dyn Fn(&Sample, usize) -> f64| {
        let rows = rollouts.iter().map(|rollout| {
            let n = rollout.response.len();
            (0..n).map(|i| row(rollout, i)).sum::<f64>() / n as f64
        });
        rows.sum::<f64>() / rollouts.len() as f64
    };
    close(first.policy_loss, -mean_of(&|r, i| r.advantages[i]), "E9");
    let error = |r: &Sample, i: usize| {
        r.returns.as_ref().unwrap()[i] - f64::from(r.values.as_ref().unwrap()[i])
    };
    close(first.value_loss.unwrap(), 0.5 * mean_of(&|r, i| error(r, i).powi(2)), "E10");
    // Whitening divided the advantages, returns less values, by their spread.
    let row = &rollouts[0];
    let (last, spread) = (row.response.len() - 1, first.advantage_spread);
    let before = error(row, last) - error(row, 0);
    assert!(before.abs() > 0.01, "{before}");
    close((row.advantages[last] - row.advantages[0]) * spread, before, "spread");
}

#[test]
fn each_value_clip_concerns_its_own_methods() {
    let trained = |method: &str, clip: &str| {
        let dir = tempfile::tempdir().unwrap();
        let method = format!("method={method}");
        let more = [&method[..], "ppo.epochs=3", "ppo.critic.learning_rate=0.01", clip];
        let context = pipeline(dir.path(), &more);
        metrics(&context).iter().map(|line| line.value_loss.unwrap()).collect::<Vec<f64>>()
    };
    let (dense, bandit) = ("ppo.value_clip_dense=0.001", "ppo.value_clip_bandit=0.001");
    let nothing = "ppo.epochs=3";
    assert_ne!(trained("segment", nothing), trained("segment", dense));
    assert_eq!(trained("segment", nothing), trained("segment", bandit));
    assert_ne!(trained("bandit", nothing), trained("bandit", bandit));
    assert_eq!(trained("bandit", nothing), trained("bandit", dense));
}

/// Losses of reward training, and the mean of chosen less rejected scores over its pairs afterwards.
fn reward_training(dir: &Path, more: &[&str]) -> (Vec<f64>, f64) {
    let context = context(dir, &[&["method=bandit", "reward.epochs=12"], more].concat());
    sft::run(&context).unwrap();
    reward::run(&context).unwrap();
    let text = std::fs::read_to_string(dir.join("bandit/reward/metrics.jsonl")).unwrap();
    let loss = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].as_f64().unwrap()
    };
    let reference = context.reference_dir().unwrap();
    let task = Task::open(&context, Some(&reference)).unwrap();
    let tokenizer = &task.tokenizer;
    let scorer =
        Scorer::load(&context, tokenizer.sentence_ends(), tokenizer.stop_tokens(), 8).unwrap();
    let (pairs, _) = preferences::load(&context, &task, false).unwrap();
    let pairs = pairs.train.read(0..pairs.train.len()).unwrap();
    let gap = |pair: &preferences::Pair| {
        let scored = scorer.score(&pair.rows()).unwrap();
        scored[0].1.sequence_score - scored[1].1.sequence_score
    };
    let gaps: Vec<f64> = pairs.iter().map(gap).collect();
    (text.lines().map(loss).collect(), gaps.iter().sum::<f64>() / gaps.len() as f64)
}

#[test]
fn reward_training_raises_the_chosen_above_the_rejected_and_a_margin_by_more() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let (losses, gap) = reward_training(dirs[0].path(), &[]);
    let (losses_with_margin, gap_with_margin) =
        reward_training(dirs[1].path(), &["reward.margin=2"]);
    assert!(losses.last() < losses.first(), "{losses:?}");
    assert!(gap > 0.2, "{gap}");
    // E4 before the first step: -ln σ(d - 2) exceeds -ln σ(d) by 1 to 2.
    let more = losses_with_margin[0] - losses[0];
    assert!((1.0..2.0).contains(&more), "{more}");
    assert!(gap_with_margin > gap, "{gap_with_margin} {gap}");
}

#[test]
fn each_kind_of_normalizer_is_fitted_on_both_responses_of_every_pair() {
    let dir = tempfile::tempdir().unwrap();
    let mut context = context(dir.path(), &["method=sentence"]);
    sft::run(&context).unwrap();
    reward::run(&context).unwrap();
    let reference = context.reference_dir().unwrap();
    let task = Task::open(&context, Some(&reference)).unwrap();
    let tokenizer = &task.tokenizer;
    let scorer =
        Scorer::load(&context, tokenizer.sentence_ends(), tokenizer.stop_tokens(), 8).unwrap();
    let (pairs, _) = preferences::load(&context, &task, false).unwrap();
    let pairs = pairs.train.read(0..pairs.train.len()).unwrap();
    let rewards: Vec<Vec<f64>> = pairs
        .iter()
        .flat_map(|pair| scorer.score(&pair.rows()).unwrap())
        .map(|(_, scored)| scored.rewards)
        .collect();
    assert_eq!(rewards.len(), 2 * pairs.len());
    assert!(rewards.iter().any(|rewards| rewards.len() > 1));
    let all = rewards.concat();
    let last: Vec<f64> = rewards.iter().map(|rewards| rewards[rewards.len() - 1]).collect();
    for (kind, sample) in [("global", &all), ("last", &last)] {
        let folder = context.dir(Stage::FitNormalizer);
        let _ = std::fs::remove_dir_all(folder);
        context.settings.normalizer.kind = serde_json::from_value(kind.into()).unwrap();
        let file = fit_normalizer::run(&context).unwrap();
        assert_eq!(file.rewards, all.len());
        let count = sample.len() as f64;
        let expected = sample.iter().sum::<f64>() / count;
        let variance = sample.iter().map(|r| (r - expected).powi(2)).sum::<f64>() / count;
        let Normalizer::Scalar { mean, std } = file.normalizer else { panic!("{file:?}") };
        close(mean, expected, kind);
        close(std, variance.sqrt(), kind);
    }
}
