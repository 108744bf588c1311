//! Reductions, softmax and products of computed matrices as steps.

use super::layout::{Order, Place};
use super::lower::Lowerer;
use super::step::{BufferKind, Factor, Region, Work};
use crate::error::Result;
use crate::graph::{Node, ValueId};
use crate::op::{Op, resolve_axis};
use crate::ops::softmax::Normalized;
use ouzel_kernels::{MatrixProduct, Reduction, SoftmaxKind, View};
use std::sync::Arc;

/// What a node reduces, and over which axes.
pub(crate) fn reduction(op: &Op, rank: usize) -> Option<(Reduction, Vec<usize>)> {
    let (reduction, what) = match op {
        Op::ReduceSum(op) => (Reduction::Sum, &op.0),
        Op::ReduceMean(op) => (Reduction::Mean, &op.0),
        Op::ReduceMax(op) => (Reduction::Maximum, &op.0),
        Op::ReduceMin(op) => (Reduction::Minimum, &op.0),
        _ => return None,
    };
    Some((reduction, what.resolve(rank).ok()?))
}

impl Lowerer<'_> {
    /// A reduction over axes.
    pub(super) fn reduce(&mut self, node: &Node) -> Result<bool> {
        let (Some(input), output) = (node.inputs[0], node.outputs[0]) else { return Ok(false) };
        let (Some(from_shape), Some(shape)) = (self.facts.floats(input), self.facts.floats(output)) else {
            return Ok(false);
        };
        let Some((reduction, axes)) = reduction(&node.op, from_shape.len()) else { return Ok(false) };
        if from_shape.contains(&0) {
            return Ok(false);
        }
        let own = self.order(input)?;
        let kept_shape: Vec<usize> = (0..from_shape.len())
            .map(|axis| if axes.contains(&axis) { 1 } else { from_shape[axis] })
            .collect();
        // In memory: kept axes, reduced axes, kept axes. Else the reduced ones are brought to the end.
        let runs = own.runs(from_shape, |axis| axes.contains(&axis));
        let (order, lengths) = match runs.as_slice() {
            [] => (own, [1, 1, 1]),
            [(false, all)] => (own, [*all, 1, 1]),
            [(true, all)] => (own, [1, *all, 1]),
            [(false, outer), (true, reduced)] => (own, [*outer, *reduced, 1]),
            [(true, reduced), (false, inner)] => (own, [1, *reduced, *inner]),
            [(false, outer), (true, reduced), (false, inner)] => (own, [*outer, *reduced, *inner]),
            _ => {
                let order = axes.iter().fold(own, |order, &axis| order.with_innermost(axis));
                let kept: usize = kept_shape.iter().product();
                (order, [kept, axes.iter().map(|&axis| from_shape[axis]).product(), 1])
            }
        };
        // The kept axes keep their order; without the others it is that of the output, or a copy makes it so.
        let kept = order.settled(&kept_shape);
        let Some(kept) = kept.reshaped(&kept_shape, shape) else { return Ok(false) };
        let from = self.place_in(input, &order, true)?;
        let [outer, reduced, inner] = lengths;
        let to = self.new_place(shape, kept.settled(shape))?;
        let view = match inner {
            1 => View::packed(1, [1, 1, outer], reduced),
            _ => View::packed(outer, [1, 1, reduced], inner),
        };
        let from = Region { buffer: from.buffer, view };
        self.step(self.title(node), Work::Reduce { reduction, lanes: inner == 1, from, to: to.buffer });
        self.arrive(output, to)?;
        Ok(true)
    }

    /// A value that has been computed, but perhaps in another order than it is to lie in.
    fn arrive(&mut self, id: ValueId, computed: Place) -> Result<()> {
        let order = self.order(id)?;
        if computed.order.same(&order, &computed.shape) {
            self.places[id.index()] = Some(computed);
            return Ok(());
        }
        let to = self.new_place(&computed.shape, order)?;
        self.copy(format!("lay out {}", self.graph().title(id)), &computed, &to)?;
        self.places[id.index()] = Some(to);
        Ok(())
    }

    /// A softmax over one axis.
    pub(super) fn softmax(&mut self, node: &Node) -> Result<bool> {
        let (kind, normalized) = match &node.op {
            Op::Softmax(op) => (SoftmaxKind::Probability, &op.0),
            Op::LogSoftmax(op) => (SoftmaxKind::Logarithm, &op.0),
            _ => return Ok(false),
        };
        let (Some(input), output) = (node.inputs[0], node.outputs[0]) else { return Ok(false) };
        let Some(shape) = self.facts.floats(input) else { return Ok(false) };
        let Normalized { axis, flattened } = *normalized;
        let axis = resolve_axis(axis, shape.len())?;
        let last =
            axis + 1 == shape.len() || (flattened && shape[axis + 1..].iter().all(|&length| length == 1));
        if (flattened && !last) || shape.contains(&0) || shape[axis] == 1 {
            return Ok(false);
        }
        let order = self.order(input)?.with_innermost(axis);
        let from = self.place_in(input, &order, false)?;
        let to = self.new_place(shape, order.settled(shape))?;
        let (from, region) = (
            Region { buffer: from.buffer, view: from.view() },
            Region { buffer: to.buffer, view: to.view() },
        );
        self.step(self.title(node), Work::Softmax { kind, from, to: region });
        self.arrive(output, to)?;
        Ok(true)
    }

    /// A product of two matrices that are both computed.
    pub(super) fn matrix_product(&mut self, node: &Node) -> Result<bool> {
        let (a, b) = match (&node.op, node.inputs.as_slice()) {
            (Op::MatMul(_), [Some(a), Some(b)]) => (*a, *b),
            _ => return Ok(false),
        };
        let output = node.outputs[0];
        let (Some(left), Some(right), Some(shape)) =
            (self.facts.floats(a), self.facts.floats(b), self.facts.floats(output))
        else {
            return Ok(false);
        };
        let rank = shape.len();
        if left.len() != rank || right.len() != rank || rank < 2 || shape.contains(&0) || left.contains(&0) {
            return Ok(false);
        }
        let batch: usize = shape[..rank - 2].iter().product();
        let (rows, depth, columns) = (shape[rank - 2], left[rank - 1], shape[rank - 1]);
        let shared = |side: &[usize]| side[..rank - 2].iter().product::<usize>() == 1;
        let whole = |side: &[usize]| side[..rank - 2] == shape[..rank - 2];
        if !(whole(left) || shared(left)) || !(whole(right) || shared(right)) {
            return Ok(false);
        }
        let mut factor = |id: ValueId, side: &[usize]| -> Result<Factor> {
            let own = self.place(id)?;
            // Axes of length 1 have any stride; the others must be walked by one.
            let leading = |place: &Place| -> Vec<(usize, usize)> {
                let axes = side[..rank - 2].iter().copied().zip(place.strides());
                axes.filter(|(length, _)| *length != 1).collect()
            };
            let merges = leading(&own).windows(2).all(|axes| axes[0].1 == axes[1].1 * axes[1].0);
            let place = if merges { own } else { self.place_in(id, &Order::rows(rank), true)? };
            let (strides, batch_stride) =
                (place.strides(), leading(&place).last().map_or(0, |(_, stride)| *stride));
            Ok(Factor {
                buffer: place.buffer,
                offset: place.offset,
                batch_stride,
                row_stride: strides[rank - 2],
                column_stride: strides[rank - 1],
            })
        };
        let (left, right) = (factor(a, left)?, factor(b, right)?);
        if self.order(output)? != Order::rows(rank).settled(shape) {
            return Ok(false);
        }
        let to = self.new_place(shape, self.order(output)?)?;
        self.places[output.index()] = Some(to.clone());
        let product = Arc::new(MatrixProduct::new(batch, rows, depth, columns));
        let scratch = self.buffer(BufferKind::Floats, product.scratch_len());
        self.step(self.title(node), Work::MatrixProduct { product, left, right, to: to.buffer, scratch });
        Ok(true)
    }
}
