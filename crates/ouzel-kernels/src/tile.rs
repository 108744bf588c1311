//! The micro-kernel of all matrix-like work: rows of inputs at equal distances times the weights of a block of channels, tile by tile of
//! results that stay in registers.

use crate::level::{Kernel, Level};
use crate::shared::Shared;
use crate::vector::Simd;

/// Most output channels that are computed one after the other for the same pixels.
pub(crate) const BLOCK: usize = 32;

/// Output channels of a column of packed weights: a cache line for each input. A block has two columns, the last one perhaps one.
pub(crate) const COLUMN: usize = 16;

/// How many inputs ahead weights are asked for.
const AHEAD: usize = 128;

/// Inputs that are added up between two looks at the counter.
const STEPS: usize = 4;

/// Floats of a cache line.
const LINE: isize = 16;

/// Most inputs of one chain of multiply-adds. Longer sums are cut into segments, each a chain that begins at zero, and the segments are
/// added in order: the rounding errors of a chain grow with its length.
const SEGMENT: usize = 256;

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
    /// Where the weights begin that are needed after these, seen from the first ones, so that they can be asked for: 0 if the same
    /// weights meet another tile, the length of these if those that follow them do. What nobody needs may not even be mapped, and the
    /// processor would look for it in vain, which takes long.
    pub then: usize,
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
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    /// Where rows lie.
    pub input: &'a [f32],
    /// Where the first row begins.
    pub start: usize,
    /// Distance of neighbouring rows.
    pub stride: usize,
    /// Number of rows.
    pub rows: usize,
    /// Inputs of a row.
    pub depth: usize,
    /// Weights.
    pub columns: Columns<'a>,
    /// Number of channels.
    pub channels: usize,
    /// Whether the inputs come from afar, so that they are asked for a tile ahead.
    pub asks_ahead: bool,
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
    /// What happens to them before they are stored.
    pub finish: Option<Bounds<'a>>,
}

impl<'a> Results<'a> {
    /// As sums, in rows of a block.
    pub(crate) fn sums(to: &'a mut [f32]) -> Self {
        Results { to: Shared::new(to), start: 0, stride: BLOCK, finish: None }
    }
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
        let width = self.channels.next_multiple_of(level.lanes());
        let columns = self.channels.div_ceil(COLUMN) * COLUMN;
        assert!(
            end(self.start, self.stride, self.depth).is_some_and(|end| end <= self.input.len()),
            "invariant: rows lie within the input"
        );
        assert!(
            end(results.start, results.stride, width).is_some_and(|end| end <= results.to.len()),
            "invariant: results lie within their slice"
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
        let Tiles { product, results } = self;
        let Product { rows, depth, columns, channels, .. } = product;
        let tiles = rows.div_ceil(S::TILE);
        // All tiles differ by at most one row.
        let (size, larger) = (rows / tiles, rows % tiles);
        let vectors = if S::PORTABLE { 1 } else { 2 };
        let width = vectors * S::LANES;
        let steps = channels.div_ceil(width);
        // The weights of a column serve all rows before those of the next one are touched; unless there are so few that all of them stay at
        // hand: then the results of a row are stored one after the other.
        let by_rows = columns.weights.len() <= FEW;
        let (outer, inner) = if by_rows { (tiles, steps) } else { (steps, tiles) };
        for outer in 0..outer {
            for inner in 0..inner {
                let (tile, step) = if by_rows { (outer, inner) } else { (inner, outer) };
                let first = step * width;
                let (column, next) = (first / COLUMN, (first + width).div_ceil(COLUMN));
                let begin = column * COLUMN * depth;
                let after = if step + 1 == steps { columns.then } else { next * COLUMN * depth };
                let vectors = vectors.min((channels - first).div_ceil(S::LANES));
                let row = tile * size + tile.min(larger);
                let count = size + usize::from(tile < larger);
                let then = if tile + 1 == tiles || by_rows { after } else { begin };
                let asks = product.asks_ahead && first == 0 && tile + 1 < tiles;
                macro_rules! run {
                    ($rows:literal) => {
                        // SAFETY: `Product::run` has checked that all rows, weights and results exist.
                        unsafe {
                            match vectors {
                                1 => tile_of::<S, $rows, 1>(simd, &product, &results, row, first, then, asks),
                                _ => tile_of::<S, $rows, 2>(simd, &product, &results, row, first, then, asks),
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
                    _ => unreachable!("a tile of this level has fewer rows"),
                }
            }
        }
    }
}

/// Computes P rows from `row` on and N vectors of channels from `first` on; `then` is where the weights lie that are needed next, and
/// `asks` whether to ask for the rows that follow.
///
/// # Safety
/// The rows, weights and results must exist.
#[inline(always)]
unsafe fn tile_of<S: Simd, const P: usize, const N: usize>(
    simd: S,
    product: &Product,
    results: &Results,
    row: usize,
    first: usize,
    then: usize,
    asks: bool,
) {
    let Product { input, stride, depth, columns, .. } = product;
    let Results { to, stride: to_stride, finish, .. } = results;
    let from = input.as_ptr().wrapping_add(product.start + row * stride);
    let to = to.address(results.start + row * to_stride + first).cast_mut();
    let column = first / COLUMN;
    let mut weight = columns.weights.as_ptr().wrapping_add(column * COLUMN * depth + first % COLUMN);
    // From one vector of channels to the next: they share a column, or each has its own.
    let vector = if S::LANES == COLUMN { COLUMN * depth } else { S::LANES };
    // Weights are asked for some inputs ahead, behind the last one those that are needed next.
    let last = weight.wrapping_add(COLUMN * depth);
    let ahead = COLUMN * (*depth).min(AHEAD);
    let jump = then.wrapping_sub((column + 1) * COLUMN * depth);
    let most = depth.div_ceil(depth.div_ceil(SEGMENT).max(1));
    // Scratch, whose rows are a block wide, is in the cache.
    if finish.is_some() || *to_stride != BLOCK {
        for p in 0..P {
            simd.prefetch_to_write(to.wrapping_add(p * to_stride));
        }
    }
    let mut done = 0;
    loop {
        let part = (depth - done).min(most);
        let mut acc = [[simd.splat(0.0); N]; P];
        // The pointers stand at the ends of their rows and are indexed by a counter that rises to zero.
        let mut ends = [from.wrapping_add(done + part); P];
        for p in 1..P {
            ends[p] = ends[p - 1].wrapping_add(*stride);
        }
        let mut c = -(part as isize);
        macro_rules! add_up {
            ($count:expr) => {{
                for step in 0..$count {
                    let mut w = [simd.splat(0.0); N];
                    for n in 0..N {
                        // SAFETY: `weight` has moved by a line for each input so far, and `step` lines on there is that of an input of this
                        // row, so that it lies in a column, as do the vectors that follow it in this column or at the same place of the
                        // next one.
                        w[n] = unsafe { simd.load_pointer(weight.wrapping_add(step * COLUMN + n * vector)) };
                    }
                    for p in 0..P {
                        // SAFETY: c + step runs over -part .. 0 before the end of a part of the row.
                        let x = simd.splat(unsafe { *ends[p].wrapping_offset(c).wrapping_add(step) });
                        for n in 0..N {
                            acc[p][n] = simd.multiply_add(x, w[n], acc[p][n]);
                        }
                    }
                }
                let mut next = weight.wrapping_add(ahead);
                if next.wrapping_add(($count - 1) * COLUMN) >= last {
                    next = next.wrapping_add(jump);
                }
                for step in 0..$count {
                    simd.prefetch(next.wrapping_add(step * COLUMN));
                    if N * S::LANES > COLUMN {
                        simd.prefetch(next.wrapping_add(step * COLUMN + vector));
                    }
                }
                weight = weight.wrapping_add($count * COLUMN);
                c += $count as isize;
            }};
        }
        // Only large tiles, so that the others are not four times as long.
        if P + 1 >= S::TILE {
            while c <= -(STEPS as isize) {
                if asks && c % LINE == 0 {
                    for end in ends {
                        simd.prefetch(end.wrapping_offset(c).wrapping_add(P * stride));
                    }
                }
                add_up!(STEPS);
            }
        }
        while c < 0 {
            add_up!(1);
        }
        let place = |p: usize, n: usize| to.wrapping_add(p * to_stride + n * S::LANES);
        if done > 0 {
            for p in 0..P {
                for n in 0..N {
                    // SAFETY: results of this tile, which are there and ours alone.
                    acc[p][n] = simd.add(unsafe { simd.load_pointer(place(p, n)) }, acc[p][n]);
                }
            }
        }
        done += part;
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
        if done == *depth {
            return;
        }
    }
}
