//! From a graph and the shapes of its inputs to a plan that can run many times.

use crate::dim::{Bindings, element_count};
use crate::error::{Context, Result, bail};
use crate::evaluate::{check_size, evaluate, in_float64};
use crate::graph::{Graph, ValueId};
use crate::rewrite::{bind, simplify, simplify_with};
use crate::run::{Program, Stage, Times};
use crate::tensor::{DType, Tensor};
use crate::timings::{StepTime, Timings};
use layout::BufferId;
use lower::{Exit, Lowered};
use ouzel_kernels::Level;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};
use step::Access;

mod anchor;
mod expression;
mod fuse;
mod gates;
pub(crate) mod layout;
pub(crate) mod lower;
pub(crate) mod memory;
mod moves;
mod order;
pub(crate) mod pack;
mod pointwise;
mod reduce;
mod spell;
mod stage;
pub(crate) mod step;
#[cfg(test)]
mod tests;

/// What a graph is computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floating point, by the engine.
    #[default]
    F32,
    /// The same with every convolution summed up as its definition says. Otherwise 3×3 convolutions may take Winograd's
    /// algorithm F(2×2, 3×3), which is faster, about as exact, and rounds the four outputs of a tile in different ways.
    F32Direct,
    /// 64-bit floating point, by the reference evaluation: slow and exact.
    F64,
}

impl FromStr for Precision {
    type Err = crate::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "f32-direct" => Ok(Self::F32Direct),
            "f64" => Ok(Self::F64),
            other => bail!(option, "unknown precision '{other}': expected f32, f32-direct or f64"),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F32Direct => "f32-direct",
            Self::F64 => "f64",
        })
    }
}

/// The instructions that are computed with: `amx`, `avx512`, `avx2` or `portable`.
///
/// # Errors
/// If the environment variable `OUZEL_SIMD` asks for others than this machine has.
pub fn simd_level() -> Result<&'static str> {
    match ouzel_kernels::Level::detect() {
        Ok(level) => Ok(level.name()),
        Err(error) => bail!(option, "OUZEL_SIMD: {error}"),
    }
}

/// A graph made ready for inputs of certain shapes.
///
/// A plan may run many times, and on several threads at once; the memory of a run is kept for the next one.
pub struct Plan {
    graph: Graph,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    /// The inputs that may come later than the others, by number.
    late: Vec<usize>,
    /// For each value, whether it depends on a late input.
    is_late: Vec<bool>,
    precision: Precision,
    /// The steps of the engine; float64 has none.
    program: Option<Program>,
}

impl Plan {
    /// Prepares `graph` to compute `outputs` from inputs of these shapes.
    ///
    /// # Errors
    /// If the shapes do not fit the graph's inputs, or each other; the message names the input or node.
    pub fn new(
        graph: &Graph,
        inputs: &[(ValueId, Vec<usize>)],
        outputs: &[ValueId],
        precision: Precision,
    ) -> Result<Self> {
        Self::staged(graph, inputs, &[], outputs, precision)
    }

    /// As [`Plan::new`], for inputs of which those in `late` come later, and more than once: [`Plan::start`] computes what does not
    /// depend on them, so that many targets share one forward pass.
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn staged(
        graph: &Graph,
        inputs: &[(ValueId, Vec<usize>)],
        late: &[ValueId],
        outputs: &[ValueId],
        precision: Precision,
    ) -> Result<Self> {
        let late: Vec<usize> = (0..inputs.len()).filter(|&index| late.contains(&inputs[index].0)).collect();
        let mut bindings = Bindings::new();
        for (id, shape) in inputs {
            bind(&graph.value(*id).name, graph.fact(*id), shape, &mut bindings)?;
        }
        // Widened before anything is folded, so that no constant is computed in float32.
        let simple = match precision {
            Precision::F32 | Precision::F32Direct => {
                simplify_with(graph, outputs, &bindings, &spell::spell_out)?
            }
            Precision::F64 => simplify(&in_float64(graph)?, outputs, &bindings)?,
        };
        for (id, value) in simple.graph.values() {
            check_size(&value.fact.shape).context(|| simple.graph.title(id))?;
        }
        let inputs = inputs.iter().map(|(id, _)| simple.kept(*id)).collect::<Result<Vec<_>>>()?;
        let outputs = outputs.iter().map(|id| simple.kept(*id)).collect::<Result<Vec<_>>>()?;
        let program = match precision {
            Precision::F64 => None,
            precision => Some(program(&simple.graph, &inputs, &late, &outputs, precision)?),
        };
        let is_late = depends_on(&simple.graph, late.iter().map(|&index| inputs[index]));
        Ok(Self { graph: simple.graph, inputs, outputs, late, is_late, precision, program })
    }

    /// The graph that runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Computes the outputs.
    ///
    /// # Errors
    /// If the inputs are not of the shapes and types that the plan was made for.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        self.check(inputs)?;
        match &self.program {
            Some(program) => program.run(inputs, None),
            None => self.evaluate(inputs),
        }
    }

    /// Computes what does not depend on late inputs. `inputs` are the others, in their order.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn start(&self, inputs: &[Tensor]) -> Result<Started<'_>> {
        let early = (0..self.inputs.len()).filter(|index| !self.late.contains(index));
        if inputs.len() + self.late.len() != self.inputs.len() {
            bail!(input, "expected {} inputs, found {}", self.inputs.len() - self.late.len(), inputs.len());
        }
        let mut all: Vec<Option<Tensor>> = vec![None; self.inputs.len()];
        for (index, tensor) in early.zip(inputs) {
            self.check_input(index, tensor)?;
            all[index] = Some(tensor.clone());
        }
        let is_late: Vec<bool> = self.outputs.iter().map(|id| self.is_late[id.index()]).collect();
        let (state, early) = match &self.program {
            Some(program) => {
                let mut stage = program.start(&all)?;
                let early = stage.early(&all, &is_late)?;
                (State::Engine(stage), early)
            }
            None => {
                let start = Instant::now();
                let wanted = self.early_values();
                let values = evaluate(&self.graph, &self.widened(&all), &wanted)?;
                let known: Vec<(ValueId, Tensor)> = wanted.into_iter().zip(values).collect();
                let find = |id: &ValueId| known.iter().find(|(known, _)| known == id).map(|it| it.1.clone());
                let early = self.outputs.iter().map(find).collect();
                (State::Reference(known, start.elapsed()), early)
            }
        };
        Ok(Started { plan: self, inputs: all, early, state })
    }

    /// The bytes of memory that a run needs beside inputs, outputs and weights; in float64, of all values that are there
    /// at one time.
    pub fn memory_bytes(&self) -> usize {
        match &self.program {
            Some(program) => program.memory_bytes(),
            None => reference_bytes(&self.graph, &self.outputs),
        }
    }

    /// Computes the outputs and measures each step.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn run_timed(&self, inputs: &[Tensor]) -> Result<(Vec<Tensor>, Timings)> {
        self.check(inputs)?;
        let Some(program) = &self.program else {
            let start = Instant::now();
            let outputs = self.evaluate(inputs)?;
            return Ok((outputs, reference_timings(start.elapsed())));
        };
        let mut times = Times::new(program.steps.len());
        let outputs = program.run(inputs, Some(&mut times))?;
        Ok((outputs, program.timings(&times)))
    }

    fn evaluate(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let inputs: Vec<Option<Tensor>> = inputs.iter().cloned().map(Some).collect();
        evaluate(&self.graph, &self.widened(&inputs), &self.outputs)
    }

    /// The inputs that are there, as the reference evaluation takes them.
    fn widened(&self, inputs: &[Option<Tensor>]) -> Vec<(ValueId, Tensor)> {
        let widened = |tensor: &Tensor| match (self.precision, tensor.dtype()) {
            (Precision::F64, DType::F32) => tensor.cast(DType::F64),
            _ => tensor.clone(),
        };
        let given = self.inputs.iter().zip(inputs);
        given.filter_map(|(&id, tensor)| Some((id, widened(tensor.as_ref()?)))).collect()
    }

    /// The computed values that do not depend on late inputs, and that the outputs or values that do are read from.
    fn early_values(&self) -> Vec<ValueId> {
        let is_late = |id: &ValueId| self.is_late[id.index()];
        let late_nodes = self.graph.nodes().iter().filter(|node| node.outputs.iter().any(is_late));
        let mut values: Vec<ValueId> = late_nodes
            .flat_map(|node| node.inputs.iter().flatten())
            .filter(|id| self.graph.producer(**id).is_some())
            .chain(&self.outputs)
            .copied()
            .filter(|id| !is_late(id))
            .collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    fn check(&self, inputs: &[Tensor]) -> Result<()> {
        if inputs.len() != self.inputs.len() {
            bail!(input, "expected {} inputs, found {}", self.inputs.len(), inputs.len());
        }
        inputs.iter().enumerate().try_for_each(|(index, tensor)| self.check_input(index, tensor))
    }

    fn check_input(&self, index: usize, tensor: &Tensor) -> Result<()> {
        let id = self.inputs[index];
        let (fact, name) = (self.graph.fact(id), &self.graph.value(id).name);
        let narrow = |dtype: DType| if dtype == DType::F64 { DType::F32 } else { dtype };
        let fits = match self.precision {
            Precision::F32 | Precision::F32Direct => fact.dtype == tensor.dtype(),
            Precision::F64 => narrow(fact.dtype) == narrow(tensor.dtype()),
        };
        let expected: Vec<_> = tensor.shape().iter().map(|&length| length.into()).collect();
        if !fits || fact.shape != expected {
            bail!(input, "input '{name}': expected {fact}, found {}{:?}", tensor.dtype(), tensor.shape());
        }
        Ok(())
    }
}

/// A plan that waits for its late inputs.
pub struct Started<'p> {
    plan: &'p Plan,
    inputs: Vec<Option<Tensor>>,
    early: Vec<Option<Tensor>>,
    state: State<'p>,
}

/// What has been computed.
enum State<'p> {
    Engine(Stage<'p>),
    /// The values that later ones are computed from, and how long everything took.
    Reference(Vec<(ValueId, Tensor)>, Duration),
}

impl Started<'_> {
    /// The outputs that do not depend on late inputs; `None` for the others.
    pub fn early(&self) -> &[Option<Tensor>] {
        &self.early
    }

    /// Computes all outputs for late inputs, given in their order. May be called again for others.
    ///
    /// # Errors
    /// As [`Plan::run`].
    pub fn finish(&mut self, late: &[Tensor]) -> Result<Vec<Tensor>> {
        if late.len() != self.plan.late.len() {
            bail!(input, "expected {} late inputs, found {}", self.plan.late.len(), late.len());
        }
        for (&index, tensor) in self.plan.late.iter().zip(late) {
            self.plan.check_input(index, tensor)?;
            self.inputs[index] = Some(tensor.clone());
        }
        match &mut self.state {
            State::Engine(stage) => stage.finish(&self.inputs, &self.early),
            State::Reference(known, time) => {
                let start = Instant::now();
                let mut given = self.plan.widened(&self.inputs);
                given.extend(known.iter().cloned());
                let outputs = evaluate(&self.plan.graph, &given, &self.plan.outputs);
                *time += start.elapsed();
                outputs
            }
        }
    }

    /// How long each step has taken so far.
    pub fn timings(&self) -> Timings {
        match &self.state {
            State::Engine(stage) => stage.timings(),
            State::Reference(_, time) => reference_timings(*time),
        }
    }
}

impl fmt::Debug for Started<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Started").field("plan", self.plan).finish_non_exhaustive()
    }
}

impl fmt::Debug for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("precision", &self.precision).finish_non_exhaustive()
    }
}

/// The steps of a plan, one a line.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.program {
            Some(program) => program.steps.iter().try_for_each(|step| writeln!(f, "{step}")),
            None => f.write_str(&self.graph.to_string()),
        }
    }
}

/// The most bytes that values of known shape take at one time when a graph is evaluated node by node.
fn reference_bytes(graph: &Graph, outputs: &[ValueId]) -> usize {
    let bytes = |id: &ValueId| {
        let fact = graph.fact(*id);
        let len = element_count(&fact.shape).unwrap_or(0);
        if graph.producer(*id).is_some() { len * fact.dtype.size() } else { 0 }
    };
    let mut last: Vec<usize> = vec![0; graph.values().len()];
    for (index, node) in graph.nodes().iter().enumerate() {
        node.inputs.iter().flatten().for_each(|input| last[input.index()] = index);
    }
    outputs.iter().for_each(|output| last[output.index()] = usize::MAX);
    let (mut now, mut most) = (0usize, 0);
    for (index, node) in graph.nodes().iter().enumerate() {
        now += node.outputs.iter().map(bytes).sum::<usize>();
        most = most.max(now);
        let mut ended: Vec<ValueId> = node.inputs.iter().flatten().chain(&node.outputs).copied().collect();
        ended.sort_unstable();
        ended.dedup();
        now -= ended.iter().filter(|id| last[id.index()] <= index).map(bytes).sum::<usize>();
    }
    most
}

/// The reference evaluation as one step.
fn reference_timings(time: Duration) -> Timings {
    let title = "reference evaluation".to_owned();
    let step =
        StepTime { kind: title.clone(), title, shape: vec![], flops: None, bytes: None, runs: 1, time };
    Timings { steps: vec![step] }
}

/// For each value, whether it depends on one of these.
fn depends_on(graph: &Graph, of: impl Iterator<Item = ValueId>) -> Vec<bool> {
    let mut depends = vec![false; graph.values().len()];
    of.for_each(|id| depends[id.index()] = true);
    for node in graph.nodes() {
        if node.inputs.iter().flatten().any(|input| depends[input.index()]) {
            node.outputs.iter().for_each(|output| depends[output.index()] = true);
        }
    }
    depends
}

/// The engine's steps for a graph.
fn program(
    graph: &Graph,
    inputs: &[ValueId],
    late: &[usize],
    outputs: &[ValueId],
    precision: Precision,
) -> Result<Program> {
    let level = match Level::detect() {
        Ok(level) => level,
        Err(error) => bail!(option, "OUZEL_SIMD: {error}"),
    };
    let Lowered { mut steps, buffers, tensors, exits, weights } =
        lower::lower(graph, inputs, outputs, precision)?;
    for step in &mut steps {
        let mut bytes = 0.0;
        step.each_buffer(|buffer, _: Access| bytes += buffers[buffer].bytes() as f64);
        step.bytes = bytes;
        step.flops = step.flops(&weights)?;
    }
    let kept: Vec<BufferId> = (exits.iter())
        .filter_map(|exit| match exit {
            Exit::Place(place) => Some(place.buffer),
            Exit::Argument(_) => None,
        })
        .collect();
    let (steps, first_late) = stage::late_last(steps, late);
    let allocation = memory::allocate(&steps, &buffers, &kept, first_late);
    let dropped = stage::dropped(&steps, tensors, &exits, first_late);
    Ok(Program::new(steps, first_late, allocation, dropped, tensors, exits, weights, level))
}
