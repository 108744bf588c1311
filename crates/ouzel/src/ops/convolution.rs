//! Convolution, its transpose, and its weight gradient: one form, linear in each of three arrays.
//!
//! With `x` of shape `[N, C, …long]`, `w` of shape `[M, C/group, …kernel]` and `g` of shape `[N, M, …short]` the form is
//! `Σ g[n, m, o] · w[m, c, t] · x[n, c, o · stride + t · dilation - begin]`, where positions outside `x` count nothing.
//! Each op is its derivative for one of the arrays, so the gradients of each op are the other two.

use super::window::{Axis, Padding, Window, check_sizes, output_shapes};
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::{Dim, display_shape};
use crate::error::{Error, Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, SampleInput, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter, known_length};
use crate::op::{Inputs, Listed, OpDef};
use crate::ops::pad::Pad;
use crate::tensor::{Float, Tensor, each_float};
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayView2, Slice};
use rayon::prelude::*;
use std::ops::Range;

/// Fewer output channels are left to a transposed convolution when a gradient is written to a file.
const FEW_MAPS: i64 = 8;

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

/// `y[m, c, t] = Σ g[n, m, o] · x[n, c, o · stride + t · dilation - begin]`: the gradient of [`Conv`] for its weight.
///
/// Private. Inputs: `x` `[N, C, …]`, `g` `[N, M, …]`; the output has the shape of the weight.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvWeightGradient {
    /// How the kernel moves over `x`; its pads are explicit.
    pub window: Window,
    /// The groups of the convolution.
    pub group: i64,
    /// The lengths of the spatial axes of the weight.
    pub kernel: Vec<i64>,
}

impl OpDef for ConvWeightGradient {
    fn name(&self) -> &str {
        "ConvWeightGradient"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (x, g) = (x.get(0)?, x.get(1)?);
        let rank = x.rank().saturating_sub(2);
        self.window.check(rank)?;
        check_sizes("kernel", &self.kernel, rank, 1)?;
        let places = self.window.output_lengths(&x.shape[2..], &self.kernel, false)?;
        let fits = g.rank() == x.rank()
            && g.dtype == x.dtype
            && !differ(&g.shape[0], &x.shape[0])
            && !places.iter().zip(&g.shape[2..]).any(|(a, b)| differ(a, b));
        if !fits {
            bail!(shape, "the input is {x}, which does not fit the cotangent {g}");
        }
        check_channels("input channels", &x.shape[1], self.group)?;
        check_channels("output channels", &g.shape[1], self.group)?;
        let mut shape = vec![g.shape[1].clone(), x.shape[1].divide(&Dim::from(self.group))];
        shape.extend(self.kernel.iter().map(|&length| Dim::from(length)));
        Ok(vec![Fact::new(x.dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        let g = x.get(1)?;
        let pads = known_pads(&self.window, x.get(0)?.shape(), &shape)?;
        let form = Form::new(&self.window, &pads, x.get(0)?.shape(), &shape, g.shape())?;
        Ok(vec![each_float!(x.get(0)?, x => {
            let y = form.correlate(elements(x).slice(), elements(g.array()?).slice());
            Tensor::from_shape_vec(&shape, y)?
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let linear = Linear { window: self.window.clone(), group: self.group };
        let w = back.g(0);
        back.try_each_wanted(|index| match index {
            0 => linear.transposed(back.x(1), w, back.x(0)),
            _ => Ok(linear.convolved(back.x(0), w)),
        })
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        // The convolution of the input by the cotangent, with samples and channels exchanged, and steps and gaps.
        let (x, g, groups) = (node.x(0), node.x(1), self.group);
        let rank = x.rank();
        let (channels, maps) =
            (known_length(&x.shape()[1], 1)? as i64, known_length(&g.shape()[1], 1)? as i64);
        let spatial = |of: Var<'b>| {
            of.shape()[2..]
                .iter()
                .enumerate()
                .map(|(axis, dim)| known_length(dim, axis + 2))
                .collect::<Result<Vec<_>>>()
        };
        let (long, short) = (spatial(x)?, spatial(g)?);
        let sizes = |first: [i64; 3], rest: &[usize]| {
            first.into_iter().chain(rest.iter().map(|&length| length as i64)).collect::<Vec<_>>()
        };
        let exchanged = |of: Var<'b>, order: [usize; 3]| of.transpose(order.into_iter().chain(3..rank + 1));
        let joined = |of: Var<'b>, first: [i64; 2], rest: &[usize]| {
            of.reshape(first.into_iter().chain(rest.iter().map(|&length| length as i64)))
        };
        let x = exchanged(x.reshape(sizes([-1, groups, channels / groups], &long)), [2, 1, 0]);
        let x = joined(x, [channels / groups, -1], &long);
        let w = exchanged(g.reshape(sizes([-1, groups, maps / groups], &short)), [1, 2, 0]);
        let w = joined(w, [maps, -1], &short);
        let window = Window {
            strides: self.window.dilations.clone(),
            dilations: self.window.strides.clone(),
            padding: self.window.padding.clone(),
        };
        let y = node.builder().apply(Conv { window, group: groups }, &[x, w]);
        let y = (0..self.kernel.len()).fold(y, |y, axis| match y.shape()[axis + 2].is(self.kernel[axis]) {
            true => y,
            false => y.slice(axis + 2, 0, self.kernel[axis]),
        });
        node.one(y.transpose([1, 0].into_iter().chain(2..rank)))
    }
}

impl Listed for ConvWeightGradient {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(unsupported, "ConvWeightGradient is not an ONNX op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let window = Window::plain(2).with_strides([2, 1]).with_dilations([1, 2]).with_pads([0, 1, 1, 2]);
        let op = ConvWeightGradient { window, group: 2, kernel: vec![3, 2] };
        vec![Sample::new(op, [x(&[2, 4, 5, 4]), x(&[2, 6, 2, 5])])]
    }
}

#[cfg(test)]
fn x(shape: &[usize]) -> SampleInput {
    floats(-1.0, 1.0).input(shape)
}

/// The three ops that share one window with explicit pads, as nodes.
struct Linear {
    window: Window,
    group: i64,
}

impl Linear {
    fn convolved<'b>(&self, x: Var<'b>, w: Var<'b>) -> Var<'b> {
        x.builder().apply(Conv { window: self.window.clone(), group: self.group }, &[x, w])
    }

    /// The transposed convolution of `g` whose output has the spatial sizes of `like`.
    fn transposed<'b>(&self, g: Var<'b>, w: Var<'b>, like: Var<'b>) -> Result<Var<'b>> {
        let kernel = known_kernel(&w.shape())?;
        let lengths = like.shape()[2..].to_vec();
        let pads = self.window.pads(&lengths, &kernel)?;
        let rank = lengths.len();
        let mut output_padding = Vec::with_capacity(rank);
        for axis in 0..rank {
            let stride = Dim::from(self.window.strides[axis]);
            let fixed = pads[axis] + pads[rank + axis] - self.window.span(axis, kernel[axis]);
            let room = &lengths[axis] + &Dim::from(fixed);
            // What the last step of the window leaves over.
            match (&room - &(&room.divide(&stride) * &stride)).known() {
                Some(rest) => output_padding.push(rest),
                None => bail!(
                    shape,
                    "the gradient of a convolution with stride {stride} needs the length of spatial axis {axis}, \
                     which is {}; give it with --size",
                    lengths[axis]
                ),
            }
        }
        let op = ConvTranspose {
            window: self.window.clone(),
            group: self.group,
            output_padding,
            output_shape: None,
        };
        Ok(g.builder().apply(op, &[g, w]))
    }

    /// The gradient for the weight `w`.
    fn weight_gradient<'b>(&self, x: Var<'b>, g: Var<'b>, w: Var<'b>) -> Result<Var<'b>> {
        let kernel = known_kernel(&w.shape())?;
        let op = ConvWeightGradient { window: self.window.clone(), group: self.group, kernel };
        Ok(x.builder().apply(op, &[x, g]))
    }
}

/// The sum over all axes but the channels.
fn bias_gradient(g: Var) -> Var {
    g.reduce_sum((0..g.rank()).filter(|&axis| axis != 1), false)
}

/// True if two lengths are known and not equal.
fn differ(a: &Dim, b: &Dim) -> bool {
    matches!((a.known(), b.known()), (Some(a), Some(b)) if a != b)
}

/// The lengths of the spatial axes of a weight.
fn known_kernel(shape: &[Dim]) -> Result<Vec<i64>> {
    let kernel: Option<Vec<i64>> = shape.iter().skip(2).map(Dim::known).collect();
    match kernel {
        Some(kernel) => Ok(kernel),
        None => bail!(unsupported, "the spatial size of the weight is not known: {}", display_shape(shape)),
    }
}

/// The kernel of a weight that fits `x` and the window.
fn kernel_of(window: &Window, x: &Fact, w: &Fact) -> Result<Vec<i64>> {
    if !x.dtype.is_float() || w.dtype != x.dtype {
        bail!(shape, "expected input and weight of one floating point type, found {x} and {w}");
    }
    if w.rank() != x.rank() {
        bail!(shape, "expected a weight of as many axes as the input, found {w} for {x}");
    }
    let rank = x.rank().saturating_sub(2);
    window.check(rank)?;
    let kernel = known_kernel(&w.shape)?;
    check_sizes("kernel_shape", &kernel, rank, 1)?;
    Ok(kernel)
}

fn check_channels(what: &str, channels: &Dim, group: i64) -> Result<()> {
    if group < 1 {
        bail!(model, "attribute 'group': expected a positive number, found {group}");
    }
    match channels.known() {
        Some(channels) if channels % group != 0 => {
            bail!(shape, "{channels} {what} do not divide into {group} groups")
        }
        _ => Ok(()),
    }
}

fn check_bias(b: Option<&Fact>, x: &Fact, channels: &Dim) -> Result<()> {
    match b {
        Some(b) if b.dtype != x.dtype || b.rank() != 1 || differ(&b.shape[0], channels) => {
            bail!(shape, "expected a bias of {} elements of {}, found {b}", channels, x.dtype)
        }
        _ => Ok(()),
    }
}

/// Verifies the attribute `kernel_shape`, which repeats what the weight says.
fn check_kernel_shape(node: &mut NodeReader) -> Result<()> {
    let Some(kernel) = node.ints("kernel_shape")? else { return Ok(()) };
    let weight = node.required_input(1)?;
    let agrees = weight.rank() == kernel.len() + 2
        && !weight.shape[2..].iter().zip(&kernel).any(|(dim, &length)| differ(dim, &length.into()));
    if !agrees {
        bail!(model, "attribute 'kernel_shape' is {kernel:?}, which does not fit the weight {weight}");
    }
    Ok(())
}

fn known_pads(window: &Window, x: &[usize], w: &[usize]) -> Result<Vec<i64>> {
    let lengths: Vec<Dim> = x[2..].iter().map(|&length| length.into()).collect();
    let kernel: Vec<i64> = w[2..].iter().map(|&length| length as i64).collect();
    window.pads(&lengths, &kernel)
}

fn add_bias<T: Float>(y: &mut [T], b: Option<&Tensor>, shape: &[usize]) -> Result<()> {
    let Some(b) = b else { return Ok(()) };
    let bias = elements(b.array::<T>()?);
    let plane: usize = shape[2..].iter().product();
    for (index, plane) in y.chunks_exact_mut(plane.max(1)).enumerate() {
        let bias = bias.slice()[index % shape[1]];
        plane.iter_mut().for_each(|y| *y += bias);
    }
    Ok(())
}

/// The elements of an array in row-major order.
pub(crate) struct Elements<'a, T>(ndarray::CowArray<'a, T, ndarray::IxDyn>);

pub(crate) fn elements<T: Copy>(x: &ndarray::ArcArray<T, ndarray::IxDyn>) -> Elements<'_, T> {
    Elements(x.as_standard_layout())
}

impl<T> Elements<'_, T> {
    pub(crate) fn slice(&self) -> &[T] {
        self.0.as_slice().expect("invariant: the array was just brought into standard layout")
    }
}

/// A column buffer holds about this many elements.
const COLUMN_ELEMENTS: usize = 1 << 19;

/// The channels of the long side that one step works on.
const CHANNEL_BLOCK: usize = 16;

/// The sizes of the form in the module's documentation.
struct Form {
    axes: [Axis; 3],
    batch: usize,
    group: usize,
    /// `M / group`.
    short_channels: usize,
    /// `C / group`.
    long_channels: usize,
}

impl Form {
    fn new(window: &Window, pads: &[i64], x: &[usize], w: &[usize], g: &[usize]) -> Result<Self> {
        let axes = Axis::triple(window, pads, &w[2..], &x[2..], &g[2..]);
        let group = x[1].checked_div(w[1]).unwrap_or(1).max(1);
        if w[0] != g[1] || x[0] != g[0] || w[1] * group != x[1] || !w[0].is_multiple_of(group) {
            return Err(Error::shape(format!("{x:?}, {w:?} and {g:?} do not fit a convolution")));
        }
        Ok(Self { axes, batch: x[0], group, short_channels: w[0] / group, long_channels: w[1] })
    }

    fn taps(&self) -> usize {
        self.axes.iter().map(|axis| axis.kernel).product()
    }

    fn long(&self) -> usize {
        self.axes.iter().map(|axis| axis.long).product()
    }

    fn short(&self) -> usize {
        self.axes.iter().map(|axis| axis.short).product()
    }

    /// The places of the short side in pieces, so that `rows` rows of that length make a moderate buffer.
    fn pieces(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (short, length) = (self.short(), (COLUMN_ELEMENTS / rows.max(1)).max(64));
        (0..short.div_ceil(length)).map(move |index| index * length..((index + 1) * length).min(short))
    }

    /// Pairs of group and block of long channels.
    fn blocks(&self) -> Vec<(usize, Range<usize>)> {
        let channels = self.long_channels;
        let block = |group: usize| {
            (0..channels.div_ceil(CHANNEL_BLOCK))
                .map(move |index| (group, index * CHANNEL_BLOCK..((index + 1) * CHANNEL_BLOCK).min(channels)))
        };
        (0..self.group).flat_map(block).collect()
    }

    /// Calls `visit(row, column, place, count)` for each run: from `column` on, `count` columns of the row belong to
    /// places of the long side that begin at `place` and are one stride apart. Rows are channels times taps.
    fn runs(&self, channels: usize, piece: &Range<usize>, mut visit: impl FnMut(usize, usize, usize, usize)) {
        let [a, b, c] = &self.axes;
        for (row, (channel, tap)) in
            (0..channels).flat_map(|channel| (0..self.taps()).map(move |tap| (channel, tap))).enumerate()
        {
            let (tap_a, tap_b, tap_c) =
                (tap / (b.kernel * c.kernel), tap / c.kernel % b.kernel, tap % c.kernel);
            let inside = c.shorts(tap_c);
            let mut start = piece.start;
            while start < piece.end {
                let (line, first) = (start / c.short, start % c.short);
                let last = c.short.min(first + piece.end - start);
                let (from, to) = (first.max(inside.start), last.min(inside.end));
                let place_a = a.position(line / b.short, tap_a);
                let place_b = b.position(line % b.short, tap_b);
                if let (true, Some(place_a), Some(place_b)) = (from < to, place_a, place_b) {
                    let place_c = c.position(from, tap_c).expect("invariant: `shorts` gives places inside");
                    let place = ((channel * a.long + place_a) * b.long + place_b) * c.long + place_c;
                    visit(row, start - piece.start + from - first, place, to - from);
                }
                start += last - first;
            }
        }
    }

    /// The columns that one piece of the short side sees, as rows of channels times taps.
    fn columns<T: Float>(&self, x: &[T], channels: usize, piece: &Range<usize>) -> Array2<T> {
        let width = piece.len();
        let mut columns = vec![T::zero(); channels * self.taps() * width];
        let stride = self.axes[2].stride;
        self.runs(channels, piece, |row, column, place, count| {
            let target = &mut columns[row * width + column..][..count];
            for (target, x) in target.iter_mut().zip(x[place..].iter().step_by(stride)) {
                *target = *x;
            }
        });
        Array2::from_shape_vec((channels * self.taps(), width), columns).expect("invariant: sizes agree")
    }

    fn convolve<T: Float>(&self, x: &[T], w: &[T]) -> Vec<T> {
        let (rows, short, long) = (self.long_channels * self.taps(), self.short(), self.long());
        let mut y = vec![T::zero(); self.batch * self.group * self.short_channels * short];
        if rows == 0 || y.is_empty() {
            return y;
        }
        let units: Vec<(usize, Range<usize>)> = (0..self.batch * self.group)
            .flat_map(|index| self.pieces(rows).map(move |piece| (index, piece)))
            .collect();
        let multiply = |(index, piece): &(usize, Range<usize>)| -> Array2<T> {
            let w = view(w, index % self.group, self.short_channels, rows);
            let x = &x[index * self.long_channels * long..][..self.long_channels * long];
            w.dot(&self.columns(x, self.long_channels, piece))
        };
        // A few at a time: the pieces of a large batch would need the memory of the output twice.
        for some in units.chunks(64) {
            let products: Vec<Array2<T>> = some.par_iter().map(multiply).collect();
            for ((index, piece), product) in some.iter().zip(products) {
                for (channel, row) in product.outer_iter().enumerate() {
                    let start = (index * self.short_channels + channel) * short + piece.start;
                    let target = &mut y[start..start + piece.len()];
                    target.iter_mut().zip(row).for_each(|(y, &value)| *y = value);
                }
            }
        }
        y
    }

    fn transpose<T: Float>(&self, g: &[T], w: &[T]) -> Vec<T> {
        let (taps, short, long) = (self.taps(), self.short(), self.long());
        let blocks = self.blocks();
        let units: Vec<(usize, &(usize, Range<usize>))> =
            (0..self.batch).flat_map(|sample| blocks.iter().map(move |block| (sample, block))).collect();
        let scatter = |(sample, (group, channels)): &(usize, &(usize, Range<usize>))| -> Vec<T> {
            let mut y = vec![T::zero(); channels.len() * long];
            if self.short_channels == 0 {
                return y;
            }
            let w = view(w, *group, self.short_channels, self.long_channels * taps);
            let w = w.slice_axis(ndarray::Axis(1), Slice::from(channels.start * taps..channels.end * taps));
            let g = view(g, sample * self.group + group, self.short_channels, short);
            let stride = self.axes[2].stride;
            for piece in self.pieces(channels.len() * taps) {
                let columns = w.t().dot(&g.slice_axis(ndarray::Axis(1), Slice::from(piece.clone())));
                let columns = columns.as_standard_layout();
                let columns = columns.as_slice().expect("invariant: standard layout");
                self.runs(channels.len(), &piece, |row, column, place, count| {
                    let source = &columns[row * piece.len() + column..][..count];
                    for (y, value) in y[place..].iter_mut().step_by(stride).zip(source) {
                        *y += *value;
                    }
                });
            }
            y
        };
        units.par_iter().map(scatter).collect::<Vec<_>>().concat()
    }

    fn correlate<T: Float>(&self, x: &[T], g: &[T]) -> Vec<T> {
        let (taps, short, long) = (self.taps(), self.short(), self.long());
        let rows = self.long_channels * taps;
        let blocks = self.blocks();
        let correlate = |(group, channels): &(usize, Range<usize>)| -> Array2<T> {
            let mut sum = Array2::zeros((self.short_channels, channels.len() * taps));
            for sample in 0..self.batch {
                let index = sample * self.group + group;
                let g = view(g, index, self.short_channels, short);
                let x = &x[(index * self.long_channels + channels.start) * long..][..channels.len() * long];
                for piece in self.pieces(channels.len() * taps) {
                    let columns = self.columns(x, channels.len(), &piece);
                    let g = g.slice_axis(ndarray::Axis(1), Slice::from(piece));
                    general_mat_mul(T::one(), &g, &columns.t(), T::one(), &mut sum);
                }
            }
            sum
        };
        let sums: Vec<Array2<T>> = blocks.par_iter().map(correlate).collect();
        let mut w = vec![T::zero(); self.group * self.short_channels * rows];
        for ((group, channels), sum) in blocks.iter().zip(sums) {
            for (channel, row) in sum.outer_iter().enumerate() {
                let start = (group * self.short_channels + channel) * rows + channels.start * taps;
                w[start..start + channels.len() * taps].iter_mut().zip(row).for_each(|(w, &v)| *w = v);
            }
        }
        w
    }
}

/// Matrix number `index` of those that lie one behind the other.
fn view<T>(elements: &[T], index: usize, rows: usize, columns: usize) -> ArrayView2<'_, T> {
    let size = rows * columns;
    ArrayView2::from_shape((rows, columns), &elements[index * size..(index + 1) * size])
        .expect("invariant: the slice has the size of the matrix")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ascending(shape: &[usize], first: f64) -> Tensor {
        let count = shape.iter().product::<usize>();
        Tensor::from_shape_vec(shape, (0..count).map(|index| index as f64 + first).collect()).unwrap()
    }

    fn assert_gives(op: &dyn OpDef, x: &[&Tensor], shape: &[usize], expected: &[f64]) {
        let x: Vec<Option<&Tensor>> = x.iter().copied().map(Some).collect();
        let y = op.run(&Inputs(&x)).unwrap().remove(0);
        assert_eq!(y, Tensor::from_shape_vec(shape, expected.to_vec()).unwrap());
    }

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

    #[test]
    fn large_maps_are_worked_on_in_pieces() {
        // Many pieces against one direct sum.
        let (x, w) = (ascending(&[1, 3, 70_000], 0.0), ascending(&[2, 3, 5], -7.0));
        let op = Conv { window: Window::plain(1).with_pads([2, 2]), group: 1 };
        let y = op.run(&Inputs(&[Some(&x), Some(&w)])).unwrap().remove(0);
        let (y, x, w) = (y.to_f64(), x.to_f64(), w.to_f64());
        for place in [2, 34_951, 34_952, 34_953, 69_997] {
            let sum: f64 = (0..3)
                .flat_map(|c| (0..5).map(move |t| (c, t)))
                .map(|(c, t)| w[[1, c, t]] * x[[0, c, place + t - 2]])
                .sum();
            assert_eq!(y[[0, 1, place]], sum);
        }
    }

    #[test]
    fn the_gradient_of_a_strided_convolution_asks_for_sizes() {
        use crate::builder::Builder;
        use crate::graph::Graph;
        use crate::rules::RuleSet;
        use crate::tensor::DType;
        let gradient = |stride: i64| {
            let builder = Builder::new(Graph::default());
            let shape = vec![Dim::symbol("batch"), 1.into(), Dim::symbol("width")];
            let x = builder.input("x", Fact::new(DType::F32, shape));
            let w = builder.constant(ndarray::ArrayD::<f32>::ones(vec![1, 1, 2]));
            let op = Conv { window: Window::plain(1).with_strides([stride]), group: 1 };
            let (x, loss) = (x.id().unwrap(), builder.apply(op, &[x, w]).sum().id().unwrap());
            crate::backprop::gradient(builder.finish().unwrap(), loss, &[x], &RuleSet::new())
        };
        assert!(gradient(1).is_ok());
        let error = gradient(2).unwrap_err();
        assert!(error.to_string().contains("width") && error.to_string().contains("--size"), "{error}");
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
