//! Numeric loops on plain slices, with SIMD chosen at run time: the only crate of the workspace that may use `unsafe`.
//!
//! The kernels know no graph, no file format and no errors but their caller's mistakes, which panic. A caller
//!
//!  1. asks once for a [`Level`], the SIMD instructions to use;
//!  2. packs weights once ([`Convolution::forward`], [`Convolution::input_gradient`], [`Dense::new`]);
//!  3. describes where tensors lie with [`View`]s: channels last, with a pixel stride and a channel offset, so that concatenation and
//!     slicing along channels need no copies;
//!  4. runs kernels on slices, each with an [`Epilogue`] that adds a bias or a residual, applies an activation, remembers one bit an
//!     element, or selects by such bits, all before the result leaves the registers, and that may go on with an elementwise program
//!     ([`Tail`]).
//!
//! A convolution with a Relu, and its way back with guided backpropagation:
//!
//! ```
//! use ouzel_kernels::*;
//!
//! let level = Level::detect()?;
//! let shape = ConvolutionShape { padding: [0, 1, 1], ..ConvolutionShape::new(3, 8, [1, 3, 3]) };
//! let weights = vec![0.1; 8 * 3 * 3 * 3];
//! let forward = Convolution::forward(&shape, &weights);
//! let backward = Convolution::input_gradient(&shape, &weights);
//!
//! let image = View::packed(1, [1, 16, 16], 3);
//! let features = View::packed(1, [1, 16, 16], 8);
//! let x = vec![1.0; image.len()];
//! let mut y = vec![0.0; features.len()];
//! let mut mask = vec![0; features.pixels() * mask_words(features.channels)];
//! let bias = [0.0; 8];
//! let epilogue = Epilogue {
//!     bias: Some(&bias),
//!     record: Some((&mut mask, RecordRule::Positive)),
//!     activation: Some(Activation::Relu),
//!     ..Epilogue::default()
//! };
//! forward.run(level, &x, &image, &mut y, &features, epilogue);
//!
//! // A gate belongs to the kernel that produces the gradient of the Relu's output. Here that gradient is given, so that it has to
//! // pass the gate alone.
//! let given = vec![1.0; features.len()];
//! let mut g = vec![0.0; features.len()];
//! let gate = Some(Gate { rule: GateRule::Guided, mask: &mask, before_addend: false });
//! finish(level, &given, &features, &mut g, &features, Epilogue { gate, ..Epilogue::default() });
//! let mut gradient = vec![0.0; image.len()];
//! backward.run(level, &g, &features, &mut gradient, &image, Epilogue::default());
//! # assert!(gradient.iter().all(|g| *g > 0.0));
//! # Ok::<(), LevelError>(())
//! ```
//!
//! # Which kernel for what
//!
//! | computation | kernel |
//! |---|---|
//! | Conv, its gradient, any stride, dilation, groups; depthwise is noticed | [`Convolution`] |
//! | ConvTranspose and its gradient | [`Convolution::transposed`], [`Convolution::transposed_input_gradient`] |
//! | Gemm or MatMul with constant weights, both directions | [`Dense`] |
//! | MatMul of two computed tensors | [`MatrixProduct`] |
//! | MaxPool and its gradient | [`max_pool`], [`max_pool_gradient`] |
//! | AveragePool, GlobalAveragePool and their gradients | [`average_pool`], [`average_pool_gradient`] |
//! | bias, residual, activation, gate without a product | [`finish()`] |
//! | everything elementwise, fused | [`Program`] |
//! | ReduceSum, ReduceMean, ReduceMax, Softmax and its gradient | [`reduce_channels`], [`reduce_pixels`], [`softmax`], [`softmax_gradient`] |
//! | Resize and its gradient, one axis at a time | [`AxisMatrix`] |
//! | NCHW to NHWC and back | [`to_channels_last`], [`to_channels_first`] |
//! | Transpose, Slice, Expand | [`StridedCopy`] |
//!
//! # What holds for all kernels
//!
//!  - Work is shared out in the rayon pool of the caller, sooner where [`together`] keeps its threads awake. The order in which an element is summed depends on the operation, its shapes
//!    and the SIMD level, never on the batch, the number of threads or the position, so results have the same bits for all of them.
//!  - A gate selects and never multiplies: what it stops is exactly zero, be it infinite or not a number.
//!  - Padding counts as zeros that are multiplied; a weight that is not finite therefore reaches padded outputs. Depthwise convolution
//!    skips the padding.
//!  - Nothing is allocated while kernels run; where scratch is needed, the caller brings it.
//!  - Sizes and strides are checked before the first element is touched; a mismatch panics with a message that names it.

#![deny(missing_docs)]
// Tiles are arrays that are indexed side by side by the same constant-bounded loops, which the compiler unrolls into registers; and a
// kernel takes its tensors and their views one by one.
#![allow(clippy::needless_range_loop, clippy::too_many_arguments)]

mod aligned;
mod amx;
#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
mod amx_absent;
#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
mod amx_x86;
mod axis;
mod columns;
mod convolution;
mod crew;
mod dense;
mod depthwise;
mod epilogue;
mod few;
mod finish;
mod function;
mod group;
mod layout;
mod level;
mod matrix;
mod peak;
mod pool;
mod program;
mod raster;
mod reduce;
mod setting;
mod shared;
mod tile;
mod vector;
#[cfg(target_arch = "x86_64")]
mod vector_x86;
mod view;
mod winograd;

pub use aligned::Aligned;
pub use axis::AxisMatrix;
pub use convolution::{Convolution, ConvolutionShape};
pub use crew::together;
pub use dense::Dense;
pub use epilogue::{Activation, Addend, Epilogue, Gate, GateRule, RecordRule, Tail, mask_words};
pub use finish::finish;
pub use layout::{MOST_AXES, StridedCopy, to_channels_first, to_channels_last};
pub use level::{Level, LevelError};
pub use matrix::{Matrices, MatrixProduct};
pub use peak::{Peak, peak_flops};
pub use pool::{
    AverageCount, NO_POSITION, Window, average_pool, average_pool_gradient, max_pool, max_pool_gradient,
};
pub use program::{
    Binary, Instruction, MOST_REGISTERS, MOST_RESULTS, Operand, Program, Register, Target, Unary,
};
pub use reduce::{Reduction, SoftmaxKind, reduce_channels, reduce_pixels, softmax, softmax_gradient};
pub use view::View;
