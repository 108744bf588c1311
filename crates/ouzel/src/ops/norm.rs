//! Normalization: subtract a mean, divide by a deviation, scale and shift.

use super::convolution::elements;
use super::layout::{Reshape, resolve_axes};
use super::pool::elements_per;
use super::window::output_shapes;
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::Dim;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, SampleInput, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter, known_length};
use crate::op::{Inputs, Listed, Op, OpDef, Real, resolve_axis};
use crate::ops::convolution::Conv;
use crate::ops::window::Window;
use crate::tensor::{Array, Float, Tensor, each_float};
use ndarray::{Axis, IxDyn};

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

#[cfg(test)]
fn x(shape: &[usize]) -> SampleInput {
    floats(-1.0, 1.0).input(shape)
}

/// `y = scale · (x - mean) / √(var + epsilon) + bias`, with statistics over the axes from `axis` on. ONNX 17.
///
/// Inputs: `x`, `scale`, optional `bias`; the last two broadcast to `x`. Outputs: `y`, the mean, and
/// `1 / √(var + epsilon)`, the latter two with length 1 on the normalized axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayerNormalization {
    /// The first axis that is normalized; negative counts from the end.
    pub axis: i64,
    /// Added to the variance.
    pub epsilon: Real,
}

impl OpDef for LayerNormalization {
    fn name(&self) -> &str {
        "LayerNormalization"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let first = x.get(0)?;
        let axis = resolve_axis(self.axis, first.rank())?;
        let scale = x.get(1)?;
        for other in [Some(scale), x.optional(2)].into_iter().flatten() {
            let fits = other.dtype == first.dtype
                && other.rank() <= first.rank()
                && other
                    .shape
                    .iter()
                    .rev()
                    .zip(first.shape.iter().rev())
                    .all(|(a, b)| a.is(1) || a.known().is_none() || b.known().is_none() || a == b);
            if !fits || !first.dtype.is_float() {
                bail!(
                    shape,
                    "expected floating point scale and bias that broadcast to {first}, found {other}"
                );
            }
        }
        let mut reduced = first.shape.clone();
        reduced[axis..].fill(1.into());
        let reduced = Fact::new(first.dtype, reduced);
        Ok(vec![Fact::new(first.dtype, first.shape.clone()), reduced.clone(), reduced])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn run<T: Float>(
            op: &LayerNormalization,
            x: &Array<T>,
            inputs: &Inputs<Tensor>,
            shapes: &[Vec<usize>],
        ) -> Result<Vec<Tensor>> {
            let axis = resolve_axis(op.axis, x.ndim())?;
            let count: usize = x.shape()[axis..].iter().product();
            let mut normalized = elements(x).slice().to_vec();
            let (mut means, mut inverses) = (Vec::new(), Vec::new());
            for values in normalized.chunks_exact_mut(count.max(1)) {
                let (mean, inverse) = statistics(values, op.epsilon.0);
                values.iter_mut().for_each(|value| *value = (*value - mean) * inverse);
                means.push(mean);
                inverses.push(inverse);
            }
            let mut y = Tensor::from_shape_vec(&shapes[0], normalized)?;
            y = super::broadcast::zip(y.array::<T>()?, inputs.get(1)?.array::<T>()?, &|y, scale| y * scale)?;
            if let Some(bias) = inputs.optional(2) {
                y = super::broadcast::zip(y.array::<T>()?, bias.array::<T>()?, &|y, bias| y + bias)?;
            }
            let statistics = |values: Vec<T>| Tensor::from_shape_vec(&shapes[1], values);
            Ok(vec![y, statistics(means)?, statistics(inverses)?])
        }
        let shapes = output_shapes(self, x)?;
        each_float!(x.get(0)?, first => run(self, first, x, &shapes))
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, scale, mean, inverse) = (back.x(0), back.x(1), back.y(1), back.y(2));
        let axes: Vec<usize> = (resolve_axis(self.axis, x.rank())?..x.rank()).collect();
        let normalized = (x - mean) * inverse;
        Ok(back.each_wanted(|index| match index {
            0 => {
                let mut total = normalized_cotangent(back.g(0) * scale, normalized, inverse, &axes);
                if let Some(g) = back.optional_g(1) {
                    total = total + g / elements_per(x, mean);
                }
                if let Some(g) = back.optional_g(2) {
                    total = total - g / elements_per(x, mean) * normalized * inverse * inverse;
                }
                total
            }
            1 => back.g(0) * normalized,
            _ => back.g(0),
        }))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.axis);
        node.float("epsilon", self.epsilon.0);
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        if node.opset() >= 17 {
            return Ok(None);
        }
        let (x, scale) = (node.x(0), node.x(1));
        let axes: Vec<usize> = (resolve_axis(self.axis, x.rank())?..x.rank()).collect();
        let (mean, inverse) = emit_statistics(x, &axes, self.epsilon.0);
        let scaled = (x - mean) * inverse * scale;
        Ok(Some(vec![node.optional_x(2).map_or(scaled, |bias| scaled + bias), mean, inverse]))
    }
}

impl Listed for LayerNormalization {
    const ONNX: &'static [&'static str] = &["LayerNormalization"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        // The type that the statistics are computed in; here they are never coarser than the input.
        node.ignore("stash_type");
        Ok(Self { axis: node.int_or("axis", -1)?, epsilon: read_epsilon(node)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let op = |axis: i64| LayerNormalization { axis, epsilon: Real(0.1) };
        vec![
            Sample::new(op(-1), [x(&[2, 3, 4]), x(&[4]), x(&[4])]),
            Sample::new(op(1), [x(&[2, 3, 4]), x(&[3, 4])]),
            Sample::new(op(-1), [x(&[2, 3, 4]), x(&[3, 1]), x(&[1])]),
        ]
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
    fn split<'b>(&self, x: Var<'b>) -> Var<'b> {
        let target = x.builder().integers([0, self.groups, -1]);
        x.builder().apply(Reshape { allow_zero: false }, &[x, target])
    }

    /// A value with an element for each group or channel, so that it broadcasts along the axes of `like`.
    fn spread<'b>(&self, vector: Var<'b>, like: Var<'b>) -> Var<'b> {
        if !self.scale_per_group {
            return per_channel(vector, like);
        }
        // [groups, C/groups] and then one element for each channel.
        let channels = like.shape()[1].known().unwrap_or(self.groups);
        let each = vector.builder().scalar(1.0, vector.dtype());
        let shape = vector.builder().integers([self.groups, channels / self.groups]);
        let each = vector.builder().apply(super::layout::Expand, &[each, shape]);
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

/// `y[c] = x[c] / (bias + alpha/size · Σ x[i]²)^beta`, summed over the `size` channels around `c`. ONNX 1, 13.
///
/// Of an even number of channels one more lies after `c` than before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::upper_case_acronyms, reason = "the ONNX name")]
pub struct LRN {
    /// The weight of the sum.
    pub alpha: Real,
    /// The exponent.
    pub beta: Real,
    /// Added to the sum.
    pub bias: Real,
    /// The number of channels that are summed over.
    pub size: i64,
}

impl LRN {
    fn window(&self) -> ChannelWindowSum {
        ChannelWindowSum { before: (self.size - 1) / 2, after: self.size / 2 }
    }
}

impl OpDef for LRN {
    fn name(&self) -> &str {
        "LRN"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        if self.size < 1 {
            bail!(model, "attribute 'size': expected a positive number, found {}", self.size);
        }
        self.window().infer(x)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        output_shapes(self, x)?;
        Ok(vec![each_float!(x.get(0)?, x => {
            let sums = self.window().sum(&x.mapv(|x| x * x));
            let scale = self.alpha.0 / self.size as f64;
            let divide = |x: &mut _, sum: &_| *x = divided(*x, (self.bias.0 + scale * Float::wide(*sum)).powf(self.beta.0));
            let mut y = x.to_owned();
            ndarray::Zip::from(&mut y).and(&sums).for_each(divide);
            y.into()
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, g, window) = (back.x(0), back.g(0), self.window());
        let transposed = ChannelWindowSum { before: window.after, after: window.before };
        let sum = |op: ChannelWindowSum, value: Var<'b>| back.builder().apply(op, &[value]);
        let scale = self.alpha.0 / self.size as f64;
        let base = sum(window, x * x) * scale + self.bias.0;
        let share = sum(transposed, g * x * base.powf(-self.beta.0 - 1.0));
        Ok(back.only_first(g * base.powf(-self.beta.0) - x * share * (2.0 * scale * self.beta.0)))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.float("alpha", self.alpha.0);
        node.float("beta", self.beta.0);
        node.float("bias", self.bias.0);
        node.int("size", self.size);
        Ok(())
    }
}

fn divided<T: Float>(x: T, by: f64) -> T {
    T::of(x.wide() / by)
}

impl Listed for LRN {
    const ONNX: &'static [&'static str] = &["LRN"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        let Some(size) = node.int("size")? else { bail!(model, "the attribute 'size' is missing") };
        Ok(Self {
            alpha: Real(node.float_or("alpha", 1e-4f32.into())?),
            beta: Real(node.float_or("beta", 0.75)?),
            bias: Real(node.float_or("bias", 1.0)?),
            size,
        })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let op = |size: i64| LRN { alpha: Real(0.5), beta: Real(0.75), bias: Real(1.5), size };
        vec![
            Sample::new(op(3), [x(&[2, 5, 2, 2])]),
            Sample::new(op(4), [x(&[2, 5, 2])]),
            Sample::new(op(20), [x(&[2, 3])]),
        ]
    }
}

/// `y[c] = Σ x[i]` over the channels from `c - before` to `c + after`, as far as they exist.
///
/// Private. The transpose is the same with `before` and `after` exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChannelWindowSum {
    /// The channels before the one that the sum belongs to.
    pub before: i64,
    /// The channels after it.
    pub after: i64,
}

impl ChannelWindowSum {
    fn sum<T: Float>(&self, x: &ndarray::ArrayD<T>) -> ndarray::ArrayD<T> {
        let mut y = ndarray::ArrayD::zeros(IxDyn(x.shape()));
        let channels = x.shape()[1] as i64;
        for c in 0..channels {
            let first = c.saturating_sub(self.before).max(0);
            let last = c.saturating_add(self.after).min(channels - 1);
            let mut sum = y.index_axis_mut(Axis(1), c as usize);
            for other in first..=last {
                sum += &x.index_axis(Axis(1), other as usize);
            }
        }
        y
    }
}

impl OpDef for ChannelWindowSum {
    fn name(&self) -> &str {
        "ChannelWindowSum"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        if !x.dtype.is_float() || x.rank() < 2 {
            bail!(shape, "expected a floating point input with batch and channel axes, found {x}");
        }
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        output_shapes(self, x)?;
        Ok(vec![each_float!(x.get(0)?, x => self.sum(&x.to_owned()).into())])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let op = Self { before: self.after, after: self.before };
        Ok(back.only_first(back.builder().apply(op, &[back.g(0)])))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        // A convolution by ones along the channels.
        let (x, builder) = (node.x(0), node.builder());
        let channels = known_length(&x.shape()[1], 1)? as i64;
        let (before, after) = (self.before.min(channels), self.after.min(channels));
        let ones =
            Tensor::from(ndarray::ArrayD::from_elem(vec![1, 1, (before + after + 1) as usize, 1], 1.0f64));
        let window = Window::plain(2).with_pads([before, 0, after, 0]);
        let sums = builder.apply(
            Conv { window, group: 1 },
            &[
                builder.apply(Reshape { allow_zero: false }, &[x, builder.integers([0, 1, channels, -1])]),
                builder.constant(ones.cast(x.dtype())),
            ],
        );
        node.one(sums.reshape_like(x))
    }
}

impl Listed for ChannelWindowSum {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(unsupported, "ChannelWindowSum is not an ONNX op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(ChannelWindowSum { before: 1, after: 2 }, [x(&[2, 5, 2])])]
    }
}

/// `y = x / ‖x‖` with the 1-norm or 2-norm along one axis; where the norm is 0, `y` is 0. ONNX 1, 22.
///
/// The derivative is 0 where the norm is 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LpNormalization {
    /// The axis; negative counts from the end.
    pub axis: i64,
    /// 1 or 2.
    pub p: i64,
}

impl OpDef for LpNormalization {
    fn name(&self) -> &str {
        "LpNormalization"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        if !x.dtype.is_float() {
            bail!(shape, "expected floating point elements, found {x}");
        }
        if !matches!(self.p, 1 | 2) {
            bail!(model, "attribute 'p': expected 1 or 2, found {}", self.p);
        }
        resolve_axis(self.axis, x.rank())?;
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn run<T: Float>(x: &Array<T>, axis: usize, p: i64) -> Tensor {
            let mut y = x.to_owned();
            for mut lane in y.lanes_mut(Axis(axis)) {
                let norm = match p {
                    1 => lane.iter().map(|value| value.wide().abs()).sum::<f64>(),
                    _ => lane.iter().map(|value| value.wide().powi(2)).sum::<f64>().sqrt(),
                };
                lane.mapv_inplace(|value| if norm == 0.0 { T::zero() } else { T::of(value.wide() / norm) });
            }
            T::wrap(y.into_shared())
        }
        output_shapes(self, x)?;
        let axis = resolve_axis(self.axis, x.get(0)?.shape().len())?;
        Ok(vec![each_float!(x.get(0)?, x => run(x, axis, self.p))])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, y, g) = (back.x(0), back.y(0), back.g(0));
        let axis = resolve_axis(self.axis, x.rank())?;
        let along = (g * y).reduce_sum([axis], true);
        let (norm, slope) = match self.p {
            1 => (x.abs().reduce_sum([axis], true), x.sign()),
            _ => ((x * x).reduce_sum([axis], true).sqrt(), y),
        };
        Ok(back.only_first(((g - slope * along) / norm).select_where(norm.greater(0.0))))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.axis);
        node.int("p", self.p);
        Ok(())
    }
}

impl Listed for LpNormalization {
    const ONNX: &'static [&'static str] = &["LpNormalization"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { axis: node.int_or("axis", -1)?, p: node.int_or("p", 2)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).away_from(0.0, 0.1).input(&[2, 3, 4]);
        let op = |axis: i64, p: i64| LpNormalization { axis, p };
        vec![Sample::new(op(-1, 1), [x()]), Sample::new(op(1, 2), [x()])]
    }
}

/// Added to the deviation by [`MeanVarianceNormalization`], as ONNX defines it.
const MVN_EPSILON: f64 = 1e-9;

/// `y = (x - mean) / (√var + 1e-9)` over axes. ONNX 9, 13.
///
/// Where the variance is 0 its derivative is 0. With ONNX's default axes 0, 2, 3 samples of a batch see each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MeanVarianceNormalization {
    /// The axes that the statistics are taken over.
    pub axes: Vec<i64>,
}

impl OpDef for MeanVarianceNormalization {
    fn name(&self) -> &str {
        "MeanVarianceNormalization"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        if !x.dtype.is_float() {
            bail!(shape, "expected floating point elements, found {x}");
        }
        resolve_axes(&self.axes, x.rank())?;
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn run<T: Float>(x: &Array<T>, axes: &[usize]) -> Result<Tensor> {
            let mean_over = |mut values: ndarray::ArrayD<T>| {
                for &axis in axes {
                    let count = T::of(values.shape()[axis].max(1) as f64);
                    values = (values.sum_axis(Axis(axis)) / count).insert_axis(Axis(axis));
                }
                values
            };
            let centered = x.to_owned() - mean_over(x.to_owned());
            let var = mean_over(centered.mapv(|value| value * value));
            Ok(T::wrap((centered / var.mapv(|var| var.sqrt() + T::of(MVN_EPSILON))).into_shared()))
        }
        output_shapes(self, x)?;
        let axes = resolve_axes(&self.axes, x.get(0)?.shape().len())?;
        Ok(vec![each_float!(x.get(0)?, x => run(x, &axes)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, g) = (back.x(0), back.g(0));
        let axes = resolve_axes(&self.axes, x.rank())?;
        let mean = |value: Var<'b>| value.reduce_mean(axes.iter().copied(), true);
        let centered = x - mean(x);
        let deviation = mean(centered * centered).sqrt();
        let divisor = deviation + MVN_EPSILON;
        let bent = centered * mean(g * centered) / (divisor * divisor * deviation);
        let straight = (g - mean(g)) / divisor;
        Ok(back.only_first(straight - bent.select_where(deviation.greater(0.0))))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.ints("axes", &self.axes);
        Ok(())
    }
}

impl Listed for MeanVarianceNormalization {
    const ONNX: &'static [&'static str] = &["MeanVarianceNormalization"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { axes: node.ints("axes")?.unwrap_or_else(|| vec![0, 2, 3]) })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let op = |axes: &[i64]| MeanVarianceNormalization { axes: axes.to_vec() };
        vec![Sample::new(op(&[0, 2, 3]), [x(&[2, 3, 2, 2])]), Sample::new(op(&[-1]), [x(&[2, 3, 4])])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squares(shape: &[usize], first: i64) -> Tensor {
        let count = shape.iter().product::<usize>() as i64;
        let values = (first..first + count).map(|value| (value * value) as f64).collect();
        Tensor::from_shape_vec(shape, values).unwrap()
    }

    fn assert_gives(op: &dyn OpDef, x: &[Tensor], expected: &[&[f64]]) {
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

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn layer_normalization_gives_its_statistics() {
        let inputs = [squares(&[2, 3], 0), Tensor::vector([1.0, 2.0, 3.0]), Tensor::vector([1.0, 0.0, -1.0])];
        assert_gives(
            &LayerNormalization { axis: -1, epsilon: Real(0.5) },
            &inputs,
            &[
                &[0.0946425, -0.7242859, 2.8025018, -0.1639044, -0.202418, 2.7953408],
                &[1.6666666, 16.666666],
                &[0.5432145, 0.1518136],
            ],
        );
    }

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn lrn_looks_at_the_channels_around() {
        let x = Tensor::from_shape_vec(&[1, 5, 1, 1], vec![-1.0, 0.0, 1.0, 2.0, 3.0]).unwrap();
        let op = LRN { alpha: Real(0.5), beta: Real(0.75), bias: Real(1.0), size: 3 };
        assert_gives(&op, &[x], &[&[-0.8908199, 0.0, 0.6347006, 0.8107201, 1.2637742]]);
    }

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn vectors_of_norm_zero_stay_zero() {
        let x = Tensor::from_shape_vec(&[2, 3], vec![0.0, 0.0, 0.0, 3.0, -4.0, 0.0]).unwrap();
        let op = |p| LpNormalization { axis: 1, p };
        assert_gives(&op(2), std::slice::from_ref(&x), &[&[0.0, 0.0, 0.0, 0.6, -0.8, 0.0]]);
        assert_gives(&op(1), &[x], &[&[0.0, 0.0, 0.0, 0.4285714, -0.5714286, 0.0]]);
    }

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn mean_and_variance_over_batch_and_places() {
        let op = MeanVarianceNormalization { axes: vec![0, 2, 3] };
        assert_gives(
            &op,
            &[squares(&[1, 2, 2, 2], 0)],
            &[&[-1.0, -0.7142857, 0.1428571, 1.5714285, -1.2561834, -0.5267866, 0.3646984, 1.4182715]],
        );
    }
}
