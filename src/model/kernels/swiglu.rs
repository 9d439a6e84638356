//! SwiGLU: silu(gate) · up, with silu(z) = z σ(z).

use burn::tensor::{Tensor, activation::silu};

/// silu(`gate`) · `up`, element by element; both `[N, channels]`.
pub fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if super::is_served(&gate) {
        return served::swiglu(gate, up);
    }
    plain(gate, up)
}

/// As [`swiglu`], on any device and in any type.
pub fn plain(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
    silu(gate).mul(up)
}

#[cfg(feature = "flex")]
mod served {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::Tensor;

    use crate::model::kernels::simd::{sigmoid, vectorized};
    use crate::model::kernels::slices::{contiguous, tensor, values};
    use crate::model::kernels::steps::pass_back;

    pub(super) fn swiglu(gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::swiglu(gate.into_dispatch(), up.into_dispatch()))
    }

    #[backend_extension(Flex, Autodiff)]
    pub trait Swiglu: Backend {
        fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self>;
    }

    /// The gradients of gate and up.
    pub trait SwigluBackward: Backend {
        fn backward(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            gradient: FloatTensor<Self>,
        ) -> [FloatTensor<Self>; 2];
    }

    impl Swiglu for Flex {
        fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
            let shape: [usize; 2] = gate.shape().dims();
            let (gate, up) = (contiguous(gate), contiguous(up));
            let (gate, up) = (values(&gate), values(&up));
            let mut y = vec![0.0; gate.len()];
            forward(gate, up, &mut y);
            tensor(y, shape)
        }
    }

    vectorized! {
        fn forward(gate: &'a [f32], up: &'a [f32], y: &'a mut [f32]) {
            for ((z, u), y) in gate.iter().zip(up).zip(y) {
                *y = z * sigmoid(*z) * u;
            }
        }
    }

    vectorized! {
        /// With s = σ(z): ∂z = g u s (1 + z (1 - s)), ∂u = g z s.
        fn backward(
            gate: &'a [f32],
            up: &'a [f32],
            gradient: &'a [f32],
            d_gate: &'a mut [f32],
            d_up: &'a mut [f32],
        ) {
            let each = gate.iter().zip(up).zip(gradient);
            for (((z, u), g), (dz, du)) in each.zip(d_gate.iter_mut().zip(d_up)) {
                let s = sigmoid(*z);
                *dz = g * u * s * (1.0 + z * (1.0 - s));
                *du = g * z * s;
            }
        }
    }

    impl SwigluBackward for Flex {
        fn backward(
            gate: FloatTensor<Self>,
            up: FloatTensor<Self>,
            gradient: FloatTensor<Self>,
        ) -> [FloatTensor<Self>; 2] {
            let shape: [usize; 2] = gate.shape().dims();
            let (gate, up, gradient) = (contiguous(gate), contiguous(up), contiguous(gradient));
            let (gate, up, gradient) = (values(&gate), values(&up), values(&gradient));
            let mut d_gate = vec![0.0; gate.len()];
            let mut d_up = vec![0.0; gate.len()];
            backward(gate, up, gradient, &mut d_gate, &mut d_up);
            [tensor(d_gate, shape), tensor(d_up, shape)]
        }
    }

    #[derive(Debug)]
    struct Step;

    impl<B: SwigluBackward> Backward<B, 2> for Step {
        type State = [FloatTensor<B>; 2];

        fn backward(
            self,
            ops: Ops<Self::State, 2>,
            grads: &mut Gradients,
            _checkpointer: &mut Checkpointer,
        ) {
            pass_back::<B, _, 2>(ops, grads, |[gate, up], gradient, _| {
                B::backward(gate, up, gradient).map(Some)
            });
        }
    }

    impl<B: Swiglu + SwigluBackward, C: CheckpointStrategy> Swiglu for Autodiff<B, C> {
        fn swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
            let nodes = [gate.node(), up.node()];
            let (gate, up) = (gate.into_primitive(), up.into_primitive());
            let y = B::swiglu(gate.clone(), up.clone());
            match Step.prepare::<C>(nodes).compute_bound().stateful() {
                OpsKind::Tracked(step) => step.finish([gate, up], y),
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
        let [gate, up, slope] = ["z", "u", "g"].map(|name| numbers::<2>(name, [5, 37]) * 4.0);
        let run = |of: fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
            let [gate, up] = [&gate, &up].map(|t| t.clone().autodiff().require_grad());
            let y = of(gate.clone(), up.clone());
            let gradients = (y.clone() * slope.clone().autodiff()).sum().backward();
            [y.inner(), gate.grad(&gradients).unwrap(), up.grad(&gradients).unwrap()]
        };
        for (ours, plain) in run(swiglu).into_iter().zip(run(plain)) {
            assert!(gap(ours, plain) < 1e-4);
        }
    }
}
