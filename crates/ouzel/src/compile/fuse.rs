//! Joins nodes into steps: biases, factors, residuals, activations and gates go into the kernel that comes before them.

use super::anchor::{Anchor, Facts};
use super::expression::{Expression, Leaf};
use super::gates::{Gate, activation, gate};
use super::layout::Order;
use super::order::Layouts;
use super::pointwise::{GateKind, GateNode, Writer, is_supported};
use crate::graph::{Node, NodeId, ValueId};
use crate::op::Op;
use crate::tensor::DType;
use ouzel_kernels::{Activation, GateRule, Program, RecordRule};
use std::collections::{HashMap, HashSet};

/// Channels below which a program works better on a tensor as a whole.
const LEAST_LANES: usize = 16;

/// More nodes than this are cut before they are written as a program: it would be too long, and take long to write.
const MOST_NODES: usize = 400;

/// A gate within a cluster.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClusterGate {
    pub(crate) rule: GateRule,
    pub(crate) activation: Option<NodeId>,
    pub(crate) before_addend: bool,
}

/// Nodes that become one step.
#[derive(Clone, Debug)]
pub(crate) struct Cluster {
    /// The node that a kernel computes.
    pub(crate) node: NodeId,
    pub(crate) anchor: Anchor,
    /// The last of the nodes: the step runs in its place.
    pub(crate) last: NodeId,
    pub(crate) input: ValueId,
    pub(crate) output: ValueId,
    /// A factor for each channel of the input.
    pub(crate) input_scale: Option<Vec<f64>>,
    /// A factor for each channel of the output.
    pub(crate) output_scale: Option<Vec<f64>>,
    pub(crate) bias: Option<Vec<f64>>,
    pub(crate) addend: Option<ValueId>,
    pub(crate) record: Option<(NodeId, RecordRule)>,
    pub(crate) activation: Option<Activation>,
    pub(crate) gate: Option<ClusterGate>,
    /// How far the epilogue is filled.
    stage: Stage,
    /// The titles of the nodes that were joined to the first.
    pub(crate) joined: Vec<&'static str>,
    pub(crate) tail: Option<Box<ClusterTail>>,
}

/// An elementwise program that goes on from the output of a cluster before that is stored.
#[derive(Clone, Debug)]
pub(crate) struct ClusterTail {
    pub(crate) program: Elementwise,
    pub(crate) second: Option<Second>,
}

/// What the second result of a tail is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Second {
    /// What the kernel has computed.
    Value,
    /// What a later expression needs of it, see [`Expression::take_out`].
    Factor,
    /// Another value, which nothing but this one and constants decide.
    Result(ValueId),
}

/// Elementwise nodes as one program.
#[derive(Clone, Debug)]
pub(crate) struct Elementwise {
    pub(crate) program: Program,
    pub(crate) expression: Expression,
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) output: ValueId,
}

impl Elementwise {
    /// `None` if there are not enough registers.
    fn new(expression: Expression, nodes: Vec<NodeId>, output: ValueId) -> Option<Self> {
        Some(Self { program: expression.program()?, expression, nodes, output })
    }

    /// The same nodes with another expression.
    fn with(&self, expression: Expression) -> Option<Self> {
        Self::new(expression, self.nodes.clone(), self.output)
    }
}

/// The parts of an epilogue in the order in which they act.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Product,
    GateBefore,
    Addend,
    Activation,
    GateAfter,
}

/// What ends with a node.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Cluster(Box<Cluster>),
    Program(Box<Elementwise>),
}

/// How the nodes of a graph become steps.
pub(crate) struct Fusion {
    endings: Vec<Option<Ending>>,
    /// Nodes that no step of their own is needed for.
    hidden: Vec<bool>,
}

impl Fusion {
    /// The step of several nodes that ends with this one.
    pub(crate) fn ending(&self, node: NodeId) -> Option<&Ending> {
        self.endings[node.index()].as_ref()
    }

    /// True for nodes that are part of a step that ends later, or that only say where a gate opens.
    pub(crate) fn is_hidden(&self, node: NodeId) -> bool {
        self.hidden[node.index()]
    }

    pub(crate) fn new(facts: &Facts, layouts: &Layouts) -> Self {
        Fuser::new(facts, layouts).run()
    }
}

/// The nodes of a step, which are all there is where none is needed, and the step.
type Done = (Vec<NodeId>, Option<ElementwiseStep>);

/// What elementwise nodes become.
enum ElementwiseStep {
    /// An epilogue on a tensor, of these nodes.
    Finish(Box<Cluster>, Vec<NodeId>),
    Program(Box<Elementwise>),
}

impl ElementwiseStep {
    fn nodes(&self) -> &[NodeId] {
        match self {
            Self::Finish(_, nodes) => nodes,
            Self::Program(program) => &program.nodes,
        }
    }
}

struct Fuser<'a> {
    facts: &'a Facts<'a>,
    layouts: &'a Layouts,
    gates: HashMap<NodeId, Gate>,
    /// Activations whose masks gates ask for.
    recorded: HashSet<NodeId>,
    /// How often each value is read as numbers, outputs of the plan included.
    uses: Vec<usize>,
    /// The nodes that read each value as numbers.
    readers: Vec<Vec<NodeId>>,
    /// The steps of elementwise nodes that compute each node, by the nodes that they end with. A node that is not stored may be
    /// part of several.
    roots: Vec<Vec<NodeId>>,
    taken: Vec<bool>,
    /// Nodes that only say where gates open: nothing reads them as numbers.
    silent: Vec<bool>,
    clusters: Vec<Cluster>,
}

impl<'a> Fuser<'a> {
    fn new(facts: &'a Facts<'a>, layouts: &'a Layouts) -> Self {
        let count = facts.graph.nodes().len();
        Self {
            facts,
            layouts,
            gates: HashMap::new(),
            recorded: HashSet::new(),
            uses: vec![0; facts.graph.values().len()],
            readers: vec![Vec::new(); facts.graph.values().len()],
            roots: vec![Vec::new(); count],
            taken: vec![false; count],
            silent: vec![false; count],
            clusters: Vec::new(),
        }
    }

    fn run(mut self) -> Fusion {
        self.find_gates();
        let nodes = self.facts.graph.nodes_with_ids();
        // Products first, the later ones before the earlier: of two branches that are added, the later one can add.
        for (id, node) in nodes.rev() {
            match &self.layouts.anchors[id.index()] {
                Some(anchor) if !self.taken[id.index()] && !matches!(anchor, Anchor::Scale) => {
                    self.grow(id, node, anchor.clone());
                }
                _ => {}
            }
        }
        let mut endings: Vec<Option<Ending>> = vec![None; self.taken.len()];
        let mut hidden = self.taken.clone();
        let steps = self.elementwise_steps();
        for (root, step) in &steps {
            for node in step.nodes() {
                hidden[node.index()] = true;
                self.roots[node.index()].push(*root);
            }
        }
        for (root, step) in steps {
            match step {
                ElementwiseStep::Finish(cluster, _) => endings[root.index()] = Some(Ending::Cluster(cluster)),
                ElementwiseStep::Program(program) if self.go_on(root, &program) => {}
                ElementwiseStep::Program(program) => endings[root.index()] = Some(Ending::Program(program)),
            }
        }
        self.take_in_programs(&mut endings);
        self.take_out_factors(&mut endings);
        for cluster in self.clusters {
            let last = cluster.last.index();
            endings[last] = Some(Ending::Cluster(Box::new(cluster)));
        }
        for (hidden, ending) in hidden.iter_mut().zip(&endings) {
            *hidden &= ending.is_none();
        }
        Fusion { endings, hidden }
    }

    /// Finds the gates, hides the comparisons that only they read, and counts what is left.
    fn find_gates(&mut self) {
        let facts = self.facts;
        for (id, node) in facts.graph.nodes_with_ids() {
            if let Some(gate) = gate(facts, self.layouts, node) {
                self.gates.insert(id, gate);
            }
        }
        // The inner part of a pattern is no gate of its own.
        let inner: Vec<NodeId> = self.gates.values().filter_map(|gate| gate.inner).collect();
        for node in &inner {
            self.gates.remove(node);
            self.taken[node.index()] = true;
            self.silent[node.index()] = true;
        }
        self.recorded = self.gates.values().filter_map(|gate| gate.activation).collect();
        for (id, node) in facts.graph.nodes_with_ids().rev() {
            let is_condition = matches!(
                node.op,
                Op::Greater(_) | Op::GreaterOrEqual(_) | Op::Less(_) | Op::LessOrEqual(_) | Op::And(_)
            );
            let output = node.outputs[0];
            let only_gates = || {
                facts.consumers(output).iter().all(|(consumer, position)| {
                    self.taken[consumer.index()] || (*position == 0 && self.gates.contains_key(consumer))
                })
            };
            if is_condition && !facts.is_output(output) && only_gates() {
                self.taken[id.index()] = true;
                self.silent[id.index()] = true;
            }
        }
        for (id, node) in facts.graph.nodes_with_ids().filter(|(id, _)| !self.silent[id.index()]) {
            for input in self.reads(id, node) {
                self.uses[input.index()] += 1;
                self.readers[input.index()].push(id);
            }
        }
        for (id, _) in facts.graph.values() {
            self.uses[id.index()] += usize::from(facts.is_output(id));
        }
    }

    /// The operands of a sum of two tensors of one shape, or of one and a constant along the lanes.
    fn sum(&self, node: &Node) -> Option<(ValueId, Summand)> {
        let Op::Add(_) = node.op else { return None };
        let (a, b) = (node.inputs[0]?, node.inputs[1]?);
        let output = node.outputs[0];
        let shape = self.facts.floats(output)?;
        let order = self.layouts.order(output)?;
        if let Some((main, lanes)) = self.facts.lane_operand(node, order) {
            return Some((main, Summand::Lanes(lanes)));
        }
        let whole = |id: ValueId| self.facts.floats(id) == Some(shape);
        (whole(a) && whole(b)).then_some((a, Summand::Value(b)))
    }

    /// A cluster of one node.
    fn start(&self, id: NodeId, node: &'a Node, anchor: Anchor) -> Option<Cluster> {
        let facts = self.facts;
        let input = |index: usize| node.inputs.get(index).copied().flatten();
        let mut cluster = Cluster {
            node: id,
            anchor,
            last: id,
            input: input(0)?,
            output: node.outputs[0],
            input_scale: None,
            output_scale: None,
            bias: None,
            addend: None,
            record: None,
            activation: None,
            gate: None,
            stage: Stage::Product,
            joined: Vec::new(),
            tail: None,
        };
        match &cluster.anchor {
            Anchor::Convolution { .. } => {
                if let Some(bias) = input(2) {
                    let channels = *facts.floats(node.outputs[0])?.get(1)?;
                    cluster.bias = Some(facts.vector(bias, channels)?);
                }
            }
            Anchor::Dense { .. } => {
                if let (Some(bias), Op::Gemm(gemm)) = (input(2), &node.op) {
                    let bias = facts.along(bias, facts.floats(node.outputs[0])?, 1)?;
                    cluster.bias = Some(bias.iter().map(|b| b * gemm.beta.0).collect());
                }
            }
            Anchor::Scale => self.start_scale(&mut cluster, node)?,
            Anchor::Finish => {
                if let Some(gate) = self.gates.get(&id) {
                    cluster.input = gate.main;
                } else if let Some((main, _)) = self.sum(node) {
                    cluster.input = main;
                } else {
                    activation(facts, node)?;
                }
                let main = cluster.input;
                if !self.join(&mut cluster, id, node, main) {
                    return None;
                }
            }
            _ => {}
        }
        Some(cluster)
    }

    /// Makes a cluster of a node and as many of the following ones as fit.
    fn grow(&mut self, id: NodeId, node: &'a Node, anchor: Anchor) {
        let facts = self.facts;
        let Some(mut cluster) = self.start(id, node, anchor) else { return };
        if let Anchor::Convolution { .. } = cluster.anchor {
            self.scale_input(&mut cluster);
        }
        self.taken[id.index()] = true;
        // Positions of maxima are there when the pooling is done, not when what follows it is.
        let mut may_grow = !matches!(cluster.anchor, Anchor::MaxPool { .. }) || node.outputs.len() < 2;
        while may_grow {
            let output = cluster.output;
            if self.uses[output.index()] != 1 || facts.is_output(output) {
                break;
            }
            let reader = self.readers[output.index()].iter().find(|reader| !self.taken[reader.index()]);
            let Some(&reader) = reader else { break };
            may_grow = self.join(&mut cluster, reader, facts.graph.node(reader), output);
            if may_grow {
                self.taken[reader.index()] = true;
                // A mask must be there when the activation is done.
                may_grow = cluster.record.is_none();
            }
        }
        self.clusters.push(cluster);
    }

    /// The values that a node reads as numbers.
    fn reads(&self, id: NodeId, node: &Node) -> Vec<ValueId> {
        match self.gates.get(&id) {
            Some(gate) => vec![gate.main],
            None => node.inputs.iter().copied().flatten().collect(),
        }
    }

    /// For each node that no cluster has taken, whether a program can compute it.
    fn elementwise(&self) -> Vec<bool> {
        let facts = self.facts;
        let graph = facts.graph;
        let is_bool = |id: ValueId| graph.fact(id).dtype == DType::Bool;
        // Nodes only leave, so that this ends.
        let mut elementwise = vec![true; graph.nodes().len()];
        loop {
            let mut changed = false;
            let previous = elementwise.clone();
            for (id, node) in graph.nodes_with_ids() {
                let output = node.outputs[0];
                let shape = facts.shape(output).filter(|shape| !shape.contains(&0));
                let computes = facts.floats(output).is_some() || is_bool(output);
                let read = |&input: &ValueId| {
                    facts.floats(input).is_some()
                        || (is_bool(input)
                            && facts.shape(input) == shape
                            && facts.producer(input).is_some_and(|(id, _)| elementwise[id.index()]))
                };
                let fits = match &node.op {
                    Op::Clip(_) => activation(facts, node).is_some(),
                    Op::Cast(_) | Op::Expand(_) => facts.floats(output).is_some(),
                    Op::BatchNormalization(_) => {
                        let order = self.layouts.order(output);
                        order.is_some_and(|order| order.lane_axis() == Some(1))
                            && normalization(facts, node).is_some()
                    }
                    op => is_supported(op),
                };
                let consumed = |(reader, _): &(NodeId, usize)| {
                    previous[reader.index()] && facts.shape(graph.node(*reader).outputs[0]) == shape
                };
                // Where to expand to is no number.
                let inputs = if let Op::Expand(_) = node.op { 1 } else { usize::MAX };
                // Truth values stay within programs.
                let inner = !is_bool(output)
                    || (!facts.is_output(output) && facts.consumers(output).iter().all(consumed));
                let now = !self.taken[id.index()]
                    && shape.is_some()
                    && computes
                    && fits
                    && inner
                    && self.reads(id, node).iter().take(inputs).all(read);
                changed |= now != previous[id.index()];
                elementwise[id.index()] = now;
            }
            if !changed {
                return elementwise;
            }
        }
    }

    /// The steps of elementwise nodes, each with the node that it ends with.
    fn elementwise_steps(&self) -> Vec<(NodeId, ElementwiseStep)> {
        let graph = self.facts.graph;
        let mut elementwise = self.elementwise();
        let mut stored = self.stored(&elementwise);
        // By the node that each ends with.
        let mut done: Vec<Option<Done>> = Vec::new();
        done.resize_with(elementwise.len(), || None);
        // Stores the result of a node, and says from where on there is work again: only what has been computed on the way to others
        // changes.
        let store = |node: NodeId, stored: &mut [bool], done: &mut [Option<Done>]| {
            stored[node.index()] = true;
            for other in &mut done[node.index()..] {
                if other.as_ref().is_some_and(|(nodes, _)| nodes.binary_search(&node).is_ok()) {
                    *other = None;
                }
            }
            node.index()
        };
        let mut next = 0;
        while next < done.len() {
            let root = NodeId(next as u32);
            next += 1;
            if !elementwise[root.index()] || !stored[root.index()] || done[root.index()].is_some() {
                continue;
            }
            let node = graph.node(root);
            let nodes = self.expression(root, &elementwise, &stored);
            if let Some(missing) = self.missing(&nodes, &elementwise, &stored) {
                next = store(missing, &mut stored, &mut done);
                continue;
            }
            if let (Op::Expand(_), [_]) = (&node.op, nodes.as_slice()) {
                done[root.index()] = Some((nodes, None));
                continue;
            }
            if let Some(cluster) = self.finish_of(&nodes) {
                let step = ElementwiseStep::Finish(Box::new(cluster), nodes.clone());
                done[root.index()] = Some((nodes, Some(step)));
                continue;
            }
            let expression = match nodes.len() <= MOST_NODES {
                true => self.expression_of(root, node, &nodes),
                false => None,
            };
            let program = expression
                .and_then(|expression| Elementwise::new(expression, nodes.clone(), node.outputs[0]));
            if let Some(program) = program {
                done[root.index()] = Some((nodes, Some(ElementwiseStep::Program(Box::new(program)))));
                continue;
            }
            // Too long for one program: store something in the middle; or it cannot be written at all.
            let floats: Vec<NodeId> = (nodes.iter().copied())
                .filter(|&id| id != root && self.facts.floats(graph.node(id).outputs[0]).is_some())
                .collect();
            match floats.get(floats.len() / 2) {
                Some(&middle) => next = store(middle, &mut stored, &mut done),
                None => {
                    nodes.iter().for_each(|node| elementwise[node.index()] = false);
                    stored = self.stored(&elementwise);
                    done.fill_with(|| None);
                    next = 0;
                }
            }
        }
        let steps = done.into_iter().enumerate();
        steps.filter_map(|(index, done)| Some((NodeId(index as u32), done?.1?))).collect()
    }

    /// Makes a program the tail of a cluster whose output it reads, if there is one that can wait until the program's other operands are
    /// there: best one whose output nothing else reads, else the last one. False if there is none.
    fn go_on(&mut self, root: NodeId, program: &Elementwise) -> bool {
        let facts = self.facts;
        let output = facts.graph.node(root).outputs[0];
        let lanes = self.layouts.order(output).and_then(Order::lane_axis).zip(facts.floats(output));
        let is_wide = lanes.is_some_and(|(axis, shape)| shape[axis] >= LEAST_LANES);
        if program.expression.record.is_some() || !is_wide {
            return false;
        }
        let can_wait = |cluster: &Cluster| {
            matches!(cluster.anchor, Anchor::Convolution { .. } | Anchor::Dense { .. })
                && program.expression.leaves.contains(&Leaf::Value(cluster.output))
                && cluster.tail.is_none()
                && cluster.record.is_none()
                && cluster.last < root
                && self.works_by_lanes(cluster)
                && self.layouts.agree(facts, cluster.output, output)
                && self.other_readers(cluster.output, root).all(|reader| reader > root)
        };
        let is_needed = |cluster: &Cluster| {
            facts.is_output(cluster.output) || self.other_readers(cluster.output, root).next().is_some()
        };
        let clusters = self.clusters.iter().enumerate().filter(|(_, cluster)| can_wait(cluster));
        let host = clusters.max_by_key(|(_, cluster)| (!is_needed(cluster), cluster.last));
        let Some((index, cluster)) = host else { return false };
        let mut expression = program.expression.clone();
        let second = is_needed(cluster).then_some(Second::Value);
        if second.is_some() {
            let value = expression.leaf(Leaf::Value(cluster.output));
            expression.store(value);
        }
        let Some(program) = program.with(expression) else { return false };
        let cluster = &mut self.clusters[index];
        cluster.last = root;
        cluster.tail = Some(Box::new(ClusterTail { program, second }));
        true
    }

    /// The nodes that read a value, but for the step that ends with `root`. In the place of a node that other steps compute on their
    /// way, the ends of those: one that is part of this step too is read there as well.
    fn other_readers(&self, value: ValueId, root: NodeId) -> impl Iterator<Item = NodeId> {
        let steps = self.readers[value.index()].iter().flat_map(|reader| {
            match self.roots[reader.index()].as_slice() {
                [] => std::slice::from_ref(reader),
                roots => roots,
            }
        });
        steps.copied().filter(move |&step| step != root)
    }

    /// Where the output of a cluster is kept for one later program alone, and that reads nothing else but constants, the result of the
    /// program is computed and kept instead.
    fn take_in_programs(&mut self, endings: &mut [Option<Ending>]) {
        let facts = self.facts;
        for index in 0..self.clusters.len() {
            let cluster = &self.clusters[index];
            let Some(tail) = cluster.tail.as_ref().filter(|tail| tail.second == Some(Second::Value)) else {
                continue;
            };
            let (value, own) = (cluster.output, &tail.program);
            let reads = |program: &Elementwise| program.expression.leaves.contains(&Leaf::Value(value));
            let is_read_by_tails = self.clusters.iter().enumerate().any(|(other, cluster)| {
                other != index && cluster.tail.as_ref().is_some_and(|tail| reads(&tail.program))
            });
            let mut programs = endings.iter().enumerate().filter_map(|(place, ending)| match ending {
                Some(Ending::Program(program)) if reads(program) => Some((place, program)),
                _ => None,
            });
            let (Some((place, later)), None) = (programs.next(), programs.next()) else { continue };
            let is_known = |leaf: &Leaf| match leaf {
                Leaf::Value(id) => *id == value || facts.graph.constant(*id).is_some(),
                Leaf::Lanes(_) => true,
                Leaf::Factor(_) | Leaf::Mask(_) => false,
            };
            let is_shared = facts.is_output(value)
                || self.readers[value.index()]
                    .iter()
                    .any(|reader| !own.nodes.contains(reader) && !later.nodes.contains(reader));
            if is_read_by_tails
                || is_shared
                || later.expression.record.is_some()
                || !later.expression.leaves.iter().all(is_known)
                || !self.layouts.agree(facts, value, later.output)
            {
                continue;
            }
            let mut expression = own.expression.clone();
            expression.replace_last(&later.expression);
            let (Some(program), result) = (own.with(expression), later.output) else { continue };
            endings[place] = None;
            if let Some(tail) = &mut self.clusters[index].tail {
                tail.program = program;
                tail.second = Some(Second::Result(result));
            }
        }
    }

    /// Where the output of a cluster is kept for one later expression alone, and that needs nothing but a factor of it (the derivative of
    /// an activation), the factor is computed and kept instead.
    fn take_out_factors(&mut self, endings: &mut [Option<Ending>]) {
        for index in 0..self.clusters.len() {
            let cluster = &self.clusters[index];
            let Some(tail) = cluster.tail.as_ref().filter(|tail| tail.second == Some(Second::Value)) else {
                continue;
            };
            let (value, own) = (cluster.output, tail.program.clone());
            let reads = |program: &Elementwise| program.expression.leaves.contains(&Leaf::Value(value));
            let tails = self.clusters.iter_mut().enumerate().filter(|(other, _)| *other != index);
            let tails = tails.filter_map(|(_, cluster)| Some(&mut cluster.tail.as_mut()?.program));
            let programs = endings.iter_mut().filter_map(|ending| match ending {
                Some(Ending::Program(program)) => Some(&mut **program),
                _ => None,
            });
            let mut later: Vec<&mut Elementwise> =
                tails.chain(programs).filter(|program| reads(program)).collect();
            let [later] = later.as_mut_slice() else { continue };
            let nodes = [own.nodes.as_slice(), &later.nodes].concat();
            let is_shared = self.facts.is_output(value)
                || self.readers[value.index()].iter().any(|reader| !nodes.contains(reader));
            if is_shared || !self.layouts.agree(self.facts, value, later.output) {
                continue;
            }
            let Some((factor, rest)) = later.expression.take_out(value) else { continue };
            let Some(rest) = later.with(rest) else { continue };
            let mut expression = own.expression.clone();
            expression.replace_last(&factor);
            let Some(program) = own.with(expression) else { continue };
            **later = rest;
            if let Some(tail) = &mut self.clusters[index].tail {
                tail.program = program;
                tail.second = Some(Second::Factor);
            }
        }
    }

    /// For each elementwise node, whether something other than a program of its own shape needs its result.
    fn stored(&self, elementwise: &[bool]) -> Vec<bool> {
        let facts = self.facts;
        let mut stored = vec![false; elementwise.len()];
        for (id, node) in facts.graph.nodes_with_ids().filter(|(id, _)| elementwise[id.index()]) {
            let output = node.outputs[0];
            stored[id.index()] = facts.floats(output).is_some()
                && (facts.is_output(output)
                    || self.recorded.contains(&id)
                    || self.readers[output.index()].iter().any(|reader| {
                        let other = facts.graph.node(*reader);
                        !elementwise[reader.index()] || !self.together(output, other.outputs[0])
                    }));
        }
        stored
    }

    /// True if one program can compute a value on its way to another.
    fn together(&self, inner: ValueId, outer: ValueId) -> bool {
        let facts = self.facts;
        match facts.floats(inner).is_some() && facts.floats(outer).is_some() {
            true => self.layouts.agree(facts, inner, outer),
            // Truth values take the order of the numbers around them.
            false => facts.shape(inner) == facts.shape(outer),
        }
    }

    /// The nodes that are computed on the way to a stored one, in their order.
    fn expression(&self, root: NodeId, elementwise: &[bool], stored: &[bool]) -> Vec<NodeId> {
        let (facts, graph) = (self.facts, self.facts.graph);
        let output = graph.node(root).outputs[0];
        let mut nodes = vec![root];
        let mut seen = HashSet::from([root]);
        let mut next = 0;
        while let Some(&id) = nodes.get(next) {
            next += 1;
            for input in self.reads(id, graph.node(id)) {
                if let Some((producer, _)) = facts.producer(input) {
                    let inside = elementwise[producer.index()]
                        && !stored[producer.index()]
                        && self.together(input, output)
                        && seen.insert(producer);
                    if inside {
                        nodes.push(producer);
                    }
                }
            }
        }
        nodes.sort();
        nodes
    }

    /// A node whose result these read, but which is neither stored nor one of them: truth values in between have let it look as if it lay
    /// in the order of these.
    fn missing(&self, nodes: &[NodeId], elementwise: &[bool], stored: &[bool]) -> Option<NodeId> {
        let graph = self.facts.graph;
        let inputs = nodes.iter().flat_map(|&id| self.reads(id, graph.node(id)));
        let mut producers = inputs.filter_map(|input| Some(self.facts.producer(input)?.0));
        producers.find(|producer| {
            elementwise[producer.index()]
                && !stored[producer.index()]
                && nodes.binary_search(producer).is_err()
        })
    }

    /// The epilogue that computes these nodes, if there is one.
    fn finish_of(&self, nodes: &[NodeId]) -> Option<Cluster> {
        let graph = self.facts.graph;
        let (&first, rest) = nodes.split_first()?;
        let node = graph.node(first);
        let is_scale = matches!(self.layouts.anchors[first.index()], Some(Anchor::Scale));
        let mut cluster = self.start(first, node, if is_scale { Anchor::Scale } else { Anchor::Finish })?;
        for &id in rest {
            let output = cluster.output;
            let joins = self.uses[output.index()] == 1
                && cluster.record.is_none()
                && self.reads(id, graph.node(id)).contains(&output)
                && self.join(&mut cluster, id, graph.node(id), output);
            if !joins {
                return None;
            }
        }
        Some(cluster)
    }

    /// The expression of these nodes, of which `root` is the last.
    fn expression_of(&self, root: NodeId, node: &Node, nodes: &[NodeId]) -> Option<Expression> {
        let graph = self.facts.graph;
        let mut writer = Writer::new(self.facts, self.layouts, node.outputs[0])?;
        for &id in nodes {
            match self.gates.get(&id) {
                Some(gate) => {
                    let kind = match gate.rule {
                        GateRule::Gradient => GateKind::Gradient,
                        GateRule::Guided => GateKind::Guided,
                        GateRule::Rectified => GateKind::Rectified,
                        GateRule::Leaky(slope) => GateKind::Leaky(slope),
                    };
                    let gate = GateNode { kind, main: gate.main, activation: gate.activation };
                    writer.gate(graph.node(id), gate);
                }
                None => writer.node(graph.node(id))?,
            }
        }
        let record = match self.recorded.contains(&root) {
            true => Some((root, activation(self.facts, node)?.1)),
            false => None,
        };
        writer.finish(node, record)
    }

    /// Sets the factor and summand of a scale.
    fn start_scale(&self, cluster: &mut Cluster, node: &Node) -> Option<()> {
        if let Op::BatchNormalization(_) = &node.op {
            let (scale, bias) = normalization(self.facts, node)?;
            cluster.output_scale = Some(scale);
            cluster.bias = Some(bias);
        } else {
            let (main, scale) = self.facts.lane_operand(node, self.layouts.order(node.outputs[0])?)?;
            cluster.input = main;
            cluster.output_scale = Some(scale);
        }
        Some(())
    }

    /// Takes a factor for each channel of the input into the weights.
    fn scale_input(&mut self, cluster: &mut Cluster) {
        let (facts, input) = (self.facts, cluster.input);
        let Some((id, node)) = facts.producer(input) else { return };
        let (Op::Mul(_), 1, false) = (&node.op, self.uses[input.index()], self.taken[id.index()]) else {
            return;
        };
        let Some(order) = self.layouts.order(input).filter(|order| order.lane_axis() == Some(1)) else {
            return;
        };
        if let Some((main, scale)) = facts.lane_operand(node, order)
            && scale.iter().all(|factor| factor.is_finite())
            && self.layouts.agree(facts, main, input)
        {
            cluster.input = main;
            cluster.input_scale = Some(scale);
            cluster.joined.push("scale");
            self.taken[id.index()] = true;
        }
    }

    /// Tries to take a node, which reads `main`, into the epilogue.
    fn join(&self, cluster: &mut Cluster, id: NodeId, node: &'a Node, main: ValueId) -> bool {
        let (facts, output) = (self.facts, node.outputs[0]);
        let is_start = cluster.node == id;
        let by_lanes = self.works_by_lanes(cluster);
        if !is_start && !self.layouts.agree(facts, main, output) {
            return false;
        }
        if let Some(gate) = self.gates.get(&id) {
            let before = cluster.stage <= Stage::GateBefore;
            if gate.main != main || cluster.gate.is_some() || !by_lanes {
                return false;
            }
            cluster.gate =
                Some(ClusterGate { rule: gate.rule, activation: gate.activation, before_addend: before });
            cluster.stage = if before { Stage::GateBefore } else { Stage::GateAfter };
            cluster.joined.push("gate");
        } else if let Some((function, rule)) = activation(facts, node) {
            let recorded = self.recorded.contains(&id);
            let fits = cluster.stage < Stage::Activation && (by_lanes || !recorded);
            if !fits || node.inputs[0] != Some(main) {
                return false;
            }
            cluster.activation = Some(function);
            cluster.record = recorded.then_some((id, rule));
            cluster.stage = Stage::Activation;
            cluster.joined.push(activation_name(&node.op));
        } else if let Op::BatchNormalization(_) = node.op {
            let Some((scale, bias)) = normalization(facts, node) else { return false };
            let channels = self.layouts.order(output).is_some_and(|order| order.lane_axis() == Some(1));
            if cluster.stage != Stage::Product
                || !channels
                || !by_lanes
                || !self.scale_output(cluster, &scale)
            {
                return false;
            }
            add_lanes(&mut cluster.bias, &bias);
            cluster.joined.push("normalization");
        } else if let Op::Mul(_) = node.op {
            // A factor passes a gate that selects by a mask alone.
            let gate = cluster.gate.is_none_or(|gate| gate.rule == GateRule::Gradient);
            let factor = self.layouts.order(output).and_then(|order| facts.lane_operand(node, order));
            let Some((factored, scale)) = factor else { return false };
            let fits = factored == main && by_lanes && gate && cluster.stage <= Stage::GateBefore;
            if !fits || !scale.iter().all(|factor| factor.is_finite()) || !self.scale_output(cluster, &scale)
            {
                return false;
            }
            cluster.joined.push("scale");
        } else if let Some((a, summand)) = self.sum(node) {
            match summand {
                Summand::Lanes(lanes) => {
                    if a != main || cluster.stage != Stage::Product || !by_lanes {
                        return false;
                    }
                    add_lanes(&mut cluster.bias, &lanes);
                    cluster.joined.push("bias");
                }
                Summand::Value(b) => {
                    let other = if a == main { b } else { a };
                    if cluster.stage >= Stage::Addend || (other == main && !is_start) {
                        return false;
                    }
                    cluster.addend = Some(other);
                    cluster.stage = Stage::Addend;
                    cluster.joined.push("add");
                }
            }
        } else {
            return false;
        }
        cluster.last = id;
        cluster.output = output;
        true
    }

    /// True if the channels of the kernel are the lanes of its output: then masks and biases are laid out alike everywhere.
    ///
    /// An axis of length 1 is no lane, so it takes a tensor of one channel for this to fail.
    fn works_by_lanes(&self, cluster: &Cluster) -> bool {
        let output = self.facts.graph.node(cluster.node).outputs[0];
        let lane = self.layouts.order(output).and_then(Order::lane_axis);
        match cluster.anchor {
            Anchor::Scale | Anchor::Finish => true,
            Anchor::Dense { .. } => {
                lane.is_some() && lane.map(|axis| axis + 1) == self.facts.floats(output).map(<[usize]>::len)
            }
            _ => lane == Some(1),
        }
    }

    /// Multiplies what the cluster has so far; false if its kernel has no weights of its own to do so.
    fn scale_output(&self, cluster: &mut Cluster, scale: &[f64]) -> bool {
        if !matches!(cluster.anchor, Anchor::Convolution { .. } | Anchor::Scale) {
            return false;
        }
        let factors = cluster.output_scale.get_or_insert_with(|| vec![1.0; scale.len()]);
        factors.iter_mut().zip(scale).for_each(|(factor, scale)| *factor *= scale);
        if let Some(bias) = &mut cluster.bias {
            bias.iter_mut().zip(scale).for_each(|(bias, scale)| *bias *= scale);
        }
        true
    }
}

/// What a sum adds.
enum Summand {
    Value(ValueId),
    /// A number for each lane.
    Lanes(Vec<f64>),
}

fn add_lanes(bias: &mut Option<Vec<f64>>, lanes: &[f64]) {
    let sums = bias.get_or_insert_with(|| vec![0.0; lanes.len()]);
    sums.iter_mut().zip(lanes).for_each(|(sum, lane)| *sum += lane);
}

fn activation_name(op: &Op) -> &'static str {
    match op {
        Op::Relu(_) => "Relu",
        Op::LeakyRelu(_) => "LeakyRelu",
        _ => "Clip",
    }
}

/// The factor and summand of each channel of a batch normalization.
pub(crate) fn normalization(facts: &Facts, node: &Node) -> Option<(Vec<f64>, Vec<f64>)> {
    let Op::BatchNormalization(op) = &node.op else { return None };
    let channels = *facts.floats(node.outputs[0])?.get(1)?;
    let vector = |index: usize| facts.vector(node.inputs.get(index).copied().flatten()?, channels);
    let (scale, bias, mean, variance) = (vector(1)?, vector(2)?, vector(3)?, vector(4)?);
    let factors: Vec<f64> = scale
        .iter()
        .zip(&variance)
        .map(|(scale, variance)| scale / (variance + op.epsilon.0).sqrt())
        .collect();
    let summands =
        bias.iter().zip(&mean).zip(&factors).map(|((bias, mean), factor)| bias - mean * factor).collect();
    factors.iter().all(|factor| factor.is_finite()).then_some((factors, summands))
}
