//! The backward walk: visits the nodes between the wanted values and the loss in reverse and asks each for its rule.

use crate::builder::{Builder, Var};
use crate::error::{Context, Result, bail};
use crate::graph::{Graph, Node, NodeId, Provenance, ValueId};
use crate::op::{Op, OpDef};
use crate::rules::{Outcome, Rule, RuleSet, Selection};
use crate::units::{self, Unit};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// What a rule returns for one input.
#[derive(Clone, Copy, Debug)]
pub enum Cotangent<'b> {
    /// The derivative of the loss with respect to the input.
    Flows(Var<'b>),
    /// Nothing flows to this input, for the reason given: it is an index, or the op is piecewise constant in it.
    Stops(&'static str),
    /// Nobody asked: the input does not depend on a wanted value.
    Unwanted,
}

/// What a rule returns: one cotangent an input.
pub type Cotangents<'b> = Vec<Cotangent<'b>>;

/// A node as its backward rule sees it: inputs `x`, outputs `y`, cotangents of the outputs `g`.
#[derive(Debug)]
pub struct Back<'b> {
    builder: &'b Builder,
    node: &'b Node,
    x: Vec<Option<Var<'b>>>,
    y: Vec<Var<'b>>,
    g: Vec<Option<Var<'b>>>,
    wanted: Vec<bool>,
    varies: Vec<bool>,
    ended: RefCell<Vec<(Ending, Var<'b>)>>,
}

/// Where relevance ends that no input gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// In a bias or another parameter, or in a constant of the rule.
    Absorbed,
    /// Nowhere: there was no contribution of the sign that the rule follows, or the rule's stabilizer outweighed it.
    Lost,
}

impl<'b> Back<'b> {
    /// Where new nodes go.
    pub fn builder(&self) -> &'b Builder {
        self.builder
    }

    /// The node's op.
    pub fn op(&self) -> &'b Op {
        &self.node.op
    }

    /// The node's name.
    pub fn name(&self) -> &'b str {
        &self.node.name
    }

    /// The node.
    pub(crate) fn node(&self) -> &'b Node {
        self.node
    }

    /// The number of inputs, those left out included.
    pub fn arity(&self) -> usize {
        self.x.len()
    }

    /// An input that is there.
    pub fn x(&self, index: usize) -> Var<'b> {
        self.optional_x(index).expect("invariant: infer accepted the node, so a required input is there")
    }

    /// An input that may be left out.
    pub fn optional_x(&self, index: usize) -> Option<Var<'b>> {
        self.x.get(index).copied().flatten()
    }

    /// An output.
    pub fn y(&self, index: usize) -> Var<'b> {
        self.y[index]
    }

    /// The cotangent of an output; zeros if the loss does not depend on it.
    pub fn g(&self, index: usize) -> Var<'b> {
        self.g[index].unwrap_or_else(|| self.y[index].scalar_like(0.0).expand_like(self.y[index]))
    }

    /// The cotangent of an output that the loss depends on.
    pub fn optional_g(&self, index: usize) -> Option<Var<'b>> {
        self.g.get(index).copied().flatten()
    }

    /// True if an input's cotangent is needed.
    pub fn wants(&self, index: usize) -> bool {
        self.wanted.get(index).copied().unwrap_or(false)
    }

    /// True if an input depends on what the network is given, and so is no parameter.
    pub fn varies(&self, index: usize) -> bool {
        self.varies.get(index).copied().unwrap_or(false)
    }

    /// Records that this sum of relevance ends at the node: in a bias or another parameter, or in a constant of the rule.
    pub fn absorb(&self, share: Var<'b>) {
        self.ended.borrow_mut().push((Ending::Absorbed, share));
    }

    /// Records that this sum of relevance is lost at the node: the rule found nothing to give it to.
    pub fn lose(&self, share: Var<'b>) {
        self.ended.borrow_mut().push((Ending::Lost, share));
    }

    /// The cotangent of the first input alone; nothing flows to the others, which are indices, shapes or bounds.
    pub fn only_first(&self, cotangent: Var<'b>) -> Cotangents<'b> {
        let mut cotangents = vec![Cotangent::Stops("it says where or how, not how much"); self.arity()];
        cotangents[0] = Cotangent::Flows(cotangent);
        cotangents
    }

    /// Nothing flows through this node.
    pub fn stops(&self, reason: &'static str) -> Cotangents<'b> {
        vec![Cotangent::Stops(reason); self.arity()]
    }

    /// The cotangents of the inputs that are wanted.
    pub fn each_wanted(&self, mut cotangent: impl FnMut(usize) -> Var<'b>) -> Cotangents<'b> {
        (0..self.arity())
            .map(|index| match self.wants(index) {
                true => Cotangent::Flows(cotangent(index)),
                false => Cotangent::Unwanted,
            })
            .collect()
    }

    /// The cotangents of the inputs that are wanted, where finding one can fail.
    ///
    /// # Errors
    /// The first error.
    pub fn try_each_wanted(
        &self,
        mut cotangent: impl FnMut(usize) -> Result<Var<'b>>,
    ) -> Result<Cotangents<'b>> {
        (0..self.arity())
            .map(|index| match self.wants(index) {
                true => cotangent(index).map(Cotangent::Flows),
                false => Ok(Cotangent::Unwanted),
            })
            .collect()
    }

    /// The node's own op on other inputs: the door to relevance rules.
    pub fn again(&self, x: &[Option<Var<'b>>]) -> Vec<Var<'b>> {
        let stands_for = self.node.op.stands_for(self.builder, x);
        stands_for.unwrap_or_else(|| self.builder.apply_all(self.node.op.clone(), x))
    }

    /// The same node on other inputs: its outputs are computed anew, its gradient is taken there.
    #[must_use]
    pub fn at(&self, x: Vec<Option<Var<'b>>>) -> Self {
        let y = self.again(&x);
        Self { x, y, ..self.of(self.g.clone()) }
    }

    /// The same node, asked for the cotangents of these inputs.
    #[must_use]
    pub fn wanting(&self, wanted: Vec<bool>) -> Self {
        Self { wanted, ..self.of(self.g.clone()) }
    }

    fn of(&self, g: Vec<Option<Var<'b>>>) -> Self {
        Self {
            builder: self.builder,
            node: self.node,
            x: self.x.clone(),
            y: self.y.clone(),
            g,
            wanted: self.wanted.clone(),
            varies: self.varies.clone(),
            ended: RefCell::default(),
        }
    }

    /// The true gradient of the node.
    ///
    /// # Errors
    /// As the op's [`OpDef::vjp`].
    pub fn vjp(&self) -> Result<Cotangents<'b>> {
        self.node.op.vjp(self)
    }

    /// The true gradient of the node, for other cotangents of its outputs.
    ///
    /// # Errors
    /// As the op's [`OpDef::vjp`].
    pub fn vjp_of(&self, g: Vec<Option<Var<'b>>>) -> Result<Cotangents<'b>> {
        self.node.op.vjp(&self.of(g))
    }
}

/// What a backward pass did.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// The nodes that a row of the rule set was used on, with the rule's name.
    pub matched: Vec<(NodeId, Arc<str>)>,
    /// The nodes that got their true gradient.
    pub default: Vec<NodeId>,
    /// The inputs that nothing flows to, by node, with the reason.
    pub stopped: Vec<(NodeId, &'static str)>,
    /// The nodes that were brought into another form before the walk: titles, and the form's name.
    pub rewritten: Vec<(String, String)>,
    /// The sums of relevance that ended at a node: values of rank 0.
    pub ended: Vec<(NodeId, Ending, ValueId)>,
    /// The units of the graph.
    pub units: Vec<Unit>,
    /// The units that a rule was meant for, by their last nodes, which stand for them above; the others were walked node
    /// by node.
    pub whole: HashMap<NodeId, usize>,
}

impl Coverage {
    /// How messages speak of a node, or of the unit that it stands for.
    pub fn title(&self, graph: &Graph, id: NodeId) -> String {
        match self.whole.get(&id) {
            Some(&unit) => self.units[unit].title(graph),
            None => graph.node(id).title(),
        }
    }
}

/// A graph with its gradient.
#[derive(Clone, Debug)]
pub struct Gradient {
    /// The graph that was given, and after it the backward nodes.
    pub graph: Graph,
    /// The gradient with respect to each wanted value.
    pub values: Vec<ValueId>,
    /// The cotangent of each value of the given graph that one reached, by the value's index.
    pub cotangents: Vec<Option<ValueId>>,
    /// What happened on the way.
    pub coverage: Coverage,
}

/// A walk under way over the nodes of a graph, which adds backward nodes to a builder.
pub(crate) struct Walk<'b> {
    builder: &'b Builder,
    /// The values of the graph that is walked, where the builder has them.
    values: Vec<Option<Var<'b>>>,
    /// For each value, whether its cotangent is wanted.
    depends: Vec<bool>,
    /// For each value, whether it depends on an input.
    varies: Vec<bool>,
    cotangents: Vec<Option<Var<'b>>>,
}

impl<'b> Walk<'b> {
    /// Nothing is known of any cotangent yet.
    pub(crate) fn new(
        builder: &'b Builder,
        values: Vec<Option<Var<'b>>>,
        depends: Vec<bool>,
        varies: Vec<bool>,
    ) -> Self {
        let cotangents = vec![None; values.len()];
        Self { builder, values, depends, varies, cotangents }
    }

    /// The cotangent of a value, as far as it has been added up.
    pub(crate) fn cotangent(&self, value: ValueId) -> Option<Var<'b>> {
        self.cotangents[value.index()]
    }

    /// Adds to the cotangent of a value.
    pub(crate) fn add(&mut self, value: ValueId, cotangent: Var<'b>) {
        let sum = &mut self.cotangents[value.index()];
        *sum = Some(match *sum {
            Some(sum) => sum + cotangent,
            None => cotangent,
        });
    }

    /// Asks `rule` for the cotangents of the inputs of a node whose consumers have all been visited; `None` if the node is
    /// not on the way.
    pub(crate) fn visit(
        &mut self,
        node: &'b Node,
        rule: impl FnOnce(&Back<'b>) -> Result<Cotangents<'b>>,
    ) -> Result<Option<Visit<'b>>> {
        let among = |values: &[bool]| -> Vec<bool> {
            node.inputs.iter().map(|input| input.is_some_and(|value| values[value.index()])).collect()
        };
        let wanted = among(&self.depends);
        let g: Vec<Option<Var>> = node.outputs.iter().map(|output| self.cotangents[output.index()]).collect();
        if g.iter().all(Option::is_none) || !wanted.contains(&true) {
            return Ok(None);
        }
        let back = Back {
            builder: self.builder,
            node,
            x: node.inputs.iter().map(|input| input.and_then(|id| self.values[id.index()])).collect(),
            y: node.outputs.iter().filter_map(|output| self.values[output.index()]).collect(),
            g,
            wanted,
            varies: among(&self.varies),
            ended: RefCell::default(),
        };
        let returned = rule(&back)?;
        if returned.len() != node.inputs.len() {
            bail!(
                internal,
                "the rule of {} returned {} cotangents for {} inputs",
                node.title(),
                returned.len(),
                node.inputs.len()
            );
        }
        let mut stopped = Vec::new();
        for ((input, x), cotangent) in node.inputs.iter().zip(&back.x).zip(returned) {
            let Some((input, x)) = input.zip(*x).filter(|(input, _)| self.depends[input.index()]) else {
                continue;
            };
            match cotangent {
                Cotangent::Flows(new) => self.add(input, new.unbroadcast(x)),
                Cotangent::Stops(reason) => {
                    stopped.push(reason);
                    continue;
                }
                Cotangent::Unwanted => {
                    bail!(internal, "the rule of {} left out a wanted input", node.title())
                }
            }
            let total = self.cotangents[input.index()].expect("invariant: just added to");
            total.id()?;
            let (expected, found) = (x.fact(), total.fact());
            if expected.dtype != found.dtype || !compatible(&expected.shape, &found.shape) {
                bail!(internal, "a rule returned {found} for an input that is {expected}");
            }
        }
        Ok(Some(Visit { stopped, ended: back.ended.into_inner() }))
    }
}

/// What a walk learns at a node, besides cotangents.
pub(crate) struct Visit<'b> {
    /// Why nothing flows to some of the inputs.
    pub(crate) stopped: Vec<&'static str>,
    /// The sums of relevance that ended here.
    ended: Vec<(Ending, Var<'b>)>,
}

/// Adds to `graph` the gradient of the sum of `loss` with respect to each value of `wrt`.
///
/// A [`Unit`] that a row of the rule set is meant for is treated as one node; all others are walked node by node.
///
/// # Errors
/// If the loss is not floating point, if a wanted value does not reach it, or if a rule fails; the message names the
/// node.
pub fn gradient(graph: Graph, loss: ValueId, wrt: &[ValueId], rules: &RuleSet) -> Result<Gradient> {
    let builder = Builder::new(graph);
    let total = builder.var(loss);
    let ones = total.scalar_like(1.0).expand_like(total).id()?;
    backward(builder.finish()?, &[(loss, ones)], wrt, rules)
}

/// Adds to `graph` what reaches each value of `wrt` when the walk starts from given cotangents.
///
/// `seeds` are pairs of a value and its cotangent, both values of `graph`. The walk goes through what the seeded values
/// depend on, with their cotangents added where one depends on another.
///
/// # Errors
/// As [`gradient`].
pub fn backward(
    graph: Graph,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
    rules: &RuleSet,
) -> Result<Gradient> {
    let gradient = walk(graph, seeds, wrt, rules, 0)?;
    match wrt.iter().find(|value| gradient.cotangents[value.index()].is_none()) {
        None => Ok(gradient),
        Some(&missed) => {
            let Gradient { graph, coverage, .. } = &gradient;
            let reasons: Vec<String> = coverage
                .stopped
                .iter()
                .map(|(node, reason)| format!("{}: {reason}", graph.node(*node).title()))
                .collect();
            let because = match reasons.is_empty() {
                true => "no path leads from the one to the other".to_owned(),
                false => reasons.join("; "),
            };
            let seeded: Vec<String> = seeds.iter().map(|(seed, _)| graph.title(*seed)).collect();
            bail!(
                target,
                "{} does not depend on {} in a way that can be differentiated ({because})",
                seeded.join(", "),
                graph.title(missed)
            )
        }
    }
}

/// As [`backward`], through the nodes from the one of index `first` on; values that are not reached are left out.
pub(crate) fn walk(
    graph: Graph,
    seeds: &[(ValueId, ValueId)],
    wrt: &[ValueId],
    rules: &RuleSet,
    first: usize,
) -> Result<Gradient> {
    let forward_nodes: Vec<Node> = graph.nodes().to_vec();
    if let Some((seed, _)) = seeds.iter().find(|(seed, _)| !graph.fact(*seed).dtype.is_float()) {
        bail!(
            target,
            "{} cannot be differentiated: it holds {}",
            graph.title(*seed),
            graph.fact(*seed).dtype
        );
    }
    if let Some(&value) = wrt.iter().find(|value| !graph.fact(**value).dtype.is_float()) {
        let (title, dtype) = (graph.title(value), graph.fact(value).dtype);
        bail!(target, "{title} holds {dtype}: there is nothing to differentiate for");
    }
    let kept: Vec<ValueId> = seeds.iter().map(|(seed, _)| *seed).chain(wrt.iter().copied()).collect();
    let mut units = if rules.is_empty() { Vec::new() } else { units::recognize(&graph, &kept) };
    units.retain(|unit| unit.nodes[0].index() >= first);
    let Selection { of_nodes, of_units } = rules.select(&graph, &units);
    // Units that are treated as one node stand where their last node does.
    let mut wholes: HashMap<NodeId, (Node, &dyn Rule)> = HashMap::new();
    let mut is_inside = vec![false; forward_nodes.len()];
    let mut whole = HashMap::new();
    for (index, (unit, rule)) in units.iter().zip(of_units).enumerate() {
        if let Some(rule) = rule {
            unit.nodes.iter().for_each(|node| is_inside[node.index()] = true);
            wholes.insert(unit.last(), (unit.as_node(&graph)?, rule));
            whole.insert(unit.last(), index);
        }
    }
    let depends = depends_on(&graph, wrt);
    let varies = depends_on(&graph, graph.inputs());
    let ids: Vec<ValueId> = graph.values().map(|(id, _)| id).collect();
    let builder = Builder::new(graph);
    let values = ids.iter().map(|&id| Some(builder.var(id))).collect();
    let mut walk = Walk::new(&builder, values, depends, varies);
    for &(value, cotangent) in seeds {
        walk.add(value, builder.var(cotangent));
    }

    let mut coverage = Coverage { units, whole, ..Coverage::default() };
    for (index, node) in forward_nodes.iter().enumerate().skip(first).rev() {
        let id = NodeId(index as u32);
        let (node, rule) = match wholes.get(&id) {
            Some((whole, rule)) => (whole, Some(*rule)),
            None if is_inside[index] => continue,
            None => (node, of_nodes[index]),
        };
        let rule_name: Arc<str> = rule.map_or("gradient".into(), |rule| rule.name().into());
        builder.set_provenance(Some(Provenance { node: node.title().into(), rule: rule_name.clone() }));
        let visited = walk
            .visit(node, |back| match rule.map_or(Ok(Outcome::Default), |rule| rule.apply(back))? {
                Outcome::Applied(returned) => {
                    coverage.matched.push((id, rule_name));
                    Ok(returned)
                }
                Outcome::Default => {
                    coverage.default.push(id);
                    back.vjp()
                }
            })
            .context(|| format!("gradient of {}", node.title()))?;
        let Some(Visit { stopped, ended }) = visited else { continue };
        coverage.stopped.extend(stopped.into_iter().map(|reason| (id, reason)));
        for (ending, share) in ended {
            let share = share.id().context(|| format!("relevance of {}", node.title()))?;
            coverage.ended.push((id, ending, share));
        }
    }
    builder.set_provenance(None);

    let mut cotangents = Vec::new();
    for id in ids {
        cotangents.push(walk.cotangent(id).map(Var::id).transpose()?);
    }
    let values = wrt.iter().filter_map(|value| cotangents[value.index()]).collect();
    Ok(Gradient { graph: builder.finish()?, values, cotangents, coverage })
}

/// Shapes agree if no axis has two different known lengths.
fn compatible(a: &[crate::dim::Dim], b: &[crate::dim::Dim]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || a.known().is_none() || b.known().is_none())
}

/// For each value, whether it depends on one of `wrt` through floating point values.
pub(crate) fn depends_on(graph: &Graph, wrt: &[ValueId]) -> Vec<bool> {
    let mut depends = vec![false; graph.values().len()];
    for value in wrt {
        depends[value.index()] = true;
    }
    for node in graph.nodes() {
        if node.inputs.iter().flatten().any(|input| depends[input.index()]) {
            for output in &node.outputs {
                depends[output.index()] |= graph.fact(*output).dtype.is_float();
            }
        }
    }
    depends
}
