//! What files of the opsets 1 to 6 say otherwise, in the words of opset 7.

use super::reader::Attribute;
use crate::error::{Result, bail};
use crate::graph::{Constant, Graph, ValueId};
use crate::ops::layout::Unsqueeze;
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// Ops whose second input was broadcast along a given axis of the first.
const BROADCASTING: &[&str] =
    &["Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less"];

/// Rewrites attributes and inputs.
pub(super) fn modernize(
    op: &str,
    opset: i64,
    attributes: &mut BTreeMap<String, Attribute>,
    graph: &mut Graph,
    inputs: &mut Vec<Option<ValueId>>,
) -> Result<()> {
    attributes.remove("consumed_inputs");
    if BROADCASTING.contains(&op) {
        attributes.remove("broadcast");
        if let Some(Attribute::Int(axis)) = attributes.remove("axis")
            && let [Some(a), Some(b)] = inputs[..]
        {
            inputs[1] = Some(aligned(graph, a, b, axis)?);
        }
    }
    match op {
        "Gemm" => {
            attributes.remove("broadcast");
        }
        // A slope for each channel.
        "PRelu" => {
            if let [Some(x), Some(slope)] = inputs[..]
                && graph.fact(slope).rank() == 1
                && graph.fact(x).rank() > 1
            {
                inputs[1] = Some(aligned(graph, x, slope, 1)?);
            }
        }
        "Reshape" if opset < 5 => {
            if let Some(Attribute::Ints(shape)) = attributes.remove("shape") {
                inputs.truncate(1);
                inputs.push(Some(graph.add_constant("", Constant::new(Tensor::vector(shape)))));
            }
        }
        "Concat" if opset < 4 => {
            attributes.entry("axis".into()).or_insert(Attribute::Int(1));
        }
        "Pad" if opset < 2 => {
            if let Some(pads) = attributes.remove("paddings") {
                attributes.insert("pads".into(), pads);
            }
        }
        "Cast" if opset < 6 => {
            if let Some(Attribute::String(name)) = attributes.get("to") {
                attributes.insert("to".into(), Attribute::Int(code(name)?));
            }
        }
        _ => {}
    }
    Ok(())
}

/// `b` with axes of length 1 at its end, so that its first axis falls on `axis` of `a`.
fn aligned(graph: &mut Graph, a: ValueId, b: ValueId, axis: i64) -> Result<ValueId> {
    let (outer, inner) = (graph.fact(a).rank() as i64, graph.fact(b).rank() as i64);
    let axis = if axis < 0 { axis + outer } else { axis };
    let missing = outer - axis - inner;
    if axis < 0 || missing < 0 {
        bail!(model, "attribute 'axis': {axis} does not align {} with {}", graph.fact(b), graph.fact(a));
    }
    if missing == 0 {
        return Ok(b);
    }
    let node =
        graph.add_node("", Unsqueeze { axes: (inner..inner + missing).collect() }.into(), &[Some(b)])?;
    Ok(graph.node(node).outputs[0])
}

/// The number behind the name of an element type.
fn code(name: &str) -> Result<i64> {
    const NAMES: &[&str] = &[
        "UNDEFINED",
        "FLOAT",
        "UINT8",
        "INT8",
        "UINT16",
        "INT16",
        "INT32",
        "INT64",
        "STRING",
        "BOOL",
        "FLOAT16",
        "DOUBLE",
        "UINT32",
        "UINT64",
    ];
    match NAMES.iter().position(|known| known.eq_ignore_ascii_case(name)) {
        Some(code) => Ok(code as i64),
        None => bail!(unsupported, "attribute 'to': '{name}' is not supported"),
    }
}
