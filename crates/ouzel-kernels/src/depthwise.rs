//! Depthwise convolution: each channel by itself, vectors of channels at once.

use crate::convolution::{Pass, Work};
use crate::level::Kernel;
use crate::setting::Pixels;
use crate::tile::{BLOCK, COLUMN, ZEROS};
use crate::vector::Simd;
use rayon::prelude::*;

/// Most output pixels that are computed at once, so that each weight is loaded once for all of them.
const MOST_PIXELS: usize = 4;

/// Most input pixels that these reach in a row: with two steps from one to the next and five taps.
const MOST_REACHED: usize = 2 * MOST_PIXELS + 3;

/// Products, in vectors, below which a task is not worth sharing out.
const LEAST_WORK: usize = 20_000;

/// Runs all passes of a depthwise convolution.
pub(crate) fn run(work: &Work) {
    let rows = |pass: &Pass| {
        let counts = work.counts(pass);
        work.output_view.batch * counts[0] * counts[1]
    };
    for pass in &work.convolution.passes {
        let taps: usize = pass.taps.iter().map(|taps| taps.len()).product();
        let row = work.counts(pass)[2] * work.convolution.output_channels.div_ceil(16) * (taps + 2);
        let rows = rows(pass);
        let task = (rows / (4 * work.threads)).clamp(1, LEAST_WORK.div_ceil(row.max(1)).max(1));
        let run = |index: usize| {
            let (first, last) = (index * task, rows.min((index + 1) * task));
            work.level.run(Rows { work, pass, first, last });
        };
        let tasks = rows.div_ceil(task);
        match tasks {
            0 | 1 => (0..tasks).for_each(run),
            _ => (0..tasks).into_par_iter().with_max_len(1).for_each(run),
        }
    }
}

/// Some rows of output pixels of a pass, counted over all samples.
struct Rows<'a> {
    work: &'a Work<'a>,
    pass: &'a Pass,
    first: usize,
    last: usize,
}

/// Pixels of one row next to each other.
struct Tile {
    /// Where the first channel of tap offset zero of the first pixel lies or would lie, wrapping around.
    base: usize,
    /// Position of the first pixel's tap offset zero on the last axis.
    at: isize,
    /// First output pixel.
    output: usize,
}

impl Rows<'_> {
    /// The taps that are inside on the first two axes at some position.
    fn taps_of_row(&self, at: [isize; 2], taps: &mut Vec<Tap>) {
        let Rows { work, pass, .. } = self;
        let (size, steps) = (work.input_view.size, work.steps());
        let channels = work.convolution.output_channels;
        let all: usize = pass.taps.iter().map(|taps| taps.len()).product();
        assert!(work.weights.len() >= pass.weights + all * channels, "invariant: weights for each tap");
        taps.clear();
        let mut weights = pass.weights;
        for z in &pass.taps[0] {
            for y in &pass.taps[1] {
                let inside = ((at[0] + z) as usize) < size[0] && ((at[1] + y) as usize) < size[1];
                for x in &pass.taps[2] {
                    if inside {
                        let shift = (*z as usize)
                            .wrapping_mul(steps[0])
                            .wrapping_add((*y as usize).wrapping_mul(steps[1]))
                            .wrapping_add((*x as usize).wrapping_mul(steps[2]));
                        taps.push(Tap { shift, x: *x, weights });
                    }
                    weights += channels;
                }
            }
        }
    }
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Rows { work, pass, first, last } = self;
        let convolution = work.convolution;
        let counts = work.counts(pass);
        let (input_step, output_step) = (convolution.input_step, convolution.output_step);
        let view = work.input_view;
        let steps = work.steps();
        let tiles = counts[2].div_ceil(MOST_PIXELS);
        let mut taps = Vec::new();
        for row in first..last {
            let (plane, y) = (row / counts[1], row % counts[1]);
            let (sample, z) = (plane / counts[0], plane % counts[0]);
            let to = [pass.start[0] + z * output_step[0], pass.start[1] + y * output_step[1]];
            let size = work.output_view.size;
            let output_row = ((sample * size[0] + to[0]) * size[1] + to[1]) * size[2] + pass.start[2];
            let at = [z * input_step[0], y * input_step[1]];
            self.taps_of_row(at.map(|at| at as isize), &mut taps);
            let row_base = sample
                .wrapping_mul(view.size[0].wrapping_mul(steps[0]))
                .wrapping_add(at[0].wrapping_mul(steps[0]))
                .wrapping_add(at[1].wrapping_mul(steps[1]))
                .wrapping_add(view.channel_offset);
            // All tiles of a row differ by at most one pixel in size.
            for n in 0..tiles {
                let (x, end) = (counts[2] * n / tiles, counts[2] * (n + 1) / tiles);
                let at = x * input_step[2];
                let base = row_base.wrapping_add(at.wrapping_mul(steps[2]));
                let tile = Tile { base, at: at as isize, output: output_row + x * output_step[2] };
                match end - x {
                    1 => pixels::<S, 1>(simd, work, pass, &taps, &tile),
                    2 => pixels::<S, 2>(simd, work, pass, &taps, &tile),
                    3 => pixels::<S, 3>(simd, work, pass, &taps, &tile),
                    4 => pixels::<S, 4>(simd, work, pass, &taps, &tile),
                    _ => unreachable!("a tile of this level has fewer pixels"),
                }
            }
            let pixels = Pixels::Row { first: output_row, step: output_step[2], count: counts[2] };
            // SAFETY: each row belongs to one task, which does all channels.
            unsafe { work.finish.go_on(pixels, 0, convolution.output_channels) };
        }
    }
}

/// A tap that is inside on the first two axes for all pixels of a row.
#[derive(Clone, Copy)]
struct Tap {
    /// What it adds to the place of tap offset zero.
    shift: usize,
    /// Its offset on the last axis.
    x: isize,
    /// Where its weights begin.
    weights: usize,
}

/// Computes all channels of P pixels. `taps` are those that are inside on the first two axes.
#[inline(always)]
fn pixels<S: Simd, const P: usize>(simd: S, work: &Work, pass: &Pass, taps: &[Tap], tile: &Tile) {
    let size = work.input_view.size[2] as isize;
    let last = tile.at + ((P - 1) * work.convolution.input_step[2]) as isize;
    let inside = match (pass.taps[2].first(), pass.taps[2].last()) {
        (Some(low), Some(high)) => tile.at + low >= 0 && last + high < size,
        _ => true,
    };
    let channels = work.convolution.output_channels;
    let places: [usize; P] = std::array::from_fn(|p| tile.output + p * work.convolution.output_step[2]);
    let mut sums = [[0.0; BLOCK]; P];
    let mut channel = 0;
    if !S::PORTABLE {
        let follow_each_other = pass.taps[2].is_sorted_by(|a, b| a + 1 == *b);
        let taps_of_row = if follow_each_other { pass.taps[2].len() } else { 0 };
        let kind = (taps_of_row, work.convolution.input_step[2], !inside);
        while channel + COLUMN <= channels {
            let width = if channels - channel >= BLOCK { BLOCK } else { COLUMN };
            for part in (0..width).step_by(S::LANES) {
                let at = channel + part;
                // SAFETY: the taps are inside on the first two axes, and there are LANES more channels. Either all pixels are inside on the
                // last axis or each is asked.
                let acc = unsafe {
                    match kind {
                        (1, 1, _) => along::<S, P, 1, 1, true>(simd, work, taps, tile, at),
                        (2, 1, _) => along::<S, P, 2, 1, true>(simd, work, taps, tile, at),
                        (3, 1, false) => along::<S, P, 3, 1, false>(simd, work, taps, tile, at),
                        (3, 1, true) => along::<S, P, 3, 1, true>(simd, work, taps, tile, at),
                        (3, 2, false) => along::<S, P, 3, 2, false>(simd, work, taps, tile, at),
                        (3, 2, true) => along::<S, P, 3, 2, true>(simd, work, taps, tile, at),
                        (5, 1, false) => along::<S, P, 5, 1, false>(simd, work, taps, tile, at),
                        (5, 1, true) => along::<S, P, 5, 1, true>(simd, work, taps, tile, at),
                        (5, 2, _) => along::<S, P, 5, 2, true>(simd, work, taps, tile, at),
                        (7, 1, false) => along::<S, P, 7, 1, false>(simd, work, taps, tile, at),
                        (7, 1, true) => along::<S, P, 7, 1, true>(simd, work, taps, tile, at),
                        _ => anywhere::<S, P, true>(simd, work, taps, tile, at),
                    }
                };
                for (sums, acc) in sums.iter_mut().zip(acc) {
                    simd.store(acc, &mut sums[part..]);
                }
            }
            // SAFETY: each output pixel belongs to one row of one pass, each row to one task, and a task does all channels.
            unsafe { work.finish.tile(simd, &sums, &places, channel, width) };
            channel += width;
        }
    }
    while channel < channels {
        let count = S::LANES.min(channels - channel);
        let acc = match count == S::LANES {
            true => anywhere::<S, P, true>(simd, work, taps, tile, channel),
            false => anywhere::<S, P, false>(simd, work, taps, tile, channel),
        };
        for (acc, place) in acc.into_iter().zip(places) {
            // SAFETY: as above.
            unsafe { work.finish.vector(simd, acc, place, channel, count) };
        }
        channel += count;
    }
}

/// Adds up one vector of channels of P pixels, STEP input pixels from one to the next, whose taps, K in a row, lie next to each other:
/// each input is loaded once for all taps that reach it. EDGE says that some may be outside on the last axis.
///
/// # Safety
/// The taps must be inside on the first two axes, and unless EDGE those of all P pixels on the last; and the channels must exist.
#[inline(always)]
unsafe fn along<S: Simd, const P: usize, const K: usize, const STEP: usize, const EDGE: bool>(
    simd: S,
    work: &Work,
    taps: &[Tap],
    tile: &Tile,
    channel: usize,
) -> [S::Floats; P] {
    let channels = work.convolution.output_channels;
    assert!(channel + S::LANES <= channels, "invariant: existing channels");
    let (size, pixel_step) = (work.input_view.size[2], work.steps()[2]);
    let input = work.input.as_ptr().wrapping_add(tile.base).wrapping_add(channel);
    let weights = work.weights.as_ptr().wrapping_add(channel);
    let mut acc = [simd.splat(0.0); P];
    for row in taps.chunks_exact(K) {
        let from = input.wrapping_add(row[0].shift);
        let mut x = [simd.splat(0.0); MOST_REACHED];
        for (place, x) in x.iter_mut().enumerate().take((P - 1) * STEP + K) {
            let mut from = from.wrapping_add(place.wrapping_mul(pixel_step));
            if EDGE && (tile.at + row[0].x + place as isize) as usize >= size {
                from = ZEROS.as_ptr();
            }
            // SAFETY: the position is inside on the first two axes, and on the last, as was just checked or the caller promises, so that
            // this is a pixel of the view, which lies within the input with all its channels; or it is one of the zeros.
            *x = unsafe { simd.load_pointer(from) };
        }
        for k in 0..K {
            // SAFETY: `taps_of_row` has found the weights of all channels of the taps, and these channels exist.
            let w = unsafe { simd.load_pointer(weights.wrapping_add(row[0].weights + k * channels)) };
            for p in 0..P {
                acc[p] = simd.multiply_add(x[p * STEP + k], w, acc[p]);
            }
        }
    }
    acc
}

/// Adds up one vector of channels of P pixels, wherever their taps are. WHOLE says that no channel of the vector is absent.
#[inline(always)]
fn anywhere<S: Simd, const P: usize, const WHOLE: bool>(
    simd: S,
    work: &Work,
    taps: &[Tap],
    tile: &Tile,
    channel: usize,
) -> [S::Floats; P] {
    let view = work.input_view;
    let input_step = work.convolution.input_step[2];
    let pixel_step = input_step.wrapping_mul(work.steps()[2]);
    let count = S::LANES.min(work.convolution.output_channels - channel);
    assert!(!WHOLE || count == S::LANES, "invariant: a whole vector of channels");
    let mut sums = [simd.splat(0.0); P];
    for tap in taps {
        let weights = &work.weights[tap.weights + channel..][..count];
        let w = if WHOLE { simd.load(weights) } else { simd.load_partial(weights) };
        let row = tile.base.wrapping_add(tap.shift).wrapping_add(channel);
        for p in 0..P {
            if ((tile.at + (p * input_step) as isize + tap.x) as usize) < view.size[2] {
                let values = &work.input[row.wrapping_add(p.wrapping_mul(pixel_step))..][..count];
                let value = if WHOLE { simd.load(values) } else { simd.load_partial(values) };
                sums[p] = simd.multiply_add(value, w, sums[p]);
            }
        }
    }
    sums
}
