//! The ops, one family a file.

pub mod activation;
pub(crate) mod broadcast;
pub mod elementwise;
pub mod gather;
pub mod layout;
pub mod logic;
pub mod matmul;
pub mod pad;
pub mod reduce;
pub mod slice;
pub mod softmax;
