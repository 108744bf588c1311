//! Activation functions: what backprop modifiers are about, so each keeps its identity.

use super::broadcast::{broadcast_shapes, map, zip};
use super::elementwise::{Unary, unary_ops};
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef, Real};
use crate::tensor::{Float, Tensor, each_float};

#[cfg(test)]
fn away_from_zero() -> crate::gradient_check::Domain {
    floats(-3.0, 3.0).away_from(0.0, 0.1)
}

unary_ops! {
    /// `y = max(x, 0)`. The derivative at 0 is 0.
    Relu: |x| if x > T::zero() || x.is_nan() { x } else { T::zero() },
        |b| Some(b.g(0).select_where(b.y(0).greater(0.0))), away_from_zero(), integer |x| x.max(0);
    /// `y = 1 / (1 + e⁻ˣ)`.
    Sigmoid: |x| sigmoid(x), |b| Some(b.g(0) * b.y(0) * (-b.y(0) + 1.0)), floats(-3.0, 3.0);
    /// The hyperbolic tangent.
    Tanh: |x| x.tanh(), |b| Some(b.g(0) * (-(b.y(0) * b.y(0)) + 1.0)), floats(-2.0, 2.0);
    /// `y = x · max(0, min(1, x/6 + 1/2))`.
    HardSwish: |x| x * hard_sigmoid(x, T::of(1.0 / 6.0), T::of(0.5)),
        |b| {
            let gate = b.x(0) * (1.0 / 6.0) + 0.5;
            let inside = gate.greater(0.0).and(gate.less(1.0));
            let clipped = gate.maximum(0.0).minimum(1.0);
            Some(b.g(0) * (clipped + (b.x(0) * (1.0 / 6.0)).select_where(inside)))
        },
        floats(-4.0, 4.0).away_from(3.0, 0.1).away_from(-3.0, 0.1),
        before 14 |x| x * (x * (1.0 / 6.0) + 0.5).maximum(0.0).minimum(1.0);
    /// `y = x · tanh(ln(1 + eˣ))`.
    Mish: |x| x * softplus(x).tanh(),
        |b| {
            let t = b.builder().apply(Softplus, &[b.x(0)]).tanh();
            Some(b.g(0) * (t + b.x(0) * b.x(0).sigmoid() * (-(t * t) + 1.0)))
        },
        floats(-3.0, 3.0), before 18 |x| x * x.builder().apply(Softplus, &[x]).tanh();
    /// `y = ln(1 + eˣ)`.
    Softplus: |x| softplus(x), |b| Some(b.g(0) * b.x(0).sigmoid()), floats(-3.0, 3.0);
    /// `y = x / (1 + |x|)`.
    Softsign: |x| x / (T::one() + x.abs()),
        |b| {
            let scale = b.x(0).abs() + 1.0;
            Some(b.g(0) / (scale * scale))
        },
        away_from_zero();
}

fn sigmoid<T: Float>(x: T) -> T {
    (T::one() + (-x).exp()).recip()
}

fn softplus<T: Float>(x: T) -> T {
    x.max(T::zero()) + (-x.abs()).exp().ln_1p()
}

fn hard_sigmoid<T: Float>(x: T, alpha: T, beta: T) -> T {
    (alpha * x + beta).max(T::zero()).min(T::one())
}

/// Declares activation functions whose only attributes are numbers with defaults.
macro_rules! activations {
    ($($(#[$doc:meta])* $Name:ident { $($(#[$field_doc:meta])* $field:ident: $default:expr),+ }
        |$self:ident, $x:ident| $value:expr, |$s:ident, $b:ident| $cotangent:expr, $domain:expr
        $(, in other ops |$l:ident, $v:ident| $lowered:expr)?;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $Name {
            $($(#[$field_doc])* pub $field: Real,)+
        }

        impl Unary for $Name {
            const NAME: &'static str = stringify!($Name);

            fn value<T: Float>(&$self, $x: T) -> T {
                $value
            }

            fn cotangent<'b>(&$s, $b: &Back<'b>) -> Option<Var<'b>> {
                Some($cotangent)
            }

            fn write(&self, node: &mut NodeWriter) {
                $(node.float(stringify!($field), self.$field.0);)+
            }

            $(fn lower<'b>(&$l, $v: Var<'b>, _opset: i64) -> Option<Var<'b>> {
                Some($lowered)
            })?
        }

        impl Listed for $Name {
            const ONNX: &'static [&'static str] = &[stringify!($Name)];

            fn read(node: &mut NodeReader) -> Result<Self> {
                node.ignore("consumed_inputs");
                Ok(Self { $($field: Real(node.float_or(stringify!($field), $default)?),)+ })
            }

            #[cfg(test)]
            fn samples() -> Vec<Sample> {
                vec![Sample::new($Name { $($field: Real($default),)+ }, [$domain.input(&[2, 3])])]
            }
        }
    )* };
}

activations! {
    /// `y = x` where x > 0, else `alpha · x`.
    LeakyRelu {
        /// The slope on the left.
        alpha: 0.01f32.into()
    } |self, x| if x < T::zero() { x * T::of(self.alpha.0) } else { x },
        |self, b| b.g(0).select(b.x(0).greater(0.0), b.g(0) * self.alpha.0), away_from_zero();
    /// `y = x` where x > alpha, else 0.
    ThresholdedRelu {
        /// The threshold.
        alpha: 1.0
    } |self, x| if x > T::of(self.alpha.0) { x } else { T::zero() },
        |self, b| b.g(0).select_where(b.x(0).greater(self.alpha.0)), floats(-3.0, 3.0).away_from(1.0, 0.1);
    /// `y = x` where x > 0, else `alpha · (eˣ - 1)`.
    Elu {
        /// The value that is approached on the left, negated.
        alpha: 1.0
    } |self, x| if x > T::zero() { x } else { T::of(self.alpha.0) * x.exp_m1() },
        |self, b| b.g(0).select(b.x(0).greater(0.0), b.g(0) * (b.y(0) + self.alpha.0)), away_from_zero();
    /// `y = gamma · x` where x > 0, else `gamma · alpha · (eˣ - 1)`.
    Selu {
        /// The value that is approached on the left, before scaling, negated.
        alpha: 1.673_263_2f32.into(),
        /// The scale.
        gamma: 1.050_701f32.into()
    } |self, x| {
        let y = if x > T::zero() { x } else { T::of(self.alpha.0) * x.exp_m1() };
        y * T::of(self.gamma.0)
    },
        |self, b| {
            let left = b.y(0) + self.alpha.0 * self.gamma.0;
            b.g(0) * (b.g(0).scalar_like(self.gamma.0).select(b.x(0).greater(0.0), left))
        }, away_from_zero();
    /// `y = max(0, x) + min(0, alpha · (e^(x/alpha) - 1))`.
    Celu {
        /// The value that is approached on the left, negated.
        alpha: 1.0
    } |self, x| {
        let alpha = T::of(self.alpha.0);
        if x > T::zero() { x } else { alpha * (x / alpha).exp_m1() }
    },
        |self, b| b.g(0).select(b.x(0).greater(0.0), b.g(0) * (b.y(0) * (1.0 / self.alpha.0) + 1.0)),
        away_from_zero();
    /// `y = max(0, min(1, alpha · x + beta))`.
    HardSigmoid {
        /// The slope.
        alpha: 0.2f32.into(),
        /// The value at 0.
        beta: 0.5
    } |self, x| hard_sigmoid(x, T::of(self.alpha.0), T::of(self.beta.0)),
        |self, b| (b.g(0) * self.alpha.0).select_where(b.y(0).greater(0.0).and(b.y(0).less(1.0))),
        floats(-4.0, 4.0).away_from(2.5, 0.1).away_from(-2.5, 0.1);
    /// `y = x / (1 + e^(-alpha·x))`, also known as SiLU.
    Swish {
        /// The steepness of the gate.
        alpha: 1.0
    } |self, x| x * sigmoid(x * T::of(self.alpha.0)),
        |self, b| {
            let gate = (b.x(0) * self.alpha.0).sigmoid();
            b.g(0) * gate * (b.x(0) * (-gate + 1.0) * self.alpha.0 + 1.0)
        }, floats(-3.0, 3.0),
        in other ops |self, x| x * (if self.alpha.0 == 1.0 { x } else { x * self.alpha.0 }).sigmoid();
}

/// `y = x · Φ(x)` with the normal distribution function Φ, exact or by its tanh approximation. ONNX 20.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Gelu {
    /// `0.5 · x · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))` instead of the exact form.
    pub tanh: bool,
}

/// √(2/π).
const ROOT_2_OVER_PI: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
const GELU_CUBIC: f64 = 0.044715;

impl Unary for Gelu {
    const NAME: &'static str = "Gelu";

    fn value<T: Float>(&self, x: T) -> T {
        let inner = match self.tanh {
            true => (T::of(ROOT_2_OVER_PI) * (x + T::of(GELU_CUBIC) * x * x * x)).tanh(),
            false => (x * T::of(std::f64::consts::FRAC_1_SQRT_2)).erf(),
        };
        T::of(0.5) * x * (T::one() + inner)
    }

    fn cotangent<'b>(&self, back: &Back<'b>) -> Option<Var<'b>> {
        let (x, g) = (back.x(0), back.g(0));
        let square = x * x;
        Some(match self.tanh {
            true => {
                let t = ((x + square * x * GELU_CUBIC) * ROOT_2_OVER_PI).tanh();
                let slope = (square * (3.0 * GELU_CUBIC) + 1.0) * ROOT_2_OVER_PI;
                g * ((t + 1.0) * 0.5 + x * 0.5 * (-(t * t) + 1.0) * slope)
            }
            false => {
                let distribution = ((x * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
                let density = (square * -0.5).exp() * (ROOT_2_OVER_PI * 0.5);
                g * (distribution + x * density)
            }
        })
    }

    fn write(&self, node: &mut NodeWriter) {
        if self.tanh {
            node.string("approximate", "tanh");
        }
    }

    fn lower<'b>(&self, x: Var<'b>, opset: i64) -> Option<Var<'b>> {
        let inner = || match self.tanh {
            true => ((x + x * x * x * GELU_CUBIC) * ROOT_2_OVER_PI).tanh(),
            false => (x * std::f64::consts::FRAC_1_SQRT_2).erf(),
        };
        (opset < 20).then(|| x * (inner() + 1.0) * 0.5)
    }
}

impl Listed for Gelu {
    const ONNX: &'static [&'static str] = &["Gelu"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        match node.string_or("approximate", "none")?.as_str() {
            "none" => Ok(Self { tanh: false }),
            "tanh" => Ok(Self { tanh: true }),
            other => bail!(model, "attribute 'approximate': expected none or tanh, found '{other}'"),
        }
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        [false, true].map(|tanh| Sample::new(Gelu { tanh }, [floats(-3.0, 3.0).input(&[2, 3])])).to_vec()
    }
}

/// `y = x` where x > 0, else `slope · x`; the slope broadcasts to x.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PRelu;

impl OpDef for PRelu {
    fn name(&self) -> &str {
        "PRelu"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (x, slope) = (x.get(0)?, x.get(1)?);
        broadcast_shapes(&x.shape, &slope.shape)?;
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let (x, slope) = (x.get(0)?, x.get(1)?);
        Ok(vec![each_float!(x, x => {
            zip(x, slope.array()?, &|x, slope| if x < num_traits::Zero::zero() { x * slope } else { x })?
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, slope, g) = (back.x(0), back.x(1), back.g(0));
        let positive = x.greater(0.0);
        Ok(back.each_wanted(|index| match index {
            0 => g.select(positive, g * slope),
            _ => (g * x).select_where(!positive),
        }))
    }
}

impl Listed for PRelu {
    const ONNX: &'static [&'static str] = &["PRelu"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        node.ignore("consumed_inputs");
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(PRelu, [away_from_zero().input(&[2, 3, 2]), floats(0.1, 0.5).input(&[3, 1])])]
    }
}

/// `y = min(max(x, lower), upper)`, each bound optional.
///
/// The gradient passes where `lower ≤ x ≤ upper`, as PyTorch's clamp; `Clip(0, 6)` is ReLU6, whose gradient passes
/// strictly between, as in both frameworks. The bounds get no gradient.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Clip;

impl OpDef for Clip {
    fn name(&self) -> &str {
        "Clip"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let fact = x.get(0)?;
        for bound in [x.optional(1), x.optional(2)].into_iter().flatten() {
            if bound.dtype != fact.dtype {
                bail!(shape, "expected bounds of {}, found {}", fact.dtype, bound.dtype);
            }
        }
        Ok(vec![Fact::new(fact.dtype, fact.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        macro_rules! clip {
            ($array:expr, $type:ty) => {{
                let bound = |index: usize| -> Result<Option<$type>> {
                    let bound = x.optional(index).map(Tensor::array::<$type>).transpose()?;
                    Ok(bound.and_then(|bound| bound.first().copied()))
                };
                let (lower, upper) = (bound(1)?, bound(2)?);
                map($array, &|value| {
                    let raised = lower.map_or(value, |lower| if value < lower { lower } else { value });
                    upper.map_or(raised, |upper| if raised > upper { upper } else { raised })
                })
            }};
        }
        Ok(vec![match x.get(0)? {
            Tensor::F32(x) => clip!(x, f32),
            Tensor::F64(x) => clip!(x, f64),
            Tensor::I64(x) => clip!(x, i64),
            Tensor::I32(x) => clip!(x, i32),
            Tensor::I16(x) => clip!(x, i16),
            Tensor::I8(x) => clip!(x, i8),
            Tensor::U64(x) => clip!(x, u64),
            Tensor::U32(x) => clip!(x, u32),
            Tensor::U16(x) => clip!(x, u16),
            Tensor::U8(x) => clip!(x, u8),
            other => bail!(shape, "expected numbers, found {}", other.dtype()),
        }])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, g) = (back.x(0), back.g(0));
        let bound =
            |index: usize| back.optional_x(index).filter(|bound| !bound.shape().iter().any(|dim| dim.is(0)));
        let value = |index: usize| {
            bound(index).and_then(|bound| bound.fact().floats()).and_then(|v| v.first().copied())
        };
        let strict = value(1) == Some(0.0) && value(2) == Some(6.0);
        let mut passing = g;
        if let Some(lower) = bound(1) {
            passing = passing.select_where(if strict { x.greater(lower) } else { x.greater_or_equal(lower) });
        }
        if let Some(upper) = bound(2) {
            passing = passing.select_where(if strict { x.less(upper) } else { x.less_or_equal(upper) });
        }
        Ok(back.only_first(passing))
    }
}

impl Listed for Clip {
    const ONNX: &'static [&'static str] = &["Clip"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        node.ignore("consumed_inputs");
        let bounds = [("min", 1), ("max", 2)];
        for (name, index) in bounds {
            if let Some(bound) = node.float(name)? {
                let dtype = node.required_input(0)?.dtype;
                node.set_input(index, Tensor::scalar(bound).cast(dtype));
            }
        }
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-2.0, 8.0).away_from(0.0, 0.1).away_from(6.0, 0.1).input(&[2, 3]);
        let bound = |value: f64| Tensor::scalar(value).into();
        vec![
            Sample::new(Clip, [x(), bound(0.0), bound(6.0)]),
            Sample::new(Clip, [x(), bound(0.0)]),
            Sample::new(Clip, [x()]),
        ]
    }
}
