//! Arithmetic on each element: one input, two with broadcasting, or any number with broadcasting.

use super::broadcast::{broadcast_facts, broadcast_shapes, map, zip};
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::{Dim, known_shape};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef};
use crate::tensor::{Array, DType, Element, Float, Tensor};

/// An op on each element of one input. Implementing it implements [`OpDef`].
pub(crate) trait Unary: std::fmt::Debug + Send + Sync {
    /// The ONNX name.
    const NAME: &'static str;

    /// `y` from `x`.
    fn value<T: Float>(&self, x: T) -> T;

    /// `y` from an integer `x`, for ops that accept integers.
    fn integer(&self, _x: i64) -> Option<i64> {
        None
    }

    /// The cotangent of `x`; `None` where the op is piecewise constant.
    fn cotangent<'b>(&self, back: &Back<'b>) -> Option<Var<'b>>;

    /// As [`OpDef::write`].
    fn write(&self, _node: &mut NodeWriter) {}

    /// `y` in other ops, as [`OpDef::lower`].
    fn lower<'b>(&self, _x: Var<'b>, _opset: i64) -> Option<Var<'b>> {
        None
    }
}

impl<U: Unary> OpDef for U {
    fn name(&self) -> &str {
        U::NAME
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        if !x.dtype.is_float() && (!x.dtype.is_integer() || self.integer(1).is_none()) {
            bail!(shape, "expected floating point elements, found {}", x.dtype);
        }
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let x = x.get(0)?;
        Ok(vec![match x {
            Tensor::F32(x) => map(x, &|x| self.value(x)),
            Tensor::F64(x) => map(x, &|x| self.value(x)),
            other => {
                let wide = other.cast(DType::I64);
                map(wide.array::<i64>()?, &|x| self.integer(x).unwrap_or(x)).cast(other.dtype())
            }
        }])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(match self.cotangent(back) {
            Some(cotangent) => back.only_first(cotangent),
            None => back.stops("the op is piecewise constant"),
        })
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        Unary::write(self, node);
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        Ok(Unary::lower(self, node.x(0), node.opset()).map(|y| vec![y]))
    }
}

/// Declares ops on each element that have no attributes.
macro_rules! unary_ops {
    ($($(#[$doc:meta])* $Name:ident: |$x:ident| $value:expr, |$b:ident| $cotangent:expr, $domain:expr
        $(, integer |$i:ident| $integer:expr)? $(, before $since:literal |$l:ident| $lowered:expr)?;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $Name;

        impl $crate::ops::elementwise::Unary for $Name {
            const NAME: &'static str = stringify!($Name);

            fn value<T: $crate::tensor::Float>(&self, $x: T) -> T {
                $value
            }

            $(fn integer(&self, $i: i64) -> Option<i64> {
                Some($integer)
            })?

            fn cotangent<'b>(&self, $b: &$crate::backprop::Back<'b>) -> Option<$crate::builder::Var<'b>> {
                $cotangent
            }

            $(fn lower<'b>(&self, $l: $crate::builder::Var<'b>, opset: i64) -> Option<$crate::builder::Var<'b>> {
                (opset < $since).then(|| $lowered)
            })?
        }

        impl $crate::op::Listed for $Name {
            const ONNX: &'static [&'static str] = &[stringify!($Name)];

            fn read(node: &mut $crate::onnx::NodeReader) -> $crate::error::Result<Self> {
                node.ignore("consumed_inputs");
                Ok(Self)
            }

            #[cfg(test)]
            fn samples() -> Vec<$crate::gradient_check::Sample> {
                vec![$crate::gradient_check::Sample::new($Name, [$domain.input(&[2, 3])])]
            }
        }
    )* };
}
pub(crate) use unary_ops;

unary_ops! {
    /// `y = -x`.
    Neg: |x| -x, |b| Some(-b.g(0)), floats(-3.0, 3.0), integer |x| x.wrapping_neg();
    /// `y = |x|`. The derivative at 0 is 0.
    Abs: |x| x.abs(), |b| Some(b.g(0) * b.x(0).sign()), floats(-3.0, 3.0).away_from(0.0, 0.1),
        integer |x| x.wrapping_abs();
    /// `y = eˣ`.
    Exp: |x| x.exp(), |b| Some(b.g(0) * b.y(0)), floats(-2.0, 2.0);
    /// `y = ln x`.
    Log: |x| x.ln(), |b| Some(b.g(0) / b.x(0)), floats(0.5, 3.0);
    /// `y = √x`.
    Sqrt: |x| x.sqrt(), |b| Some(b.g(0) * 0.5 / b.y(0)), floats(0.5, 3.0);
    /// `y = 1 / x`.
    Reciprocal: |x| x.recip(), |b| Some(-(b.g(0) * b.y(0) * b.y(0))), floats(0.5, 3.0);
    /// The error function.
    Erf: |x| x.erf(),
        |b| Some(b.g(0) * (-(b.x(0) * b.x(0))).exp() * std::f64::consts::FRAC_2_SQRT_PI), floats(-2.0, 2.0);
    /// `y = sin x`.
    Sin: |x| x.sin(), |b| Some(b.g(0) * b.x(0).cos()), floats(-3.0, 3.0);
    /// `y = cos x`.
    Cos: |x| x.cos(), |b| Some(-(b.g(0) * b.x(0).sin())), floats(-3.0, 3.0);
    /// `y = tan x`.
    Tan: |x| x.tan(), |b| Some(b.g(0) * (b.y(0) * b.y(0) + 1.0)), floats(-1.0, 1.0);
    /// The inverse of the sine.
    Asin: |x| x.asin(), |b| Some(b.g(0) / (-(b.x(0) * b.x(0)) + 1.0).sqrt()), floats(-0.8, 0.8);
    /// The inverse of the cosine.
    Acos: |x| x.acos(), |b| Some(-(b.g(0) / (-(b.x(0) * b.x(0)) + 1.0).sqrt())), floats(-0.8, 0.8);
    /// The inverse of the tangent.
    Atan: |x| x.atan(), |b| Some(b.g(0) / (b.x(0) * b.x(0) + 1.0)), floats(-2.0, 2.0);
    /// The hyperbolic sine.
    Sinh: |x| x.sinh(), |b| Some(b.g(0) * (b.y(0) * b.y(0) + 1.0).sqrt()), floats(-2.0, 2.0);
    /// The hyperbolic cosine.
    Cosh: |x| x.cosh(), |b| Some(b.g(0) * (b.x(0).exp() - (-b.x(0)).exp()) * 0.5), floats(-2.0, 2.0);
    /// The inverse of the hyperbolic sine.
    Asinh: |x| x.asinh(), |b| Some(b.g(0) / (b.x(0) * b.x(0) + 1.0).sqrt()), floats(-2.0, 2.0);
    /// The inverse of the hyperbolic cosine.
    Acosh: |x| x.acosh(), |b| Some(b.g(0) / (b.x(0) * b.x(0) - 1.0).sqrt()), floats(1.5, 3.0);
    /// The inverse of the hyperbolic tangent.
    Atanh: |x| x.atanh(), |b| Some(b.g(0) / (-(b.x(0) * b.x(0)) + 1.0)), floats(-0.8, 0.8);
    /// The largest integer that is not above x. Piecewise constant: nothing flows through it.
    Floor: |x| x.floor(), |_b| None, floats(-3.0, 3.0);
    /// The smallest integer that is not below x. Piecewise constant: nothing flows through it.
    Ceil: |x| x.ceil(), |_b| None, floats(-3.0, 3.0);
    /// The nearest integer, halves to the even one. Piecewise constant: nothing flows through it.
    Round: |x| round_half_even(x), |_b| None, floats(-3.0, 3.0);
    /// -1, 0 or 1. Piecewise constant: nothing flows through it.
    Sign: |x| if x == T::zero() { x } else { x.signum() }, |_b| None, floats(-3.0, 3.0), integer |x| x.signum();
}

fn round_half_even<T: Float>(x: T) -> T {
    let rounded = x.round();
    let half = (x - x.trunc()).abs() == T::of(0.5);
    let odd = rounded % T::of(2.0) != T::zero();
    if half && odd { rounded - x.signum() } else { rounded }
}

/// An op on the elements of two inputs. [`binary_ops`] implements [`OpDef`] with it.
trait Binary {
    fn value<T: Float>(a: T, b: T) -> T;
    fn integer(a: i64, b: i64) -> i64;
    /// The same on dimensions, where it can be said.
    fn dim(a: &Dim, b: &Dim) -> Option<Dim>;
    /// The cotangent of an input, before broadcasting is undone.
    fn cotangent<'b>(back: &Back<'b>, index: usize) -> Var<'b>;
}

/// Combines two tensors of one element type with broadcasting.
fn combine(
    a: &Tensor,
    b: &Tensor,
    single: &dyn Fn(f32, f32) -> f32,
    double: &dyn Fn(f64, f64) -> f64,
    integer: &dyn Fn(i64, i64) -> i64,
) -> Result<Tensor> {
    match (a, b) {
        (Tensor::F32(a), Tensor::F32(b)) => zip(a, b, single),
        (Tensor::F64(a), Tensor::F64(b)) => zip(a, b, double),
        (a, b) if a.dtype() == b.dtype() && a.dtype().is_integer() => {
            let (wide_a, wide_b) = (a.cast(DType::I64), b.cast(DType::I64));
            Ok(zip(wide_a.array::<i64>()?, wide_b.array::<i64>()?, integer)?.cast(a.dtype()))
        }
        (a, b) => bail!(shape, "expected numbers of one element type, found {} and {}", a.dtype(), b.dtype()),
    }
}

/// The elements of an integer result, where those of both inputs are known expressions.
pub(super) fn combine_contents<T>(
    a: &Fact,
    b: &Fact,
    shape: &[Dim],
    combine: impl Fn(&Dim, &Dim) -> Option<T>,
) -> Option<Vec<T>> {
    // Narrower integers wrap around, expressions do not.
    if a.dtype.size() < 4 {
        return None;
    }
    let (a, b) = (a.integers()?, b.integers()?);
    // Beyond vectors and scalars the order of elements would need real broadcasting; shapes never get there.
    if shape.len() > 1 {
        return None;
    }
    // Of one axis at most, so that no product can be too large.
    let count: usize = known_shape(shape)?.iter().product();
    let fits = |x: &[Dim]| x.len() == count || x.len() == 1;
    if !fits(a) || !fits(b) {
        return None;
    }
    (0..count).map(|index| combine(&a[index % a.len().max(1)], &b[index % b.len().max(1)])).collect()
}

macro_rules! binary_ops {
    ($($(#[$doc:meta])* $Name:ident: $a:expr, $b:expr;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $Name;

        impl OpDef for $Name {
            fn name(&self) -> &str {
                stringify!($Name)
            }

            fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
                let (dtype, shape) = broadcast_facts(x)?;
                if dtype == DType::Bool {
                    bail!(shape, "expected numbers, found {dtype}");
                }
                let content = combine_contents(x.get(0)?, x.get(1)?, &shape, <$Name as Binary>::dim);
                let fact = Fact::new(dtype, shape);
                Ok(vec![match content {
                    Some(content) => fact.with_integers(content),
                    None => fact,
                }])
            }

            fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
                let (a, b) = (x.get(0)?, x.get(1)?);
                let y = combine(
                    a,
                    b,
                    &<$Name as Binary>::value,
                    &<$Name as Binary>::value,
                    &<$Name as Binary>::integer,
                )?;
                Ok(vec![y])
            }

            fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
                Ok(back.each_wanted(|index| <$Name as Binary>::cotangent(back, index)))
            }
        }

        impl Listed for $Name {
            const ONNX: &'static [&'static str] = &[stringify!($Name)];

            fn read(_: &mut NodeReader) -> Result<Self> {
                Ok(Self)
            }

            #[cfg(test)]
            fn samples() -> Vec<Sample> {
                vec![
                    Sample::new($Name, [$a.input(&[2, 3]), $b.input(&[2, 3])]),
                    Sample::new($Name, [$a.input(&[2, 3]), $b.input(&[3])]),
                    Sample::new($Name, [$a.input(&[2, 1]), $b.input(&[4, 1, 3])]),
                ]
            }
        }
    )* };
}

binary_ops! {
    /// `y = a + b`, with broadcasting.
    Add: floats(-2.0, 2.0), floats(-2.0, 2.0);
    /// `y = a - b`, with broadcasting.
    Sub: floats(-2.0, 2.0), floats(-2.0, 2.0);
    /// `y = a · b`, with broadcasting.
    Mul: floats(-2.0, 2.0), floats(-2.0, 2.0);
    /// `y = a / b`, with broadcasting; integers are divided towards zero.
    Div: floats(-2.0, 2.0), floats(0.5, 2.0);
}

impl Binary for Add {
    fn value<T: Float>(a: T, b: T) -> T {
        a + b
    }
    fn integer(a: i64, b: i64) -> i64 {
        a.wrapping_add(b)
    }
    fn dim(a: &Dim, b: &Dim) -> Option<Dim> {
        Some(a + b)
    }
    fn cotangent<'b>(back: &Back<'b>, _: usize) -> Var<'b> {
        back.g(0)
    }
}

impl Binary for Sub {
    fn value<T: Float>(a: T, b: T) -> T {
        a - b
    }
    fn integer(a: i64, b: i64) -> i64 {
        a.wrapping_sub(b)
    }
    fn dim(a: &Dim, b: &Dim) -> Option<Dim> {
        Some(a - b)
    }
    fn cotangent<'b>(back: &Back<'b>, index: usize) -> Var<'b> {
        if index == 0 { back.g(0) } else { -back.g(0) }
    }
}

impl Binary for Mul {
    fn value<T: Float>(a: T, b: T) -> T {
        a * b
    }
    fn integer(a: i64, b: i64) -> i64 {
        a.wrapping_mul(b)
    }
    fn dim(a: &Dim, b: &Dim) -> Option<Dim> {
        Some(a * b)
    }
    fn cotangent<'b>(back: &Back<'b>, index: usize) -> Var<'b> {
        back.g(0) * back.x(1 - index)
    }
}

impl Binary for Div {
    fn value<T: Float>(a: T, b: T) -> T {
        a / b
    }
    fn integer(a: i64, b: i64) -> i64 {
        if b == 0 { 0 } else { a.wrapping_div(b) }
    }
    fn dim(a: &Dim, b: &Dim) -> Option<Dim> {
        // Dimensions are not negative, so the floor is the quotient towards zero.
        (!b.is(0)).then(|| a.divide(b))
    }
    fn cotangent<'b>(back: &Back<'b>, index: usize) -> Var<'b> {
        let x = back.g(0) / back.x(1);
        if index == 0 { x } else { -(x * back.y(0)) }
    }
}

/// `y = a ^ b`, with broadcasting. The exponent may have another element type.
///
/// Where `b` is 0 the derivative for `a` is 0; where `a` is not positive that for `b` is 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pow;

impl OpDef for Pow {
    fn name(&self) -> &str {
        "Pow"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (a, b) = (x.get(0)?, x.get(1)?);
        if a.dtype == DType::Bool || b.dtype == DType::Bool {
            bail!(shape, "expected numbers, found {} and {}", a.dtype, b.dtype);
        }
        Ok(vec![Fact::new(a.dtype, broadcast_shapes(&a.shape, &b.shape)?)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let a = x.get(0)?;
        let b = x.get(1)?;
        Ok(vec![match a {
            Tensor::F32(a) => zip(a, b.cast(DType::F32).array()?, &f32::powf)?,
            Tensor::F64(a) => zip(a, b.cast(DType::F64).array()?, &f64::powf)?,
            a => {
                let wide = |x: &Tensor| Array::from(x.to_f64());
                zip(&wide(a), &wide(b), &f64::powf)?.cast(a.dtype())
            }
        }])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (a, g) = (back.x(0), back.g(0));
        let b = back.x(1).cast(a.dtype());
        Ok(back.each_wanted(|index| match index {
            0 => (g * b * a.pow(b - 1.0)).select_where(!b.equal(0.0)),
            _ => (g * back.y(0) * a.ln()).select_where(a.greater(0.0)),
        }))
    }
}

impl Listed for Pow {
    const ONNX: &'static [&'static str] = &["Pow"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![
            Sample::new(Pow, [floats(0.5, 2.0).input(&[2, 3]), floats(-2.0, 2.0).input(&[2, 3])]),
            Sample::new(Pow, [floats(0.5, 2.0).input(&[2, 3]), floats(-2.0, 2.0).input(&[1])]),
        ]
    }
}

/// The remainder of `a / b`, with the sign of `b`, or of `a` with `fmod`. Its derivative for `a` is 1; for `b` the op is
/// declared not differentiable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Mod {
    /// The remainder takes the sign of `a`.
    pub fmod: bool,
}

impl OpDef for Mod {
    fn name(&self) -> &str {
        "Mod"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (dtype, shape) = broadcast_facts(x)?;
        Ok(vec![Fact::new(dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn float<T: Float>(a: T, b: T, fmod: bool) -> T {
            let remainder = a % b;
            let wrong_sign = remainder != T::zero() && (remainder < T::zero()) != (b < T::zero());
            if !fmod && wrong_sign { remainder + b } else { remainder }
        }
        let fmod = self.fmod;
        let integer = |a: i64, b: i64| match (b, fmod) {
            (0, _) => 0,
            (_, true) => a.wrapping_rem(b),
            (_, false) => a.wrapping_rem(b).wrapping_add(b).wrapping_rem(b),
        };
        Ok(vec![combine(
            x.get(0)?,
            x.get(1)?,
            &|a, b| float(a, b, fmod),
            &|a, b| float(a, b, fmod),
            &integer,
        )?])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(back.g(0)))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.flag("fmod", self.fmod || node.fact(0).is_some_and(|x| x.dtype.is_float()), false);
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        // ONNX has remainders of floating point numbers with the sign of the first operand only.
        let (a, b) = (node.x(0), node.x(1));
        if self.fmod || !a.dtype().is_float() {
            return Ok(None);
        }
        let quotient = node.builder().apply(Floor, &[a / b]);
        node.one(a - quotient * b)
    }
}

impl Listed for Mod {
    const ONNX: &'static [&'static str] = &["Mod"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { fmod: node.flag_or("fmod", false)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let divisor = || Tensor::vector([1.0f64, 1.5, 0.7]);
        let x = || floats(2.2, 2.7).input(&[2, 3]);
        vec![
            Sample::new(Mod { fmod: true }, [x(), divisor().into()]),
            Sample::new(Mod { fmod: false }, [x(), divisor().into()]),
        ]
    }
}

/// Folds any number of inputs with broadcasting.
fn fold_tensors(
    x: &Inputs<Tensor>,
    single: &dyn Fn(f32, f32) -> f32,
    double: &dyn Fn(f64, f64) -> f64,
    integer: &dyn Fn(i64, i64) -> i64,
) -> Result<Tensor> {
    let mut y = x.get(0)?.clone();
    for other in x.present().skip(1) {
        y = combine(&y, other, single, double, integer)?;
    }
    Ok(y)
}

/// Where input `index` is the first operand that attains the extremum `y`.
fn attains_first<'b>(back: &Back<'b>, index: usize) -> Var<'b> {
    let y = back.y(0);
    (0..index).fold(back.x(index).equal(y), |attains, earlier| attains.and(!back.x(earlier).equal(y)))
}

/// The mean of any number of tensors as their sum, divided.
fn scale<T: Element + Float>(x: &Array<T>, by: f64) -> Tensor {
    T::wrap(x.mapv(|x| x * T::of(by)).into_shared())
}

macro_rules! variadic_ops {
    ($($(#[$doc:meta])* $Name:ident: |$x:ident| $run:expr, |$back:ident, $index:ident| $cotangent:expr;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $Name;

        impl OpDef for $Name {
            fn name(&self) -> &str {
                stringify!($Name)
            }

            fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
                let (dtype, shape) = broadcast_facts(x)?;
                if dtype == DType::Bool {
                    bail!(shape, "expected numbers, found {dtype}");
                }
                Ok(vec![Fact::new(dtype, shape)])
            }

            fn run(&self, $x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
                Ok(vec![$run])
            }

            fn vjp<'b>(&self, $back: &Back<'b>) -> Result<Cotangents<'b>> {
                Ok($back.each_wanted(|$index| $cotangent))
            }
        }

        impl Listed for $Name {
            const ONNX: &'static [&'static str] = &[stringify!($Name)];

            fn read(_: &mut NodeReader) -> Result<Self> {
                Ok(Self)
            }

            #[cfg(test)]
            fn samples() -> Vec<Sample> {
                let x = |shape: &[usize]| floats(-2.0, 2.0).distinct().input(shape);
                vec![
                    Sample::new($Name, [x(&[2, 3])]),
                    Sample::new($Name, [x(&[2, 3]), floats(-1.9, 2.1).distinct().input(&[2, 3])]),
                    Sample::new($Name, [x(&[2, 3]), floats(-1.9, 2.1).distinct().input(&[3]), floats(-1.8, 2.3).distinct().input(&[1])]),
                ]
            }
        }
    )* };
}

variadic_ops! {
    /// The largest of any number of inputs. On a tie the first operand that attains it gets the gradient.
    Max: |x| fold_tensors(x, &larger, &larger, &i64::max)?,
        |back, index| back.g(0).select_where(attains_first(back, index));
    /// The smallest of any number of inputs. On a tie the first operand that attains it gets the gradient.
    Min: |x| fold_tensors(x, &smaller, &smaller, &i64::min)?,
        |back, index| back.g(0).select_where(attains_first(back, index));
    /// The sum of any number of inputs.
    Sum: |x| fold_tensors(x, &|a, b| a + b, &|a, b| a + b, &i64::wrapping_add)?, |back, _index| back.g(0);
    /// The mean of any number of inputs.
    Mean: |x| match fold_tensors(x, &|a, b| a + b, &|a, b| a + b, &i64::wrapping_add)? {
            Tensor::F32(sum) => scale(&sum, 1.0 / x.len() as f64),
            Tensor::F64(sum) => scale(&sum, 1.0 / x.len() as f64),
            other => bail!(shape, "expected floating point elements, found {}", other.dtype()),
        },
        |back, _index| back.g(0) * (1.0 / back.arity() as f64);
}

/// The larger of two numbers; not a number if either is.
fn larger<T: Float>(a: T, b: T) -> T {
    if a >= b || a.is_nan() { a } else { b }
}

/// The smaller of two numbers; not a number if either is.
fn smaller<T: Float>(a: T, b: T) -> T {
    if a <= b || a.is_nan() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_to_the_even_integer() {
        let rounded: Vec<f64> = [0.5, 1.5, 2.5, -0.5, -1.5, 2.4, -2.6].map(round_half_even).to_vec();
        assert_eq!(rounded, [0.0, 2.0, 2.0, 0.0, -2.0, 2.0, -3.0]);
    }

    #[test]
    fn the_remainder_has_the_sign_that_is_asked_for() {
        let run = |fmod: bool, a: Tensor, b: Tensor| {
            Mod { fmod }.run(&Inputs(&[Some(&a), Some(&b)])).unwrap()[0].to_f64().into_raw_vec_and_offset().0
        };
        let (a, b) = (Tensor::vector([-4i64, 7, 5]), Tensor::vector([2i64, -3, 8]));
        assert_eq!(run(false, a.clone(), b.clone()), [0.0, -2.0, 5.0]);
        assert_eq!(run(true, a, b), [0.0, 1.0, 5.0]);
    }
}
