//! E4: the Bradley-Terry loss of pairs of responses, and DPO's beside it as a baseline.
//!
//! ```text
//! L(φ) = -E ln σ(e_φ(x, y_w) - e_φ(x, y_l) - m)
//! ```
//!
//! With one segment a response this is the bandit's loss: only the scores know of segments.

use burn::tensor::{Tensor, activation::log_sigmoid, assert_shape};

/// E4: the mean over pairs of `-ln σ(chosen - rejected - margin)`, in nats.
///
/// Finite wherever the scores are: the logarithm of the sigmoid is taken without an overflow.
///
/// # Shapes
///
/// `[P], [P], [P] -> [1]`, for P pairs. No margin is a margin of 0.
///
/// # Panics
///
/// Where the shapes differ: nothing is broadcast.
///
/// # Source
///
/// Section 2.2; the margin is the official code's.
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// use segment_rlhf::equations::bt_loss::segment_bt_loss;
/// // Equal scores: -ln σ(0) = ln 2.
/// let score = Tensor::<1>::from_floats([3.0], &Device::flex());
/// let loss = segment_bt_loss(score.clone(), score, None).into_scalar::<f32>();
/// assert!((loss - 2f32.ln()).abs() < 1e-6);
/// ```
pub fn segment_bt_loss(
    chosen: Tensor<1>,
    rejected: Tensor<1>,
    margin: Option<Tensor<1>>,
) -> Tensor<1> {
    let [pairs] = chosen.dims();
    assert_shape!(rejected, [pairs]);
    let difference = chosen - rejected;
    let difference = match margin {
        Some(margin) => {
            assert_shape!(margin, [pairs]);
            difference - margin
        }
        None => difference,
    };
    log_sigmoid(difference).mean().neg()
}

/// A regularizer that keeps scores near 0: the mean of their squares over both responses of each pair.
///
/// A Bradley-Terry loss sees differences alone, so that scores of both responses may drift together; this holds them.
///
/// # Shapes
///
/// `[P], [P] -> [1]`, for P pairs.
///
/// # Panics
///
/// Where the shapes differ.
///
/// # Source
///
/// ReMedy (arXiv 2504.13630) adds a regularizer of rewards; its form is not published, so this one is ours.
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// use segment_rlhf::equations::bt_loss::score_regularizer;
/// let score = |x: f32| Tensor::<1>::from_floats([x], &Device::flex());
/// assert_eq!(score_regularizer(score(3.0), score(-1.0)).into_scalar::<f32>(), 5.0); // (9 + 1) / 2
/// ```
pub fn score_regularizer(chosen: Tensor<1>, rejected: Tensor<1>) -> Tensor<1> {
    let [pairs] = chosen.dims();
    assert_shape!(rejected, [pairs]);
    (chosen.square().mean() + rejected.square().mean()) * 0.5
}

/// The DPO loss and the rewards it implies.
#[derive(Clone, Debug)]
pub struct DpoLoss {
    /// Mean over pairs in nats, `[1]`.
    pub loss: Tensor<1>,
    /// `β (ln π_θ(y_w|x) - ln π_SFT(y_w|x))`, `[P]`, detached.
    pub chosen_rewards: Tensor<1>,
    /// `β (ln π_θ(y_l|x) - ln π_SFT(y_l|x))`, `[P]`, detached.
    pub rejected_rewards: Tensor<1>,
}

/// Direct preference optimisation, a baseline that needs no reward model.
///
/// # Formula
///
/// `-(1-s) ln σ(d) - s ln σ(-d)`, `d = reward(y_w) - reward(y_l)`, label smoothing s in [0, 0.5).
/// With s = 0 it is E4 of the implied rewards.
///
/// # Shapes
///
/// Log-probabilities of whole responses, in nats: `[P]` each.
///
/// # Panics
///
/// Where the shapes differ.
///
/// # Source
///
/// Rafailov et al. 2023; the official code's `DPOLoss`.
///
/// # Examples
///
/// ```
/// # use burn::tensor::{Device, Tensor};
/// use segment_rlhf::equations::bt_loss::dpo_loss;
/// let nats = |x: f32| Tensor::<1>::from_floats([x], &Device::flex());
/// // Rewards of 0.5 · (-1 + 3) = 1 and 0.5 · (-4 + 4) = 0: ln (1 + e^-1) = 0.3133.
/// let dpo = dpo_loss(nats(-1.0), nats(-4.0), nats(-3.0), nats(-4.0), 0.5, 0.0);
/// assert_eq!(dpo.chosen_rewards.into_scalar::<f32>(), 1.0);
/// assert!((dpo.loss.into_scalar::<f32>() - 0.3133).abs() < 1e-4);
/// ```
pub fn dpo_loss(
    policy_chosen: Tensor<1>,
    policy_rejected: Tensor<1>,
    ref_chosen: Tensor<1>,
    ref_rejected: Tensor<1>,
    beta: f64,
    label_smoothing: f64,
) -> DpoLoss {
    let [pairs] = policy_chosen.dims();
    assert_shape!(policy_rejected, [pairs]);
    assert_shape!(ref_chosen, [pairs]);
    assert_shape!(ref_rejected, [pairs]);
    let rewards = [(policy_chosen - ref_chosen) * beta, (policy_rejected - ref_rejected) * beta];
    DpoLoss::of(rewards, label_smoothing)
}

impl DpoLoss {
    /// The loss of the rewards of the chosen and the rejected responses.
    pub(super) fn of([chosen, rejected]: [Tensor<1>; 2], label_smoothing: f64) -> Self {
        let loss = segment_bt_loss(chosen.clone(), rejected.clone(), None)
            * (1.0 - label_smoothing)
            + segment_bt_loss(rejected.clone(), chosen.clone(), None) * label_smoothing;
        Self { loss, chosen_rewards: chosen.detach(), rejected_rewards: rejected.detach() }
    }
}
