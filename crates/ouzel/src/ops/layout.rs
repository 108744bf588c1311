//! Ops that keep the elements and change their shape, order or type.

use super::broadcast::{broadcast_shapes, broadcast_view};
use crate::backprop::{Back, Cotangents};
use crate::dim::{Dim, display_shape, known_shape, product};
use crate::error::{Context, Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::{Constant, Fact};
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, Op, OpDef, Real, resolve_axis};
use crate::tensor::{Array, DType, Element, Tensor, each_dtype};
use ndarray::IxDyn;
use std::ops::Range;

/// The same elements in row-major order in another shape.
pub(crate) fn reshaped(x: &Tensor, shape: &[usize]) -> Result<Tensor> {
    fn reshape<T: Element>(x: &Array<T>, shape: &[usize]) -> Result<Tensor> {
        let standard = if x.is_standard_layout() { x.clone() } else { x.as_standard_layout().to_shared() };
        match standard.into_shape_with_order(IxDyn(shape)) {
            Ok(y) => Ok(T::wrap(y)),
            Err(_) => {
                bail!(shape, "{} elements of shape {:?} do not fill the shape {shape:?}", x.len(), x.shape())
            }
        }
    }
    each_dtype!(x, x => reshape(x, shape))
}

/// `y = x`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Identity;

impl OpDef for Identity {
    fn name(&self) -> &str {
        "Identity"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        Ok(vec![x.get(0)?.clone()])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        Ok(vec![x.get(0)?.clone()])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(back.g(0)))
    }
}

impl Listed for Identity {
    const ONNX: &'static [&'static str] = &["Identity"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(Identity, [floats(-1.0, 1.0).input(&[2, 3])])]
    }
}

/// `y = x` when a network is not being trained; the second output, the mask, is all true.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dropout;

impl OpDef for Dropout {
    fn name(&self) -> &str {
        "Dropout"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        Ok(vec![x.clone(), Fact::new(DType::Bool, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let x = x.get(0)?;
        Ok(vec![x.clone(), Tensor::Bool(Array::from_elem(IxDyn(x.shape()), true))])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(back.g(0)))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        let x = node.x(0);
        let yes = node.builder().constant(Tensor::scalar(true));
        let mask = node.builder().apply(Expand, &[yes, x.dimensions()]);
        Ok(Some(vec![node.builder().apply(Identity, &[x]), mask]))
    }
}

impl Listed for Dropout {
    const ONNX: &'static [&'static str] = &["Dropout"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        for ignored in ["ratio", "seed", "is_test"] {
            node.ignore(ignored);
        }
        node.keep_inputs(1);
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(Dropout, [floats(-1.0, 1.0).input(&[2, 3])])]
    }
}

/// The same numbers as another element type. Between floating point types the gradient passes; no other cast has one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cast {
    /// The element type of the output.
    pub to: DType,
}

impl OpDef for Cast {
    fn name(&self) -> &str {
        "Cast"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        Ok(vec![Fact::new(self.to, x.get(0)?.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        Ok(vec![x.get(0)?.cast(self.to)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        if !back.x(0).dtype().is_float() || !self.to.is_float() {
            return Ok(back.stops("it converts from or to integers"));
        }
        Ok(back.only_first(back.g(0).cast(back.x(0).dtype())))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }

    fn in_float64(&self) -> Option<Op> {
        (self.to == DType::F32).then(|| Self { to: DType::F64 }.into())
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.dtype("to", self.to);
        Ok(())
    }
}

impl Listed for Cast {
    const ONNX: &'static [&'static str] = &["Cast"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        node.ignore("saturate");
        match node.int("to")? {
            Some(code) => Ok(Self { to: crate::onnx::dtype_of_code(code)? }),
            None => bail!(model, "the attribute 'to' is missing"),
        }
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(Cast { to: DType::F64 }, [floats(-1.0, 1.0).input(&[2, 3])])]
    }
}

/// The numbers of the first input as the element type of the second.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CastLike;

impl OpDef for CastLike {
    fn name(&self) -> &str {
        "CastLike"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        Ok(vec![Fact::new(x.get(1)?.dtype, x.get(0)?.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        Ok(vec![x.get(0)?.cast(x.get(1)?.dtype())])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Cast { to: back.y(0).dtype() }.vjp(back)
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        let cast = Cast { to: node.y(0).dtype };
        Ok((node.opset() < 15).then(|| vec![node.builder().apply(cast, &[node.x(0)])]))
    }
}

impl Listed for CastLike {
    const ONNX: &'static [&'static str] = &["CastLike"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        node.ignore("saturate");
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(CastLike, [floats(-1.0, 1.0).input(&[2, 3]), Tensor::vector([1.0f64]).into()])]
    }
}

/// The same elements in another shape. In the target -1 is what is left over, and 0 copies the input's length
/// unless `allow_zero`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reshape {
    /// 0 in the target is a length of 0.
    pub allow_zero: bool,
}

impl Reshape {
    /// The target with 0 and -1 replaced.
    fn resolve(&self, shape: &[Dim], target: &[Dim]) -> Result<Vec<Dim>> {
        let mut resolved: Vec<Dim> = Vec::with_capacity(target.len());
        let mut left_over = None;
        for (axis, dim) in target.iter().enumerate() {
            resolved.push(match dim.known() {
                Some(0) if !self.allow_zero => match shape.get(axis) {
                    Some(dim) => dim.clone(),
                    None => bail!(
                        shape,
                        "0 at place {axis} copies an axis that {} does not have",
                        display_shape(shape)
                    ),
                },
                Some(-1) if left_over.is_none() => {
                    left_over = Some(axis);
                    Dim::from(1i64)
                }
                Some(length) if length < 0 => {
                    bail!(shape, "the target shape {} is not a shape", display_shape(target))
                }
                _ => dim.clone(),
            });
        }
        let count = product(shape);
        if let Some(axis) = left_over {
            let others = product(&resolved);
            if others.is(0) {
                bail!(shape, "-1 in {} cannot be told: another length is 0", display_shape(target));
            }
            resolved[axis] = count.divide(&others);
        }
        if let (Some(from), Some(to)) = (count.known(), product(&resolved).known())
            && from != to
        {
            bail!(
                shape,
                "{} has {from} elements, which do not fill {}",
                display_shape(shape),
                display_shape(target)
            );
        }
        Ok(resolved)
    }
}

impl OpDef for Reshape {
    fn name(&self) -> &str {
        "Reshape"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (x, target) = (x.get(0)?, x.get(1)?);
        match target.integers() {
            Some(dims) => Ok(vec![Fact::new(x.dtype, self.resolve(&x.shape, dims)?)]),
            None => bail!(unsupported, "the target shape depends on the values of the network's input"),
        }
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let (x, target) = (x.get(0)?, x.get(1)?.to_integers()?);
        let dims = |lengths: &[i64]| -> Vec<Dim> { lengths.iter().map(|&length| length.into()).collect() };
        let lengths: Vec<i64> = x.shape().iter().map(|&length| length as i64).collect();
        let resolved = self.resolve(&dims(&lengths), &dims(&target))?;
        match known_shape(&resolved) {
            Some(shape) => Ok(vec![reshaped(x, &shape)?]),
            None => bail!(shape, "the target shape {target:?} does not fit {:?}", x.shape()),
        }
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(back.g(0).reshape_like(back.x(0))))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        // A length of 0 is the only thing that it changes; symbolic lengths are not 0.
        let target = node.fact(1).and_then(Fact::integers);
        if self.allow_zero && target.is_none_or(|target| target.iter().any(|dim| dim.is(0))) {
            node.since(14, "the attribute 'allowzero' of Reshape")?;
            node.int("allowzero", 1);
        }
        Ok(())
    }
}

impl Listed for Reshape {
    const ONNX: &'static [&'static str] = &["Reshape"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        if let Some(shape) = node.ints("shape")? {
            node.set_input(1, Tensor::vector(shape));
        }
        node.ignore("consumed_inputs");
        Ok(Self { allow_zero: node.flag_or("allowzero", false)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).input(&[2, 3, 4]);
        let target = |shape: &[i64]| Tensor::vector(shape.to_vec()).into();
        vec![
            Sample::new(Reshape { allow_zero: false }, [x(), target(&[0, -1])]),
            Sample::new(Reshape { allow_zero: false }, [x(), target(&[-1, 4, 3])]),
        ]
    }
}

/// Two axes: those before `axis` and those from it on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Flatten {
    /// Where the second axis begins; negative counts from the end.
    pub axis: i64,
}

impl Flatten {
    fn split(&self, rank: usize) -> Result<usize> {
        if self.axis == rank as i64 {
            return Ok(rank);
        }
        resolve_axis(self.axis, rank).context(|| "attribute 'axis'")
    }
}

impl OpDef for Flatten {
    fn name(&self) -> &str {
        "Flatten"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        let (outer, inner) = x.shape.split_at(self.split(x.rank())?);
        Ok(vec![Fact::new(x.dtype, vec![product(outer), product(inner)])])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let x = x.get(0)?;
        let (outer, inner) = x.shape().split_at(self.split(x.shape().len())?);
        Ok(vec![reshaped(x, &[outer.iter().product(), inner.iter().product()])?])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(back.g(0).reshape_like(back.x(0))))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.axis);
        Ok(())
    }
}

impl Listed for Flatten {
    const ONNX: &'static [&'static str] = &["Flatten"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { axis: node.int_or("axis", 1)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        [1, 2, -1].map(|axis| Sample::new(Flatten { axis }, [floats(-1.0, 1.0).input(&[2, 3, 4])])).to_vec()
    }
}

/// Axis `i` of the output is axis `permutation[i]` of the input; without a permutation the order is reversed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Transpose {
    /// Where each output axis comes from.
    pub permutation: Option<Vec<usize>>,
}

impl Transpose {
    /// The permutation for a tensor of this rank.
    pub(crate) fn resolve(&self, rank: usize) -> Result<Vec<usize>> {
        let Some(permutation) = &self.permutation else { return Ok((0..rank).rev().collect()) };
        let mut sorted = permutation.clone();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..rank) {
            bail!(shape, "{permutation:?} does not order the axes of a tensor of rank {rank}");
        }
        Ok(permutation.clone())
    }
}

impl OpDef for Transpose {
    fn name(&self) -> &str {
        "Transpose"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        let permutation = self.resolve(x.rank())?;
        Ok(vec![Fact::new(x.dtype, permutation.iter().map(|&axis| x.shape[axis].clone()).collect())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let x = x.get(0)?;
        let permutation = self.resolve(x.shape().len())?;
        Ok(vec![
            each_dtype!(x, x => x.clone().permuted_axes(permutation).as_standard_layout().to_shared().into()),
        ])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let permutation = self.resolve(back.x(0).rank())?;
        let mut inverse = vec![0; permutation.len()];
        for (to, &from) in permutation.iter().enumerate() {
            inverse[from] = to;
        }
        Ok(back.only_first(back.g(0).transpose(inverse)))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        if let Some(permutation) = &self.permutation {
            node.ints("perm", &permutation.iter().map(|&axis| axis as i64).collect::<Vec<_>>());
        }
        Ok(())
    }
}

impl Listed for Transpose {
    const ONNX: &'static [&'static str] = &["Transpose"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { permutation: node.sizes("perm")? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        [None, Some(vec![1, 2, 0])]
            .map(|permutation| Sample::new(Transpose { permutation }, [floats(-1.0, 1.0).input(&[2, 3, 4])]))
            .to_vec()
    }
}

/// Resolves distinct axes against a rank, sorted.
pub(crate) fn resolve_axes(axes: &[i64], rank: usize) -> Result<Vec<usize>> {
    let mut resolved = axes.iter().map(|&axis| resolve_axis(axis, rank)).collect::<Result<Vec<usize>>>()?;
    resolved.sort_unstable();
    if resolved.windows(2).any(|pair| pair[0] == pair[1]) {
        bail!(shape, "axes {axes:?} name an axis twice");
    }
    Ok(resolved)
}

/// Removes axes of length 1: those named, or all of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Squeeze {
    /// The axes to remove.
    pub axes: Option<Vec<i64>>,
}

impl Squeeze {
    fn removed(&self, shape: &[Dim]) -> Result<Vec<usize>> {
        let Some(axes) = &self.axes else {
            return Ok((0..shape.len()).filter(|&axis| shape[axis].is(1)).collect());
        };
        let axes = resolve_axes(axes, shape.len())?;
        match axes.iter().find(|&&axis| shape[axis].known().is_some_and(|length| length != 1)) {
            Some(axis) => bail!(shape, "axis {axis} of {} has not length 1", display_shape(shape)),
            None => Ok(axes),
        }
    }
}

impl OpDef for Squeeze {
    fn name(&self) -> &str {
        "Squeeze"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        let removed = self.removed(&x.shape)?;
        let kept = (0..x.rank()).filter(|axis| !removed.contains(axis));
        Ok(vec![Fact::new(x.dtype, kept.map(|axis| x.shape[axis].clone()).collect())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let x = x.get(0)?;
        let fact = &self.infer(&Inputs(&[Some(&Fact::of(x))]))?[0];
        Ok(vec![reshaped(x, &known_shape(&fact.shape).unwrap_or_default())?])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(back.g(0).unsqueeze(self.removed(&back.x(0).shape())?)))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        if let Some(axes) = &self.axes {
            node.axes(1, axes, 13);
        }
        Ok(())
    }
}

impl Listed for Squeeze {
    const ONNX: &'static [&'static str] = &["Squeeze"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { axes: node.ints_or_input("axes", 1)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).input(&[2, 1, 3, 1]);
        [None, Some(vec![1]), Some(vec![-1, 1])].map(|axes| Sample::new(Squeeze { axes }, [x()])).to_vec()
    }
}

/// Inserts axes of length 1 at these places of the output.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unsqueeze {
    /// The places, in the output.
    pub axes: Vec<i64>,
}

impl OpDef for Unsqueeze {
    fn name(&self) -> &str {
        "Unsqueeze"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        let mut shape = x.shape.clone();
        for axis in resolve_axes(&self.axes, x.rank() + self.axes.len())? {
            shape.insert(axis, 1.into());
        }
        Ok(vec![Fact::new(x.dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let x = x.get(0)?;
        let fact = &self.infer(&Inputs(&[Some(&Fact::of(x))]))?[0];
        Ok(vec![reshaped(x, &known_shape(&fact.shape).unwrap_or_default())?])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let axes = resolve_axes(&self.axes, back.y(0).rank())?;
        Ok(back.only_first(back.g(0).squeeze(axes)))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.axes(1, &self.axes, 13);
        Ok(())
    }
}

impl Listed for Unsqueeze {
    const ONNX: &'static [&'static str] = &["Unsqueeze"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        match node.ints_or_input("axes", 1)? {
            Some(axes) => Ok(Self { axes }),
            None => bail!(model, "the axes are missing"),
        }
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        [vec![0], vec![1, -1]]
            .map(|axes| Sample::new(Unsqueeze { axes }, [floats(-1.0, 1.0).input(&[2, 3])]))
            .to_vec()
    }
}

/// Repeats axes of length 1 as the target shape says, with two-sided broadcasting.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expand;

impl OpDef for Expand {
    fn name(&self) -> &str {
        "Expand"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (x, target) = (x.get(0)?, x.get(1)?);
        match target.integers() {
            Some(dims) => Ok(vec![Fact::new(x.dtype, broadcast_shapes(&x.shape, dims)?)]),
            None => bail!(unsupported, "the target shape depends on the values of the network's input"),
        }
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let (x, target) = (x.get(0)?, x.get(1)?.to_integers()?);
        let lengths: Result<Vec<usize>, _> = target.iter().map(|&length| usize::try_from(length)).collect();
        let Ok(lengths) = lengths else { bail!(shape, "the target shape {target:?} is not a shape") };
        let shape = super::broadcast::broadcast_lengths(x.shape(), &lengths)?;
        Ok(vec![each_dtype!(x, x => broadcast_view(x, &shape)?.to_owned().into())])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        // The walk undoes broadcasting.
        Ok(back.only_first(back.g(0)))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }
}

impl Listed for Expand {
    const ONNX: &'static [&'static str] = &["Expand"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = floats(-1.0, 1.0).input(&[2, 1, 3]);
        vec![Sample::new(Expand, [x, Tensor::vector([4i64, 1, 5, 3]).into()])]
    }
}

/// The lengths of the axes from `start` to before `end`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Shape {
    /// The first axis; negative counts from the end.
    pub start: i64,
    /// The axis to stop before; negative counts from the end; `None` is the rank.
    pub end: Option<i64>,
}

impl Shape {
    fn range(&self, rank: usize) -> Range<usize> {
        let rank = rank as i64;
        let clamp = |axis: i64| (if axis < 0 { axis + rank } else { axis }).clamp(0, rank) as usize;
        let (start, end) = (clamp(self.start), clamp(self.end.unwrap_or(rank)));
        start..end.max(start)
    }
}

impl OpDef for Shape {
    fn name(&self) -> &str {
        "Shape"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        let dims = x.shape[self.range(x.rank())].to_vec();
        Ok(vec![Fact::new(DType::I64, vec![dims.len().into()]).with_integers(dims)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = x.get(0)?.shape();
        Ok(vec![Tensor::vector(shape[self.range(shape.len())].iter().map(|&length| length as i64))])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.stops("its output is a shape"))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        if self.start != 0 {
            node.int("start", self.start);
        }
        if let Some(end) = self.end {
            node.int("end", end);
        }
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        if node.opset() >= 15 || (self.start == 0 && self.end.is_none()) {
            return Ok(None);
        }
        let range = self.range(node.x(0).rank());
        node.one(node.x(0).dimensions().slice(0, range.start as i64, range.end as i64))
    }
}

impl Listed for Shape {
    const ONNX: &'static [&'static str] = &["Shape"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { start: node.int_or("start", 0)?, end: node.int("end")? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(Shape { start: 1, end: None }, [floats(-1.0, 1.0).input(&[2, 3])])]
    }
}

/// The number of elements.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Size;

impl OpDef for Size {
    fn name(&self) -> &str {
        "Size"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        Ok(vec![Fact::new(DType::I64, vec![]).with_integers(vec![product(&x.get(0)?.shape)])])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        Ok(vec![Tensor::scalar(x.get(0)?.len() as i64)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.stops("its output is a size"))
    }
}

impl Listed for Size {
    const ONNX: &'static [&'static str] = &["Size"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(Size, [floats(-1.0, 1.0).input(&[2, 3])])]
    }
}

/// A tensor of the given shape whose elements are all one value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConstantOfShape {
    /// The value.
    pub value: Real,
    /// Its element type.
    pub dtype: DType,
}

impl OpDef for ConstantOfShape {
    fn name(&self) -> &str {
        "ConstantOfShape"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let target = x.get(0)?;
        match target.integers() {
            Some(dims) => Ok(vec![Fact::new(self.dtype, dims.to_vec())]),
            None => bail!(unsupported, "the shape depends on the values of the network's input"),
        }
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let target = x.get(0)?.to_integers()?;
        let lengths: Result<Vec<usize>, _> = target.iter().map(|&length| usize::try_from(length)).collect();
        let Ok(shape) = lengths else { bail!(shape, "the shape {target:?} has a negative length") };
        Ok(vec![Tensor::from(Array::from_elem(IxDyn(&shape), self.value.0)).cast(self.dtype)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.stops("its output is a constant"))
    }

    fn in_float64(&self) -> Option<Op> {
        (self.dtype == DType::F32).then(|| Self { dtype: DType::F64, ..self.clone() }.into())
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        // Written though it may be the default, which tract takes for float64.
        node.tensor("value", &Tensor::vector([self.value.0]).cast(self.dtype));
        Ok(())
    }
}

impl Listed for ConstantOfShape {
    const ONNX: &'static [&'static str] = &["ConstantOfShape"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        let Some(value) = node.tensor("value")?.as_ref().map(Constant::tensor).transpose()? else {
            return Ok(Self { value: Real(0.0), dtype: DType::F32 });
        };
        match value.to_f64().first() {
            Some(&element) => Ok(Self { value: Real(element), dtype: value.dtype() }),
            None => bail!(model, "the attribute 'value' is empty"),
        }
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let op = ConstantOfShape { value: Real(2.0), dtype: DType::F64 };
        vec![Sample::new(op, [Tensor::vector([2i64, 3]).into()])]
    }
}
