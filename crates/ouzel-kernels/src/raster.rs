//! Convolution by the matrix unit: the pixels of a task are cut once, and the tiles of all taps are loaded from there.
//!
//! What a tap reaches for neighbouring outputs lies a stride apart. So pixels are kept by phase, those of all positions that leave the
//! same rest when divided by the stride, in lines as long as those of the output and as far as taps reach beyond. Then a tap reads
//! neighbouring places for the outputs of all lines; a few places at the end of each line make sums that nobody needs. Where pixels
//! have very few channels, as those of a picture, a place holds what a whole line of taps reaches instead.

use crate::aligned::Aligned;
use crate::amx::{self, Amx, Bands, ROWS, STEP, Step, Strides};
use crate::convolution::{Pass, Work};
use crate::setting::Pixels;
use crate::tile::{Asked, BLOCK, ZEROS, packed_width};
use crate::vector::Simd;
use crate::view::View;
use std::cell::Cell;
use std::ops::Range;

/// Least pixels of a sample for the matrix unit.
const LEAST: usize = 96;

/// The same for weights that come from beyond the second-level cache, if there is but one tap.
const LEAST_OF_FAR: usize = 49;

/// Weights that do.
const FAR_WEIGHTS: usize = 512 * 1024;

/// Most pixels of a task.
pub(crate) const MOST: usize = 1024;

/// The same where each output depends on the input pixel of the same number alone: fewer of them balance better.
const MOST_PLAIN: usize = 208;

/// The least number in that case, for weights to be read seldom.
const LEAST_PLAIN: usize = 48;

/// Most inputs that are cut for a task, so that they stay in the second-level cache.
const MOST_CUT: usize = 232 * 1024;

/// Most inputs that a line of taps has in one place.
const MOST_FOLDED: usize = 128;

/// What the matrix unit takes for the products of a tile of places, a step of inputs and a block of channels; what cutting the weights of
/// the two latter takes, as far as it is seen beside products; and what cutting the rows of the two former takes.
const PRODUCTS: usize = 4;
const WEIGHTS: usize = 8;
const CUT: usize = 8;

/// The taps of an axis.
struct Axis<'a> {
    taps: &'a [isize],
    low: isize,
    step: usize,
    phases: usize,
    /// How many places behind that of an output they reach.
    reach: usize,
}

impl<'a> Axis<'a> {
    fn new(taps: &'a [isize], step: usize) -> Axis<'a> {
        let low = taps.first().copied().unwrap_or(0);
        let span = (taps.last().copied().unwrap_or(0) - low) as usize;
        Axis { taps, low, step, phases: step.min(span + 1), reach: span / step }
    }

    /// The phase that a tap reads, and the place of it for the first output.
    fn of(&self, tap: isize) -> (usize, usize) {
        let distance = (tap - self.low) as usize;
        (distance % self.step, distance / self.step)
    }

    /// The phases that are read, and how many places behind that of an output.
    fn phases_in_use(&self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.phases).filter_map(|phase| {
            let taps = self.taps.iter().map(|tap| self.of(*tap)).filter(|of| of.0 == phase);
            taps.map(|(_, reach)| reach).max().map(|reach| (phase, reach))
        })
    }

    /// The input position of an output for the first tap of a phase.
    fn position(&self, output: usize, phase: usize) -> isize {
        (output * self.step + phase) as isize + self.low
    }
}

/// A pass whose products the matrix unit makes.
pub(crate) struct Raster<'a> {
    amx: Amx,
    pass: &'a Pass,
    /// The input, all of whose pixels are one line if each output depends on that of the same number alone.
    view: View,
    /// Outputs on each axis; seen as those of one line in that case.
    counts: [usize; 3],
    is_plain: bool,
    y: Axis<'a>,
    x: Axis<'a>,
    /// From one output to the next on the first axis.
    step_z: usize,
    /// Channels of a group, and how many taps of a line a place holds.
    inputs: usize,
    folded: usize,
}

/// Outputs that are computed together: some lines of a plane, or a part of one.
#[derive(Clone, Copy)]
struct Segment {
    sample: usize,
    /// Where it begins.
    at: [usize; 3],
    lines: usize,
    width: usize,
}

/// Places that are cut from a line of the input.
struct Line {
    /// Sample, depth and height of that line, unless it lies in the padding.
    from: Option<[usize; 3]>,
    /// The position in it of the first place.
    first: isize,
    places: Range<usize>,
}

/// How the cut rows of a segment lie in memory.
struct Layout {
    bands: Bands,
    /// Places of a line.
    pitch: usize,
    /// Floats of a plane.
    plane: usize,
}

impl Layout {
    /// Where the rows of a place begin in their plane.
    fn begin(&self, place: usize) -> usize {
        let Bands { strides, tile, .. } = self.bands;
        match tile {
            Some(tile) => place / self.bands.height() * tile + place % self.bands.height() * strides.row,
            None => place * strides.row,
        }
    }

    /// Some places, cut where a tile ends if rows do not follow each other beyond.
    fn runs(&self, places: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let most = if self.bands.tile.is_some() { self.bands.height() } else { usize::MAX };
        let mut next = places.start;
        std::iter::from_fn(move || {
            let first = next;
            next = places.end.min((first / most + 1).saturating_mul(most));
            (first < next).then_some(first..next)
        })
    }
}

thread_local! {
    /// Cut rows and sums of a thread, and the steps of its products, kept because tasks are many and short.
    static SCRATCH: Cell<(Aligned, Vec<Step>)> = Cell::default();
}

impl<'a> Raster<'a> {
    /// That of a pass, if the matrix unit is faster. This depends on one sample alone, so that neither batch nor threads change the bits of
    /// a result.
    pub(crate) fn new(work: &Work, pass: &'a Pass, counts: [usize; 3], is_plain: bool) -> Option<Raster<'a>> {
        let amx = work.level.amx()?;
        let (convolution, view) = (work.convolution, *work.input_view);
        let (inputs, outputs) = convolution.of_group();
        if pass.taps.iter().any(Vec::is_empty) || inputs == 0 {
            return None;
        }
        let [step_z, step_y, step_x] = convolution.input_step;
        let [_, taps_y, taps_x] = &pass.taps;
        let is_folded = (inputs < STEP && taps_x.len() > 1 && taps_x.len() * inputs <= MOST_FOLDED)
            && view.pixel_stride == inputs
            && pass.has_whole_lines();
        let (folded, taps_x) = if is_folded { (taps_x.len(), &taps_x[..1]) } else { (1, &taps_x[..]) };
        let (y, x) = (Axis::new(taps_y, step_y), Axis::new(taps_x, step_x));
        let raster = Raster { amx, pass, view, counts, is_plain, y, x, step_z, inputs, folded };
        if !raster.is_worth_it(outputs) {
            return None;
        }
        let pixels = view.pixels();
        Some(match is_plain {
            true => Raster {
                view: View { batch: 1, size: [1, 1, pixels], ..view },
                counts: [1, 1, pixels],
                ..raster
            },
            false => raster,
        })
    }

    /// Whether steps and tiles are nearly full, there are many pixels for each weight that is cut, and many products of what is cut.
    fn is_worth_it(&self, outputs: usize) -> bool {
        let [planes, lines, width] = self.counts;
        let pixels = planes * lines * width;
        let is_far = self.is_tiled() && self.inputs.saturating_mul(outputs) >= FAR_WEIGHTS;
        if pixels < if is_far { LEAST_OF_FAR } else { LEAST } {
            return false;
        }
        let window = self.window();
        let fills_steps = match self.folded {
            1 => amx::fills(window, STEP),
            // Few inputs leave much of the vectors of the other kernels empty too.
            _ => 5 * window.next_multiple_of(STEP) <= 8 * window,
        };
        (fills_steps && amx::fills(outputs, BLOCK))
            && window <= ZEROS.len()
            && (self.is_plain
                || width <= MOST
                    && self.bands(lines, width).tiles() * ROWS * 2 <= 3 * lines * width
                    && self.most_lines() >= lines.min(2 * self.y.reach))
    }

    /// Most lines of a task.
    fn most_lines(&self) -> usize {
        let [_, _, width] = self.counts;
        let line = self.planes() * self.steps_of_place() * STEP * (width + self.x.reach);
        (MOST_CUT / line).saturating_sub(self.y.reach).min(MOST / width)
    }

    /// Pixels of which a task has a whole number.
    pub(crate) fn unit(&self) -> usize {
        if self.is_plain { ROWS } else { self.counts[2] }
    }

    /// Inputs of a place.
    fn window(&self) -> usize {
        self.folded * self.inputs
    }

    /// Steps of a place.
    fn steps_of_place(&self) -> usize {
        self.window().div_ceil(STEP)
    }

    /// How many planes of places there are, those of each phase and tap of the first axis.
    fn planes(&self) -> usize {
        self.pass.taps[0].len() * self.y.phases * self.x.phases
    }

    /// The numbers of chunks of pixels and of runs of so many blocks of channels that make all threads end first.
    pub(crate) fn shares(&self, work: &Work, pixels: usize, blocks: usize) -> (usize, usize) {
        let (threads, unit) = (work.threads, self.unit());
        let units = pixels.div_ceil(unit);
        let cut = self.planes() * self.steps_of_place();
        let most = match self.is_plain {
            true => (MOST_CUT / self.inputs).clamp(LEAST_PLAIN, MOST_PLAIN) / unit,
            false => self.most_lines().max(1),
        };
        let fewest = units.div_ceil(most);
        let taps = self.pass.taps[0].len() * self.y.taps.len() * self.x.taps.len();
        let steps = taps * self.steps_of_place();
        let time = |&(chunks, runs): &(usize, usize)| {
            let (units, blocks) = (units.div_ceil(chunks), blocks.div_ceil(runs));
            let (lines, width) = match self.is_plain {
                true => (1, units * unit),
                false => (units.min(self.counts[1]), unit),
            };
            let tiles = self.bands(lines, width).tiles();
            let places = (lines + self.y.reach) * (width + self.x.reach);
            let products = blocks * steps * (tiles * PRODUCTS + WEIGHTS);
            let segment = products + places.div_ceil(ROWS) * cut * CUT;
            // What follows mostly looks for all channels of its pixels.
            let apart = if runs > 1 { 11 } else { 10 };
            let segments = if self.is_plain { 1 } else { units.div_ceil(lines) };
            (chunks * runs).div_ceil(threads) * segments * segment * apart
        };
        let runs = if work.shares_words() { 1..=1 } else { 1..=blocks.min(threads) };
        // As few chunks as there may be, or as many as give each thread as many tasks.
        let ways = runs.flat_map(|runs| {
            let even = (fewest..).find(|chunks| (chunks * runs).is_multiple_of(threads));
            let even = even.map(|chunks| chunks.min(units));
            [Some(fewest), even].into_iter().flatten().map(move |chunks| (chunks, runs))
        });
        ways.min_by_key(time).expect("invariant: one block and one thread at least")
    }

    /// Whether all steps read the same places.
    fn is_tiled(&self) -> bool {
        [&self.y, &self.x].iter().all(|axis| axis.taps.len() == 1)
    }

    /// The tiles of some lines: over all of them, or line by line, whichever are fewer.
    fn bands(&self, lines: usize, width: usize) -> Bands {
        let pitch = width + self.x.reach;
        let length = (lines - 1) * pitch + width;
        if self.is_tiled() {
            return Bands::tiled(length, self.window());
        }
        let strides = Strides::placed(0);
        let whole = Bands { count: 1, length, pitch: 0, tile: None, strides };
        let each = Bands { count: lines, length: width, pitch: pitch * strides.row, ..whole };
        if each.tiles() < whole.tiles() { each } else { whole }
    }

    fn layout(&self, segment: Segment) -> Layout {
        let Segment { lines, width, .. } = segment;
        let mut bands = self.bands(lines, width);
        let pitch = width + self.x.reach;
        let plane = match bands.tile {
            Some(tile) => bands.tiles() * tile,
            None => {
                let read = self.y.reach * pitch + self.x.reach + bands.reach().div_ceil(bands.strides.row);
                bands.strides = Strides::placed(read.max((lines + self.y.reach) * pitch));
                self.steps_of_place() * bands.strides.step
            }
        };
        Layout { bands, pitch, plane }
    }

    /// The segments of some pixels, counted over all samples, with how many pixels there are before each.
    fn segments(&self, pixels: Range<usize>) -> impl Iterator<Item = (usize, Segment)> {
        let [planes, lines, width] = self.counts;
        let start = pixels.start;
        let mut next = start;
        std::iter::from_fn(move || {
            if next >= pixels.end {
                return None;
            }
            let (line, x) = (next / width, next % width);
            let (plane, y) = (line / lines, line % lines);
            let left = pixels.end - next;
            let width = left.min(width - x);
            let lines = if x == 0 { (left / width).min(lines - y) } else { 1 };
            let at = [plane % planes, y, x];
            let before = next - start;
            next += lines * width;
            Some((before, Segment { sample: plane / planes, at, lines, width }))
        })
    }

    /// The steps of all products.
    fn steps(&self, layout: &Layout, steps: &mut Vec<Step>) {
        steps.clear();
        let (window, of_place) = (self.window(), self.steps_of_place());
        let [taps_y, taps_x] = [self.y.taps, self.x.taps];
        for z in 0..self.pass.taps[0].len() {
            for (number_y, tap_y) in taps_y.iter().enumerate() {
                let (phase_y, line) = self.y.of(*tap_y);
                // The taps of a line one after the other, since they read nearly the same places.
                for index in 0..of_place {
                    for (number_x, tap_x) in taps_x.iter().enumerate() {
                        let (phase_x, place) = self.x.of(*tap_x);
                        let plane = (z * self.y.phases + phase_y) * self.x.phases + phase_x;
                        let tap = (z * taps_y.len() + number_y) * taps_x.len() + number_x;
                        steps.push(Step {
                            rows: plane * layout.plane
                                + index * layout.bands.strides.step
                                + layout.begin(line * layout.pitch + place),
                            first: tap * window + index * STEP,
                            inputs: STEP.min(window - index * STEP),
                        });
                    }
                }
            }
        }
    }

    /// Cuts the inputs of a group whose channels begin at `channel`.
    fn cut(&self, input: &[f32], segment: Segment, channel: usize, layout: &Layout, to: &mut [f32]) {
        let [z, y, x] = segment.at;
        let [depth, height, _] = self.view.size;
        for (number, tap) in self.pass.taps[0].iter().enumerate() {
            let from_z = ((z * self.step_z) as isize + tap) as usize;
            for (phase_y, reach_y) in self.y.phases_in_use() {
                for line in 0..segment.lines + reach_y {
                    let from_y = self.y.position(y + line, phase_y) as usize;
                    let from =
                        (from_z < depth && from_y < height).then_some([segment.sample, from_z, from_y]);
                    for (phase_x, reach_x) in self.x.phases_in_use() {
                        let plane = (number * self.y.phases + phase_y) * self.x.phases + phase_x;
                        let place = line * layout.pitch;
                        let places = place..place + segment.width + reach_x;
                        let line = Line { from, first: self.x.position(x, phase_x), places };
                        let to = &mut to[plane * layout.plane..][..layout.plane];
                        self.cut_line(input, line, channel, layout, to);
                    }
                }
            }
        }
    }

    /// Cuts what some places of a plane hold.
    fn cut_line(&self, input: &[f32], line: Line, channel: usize, layout: &Layout, to: &mut [f32]) {
        let Line { from, first, places } = line;
        let (window, step, strides) = (self.window(), self.x.step, layout.bands.strides);
        let cut = |from: &[f32], [start, stride]: [usize; 2], places: Range<usize>, to: &mut [f32]| {
            let to = &mut to[layout.begin(places.start)..];
            self.amx.cut_rows(from, [start, stride], [places.len(), window], to, strides);
        };
        let Some([sample, z, y]) = from else {
            return layout.runs(places).for_each(|run| cut(&ZEROS, [0; 2], run, to));
        };
        let width = self.view.size[2] as isize;
        let index = |x: isize| self.view.index(sample, [z, y, x as usize], channel);
        let position = |place: usize| first + ((place - places.start) * step) as isize;
        // The first place at some position or behind.
        let place_at = |x: isize| places.end.min(places.start + ((x - first).max(0) as usize).div_ceil(step));
        let end = place_at(width - self.folded as isize + 1);
        let inside = place_at(0).min(end)..end;
        for run in layout.runs(inside.clone()) {
            cut(input, [index(position(run.start)), step * self.view.pixel_stride], run, to);
        }
        for run in layout.runs(places.start..inside.start).chain(layout.runs(inside.end..places.end)) {
            if self.folded == 1 {
                cut(&ZEROS, [0; 2], run, to);
                continue;
            }
            for place in run {
                let mut taps = [0.0; MOST_FOLDED];
                for (tap, taps) in taps[..window].chunks_exact_mut(self.inputs).enumerate() {
                    let x = position(place) + tap as isize;
                    if (0..width).contains(&x) {
                        taps.copy_from_slice(&input[index(x)..][..self.inputs]);
                    }
                }
                cut(&taps, [0; 2], place..place + 1, to);
            }
        }
    }

    /// Computes some blocks of channels, counted over all groups, of some pixels, whose places in the output are given. A block goes on to
    /// what follows while it is at hand.
    ///
    /// # Safety
    /// No other thread may be at work on these channels of these pixels, nor, if bits are recorded, on any channel that shares their words.
    #[inline(always)]
    pub(crate) unsafe fn multiply<S: Simd>(
        &self,
        simd: S,
        work: &Work,
        depth: usize,
        pixels: Range<usize>,
        blocks: Range<usize>,
        places: &[usize],
        in_order: bool,
    ) {
        let (_, outputs) = work.convolution.of_group();
        let blocks_of_group = outputs.div_ceil(BLOCK);
        let (mut scratch, mut steps) = SCRATCH.take();
        for (first_pixel, segment) in self.segments(pixels.clone()) {
            let layout = self.layout(segment);
            let Layout { bands, pitch, plane } = layout;
            self.steps(&layout, &mut steps);
            let (cut, sums) = (self.planes() * plane, bands.sums_len());
            let room = amx::SCRATCH + sums + cut;
            if scratch.len() < room {
                scratch = Aligned::zeros(room);
            }
            let (weights, rest) = scratch.split_at_mut(amx::SCRATCH);
            let (sums, rest) = rest.split_at_mut(sums);
            let cut = &mut rest[..cut];
            let places = &places[first_pixel..][..segment.lines * segment.width];
            let region = match in_order {
                true => Pixels::Row { first: places[0], step: 1, count: places.len() },
                false => Pixels::List(places),
            };
            let follow_each_other =
                in_order && (segment.lines == 1 || bands.count == 1 && pitch == segment.width);
            let line_stride = if bands.count == 1 { pitch } else { bands.stride() };
            let mut next = blocks.start;
            while next < blocks.end {
                let (first, group) = (next, next / blocks_of_group);
                next = blocks.end.min((group + 1) * blocks_of_group);
                self.cut(work.input, segment, group * self.inputs, &layout, cut);
                let channel = |block: usize| block % blocks_of_group * BLOCK;
                let begin = self.pass.weights + group * packed_width(outputs) * depth;
                let product = |block: usize| amx::Product {
                    weights: begin + channel(block) * depth,
                    channels: BLOCK.min(outputs - channel(block)),
                };
                let end = begin + packed_width(outputs.min((next - first) * BLOCK + channel(first))) * depth;
                let columns = (&work.weights[..end], depth);
                let mut products = amx::Products::new(self.amx, cut, bands, &steps, columns, weights);
                for block in first..next {
                    let after = (block + 1 < next).then(|| product(block + 1));
                    let (product, channel) = (product(block), group * outputs + channel(block));
                    let asked = match follow_each_other {
                        true => work.finish.asked(places[0], channel),
                        false => Asked::default(),
                    };
                    products.compute(product, after, asked, sums);
                    let sums: &[[f32; BLOCK]] = sums.as_chunks().0;
                    for (line, places) in places.chunks_exact(segment.width).enumerate() {
                        // SAFETY: passed on.
                        unsafe {
                            work.finish.tile(
                                simd,
                                &sums[line * line_stride..],
                                places,
                                channel,
                                product.channels,
                            );
                        }
                    }
                    // SAFETY: passed on.
                    unsafe { work.finish.go_on(region, channel, product.channels) };
                }
            }
        }
        SCRATCH.set((scratch, steps));
    }
}
