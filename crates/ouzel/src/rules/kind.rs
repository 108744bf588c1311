//! What part a node plays in a network: convolution, sum, gate, activation, …, whatever op or spelling it has.

use crate::backprop::depends_on;
use crate::graph::{Graph, Node, ValueId};
use crate::op::Op;
use std::fmt;

/// The part that a node plays, as far as relevance is concerned. Every node has exactly one.
///
/// A value *varies* if it depends on an input of the graph through floating point values; what does not is a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Kind {
    /// A convolution, or its transpose, with parameters as weights.
    Convolution,
    /// A matrix product of one factor that varies with weights.
    Dense,
    /// Addition and subtraction, of values or of a value and a parameter; also the mean of several values.
    Sum,
    /// Multiplication with, or division by, a parameter; a change of sign.
    Scaling,
    /// A product of values that both vary: attention, bilinear layers.
    Product,
    /// A product of a value with one that a sigmoid or softmax made: it says how much of the value passes.
    Gate,
    /// A division by a value that varies: normalization spelled out.
    Quotient,
    /// A function of each element of one value; also `x · f(x)`, as SiLU and GELU are often spelled out.
    Activation,
    /// A linear function without parameters that mixes elements: average pooling, means, sums over axes, interpolation.
    Average,
    /// The length of a vector, which grows as its elements do: L1 and L2 norms, L-p pooling.
    Magnitude,
    /// The largest or smallest of several elements: max pooling and its kin.
    Maximum,
    /// Batch normalization with the statistics of training.
    BatchNormalization,
    /// Normalization with statistics of the value itself.
    Normalization,
    /// Softmax and its logarithm.
    Softmax,
    /// Elements are moved, copied or left out, and nothing else.
    Movement,
    /// Anything else.
    Other,
}

impl Kind {
    /// All kinds with the names that files of rules use.
    pub const NAMES: &'static [(&'static str, Self)] = &[
        ("convolution", Self::Convolution),
        ("dense", Self::Dense),
        ("sum", Self::Sum),
        ("scaling", Self::Scaling),
        ("product", Self::Product),
        ("gate", Self::Gate),
        ("quotient", Self::Quotient),
        ("activation", Self::Activation),
        ("average", Self::Average),
        ("magnitude", Self::Magnitude),
        ("maximum", Self::Maximum),
        ("batch_normalization", Self::BatchNormalization),
        ("normalization", Self::Normalization),
        ("softmax", Self::Softmax),
        ("movement", Self::Movement),
        ("other", Self::Other),
    ];

    /// The kind of a name.
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// The kind of each node of a graph.
    pub fn of_nodes(graph: &Graph) -> Vec<Self> {
        let varies = depends_on(graph, graph.inputs());
        graph.nodes().iter().map(|node| kind(graph, node, &varies)).collect()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(_, kind)| kind == self).map(|(name, _)| *name);
        f.write_str(name.unwrap_or("other"))
    }
}

fn kind(graph: &Graph, node: &Node, varies: &[bool]) -> Kind {
    let varying: Vec<ValueId> =
        node.inputs.iter().flatten().copied().filter(|input| varies[input.index()]).collect();
    let input_varies =
        |index: usize| node.inputs.get(index).copied().flatten().is_some_and(|id| varies[id.index()]);
    match &node.op {
        Op::Conv(_) | Op::ConvTranspose(_) if input_varies(1) => Kind::Product,
        Op::Conv(_) | Op::ConvTranspose(_) => Kind::Convolution,
        Op::Gemm(_) | Op::MatMul(_) if input_varies(0) && input_varies(1) => Kind::Product,
        Op::Gemm(_) | Op::MatMul(_) => Kind::Dense,
        Op::Einsum(_) => match varying.len() {
            0 | 1 => Kind::Dense,
            _ => Kind::Product,
        },
        Op::Add(_) | Op::Sub(_) | Op::Sum(_) | Op::Mean(_) => Kind::Sum,
        Op::Neg(_) => Kind::Scaling,
        Op::Mul(_) if varying.len() < 2 => Kind::Scaling,
        Op::Mul(_) => match (signal_of_self_gate(graph, node), gate(graph, node)) {
            (Some(_), _) => Kind::Activation,
            (None, Some(_)) => Kind::Gate,
            (None, None) => Kind::Product,
        },
        Op::Div(_) if !input_varies(1) => Kind::Scaling,
        Op::Div(_) => Kind::Quotient,
        Op::Pow(_) if !input_varies(1) => Kind::Activation,
        Op::Max(_) | Op::Min(_) if varying.len() < 2 => Kind::Activation,
        Op::Max(_)
        | Op::Min(_)
        | Op::MaxPool(_)
        | Op::GlobalMaxPool(_)
        | Op::ReduceMax(_)
        | Op::ReduceMin(_) => Kind::Maximum,
        Op::AveragePool(_)
        | Op::GlobalAveragePool(_)
        | Op::ReduceMean(_)
        | Op::ReduceSum(_)
        | Op::Resize(_)
        | Op::Upsample(_)
        | Op::CumSum(_) => Kind::Average,
        Op::ReduceL1(_) | Op::ReduceL2(_) | Op::LpPool(_) | Op::GlobalLpPool(_) => Kind::Magnitude,
        Op::BatchNormalization(_) => Kind::BatchNormalization,
        Op::Softmax(_) | Op::LogSoftmax(_) => Kind::Softmax,
        op if op.family() == "norm" => Kind::Normalization,
        op if op.family() == "activation" => Kind::Activation,
        op if is_function(op) => Kind::Activation,
        op if matches!(op.family(), "layout" | "gather" | "slice" | "rearrange" | "scatter" | "pad") => {
            Kind::Movement
        }
        Op::TopK(_) | Op::Where(_) => Kind::Movement,
        _ => Kind::Other,
    }
}

/// Functions of each element of one value, besides the family of activations.
fn is_function(op: &Op) -> bool {
    matches!(
        op,
        Op::Abs(_)
            | Op::Exp(_)
            | Op::Log(_)
            | Op::Sqrt(_)
            | Op::Reciprocal(_)
            | Op::Erf(_)
            | Op::Sin(_)
            | Op::Cos(_)
            | Op::Tan(_)
            | Op::Asin(_)
            | Op::Acos(_)
            | Op::Atan(_)
            | Op::Sinh(_)
            | Op::Cosh(_)
            | Op::Asinh(_)
            | Op::Acosh(_)
            | Op::Atanh(_)
            | Op::RoundThrough(_)
            | Op::RoundTo(_)
    )
}

/// Where a linear op has its weights and its bias.
pub(super) struct Linear {
    pub(super) weight: usize,
    pub(super) bias: Option<usize>,
}

impl Linear {
    /// For an op that is linear in one input, with another as weights.
    pub(super) fn of(op: &Op, varies: impl Fn(usize) -> bool) -> Option<Self> {
        match op {
            Op::Conv(_) | Op::ConvTranspose(_) => {
                (!varies(1) && !varies(2)).then_some(Self { weight: 1, bias: Some(2) })
            }
            Op::Gemm(_) if varies(2) => None,
            // More factors than two, and there is no telling which are the weights.
            Op::Einsum(op) if op.equation.matches(',').count() != 1 => None,
            Op::Gemm(_) | Op::MatMul(_) | Op::Einsum(_) => {
                let bias = matches!(op, Op::Gemm(_)).then_some(2);
                match (varies(0), varies(1)) {
                    (true, false) => Some(Self { weight: 1, bias }),
                    (false, true) => Some(Self { weight: 0, bias }),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// The inputs of a node that are added to the others, and that relevance may therefore end in if they are parameters.
pub(super) fn additive(op: &Op, count: usize) -> Vec<usize> {
    match op {
        Op::Conv(_) | Op::ConvTranspose(_) | Op::Gemm(_) => vec![2],
        Op::BatchNormalization(_) => vec![2, 3],
        Op::Add(_) | Op::Sub(_) | Op::Sum(_) | Op::Mean(_) | Op::Concat(_) => (0..count).collect(),
        _ => vec![],
    }
}

/// The factor of a product that says how much of the other passes: what a sigmoid or a softmax made.
pub(super) fn gate(graph: &Graph, node: &Node) -> Option<usize> {
    let is_gate = |index: usize| {
        let mut value = node.inputs.get(index).copied().flatten()?;
        loop {
            let producer = graph.node(graph.producer(value)?);
            match &producer.op {
                Op::Sigmoid(_) | Op::HardSigmoid(_) | Op::Softmax(_) => return Some(()),
                op if matches!(op.family(), "layout" | "slice") => {
                    value = producer.inputs.first().copied().flatten()?;
                }
                _ => return None,
            }
        }
    };
    match (is_gate(0), is_gate(1)) {
        (None, Some(())) => Some(1),
        (Some(()), None) => Some(0),
        _ => None,
    }
}

/// How many nodes a chain of functions of one element may have.
const LONGEST_CHAIN: usize = 16;

/// For `x · f(x)`, the factor that stands for `x`: the one that is nearer to what both are made of.
pub(super) fn signal_of_self_gate(graph: &Graph, node: &Node) -> Option<usize> {
    let [Some(a), Some(b)] = node.inputs[..] else { return None };
    let (from_a, from_b) = (chain(graph, a), chain(graph, b));
    let meeting = |own: &[ValueId], other: ValueId| -> Option<usize> {
        own.iter().position(|&value| is_function_of(graph, other, value, LONGEST_CHAIN))
    };
    match (meeting(&from_a, b), meeting(&from_b, a)) {
        (Some(near), Some(far)) if far < near => Some(1),
        (Some(_), _) => Some(0),
        (None, Some(_)) => Some(1),
        (None, None) => None,
    }
}

/// True for a node that computes each element of its output from one element of each input.
pub(super) fn is_elementwise(op: &Op) -> bool {
    matches!(op.family(), "activation" | "elementwise") || matches!(op, Op::Cast(_) | Op::Identity(_))
}

/// A value, the value that it is a function of element by element, the value that this is one of, and so on.
fn chain(graph: &Graph, value: ValueId) -> Vec<ValueId> {
    let mut chain = vec![value];
    let mut last = value;
    while let Some(producer) = graph.producer(last).map(|id| graph.node(id))
        && chain.len() < LONGEST_CHAIN
        && is_elementwise(&producer.op)
    {
        let mut inputs = producer.inputs.iter().flatten().filter(|input| graph.constant(**input).is_none());
        match (inputs.next(), inputs.next()) {
            (Some(&input), None) => chain.push(input),
            _ => break,
        }
        last = chain[chain.len() - 1];
    }
    chain
}

/// True if each element of `value` is computed from that of `root` and from constants alone.
fn is_function_of(graph: &Graph, value: ValueId, root: ValueId, depth: usize) -> bool {
    if value == root {
        return true;
    }
    let Some(producer) = graph.producer(value).map(|id| graph.node(id)) else { return false };
    depth > 0
        && is_elementwise(&producer.op)
        && (producer.inputs.iter().flatten())
            .all(|&input| graph.constant(input).is_some() || is_function_of(graph, input, root, depth - 1))
        && producer.inputs.iter().flatten().any(|&input| graph.constant(input).is_none())
}

/// True for an input of the graph, or one whose elements were moved.
pub(super) fn moved_input(graph: &Graph, value: ValueId) -> bool {
    let Some(producer) = graph.producer(value).map(|id| graph.node(id)) else {
        return graph.constant(value).is_none();
    };
    let first = producer.inputs.first().copied().flatten();
    matches!(producer.op.family(), "layout" | "slice" | "pad")
        && first.is_some_and(|input| moved_input(graph, input))
}

/// True if no element of a value can be negative, because of the ops that made it.
pub(super) fn is_nonnegative(graph: &Graph, value: ValueId, depth: usize) -> bool {
    let Some(producer) = graph.producer(value).map(|id| graph.node(id)) else {
        return graph.fact(value).floats().is_some_and(|all| all.iter().all(|&element| element >= 0.0));
    };
    let all = || {
        depth > 0
            && (producer.inputs.iter().flatten())
                .filter(|input| graph.fact(**input).dtype.is_float())
                .all(|&input| is_nonnegative(graph, input, depth - 1))
    };
    let first = || {
        let input = producer.inputs.first().copied().flatten();
        depth > 0 && input.is_some_and(|input| is_nonnegative(graph, input, depth - 1))
    };
    match &producer.op {
        Op::Relu(_)
        | Op::Sigmoid(_)
        | Op::HardSigmoid(_)
        | Op::Softmax(_)
        | Op::Softplus(_)
        | Op::Exp(_)
        | Op::Abs(_)
        | Op::Sqrt(_) => true,
        Op::Clip(_) => {
            let lower = producer.inputs.get(1).copied().flatten();
            first() || lower.is_some_and(|id| is_nonnegative(graph, id, 0))
        }
        Op::Add(_) | Op::Sum(_) | Op::Mean(_) | Op::Mul(_) | Op::Concat(_) | Op::Max(_) | Op::Min(_) => all(),
        Op::MaxPool(_)
        | Op::GlobalMaxPool(_)
        | Op::AveragePool(_)
        | Op::GlobalAveragePool(_)
        | Op::ReduceMean(_)
        | Op::ReduceSum(_)
        | Op::ReduceMax(_) => first(),
        Op::Slice(_) | Op::Gather(_) | Op::Split(_) => first(),
        op if op.family() == "layout" => first(),
        _ => false,
    }
}
