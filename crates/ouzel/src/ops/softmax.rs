//! Ops that turn scores into distributions: the heads of classifiers and the weights of attention.

use crate::backprop::{Back, Cotangents};
use crate::error::{Context, Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, Op, OpDef, resolve_axis};
use crate::ops::layout::Flatten;
use crate::tensor::{Array, Float, Tensor, each_float};
use ndarray::{ArrayD, IxDyn};
use std::ops::Range;

/// The axes over which a distribution sums to one: a single axis from opset 13 on; before, all axes from `axis` on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Normalized {
    /// The axis, or the first one; negative counts from the end.
    pub axis: i64,
    /// The axes after `axis` belong to it too.
    pub flattened: bool,
}

impl Normalized {
    fn read(node: &mut NodeReader) -> Result<Self> {
        let flattened = node.opset() < 13;
        Ok(Self { axis: node.int_or("axis", if flattened { 1 } else { -1 })?, flattened })
    }

    /// Those of a tensor of this rank.
    pub(crate) fn axes(&self, rank: usize) -> Result<Range<usize>> {
        let axis = resolve_axis(self.axis, rank).context(|| "attribute 'axis'")?;
        Ok(axis..if self.flattened { rank } else { axis + 1 })
    }

    /// Over several axes: over one axis that they are joined to.
    fn lower<'b>(&self, node: &Lowering<'b>, op: impl Fn(Self) -> Op) -> Result<Lowered<'b>> {
        let x = node.x(0);
        if !self.flattened {
            return Ok(None);
        }
        let axes = self.axes(x.rank())?;
        if axes.len() == 1 {
            return node.one(node.builder().apply(op(Self { axis: self.axis, flattened: false }), &[x]));
        }
        let flat = node.builder().apply(Flatten { axis: axes.start as i64 }, &[x]);
        let y = node.builder().apply(op(Self { axis: 1, flattened: false }), &[flat]);
        node.one(y.reshape_like(x))
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        if !x.dtype.is_float() {
            bail!(shape, "expected floating point elements, found {}", x.dtype);
        }
        self.axes(x.rank())?;
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    /// Changes the elements of each group in place.
    fn run<T: Float>(&self, x: &Array<T>, change: impl Fn(&mut [T])) -> Result<ArrayD<T>> {
        let axes = self.axes(x.ndim())?;
        let order: Vec<usize> = (0..axes.start).chain(axes.end..x.ndim()).chain(axes.clone()).collect();
        let group: usize = x.shape()[axes].iter().product();
        let mut sorted = x.view().permuted_axes(IxDyn(&order)).as_standard_layout().into_owned();
        let elements = sorted.as_slice_mut().expect("invariant: standard layout");
        if group > 0 {
            elements.chunks_exact_mut(group).for_each(change);
        }
        let mut inverse = vec![0; order.len()];
        for (to, &from) in order.iter().enumerate() {
            inverse[from] = to;
        }
        Ok(sorted.permuted_axes(IxDyn(&inverse)).as_standard_layout().into_owned())
    }
}

fn largest<T: Float>(group: &[T]) -> T {
    group
        .iter()
        .copied()
        .fold(T::neg_infinity(), |max, value| if value > max || value.is_nan() { value } else { max })
}

#[cfg(test)]
fn samples<O: Into<crate::op::Op>>(op: impl Fn(Normalized) -> O) -> Vec<Sample> {
    [(-1, false), (1, false), (0, false), (1, true), (-1, true)]
        .map(|(axis, flattened)| {
            Sample::new(op(Normalized { axis, flattened }), [floats(-1.0, 1.0).distinct().input(&[2, 3, 4])])
        })
        .to_vec()
}

/// `y = exp(x) / Σ exp(x)` over the normalized axes, computed without overflow. ONNX `Softmax` 1, 11, 13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Softmax(pub Normalized);

impl Softmax {
    /// Over one axis.
    pub fn over(axis: usize) -> Self {
        Self(Normalized { axis: axis as i64, flattened: false })
    }
}

impl OpDef for Softmax {
    fn name(&self) -> &str {
        "Softmax"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        self.0.infer(x)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn change<T: Float>(group: &mut [T]) {
            let max = largest(group);
            group.iter_mut().for_each(|value| *value = (*value - max).exp());
            let sum: T = group.iter().copied().sum();
            group.iter_mut().for_each(|value| *value = *value / sum);
        }
        Ok(vec![each_float!(x.get(0)?, x => self.0.run(x, change)?.into())])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (y, g) = (back.y(0), back.g(0));
        let mean = (g * y).reduce_sum(self.0.axes(y.rank())?, true);
        Ok(back.only_first((g - mean) * y))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.0.axis);
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        self.0.lower(node, |plain| Self(plain).into())
    }
}

impl Listed for Softmax {
    const ONNX: &'static [&'static str] = &["Softmax"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self(Normalized::read(node)?))
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        samples(Softmax)
    }
}

/// `y = x - ln Σ exp(x)` over the normalized axes, computed without overflow. ONNX `LogSoftmax` 1, 11, 13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LogSoftmax(pub Normalized);

impl OpDef for LogSoftmax {
    fn name(&self) -> &str {
        "LogSoftmax"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        self.0.infer(x)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn change<T: Float>(group: &mut [T]) {
            let max = largest(group);
            let sum: T = group.iter().map(|&value| (value - max).exp()).sum();
            group.iter_mut().for_each(|value| *value = *value - max - sum.ln());
        }
        Ok(vec![each_float!(x.get(0)?, x => self.0.run(x, change)?.into())])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (y, g) = (back.y(0), back.g(0));
        let sum = g.reduce_sum(self.0.axes(y.rank())?, true);
        Ok(back.only_first(g - y.exp() * sum))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.0.axis);
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        self.0.lower(node, |plain| Self(plain).into())
    }
}

impl Listed for LogSoftmax {
    const ONNX: &'static [&'static str] = &["LogSoftmax"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self(Normalized::read(node)?))
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        samples(LogSoftmax)
    }
}

/// 1 at the first maximum over the normalized axes, 0 elsewhere. Piecewise constant: nothing flows through it.
/// ONNX `Hardmax` 1, 11, 13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hardmax(pub Normalized);

impl OpDef for Hardmax {
    fn name(&self) -> &str {
        "Hardmax"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        self.0.infer(x)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn change<T: Float>(group: &mut [T]) {
            let max = largest(group);
            let place = group.iter().position(|&value| value == max || value.is_nan());
            group.fill(T::zero());
            if let Some(place) = place {
                group[place] = T::one();
            }
        }
        Ok(vec![each_float!(x.get(0)?, x => self.0.run(x, change)?.into())])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.stops("the op is piecewise constant"))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.0.axis);
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        self.0.lower(node, |plain| Self(plain).into())
    }
}

impl Listed for Hardmax {
    const ONNX: &'static [&'static str] = &["Hardmax"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self(Normalized::read(node)?))
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        samples(Hardmax)
    }
}

#[cfg(test)]
mod tests {
    //! Expected numbers: the reference evaluator of the Python package onnx 1.17.0.

    use super::*;
    use crate::gradient_check::outputs;

    #[test]
    fn large_scores_do_not_overflow() {
        let x = Tensor::vector([1000.0f32, 1000.0, -1000.0]);
        assert_eq!(outputs(Softmax::over(0), &[x]), [Tensor::vector([0.5f32, 0.5, 0.0])]);
    }

    #[test]
    fn the_first_maximum_is_hard() {
        let op = Hardmax(Normalized { axis: -1, flattened: false });
        let y = outputs(op, &[Tensor::vector([3.0f32, 0.0, 3.0, 2.0])]);
        assert_eq!(y, [Tensor::vector([1.0f32, 0.0, 0.0, 0.0])]);
    }
}
