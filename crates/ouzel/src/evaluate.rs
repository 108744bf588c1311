//! Reference evaluation of a graph: every node by its op's `run`, in the order of the graph. The oracle of the engine.

use crate::dim::{Dim, display_shape, element_count};
use crate::error::{Context, Result, bail};
use crate::graph::{Constant, Fact, Graph, Source, ValueId};
use crate::op::{Inputs, Op, OpDef};
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeSet, HashMap};

/// Elements of one tensor beyond which no machine goes.
pub(crate) const MOST_ELEMENTS: usize = 1 << 34;

/// An error if a tensor of this shape does not fit into any machine.
pub(crate) fn check_size(shape: &[Dim]) -> Result<()> {
    if element_count(shape).is_some_and(|count| count > MOST_ELEMENTS) {
        bail!(shape, "a tensor of shape {} does not fit into memory", display_shape(shape));
    }
    Ok(())
}

/// Runs an op whose outputs fit into memory.
pub(crate) fn run_op(op: &Op, x: &[Option<&Tensor>]) -> Result<Vec<Tensor>> {
    let facts: Vec<Option<Fact>> = x.iter().map(|tensor| tensor.map(Fact::of)).collect();
    let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    op.infer(&Inputs(&facts))?.iter().try_for_each(|fact| check_size(&fact.shape))?;
    op.run(&Inputs(x))
}

/// Computes the wanted values from the inputs.
///
/// Only the nodes that the wanted values depend on run, and a value is dropped after its last use. `inputs` may also give
/// values inside the graph; what only they depend on does not run.
///
/// # Errors
/// If an input that is needed is missing, or an op does not accept its inputs; the message names the node.
pub fn evaluate(graph: &Graph, inputs: &[(ValueId, Tensor)], wanted: &[ValueId]) -> Result<Vec<Tensor>> {
    let count = graph.values().len();
    let mut values: Vec<Option<Tensor>> = vec![None; count];
    for (id, tensor) in inputs {
        values[id.index()] = Some(tensor.clone());
    }
    let mut needed = vec![false; count];
    let mut uses = vec![0usize; count];
    for value in wanted {
        needed[value.index()] = true;
        uses[value.index()] += 1;
    }
    for node in graph.nodes().iter().rev() {
        let is_missing = |output: &ValueId| needed[output.index()] && values[output.index()].is_none();
        if node.outputs.iter().any(is_missing) {
            for input in node.inputs.iter().flatten() {
                needed[input.index()] = true;
                uses[input.index()] += 1;
            }
        }
    }
    for (id, value) in graph.values().filter(|(id, _)| needed[id.index()]) {
        match &value.source {
            Source::Constant(constant) => values[id.index()] = Some(constant.tensor()?),
            Source::Input if values[id.index()].is_none() => {
                bail!(
                    input,
                    "the input {} was not given; expected an array for it, by its name",
                    graph.title(id)
                )
            }
            _ => {}
        }
    }
    for node in graph.nodes() {
        let is_missing = |output: &ValueId| needed[output.index()] && values[output.index()].is_none();
        if !node.outputs.iter().any(is_missing) {
            continue;
        }
        let x: Vec<Option<&Tensor>> =
            node.inputs.iter().map(|input| input.and_then(|id| values[id.index()].as_ref())).collect();
        let y = run_op(&node.op, &x).context(|| node.title())?;
        for (output, tensor) in node.outputs.iter().zip(y) {
            if needed[output.index()] && values[output.index()].is_none() {
                values[output.index()] = Some(tensor);
            }
        }
        for input in node.inputs.iter().flatten() {
            uses[input.index()] -= 1;
            if uses[input.index()] == 0 {
                values[input.index()] = None;
            }
        }
    }
    wanted
        .iter()
        .map(|id| match values[id.index()].clone() {
            Some(tensor) => Ok(tensor),
            None => bail!(internal, "{} was not computed", graph.title(*id)),
        })
        .collect()
}

/// The elements of a value that does not depend on any input of the graph.
///
/// # Errors
/// If an op does not accept its inputs; the message names the node.
pub(crate) fn constant_value(graph: &Graph, wanted: ValueId) -> Result<Option<Tensor>> {
    let mut values: HashMap<ValueId, Tensor> = HashMap::new();
    let mut nodes = BTreeSet::new();
    let mut queue = vec![wanted];
    while let Some(id) = queue.pop() {
        let known = match &graph.value(id).source {
            Source::Constant(constant) => Some(constant.tensor()?),
            _ => graph.fact(id).known_tensor(),
        };
        match (known, &graph.value(id).source) {
            (Some(tensor), _) => {
                values.insert(id, tensor);
            }
            (None, Source::Node(node)) => {
                if nodes.insert(*node) {
                    queue.extend(graph.node(*node).inputs.iter().flatten());
                }
            }
            (None, _) => return Ok(None),
        }
    }
    for id in nodes {
        let node = graph.node(id);
        let x: Vec<Option<&Tensor>> =
            node.inputs.iter().map(|input| input.and_then(|id| values.get(&id))).collect();
        let y = run_op(&node.op, &x).context(|| node.title())?;
        values.extend(node.outputs.iter().copied().zip(y));
    }
    Ok(values.remove(&wanted))
}

/// The same graph computing in float64 what it computes in float32; ids stay the same.
pub fn in_float64(graph: &Graph) -> Result<Graph> {
    let widened = |dtype: DType| if dtype == DType::F32 { DType::F64 } else { dtype };
    graph.mapped(
        Constant::in_float64,
        |fact| Fact { dtype: widened(fact.dtype), ..fact.clone() },
        |op| op.in_float64().unwrap_or_else(|| op.clone()),
    )
}
