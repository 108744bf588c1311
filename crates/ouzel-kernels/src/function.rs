//! Elementary functions of groups of numbers, without branches; accurate to about two units in the last place.

use crate::group::{Group, MOST_LANES};
use crate::vector::Simd;
use std::f32::consts::LOG2_E;

/// 1.5 · 2²³: adding it rounds a float to an integer, which then stands in its low bits.
const ROUNDING: f32 = 12_582_912.0;

/// ln 2 in two parts, the first with enough zeros at its end that its product with an exponent is exact.
const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];

/// e to the power of x.
#[inline(always)]
pub(crate) fn exp<S: Simd>(x: Group<S>) -> Group<S> {
    // Beyond these the result is infinite or zero.
    let x = x.at_most(90.0).at_least(-105.0);
    let (p, shifted) = exp_parts(x);
    // In two steps, because 2ⁿ alone may be out of range where the result is not.
    let n = shifted - ROUNDING;
    let half = n.times_plus(0.5, ROUNDING);
    let rest = n - (half - ROUNDING) + ROUNDING;
    p * half.power_of_two() * rest.power_of_two()
}

/// e to the power of x for -86 <= x <= 88; the nearest of these where x is none of them.
#[inline(always)]
fn exp_within<S: Simd>(x: Group<S>) -> Group<S> {
    let (p, shifted) = exp_parts(x.at_most(88.0).at_least(-86.0));
    p * shifted.power_of_two()
}

/// p and an integer n in the low bits of a float, such that e to the power of x is p · 2ⁿ.
#[inline(always)]
fn exp_parts<S: Simd>(x: Group<S>) -> (Group<S>, Group<S>) {
    let shifted = x.times_plus(LOG2_E, ROUNDING);
    let rounded = shifted - ROUNDING;
    let r = rounded.multiply_add(splat(x, -LN_2[0]), x);
    let r = rounded.multiply_add(splat(x, -LN_2[1]), r);
    // Pairs of coefficients first, which do not wait for each other.
    let square = r * r;
    let p = square.multiply_add(splat(x, 1.381_454e-3), r.times_plus(8.368_745e-3, 4.166_839e-2));
    let p = p.multiply_add(square, r.times_plus(1.666_652_1e-1, 0.5));
    (p.multiply_add(square, r) + 1.0, shifted)
}

/// A group of equal numbers.
#[inline(always)]
fn splat<S: Simd>(like: Group<S>, value: f32) -> Group<S> {
    Group::splat(like.simd(), value)
}

/// A polynomial, the coefficient of the highest power first.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(x: Group<S>, coefficients: [f32; N]) -> Group<S> {
    let mut p = splat(x, coefficients[0]);
    for coefficient in &coefficients[1..] {
        p = p.multiply_add(x, splat(x, *coefficient));
    }
    p
}

/// The natural logarithm.
#[inline(always)]
pub(crate) fn ln<S: Simd>(x: Group<S>) -> Group<S> {
    let is_tiny = |yes, no| x.if_greater(f32::MIN_POSITIVE.next_down(), no, yes);
    let (mantissa, exponent) = is_tiny(x * 8_388_608.0, x).split();
    let exponent = exponent - is_tiny(splat(x, 23.0), splat(x, 0.0));
    let r = mantissa - 1.0;
    let p = polynomial(
        r,
        [
            7.037_683_6e-2,
            -1.151_461e-1,
            1.167_699_9e-1,
            -1.242_014_1e-1,
            1.424_932_3e-1,
            -1.666_805_7e-1,
            2.000_071_5e-1,
            -2.499_999_4e-1,
            3.333_333e-1,
        ],
    );
    let square = r * r;
    let tail = exponent.multiply_add(splat(x, LN_2[1]), p * r * square);
    let tail = square.multiply_add(splat(x, -0.5), tail);
    let result = exponent.multiply_add(splat(x, LN_2[0]), r + tail);
    // Infinity stays; the logarithm of zero is -∞, that of what is less or not a number is none.
    let result = x.if_greater(f32::MAX, x, result);
    let of_no_positive = (0.0 - x).if_greater(0.0, splat(x, f32::NAN), splat(x, f32::NEG_INFINITY)) + x;
    x.if_greater(0.0, result, of_no_positive)
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(x: Group<S>) -> Group<S> {
    let square = x * x;
    let p = polynomial(
        square,
        [-5.704_988_7e-3, 2.063_908_8e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328_3e-1],
    );
    let small = (p * square).multiply_add(x, x);
    let large = (1.0 - 2.0 / (exp_within(x.absolute() * 2.0) + 1.0)).with_sign_of(x);
    x.absolute().if_greater(0.625, large, small)
}

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(x: Group<S>) -> Group<S> {
    1.0 / (exp_within(0.0 - x) + 1.0)
}

/// x · sigmoid(x)
#[inline(always)]
pub(crate) fn silu<S: Simd>(x: Group<S>) -> Group<S> {
    x / (exp_within(0.0 - x) + 1.0)
}

/// The derivative of x · sigmoid(x).
#[inline(always)]
pub(crate) fn silu_slope<S: Simd>(x: Group<S>) -> Group<S> {
    let s = sigmoid(x);
    s * x.multiply_add(1.0 - s, splat(x, 1.0))
}

/// The error function.
#[inline(always)]
pub(crate) fn erf<S: Simd>(x: Group<S>) -> Group<S> {
    let p = polynomial(
        x * x,
        [-5.967_617e-4, 4.991_194e-3, -2.676_813_5e-2, 1.128_199_25e-1, -3.761_253_4e-1, 1.283_791_7e-1],
    );
    let small = p.multiply_add(x, x);
    // Beyond 4 the result is 1; the polynomial is not meant for it.
    let t = x.absolute().at_most(4.0);
    let p = t.times_plus(-1.728_534_7e-5, 3.831_971_3e-4);
    let q = t.times_plus(-3.883_964_4e-3, 2.425_462_2e-2);
    let mut p = p.multiply_add(t * t, q);
    for coefficient in [-1.067_778_8e-1, -6.348_467e-1, -1.287_175_1e-1] {
        p = p.multiply_add(t, splat(x, coefficient));
    }
    let p = p.multiply_add(t, 0.0 - t);
    let large = (1.0 - exp_within(p)).with_sign_of(x);
    x.absolute().if_greater(0.927_734_4, large, small)
}

/// Applies a function to each of some numbers.
#[inline(always)]
pub(crate) fn each<S: Simd>(simd: S, values: &mut [f32], function: impl Fn(Group<S>) -> Group<S>) {
    let mut rest = [0.0; MOST_LANES];
    for values in values.chunks_mut(Group::<S>::LANES) {
        let count = values.len();
        if count == Group::<S>::LANES {
            function(Group::load(simd, values)).store(values);
        } else {
            rest[..count].copy_from_slice(values);
            function(Group::load(simd, &rest)).store(&mut rest);
            values.copy_from_slice(&rest[..count]);
        }
    }
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
            match self.1 {
                0 => each(simd, &mut results, exp),
                1 => each(simd, &mut results, ln),
                2 => each(simd, &mut results, tanh),
                3 => each(simd, &mut results, sigmoid),
                _ => each(simd, &mut results, erf),
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
