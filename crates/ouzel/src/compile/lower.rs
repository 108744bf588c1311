//! Turns nodes and clusters of nodes into steps on buffers.

use super::Precision;
use super::anchor::{Anchor, Facts};
use super::expression::Leaf;
use super::fuse::{Cluster, Elementwise, Ending, Fusion, Second};
use super::layout::{BufferId, Order, Place, strided_copy};
use super::order::Layouts;
use super::pack::{Packed, Packer, elements};
use super::step::{
    Argument, Buffer, BufferKind, Finish, GateStep, OperandStep, Region, Step, TailStep, Target, TensorId,
    Work,
};
use crate::dim::known_shape;
use crate::error::{Context, Error, Result, bail};
use crate::evaluate::MOST_ELEMENTS;
use crate::graph::{Graph, Node, NodeId, Source, ValueId};
use crate::op::{Op, OpDef};
use crate::ops::layout::Identity;
use ouzel_kernels::{View, mask_words};
use std::collections::HashMap;
use std::sync::Arc;

/// Where an output of a plan comes from.
pub(crate) enum Exit {
    Place(Place),
    Argument(Argument),
}

/// The steps of a graph, before memory is shared out.
pub(crate) struct Lowered {
    pub(crate) steps: Vec<Step>,
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) tensors: usize,
    pub(crate) exits: Vec<Exit>,
    pub(crate) weights: Vec<Packed>,
}

/// The steps that compute `outputs` from `inputs`.
pub(crate) fn lower(
    graph: &Graph,
    inputs: &[ValueId],
    outputs: &[ValueId],
    precision: Precision,
) -> Result<Lowered> {
    let facts = Facts::new(graph, outputs);
    let layouts = Layouts::new(&facts);
    let fusion = Fusion::new(&facts, &layouts);
    let mut lowerer = Lowerer {
        facts: &facts,
        layouts: &layouts,
        packer: Packer::new(precision),
        inputs: inputs.iter().enumerate().map(|(index, &id)| (id, index)).collect(),
        steps: Vec::new(),
        buffers: Vec::new(),
        places: vec![None; graph.values().len()],
        converted: HashMap::new(),
        tensors: HashMap::new(),
        masks: HashMap::new(),
        positions: HashMap::new(),
        factors: HashMap::new(),
        planned: HashMap::new(),
    };
    lowerer.plan_joins(&fusion)?;
    for (id, node) in graph.nodes_with_ids() {
        let first = lowerer.steps.len();
        let mut result = node.outputs[0];
        match fusion.ending(id) {
            Some(Ending::Cluster(cluster)) => {
                result = cluster.output;
                lowerer.cluster(cluster)
            }
            Some(Ending::Program(program)) => lowerer.program(node, program),
            None if fusion.is_hidden(id) => Ok(()),
            None => lowerer.alone(node),
        }
        .context(|| node.title())?;
        for step in lowerer.steps[first..].iter_mut().filter(|step| step.shape.is_empty()) {
            step.shape = known_shape(&graph.fact(result).shape).unwrap_or_default();
        }
    }
    let exits = outputs.iter().map(|&id| lowerer.exit(id)).collect::<Result<_>>()?;
    let Lowerer { steps, buffers, tensors, packer, .. } = lowerer;
    Ok(Lowered { steps, buffers, tensors: tensors.len(), exits, weights: packer.finish()? })
}

pub(super) struct Lowerer<'a> {
    pub(super) facts: &'a Facts<'a>,
    layouts: &'a Layouts,
    packer: Packer,
    /// The number of each input of the plan.
    inputs: HashMap<ValueId, usize>,
    steps: Vec<Step>,
    pub(super) buffers: Vec<Buffer>,
    /// Where each value lies that has been computed.
    pub(super) places: Vec<Option<Place>>,
    /// Copies of values in other orders.
    converted: HashMap<(ValueId, Order), Place>,
    tensors: HashMap<ValueId, TensorId>,
    /// The masks of activations.
    masks: HashMap<NodeId, BufferId>,
    /// The positions of maxima, by the value of the indices.
    positions: HashMap<ValueId, BufferId>,
    /// What is kept of values in their stead.
    factors: HashMap<ValueId, Place>,
    /// Places within joins for values that are yet to be computed.
    pub(super) planned: HashMap<ValueId, Place>,
}

impl<'a> Lowerer<'a> {
    pub(super) fn graph(&self) -> &'a Graph {
        self.facts.graph
    }

    pub(super) fn shape(&self, id: ValueId) -> Result<&'a [usize]> {
        match self.facts.floats(id) {
            Some(shape) => Ok(shape),
            None => bail!(internal, "{} is no float32 tensor of known shape", self.graph().title(id)),
        }
    }

    pub(super) fn order(&self, id: ValueId) -> Result<Order> {
        match self.layouts.order(id) {
            Some(order) => Ok(order.clone()),
            None => bail!(internal, "{} has no order", self.graph().title(id)),
        }
    }

    pub(super) fn buffer(&mut self, kind: BufferKind, len: usize) -> BufferId {
        self.buffers.push(Buffer { kind, len });
        self.buffers.len() - 1
    }

    /// A new place for a tensor.
    pub(super) fn new_place(&mut self, shape: &[usize], order: Order) -> Result<Place> {
        let len = shape.iter().try_fold(1usize, |product, &length| product.checked_mul(length));
        match len {
            Some(len) if len <= MOST_ELEMENTS => {
                let buffer = self.buffer(BufferKind::Floats, len);
                Ok(Place::packed(buffer, shape, order))
            }
            _ => bail!(shape, "a tensor of shape {shape:?} does not fit into memory"),
        }
    }

    /// The place of a value that is about to be computed from `sources`.
    pub(super) fn output_place(&mut self, id: ValueId, sources: &[BufferId]) -> Result<Place> {
        let planned = self.planned.get(&id).filter(|place| !sources.contains(&place.buffer)).cloned();
        let place = match planned {
            Some(place) => place,
            None => self.new_place(self.shape(id)?, self.order(id)?)?,
        };
        self.places[id.index()] = Some(place.clone());
        Ok(place)
    }

    pub(super) fn step(&mut self, title: String, work: Work) {
        let shape = match &work {
            Work::Enter { to, .. } => to.shape.clone(),
            // The result of the node that is lowered.
            _ => Vec::new(),
        };
        self.steps.push(Step { title, shape, flops: None, bytes: 0.0, work });
    }

    /// Where a value lies.
    pub(super) fn place(&mut self, id: ValueId) -> Result<Place> {
        if let Some(place) = &self.places[id.index()] {
            return Ok(place.clone());
        }
        let (shape, order) = (self.shape(id)?, self.order(id)?);
        let place = match &self.graph().value(id).source {
            Source::Constant(constant) => {
                let tensor = constant.read()?;
                let values = elements(&tensor)?.into_owned();
                let buffer = self.buffer(BufferKind::Constant(Arc::new(values)), tensor.len());
                Place::packed(buffer, shape, order)
            }
            Source::Input => {
                let Some(&input) = self.inputs.get(&id) else {
                    bail!(input, "the input {} was not given", self.graph().title(id))
                };
                let to = self.new_place(shape, order)?;
                self.step(format!("enter {}", self.graph().title(id)), Work::Enter { input, to: to.clone() });
                to
            }
            Source::Node(_) => bail!(internal, "{} is not computed yet", self.graph().title(id)),
        };
        self.places[id.index()] = Some(place.clone());
        Ok(place)
    }

    /// Where a value lies in a given order; it is copied there if it does not yet.
    pub(super) fn place_in(&mut self, id: ValueId, order: &Order, packed: bool) -> Result<Place> {
        let shape = self.shape(id)?;
        let order = order.settled(shape);
        let fits = |place: &Place| place.order.same(&order, shape) && (!packed || place.is_packed());
        if let Some(place) = self.places[id.index()].as_ref().filter(|place| fits(place)) {
            return Ok(place.clone());
        }
        if let Some(place) = self.converted.get(&(id, order.clone())) {
            return Ok(place.clone());
        }
        let to = match (&self.graph().value(id).source, self.inputs.get(&id)) {
            // Inputs enter in whichever order is asked for.
            (Source::Input, Some(&input)) => {
                let to = self.new_place(shape, order.clone())?;
                self.step(format!("enter {}", self.graph().title(id)), Work::Enter { input, to: to.clone() });
                to
            }
            _ => {
                let from = self.place(id)?;
                if fits(&from) {
                    return Ok(from);
                }
                match &self.buffers[from.buffer].kind {
                    BufferKind::Constant(values) => {
                        let (values, mut moved) = (values.clone(), vec![0.0; from.len()]);
                        let to = Place::packed(0, shape, order.clone());
                        let Some(copy) = from.copy_to(&to) else {
                            bail!(unsupported, "a constant of shape {shape:?} has too many axes")
                        };
                        copy.run(&values, &mut moved);
                        let buffer = self.buffer(BufferKind::Constant(Arc::new(moved)), to.len());
                        Place { buffer, ..to }
                    }
                    _ => {
                        let to = self.new_place(shape, order.clone())?;
                        self.copy(format!("lay out {}", self.graph().title(id)), &from, &to)?;
                        to
                    }
                }
            }
        };
        self.converted.insert((id, order), to.clone());
        Ok(to)
    }

    /// A step that copies one place to another.
    pub(super) fn copy(&mut self, title: String, from: &Place, to: &Place) -> Result<()> {
        let work = match from.copy_to(to) {
            Some(copy) => Work::Copy { copy, from: from.buffer, to: to.buffer },
            None => Work::Reference {
                op: Op::Identity(Identity),
                inputs: vec![Some(Argument::Place(from.clone()))],
                outputs: vec![Some(Target::Place(to.clone()))],
            },
        };
        self.step(title, work);
        if let Some(step) = self.steps.last_mut() {
            step.shape.clone_from(&to.shape);
        }
        Ok(())
    }

    /// What an output of the plan is read from.
    fn exit(&mut self, id: ValueId) -> Result<Exit> {
        if self.facts.floats(id).is_some() && self.graph().producer(id).is_some() {
            return Ok(Exit::Place(self.place(id)?));
        }
        Ok(Exit::Argument(self.argument(id)?))
    }

    /// A value as the reference evaluation reads it.
    fn argument(&mut self, id: ValueId) -> Result<Argument> {
        Ok(match &self.graph().value(id).source {
            Source::Constant(constant) => Argument::Constant(constant.clone()),
            Source::Input => match self.inputs.get(&id) {
                Some(&input) => Argument::Input(input),
                None => bail!(input, "the input {} was not given", self.graph().title(id)),
            },
            Source::Node(_) if self.facts.floats(id).is_some() => Argument::Place(self.place(id)?),
            Source::Node(_) => match self.tensors.get(&id) {
                Some(&tensor) => Argument::Tensor(tensor),
                None => bail!(internal, "{} is not computed yet", self.graph().title(id)),
            },
        })
    }

    pub(super) fn title(&self, node: &Node) -> String {
        match &node.provenance {
            Some(provenance) => format!("{}: {} of {}", node.op.name(), provenance.rule, provenance.node),
            None => node.title(),
        }
    }

    /// A node by itself.
    fn alone(&mut self, node: &Node) -> Result<()> {
        if self.facts.floats(node.outputs[0]).is_some() && self.moves(node)? {
            return Ok(());
        }
        let is_float = self.facts.floats(node.outputs[0]).is_some();
        if is_float && (self.reduce(node)? || self.softmax(node)? || self.matrix_product(node)?) {
            return Ok(());
        }
        self.reference(node)
    }

    fn reference(&mut self, node: &Node) -> Result<()> {
        let inputs: Vec<Option<Argument>> = (node.inputs.iter())
            .map(|input| input.map(|id| self.argument(id)).transpose())
            .collect::<Result<_>>()?;
        let sources: Vec<BufferId> = (inputs.iter().flatten())
            .filter_map(|input| match input {
                Argument::Place(place) => Some(place.buffer),
                _ => None,
            })
            .collect();
        let mut outputs = Vec::with_capacity(node.outputs.len());
        for &output in &node.outputs {
            outputs.push(if self.facts.consumers(output).is_empty() && !self.facts.is_output(output) {
                None
            } else if self.facts.floats(output).is_some() {
                Some(Target::Place(self.output_place(output, &sources)?))
            } else {
                let tensor = self.tensors.len();
                self.tensors.insert(output, tensor);
                Some(Target::Tensor(tensor))
            });
        }
        self.step(self.title(node), Work::Reference { op: node.op.clone(), inputs, outputs });
        Ok(())
    }

    /// The tensor as the kernel of an anchor sees it.
    fn region(anchor: &Anchor, place: &Place) -> Region {
        let view = match anchor {
            Anchor::Dense { .. } => {
                let lanes = place.shape.last().copied().unwrap_or(1);
                View::packed(1, [1, 1, place.len().checked_div(lanes).unwrap_or(0)], lanes)
            }
            Anchor::Scale | Anchor::Finish => place.view(),
            _ => place.spatial_view(),
        };
        Region { buffer: place.buffer, view }
    }

    /// Nodes that were joined, as one step.
    fn cluster(&mut self, cluster: &Cluster) -> Result<()> {
        let graph = self.graph();
        let node = graph.node(cluster.node);
        let anchor = &cluster.anchor;
        let output_order = self.order(cluster.output)?;
        let input_shape = self.shape(cluster.input)?;
        let from = match anchor {
            Anchor::Dense { .. } => {
                let order = output_order.with_innermost(input_shape.len() - 1);
                self.place_in(cluster.input, &order, true)?
            }
            Anchor::Scale | Anchor::Finish => self.place_in(cluster.input, &output_order, false)?,
            _ => self.place_in(cluster.input, &Order::channels_last(input_shape.len()), false)?,
        };
        let addend = match cluster.addend {
            Some(addend) => {
                Some(self.place_in(addend, &output_order, matches!(anchor, Anchor::Dense { .. }))?)
            }
            None => None,
        };
        let mut sources: Vec<BufferId> =
            [Some(&from), addend.as_ref()].into_iter().flatten().map(|p| p.buffer).collect();
        let operands = match &cluster.tail {
            Some(tail) => Some(self.operands(&tail.program, Some(cluster.output))?),
            None => None,
        };
        let read = operands.iter().flatten().filter_map(OperandStep::region);
        sources.extend(read.map(|region| region.buffer));
        let second = match cluster.tail.as_ref().and_then(|tail| tail.second) {
            Some(Second::Value) => Some(self.output_place(cluster.output, &sources)?),
            Some(Second::Factor) => {
                let place = self.new_place(self.shape(cluster.output)?, output_order.clone())?;
                self.factors.insert(cluster.output, place.clone());
                Some(place)
            }
            // Not within a join: that may be where the first result goes.
            Some(Second::Result(result)) => {
                let place = self.new_place(self.shape(result)?, self.order(result)?)?;
                self.places[result.index()] = Some(place.clone());
                Some(place)
            }
            None => None,
        };
        let output = cluster.tail.as_ref().map_or(cluster.output, |tail| tail.program.output);
        let to = self.output_place(output, &sources)?;
        let tail = match (&cluster.tail, operands) {
            (Some(tail), Some(operands)) => Some(TailStep {
                program: tail.program.program.clone(),
                shape: self.program_view(tail.program.output, &to)?,
                operands,
                second: second.map(|second| Region { buffer: second.buffer, view: second.view() }),
            }),
            _ => None,
        };
        let (from, to_region) = (Self::region(anchor, &from), Self::region(anchor, &to));
        let mut finish = Finish {
            bias: cluster
                .bias
                .as_ref()
                .map(|bias| Arc::new(bias.iter().map(|&value| value as f32).collect())),
            addend: addend.map(|addend| Self::region(anchor, &addend)),
            activation: cluster.activation,
            tail,
            ..Finish::default()
        };
        if let Some((activation, rule)) = cluster.record {
            let words = to_region.view.pixels() * mask_words(to_region.view.channels);
            let mask = self.buffer(BufferKind::Words, words);
            self.masks.insert(activation, mask);
            finish.record = Some((mask, rule));
        }
        if let Some(gate) = cluster.gate {
            let mask = match gate.activation {
                None => None,
                Some(activation) => match self.masks.get(&activation) {
                    Some(&mask) => Some(mask),
                    None => bail!(internal, "a gate opens before its mask is recorded"),
                },
            };
            let before_addend = gate.before_addend;
            finish.gate = Some(GateStep { rule: gate.rule, mask, before_addend });
        }
        let to = to_region;
        let work = match anchor {
            Anchor::Convolution { .. } => {
                let weights = self.packer.convolution(graph, cluster, to.view.size)?;
                Work::Convolution { weights, from, to, finish }
            }
            Anchor::Scale => {
                let factors = cluster.output_scale.as_deref().unwrap_or_default();
                Work::Convolution { weights: self.packer.scale(factors), from, to, finish }
            }
            Anchor::Dense { weight, transposed, alpha } => {
                let (weights, backwards) = self.packer.dense(graph, *weight, *transposed, *alpha)?;
                Work::Dense { weights, transposed: backwards, rows: to.view.pixels(), from, to, finish }
            }
            Anchor::MaxPool { window } => {
                let indices = node.outputs.get(1).filter(|&&id| !self.facts.consumers(id).is_empty());
                let positions = indices.map(|&indices| {
                    let positions = self.buffer(BufferKind::Words, to.view.pixels() * to.view.channels);
                    self.positions.insert(indices, positions);
                    positions
                });
                Work::MaxPool { window: window.clone(), from, to, positions, finish }
            }
            Anchor::MaxPoolGradient { window, indices } => match self.positions.get(indices) {
                Some(&positions) => {
                    Work::MaxPoolGradient { window: window.clone(), from, positions, to, finish }
                }
                None => {
                    return Err(Error::internal(
                        "the positions of a max pooling were not recorded".to_owned(),
                    ));
                }
            },
            Anchor::AveragePool { window, count } => {
                Work::AveragePool { window: window.clone(), count: *count, from, to, finish }
            }
            Anchor::AveragePoolGradient { window, count } => {
                Work::AveragePoolGradient { window: window.clone(), count: *count, from, to, finish }
            }
            Anchor::Finish => Work::Finish { from, to, finish },
        };
        let joined: Vec<&str> = match anchor {
            Anchor::Finish => cluster.joined.iter().skip(1).copied().collect(),
            _ => cluster.joined.clone(),
        };
        let tail = cluster.tail.iter().map(|tail| self.names(&tail.program.nodes));
        let title =
            std::iter::once(self.title(node)).chain(joined.into_iter().map(str::to_owned)).chain(tail);
        let title = title.collect::<Vec<_>>().join(" + ");
        self.step(title, work);
        Ok(())
    }

    /// Elementwise nodes as one program.
    fn program(&mut self, root: &Node, elementwise: &Elementwise) -> Result<()> {
        let (expression, output) = (&elementwise.expression, elementwise.output);
        let operands = self.operands(elementwise, None)?;
        let sources: Vec<BufferId> =
            operands.iter().filter_map(OperandStep::region).map(|region| region.buffer).collect();
        let place = self.output_place(output, &sources)?;
        let to = Region { buffer: place.buffer, view: place.view() };
        let view = self.program_view(output, &place)?;
        let mask = expression.record.map(|activation| {
            let mask = self.buffer(BufferKind::Words, view.pixels() * mask_words(view.channels));
            self.masks.insert(activation, mask);
            mask
        });
        let title = format!("{} {}", self.title(root), self.names(&elementwise.nodes));
        let program = elementwise.program.clone();
        self.step(title, Work::Pointwise { program, shape: view, operands, to, mask });
        Ok(())
    }

    /// The ops of a program, as titles show them.
    fn names(&self, nodes: &[NodeId]) -> String {
        let names: Vec<&str> = nodes.iter().take(6).map(|&id| self.graph().node(id).op.name()).collect();
        format!("[{}]", names.join(" "))
    }

    /// What the program of a value reads; one of its leaves may be what a kernel has just computed.
    fn operands(&mut self, program: &Elementwise, computed: Option<ValueId>) -> Result<Vec<OperandStep>> {
        let (shape, order) = (self.shape(program.output)?, self.order(program.output)?);
        let leaves = &program.expression.leaves;
        let mut operands = Vec::with_capacity(leaves.len());
        for leaf in leaves {
            operands.push(match leaf {
                Leaf::Lanes(values) => {
                    let values = Arc::new(values.clone());
                    OperandStep::PerChannel(self.buffer(BufferKind::Constant(values.clone()), values.len()))
                }
                Leaf::Mask(activation) => match self.masks.get(activation) {
                    Some(&mask) => OperandStep::Bits(mask),
                    None => bail!(internal, "a gate opens before its mask is recorded"),
                },
                Leaf::Value(id) if computed == Some(*id) => OperandStep::Value,
                Leaf::Value(id) => self.operand(*id, shape, &order)?,
                Leaf::Factor(id) => match self.factors.get(id) {
                    Some(place) => OperandStep::Full(Region { buffer: place.buffer, view: place.view() }),
                    None => bail!(internal, "a factor is read before it is computed"),
                },
            });
        }
        Ok(operands)
    }

    /// The shape of the result of a program, as its operands are broadcast to it.
    fn program_view(&self, output: ValueId, place: &Place) -> Result<View> {
        let (shape, order) = (self.shape(output)?, self.order(output)?);
        let mut view = place.view();
        let batch = shape.first().copied().unwrap_or(1);
        if order.outermost(shape) == Some(0) && order.lane_axis() != Some(0) {
            // Samples are told apart where that is possible, for operands with a number for each.
            view.batch = batch;
            view.size = [1, 1, view.size[2] / batch];
        }
        Ok(view)
    }

    /// A value as an operand of a program of some shape in some order.
    fn operand(&mut self, id: ValueId, shape: &[usize], order: &Order) -> Result<OperandStep> {
        let own = self.shape(id)?;
        if own == shape {
            let place = self.place_in(id, order, false)?;
            return Ok(OperandStep::Full(Region { buffer: place.buffer, view: place.view() }));
        }
        let added = shape.len() - own.len();
        let long: Vec<usize> =
            (0..own.len()).filter(|&axis| own[axis] != 1).map(|axis| axis + added).collect();
        let lane = order.lane_axis();
        let others: Vec<usize> =
            (0..shape.len()).filter(|&axis| shape[axis] != 1 && Some(axis) != lane).collect();
        // The order of the operand that follows that of the result.
        let following = order.without_front(added);
        let by_sample = order.outermost(shape) == Some(0) && lane != Some(0);
        if long.is_empty() {
            return Ok(OperandStep::Scalar(self.place_in(id, &following, true)?.buffer));
        }
        if long.as_slice() == lane.as_slice() {
            return Ok(OperandStep::PerChannel(self.place_in(id, &following, true)?.buffer));
        }
        if by_sample && added == 0 && long.len() == 2 && long[0] == 0 && Some(long[1]) == lane {
            return Ok(OperandStep::PerSampleChannel(self.place_in(id, &following, true)?.buffer));
        }
        if long == others {
            return Ok(OperandStep::PerPixel(self.place_in(id, &following, true)?.buffer));
        }
        // Anything else is repeated in memory.
        let from = self.place(id)?;
        let to = self.new_place(shape, order.clone())?;
        let own_strides = from.strides();
        let strides: Vec<usize> = (0..shape.len())
            .map(|axis| match axis.checked_sub(added) {
                Some(place) if own[place] != 1 => own_strides[place],
                _ => 0,
            })
            .collect();
        match strided_copy(shape, (&strides, from.offset), (&to.strides(), to.offset)) {
            Some(copy) => self.step(
                format!("repeat {}", self.graph().title(id)),
                Work::Copy { copy, from: from.buffer, to: to.buffer },
            ),
            None => bail!(unsupported, "a tensor of shape {shape:?} has too many axes"),
        }
        Ok(OperandStep::Full(Region { buffer: to.buffer, view: to.view() }))
    }
}
