//! What the policy learns from: samples as tensors, and the losses over them.

use burn::tensor::{Bool, Device, Tensor};

use super::sample::Sample;
use crate::equations::clip_k3::{TokenMean, clip_k3_loss, response_clip_loss};
use crate::equations::masked_clip::masked_clip_loss;
use crate::equations::ppo::{PolicyLoss, policy_loss, value_loss};
use crate::model::Grid;
use crate::model::generate::pad_rows;

/// Samples on the device, prompts padded on the left and responses on the right.
pub struct Batch<'a> {
    rows: &'a [&'a Sample],
    /// Their tokens.
    pub grid: Grid,
    /// The column of the first response token.
    pub first: usize,
    device: &'a Device,
}

impl<'a> Batch<'a> {
    /// The samples `rows` on a device with autodiff.
    pub fn new(rows: &'a [&'a Sample], device: &'a Device) -> Self {
        let (grid, first) = Grid::aligned(rows.iter().map(|r| (&r.prompt[..], &r.response[..])));
        Self { rows, grid, first, device }
    }

    /// One value a response token, `[B, R]`; the padding is never read.
    fn pad(&self, of: impl Fn(&Sample) -> Vec<f32>) -> Tensor<2> {
        let rows: Vec<Vec<f32>> = self.rows.iter().map(|sample| of(sample)).collect();
        let width = self.grid.width() - self.first;
        pad_rows(rows.iter().map(Vec::as_slice), width, 0.0, self.device)
    }

    /// True at response tokens, `[B, R]`.
    fn mask(&self) -> Tensor<2, Bool> {
        self.grid.mask(self.first..self.grid.width(), self.device)
    }

    /// True at response tokens that teach, `[B, R]`.
    fn teaching_mask(&self) -> Tensor<2, Bool> {
        if self.rows.iter().all(|sample| sample.teaches.is_none()) {
            return self.mask();
        }
        let teaches = |sample: &Sample| match &sample.teaches {
            Some(teaches) => teaches.iter().map(|&teaches| f32::from(teaches)).collect(),
            None => vec![1.0; sample.response.len()],
        };
        self.pad(teaches).greater_elem(0.5)
    }

    /// The critic's loss (E10), `[1]`, of its values of the states before each token, `[B, R]`.
    ///
    /// # Panics
    ///
    /// For samples without values and returns: those of a system without a critic.
    pub fn value_loss(&self, values: Tensor<2>, clip: f64) -> Tensor<1> {
        let old = self.pad(|s| s.values.clone().expect("a system with a critic"));
        let returns = self.pad(|s| narrow(s.returns.as_ref().expect("a system with a critic")));
        value_loss(values, old, returns, self.mask(), clip)
    }
}

/// A loss of the policy: pure, it sees a batch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Loss {
    /// The clipped loss over tokens (E9).
    Clip {
        /// ε.
        clip: f64,
    },
    /// The clipped loss over tokens, with β times the k3 penalty.
    ClipK3 {
        /// ε.
        clip: f64,
        /// How the losses of a response's tokens are averaged.
        mean: TokenMean,
    },
    /// The clipped loss over whole responses.
    ResponseClip {
        /// ε.
        clip: f64,
    },
    /// The clipped loss over the tokens that teach, with β times the k3 penalty.
    MaskedClip {
        /// ε.
        clip: f64,
    },
}

impl Loss {
    /// The loss of `batch` for the policy's log-probabilities of its response tokens, `[B, R]`, β in force, and the number
    /// of tokens that teach in a minibatch, times the batch's share of its rows.
    pub fn of(
        self,
        log_probs: Tensor<2>,
        batch: &Batch<'_>,
        kl_coefficient: f64,
        teaching_tokens: f64,
    ) -> PolicyLoss {
        let old = batch.pad(|s| s.log_probs.clone());
        let advantages = batch.pad(|s| narrow(&s.advantages));
        match self {
            Self::Clip { clip } => {
                policy_loss(log_probs, old, advantages, batch.teaching_mask(), clip)
            }
            Self::ClipK3 { clip, mean } => {
                let reference = batch.pad(|s| s.ref_log_probs.clone());
                let rows = [log_probs, old, reference, advantages];
                clip_k3_loss(rows, batch.mask(), clip, kl_coefficient, mean)
            }
            Self::ResponseClip { clip } => {
                response_clip_loss(log_probs, old, advantages, batch.mask(), clip)
            }
            Self::MaskedClip { clip } => {
                let reference = batch.pad(|s| s.ref_log_probs.clone());
                let rows = [log_probs, old, reference, advantages];
                let count = Some(teaching_tokens);
                masked_clip_loss(rows, batch.teaching_mask(), clip, kl_coefficient, count)
            }
        }
    }
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}
