//! Networks in integers: quantization, what undoes it, and layers on quantized numbers.
//!
//! Rounding has no derivative, so the gradient passes straight through it ([`RoundThrough`]), and stops where a number
//! is clipped. Where quantized numbers are read again, what they were rounded from is read instead of the integers, so
//! that the gradient finds its way.

use super::{NodeReader, Result, ValueId, bail};
use crate::builder::Var;
use crate::graph::{Graph, Source};
use crate::op::{Op, resolve_axis};
use crate::ops::activation::Clip;
use crate::ops::convolution::Conv;
use crate::ops::quantize::{Format, RoundThrough, RoundTo};
use crate::ops::window::Window;
use crate::tensor::DType;

/// The least and the largest number of an element type.
fn bounds(dtype: DType) -> Option<(f64, f64)> {
    Some(match dtype {
        DType::I8 => (-128.0, 127.0),
        DType::U8 => (0.0, 255.0),
        DType::I16 => (-32768.0, 32767.0),
        DType::U16 => (0.0, 65535.0),
        DType::I32 => (f64::from(i32::MIN), f64::from(i32::MAX)),
        _ => return None,
    })
}

/// What numbers are quantized to.
#[derive(Clone, Copy)]
struct Target {
    dtype: DType,
    format: Option<Format>,
    saturate: bool,
}

impl Target {
    /// The type of the zero point, bytes if there is none.
    fn read(node: &NodeReader, zero_point: usize) -> Result<Self> {
        Self::of_code(node.declared(zero_point).unwrap_or(2), true)
    }

    fn of_code(code: i64, saturate: bool) -> Result<Self> {
        Ok(Self { dtype: crate::onnx::dtype_of_code(code)?, format: Format::of_code(code), saturate })
    }
}

/// A cast to a type that is held in a wider one. ONNX `Cast` 19, 21, 23.
pub(in crate::onnx) fn narrow_cast(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let Some(code) = node.int("to")? else { bail!(model, "the attribute 'to' is missing") };
    narrowed(node, code)
}

/// The same to the type of input 1. ONNX `CastLike` 19, 21, 23.
pub(in crate::onnx) fn narrow_cast_like(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let Some(code) = node.declared(1) else { bail!(model, "input 1 is missing") };
    narrowed(node, code)
}

fn narrowed(node: &mut NodeReader, code: i64) -> Result<Vec<ValueId>> {
    // Types of 16 bits have infinity, and always use it.
    let saturate = node.flag_or("saturate", true)? && !matches!(code, 10 | 16);
    let target = Target::of_code(code, saturate)?;
    node.build(|builder, x| {
        let x = input(x, 0)?;
        let wide = if x.dtype().is_float() { x } else { x.cast(DType::F32) };
        let rounded = match target.format {
            Some(format) => builder.apply(RoundTo { format, saturate }, &[wide]),
            None => wide,
        };
        Ok(vec![rounded.cast(target.dtype)])
    })
}

/// How scales and zero points lie along the axes of a tensor.
#[derive(Clone, Copy)]
struct Grid {
    axis: i64,
    block: i64,
}

impl Grid {
    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { axis: node.int_or("axis", 1)?, block: node.int_or("block_size", 0)? })
    }

    /// A scale or zero point in a shape that broadcasts to that of `x`.
    fn spread<'b>(&self, parameter: Var<'b>, x: Var<'b>) -> Result<Var<'b>> {
        let (shape, rank) = (parameter.shape(), x.rank());
        if shape.is_empty() || (shape.len() == 1 && shape[0].is(1)) {
            return Ok(parameter.reshape([]));
        }
        let axis = resolve_axis(self.axis, rank)?;
        if shape.len() == 1 && self.block == 0 {
            return Ok(parameter.unsqueeze((0..rank).filter(|&other| other != axis)));
        }
        let (Some(blocks), Some(length)) = (shape.get(axis).and_then(|d| d.known()), x.shape()[axis].known())
        else {
            bail!(unsupported, "the axis of the blocks must be of known length");
        };
        if shape.len() != rank || self.block < 1 || blocks * self.block < length {
            bail!(shape, "scales {} do not fit {} in blocks of {}", parameter.fact(), x.fact(), self.block);
        }
        Ok(parameter.gather(axis, (0..length).map(|place| place / self.block).collect()))
    }
}

/// Quantized numbers as floating point ones: where they were cast to integers, what was cast.
fn as_floats(x: Var<'_>, dtype: DType) -> Var<'_> {
    let source = x.id().ok().and_then(|id| {
        let graph = x.builder().graph();
        before_cast(&graph, id).filter(|&source| graph.fact(source).dtype == dtype)
    });
    match source {
        Some(source) => x.builder().var(source),
        None => x.cast(dtype),
    }
}

/// What a value was cast from, if that had been rounded and clipped already.
fn before_cast(graph: &Graph, id: ValueId) -> Option<ValueId> {
    let Source::Node(node) = graph.value(id).source else { return None };
    let node = graph.node(node);
    let source = node.inputs.first().copied().flatten()?;
    let clip = graph.node(graph.producer(source)?);
    let is_quantized =
        matches!((&node.op, &clip.op), (Op::Cast(_), Op::Clip(_))) && bounds(graph.fact(id).dtype).is_some();
    is_quantized.then_some(source)
}

/// The zero point as floating point numbers, unless it is left out.
fn zero<'b>(point: Option<Var<'b>>, grid: Grid, x: Var<'b>, dtype: DType) -> Result<Option<Var<'b>>> {
    point.map(|point| grid.spread(point.cast(dtype), x)).transpose()
}

/// `clip(round(x) + zero)` as integers of a type.
fn rounded<'b>(x: Var<'b>, point: Option<Var<'b>>, grid: Grid, to: Target) -> Result<Var<'b>> {
    let builder = x.builder();
    let point = zero(point, grid, x, x.dtype())?;
    let whole_numbers = to.format.and_then(Format::integers).or(bounds(to.dtype));
    let (low, high) = match (whole_numbers, to.format) {
        (Some(bounds), _) => bounds,
        (None, Some(format)) => {
            let shifted = point.map_or(x, |point| x + point);
            return Ok(builder.apply(RoundTo { format, saturate: to.saturate }, &[shifted]));
        }
        (None, None) => bail!(unsupported, "numbers cannot be quantized to {}", to.dtype),
    };
    let whole = builder.apply(RoundThrough, &[x]);
    let shifted = point.map_or(whole, |point| whole + point);
    let clipped = builder.apply(Clip, &[shifted, x.scalar_like(low), x.scalar_like(high)]);
    Ok(clipped.cast(to.dtype))
}

fn input<'b>(x: &[Option<Var<'b>>], index: usize) -> Result<Var<'b>> {
    match x.get(index).copied().flatten() {
        Some(x) => Ok(x),
        None => bail!(model, "input {index} is missing"),
    }
}

fn optional<'b>(x: &[Option<Var<'b>>], index: usize) -> Option<Var<'b>> {
    x.get(index).copied().flatten()
}

/// `y = saturate(round(x / scale) + zero_point)`. ONNX `QuantizeLinear` 10, 13, 19, 21, 23.
pub(super) fn quantize_linear(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let grid = Grid::read(node)?;
    node.ignore("precision");
    let saturate = node.flag_or("saturate", true)?;
    let code = node.int_or("output_dtype", 0)?;
    let to = match (node.declared(2), code) {
        (Some(code), _) | (None, code @ 1..) => Target::of_code(code, saturate)?,
        _ => Target::of_code(2, saturate)?,
    };
    node.build(|_, x| {
        let (value, scale) = (input(x, 0)?, input(x, 1)?);
        let wide = value.cast(scale.dtype());
        let scaled = wide / grid.spread(scale, wide)?;
        Ok(vec![rounded(scaled, optional(x, 2), grid, to)?])
    })
}

/// `y = (x - zero_point) · scale`. ONNX `DequantizeLinear` 10, 13, 19, 21, 23.
pub(super) fn dequantize_linear(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let grid = Grid::read(node)?;
    node.ignore("output_dtype");
    node.build(|_, x| {
        let (value, scale) = (input(x, 0)?, input(x, 1)?);
        let wide = as_floats(value, scale.dtype());
        let shifted = match zero(optional(x, 2), grid, wide, scale.dtype())? {
            Some(point) => wide - point,
            None => wide,
        };
        Ok(vec![shifted * grid.spread(scale, wide)?])
    })
}

/// Scale and zero point follow from the numbers. ONNX `DynamicQuantizeLinear` 11.
pub(super) fn dynamic_quantize_linear(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let to = Target::of_code(2, true)?;
    node.build(|builder, x| {
        let x = input(x, 0)?;
        let low = (-(-x).reduce_max(0..x.rank(), false)).minimum(0.0);
        let high = x.reduce_max(0..x.rank(), false).maximum(0.0);
        let scale = (high - low) / 255.0;
        let point = builder.apply(RoundThrough, &[-low / scale]);
        let point = builder.apply(Clip, &[point, x.scalar_like(0.0), x.scalar_like(255.0)]);
        let bytes = point.cast(DType::U8);
        let y = rounded(x / scale, Some(bytes), Grid { axis: 0, block: 0 }, to)?;
        Ok(vec![y, scale, bytes])
    })
}

/// The zero point of a matrix: one for all, one a row, or one a column.
fn matrix_zero<'b>(
    point: Option<Var<'b>>,
    x: Var<'b>,
    axis_from_end: usize,
    dtype: DType,
) -> Result<Option<Var<'b>>> {
    let rank = x.rank();
    let axis = rank.saturating_sub(axis_from_end) as i64;
    match point {
        Some(point) if point.rank() > 1 => Ok(Some(point.cast(dtype))),
        other => zero(other, Grid { axis, block: 0 }, x, dtype),
    }
}

fn shifted<'b>(x: Var<'b>, point: Option<Var<'b>>) -> Var<'b> {
    match point {
        Some(point) => x - point,
        None => x,
    }
}

/// The product of two matrices of bytes. ONNX `MatMulInteger` 10.
///
/// In float64, which holds every sum exactly.
pub(super) fn matmul_integer(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    node.build(|_, x| {
        let (a, b) = (input(x, 0)?.cast(DType::F64), input(x, 1)?.cast(DType::F64));
        let a = shifted(a, matrix_zero(optional(x, 2), a, 2, DType::F64)?);
        let b = shifted(b, matrix_zero(optional(x, 3), b, 1, DType::F64)?);
        Ok(vec![a.matmul(b).cast(DType::I32)])
    })
}

/// A convolution of bytes. ONNX `ConvInteger` 10.
pub(super) fn conv_integer(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let op = read_conv(node)?;
    node.build(|builder, x| {
        let (value, weight) = (input(x, 0)?.cast(DType::F64), input(x, 1)?.cast(DType::F64));
        let grid = Grid { axis: 0, block: 0 };
        let value = shifted(value, zero(optional(x, 2), grid, value, DType::F64)?);
        let weight = shifted(weight, zero(optional(x, 3), grid, weight, DType::F64)?);
        Ok(vec![builder.apply(op, &[value, weight]).cast(DType::I32)])
    })
}

fn read_conv(node: &mut NodeReader) -> Result<Conv> {
    node.ignore("kernel_shape");
    Ok(Conv { window: Window::read(node)?, group: node.int_or("group", 1)? })
}

/// The product of two quantized matrices, quantized. ONNX `QLinearMatMul` 10, 21.
pub(super) fn qlinear_matmul(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let to = Target::read(node, 7)?;
    node.build(|_, x| {
        let (a_scale, b_scale, y_scale) = (input(x, 1)?, input(x, 4)?, input(x, 6)?);
        let dtype = a_scale.dtype();
        let (a, b) = (as_floats(input(x, 0)?, dtype), as_floats(input(x, 3)?, dtype));
        let rows = Grid { axis: -2, block: 0 };
        let columns = Grid { axis: -1, block: 0 };
        let a = shifted(a, matrix_zero(optional(x, 2), a, 2, dtype)?) * rows.spread(a_scale, a)?;
        let b = shifted(b, matrix_zero(optional(x, 5), b, 1, dtype)?) * columns.spread(b_scale, b)?;
        let y = a.matmul(b);
        let scaled = y / rows.spread(y_scale, y)?;
        Ok(vec![rounded(scaled, optional(x, 7), rows, to)?])
    })
}

/// A convolution of quantized numbers, quantized. ONNX `QLinearConv` 10.
pub(super) fn qlinear_conv(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let op = read_conv(node)?;
    let to = Target::read(node, 7)?;
    node.build(|builder, x| {
        let (x_scale, w_scale, y_scale) = (input(x, 1)?, input(x, 4)?, input(x, 6)?);
        let dtype = x_scale.dtype();
        let (value, weight) = (as_floats(input(x, 0)?, dtype), input(x, 3)?.cast(dtype));
        let filters = Grid { axis: 0, block: 0 };
        let value = shifted(value, zero(optional(x, 2), filters, value, dtype)?);
        let weight = shifted(weight, zero(optional(x, 5), filters, weight, dtype)?);
        // The bias is in units of both scales.
        let mut inputs = vec![value, weight];
        inputs.extend(optional(x, 8).map(|bias| bias.cast(dtype)));
        let y = builder.apply(op, &inputs);
        let channels = Grid { axis: 1, block: 0 };
        let scaled = y * channels.spread(w_scale, y)? * (x_scale.reshape([]) / y_scale.reshape([]));
        Ok(vec![rounded(scaled, optional(x, 7), channels, to)?])
    })
}
