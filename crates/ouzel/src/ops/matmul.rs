//! Matrix products: the reference forms of what dense layers and attention are made of.

use super::broadcast::{broadcast_lengths, broadcast_shapes, broadcast_view};
use super::slice::allocatable;
use crate::backprop::{Back, Cotangents};
use crate::dim::Dim;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef, Real};
use crate::tensor::{Array, DType, Float, Tensor};
use ndarray::{ArrayD, ArrayViewD, Axis, Dimension, Ix2, IxDyn, indices};

/// The element type that both factors share; truth values have no products.
fn common_dtype(a: DType, b: DType) -> Result<DType> {
    if a != b || a == DType::Bool {
        bail!(shape, "expected numbers of one element type, found {a} and {b}");
    }
    Ok(a)
}

/// Runs a product in the element type of both factors; integers go through float64, exact up to 2^53.
macro_rules! each_product {
    ($a:expr, $b:expr, |$x:ident, $y:ident| $product:expr) => {
        match ($a, $b) {
            (Tensor::F32($x), Tensor::F32($y)) => Tensor::from($product),
            (Tensor::F64($x), Tensor::F64($y)) => Tensor::from($product),
            (a, b) => {
                let dtype = common_dtype(a.dtype(), b.dtype())?;
                let ($x, $y) = (&a.to_f64().into_shared(), &b.to_f64().into_shared());
                Tensor::from($product).cast(dtype)
            }
        }
    };
}

/// Refuses axes that are to be summed over together and have two different known lengths.
fn check_inner(a: &Dim, b: &Dim) -> Result<()> {
    match (a.known(), b.known()) {
        (Some(left), Some(right)) if left != right => {
            bail!(shape, "the first factor has {left} columns and the second {right} rows")
        }
        _ => Ok(()),
    }
}

fn matrix<T: Float>(view: ArrayViewD<'_, T>) -> Result<ndarray::ArrayView2<'_, T>> {
    match view.into_dimensionality::<Ix2>() {
        Ok(matrix) => Ok(matrix),
        Err(error) => bail!(internal, "a factor of a matrix product is no matrix: {error}"),
    }
}

fn filled<T: Float>(shape: &[usize], elements: Vec<T>) -> Result<ArrayD<T>> {
    match ArrayD::from_shape_vec(IxDyn(shape), elements) {
        Ok(y) => Ok(y),
        Err(error) => bail!(internal, "a product has a wrong number of elements: {error}"),
    }
}

/// `y = a b` as numpy's `matmul`: matrices over broadcast leading axes; an operand of rank 1 is a row on the left and
/// a column on the right, and its axis is not in the result.
///
/// **Shapes** `[…, m, k] × […, k, n] → […, m, n]`. ONNX `MatMul` 1, 9, 13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MatMul;

/// The product of stacks of matrices.
pub(crate) fn product<T: Float>(a: &Array<T>, b: &Array<T>) -> Result<ArrayD<T>> {
    if a.ndim() == 0 || b.ndim() == 0 {
        bail!(shape, "expected factors of rank 1 or more, found shapes {:?} and {:?}", a.shape(), b.shape());
    }
    let (row, column) = (a.ndim() == 1, b.ndim() == 1);
    let a = if row { a.clone().insert_axis(Axis(0)) } else { a.clone() };
    let b = if column { b.clone().insert_axis(Axis(1)) } else { b.clone() };
    let (stack_a, matrix_a) = a.shape().split_at(a.ndim() - 2);
    let (stack_b, matrix_b) = b.shape().split_at(b.ndim() - 2);
    let (rows, inner, columns) = (matrix_a[0], matrix_a[1], matrix_b[1]);
    check_inner(&inner.into(), &matrix_b[0].into())?;
    let stack = broadcast_lengths(stack_a, stack_b)?;
    let mut shape = stack.clone();
    shape.extend([rows, columns]);
    let mut y = Vec::with_capacity(allocatable(&shape)?);
    if stack_b.is_empty() && !a.is_empty() {
        // One product for the whole stack.
        let count = a.len() / inner;
        let flat = a.as_standard_layout().into_owned().into_shape_with_order(IxDyn(&[count, inner]));
        let Ok(flat) = flat else { bail!(internal, "a stack of matrices is no matrix") };
        y.extend(matrix(flat.view())?.dot(&matrix(b.view())?).iter().copied());
    } else {
        let stacked = |matrix: &[usize]| -> Vec<usize> { stack.iter().chain(matrix).copied().collect() };
        let (shape_a, shape_b) = (stacked(matrix_a), stacked(matrix_b));
        let (view_a, view_b) = (broadcast_view(&a, &shape_a)?, broadcast_view(&b, &shape_b)?);
        for index in indices(IxDyn(&stack)) {
            let at = |view: &ArrayViewD<'_, T>| -> ndarray::Array2<T> {
                let picked = index
                    .as_array_view()
                    .iter()
                    .fold(view.clone(), |view, &place| view.index_axis_move(Axis(0), place));
                picked.to_owned().into_dimensionality().expect("invariant: two axes are left")
            };
            y.extend(at(&view_a).dot(&at(&view_b)).iter().copied());
        }
    }
    let mut y = filled(&shape, y)?;
    if column {
        y = y.index_axis_move(Axis(shape.len() - 1), 0);
    }
    if row {
        y = y.index_axis_move(Axis(stack.len()), 0);
    }
    Ok(y)
}

impl OpDef for MatMul {
    fn name(&self) -> &str {
        "MatMul"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (a, b) = (x.get(0)?, x.get(1)?);
        let dtype = common_dtype(a.dtype, b.dtype)?;
        if a.rank() == 0 || b.rank() == 0 {
            bail!(shape, "expected factors of rank 1 or more, found {a} and {b}");
        }
        let (stack_a, matrix_a) = a.shape.split_at(a.rank().saturating_sub(2));
        let (stack_b, matrix_b) = b.shape.split_at(b.rank().saturating_sub(2));
        check_inner(&matrix_a[matrix_a.len() - 1], &matrix_b[0])?;
        let mut shape = broadcast_shapes(stack_a, stack_b)?;
        shape.extend_from_slice(&matrix_a[..matrix_a.len() - 1]);
        shape.extend_from_slice(&matrix_b[1..]);
        Ok(vec![Fact::new(dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        Ok(vec![each_product!(x.get(0)?, x.get(1)?, |a, b| product(a, b)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (a, b, mut g) = (back.x(0), back.x(1), back.g(0));
        let (row, column) = (a.rank() == 1, b.rank() == 1);
        if row {
            g = g.unsqueeze([g.rank() - usize::from(!column)]);
        }
        if column {
            g = g.unsqueeze([g.rank()]);
        }
        // The walk undoes broadcasting, of the leading axes and of the axes that a vector does not have.
        Ok(back.each_wanted(|index| match index {
            0 => {
                let b = if column { b.unsqueeze([1]) } else { b };
                let da = g.matmul(b.transpose_last_two());
                if row { da.squeeze([da.rank() - 2]) } else { da }
            }
            _ => {
                let a = if row { a.unsqueeze([0]) } else { a };
                let db = a.transpose_last_two().matmul(g);
                if column { db.squeeze([db.rank() - 1]) } else { db }
            }
        }))
    }
}

impl Listed for MatMul {
    const ONNX: &'static [&'static str] = &["MatMul"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = |shape: &[usize]| floats(-1.0, 1.0).input(shape);
        let shapes: [(&[usize], &[usize]); 8] = [
            (&[2, 3], &[3, 4]),
            (&[2, 3, 4], &[4, 5]),
            (&[2, 3, 4], &[2, 4, 5]),
            (&[2, 1, 3, 4], &[3, 4, 2]),
            (&[3], &[3]),
            (&[3], &[2, 3, 4]),
            (&[2, 4, 3], &[3]),
            (&[3, 2], &[4, 2, 3]),
        ];
        shapes.map(|(a, b)| Sample::new(MatMul, [x(a), x(b)])).to_vec()
    }
}

/// `y = α a′ b′ + β c`, where a′ and b′ are a and b, transposed where the attributes say so; c is optional and
/// broadcast.
///
/// **Shapes** `[m, k] × [k, n] + [m, n] → [m, n]`. ONNX `Gemm` 1, 6, 7, 9, 11, 13; the attribute `broadcast` of the
/// first two only forbids what is otherwise allowed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gemm {
    /// The factor of the product.
    pub alpha: Real,
    /// The factor of `c`.
    pub beta: Real,
    /// The first factor is transposed.
    pub transpose_a: bool,
    /// The second factor is transposed.
    pub transpose_b: bool,
}

impl Gemm {
    /// The product of two matrices, each transposed or not, times `alpha`.
    fn scaled(alpha: Real, transpose_a: bool, transpose_b: bool) -> Self {
        Self { alpha, beta: Real(1.0), transpose_a, transpose_b }
    }

    fn run_on<T: Float>(&self, a: &Array<T>, b: &Array<T>, c: Option<&Array<T>>) -> Result<ArrayD<T>> {
        if a.ndim() != 2 || b.ndim() != 2 {
            bail!(shape, "expected matrices, found shapes {:?} and {:?}", a.shape(), b.shape());
        }
        let (a, b) = (matrix(a.view())?, matrix(b.view())?);
        let a = if self.transpose_a { a.reversed_axes() } else { a };
        let b = if self.transpose_b { b.reversed_axes() } else { b };
        check_inner(&a.ncols().into(), &b.nrows().into())?;
        allocatable(&[a.nrows(), b.ncols()])?;
        let mut y = a.dot(&b).into_dyn();
        if self.alpha.0 != 1.0 {
            let alpha = T::of(self.alpha.0);
            y.mapv_inplace(|y| y * alpha);
        }
        if let Some(c) = c {
            let c = broadcast_view(c, y.shape())?.mapv(|c| c * T::of(self.beta.0));
            y = y + c;
        }
        Ok(y.as_standard_layout().into_owned())
    }
}

impl OpDef for Gemm {
    fn name(&self) -> &str {
        "Gemm"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (a, b) = (x.get(0)?, x.get(1)?);
        let dtype = common_dtype(a.dtype, b.dtype)?;
        if a.rank() != 2 || b.rank() != 2 {
            bail!(shape, "expected matrices, found {a} and {b}");
        }
        let (rows, inner_a) = if self.transpose_a { (1, 0) } else { (0, 1) };
        let (inner_b, columns) = if self.transpose_b { (1, 0) } else { (0, 1) };
        check_inner(&a.shape[inner_a], &b.shape[inner_b])?;
        let shape = vec![a.shape[rows].clone(), b.shape[columns].clone()];
        if let Some(c) = x.optional(2) {
            common_dtype(dtype, c.dtype)?;
            let fits = c.rank() <= 2
                && c.shape.iter().rev().zip(shape.iter().rev()).all(|(c, y)| {
                    c.is(1) || c.known().is_none() || y.known().is_none() || c.known() == y.known()
                });
            if !fits {
                bail!(shape, "{c} does not broadcast to {}", Fact::new(dtype, shape));
            }
        }
        Ok(vec![Fact::new(dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let (a, b, c) = (x.get(0)?, x.get(1)?, x.optional(2));
        Ok(vec![match (a, b) {
            (Tensor::F32(a), Tensor::F32(b)) => {
                self.run_on(a, b, c.map(|c| c.array::<f32>()).transpose()?)?.into()
            }
            (Tensor::F64(a), Tensor::F64(b)) => {
                self.run_on(a, b, c.map(|c| c.array::<f64>()).transpose()?)?.into()
            }
            // Integers up to 2^53 are exact in float64.
            (a, b) => {
                let dtype = common_dtype(a.dtype(), b.dtype())?;
                let wide = |x: &Tensor| x.to_f64().into_shared();
                Tensor::from(self.run_on(&wide(a), &wide(b), c.map(wide).as_ref())?).cast(dtype)
            }
        }])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (a, b, g) = (back.x(0), back.x(1), back.g(0));
        let product = |transpose_a, transpose_b, x: [_; 2]| {
            back.builder().apply(Self::scaled(self.alpha, transpose_a, transpose_b), &x)
        };
        Ok(back.each_wanted(|index| match (index, self.transpose_a, self.transpose_b) {
            (0, false, transpose_b) => product(false, !transpose_b, [g, b]),
            (0, true, transpose_b) => product(transpose_b, true, [b, g]),
            (1, transpose_a, false) => product(!transpose_a, false, [a, g]),
            (1, transpose_a, true) => product(true, transpose_a, [g, a]),
            _ if self.beta.0 == 1.0 => g,
            _ => g * self.beta.0,
        }))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        for (name, factor) in [("alpha", self.alpha), ("beta", self.beta)] {
            if factor.0 != 1.0 {
                node.float(name, factor.0);
            }
        }
        node.flag("transA", self.transpose_a, false);
        node.flag("transB", self.transpose_b, false);
        Ok(())
    }
}

impl Listed for Gemm {
    const ONNX: &'static [&'static str] = &["Gemm"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        node.ignore("broadcast");
        Ok(Self {
            alpha: Real(node.float_or("alpha", 1.0)?),
            beta: Real(node.float_or("beta", 1.0)?),
            transpose_a: node.flag_or("transA", false)?,
            transpose_b: node.flag_or("transB", false)?,
        })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = |shape: &[usize]| floats(-1.0, 1.0).input(shape);
        let mut samples = Vec::new();
        for (transpose_a, transpose_b) in [(false, false), (false, true), (true, false), (true, true)] {
            let op = Gemm { alpha: Real(0.5), beta: Real(-1.5), transpose_a, transpose_b };
            let a = if transpose_a { [3, 2] } else { [2, 3] };
            let b = if transpose_b { [4, 3] } else { [3, 4] };
            samples.push(Sample::new(op.clone(), [x(&a), x(&b), x(&[4])]));
            samples.push(Sample::new(op, [x(&a), x(&b)]));
        }
        let op = Gemm { beta: Real(1.0), ..Gemm::scaled(Real(1.0), false, false) };
        samples.push(Sample::new(op, [x(&[2, 3]), x(&[3, 4]), x(&[2, 1])]));
        samples
    }
}

#[cfg(test)]
mod tests {
    //! Expected numbers: the reference evaluator of the Python package onnx 1.17.0, if nothing else is said.

    use super::*;
    use crate::gradient_check::outputs;

    /// 0, 1, 2, … in this shape.
    fn counting(shape: &[usize]) -> Tensor {
        Tensor::from_shape_vec(shape, (0..shape.iter().product::<usize>() as i64).collect()).unwrap()
    }

    fn integers(shape: &[usize], values: &[i64]) -> Tensor {
        Tensor::from_shape_vec(shape, values.to_vec()).unwrap()
    }

    #[test]
    fn vectors_lose_their_axis() {
        let y = outputs(MatMul, &[counting(&[3]), counting(&[2, 3, 2])]);
        assert_eq!(y, [integers(&[2, 2], &[10, 13, 28, 31])]);
    }

    #[test]
    fn factors_are_transposed_and_scaled() {
        let op = Gemm { alpha: Real(0.5), beta: Real(2.0), transpose_a: true, transpose_b: true };
        let c = Tensor::vector([1.0f64, 2.0]);
        let x = [counting(&[3, 2]).cast(DType::F64), counting(&[2, 3]).cast(DType::F64), c];
        assert_eq!(
            outputs(op, &x),
            [Tensor::from_shape_vec(&[2, 2], vec![7.0f64, 18.0, 8.5, 24.0]).unwrap()]
        );
    }

    #[test]
    fn empty_factors_have_a_product() {
        let y = outputs(MatMul, &[counting(&[2, 0]), counting(&[0, 2])]);
        assert_eq!(y, [integers(&[2, 2], &[0, 0, 0, 0])]);
        assert_eq!(outputs(MatMul, &[counting(&[0, 2, 3]), counting(&[3, 2])]), [integers(&[0, 2, 2], &[])]);
    }
}
