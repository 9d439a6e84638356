//! The losses of group-relative PPO: clipped over tokens with the k3 penalty, and clipped over whole responses.
//!
//! ```text
//! GRPO, Dr. GRPO   -min(ρ A, clip(ρ, 1-ε, 1+ε) A) + β (e^d - d - 1),   d = ln π_SFT - ln π_θ
//! RLOO             the same without k3, with one ρ a response: the product of its tokens'
//! ```

use burn::tensor::{Bool, Tensor, assert_shape};

use super::ppo::{ClippedTerms, PolicyLoss, policy_loss, sequence_mean};

/// How the losses of a response's tokens are averaged, before the mean over responses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TokenMean {
    /// Over the response's tokens: GRPO's.
    Response,
    /// Their sum over a constant, the longest response in tokens: Dr. GRPO's, by which length carries no weight.
    Constant(f64),
}

impl TokenMean {
    /// The mean of `x` over the masked tokens of each row, then over rows. `[B, T], [B, T] -> [1]`.
    fn of(self, x: Tensor<2>, mask: Tensor<2, Bool>) -> Tensor<1> {
        match self {
            Self::Response => sequence_mean(x, mask),
            Self::Constant(tokens) => {
                x.mask_fill(mask.bool_not(), 0.0).sum_dim(1).mean().div_scalar(tokens)
            }
        }
    }
}

/// The k3 estimate of KL(π_θ, π_SFT) at every token, nats: `e^d - d - 1`, `d = ln π_SFT - ln π_θ`.
///
/// # Shapes
///
/// `[B, T], [B, T] -> [B, T]`. Log-probabilities in nats.
///
/// # Panics
///
/// Where the shapes differ.
///
/// # Source
///
/// As [`k3`](super::kl::k3), with a gradient.
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// # let device = Device::flex();
/// use segment_rlhf::equations::clip_k3::k3_penalty;
/// let row = |x: f32| Tensor::<2>::from_floats([[x.ln()]], &device);
/// let k3 = k3_penalty(row(0.25), row(0.5)).into_scalar::<f32>(); // 2 - ln 2 - 1
/// assert!((k3 - (1.0 - 2f32.ln())).abs() < 1e-6);
/// ```
pub fn k3_penalty(log_probs: Tensor<2>, ref_log_probs: Tensor<2>) -> Tensor<2> {
    let [batch, tokens] = log_probs.dims();
    assert_shape!(ref_log_probs, [batch, tokens]);
    k3_of(ref_log_probs - log_probs)
}

/// `e^d - d - 1`.
pub(super) fn k3_of(d: Tensor<2>) -> Tensor<2> {
    d.clone().exp() - d - 1.0
}

/// GRPO's loss: PPO's clipped loss (E9) and β times the k3 penalty, both over tokens.
///
/// # Shapes
///
/// `[B, T]` each, log-probabilities in nats. The mask is true at response tokens, each row's at least one; the others
/// are never read.
///
/// # Panics
///
/// Where the shapes differ.
///
/// # Source
///
/// Shao et al. 2024 (arXiv 2402.03300), equations 3 and 4; the mean over a constant is Liu et al. 2025's (arXiv
/// 2503.20783).
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Bool, Device, Tensor};
/// # let device = Device::flex();
/// use segment_rlhf::equations::clip_k3::{TokenMean, clip_k3_loss};
/// let row = |x: [f32; 2]| Tensor::<2>::from_floats([x.map(f32::ln)], &device);
/// let (new, old, reference) = (row([0.5, 0.5]), row([0.25, 0.5]), row([0.5, 0.5])); // no KL
/// let advantages = Tensor::<2>::from_floats([[1.0, 1.0]], &device);
/// let mask = Tensor::<2, Bool>::from_data([[true, true]], &device);
/// let loss = |mean| {
///     let rows = [new.clone(), old.clone(), reference.clone(), advantages.clone()];
///     clip_k3_loss(rows, mask.clone(), 0.2, 0.04, mean).loss.into_scalar::<f32>()
/// };
/// assert!((loss(TokenMean::Response) + (1.2 + 1.0) / 2.0).abs() < 1e-6);
/// assert!((loss(TokenMean::Constant(8.0)) + (1.2 + 1.0) / 8.0).abs() < 1e-6);
/// ```
pub fn clip_k3_loss(
    [log_probs, old_log_probs, ref_log_probs, advantages]: [Tensor<2>; 4],
    mask: Tensor<2, Bool>,
    clip: f64,
    beta: f64,
    mean: TokenMean,
) -> PolicyLoss {
    let [batch, tokens] = log_probs.dims();
    assert_shape!(ref_log_probs, [batch, tokens]);
    assert_shape!(mask, [batch, tokens]);
    // Padding is filled where a gradient would leave.
    let padding = mask.clone().bool_not();
    let log_probs = log_probs.mask_fill(padding.clone(), 0.0);
    let penalty = k3_penalty(log_probs.clone(), ref_log_probs.mask_fill(padding, 0.0));
    let penalty = mean.of(penalty, mask.clone()).mul_scalar(beta);
    let terms = ClippedTerms::of(log_probs, old_log_probs, advantages, &mask, clip);
    let policy = terms.loss(mask, |x, mask| mean.of(x, mask));
    PolicyLoss { loss: policy.loss + penalty, ..policy }
}

/// RLOO's loss: one ratio a response, clipped.
///
/// # Formula
///
/// `-min(ρ A, clip(ρ, 1-ε, 1+ε) A)`, `ρ = exp Σ_i (ln π_θ - ln π_old)`, mean over responses.
///
/// # Shapes
///
/// `[B, T]` each, log-probabilities in nats; the advantage of a response is that of its first token. The mask is true
/// at response tokens, each row's at least one; the others are never read.
///
/// # Panics
///
/// Where the shapes differ.
///
/// # Source
///
/// Ahmadian et al. 2024 (arXiv 2402.14740) take the gradient of A ln π; the clipped ratio, whose first gradient that
/// is, is TRL's.
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Bool, Device, Tensor};
/// # let device = Device::flex();
/// use segment_rlhf::equations::clip_k3::response_clip_loss;
/// let row = |x: [f32; 2]| Tensor::<2>::from_floats([x.map(f32::ln)], &device);
/// let (new, old) = (row([0.5, 0.6]), row([0.25, 0.5])); // ρ = 2 · 1.2
/// let advantages = Tensor::<2>::from_floats([[3.0, 3.0]], &device);
/// let mask = Tensor::<2, Bool>::from_data([[true, true]], &device);
/// let loss = response_clip_loss(new, old, advantages, mask, 0.2).loss.into_scalar::<f32>();
/// assert!((loss + 1.2 * 3.0).abs() < 1e-5);
/// ```
pub fn response_clip_loss(
    log_probs: Tensor<2>,
    old_log_probs: Tensor<2>,
    advantages: Tensor<2>,
    mask: Tensor<2, Bool>,
    clip: f64,
) -> PolicyLoss {
    let [batch, tokens] = log_probs.dims();
    assert_shape!(old_log_probs, [batch, tokens]);
    assert_shape!(advantages, [batch, tokens]);
    assert_shape!(mask, [batch, tokens]);
    let sum = |x: Tensor<2>| x.mask_fill(mask.clone().bool_not(), 0.0).sum_dim(1); // [B, 1]
    let one = mask.clone().narrow(1, 0, 1); // [B, 1], true
    policy_loss(sum(log_probs), sum(old_log_probs), advantages.narrow(1, 0, 1), one, clip)
}
