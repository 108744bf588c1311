//! Ops that only move elements: memory is relabeled where that is enough, and joins are written in place.

use super::anchor::Anchor;
use super::fuse::{Ending, Fusion};
use super::layout::{BufferId, Order, Place, strided_copy};
use super::lower::Lowerer;
use super::order::axis_of;
use super::step::{BufferKind, Work};
use crate::error::{Result, bail};
use crate::graph::{Node, ValueId};
use crate::op::{Op, resolve_axis};
use crate::ops::gather::resolve_index;

impl Lowerer<'_> {
    /// Ops that only move elements: relabels memory where that is enough, else copies.
    pub(super) fn moves(&mut self, node: &Node) -> Result<bool> {
        let output = node.outputs[0];
        let shape = self.shape(output)?;
        let Some(input) = node.inputs.first().copied().flatten() else { return Ok(false) };
        let Some(from_shape) = self.facts.floats(input) else { return Ok(false) };
        let order = self.order(output)?;
        let relabeled = match &node.op {
            Op::Identity(_) | Op::Dropout(_) | Op::Cast(_) if from_shape == shape => {
                Some(self.place_in(input, &order, false)?)
            }
            Op::Reshape(_) | Op::Flatten(_) | Op::Squeeze(_) | Op::Unsqueeze(_) => {
                let own = self.order(input)?;
                let from = match own.reshaped(from_shape, shape) {
                    Some(to) if to.same(&order, shape) => own,
                    _ => Order::rows(from_shape.len()),
                };
                let relabeled = self.place_in(input, &from, true)?.relabeled(shape, order);
                Some(relabeled)
            }
            Op::Transpose(_) => {
                let own = self.order(input)?;
                Some(self.place_in(input, &own, true)?.relabeled(shape, order))
            }
            _ => None,
        };
        if let Some(place) = relabeled {
            let other = node.outputs.get(1);
            if other.is_some_and(|&id| self.facts.is_output(id) || !self.facts.consumers(id).is_empty()) {
                return Ok(false);
            }
            self.places[output.index()] = Some(place);
            return Ok(true);
        }
        match &node.op {
            Op::Slice(_) => self.slice(node, input),
            Op::Split(_) => self.split(node, input),
            Op::Concat(_) => self.concat(node),
            Op::Pad(_) => self.pad(node, input),
            Op::Expand(_) => self.expand(node, input),
            Op::Gather(gather) => self.pick(node, input, gather.axis),
            Op::GatherTranspose(transpose) => self.put_back(node, input, transpose.axis),
            _ => Ok(false),
        }
    }

    /// The only place that constant indices pick from an axis of this length.
    fn picked(&self, node: &Node, length: usize) -> Option<usize> {
        let indices = self.graph().fact(node.inputs.get(1).copied()??).known_integers()?;
        match indices.as_slice() {
            &[index] => resolve_index(index, length).ok(),
            _ => None,
        }
    }

    /// A gather of a single slice: a copy.
    fn pick(&mut self, node: &Node, input: ValueId, axis: i64) -> Result<bool> {
        let (from_shape, shape) = (self.shape(input)?, self.shape(node.outputs[0])?);
        let axis = resolve_axis(axis, from_shape.len())?;
        let Some(index) = self.picked(node, from_shape[axis]).filter(|_| can_copy(from_shape)) else {
            return Ok(false);
        };
        let from = self.place(input)?;
        let (strides, offset) = without_axis(&from, axis, index, shape.len());
        let to = self.output_place(node.outputs[0], &[from.buffer])?;
        let copy = strided_copy(shape, (&strides, offset), (&to.strides(), to.offset));
        let Some(copy) = copy else { bail!(internal, "a slice has too many axes") };
        self.step(self.title(node), Work::Copy { copy, from: from.buffer, to: to.buffer });
        Ok(true)
    }

    /// The transpose of a gather of a single slice: zeros around a copy.
    fn put_back(&mut self, node: &Node, input: ValueId, axis: usize) -> Result<bool> {
        let (from_shape, shape) = (self.shape(input)?, self.shape(node.outputs[0])?);
        let Some(index) = self.picked(node, shape[axis]).filter(|_| can_copy(shape)) else {
            return Ok(false);
        };
        let from = self.place(input)?;
        let to = self.new_place(shape, self.order(node.outputs[0])?)?;
        let (strides, offset) = without_axis(&to, axis, index, from_shape.len());
        let copy = strided_copy(from_shape, (&from.strides(), from.offset), (&strides, offset));
        let Some(copy) = copy else { bail!(internal, "a slice has too many axes") };
        self.step(self.title(node), Work::Fill { to: to.buffer, value: 0.0 });
        self.step(self.title(node), Work::Copy { copy, from: from.buffer, to: to.buffer });
        self.places[node.outputs[0].index()] = Some(to);
        Ok(true)
    }

    /// `count` elements of `axis` from `start` on: a part of the lanes without a copy, else a copy.
    fn cut(
        &mut self,
        node: &Node,
        input: ValueId,
        output: ValueId,
        starts: &[(usize, usize, usize)],
    ) -> Result<()> {
        let (shape, order) = (self.shape(output)?, self.order(output)?);
        let from = self.place(input)?;
        if let [(axis, start, 1)] = *starts {
            let lanes = from.order.lane_axis() == Some(axis) && order.lane_axis() == Some(axis);
            if lanes && order.same(&from.order, shape) && !self.is_constant(from.buffer) {
                let place = Place { shape: shape.to_vec(), order, offset: from.offset + start, ..from };
                self.places[output.index()] = Some(place);
                return Ok(());
            }
        }
        let mut strides = from.strides();
        let mut offset = from.offset;
        for &(axis, start, step) in starts {
            offset += start * strides[axis];
            strides[axis] *= step;
        }
        let to = self.output_place(output, &[from.buffer])?;
        match strided_copy(shape, (&strides, offset), (&to.strides(), to.offset)) {
            Some(copy) => {
                self.step(self.title(node), Work::Copy { copy, from: from.buffer, to: to.buffer });
                Ok(())
            }
            None => bail!(unsupported, "a tensor of shape {shape:?} has too many axes to be cut"),
        }
    }

    fn is_constant(&self, buffer: BufferId) -> bool {
        matches!(self.buffers[buffer].kind, BufferKind::Constant(_))
    }

    fn slice(&mut self, node: &Node, input: ValueId) -> Result<bool> {
        let numbers = |index: usize| {
            let id = node.inputs.get(index).copied().flatten();
            id.map(|id| self.graph().fact(id).known_integers())
        };
        let (Some(Some(starts)), Some(Some(_))) = (numbers(1), numbers(2)) else { return Ok(false) };
        let rank = self.shape(input)?.len();
        let axes = match numbers(3) {
            Some(Some(axes)) => axes,
            None => (0..starts.len() as i64).collect(),
            Some(None) => return Ok(false),
        };
        let steps = match numbers(4) {
            Some(Some(steps)) => steps,
            None => vec![1; starts.len()],
            Some(None) => return Ok(false),
        };
        let mut cuts = Vec::new();
        for ((&start, &axis), &step) in starts.iter().zip(&axes).zip(&steps) {
            let axis = resolve_axis(axis, rank)?;
            let length = self.shape(input)?[axis] as i64;
            let start = (if start < 0 { start.saturating_add(length) } else { start }).clamp(0, length);
            if step <= 0 || self.shape(node.outputs[0])?.contains(&0) {
                return Ok(false);
            }
            cuts.push((axis, start as usize, usize::try_from(step).unwrap_or(usize::MAX)));
        }
        // A step beyond a single element is never taken.
        for cut in &mut cuts {
            if self.shape(node.outputs[0])?[cut.0] == 1 {
                cut.2 = 1;
            }
        }
        let whole = |&(axis, start, _): &(usize, usize, usize)| {
            start == 0
                && self.facts.floats(input).map(|s| s[axis])
                    == self.facts.floats(node.outputs[0]).map(|s| s[axis])
        };
        let cuts: Vec<_> = cuts.iter().copied().filter(|cut| !whole(cut)).collect();
        if self.shape(input)?.iter().filter(|&&length| length != 1).count() > ouzel_kernels::MOST_AXES {
            return Ok(false);
        }
        self.cut(node, input, node.outputs[0], &cuts)?;
        Ok(true)
    }

    fn split(&mut self, node: &Node, input: ValueId) -> Result<bool> {
        let shape = self.shape(input)?;
        let Some(axis) = axis_of(&node.op, shape.len()) else { return Ok(false) };
        let parts: Option<Vec<usize>> =
            node.outputs.iter().map(|&id| self.facts.floats(id).map(|shape| shape[axis])).collect();
        let too_many = shape.iter().filter(|&&length| length != 1).count() > ouzel_kernels::MOST_AXES;
        let Some(parts) = parts.filter(|parts| !parts.contains(&0) && !too_many) else { return Ok(false) };
        let mut start = 0;
        for (&output, part) in node.outputs.iter().zip(parts) {
            self.cut(node, input, output, &[(axis, start, 1)])?;
            start += part;
        }
        Ok(true)
    }

    /// Decides which values are computed right where a join wants them.
    pub(super) fn plan_joins(&mut self, fusion: &Fusion) -> Result<()> {
        let graph = self.graph();
        for (_, node) in graph.nodes_with_ids().rev() {
            let output = node.outputs[0];
            let (Op::Concat(_), Some(shape)) = (&node.op, self.facts.floats(output)) else { continue };
            let order = self.order(output)?;
            let lanes = axis_of(&node.op, shape.len()).filter(|&axis| order.lane_axis() == Some(axis));
            let Some(axis) = lanes.filter(|_| !shape.contains(&0)) else { continue };
            // A join may itself be part of a later one, or the beginning of one that is planned already.
            let host = match self.planned.get(&output) {
                Some(place) => place.clone(),
                None => match self.beginning(node, axis)? {
                    Some(place) => {
                        self.planned.insert(output, place.clone());
                        place
                    }
                    None => {
                        let place = self.new_place(shape, order.clone())?;
                        self.planned.insert(output, place.clone());
                        place
                    }
                },
            };
            let mut offset = host.offset;
            for &input in node.inputs.iter().flatten() {
                let part = self.shape(input)?.to_vec();
                let place = Place { shape: part.clone(), offset, ..host.clone() };
                offset += part[axis];
                let fits = self.order(input)?.same(&host.order, &part)
                    && self.order(input)?.lane_axis() == Some(axis)
                    && self.may_write_anywhere(input, fusion);
                if fits {
                    self.planned.entry(input).or_insert(place);
                }
            }
        }
        Ok(())
    }

    /// The place of a join whose parts all lie, one after the other, where a later join wants them.
    fn beginning(&self, node: &Node, axis: usize) -> Result<Option<Place>> {
        let Some(Some(first)) = node.inputs.first() else { return Ok(None) };
        let Some(place) = self.planned.get(first) else { return Ok(None) };
        let mut offset = place.offset;
        for &input in node.inputs.iter().flatten() {
            let part = self.shape(input)?;
            match self.planned.get(&input) {
                Some(other) if other.buffer == place.buffer && other.offset == offset => offset += part[axis],
                _ => return Ok(None),
            }
        }
        Ok(Some(Place { shape: self.shape(node.outputs[0])?.to_vec(), ..place.clone() }))
    }

    /// True if the step that computes a value can write it with gaps.
    fn may_write_anywhere(&self, id: ValueId, fusion: &Fusion) -> bool {
        let Some(producer) = self.graph().producer(id) else { return false };
        match fusion.ending(producer) {
            Some(Ending::Cluster(cluster)) => return !matches!(cluster.anchor, Anchor::Dense { .. }),
            Some(Ending::Program(..)) => return true,
            None => {}
        }
        let node = self.graph().node(producer);
        matches!(node.op, Op::Concat(_))
            || (node.outputs.len() == 1
                && !matches!(
                    node.op,
                    Op::Identity(_)
                        | Op::Dropout(_)
                        | Op::Cast(_)
                        | Op::Reshape(_)
                        | Op::Flatten(_)
                        | Op::Squeeze(_)
                        | Op::Unsqueeze(_)
                        | Op::Transpose(_)
                        | Op::Slice(_)
                        | Op::Split(_)
                        | Op::MatMul(_)
                        | Op::Pad(_)
                ))
    }

    fn concat(&mut self, node: &Node) -> Result<bool> {
        let output = node.outputs[0];
        let shape = self.shape(output)?;
        let Some(axis) = axis_of(&node.op, shape.len()) else { return Ok(false) };
        let too_many = shape.iter().filter(|&&length| length != 1).count() > ouzel_kernels::MOST_AXES;
        if too_many || node.inputs.iter().flatten().any(|&input| self.facts.floats(input).is_none()) {
            return Ok(false);
        }
        let host = self.output_place(output, &[])?;
        let mut start = 0;
        for &input in node.inputs.iter().flatten() {
            let from = self.place(input)?;
            let length = from.shape[axis];
            let part = Place { shape: from.shape.clone(), ..host.clone() };
            let strides = host.strides();
            let offset = host.offset + start * strides[axis];
            let there = from.buffer == host.buffer && from.offset == offset && from.strides() == strides;
            if !there && !from.shape.contains(&0) {
                let copy = strided_copy(&part.shape, (&from.strides(), from.offset), (&strides, offset));
                let Some(copy) = copy else { return Ok(false) };
                self.step(self.title(node), Work::Copy { copy, from: from.buffer, to: host.buffer });
            }
            start += length;
        }
        Ok(true)
    }

    fn pad(&mut self, node: &Node, input: ValueId) -> Result<bool> {
        let Op::Pad(pad) = &node.op else { return Ok(false) };
        let output = node.outputs[0];
        let (from_shape, shape) = (self.shape(input)?, self.shape(output)?);
        let integers = |index: usize| {
            let id = node.inputs.get(index).copied().flatten();
            id.map(|id| self.graph().fact(id).known_integers())
        };
        let Some(Some(pads)) = integers(1) else { return Ok(false) };
        let value = match node.inputs.get(2).copied().flatten() {
            None => Some(0.0),
            Some(id) => self.facts.scalar(id),
        };
        let axes: Vec<i64> = match integers(3) {
            Some(Some(axes)) => axes,
            None => (0..shape.len() as i64).collect(),
            Some(None) => return Ok(false),
        };
        let constant = pad.mode == crate::ops::pad::PadMode::Constant;
        let few = shape.iter().filter(|&&length| length != 1).count() <= ouzel_kernels::MOST_AXES;
        let (Some(value), true, true) = (value, constant && few, pads.iter().all(|&pad| pad >= 0)) else {
            return Ok(false);
        };
        if from_shape.contains(&0) || pads.len() != 2 * axes.len() {
            return Ok(false);
        }
        let from = self.place(input)?;
        let to = self.output_place(output, &[from.buffer])?;
        let mut offset = to.offset;
        for (&axis, &pad) in axes.iter().zip(&pads) {
            offset += pad as usize * to.strides()[resolve_axis(axis, shape.len())?];
        }
        let copy = strided_copy(from_shape, (&from.strides(), from.offset), (&to.strides(), offset));
        let Some(copy) = copy else { bail!(internal, "a pad has too many axes") };
        self.step(self.title(node), Work::Fill { to: to.buffer, value: value as f32 });
        self.step(self.title(node), Work::Copy { copy, from: from.buffer, to: to.buffer });
        Ok(true)
    }

    fn expand(&mut self, node: &Node, input: ValueId) -> Result<bool> {
        let output = node.outputs[0];
        let (from_shape, shape) = (self.shape(input)?, self.shape(output)?);
        let few = shape.iter().filter(|&&length| length != 1).count() <= ouzel_kernels::MOST_AXES;
        let Some(added) = shape.len().checked_sub(from_shape.len()).filter(|_| few && !shape.contains(&0))
        else {
            return Ok(false);
        };
        let from = self.place(input)?;
        let own = from.strides();
        let strides: Vec<usize> = (0..shape.len())
            .map(|axis| match axis.checked_sub(added) {
                Some(place) if from_shape[place] != 1 => own[place],
                _ => 0,
            })
            .collect();
        let to = self.output_place(output, &[from.buffer])?;
        let copy = strided_copy(shape, (&strides, from.offset), (&to.strides(), to.offset));
        let Some(copy) = copy else { bail!(internal, "an expansion has too many axes") };
        self.step(self.title(node), Work::Copy { copy, from: from.buffer, to: to.buffer });
        Ok(true)
    }
}

/// True for a tensor that has elements, and not more axes than a copy can walk along.
fn can_copy(shape: &[usize]) -> bool {
    let axes = shape.iter().filter(|&&length| length != 1).count();
    axes <= ouzel_kernels::MOST_AXES && !shape.contains(&0)
}

/// The strides and offset of one slice of a place, which has `rank` axes: one less, or as many with one of length 1.
fn without_axis(place: &Place, axis: usize, index: usize, rank: usize) -> (Vec<usize>, usize) {
    let mut strides = place.strides();
    let offset = place.offset + index * strides[axis];
    if rank < strides.len() {
        strides.remove(axis);
    }
    (strides, offset)
}
