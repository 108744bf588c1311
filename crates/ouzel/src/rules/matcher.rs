//! Which nodes and units a row of a rule set is about.

use super::kind::Kind;
use crate::graph::{Graph, Node};
use crate::op::OpDef;
use crate::units::Unit;
use std::fmt;
use std::sync::Arc;

/// What a user's own matcher says of a node of a graph.
pub type Predicate = dyn Fn(&Graph, &Node) -> bool + Send + Sync;

/// Says of each node of a graph whether a rule is meant for it.
#[derive(Clone)]
pub enum Matcher {
    /// Every node.
    Any,
    /// Nodes and units of one op, by its ONNX name; `SiLU` is `Swish`.
    Op(String),
    /// Nodes and units of a family, such as `activation` or `convolution`.
    Family(String),
    /// Nodes that play one of these parts.
    Kind(Vec<Kind>),
    /// Nodes whose name, or the name of whose first output, matches a pattern in which `*` stands for any text.
    Name(String),
    /// The first node, in the order of the graph, that the inner matcher accepts.
    First(Box<Matcher>),
    /// The last node, in the order of the graph, that the inner matcher accepts.
    Last(Box<Matcher>),
    /// The nodes that the inner matcher accepts and that depend on no other such node: the first of every path.
    Entry(Box<Matcher>),
    /// Nodes that both accept.
    Both(Box<Matcher>, Box<Matcher>),
    /// Nodes for which a function holds; the text is what reports show.
    Where(String, Arc<Predicate>),
}

impl Matcher {
    /// Nodes and units of one op, by its ONNX name; `SiLU` is `Swish`.
    pub fn op(name: impl Into<String>) -> Self {
        Self::Op(name.into())
    }

    /// Nodes and units of a family.
    pub fn family(name: impl Into<String>) -> Self {
        Self::Family(name.into())
    }

    /// Nodes whose name, or the name of whose first output, matches a pattern in which `*` stands for any text.
    pub fn name(pattern: impl Into<String>) -> Self {
        Self::Name(pattern.into())
    }

    /// Nodes that play one of these parts.
    pub fn kind(kinds: impl IntoIterator<Item = Kind>) -> Self {
        Self::Kind(kinds.into_iter().collect())
    }

    /// The nodes that this accepts and that depend on no other such node: the first of every path.
    #[must_use]
    pub fn entry(self) -> Self {
        Self::Entry(Box::new(self))
    }

    /// The first node in the order of the graph that this accepts.
    #[must_use]
    pub fn first(self) -> Self {
        Self::First(Box::new(self))
    }

    /// The last node in the order of the graph that this accepts.
    #[must_use]
    pub fn last(self) -> Self {
        Self::Last(Box::new(self))
    }

    /// Nodes that this and the other accept.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self::Both(Box::new(self), Box::new(other))
    }

    /// Nodes for which a function holds.
    pub fn predicate(title: &str, holds: impl Fn(&Graph, &Node) -> bool + Send + Sync + 'static) -> Self {
        Self::Where(title.to_owned(), Arc::new(holds))
    }

    /// The verdict on each node.
    pub fn matches(&self, graph: &Graph) -> Vec<bool> {
        self.verdicts(graph, &Spot::all(graph, &[]))
    }

    /// The verdict on each node and unit.
    pub(super) fn verdicts(&self, graph: &Graph, spots: &[Spot]) -> Vec<bool> {
        let each = |holds: &dyn Fn(&Spot) -> bool| -> Vec<bool> { spots.iter().map(holds).collect() };
        // What a unit is matched by is not looked for inside it.
        let outermost = |all: Vec<bool>| -> Vec<bool> {
            let hidden = |spot: &Spot| spot.within.is_some_and(|unit| all[unit]);
            spots.iter().zip(&all).map(|(spot, &hit)| hit && !hidden(spot)).collect()
        };
        match self {
            Self::Any => vec![true; spots.len()],
            Self::Op(name) => {
                let name = if name == "SiLU" { "Swish" } else { name };
                outermost(each(&|spot| spot.op() == name))
            }
            Self::Family(name) => outermost(each(&|spot| spot.family() == name)),
            Self::Name(pattern) => each(&|spot| {
                let output = spot.node.outputs.first().map(|&id| &*graph.value(id).name);
                wildcard(pattern, &spot.node.name) || output.is_some_and(|name| wildcard(pattern, name))
            }),
            Self::Kind(kinds) => {
                of_nodes(spots, Kind::of_nodes(graph).iter().map(|kind| kinds.contains(kind)))
            }
            Self::Entry(inner) => {
                let all = inner.verdicts(graph, spots);
                let nodes = spots.iter().zip(all).filter(|(spot, _)| spot.unit.is_none());
                of_nodes(spots, entries(graph, nodes.map(|(_, hit)| hit).collect()).into_iter())
            }
            Self::Where(_, holds) => each(&|spot| spot.unit.is_none() && holds(graph, spot.node)),
            Self::Both(a, b) => {
                let (a, b) = (a.verdicts(graph, spots), b.verdicts(graph, spots));
                a.into_iter().zip(b).map(|(a, b)| a && b).collect()
            }
            Self::First(inner) => {
                let all = inner.verdicts(graph, spots);
                only(all.iter().position(|&hit| hit), all.len())
            }
            Self::Last(inner) => {
                let all = inner.verdicts(graph, spots);
                only(all.iter().rposition(|&hit| hit), all.len())
            }
        }
    }

    /// True if the matcher says what is computed, as it must to be about units: a name alone is about nodes.
    pub(super) fn names_units(&self) -> bool {
        match self {
            Self::Op(_) | Self::Family(_) => true,
            Self::Both(a, b) => a.names_units() || b.names_units(),
            Self::First(inner) | Self::Last(inner) => inner.names_units(),
            Self::Any | Self::Kind(_) | Self::Name(_) | Self::Entry(_) | Self::Where(..) => false,
        }
    }
}

/// What a rule can be meant for: a node or a unit.
pub(super) struct Spot<'g> {
    /// The node, or the last one of the unit.
    node: &'g Node,
    /// The unit, if it is one.
    pub(super) unit: Option<&'g Unit>,
    /// The place among the spots of the unit that the node belongs to.
    within: Option<usize>,
}

impl<'g> Spot<'g> {
    /// All nodes and units in the order of the graph, each unit after its last node.
    pub(super) fn all(graph: &'g Graph, units: &'g [Unit]) -> Vec<Self> {
        let mut unit_of = vec![None; graph.nodes().len()];
        for (index, unit) in units.iter().enumerate() {
            unit.nodes.iter().for_each(|node| unit_of[node.index()] = Some(index));
        }
        let mut spots: Vec<Self> = Vec::new();
        let mut places = vec![0; units.len()];
        for (id, node) in graph.nodes_with_ids() {
            spots.push(Spot { node, unit: None, within: unit_of[id.index()] });
            if let Some(index) = unit_of[id.index()].filter(|&index| units[index].last() == id) {
                places[index] = spots.len();
                spots.push(Spot { node, unit: Some(&units[index]), within: None });
            }
        }
        for spot in &mut spots {
            spot.within = spot.within.map(|index| places[index]);
        }
        spots
    }

    fn op(&self) -> &str {
        self.unit.map_or_else(|| self.node.op.name(), |unit| unit.name)
    }

    fn family(&self) -> &str {
        self.unit.map_or_else(|| self.node.op.family(), |unit| unit.family)
    }
}

/// Verdicts on nodes as those on spots; units are not meant.
fn of_nodes(spots: &[Spot], mut verdicts: impl Iterator<Item = bool>) -> Vec<bool> {
    spots.iter().map(|spot| spot.unit.is_none() && verdicts.next().unwrap_or(false)).collect()
}

fn only(place: Option<usize>, count: usize) -> Vec<bool> {
    (0..count).map(|index| Some(index) == place).collect()
}

/// Those of the nodes that depend on no other of them.
fn entries(graph: &Graph, mut accepted: Vec<bool>) -> Vec<bool> {
    let mut behind = vec![false; graph.values().len()];
    for (node, accepted) in graph.nodes().iter().zip(&mut accepted) {
        let depends = node.inputs.iter().flatten().any(|input| behind[input.index()]);
        for output in &node.outputs {
            behind[output.index()] = depends || *accepted;
        }
        *accepted &= !depends;
    }
    accepted
}

/// True if `text` is `pattern` with each `*` replaced by any text.
fn wildcard(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        match rest.find(piece) {
            Some(place) => rest = &rest[place + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any node"),
            Self::Op(name) => f.write_str(name),
            Self::Family(name) => write!(f, "family {name}"),
            Self::Kind(kinds) => {
                let names: Vec<String> = kinds.iter().map(Kind::to_string).collect();
                f.write_str(&names.join(" or "))
            }
            Self::Entry(inner) => write!(f, "entry {inner}"),
            Self::Name(pattern) => write!(f, "name {pattern}"),
            Self::First(inner) => write!(f, "first {inner}"),
            Self::Last(inner) => write!(f, "last {inner}"),
            Self::Both(a, b) => write!(f, "{a} and {b}"),
            Self::Where(title, _) => f.write_str(title),
        }
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::wildcard;

    #[test]
    fn a_star_stands_for_any_text() {
        assert!(wildcard("conv1", "conv1"));
        assert!(!wildcard("conv1", "conv10"));
        assert!(wildcard("conv*", "conv10/Relu:0"));
        assert!(wildcard("*/Relu*", "conv10/Relu:0"));
        assert!(wildcard("*", ""));
        assert!(!wildcard("a*b*a", "aba*"));
        assert!(!wildcard("ab*ba", "aba"));
    }
}
