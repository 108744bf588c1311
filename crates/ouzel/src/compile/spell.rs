//! Normalizations in words that kernels know: reductions and elementwise ops.

use crate::error::Result;
use crate::graph::{Constant, Graph, Node, ValueId};
use crate::op::{Op, resolve_axis};
use crate::ops::elementwise::{Add, Mul, Reciprocal, Sqrt, Sub};
use crate::ops::reduce::ReduceMean;
use crate::tensor::DType;

/// The outputs of a node, computed by others in its stead; `None` for a node that stays as it is.
pub(crate) fn spell_out(
    graph: &mut Graph,
    node: &Node,
    inputs: &[Option<ValueId>],
) -> Result<Option<Vec<ValueId>>> {
    let (Op::LayerNormalization(op), &[Some(x), Some(scale), ..]) = (&node.op, inputs) else {
        return Ok(None);
    };
    let rank = graph.fact(x).rank();
    if graph.fact(x).dtype != DType::F32 {
        return Ok(None);
    }
    let axes: Vec<i64> = (resolve_axis(op.axis, rank)?..rank).map(|axis| axis as i64).collect();
    let epsilon = graph.add_constant("", Constant::scalar(op.epsilon.0, DType::F32));
    let mut apply = |op: Op, inputs: &[ValueId]| -> Result<ValueId> {
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        let added = graph.add_node(&node.name, op, &inputs)?;
        if let Some(provenance) = &node.provenance {
            graph.set_provenance(added, provenance.clone());
        }
        Ok(graph.node(added).outputs[0])
    };
    let mean = apply(ReduceMean::over(axes.clone(), true).into(), &[x])?;
    let centered = apply(Sub.into(), &[x, mean])?;
    let squares = apply(Mul.into(), &[centered, centered])?;
    let variance = apply(ReduceMean::over(axes, true).into(), &[squares])?;
    let sum = apply(Add.into(), &[variance, epsilon])?;
    let deviation = apply(Sqrt.into(), &[sum])?;
    let inverse = apply(Reciprocal.into(), &[deviation])?;
    let normalized = apply(Mul.into(), &[centered, inverse])?;
    let mut y = apply(Mul.into(), &[normalized, scale])?;
    if let Some(Some(bias)) = inputs.get(2) {
        y = apply(Add.into(), &[y, *bias])?;
    }
    Ok(Some(vec![y, mean, inverse]))
}
