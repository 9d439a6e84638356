//! Tensors between types.

use burn::tensor::{DType, FloatDType, Tensor};

/// `x` in `dtype`; a gradient flows back in the type of `x`.
pub(super) fn cast<const D: usize>(x: Tensor<D>, dtype: DType) -> Tensor<D> {
    if x.dtype() == dtype { x } else { x.cast(FloatDType::from(dtype)) }
}

/// `x` in at least 32 bits, for sums over many numbers, and for exponentials.
pub(super) fn wide<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(FloatDType::F32),
        _ => x,
    }
}
