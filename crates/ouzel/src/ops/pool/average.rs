//! The mean or sum under a window, and its transpose.

#[cfg(test)]
use super::windows;
use super::{Pooling, check_float, known_lengths, long_count, short_count, visit_window, with_lengths};
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef};
use crate::ops::convolution::elements;
#[cfg(test)]
use crate::ops::window::Window;
use crate::ops::window::{Axis, output_shapes};
use crate::tensor::{Float, Tensor, each_float};
use rayon::prelude::*;

/// What the sum under a window is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Divisor {
    /// The number of elements under the window, padding excluded.
    Inside,
    /// The number of elements under the window, padding included; not what lies beyond the padding.
    Padded,
    /// Nothing: the result is the sum.
    One,
}

/// `y[o]` is the mean of `x` under the window at `o`. ONNX 1, 7, 10, 11, 19, 22.
///
/// A window that touches nothing gives 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AveragePool {
    /// The window.
    pub pooling: Pooling,
    /// What the sum is divided by: ONNX `count_include_pad`.
    pub divisor: Divisor,
}

impl AveragePool {
    /// `1 / divisor` for the window at each place.
    fn weights<T: Float>(&self, axes: &[Axis; 3]) -> Vec<T> {
        let [a, b, c] = axes;
        let count = |axis: &Axis, short: usize| match self.divisor {
            Divisor::Inside => axis.taps(short).len(),
            Divisor::Padded => axis.padded_taps(short),
            Divisor::One => 1,
        };
        let mut weights = Vec::with_capacity(short_count(axes));
        for short_a in 0..a.short {
            for short_b in 0..b.short {
                for short_c in 0..c.short {
                    let count = count(a, short_a) * count(b, short_b) * count(c, short_c);
                    weights.push(T::of(1.0 / count.max(1) as f64));
                }
            }
        }
        weights
    }

    pub(super) fn average<T: Float>(&self, x: &[T], x_shape: &[usize], shape: &[usize]) -> Result<Tensor> {
        let axes = self.pooling.axes(x_shape, shape)?;
        let (short, long) = (short_count(&axes), long_count(&axes));
        let weights: Vec<T> = self.weights(&axes);
        let mut y = vec![T::zero(); shape.iter().product()];
        y.par_chunks_mut(short).enumerate().for_each(|(plane, y)| {
            let x = &x[plane * long..(plane + 1) * long];
            for (o, (y, weight)) in y.iter_mut().zip(&weights).enumerate() {
                let mut sum = T::zero();
                visit_window(&axes, o, |place| sum += x[place]);
                *y = sum * *weight;
            }
        });
        Tensor::from_shape_vec(shape, y)
    }

    fn spread<T: Float>(&self, g: &[T], g_shape: &[usize], shape: &[usize]) -> Result<Tensor> {
        let axes = self.pooling.axes(shape, g_shape)?;
        let (short, long) = (short_count(&axes), long_count(&axes));
        let weights: Vec<T> = self.weights(&axes);
        let mut y = vec![T::zero(); shape.iter().product()];
        y.par_chunks_mut(long.max(1)).enumerate().for_each(|(plane, y)| {
            let g = &g[plane * short..(plane + 1) * short];
            for (o, (g, weight)) in g.iter().zip(&weights).enumerate() {
                let share = *g * *weight;
                visit_window(&axes, o, |place| y[place] += share);
            }
        });
        Tensor::from_shape_vec(shape, y)
    }

    /// The transpose, for an input with the spatial size of `like`.
    pub(super) fn transposed<'b>(&self, g: Var<'b>, like: Var<'b>) -> Result<Var<'b>> {
        let op = AveragePoolTranspose { average: self.clone(), lengths: known_lengths(like)? };
        Ok(g.builder().apply(op, &[g]))
    }
}

impl OpDef for AveragePool {
    fn name(&self) -> &str {
        "AveragePool"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        check_float(x)?;
        Ok(vec![Fact::new(x.dtype, self.pooling.infer(x)?)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        Ok(vec![each_float!(x.get(0)?, x => self.average(elements(x).slice(), x.shape(), &shape)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(self.transposed(back.g(0), back.x(0))?))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        self.pooling.write(node);
        node.flag("count_include_pad", self.divisor == Divisor::Padded, false);
        if self.pooling.window.dilations.iter().any(|&dilation| dilation != 1) {
            node.since(19, "a dilated AveragePool")?;
        }
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        match self.divisor {
            Divisor::One => node.one(self.pooling.summed(node.x(0), node.y(0))?),
            _ => Ok(None),
        }
    }
}

impl Listed for AveragePool {
    const ONNX: &'static [&'static str] = &["AveragePool"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        let padded = node.flag_or("count_include_pad", false)?;
        let divisor = if padded { Divisor::Padded } else { Divisor::Inside };
        Ok(Self { pooling: Pooling::read(node)?, divisor })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let divisors = [Divisor::Inside, Divisor::Padded, Divisor::One];
        let sample = |(shape, pooling): (&[usize], Pooling), divisor: Divisor| {
            Sample::new(AveragePool { pooling, divisor }, [floats(-1.0, 1.0).input(shape)])
        };
        windows().flat_map(|window| divisors.map(|divisor| sample(window.clone(), divisor))).collect()
    }
}

/// Spreads each `g` over the window at its place, divided as in the mean: the transpose of [`AveragePool`].
///
/// Private. Input: `g` `[N, C, …]`; output `[N, C, …lengths]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AveragePoolTranspose {
    /// The pooling that this transposes.
    pub average: AveragePool,
    /// The lengths of the spatial axes of the output.
    pub lengths: Vec<usize>,
}

impl OpDef for AveragePoolTranspose {
    fn name(&self) -> &str {
        "AveragePoolTranspose"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let g = x.get(0)?;
        check_float(g)?;
        let y = Fact::new(g.dtype, with_lengths(g, &self.lengths)?);
        let pooled = self.average.pooling.infer(&y)?;
        if pooled[2..] != g.shape[2..] {
            bail!(shape, "a pooling of {y} does not have the shape of its cotangent {g}");
        }
        Ok(vec![y])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        Ok(vec![each_float!(x.get(0)?, g => self.average.spread(elements(g).slice(), g.shape(), &shape)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(back.builder().apply(self.average.clone(), &[back.g(0)])))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        let g = node.x(0);
        let (shape, short) = (&self.lengths, known_lengths(g)?);
        let whole = |lengths: &[usize]| [&[1, 1], lengths].concat();
        let weights: Vec<f64> =
            self.average.weights(&self.average.pooling.axes(&whole(shape), &whole(&short))?);
        let first = weights.first().copied().unwrap_or(1.0);
        let shared = if weights.iter().all(|&weight| weight == first) {
            if first == 1.0 { g } else { g * first }
        } else {
            g * node.builder().constant(Tensor::from_shape_vec(&short, weights)?.cast(g.dtype()))
        };
        node.one(self.average.pooling.spread(shared, shape)?)
    }
}

impl Listed for AveragePoolTranspose {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(unsupported, "AveragePoolTranspose is not an ONNX op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let pooling = Pooling {
            window: Window::plain(2).with_strides([2, 2]).with_pads([1, 0, 1, 2]),
            ..Pooling::plain([3, 3])
        };
        let average = AveragePool { pooling, divisor: Divisor::Padded };
        let op = AveragePoolTranspose { average, lengths: vec![5, 6] };
        vec![Sample::new(op, [floats(-1.0, 1.0).input(&[2, 2, 3, 3])])]
    }
}

#[cfg(test)]
mod tests {
    use super::super::{line, run};
    use super::*;

    /// Checked against ONNX Runtime 1.32: what lies beyond the padding does not count.
    #[test]
    fn the_mean_of_a_window_that_reaches_beyond_the_padding() {
        let x = || Tensor::from_shape_vec(&[1, 1, 6], vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let average = |divisor| run(&AveragePool { pooling: line(3, 2, [1, 1]), divisor }, x()).remove(0);
        let expected = |values: [f32; 4]| Tensor::from_shape_vec(&[1, 1, 4], values.to_vec()).unwrap();
        assert_eq!(average(Divisor::Padded), expected([1.0, 3.0, 5.0, 3.0]));
        assert_eq!(average(Divisor::Inside), expected([1.5, 3.0, 5.0, 6.0]));
    }
}
