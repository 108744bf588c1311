//! Layer-wise relevance propagation: the target's value shared out over the input, layer by layer.

use crate::backprop::{Gradient, depends_on, walk};
use crate::builder::{Builder, Var};
use crate::error::{Result, bail};
use crate::graph::{Graph, ValueId};
use crate::rules::{RuleSet, Start};

/// A graph with the relevance of a tensor, and the sums that say whether relevance was conserved.
#[derive(Debug)]
pub(crate) struct Propagated {
    pub(crate) gradient: Gradient,
    /// The relevance of the tensor.
    pub(crate) relevance: ValueId,
    /// The sum that the walk started from.
    pub(crate) start: ValueId,
    /// The sum that arrived at the tensor, and at other inputs of the graph.
    pub(crate) arrived: ValueId,
    /// The sum that ended in biases and other parameters.
    pub(crate) absorbed: ValueId,
}

/// Adds the relevance of `explained` for the sum `total` of losses, whose nodes begin at `first_loss_node`.
///
/// The losses say how much of each element of a target counts; that times the element is what the walk starts from, or
/// with [`Start::One`] the former alone.
pub(crate) fn propagate(
    graph: Graph,
    first_loss_node: usize,
    total: ValueId,
    explained: ValueId,
    rules: &RuleSet,
    start: Start,
) -> Result<Propagated> {
    // What the losses read of the model.
    let depends = depends_on(&graph, &[explained]);
    let is_of_model = |id: ValueId| {
        graph.constant(id).is_none() && graph.producer(id).is_none_or(|node| node.index() < first_loss_node)
    };
    let mut targets: Vec<ValueId> = (graph.nodes()[first_loss_node..].iter())
        .flat_map(|node| node.inputs.iter().flatten().copied())
        .filter(|&id| depends[id.index()] && is_of_model(id))
        .collect();
    targets.sort_unstable();
    targets.dedup();
    let inputs: Vec<ValueId> = (graph.inputs().iter().copied())
        .filter(|&input| input != explained && graph.fact(input).dtype.is_float())
        .collect();
    let explains_input = graph.producer(explained).is_none();

    let builder = Builder::new(graph);
    let loss = builder.var(total);
    let ones = loss.scalar_like(1.0).expand_like(loss).id()?;
    let counted = walk(builder.finish()?, &[(total, ones)], &targets, &RuleSet::new(), first_loss_node)?;
    let builder = Builder::new(counted.graph);
    let mut seeds = Vec::new();
    let mut started: Vec<Var> = Vec::new();
    for target in targets {
        let Some(counts) = counted.cotangents[target.index()] else { continue };
        let seed = match start {
            Start::Value => builder.var(counts) * builder.var(target),
            Start::One => builder.var(counts),
        };
        seeds.push((target, seed.id()?));
        started.push(seed);
    }
    if seeds.is_empty() {
        bail!(target, "the losses do not depend on the tensor that is explained");
    }
    let start = sum(&builder, &started).id()?;
    let others = if explains_input { inputs } else { vec![] };
    let wrt: Vec<ValueId> = std::iter::once(explained).chain(others).collect();
    let mut gradient = walk(builder.finish()?, &seeds, &wrt, rules, 0)?;
    let Some(relevance) = gradient.cotangents[explained.index()] else {
        bail!(target, "no relevance reaches {}", gradient.graph.title(explained));
    };
    let builder = Builder::new(std::mem::take(&mut gradient.graph));
    let arrived: Vec<Var> = gradient.values.iter().map(|&value| builder.var(value)).collect();
    let arrived = sum(&builder, &arrived).id()?;
    let absorbed: Vec<Var> = gradient.coverage.absorbed.iter().map(|(_, value)| builder.var(*value)).collect();
    let absorbed = match absorbed.is_empty() {
        true => builder.var(start).scalar_like(0.0),
        false => sum(&builder, &absorbed),
    };
    let absorbed = absorbed.id()?;
    gradient.graph = builder.finish()?;
    Ok(Propagated { gradient, relevance, start, arrived, absorbed })
}

/// The sum of all elements of all values.
fn sum<'b>(builder: &'b Builder, values: &[Var<'b>]) -> Var<'b> {
    let sums: Vec<Var> = values.iter().map(|value| value.sum()).collect();
    match sums[..] {
        [one] => one,
        _ => builder.apply(crate::ops::elementwise::Sum, &sums),
    }
}
