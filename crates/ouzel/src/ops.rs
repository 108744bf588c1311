//! The ops, one family a file.

pub mod activation;
pub(crate) mod broadcast;
pub mod convolution;
pub mod elementwise;
pub mod layout;
pub mod logic;
pub mod norm;
pub mod pool;
pub mod reduce;
pub mod window;
