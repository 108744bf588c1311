//! DeepLIFT's RevealCancel: what raised a sum and what lowered it pass an activation one by one, so that neither hides.

use super::deeplift::{Reference, ratio, rescaled};
use super::kind::Linear;
use super::{Outcome, Rule};
use crate::backprop::{Back, Cotangent};
use crate::builder::{Builder, Var};
use crate::error::Result;
use crate::graph::{Graph, Node, ValueId};
use crate::op::Op;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The rules that RevealCancel has instead of Rescale's: at activations, and at the linear nodes before them.
///
/// **Formula.** With `Δx⁺` the sum of the contributions that raised the input of an activation `f` and `Δx⁻` that of those
/// that lowered it, `Δy⁺ = ½ (f(x⁰ + Δx⁺) - f(x⁰)) + ½ (f(x⁰ + Δx⁺ + Δx⁻) - f(x⁰ + Δx⁻))`, and `Δy⁻` with both exchanged;
/// the multipliers of the two parts are `Δy⁺ / Δx⁺` and `Δy⁻ / Δx⁻`. The linear node before hands them on by the sign of
/// each contribution, and the mean of both where there is none.
///
/// A walk has one cotangent for a value, which is the multiplier of Rescale here. What the two parts have beside it is
/// noted at the activation, and read at the linear node, which is visited later.
///
/// **Source.** Shrikumar et al. 2017, "Learning important features through propagating activation differences", section
/// 3.5.3.
#[derive(Clone, Debug)]
pub(super) struct RevealCancel {
    pub(super) reference: Reference,
    pub(super) place: Place,
    pub(super) beside: Beside,
}

/// Which of the two rules it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    Activation,
    Linear,
}

/// For a value: what the multipliers of its raising and its lowering part have beside its cotangent, for each activation
/// that reads it.
pub(super) type Beside = Arc<Mutex<HashMap<ValueId, Vec<[ValueId; 2]>>>>;

/// How the signs of contributions follow from the inputs of a linear node.
enum Signs {
    /// An input times weights, by their indices.
    Weights { signal: usize, weight: usize },
    /// A sum of inputs with these signs.
    Summands(Vec<f64>),
    /// The first input with weights that are not negative.
    Positive,
}

impl Signs {
    fn of(node: &Node, varies: impl Fn(usize) -> bool) -> Option<Self> {
        match &node.op {
            Op::Add(_) | Op::Sum(_) => Some(Self::Summands(vec![1.0; node.inputs.len()])),
            Op::Sub(_) => Some(Self::Summands(vec![1.0, -1.0])),
            Op::AveragePool(_) | Op::GlobalAveragePool(_) | Op::ReduceMean(_) | Op::ReduceSum(_) => {
                Some(Self::Positive)
            }
            Op::Gemm(op) if op.alpha.0 < 0.0 => None,
            op => {
                let weight = Linear::of(op, varies)?.weight;
                Some(Self::Weights { signal: usize::from(weight == 0), weight })
            }
        }
    }
}

impl Rule for RevealCancel {
    fn name(&self) -> &str {
        match self.place {
            Place::Activation => "reveal_cancel",
            Place::Linear => "by sign",
        }
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        match self.place {
            Place::Activation => self.at_activation(back),
            Place::Linear => self.at_linear(back),
        }
    }
}

impl RevealCancel {
    fn at_activation<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        let Some(index) = (0..back.arity()).find(|&index| back.varies(index)) else {
            return Ok(Outcome::Default);
        };
        let cotangents = rescaled(back, &self.reference, index)?;
        let Cotangent::Flows(both) = cotangents[index] else { return Ok(Outcome::Applied(cotangents)) };
        let (x, y) = (back.x(index), back.y(0));
        let (x0, y0) = (self.reference.of(x)?, self.reference.of(y)?);
        let sum = sum_behind(&back.builder().graph(), &self.reference, x.id()?);
        let Some([raised, lowered]) = self.parts(back.builder(), sum)? else {
            return Ok(Outcome::Applied(cotangents));
        };
        let f = |x: Var<'b>| {
            let inputs = (0..back.arity()).map(|other| match other == index {
                true => Some(x),
                false => back.optional_x(other),
            });
            back.at(inputs.collect()).y(0)
        };
        let (at_raised, at_lowered) = (f(x0 + raised), f(x0 + lowered));
        let gradient = both_or(back.vjp()?[index], both);
        let beside = |own: Var<'b>, at_own: Var<'b>, at_other: Var<'b>| {
            let change = ((at_own - y0) + (y - at_other)) * 0.5;
            (ratio(back.g(0) * change, own, gradient) - both).id()
        };
        let pair = [beside(raised, at_raised, at_lowered)?, beside(lowered, at_lowered, at_raised)?];
        self.beside.lock().unwrap_or_else(PoisonError::into_inner).entry(sum).or_default().push(pair);
        Ok(Outcome::Applied(cotangents))
    }

    fn at_linear<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        let noted = {
            let beside = self.beside.lock().unwrap_or_else(PoisonError::into_inner);
            beside.get(&back.y(0).id()?).cloned()
        };
        let signs = Signs::of(back.node(), |index| back.varies(index));
        let (Some(noted), Some(signs)) = (noted, signs) else { return Ok(Outcome::Applied(back.vjp()?)) };
        let of_part = |part: usize| {
            noted.iter().fold(back.g(0), |sum, pair: &[ValueId; 2]| sum + back.builder().var(pair[part]))
        };
        let (raising, lowering) = (of_part(0), of_part(1));
        let vjp = |node: &Back<'b>, multiplier: Var<'b>, index: usize| -> Result<Var<'b>> {
            Ok(both_or(node.vjp_of(vec![Some(multiplier)])?[index], multiplier.scalar_like(0.0)))
        };
        let with_weight = |weight: usize, change: &dyn Fn(Var<'b>) -> Var<'b>| {
            let x = (0..back.arity()).map(|index| match (index == weight, back.varies(index)) {
                (true, _) => back.optional_x(index).map(change),
                (false, true) => back.optional_x(index),
                (false, false) => None,
            });
            back.at(x.collect())
        };
        // For each input: its multipliers where it rose and where it fell.
        let pair = |index: usize| -> Result<[Var<'b>; 2]> {
            Ok(match &signs {
                Signs::Summands(signs) if signs[index] > 0.0 => [raising, lowering],
                Signs::Summands(_) => [-lowering, -raising],
                Signs::Positive => [vjp(back, raising, index)?, vjp(back, lowering, index)?],
                Signs::Weights { weight, .. } => {
                    let positive = with_weight(*weight, &|w| w.relu());
                    let negative = with_weight(*weight, &|w| w.minimum(0.0));
                    [
                        vjp(&positive, raising, index)? + vjp(&negative, lowering, index)?,
                        vjp(&negative, raising, index)? + vjp(&positive, lowering, index)?,
                    ]
                }
            })
        };
        let cotangents = back.try_each_wanted(|index| {
            let [rose, fell] = pair(index)?;
            let x = back.x(index);
            let dx = x - self.reference.of(x)?;
            let neither = (rose + fell) * 0.5;
            Ok(rose.select(dx.greater(0.0), fell.select(dx.less(0.0), neither)))
        })?;
        Ok(Outcome::Applied(cotangents))
    }

    /// The sums of the contributions that raised and that lowered a value, if a linear node computed it.
    fn parts<'b>(&self, builder: &'b Builder, value: ValueId) -> Result<Option<[Var<'b>; 2]>> {
        let node = {
            let graph = builder.graph();
            graph.producer(value).map(|id| graph.node(id).clone())
        };
        let Some(node) = node else { return Ok(None) };
        let varies = |index: usize| {
            node.inputs.get(index).copied().flatten().is_some_and(|input| self.reference.has(input))
        };
        let Some(signs) = Signs::of(&node, varies) else { return Ok(None) };
        let var = |index: usize| node.inputs.get(index).copied().flatten().map(|id| builder.var(id));
        let difference = |index: usize| -> Result<Option<Var<'b>>> {
            let Some(x) = var(index).filter(|_| varies(index)) else { return Ok(None) };
            Ok(Some(x - self.reference.of(x)?))
        };
        let parts_of = |sign: f64, dx: Var<'b>| match sign > 0.0 {
            true => [dx.relu(), dx.minimum(0.0)],
            false => [-dx.minimum(0.0), -dx.relu()],
        };
        let again = |replaced: &[(usize, Var<'b>)]| {
            let x: Vec<Option<Var>> = (0..node.inputs.len())
                .map(|index| match replaced.iter().find(|(other, _)| *other == index) {
                    Some((_, x)) => Some(*x),
                    None if matches!(signs, Signs::Positive) => var(index),
                    None => None,
                })
                .collect();
            builder.apply_all(node.op.clone(), &x)[0]
        };
        Ok(match &signs {
            Signs::Summands(signs) => {
                let mut sums: Option<[Var; 2]> = None;
                for (index, &sign) in signs.iter().enumerate() {
                    let Some(dx) = difference(index)? else { continue };
                    let [raised, lowered] = parts_of(sign, dx);
                    sums = Some(sums.map_or([raised, lowered], |[a, b]| [a + raised, b + lowered]));
                }
                sums
            }
            Signs::Positive => difference(0)?.map(|dx| parts_of(1.0, dx).map(|part| again(&[(0, part)]))),
            Signs::Weights { signal, weight } => match (difference(*signal)?, var(*weight)) {
                (Some(dx), Some(w)) => {
                    let ([rose, fell], [up, down]) = (parts_of(1.0, dx), parts_of(1.0, w));
                    let product = |x, w| again(&[(*signal, x), (*weight, w)]);
                    Some([product(rose, up) + product(fell, down), product(rose, down) + product(fell, up)])
                }
                _ => None,
            },
        })
    }
}

fn both_or<'b>(cotangent: Cotangent<'b>, otherwise: Var<'b>) -> Var<'b> {
    match cotangent {
        Cotangent::Flows(cotangent) => cotangent,
        _ => otherwise,
    }
}

/// The value that a constant, such as a bias, was added to: its contributions are those of the sum.
fn sum_behind(graph: &Graph, reference: &Reference, mut value: ValueId) -> ValueId {
    while let Some(node) = graph.producer(value).map(|id| graph.node(id))
        && matches!(node.op, Op::Add(_) | Op::Sub(_))
    {
        let mut varying = node.inputs.iter().flatten().copied().filter(|input| reference.has(*input));
        match (varying.next(), varying.next()) {
            (Some(one), None)
                if graph.fact(one).shape == graph.fact(value).shape
                    && (matches!(node.op, Op::Add(_)) || node.inputs[0] == Some(one)) =>
            {
                value = one;
            }
            _ => break,
        }
    }
    value
}
