//! Weights in the form that kernels read: packed once for all plans, with the factors that were folded into them.

use super::Precision;
use super::anchor::Anchor;
use super::fuse::Cluster;
use crate::error::{Error, Result, bail};
use crate::graph::{Constant, Graph, ValueId};
use crate::tensor::Tensor;
use ouzel_kernels::{Convolution, ConvolutionShape, Dense};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// A number for the packed weights of a plan.
pub(crate) type WeightsId = usize;

/// How weights are packed.
#[derive(Clone, Debug)]
enum Form {
    Convolution {
        shape: ConvolutionShape,
        transposed: bool,
        winograd: bool,
        input: Option<Vec<f64>>,
        output: Option<Vec<f64>>,
    },
    /// A matrix times a factor.
    Dense { alpha: f64 },
}

impl Form {
    /// What tells forms of one constant apart.
    fn key(&self) -> Vec<u64> {
        match self {
            Self::Convolution { shape, transposed, winograd, input, output } => {
                let ConvolutionShape {
                    input_channels,
                    output_channels,
                    groups,
                    kernel,
                    stride,
                    dilation,
                    padding,
                } = shape;
                let numbers = [input_channels, output_channels, groups].into_iter();
                let numbers = numbers.chain(kernel).chain(stride).chain(dilation).chain(padding);
                let mut key: Vec<u64> = numbers.map(|&number| number as u64).collect();
                key.extend([u64::from(*transposed), u64::from(*winograd)]);
                for factors in [input, output] {
                    key.push(factors.as_ref().map_or(0, |factors| factors.len() as u64));
                    key.extend(factors.iter().flatten().map(|factor| factor.to_bits()));
                }
                key
            }
            Self::Dense { alpha } => vec![alpha.to_bits()],
        }
    }
}

/// Dense weights, which both directions share, with the orientation in which they were first asked for: whether the rows of
/// the matrix are the outputs of the layer.
pub(crate) struct SharedDense {
    layer: Dense,
    rows_are_outputs: bool,
}

/// Weights that a plan asks for.
enum Request {
    Stored { constant: Constant, form: Form, key: Vec<u64> },
    Ready(Arc<Convolution>),
}

/// Collects the weights of a plan, to be packed together.
pub(crate) struct Packer {
    precision: Precision,
    requests: Vec<Request>,
    known: HashMap<(usize, Vec<u64>), WeightsId>,
    /// The orientation of dense weights.
    orientations: HashMap<WeightsId, bool>,
}

impl Packer {
    pub(crate) fn new(precision: Precision) -> Self {
        Self { precision, requests: Vec::new(), known: HashMap::new(), orientations: HashMap::new() }
    }

    fn request(&mut self, constant: &Constant, form: Form) -> WeightsId {
        let key = form.key();
        let known = self.known.entry((constant.identity(), key.clone()));
        *known.or_insert_with(|| {
            self.requests.push(Request::Stored { constant: constant.clone(), form, key });
            self.requests.len() - 1
        })
    }

    /// The weights of a convolution, whose result has this size, with the factors of its channels.
    pub(crate) fn convolution(
        &mut self,
        graph: &Graph,
        cluster: &Cluster,
        size: [usize; 3],
    ) -> Result<WeightsId> {
        let Anchor::Convolution { shape, transposed, weight } = &cluster.anchor else {
            bail!(internal, "a cluster without a convolution has no such weights")
        };
        let form = Form::Convolution {
            shape: shape.clone(),
            transposed: *transposed,
            winograd: self.precision == Precision::F32 && shape.suits_winograd(size),
            input: cluster.input_scale.clone(),
            output: cluster.output_scale.clone(),
        };
        Ok(self.request(constant(graph, *weight)?, form))
    }

    /// A factor for each lane, as a convolution of single pixels.
    pub(crate) fn scale(&mut self, factors: &[f64]) -> WeightsId {
        let lanes = factors.len();
        let shape = ConvolutionShape { groups: lanes, ..ConvolutionShape::new(lanes, lanes, [1; 3]) };
        let weights: Vec<f32> = factors.iter().map(|&factor| factor as f32).collect();
        let packed = Convolution::forward(&shape, &weights);
        self.requests.push(Request::Ready(Arc::new(packed)));
        self.requests.len() - 1
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
    ) -> Result<(WeightsId, bool)> {
        let constant = constant(graph, weight)?;
        let form = Form::Dense { alpha };
        // Another plan may have chosen the other orientation.
        let kept = constant.form(&form.key()).and_then(|form| form.downcast::<SharedDense>().ok());
        let id = self.request(constant, form);
        let first = kept.map_or(transposed, |kept| kept.rows_are_outputs);
        let rows_are_outputs = *self.orientations.entry(id).or_insert(first);
        Ok((id, rows_are_outputs != transposed))
    }

    /// Packs what no other plan has packed, each constant read once.
    pub(crate) fn finish(self) -> Result<Vec<Packed>> {
        let mut groups: HashMap<usize, Vec<usize>> = HashMap::new();
        let mut packed: Vec<Option<Packed>> = Vec::new();
        for (id, request) in self.requests.iter().enumerate() {
            packed.push(match request {
                Request::Ready(weights) => Some(Packed::Convolution(weights.clone())),
                Request::Stored { constant, .. } => {
                    groups.entry(constant.identity()).or_default().push(id);
                    None
                }
            });
        }
        let mut groups: Vec<Vec<usize>> = groups.into_values().collect();
        groups.sort();
        let made: Vec<Vec<(usize, Packed)>> = groups
            .into_par_iter()
            .map(|ids| {
                let mut tensor = None;
                let requests = ids.into_iter().map(|id| Ok((id, self.pack(id, &mut tensor)?)));
                requests.collect::<Result<Vec<_>>>()
            })
            .collect::<Result<_>>()?;
        for (id, weights) in made.into_iter().flatten() {
            packed[id] = Some(weights);
        }
        match packed.into_iter().collect() {
            Some(packed) => Ok(packed),
            None => bail!(internal, "some weights were not packed"),
        }
    }

    /// The weights of one request; `tensor` holds the elements once they have been read.
    fn pack(&self, id: usize, tensor: &mut Option<Tensor>) -> Result<Packed> {
        let Request::Stored { constant, form, key } = &self.requests[id] else {
            bail!(internal, "these weights are packed already")
        };
        match form {
            Form::Convolution { shape, transposed, winograd, input, output } => {
                if let Some(Ok(kept)) = constant.form(key).map(|form| form.downcast::<Convolution>()) {
                    return Ok(Packed::Convolution(kept));
                }
                let read = read(constant, tensor)?;
                let pack = match (transposed, winograd) {
                    (false, false) => Convolution::forward,
                    (true, false) => Convolution::transposed,
                    (false, true) => Convolution::forward_by_winograd,
                    (true, true) => Convolution::transposed_by_winograd,
                };
                let factors = (input.as_deref(), output.as_deref());
                let elements = elements(read)?;
                let weights = scaled(&elements, shape, *transposed, factors)?;
                let weights = Arc::new(pack(shape, &weights));
                constant.keep_form(key.clone(), weights.clone());
                Ok(Packed::Convolution(weights))
            }
            Form::Dense { alpha } => {
                let rows_are_outputs = self.orientations.get(&id).copied().unwrap_or_default();
                if let Some(Ok(kept)) = constant.form(key).map(|form| form.downcast::<SharedDense>())
                    && kept.rows_are_outputs == rows_are_outputs
                {
                    return Ok(Packed::Dense(kept));
                }
                let layer = dense(constant, rows_are_outputs, *alpha, tensor)?;
                let shared = Arc::new(SharedDense { layer, rows_are_outputs });
                constant.keep_form(key.clone(), shared.clone());
                Ok(Packed::Dense(shared))
            }
        }
    }
}

/// Packed weights, which plans share.
pub(crate) enum Packed {
    Convolution(Arc<Convolution>),
    Dense(Arc<SharedDense>),
}

impl Packed {
    /// The convolution.
    pub(crate) fn convolution(&self) -> Result<&Convolution> {
        match self {
            Self::Convolution(convolution) => Ok(convolution),
            Self::Dense(_) => bail!(internal, "expected the weights of a convolution"),
        }
    }

    /// The dense layer.
    pub(crate) fn dense(&self) -> Result<&Dense> {
        match self {
            Self::Dense(shared) => Ok(&shared.layer),
            Self::Convolution(_) => bail!(internal, "expected the weights of a dense layer"),
        }
    }
}

fn constant(graph: &Graph, id: ValueId) -> Result<&Constant> {
    match graph.constant(id) {
        Some(constant) => Ok(constant),
        None => bail!(internal, "{} is no constant", graph.title(id)),
    }
}

fn read<'a>(constant: &Constant, tensor: &'a mut Option<Tensor>) -> Result<&'a Tensor> {
    let read = match tensor.take() {
        Some(tensor) => tensor,
        None => constant.read()?,
    };
    Ok(tensor.insert(read))
}

/// The elements in row-major order.
pub(crate) fn elements(tensor: &Tensor) -> Result<Cow<'_, [f32]>> {
    let array = tensor.array::<f32>()?;
    Ok(match array.as_slice() {
        Some(slice) => slice.into(),
        None => array.iter().copied().collect::<Vec<f32>>().into(),
    })
}

/// The weights times the factors of the channels on both sides, if there are any.
fn scaled<'w>(
    weights: &'w [f32],
    shape: &ConvolutionShape,
    transposed: bool,
    (input, output): (Option<&[f64]>, Option<&[f64]>),
) -> Result<Cow<'w, [f32]>> {
    let expected = shape.output_channels
        * (shape.input_channels / shape.groups)
        * shape.kernel.iter().product::<usize>();
    if weights.len() != expected {
        bail!(internal, "a convolution of {shape:?} has {} weights", weights.len());
    }
    Ok(match (input, output) {
        (None, None) => weights.into(),
        _ => scale(weights, shape, transposed, input, output).into(),
    })
}

fn dense(
    constant: &Constant,
    rows_are_outputs: bool,
    alpha: f64,
    tensor: &mut Option<Tensor>,
) -> Result<Dense> {
    let shape = crate::dim::known_shape(&constant.fact().shape);
    let Some(&[rows, columns]) = shape.as_deref() else {
        bail!(internal, "a dense layer has weights that are {}", constant.fact())
    };
    let narrow = |weight: f32| if alpha == 1.0 { weight } else { (f64::from(weight) * alpha) as f32 };
    // Straight from the file, some rows at a time, so that a large matrix is never in memory twice.
    if rows_are_outputs && tensor.is_none() && constant.read_floats(0, &mut [])? {
        let failed: Mutex<Option<Error>> = Mutex::new(None);
        let layer =
            Dense::from_rows(columns, rows, |first, out| match constant.read_floats(first * columns, out) {
                Ok(true) => out.iter_mut().for_each(|weight| *weight = narrow(*weight)),
                refused => {
                    let error =
                        refused.err().unwrap_or_else(|| Error::internal("elements cannot be read in part"));
                    if let Ok(mut failed) = failed.lock() {
                        failed.get_or_insert(error);
                    }
                }
            });
        return match failed.into_inner() {
            Ok(None) => Ok(layer),
            Ok(Some(error)) => Err(error),
            Err(_) => bail!(internal, "a thread that read weights has panicked"),
        };
    }
    let read = read(constant, tensor)?;
    let weights = elements(read)?;
    let (inputs, outputs, input_stride, output_stride) =
        if rows_are_outputs { (columns, rows, 1, columns) } else { (rows, columns, columns, 1) };
    Ok(match alpha == 1.0 {
        true => Dense::new(inputs, outputs, &weights, input_stride, output_stride),
        false => Dense::from_fn(inputs, outputs, |input, output| {
            narrow(weights[input * input_stride + output * output_stride])
        }),
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
    for (row, weights) in weights.chunks_exact((inner.0 * taps).max(1)).enumerate() {
        let factor = outer.1.map_or(1.0, |factors| factors[row]);
        let narrow = |weight: f32, factor: f64| (f64::from(weight) * factor) as f32;
        match inner.1.map(|factors| &factors[row / group_size * inner.0..][..inner.0]) {
            None => scaled.extend(weights.iter().map(|&weight| narrow(weight, factor))),
            Some(factors) => {
                for (weights, inner) in weights.chunks_exact(taps.max(1)).zip(factors) {
                    scaled.extend(weights.iter().map(|&weight| narrow(weight, factor * inner)));
                }
            }
        }
    }
    scaled
}
