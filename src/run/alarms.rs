//! Signs that a training goes wrong, read from its log.
//!
//! An alarm is a function of the logs alone, so a resumed run raises the same ones at the same steps, and a report finds
//! them afterwards.

use std::collections::VecDeque;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::metrics::IterationMetrics;
use crate::equations::kl::REWARD_CLIP;
use crate::settings::AlarmSettings;
use crate::statistics::mean;

/// A sign that a training goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Alarm {
    /// The loss grows
    Loss,
    /// Rewards or scores grow without bound
    Reward,
    /// The policy is far from the reference model
    Kl,
    /// Responses end at the length limit
    Length,
    /// The reward rises while the held-out score falls
    HeldOut,
    /// A reward model is right no more often than a coin
    Accuracy,
    /// The policy's entropy collapses
    Entropy,
}

impl Alarm {
    const OF_ITERATIONS: [Self; 6] =
        [Self::Loss, Self::Reward, Self::Kl, Self::Length, Self::HeldOut, Self::Entropy];

    /// Its name, as in `--stop-on`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loss => "loss",
            Self::Reward => "reward",
            Self::Kl => "kl",
            Self::Length => "length",
            Self::HeldOut => "held-out",
            Self::Accuracy => "accuracy",
            Self::Entropy => "entropy",
        }
    }

    /// What usually helps.
    fn remedy(self) -> &'static str {
        match self {
            Self::Loss => "lower the learning rate",
            Self::Reward => {
                "lower reward.optimizer.learning_rate or set reward.regularizer, and train the reward model again"
            }
            Self::Kl => "raise ppo.kl_coefficient, or lower ppo.actor.learning_rate",
            Self::Length => {
                "raise sampling.max_new_tokens, or check that the model ends its responses with EOS"
            }
            Self::HeldOut => {
                "the policy exploits the reward model: stop here, best/model holds the best policy"
            }
            Self::Accuracy => {
                "check the labels, or train with more pairs or another reward.optimizer.learning_rate"
            }
            Self::Entropy => "raise ppo.kl_coefficient, or lower ppo.actor.learning_rate",
        }
    }
}

/// An alarm that was raised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Raised {
    /// Which.
    pub alarm: Alarm,
    /// The optimizer step or PPO iteration that raised it, from 0; of a result the last.
    pub step: usize,
    /// What was seen, with its bound.
    pub what: String,
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { alarm, step, what } = self;
        write!(f, "alarm {} at step {step}: {what}; {}", alarm.name(), alarm.remedy())
    }
}

/// A held-out evaluation: the iterations done before it, the score and its standard error.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeldOutScore {
    /// Iterations done.
    pub iteration: usize,
    /// What policies are compared by.
    pub score: f64,
    /// Its standard error, if it is known.
    pub error: Option<f64>,
}

/// The alarms that these iterations raise, each the first time.
pub fn of_iterations(
    iterations: &[IterationMetrics],
    evaluations: &[HeldOutScore],
    bounds: &AlarmSettings,
) -> Vec<Raised> {
    let mut raised = Vec::new();
    for step in 0..iterations.len() {
        let judged = evaluations.partition_point(|of| of.iteration <= step + 1);
        let new = of_last(&iterations[..=step], &evaluations[..judged], bounds, &raised);
        raised.extend(new);
    }
    raised
}

/// The alarms that the last of these iterations raises and that are not among the `known` ones.
pub fn of_last(
    iterations: &[IterationMetrics],
    evaluations: &[HeldOutScore],
    bounds: &AlarmSettings,
    known: &[Raised],
) -> Vec<Raised> {
    let step = iterations.len() - 1;
    let new = |alarm: &Alarm| known.iter().all(|raised| raised.alarm != *alarm);
    let raised = Alarm::OF_ITERATIONS.into_iter().filter(new).filter_map(|alarm| {
        let what = seen(alarm, iterations, evaluations, bounds)?;
        Some(Raised { alarm, step, what })
    });
    raised.collect()
}

/// What the last of the iterations shows of `alarm`.
fn seen(
    alarm: Alarm,
    iterations: &[IterationMetrics],
    evaluations: &[HeldOutScore],
    bounds: &AlarmSettings,
) -> Option<String> {
    let (last, before) = iterations.split_last()?;
    match alarm {
        Alarm::Loss => {
            let losses: Vec<f64> = before.iter().filter_map(|line| line.value_loss).collect();
            let (usual, loss) = (median(losses)?, last.value_loss?);
            // The critic starts with large losses, and a small one may well double.
            let bound = 10.0 * usual.max(1.0);
            (before.len() >= 3 && loss > bound)
                .then(|| format!("value loss {loss:.2}, {usual:.2} until now"))
        }
        Alarm::Reward => {
            let (score, bound) = (last.sequence_score, bounds.reward);
            let of_segment = last.reward / last.segments.max(1.0);
            if score.abs() > bound {
                Some(format!("mean score {score:.1}, beyond alarms.reward = {bound}"))
            } else {
                (of_segment.abs() > REWARD_CLIP).then(|| {
                    format!("normalized reward of a segment {of_segment:.1}, beyond the clip at {REWARD_CLIP}")
                })
            }
        }
        Alarm::Kl => (last.kl_k1 > bounds.kl).then(|| {
            format!("KL {:.1} nats a response, above alarms.kl = {}", last.kl_k1, bounds.kl)
        }),
        Alarm::Length => {
            let (share, bound) = (1.0 - last.eos_rate, bounds.unfinished);
            (share > bound).then(|| {
                format!("{:.0} % of responses end at the length limit, above alarms.unfinished = {bound}", 100.0 * share)
            })
        }
        Alarm::HeldOut => {
            let now = evaluations.last()?;
            let best = evaluations.iter().max_by(|a, b| a.score.total_cmp(&b.score))?;
            let error = best.error?.hypot(now.error?);
            // Evaluation 0 is the SFT model's, before the first iteration.
            let reward = |of: &HeldOutScore| {
                let line = iterations.get(of.iteration.saturating_sub(1));
                line.map(|line| line.sequence_score)
            };
            let falls = now.score < best.score - 2.0 * error;
            (falls && reward(now)? > reward(best)?).then(|| {
                format!(
                    "held-out score {:.2}, {:.2} after iteration {}, while the reward rises",
                    now.score, best.score, best.iteration
                )
            })
        }
        Alarm::Entropy => {
            let (start, bound) = (before.first()?.entropy, bounds.entropy);
            (last.entropy < bound * start).then(|| {
                format!(
                    "entropy {:.3} nats a token, {start:.3} at the start, below alarms.entropy = {bound} of it",
                    last.entropy
                )
            })
        }
        Alarm::Accuracy => None,
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Steps over which a loss is averaged.
const WINDOW: usize = 20;

/// Watches the losses of a training, one a step: their mean over twenty steps may not grow beyond `alarms.loss` times the
/// lowest before.
pub struct LossWatch {
    bound: f64,
    recent: VecDeque<f64>,
    lowest: f64,
    steps: usize,
    raised: bool,
}

impl LossWatch {
    /// Before the first step.
    pub fn new(bounds: &AlarmSettings) -> Self {
        let recent = VecDeque::with_capacity(WINDOW);
        Self { bound: bounds.loss, recent, lowest: f64::INFINITY, steps: 0, raised: false }
    }

    /// Sees the next step's loss; gives the alarm that it raises, once.
    pub fn see(&mut self, loss: f64) -> Option<Raised> {
        if self.recent.len() == WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(loss);
        self.steps += 1;
        if self.recent.len() < WINDOW || self.raised {
            return None;
        }
        let loss = mean(self.recent.iter().copied());
        let (lowest, bound) = (self.lowest, self.bound);
        self.lowest = lowest.min(loss);
        if loss <= bound * lowest.max(0.1) {
            return None;
        }
        self.raised = true;
        let what = format!(
            "loss {loss:.2} over {WINDOW} steps, {lowest:.2} before, beyond alarms.loss = {bound} times that"
        );
        Some(Raised { alarm: Alarm::Loss, step: self.steps - 1, what })
    }
}

/// The alarm that these losses raise, one a step.
pub fn of_losses(losses: &[f64], bounds: &AlarmSettings) -> Option<Raised> {
    let mut watch = LossWatch::new(bounds);
    losses.iter().find_map(|&loss| watch.see(loss))
}

/// Held-out pairs of which no accuracy means anything.
const FEW: usize = 20;

/// The alarm of a model that is right on this share of so many held-out pairs: chance is within two standard errors.
pub fn of_accuracy(accuracy: f64, pairs: usize, step: usize) -> Option<Raised> {
    if pairs < FEW {
        return None;
    }
    let error = 0.5 / (pairs as f64).sqrt();
    let what =
        || format!("held-out accuracy {accuracy:.3} over {pairs} pairs, chance 0.5 ± {error:.3}");
    (accuracy <= 0.5 + 2.0 * error).then(|| Raised { alarm: Alarm::Accuracy, step, what: what() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;

    fn bounds() -> AlarmSettings {
        Settings::defaults().alarms
    }

    /// An iteration of a healthy run.
    fn healthy() -> IterationMetrics {
        IterationMetrics {
            sequence_score: 1.0,
            reward: 2.0,
            segments: 8.0,
            kl_k1: 2.0,
            eos_rate: 0.95,
            entropy: 1.0,
            value_loss: Some(0.5),
            ..IterationMetrics::default()
        }
    }

    fn raised(last: IterationMetrics) -> Vec<(Alarm, usize)> {
        let mut iterations = vec![healthy(); 4];
        iterations.extend([last, healthy()]);
        let raised = of_iterations(&iterations, &[], &bounds());
        raised.into_iter().map(|raised| (raised.alarm, raised.step)).collect()
    }

    #[test]
    fn a_healthy_run_raises_nothing() {
        assert_eq!(raised(healthy()), []);
    }

    #[test]
    fn each_sign_raises_its_alarm_once() {
        let with = |change: fn(&mut IterationMetrics)| {
            let mut line = healthy();
            change(&mut line);
            raised(line)
        };
        assert_eq!(with(|line| line.value_loss = Some(10.1)), [(Alarm::Loss, 4)]);
        assert_eq!(with(|line| line.value_loss = Some(9.9)), []);
        assert_eq!(with(|line| line.sequence_score = -31.0), [(Alarm::Reward, 4)]);
        assert_eq!(with(|line| line.reward = 81.0), [(Alarm::Reward, 4)]);
        assert_eq!(with(|line| line.reward = 79.0), []);
        assert_eq!(with(|line| line.kl_k1 = 50.5), [(Alarm::Kl, 4)]);
        assert_eq!(with(|line| line.eos_rate = 0.49), [(Alarm::Length, 4)]);
        assert_eq!(with(|line| line.entropy = 0.09), [(Alarm::Entropy, 4)]);
    }

    #[test]
    fn a_held_out_score_must_fall_by_more_than_its_error_while_the_reward_rises() {
        let of = |scores: [f64; 3], rewards: [f64; 4]| {
            let line = |reward| IterationMetrics { sequence_score: reward, ..healthy() };
            let score = |(i, score)| HeldOutScore { iteration: 2 * i, score, error: Some(0.1) };
            let evaluations: Vec<_> = scores.into_iter().enumerate().map(score).collect();
            of_iterations(&rewards.map(line), &evaluations, &bounds())
        };
        // 0.3 is more than twice 0.1 √2, and 0.2 is not.
        let found = of([0.0, 1.0, 0.7], [0.0, 1.0, 1.5, 2.0]);
        assert_eq!(
            found.iter().map(|r| (r.alarm, r.step)).collect::<Vec<_>>(),
            [(Alarm::HeldOut, 3)]
        );
        assert_eq!(
            found[0].to_string(),
            "alarm held-out at step 3: held-out score 0.70, 1.00 after iteration 2, while the reward rises; the policy \
             exploits the reward model: stop here, best/model holds the best policy"
        );
        assert_eq!(of([0.0, 1.0, 0.8], [0.0, 1.0, 1.5, 2.0]), []);
        assert_eq!(of([0.0, 1.0, 0.7], [0.0, 1.0, 1.0, 0.9]), []);
    }

    #[test]
    fn a_loss_may_not_double_over_twenty_steps() {
        let losses = |last: f64| [vec![0.7; 20], vec![0.4; 20], vec![last; 20]].concat();
        assert_eq!(of_losses(&losses(0.79), &bounds()), None);
        let found = of_losses(&losses(2.0), &bounds()).unwrap();
        // After k steps of 2.0 the mean is 0.4 + 0.08 k: above 0.8 for the first time at k = 6.
        assert_eq!((found.alarm, found.step), (Alarm::Loss, 45));
        assert_eq!(of_losses(&[0.7; 19], &bounds()), None);
    }

    #[test]
    fn accuracy_within_two_errors_of_chance_is_no_better_than_a_coin() {
        // 100 pairs: 0.5 ± 0.05.
        assert_eq!(of_accuracy(0.6, 100, 9).map(|found| found.step), Some(9));
        assert_eq!(of_accuracy(0.61, 100, 9), None);
        assert!(of_accuracy(0.3, 100, 9).is_some());
        assert_eq!(of_accuracy(0.0, 19, 9), None);
    }
}
