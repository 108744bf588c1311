//! What the tests of whole methods share: small networks, and inputs for them.

use ndarray::ArrayD;
use ouzel::Model;

/// A network of the command line's tests.
pub fn model(name: &str) -> Model {
    Model::load(format!("{}/../ouzel-cli/tests/data/{name}.onnx", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Numbers that are neither regular nor random.
pub fn values(shape: &[usize], seed: u32) -> ArrayD<f32> {
    let mut state = seed;
    ArrayD::from_shape_simple_fn(shape.to_vec(), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 0.5
    })
}
