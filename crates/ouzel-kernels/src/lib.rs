//! Numeric loops on plain slices, with SIMD chosen at run time: the only crate of the workspace that may use `unsafe`.

// Tiles are arrays that are indexed side by side by the same constant-bounded loops, which the compiler unrolls into registers; and a
// kernel takes its tensors and their views one by one.
#![allow(clippy::needless_range_loop, clippy::too_many_arguments)]

mod convolution;
mod dense;
mod depthwise;
mod epilogue;
mod layout;
mod level;
mod matrix;
mod peak;
mod pool;
mod shared;
mod tile;
mod vector;
#[cfg(target_arch = "x86_64")]
mod vector_x86;
mod view;

pub use convolution::{Convolution, ConvolutionShape};
pub use dense::Dense;
pub use epilogue::{Activation, Addend, Epilogue, Gate, GateRule, RecordRule, mask_words};
pub use layout::{MOST_AXES, StridedCopy, to_channels_first, to_channels_last};
pub use level::{Level, LevelError};
pub use matrix::{Matrices, MatrixProduct};
pub use peak::peak_flops;
pub use pool::{
    AverageCount, NO_POSITION, Window, average_pool, average_pool_gradient, max_pool, max_pool_gradient,
};
pub use view::View;
