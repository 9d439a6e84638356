//! What the DPO family learns from: preference pairs whose tokens have weights.
//!
//! ```text
//! L = -E ln σ(β [Σ_t w_t d_t of the chosen response - Σ_t w_t d_t of the rejected one]),   d = ln π_θ - ln π_ref
//! ```
//!
//! A method of the family is a choice of the weights w ([`Weights`]).

use burn::tensor::{Device, Tensor};

use crate::equations::bt_loss::DpoLoss;
use crate::equations::sign_mask::{Verdict, reward_segments, sign_mask};
use crate::equations::weighted_dpo::weighted_dpo_loss;
use crate::model::Grid;
use crate::model::generate::pad_rows;

/// What each token of a pair counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Weights {
    /// 1.
    All,
    /// The label of its segment: +1 where the chosen response's is better, -1 where the rejected one's is, 0 for a tie.
    Labels,
    /// 1 where its reward agrees with the verdict on its response, else 0.
    Signs {
        /// b: rewards above it agree with a chosen response, those below it with a rejected one.
        threshold: f64,
        /// The change of the reward from one token to the next that starts a segment; none for tokens.
        jump: Option<f64>,
    },
}

/// A pair, the chosen response first, as its weights see it.
pub struct PairView<'a> {
    /// The tokens of each response.
    pub tokens: [usize; 2],
    /// The label of each token's segment, if the pair has labels.
    pub labels: Option<&'a [Vec<i8>; 2]>,
    /// The reward of each token, if a reward model gave any.
    pub rewards: Option<&'a [Vec<f64>; 2]>,
}

impl Weights {
    /// Whether the pairs need labels of segments.
    pub fn reads_labels(&self) -> bool {
        matches!(self, Self::Labels)
    }

    /// Whether the tokens need rewards.
    pub fn reads_rewards(&self) -> bool {
        matches!(self, Self::Signs { .. })
    }

    /// The weights of both responses.
    ///
    /// # Panics
    ///
    /// For a pair without the labels or the rewards that the weights read.
    pub fn of(&self, pair: &PairView<'_>) -> [Vec<f32>; 2] {
        match *self {
            Self::All => pair.tokens.map(|tokens| vec![1.0; tokens]),
            Self::Labels => {
                let labels = pair.labels.expect("a pair with labels");
                labels.each_ref().map(|of| of.iter().map(|&label| f32::from(label)).collect())
            }
            Self::Signs { threshold, jump } => {
                let [chosen, rejected] = pair.rewards.expect("a pair with rewards");
                [(chosen, Verdict::Chosen), (rejected, Verdict::Rejected)].map(
                    |(rewards, verdict)| {
                        let segments = match jump {
                            None => (0..rewards.len()).map(|t| t..t + 1).collect(),
                            // At 0 a cut at every change of sign would be the mask over tokens again.
                            Some(jump) => reward_segments(rewards, jump, false),
                        };
                        let mask = sign_mask(rewards, &segments, threshold, verdict);
                        mask.into_iter().map(f32::from).collect()
                    },
                )
            }
        }
    }
}

/// Pairs as tensors: the chosen responses of all, then the rejected ones.
pub struct PairBatch<'a> {
    /// The tokens, `[2P, T]`.
    pub grid: Grid,
    /// The column of the first response token.
    pub first: usize,
    ref_log_probs: Vec<&'a [f32]>,
    weights: Vec<&'a [f32]>,
}

/// A pair, the chosen response first, with all that its loss reads.
pub struct WeightedPair<'a> {
    /// Prompt and response of each.
    pub rows: [(&'a [u32], &'a [u32]); 2],
    /// ln π_ref of each response token, nats.
    pub ref_log_probs: [&'a [f32]; 2],
    /// What each response token counts.
    pub weights: &'a [Vec<f32>; 2],
}

impl<'a> PairBatch<'a> {
    /// Of these pairs.
    pub fn new(pairs: &[WeightedPair<'a>]) -> Self {
        let sides =
            || [0, 1].into_iter().flat_map(|side| pairs.iter().map(move |pair| (pair, side)));
        let (grid, first) = Grid::aligned(sides().map(|(pair, side)| pair.rows[side]));
        let ref_log_probs = sides().map(|(pair, side)| pair.ref_log_probs[side]).collect();
        let weights = sides().map(|(pair, side)| &pair.weights[side][..]).collect();
        Self { grid, first, ref_log_probs, weights }
    }

    /// The loss, averaged over the pairs, of the policy's log-probabilities of the response tokens, `[2P, R]`.
    pub fn loss(&self, log_probs: Tensor<2>, beta: f64, label_smoothing: f64) -> DpoLoss {
        let device: Device = log_probs.device();
        let (width, dtype) = (self.grid.width() - self.first, log_probs.dtype());
        let pad = |rows: &[&[f32]]| pad_rows(rows.iter().copied(), width, 0.0, &device).cast(dtype);
        let rows = [log_probs, pad(&self.ref_log_probs), pad(&self.weights)];
        let mask = self.grid.mask(self.first..self.grid.width(), &device);
        weighted_dpo_loss(rows, mask, beta, label_smoothing)
    }
}
