//! Rounding to integers and to narrow types, which the gradient passes as if it were not there.

use super::broadcast::map;
use super::elementwise::Round;
use crate::backprop::{Back, Cotangents};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::Sample;
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef};
use crate::tensor::{Float, Tensor, each_float};

/// The nearest integer, halves to the even one, as [`Round`]; but the gradient passes straight through.
///
/// Quantized networks are explained so: the true derivative of rounding is zero, which explains nothing.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoundThrough;

impl OpDef for RoundThrough {
    fn name(&self) -> &str {
        "RoundThrough"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        Round.infer(x)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        Round.run(x)
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(back.g(0)))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        node.one(node.builder().apply(Round, &[node.x(0)]))
    }
}

impl Listed for RoundThrough {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(unsupported, "RoundThrough is not an ONNX op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(RoundThrough, [Tensor::vector([0.5f64, 1.5, -0.7]).into()])]
    }
}

/// A type whose numbers are held in a wider one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 16-bit floating point.
    Float16,
    /// The upper half of a 32-bit floating point number.
    Bfloat16,
    /// 8 bits, 3 of them for the fraction; NaN but no infinity.
    Float8E4M3Fn,
    /// The same with another bias, and neither infinity nor a negative zero.
    Float8E4M3Fnuz,
    /// 8 bits, 2 of them for the fraction.
    Float8E5M2,
    /// The same with another bias, and neither infinity nor a negative zero.
    Float8E5M2Fnuz,
    /// Integers from -8 to 7.
    Int4,
    /// Integers from 0 to 15.
    Uint4,
}

/// What a floating point format can say.
struct Layout {
    fraction: i32,
    /// The exponent of the smallest number with all digits.
    least: i32,
    largest: f64,
    infinite: bool,
    signed_zero: bool,
}

impl Format {
    /// The format behind a number of ONNX's `TensorProto.DataType`.
    pub(crate) fn of_code(code: i64) -> Option<Self> {
        Some(match code {
            10 => Self::Float16,
            16 => Self::Bfloat16,
            17 => Self::Float8E4M3Fn,
            18 => Self::Float8E4M3Fnuz,
            19 => Self::Float8E5M2,
            20 => Self::Float8E5M2Fnuz,
            21 => Self::Uint4,
            22 => Self::Int4,
            _ => return None,
        })
    }

    /// The number of ONNX's `TensorProto.DataType`, and the opset since which casts have it.
    fn code(self) -> (i32, i64) {
        match self {
            Self::Float16 => (10, 13),
            Self::Bfloat16 => (16, 13),
            Self::Float8E4M3Fn => (17, 19),
            Self::Float8E4M3Fnuz => (18, 19),
            Self::Float8E5M2 => (19, 19),
            Self::Float8E5M2Fnuz => (20, 19),
            Self::Uint4 => (21, 21),
            Self::Int4 => (22, 21),
        }
    }

    /// The least and the largest integer.
    pub(crate) fn integers(self) -> Option<(f64, f64)> {
        match self {
            Self::Int4 => Some((-8.0, 7.0)),
            Self::Uint4 => Some((0.0, 15.0)),
            _ => None,
        }
    }

    fn layout(self) -> Layout {
        let (fraction, least, largest) = match self {
            Self::Float16 => (10, -14, 65504.0),
            Self::Bfloat16 => (7, -126, f64::from(half::bf16::MAX.to_f32())),
            Self::Float8E4M3Fn => (3, -6, 448.0),
            Self::Float8E4M3Fnuz => (3, -7, 240.0),
            Self::Float8E5M2 => (2, -14, 57344.0),
            Self::Float8E5M2Fnuz => (2, -15, 57344.0),
            Self::Int4 | Self::Uint4 => (0, 0, 0.0),
        };
        let infinite = matches!(self, Self::Float16 | Self::Bfloat16 | Self::Float8E5M2);
        let signed_zero = !matches!(self, Self::Float8E4M3Fnuz | Self::Float8E5M2Fnuz);
        Layout { fraction, least, largest, infinite, signed_zero }
    }

    /// The number behind 8 bits.
    pub(crate) fn decode(self, byte: u8) -> f32 {
        let Layout { fraction, least, infinite, signed_zero, .. } = self.layout();
        let sign = if byte & 0x80 == 0 { 1.0f32 } else { -1.0 };
        let digits = i32::from(byte & 0x7f);
        let (exponent, rest) = (digits >> fraction, digits & ((1 << fraction) - 1));
        let top = 0x7f >> fraction;
        match (exponent, rest) {
            _ if !signed_zero && byte == 0x80 => f32::NAN,
            (exponent, 0) if infinite && exponent == top => sign * f32::INFINITY,
            (exponent, _) if infinite && exponent == top => f32::NAN,
            _ if !infinite && signed_zero && digits == 0x7f => f32::NAN,
            (0, rest) => sign * rest as f32 * 2f32.powi(least - fraction),
            (exponent, rest) => {
                sign * (rest + (1 << fraction)) as f32 * 2f32.powi(exponent - 1 + least - fraction)
            }
        }
    }

    /// The nearest number of the format, halves to the even one. What is too large becomes the largest number if
    /// `saturate`, else infinity or, where there is none, NaN.
    fn round(self, x: f64, saturate: bool) -> f64 {
        if let Some((low, high)) = self.integers() {
            return x.round_ties_even().clamp(low, high);
        }
        let Layout { fraction, least, largest, infinite, signed_zero } = self.layout();
        if x.is_nan() {
            return x;
        }
        let unit = 2f64.powi(libm::ilogb(x.abs().clamp(f64::MIN_POSITIVE, f64::MAX)).max(least) - fraction);
        let rounded = if x.is_infinite() { x } else { (x / unit).round_ties_even() * unit };
        match rounded.abs() > largest {
            true if saturate => largest.copysign(x),
            true if infinite => f64::INFINITY.copysign(x),
            true => f64::NAN,
            false if rounded == 0.0 && !signed_zero => 0.0,
            false => rounded,
        }
    }
}

/// The nearest number of a narrower type, in the type that it is held in. The gradient passes straight through, as
/// through `Cast`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoundTo {
    /// The narrower type.
    pub format: Format,
    /// Numbers that are too large become the largest one.
    pub saturate: bool,
}

impl OpDef for RoundTo {
    fn name(&self) -> &str {
        "RoundTo"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        Round.infer(x)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn round<T: Float>(op: &RoundTo, x: T) -> T {
            T::of(op.format.round(x.wide(), op.saturate))
        }
        Ok(vec![each_float!(x.get(0)?, x => map(x, &|x| round(self, x)))])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(back.g(0)))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        let (code, since) = self.format.code();
        node.since(since, "a cast to a type of 8 bits")?;
        node.there_and_back(code, self.saturate);
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        match self.format.integers() {
            Some((low, high)) => {
                node.one(node.builder().apply(Round, &[node.x(0)]).maximum(low).minimum(high))
            }
            None => Ok(None),
        }
    }
}

impl Listed for RoundTo {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(unsupported, "RoundTo is not an ONNX op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let op = RoundTo { format: Format::Float8E5M2, saturate: true };
        vec![Sample::new(op, [Tensor::vector([0.5f64, 1.6, -0.7]).into()])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};

    #[test]
    fn every_number_of_eight_bits_rounds_to_itself() {
        for format in
            [Format::Float8E4M3Fn, Format::Float8E4M3Fnuz, Format::Float8E5M2, Format::Float8E5M2Fnuz]
        {
            for byte in 0..=255u8 {
                let value = f64::from(format.decode(byte));
                let back = format.round(value, false);
                assert!(
                    back == value || (back.is_nan() && value.is_nan()),
                    "{format:?} {byte}: {value} {back}"
                );
            }
        }
    }

    #[test]
    fn halves_round_as_the_crate_half_does() {
        for index in -3000..3000 {
            let x = index as f32 * 37.31 * 2f32.powi(index % 40 - 20);
            let expected = (f16::from_f32(x).to_f64(), bf16::from_f32(x).to_f64());
            let found = [Format::Float16, Format::Bfloat16].map(|format| format.round(x.into(), false));
            assert_eq!(found, <[f64; 2]>::from(expected), "{x}");
        }
    }

    #[test]
    fn what_is_too_large_saturates_or_not() {
        let round = |format: Format, saturate| format.round(1e6, saturate);
        assert_eq!(round(Format::Float8E4M3Fn, true), 448.0);
        assert!(round(Format::Float8E4M3Fn, false).is_nan());
        assert_eq!(round(Format::Float8E5M2, false), f64::INFINITY);
        assert_eq!(Format::Uint4.round(-3.0, true), 0.0);
    }
}
