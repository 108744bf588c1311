//! The explanation methods, one a file.

pub mod saliency;
