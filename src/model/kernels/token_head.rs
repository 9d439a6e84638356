//! What a language model's head says of given tokens: ln p of each, and the entropy of the distribution it came from.
//!
//! The logits of a few rows at a time are made, read and dropped, forward and backward, so that a table of all logits,
//! `[N, vocabulary]`, is never in memory.

use burn::tensor::{Int, Tensor, activation::log_softmax};

use crate::equations::segmentation::entropy;

/// ln softmax(x Wᵀ)\[target\] in column 0 and the entropy of softmax(x Wᵀ) in column 1, nats: `[N, 2]` for hidden states
/// `x` of `[N, D]`, `weight` of `[vocabulary, D]` and one target a row.
pub fn token_head(x: Tensor<2>, weight: Tensor<2>, targets: &[u32]) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if super::is_served(&x) && super::is_served(&weight) {
        return served::token_head(x, weight, targets);
    }
    plain(super::linear::plain(x, weight), targets)
}

/// The same from logits of `[N, vocabulary]`, on any device and in any type.
pub fn plain(logits: Tensor<2>, targets: &[u32]) -> Tensor<2> {
    use burn::tensor::{DType, FloatDType, TensorData};
    let ids: Vec<i64> = targets.iter().map(|&token| i64::from(token)).collect();
    let ids = TensorData::new(ids, [targets.len(), 1]);
    let ids = Tensor::<2, Int>::from_data(ids, &logits.device());
    let logits = match logits.dtype() {
        DType::F16 | DType::BF16 => logits.cast(FloatDType::F32),
        _ => logits,
    };
    let log_probs = log_softmax(logits.clone(), 1).gather(1, ids);
    let entropies = entropy(logits.unsqueeze_dim(0)).reshape([targets.len(), 1]);
    let dtype = FloatDType::from(log_probs.dtype());
    Tensor::cat(vec![log_probs, entropies.cast(dtype)], 1)
}

#[cfg(feature = "flex")]
mod served {
    use std::sync::Arc;

    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::ops::FloatTensorOps;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{
        Autodiff, Backend, Dispatch, Flex, Slice, TensorMetadata, backend_extension,
    };
    use burn::tensor::Tensor;

    use crate::model::kernels::linear::product;
    use crate::model::kernels::simd::{exp, max, sum, vectorized};
    use crate::model::kernels::slices::{contiguous, tensor, values};
    use crate::model::kernels::steps::pass_back;

    /// Logits in memory at a time.
    const LOGITS: usize = 1 << 18;

    /// ln p below which a token has no slope, nats: p is 1e-30. Products with subnormal numbers, which such slopes become
    /// once multiplied by a small gradient, take Intel's CPUs a hundred times as long.
    const NO_CHANCE: f32 = -69.0;

    pub(super) fn token_head(x: Tensor<2>, weight: Tensor<2>, targets: &[u32]) -> Tensor<2> {
        let (x, weight) = (x.into_dispatch(), weight.into_dispatch());
        Tensor::from_dispatch(Dispatch::token_head(x, weight, targets.into()))
    }

    #[backend_extension(Flex, Autodiff)]
    pub trait TokenHead: Backend {
        fn token_head(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            targets: Arc<[u32]>,
        ) -> FloatTensor<Self>;
    }

    /// The gradients of x and W.
    pub trait TokenHeadBackward: Backend {
        fn backward(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            gradient: FloatTensor<Self>,
            targets: Arc<[u32]>,
            wanted: [bool; 2],
        ) -> [Option<FloatTensor<Self>>; 2];
    }

    /// The rows `rows` of `x`.
    fn part<B: Backend>(x: &FloatTensor<B>, rows: &std::ops::Range<usize>) -> FloatTensor<B> {
        B::float_slice(x.clone(), &[Slice::from(rows.clone())])
    }

    /// The logits of the rows `rows`.
    fn logits(
        x: &FloatTensor<Flex>,
        weight: &FloatTensor<Flex>,
        rows: &std::ops::Range<usize>,
    ) -> FloatTensor<Flex> {
        product(part::<Flex>(x, rows), Flex::float_swap_dims(weight.clone(), 0, 1))
    }

    /// Ranges of rows whose logits are in memory together.
    fn chunks(rows: usize, vocabulary: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
        let count = (LOGITS / vocabulary).max(64);
        (0..rows).step_by(count).map(move |start| start..rows.min(start + count))
    }

    /// The largest logit of a row, the logarithm of the sum of exp(logit - largest), and the mean of logit - largest.
    #[inline(always)]
    fn moments(logits: &[f32]) -> [f32; 3] {
        let largest = max(logits);
        let total = sum(logits.len(), |i| exp(logits[i] - largest));
        let weighted = sum(logits.len(), |i| {
            let below = (logits[i] - largest).max(-87.3);
            exp(below) * below
        });
        [largest, total.ln(), weighted / total]
    }

    vectorized! {
        /// ln p of the target and the entropy, for each row of logits.
        fn read(logits: &'a [f32], targets: &'a [u32], read: &'a mut [f32]) {
            let each = logits.chunks_exact(logits.len() / targets.len());
            for ((logits, &target), read) in each.zip(targets).zip(read.chunks_exact_mut(2)) {
                let [largest, log_total, mean] = moments(logits);
                read[0] = logits[target as usize] - largest - log_total;
                read[1] = log_total - mean;
            }
        }
    }

    vectorized! {
        /// With p the probabilities, h the entropy, g the gradient of ln p of the target and e that of the entropy:
        /// ∂logit_v = g (1[v = target] - p_v) - e p_v (ln p_v + h), in the place of the logits.
        fn slopes(logits: &'a mut [f32], targets: &'a [u32], gradient: &'a [f32]) {
            let vocabulary = logits.len() / targets.len();
            let each = logits.chunks_exact_mut(vocabulary).zip(targets);
            for ((logits, &target), slope) in each.zip(gradient.chunks_exact(2)) {
                let [largest, log_total, mean] = moments(logits);
                let (g, e, entropy) = (slope[0], slope[1], log_total - mean);
                for logit in logits.iter_mut() {
                    let log_p = *logit - largest - log_total;
                    let p = if log_p < NO_CHANCE { 0.0 } else { exp(log_p) };
                    *logit = -p * (g + e * (log_p + entropy));
                }
                logits[target as usize] += g;
            }
        }
    }

    impl TokenHead for Flex {
        fn token_head(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            targets: Arc<[u32]>,
        ) -> FloatTensor<Self> {
            let ([rows, _], [vocabulary, _]) = (x.shape().dims(), weight.shape().dims());
            let mut found = vec![0.0; 2 * rows];
            for rows in chunks(rows, vocabulary) {
                let logits = logits(&x, &weight, &rows);
                let found = &mut found[2 * rows.start..2 * rows.end];
                read(values(&logits), &targets[rows], found);
            }
            tensor(found, [rows, 2])
        }
    }

    impl TokenHeadBackward for Flex {
        fn backward(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            gradient: FloatTensor<Self>,
            targets: Arc<[u32]>,
            [x_wanted, weight_wanted]: [bool; 2],
        ) -> [Option<FloatTensor<Self>>; 2] {
            let ([rows, channels], [vocabulary, _]) = (x.shape().dims(), weight.shape().dims());
            let gradient = contiguous(gradient);
            let mut dx = Vec::with_capacity(if x_wanted { rows * channels } else { 0 });
            let mut dw: Option<FloatTensor<Self>> = None;
            for rows in chunks(rows, vocabulary) {
                let mut logits = logits(&x, &weight, &rows);
                let gradient = &values(&gradient)[2 * rows.start..2 * rows.end];
                slopes(logits.storage_mut::<f32>(), &targets[rows.clone()], gradient);
                if x_wanted {
                    let part = product(logits.clone(), weight.clone());
                    dx.extend_from_slice(values(&part));
                }
                if weight_wanted {
                    let slopes = Self::float_swap_dims(logits, 0, 1);
                    let part = product(slopes, part::<Self>(&x, &rows));
                    dw = Some(match dw {
                        Some(sum) => Self::float_add(sum, part),
                        None => part,
                    });
                }
            }
            [x_wanted.then(|| tensor(dx, [rows, channels])), dw]
        }
    }

    #[derive(Debug)]
    struct Step;

    impl<B: TokenHeadBackward> Backward<B, 2> for Step {
        type State = (FloatTensor<B>, FloatTensor<B>, Arc<[u32]>);

        fn backward(
            self,
            ops: Ops<Self::State, 2>,
            grads: &mut Gradients,
            _checkpointer: &mut Checkpointer,
        ) {
            pass_back::<B, _, 2>(ops, grads, |(x, weight, targets), gradient, wanted| {
                B::backward(x, weight, gradient, targets, wanted)
            });
        }
    }

    impl<B: TokenHead + TokenHeadBackward, C: CheckpointStrategy> TokenHead for Autodiff<B, C> {
        fn token_head(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            targets: Arc<[u32]>,
        ) -> FloatTensor<Self> {
            let nodes = [x.node(), weight.node()];
            let (x, weight) = (x.into_primitive(), weight.into_primitive());
            let y = B::token_head(x.clone(), weight.clone(), targets.clone());
            match Step.prepare::<C>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(step) => step.finish((x, weight, targets), y),
                OpsKind::UnTracked(step) => step.finish(y),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernels::linear;
    use crate::model::kernels::testing::{gap, numbers};

    #[test]
    fn values_and_gradients_are_those_of_the_plain_operations() {
        for (rows, vocabulary) in [(3, 5), (200, 5000)] {
            let (x, weight) = (numbers::<2>("x", [rows, 12]), numbers::<2>("w", [vocabulary, 12]));
            let slope = numbers::<2>("g", [rows, 2]);
            let targets: Vec<u32> = (0..rows as u32).map(|i| i * 7 % vocabulary as u32).collect();
            let run = |of: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
                let [x, weight] = [&x, &weight].map(|t| t.clone().autodiff().require_grad());
                let y = of(x.clone(), weight.clone());
                let gradients = (y.clone() * slope.clone().autodiff()).sum().backward();
                [y.inner(), x.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap()]
            };
            let ours = run(&|x, weight| token_head(x, weight, &targets));
            let plain = run(&|x, weight| plain(linear::plain(x, weight), &targets));
            for (ours, plain) in ours.into_iter().zip(plain) {
                assert!(gap(ours, plain) < 2e-5);
            }
        }
    }

    #[test]
    fn a_token_without_a_chance_has_no_slope_rather_than_a_subnormal_one() {
        let x = Tensor::<2>::from_floats([[1.0]], &burn::tensor::Device::flex());
        // ln p of about 0, -60, -86 and -95; a gradient of 1e-6 on ln p of the first.
        let weight = numbers::<2>("w", [4, 1]) * 0.0
            + Tensor::from_floats([[0.0], [-60.0], [-86.0], [-95.0]], &x.device());
        let weight = weight.autodiff().require_grad();
        let y = token_head(x.autodiff(), weight.clone(), &[1]).narrow(1, 0, 1);
        let gradients = (y * 1e-6).sum().backward();
        let slopes: Vec<f32> = weight.grad(&gradients).unwrap().into_data().iter().collect();
        assert!(slopes[0] < 0.0 && slopes[1] > 0.0);
        assert_eq!(slopes[2..], [0.0, 0.0]);
    }
}
