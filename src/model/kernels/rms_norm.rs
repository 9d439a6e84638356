//! RMSNorm: x / √(mean(x²) + ε) · w over the channels of each row.

use burn::tensor::Tensor;

/// Normalizes each row of `x`, `[N, channels]`, and scales its channels by `weight`.
pub fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if super::is_served(&x) {
        return served::rms_norm(x, weight, epsilon);
    }
    plain(x, weight, epsilon)
}

/// As [`rms_norm`], on any device.
pub fn plain(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
    let scale = x.clone().square().mean_dim(1).add_scalar(epsilon).sqrt();
    x.div(scale).mul(weight.unsqueeze())
}

#[cfg(feature = "flex")]
mod served {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, backend_extension};
    use burn::tensor::Tensor;

    use crate::model::kernels::simd::{sum, vectorized};
    use crate::model::kernels::slices::{contiguous, tensor, values};
    use crate::model::kernels::steps::pass_back;

    pub(super) fn rms_norm(x: Tensor<2>, weight: Tensor<1>, epsilon: f64) -> Tensor<2> {
        let y = Dispatch::rms_norm(x.into_dispatch(), weight.into_dispatch(), epsilon as f32);
        Tensor::from_dispatch(y)
    }

    #[backend_extension(Flex, Autodiff)]
    pub trait RmsNorm: Backend {
        fn rms_norm(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            epsilon: f32,
        ) -> FloatTensor<Self>;
    }

    /// The gradients of x and w.
    pub trait RmsNormBackward: Backend {
        fn backward(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            gradient: FloatTensor<Self>,
            epsilon: f32,
        ) -> [FloatTensor<Self>; 2];
    }

    /// 1 / √(mean(x²) + ε).
    #[inline(always)]
    fn inverse(x: &[f32], epsilon: f32) -> f32 {
        1.0 / (sum(x.len(), |i| x[i] * x[i]) / x.len() as f32 + epsilon).sqrt()
    }

    vectorized! {
        fn forward(x: &'a [f32], w: &'a [f32], epsilon: f32, y: &'a mut [f32]) {
            for (x, y) in x.chunks_exact(w.len()).zip(y.chunks_exact_mut(w.len())) {
                let scale = inverse(x, epsilon);
                for ((x, w), y) in x.iter().zip(w).zip(y) {
                    *y = x * scale * w;
                }
            }
        }
    }

    vectorized! {
        /// With n = x · s, s the inverse: ∂x = s (g w - n mean(g w n)), ∂w = Σ g n over the rows.
        fn backward(
            x: &'a [f32],
            w: &'a [f32],
            g: &'a [f32],
            epsilon: f32,
            dx: &'a mut [f32],
            dw: &'a mut [f32],
        ) {
            let channels = w.len();
            let each = x.chunks_exact(channels).zip(g.chunks_exact(channels));
            for ((x, g), dx) in each.zip(dx.chunks_exact_mut(channels)) {
                let scale = inverse(x, epsilon);
                let mean = sum(channels, |i| g[i] * w[i] * x[i]) * scale / channels as f32;
                let along = mean * scale;
                for (((x, g), w), (dx, dw)) in x.iter().zip(g).zip(w).zip(dx.iter_mut().zip(&mut *dw)) {
                    *dx = scale * (g * w - x * along);
                    *dw += g * x * scale;
                }
            }
        }
    }

    impl RmsNorm for Flex {
        fn rms_norm(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            epsilon: f32,
        ) -> FloatTensor<Self> {
            let (x, weight) = (contiguous(x), contiguous(weight));
            let (x, w) = (values(&x), values(&weight));
            let channels = w.len();
            let mut y = vec![0.0; x.len()];
            forward(x, w, epsilon, &mut y);
            tensor(y, [x.len() / channels, channels])
        }
    }

    impl RmsNormBackward for Flex {
        fn backward(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            gradient: FloatTensor<Self>,
            epsilon: f32,
        ) -> [FloatTensor<Self>; 2] {
            let (x, weight, gradient) = (contiguous(x), contiguous(weight), contiguous(gradient));
            let (x, w, g) = (values(&x), values(&weight), values(&gradient));
            let channels = w.len();
            let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; channels]);
            backward(x, w, g, epsilon, &mut dx, &mut dw);
            [tensor(dx, [x.len() / channels, channels]), tensor(dw, [channels])]
        }
    }

    #[derive(Debug)]
    struct Step;

    impl<B: RmsNormBackward> Backward<B, 2> for Step {
        type State = (FloatTensor<B>, FloatTensor<B>, f32);

        fn backward(
            self,
            ops: Ops<Self::State, 2>,
            grads: &mut Gradients,
            _checkpointer: &mut Checkpointer,
        ) {
            pass_back::<B, _, 2>(ops, grads, |(x, weight, epsilon), gradient, _| {
                B::backward(x, weight, gradient, epsilon).map(Some)
            });
        }
    }

    impl<B: RmsNorm + RmsNormBackward, C: CheckpointStrategy> RmsNorm for Autodiff<B, C> {
        fn rms_norm(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            epsilon: f32,
        ) -> FloatTensor<Self> {
            let nodes = [x.node(), weight.node()];
            let (x, weight) = (x.into_primitive(), weight.into_primitive());
            let y = B::rms_norm(x.clone(), weight.clone(), epsilon);
            match Step.prepare::<C>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(step) => step.finish((x, weight, epsilon), y),
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
    fn values_and_gradients_are_those_of_the_plain_operations() {
        for channels in [3, 16, 50] {
            let [x, slope] = ["x", "g"].map(|name| numbers::<2>(name, [7, channels]));
            let weight = numbers::<1>("w", [channels]);
            let run = |of: fn(Tensor<2>, Tensor<1>, f64) -> Tensor<2>| {
                let (x, weight) = (x.clone().autodiff(), weight.clone().autodiff());
                let (x, weight) = (x.require_grad(), weight.require_grad());
                let y = of(x.clone(), weight.clone(), 1e-5);
                let gradients = (y.clone() * slope.clone().autodiff()).sum().backward();
                let weight = weight.grad(&gradients).unwrap().unsqueeze();
                [y.inner(), x.grad(&gradients).unwrap(), weight]
            };
            for (ours, plain) in run(rms_norm).into_iter().zip(run(plain)) {
                assert!(gap(ours, plain) < 1e-5);
            }
        }
    }
}
