//! The messages of an ONNX file, declared by hand so that a build needs no protobuf compiler.
//!
//! Names, field numbers and types are those of `onnx.proto` (IR version 11 and before). A field that is a plain value
//! here is left out of the encoding when it has its default, which ONNX readers take for the same thing;
//! where presence carries meaning the field is an `Option`. Fields that are not declared are dropped on reading.

use bytes::Bytes;

/// A model: a graph with what is needed to read it.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ModelProto {
    /// Version of the file format.
    #[prost(int64, tag = "1")]
    pub(crate) ir_version: i64,
    /// The tool that wrote the file.
    #[prost(string, tag = "2")]
    pub(crate) producer_name: String,
    /// The version of that tool.
    #[prost(string, tag = "3")]
    pub(crate) producer_version: String,
    /// Reverse domain name of the model's namespace.
    #[prost(string, tag = "4")]
    pub(crate) domain: String,
    /// The author's version of the model.
    #[prost(int64, tag = "5")]
    pub(crate) model_version: i64,
    /// Prose about the model.
    #[prost(string, tag = "6")]
    pub(crate) doc_string: String,
    /// The graph; a file without one is not a model.
    #[prost(message, optional, tag = "7")]
    pub(crate) graph: Option<GraphProto>,
    /// The operator sets that the nodes' ops are taken from.
    #[prost(message, repeated, tag = "8")]
    pub(crate) opset_import: Vec<OperatorSetIdProto>,
    /// Free-form metadata.
    #[prost(message, repeated, tag = "14")]
    pub(crate) metadata_props: Vec<StringStringEntryProto>,
    /// Ops that are defined in the file itself.
    #[prost(message, repeated, tag = "25")]
    pub(crate) functions: Vec<FunctionProto>,
}

/// An operator set and its version.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct OperatorSetIdProto {
    /// The set's name; empty for ONNX's own.
    #[prost(string, tag = "1")]
    pub(crate) domain: String,
    /// The set's version.
    #[prost(int64, tag = "2")]
    pub(crate) version: i64,
}

/// One entry of a map from strings to strings.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct StringStringEntryProto {
    /// The key.
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    /// The value.
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

impl StringStringEntryProto {
    /// The entry of `value` under `key`.
    pub(crate) fn new(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self { key: key.into(), value: value.into() }
    }
}

/// A function in the file: an op spelled out in other ops.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct FunctionProto {
    /// The op that it defines.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Names of the parameters.
    #[prost(string, repeated, tag = "4")]
    pub(crate) input: Vec<String>,
    /// Names of the results.
    #[prost(string, repeated, tag = "5")]
    pub(crate) output: Vec<String>,
    /// Names of the attributes without default.
    #[prost(string, repeated, tag = "6")]
    pub(crate) attribute: Vec<String>,
    /// The body, sorted topologically.
    #[prost(message, repeated, tag = "7")]
    pub(crate) node: Vec<NodeProto>,
    /// Prose.
    #[prost(string, tag = "8")]
    pub(crate) doc_string: String,
    /// The operator sets of the body.
    #[prost(message, repeated, tag = "9")]
    pub(crate) opset_import: Vec<OperatorSetIdProto>,
    /// The operator set that the defined op belongs to.
    #[prost(string, tag = "10")]
    pub(crate) domain: String,
    /// Attributes with their defaults.
    #[prost(message, repeated, tag = "11")]
    pub(crate) attribute_proto: Vec<AttributeProto>,
    /// Types of values in the body.
    #[prost(message, repeated, tag = "12")]
    pub(crate) value_info: Vec<ValueInfoProto>,
    /// Distinguishes functions of one name.
    #[prost(string, tag = "13")]
    pub(crate) overload: String,
    /// Free-form metadata.
    #[prost(message, repeated, tag = "14")]
    pub(crate) metadata_props: Vec<StringStringEntryProto>,
}

/// A graph: nodes in topological order, their constants, and the values at the border.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct GraphProto {
    /// The nodes, sorted topologically.
    #[prost(message, repeated, tag = "1")]
    pub(crate) node: Vec<NodeProto>,
    /// The graph's name.
    #[prost(string, tag = "2")]
    pub(crate) name: String,
    /// Named constants.
    #[prost(message, repeated, tag = "5")]
    pub(crate) initializer: Vec<TensorProto>,
    /// Prose.
    #[prost(string, tag = "10")]
    pub(crate) doc_string: String,
    /// The inputs; before IR version 4 every initializer is listed here too.
    #[prost(message, repeated, tag = "11")]
    pub(crate) input: Vec<ValueInfoProto>,
    /// The outputs.
    #[prost(message, repeated, tag = "12")]
    pub(crate) output: Vec<ValueInfoProto>,
    /// Types of values in between.
    #[prost(message, repeated, tag = "13")]
    pub(crate) value_info: Vec<ValueInfoProto>,
    /// Named constants in sparse form.
    #[prost(message, repeated, tag = "15")]
    pub(crate) sparse_initializer: Vec<SparseTensorProto>,
    /// Free-form metadata.
    #[prost(message, repeated, tag = "16")]
    pub(crate) metadata_props: Vec<StringStringEntryProto>,
}

/// One application of an op.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct NodeProto {
    /// Names of the inputs; an empty one is an optional input left out.
    #[prost(string, repeated, tag = "1")]
    pub(crate) input: Vec<String>,
    /// Names of the outputs; an empty one is not wanted.
    #[prost(string, repeated, tag = "2")]
    pub(crate) output: Vec<String>,
    /// The node's name, often empty.
    #[prost(string, tag = "3")]
    pub(crate) name: String,
    /// The op.
    #[prost(string, tag = "4")]
    pub(crate) op_type: String,
    /// The op's attributes.
    #[prost(message, repeated, tag = "5")]
    pub(crate) attribute: Vec<AttributeProto>,
    /// Prose.
    #[prost(string, tag = "6")]
    pub(crate) doc_string: String,
    /// The operator set; empty for ONNX's own.
    #[prost(string, tag = "7")]
    pub(crate) domain: String,
    /// Which function of that name.
    #[prost(string, tag = "8")]
    pub(crate) overload: String,
    /// Free-form metadata.
    #[prost(message, repeated, tag = "9")]
    pub(crate) metadata_props: Vec<StringStringEntryProto>,
}

/// A named attribute of a node: one of the values, said by `type`.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct AttributeProto {
    /// The attribute's name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// A number.
    #[prost(float, optional, tag = "2")]
    pub(crate) f: Option<f32>,
    /// An integer.
    #[prost(int64, optional, tag = "3")]
    pub(crate) i: Option<i64>,
    /// A string.
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(crate) s: Option<Bytes>,
    /// A tensor.
    #[prost(message, optional, boxed, tag = "5")]
    pub(crate) t: Option<Box<TensorProto>>,
    /// A graph, as the branches of `If` and the body of `Loop`.
    #[prost(message, optional, boxed, tag = "6")]
    pub(crate) g: Option<Box<GraphProto>>,
    /// Numbers.
    #[prost(float, repeated, packed = "false", tag = "7")]
    pub(crate) floats: Vec<f32>,
    /// Integers.
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub(crate) ints: Vec<i64>,
    /// Strings.
    #[prost(bytes = "bytes", repeated, tag = "9")]
    pub(crate) strings: Vec<Bytes>,
    /// Tensors.
    #[prost(message, repeated, tag = "10")]
    pub(crate) tensors: Vec<TensorProto>,
    /// Graphs.
    #[prost(message, repeated, tag = "11")]
    pub(crate) graphs: Vec<GraphProto>,
    /// Prose.
    #[prost(string, tag = "13")]
    pub(crate) doc_string: String,
    /// A type.
    #[prost(message, optional, tag = "14")]
    pub(crate) tp: Option<TypeProto>,
    /// Types.
    #[prost(message, repeated, tag = "15")]
    pub(crate) type_protos: Vec<TypeProto>,
    /// Which of the values is meant: one of [`attribute_type`]; 0 in files of IR version 1.
    #[prost(int32, tag = "20")]
    pub(crate) r#type: i32,
    /// Inside a function: the attribute of the call that gives the value.
    #[prost(string, tag = "21")]
    pub(crate) ref_attr_name: String,
    /// A sparse tensor.
    #[prost(message, optional, boxed, tag = "22")]
    pub(crate) sparse_tensor: Option<Box<SparseTensorProto>>,
    /// Sparse tensors.
    #[prost(message, repeated, tag = "23")]
    pub(crate) sparse_tensors: Vec<SparseTensorProto>,
}

/// The values of [`AttributeProto::type`](AttributeProto).
pub(crate) mod attribute_type {
    /// `f`.
    pub(crate) const FLOAT: i32 = 1;
    /// `i`.
    pub(crate) const INT: i32 = 2;
    /// `s`.
    pub(crate) const STRING: i32 = 3;
    /// `t`.
    pub(crate) const TENSOR: i32 = 4;
    /// `g`.
    pub(crate) const GRAPH: i32 = 5;
    /// `floats`.
    pub(crate) const FLOATS: i32 = 6;
    /// `ints`.
    pub(crate) const INTS: i32 = 7;
    /// `strings`.
    pub(crate) const STRINGS: i32 = 8;
    /// `graphs`.
    pub(crate) const GRAPHS: i32 = 10;
    /// `sparse_tensor`.
    pub(crate) const SPARSE_TENSOR: i32 = 11;
    /// `sparse_tensors`.
    pub(crate) const SPARSE_TENSORS: i32 = 12;
}

/// A tensor; its elements lie in one of the `…_data` fields or in another file.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TensorProto {
    /// The length of each axis.
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub(crate) dims: Vec<i64>,
    /// The element type: one of [`data_type`].
    #[prost(int32, tag = "2")]
    pub(crate) data_type: i32,
    /// Present if this is only a part of a tensor.
    #[prost(message, optional, tag = "3")]
    pub(crate) segment: Option<SegmentProto>,
    /// Elements of float32 and (in pairs) complex64.
    #[prost(float, repeated, tag = "4")]
    pub(crate) float_data: Vec<f32>,
    /// Elements of int32 and all narrower types; floats of at most 16 bits as their bit patterns.
    #[prost(int32, repeated, tag = "5")]
    pub(crate) int32_data: Vec<i32>,
    /// Elements of strings.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub(crate) string_data: Vec<Bytes>,
    /// Elements of int64.
    #[prost(int64, repeated, tag = "7")]
    pub(crate) int64_data: Vec<i64>,
    /// The tensor's name.
    #[prost(string, tag = "8")]
    pub(crate) name: String,
    /// Elements of any type but strings: little-endian, row-major.
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub(crate) raw_data: Option<Bytes>,
    /// Elements of float64 and (in pairs) complex128.
    #[prost(double, repeated, tag = "10")]
    pub(crate) double_data: Vec<f64>,
    /// Elements of uint32 and uint64.
    #[prost(uint64, repeated, tag = "11")]
    pub(crate) uint64_data: Vec<u64>,
    /// Prose.
    #[prost(string, tag = "12")]
    pub(crate) doc_string: String,
    /// Where the elements lie if `data_location` is [`EXTERNAL`](Self::EXTERNAL): keys location, offset, length.
    #[prost(message, repeated, tag = "13")]
    pub(crate) external_data: Vec<StringStringEntryProto>,
    /// 0, or [`EXTERNAL`](Self::EXTERNAL).
    #[prost(int32, tag = "14")]
    pub(crate) data_location: i32,
    /// Free-form metadata.
    #[prost(message, repeated, tag = "16")]
    pub(crate) metadata_props: Vec<StringStringEntryProto>,
}

impl TensorProto {
    /// The `data_location` of a tensor whose elements lie in another file.
    pub(crate) const EXTERNAL: i32 = 1;
}

/// The values of [`TensorProto::data_type`](TensorProto) and of the element types of values.
pub(crate) mod data_type {
    macro_rules! data_types {
        ($($constant:ident = $number:literal $name:literal),* $(,)?) => {
            $(
                #[doc = concat!("`", $name, "`.")]
                pub(crate) const $constant: i32 = $number;
            )*

            /// The name that ONNX's documentation uses, for messages.
            pub(crate) fn name(data_type: i32) -> String {
                match data_type {
                    $($constant => $name.to_owned(),)*
                    other => format!("unknown type {other}"),
                }
            }
        };
    }

    data_types! {
        UNDEFINED = 0 "undefined",
        FLOAT = 1 "float32",
        UINT8 = 2 "uint8",
        INT8 = 3 "int8",
        UINT16 = 4 "uint16",
        INT16 = 5 "int16",
        INT32 = 6 "int32",
        INT64 = 7 "int64",
        STRING = 8 "string",
        BOOL = 9 "bool",
        FLOAT16 = 10 "float16",
        DOUBLE = 11 "float64",
        UINT32 = 12 "uint32",
        UINT64 = 13 "uint64",
        COMPLEX64 = 14 "complex64",
        COMPLEX128 = 15 "complex128",
        BFLOAT16 = 16 "bfloat16",
        FLOAT8E4M3FN = 17 "float8e4m3fn",
        FLOAT8E4M3FNUZ = 18 "float8e4m3fnuz",
        FLOAT8E5M2 = 19 "float8e5m2",
        FLOAT8E5M2FNUZ = 20 "float8e5m2fnuz",
        UINT4 = 21 "uint4",
        INT4 = 22 "int4",
        FLOAT4E2M1 = 23 "float4e2m1",
        FLOAT8E8M0 = 24 "float8e8m0",
        UINT2 = 25 "uint2",
        INT2 = 26 "int2",
    }
}

/// Which part of a tensor a [`TensorProto`] holds.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SegmentProto {
    /// First element.
    #[prost(int64, tag = "1")]
    pub(crate) begin: i64,
    /// One past the last element.
    #[prost(int64, tag = "2")]
    pub(crate) end: i64,
}

/// A tensor of which only the elements that are not zero are stored.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct SparseTensorProto {
    /// The stored elements; carries the tensor's name.
    #[prost(message, optional, tag = "1")]
    pub(crate) values: Option<TensorProto>,
    /// Where they belong: `[n]` linear or `[n, rank]`.
    #[prost(message, optional, tag = "2")]
    pub(crate) indices: Option<TensorProto>,
    /// The shape of the whole.
    #[prost(int64, repeated, packed = "false", tag = "3")]
    pub(crate) dims: Vec<i64>,
}

/// A value's name and type.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct ValueInfoProto {
    /// The value's name.
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    /// Its type.
    #[prost(message, optional, tag = "2")]
    pub(crate) r#type: Option<TypeProto>,
    /// Prose.
    #[prost(string, tag = "3")]
    pub(crate) doc_string: String,
    /// Free-form metadata.
    #[prost(message, repeated, tag = "4")]
    pub(crate) metadata_props: Vec<StringStringEntryProto>,
}

/// The type of a value.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TypeProto {
    /// What it is.
    #[prost(oneof = "TypeValue", tags = "1, 4, 5, 7, 8, 9")]
    pub(crate) value: Option<TypeValue>,
    /// What it stands for, such as `IMAGE`.
    #[prost(string, tag = "6")]
    pub(crate) denotation: String,
}

/// The alternatives of a [`TypeProto`]; all but tensors are kept as bytes, enough to say what they are.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum TypeValue {
    /// A tensor.
    #[prost(message, tag = "1")]
    Tensor(TensorTypeProto),
    /// A list of values.
    #[prost(bytes = "bytes", tag = "4")]
    Sequence(Bytes),
    /// A map.
    #[prost(bytes = "bytes", tag = "5")]
    Map(Bytes),
    /// A type known to some operator set only.
    #[prost(bytes = "bytes", tag = "7")]
    Opaque(Bytes),
    /// A sparse tensor.
    #[prost(bytes = "bytes", tag = "8")]
    SparseTensor(Bytes),
    /// A value that may be missing.
    #[prost(bytes = "bytes", tag = "9")]
    Optional(Bytes),
}

impl TypeValue {
    /// What it is, for messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Tensor(_) => "a tensor",
            Self::Sequence(_) => "a sequence",
            Self::Map(_) => "a map",
            Self::Opaque(_) => "an opaque value",
            Self::SparseTensor(_) => "a sparse tensor",
            Self::Optional(_) => "an optional value",
        }
    }
}

/// Element type and shape of a tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TensorTypeProto {
    /// The element type: one of [`data_type`].
    #[prost(int32, tag = "1")]
    pub(crate) elem_type: i32,
    /// The shape; absent if not even the rank is known.
    #[prost(message, optional, tag = "2")]
    pub(crate) shape: Option<TensorShapeProto>,
}

/// A shape.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct TensorShapeProto {
    /// The axes.
    #[prost(message, repeated, tag = "1")]
    pub(crate) dim: Vec<DimensionProto>,
}

/// The length of one axis.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct DimensionProto {
    /// The length; absent if nothing is known.
    #[prost(oneof = "DimensionValue", tags = "1, 2")]
    pub(crate) value: Option<DimensionValue>,
    /// What the axis stands for, such as `DATA_BATCH`.
    #[prost(string, tag = "3")]
    pub(crate) denotation: String,
}

/// A length that is a number or has a name.
#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum DimensionValue {
    /// `dim_value`.
    #[prost(int64, tag = "1")]
    Number(i64),
    /// `dim_param`.
    #[prost(string, tag = "2")]
    Name(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;

    #[test]
    fn messages_survive_encoding() {
        let dim = |value| DimensionProto { value: Some(value), denotation: String::new() };
        let shape = TensorShapeProto {
            dim: vec![
                dim(DimensionValue::Number(0)),
                dim(DimensionValue::Name("batch".into())),
                DimensionProto::default(),
            ],
        };
        let tensor = TensorTypeProto { elem_type: data_type::FLOAT, shape: Some(shape) };
        let value = |name: &str, value| ValueInfoProto {
            name: name.into(),
            r#type: Some(TypeProto { value: Some(value), denotation: String::new() }),
            ..Default::default()
        };
        let attribute = AttributeProto {
            name: "value".into(),
            f: Some(0.0),
            i: Some(-1),
            ints: vec![1, -2, 300],
            floats: vec![0.5],
            strings: vec![Bytes::from_static(b"ab")],
            t: Some(Box::new(TensorProto { float_data: vec![1.0], dims: vec![1], ..Default::default() })),
            g: Some(Box::default()),
            r#type: attribute_type::INTS,
            ..Default::default()
        };
        let node = NodeProto {
            input: vec!["x".into(), String::new()],
            attribute: vec![attribute],
            ..Default::default()
        };
        let graph = GraphProto {
            node: vec![node.clone()],
            input: vec![
                value("x", TypeValue::Tensor(tensor)),
                value("s", TypeValue::Sequence(Bytes::from_static(b"\x0a\x00"))),
            ],
            ..Default::default()
        };
        let model = ModelProto {
            ir_version: 8,
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
            functions: vec![FunctionProto { name: "f".into(), node: vec![node], ..Default::default() }],
            ..Default::default()
        };
        assert_eq!(ModelProto::decode(Bytes::from(model.encode_to_vec())).unwrap(), model);
    }

    #[test]
    fn messages_have_the_field_numbers_of_the_standard() {
        // A tensor [2] of float32 named "w" with raw data, written out by hand.
        let bytes = b"\x08\x02\x10\x01\x42\x01w\x4a\x08\0\0\x80\x3f\0\0\0\x40";
        let tensor = TensorProto::decode(&bytes[..]).unwrap();
        assert_eq!(
            (tensor.dims.as_slice(), tensor.data_type, tensor.name.as_str()),
            (&[2][..], data_type::FLOAT, "w")
        );
        assert_eq!(tensor.encode_to_vec(), bytes);
    }
}
