//! Weights in the form that kernels read: packed once, with the factors that were folded into them.

use super::anchor::Anchor;
use super::fuse::Cluster;
use crate::error::{Result, bail};
use crate::graph::{Constant, Graph, ValueId};
use crate::tensor::Tensor;
use ouzel_kernels::{Convolution, ConvolutionShape, Dense};
use std::collections::HashMap;
use std::sync::Arc;

/// The packed weights of a plan.
#[derive(Default)]
pub(crate) struct Packer {
    /// By the constant's identity and the factor: the layer, and whether its inputs are the rows of the constant.
    dense: HashMap<(usize, u64), (Arc<Dense>, bool)>,
}

impl Packer {
    /// The weights of a convolution with the factors of its channels.
    pub(crate) fn convolution(&mut self, graph: &Graph, cluster: &Cluster) -> Result<Arc<Convolution>> {
        let Anchor::Convolution { shape, transposed, weight } = &cluster.anchor else {
            bail!(internal, "a cluster without a convolution has no such weights")
        };
        let tensor = constant(graph, *weight)?.read()?;
        let weights = elements(&tensor)?;
        let expected = shape.output_channels
            * (shape.input_channels / shape.groups)
            * shape.kernel.iter().product::<usize>();
        if weights.len() != expected {
            bail!(internal, "a convolution of {shape:?} has {} weights", weights.len());
        }
        let scaled;
        let weights = match (&cluster.input_scale, &cluster.output_scale) {
            (None, None) => weights.as_ref(),
            (input, output) => {
                scaled = scale(&weights, shape, *transposed, input.as_deref(), output.as_deref());
                &scaled
            }
        };
        Ok(Arc::new(match transposed {
            true => Convolution::transposed(shape, weights),
            false => Convolution::forward(shape, weights),
        }))
    }

    /// A factor for each lane, as a convolution of single pixels.
    pub(crate) fn scale(&mut self, factors: &[f64]) -> Arc<Convolution> {
        let lanes = factors.len();
        let shape = ConvolutionShape { groups: lanes, ..ConvolutionShape::new(lanes, lanes, [1; 3]) };
        let weights: Vec<f32> = factors.iter().map(|&factor| factor as f32).collect();
        Arc::new(Convolution::forward(&shape, &weights))
    }

    /// A dense layer of a constant matrix, and whether it is to be run backwards: both directions share one copy.
    ///
    /// `transposed` says that the rows of the matrix are the outputs.
    pub(crate) fn dense(
        &mut self,
        graph: &Graph,
        weight: ValueId,
        transposed: bool,
        alpha: f64,
    ) -> Result<(Arc<Dense>, bool)> {
        let constant = constant(graph, weight)?;
        let key = (constant.identity(), alpha.to_bits());
        if let Some((layer, rows_are_outputs)) = self.dense.get(&key) {
            return Ok((layer.clone(), *rows_are_outputs != transposed));
        }
        let tensor = constant.read()?;
        let &[rows, columns] = tensor.shape() else {
            bail!(internal, "a dense layer has weights of shape {:?}", tensor.shape())
        };
        let weights = elements(&tensor)?;
        let (inputs, outputs, input_stride, output_stride) =
            if transposed { (columns, rows, 1, columns) } else { (rows, columns, columns, 1) };
        let layer = match alpha == 1.0 {
            true => Dense::new(inputs, outputs, &weights, input_stride, output_stride),
            false => Dense::from_fn(inputs, outputs, |input, output| {
                (f64::from(weights[input * input_stride + output * output_stride]) * alpha) as f32
            }),
        };
        let layer = Arc::new(layer);
        self.dense.insert(key, (layer.clone(), transposed));
        Ok((layer, false))
    }
}

fn constant(graph: &Graph, id: ValueId) -> Result<&Constant> {
    match graph.constant(id) {
        Some(constant) => Ok(constant),
        None => bail!(internal, "{} is no constant", graph.title(id)),
    }
}

/// The elements in row-major order.
pub(crate) fn elements(tensor: &Tensor) -> Result<std::borrow::Cow<'_, [f32]>> {
    let array = tensor.array::<f32>()?;
    Ok(match array.as_slice() {
        Some(slice) => slice.into(),
        None => array.iter().copied().collect::<Vec<f32>>().into(),
    })
}

/// The weights times the factors of the channels on both sides.
fn scale(
    weights: &[f32],
    shape: &ConvolutionShape,
    transposed: bool,
    input: Option<&[f64]>,
    output: Option<&[f64]>,
) -> Vec<f32> {
    let taps: usize = shape.kernel.iter().product();
    // Weights lie as [channels of one side][channels of the other side in a group][taps].
    let (outer, inner) = match transposed {
        true => ((shape.input_channels, input), (shape.output_channels / shape.groups, output)),
        false => ((shape.output_channels, output), (shape.input_channels / shape.groups, input)),
    };
    let group_size = (outer.0 / shape.groups).max(1);
    let mut scaled = Vec::with_capacity(weights.len());
    for (index, taps) in weights.chunks_exact(taps.max(1)).enumerate() {
        let (row, column) = (index / inner.0, index % inner.0);
        let factor = outer.1.map_or(1.0, |factors| factors[row])
            * inner.1.map_or(1.0, |factors| factors[row / group_size * inner.0 + column]);
        scaled.extend(taps.iter().map(|&weight| (f64::from(weight) * factor) as f32));
    }
    scaled
}
