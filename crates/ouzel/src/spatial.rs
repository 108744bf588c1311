//! Layers with positions: where their channels and positions are, and which of them class activation maps are made of.

use crate::dim::Dim;
use crate::error::{Result, bail};
use crate::graph::{Fact, Graph, Node, Source, ValueId};
use crate::model::{Model, is_channels_last};
use crate::op::Op;
use std::collections::{HashSet, VecDeque};

/// A tensor with channels and positions: what a class activation map can be made of.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpatialLayer {
    /// The tensor.
    pub value: ValueId,
    /// The axis of its channels.
    pub channel_axis: usize,
    /// The axes of its positions.
    pub positions: Vec<usize>,
    /// How a row of tokens is a grid of positions, if it is.
    pub grid: Option<TokenGrid>,
}

/// A row of tokens as the grid of patches that a transformer has cut a picture into.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TokenGrid {
    /// How many tokens come before those of the patches: class and register tokens.
    pub extra: usize,
    /// How many patches there are along each axis of the input.
    pub sides: Vec<usize>,
}

impl SpatialLayer {
    /// The input itself, if it has channels and positions.
    pub(crate) fn of_input(value: ValueId, channels: Option<usize>, sides: &[usize]) -> Option<Self> {
        let channel_axis = channels.filter(|_| !sides.is_empty())?;
        Some(Self { value, channel_axis, positions: sides.to_vec(), grid: None })
    }

    /// The number of axes that a map of the layer has.
    pub fn map_rank(&self) -> usize {
        self.grid.as_ref().map_or(self.positions.len(), |grid| grid.sides.len())
    }
}

impl Model {
    /// The layer that class activation maps of a tensor are made of if none is named: the last one with spatial extent
    /// above 1×1 that feeds the head.
    ///
    /// Of the tensors that everything on the way from the input to the target passes through, it is the last one that
    /// has more than one position; where branches run beside each other up to the end, the last one of any. Nodes that
    /// only rearrange elements are passed over. Where the head reads a single token, it is the last tensor before the
    /// attention that gathers the others into that token.
    ///
    /// # Errors
    /// If no such tensor has more than one position.
    pub fn cam_layer(&self, target: ValueId) -> Result<SpatialLayer> {
        self.last_spatial(&[target], self.channels_of_input())
    }

    /// Where the channels and positions of a tensor are, as the ops around it and its shape say.
    ///
    /// # Errors
    /// If it has no positions, or if its tokens are no grid.
    pub fn spatial_layer(&self, tensor: ValueId) -> Result<SpatialLayer> {
        self.spatial_with(tensor, self.channels_of_input())
    }

    fn channels_of_input(&self) -> Option<usize> {
        let shape = &self.graph().fact(self.main_input()).shape;
        (shape.len() > 1).then(|| if is_channels_last(shape) { shape.len() - 1 } else { 1 })
    }

    /// The lengths of the input's axes that are neither batch nor channels.
    fn input_sides(&self, channels: Option<usize>) -> Vec<Dim> {
        let shape = &self.graph().fact(self.main_input()).shape;
        let axes = (1..shape.len()).filter(|&axis| Some(axis) != channels);
        axes.map(|axis| shape[axis].clone()).collect()
    }

    /// As [`Self::spatial_layer`], where the channel axis of the input is known.
    pub(crate) fn spatial_with(&self, value: ValueId, channels: Option<usize>) -> Result<SpatialLayer> {
        let graph = self.graph();
        let fact = graph.fact(value);
        let rank = fact.rank();
        if rank < 3 || !fact.dtype.is_float() {
            bail!(
                target,
                "{} is {fact}: a class activation map needs a layer with channels and positions, [samples, channels, …]; \
                 'ouzel inspect' lists the shapes",
                graph.title(value)
            );
        }
        let sides = self.input_sides(channels);
        let by_shape = || if rank == 3 && sides.len() > 1 { 2 } else { 1 };
        let channel_axis = channel_axis(graph, value).unwrap_or_else(by_shape);
        let positions: Vec<usize> = (1..rank).filter(|&axis| axis != channel_axis).collect();
        let grid = match positions[..] {
            [tokens] if sides.len() > 1 => Some(token_grid(graph, value, tokens, &sides)?),
            _ => None,
        };
        Ok(SpatialLayer { value, channel_axis, positions, grid })
    }

    /// As [`Self::cam_layer`], for several targets.
    pub(crate) fn last_spatial(&self, targets: &[ValueId], channels: Option<usize>) -> Result<SpatialLayer> {
        let graph = self.graph();
        let input = self.main_input();
        let batch = graph.fact(input).shape.first().cloned();
        let depends = depends_on(graph, input);
        let is_candidate = |value: ValueId| {
            let fact = graph.fact(value);
            !targets.contains(&value)
                && fact.rank() >= 3
                && fact.shape.first() == batch.as_ref()
                && matches!(graph.value(value).source, Source::Node(node) if !rearranges(&graph.node(node).op))
                && self.has_positions(value)
        };
        let mut open: HashSet<ValueId> = targets.iter().copied().filter(|id| depends[id.index()]).collect();
        let mut beside = None;
        // True while nothing has brought the other tokens into the one that the head reads.
        let mut is_single_token = false;
        for node in graph.nodes().iter().rev() {
            if !node.outputs.iter().any(|output| open.contains(output)) {
                continue;
            }
            if open.len() == 1
                && !is_single_token
                && let Some(&value) = open.iter().find(|&&value| is_candidate(value))
                && let Ok(layer) = self.spatial_with(value, channels)
            {
                return Ok(layer);
            }
            if beside.is_none() && !is_single_token {
                beside =
                    node.outputs.iter().copied().find(|value| open.contains(value) && is_candidate(*value));
            }
            is_single_token = match node.op {
                _ if takes_one_token(graph, node) => true,
                Op::Softmax(_) => false,
                _ => is_single_token,
            };
            node.outputs.iter().for_each(|output| {
                open.remove(output);
            });
            open.extend(node.inputs.iter().flatten().filter(|id| depends[id.index()]));
        }
        match beside {
            Some(value) => self.spatial_with(value, channels),
            None => {
                let names: Vec<String> = targets.iter().map(|target| graph.title(*target)).collect();
                bail!(
                    target,
                    "nothing before {} has more than one position, so there is no layer for a class activation map; name \
                     one with --cam-layer, or use a method that explains the input",
                    names.join(", ")
                )
            }
        }
    }

    fn has_positions(&self, value: ValueId) -> bool {
        let graph = self.graph();
        let channel = channel_axis(graph, value);
        let fact = graph.fact(value);
        let longer = |axis: &usize| !fact.shape[*axis].is(1);
        match channel {
            Some(channel) => (1..fact.rank()).filter(|&axis| axis != channel).any(|axis| longer(&axis)),
            // It may be either of them.
            None => (1..fact.rank()).filter(longer).count() > 1,
        }
    }

    /// keras-vis's layer for a target: the nearest convolution or pooling layer before it, where the layer directly
    /// before the target is never considered, and global pooling is no pooling.
    ///
    /// Keras's layers are told by the names that exporters give nodes, `LAYER/OP`; layers that export nothing, such as
    /// dropout, are not seen. Nodes without such names are layers of their own.
    pub(crate) fn keras_penultimate(&self, target: ValueId) -> Result<ValueId> {
        let graph = self.graph();
        let mut layers: Vec<(&str, Vec<&Node>)> = Vec::new();
        let depends = depends_on(graph, self.main_input());
        for node in graph.nodes().iter().filter(|node| depends[node.outputs[0].index()]) {
            let name = &*graph.value(node.outputs[0]).name;
            let scope = name.rsplit_once('/').map_or(name, |(scope, _)| scope);
            // What the exporter has added itself.
            if scope == name && rearranges(&node.op) {
                continue;
            }
            match layers.iter_mut().find(|(known, _)| *known == scope) {
                Some((_, nodes)) => nodes.push(node),
                None => layers.push((scope, vec![node])),
            }
        }
        let holds_target =
            |(_, nodes): &(&str, Vec<&Node>)| nodes.iter().any(|node| node.outputs.contains(&target));
        let end = layers.iter().position(holds_target).unwrap_or(layers.len()).saturating_sub(1);
        let found = layers[..end]
            .iter()
            .rev()
            .find(|(_, nodes)| nodes.iter().any(|node| is_layer_of_keras_vis(&node.op)));
        match found.and_then(|(_, nodes)| nodes.iter().rev().find(|node| !rearranges(&node.op))) {
            Some(node) => Ok(node.outputs[0]),
            None => bail!(
                target,
                "keras-vis finds no convolution or pooling layer before {}, the layer directly before it excepted: name \
                 one with --cam-layer",
                graph.title(target)
            ),
        }
    }
}

fn is_layer_of_keras_vis(op: &Op) -> bool {
    matches!(op, Op::Conv(_) | Op::ConvTranspose(_) | Op::MaxPool(_) | Op::AveragePool(_) | Op::LpPool(_))
}

/// True for ops that give the elements of one input in another order or shape.
fn rearranges(op: &Op) -> bool {
    matches!(
        op,
        Op::Transpose(_)
            | Op::Reshape(_)
            | Op::Flatten(_)
            | Op::Squeeze(_)
            | Op::Unsqueeze(_)
            | Op::Identity(_)
            | Op::Cast(_)
            | Op::Dropout(_)
            | Op::Expand(_)
    )
}

/// True if a node keeps one element of an axis that is not the batch's and drops the others, as a head does that reads
/// the class token.
fn takes_one_token(graph: &Graph, node: &Node) -> bool {
    let (Some(x), y) = (node.inputs.first().copied().flatten(), graph.fact(node.outputs[0])) else {
        return false;
    };
    let x = graph.fact(x);
    let (before, after) = (elements_of_sample(x), elements_of_sample(y));
    match node.op {
        Op::Gather(_) | Op::Slice(_) | Op::GatherND(_) | Op::Split(_) => {
            let last = |fact: &Fact| fact.shape.last().cloned();
            x.rank() == 3 && last(x) == last(y) && after == last(y) && before != after
        }
        _ => false,
    }
}

fn elements_of_sample(fact: &Fact) -> Option<Dim> {
    (fact.rank() > 0).then(|| crate::dim::product(&fact.shape[1..]))
}

/// For each value, whether it depends on the input through floating point values.
fn depends_on(graph: &Graph, input: ValueId) -> Vec<bool> {
    let mut depends = vec![false; graph.values().len()];
    depends[input.index()] = true;
    for node in graph.nodes() {
        if node.inputs.iter().flatten().any(|id| depends[id.index()]) {
            node.outputs.iter().for_each(|id| depends[id.index()] = graph.fact(*id).dtype.is_float());
        }
    }
    depends
}

/// The channel axis of a tensor, as the nearest op before it says that has one: 1 after convolutions, the last one after
/// matrix products. `None` if no op says so.
fn channel_axis(graph: &Graph, value: ValueId) -> Option<usize> {
    let rank = graph.fact(value).rank();
    // A tensor, and which axis of the one in question each of its axes is.
    let mut queue = VecDeque::from([(value, (0..rank).collect::<Vec<usize>>())]);
    let mut seen = HashSet::new();
    while let Some((value, axes)) = queue.pop_front() {
        if !seen.insert(value) {
            continue;
        }
        let Some(node) = graph.producer(value).map(|id| graph.node(id)) else {
            let fact = graph.fact(value);
            if matches!(graph.value(value).source, Source::Input) && fact.rank() == rank && rank > 2 {
                return Some(axes[if is_channels_last(&fact.shape) { rank - 1 } else { 1 }]);
            }
            continue;
        };
        let channel = match (&node.op, node.op.family()) {
            (Op::MatMul(_) | Op::Gemm(_) | Op::LayerNormalization(_), _) => Some(rank - 1),
            (Op::LpNormalization(_) | Op::MeanVarianceNormalization(_), _) => None,
            (Op::Resize(_) | Op::DepthToSpace(_) | Op::SpaceToDepth(_), _) => Some(1),
            (_, "convolution" | "pool" | "norm") => Some(1),
            _ => None,
        };
        if let Some(channel) = channel {
            return Some(axes[channel]);
        }
        for input in node.inputs.iter().flatten().filter(|id| graph.fact(**id).rank() == rank) {
            match &node.op {
                Op::Transpose(transpose) => {
                    let permutation = match &transpose.permutation {
                        Some(permutation) => permutation.clone(),
                        None => (0..rank).rev().collect(),
                    };
                    let mut before = vec![0; rank];
                    permutation.iter().zip(&axes).for_each(|(&place, &axis)| before[place] = axis);
                    queue.push_back((*input, before));
                }
                Op::Reshape(_) | Op::Gather(_) | Op::Einsum(_) => {}
                _ => queue.push_back((*input, axes.clone())),
            }
        }
    }
    None
}

/// The most tokens that are no patches: a class token or two and the registers of known networks. With many more, almost any
/// number of tokens would be a grid.
const MOST_EXTRA_TOKENS: i64 = 16;

/// How the tokens on an axis are patches of an input with these sides.
fn token_grid(graph: &Graph, value: ValueId, axis: usize, sides: &[Dim]) -> Result<TokenGrid> {
    let title = || graph.title(value);
    let known: Option<Vec<i64>> = sides.iter().map(Dim::known).collect();
    let (Some(tokens), Some(sides)) = (graph.fact(value).shape[axis].known(), known) else {
        bail!(
            target,
            "{} is {}: how its tokens are a grid cannot be told before the size of the input is known; export the network \
             for inputs of one size, or name another layer with --cam-layer",
            title(),
            graph.fact(value)
        );
    };
    for extra in 0..=MOST_EXTRA_TOKENS.min(tokens - 1) {
        if let Some(sides) = patches(tokens - extra, &sides) {
            let sides = sides.into_iter().map(|side| side as usize).collect();
            return Ok(TokenGrid { extra: extra as usize, sides });
        }
    }
    bail!(
        target,
        "{}: its {tokens} tokens are no grid of patches of an input of {sides:?}; name another layer with --cam-layer",
        title()
    )
}

/// The sides of a grid of so many square patches; the first of three axes, which may be time, has its own length of a
/// patch.
fn patches(count: i64, sides: &[i64]) -> Option<Vec<i64>> {
    let (time, space) = if sides.len() == 3 { sides.split_at(1) } else { sides.split_at(0) };
    let longest = space.iter().copied().max()?;
    let durations: Vec<i64> = match time {
        [length] => (1..=*length).filter(|patch| length % patch == 0).map(|patch| length / patch).collect(),
        _ => vec![1],
    };
    // Small patches last: a grid of two tokens is less likely than a wrong number of extra tokens.
    (1..=longest).find_map(|patch| {
        let whole: Vec<i64> = space.iter().map(|side| side / patch).collect();
        let begun: Vec<i64> = space.iter().map(|side| (side + patch - 1) / patch).collect();
        durations.iter().find_map(|&duration| {
            let fits = |grid: &Vec<i64>| grid.iter().product::<i64>() * duration == count;
            let grid = [&whole, &begun].into_iter().find(|grid| fits(grid))?;
            Some(time.iter().map(|_| duration).chain(grid.iter().copied()).collect())
        })
    })
}
