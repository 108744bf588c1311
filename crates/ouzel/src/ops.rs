//! The ops, one family a file.

pub mod activation;
pub(crate) mod broadcast;
pub mod elementwise;
pub mod layout;
pub mod logic;
pub mod reduce;
