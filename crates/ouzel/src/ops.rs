//! The ops, one family a file.

pub mod activation;
pub(crate) mod broadcast;
pub mod einsum;
pub mod elementwise;
pub mod gather;
pub mod layout;
pub mod logic;
pub mod matmul;
pub mod pad;
pub mod rearrange;
pub mod reduce;
pub mod scatter;
pub mod select;
pub mod slice;
pub mod softmax;
