//! Convolution in which each output pixel depends on the input pixel of the same number alone: a matrix product of pixels by channels.

use crate::convolution::{Plan, Work};
use crate::level::Kernel;
use crate::product::Product;
use crate::program::Pixels;
use crate::shared::Shared;
use crate::tile::{BLOCK, Block, packed_width};
use crate::vector::Simd;

/// Most pixels whose sums are made before they are finished: they should stay in the first-level cache.
const MOST_PIXELS: usize = 48;

/// One chunk of pixels and one run of blocks.
pub(crate) struct Task<'a> {
    pub(crate) work: &'a Work<'a>,
    pub(crate) plan: &'a Plan<'a>,
    pub(crate) index: usize,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task { work, plan, index } = self;
        let Work { convolution, finish, level, .. } = work;
        let (pixels, blocks) = plan.share(index);
        let (inputs, outputs) = convolution.of_group();
        let blocks_of_group = outputs.div_ceil(BLOCK);
        let view = work.input_view;
        if work.shares_words() {
            for pixel in pixels.clone() {
                // SAFETY: where words are shared, this task does all channels of its pixels, and no other task has these pixels.
                unsafe { finish.clear_record(pixel) };
            }
        }
        let mut sums = [[0.0; BLOCK]; MOST_PIXELS];
        let mut places = [0; MOST_PIXELS];
        for index in blocks.clone() {
            let (group, block) = (index / blocks_of_group, index % blocks_of_group);
            let channels = BLOCK.min(outputs - block * BLOCK);
            let channel = group * outputs + block * BLOCK;
            let begin = plan.pass.weights + (group * packed_width(outputs) + block * BLOCK) * inputs;
            let columns = &work.weights[begin..begin + packed_width(channels) * inputs];
            let after = if index + 1 == blocks.end { 0 } else { columns.len() };
            let direct =
                if channels.is_multiple_of(S::LANES) { finish.direct(channel, channels) } else { None };
            let step = if direct.is_some() { pixels.len() } else { MOST_PIXELS };
            for first in pixels.clone().step_by(step) {
                let rows = step.min(pixels.end - first);
                let places = &mut places[..rows.min(MOST_PIXELS)];
                for (place, pixel) in places.iter_mut().zip(first..) {
                    *place = pixel;
                }
                let product = |to, to_start, to_stride, finish| Product {
                    input: work.input,
                    start: first * view.pixel_stride + view.channel_offset + group * inputs,
                    stride: view.pixel_stride,
                    rows,
                    depth: inputs,
                    block: Block { columns, then: if first + rows == pixels.end { after } else { 0 } },
                    channels,
                    to,
                    to_start,
                    to_stride,
                    finish,
                    asks_ahead: plan.asks_ahead && index == blocks.start,
                };
                // SAFETY: tasks have disjoint pixels or disjoint blocks of channels. Blocks begin at multiples of 16 channels, so that
                // they share no words of a mask, or else `shares_words` has given all blocks to one task.
                unsafe {
                    match direct {
                        Some((to, view, bounds)) => {
                            let start = first * view.pixel_stride + view.channel_offset + channel;
                            product(to, start, view.pixel_stride, bounds).run(*level);
                        }
                        None => {
                            finish.ask(simd, places, channel, channels);
                            let to = Shared::new(sums.as_flattened_mut());
                            product(to, 0, BLOCK, None).run(*level);
                            finish.tile(simd, &sums, places, channel, channels);
                        }
                    }
                }
            }
        }
        let channel = |index: usize| index / blocks_of_group * outputs + index % blocks_of_group * BLOCK;
        let row = Pixels::Row { first: pixels.start, step: 1, count: pixels.len() };
        // SAFETY: as before.
        unsafe { finish.go_on(row, channel(blocks.start), channel(blocks.end) - channel(blocks.start)) };
    }
}
