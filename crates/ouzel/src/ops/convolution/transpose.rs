//! The transpose of convolution.

use super::form::Form;
#[cfg(test)]
use super::x;
use super::{
    Conv, Linear, add_bias, bias_gradient, check_bias, check_channels, check_kernel_shape, differ, elements,
    kernel_of, known_kernel,
};
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::{Dim, display_shape};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::Sample;
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef};
use crate::ops::window::{Padding, Window, check_sizes, output_shapes};
use crate::tensor::{Tensor, each_float};

/// Fewer output channels are left to a transposed convolution when a gradient is written to a file.
const FEW_MAPS: i64 = 8;

/// `y[n, c, o · stride + t · dilation - begin] += w[m, c, t] · x[n, m, o]`, and a bias: the transpose of [`Conv`].
/// ONNX 1, 11, 22.
///
/// Inputs: `x` `[N, M, …]` with 1 to 3 spatial axes, `w` `[M, C/group, …]`, optional `b` `[C]`. With `output_shape` or
/// `auto_pad` the pads follow from the size of the output, the odd one at the begin, for `SAME_UPPER` at the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvTranspose {
    /// How the kernel moves over the output.
    pub window: Window,
    /// Output channels of a group come from the input channels of that group only.
    pub group: i64,
    /// What is added to the length of each spatial axis of the output, at its end.
    pub output_padding: Vec<i64>,
    /// The lengths of the spatial axes of the output.
    pub output_shape: Option<Vec<i64>>,
}

impl ConvTranspose {
    /// The length of each spatial axis of the output without pads.
    fn full_lengths(&self, lengths: &[Dim], kernel: &[i64]) -> Vec<Dim> {
        let full = |(axis, length): (usize, &Dim)| {
            let added =
                self.output_padding[axis] + self.window.span(axis, kernel[axis]) - self.window.strides[axis];
            &(length * &Dim::from(self.window.strides[axis])) + &Dim::from(added)
        };
        lengths.iter().enumerate().map(full).collect()
    }

    /// The lengths of the spatial axes of the output.
    fn output_lengths(&self, lengths: &[Dim], kernel: &[i64]) -> Vec<Dim> {
        if let Some(shape) = &self.output_shape {
            return shape.iter().map(|&length| length.into()).collect();
        }
        let rank = lengths.len();
        let full = self.full_lengths(lengths, kernel);
        match &self.window.padding {
            Padding::SameUpper | Padding::SameLower => (lengths.iter().zip(&self.window.strides))
                .map(|(l, &stride)| l * &Dim::from(stride))
                .collect(),
            Padding::Valid => full,
            Padding::Explicit(pads) => {
                full.iter().enumerate().map(|(i, full)| full - &Dim::from(pads[i] + pads[rank + i])).collect()
            }
        }
    }

    /// The pads: the begin of each spatial axis, then the end of each.
    fn pads(&self, lengths: &[Dim], kernel: &[i64]) -> Result<Vec<i64>> {
        let rank = lengths.len();
        let follows = self.output_shape.is_some()
            || matches!(self.window.padding, Padding::SameUpper | Padding::SameLower);
        if !follows {
            return self.window.pads(lengths, kernel);
        }
        let mut pads = vec![0; 2 * rank];
        let (full, outputs) = (self.full_lengths(lengths, kernel), self.output_lengths(lengths, kernel));
        for axis in 0..rank {
            let Some(total) = (&full[axis] - &outputs[axis]).known() else {
                bail!(
                    shape,
                    "the pads need the length of spatial axis {axis}, which is {}; give it with --size",
                    lengths[axis]
                )
            };
            // Where the output is longer than what the kernel reaches, the rest stays empty.
            let total = total.max(0);
            let smaller = total / 2;
            let upper = self.window.padding == Padding::SameUpper;
            pads[axis] = if upper { smaller } else { total - smaller };
            pads[rank + axis] = total - pads[axis];
        }
        Ok(pads)
    }
}

impl ConvTranspose {
    /// The convolution with turned and exchanged weights that gives the same, where the window moves by one.
    fn as_convolution<'b>(&self, node: &Lowering<'b>) -> Result<Option<Var<'b>>> {
        let (x, w) = (node.x(0), node.x(1));
        let (kernel, rank) = (known_kernel(&w.shape())?, x.rank() - 2);
        let channels: Option<Vec<i64>> = w.shape()[..2].iter().map(Dim::known).collect();
        let (Some(channels), true) = (channels, self.window.strides.iter().all(|&stride| stride == 1)) else {
            return Ok(None);
        };
        // Runtimes have fast convolutions for as many maps as fit into a register, and are slow below that.
        if channels[1] * self.group < FEW_MAPS {
            return Ok(None);
        }
        let pads = self.pads(&x.shape()[2..], &kernel)?;
        let mut turned = (0..rank).filter(|&axis| kernel[axis] > 1).fold(w, |w, axis| w.reversed(axis + 2));
        let group = self.group;
        if group == 1 {
            turned = turned.transpose([1, 0].into_iter().chain(2..rank + 2));
        } else if (channels[0], channels[1]) != (group, 1) {
            let inner = channels[0] / group;
            let split = [group, inner, channels[1]].into_iter().chain(kernel.iter().copied());
            let exchanged = turned.reshape(split).transpose([0, 2, 1].into_iter().chain(3..rank + 3));
            turned =
                exchanged.reshape([group * channels[1], inner].into_iter().chain(kernel.iter().copied()));
        }
        let mut around = vec![0; 2 * rank];
        for axis in 0..rank {
            let reach = self.window.span(axis, kernel[axis]) - 1;
            around[axis] = reach - pads[axis];
            around[rank + axis] = reach - pads[rank + axis] + self.output_padding[axis];
        }
        let window = self.window.clone().with_pads(around);
        let inputs: Vec<_> = [Some(x), Some(turned), node.optional_x(2)].into_iter().collect();
        Ok(Some(node.builder().apply_all(Conv { window, group }, &inputs)[0]))
    }
}

impl OpDef for ConvTranspose {
    fn name(&self) -> &str {
        "ConvTranspose"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (w, b) = (x.get(1)?, x.optional(2));
        let x = x.get(0)?;
        let kernel = kernel_of(&self.window, x, w)?;
        check_sizes("output_padding", &self.output_padding, kernel.len(), 0)?;
        if let Some(shape) = &self.output_shape {
            check_sizes("output_shape", shape, kernel.len(), 1)?;
        }
        check_channels("input channels", &w.shape[0], self.group)?;
        if differ(&x.shape[1], &w.shape[0]) {
            bail!(shape, "expected an input of {} channels (the weight is {w}), found {x}", w.shape[0]);
        }
        let channels = &w.shape[1] * &Dim::from(self.group);
        check_bias(b, x, &channels)?;
        let outputs = self.output_lengths(&x.shape[2..], &kernel);
        if outputs.iter().any(|output| output.known().is_some_and(|n| n < 1 || n > i64::from(i32::MAX))) {
            bail!(
                shape,
                "the spatial axes of the output would have the lengths {} (input {x}, weight {w}, padding {:?})",
                display_shape(&outputs),
                self.window.padding
            );
        }
        Ok(vec![Fact::new(x.dtype, [vec![x.shape[0].clone(), channels], outputs].concat())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        let (w, b) = (x.get(1)?, x.optional(2));
        let lengths: Vec<Dim> = x.get(0)?.shape()[2..].iter().map(|&length| length.into()).collect();
        let kernel: Vec<i64> = w.shape()[2..].iter().map(|&length| length as i64).collect();
        let pads = self.pads(&lengths, &kernel)?;
        let form = Form::new(&self.window, &pads, &shape, w.shape(), x.get(0)?.shape())?;
        Ok(vec![each_float!(x.get(0)?, x => {
            let mut y = form.transpose(elements(x).slice(), elements(w.array()?).slice());
            add_bias(&mut y, b, &shape)?;
            Tensor::from_shape_vec(&shape, y)?
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, w, g) = (back.x(0), back.x(1), back.g(0));
        back.try_each_wanted(|index| {
            let kernel = known_kernel(&w.shape())?;
            let (lengths, outputs) = (x.shape()[2..].to_vec(), back.y(0).shape()[2..].to_vec());
            let mut pads = self.pads(&lengths, &kernel)?;
            let rank = lengths.len();
            for axis in 0..rank {
                let (stride, span) = (self.window.strides[axis], self.window.span(axis, kernel[axis]));
                // With these pads at the end a convolution of the output has as many places as the input.
                let reach = &(&lengths[axis] * &Dim::from(stride)) + &Dim::from(span - stride);
                let exact = &(&reach - &outputs[axis]) - &Dim::from(pads[axis]);
                match exact.known() {
                    // Any less than a stride too much makes no difference.
                    Some(exact) if (0..stride).contains(&(pads[rank + axis] - exact)) => {}
                    Some(exact) => pads[rank + axis] = exact,
                    None => bail!(
                        shape,
                        "the gradient needs the length of spatial axis {axis}, which is {}; give it with --size",
                        lengths[axis]
                    ),
                }
            }
            let linear = Linear { window: self.window.clone().with_pads(pads), group: self.group };
            match index {
                0 => Ok(linear.convolved(g, w)),
                1 => linear.weight_gradient(g, x, w),
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
        if self.output_padding.iter().any(|&padding| padding != 0) {
            node.ints("output_padding", &self.output_padding);
        }
        if let Some(shape) = &self.output_shape {
            node.ints("output_shape", shape);
        }
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        match node.is_backward() {
            true => Ok(self.as_convolution(node)?.map(|y| vec![y])),
            false => Ok(None),
        }
    }
}

impl Listed for ConvTranspose {
    const ONNX: &'static [&'static str] = &["ConvTranspose"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        check_kernel_shape(node)?;
        let window = Window::read(node)?;
        let rank = window.strides.len();
        // Some files give batch and channel too.
        let output_shape =
            node.ints("output_shape")?.map(|shape| shape[shape.len().saturating_sub(rank)..].to_vec());
        Ok(Self {
            group: node.int_or("group", 1)?,
            output_padding: node.ints("output_padding")?.unwrap_or_else(|| vec![0; rank]),
            output_shape,
            window,
        })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let transpose = |window: Window, group: i64, output_padding: [i64; 2], shape: Option<[i64; 2]>| {
            let output_shape = shape.map(Vec::from);
            ConvTranspose { window, group, output_padding: output_padding.into(), output_shape }
        };
        let strided = || Window::plain(2).with_strides([2, 3]);
        let dilated = Window::plain(2).with_dilations([1, 3]).with_pads([1, 0, 2, 1]);
        let line = ConvTranspose {
            window: Window::plain(1).with_strides([2]),
            group: 1,
            output_padding: vec![0],
            output_shape: None,
        };
        let inputs = || [x(&[2, 4, 3, 3]), x(&[4, 2, 3, 2])];
        vec![
            Sample::new(transpose(strided(), 1, [1, 0], None), [x(&[2, 4, 3, 3]), x(&[4, 3, 3, 2]), x(&[3])]),
            Sample::new(transpose(strided().with_pads([1, 0, 1, 1]), 2, [1, 2], None), inputs()),
            Sample::new(transpose(dilated, 1, [0, 2], None), inputs()),
            Sample::new(transpose(strided().with_padding(Padding::SameUpper), 1, [0, 0], None), inputs()),
            Sample::new(transpose(strided().with_padding(Padding::SameLower), 1, [0, 0], None), inputs()),
            Sample::new(transpose(strided(), 1, [0, 0], Some([10, 7])), inputs()),
            Sample::new(line, [x(&[2, 4, 3]), x(&[4, 3, 3])]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{ascending, assert_gives};
    use super::*;

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn the_transpose_with_dilation_groups_and_output_padding() {
        let op = ConvTranspose {
            window: Window::plain(1).with_strides([2]).with_dilations([2]).with_pads([0, 1]),
            group: 2,
            output_padding: vec![1],
            output_shape: None,
        };
        #[rustfmt::skip]
        let expected = [
            0.0, 0.0, -3.0, 0.0, -8.0, 0.0, -4.0, 0.0, 0.0, -1.0, 0.0, -2.0, 0.0, 0.0,
            3.0, 0.0, 10.0, 0.0, 13.0, 0.0, 10.0, 9.0, 0.0, 24.0, 0.0, 31.0, 0.0, 20.0,
        ];
        let (x, w) = (ascending(&[1, 2, 3], 0.0), ascending(&[2, 2, 2], -3.0));
        assert_gives(&op, &[&x, &w], &[1, 4, 7], &expected);
    }

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn pads_that_follow_from_the_output() {
        let x = Tensor::from_shape_vec(&[1, 1, 3], vec![1.0, 10.0, 100.0]).unwrap();
        let w = ascending(&[1, 1, 3], 1.0);
        let assert_transposes = |padding: Padding, output_shape: Option<Vec<i64>>, expected: &[f64]| {
            let window = Window::plain(1).with_strides([2]).with_padding(padding);
            let op = ConvTranspose { window, group: 1, output_padding: vec![0], output_shape };
            assert_gives(&op, &[&x, &w], &[1, 1, expected.len()], expected);
        };
        let upper = [1.0, 2.0, 13.0, 20.0, 130.0, 200.0];
        let lower = [2.0, 13.0, 20.0, 130.0, 200.0, 300.0];
        let longer = [1.0, 2.0, 13.0, 20.0, 130.0, 200.0, 300.0, 0.0];
        assert_transposes(Padding::SameUpper, None, &upper);
        assert_transposes(Padding::SameLower, None, &lower);
        assert_transposes(Padding::Explicit(vec![0, 0]), Some(vec![6]), &lower);
        assert_transposes(Padding::Explicit(vec![0, 0]), Some(vec![8]), &longer);
    }
}
