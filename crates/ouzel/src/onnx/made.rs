//! Messages of small files, for tests.

use super::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto, attribute_type,
    data_type,
};

pub(super) fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    NodeProto { op_type: op.into(), input: names(inputs), output: names(outputs), ..Default::default() }
}

/// A float tensor of any shape.
pub(super) fn shaped(name: &str, dim: Vec<DimensionProto>) -> ValueInfoProto {
    let tensor = TensorTypeProto { elem_type: data_type::FLOAT, shape: Some(TensorShapeProto { dim }) };
    let r#type = Some(TypeProto { value: Some(TypeValue::Tensor(tensor)), ..Default::default() });
    ValueInfoProto { name: name.into(), r#type, ..Default::default() }
}

pub(super) fn length(length: i64) -> DimensionProto {
    DimensionProto { value: Some(DimensionValue::Number(length)), ..Default::default() }
}

pub(super) fn symbol(name: &str) -> DimensionProto {
    DimensionProto { value: Some(DimensionValue::Name(name.into())), ..Default::default() }
}

/// A float vector.
pub(super) fn value(name: &str, count: i64) -> ValueInfoProto {
    shaped(name, vec![length(count)])
}

/// A model with an input `x` of four elements and an output `y`.
pub(super) fn model(opset: i64, node: Vec<NodeProto>, initializer: Vec<TensorProto>) -> ModelProto {
    let graph = GraphProto {
        node,
        initializer,
        input: vec![value("x", 4)],
        output: vec![value("y", 4)],
        ..Default::default()
    };
    ModelProto {
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset }],
        ..Default::default()
    }
}

pub(super) fn scalar(name: &str, value: f32) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type: data_type::FLOAT,
        float_data: vec![value],
        ..Default::default()
    }
}

pub(super) fn number(name: &str, data_type: i32, value: i64) -> TensorProto {
    let (int32_data, int64_data) = match data_type {
        data_type::INT64 => (vec![], vec![value]),
        _ => (vec![value as i32], vec![]),
    };
    TensorProto { name: name.into(), data_type, int32_data, int64_data, ..Default::default() }
}

/// A vector of int64.
pub(super) fn numbers(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type: data_type::INT64,
        dims: vec![values.len() as i64],
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

pub(super) fn integer(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), i: Some(i), r#type: attribute_type::INT, ..Default::default() }
}

pub(super) fn integers(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        ints: ints.to_vec(),
        r#type: attribute_type::INTS,
        ..Default::default()
    }
}

pub(super) fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { name: name.into(), f: Some(f), r#type: attribute_type::FLOAT, ..Default::default() }
}

pub(super) fn text(name: &str, s: &str) -> AttributeProto {
    let s = Some(s.as_bytes().to_vec().into());
    AttributeProto { name: name.into(), s, r#type: attribute_type::STRING, ..Default::default() }
}

pub(super) fn graph(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        g: Some(Box::new(graph)),
        r#type: attribute_type::GRAPH,
        ..Default::default()
    }
}
