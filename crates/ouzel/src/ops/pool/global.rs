//! The mean and the maximum over all spatial axes.

use super::check_float;
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::product;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::NodeReader;
use crate::op::{Inputs, Listed, OpDef};
use crate::ops::convolution::elements;
use crate::ops::layout::Size;
use crate::ops::window::output_shapes;
use crate::tensor::{Float, Tensor, each_float};

/// `[N, C, 1, …]` from `[N, C, …]`.
pub(super) fn infer_global(x: &Fact) -> Result<Vec<Fact>> {
    check_float(x)?;
    if x.rank() < 3 {
        bail!(shape, "expected an input with spatial axes after batch and channel, found {x}");
    }
    let one = |axis: usize| if axis < 2 { x.shape[axis].clone() } else { 1.into() };
    Ok(vec![Fact::new(x.dtype, (0..x.rank()).map(one).collect())])
}

/// Reduces each plane of an input that [`infer_global`] accepts.
pub(super) fn run_global<T: Float>(
    x: &crate::tensor::Array<T>,
    reduce: impl Fn(&[T]) -> T,
) -> Result<Tensor> {
    let plane: usize = x.shape()[2..].iter().product();
    let planes = x.shape()[0] * x.shape()[1];
    let x_elements = elements(x);
    let y =
        (0..planes).map(|index| reduce(&x_elements.slice()[index * plane..(index + 1) * plane])).collect();
    let one = |(axis, &length): (usize, &usize)| if axis < 2 { length } else { 1 };
    let shape: Vec<usize> = x.shape().iter().enumerate().map(one).collect();
    Tensor::from_shape_vec(&shape, y)
}

/// The number of elements of `x` for each element of `y`, in the element type of `x`.
pub(crate) fn elements_per<'b>(x: Var<'b>, y: Var<'b>) -> Var<'b> {
    let ratio = product(&x.shape()).divide(&product(&y.shape()));
    match ratio.known() {
        Some(count) => x.scalar_like(count as f64),
        None => {
            let size = |of: Var<'b>| of.builder().apply(Size, &[of]);
            (size(x) / size(y)).cast(x.dtype())
        }
    }
}

/// The mean over all spatial axes, which stay with length 1. ONNX 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GlobalAveragePool;

impl OpDef for GlobalAveragePool {
    fn name(&self) -> &str {
        "GlobalAveragePool"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        infer_global(x.get(0)?)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn mean<T: Float>(values: &[T]) -> T {
            values.iter().copied().sum::<T>() / T::of(values.len() as f64)
        }
        output_shapes(self, x)?;
        Ok(vec![each_float!(x.get(0)?, x => run_global(x, mean)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, g) = (back.x(0), back.g(0));
        Ok(back.only_first((g / elements_per(x, g)).expand_like(x)))
    }
}

impl Listed for GlobalAveragePool {
    const ONNX: &'static [&'static str] = &["GlobalAveragePool"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(GlobalAveragePool, [floats(-1.0, 1.0).input(&[2, 3, 4, 2])])]
    }
}

/// The maximum over all spatial axes, which stay with length 1. Tied maxima share the gradient evenly. ONNX 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GlobalMaxPool;

impl OpDef for GlobalMaxPool {
    fn name(&self) -> &str {
        "GlobalMaxPool"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        infer_global(x.get(0)?)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn largest<T: Float>(values: &[T]) -> T {
            let larger = |max: T, &value: &T| if value > max || value.is_nan() { value } else { max };
            values.iter().fold(T::neg_infinity(), larger)
        }
        output_shapes(self, x)?;
        Ok(vec![each_float!(x.get(0)?, x => run_global(x, largest)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, g) = (back.x(0), back.g(0));
        let attains = x.equal(back.y(0));
        let count = attains.cast(x.dtype()).reduce_sum(2..x.rank(), true);
        Ok(back.only_first((g / count).select_where(attains)))
    }
}

impl Listed for GlobalMaxPool {
    const ONNX: &'static [&'static str] = &["GlobalMaxPool"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(GlobalMaxPool, [floats(-1.0, 1.0).distinct().input(&[2, 3, 4, 2])])]
    }
}
