//! y = x Wᵀ: a matrix product whose backward pass makes the gradient of W as W is stored.
//!
//! Burn's own product would make the gradient of Wᵀ, which every later pass would have to read against its order.

use burn::tensor::Tensor;

/// x Wᵀ for `x` of `[N, inputs]` and `weight` of `[outputs, inputs]`: `[N, outputs]`.
pub fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if super::is_served(&x) {
        return served::linear(x, weight, false);
    }
    plain(x, weight)
}

/// As [`linear`], the outputs of a large weight in parts side by side, on the threads of the program.
pub fn linear_in_parts(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if super::is_served(&x) {
        return served::linear(x, weight, true);
    }
    plain(x, weight)
}

/// As [`linear`], on any device and in any type.
pub fn plain(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    x.matmul(weight.transpose())
}

/// `weight`, `[outputs, inputs]`, laid out one column of outputs behind the other, for products with a few rows; on a device
/// without autodiff.
pub fn by_columns(weight: Tensor<2>) -> Tensor<2> {
    #[cfg(feature = "flex")]
    if super::is_served(&weight) {
        return served::by_columns(weight).transpose();
    }
    let options = (weight.device(), weight.dtype());
    let data = weight.transpose().into_data();
    Tensor::from_data(data, (&options.0, options.1)).transpose()
}

#[cfg(feature = "flex")]
pub(super) use served::product;

#[cfg(feature = "flex")]
mod served {
    use burn::backend::autodiff::checkpoint::base::Checkpointer;
    use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
    use burn::backend::autodiff::grads::Gradients;
    use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
    use burn::backend::ops::FloatTensorOps;
    use burn::backend::tensor::FloatTensor;
    use burn::backend::{Autodiff, Backend, Dispatch, Flex, TensorMetadata, backend_extension};
    use burn::tensor::Tensor;

    use crate::model::counts;
    use crate::model::kernels::gemm;
    use crate::model::kernels::slices::{contiguous, matrix, tensor, values};
    use crate::model::kernels::steps::pass_back;
    use crate::model::shards::side_by_side;

    pub(super) fn linear(x: Tensor<2>, weight: Tensor<2>, in_parts: bool) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::times(x.into_dispatch(), weight.into_dispatch(), in_parts))
    }

    pub(super) fn by_columns(weight: Tensor<2>) -> Tensor<2> {
        Tensor::from_dispatch(Dispatch::transposed(weight.into_dispatch()))
    }

    #[backend_extension(Flex)]
    pub trait Transposed: Backend {
        /// The transpose, its values in order.
        fn transposed(x: FloatTensor<Self>) -> FloatTensor<Self>;
    }

    impl Transposed for Flex {
        fn transposed(x: FloatTensor<Self>) -> FloatTensor<Self> {
            let x = contiguous(x);
            let [rows, columns] = x.shape().dims();
            let (from, mut to) = (values(&x), vec![0.0; rows * columns]);
            // Blocks whose lines stay in the nearest cache.
            for row in (0..rows).step_by(BLOCK) {
                for column in (0..columns).step_by(BLOCK) {
                    for j in column..columns.min(column + BLOCK) {
                        let to = &mut to[j * rows..][row..rows.min(row + BLOCK)];
                        for (to, from) in
                            to.iter_mut().zip(from[row * columns + j..].iter().step_by(columns))
                        {
                            *to = *from;
                        }
                    }
                }
            }
            tensor(to, [columns, rows])
        }
    }

    #[backend_extension(Flex, Autodiff)]
    pub trait Linear: Backend {
        fn times(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            in_parts: bool,
        ) -> FloatTensor<Self>;
    }

    /// Matrix products for the gradients.
    pub trait Product: Backend {
        fn product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
    }

    impl Linear for Flex {
        fn times(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            in_parts: bool,
        ) -> FloatTensor<Self> {
            let weight = Self::float_swap_dims(weight, 0, 1);
            if in_parts { product_in_parts(x, weight) } else { product(x, weight) }
        }
    }

    impl Product for Flex {
        fn product(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self> {
            product(a, b)
        }
    }

    /// A matrix product that is counted.
    pub(in crate::model::kernels) fn product(
        a: FloatTensor<Flex>,
        b: FloatTensor<Flex>,
    ) -> FloatTensor<Flex> {
        let [a, b] = [&a, &b].map(matrix);
        counts::product(a.rows, b.columns, a.columns);
        tensor(gemm::product(a, b), [a.rows, b.columns])
    }

    /// Rows and columns of a block.
    const BLOCK: usize = 32;
    /// Values of a weight that are worth a part of their own.
    const PART: usize = 1 << 16;
    /// Most parts of a weight.
    const PARTS: usize = 8;
    /// Columns of a part, a multiple of this.
    const COLUMNS: usize = 64;

    /// As [`product`], the columns of b in up to [`PARTS`] parts side by side: each thread then reads its part of a weight
    /// that no cache holds. How they are cut depends on the size of b alone.
    fn product_in_parts(a: FloatTensor<Flex>, b: FloatTensor<Flex>) -> FloatTensor<Flex> {
        let [a, b] = [&a, &b].map(matrix);
        counts::product(a.rows, b.columns, a.columns);
        let parts = (b.rows * b.columns / PART).clamp(1, PARTS);
        let width = b.columns.div_ceil(parts).next_multiple_of(COLUMNS);
        let starts: Vec<usize> = (0..b.columns).step_by(width).collect();
        let parts = side_by_side(starts, |start| {
            let part = b.columns_in(start..b.columns.min(start + width));
            (part.columns, gemm::product(a, part))
        });
        let mut c = Vec::with_capacity(a.rows * b.columns);
        for row in 0..a.rows {
            for (width, part) in &parts {
                c.extend_from_slice(&part[row * width..(row + 1) * width]);
            }
        }
        tensor(c, [a.rows, b.columns])
    }

    #[derive(Debug)]
    struct Step;

    impl<B: Product> Backward<B, 2> for Step {
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
                    weight.filter(|_| x_wanted).map(|weight| B::product(gradient, weight)),
                    x.filter(|_| weight_wanted).map(|x| B::product(turned, x)),
                ]
            });
        }
    }

    impl<B: Linear + Product, C: CheckpointStrategy> Linear for Autodiff<B, C> {
        fn times(
            x: FloatTensor<Self>,
            weight: FloatTensor<Self>,
            in_parts: bool,
        ) -> FloatTensor<Self> {
            let nodes = [x.node(), weight.node()];
            // Each input is kept for the gradient of the other.
            let kept = [
                weight.is_tracked().then(|| x.primitive().clone()),
                x.is_tracked().then(|| weight.primitive().clone()),
            ];
            let y = B::times(x.into_primitive(), weight.into_primitive(), in_parts);
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

    #[test]
    fn a_weight_by_columns_has_the_same_values() {
        for shape in [[1, 1], [3, 70], [33, 64], [100, 31]] {
            let weight = numbers::<2>("w", shape);
            assert_eq!(gap(by_columns(weight.clone()), weight), 0.0);
        }
    }

    #[test]
    fn a_product_in_parts_is_the_product() {
        for (rows, inputs, outputs) in [(3, 40, 50), (16, 576, 192), (5, 300, 1000)] {
            let (x, weight) = (numbers("x", [rows, inputs]), numbers("w", [outputs, inputs]));
            let (whole, parts) = (linear(x.clone(), weight.clone()), linear_in_parts(x, weight));
            assert!(gap(whole.clone(), parts) <= 1e-6 * whole.abs().max().into_scalar::<f32>());
        }
    }
}
