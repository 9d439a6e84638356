//! Products of whole matrices by the crate `gemm`, straight into the vector that becomes the tensor.
//!
//! Burn's own product calls the same function with the same arguments, so the bits are the same. Before that it clears
//! memory for the result, and copies it to other memory for its alignment: an eighth of the time of a small model.

use std::ops::Range;

use ::gemm::{Parallelism, gemm};

/// A matrix within a slice: row i and column j at `i * row_stride + j * column_stride`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrix<'a> {
    pub values: &'a [f32],
    pub rows: usize,
    pub columns: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl Matrix<'_> {
    /// Some of the columns.
    pub(super) fn columns_in(self, columns: Range<usize>) -> Self {
        let values = &self.values[columns.start * self.column_stride..];
        Self { values, columns: columns.len(), ..self }
    }

    /// The place behind the last value, in a matrix that has one.
    fn end(&self) -> usize {
        (self.rows - 1) * self.row_stride + (self.columns - 1) * self.column_stride + 1
    }
}

/// A B, row by row.
///
/// # Panics
///
/// If A has not as many columns as B rows, or a matrix reaches beyond its slice.
#[allow(unsafe_code)]
pub(super) fn product(a: Matrix, b: Matrix) -> Vec<f32> {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    assert_eq!(k, b.rows, "columns of A, rows of B");
    if m == 0 || k == 0 || n == 0 {
        return vec![0.0; m * n];
    }
    assert!(a.end() <= a.values.len() && b.end() <= b.values.len(), "a matrix beyond its slice");
    let mut c = Vec::with_capacity(m * n);
    if m == 1 || n == 1 || k <= 2 {
        // Of a vector, and of few terms, `gemm` reads C before it writes it.
        c.resize(m * n, 0.0);
    }
    let [(a_rows, a_columns), (b_rows, b_columns)] =
        [a, b].map(|x| (x.row_stride as isize, x.column_stride as isize));
    let (of_c, of_product) = (0.0, 1.0);
    let [read_c, conjugate_c, conjugate_a, conjugate_b] = [false; 4];
    // Safety: no place is read that is not below the ends above; C has room for m rows of n values, and all are written
    // before its length says that they are there.
    unsafe {
        gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            read_c,
            a.values.as_ptr(),
            a_columns,
            a_rows,
            b.values.as_ptr(),
            b_columns,
            b_rows,
            of_c,
            of_product,
            conjugate_c,
            conjugate_a,
            conjugate_b,
            Parallelism::None,
        );
        c.set_len(m * n);
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small whole numbers, so that sums are exact in any order.
    fn values(count: usize, step: usize) -> Vec<f32> {
        (0..count).map(|i| (i * step % 11) as f32 - 5.0).collect()
    }

    fn matrix(values: &[f32], rows: usize, columns: usize, turned: bool) -> Matrix<'_> {
        let (row_stride, column_stride) = if turned { (1, rows) } else { (columns, 1) };
        Matrix { values, rows, columns, row_stride, column_stride }
    }

    /// Under Miri too: `cargo +nightly miri test --lib gemm`.
    #[test]
    fn a_product_is_that_of_the_definition_at_every_size_and_order() {
        let sizes: &[[usize; 3]] = &[
            [0, 3, 2],
            [3, 0, 2],
            [1, 1, 1],
            [1, 9, 5],
            [7, 9, 1],
            [5, 2, 6],
            [3, 3, 2],
            [9, 17, 20],
            [33, 5, 19],
            [70, 40, 50],
        ];
        for &[m, k, n] in sizes {
            for (a_turned, b_turned) in [(false, false), (false, true), (true, false), (true, true)]
            {
                let (a, b) = (values(m * k, 7), values(k * n, 3));
                let (a, b) = (matrix(&a, m, k, a_turned), matrix(&b, k, n, b_turned));
                let c = product(a, b);
                assert_eq!(c.len(), m * n);
                let at = |x: Matrix, i, j| x.values[i * x.row_stride + j * x.column_stride];
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let sum: f32 = (0..k).map(|l| at(a, i, l) * at(b, l, j)).sum();
                    assert_eq!(c[i * n + j], sum, "{m} {k} {n}, {a_turned} {b_turned}, {i} {j}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "a matrix beyond its slice")]
    fn a_matrix_beyond_its_slice_is_refused() {
        let (a, b) = (values(5, 7), values(6, 3));
        product(matrix(&a, 2, 3, false), matrix(&b, 3, 2, false));
    }

    #[test]
    #[should_panic(expected = "columns of A, rows of B")]
    fn matrices_that_do_not_fit_are_refused() {
        let (a, b) = (values(6, 7), values(6, 3));
        product(matrix(&a, 2, 3, false), matrix(&b, 2, 3, false));
    }
}
