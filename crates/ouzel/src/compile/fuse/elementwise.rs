//! Elementwise nodes that no product has taken, as steps: which of them one program computes, and what is stored on the way.

use super::super::anchor::Anchor;
use super::super::expression::Expression;
use super::super::gates::activation;
use super::super::pointwise::{GateKind, GateNode, Writer, is_supported};
use super::{Cluster, Done, Elementwise, ElementwiseStep, Fuser, normalization};
use crate::graph::{Node, NodeId, ValueId};
use crate::op::Op;
use crate::tensor::DType;
use ouzel_kernels::GateRule;
use std::collections::HashSet;

/// More nodes than this are cut before they are written as a program: it would be too long, and take long to write.
const MOST_NODES: usize = 400;

impl Fuser<'_> {
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
    pub(super) fn elementwise_steps(&self) -> Vec<(NodeId, ElementwiseStep)> {
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
        loop {
            if next >= done.len() {
                let shared = self.shared(&elementwise, &stored, &done);
                if shared.is_empty() {
                    break;
                }
                for node in shared {
                    next = next.min(store(node, &mut stored, &mut done));
                }
            }
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

    /// The nodes that several steps compute on their way, out of more tensors than are moved if one step stores the result for
    /// the others.
    fn shared(&self, elementwise: &[bool], stored: &[bool], done: &[Option<Done>]) -> Vec<NodeId> {
        let graph = self.facts.graph;
        let mut steps = vec![0; done.len()];
        for (nodes, _) in done.iter().flatten() {
            nodes.iter().for_each(|node| steps[node.index()] += 1);
        }
        let mut shared = Vec::new();
        let mut inside = HashSet::new();
        for (id, node) in graph.nodes_with_ids().rev() {
            let (count, output) = (steps[id.index()], node.outputs[0]);
            let Some(shape) = self.facts.floats(output).filter(|_| count > 1 && !inside.contains(&id)) else {
                continue;
            };
            let nodes = self.expression(id, elementwise, stored);
            let mut read: Vec<ValueId> = (nodes.iter())
                .flat_map(|&id| self.reads(id, graph.node(id)))
                .filter(|&input| self.facts.floats(input) == Some(shape))
                .filter(|&input| {
                    self.facts.producer(input).is_none_or(|(id, _)| nodes.binary_search(&id).is_err())
                })
                .collect();
            read.sort_unstable();
            read.dedup();
            // Each reads the result instead, and one writes it.
            if count * read.len() > read.len() + count {
                inside.extend(nodes);
                shared.push(id);
            }
        }
        shared
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
}
