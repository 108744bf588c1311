//! The gradient of convolution for its weight.

use super::form::Form;
#[cfg(test)]
use super::x;
use super::{Conv, Linear, check_channels, differ, elements, known_pads};
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::Dim;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::Sample;
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, known_length};
use crate::op::{Inputs, Listed, OpDef};
use crate::ops::window::{Window, check_sizes, output_shapes};
use crate::tensor::{Tensor, each_float};

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
