//! Ops on the bits of integers. Integers have no gradient.

use super::broadcast::{broadcast_facts, map, zip};
use crate::backprop::{Back, Cotangents};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::Sample;
use crate::graph::Fact;
use crate::onnx::{NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef};
use crate::tensor::Tensor;
use num_traits::{CheckedShl, CheckedShr, ToPrimitive, Zero};

/// Runs `$body` with `$a` and `$b` bound to two arrays of one integer type.
macro_rules! each_integer {
    ($first:expr, $second:expr, ($a:ident, $b:ident) => $body:expr) => {
        match ($first, $second) {
            (Tensor::I64($a), Tensor::I64($b)) => $body,
            (Tensor::I32($a), Tensor::I32($b)) => $body,
            (Tensor::I16($a), Tensor::I16($b)) => $body,
            (Tensor::I8($a), Tensor::I8($b)) => $body,
            (Tensor::U64($a), Tensor::U64($b)) => $body,
            (Tensor::U32($a), Tensor::U32($b)) => $body,
            (Tensor::U16($a), Tensor::U16($b)) => $body,
            (Tensor::U8($a), Tensor::U8($b)) => $body,
            (a, b) => bail!(shape, "expected integers of one type, found {} and {}", a.dtype(), b.dtype()),
        }
    };
}

fn integer_facts(x: &Inputs<Fact>) -> Result<Vec<Fact>> {
    let (dtype, shape) = broadcast_facts(x)?;
    if !dtype.is_integer() {
        bail!(shape, "expected integers, found {dtype}");
    }
    Ok(vec![Fact::new(dtype, shape)])
}

macro_rules! bitwise_ops {
    ($($(#[$doc:meta])* $Name:ident: $operator:tt;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $Name;

        impl OpDef for $Name {
            fn name(&self) -> &str {
                stringify!($Name)
            }

            fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
                x.get(1)?;
                integer_facts(x)
            }

            fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
                Ok(vec![each_integer!(x.get(0)?, x.get(1)?, (a, b) => zip(a, b, &|a, b| a $operator b)?)])
            }

            fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
                Ok(back.stops("its inputs are integers"))
            }
        }

        impl Listed for $Name {
            const ONNX: &'static [&'static str] = &[stringify!($Name)];

            fn read(_: &mut NodeReader) -> Result<Self> {
                Ok(Self)
            }

            #[cfg(test)]
            fn samples() -> Vec<Sample> {
                let x = |values: [u8; 2]| Tensor::vector(values).into();
                vec![Sample::new($Name, [x([3, 5]), x([6, 9])])]
            }
        }
    )* };
}

bitwise_ops! {
    /// The bits that both have, with broadcasting. ONNX `BitwiseAnd` 18.
    BitwiseAnd: &;
    /// The bits that either has, with broadcasting. ONNX `BitwiseOr` 18.
    BitwiseOr: |;
    /// The bits that one alone has, with broadcasting. ONNX `BitwiseXor` 18.
    BitwiseXor: ^;
}

/// The bits that `x` does not have. ONNX `BitwiseNot` 18.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BitwiseNot;

impl OpDef for BitwiseNot {
    fn name(&self) -> &str {
        "BitwiseNot"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        integer_facts(x)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let x = x.get(0)?;
        Ok(vec![each_integer!(x, x, (a, _b) => map(a, &|a| !a))])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.stops("its input is an integer"))
    }
}

impl Listed for BitwiseNot {
    const ONNX: &'static [&'static str] = &["BitwiseNot"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(BitwiseNot, [Tensor::vector([3i64, -5]).into()])]
    }
}

/// `a` with its bits moved by `b` places; what leaves is lost. ONNX `BitShift` 11.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct BitShift {
    /// Towards the higher places.
    pub left: bool,
}

impl OpDef for BitShift {
    fn name(&self) -> &str {
        "BitShift"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        x.get(1)?;
        integer_facts(x)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn shift<T: CheckedShl + CheckedShr + ToPrimitive + Zero>(a: T, b: T, left: bool) -> T {
            // Beyond the last place nothing is left.
            let places = b.to_u32().unwrap_or(u32::MAX);
            let shifted = if left { a.checked_shl(places) } else { a.checked_shr(places) };
            shifted.unwrap_or_else(T::zero)
        }
        Ok(vec![each_integer!(x.get(0)?, x.get(1)?, (a, b) => zip(a, b, &|a, b| shift(a, b, self.left))?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.stops("its inputs are integers"))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.string("direction", if self.left { "LEFT" } else { "RIGHT" });
        Ok(())
    }
}

impl Listed for BitShift {
    const ONNX: &'static [&'static str] = &["BitShift"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        match node.string_or("direction", "")?.as_str() {
            "LEFT" => Ok(Self { left: true }),
            "RIGHT" => Ok(Self { left: false }),
            other => bail!(model, "attribute 'direction': expected LEFT or RIGHT, found '{other}'"),
        }
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = |values: [u8; 2]| Tensor::vector(values).into();
        vec![Sample::new(BitShift { left: true }, [x([3, 200]), x([1, 9])])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradient_check::outputs;

    #[test]
    fn shifts_beyond_the_last_place_give_zero() {
        let x = || Tensor::vector([200u8, 3, 255]);
        let by = Tensor::vector([1u8, 9, 7]);
        assert_eq!(outputs(BitShift { left: true }, &[x(), by.clone()])[0], Tensor::vector([144u8, 0, 128]));
        assert_eq!(outputs(BitShift { left: false }, &[x(), by])[0], Tensor::vector([100u8, 0, 1]));
    }
}
