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

/// Most steps after which the next weights are taken, if those are all: sums are loaded and stored each time.
pub(crate) const STRETCH: usize = 4;

/// The same if there are more, so that weights at work and those that come stay in the first-level cache.
const SHORT_STRETCH: usize = 2;

/// How many steps before they are cut weights are asked for.
const AHEAD: usize = 8;

/// Floats of a part of a row: 16 pairs.
pub(crate) const PAIRS: usize = PART / ROWS;

/// Whether so many inputs or channels leave little of their last unit empty.
pub(crate) fn fills(count: usize, unit: usize) -> bool {
    8 * count.next_multiple_of(unit) <= 9 * count
}

/// Where cut rows lie: floats from one to the next, from part to part of a row, and from step to step.
#[derive(Clone, Copy)]
pub(crate) struct Strides {
    pub row: usize,
    pub part: usize,
    pub step: usize,
}

impl Strides {
    /// Tile by tile: each has its steps one after the other, and they their parts. This is the fastest order to read.
    pub(crate) const TILED: Strides = Strides { row: PAIRS, part: PART, step: PARTS * PART };

    /// Step by step so many places, from any of which tiles may be read.
    pub(crate) fn placed(places: usize) -> Strides {
        Strides { row: PARTS * PAIRS, part: PAIRS, step: PARTS * PAIRS * places }
    }
}

/// How sums become tiles: bands of neighbouring places, each in tiles of the same height. A place is a row of each step.
#[derive(Clone, Copy)]
pub(crate) struct Bands {
    /// How many bands there are, at least one.
    pub count: usize,
    /// Places of a band, at least one.
    pub length: usize,
    /// Floats from the rows of a band to those of the next one.
    pub pitch: usize,
    /// The same for the tiles of a band; `None` if rows follow each other across tiles.
    pub tile: Option<usize>,
    pub strides: Strides,
}

impl Bands {
    /// One band of places that are read by themselves alone, and so are kept tile by tile.
    pub(crate) fn tiled(length: usize, inputs: usize) -> Bands {
        let tile = Some(inputs.div_ceil(STEP) * PARTS * PART);
        Bands { count: 1, length, pitch: 0, tile, strides: Strides::TILED }
    }

    /// Tiles of a band.
    fn of_each(&self) -> usize {
        self.length.div_ceil(ROWS)
    }

    /// Rows of a tile.
    pub(crate) fn height(&self) -> usize {
        self.length.div_ceil(self.of_each())
    }

    /// Tiles of all bands.
    pub(crate) fn tiles(&self) -> usize {
        self.count * self.of_each()
    }

    /// From the sums of the first place of a band to those of the next one, counted in blocks.
    pub(crate) fn stride(&self) -> usize {
        self.of_each() * self.height()
    }

    /// Floats of all sums, with room for those of places beyond the end of a band.
    pub(crate) fn sums_len(&self) -> usize {
        self.count * self.stride() * BLOCK
    }

    /// Where the rows of each tile begin.
    fn begins(&self) -> impl Iterator<Item = usize> {
        let Bands { count, pitch, .. } = *self;
        let (of_each, step) = (self.of_each(), self.tile.unwrap_or(self.height() * self.strides.row));
        (0..count).flat_map(move |band| (0..of_each).map(move |tile| band * pitch + tile * step))
    }

    /// How many floats of a step are read, with those of places beyond the end of a band.
    pub(crate) fn reach(&self) -> usize {
        let Strides { row, part, .. } = self.strides;
        let last = self.begins().last().expect("invariant: at least one tile");
        last + (self.height() - 1) * row + (PARTS - 1) * part + PAIRS
    }
}

/// Some of the inputs of all sums, at most 32.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    /// Where the rows of the first place begin.
    pub rows: usize,
    /// The first of these inputs in the weights, and how many there are.
    pub first: usize,
    pub inputs: usize,
}

/// One of several products of the same rows.
#[derive(Clone, Copy)]
pub(crate) struct Product {
    /// Where the weights of its channels begin.
    pub weights: usize,
    /// Its channels, a block at most.
    pub channels: usize,
}

/// Two tiles of rows, or one if both are the same, and two columns of cut weights, for some steps.
#[derive(Clone, Copy)]
pub(crate) struct Pair<'a> {
    /// Where the rows of each step begin.
    pub rows: &'a [*const f32],
    /// Where those of the tiles lie from there on.
    pub begins: [usize; 2],
    /// The weights.
    pub weights: *const f32,
    /// The sums of each tile.
    pub sums: [*mut f32; 2],
    /// Where their rows lie.
    pub strides: Strides,
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

/// The weights of a column for a step, which are to be cut.
#[derive(Clone, Copy)]
pub(crate) struct Weights {
    /// The first input.
    pub from: *const f32,
    /// The first input of weights that will be cut later, which is asked for.
    pub ahead: *const f32,
    /// How many inputs there are; behind them are zeros.
    pub inputs: usize,
}

/// Weights of two columns that are to be cut, pair after pair of inputs.
pub(crate) struct Job {
    /// Those of both columns for each step.
    pub weights: [Weights; 2 * STRETCH],
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
    bands: Bands,
    steps: &'a [Step],
    depth: usize,
    weights: &'a [f32],
    /// Weights of a stretch in each half: those at work, and those that come.
    halves: [&'a mut [f32]; 2],
    /// Whether the first weights have been cut.
    is_begun: bool,
}

impl<'a> Products<'a> {
    /// Products of rows that [`Amx::cut_rows`] has cut, with weights in columns of `depth` inputs, as `tile` has them. Weights are asked
    /// for as far as there are any.
    ///
    /// # Panics
    /// If rows do not lie within their slice, or there are none.
    pub(crate) fn new(
        amx: Amx,
        rows: &'a [f32],
        bands: Bands,
        steps: &'a [Step],
        (weights, depth): (&'a [f32], usize),
        scratch: &'a mut [f32],
    ) -> Self {
        let room = bands.reach();
        let is_there = |step: &Step| {
            (1..=STEP).contains(&step.inputs)
                && step.first + step.inputs <= depth
                && step.rows.checked_add(room).is_some_and(|end| end <= rows.len())
        };
        assert!(
            !steps.is_empty() && steps.iter().all(is_there),
            "invariant: rows of all places for each step"
        );
        let (first, second) = scratch[..SCRATCH].split_at_mut(WEIGHTS);
        let tiles = amx.tiles(bands.height());
        Products { tiles, rows, bands, steps, depth, weights, halves: [first, second], is_begun: false }
    }

    /// Computes one, a block for each place, and cuts the first weights of the one that will be computed next. `asked` is what will be
    /// needed of each place then.
    ///
    /// # Panics
    /// If weights or sums do not lie within their slices.
    pub(crate) fn compute(
        &mut self,
        product: Product,
        next: Option<Product>,
        asked: Asked,
        sums: &mut [f32],
    ) {
        let Products { rows: all_rows, bands, steps, .. } = *self;
        let (height, tiles) = (bands.height(), bands.tiles());
        assert!(sums.len() >= bands.sums_len(), "invariant: sums of all tiles");
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
        for (index, some) in steps.chunks(self.stretch()).enumerate() {
            let first = index * self.stretch();
            self.halves.swap(0, 1);
            let mut job = match (first + some.len() < steps.len(), next) {
                (true, _) => self.job(product, first + some.len()),
                (false, Some(next)) => self.job(next, 0),
                (false, None) => Job { end: 0, ..self.job(product, 0) },
            };
            let mut rows = [all_rows.as_ptr(); STRETCH];
            for (rows, step) in rows.iter_mut().zip(some) {
                *rows = rows.wrapping_add(step.rows);
            }
            let mut begins = bands.begins();
            for tile in (0..tiles).step_by(2) {
                let both = [tile, (tile + 1).min(tiles - 1)];
                let begin = begins.next().expect("invariant: as many as there are tiles");
                let pair = Pair {
                    rows: &rows[..some.len()],
                    begins: [begin, begins.next().unwrap_or(begin)],
                    weights: self.halves[1].as_ptr(),
                    sums: both.map(|tile| sums.as_mut_ptr().wrapping_add(tile * height * BLOCK)),
                    strides: bands.strides,
                    is_first: first == 0,
                };
                let row = tile * height;
                let left = if first == 0 { (2 * height).min(bands.length.saturating_sub(row)) } else { 0 };
                let mut soon = Soon {
                    rows: places.map(|(from, stride)| from.wrapping_add(row * stride)),
                    strides: places.map(|(_, stride)| stride),
                    left,
                    at_once: left.div_ceil(some.len() * SLOTS),
                };
                // SAFETY: rows, weights and sums lie in their slices, as has been checked, and nobody else uses these halves and sums.
                unsafe { self.tiles.multiply(pair, &mut job, tiles.div_ceil(2), &mut soon) };
            }
            // SAFETY: as above.
            unsafe { self.tiles.cut_weights(&mut job) };
        }
        for band in 0..bands.count {
            let sums = &mut sums[band * bands.stride() * BLOCK..][..bands.length * BLOCK];
            if self.tiles.any_is_not_a_number(sums, product.channels) {
                self.repair(product, band, sums);
            }
        }
    }

    /// Steps after which the next weights are taken.
    fn stretch(&self) -> usize {
        if self.steps.len() <= STRETCH { STRETCH } else { SHORT_STRETCH }
    }

    /// The cutting of the weights of some product from some step on, into the first half.
    fn job(&mut self, product: Product, first: usize) -> Job {
        let count = self.stretch().min(self.steps.len() - first);
        let Products { steps, depth, weights, .. } = *self;
        let Product { weights: begin, channels, .. } = product;
        // If there is but one column, it counts twice.
        let behind = if channels > COLUMN { COLUMN * depth } else { 0 };
        assert!(
            begin.checked_add(behind + COLUMN * depth).is_some_and(|end| end <= weights.len()),
            "invariant: weights for each input"
        );
        let column = |number: usize| {
            let index = first + number / 2;
            let (step, later) = (&steps[index], index + AHEAD);
            let behind = number % 2 * behind;
            let of = |begin: usize, step: &Step| {
                weights.as_ptr().wrapping_add(begin + behind + step.first * COLUMN)
            };
            // Those of the same channels, or of others that follow them. Nothing beyond weights is asked for.
            let block = begin + later / steps.len() * BLOCK * depth;
            let ahead = match block + behind + COLUMN * depth <= weights.len() {
                true => of(block, &steps[later % steps.len()]),
                // What is at hand anyway.
                false => of(begin, step),
            };
            Weights { from: of(begin, step), ahead, inputs: step.inputs }
        };
        let mut columns = [column(0); 2 * STRETCH];
        for (number, of) in columns.iter_mut().enumerate().take(2 * count).skip(1) {
            *of = column(number);
        }
        Job { weights: columns, to: self.halves[0].as_mut_ptr(), done: 0, end: count * STEP }
    }

    /// Computes those places of a band that have a sum that is not a number again, one product after the other: it may be infinite in
    /// truth.
    #[cold]
    fn repair(&self, product: Product, band: usize, sums: &mut [f32]) {
        let weights = &self.weights[product.weights..];
        let (channels, bands) = (product.channels, &self.bands);
        for (number, sums) in sums.chunks_exact_mut(BLOCK).enumerate() {
            if !sums[..channels].iter().any(|sum| sum.is_nan()) {
                continue;
            }
            sums[..channels].fill(0.0);
            let (tile, row) = (number / bands.height(), number % bands.height());
            let begin = bands.begins().nth(band * bands.of_each() + tile).expect("invariant: a tile")
                + row * bands.strides.row;
            for step in self.steps {
                let row = &self.rows[step.rows + begin..];
                for input in 0..step.inputs {
                    let [high, middle, low] = [0, 1, 2].map(|part| {
                        let pair = row[part * bands.strides.part + input % PAIRS].to_bits();
                        f32::from_bits(if input < PAIRS { pair << 16 } else { pair & 0xffff_0000 })
                    });
                    let x = match (high.is_finite(), middle.is_infinite()) {
                        (true, _) => high + (middle + low),
                        // A number so large that its first part is rounded to infinity.
                        (false, true) => f32::MAX.copysign(high),
                        (false, false) => high,
                    };
                    for (channel, sum) in sums[..channels].iter_mut().enumerate() {
                        let column = channel / COLUMN * COLUMN * self.depth + channel % COLUMN;
                        *sum = x.mul_add(weights[column + (step.first + input) * COLUMN], *sum);
                    }
                }
            }
        }
    }
}
