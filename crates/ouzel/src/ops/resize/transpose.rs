//! The transpose of a resize, which its gradient is made of.

use super::axes::Target;
#[cfg(test)]
use super::{Coordinates, Interpolation};
use super::{Resampling, Resize};
use crate::backprop::{Back, Cotangents};
use crate::dim::{Dim, display_shape};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader};
use crate::op::{Inputs, Listed, OpDef, Real};
use crate::ops::convolution::elements;
use crate::ops::window::output_shapes;
use crate::tensor::Tensor;

/// What a transposed resize undoes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResizeTarget(pub(super) Target<i64>);

/// The transpose of [`Resize`], without its extrapolation.
///
/// Private. Input: `g` in the shape of the resize's output; the output has the shape of its input.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResizeTranspose {
    /// How the resize computes its output; its axes are given.
    pub resampling: Resampling,
    /// Begins and ends of the part that is taken, for [`Coordinates::TfCropAndResize`].
    pub roi: Vec<Real>,
    /// The scales or sizes of the axes.
    pub target: ResizeTarget,
    /// The lengths of the axes of this op's output.
    pub lengths: Vec<i64>,
}

impl ResizeTranspose {
    fn target(&self) -> Target<Dim> {
        match &self.target.0 {
            Target::Scales(scales) => Target::Scales(scales.clone()),
            Target::Sizes(sizes) => Target::Sizes(sizes.iter().map(|&size| size.into()).collect()),
        }
    }
}

impl OpDef for ResizeTranspose {
    fn name(&self) -> &str {
        "ResizeTranspose"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let g = x.get(0)?;
        if !g.dtype.is_float() {
            bail!(shape, "expected floating point elements, found {g}");
        }
        let axes = self.resampling.axes(g.rank())?;
        if axes.len() != self.lengths.len() {
            bail!(shape, "expected a length for each of the axes {axes:?}, found {:?}", self.lengths);
        }
        let mut shape = g.shape.clone();
        for (&axis, &length) in axes.iter().zip(&self.lengths) {
            shape[axis] = length.into();
        }
        if self.resampling.output(&shape, &self.target())? != g.shape {
            bail!(
                shape,
                "a resize of {} does not have the shape of its cotangent {g}",
                display_shape(&shape)
            );
        }
        Ok(vec![Fact::new(g.dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        let dims = |shape: &[usize]| -> Vec<Dim> { shape.iter().map(|&length| length.into()).collect() };
        let roi: Vec<f64> = self.roi.iter().map(|bound| bound.0).collect();
        let g = x.get(0)?;
        let maps = self.resampling.maps(&dims(&shape), &dims(g.shape()), &self.target(), &roi)?;
        Ok(vec![crate::tensor::each_float!(g, g => {
            Tensor::from_shape_vec(&shape, self.resampling.run_transposed(elements(g).slice(), g.shape(), &maps))?
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let builder = back.builder();
        let floats =
            |values: &[Real]| builder.constant(Tensor::vector(values.iter().map(|value| value.0 as f32)));
        let roi = (!self.roi.is_empty()).then(|| floats(&self.roi));
        let (scales, sizes) = match &self.target.0 {
            Target::Scales(scales) => (Some(floats(scales)), None),
            Target::Sizes(sizes) => (None, Some(builder.integers(sizes.iter().copied()))),
        };
        let op = Resize { resampling: self.resampling.clone() };
        let x = match sizes {
            Some(_) => builder.apply_all(op, &[Some(back.g(0)), roi, scales, sizes]),
            None => builder.apply_all(op, &[Some(back.g(0)), roi, scales]),
        };
        Ok(back.only_first(x[0]))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        // A product with the matrix of each axis.
        let g = node.x(0);
        let roi: Vec<f64> = self.roi.iter().map(|bound| bound.0).collect();
        let maps = self.resampling.maps(&node.y(0).shape, &g.shape(), &self.target(), &roi)?;
        let mut y = g;
        for map in maps.iter().rev() {
            let mut matrix = ndarray::ArrayD::<f64>::zeros(vec![map.to, map.from]);
            for (row, taps) in self.resampling.rows(map).into_iter().enumerate() {
                for (element, weight) in taps {
                    matrix[[row, element]] += weight;
                }
            }
            let rank = y.rank();
            let constant =
                |matrix: ndarray::ArrayD<f64>| node.builder().constant(Tensor::from(matrix).cast(g.dtype()));
            y = if map.axis + 2 == rank {
                constant(matrix.reversed_axes().as_standard_layout().into_owned()).matmul(y)
            } else {
                let exchange: Vec<usize> = (0..rank)
                    .map(|axis| {
                        if axis == map.axis {
                            rank - 1
                        } else if axis == rank - 1 {
                            map.axis
                        } else {
                            axis
                        }
                    })
                    .collect();
                y.transpose(exchange.clone()).matmul(constant(matrix)).transpose(exchange)
            };
        }
        node.one(y)
    }
}

impl Listed for ResizeTranspose {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(unsupported, "ResizeTranspose is not an ONNX op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let resampling = Resampling {
            axes: Some(vec![2]),
            ..Resampling::new(Interpolation::Linear, Coordinates::HalfPixel)
        };
        let op = ResizeTranspose {
            resampling,
            roi: vec![],
            target: ResizeTarget(Target::Scales(vec![Real(0.6f32.into())])),
            lengths: vec![5],
        };
        vec![Sample::new(op, [floats(-1.0, 1.0).input(&[2, 2, 3])])]
    }
}
