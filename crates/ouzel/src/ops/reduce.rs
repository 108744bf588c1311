//! Reductions over axes.

use super::layout::{Identity, Size, resolve_axes};
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::{Dim, product};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Domain, Sample, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef};
use crate::tensor::{DType, Float, Tensor};
use ndarray::{ArrayD, Axis};

/// What all reductions share: which axes, and whether they stay with length 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reduction {
    /// The axes; `None` is all of them.
    pub axes: Option<Vec<i64>>,
    /// Reduced axes stay with length 1.
    pub keep_dims: bool,
    /// An empty list of axes reduces nothing, instead of everything.
    pub noop_with_empty_axes: bool,
}

impl Reduction {
    /// The axes of a tensor of this rank.
    pub(crate) fn resolve(&self, rank: usize) -> Result<Vec<usize>> {
        match &self.axes {
            Some(axes) if !axes.is_empty() => resolve_axes(axes, rank),
            _ if self.noop_with_empty_axes => Ok(vec![]),
            _ => Ok((0..rank).collect()),
        }
    }

    fn infer(&self, x: &Fact) -> Result<Fact> {
        let axes = self.resolve(x.rank())?;
        let mut shape = Vec::new();
        for (axis, dim) in x.shape.iter().enumerate() {
            match (axes.contains(&axis), self.keep_dims) {
                (false, _) => shape.push(dim.clone()),
                (true, true) => shape.push(1.into()),
                (true, false) => {}
            }
        }
        Ok(Fact::new(x.dtype, shape))
    }

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self {
            axes: node.ints_or_input("axes", 1)?,
            keep_dims: node.flag_or("keepdims", true)?,
            noop_with_empty_axes: node.flag_or("noop_with_empty_axes", false)?,
        })
    }

    fn write(&self, node: &mut NodeWriter, version: i64) {
        if let Some(axes) = self.axes.as_ref().filter(|axes| !axes.is_empty()) {
            node.axes(1, axes, version);
        }
        node.flag("keepdims", self.keep_dims, true);
    }

    /// What is left of a reduction over no axis: the function of each element alone.
    fn lower_nothing<'b>(&self, node: &Lowering<'b>, op: &str) -> Result<Lowered<'b>> {
        let x = node.x(0);
        node.one(match op {
            "ReduceL1" | "ReduceL2" => x.abs(),
            "ReduceSumSquare" => x * x,
            "ReduceLogSum" => x.ln(),
            _ => node.builder().apply(Identity, &[x]),
        })
    }

    /// An output-shaped value with the reduced axes put back with length 1.
    fn widen<'b>(&self, back: &Back<'b>, y: Var<'b>) -> Result<Var<'b>> {
        Ok(if self.keep_dims { y } else { y.unsqueeze(self.resolve(back.x(0).rank())?) })
    }

    /// Applies `reduce` to all elements that share an output element, in row-major order.
    fn run<T: Float>(&self, x: &ArrayD<T>, reduce: &dyn Fn(&[T]) -> T) -> Result<ArrayD<T>> {
        let axes = self.resolve(x.ndim())?;
        let kept: Vec<usize> = (0..x.ndim()).filter(|axis| !axes.contains(axis)).collect();
        let order: Vec<usize> = kept.iter().chain(&axes).copied().collect();
        let shape: Vec<usize> = kept.iter().map(|&axis| x.shape()[axis]).collect();
        let group: usize = axes.iter().map(|&axis| x.shape()[axis]).product();
        let sorted = x.view().permuted_axes(order).as_standard_layout().into_owned();
        let elements = sorted.as_slice().expect("invariant: standard layout");
        let reduced: Vec<T> = match group {
            0 => vec![reduce(&[]); shape.iter().product()],
            _ => elements.chunks_exact(group).map(reduce).collect(),
        };
        let mut y = match ArrayD::from_shape_vec(shape, reduced) {
            Ok(y) => y,
            Err(error) => bail!(internal, "a reduction has a wrong number of elements: {error}"),
        };
        if self.keep_dims {
            for &axis in &axes {
                y = y.insert_axis(Axis(axis));
            }
        }
        Ok(y)
    }
}

/// How many elements each output element is made of, as a floating point scalar.
fn group_size<'b>(back: &Back<'b>, reduction: &Reduction) -> Result<Var<'b>> {
    let x = back.x(0);
    let axes = reduction.resolve(x.rank())?;
    let shape = x.shape();
    let count: Dim = product(axes.iter().map(|&axis| &shape[axis]));
    Ok(match count.known() {
        Some(count) => x.scalar_like(count as f64),
        None => {
            let size = |of: Var<'b>| back.builder().apply(Size, &[of]);
            (size(x) / size(back.y(0))).cast(x.dtype())
        }
    })
}

macro_rules! reductions {
    ($($(#[$doc:meta])* $Name:ident: |$values:ident| $reduce:expr,
        |$back:ident, $g:ident, $y:ident, $reduction:ident| $cotangent:expr, $domain:expr
        $(, integer |$i:ident| $integer:expr)?;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $Name(pub Reduction);

        impl $Name {
            /// The reduction over these axes.
            pub fn over(axes: impl Into<Vec<i64>>, keep_dims: bool) -> Self {
                Self(Reduction { axes: Some(axes.into()), keep_dims, noop_with_empty_axes: true })
            }
        }

        impl OpDef for $Name {
            fn name(&self) -> &str {
                stringify!($Name)
            }

            fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
                let x = x.get(0)?;
                // The largest truth value is whether any is true.
                if x.dtype == DType::Bool && !matches!(self.name(), "ReduceMax" | "ReduceMin") {
                    bail!(shape, "expected numbers, found {}", x.dtype);
                }
                let fact = self.0.infer(x)?;
                Ok(vec![match product_content(self.name(), x, &fact) {
                    Some(dim) => fact.with_integers(vec![dim]),
                    None => fact,
                }])
            }

            fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
                fn reduce<T: Float>($values: &[T]) -> T {
                    $reduce
                }
                Ok(vec![match x.get(0)? {
                    Tensor::F32(x) => self.0.run(&x.to_owned(), &reduce)?.into(),
                    Tensor::F64(x) => self.0.run(&x.to_owned(), &reduce)?.into(),
                    // Integers up to 2^53 are exact in float64.
                    other => Tensor::from(self.0.run(&other.to_f64(), &reduce)?).cast(other.dtype()),
                }])
            }

            fn vjp<'b>(&self, $back: &Back<'b>) -> Result<Cotangents<'b>> {
                let $reduction = &self.0;
                let $g = $reduction.widen($back, $back.g(0))?;
                let $y = $reduction.widen($back, $back.y(0))?;
                Ok($back.only_first($cotangent))
            }

            fn write(&self, node: &mut NodeWriter) -> Result<()> {
                self.0.write(node, if self.name() == "ReduceSum" { 13 } else { 18 });
                Ok(())
            }

            fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
                let x = node.x(0);
                let reduced = |x: Var<'b>| node.builder().apply(self.clone(), &[x]);
                match x.dtype() {
                    _ if self.0.resolve(x.rank())?.is_empty() => self.0.lower_nothing(node, self.name()),
                    DType::Bool if node.opset() < 20 => node.one(reduced(x.cast(DType::I32)).cast(DType::Bool)),
                    _ => Ok(None),
                }
            }
        }

        impl Listed for $Name {
            const ONNX: &'static [&'static str] = &[stringify!($Name)];

            fn read(node: &mut NodeReader) -> Result<Self> {
                Ok(Self(Reduction::read(node)?))
            }

            #[cfg(test)]
            fn samples() -> Vec<Sample> {
                let x = || { let domain: Domain = $domain; domain.input(&[2, 3, 4]) };
                let all = Reduction { axes: None, keep_dims: true, noop_with_empty_axes: false };
                vec![
                    Sample::new($Name::over([1], true), [x()]),
                    Sample::new($Name::over([-1, 1], false), [x()]),
                    Sample::new($Name(all.clone()), [x()]),
                    Sample::new($Name(Reduction { keep_dims: false, ..all }), [x()]),
                ]
            }
        }
    )* };
}

/// The product of all elements of a shape, which shape computations need while it is symbolic.
fn product_content(op: &str, x: &Fact, y: &Fact) -> Option<Dim> {
    (op == "ReduceProd" && y.shape.iter().all(|dim| dim.is(1))).then(|| x.integers().map(product))?
}

fn sum<T: Float>(values: &[T]) -> T {
    values.iter().copied().sum()
}

fn largest<T: Float>(values: &[T]) -> T {
    values
        .iter()
        .fold(T::neg_infinity(), |max, &value| if value > max || value.is_nan() { value } else { max })
}

/// The gradient of a maximum or minimum, split evenly among the elements that attain it.
fn split_evenly<'b>(back: &Back<'b>, g: Var<'b>, y: Var<'b>, reduction: &Reduction) -> Result<Var<'b>> {
    let attains = back.x(0).equal(y);
    let count = attains.cast(g.dtype()).reduce_sum(reduction.resolve(back.x(0).rank())?, true);
    Ok((g / count).select_where(attains))
}

/// The gradient of a product, which needs care where factors are zero.
fn product_cotangent<'b>(back: &Back<'b>, g: Var<'b>, reduction: &Reduction) -> Result<Var<'b>> {
    let x = back.x(0);
    let axes = reduction.resolve(x.rank())?;
    let zero = x.equal(0.0);
    let zeros = zero.cast(x.dtype()).reduce_sum(axes.clone(), true);
    let nonzero = x.scalar_like(1.0).select(zero, x);
    let others = back
        .builder()
        .apply(ReduceProd::over(axes.iter().map(|&a| a as i64).collect::<Vec<_>>(), true), &[nonzero]);
    let at_zero = others.select_where(zeros.equal(1.0));
    let elsewhere = (others / nonzero).select_where(zeros.equal(0.0));
    Ok(g * at_zero.select(zero, elsewhere))
}

reductions! {
    /// The sum over axes.
    ReduceSum: |values| sum(values), |back, g, _y, _reduction| g.expand_like(back.x(0)), floats(-1.0, 1.0);
    /// The mean over axes.
    ReduceMean: |values| sum(values) / T::of(values.len() as f64),
        |back, g, _y, reduction| (g / group_size(back, reduction)?).expand_like(back.x(0)), floats(-1.0, 1.0);
    /// The maximum over axes. Tied maxima share the gradient evenly.
    ReduceMax: |values| largest(values),
        |back, g, y, reduction| split_evenly(back, g, y, reduction)?, floats(-1.0, 1.0).distinct();
    /// The minimum over axes. Tied minima share the gradient evenly.
    ReduceMin: |values| values.iter().fold(T::infinity(), |min, &v| if v < min || v.is_nan() { v } else { min }),
        |back, g, y, reduction| split_evenly(back, g, y, reduction)?, floats(-1.0, 1.0).distinct();
    /// The product over axes.
    ReduceProd: |values| values.iter().fold(T::one(), |product, &value| product * value),
        |back, g, _y, reduction| product_cotangent(back, g, reduction)?, floats(0.5, 1.5);
    /// The sum of absolute values over axes.
    ReduceL1: |values| values.iter().map(|value| value.abs()).sum(),
        |back, g, _y, _reduction| g * back.x(0).sign(), floats(-1.0, 1.0).away_from(0.0, 0.1);
    /// The Euclidean norm over axes. Its gradient at 0 is 0.
    ReduceL2: |values| values.iter().map(|&value| value * value).sum::<T>().sqrt(),
        |back, g, y, _reduction| (g * back.x(0) / y).select_where(y.greater(0.0)), floats(0.2, 1.0);
    /// The sum of squares over axes.
    ReduceSumSquare: |values| values.iter().map(|&value| value * value).sum(),
        |back, g, _y, _reduction| g * back.x(0) * 2.0, floats(-1.0, 1.0);
    /// The logarithm of the sum over axes.
    ReduceLogSum: |values| sum(values).ln(),
        |back, g, y, _reduction| (g / y.exp()).expand_like(back.x(0)), floats(0.5, 1.5);
    /// The logarithm of the sum of exponentials over axes, computed without overflow.
    ReduceLogSumExp: |values| {
            let max = largest(values);
            if max.is_infinite() { max } else { max + values.iter().map(|&value| (value - max).exp()).sum::<T>().ln() }
        },
        |back, g, y, _reduction| g * (back.x(0) - y).exp(), floats(-1.0, 1.0);
}
