//! A sparse matrix applied along one axis of a tensor: resizing (nearest, linear, cubic) and its gradient, one axis at a time.

use crate::crew::share_out_chunks;
use crate::level::{Kernel, Level};
use crate::vector::Simd;

/// A sparse matrix, row by row.
///
/// ```
/// use ouzel_kernels::{AxisMatrix, Level};
/// // Doubles an axis of two by repeating each element.
/// let double = AxisMatrix::new(2, &[vec![(0, 1.0)], vec![(0, 1.0)], vec![(1, 1.0)], vec![(1, 1.0)]]);
/// let (mut large, mut small) = ([0.0; 4], [0.0; 2]);
/// double.apply(Level::portable(), 1, 1, &[1.0, 2.0], &mut large, false);
/// assert_eq!(large, [1.0, 1.0, 2.0, 2.0]);
/// double.transposed().apply(Level::portable(), 1, 1, &[1.0, 2.0, 3.0, 4.0], &mut small, false);
/// assert_eq!(small, [3.0, 7.0]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct AxisMatrix {
    columns: usize,
    /// Where the entries of each row begin, and the end of all.
    starts: Vec<usize>,
    entries: Vec<(usize, f32)>,
}

/// Elements written by a task, below which it is not worth sharing out.
const LEAST_WORK: usize = 32 * 1024;

/// Elements of a row that are summed at once.
const CHUNK: usize = 64;

impl AxisMatrix {
    /// A matrix with so many columns; each row lists its entries as (column, weight), which are summed in that order.
    ///
    /// # Panics
    /// If an entry lies beyond the columns.
    pub fn new(columns: usize, rows: &[Vec<(usize, f32)>]) -> AxisMatrix {
        let mut starts = vec![0];
        let mut entries = Vec::new();
        for row in rows {
            assert!(
                row.iter().all(|entry| entry.0 < columns),
                "an entry of {row:?} lies beyond {columns} columns"
            );
            entries.extend_from_slice(row);
            starts.push(entries.len());
        }
        AxisMatrix { columns, starts, entries }
    }

    /// Number of rows, the size of the axis in the output.
    pub fn rows(&self) -> usize {
        self.starts.len() - 1
    }

    /// Number of columns, the size of the axis in the input.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The transposed matrix, which is the gradient's.
    pub fn transposed(&self) -> AxisMatrix {
        let mut rows = vec![Vec::new(); self.columns];
        for row in 0..self.rows() {
            for (column, weight) in self.row(row) {
                rows[*column].push((row, *weight));
            }
        }
        AxisMatrix::new(self.rows(), &rows)
    }

    fn row(&self, row: usize) -> &[(usize, f32)] {
        &self.entries[self.starts[row]..self.starts[row + 1]]
    }

    /// `output[o][row][i] = Σ weight · input[o][column][i]` for `outer` values of o and `inner` values of i; `accumulate` adds to what
    /// the output holds.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn apply(
        &self,
        level: Level,
        outer: usize,
        inner: usize,
        input: &[f32],
        output: &mut [f32],
        accumulate: bool,
    ) {
        let size = |axis: usize| {
            outer.checked_mul(axis).and_then(|n| n.checked_mul(inner)).expect("a tensor is too large")
        };
        let (needed, total) = (size(self.columns), size(self.rows()));
        assert!(input.len() >= needed, "input has {} elements, needs {needed}", input.len());
        assert!(output.len() >= total, "output has {} elements, needs {total}", output.len());
        if total == 0 {
            return;
        }
        let rows_per_task = LEAST_WORK.div_ceil(inner);
        share_out_chunks(&mut output[..total], rows_per_task * inner, |task, output| {
            level.run(Task { matrix: self, inner, input, first: task * rows_per_task, output, accumulate });
        });
    }
}

struct Task<'a> {
    matrix: &'a AxisMatrix,
    inner: usize,
    input: &'a [f32],
    /// First row of the output, counted over all outer positions.
    first: usize,
    output: &'a mut [f32],
    accumulate: bool,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task { matrix, inner, input, first, output, accumulate } = self;
        let rows = matrix.rows();
        for (index, output) in output.chunks_exact_mut(inner).enumerate() {
            let (outer, row) = ((first + index) / rows, (first + index) % rows);
            let input = &input[outer * matrix.columns * inner..(outer + 1) * matrix.columns * inner];
            for (chunk, output) in output.chunks_mut(CHUNK).enumerate() {
                let mut sums = [0.0; CHUNK];
                for (column, weight) in matrix.row(row) {
                    let start = column * inner + chunk * CHUNK;
                    for (sum, value) in sums.iter_mut().zip(&input[start..start + output.len()]) {
                        *sum = simd.multiply_add_one(*value, *weight, *sum);
                    }
                }
                for (output, sum) in output.iter_mut().zip(&sums) {
                    *output = if accumulate { *output + sum } else { *sum };
                }
            }
        }
    }
}
