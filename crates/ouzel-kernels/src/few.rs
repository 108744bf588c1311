//! Convolution to very few channels, such as the gradient of a picture: each input pixel is multiplied with the weights of all taps at
//! once, as in a 1×1 convolution to many channels, and each output pixel gathers what is its own.

use crate::aligned::Aligned;
use crate::amx::{self, Amx, Bands, STEP, Step};
use crate::convolution::{ConvolutionShape, Pass, Work};
use crate::crew::share_out;
use crate::level::Kernel;
use crate::setting::Pixels;
use crate::tile::{Asked, BLOCK, Columns, Product, Results, packed_width};
use crate::vector::Simd;
use crate::view::View;
use std::cell::Cell;
use std::slice::ChunksExactMut;

/// Most output channels that are few.
pub(crate) const MOST_OUTPUTS: usize = 4;

/// Input channels below which this is not worth it.
const LEAST_INPUTS: usize = 16;

/// Multiply-adds of a block of channels below which a task is not worth sharing out.
const LEAST_WORK: usize = 20_000;

/// Least pixels of a row for the matrix unit.
const LEAST_FOR_AMX: usize = 48;

/// Whether a convolution, or the gradient of one, is better done in this way. Input positions must follow each other one by one.
pub(crate) fn suits(shape: &ConvolutionShape, inputs: usize, outputs: usize, is_gradient: bool) -> bool {
    shape.groups == 1
        && outputs <= MOST_OUTPUTS
        && inputs >= LEAST_INPUTS
        && shape.taps() > 1
        && (shape.kernel[0], shape.stride[0], shape.padding[0]) == (1, 1, 0)
        && (is_gradient || shape.stride == [1; 3])
}

/// Which lane of which block holds a tap and output: those of one tap are together.
pub(crate) fn lane(tap: usize, output: usize, outputs: usize) -> usize {
    let taps = BLOCK / outputs;
    tap / taps * BLOCK + tap % taps * outputs + output
}

/// How many lanes all taps take.
pub(crate) fn lanes(taps: usize, outputs: usize) -> usize {
    lane(taps - 1, outputs - 1, outputs) + 1
}

/// How many floats the packed weights take: those of a 1×1 convolution.
pub(crate) fn weights_len(taps: usize, inputs: usize, outputs: usize) -> usize {
    packed_width(lanes(taps, outputs)) * inputs
}

/// For each tap of an axis, how far its output lies from the first output of an input position: input position i reaches the output
/// `i * step + offset`.
pub(crate) fn offsets(shape: &ConvolutionShape, axis: usize, is_gradient: bool) -> Vec<isize> {
    let distance = |tap: usize| (tap * shape.dilation[axis]) as isize - shape.padding[axis] as isize;
    (0..shape.kernel[axis]).map(|tap| if is_gradient { distance(tap) } else { -distance(tap) }).collect()
}

/// Runs the only pass of such a convolution.
pub(crate) fn run(work: &Work) {
    let (view, pass) = (work.output_view, &work.convolution.passes[0]);
    let rows = view.batch * view.size[0] * view.size[1];
    let taps = pass.taps[1].len() * pass.taps[2].len();
    let row = view.size[2].saturating_mul(taps * work.convolution.input_channels);
    // Neighbouring tasks compute the products of some rows both, so they should not be too small.
    let rows_per_task = rows.div_ceil(2 * work.threads).max(LEAST_WORK.div_ceil(row.max(1))).max(1);
    let tasks = rows.div_ceil(rows_per_task);
    let run = |task: usize| {
        let (first, last) = (task * rows_per_task, rows.min((task + 1) * rows_per_task));
        work.level.run(Rows { work, pass, first, last });
    };
    share_out(tasks, run);
}

thread_local! {
    /// Products and sums of a thread; what they hold between tasks does not matter.
    static SCRATCH: Cell<Aligned> = Cell::default();
}

/// Some rows of output pixels, counted over all samples.
struct Rows<'a> {
    work: &'a Work<'a>,
    pass: &'a Pass,
    first: usize,
    last: usize,
}

/// A tap that reaches the outputs of one phase of a row.
#[derive(Clone, Copy)]
struct Tap {
    /// Where its products with the input position 0 begin, wrapping around.
    products: usize,
    /// The input position that it joins to the first output of the phase.
    shift: isize,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Rows { work, pass, first, last } = self;
        let convolution = work.convolution;
        let outputs = convolution.output_channels;
        let (from, to) = (work.input_view.size, work.output_view.size);
        let [_, step_y, step_x] = convolution.output_step.map(|step| step as isize);
        let (taps_y, taps_x) = (&pass.taps[1], &pass.taps[2]);
        let lanes = lanes(taps_y.len() * taps_x.len(), outputs);
        let least = taps_y.iter().copied().min().unwrap_or(0);
        let most = taps_y.iter().copied().max().unwrap_or(0);
        // The products of as many rows as one output row is gathered from, each block by itself, with room behind for what is read
        // with the last lanes.
        let ring = ((most - least) / step_y) as usize + 1;
        let unit = MatrixUnit::new(work, lanes);
        let block_len = (from[2] + 1).next_multiple_of(amx::ROWS) * BLOCK;
        let row_len = lanes.div_ceil(BLOCK) * block_len;
        let sums_len = to[2] * outputs;
        let mut scratch = SCRATCH.take();
        let needed = ring * row_len + sums_len + unit.as_ref().map_or(0, MatrixUnit::scratch);
        if scratch.len() < needed {
            scratch = Aligned::zeros(needed);
        }
        let (products, rest) = scratch[..needed].split_at_mut(ring * row_len);
        let (sums, rest) = rest.split_at_mut(sums_len);
        let mut taps = Vec::with_capacity(taps_y.len() * taps_x.len());
        let mut next = 0;
        for row in first..last {
            let (plane, y) = (row / to[1], (row % to[1]) as isize);
            // Planes of the output that have none of the input stay zero.
            let (sample, z) = (plane / to[0], plane % to[0]);
            let rows = if z < from[0] { from[1] as isize } else { 0 };
            if row == first || y == 0 {
                next = ceil(y - most, step_y).max(0);
            }
            let end = ((y - least).div_euclid(step_y) + 1).min(rows);
            while next < end {
                let from_row = (sample * from[0] + z) * from[1] + next as usize;
                let slot = next as usize % ring * row_len;
                let products = products[slot..][..row_len].chunks_exact_mut(block_len);
                match &unit {
                    Some(unit) => unit.multiply(work, from_row, lanes, products, rest),
                    None => multiply(work, from_row, lanes, products),
                }
                next += 1;
            }
            for phase in 0..step_x.min(to[2] as isize) {
                taps.clear();
                for (index_y, offset_y) in taps_y.iter().enumerate() {
                    let (at_y, rest) = ((y - offset_y).div_euclid(step_y), (y - offset_y).rem_euclid(step_y));
                    if rest != 0 || at_y < 0 || at_y >= rows {
                        continue;
                    }
                    for (index_x, offset_x) in taps_x.iter().enumerate() {
                        if (phase - offset_x).rem_euclid(step_x) == 0 {
                            let shift = (phase - offset_x).div_euclid(step_x);
                            let lane = lane(index_y * taps_x.len() + index_x, 0, outputs);
                            let start =
                                at_y as usize % ring * row_len + lane / BLOCK * block_len + lane % BLOCK;
                            taps.push(Tap {
                                products: start.wrapping_add((shift as usize).wrapping_mul(BLOCK)),
                                shift,
                            });
                        }
                    }
                }
                // Places that all taps have an input for, and those beside them.
                let places = (to[2] - phase as usize).div_ceil(step_x as usize) as isize;
                let shift = |tap: &Tap| tap.shift;
                let low = taps.iter().map(shift).min().map_or(0, |shift| -shift).clamp(0, places);
                let high = taps.iter().map(shift).max().map_or(0, |shift| from[2] as isize - shift);
                let high = high.clamp(low, places);
                let mut sum = |places: std::ops::Range<isize>, check: bool| {
                    for place in places {
                        let mut sum = [0.0; MOST_OUTPUTS];
                        for tap in &taps {
                            if !check || ((place + tap.shift) as usize) < from[2] {
                                let start = tap.products.wrapping_add(place as usize * BLOCK);
                                let terms: &[f32; MOST_OUTPUTS] = products[start..]
                                    .first_chunk()
                                    .expect("invariant: room behind the products");
                                for (sum, term) in sum.iter_mut().zip(terms) {
                                    *sum += term;
                                }
                            }
                        }
                        let x = phase as usize + place as usize * step_x as usize;
                        sums[x * outputs..(x + 1) * outputs].copy_from_slice(&sum[..outputs]);
                    }
                };
                sum(0..low, true);
                sum(low..high, false);
                sum(high..places, true);
            }
            // SAFETY: each row belongs to one task.
            unsafe {
                work.finish.pixels(simd, sums, row * to[2]);
                let pixels = Pixels::Row { first: row * to[2], step: 1, count: to[2] };
                work.finish.go_on(pixels, 0, outputs);
            }
        }
        SCRATCH.set(scratch);
    }
}

/// a / b, rounded up; b is positive.
#[inline(always)]
fn ceil(a: isize, b: isize) -> isize {
    (a + b - 1).div_euclid(b)
}

/// Where a row of input pixels begins.
fn start(view: &View, row: usize) -> usize {
    row * view.size[2] * view.pixel_stride + view.channel_offset
}

/// The products of a row of input pixels with all taps: for each block `[pixel][lane]`.
fn multiply(work: &Work, row: usize, lanes: usize, products: ChunksExactMut<f32>) {
    let (view, inputs) = (work.input_view, work.convolution.input_channels);
    let [begin, end] = [row + 1, row + 2].map(|row| start(view, row).min(work.input.len()));
    let next_row = &work.input[begin..end];
    let blocks = products.len();
    for (block, products) in products.enumerate() {
        let channels = BLOCK.min(lanes - block * BLOCK);
        let columns = &work.weights[block * BLOCK * inputs..][..packed_width(channels) * inputs];
        let product = Product {
            input: work.input,
            start: start(view, row),
            stride: view.pixel_stride,
            rows: view.size[2],
            depth: inputs,
            inputs: 0..inputs,
            columns: Columns { weights: columns, next: &[], others: [0; 2], comes_late: false },
            channels,
            later: &next_row[next_row.len() * block / blocks..next_row.len() * (block + 1) / blocks],
        };
        // SAFETY: the products are the caller's own.
        unsafe { product.run(work.level, Results::sums(products, view.size[2])) };
    }
}

/// `multiply` by the matrix unit.
struct MatrixUnit {
    amx: Amx,
    bands: Bands,
    steps: Vec<Step>,
}

impl MatrixUnit {
    /// It, if it is faster: its steps should be nearly full, there should be many pixels for each weight that it cuts, and several blocks
    /// for each pixel.
    fn new(work: &Work, lanes: usize) -> Option<MatrixUnit> {
        let (width, inputs) = (work.input_view.size[2], work.convolution.input_channels);
        let suits = amx::fills(inputs, STEP) && width >= LEAST_FOR_AMX && lanes > BLOCK;
        let amx = work.level.amx().filter(|_| suits)?;
        let bands = Bands::tiled(width, inputs);
        let steps = (0..inputs).step_by(STEP).enumerate();
        let steps = steps.map(|(number, first)| Step {
            rows: number * bands.strides.step,
            first,
            inputs: STEP.min(inputs - first),
        });
        Some(MatrixUnit { amx, bands, steps: steps.collect() })
    }

    /// Floats of scratch that are needed.
    fn scratch(&self) -> usize {
        amx::SCRATCH + self.bands.tiles() * self.steps.len() * self.bands.strides.step
    }

    fn multiply(
        &self,
        work: &Work,
        row: usize,
        lanes: usize,
        products: ChunksExactMut<f32>,
        scratch: &mut [f32],
    ) {
        let MatrixUnit { amx, bands, ref steps } = *self;
        let (view, inputs) = (work.input_view, work.convolution.input_channels);
        let (weights, cut) = scratch.split_at_mut(amx::SCRATCH);
        let height = bands.height();
        let tiles = cut.chunks_exact_mut(steps.len() * bands.strides.step);
        for (tile, first) in tiles.zip((0..view.size[2]).step_by(height)) {
            let rows = height.min(view.size[2] - first);
            let from = [start(view, row) + first * view.pixel_stride, view.pixel_stride];
            amx.cut_rows(work.input, from, [rows, inputs], tile, bands.strides);
        }
        let product = |block: usize| amx::Product {
            weights: block * BLOCK * inputs,
            channels: BLOCK.min(lanes - block * BLOCK),
        };
        let mut unit = amx::Products::new(amx, cut, bands, steps, (work.weights, inputs), weights);
        let blocks = products.len();
        for (block, products) in products.enumerate() {
            let next = (block + 1 < blocks).then(|| product(block + 1));
            unit.compute(product(block), next, Asked::default(), products);
        }
    }
}
