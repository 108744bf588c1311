//! Fused elementwise computations: a small program that is run over cache-sized blocks of channels-last tensors.

use crate::epilogue::{WORD, mask_words};
use crate::function;
use crate::level::{Kernel, Level};
use crate::shared::Shared;
use crate::vector::Simd;
use crate::view::View;
use rayon::prelude::*;
use std::cell::Cell;

/// A register of a program, below [`MOST_REGISTERS`].
pub type Register = u8;

/// How many registers a program may use.
pub const MOST_REGISTERS: usize = 16;

/// How many results a program may store.
pub const MOST_RESULTS: usize = 4;

/// A function of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Unary {
    /// -x
    Negate,
    /// |x|
    Absolute,
    /// 1 / x
    Reciprocal,
    /// The square root.
    SquareRoot,
    /// eˣ
    Exp,
    /// The natural logarithm.
    Ln,
    /// The hyperbolic tangent.
    Tanh,
    /// 1 / (1 + e⁻ˣ)
    Sigmoid,
    /// x / (1 + e⁻ˣ), the sigmoid linear unit.
    Silu,
    /// The derivative of [`Unary::Silu`].
    SiluSlope,
    /// The error function.
    Erf,
    /// The next lower integer.
    Floor,
    /// The next higher integer.
    Ceil,
    /// The nearest integer, halves to the even one.
    Round,
    /// The sine.
    Sin,
    /// The cosine.
    Cos,
    /// -1, 0 or 1 with the sign of x; not-a-number stays.
    Sign,
}

/// A function of two numbers. Comparisons give 1 or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Binary {
    /// a + b
    Add,
    /// a - b
    Subtract,
    /// a · b
    Multiply,
    /// a / b
    Divide,
    /// The greater one; not-a-number if either is.
    Maximum,
    /// The smaller one; not-a-number if either is.
    Minimum,
    /// aᵇ
    Power,
    /// a > b
    Greater,
    /// a >= b
    GreaterOrEqual,
    /// a = b
    Equal,
}

/// One step of a program.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Instruction {
    /// Loads an element of the operand with this index.
    Load {
        /// Where to.
        to: Register,
        /// Index of the operand.
        operand: usize,
    },
    /// Loads what the result with this index held before.
    LoadResult {
        /// Where to.
        to: Register,
        /// Index of the result.
        result: usize,
    },
    /// A number.
    Constant {
        /// Where to.
        to: Register,
        /// The number.
        value: f32,
    },
    /// A function of one register.
    Unary {
        /// Where to.
        to: Register,
        /// Which function.
        function: Unary,
        /// Its argument.
        a: Register,
    },
    /// A function of two registers.
    Binary {
        /// Where to.
        to: Register,
        /// Which function.
        function: Binary,
        /// Its first argument.
        a: Register,
        /// Its second argument.
        b: Register,
    },
    /// `a` where the condition is not zero, else `b`. Selects, never multiplies.
    Select {
        /// Where to.
        to: Register,
        /// The condition.
        condition: Register,
        /// The value where it holds.
        a: Register,
        /// The value elsewhere.
        b: Register,
    },
    /// Stores to the result with this index.
    Store {
        /// Index of the result.
        result: usize,
        /// What to store.
        from: Register,
    },
}

/// A tensor that a program reads, broadcast to the shape of the results.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// As large as the results.
    Full(&'a [f32], View),
    /// One number for all.
    Scalar(f32),
    /// One number a channel: `[channel]`.
    PerChannel(&'a [f32]),
    /// One number for each sample and channel: `[batch][channel]`.
    PerSampleChannel(&'a [f32]),
    /// One number a pixel: `[batch][depth][height][width]`.
    PerPixel(&'a [f32]),
    /// A bit mask as large as the results, see [`mask_words`], read as 1 or 0.
    Bits(&'a [u16]),
    /// What the first result held before: in the tail of an epilogue ([`Tail`](crate::Tail)), what the kernel has made.
    Before,
}

/// Where a program stores.
#[derive(Debug)]
pub enum Target<'a> {
    /// A tensor of the shape that the program is run on.
    Full(&'a mut [f32], View),
    /// A bit mask of that shape, see [`mask_words`]: set where the stored number is not zero.
    Bits(&'a mut [u16]),
}

/// A list of instructions that has been checked.
///
/// ```
/// use ouzel_kernels::{Binary, Instruction, Level, Operand, Program, Target, Unary, View};
/// // x · sigmoid(x)
/// let silu = Program::new(vec![
///     Instruction::Load { to: 0, operand: 0 },
///     Instruction::Unary { to: 1, function: Unary::Sigmoid, a: 0 },
///     Instruction::Binary { to: 0, function: Binary::Multiply, a: 0, b: 1 },
///     Instruction::Store { result: 0, from: 0 },
/// ]);
/// let view = View::packed(1, [1, 1, 2], 1);
/// let mut y = [0.0; 2];
/// silu.run(Level::portable(), &view, &[Operand::Full(&[0.0, 100.0], view)], &mut [Target::Full(&mut y, view)]);
/// assert_eq!(y, [0.0, 100.0]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    instructions: Vec<Instruction>,
    operands: usize,
    results: usize,
}

/// Most elements of a block, and so those of a register.
const BLOCK: usize = 256;

/// Lanes that are computed at once.
const LANES: usize = 16;

/// Blocks of work below which it is not worth sharing out.
const BLOCKS_PER_TASK: usize = 64;

type Registers = [[f32; BLOCK]; MOST_REGISTERS];

impl Program {
    /// Checks a list of instructions.
    ///
    /// # Panics
    /// If a register is used that was never set, or there are too many registers or results.
    pub fn new(instructions: Vec<Instruction>) -> Program {
        let mut set = [false; MOST_REGISTERS];
        let mut program = Program { instructions: Vec::new(), operands: 0, results: 0 };
        for instruction in &instructions {
            let (to, from): (Option<Register>, [Option<Register>; 3]) = match *instruction {
                Instruction::Load { to, operand } => {
                    program.operands = program.operands.max(operand.saturating_add(1));
                    (Some(to), [None; 3])
                }
                Instruction::LoadResult { to, result } => {
                    program.results = program.results.max(result.saturating_add(1));
                    (Some(to), [None; 3])
                }
                Instruction::Constant { to, .. } => (Some(to), [None; 3]),
                Instruction::Unary { to, a, .. } => (Some(to), [Some(a), None, None]),
                Instruction::Binary { to, a, b, .. } => (Some(to), [Some(a), Some(b), None]),
                Instruction::Select { to, condition, a, b } => {
                    (Some(to), [Some(condition), Some(a), Some(b)])
                }
                Instruction::Store { result, from } => {
                    program.results = program.results.max(result.saturating_add(1));
                    (None, [Some(from), None, None])
                }
            };
            for register in from.into_iter().flatten() {
                let known = set.get(usize::from(register)).copied().unwrap_or(false);
                assert!(known, "register {register} is used before it is set by {instruction:?}");
            }
            if let Some(to) = to {
                assert!(usize::from(to) < MOST_REGISTERS, "register {to} does not exist");
                set[usize::from(to)] = true;
            }
        }
        assert!(program.results <= MOST_RESULTS, "{} results are more than {MOST_RESULTS}", program.results);
        Program { instructions, ..program }
    }

    /// Number of instructions.
    #[allow(clippy::len_without_is_empty, reason = "a program without instructions is of no use")]
    pub fn len(&self) -> usize {
        self.instructions.len()
    }

    /// Runs the program on every element of tensors of the shape of `shape` (its stride and offset do not matter).
    ///
    /// # Panics
    /// If there are too few operands or targets, or one does not fit the shape.
    pub fn run(&self, level: Level, shape: &View, operands: &[Operand], targets: &mut [Target]) {
        let setting = self.setting(shape, operands, targets.iter_mut().map(Place::of));
        let (pixels, channels) = (setting.pixels, shape.channels);
        if pixels == 0 || channels == 0 {
            return;
        }
        // A block is some whole pixels, or a part of one.
        let parts = channels.div_ceil(BLOCK);
        let pixels_per_block = (BLOCK / channels).max(1);
        let blocks = pixels.div_ceil(pixels_per_block) * parts;
        let tasks = blocks.div_ceil(BLOCKS_PER_TASK);
        let run = |task: usize| {
            let blocks = (task * BLOCKS_PER_TASK, blocks.min((task + 1) * BLOCKS_PER_TASK));
            level.run(Task { setting: &setting, parts, pixels_per_block, blocks });
        };
        match tasks {
            1 => run(0),
            _ => (0..tasks).into_par_iter().for_each(run),
        }
    }

    /// Checks that everything that the program reads and writes is there and of this shape.
    pub(crate) fn setting<'a>(
        &'a self,
        shape: &View,
        operands: &'a [Operand<'a>],
        targets: impl Iterator<Item = Place<'a>>,
    ) -> Setting<'a> {
        let (pixels, channels) = (shape.pixels(), shape.channels);
        assert!(operands.len() >= self.operands, "{} operands of {}", operands.len(), self.operands);
        let mask_len = pixels.checked_mul(mask_words(channels)).expect("a mask is too long");
        let check_view = |view: &View, len: usize, what: &str| {
            view.check(len, what);
            assert!(
                view.pixels() == pixels && view.channels == channels,
                "{what} {view:?} differs from {shape:?}"
            );
        };
        for operand in operands {
            let (found, needed) = match operand {
                Operand::Full(data, view) => {
                    check_view(view, data.len(), "operand");
                    continue;
                }
                Operand::Scalar(_) | Operand::Before => continue,
                Operand::PerChannel(data) => (data.len(), channels),
                Operand::PerSampleChannel(data) => (data.len(), shape.batch * channels),
                Operand::PerPixel(data) => (data.len(), pixels),
                Operand::Bits(mask) => (mask.len(), mask_len),
            };
            assert!(found >= needed, "an operand has {found} elements, needs {needed}");
        }
        let mut places = [Place::None; MOST_RESULTS];
        let mut count = 0;
        for target in targets {
            assert!(count < MOST_RESULTS, "more targets than {MOST_RESULTS}");
            match &target {
                Place::None => {}
                Place::Full(data, view) => check_view(view, data.len(), "target"),
                Place::Bits(mask) => {
                    assert!(mask.len() >= mask_len, "a target has {} words, needs {mask_len}", mask.len());
                }
            }
            places[count] = target;
            count += 1;
        }
        assert!(count >= self.results, "{count} targets of {}", self.results);
        Setting { program: self, shape: *shape, pixels, operands, places }
    }
}

/// A target that threads share.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    None,
    Full(Shared<'a, f32>, View),
    Bits(Shared<'a, u16>),
}

impl<'a> Place<'a> {
    fn of(target: &'a mut Target) -> Place<'a> {
        match target {
            Target::Full(data, view) => Place::Full(Shared::new(data), *view),
            Target::Bits(mask) => Place::Bits(Shared::new(mask)),
        }
    }
}

/// A program with all that it reads and writes.
#[derive(Clone, Copy)]
pub(crate) struct Setting<'a> {
    program: &'a Program,
    shape: View,
    pixels: usize,
    operands: &'a [Operand<'a>],
    places: [Place<'a>; MOST_RESULTS],
}

/// Some blocks.
struct Task<'a> {
    setting: &'a Setting<'a>,
    /// Blocks of one pixel, if it is larger than a block.
    parts: usize,
    pixels_per_block: usize,
    blocks: (usize, usize),
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
pub(crate) struct Block<'a> {
    pub(crate) pixels: Pixels<'a>,
    pub(crate) channel: usize,
    pub(crate) count: usize,
}

thread_local! {
    /// The registers of the programs of a thread; what they hold between programs does not matter.
    static REGISTERS: Cell<Option<Box<Registers>>> = const { Cell::new(None) };
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Task { setting, parts, pixels_per_block, blocks } = self;
        let channels = setting.shape.channels;
        let mut registers = REGISTERS.take().unwrap_or_else(new_registers);
        for index in blocks.0..blocks.1 {
            let pixel = index / parts * pixels_per_block;
            let channel = index % parts * BLOCK;
            let block = Block {
                pixels: Pixels::Row {
                    first: pixel,
                    step: 1,
                    count: pixels_per_block.min(setting.pixels - pixel),
                },
                channel,
                count: BLOCK.min(channels - channel),
            };
            // SAFETY: each block belongs to one task. It begins at a multiple of 16 channels and ends at one or at the last channel.
            unsafe { setting.execute(simd, block, &mut registers) };
        }
        REGISTERS.set(Some(registers));
    }
}

fn new_registers() -> Box<Registers> {
    Box::new([[0.0; BLOCK]; MOST_REGISTERS])
}

impl Setting<'_> {
    /// Runs the program on some channels of some pixels.
    ///
    /// # Safety
    /// No other thread may be at work on these channels of these pixels, and no result may be a mask.
    #[inline(always)]
    pub(crate) unsafe fn region<S: Simd>(&self, simd: S, pixels: Pixels, channel: usize, channels: usize) {
        let mut registers = REGISTERS.take().unwrap_or_else(new_registers);
        let most = (BLOCK / channels.max(1)).max(1);
        for start in (0..pixels.count()).step_by(most) {
            let pixels = pixels.part(start, most);
            for done in (0..channels).step_by(BLOCK) {
                let count = BLOCK.min(channels - done);
                // SAFETY: passed on.
                unsafe {
                    self.execute(simd, Block { pixels, channel: channel + done, count }, &mut registers)
                };
            }
        }
        REGISTERS.set(Some(registers));
    }

    /// Runs the program on a block.
    ///
    /// # Safety
    /// No other thread may be at work on the block. If a result is a mask, the block must begin at a multiple of 16 channels and end at
    /// one or at the last channel.
    #[inline(always)]
    unsafe fn execute<S: Simd>(&self, simd: S, block: Block, registers: &mut Registers) {
        let length = (block.pixels.count() * block.count).next_multiple_of(LANES);
        for instruction in &self.program.instructions {
            match *instruction {
                Instruction::Load { to, operand } => {
                    let to = &mut registers[usize::from(to)];
                    match &self.operands[operand] {
                        Operand::Before => load_result(&self.places[0], block, to),
                        operand => load(self, operand, block, to),
                    }
                }
                Instruction::LoadResult { to, result } => {
                    load_result(&self.places[result], block, &mut registers[usize::from(to)]);
                }
                Instruction::Constant { to, value } => registers[usize::from(to)][..length].fill(value),
                Instruction::Unary { to, function, a } => unary(simd, function, registers, to, a, length),
                Instruction::Binary { to, function, a, b } => binary(function, registers, to, a, b, length),
                Instruction::Select { to, condition, a, b } => {
                    let [condition, a, b, to] = [condition, a, b, to].map(usize::from);
                    for start in (0..length).step_by(LANES) {
                        let [condition, a, b] =
                            [condition, a, b].map(|register| lanes(&registers[register], start));
                        let result = &mut registers[to][start..start + LANES];
                        for lane in 0..LANES {
                            result[lane] = if condition[lane] != 0.0 { a[lane] } else { b[lane] };
                        }
                    }
                }
                Instruction::Store { result, from } => {
                    // SAFETY: passed on.
                    unsafe { store(self, &self.places[result], block, &registers[usize::from(from)]) };
                }
            }
        }
    }
}

#[inline(always)]
fn lanes(register: &[f32; BLOCK], start: usize) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    lanes.copy_from_slice(&register[start..start + LANES]);
    lanes
}

/// Loads a block of an operand.
#[inline(always)]
fn load(setting: &Setting, operand: &Operand, block: Block, to: &mut [f32; BLOCK]) {
    let Block { pixels, channel, count } = block;
    let rows = to.chunks_exact_mut(count).enumerate().take(pixels.count());
    match operand {
        Operand::Full(data, view) => load_view(data, view, block, to),
        Operand::Scalar(value) => to.fill(*value),
        Operand::PerChannel(data) => {
            for (_, row) in rows {
                row.copy_from_slice(&data[channel..channel + count]);
            }
        }
        Operand::PerSampleChannel(data) => {
            let sample = setting.pixels / setting.shape.batch;
            for (index, row) in rows {
                let start = pixels.at(index) / sample * setting.shape.channels + channel;
                row.copy_from_slice(&data[start..start + count]);
            }
        }
        Operand::PerPixel(data) => {
            for (index, row) in rows {
                row.fill(data[pixels.at(index)]);
            }
        }
        Operand::Bits(mask) => {
            let words = mask_words(setting.shape.channels);
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
        // It is not read from a tensor of its own.
        Operand::Before => {}
    }
}

#[inline(always)]
fn load_view(data: &[f32], view: &View, block: Block, to: &mut [f32; BLOCK]) {
    let Block { pixels, channel, count } = block;
    if let (Pixels::Row { first, step: 1, count: number }, true) = (pixels, view.pixel_stride == count) {
        let start = first * view.pixel_stride + view.channel_offset + channel;
        return to[..number * count].copy_from_slice(&data[start..start + number * count]);
    }
    for (index, row) in to.chunks_exact_mut(count).enumerate().take(pixels.count()) {
        let start = pixels.at(index) * view.pixel_stride + view.channel_offset + channel;
        row.copy_from_slice(&data[start..start + count]);
    }
}

/// Loads what a target held before.
#[inline(always)]
fn load_result(place: &Place, block: Block, to: &mut [f32; BLOCK]) {
    match place {
        Place::Full(data, view) => {
            for (index, row) in to.chunks_exact_mut(block.count).enumerate().take(block.pixels.count()) {
                let start = block.pixels.at(index) * view.pixel_stride + view.channel_offset + block.channel;
                // SAFETY: the elements belong to this block, and each block to one task.
                row.copy_from_slice(unsafe { data.part(start, block.count) });
            }
        }
        Place::Bits(_) | Place::None => to.fill(0.0),
    }
}

/// Stores a block.
///
/// # Safety
/// As for `Setting::execute`.
#[inline(always)]
unsafe fn store(setting: &Setting, place: &Place, block: Block, from: &[f32; BLOCK]) {
    let Block { pixels, channel, count } = block;
    let rows = from.chunks_exact(count).enumerate().take(pixels.count());
    match place {
        Place::None => {}
        Place::Full(data, view) => {
            for (index, row) in rows {
                let start = pixels.at(index) * view.pixel_stride + view.channel_offset + channel;
                // SAFETY: the elements belong to this block, which the caller promises to be ours alone.
                unsafe { data.part(start, count) }.copy_from_slice(row);
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

#[inline(always)]
fn unary<S: Simd>(
    simd: S,
    function: Unary,
    registers: &mut Registers,
    to: Register,
    a: Register,
    length: usize,
) {
    macro_rules! each {
        (|$x:ident| $result:expr) => {
            for start in (0..length).step_by(LANES) {
                let argument = lanes(&registers[usize::from(a)], start);
                let result = &mut registers[usize::from(to)][start..start + LANES];
                for lane in 0..LANES {
                    let $x = argument[lane];
                    result[lane] = $result;
                }
            }
        };
    }
    match function {
        Unary::Negate => each!(|x| -x),
        Unary::Absolute => each!(|x| x.abs()),
        Unary::Reciprocal => each!(|x| 1.0 / x),
        Unary::SquareRoot => each!(|x| x.sqrt()),
        Unary::Exp => each!(|x| function::exp(simd, x)),
        Unary::Ln => each!(|x| function::ln(simd, x)),
        Unary::Tanh => each!(|x| function::tanh(simd, x)),
        Unary::Sigmoid => each!(|x| function::sigmoid(simd, x)),
        Unary::Silu => each!(|x| function::silu(simd, x)),
        Unary::SiluSlope => each!(|x| function::silu_slope(simd, x)),
        Unary::Erf => each!(|x| function::erf(simd, x)),
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

#[inline(always)]
fn binary(
    function: Binary,
    registers: &mut Registers,
    to: Register,
    a: Register,
    b: Register,
    length: usize,
) {
    macro_rules! each {
        (|$x:ident, $y:ident| $result:expr) => {
            for start in (0..length).step_by(LANES) {
                let first = lanes(&registers[usize::from(a)], start);
                let second = lanes(&registers[usize::from(b)], start);
                let result = &mut registers[usize::from(to)][start..start + LANES];
                for lane in 0..LANES {
                    let ($x, $y) = (first[lane], second[lane]);
                    result[lane] = $result;
                }
            }
        };
    }
    match function {
        Binary::Add => each!(|x, y| x + y),
        Binary::Subtract => each!(|x, y| x - y),
        Binary::Multiply => each!(|x, y| x * y),
        Binary::Divide => each!(|x, y| x / y),
        Binary::Maximum => each!(|x, y| if x > y || x.is_nan() { x } else { y }),
        Binary::Minimum => each!(|x, y| if x < y || x.is_nan() { x } else { y }),
        Binary::Power => each!(|x, y| x.powf(y)),
        Binary::Greater => each!(|x, y| f32::from(u8::from(x > y))),
        Binary::GreaterOrEqual => each!(|x, y| f32::from(u8::from(x >= y))),
        Binary::Equal => each!(|x, y| f32::from(u8::from(x == y))),
    }
}
