//! What a file computes round after round: a graph inside an ONNX `Loop`, which reads the weights of the graph around it.

use super::export::{GraphWriter, dependent, value_info};
use super::lower::lower;
use super::proto::{AttributeProto, GraphProto, NodeProto, attribute_type};
use crate::error::{Context, Result};
use crate::graph::{Constant, Fact, Graph, Source, ValueId};
use crate::rewrite::Rewritten;
use crate::tensor::{DType, Tensor};

/// A graph that runs several times.
#[derive(Clone, Debug)]
pub(crate) struct Rounds {
    /// One round.
    pub(crate) body: Graph,
    /// How many rounds there are.
    pub(crate) count: usize,
    /// Inputs of the body that are the same in every round, and what they are in the graph around it.
    pub(crate) captured: Vec<(ValueId, ValueId)>,
    /// Inputs of the body that differ, and constants whose first axis has an entry for each round.
    pub(crate) entries: Vec<(ValueId, Constant)>,
    /// Results of the body, and the inputs of the graph around it that have those of all rounds along a new first axis.
    pub(crate) collected: Vec<(ValueId, ValueId)>,
}

/// What the tensors of a body are called.
const STEM: &str = "ouzel_round";

fn node(op: &str, name: &str, input: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: name.into(),
        input: input.iter().map(|&name| name.to_owned()).collect(),
        output: vec![output.to_owned()],
        ..Default::default()
    }
}

impl Rounds {
    /// The inputs of the graph around the body that the rounds compute.
    pub(super) fn results(&self, outside: &Rewritten) -> Result<Vec<ValueId>> {
        self.collected.iter().map(|(_, result)| outside.kept(*result)).collect()
    }

    /// Adds the `Loop` to the graph around the body.
    pub(super) fn write(&self, outside: &Rewritten, outer: &mut GraphWriter<'_>) -> Result<()> {
        let wanted: Vec<ValueId> = self.collected.iter().map(|(inside, _)| *inside).collect();
        let lowered = lower(&self.body, &wanted, outer.opset)?;
        let graph = &lowered.graph;
        let mut inner = GraphWriter::new(graph, outer.opset);
        inner.whole = std::mem::take(&mut outer.whole);
        wanted.iter().try_for_each(|id| lowered.kept(*id).map(|id| inner.read[id.index()] = true))?;
        for (inside, around) in &self.captured {
            inner.names[lowered.kept(*inside)?.index()] = outer.names[outside.kept(*around)?.index()].clone();
        }
        let round = inner.whole.fresh(STEM);
        let mut picked = Vec::new();
        for (inside, constant) in &self.entries {
            let stored = inner.whole.stored(constant, &format!("{STEM}_entries"));
            let name = inner.whole.fresh(STEM);
            picked.push(node("Gather", &format!("rounds/{name}"), &[&stored, &round], &name));
            inner.names[lowered.kept(*inside)?.index()] = name;
        }
        for (id, value) in graph.values() {
            if inner.names[id.index()].is_empty() {
                inner.names[id.index()] = match &value.source {
                    Source::Constant(constant) => inner.whole.stored(constant, "ouzel_constant"),
                    _ => inner.whole.fresh(STEM),
                };
            }
        }
        // What depends on constants alone is no matter of the rounds: turned weights, above all.
        let varies = dependent(graph, graph.inputs());
        let every_round = |id: &ValueId| varies[id.index()];
        for node in graph.nodes().iter().filter(|node| !node.outputs.iter().any(every_round)) {
            inner.add_node(node).context(|| node.title())?;
        }
        outer.graph.node.append(&mut inner.graph.node);
        inner.graph.node = picked;
        for node in graph.nodes().iter().filter(|node| node.outputs.iter().any(every_round)) {
            inner.add_node(node).context(|| node.title())?;
        }
        let goes_on = [inner.whole.fresh(STEM), inner.whole.fresh(STEM)];
        inner.graph.node.push(node("Identity", "rounds/on", &[&goes_on[0]], &goes_on[1]));
        let scalar = |name: &str, dtype| value_info(name, &Fact::new(dtype, Vec::new()));
        let mut body = GraphProto { name: "round".into(), ..inner.graph };
        body.input = vec![scalar(&round, DType::I64), scalar(&goes_on[0], DType::Bool)];
        body.output = vec![scalar(&goes_on[1], DType::Bool)];
        for id in &wanted {
            let id = lowered.kept(*id)?;
            body.output.push(value_info(&inner.names[id.index()], graph.fact(id)));
        }
        let count = Constant::new(Tensor::scalar(self.count as i64));
        let count = inner.whole.stored(&count, "ouzel_rounds");
        outer.whole = inner.whole;
        let mut rounds = node("Loop", "rounds", &[&count, ""], "");
        rounds.output = (self.results(outside)?.iter()).map(|id| outer.names[id.index()].clone()).collect();
        rounds.attribute = vec![AttributeProto {
            name: "body".into(),
            r#type: attribute_type::GRAPH,
            g: Some(Box::new(body)),
            ..Default::default()
        }];
        outer.graph.node.push(rounds);
        Ok(())
    }
}
