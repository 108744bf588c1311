//! Elementwise programs that go on from what a product has computed, before that is stored.

use super::super::anchor::Anchor;
use super::super::expression::Leaf;
use super::super::layout::Order;
use super::{Cluster, ClusterTail, Elementwise, Ending, Fuser, Second};
use crate::graph::{NodeId, ValueId};

/// Channels below which a program works better on a tensor as a whole.
const LEAST_LANES: usize = 16;

impl Fuser<'_> {
    /// Makes a program the tail of a cluster whose output it reads, if there is one that can wait until the program's other operands are
    /// there: best one whose output nothing else reads, else the last one. False if there is none.
    pub(super) fn go_on(&mut self, root: NodeId, program: &Elementwise) -> bool {
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
    pub(super) fn take_in_programs(&mut self, endings: &mut [Option<Ending>]) {
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
    pub(super) fn take_out_factors(&mut self, endings: &mut [Option<Ending>]) {
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
}
