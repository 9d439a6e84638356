//! y = x Wᵀ: a matrix product whose backward pass makes the gradient of W as W is stored.
//!
//! Burn's own product would make the gradient of Wᵀ, which every later pass would have to read against its order.

use burn::tensor::Tensor;

/// x Wᵀ for `x` of `[N, inputs]` and `weight` of `[outputs, inputs]`: `[N, outputs]`.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if super::is_served(&x) {
        return served::linear(x, weight);
    }
    plain(x, weight)
}

/// As [`linear`], on any device and in any type.
pub fn plain(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    x.matmul(weight.transpose())
}

#[cfg(feature = "flex")]
pub(super) use served::product;

#[cfg(feature = "flex")]
mod served {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::Tensor;

    use crate::model::counts;
    use crate::model::kernels::steps::pass_back;

    pub(super) fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::times(x.into_dispatch(), weight.into_dispatch()))
    }

    #[backend_extension(Flex, Autodiff)]
    pub trait Linear: Backend {
        fn times(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
            product::<Self>(x, Self::float_swap_dims(weight, 0, 1))
        }
    }

    impl Linear for Flex {}

    /// A matrix product that is counted.
    pub(in crate::model::kernels) fn product<B: Backend>(
        a: FloatTensor<B>,
        b: FloatTensor<B>,
    ) -> FloatTensor<B> {
        let ([m, k], [_, n]) = (a.shape().dims(), b.shape().dims());
        counts::product(m, n, k);
        B::float_matmul(a, b)
    }

    #[derive(Debug)]
    struct Step;

    impl<B: Backend> Backward<B, 2> for Step {
        type State = [Option<FloatTensor<B>>; 2];

        fn backward(
            self,
            ops: Ops<Self::State, 2>,
            grads: &mut Gradients,
            _checkpointer: &mut Checkpointer,
        ) {
            pass_back::<B, _, 2>(ops, grads, |[x, weight], gradient, [x_wanted, weight_wanted]| {
                let turned = B::float_swap_dims(gradient.clone(), 0, 1);
                [
                    weight.filter(|_| x_wanted).map(|weight| product::<B>(gradient, weight)),
                    x.filter(|_| weight_wanted).map(|x| product::<B>(turned, x)),
                ]
            });
        }
    }

    impl<B: Backend + Linear, C: CheckpointStrategy> Linear for Autodiff<B, C> {
        fn times(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
            let nodes = [x.node(), weight.node()];
            // Each input is kept for the gradient of the other.
            let kept = [
                weight.is_tracked().then(|| x.primitive().clone()),
                x.is_tracked().then(|| weight.primitive().clone()),
            ];
            let y = B::times(x.into_primitive(), weight.into_primitive());
            match Step.prepare::<C>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(step) => step.finish(kept, y),
                OpsKind::UnTracked(step) => step.finish(y),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kernels::testing::{gap, numbers};

    #[test]
    fn values_and_gradients_are_those_of_the_plain_product() {
        let [x, weight, slope] =
            [("x", [5, 7]), ("w", [3, 7]), ("g", [5, 3])].map(|(n, s)| numbers::<2>(n, s));
        let run = |of: fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
            let [x, weight] = [&x, &weight].map(|t| t.clone().autodiff().require_grad());
            let y = of(x.clone(), weight.clone());
            let gradients = (y.clone() * slope.clone().autodiff()).sum().backward();
            [y.inner(), x.grad(&gradients).unwrap(), weight.grad(&gradients).unwrap()]
        };
        for (ours, plain) in run(linear).into_iter().zip(run(plain)) {
            assert_eq!(gap(ours, plain), 0.0);
        }
    }

    #[test]
    fn a_frozen_weight_has_no_gradient() {
        let (x, weight) = (numbers("x", [5, 7]).autodiff().require_grad(), numbers("w", [3, 7]));
        let gradients = linear(x.clone(), weight.autodiff()).sum().backward();
        assert!(x.grad(&gradients).is_some());
    }
}
