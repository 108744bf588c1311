//! Ops that continue tensors beyond their edges.

use super::slice::{allocatable, check_shape, expressions, numbers, shape_input, touched_axes};
use crate::backprop::{Back, Cotangent, Cotangents};
use crate::builder::Var;
use crate::dim::Dim;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef};
use crate::ops::layout::{Reshape, Shape};
use crate::tensor::{Array, DType, Element, Float, Tensor, each_dtype, each_float};
use ndarray::{ArrayD, Axis, IxDyn, Slice as Places};
use std::ops::Range;

/// What a [`Pad`] continues a tensor with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PadMode {
    /// One value.
    Constant,
    /// The element at the edge.
    Edge,
    /// The elements mirrored at the edge, which itself is not repeated.
    Reflect,
    /// The elements from the other side.
    Wrap,
}

/// How one axis is padded, in numbers.
struct Padding {
    axis: usize,
    before: i64,
    after: i64,
}

impl Padding {
    /// Where each place of the padded axis takes its element from; `None` is the constant.
    fn sources(&self, mode: PadMode, length: usize) -> Result<Vec<Option<usize>>> {
        let length = length as i64;
        let total = length.saturating_add(self.before).saturating_add(self.after);
        let Ok(places) = usize::try_from(total) else {
            bail!(shape, "pads of {} and {} leave nothing of a length of {length}", self.before, self.after)
        };
        allocatable(&[places])?;
        // Negative pads crop first; what is left is continued.
        let low = (-self.before).clamp(0, length);
        let high = (length - (-self.after).clamp(0, length)).max(low);
        let kept = high - low;
        if kept == 0 && total > 0 && mode != PadMode::Constant {
            bail!(shape, "an axis of which nothing is left cannot be continued ({mode:?})");
        }
        let source = |place: i64| {
            let offset = place - self.before - low;
            match mode {
                PadMode::Constant if !(0..kept).contains(&offset) => None,
                PadMode::Constant => Some(offset),
                PadMode::Edge => Some(offset.clamp(0, kept - 1)),
                PadMode::Wrap => Some(offset.rem_euclid(kept)),
                PadMode::Reflect if kept == 1 => Some(0),
                PadMode::Reflect => {
                    let folded = offset.rem_euclid(2 * (kept - 1));
                    Some(folded.min(2 * (kept - 1) - folded))
                }
            }
        };
        Ok((0..total).map(|place| source(place).map(|offset| (offset + low) as usize)).collect())
    }
}

/// Continues a tensor beyond its edges; negative pads crop.
///
/// Inputs `x, pads, value?, axes?`; `pads` holds what is added before each axis, then what is added after. `value` is
/// what [`PadMode::Constant`] continues with, 0 if left out. ONNX `Pad` 1, 2, 11, 13, 18, 19, 21.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pad {
    /// What to continue with.
    pub mode: PadMode,
}

/// Splits a list of pads into pairs of axis and both pads.
fn paddings(pads: &[i64], axes: Option<&[i64]>, rank: usize) -> Result<Vec<Padding>> {
    let axes = paired_axes(pads.len(), axes, rank)?;
    let count = axes.len();
    if let Some(pad) = pads.iter().find(|pad| pad.unsigned_abs() > 1 << 40) {
        bail!(shape, "a pad of {pad} is out of bounds");
    }
    let pair =
        |(place, axis): (usize, usize)| Padding { axis, before: pads[place], after: pads[count + place] };
    Ok(axes.into_iter().enumerate().map(pair).collect())
}

/// The axes that belong to a list of pads.
fn paired_axes(pads: usize, axes: Option<&[i64]>, rank: usize) -> Result<Vec<usize>> {
    let expected = axes.map_or(rank, <[i64]>::len);
    if pads != 2 * expected {
        bail!(shape, "expected {} pads, two for each of {expected} axes, found {pads}", 2 * expected);
    }
    touched_axes(axes, expected, rank)
}

impl Pad {
    /// Zeros around `x`; negative pads crop.
    pub(crate) fn zeros(x: Var<'_>, pads: Vec<i64>) -> Var<'_> {
        if pads.iter().all(|&pad| pad == 0) {
            return x;
        }
        x.builder().apply(Self { mode: PadMode::Constant }, &[x, x.builder().integers(pads)])
    }

    /// The pads of the inputs from `first` on.
    fn paddings(x: &Inputs<Tensor>, pads: usize, axes: usize, rank: usize) -> Result<Vec<Padding>> {
        let axes = x.optional(axes).map(Tensor::to_integers).transpose()?;
        paddings(&x.get(pads)?.to_integers()?, axes.as_deref(), rank)
    }

    fn run_on<T: Element>(&self, x: &Array<T>, value: T, paddings: &[Padding]) -> Result<Tensor> {
        let mut y = x.to_owned();
        for padding in paddings {
            if (padding.before, padding.after) == (0, 0) {
                continue;
            }
            let axis = Axis(padding.axis);
            let sources = padding.sources(self.mode, y.shape()[padding.axis])?;
            let mut shape = y.shape().to_vec();
            shape[padding.axis] = sources.len();
            allocatable(&shape)?;
            let mut padded = ArrayD::from_elem(IxDyn(&shape), value);
            for (place, source) in sources.into_iter().enumerate() {
                if let Some(source) = source {
                    padded.index_axis_mut(axis, place).assign(&y.index_axis(axis, source));
                }
            }
            y = padded;
        }
        Ok(T::wrap(y.into_shared()))
    }
}

impl OpDef for Pad {
    fn name(&self) -> &str {
        "Pad"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let data = x.get(0)?;
        let pads = expressions(x, 1, "the pads")?;
        let is_one = |value: &Fact| value.shape.iter().all(|dim| dim.known().is_none_or(|dim| dim == 1));
        if let Some(value) = x.optional(2).filter(|value| value.dtype != data.dtype || !is_one(value)) {
            bail!(shape, "expected a value of one {}, found {value}", data.dtype);
        }
        let axes = numbers(x, 3, "the axes")?;
        let axes = paired_axes(pads.len(), axes.as_deref(), data.rank())?;
        let mut shape = data.shape.clone();
        for (place, &axis) in axes.iter().enumerate() {
            let padded = &(&pads[place] + &shape[axis]) + &pads[axes.len() + place];
            if padded.known().is_some_and(|length| length < 0) {
                bail!(
                    shape,
                    "pads of {} and {} leave nothing of axis {axis} of length {}",
                    pads[place],
                    pads[axes.len() + place],
                    shape[axis]
                );
            }
            shape[axis] = padded;
        }
        Ok(vec![Fact::new(data.dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let data = x.get(0)?;
        let paddings = Self::paddings(x, 1, 3, data.shape().len())?;
        let zero;
        let value = match x.optional(2) {
            Some(value) => value,
            None => {
                zero = Tensor::scalar(0u8).cast(data.dtype());
                &zero
            }
        };
        if value.len() != 1 {
            bail!(shape, "expected a value of one element, found the shape {:?}", value.shape());
        }
        Ok(vec![each_dtype!(data, data => {
            let Some(&value) = value.array()?.first() else { bail!(internal, "one element is none") };
            self.run_on(data, value, &paddings)?
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, pads, g) = (back.x(0), back.x(1), back.g(0));
        if self.mode != PadMode::Constant {
            let inputs = [Some(g), Some(x.dimensions()), Some(pads), back.optional_x(3)];
            let op = PadTranspose { mode: self.mode };
            return Ok(back.only_first(back.builder().apply_all(op, &inputs)[0]));
        }
        // Cropping undoes padding, and padding with zeros undoes cropping.
        let axes = back.optional_x(3);
        let undone = match pads.fact().known_integers() {
            Some(pads) => back.builder().integers(pads.into_iter().map(i64::wrapping_neg)),
            None => pads.scalar_like(0.0) - pads,
        };
        let inner = back.builder().apply_all(self.clone(), &[Some(g), Some(undone), None, axes])[0];
        let mut cotangents = back.only_first(inner);
        if back.wants(2) {
            cotangents[2] = Cotangent::Flows((g.sum() - inner.sum()).reshape_like(back.x(2)));
        }
        Ok(cotangents)
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        match self.mode {
            PadMode::Constant => {}
            PadMode::Edge => node.string("mode", "edge"),
            PadMode::Reflect => node.string("mode", "reflect"),
            PadMode::Wrap => {
                node.since(19, "the mode 'wrap' of Pad")?;
                node.string("mode", "wrap");
            }
        }
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        if node.opset() >= 18 || node.optional_x(3).is_none() {
            return Ok(None);
        }
        // All axes in turn, which is how it was said before there were axes.
        let (rank, pads) = (node.x(0).rank(), node.known(1, "the pads")?);
        let axes = paired_axes(pads.len(), Some(&node.known(3, "the axes")?), rank)?;
        let mut all = vec![0; 2 * rank];
        for (place, axis) in axes.iter().enumerate() {
            (all[*axis], all[rank + axis]) = (pads[place], pads[axes.len() + place]);
        }
        let inputs = [node.optional_x(0), Some(node.builder().integers(all)), node.optional_x(2)];
        node.one(node.builder().apply_all(self.clone(), &inputs)[0])
    }
}

impl Listed for Pad {
    const ONNX: &'static [&'static str] = &["Pad"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        let dtype = node.required_input(0)?.dtype;
        for name in ["paddings", "pads"] {
            if let Some(pads) = node.ints(name)? {
                node.set_input(1, Tensor::vector(pads));
            }
        }
        if let Some(value) = node.float("value")? {
            node.set_input(2, Tensor::scalar(value).cast(dtype));
        }
        let mode = match node.string_or("mode", "constant")?.as_str() {
            "constant" => PadMode::Constant,
            "edge" => PadMode::Edge,
            "reflect" => PadMode::Reflect,
            "wrap" => PadMode::Wrap,
            other => bail!(
                unsupported,
                "attribute 'mode': expected constant, edge, reflect or wrap, found '{other}'"
            ),
        };
        Ok(Self { mode })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).input(&[2, 3]);
        let at = |values: &[i64]| Tensor::vector(values.to_vec()).into();
        let constant = || Pad { mode: PadMode::Constant };
        let mut samples = vec![
            Sample::new(constant(), [x(), at(&[0, 2, 0, 1])]),
            Sample::new(constant(), [x(), at(&[1, -1, 0, 2]), floats(-1.0, 1.0).input(&[])]),
            Sample::new(constant(), [x(), at(&[-1, 1]), floats(-1.0, 1.0).input(&[1]), at(&[-1])]),
        ];
        for mode in [PadMode::Edge, PadMode::Reflect, PadMode::Wrap] {
            samples.push(Sample::new(Pad { mode }, [x(), at(&[0, 4, 0, 1])]));
            samples.push(Sample::new(Pad { mode }, [x(), at(&[0, -1, 0, 3])]));
        }
        samples
    }
}

/// The elements of an axis of `g`, each added to the place that `sources` names for it: as slices, each of places that
/// follow each other.
fn summed_runs<'b>(g: Var<'b>, axis: usize, sources: &[Option<usize>], length: usize) -> Var<'b> {
    let step = |place: usize| match (sources[place - 1], sources[place]) {
        (Some(before), Some(here)) => Some(here as i64 - before as i64).filter(|step| step.abs() <= 1),
        _ => None,
    };
    let (rank, mut sum, mut start) = (g.rank(), None, 0);
    while start < sources.len() {
        let Some(first) = sources[start] else {
            start += 1;
            continue;
        };
        let mut end = start + 1;
        let direction = (end < sources.len()).then(|| step(end)).flatten();
        while end < sources.len() && direction.is_some() && step(end) == direction {
            end += 1;
        }
        let run = g.slice(axis, start as i64, end as i64);
        let (run, low, count) = match direction {
            Some(0) => (run.reduce_sum([axis], true), first, 1),
            Some(-1) => (run.reversed(axis), first + 1 - (end - start), end - start),
            _ => (run, first, end - start),
        };
        let mut pads = vec![0; 2 * rank];
        (pads[axis], pads[rank + axis]) = (low as i64, (length - low - count) as i64);
        let padded = Pad::zeros(run, pads);
        sum = Some(sum.map_or(padded, |sum| sum + padded));
        start = end;
    }
    let nothing = || {
        let mut pads = vec![0; 2 * rank];
        pads[rank + axis] = length as i64;
        Pad::zeros(g.slice(axis, 0, 0), pads)
    };
    sum.unwrap_or_else(nothing)
}

/// The transpose of a [`Pad`] that repeats elements: each element of `g` goes back to where it came from, and those
/// that came from one place are summed.
///
/// Inputs `g, shape, pads, axes?`, where `shape` is that of the pad's input.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PadTranspose {
    /// What the pad continued with.
    pub mode: PadMode,
}

impl PadTranspose {
    fn run_on<T: Float>(&self, g: &Array<T>, shape: &[usize], paddings: &[Padding]) -> Result<Tensor> {
        let mut y = g.to_owned();
        for padding in paddings.iter().rev() {
            let axis = Axis(padding.axis);
            let sources = padding.sources(self.mode, shape[padding.axis])?;
            check_shape(&[sources.len()], &[y.shape()[padding.axis]])?;
            let mut summed_shape = y.shape().to_vec();
            summed_shape[padding.axis] = shape[padding.axis];
            let mut summed = ArrayD::from_elem(IxDyn(&summed_shape), T::zero());
            for (place, source) in sources.into_iter().enumerate() {
                if let Some(source) = source {
                    let mut target = summed.index_axis_mut(axis, source);
                    target.zip_mut_with(&y.index_axis(axis, place), |sum, &g| *sum += g);
                }
            }
            y = summed;
        }
        check_shape(shape, y.shape())?;
        Ok(T::wrap(y.into_shared()))
    }
}

impl OpDef for PadTranspose {
    fn name(&self) -> &str {
        "PadTranspose"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        Ok(vec![Fact::new(x.get(0)?.dtype, expressions(x, 1, "the lengths")?.to_vec())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = shape_input(x, 1)?;
        let paddings = Pad::paddings(x, 2, 3, shape.len())?;
        let g = x.get(0)?;
        if g.shape().len() != shape.len() {
            bail!(shape, "expected rank {}, found the shape {:?}", shape.len(), g.shape());
        }
        Ok(vec![each_float!(g, g => self.run_on(g, &shape, &paddings)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let inputs = [Some(back.g(0)), Some(back.x(2)), None, back.optional_x(3)];
        Ok(back.only_first(back.builder().apply_all(Pad { mode: self.mode }, &inputs)[0]))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        let (lengths, pads) = (node.known(1, "the lengths")?, node.known(2, "the pads")?);
        let axes = node.optional_x(3).map(|_| node.known(3, "the axes")).transpose()?;
        let mut y = node.x(0);
        for padding in paddings(&pads, axes.as_deref(), lengths.len())?.iter().rev() {
            let length = lengths[padding.axis].max(0) as usize;
            y = summed_runs(y, padding.axis, &padding.sources(self.mode, length)?, length);
        }
        node.one(y)
    }
}

impl Listed for PadTranspose {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(internal, "no file has this op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let g = || floats(-1.0, 1.0).input(&[2, 6]);
        let at = |values: &[i64]| Tensor::vector(values.to_vec()).into();
        [PadMode::Edge, PadMode::Reflect, PadMode::Wrap]
            .map(|mode| Sample::new(PadTranspose { mode }, [g(), at(&[2, 3]), at(&[2, 1]), at(&[1])]))
            .to_vec()
    }
}

/// Repeats a tensor along each axis as often as `repeats` says. Inputs `x, repeats`. ONNX `Tile` 6, 13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tile;

impl OpDef for Tile {
    fn name(&self) -> &str {
        "Tile"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let data = x.get(0)?;
        let repeats = expressions(x, 1, "the repeats")?;
        if repeats.len() != data.rank() || repeats.iter().any(|n| n.known().is_some_and(|n| n < 0)) {
            bail!(shape, "expected {} non-negative repeats, found {repeats:?}", data.rank());
        }
        let shape = data.shape.iter().zip(repeats).map(|(length, repeat)| length * repeat).collect();
        Ok(vec![Fact::new(data.dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn tile<T: Element>(x: &Array<T>, repeats: &[usize]) -> Result<Tensor> {
            let lengths = x.shape().iter().zip(repeats);
            let shape: Vec<usize> = lengths.map(|(length, repeat)| length.saturating_mul(*repeat)).collect();
            if allocatable(&shape)? == 0 {
                let y = ArrayD::from_shape_vec(IxDyn(&shape), vec![]);
                return match y {
                    Ok(y) => Ok(T::wrap(y.into_shared())),
                    Err(_) => bail!(shape, "a tensor of shape {shape:?} does not fit into memory"),
                };
            }
            let mut y = x.to_owned();
            for (axis, &repeat) in repeats.iter().enumerate().filter(|(_, repeat)| **repeat != 1) {
                let length = y.shape()[axis];
                let mut tiled_shape = y.shape().to_vec();
                tiled_shape[axis] = length * repeat;
                let mut tiled = ArrayD::from_elem(IxDyn(&tiled_shape), x[IxDyn(&vec![0; x.ndim()])]);
                for place in 0..repeat {
                    let start = (place * length) as isize;
                    let places = Places::new(start, Some(start + length as isize), 1);
                    tiled.slice_axis_mut(Axis(axis), places).assign(&y);
                }
                y = tiled;
            }
            Ok(T::wrap(y.into_shared()))
        }
        let (x, repeats) = (x.get(0)?, x.get(1)?.to_integers()?);
        let counts: Result<Vec<usize>, _> = repeats.iter().map(|&repeat| usize::try_from(repeat)).collect();
        match counts {
            Ok(counts) if counts.len() == x.shape().len() => Ok(vec![each_dtype!(x, x => tile(x, &counts)?)]),
            _ => bail!(shape, "expected {} non-negative repeats, found {repeats:?}", x.shape().len()),
        }
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, repeats, g) = (back.x(0), back.x(1), back.g(0));
        let rank = x.rank();
        // Each axis as two: which copy, and where in it.
        let expressions: Vec<Dim> = repeats.fact().integers().map(<[Dim]>::to_vec).unwrap_or_default();
        let interleaved: Vec<Dim> =
            expressions.into_iter().zip(x.shape()).flat_map(|(repeat, length)| [repeat, length]).collect();
        let unknown = interleaved.iter().filter(|dim| dim.known().is_none()).count();
        let target = if unknown <= usize::from(!interleaved.iter().any(|dim| dim.is(0))) {
            back.builder().integers(interleaved.iter().map(|dim| dim.known().unwrap_or(-1)))
        } else {
            let column = |vector: Var<'b>| vector.cast(DType::I64).unsqueeze([1]);
            let lengths = back.builder().apply(Shape::default(), &[x]);
            let pairs = back.builder().concat(&[column(repeats), column(lengths)], 1);
            pairs.reshape([2 * rank as i64])
        };
        let split = back.builder().apply(Reshape { allow_zero: true }, &[g, target]);
        Ok(back.only_first(split.reduce_sum((0..rank).map(|axis| 2 * axis), false)))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }
}

impl Listed for Tile {
    const ONNX: &'static [&'static str] = &["Tile"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        if node.opset() < 6 {
            bail!(
                unsupported,
                "this form of the op (opset {}) is not supported, only that of opset 6",
                node.opset()
            );
        }
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let at = |values: &[i64]| Tensor::vector(values.to_vec()).into();
        vec![
            Sample::new(Tile, [floats(-1.0, 1.0).input(&[2, 3]), at(&[1, 2])]),
            Sample::new(Tile, [floats(-1.0, 1.0).input(&[2, 1, 3]), at(&[3, 2, 2])]),
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
    fn pads_may_be_longer_than_what_they_repeat() {
        let pad =
            |mode, pads: &[i64]| outputs(Pad { mode }, &[counting(&[2, 3]), integers(&[4], pads)]).remove(0);
        let reflected = [0, 1, 2, 1, 0, 1, 2, 1, 0, 3, 4, 5, 4, 3, 4, 5, 4, 3, 0, 1, 2, 1, 0, 1, 2, 1, 0];
        assert_eq!(pad(PadMode::Reflect, &[0, 4, 1, 2]), integers(&[3, 9], &reflected));
        let edge = [0, 0, 1, 2, 2, 2, 3, 3, 4, 5, 5, 5, 3, 3, 4, 5, 5, 5];
        assert_eq!(pad(PadMode::Edge, &[0, 1, 1, 2]), integers(&[3, 6], &edge));
        let wrapped = [1, 2, 0, 1, 2, 0, 1, 2, 0, 4, 5, 3, 4, 5, 3, 4, 5, 3];
        assert_eq!(pad(PadMode::Wrap, &[0, 2, 0, 4]), integers(&[2, 9], &wrapped));
    }

    /// Worked out by hand: the reference evaluator does not crop.
    #[test]
    fn negative_pads_crop() {
        let x = [counting(&[2, 3]), integers(&[4], &[1, -1, 0, 1]), Tensor::scalar(9i64)];
        let y = outputs(Pad { mode: PadMode::Constant }, &x);
        assert_eq!(y, [integers(&[3, 3], &[9, 9, 9, 1, 2, 9, 4, 5, 9])]);
    }

    #[test]
    fn absurd_pads_end_in_an_error() {
        for pads in [[i64::MAX, i64::MAX], [i64::MIN, 0], [1 << 39, 0], [-2, -2], [0, -100]] {
            let (x, pads) = (counting(&[3]), integers(&[2], &pads));
            assert!(Pad { mode: PadMode::Edge }.run(&Inputs(&[Some(&x), Some(&pads)])).is_err(), "{pads:?}");
        }
    }

    #[test]
    fn tiles_repeat_each_axis() {
        let y = outputs(Tile, &[counting(&[1, 2]), integers(&[2], &[2, 2])]);
        assert_eq!(y, [integers(&[2, 4], &[0, 1, 0, 1, 0, 1, 0, 1])]);
    }
}
