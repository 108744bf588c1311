//! Fused elementwise computations: a small program that is run over cache-sized blocks of channels-last tensors.

use crate::crew::share_out;
use crate::epilogue::mask_words;
use crate::level::Level;
use crate::setting::{Pixels, Place, Setting};
use crate::view::View;

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
    pub(crate) instructions: Vec<Instruction>,
    /// For each instruction the result that its number is, if the number can be made right where the result lies.
    pub(crate) made_in: Vec<Option<usize>>,
    /// For each instruction whether what it loads of a result can be read where the result lies.
    pub(crate) stays: Vec<bool>,
    operands: usize,
    results: usize,
}

/// Elements of a task.
const ELEMENTS_PER_TASK: usize = 16 * 1024;

impl Instruction {
    /// The register that is set and those that are read.
    pub(crate) fn registers(&self) -> (Option<Register>, [Option<Register>; 3]) {
        match *self {
            Instruction::Load { to, .. }
            | Instruction::LoadResult { to, .. }
            | Instruction::Constant { to, .. } => (Some(to), [None; 3]),
            Instruction::Unary { to, a, .. } => (Some(to), [Some(a), None, None]),
            Instruction::Binary { to, a, b, .. } => (Some(to), [Some(a), Some(b), None]),
            Instruction::Select { to, condition, a, b } => (Some(to), [Some(condition), Some(a), Some(b)]),
            Instruction::Store { from, .. } => (None, [Some(from), None, None]),
        }
    }

    fn is_load(&self) -> bool {
        matches!(self, Instruction::Load { .. } | Instruction::LoadResult { .. })
    }
}

impl Program {
    /// Checks a list of instructions.
    ///
    /// # Panics
    /// If a register is used that was never set, or there are too many registers or results.
    pub fn new(instructions: Vec<Instruction>) -> Program {
        let mut set = [false; MOST_REGISTERS];
        let (mut operands, mut results) = (0, 0);
        for instruction in &instructions {
            match *instruction {
                Instruction::Load { operand, .. } => operands = operands.max(operand.saturating_add(1)),
                Instruction::LoadResult { result, .. } | Instruction::Store { result, .. } => {
                    results = results.max(result.saturating_add(1));
                }
                _ => {}
            }
            let (to, from) = instruction.registers();
            for register in from.into_iter().flatten() {
                let known = set.get(usize::from(register)).copied().unwrap_or(false);
                assert!(known, "register {register} is used before it is set by {instruction:?}");
            }
            if let Some(to) = to {
                assert!(usize::from(to) < MOST_REGISTERS, "register {to} does not exist");
                set[usize::from(to)] = true;
            }
        }
        assert!(results <= MOST_RESULTS, "{results} results are more than {MOST_RESULTS}");
        let made_in = made_in(&instructions);
        let stays = stays(&instructions, &made_in);
        Program { instructions, made_in, stays, operands, results }
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
        // A task is some whole pixels, or a part of one.
        let parts = channels.div_ceil(ELEMENTS_PER_TASK);
        let pixels_per_task = (ELEMENTS_PER_TASK / channels).max(1);
        let tasks = pixels.div_ceil(pixels_per_task) * parts;
        let run = |task: usize| {
            let (first, channel) = (task / parts * pixels_per_task, task % parts * ELEMENTS_PER_TASK);
            let row = Pixels::Row { first, step: 1, count: pixels_per_task.min(pixels - first) };
            // SAFETY: tasks have different pixels or different channels. They begin at multiples of 16 channels and end at one or at
            // the last channel.
            unsafe { setting.region(level, row, channel, ELEMENTS_PER_TASK.min(channels - channel)) };
        };
        share_out(tasks, run);
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

/// For each instruction the result that its number is, if it can be made where the result lies: nothing is loaded any more, and nothing else
/// is stored there.
fn made_in(instructions: &[Instruction]) -> Vec<Option<usize>> {
    let mut made_in = vec![None; instructions.len()];
    for (place, instruction) in instructions.iter().enumerate() {
        let Instruction::Store { result, from } = *instruction else {
            continue;
        };
        let sets = |instruction: &Instruction| instruction.registers().0 == Some(from);
        let stores = |other: &Instruction| match *other {
            Instruction::Store { result: there, .. } => there == result,
            _ => false,
        };
        if let Some(maker) = instructions[..place].iter().rposition(sets)
            && !instructions[maker..].iter().any(Instruction::is_load)
            && instructions.iter().filter(|other| stores(other)).count() == 1
        {
            made_in[maker] = made_in[maker].or(Some(result));
        }
    }
    made_in
}

/// For each instruction whether what it loads of a result need not be copied: nothing is written any more when it is last used, but what is
/// made of it there and then.
fn stays(instructions: &[Instruction], made_in: &[Option<usize>]) -> Vec<bool> {
    let writes =
        |place: usize| made_in[place].is_some() || matches!(instructions[place], Instruction::Store { .. });
    let stays = |place: usize| {
        let (Some(to), true) = (instructions[place].registers().0, instructions[place].is_load()) else {
            return false;
        };
        let sets = |instruction: &Instruction| instruction.registers().0 == Some(to);
        let reads = |instruction: &Instruction| instruction.registers().1.contains(&Some(to));
        // What replaces it may read it.
        let after = &instructions[place + 1..];
        let life = after.iter().position(sets).map_or(after.len(), |end| end + 1);
        let last_use = after[..life].iter().rposition(reads).map_or(place, |last| place + 1 + last);
        !(place..last_use).any(writes)
    };
    (0..instructions.len()).map(stays).collect()
}
