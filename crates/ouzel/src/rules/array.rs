//! A user's rule as a closure over arrays: easy to write, opaque to the graph.

use super::{Outcome, Rule};
use crate::backprop::{Back, Cotangents};
use crate::error::{Result, bail};
use crate::graph::Fact;
use crate::op::{Custom, Inputs, Op, OpDef};
use crate::tensor::{DType, Tensor};
use ndarray::ArrayD;
use std::fmt;
use std::sync::Arc;

type Function = dyn Fn(&ArrayD<f64>, &ArrayD<f64>, &ArrayD<f64>) -> ArrayD<f64> + Send + Sync;

/// A rule that computes the cotangent of a node's first input from arrays: `(x, y, g) -> new g`.
///
/// The closure sees float64 whatever the network computes in. The result must have the shape of `x`. Such a rule
/// cannot be saved as an ONNX file nor differentiated again.
///
/// ```
/// use ouzel::rules::{ArrayRule, Matcher, RuleSet};
/// let clipped = ArrayRule::new("clipped", |_x, y, g| {
///     ndarray::Zip::from(y).and(g).map_collect(|&y, &g| if y > 0.0 { g.clamp(-1.0, 1.0) } else { 0.0 })
/// });
/// let rules = RuleSet::new().with(Matcher::op("Relu"), clipped);
/// # assert_eq!(rules.len(), 1);
/// ```
#[derive(Clone)]
pub struct ArrayRule {
    name: String,
    function: Arc<Function>,
}

impl ArrayRule {
    /// Wraps the closure.
    #[expect(clippy::new_ret_no_self, reason = "rule sets hold shared rules")]
    pub fn new(
        name: &str,
        function: impl Fn(&ArrayD<f64>, &ArrayD<f64>, &ArrayD<f64>) -> ArrayD<f64> + Send + Sync + 'static,
    ) -> Arc<dyn Rule> {
        Arc::new(Self { name: name.to_owned(), function: Arc::new(function) })
    }
}

impl fmt::Debug for ArrayRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Rule for ArrayRule {
    fn name(&self) -> &str {
        &self.name
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        let op = Op::Custom(Custom(Arc::new(self.clone())));
        let cotangent = back.builder().apply(op, &[back.x(0), back.y(0), back.g(0)]);
        Ok(Outcome::Applied(back.only_first(cotangent)))
    }
}

impl OpDef for ArrayRule {
    fn name(&self) -> &str {
        &self.name
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let (x, y, g) = (x.get(0)?, x.get(1)?, x.get(2)?);
        let result = (self.function)(&x.to_f64(), &y.to_f64(), &g.to_f64());
        if result.shape() != x.shape() {
            bail!(
                shape,
                "the rule '{}' returned shape {:?}, expected that of the node's input, {:?}",
                self.name,
                result.shape(),
                x.shape()
            );
        }
        Ok(vec![match x.dtype() {
            DType::F64 => Tensor::from(result),
            other => Tensor::from(result).cast(other),
        }])
    }

    fn vjp<'b>(&self, _: &Back<'b>) -> Result<Cotangents<'b>> {
        bail!(unsupported, "the rule '{}' is a closure over arrays and cannot be differentiated", self.name)
    }
}
