//! Which tensors of a network have positions as well as channels, and which of them a class activation map is made at.

use crate::graph::{Graph, Node, ValueId};
use crate::model::Model;
use crate::op::Op;

/// A tensor with channels and positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpatialTensor {
    /// The tensor.
    pub value: ValueId,
    /// Its channel axis; the axes of the positions are all others but the first.
    pub channel_axis: usize,
}

impl Model {
    /// The tensor at which a class activation map of `target` is made if none is named: the last one that the target
    /// depends on and that has more than one position.
    ///
    /// `None` if there is none, as in networks of tokens or of features without places.
    ///
    /// ```
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
    /// let model = ouzel::Model::load(path)?;
    /// let (target, _) = model.default_target(false)?;
    /// let layer = model.cam_layer(target).expect("the network has convolutions");
    /// assert_eq!(&*model.graph().value(layer.value).name, "relu4");
    /// # Ok::<(), ouzel::Error>(())
    /// ```
    pub fn cam_layer(&self, target: ValueId) -> Option<SpatialTensor> {
        let graph = self.graph();
        let axes = channel_axes(self);
        let mut needed = vec![false; graph.values().len()];
        needed[target.index()] = true;
        for node in graph.nodes().iter().rev() {
            if !node.outputs.iter().any(|output| needed[output.index()]) {
                continue;
            }
            for &output in &node.outputs {
                if let Some(channel_axis) =
                    axes[output.index()].filter(|&axis| has_places(graph, output, axis))
                    && needed[output.index()]
                    && output != target
                {
                    return Some(SpatialTensor { value: output, channel_axis });
                }
            }
            node.inputs.iter().flatten().for_each(|input| needed[input.index()] = true);
        }
        None
    }
}

/// True if there is more than one position, as far as that is known.
fn has_places(graph: &Graph, value: ValueId, channel_axis: usize) -> bool {
    let shape = &graph.fact(value).shape;
    shape.iter().enumerate().any(|(axis, dim)| axis != 0 && axis != channel_axis && !dim.is(1))
}

/// The channel axis of each value that is known to have channels and positions, and that depends on the input.
///
/// Convolutions and pooling say which axis it is; ops that keep axes where they are, or move them, hand it on.
fn channel_axes(model: &Model) -> Vec<Option<usize>> {
    let graph = model.graph();
    let mut axes: Vec<Option<usize>> = vec![None; graph.values().len()];
    for node in graph.nodes() {
        let axis = node_axis(graph, node, &axes);
        for &output in &node.outputs {
            let rank = graph.fact(output).rank();
            axes[output.index()] = axis.filter(|&axis| rank > 2 && axis < rank);
        }
    }
    axes
}

fn node_axis(graph: &Graph, node: &Node, axes: &[Option<usize>]) -> Option<usize> {
    let first = node.inputs.first().copied().flatten()?;
    let rank = graph.fact(*node.outputs.first()?).rank();
    let kept = || {
        let inputs = node.inputs.iter().flatten().filter(|input| graph.fact(**input).rank() == rank);
        inputs.into_iter().find_map(|input| axes[input.index()])
    };
    match (&node.op, node.op.family()) {
        (Op::Conv(_) | Op::ConvTranspose(_), _) | (_, "pool") => Some(1),
        (Op::BatchNormalization(_) | Op::InstanceNormalization(_) | Op::GroupNormalization(_), _) => Some(1),
        (Op::Transpose(op), _) => {
            let axis = axes[first.index()]?;
            match &op.permutation {
                Some(permutation) => permutation.iter().position(|&from| from == axis),
                None => Some(rank - 1 - axis),
            }
        }
        // The last axis is what a matrix product mixes.
        (Op::MatMul(_), _) => axes[first.index()].filter(|axis| axis + 1 == rank),
        (Op::Reshape(_) | Op::Flatten(_) | Op::Einsum(_) | Op::Gemm(_), _) => None,
        (
            _,
            "activation" | "elementwise" | "quantize" | "layout" | "reduce" | "softmax" | "slice" | "pad"
            | "norm" | "resize" | "rearrange" | "logic",
        ) => kept(),
        _ => None,
    }
}
