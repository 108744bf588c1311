//! PatternNet and PatternAttribution: the signal that each filter detects, estimated from inputs of the network.

use super::kind::Linear;
use super::{Outcome, Rule};
use crate::backprop::{Back, depends_on, walk};
use crate::builder::Builder;
use crate::compile::{Plan, Precision};
use crate::error::{Result, bail};
use crate::graph::{Graph, Node, ValueId};
use crate::op::{Op, OpDef};
use crate::rules::RuleSet;
use crate::tensor::Tensor;
use ndarray::{ArrayD, Axis};
use serde::Deserialize;
use std::collections::HashMap;
use std::sync::Arc;

/// How the signal of a filter is estimated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// From all outputs, as if the signal grew with the output everywhere.
    Linear,
    /// From the outputs that are positive: what a rectifier passes.
    #[default]
    TwoComponent,
}

/// The patterns of the convolutions and dense layers of a graph, each in the shape of its weights.
///
/// **Formula.** With the input `x` of a filter of weights `w` (for a convolution, what it sees at a position), its output
/// `y`, and expectations over samples and positions: `c = E[x y] - E[x] E[y]`, `a = c / wᵀc`. For
/// [`Estimator::TwoComponent`] `E[x y]` and `E[x]` are over those with `y > 0`.
///
/// **Known criticism.** The patterns are those of the samples; that of two components is exact only where what the filter
/// does not detect has mean 0.
///
/// **Source.** Kindermans et al. 2018, "Learning how to explain neural networks: PatternNet and PatternAttribution".
#[derive(Debug)]
pub struct Patterns {
    of: HashMap<(ValueId, Estimator), Tensor>,
    /// How many filters were never active, and how many there are.
    silent: (usize, usize),
}

/// How many weights are estimated on one pass over the samples: the sums take 24 bytes for each.
const WEIGHTS_AT_ONCE: usize = 1 << 24;

/// A layer whose patterns are wanted.
struct Layer {
    /// The place of its node.
    place: usize,
    weight: ValueId,
    output: ValueId,
    /// The axes of the filters among those of the weights and of the output.
    axes: [usize; 2],
    estimator: Estimator,
}

/// Sums over runs.
struct Moments {
    /// Of what a filter sees, times its output, where it is active.
    xy: ArrayD<f64>,
    /// Of what it sees where it is active.
    x: ArrayD<f64>,
    /// How often it is.
    active: ArrayD<f64>,
    /// Of the mean output.
    y: ArrayD<f64>,
}

impl Moments {
    /// The patterns in the shape of the weights, whose `axis` is that of the filters.
    fn patterns(
        &self,
        weights: &ArrayD<f64>,
        axis: usize,
        runs: f64,
        silent: &mut (usize, usize),
    ) -> ArrayD<f64> {
        let mut patterns = ArrayD::zeros(weights.raw_dim());
        for (filter, mut pattern) in patterns.axis_iter_mut(Axis(axis)).enumerate() {
            let of = |sums: &ArrayD<f64>| sums.index_axis(Axis(axis), filter).to_owned();
            let (active, mean) = (self.active[[filter]], self.y[[filter]] / runs);
            let covariance = (of(&self.xy) - of(&self.x) * mean) / active.max(1.0);
            let along_weights = (&covariance * &weights.index_axis(Axis(axis), filter)).sum();
            silent.1 += 1;
            if active == 0.0 || along_weights == 0.0 {
                silent.0 += 1;
            } else {
                pattern.assign(&(covariance / along_weights));
            }
        }
        patterns
    }
}

impl Patterns {
    /// Runs the graph on samples, inputs of `input` along its first axis, and estimates the patterns of all layers that
    /// depend on it.
    ///
    /// # Errors
    /// If the samples do not fit the input, or the graph has others.
    pub(crate) fn estimate(
        graph: &Graph,
        input: ValueId,
        samples: &Tensor,
        estimators: &[Estimator],
        precision: Precision,
    ) -> Result<Self> {
        let fact = graph.fact(input);
        let shape = samples.shape();
        let fits = shape.len() == fact.rank()
            && shape[1..]
                .iter()
                .zip(&fact.shape[1..])
                .all(|(&length, dim)| dim.known().is_none_or(|known| usize::try_from(known) == Ok(length)));
        if !fits || shape[0] == 0 {
            bail!(
                option,
                "patterns: expected samples of the input {}, which is {fact}, found an array of shape {shape:?}",
                graph.title(input)
            );
        }
        if graph.inputs().len() != 1 {
            bail!(
                unsupported,
                "patterns are estimated for networks of one input, and this has {}",
                graph.inputs().len()
            );
        }
        let at_once = fact.shape[0].known().map_or(1, |batch| batch.max(1) as usize);
        if !shape[0].is_multiple_of(at_once) {
            bail!(
                option,
                "patterns: the network takes {at_once} samples at a time, and there are {}",
                shape[0]
            );
        }
        let mut layers = Vec::new();
        for &estimator in estimators {
            layers.extend(all_layers(graph, input, estimator));
        }
        let mut patterns = Self { of: HashMap::new(), silent: (0, 0) };
        while !layers.is_empty() {
            let mut weights = 0;
            let fitting = layers.iter().take_while(|layer| {
                weights += crate::dim::known_shape(&graph.fact(layer.weight).shape)
                    .map_or(0, |shape| shape.iter().product::<usize>());
                weights <= WEIGHTS_AT_ONCE
            });
            let count = fitting.count().max(1);
            let group: Vec<Layer> = layers.drain(..count).collect();
            patterns.add(graph, input, samples, at_once, &group, precision)?;
        }
        Ok(patterns)
    }

    /// Estimates the patterns of some layers.
    fn add(
        &mut self,
        graph: &Graph,
        input: ValueId,
        samples: &Tensor,
        at_once: usize,
        layers: &[Layer],
        precision: Precision,
    ) -> Result<()> {
        let mut graph = graph.clone();
        let mut wanted = Vec::new();
        for layer in layers {
            let builder = Builder::new(graph);
            let y = builder.var(layer.output);
            let one = y.scalar_like(1.0).expand_like(y);
            let active = match layer.estimator {
                Estimator::Linear => one,
                Estimator::TwoComponent => one.select_where(y.greater(0.0)),
            };
            let others: Vec<usize> = (0..y.rank()).filter(|&axis| axis != layer.axes[1]).collect();
            let seeds = [(y * active).id()?, active.id()?];
            let sums = [active.reduce_sum(others.clone(), false).id()?, y.reduce_mean(others, false).id()?];
            graph = builder.finish()?;
            // The gradient with respect to weights is the sum of what they see, times what comes back.
            for seed in seeds {
                let back =
                    walk(graph, &[(layer.output, seed)], &[layer.weight], &RuleSet::new(), layer.place)?;
                let Some(sum) = back.cotangents[layer.weight.index()] else {
                    bail!(internal, "{} has no gradient", back.graph.title(layer.weight));
                };
                wanted.push(sum);
                graph = back.graph;
            }
            wanted.extend(sums);
            wanted.push(layer.weight);
        }
        let mut shape = samples.shape().to_vec();
        let count = shape[0];
        shape[0] = at_once;
        let plan = Plan::new(&graph, &[(input, shape)], &wanted, precision)?;
        let mut moments: Vec<Option<Moments>> = layers.iter().map(|_| None).collect();
        let mut weights: Vec<ArrayD<f64>> = Vec::new();
        for start in (0..count).step_by(at_once) {
            let mut found = plan.run(&[samples.outer(start..start + at_once)])?.into_iter();
            let mut next = || found.next().expect("invariant: one output for each wanted value").to_f64();
            weights.clear();
            for moments in &mut moments {
                let new = Moments { xy: next(), x: next(), active: next(), y: next() };
                weights.push(next());
                match moments {
                    None => *moments = Some(new),
                    Some(sum) => {
                        sum.xy += &new.xy;
                        sum.x += &new.x;
                        sum.active += &new.active;
                        sum.y += &new.y;
                    }
                }
            }
        }
        let runs = (count / at_once) as f64;
        for ((layer, moments), weight) in layers.iter().zip(moments).zip(weights) {
            let Some(moments) = moments else { continue };
            let patterns = moments.patterns(&weight, layer.axes[0], runs, &mut self.silent);
            self.of.insert((layer.output, layer.estimator), Tensor::from(patterns));
        }
        Ok(())
    }

    /// What the reader should know.
    pub(crate) fn warning(&self) -> Option<String> {
        let (silent, all) = self.silent;
        (silent > 0).then(|| {
            format!(
                "{silent} of {all} filters were never active in the pictures that patterns were estimated from, and pass \
                 nothing on: give more pictures"
            )
        })
    }
}

/// The convolutions and dense layers that depend on an input.
fn all_layers(graph: &Graph, input: ValueId, estimator: Estimator) -> Vec<Layer> {
    let varies = depends_on(graph, &[input]);
    let layer = |(place, node): (usize, &Node)| {
        let id = |index: usize| node.inputs.get(index).copied().flatten();
        let linear = Linear::of(&node.op, |index| id(index).is_some_and(|id| varies[id.index()]))?;
        let (weight, output) = (id(linear.weight)?, *node.outputs.first()?);
        let rank = graph.fact(output).rank();
        let axes = match &node.op {
            _ if !varies[output.index()] => return None,
            Op::Conv(_) => [0, 1],
            Op::ConvTranspose(op) if op.group == 1 => [1, 1],
            // Weights on the left have their filters in rows.
            Op::Gemm(_) | Op::MatMul(_) if graph.fact(weight).rank() == 2 && rank >= 2 => {
                match (&node.op, linear.weight) {
                    (Op::Gemm(op), 1) if op.transpose_b => [0, rank - 1],
                    (Op::Gemm(op), 0) if op.transpose_a => [1, rank - 2],
                    (_, 0) => [0, rank - 2],
                    _ => [1, rank - 1],
                }
            }
            _ => return None,
        };
        Some(Layer { place, weight, output, axes, estimator })
    };
    graph.nodes().iter().enumerate().filter_map(layer).collect()
}

/// The gradient with patterns in the place of weights: PatternNet; or with weights times patterns: PatternAttribution.
///
/// **Formula.** `Σⱼ aᵢⱼ · Rⱼ`, or `Σⱼ wᵢⱼ aᵢⱼ · Rⱼ`. As `wᵀa = 1` for each filter, the latter conserves relevance at each such
/// layer; rectifiers that are closed lose what arrives at them, as they do for the gradient.
///
/// **Errors.** If the node is no convolution or dense layer, or of a form that patterns are not estimated for.
///
/// **Source.** Kindermans et al. 2018, "Learning how to explain neural networks: PatternNet and PatternAttribution".
#[derive(Clone, Debug)]
pub struct Pattern {
    pub(super) patterns: Arc<Patterns>,
    pub(super) estimator: Estimator,
    /// Whether weights stay as factors.
    pub(super) attribution: bool,
}

impl Rule for Pattern {
    fn name(&self) -> &str {
        if self.attribution { "pattern_attribution" } else { "pattern_net" }
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        let linear = Linear::of(back.op(), |index| back.varies(index));
        let pattern = self.patterns.of.get(&(back.y(0).id()?, self.estimator));
        let (Some(linear), Some(pattern)) = (linear, pattern) else {
            bail!(
                option,
                "the rule '{}' has no patterns for this {}: give it another rule, such as 'gradient'",
                self.name(),
                back.op().name()
            );
        };
        let weight = back.x(linear.weight);
        let pattern = back.builder().constant(pattern.cast(weight.dtype()));
        let weight = if self.attribution { weight * pattern } else { pattern };
        let x = (0..back.arity()).map(|index| match index {
            _ if index == linear.weight => Some(weight),
            _ if Some(index) == linear.bias => None,
            _ => back.optional_x(index),
        });
        Ok(Outcome::Applied(back.at(x.collect()).vjp_of(vec![Some(back.g(0))])?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backprop::backward;
    use crate::evaluate::evaluate;
    use crate::graph::Fact;
    use crate::ops::convolution::Conv;
    use crate::ops::window::Window;
    use crate::rules::{Kind, Matcher};
    use crate::tensor::DType;
    use ndarray::IxDyn;

    fn array(shape: &[usize], values: impl IntoIterator<Item = f64>) -> ArrayD<f64> {
        ArrayD::from_shape_vec(IxDyn(shape), values.into_iter().collect()).unwrap()
    }

    fn fact(shape: &[usize]) -> Fact {
        let mut fact = Fact::new(DType::F64, shape.iter().map(|&length| length.into()).collect());
        fact.shape[0] = crate::dim::Dim::symbol("n");
        fact
    }

    /// The paper's example: a signal `s` in the direction (1, 0), and a distractor in the direction (1, 1) that the weights
    /// (1, -1) take out.
    #[test]
    fn the_pattern_of_a_linear_model_is_the_direction_of_its_signal() {
        let builder = Builder::default();
        let x = builder.input("x", fact(&[1, 2]));
        let w = builder.constant(Tensor::from(array(&[2, 1], [1.0, -1.0])));
        let y = x.matmul(w);
        let [x, y] = [x, y].map(|var| var.id().unwrap());
        let graph = builder.finish().unwrap();
        let mut samples = Vec::new();
        // Every signal with every distractor, so that they are independent.
        for signal in [-3.0, -1.0, 0.5, 2.0, 4.0] {
            for distractor in [-4.0, -1.0, 2.0, 3.0] {
                samples.extend([signal + distractor, distractor]);
            }
        }
        let samples = Tensor::from(array(&[20, 2], samples));
        for estimator in [Estimator::Linear, Estimator::TwoComponent] {
            let patterns = Patterns::estimate(&graph, x, &samples, &[estimator], Precision::F64).unwrap();
            let pattern = patterns.of[&(y, estimator)].to_f64();
            assert!((pattern[[0, 0]] - 1.0).abs() < 1e-12 && pattern[[1, 0]].abs() < 1e-12, "{pattern}");
            assert!(patterns.warning().is_none());
            let patterns = Arc::new(patterns);
            // The signal 2 with the distractor 5 on top: the signal, and all of the output to where it is.
            for attribution in [false, true] {
                let rule = Pattern { patterns: patterns.clone(), estimator, attribution };
                let rules = RuleSet::new().with(Matcher::kind([Kind::Dense]), Arc::new(rule));
                let back = backward(graph.clone(), &[(y, y)], &[x], &rules).unwrap();
                let given = [(x, Tensor::from(array(&[1, 2], [7.0, 5.0])))];
                let found = evaluate(&back.graph, &given, &back.values).unwrap()[0].to_f64();
                assert!((found[[0, 0]] - 2.0).abs() < 1e-12 && found[[0, 1]].abs() < 1e-12, "{found}");
            }
        }
    }

    #[test]
    fn patterns_of_convolutions_are_those_of_what_they_see() {
        let numbers = |count: usize, seed: usize| {
            (0..count).map(move |place| {
                ((place * place * 31 + place * 17 + seed * 7919) % 1009) as f64 / 504.5 - 1.0
            })
        };
        let (samples, w, b) =
            (array(&[3, 2, 5, 4], numbers(120, 1)), array(&[3, 2, 3, 2], numbers(36, 2)), [0.3, -0.2, -99.0]);
        let builder = Builder::default();
        let x = builder.input("x", fact(&[1, 2, 5, 4]));
        let op = Conv { window: Window::plain(2).with_strides([2, 1]).with_pads([1, 0, 0, 1]), group: 1 };
        let y = builder.apply(
            op,
            &[x, builder.constant(Tensor::from(w.clone())), builder.constant(Tensor::from(array(&[3], b)))],
        );
        let [x, y] = [x, y].map(|var| var.id().unwrap());
        let graph = builder.finish().unwrap();
        /// A patch of the input and the output there.
        type Seen = (Vec<f64>, f64);
        for estimator in [Estimator::Linear, Estimator::TwoComponent] {
            let patterns =
                Patterns::estimate(&graph, x, &Tensor::from(samples.clone()), &[estimator], Precision::F64)
                    .unwrap();
            let found = patterns.of[&(y, estimator)].to_f64();
            for (filter, bias) in b.into_iter().enumerate() {
                // What the filter sees at each place, and its output there.
                let mut seen: Vec<Seen> = Vec::new();
                for (n, row, column) in
                    (0..3).flat_map(|n| (0..2).flat_map(move |r| (0..4).map(move |c| (n, r, c))))
                {
                    let at = |c: usize, i: usize, j: usize| {
                        let (i, j) = ((row * 2 + i).checked_sub(1), column + j);
                        i.and_then(|i| samples.get([n, c, i, j])).copied().unwrap_or(0.0)
                    };
                    let mut patch = Vec::new();
                    for (c, i, j) in
                        (0..2).flat_map(|c| (0..3).flat_map(move |i| (0..2).map(move |j| (c, i, j))))
                    {
                        patch.push(at(c, i, j));
                    }
                    let weights = w.index_axis(Axis(0), filter);
                    let output: f64 = patch.iter().zip(weights.iter()).map(|(x, w)| x * w).sum();
                    seen.push((patch, output + bias));
                }
                let mean_y = seen.iter().map(|(_, y)| y).sum::<f64>() / seen.len() as f64;
                let is_active = |y: f64| estimator == Estimator::Linear || y > 0.0;
                let active: Vec<&Seen> = seen.iter().filter(|(_, y)| is_active(*y)).collect();
                let covariance: Vec<f64> = (0..12)
                    .map(|place| {
                        let mean = |value: &dyn Fn(&Seen) -> f64| {
                            active.iter().map(|one| value(one)).sum::<f64>() / active.len().max(1) as f64
                        };
                        mean(&|(x, y)| x[place] * y) - mean(&|(x, _)| x[place]) * mean_y
                    })
                    .collect();
                let along: f64 =
                    covariance.iter().zip(w.index_axis(Axis(0), filter).iter()).map(|(c, w)| c * w).sum();
                for (found, covariance) in found.index_axis(Axis(0), filter).iter().zip(&covariance) {
                    let expected = if active.is_empty() { 0.0 } else { covariance / along };
                    assert!(
                        (found - expected).abs() < 1e-9,
                        "{estimator:?} {filter}: {found} for {expected}"
                    );
                }
            }
            // The last filter is never active.
            assert_eq!(patterns.warning().is_some(), estimator == Estimator::TwoComponent);
        }
    }
}
