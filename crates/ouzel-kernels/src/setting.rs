//! A program set to work: its operands and results, and the blocks of elements that it goes through.

use crate::epilogue::{WORD, mask_words};
use crate::function;
use crate::group::Group;
use crate::level::{Kernel, Level};
use crate::program::{
    Binary, Instruction, MOST_REGISTERS, MOST_RESULTS, Operand, Program, Register, Target, Unary,
};
use crate::shared::Shared;
use crate::vector::Simd;
use crate::view::View;
use std::cell::Cell;

/// Most elements of a block, and so those of a register.
const BLOCK: usize = 512;

/// A target that threads share.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    None,
    Full(Shared<'a, f32>, View),
    Bits(Shared<'a, u16>),
}

impl<'a> Place<'a> {
    pub(crate) fn of(target: &'a mut Target) -> Place<'a> {
        match target {
            Target::Full(data, view) => Place::Full(Shared::new(data), *view),
            Target::Bits(mask) => Place::Bits(Shared::new(mask)),
        }
    }
}

/// A program with all that it reads and writes.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    pub(crate) program: &'a Program,
    pub(crate) shape: View,
    pub(crate) pixels: usize,
    pub(crate) operands: &'a [Operand<'a>],
    pub(crate) places: [Place<'a>; MOST_RESULTS],
}

/// The pixels of a block.
#[derive(Clone, Copy)]
pub(crate) enum Pixels<'a> {
    /// Those at equal distances.
    Row {
        /// The first one.
        first: usize,
        /// From one to the next.
        step: usize,
        /// How many.
        count: usize,
    },
    /// Each by its index.
    List(&'a [usize]),
}

impl<'a> Pixels<'a> {
    #[inline(always)]
    fn count(self) -> usize {
        match self {
            Pixels::Row { count, .. } => count,
            Pixels::List(pixels) => pixels.len(),
        }
    }

    #[inline(always)]
    fn at(self, place: usize) -> usize {
        match self {
            Pixels::Row { first, step, .. } => first + step * place,
            Pixels::List(pixels) => pixels[place],
        }
    }

    /// At most `most` of them from `start` on.
    #[inline(always)]
    fn part(self, start: usize, most: usize) -> Pixels<'a> {
        let end = self.count().min(start + most);
        match self {
            Pixels::Row { first, step, .. } => {
                Pixels::Row { first: first + step * start, step, count: end - start }
            }
            Pixels::List(pixels) => Pixels::List(&pixels[start..end]),
        }
    }
}

/// The elements of a block: `count` channels from `channel` on of some pixels, together at most `BLOCK`.
#[derive(Clone, Copy)]
struct Block<'a> {
    pixels: Pixels<'a>,
    channel: usize,
    count: usize,
    /// How the elements are gone through: so many rows of so many elements, whole groups.
    rows: usize,
    width: usize,
}

/// Where the rows of a block lie.
#[derive(Clone, Copy)]
struct Rows<P> {
    first: P,
    /// From one to the next.
    stride: usize,
}

impl<'a> Block<'a> {
    #[inline(always)]
    fn new<S: Simd>(pixels: Pixels<'a>, channel: usize, count: usize) -> Block<'a> {
        let number = pixels.count();
        let (rows, width) = match count.is_multiple_of(Group::<S>::LANES) {
            true => (number, count),
            false => (1, (number * count).next_multiple_of(Group::<S>::LANES)),
        };
        Block { pixels, channel, count, rows, width }
    }

    /// Number of elements of a register that the block takes.
    #[inline(always)]
    fn len(self) -> usize {
        self.rows * self.width
    }

    /// Where the elements of the pixel with this number begin in a tensor.
    #[inline(always)]
    fn start(self, view: &View, number: usize) -> usize {
        self.pixels.at(number) * view.pixel_stride + view.channel_offset + self.channel
    }

    /// Where the rows lie in a tensor and how much of it they span, if they are whole and at equal distances there.
    #[inline(always)]
    fn span(self, view: &View) -> Option<(Rows<usize>, usize)> {
        let Pixels::Row { step, count, .. } = self.pixels else {
            return None;
        };
        let stride = step * view.pixel_stride;
        let is_whole = count == self.rows || stride == self.count;
        let start = self.start(view, 0);
        let is_filled = count * self.count == self.len();
        let length = (self.rows - 1) * stride + self.width;
        (is_whole && is_filled).then_some((Rows { first: start, stride }, length))
    }
}

thread_local! {
    /// The registers of the programs of a thread; what they hold between programs does not matter.
    static REGISTERS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// A program on some channels of some pixels. Made where the caller has promised what `Setting::region` asks for.
struct Region<'a> {
    setting: &'a Setting<'a>,
    pixels: Pixels<'a>,
    channel: usize,
    channels: usize,
}

impl Kernel for Region<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Region { setting, pixels, channel, channels } = self;
        let mut registers = REGISTERS.take();
        registers.resize(MOST_REGISTERS * BLOCK, 0.0);
        // As many pixels as are whole groups.
        let most = (BLOCK / channels.max(1)).max(1);
        let whole = Group::<S>::LANES >> channels.trailing_zeros().min(Group::<S>::LANES.trailing_zeros());
        let pixels_per_block = if whole <= most { most / whole * whole } else { most };
        for start in (0..pixels.count()).step_by(pixels_per_block) {
            let pixels = pixels.part(start, pixels_per_block);
            for done in (0..channels).step_by(BLOCK) {
                let block = Block::new::<S>(pixels, channel + done, BLOCK.min(channels - done));
                // SAFETY: passed on.
                unsafe { setting.execute(simd, block, &mut registers) };
            }
        }
        REGISTERS.set(registers);
    }
}

impl Setting<'_> {
    /// Runs the program on some channels of some pixels.
    ///
    /// # Safety
    /// No other thread may be at work on these channels of these pixels. If a result is a mask, they must begin at a multiple of 16
    /// channels and end at one or at the last channel.
    pub(crate) unsafe fn region(&self, level: Level, pixels: Pixels, channel: usize, channels: usize) {
        level.run(Region { setting: self, pixels, channel, channels });
    }

    /// Runs the program on a block.
    ///
    /// # Safety
    /// As for `region`.
    #[inline(always)]
    unsafe fn execute<S: Simd>(&self, simd: S, block: Block, registers: &mut [f32]) {
        assert!(
            registers.len() == MOST_REGISTERS * BLOCK && block.len() <= BLOCK,
            "invariant: room for a block"
        );
        let scratch = registers.as_mut_ptr();
        let own = |register: Register| Rows {
            first: scratch.wrapping_add(usize::from(register) * BLOCK),
            stride: block.width,
        };
        // Where the number of each register lies: in scratch of its own, in an operand, or in a result.
        let mut at = [own(0).to_read(); MOST_REGISTERS];
        let Program { instructions, made_in, stays, .. } = self.program;
        for ((instruction, made_in), stays) in instructions.iter().zip(made_in).zip(stays) {
            let place = made_in.and_then(|result| self.places[result].span(block));
            let (to, [a, b, c]) = instruction.registers();
            let own = own(to.unwrap_or(0));
            let [a, b, c] = [a, b, c].map(|source| at[usize::from(source.unwrap_or(0))]);
            let result = place.unwrap_or(own);
            // SAFETY: sources and results have the rows of the block: scratch has, and `span` has checked the others. They are in scratch,
            // in operands, which nobody writes, or in results, where the caller promises that the block is ours alone. Where they are the
            // same, they are so element by element: what is elsewhere in a result is not needed any more, by `made_in` and `stays`.
            let made = unsafe {
                match *instruction {
                    Instruction::Load { operand, .. } => self.load(simd, operand, block, own, *stays),
                    Instruction::LoadResult { result, .. } => {
                        self.places[result].load(simd, block, own, *stays)
                    }
                    Instruction::Constant { value, .. } => {
                        own.slice(block.len()).fill(value);
                        own.to_read()
                    }
                    Instruction::Unary { function, .. } => {
                        unary(simd, function, a, result, block);
                        result.to_read()
                    }
                    Instruction::Binary { function, .. } => {
                        binary(simd, function, a, b, result, block);
                        result.to_read()
                    }
                    Instruction::Select { .. } => {
                        select(simd, a, b, c, result, block);
                        result.to_read()
                    }
                    Instruction::Store { result, .. } => {
                        let place = &self.places[result];
                        if place.span(block).is_none_or(|place| place.first.cast_const() != a.first) {
                            store(simd, self, place, block, a);
                        }
                        a
                    }
                }
            };
            if let Some(to) = to {
                at[usize::from(to)] = made;
            }
        }
    }

    /// Where a block of an operand lies: where it is, if that `stays` or is no result, or loaded to a register.
    ///
    /// # Safety
    /// As for `region`; the register must have room for the block.
    #[inline(always)]
    unsafe fn load<S: Simd>(
        &self,
        simd: S,
        operand: usize,
        block: Block,
        own: Rows<*mut f32>,
        stays: bool,
    ) -> Rows<*const f32> {
        let Block { pixels, channel, count, .. } = block;
        // SAFETY: passed on.
        let to = unsafe { own.slice(block.len()) };
        let rows = to.chunks_exact_mut(count).enumerate().take(pixels.count());
        // The same row for each pixel.
        let same =
            |data: &[f32], start: usize| Rows { first: data[start..start + count].as_ptr(), stride: 0 };
        match &self.operands[operand] {
            // SAFETY: passed on.
            Operand::Before => return unsafe { self.places[0].load(simd, block, own, stays) },
            Operand::Full(data, view) => {
                if let Some((Rows { first, stride }, length)) = block.span(view) {
                    return Rows { first: data[first..first + length].as_ptr(), stride };
                }
                for (index, row) in rows {
                    let start = block.start(view, index);
                    copy(simd, &data[start..start + count], row);
                }
            }
            Operand::Scalar(value) => to.fill(*value),
            Operand::PerChannel(data) => {
                if block.width == count {
                    return same(data, channel);
                }
                for (_, row) in rows {
                    copy(simd, &data[channel..channel + count], row);
                }
            }
            Operand::PerSampleChannel(data) => {
                let pixels_per_sample = self.pixels / self.shape.batch;
                let sample = |index: usize| pixels.at(index) / pixels_per_sample;
                let start = |index: usize| sample(index) * self.shape.channels + channel;
                if block.width == count && sample(0) == sample(pixels.count() - 1) {
                    return same(data, start(0));
                }
                for (index, row) in rows {
                    copy(simd, &data[start(index)..start(index) + count], row);
                }
            }
            Operand::PerPixel(data) => {
                for (index, row) in rows {
                    row.fill(data[pixels.at(index)]);
                }
            }
            Operand::Bits(mask) => {
                let words = mask_words(self.shape.channels);
                let shift = channel % WORD;
                for (index, row) in rows {
                    let mask = &mask[pixels.at(index) * words..][..words][channel / WORD..];
                    for (place, part) in row.chunks_mut(WORD).enumerate() {
                        let next = mask.get(place + 1).copied().unwrap_or(0);
                        let bits = (u32::from(mask[place]) | u32::from(next) << WORD) >> shift;
                        for (lane, value) in part.iter_mut().enumerate() {
                            *value = (bits >> lane & 1) as f32;
                        }
                    }
                }
            }
        }
        own.to_read()
    }
}

impl Rows<*mut f32> {
    #[inline(always)]
    fn to_read(self) -> Rows<*const f32> {
        Rows { first: self.first.cast_const(), stride: self.stride }
    }

    /// The rows, if they follow each other.
    ///
    /// # Safety
    /// They must have so many elements, to which there is no other reference.
    #[inline(always)]
    unsafe fn slice<'a>(self, length: usize) -> &'a mut [f32] {
        // SAFETY: passed on.
        unsafe { std::slice::from_raw_parts_mut(self.first, length) }
    }
}

impl Place<'_> {
    /// Where the rows of a block lie, if they are whole and at equal distances there.
    #[inline(always)]
    fn span(&self, block: Block) -> Option<Rows<*mut f32>> {
        let Place::Full(data, view) = self else {
            return None;
        };
        let (Rows { first, stride }, length) = block.span(view)?;
        Some(Rows { first: data.pointer(first, length), stride })
    }

    /// Where a block of what is there lies: where it is, if that `stays`, or loaded to a register.
    ///
    /// # Safety
    /// No other thread may be at work on the block; the register must have room for it.
    #[inline(always)]
    unsafe fn load<S: Simd>(
        &self,
        simd: S,
        block: Block,
        own: Rows<*mut f32>,
        stays: bool,
    ) -> Rows<*const f32> {
        if let (Some(place), true) = (self.span(block), stays) {
            return place.to_read();
        }
        // SAFETY: passed on.
        let to = unsafe { own.slice(block.len()) };
        match self {
            Place::Full(data, view) => {
                for (index, row) in to.chunks_exact_mut(block.count).enumerate().take(block.pixels.count()) {
                    let start = block.start(view, index);
                    // SAFETY: the elements belong to this block, which the caller promises to be ours alone.
                    copy(simd, unsafe { data.part(start, block.count) }, row);
                }
            }
            Place::Bits(_) | Place::None => to.fill(0.0),
        }
        own.to_read()
    }
}

/// Copies a row, most of which are shorter than a call of `memcpy` is long.
#[inline(always)]
fn copy<S: Simd>(simd: S, from: &[f32], to: &mut [f32]) {
    let (mut whole, mut places) = (from.chunks_exact(S::LANES), to.chunks_exact_mut(S::LANES));
    for (from, to) in whole.by_ref().zip(places.by_ref()) {
        simd.store(simd.load(from), to);
    }
    places.into_remainder().copy_from_slice(whole.remainder());
}

/// Stores a block.
///
/// # Safety
/// As for `Setting::region`.
#[inline(always)]
unsafe fn store<S: Simd>(simd: S, setting: &Setting, place: &Place, block: Block, from: Rows<*const f32>) {
    let Block { pixels, channel, count, .. } = block;
    let stride = if block.rows == 1 { count } else { from.stride };
    let rows = (0..pixels.count()).map(|index| {
        // SAFETY: the block has a row for each pixel, or one with the elements of all pixels.
        let row = unsafe { std::slice::from_raw_parts(from.first.add(index * stride), count) };
        (index, row)
    });
    match place {
        Place::None => {}
        Place::Full(data, view) => {
            for (index, row) in rows {
                let start = block.start(view, index);
                // SAFETY: the elements belong to this block, which the caller promises to be ours alone.
                copy(simd, row, unsafe { data.part(start, count) });
            }
        }
        Place::Bits(mask) => {
            let words = mask_words(setting.shape.channels);
            for (index, row) in rows {
                let start = pixels.at(index) * words + channel / WORD;
                // SAFETY: the caller promises that the block begins at a multiple of 16 channels and ends at one or at the last
                // channel, so that its words belong to it alone, and that the block does to us.
                let mask = unsafe { mask.part(start, count.div_ceil(WORD)) };
                for (word, part) in mask.iter_mut().zip(row.chunks(WORD)) {
                    *word = part
                        .iter()
                        .enumerate()
                        .fold(0, |word, (lane, value)| word | u16::from(*value != 0.0) << lane);
                }
            }
        }
    }
}

/// Computes the groups of a block from those of registers.
macro_rules! each_group {
    ($simd:ident, $block:ident, $to:ident, |$($source:ident),+| $result:expr) => {
        for row in 0..$block.rows {
            for start in (0..$block.width).step_by(Group::<S>::LANES) {
                // SAFETY: the caller promises that the rows exist.
                unsafe {
                    $(let $source =
                        Group::load_pointer($simd, $source.first.wrapping_add(row * $source.stride + start));)+
                    $result.store_pointer($to.first.wrapping_add(row * $to.stride + start));
                }
            }
        }
    };
}

/// # Safety
/// The rows of the block must exist, to read and to write.
#[inline(always)]
unsafe fn unary<S: Simd>(simd: S, function: Unary, a: Rows<*const f32>, to: Rows<*mut f32>, block: Block) {
    macro_rules! each {
        (|$x:ident| $result:expr) => {
            each_group!(simd, block, to, |a| a.each(|$x: f32| $result))
        };
        ($function:path) => {
            each_group!(simd, block, to, |a| $function(a))
        };
    }
    match function {
        Unary::Negate => each!(|x| -x),
        Unary::Absolute => each!(|x| x.abs()),
        Unary::Reciprocal => each_group!(simd, block, to, |a| (1.0 / a)),
        Unary::SquareRoot => each!(|x| x.sqrt()),
        Unary::Exp => each!(function::exp),
        Unary::Ln => each!(function::ln),
        Unary::Tanh => each!(function::tanh),
        Unary::Sigmoid => each!(function::sigmoid),
        Unary::Silu => each!(function::silu),
        Unary::SiluSlope => each!(function::silu_slope),
        Unary::Erf => each!(function::erf),
        Unary::Floor => each!(|x| x.floor()),
        Unary::Ceil => each!(|x| x.ceil()),
        Unary::Round => each!(|x| x.round_ties_even()),
        Unary::Sin => each!(|x| x.sin()),
        Unary::Cos => each!(|x| x.cos()),
        Unary::Sign => each!(|x| if x > 0.0 {
            1.0
        } else if x < 0.0 {
            -1.0
        } else {
            x
        }),
    }
}

/// # Safety
/// As for `unary`.
#[inline(always)]
unsafe fn binary<S: Simd>(
    simd: S,
    function: Binary,
    a: Rows<*const f32>,
    b: Rows<*const f32>,
    to: Rows<*mut f32>,
    block: Block,
) {
    macro_rules! each {
        ($a:ident $operator:tt $b:ident) => {
            each_group!(simd, block, to, |$a, $b| ($a $operator $b))
        };
        (|$x:ident, $y:ident| $result:expr) => {
            each_group!(simd, block, to, |a, b| a.each_with([b], |$x: f32, [$y]: [f32; 1]| $result))
        };
    }
    match function {
        Binary::Add => each!(a + b),
        Binary::Subtract => each!(a - b),
        Binary::Multiply => each!(a * b),
        Binary::Divide => each!(a / b),
        Binary::Maximum => each!(|x, y| if x > y || x.is_nan() { x } else { y }),
        Binary::Minimum => each!(|x, y| if x < y || x.is_nan() { x } else { y }),
        Binary::Power => each!(|x, y| x.powf(y)),
        Binary::Greater => each!(|x, y| f32::from(u8::from(x > y))),
        Binary::GreaterOrEqual => each!(|x, y| f32::from(u8::from(x >= y))),
        Binary::Equal => each!(|x, y| f32::from(u8::from(x == y))),
    }
}

/// `a` where the condition is not zero, else `b`.
///
/// # Safety
/// As for `unary`.
#[inline(always)]
unsafe fn select<S: Simd>(
    simd: S,
    condition: Rows<*const f32>,
    a: Rows<*const f32>,
    b: Rows<*const f32>,
    to: Rows<*mut f32>,
    block: Block,
) {
    each_group!(simd, block, to, |condition, a, b| {
        condition.each_with([a, b], |condition, [a, b]| if condition != 0.0 { a } else { b })
    });
}
