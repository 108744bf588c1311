//! Batch normalization by the statistics of its own input, with which exporters standardize weights.

use super::NodeReader;
use crate::builder::Var;
use crate::error::{Result, bail};
use crate::graph::ValueId;

/// `(x - mean) / √(var + ε) · scale + bias`, mean and variance over all axes but the second, and what the running
/// statistics become. ONNX `BatchNormalization` 14 with `training_mode` 1.
///
/// Of weights alone: of data, a sample's prediction would depend on the others of its batch.
pub(super) fn batch_normalization_in_training(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let epsilon = node.float_or("epsilon", 1e-5)?;
    let momentum = node.float_or("momentum", 0.9)?;
    node.flag_or("training_mode", true)?;
    if !node.is_made_of_constants(0) {
        bail!(unsupported, "the file was saved in training mode; export the network in evaluation mode");
    }
    let outputs = node.output_count();
    node.build(|_, inputs| {
        let [Some(x), Some(scale), Some(bias), Some(old_mean), Some(old_var)] = inputs else {
            bail!(model, "expected 5 inputs, found {}", inputs.iter().flatten().count())
        };
        let axes = || (0..x.rank()).filter(|&axis| axis != 1);
        let mean = x.reduce_mean(axes(), true);
        let centered = *x - mean;
        let var = (centered * centered).reduce_mean(axes(), true);
        let y =
            centered / (var + epsilon).sqrt() * of_channels(*scale, x.rank()) + of_channels(*bias, x.rank());
        let all = [y, moved(*old_mean, mean, momentum), moved(*old_var, var, momentum)];
        Ok(all.into_iter().take(outputs).collect())
    })
}

/// One number for each index of the second of so many axes.
fn of_channels(values: Var<'_>, rank: usize) -> Var<'_> {
    values.reshape((1..rank).map(|axis| if axis == 1 { -1 } else { 1 }))
}

/// Statistics that have moved towards new ones.
fn moved<'b>(old: Var<'b>, new: Var<'b>, momentum: f64) -> Var<'b> {
    old * momentum + new.reshape([-1]) * (1.0 - momentum)
}

#[cfg(test)]
mod tests {
    use super::super::super::made::{float, integer, model, node, numbers};
    use super::super::super::proto::{ModelProto, TensorProto, data_type};
    use crate::{Model, Precision};
    use prost::Message;

    fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
        let (dims, float_data) = (dims.to_vec(), values.to_vec());
        TensorProto { name: name.into(), data_type: data_type::FLOAT, dims, float_data, ..Default::default() }
    }

    /// `x` plus what becomes of the input `from`, two channels of two elements, in training mode.
    fn standardized(from: &str) -> ModelProto {
        let inputs = ["channels", "scale", "bias", "mean", "var"];
        let mut norm = node("BatchNormalization", &inputs, &["standard", "new_mean", "new_var"]);
        norm.attribute = vec![integer("training_mode", 1), float("momentum", 0.75), float("epsilon", 1e-9)];
        let nodes = vec![
            node("Reshape", &[from, "three"], &["channels"]),
            norm,
            node("Reshape", &["standard", "one"], &["flat"]),
            node("Add", &["x", "flat"], &["y"]),
        ];
        let weights = vec![
            floats("w", &[4], &[1.0, 3.0, 10.0, 14.0]),
            floats("scale", &[2], &[1.0, 0.5]),
            floats("bias", &[2], &[0.0, 7.0]),
            floats("mean", &[2], &[0.0, 4.0]),
            floats("var", &[2], &[1.0, 1.0]),
            numbers("three", &[1, 2, 2]),
            numbers("one", &[4]),
        ];
        model(17, nodes, weights)
    }

    #[test]
    fn weights_are_standardized() {
        let model = Model::from_bytes(standardized("w").encode_to_vec()).unwrap();
        let x = ndarray::Array1::<f32>::zeros(4);
        let found = |name: &str| -> Vec<f64> {
            let value = model.find(name).unwrap();
            model.run(&x.clone().into(), &[value], Precision::F64).unwrap()[0].to_f64().into_iter().collect()
        };
        for (name, expected) in [
            ("y", &[-1.0, 1.0, 6.5, 7.5][..]),
            // Three quarters of the old statistics and a quarter of the new ones: means 2 and 12, variances 1 and 4.
            ("new_mean", &[0.5, 6.0]),
            ("new_var", &[1.0, 1.75]),
        ] {
            let found = found(name);
            let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-7);
            assert!(close && found.len() == expected.len(), "{name}: {found:?}, expected {expected:?}");
        }
    }

    #[test]
    fn data_are_not() {
        let model = Model::from_bytes(standardized("x").encode_to_vec()).unwrap();
        let error = model.find("y").unwrap_err().to_string();
        assert!(error.contains("training mode") && error.contains("evaluation mode"), "{error}");
    }
}
