//! Canonical forms: what a network is rewritten to before relevance rules apply, so that one rule fits many spellings.

use crate::backprop::depends_on;
use crate::builder::{Builder, Var};
use crate::error::{Result, bail};
use crate::graph::{Graph, Node, ValueId};
use crate::op::{Op, Real};
use crate::ops::matmul::Gemm;
use crate::ops::norm::spelled_out;
use std::fmt;

/// A form that a network is brought into. It computes the same function, up to rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Canonical {
    /// A constant that is added to the result of a convolution or matrix product becomes its bias.
    Bias,
    /// Batch normalization after a convolution or dense layer goes into its weights and bias.
    BatchNormalization,
    /// Layer, group and instance normalization are spelled out: subtract the mean, divide by the deviation, scale, shift.
    Normalization,
}

impl Canonical {
    /// All forms with the names that files of rules use.
    pub const NAMES: &'static [(&'static str, Self)] = &[
        ("bias", Self::Bias),
        ("batch_normalization", Self::BatchNormalization),
        ("normalization", Self::Normalization),
    ];

    /// The form of a name.
    ///
    /// # Errors
    /// If there is none of this name.
    pub fn named(name: &str) -> Result<Self> {
        match Self::NAMES.iter().find(|(known, _)| *known == name.replace('-', "_")) {
            Some((_, form)) => Ok(*form),
            None => {
                let known: Vec<&str> = Self::NAMES.iter().map(|(name, _)| *name).collect();
                bail!(option, "unknown canonical form '{name}': expected one of {}", known.join(", "))
            }
        }
    }

    /// The graph with its first `nodes` nodes in this form, and the titles of those that were rewritten. Values keep
    /// their ids.
    ///
    /// # Errors
    /// None for a graph that verifies.
    pub fn apply(self, graph: &Graph, nodes: usize) -> Result<(Graph, Vec<String>)> {
        let varies = depends_on(graph, graph.inputs());
        let mut done = Vec::new();
        let mut seen = 0;
        let form = graph.replacing(|builder, node| {
            seen += 1;
            if seen > nodes {
                return Ok(None);
            }
            let new = match self {
                Self::Bias => bias(builder, node, &varies),
                Self::BatchNormalization => batch_normalization(builder, node, &varies),
                Self::Normalization => normalization(graph, builder, node),
            }?;
            if new.is_some() {
                done.push(node.title());
            }
            Ok(new)
        })?;
        if cfg!(debug_assertions) {
            crate::rewrite::verify(&form)?;
        }
        Ok((form, done))
    }
}

impl fmt::Display for Canonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, form)| form == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or("unknown"))
    }
}

/// A layer that is linear in one input, with weights and bias that are parameters.
struct Layer<'b> {
    op: Op,
    x: Var<'b>,
    weight: Var<'b>,
    bias: Option<Var<'b>>,
}

impl<'b> Layer<'b> {
    /// The layer that gives a value.
    fn of(builder: &'b Builder, value: ValueId, varies: &[bool]) -> Option<Self> {
        let graph = builder.graph();
        let node = graph.node(graph.producer(value)?);
        let input = |index: usize| node.inputs.get(index).copied().flatten();
        let is_varying = |id: ValueId| varies.get(id.index()).copied().unwrap_or(false);
        let parameter = |index: usize| input(index).filter(|&id| !is_varying(id));
        let layer = Self {
            op: node.op.clone(),
            x: builder.var(input(0)?),
            weight: builder.var(parameter(1)?),
            bias: match input(2) {
                Some(_) => Some(builder.var(parameter(2)?)),
                None => None,
            },
        };
        let is_layer = match &node.op {
            Op::Conv(_) => true,
            Op::ConvTranspose(op) => op.group == 1,
            Op::Gemm(op) => op.alpha.0 == 1.0 && op.beta.0 == 1.0 && !op.transpose_a,
            Op::MatMul(_) => graph.fact(value).rank() == 2 && graph.fact(layer.weight.id().ok()?).rank() == 2,
            _ => false,
        };
        is_layer.then_some(layer)
    }

    /// The axis of the weights that belongs to the output's channels.
    fn output_axis(&self) -> usize {
        match &self.op {
            Op::Conv(_) => 0,
            Op::Gemm(op) if op.transpose_b => 0,
            _ => 1,
        }
    }

    fn emit(self, builder: &'b Builder) -> Var<'b> {
        let op = match self.op {
            Op::MatMul(_) => {
                Gemm { alpha: Real(1.0), beta: Real(1.0), transpose_a: false, transpose_b: false }.into()
            }
            op => op,
        };
        builder.apply_all(op, &[Some(self.x), Some(self.weight), self.bias])[0]
    }
}

/// `layer(x) + constant`, where the constant has an element for each channel, or one for all.
fn bias<'b>(builder: &'b Builder, node: &Node, varies: &[bool]) -> Result<Option<Var<'b>>> {
    let (Op::Add(_), [Some(a), Some(b)]) = (&node.op, &node.inputs[..]) else { return Ok(None) };
    for (value, constant) in [(*a, *b), (*b, *a)] {
        let Some(mut layer) = Layer::of(builder, value, varies) else { continue };
        if varies.get(constant.index()).copied().unwrap_or(false) {
            continue;
        }
        let (shape, of_constant) = (builder.var(value).shape(), builder.var(constant).shape());
        // Lengths other than 1 stand on the channel axis alone.
        let offset = shape.len().checked_sub(of_constant.len());
        let fits = offset.is_some_and(|offset| {
            of_constant
                .iter()
                .enumerate()
                .all(|(axis, dim)| dim.is(1) || (offset + axis == 1 && *dim == shape[1]))
        });
        let per_channel = of_constant.iter().any(|dim| !dim.is(1));
        if !fits || !(per_channel || shape[1].is(1)) {
            continue;
        }
        let vector = builder.var(constant).reshape([-1]);
        layer.bias = Some(match layer.bias {
            Some(bias) => bias + vector,
            None => vector,
        });
        return Ok(Some(layer.emit(builder)));
    }
    Ok(None)
}

/// `(layer(x) - mean) · scale / √(variance + epsilon) + shift`.
fn batch_normalization<'b>(builder: &'b Builder, node: &Node, varies: &[bool]) -> Result<Option<Var<'b>>> {
    let (Op::BatchNormalization(op), [Some(x), Some(scale), Some(shift), Some(mean), Some(variance)]) =
        (&node.op, &node.inputs[..])
    else {
        return Ok(None);
    };
    let Some(mut layer) = Layer::of(builder, *x, varies) else { return Ok(None) };
    let vector = |id: &ValueId| builder.var(*id);
    let factor = vector(scale) / (vector(variance) + op.epsilon.0).sqrt();
    let axis = layer.output_axis();
    let around = (0..layer.weight.rank()).filter(|&other| other != axis);
    layer.weight = layer.weight * factor.unsqueeze(around);
    let centred = layer.bias.map_or_else(|| -vector(mean), |bias| bias - vector(mean));
    layer.bias = Some(centred * factor + vector(shift));
    Ok(Some(layer.emit(builder)))
}

/// `scale · (x - mean) / √(variance + epsilon) + bias`, with each step a node.
fn normalization<'b>(graph: &Graph, builder: &'b Builder, node: &Node) -> Result<Option<Var<'b>>> {
    let used = |output: &ValueId| graph.nodes().iter().any(|other| other.inputs.contains(&Some(*output)));
    if node.outputs.iter().skip(1).any(used) {
        return Ok(None);
    }
    let inputs: Vec<Option<Var>> = node.inputs.iter().map(|input| input.map(|id| builder.var(id))).collect();
    spelled_out(&node.op, &inputs)
}
