//! A policy that is a table of logits, one row a state, trained as the models are: drawn from by the
//! project's sampler, moved by E9 in minibatches.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};
use segment_rlhf::equations::gae::whiten;
use segment_rlhf::equations::ppo::policy_loss;
use segment_rlhf::model::sampling::Sampling;
use segment_rlhf::rng::{Stream, stream};

use crate::support::{cpu, mask, matrix, value_and_gradient};

const CLIP: f64 = 0.2;
const ROLLOUTS: usize = 256;
const MINIBATCH: usize = 64;

/// How a token was chosen: in which state, and which action; nothing where only one could follow.
pub type Choice = Option<(usize, usize)>;

/// A response, with what PPO learns from.
pub struct Rollout {
    /// How each token was chosen.
    pub choices: Vec<Choice>,
    /// A of each token, before whitening.
    pub advantages: Vec<f64>,
}

/// One row of logits a state.
#[derive(Clone)]
pub struct Policy(pub Vec<Vec<f64>>);

impl Policy {
    /// An action in `state`.
    pub fn draw(&self, state: usize, draws: &mut Stream) -> usize {
        let logits: Vec<f32> = self.0[state].iter().map(|&logit| logit as f32).collect();
        Sampling::PLAIN.draw(&logits, draws) as usize
    }

    /// ln π of each token.
    pub fn log_probs(&self, choices: &[Choice]) -> Vec<f64> {
        choices.iter().map(|choice| choice.map_or(0.0, |(s, a)| self.log_prob(s, a))).collect()
    }

    /// ln π of an action.
    pub fn log_prob(&self, state: usize, action: usize) -> f64 {
        let logits = &self.0[state];
        logits[action] - logits.iter().map(|logit| logit.exp()).sum::<f64>().ln()
    }

    /// Iterations of rollouts and minibatch steps, by a learning rate that falls from `rate` to 0.
    /// `roll_out` samples a response from the policy as it is, and estimates its advantages.
    pub fn train(
        &mut self,
        iterations: usize,
        rate: f64,
        roll_out: impl Fn(&Self, &mut Stream) -> Rollout,
    ) {
        for iteration in 0..iterations {
            let mut draws = stream(17, "tabular rollouts", iteration as u64);
            let rollouts: Vec<Rollout> =
                (0..ROLLOUTS).map(|_| roll_out(self, &mut draws)).collect();
            let mut advantages: Vec<Vec<f64>> =
                rollouts.iter().map(|rollout| rollout.advantages.clone()).collect();
            whiten(&mut advantages);
            let old: Vec<Vec<f64>> =
                rollouts.iter().map(|rollout| self.log_probs(&rollout.choices)).collect();
            let rate = rate * (1.0 - iteration as f64 / iterations as f64);
            for first in (0..ROLLOUTS).step_by(MINIBATCH) {
                let rows = first..first + MINIBATCH;
                self.step(&rollouts[rows.clone()], &old[rows.clone()], &advantages[rows], rate);
            }
        }
    }

    /// One step down the gradient of E9.
    fn step(&mut self, rollouts: &[Rollout], old: &[Vec<f64>], advantages: &[Vec<f64>], rate: f64) {
        let choices: Vec<&[Choice]> = rollouts.iter().map(|r| &r.choices[..]).collect();
        let lengths: Vec<usize> = choices.iter().map(|row| row.len()).collect();
        let width = lengths.iter().copied().max().expect("a minibatch is not empty");
        let padded = |rows: &[Vec<f64>]| {
            let pad = |row: &Vec<f64>| [&row[..], &vec![f64::NAN; width - row.len()]].concat();
            matrix(&rows.iter().map(pad).collect::<Vec<_>>(), &cpu(), DType::F64)
        };
        let loss = |logits| {
            let log_probs = log_probs(logits, &choices, width);
            let mask = mask(&lengths, width, &cpu());
            policy_loss(log_probs, padded(old), padded(advantages), mask, CLIP).loss
        };
        let (_, gradient) = value_and_gradient(loss, &self.0, &cpu(), DType::F64);
        for (logit, slope) in self.0.iter_mut().flatten().zip(gradient) {
            *logit -= rate * slope;
        }
    }
}

/// ln π of each token, `[B, width]`; 0 in padding, and where a token could not be another.
fn log_probs(logits: Tensor<2>, choices: &[&[Choice]], width: usize) -> Tensor<2> {
    let [states, actions] = logits.dims();
    let certain = states * actions;
    let table = log_softmax(logits, 1).reshape([1, certain]);
    let table = Tensor::cat(vec![table.clone(), table.zeros_like().slice([0..1, 0..1])], 1);
    let cell = |choice: &Choice| choice.map_or(certain, |(state, action)| state * actions + action);
    let cells: Vec<i64> = choices
        .iter()
        .flat_map(|row| row.iter().chain(std::iter::repeat(&None)).take(width))
        .map(|choice| cell(choice) as i64)
        .collect();
    let cells =
        Tensor::<1, Int>::from_data(TensorData::new(cells, [choices.len() * width]), &cpu());
    table.select(1, cells).reshape([choices.len(), width])
}
