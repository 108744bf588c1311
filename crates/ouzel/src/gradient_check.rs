//! Checks the gradient of every op on the list against finite differences in float64, to second order.

use crate::backprop::gradient;
use crate::builder::Builder;
use crate::dim::Dim;
use crate::error::Result;
use crate::evaluate::evaluate;
use crate::graph::{Constant, Fact, Graph, ValueId};
use crate::onnx::{Attribute, Function, NodeReader};
use crate::op::{Op, OpDef};
use crate::rules::RuleSet;
use crate::tensor::{DType, Tensor};
use ndarray::{ArrayD, IxDyn};

/// Inputs that an op is checked on.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    op: Op,
    inputs: Vec<SampleInput>,
}

/// An input of a sample.
#[derive(Clone, Debug)]
pub(crate) enum SampleInput {
    /// Left out.
    Absent,
    /// Drawn from a domain; the gradient with respect to it is checked.
    Drawn(Vec<usize>, Domain),
    /// Given; no gradient is asked for.
    Given(Tensor),
}

impl From<Tensor> for SampleInput {
    fn from(tensor: Tensor) -> Self {
        Self::Given(tensor)
    }
}

/// Where the numbers of an input are drawn from.
#[derive(Clone, Debug)]
pub(crate) struct Domain {
    low: f64,
    high: f64,
    avoid: Vec<(f64, f64)>,
    distinct: bool,
}

/// Numbers between two bounds.
pub(crate) fn floats(low: f64, high: f64) -> Domain {
    Domain { low, high, avoid: Vec::new(), distinct: false }
}

impl Domain {
    /// No number nearer to `point` than `distance`: keeps samples off kinks and poles.
    pub(crate) fn away_from(mut self, point: f64, distance: f64) -> Self {
        self.avoid.push((point, distance));
        self
    }

    /// All numbers well apart: keeps samples off ties.
    pub(crate) fn distinct(mut self) -> Self {
        self.distinct = true;
        self
    }

    /// An input of this shape.
    pub(crate) fn input(self, shape: &[usize]) -> SampleInput {
        SampleInput::Drawn(shape.to_vec(), self)
    }

    fn draw(&self, shape: &[usize], random: &mut Random) -> ArrayD<f64> {
        let count: usize = shape.iter().product();
        let mut values: Vec<f64> = (0..count)
            .map(|index| {
                if self.distinct {
                    let step = (self.high - self.low) / count as f64;
                    return self.low + step * (index as f64 + 0.25 + 0.5 * random.unit());
                }
                loop {
                    let value = self.low + (self.high - self.low) * random.unit();
                    if self.avoid.iter().all(|(point, distance)| (value - point).abs() > *distance) {
                        break value;
                    }
                }
            })
            .collect();
        for index in (1..count).rev() {
            values.swap(index, (random.unit() * (index + 1) as f64) as usize);
        }
        ArrayD::from_shape_vec(IxDyn(shape), values).unwrap()
    }
}

impl Sample {
    /// An op with its inputs.
    pub(crate) fn new<const N: usize>(op: impl Into<Op>, inputs: [SampleInput; N]) -> Self {
        Self { op: op.into(), inputs: inputs.to_vec() }
    }
}

impl Sample {
    /// The op, and its inputs in float32.
    pub(crate) fn in_float32(&self) -> (Op, Vec<Option<(Tensor, bool)>>) {
        (self.op.clone(), in_float32(&self.inputs))
    }
}

/// Inputs in float32: each with whether it was drawn, or left out.
fn in_float32(inputs: &[SampleInput]) -> Vec<Option<(Tensor, bool)>> {
    let mut random = Random(11);
    let narrow = |tensor: &Tensor| match tensor.dtype() {
        DType::F64 => tensor.cast(DType::F32),
        _ => tensor.clone(),
    };
    let inputs = inputs.iter().map(|input| match input {
        SampleInput::Absent => None,
        SampleInput::Given(tensor) => Some((narrow(tensor), false)),
        SampleInput::Drawn(shape, domain) => {
            Some((narrow(&Tensor::from(domain.draw(shape, &mut random))), true))
        }
    });
    inputs.collect()
}

/// The outputs of an op on given inputs; what is inferred of them must agree.
pub(crate) fn outputs(op: impl Into<Op>, inputs: &[Tensor]) -> Vec<Tensor> {
    let mut graph = Graph::default();
    let ids: Vec<Option<ValueId>> =
        inputs.iter().map(|tensor| Some(graph.add_constant("", Constant::new(tensor.clone())))).collect();
    let node = graph.add_node("", op.into(), &ids).unwrap();
    let wanted = graph.node(node).outputs.clone();
    let y = evaluate(&graph, &[], &wanted).unwrap();
    for (output, tensor) in wanted.iter().zip(&y) {
        let mut found = Fact::of(tensor);
        let inferred = graph.fact(*output);
        found.content.clone_from(&inferred.content);
        assert_eq!(inferred, &found);
    }
    y
}

/// A small random generator for test data.
struct Random(u64);

impl Random {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Short decimal numbers, so that failures can be read.
    fn direction(&mut self, shape: &[usize]) -> ArrayD<f64> {
        ArrayD::from_shape_simple_fn(IxDyn(shape), || ((self.unit() * 18.0).floor() - 9.0) / 10.0 + 0.05)
    }
}

/// A node of a file that other ops stand for, with inputs that it is checked on.
pub(crate) struct FunctionSample {
    pub(crate) op: &'static str,
    pub(crate) attributes: Vec<(&'static str, Attribute)>,
    pub(crate) inputs: Vec<SampleInput>,
    /// The first axis of the first input may be symbolic.
    pub(crate) dynamic: bool,
}

impl FunctionSample {
    /// A node without attributes whose first axis may be symbolic.
    pub(crate) fn new<const N: usize>(op: &'static str, inputs: [SampleInput; N]) -> Self {
        Self { op, attributes: Vec::new(), inputs: inputs.to_vec(), dynamic: true }
    }

    /// The same with an attribute.
    pub(crate) fn with(mut self, name: &'static str, value: Attribute) -> Self {
        self.attributes.push((name, value));
        self
    }

    /// The same, all of whose axes must be known.
    pub(crate) fn of_known_size(self) -> Self {
        Self { dynamic: false, ..self }
    }

    /// Its inputs in float32.
    pub(crate) fn in_float32(&self) -> Vec<Option<(Tensor, bool)>> {
        in_float32(&self.inputs)
    }

    /// Adds the nodes that the function stands for.
    pub(crate) fn add(
        &self,
        function: Function,
        graph: &mut Graph,
        inputs: &[Option<ValueId>],
    ) -> Result<Vec<ValueId>> {
        let attributes = self.attributes.iter();
        let attributes = attributes.map(|(name, value)| ((*name).to_owned(), value.clone()));
        let mut node = NodeReader::new(graph, 22, attributes.collect(), inputs.to_vec(), 1);
        let outputs = function(&mut node)?;
        node.finish()?;
        Ok(outputs)
    }
}

/// A graph with a scalar loss over drawn inputs.
struct Problem {
    graph: Graph,
    inputs: Vec<(ValueId, ArrayD<f64>)>,
    loss: ValueId,
}

impl Problem {
    fn new(sample: &Sample, symbolic: bool, random: &mut Random) -> Option<Self> {
        let title = format!("{:?}", sample.op);
        Self::with(&title, &sample.inputs, symbolic, random, |graph, ids| {
            let node = graph.add_node("", sample.op.clone(), ids)?;
            Ok(graph.node(node).outputs.clone())
        })
    }

    /// The loss is the sum of each floating point output times fixed random weights.
    fn with(
        title: &str,
        sample: &[SampleInput],
        symbolic: bool,
        random: &mut Random,
        add: impl FnOnce(&mut Graph, &[Option<ValueId>]) -> crate::Result<Vec<ValueId>>,
    ) -> Option<Self> {
        let mut graph = Graph::default();
        let mut inputs = Vec::new();
        let mut ids = Vec::new();
        let batch = sample.iter().find_map(|input| match input {
            SampleInput::Drawn(shape, _) => shape.first().copied(),
            _ => None,
        });
        for input in sample {
            ids.push(match input {
                SampleInput::Absent => None,
                SampleInput::Given(tensor) => Some(graph.add_constant("", Constant::new(tensor.clone()))),
                SampleInput::Drawn(shape, domain) => {
                    let mut dims: Vec<Dim> = shape.iter().map(|&length| length.into()).collect();
                    if symbolic && shape.len() > 1 && shape.first().copied() == batch && batch != Some(1) {
                        dims[0] = Dim::symbol("batch");
                    }
                    let id = graph.add_input("", Fact::new(DType::F64, dims));
                    inputs.push((id, domain.draw(shape, random)));
                    Some(id)
                }
            });
        }
        let outputs = add(&mut graph, &ids).unwrap_or_else(|error| panic!("{title}: {error}"));
        let tensors: Vec<(ValueId, Tensor)> =
            inputs.iter().map(|(id, array)| (*id, Tensor::from(array.clone()))).collect();
        let values = evaluate(&graph, &tensors, &outputs).unwrap_or_else(|error| panic!("{title}: {error}"));
        for (output, value) in outputs.iter().zip(&values) {
            let inferred = &graph.fact(*output).shape;
            let agrees = inferred.len() == value.shape().len()
                && inferred
                    .iter()
                    .zip(value.shape())
                    .all(|(dim, &length)| dim.known().is_none_or(|d| d == length as i64));
            assert!(agrees, "{title}: infer says {inferred:?}, run gives {:?}", value.shape());
            assert_eq!(graph.fact(*output).dtype, value.dtype(), "{title}");
        }
        let builder = Builder::new(graph);
        let mut loss = None;
        for (output, value) in outputs.iter().zip(&values) {
            if builder.var(*output).dtype() == DType::F64 {
                let weights = builder.constant(random.direction(value.shape()));
                let term = (builder.var(*output) * weights).sum();
                loss = Some(loss.map_or(term, |sum| sum + term));
            }
        }
        let loss = loss?.id().unwrap();
        Some(Self { graph: builder.finish().unwrap(), inputs, loss })
    }

    fn loss_at(&self, shift: &[ArrayD<f64>], step: f64) -> f64 {
        let tensors: Vec<(ValueId, Tensor)> = (self.inputs.iter().zip(shift))
            .map(|((id, array), direction)| (*id, Tensor::from(array + &(direction * step))))
            .collect();
        evaluate(&self.graph, &tensors, &[self.loss]).unwrap()[0].to_f64().sum()
    }

    /// The same inputs with the loss `⟨gradient, direction⟩`, or the reason why there is none.
    fn derivative(&self, directions: &[ArrayD<f64>]) -> Result<Self, String> {
        let wrt: Vec<ValueId> = self.inputs.iter().map(|(id, _)| *id).collect();
        let gradient = gradient(self.graph.clone(), self.loss, &wrt, &RuleSet::new())
            .map_err(|error| error.to_string())?;
        let builder = Builder::new(gradient.graph);
        let mut loss = builder.scalar(0.0, DType::F64);
        for (value, direction) in gradient.values.iter().zip(directions) {
            loss = loss + (builder.var(*value) * builder.constant(direction.clone())).sum();
        }
        let loss = loss.id().map_err(|error| error.to_string())?;
        Ok(Self { graph: builder.finish().unwrap(), inputs: self.inputs.clone(), loss })
    }

    fn check(&self, random: &mut Random, title: &str) -> Option<Self> {
        let directions: Vec<ArrayD<f64>> =
            self.inputs.iter().map(|(_, array)| random.direction(array.shape())).collect();
        let derivative = match self.derivative(&directions) {
            Ok(derivative) => derivative,
            Err(reason) if reason.contains("does not depend on") => return None,
            Err(reason) => panic!("{title}: {reason}"),
        };
        let zero: Vec<ArrayD<f64>> = directions.iter().map(|d| d * 0.0).collect();
        let found = derivative.loss_at(&zero, 0.0);
        let step = 1e-4;
        let central =
            |step: f64| (self.loss_at(&directions, step) - self.loss_at(&directions, -step)) / (2.0 * step);
        // One Richardson extrapolation: the error falls with the fourth power of the step.
        let expected = (4.0 * central(step) - central(2.0 * step)) / 3.0;
        let difference = (found - expected).abs();
        assert!(
            difference <= 2e-7 * (1.0 + expected.abs()),
            "{title}: the gradient is {found}, differences say {expected}"
        );
        Some(derivative)
    }
}

#[test]
fn every_function_has_the_right_gradient() {
    let mut random = Random(13);
    let samples = crate::onnx::function_samples();
    let mut unchecked: Vec<&str> = Vec::new();
    for (name, function) in crate::onnx::FUNCTIONS {
        let mut checked = false;
        for sample in samples.iter().filter(|sample| sample.op == *name) {
            for symbolic in if sample.dynamic { vec![false, true] } else { vec![false] } {
                let title = format!("{name} {:?} (symbolic batch: {symbolic})", sample.attributes);
                let problem = Problem::with(&title, &sample.inputs, symbolic, &mut random, |graph, ids| {
                    sample.add(*function, graph, ids)
                });
                let Some(problem) = problem.filter(|problem| !problem.inputs.is_empty()) else { continue };
                if let Some(derivative) = problem.check(&mut random, &format!("{title}, first order")) {
                    checked = true;
                    derivative.check(&mut random, &format!("{title}, second order"));
                }
            }
        }
        if !checked {
            unchecked.push(name);
        }
    }
    // These read or give integers, where the gradient ends or passes straight through, or are known before the
    // network runs.
    let expected = [
        "BlackmanWindow",
        "ConvInteger",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "HammingWindow",
        "HannWindow",
        "MatMulInteger",
        "MelWeightMatrix",
        "NonMaxSuppression",
        "NonZero",
        "QLinearConv",
        "QLinearMatMul",
        "QuantizeLinear",
        "Unique",
    ];
    assert_eq!(unchecked, expected);
}

/// Checks one sample; true if a gradient was checked.
fn check(sample: &Sample, title: &str, random: &mut Random) -> bool {
    let mut checked = false;
    for symbolic in [false, true] {
        let title = format!("{title} {:?} (symbolic batch: {symbolic})", sample.op);
        let Some(problem) = Problem::new(sample, symbolic, random) else { return false };
        if problem.inputs.is_empty() {
            return false;
        }
        if let Some(derivative) = problem.check(random, &format!("{title}, first order")) {
            checked = true;
            derivative.check(random, &format!("{title}, second order"));
        }
    }
    checked
}

#[test]
fn every_op_on_the_list_has_the_right_gradient() {
    let mut random = Random(7);
    let mut unchecked = Vec::new();
    for (name, samples) in crate::op::samples() {
        assert!(!samples.is_empty(), "{name} has no samples");
        let mut checked = false;
        for sample in &samples {
            checked |= check(sample, name, &mut random);
        }
        if !checked {
            unchecked.push(name);
        }
    }
    // These give integers, truth values or constants, or are piecewise constant: there is nothing to differentiate.
    let expected = [
        "Floor",
        "Ceil",
        "Round",
        "Sign",
        "BitShift",
        "BitwiseAnd",
        "BitwiseOr",
        "BitwiseXor",
        "BitwiseNot",
        // The gradient passes straight through these, which differences cannot confirm.
        "RoundThrough",
        "RoundTo",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "And",
        "Or",
        "Xor",
        "Not",
        "IsNaN",
        "IsInf",
        "Shape",
        "Size",
        "ConstantOfShape",
        "Hardmax",
        "ArgMax",
        "ArgMin",
        "OneHot",
        "Range",
        "EyeLike",
    ];
    assert_eq!(unchecked, expected);
}

#[test]
fn the_op_list_names_each_op_by_its_onnx_name() {
    for (name, samples) in crate::op::samples() {
        for sample in samples {
            assert_eq!(sample.op.name(), name);
        }
    }
}
