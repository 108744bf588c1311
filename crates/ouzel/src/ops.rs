//! The ops, one family a file.

pub mod activation;
pub mod bits;
pub(crate) mod broadcast;
pub mod convolution;
pub mod einsum;
pub mod elementwise;
pub mod gather;
pub mod layout;
pub mod linalg;
pub mod logic;
pub mod matmul;
pub mod norm;
pub mod pad;
pub mod pool;
pub mod quantize;
pub mod rearrange;
pub mod reduce;
pub mod resize;
pub mod scatter;
pub mod select;
pub mod slice;
pub mod softmax;
pub mod window;
