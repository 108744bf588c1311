//! Products of single precision by AMX, the matrix unit of newer server processors, which multiplies bfloat16 and adds up in float32.
//!
//! A float32 x has 24 bits, three times those of a bfloat16: `x = x₀ + x₁ + x₂`, exactly, with `|x₁| ≤ 2⁻⁸|x|` and `|x₂| ≤ 2⁻¹⁶|x|`. Of the
//! nine products of two numbers so cut, six are added up, `x₀w₂ + x₀w₁ + x₁w₁ + x₁w₀ + x₂w₀ + x₀w₀`; those left out, `x₁w₂`, `x₂w₁` and
//! `x₂w₂`, are below 2⁻²³ of the product in the worst case and mostly below 2⁻²⁶, less than a multiply-add rounds off (Henry, Tang and
//! Heinecke 2019, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations"). Sums are closer to exact
//! ones than those of multiply-adds, since 16 pairs of products are added up before the sum is rounded.
//!
//! Numbers below 2⁻¹¹⁰ lose their last bits, and those below 2⁻¹²⁶ count as zero. What is not finite, and so cannot be cut, is multiplied in
//! the ordinary way.

#![cfg_attr(
    not(all(target_arch = "x86_64", target_os = "linux", not(miri))),
    allow(dead_code, reason = "the instructions alone read what describes their work")
)]

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
pub(crate) use crate::amx_absent::{Amx, Tiles};
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
pub(crate) use crate::amx_x86::{Amx, Tiles};
use crate::tile::{Asked, BLOCK, COLUMN};

/// Most rows of a tile.
pub(crate) const ROWS: usize = 16;

/// Inputs of a step: 16 pairs, of which the second ones are 16 inputs behind the first ones.
pub(crate) const STEP: usize = 32;

/// Floats that a part of a cut tile takes: 16 rows of 32 numbers of half the size.
pub(crate) const PART: usize = 256;

/// Parts of a number.
pub(crate) const PARTS: usize = 3;

/// How often a step of products makes room for other work.
pub(crate) const SLOTS: usize = 6;

/// Steps after which the next weights are taken, so that those at work and those that come stay in the first-level cache.
const STRETCH: usize = 2;

/// How many stretches before they are cut weights are asked for.
const AHEAD: usize = 4;

/// Rows of a tile, where so many are cut into as few tiles as possible.
pub(crate) fn height(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(ROWS).max(1)).max(1)
}

/// Floats that some rows take when they are cut.
pub(crate) fn cut_len(rows: usize, depth: usize) -> usize {
    rows.div_ceil(height(rows)) * tile_len(depth)
}

/// Floats that a tile of rows takes when it is cut.
pub(crate) fn tile_len(depth: usize) -> usize {
    depth.div_ceil(STEP) * PARTS * PART
}

/// Floats of the sums of so many rows, with room for rows beyond the last one.
pub(crate) fn sums_len(rows: usize) -> usize {
    rows.div_ceil(height(rows)) * height(rows) * BLOCK
}

/// One of several products of as many rows and as many inputs.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// Where its cut rows begin.
    pub rows: usize,
    /// Where the weights of its channels begin.
    pub weights: usize,
    /// Its channels, a block at most.
    pub channels: usize,
}

/// Two tiles of rows, or one if both are the same, and two columns of cut weights, for some steps.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    /// The tiles of rows.
    pub rows: [*const f32; 2],
    /// The weights.
    pub weights: *const f32,
    /// The sums of each tile.
    pub sums: [*mut f32; 2],
    /// How many steps there are.
    pub steps: usize,
    /// Whether sums begin with these steps.
    pub is_first: bool,
}

/// Memory that is needed when the products of two tiles are there: that which is written, and that which is read. It is asked for line by
/// line, since lines that are asked for all at once wait for each other.
pub(crate) struct Soon {
    /// What the next row needs.
    pub rows: [*const f32; 2],
    /// Distance of neighbouring rows.
    pub strides: [usize; 2],
    /// How many rows there are still.
    pub left: usize,
    /// How many are asked for at a time.
    pub at_once: usize,
}

/// Weights of two columns that are to be cut, pair after pair of inputs.
pub(crate) struct Job {
    /// The first of these inputs in both columns.
    pub from: [*const f32; 2],
    /// How many inputs there are from there on; behind them are zeros.
    pub inputs: usize,
    /// The first inputs of what is cut after them, which is asked for.
    pub ahead: [*const f32; 2],
    /// Where they go.
    pub to: *mut f32,
    /// How many pairs of inputs are done, both columns counted.
    pub done: usize,
    /// How many there are.
    pub end: usize,
}

/// Floats of the weights of a stretch that have been cut.
const WEIGHTS: usize = STRETCH * 2 * PARTS * PART;

/// Floats of scratch that products need.
pub(crate) const SCRATCH: usize = 2 * WEIGHTS;

/// Products that are computed one after the other, each while the weights of the next one are cut.
pub(crate) struct Products<'a> {
    tiles: Tiles,
    rows: &'a [f32],
    count: usize,
    depth: usize,
    weights: &'a [f32],
    /// Weights of a stretch in each half: those at work, and those that come.
    halves: [&'a mut [f32]; 2],
    /// Whether the first weights have been cut.
    is_begun: bool,
}

impl<'a> Products<'a> {
    /// Products of `count` of those rows that [`Amx::cut_rows`] has cut, with weights in columns, as `tile` has them. A sum has
    /// `depth` inputs. Weights are asked for as far as there are any.
    pub(crate) fn new(
        amx: Amx,
        rows: &'a [f32],
        count: usize,
        depth: usize,
        weights: &'a [f32],
        scratch: &'a mut [f32],
    ) -> Self {
        assert!(depth > 0 && count > 0, "invariant: inputs of some rows");
        let (first, second) = scratch[..SCRATCH].split_at_mut(WEIGHTS);
        let tiles = amx.tiles(height(count));
        Products { tiles, rows, count, depth, weights, halves: [first, second], is_begun: false }
    }

    /// Computes one, a block for each row, and cuts the first weights of the one that will be computed next. `asked` is what will be needed
    /// of each row then.
    ///
    /// # Panics
    /// If rows, weights or sums do not lie within their slices.
    pub(crate) fn compute(
        &mut self,
        product: Product,
        next: Option<Product>,
        asked: Asked,
        sums: &mut [f32],
    ) {
        let (count, depth) = (self.count, self.depth);
        let height = height(count);
        let tiles = count.div_ceil(height);
        let steps = depth.div_ceil(STEP);
        assert!(
            product.rows.checked_add(tiles * tile_len(depth)).is_some_and(|end| end <= self.rows.len())
                && sums.len() >= sums_len(count),
            "invariant: rows and sums of all tiles"
        );
        if !self.is_begun {
            let mut job = self.job(product, 0);
            // SAFETY: `job` has checked the weights, and a half has room for a stretch.
            unsafe { self.tiles.cut_weights(&mut job) };
            self.is_begun = true;
        }
        // Instead of what is not needed, sums are asked for, which are at hand.
        let nothing = (sums.as_ptr(), 0);
        let places = [
            asked.written.map_or(nothing, |(to, start, stride)| (to.address(start), stride)),
            asked.read.map_or(nothing, |(from, start, stride)| (from.as_ptr().wrapping_add(start), stride)),
        ];
        for first in (0..steps).step_by(STRETCH) {
            self.halves.swap(0, 1);
            let now = STRETCH.min(steps - first);
            let mut job = match (first + now < steps, next) {
                (true, _) => self.job(product, first + now),
                (false, Some(next)) => self.job(next, 0),
                (false, None) => Job { end: 0, ..self.job(product, 0) },
            };
            for tile in (0..tiles).step_by(2) {
                let both = [tile, (tile + 1).min(tiles - 1)];
                let rows = &self.rows[product.rows + first * PARTS * PART..];
                let pair = Pair {
                    rows: both.map(|tile| rows.as_ptr().wrapping_add(tile * tile_len(depth))),
                    weights: self.halves[1].as_ptr(),
                    sums: both.map(|tile| sums.as_mut_ptr().wrapping_add(tile * height * BLOCK)),
                    steps: now,
                    is_first: first == 0,
                };
                let row = tile * height;
                let left = if first == 0 { (2 * height).min(count - row) } else { 0 };
                let mut soon = Soon {
                    rows: places.map(|(from, stride)| from.wrapping_add(row * stride)),
                    strides: places.map(|(_, stride)| stride),
                    left,
                    at_once: left.div_ceil(now * SLOTS),
                };
                // SAFETY: rows, weights and sums lie in their slices, as has been checked, and nobody else uses these halves and sums.
                unsafe { self.tiles.multiply(pair, &mut job, tiles.div_ceil(2), &mut soon) };
            }
            // SAFETY: as above.
            unsafe { self.tiles.cut_weights(&mut job) };
        }
        let sums = &mut sums[..count * BLOCK];
        if self.tiles.any_is_not_a_number(sums, product.channels) {
            self.repair(product, sums);
        }
    }

    /// The cutting of the weights of some product from some step on, into the first half.
    fn job(&mut self, product: Product, step: usize) -> Job {
        let Product { weights: begin, channels, .. } = product;
        let steps = self.depth.div_ceil(STEP);
        // If there is but one column, it counts twice.
        let behind = if channels > COLUMN { COLUMN * self.depth } else { 0 };
        assert!(
            begin.checked_add(behind + COLUMN * self.depth).is_some_and(|end| end <= self.weights.len()),
            "invariant: weights for each input"
        );
        let columns = |begin: usize, step: usize| {
            [0, behind]
                .map(|column| self.weights.as_ptr().wrapping_add(begin + column + step * STEP * COLUMN))
        };
        let count = STRETCH.min(steps - step);
        // Those of the same channels, or of others that follow them. Nothing beyond weights is asked for.
        let stretches = steps.div_ceil(STRETCH);
        let later = step / STRETCH + AHEAD;
        let block = begin + later / stretches * BLOCK * self.depth;
        let ahead = match block + behind + COLUMN * self.depth <= self.weights.len() {
            true => columns(block, later % stretches * STRETCH),
            // What is at hand anyway.
            false => [self.halves[0].as_ptr(); 2],
        };
        Job {
            from: columns(begin, step),
            inputs: self.depth - step * STEP,
            ahead,
            to: self.halves[0].as_mut_ptr(),
            done: 0,
            end: count * STEP,
        }
    }

    /// Computes the rows that have a sum that is not a number again, one product after the other: it may be infinite in truth.
    #[cold]
    fn repair(&self, product: Product, sums: &mut [f32]) {
        let (height, depth) = (height(self.count), self.depth);
        let (rows, weights) = (&self.rows[product.rows..], &self.weights[product.weights..]);
        let channels = product.channels;
        let part = |row: usize, input: usize, part: usize| {
            let (step, within) = (input / STEP, input % STEP);
            let place = row / height * tile_len(depth) + (step * PARTS + part) * PART + row % height * ROWS;
            let pair = rows[place + within % ROWS].to_bits();
            f32::from_bits(if within < ROWS { pair << 16 } else { pair & 0xffff_0000 })
        };
        for (row, sums) in sums.chunks_exact_mut(BLOCK).enumerate() {
            if !sums[..channels].iter().any(|sum| sum.is_nan()) {
                continue;
            }
            sums[..channels].fill(0.0);
            for input in 0..depth {
                let [high, middle, low] = [0, 1, 2].map(|index| part(row, input, index));
                let x = match (high.is_finite(), middle.is_infinite()) {
                    (true, _) => high + (middle + low),
                    // A number so large that its first part is rounded to infinity.
                    (false, true) => f32::MAX.copysign(high),
                    (false, false) => high,
                };
                for (channel, sum) in sums[..channels].iter_mut().enumerate() {
                    let column = channel / COLUMN * COLUMN * depth + channel % COLUMN;
                    *sum = x.mul_add(weights[column + input * COLUMN], *sum);
                }
            }
        }
    }
}
