//! Finds a pattern in a graph, by going from the value that it ends in back to those that it starts from.

use super::pattern::{Number, Pattern};
use crate::graph::{Graph, Node, NodeId, ValueId};
use crate::op::{Op, OpDef};

/// A unit of more nodes than this is not looked for: whatever the graph, the search is short.
const MOST_NODES: usize = 48;

/// How often one search may look at a value.
const PATIENCE: usize = 10_000;

/// Ops that give back their first input, but for the type of its elements; found between the nodes of a unit.
const SEEN_THROUGH: &[&str] = &["Identity", "Dropout", "Cast", "CastLike", "RoundTo"];

/// What was found, as far as the search has come.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// The values of the inputs.
    pub(super) inputs: Vec<Option<ValueId>>,
    /// The nodes, each once, in no order.
    pub(super) nodes: Vec<NodeId>,
}

impl Found {
    fn with(&self, node: NodeId) -> Self {
        let mut found = self.clone();
        if !found.nodes.contains(&node) {
            found.nodes.push(node);
        }
        found
    }
}

/// Ways of matching, each with the number that is left: a coefficient or an offset.
type Ways = Vec<(Found, f64)>;

pub(super) struct Search<'g> {
    graph: &'g Graph,
    /// For each value, whether it depends on an input of the graph.
    pub(super) varies: Vec<bool>,
}

/// One search for one pattern.
struct Attempt<'s, 'g> {
    search: &'s Search<'g>,
    inputs: &'s [&'static str],
    patience: std::cell::Cell<usize>,
}

impl<'g> Search<'g> {
    pub(super) fn new(graph: &'g Graph) -> Self {
        let mut varies = vec![false; graph.values().len()];
        for input in graph.inputs() {
            varies[input.index()] = true;
        }
        for node in graph.nodes() {
            let any = node.inputs.iter().flatten().any(|input| varies[input.index()]);
            node.outputs.iter().for_each(|output| varies[output.index()] = any);
        }
        Self { graph, varies }
    }

    /// All ways in which the value that a node computes is the pattern.
    pub(super) fn at(&self, pattern: &Pattern, inputs: &[&'static str], node: NodeId) -> Vec<Found> {
        let Some(&output) = self.graph.node(node).outputs.first() else { return Vec::new() };
        let attempt = Attempt { search: self, inputs, patience: PATIENCE.into() };
        let nothing = Found { inputs: vec![None; inputs.len()], nodes: Vec::new() };
        attempt.exactly(pattern, output, &nothing)
    }

    /// The number that all elements of a constant are.
    fn scalar(&self, value: ValueId) -> Option<f64> {
        let fact = self.graph.fact(value);
        if self.varies[value.index()] || fact.content.is_none() {
            return None;
        }
        let integers = || Some(fact.known_integers()?.into_iter().map(|value| value as f64).collect());
        let values: Vec<f64> = fact.floats().or_else(integers)?;
        let first = *values.first()?;
        values.iter().all(|value| *value == first).then_some(first)
    }

    fn producer(&self, value: ValueId) -> Option<(NodeId, &'g Node)> {
        let node = self.graph.producer(value)?;
        Some((node, self.graph.node(node)))
    }

    /// True if a value is another less its mean.
    fn is_centered(&self, value: ValueId) -> bool {
        let inner = |mut value: ValueId| {
            while let Some((_, behind)) = self.seen_through(value) {
                value = behind;
            }
            value
        };
        let Some((_, node)) = self.producer(inner(value)) else { return false };
        let (Op::Sub(_), &[Some(whole), Some(mean)]) = (&node.op, &node.inputs[..]) else { return false };
        self.producer(inner(mean)).is_some_and(|(_, node)| {
            matches!(node.op, Op::ReduceMean(_)) && node.inputs[0].is_some_and(|of| inner(of) == inner(whole))
        })
    }

    /// True if all means among the nodes are taken over the same axes: the moments of a norm are.
    pub(super) fn means_agree(&self, nodes: &[NodeId]) -> bool {
        let axes = |id: &NodeId| {
            let node = self.graph.node(*id);
            let Op::ReduceMean(op) = &node.op else { return None };
            let rank = self.graph.fact(node.inputs.first().copied().flatten()?).rank();
            let mut axes = op.0.resolve(rank).ok()?;
            axes.sort_unstable();
            Some(axes)
        };
        let mut axes = nodes.iter().filter_map(axes);
        let first = axes.next();
        axes.all(|other| Some(other) == first)
    }

    /// The node between a value and one that is the same but for its type.
    fn seen_through(&self, value: ValueId) -> Option<(NodeId, ValueId)> {
        let (id, node) = self.producer(value)?;
        let input = node.inputs.first().copied().flatten()?;
        let float = |value: ValueId| self.graph.fact(value).dtype.is_float();
        (SEEN_THROUGH.contains(&node.op.name())
            && node.outputs.first() == Some(&value)
            && float(value)
            && float(input))
        .then_some((id, input))
    }
}

impl Attempt<'_, '_> {
    /// False once the search has taken too long.
    fn goes_on(&self, found: &Found) -> bool {
        let left = self.patience.get();
        self.patience.set(left.saturating_sub(1));
        left > 0 && found.nodes.len() <= MOST_NODES
    }

    /// The value, or what is behind nodes that change its type alone, is the pattern.
    fn value(&self, pattern: &Pattern, value: ValueId, found: &Found) -> Vec<Found> {
        let mut ways = self.exactly(pattern, value, found);
        if !matches!(pattern, Pattern::Input(_) | Pattern::Anything)
            && self.goes_on(found)
            && let Some((node, inner)) = self.search.seen_through(value)
        {
            ways.extend(self.value(pattern, inner, &found.with(node)));
        }
        ways
    }

    fn exactly(&self, pattern: &Pattern, value: ValueId, found: &Found) -> Vec<Found> {
        if !self.goes_on(found) {
            return Vec::new();
        }
        let accepted = |ways: Ways, number: Number| {
            ways.into_iter().filter(|(_, left)| number.accepts(*left)).map(|(found, _)| found).collect()
        };
        match pattern {
            Pattern::Anything => vec![found.clone()],
            Pattern::Input(place) => self.input(*place, value, found).into_iter().collect(),
            Pattern::Product(number, factors) => {
                let factors: Vec<(&Pattern, f64)> = factors.iter().map(|(f, e)| (f, *e)).collect();
                accepted(self.product(&factors, value, found), *number)
            }
            Pattern::Sum(terms, offset) => {
                let terms: Vec<(Number, &Pattern)> = terms.iter().map(|(n, t)| (*n, t)).collect();
                accepted(self.sum(&terms, value, found), *offset)
            }
            Pattern::Call(op, condition, arguments) => {
                let Some((id, node)) = self.search.producer(value) else { return Vec::new() };
                if node.op.name() != op || node.outputs.first() != Some(&value) {
                    return Vec::new();
                }
                if condition.as_ref().is_some_and(|condition| !holds(condition, self.search.graph, node)) {
                    return Vec::new();
                }
                let found = found.with(id);
                let mut ways = self.arguments(arguments, &node.inputs, &found);
                if matches!(op.as_str(), "Max" | "Min") && node.inputs.len() == 2 {
                    let turned: Vec<Option<ValueId>> = node.inputs.iter().rev().copied().collect();
                    ways.extend(self.arguments(arguments, &turned, &found));
                }
                ways
            }
        }
    }

    fn input(&self, place: usize, value: ValueId, found: &Found) -> Option<Found> {
        let constant = self.inputs[place].starts_with('#');
        if self.inputs[place].starts_with('!') && self.search.is_centered(value) {
            return None;
        }
        let fits = self.search.graph.fact(value).dtype.is_float()
            && !(constant && self.search.varies[value.index()])
            && found.inputs[place].is_none_or(|known| known == value);
        fits.then(|| {
            let mut found = found.clone();
            found.inputs[place] = Some(value);
            found
        })
    }

    fn arguments(&self, patterns: &[Pattern], inputs: &[Option<ValueId>], found: &Found) -> Vec<Found> {
        if patterns.len() != inputs.len() {
            return Vec::new();
        }
        let mut ways = vec![found.clone()];
        for (pattern, input) in patterns.iter().zip(inputs) {
            ways = ways
                .iter()
                .flat_map(|found| match input {
                    Some(input) => self.value(pattern, *input, found),
                    None => Vec::new(),
                })
                .collect();
        }
        ways
    }

    /// The value is the sum of the terms, and a number that is given back.
    fn sum(&self, terms: &[(Number, &Pattern)], value: ValueId, found: &Found) -> Ways {
        if !self.goes_on(found) {
            return Ways::new();
        }
        if terms.is_empty() {
            return self.search.scalar(value).map(|number| (found.clone(), number)).into_iter().collect();
        }
        let mut ways = Ways::new();
        if let [(number, term)] = terms {
            let scaled = match term {
                Pattern::Product(_, factors) => {
                    let factors: Vec<(&Pattern, f64)> = factors.iter().map(|(f, e)| (f, *e)).collect();
                    self.product(&factors, value, found)
                }
                other => self.product(&[(other, 1.0)], value, found),
            };
            let fitting = scaled.into_iter().filter(|(_, coefficient)| number.accepts(*coefficient));
            ways.extend(fitting.map(|(found, _)| (found, 0.0)));
        }
        let Some((id, node)) = self.search.producer(value) else { return ways };
        let negated = |terms: &[(Number, _)]| {
            terms.iter().map(|&(number, term)| (number.negated(), term)).collect::<Vec<_>>()
        };
        match (&node.op, &node.inputs[..]) {
            (Op::Add(_), &[Some(a), Some(b)]) => {
                let found = found.with(id);
                for (left, right) in splits(terms) {
                    let rights = |found: &Found| self.sum(&right, b, found);
                    join(&mut ways, self.sum(&left, a, &found), rights, |a, b| a + b);
                }
            }
            (Op::Sub(_), &[Some(a), Some(b)]) => {
                let found = found.with(id);
                for (left, right) in splits(terms) {
                    let right = negated(&right);
                    let rights = |found: &Found| self.sum(&right, b, found);
                    join(&mut ways, self.sum(&left, a, &found), rights, |a, b| a - b);
                }
            }
            (Op::Neg(_), &[Some(a)]) if terms.len() > 1 => {
                let inner = self.sum(&negated(terms), a, &found.with(id));
                ways.extend(inner.into_iter().map(|(found, offset)| (found, -offset)));
            }
            _ => {
                if terms.len() > 1
                    && let Some((node, inner)) = self.search.seen_through(value)
                {
                    ways.extend(self.sum(terms, inner, &found.with(node)));
                }
            }
        }
        ways
    }

    /// The value is the product of the factors, and a number that is given back.
    fn product(&self, factors: &[(&Pattern, f64)], value: ValueId, found: &Found) -> Ways {
        if !self.goes_on(found) {
            return Ways::new();
        }
        if factors.is_empty() {
            return self.search.scalar(value).map(|number| (found.clone(), number)).into_iter().collect();
        }
        let mut ways = Ways::new();
        if let [(factor, exponent)] = factors
            && (exponent - 1.0).abs() < 1e-6
        {
            ways.extend(self.exactly(factor, value, found).into_iter().map(|found| (found, 1.0)));
        }
        let Some((id, node)) = self.search.producer(value) else { return ways };
        let with = || found.with(id);
        let raised = |factors: &[(_, f64)], by: f64| {
            factors.iter().map(|&(factor, exponent)| (factor, exponent * by)).collect::<Vec<_>>()
        };
        match (&node.op, &node.inputs[..]) {
            (Op::Mul(_), &[Some(a), Some(b)]) => {
                let found = with();
                for (left, right) in divisions(factors) {
                    let rights = |found: &Found| self.product(&right, b, found);
                    join(&mut ways, self.product(&left, a, &found), rights, |a, b| a * b);
                }
            }
            (Op::Div(_), &[Some(a), Some(b)]) => {
                let found = with();
                for (left, right) in divisions(factors) {
                    let right = raised(&right, -1.0);
                    let rights = |found: &Found| self.product(&right, b, found);
                    join(&mut ways, self.product(&left, a, &found), rights, |a, b| a / b);
                }
            }
            (Op::Neg(_), &[Some(a)]) => {
                ways.extend(self.product(factors, a, &with()).into_iter().map(|(found, c)| (found, -c)));
            }
            (Op::Reciprocal(_), &[Some(a)]) => {
                let inner = self.product(&raised(factors, -1.0), a, &with());
                ways.extend(inner.into_iter().map(|(found, c)| (found, c.recip())));
            }
            (Op::Sqrt(_), &[Some(a)]) => {
                let inner = self.product(&raised(factors, 2.0), a, &with());
                ways.extend(inner.into_iter().map(|(found, c)| (found, c.sqrt())));
            }
            (Op::Pow(_), &[Some(a), Some(power)]) => {
                if let Some(power) = self.search.scalar(power).filter(|power| *power != 0.0) {
                    let inner = self.product(&raised(factors, power.recip()), a, &with());
                    ways.extend(inner.into_iter().map(|(found, c)| (found, c.powf(power))));
                }
            }
            _ => {
                if let Some((node, inner)) = self.search.seen_through(value) {
                    ways.extend(self.product(factors, inner, &found.with(node)));
                }
            }
        }
        ways
    }
}

/// Joins each way of matching a left operand with those of matching the right one.
fn join(ways: &mut Ways, lefts: Ways, rights: impl Fn(&Found) -> Ways, combine: impl Fn(f64, f64) -> f64) {
    for (found, a) in lefts {
        ways.extend(rights(&found).into_iter().map(|(found, b)| (found, combine(a, b))));
    }
}

/// All ways of sharing items out between two operands.
fn splits<T: Copy>(items: &[T]) -> Vec<(Vec<T>, Vec<T>)> {
    (0..1usize << items.len())
        .map(|mask| {
            let side = |left: bool| {
                let chosen = items.iter().enumerate().filter(|(place, _)| (mask >> place & 1 == 1) == left);
                chosen.map(|(_, item)| *item).collect()
            };
            (side(true), side(false))
        })
        .collect()
}

/// A product of factors with exponents.
type Factors<'p> = Vec<(&'p Pattern, f64)>;

/// All ways of sharing factors out between two operands; one with a whole exponent may go to both.
fn divisions<'p>(factors: &[(&'p Pattern, f64)]) -> Vec<(Factors<'p>, Factors<'p>)> {
    let mut ways = splits(factors);
    for (place, &(factor, exponent)) in factors.iter().enumerate() {
        let whole = exponent.abs().round();
        if whole < 2.0 || (exponent.abs() - whole).abs() > 1e-6 {
            continue;
        }
        let others: Factors =
            factors.iter().enumerate().filter(|(at, _)| *at != place).map(|(_, f)| *f).collect();
        for part in 1..whole as usize {
            let part = part as f64 * exponent.signum();
            for (mut left, mut right) in splits(&others) {
                left.push((factor, part));
                right.push((factor, exponent - part));
                ways.push((left, right));
            }
        }
    }
    ways
}

/// Whether a node's attributes are as a condition in a pattern says.
fn holds(condition: &str, graph: &Graph, node: &Node) -> bool {
    let Some(input) = node.inputs.first().copied().flatten() else { return false };
    let rank = graph.fact(input).rank();
    let reduced = || match &node.op {
        Op::ReduceMean(op) if op.0.keep_dims => {
            let mut axes = op.0.resolve(rank).ok()?;
            axes.sort_unstable();
            (!axes.is_empty()).then_some(axes)
        }
        _ => None,
    };
    match condition {
        // The last axis, or the last few; of pictures with channels first, rows and columns are the area.
        "last" => match &node.op {
            Op::Softmax(op) => op.0.axes(rank).is_ok_and(|axes| axes == (rank.saturating_sub(1)..rank)),
            _ => reduced().is_some_and(|axes| {
                axes[0] > 0 && axes.iter().copied().eq(axes[0]..rank) && (rank, axes.len()) != (4, 2)
            }),
        },
        "channels" => rank > 2 && reduced().is_some_and(|axes| axes == [1]),
        // All axes but those of samples and channels.
        "area" => {
            let is_area = |axes: &[usize]| {
                let all = |mut places: std::ops::Range<usize>| places.by_ref().eq(axes.iter().copied());
                all(2..rank) || all(1..rank - 1)
            };
            rank > 3 && reduced().is_some_and(|axes| is_area(&axes))
        }
        // Axes that a reshape has made; the last one alone, if it was there before, is that of a LayerNorm.
        "groups" => {
            // The squares are taken of what the reshape made.
            let made = |value| graph.producer(value).map(|node| graph.node(node));
            let mut reshape = made(input);
            while let Some(node) = reshape
                && !matches!(node.op, Op::Reshape(_))
            {
                let is_between = matches!(node.op, Op::Mul(_) | Op::Pow(_) | Op::Sub(_))
                    || SEEN_THROUGH.contains(&node.op.name());
                let first = node.inputs.first().copied().flatten();
                reshape = first.filter(|_| is_between).and_then(made);
            }
            let before = reshape.and_then(|reshape| reshape.inputs[0]);
            let last = |value| graph.fact(value).shape.last();
            reduced().is_some_and(|axes| {
                axes[0] > 0
                    && (axes != [rank - 1] || before.is_some_and(|before| last(before) != last(input)))
            })
        }
        "sixth" => match &node.op {
            Op::HardSigmoid(op) => {
                Number::Exactly(1.0 / 6.0).accepts(op.alpha.0) && Number::Exactly(0.5).accepts(op.beta.0)
            }
            _ => false,
        },
        _ => false,
    }
}
