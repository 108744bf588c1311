//! ONNX files: reading them into graphs.

mod foreign;
mod proto;
mod reader;
mod stored;
mod wire;

pub use reader::NodeReader;

use crate::error::{Result, bail};
use crate::tensor::DType;

/// The element type behind a number of ONNX's `TensorProto.DataType`; 16-bit floats are read as float32.
pub(crate) fn dtype_of_code(code: i64) -> Result<DType> {
    Ok(match code {
        1 | 10 | 16 => DType::F32,
        2 => DType::U8,
        3 => DType::I8,
        6 => DType::I32,
        7 => DType::I64,
        9 => DType::Bool,
        11 => DType::F64,
        other => bail!(unsupported, "element type {other} is not supported"),
    })
}
