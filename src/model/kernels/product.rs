//! Products of the small matrices of attention, with the inputs in scratch memory.
//!
//! An element of the result is a sum over the inner dimension in order, whatever its place and the width of the vectors.

use pulp::{Simd, WithSimd};

use super::simd::LANES;
use crate::model::counts;

/// A product C = A B or C += A B of `m` × `k` by `k` × `n`.
pub(super) struct Product<'a> {
    /// A, row i and column j at `i * a_rows + j * a_columns`.
    pub a: &'a [f32],
    pub a_rows: usize,
    pub a_columns: usize,
    /// B, row by row, each `b_rows` long.
    pub b: &'a [f32],
    pub b_rows: usize,
    /// C, row by row, each `c_rows` long.
    pub c: &'a mut [f32],
    pub c_rows: usize,
    /// Rows of A.
    pub m: usize,
    /// Columns of B, a multiple of [`LANES`].
    pub n: usize,
    /// Columns of A.
    pub k: usize,
    /// Whether C is added to.
    pub adds: bool,
}

/// Rows of C that are computed together.
const ROWS: usize = 6;

/// `count` up to a multiple of [`LANES`].
pub(super) fn padded(count: usize) -> usize {
    count.next_multiple_of(LANES)
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        debug_assert_eq!(self.n % LANES, 0);
        let mut row = 0;
        while row < self.m {
            match self.m - row {
                1 => self.rows::<S, 1>(simd, row),
                2 => self.rows::<S, 2>(simd, row),
                3 => self.rows::<S, 3>(simd, row),
                4 => self.rows::<S, 4>(simd, row),
                5 => self.rows::<S, 5>(simd, row),
                _ => self.rows::<S, ROWS>(simd, row),
            }
            row += ROWS;
        }
    }
}

impl Product<'_> {
    /// Runs on this CPU's vectors.
    pub(super) fn run(self) {
        counts::product(self.m, self.n, self.k);
        pulp::Arch::new().dispatch(self);
    }

    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&mut self, simd: S, row: usize) {
        let mut column = 0;
        while column < self.n {
            if self.n - column >= 2 * S::F32_LANES {
                self.tile::<S, R, 2>(simd, row, column);
                column += 2 * S::F32_LANES;
            } else {
                self.tile::<S, R, 1>(simd, row, column);
                column += S::F32_LANES;
            }
        }
    }

    /// `R` rows and `V` vectors of columns of C, which stay in registers: hence loops of constant length.
    #[allow(clippy::needless_range_loop)]
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        row: usize,
        column: usize,
    ) {
        let lanes = S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        let a: [&[f32]; R] = std::array::from_fn(|r| &self.a[(row + r) * self.a_rows..]);
        for i in 0..self.k {
            let b = &self.b[i * self.b_rows + column..][..V * lanes];
            let b = S::as_simd_f32s(b).0;
            for r in 0..R {
                let factor = simd.splat_f32s(a[r][i * self.a_columns]);
                for v in 0..V {
                    sums[r][v] = simd.mul_add_f32s(factor, b[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            let c = &mut self.c[(row + r) * self.c_rows + column..][..V * lanes];
            let c = S::as_mut_simd_f32s(c).0;
            for v in 0..V {
                c[v] = if self.adds { simd.add_f32s(c[v], sums[r][v]) } else { sums[r][v] };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_that_of_the_definition_at_every_size_and_stride() {
        for (m, k, columns) in [(1, 1, 1), (5, 3, 7), (6, 16, 16), (13, 33, 40), (64, 32, 80)] {
            for transposed in [false, true] {
                let n = padded(columns);
                let a: Vec<f32> = (0..m * k).map(|i| (i * 7 % 11) as f32 - 5.0).collect();
                let b: Vec<f32> = (0..k * n).map(|i| (i * 5 % 13) as f32 - 6.0).collect();
                let (a_rows, a_columns) = if transposed { (1, m) } else { (k, 1) };
                let mut c = vec![1.0; m * n];
                for adds in [false, true] {
                    let (a, b, c) = (&a, &b, &mut c);
                    let [b_rows, c_rows] = [n, n];
                    Product { a, a_rows, a_columns, b, b_rows, c, c_rows, m, n, k, adds }.run();
                }
                for i in 0..m {
                    for j in 0..n {
                        let sum = (0..k).map(|l| a[i * a_rows + l * a_columns] * b[l * n + j]);
                        assert_eq!(c[i * n + j], 2.0 * sum.sum::<f32>(), "{m} {k} {n} {i} {j}");
                    }
                }
            }
        }
    }
}
