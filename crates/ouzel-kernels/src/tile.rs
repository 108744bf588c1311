//! The micro-kernel of all matrix-like work: rows of inputs at equal distances times the weights of a block of channels, tile by tile of
//! results that stay in registers.

use crate::aligned::LINE;
use crate::level::{Kernel, Level};
use crate::shared::Shared;
use crate::vector::Simd;
use std::ops::Range;

/// Most output channels that are computed one after the other for the same pixels.
pub(crate) const BLOCK: usize = 32;

/// Output channels of a column of packed weights: a cache line for each input. A block has two columns, the last one perhaps one.
pub(crate) const COLUMN: usize = LINE;

/// Most rows of a tile at any level.
const ROWS: usize = 14;

/// Rows that are found from one pointer: there are more rows than registers for pointers.
const TRIPLE: usize = 3;

/// Inputs between two looks at what to ask for: more, and the processor no longer foresees the last one.
const LOOK: usize = 64;

/// How many inputs ahead weights are asked for.
const AHEAD: usize = 128;

/// Most inputs of one chain of multiply-adds. Longer sums are cut into segments, each a chain that begins at zero, and the segments are
/// added in order: the rounding errors of a chain grow with its length.
const SEGMENT: usize = 256;

/// Most rows, over all threads, that do not use weights long enough for more to come meanwhile unasked.
pub(crate) const FEW_ROWS: usize = 256;

/// Most segments of a stretch.
const SEGMENTS: usize = 4;

/// Floats of weights that stay in the first-level cache beside rows and results.
pub(crate) const FEW: usize = 4096;

/// Read in place of input pixels that lie in the padding.
pub(crate) static ZEROS: [f32; 4096] = [0.0; 4096];

/// How many floats `channels` output channels take when packed in columns, for each input.
pub(crate) fn packed_width(channels: usize) -> usize {
    channels.next_multiple_of(COLUMN)
}

/// The packed weights of some output channels.
#[derive(Clone, Copy)]
pub(crate) struct Columns<'a> {
    /// Columns, the last one perhaps half empty: in each, 16 floats for each input in the order of the reduction.
    pub weights: &'a [f32],
    /// Weights that will be needed after these, and are asked for on the way; empty if the same ones will be.
    pub next: &'a [f32],
    /// How many rows these weights serve before and after those of this product.
    pub others: [usize; 2],
    /// Whether weights serve so few rows that the time in which they come from afar is seen: each tile then asks for a part of those that
    /// come next.
    pub comes_late: bool,
}

/// Bias and bounds of a result that is finished while it is in registers.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    /// Added, one value a channel.
    pub bias: Option<&'a [f32]>,
    /// The least and the greatest result.
    pub bounds: [f32; 2],
}

/// `Σ_c input[row][c] · weights[c][channel]` for all rows and some channels. Where a sum is cut into segments
/// depends on its length alone.
#[derive(Clone)]
pub(crate) struct Product<'a> {
    /// Where rows lie.
    pub input: &'a [f32],
    /// Where the first row begins.
    pub start: usize,
    /// Distance of neighbouring rows.
    pub stride: usize,
    /// Number of rows.
    pub rows: usize,
    /// Inputs of all sums.
    pub depth: usize,
    /// Those that are multiplied now, whole segments; rows begin with the first one. Unless that is the first of all, the results already
    /// hold the sums of those before it.
    pub inputs: Range<usize>,
    /// Weights.
    pub columns: Columns<'a>,
    /// Number of channels.
    pub channels: usize,
    /// Memory that will be needed after this product, and is asked for on the way, unless weights come late.
    pub later: &'a [f32],
}

/// Rows of memory, one for each row of a product and as long as its result. Those of a tile are asked for when it is begun.
#[derive(Clone, Copy, Default)]
pub(crate) struct Asked<'a> {
    /// Rows that will be written: where the first one begins, and the distance of neighbouring ones.
    pub written: Option<(Shared<'a, f32>, usize, usize)>,
    /// Rows that will be read.
    pub read: Option<(&'a [f32], usize, usize)>,
}

impl Asked<'_> {
    /// Whether rows that will be written, and rows that will be read, are asked for with some of the inputs.
    #[inline(always)]
    fn at(&self, inputs: &Range<usize>, depth: usize) -> [bool; 2] {
        [self.written.is_some() && inputs.start == 0, self.read.is_some() && inputs.end == depth]
    }
}

/// Where the results of a product go.
#[derive(Clone, Copy)]
pub(crate) struct Results<'a> {
    /// Where they lie. All lanes of the last vector are written, those beyond the channels with what their weights, zeros, give.
    pub to: Shared<'a, f32>,
    /// Where those of the first row begin.
    pub start: usize,
    /// Distance of those of neighbouring rows.
    pub stride: usize,
    /// Distance of those of neighbouring blocks of channels, if there are several: a block or more.
    pub block: usize,
    /// What happens to them before they are stored.
    pub finish: Option<Bounds<'a>>,
    /// Memory that is needed when they are there.
    pub asked: Asked<'a>,
}

impl<'a> Results<'a> {
    /// As sums of so many rows: all of a block before those of the next one.
    pub(crate) fn sums(to: &'a mut [f32], rows: usize) -> Self {
        let asked = Asked::default();
        Results { to: Shared::new(to), start: 0, stride: BLOCK, block: rows * BLOCK, finish: None, asked }
    }

    /// Where the one of a row and channel lies.
    #[inline(always)]
    fn place(&self, row: usize, channel: usize) -> usize {
        self.start + row * self.stride + channel / BLOCK * self.block + channel % BLOCK
    }
}

/// The length of the segments of a sum; the last one may be shorter.
#[inline(always)]
fn segment(depth: usize) -> usize {
    depth.div_ceil(depth.div_ceil(SEGMENT).max(1))
}

/// The most inputs that should be multiplied with all rows and columns before the next ones are: whole segments, so few that the weights of
/// some columns, together with those that come next, stay in the second-level cache.
#[inline(always)]
pub(crate) fn longest_stretch(depth: usize) -> usize {
    let segments = depth.div_ceil(SEGMENT).max(1);
    segment(depth) * segments.div_ceil(segments.div_ceil(SEGMENTS))
}

impl Product<'_> {
    /// Computes all rows.
    ///
    /// # Panics
    /// If rows, weights, results or bias do not lie within their slices.
    ///
    /// # Safety
    /// No other thread may be at work on the results, nor may there be other references to them.
    #[inline]
    pub(crate) unsafe fn run(self, level: Level, results: Results<'_>) {
        let end = |start: usize, stride: usize, length: usize| {
            (self.rows - 1).checked_mul(stride).and_then(|last| last.checked_add(start)?.checked_add(length))
        };
        if self.rows == 0 || self.channels == 0 {
            return;
        }
        let last = (self.channels - 1) / BLOCK;
        let width = self.channels.next_multiple_of(level.lanes()) - last * BLOCK;
        let columns = self.channels.div_ceil(COLUMN) * COLUMN;
        assert!(
            end(self.start, self.stride, self.inputs.len()).is_some_and(|end| end <= self.input.len()),
            "invariant: rows lie within the input"
        );
        assert!(
            (last.checked_mul(results.block))
                .and_then(|block| end(results.start, results.stride, block.checked_add(width)?))
                .is_some_and(|end| end <= results.to.len()),
            "invariant: results lie within their slice"
        );
        assert!(last == 0 || results.block >= BLOCK, "invariant: blocks of results lie beside each other");
        assert!(
            self.inputs.start <= self.inputs.end && self.inputs.end <= self.depth,
            "invariant: some of all inputs"
        );
        assert!(self.columns.weights.len() >= columns * self.depth, "invariant: weights for each input");
        level.run(Tiles { product: self, results });
    }
}

/// A product whose sizes have been checked.
struct Tiles<'a> {
    product: Product<'a>,
    results: Results<'a>,
}

impl Kernel for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        const { assert!(S::TILE <= ROWS) };
        let Tiles { product, results } = self;
        let Product { rows, depth, columns, channels, ref inputs, .. } = product;
        let tiles = rows.div_ceil(S::TILE);
        // All tiles differ by at most one row.
        let (size, larger) = (rows / tiles, rows % tiles);
        let vectors = if S::PORTABLE { 1 } else { 2 };
        let width = vectors * S::LANES;
        let steps = channels.div_ceil(width);
        // The weights of a column serve all rows before the next ones are touched; unless there are so few that all of them stay at hand:
        // then the results of a row are stored one after the other.
        let by_rows = columns.weights.len() <= FEW;
        // More of those that come next would be gone again before they are needed.
        let longest = longest_stretch(depth);
        let (outer, inner) = if by_rows { (tiles, steps) } else { (steps, tiles) };
        for outer_index in 0..outer {
            for inner_index in 0..inner {
                let (tile, step) =
                    if by_rows { (outer_index, inner_index) } else { (inner_index, outer_index) };
                let first = step * width;
                let row = tile * size + tile.min(larger);
                let count = size + usize::from(tile < larger);
                let vectors = vectors.min((channels - first).div_ceil(S::LANES));
                // The weights of a step from some input on; none if there are no inputs.
                let weights = |step: usize, input: usize| {
                    let (column, lane) = (step * width / COLUMN, step * width % COLUMN);
                    columns.weights.get((column * depth + input) * COLUMN + lane..).unwrap_or_default()
                };
                // Those that come when all rows are done, from which input on, and until then.
                let [before, after] = columns.others.map(|rows| rows.div_ceil(S::TILE));
                let (then, from, until) = match (step + 1 < steps, inputs.end < depth) {
                    (true, _) => (weights(step + 1, inputs.start), inputs.start, [tile, tiles]),
                    (false, true) => (weights(0, inputs.end), inputs.end, [tile, tiles]),
                    (false, false) => (columns.next, 0, [before + tile, before + tiles + after]),
                };
                let next = match (until[0] + 1 < until[1] && !by_rows, then.is_empty()) {
                    (true, _) => weights(step, inputs.start),
                    (false, true) => weights(0, 0),
                    (false, false) => then,
                };
                // Inputs with which nothing else is asked for.
                let soon = results.asked.at(inputs, depth).map(|is_asked| usize::from(is_asked) * count);
                let free = inputs.len().saturating_sub(soon.iter().sum());
                let late = if columns.comes_late { width.div_ceil(COLUMN) } else { 0 };
                let later = match late {
                    0 => Stream::share(product.later, outer_index * inner + inner_index, outer * inner, free),
                    _ => Stream::weights(then, [depth, late], longest.min(depth - from), until, free),
                };
                let part = Part { row, first, next: next.as_ptr(), later };
                macro_rules! run {
                    ($rows:literal) => {
                        // SAFETY: `Product::run` has checked that all rows, weights and results exist.
                        unsafe {
                            match vectors {
                                1 => tile_of::<S, $rows, 1>(simd, &product, &results, &part),
                                _ => tile_of::<S, $rows, 2>(simd, &product, &results, &part),
                            }
                        }
                    };
                }
                match count {
                    1 => run!(1),
                    2 => run!(2),
                    3 => run!(3),
                    4 => run!(4),
                    5 if S::TILE > 4 => run!(5),
                    6 if S::TILE > 4 => run!(6),
                    7 if S::TILE > 6 => run!(7),
                    8 if S::TILE > 6 => run!(8),
                    9 if S::TILE > 6 => run!(9),
                    10 if S::TILE > 6 => run!(10),
                    11 if S::TILE > 6 => run!(11),
                    12 if S::TILE > 6 => run!(12),
                    13 if S::TILE > 6 => run!(13),
                    14 if S::TILE > 6 => run!(14),
                    _ => unreachable!("a tile of this level has fewer rows"),
                }
            }
        }
    }
}

/// A tile.
struct Part {
    /// The first row.
    row: usize,
    /// The first channel.
    first: usize,
    /// Weights that are needed next.
    next: *const f32,
    /// What is needed much later.
    later: Stream,
}

/// Memory to ask for with each input, so many floats further each time; none if the step is 0.
#[derive(Clone, Copy)]
struct Stream {
    from: *const f32,
    step: usize,
}

impl Stream {
    /// The share of a part of so many inputs among equal parts.
    #[inline(always)]
    fn share(memory: &[f32], part: usize, parts: usize, inputs: usize) -> Self {
        let at = |part: usize| memory.len() * part / parts;
        let length = at(part + 1) - at(part);
        Self { from: memory.as_ptr().wrapping_add(at(part)), step: length.div_ceil(inputs.max(1)) }
    }

    /// The share of a tile in the first `inputs` inputs of some columns that lie `depth` inputs apart, for a part of so many inputs. Where
    /// weights end, nothing beyond them is asked for.
    #[inline(always)]
    fn weights(
        weights: &[f32],
        columns: [usize; 2],
        inputs: usize,
        [tile, tiles]: [usize; 2],
        part: usize,
    ) -> Self {
        let [depth, count] = columns;
        let count = count.min(weights.len().div_ceil((COLUMN * depth).max(1)));
        let (length, all) = (COLUMN * inputs, COLUMN * inputs * count);
        let step = all.div_ceil((tiles * part).max(1));
        let at = (tile * part * step).min(all.saturating_sub(part * step));
        let (column, rest) = (at / length.max(1), at % length.max(1));
        Self { from: weights.as_ptr().wrapping_add(column * COLUMN * depth + rest), step }
    }
}

/// Computes a tile of P rows and N vectors of channels.
///
/// # Safety
/// The rows, weights and results must exist.
#[inline(always)]
unsafe fn tile_of<S: Simd, const P: usize, const N: usize>(
    simd: S,
    product: &Product,
    results: &Results,
    part: &Part,
) {
    let Product { input, stride, depth, columns, inputs: Range { start: begin, end }, .. } = product;
    let (begin, end) = (*begin, *end);
    let Results { to, stride: to_stride, finish, .. } = results;
    let Part { row, first, .. } = *part;
    let from = input.as_ptr().wrapping_add(product.start + row * stride);
    let to = to.address(results.place(row, first)).cast_mut();
    let column = first / COLUMN;
    let mut weight =
        columns.weights.as_ptr().wrapping_add((column * depth + begin) * COLUMN + first % COLUMN);
    // From one vector of channels to the next: they share a column, or each has its own.
    let vector = if S::LANES == COLUMN { COLUMN * depth } else { S::LANES };
    // Weights are asked for some inputs ahead, behind the last one those that are needed next.
    let ahead = AHEAD.min(end - begin);
    let mut later = part.later;
    // Written out, because loops that hold assembly are not unrolled in time for sums to become registers.
    macro_rules! rows {
        ($inputs:ident, $w:ident, $acc:ident: $($row:literal)*) => {
            $(if $row < P {
                // SAFETY: the pointers have moved by one float for each input so far, and stand in rows of this product.
                let x = unsafe { simd.splat_in_order::<{ $row % TRIPLE }>($inputs[$row / TRIPLE], *stride) };
                $acc[$row][0] = simd.multiply_add_in_order(x, $w[0], $acc[$row][0]);
                if N > 1 {
                    $acc[$row][N - 1] = simd.multiply_add_in_order(x, $w[N - 1], $acc[$row][N - 1]);
                }
            })*
        };
    }
    // What is needed when these inputs are done: a line of each row with each input, all at once they would wait for each other.
    let of_tile = |memory: *const f32, start: usize, stride: usize| Stream {
        from: memory.wrapping_add(start + row * stride + first),
        step: stride,
    };
    let Asked { written, read } = results.asked;
    let [asks_written, asks_read] = results.asked.at(&product.inputs, *depth);
    let mut soon = [
        written.filter(|_| asks_written).map(|(to, start, stride)| of_tile(to.address(0), start, stride)),
        read.filter(|_| asks_read).map(|(data, start, stride)| of_tile(data.as_ptr(), start, stride)),
    ];
    let place = |p: usize, n: usize| to.wrapping_add(p * to_stride + n * S::LANES);
    let mut done = begin;
    loop {
        let count = (end - done).min(segment(*depth));
        let mut acc = [[simd.splat(0.0); N]; P];
        let mut inputs = [from.wrapping_add(done - begin); ROWS.div_ceil(TRIPLE)];
        for triple in 1..P.div_ceil(TRIPLE) {
            inputs[triple] = inputs[triple - 1].wrapping_add(TRIPLE * stride);
        }
        let mut left = count;
        while left > 0 {
            let now = soon.iter_mut().find_map(Option::take);
            let some = left.min(if now.is_some() { P } else { LOOK });
            left -= some;
            let far = done + count - left - some + ahead;
            let mut asked = match far < end {
                true => weight.wrapping_add(COLUMN * ahead),
                false => part.next.wrapping_add(COLUMN * (far - end)),
            };
            macro_rules! input {
                () => {
                    let mut w = [simd.splat(0.0); N];
                    for n in 0..N {
                        // SAFETY: `weight` has moved by a line for each input so far, so that it lies in a column, as does the vector
                        // that follows it in this column or at the same place of the next one.
                        w[n] = unsafe { simd.load_pointer(weight.wrapping_add(n * vector)) };
                    }
                    rows!(inputs, w, acc: 0 1 2 3 4 5 6 7 8 9 10 11 12 13);
                    simd.prefetch(asked);
                    if N * S::LANES > COLUMN {
                        simd.prefetch(asked.wrapping_add(vector));
                    }
                    asked = asked.wrapping_add(COLUMN);
                    for input in &mut inputs[..P.div_ceil(TRIPLE)] {
                        *input = simd.next_in_order(*input);
                    }
                    weight = weight.wrapping_add(COLUMN);
                };
            }
            if let Some(Stream { mut from, step }) = now {
                for _ in 0..some {
                    input!();
                    simd.prefetch_to_write(from);
                    if N * S::LANES > LINE {
                        simd.prefetch_to_write(from.wrapping_add(LINE));
                    }
                    from = from.wrapping_add(step);
                }
                continue;
            }
            if later.step > 0 {
                for _ in 0..some {
                    input!();
                    simd.prefetch_for_later(later.from);
                    later.from = later.from.wrapping_add(later.step);
                }
                continue;
            }
            for _ in 0..some {
                input!();
            }
        }
        if done > 0 {
            for p in 0..P {
                for n in 0..N {
                    // SAFETY: results of this tile, which are there and ours alone.
                    acc[p][n] = simd.add(unsafe { simd.load_pointer(place(p, n)) }, acc[p][n]);
                }
            }
        }
        done += count;
        if let (Some(Bounds { bias, bounds: [low, high] }), true) = (finish, done == *depth) {
            if let Some(bias) = bias {
                for n in 0..N {
                    let bias = simd.load(&bias[first + n * S::LANES..]);
                    for p in 0..P {
                        acc[p][n] = simd.add(acc[p][n], bias);
                    }
                }
            }
            let (low, high) = (simd.splat(*low), simd.splat(*high));
            for p in 0..P {
                for n in 0..N {
                    acc[p][n] = simd.least(high, simd.greatest(low, acc[p][n]));
                }
            }
        }
        for p in 0..P {
            for n in 0..N {
                // SAFETY: as above.
                unsafe { simd.store_pointer(acc[p][n], place(p, n)) };
            }
        }
        if done == end {
            return;
        }
    }
}
