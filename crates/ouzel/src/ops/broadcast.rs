//! Multidirectional broadcasting, as all elementwise ops share it.

use crate::dim::{Dim, Shape, display_shape};
use crate::error::{Result, bail};
use crate::graph::Fact;
use crate::op::Inputs;
use crate::tensor::{Array, DType, Element, Tensor};
use ndarray::{ArrayD, ArrayViewD, IxDyn, Zip};

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

/// Combines two arrays elementwise.
pub(crate) fn zip<T: Element, R: Element>(
    a: &Array<T>,
    b: &Array<T>,
    combine: impl Fn(T, T) -> R,
) -> Result<Tensor> {
    let shape = broadcast_lengths(a.shape(), b.shape())?;
    let (a, b) = (broadcast_view(a, &shape)?, broadcast_view(b, &shape)?);
    let combined: ArrayD<R> = Zip::from(a).and(b).map_collect(|&a, &b| combine(a, b));
    Ok(R::wrap(combined.into_shared()))
}
