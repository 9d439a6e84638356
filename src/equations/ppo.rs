//! E9 and E10: the clipped losses of policy and critic, over tokens.
//!
//! ```text
//! E9    -min(ρ A, clip(ρ, 1-ε, 1+ε) A),      ρ = π_θ(y_i|·) / π_old(y_i|·)
//! E10   ½ max((V - R)², (V_old + clip(V - V_old, -ε_v, ε_v) - R)²)
//! ```
//!
//! Both are averaged over the tokens of a sequence, then over sequences.

use burn::tensor::{Bool, Tensor, assert_shape};

/// E9 and what to log beside it.
#[derive(Clone, Debug)]
pub struct PolicyLoss {
    /// The loss, `[1]`.
    pub loss: Tensor<1>,
    /// The share of tokens whose clipped term was the lesser, so that they gave no gradient, `[1]`, detached.
    pub clip_fraction: Tensor<1>,
    /// The mean of ρ, `[1]`, detached: exactly 1 for a policy that has not moved yet.
    pub ratio: Tensor<1>,
}

/// E9: the clipped policy loss.
///
/// # Shapes
///
/// `[B, T]` each, log-probabilities in nats. The mask is true at response tokens, each row's at least one; the
/// others are never read. Averages are [`sequence_mean`]'s.
///
/// # Panics
///
/// Where the shapes differ: nothing is broadcast.
///
/// # Source
///
/// Schulman et al. 2017; ε = 0.2 in section 2.3. The gradient at a tie of the two terms is the
/// unclipped one's, which inside the clip range is the same.
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Bool, Device, Tensor};
/// # let device = Device::flex();
/// use segment_rlhf::equations::ppo::policy_loss;
/// let row = |x: [f32; 2]| Tensor::<2>::from_floats([x.map(f32::ln)], &device);
/// let (new, old) = (row([0.5, 0.5]), row([0.25, 0.5])); // ρ = 2 and 1
/// let advantages = Tensor::<2>::from_floats([[1.0, -1.0]], &device);
/// let mask = Tensor::<2, Bool>::from_data([[true, true]], &device);
/// // The first token counts with 1.2: -(1.2 - 1) / 2.
/// let policy = policy_loss(new, old, advantages, mask, 0.2);
/// assert!((policy.loss.into_scalar::<f32>() + 0.1).abs() < 1e-6);
/// assert_eq!(policy.clip_fraction.into_scalar::<f32>(), 0.5);
/// assert_eq!(policy.ratio.into_scalar::<f32>(), 1.5);
/// ```
pub fn policy_loss(
    log_probs: Tensor<2>,
    old_log_probs: Tensor<2>,
    advantages: Tensor<2>,
    mask: Tensor<2, Bool>,
    clip: f64,
) -> PolicyLoss {
    let terms = ClippedTerms::of(log_probs, old_log_probs, advantages, &mask, clip);
    terms.loss(mask, sequence_mean)
}

/// The tokens' parts of a clipped loss, `[B, T]` each, before they are averaged.
pub(super) struct ClippedTerms {
    pub(super) terms: Tensor<2>,
    pub(super) clipped: Tensor<2>,
    pub(super) ratio: Tensor<2>,
}

impl ClippedTerms {
    pub(super) fn of(
        log_probs: Tensor<2>,
        old_log_probs: Tensor<2>,
        advantages: Tensor<2>,
        mask: &Tensor<2, Bool>,
        clip: f64,
    ) -> Self {
        let [batch, tokens] = log_probs.dims();
        assert_shape!(old_log_probs, [batch, tokens]);
        assert_shape!(advantages, [batch, tokens]);
        assert_shape!(mask, [batch, tokens]);
        // Padding is filled where a gradient would leave, here, and where values are averaged, in the mean.
        let log_probs = log_probs.mask_fill(mask.clone().bool_not(), 0.0);
        let ratio = (log_probs - old_log_probs).exp();
        let unclipped = ratio.clone() * advantages.clone();
        let clipped = ratio.clone().clamp(1.0 - clip, 1.0 + clip) * advantages;
        let is_clipped = clipped.clone().lower(unclipped.clone());
        let clipped_tokens = ratio.zeros_like().mask_fill(is_clipped, 1.0);
        Self { terms: unclipped.min_pair(clipped), clipped: clipped_tokens, ratio }
    }

    /// The loss with its terms averaged by `mean`.
    pub(super) fn loss(
        self,
        mask: Tensor<2, Bool>,
        mean: impl Fn(Tensor<2>, Tensor<2, Bool>) -> Tensor<1>,
    ) -> PolicyLoss {
        PolicyLoss {
            loss: mean(self.terms, mask.clone()).neg(),
            clip_fraction: sequence_mean(self.clipped, mask.clone()),
            ratio: sequence_mean(self.ratio.detach(), mask),
        }
    }
}

/// E10: the clipped value loss, `[1]`.
///
/// # Shapes
///
/// `[B, T]` each. The mask is true at response tokens, each row's at least one; the others are never
/// read.
///
/// # Panics
///
/// Where the shapes differ.
///
/// # Source
///
/// Section 2.3 takes ε_v = 0.25 for dense rewards and 0.2 for the bandit; the factor ½ is the
/// official code's.
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Bool, Device, Tensor};
/// # let device = Device::flex();
/// use segment_rlhf::equations::ppo::value_loss;
/// let row = |x: f32| Tensor::<2>::from_floats([[x]], &device);
/// let mask = Tensor::<2, Bool>::from_data([[true]], &device);
/// // From 0 toward a return of 2 by 1, of which the clip leaves 0.25: ½ max(1², 1.75²).
/// let loss = value_loss(row(1.0), row(0.0), row(2.0), mask, 0.25);
/// assert_eq!(loss.into_scalar::<f32>(), 1.53125);
/// ```
pub fn value_loss(
    values: Tensor<2>,
    old_values: Tensor<2>,
    returns: Tensor<2>,
    mask: Tensor<2, Bool>,
    clip: f64,
) -> Tensor<1> {
    let [batch, tokens] = values.dims();
    assert_shape!(old_values, [batch, tokens]);
    assert_shape!(returns, [batch, tokens]);
    assert_shape!(mask, [batch, tokens]);
    let values = values.mask_fill(mask.clone().bool_not(), 0.0);
    let clipped = old_values.clone() + (values.clone() - old_values).clamp(-clip, clip);
    let unclipped_error = (values - returns.clone()).square();
    let clipped_error = (clipped - returns).square();
    sequence_mean(unclipped_error.max_pair(clipped_error), mask) * 0.5
}

/// The mean over the masked tokens of each row, then over rows: every response weighs the same.
///
/// # Shapes
///
/// `[B, T], [B, T] -> [1]`. A row without a masked token counts as 0.
///
/// # Panics
///
/// Where the shapes differ.
///
/// # Source
///
/// The official code's mean over sequences; the mean over all tokens would weigh long responses more.
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Bool, Device, Tensor};
/// use segment_rlhf::equations::ppo::sequence_mean;
/// let device = Device::flex();
/// let x = Tensor::<2>::from_floats([[1.0, 3.0], [6.0, f32::NAN]], &device);
/// let mask = Tensor::<2, Bool>::from_data([[true, true], [true, false]], &device);
/// assert_eq!(sequence_mean(x, mask).into_scalar::<f32>(), 4.0); // (2 + 6) / 2
/// ```
pub fn sequence_mean(x: Tensor<2>, mask: Tensor<2, Bool>) -> Tensor<1> {
    let [batch, tokens] = x.dims();
    assert_shape!(mask, [batch, tokens]);
    let padding = mask.bool_not();
    let tokens = x.ones_like().mask_fill(padding.clone(), 0.0).sum_dim(1); // [B, 1]
    (x.mask_fill(padding, 0.0).sum_dim(1) / tokens.clamp_min(1.0)).mean()
}
