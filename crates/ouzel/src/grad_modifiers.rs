//! Grad modifiers: what is done to a gradient before it becomes a map.

use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::error::{Result, bail};
use crate::graph::Fact;
use crate::op::{Custom, Inputs, Op, OpDef};
use crate::tensor::Tensor;
use ndarray::ArrayD;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// keras-vis's small constant: keeps `invert` and `small_values` off the pole at a gradient of 0.
const EPSILON: f64 = 1e-7;

type Function = dyn Fn(ArrayD<f64>) -> ArrayD<f64> + Send + Sync;

/// What is done to the gradient before channels are reduced and the map is normalised.
///
/// | name | formula | answers |
/// |---|---|---|
/// | `none` | `g` | what raises the target (bright) and what lowers it (dark) |
/// | `absolute` | `abs(g)` | what matters, either way; the default for saliency |
/// | `negate` | `-g` | what lowers the target |
/// | `relu` | `max(g, 0)` | what raises the target |
/// | `invert` | `1 / (g + ε)` | not symmetric, with a pole at `g = -ε`; kept for keras-vis |
/// | `small_values` | `abs(1 / (g + ε))` | what keeps the target as it is |
///
/// `ε` is 1e-7. A gradient of exactly 0 becomes 1e7 under `small_values`, so its map is nearly binary.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum GradModifier {
    /// `g`.
    None,
    /// `abs(g)`.
    #[default]
    Absolute,
    /// `-g`.
    Negate,
    /// `max(g, 0)`.
    Relu,
    /// `1 / (g + ε)`.
    Invert,
    /// `abs(1 / (g + ε))`.
    SmallValues,
    /// A function of the whole gradient, batch and channels included, with its name.
    Custom(String, Arc<Function>),
}

/// The named modifiers.
const TABLE: &[(&str, GradModifier)] = &[
    ("none", GradModifier::None),
    ("absolute", GradModifier::Absolute),
    ("negate", GradModifier::Negate),
    ("relu", GradModifier::Relu),
    ("invert", GradModifier::Invert),
    ("small_values", GradModifier::SmallValues),
];

impl GradModifier {
    /// The names of all modifiers.
    pub fn names() -> impl Iterator<Item = &'static str> {
        TABLE.iter().map(|(name, _)| *name)
    }

    /// A user's own function of the whole gradient.
    ///
    /// ```
    /// use ouzel::GradModifier;
    /// let squared = GradModifier::custom("squared", |g| g.mapv(|g| g * g));
    /// assert_eq!(squared.apply(ndarray::arr1(&[-2.0]).into_dyn())[[0]], 4.0);
    /// ```
    pub fn custom(name: &str, function: impl Fn(ArrayD<f64>) -> ArrayD<f64> + Send + Sync + 'static) -> Self {
        Self::Custom(name.to_owned(), Arc::new(function))
    }

    /// The modifier's name.
    pub fn name(&self) -> &str {
        match self {
            Self::None => "none",
            Self::Absolute => "absolute",
            Self::Negate => "negate",
            Self::Relu => "relu",
            Self::Invert => "invert",
            Self::SmallValues => "small_values",
            Self::Custom(name, _) => name,
        }
    }

    /// The modified gradient.
    pub fn apply(&self, gradient: ArrayD<f64>) -> ArrayD<f64> {
        match self {
            Self::None => gradient,
            Self::Absolute => gradient.mapv_into(f64::abs),
            Self::Negate => gradient.mapv_into(|g| -g),
            Self::Relu => gradient.mapv_into(|g| g.max(0.0)),
            Self::Invert => gradient.mapv_into(|g| 1.0 / (g + EPSILON)),
            Self::SmallValues => gradient.mapv_into(|g| (1.0 / (g + EPSILON)).abs()),
            Self::Custom(_, function) => function(gradient),
        }
    }

    /// The modified gradient as nodes of a graph; a user's own function is one that cannot be saved.
    pub(crate) fn nodes<'b>(&self, gradient: Var<'b>) -> Var<'b> {
        match self {
            Self::None => gradient,
            Self::Absolute => gradient.abs(),
            Self::Negate => -gradient,
            Self::Relu => gradient.relu(),
            Self::Invert => (gradient + EPSILON).reciprocal(),
            Self::SmallValues => (gradient + EPSILON).reciprocal().abs(),
            Self::Custom(..) => {
                gradient.builder().apply(Op::Custom(Custom(Arc::new(self.clone()))), &[gradient])
            }
        }
    }

    /// True if the modifier has a pole at a gradient of 0, and so shows where it is exactly 0.
    pub(crate) fn has_pole(&self) -> bool {
        matches!(self, Self::Invert | Self::SmallValues)
    }

    /// True if modified values may be negative, so that a picture of them needs two colours.
    pub fn is_signed(&self) -> bool {
        matches!(self, Self::None | Self::Negate | Self::Invert | Self::Custom(..))
    }
}

/// As a node: a function of arrays, which is not differentiated.
impl OpDef for GradModifier {
    fn name(&self) -> &str {
        self.name()
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let x = x.get(0)?;
        let modified = self.apply(x.to_f64());
        if modified.shape() != x.shape() {
            bail!(
                option,
                "the grad modifier '{self}' returned shape {:?}, expected {:?}",
                modified.shape(),
                x.shape()
            );
        }
        Ok(vec![Tensor::from(modified).cast(x.dtype())])
    }

    fn vjp<'b>(&self, _: &Back<'b>) -> Result<Cotangents<'b>> {
        bail!(unsupported, "the grad modifier '{self}' is a function of arrays and cannot be differentiated")
    }
}

impl FromStr for GradModifier {
    type Err = crate::Error;

    fn from_str(name: &str) -> Result<Self> {
        let plain = name.replace('-', "_");
        match TABLE.iter().find(|(known, _)| *known == plain) {
            Some((_, modifier)) => Ok(modifier.clone()),
            None => {
                let names: Vec<&str> = Self::names().collect();
                bail!(option, "unknown grad modifier '{name}': expected one of {}", names.join(", "))
            }
        }
    }
}

impl fmt::Display for GradModifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for GradModifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_formulas_are_those_of_keras_vis() {
        let g = ndarray::arr1(&[-3.0, 0.0, 0.5]).into_dyn();
        let apply =
            |name: &str| name.parse::<GradModifier>().unwrap().apply(g.clone()).into_raw_vec_and_offset().0;
        assert_eq!(apply("none"), [-3.0, 0.0, 0.5]);
        assert_eq!(apply("absolute"), [3.0, 0.0, 0.5]);
        assert_eq!(apply("negate"), [3.0, 0.0, -0.5]);
        assert_eq!(apply("relu"), [0.0, 0.0, 0.5]);
        assert_eq!(apply("invert"), [1.0 / (-3.0 + 1e-7), 1e7, 1.0 / (0.5 + 1e-7)]);
        assert_eq!(apply("small-values"), [1.0 / (3.0 - 1e-7), 1e7, 1.0 / (0.5 + 1e-7)]);
        assert!("loud".parse::<GradModifier>().unwrap_err().to_string().contains("small_values"));
    }
}
