//! Convolution, its transpose, and its weight gradient: one form, linear in each of three arrays.
//!
//! With `x` of shape `[N, C, …long]`, `w` of shape `[M, C/group, …kernel]` and `g` of shape `[N, M, …short]` the form is
//! `Σ g[n, m, o] · w[m, c, t] · x[n, c, o · stride + t · dilation - begin]`, where positions outside `x` count nothing.
//! Each op is its derivative for one of the arrays, so the gradients of each op are the other two.

mod form;
mod forward;
mod transpose;
mod weights;

pub use forward::Conv;
pub use transpose::ConvTranspose;
pub use weights::ConvWeightGradient;

use super::window::{Window, check_sizes};
use crate::builder::Var;
use crate::dim::{Dim, display_shape};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{SampleInput, floats};
use crate::graph::Fact;
use crate::onnx::NodeReader;
use crate::tensor::{Float, Tensor};

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

#[cfg(test)]
fn x(shape: &[usize]) -> SampleInput {
    floats(-1.0, 1.0).input(shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Inputs, OpDef};

    pub(super) fn ascending(shape: &[usize], first: f64) -> Tensor {
        let count = shape.iter().product::<usize>();
        Tensor::from_shape_vec(shape, (0..count).map(|index| index as f64 + first).collect()).unwrap()
    }

    pub(super) fn assert_gives(op: &dyn OpDef, x: &[&Tensor], shape: &[usize], expected: &[f64]) {
        let x: Vec<Option<&Tensor>> = x.iter().copied().map(Some).collect();
        let y = op.run(&Inputs(&x)).unwrap().remove(0);
        assert_eq!(y, Tensor::from_shape_vec(shape, expected.to_vec()).unwrap());
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
}
