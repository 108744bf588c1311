//! Pooling: the maximum, mean or norm under a sliding window, and over all spatial axes.

mod average;
mod global;
mod lp;
mod max;

pub use average::{AveragePool, AveragePoolTranspose, Divisor};
pub(crate) use global::elements_per;
pub use global::{GlobalAveragePool, GlobalMaxPool};
pub use lp::{GlobalLpPool, LpPool};
pub use max::{MaxPool, MaxPoolGather, MaxPoolTranspose};

#[cfg(test)]
use super::window::Padding;
use super::window::{Axis, Window, check_sizes};
use crate::builder::Var;
use crate::dim::{Dim, Shape, known_shape};
use crate::error::{Result, bail};
use crate::graph::Fact;
use crate::onnx::{NodeReader, NodeWriter, known_length};
#[cfg(test)]
use crate::op::{Inputs, OpDef};
use crate::ops::convolution::{Conv, ConvTranspose};
use crate::ops::layout::{Expand, Reshape};
use crate::ops::pad::Pad;
use crate::tensor::{DType, Tensor};

/// A window of a given size that slides over the spatial axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pooling {
    /// The taps of the window on each spatial axis.
    pub kernel: Vec<i64>,
    /// How the window moves.
    pub window: Window,
    /// The last window may reach beyond the padded input, if it starts inside the input or the padding before it.
    pub ceil_mode: bool,
}

impl Pooling {
    /// A window of this size that moves by one.
    pub fn plain(kernel: impl Into<Vec<i64>>) -> Self {
        let kernel = kernel.into();
        Self { window: Window::plain(kernel.len()), kernel, ceil_mode: false }
    }

    fn read(node: &mut NodeReader) -> Result<Self> {
        let window = Window::read(node)?;
        let Some(kernel) = node.ints("kernel_shape")? else {
            bail!(model, "the attribute 'kernel_shape' is missing");
        };
        check_sizes("kernel_shape", &kernel, window.strides.len(), 1)?;
        Ok(Self { kernel, window, ceil_mode: node.flag_or("ceil_mode", false)? })
    }

    fn write(&self, node: &mut NodeWriter) {
        self.window.write(node);
        node.ints("kernel_shape", &self.kernel);
        node.flag("ceil_mode", self.ceil_mode, false);
    }

    /// The sum of `x` under the window at each place, as a convolution of each plane by ones.
    fn summed<'b>(&self, x: Var<'b>, y: &Fact) -> Result<Var<'b>> {
        let (lengths, places) = (known_lengths(x)?, &y.shape[2..]);
        let rank = lengths.len();
        let mut pads = self.window.pads(&x.shape()[2..], &self.kernel)?;
        for axis in 0..rank {
            // As far as the last window reaches.
            let place = known_length(&places[axis], axis + 2)? as i64 - 1;
            let end = place * self.window.strides[axis] + self.window.span(axis, self.kernel[axis]);
            pads[rank + axis] = end - pads[axis] - lengths[axis] as i64;
        }
        let ones = ones(&self.kernel, x.dtype());
        let conv = Conv { window: self.window.clone().with_pads(pads), group: 1 };
        let planes = as_planes(x)?;
        let sums = x.builder().apply(conv, &[planes, x.builder().constant(ones)]);
        from_planes(sums, x)
    }

    /// What [`Self::summed`] undoes, for an output whose spatial axes have these lengths.
    fn spread<'b>(&self, g: Var<'b>, lengths: &[usize]) -> Result<Var<'b>> {
        let rank = lengths.len();
        let dims: Vec<Dim> = lengths.iter().map(|&length| length.into()).collect();
        let pads = self.window.pads(&dims, &self.kernel)?;
        let short = known_lengths(g)?;
        let apart =
            |axis: usize| self.window.dilations[axis] == 1 && self.window.strides[axis] == self.kernel[axis];
        if (0..rank).all(|axis| apart(axis) && pads[axis] == 0) {
            // Windows that touch each other without overlapping: each element is repeated.
            let split: Vec<i64> = short.iter().flat_map(|&length| [length as i64, 1]).collect();
            let wide: Vec<i64> = (0..rank).flat_map(|axis| [short[axis] as i64, self.kernel[axis]]).collect();
            let long: Vec<i64> = (0..rank).map(|axis| short[axis] as i64 * self.kernel[axis]).collect();
            let builder = g.builder();
            let with_first = |rest: Vec<i64>| [-1].into_iter().chain(rest);
            let target = builder.integers([1].into_iter().chain(wide));
            let repeated = builder.apply(Expand, &[g.reshape(with_first(split)), target]);
            let planes = repeated.reshape([-1, 1].into_iter().chain(long.iter().copied()));
            let whole = from_planes(planes, g)?;
            let cut: Vec<i64> = (0..rank).map(|axis| lengths[axis] as i64 - long[axis]).collect();
            return Ok(Pad::zeros(
                whole,
                [0; 2].into_iter().chain(vec![0; rank]).chain([0; 2]).chain(cut).collect(),
            ));
        }
        let mut around = vec![0; 2 * rank];
        let mut ends = vec![0; 2 * (rank + 2)];
        for axis in 0..rank {
            around[axis] = pads[axis].max(0);
            ends[axis + 2] = (-pads[axis]).max(0);
            let reach = (short[axis] as i64 - 1) * self.window.strides[axis]
                + self.window.span(axis, self.kernel[axis]);
            let missing = lengths[axis] as i64 - (reach - pads[axis]);
            around[rank + axis] = (-missing).max(0);
            ends[rank + 4 + axis] = missing.max(0);
        }
        let op = ConvTranspose {
            window: self.window.clone().with_pads(around),
            group: 1,
            output_padding: vec![0; rank],
            output_shape: None,
        };
        let planes = as_planes(g)?;
        let spread = g.builder().apply(op, &[planes, g.builder().constant(ones(&self.kernel, g.dtype()))]);
        from_planes(Pad::zeros(spread, ends), g)
    }

    /// The shape of the output.
    fn infer(&self, x: &Fact) -> Result<Shape> {
        let rank = x.rank().saturating_sub(2);
        self.window.check(rank)?;
        check_sizes("kernel_shape", &self.kernel, rank, 1)?;
        let outputs = self.window.output_lengths(&x.shape[2..], &self.kernel, self.ceil_mode)?;
        Ok([x.shape[..2].to_vec(), outputs].concat())
    }

    /// The geometry on an input and an output whose shapes are known.
    fn axes(&self, x: &[usize], y: &[usize]) -> Result<[Axis; 3]> {
        let lengths: Vec<Dim> = x[2..].iter().map(|&length| length.into()).collect();
        let kernel: Vec<usize> = self.kernel.iter().map(|&length| length as usize).collect();
        let pads = self.window.pads(&lengths, &self.kernel)?;
        Ok(Axis::triple(&self.window, &pads, &kernel, &x[2..], &y[2..]))
    }
}

/// Calls `visit(place)` with each place of a plane that the window at `short` touches, in row-major order.
fn visit_window(axes: &[Axis; 3], short: usize, mut visit: impl FnMut(usize)) {
    let [a, b, c] = axes;
    let (short_a, short_b, short_c) =
        (short / (b.short * c.short), short / c.short % b.short, short % c.short);
    let taps = c.taps(short_c);
    let Some(first) = c.position(short_c, taps.start) else { return };
    for place_a in a.taps(short_a).filter_map(|tap| a.position(short_a, tap)) {
        for place_b in b.taps(short_b).filter_map(|tap| b.position(short_b, tap)) {
            let line = (place_a * b.long + place_b) * c.long;
            for step in 0..taps.len() {
                visit(line + first + step * c.dilation);
            }
        }
    }
}

fn short_count(axes: &[Axis; 3]) -> usize {
    axes.iter().map(|axis| axis.short).product()
}

fn long_count(axes: &[Axis; 3]) -> usize {
    axes.iter().map(|axis| axis.long).product()
}

/// A kernel of ones for planes.
fn ones(kernel: &[i64], dtype: DType) -> Tensor {
    let shape: Vec<usize> = [1, 1].into_iter().chain(kernel.iter().map(|&length| length as usize)).collect();
    Tensor::from(ndarray::ArrayD::from_elem(shape, 1.0f64)).cast(dtype)
}

/// `[N, C, …]` as `[N·C, 1, …]`.
fn as_planes(x: Var<'_>) -> Result<Var<'_>> {
    Ok(x.reshape([-1, 1].into_iter().chain(known_lengths(x)?.iter().map(|&length| length as i64))))
}

/// `[N·C, 1, …]` as `[N, C, …]`, with batch and channels of `like`.
fn from_planes<'b>(planes: Var<'b>, like: Var<'b>) -> Result<Var<'b>> {
    let lengths = known_lengths(planes)?.into_iter().map(|length| length as i64);
    Ok(match like.shape()[1].known() {
        Some(channels) => planes.reshape([-1, channels].into_iter().chain(lengths)),
        None => {
            let builder = like.builder();
            let target = builder.concat(&[like.dimensions().slice(0, 0, 2), builder.integers(lengths)], 0);
            builder.apply(Reshape { allow_zero: true }, &[planes, target])
        }
    })
}

/// The lengths of the spatial axes, which the transpose of a pooling needs.
fn known_lengths(x: Var) -> Result<Vec<usize>> {
    match known_shape(&x.shape()[2..]) {
        Some(lengths) => Ok(lengths),
        None => bail!(
            shape,
            "the gradient of pooling needs the spatial size of its input, which is {}; give it with --size",
            x.fact()
        ),
    }
}

/// The shape of `g` with other lengths of the spatial axes.
fn with_lengths(g: &Fact, lengths: &[usize]) -> Result<Shape> {
    if g.rank() != lengths.len() + 2 {
        bail!(shape, "expected a tensor of {} axes, found {g}", lengths.len() + 2);
    }
    Ok(g.shape[..2].iter().cloned().chain(lengths.iter().map(|&length| length.into())).collect())
}

fn check_float(x: &Fact) -> Result<()> {
    if !x.dtype.is_float() {
        bail!(shape, "expected floating point elements, found {x}");
    }
    Ok(())
}

/// Windows of all kinds, with the shape of an input for each.
#[cfg(test)]
fn windows() -> impl Iterator<Item = (&'static [usize], Pooling)> {
    let over = |kernel: &[i64], window: Window, ceil_mode: bool| Pooling {
        kernel: kernel.to_vec(),
        window,
        ceil_mode,
    };
    let plane = || Window::plain(2);
    let same = |padding: Padding| plane().with_strides([2, 2]).with_padding(padding);
    let pools: [(&[usize], Pooling); 7] = [
        (&[2, 3, 4, 6], over(&[2, 2], plane().with_strides([2, 2]), false)),
        (&[2, 2, 5, 6], over(&[3, 3], plane().with_strides([2, 2]).with_pads([1, 0, 1, 2]), false)),
        (&[2, 2, 6, 5], over(&[3, 2], plane().with_strides([2, 2]).with_pads([0, 1, 0, 0]), true)),
        (&[2, 2, 6, 6], over(&[2, 3], plane().with_dilations([2, 2]), false)),
        (&[2, 2, 5, 5], over(&[3, 3], same(Padding::SameLower), false)),
        (&[2, 2, 9], over(&[3], Window::plain(1).with_strides([3]), false)),
        (&[2, 2, 3, 4, 3], over(&[2, 3, 1], Window::plain(3), false)),
    ];
    pools.into_iter()
}

#[cfg(test)]
fn line(kernel: i64, stride: i64, pads: [i64; 2]) -> Pooling {
    let window = Window::plain(1).with_strides([stride]).with_pads(pads);
    Pooling { window, ceil_mode: true, ..Pooling::plain([kernel]) }
}

#[cfg(test)]
fn run(op: &dyn OpDef, x: Tensor) -> Vec<Tensor> {
    op.run(&Inputs(&[Some(&x)])).unwrap()
}
