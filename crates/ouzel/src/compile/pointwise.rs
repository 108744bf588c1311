//! Elementwise nodes as expressions, which are computed where their result is needed.

use super::anchor::Facts;
use super::expression::{Expression, Leaf, Make, Number};
use super::layout::Order;
use super::order::Layouts;
use crate::graph::{Node, NodeId, ValueId};
use crate::op::Op;
use ouzel_kernels::{Binary, RecordRule, Unary};
use std::collections::HashMap;

/// How a gate selects, as far as a program must know.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GateKind {
    Gradient,
    Guided,
    Rectified,
    Leaky(f32),
}

/// A gate as part of an expression.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GateNode {
    pub(crate) kind: GateKind,
    pub(crate) main: ValueId,
    pub(crate) activation: Option<NodeId>,
}

/// True for ops that [`Writer`] can write.
pub(crate) fn is_supported(op: &Op) -> bool {
    matches!(
        op,
        Op::Relu(_)
            | Op::LeakyRelu(_)
            | Op::PRelu(_)
            | Op::ThresholdedRelu(_)
            | Op::Clip(_)
            | Op::Elu(_)
            | Op::Selu(_)
            | Op::Celu(_)
            | Op::Gelu(_)
            | Op::Sigmoid(_)
            | Op::HardSigmoid(_)
            | Op::HardSwish(_)
            | Op::Swish(_)
            | Op::Mish(_)
            | Op::Softplus(_)
            | Op::Softsign(_)
            | Op::Tanh(_)
            | Op::Neg(_)
            | Op::Abs(_)
            | Op::Exp(_)
            | Op::Log(_)
            | Op::Sqrt(_)
            | Op::Reciprocal(_)
            | Op::Erf(_)
            | Op::Sin(_)
            | Op::Cos(_)
            | Op::Floor(_)
            | Op::Ceil(_)
            | Op::Round(_)
            | Op::Sign(_)
            | Op::Add(_)
            | Op::Sub(_)
            | Op::Mul(_)
            | Op::Div(_)
            | Op::Pow(_)
            | Op::Max(_)
            | Op::Min(_)
            | Op::Sum(_)
            | Op::Mean(_)
            | Op::Equal(_)
            | Op::Greater(_)
            | Op::GreaterOrEqual(_)
            | Op::Less(_)
            | Op::LessOrEqual(_)
            | Op::And(_)
            | Op::Or(_)
            | Op::Xor(_)
            | Op::Not(_)
            | Op::Where(_)
            | Op::Cast(_)
            | Op::Expand(_)
            | Op::BatchNormalization(_)
    )
}

/// Writes the expression of some nodes.
pub(crate) struct Writer<'a> {
    facts: &'a Facts<'a>,
    /// The shape of the result, which all nodes have.
    shape: &'a [usize],
    order: Order,
    expression: Expression,
    values: HashMap<ValueId, Number>,
}

impl<'a> Writer<'a> {
    pub(crate) fn new(facts: &'a Facts<'a>, layouts: &Layouts, root: ValueId) -> Option<Self> {
        let (shape, order) = (facts.floats(root)?, layouts.order(root)?.clone());
        Some(Self { facts, shape, order, expression: Expression::default(), values: HashMap::new() })
    }

    fn make(&mut self, make: Make) -> Number {
        self.expression.make(make)
    }

    fn made(&self, number: Number) -> Make {
        self.expression.made(number)
    }

    fn constant(&mut self, value: f64) -> Number {
        self.make(Make::Constant(value as f32))
    }

    fn leaf(&mut self, leaf: Leaf) -> Number {
        self.expression.leaf(leaf)
    }

    fn unary(&mut self, function: Unary, a: Number) -> Number {
        self.make(Make::Unary(function, a))
    }

    fn binary(&mut self, function: Binary, a: Number, b: Number) -> Number {
        match function {
            Binary::Multiply if self.is_sigmoid(b, a) => self.unary(Unary::Silu, a),
            Binary::Multiply if self.is_sigmoid(a, b) => self.unary(Unary::Silu, b),
            Binary::Add => match self.silu_slope(a, b).or_else(|| self.silu_slope(b, a)) {
                Some((factor, x)) => {
                    let slope = self.unary(Unary::SiluSlope, x);
                    self.make(Make::Binary(Binary::Multiply, factor, slope))
                }
                None => self.make(Make::Binary(function, a, b)),
            },
            _ => self.make(Make::Binary(function, a, b)),
        }
    }

    fn is_sigmoid(&self, number: Number, of: Number) -> bool {
        self.made(number) == Make::Unary(Unary::Sigmoid, of)
    }

    /// g and x, if the sum of two numbers is g · s + g · x · s · (1 - s) with s = sigmoid(x): the gradient of x · sigmoid(x).
    fn silu_slope(&self, first: Number, second: Number) -> Option<(Number, Number)> {
        let Make::Binary(Binary::Multiply, a, b) = self.made(first) else { return None };
        [(a, b), (b, a)].into_iter().find_map(|(g, s)| {
            let Make::Unary(Unary::Sigmoid, x) = self.made(s) else { return None };
            let mut factors = Vec::new();
            self.factors(second, g, &mut factors);
            let rest = factors.iter().position(|&factor| self.is_opposite(factor, s))?;
            factors.remove(rest);
            factors.sort_unstable();
            let mut expected = [g, x, s];
            expected.sort_unstable();
            (factors == expected).then_some((g, x))
        })
    }

    /// The factors of a product; `whole` is not taken apart.
    fn factors(&self, number: Number, whole: Number, factors: &mut Vec<Number>) {
        match self.made(number) {
            Make::Binary(Binary::Multiply, a, b) if number != whole => {
                self.factors(a, whole, factors);
                self.factors(b, whole, factors);
            }
            _ => factors.push(number),
        }
    }

    /// True for 1 - s, however it is written.
    fn is_opposite(&self, number: Number, s: Number) -> bool {
        let is_one = |number: Number| self.made(number) == Make::Constant(1.0);
        let is_negative = |number: Number| self.made(number) == Make::Unary(Unary::Negate, s);
        match self.made(number) {
            Make::Binary(Binary::Add, a, b) => (is_one(a) && is_negative(b)) || (is_one(b) && is_negative(a)),
            Make::Binary(Binary::Subtract, a, b) => is_one(a) && b == s,
            _ => false,
        }
    }

    fn select(&mut self, condition: Number, a: Number, b: Number) -> Number {
        self.make(Make::Select(condition, a, b))
    }

    fn opposite(&mut self, a: Number) -> Number {
        let one = self.constant(1.0);
        self.binary(Binary::Subtract, one, a)
    }

    /// A value that a node reads.
    fn read(&mut self, id: ValueId) -> Number {
        if let Some(&number) = self.values.get(&id) {
            return number;
        }
        let number = match self.facts.scalar(id) {
            Some(value) => self.constant(value),
            None => match self.order.lane_axis().and_then(|axis| self.facts.along(id, self.shape, axis)) {
                Some(lanes) => self.leaf(Leaf::Lanes(lanes.iter().map(|&lane| lane as f32).collect())),
                None => self.leaf(Leaf::Value(id)),
            },
        };
        self.values.insert(id, number);
        number
    }

    /// Writes a gate.
    pub(crate) fn gate(&mut self, node: &Node, gate: GateNode) {
        let main = self.read(gate.main);
        let zero = self.constant(0.0);
        let mask = gate.activation.map(|activation| self.leaf(Leaf::Mask(activation)));
        let number = match (gate.kind, mask) {
            (GateKind::Gradient, Some(mask)) => self.select(mask, main, zero),
            (GateKind::Guided, Some(mask)) => {
                let positive = self.binary(Binary::Greater, main, zero);
                let positive = self.select(positive, main, zero);
                self.select(mask, positive, zero)
            }
            (GateKind::Leaky(slope), Some(mask)) => {
                let slope = self.constant(slope.into());
                let scaled = self.binary(Binary::Multiply, main, slope);
                self.select(mask, main, scaled)
            }
            _ => {
                let positive = self.binary(Binary::Greater, main, zero);
                self.select(positive, main, zero)
            }
        };
        self.values.insert(node.outputs[0], number);
    }

    /// Writes a node; `None` if it cannot be written after all.
    pub(crate) fn node(&mut self, node: &Node) -> Option<()> {
        use Binary::{
            Add, Divide, Equal, Greater, GreaterOrEqual, Maximum, Minimum, Multiply, Power, Subtract,
        };
        let inputs: Vec<ValueId> = node.inputs.iter().copied().flatten().collect();
        let bound = |index: usize| node.inputs.get(index).copied().flatten();
        let x = match &node.op {
            // The vectors of a normalization are put together below.
            Op::BatchNormalization(_) | Op::Expand(_) => self.read(*inputs.first()?),
            _ => {
                let first = self.read(*inputs.first()?);
                inputs.iter().skip(1).for_each(|&input| {
                    self.read(input);
                });
                first
            }
        };
        let y = inputs.get(1).and_then(|id| self.values.get(id)).copied();
        let number = match &node.op {
            Op::Neg(_) => self.unary(Unary::Negate, x),
            Op::Abs(_) => self.unary(Unary::Absolute, x),
            Op::Exp(_) => self.unary(Unary::Exp, x),
            Op::Log(_) => self.unary(Unary::Ln, x),
            Op::Sqrt(_) => self.unary(Unary::SquareRoot, x),
            Op::Reciprocal(_) => self.unary(Unary::Reciprocal, x),
            Op::Erf(_) => self.unary(Unary::Erf, x),
            Op::Sin(_) => self.unary(Unary::Sin, x),
            Op::Cos(_) => self.unary(Unary::Cos, x),
            Op::Floor(_) => self.unary(Unary::Floor, x),
            Op::Ceil(_) => self.unary(Unary::Ceil, x),
            Op::Round(_) => self.unary(Unary::Round, x),
            Op::Sign(_) => self.unary(Unary::Sign, x),
            Op::Tanh(_) => self.unary(Unary::Tanh, x),
            Op::Sigmoid(_) => self.unary(Unary::Sigmoid, x),
            Op::Cast(_) | Op::Expand(_) => x,
            Op::Add(_) => self.binary(Add, x, y?),
            Op::Sub(_) => self.binary(Subtract, x, y?),
            Op::Mul(_) => self.binary(Multiply, x, y?),
            Op::Div(_) => self.binary(Divide, x, y?),
            Op::Pow(_) => match inputs.get(1).and_then(|&id| self.facts.scalar(id)) {
                Some(1.0) => x,
                Some(2.0) => self.binary(Multiply, x, x),
                Some(3.0) => {
                    let square = self.binary(Multiply, x, x);
                    self.binary(Multiply, square, x)
                }
                Some(-1.0) => self.unary(Unary::Reciprocal, x),
                _ => self.binary(Power, x, y?),
            },
            Op::Max(_) | Op::Min(_) | Op::Sum(_) | Op::Mean(_) => {
                let function = match &node.op {
                    Op::Max(_) => Maximum,
                    Op::Min(_) => Minimum,
                    _ => Add,
                };
                let mut total = x;
                for id in &inputs[1..] {
                    let other = self.values[id];
                    total = self.binary(function, total, other);
                }
                if let Op::Mean(_) = &node.op {
                    let share = self.constant(1.0 / inputs.len() as f64);
                    total = self.binary(Multiply, total, share);
                }
                total
            }
            Op::Greater(_) => self.binary(Greater, x, y?),
            Op::GreaterOrEqual(_) => self.binary(GreaterOrEqual, x, y?),
            Op::Less(_) => self.binary(Greater, y?, x),
            Op::LessOrEqual(_) => self.binary(GreaterOrEqual, y?, x),
            Op::Equal(_) => self.binary(Equal, x, y?),
            Op::And(_) => self.binary(Multiply, x, y?),
            Op::Or(_) => self.binary(Maximum, x, y?),
            Op::Xor(_) => {
                let same = self.binary(Equal, x, y?);
                self.opposite(same)
            }
            Op::Not(_) => self.opposite(x),
            Op::Where(_) => {
                let other = self.values[inputs.get(2)?];
                self.select(x, y?, other)
            }
            Op::Relu(_) => {
                let zero = self.constant(0.0);
                self.binary(Maximum, x, zero)
            }
            Op::LeakyRelu(op) => {
                let slope = self.constant(op.alpha.0);
                self.leaky(x, slope)
            }
            Op::PRelu(_) => self.leaky(x, y?),
            Op::ThresholdedRelu(op) => {
                let (bound, zero) = (self.constant(op.alpha.0), self.constant(0.0));
                let above = self.binary(Greater, x, bound);
                self.select(above, x, zero)
            }
            Op::Clip(_) => {
                let mut clipped = x;
                for (index, function) in [(1, Maximum), (2, Minimum)] {
                    if let Some(id) = bound(index) {
                        self.facts.scalar(id)?;
                        let limit = self.values[&id];
                        clipped = self.binary(function, clipped, limit);
                    }
                }
                clipped
            }
            Op::Elu(op) => self.exponential_unit(x, op.alpha.0, 1.0),
            Op::Selu(op) => self.exponential_unit(x, op.alpha.0 * op.gamma.0, op.gamma.0),
            Op::Celu(op) => {
                let inverse = self.constant(1.0 / op.alpha.0);
                let scaled = self.binary(Multiply, x, inverse);
                let (one, alpha, zero) = (self.constant(1.0), self.constant(op.alpha.0), self.constant(0.0));
                let exp = self.unary(Unary::Exp, scaled);
                let left = self.binary(Subtract, exp, one);
                let left = self.binary(Multiply, left, alpha);
                let positive = self.binary(Greater, x, zero);
                self.select(positive, x, left)
            }
            Op::HardSigmoid(op) => self.hard_sigmoid(x, op.alpha.0, op.beta.0),
            Op::HardSwish(_) => {
                let gate = self.hard_sigmoid(x, 1.0 / 6.0, 0.5);
                self.binary(Multiply, x, gate)
            }
            Op::Swish(op) => {
                let alpha = self.constant(op.alpha.0);
                let scaled = if op.alpha.0 == 1.0 { x } else { self.binary(Multiply, x, alpha) };
                let gate = self.unary(Unary::Sigmoid, scaled);
                self.binary(Multiply, x, gate)
            }
            Op::Softplus(_) => self.softplus(x),
            Op::Mish(_) => {
                let soft = self.softplus(x);
                let gate = self.unary(Unary::Tanh, soft);
                self.binary(Multiply, x, gate)
            }
            Op::Softsign(_) => {
                let (one, size) = (self.constant(1.0), self.unary(Unary::Absolute, x));
                let scale = self.binary(Add, size, one);
                self.binary(Divide, x, scale)
            }
            Op::Gelu(op) => {
                let inner = match op.tanh {
                    true => {
                        let (root, cubic) = (self.constant(0.797_884_560_802_865_4), self.constant(0.044715));
                        let square = self.binary(Multiply, x, x);
                        let cube = self.binary(Multiply, square, x);
                        let cube = self.binary(Multiply, cube, cubic);
                        let sum = self.binary(Add, x, cube);
                        let scaled = self.binary(Multiply, sum, root);
                        self.unary(Unary::Tanh, scaled)
                    }
                    false => {
                        let root = self.constant(std::f64::consts::FRAC_1_SQRT_2);
                        let scaled = self.binary(Multiply, x, root);
                        self.unary(Unary::Erf, scaled)
                    }
                };
                let (half, one) = (self.constant(0.5), self.constant(1.0));
                let (sum, scaled) = (self.binary(Add, inner, one), self.binary(Multiply, x, half));
                self.binary(Multiply, scaled, sum)
            }
            Op::BatchNormalization(_) => {
                let (scale, bias) = super::fuse::normalization(self.facts, node)?;
                if self.order.lane_axis() != Some(1) {
                    return None;
                }
                let narrow = |values: Vec<f64>| values.into_iter().map(|value| value as f32).collect();
                let scale = self.leaf(Leaf::Lanes(narrow(scale)));
                let bias = self.leaf(Leaf::Lanes(narrow(bias)));
                let scaled = self.binary(Multiply, x, scale);
                self.binary(Add, scaled, bias)
            }
            _ => return None,
        };
        self.values.insert(node.outputs[0], number);
        Some(())
    }

    fn leaky(&mut self, x: Number, slope: Number) -> Number {
        let zero = self.constant(0.0);
        let negative = self.binary(Binary::Greater, zero, x);
        let scaled = self.binary(Binary::Multiply, x, slope);
        self.select(negative, scaled, x)
    }

    fn exponential_unit(&mut self, x: Number, left: f64, right: f64) -> Number {
        let (one, zero) = (self.constant(1.0), self.constant(0.0));
        let (left, right) = (self.constant(left), self.constant(right));
        let exp = self.unary(Unary::Exp, x);
        let below = self.binary(Binary::Subtract, exp, one);
        let below = self.binary(Binary::Multiply, below, left);
        let above = self.binary(Binary::Multiply, x, right);
        let positive = self.binary(Binary::Greater, x, zero);
        self.select(positive, above, below)
    }

    fn hard_sigmoid(&mut self, x: Number, alpha: f64, beta: f64) -> Number {
        let (alpha, beta) = (self.constant(alpha), self.constant(beta));
        let (zero, one) = (self.constant(0.0), self.constant(1.0));
        let scaled = self.binary(Binary::Multiply, x, alpha);
        let line = self.binary(Binary::Add, scaled, beta);
        let raised = self.binary(Binary::Maximum, line, zero);
        self.binary(Binary::Minimum, raised, one)
    }

    fn softplus(&mut self, x: Number) -> Number {
        let (zero, one) = (self.constant(0.0), self.constant(1.0));
        let size = self.unary(Unary::Absolute, x);
        let negative = self.unary(Unary::Negate, size);
        let exp = self.unary(Unary::Exp, negative);
        let sum = self.binary(Binary::Add, exp, one);
        let logarithm = self.unary(Unary::Ln, sum);
        let positive = self.binary(Binary::Maximum, x, zero);
        self.binary(Binary::Add, positive, logarithm)
    }

    /// The expression of `root`, and the mask of the activation that made it.
    pub(crate) fn finish(mut self, root: &Node, record: Option<(NodeId, RecordRule)>) -> Option<Expression> {
        let result = *self.values.get(&root.outputs[0])?;
        self.expression.store(result);
        if let Some((activation, rule)) = record {
            let x = self.values.get(&root.inputs.first().copied()??).copied()?;
            let bounds = match rule {
                RecordRule::Positive => (Binary::Greater, 0.0, f32::INFINITY),
                RecordRule::Between(low, high) => (Binary::Greater, low, high),
                RecordRule::Within(low, high) => (Binary::GreaterOrEqual, low, high),
            };
            let (low, high) = (self.constant(bounds.1.into()), self.constant(bounds.2.into()));
            let above = self.binary(bounds.0, x, low);
            let below = self.binary(Binary::GreaterOrEqual, high, x);
            let strictly = self.binary(bounds.0, high, x);
            let bits = match rule {
                RecordRule::Positive => above,
                RecordRule::Between(..) => self.binary(Binary::Multiply, above, strictly),
                RecordRule::Within(..) => self.binary(Binary::Multiply, above, below),
            };
            self.expression.store(bits);
            self.expression.record = Some(activation);
        }
        Some(self.expression)
    }
}
