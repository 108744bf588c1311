//! Elementary functions without branches, so that the compiler turns loops over them into vectors; accurate to about two units in the
//! last place.

use crate::vector::Simd;

/// 1.5 · 2²³: adding it rounds a float to an integer, which then stands in its low bits.
const ROUNDING: f32 = 12_582_912.0;

/// 2ⁿ for -126 <= n <= 127, n given as float bits above those of `ROUNDING`.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

/// e to the power of x.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: f32) -> f32 {
    // Beyond these the result is infinite or zero; a comparison that fails keeps what is not a number.
    let x = if x > 90.0 { 90.0 } else { x };
    let x = if x < -105.0 { -105.0 } else { x };
    let (p, shifted) = exp_parts(simd, x);
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUNDING.to_bits() as i32);
    // In two steps, because 2ⁿ alone may be out of range where the result is not.
    let n = n.clamp(-252, 254);
    let half = n >> 1;
    p * power_of_two(half) * power_of_two(n - half)
}

/// e to the power of x for -86 <= x <= 88; the nearest of these where x is none of them.
#[inline(always)]
fn exp_within<S: Simd>(simd: S, x: f32) -> f32 {
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -86.0 { -86.0 } else { x };
    let (p, shifted) = exp_parts(simd, x);
    // The bits of the integer move to those of the exponent, all others out.
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

/// p and an integer n in the low bits of a float, such that e to the power of x is p · 2ⁿ.
#[inline(always)]
fn exp_parts<S: Simd>(simd: S, x: f32) -> (f32, f32) {
    let shifted = simd.multiply_add_one(x, std::f32::consts::LOG2_E, ROUNDING);
    let rounded = shifted - ROUNDING;
    // ln 2 in two parts, the first with enough zeros at its end that its product is exact.
    let r = simd.multiply_add_one(rounded, -0.693_359_4, x);
    let r = simd.multiply_add_one(rounded, 2.121_944_4e-4, r);
    // Pairs of coefficients first, which do not wait for each other.
    let square = r * r;
    let p = simd.multiply_add_one(1.987_569_1e-4, r, 1.398_199_9e-3);
    let q = simd.multiply_add_one(8.333_452e-3, r, 4.166_579_6e-2);
    let p = simd.multiply_add_one(p, square, q);
    let q = simd.multiply_add_one(1.666_666_5e-1, r, 0.5);
    let p = simd.multiply_add_one(p, square, q);
    (simd.multiply_add_one(p, square, r) + 1.0, shifted)
}

/// The natural logarithm.
#[inline(always)]
pub(crate) fn ln<S: Simd>(simd: S, x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let scaled = if tiny { x * 8_388_608.0 } else { x };
    // The mantissa in sqrt(1/2) .. sqrt(2).
    let bits = scaled.to_bits().wrapping_sub(0x3f35_04f3);
    let exponent = (bits as i32) >> 23;
    let mantissa = f32::from_bits((bits & 0x007f_ffff).wrapping_add(0x3f35_04f3));
    let exponent = exponent as f32 - if tiny { 23.0 } else { 0.0 };
    let r = mantissa - 1.0;
    let mut p = 7.037_683_6e-2;
    for coefficient in [
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_7e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ] {
        p = simd.multiply_add_one(p, r, coefficient);
    }
    let square = r * r;
    let tail = simd.multiply_add_one(exponent, -2.121_944_4e-4, p * r * square);
    let tail = simd.multiply_add_one(square, -0.5, tail);
    let result = simd.multiply_add_one(exponent, 0.693_359_4, r + tail);
    let result = if x == f32::INFINITY { x } else { result };
    let result = if x == 0.0 { f32::NEG_INFINITY } else { result };
    if x >= 0.0 { result } else { f32::NAN }
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: f32) -> f32 {
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    for coefficient in [2.063_908_8e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328_3e-1] {
        p = simd.multiply_add_one(p, square, coefficient);
    }
    let small = simd.multiply_add_one(p * square, x, x);
    let large = (1.0 - 2.0 / (exp_within(simd, 2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() < 0.625 { small } else { large }
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: f32) -> f32 {
    1.0 / (1.0 + exp_within(simd, -x))
}

/// x · sigmoid(x)
#[inline(always)]
pub(crate) fn silu<S: Simd>(simd: S, x: f32) -> f32 {
    x / (1.0 + exp_within(simd, -x))
}

/// The derivative of x · sigmoid(x).
#[inline(always)]
pub(crate) fn silu_slope<S: Simd>(simd: S, x: f32) -> f32 {
    let s = sigmoid(simd, x);
    s * simd.multiply_add_one(x, 1.0 - s, 1.0)
}

/// The error function.
#[inline(always)]
pub(crate) fn erf<S: Simd>(simd: S, x: f32) -> f32 {
    let t = x.abs();
    let s = x * x;
    let mut p = -5.967_617e-4;
    for coefficient in [4.991_194e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1] {
        p = simd.multiply_add_one(p, s, coefficient);
    }
    let small = simd.multiply_add_one(p, x, x);
    // Beyond 4 the result is 1; the polynomial is not meant for it.
    let t = if t > 4.0 { 4.0 } else { t };
    let s = t * t;
    let p = simd.multiply_add_one(-1.728_534_7e-5, t, 3.831_971_3e-4);
    let q = simd.multiply_add_one(-3.883_964_4e-3, t, 2.425_462_2e-2);
    let mut p = simd.multiply_add_one(p, s, q);
    for coefficient in [-1.067_778_8e-1, -6.348_467e-1, -1.287_175_1e-1] {
        p = simd.multiply_add_one(p, t, coefficient);
    }
    let p = simd.multiply_add_one(p, t, -t);
    let large = (1.0 - exp_within(simd, p)).copysign(x);
    if x.abs() > 0.927_734_4 { large } else { small }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::{Kernel, Level};

    struct Each<'a>(&'a [f32], usize);

    impl Kernel for Each<'_> {
        type Output = Vec<f32>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<f32> {
            let mut results = self.0.to_vec();
            for value in &mut results {
                *value = match self.1 {
                    0 => exp(simd, *value),
                    1 => ln(simd, *value),
                    2 => tanh(simd, *value),
                    3 => sigmoid(simd, *value),
                    _ => erf(simd, *value),
                };
            }
            results
        }
    }

    /// The error function in double precision: a series near zero, a continued fraction far away.
    fn exact_erf(x: f64) -> f64 {
        if x.abs() < 3.0 {
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / n as f64;
                sum += term / (2 * n + 1) as f64;
            }
            return sum * std::f64::consts::FRAC_2_SQRT_PI;
        }
        let a = x.abs();
        let fraction = (1..100).rev().fold(a, |fraction, n| a + n as f64 / 2.0 / fraction);
        (1.0 - (-a * a).exp() / fraction / std::f64::consts::PI.sqrt()).copysign(x)
    }

    #[test]
    fn within_a_few_units_in_the_last_place() {
        type Exact = fn(f64) -> f64;
        let functions: [(&str, Exact, f64); 5] = [
            ("exp", f64::exp, 2.0),
            ("ln", f64::ln, 2.0),
            ("tanh", f64::tanh, 2.5),
            ("sigmoid", |x| 1.0 / (1.0 + (-x).exp()), 2.5),
            ("erf", exact_erf, 2.5),
        ];
        // All exponents and signs, some mantissas.
        let mut inputs: Vec<f32> = (0..=u32::MAX / 40_009).map(|n| f32::from_bits(n * 40_009)).collect();
        inputs.extend((0..200_000).map(|n| (n as f32 - 100_000.0) * 1.05e-3));
        for level in Level::available() {
            for (index, (name, exact, limit)) in functions.iter().enumerate() {
                let results = level.run(Each(&inputs, index));
                let mut worst = (0.0, 0.0);
                for (x, y) in inputs.iter().zip(&results) {
                    let expected = exact(f64::from(*x));
                    if expected.is_nan() {
                        assert!(y.is_nan(), "{name}({x}) = {y}");
                        continue;
                    }
                    let rounded = expected as f32;
                    if rounded.is_infinite() || rounded.abs() < 1e-37 {
                        let close = (y - rounded).abs() < 1e-37 || *y == rounded;
                        assert!(close, "{name}({x}) = {y} instead of {rounded}");
                        continue;
                    }
                    let unit =
                        f64::from(f32::from_bits(rounded.abs().to_bits() + 1)) - f64::from(rounded.abs());
                    let error = (f64::from(*y) - expected).abs() / unit;
                    if error > worst.0 || error.is_nan() {
                        worst = (error, *x);
                    }
                }
                assert!(
                    worst.0 <= *limit,
                    "{name} at {}: {} units off at {}",
                    level.name(),
                    worst.0,
                    worst.1
                );
            }
        }
    }
}
