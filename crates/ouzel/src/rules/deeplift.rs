//! DeepLIFT: multipliers that carry the difference of the target from its value at a baseline to the input.

use super::kind::Kind;
use super::reveal_cancel::{Beside, Place, RevealCancel};
use super::{Matcher, Outcome, Rule, RuleSet};
use crate::backprop::{Back, Cotangent, Cotangents};
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
        let mut at: HashMap<ValueId, ValueId> = baseline.iter().copied().collect();
        for node in graph.nodes() {
            let reads = node.inputs.iter().flatten().any(|input| at.contains_key(input));
            // Shapes are the same at the baseline.
            if !reads || matches!(node.op, Op::Shape(_) | Op::Size(_)) {
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

    /// True for a value that is another at the baseline.
    pub(super) fn has(&self, value: ValueId) -> bool {
        self.0.contains_key(&value)
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

/// What DeepLIFT does at max pooling and its kin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Maxima {
    /// What a maximum gained goes to its place at the input, what it lost to its place at the baseline: the sum is kept.
    #[default]
    Shared,
    /// The gradient, which does not keep the sum: what Captum 0.9 gives, whose rule for max pooling has no effect.
    Gradient,
}

/// The rules of DeepLIFT (Rescale) for a baseline.
///
/// **Formula.** A cotangent is a multiplier `m`: `m · (x - x⁰)` of all inputs adds up to `m · (y - y⁰)` of the output, at
/// every node. Linear functions have their gradient; a function of single elements `(y - y⁰) / (x - x⁰)`; a product its
/// gradient half way between input and baseline; a quotient that which makes `y · s = a` a product of this kind; a maximum
/// gives what it gained to its place at the input and what it lost to its place at the baseline; softmax is the exponential
/// of its logarithm. None of these multipliers is larger than the gradient at the input or at the baseline can be, however
/// far apart the two are. Any other node has its mean gradient on the way from baseline to input, by a quadrature of five
/// points, which keeps the sum as well as that is exact.
///
/// **Source.** Shrikumar et al. 2017, "Learning important features through propagating activation differences".
pub fn rescale(reference: &Reference, maxima: Maxima) -> RuleSet {
    rules(reference, maxima, RuleSet::new())
}

/// The rules of DeepLIFT with RevealCancel at activations, and Rescale's at everything else.
///
/// **Formula.** With `Δx⁺` the sum of the contributions that raised the input of an activation `f` and `Δx⁻` that of those
/// that lowered it, `Δy⁺ = ½ (f(x⁰ + Δx⁺) - f(x⁰)) + ½ (f(x⁰ + Δx⁺ + Δx⁻) - f(x⁰ + Δx⁻))`, and `Δy⁻` with both exchanged.
/// `Δy⁺ / Δx⁺` is the multiplier of contributions that raised, `Δy⁻ / Δx⁻` that of those that lowered. The contributions are
/// those to the convolution, dense layer, sum or average before the activation; where none stands there, the rule is
/// Rescale.
///
/// **Source.** Shrikumar et al. 2017, "Learning important features through propagating activation differences", section
/// 3.5.3.
pub fn reveal_cancel(reference: &Reference, maxima: Maxima) -> RuleSet {
    let beside = Beside::default();
    let own = |place: Place| -> Arc<dyn Rule> {
        Arc::new(RevealCancel { reference: reference.clone(), place, beside: beside.clone() })
    };
    let linear = Matcher::kind([Kind::Convolution, Kind::Dense, Kind::Sum, Kind::Average]);
    let function = Matcher::predicate("function", |_, node| !matches!(node.op, Op::Mul(_)));
    let first = RuleSet::new()
        .with(linear, own(Place::Linear))
        .with(Matcher::kind([Kind::Activation]).and(function), own(Place::Activation));
    rules(reference, maxima, first)
}

/// The rows of Rescale behind others.
fn rules(reference: &Reference, maxima: Maxima, first: RuleSet) -> RuleSet {
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
    let maximum: Arc<dyn Rule> = match maxima {
        Maxima::Shared => own(DifferenceRule::Maximum),
        Maxima::Gradient => Arc::new(super::TrueGradient),
    };
    first
        .with(of(&linear), Arc::new(super::TrueGradient))
        .with(of(&[Kind::Product, Kind::Gate]), own(DifferenceRule::Halfway))
        .with(self_gated, own(DifferenceRule::Halfway))
        .with(of(&[Kind::Activation]), own(DifferenceRule::Rescale))
        .with(of(&[Kind::Quotient]), own(DifferenceRule::Quotient))
        .with(of(&[Kind::Maximum]), maximum)
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
                rescaled(back, &self.reference, index)?
            }
            DifferenceRule::Halfway => {
                let middle: Vec<Option<Var>> = (0..back.arity())
                    .map(|index| back.optional_x(index).zip(at[index]).map(|(x, x0)| halfway(x, x0)))
                    .collect();
                back.at(middle).vjp()?
            }
            DifferenceRule::Quotient => {
                let (s, y) = (back.x(1), back.y(0));
                let (s0, y0) = (self.reference.of(s)?, self.reference.of(y)?);
                let of_a = back.g(0) / halfway(s, s0);
                back.each_wanted(|index| match index {
                    0 => of_a,
                    _ => -(of_a * halfway(y, y0)),
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
    /// `softmax(x) = exp(l)` with `l = x - ln Σ exp(x)`.
    fn softmax<'b>(&self, back: &Back<'b>) -> Result<Var<'b>> {
        let (x, m) = (back.x(0), back.g(0));
        let x0 = self.reference.of(x)?;
        let (axes, is_logarithm) = match back.op() {
            Op::Softmax(op) => (op.0.axes(x.rank())?, false),
            Op::LogSoftmax(op) => (op.0.axes(x.rank())?, true),
            op => bail!(internal, "{} is not a softmax", op.name()),
        };
        let total = |x: Var<'b>| {
            let largest = x.reduce_max(axes.clone(), true);
            largest + (x - largest).exp().reduce_sum(axes.clone(), true).ln()
        };
        let (sum, sum0) = (total(x), total(x0));
        let (dx, shift) = (x - x0, sum - sum0);
        let of_l = match is_logarithm {
            true => m,
            false => m * back.y(0).maximum(self.reference.of(back.y(0))?) * decrease(dx - shift),
        };
        // The logarithm of a sum of exponentials: its multiplier over theirs.
        let share = (x.maximum(x0) - sum.maximum(sum0)).exp() * decrease(dx) / decrease(shift);
        Ok(of_l - of_l.reduce_sum(axes, true) * share)
    }
}

/// `(1 - exp(-|d|)) / |d|`, which is between 0 and 1, and times the larger of two exponentials is the multiplier of `exp`;
/// written so that nothing cancels.
fn decrease(d: Var) -> Var {
    let d = d.abs();
    ratio(((-d).exp() + 1.0) * (d * 0.5).tanh(), d, d.scalar_like(1.0))
}

/// The Rescale rule at a function of single elements of one input.
pub(super) fn rescaled<'b>(back: &Back<'b>, reference: &Reference, index: usize) -> Result<Cotangents<'b>> {
    let gradient = back.vjp()?;
    let Some(Cotangent::Flows(gradient)) = gradient.get(index).copied() else { return Ok(gradient) };
    let (x, y) = (back.x(index), back.y(0));
    let (dx, dy) = (x - reference.of(x)?, y - reference.of(y)?);
    let multiplier = ratio(back.g(0) * dy, dx, gradient);
    Ok(back.each_wanted(|_| multiplier))
}

fn halfway<'b>(a: Var<'b>, b: Var<'b>) -> Var<'b> {
    match a.id().ok() == b.id().ok() {
        true => a,
        false => (a + b) * 0.5,
    }
}

/// `change / difference`, and `otherwise` where there is next to no difference, or none that is a number.
pub(super) fn ratio<'b>(change: Var<'b>, difference: Var<'b>, otherwise: Var<'b>) -> Var<'b> {
    let is_large = difference.abs().greater_or_equal(SMALLEST_DIFFERENCE);
    (change / difference.select(is_large, 1.0)).select(is_large, otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::evaluate;
    use crate::graph::Fact;
    use crate::op::Real;
    use crate::ops::convolution::Conv;
    use crate::ops::norm::{InstanceNormalization, LayerNormalization};
    use crate::ops::pool::{MaxPool, Pooling};
    use crate::ops::softmax::{LogSoftmax, Normalized};
    use crate::ops::window::Window;
    use crate::tensor::{DType, Tensor};
    use ndarray::{ArrayD, IxDyn};

    fn numbers(shape: &[usize], seed: usize) -> ArrayD<f64> {
        let mut place = seed * 7919;
        ArrayD::from_shape_simple_fn(IxDyn(shape), || {
            place += 1;
            ((place * place * 31 + place * 17) % 1009) as f64 / 504.5 - 1.0
        })
    }

    /// The multipliers times the differences, and what they have to add up to.
    fn contributions(
        rules: fn(&Reference, Maxima) -> RuleSet,
        shape: &[usize],
        build: impl for<'b> Fn(&'b Builder, Var<'b>) -> Var<'b>,
    ) -> (ArrayD<f64>, f64) {
        let builder = Builder::default();
        let fact = || Fact::new(DType::F64, shape.iter().map(|&length| length.into()).collect());
        let (x, x0) = (builder.input("x", fact()), builder.input("x0", fact()));
        let y = build(&builder, x);
        // Weights, so that no symmetry hides a mistake.
        let weights: Vec<usize> = y.shape().iter().map(|dim| dim.known().unwrap() as usize).collect();
        let total = (y * builder.constant(Tensor::from(numbers(&weights, 5)))).sum();
        let [x, x0, total] = [x, x0, total].map(|var| var.id().unwrap());
        let reference = Reference::add(&builder, &[(x, x0)]).unwrap();
        let difference = builder.var(total) - reference.of(builder.var(total)).unwrap();
        let difference = difference.id().unwrap();
        let ones = builder.var(total).scalar_like(1.0).id().unwrap();
        let rules = rules(&reference, Maxima::Shared);
        let back =
            crate::backprop::backward(builder.finish().unwrap(), &[(total, ones)], &[x], &rules).unwrap();
        let given = [(x, Tensor::from(numbers(shape, 1))), (x0, Tensor::from(numbers(shape, 2)))];
        let out = evaluate(&back.graph, &given, &[back.values[0], difference]).unwrap();
        let [(_, x), (_, x0)] = &given;
        (out[0].to_f64() * (x.to_f64() - x0.to_f64()), out[1].to_f64().sum())
    }

    fn assert_complete(
        title: &str,
        limit: f64,
        shape: &[usize],
        build: impl for<'b> Fn(&'b Builder, Var<'b>) -> Var<'b>,
    ) {
        for rules in [rescale, reveal_cancel] {
            let (found, expected) = contributions(rules, shape, &build);
            let gap = (found.sum() - expected).abs();
            assert!(gap <= limit * expected.abs().max(1.0), "{title}: {} for {expected}", found.sum());
            assert!(found.iter().any(|value| *value != 0.0), "{title}");
        }
    }

    #[test]
    fn every_rule_keeps_the_sum() {
        let exact = 1e-12;
        assert_complete("relu", exact, &[2, 5], |_, x| x.relu());
        assert_complete("tanh after exp", exact, &[2, 5], |_, x| x.exp().tanh());
        assert_complete("silu", exact, &[2, 5], |_, x| x * x.sigmoid());
        assert_complete("square", exact, &[2, 5], |_, x| x * x);
        assert_complete("product", exact, &[2, 5], |_, x| x.sigmoid() * x.reduce_sum([1], true));
        assert_complete("matrix product", exact, &[2, 3, 3], |_, x| x.matmul(x.transpose_last_two()));
        assert_complete("quotient", exact, &[2, 5], |_, x| x / (x.exp() + 1.0));
        assert_complete("softmax", exact, &[2, 5], |_, x| x.softmax(1));
        assert_complete("attention", exact, &[2, 3, 3], |_, x| {
            x.matmul(x.transpose_last_two()).softmax(2).matmul(x)
        });
        assert_complete("logarithm of softmax", exact, &[2, 5], |builder, x| {
            builder.apply(LogSoftmax(Normalized { axis: 1, flattened: false }), &[x])
        });
        assert_complete("maximum", exact, &[2, 5], |_, x| x.maximum(-x));
        assert_complete("largest", exact, &[2, 5], |_, x| x.reduce_max([1], false));
        assert_complete("max pooling", exact, &[1, 2, 5, 5], |builder, x| {
            let window = Window::plain(2).with_strides([2, 2]).with_pads([1, 1, 0, 0]);
            let pooling = Pooling { kernel: vec![3, 3], window, ceil_mode: false };
            builder.apply(MaxPool { pooling, column_major: false }, &[x.relu()])
        });
        // Sums of what raises and what lowers, before activations.
        assert_complete("two layers", exact, &[2, 5], |builder, x| {
            let w = |shape: &[usize], seed| builder.constant(Tensor::from(numbers(shape, seed)));
            (x.matmul(w(&[5, 4], 11)) + w(&[4], 12)).relu().matmul(w(&[4, 3], 13)).sigmoid()
        });
        assert_complete("residual", exact, &[2, 3, 4, 4], |builder, x| {
            let w = |seed| builder.constant(Tensor::from(numbers(&[3, 3, 3, 3], seed)));
            let conv = |x, w| {
                let window = Window::plain(2).with_pads([1, 1, 1, 1]);
                builder.apply(Conv { window, group: 1 }, &[x, w])
            };
            let inner = conv(x, w(11)).relu();
            let sum = (conv(inner, w(12)) - x).relu();
            (sum.reduce_mean([2, 3], false) - 0.1).tanh()
        });
        assert_complete("masked softmax", exact, &[2, 5], |builder, x| {
            let mask = ArrayD::from_shape_vec(IxDyn(&[5]), vec![0.0, f64::NEG_INFINITY, 0.0, 0.0, 0.0]);
            (x + builder.constant(Tensor::from(mask.unwrap()))).softmax(1)
        });
        // By quadrature.
        assert_complete("instance normalization", 1e-4, &[2, 3, 4, 4], |builder, x| {
            let vector = || builder.constant(Tensor::from(numbers(&[3], 8)));
            builder.apply(InstanceNormalization { epsilon: Real(1.0) }, &[x, vector(), vector()])
        });
        assert_complete("layer normalization", 1e-4, &[2, 6], |builder, x| {
            let vector = || builder.constant(Tensor::from(numbers(&[6], 8)));
            builder.apply(LayerNormalization { axis: -1, epsilon: Real(1.0) }, &[x, vector(), vector()])
        });
    }

    #[test]
    fn a_rectifier_is_rescaled() {
        let (found, _) = contributions(rescale, &[1, 4], |_, x| x.relu());
        let weights = numbers(&[1, 4], 5);
        let (x, x0) = (numbers(&[1, 4], 1), numbers(&[1, 4], 2));
        let expected = (x.mapv(|v| v.max(0.0)) - x0.mapv(|v| v.max(0.0))) * weights;
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-12, "{found} for {expected}");
        }
    }

    /// The contributions of the inputs of a small network to its output, against a baseline of zeros.
    fn of_two(
        rules: fn(&Reference, Maxima) -> RuleSet,
        at: [f64; 2],
        build: impl for<'b> Fn(&'b Builder, Var<'b>) -> Var<'b>,
    ) -> Vec<f64> {
        let builder = Builder::default();
        let x = builder.input("x", Fact::new(DType::F64, vec![1.into(), 2.into()]));
        let y = build(&builder, x);
        let zeros = x.scalar_like(0.0).expand_like(x);
        let [x, y, zeros] = [x, y, zeros].map(|var| var.id().unwrap());
        let reference = Reference::add(&builder, &[(x, zeros)]).unwrap();
        let ones = builder.var(y).scalar_like(1.0).expand_like(builder.var(y)).id().unwrap();
        let rules = rules(&reference, Maxima::Shared);
        let back = crate::backprop::backward(builder.finish().unwrap(), &[(y, ones)], &[x], &rules).unwrap();
        let input = ArrayD::from_shape_vec(IxDyn(&[1, 2]), at.to_vec()).unwrap();
        let out = evaluate(&back.graph, &[(x, Tensor::from(input.clone()))], &[back.values[0]]).unwrap();
        (out[0].to_f64() * input).into_iter().collect()
    }

    fn column<'b>(builder: &'b Builder, x: Var<'b>, weights: [f64; 2]) -> Var<'b> {
        let weights = ArrayD::from_shape_vec(IxDyn(&[2, 1]), weights.to_vec()).unwrap();
        x.matmul(builder.constant(Tensor::from(weights)))
    }

    fn assert_near(found: &[f64], expected: [f64; 2]) {
        let near = found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-12);
        assert!(near && found.len() == 2, "{found:?} for {expected:?}");
    }

    #[test]
    fn the_examples_of_the_paper() {
        // The smaller of two, as x₁ - relu(x₁ - x₂): section 3.5.3. Both share it; Rescale gives it to one of them.
        let least = |rules, at| {
            of_two(rules, at, |builder, x| {
                column(builder, x, [1.0, 0.0]) - column(builder, x, [1.0, -1.0]).relu()
            })
        };
        assert_near(&least(reveal_cancel, [5.0, 3.0]), [1.5, 1.5]);
        assert_near(&least(rescale, [5.0, 3.0]), [0.0, 3.0]);
        assert_near(&least(reveal_cancel, [3.0, 5.0]), [1.5, 1.5]);
        assert_near(&least(rescale, [3.0, 5.0]), [3.0, 0.0]);
    }

    #[test]
    fn no_multiplier_grows_where_input_and_baseline_lie_far_apart() {
        // At the baseline, zeros, the deviation is a millionth of what it is at the input.
        let normalized = |rules| {
            of_two(rules, [3.0, -2.0], |builder, x| {
                let centred = x - x.reduce_mean([1], true);
                let variance = (centred * centred).reduce_mean([1], true);
                column(builder, centred / (variance + 1e-12).sqrt(), [1.0, 0.0])
            })
        };
        let attention =
            |rules| of_two(rules, [3000.0, -2000.0], |builder, x| column(builder, x.softmax(1), [1.0, 0.0]));
        for rules in [rescale, reveal_cancel] {
            let (of_first, of_second) = (normalized(rules), attention(rules));
            assert!((of_first.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{of_first:?}");
            assert!((of_second.iter().sum::<f64>() - 0.5).abs() < 1e-9, "{of_second:?}");
            assert!(
                of_first.iter().chain(&of_second).all(|part| part.abs() < 2.0),
                "{of_first:?} {of_second:?}"
            );
        }
    }

    #[test]
    fn what_cancels_is_revealed() {
        // The rectifier stays at 0, because what lowers its input outweighs what raises it.
        let contributions =
            |rules| of_two(rules, [2.0, 3.0], |builder, x| column(builder, x, [1.0, -1.0]).relu());
        assert_near(&contributions(reveal_cancel), [1.0, -1.0]);
        assert_near(&contributions(rescale), [0.0, 0.0]);
    }
}
