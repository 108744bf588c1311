//! The ONNX file format: from bytes to a graph and back.

mod foreign;
mod proto;
mod stored;
mod wire;
