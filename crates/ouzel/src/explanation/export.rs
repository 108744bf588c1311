//! An explanation as an ONNX file: a network whose outputs are its own, the attribution and the heatmap.

use super::{ExplanationGraph, GraphMethod};
use crate::builder::{Builder, Var};
use crate::error::{Result, bail};
use crate::grad_modifiers::GradModifier;
use crate::graph::{Fact, Graph, ValueId};
use crate::image::EPSILON;
use crate::losses::{LateTarget, WeightedLoss};
use crate::model::Model;
use crate::onnx::OnnxFile;
use crate::op::Op;
use crate::ops::reduce::ReduceMin;
use crate::ops::select::ArgMax;
use crate::rewrite::{Rewritten, substitute};
use crate::tensor::DType;
use std::collections::BTreeMap;

/// The name of the output that holds the raw, signed attribution.
const ATTRIBUTION: &str = "attribution";

/// The name of the output that holds the map, scaled to 0…1.
const HEATMAP: &str = "heatmap";

/// The name of the input that names a class for each sample.
const TARGET: &str = "target";

/// The opset of files, unless the network's is newer or another one is asked for.
const OPSET: i64 = 17;

/// Who names the filters that the losses leave open with [`Filters::Late`](crate::Filters::Late).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NamedBy {
    /// The network: the highest-scoring filter of each sample is explained.
    #[default]
    Top,
    /// Whoever runs the file: an int64 input `target` has one filter a sample.
    Input,
}

/// How an explanation is saved; see [`Method::to_onnx`](super::Method::to_onnx).
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Export {
    /// The version of the ONNX operators, 13 to 23; default: 17, or the network's if that is newer.
    pub opset: Option<i64>,
    /// Who names the filters that the losses leave open.
    pub named_by: NamedBy,
    /// What the file says about itself beside what is always there.
    pub metadata: BTreeMap<String, String>,
}

impl Export {
    /// The version of the ONNX operators.
    #[must_use]
    pub fn opset(mut self, opset: i64) -> Self {
        self.opset = Some(opset);
        self
    }

    /// Who names the filters that the losses leave open.
    #[must_use]
    pub fn named_by(mut self, named_by: NamedBy) -> Self {
        self.named_by = named_by;
        self
    }

    /// Something that the file says about itself.
    #[must_use]
    pub fn metadata(mut self, key: &str, value: &str) -> Self {
        self.metadata.insert(key.to_owned(), value.to_owned());
        self
    }
}

/// The file of an explanation.
pub(super) fn to_onnx(
    method: &dyn GraphMethod,
    model: &Model,
    losses: &[WeightedLoss],
    export: &Export,
) -> Result<OnnxFile> {
    let mut outputs = Vec::new();
    for name in model.output_names() {
        outputs.push((name.clone(), model.find(name.as_str())?));
    }
    let explanation = ExplanationGraph::new(model, losses, method)?;
    let mut metadata = model.metadata().clone();
    metadata.extend(described(method, model, &explanation, export)?);
    let ExplanationGraph { graph, raw, channel_axis, target, .. } = explanation;
    let (graph, moved) = match target {
        None => (graph, None),
        Some(target) => {
            let named = name_target(&graph, &target, export.named_by)?;
            (named.graph.clone(), Some(named))
        }
    };
    let place = |id: ValueId| moved.as_ref().map_or(Ok(id), |moved| moved.kept(id));
    for (_, id) in &mut outputs {
        *id = place(*id)?;
    }
    let settings = method.settings();
    let builder = Builder::new(graph);
    let raw = builder.var(place(raw)?);
    let map = heatmap(raw, &settings.grad_modifier, channel_axis.filter(|_| !settings.keep_dims))?;
    for (name, var) in [(ATTRIBUTION, raw), (HEATMAP, map)] {
        let is_taken = |name: &str| {
            builder.graph().values().any(|(_, value)| &*value.name == name)
                || outputs.iter().any(|(output, _): &(String, ValueId)| output == name)
        };
        outputs.push((free_name(name, is_taken), var.id()?));
    }
    let graph = builder.finish()?;
    let mut file = OnnxFile::new(&graph, &outputs, export.opset.unwrap_or(model.opset().max(OPSET)))?;
    file.set_metadata(&metadata);
    file.set_name(&match model.graph_name() {
        "" => "explanation".to_owned(),
        name => format!("{name} and its explanation"),
    });
    Ok(file)
}

/// What the file says about itself.
fn described(
    method: &dyn GraphMethod,
    model: &Model,
    explanation: &ExplanationGraph,
    export: &Export,
) -> Result<BTreeMap<String, String>> {
    let losses: Vec<String> =
        explanation.losses.iter().map(|(name, weight, _)| format!("{weight} × {name}")).collect();
    let target = match (&explanation.target, export.named_by) {
        (None, _) => "fixed",
        (Some(_), NamedBy::Top) => "top",
        (Some(_), NamedBy::Input) => "input",
    };
    let mut metadata: BTreeMap<String, String> = [
        ("ouzel.version", env!("CARGO_PKG_VERSION").to_owned()),
        ("ouzel.method", method.entry().name.to_owned()),
        ("ouzel.grad_modifier", method.settings().grad_modifier.name().to_owned()),
        ("ouzel.tensor", explanation.tensor.clone()),
        ("ouzel.losses", losses.join(" + ")),
        ("ouzel.target", target.to_owned()),
        ("ouzel.source_sha256", model.sha256()?),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    metadata.extend(export.metadata.clone());
    Ok(metadata)
}

/// A name that is not taken, with underscores behind it until it is so.
fn free_name(name: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let mut name = name.to_owned();
    while is_taken(&name) {
        name.push('_');
    }
    name
}

/// The graph in which the input that names the filters is computed: from the scores, or from an input `[samples]`.
fn name_target(graph: &Graph, target: &LateTarget, named_by: NamedBy) -> Result<Rewritten> {
    if target.count != 1 {
        bail!(
            target,
            "a file can explain one filter a sample that is named later, not {}; name them when it is made",
            target.count
        );
    }
    let scores = scores_of(graph, target.input)?;
    let name = graph.value(target.input).name.to_string();
    substitute(graph, target.input, &|builder, moved| match named_by {
        NamedBy::Top => {
            let op = ArgMax { axis: 1, keep_dims: true, select_last_index: false };
            Ok(builder.apply(op, &[builder.var(moved(scores)?)]))
        }
        NamedBy::Input => {
            let is_taken = |taken: &str| {
                taken != name && builder.graph().values().any(|(_, value)| &*value.name == taken)
            };
            let fact = Fact::new(DType::I64, vec![target.samples.clone()]);
            Ok(builder.input(&free_name(TARGET, is_taken), fact).unsqueeze([1]))
        }
    })
}

/// The scores `[samples, filters]` that the filters are picked from by the input that names them.
fn scores_of(graph: &Graph, target: ValueId) -> Result<ValueId> {
    let consumers = graph.consumers();
    let mut queue: Vec<ValueId> = vec![target];
    while let Some(value) = queue.pop() {
        for &(node, position) in &consumers[value.index()] {
            let node = graph.node(node);
            match (&node.op, node.inputs.first()) {
                (Op::GatherND(_), Some(Some(scores))) if position == 1 => return Ok(*scores),
                _ => queue.extend(&node.outputs),
            }
        }
    }
    bail!(internal, "nothing is picked by the input that names filters")
}

/// The map of each sample as nodes: modifier, maximum over channels, and keras-vis's scaling, as
/// [`Attribution::maps`](crate::Attribution::maps).
fn heatmap<'b>(raw: Var<'b>, modifier: &GradModifier, channel_axis: Option<usize>) -> Result<Var<'b>> {
    let modified = modifier.nodes(raw);
    let map = match channel_axis {
        Some(axis) if raw.rank() > 2 => modified.reduce_max([axis], false),
        _ => modified,
    };
    if map.rank() < 2 {
        bail!(target, "a map of {} has one number a sample, which cannot be scaled", raw.fact());
    }
    let of_sample = || (1..map.rank() as i64).collect::<Vec<_>>();
    let low = map.builder().apply(ReduceMin::over(of_sample(), true), &[map]);
    let high = map.reduce_max(1..map.rank(), true);
    Ok((map - low) / (high - low + EPSILON))
}
