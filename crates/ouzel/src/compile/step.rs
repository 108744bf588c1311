//! The steps of a plan: kernel calls and reference evaluations on places in buffers.

use super::layout::{BufferId, Place};
use super::pack::{Packed, WeightsId};
use crate::error::Result;
use crate::graph::Constant;
use crate::op::{Op, OpDef};
use ouzel_kernels::{
    Activation, AverageCount, GateRule, MatrixProduct, Program, RecordRule, Reduction, SoftmaxKind,
    StridedCopy, View, Window,
};
use std::fmt;
use std::sync::Arc;

/// A number for each tensor that is no buffer: integers, truth values, and what has no known shape.
pub(crate) type TensorId = usize;

/// What a buffer holds.
#[derive(Clone)]
pub(crate) enum BufferKind {
    /// Floats that steps compute.
    Floats,
    /// Bits of masks, or positions of maxima.
    Words,
    /// Floats that are part of the plan.
    Constant(Arc<Vec<f32>>),
}

/// A piece of memory that steps share.
#[derive(Clone)]
pub(crate) struct Buffer {
    pub(crate) kind: BufferKind,
    /// Number of elements.
    pub(crate) len: usize,
}

/// A tensor as kernels see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Region {
    pub(crate) buffer: BufferId,
    pub(crate) view: View,
}

/// What happens to a result before it is stored; the order is that of [`ouzel_kernels::Epilogue`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Finish {
    pub(crate) bias: Option<Arc<Vec<f32>>>,
    pub(crate) addend: Option<Region>,
    /// A buffer of words.
    pub(crate) record: Option<(BufferId, RecordRule)>,
    pub(crate) activation: Option<Activation>,
    pub(crate) gate: Option<GateStep>,
    pub(crate) tail: Option<TailStep>,
}

/// An elementwise program that goes on from the end of a [`Finish`].
#[derive(Clone, Debug)]
pub(crate) struct TailStep {
    pub(crate) program: Program,
    /// The shape of the result, for operands with a number for each sample.
    pub(crate) shape: View,
    pub(crate) operands: Vec<OperandStep>,
    /// Where the second result goes, if there is one.
    pub(crate) second: Option<Region>,
}

/// A gate of a [`Finish`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct GateStep {
    pub(crate) rule: GateRule,
    /// A buffer of words; deconvnet's gate needs none.
    pub(crate) mask: Option<BufferId>,
    pub(crate) before_addend: bool,
}

/// What a reference evaluation reads.
#[derive(Clone)]
pub(crate) enum Argument {
    Place(Place),
    Tensor(TensorId),
    Constant(Constant),
    /// An input of the plan, by number.
    Input(usize),
}

/// What a reference evaluation writes.
#[derive(Clone)]
pub(crate) enum Target {
    Place(Place),
    Tensor(TensorId),
}

/// One side of a matrix product.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Factor {
    pub(crate) buffer: BufferId,
    pub(crate) offset: usize,
    pub(crate) batch_stride: usize,
    pub(crate) row_stride: usize,
    pub(crate) column_stride: usize,
}

/// What a program reads.
#[derive(Clone, Debug)]
pub(crate) enum OperandStep {
    Full(Region),
    /// The only element of a buffer.
    Scalar(BufferId),
    PerChannel(BufferId),
    PerSampleChannel(BufferId),
    PerPixel(BufferId),
    Bits(BufferId),
    /// What the kernel has computed whose tail the program is.
    Value,
}

impl OperandStep {
    /// Where a tensor as large as the result lies.
    pub(crate) fn region(&self) -> Option<Region> {
        match self {
            Self::Full(region) => Some(*region),
            _ => None,
        }
    }

    fn buffer(&self) -> Option<BufferId> {
        Some(match self {
            Self::Value => return None,
            Self::Full(region) => region.buffer,
            Self::Scalar(buffer)
            | Self::PerChannel(buffer)
            | Self::PerSampleChannel(buffer)
            | Self::PerPixel(buffer)
            | Self::Bits(buffer) => *buffer,
        })
    }
}

/// What a step does.
pub(crate) enum Work {
    /// Brings an input of the plan into a buffer.
    Enter {
        input: usize,
        to: Place,
    },
    /// Evaluates an op as the reference does.
    Reference {
        op: Op,
        inputs: Vec<Option<Argument>>,
        outputs: Vec<Option<Target>>,
    },
    Convolution {
        weights: WeightsId,
        from: Region,
        to: Region,
        finish: Finish,
    },
    /// A dense layer, or the gradient of one.
    Dense {
        weights: WeightsId,
        transposed: bool,
        rows: usize,
        from: Region,
        to: Region,
        finish: Finish,
    },
    MatrixProduct {
        product: Arc<MatrixProduct>,
        left: Factor,
        right: Factor,
        to: BufferId,
        scratch: BufferId,
    },
    MaxPool {
        window: Window,
        from: Region,
        to: Region,
        positions: Option<BufferId>,
        finish: Finish,
    },
    MaxPoolGradient {
        window: Window,
        from: Region,
        positions: BufferId,
        to: Region,
        finish: Finish,
    },
    AveragePool {
        window: Window,
        count: AverageCount,
        from: Region,
        to: Region,
        finish: Finish,
    },
    AveragePoolGradient {
        window: Window,
        count: AverageCount,
        from: Region,
        to: Region,
        finish: Finish,
    },
    /// Bias, addition, activation and gate without a product before them.
    Finish {
        from: Region,
        to: Region,
        finish: Finish,
    },
    /// An elementwise program over tensors of the shape of a view.
    Pointwise {
        program: Program,
        shape: View,
        operands: Vec<OperandStep>,
        to: Region,
        mask: Option<BufferId>,
    },
    /// A reduction of the lanes, or of the pixels of each sample.
    Reduce {
        reduction: Reduction,
        lanes: bool,
        from: Region,
        to: BufferId,
    },
    Softmax {
        kind: SoftmaxKind,
        from: Region,
        to: Region,
    },
    /// Fills a buffer.
    Fill {
        to: BufferId,
        value: f32,
    },
    Copy {
        copy: StridedCopy,
        from: BufferId,
        to: BufferId,
    },
}

/// One step of a plan.
pub(crate) struct Step {
    /// What `--timings` calls it.
    pub(crate) title: String,
    /// The shape of the result; empty where it is not known.
    pub(crate) shape: Vec<usize>,
    /// Multiplications and additions, for products.
    pub(crate) flops: Option<f64>,
    /// Bytes of the buffers that it uses.
    pub(crate) bytes: f64,
    pub(crate) work: Work,
}

impl Buffer {
    /// How much memory it takes.
    pub(crate) fn bytes(&self) -> usize {
        match self.kind {
            BufferKind::Words => self.len * size_of::<u16>(),
            BufferKind::Floats | BufferKind::Constant(_) => self.len * size_of::<f32>(),
        }
    }
}

/// How a step uses a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

impl Finish {
    fn each_buffer(&self, visit: &mut impl FnMut(BufferId, Access)) {
        if let Some(addend) = &self.addend {
            visit(addend.buffer, Access::Read);
        }
        if let Some(mask) = self.gate.and_then(|gate| gate.mask) {
            visit(mask, Access::Read);
        }
        if let Some((mask, _)) = self.record {
            visit(mask, Access::Write);
        }
        if let Some(tail) = &self.tail {
            tail.operands
                .iter()
                .filter_map(OperandStep::buffer)
                .for_each(|buffer| visit(buffer, Access::Read));
            if let Some(second) = tail.second {
                visit(second.buffer, Access::Write);
            }
        }
    }
}

impl Step {
    /// What does the work, for summaries.
    pub(crate) fn kind(&self) -> String {
        let kind = match &self.work {
            Work::Reference { op, .. } => return format!("{} (reference)", op.name()),
            Work::Enter { .. } => "enter",
            Work::Convolution { .. } => "convolution",
            Work::Dense { .. } => "dense",
            Work::MatrixProduct { .. } => "matrix product",
            Work::MaxPool { .. } => "max pool",
            Work::MaxPoolGradient { .. } => "max pool gradient",
            Work::AveragePool { .. } => "average pool",
            Work::AveragePoolGradient { .. } => "average pool gradient",
            Work::Finish { .. } => "bias, addition, activation, gate",
            Work::Pointwise { .. } => "pointwise",
            Work::Reduce { .. } => "reduction",
            Work::Softmax { .. } => "softmax",
            Work::Fill { .. } => "fill",
            Work::Copy { .. } => "copy",
        };
        kind.to_owned()
    }

    /// Multiplications and additions, for products with these weights.
    pub(crate) fn flops(&self, weights: &[Packed]) -> Result<Option<f64>> {
        Ok(match &self.work {
            Work::Convolution { weights: id, to, .. } => Some(weights[*id].convolution()?.flops(&to.view)),
            Work::Dense { weights: id, rows, .. } => {
                let layer = weights[*id].dense()?;
                Some(2.0 * *rows as f64 * layer.inputs() as f64 * layer.outputs() as f64)
            }
            Work::MatrixProduct { product, .. } => Some(product.flops()),
            _ => None,
        })
    }

    /// The epilogue, for steps that have one.
    pub(crate) fn finish(&self) -> Option<&Finish> {
        match &self.work {
            Work::Convolution { finish, .. }
            | Work::Dense { finish, .. }
            | Work::MaxPool { finish, .. }
            | Work::MaxPoolGradient { finish, .. }
            | Work::AveragePool { finish, .. }
            | Work::AveragePoolGradient { finish, .. }
            | Work::Finish { finish, .. } => Some(finish),
            _ => None,
        }
    }

    /// What is read at the same place of the result where it is written and nowhere else, for results of one tensor.
    pub(crate) fn read_in_place(&self) -> Vec<Region> {
        // What a tail reads is read when something has been written already.
        let operands = match &self.work {
            Work::Pointwise { operands, .. } => operands.as_slice(),
            _ => &[],
        };
        let addend = self.finish().and_then(|finish| finish.addend);
        addend.into_iter().chain(operands.iter().filter_map(OperandStep::region)).collect()
    }

    /// Where the result goes, for steps that have an epilogue or are elementwise.
    pub(crate) fn region(&self) -> Option<Region> {
        match &self.work {
            Work::Pointwise { to, .. } => Some(*to),
            Work::Convolution { to, .. }
            | Work::Dense { to, .. }
            | Work::MaxPool { to, .. }
            | Work::MaxPoolGradient { to, .. }
            | Work::AveragePool { to, .. }
            | Work::AveragePoolGradient { to, .. }
            | Work::Finish { to, .. } => Some(*to),
            _ => None,
        }
    }

    /// Calls `visit` with every buffer that the step uses.
    pub(crate) fn each_buffer(&self, mut visit: impl FnMut(BufferId, Access)) {
        use Access::{Read, Write};
        match &self.work {
            Work::Enter { to, .. } => visit(to.buffer, Write),
            Work::Reference { inputs, outputs, .. } => {
                for input in inputs.iter().flatten() {
                    if let Argument::Place(place) = input {
                        visit(place.buffer, Read);
                    }
                }
                for output in outputs.iter().flatten() {
                    if let Target::Place(place) = output {
                        visit(place.buffer, Write);
                    }
                }
            }
            Work::MatrixProduct { left, right, to, scratch, .. } => {
                visit(left.buffer, Read);
                visit(right.buffer, Read);
                visit(*to, Write);
                visit(*scratch, Write);
            }
            Work::MaxPool { from, to, positions, .. } => {
                visit(from.buffer, Read);
                visit(to.buffer, Write);
                if let Some(positions) = positions {
                    visit(*positions, Write);
                }
            }
            Work::MaxPoolGradient { from, to, positions, .. } => {
                visit(from.buffer, Read);
                visit(*positions, Read);
                visit(to.buffer, Write);
            }
            Work::Convolution { from, to, .. }
            | Work::Dense { from, to, .. }
            | Work::AveragePool { from, to, .. }
            | Work::AveragePoolGradient { from, to, .. }
            | Work::Softmax { from, to, .. }
            | Work::Finish { from, to, .. } => {
                visit(from.buffer, Read);
                visit(to.buffer, Write);
            }
            Work::Pointwise { operands, to, mask, .. } => {
                operands.iter().filter_map(OperandStep::buffer).for_each(|buffer| visit(buffer, Read));
                visit(to.buffer, Write);
                if let Some(mask) = mask {
                    visit(*mask, Write);
                }
            }
            Work::Reduce { from, to, .. } => {
                visit(from.buffer, Read);
                visit(*to, Write);
            }
            Work::Fill { to, .. } => visit(*to, Write),
            Work::Copy { from, to, .. } => {
                visit(*from, Read);
                visit(*to, Write);
            }
        }
        if let Some(finish) = self.finish() {
            finish.each_buffer(&mut visit);
        }
    }

    /// Calls `visit` with every tensor that the step reads.
    pub(crate) fn each_tensor_read(&self, mut visit: impl FnMut(TensorId)) {
        if let Work::Reference { inputs, .. } = &self.work {
            for input in inputs.iter().flatten() {
                if let Argument::Tensor(id) = input {
                    visit(*id);
                }
            }
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.title)?;
        let kernel = match &self.work {
            Work::Reference { .. } => " (reference)",
            Work::Copy { .. } => " (copy)",
            Work::Fill { .. } => " (fill)",
            _ => "",
        };
        f.write_str(kernel)?;
        if self.finish().is_some_and(|finish| finish.record.is_some()) {
            f.write_str(" + mask")?;
        }
        Ok(())
    }
}
