//! Layer normalization: the statistics are taken over all axes from one on.

#[cfg(test)]
use super::x;
use super::{emit_statistics, normalized_cotangent, read_epsilon, statistics};
use crate::backprop::{Back, Cotangents};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::Sample;
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef, Real, resolve_axis};
use crate::ops::broadcast::zip;
use crate::ops::convolution::elements;
use crate::ops::pool::elements_per;
use crate::ops::window::output_shapes;
use crate::tensor::{Array, Float, Tensor, each_float};

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
            y = zip(y.array::<T>()?, inputs.get(1)?.array::<T>()?, &|y, scale| y * scale)?;
            if let Some(bias) = inputs.optional(2) {
                y = zip(y.array::<T>()?, bias.array::<T>()?, &|y, bias| y + bias)?;
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

#[cfg(test)]
mod tests {
    use super::super::tests::{assert_gives, squares};
    use super::*;

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
}
