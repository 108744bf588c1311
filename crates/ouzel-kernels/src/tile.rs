//! The micro-kernel of all matrix-like work: a tile of output pixels × output channels that stays in registers.

use crate::vector::Simd;

/// Most pixels of a tile, over all levels.
pub(crate) const MOST_PIXELS: usize = 12;

/// Most output channels that are computed one after the other for the same pixels.
pub(crate) const BLOCK: usize = 32;

/// Output channels of a column of packed weights: a cache line for each input. A block has two columns, the last one perhaps one.
pub(crate) const COLUMN: usize = 16;

/// How many inputs ahead weights are asked for.
const AHEAD: usize = 128;

/// Floats of a cache line.
const LINE: isize = 16;

/// Most inputs of one chain of multiply-adds. Longer sums are cut into segments, each a chain that begins at zero, and the segments are
/// added in order: the rounding errors of a chain grow with its length.
const SEGMENT: usize = 256;

/// Read in place of input pixels that lie in the padding.
pub(crate) static ZEROS: [f32; 4096] = [0.0; 4096];

/// Sums of a tile: `sums[pixel][channel]`.
pub(crate) type Sums = [[f32; BLOCK]; MOST_PIXELS];

/// How many floats `channels` output channels take when packed in columns, for each input.
pub(crate) fn packed_width(channels: usize) -> usize {
    channels.next_multiple_of(COLUMN)
}

/// The input patches of the pixels of a tile.
///
/// The reduction runs over the taps in row-major order and, for each tap, over the input channels. The channel c of tap (i, j, k) of
/// pixel p lies at `base[p] + steps[0] * taps[0][i] + steps[1] * taps[1][j] + steps[2] * taps[2][k] + c` if the position
/// `at[axis][p] + taps[axis][..]` is below `size[axis]` on each axis, and is zero otherwise.
#[derive(Clone, Copy)]
pub(crate) struct Patches<'a> {
    /// Where the first channel of tap offset zero lies or would lie; wraps around where that is outside of the input.
    pub base: [usize; MOST_PIXELS],
    /// Position of tap offset zero on each axis; may be negative.
    pub at: [[isize; MOST_PIXELS]; 3],
    /// Whether all taps of all pixels are inside, for each axis.
    pub inside: [bool; 3],
    /// Offsets of the taps on each axis.
    pub taps: [&'a [isize]; 3],
    /// Size of the input.
    pub size: [usize; 3],
    /// Elements from one position to the next on each axis.
    pub steps: [usize; 3],
    /// Input channels.
    pub channels: usize,
    /// Whether the taps of the last axis follow each other in memory without a gap.
    pub contiguous: bool,
    /// How far away the inputs of the next tile lie, to ask for them ahead; 0 not to.
    pub next: usize,
    /// How the reduction is cut up.
    pub cut: Cut,
}

impl Patches<'_> {
    /// How many inputs a pixel has.
    fn depth(&self) -> usize {
        self.taps.iter().map(|taps| taps.len()).product::<usize>() * self.channels
    }
}

/// The packed weights of a block of output channels.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    /// One or two columns: in each, 16 floats for each input in the order of the reduction.
    pub columns: &'a [f32],
    /// Where the weights begin that are needed after these, seen from the first ones, so that they can be asked for: 0 if the same
    /// weights meet another tile, the length of the block if the next block follows. What nobody needs may not even be mapped, and the
    /// processor would look for it in vain, which takes long.
    pub then: usize,
}

/// Adds up a tile of `pixels` pixels and `channels` output channels of a block: for each pixel and channel the segments' sum, each
/// segment a chain of multiply-adds over the taps and input channels in order.
///
/// # Safety
/// For each of the pixels, each tap that `patches` says is inside, and each channel, the index that `Patches` defines must lie within
/// `input`.
#[inline(always)]
pub(crate) unsafe fn accumulate<S: Simd>(
    simd: S,
    input: &[f32],
    patches: &Patches,
    block: Block,
    pixels: usize,
    channels: usize,
    sums: &mut Sums,
) {
    macro_rules! run {
        ($pixels:literal, $vectors:literal, $first:expr, $block:expr) => {
            // Only whole tiles ask ahead, so that there are not twice as many kinds of tiles.
            match S::PORTABLE {
                true => safe_tile::<S, $pixels, $vectors>(simd, input, patches, $block.columns, $first, sums),
                // SAFETY: passed on.
                false if ($pixels == 12 || $pixels == 6) && patches.next != 0 => unsafe {
                    fast_tile::<S, $pixels, $vectors, { $pixels == 12 || $pixels == 6 }>(
                        simd, input, patches, $block, $first, sums,
                    )
                },
                // SAFETY: passed on.
                false => unsafe {
                    fast_tile::<S, $pixels, $vectors, false>(simd, input, patches, $block, $first, sums)
                },
            }
        };
    }
    macro_rules! by_pixels {
        ($vectors:literal, $first:expr, $block:expr) => {
            match pixels {
                1 => run!(1, $vectors, $first, $block),
                2 => run!(2, $vectors, $first, $block),
                3 => run!(3, $vectors, $first, $block),
                4 => run!(4, $vectors, $first, $block),
                5 if !S::PORTABLE => run!(5, $vectors, $first, $block),
                6 if !S::PORTABLE => run!(6, $vectors, $first, $block),
                7 if S::LANES == 16 => run!(7, $vectors, $first, $block),
                8 if S::LANES == 16 => run!(8, $vectors, $first, $block),
                9 if S::LANES == 16 => run!(9, $vectors, $first, $block),
                10 if S::LANES == 16 => run!(10, $vectors, $first, $block),
                11 if S::LANES == 16 => run!(11, $vectors, $first, $block),
                12 if S::LANES == 16 => run!(12, $vectors, $first, $block),
                _ => unreachable!("a tile of this level has fewer pixels"),
            }
        };
    }
    if S::PORTABLE {
        for first in (0..channels).step_by(S::LANES) {
            by_pixels!(1, first, block);
        }
    } else {
        for first in (0..channels).step_by(2 * S::LANES) {
            // The other column of the block comes before what follows it.
            let block = match channels - first > COLUMN && S::LANES < COLUMN {
                true => Block { then: COLUMN * patches.depth(), ..block },
                false => block,
            };
            match channels - first > S::LANES {
                true => by_pixels!(2, first, block),
                false => by_pixels!(1, first, block),
            }
        }
    }
}

/// How the reduction of a tile is cut up. Where segments end depends on the taps and channels alone, not on the position.
#[derive(Clone, Copy)]
pub(crate) struct Cut {
    /// Taps of a row.
    taps: usize,
    /// Most inputs that are added up between two looks at the pointers.
    part: usize,
    /// Inputs of a segment: whole rows of taps, or zero if every part is one.
    segment: usize,
}

impl Cut {
    /// Most inputs that are added up between two looks at the pointers.
    pub(crate) fn part(&self) -> usize {
        self.part
    }

    /// For so many taps in a row, of so many channels each.
    pub(crate) fn new(taps: usize, channels: usize) -> Cut {
        let row = taps * channels;
        match row > SEGMENT {
            true => Cut { taps, part: channels.div_ceil(channels.div_ceil(SEGMENT)), segment: 0 },
            false => Cut { taps, part: SEGMENT, segment: SEGMENT / row.max(1) * row.max(1) },
        }
    }

    /// Into how many stretches of inputs a row of taps falls, and how long they are. Where all taps of a row are inside and follow each
    /// other in memory, and a segment has room for them, they are one stretch.
    #[inline(always)]
    fn stretches(&self, patches: &Patches) -> (usize, usize) {
        match self.segment > 0 && patches.contiguous && patches.inside[2] {
            true => (self.taps.min(1), self.taps * patches.channels),
            false => (self.taps, patches.channels),
        }
    }
}

/// Makes the chains of the first segment the sums, or adds those of a later one.
#[inline(always)]
fn end_segment<S: Simd, const P: usize, const N: usize>(
    simd: S,
    acc: &[[S::Floats; N]; P],
    first: usize,
    is_first: bool,
    sums: &mut Sums,
) {
    if is_first {
        for p in 0..P {
            for n in 0..N {
                simd.store(acc[p][n], &mut sums[p][first + n * S::LANES..]);
            }
        }
    } else {
        for p in 0..P {
            for n in 0..N {
                let place = &mut sums[p][first + n * S::LANES..];
                simd.store(simd.add(simd.load(place), acc[p][n]), place);
            }
        }
    }
}

impl Patches<'_> {
    /// What a tap adds to the base.
    #[inline(always)]
    pub(crate) fn shift(&self, z: isize, y: isize, x: isize) -> usize {
        (z as usize)
            .wrapping_mul(self.steps[0])
            .wrapping_add((y as usize).wrapping_mul(self.steps[1]))
            .wrapping_add((x as usize).wrapping_mul(self.steps[2]))
    }

    /// Whether a tap of a pixel is inside.
    #[inline(always)]
    pub(crate) fn is_inside(&self, pixel: usize, z: isize, y: isize, x: isize) -> bool {
        (self.inside[0] || ((self.at[0][pixel] + z) as usize) < self.size[0])
            && (self.inside[1] || ((self.at[1][pixel] + y) as usize) < self.size[1])
            && (self.inside[2] || ((self.at[2][pixel] + x) as usize) < self.size[2])
    }
}

/// A tile of exactly P pixels and N vectors of channels, beginning at channel `first` of a block; with slices.
#[inline(always)]
fn safe_tile<S: Simd, const P: usize, const N: usize>(
    simd: S,
    input: &[f32],
    patches: &Patches,
    weights: &[f32],
    first: usize,
    sums: &mut Sums,
) {
    let mut acc = [[simd.splat(0.0); N]; P];
    let depth = patches.depth();
    let starts: [usize; N] = std::array::from_fn(|n| {
        let channel = first + n * S::LANES;
        channel / COLUMN * COLUMN * depth + channel % COLUMN
    });
    let mut position = 0;
    let cut = patches.cut;
    let (stretches, length) = cut.stretches(patches);
    let (mut pending, mut is_first) = (0, true);
    for z in patches.taps[0] {
        for y in patches.taps[1] {
            for x in &patches.taps[2][..stretches] {
                let shift = patches.shift(*z, *y, *x);
                let mut done = 0;
                while done < length {
                    let part = (length - done).min(cut.part);
                    let mut rows: [&[f32]; P] = [&ZEROS[..part]; P];
                    for p in 0..P {
                        if patches.is_inside(p, *z, *y, *x) {
                            let start = patches.base[p].wrapping_add(shift).wrapping_add(done);
                            rows[p] = &input[start..start + part];
                        }
                    }
                    let mut chains = acc;
                    for c in 0..part {
                        let mut w = [simd.splat(0.0); N];
                        for n in 0..N {
                            w[n] = simd.load(&weights[starts[n] + (position + c) * COLUMN..]);
                        }
                        for p in 0..P {
                            let x = simd.splat(rows[p][c]);
                            for n in 0..N {
                                chains[p][n] = simd.multiply_add(x, w[n], chains[p][n]);
                            }
                        }
                    }
                    acc = chains;
                    position += part;
                    done += part;
                    pending += part;
                    if pending >= cut.segment {
                        end_segment(simd, &acc, first, is_first, sums);
                        acc = [[simd.splat(0.0); N]; P];
                        (pending, is_first) = (0, false);
                    }
                }
            }
        }
    }
    if pending > 0 || is_first {
        end_segment(simd, &acc, first, is_first, sums);
    }
}

/// A tile of exactly P pixels and N vectors of channels, beginning at channel `first` of a block; with pointers, one register a pixel,
/// all indexed by the same counter. ASK says whether to ask for the inputs of the next tile.
///
/// # Safety
/// As for `accumulate`.
#[inline(always)]
unsafe fn fast_tile<S: Simd, const P: usize, const N: usize, const ASK: bool>(
    simd: S,
    input: &[f32],
    patches: &Patches,
    block: Block,
    first: usize,
    sums: &mut Sums,
) {
    let depth = patches.depth();
    let (start, end) = (first / COLUMN, (first + N * S::LANES).div_ceil(COLUMN));
    assert!(first % COLUMN + S::LANES <= COLUMN, "invariant: a vector lies within its column");
    assert!(block.columns.len() >= end * COLUMN * depth, "invariant: weights for each input");
    let mut acc = [[simd.splat(0.0); N]; P];
    let columns = block.columns.as_ptr();
    let mut weight = columns.wrapping_add(start * COLUMN * depth + first % COLUMN);
    // From one vector of channels to the next: they share a column, or each has its own.
    let vector = if S::LANES == COLUMN { COLUMN * depth } else { S::LANES };
    // Weights are asked for some inputs ahead, behind the last one those that are needed next.
    let last = weight.wrapping_add(COLUMN * depth);
    let ahead = COLUMN * depth.min(AHEAD);
    let jump = block.then.wrapping_sub((start + 1) * COLUMN * depth);
    let cut = patches.cut;
    let (stretches, length) = cut.stretches(patches);
    let (mut pending, mut is_first) = (0, true);
    let all_inside = patches.inside == [true; 3];
    for z in patches.taps[0] {
        for y in patches.taps[1] {
            for x in &patches.taps[2][..stretches] {
                let start = input.as_ptr().wrapping_add(patches.shift(*z, *y, *x));
                let mut done = 0;
                while done < length {
                    let part = (length - done).min(cut.part);
                    // The pointers stand at the ends of their stretches and are indexed by a counter that rises to zero.
                    let mut ends = [start; P];
                    for p in 0..P {
                        ends[p] = start.wrapping_add(patches.base[p]).wrapping_add(done + part);
                    }
                    if !all_inside {
                        for p in 0..P {
                            if !patches.is_inside(p, *z, *y, *x) {
                                ends[p] = ZEROS.as_ptr().wrapping_add(part);
                            }
                        }
                    }
                    let mut c = -(part as isize);
                    while c < 0 {
                        let mut line = 0;
                        if ASK {
                            line = (c + LINE).min(0);
                            for p in 0..P {
                                simd.prefetch(ends[p].wrapping_offset(c).wrapping_add(patches.next));
                            }
                        }
                        while c < line {
                            let mut w = [simd.splat(0.0); N];
                            for n in 0..N {
                                // SAFETY: `weight` has moved by a line for each input so far, of which there are fewer than `depth`, so that
                                // it lies in a column, as do the vectors that follow it in this column or at the same place of the next one,
                                // of which the assertions say that they exist.
                                w[n] = unsafe { simd.load_pointer(weight.wrapping_add(n * vector)) };
                            }
                            for p in 0..P {
                                // SAFETY: c runs over -part .. 0, so this is either one of the first `part` <= SEGMENT <= ZEROS.len() zeros, or
                                // an input that is inside, whose index the caller promises to be within the input.
                                let x = simd.splat(unsafe { *ends[p].wrapping_offset(c) });
                                for n in 0..N {
                                    acc[p][n] = simd.multiply_add(x, w[n], acc[p][n]);
                                }
                            }
                            let mut next = weight.wrapping_add(ahead);
                            if next >= last {
                                next = next.wrapping_add(jump);
                            }
                            simd.prefetch(next);
                            if N * S::LANES > COLUMN {
                                simd.prefetch(next.wrapping_add(vector));
                            }
                            weight = weight.wrapping_add(COLUMN);
                            c += 1;
                        }
                    }
                    done += part;
                    pending += part;
                    if pending >= cut.segment {
                        end_segment(simd, &acc, first, is_first, sums);
                        acc = [[simd.splat(0.0); N]; P];
                        (pending, is_first) = (0, false);
                    }
                }
            }
        }
    }
    if pending > 0 || is_first {
        end_segment(simd, &acc, first, is_first, sums);
    }
}
