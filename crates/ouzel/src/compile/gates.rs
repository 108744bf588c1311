//! Gates: nodes that select a cotangent by where an activation let its input through.

use super::anchor::Facts;
use super::order::Layouts;
use crate::graph::{Node, NodeId, ValueId};
use crate::op::Op;
use ouzel_kernels::{Activation, GateRule, RecordRule};

/// A selection of a cotangent by where an activation let its input through.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    pub(super) rule: GateRule,
    /// The value that is selected from.
    pub(super) main: ValueId,
    /// The activation whose mask selects.
    pub(super) activation: Option<NodeId>,
    /// A node that the pattern contains besides its own.
    pub(super) inner: Option<NodeId>,
}

/// The gate that a node is, if it is one.
pub(super) fn gate(facts: &Facts, layouts: &Layouts, node: &Node) -> Option<Gate> {
    let output = node.outputs[0];
    facts.floats(output)?;
    let (condition, main, other) = selection(node)?;
    if !layouts.agree(facts, main, output) {
        return None;
    }
    let (_, comparison) = facts.producer(condition)?;
    let gate = |rule: GateRule, activation: Option<NodeId>, inner: Option<NodeId>, main: ValueId| {
        let fits = activation.is_none_or(|id| layouts.agree(facts, facts.graph.node(id).outputs[0], output));
        fits.then_some(Gate { rule, main, activation, inner })
    };
    if !facts.is_zero(other) {
        // Where(x > 0, g, alpha · g): the gradient of a leaky rectifier.
        let (a, bound) = comparison_of(comparison, |op| matches!(op, Op::Greater(_)))?;
        let (_, product) = facts.producer(other)?;
        let alpha = scalar_factor(facts, product, main)?;
        let (activation, leaky) = activation_of(facts, a, |op| matches!(op, Op::LeakyRelu(_)))?;
        let Op::LeakyRelu(op) = &leaky.op else { return None };
        let fits = facts.is_zero(bound) && op.alpha.0 as f32 == alpha as f32;
        let (inner, _) = facts.producer(other)?;
        let inner = (facts.consumers(other).len() == 1 && !facts.is_output(other)).then_some(inner);
        return fits.then(|| gate(GateRule::Leaky(alpha as f32), Some(activation), inner, main))?;
    }
    if let Some((a, bound)) = comparison_of(comparison, |op| matches!(op, Op::Greater(_)))
        && facts.is_zero(bound)
    {
        if a == main {
            return gate(GateRule::Rectified, None, None, main);
        }
        if let Some((id, relu)) = facts.producer(a)
            && matches!(relu.op, Op::Relu(_))
        {
            return gate(GateRule::Gradient, Some(id), None, main);
        }
    }
    // Where(x < high, Where(x > low, g, 0), 0): the gradient of a clip.
    let (x, high) = comparison_of(comparison, |op| matches!(op, Op::Less(_) | Op::LessOrEqual(_)))?;
    let (inner_id, inner) = facts.producer(main)?;
    let (inner_condition, inner_main, inner_other) = selection(inner)?;
    let (_, lower) = facts.producer(inner_condition)?;
    let (inner_x, low) = comparison_of(lower, |op| matches!(op, Op::Greater(_) | Op::GreaterOrEqual(_)))?;
    let (activation, clip) = activation_of(facts, x, |op| matches!(op, Op::Clip(_)))?;
    let bound = |index: usize| clip.inputs.get(index).copied().flatten();
    let single = facts.consumers(main).len() == 1 && !facts.is_output(main);
    let strict = matches!(comparison.op, Op::Less(_));
    let fits = x == inner_x
        && facts.is_zero(inner_other)
        && single
        && layouts.agree(facts, inner_main, output)
        && strict == matches!(lower.op, Op::Greater(_))
        && facts.scalar(low).is_some()
        && bound(1).is_some_and(|id| facts.scalar(id) == facts.scalar(low))
        && facts.scalar(high).is_some()
        && bound(2).is_some_and(|id| facts.scalar(id) == facts.scalar(high))
        && strict == is_strict(facts, clip);
    fits.then(|| gate(GateRule::Gradient, Some(activation), Some(inner_id), inner_main))?
}

/// The activation of a kind that reads `x`.
fn activation_of<'g>(facts: &Facts<'g>, x: ValueId, is: impl Fn(&Op) -> bool) -> Option<(NodeId, &'g Node)> {
    let found = facts.consumers(x).iter().find(|(id, position)| {
        *position == 0 && is(&facts.graph.node(*id).op) && activation(facts, facts.graph.node(*id)).is_some()
    });
    found.map(|(id, _)| (*id, facts.graph.node(*id)))
}

/// Condition, value where it holds, value elsewhere.
fn selection(node: &Node) -> Option<(ValueId, ValueId, ValueId)> {
    match (&node.op, node.inputs.as_slice()) {
        (Op::Where(_), [Some(condition), Some(main), Some(other)]) => Some((*condition, *main, *other)),
        _ => None,
    }
}

/// The operands of a comparison of a kind.
fn comparison_of(node: &Node, is: impl Fn(&Op) -> bool) -> Option<(ValueId, ValueId)> {
    match node.inputs.as_slice() {
        [Some(a), Some(b)] if is(&node.op) => Some((*a, *b)),
        _ => None,
    }
}

/// The number that a product multiplies `main` by.
fn scalar_factor(facts: &Facts, node: &Node, main: ValueId) -> Option<f64> {
    match (&node.op, node.inputs.as_slice()) {
        (Op::Mul(_), [Some(a), Some(b)]) if *a == main => facts.scalar(*b),
        (Op::Mul(_), [Some(a), Some(b)]) if *b == main => facts.scalar(*a),
        _ => None,
    }
}

/// Whether the gradient of a clip stops at its bounds.
fn is_strict(facts: &Facts, clip: &Node) -> bool {
    let bound = |index: usize| clip.inputs.get(index).copied().flatten().and_then(|id| facts.scalar(id));
    (bound(1), bound(2)) == (Some(0.0), Some(6.0))
}

/// The activation of an epilogue that a node is, and what its mask records.
pub(super) fn activation(facts: &Facts, node: &Node) -> Option<(Activation, RecordRule)> {
    facts.floats(node.outputs[0])?;
    match &node.op {
        Op::Relu(_) => Some((Activation::Relu, RecordRule::Positive)),
        Op::LeakyRelu(leaky) => Some((Activation::LeakyRelu(leaky.alpha.0 as f32), RecordRule::Positive)),
        Op::Clip(_) => {
            let bound = |index: usize, missing: f32| match node.inputs.get(index).copied().flatten() {
                Some(id) => facts.scalar(id).map(|value| value as f32),
                None => Some(missing),
            };
            let (low, high) = (bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?);
            let rule = match is_strict(facts, node) {
                true => RecordRule::Between(low, high),
                false => RecordRule::Within(low, high),
            };
            Some((Activation::Clip { low, high }, rule))
        }
        _ => None,
    }
}
