//! Passes over graphs: prune what is not needed, bind symbols, fold constants, share equal nodes, verify.

use crate::builder::{Builder, Var};
use crate::dim::{Bindings, element_count};
use crate::error::{Context, Result, bail};
use crate::graph::{Constant, Fact, Graph, Node, Source, Value, ValueId};
use crate::op::{Inputs, Op, OpDef};
use crate::tensor::Tensor;
use std::collections::HashMap;
use std::sync::Arc;

/// A rewritten graph, and where the values of the old one are in it.
#[derive(Clone, Debug)]
pub struct Rewritten {
    /// The new graph.
    pub graph: Graph,
    values: Vec<Option<ValueId>>,
}

impl Rewritten {
    /// A graph, and for each value of the old one where it is in it.
    pub(crate) fn new(graph: Graph, values: Vec<Option<ValueId>>) -> Self {
        Self { graph, values }
    }

    /// A graph as it is.
    pub(crate) fn identity(graph: Graph) -> Self {
        let values = graph.values().map(|(id, _)| Some(id)).collect();
        Self { graph, values }
    }

    /// The rewrite of what this one made.
    pub(crate) fn then(self, next: Self) -> Self {
        let values = self.values.into_iter().map(|value| value.and_then(|value| next.get(value))).collect();
        Self { graph: next.graph, values }
    }

    /// The new id of a value of the old graph, unless it was not needed.
    pub fn get(&self, old: ValueId) -> Option<ValueId> {
        self.values[old.index()]
    }

    /// The new id of a value that was kept.
    ///
    /// # Errors
    /// If it was not; that is a bug of the caller.
    pub fn kept(&self, old: ValueId) -> Result<ValueId> {
        match self.get(old) {
            Some(new) => Ok(new),
            None => bail!(internal, "a rewrite lost a value that is needed"),
        }
    }
}

/// For each value, whether one of `wanted` depends on it, where the value `given` depends on nothing.
pub(crate) fn needed(graph: &Graph, wanted: &[ValueId], given: Option<ValueId>) -> Vec<bool> {
    let mut needed = vec![false; graph.values().len()];
    for value in wanted {
        needed[value.index()] = true;
    }
    for node in graph.nodes().iter().rev() {
        if node.outputs.iter().any(|&output| needed[output.index()] && Some(output) != given) {
            for input in node.inputs.iter().flatten() {
                needed[input.index()] = true;
            }
        }
    }
    needed
}

/// Leaves out what none of `wanted` depends on. Inputs stay.
///
/// # Errors
/// None for a graph that verifies.
pub fn prune(graph: &Graph, wanted: &[ValueId]) -> Result<Rewritten> {
    rebuild(graph, wanted, &Bindings::new(), false, None, &as_it_is)
}

/// Makes an input of a value inside the graph, and leaves out what none of `wanted` depends on any more. Inputs stay; the new
/// one comes last, as [`Rewritten::get`] of the value.
///
/// # Errors
/// None for a graph that verifies.
pub(crate) fn with_input(graph: &Graph, value: ValueId, wanted: &[ValueId]) -> Result<Rewritten> {
    rebuild(graph, wanted, &Bindings::new(), false, Some(value), &as_it_is)
}

/// Binds symbols, computes what depends on constants alone, lets equal nodes be one, skips nodes that change nothing,
/// and leaves out what none of `wanted` depends on. Inputs stay.
///
/// # Errors
/// If shapes do not fit once symbols are bound; the message names the node.
pub fn simplify(graph: &Graph, wanted: &[ValueId], bindings: &Bindings) -> Result<Rewritten> {
    simplify_with(graph, wanted, bindings, &as_it_is)
}

/// What adds the outputs of a node of an old graph, given its inputs in the new one, in another way than by the node.
pub(crate) type Replace = dyn Fn(&mut Graph, &Node, &[Option<ValueId>]) -> Result<Option<Vec<ValueId>>>;

fn as_it_is(_: &mut Graph, _: &Node, _: &[Option<ValueId>]) -> Result<Option<Vec<ValueId>>> {
    Ok(None)
}

/// As [`simplify`], with some nodes replaced by others.
pub(crate) fn simplify_with(
    graph: &Graph,
    wanted: &[ValueId],
    bindings: &Bindings,
    replace: &Replace,
) -> Result<Rewritten> {
    let simplified = rebuild(graph, wanted, bindings, true, None, replace)?;
    // Folding leaves behind what only folded nodes needed.
    let kept = wanted.iter().map(|&value| simplified.kept(value)).collect::<Result<Vec<_>>>()?;
    let pruned = prune(&simplified.graph, &kept)?;
    let values = simplified.values.iter().map(|value| value.and_then(|value| pruned.get(value))).collect();
    Ok(Rewritten { graph: pruned.graph, values })
}

/// Where a value of the old graph is in the new one.
pub(crate) type Moved<'a> = dyn Fn(ValueId) -> Result<ValueId> + 'a;

/// The graph in which an input is computed: `make` is called where it is first read, with the places of the values
/// before that.
///
/// # Errors
/// The first error of `make`.
pub(crate) fn substitute(
    graph: &Graph,
    input: ValueId,
    make: &dyn for<'b> Fn(&'b Builder, &Moved<'_>) -> Result<Var<'b>>,
) -> Result<Rewritten> {
    let builder = Builder::new(Graph::default());
    let mut values: Vec<Option<ValueId>> = vec![None; graph.values().len()];
    for (id, value) in graph.values().filter(|(id, _)| *id != input) {
        values[id.index()] = match &value.source {
            Source::Input => Some(builder.input(&value.name, value.fact.clone()).id()?),
            Source::Constant(constant) => Some(builder.add_constant(&value.name, constant.clone())),
            Source::Node(_) => None,
        };
    }
    for node in graph.nodes() {
        if values[input.index()].is_none() && node.inputs.contains(&Some(input)) {
            let moved = |id: ValueId| match values[id.index()] {
                Some(new) => Ok(new),
                None => bail!(internal, "{} is not computed in time", graph.title(id)),
            };
            values[input.index()] = Some(make(&builder, &moved)?.id()?);
        }
        let inputs: Vec<Option<ValueId>> =
            node.inputs.iter().map(|input| input.and_then(|id| values[id.index()])).collect();
        builder.set_provenance(node.provenance.clone());
        let new = builder.add_node(&node.name, node.op.clone(), &inputs)?;
        builder.set_provenance(None);
        let outputs = builder.graph().node(new).outputs.clone();
        for (old, new) in node.outputs.iter().zip(outputs) {
            builder.set_name(new, &graph.value(*old).name);
            values[old.index()] = Some(new);
        }
    }
    let mut made = builder.finish()?;
    made.outputs = graph.outputs.iter().filter_map(|output| values[output.index()]).collect();
    Ok(Rewritten { graph: made, values })
}

/// What makes two constants interchangeable.
#[derive(PartialEq, Eq, Hash)]
enum ConstantKey {
    Content(Fact),
    Identity(usize),
}

struct Rebuild<'a> {
    old: &'a Graph,
    new: Graph,
    values: Vec<Option<ValueId>>,
    constants: HashMap<ConstantKey, ValueId>,
    nodes: HashMap<(Op, Vec<Option<ValueId>>), Vec<ValueId>>,
    replace: &'a Replace,
}

/// Rebuilds a graph; the value `given` becomes an input.
fn rebuild(
    old: &Graph,
    wanted: &[ValueId],
    bindings: &Bindings,
    simplify: bool,
    given: Option<ValueId>,
    replace: &Replace,
) -> Result<Rewritten> {
    let needed = needed(old, wanted, given);
    let mut rebuild = Rebuild {
        old,
        new: Graph::default(),
        values: vec![None; old.values().len()],
        constants: HashMap::new(),
        nodes: HashMap::new(),
        replace,
    };
    for (id, value) in old.values() {
        match &value.source {
            Source::Input => {
                let shape = value.fact.shape.iter().map(|dim| dim.bind(bindings)).collect();
                let new = rebuild.new.add_input(&value.name, Fact::new(value.fact.dtype, shape));
                rebuild.values[id.index()] = Some(new);
            }
            Source::Constant(constant) if needed[id.index()] => {
                let new = rebuild.add_constant(&value.name, constant.clone(), simplify);
                rebuild.values[id.index()] = Some(new);
            }
            _ => {}
        }
    }
    if let Some(id) = given.filter(|id| rebuild.values[id.index()].is_none()) {
        let Value { name, fact, .. } = old.value(id);
        let new = rebuild.new.add_input(name, Fact::new(fact.dtype, fact.shape.clone()));
        rebuild.values[id.index()] = Some(new);
    }
    for node in old.nodes() {
        if node.outputs.iter().any(|&output| needed[output.index()] && Some(output) != given) {
            rebuild.add_node(node, simplify)?;
        }
    }
    rebuild.new.outputs = old.outputs.iter().filter_map(|output| rebuild.values[output.index()]).collect();
    let rewritten = Rewritten { graph: rebuild.new, values: rebuild.values };
    if cfg!(debug_assertions) {
        verify(&rewritten.graph)?;
    }
    Ok(rewritten)
}

impl Rebuild<'_> {
    fn add_constant(&mut self, name: &str, constant: Constant, share: bool) -> ValueId {
        if !share {
            return self.new.add_constant(name, constant);
        }
        let key = match constant.fact().content {
            Some(_) => ConstantKey::Content(constant.fact().clone()),
            None => ConstantKey::Identity(constant.identity()),
        };
        let new = &mut self.new;
        *self.constants.entry(key).or_insert_with(|| new.add_constant(name, constant))
    }

    fn add_node(&mut self, node: &Node, simplify: bool) -> Result<()> {
        let inputs: Vec<Option<ValueId>> =
            node.inputs.iter().map(|input| input.and_then(|id| self.values[id.index()])).collect();
        if simplify {
            let key = (node.op.clone(), inputs.clone());
            if let Some(shared) = self.nodes.get(&key).cloned() {
                self.place(node, &shared);
                return Ok(());
            }
            if let Some(folded) = self.fold(node, &inputs)? {
                let outputs: Vec<ValueId> = (node.outputs.iter().zip(folded))
                    .map(|(output, tensor)| {
                        let name = self.old.value(*output).name.clone();
                        self.add_constant(&name, Constant::new(tensor), true)
                    })
                    .collect();
                self.place(node, &outputs);
                self.nodes.insert(key, outputs);
                return Ok(());
            }
            if let Some(outputs) = (self.replace)(&mut self.new, node, &inputs)? {
                self.place(node, &outputs);
                self.nodes.insert(key, outputs);
                return Ok(());
            }
        }
        let new = self.new.add_node(&node.name, node.op.clone(), &inputs)?;
        let mut outputs = self.new.node(new).outputs.clone();
        for (old, new) in node.outputs.iter().zip(&outputs) {
            self.new.set_name(*new, &self.old.value(*old).name);
        }
        if let Some(provenance) = &node.provenance {
            self.new.set_provenance(new, provenance.clone());
        }
        if simplify {
            if let Some(content) = self.known_outputs(&outputs) {
                outputs = content
                    .into_iter()
                    .map(|tensor| self.add_constant("", Constant::new(tensor), true))
                    .collect();
            } else if let Some(input) = inputs.first().copied().flatten()
                && changes_nothing(&node.op, self.new.fact(input), self.new.fact(outputs[0]))
            {
                outputs[0] = input;
            }
            self.nodes.insert((node.op.clone(), inputs), outputs.clone());
        }
        self.place(node, &outputs);
        Ok(())
    }

    fn place(&mut self, node: &Node, outputs: &[ValueId]) {
        for (old, new) in node.outputs.iter().zip(outputs) {
            // A value that is given stays the input that it has become.
            self.values[old.index()].get_or_insert(*new);
        }
    }

    /// The outputs of a node whose inputs are all constants, unless they would be much larger than the inputs.
    fn fold(&self, node: &Node, inputs: &[Option<ValueId>]) -> Result<Option<Vec<Tensor>>> {
        if inputs.is_empty() {
            return Ok(None);
        }
        let mut constants = Vec::new();
        for input in inputs {
            match input.map(|id| self.new.constant(id)) {
                None => constants.push(None),
                Some(Some(constant)) => constants.push(Some(constant)),
                Some(None) => return Ok(None),
            }
        }
        let facts: Vec<Option<&Fact>> =
            constants.iter().map(|constant| constant.map(Constant::fact)).collect();
        let outputs = node.op.infer(&Inputs(&facts)).context(|| node.title())?;
        let size = |fact: &Fact| element_count(&fact.shape);
        let given = facts.iter().flatten().filter_map(|fact| size(fact)).fold(0, usize::saturating_add);
        let Some(made) =
            outputs.iter().map(size).try_fold(0, |sum: usize, size| Some(sum.saturating_add(size?)))
        else {
            return Ok(None);
        };
        if made > given.saturating_mul(4).saturating_add(4096) {
            return Ok(None);
        }
        let tensors: Vec<Option<Tensor>> = (constants.iter())
            .map(|constant| constant.map(Constant::tensor).transpose())
            .collect::<Result<_>>()?;
        let references: Vec<Option<&Tensor>> = tensors.iter().map(Option::as_ref).collect();
        Ok(Some(node.op.run(&Inputs(&references)).context(|| node.title())?))
    }

    /// The outputs of a node where their elements follow from shapes alone.
    fn known_outputs(&self, outputs: &[ValueId]) -> Option<Vec<Tensor>> {
        outputs.iter().map(|&output| self.new.fact(output).known_tensor()).collect()
    }
}

/// True for an op whose first output is its first input.
pub(crate) fn changes_nothing(op: &Op, x: &Fact, y: &Fact) -> bool {
    match op {
        Op::Identity(_) | Op::Dropout(_) => true,
        Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) | Op::Expand(_) | Op::Cast(_) => {
            x.dtype == y.dtype && x.shape == y.shape
        }
        _ => false,
    }
}

/// Checks that a graph is well formed: order, arity, facts.
///
/// # Errors
/// If it is not; that is a bug, and the message names the node.
pub fn verify(graph: &Graph) -> Result<()> {
    let mut defined = vec![false; graph.values().len()];
    for (id, value) in graph.values() {
        defined[id.index()] = !matches!(value.source, Source::Node(_));
    }
    for (id, node) in graph.nodes_with_ids() {
        if let Some(early) = node.inputs.iter().flatten().find(|input| !defined[input.index()]) {
            bail!(internal, "{} reads {} before it is computed", node.title(), graph.title(*early));
        }
        let facts: Vec<Option<&Fact>> =
            node.inputs.iter().map(|input| input.map(|id| graph.fact(id))).collect();
        let outputs = node.op.infer(&Inputs(&facts)).context(|| node.title())?;
        if outputs.len() != node.outputs.len() {
            bail!(internal, "{} has {} outputs, its op {}", node.title(), node.outputs.len(), outputs.len());
        }
        for (output, inferred) in node.outputs.iter().zip(&outputs) {
            let fact = graph.fact(*output);
            if fact.dtype != inferred.dtype
                || fact.shape != inferred.shape
                || graph.producer(*output) != Some(id)
            {
                bail!(internal, "{} gives {inferred}, the graph says {fact}", node.title());
            }
            defined[output.index()] = true;
        }
    }
    Ok(())
}

/// The symbols that make the shape of `fact` the shape given.
///
/// # Errors
/// If an axis is a different number; the message names the tensor and says what was expected.
pub fn bind(name: &str, fact: &Fact, shape: &[usize], bindings: &mut Bindings) -> Result<()> {
    let mismatch = |reason: &str| {
        let expected = crate::dim::display_shape(&fact.shape);
        Err(crate::Error::input(format!(
            "input '{name}': expected shape {expected}, found {shape:?}{reason}"
        )))
    };
    if fact.rank() != shape.len() {
        return mismatch(&format!(" (rank {} instead of {})", shape.len(), fact.rank()));
    }
    for (axis, (dim, &length)) in fact.shape.iter().zip(shape).enumerate() {
        match (dim.known(), dim.as_symbol()) {
            (Some(1), _) if axis == 0 && length > 1 => {
                return mismatch(": this network takes one sample at a time, so give them one by one");
            }
            (Some(known), _) if known != length as i64 => return mismatch(""),
            (None, Some(symbol)) => {
                let known = *bindings.entry(Arc::clone(symbol)).or_insert(length as i64);
                if known != length as i64 {
                    return mismatch(&format!(": '{symbol}' is {known} elsewhere"));
                }
            }
            _ => {}
        }
    }
    Ok(())
}
