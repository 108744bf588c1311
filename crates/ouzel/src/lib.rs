//! See what a neural network looks at: saliency maps and attributions for any network that travels as an ONNX file.
#![forbid(unsafe_code)]

mod error;
pub mod image;
mod tensor;

pub use error::{Error, Result};
pub use tensor::{Array, DType, Element, Tensor};
