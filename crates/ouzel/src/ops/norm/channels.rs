//! Normalization of the channels of each sample, one by one or in groups.

#[cfg(test)]
use super::x;
use super::{
    check_channels, emit_statistics, normalized_cotangent, over_channels, per_channel, read_epsilon,
    statistics,
};
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::Dim;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::Sample;
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef, Real};
use crate::ops::convolution::elements;
use crate::ops::layout::Reshape;
use crate::ops::window::output_shapes;
use crate::tensor::{Array, Float, Tensor, each_float};

/// Normalizes each `group` channels of each sample together; each `shared` channels have one scale and bias.
fn normalize_channels<T: Float>(
    x: &Array<T>,
    inputs: &Inputs<Tensor>,
    shape: &[usize],
    group: usize,
    shared: usize,
    epsilon: f64,
) -> Result<Tensor> {
    let scale = inputs.get(1)?.array::<T>()?;
    let bias = inputs.get(2)?.array::<T>()?;
    let plane: usize = shape[2..].iter().product();
    let mut y = elements(x).slice().to_vec();
    for (index, values) in y.chunks_exact_mut((group * plane).max(1)).enumerate() {
        let (mean, inverse) = statistics(values, epsilon);
        for (channel, values) in values.chunks_exact_mut(plane.max(1)).enumerate() {
            let place = (index * group + channel) % shape[1] / shared;
            let (scale, bias) = (scale[place], bias[place]);
            values.iter_mut().for_each(|value| *value = (*value - mean) * inverse * scale + bias);
        }
    }
    Tensor::from_shape_vec(shape, y)
}

/// `y = scale · (x - mean) / √(var + epsilon) + bias`, with the statistics of each channel of each sample.
/// ONNX 1, 6, 22.
///
/// Inputs: `x` `[N, C, …]`, and `scale`, `bias` `[C]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct InstanceNormalization {
    /// Added to the variance.
    pub epsilon: Real,
}

impl OpDef for InstanceNormalization {
    fn name(&self) -> &str {
        "InstanceNormalization"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        if x.len() != 3 || x.get(0)?.rank() < 3 {
            bail!(shape, "expected an input with spatial axes, scale and bias, found {} inputs", x.len());
        }
        Ok(vec![check_channels(x, 1)?])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        Ok(vec![each_float!(x.get(0)?, first => normalize_channels(first, x, &shape, 1, 1, self.epsilon.0)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, scale, g) = (back.x(0), back.x(1), back.g(0));
        let axes: Vec<usize> = (2..x.rank()).collect();
        let (mean, inverse) = emit_statistics(x, &axes, self.epsilon.0);
        let normalized = (x - mean) * inverse;
        Ok(back.each_wanted(|index| match index {
            0 => normalized_cotangent(g * per_channel(scale, x), normalized, inverse, &axes),
            1 => over_channels(g * normalized),
            _ => over_channels(g),
        }))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.float("epsilon", self.epsilon.0);
        Ok(())
    }
}

impl Listed for InstanceNormalization {
    const ONNX: &'static [&'static str] = &["InstanceNormalization"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        node.ignore("consumed_inputs");
        Ok(Self { epsilon: read_epsilon(node)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let inputs = [x(&[2, 3, 4, 2]), x(&[3]), x(&[3])];
        vec![Sample::new(InstanceNormalization { epsilon: Real(0.1) }, inputs)]
    }
}

/// `y = scale · (x - mean) / √(var + epsilon) + bias`, with the statistics of each group of channels of each sample.
/// ONNX 18, 21.
///
/// Inputs: `x` `[N, C, …]`, `scale` and `bias` `[C]`, in opset 18 `[groups]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupNormalization {
    /// The number of groups that the channels divide into.
    pub groups: i64,
    /// Added to the variance.
    pub epsilon: Real,
    /// Scale and bias have an element for each group instead of each channel, as in opset 18.
    pub scale_per_group: bool,
}

impl GroupNormalization {
    /// `[N, groups, …]` from `[N, C, …]`.
    pub(super) fn split<'b>(&self, x: Var<'b>) -> Var<'b> {
        let target = x.builder().integers([0, self.groups, -1]);
        x.builder().apply(Reshape { allow_zero: false }, &[x, target])
    }

    /// A value with an element for each group or channel, so that it broadcasts along the axes of `like`.
    pub(super) fn spread<'b>(&self, vector: Var<'b>, like: Var<'b>) -> Var<'b> {
        if !self.scale_per_group {
            return per_channel(vector, like);
        }
        // [groups, C/groups] and then one element for each channel.
        let channels = like.shape()[1].known().unwrap_or(self.groups);
        let each = vector.builder().scalar(1.0, vector.dtype());
        let shape = vector.builder().integers([self.groups, channels / self.groups]);
        let each = vector.builder().apply(crate::ops::layout::Expand, &[each, shape]);
        per_channel((vector.unsqueeze([1]) * each).reshape([channels]), like)
    }

    /// The sum over all that one element of scale or bias belongs to.
    fn gather<'b>(&self, value: Var<'b>) -> Var<'b> {
        match self.scale_per_group {
            true => self.split(value).reduce_sum([0, 2], false),
            false => over_channels(value),
        }
    }
}

impl OpDef for GroupNormalization {
    fn name(&self) -> &str {
        "GroupNormalization"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let first = x.get(0)?;
        if x.len() != 3 || first.rank() < 2 || !first.dtype.is_float() {
            bail!(
                shape,
                "expected a floating point input, scale and bias, found {first} and {} inputs",
                x.len()
            );
        }
        let Some(channels) = first.shape[1].known() else {
            bail!(unsupported, "the number of channels must be known, found {first}");
        };
        if self.groups < 1 || channels % self.groups != 0 {
            bail!(shape, "{channels} channels do not divide into {} groups", self.groups);
        }
        let expected = if self.scale_per_group { self.groups } else { channels };
        for vector in [x.get(1)?, x.get(2)?] {
            if vector.dtype != first.dtype || vector.shape != [Dim::from(expected)] {
                bail!(shape, "expected scale and bias of {expected} elements, found {vector}");
            }
        }
        Ok(vec![Fact::new(first.dtype, first.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        let channels = shape[1] / self.groups as usize;
        let shared = if self.scale_per_group { channels } else { 1 };
        let epsilon = self.epsilon.0;
        Ok(vec![each_float!(x.get(0)?, first => {
            normalize_channels(first, x, &shape, channels, shared, epsilon)?
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, scale, g) = (back.x(0), back.x(1), back.g(0));
        let split = self.split(x);
        let (mean, inverse) = emit_statistics(split, &[2], self.epsilon.0);
        let normalized = (split - mean) * inverse;
        Ok(back.each_wanted(|index| match index {
            0 => {
                let g = self.split(g * self.spread(scale, x));
                normalized_cotangent(g, normalized, inverse, &[2]).reshape_like(x)
            }
            1 => self.gather(g * normalized.reshape_like(x)),
            _ => self.gather(g),
        }))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("num_groups", self.groups);
        node.float("epsilon", self.epsilon.0);
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        if self.scale_per_group == (node.opset() < 21) && node.opset() >= 18 {
            return Ok(None);
        }
        let (x, scale, bias) = (node.x(0), node.x(1), node.x(2));
        let split = self.split(x);
        let (mean, inverse) = emit_statistics(split, &[2], self.epsilon.0);
        let normalized = ((split - mean) * inverse).reshape_like(x);
        node.one(normalized * self.spread(scale, x) + self.spread(bias, x))
    }
}

impl Listed for GroupNormalization {
    const ONNX: &'static [&'static str] = &["GroupNormalization"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        node.ignore("stash_type");
        let Some(groups) = node.int("num_groups")? else {
            bail!(model, "the attribute 'num_groups' is missing")
        };
        Ok(Self { groups, epsilon: read_epsilon(node)?, scale_per_group: node.opset() < 21 })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let op =
            |scale_per_group: bool| GroupNormalization { groups: 3, epsilon: Real(0.1), scale_per_group };
        vec![
            Sample::new(op(false), [x(&[2, 6, 4, 2]), x(&[6]), x(&[6])]),
            Sample::new(op(true), [x(&[2, 6, 4, 2]), x(&[3]), x(&[3])]),
            Sample::new(op(false), [x(&[2, 6]), x(&[6]), x(&[6])]),
        ]
    }
}
