//! Numeric loops on plain slices, with SIMD chosen at run time: the only crate of the workspace that may use `unsafe`.

mod convolution;
mod depthwise;
mod epilogue;
mod level;
mod peak;
mod shared;
mod tile;
mod vector;
#[cfg(target_arch = "x86_64")]
mod vector_x86;
mod view;

pub use convolution::{Convolution, ConvolutionShape};
pub use epilogue::{Activation, Addend, Epilogue, Gate, GateRule, RecordRule, mask_words};
pub use level::{Level, LevelError};
pub use peak::peak_flops;
pub use view::View;
