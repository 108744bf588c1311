//! Pooling: the maximum with its position, the average, and the gradients of both, gathered pixel by pixel.

use crate::crew::share_out;
use crate::epilogue::{Epilogue, Finish, WORD};
use crate::level::{Kernel, Level};
use crate::setting::Pixels;
use crate::shared::Shared;
use crate::tile::BLOCK;
use crate::vector::Simd;
use crate::view::View;

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
    #[inline(always)]
    fn inside(&self, axis: usize, at: usize, size: usize) -> (usize, usize) {
        let start = at * self.stride[axis];
        let (padding, dilation) = (self.padding[axis], self.dilation[axis]);
        let first = padding.saturating_sub(start).div_ceil(dilation).min(self.kernel[axis]);
        let last = (size + padding).saturating_sub(start).div_ceil(dilation).min(self.kernel[axis]);
        (first, last.max(first))
    }

    /// What the average at an output position is divided by, along one axis.
    #[inline(always)]
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

    /// The elements of the window at an output position that lie within `size`.
    #[inline(always)]
    fn elements(&self, at: [usize; 3], size: [usize; 3]) -> Walk {
        Walk::new([
            self.inside(0, at[0], size[0]),
            self.inside(1, at[1], size[1]),
            self.inside(2, at[2], size[2]),
        ])
    }

    /// The input position of an element of the window at an output position, which must be inside.
    #[inline(always)]
    fn position(&self, at: [usize; 3], element: [usize; 3]) -> [usize; 3] {
        let mut position = [0; 3];
        for axis in 0..3 {
            position[axis] =
                at[axis] * self.stride[axis] + element[axis] * self.dilation[axis] - self.padding[axis];
        }
        position
    }

    /// The row-major index of an element.
    #[inline(always)]
    fn place(&self, element: [usize; 3]) -> usize {
        (element[0] * self.kernel[1] + element[1]) * self.kernel[2] + element[2]
    }

    /// The output positions whose windows reach over an input position.
    #[inline(always)]
    fn coverings(&self, at: [usize; 3], outputs: [usize; 3]) -> Walk {
        Walk::new([
            self.covering(0, at[0], outputs[0]),
            self.covering(1, at[1], outputs[1]),
            self.covering(2, at[2], outputs[2]),
        ])
    }

    /// Which element of the window at output position `output` an input position is; `output` must be one of `coverings`.
    #[inline(always)]
    fn element_at(&self, at: [usize; 3], output: [usize; 3]) -> Option<[usize; 3]> {
        Some([
            self.element(0, at[0], output[0])?,
            self.element(1, at[1], output[1])?,
            self.element(2, at[2], output[2])?,
        ])
    }

    /// The output positions, first and last exclusive, whose windows reach over input position `at`, elements or gaps.
    #[inline(always)]
    fn covering(&self, axis: usize, at: usize, outputs: usize) -> (usize, usize) {
        let place = at + self.padding[axis];
        let reach = (self.kernel[axis] - 1) * self.dilation[axis];
        let last = (place / self.stride[axis] + 1).min(outputs);
        let first = place.saturating_sub(reach).div_ceil(self.stride[axis]);
        (first.min(last), last)
    }

    /// Which element of the window at output position `output` input position `at` is; `output` must be one of `covering`.
    #[inline(always)]
    fn element(&self, axis: usize, at: usize, output: usize) -> Option<usize> {
        let distance = at + self.padding[axis] - output * self.stride[axis];
        match self.dilation[axis] {
            1 => Some(distance),
            dilation => distance.is_multiple_of(dilation).then(|| distance / dilation),
        }
    }
}

/// Elements visited by a task, below which it is not worth sharing out.
const LEAST_WORK: usize = 100_000;

/// One pixel that contributes to a result.
#[derive(Clone, Copy)]
struct Source {
    /// Index of the pixel, over all samples.
    pixel: usize,
    /// Which element of the window connects them.
    place: u16,
    /// What its contribution is divided by.
    divisor: f32,
}

/// Most sources that are listed at once.
const MOST_SOURCES: usize = 64;

/// A range of positions on each axis, walked in row-major order.
#[derive(Clone, Copy)]
struct Walk {
    first: [usize; 3],
    last: [usize; 3],
    now: [usize; 3],
}

impl Walk {
    #[inline(always)]
    fn new(ranges: [(usize, usize); 3]) -> Walk {
        let first = [ranges[0].0, ranges[1].0, ranges[2].0];
        let last = [ranges[0].1, ranges[1].1, ranges[2].1];
        let empty = first[0] >= last[0] || first[1] >= last[1] || first[2] >= last[2];
        Walk { first, last, now: if empty { last } else { first } }
    }

    /// The next position, or nothing at the end.
    #[inline(always)]
    fn next(&mut self) -> Option<[usize; 3]> {
        let now = self.now;
        if now[0] >= self.last[0] {
            return None;
        }
        self.now[2] += 1;
        if self.now[2] == self.last[2] {
            self.now[2] = self.first[2];
            self.now[1] += 1;
            if self.now[1] == self.last[1] {
                self.now[1] = self.first[1];
                self.now[0] += 1;
            }
        }
        Some(now)
    }
}

/// What is computed for each pixel from its sources.
trait Gather: Copy + Sync {
    /// The positions among which the sources of the pixel at position `at` are.
    fn walk(&self, at: [usize; 3]) -> Walk;

    /// The source at a position of the walk, if it is one.
    fn source(&self, batch: usize, at: [usize; 3], position: [usize; 3]) -> Option<Source>;

    /// Combines the sources for N vectors of channels, `count` from `channel` on, with the sums and places so far. `count` is less than
    /// what N vectors hold only where N is 1.
    fn vectors<S: Simd, const N: usize>(
        &self,
        simd: S,
        sources: &[Source],
        channel: usize,
        count: usize,
        sums: &mut [S::Floats; N],
        places: &mut [S::Floats; N],
    );

    /// What the sums begin with.
    fn start(&self) -> f32 {
        0.0
    }

    /// What the sums are divided by at last.
    fn divisor(&self, _at: [usize; 3]) -> f32 {
        1.0
    }

    /// Receives the places of the result.
    ///
    /// # Safety
    /// No other thread may be at work on these channels of this pixel.
    unsafe fn keep_places(&self, _pixel: usize, _channel: usize, _places: &[f32]) {}
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
    let blocks = view.channels.div_ceil(BLOCK);
    // Channels are shared out only where there are too few rows.
    let blocks_per_task = match rows_per_task {
        1 => enough(row.saturating_mul(BLOCK), rows * blocks).min(blocks.max(1)),
        _ => blocks.max(1),
    };
    let parts = blocks.div_ceil(blocks_per_task);
    let tasks = rows.div_ceil(rows_per_task) * parts;
    let task = |index: usize| {
        let (first_row, first_block) = (index / parts * rows_per_task, index % parts * blocks_per_task);
        level.run(Rows {
            gather,
            view,
            finish,
            rows: (first_row, rows.min(first_row + rows_per_task)),
            channels: (first_block * BLOCK, view.channels.min((first_block + blocks_per_task) * BLOCK)),
        });
    };
    share_out(tasks, task);
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
        let mut sources = [Source { pixel: 0, place: 0, divisor: 1.0 }; MOST_SOURCES];
        for row in rows.0..rows.1 {
            let (plane, y) = (row / size[1], row % size[1]);
            let (batch, z) = (plane / size[0], plane % size[0]);
            for x in 0..size[2] {
                let (pixel, at) = (row * size[2] + x, [z, y, x]);
                let begin = gather.walk(at);
                let mut walk = begin;
                let listed = list(&gather, batch, at, &mut walk, &mut sources);
                // Where there are more sources than fit into the list, it is made piece by piece for each block of channels.
                let complete = walk.now[0] >= walk.last[0];
                let divisor = gather.divisor(at);
                for channel in (channels.0..channels.1).step_by(BLOCK) {
                    let count = BLOCK.min(channels.1 - channel);
                    let (mut sums, mut places) = ([0.0; BLOCK], [0.0; BLOCK]);
                    if complete {
                        let listed = &sources[..listed];
                        block(simd, &gather, listed, channel, count, true, &mut sums, &mut places);
                    } else {
                        let mut walk = begin;
                        let mut first = true;
                        loop {
                            let listed = list(&gather, batch, at, &mut walk, &mut sources);
                            if listed == 0 && !first {
                                break;
                            }
                            let listed = &sources[..listed];
                            block(simd, &gather, listed, channel, count, first, &mut sums, &mut places);
                            first = false;
                        }
                    }
                    if divisor != 1.0 {
                        for lane in (0..BLOCK).step_by(S::LANES) {
                            let quotient = simd.divide(simd.load(&sums[lane..]), simd.splat(divisor));
                            simd.store(quotient, &mut sums[lane..]);
                        }
                    }
                    // SAFETY: a task has its rows and channels for itself, and its channels begin at a multiple of 32.
                    unsafe {
                        gather.keep_places(pixel, channel, &places[..count]);
                        finish.tile(simd, &[sums], &[pixel], channel, count);
                    }
                }
            }
            let pixels = Pixels::Row { first: row * size[2], step: 1, count: size[2] };
            // SAFETY: as before.
            unsafe { finish.go_on(pixels, channels.0, channels.1 - channels.0) };
        }
    }
}

/// Lists the next sources of a pixel.
#[inline(always)]
fn list<G: Gather>(
    gather: &G,
    batch: usize,
    at: [usize; 3],
    walk: &mut Walk,
    sources: &mut [Source; MOST_SOURCES],
) -> usize {
    let mut listed = 0;
    while listed < MOST_SOURCES {
        let Some(position) = walk.next() else { break };
        if let Some(source) = gather.source(batch, at, position) {
            sources[listed] = source;
            listed += 1;
        }
    }
    listed
}

/// Combines the listed sources for `count` channels; the sums of the first list begin anew.
#[inline(always)]
fn block<S: Simd, G: Gather>(
    simd: S,
    gather: &G,
    sources: &[Source],
    channel: usize,
    count: usize,
    first: bool,
    sums: &mut [f32; BLOCK],
    places: &mut [f32; BLOCK],
) {
    let mut done = 0;
    macro_rules! vectors {
        ($n:literal, $count:expr) => {{
            some::<S, G, $n>(simd, gather, sources, channel, done, $count, first, sums, places);
            done += $count;
        }};
    }
    // Many vectors at a time, so that each source is looked at once for all of them.
    while count - done >= 4 * S::LANES {
        vectors!(4, 4 * S::LANES);
    }
    while count - done >= 2 * S::LANES {
        vectors!(2, 2 * S::LANES);
    }
    while done < count {
        vectors!(1, S::LANES.min(count - done));
    }
}

/// Combines the listed sources for `count` channels, `done` channels into a block that begins with `channel`.
#[inline(always)]
fn some<S: Simd, G: Gather, const N: usize>(
    simd: S,
    gather: &G,
    sources: &[Source],
    channel: usize,
    done: usize,
    count: usize,
    first: bool,
    sums: &mut [f32; BLOCK],
    places: &mut [f32; BLOCK],
) {
    // The first source's place stands until a greater value is found, so that even minus infinity has one.
    let place = sources.first().map_or(NO_POSITION, |source| source.place);
    let mut now = ([simd.splat(gather.start()); N], [simd.splat(f32::from(place)); N]);
    if !first {
        for n in 0..N {
            let lane = done + n * S::LANES;
            (now.0[n], now.1[n]) = (simd.load(&sums[lane..]), simd.load(&places[lane..]));
        }
    }
    gather.vectors(simd, sources, channel + done, count, &mut now.0, &mut now.1);
    for n in 0..N {
        let lane = done + n * S::LANES;
        simd.store(now.0[n], &mut sums[lane..]);
        simd.store(now.1[n], &mut places[lane..]);
    }
}

/// Loads N vectors, or a part of one: `count` channels from `channel` on of a pixel.
#[inline(always)]
fn load<S: Simd, const N: usize>(
    simd: S,
    data: &[f32],
    view: &View,
    pixel: usize,
    channel: usize,
    count: usize,
) -> [S::Floats; N] {
    let start = pixel * view.pixel_stride + view.channel_offset + channel;
    let from = &data[start..start + count];
    let mut values = [simd.splat(0.0); N];
    match count == N * S::LANES {
        true => {
            for n in 0..N {
                values[n] = simd.load(&from[n * S::LANES..]);
            }
        }
        false => values[0] = simd.load_partial(from),
    }
    values
}

/// Index of a pixel, over all samples.
#[inline(always)]
fn pixel_index(view: &View, batch: usize, position: [usize; 3]) -> usize {
    ((batch * view.size[0] + position[0]) * view.size[1] + position[1]) * view.size[2] + position[2]
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
    let finish = Finish::new(level, epilogue, output, output_view);
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
    fn walk(&self, at: [usize; 3]) -> Walk {
        self.window.elements(at, self.view.size)
    }

    #[inline(always)]
    fn source(&self, batch: usize, at: [usize; 3], element: [usize; 3]) -> Option<Source> {
        let pixel = pixel_index(self.view, batch, self.window.position(at, element));
        Some(Source { pixel, place: self.window.place(element) as u16, divisor: 1.0 })
    }

    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(
        &self,
        simd: S,
        sources: &[Source],
        channel: usize,
        count: usize,
        sums: &mut [S::Floats; N],
        places: &mut [S::Floats; N],
    ) {
        for source in sources {
            let values: [S::Floats; N] = load(simd, self.input, self.view, source.pixel, channel, count);
            let place = simd.splat(f32::from(source.place));
            for n in 0..N {
                (sums[n], places[n]) = simd.greatest_with_place(values[n], place, sums[n], places[n]);
            }
        }
    }

    fn start(&self) -> f32 {
        f32::NEG_INFINITY
    }

    #[inline(always)]
    unsafe fn keep_places(&self, pixel: usize, channel: usize, places: &[f32]) {
        if let Some(positions) = &self.positions {
            // SAFETY: the caller promises that these channels of this pixel are ours alone.
            let positions = unsafe { positions.part(pixel * self.view.channels + channel, places.len()) };
            for (to, place) in positions.iter_mut().zip(places) {
                *to = *place as i32 as u16;
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
    let finish = Finish::new(level, epilogue, input_gradient, input_view);
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
    fn walk(&self, at: [usize; 3]) -> Walk {
        self.window.coverings(at, self.view.size)
    }

    #[inline(always)]
    fn source(&self, batch: usize, at: [usize; 3], output: [usize; 3]) -> Option<Source> {
        let place = self.window.place(self.window.element_at(at, output)?) as u16;
        Some(Source { pixel: pixel_index(self.view, batch, output), place, divisor: 1.0 })
    }

    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(
        &self,
        simd: S,
        sources: &[Source],
        channel: usize,
        count: usize,
        sums: &mut [S::Floats; N],
        _: &mut [S::Floats; N],
    ) {
        for source in sources {
            let values: [S::Floats; N] = load(simd, self.gradient, self.view, source.pixel, channel, count);
            let start = source.pixel * self.view.channels + channel;
            let found = &self.positions[start..start + count];
            match count == N * S::LANES {
                true => {
                    for n in 0..N {
                        let value = simd.where_place(&found[n * S::LANES..], source.place, values[n]);
                        sums[n] = simd.add(sums[n], value);
                    }
                }
                false => {
                    let mut filled = [NO_POSITION; WORD];
                    filled[..count].copy_from_slice(found);
                    sums[0] = simd.add(sums[0], simd.where_place(&filled, source.place, values[0]));
                }
            }
        }
    }
}

/// The average over each window.
///
/// Large windows are summed 64 elements at a time, then those sums. A global average has a window as large as the input.
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
    let finish = Finish::new(level, epilogue, output, output_view);
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
    let mut product = 1;
    for axis in 0..3 {
        product *= window.count(count, axis, at[axis], size[axis]);
    }
    product.max(1) as f32
}

impl Gather for AveragePool<'_> {
    #[inline(always)]
    fn walk(&self, at: [usize; 3]) -> Walk {
        self.window.elements(at, self.view.size)
    }

    #[inline(always)]
    fn source(&self, batch: usize, at: [usize; 3], element: [usize; 3]) -> Option<Source> {
        let pixel = pixel_index(self.view, batch, self.window.position(at, element));
        Some(Source { pixel, place: 0, divisor: 1.0 })
    }

    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(
        &self,
        simd: S,
        sources: &[Source],
        channel: usize,
        count: usize,
        sums: &mut [S::Floats; N],
        _: &mut [S::Floats; N],
    ) {
        let mut listed = [simd.splat(0.0); N];
        for source in sources {
            let values: [S::Floats; N] = load(simd, self.input, self.view, source.pixel, channel, count);
            for n in 0..N {
                listed[n] = simd.add(listed[n], values[n]);
            }
        }
        for n in 0..N {
            sums[n] = simd.add(sums[n], listed[n]);
        }
    }

    #[inline(always)]
    fn divisor(&self, at: [usize; 3]) -> f32 {
        divisor(self.window, self.count, at, self.view.size)
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
    let finish = Finish::new(level, epilogue, input_gradient, input_view);
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
    fn walk(&self, at: [usize; 3]) -> Walk {
        self.window.coverings(at, self.view.size)
    }

    #[inline(always)]
    fn source(&self, batch: usize, at: [usize; 3], output: [usize; 3]) -> Option<Source> {
        self.window.element_at(at, output)?;
        let divisor = divisor(self.window, self.count, output, self.size);
        Some(Source { pixel: pixel_index(self.view, batch, output), place: 0, divisor })
    }

    #[inline(always)]
    fn vectors<S: Simd, const N: usize>(
        &self,
        simd: S,
        sources: &[Source],
        channel: usize,
        count: usize,
        sums: &mut [S::Floats; N],
        _: &mut [S::Floats; N],
    ) {
        for source in sources {
            let values: [S::Floats; N] = load(simd, self.gradient, self.view, source.pixel, channel, count);
            let divisor = simd.splat(source.divisor);
            for n in 0..N {
                sums[n] = simd.add(sums[n], simd.divide(values[n], divisor));
            }
        }
    }
}
