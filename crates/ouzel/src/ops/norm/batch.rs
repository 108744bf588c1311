//! Batch normalization, with the statistics of training.

use super::{check_channels, over_channels, per_channel};
use crate::backprop::{Back, Cotangents};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, SampleInput, floats};
use crate::graph::Fact;
use crate::onnx::{NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef, Real};
use crate::ops::window::output_shapes;
use crate::tensor::{Array, Float, Tensor, each_float};
use ndarray::Axis;

/// `y = scale · (x - mean) / √(var + epsilon) + bias` for each channel, with the statistics of training.
/// ONNX 1, 6, 7, 9, 14, 15.
///
/// Inputs: `x` `[N, C, …]`, and `scale`, `bias`, `mean`, `var` `[C]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BatchNormalization {
    /// Added to the variance.
    pub epsilon: Real,
}

impl OpDef for BatchNormalization {
    fn name(&self) -> &str {
        "BatchNormalization"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        if x.len() != 5 {
            bail!(shape, "expected 5 inputs, found {}", x.len());
        }
        Ok(vec![check_channels(x, 1)?])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn run<T: Float>(x: &Array<T>, inputs: &Inputs<Tensor>, epsilon: f64) -> Result<Tensor> {
            let (scale, bias) = (inputs.get(1)?.array::<T>()?, inputs.get(2)?.array::<T>()?);
            let (mean, var) = (inputs.get(3)?.array::<T>()?, inputs.get(4)?.array::<T>()?);
            let mut y = x.to_owned();
            for (c, mut channel) in y.axis_iter_mut(Axis(1)).enumerate() {
                let inverse = (var[c] + T::of(epsilon)).sqrt().recip();
                let (scale, bias, mean) = (scale[c] * inverse, bias[c], mean[c]);
                channel.mapv_inplace(|x| (x - mean) * scale + bias);
            }
            Ok(T::wrap(y.into_shared()))
        }
        output_shapes(self, x)?;
        Ok(vec![each_float!(x.get(0)?, first => run(first, x, self.epsilon.0)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, scale, mean, var, g) = (back.x(0), back.x(1), back.x(3), back.x(4), back.g(0));
        let deviation = (var + self.epsilon.0).sqrt();
        let correlation = || over_channels(g * (x - per_channel(mean, x)));
        Ok(back.each_wanted(|index| match index {
            0 => g * per_channel(scale / deviation, x),
            1 => correlation() / deviation,
            2 => over_channels(g),
            3 => -(over_channels(g) * scale / deviation),
            _ => correlation() * scale * -0.5 / (deviation * (var + self.epsilon.0)),
        }))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.float("epsilon", self.epsilon.0);
        Ok(())
    }
}

impl Listed for BatchNormalization {
    const ONNX: &'static [&'static str] = &["BatchNormalization"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        for ignored in ["momentum", "consumed_inputs"] {
            node.ignore(ignored);
        }
        // Training mode has no other mark before opset 14.
        node.flag_or("training_mode", false)?;
        let training = !(node.opset() < 7 && node.flag_or("is_test", false)?);
        if training && node.output_count() > 1 {
            bail!(unsupported, "the file was saved in training mode; export the network in evaluation mode");
        }
        if !node.flag_or("spatial", true)? && node.required_input(0)?.rank() > 2 {
            bail!(unsupported, "attribute 'spatial': 0 (statistics for each position) is not supported");
        }
        Ok(Self { epsilon: Real(node.float_or("epsilon", 1e-5f32.into())?) })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let vector = |low: f64, high: f64| -> SampleInput { floats(low, high).input(&[3]) };
        let sample = |shape: &[usize]| {
            let x = floats(-1.0, 1.0).input(shape);
            let inputs = [x, vector(0.5, 2.0), vector(-1.0, 1.0), vector(-1.0, 1.0), vector(0.5, 2.0)];
            Sample::new(BatchNormalization { epsilon: Real(0.1) }, inputs)
        };
        vec![sample(&[2, 3, 4, 2]), sample(&[2, 3])]
    }
}
