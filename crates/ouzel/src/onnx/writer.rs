//! What an op sees of a file's node when it writes its attributes: the counterpart of the reader.

use super::proto::{AttributeProto, TensorProto, attribute_type};
use crate::dim::Dim;
use crate::error::{Result, bail};
use crate::graph::Fact;
use crate::op::{Op, OpDef, READERS};
use crate::tensor::{DType, Tensor};
use bytes::Bytes;

/// The oldest operator set that can be written.
pub(crate) const OLDEST: i64 = 13;

/// The newest operator set that can be written.
pub(crate) const NEWEST: i64 = 23;

/// Ops that are younger than [`OLDEST`], with the version that brought them.
const YOUNGER: &[(&str, i64)] = &[
    ("HardSwish", 14),
    ("Trilu", 14),
    ("CastLike", 15),
    ("LayerNormalization", 17),
    ("BitwiseAnd", 18),
    ("BitwiseOr", 18),
    ("BitwiseXor", 18),
    ("BitwiseNot", 18),
    ("Mish", 18),
    ("GroupNormalization", 18),
    ("Gelu", 20),
];

/// A node of a file while its op writes it. It begins with the op's name and all its inputs.
pub struct NodeWriter<'a> {
    opset: i64,
    op: &'a Op,
    facts: Vec<Option<&'a Fact>>,
    pub(super) attributes: Vec<AttributeProto>,
    pub(super) inputs: Vec<WrittenInput>,
    /// The number of a narrower type, if the node is a cast to it and back.
    pub(super) narrow: Option<i32>,
}

/// An input of a node that is written.
#[derive(Clone, Debug)]
pub(super) enum WrittenInput {
    /// The input of this index of the graph's node; it may be left out.
    Given(usize),
    /// Left out.
    Absent,
    /// A constant that is an attribute in the graph.
    Constant(Tensor),
}

impl<'a> NodeWriter<'a> {
    /// A node whose inputs have these facts, in a file of this opset.
    pub(super) fn new(opset: i64, op: &'a Op, facts: Vec<Option<&'a Fact>>) -> Self {
        let inputs = (0..facts.len()).map(WrittenInput::Given).collect();
        Self { opset, op, facts, attributes: Vec::new(), inputs, narrow: None }
    }

    /// Lets the op write itself.
    pub(super) fn written(mut self) -> Result<Self> {
        let op = self.op;
        if matches!(op, Op::Custom(_)) {
            bail!(
                unsupported,
                "{} is an op of the program that made the graph, and cannot be saved",
                op.name()
            );
        }
        if let Some((_, since)) = YOUNGER.iter().find(|(name, _)| *name == op.name()) {
            self.since(*since, op.name())?;
        }
        op.write(&mut self)?;
        if self.narrow.is_none() && !READERS.iter().any(|(names, _)| names.contains(&op.name())) {
            bail!(unsupported, "{} cannot be said in ops of ONNX", op.name());
        }
        Ok(self)
    }

    /// The version of the operator set.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// What is known of an input that is there.
    pub fn fact(&self, index: usize) -> Option<&'a Fact> {
        self.facts.get(index).copied().flatten()
    }

    /// Refuses what older operator sets do not have.
    ///
    /// # Errors
    /// If the file's operator set is older than `version`.
    pub fn since(&self, version: i64, what: &str) -> Result<()> {
        if self.opset < version {
            bail!(
                unsupported,
                "{what} exists from opset {version} on; the file is to have opset {}: ask for a newer one with --opset",
                self.opset
            );
        }
        Ok(())
    }

    fn attribute(&mut self, name: &str, r#type: i32) -> &mut AttributeProto {
        self.attributes.push(AttributeProto { name: name.into(), r#type, ..Default::default() });
        self.attributes.last_mut().expect("invariant: it was just added")
    }

    /// Writes an integer.
    pub fn int(&mut self, name: &str, value: i64) {
        self.attribute(name, attribute_type::INT).i = Some(value);
    }

    /// Writes a truth value, unless it is ONNX's default.
    pub fn flag(&mut self, name: &str, value: bool, default: bool) {
        if value != default {
            self.int(name, value.into());
        }
    }

    /// Writes a floating point number.
    pub fn float(&mut self, name: &str, value: f64) {
        self.attribute(name, attribute_type::FLOAT).f = Some(value as f32);
    }

    /// Writes a text.
    pub fn string(&mut self, name: &str, value: &str) {
        self.attribute(name, attribute_type::STRING).s = Some(Bytes::copy_from_slice(value.as_bytes()));
    }

    /// Writes integers.
    pub fn ints(&mut self, name: &str, values: &[i64]) {
        self.attribute(name, attribute_type::INTS).ints = values.to_vec();
    }

    /// Writes an element type.
    pub(crate) fn dtype(&mut self, name: &str, dtype: DType) {
        self.int(name, data_type_of(dtype).into());
    }

    /// Writes a cast to a narrower type, and another one back: the type's number, and whether what is too large becomes
    /// the largest number.
    pub(crate) fn there_and_back(&mut self, code: i32, saturate: bool) {
        self.int("to", code.into());
        self.flag("saturate", saturate, true);
        self.narrow = Some(code);
    }

    /// Writes the attribute `kernel_shape`, which repeats what the weight at this input says.
    pub(crate) fn kernel_of(&mut self, index: usize) {
        let kernel: Option<Vec<i64>> =
            self.fact(index).and_then(|weight| weight.shape[2..].iter().map(Dim::known).collect());
        if let Some(kernel) = kernel {
            self.ints("kernel_shape", &kernel);
        }
    }

    /// Writes a tensor.
    pub fn tensor(&mut self, name: &str, value: &Tensor) {
        self.attribute(name, attribute_type::TENSOR).t = Some(Box::new(tensor_proto("", value)));
    }

    /// Puts a constant at an input.
    pub fn input(&mut self, index: usize, tensor: Tensor) {
        while self.inputs.len() <= index {
            self.inputs.push(WrittenInput::Absent);
        }
        self.inputs[index] = WrittenInput::Constant(tensor);
    }

    /// Writes axes where the opset has them: from `version` on at an input, before as an attribute.
    pub(crate) fn axes(&mut self, index: usize, axes: &[i64], version: i64) {
        match self.opset >= version {
            true => self.input(index, Tensor::vector(axes.to_vec())),
            false => self.ints("axes", axes),
        }
    }
}

/// The number that files have for an element type.
pub(super) fn data_type_of(dtype: DType) -> i32 {
    use super::proto::data_type as code;
    match dtype {
        DType::F32 => code::FLOAT,
        DType::F64 => code::DOUBLE,
        DType::I64 => code::INT64,
        DType::I32 => code::INT32,
        DType::I16 => code::INT16,
        DType::I8 => code::INT8,
        DType::U64 => code::UINT64,
        DType::U32 => code::UINT32,
        DType::U16 => code::UINT16,
        DType::U8 => code::UINT8,
        DType::Bool => code::BOOL,
    }
}

/// A tensor as files store it: little-endian.
pub(super) fn tensor_proto(name: &str, tensor: &Tensor) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: tensor.shape().iter().map(|&length| length as i64).collect(),
        data_type: data_type_of(tensor.dtype()),
        raw_data: Some(little_endian(tensor).into()),
        ..Default::default()
    }
}

/// The elements in row-major order, little-endian; truth values are bytes.
pub(super) fn little_endian(tensor: &Tensor) -> Vec<u8> {
    macro_rules! bytes {
        ($x:expr) => {
            $x.iter().flat_map(|element| element.to_le_bytes()).collect()
        };
    }
    match tensor {
        Tensor::F32(x) => bytes!(x),
        Tensor::F64(x) => bytes!(x),
        Tensor::I64(x) => bytes!(x),
        Tensor::I32(x) => bytes!(x),
        Tensor::I16(x) => bytes!(x),
        Tensor::I8(x) => bytes!(x),
        Tensor::U64(x) => bytes!(x),
        Tensor::U32(x) => bytes!(x),
        Tensor::U16(x) => bytes!(x),
        Tensor::U8(x) => bytes!(x),
        Tensor::Bool(x) => x.iter().map(|&element| u8::from(element)).collect(),
    }
}
