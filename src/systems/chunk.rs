//! The gradients of a minibatch, as many rows at a time as memory holds.

use std::ops::Range;

use burn::tensor::{Device, Tensor};

use super::loss::{Batch, Loss};
use super::sample::Sample;
use crate::model::generate::{ReadAt, response_log_probs};
use crate::model::optim::Trainer;
use crate::model::shards::shards;
use crate::model::{CausalLm, ScalarModel};

/// What the loss of a minibatch is a mean over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minibatch {
    /// Its rows.
    pub rows: usize,
    /// Its tokens that the policy learns from.
    pub teaching_tokens: usize,
}

impl Minibatch {
    /// Of these samples.
    pub fn of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Self {
        let none = Self { rows: 0, teaching_tokens: 0 };
        samples.into_iter().fold(none, |sum, sample| Self {
            rows: sum.rows + 1,
            teaching_tokens: sum.teaching_tokens + sample.teaching_tokens(),
        })
    }
}

/// The rows of a minibatch that are read at once.
pub struct Chunk<'a> {
    rows: Vec<&'a Sample>,
    minibatch: Minibatch,
    device: &'a Device,
}

/// What the log says of a shard of the policy's update.
pub struct Clipped {
    /// The shard's share of its minibatch.
    pub share: f64,
    /// The share of tokens at which the clip was active, `[1]`.
    pub fraction: Tensor<1>,
    /// The mean ratio, `[1]`.
    pub ratio: Tensor<1>,
}

impl<'a> Chunk<'a> {
    /// `rows` of a minibatch, on a device with autodiff.
    pub fn new(rows: Vec<&'a Sample>, minibatch: Minibatch, device: &'a Device) -> Self {
        Self { rows, minibatch, device }
    }

    fn lengths(&self) -> Vec<usize> {
        self.rows.iter().map(|sample| sample.prompt.len() + sample.response.len()).collect()
    }

    /// The tokens of prompts and responses.
    pub fn tokens(&self) -> usize {
        self.lengths().iter().sum()
    }

    fn share(&self, rows: &Range<usize>) -> f64 {
        rows.len() as f64 / self.minibatch.rows as f64
    }

    /// Adds the gradient of the policy's loss, with β in force, by the rows' share of the minibatch.
    pub fn learn_policy(
        &self,
        policy: &mut Trainer<CausalLm>,
        loss: Loss,
        kl_coefficient: f64,
    ) -> Vec<Clipped> {
        let shards = shards(&self.lengths(), self.device);
        let clipped = policy.accumulate(shards.clone(), |policy, shard| {
            let share = self.share(&shard);
            let batch = Batch::new(&self.rows[shard], self.device);
            let log_probs = response_log_probs(policy, &batch.grid, batch.first).0;
            let teaching_tokens = share * self.minibatch.teaching_tokens as f64;
            let losses = loss.of(log_probs, &batch, kl_coefficient, teaching_tokens);
            let clipped = [losses.clip_fraction.inner(), losses.ratio.inner()];
            (losses.loss.mul_scalar(share), clipped)
        });
        let of_shard = |(shard, [fraction, ratio]): (&Range<usize>, [Tensor<1>; 2])| Clipped {
            share: self.share(shard),
            fraction,
            ratio,
        };
        shards.iter().zip(clipped).map(of_shard).collect()
    }

    /// Adds the gradient of the critic's loss with the clip ε_v, by the rows' share of the minibatch.
    pub fn learn_values(&self, critic: &mut Trainer<ScalarModel>, clip: f64) {
        critic.accumulate(shards(&self.lengths(), self.device), |critic, shard| {
            let share = self.share(&shard);
            let batch = Batch::new(&self.rows[shard], self.device);
            let columns = ReadAt::State.columns(&batch.grid, batch.first);
            let values = critic.scores(&batch.grid, columns);
            (batch.value_loss(values, clip).mul_scalar(share), [])
        });
    }
}
