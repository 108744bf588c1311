//! Ops that cut tensors into parts and join them again.

use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::{Dim, display_shape};
use crate::error::{Context, Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter, known_shape_of};
use crate::op::{Inputs, Listed, OpDef, Real, resolve_axis};
use crate::ops::layout::{ConstantOfShape, Shape};
use crate::ops::pad::Pad;
use crate::ops::scatter::{ScatterElements, ScatterReduction};
use crate::ops::select::Range as RangeOp;
use crate::tensor::{Array, DType, Element, Tensor, each_dtype};
use ndarray::{ArrayD, ArrayViewD, ArrayViewMutD, Axis, IxDyn, Slice as Places};
use std::ops::Range;

/// The number of elements of a shape that a file or an input asks for.
///
/// # Errors
/// If no machine could hold them: more than 2^30.
pub(crate) fn allocatable(shape: &[usize]) -> Result<usize> {
    match shape.iter().try_fold(1usize, |product, &length| product.checked_mul(length)) {
        Some(count) if count <= 1 << 30 => Ok(count),
        // A length of 0 anywhere makes the product 0, however long the others are.
        _ if shape.contains(&0) => Ok(0),
        _ => bail!(shape, "a tensor of shape {shape:?} does not fit into memory"),
    }
}

/// An int64 vector among the inputs, as numbers or expressions.
pub(crate) fn expressions<'a>(x: &Inputs<'a, Fact>, index: usize, what: &str) -> Result<&'a [Dim]> {
    match x.get(index)?.integers() {
        Some(dims) => Ok(dims),
        None => bail!(
            unsupported,
            "{what} (input {index}) depend on the values or, in a way that cannot be followed, on the size of the network's input; \
             export the network for inputs of one size"
        ),
    }
}

/// An int64 vector among the inputs that may be left out, as numbers.
pub(crate) fn numbers(x: &Inputs<Fact>, index: usize, what: &str) -> Result<Option<Vec<i64>>> {
    match x.optional(index).map(|fact| (fact, fact.known_integers())) {
        None => Ok(None),
        Some((_, Some(numbers))) => Ok(Some(numbers)),
        Some((fact, None)) => bail!(unsupported, "{what} (input {index}, {fact}) must be constant"),
    }
}

/// The axes that an op touches: those given, distinct, or the first `count`.
pub(crate) fn touched_axes(axes: Option<&[i64]>, count: usize, rank: usize) -> Result<Vec<usize>> {
    let resolved = match axes {
        None if count <= rank => (0..count).collect(),
        None => bail!(shape, "{count} axes are named, but the tensor has rank {rank}"),
        Some(axes) => axes.iter().map(|&axis| resolve_axis(axis, rank)).collect::<Result<Vec<usize>>>()?,
    };
    if resolved.len() != count {
        bail!(shape, "expected one axis for each of {count} places, found {axes:?}");
    }
    for (place, axis) in resolved.iter().enumerate() {
        if resolved[..place].contains(axis) {
            bail!(shape, "axes {axes:?} name axis {axis} twice");
        }
    }
    Ok(resolved)
}

/// What a slice takes of one axis, in numbers: `count` places from `start` on, `step` apart.
struct Taken {
    axis: usize,
    start: i64,
    step: i64,
    count: i64,
}

impl Taken {
    /// The places as ndarray has them, and whether they are to be reversed.
    fn places(&self) -> (Places, bool) {
        let last = self.start + (self.count - 1) * self.step;
        let (low, high) = (self.start.min(last), self.start.max(last));
        match self.count {
            0 => (Places::new(0, Some(0), 1), false),
            _ => {
                (Places::new(low as isize, Some(high as isize + 1), self.step.abs() as isize), self.step < 0)
            }
        }
    }

    fn view<'a, T>(taken: &[Self], mut x: ArrayViewD<'a, T>) -> ArrayViewD<'a, T> {
        for axis in taken {
            let (places, reversed) = axis.places();
            x.slice_axis_inplace(Axis(axis.axis), places);
            if reversed {
                x.invert_axis(Axis(axis.axis));
            }
        }
        x
    }

    fn view_mut<'a, T>(taken: &[Self], mut x: ArrayViewMutD<'a, T>) -> ArrayViewMutD<'a, T> {
        for axis in taken {
            let (places, reversed) = axis.places();
            x.slice_axis_inplace(Axis(axis.axis), places);
            if reversed {
                x.invert_axis(Axis(axis.axis));
            }
        }
        x
    }
}

/// The elements from `starts` to before `ends`, `steps` apart, along `axes`.
///
/// Inputs `x, starts, ends, axes?, steps?`. Negative places count from the end, places outside are clamped, negative
/// steps go backwards. On a symbolic axis a symbolic place is taken not to be negative. ONNX `Slice` 1, 10, 11, 13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slice;

/// A number from which on an end means "to the end", whatever the length.
const FAR: i64 = i32::MAX as i64;

/// The smaller of a length and a place; a symbolic length is at least 1.
fn minimum(length: &Dim, place: &Dim) -> Dim {
    match (length.as_symbol(), place.known()) {
        (Some(_), Some(known)) if known <= 1 => place.clone(),
        _ => length.minimum(place),
    }
}

/// A place on an axis, counted from the front and clamped to `lower..=upper`; `lower` is 0 or -1.
fn clamped(place: &Dim, length: &Dim, lower: i64, upper: &Dim) -> Dim {
    match place.known() {
        Some(number) if number >= FAR => upper.clone(),
        Some(number) if number <= -FAR => lower.into(),
        Some(number) if number < 0 => {
            // max(lower, length + number), written with a minimum.
            let away = Dim::from(-number);
            let room = length - &Dim::from(lower);
            length - &minimum(&room, &away)
        }
        _ => minimum(upper, place),
    }
}

/// How many places lie from `start` to before `end`.
fn count(start: &Dim, end: &Dim, step: i64) -> Dim {
    let distance = if step > 0 { end - start } else { start - end };
    let step = step.saturating_abs();
    let count = (&distance + &Dim::from(step - 1)).divide(&step.into());
    match count.known() {
        Some(number) => number.max(0).into(),
        None => count,
    }
}

fn bounds(length: &Dim, step: i64) -> (i64, Dim) {
    if step > 0 { (0, length.clone()) } else { (-1, length - &Dim::from(1i64)) }
}

impl Slice {
    fn check(starts: usize, ends: usize, steps: Option<&[i64]>) -> Result<()> {
        if starts != ends || steps.is_some_and(|steps| steps.len() != starts) {
            bail!(
                shape,
                "expected as many ends and steps as there are starts ({starts}), found {ends} and {steps:?}"
            );
        }
        match steps {
            Some(steps) if steps.contains(&0) => bail!(shape, "the steps {steps:?} contain 0"),
            _ => Ok(()),
        }
    }

    /// What is taken of `shape`. The inputs are those of [`Slice`], from `first` on.
    fn taken(x: &Inputs<Tensor>, first: usize, shape: &[usize]) -> Result<Vec<Taken>> {
        let optional = |index: usize| x.optional(index).map(Tensor::to_integers).transpose();
        let (starts, ends) = (x.get(first)?.to_integers()?, x.get(first + 1)?.to_integers()?);
        let (axes, steps) = (optional(first + 2)?, optional(first + 3)?);
        Self::check(starts.len(), ends.len(), steps.as_deref())?;
        let axes = touched_axes(axes.as_deref(), starts.len(), shape.len())?;
        let take = |(place, axis): (usize, usize)| {
            let length = shape[axis] as i64;
            let step = steps.as_ref().map_or(1, |steps| steps[place]);
            let (lower, upper) = if step > 0 { (0, length) } else { (-1, length - 1) };
            let clamp = |place: i64| {
                (if place < 0 { place.saturating_add(length) } else { place }).clamp(lower, upper.max(lower))
            };
            let (start, end) = (clamp(starts[place]), clamp(ends[place]));
            let distance = if step > 0 { end - start } else { start - end };
            let size = step.saturating_abs();
            let count = if distance <= 0 { 0 } else { (distance - 1) / size + 1 };
            // A single element needs no step, which may be too long to add.
            let step = if count > 1 { step } else { step.signum() };
            Taken { axis, start, step, count }
        };
        Ok(axes.into_iter().enumerate().map(take).collect())
    }
}

impl OpDef for Slice {
    fn name(&self) -> &str {
        "Slice"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let data = x.get(0)?;
        let starts = expressions(x, 1, "the starts")?;
        let ends = expressions(x, 2, "the ends")?;
        let (axes, steps) = (numbers(x, 3, "the axes")?, numbers(x, 4, "the steps")?);
        Self::check(starts.len(), ends.len(), steps.as_deref())?;
        let axes = touched_axes(axes.as_deref(), starts.len(), data.rank())?;
        let mut shape = data.shape.clone();
        for (place, axis) in axes.into_iter().enumerate() {
            let step = steps.as_ref().map_or(1, |steps| steps[place]);
            let length = &data.shape[axis];
            let (lower, upper) = bounds(length, step);
            let start = clamped(&starts[place], length, lower, &upper);
            let end = clamped(&ends[place], length, lower, &upper);
            shape[axis] = count(&start, &end, step);
        }
        Ok(vec![Fact::new(data.dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let data = x.get(0)?;
        let taken = Self::taken(x, 1, data.shape())?;
        Ok(vec![each_dtype!(data, data => Taken::view(&taken, data.view()).to_owned().into())])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let cotangent = match self.as_pad(back) {
            Some(padded) => padded,
            None => {
                let places = (1..back.arity()).map(|index| back.optional_x(index));
                let inputs: Vec<_> =
                    [Some(back.g(0)), Some(back.x(0).dimensions())].into_iter().chain(places).collect();
                back.builder().apply_all(SliceTranspose, &inputs)[0]
            }
        };
        Ok(back.only_first(cotangent))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }
}

impl Slice {
    /// The gradient as a `Pad`, where every step is 1 and all lengths that matter are known.
    fn as_pad<'b>(&self, back: &Back<'b>) -> Option<Var<'b>> {
        let x = back.x(0).fact();
        let known = |index: usize| back.x(index).fact().known_integers();
        let optional = |index: usize| back.optional_x(index).map(|x| x.fact().known_integers());
        let (starts, ends) = (known(1)?, known(2)?);
        let axes = match optional(3) {
            Some(axes) => Some(axes?),
            None => None,
        };
        if optional(4).is_some_and(|steps| steps.is_none_or(|steps| steps.iter().any(|&step| step != 1))) {
            return None;
        }
        let axes = touched_axes(axes.as_deref(), starts.len(), x.rank()).ok()?;
        let mut pads = vec![0; 2 * x.rank()];
        for (place, axis) in axes.into_iter().enumerate() {
            let length = &x.shape[axis];
            let start = clamped(&starts[place].into(), length, 0, length);
            let end = clamped(&ends[place].into(), length, 0, length);
            pads[axis] = start.known()?;
            pads[x.rank() + axis] = (length - &end).known()?;
            if length.known().is_some_and(|length| pads[axis] + pads[x.rank() + axis] > length) {
                return None;
            }
        }
        Some(Pad::zeros(back.g(0), pads))
    }
}

impl Listed for Slice {
    const ONNX: &'static [&'static str] = &["Slice"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        for (index, name) in [(1, "starts"), (2, "ends"), (3, "axes")] {
            if let Some(values) = node.ints(name)? {
                node.set_input(index, Tensor::vector(values));
            }
        }
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).input(&[3, 4, 5]);
        let at = |values: &[i64]| Tensor::vector(values.to_vec()).into();
        vec![
            Sample::new(Slice, [x(), at(&[1, 0]), at(&[3, -1])]),
            Sample::new(Slice, [x(), at(&[1, -3]), at(&[i64::MAX, 100]), at(&[0, -1])]),
            Sample::new(Slice, [x(), at(&[0, -1]), at(&[i64::MAX, i64::MIN]), at(&[0, 2]), at(&[2, -2])]),
            Sample::new(Slice, [x(), at(&[-1]), at(&[i64::MIN]), at(&[0]), at(&[-1])]),
            Sample::new(Slice, [x(), at(&[3]), at(&[1]), at(&[1]), at(&[1])]),
        ]
    }
}

/// The transpose of [`Slice`]: puts `g` at the places that the slice takes, among zeros.
///
/// Inputs `g, shape, starts, ends, axes?, steps?`, where `shape` is that of the slice's input.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SliceTranspose;

/// Zeros among which `y` lies at certain places of an axis, which has its length among `lengths`.
fn put_apart<'b>(y: Var<'b>, places: Var<'b>, lengths: Var<'b>, axis: usize) -> Var<'b> {
    let (builder, rank, own) = (y.builder(), y.rank(), y.dimensions());
    let cut =
        |of: Var<'b>, start: usize, end: usize| (start < end).then(|| of.slice(0, start as i64, end as i64));
    let shape = [cut(own, 0, axis), cut(lengths, axis, axis + 1), cut(own, axis + 1, rank)];
    let shape = builder.concat(&shape.into_iter().flatten().collect::<Vec<_>>(), 0);
    let zeros = builder.apply(ConstantOfShape { value: Real(0.0), dtype: y.dtype() }, &[shape]);
    let places = places.unsqueeze((0..rank).filter(|&other| other != axis)).expand_like(y);
    let op = ScatterElements { axis: axis as i64, reduction: ScatterReduction::None };
    builder.apply(op, &[zeros, places, y])
}

/// A shape among the inputs, in numbers.
pub(crate) fn shape_input(x: &Inputs<Tensor>, index: usize) -> Result<Vec<usize>> {
    let lengths = x.get(index)?.to_integers()?;
    let shape: Result<Vec<usize>, _> = lengths.iter().map(|&length| usize::try_from(length)).collect();
    match shape {
        Ok(shape) => {
            allocatable(&shape)?;
            Ok(shape)
        }
        Err(_) => bail!(shape, "expected a shape at input {index}, found {lengths:?}"),
    }
}

/// Refuses a cotangent that has not the shape of the output it belongs to.
pub(crate) fn check_shape(expected: &[usize], found: &[usize]) -> Result<()> {
    if expected != found {
        bail!(shape, "expected the shape {expected:?}, found {found:?}");
    }
    Ok(())
}

impl OpDef for SliceTranspose {
    fn name(&self) -> &str {
        "SliceTranspose"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        Ok(vec![Fact::new(x.get(0)?.dtype, expressions(x, 1, "the lengths")?.to_vec())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn scatter<T: Element + num_traits::Zero>(
            g: &Array<T>,
            shape: &[usize],
            taken: &[Taken],
        ) -> Result<Tensor> {
            let mut y = ArrayD::from_elem(IxDyn(shape), T::zero());
            let mut places = Taken::view_mut(taken, y.view_mut());
            check_shape(places.shape(), g.shape())?;
            places.assign(g);
            Ok(T::wrap(y.into_shared()))
        }
        let shape = shape_input(x, 1)?;
        let taken = Slice::taken(x, 2, &shape)?;
        Ok(vec![crate::tensor::each_float!(x.get(0)?, g => scatter(g, &shape, &taken)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let places = (2..back.arity()).map(|index| back.optional_x(index));
        let inputs: Vec<_> = [Some(back.g(0))].into_iter().chain(places).collect();
        Ok(back.only_first(back.builder().apply_all(Slice, &inputs)[0]))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        // Where the places are, one axis after the other: the slice of all places of the axis.
        let (builder, g) = (node.builder(), node.x(0));
        let whole = |index: usize| node.x(index).cast(DType::I64);
        let (lengths, starts, ends) = (whole(1), whole(2), whole(3));
        let count = known_shape_of(starts)?.first().copied().unwrap_or_default();
        let axes = node.optional_x(4).map(|_| node.known(4, "the axes")).transpose()?;
        let axes = touched_axes(axes.as_deref(), count, g.rank())?;
        let mut y = g;
        for (index, &axis) in axes.iter().enumerate() {
            let one = |vector: Var<'b>| vector.slice(0, index as i64, index as i64 + 1);
            let bound = |value: i64| builder.constant(Tensor::scalar(value));
            let length = lengths.gather(0, vec![axis as i64]).squeeze([0]);
            let all = builder.apply(RangeOp, &[bound(0), length, bound(1)]);
            let mut taken = vec![Some(all), Some(one(starts)), Some(one(ends)), Some(builder.integers([0]))];
            taken.extend(node.optional_x(5).map(|steps| Some(one(steps.cast(DType::I64)))));
            y = put_apart(y, builder.apply_all(Slice, &taken)[0], lengths, axis);
        }
        node.one(y)
    }
}

impl Listed for SliceTranspose {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(internal, "no file has this op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let g = || floats(-1.0, 1.0).input(&[2, 3]);
        let at = |values: &[i64]| Tensor::vector(values.to_vec()).into();
        vec![
            Sample::new(SliceTranspose, [g(), at(&[2, 7]), at(&[5]), at(&[0]), at(&[1]), at(&[-2])]),
            Sample::new(SliceTranspose, [g(), at(&[3, 3]), at(&[1]), at(&[i64::MAX])]),
        ]
    }
}

/// Cuts an axis into parts: of the given sizes, or into `outputs` equal parts, of which the last may be smaller.
///
/// ONNX `Split` 1, 2, 11, 13, 18.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Split {
    /// The axis; negative counts from the end.
    pub axis: i64,
    /// The length of each part.
    pub sizes: Option<Vec<usize>>,
    /// The number of parts.
    pub outputs: usize,
}

impl Split {
    /// The length of each part of an axis of this length.
    fn parts(&self, length: &Dim) -> Result<Vec<Dim>> {
        if let Some(sizes) = &self.sizes {
            let sum = sizes.iter().fold(0usize, |sum, &size| sum.saturating_add(size));
            if sizes.len() != self.outputs {
                bail!(shape, "expected {} sizes, one for each output, found {sizes:?}", self.outputs);
            }
            if length.known().is_some_and(|length| length != sum as i64) {
                bail!(shape, "the sizes {sizes:?} do not add up to the length {length}");
            }
            return Ok(sizes.iter().map(|&size| size.into()).collect());
        }
        let outputs = Dim::from(self.outputs);
        let exact = length.divide(&outputs);
        if &exact * &outputs == *length {
            return Ok(vec![exact; self.outputs]);
        }
        let part = (length + &Dim::from(self.outputs as i64 - 1)).divide(&outputs);
        let last = length - &(&part * &Dim::from(self.outputs as i64 - 1));
        if last.known().is_some_and(|last| last < 0) {
            bail!(shape, "a length of {length} cannot be cut into {outputs} parts");
        }
        let mut parts = vec![part; self.outputs - 1];
        parts.push(last);
        Ok(parts)
    }
}

impl OpDef for Split {
    fn name(&self) -> &str {
        "Split"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        let axis = resolve_axis(self.axis, x.rank()).context(|| "attribute 'axis'")?;
        if self.outputs == 0 {
            bail!(shape, "expected at least one output");
        }
        let fact = |part: Dim| {
            let mut shape = x.shape.clone();
            shape[axis] = part;
            Fact::new(x.dtype, shape)
        };
        Ok(self.parts(&x.shape[axis])?.into_iter().map(fact).collect())
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let x = x.get(0)?;
        let facts = self.infer(&Inputs(&[Some(&Fact::new(
            x.dtype(),
            x.shape().iter().map(|&length| length.into()).collect(),
        ))]))?;
        let axis = resolve_axis(self.axis, x.shape().len())?;
        let mut start = 0;
        let part = |fact: &Fact| -> Tensor {
            let length = fact.shape[axis].known().unwrap_or_default() as isize;
            let places = Places::new(start, Some(start + length), 1);
            start += length;
            each_dtype!(x, x => x.slice_axis(Axis(axis), places).to_owned().into())
        };
        Ok(facts.iter().map(part).collect())
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let parts: Vec<_> = (0..self.outputs).map(|index| back.g(index)).collect();
        Ok(back.only_first(back.builder().concat(&parts, resolve_axis(self.axis, back.x(0).rank())?)))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.axis);
        match &self.sizes {
            Some(sizes) => node.input(1, Tensor::vector(sizes.iter().map(|&size| size as i64))),
            None if node.opset() >= 18 => node.int("num_outputs", self.outputs as i64),
            None => {
                let length =
                    node.fact(0).and_then(|x| Some(x.shape[resolve_axis(self.axis, x.rank()).ok()?].clone()));
                let parts: Option<Vec<i64>> =
                    self.parts(&length.unwrap_or(1.into()))?.iter().map(Dim::known).collect();
                if let Some(parts) = parts {
                    node.input(1, Tensor::vector(parts));
                }
            }
        }
        Ok(())
    }
}

impl Listed for Split {
    const ONNX: &'static [&'static str] = &["Split"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        let outputs = node.output_count();
        let axis = node.int_or("axis", 0)?;
        if let Some(count) = node.int("num_outputs")?.filter(|&count| count != outputs as i64) {
            bail!(
                model,
                "attribute 'num_outputs': expected the number of outputs ({outputs}), found {count}"
            );
        }
        let Some(sizes) = node.ints_or_input("split", 1)? else {
            return Ok(Self { axis, sizes: None, outputs });
        };
        let lengths: Result<Vec<usize>, _> = sizes.iter().map(|&size| usize::try_from(size)).collect();
        match lengths {
            Ok(lengths) => Ok(Self { axis, sizes: Some(lengths), outputs }),
            Err(_) => bail!(model, "the sizes {sizes:?} contain a negative one"),
        }
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).input(&[2, 6]);
        vec![
            Sample::new(Split { axis: 1, sizes: None, outputs: 3 }, [x()]),
            Sample::new(Split { axis: -1, sizes: None, outputs: 4 }, [floats(-1.0, 1.0).input(&[2, 7])]),
            Sample::new(Split { axis: -1, sizes: Some(vec![1, 0, 5]), outputs: 3 }, [x()]),
            Sample::new(Split { axis: 0, sizes: Some(vec![1, 1]), outputs: 2 }, [x()]),
            Sample::new(Split { axis: 0, sizes: None, outputs: 2 }, [x()]),
        ]
    }
}

/// Joins tensors along an axis. ONNX `Concat` 1, 4, 11, 13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Concat {
    /// The axis; negative counts from the end.
    pub axis: i64,
}

impl OpDef for Concat {
    fn name(&self) -> &str {
        "Concat"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let first = x.get(0)?;
        let axis = resolve_axis(self.axis, first.rank()).context(|| "attribute 'axis'")?;
        let mut shape = first.shape.clone();
        for index in 1..x.len() {
            let part = x.get(index)?;
            let fits = part.dtype == first.dtype
                && part.rank() == first.rank()
                && (0..part.rank()).all(|other| {
                    let (a, b) = (&shape[other], &part.shape[other]);
                    other == axis || a == b || a.known().is_none() || b.known().is_none()
                });
            if !fits {
                bail!(
                    shape,
                    "input {index} is {part}, which does not fit {}{} along axis {axis}",
                    first.dtype,
                    display_shape(&shape)
                );
            }
            for (other, dim) in shape.iter_mut().enumerate() {
                if other == axis {
                    *dim = &*dim + &part.shape[axis];
                } else if dim.known().is_none() && part.shape[other].known().is_some() {
                    *dim = part.shape[other].clone();
                }
            }
        }
        Ok(vec![Fact::new(first.dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn join<T: Element>(first: &Array<T>, x: &Inputs<Tensor>, axis: i64) -> Result<Tensor> {
            let axis = resolve_axis(axis, first.ndim())?;
            let mut parts = Vec::new();
            for part in x.present() {
                parts.push(part.array::<T>()?.view());
            }
            let same_rank = parts.iter().all(|part| part.ndim() == first.ndim());
            match same_rank.then(|| ndarray::concatenate(Axis(axis), &parts)) {
                Some(Ok(y)) => Ok(T::wrap(y.as_standard_layout().to_shared())),
                _ => {
                    let shapes: Vec<&[usize]> = x.present().map(Tensor::shape).collect();
                    bail!(shape, "the shapes {shapes:?} do not fit along axis {axis}")
                }
            }
        }
        Ok(vec![each_dtype!(x.get(0)?, first => join(first, x, self.axis)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let g = back.g(0);
        let axis = resolve_axis(self.axis, g.rank())?;
        let lengths: Vec<Dim> = (0..back.arity()).map(|index| back.x(index).shape()[axis].clone()).collect();
        let known: Option<Vec<i64>> = lengths.iter().map(Dim::known).collect();
        if let Some(known) = known {
            return back.try_each_wanted(|index| {
                let ends = known[..=index].iter().try_fold(0i64, |end, length| end.checked_add(*length));
                let Some(end) = ends else {
                    bail!(shape, "the lengths {known:?} add up to more than any memory holds")
                };
                Ok(g.slice(axis, end - known[index], end))
            });
        }
        // Lengths that are not known yet are asked for at run time.
        let (start, end) = (axis as i64, Some(axis as i64 + 1));
        let length = |index: usize| back.builder().apply(Shape { start, end }, &[back.x(index)]);
        Ok(back.each_wanted(|index| {
            let before = (0..index).fold(back.builder().integers([0]), |sum, before| sum + length(before));
            let axes = back.builder().integers([axis as i64]);
            back.builder().apply(Slice, &[g, before, before + length(index), axes])
        }))
    }

    fn moved_inputs(&self, count: usize) -> Range<usize> {
        0..count
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.axis);
        Ok(())
    }
}

impl Listed for Concat {
    const ONNX: &'static [&'static str] = &["Concat"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        let default = if node.opset() < 4 { Some(1) } else { None };
        match node.int("axis")?.or(default) {
            Some(axis) => Ok(Self { axis }),
            None => bail!(model, "the attribute 'axis' is missing"),
        }
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = |shape: &[usize]| floats(-1.0, 1.0).input(shape);
        vec![
            Sample::new(Concat { axis: 1 }, [x(&[2, 3]), x(&[2, 1]), x(&[2, 4])]),
            Sample::new(Concat { axis: -2 }, [x(&[2, 3]), x(&[2, 3]), x(&[1, 3])]),
            Sample::new(Concat { axis: 0 }, [x(&[2])]),
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
    fn slices_go_backwards_and_are_clamped() {
        let slice = |places: [&[i64]; 4]| {
            let [starts, ends, axes, steps] = places.map(|values| integers(&[values.len()], values));
            outputs(Slice, &[counting(&[3, 4]), starts, ends, axes, steps]).remove(0)
        };
        assert_eq!(slice([&[-1, 3], &[-100, -4], &[0, 1], &[-2, -2]]), integers(&[2, 2], &[11, 9, 3, 1]));
        assert_eq!(slice([&[0, 1], &[1000, -1], &[1, 0], &[3, 1]]), integers(&[1, 2], &[4, 7]));
    }

    #[test]
    fn absurd_slices_end_in_an_error_or_in_nothing() {
        let run = |places: [i64; 3]| {
            let [start, end, step] = places.map(|value| integers(&[1], &[value]));
            Slice.run(&Inputs(&[
                Some(&counting(&[3])),
                Some(&start),
                Some(&end),
                Some(&integers(&[1], &[0])),
                Some(&step),
            ]))
        };
        assert!(run([0, 3, 0]).unwrap_err().to_string().contains("contain 0"));
        assert_eq!(run([i64::MAX, i64::MIN, i64::MIN]).unwrap(), [integers(&[1], &[2])]);
        assert_eq!(run([i64::MIN, i64::MAX, i64::MAX]).unwrap(), [integers(&[1], &[0])]);
        assert_eq!(run([i64::MAX, i64::MIN, 1]).unwrap(), [integers(&[0], &[])]);
    }

    #[test]
    fn symbolic_lengths_are_carried() {
        let length = Dim::symbol("n");
        let shape = |start: i64, end: i64, step: i64| -> Dim {
            let data = Fact::new(crate::tensor::DType::F32, vec![length.clone()]);
            let places = [start, end, 0, step].map(|value| Fact::of(&integers(&[1], &[value])));
            let mut x = vec![Some(&data)];
            x.extend(places.iter().map(Some));
            Slice.infer(&Inputs(&x)).unwrap()[0].shape[0].clone()
        };
        assert_eq!(shape(0, i64::MAX, 1), length);
        assert_eq!(shape(1, i64::MAX, 1).to_string(), "n - 1");
        assert_eq!(shape(0, -1, 1).to_string(), "n - 1");
        assert_eq!(shape(-1, i64::MIN, -1), length);
        assert_eq!(shape(0, 5, 1).to_string(), "min(n, 5)");
        assert_eq!(shape(-3, i64::MAX, 1).to_string(), "min(n, 3)");
        assert_eq!(shape(0, i64::MAX, 2).to_string(), "floor((n + 1)/(2))");
    }

    #[test]
    fn the_last_part_of_a_split_may_be_smaller() {
        let parts = outputs(Split { axis: 1, sizes: None, outputs: 2 }, &[counting(&[1, 5])]);
        assert_eq!(parts, [integers(&[1, 3], &[0, 1, 2]), integers(&[1, 2], &[3, 4])]);
    }
}
