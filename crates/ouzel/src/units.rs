//! Units: nodes that together are one operation, such as a GELU that an exporter spelled out in primitives.
//!
//! The graph stays as it was exported; units are kept beside it.

mod pattern;
mod search;
mod table;
#[cfg(test)]
mod tests;

use crate::backprop::{Back, Cotangent, Cotangents, Walk, depends_on};
use crate::builder::{Builder, Var};
use crate::error::{Context, Result, bail};
use crate::evaluate::evaluate;
use crate::graph::{Fact, Graph, Node, NodeId, ValueId};
use crate::op::{Custom, Inputs, Op, OpDef};
use crate::tensor::Tensor;
use pattern::Pattern;
use search::{Found, Search};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use table::KINDS;

/// Nodes of a graph that together are one operation of certain inputs.
///
/// No two units share a node, and nothing outside a unit reads a value inside it but its output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// The ONNX name of the operation.
    pub name: &'static str,
    /// Its family, such as `activation`, `norm` or `attention`.
    pub family: &'static str,
    /// The nodes, in the order of the graph; the last one computes the output.
    pub nodes: Vec<NodeId>,
    /// What it is a function of, as ONNX orders it: the input first, then scales and biases; for attention query, key
    /// (as it is multiplied), value and masks.
    pub inputs: Vec<ValueId>,
    /// What it computes.
    pub output: ValueId,
}

impl Unit {
    /// The node that computes the output.
    pub fn last(&self) -> NodeId {
        *self.nodes.last().expect("invariant: a unit has nodes")
    }

    /// How messages speak of the unit: its name and that of its last node.
    pub fn title(&self, graph: &Graph) -> String {
        match &*graph.node(self.last()).name {
            "" => self.name.to_owned(),
            name => format!("{} '{name}'", self.name),
        }
    }

    /// The nodes as one that computes the same.
    pub(crate) fn as_node(&self, graph: &Graph) -> Result<Node> {
        let mut body = Graph::default();
        let mut places: HashMap<ValueId, ValueId> = HashMap::new();
        let mut inputs = self.inputs.clone();
        for &input in &self.inputs {
            places.insert(input, body.add_input("", graph.fact(input).clone()));
        }
        for &id in &self.nodes {
            let node = graph.node(id);
            for &input in node.inputs.iter().flatten() {
                if places.contains_key(&input) {
                    continue;
                }
                let inside = match graph.constant(input) {
                    Some(constant) => body.add_constant("", constant.clone()),
                    None => {
                        inputs.push(input);
                        body.add_input("", graph.fact(input).clone())
                    }
                };
                places.insert(input, inside);
            }
            let own: Vec<Option<ValueId>> =
                node.inputs.iter().map(|input| input.map(|input| places[&input])).collect();
            let made = body.add_node(&node.name, node.op.clone(), &own)?;
            places.extend(node.outputs.iter().copied().zip(body.node(made).outputs.clone()));
        }
        let output = places[&self.output];
        let mut outside = vec![None; body.values().len()];
        for (original, inside) in places {
            outside[inside.index()] = Some(original);
        }
        let op = Whole { name: self.name, body, output, inputs: inputs.clone(), outside };
        Ok(Node {
            name: graph.node(self.last()).name.clone(),
            op: Op::Custom(Custom(Arc::new(op))),
            inputs: inputs.into_iter().map(Some).collect(),
            outputs: vec![self.output],
            provenance: None,
        })
    }
}

/// Finds the units of a graph. Values to `keep` are never inside one.
///
/// ```
/// use ouzel::{Builder, DType, Fact, Graph, units};
/// let builder = Builder::new(Graph::default());
/// let x = builder.input("x", Fact::new(DType::F32, vec![8.into()]));
/// let gelu = x * ((x / std::f64::consts::SQRT_2).erf() + 1.0) * 0.5;
/// let x = x.id()?;
/// # let _ = gelu;
/// let units = units::recognize(&builder.finish()?, &[]);
/// assert_eq!((units[0].name, units[0].nodes.len(), units[0].inputs[0]), ("Gelu", 5, x));
/// # Ok::<(), ouzel::Error>(())
/// ```
pub fn recognize(graph: &Graph, keep: &[ValueId]) -> Vec<Unit> {
    let mut by_op: HashMap<&str, Vec<NodeId>> = HashMap::new();
    for (id, node) in graph.nodes_with_ids() {
        by_op.entry(node.op.name()).or_default().push(id);
    }
    let search = Search::new(graph);
    let consumers = graph.consumers();
    let kept: HashSet<ValueId> = keep.iter().chain(&graph.outputs).copied().collect();
    let mut taken = vec![false; graph.nodes().len()];
    let mut units: Vec<Unit> = Vec::new();
    for kind in KINDS.iter() {
        for pattern in &kind.patterns {
            if !pattern.ops().iter().all(|op| by_op.contains_key(op)) {
                continue;
            }
            let ops = roots(pattern);
            for &root in ops.iter().filter_map(|op| by_op.get(op)).flatten() {
                if taken[root.index()] {
                    continue;
                }
                let unit = |found: Found| {
                    let mut nodes = found.nodes;
                    nodes.sort_unstable();
                    let output = *graph.node(root).outputs.first()?;
                    let inputs = found.inputs.into_iter().flatten().collect();
                    let unit = Unit { name: kind.name, family: kind.family, nodes, inputs, output };
                    let free = unit.nodes.iter().all(|node| !taken[node.index()]);
                    (free
                        && search.means_agree(&unit.nodes)
                        && stands_alone(graph, &search, &consumers, &kept, &unit))
                    .then_some(unit)
                };
                let found = search.at(pattern, kind.inputs, root).into_iter().filter_map(unit);
                if let Some(unit) = found.max_by_key(|unit| unit.nodes.len()) {
                    unit.nodes.iter().for_each(|node| taken[node.index()] = true);
                    units.push(unit);
                }
            }
        }
    }
    units.sort_by_key(Unit::last);
    units
}

/// The ops whose outputs a pattern can be.
fn roots(pattern: &Pattern) -> Vec<&str> {
    match pattern {
        Pattern::Input(_) | Pattern::Anything => Vec::new(),
        Pattern::Sum(..) => vec!["Add", "Sub", "Neg"],
        Pattern::Product(..) => vec!["Mul", "Div", "Neg", "Reciprocal", "Sqrt", "Pow"],
        Pattern::Call(op, ..) => vec![op],
    }
}

/// True if nothing enters but declared inputs and what has no gradient, and nothing leaves but the output.
fn stands_alone(
    graph: &Graph,
    search: &Search,
    consumers: &[Vec<(NodeId, usize)>],
    kept: &HashSet<ValueId>,
    unit: &Unit,
) -> bool {
    let inside = |id: &NodeId| unit.nodes.binary_search(id).is_ok();
    let made_inside = |value: ValueId| graph.producer(value).is_some_and(|node| inside(&node));
    let has_gradient = |value: ValueId| search.varies[value.index()] && graph.fact(value).dtype.is_float();
    let may_enter =
        |&value: &ValueId| made_inside(value) || unit.inputs.contains(&value) || !has_gradient(value);
    if unit.inputs.iter().any(|&input| made_inside(input)) {
        return false;
    }
    unit.nodes.iter().all(|&id| {
        let node = graph.node(id);
        let stays = |&value: &ValueId| {
            value == unit.output
                || (!kept.contains(&value)
                    && consumers[value.index()].iter().all(|(consumer, _)| inside(consumer)))
        };
        node.inputs.iter().flatten().all(may_enter) && node.outputs.iter().all(stays)
    })
}

/// A unit as an op.
struct Whole {
    name: &'static str,
    /// The nodes of the unit; the inputs are those of the unit, and after them what else is read from outside.
    body: Graph,
    output: ValueId,
    /// The values that the inputs are in the graph that the unit was found in.
    inputs: Vec<ValueId>,
    /// The values of the body in that graph.
    outside: Vec<Option<ValueId>>,
}

impl std::fmt::Debug for Whole {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl Whole {
    /// The values of the body for these inputs, as new nodes; of the values that are not there, `None`.
    fn values<'b>(&self, builder: &'b Builder, x: &[Option<Var<'b>>]) -> Vec<Option<Var<'b>>> {
        let mut values: Vec<Option<Var<'b>>> = vec![None; self.body.values().len()];
        for (id, _) in self.body.values() {
            values[id.index()] = self
                .body
                .constant(id)
                .map(|constant| builder.var(builder.add_constant("", constant.clone())));
        }
        for (&id, x) in self.body.inputs().iter().zip(x) {
            values[id.index()] = *x;
        }
        for node in self.body.nodes() {
            let x: Vec<Option<Var>> =
                node.inputs.iter().map(|input| input.and_then(|id| values[id.index()])).collect();
            for (&output, var) in node.outputs.iter().zip(builder.apply_all(node.op.clone(), &x)) {
                values[output.index()] = Some(var);
            }
        }
        values
    }
}

impl OpDef for Whole {
    fn name(&self) -> &str {
        self.name
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let builder = Builder::new(Graph::default());
        let x: Vec<Option<Var>> =
            x.0.iter().map(|fact| fact.map(|fact| builder.input("", fact.clone()))).collect();
        let output = self.values(&builder, &x)[self.output.index()].map(Var::fact);
        builder.check()?;
        match output {
            Some(fact) => Ok(vec![fact]),
            None => bail!(internal, "a unit has no output"),
        }
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let inputs: Vec<(ValueId, Tensor)> = (self.body.inputs().iter().copied().zip(x.0))
            .filter_map(|(id, tensor)| Some((id, (*tensor)?.clone())))
            .collect();
        evaluate(&self.body, &inputs, &[self.output])
    }

    fn stands_for<'b>(&self, builder: &'b Builder, x: &[Option<Var<'b>>]) -> Option<Vec<Var<'b>>> {
        Some(vec![self.values(builder, x)[self.output.index()]?])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let builder = back.builder();
        let x: Vec<Option<Var>> = (0..back.arity()).map(|index| back.optional_x(index)).collect();
        let own = |(x, own): (&Option<Var>, &ValueId)| x.is_some_and(|x| x.id().ok() == Some(*own));
        let values = match x.iter().zip(&self.inputs).all(own) {
            // The values inside are in the graph already.
            true => self.outside.iter().map(|id| id.map(|id| builder.var(id))).collect(),
            false => self.values(builder, &x),
        };
        let wanted: Vec<ValueId> = self
            .body
            .inputs()
            .iter()
            .copied()
            .zip(0..)
            .filter(|(_, index)| back.wants(*index))
            .map(|(id, _)| id)
            .collect();
        let (depends, varies) = (depends_on(&self.body, &wanted), depends_on(&self.body, self.body.inputs()));
        let mut walk = Walk::new(builder, values, depends, varies);
        walk.add(self.output, back.g(0));
        let mut reason = "no gradient leads through the nodes of the unit to it";
        for node in self.body.nodes().iter().rev() {
            if let Some(visit) = walk.visit(node, |back| back.vjp()).context(|| node.title())? {
                reason = visit.stopped.into_iter().next().unwrap_or(reason);
            }
        }
        let cotangent = |(index, id): (usize, &ValueId)| match walk.cotangent(*id) {
            _ if !back.wants(index) => Ok(Cotangent::Unwanted),
            Some(cotangent) => Ok(Cotangent::Flows(builder.var(cotangent.id()?))),
            None => Ok(Cotangent::Stops(reason)),
        };
        self.body.inputs().iter().enumerate().map(cotangent).collect()
    }
}
