//! Normalization without scale and bias: by the norm along an axis, and by mean and deviation over axes.

#[cfg(test)]
use super::x;
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef, resolve_axis};
use crate::ops::layout::resolve_axes;
use crate::ops::window::output_shapes;
use crate::tensor::{Array, Float, Tensor, each_float};
use ndarray::Axis;

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
    use super::super::tests::{assert_gives, squares};
    use super::*;

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
