//! ONNX files: reading them into graphs.

mod body;
mod foreign;
mod functions;
mod import;
mod old;
pub(crate) mod proto;
mod reader;
mod stored;
mod wire;

#[cfg(test)]
pub(crate) use functions::{LIST as FUNCTIONS, samples as function_samples};
pub(crate) use import::{Imported, Layer, LayerState, import};
#[cfg(test)]
pub(crate) use reader::Attribute;
pub use reader::NodeReader;
pub(crate) use stored::dtype_of_code;
pub(crate) use wire::{ParsedModel, read_bytes, read_path, read_reader, read_tensor};
