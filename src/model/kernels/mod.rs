//! The operations that a CPU spends its time on, each as one pass with a hand-written backward pass.
//!
//! Each file is one operation: what it computes in plain tensor operations, which every device can do and which its test
//! takes as the oracle, and on Burn's CPU backend, in f32, the same as loops over slices. Burn is given those through its
//! backend extensions, so that autodiff, devices and checkpointing work around them as around its own operations.
//!
//! The loops are single-threaded: threads run whole rows side by side ([`super::shards`]), each with operations of
//! its own. Sums have a fixed order, which neither the number of threads nor the width of a CPU's vectors changes.

pub mod adamw;
pub mod attention;
pub mod linear;
pub mod rms_norm;
pub mod swiglu;
pub mod token_head;
pub mod weights;

#[cfg(feature = "flex")]
mod gemm;
#[cfg(feature = "flex")]
mod product;
mod simd;

use burn::tensor::{DType, Device, Tensor};

/// Whether `device` is Burn's CPU backend, with autodiff or without.
pub fn is_cpu(device: &Device) -> bool {
    #[cfg(feature = "flex")]
    {
        use burn::backend::DispatchDevice;
        let inner = device.clone().without_autodiff();
        matches!(inner.as_dispatch(), DispatchDevice::Flex(_))
    }
    #[cfg(not(feature = "flex"))]
    {
        let _ = device;
        false
    }
}

/// Whether rows of activations in `dtype` stand one behind the other on `device`, without padding: on the CPU, except in
/// 64 bits, which tests alone compute in.
pub fn packs(device: &Device, dtype: DType) -> bool {
    dtype != DType::F64 && is_cpu(device)
}

/// Whether `x` is served by the loops over slices.
fn is_served<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && is_cpu(&x.device())
}

/// What the loops read and write: Flex's tensors as slices.
#[cfg(feature = "flex")]
mod slices {
    use burn::backend::{Flex, TensorMetadata, tensor::FloatTensor};
    use burn::tensor::TensorData;

    use super::gemm::Matrix;

    type FlexTensor = FloatTensor<Flex>;

    /// `x` with its values in order, without a copy where they are.
    pub(super) fn contiguous(x: FlexTensor) -> FlexTensor {
        if x.is_contiguous() { x } else { x.to_contiguous() }
    }

    /// The values of a contiguous tensor.
    pub(super) fn values(x: &FlexTensor) -> &[f32] {
        x.as_slice().expect("contiguous values in f32")
    }

    /// The values of a tensor of two dimensions, in order or turned.
    pub(super) fn matrix(x: &FlexTensor) -> Matrix<'_> {
        let (layout, [rows, columns]) = (x.layout(), x.shape().dims());
        let [row_stride, column_stride] =
            [0, 1].map(|d| usize::try_from(layout.strides()[d]).expect("no flipped matrix"));
        let values = &x.storage()[layout.start_offset()..];
        Matrix { values, rows, columns, row_stride, column_stride }
    }

    /// A tensor of these values.
    pub(super) fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
        FlexTensor::from_data(TensorData::new(values, shape))
    }
}

/// What the backward passes of all operations share.
#[cfg(feature = "flex")]
mod steps {
    use burn::backend::Backend;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::Ops;
    use burn::backend::tensor::FloatTensor;

    /// Takes the gradient of an operation's result, and registers those of its inputs that are tracked. `of` makes them
    /// from the state, the gradient, and which are wanted.
    pub(super) fn pass_back<B: Backend, S, const N: usize>(
        ops: Ops<S, N>,
        grads: &mut Gradients,
        of: impl FnOnce(S, FloatTensor<B>, [bool; N]) -> [Option<FloatTensor<B>>; N],
    ) {
        let gradient = grads.consume::<B>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = of(ops.state, gradient, wanted);
        for (node, gradient) in ops.parents.into_iter().zip(found) {
            if let (Some(node), Some(gradient)) = (node, gradient) {
                grads.register::<B>(node.id, gradient);
            }
        }
    }
}

#[cfg(test)]
mod testing {
    use burn::tensor::{Device, Tensor, TensorData};
    use rand::Rng;

    use crate::rng::stream;

    /// Numbers around 0, the same for the same `name`.
    pub(super) fn numbers<const D: usize>(name: &str, shape: [usize; D]) -> Tensor<D> {
        let mut rng = stream(0, name, 0);
        let values = (0..shape.iter().product()).map(|_| rng.random_range(-1.5..1.5f32)).collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    /// The largest difference between two tensors.
    pub(super) fn gap<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f32 {
        assert_eq!(a.dims(), b.dims());
        (a - b).abs().max().into_scalar::<f32>()
    }
}
