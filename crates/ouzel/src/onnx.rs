//! ONNX files: reading them into graphs, and writing graphs.

mod body;
mod export;
mod foreign;
mod functions;
#[cfg(test)]
mod hostile;
mod import;
mod lower;
#[cfg(test)]
mod made;
mod old;
pub(crate) mod proto;
mod reader;
#[cfg(test)]
mod round_trip;
mod rounds;
#[cfg(test)]
mod sizes;
mod stored;
mod wire;
mod writer;

pub use export::OnnxFile;
#[cfg(test)]
pub(crate) use functions::{Function, LIST as FUNCTIONS, samples as function_samples};
pub(crate) use import::{Imported, Layer, LayerState, import};
pub use lower::{Lowered, Lowering};
pub(crate) use lower::{known_length, known_shape_of};
#[cfg(test)]
pub(crate) use reader::Attribute;
pub use reader::NodeReader;
pub(crate) use rounds::Rounds;
pub(crate) use stored::{Source as ModelSource, dtype_of_code};
pub(crate) use wire::{ParsedModel, read_bytes, read_path, read_reader, read_tensor};
pub use writer::NodeWriter;
