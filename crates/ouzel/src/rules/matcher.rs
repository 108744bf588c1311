//! Which nodes a row of a rule set is about.

use super::kind::Kind;
use crate::graph::{Graph, Node};
use crate::op::OpDef;
use std::fmt;
use std::sync::Arc;

/// What a user's own matcher says of a node of a graph.
pub type Predicate = dyn Fn(&Graph, &Node) -> bool + Send + Sync;

/// Says of each node of a graph whether a rule is meant for it.
#[derive(Clone)]
pub enum Matcher {
    /// Every node.
    Any,
    /// Nodes of one op, by its ONNX name.
    Op(String),
    /// Nodes of an op family, such as `activation` or `convolution`.
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
    /// Nodes of one op, by its ONNX name.
    pub fn op(name: impl Into<String>) -> Self {
        Self::Op(name.into())
    }

    /// Nodes of an op family.
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
        let each = |holds: &dyn Fn(&Node) -> bool| graph.nodes().iter().map(holds).collect();
        match self {
            Self::Any => vec![true; graph.nodes().len()],
            Self::Op(name) => each(&|node| node.op.name() == name),
            Self::Family(name) => each(&|node| node.op.family() == name),
            Self::Name(pattern) => each(&|node| {
                let output = node.outputs.first().map(|&id| &*graph.value(id).name);
                wildcard(pattern, &node.name) || output.is_some_and(|name| wildcard(pattern, name))
            }),
            Self::Kind(kinds) => Kind::of_nodes(graph).iter().map(|kind| kinds.contains(kind)).collect(),
            Self::Entry(inner) => entries(graph, inner.matches(graph)),
            Self::Where(_, holds) => each(&|node| holds(graph, node)),
            Self::Both(a, b) => {
                a.matches(graph).into_iter().zip(b.matches(graph)).map(|(a, b)| a && b).collect()
            }
            Self::First(inner) => {
                let all = inner.matches(graph);
                only(all.iter().position(|&hit| hit), all.len())
            }
            Self::Last(inner) => {
                let all = inner.matches(graph);
                only(all.iter().rposition(|&hit| hit), all.len())
            }
        }
    }
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
