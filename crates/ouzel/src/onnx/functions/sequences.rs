//! Lists of tensors: exporters cut a tensor into one and take parts out of it by number, which leaves nothing of the list.
//!
//! Where a node reads a list, its inputs are all tensors of the list.

use super::{NodeReader, Result, ValueId, bail, known_lengths, one_integer};
#[cfg(test)]
use crate::gradient_check::{FunctionSample, floats};
#[cfg(test)]
use crate::onnx::Attribute;
use crate::op::resolve_axis;
#[cfg(test)]
use crate::tensor::Tensor;

/// The ops whose output is a list.
pub(in crate::onnx) const MAKERS: &[&str] = &["SequenceConstruct", "SplitToSequence"];

/// The list of the inputs. ONNX `SequenceConstruct` 11.
pub(super) fn sequence_construct(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    node.build(|_, x| Ok(x.iter().copied().flatten().collect()))
}

/// Parts of a tensor along an axis: of the lengths that the second input names, of one length and a rest, or slices of
/// length 1. ONNX `SplitToSequence` 11, 24.
pub(super) fn split_to_sequence(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    /// As long as any list that is taken apart again by number.
    const MOST_PARTS: i64 = 4096;
    let axis = node.int_or("axis", 0)?;
    let keep_dims = node.flag_or("keepdims", true)?;
    let is_scalar = node.input(1).is_some_and(|split| split.rank() == 0);
    let split = node.ints_or_input("split", 1)?;
    let shape = node.required_input(0)?.shape.clone();
    let axis = resolve_axis(axis, shape.len())?;
    let length = known_lengths(&shape[axis..=axis], "the axis that is split")?[0];
    let squeezes = split.is_none() && !keep_dims;
    let each = match split.as_deref() {
        None => 1,
        Some([each]) if is_scalar => *each,
        Some(_) => length.max(1),
    };
    if each < 1 {
        bail!(shape, "expected parts of a positive length, found {each}");
    }
    if length / each > MOST_PARTS {
        bail!(unsupported, "a list of more than {MOST_PARTS} tensors");
    }
    let equal = || (0..length).step_by(each as usize).map(|start| each.min(length - start)).collect();
    let lengths: Vec<i64> = split.filter(|_| !is_scalar).unwrap_or_else(equal);
    let total = lengths.iter().try_fold(0i64, |sum, &part| sum.checked_add(part));
    if lengths.iter().any(|&part| part < 0) || total != Some(length) {
        bail!(shape, "an axis of {length} does not split into parts of {lengths:?}");
    }
    node.build(|_, x| {
        let Some(Some(x)) = x.first() else { bail!(model, "the input is missing") };
        let mut start = 0;
        let parts = lengths.iter().map(|&length| {
            let part = x.slice(axis, start, start + length);
            start += length;
            if squeezes { part.squeeze([axis]) } else { part }
        });
        Ok(parts.collect())
    })
}

/// One tensor of a list, by its number. ONNX `SequenceAt` 11.
pub(super) fn sequence_at(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let count = node.input_count().saturating_sub(1);
    let position = one_integer(&node.required_constant(count, "the position in the list")?, "the position")?;
    let place = if position < 0 { position + count as i64 } else { position };
    node.build(|_, x| {
        match usize::try_from(place).ok().filter(|&place| place < count).and_then(|place| x[place]) {
            Some(var) => Ok(vec![var]),
            None => bail!(shape, "a list of {count} tensors has none at {position}"),
        }
    })
}

/// The tensors of a list one behind the other, along an axis or a new one. ONNX `ConcatFromSequence` 11.
pub(super) fn concat_from_sequence(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let Some(axis) = node.int("axis")? else { bail!(model, "the attribute 'axis' is missing") };
    let new_axis = node.flag_or("new_axis", false)?;
    let rank = node.required_input(0)?.rank();
    let axis = resolve_axis(axis, rank + usize::from(new_axis))?;
    node.build(|builder, x| {
        let parts: Vec<_> =
            x.iter().flatten().map(|&part| if new_axis { part.unsqueeze([axis]) } else { part }).collect();
        Ok(vec![builder.concat(&parts, axis)])
    })
}

#[cfg(test)]
pub(super) fn samples() -> Vec<FunctionSample> {
    let x = || floats(-1.0, 1.0).input(&[2, 3]);
    let sample = |new_axis| {
        FunctionSample::new("ConcatFromSequence", [x(), x()])
            .with("axis", Attribute::Int(1))
            .with("new_axis", Attribute::Int(new_axis))
    };
    let first = Tensor::scalar(0i64);
    vec![
        sample(0),
        sample(1),
        FunctionSample::new("SequenceAt", [x(), first.into()]),
        FunctionSample::new("SequenceConstruct", [x(), x()]),
        FunctionSample::new("SplitToSequence", [x()]).with("axis", Attribute::Int(1)),
    ]
}

#[cfg(test)]
mod tests {
    use crate::onnx::made::{integer, length, model, node, number, numbers, shaped, symbol};
    use crate::onnx::proto::{AttributeProto, ModelProto, NodeProto, TensorProto, data_type};
    use crate::{Model, Precision};
    use ndarray::ArrayD;
    use prost::Message;

    fn with(mut node: NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
        node.attribute = attributes;
        node
    }

    /// A network of an input `[batch, 2, 3]`.
    fn network(nodes: Vec<NodeProto>, constants: Vec<TensorProto>) -> ModelProto {
        let mut file = model(17, nodes, constants);
        let graph = file.graph.as_mut().unwrap();
        graph.input = vec![shaped("x", vec![symbol("batch"), length(2), length(3)])];
        file
    }

    /// What `y` is for 0, 1, 2, …, and its shape.
    fn run(file: &ModelProto) -> (Vec<usize>, Vec<f64>) {
        let model = Model::from_bytes(file.encode_to_vec()).unwrap();
        let y = model.find("y").unwrap();
        let x = ArrayD::from_shape_vec(vec![1, 2, 3], (0..6u8).map(f32::from).collect()).unwrap();
        let found = model.run(&x.into(), &[y], Precision::F32).unwrap().remove(0);
        (found.shape().to_vec(), found.to_f64().into_iter().collect())
    }

    fn at(position: i64, attributes: Vec<AttributeProto>, split: &[TensorProto]) -> ModelProto {
        let inputs: &[&str] = if split.is_empty() { &["x"] } else { &["x", "split"] };
        let nodes = vec![
            with(node("SplitToSequence", inputs, &["list"]), attributes),
            node("SequenceAt", &["list", "position"], &["y"]),
        ];
        let position = number("position", data_type::INT64, position);
        network(nodes, [position].into_iter().chain(split.iter().cloned()).collect())
    }

    #[test]
    fn a_list_is_its_tensors() {
        let axis = |axis| integer("axis", axis);
        let scalar = number("split", data_type::INT64, 2);
        let scalar = TensorProto { dims: vec![], ..scalar };
        let lengths = numbers("split", &[1, 2]);
        let cases = [
            (at(1, vec![axis(2)], std::slice::from_ref(&lengths)), vec![1, 2, 2], vec![1.0, 2.0, 4.0, 5.0]),
            (at(-1, vec![axis(-1)], std::slice::from_ref(&scalar)), vec![1, 2, 1], vec![2.0, 5.0]),
            (at(0, vec![axis(1)], &[]), vec![1, 1, 3], vec![0.0, 1.0, 2.0]),
            (at(1, vec![axis(1), integer("keepdims", 0)], &[]), vec![1, 3], vec![3.0, 4.0, 5.0]),
        ];
        for (file, shape, expected) in cases {
            assert_eq!(run(&file), (shape, expected));
        }
        let joined = |new_axis| {
            let nodes = vec![
                node("Neg", &["x"], &["minus"]),
                node("SequenceConstruct", &["x", "minus"], &["list"]),
                with(
                    node("ConcatFromSequence", &["list"], &["y"]),
                    vec![axis(1), integer("new_axis", new_axis)],
                ),
            ];
            run(&network(nodes, vec![]))
        };
        assert_eq!(joined(0).0, [1, 4, 3]);
        let (shape, values) = joined(1);
        assert_eq!((shape, values[4], values[10]), (vec![1, 2, 2, 3], 4.0, -4.0));
    }

    #[test]
    fn lists_that_cannot_be_are_refused() {
        let lengths = numbers("split", &[1, 1]);
        let negative = numbers("split", &[-1, 4]);
        let zero = TensorProto { dims: vec![], ..number("split", data_type::INT64, 0) };
        let cases = [
            (at(7, vec![integer("axis", 1)], &[]), "none at 7"),
            (at(0, vec![integer("axis", 5)], &[]), "axis"),
            (at(0, vec![], &[]), "known size"),
            (at(0, vec![integer("axis", 2)], &[lengths]), "[1, 1]"),
            (at(0, vec![integer("axis", 2)], &[negative]), "[-1, 4]"),
            (at(0, vec![integer("axis", 2)], &[zero]), "positive length"),
        ];
        for (file, expected) in cases {
            let model = Model::from_bytes(file.encode_to_vec());
            let said = model.and_then(|model| model.find("y").map(|_| ())).unwrap_err().to_string();
            assert!(said.contains(expected), "{expected}: {said}");
        }
        // A list is no output.
        let nodes = vec![with(node("SplitToSequence", &["x"], &["y"]), vec![integer("axis", 1)])];
        let model = Model::from_bytes(network(nodes, vec![]).encode_to_vec()).unwrap();
        assert!(model.find("y").is_err());
    }
}
