//! Pooling: the maximum with its position, the average, and the gradients of both, gathered pixel by pixel.

use crate::epilogue::{Epilogue, Finish};
use crate::level::{Kernel, Level};
use crate::shared::Shared;
use crate::vector::Simd;
use crate::view::View;
use rayon::prelude::*;

/// The window of a pooling.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Size of the window: depth, height, width.
    pub kernel: [usize; 3],
    /// Step of the window.
    pub stride: [usize; 3],
    /// Distance of neighbouring elements of the window.
    pub dilation: [usize; 3],
    /// Padding at the beginning of the axes.
    pub padding: [usize; 3],
    /// Padding at the end of the axes; only `AverageCount::WithPadding` looks at it, everything else follows from the sizes.
    pub padding_end: [usize; 3],
}

/// What the sum over a window is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AverageCount {
    /// The number of elements of the window that are inside of the input (`count_include_pad = 0`).
    Inside,
    /// The number of those that are inside of the input or its padding (`count_include_pad = 1`).
    WithPadding,
}

/// The recorded position of a maximum whose window lies wholly in the padding.
pub const NO_POSITION: u16 = u16::MAX;

impl Window {
    /// A window that moves by its own size, without padding.
    pub fn new(kernel: [usize; 3]) -> Window {
        Window { kernel, stride: kernel, dilation: [1; 3], padding: [0; 3], padding_end: [0; 3] }
    }

    fn check(&self) {
        let limit = i32::MAX as usize / 2;
        for axis in 0..3 {
            let reach = self.kernel[axis].checked_mul(self.dilation[axis]);
            assert!(self.kernel[axis] > 0 && self.dilation[axis] > 0, "a window of {self:?} is empty");
            assert!(reach.is_some_and(|reach| reach <= limit), "a window of {self:?} is too long");
            assert!(
                self.stride[axis] > 0 && self.stride[axis] <= limit,
                "a stride of {self:?} is not usable"
            );
            assert!(
                self.padding[axis] <= limit && self.padding_end[axis] <= limit,
                "a padding of {self:?} is too long"
            );
        }
    }

    /// The elements of the window at output position `at` that lie within `size`: first and last index, exclusive.
    fn inside(&self, axis: usize, at: usize, size: usize) -> (usize, usize) {
        let start = at * self.stride[axis];
        let (padding, dilation) = (self.padding[axis], self.dilation[axis]);
        let first = padding.saturating_sub(start).div_ceil(dilation).min(self.kernel[axis]);
        let last = (size + padding).saturating_sub(start).div_ceil(dilation).min(self.kernel[axis]);
        (first, last.max(first))
    }

    /// What the average at an output position is divided by, along one axis.
    fn count(&self, count: AverageCount, axis: usize, at: usize, size: usize) -> usize {
        match count {
            AverageCount::Inside => {
                let (first, last) = self.inside(axis, at, size);
                last - first
            }
            AverageCount::WithPadding => {
                let whole = size + self.padding[axis] + self.padding_end[axis];
                whole
                    .saturating_sub(at * self.stride[axis])
                    .div_ceil(self.dilation[axis])
                    .min(self.kernel[axis])
            }
        }
    }

    /// The output positions, first and last exclusive, whose windows reach over input position `at`, elements or gaps.
    fn covering(&self, axis: usize, at: usize, outputs: usize) -> (usize, usize) {
        let place = at + self.padding[axis];
        let reach = (self.kernel[axis] - 1) * self.dilation[axis];
        let last = (place / self.stride[axis] + 1).min(outputs);
        let first = place.saturating_sub(reach).div_ceil(self.stride[axis]);
        (first.min(last), last)
    }

    /// Which element of the window at output position `output` input position `at` is; `output` must be one of `covering`.
    fn element(&self, axis: usize, at: usize, output: usize) -> Option<usize> {
        let distance = at + self.padding[axis] - output * self.stride[axis];
        match self.dilation[axis] {
            1 => Some(distance),
            dilation => distance.is_multiple_of(dilation).then(|| distance / dilation),
        }
    }
}

/// Channels that are worked on at once.
const CHUNK: usize = 64;

/// Elements visited by a task, below which it is not worth sharing out.
const LEAST_WORK: usize = 100_000;

/// What is computed for some channels of one pixel.
trait Gather: Copy + Sync {
    /// Computes at most `CHUNK` channels from `channel` on of the pixel at position `at` of sample `batch`.
    fn gather(&self, batch: usize, at: [usize; 3], pixel: usize, channel: usize, sums: &mut [f32]);
}

/// Gathers every pixel of `view` and finishes it.
///
/// `visited` is about how many elements are read for each one written.
fn run<G: Gather>(level: Level, gather: G, visited: usize, view: &View, finish: Finish) {
    let rows = view.batch * view.size[0] * view.size[1];
    let row = view.size[2].saturating_mul(visited).max(1);
    let enough = |work: usize, parts: usize| {
        LEAST_WORK.div_ceil(work.max(1)).max(parts / (4 * rayon::current_num_threads())).max(1)
    };
    let rows_per_task = enough(row.saturating_mul(view.channels), rows).min(rows.max(1));
    let chunks = view.channels.div_ceil(CHUNK);
    // Channels are shared out only where there are too few rows.
    let chunks_per_task = match rows_per_task {
        1 => enough(row * CHUNK, rows * chunks).min(chunks.max(1)),
        _ => chunks.max(1),
    };
    let parts = chunks.div_ceil(chunks_per_task);
    let tasks = rows.div_ceil(rows_per_task) * parts;
    let task = |index: usize| {
        let (first_row, first_chunk) = (index / parts * rows_per_task, index % parts * chunks_per_task);
        level.run(Rows {
            gather,
            view,
            finish,
            rows: (first_row, rows.min(first_row + rows_per_task)),
            channels: (first_chunk * CHUNK, view.channels.min((first_chunk + chunks_per_task) * CHUNK)),
        });
    };
    match tasks {
        0 | 1 => (0..tasks).for_each(task),
        _ => (0..tasks).into_par_iter().with_max_len(1).for_each(task),
    }
}

/// Some rows of pixels, some channels.
struct Rows<'a, G> {
    gather: G,
    view: &'a View,
    finish: Finish<'a>,
    rows: (usize, usize),
    channels: (usize, usize),
}

impl<G: Gather> Kernel for Rows<'_, G> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Rows { gather, view, finish, rows, channels } = self;
        let size = view.size;
        let mut sums = [0.0; CHUNK];
        for row in rows.0..rows.1 {
            let (plane, y) = (row / size[1], row % size[1]);
            let (batch, z) = (plane / size[0], plane % size[0]);
            for x in 0..size[2] {
                let pixel = row * size[2] + x;
                for channel in (channels.0..channels.1).step_by(CHUNK) {
                    let sums = &mut sums[..CHUNK.min(channels.1 - channel)];
                    gather.gather(batch, [z, y, x], pixel, channel, sums);
                    // SAFETY: a task has its rows and channels for itself, and its channels begin at a multiple of 64.
                    unsafe { finish.row(simd, sums, pixel, channel) };
                }
            }
        }
    }
}

/// Calls `each` in a way that lets the compiler know the usual length.
macro_rules! with_known_length {
    ($length:expr, $lane:ident, $body:block) => {
        if $length == CHUNK {
            for $lane in 0..CHUNK $body
        } else {
            for $lane in 0..$length $body
        }
    };
}

fn check(window: &Window, inner: (&View, usize), outer: (&View, usize)) {
    window.check();
    inner.0.check(inner.1, "input");
    outer.0.check(outer.1, "output");
    assert_eq!(inner.0.channels, outer.0.channels, "channels of input and output of a pooling");
    assert_eq!(inner.0.batch, outer.0.batch, "batches of input and output of a pooling");
}

/// The maximum over each window, and where it is.
///
/// `positions`, if asked for, receives for each output element (packed: pixel times channels plus channel) the row-major index of the
/// maximum within its window, padding counted: the first one on ties, the last not-a-number if there is one (which is then the
/// maximum, as in PyTorch). Windows that lie wholly in the padding give minus infinity and [`NO_POSITION`].
///
/// # Panics
/// If the views do not fit the slices or each other, or the window has 65535 elements or more.
///
/// ```
/// use ouzel_kernels::{max_pool, Epilogue, Level, View, Window};
/// let window = Window::new([1, 1, 2]);
/// let (from, to) = (View::packed(1, [1, 1, 4], 1), View::packed(1, [1, 1, 2], 1));
/// let (mut output, mut positions) = ([0.0; 2], [0; 2]);
/// max_pool(Level::portable(), &window, &[1.0, 2.0, 4.0, 3.0], &from, &mut output, &to, Some(&mut positions), Epilogue::default());
/// assert_eq!((output, positions), ([2.0, 4.0], [1, 0]));
/// ```
pub fn max_pool(
    level: Level,
    window: &Window,
    input: &[f32],
    input_view: &View,
    output: &mut [f32],
    output_view: &View,
    positions: Option<&mut [u16]>,
    epilogue: Epilogue,
) {
    check(window, (input_view, input.len()), (output_view, output.len()));
    let elements = window.kernel.iter().product::<usize>();
    assert!(
        elements < usize::from(NO_POSITION),
        "a window of {elements} elements is too large to record positions"
    );
    if let Some(positions) = &positions {
        let needed = output_view.pixels() * output_view.channels;
        assert!(positions.len() >= needed, "{} positions for {needed} elements", positions.len());
    }
    let finish = Finish::new(epilogue, output, output_view);
    let positions = positions.map(Shared::new);
    run(level, MaxPool { window, input, view: input_view, positions }, elements, output_view, finish);
}

#[derive(Clone, Copy)]
struct MaxPool<'a> {
    window: &'a Window,
    input: &'a [f32],
    view: &'a View,
    positions: Option<Shared<'a, u16>>,
}

impl Gather for MaxPool<'_> {
    #[inline(always)]
    fn gather(&self, batch: usize, at: [usize; 3], pixel: usize, channel: usize, sums: &mut [f32]) {
        let MaxPool { window, input, view, positions } = self;
        let length = sums.len();
        let mut position = [u32::from(NO_POSITION); CHUNK];
        sums.fill(f32::NEG_INFINITY);
        let [depth, height, width] = [0, 1, 2].map(|axis| window.inside(axis, at[axis], view.size[axis]));
        let from = |axis: usize, tap: usize| {
            at[axis] * window.stride[axis] + tap * window.dilation[axis] - window.padding[axis]
        };
        for z in depth.0..depth.1 {
            for y in height.0..height.1 {
                for x in width.0..width.1 {
                    let start = view.index(batch, [from(0, z), from(1, y), from(2, x)], channel);
                    let values = &input[start..start + length];
                    let tap = ((z * window.kernel[1] + y) * window.kernel[2] + x) as u32;
                    let none = u32::from(NO_POSITION);
                    with_known_length!(length, lane, {
                        let value = values[lane];
                        let greater = (value > sums[lane]) | value.is_nan() | (position[lane] == none);
                        sums[lane] = if greater { value } else { sums[lane] };
                        position[lane] = if greater { tap } else { position[lane] };
                    });
                }
            }
        }
        if let Some(positions) = positions {
            // SAFETY: these channels of this pixel are gathered by one task only.
            let positions = unsafe { positions.part(pixel * view.channels + channel, length) };
            for (to, position) in positions.iter_mut().zip(&position) {
                *to = *position as u16;
            }
        }
    }
}

/// The gradient of [`max_pool`] with respect to its input: each output gradient goes to the recorded position.
///
/// # Panics
/// If the views do not fit the slices or each other.
pub fn max_pool_gradient(
    level: Level,
    window: &Window,
    gradient: &[f32],
    gradient_view: &View,
    positions: &[u16],
    input_gradient: &mut [f32],
    input_view: &View,
    epilogue: Epilogue,
) {
    check(window, (input_view, input_gradient.len()), (gradient_view, gradient.len()));
    let elements = window.kernel.iter().product::<usize>();
    assert!(
        elements < usize::from(NO_POSITION),
        "a window of {elements} elements is too large to record positions"
    );
    let needed = gradient_view.pixels() * gradient_view.channels;
    assert!(positions.len() >= needed, "{} positions for {needed} elements", positions.len());
    let finish = Finish::new(epilogue, input_gradient, input_view);
    let gather = MaxPoolGradient { window, gradient, view: gradient_view, positions };
    run(level, gather, 2, input_view, finish);
}

#[derive(Clone, Copy)]
struct MaxPoolGradient<'a> {
    window: &'a Window,
    gradient: &'a [f32],
    view: &'a View,
    positions: &'a [u16],
}

impl Gather for MaxPoolGradient<'_> {
    #[inline(always)]
    fn gather(&self, batch: usize, at: [usize; 3], _: usize, channel: usize, sums: &mut [f32]) {
        let MaxPoolGradient { window, gradient, view, positions } = self;
        let length = sums.len();
        sums.fill(0.0);
        for_each_covering(window, view.size, at, |output, tap| {
            let start = view.index(batch, output, channel);
            let values = &gradient[start..start + length];
            let pixel = start / view.pixel_stride;
            let positions = &positions[pixel * view.channels + channel..][..length];
            let tap = tap as u16;
            with_known_length!(length, lane, {
                sums[lane] += if positions[lane] == tap { values[lane] } else { 0.0 };
            });
        });
    }
}

/// Calls `each(output position, element of the window)` for all windows that have an input position as an element, by rising
/// output position.
#[inline(always)]
fn for_each_covering(
    window: &Window,
    outputs: [usize; 3],
    at: [usize; 3],
    mut each: impl FnMut([usize; 3], usize),
) {
    let kernel = window.kernel;
    let [depth, height, width] = [0, 1, 2].map(|axis| window.covering(axis, at[axis], outputs[axis]));
    for to_z in depth.0..depth.1 {
        let Some(z) = window.element(0, at[0], to_z) else { continue };
        for to_y in height.0..height.1 {
            let Some(y) = window.element(1, at[1], to_y) else { continue };
            for to_x in width.0..width.1 {
                let Some(x) = window.element(2, at[2], to_x) else { continue };
                each([to_z, to_y, to_x], (z * kernel[1] + y) * kernel[2] + x);
            }
        }
    }
}

/// The average over each window.
///
/// Rows of a window are summed first, then the rows. A global average has a window as large as the input.
///
/// # Panics
/// If the views do not fit the slices or each other.
///
/// ```
/// use ouzel_kernels::{average_pool, AverageCount, Epilogue, Level, View, Window};
/// let window = Window::new([1, 1, 4]);
/// let (from, to) = (View::packed(1, [1, 1, 4], 1), View::packed(1, [1, 1, 1], 1));
/// let mut output = [0.0];
/// average_pool(Level::portable(), &window, AverageCount::Inside, &[1.0, 2.0, 4.0, 3.0], &from, &mut output, &to, Epilogue::default());
/// assert_eq!(output, [2.5]);
/// ```
pub fn average_pool(
    level: Level,
    window: &Window,
    count: AverageCount,
    input: &[f32],
    input_view: &View,
    output: &mut [f32],
    output_view: &View,
    epilogue: Epilogue,
) {
    check(window, (input_view, input.len()), (output_view, output.len()));
    let finish = Finish::new(epilogue, output, output_view);
    let elements =
        window.kernel.iter().zip(&input_view.size).map(|(kernel, size)| kernel.min(size)).product();
    run(level, AveragePool { window, count, input, view: input_view }, elements, output_view, finish);
}

#[derive(Clone, Copy)]
struct AveragePool<'a> {
    window: &'a Window,
    count: AverageCount,
    input: &'a [f32],
    view: &'a View,
}

/// What the average of one window is divided by; at least one.
#[inline(always)]
fn divisor(window: &Window, count: AverageCount, at: [usize; 3], size: [usize; 3]) -> f32 {
    let counts = [0, 1, 2].map(|axis| window.count(count, axis, at[axis], size[axis]));
    counts.iter().product::<usize>().max(1) as f32
}

impl Gather for AveragePool<'_> {
    #[inline(always)]
    fn gather(&self, batch: usize, at: [usize; 3], _: usize, channel: usize, sums: &mut [f32]) {
        let AveragePool { window, count, input, view } = self;
        let length = sums.len();
        sums.fill(0.0);
        let [depth, height, width] = [0, 1, 2].map(|axis| window.inside(axis, at[axis], view.size[axis]));
        let from = |axis: usize, tap: usize| {
            at[axis] * window.stride[axis] + tap * window.dilation[axis] - window.padding[axis]
        };
        for z in depth.0..depth.1 {
            for y in height.0..height.1 {
                let mut row = [0.0; CHUNK];
                for x in width.0..width.1 {
                    let start = view.index(batch, [from(0, z), from(1, y), from(2, x)], channel);
                    let values = &input[start..start + length];
                    with_known_length!(length, lane, {
                        row[lane] += values[lane];
                    });
                }
                with_known_length!(length, lane, {
                    sums[lane] += row[lane];
                });
            }
        }
        let divisor = divisor(window, *count, at, view.size);
        for sum in sums {
            *sum /= divisor;
        }
    }
}

/// The gradient of [`average_pool`] with respect to its input.
///
/// # Panics
/// If the views do not fit the slices or each other.
pub fn average_pool_gradient(
    level: Level,
    window: &Window,
    count: AverageCount,
    gradient: &[f32],
    gradient_view: &View,
    input_gradient: &mut [f32],
    input_view: &View,
    epilogue: Epilogue,
) {
    check(window, (input_view, input_gradient.len()), (gradient_view, gradient.len()));
    let finish = Finish::new(epilogue, input_gradient, input_view);
    let gather = AveragePoolGradient { window, count, gradient, view: gradient_view, size: input_view.size };
    run(level, gather, 2, input_view, finish);
}

#[derive(Clone, Copy)]
struct AveragePoolGradient<'a> {
    window: &'a Window,
    count: AverageCount,
    gradient: &'a [f32],
    view: &'a View,
    /// Size of the input of the pooling.
    size: [usize; 3],
}

impl Gather for AveragePoolGradient<'_> {
    #[inline(always)]
    fn gather(&self, batch: usize, at: [usize; 3], _: usize, channel: usize, sums: &mut [f32]) {
        let AveragePoolGradient { window, count, gradient, view, size } = self;
        let length = sums.len();
        sums.fill(0.0);
        for_each_covering(window, view.size, at, |output, _| {
            let start = view.index(batch, output, channel);
            let values = &gradient[start..start + length];
            let divisor = divisor(window, *count, output, *size);
            with_known_length!(length, lane, {
                sums[lane] += values[lane] / divisor;
            });
        });
    }
}
