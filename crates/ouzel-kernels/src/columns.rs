//! Convolution as a matrix product of patches by channels: patches are gathered into rows, unless the input's pixels are such rows.

use crate::aligned::Aligned;
use crate::convolution::{Pass, Work};
use crate::crew::share_out;
use crate::level::Kernel;
use crate::raster::{self, Raster};
use crate::setting::Pixels;
use crate::tile::{Asked, BLOCK, Columns, FEW, FEW_ROWS, Product, Results, longest_stretch, packed_width};
use crate::vector::Simd;
use std::cell::Cell;
use std::ops::Range;

/// Most pixels of a chunk.
const MOST_PIXELS: usize = 192;

/// Most pixels whose sums are made before they are finished: they should stay in the first-level cache.
const MOST_SUMS: usize = 48;

/// Input elements that a chunk should not exceed, so that they stay in the second-level cache.
const CHUNK_ELEMENTS: usize = 64 * 1024;

/// Pixels that a chunk should have at least, for weights to be read seldom.
const LEAST_PIXELS: usize = 48;

/// Work of one task, in multiply-adds of a block of channels, below which sharing it out costs more than it gives.
const LEAST_WORK: usize = 20_000;

/// Floats of patches that are gathered together, a row of their taps after the other.
const PATCHES: usize = 4096;

/// Floats between the rows of neighbouring patches beyond what they hold: room for the rest of a vector, and they do not compete for
/// the same lines of the cache.
const GAP: usize = 16;

/// The inputs of a sum, at most so many at a time.
#[inline(always)]
fn stretches(depth: usize, longest: usize) -> impl Iterator<Item = Range<usize>> {
    (0..depth.max(1)).step_by(longest.max(1)).map(move |first| first..depth.min(first + longest))
}

/// Runs all passes.
pub(crate) fn run(work: &Work) {
    let tasks = |pass| Plan::new(work, pass).tasks(work).count();
    let total: usize = work.convolution.passes.iter().map(tasks).sum();
    let run = |mut index: usize| {
        for pass in &work.convolution.passes {
            let plan = Plan::new(work, pass);
            let tasks = plan.tasks(work);
            if index < tasks.count() {
                return work.level.run(Task { work, plan: &plan, share: plan.share(&tasks, index) });
            }
            index -= tasks.count();
        }
    };
    share_out(total, run);
}

/// What a pass computes.
struct Plan<'a> {
    pass: &'a Pass,
    /// Output positions of the pass on each axis.
    counts: [usize; 3],
    /// Output pixels of the pass over all samples.
    pixels: usize,
    /// Inputs of a pixel.
    depth: usize,
    blocks: usize,
    /// Whether each output pixel of the pass depends on the input pixel of the same number alone, as in a 1×1 convolution.
    is_plain: bool,
    /// Where the matrix unit makes the products.
    raster: Option<Raster<'a>>,
}

/// How that is cut into tasks: a number of chunks of pixels times a number of runs of blocks of channels.
struct Tasks {
    chunks: usize,
    runs: usize,
    blocks_per_run: usize,
    /// Pixels of a tile. A chunk has whole tiles.
    tile: usize,
    /// Whether the runs of one chunk follow each other, rather than the chunks of one run.
    chunk_major: bool,
}

impl Tasks {
    fn count(&self) -> usize {
        self.chunks * self.runs
    }
}

impl<'a> Plan<'a> {
    fn new(work: &Work, pass: &'a Pass) -> Plan<'a> {
        let convolution = work.convolution;
        let counts = work.counts(pass);
        let pixels = work.output_view.batch * counts.iter().product::<usize>();
        let (inputs, _) = convolution.of_group();
        let depth = pass.taps.iter().map(|taps| taps.len()).product::<usize>() * inputs;
        let is_plain = pass.taps.iter().all(|taps| taps[..] == [0])
            && convolution.input_step == [1; 3]
            && work.input_view.size == counts;
        let raster = Raster::new(work, pass, counts, is_plain);
        Plan { pass, counts, pixels, depth, blocks: work.blocks(), is_plain, raster }
    }

    fn tasks(&self, work: &Work) -> Tasks {
        let Some(raster) = &self.raster else {
            return self.tasks_by_vectors(work);
        };
        let (chunks, runs) = raster.shares(work, self.pixels, self.blocks);
        let blocks_per_run = self.blocks.div_ceil(runs);
        let runs = self.blocks.div_ceil(blocks_per_run);
        Tasks { chunks, runs, blocks_per_run, tile: raster.unit(), chunk_major: true }
    }

    fn tasks_by_vectors(&self, work: &Work) -> Tasks {
        let Plan { pixels, depth, blocks, is_plain, .. } = *self;
        let cost = depth.max(8);
        let total = pixels.saturating_mul(cost).saturating_mul(blocks);
        // Each run gathers anew, so that there are no more of them than threads need.
        let tasks_per_thread = if is_plain { 8 } else { 1 };
        let task = (total / (tasks_per_thread * work.threads)).max(LEAST_WORK);
        let room = match is_plain {
            true => (CHUNK_ELEMENTS / work.input_view.pixel_stride.max(1)).max(LEAST_PIXELS),
            false => (2 * CHUNK_ELEMENTS / longest_stretch(depth).max(8)).max(LEAST_PIXELS),
        };
        // Chunks of nearly the same size.
        let tile = work.level.tile_pixels();
        let most = MOST_PIXELS.min(16 * tile) / tile * tile;
        let pixels_per_chunk = room.min(task / cost).next_multiple_of(tile).clamp(tile, most);
        let chunks = pixels.div_ceil(pixels_per_chunk);
        let chunk = pixels.div_ceil(chunks.max(1)).max(1);
        let blocks_per_run = match work.shares_words() {
            true => blocks,
            false => (task / (chunk * cost)).clamp(1, blocks),
        };
        let runs = blocks.div_ceil(blocks_per_run);
        // As many tasks for each thread.
        let chunks = match (chunks * runs).is_multiple_of(work.threads) {
            true => chunks,
            false => chunks.next_multiple_of(work.threads).min(pixels.div_ceil(tile)),
        };
        let weights = blocks.saturating_mul(BLOCK * cost);
        let chunk_major = weights.saturating_mul(chunks) < work.input.len().saturating_mul(runs);
        Tasks { chunks, runs, blocks_per_run, tile, chunk_major }
    }

    /// The pixels of a task and its blocks of channels, these counted over all groups.
    fn share(&self, tasks: &Tasks, index: usize) -> (Range<usize>, Range<usize>) {
        let (chunk, run) = match tasks.chunk_major {
            true => (index / tasks.runs, index % tasks.runs),
            false => (index % tasks.chunks, index / tasks.chunks),
        };
        let tiles = self.pixels.div_ceil(tasks.tile);
        // All tiles differ by at most one pixel in size.
        let (size, larger) = (self.pixels / tiles, self.pixels % tiles);
        let pixel = |chunk: usize| {
            let tile = tiles * chunk / tasks.chunks;
            tile * size + tile.min(larger)
        };
        let first = run * tasks.blocks_per_run;
        (pixel(chunk)..pixel(chunk + 1), first..self.blocks.min(first + tasks.blocks_per_run))
    }
}

/// One chunk of pixels and one run of blocks.
struct Task<'a> {
    work: &'a Work<'a>,
    plan: &'a Plan<'a>,
    /// Its pixels and its blocks of channels.
    share: (Range<usize>, Range<usize>),
}

thread_local! {
    /// Gathered patches and sums of a thread, kept because tasks are many and short.
    static SCRATCH: Cell<Aligned> = Cell::default();
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task { work, plan, share: (ref pixels, ref blocks) } = self;
        let (pixels, blocks) = (pixels.clone(), blocks.clone());
        let Work { convolution, finish, .. } = work;
        let (_, outputs) = convolution.of_group();
        let blocks_of_group = outputs.div_ceil(BLOCK);
        let mut places = [0; if MOST_PIXELS > raster::MOST { MOST_PIXELS } else { raster::MOST }];
        let places = &mut places[..pixels.len()];
        let in_order = convolution.passes.len() == 1 && convolution.output_step == [1; 3];
        match in_order {
            true => places.iter_mut().zip(pixels.clone()).for_each(|(place, pixel)| *place = pixel),
            false => {
                let (steps, size) = (convolution.output_step, work.output_view.size);
                for Run { first, count, sample, at } in plan.runs_of(pixels.clone(), MOST_PIXELS) {
                    let at = [0, 1, 2].map(|axis| plan.pass.start[axis] + at[axis] * steps[axis]);
                    let place = ((sample * size[0] + at[0]) * size[1] + at[1]) * size[2] + at[2];
                    for (number, place_of) in places[first..first + count].iter_mut().enumerate() {
                        *place_of = place + number * steps[2];
                    }
                }
            }
        }
        if work.shares_words() {
            for pixel in places.iter() {
                // SAFETY: where words are shared, this task does all channels of its pixels, and no other task has these pixels.
                unsafe { finish.clear_record(*pixel) };
            }
        }
        let channel = |index: usize| index / blocks_of_group * outputs + index % blocks_of_group * BLOCK;
        let first = channel(blocks.start);
        let channels = channel(blocks.end) - first;
        let region = match in_order {
            true => Pixels::Row { first: pixels.start, step: 1, count: pixels.len() },
            false => Pixels::List(places),
        };
        // SAFETY: tasks have disjoint pixels or disjoint blocks of channels. Blocks begin at multiples of 16 channels, so that they share
        // no words of a mask, or else `shares_words` has given all blocks to one task.
        unsafe {
            if let Some(raster) = &plan.raster {
                return raster.multiply(simd, work, plan.depth, pixels, blocks, places, in_order);
            }
            match finish.direct(first, channels) {
                // No tap reaches these pixels.
                Some((to, view, None)) if plan.depth == 0 => {
                    for place in places.iter() {
                        to.part(place * view.pixel_stride + view.channel_offset + first, channels).fill(0.0);
                    }
                }
                _ => self.multiply(simd, pixels.clone(), blocks, places, in_order),
            }
            finish.go_on(region, first, channels);
        }
    }
}

impl Plan<'_> {
    /// Some pixels of the pass, cut where a row of the output ends and after `most` of them.
    #[inline(always)]
    fn runs_of(&self, pixels: Range<usize>, most: usize) -> Runs {
        let counts = self.counts;
        let (row, x) = (pixels.start / counts[2], pixels.start % counts[2]);
        let (plane, y) = (row / counts[1], row % counts[1]);
        let next = Run { first: 0, count: 0, sample: plane / counts[0], at: [plane % counts[0], y, x] };
        Runs { counts, pixels: pixels.len(), most, next }
    }
}

/// Pixels that follow each other in a row of the output.
#[derive(Clone, Copy)]
struct Run {
    /// The number of the first one among all that were asked for.
    first: usize,
    count: usize,
    /// Where that is.
    sample: usize,
    at: [usize; 3],
}

/// Runs of pixels in their order.
struct Runs {
    counts: [usize; 3],
    pixels: usize,
    most: usize,
    next: Run,
}

impl Iterator for Runs {
    type Item = Run;

    #[inline(always)]
    fn next(&mut self) -> Option<Run> {
        let Runs { counts, pixels, most, next } = self;
        let count = (counts[2] - next.at[2]).min(*pixels - next.first).min(*most);
        let run = Run { count, ..*next };
        next.first += count;
        next.at[2] += count;
        for axis in [2, 1] {
            if next.at[axis] == counts[axis] {
                next.at[axis] = 0;
                next.at[axis - 1] += 1;
            }
        }
        if next.at[0] == counts[0] {
            next.at[0] = 0;
            next.sample += 1;
        }
        (count > 0).then_some(run)
    }
}

impl Task<'_> {
    /// Whether weights serve so few rows that they come late.
    #[inline(always)]
    fn comes_late(&self) -> bool {
        self.plan.pixels <= FEW_ROWS
    }

    /// Where a pixel of the input begins.
    #[inline(always)]
    fn pixel(&self, pixel: usize) -> usize {
        pixel * self.work.input_view.pixel_stride + self.work.input_view.channel_offset
    }

    /// The rows of as many pixels behind these, probably those of the task that follows, unless weights are asked for instead.
    #[inline(always)]
    fn next_rows(&self, pixels: &Range<usize>) -> &[f32] {
        if !self.plan.is_plain || self.comes_late() {
            return &[];
        }
        let input = self.work.input;
        let end = self.plan.pixels.min(pixels.end + pixels.len());
        &input[self.pixel(pixels.end).min(input.len())..self.pixel(end).min(input.len())]
    }

    /// The weights of some channels of a group, which serve `others` rows before and after those of a product.
    #[inline(always)]
    fn columns(&self, group: usize, channels: &Range<usize>, others: [usize; 2]) -> Columns<'_> {
        let (work, depth) = (self.work, self.plan.depth);
        let (_, outputs) = work.convolution.of_group();
        let size = packed_width(channels.len()) * depth;
        let begin = self.plan.pass.weights + group * packed_width(outputs) * depth + channels.start * depth;
        let (weights, behind) = work.weights[begin..].split_at(size);
        Columns { weights, next: &behind[..behind.len().min(size)], others, comes_late: self.comes_late() }
    }

    /// Multiplies some pixels with the weights of some blocks of channels, counted over all groups, and finishes the results; `places` are
    /// those of the pixels in the output, and `in_order` says whether they follow each other.
    ///
    /// # Safety
    /// No other thread may be at work on these channels of these pixels, nor, if bits are recorded, on any channel that shares their words.
    #[inline(always)]
    unsafe fn multiply<S: Simd>(
        &self,
        simd: S,
        pixels: Range<usize>,
        blocks: Range<usize>,
        places: &[usize],
        in_order: bool,
    ) {
        let Task { work, plan, .. } = self;
        let Work { convolution, finish, level, input_view, .. } = work;
        let (inputs, outputs) = convolution.of_group();
        let depth = plan.depth;
        let blocks_of_group = outputs.div_ceil(BLOCK);
        // Few weights stay in the cache for all blocks, so that the results of a pixel are stored one after the other. Many long rows do
        // not: all blocks take some of their inputs before the next ones are gathered.
        let few = packed_width(outputs) * depth <= FEW;
        let longest = if pixels.len() > S::TILE { longest_stretch(depth) } else { depth };
        let long = longest < depth;
        let (blocks_at_once, most_sums) = match long {
            true => (blocks.len().min(blocks_of_group), pixels.len()),
            false => (1, MOST_SUMS / S::TILE * S::TILE),
        };
        let patch = longest.next_multiple_of(GAP) + GAP;
        let patches = if plan.is_plain { 0 } else { pixels.len() * patch };
        let room = patches + blocks_at_once * most_sums * BLOCK;
        let mut scratch = SCRATCH.take();
        if scratch.len() < room {
            scratch = Aligned::zeros(room);
        }
        let (patches, sums) = scratch.split_at_mut(patches);
        let mut gathered = None;
        let next_rows = self.next_rows(&pixels);
        let mut next = blocks.start;
        while next < blocks.end {
            let index = next;
            let (group, block) = (index / blocks_of_group, index % blocks_of_group);
            next = if few || long { blocks.end.min((group + 1) * blocks_of_group) } else { index + 1 };
            let channels = block * BLOCK..outputs.min((block + next - index) * BLOCK);
            let channel = group * outputs + channels.start;
            let direct = match in_order && channels.len().is_multiple_of(S::LANES) {
                true => finish.direct(channel, channels.len()),
                false => None,
            };
            let share = |rows: usize| {
                let done = (index - blocks.start) * pixels.len() + (next - index) * rows;
                next_rows.len() * done / (blocks.len() * pixels.len()).max(1)
            };
            for some in stretches(depth, longest) {
                if !plan.is_plain && gathered != Some((group, some.start)) {
                    self.gather(simd, pixels.clone(), group * inputs, some.clone(), patch, patches);
                    gathered = Some((group, some.start));
                }
                let (rows, start, stride) = match plan.is_plain {
                    true => {
                        let start = self.pixel(pixels.start) + group * inputs + some.start;
                        (work.input, start, input_view.pixel_stride)
                    }
                    false => (&*patches, 0, patch),
                };
                // These channels of the group, for some of the pixels.
                let product = |channels: Range<usize>, part: Range<usize>| Product {
                    input: rows,
                    start: start + part.start * stride,
                    stride,
                    rows: part.len(),
                    depth,
                    inputs: some.clone(),
                    columns: self.columns(group, &channels, [part.start, pixels.len() - part.end]),
                    channels: channels.len(),
                    later: &next_rows[share(part.start)..share(part.end)],
                };
                // SAFETY: passed on.
                unsafe {
                    if let Some((to, view, bounds)) = direct {
                        let start = places[0] * view.pixel_stride + view.channel_offset + channel;
                        let asked = finish.asked(places[0], channel);
                        let (stride, block) = (view.pixel_stride, BLOCK);
                        let results = Results { to, start, stride, block, finish: bounds, asked };
                        product(channels.clone(), 0..places.len()).run(*level, results);
                        continue;
                    }
                    for first in (0..places.len()).step_by(most_sums) {
                        let part = first..places.len().min(first + most_sums);
                        let places = &places[part.clone()];
                        for first in channels.clone().step_by(blocks_at_once * BLOCK) {
                            let channels = first..channels.end.min(first + blocks_at_once * BLOCK);
                            let asked = match in_order {
                                true => finish.asked(places[0], group * outputs + first),
                                false => Asked::default(),
                            };
                            let results = Results { asked, ..Results::sums(sums, part.len()) };
                            product(channels.clone(), part.clone()).run(*level, results);
                            if some.end < depth {
                                continue;
                            }
                            let of_blocks = sums.as_chunks().0.chunks(part.len());
                            for (first, sums) in channels.clone().step_by(BLOCK).zip(of_blocks) {
                                let count = BLOCK.min(channels.end - first);
                                finish.tile(simd, sums, places, group * outputs + first, count);
                            }
                        }
                    }
                }
            }
        }
        SCRATCH.set(scratch);
    }

    /// Writes some inputs of the patches of some pixels into rows. Patches are those of a group whose channels begin at `channel`, tap by
    /// tap in row-major order, each with its channels.
    #[inline(always)]
    fn gather<S: Simd>(
        &self,
        simd: S,
        pixels: Range<usize>,
        channel: usize,
        wanted: Range<usize>,
        stride: usize,
        to: &mut [f32],
    ) {
        let Task { work, plan, .. } = self;
        let (view, convolution) = (work.input_view, work.convolution);
        let (inputs, _) = convolution.of_group();
        let (size, taps, step) = (view.size, &plan.pass.taps, convolution.input_step);
        let (Some(&low), Some(&high)) = (taps[2].first(), taps[2].last()) else {
            return;
        };
        let follow_each_other = view.pixel_stride == inputs && plan.pass.has_whole_lines();
        let width = taps[2].len() * inputs;
        // As many together as stay in the first-level cache.
        for Run { first, count, sample, at } in plan.runs_of(pixels, PATCHES.div_ceil(stride)) {
            let at = [0, 1, 2].map(|axis| (at[axis] * step[axis]) as isize);
            let rows = &mut to[first * stride..];
            let place = |n: usize, tap: isize| (at[2] + (n * step[2]) as isize + tap) as usize;
            // Those of some pixels of which a number of taps are inside.
            let inside = |pixels: Range<usize>, low: isize, high: isize| {
                let is_inside = |n: &usize| place(*n, low) < size[2] && place(*n, high) < size[2];
                let first = pixels.clone().find(is_inside).unwrap_or(pixels.end);
                first..(first..pixels.end).rfind(is_inside).map_or(first, |last| last + 1)
            };
            // Those whose taps are copied at once.
            let whole = if follow_each_other { inside(0..count, low, high) } else { count..count };
            // Of so many inputs from `first` on those that are wanted: how many are left out before them, where they go, and their number.
            let wanted_of = |first: usize, count: usize| {
                let begin = first.max(wanted.start);
                (begin - first, begin - wanted.start, (first + count).min(wanted.end).saturating_sub(begin))
            };
            let mut next = 0;
            for z in &taps[0] {
                for y in &taps[1] {
                    let done = next;
                    next += width;
                    let (skipped, begin, length) = wanted_of(done, width);
                    if length == 0 {
                        continue;
                    }
                    let [z, y] = [at[0] + z, at[1] + y].map(|at| at as usize);
                    if z >= size[0] || y >= size[1] {
                        (rows.chunks_mut(stride).take(count))
                            .for_each(|row| row[begin..begin + length].fill(0.0));
                        continue;
                    }
                    let line = view.index(sample, [z, y, 0], channel);
                    let from = |n: usize, tap: isize, skipped: usize| Rows {
                        first: line + place(n, tap) * view.pixel_stride + skipped,
                        step: step[2] * view.pixel_stride,
                    };
                    let to = |n: usize, begin: usize| Rows { first: n * stride + begin, step: stride };
                    for edge in [0..whole.start, whole.end..count] {
                        if edge.is_empty() {
                            continue;
                        }
                        for (tap, done) in taps[2].iter().zip((done..).step_by(inputs)) {
                            let (skipped, begin, length) = wanted_of(done, inputs);
                            if length == 0 {
                                continue;
                            }
                            let inside = inside(edge.clone(), *tap, *tap);
                            for n in (edge.start..inside.start).chain(inside.end..edge.end) {
                                rows[n * stride + begin..][..length].fill(0.0);
                            }
                            if let Some(n) = inside.clone().next() {
                                let size = [inside.len(), length];
                                copy(simd, size, work.input, from(n, *tap, skipped), rows, to(n, begin));
                            }
                        }
                    }
                    if let Some(n) = whole.clone().next() {
                        let size = [whole.len(), length];
                        copy(simd, size, work.input, from(n, low, skipped), rows, to(n, begin));
                    }
                }
            }
        }
    }
}

/// Rows at equal distances.
#[derive(Clone, Copy)]
struct Rows {
    /// Where the first one begins.
    first: usize,
    step: usize,
}

/// Copies some rows, at least one, of so many elements each; what follows each, up to a whole vector, is overwritten.
#[inline(always)]
fn copy<S: Simd>(
    simd: S,
    [rows, length]: [usize; 2],
    input: &[f32],
    from: Rows,
    output: &mut [f32],
    to: Rows,
) {
    let whole = length.next_multiple_of(S::LANES);
    let end = |of: Rows| of.first + (rows - 1) * of.step + whole;
    if end(from) > input.len() || end(to) > output.len() {
        for row in 0..rows {
            let input = &input[from.first + row * from.step..][..length];
            output[to.first + row * to.step..][..length].copy_from_slice(input);
        }
        return;
    }
    macro_rules! copy {
        ($vectors:expr) => {
            for row in 0..rows {
                let from = input.as_ptr().wrapping_add(from.first + row * from.step);
                let to = output.as_mut_ptr().wrapping_add(to.first + row * to.step);
                for at in (0..$vectors * S::LANES).step_by(S::LANES) {
                    // SAFETY: whole vectors of the last row lie within both slices, as was just checked, and so do those of the others.
                    unsafe { simd.store_pointer(simd.load_pointer(from.wrapping_add(at)), to.wrapping_add(at)) };
                }
            }
        };
    }
    match whole / S::LANES {
        0 | 1 => copy!(1),
        2 => copy!(2),
        3 => copy!(3),
        vectors => copy!(vectors),
    }
}
