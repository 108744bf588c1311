//! How the axes of a tensor lie in memory, and where in which buffer: so that transposing is a matter of reading differently.

use ouzel_kernels::{StridedCopy, View};

/// A number for each buffer of a plan.
pub(crate) type BufferId = usize;

/// The axes of a tensor from the outermost to the innermost in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Order(Vec<usize>);

impl Order {
    /// Row-major: the order of ONNX.
    pub(crate) fn rows(rank: usize) -> Self {
        Self((0..rank).collect())
    }

    /// The channels, axis 1, innermost; row-major below three axes.
    pub(crate) fn channels_last(rank: usize) -> Self {
        match rank {
            0..=2 => Self::rows(rank),
            _ => Self(std::iter::once(0).chain(2..rank).chain([1]).collect()),
        }
    }

    /// The same order with the axes of length 1 outermost, so that the innermost one is as long as can be.
    pub(crate) fn settled(&self, shape: &[usize]) -> Self {
        let short = self.0.iter().copied().filter(|&axis| shape[axis] == 1);
        Self(short.chain(self.long(shape)).collect())
    }

    /// The axes that matter: those that are longer than 1.
    fn long<'a>(&'a self, shape: &'a [usize]) -> impl Iterator<Item = usize> + 'a {
        self.0.iter().copied().filter(|&axis| shape[axis] != 1)
    }

    /// True if a packed tensor of this shape lies in the same way in both orders.
    pub(crate) fn same(&self, other: &Self, shape: &[usize]) -> bool {
        self.0.len() == other.0.len() && self.long(shape).eq(other.long(shape))
    }

    /// True if the tensor lies row-major.
    pub(crate) fn is_rows(&self, shape: &[usize]) -> bool {
        self.same(&Self::rows(shape.len()), shape)
    }

    /// The order of the tensor whose axis `i` is axis `permutation[i]` of this one.
    pub(crate) fn transposed(&self, permutation: &[usize]) -> Self {
        let place = |axis: &usize| permutation.iter().position(|old| old == axis).unwrap_or(*axis);
        Self(self.0.iter().map(place).collect())
    }

    /// The innermost axis.
    pub(crate) fn lane_axis(&self) -> Option<usize> {
        self.0.last().copied()
    }

    /// The outermost axis that is longer than 1.
    pub(crate) fn outermost(&self, shape: &[usize]) -> Option<usize> {
        self.long(shape).next()
    }

    /// The order of a tensor without the first axes.
    pub(crate) fn without_front(&self, count: usize) -> Self {
        Self(self.0.iter().filter_map(|axis| axis.checked_sub(count)).collect())
    }

    /// Axes next to each other in memory for which `is` says the same, as one: what it says, and the number of elements.
    pub(crate) fn runs(&self, shape: &[usize], is: impl Fn(usize) -> bool) -> Vec<(bool, usize)> {
        let mut runs: Vec<(bool, usize)> = Vec::new();
        for axis in self.long(shape) {
            match runs.last_mut() {
                Some((kind, count)) if *kind == is(axis) => *count *= shape[axis],
                _ => runs.push((is(axis), shape[axis])),
            }
        }
        runs
    }

    /// The same order but for one axis, which becomes the innermost.
    pub(crate) fn with_innermost(&self, axis: usize) -> Self {
        Self(self.0.iter().copied().filter(|&other| other != axis).chain([axis]).collect())
    }

    /// The order in which the same memory holds the tensor reshaped, if one does.
    pub(crate) fn reshaped(&self, from: &[usize], to: &[usize]) -> Option<Self> {
        if from.contains(&0) || to.contains(&0) {
            return Some(Self::rows(to.len()));
        }
        // Groups of old axes and new axes that hold the same elements, by rising place.
        let mut place_of_old = vec![0; from.len()];
        let mut groups: Vec<(Vec<usize>, Vec<usize>)> = Vec::new();
        let (mut old, mut new) = (0, 0);
        while old < from.len() || new < to.len() {
            let (mut left, mut right) = (1, 1);
            let mut group = (Vec::new(), Vec::new());
            loop {
                if old < from.len() && (group.0.is_empty() || left < right) {
                    left *= from[old];
                    group.0.push(old);
                    old += 1;
                } else if new < to.len() && (group.1.is_empty() || right < left) {
                    right *= to[new];
                    group.1.push(new);
                    new += 1;
                } else {
                    break;
                }
            }
            for &axis in &group.0 {
                place_of_old[axis] = groups.len();
            }
            groups.push(group);
        }
        // In memory, the old axes of a group must follow each other in their own order.
        let mut order = Vec::with_capacity(to.len());
        let mut axes = self.long(from).peekable();
        let mut done = vec![false; groups.len()];
        while let Some(axis) = axes.next() {
            let group = place_of_old[axis];
            if done[group] {
                return None;
            }
            let mut last = axis;
            while let Some(&next) = axes.peek() {
                if place_of_old[next] != group {
                    break;
                }
                if next < last {
                    return None;
                }
                last = next;
                axes.next();
            }
            done[group] = true;
            order.extend(groups[group].1.iter().copied());
        }
        // Axes of length 1 may lie anywhere.
        let rest: Vec<usize> = (0..to.len()).filter(|axis| !order.contains(axis)).collect();
        order.splice(0..0, rest);
        Some(Self(order))
    }

    /// The distance of neighbours on each axis of a packed tensor.
    fn strides(&self, shape: &[usize], lane_stride: usize) -> Vec<usize> {
        let mut strides = vec![0; shape.len()];
        let mut step = 1;
        for (depth, &axis) in self.0.iter().rev().enumerate() {
            strides[axis] = step;
            step = if depth == 0 { lane_stride } else { step * shape[axis] };
        }
        strides
    }
}

/// Where a tensor lies: the innermost axis without gaps, at `offset` within every `stride` elements.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) buffer: BufferId,
    pub(crate) shape: Vec<usize>,
    pub(crate) order: Order,
    /// Distance between the first elements of two lanes that follow each other.
    pub(crate) stride: usize,
    /// Position of the first element of the first lane.
    pub(crate) offset: usize,
}

impl Place {
    /// A tensor that has its buffer for itself.
    pub(crate) fn packed(buffer: BufferId, shape: &[usize], order: Order) -> Self {
        let stride = order.lane_axis().map_or(1, |axis| shape[axis]);
        Self { buffer, shape: shape.to_vec(), order, stride, offset: 0 }
    }

    /// The number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// The length of the innermost axis.
    pub(crate) fn lanes(&self) -> usize {
        self.order.lane_axis().map_or(1, |axis| self.shape[axis])
    }

    /// True if the tensor has its buffer for itself.
    pub(crate) fn is_packed(&self) -> bool {
        self.stride == self.lanes() && self.offset == 0
    }

    /// The same memory read as another shape in another order; the tensor must be packed.
    pub(crate) fn relabeled(&self, shape: &[usize], order: Order) -> Self {
        Self::packed(self.buffer, shape, order)
    }

    /// The distance of neighbours on each axis.
    pub(crate) fn strides(&self) -> Vec<usize> {
        self.order.strides(&self.shape, self.stride)
    }

    /// Lanes as channels, all other axes as pixels in a row.
    pub(crate) fn view(&self) -> View {
        let lanes = self.lanes();
        let pixels = self.len().checked_div(lanes).unwrap_or(0);
        View {
            batch: 1,
            size: [1, 1, pixels],
            channels: lanes,
            pixel_stride: self.stride,
            channel_offset: self.offset,
        }
    }

    /// Batch, spatial axes and channels of a tensor that lies channels last.
    pub(crate) fn spatial_view(&self) -> View {
        let mut size = [1; 3];
        let spatial = &self.shape[2..];
        size[3 - spatial.len()..].copy_from_slice(spatial);
        let whole = View::packed(self.shape[0], size, self.shape[1]);
        match self.is_packed() {
            true => whole,
            false => whole.within(self.stride, self.offset),
        }
    }

    /// The copy of this tensor to another place of the same shape; `None` with too many axes.
    pub(crate) fn copy_to(&self, to: &Self) -> Option<StridedCopy> {
        strided_copy(&self.shape, (&self.strides(), self.offset), (&to.strides(), to.offset))
    }
}

/// A strided copy of any number of axes, as long as no more than six are longer than 1.
pub(crate) fn strided_copy(
    shape: &[usize],
    (from, from_offset): (&[usize], usize),
    (to, to_offset): (&[usize], usize),
) -> Option<StridedCopy> {
    let axes: Vec<usize> = (0..shape.len()).filter(|&axis| shape[axis] != 1).collect();
    let pick = |values: &[usize]| -> Vec<usize> { axes.iter().map(|&axis| values[axis]).collect() };
    (axes.len() <= ouzel_kernels::MOST_AXES)
        .then(|| StridedCopy::new(&pick(shape), &pick(from), from_offset, &pick(to), to_offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_is_relabeling() {
        // NHWC, row-major, seen as NCHW lies channels last.
        let order = Order::rows(4).transposed(&[0, 3, 1, 2]);
        assert_eq!(order, Order::channels_last(4));
        assert_eq!(order.transposed(&[0, 2, 3, 1]), Order::rows(4));
    }

    #[test]
    fn reshaping_keeps_the_memory_where_it_can() {
        let last = Order::channels_last(4);
        // Patches of a vision transformer: pixels merge, and a transpose makes them rows.
        let merged = last.reshaped(&[2, 8, 7, 5], &[2, 8, 35]).unwrap();
        assert_eq!(merged, Order(vec![0, 2, 1]));
        assert!(merged.transposed(&[0, 2, 1]).is_rows(&[2, 35, 8]));
        // A flatten of more than one pixel mixes channels and pixels.
        assert_eq!(last.reshaped(&[2, 8, 7, 5], &[2, 280]), None);
        assert_eq!(last.reshaped(&[2, 8, 1, 1], &[2, 8]), Some(Order::rows(2)));
        assert_eq!(Order::rows(2).reshaped(&[6, 4], &[2, 3, 1, 4]), Some(Order::rows(4)));
        // Channel shuffle: channels split in two.
        let split = last.reshaped(&[2, 8, 7, 5], &[2, 2, 4, 7, 5]).unwrap();
        assert_eq!(split, Order(vec![0, 3, 4, 1, 2]));
        assert_eq!(Order::rows(0).reshaped(&[], &[1, 1]), Some(Order::rows(2)));
        assert_eq!(Order::rows(3).reshaped(&[1, 3, 1], &[3]), Some(Order::rows(1)));
    }

    #[test]
    fn a_place_within_another_has_gaps() {
        let whole = Place::packed(0, &[2, 8, 3, 3], Order::channels_last(4));
        let part = Place { shape: vec![2, 3, 3, 3], offset: 5, ..whole };
        assert_eq!(part.strides(), [72, 1, 24, 8]);
        assert_eq!(part.spatial_view(), View::packed(2, [1, 3, 3], 3).within(8, 5));
    }
}
