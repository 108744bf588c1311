//! Normalization: subtract a mean, divide by a deviation, scale and shift.

mod batch;
mod channels;
mod layer;
mod local;
mod plain;

pub use batch::BatchNormalization;
pub use channels::{GroupNormalization, InstanceNormalization};
pub use layer::LayerNormalization;
pub use local::{ChannelWindowSum, LRN};
pub use plain::{LpNormalization, MeanVarianceNormalization};

use crate::builder::Var;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{SampleInput, floats};
use crate::graph::Fact;
use crate::onnx::NodeReader;
use crate::op::{Inputs, Op, Real, resolve_axis};
use crate::tensor::Float;

/// Verifies that the inputs from `from` on are vectors with an element for each channel of the first.
fn check_channels(x: &Inputs<Fact>, from: usize) -> Result<Fact> {
    let first = x.get(0)?;
    if !first.dtype.is_float() || first.rank() < 2 {
        bail!(shape, "expected a floating point input with batch and channel axes, found {first}");
    }
    for index in from..x.len() {
        let vector = x.get(index)?;
        let fits = vector.dtype == first.dtype
            && vector.rank() == 1
            && match (vector.shape[0].known(), first.shape[1].known()) {
                (Some(found), Some(channels)) => found == channels,
                _ => true,
            };
        if !fits {
            bail!(
                shape,
                "expected input {index} to have one {} for each of {} channels, found {vector}",
                first.dtype,
                first.shape[1]
            );
        }
    }
    Ok(Fact::new(first.dtype, first.shape.clone()))
}

/// A vector with an element for each channel, broadcast along the axes of `like`.
fn per_channel<'b>(vector: Var<'b>, like: Var<'b>) -> Var<'b> {
    vector.unsqueeze(1..like.rank().saturating_sub(1))
}

/// The sum over all axes but the channels.
fn over_channels(value: Var) -> Var {
    value.reduce_sum((0..value.rank()).filter(|&axis| axis != 1), false)
}

/// The epsilon attribute, with ONNX's default.
fn read_epsilon(node: &mut NodeReader) -> Result<Real> {
    Ok(Real(node.float_or("epsilon", 1e-5f32.into())?))
}

/// Mean and `1 / √(var + epsilon)` of some elements.
fn statistics<T: Float>(values: &[T], epsilon: f64) -> (T, T) {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|value| value.wide()).sum::<f64>() / count;
    let var = values.iter().map(|value| (value.wide() - mean).powi(2)).sum::<f64>() / count;
    (T::of(mean), T::of(1.0 / (var + epsilon).sqrt()))
}

/// Mean and `1 / √(var + epsilon)` over axes that stay with length 1, as nodes.
fn emit_statistics<'b>(x: Var<'b>, axes: &[usize], epsilon: f64) -> (Var<'b>, Var<'b>) {
    let mean = x.reduce_mean(axes.iter().copied(), true);
    let centered = x - mean;
    let var = (centered * centered).reduce_mean(axes.iter().copied(), true);
    (mean, (var + epsilon).sqrt().reciprocal())
}

/// Layer, group and instance normalization with each step a node: mean, difference, deviation, quotient, scale, shift.
pub(crate) fn spelled_out<'b>(op: &Op, inputs: &[Option<Var<'b>>]) -> Result<Option<Var<'b>>> {
    let [Some(x), Some(scale), bias @ ..] = inputs else { return Ok(None) };
    let (x, scale, bias) = (*x, *scale, bias.first().copied().flatten());
    let normalized = |x: Var<'b>, axes: &[usize], epsilon: Real| {
        let centred = x - x.reduce_mean(axes.iter().copied(), true);
        let var = (centred * centred).reduce_mean(axes.iter().copied(), true);
        centred / (var + epsilon.0).sqrt()
    };
    let (y, along): (_, &dyn Fn(Var<'b>) -> Var<'b>) = match op {
        Op::LayerNormalization(op) => {
            let axes: Vec<usize> = (resolve_axis(op.axis, x.rank())?..x.rank()).collect();
            (normalized(x, &axes, op.epsilon), &|vector| vector)
        }
        Op::InstanceNormalization(op) => {
            let axes: Vec<usize> = (2..x.rank()).collect();
            (normalized(x, &axes, op.epsilon), &|vector| per_channel(vector, x))
        }
        Op::GroupNormalization(op) => {
            let y = normalized(op.split(x), &[2], op.epsilon).reshape_like(x);
            (y, &|vector| op.spread(vector, x))
        }
        _ => return Ok(None),
    };
    let scaled = y * along(scale);
    Ok(Some(bias.map_or(scaled, |bias| scaled + along(bias))))
}

/// The cotangent of `x` where `g` is that of `(x - mean) · inverse`, and both depend on `x`.
fn normalized_cotangent<'b>(g: Var<'b>, normalized: Var<'b>, inverse: Var<'b>, axes: &[usize]) -> Var<'b> {
    let mean = |value: Var<'b>| value.reduce_mean(axes.iter().copied(), true);
    (g - mean(g) - normalized * mean(g * normalized)) * inverse
}

#[cfg(test)]
fn x(shape: &[usize]) -> SampleInput {
    floats(-1.0, 1.0).input(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::OpDef;
    use crate::tensor::Tensor;

    pub(super) fn squares(shape: &[usize], first: i64) -> Tensor {
        let count = shape.iter().product::<usize>() as i64;
        let values = (first..first + count).map(|value| (value * value) as f64).collect();
        Tensor::from_shape_vec(shape, values).unwrap()
    }

    pub(super) fn assert_gives(op: &dyn OpDef, x: &[Tensor], expected: &[&[f64]]) {
        let x: Vec<Option<&Tensor>> = x.iter().map(Some).collect();
        let y = op.run(&Inputs(&x)).unwrap();
        assert_eq!(y.len(), expected.len());
        for (y, expected) in y.iter().zip(expected) {
            let y = y.to_f64();
            assert_eq!(y.len(), expected.len());
            assert!(y.iter().zip(*expected).all(|(y, e)| (y - e).abs() < 2e-6), "{y} {expected:?}");
        }
    }

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn normalizations_of_channels() {
        let vector = |values: &[f64]| Tensor::vector(values.iter().copied());
        let bn = BatchNormalization { epsilon: Real(0.01) };
        let x = Tensor::from_shape_vec(&[1, 2, 2], vec![0.0, 1.0, 2.0, 3.0]).unwrap();
        let vectors = [[1.0, 2.0], [1.0, 0.0], [0.5, 1.0], [0.25, 4.0]].map(|values| vector(&values));
        let [scale, bias, mean, var] = vectors;
        assert_gives(
            &bn,
            &[x, scale.clone(), bias.clone(), mean, var],
            &[&[0.0194193, 1.9805807, 0.9987524, 1.9975047]],
        );
        assert_gives(
            &InstanceNormalization { epsilon: Real(0.5) },
            &[squares(&[1, 2, 3], 0), scale.clone(), bias.clone()],
            &[&[0.0946425, 0.6378571, 2.2675004, -2.3278087, -0.202418, 2.5302272]],
        );
        let group = |scale_per_group| GroupNormalization { groups: 2, epsilon: Real(0.5), scale_per_group };
        assert_gives(
            &group(true),
            &[squares(&[1, 4, 2], 0), scale, bias],
            &[&[0.0198039, 0.2998599, 1.14002801, 2.540308, -2.5082514, -1.0518475, 0.728202, 2.8318968]],
        );
        let (scale, bias) = (vector(&[1.0, 2.0, 3.0, 4.0]), vector(&[1.0, 0.0, -1.0, 0.0]));
        assert_gives(
            &group(false),
            &[squares(&[1, 4, 2], 0), scale, bias],
            &[&[0.0198039, 0.2998599, 0.280056, 3.0806162, -4.7623773, -2.5777712, 1.4564041, 5.6637936]],
        );
    }
}
