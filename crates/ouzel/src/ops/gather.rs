//! Ops that pick elements by index, and their transposes, which sum elements up by index.

use super::slice::{allocatable, check_shape, expressions, shape_input};
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::display_shape;
use crate::error::{Context, Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef, Real, resolve_axis};
use crate::ops::layout::{ConstantOfShape, Reshape};
use crate::ops::pad::Pad;
use crate::ops::scatter::{ScatterND, ScatterReduction};
use crate::tensor::{Array, DType, Element, Float, Tensor, each_dtype, each_float};
use ndarray::{ArrayD, Axis, IxDyn};
use std::ops::Range;

/// An index on an axis; negative counts from the end.
pub(crate) fn resolve_index(index: i64, length: usize) -> Result<usize> {
    let resolved = if index < 0 { index.saturating_add(length as i64) } else { index };
    if resolved < 0 || resolved >= length as i64 {
        bail!(shape, "index {index} is out of range for an axis of length {length}");
    }
    Ok(resolved as usize)
}

/// Refuses what is no index.
pub(crate) fn check_indices(indices: &Fact) -> Result<()> {
    if !indices.dtype.is_integer() {
        bail!(shape, "expected indices of an integer type, found {indices}");
    }
    Ok(())
}

/// `y[a…, i…, b…] = x[a…, indices[i…], b…]`: the slices of x along an axis that `indices` names.
///
/// Inputs `x, indices`. ONNX `Gather` 1, 11, 13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gather {
    /// The axis; negative counts from the end.
    pub axis: i64,
}

/// The shape of what a gather gives.
fn gathered<D: Clone>(x: &[D], indices: &[D], axis: usize) -> Vec<D> {
    x[..axis].iter().chain(indices).chain(&x[axis + 1..]).cloned().collect()
}

impl OpDef for Gather {
    fn name(&self) -> &str {
        "Gather"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (x, indices) = (x.get(0)?, x.get(1)?);
        check_indices(indices)?;
        let axis = resolve_axis(self.axis, x.rank()).context(|| "attribute 'axis'")?;
        if let (Some(indices), Some(length)) = (indices.known_integers(), x.shape[axis].known()) {
            for index in indices {
                resolve_index(index, length.max(0) as usize)?;
            }
        }
        Ok(vec![Fact::new(x.dtype, gathered(&x.shape, &indices.shape, axis))])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn gather<T: Element>(
            x: &Array<T>,
            indices: &[usize],
            shape: &[usize],
            axis: usize,
        ) -> Result<Tensor> {
            let y = x.select(Axis(axis), indices);
            let y = y.as_standard_layout().into_owned();
            match y.into_shape_with_order(IxDyn(shape)) {
                Ok(y) => Ok(T::wrap(y.into_shared())),
                Err(error) => bail!(internal, "a gather has a wrong number of elements: {error}"),
            }
        }
        let (x, indices) = (x.get(0)?, x.get(1)?);
        let axis = resolve_axis(self.axis, x.shape().len())?;
        let shape = gathered(x.shape(), indices.shape(), axis);
        allocatable(&shape)?;
        let length = x.shape()[axis];
        let indices = indices.to_integers()?;
        let places =
            indices.into_iter().map(|index| resolve_index(index, length)).collect::<Result<Vec<usize>>>()?;
        Ok(vec![each_dtype!(x, x => gather(x, &places, &shape, axis)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let x = back.x(0);
        let op = GatherTranspose { axis: resolve_axis(self.axis, x.rank())? };
        Ok(back.only_first(back.builder().apply(op, &[back.g(0), back.x(1), x.dimensions()])))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.axis);
        Ok(())
    }
}

impl Listed for Gather {
    const ONNX: &'static [&'static str] = &["Gather"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { axis: node.int_or("axis", 0)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).input(&[2, 3, 4]);
        let at =
            |shape: &[usize], values: &[i64]| Tensor::from_shape_vec(shape, values.to_vec()).unwrap().into();
        vec![
            Sample::new(Gather { axis: 1 }, [x(), at(&[2, 2], &[0, 2, -1, 2])]),
            Sample::new(Gather { axis: -1 }, [x(), at(&[], &[-2])]),
            Sample::new(Gather { axis: 0 }, [x(), at(&[3], &[1, 0, 1])]),
            Sample::new(Gather { axis: 2 }, [x(), at(&[0], &[])]),
        ]
    }
}

/// The transpose of [`Gather`]: `y[a…, indices[i…], b…] += g[a…, i…, b…]`, from zeros.
///
/// Inputs `g, indices, shape`, where `shape` is that of the gather's input.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatherTranspose {
    /// The axis that the gather picks from.
    pub axis: usize,
}

impl OpDef for GatherTranspose {
    fn name(&self) -> &str {
        "GatherTranspose"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (g, indices, shape) = (x.get(0)?, x.get(1)?, expressions(x, 2, "the lengths")?);
        check_indices(indices)?;
        if self.axis >= shape.len() || g.rank() + 1 != shape.len() + indices.rank() {
            bail!(shape, "{g} gathered by {indices} does not go back to {}", display_shape(shape));
        }
        Ok(vec![Fact::new(g.dtype, shape.to_vec())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn sum_up<T: Float>(g: &Array<T>, indices: &[i64], shape: &[usize], axis: usize) -> Result<Tensor> {
            let outer: usize = shape[..axis].iter().product();
            let inner: usize = shape[axis + 1..].iter().product();
            let g = g.as_standard_layout().into_owned();
            let flat = g.into_shape_with_order(IxDyn(&[outer, indices.len(), inner]));
            let Ok(flat) = flat else { bail!(internal, "a cotangent has a wrong number of elements") };
            let mut y = ArrayD::from_elem(IxDyn(&[outer, shape[axis], inner]), T::zero());
            for (place, &index) in indices.iter().enumerate() {
                let mut target = y.index_axis_mut(Axis(1), resolve_index(index, shape[axis])?);
                target.zip_mut_with(&flat.index_axis(Axis(1), place), |sum, &g| *sum += g);
            }
            Tensor::from_shape_vec(shape, y.into_iter().collect::<Vec<T>>())
        }
        let (g, indices, shape) = (x.get(0)?, x.get(1)?, shape_input(x, 2)?);
        if self.axis >= shape.len() {
            bail!(shape, "axis {} is out of range for the shape {shape:?}", self.axis);
        }
        check_shape(&gathered(&shape, indices.shape(), self.axis), g.shape())?;
        let indices = indices.to_integers()?;
        Ok(vec![each_float!(g, g => sum_up(g, &indices, &shape, self.axis)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let op = Gather { axis: self.axis as i64 };
        Ok(back.only_first(back.builder().apply(op, &[back.g(0), back.x(1)])))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        let (g, indices, lengths) = (node.x(0), node.x(1), node.x(2).cast(DType::I64));
        let shape = &node.y(0).shape;
        let picked = indices.rank();
        // One place that is known: zeros around it.
        if let (Some([place]), Some(length)) =
            (indices.fact().known_integers().as_deref(), shape[self.axis].known())
        {
            let place = resolve_index(*place, length.max(0) as usize)? as i64;
            let g = match picked {
                0 => g.unsqueeze([self.axis]),
                _ => g.squeeze(self.axis + 1..self.axis + picked),
            };
            let mut pads = vec![0; 2 * shape.len()];
            (pads[self.axis], pads[shape.len() + self.axis]) = (place, length - place - 1);
            return node.one(Pad::zeros(g, pads));
        }
        // The picked axes to the front, as one; whole slices are added up there.
        let builder = node.builder();
        let flat = indices.cast(DType::I64).reshape([-1]).unsqueeze([1]);
        let front: Vec<usize> =
            (self.axis..self.axis + picked).chain(0..self.axis).chain(self.axis + picked..g.rank()).collect();
        let others: Vec<i64> =
            (0..shape.len()).filter(|&axis| axis != self.axis).map(|axis| axis as i64).collect();
        let with_rest = |first: Var<'b>| match others.is_empty() {
            true => first,
            false => builder.concat(&[first, lengths.gather(0, others.clone())], 0),
        };
        let whole = with_rest(lengths.gather(0, vec![self.axis as i64]));
        let updates = with_rest(flat.dimensions().slice(0, 0, 1));
        let updates = builder.apply(Reshape { allow_zero: true }, &[g.transpose(front), updates]);
        let zeros = builder.apply(ConstantOfShape { value: Real(0.0), dtype: g.dtype() }, &[whole]);
        let op = ScatterND { reduction: ScatterReduction::Add };
        let summed = builder.apply(op, &[zeros, flat, updates]);
        let back = (1..=self.axis).chain([0]).chain(self.axis + 1..shape.len());
        node.one(summed.transpose(back))
    }
}

impl Listed for GatherTranspose {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(internal, "no file has this op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let g = floats(-1.0, 1.0).input(&[2, 4, 3]);
        let (indices, shape) = (Tensor::vector([0i64, 2, -1, 0]), Tensor::vector([2i64, 3, 3]));
        vec![Sample::new(GatherTranspose { axis: 1 }, [g, indices.into(), shape.into()])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_out_of_range_are_refused() {
        let x = Tensor::vector([1.0f32, 2.0]);
        for index in [2, -3, i64::MIN, i64::MAX] {
            let indices = Tensor::vector([index]);
            let error = Gather { axis: 0 }.run(&Inputs(&[Some(&x), Some(&indices)])).unwrap_err();
            assert!(error.to_string().contains(&format!("index {index} is out of range")), "{error}");
        }
    }
}
