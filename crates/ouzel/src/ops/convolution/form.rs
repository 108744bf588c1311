//! The sums that convolution, its transpose and its weight gradient are, as products of matrices.

use crate::error::{Error, Result};
use crate::ops::window::{Axis, Window};
use crate::tensor::Float;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, Slice};
use rayon::prelude::*;
use std::ops::Range;

/// A column buffer holds about this many elements.
const COLUMN_ELEMENTS: usize = 1 << 19;

/// The channels of the long side that one step works on.
const CHANNEL_BLOCK: usize = 16;

/// The sizes of the form in the parent's documentation.
pub(super) struct Form {
    axes: [Axis; 3],
    batch: usize,
    group: usize,
    /// `M / group`.
    short_channels: usize,
    /// `C / group`.
    long_channels: usize,
}

impl Form {
    pub(super) fn new(window: &Window, pads: &[i64], x: &[usize], w: &[usize], g: &[usize]) -> Result<Self> {
        let axes = Axis::triple(window, pads, &w[2..], &x[2..], &g[2..]);
        let group = x[1].checked_div(w[1]).unwrap_or(1).max(1);
        if w[0] != g[1] || x[0] != g[0] || w[1] * group != x[1] || !w[0].is_multiple_of(group) {
            return Err(Error::shape(format!("{x:?}, {w:?} and {g:?} do not fit a convolution")));
        }
        Ok(Self { axes, batch: x[0], group, short_channels: w[0] / group, long_channels: w[1] })
    }

    fn taps(&self) -> usize {
        self.axes.iter().map(|axis| axis.kernel).product()
    }

    fn long(&self) -> usize {
        self.axes.iter().map(|axis| axis.long).product()
    }

    fn short(&self) -> usize {
        self.axes.iter().map(|axis| axis.short).product()
    }

    /// The places of the short side in pieces, so that `rows` rows of that length make a moderate buffer.
    fn pieces(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (short, length) = (self.short(), (COLUMN_ELEMENTS / rows.max(1)).max(64));
        (0..short.div_ceil(length)).map(move |index| index * length..((index + 1) * length).min(short))
    }

    /// Pairs of group and block of long channels.
    fn blocks(&self) -> Vec<(usize, Range<usize>)> {
        let channels = self.long_channels;
        let block = |group: usize| {
            (0..channels.div_ceil(CHANNEL_BLOCK))
                .map(move |index| (group, index * CHANNEL_BLOCK..((index + 1) * CHANNEL_BLOCK).min(channels)))
        };
        (0..self.group).flat_map(block).collect()
    }

    /// Calls `visit(row, column, place, count)` for each run: from `column` on, `count` columns of the row belong to
    /// places of the long side that begin at `place` and are one stride apart. Rows are channels times taps.
    fn runs(&self, channels: usize, piece: &Range<usize>, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let [a, b, c] = &self.axes;
        for (row, (channel, tap)) in
            (0..channels).flat_map(|channel| (0..self.taps()).map(move |tap| (channel, tap))).enumerate()
        {
            let (tap_a, tap_b, tap_c) =
                (tap / (b.kernel * c.kernel), tap / c.kernel % b.kernel, tap % c.kernel);
            let inside = c.shorts(tap_c);
            let mut start = piece.start;
            while start < piece.end {
                let (line, first) = (start / c.short, start % c.short);
                let last = c.short.min(first + piece.end - start);
                let (from, to) = (first.max(inside.start), last.min(inside.end));
                let place_a = a.position(line / b.short, tap_a);
                let place_b = b.position(line % b.short, tap_b);
                if let (true, Some(place_a), Some(place_b)) = (from < to, place_a, place_b) {
                    let place_c = c.position(from, tap_c).expect("invariant: `shorts` gives places inside");
                    let place = ((channel * a.long + place_a) * b.long + place_b) * c.long + place_c;
                    visit(row, start - piece.start + from - first, place, to - from);
                }
                start += last - first;
            }
        }
    }

    /// The columns that one piece of the short side sees, as rows of channels times taps.
    fn columns<T: Float>(&self, x: &[T], channels: usize, piece: &Range<usize>) -> Array2<T> {
        let width = piece.len();
        let mut columns = vec![T::zero(); channels * self.taps() * width];
        let stride = self.axes[2].stride;
        self.runs(channels, piece, |row, column, place, count| {
            let target = &mut columns[row * width + column..][..count];
            for (target, x) in target.iter_mut().zip(x[place..].iter().step_by(stride)) {
                *target = *x;
            }
        });
        Array2::from_shape_vec((channels * self.taps(), width), columns).expect("invariant: sizes agree")
    }

    pub(super) fn convolve<T: Float>(&self, x: &[T], w: &[T]) -> Vec<T> {
        let (rows, short, long) = (self.long_channels * self.taps(), self.short(), self.long());
        let mut y = vec![T::zero(); self.batch * self.group * self.short_channels * short];
        if rows == 0 || y.is_empty() {
            return y;
        }
        let units: Vec<(usize, Range<usize>)> = (0..self.batch * self.group)
            .flat_map(|index| self.pieces(rows).map(move |piece| (index, piece)))
            .collect();
        let multiply = |(index, piece): &(usize, Range<usize>)| -> Array2<T> {
            let w = view(w, index % self.group, self.short_channels, rows);
            let x = &x[index * self.long_channels * long..][..self.long_channels * long];
            w.dot(&self.columns(x, self.long_channels, piece))
        };
        // A few at a time: the pieces of a large batch would need the memory of the output twice.
        for some in units.chunks(64) {
            let products: Vec<Array2<T>> = some.par_iter().map(multiply).collect();
            for ((index, piece), product) in some.iter().zip(products) {
                for (channel, row) in product.outer_iter().enumerate() {
                    let start = (index * self.short_channels + channel) * short + piece.start;
                    let target = &mut y[start..start + piece.len()];
                    target.iter_mut().zip(row).for_each(|(y, &value)| *y = value);
                }
            }
        }
        y
    }

    pub(super) fn transpose<T: Float>(&self, g: &[T], w: &[T]) -> Vec<T> {
        let (taps, short, long) = (self.taps(), self.short(), self.long());
        let blocks = self.blocks();
        let units: Vec<(usize, &(usize, Range<usize>))> =
            (0..self.batch).flat_map(|sample| blocks.iter().map(move |block| (sample, block))).collect();
        let scatter = |(sample, (group, channels)): &(usize, &(usize, Range<usize>))| -> Vec<T> {
            let mut y = vec![T::zero(); channels.len() * long];
            if self.short_channels == 0 {
                return y;
            }
            let w = view(w, *group, self.short_channels, self.long_channels * taps);
            let w = w.slice_axis(ndarray::Axis(1), Slice::from(channels.start * taps..channels.end * taps));
            let g = view(g, sample * self.group + group, self.short_channels, short);
            let stride = self.axes[2].stride;
            for piece in self.pieces(channels.len() * taps) {
                let columns = w.t().dot(&g.slice_axis(ndarray::Axis(1), Slice::from(piece.clone())));
                let columns = columns.as_standard_layout();
                let columns = columns.as_slice().expect("invariant: standard layout");
                self.runs(channels.len(), &piece, |row, column, place, count| {
                    let source = &columns[row * piece.len() + column..][..count];
                    for (y, value) in y[place..].iter_mut().step_by(stride).zip(source) {
                        *y += *value;
                    }
                });
            }
            y
        };
        units.par_iter().map(scatter).collect::<Vec<_>>().concat()
    }

    pub(super) fn correlate<T: Float>(&self, x: &[T], g: &[T]) -> Vec<T> {
        let (taps, short, long) = (self.taps(), self.short(), self.long());
        let rows = self.long_channels * taps;
        let blocks = self.blocks();
        let correlate = |(group, channels): &(usize, Range<usize>)| -> Array2<T> {
            let mut sum = Array2::zeros((self.short_channels, channels.len() * taps));
            for sample in 0..self.batch {
                let index = sample * self.group + group;
                let g = view(g, index, self.short_channels, short);
                let x = &x[(index * self.long_channels + channels.start) * long..][..channels.len() * long];
                for piece in self.pieces(channels.len() * taps) {
                    let columns = self.columns(x, channels.len(), &piece);
                    let g = g.slice_axis(ndarray::Axis(1), Slice::from(piece));
                    general_mat_mul(T::one(), &g, &columns.t(), T::one(), &mut sum);
                }
            }
            sum
        };
        let sums: Vec<Array2<T>> = blocks.par_iter().map(correlate).collect();
        let mut w = vec![T::zero(); self.group * self.short_channels * rows];
        for ((group, channels), sum) in blocks.iter().zip(sums) {
            for (channel, row) in sum.outer_iter().enumerate() {
                let start = (group * self.short_channels + channel) * rows + channels.start * taps;
                w[start..start + channels.len() * taps].iter_mut().zip(row).for_each(|(w, &v)| *w = v);
            }
        }
        w
    }
}

/// Matrix number `index` of those that lie one behind the other.
fn view<T>(elements: &[T], index: usize, rows: usize, columns: usize) -> ArrayView2<'_, T> {
    let size = rows * columns;
    ArrayView2::from_shape((rows, columns), &elements[index * size..(index + 1) * size])
        .expect("invariant: the slice has the size of the matrix")
}

#[cfg(test)]
mod tests {
    use super::super::Conv;
    use super::super::tests::ascending;
    use super::*;
    use crate::op::{Inputs, OpDef};

    #[test]
    fn large_maps_are_worked_on_in_pieces() {
        // Many pieces against one direct sum.
        let (x, w) = (ascending(&[1, 3, 70_000], 0.0), ascending(&[2, 3, 5], -7.0));
        let op = Conv { window: Window::plain(1).with_pads([2, 2]), group: 1 };
        let y = op.run(&Inputs(&[Some(&x), Some(&w)])).unwrap().remove(0);
        let (y, x, w) = (y.to_f64(), x.to_f64(), w.to_f64());
        for place in [2, 34_951, 34_952, 34_953, 69_997] {
            let sum: f64 = (0..3)
                .flat_map(|c| (0..5).map(move |t| (c, t)))
                .map(|(c, t)| w[[1, c, t]] * x[[0, c, place + t - 2]])
                .sum();
            assert_eq!(y[[0, 1, place]], sum);
        }
    }
}
