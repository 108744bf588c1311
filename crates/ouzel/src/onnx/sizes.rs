//! Tests of networks that can be read only when the size of their input is known.

use super::made::{integer, length, model, node, numbers, shaped, symbol};
use super::proto::{AttributeProto, ModelProto, NodeProto};
use crate::{Model, Precision};
use ndarray::Array;
use prost::Message;

fn with(mut node: NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
    node.attribute = attributes;
    node
}

/// `x` with as many rows of zeros behind its own as are missing to a multiple of 4.
fn padded() -> ModelProto {
    let nodes = vec![
        node("Shape", &["x"], &["shape"]),
        node("Gather", &["shape", "one"], &["rows"]),
        node("Neg", &["rows"], &["negative"]),
        node("Mod", &["negative", "four"], &["missing"]),
        with(node("Concat", &["before", "missing", "zero"], &["pads"]), vec![integer("axis", 0)]),
        node("Pad", &["x", "pads"], &["y"]),
    ];
    let constants = vec![
        numbers("zero", &[0]),
        numbers("one", &[1]),
        numbers("four", &[4]),
        numbers("before", &[0, 0, 0, 0]),
    ];
    let mut file = model(17, nodes, constants);
    let graph = file.graph.as_mut().unwrap();
    graph.input = vec![shaped("x", vec![symbol("batch"), symbol("rows"), length(2)])];
    file
}

#[test]
fn a_pad_by_a_remainder_is_read_once_the_number_of_rows_is_known() {
    let open = Model::from_bytes(padded().encode_to_vec()).unwrap();
    assert!(open.awaits_sizes());
    let refused = open.find("y").unwrap_err().to_string();
    assert!(refused.contains("Pad") && refused.contains("for_inputs"), "{refused}");

    let model = open.for_inputs(&[(open.main_input(), vec![2, 3, 2])]).unwrap();
    let y = model.find("y").unwrap();
    let batch = &model.graph().fact(model.main_input()).shape[0];
    assert!(batch.known().is_none(), "the number of samples stays open, found {batch}");
    let x = Array::from_shape_fn((2, 3, 2), |(n, row, _)| (10 * n + row) as f32).into_dyn();
    let found = model.run(&x.into(), &[y], Precision::F32).unwrap().remove(0);
    assert_eq!(found.shape(), [2, 4, 2]);
    let found: Vec<f64> = found.to_f64().into_iter().step_by(2).collect();
    assert_eq!(found, [0.0, 1.0, 2.0, 0.0, 10.0, 11.0, 12.0, 0.0]);

    let by_lengths = open.with_lengths(open.main_input(), &[None, Some(8), None]).unwrap();
    let y = by_lengths.find("y").unwrap();
    assert!(by_lengths.graph().fact(y).shape[1].is(8));
}

#[test]
fn what_no_size_explains_stays_refused() {
    let mut file = padded();
    let graph = file.graph.as_mut().unwrap();
    graph.node.push(node("NonMaxSuppression", &["y"], &["z"]));
    let open = Model::from_bytes(file.encode_to_vec()).unwrap();
    let model = open.for_inputs(&[(open.main_input(), vec![1, 3, 2])]).unwrap();
    assert!(model.find("y").is_ok());
    let refused = model.find("z").unwrap_err().to_string();
    assert!(refused.contains("NonMaxSuppression") && !refused.contains("Pad"), "{refused}");
}

#[test]
fn nothing_waits_for_the_number_of_samples() {
    let mut file = padded();
    let graph = file.graph.as_mut().unwrap();
    graph.input = vec![shaped("x", vec![symbol("batch"), length(3), length(2)])];
    graph.node.push(node("NonMaxSuppression", &["y"], &["z"]));
    let model = Model::from_bytes(file.encode_to_vec()).unwrap();
    assert!(!model.awaits_sizes() && model.find("y").is_ok());
    let refused = model.find("z").unwrap_err().to_string();
    assert!(refused.contains("NonMaxSuppression") && !refused.contains("for_inputs"), "{refused}");
}

#[test]
fn a_shape_that_does_not_fit_names_the_input() {
    let open = Model::from_bytes(padded().encode_to_vec()).unwrap();
    let refused = open.for_inputs(&[(open.main_input(), vec![1, 3, 5])]).err().unwrap().to_string();
    assert!(refused.contains("'x'"), "{refused}");
}
