//! Methods that vary the input, as nodes: the variants of all samples as one batch, or some of them in each round of a loop.

use super::{ExplanationGraph, Method};
use crate::builder::{Builder, Var};
use crate::dim::Dim;
use crate::error::{Result, bail};
use crate::graph::{Constant, Fact, Graph, Source, ValueId};
use crate::losses::WeightedLoss;
use crate::model::Model;
use crate::onnx::{Rounds, known_length};
use crate::ops::layout::reshaped;
use crate::rewrite::{needed, with_input};
use crate::tensor::Tensor;
use std::collections::HashMap;

/// A method that explains variants of the input and adds up what comes out, said in nodes, so that it can be saved.
///
/// Below, `v` is a number of variants and `n` one of samples.
pub trait VariantMethod: Method {
    /// The explanation of one variant.
    ///
    /// # Errors
    /// If its inner method is no graph.
    fn inner(&self, model: &Model, losses: &[WeightedLoss]) -> Result<ExplanationGraph>;

    /// The tensor inside the network that varies; `None` for the input, which is the default.
    ///
    /// # Errors
    /// If there is no such tensor.
    fn varied(&self, _model: &Model) -> Result<Option<ValueId>> {
        Ok(None)
    }

    /// In what the variants differ: arrays with an entry of the first axis for each. The first array is `[v]`, with what
    /// the summands of the variant are multiplied by.
    ///
    /// # Errors
    /// If the number of variants is not known before the network runs, or the shape of the input is not.
    fn differences(&self, input: &Fact) -> Result<Vec<Tensor>>;

    /// What is computed of the samples, the inputs themselves, once for all variants; `there` gives what the tensor that
    /// varies is for another input.
    ///
    /// # Errors
    /// If the shape of the input is not known.
    fn shared<'b>(&self, sample: &Varying<'b>, there: &There<'_, 'b>) -> Result<Vec<Var<'b>>>;

    /// The variants, `[v, n, …]`.
    fn vary<'b>(&self, sample: &Varying<'b>) -> Var<'b>;

    /// What the attributions `[v, n, …]` of the variants add to one or more sums.
    fn summands<'b>(&self, attribution: Var<'b>, sample: &Varying<'b>) -> Vec<Var<'b>>;

    /// The attribution `[n, …]`, of the sums.
    fn total<'b>(&self, sums: &[Var<'b>]) -> Var<'b>;
}

/// From another input to what the tensor that varies is for it.
pub type There<'a, 'b> = dyn Fn(Var<'b>) -> Result<Var<'b>> + 'a;

/// What a [`VariantMethod`] makes its nodes of.
#[derive(Clone, Debug)]
pub struct Varying<'b> {
    /// What varies, `[n, …]`.
    pub x: Var<'b>,
    /// The channel axis of the input, if it has one.
    pub channel_axis: Option<usize>,
    /// What [`VariantMethod::shared`] gave; nothing while that is being made.
    pub shared: Vec<Var<'b>>,
    /// Entries of [`VariantMethod::differences`] for the variants at hand.
    pub differences: Vec<Var<'b>>,
}

impl<'b> Varying<'b> {
    /// An array of one number a variant, with axes behind it so that it can be multiplied with `like`.
    pub fn number(&self, index: usize, like: Var<'b>) -> Var<'b> {
        self.differences[index].unsqueeze(1..like.rank())
    }
}

/// An input of the explanation, and what it is in the graph that is saved.
#[derive(Clone, Copy)]
pub(super) struct Given<'b> {
    pub(super) id: ValueId,
    pub(super) var: Var<'b>,
    /// Whether its first axis is that of the samples.
    pub(super) each_sample: bool,
}

/// How many variants run at once: of the numbers up to `most` that are not much smaller, the one that leaves fewest places of
/// the last round empty.
fn at_once(count: usize, most: usize) -> usize {
    (most / 2 + 1..=most).rev().min_by_key(|&size| count.div_ceil(size) * size).unwrap_or(1)
}

/// The nodes of a method's attribution, added behind those of the network.
pub(super) struct Varied<'b> {
    /// The raw attribution.
    pub(super) raw: Var<'b>,
    /// The loop that computes what some new inputs of the graph are, unless all variants run at once.
    pub(super) rounds: Option<Rounds>,
}

/// The explanation of one variant: a graph with the tensor that varies among its inputs.
struct OneVariant {
    graph: Graph,
    raw: ValueId,
}

/// Adds a method's attribution to a graph that has the input, and everything that the explanation takes beside it.
///
/// `inputs` are the inputs of the explanation with what they are in the builder, first the one that varies or that the tensor
/// `inner` that varies depends on; of that, too, it is said what it is in the builder.
pub(super) fn varied<'b>(
    method: &dyn VariantMethod,
    explanation: &ExplanationGraph,
    builder: &'b Builder,
    inputs: &[Given<'b>],
    inner: Option<(ValueId, Var<'b>)>,
    most: usize,
) -> Result<Varied<'b>> {
    let Some(x) = inputs.first().map(|given| given.var) else { bail!(internal, "no input varies") };
    let (image, axes) = &explanation.sides;
    let channel_axis = (1..explanation.graph.fact(*image).rank()).find(|axis| !axes.contains(axis));
    let mut sample = Varying { x, channel_axis, shared: Vec::new(), differences: Vec::new() };
    let there = |other: Var<'b>| match inner {
        None => Ok(other),
        Some((tensor, _)) => {
            let mut given: HashMap<ValueId, Var<'b>> = inputs.iter().map(|it| (it.id, it.var)).collect();
            given.insert(inputs[0].id, other.expand_like(x));
            grafted(builder, &explanation.graph, tensor, &given)
        }
    };
    sample.shared = method.shared(&sample, &there)?;
    let differences = method.differences(&x.fact())?;
    let (explanation, inputs) = match inner {
        None => {
            let one = OneVariant { graph: explanation.graph.clone(), raw: explanation.raw };
            (one, inputs.to_vec())
        }
        Some((tensor, var)) => {
            let opened = with_input(&explanation.graph, tensor, &[explanation.raw])?;
            let raw = opened.kept(explanation.raw)?;
            let is_read = needed(&opened.graph, &[raw], None);
            let mut given = vec![Given { id: opened.kept(tensor)?, var, each_sample: true }];
            for input in inputs {
                let id = opened.kept(input.id)?;
                given.extend(is_read[id.index()].then_some(Given { id, ..*input }));
            }
            sample.x = var;
            (OneVariant { graph: opened.graph, raw }, given)
        }
    };
    let (explanation, inputs) = (&explanation, &inputs[..]);
    let x = sample.x;
    let count = differences.first().map_or(0, Tensor::len);
    // A file with a literal number of samples takes no other.
    let most = if x.shape().first().is_some_and(|batch| batch.known().is_none()) { most.max(1) } else { 1 };
    if count <= most {
        sample.differences = differences.into_iter().map(|tensor| builder.constant(tensor)).collect();
        let sums = one_round(method, explanation, &sample, inputs)?;
        return Ok(Varied { raw: method.total(&sums), rounds: None });
    }
    let size = at_once(count, most);
    let rounds = count.div_ceil(size);
    let body = Builder::new(Graph::default());
    let mut captured = Vec::new();
    let mut capture = |var: Var<'b>| -> Result<Var<'_>> {
        let inside = body.input("", var.fact());
        captured.push((inside.id()?, var.id()?));
        Ok(inside)
    };
    let mut inside = Vec::new();
    for given in inputs {
        inside.push(Given { id: given.id, var: capture(given.var)?, each_sample: given.each_sample });
    }
    let shared = sample.shared.iter().map(|var| capture(*var)).collect::<Result<_>>()?;
    let mut entries = Vec::new();
    let mut vars = Vec::new();
    for (place, tensor) in differences.into_iter().enumerate() {
        let tensor = filled_up(&tensor, rounds * size, place == 0)?;
        let mut shape = tensor.shape().to_vec();
        shape[0] = size;
        let fact = Fact::new(tensor.dtype(), shape.iter().map(|&length| Dim::from(length)).collect());
        shape.insert(0, rounds);
        let var = body.input("", fact);
        entries.push((var.id()?, Constant::new(reshaped(&tensor, &shape)?)));
        vars.push(var);
    }
    let inner = Varying { x: inside[0].var, channel_axis, shared, differences: vars };
    let sums = one_round(method, explanation, &inner, &inside)?;
    let mut collected = Vec::new();
    let mut totals = Vec::new();
    for sum in sums {
        let mut fact = sum.fact();
        fact.content = None;
        fact.shape.insert(0, rounds.into());
        let all = builder.input("", fact);
        collected.push((sum.id()?, all.id()?));
        totals.push(all.reduce_sum([0], false));
    }
    let rounds = Rounds { body: body.finish()?, count: rounds, captured, entries, collected };
    Ok(Varied { raw: method.total(&totals), rounds: Some(rounds) })
}

/// An array with more entries: the first again, or zeros.
fn filled_up(tensor: &Tensor, entries: usize, with_zeros: bool) -> Result<Tensor> {
    let first = tensor.outer(0..1);
    let filling = if with_zeros { Tensor::from(first.to_f64() * 0.0).cast(first.dtype()) } else { first };
    let missing = entries.saturating_sub(tensor.shape()[0]);
    Tensor::join(&std::iter::once(tensor.clone()).chain(vec![filling; missing]).collect::<Vec<_>>())
}

/// The sums over the variants at hand.
fn one_round<'b>(
    method: &dyn VariantMethod,
    explanation: &OneVariant,
    sample: &Varying<'b>,
    inputs: &[Given<'b>],
) -> Result<Vec<Var<'b>>> {
    let size = sample.differences[0].shape().first().cloned().unwrap_or_else(|| 1.into());
    let together = |all: Var<'b>| -> Result<Var<'b>> {
        let mut shape = vec![-1];
        for (axis, dim) in all.shape().iter().enumerate().skip(2) {
            shape.push(known_length(dim, axis - 1)? as i64);
        }
        Ok(all.reshape(shape))
    };
    let mut given = HashMap::new();
    for (place, &Given { id, var, each_sample }) in inputs.iter().enumerate() {
        let all = match (place, each_sample) {
            (0, _) => together(method.vary(sample))?,
            // What else there is for a sample is the same for all its variants.
            (_, true) => {
                let like = std::iter::once(size.known().unwrap_or(1)).chain(vec![1; var.rank()]);
                together(var.unsqueeze([0]).expand(like))?
            }
            (_, false) => var,
        };
        given.insert(id, all);
    }
    let variants = given[&inputs[0].id].shape();
    let raw = grafted(sample.x.builder(), &explanation.graph, explanation.raw, &given)?;
    if raw.shape().first() != variants.first() {
        bail!(
            unsupported,
            "the attribution of {} has no axis of samples first, so variants of the input cannot be told apart in it",
            raw.fact()
        );
    }
    let mut shape = vec![size.known().unwrap_or(1), -1];
    for (axis, dim) in raw.shape().iter().enumerate().skip(1) {
        shape.push(known_length(dim, axis)? as i64);
    }
    let attribution = raw.reshape(shape);
    let summed = |summand: Var<'b>| {
        let factor = sample.number(0, summand).cast(summand.dtype());
        (summand * factor).reduce_sum([0], false)
    };
    Ok(method.summands(attribution, sample).into_iter().map(summed).collect())
}

/// Adds the nodes of a graph that a value depends on, with others in place of its inputs. No tensor of them keeps a name;
/// constants that are there already are used.
fn grafted<'b>(
    builder: &'b Builder,
    graph: &Graph,
    wanted: ValueId,
    inputs: &HashMap<ValueId, Var<'b>>,
) -> Result<Var<'b>> {
    let needed = needed(graph, &[wanted], None);
    let mut constants: HashMap<usize, ValueId> = HashMap::new();
    for (id, value) in builder.graph().values() {
        if let Source::Constant(constant) = &value.source {
            constants.insert(constant.identity(), id);
        }
    }
    let mut values: Vec<Option<ValueId>> = vec![None; graph.values().len()];
    for (id, value) in graph.values().filter(|(id, _)| needed[id.index()]) {
        values[id.index()] = match &value.source {
            Source::Input => match inputs.get(&id) {
                Some(var) => Some(var.id()?),
                None => bail!(internal, "{} is not given to the variants", graph.title(id)),
            },
            Source::Constant(constant) => Some(match constants.get(&constant.identity()) {
                Some(&there) => there,
                None => builder.add_constant("", constant.clone()),
            }),
            Source::Node(_) => None,
        };
    }
    for node in graph.nodes() {
        if !node.outputs.iter().any(|output| needed[output.index()]) {
            continue;
        }
        let inputs: Vec<Option<ValueId>> =
            node.inputs.iter().map(|input| input.and_then(|id| values[id.index()])).collect();
        builder.set_provenance(node.provenance.clone());
        let name = if node.name.is_empty() { String::new() } else { format!("variants/{}", node.name) };
        let new = builder.add_node(&name, node.op.clone(), &inputs)?;
        let outputs = builder.graph().node(new).outputs.clone();
        for (old, new) in node.outputs.iter().zip(outputs) {
            values[old.index()] = Some(new);
        }
    }
    builder.set_provenance(None);
    match values[wanted.index()] {
        Some(id) => Ok(builder.var(id)),
        None => bail!(internal, "the attribution is lost"),
    }
}

#[cfg(test)]
mod tests {
    use super::at_once;

    #[test]
    fn rounds_are_full_where_they_can_be() {
        for (count, most, expected) in
            [(50, 8, 5), (20, 8, 5), (16, 8, 8), (51, 8, 6), (9, 8, 5), (3, 1, 1), (64, 8, 8)]
        {
            assert_eq!(at_once(count, most), expected, "{count} {most}");
        }
        for count in 9..200 {
            let size = at_once(count, 8);
            assert!((5..=8).contains(&size) && count.div_ceil(size) * size <= count + 4, "{count} {size}");
        }
    }
}
