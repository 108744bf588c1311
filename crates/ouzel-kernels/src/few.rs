//! Convolution to very few channels, such as the gradient of a picture: vectors run along the input channels instead.

use crate::tile::{Patches, Sums, ZEROS};
use crate::vector::Simd;

/// Most output channels that are few.
pub(crate) const MOST_OUTPUTS: usize = 4;

/// Input channels that the weights are packed by: `[tap][chunk of inputs][output][input within the chunk]`, absent inputs zero.
pub(crate) const CHUNK: usize = 16;

/// Whether a convolution is better done in this way.
pub(crate) fn suits(groups: usize, inputs: usize, outputs: usize) -> bool {
    groups == 1 && outputs <= MOST_OUTPUTS && (CHUNK..=ZEROS.len()).contains(&inputs)
}

/// How many floats the weights of one tap take.
pub(crate) fn packed_tap(inputs: usize, outputs: usize) -> usize {
    inputs.next_multiple_of(CHUNK) * outputs
}

/// How many pixels a tile has at most on a level with so many lanes.
pub(crate) fn tile_pixels(lanes: usize) -> usize {
    if lanes == 16 { 6 } else { 2 }
}

/// Adds up a tile: each lane is one chain of multiply-adds over the taps and chunks, and the lanes are added pairwise at last.
///
/// # Safety
/// For each of the pixels, each tap that `patches` says is inside, and each channel, the index that `Patches` defines must lie within
/// `input`.
#[inline(always)]
pub(crate) unsafe fn accumulate<S: Simd>(
    simd: S,
    input: &[f32],
    patches: &Patches,
    weights: &[f32],
    pixels: usize,
    outputs: usize,
    sums: &mut Sums,
) {
    macro_rules! by_outputs {
        ($pixels:literal) => {
            // SAFETY: passed on.
            unsafe {
                match outputs {
                    1 => tile::<S, $pixels, 1>(simd, input, patches, weights, sums),
                    2 => tile::<S, $pixels, 2>(simd, input, patches, weights, sums),
                    3 => tile::<S, $pixels, 3>(simd, input, patches, weights, sums),
                    _ => tile::<S, $pixels, 4>(simd, input, patches, weights, sums),
                }
            }
        };
    }
    match pixels {
        1 => by_outputs!(1),
        2 => by_outputs!(2),
        3 if S::LANES == 16 => by_outputs!(3),
        4 if S::LANES == 16 => by_outputs!(4),
        5 if S::LANES == 16 => by_outputs!(5),
        6 if S::LANES == 16 => by_outputs!(6),
        _ => unreachable!("a tile of this level has fewer pixels"),
    }
}

/// A tile of exactly P pixels and O outputs.
///
/// # Safety
/// As for `accumulate`.
#[inline(always)]
unsafe fn tile<S: Simd, const P: usize, const O: usize>(
    simd: S,
    input: &[f32],
    patches: &Patches,
    weights: &[f32],
    sums: &mut Sums,
) {
    let channels = patches.channels;
    assert!(channels <= ZEROS.len(), "invariant: a row of zeros for all channels");
    let all_inside = patches.inside == [true; 3];
    let mut acc = [[simd.splat(0.0); O]; P];
    let mut chunks = weights.chunks_exact(CHUNK * O);
    for z in patches.taps[0] {
        for y in patches.taps[1] {
            for x in patches.taps[2] {
                let shift = patches.shift(*z, *y, *x);
                if S::PORTABLE {
                    let mut rows = [&ZEROS[..channels]; P];
                    for p in 0..P {
                        if patches.is_inside(p, *z, *y, *x) {
                            rows[p] = &input[shift.wrapping_add(patches.base[p])..][..channels];
                        }
                    }
                    for channel in (0..channels).step_by(CHUNK) {
                        let chunk = chunks.next().expect("invariant: weights for each tap and chunk");
                        for part in (channel..channels.min(channel + CHUNK)).step_by(S::LANES) {
                            for p in 0..P {
                                let value = simd.load_partial(&rows[p][part..channels.min(part + S::LANES)]);
                                for o in 0..O {
                                    let w = simd.load(&chunk[o * CHUNK + part - channel..]);
                                    acc[p][o] = simd.multiply_add(value, w, acc[p][o]);
                                }
                            }
                        }
                    }
                    continue;
                }
                let mut rows = [input.as_ptr().wrapping_add(shift); P];
                for p in 0..P {
                    rows[p] = rows[p].wrapping_add(patches.base[p]);
                }
                if !all_inside {
                    for p in 0..P {
                        if !patches.is_inside(p, *z, *y, *x) {
                            rows[p] = ZEROS.as_ptr();
                        }
                    }
                }
                for channel in (0..channels).step_by(CHUNK) {
                    let chunk = chunks.next().expect("invariant: weights for each tap and chunk");
                    for part in (0..CHUNK.min(channels - channel)).step_by(S::LANES) {
                        let mut w = [simd.splat(0.0); O];
                        for o in 0..O {
                            w[o] = simd.load(&chunk[o * CHUNK + part..o * CHUNK + part + S::LANES]);
                        }
                        let count = channels - channel - part;
                        for p in 0..P {
                            let from = rows[p].wrapping_add(channel + part);
                            // SAFETY: `count` channels follow, all of which the caller promises to lie within the input if the tap
                            // is inside; else there are at least as many zeros as channels.
                            let value = unsafe {
                                match count >= S::LANES {
                                    true => simd.load_pointer(from),
                                    false => simd.load_partial(std::slice::from_raw_parts(from, count)),
                                }
                            };
                            for o in 0..O {
                                acc[p][o] = simd.multiply_add(value, w[o], acc[p][o]);
                            }
                        }
                    }
                }
            }
        }
    }
    for p in 0..P {
        for o in 0..O {
            sums[p][o] = simd.sum(acc[p][o]);
        }
    }
}
