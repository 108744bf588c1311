//! Ops whose outputs are as long as the elements of their inputs say. Those must be known before the network runs;
//! what is chosen by them may still flow.

use super::{NodeReader, Result, ValueId, bail, one_integer, one_number};
#[cfg(test)]
use crate::gradient_check::{FunctionSample, floats};
#[cfg(test)]
use crate::onnx::Attribute;
use crate::op::resolve_axis;
use crate::tensor::{DType, Tensor};
use ndarray::{ArrayViewD, Axis};
use std::cmp::Ordering;

/// The slices of an axis where a condition holds; without an axis, of all elements in one row. ONNX `Compress` 9, 11.
pub(super) fn compress(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let axis = node.int("axis")?;
    let condition = node.required_constant(1, "the condition")?.cast(DType::Bool);
    let places: Vec<i64> = (0i64..)
        .zip(condition.array::<bool>()?)
        .filter(|(_, holds)| **holds)
        .map(|(place, _)| place)
        .collect();
    node.build(|_, x| {
        let [Some(x), ..] = x else { bail!(model, "the input is missing") };
        Ok(vec![match axis {
            Some(axis) => x.gather(resolve_axis(axis, x.rank())?, places),
            None => x.reshape([-1]).gather(0, places),
        }])
    })
}

/// The places of all elements that are not 0, one column each. ONNX `NonZero` 9, 13.
pub(super) fn non_zero(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let x = node.required_constant(0, "what is not zero")?;
    let truth = x.cast(DType::Bool);
    let places: Vec<_> = truth.array::<bool>()?.indexed_iter().filter(|(_, holds)| **holds).collect();
    let rank = x.shape().len();
    let y = (0..rank).flat_map(|axis| places.iter().map(move |(place, _)| place[axis] as i64)).collect();
    let tensor = Tensor::from_shape_vec::<i64>(&[rank, places.len()], y)?;
    node.build(|builder, _| Ok(vec![builder.constant(tensor)]))
}

/// The slices of an axis that differ, or all elements that do: which they are, where each is first, which of them each
/// slice is, and how often. ONNX `Unique` 11.
pub(super) fn unique(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let axis = node.int("axis")?;
    let sorted = node.flag_or("sorted", true)?;
    let x = node.required_constant(0, "what may be there twice")?;
    let axis = axis.map(|axis| resolve_axis(axis, x.shape().len())).transpose()?;
    fn keys<T: Copy + Into<f64>>(x: &ArrayViewD<'_, T>, axis: Option<usize>) -> Vec<Vec<f64>> {
        match axis {
            Some(axis) => {
                x.axis_iter(Axis(axis)).map(|slice| slice.iter().map(|&v| v.into()).collect()).collect()
            }
            None => x.iter().map(|&v| vec![v.into()]).collect(),
        }
    }
    let slices = keys(&x.to_f64().view(), axis);
    let order = |a: &[f64], b: &[f64]| {
        let pairs = a.iter().zip(b).map(|(a, b)| a.total_cmp(b));
        pairs.into_iter().find(|order| *order != Ordering::Equal).unwrap_or(Ordering::Equal)
    };
    // The place of each that is new, in the order in which they are found.
    let mut first: Vec<usize> = Vec::new();
    let mut same: Vec<usize> = Vec::new();
    for (place, slice) in slices.iter().enumerate() {
        let known = first.iter().position(|&other| order(&slices[other], slice) == Ordering::Equal);
        same.push(known.unwrap_or(first.len()));
        if known.is_none() {
            first.push(place);
        }
    }
    let mut ranks: Vec<usize> = (0..first.len()).collect();
    if sorted {
        ranks.sort_by(|&a, &b| order(&slices[first[a]], &slices[first[b]]));
    }
    let mut position = vec![0i64; ranks.len()];
    ranks.iter().enumerate().for_each(|(rank, &index)| position[index] = rank as i64);
    let places: Vec<i64> = ranks.iter().map(|&index| first[index] as i64).collect();
    let inverse: Vec<i64> = same.iter().map(|&index| position[index]).collect();
    let mut counts = vec![0i64; ranks.len()];
    inverse.iter().for_each(|&index| counts[index as usize] += 1);
    node.build(|builder, x| {
        let [Some(x)] = x else { bail!(model, "expected one input") };
        let y = match axis {
            Some(axis) => x.gather(axis, places.clone()),
            None => x.reshape([-1]).gather(0, places.clone()),
        };
        Ok(vec![y, builder.integers(places), builder.integers(inverse), builder.integers(counts)])
    })
}

/// The places of the boxes that stay when others that overlap them and score higher are there: batch, class and box in
/// each row. Places have no gradient. ONNX `NonMaxSuppression` 10, 11.
pub(super) fn non_max_suppression(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let centered = node.flag_or("center_point_box", false)?;
    let boxes = node.required_constant(0, "the boxes")?.to_f64();
    let scores = node.required_constant(1, "the scores")?.to_f64();
    let limit = node.constant(2, "the number of boxes")?;
    let limit = limit.map(|limit| one_integer(&limit, "the number of boxes")).transpose()?.unwrap_or(0);
    let number = |index: usize, what: &str| -> Result<Option<f64>> {
        node.constant(index, what)?.map(|value| one_number(&value, what)).transpose()
    };
    let overlap = number(3, "the overlap")?.unwrap_or(0.0);
    let least = number(4, "the least score")?;
    let (&[batches, count, 4], &[_, classes, scored]) = (boxes.shape(), scores.shape()) else {
        bail!(shape, "boxes of shape {:?} and scores of {:?} do not fit", boxes.shape(), scores.shape());
    };
    if scored != count || scores.shape()[0] != batches {
        bail!(shape, "boxes of shape {:?} and scores of {:?} do not fit", boxes.shape(), scores.shape());
    }
    // Corners in order: least y and x, then largest.
    let corners = |batch: usize, index: usize| {
        let [a, b, c, d] = [0, 1, 2, 3].map(|place| boxes[[batch, index, place]]);
        match centered {
            true => [b - d / 2.0, a - c / 2.0, b + d / 2.0, a + c / 2.0],
            false => [a.min(c), b.min(d), a.max(c), b.max(d)],
        }
    };
    let area = |[top, left, bottom, right]: [f64; 4]| (bottom - top).max(0.0) * (right - left).max(0.0);
    let shared = |a: [f64; 4], b: [f64; 4]| {
        let inner = area([a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])]);
        let outer = area(a) + area(b) - inner;
        if outer > 0.0 { inner / outer } else { 0.0 }
    };
    let mut rows: Vec<i64> = Vec::new();
    for batch in 0..batches {
        for class in 0..classes {
            let score = |index: usize| scores[[batch, class, index]];
            let mut candidates: Vec<usize> =
                (0..count).filter(|&index| least.is_none_or(|least| score(index) > least)).collect();
            candidates.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
            let mut kept: Vec<usize> = Vec::new();
            for index in candidates {
                if kept.len() as i64 >= limit {
                    break;
                }
                let own = corners(batch, index);
                if kept.iter().all(|&other| shared(own, corners(batch, other)) <= overlap) {
                    kept.push(index);
                }
            }
            rows.extend(kept.iter().flat_map(|&index| [batch as i64, class as i64, index as i64]));
        }
    }
    let tensor = Tensor::from_shape_vec(&[rows.len() / 3, 3], rows)?;
    node.build(|builder, _| Ok(vec![builder.constant(tensor)]))
}

#[cfg(test)]
pub(super) fn samples() -> Vec<FunctionSample> {
    let condition = Tensor::vector([true, false, true]);
    let x = || floats(-1.0, 1.0).input(&[2, 3]);
    vec![
        FunctionSample::new("Compress", [x(), condition.clone().into()]).with("axis", Attribute::Int(1)),
        FunctionSample::new("Compress", [x(), condition.into()]),
    ]
}
