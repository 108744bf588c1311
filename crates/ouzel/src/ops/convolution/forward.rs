//! Convolution itself.

use super::form::Form;
#[cfg(test)]
use super::x;
use super::{
    Linear, add_bias, bias_gradient, check_bias, check_channels, check_kernel_shape, differ, elements,
    kernel_of, known_kernel, known_pads,
};
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::Dim;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::Sample;
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef};
use crate::ops::pad::Pad;
#[cfg(test)]
use crate::ops::window::Padding;
use crate::ops::window::{Window, output_shapes};
use crate::tensor::{Tensor, each_float};

/// `y[n, m, o] = b[m] + Σ w[m, c, t] · x[n, c, o · stride + t · dilation - begin]`. ONNX 1, 11, 22.
///
/// Inputs: `x` `[N, C, …]` with 1 to 3 spatial axes, `w` `[M, C/group, …]`, optional `b` `[M]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conv {
    /// How the kernel moves.
    pub window: Window,
    /// Output channels of a group see the input channels of that group only.
    pub group: i64,
}

impl OpDef for Conv {
    fn name(&self) -> &str {
        "Conv"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (w, b) = (x.get(1)?, x.optional(2));
        let x = x.get(0)?;
        let kernel = kernel_of(&self.window, x, w)?;
        check_channels("output channels", &w.shape[0], self.group)?;
        let expected = &w.shape[1] * &Dim::from(self.group);
        if differ(&x.shape[1], &expected) {
            bail!(
                shape,
                "expected an input of {expected} channels (the weight is {w}, group {}), found {x}",
                self.group
            );
        }
        check_bias(b, x, &w.shape[0])?;
        let mut shape = vec![x.shape[0].clone(), w.shape[0].clone()];
        shape.extend(self.window.output_lengths(&x.shape[2..], &kernel, false)?);
        Ok(vec![Fact::new(x.dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        let (w, b) = (x.get(1)?, x.optional(2));
        let pads = known_pads(&self.window, x.get(0)?.shape(), w.shape())?;
        let form = Form::new(&self.window, &pads, x.get(0)?.shape(), w.shape(), &shape)?;
        Ok(vec![each_float!(x.get(0)?, x => {
            let mut y = form.convolve(elements(x).slice(), elements(w.array()?).slice());
            add_bias(&mut y, b, &shape)?;
            Tensor::from_shape_vec(&shape, y)?
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, w, g) = (back.x(0), back.x(1), back.g(0));
        back.try_each_wanted(|index| {
            let linear = Linear { window: self.explicit(x, w)?, group: self.group };
            match index {
                0 => linear.transposed(g, w, x),
                1 => Ok(linear.weight_gradient(x, g, w)?),
                _ => Ok(bias_gradient(g)),
            }
        })
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        self.window.write(node);
        node.kernel_of(1);
        if self.group != 1 {
            node.int("group", self.group);
        }
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        let x = node.x(0);
        let Some((pads, window)) = self.window.split_negative() else { return Ok(None) };
        let mut inputs = node.inputs().to_vec();
        inputs[0] = Some(Pad::zeros(x, pads));
        node.one(node.builder().apply_all(Self { window, group: self.group }, &inputs)[0])
    }
}

impl Conv {
    /// The window with its pads as numbers.
    fn explicit(&self, x: Var, w: Var) -> Result<Window> {
        let kernel = known_kernel(&w.shape())?;
        let pads = self.window.pads(&x.shape()[2..], &kernel)?;
        Ok(self.window.clone().with_pads(pads))
    }
}

impl Listed for Conv {
    const ONNX: &'static [&'static str] = &["Conv"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        check_kernel_shape(node)?;
        Ok(Self { window: Window::read(node)?, group: node.int_or("group", 1)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let conv = |window: Window, group: i64| Conv { window, group };
        let asymmetric = Window::plain(2).with_strides([2, 1]).with_pads([0, 1, 1, 2]);
        let dilated = Window::plain(2).with_dilations([2, 1]).with_strides([1, 3]);
        let same = |padding: Padding| Window::plain(2).with_strides([2, 2]).with_padding(padding);
        vec![
            Sample::new(conv(Window::plain(2), 1), [x(&[2, 3, 4, 5]), x(&[4, 3, 3, 2]), x(&[4])]),
            Sample::new(conv(asymmetric, 1), [x(&[2, 3, 5, 4]), x(&[4, 3, 3, 3])]),
            Sample::new(conv(dilated, 2), [x(&[2, 4, 6, 6]), x(&[6, 2, 3, 2]), x(&[6])]),
            Sample::new(conv(same(Padding::SameUpper), 3), [x(&[2, 3, 5, 6]), x(&[3, 1, 3, 3])]),
            Sample::new(conv(same(Padding::SameLower), 1), [x(&[2, 3, 5, 6]), x(&[4, 3, 3, 4])]),
            Sample::new(conv(same(Padding::Valid), 1), [x(&[2, 3, 5, 6]), x(&[4, 3, 3, 4])]),
            Sample::new(conv(Window::plain(1).with_strides([3]), 1), [x(&[2, 3, 8]), x(&[4, 3, 2])]),
            Sample::new(conv(Window::plain(1).with_pads([-1, -2]), 1), [x(&[2, 3, 8]), x(&[4, 3, 2])]),
            Sample::new(conv(Window::plain(3), 1), [x(&[2, 2, 3, 3, 4]), x(&[3, 2, 2, 1, 3])]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ascending, assert_gives};
    use super::*;

    /// From the ONNX node tests: `test_conv_with_strides_and_asymmetric_padding`.
    #[test]
    fn strides_and_asymmetric_padding() {
        let w = Tensor::from_shape_vec(&[1, 1, 3, 3], vec![1.0; 9]).unwrap();
        let window = Window::plain(2).with_strides([2, 2]).with_pads([1, 0, 1, 0]);
        let expected = [21.0, 33.0, 99.0, 117.0, 189.0, 207.0, 171.0, 183.0];
        let conv = Conv { window, group: 1 };
        assert_gives(&conv, &[&ascending(&[1, 1, 7, 5], 0.0), &w], &[1, 1, 4, 2], &expected);
    }

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn dilation_and_groups() {
        let (x, w, b) =
            (ascending(&[1, 4, 5], 0.0), ascending(&[2, 2, 2], -3.0), Tensor::vector([1.0, -1.0]));
        let window = Window::plain(1).with_strides([2]).with_dilations([2]).with_pads([1, 2]);
        let expected = [-1.0, -14.0, -16.0, 85.0, 156.0, 66.0];
        assert_gives(&Conv { window, group: 2 }, &[&x, &w, &b], &[1, 2, 3], &expected);
    }

    #[test]
    fn absurd_attributes_are_errors() {
        let (x, w) = (ascending(&[1, 1, 3], 0.0), ascending(&[1, 1, 2], 0.0));
        let fails = |window: Window, group: i64| {
            assert!(Conv { window, group }.run(&Inputs(&[Some(&x), Some(&w)])).is_err());
        };
        fails(Window::plain(1).with_strides([0]), 1);
        fails(Window::plain(1).with_dilations([9]), 1);
        fails(Window::plain(1).with_pads([i64::MAX, 0]), 1);
        fails(Window::plain(1).with_pads([0]), 1);
        fails(Window::plain(2), 1);
        fails(Window::plain(1), 0);
        fails(Window::plain(1), 5);
    }
}
