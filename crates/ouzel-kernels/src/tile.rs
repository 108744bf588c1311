//! The micro-kernel of all matrix-like work: a tile of output pixels × output channels that stays in registers.

use crate::vector::Simd;

/// Most pixels of a tile, over all levels.
pub(crate) const MOST_PIXELS: usize = 12;

/// Output channels of a block of packed weights; the last block of a group may be `HALF_BLOCK` wide.
pub(crate) const BLOCK: usize = 32;

/// Output channels of a narrow block.
pub(crate) const HALF_BLOCK: usize = 16;

/// Read in place of input pixels that lie in the padding.
pub(crate) static ZEROS: [f32; 4096] = [0.0; 4096];

/// Sums of a tile: `sums[pixel][channel]`.
pub(crate) type Sums = [[f32; BLOCK]; MOST_PIXELS];

/// How many output channels a block has whose first channel is followed by `rest - 1` others: 32, or 16 if that is enough.
pub(crate) fn block_width(rest: usize) -> usize {
    if rest > HALF_BLOCK { BLOCK } else { HALF_BLOCK }
}

/// How many floats `channels` output channels take when packed in blocks, for each input.
pub(crate) fn packed_width(channels: usize) -> usize {
    let rest = channels % BLOCK;
    channels - rest + if rest == 0 { 0 } else { block_width(rest) }
}

/// The input patches of the pixels of a tile.
///
/// The reduction runs over the taps in row-major order and, for each tap, over the input channels. The channel c of tap (i, j, k) of
/// pixel p lies at `base[p] + steps[0] * taps[0][i] + steps[1] * taps[1][j] + steps[2] * taps[2][k] + c` if the position
/// `at[axis][p] + taps[axis][..]` is below `size[axis]` on each axis, and is zero otherwise.
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
}

impl Patches<'_> {
    /// How many inputs a pixel has.
    fn depth(&self) -> usize {
        self.taps.iter().map(|taps| taps.len()).product::<usize>() * self.channels
    }
}

/// Adds up a tile of `pixels` pixels and `channels` output channels of a block: for each pixel and channel one chain of
/// multiply-adds over the taps and input channels in order.
///
/// `weights` holds a block: for each input in the order of the reduction, `width` floats.
#[inline(always)]
pub(crate) fn accumulate<S: Simd>(
    simd: S,
    input: &[f32],
    patches: &Patches,
    weights: &[f32],
    width: usize,
    pixels: usize,
    channels: usize,
    sums: &mut Sums,
) {
    macro_rules! by_pixels {
        ($width:literal, $vectors:literal, $first:expr) => {
            match pixels {
                1 => tile::<S, 1, $vectors, $width>(simd, input, patches, weights, $first, sums),
                2 => tile::<S, 2, $vectors, $width>(simd, input, patches, weights, $first, sums),
                3 => tile::<S, 3, $vectors, $width>(simd, input, patches, weights, $first, sums),
                4 => tile::<S, 4, $vectors, $width>(simd, input, patches, weights, $first, sums),
                5 if !S::PORTABLE => {
                    tile::<S, 5, $vectors, $width>(simd, input, patches, weights, $first, sums)
                }
                6 if !S::PORTABLE => {
                    tile::<S, 6, $vectors, $width>(simd, input, patches, weights, $first, sums)
                }
                7 if S::LANES == 16 => {
                    tile::<S, 7, $vectors, $width>(simd, input, patches, weights, $first, sums)
                }
                8 if S::LANES == 16 => {
                    tile::<S, 8, $vectors, $width>(simd, input, patches, weights, $first, sums)
                }
                9 if S::LANES == 16 => {
                    tile::<S, 9, $vectors, $width>(simd, input, patches, weights, $first, sums)
                }
                10 if S::LANES == 16 => {
                    tile::<S, 10, $vectors, $width>(simd, input, patches, weights, $first, sums)
                }
                11 if S::LANES == 16 => {
                    tile::<S, 11, $vectors, $width>(simd, input, patches, weights, $first, sums)
                }
                12 if S::LANES == 16 => {
                    tile::<S, 12, $vectors, $width>(simd, input, patches, weights, $first, sums)
                }
                _ => unreachable!("a tile of this level has fewer pixels"),
            }
        };
    }
    if S::PORTABLE {
        for first in (0..channels).step_by(S::LANES) {
            match width {
                BLOCK => by_pixels!(32, 1, first),
                _ => by_pixels!(16, 1, first),
            }
        }
    } else if S::LANES == 16 {
        match width {
            BLOCK => by_pixels!(32, 2, 0),
            _ => by_pixels!(16, 1, 0),
        }
    } else {
        for first in (0..channels).step_by(2 * S::LANES) {
            let two = channels - first > S::LANES;
            match (width, two) {
                (BLOCK, true) => by_pixels!(32, 2, first),
                (BLOCK, false) => by_pixels!(32, 1, first),
                (_, true) => by_pixels!(16, 2, first),
                (_, false) => by_pixels!(16, 1, first),
            }
        }
    }
}

/// A tile of exactly P pixels and N vectors of channels, beginning at channel `first` of a block that is W wide.
#[inline(always)]
fn tile<S: Simd, const P: usize, const N: usize, const W: usize>(
    simd: S,
    input: &[f32],
    patches: &Patches,
    weights: &[f32],
    first: usize,
    sums: &mut Sums,
) {
    assert!(first + N * S::LANES <= W, "invariant: a tile lies within its block");
    assert!(weights.len() >= patches.depth() * W, "invariant: weights for each input");
    let mut acc = [[simd.splat(0.0); N]; P];
    let mut weights = weights;
    // Where all taps of a row are inside and follow each other in memory, they are one stretch of inputs.
    let row_length = patches.taps[2].len() * patches.channels;
    let (count, length) = match patches.contiguous && patches.inside[2] {
        true => (usize::from(row_length > 0), row_length),
        false => (patches.taps[2].len(), patches.channels),
    };
    for z in patches.taps[0] {
        for y in patches.taps[1] {
            for x in &patches.taps[2][..count] {
                let shift = (*z as usize)
                    .wrapping_mul(patches.steps[0])
                    .wrapping_add((*y as usize).wrapping_mul(patches.steps[1]))
                    .wrapping_add((*x as usize).wrapping_mul(patches.steps[2]));
                let mut rows = [Some(0); P];
                let mut padded = false;
                for p in 0..P {
                    let inside = (patches.inside[0] || ((patches.at[0][p] + z) as usize) < patches.size[0])
                        && (patches.inside[1] || ((patches.at[1][p] + y) as usize) < patches.size[1])
                        && (patches.inside[2] || ((patches.at[2][p] + x) as usize) < patches.size[2]);
                    rows[p] = inside.then(|| patches.base[p].wrapping_add(shift));
                    padded |= !inside;
                }
                let mut rest = length;
                while rest > 0 {
                    let part = if padded { rest.min(ZEROS.len()) } else { rest };
                    let (now, later) = weights.split_at(part * W);
                    weights = later;
                    if S::PORTABLE {
                        safe_stretch::<S, P, N, W>(simd, &mut acc, input, &rows, part, now, first);
                    } else {
                        fast_stretch::<S, P, N, W>(simd, &mut acc, input, &rows, part, now, first);
                    }
                    for row in rows.iter_mut().flatten() {
                        *row = row.wrapping_add(part);
                    }
                    rest -= part;
                }
            }
        }
    }
    for p in 0..P {
        for n in 0..N {
            simd.store(acc[p][n], &mut sums[p][first + n * S::LANES..]);
        }
    }
}

/// Adds one stretch to the sums, with slices.
#[inline(always)]
fn safe_stretch<S: Simd, const P: usize, const N: usize, const W: usize>(
    simd: S,
    acc: &mut [[S::Floats; N]; P],
    input: &[f32],
    rows: &[Option<usize>; P],
    length: usize,
    weights: &[f32],
    first: usize,
) {
    let rows: [&[f32]; P] = rows.map(|row| match row {
        Some(start) => &input[start..start + length],
        None => &ZEROS[..length],
    });
    let mut sums = *acc;
    for (c, weights) in weights.chunks_exact(W).enumerate().take(length) {
        let mut w = [simd.splat(0.0); N];
        for n in 0..N {
            w[n] = simd.load(&weights[first + n * S::LANES..]);
        }
        for p in 0..P {
            let x = simd.splat(rows[p][c]);
            for n in 0..N {
                sums[p][n] = simd.multiply_add(x, w[n], sums[p][n]);
            }
        }
    }
    *acc = sums;
}

/// Adds one stretch to the sums, with pointers: one register a pixel, all indexed by the same counter.
#[inline(always)]
fn fast_stretch<S: Simd, const P: usize, const N: usize, const W: usize>(
    simd: S,
    acc: &mut [[S::Floats; N]; P],
    input: &[f32],
    rows: &[Option<usize>; P],
    length: usize,
    weights: &[f32],
    first: usize,
) {
    assert!(weights.len() >= length * W, "invariant: weights for each input");
    // The pointers stand at the ends of their patches and are indexed by a counter that rises to zero.
    let ends: [*const f32; P] = rows.map(|row| match row {
        Some(start) => input[start..start + length].as_ptr_range().end,
        None => ZEROS[..length].as_ptr_range().end,
    });
    let mut weight = weights[..length * W].as_ptr().wrapping_add(first);
    let mut sums = *acc;
    let mut c = -(length as isize);
    while c < 0 {
        let mut w = [simd.splat(0.0); N];
        for n in 0..N {
            // SAFETY: `weight` stands `first` floats into the c-th of `length` groups of W, and first + N * LANES <= W.
            w[n] = unsafe { simd.load_pointer(weight.add(n * S::LANES)) };
        }
        for p in 0..P {
            // SAFETY: -length <= c < 0, and the `length` floats before `ends[p]` are a slice.
            let x = simd.splat(unsafe { *ends[p].offset(c) });
            for n in 0..N {
                sums[p][n] = simd.multiply_add(x, w[n], sums[p][n]);
            }
        }
        weight = weight.wrapping_add(W);
        c += 1;
    }
    *acc = sums;
}
