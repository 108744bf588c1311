//! Determinants and inverses of square matrices.

use crate::backprop::{Back, Cotangents};
use crate::dim::Shape;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::NodeReader;
use crate::op::{Inputs, Listed, OpDef};
use crate::tensor::{Array, Float, Tensor, each_float};

/// The shape around stacks of square matrices.
fn outer_shape(x: &Fact) -> Result<Shape> {
    match x.shape.as_slice() {
        [outer @ .., rows, columns] if rows == columns && x.dtype.is_float() => Ok(outer.to_vec()),
        _ => bail!(shape, "expected square matrices of floating point elements, found {x}"),
    }
}

/// The determinant of a matrix and, unless that is 0, its inverse: by elimination with the largest pivot of each column.
fn eliminate(matrix: &[f64], size: usize) -> (f64, Vec<f64>) {
    let mut left = matrix.to_vec();
    let mut right: Vec<f64> =
        (0..size * size).map(|place| if place / size == place % size { 1.0 } else { 0.0 }).collect();
    let mut determinant = 1.0;
    for column in 0..size {
        let largest = (column..size)
            .max_by(|&a, &b| left[a * size + column].abs().total_cmp(&left[b * size + column].abs()))
            .unwrap_or(column);
        let pivot = left[largest * size + column];
        determinant *= pivot;
        if pivot == 0.0 {
            return (0.0, vec![f64::NAN; size * size]);
        }
        if largest != column {
            determinant = -determinant;
            for place in 0..size {
                left.swap(column * size + place, largest * size + place);
                right.swap(column * size + place, largest * size + place);
            }
        }
        for place in 0..size {
            left[column * size + place] /= pivot;
            right[column * size + place] /= pivot;
        }
        for row in (0..size).filter(|&row| row != column) {
            let factor = left[row * size + column];
            for place in 0..size {
                left[row * size + place] -= factor * left[column * size + place];
                right[row * size + place] -= factor * right[column * size + place];
            }
        }
    }
    (determinant, right)
}

/// Eliminates each matrix of a stack.
fn each_matrix<T: Float>(x: &Array<T>) -> Vec<(f64, Vec<f64>)> {
    let size = x.shape().last().copied().unwrap_or(0);
    let elements: Vec<f64> = x.iter().map(|value| value.wide()).collect();
    let count = x.shape()[..x.ndim() - 2].iter().product();
    (0..count).map(|index| eliminate(&elements[index * size * size..][..size * size], size)).collect()
}

/// The determinant of each matrix. ONNX `Det` 11, 22.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Det;

impl OpDef for Det {
    fn name(&self) -> &str {
        "Det"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        Ok(vec![Fact::new(x.dtype, outer_shape(x)?)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn determinants<T: Float>(x: &Array<T>) -> Result<Tensor> {
            let values = each_matrix(x).into_iter().map(|(determinant, _)| T::of(determinant));
            Tensor::from_shape_vec(&x.shape()[..x.ndim() - 2], values.collect())
        }
        Ok(vec![each_float!(x.get(0)?, x => determinants(x)?)])
    }

    /// `det(x) · x⁻ᵀ`; not a number where the determinant is 0.
    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let rank = back.x(0).rank();
        let inverse = back.builder().apply(MatrixInverse, &[back.x(0)]).transpose_last_two();
        let factor = (back.g(0) * back.y(0)).unsqueeze([rank - 2, rank - 1]);
        Ok(back.only_first(factor * inverse))
    }
}

impl Listed for Det {
    const ONNX: &'static [&'static str] = &["Det"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![
            Sample::new(Det, [floats(-1.0, 1.0).distinct().input(&[2, 3, 3])]),
            Sample::new(Det, [floats(0.5, 1.0).input(&[1, 1])]),
        ]
    }
}

/// The inverse of each matrix; not a number where there is none. Not an ONNX op: the gradient of [`Det`] needs it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MatrixInverse;

impl OpDef for MatrixInverse {
    fn name(&self) -> &str {
        "MatrixInverse"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        outer_shape(x)?;
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn inverses<T: Float>(x: &Array<T>) -> Result<Tensor> {
            let values = each_matrix(x).into_iter().flat_map(|(_, inverse)| inverse).map(T::of);
            Tensor::from_shape_vec(x.shape(), values.collect())
        }
        Ok(vec![each_float!(x.get(0)?, x => inverses(x)?)])
    }

    /// `-yᵀ g yᵀ`.
    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let transposed = back.y(0).transpose_last_two();
        Ok(back.only_first(-transposed.matmul(back.g(0)).matmul(transposed)))
    }
}

impl Listed for MatrixInverse {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(unsupported, "MatrixInverse is not an ONNX op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(MatrixInverse, [floats(1.0, 3.0).distinct().input(&[3, 1, 1])])]
    }
}
