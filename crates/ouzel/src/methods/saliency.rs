//! Saliency: the gradient of a target with respect to the input, or to an inner tensor.

use crate::attribution::{Attribution, LossValue};
use crate::backprop::{Gradient, gradient};
use crate::builder::{Builder, Var};
use crate::compile::{Plan, Precision, Started};
use crate::dim::Bindings;
use crate::error::{Context, Result, bail};
use crate::grad_modifiers::GradModifier;
use crate::graph::{Fact, Graph, Source, ValueId};
use crate::input::Input;
use crate::losses::{ActivationMaximization, LateTarget, LossContext, WeightedLoss};
use crate::methods::{MethodEntry, MethodOption};
use crate::model::{Model, TensorRef, is_channels_last};
use crate::op::{OpDef, resolve_axis};
use crate::parts::Cut;
use crate::rewrite::bind;
use crate::rules::BackpropModifier;
use crate::target::Filters;
use crate::tensor::Tensor;
use crate::timings::Timings;
use ndarray::{ArrayD, Axis};
use std::collections::BTreeMap;

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "saliency",
    about: "the gradient of the target: where a small change of the input changes the score most",
    unit: "units of the target per unit of the preprocessed input",
    cost: "1 forward and 1 backward pass",
    source: "Simonyan et al. 2014, Deep inside convolutional networks; \
             guided: Springenberg et al. 2015, Striving for simplicity; \
             rectified: Zeiler and Fergus 2014, Visualizing and understanding convolutional networks",
    criticism: "plain gradients are noisy, and vanish where the score is saturated although the input matters \
                (Sundararajan et al. 2017); guided and rectified maps resemble edge detectors and depend little on the \
                class (Adebayo et al. 2018, Nie et al. 2018)",
    options: &[
        MethodOption {
            name: "backprop_modifier",
            default: "none",
            about: "another backward rule for activation functions: guided, rectified (also relu, deconv), or the \
                    rows of a TOML file",
        },
        MethodOption {
            name: "rectifiers",
            default: "relu",
            about: "the activation functions that the backprop modifier acts on",
        },
        MethodOption {
            name: "grad_modifier",
            default: "absolute",
            about: "what is done to the gradient before it becomes a map",
        },
        MethodOption {
            name: "wrt",
            default: "the input",
            about: "the tensor that the gradient is taken for",
        },
        MethodOption { name: "keepdims", default: "no", about: "keep the channels instead of their maximum" },
    ],
};

/// How a saliency map is made; the defaults are keras-vis's.
///
/// ```
/// use ouzel::{GradModifier, Saliency, rules::BackpropModifier};
/// let what_lowers_it = Saliency::default()
///     .backprop_modifier(BackpropModifier::guided())
///     .grad_modifier(GradModifier::Negate);
/// # let _ = what_lowers_it;
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Saliency {
    /// How the backward pass treats activation functions; default: their true gradient.
    pub backprop_modifier: BackpropModifier,
    /// What is done to the gradient; default: its absolute value.
    pub grad_modifier: GradModifier,
    /// The tensor that the gradient is taken for; default: the model's first floating point input.
    pub wrt_tensor: Option<TensorRef>,
    /// The channel axis of that tensor; default: the last one for an input whose last dimension is smaller than
    /// dimension 1, else 1.
    pub wrt_channel_axis: Option<i64>,
    /// Keep the channel axis instead of taking the maximum over it.
    pub keep_dims: bool,
    /// What is computed in.
    pub precision: Precision,
    /// How many bytes of memory a run may take, weights and inputs aside; default: 256 MiB. Samples beyond that are
    /// explained in parts, with the same result. One sample is explained whatever it takes.
    pub memory_bytes: Option<usize>,
}

/// The memory of a run if nothing is said.
const MEMORY_BYTES: usize = 256 << 20;

impl Saliency {
    /// How the backward pass treats activation functions.
    #[must_use]
    pub fn backprop_modifier(mut self, modifier: BackpropModifier) -> Self {
        self.backprop_modifier = modifier;
        self
    }

    /// What is done to the gradient.
    #[must_use]
    pub fn grad_modifier(mut self, modifier: GradModifier) -> Self {
        self.grad_modifier = modifier;
        self
    }

    /// The tensor that the gradient is taken for.
    #[must_use]
    pub fn wrt_tensor(mut self, tensor: impl Into<TensorRef>) -> Self {
        self.wrt_tensor = Some(tensor.into());
        self
    }

    /// The channel axis of that tensor.
    #[must_use]
    pub fn wrt_channel_axis(mut self, axis: i64) -> Self {
        self.wrt_channel_axis = Some(axis);
        self
    }

    /// Keep the channel axis instead of taking the maximum over it.
    #[must_use]
    pub fn keep_dims(mut self, keep: bool) -> Self {
        self.keep_dims = keep;
        self
    }

    /// What is computed in.
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// How many bytes of memory a run may take, weights and inputs aside.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = Some(bytes);
        self
    }

    /// The gradient of the weighted sum of losses.
    ///
    /// Several samples are explained in parts if they do not fit into the memory budget, or if the file takes one at a
    /// time; losses that name filters for each sample need all samples at once.
    ///
    /// **Formula.** `∂ Σ weightᵢ · lossᵢ / ∂ tensor`, for each sample on its own.
    ///
    /// **Shapes.** The result has the shape of the tensor, batch axis included.
    ///
    /// **Units.** Target units per unit of the tensor (of the preprocessed input).
    ///
    /// **Known criticism.** Plain gradients are noisy, and saturate where the target does not change locally although
    /// the input matters (Sundararajan et al. 2017). Bright means that the target would change, not that the pixel
    /// speaks for it.
    ///
    /// **Source.** Simonyan et al. 2014, "Deep inside convolutional networks".
    ///
    /// # Errors
    /// If the input does not fit the model, if a layer or filter does not exist, if an op on the way is not supported
    /// or has no gradient, or if the gradient is not finite.
    pub fn attribute(&self, model: &Model, losses: &[WeightedLoss], input: &Input) -> Result<Attribution> {
        let inputs = input.resolve(model)?;
        let shapes: Vec<(ValueId, Vec<usize>)> =
            inputs.iter().map(|(id, tensor)| (*id, tensor.shape().to_vec())).collect();
        let tensors: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
        let parts = self.compile_parts(model, losses, &shapes, &[])?;
        let attributions: Result<Vec<Attribution>> =
            parts.parts(&tensors)?.into_iter().map(|(plan, tensors)| Ok(plan.run(&tensors)?.0)).collect();
        Attribution::join(attributions?)
    }

    /// As [`Saliency::compile`], for any number of samples: they are shared out over runs that fit into
    /// [`Saliency::memory_bytes`], or that take one sample each if the file allows no more.
    ///
    /// The result does not depend on how the samples are shared out, for networks that treat each sample by itself.
    ///
    /// ```
    /// use ouzel::losses::{ActivationMaximization, WeightedLoss};
    /// use ouzel::{Attribution, Model, Saliency, Tensor};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
    /// # let pictures = Tensor::from(ndarray::ArrayD::<f32>::zeros(vec![5, 3, 128, 128]));
    /// let model = Model::load(path)?;
    /// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
    /// let shapes = [(model.main_input(), vec![5, 3, 128, 128])];
    /// let parts = Saliency::default().memory_bytes(1 << 20).compile_parts(&model, &losses, &shapes, &[])?;
    /// assert!(parts.samples_at_once() < 5);
    /// let mut maps = Vec::new();
    /// for (plan, pictures) in parts.parts(&[pictures])? {
    ///     maps.push(plan.run(&pictures)?.0);
    /// }
    /// assert_eq!(Attribution::join(maps)?.raw.shape(), [5, 3, 128, 128]);
    /// # Ok::<(), ouzel::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Saliency::compile`].
    pub fn compile_parts(
        &self,
        model: &Model,
        losses: &[WeightedLoss],
        shapes: &[(ValueId, Vec<usize>)],
        also: &[ValueId],
    ) -> Result<SaliencyParts> {
        let for_each_sample = losses.iter().any(|loss| loss.weight != 0.0 && loss.loss.needs_all_samples());
        let cut = match for_each_sample {
            true => None,
            false => Cut::new(model, self.explained(model)?, shapes),
        };
        let Some(cut) = cut else {
            let whole = self.compile(model, losses, shapes, also)?;
            let main = shapes.iter().find(|(id, _)| *id == model.main_input());
            let size = main.and_then(|(_, shape)| shape.first()).copied().unwrap_or(1);
            return Ok(SaliencyParts { whole, rest: None, cut: None, size });
        };
        let plan = |size: usize| self.compile(model, losses, &cut.shapes(shapes, size), also);
        let mut size = if cut.one_at_a_time { 1 } else { cut.samples };
        let mut whole = plan(size)?;
        let budget = self.memory_bytes.unwrap_or(MEMORY_BYTES);
        while size > 1 && whole.plan.memory_bytes() > budget {
            let each = whole.plan.memory_bytes().div_ceil(size).max(1);
            size = (budget / each).clamp(1, size - 1);
            whole = plan(size)?;
        }
        let mut rest = match cut.samples % size {
            0 => None,
            rest => Some(plan(rest)?),
        };
        if cut.one_at_a_time {
            let text = format!(
                "the network takes one sample at a time, so the {} samples were explained one after the other",
                cut.samples
            );
            [Some(&mut whole), rest.as_mut()]
                .into_iter()
                .flatten()
                .for_each(|it| it.warnings.push(text.clone()));
        }
        Ok(SaliencyParts { whole, rest, cut: Some(cut), size })
    }

    /// The tensor that the gradient is taken for.
    fn explained(&self, model: &Model) -> Result<ValueId> {
        match &self.wrt_tensor {
            Some(tensor) => model.find(tensor.clone()),
            None => Ok(model.main_input()),
        }
    }

    /// Makes the explanation ready to run many times on inputs of these shapes.
    ///
    /// Each run also gives the values of the tensors `also`, which cost no pass of their own if the losses depend on
    /// them.
    ///
    /// # Errors
    /// As [`Saliency::attribute`], as far as it does not depend on the input's elements.
    pub fn compile(
        &self,
        model: &Model,
        losses: &[WeightedLoss],
        shapes: &[(ValueId, Vec<usize>)],
        also: &[ValueId],
    ) -> Result<SaliencyPlan> {
        let graph = model.graph();
        let explained = self.explained(model)?;
        let is_input = matches!(graph.value(explained).source, Source::Input);
        let axis = channel_axis(graph.fact(explained), self.wrt_channel_axis, is_input)?;
        let image = if is_input { explained } else { model.main_input() };
        let image_axis = if is_input { axis } else { channel_axis(graph.fact(image), None, true)? };

        let active: Vec<&WeightedLoss> = losses.iter().filter(|loss| loss.weight != 0.0).collect();
        if active.is_empty() {
            bail!(option, "there is no loss with a weight other than 0");
        }
        let builder = Builder::new(graph.clone());
        let context = LossContext::new(model, &builder, builder.var(image), image_axis);
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
        let value_ids = values.iter().map(|value| value.id()).collect::<Result<Vec<ValueId>>>()?;
        let with_losses = builder.finish()?;

        let Gradient { graph: full, values: gradients, coverage, .. } =
            gradient(with_losses, total, &[explained], self.backprop_modifier.rules())?;
        let mut wanted = gradients;
        wanted.extend(value_ids);
        wanted.extend_from_slice(also);
        let mut shapes = shapes.to_vec();
        let target_shape = target.as_ref().map(|target| target_shape(&full, target, &shapes)).transpose()?;
        let late = target.map(|target| target.input);
        shapes.extend(late.zip(target_shape.map(|shape| shape.to_vec())));
        let plan = Plan::staged(&full, &shapes, late.as_slice(), &wanted, self.arithmetic())?;
        let title = |node: &crate::graph::NodeId| full.node(*node).title();
        Ok(SaliencyPlan {
            model: model.clone(),
            plan,
            target: target_shape,
            tensor: graph.value(explained).name.to_string(),
            channel_axis: axis,
            losses: active.iter().map(|weighted| (weighted.loss.name(), weighted.weight)).collect(),
            matched: coverage.matched.iter().map(|(node, rule)| (title(node), rule.to_string())).collect(),
            default_gradient: coverage.default.iter().map(title).collect(),
            warnings: self.left_alone(&full, &coverage),
        })
    }

    /// What is computed in: modifiers with a pole at a gradient of 0 show where it is exactly 0, or where ties were, so that
    /// they get the direct convolution.
    fn arithmetic(&self) -> Precision {
        match (self.precision, &self.grad_modifier) {
            (Precision::F32, GradModifier::Invert | GradModifier::SmallValues) => Precision::F32Direct,
            (precision, _) => precision,
        }
    }

    /// Says which activation functions a modifier did not touch.
    fn left_alone(&self, graph: &Graph, coverage: &crate::backprop::Coverage) -> Vec<String> {
        if self.backprop_modifier.is_none() {
            return Vec::new();
        }
        let name = self.backprop_modifier.name();
        let mut warnings = Vec::new();
        if coverage.matched.is_empty() {
            warnings.push(format!(
                "the backprop modifier '{name}' matched no node on the way: the map is the plain gradient"
            ));
        }
        let mut kinds: BTreeMap<&str, (usize, Option<&'static str>)> = BTreeMap::new();
        for &id in &coverage.default {
            let node = graph.node(id);
            // Erf is how exporters spell GELU out.
            if node.op.family() == "activation" || node.op.name() == "Erf" {
                let rectifier = BackpropModifier::rectifier_name(graph, node);
                let entry = kinds.entry(node.op.name()).or_insert((0, rectifier));
                entry.0 += 1;
            }
        }
        for (op, (count, rectifier)) in kinds {
            let hint = match rectifier {
                Some(rectifier) => format!("; to include it, add '{rectifier}' to the rectifiers"),
                None => String::new(),
            };
            warnings.push(format!("the backprop modifier '{name}' left {count} × {op} alone{hint}"));
        }
        warnings
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

/// Saliency maps of several samples, made ready to run many times in parts; see [`Saliency::compile_parts`].
#[derive(Debug)]
pub struct SaliencyParts {
    /// For as many samples as are run at once.
    whole: SaliencyPlan,
    /// For what is left over.
    rest: Option<SaliencyPlan>,
    /// `None` if the samples are not told apart.
    cut: Option<Cut>,
    size: usize,
}

impl SaliencyParts {
    /// How many samples are run at once.
    pub fn samples_at_once(&self) -> usize {
        self.size
    }

    /// The plan and the inputs of each part, in the order of the samples. [`Attribution::join`] joins what comes out.
    ///
    /// # Errors
    /// If the inputs have another number of samples than the plans were made for.
    pub fn parts(&self, inputs: &[Tensor]) -> Result<Vec<(&SaliencyPlan, Vec<Tensor>)>> {
        let Some(cut) = &self.cut else { return Ok(vec![(&self.whole, inputs.to_vec())]) };
        let starts = (0..cut.samples).step_by(self.size);
        let part = |start: usize| {
            let end = (start + self.size).min(cut.samples);
            let plan = if end - start == self.size {
                &self.whole
            } else {
                self.rest.as_ref().unwrap_or(&self.whole)
            };
            Ok((plan, cut.inputs(inputs, start..end)?))
        };
        starts.map(part).collect()
    }
}

/// A saliency map made ready to run many times; see [`Saliency::compile`].
#[derive(Debug)]
pub struct SaliencyPlan {
    model: Model,
    plan: Plan,
    /// Samples, and filters for each, if these are named when the plan runs.
    target: Option<[usize; 2]>,
    tensor: String,
    channel_axis: Option<usize>,
    losses: Vec<(String, f64)>,
    matched: Vec<(String, String)>,
    default_gradient: Vec<String>,
    warnings: Vec<String>,
}

impl SaliencyPlan {
    /// The gradient for these inputs, in the order of the shapes, and the tensors that were asked for beside it.
    ///
    /// # Errors
    /// If the inputs are not of the shapes and types that the plan was made for, or the gradient is not finite; also if
    /// the filters have yet to be named.
    pub fn run(&self, inputs: &[Tensor]) -> Result<(Attribution, Vec<Tensor>)> {
        if self.target.is_some() {
            bail!(
                target,
                "the filters have yet to be named: start the plan, and explain them one after the other"
            );
        }
        let mut outputs = self.plan.run(inputs)?;
        let also = outputs.split_off(1 + self.losses.len());
        Ok((self.attribution(outputs)?, also))
    }

    /// Runs forward for these inputs, in the order of the shapes. Many targets are then explained at the cost of a
    /// backward pass each, if the losses leave their filters open with [`Filters::Late`].
    ///
    /// ```
    /// use ouzel::losses::{ActivationMaximization, WeightedLoss};
    /// use ouzel::{Filters, Model, Saliency, Tensor, top};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
    /// # let pictures = Tensor::from(ndarray::ArrayD::<f32>::zeros(vec![1, 3, 128, 128]));
    /// let model = Model::load(path)?;
    /// let logits = model.find("animal_logits")?;
    /// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", Filters::Late(1)), -1.0)];
    /// let shapes = [(model.main_input(), vec![1, 3, 128, 128])];
    /// let plan = Saliency::default().compile(&model, &losses, &shapes, &[logits])?;
    /// let mut forward = plan.start(&[pictures])?;
    /// let scores = model.scores_of(logits, 1, &forward.also()[0])?;
    /// for class in &top(&scores, 2)[0] {
    ///     let map = forward.explain_filters(*class)?.raw;
    ///     println!("{class}: {:?}", map.shape());
    /// }
    /// # Ok::<(), ouzel::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the inputs are not of the shapes and types that the plan was made for.
    pub fn start(&self, inputs: &[Tensor]) -> Result<SaliencyForward<'_>> {
        let started = self.plan.start(inputs)?;
        let also = started.early().iter().skip(1 + self.losses.len()).cloned().collect::<Option<Vec<_>>>();
        match also {
            Some(also) => Ok(SaliencyForward { plan: self, started, also }),
            None => bail!(internal, "a tensor of the model depends on the target"),
        }
    }

    /// The engine's plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What the outputs of the plan say: the gradient, and the value of each loss.
    fn attribution(&self, outputs: Vec<Tensor>) -> Result<Attribution> {
        let mut outputs = outputs.into_iter();
        let raw = outputs.next().expect("invariant: one output for each wanted value");
        check_finite(&raw, self.model.graph())?;
        let losses = (self.losses.iter().zip(outputs))
            .map(|((name, weight), value)| LossValue {
                name: name.clone(),
                weight: *weight,
                weighted: value.to_f64().into_iter().collect(),
            })
            .collect();
        let mut warnings = self.warnings.clone();
        if raw.to_f64().iter().all(|&value| value == 0.0) {
            warnings.push(
                "the gradient is zero everywhere: usually a saturated softmax or sigmoid (explain the layer before \
                 it), dead ReLUs, or a rule that let nothing through"
                    .into(),
            );
        }
        Ok(Attribution {
            raw,
            tensor: self.tensor.clone(),
            channel_axis: self.channel_axis,
            losses,
            matched: self.matched.clone(),
            default_gradient: self.default_gradient.clone(),
            warnings,
        })
    }
}

/// A forward pass that waits for what is to be explained; see [`SaliencyPlan::start`].
#[derive(Debug)]
pub struct SaliencyForward<'p> {
    plan: &'p SaliencyPlan,
    started: Started<'p>,
    also: Vec<Tensor>,
}

impl SaliencyForward<'_> {
    /// The tensors that were asked for beside the gradient.
    pub fn also(&self) -> &[Tensor] {
        &self.also
    }

    /// How long each step has taken so far: those of the forward pass once, the others as often as was explained.
    pub fn timings(&self) -> Timings {
        self.started.timings()
    }

    /// The gradient, for losses that leave no filters open.
    ///
    /// # Errors
    /// If the filters have yet to be named, or the gradient is not finite.
    pub fn explain(&mut self) -> Result<Attribution> {
        if self.plan.target.is_some() {
            bail!(target, "the filters have yet to be named");
        }
        let outputs = self.started.finish(&[])?;
        self.plan.attribution(outputs)
    }

    /// The gradient for filters: one list for all samples, or one for each. May be called again for others.
    ///
    /// # Errors
    /// If they are not as many as the plan was made for, if the layer does not have them, or if the gradient is not
    /// finite.
    pub fn explain_filters(&mut self, filters: impl Into<Filters>) -> Result<Attribution> {
        let filters = filters.into();
        let Some([samples, count]) = self.plan.target else {
            bail!(target, "the plan was made for certain filters, and cannot explain others");
        };
        let indices = filters.indices(samples, count)?;
        let outputs = self.started.finish(&[indices]).context(|| format!("filters {filters}"))?;
        self.plan.attribution(outputs)
    }
}

/// The channel axis of a tensor: the one asked for, else by the shape of an input, else 1.
fn channel_axis(fact: &Fact, asked: Option<i64>, is_input: bool) -> Result<Option<usize>> {
    let rank = fact.rank();
    match asked {
        Some(axis) => resolve_axis(axis, rank).map(Some).context(|| "the channel axis"),
        None if rank < 2 => Ok(None),
        None if is_input && is_channels_last(&fact.shape) => Ok(Some(rank - 1)),
        None => Ok(Some(1)),
    }
}

/// An error that says where numbers that are not finite come from.
fn check_finite(raw: &Tensor, graph: &Graph) -> Result<()> {
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
    bail!(
        input,
        "{bad} of {} elements of the gradient are NaN or infinite: the network overflows for this input; check its \
         preprocessing",
        raw.len()
    )
}

/// A saliency map as keras-vis returns it, and the attribution behind it.
#[derive(Clone, Debug)]
pub struct SaliencyMap {
    /// The map, scaled to 0…1: spatial axes alone for one sample, with a leading axis for several.
    pub map: ArrayD<f32>,
    /// The raw gradient and what is known about it.
    pub attribution: Attribution,
}

/// keras-vis's `visualize_saliency`: which parts of the input change the activation of filters of a layer.
///
/// A positive gradient raises the activation. Without a modifier of the gradient, its absolute value is shown.
///
/// ```no_run
/// use ouzel::{Model, Saliency, visualize_saliency};
/// let model = Model::load("network.onnx")?;
/// let picture = ndarray::Array4::<f32>::zeros((1, 3, 224, 224));
/// let saliency = visualize_saliency(&model, "logits", 20, &picture.into(), &Saliency::default())?;
/// println!("{:?}", saliency.map.shape()); // [224, 224]
/// # Ok::<(), ouzel::Error>(())
/// ```
///
/// # Errors
/// As [`Saliency::attribute`].
pub fn visualize_saliency(
    model: &Model,
    layer_idx: impl Into<TensorRef>,
    filter_indices: impl Into<Filters>,
    seed_input: &Input,
    options: &Saliency,
) -> Result<SaliencyMap> {
    let losses = [WeightedLoss::new(ActivationMaximization::new(layer_idx, filter_indices), -1.0)];
    visualize_saliency_with_losses(model, &losses, seed_input, options)
}

/// keras-vis's `visualize_saliency_with_losses`: which parts of the input change a weighted sum of losses.
///
/// As in keras-vis, convolutions are direct: `Precision::F32` means [`Precision::F32Direct`] here.
///
/// # Errors
/// As [`Saliency::attribute`].
pub fn visualize_saliency_with_losses(
    model: &Model,
    losses: &[WeightedLoss],
    seed_input: &Input,
    options: &Saliency,
) -> Result<SaliencyMap> {
    let mut options = options.clone();
    if options.precision == Precision::F32 {
        options.precision = Precision::F32Direct;
    }
    let attribution = options.attribute(model, losses, seed_input)?;
    let maps = attribution.maps(&options.grad_modifier, options.keep_dims)?;
    let map = if maps.ndim() > 0 && maps.shape()[0] == 1 { maps.index_axis_move(Axis(0), 0) } else { maps };
    Ok(SaliencyMap { map, attribution })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCENE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");

    /// Pictures that are neither regular nor random.
    fn pictures(samples: usize) -> Tensor {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 24) as f32
        };
        Tensor::from(ArrayD::from_shape_simple_fn(vec![samples, 3, 128, 128], &mut next))
    }

    fn losses(layer: &str, filters: Filters) -> [WeightedLoss; 1] {
        [WeightedLoss::new(ActivationMaximization::new(layer, filters), -1.0)]
    }

    #[test]
    fn filters_that_are_named_later_give_the_same_bits() {
        let model = Model::load(SCENE).unwrap();
        let input = pictures(2);
        let shapes = [(model.main_input(), vec![2, 3, 128, 128])];
        let lists: [(&str, &[Filters]); 4] = [
            ("animal_logits", &[3.into(), 0.into(), Filters::PerSample(vec![vec![1], vec![4]])]),
            ("animal", &[5.into(), 2.into()]),
            ("conv3", &[[7, 7].into(), [0, 63].into()]),
            ("relu4", &[95.into()]),
        ];
        for modifier in [BackpropModifier::none(), BackpropModifier::guided()] {
            let saliency = Saliency::default().backprop_modifier(modifier);
            for (layer, each) in &lists {
                let count = match &each[0] {
                    Filters::List(list) => list.len(),
                    _ => unreachable!(),
                };
                let also = [model.find(*layer).unwrap()];
                let late =
                    saliency.compile(&model, &losses(layer, Filters::Late(count)), &shapes, &also).unwrap();
                let mut forward = late.start(std::slice::from_ref(&input)).unwrap();
                for filters in *each {
                    let now = saliency.compile(&model, &losses(layer, filters.clone()), &shapes, &also);
                    let (expected, values) = now.unwrap().run(std::slice::from_ref(&input)).unwrap();
                    let found = forward.explain_filters(filters.clone()).unwrap();
                    assert_eq!(found.raw, expected.raw, "{layer} {filters}");
                    assert_eq!(forward.also(), values);
                    for (found, expected) in found.losses[0].weighted.iter().zip(&expected.losses[0].weighted)
                    {
                        assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{layer} {filters}");
                    }
                }
            }
        }
    }

    #[test]
    fn filters_that_are_named_later_in_float64() {
        let model = Model::load(SCENE).unwrap();
        let shapes = [(model.main_input(), vec![1, 3, 128, 128])];
        let saliency = Saliency::default().precision(Precision::F64);
        let also = [model.find("animal").unwrap()];
        let late =
            saliency.compile(&model, &losses("animal_logits", Filters::Late(1)), &shapes, &also).unwrap();
        let mut forward = late.start(&[pictures(1)]).unwrap();
        assert_eq!(forward.also()[0].shape(), [1, 6]);
        for class in [2, 4] {
            let now =
                saliency.compile(&model, &losses("animal_logits", class.into()), &shapes, &also).unwrap();
            let (expected, values) = now.run(&[pictures(1)]).unwrap();
            let found = forward.explain_filters(class).unwrap();
            assert_eq!(found.raw, expected.raw);
            assert_eq!(forward.also(), values);
        }
    }

    #[test]
    fn the_result_does_not_depend_on_the_memory_budget() {
        let model = Model::load(SCENE).unwrap();
        let input = pictures(5);
        let shapes = [(model.main_input(), vec![5, 3, 128, 128])];
        let also = [model.find("animal").unwrap()];
        for precision in [Precision::F32, Precision::F64] {
            let saliency = Saliency::default().precision(precision);
            let whole = saliency.compile(&model, &losses("animal_logits", 2.into()), &shapes, &also).unwrap();
            let (expected, _) = whole.run(std::slice::from_ref(&input)).unwrap();
            let need = whole.plan().memory_bytes();
            assert!(need > 5 * 16 * 64 * 64 * 4, "{need}");
            let mut sizes = Vec::new();
            for budget in [usize::MAX, need, need - 1, need / 2, need / 5, 1] {
                let saliency = saliency.clone().memory_bytes(budget);
                let losses = losses("animal_logits", 2.into());
                let parts = saliency.compile_parts(&model, &losses, &shapes, &also).unwrap();
                let size = parts.samples_at_once();
                assert!(size == 1 || parts.whole.plan().memory_bytes() <= budget, "{size} for {budget}");
                sizes.push(size);
                let found = saliency.attribute(&model, &losses, &input.clone().into()).unwrap();
                assert_eq!(found.raw, expected.raw, "{size} at once");
                assert_eq!(found.losses[0].weighted, expected.losses[0].weighted);
                assert_eq!(found.warnings, expected.warnings);
            }
            assert_eq!((sizes[0], sizes[1], sizes[5]), (5, 5, 1));
            assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes.contains(&2), "{sizes:?}");
        }
        // Filters for each sample are not taken apart.
        let own =
            losses("animal_logits", Filters::PerSample(vec![vec![0], vec![1], vec![2], vec![3], vec![4]]));
        let saliency = Saliency::default();
        let expected = saliency.attribute(&model, &own, &input.clone().into()).unwrap();
        let found = saliency.memory_bytes(1).attribute(&model, &own, &input.into()).unwrap();
        assert_eq!(found.raw, expected.raw);
    }

    #[test]
    fn filters_that_do_not_fit_the_plan() {
        let model = Model::load(SCENE).unwrap();
        let shapes = [(model.main_input(), vec![2, 3, 128, 128])];
        let plan = |filters: Filters| {
            Saliency::default().compile(&model, &losses("animal_logits", filters), &shapes, &[])
        };
        let input = [pictures(2)];
        let late = plan(Filters::Late(1)).unwrap();
        assert!(late.run(&input).unwrap_err().is_target());
        let mut forward = late.start(&input).unwrap();
        assert!(forward.explain().unwrap_err().is_target());
        for wrong in [[0, 1].into(), Filters::All, Filters::PerSample(vec![vec![1]]), Filters::Late(1)] {
            assert!(forward.explain_filters(wrong.clone()).unwrap_err().is_target(), "{wrong}");
        }
        let error = forward.explain_filters(6).unwrap_err().to_string();
        assert!(error.contains("filters 6") && error.contains("out of range"), "{error}");
        // A mistake does no harm to what comes after it.
        assert_eq!(
            forward.explain_filters(5).unwrap().raw,
            plan(5.into()).unwrap().run(&input).unwrap().0.raw
        );
        let now = plan(5.into()).unwrap();
        let mut forward = now.start(&input).unwrap();
        assert!(forward.explain_filters(5).is_err());
        assert_eq!(forward.explain().unwrap().raw, now.run(&input).unwrap().0.raw);
    }
}
