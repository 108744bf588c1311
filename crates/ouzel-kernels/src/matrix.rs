//! Products of matrices that are both known only at run time, as in attention.

use crate::convolution::{Convolution, ConvolutionShape};
use crate::crew::share_out;
use crate::epilogue::Epilogue;
use crate::level::Level;
use crate::shared::Shared;
use crate::tile::{COLUMN, packed_width};
use crate::view::View;

/// One side of a batch of matrix products.
#[derive(Clone, Copy, Debug)]
pub struct Matrices<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Distance of the first elements of neighbouring matrices of the batch; 0 if all products share one.
    pub batch_stride: usize,
    /// Distance of neighbouring rows.
    pub row_stride: usize,
    /// Distance of neighbouring columns.
    pub column_stride: usize,
}

impl<'a> Matrices<'a> {
    /// Matrices one after the other in row-major order.
    pub fn packed(data: &'a [f32], rows: usize, columns: usize) -> Matrices<'a> {
        Matrices { data, batch_stride: rows * columns, row_stride: columns, column_stride: 1 }
    }

    /// The same matrices with rows and columns exchanged.
    pub fn transposed(self) -> Matrices<'a> {
        Matrices { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn check(&self, batch: usize, rows: usize, columns: usize, what: &str) {
        let last = |count: usize, stride: usize| (count - 1).checked_mul(stride);
        let needed = last(batch, self.batch_stride)
            .and_then(|end| end.checked_add(last(rows, self.row_stride)?))
            .and_then(|end| end.checked_add(last(columns, self.column_stride)?));
        assert!(
            needed.is_some_and(|needed| needed < self.data.len()),
            "{what}: {batch} matrices of {rows} rows and {columns} columns do not fit into {} elements",
            self.data.len()
        );
    }
}

/// A batch of products `output[b] = left[b] · right[b]`, planned once.
///
/// Every element is the sum of chains of at most 256 multiply-adds over the inner dimension.
///
/// ```
/// use ouzel_kernels::{Level, Matrices, MatrixProduct};
/// let product = MatrixProduct::new(1, 1, 2, 2);
/// let (left, right) = ([1.0, 2.0], [10.0, 30.0, 20.0, 40.0]);
/// let mut scratch = vec![0.0; product.scratch_len()];
/// let mut output = [0.0; 2];
/// let right = Matrices::packed(&right, 2, 2).transposed();
/// product.run(Level::portable(), Matrices::packed(&left, 1, 2), right, &mut output, false, &mut scratch);
/// assert_eq!(output, [70.0, 100.0]);
/// ```
pub struct MatrixProduct {
    batch: usize,
    rows: usize,
    depth: usize,
    columns: usize,
    convolution: Convolution,
}

impl MatrixProduct {
    /// Plans `batch` products of `rows` × `depth` by `depth` × `columns` matrices.
    ///
    /// # Panics
    /// If the sizes are too large.
    pub fn new(batch: usize, rows: usize, depth: usize, columns: usize) -> MatrixProduct {
        let shape = ConvolutionShape::new(depth, columns, [1; 3]);
        shape.check();
        let product =
            MatrixProduct { batch, rows, depth, columns, convolution: Convolution::without_weights(&shape) };
        let fits =
            [rows, product.scratch_of_one()].into_iter().all(|size| size.checked_mul(batch.max(1)).is_some());
        assert!(
            fits && batch.checked_mul(rows).and_then(|n| n.checked_mul(columns)).is_some(),
            "a matrix product is too large"
        );
        product
    }

    /// Scratch of one product: the right matrix packed, and the left one with contiguous rows.
    fn scratch_of_one(&self) -> usize {
        let right = self.depth.checked_mul(packed_width(self.columns));
        let left = self.rows.checked_mul(self.depth);
        right
            .zip(left)
            .and_then(|(right, left)| right.checked_add(left))
            .expect("a matrix product is too large")
    }

    /// The multiplications and additions of all products.
    pub fn flops(&self) -> f64 {
        2.0 * [self.batch, self.rows, self.depth, self.columns]
            .iter()
            .map(|&length| length as f64)
            .product::<f64>()
    }

    /// How many floats of scratch `run` needs.
    pub fn scratch_len(&self) -> usize {
        self.batch * self.scratch_of_one()
    }

    /// Computes all products, packed in row-major order; `accumulate` adds them to what the output holds.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn run(
        &self,
        level: Level,
        left: Matrices,
        right: Matrices,
        output: &mut [f32],
        accumulate: bool,
        scratch: &mut [f32],
    ) {
        let MatrixProduct { batch, rows, depth, columns, convolution } = self;
        let (batch, rows, depth, columns) = (*batch, *rows, *depth, *columns);
        let total = batch * rows * columns;
        assert!(output.len() >= total, "output has {} elements, needs {total}", output.len());
        assert!(
            scratch.len() >= self.scratch_len(),
            "scratch has {} elements, needs {}",
            scratch.len(),
            self.scratch_len()
        );
        if total == 0 {
            return;
        }
        let output = &mut output[..total];
        if depth == 0 {
            if !accumulate {
                output.fill(0.0);
            }
            return;
        }
        left.check(batch, rows, depth, "left matrices");
        right.check(batch, depth, columns, "right matrices");
        let packed_len = depth * packed_width(columns);
        let scratch_len = self.scratch_of_one();
        let (output, scratch) = (Shared::new(output), Shared::new(scratch));
        let one = |index: usize| {
            // SAFETY: each product has its own results and its own scratch, and is made once.
            let (output, scratch) = unsafe {
                let output = output.part(index * rows * columns, rows * columns);
                (output, scratch.part(index * scratch_len, scratch_len))
            };
            let (packed, rest) = scratch.split_at_mut(packed_len);
            let right = Matrices { data: &right.data[index * right.batch_stride..], ..right };
            pack(&right, depth, columns, packed);
            let matrix = &left.data[index * left.batch_stride..];
            let in_place =
                left.column_stride == 1 && left.row_stride >= depth && matrix.len() >= rows * left.row_stride;
            let (matrix, row_stride) = match in_place {
                true => (matrix, left.row_stride),
                false => {
                    for (row, to) in rest.chunks_exact_mut(depth).enumerate().take(rows) {
                        for (column, to) in to.iter_mut().enumerate() {
                            *to = matrix[row * left.row_stride + column * left.column_stride];
                        }
                    }
                    (&*rest, depth)
                }
            };
            let from = View::packed(rows, [1; 3], depth).within(row_stride, 0);
            let to = View::packed(rows, [1; 3], columns);
            let addend = accumulate.then_some(crate::Addend::Output);
            convolution.run_with(
                packed,
                level,
                matrix,
                &from,
                output,
                &to,
                Epilogue { addend, ..Epilogue::default() },
            );
        };
        // Each product is shared out where there are few of them.
        match batch < rayon::current_num_threads() {
            true => (0..batch).for_each(one),
            false => share_out(batch, one),
        }
    }
}

/// Packs a matrix as `[16 columns][row][column within the 16]`, absent columns zero.
fn pack(matrix: &Matrices, rows: usize, columns: usize, packed: &mut [f32]) {
    for (part, packed) in packed.chunks_exact_mut(COLUMN * rows).enumerate() {
        let first = part * COLUMN;
        let filled = COLUMN.min(columns - first);
        for (row, to) in packed.chunks_exact_mut(COLUMN).enumerate() {
            let from = &matrix.data[row * matrix.row_stride + first * matrix.column_stride..];
            match matrix.column_stride {
                1 => to[..filled].copy_from_slice(&from[..filled]),
                stride => {
                    for (lane, to) in to.iter_mut().enumerate().take(filled) {
                        *to = from[lane * stride];
                    }
                }
            }
            to[filled..].fill(0.0);
        }
    }
}
