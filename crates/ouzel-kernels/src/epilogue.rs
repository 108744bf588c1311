//! What happens to a result while it is still in registers: bias, addition, activation, gates; and what follows in the cache.

use crate::level::Level;
use crate::program::{Operand, Program};
use crate::setting::{Pixels, Place, Setting};
use crate::shared::Shared;
use crate::tile::{Asked, BLOCK, Bounds, COLUMN};
use crate::vector::Simd;
use crate::view::View;

/// Channels that one word of a bit mask covers.
pub(crate) const WORD: usize = 16;

/// How many words a bit mask has for each pixel.
///
/// A mask is a slice of `u16`: the bit of channel c of pixel p is bit `c % 16` of word `p * mask_words(channels) + c / 16`.
pub fn mask_words(channels: usize) -> usize {
    channels.div_ceil(WORD)
}

/// A tensor that is added to the result.
#[derive(Clone, Copy, Debug)]
pub enum Addend<'a> {
    /// What the output held before: the result is accumulated.
    Output,
    /// Another tensor with as many pixels and channels as the output; the view says where its channels lie.
    Tensor(&'a [f32], View),
}

/// A function applied to each element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// max(x, 0)
    Relu,
    /// min(max(x, low), high)
    Clip {
        /// The least result.
        low: f32,
        /// The greatest result.
        high: f32,
    },
    /// x where x > 0, else slope · x
    LeakyRelu(f32),
}

/// Which elements, seen before the activation, get a set bit in the recorded mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RecordRule {
    /// x > 0: where a Relu has slope 1.
    Positive,
    /// low < x < high: where a Clip has slope 1, the bounds excluded (ReLU6).
    Between(f32, f32),
    /// low <= x <= high: where a Clip has slope 1, the bounds included.
    Within(f32, f32),
}

/// Which elements a gate lets through; the others become exactly zero, whatever they were.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum GateRule {
    /// Where the bit is set: the true derivative.
    Gradient,
    /// Where the bit is set and the value is positive: guided backpropagation.
    Guided,
    /// Where the value is positive: deconvnet. Needs no mask.
    Rectified,
    /// Where the bit is set; elsewhere the value is multiplied by the slope: the derivative of LeakyRelu.
    Leaky(f32),
}

/// A selection of elements by a recorded mask.
#[derive(Clone, Copy, Debug)]
pub struct Gate<'a> {
    /// Which elements pass.
    pub rule: GateRule,
    /// The recorded bits, see [`mask_words`]; may be empty for [`GateRule::Rectified`].
    pub mask: &'a [u16],
    /// Whether the gate acts before the addend is added rather than last.
    pub before_addend: bool,
}

/// An elementwise program that goes on with a result while it is still in the cache.
///
/// Its first result takes the place of what the kernel has stored; if that is needed too, it stores it as the second.
#[derive(Debug)]
pub struct Tail<'a> {
    /// What is computed.
    pub program: &'a Program,
    /// The shape of the output as operands are broadcast to it; channels and number of pixels are those of the output.
    pub shape: View,
    /// What the program reads; [`Operand::Before`] is what the epilogue has made so far.
    pub operands: &'a [Operand<'a>],
    /// Where the program's second result goes, if it has one.
    pub second: Option<(&'a mut [f32], View)>,
}

/// What to do with each element of a result before it is stored, in this order:
/// bias, gate if it comes before the addend, addend, record, activation, gate otherwise, tail.
///
/// ```
/// use ouzel_kernels::{Activation, Epilogue};
/// let bias = [0.5, -0.5];
/// let epilogue = Epilogue { bias: Some(&bias), activation: Some(Activation::Relu), ..Epilogue::default() };
/// assert!(epilogue.record.is_none());
/// ```
#[derive(Debug, Default)]
pub struct Epilogue<'a> {
    /// One value a channel, added.
    pub bias: Option<&'a [f32]>,
    /// A tensor that is added.
    pub addend: Option<Addend<'a>>,
    /// A mask that receives one bit an element, see [`mask_words`], and what it says.
    pub record: Option<(&'a mut [u16], RecordRule)>,
    /// A function that is applied.
    pub activation: Option<Activation>,
    /// A gate.
    pub gate: Option<Gate<'a>>,
    /// What follows.
    pub tail: Option<Tail<'a>>,
}

/// An epilogue that has been checked against its output and can be used by many threads.
#[derive(Clone, Copy)]
pub(crate) struct Finish<'a> {
    level: Level,
    output: Shared<'a, f32>,
    view: View,
    words: usize,
    bias: Option<&'a [f32]>,
    addend: Option<Addend<'a>>,
    record: Option<(Shared<'a, u16>, RecordRule)>,
    activation: Option<Activation>,
    gate: Option<Gate<'a>>,
    tail: Option<Setting<'a>>,
}

impl<'a> Finish<'a> {
    /// Checks that all parts fit together.
    pub(crate) fn new(
        level: Level,
        epilogue: Epilogue<'a>,
        output: &'a mut [f32],
        view: &View,
    ) -> Finish<'a> {
        view.check(output.len(), "output");
        let words = mask_words(view.channels);
        let mask_len = view.pixels().checked_mul(words).expect("a mask is too long");
        if let Some(bias) = epilogue.bias {
            assert!(
                bias.len() >= view.channels,
                "bias has {} elements for {} channels",
                bias.len(),
                view.channels
            );
        }
        if let Some(Addend::Tensor(data, addend)) = epilogue.addend {
            addend.check(data.len(), "addend");
            assert!(
                addend.pixels() == view.pixels() && addend.channels == view.channels,
                "addend {addend:?} differs from output {view:?}"
            );
        }
        if let Some((mask, _)) = &epilogue.record {
            assert!(mask.len() >= mask_len, "recorded mask has {} words, needs {mask_len}", mask.len());
        }
        if let Some(gate) = &epilogue.gate {
            let enough = gate.mask.len() >= mask_len || gate.rule == GateRule::Rectified;
            assert!(enough, "gate mask has {} words, needs {mask_len}", gate.mask.len());
        }
        let output = Shared::new(output);
        let tail = epilogue.tail.map(|tail| {
            assert!(
                tail.shape.pixels() == view.pixels() && tail.shape.channels == view.channels,
                "the shape of a tail, {:?}, differs from output {view:?}",
                tail.shape
            );
            let second = tail.second.map(|(data, view)| Place::Full(Shared::new(data), view));
            let places = std::iter::once(Place::Full(output, *view)).chain(second);
            tail.program.setting(&tail.shape, tail.operands, places)
        });
        Finish {
            level,
            output,
            view: *view,
            words,
            bias: epilogue.bias,
            addend: epilogue.addend,
            record: epilogue.record.map(|(mask, rule)| (Shared::new(mask), rule)),
            activation: epilogue.activation,
            gate: epilogue.gate,
            tail,
        }
    }

    /// Whether bits are recorded.
    pub(crate) fn records(&self) -> bool {
        self.record.is_some()
    }

    /// Sets all recorded bits of some pixels to zero, as needed before `row` is called on channels that are no multiple of 16.
    ///
    /// # Safety
    /// No other thread may be at work on these pixels.
    pub(crate) unsafe fn clear_record(&self, pixel: usize) {
        if let Some((mask, _)) = &self.record {
            // SAFETY: the caller promises that nobody else uses the words of this pixel.
            unsafe { mask.part(pixel * self.words, self.words) }.fill(0);
        }
    }

    /// Bits `channel ..` of a pixel, lane 0 in bit 0; bits beyond the vector are to be ignored.
    #[inline(always)]
    fn gate_bits(&self, mask: &[u16], pixel: usize, channel: usize) -> u32 {
        let words = &mask[pixel * self.words..(pixel + 1) * self.words];
        let index = channel / WORD;
        let shift = channel % WORD;
        let mut bits = u32::from(words[index]);
        if shift != 0 && index + 1 < words.len() {
            bits |= u32::from(words[index + 1]) << WORD;
        }
        bits >> shift
    }

    #[inline(always)]
    fn apply_gate<S: Simd>(
        &self,
        simd: S,
        gate: &Gate,
        value: S::Floats,
        pixel: usize,
        channel: usize,
    ) -> S::Floats {
        let bits = match gate.rule {
            GateRule::Rectified => 0,
            _ => self.gate_bits(gate.mask, pixel, channel),
        };
        gate_vector(simd, gate.rule, bits, value)
    }

    /// Finishes and stores at most one vector: `count` channels from `channel` on of a pixel.
    ///
    /// # Safety
    /// No other thread may be at work on these channels of this pixel, nor, if bits are recorded, on any channel that shares their words.
    #[inline(always)]
    pub(crate) unsafe fn vector<S: Simd>(
        &self,
        simd: S,
        value: S::Floats,
        pixel: usize,
        channel: usize,
        count: usize,
    ) {
        let count = count.min(S::LANES);
        // SAFETY: passed on.
        let value = unsafe { self.value(simd, value, pixel, channel, count) };
        let position = pixel * self.view.pixel_stride + self.view.channel_offset + channel;
        // SAFETY: the elements belong to these channels of this pixel, which the caller promises to be ours alone.
        let output = unsafe { self.output.part(position, count) };
        if count == S::LANES {
            simd.store(value, output);
        } else {
            simd.store_partial(value, output);
        }
    }

    /// Finishes at most one vector, without the tail: `count` channels from `channel` on of a pixel.
    ///
    /// # Safety
    /// As for `vector`.
    #[inline(always)]
    unsafe fn value<S: Simd>(
        &self,
        simd: S,
        value: S::Floats,
        pixel: usize,
        channel: usize,
        count: usize,
    ) -> S::Floats {
        let mut value = value;
        let whole = count == S::LANES;
        if let Some(bias) = self.bias {
            let bias = &bias[channel..channel + count];
            value = simd.add(value, if whole { simd.load(bias) } else { simd.load_partial(bias) });
        }
        if let Some(gate) = &self.gate
            && gate.before_addend
        {
            value = self.apply_gate(simd, gate, value, pixel, channel);
        }
        if let Some(addend) = &self.addend {
            let addend: &[f32] = match addend {
                Addend::Output => {
                    let position = pixel * self.view.pixel_stride + self.view.channel_offset + channel;
                    // SAFETY: the elements belong to these channels of this pixel, which the caller promises to be ours alone.
                    unsafe { self.output.part(position, count) }
                }
                Addend::Tensor(data, view) => {
                    let position = pixel * view.pixel_stride + view.channel_offset + channel;
                    &data[position..position + count]
                }
            };
            value = simd.add(value, if whole { simd.load(addend) } else { simd.load_partial(addend) });
        }
        if let Some((mask, rule)) = &self.record {
            let bits = record_bits(simd, *rule, value);
            let bits = bits & ((1u32 << count) - 1);
            let index = channel / WORD;
            let shift = channel % WORD;
            let in_two_words = shift + count > WORD;
            // SAFETY: these words hold bits of these channels, which the caller promises to be ours alone.
            let words = unsafe { mask.part(pixel * self.words + index, 1 + usize::from(in_two_words)) };
            if shift == 0 {
                words[0] = bits as u16;
            } else {
                words[0] |= (bits << shift) as u16;
            }
            if in_two_words {
                words[1] |= (bits << shift >> WORD) as u16;
            }
        }
        value = activate(simd, self.activation, value);
        if let Some(gate) = &self.gate
            && !gate.before_addend
        {
            value = self.apply_gate(simd, gate, value, pixel, channel);
        }
        value
    }

    /// Runs the tail, if there is one, on some channels of some pixels that have been finished.
    ///
    /// # Safety
    /// No other thread may be at work on these channels of these pixels.
    pub(crate) unsafe fn go_on(&self, pixels: Pixels, channel: usize, channels: usize) {
        if let Some(tail) = &self.tail {
            // SAFETY: passed on; no result of a tail is a mask.
            unsafe { tail.region(self.level, pixels, channel, channels) };
        }
    }

    /// Where results go and what happens to `channels` channels from `channel` on, if that is no more than can be done as they are stored.
    #[inline(always)]
    pub(crate) fn direct(
        &self,
        channel: usize,
        channels: usize,
    ) -> Option<(Shared<'a, f32>, View, Option<Bounds<'a>>)> {
        if self.gate.is_some() || self.addend.is_some() || self.record.is_some() {
            return None;
        }
        let bounds = match self.activation {
            None => [f32::NEG_INFINITY, f32::INFINITY],
            Some(Activation::Relu) => [0.0, f32::INFINITY],
            Some(Activation::Clip { low, high }) => [low, high],
            Some(Activation::LeakyRelu(_)) => return None,
        };
        let bias = self.bias.map(|bias| &bias[channel..channel + channels]);
        let is_bare = bias.is_none() && self.activation.is_none();
        Some((self.output, self.view, (!is_bare).then_some(Bounds { bias, bounds })))
    }

    /// The memory that `tile` will use for pixels that follow each other, for channels from `channel` on.
    #[inline(always)]
    pub(crate) fn asked(&self, pixel: usize, channel: usize) -> Asked<'_> {
        let place = |view: &View| pixel * view.pixel_stride + view.channel_offset + channel;
        Asked {
            written: Some((self.output, place(&self.view), self.view.pixel_stride)),
            read: match &self.addend {
                Some(Addend::Tensor(data, view)) => Some((data, place(view), view.pixel_stride)),
                _ => None,
            },
        }
    }

    /// Finishes and stores `channels` channels from `channel` on of the given pixels, `sums[p]` belonging to `pixels[p]`.
    ///
    /// # Safety
    /// As for `vector`, for each of the pixels.
    #[inline(always)]
    pub(crate) unsafe fn tile<S: Simd>(
        &self,
        simd: S,
        sums: &[[f32; BLOCK]],
        pixels: &[usize],
        channel: usize,
        channels: usize,
    ) {
        let ends_a_word = channels.is_multiple_of(WORD) || channel + channels == self.view.channels;
        let is_whole = channel.is_multiple_of(WORD) && channels.is_multiple_of(S::LANES) && ends_a_word;
        let is_short = self.gate.is_none() && self.addend.is_none() && self.record.is_none();
        macro_rules! rows {
            ($vectors:literal) => {
                match is_short {
                    true => self.whole_rows::<S, $vectors, true>(simd, sums, pixels, channel),
                    false => self.whole_rows::<S, $vectors, false>(simd, sums, pixels, channel),
                }
            };
        }
        // SAFETY: passed on.
        unsafe {
            match channels / S::LANES {
                1 if is_whole => rows!(1),
                2 if is_whole => rows!(2),
                3 if is_whole && S::LANES < COLUMN => rows!(3),
                4 if is_whole && S::LANES < COLUMN => rows!(4),
                _ => {
                    for (sums, pixel) in sums.iter().zip(pixels) {
                        self.row(simd, &sums[..channels], *pixel, channel);
                    }
                }
            }
        }
    }

    /// `tile` for N whole vectors, which share no word of a mask with other channels. SHORT says that there are but bias and activation.
    ///
    /// # Safety
    /// As for `vector`, for each of the pixels.
    #[inline(always)]
    unsafe fn whole_rows<S: Simd, const N: usize, const SHORT: bool>(
        &self,
        simd: S,
        sums: &[[f32; BLOCK]],
        pixels: &[usize],
        channel: usize,
    ) {
        let view = &self.view;
        let length = N * S::LANES;
        assert!(channel + length <= view.channels, "invariant: channels of the output");
        let mut bias = [simd.splat(0.0); N];
        if let Some(values) = self.bias {
            for n in 0..N {
                bias[n] = simd.load(&values[channel + n * S::LANES..channel + length]);
            }
        }
        let (gate_before, gate_after) = match &self.gate {
            Some(gate) if gate.before_addend => (Some(gate), None),
            gate => (None, gate.as_ref()),
        };
        let total = view.pixels();
        for (sums, &pixel) in sums.iter().zip(pixels) {
            assert!(pixel < total, "invariant: a pixel of the output");
            let output =
                self.output.address(pixel * view.pixel_stride + view.channel_offset + channel).cast_mut();
            let word = pixel * self.words + channel / WORD;
            let mut values = [simd.splat(0.0); N];
            for n in 0..N {
                values[n] = simd.load(&sums[n * S::LANES..]);
            }
            if self.bias.is_some() {
                for n in 0..N {
                    values[n] = simd.add(values[n], bias[n]);
                }
            }
            // What makes all of the following sound: `new` has checked that output, addend and masks have all pixels and channels of the
            // view, and this is one of these pixels, and these are some of these channels, which the caller promises to be ours alone.
            if let (Some(gate), false) = (gate_before, SHORT) {
                // SAFETY: as said above.
                unsafe { gate_row(simd, gate, &mut values, word) };
            }
            if let (Some(addend), false) = (&self.addend, SHORT) {
                let addend = match addend {
                    Addend::Output => output.cast_const(),
                    Addend::Tensor(data, view) => {
                        data.as_ptr().wrapping_add(pixel * view.pixel_stride + view.channel_offset + channel)
                    }
                };
                for n in 0..N {
                    // SAFETY: as said above.
                    let addend = unsafe { simd.load_pointer(addend.wrapping_add(n * S::LANES)) };
                    values[n] = simd.add(values[n], addend);
                }
            }
            if let (Some((mask, rule)), false) = (&self.record, SHORT) {
                let mut bits = 0;
                for n in 0..N {
                    bits |= record_bits(simd, *rule, values[n]) << (n * S::LANES);
                }
                let words = mask.address(word).cast_mut();
                for n in 0..length.div_ceil(WORD) {
                    // SAFETY: as said above.
                    unsafe { *words.wrapping_add(n) = (bits >> (n * WORD)) as u16 };
                }
            }
            for n in 0..N {
                values[n] = activate(simd, self.activation, values[n]);
            }
            if let (Some(gate), false) = (gate_after, SHORT) {
                // SAFETY: as said above.
                unsafe { gate_row(simd, gate, &mut values, word) };
            }
            for n in 0..N {
                // SAFETY: as said above.
                unsafe { simd.store_pointer(values[n], output.wrapping_add(n * S::LANES)) };
            }
        }
    }

    /// Finishes and stores whole pixels that follow each other.
    ///
    /// # Safety
    /// As for `vector`, for each of the pixels.
    #[inline(always)]
    pub(crate) unsafe fn pixels<S: Simd>(&self, simd: S, values: &[f32], first: usize) {
        let Finish { view, bias, addend, record, activation, gate, .. } = self;
        let is_bare = bias.is_none() && addend.is_none() && record.is_none() && activation.is_none();
        if is_bare && gate.is_none() && view.pixel_stride == view.channels {
            // SAFETY: passed on.
            unsafe { self.output.part(first * view.channels, values.len()) }.copy_from_slice(values);
            return;
        }
        for (n, values) in values.chunks_exact(view.channels).enumerate() {
            // SAFETY: passed on.
            unsafe { self.row(simd, values, first + n, 0) };
        }
    }

    /// Finishes and stores `values.len()` channels from `channel` on of a pixel.
    ///
    /// # Safety
    /// As for `vector`.
    #[inline(always)]
    pub(crate) unsafe fn row<S: Simd>(&self, simd: S, values: &[f32], pixel: usize, channel: usize) {
        let mut done = 0;
        while done < values.len() {
            let rest = &values[done..];
            let value = if rest.len() >= S::LANES { simd.load(rest) } else { simd.load_partial(rest) };
            // SAFETY: passed on.
            unsafe { self.vector(simd, value, pixel, channel + done, rest.len()) };
            done += S::LANES;
        }
    }
}

/// Bits of the lanes that a rule records.
#[inline(always)]
fn record_bits<S: Simd>(simd: S, rule: RecordRule, value: S::Floats) -> u32 {
    match rule {
        RecordRule::Positive => simd.greater(value, simd.splat(0.0)),
        RecordRule::Between(low, high) => {
            simd.greater(value, simd.splat(low)) & simd.greater(simd.splat(high), value)
        }
        RecordRule::Within(low, high) => {
            simd.greater_or_equal(value, simd.splat(low)) & simd.greater_or_equal(simd.splat(high), value)
        }
    }
}

/// Applies a gate to N vectors whose bits begin at a word of the mask.
///
/// # Safety
/// Their words must exist, unless the rule needs none.
#[inline(always)]
unsafe fn gate_row<S: Simd, const N: usize>(simd: S, gate: &Gate, values: &mut [S::Floats; N], word: usize) {
    let mut bits = 0;
    if gate.rule != GateRule::Rectified {
        for n in 0..(N * S::LANES).div_ceil(WORD) {
            // SAFETY: passed on.
            bits |= u32::from(unsafe { *gate.mask.as_ptr().wrapping_add(word + n) }) << (n * WORD);
        }
    }
    for n in 0..N {
        values[n] = gate_vector(simd, gate.rule, bits >> (n * S::LANES), values[n]);
    }
}

#[inline(always)]
fn activate<S: Simd>(simd: S, activation: Option<Activation>, value: S::Floats) -> S::Floats {
    match activation {
        None => value,
        Some(Activation::Relu) => simd.greatest(simd.splat(0.0), value),
        Some(Activation::Clip { low, high }) => {
            simd.least(simd.splat(high), simd.greatest(simd.splat(low), value))
        }
        Some(Activation::LeakyRelu(slope)) => {
            let positive = simd.greater(value, simd.splat(0.0));
            simd.select(positive, value, simd.multiply(value, simd.splat(slope)))
        }
    }
}

/// Lets through what a rule says; `bits` are those of the mask.
#[inline(always)]
fn gate_vector<S: Simd>(simd: S, rule: GateRule, bits: u32, value: S::Floats) -> S::Floats {
    let zero = simd.splat(0.0);
    match rule {
        GateRule::Gradient => simd.select(bits, value, zero),
        GateRule::Guided => simd.select(bits & simd.greater(value, zero), value, zero),
        GateRule::Rectified => simd.select(simd.greater(value, zero), value, zero),
        GateRule::Leaky(slope) => simd.select(bits, value, simd.multiply(value, simd.splat(slope))),
    }
}
