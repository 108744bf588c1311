//! Ops that pick or replace single elements by index: whole index tuples, or one index for each element.

use super::gather::{check_indices, resolve_index};
use super::slice::{allocatable, check_shape, expressions, shape_input};
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::{Dim, display_shape};
use crate::error::{Context, Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter, known_length};
use crate::op::{Inputs, Listed, OpDef, Real, resolve_axis};
use crate::ops::layout::ConstantOfShape;
use crate::ops::select::Range as RangeOp;
use crate::tensor::{Array, DType, Element, Float, Tensor, each_dtype, each_float};
use ndarray::{Dimension, IxDyn, indices};
use std::ops::Range;

/// Zeros in the shape of a value.
fn zeros_like(x: Var<'_>) -> Var<'_> {
    x.scalar_like(0.0).expand_like(x)
}

/// For each element of `picked`, in row-major order, where it lies in the tensor of shape `shape`.
fn element_places(picked: &Array<i64>, shape: &[usize], axis: usize) -> Result<Vec<IxDyn>> {
    let fits = picked.ndim() == shape.len()
        && (0..shape.len()).all(|other| other == axis || picked.shape()[other] <= shape[other]);
    if !fits {
        bail!(
            shape,
            "indices of shape {:?} do not fit the shape {shape:?} along axis {axis}",
            picked.shape()
        );
    }
    indices(picked.raw_dim())
        .into_iter()
        .zip(picked.iter())
        .map(|(mut place, &index)| {
            place[axis] = resolve_index(index, shape[axis])?;
            Ok(place)
        })
        .collect()
}

/// `y[…, i, …] = x[…, indices[…, i, …], …]`: one index for each element of the output, along an axis.
///
/// Inputs `x, indices`. ONNX `GatherElements` 11, 13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatherElements {
    /// The axis; negative counts from the end.
    pub axis: i64,
}

/// Indices of any integer type as int64.
fn wide(indices: &Tensor) -> Result<Array<i64>> {
    if !indices.dtype().is_integer() {
        bail!(shape, "expected indices of an integer type, found {}", indices.dtype());
    }
    Ok(indices.cast(DType::I64).array::<i64>()?.clone())
}

impl OpDef for GatherElements {
    fn name(&self) -> &str {
        "GatherElements"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (x, indices) = (x.get(0)?, x.get(1)?);
        check_indices(indices)?;
        resolve_axis(self.axis, x.rank()).context(|| "attribute 'axis'")?;
        if indices.rank() != x.rank() {
            bail!(shape, "expected indices of rank {}, found {indices}", x.rank());
        }
        Ok(vec![Fact::new(x.dtype, indices.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn pick<T: Element>(x: &Array<T>, places: Vec<IxDyn>, shape: &[usize]) -> Result<Tensor> {
            Tensor::from_shape_vec(shape, places.into_iter().map(|place| x[place]).collect::<Vec<T>>())
        }
        let (x, indices) = (x.get(0)?, wide(x.get(1)?)?);
        let places = element_places(&indices, x.shape(), resolve_axis(self.axis, x.shape().len())?)?;
        Ok(vec![each_dtype!(x, x => pick(x, places, indices.shape())?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let op = ScatterElements { axis: self.axis, reduction: ScatterReduction::Add };
        let zeros = zeros_like(back.x(0));
        Ok(back.only_first(back.builder().apply(op, &[zeros, back.x(1), back.g(0)])))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.axis);
        Ok(())
    }
}

impl Listed for GatherElements {
    const ONNX: &'static [&'static str] = &["GatherElements"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { axis: node.int_or("axis", 0)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).input(&[2, 3]);
        let at =
            |shape: &[usize], values: &[i64]| Tensor::from_shape_vec(shape, values.to_vec()).unwrap().into();
        vec![
            Sample::new(GatherElements { axis: 1 }, [x(), at(&[2, 4], &[0, 2, -1, 0, 1, 1, -3, 2])]),
            Sample::new(GatherElements { axis: 0 }, [x(), at(&[1, 2], &[1, -2])]),
        ]
    }
}

/// What becomes of an element that is scattered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScatterReduction {
    /// The update replaces it. Several updates of one element are undefined, as in ONNX.
    None,
    /// The updates are added to it.
    Add,
    /// It is multiplied by the updates. No gradient.
    Mul,
    /// The largest of it and the updates. No gradient.
    Max,
    /// The smallest of it and the updates. No gradient.
    Min,
}

impl ScatterReduction {
    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(match node.string_or("reduction", "none")?.as_str() {
            "none" => Self::None,
            "add" => Self::Add,
            "mul" => Self::Mul,
            "max" => Self::Max,
            "min" => Self::Min,
            other => bail!(
                unsupported,
                "attribute 'reduction': expected none, add, mul, max or min, found '{other}'"
            ),
        })
    }

    fn write(self, node: &mut NodeWriter) -> Result<()> {
        let (name, version) = match self {
            Self::None => return Ok(()),
            Self::Add => ("add", 16),
            Self::Mul => ("mul", 16),
            Self::Max => ("max", 18),
            Self::Min => ("min", 18),
        };
        node.since(version, "a scatter that reduces, which this graph needs,")?;
        node.string("reduction", name);
        Ok(())
    }

    /// Changes the elements at `places`.
    fn run(self, x: &Tensor, places: &[IxDyn], updates: &Tensor) -> Result<Tensor> {
        macro_rules! scatter {
            ($x:expr, |$old:ident, $new:ident| $add:expr, $mul:expr) => {{
                let mut y = $x.to_owned();
                for (place, &$new) in places.iter().zip(updates.array()?.iter()) {
                    let $old = y[place.clone()];
                    y[place.clone()] = match self {
                        Self::None => $new,
                        Self::Add => $add,
                        Self::Mul => $mul,
                        Self::Max => {
                            if $new > $old {
                                $new
                            } else {
                                $old
                            }
                        }
                        Self::Min => {
                            if $new < $old {
                                $new
                            } else {
                                $old
                            }
                        }
                    };
                }
                Tensor::from(y)
            }};
        }
        Ok(match x {
            Tensor::F32(x) => scatter!(x, |old, new| old + new, old * new),
            Tensor::F64(x) => scatter!(x, |old, new| old + new, old * new),
            Tensor::I64(x) => scatter!(x, |old, new| old.wrapping_add(new), old.wrapping_mul(new)),
            Tensor::I32(x) => scatter!(x, |old, new| old.wrapping_add(new), old.wrapping_mul(new)),
            Tensor::I16(x) => scatter!(x, |old, new| old.wrapping_add(new), old.wrapping_mul(new)),
            Tensor::I8(x) => scatter!(x, |old, new| old.wrapping_add(new), old.wrapping_mul(new)),
            Tensor::U64(x) => scatter!(x, |old, new| old.wrapping_add(new), old.wrapping_mul(new)),
            Tensor::U32(x) => scatter!(x, |old, new| old.wrapping_add(new), old.wrapping_mul(new)),
            Tensor::U16(x) => scatter!(x, |old, new| old.wrapping_add(new), old.wrapping_mul(new)),
            Tensor::U8(x) => scatter!(x, |old, new| old.wrapping_add(new), old.wrapping_mul(new)),
            Tensor::Bool(x) => scatter!(x, |old, new| old | new, old & new),
        })
    }

    /// The cotangents of `x` and `updates`, where `gather` and `scatter` are the ops on the same indices.
    fn vjp<'b>(
        self,
        back: &Back<'b>,
        gather: impl Fn(Var<'b>) -> Var<'b>,
        replace: impl Fn(Var<'b>, Var<'b>) -> Var<'b>,
    ) -> Result<Cotangents<'b>> {
        let g = back.g(0);
        match self {
            Self::None | Self::Add => Ok(back.each_wanted(|index| match (index, self) {
                (0, Self::Add) => g,
                (0, _) => replace(g, zeros_like(back.x(2))),
                _ => gather(g),
            })),
            _ => bail!(unsupported, "with the reduction {self:?} the op has no gradient here"),
        }
    }
}

/// `y = x`, but `y[…, indices[…, i, …], …] = updates[…, i, …]` along an axis.
///
/// Inputs `x, indices, updates`. ONNX `ScatterElements` 11, 13, 16, 18 and `Scatter` 9.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScatterElements {
    /// The axis; negative counts from the end.
    pub axis: i64,
    /// What becomes of an element that is scattered to.
    pub reduction: ScatterReduction,
}

impl OpDef for ScatterElements {
    fn name(&self) -> &str {
        "ScatterElements"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (x, indices, updates) = (x.get(0)?, x.get(1)?, x.get(2)?);
        check_indices(indices)?;
        resolve_axis(self.axis, x.rank()).context(|| "attribute 'axis'")?;
        if indices.rank() != x.rank() || updates.rank() != x.rank() || updates.dtype != x.dtype {
            bail!(shape, "indices {indices} and updates {updates} do not fit {x}");
        }
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let (x, indices, updates) = (x.get(0)?, wide(x.get(1)?)?, x.get(2)?);
        check_shape(indices.shape(), updates.shape()).context(|| "the updates")?;
        let places = element_places(&indices, x.shape(), resolve_axis(self.axis, x.shape().len())?)?;
        Ok(vec![self.reduction.run(x, &places, updates)?])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (builder, indices) = (back.builder(), back.x(1));
        let replace = Self { reduction: ScatterReduction::None, ..self.clone() };
        self.reduction.vjp(
            back,
            |g| builder.apply(GatherElements { axis: self.axis }, &[g, indices]),
            |g, zeros| builder.apply(replace.clone(), &[g, indices, zeros]),
        )
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.axis);
        self.reduction.write(node)?;
        Ok(())
    }
}

impl Listed for ScatterElements {
    const ONNX: &'static [&'static str] = &["ScatterElements", "Scatter"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { axis: node.int_or("axis", 0)?, reduction: ScatterReduction::read(node)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = |shape: &[usize]| floats(-1.0, 1.0).input(shape);
        let at = |values: &[i64]| Tensor::from_shape_vec(&[2, 2], values.to_vec()).unwrap().into();
        let op = |axis, reduction| ScatterElements { axis, reduction };
        vec![
            Sample::new(op(1, ScatterReduction::None), [x(&[2, 3]), at(&[0, -1, 1, 2]), x(&[2, 2])]),
            Sample::new(op(-1, ScatterReduction::Add), [x(&[2, 3]), at(&[0, 0, 1, 2]), x(&[2, 2])]),
            Sample::new(op(0, ScatterReduction::Add), [x(&[2, 3]), at(&[0, 0, 1, -1]), x(&[2, 2])]),
        ]
    }
}

/// Splits index tuples: the shape over which they range, and the length of each tuple.
fn tuples<D>(indices: &[D]) -> Result<(&[D], &D)> {
    match indices.split_last() {
        Some((length, outer)) => Ok((outer, length)),
        None => bail!(shape, "expected indices of rank 1 or more, found a scalar"),
    }
}

/// For each index tuple, in row-major order, the place in x that it names: the batch axes, then the tuple.
fn tuple_places(indices_of: &Array<i64>, shape: &[usize], batch: usize) -> Result<Vec<Vec<usize>>> {
    let (outer, &length) = tuples(indices_of.shape())?;
    if batch > outer.len() || batch + length > shape.len() || outer[..batch] != shape[..batch] {
        bail!(
            shape,
            "indices of shape {:?} do not fit the shape {shape:?} with {batch} batch axes",
            indices_of.shape()
        );
    }
    let mut numbers = indices_of.iter();
    let mut places = Vec::new();
    for place in indices(IxDyn(outer)) {
        let mut resolved: Vec<usize> = place.slice()[..batch].to_vec();
        for (axis, &length) in shape.iter().enumerate().skip(batch).take(length) {
            let index = numbers.next().copied().unwrap_or_default();
            resolved.push(resolve_index(index, length).context(|| format!("axis {axis}"))?);
        }
        places.push(resolved);
    }
    Ok(places)
}

/// `y[b…, i…, c…] = x[b…, indices[b…, i…, :], c…]`: the last axis of the indices holds index tuples.
///
/// Inputs `x, indices`. ONNX `GatherND` 11, 12, 13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatherND {
    /// How many leading axes x and the indices share.
    pub batch_dims: usize,
}

impl GatherND {
    /// The shape of the output, and where in the row-major x each slice of it begins.
    fn plan(&self, shape: &[usize], indices: &Array<i64>) -> Result<(Vec<usize>, Vec<usize>, usize)> {
        let (outer, &length) = tuples(indices.shape())?;
        let places = tuple_places(indices, shape, self.batch_dims)?;
        let rest = &shape[self.batch_dims + length..];
        let y: Vec<usize> = outer.iter().chain(rest).copied().collect();
        allocatable(&y)?;
        let inner: usize = rest.iter().product();
        let start = |place: &Vec<usize>| {
            place.iter().zip(shape).fold(0, |start, (&place, &length)| start * length + place) * inner
        };
        Ok((y, places.iter().map(start).collect(), inner))
    }
}

impl OpDef for GatherND {
    fn name(&self) -> &str {
        "GatherND"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (x, indices) = (x.get(0)?, x.get(1)?);
        check_indices(indices)?;
        let (outer, length) = tuples(&indices.shape)?;
        let Some(length) = length.known() else {
            bail!(unsupported, "the length of the index tuples, the last axis of {indices}, must be known")
        };
        let taken = self.batch_dims.saturating_add(usize::try_from(length).unwrap_or_default());
        if self.batch_dims > outer.len() || taken > x.rank() {
            bail!(shape, "indices {indices} do not fit {x} with {} batch axes", self.batch_dims);
        }
        let shape = outer.iter().chain(&x.shape[taken..]).cloned().collect();
        Ok(vec![Fact::new(x.dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let (x, indices) = (x.get(0)?, wide(x.get(1)?)?);
        let (shape, starts, inner) = self.plan(x.shape(), &indices)?;
        Ok(vec![each_dtype!(x, x => {
            let elements: Vec<_> = x.iter().copied().collect();
            let y = starts.iter().flat_map(|&start| elements[start..start + inner].iter().copied()).collect();
            Tensor::from_shape_vec(&shape, y)?
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let op = GatherNDTranspose { batch_dims: self.batch_dims };
        Ok(back.only_first(back.builder().apply(op, &[back.g(0), back.x(1), back.x(0).dimensions()])))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        if self.batch_dims != 0 {
            node.int("batch_dims", self.batch_dims as i64);
        }
        Ok(())
    }
}

impl Listed for GatherND {
    const ONNX: &'static [&'static str] = &["GatherND"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        let batch_dims = node.int_or("batch_dims", 0)?;
        match usize::try_from(batch_dims) {
            Ok(batch_dims) => Ok(Self { batch_dims }),
            Err(_) => bail!(model, "attribute 'batch_dims': expected 0 or more, found {batch_dims}"),
        }
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).input(&[2, 3, 4]);
        let at =
            |shape: &[usize], values: &[i64]| Tensor::from_shape_vec(shape, values.to_vec()).unwrap().into();
        vec![
            Sample::new(GatherND { batch_dims: 0 }, [x(), at(&[3, 2], &[0, 1, -1, 2, 0, 1])]),
            Sample::new(GatherND { batch_dims: 0 }, [x(), at(&[2], &[1, -1])]),
            Sample::new(GatherND { batch_dims: 1 }, [x(), at(&[2, 2, 1], &[2, 0, 1, 1])]),
        ]
    }
}

/// The transpose of [`GatherND`]: sums the slices of g up where the indices took them from.
///
/// Inputs `g, indices, shape`, where `shape` is that of the gather's input.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatherNDTranspose {
    /// How many leading axes x and the indices share.
    pub batch_dims: usize,
}

impl OpDef for GatherNDTranspose {
    fn name(&self) -> &str {
        "GatherNDTranspose"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let shape: &[Dim] = expressions(x, 2, "the lengths")?;
        if shape.len() < self.batch_dims {
            bail!(shape, "{} has fewer than {} axes", display_shape(shape), self.batch_dims);
        }
        Ok(vec![Fact::new(x.get(0)?.dtype, shape.to_vec())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn sum_up<T: Float>(g: &Array<T>, starts: &[usize], inner: usize, shape: &[usize]) -> Result<Tensor> {
            let mut y = vec![T::zero(); shape.iter().product()];
            let mut elements = g.iter();
            for &start in starts {
                for (sum, &g) in y[start..start + inner].iter_mut().zip(&mut elements) {
                    *sum += g;
                }
            }
            Tensor::from_shape_vec(shape, y)
        }
        let (g, indices, shape) = (x.get(0)?, wide(x.get(1)?)?, shape_input(x, 2)?);
        let (expected, starts, inner) = GatherND { batch_dims: self.batch_dims }.plan(&shape, &indices)?;
        check_shape(&expected, g.shape())?;
        Ok(vec![each_float!(g, g => sum_up(g, &starts, inner, &shape)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let op = GatherND { batch_dims: self.batch_dims };
        Ok(back.only_first(back.builder().apply(op, &[back.g(0), back.x(1)])))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        let (g, indices, lengths) = (node.x(0), node.x(1).cast(DType::I64), node.x(2).cast(DType::I64));
        let builder = node.builder();
        let (batch, rank) = (self.batch_dims, node.y(0).rank());
        let (outer, length) =
            (indices.rank() - 1, known_length(&indices.shape()[indices.rank() - 1], indices.rank() - 1)?);
        let scalar = |value: i64| builder.constant(Tensor::scalar(value));
        let count = |axis: usize| lengths.gather(0, vec![axis as i64]).squeeze([0]);
        let range = |axis: usize| builder.apply(RangeOp, &[scalar(0), count(axis), scalar(1)]);
        // One number picked for each place of the batch: the places that are it, which needs no scatter.
        if batch + 1 == rank && length == 1 && outer == batch + 1 {
            let wrapped = (indices + count(batch)).select(indices.less(0.0), indices);
            let is_it = wrapped.equal(range(batch));
            return node.one(g.unsqueeze([outer]).select_where(is_it).reduce_sum([outer - 1], false));
        }
        // The batch's own places in front of each tuple.
        let mut parts = Vec::new();
        let like = indices.slice(outer, 0, 1);
        for axis in 0..batch {
            let place = range(axis).unsqueeze((0..outer).filter(|&other| other != axis).chain([outer]));
            parts.push(place.expand_like(like));
        }
        parts.push(indices);
        let tuples = builder.concat(&parts, outer);
        let zeros = builder.apply(ConstantOfShape { value: Real(0.0), dtype: g.dtype() }, &[lengths]);
        node.one(builder.apply(ScatterND { reduction: ScatterReduction::Add }, &[zeros, tuples, g]))
    }
}

impl Listed for GatherNDTranspose {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(internal, "no file has this op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let at =
            |shape: &[usize], values: &[i64]| Tensor::from_shape_vec(shape, values.to_vec()).unwrap().into();
        let g = floats(-1.0, 1.0).input(&[2, 2, 4]);
        let shape = Tensor::vector([2i64, 3, 4]).into();
        vec![Sample::new(GatherNDTranspose { batch_dims: 1 }, [g, at(&[2, 2, 1], &[2, 0, 1, 1]), shape])]
    }
}

/// `y = x`, but `y[indices[i…, :], c…] = updates[i…, c…]`: the last axis of the indices holds index tuples.
///
/// Inputs `x, indices, updates`. ONNX `ScatterND` 11, 13, 16, 18.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ScatterND {
    /// What becomes of an element that is scattered to.
    pub reduction: ScatterReduction,
}

impl OpDef for ScatterND {
    fn name(&self) -> &str {
        "ScatterND"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (data, updates) = (x.get(0)?, x.get(2)?);
        let expected = &GatherND { batch_dims: 0 }.infer(x)?[0];
        if updates.dtype != data.dtype || updates.rank() != expected.rank() {
            bail!(shape, "expected updates of {expected}, found {updates}");
        }
        Ok(vec![Fact::new(data.dtype, data.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let (x, indices, updates) = (x.get(0)?, wide(x.get(1)?)?, x.get(2)?);
        let (expected, _, _) = GatherND { batch_dims: 0 }.plan(x.shape(), &indices)?;
        check_shape(&expected, updates.shape()).context(|| "the updates")?;
        let mut places = Vec::new();
        for tuple in tuple_places(&indices, x.shape(), 0)? {
            for rest in ndarray::indices(IxDyn(&x.shape()[tuple.len()..])) {
                places.push(IxDyn(&[&tuple, rest.slice()].concat()));
            }
        }
        Ok(vec![self.reduction.run(x, &places, updates)?])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (builder, indices) = (back.builder(), back.x(1));
        self.reduction.vjp(
            back,
            |g| builder.apply(GatherND { batch_dims: 0 }, &[g, indices]),
            |g, zeros| builder.apply(Self { reduction: ScatterReduction::None }, &[g, indices, zeros]),
        )
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        self.reduction.write(node)?;
        Ok(())
    }
}

impl Listed for ScatterND {
    const ONNX: &'static [&'static str] = &["ScatterND"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { reduction: ScatterReduction::read(node)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = |shape: &[usize]| floats(-1.0, 1.0).input(shape);
        let at =
            |shape: &[usize], values: &[i64]| Tensor::from_shape_vec(shape, values.to_vec()).unwrap().into();
        let op = |reduction| ScatterND { reduction };
        vec![
            Sample::new(op(ScatterReduction::None), [x(&[3, 2, 2]), at(&[2, 2], &[0, 1, -1, 0]), x(&[2, 2])]),
            Sample::new(op(ScatterReduction::Add), [x(&[3, 2]), at(&[4, 1], &[0, 2, 0, 1]), x(&[4, 2])]),
        ]
    }
}

#[cfg(test)]
mod tests {
    //! Expected numbers: the reference evaluator of the Python package onnx 1.17.0, if nothing else is said.

    use super::*;
    use crate::gradient_check::outputs;

    /// 0, 1, 2, … in this shape.
    fn counting(shape: &[usize]) -> Tensor {
        Tensor::from_shape_vec(shape, (0..shape.iter().product::<usize>() as i64).collect()).unwrap()
    }

    fn integers(shape: &[usize], values: &[i64]) -> Tensor {
        Tensor::from_shape_vec(shape, values.to_vec()).unwrap()
    }

    #[test]
    fn index_tuples_pick_slices() {
        let x = counting(&[2, 2, 2]);
        let y = outputs(GatherND { batch_dims: 0 }, &[x.clone(), integers(&[2, 1, 2], &[0, 1, 1, 0])]);
        assert_eq!(y, [integers(&[2, 1, 2], &[2, 3, 4, 5])]);
        let y = outputs(GatherND { batch_dims: 1 }, &[x, integers(&[2, 1], &[1, 0])]);
        assert_eq!(y, [integers(&[2, 2], &[2, 3, 4, 5])]);
    }

    #[test]
    fn scattered_elements_replace_add_or_compare() {
        let tens = integers(&[3, 3], &[0, 10, 20, 30, 40, 50, 60, 70, 80]);
        let (indices, updates) =
            (integers(&[2, 3], &[1, 0, 2, 0, 2, 1]), integers(&[2, 3], &[1, 2, 3, 4, 5, 6]));
        let y = outputs(
            ScatterElements { axis: 0, reduction: ScatterReduction::None },
            &[tens, indices, updates],
        );
        assert_eq!(y, [integers(&[3, 3], &[4, 2, 20, 1, 40, 6, 60, 5, 3])]);
        let row = |reduction, updates: &[i64]| {
            let x = [
                integers(&[1, 5], &[0, 10, 20, 30, 40]),
                integers(&[1, 3], &[1, 1, -1]),
                integers(&[1, 3], updates),
            ];
            outputs(ScatterElements { axis: 1, reduction }, &x).remove(0)
        };
        assert_eq!(row(ScatterReduction::Add, &[1, 2, 3]), integers(&[1, 5], &[0, 13, 20, 30, 43]));
        assert_eq!(row(ScatterReduction::Max, &[1, 20, 3]), integers(&[1, 5], &[0, 20, 20, 30, 40]));
    }

    #[test]
    fn scattered_slices_add_up() {
        let x = [counting(&[4]), integers(&[3, 1], &[3, 1, 1]), integers(&[3], &[10, 20, 30])];
        let y = outputs(ScatterND { reduction: ScatterReduction::Add }, &x);
        assert_eq!(y, [integers(&[4], &[0, 51, 2, 13])]);
    }
}
