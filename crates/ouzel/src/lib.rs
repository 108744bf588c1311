//! See what a neural network looks at: saliency maps and attributions for any network that travels as an ONNX file.
#![forbid(unsafe_code)]

mod error;
#[expect(dead_code, reason = "used by the importer")]
mod onnx;
mod tensor;

pub use error::{Error, Result};
pub use tensor::{Array, DType, Element, Tensor};
