//! Explanations that are graphs: built by a method, run by the engine as one plan, or saved as an ONNX file.

use super::{Explainer, Method, Settings, Started, Task};
use crate::attribution::{Attribution, Completeness, LayerMap, LossValue};
use crate::backprop::Coverage;
use crate::builder::{Builder, Var};
use crate::compile::{self, Plan, Precision};
use crate::dim::Bindings;
use crate::error::{Context, Result, bail};
use crate::graph::{Fact, Graph, NodeId, Source, ValueId};
use crate::losses::{LateTarget, LossContext, WeightedLoss};
use crate::model::{Model, is_channels_last};
use crate::op::resolve_axis;
use crate::rewrite::{bind, with_input};
use crate::target::Filters;
use crate::tensor::Tensor;
use crate::timings::Timings;
use std::sync::OnceLock;

/// A network with the losses that are to be explained: what a method adds its nodes to.
#[derive(Clone, Debug)]
pub struct LossGraph<'m> {
    /// The network.
    pub model: &'m Model,
    /// Its graph, and after it the losses.
    pub graph: Graph,
    /// The value of each loss for each sample, times its weight: `[samples]`.
    pub losses: Vec<ValueId>,
    /// Their sum over losses and samples: what is differentiated.
    pub total: ValueId,
    /// The tensor that the target is attributed to.
    pub explained: ValueId,
    /// Its channel axis; `None` if it has none.
    pub channel_axis: Option<usize>,
    /// The input that names the filters of losses that leave them open.
    target: Option<LateTarget>,
    /// The input that is explained, or stands for what is, with its channel axis.
    image: (ValueId, Option<usize>),
}

impl<'m> LossGraph<'m> {
    /// Adds losses to the graph of a network.
    ///
    /// # Errors
    /// If a layer or filter does not exist, or if there is no loss.
    pub(crate) fn new(model: &'m Model, losses: &[WeightedLoss], settings: &Settings) -> Result<Self> {
        let graph = model.graph();
        let explained = settings.explained(model)?;
        let is_input = matches!(graph.value(explained).source, Source::Input);
        let channel_axis = channel_axis_of(graph.fact(explained), settings.wrt_channel_axis, is_input)?;
        let image = match is_input {
            true => (explained, channel_axis),
            false => (model.main_input(), channel_axis_of(graph.fact(model.main_input()), None, true)?),
        };
        let active: Vec<&WeightedLoss> = losses.iter().filter(|loss| loss.weight != 0.0).collect();
        if active.is_empty() {
            bail!(option, "there is no loss with a weight other than 0");
        }
        let builder = Builder::new(graph.clone());
        let context = LossContext::new(model, &builder, builder.var(image.0), image.1);
        let mut values: Vec<Var> = Vec::new();
        for weighted in &active {
            let title = || weighted.loss.name();
            let value = weighted.loss.build(&context).context(title)? * weighted.weight;
            value.id().context(title)?;
            values.push(value);
        }
        let total = values.iter().copied().reduce(|sum, value| sum + value).expect("invariant: not empty");
        let total = total.sum().id()?;
        let target = context.late_target();
        let losses = values.iter().map(|value| value.id()).collect::<Result<Vec<ValueId>>>()?;
        Ok(Self { model, graph: builder.finish()?, losses, total, explained, channel_axis, target, image })
    }
}

/// A graph with the attribution that a method has added.
#[derive(Clone, Debug)]
pub struct AttributionGraph {
    /// The graph that the method was given, and after it the method's nodes.
    pub graph: Graph,
    /// The raw, signed attribution, with the samples on its first axis.
    pub raw: ValueId,
    /// The tensor that it is about.
    pub tensor: ValueId,
    /// Its channel axis; `None` if it has none.
    pub channel_axis: Option<usize>,
    /// Which rules were used on the way back.
    pub coverage: Coverage,
    /// For class activation maps: what the map is made of. Its size is filled in when the input's is known.
    pub layer_map: Option<LayerMap>,
    /// What was chosen for the reader.
    pub notes: Vec<String>,
    /// What the reader of the map should know.
    pub warnings: Vec<String>,
    /// The sums that say whether the attribution adds up, for methods that promise it.
    pub sums: Option<Sums>,
}

impl AttributionGraph {
    /// An attribution of which nothing else is to be said.
    pub fn new(graph: Graph, raw: ValueId, tensor: ValueId, channel_axis: Option<usize>) -> Self {
        Self {
            graph,
            raw,
            tensor,
            channel_axis,
            coverage: Coverage::default(),
            layer_map: None,
            notes: Vec::new(),
            warnings: Vec::new(),
            sums: None,
        }
    }
}

/// The values behind a [`Completeness`]: one number a sample, or one for all of them.
#[derive(Clone, Debug)]
pub struct Sums {
    /// What is shared out.
    pub expected: ValueId,
    /// The sum of the attribution.
    pub found: ValueId,
    /// The sum that ended in parameters.
    pub absorbed: Option<ValueId>,
    /// The sum that rules found nothing to give to; it is asked for only where the attribution does not add up.
    pub lost: Option<ValueId>,
    /// The sum behind each node that was passed: title, rule, sum.
    pub layers: Vec<(String, String, ValueId)>,
}

impl Sums {
    /// The largest relative gap that rounding and stabilized divisions explain.
    const TOLERANCE: f64 = 1e-2;

    fn values(&self) -> impl Iterator<Item = ValueId> {
        [self.expected, self.found].into_iter().chain(self.absorbed).chain(self.layers.iter().map(|it| it.2))
    }

    /// What the values came out as; takes as many tensors as [`Self::values`] are.
    fn completeness(&self, values: &mut impl Iterator<Item = Tensor>) -> Completeness {
        let mut next = || values.next().map_or(Vec::new(), |value| value.to_f64().into_iter().collect());
        Completeness {
            expected: next(),
            found: next(),
            absorbed: self.absorbed.map_or(Vec::new(), |_| next()),
            lost: Vec::new(),
            tolerance: Self::TOLERANCE,
            layers: (self.layers.iter())
                .map(|(node, rule, _)| (node.clone(), rule.clone(), next()))
                .collect(),
        }
    }
}

/// A method that is a graph: a few more nodes behind the losses.
pub trait GraphMethod: Method {
    /// Adds the attribution to the graph.
    ///
    /// # Errors
    /// If the network has no such attribution; the message names the node or option.
    fn build(&self, losses: LossGraph<'_>) -> Result<AttributionGraph>;
}

/// A network with losses and their attribution, before anything is known of the shapes of its inputs.
#[derive(Clone, Debug)]
pub struct ExplanationGraph {
    /// The network, the losses, and the method.
    pub graph: Graph,
    /// The raw, signed attribution, with the samples on its first axis.
    pub raw: ValueId,
    /// The name of the tensor that it is about.
    pub tensor: String,
    /// Its channel axis; `None` if it has none.
    pub channel_axis: Option<usize>,
    /// The losses: name, weight, and weighted value for each sample.
    pub losses: Vec<(String, f64, ValueId)>,
    /// The int64 input `[samples, filters]` that names the filters, for losses that leave them open.
    pub(crate) target: Option<LateTarget>,
    /// The nodes that were brought into another form first: titles, and the form's name.
    pub rewritten: Vec<(String, String)>,
    /// The nodes that a rule was used on: titles and the rule's name.
    pub matched: Vec<(String, String)>,
    /// The nodes that got their true gradient.
    pub default_gradient: Vec<String>,
    /// For class activation maps: what the map is made of. Its size is filled in when the input's is known.
    pub layer_map: Option<LayerMap>,
    /// The input, and its axes that are neither batch nor channels: what such a map becomes as large as.
    pub(crate) sides: (ValueId, Vec<usize>),
    /// What was chosen for the reader.
    pub notes: Vec<String>,
    /// What the reader of the map should know.
    pub warnings: Vec<String>,
    /// The sums that say whether the attribution adds up, for methods that promise it.
    pub sums: Option<Sums>,
}

impl ExplanationGraph {
    /// The explanation of a weighted sum of losses.
    ///
    /// # Errors
    /// If a layer or filter does not exist, or if an op on the way is not supported or has no gradient.
    pub fn new(model: &Model, losses: &[WeightedLoss], method: &dyn GraphMethod) -> Result<Self> {
        let with_losses = LossGraph::new(model, losses, method.settings())?;
        let values = with_losses.losses.clone();
        let target = with_losses.target.clone();
        let (image, image_axis) = with_losses.image;
        let AttributionGraph { graph, raw, tensor, channel_axis, coverage, layer_map, notes, warnings, sums } =
            method.build(with_losses)?;
        let rank = graph.fact(image).rank();
        let title = |node: &NodeId| coverage.title(&graph, *node);
        let active = losses.iter().filter(|loss| loss.weight != 0.0);
        let described = active.zip(values);
        Ok(Self {
            raw,
            tensor: graph.value(tensor).name.to_string(),
            channel_axis,
            losses: described.map(|(loss, value)| (loss.loss.name(), loss.weight, value)).collect(),
            target,
            matched: coverage.matched.iter().map(|(node, rule)| (title(node), rule.to_string())).collect(),
            default_gradient: coverage.default.iter().map(title).collect(),
            rewritten: coverage.rewritten,
            layer_map,
            sides: (image, (1..rank).filter(|&axis| Some(axis) != image_axis).collect()),
            notes,
            warnings,
            sums,
            graph,
        })
    }
}

/// The shape of the input that names the filters, once the shapes of the others are known.
fn target_shape(graph: &Graph, target: &LateTarget, shapes: &[(ValueId, Vec<usize>)]) -> Result<[usize; 2]> {
    let mut bindings = Bindings::new();
    for (id, shape) in shapes {
        bind(&graph.value(*id).name, graph.fact(*id), shape, &mut bindings)?;
    }
    match target.samples.bind(&bindings).known().map(usize::try_from) {
        Some(Ok(samples)) => Ok([samples, target.count]),
        _ => bail!(
            target,
            "the layer has {} samples, which the shapes of the inputs do not determine, so its filters cannot be named \
             later: name them when the plan is made",
            target.samples
        ),
    }
}

/// An explanation graph as a plan of the engine.
#[derive(Debug)]
pub(crate) struct GraphExplainer {
    model: Model,
    explanation: ExplanationGraph,
    plan: Plan,
    /// Samples, and filters for each, if these are named when the plan runs.
    target: Option<[usize; 2]>,
    /// The shapes of all inputs.
    shapes: Vec<(ValueId, Vec<usize>)>,
    arithmetic: Precision,
    /// The plan of what rules lost, once it was needed.
    lost: OnceLock<Plan>,
}

impl GraphExplainer {
    /// Makes a method ready for a task.
    pub(crate) fn boxed(method: &dyn GraphMethod, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        // Some gradients hang on lengths that the file leaves open.
        let model = &task.model.for_shapes(task.shapes)?;
        let explanation = ExplanationGraph::new(model, task.losses, method)?;
        Self::made(explanation, method.settings(), &Task { model, ..*task }, task.shapes.to_vec())
    }

    /// The same, where the inner tensor `given`, of this shape, is one more input, behind the others: what is computed of it
    /// no longer depends on them. The task asks for no other tensors.
    pub(crate) fn with_given(
        method: &dyn GraphMethod,
        task: &Task<'_>,
        given: ValueId,
        shape: &[usize],
    ) -> Result<Box<dyn Explainer>> {
        let model = &task.model.for_shapes(task.shapes)?;
        let explanation = ExplanationGraph::new(model, task.losses, method)?;
        let mut wanted = vec![explanation.raw];
        wanted.extend(explanation.losses.iter().map(|(_, _, value)| *value));
        let opened = with_input(&explanation.graph, given, &wanted)?;
        let mut shapes = Vec::new();
        for (id, shape) in task.shapes {
            shapes.push((opened.kept(*id)?, shape.clone()));
        }
        shapes.push((opened.kept(given)?, shape.to_vec()));
        let raw = opened.kept(explanation.raw)?;
        let losses = (explanation.losses.into_iter())
            .map(|(name, weight, value)| Ok((name, weight, opened.kept(value)?)))
            .collect::<Result<_>>()?;
        let target = match explanation.target {
            Some(target) => Some(LateTarget { input: opened.kept(target.input)?, ..target }),
            None => None,
        };
        let explanation = ExplanationGraph { graph: opened.graph, raw, losses, target, ..explanation };
        Self::made(explanation, method.settings(), &Task { model, ..*task }, shapes)
    }

    fn made(
        mut explanation: ExplanationGraph,
        settings: &Settings,
        task: &Task<'_>,
        mut shapes: Vec<(ValueId, Vec<usize>)>,
    ) -> Result<Box<dyn Explainer>> {
        if let Some(layer_map) = &mut explanation.layer_map {
            let (image, axes) = &explanation.sides;
            let shape = task.shapes.iter().find(|(id, _)| id == image).map(|(_, shape)| shape);
            layer_map.size =
                shape.map(|shape| axes.iter().map(|&axis| shape[axis]).collect()).unwrap_or_default();
        }
        let ExplanationGraph { graph, raw, losses, target, .. } = &explanation;
        let mut wanted = vec![*raw];
        wanted.extend(losses.iter().map(|(_, _, value)| *value));
        wanted.extend(explanation.sums.iter().flat_map(Sums::values));
        wanted.extend_from_slice(task.also);
        let target_shape = target.as_ref().map(|target| target_shape(graph, target, &shapes)).transpose()?;
        let late = target.as_ref().map(|target| target.input);
        shapes.extend(late.zip(target_shape.map(|shape| shape.to_vec())));
        let arithmetic = settings.arithmetic();
        let plan = Plan::staged(graph, &shapes, late.as_slice(), &wanted, arithmetic)?;
        let (model, lost) = (task.model.clone(), OnceLock::new());
        Ok(Box::new(Self { model, plan, target: target_shape, explanation, shapes, arithmetic, lost }))
    }

    /// What rules lost of each sample.
    fn lost(&self, value: ValueId, inputs: &[Tensor], late: &[Tensor]) -> Result<Vec<f64>> {
        let plan = match self.lost.get() {
            Some(plan) => plan,
            None => {
                let target = self.explanation.target.as_ref().map(|target| target.input);
                let graph = &self.explanation.graph;
                let plan = Plan::staged(graph, &self.shapes, target.as_slice(), &[value], self.arithmetic)?;
                self.lost.get_or_init(|| plan)
            }
        };
        let outputs = plan.start(inputs)?.finish(late)?;
        Ok(outputs.iter().flat_map(|sums| sums.to_f64()).collect())
    }

    /// What the outputs of the plan say: the attribution, and the value of each loss.
    fn attribution(&self, outputs: Vec<Tensor>) -> Result<Attribution> {
        let mut outputs = outputs.into_iter();
        let raw = outputs.next().expect("invariant: one output for each wanted value");
        check_finite(&raw, self.model.graph())?;
        let explanation = &self.explanation;
        let losses = (explanation.losses.iter().zip(&mut outputs))
            .map(|((name, weight, _), value)| LossValue {
                name: name.clone(),
                weight: *weight,
                weighted: value.to_f64().into_iter().collect(),
            })
            .collect();
        let completeness = explanation.sums.as_ref().map(|sums| sums.completeness(&mut outputs));
        let mut warnings = explanation.warnings.clone();
        warnings.extend(zero_warning(&raw, explanation.layer_map.is_some()));
        Ok(Attribution {
            raw,
            tensor: explanation.tensor.clone(),
            channel_axis: explanation.channel_axis,
            losses,
            measures: Vec::new(),
            rewritten: explanation.rewritten.clone(),
            matched: explanation.matched.clone(),
            default_gradient: explanation.default_gradient.clone(),
            layer_map: explanation.layer_map.clone(),
            notes: explanation.notes.clone(),
            warnings,
            completeness,
        })
    }
}

impl Explainer for GraphExplainer {
    fn start<'e>(&'e self, inputs: &[Tensor]) -> Result<Box<dyn Started + 'e>> {
        let started = self.plan.start(inputs)?;
        let sums = self.explanation.sums.iter().flat_map(Sums::values).count();
        let skipped = 1 + self.explanation.losses.len() + sums;
        match started.early().iter().skip(skipped).cloned().collect::<Option<Vec<Tensor>>>() {
            Some(also) => {
                Ok(Box::new(GraphStarted { explainer: self, started, also, inputs: inputs.to_vec() }))
            }
            None => bail!(internal, "a tensor of the model depends on the target"),
        }
    }

    fn memory_bytes(&self) -> usize {
        self.plan.memory_bytes()
    }
}

/// A plan that has run forward.
#[derive(Debug)]
struct GraphStarted<'e> {
    explainer: &'e GraphExplainer,
    started: compile::Started<'e>,
    also: Vec<Tensor>,
    inputs: Vec<Tensor>,
}

impl Started for GraphStarted<'_> {
    fn also(&self) -> &[Tensor] {
        &self.also
    }

    fn explain(&mut self, filters: Option<Filters>) -> Result<Attribution> {
        let (outputs, late) = match (filters, self.explainer.target) {
            (None, None) => (self.started.finish(&[])?, vec![]),
            (None, Some(_)) => bail!(target, "the filters have yet to be named"),
            (Some(filters), Some([samples, count])) => {
                let late = vec![filters.indices(samples, count)?];
                (self.started.finish(&late).context(|| format!("filters {filters}"))?, late)
            }
            (Some(_), None) => {
                bail!(target, "the explanation was made for certain filters, and cannot explain others")
            }
        };
        let mut attribution = self.explainer.attribution(outputs)?;
        let lost = self.explainer.explanation.sums.as_ref().and_then(|sums| sums.lost);
        if let (Some(sums), Some(lost)) = (&mut attribution.completeness, lost)
            && !sums.holds()
        {
            sums.lost = self.explainer.lost(lost, &self.inputs, &late)?;
        }
        Ok(attribution)
    }

    fn timings(&self) -> Timings {
        self.started.timings()
    }
}

/// What is said of an attribution that is zero everywhere.
pub(crate) fn zero_warning(raw: &Tensor, is_class_activation_map: bool) -> Option<String> {
    let text = match is_class_activation_map {
        true => {
            "the map is zero everywhere: nothing in the layer speaks for the target, or its gradient is zero (a saturated \
             softmax or sigmoid, dead ReLUs)"
        }
        false => {
            "the attribution is zero everywhere: usually a saturated softmax or sigmoid (explain the layer before it), \
             dead ReLUs, or a rule that let nothing through"
        }
    };
    raw.to_f64().iter().all(|&value| value == 0.0).then(|| text.into())
}

/// The channel axis of a tensor: the one asked for, else by the shape of an input, else 1.
pub(crate) fn channel_axis_of(fact: &Fact, asked: Option<i64>, is_input: bool) -> Result<Option<usize>> {
    let rank = fact.rank();
    match asked {
        Some(axis) => resolve_axis(axis, rank).map(Some).context(|| "the channel axis"),
        None if rank < 2 => Ok(None),
        None if is_input && is_channels_last(&fact.shape) => Ok(Some(rank - 1)),
        None => Ok(Some(1)),
    }
}

/// An error that says where numbers that are not finite come from.
pub(crate) fn check_finite(raw: &Tensor, graph: &Graph) -> Result<()> {
    let bad = raw.to_f64().iter().filter(|value| !value.is_finite()).count();
    if bad == 0 {
        return Ok(());
    }
    for (_, value) in graph.values() {
        if let Source::Constant(constant) = &value.source
            && constant.fact().dtype.is_float()
            && constant.read()?.to_f64().iter().any(|value| !value.is_finite())
        {
            bail!(model, "the weights '{}' hold NaN or infinite values, so no map can be made", value.name);
        }
    }
    let wider = match raw {
        Tensor::F32(_) => ", or compute in float64 (--precision f64)",
        _ => "",
    };
    bail!(
        input,
        "{bad} of {} elements of the attribution are NaN or infinite: the network or the method overflows for this input; \
         check its preprocessing{wider}",
        raw.len()
    )
}
