//! Depthwise convolution: each channel by itself, vectors of channels at once.

use crate::aligned::OnLine;
use crate::convolution::{Pass, Work};
use crate::crew::share_out;
use crate::level::Kernel;
use crate::setting::Pixels;
use crate::shared::Shared;
use crate::tile::{BLOCK, Bounds, COLUMN, ZEROS};
use crate::vector::Simd;
use crate::view::View;

/// Most output pixels of a row that are computed at once, so that each weight is loaded once for all of them.
const MOST_PIXELS: usize = 4;

/// Most input pixels that these reach in a row: with two steps from one to the next and five taps.
const MOST_REACHED: usize = 2 * MOST_PIXELS + 3;

/// Products, in vectors, after which a task should end, if others wait for work.
const WORK: usize = 20_000;

/// Rows that a task should have at least, because they go in pairs.
const LEAST_ROWS: usize = 6;

/// Runs all passes of a depthwise convolution.
pub(crate) fn run(work: &Work) {
    for pass in &work.convolution.passes {
        let counts = work.counts(pass);
        let rows = work.output_view.batch * counts[0] * counts[1];
        let taps: usize = pass.taps.iter().map(|taps| taps.len()).product();
        let row = counts[2] * work.convolution.output_channels.div_ceil(16) * (taps + 2);
        let most = WORK.div_ceil(row.max(1));
        let rows_per_task = (rows / (4 * work.threads)).min(most).max(LEAST_ROWS);
        // As many tasks for each thread.
        let tasks = (rows / rows_per_task).max(work.threads);
        let tasks = (tasks - tasks % work.threads).min(rows);
        let run = |task: usize| {
            let (first, last) = (rows * task / tasks, rows * (task + 1) / tasks);
            work.level.run(Rows { work, pass, first, last });
        };
        share_out(tasks, run);
    }
}

/// Some rows of output pixels of a pass, counted over all samples.
struct Rows<'a> {
    work: &'a Work<'a>,
    pass: &'a Pass,
    first: usize,
    last: usize,
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Rows { work, pass, first, last } = self;
        let height = work.counts(pass)[1];
        let (mut one, mut two) = (Vec::new(), Vec::new());
        // Two rows at once share the inputs that both reach, and their sums do not wait for each other; more taps need the registers.
        let taps = &pass.taps[2];
        let in_pairs =
            !S::PORTABLE && pass.has_whole_lines() && taps.len() <= 3 && work.convolution.input_step[2] == 1;
        let mut row = first;
        while row < last {
            if in_pairs && row + 1 < last && !(row + 1).is_multiple_of(height) {
                self.rows::<S, 2>(simd, row, &mut two);
                row += 2;
            } else {
                self.rows::<S, 1>(simd, row, &mut one);
                row += 1;
            }
        }
    }
}

/// A line of taps that is inside on the first two axes for all pixels of a row or more.
struct Line<const R: usize> {
    /// What it adds to the place of tap offset zero.
    shift: usize,
    /// Where the weights of its taps begin, for each output row that it is of use for.
    weights: [Option<usize>; R],
}

/// Pixels next to each other in R rows below each other.
struct Tile<'l, const R: usize> {
    /// The lines of taps that are inside for them.
    lines: &'l [Line<R>],
    /// Where the first channel of tap offset zero of the first pixel lies or would lie, wrapping around.
    base: usize,
    /// Position of the first pixel's tap offset zero on the last axis.
    at: isize,
    /// First output pixel of each row.
    output: [usize; R],
}

/// Where results go, and what happens to them on their way, if that is no more than bias and bounds.
type Direct<'a> = Option<(Shared<'a, f32>, View, Option<Bounds<'a>>)>;

impl Rows<'_> {
    /// Computes R rows from `row` on; `lines` is kept to be used again.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(&self, simd: S, row: usize, lines: &mut Vec<Line<R>>) {
        let Rows { work, pass, .. } = self;
        let convolution = work.convolution;
        let counts = work.counts(pass);
        let (input_step, output_step) = (convolution.input_step, convolution.output_step);
        let (view, steps) = (work.input_view, work.steps());
        let (plane, y) = (row / counts[1], row % counts[1]);
        let (sample, z) = (plane / counts[0], plane % counts[0]);
        let to = [pass.start[0] + z * output_step[0], pass.start[1] + y * output_step[1]];
        let size = work.output_view.size;
        let output: [usize; R] = std::array::from_fn(|row| {
            let line = (sample * size[0] + to[0]) * size[1] + to[1] + row * output_step[1];
            line * size[2] + pass.start[2]
        });
        let at = [z * input_step[0], y * input_step[1]];
        self.find_lines(at.map(|at| at as isize), lines);
        let row_base = sample
            .wrapping_mul(view.size[0].wrapping_mul(steps[0]))
            .wrapping_add(at[0].wrapping_mul(steps[0]))
            .wrapping_add(at[1].wrapping_mul(steps[1]))
            .wrapping_add(view.channel_offset);
        let direct = work.finish.direct(0, convolution.output_channels);
        // All tiles of a row differ by at most one pixel in size.
        let tiles = counts[2].div_ceil(MOST_PIXELS);
        for n in 0..tiles {
            let (x, end) = (counts[2] * n / tiles, counts[2] * (n + 1) / tiles);
            let at = x * input_step[2];
            let base = row_base.wrapping_add(at.wrapping_mul(steps[2]));
            let tile =
                Tile { lines, base, at: at as isize, output: output.map(|first| first + x * output_step[2]) };
            match end - x {
                1 => self.pixels::<S, R, 1>(simd, &tile, &direct),
                2 => self.pixels::<S, R, 2>(simd, &tile, &direct),
                3 => self.pixels::<S, R, 3>(simd, &tile, &direct),
                4 => self.pixels::<S, R, 4>(simd, &tile, &direct),
                _ => unreachable!("a tile of this level has fewer pixels"),
            }
        }
        for first in output {
            let pixels = Pixels::Row { first, step: output_step[2], count: counts[2] };
            // SAFETY: each row belongs to one task, which does all channels.
            unsafe { work.finish.go_on(pixels, 0, convolution.output_channels) };
        }
    }

    /// Finds the lines of taps that are inside on the first two axes for R output rows, the first of which has tap offset zero there.
    fn find_lines<const R: usize>(&self, at: [isize; 2], lines: &mut Vec<Line<R>>) {
        let Rows { work, pass, .. } = self;
        let (size, steps, channels) = (work.input_view.size, work.steps(), work.convolution.output_channels);
        let all: usize = pass.taps.iter().map(|taps| taps.len()).product();
        assert!(work.weights.len() >= pass.weights + all * channels, "invariant: weights for each tap");
        let [_, heights, widths] = pass.taps.each_ref().map(Vec::len);
        lines.clear();
        for (depth, z) in pass.taps[0].iter().enumerate() {
            let first = lines.len();
            for row in 0..R {
                for (height, y) in pass.taps[1].iter().enumerate() {
                    let y = y + (row * work.convolution.input_step[1]) as isize;
                    if (at[0] + z) as usize >= size[0] || (at[1] + y) as usize >= size[1] {
                        continue;
                    }
                    let shift = (*z as usize)
                        .wrapping_mul(steps[0])
                        .wrapping_add((y as usize).wrapping_mul(steps[1]));
                    let place = lines[first..].iter().position(|line| line.shift == shift);
                    let place = place.map_or(lines.len(), |place| first + place);
                    if place == lines.len() {
                        lines.push(Line { shift, weights: [None; R] });
                    }
                    let weights = pass.weights + (depth * heights + height) * widths * channels;
                    lines[place].weights[row] = Some(weights);
                }
            }
        }
    }

    /// Computes all channels of P pixels of each of R rows.
    #[inline(always)]
    fn pixels<S: Simd, const R: usize, const P: usize>(
        &self,
        simd: S,
        tile: &Tile<'_, R>,
        direct: &Direct<'_>,
    ) {
        let Rows { work, pass, .. } = self;
        let taps = &pass.taps[2];
        let size = work.input_view.size[2] as isize;
        let last = tile.at + ((P - 1) * work.convolution.input_step[2]) as isize;
        let inside = match (taps.first(), taps.last()) {
            (Some(low), Some(high)) => tile.at + low >= 0 && last + high < size,
            _ => true,
        };
        let channels = work.convolution.output_channels;
        let step = work.convolution.output_step[2];
        let places = tile.output.map(|first| std::array::from_fn::<usize, P, _>(|p| first + p * step));
        let mut sums = OnLine([[[0.0; BLOCK]; P]; R]);
        let mut channel = 0;
        if !S::PORTABLE {
            let taps_of_line = if pass.has_whole_lines() { taps.len() } else { 0 };
            let kind = (taps_of_line, work.convolution.input_step[2], !inside);
            while channel + COLUMN <= channels {
                let width = if channels - channel >= BLOCK { BLOCK } else { COLUMN };
                for part in (0..width).step_by(S::LANES) {
                    let at = channel + part;
                    // SAFETY: the lines are inside on the first two axes, and there are LANES more channels. Either all pixels are inside on
                    // the last axis or each is asked.
                    let acc = unsafe {
                        match kind {
                            (1, 1, _) => self.along::<S, R, P, 1, 1, true>(simd, tile, at),
                            (2, 1, _) => self.along::<S, R, P, 2, 1, true>(simd, tile, at),
                            (3, 1, false) => self.along::<S, R, P, 3, 1, false>(simd, tile, at),
                            (3, 1, true) => self.along::<S, R, P, 3, 1, true>(simd, tile, at),
                            (3, 2, false) if R == 1 => self.along::<S, R, P, 3, 2, false>(simd, tile, at),
                            (3, 2, true) if R == 1 => self.along::<S, R, P, 3, 2, true>(simd, tile, at),
                            (5, 1, false) if R == 1 => self.along::<S, R, P, 5, 1, false>(simd, tile, at),
                            (5, 1, true) if R == 1 => self.along::<S, R, P, 5, 1, true>(simd, tile, at),
                            (5, 2, _) if R == 1 => self.along::<S, R, P, 5, 2, true>(simd, tile, at),
                            (7, 1, false) if R == 1 => self.along::<S, R, P, 7, 1, false>(simd, tile, at),
                            (7, 1, true) if R == 1 => self.along::<S, R, P, 7, 1, true>(simd, tile, at),
                            _ => self.anywhere::<S, R, P, true>(simd, tile, at),
                        }
                    };
                    match direct {
                        Some((to, view, bounds)) => {
                            for (acc, places) in acc.into_iter().zip(places) {
                                for (value, place) in bounds_of(simd, bounds, acc, at).into_iter().zip(places)
                                {
                                    let start = place * view.pixel_stride + view.channel_offset + at;
                                    // SAFETY: each output pixel belongs to one row of one pass, each row to one task, and a task does all
                                    // channels; the place lies within the output, as `pointer` checks.
                                    unsafe { simd.store_pointer(value, to.pointer(start, S::LANES)) };
                                }
                            }
                        }
                        None => {
                            for (sums, acc) in sums.0.as_flattened_mut().iter_mut().zip(acc.as_flattened()) {
                                simd.store(*acc, &mut sums[part..]);
                            }
                        }
                    }
                }
                if direct.is_none() {
                    // SAFETY: as above.
                    unsafe {
                        work.finish.tile(simd, sums.0.as_flattened(), places.as_flattened(), channel, width);
                    }
                }
                channel += width;
            }
        }
        while channel < channels {
            let count = S::LANES.min(channels - channel);
            let acc = match count == S::LANES {
                true => self.anywhere::<S, R, P, true>(simd, tile, channel),
                false => self.anywhere::<S, R, P, false>(simd, tile, channel),
            };
            for (acc, place) in acc.as_flattened().iter().zip(places.as_flattened()) {
                // SAFETY: as above.
                unsafe { work.finish.vector(simd, *acc, *place, channel, count) };
            }
            channel += count;
        }
    }

    /// Adds up one vector of channels of P pixels of each of R rows, STEP input pixels from one to the next, whose taps, K in a line, lie next
    /// to each other: each input is loaded once for all taps that reach it. EDGE says that some may be outside on the last axis.
    ///
    /// # Safety
    /// The lines must be inside on the first two axes, and unless EDGE the taps of all P pixels on the last; and the channels must exist.
    #[inline(always)]
    unsafe fn along<
        S: Simd,
        const R: usize,
        const P: usize,
        const K: usize,
        const STEP: usize,
        const EDGE: bool,
    >(
        &self,
        simd: S,
        tile: &Tile<'_, R>,
        channel: usize,
    ) -> [[S::Floats; P]; R] {
        let Rows { work, pass, .. } = self;
        let channels = work.convolution.output_channels;
        assert!(channel + S::LANES <= channels, "invariant: existing channels");
        let (size, pixel_step, low) = (work.input_view.size[2], work.steps()[2], pass.taps[2][0]);
        let input = work.input.as_ptr().wrapping_add(tile.base).wrapping_add(channel);
        let input = input.wrapping_add((low as usize).wrapping_mul(pixel_step));
        let weights = work.weights.as_ptr().wrapping_add(channel);
        let mut acc = [[simd.splat(0.0); P]; R];
        for line in tile.lines {
            let from = input.wrapping_add(line.shift);
            let mut x = [simd.splat(0.0); MOST_REACHED];
            for (place, x) in x.iter_mut().enumerate().take((P - 1) * STEP + K) {
                let mut from = from.wrapping_add(place.wrapping_mul(pixel_step));
                if EDGE && (tile.at + low + place as isize) as usize >= size {
                    from = ZEROS.as_ptr();
                }
                // SAFETY: the position is inside on the first two axes, and on the last, as was just checked or the caller promises, so
                // that this is a pixel of the view, which lies within the input with all its channels; or it is one of the zeros.
                *x = unsafe { simd.load_pointer(from) };
            }
            for row in 0..R {
                let Some(first) = line.weights[row] else { continue };
                for k in 0..K {
                    // SAFETY: `find_lines` has checked that there are weights of all channels of the taps, and these channels exist.
                    let w = unsafe { simd.load_pointer(weights.wrapping_add(first + k * channels)) };
                    for p in 0..P {
                        acc[row][p] = simd.multiply_add(x[p * STEP + k], w, acc[row][p]);
                    }
                }
            }
        }
        acc
    }

    /// Adds up one vector of channels of P pixels of each of R rows, wherever their taps are. WHOLE says that no channel of the vector is
    /// absent.
    #[inline(always)]
    fn anywhere<S: Simd, const R: usize, const P: usize, const WHOLE: bool>(
        &self,
        simd: S,
        tile: &Tile<'_, R>,
        channel: usize,
    ) -> [[S::Floats; P]; R] {
        let Rows { work, pass, .. } = self;
        let channels = work.convolution.output_channels;
        let (input_step, pixel_step) = (work.convolution.input_step[2], work.steps()[2]);
        let count = S::LANES.min(channels - channel);
        assert!(!WHOLE || count == S::LANES, "invariant: a whole vector of channels");
        let mut sums = [[simd.splat(0.0); P]; R];
        for line in tile.lines {
            for row in 0..R {
                let Some(first) = line.weights[row] else { continue };
                for (k, tap) in pass.taps[2].iter().enumerate() {
                    let weights = &work.weights[first + k * channels + channel..][..count];
                    let w = if WHOLE { simd.load(weights) } else { simd.load_partial(weights) };
                    for p in 0..P {
                        let x = (tile.at + (p * input_step) as isize + tap) as usize;
                        if x < work.input_view.size[2] {
                            let shift = line
                                .shift
                                .wrapping_add(((x as isize - tile.at) as usize).wrapping_mul(pixel_step));
                            let from = tile.base.wrapping_add(shift).wrapping_add(channel);
                            let values = &work.input[from..][..count];
                            let value = if WHOLE { simd.load(values) } else { simd.load_partial(values) };
                            sums[row][p] = simd.multiply_add(value, w, sums[row][p]);
                        }
                    }
                }
            }
        }
        sums
    }
}

/// Vectors of channels from `channel` on, with bias and bounds if there are any.
#[inline(always)]
fn bounds_of<S: Simd, const P: usize>(
    simd: S,
    bounds: &Option<Bounds<'_>>,
    mut values: [S::Floats; P],
    channel: usize,
) -> [S::Floats; P] {
    let Some(Bounds { bias, bounds: [low, high] }) = bounds else { return values };
    if let Some(bias) = bias {
        let bias = simd.load(&bias[channel..]);
        for value in &mut values {
            *value = simd.add(*value, bias);
        }
    }
    let (low, high) = (simd.splat(*low), simd.splat(*high));
    values.map(|value| simd.least(high, simd.greatest(low, value)))
}
