//! Before a graph is written: ops that ONNX does not have become ops that it has.

use crate::builder::{Builder, Var};
use crate::dim::{Dim, known_shape};
use crate::error::{Context, Result, bail};
use crate::graph::{Constant, Fact, Graph, Node, Source, ValueId};
use crate::op::{Op, OpDef};
use crate::ops::layout::Identity;
use crate::rewrite::{Rewritten, needed};
use std::collections::HashMap;

/// The outputs of a node in other ops; `None` if it is written as it is.
pub type Lowered<'b> = Option<Vec<Var<'b>>>;

/// A node that is to be said in ops of ONNX: its inputs `x` in the new graph.
#[derive(Debug)]
pub struct Lowering<'b> {
    builder: &'b Builder,
    node: &'b Node,
    x: Vec<Option<Var<'b>>>,
    y: Vec<Fact>,
    /// For each input, whether it may be infinite for finite weights and inputs of the network.
    unbounded: Vec<bool>,
    opset: i64,
}

impl<'b> Lowering<'b> {
    /// Where new nodes go.
    pub fn builder(&self) -> &'b Builder {
        self.builder
    }

    /// The version of the operator set.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// True for a node that a gradient added, so that no other program knows it by its op or name.
    pub fn is_backward(&self) -> bool {
        self.node.provenance.is_some()
    }

    /// True for a node that the gradient of a node of one of these ops added.
    pub fn is_backward_of(&self, ops: &[&str]) -> bool {
        let title = self.node.provenance.as_ref().map_or("", |provenance| &provenance.node);
        ops.contains(&title.split(' ').next().unwrap_or_default())
    }

    /// True for an input in whose computation a gradient divides by something that may be 0, or the like.
    pub fn may_be_infinite(&self, index: usize) -> bool {
        self.unbounded.get(index).copied().unwrap_or(false)
    }

    /// The number of inputs, those left out included.
    pub fn arity(&self) -> usize {
        self.x.len()
    }

    /// An input that is there.
    pub fn x(&self, index: usize) -> Var<'b> {
        self.optional_x(index).expect("invariant: infer accepted the node, so a required input is there")
    }

    /// An input that may be left out.
    pub fn optional_x(&self, index: usize) -> Option<Var<'b>> {
        self.x.get(index).copied().flatten()
    }

    /// All inputs.
    pub fn inputs(&self) -> &[Option<Var<'b>>] {
        &self.x
    }

    /// What is known of an output.
    pub fn y(&self, index: usize) -> &Fact {
        &self.y[index]
    }

    /// The numbers of an integer input that must be known.
    ///
    /// # Errors
    /// If they are not.
    pub fn known(&self, index: usize, what: &str) -> Result<Vec<i64>> {
        match self.x(index).fact().known_integers() {
            Some(numbers) => Ok(numbers),
            None => bail!(
                unsupported,
                "{what} (input {index}) must be known to be saved, which a size of the network's input decides; give \
                 it with --size"
            ),
        }
    }

    /// One output in place of the node.
    pub fn one(&self, y: Var<'b>) -> Result<Lowered<'b>> {
        Ok(Some(vec![y]))
    }
}

/// A length that must be known.
///
/// # Errors
/// If it is not.
pub(crate) fn known_length(dim: &Dim, axis: usize) -> Result<usize> {
    match dim.known().and_then(|length| usize::try_from(length).ok()) {
        Some(length) => Ok(length),
        None => bail!(
            unsupported,
            "the length of axis {axis}, {dim}, must be known for the op to be saved; give it with --size"
        ),
    }
}

/// What makes two nodes interchangeable.
type NodeKey = (Op, Vec<Option<ValueId>>);

/// Copies a graph node by node, in other ops where the file needs them.
struct Lower<'g> {
    old: &'g Graph,
    builder: &'g Builder,
    values: Vec<Option<ValueId>>,
    nodes: HashMap<NodeKey, Vec<ValueId>>,
    contents: HashMap<Fact, ValueId>,
    unbounded: Vec<bool>,
    opset: i64,
    changed: bool,
}

/// For each value, whether nodes that a gradient added may make it infinite: quotients, powers and logarithms of what depends
/// on the network's inputs, and what is computed of those.
fn unbounded(graph: &Graph) -> Vec<bool> {
    let mut varies: Vec<bool> =
        graph.values().map(|(_, value)| matches!(value.source, Source::Input)).collect();
    let mut unbounded = vec![false; varies.len()];
    for node in graph.nodes() {
        let inputs = || node.inputs.iter().flatten().map(|id| id.index());
        let varied = inputs().any(|input| varies[input]) && !matches!(node.op, Op::Shape(_) | Op::Size(_));
        let divisor = node.inputs.get(1).copied().flatten().is_some_and(|id| varies[id.index()]);
        let has_pole = match node.op {
            Op::Div(_) => divisor,
            Op::Reciprocal(_) | Op::Pow(_) | Op::Log(_) | Op::Exp(_) | Op::Tan(_) | Op::Custom(_) => varied,
            _ => false,
        };
        let is_unbounded = node.provenance.is_some() && (has_pole || inputs().any(|input| unbounded[input]));
        for output in &node.outputs {
            varies[output.index()] = varied;
            unbounded[output.index()] = is_unbounded;
        }
    }
    unbounded
}

/// The graph in ops that files of this opset have, without what none of `wanted` depends on.
///
/// Nodes whose outputs have no names are shared where they are equal and left out where they change nothing; those of
/// the network stay as they are.
///
/// # Errors
/// If an op cannot be said so; the message names the node.
pub(crate) fn lower(graph: &Graph, wanted: &[ValueId], opset: i64) -> Result<Rewritten> {
    /// What an op becomes may itself have to become something else; ops that need more rounds are a bug.
    const ROUNDS: usize = 8;
    let mut whole = Rewritten::identity(graph.clone());
    for _ in 0..ROUNDS {
        let now: Vec<ValueId> = wanted.iter().map(|&id| whole.kept(id)).collect::<Result<_>>()?;
        let (next, changed) = lower_once(&whole.graph, &now, opset)?;
        whole = whole.then(next);
        if !changed {
            return Ok(whole);
        }
    }
    bail!(internal, "an op is lowered to itself")
}

fn lower_once(old: &Graph, wanted: &[ValueId], opset: i64) -> Result<(Rewritten, bool)> {
    let needed = needed(old, wanted, None);
    let builder = Builder::new(Graph::default());
    let mut lower = Lower {
        old,
        builder: &builder,
        values: vec![None; old.values().len()],
        nodes: HashMap::new(),
        contents: HashMap::new(),
        unbounded: unbounded(old),
        opset,
        changed: false,
    };
    for (id, value) in old.values() {
        lower.values[id.index()] = match &value.source {
            Source::Input => Some(builder.input(&value.name, value.fact.clone()).id()?),
            Source::Constant(constant) if needed[id.index()] => Some(lower.constant(&value.name, constant)),
            _ => None,
        };
    }
    for node in old.nodes() {
        if node.outputs.iter().any(|output| needed[output.index()]) {
            lower.add(node).context(|| node.title())?;
        }
    }
    let (values, changed) = (lower.values, lower.changed);
    let mut graph = builder.finish()?;
    graph.outputs = old.outputs.iter().filter_map(|output| values[output.index()]).collect();
    Ok((Rewritten::new(graph, values), changed))
}

impl Lower<'_> {
    /// Constants without a name are shared by their elements, all others stay apart.
    fn constant(&mut self, name: &str, constant: &Constant) -> ValueId {
        let add = || self.builder.add_constant(name, constant.clone());
        match constant.fact().content {
            Some(_) if name.is_empty() => *self.contents.entry(constant.fact().clone()).or_insert_with(add),
            _ => add(),
        }
    }

    fn add(&mut self, node: &Node) -> Result<()> {
        let inputs: Vec<Option<ValueId>> =
            node.inputs.iter().map(|input| input.and_then(|id| self.values[id.index()])).collect();
        let key = (node.op.clone(), inputs);
        // What a file names is the network's own.
        let may_go = node.outputs.iter().all(|&output| self.old.value(output).name.is_empty());
        if may_go && let Some(shared) = self.nodes.get(&key) {
            let shared = shared.clone();
            return self.place(node, shared);
        }
        let inputs = &key.1;
        if may_go && let Some(known) = self.known_outputs(node) {
            self.nodes.insert(key, known.clone());
            return self.place(node, known);
        }
        if let Some(&Some(input)) = inputs.first()
            && may_go
            && node.outputs.len() == 1
            && crate::rewrite::changes_nothing(&node.op, &self.fact(input), self.old.fact(node.outputs[0]))
        {
            let outputs = vec![input];
            self.nodes.insert(key, outputs.clone());
            return self.place(node, outputs);
        }
        self.builder.set_provenance(node.provenance.clone());
        let lowering = Lowering {
            builder: self.builder,
            node,
            x: inputs.iter().map(|input| input.map(|id| self.builder.var(id))).collect(),
            y: node.outputs.iter().map(|&output| self.old.fact(output).clone()).collect(),
            unbounded: node
                .inputs
                .iter()
                .map(|input| input.is_some_and(|id| self.unbounded[id.index()]))
                .collect(),
            opset: self.opset,
        };
        let first = self.builder.graph().nodes().len();
        let lowered = node.op.lower(&lowering)?;
        let outputs = match lowered {
            Some(outputs) => {
                self.changed = true;
                if node.provenance.is_none() {
                    self.builder.name_nodes_from(first, &node.name);
                }
                outputs.into_iter().map(Var::id).collect::<Result<Vec<_>>>()?
            }
            None => {
                let id = self.builder.add_node(&node.name, node.op.clone(), inputs)?;
                self.builder.graph().node(id).outputs.clone()
            }
        };
        self.builder.check()?;
        self.builder.set_provenance(None);
        for (old, new) in node.outputs.iter().zip(&outputs) {
            let (expected, found) = (self.old.fact(*old), self.fact(*new));
            if expected.dtype != found.dtype || expected.rank() != found.rank() {
                bail!(internal, "lowering gave {found} for {expected}");
            }
        }
        self.nodes.insert(key, outputs.clone());
        self.place(node, outputs)
    }

    fn fact(&self, id: ValueId) -> Fact {
        self.builder.var(id).fact()
    }

    /// Says which values stand for the outputs of a node, and gives them the names of those.
    fn place(&mut self, node: &Node, outputs: Vec<ValueId>) -> Result<()> {
        for (old, new) in node.outputs.iter().zip(outputs) {
            let name = &self.old.value(*old).name;
            let mut new = new;
            if !name.is_empty() {
                let is_free = {
                    let graph = self.builder.graph();
                    graph.value(new).name.is_empty() && graph.producer(new).is_some()
                };
                if !is_free {
                    let copy = self.builder.add_node("", Identity.into(), &[Some(new)])?;
                    new = self.builder.graph().node(copy).outputs[0];
                }
                self.builder.set_name(new, name);
            }
            self.values[old.index()] = Some(new);
        }
        Ok(())
    }

    /// The outputs of a node where their elements follow from shapes alone.
    fn known_outputs(&mut self, node: &Node) -> Option<Vec<ValueId>> {
        let tensors: Option<Vec<_>> =
            node.outputs.iter().map(|&output| self.old.fact(output).known_tensor()).collect();
        Some(tensors?.into_iter().map(|tensor| self.constant("", &Constant::new(tensor))).collect())
    }
}

/// The shape of a value in numbers.
///
/// # Errors
/// If an axis is not known.
pub(crate) fn known_shape_of(x: Var<'_>) -> Result<Vec<usize>> {
    let shape = x.shape();
    match known_shape(&shape) {
        Some(shape) => Ok(shape),
        None => shape.iter().enumerate().map(|(axis, dim)| known_length(dim, axis)).collect(),
    }
}
