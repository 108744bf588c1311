//! Runs the steps of a plan: buffers are taken out of their slots, written, and put back.

use crate::compile::layout::{BufferId, Order, Place};
use crate::compile::lower::Exit;
use crate::compile::memory::{Allocation, Memory};
use crate::compile::pack::{Packed, elements};
use crate::compile::step::{Argument, Factor, Finish, OperandStep, Region, Step, Target, Work};
use crate::error::{Context, Result, bail};
use crate::graph::Fact;
use crate::op::{Inputs, OpDef};
use crate::tensor::Tensor;
use crate::timings::{StepTime, Timings};
use ndarray::{ArrayViewD, ArrayViewMutD, IxDyn, ShapeBuilder};
use ouzel_kernels as kernels;
use ouzel_kernels::{
    Addend, Aligned, Epilogue, Gate, Level, Matrices, Operand, Tail, average_pool, average_pool_gradient,
    finish, max_pool, max_pool_gradient, reduce_channels, reduce_pixels, softmax,
};
use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The memory of one run, kept for the next one.
struct Workspace {
    floats: Vec<Aligned>,
    words: Vec<Vec<u16>>,
    tensors: Vec<Option<Tensor>>,
}

/// For each step, how long it took, and how often it ran.
pub(crate) struct Times(Vec<(Duration, u32)>);

impl Times {
    pub(crate) fn new(steps: usize) -> Self {
        Self(vec![(Duration::ZERO, 0); steps])
    }
}

/// The steps of a plan, with memory shared out.
pub(crate) struct Program {
    pub(crate) steps: Vec<Step>,
    /// The number of steps that do not depend on late inputs.
    first_late: usize,
    allocation: Allocation,
    /// For each step, the tensors that no later step reads.
    dropped: Vec<Vec<usize>>,
    tensors: usize,
    exits: Vec<Exit>,
    weights: Vec<Packed>,
    level: Level,
    /// The memory of runs that have ended.
    idle: Mutex<Vec<Workspace>>,
}

impl Program {
    #[allow(clippy::too_many_arguments, reason = "each is a different product of compilation")]
    pub(crate) fn new(
        steps: Vec<Step>,
        first_late: usize,
        allocation: Allocation,
        dropped: Vec<Vec<usize>>,
        tensors: usize,
        exits: Vec<Exit>,
        weights: Vec<Packed>,
        level: Level,
    ) -> Self {
        let idle = Mutex::new(Vec::new());
        Self { steps, first_late, allocation, dropped, tensors, exits, weights, level, idle }
    }

    fn workspace(&self) -> Workspace {
        let idle = self.idle.lock().ok().and_then(|mut idle| idle.pop());
        idle.unwrap_or_else(|| Workspace {
            floats: Aligned::together(self.allocation.floats.iter().copied()),
            words: self.allocation.words.iter().map(|&len| vec![0; len]).collect(),
            tensors: vec![None; self.tensors],
        })
    }

    fn release(&self, workspace: Workspace) {
        if let Ok(mut idle) = self.idle.lock() {
            idle.push(workspace);
        }
    }

    /// The bytes of the memory that a run uses.
    pub(crate) fn memory_bytes(&self) -> usize {
        let sum = |lengths: &[usize]| lengths.iter().sum::<usize>();
        sum(&self.allocation.floats) * size_of::<f32>() + sum(&self.allocation.words) * size_of::<u16>()
    }

    /// The steps with their times.
    pub(crate) fn timings(&self, times: &Times) -> Timings {
        let steps = self.steps.iter().zip(&times.0).map(|(step, &(time, runs))| StepTime {
            title: step.to_string(),
            kind: step.kind(),
            shape: step.shape.clone(),
            flops: step.flops,
            bytes: step.flops.is_none().then_some(step.bytes),
            runs,
            time,
        });
        Timings { steps: steps.collect() }
    }

    /// Runs some of the steps. `times` receives the time of each.
    fn run_steps(
        &self,
        range: Range<usize>,
        workspace: &mut Workspace,
        inputs: &[Option<Tensor>],
        times: Option<&mut Times>,
    ) -> Result<()> {
        kernels::together(|| self.run_steps_here(range, workspace, inputs, times))
    }

    fn run_steps_here(
        &self,
        range: Range<usize>,
        workspace: &mut Workspace,
        inputs: &[Option<Tensor>],
        mut times: Option<&mut Times>,
    ) -> Result<()> {
        for index in range {
            let step = &self.steps[index];
            let start = times.is_some().then(Instant::now);
            Runner { program: self, workspace, inputs }.step(step).context(|| &step.title)?;
            for &tensor in &self.dropped[index] {
                workspace.tensors[tensor] = None;
            }
            if let (Some(times), Some(start)) = (&mut times, start) {
                let (time, runs) = &mut times.0[index];
                *time += start.elapsed();
                *runs += 1;
            }
        }
        Ok(())
    }

    /// The outputs, but those that are `known` as they are.
    fn outputs(
        &self,
        workspace: &mut Workspace,
        inputs: &[Option<Tensor>],
        known: &[Option<Tensor>],
    ) -> Result<Vec<Tensor>> {
        let runner = Runner { program: self, workspace, inputs };
        let known = known.iter().chain(std::iter::repeat(&None));
        self.exits
            .iter()
            .zip(known)
            .map(|(exit, known)| known.clone().map_or_else(|| runner.exit(exit), Ok))
            .collect()
    }

    /// Runs all steps. `times` receives the time of each.
    pub(crate) fn run(&self, inputs: &[Tensor], times: Option<&mut Times>) -> Result<Vec<Tensor>> {
        let inputs: Vec<Option<Tensor>> = inputs.iter().cloned().map(Some).collect();
        let mut workspace = self.workspace();
        self.run_steps(0..self.steps.len(), &mut workspace, &inputs, times)?;
        let outputs = self.outputs(&mut workspace, &inputs, &[]);
        self.release(workspace);
        outputs
    }

    /// Runs the steps that do not depend on late inputs.
    pub(crate) fn start(&self, inputs: &[Option<Tensor>]) -> Result<Stage<'_>> {
        let mut workspace = self.workspace();
        let mut times = Times::new(self.steps.len());
        self.run_steps(0..self.first_late, &mut workspace, inputs, Some(&mut times))?;
        Ok(Stage { program: self, workspace: Some(workspace), times })
    }
}

/// A run that waits for late inputs.
pub(crate) struct Stage<'p> {
    program: &'p Program,
    workspace: Option<Workspace>,
    times: Times,
}

impl Stage<'_> {
    /// The outputs that do not depend on late inputs.
    pub(crate) fn early(
        &mut self,
        inputs: &[Option<Tensor>],
        is_late: &[bool],
    ) -> Result<Vec<Option<Tensor>>> {
        let (program, workspace, _) = self.parts()?;
        let runner = Runner { program, workspace, inputs };
        let exits = program.exits.iter().zip(is_late);
        exits.map(|(exit, is_late)| (!is_late).then(|| runner.exit(exit)).transpose()).collect()
    }

    /// Runs the other steps; may be called again, for other late inputs. `early` are the outputs that are there already.
    pub(crate) fn finish(
        &mut self,
        inputs: &[Option<Tensor>],
        early: &[Option<Tensor>],
    ) -> Result<Vec<Tensor>> {
        let (program, workspace, times) = self.parts()?;
        program.run_steps(program.first_late..program.steps.len(), workspace, inputs, Some(times))?;
        program.outputs(workspace, inputs, early)
    }

    /// How long each step has taken so far.
    pub(crate) fn timings(&self) -> Timings {
        self.program.timings(&self.times)
    }

    fn parts(&mut self) -> Result<(&Program, &mut Workspace, &mut Times)> {
        match &mut self.workspace {
            Some(workspace) => Ok((self.program, workspace, &mut self.times)),
            None => bail!(internal, "a stage has lost its memory"),
        }
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if let Some(workspace) = self.workspace.take() {
            self.program.release(workspace);
        }
    }
}

struct Runner<'a> {
    program: &'a Program,
    workspace: &'a mut Workspace,
    inputs: &'a [Option<Tensor>],
}

/// Floats that are taken out of their slot while a step writes them.
struct Taken {
    slot: usize,
    values: Aligned,
}

impl<'a> Runner<'a> {
    /// The floats of a buffer.
    fn floats(&self, buffer: BufferId) -> &[f32] {
        match &self.program.allocation.memory[buffer] {
            Memory::Floats(slot) => &self.workspace.floats[*slot],
            Memory::Constant(values) => values,
            Memory::Words(_) | Memory::Nowhere => &[],
        }
    }

    /// The words of a buffer.
    fn words(&self, buffer: BufferId) -> &[u16] {
        match &self.program.allocation.memory[buffer] {
            Memory::Words(slot) => &self.workspace.words[*slot],
            _ => &[],
        }
    }

    fn take(&mut self, buffer: BufferId) -> Result<Taken> {
        match &self.program.allocation.memory[buffer] {
            Memory::Floats(slot) => {
                Ok(Taken { slot: *slot, values: std::mem::take(&mut self.workspace.floats[*slot]) })
            }
            _ => bail!(internal, "a step writes a buffer that has no memory"),
        }
    }

    fn put(&mut self, taken: Taken) {
        self.workspace.floats[taken.slot] = taken.values;
    }

    fn take_words(&mut self, buffer: Option<BufferId>) -> Option<(usize, Vec<u16>)> {
        match self.program.allocation.memory.get(buffer?) {
            Some(Memory::Words(slot)) => Some((*slot, std::mem::take(&mut self.workspace.words[*slot]))),
            _ => None,
        }
    }

    fn put_words(&mut self, taken: Option<(usize, Vec<u16>)>) {
        if let Some((slot, words)) = taken {
            self.workspace.words[slot] = words;
        }
    }

    /// True if a buffer lies in this slot of floats.
    fn is_in_slot(&self, buffer: BufferId, slot: usize) -> bool {
        matches!(&self.program.allocation.memory[buffer], Memory::Floats(own) if *own == slot)
    }

    /// What a program reads whose first result lies in a slot of floats.
    fn operands(&self, operands: &[OperandStep], slot: usize) -> Vec<Operand<'_>> {
        let operand = |operand: &OperandStep| match operand {
            OperandStep::Full(region) if self.is_in_slot(region.buffer, slot) => Operand::Before,
            OperandStep::Full(region) => Operand::Full(self.floats(region.buffer), region.view),
            OperandStep::Scalar(buffer) => {
                Operand::Scalar(self.floats(*buffer).first().copied().unwrap_or_default())
            }
            OperandStep::PerChannel(buffer) => Operand::PerChannel(self.floats(*buffer)),
            OperandStep::PerSampleChannel(buffer) => Operand::PerSampleChannel(self.floats(*buffer)),
            OperandStep::PerPixel(buffer) => Operand::PerPixel(self.floats(*buffer)),
            OperandStep::Bits(buffer) => Operand::Bits(self.words(*buffer)),
            OperandStep::Value => Operand::Before,
        };
        operands.iter().map(operand).collect()
    }

    /// Runs a kernel that has an epilogue.
    fn finished(
        &mut self,
        to: &Region,
        plan: &Finish,
        positions: Option<BufferId>,
        kernel: impl FnOnce(&Self, &mut [f32], Option<&mut [u16]>, Epilogue),
    ) -> Result<()> {
        let mut output = self.take(to.buffer)?;
        let mut mask = self.take_words(plan.record.map(|(mask, _)| mask));
        let mut positions = self.take_words(positions);
        let tail = plan.tail.as_ref();
        let mut second = tail.and_then(|tail| tail.second).map(|to| self.take(to.buffer)).transpose()?;
        let in_place = |buffer: BufferId| self.is_in_slot(buffer, output.slot);
        let operands: Vec<Operand> =
            tail.map(|tail| self.operands(&tail.operands, output.slot)).unwrap_or_default();
        let epilogue = Epilogue {
            bias: plan.bias.as_ref().map(|bias| bias.as_slice()),
            addend: plan.addend.map(|addend| match in_place(addend.buffer) {
                true => Addend::Output,
                false => Addend::Tensor(self.floats(addend.buffer), addend.view),
            }),
            record: match (&mut mask, plan.record) {
                (Some((_, words)), Some((_, rule))) => Some((words, rule)),
                _ => None,
            },
            activation: plan.activation,
            gate: plan.gate.map(|gate| Gate {
                rule: gate.rule,
                mask: gate.mask.map_or(&[], |mask| self.words(mask)),
                before_addend: gate.before_addend,
            }),
            tail: tail.map(|tail| Tail {
                program: &tail.program,
                shape: tail.shape,
                operands: &operands,
                second: second.as_mut().zip(tail.second).map(|(taken, to)| (&mut taken.values[..], to.view)),
            }),
        };
        kernel(self, &mut output.values, positions.as_mut().map(|(_, words)| words.as_mut_slice()), epilogue);
        self.put(output);
        if let Some(second) = second {
            self.put(second);
        }
        self.put_words(mask);
        self.put_words(positions);
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        let level = self.program.level;
        match &step.work {
            Work::Enter { input, to } => self.enter(*input, to),
            Work::Reference { op, inputs, outputs } => {
                let tensors: Vec<Option<Tensor>> = (inputs.iter())
                    .map(|input| input.as_ref().map(|input| self.argument(input)).transpose())
                    .collect::<Result<_>>()?;
                let references: Vec<Option<&Tensor>> = tensors.iter().map(Option::as_ref).collect();
                let computed = op.run(&Inputs(&references))?;
                for (target, tensor) in outputs.iter().zip(computed) {
                    match target {
                        None => {}
                        Some(Target::Tensor(id)) => self.workspace.tensors[*id] = Some(tensor),
                        Some(Target::Place(place)) => self.assign(place, &tensor)?,
                    }
                }
                Ok(())
            }
            Work::Convolution { weights, from, to, finish } => {
                let kernel = self.program.weights[*weights].convolution()?;
                self.finished(to, finish, None, |own, output, _, epilogue| {
                    kernel.run(level, own.floats(from.buffer), &from.view, output, &to.view, epilogue);
                })
            }
            Work::Dense { weights, transposed, rows, from, to, finish } => {
                let layer = self.program.weights[*weights].dense()?;
                self.finished(to, finish, None, |own, output, _, epilogue| {
                    let input = own.floats(from.buffer);
                    match transposed {
                        false => layer.forward(level, *rows, input, output, epilogue),
                        true => layer.input_gradient(level, *rows, input, output, epilogue),
                    }
                })
            }
            Work::MatrixProduct { product, left, right, to, scratch } => {
                let (mut output, mut scratch) = (self.take(*to)?, self.take(*scratch)?);
                let side = |factor: &Factor| Matrices {
                    data: &self.floats(factor.buffer)[factor.offset..],
                    batch_stride: factor.batch_stride,
                    row_stride: factor.row_stride,
                    column_stride: factor.column_stride,
                };
                product.run(level, side(left), side(right), &mut output.values, false, &mut scratch.values);
                self.put(output);
                self.put(scratch);
                Ok(())
            }
            Work::MaxPool { window, from, to, positions, finish } => {
                self.finished(to, finish, *positions, |own, output, positions, epilogue| {
                    let input = own.floats(from.buffer);
                    max_pool(level, window, input, &from.view, output, &to.view, positions, epilogue);
                })
            }
            Work::MaxPoolGradient { window, from, positions, to, finish } => {
                self.finished(to, finish, None, |own, output, _, epilogue| {
                    let (input, positions) = (own.floats(from.buffer), own.words(*positions));
                    max_pool_gradient(
                        level, window, input, &from.view, positions, output, &to.view, epilogue,
                    );
                })
            }
            Work::AveragePool { window, count, from, to, finish } => {
                self.finished(to, finish, None, |own, output, _, epilogue| {
                    let input = own.floats(from.buffer);
                    average_pool(level, window, *count, input, &from.view, output, &to.view, epilogue);
                })
            }
            Work::AveragePoolGradient { window, count, from, to, finish } => {
                self.finished(to, finish, None, |own, output, _, epilogue| {
                    let input = own.floats(from.buffer);
                    average_pool_gradient(
                        level, window, *count, input, &from.view, output, &to.view, epilogue,
                    );
                })
            }
            Work::Finish { from, to, finish: plan } => {
                self.finished(to, plan, None, |own, output, _, epilogue| {
                    finish(level, own.floats(from.buffer), &from.view, output, &to.view, epilogue);
                })
            }
            Work::Pointwise { program, shape, operands, to, mask } => {
                let mut output = self.take(to.buffer)?;
                let mut mask = self.take_words(*mask);
                let operands = self.operands(operands, output.slot);
                let result = kernels::Target::Full(&mut output.values, to.view);
                match &mut mask {
                    None => program.run(level, shape, &operands, &mut [result]),
                    Some((_, mask)) => {
                        program.run(level, shape, &operands, &mut [result, kernels::Target::Bits(mask)]);
                    }
                }
                self.put(output);
                self.put_words(mask);
                Ok(())
            }
            Work::Reduce { reduction, lanes, from, to } => {
                let mut output = self.take(*to)?;
                let input = self.floats(from.buffer);
                match lanes {
                    true => reduce_channels(level, *reduction, input, &from.view, &mut output.values),
                    false => reduce_pixels(level, *reduction, input, &from.view, &mut output.values),
                }
                self.put(output);
                Ok(())
            }
            Work::Softmax { kind, from, to } => {
                let mut output = self.take(to.buffer)?;
                softmax(level, *kind, self.floats(from.buffer), &from.view, &mut output.values, &to.view);
                self.put(output);
                Ok(())
            }
            Work::Fill { to, value } => {
                let mut output = self.take(*to)?;
                output.values.fill(*value);
                self.put(output);
                Ok(())
            }
            Work::Copy { copy, from, to } => {
                let mut output = self.take(*to)?;
                copy.run(self.floats(*from), &mut output.values);
                self.put(output);
                Ok(())
            }
        }
    }

    /// Brings an input of the plan into its buffer.
    fn enter(&mut self, input: usize, to: &Place) -> Result<()> {
        let tensor = self.input(input)?.clone();
        let mut output = self.take(to.buffer)?;
        let from = Place::packed(0, &to.shape, Order::rows(to.shape.len()));
        let copied = elements(&tensor).map(|values| match from.copy_to(to) {
            Some(copy) => copy.run(&values, &mut output.values),
            None => view_mut(to, &mut output.values).assign(&view(&from, &values)),
        });
        self.put(output);
        copied
    }

    fn input(&self, index: usize) -> Result<&Tensor> {
        match self.inputs.get(index).and_then(Option::as_ref) {
            Some(tensor) => Ok(tensor),
            None => bail!(input, "input {index} was not given"),
        }
    }

    /// A tensor in row-major order from a place.
    fn tensor(&self, place: &Place) -> Result<Tensor> {
        let values = self.floats(place.buffer);
        let len = place.len();
        if place.is_packed() && place.order.is_rows(&place.shape) {
            return Tensor::from_shape_vec(&place.shape, values[..len].to_vec());
        }
        let rows = Place::packed(0, &place.shape, Order::rows(place.shape.len()));
        match place.copy_to(&rows) {
            Some(copy) => {
                let mut moved = vec![0.0; len];
                copy.run(values, &mut moved);
                Tensor::from_shape_vec(&place.shape, moved)
            }
            None => Ok(Tensor::from(view(place, values).as_standard_layout().into_owned())),
        }
    }

    fn argument(&self, argument: &Argument) -> Result<Tensor> {
        match argument {
            Argument::Place(place) => self.tensor(place),
            Argument::Constant(constant) => constant.tensor(),
            Argument::Input(input) => self.input(*input).cloned(),
            Argument::Tensor(id) => match &self.workspace.tensors[*id] {
                Some(tensor) => Ok(tensor.clone()),
                None => bail!(internal, "a tensor is read before it is computed"),
            },
        }
    }

    /// Writes a tensor to a place.
    fn assign(&mut self, place: &Place, tensor: &Tensor) -> Result<()> {
        let array = tensor.array::<f32>()?;
        if array.shape() != place.shape {
            bail!(internal, "expected a result of shape {:?}, found {}", place.shape, Fact::of(tensor));
        }
        let mut output = self.take(place.buffer)?;
        match (array.as_slice(), place.is_packed() && place.order.is_rows(&place.shape)) {
            (Some(values), true) => output.values[..values.len()].copy_from_slice(values),
            _ => view_mut(place, &mut output.values).assign(array),
        }
        self.put(output);
        Ok(())
    }

    fn exit(&self, exit: &Exit) -> Result<Tensor> {
        match exit {
            Exit::Place(place) => self.tensor(place),
            Exit::Argument(argument) => self.argument(argument),
        }
    }
}

/// The elements of a place as an array.
fn view<'a>(place: &Place, values: &'a [f32]) -> ArrayViewD<'a, f32> {
    if place.len() == 0 {
        return ArrayViewD::from_shape(IxDyn(&place.shape), &[]).expect("invariant: an empty array");
    }
    let shape = IxDyn(&place.shape).strides(IxDyn(&place.strides()));
    ArrayViewD::from_shape(shape, &values[place.offset..]).expect("invariant: a place lies within its buffer")
}

/// The elements of a place as an array to write to.
fn view_mut<'a>(place: &Place, values: &'a mut [f32]) -> ArrayViewMutD<'a, f32> {
    if place.len() == 0 {
        return ArrayViewMutD::from_shape(IxDyn(&place.shape), &mut []).expect("invariant: an empty array");
    }
    let shape = IxDyn(&place.shape).strides(IxDyn(&place.strides()));
    ArrayViewMutD::from_shape(shape, &mut values[place.offset..])
        .expect("invariant: a place lies within its buffer")
}
