//! Chooses how each value lies in memory: channels last around convolutions, else as it comes.

use super::anchor::{Anchor, Facts};
use super::layout::Order;
use super::reduce::reduction;
use crate::graph::{Node, ValueId};
use crate::op::{Op, resolve_axis};

/// What the layout pass finds.
pub(crate) struct Layouts {
    /// The order of each float32 value of known shape.
    orders: Vec<Option<Order>>,
    /// The kernel of each node, for nodes that have one.
    pub(crate) anchors: Vec<Option<Anchor>>,
}

impl Layouts {
    /// How a value lies.
    pub(crate) fn order(&self, id: ValueId) -> Option<&Order> {
        self.orders[id.index()].as_ref()
    }

    /// True if two values of one shape lie in the same way.
    pub(crate) fn agree(&self, facts: &Facts, a: ValueId, b: ValueId) -> bool {
        // A constant is laid out as it is needed.
        if [a, b].iter().any(|&id| facts.graph.constant(id).is_some()) {
            return facts.floats(a).is_some() && facts.floats(a) == facts.floats(b);
        }
        match (facts.floats(a), self.order(a), facts.floats(b), self.order(b)) {
            (Some(shape), Some(order), Some(other), Some(other_order)) => {
                shape == other && order.same(other_order, shape)
            }
            _ => false,
        }
    }

    /// Follows the nodes in their order.
    pub(crate) fn new(facts: &Facts) -> Self {
        let graph = facts.graph;
        let mut orders: Vec<Option<Order>> = graph
            .values()
            .map(|(id, _)| facts.floats(id).map(|shape| Order::rows(shape.len()).settled(shape)))
            .collect();
        let mut anchors = Vec::with_capacity(graph.nodes().len());
        for node in graph.nodes() {
            let follow = following(facts, node, &orders);
            let mut anchor = None;
            if let Some(shape) = facts.floats(node.outputs[0]) {
                let order = follow.unwrap_or_else(|| Order::rows(shape.len())).settled(shape);
                anchor = facts.anchor(node, &order);
                let spatial = anchor.as_ref().is_some_and(Anchor::is_spatial);
                let order = if spatial { Order::channels_last(shape.len()) } else { order };
                orders[node.outputs[0].index()] = Some(order.settled(shape));
            }
            if let Op::Split(_) = node.op {
                for output in &node.outputs[1..] {
                    let order = orders[node.outputs[0].index()].as_ref().zip(facts.floats(*output));
                    orders[output.index()] = order.map(|(order, shape)| order.settled(shape));
                }
            }
            anchors.push(anchor);
        }
        Self { orders, anchors }
    }
}

/// The order of a node's first output that asks for no copy, if its inputs decide it.
fn following(facts: &Facts, node: &Node, orders: &[Option<Order>]) -> Option<Order> {
    let input = |index: usize| node.inputs.get(index).copied().flatten();
    let order = |id: ValueId| orders[id.index()].as_ref();
    let first = input(0)?;
    let (shape, output) = (facts.floats(first), facts.floats(node.outputs[0])?);
    match &node.op {
        Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => {
            order(first)?.reshaped(shape?, output)
        }
        Op::Transpose(transpose) => {
            let reversed = || (0..output.len()).rev().collect();
            let permutation: Vec<usize> = transpose.permutation.clone().unwrap_or_else(reversed);
            Some(order(first)?.transposed(&permutation))
        }
        // What is broadcast takes the place that most of the result has, so that only whole inputs are asked.
        _ if is_elementwise(&node.op) || matches!(node.op, Op::Where(_)) => {
            // A condition lies as the numbers that it compares.
            let conditions = node.inputs.iter().flatten().filter(|&&id| facts.floats(id).is_none());
            let compared = conditions
                .filter_map(|&id| facts.producer(id))
                .flat_map(|(_, comparison)| comparison.inputs.iter().flatten().copied());
            let whole: Vec<ValueId> = (node.inputs.iter().flatten().copied().chain(compared))
                .filter(|&id| facts.floats(id) == Some(output))
                .collect();
            let moved = whole.iter().copied().find(|&id| {
                let is_rows = order(id).is_some_and(|order| order.is_rows(output));
                facts.graph.constant(id).is_none() && !is_rows
            });
            order(moved.or_else(|| whole.first().copied())?).cloned()
        }
        Op::Concat(_) => {
            let inputs = || node.inputs.iter().flatten().copied();
            let moved = inputs().find(|&id| {
                facts.floats(id).zip(order(id)).is_some_and(|(shape, order)| !order.is_rows(shape))
            });
            order(moved.unwrap_or(first)).cloned()
        }
        Op::Slice(_) | Op::Split(_) | Op::Pad(_) | Op::BatchNormalization(_) => order(first).cloned(),
        Op::Expand(_) if shape?.len() == output.len() => {
            // Pooled features spread over their maps again go on to convolutions.
            let spreads = output.len() >= 3 && shape?[2..].iter().all(|&length| length == 1);
            if spreads { Some(Order::channels_last(output.len())) } else { order(first).cloned() }
        }
        Op::ReduceSum(_) | Op::ReduceMean(_) | Op::ReduceMax(_) | Op::ReduceMin(_) => {
            let shape = shape?;
            let (_, axes) = reduction(&node.op, shape.len())?;
            let kept: Vec<usize> =
                (0..shape.len()).map(|axis| if axes.contains(&axis) { 1 } else { shape[axis] }).collect();
            order(first)?.settled(&kept).reshaped(&kept, output)
        }
        Op::Softmax(_) | Op::LogSoftmax(_) => order(first).cloned(),
        Op::MatMul(_) => {
            let (_, other) = (first, input(1)?);
            let own = order(first)?;
            let dense = facts.graph.constant(other).is_some() && facts.floats(other)?.len() == 2;
            (dense && own.lane_axis() == Some(output.len() - 1)).then(|| own.clone())
        }
        _ => None,
    }
}

/// True for ops that compute each element from those at the same place, after broadcasting.
pub(crate) fn is_elementwise(op: &Op) -> bool {
    op.family() == "elementwise"
        || op.family() == "activation"
        || matches!(op, Op::Identity(_) | Op::Dropout(_))
}

/// The axis that a join or cut works on.
pub(crate) fn axis_of(op: &Op, rank: usize) -> Option<usize> {
    match op {
        Op::Concat(concat) => resolve_axis(concat.axis, rank).ok(),
        Op::Split(split) => resolve_axis(split.axis, rank).ok(),
        _ => None,
    }
}
