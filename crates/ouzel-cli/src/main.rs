//! The `ouzel` command line.

fn main() {}
