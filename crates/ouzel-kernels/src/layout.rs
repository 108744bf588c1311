//! Changes of layout: between channels-first and channels-last, and any transposition or strided copy.

use crate::crew::{share_out, share_out_chunks};
use crate::shared::Shared;
use crate::view::View;

/// Edge of the squares in which a transposition goes.
const SQUARE: usize = 16;

/// Elements below which a copy is not worth sharing out.
const LEAST_WORK: usize = 64 * 1024;

/// Copies a channels-first tensor `[batch][channel][spatial...]` into a channels-last view.
///
/// # Panics
/// If the view does not fit its slice or the input is too short.
///
/// ```
/// use ouzel_kernels::{to_channels_last, View};
/// let mut output = [0.0; 6];
/// to_channels_last(&[1.0, 2.0, 3.0, 10.0, 20.0, 30.0], &mut output, &View::packed(1, [1, 1, 3], 2));
/// assert_eq!(output, [1.0, 10.0, 2.0, 20.0, 3.0, 30.0]);
/// ```
pub fn to_channels_last(input: &[f32], output: &mut [f32], view: &View) {
    view.check(output.len(), "output");
    let (pixels, channels) = (view.pixels(), view.channels);
    assert!(input.len() >= pixels * channels, "{} elements for {view:?}", input.len());
    if pixels * channels == 0 {
        return;
    }
    let sample = pixels / view.batch;
    let run_pixels = (LEAST_WORK / channels).next_multiple_of(SQUARE).max(SQUARE);
    share_out_chunks(&mut output[..view.len()], run_pixels * view.pixel_stride, |run, rows| {
        let pixel = run * run_pixels;
        // A run of pixels may reach into the next samples.
        let count = rows.len() / view.pixel_stride;
        let mut done = 0;
        while done < count {
            let (batch, first) = ((pixel + done) / sample, (pixel + done) % sample);
            let part = (count - done).min(sample - first);
            let from = &input[batch * sample * channels + first..(batch + 1) * sample * channels];
            let to = &mut rows[done * view.pixel_stride + view.channel_offset..];
            transpose(from, sample, to, view.pixel_stride, channels, part);
            done += part;
        }
    });
}

/// Copies a channels-last view into a channels-first tensor `[batch][channel][spatial...]`.
///
/// # Panics
/// If the view does not fit its slice or the output is too short.
pub fn to_channels_first(input: &[f32], view: &View, output: &mut [f32]) {
    view.check(input.len(), "input");
    let (pixels, channels) = (view.pixels(), view.channels);
    assert!(output.len() >= pixels * channels, "{} elements for {view:?}", output.len());
    if pixels * channels == 0 {
        return;
    }
    let sample = pixels / view.batch;
    // Planes of one sample at a time, so that a task may take any number of whole planes.
    let planes_per_task = (LEAST_WORK / sample).clamp(1, channels);
    for (batch, output) in output[..pixels * channels].chunks_mut(sample * channels).enumerate() {
        let input = &input[batch * sample * view.pixel_stride + view.channel_offset..];
        share_out_chunks(output, planes_per_task * sample, |index, planes| {
            let count = planes.len() / sample;
            transpose(&input[index * planes_per_task..], view.pixel_stride, planes, sample, sample, count);
        });
    }
}

/// Writes `to[column * to_stride + row] = from[row * from_stride + column]` for `rows` rows and `columns` columns.
fn transpose(
    from: &[f32],
    from_stride: usize,
    to: &mut [f32],
    to_stride: usize,
    rows: usize,
    columns: usize,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    // Whole squares go through a small buffer, so that both sides are touched in short runs.
    for first_column in (0..columns).step_by(SQUARE) {
        let width = SQUARE.min(columns - first_column);
        for first_row in (0..rows).step_by(SQUARE) {
            let height = SQUARE.min(rows - first_row);
            let mut square = [[0.0; SQUARE]; SQUARE];
            for (row, line) in square.iter_mut().enumerate().take(height) {
                let start = (first_row + row) * from_stride + first_column;
                line[..width].copy_from_slice(&from[start..start + width]);
            }
            for column in 0..width {
                let start = (first_column + column) * to_stride + first_row;
                for (row, value) in to[start..start + height].iter_mut().enumerate() {
                    *value = square[row][column];
                }
            }
        }
    }
}

/// Most axes of a strided copy.
pub const MOST_AXES: usize = 6;

/// A strided copy of up to six axes: transposition, slice, broadcast (an input stride of 0), reversal is not offered.
///
/// The element at position `p` is read at `input_offset + Σ p[i] · input_strides[i]` and written at
/// `output_offset + Σ p[i] · output_strides[i]`.
///
/// ```
/// use ouzel_kernels::StridedCopy;
/// // Transposes a 2×3 matrix.
/// let copy = StridedCopy::new(&[3, 2], &[1, 3], 0, &[2, 1], 0);
/// let mut output = [0.0; 6];
/// copy.run(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &mut output);
/// assert_eq!(output, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StridedCopy {
    /// Axes from outer to inner as the output has them: (size, input stride, output stride).
    axes: [(usize, usize, usize); MOST_AXES],
    input_offset: usize,
    output_offset: usize,
    /// Lengths that the slices need.
    input_len: usize,
    output_len: usize,
}

impl StridedCopy {
    /// Plans a copy of `size.len()` axes.
    ///
    /// # Panics
    /// If there are more than six axes, the lists differ in length, positions do not fit into a `usize`, or two positions would be
    /// written to one place.
    pub fn new(
        size: &[usize],
        input_strides: &[usize],
        input_offset: usize,
        output_strides: &[usize],
        output_offset: usize,
    ) -> StridedCopy {
        assert!(size.len() <= MOST_AXES, "{} axes are more than {MOST_AXES}", size.len());
        assert!(
            size.len() == input_strides.len() && size.len() == output_strides.len(),
            "as many strides as axes"
        );
        let mut listed: Vec<(usize, usize, usize)> = size
            .iter()
            .zip(input_strides)
            .zip(output_strides)
            .map(|((size, from), to)| (*size, *from, *to))
            .collect();
        let empty = size.contains(&0);
        listed.retain(|axis| axis.0 != 1);
        listed.sort_by_key(|axis| std::cmp::Reverse(axis.2));
        // Neighbouring axes that are one in both tensors become one.
        let mut merged: Vec<(usize, usize, usize)> = Vec::new();
        for axis in listed {
            match merged.last_mut() {
                Some(outer)
                    if axis.0.checked_mul(axis.1) == Some(outer.1)
                        && axis.0.checked_mul(axis.2) == Some(outer.2) =>
                {
                    *outer = (outer.0 * axis.0, axis.1, axis.2);
                }
                _ => merged.push(axis),
            }
        }
        let end = |offset: usize, stride: fn(&(usize, usize, usize)) -> usize| {
            merged
                .iter()
                .try_fold(offset, |end, axis| end.checked_add((axis.0 - 1).checked_mul(stride(axis))?))?
                .checked_add(1)
        };
        let mut copy = StridedCopy {
            axes: [(1, 0, 0); MOST_AXES],
            input_offset,
            output_offset,
            input_len: 0,
            output_len: 0,
        };
        if empty {
            copy.axes[0].0 = 0;
            return copy;
        }
        copy.input_len = end(input_offset, |axis| axis.1).expect("a strided copy reads beyond all memory");
        copy.output_len = end(output_offset, |axis| axis.2).expect("a strided copy writes beyond all memory");
        // With falling strides, positions are distinct if each axis steps over the whole of the inner ones.
        let mut reach = 0;
        for axis in merged.iter().rev() {
            assert!(axis.2 > reach, "a strided copy writes one place twice");
            reach += (axis.0 - 1) * axis.2;
        }
        let first = MOST_AXES - merged.len();
        copy.axes[first..].copy_from_slice(&merged);
        copy
    }

    /// Copies.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn run(&self, input: &[f32], output: &mut [f32]) {
        assert!(
            input.len() >= self.input_len,
            "a strided copy reads {} elements of {}",
            self.input_len,
            input.len()
        );
        assert!(
            output.len() >= self.output_len,
            "a strided copy writes {} elements of {}",
            self.output_len,
            output.len()
        );
        let axes = &self.axes;
        let total: usize = axes.iter().map(|axis| axis.0).product();
        if total == 0 {
            return;
        }
        let (inner, last) = (axes[MOST_AXES - 2], axes[MOST_AXES - 1]);
        let planes = total / (inner.0 * last.0);
        let shared = Shared::new(output);
        // One row of the output (the last axis), or a square of it where the input runs along the axis before.
        let plane = |mut index: usize, rows: (usize, usize)| {
            let (mut from, mut to) = (self.input_offset, self.output_offset);
            for axis in axes[..MOST_AXES - 2].iter().rev() {
                from += index % axis.0 * axis.1;
                to += index % axis.0 * axis.2;
                index /= axis.0;
            }
            let crossed = inner.1 == 1 && last.1 != 1;
            if crossed && last.2 == 1 && last.0 < SQUARE {
                // Such as the channels of a picture: one after the other.
                for first in (rows.0..rows.1).step_by(SQUARE * SQUARE) {
                    let count = (SQUARE * SQUARE).min(rows.1 - first);
                    // SAFETY: each axis steps over all places of the inner ones, so that what lies between the first and the last place
                    // of these rows belongs to no other task.
                    let to = unsafe { shared.part(to + first * inner.2, (count - 1) * inner.2 + last.0) };
                    for place in 0..last.0 {
                        let from = &input[from + first + place * last.1..][..count];
                        for (to, from) in to[place..].iter_mut().step_by(inner.2).zip(from) {
                            *to = *from;
                        }
                    }
                }
                return;
            }
            let columns = if crossed { SQUARE } else { last.0 };
            for first in (0..last.0).step_by(columns) {
                let count = columns.min(last.0 - first);
                for row in rows.0..rows.1 {
                    let from = &input[from + row * inner.1 + first * last.1..];
                    let start = to + row * inner.2 + first * last.2;
                    // SAFETY: the constructor has checked that no place is written twice, and this part holds only places of this
                    // row, except where the last axis is strided; then single elements are taken.
                    match (last.1, last.2) {
                        (1, 1) => unsafe { shared.part(start, count) }.copy_from_slice(&from[..count]),
                        (0, 1) => unsafe { shared.part(start, count) }.fill(from[0]),
                        (step, 1) => {
                            let to = unsafe { shared.part(start, count) };
                            for (to, from) in to.iter_mut().zip(from.iter().step_by(step)) {
                                *to = *from;
                            }
                        }
                        (from_step, to_step) => {
                            for n in 0..count {
                                let to = unsafe { shared.part(start + n * to_step, 1) };
                                to[0] = from[n * from_step];
                            }
                        }
                    }
                }
            }
        };
        let rows_per_task = (LEAST_WORK / last.0).clamp(1, inner.0);
        let parts = inner.0.div_ceil(rows_per_task);
        let parts_per_task = LEAST_WORK.div_ceil(inner.0 * last.0);
        let all = planes * parts;
        share_out(all.div_ceil(parts_per_task), |task| {
            for index in task * parts_per_task..all.min((task + 1) * parts_per_task) {
                let first = index % parts * rows_per_task;
                plane(index / parts, (first, inner.0.min(first + rows_per_task)));
            }
        });
    }
}
