//! An explanation as an ONNX file: a network whose outputs are its own, the attribution and the heatmap.

use super::rounds::{Given, varied};
use super::{ExplanationGraph, Settings, VariantMethod, pictures};
use crate::builder::{Builder, Var};
use crate::error::{Result, bail};
use crate::grad_modifiers::GradModifier;
use crate::graph::{Fact, Graph, ValueId};
use crate::image::{EPSILON, Preprocess, Render, Upsampling};
use crate::losses::{LateTarget, WeightedLoss};
use crate::methods::MethodEntry;
use crate::model::Model;
use crate::onnx::{OnnxFile, known_length};
use crate::op::Op;
use crate::ops::reduce::ReduceMin;
use crate::ops::select::ArgMax;
use crate::rewrite::{Rewritten, substitute};
use crate::tensor::{DType, Tensor};
use ndarray::ArrayD;
use std::collections::BTreeMap;

/// The name of the output that holds the raw, signed attribution.
const ATTRIBUTION: &str = "attribution";

/// The name of the output that holds the map, scaled to 0…1.
const HEATMAP: &str = "heatmap";

/// The name of the input that names a class for each sample.
const TARGET: &str = "target";

/// The name of the input that takes pictures.
const PICTURE: &str = "picture";

/// The name of the output that shows the map over the picture.
const OVERLAY: &str = "overlay";

/// The opset of files, unless the network's is newer or another one is asked for.
const OPSET: i64 = 17;

/// How many variants of a sample run at once if nothing is said.
const SAMPLES_PER_PASS: usize = 8;

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
    /// The file takes pictures and gives pictures; default: it takes what the network takes.
    pub pictures: Option<Pictures>,
    /// How many variants of each sample run at once, for methods that vary the input; default: 8. More of them become a
    /// `Loop`, so that memory does not grow with their number.
    pub samples_per_pass: Option<usize>,
    /// What the file says about itself beside what is always there.
    pub metadata: BTreeMap<String, String>,
}

/// How a file takes and gives pictures: its input is `picture`, uint8 `[n, h, w, 3]` in the size of the network's input,
/// and beside the other outputs it has `overlay`, the same with the heatmap over it.
#[derive(Clone, Debug, Default)]
pub struct Pictures {
    /// How a picture becomes the network's input; it is not resized.
    pub preprocess: Preprocess,
    /// How the heatmap is laid over it; sizes and percentiles mean nothing here.
    pub render: Render,
}

impl Export {
    /// The file takes pictures and gives pictures.
    #[must_use]
    pub fn pictures(mut self, pictures: Pictures) -> Self {
        self.pictures = Some(pictures);
        self
    }

    /// How many variants of each sample run at once.
    #[must_use]
    pub fn samples_per_pass(mut self, samples: usize) -> Self {
        self.samples_per_pass = Some(samples);
        self
    }

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

/// Whose explanation is saved.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub(super) entry: &'static MethodEntry,
    pub(super) settings: &'a Settings,
    pub(super) model: &'a Model,
    /// The method as what it makes of variants, if it varies the input.
    pub(super) variants: Option<&'a dyn VariantMethod>,
}

/// The file of an explanation: of the attribution itself, or of that of a variant.
pub(super) fn to_onnx(
    about: &About<'_>,
    losses: &[WeightedLoss],
    explanation: ExplanationGraph,
    export: &Export,
) -> Result<OnnxFile> {
    let About { settings, model, variants, .. } = *about;
    let mut outputs = Vec::new();
    for name in model.output_names() {
        outputs.push((name.clone(), model.find(name.as_str())?));
    }
    let mut metadata = model.metadata().clone();
    metadata.extend(described(about, &explanation, export)?);
    let layer_map = explanation.layer_map.as_ref();
    let size = match layer_map.is_some_and(|map| map.upsampling.is_some()) {
        true => side_lengths(&explanation)?,
        false => Vec::new(),
    };
    let rectify = layer_map.is_some_and(|map| map.rectify);
    let upsampling = layer_map.and_then(|map| map.upsampling);
    let mut moved = Rewritten::identity(explanation.graph.clone());
    if let Some(target) = &explanation.target {
        moved = name_target(&moved.graph, target, export.named_by)?;
    }
    let mut pictures = None;
    if let Some(ends) = &export.pictures {
        let input = moved.kept(model.main_input())?;
        let (taken, name) = take_pictures(&moved.graph, input, ends)?;
        moved = moved.then(taken);
        pictures = moved.graph.inputs().iter().copied().find(|&id| *moved.graph.value(id).name == *name);
    }
    let place = |id: ValueId| moved.kept(id);
    for (_, id) in &mut outputs {
        *id = place(*id)?;
    }
    let builder = Builder::new(moved.graph.clone());
    let mut rounds = None;
    let raw = match variants {
        None => builder.var(place(explanation.raw)?),
        Some(method) => {
            if losses.iter().any(|loss| loss.weight != 0.0 && loss.loss.needs_all_samples()) {
                bail!(
                    target,
                    "filters that are named for each sample cannot be saved with {}: name them when the file runs",
                    about.entry.name
                );
            }
            let given = givens(&explanation, &builder, &place)?;
            let most = export.samples_per_pass.unwrap_or(SAMPLES_PER_PASS);
            let inner = match method.varied(model)? {
                Some(tensor) => Some((tensor, builder.var(place(tensor)?))),
                None => None,
            };
            let varied = varied(method, &explanation, &builder, &given, inner, most)?;
            rounds = varied.rounds;
            varied.raw
        }
    };
    let channel_axis = explanation.channel_axis;
    let shown = if rectify { raw.relu() } else { raw };
    let reduced = reduced(shown, &settings.grad_modifier, channel_axis.filter(|_| !settings.keep_dims));
    let map = scaled(upsampling.map_or(Ok(reduced), |upsampling| enlarged(reduced, upsampling, &size))?)?;
    let mut made = vec![(ATTRIBUTION, raw), (HEATMAP, map)];
    if let (Some(ends), Some(pictures)) = (&export.pictures, pictures) {
        if map.rank() != 3 {
            bail!(option, "a heatmap of {} cannot be laid over a picture", map.fact());
        }
        made.push((OVERLAY, pictures::overlay(builder.var(pictures), map, &ends.render)?));
    }
    for (name, var) in made {
        let is_taken = |name: &str| {
            builder.graph().values().any(|(_, value)| &*value.name == name)
                || outputs.iter().any(|(output, _): &(String, ValueId)| output == name)
        };
        outputs.push((free_name(name, is_taken), var.id()?));
    }
    let graph = builder.finish()?;
    let opset = export.opset.unwrap_or(model.opset().max(OPSET));
    let mut file = OnnxFile::new(&graph, &outputs, model.narrow(), rounds.as_ref(), opset)?;
    file.set_metadata(&metadata);
    file.set_name(&match model.graph_name() {
        "" => "explanation".to_owned(),
        name => format!("{name} and its explanation"),
    });
    Ok(file)
}

/// The inputs of an explanation, that which varies first, and where they are in the builder.
fn givens<'b>(
    explanation: &ExplanationGraph,
    builder: &'b Builder,
    place: &dyn Fn(ValueId) -> Result<ValueId>,
) -> Result<Vec<Given<'b>>> {
    let image = explanation.sides.0;
    let batch = explanation.graph.fact(image).shape.first();
    let target = explanation.target.as_ref().map(|target| target.input);
    let others = explanation.graph.inputs().iter().copied().filter(|&id| id != image);
    let given = |id: ValueId| {
        let first = explanation.graph.fact(id).shape.first();
        let each_sample = Some(id) == target || (first.is_some() && first == batch);
        Ok(Given { id, var: builder.var(place(id)?), each_sample })
    };
    std::iter::once(image).chain(others).map(given).collect()
}

/// What the file says about itself.
fn described(
    about: &About<'_>,
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
        ("ouzel.method", about.entry.name.to_owned()),
        ("ouzel.grad_modifier", about.settings.grad_modifier.name().to_owned()),
        ("ouzel.tensor", explanation.tensor.clone()),
        ("ouzel.losses", losses.join(" + ")),
        ("ouzel.target", target.to_owned()),
        ("ouzel.source_sha256", about.model.sha256()?),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if about.variants.is_some() {
        metadata.insert("ouzel.seed".to_owned(), about.settings.seed.to_string());
    }
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

/// The graph that makes an input of pictures, and the name of the input that takes them.
fn take_pictures(graph: &Graph, input: ValueId, ends: &Pictures) -> Result<(Rewritten, String)> {
    let fact = graph.fact(input);
    let shape = pictures::shape(fact, &ends.preprocess)?;
    let own = graph.value(input).name.clone();
    let is_taken = |name: &str| graph.values().any(|(id, value)| id != input && &*value.name == name);
    let name = free_name(PICTURE, |name| is_taken(name) || *name == *own);
    let taken = substitute(graph, input, &|builder, _| {
        let pictures = builder.input(&name, Fact::new(DType::U8, shape.clone()));
        pictures::prepared(pictures, &ends.preprocess, fact.dtype)
    })?;
    Ok((taken, name))
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

/// The lengths of the axes of the input that a map becomes as large as.
fn side_lengths(explanation: &ExplanationGraph) -> Result<Vec<usize>> {
    let (image, axes) = &explanation.sides;
    let shape = &explanation.graph.fact(*image).shape;
    axes.iter().map(|&axis| known_length(&shape[axis], axis)).collect()
}

/// The modified attribution with channels reduced to their maximum, as
/// [`Attribution::modified`](crate::Attribution::modified).
fn reduced<'b>(raw: Var<'b>, modifier: &GradModifier, channel_axis: Option<usize>) -> Var<'b> {
    let modified = modifier.nodes(raw);
    match channel_axis {
        Some(axis) if raw.rank() > 2 => modified.reduce_max([axis], false),
        _ => modified,
    }
}

/// The map with other lengths of its last axes: a product with a matrix for each.
fn enlarged<'b>(map: Var<'b>, upsampling: Upsampling, lengths: &[usize]) -> Result<Var<'b>> {
    let rank = map.rank();
    let Some(first) = rank.checked_sub(lengths.len()) else {
        bail!(shape, "a map of {} cannot become {lengths:?} long: it has fewer axes", map.fact());
    };
    let mut large = map;
    for (place, &to) in lengths.iter().enumerate() {
        let axis = first + place;
        let from = known_length(&large.shape()[axis], axis)?;
        if from == to {
            continue;
        }
        let unit = ArrayD::from_shape_fn(vec![from, from], |at| f64::from(u8::from(at[0] == at[1])));
        large = along_axis(large, axis, upsampling.apply(unit, &[to])?);
    }
    Ok(large)
}

/// The products of what lies along an axis with a matrix, whose columns are what comes out.
pub(crate) fn along_axis(x: Var<'_>, axis: usize, matrix: ArrayD<f64>) -> Var<'_> {
    let last = x.rank() - 1;
    let exchange: Vec<usize> = (0..=last)
        .map(|other| match other {
            _ if other == axis => last,
            _ if other == last => axis,
            _ => other,
        })
        .collect();
    let matrix = x.builder().constant(Tensor::from(matrix).cast(x.dtype()));
    x.transpose(exchange.clone()).matmul(matrix).transpose(exchange)
}

/// keras-vis's scaling to 0…1 for each sample, as [`min_max`](crate::image::min_max).
fn scaled(map: Var<'_>) -> Result<Var<'_>> {
    if map.rank() < 2 {
        bail!(target, "a map of {} has one number a sample, which cannot be scaled", map.fact());
    }
    let of_sample: Vec<i64> = (1..map.rank() as i64).collect();
    let low = map.builder().apply(ReduceMin::over(of_sample, true), &[map]);
    let high = map.reduce_max(1..map.rank(), true);
    Ok((map - low) / (high - low + EPSILON))
}
