//! Normalization by the channels around each one, and their sum as an op.

#[cfg(test)]
use super::x;
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::Sample;
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter, known_length};
use crate::op::{Inputs, Listed, OpDef, Real};
use crate::ops::convolution::Conv;
use crate::ops::layout::Reshape;
use crate::ops::window::{Window, output_shapes};
use crate::tensor::{Float, Tensor, each_float};
use ndarray::{Axis, IxDyn};

/// `y[c] = x[c] / (bias + alpha/size · Σ x[i]²)^beta`, summed over the `size` channels around `c`. ONNX 1, 13.
///
/// Of an even number of channels one more lies after `c` than before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::upper_case_acronyms, reason = "the ONNX name")]
pub struct LRN {
    /// The weight of the sum.
    pub alpha: Real,
    /// The exponent.
    pub beta: Real,
    /// Added to the sum.
    pub bias: Real,
    /// The number of channels that are summed over.
    pub size: i64,
}

impl LRN {
    fn window(&self) -> ChannelWindowSum {
        ChannelWindowSum { before: (self.size - 1) / 2, after: self.size / 2 }
    }
}

impl OpDef for LRN {
    fn name(&self) -> &str {
        "LRN"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        if self.size < 1 {
            bail!(model, "attribute 'size': expected a positive number, found {}", self.size);
        }
        self.window().infer(x)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        output_shapes(self, x)?;
        Ok(vec![each_float!(x.get(0)?, x => {
            let sums = self.window().sum(&x.mapv(|x| x * x));
            let scale = self.alpha.0 / self.size as f64;
            let divide = |x: &mut _, sum: &_| *x = divided(*x, (self.bias.0 + scale * Float::wide(*sum)).powf(self.beta.0));
            let mut y = x.to_owned();
            ndarray::Zip::from(&mut y).and(&sums).for_each(divide);
            y.into()
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, g, window) = (back.x(0), back.g(0), self.window());
        let transposed = ChannelWindowSum { before: window.after, after: window.before };
        let sum = |op: ChannelWindowSum, value: Var<'b>| back.builder().apply(op, &[value]);
        let scale = self.alpha.0 / self.size as f64;
        let base = sum(window, x * x) * scale + self.bias.0;
        let share = sum(transposed, g * x * base.powf(-self.beta.0 - 1.0));
        Ok(back.only_first(g * base.powf(-self.beta.0) - x * share * (2.0 * scale * self.beta.0)))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.float("alpha", self.alpha.0);
        node.float("beta", self.beta.0);
        node.float("bias", self.bias.0);
        node.int("size", self.size);
        Ok(())
    }
}

fn divided<T: Float>(x: T, by: f64) -> T {
    T::of(x.wide() / by)
}

impl Listed for LRN {
    const ONNX: &'static [&'static str] = &["LRN"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        let Some(size) = node.int("size")? else { bail!(model, "the attribute 'size' is missing") };
        Ok(Self {
            alpha: Real(node.float_or("alpha", 1e-4f32.into())?),
            beta: Real(node.float_or("beta", 0.75)?),
            bias: Real(node.float_or("bias", 1.0)?),
            size,
        })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let op = |size: i64| LRN { alpha: Real(0.5), beta: Real(0.75), bias: Real(1.5), size };
        vec![
            Sample::new(op(3), [x(&[2, 5, 2, 2])]),
            Sample::new(op(4), [x(&[2, 5, 2])]),
            Sample::new(op(20), [x(&[2, 3])]),
        ]
    }
}

/// `y[c] = Σ x[i]` over the channels from `c - before` to `c + after`, as far as they exist.
///
/// Private. The transpose is the same with `before` and `after` exchanged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChannelWindowSum {
    /// The channels before the one that the sum belongs to.
    pub before: i64,
    /// The channels after it.
    pub after: i64,
}

impl ChannelWindowSum {
    fn sum<T: Float>(&self, x: &ndarray::ArrayD<T>) -> ndarray::ArrayD<T> {
        let mut y = ndarray::ArrayD::zeros(IxDyn(x.shape()));
        let channels = x.shape()[1] as i64;
        for c in 0..channels {
            let first = c.saturating_sub(self.before).max(0);
            let last = c.saturating_add(self.after).min(channels - 1);
            let mut sum = y.index_axis_mut(Axis(1), c as usize);
            for other in first..=last {
                sum += &x.index_axis(Axis(1), other as usize);
            }
        }
        y
    }
}

impl OpDef for ChannelWindowSum {
    fn name(&self) -> &str {
        "ChannelWindowSum"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        if !x.dtype.is_float() || x.rank() < 2 {
            bail!(shape, "expected a floating point input with batch and channel axes, found {x}");
        }
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        output_shapes(self, x)?;
        Ok(vec![each_float!(x.get(0)?, x => self.sum(&x.to_owned()).into())])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let op = Self { before: self.after, after: self.before };
        Ok(back.only_first(back.builder().apply(op, &[back.g(0)])))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        // A convolution by ones along the channels.
        let (x, builder) = (node.x(0), node.builder());
        let channels = known_length(&x.shape()[1], 1)? as i64;
        let (before, after) = (self.before.min(channels), self.after.min(channels));
        let ones =
            Tensor::from(ndarray::ArrayD::from_elem(vec![1, 1, (before + after + 1) as usize, 1], 1.0f64));
        let window = Window::plain(2).with_pads([before, 0, after, 0]);
        let sums = builder.apply(
            Conv { window, group: 1 },
            &[
                builder.apply(Reshape { allow_zero: false }, &[x, builder.integers([0, 1, channels, -1])]),
                builder.constant(ones.cast(x.dtype())),
            ],
        );
        node.one(sums.reshape_like(x))
    }
}

impl Listed for ChannelWindowSum {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(unsupported, "ChannelWindowSum is not an ONNX op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(ChannelWindowSum { before: 1, after: 2 }, [x(&[2, 5, 2])])]
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_gives;
    use super::*;

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn lrn_looks_at_the_channels_around() {
        let x = Tensor::from_shape_vec(&[1, 5, 1, 1], vec![-1.0, 0.0, 1.0, 2.0, 3.0]).unwrap();
        let op = LRN { alpha: Real(0.5), beta: Real(0.75), bias: Real(1.0), size: 3 };
        assert_gives(&op, &[x], &[&[-0.8908199, 0.0, 0.6347006, 0.8107201, 1.2637742]]);
    }
}
