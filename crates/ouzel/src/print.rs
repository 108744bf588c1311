//! The canonical text form of a graph, for people and for snapshots in tests.

use crate::graph::{Graph, Source, ValueId};
use std::fmt;

impl fmt::Display for Graph {
    /// One line a value: inputs first, then nodes in order with their attributes, facts and provenance.
    ///
    /// Constants are written where they are used: small ones by their elements, large ones by their name and fact.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &input in self.inputs() {
            writeln!(f, "input {} : {}", Reference(self, input), self.fact(input))?;
        }
        for node in self.nodes() {
            let outputs: Vec<String> =
                node.outputs.iter().map(|&id| Reference(self, id).to_string()).collect();
            let inputs: Vec<String> = (node.inputs.iter())
                .map(|input| input.map_or("_".to_owned(), |id| Reference(self, id).to_string()))
                .collect();
            let facts: Vec<String> = node.outputs.iter().map(|&id| self.fact(id).to_string()).collect();
            write!(
                f,
                "{} = {:?}({}) : {}",
                outputs.join(", "),
                node.op,
                inputs.join(", "),
                facts.join(", ")
            )?;
            if let Some(provenance) = &node.provenance {
                write!(f, "  # {} of {}", provenance.rule, provenance.node)?;
            }
            writeln!(f)?;
        }
        let outputs: Vec<String> = self.outputs.iter().map(|&id| Reference(self, id).to_string()).collect();
        writeln!(f, "output {}", outputs.join(", "))
    }
}

/// How a value is written where it is used.
struct Reference<'a>(&'a Graph, ValueId);

impl fmt::Display for Reference<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(graph, id) = self;
        let value = graph.value(*id);
        if let Source::Constant(_) = value.source {
            if let Some(integers) = value.fact.known_integers().filter(|integers| integers.len() <= 8) {
                return write!(f, "{integers:?}");
            }
            if let Some(floats) = value.fact.floats().filter(|floats| floats.len() == 1) {
                return write!(f, "{:?}", floats[0]);
            }
        }
        match &*value.name {
            "" => write!(f, "%{}", id.0),
            name => write!(f, "'{name}'"),
        }?;
        match value.source {
            Source::Constant(_) => write!(f, ":{}", value.fact),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Builder, DType, Fact, Graph, gradient, rules::RuleSet};

    #[test]
    fn a_backward_graph_says_where_each_node_comes_from() {
        let builder = Builder::new(Graph::default());
        let x = builder.input("x", Fact::new(DType::F32, vec![2.into()]));
        let (x, y) = (x.id().unwrap(), x.relu().id().unwrap());
        let mut backward = gradient(builder.finish().unwrap(), y, &[x], &RuleSet::new()).unwrap();
        backward.graph.outputs = backward.values;
        let expected = "\
input 'x' : float32[2]
%1 = Relu('x') : float32[2]
%4 = Expand(1.0, [2]) : float32[2]
%6 = Greater(%1, 0.0) : bool[2]  # gradient of Relu
%8 = Where(%6, %4, 0.0) : float32[2]  # gradient of Relu
output %8
";
        assert_eq!(backward.graph.to_string(), expected);
    }
}
