//! Depthwise convolution: each channel by itself, vectors of channels at once.

use crate::convolution::{Pass, Work};
use crate::level::Kernel;
use crate::tile::{BLOCK, HALF_BLOCK};
use crate::vector::Simd;
use rayon::prelude::*;

/// Most output pixels that are computed at once, so that each weight is loaded once for all of them.
const TILE: usize = 8;

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
    /// Position of the first pixel's tap offset zero.
    at: [isize; 3],
    /// First output pixel.
    output: usize,
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
        for row in first..last {
            let (plane, y) = (row / counts[1], row % counts[1]);
            let (sample, z) = (plane / counts[0], plane % counts[0]);
            let to = [pass.start[0] + z * output_step[0], pass.start[1] + y * output_step[1]];
            let size = work.output_view.size;
            let output_row = ((sample * size[0] + to[0]) * size[1] + to[1]) * size[2] + pass.start[2];
            let mut x = 0;
            while x < counts[2] {
                let at = [z * input_step[0], y * input_step[1], x * input_step[2]];
                let base = sample
                    .wrapping_mul(view.size[0].wrapping_mul(steps[0]))
                    .wrapping_add(at[0].wrapping_mul(steps[0]))
                    .wrapping_add(at[1].wrapping_mul(steps[1]))
                    .wrapping_add(at[2].wrapping_mul(steps[2]))
                    .wrapping_add(view.channel_offset);
                let tile =
                    Tile { base, at: at.map(|at| at as isize), output: output_row + x * output_step[2] };
                let rest = counts[2] - x;
                if S::LANES == 16 && rest >= TILE {
                    pixels::<S, TILE>(simd, work, pass, &tile);
                    x += TILE;
                } else if rest >= TILE / 2 {
                    pixels::<S, { TILE / 2 }>(simd, work, pass, &tile);
                    x += TILE / 2;
                } else {
                    pixels::<S, 1>(simd, work, pass, &tile);
                    x += 1;
                }
            }
        }
    }
}

/// Computes all channels of P pixels.
#[inline(always)]
fn pixels<S: Simd, const P: usize>(simd: S, work: &Work, pass: &Pass, tile: &Tile) {
    let taps = &pass.taps[2];
    let size = work.input_view.size[2] as isize;
    let last = tile.at[2] + ((P - 1) * work.convolution.input_step[2]) as isize;
    let inside = match (taps.first(), taps.last()) {
        (Some(low), Some(high)) => tile.at[2] + low >= 0 && last + high < size,
        _ => true,
    };
    let channels = work.convolution.output_channels;
    let mut channel = 0;
    if inside && !S::PORTABLE {
        while channel + HALF_BLOCK <= channels {
            let width = if channels - channel >= BLOCK { BLOCK } else { HALF_BLOCK };
            // SAFETY: all pixels are inside on the last axis, and there are `width` more channels.
            unsafe {
                match (S::LANES, width) {
                    (16, BLOCK) => block::<S, P, 2>(simd, work, pass, tile, channel, BLOCK),
                    (16, _) => block::<S, P, 1>(simd, work, pass, tile, channel, HALF_BLOCK),
                    (_, width) => block::<S, P, 2>(simd, work, pass, tile, channel, width),
                }
            }
            channel += width;
        }
    }
    while channel + S::LANES <= channels {
        vector::<S, P, true>(simd, work, pass, tile, channel);
        channel += S::LANES;
    }
    if channel < channels {
        vector::<S, P, false>(simd, work, pass, tile, channel);
    }
}

/// Computes `width` channels of P pixels that are inside on the last axis, N vectors at a time.
///
/// # Safety
/// All taps of all P pixels must be inside on the last axis, and the channels must exist.
#[inline(always)]
unsafe fn block<S: Simd, const P: usize, const N: usize>(
    simd: S,
    work: &Work,
    pass: &Pass,
    tile: &Tile,
    channel: usize,
    width: usize,
) {
    let view = work.input_view;
    let steps = work.steps();
    let channels = work.convolution.output_channels;
    let taps = [&pass.taps[0][..], &pass.taps[1][..], &pass.taps[2][..]];
    let all: usize = taps.iter().map(|taps| taps.len()).product();
    assert!(channel + width <= channels, "invariant: existing channels");
    assert!(work.weights.len() >= pass.weights + all * channels, "invariant: weights for each tap");
    let pixel_step = work.convolution.input_step[2].wrapping_mul(steps[2]);
    let input = work.input.as_ptr().wrapping_add(tile.base);
    let mut sums = [[0.0; BLOCK]; P];
    let mut part = 0;
    while part < width {
        let mut acc = [[simd.splat(0.0); N]; P];
        let mut weight = work.weights.as_ptr().wrapping_add(pass.weights + channel + part);
        for z in taps[0] {
            for y in taps[1] {
                if ((tile.at[0] + z) as usize) >= view.size[0] || ((tile.at[1] + y) as usize) >= view.size[1]
                {
                    weight = weight.wrapping_add(taps[2].len() * channels);
                    continue;
                }
                let row = input
                    .wrapping_add((*z as usize).wrapping_mul(steps[0]))
                    .wrapping_add((*y as usize).wrapping_mul(steps[1]))
                    .wrapping_add(channel + part);
                for x in taps[2] {
                    let mut from = row.wrapping_add((*x as usize).wrapping_mul(steps[2]));
                    let mut w = [simd.splat(0.0); N];
                    for n in 0..N {
                        // SAFETY: the tap is one of `all`, whose weights the assertion has found, and the channels exist.
                        w[n] = unsafe { simd.load_pointer(weight.wrapping_add(n * S::LANES)) };
                    }
                    for p in 0..P {
                        for n in 0..N {
                            // SAFETY: the position is inside on the first two axes, as was checked, and on the last, as the caller
                            // promises, so that this is a pixel of the view, which lies within the input with all its channels.
                            let value = unsafe { simd.load_pointer(from.wrapping_add(n * S::LANES)) };
                            acc[p][n] = simd.multiply_add(value, w[n], acc[p][n]);
                        }
                        from = from.wrapping_add(pixel_step);
                    }
                    weight = weight.wrapping_add(channels);
                }
            }
        }
        for p in 0..P {
            for n in 0..N {
                simd.store(acc[p][n], &mut sums[p][part + n * S::LANES..]);
            }
        }
        part += N * S::LANES;
    }
    let mut pixels = [tile.output; P];
    for (p, pixel) in pixels.iter_mut().enumerate() {
        *pixel += p * work.convolution.output_step[2];
    }
    // SAFETY: each output pixel belongs to one row of one pass, each row to one task, and a task does all channels.
    unsafe { work.finish.tile(simd, &sums, &pixels, channel, width) };
}

/// Computes one vector of channels of P pixels, each one chain of multiply-adds over the taps that are not in the padding.
#[inline(always)]
fn vector<S: Simd, const P: usize, const WHOLE: bool>(
    simd: S,
    work: &Work,
    pass: &Pass,
    tile: &Tile,
    channel: usize,
) {
    let view = work.input_view;
    let steps = work.steps();
    let channels = work.convolution.output_channels;
    let pixel_step = work.convolution.input_step[2].wrapping_mul(steps[2]);
    let count = S::LANES.min(channels - channel);
    assert!(!WHOLE || count == S::LANES, "invariant: a whole vector of channels");
    let mut sums = [simd.splat(0.0); P];
    let mut weight = pass.weights + channel;
    for z in &pass.taps[0] {
        for y in &pass.taps[1] {
            let inside_plane =
                ((tile.at[0] + z) as usize) < view.size[0] && ((tile.at[1] + y) as usize) < view.size[1];
            if !inside_plane {
                weight += pass.taps[2].len() * channels;
                continue;
            }
            for x in &pass.taps[2] {
                let w = match WHOLE {
                    true => simd.load(&work.weights[weight..]),
                    false => simd.load_partial(&work.weights[weight..weight + count]),
                };
                weight += channels;
                let from = tile
                    .base
                    .wrapping_add((*z as usize).wrapping_mul(steps[0]))
                    .wrapping_add((*y as usize).wrapping_mul(steps[1]))
                    .wrapping_add((*x as usize).wrapping_mul(steps[2]))
                    .wrapping_add(channel);
                for p in 0..P {
                    let at = tile.at[2] + (p * work.convolution.input_step[2]) as isize + x;
                    if (at as usize) < view.size[2] {
                        let from = from.wrapping_add(p.wrapping_mul(pixel_step));
                        let value = match WHOLE {
                            true => simd.load(&work.input[from..from + count]),
                            false => simd.load_partial(&work.input[from..from + count]),
                        };
                        sums[p] = simd.multiply_add(value, w, sums[p]);
                    }
                }
            }
        }
    }
    for (p, sum) in sums.iter().enumerate() {
        let pixel = tile.output + p * work.convolution.output_step[2];
        // SAFETY: each output pixel belongs to one row of one pass, each row to one task, and a task does all channels.
        unsafe { work.finish.vector(simd, *sum, pixel, channel, count) };
    }
}
