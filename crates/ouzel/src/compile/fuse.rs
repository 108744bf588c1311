//! Joins nodes into steps: biases, factors, residuals, activations and gates go into the kernel that comes before them.

mod elementwise;
mod tails;

use super::anchor::{Anchor, Facts};
use super::expression::Expression;
use super::gates::{Gate, activation, gate};
use super::layout::Order;
use super::order::Layouts;
use crate::graph::{Node, NodeId, ValueId};
use crate::op::Op;
use ouzel_kernels::{Activation, GateRule, Program, RecordRule};
use std::collections::{HashMap, HashSet};

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
