//! Which nodes a kernel computes, with the geometry that it needs; all others are evaluated as the reference does.

use super::layout::Order;
use crate::dim::{Dim, known_shape};
use crate::graph::{Graph, Node, NodeId, ValueId};
use crate::op::Op;
use crate::ops::pool::{AveragePool, Divisor, Pooling};
use crate::ops::window::{Padding, Window as SpatialWindow};
use crate::tensor::DType;
use ouzel_kernels::{AverageCount, ConvolutionShape, Window};

/// A node that a kernel with an epilogue computes.
#[derive(Clone, Debug)]
pub(crate) enum Anchor {
    /// A convolution with constant weights, or a transposed one.
    Convolution {
        shape: ConvolutionShape,
        transposed: bool,
        weight: ValueId,
    },
    /// A factor and a summand for each lane.
    Scale,
    /// A product with a constant matrix: `transposed` says that the rows of the constant are the outputs.
    Dense {
        weight: ValueId,
        transposed: bool,
        alpha: f64,
    },
    MaxPool {
        window: Window,
    },
    /// The transpose of the max pooling that gave these indices.
    MaxPoolGradient {
        window: Window,
        indices: ValueId,
    },
    AveragePool {
        window: Window,
        count: AverageCount,
    },
    AveragePoolGradient {
        window: Window,
        count: AverageCount,
    },
    /// Nothing but an epilogue.
    Finish,
}

impl Anchor {
    /// True if input and output must lie channels last.
    pub(crate) fn is_spatial(&self) -> bool {
        !matches!(self, Self::Scale | Self::Dense { .. } | Self::Finish)
    }
}

/// What is known of the values of a graph before anything is compiled.
pub(crate) struct Facts<'g> {
    pub(crate) graph: &'g Graph,
    shapes: Vec<Option<Vec<usize>>>,
    consumers: Vec<Vec<(NodeId, usize)>>,
    outputs: Vec<bool>,
}

impl<'g> Facts<'g> {
    pub(crate) fn new(graph: &'g Graph, outputs: &[ValueId]) -> Self {
        let shape = |id: ValueId| known_shape(&graph.fact(id).shape);
        let mut is_output = vec![false; graph.values().len()];
        for output in outputs {
            is_output[output.index()] = true;
        }
        Self {
            graph,
            shapes: graph.values().map(|(id, _)| shape(id)).collect(),
            consumers: graph.consumers(),
            outputs: is_output,
        }
    }

    /// The shape, where it is known.
    pub(crate) fn shape(&self, id: ValueId) -> Option<&[usize]> {
        self.shapes[id.index()].as_deref()
    }

    /// The shape of a float32 tensor, where it is known: what buffers hold.
    pub(crate) fn floats(&self, id: ValueId) -> Option<&[usize]> {
        self.shape(id).filter(|_| self.graph.fact(id).dtype == DType::F32)
    }

    /// The nodes that read a value, with the position among their inputs.
    pub(crate) fn consumers(&self, id: ValueId) -> &[(NodeId, usize)] {
        &self.consumers[id.index()]
    }

    /// True if the plan is asked for the value.
    pub(crate) fn is_output(&self, id: ValueId) -> bool {
        self.outputs[id.index()]
    }

    /// The node that computes a value, with its id.
    pub(crate) fn producer(&self, id: ValueId) -> Option<(NodeId, &'g Node)> {
        self.graph.producer(id).map(|node| (node, self.graph.node(node)))
    }

    /// The single element of a constant.
    pub(crate) fn scalar(&self, id: ValueId) -> Option<f64> {
        match self.graph.fact(id).floats()?.as_slice() {
            [value] => Some(*value),
            _ => None,
        }
    }

    /// True for a constant all of whose elements are 0.
    pub(crate) fn is_zero(&self, id: ValueId) -> bool {
        self.graph.fact(id).floats().is_some_and(|values| values.iter().all(|&value| value == 0.0))
    }

    /// The elements of a constant float32 vector.
    pub(crate) fn vector(&self, id: ValueId, len: usize) -> Option<Vec<f64>> {
        let constant = self.graph.constant(id)?;
        (self.floats(id)? == [len])
            .then(|| constant.read().ok().map(|tensor| tensor.to_f64().iter().copied().collect()))?
    }

    /// The elements, one for each place on `axis`, of a constant that broadcasts to `shape` along no other axis.
    pub(crate) fn along(&self, id: ValueId, shape: &[usize], axis: usize) -> Option<Vec<f64>> {
        let constant = self.graph.constant(id)?;
        let own = self.floats(id)?;
        let added = shape.len().checked_sub(own.len())?;
        let fits = own
            .iter()
            .enumerate()
            .all(|(place, &length)| length == 1 || (place + added == axis && length == shape[axis]));
        let count = own.iter().product::<usize>();
        if !fits || (count != 1 && count != shape[axis]) {
            return None;
        }
        let values: Vec<f64> = constant.read().ok()?.to_f64().iter().copied().collect();
        Some(match values.as_slice() {
            [value] => vec![*value; shape[axis]],
            _ => values,
        })
    }

    /// The kernel for a node, if there is one. `order` is that of the node's first output.
    pub(crate) fn anchor(&self, node: &Node, order: &Order) -> Option<Anchor> {
        let input = |index: usize| node.inputs.get(index).copied().flatten();
        let (x, y) = (self.floats(input(0)?)?, self.floats(node.outputs[0])?);
        if x.contains(&0) || y.contains(&0) {
            return None;
        }
        match &node.op {
            Op::Conv(conv) => {
                let weight = input(1)?;
                self.graph.constant(weight)?;
                let w = self.floats(weight)?;
                let shape = geometry(&conv.window, conv.group, &w[2..], x, y, &x[2..])?;
                self.is_bias(input(2), y[1]).then_some(Anchor::Convolution {
                    shape,
                    transposed: false,
                    weight,
                })
            }
            Op::ConvTranspose(conv) => {
                let weight = input(1)?;
                self.graph.constant(weight)?;
                let w = self.floats(weight)?;
                if conv.output_shape.is_some() || !matches!(conv.window.padding, Padding::Explicit(_)) {
                    return None;
                }
                let shape = geometry(&conv.window, conv.group, &w[2..], x, y, &y[2..])?;
                self.is_bias(input(2), y[1]).then_some(Anchor::Convolution {
                    shape,
                    transposed: true,
                    weight,
                })
            }
            Op::BatchNormalization(_) => {
                let vectors =
                    (1..5).all(|index| input(index).is_some_and(|id| self.vector(id, x[1]).is_some()));
                (vectors && order.lane_axis() == Some(1)).then_some(Anchor::Scale)
            }
            Op::Mul(_) => {
                let (main, lanes) = self.lane_operand(node, order)?;
                (self.floats(main)? == y && lanes.iter().all(|lane| lane.is_finite()))
                    .then_some(Anchor::Scale)
            }
            Op::Gemm(gemm) if !gemm.transpose_a => {
                let weight = input(1)?;
                self.graph.constant(weight)?;
                let bias = match input(2) {
                    None => true,
                    Some(bias) => self.along(bias, y, 1).is_some(),
                };
                (bias && self.floats(weight)?.len() == 2).then_some(Anchor::Dense {
                    weight,
                    transposed: gemm.transpose_b,
                    alpha: gemm.alpha.0,
                })
            }
            Op::MatMul(_) => {
                let weight = input(1)?;
                self.graph.constant(weight)?;
                (x.len() >= 2 && self.floats(weight)?.len() == 2).then_some(Anchor::Dense {
                    weight,
                    transposed: false,
                    alpha: 1.0,
                })
            }
            Op::MaxPool(pool) => {
                let window = pool_window(&pool.pooling, x)?;
                let fits = window.kernel.iter().product::<usize>() < usize::from(ouzel_kernels::NO_POSITION);
                // The kernel's positions serve the transpose only.
                let indices = node.outputs.get(1);
                let private = indices.is_none_or(|&indices| {
                    !self.is_output(indices)
                        && self.consumers(indices).iter().all(|&(consumer, position)| {
                            position == 1 && self.is_plain_transpose(consumer, x)
                        })
                });
                (fits && private).then_some(Anchor::MaxPool { window })
            }
            Op::MaxPoolTranspose(_) => {
                let indices = input(1)?;
                let (_, pool) = self.producer(indices)?;
                let from = self.floats(pool.inputs[0]?)?;
                match self.anchor(pool, &Order::channels_last(from.len()))? {
                    Anchor::MaxPool { window } if pool.outputs.get(1) == Some(&indices) => {
                        Some(Anchor::MaxPoolGradient { window, indices })
                    }
                    _ => None,
                }
            }
            Op::AveragePool(pool) => {
                let (window, count) = average_window(pool, x)?;
                Some(Anchor::AveragePool { window, count })
            }
            Op::AveragePoolTranspose(transpose) => {
                let (window, count) = average_window(&transpose.average, y)?;
                Some(Anchor::AveragePoolGradient { window, count })
            }
            Op::GlobalAveragePool(_) => {
                let window = Window::new(front(&x[2..])?);
                Some(Anchor::AveragePool { window, count: AverageCount::Inside })
            }
            _ => None,
        }
    }

    /// True for a missing bias and for a constant one of this length.
    fn is_bias(&self, bias: Option<ValueId>, channels: usize) -> bool {
        bias.is_none_or(|bias| self.graph.constant(bias).is_some() && self.floats(bias) == Some(&[channels]))
    }

    /// True for the transpose of a max pooling of a tensor of this shape.
    fn is_plain_transpose(&self, node: NodeId, shape: &[usize]) -> bool {
        let node = self.graph.node(node);
        matches!(node.op, Op::MaxPoolTranspose(_)) && self.floats(node.outputs[0]) == Some(shape)
    }

    /// The operand of a product or sum whose other operand is a constant along the lanes, and the constant.
    pub(crate) fn lane_operand(&self, node: &Node, order: &Order) -> Option<(ValueId, Vec<f64>)> {
        let (a, b) = (node.inputs.first().copied()??, node.inputs.get(1).copied()??);
        let y = self.floats(node.outputs[0])?;
        let axis = order.lane_axis()?;
        [(a, b), (b, a)]
            .into_iter()
            .filter(|&(main, _)| self.floats(main) == Some(y))
            .find_map(|(main, other)| self.along(other, y, axis).map(|values| (main, values)))
    }
}

/// Three axes, the first ones of length 1 where there are fewer.
fn front(values: &[usize]) -> Option<[usize; 3]> {
    let mut axes = [1; 3];
    axes[3usize.checked_sub(values.len())?..].copy_from_slice(values);
    Some(axes)
}

fn numbers(values: &[i64], missing: usize) -> Option<[usize; 3]> {
    let mut axes = [missing; 3];
    let first = 3usize.checked_sub(values.len())?;
    for (axis, value) in axes[first..].iter_mut().zip(values) {
        *axis = usize::try_from(*value).ok()?;
    }
    Some(axes)
}

/// The geometry of a convolution over `lengths`, in the channels of the node.
fn geometry(
    window: &SpatialWindow,
    group: i64,
    kernel: &[usize],
    x: &[usize],
    y: &[usize],
    lengths: &[usize],
) -> Option<ConvolutionShape> {
    let (pads, kernel) = pads(window, lengths, kernel)?;
    Some(ConvolutionShape {
        input_channels: x[1],
        output_channels: y[1],
        groups: usize::try_from(group).ok()?,
        kernel,
        stride: numbers(&window.strides, 1)?,
        dilation: numbers(&window.dilations, 1)?,
        padding: numbers(&pads[..pads.len() / 2], 0)?,
    })
}

fn pads(window: &SpatialWindow, lengths: &[usize], kernel: &[usize]) -> Option<(Vec<i64>, [usize; 3])> {
    let dims: Vec<Dim> = lengths.iter().map(|&length| length.into()).collect();
    let sizes: Vec<i64> = kernel.iter().map(|&length| length as i64).collect();
    Some((window.pads(&dims, &sizes).ok()?, front(kernel)?))
}

fn pool_window(pooling: &Pooling, x: &[usize]) -> Option<Window> {
    let kernel: Vec<usize> =
        pooling.kernel.iter().map(|&length| usize::try_from(length).ok()).collect::<Option<_>>()?;
    let (pads, kernel) = pads(&pooling.window, &x[2..], &kernel)?;
    let (begin, end) = pads.split_at(pads.len() / 2);
    Some(Window {
        kernel,
        stride: numbers(&pooling.window.strides, 1)?,
        dilation: numbers(&pooling.window.dilations, 1)?,
        padding: numbers(begin, 0)?,
        padding_end: numbers(end, 0)?,
    })
}

fn average_window(pool: &AveragePool, x: &[usize]) -> Option<(Window, AverageCount)> {
    let count = match pool.divisor {
        Divisor::Inside => AverageCount::Inside,
        Divisor::Padded => AverageCount::WithPadding,
        Divisor::One => return None,
    };
    Some((pool_window(&pool.pooling, x)?, count))
}
