//! Numeric loops on plain slices, with SIMD chosen at run time: the only crate of the workspace that may use `unsafe`.
