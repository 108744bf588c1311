//! Elementwise expressions: what is computed from what, before it becomes a program. Nothing in between is stored.

use crate::graph::{NodeId, ValueId};
use ouzel_kernels::{Binary, Instruction, MOST_REGISTERS, Program, Register, Unary};

/// Programs longer than this are cut in two.
const MOST_INSTRUCTIONS: usize = 96;

/// What an expression reads, as a value of the graph.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Leaf {
    /// A value, broadcast to the result.
    Value(ValueId),
    /// What was computed from a value where that was computed, and stored in its stead: see [`Expression::take_out`].
    Factor(ValueId),
    /// A constant for each lane.
    Lanes(Vec<f32>),
    /// The mask of an activation.
    Mask(NodeId),
}

/// A number in an expression.
pub(crate) type Number = usize;

/// How a number is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Make {
    Load(usize),
    Constant(f32),
    Unary(Unary, Number),
    Binary(Binary, Number, Number),
    Select(Number, Number, Number),
}

impl Make {
    fn sources(&self) -> [Option<Number>; 3] {
        match *self {
            Self::Load(_) | Self::Constant(_) => [None; 3],
            Self::Unary(_, a) => [Some(a), None, None],
            Self::Binary(_, a, b) => [Some(a), Some(b), None],
            Self::Select(condition, a, b) => [Some(condition), Some(a), Some(b)],
        }
    }

    /// The same of other numbers.
    fn of(&self, number: impl Fn(Number) -> Number) -> Self {
        match *self {
            Self::Load(_) | Self::Constant(_) => *self,
            Self::Unary(function, a) => Self::Unary(function, number(a)),
            Self::Binary(function, a, b) => Self::Binary(function, number(a), number(b)),
            Self::Select(condition, a, b) => Self::Select(number(condition), number(a), number(b)),
        }
    }
}

/// What is computed for each element, and from what.
#[derive(Clone, Debug, Default)]
pub(crate) struct Expression {
    /// Each number is made of earlier ones.
    made: Vec<Make>,
    pub(crate) leaves: Vec<Leaf>,
    /// The results.
    stores: Vec<Number>,
    /// The second result is the mask of this activation, which is the first result.
    pub(crate) record: Option<NodeId>,
}

/// What a number is computed from, of two kinds of leaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Reach {
    /// The value in question.
    own: bool,
    others: bool,
}

impl Expression {
    pub(crate) fn made(&self, number: Number) -> Make {
        self.made[number]
    }

    /// A number; what is computed once is not computed again.
    pub(crate) fn make(&mut self, make: Make) -> Number {
        match self.made.iter().position(|made| *made == make) {
            Some(number) => number,
            None => {
                self.made.push(make);
                self.made.len() - 1
            }
        }
    }

    pub(crate) fn leaf(&mut self, leaf: Leaf) -> Number {
        let index = match self.leaves.iter().position(|other| *other == leaf) {
            Some(index) => index,
            None => {
                self.leaves.push(leaf);
                self.leaves.len() - 1
            }
        };
        self.make(Make::Load(index))
    }

    /// Makes a number the next result.
    pub(crate) fn store(&mut self, number: Number) {
        self.stores.push(number);
    }

    /// For each number, whether the results depend on it.
    fn needed(&self) -> Vec<bool> {
        let mut needed = vec![false; self.made.len()];
        self.stores.iter().for_each(|&store| needed[store] = true);
        for number in (0..self.made.len()).rev() {
            if needed[number] {
                self.made[number].sources().into_iter().flatten().for_each(|source| needed[source] = true);
            }
        }
        needed
    }

    /// For each number, what it depends on.
    fn reach(&self, value: ValueId) -> Vec<Reach> {
        let mut reach: Vec<Reach> = Vec::with_capacity(self.made.len());
        for make in &self.made {
            reach.push(match make {
                Make::Load(leaf) => {
                    let own = self.leaves[*leaf] == Leaf::Value(value);
                    Reach { own, others: !own }
                }
                _ => make.sources().into_iter().flatten().fold(Reach::default(), |sum, source| Reach {
                    own: sum.own | reach[source].own,
                    others: sum.others | reach[source].others,
                }),
            });
        }
        reach
    }

    /// Takes out what depends on a value alone, if that is one number, or one factor of the result: the derivative of an activation
    /// by its input. Gives that part, and leaves [`Leaf::Factor`] in its place.
    pub(crate) fn take_out(&self, value: ValueId) -> Option<(Self, Self)> {
        let mut whole = self.clone();
        let factor = match whole.sole(value) {
            Some(number) => number,
            None => {
                let &[result] = whole.stores.as_slice() else { return None };
                let (rest, factor) = whole.factor(result, &whole.reach(value))?;
                let factor = factor?;
                whole.stores = vec![whole.make(Make::Binary(Binary::Multiply, rest, factor))];
                factor
            }
        };
        let is_loaded = matches!(whole.made[factor], Make::Load(_) | Make::Constant(_));
        if is_loaded || whole.reach(value)[factor] != (Reach { own: true, others: false }) {
            return None;
        }
        let part = Self { stores: vec![factor], record: None, ..whole.clone() }.without_rest();
        let mut left = Self { record: whole.record, ..Self::default() };
        let mut numbers = Vec::with_capacity(whole.made.len());
        for (number, make) in whole.made.iter().enumerate() {
            numbers.push(match make {
                _ if number == factor => left.leaf(Leaf::Factor(value)),
                Make::Load(leaf) => left.leaf(whole.leaves[*leaf].clone()),
                _ => left.make(make.of(|number| numbers[number])),
            });
        }
        left.stores = whole.stores.iter().map(|&store| numbers[store]).collect();
        let left = left.without_rest();
        let is_loaded = |&store: &Number| matches!(left.made[store], Make::Load(_));
        (!left.leaves.contains(&Leaf::Value(value)) && !left.stores.iter().any(is_loaded))
            .then_some((part, left))
    }

    /// The only number through which the results depend on a value, if it depends on nothing else.
    fn sole(&self, value: ValueId) -> Option<Number> {
        let (reach, needed) = (self.reach(value), self.needed());
        let mut found: Vec<Number> =
            self.stores.iter().copied().filter(|&store| !reach[store].others).collect();
        for (number, make) in self.made.iter().enumerate().filter(|(number, _)| needed[*number]) {
            if reach[number].others {
                found.extend(make.sources().into_iter().flatten().filter(|&source| !reach[source].others));
            }
        }
        found.retain(|&number| reach[number].own);
        found.sort_unstable();
        found.dedup();
        match found.as_slice() {
            &[number] => Some(number),
            _ => None,
        }
    }

    /// A number as a product of what does not depend on the value and what depends on nothing else; the latter is missing if it is 1.
    /// Selections are not taken apart: what they stop is zero, whatever it is multiplied by.
    fn factor(&mut self, number: Number, reach: &[Reach]) -> Option<(Number, Option<Number>)> {
        let is_factor = |number: Number| reach.get(number).is_some_and(|reach| !reach.others);
        match self.made[number] {
            Make::Binary(Binary::Multiply, a, b) if is_factor(a) != is_factor(b) => {
                let (main, other) = if is_factor(b) { (a, b) } else { (b, a) };
                let (rest, factor) = self.factor(main, reach)?;
                Some((rest, Some(self.times(factor, other))))
            }
            Make::Binary(function @ (Binary::Add | Binary::Subtract), a, b) if reach[number].own => {
                let ((rest, first), (same, second)) = (self.factor(a, reach)?, self.factor(b, reach)?);
                let [first, second] =
                    [first, second].map(|factor| factor.unwrap_or_else(|| self.make(Make::Constant(1.0))));
                (rest == same).then(|| (rest, Some(self.make(Make::Binary(function, first, second)))))
            }
            Make::Unary(Unary::Negate, a) if reach[number].own => {
                let (rest, factor) = self.factor(a, reach)?;
                let factor = factor.unwrap_or_else(|| self.make(Make::Constant(1.0)));
                Some((rest, Some(self.make(Make::Unary(Unary::Negate, factor)))))
            }
            _ => (!reach[number].own).then_some((number, None)),
        }
    }

    fn times(&mut self, factor: Option<Number>, other: Number) -> Number {
        match factor {
            Some(factor) => self.make(Make::Binary(Binary::Multiply, factor, other)),
            None => other,
        }
    }

    /// The same without numbers and leaves that the results do not need.
    fn without_rest(&self) -> Self {
        let mut kept = Self { record: self.record, ..Self::default() };
        let numbers = kept.copy(self, &self.needed());
        kept.stores = self.stores.iter().map(|&store| numbers[store]).collect();
        kept
    }

    /// Makes the chosen numbers of another expression; gives their numbers here.
    fn copy(&mut self, other: &Self, chosen: &[bool]) -> Vec<Number> {
        let mut numbers = Vec::with_capacity(other.made.len());
        for (make, chosen) in other.made.iter().zip(chosen) {
            numbers.push(match make {
                _ if !chosen => Number::MAX,
                Make::Load(leaf) => self.leaf(other.leaves[*leaf].clone()),
                _ => self.make(make.of(|number| numbers[number])),
            });
        }
        numbers
    }

    /// Puts the result of another expression in the place of the last one.
    pub(crate) fn replace_last(&mut self, other: &Self) {
        let numbers = self.copy(other, &other.needed());
        if let (Some(last), Some(&store)) = (self.stores.last_mut(), other.stores.first()) {
            *last = numbers[store];
        }
        *self = self.with_shared_sigmoids();
    }

    /// The same with x · sigmoid(x) and its derivative computed from one sigmoid, where both are.
    fn with_shared_sigmoids(&self) -> Self {
        let is_made = |function: Unary, x: Number| self.made.contains(&Make::Unary(function, x));
        let mut shared = Self { record: self.record, ..Self::default() };
        let mut numbers: Vec<Number> = Vec::with_capacity(self.made.len());
        for make in &self.made {
            numbers.push(match *make {
                Make::Load(leaf) => shared.leaf(self.leaves[leaf].clone()),
                Make::Unary(function @ (Unary::Silu | Unary::SiluSlope), x)
                    if is_made(Unary::Silu, x) && is_made(Unary::SiluSlope, x) =>
                {
                    let x = numbers[x];
                    let sigmoid = shared.make(Make::Unary(Unary::Sigmoid, x));
                    let silu = shared.make(Make::Binary(Binary::Multiply, x, sigmoid));
                    match function {
                        Unary::Silu => silu,
                        _ => {
                            // s · (1 + x · (1 - s)) = s + (y - y · s)
                            let product = shared.make(Make::Binary(Binary::Multiply, silu, sigmoid));
                            let rest = shared.make(Make::Binary(Binary::Subtract, silu, product));
                            shared.make(Make::Binary(Binary::Add, sigmoid, rest))
                        }
                    }
                }
                make => shared.make(make.of(|number| numbers[number])),
            });
        }
        shared.stores = self.stores.iter().map(|&store| numbers[store]).collect();
        shared
    }

    /// The program that stores the results, with registers shared out in the order in which numbers are needed; `None` if there are
    /// not enough.
    pub(crate) fn program(&self) -> Option<Program> {
        // Only what the results depend on, each number as late as the order of making allows.
        let needed = self.needed();
        // Loads and constants go right before their first use.
        let is_leaf = |number: Number| matches!(self.made[number], Make::Load(_) | Make::Constant(_));
        let mut sequence: Vec<Number> = Vec::new();
        for number in (0..self.made.len()).filter(|&number| needed[number] && !is_leaf(number)) {
            for source in self.made[number].sources().into_iter().flatten() {
                if is_leaf(source) && !sequence.contains(&source) {
                    sequence.push(source);
                }
            }
            sequence.push(number);
        }
        for &store in &self.stores {
            if is_leaf(store) && !sequence.contains(&store) {
                sequence.push(store);
            }
        }
        if sequence.len() + self.stores.len() > MOST_INSTRUCTIONS {
            return None;
        }
        let mut last_use = vec![0; self.made.len()];
        for (place, &number) in sequence.iter().enumerate() {
            self.made[number].sources().into_iter().flatten().for_each(|source| last_use[source] = place);
        }
        for &store in &self.stores {
            last_use[store] = usize::MAX;
        }
        let mut registers: Vec<Option<Register>> = vec![None; self.made.len()];
        let mut free: Vec<Register> = (0..MOST_REGISTERS as Register).rev().collect();
        let mut instructions = Vec::with_capacity(sequence.len() + self.stores.len());
        for (place, &number) in sequence.iter().enumerate() {
            let make = self.made[number];
            let sources: Vec<Number> = make.sources().into_iter().flatten().collect();
            let at = |source: Number| registers[source];
            let inputs: Option<Vec<Register>> = sources.iter().map(|&source| at(source)).collect();
            let inputs = inputs?;
            for (index, &source) in sources.iter().enumerate() {
                if last_use[source] == place && !sources[..index].contains(&source) {
                    free.extend(registers[source]);
                }
            }
            let to = free.pop()?;
            registers[number] = Some(to);
            instructions.push(match make {
                Make::Load(operand) => Instruction::Load { to, operand },
                Make::Constant(value) => Instruction::Constant { to, value },
                Make::Unary(function, _) => Instruction::Unary { to, function, a: inputs[0] },
                Make::Binary(function, ..) => {
                    Instruction::Binary { to, function, a: inputs[0], b: inputs[1] }
                }
                Make::Select(..) => {
                    Instruction::Select { to, condition: inputs[0], a: inputs[1], b: inputs[2] }
                }
            });
        }
        for (result, &store) in self.stores.iter().enumerate() {
            instructions.push(Instruction::Store { result, from: registers[store]? });
        }
        Some(Program::new(instructions))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::graph::{Fact, Graph};
    use crate::tensor::DType;

    /// Two values, and an expression that has loaded both.
    fn loaded() -> (Expression, [ValueId; 2], [Number; 2]) {
        let builder = Builder::new(Graph::default());
        let ids = ["x", "g"].map(|name| builder.input(name, Fact::new(DType::F32, vec![])).id().unwrap());
        let mut expression = Expression::default();
        let numbers = ids.map(|id| expression.leaf(Leaf::Value(id)));
        (expression, ids, numbers)
    }

    #[test]
    fn a_sum_of_products_has_a_factor() {
        // g / 2 · erf(x) - x · (g / 2)
        let (mut expression, [x_id, g_id], [x, g]) = loaded();
        let half = expression.make(Make::Constant(0.5));
        let g = expression.make(Make::Binary(Binary::Multiply, g, half));
        let erf = expression.make(Make::Unary(Unary::Erf, x));
        let first = expression.make(Make::Binary(Binary::Multiply, g, erf));
        let second = expression.make(Make::Binary(Binary::Multiply, x, g));
        let sum = expression.make(Make::Binary(Binary::Subtract, first, second));
        expression.store(sum);
        let (part, rest) = expression.take_out(x_id).unwrap();
        assert_eq!(part.leaves, [Leaf::Value(x_id)]);
        assert_eq!(rest.leaves, [Leaf::Value(g_id), Leaf::Factor(x_id)]);
        assert_eq!(rest.made.iter().filter(|make| matches!(make, Make::Binary(..))).count(), 1);
        assert!(part.program().is_some() && rest.program().is_some());
    }

    #[test]
    fn selections_are_not_taken_apart() {
        let (mut expression, [x_id, _], [x, g]) = loaded();
        let zero = expression.make(Make::Constant(0.0));
        let positive = expression.make(Make::Binary(Binary::Greater, x, zero));
        let scaled = expression.make(Make::Binary(Binary::Multiply, g, x));
        let selected = expression.make(Make::Select(positive, scaled, zero));
        expression.store(selected);
        assert!(expression.take_out(x_id).is_none());
    }

    #[test]
    fn what_stands_alone_is_taken_out_of_a_selection() {
        let (mut expression, [x_id, g_id], [x, g]) = loaded();
        let exp = expression.make(Make::Unary(Unary::Exp, x));
        let zero = expression.make(Make::Constant(0.0));
        let selected = expression.make(Make::Select(g, exp, zero));
        expression.store(selected);
        let (part, rest) = expression.take_out(x_id).unwrap();
        assert_eq!(part.stores.len(), 1);
        assert_eq!(rest.leaves, [Leaf::Value(g_id), Leaf::Factor(x_id)]);
    }
}
