//! Reductions over the channels of each pixel or over the pixels of each sample, and the softmax over channels.

use crate::crew::{share_out, share_out_chunks};
use crate::function;
use crate::level::{Kernel, Level};
use crate::shared::Shared;
use crate::vector::Simd;
use crate::view::View;

/// What a reduction computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// The sum.
    Sum,
    /// The sum divided by the number of elements.
    Mean,
    /// The greatest; not-a-number if there is one.
    Maximum,
    /// The least; not-a-number if there is one.
    Minimum,
}

/// Elements read by a task, below which it is not worth sharing out.
const LEAST_WORK: usize = 64 * 1024;

/// Lanes in which a row is reduced, whatever the SIMD level; they are combined pairwise at last.
const LANES: usize = 16;

/// Channels that are reduced at once over pixels.
const CHUNK: usize = 64;

/// Pixels whose sum is formed by itself, so that long sums lose less.
const RUN: usize = 64;

impl Reduction {
    #[inline(always)]
    fn start(self) -> f32 {
        match self {
            Reduction::Sum | Reduction::Mean => 0.0,
            Reduction::Maximum => f32::NEG_INFINITY,
            Reduction::Minimum => f32::INFINITY,
        }
    }

    #[inline(always)]
    fn combine(self, a: f32, b: f32) -> f32 {
        match self {
            Reduction::Sum | Reduction::Mean => a + b,
            Reduction::Maximum => {
                if b > a || b.is_nan() {
                    b
                } else {
                    a
                }
            }
            Reduction::Minimum => {
                if b < a || b.is_nan() {
                    b
                } else {
                    a
                }
            }
        }
    }

    #[inline(always)]
    fn end(self, value: f32, count: usize) -> f32 {
        match self {
            Reduction::Mean => value / count as f32,
            _ => value,
        }
    }
}

/// Reduces a row: each lane in order, then the lanes pairwise.
#[inline(always)]
fn reduce_row(
    row: &[f32],
    start: f32,
    combine: impl Fn(f32, f32) -> f32,
    map: impl Fn(usize, f32) -> f32,
) -> f32 {
    let mut lanes = [start; LANES];
    for (index, part) in row.chunks(LANES).enumerate() {
        for (lane, value) in part.iter().enumerate() {
            lanes[lane] = combine(lanes[lane], map(index * LANES + lane, *value));
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = combine(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Reduces the channels of each pixel: `[pixel][channel]` to `[pixel]`.
///
/// # Panics
/// If the view does not fit its slice or the output is too short.
///
/// ```
/// use ouzel_kernels::{reduce_channels, Level, Reduction, View};
/// let mut output = [0.0; 2];
/// reduce_channels(Level::portable(), Reduction::Sum, &[1.0, 2.0, 3.0, 4.0], &View::packed(1, [1, 1, 2], 2), &mut output);
/// assert_eq!(output, [3.0, 7.0]);
/// ```
pub fn reduce_channels(level: Level, reduction: Reduction, input: &[f32], view: &View, output: &mut [f32]) {
    view.check(input.len(), "input");
    let pixels = view.pixels();
    assert!(output.len() >= pixels, "output has {} elements, needs {pixels}", output.len());
    let pixels_per_task = (LEAST_WORK / view.channels.max(1)).max(1);
    share_out_chunks(&mut output[..pixels], pixels_per_task, |task, output| {
        level.run(ReduceChannels { reduction, input, view, first: task * pixels_per_task, output });
    });
}

struct ReduceChannels<'a> {
    reduction: Reduction,
    input: &'a [f32],
    view: &'a View,
    first: usize,
    output: &'a mut [f32],
}

impl Kernel for ReduceChannels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let ReduceChannels { reduction, input, view, first, output } = self;
        for (index, output) in output.iter_mut().enumerate() {
            let start = (first + index) * view.pixel_stride + view.channel_offset;
            let row = &input[start..start + view.channels];
            let value = match reduction {
                Reduction::Maximum => {
                    reduce_row(row, f32::NEG_INFINITY, |a, b| Reduction::Maximum.combine(a, b), |_, x| x)
                }
                Reduction::Minimum => {
                    reduce_row(row, f32::INFINITY, |a, b| Reduction::Minimum.combine(a, b), |_, x| x)
                }
                Reduction::Sum | Reduction::Mean => reduce_row(row, 0.0, |a, b| a + b, |_, x| x),
            };
            *output = reduction.end(value, view.channels);
        }
    }
}

/// Reduces the pixels of each sample: `[batch][pixel][channel]` to `[batch][channel]`.
///
/// Any axis of a tensor can be reduced so, if the axes before it are seen as the batch and those behind it as the channels.
///
/// # Panics
/// If the view does not fit its slice or the output is too short.
pub fn reduce_pixels(level: Level, reduction: Reduction, input: &[f32], view: &View, output: &mut [f32]) {
    view.check(input.len(), "input");
    let needed = view.batch.checked_mul(view.channels).expect("a reduction has too many results");
    assert!(output.len() >= needed, "output has {} elements, needs {needed}", output.len());
    if needed == 0 {
        return;
    }
    let pixels = view.pixels() / view.batch;
    let chunks = view.channels.div_ceil(CHUNK);
    let total = view.batch * chunks;
    let chunks_per_task = LEAST_WORK.div_ceil((pixels * CHUNK).max(1)).min(total);
    let output = Shared::new(output);
    share_out(total.div_ceil(chunks_per_task), |task| {
        for index in task * chunks_per_task..total.min((task + 1) * chunks_per_task) {
            let (batch, channel) = (index / chunks, index % chunks * CHUNK);
            let count = CHUNK.min(view.channels - channel);
            // SAFETY: each sample and chunk of channels belongs to one task.
            let output = unsafe { output.part(batch * view.channels + channel, count) };
            level.run(ReducePixels { reduction, input, view, pixels, batch, channel, output });
        }
    });
}

struct ReducePixels<'a> {
    reduction: Reduction,
    input: &'a [f32],
    view: &'a View,
    pixels: usize,
    batch: usize,
    channel: usize,
    output: &'a mut [f32],
}

impl Kernel for ReducePixels<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let ReducePixels { reduction, input, view, pixels, batch, channel, output } = self;
        let count = output.len();
        let mut totals = [reduction.start(); CHUNK];
        for first in (0..pixels).step_by(RUN) {
            let mut sums = [reduction.start(); CHUNK];
            for pixel in first..pixels.min(first + RUN) {
                let start = (batch * pixels + pixel) * view.pixel_stride + view.channel_offset + channel;
                let row = &input[start..start + count];
                macro_rules! each {
                    ($combine:expr) => {
                        for (sum, value) in sums.iter_mut().zip(row) {
                            *sum = $combine(*sum, *value);
                        }
                    };
                }
                match reduction {
                    Reduction::Maximum => each!(|a, b| Reduction::Maximum.combine(a, b)),
                    Reduction::Minimum => each!(|a, b| Reduction::Minimum.combine(a, b)),
                    Reduction::Sum | Reduction::Mean => each!(|a: f32, b: f32| a + b),
                }
            }
            for (total, sum) in totals.iter_mut().zip(&sums) {
                *total = reduction.combine(*total, *sum);
            }
        }
        for (output, total) in output.iter_mut().zip(&totals) {
            *output = reduction.end(*total, pixels);
        }
    }
}

/// What a softmax gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SoftmaxKind {
    /// The probabilities.
    Probability,
    /// Their logarithms.
    Logarithm,
}

/// The softmax over the channels of each pixel.
///
/// # Panics
/// If a view does not fit its slice or the tensors differ in size.
///
/// ```
/// use ouzel_kernels::{softmax, Level, SoftmaxKind, View};
/// let view = View::packed(1, [1, 1, 1], 2);
/// let mut output = [0.0; 2];
/// softmax(Level::portable(), SoftmaxKind::Probability, &[3.0, 3.0], &view, &mut output, &view);
/// assert_eq!(output, [0.5, 0.5]);
/// ```
pub fn softmax(
    level: Level,
    kind: SoftmaxKind,
    input: &[f32],
    input_view: &View,
    output: &mut [f32],
    output_view: &View,
) {
    let rows = Rows { kind, first: input, first_view: input_view, second: None };
    run_rows(level, rows, output, output_view);
}

/// The gradient of [`softmax`] with respect to its input, from its result and the gradient of that.
///
/// For probabilities y it is `y · (g - Σ y·g)`, for logarithms `g - eʸ · Σ g`.
///
/// # Panics
/// If a view does not fit its slice or the tensors differ in size.
pub fn softmax_gradient(
    level: Level,
    kind: SoftmaxKind,
    result: (&[f32], &View),
    gradient: (&[f32], &View),
    input_gradient: &mut [f32],
    input_view: &View,
) {
    let rows = Rows { kind, first: result.0, first_view: result.1, second: Some(gradient) };
    run_rows(level, rows, input_gradient, input_view);
}

#[derive(Clone, Copy)]
struct Rows<'a> {
    kind: SoftmaxKind,
    first: &'a [f32],
    first_view: &'a View,
    second: Option<(&'a [f32], &'a View)>,
}

fn run_rows(level: Level, rows: Rows, output: &mut [f32], view: &View) {
    view.check(output.len(), "output");
    rows.first_view.check(rows.first.len(), "input");
    let same = |other: &View| other.pixels() == view.pixels() && other.channels == view.channels;
    assert!(same(rows.first_view), "input {:?} differs from output {view:?}", rows.first_view);
    if let Some((data, second)) = rows.second {
        second.check(data.len(), "gradient");
        assert!(same(second), "gradient {second:?} differs from output {view:?}");
    }
    if view.channels == 0 {
        return;
    }
    let pixels = view.pixels();
    let pixels_per_task = (LEAST_WORK / 4 / view.channels).max(1);
    let output = Shared::new(output);
    share_out(pixels.div_ceil(pixels_per_task), |task| {
        let (first, last) = (task * pixels_per_task, pixels.min((task + 1) * pixels_per_task));
        level.run(RowsTask { rows, output, view, first, last });
    });
}

struct RowsTask<'a> {
    rows: Rows<'a>,
    output: Shared<'a, f32>,
    view: &'a View,
    first: usize,
    last: usize,
}

impl Kernel for RowsTask<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let RowsTask { rows, output, view, first, last } = self;
        let row_of = |data: &'_ [f32], view: &View, pixel: usize| -> std::ops::Range<usize> {
            let start = pixel * view.pixel_stride + view.channel_offset;
            debug_assert!(start + view.channels <= data.len());
            start..start + view.channels
        };
        for pixel in first..last {
            // SAFETY: each pixel belongs to one task.
            let output =
                unsafe { output.part(pixel * view.pixel_stride + view.channel_offset, view.channels) };
            let input = &rows.first[row_of(rows.first, rows.first_view, pixel)];
            match (rows.second, rows.kind) {
                (None, kind) => {
                    let most = reduce_row(
                        input,
                        f32::NEG_INFINITY,
                        |a, b| Reduction::Maximum.combine(a, b),
                        |_, x| x,
                    );
                    for (output, input) in output.iter_mut().zip(input) {
                        *output = input - most;
                    }
                    function::each(simd, output, function::exp);
                    let sum = reduce_row(output, 0.0, |a, b| a + b, |_, x| x);
                    match kind {
                        SoftmaxKind::Probability => output.iter_mut().for_each(|output| *output /= sum),
                        SoftmaxKind::Logarithm => {
                            let mut log = [sum];
                            function::each(simd, &mut log, function::ln);
                            for (output, input) in output.iter_mut().zip(input) {
                                *output = input - most - log[0];
                            }
                        }
                    }
                }
                (Some((gradient, gradient_view)), SoftmaxKind::Probability) => {
                    let gradient = &gradient[row_of(gradient, gradient_view, pixel)];
                    let sum = reduce_row(input, 0.0, |a, b| a + b, |index, y| y * gradient[index]);
                    for (output, (y, g)) in output.iter_mut().zip(input.iter().zip(gradient)) {
                        *output = y * (g - sum);
                    }
                }
                (Some((gradient, gradient_view)), SoftmaxKind::Logarithm) => {
                    let gradient = &gradient[row_of(gradient, gradient_view, pixel)];
                    let sum = reduce_row(gradient, 0.0, |a, b| a + b, |_, g| g);
                    output.copy_from_slice(input);
                    function::each(simd, output, function::exp);
                    for (output, g) in output.iter_mut().zip(gradient) {
                        *output = g - *output * sum;
                    }
                }
            }
        }
    }
}
