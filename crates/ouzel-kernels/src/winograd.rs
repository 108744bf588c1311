//! Winograd's convolution F(2×2, 3×3): four outputs of a 3×3 kernel with 16 products instead of 36.
//!
//! A tile of 4×4 inputs d gives 2×2 outputs `Aᵀ (G g Gᵀ ⊙ Bᵀ d B) A`, with
//!
//! ```text
//!      1  0 -1  0        1   0   0
//! Bᵀ = 0  1  1  0   G =  ½   ½   ½   Aᵀ = 1  1  1  0
//!      0 -1  1  0        ½  -½   ½        0  1 -1 -1
//!      0  1  0 -1        0   0   1
//! ```
//!
//! (Lavin and Gray 2015, "Fast algorithms for convolutional neural networks"). The products, summed over the channels, are 16 matrix
//! products of tiles by channels, which the micro-kernel of all convolutions computes.

use crate::aligned::{Aligned, OnLine};
use crate::convolution::{ConvolutionShape, Work};
use crate::crew::share_out;
use crate::level::Kernel;
use crate::setting::Pixels;
use crate::tile::{BLOCK, COLUMN, Columns, FEW_ROWS, Product, Results, ZEROS, packed_width};
use crate::vector::Simd;
use rayon::prelude::*;
use std::cell::Cell;

/// Taps of the kernel.
pub(crate) const TAPS: usize = 9;

/// Products of a tile.
const PRODUCTS: usize = 16;

/// Most tiles of a task: its transformed weights should serve many, and the products of all should stay in the cache beside them.
const MOST_TILES: usize = 56;

/// Most floats of the transformed inputs of a task, for them to stay in the cache.
const MOST_TRANSFORMED: usize = 512 * 1024;

/// Floats between the rows of neighbouring tiles beyond what they hold, so that they do not compete for the same lines of the cache.
const GAP: usize = 16;

/// Most pixels that are finished at once.
const MOST_PIXELS: usize = 12;

/// Whether a convolution can be computed in this way.
pub(crate) fn fits(shape: &ConvolutionShape) -> bool {
    let ConvolutionShape { groups, kernel, stride, dilation, padding, input_channels, .. } = shape;
    *groups == 1
        && *kernel == [1, 3, 3]
        && *stride == [1; 3]
        && *dilation == [1; 3]
        && padding[0] == 0
        && padding[1..].iter().all(|padding| *padding <= 2)
        && *input_channels <= ZEROS.len()
}

/// What transforming a channel of a tile costs, in products.
const TRANSFORMATION: usize = 250;

/// What reading a transformed weight costs a task, in products.
const READING: usize = 12;

/// Whether this way is faster than the direct one for a result of some size: products against products, and the transformations.
pub(crate) fn is_faster(inputs: usize, outputs: usize, size: [usize; 3]) -> bool {
    let tiles = size[1].div_ceil(2).saturating_mul(size[2].div_ceil(2));
    let direct = size[1].saturating_mul(size[2]).saturating_mul(TAPS * inputs * outputs);
    let winograd = tiles.saturating_mul(PRODUCTS * inputs * outputs + TRANSFORMATION * (inputs + outputs));
    winograd < direct
}

/// How many floats the weights take.
pub(crate) fn weights_len(inputs: usize, outputs: usize) -> usize {
    PRODUCTS * inputs * packed_width(outputs)
}

/// Packs weights as `[block of outputs][product][column of the block][input][output within the column]`.
pub(crate) fn pack(
    packed: &mut [f32],
    inputs: usize,
    outputs: usize,
    weight: impl Fn(usize, usize, usize) -> f32 + Sync,
) {
    packed.par_chunks_mut(PRODUCTS * inputs * BLOCK).enumerate().for_each(|(block, packed)| {
        let first = block * BLOCK;
        let count = BLOCK.min(outputs - first);
        let width = packed_width(count);
        for input in 0..inputs {
            let mut taps = [[0.0f64; BLOCK]; TAPS];
            for lane in 0..count {
                for (tap, values) in taps.iter_mut().enumerate() {
                    values[lane] = f64::from(weight(first + lane, input, tap));
                }
            }
            for (product, values) in transform_weights(&taps).iter().enumerate() {
                let columns = &mut packed[product * inputs * width..][..inputs * width];
                for (column, values) in columns.chunks_mut(inputs * COLUMN).zip(values.chunks(COLUMN)) {
                    for (to, value) in column[input * COLUMN..].iter_mut().zip(values) {
                        *to = *value as f32;
                    }
                }
            }
        }
    });
}

/// `G g Gᵀ` for each lane.
fn transform_weights(taps: &[[f64; BLOCK]; TAPS]) -> [[f64; BLOCK]; PRODUCTS] {
    let mut transformed = [[0.0; BLOCK]; PRODUCTS];
    for lane in 0..BLOCK {
        let expand = |a: f64, b: f64, c: f64| [a, 0.5 * (a + b + c), 0.5 * (a - b + c), c];
        let columns = [0, 1, 2].map(|x| expand(taps[x][lane], taps[3 + x][lane], taps[6 + x][lane]));
        for y in 0..4 {
            for (x, value) in expand(columns[0][y], columns[1][y], columns[2][y]).into_iter().enumerate() {
                transformed[y * 4 + x][lane] = value;
            }
        }
    }
    transformed
}

thread_local! {
    /// Memory for transformed tiles, kept because tasks are many and short.
    static SCRATCH: Cell<Aligned> = Cell::default();
}

/// How the tiles of all samples and the blocks of channels are shared out.
struct Plan<'a> {
    work: &'a Work<'a>,
    /// Tiles of a plane, down and across.
    grid: [usize; 2],
    tiles: usize,
    chunks: usize,
    blocks: usize,
    runs: usize,
}

/// Computes a whole convolution.
pub(crate) fn run(work: &Work) {
    let view = work.output_view;
    let grid = [view.size[1].div_ceil(2), view.size[2].div_ceil(2)];
    let tiles = view.batch * view.size[0] * grid[0] * grid[1];
    let blocks = work.convolution.output_channels.div_ceil(BLOCK);
    let (chunks, runs) = shares(tiles, blocks, work.convolution.input_channels, work.threads);
    let plan = Plan { work, grid, tiles, chunks, blocks, runs };
    let run = |index: usize| work.level.run(Task { plan: &plan, index });
    share_out(chunks * runs, run);
}

/// The numbers of chunks of tiles and of runs of blocks that make so many threads end first. Each chunk reads all weights, each run
/// transforms all inputs.
fn shares(tiles: usize, blocks: usize, inputs: usize, threads: usize) -> (usize, usize) {
    let most = MOST_TILES.min(MOST_TRANSFORMED / (PRODUCTS * inputs.max(1))).max(1);
    let fewest = tiles.div_ceil(most);
    let time = |(chunks, runs): (usize, usize)| {
        let (tiles, blocks) = (tiles.div_ceil(chunks), blocks.div_ceil(runs));
        let products = PRODUCTS * inputs * blocks * BLOCK;
        let transformations = TRANSFORMATION * (inputs + blocks * BLOCK);
        (chunks * runs).div_ceil(threads) * (tiles * (products + transformations) + READING * products)
    };
    let runs = 1..=blocks.min(threads);
    let ways = runs.flat_map(|runs| (fewest..fewest + threads).map(move |chunks| (chunks, runs)));
    ways.min_by_key(|&way| time(way)).expect("invariant: one block and one thread at least")
}

/// The share of number `index` of `count` things that are cut into `parts`: first and one past the last.
fn share(count: usize, parts: usize, index: usize) -> (usize, usize) {
    (count * index / parts, count * (index + 1) / parts)
}

/// One chunk of tiles and one run of blocks.
struct Task<'a> {
    plan: &'a Plan<'a>,
    index: usize,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Plan { work, chunks, runs, blocks, tiles, .. } = *self.plan;
        let (inputs, outputs) = (work.convolution.input_channels, work.convolution.output_channels);
        let (first, last) = share(tiles, chunks, self.index / runs);
        let (first_block, last_block) = share(blocks, runs, self.index % runs);
        let count = last - first;
        let row = inputs.next_multiple_of(S::LANES);
        let tile_stride = PRODUCTS * row + GAP;
        let product_stride = count * BLOCK + GAP;

        let mut scratch = SCRATCH.take();
        let needed = count * tile_stride + PRODUCTS * product_stride;
        if scratch.len() < needed {
            scratch = Aligned::zeros(needed);
        }
        let (transformed, products) = scratch[..needed].split_at_mut(count * tile_stride);
        for (n, to) in transformed.chunks_exact_mut(tile_stride).enumerate() {
            transform_input(simd, self.plan, first + n, row, to);
        }
        let weights_end = PRODUCTS * inputs * packed_width(outputs.min(last_block * BLOCK));
        for block in first_block..last_block {
            let rest = outputs - block * BLOCK;
            let channels = rest.min(BLOCK);
            let width = packed_width(channels);
            let weights = &work.weights[PRODUCTS * inputs * BLOCK * block..weights_end];
            for product in 0..PRODUCTS {
                let (weights, behind) = weights[product * inputs * width..].split_at(inputs * width);
                let next = &behind[..behind.len().min(inputs * width)];
                let results = Results { start: product * product_stride, ..Results::sums(products, count) };
                let product = Product {
                    input: transformed,
                    start: product * row,
                    stride: tile_stride,
                    rows: count,
                    depth: inputs,
                    inputs: 0..inputs,
                    columns: Columns { weights, next, others: [0; 2], comes_late: tiles <= FEW_ROWS },
                    channels,
                    later: &[],
                };
                // SAFETY: the products are this task's own.
                unsafe { product.run(work.level, results) };
            }
            // SAFETY: tasks have disjoint tiles or disjoint blocks, and blocks begin at multiples of 16 channels.
            unsafe { self.finish(simd, products, product_stride, first..last, block * BLOCK, channels) };
        }
        SCRATCH.set(scratch);
    }
}

/// Writes `Bᵀ d B` of a tile: 16 rows of channels.
#[inline(always)]
fn transform_input<S: Simd>(simd: S, plan: &Plan, index: usize, row: usize, to: &mut [f32]) {
    let work = plan.work;
    let view = work.input_view;
    let (grid, planes) = (plan.grid, work.output_view.size[0]);
    let (plane, place) = (index / (grid[0] * grid[1]), index % (grid[0] * grid[1]));
    let (sample, z) = (plane / planes, plane % planes);
    let taps = &work.convolution.passes[0].taps;
    let at = [2 * (place / grid[1]) as isize + taps[1][0], 2 * (place % grid[1]) as isize + taps[2][0]];
    let channels = view.channels;
    let mut rows = [&ZEROS[..channels]; PRODUCTS];
    for (n, from) in rows.iter_mut().enumerate() {
        let (y, x) = ((at[0] + (n / 4) as isize) as usize, (at[1] + (n % 4) as isize) as usize);
        if z < view.size[0] && y < view.size[1] && x < view.size[2] {
            *from = &work.input[view.index(sample, [z, y, x], 0)..][..channels];
        }
    }
    assert!(to.len() >= PRODUCTS * row && row >= channels && row.is_multiple_of(S::LANES));
    for channel in (0..channels).step_by(S::LANES) {
        let mut d = [simd.splat(0.0); PRODUCTS];
        if channels - channel >= S::LANES {
            for n in 0..PRODUCTS {
                // SAFETY: each row has `channels` elements, of which LANES follow.
                d[n] = unsafe { simd.load_pointer(rows[n].as_ptr().add(channel)) };
            }
        } else {
            for n in 0..PRODUCTS {
                d[n] = simd.load_partial(&rows[n][channel..]);
            }
        }
        for x in 0..4 {
            let [a, b, c, e] = [d[x], d[4 + x], d[8 + x], d[12 + x]];
            d[x] = simd.subtract(a, c);
            d[4 + x] = simd.add(b, c);
            d[8 + x] = simd.subtract(c, b);
            d[12 + x] = simd.subtract(b, e);
        }
        for y in 0..4 {
            let [a, b, c, e] = [d[4 * y], d[4 * y + 1], d[4 * y + 2], d[4 * y + 3]];
            let row_of = [simd.subtract(a, c), simd.add(b, c), simd.subtract(c, b), simd.subtract(b, e)];
            for x in 0..4 {
                // SAFETY: `to` has 16 rows of `row` elements, a multiple of LANES that is not below `channels`, and channel is a
                // multiple of LANES below `channels`.
                unsafe { simd.store_pointer(row_of[x], to.as_mut_ptr().add((4 * y + x) * row + channel)) };
            }
        }
    }
}

impl Task<'_> {
    /// Computes `Aᵀ m A` of each tile and finishes its pixels.
    ///
    /// # Safety
    /// No other thread may be at work on these channels of these tiles, and `channel` must be a multiple of 16.
    #[inline(always)]
    unsafe fn finish<S: Simd>(
        &self,
        simd: S,
        products: &[f32],
        product_stride: usize,
        tiles: std::ops::Range<usize>,
        channel: usize,
        channels: usize,
    ) {
        let Plan { work, grid, .. } = *self.plan;
        let size = work.output_view.size;
        let mut sums = OnLine([[0.0; BLOCK]; MOST_PIXELS]);
        let mut pixels = [0; MOST_PIXELS];
        let mut filled = 0;
        assert!(products.len() >= (PRODUCTS - 1) * product_stride + tiles.len() * BLOCK);
        for (n, index) in tiles.enumerate() {
            let (plane, place) = (index / (grid[0] * grid[1]), index % (grid[0] * grid[1]));
            let (y, x) = (2 * (place / grid[1]), 2 * (place % grid[1]));
            let inside = [true, x + 1 < size[2], y + 1 < size[1], x + 1 < size[2] && y + 1 < size[1]];
            for lane in (0..channels).step_by(S::LANES) {
                let mut columns = [[simd.splat(0.0); 4]; 2];
                for x in 0..4 {
                    let mut m = [simd.splat(0.0); 4];
                    for y in 0..4 {
                        let at = (4 * y + x) * product_stride + n * BLOCK + lane;
                        // SAFETY: by the assertion above, since lane + LANES <= BLOCK.
                        m[y] = unsafe { simd.load_pointer(products.as_ptr().add(at)) };
                    }
                    columns[0][x] = simd.add(simd.add(m[0], m[1]), m[2]);
                    columns[1][x] = simd.subtract(simd.subtract(m[1], m[2]), m[3]);
                }
                let mut place = filled;
                for y in 0..2 {
                    let [a, b, c, e] = columns[y];
                    let values = [simd.add(simd.add(a, b), c), simd.subtract(simd.subtract(b, c), e)];
                    for x in 0..2 {
                        if inside[2 * y + x] {
                            simd.store(values[x], &mut sums.0[place][lane..]);
                            place += 1;
                        }
                    }
                }
            }
            for (n, _) in inside.iter().enumerate().filter(|(_, inside)| **inside) {
                pixels[filled] = (plane * size[1] + y + n / 2) * size[2] + x + n % 2;
                filled += 1;
            }
            if filled + 4 > MOST_PIXELS {
                // SAFETY: passed on.
                unsafe {
                    work.finish.tile(simd, &sums.0, &pixels[..filled], channel, channels);
                    work.finish.go_on(Pixels::List(&pixels[..filled]), channel, channels);
                }
                filled = 0;
            }
        }
        // SAFETY: passed on.
        unsafe {
            work.finish.tile(simd, &sums.0, &pixels[..filled], channel, channels);
            work.finish.go_on(Pixels::List(&pixels[..filled]), channel, channels);
        }
    }
}
