//! Multidirectional broadcasting, as all elementwise ops share it.

use crate::dim::{Dim, Shape, display_shape};
use crate::error::{Result, bail};
use crate::graph::Fact;
use crate::op::Inputs;
use crate::tensor::{Array, DType, Element, Tensor};
use ndarray::{ArrayViewD, IxDyn};

/// The shape that two shapes broadcast to.
///
/// A symbolic axis against a known one takes the known length; two different symbols are taken to be equal, which
/// running the graph verifies.
pub(crate) fn broadcast_shapes(a: &[Dim], b: &[Dim]) -> Result<Shape> {
    let rank = a.len().max(b.len());
    let one = Dim::from(1i64);
    let at = |shape: &[Dim], axis: usize| {
        (axis + shape.len()).checked_sub(rank).map_or(one.clone(), |index| shape[index].clone())
    };
    let mut shape = Vec::with_capacity(rank);
    for axis in 0..rank {
        let (left, right) = (at(a, axis), at(b, axis));
        shape.push(match (left.known(), right.known()) {
            _ if left == right => left,
            (Some(1), _) => right,
            (_, Some(1)) => left,
            (Some(_), Some(_)) => {
                bail!(shape, "shapes {} and {} do not broadcast", display_shape(a), display_shape(b))
            }
            (None, Some(_)) => right,
            _ => left,
        });
    }
    Ok(shape)
}

/// The shape that all inputs broadcast to, and the element type that they share.
pub(crate) fn broadcast_facts(x: &Inputs<Fact>) -> Result<(DType, Shape)> {
    let first = x.get(0)?;
    let mut shape = first.shape.clone();
    for other in x.present().skip(1) {
        if other.dtype != first.dtype {
            bail!(shape, "expected inputs of one element type, found {} and {}", first.dtype, other.dtype);
        }
        shape = broadcast_shapes(&shape, &other.shape)?;
    }
    Ok((first.dtype, shape))
}

/// The shape that two shapes of numbers broadcast to.
pub(crate) fn broadcast_lengths(a: &[usize], b: &[usize]) -> Result<Vec<usize>> {
    let rank = a.len().max(b.len());
    let at =
        |shape: &[usize], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |index| shape[index]);
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (left, right) if left == right => Ok(left),
            (1, right) => Ok(right),
            (left, 1) => Ok(left),
            _ => bail!(shape, "shapes {a:?} and {b:?} do not broadcast"),
        })
        .collect()
}

/// The array as if repeated to `shape`.
pub(crate) fn broadcast_view<'a, T>(x: &'a Array<T>, shape: &[usize]) -> Result<ArrayViewD<'a, T>> {
    match x.broadcast(IxDyn(shape)) {
        Some(view) => Ok(view),
        None => bail!(shape, "shape {:?} does not broadcast to {shape:?}", x.shape()),
    }
}

/// Where each element of an array of shape `from` is read when it is repeated to the shape `to`, in row-major order.
fn positions(from: &[usize], to: &[usize]) -> Vec<usize> {
    let added = to.len() - from.len();
    let mut positions = vec![0];
    let mut stride: usize = from.iter().product();
    for (axis, &length) in to.iter().enumerate() {
        let own = axis.checked_sub(added).map_or(1, |own| from[own]);
        stride /= own.max(1);
        let step = if own == 1 { 0 } else { stride };
        positions =
            positions.iter().flat_map(|start| (0..length).map(move |index| start + index * step)).collect();
    }
    positions
}

/// Applies a function to each element. One instance an element type, whatever the function: this is the reference
/// evaluation, where small code counts for more than speed.
pub(crate) fn map<T: Element, R: Element>(x: &Array<T>, function: &dyn Fn(T) -> R) -> Tensor {
    let elements: Vec<R> = x.iter().map(|&x| function(x)).collect();
    wrap(x.shape(), elements)
}

/// Combines two arrays elementwise, with broadcasting.
pub(crate) fn zip<T: Element, R: Element>(
    a: &Array<T>,
    b: &Array<T>,
    combine: &dyn Fn(T, T) -> R,
) -> Result<Tensor> {
    let shape = broadcast_lengths(a.shape(), b.shape())?;
    let (a, b) = (repeated(a, &shape), repeated(b, &shape));
    let elements = a.iter().zip(&b).map(|(&a, &b)| combine(a, b)).collect();
    Ok(wrap(&shape, elements))
}

/// The elements of an array repeated to a shape, in row-major order.
pub(crate) fn repeated<T: Element>(x: &Array<T>, shape: &[usize]) -> Vec<T> {
    let elements: Vec<T> = x.iter().copied().collect();
    match x.shape() == shape {
        true => elements,
        false => positions(x.shape(), shape).into_iter().map(|position| elements[position]).collect(),
    }
}

/// As many elements as the shape says, as a tensor.
pub(crate) fn wrap<T: Element>(shape: &[usize], elements: Vec<T>) -> Tensor {
    Tensor::from_shape_vec(shape, elements).expect("invariant: as many elements as the shape says")
}

#[cfg(test)]
mod tests {
    use super::positions;

    #[test]
    fn axes_of_length_one_are_read_again_and_again() {
        assert_eq!(positions(&[2, 1], &[2, 3]), [0, 0, 0, 1, 1, 1]);
        assert_eq!(positions(&[3], &[2, 3]), [0, 1, 2, 0, 1, 2]);
        assert_eq!(positions(&[], &[2]), [0, 0]);
        assert_eq!(positions(&[2, 1, 2], &[2, 2, 2]), [0, 1, 0, 1, 2, 3, 2, 3]);
    }
}
