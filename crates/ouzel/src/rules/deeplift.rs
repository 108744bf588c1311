//! DeepLIFT: multipliers that carry the difference of the target from its value at a baseline to the input.

use super::kind::Kind;
use super::{Matcher, Outcome, Rule, RuleSet};
use crate::backprop::{Back, Cotangent, depends_on};
use crate::builder::{Builder, Var};
use crate::error::{Context, Result, bail};
use crate::graph::ValueId;
use crate::op::{Op, OpDef};
use std::collections::HashMap;
use std::sync::Arc;

/// The values of a graph when its inputs are those of a baseline.
#[derive(Clone, Debug)]
pub struct Reference(Arc<HashMap<ValueId, ValueId>>);

impl Reference {
    /// Adds the nodes that depend on the inputs once more, on the baseline: pairs of an input and what takes its place.
    ///
    /// # Errors
    /// If the baseline does not fit the inputs.
    pub fn add(builder: &Builder, baseline: &[(ValueId, ValueId)]) -> Result<Self> {
        let graph = builder.graph().clone();
        let replaced: Vec<ValueId> = baseline.iter().map(|(input, _)| *input).collect();
        let depends = depends_on(&graph, &replaced);
        let mut at: HashMap<ValueId, ValueId> = baseline.iter().copied().collect();
        for node in graph.nodes() {
            let reads = node.inputs.iter().flatten().any(|input| at.contains_key(input));
            if !reads || !node.outputs.iter().any(|output| depends[output.index()]) {
                continue;
            }
            let inputs: Vec<Option<Var>> = (node.inputs.iter())
                .map(|input| input.map(|id| builder.var(at.get(&id).copied().unwrap_or(id))))
                .collect();
            let outputs = builder.apply_all(node.op.clone(), &inputs);
            for (old, new) in node.outputs.iter().zip(outputs) {
                at.insert(*old, new.id().context(|| format!("{} at the baseline", node.title()))?);
            }
        }
        Ok(Self(Arc::new(at)))
    }

    /// The value at the baseline.
    pub fn of<'b>(&self, value: Var<'b>) -> Result<Var<'b>> {
        let id = value.id()?;
        Ok(value.builder().var(self.0.get(&id).copied().unwrap_or(id)))
    }

    fn inputs<'b>(&self, back: &Back<'b>) -> Result<Vec<Option<Var<'b>>>> {
        (0..back.arity()).map(|index| back.optional_x(index).map(|x| self.of(x)).transpose()).collect()
    }
}

/// Places between 0 and 1, and weights, that integrate polynomials up to degree 9 exactly.
const GAUSS_LEGENDRE: [(f64, f64); 5] = [
    (0.046_910_077_030_668, 0.118_463_442_528_094_5),
    (0.230_765_344_947_158_45, 0.239_314_335_249_683_24),
    (0.5, 0.284_444_444_444_444_44),
    (0.769_234_655_052_841_6, 0.239_314_335_249_683_24),
    (0.953_089_922_969_332, 0.118_463_442_528_094_5),
];

/// Differences smaller than this count as none: there the multiplier is the gradient.
const SMALLEST_DIFFERENCE: f64 = 1e-10;

/// The rules of DeepLIFT (Rescale) for a baseline.
///
/// **Formula.** A cotangent is a multiplier `m`: `m · (x - x⁰)` of all inputs adds up to `m · (y - y⁰)` of the output, at
/// every node. Linear functions have their gradient; a function of single elements `(y - y⁰) / (x - x⁰)`; a product its
/// gradient half way between input and baseline; a maximum gives what it gained to its place at the input and what it
/// lost to its place at the baseline; softmax is `exp`, sum and quotient. Any other node has its mean gradient on the way
/// from baseline to input, by a quadrature of five points, which keeps the sum as well as that is exact.
///
/// **Source.** Shrikumar et al. 2017, "Learning important features through propagating activation differences".
pub fn rescale(reference: &Reference) -> RuleSet {
    let of = |kinds: &[Kind]| Matcher::kind(kinds.iter().copied());
    let own = |rule: DifferenceRule| -> Arc<dyn Rule> {
        Arc::new(Difference { reference: reference.clone(), rule })
    };
    let linear = [
        Kind::Convolution,
        Kind::Dense,
        Kind::Sum,
        Kind::Scaling,
        Kind::Average,
        Kind::BatchNormalization,
        Kind::Movement,
    ];
    let self_gated = Matcher::op("Mul").and(of(&[Kind::Activation]));
    RuleSet::new()
        .with(of(&linear), Arc::new(super::TrueGradient))
        .with(of(&[Kind::Product, Kind::Gate]), own(DifferenceRule::Halfway))
        .with(self_gated, own(DifferenceRule::Halfway))
        .with(of(&[Kind::Activation]), own(DifferenceRule::Rescale))
        .with(of(&[Kind::Quotient]), own(DifferenceRule::Quotient))
        .with(of(&[Kind::Maximum]), own(DifferenceRule::Maximum))
        .with(of(&[Kind::Softmax]), own(DifferenceRule::Softmax))
        .with(Matcher::Any, own(DifferenceRule::Path))
}

/// How a multiplier passes a kind of node.
#[derive(Clone, Copy, Debug)]
enum DifferenceRule {
    Rescale,
    Halfway,
    Quotient,
    Maximum,
    Softmax,
    Path,
}

#[derive(Debug)]
struct Difference {
    reference: Reference,
    rule: DifferenceRule,
}

impl Rule for Difference {
    fn name(&self) -> &str {
        match self.rule {
            DifferenceRule::Rescale => "rescale",
            DifferenceRule::Halfway => "halfway",
            DifferenceRule::Quotient => "quotient",
            DifferenceRule::Maximum => "maximum",
            DifferenceRule::Softmax => "softmax",
            DifferenceRule::Path => "path",
        }
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        let at = self.reference.inputs(back)?;
        let cotangents = match self.rule {
            DifferenceRule::Rescale => {
                let Some(index) = (0..back.arity()).find(|&index| back.varies(index)) else {
                    return Ok(Outcome::Default);
                };
                let gradient = back.vjp()?;
                let Some(Cotangent::Flows(gradient)) = gradient.get(index).copied() else {
                    return Ok(Outcome::Applied(gradient));
                };
                let (x, y) = (back.x(index), back.y(0));
                let dx = x - at[index].expect("invariant: an input that varies is there");
                let dy = y - self.reference.of(y)?;
                let multiplier = ratio(back.g(0) * dy, dx, gradient);
                back.each_wanted(|_| multiplier)
            }
            DifferenceRule::Halfway => {
                let middle: Vec<Option<Var>> = (0..back.arity())
                    .map(|index| back.optional_x(index).zip(at[index]).map(|(x, x0)| halfway(x, x0)))
                    .collect();
                back.at(middle).vjp()?
            }
            DifferenceRule::Quotient => {
                let (a, s, m) = (back.x(0), back.x(1), back.g(0));
                let (a0, s0) = (self.reference.of(a)?, self.reference.of(s)?);
                let (over_s, over_s0) = (s.reciprocal(), s0.reciprocal());
                back.each_wanted(|index| match index {
                    0 => m * halfway(over_s, over_s0),
                    _ => -(m * halfway(a, a0) * over_s * over_s0),
                })
            }
            DifferenceRule::Maximum => {
                let (y, m) = (back.y(0), back.g(0));
                let y0 = self.reference.of(y)?;
                let most = y.maximum(y0);
                let least = y.minimum(y0);
                let (gained, lost) = match back.op() {
                    // What a minimum loses it loses at its place at the input.
                    Op::Min(_) | Op::ReduceMin(_) => (least - y0, y - least),
                    _ => (most - y0, y - most),
                };
                let here = back.vjp_of(vec![Some(m * gained)])?;
                let there = back.at(at.clone()).vjp_of(vec![Some(m * lost)])?;
                let mut cotangents = here;
                for (index, other) in there.into_iter().enumerate() {
                    if let (Cotangent::Flows(here), Cotangent::Flows(there)) = (cotangents[index], other) {
                        let x = back.x(index);
                        let (here, there) = (here.unbroadcast(x), there.unbroadcast(x));
                        let dx = x - self.reference.of(x)?;
                        let none = dx.scalar_like(0.0);
                        cotangents[index] = Cotangent::Flows(ratio(here + there, dx, none));
                    }
                }
                cotangents
            }
            DifferenceRule::Softmax => {
                let multiplier = self.softmax(back)?;
                back.each_wanted(|_| multiplier)
            }
            DifferenceRule::Path => {
                let mut sums: Vec<Cotangent> = back.stops("it has no gradient");
                for (place, weight) in GAUSS_LEGENDRE {
                    let there = (0..back.arity()).map(|index| {
                        let between = |(x, x0): (Var<'b>, Var<'b>)| x0 + (x - x0) * place;
                        match back.varies(index) {
                            true => back.optional_x(index).zip(at[index]).map(between),
                            false => back.optional_x(index),
                        }
                    });
                    for (sum, part) in sums.iter_mut().zip(back.at(there.collect()).vjp()?) {
                        *sum = match (*sum, part) {
                            (Cotangent::Flows(sum), Cotangent::Flows(part)) => {
                                Cotangent::Flows(sum + part * weight)
                            }
                            (_, Cotangent::Flows(part)) => Cotangent::Flows(part * weight),
                            (_, other) => other,
                        };
                    }
                }
                sums
            }
        };
        Ok(Outcome::Applied(cotangents))
    }
}

impl Difference {
    /// Softmax is `e / Σ e`, its logarithm `x - ln Σ e`, with `e = exp(x - c)` and `c` the largest of both `x`.
    fn softmax<'b>(&self, back: &Back<'b>) -> Result<Var<'b>> {
        let (x, m) = (back.x(0), back.g(0));
        let x0 = self.reference.of(x)?;
        let (axes, logarithm) = match back.op() {
            Op::Softmax(op) => (op.0.axes(x.rank())?, false),
            Op::LogSoftmax(op) => (op.0.axes(x.rank())?, true),
            op => bail!(internal, "{} is not a softmax", op.name()),
        };
        let largest = x.maximum(x0).reduce_max(axes.clone(), true);
        let (e, e0) = ((x - largest).exp(), (x0 - largest).exp());
        let (sum, sum0) = (e.reduce_sum(axes.clone(), true), e0.reduce_sum(axes.clone(), true));
        let of_x = |of_e: Var<'b>| ratio(of_e * (e - e0), x - x0, of_e * e);
        if logarithm {
            let total = m.reduce_sum(axes, true);
            let of_sum = -ratio(total * (sum.ln() - sum0.ln()), sum - sum0, total / sum);
            return Ok(m + of_x(of_sum.expand_like(e)));
        }
        let of_sum = -((m * halfway(e, e0)).reduce_sum(axes, true) / (sum * sum0));
        Ok(of_x(m * halfway(sum.reciprocal(), sum0.reciprocal()) + of_sum))
    }
}

fn halfway<'b>(a: Var<'b>, b: Var<'b>) -> Var<'b> {
    match a.id().ok() == b.id().ok() {
        true => a,
        false => (a + b) * 0.5,
    }
}

/// `change / difference`, and `otherwise` where there is next to no difference.
fn ratio<'b>(change: Var<'b>, difference: Var<'b>, otherwise: Var<'b>) -> Var<'b> {
    let is_small = difference.abs().less(SMALLEST_DIFFERENCE);
    let divisor = difference.scalar_like(1.0).select(is_small, difference);
    otherwise.select(is_small, change / divisor)
}
