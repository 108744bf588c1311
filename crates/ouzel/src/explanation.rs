//! What all methods have in common: settings, how an explanation is made ready, and how it runs for many samples.

mod export;
mod forward;
mod graph;
mod masked;
mod perturbation;
mod pictures;
mod rounds;
mod variants;

pub(crate) use export::along_axis;
pub use export::{Export, NamedBy, Pictures};
pub(crate) use forward::{Forward, filters_of_samples, scores_of_samples, value_of};
pub use graph::{AttributionGraph, ExplanationGraph, GraphMethod, LossGraph, Sums};
pub(crate) use graph::{GraphExplainer, channel_axis_of, zero_warning};
pub(crate) use masked::Masked;
pub use perturbation::Fill;
pub(crate) use perturbation::{
    FILL_VALUE, Perturbation, PerturbationExplainer, Perturbed, Sample, SampleShape, Scorer,
};
pub use rounds::{There, VariantMethod, Varying};
pub(crate) use variants::{Combine, Combined, VariantExplainer, Varied, VariedSample};

use crate::attribution::Attribution;
use crate::compile::Precision;
use crate::error::{Result, bail};
use crate::grad_modifiers::GradModifier;
use crate::graph::ValueId;
use crate::input::Input;
use crate::losses::WeightedLoss;
use crate::methods::MethodEntry;
use crate::model::{Model, TensorRef};
use crate::onnx::OnnxFile;
use crate::parts::Cut;
use crate::rules::InputBounds;
use crate::target::Filters;
use crate::tensor::Tensor;
use crate::timings::Timings;
use std::fmt;
use std::sync::Arc;

/// What can be chosen for every method.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Settings {
    /// What is done to the attribution before it becomes a map.
    pub grad_modifier: GradModifier,
    /// The tensor that the target is attributed to; default: the model's first floating point input.
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
    /// The lowest and highest values that the model's input can have, where they are known from its preprocessing.
    pub input_bounds: Option<InputBounds>,
    /// The seed of whatever is random: the same seed gives the same bytes.
    pub seed: u64,
    /// Who is told how far a long explanation has come.
    pub progress: Progress,
}

/// The memory of a run if nothing is said.
const MEMORY_BYTES: usize = 256 << 20;

impl Settings {
    /// The tensor that the target is attributed to.
    pub(crate) fn explained(&self, model: &Model) -> Result<ValueId> {
        match &self.wrt_tensor {
            Some(tensor) => model.find(tensor.clone()),
            None => Ok(model.main_input()),
        }
    }

    /// The memory that a run may take.
    pub(crate) fn budget(&self) -> usize {
        self.memory_bytes.unwrap_or(MEMORY_BYTES)
    }

    /// What is computed in: modifiers with a pole at a gradient of 0 show where it is exactly 0, or where ties were, so that
    /// they get the direct convolution.
    pub(crate) fn arithmetic(&self) -> Precision {
        match self.precision {
            Precision::F32 if self.grad_modifier.has_pole() => Precision::F32Direct,
            precision => precision,
        }
    }
}

type Report = dyn Fn(usize, usize) + Send + Sync;

/// Who is told how far a long explanation has come: how many passes are done, out of how many.
#[derive(Clone, Default)]
pub struct Progress(Option<Arc<Report>>);

impl Progress {
    /// Calls `report(done, all)` now and then.
    pub fn new(report: impl Fn(usize, usize) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(report)))
    }

    /// So much is done.
    pub fn report(&self, done: usize, all: usize) {
        if let Some(report) = &self.0 {
            report(done, all);
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "told" } else { "not told" })
    }
}

/// What is explained, and for inputs of which shapes.
#[derive(Clone, Copy, Debug)]
pub struct Task<'t> {
    /// The network.
    pub model: &'t Model,
    /// Whose weighted sum is explained.
    pub losses: &'t [WeightedLoss],
    /// The inputs and their shapes, batch axis included.
    pub shapes: &'t [(ValueId, Vec<usize>)],
    /// Tensors whose values are wanted beside the attribution; they cost no pass of their own if the losses depend on
    /// them.
    pub also: &'t [ValueId],
}

/// An explanation method with its options.
pub trait Method: fmt::Debug + Send + Sync {
    /// What lists of methods say of it.
    fn entry(&self) -> &'static MethodEntry;

    /// The choices that it shares with every other method.
    fn settings(&self) -> &Settings;

    /// The same, to be changed.
    fn settings_mut(&mut self) -> &mut Settings;

    /// The method as nodes of a graph, if it is one: such methods run as one plan and can be saved as ONNX files.
    fn as_graph(&self) -> Option<&dyn GraphMethod> {
        None
    }

    /// The method as nodes that are computed for many variants of the input, if it is that: such methods can be saved, too.
    fn as_variants(&self) -> Option<&dyn VariantMethod> {
        None
    }

    /// True if what the method says of samples that run together is a sum over them, so that each is to run by itself.
    fn tells_samples_apart_only_alone(&self) -> bool {
        false
    }

    /// Makes the explanation ready to run many times on inputs of exactly the task's shapes.
    ///
    /// # Errors
    /// If a layer or filter does not exist, or if an op on the way is not supported or has no gradient.
    fn prepare(&self, task: &Task<'_>) -> Result<Box<dyn Explainer>>;

    /// As [`Method::prepare`], for any number of samples: they are shared out over runs that fit into
    /// [`Settings::memory_bytes`], or that take one sample each if the file allows no more.
    ///
    /// The result does not depend on how the samples are shared out, for networks that treat each sample by itself.
    ///
    /// # Errors
    /// As [`Method::prepare`].
    fn explanation(&self, task: &Task<'_>) -> Result<Explanation> {
        let settings = self.settings();
        let for_each_sample =
            task.losses.iter().any(|loss| loss.weight != 0.0 && loss.loss.needs_all_samples());
        let cut = match for_each_sample {
            true => None,
            false => Cut::new(task.model, settings.explained(task.model)?, task.shapes),
        };
        let Some(cut) = cut else {
            let main = task.shapes.iter().find(|(id, _)| *id == task.model.main_input());
            let size = main.and_then(|(_, shape)| shape.first()).copied().unwrap_or(1);
            return Ok(Explanation { whole: self.prepare(task)?, rest: None, cut: None, size });
        };
        let prepare = |size: usize| self.prepare(&Task { shapes: &cut.shapes(task.shapes, size), ..*task });
        let alone = cut.one_at_a_time || self.tells_samples_apart_only_alone();
        let (size, whole) = fitting(if alone { 1 } else { cut.samples }, settings.budget(), prepare)?;
        let rest = match cut.samples % size {
            0 => None,
            rest => Some(prepare(rest)?),
        };
        Ok(Explanation { whole, rest, cut: Some(cut), size })
    }

    /// The attribution of the weighted sum of losses, each sample on its own.
    ///
    /// Several samples are explained in parts if they do not fit into the memory budget, or if the file takes one at a
    /// time; losses that name filters for each sample need all samples at once.
    ///
    /// # Errors
    /// If the input does not fit the model, if a layer or filter does not exist, if an op on the way is not supported
    /// or has no gradient, or if the attribution is not finite.
    fn attribute(&self, model: &Model, losses: &[WeightedLoss], input: &Input) -> Result<Attribution> {
        let inputs = input.resolve(model)?;
        let shapes: Vec<(ValueId, Vec<usize>)> =
            inputs.iter().map(|(id, tensor)| (*id, tensor.shape().to_vec())).collect();
        let tensors: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
        let explanation = self.explanation(&Task { model, losses, shapes: &shapes, also: &[] })?;
        let parts = explanation.parts(&tensors)?.into_iter();
        let explain =
            |(explainer, inputs): (&dyn Explainer, Vec<Tensor>)| explainer.start(&inputs)?.explain(None);
        explanation.join(parts.map(explain).collect::<Result<_>>()?)
    }

    /// The explanation as an ONNX file that any runtime executes: a network whose outputs are the model's own, then
    /// `attribution`, raw and signed, and `heatmap`, scaled to 0…1 for each sample. Filters that the losses leave open
    /// with [`Filters::Late`] are named as [`Export::named_by`] says.
    ///
    /// Weights are those of the model, stored once under their names; a batch that is dynamic stays so. A [`VariantMethod`]
    /// runs [`Export::samples_per_pass`] variants of each sample at once, and more of them in a `Loop`.
    ///
    /// ```
    /// use ouzel::losses::{ActivationMaximization, WeightedLoss};
    /// use ouzel::{Export, Filters, Method, Model, Saliency};
    /// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
    /// let model = Model::load(path)?;
    /// let top = [WeightedLoss::new(ActivationMaximization::new("animal_logits", Filters::Late(1)), -1.0)];
    /// let file = Saliency::default().to_onnx(&model, &top, &Export::default())?;
    /// assert!(file.output_names().eq(["animal", "things", "attribution", "heatmap"]));
    /// let bytes = file.to_bytes()?; // or file.save("explainer.onnx")?
    /// let explainer = Model::from_bytes(bytes)?;
    /// assert_eq!(explainer.metadata()["ouzel.method"], "saliency");
    /// # Ok::<(), ouzel::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the method is not a graph of ops, if a layer or filter does not exist, if an op on the way is not supported or
    /// has no gradient, or if it cannot be said in the file's operator set; the message names the node.
    fn to_onnx(&self, model: &Model, losses: &[WeightedLoss], export: &Export) -> Result<OnnxFile> {
        let (explanation, variants) = match (self.as_graph(), self.as_variants()) {
            (Some(method), _) => (ExplanationGraph::new(model, losses, method)?, None),
            (None, Some(method)) => (method.inner(model, losses)?, Some(method)),
            (None, None) => bail!(
                unsupported,
                "{} is more than a graph of ops, so that it cannot be saved as an ONNX file",
                self.entry().name
            ),
        };
        let about = export::About { entry: self.entry(), settings: self.settings(), model, variants };
        export::to_onnx(&about, losses, explanation, export)
    }

    /// What is done to the attribution before it becomes a map.
    #[must_use]
    fn grad_modifier(mut self, modifier: GradModifier) -> Self
    where
        Self: Sized,
    {
        self.settings_mut().grad_modifier = modifier;
        self
    }

    /// The tensor that the target is attributed to.
    #[must_use]
    fn wrt_tensor(mut self, tensor: impl Into<TensorRef>) -> Self
    where
        Self: Sized,
    {
        self.settings_mut().wrt_tensor = Some(tensor.into());
        self
    }

    /// The channel axis of that tensor.
    #[must_use]
    fn wrt_channel_axis(mut self, axis: i64) -> Self
    where
        Self: Sized,
    {
        self.settings_mut().wrt_channel_axis = Some(axis);
        self
    }

    /// Keep the channel axis instead of taking the maximum over it.
    #[must_use]
    fn keep_dims(mut self, keep: bool) -> Self
    where
        Self: Sized,
    {
        self.settings_mut().keep_dims = keep;
        self
    }

    /// What is computed in.
    #[must_use]
    fn precision(mut self, precision: Precision) -> Self
    where
        Self: Sized,
    {
        self.settings_mut().precision = precision;
        self
    }

    /// How many bytes of memory a run may take, weights and inputs aside.
    #[must_use]
    fn memory_bytes(mut self, bytes: usize) -> Self
    where
        Self: Sized,
    {
        self.settings_mut().memory_bytes = Some(bytes);
        self
    }

    /// The seed of whatever is random.
    #[must_use]
    fn seed(mut self, seed: u64) -> Self
    where
        Self: Sized,
    {
        self.settings_mut().seed = seed;
        self
    }
}

/// The explainer of as many samples, at most `most`, as a run has memory for, and their number.
fn fitting(
    most: usize,
    budget: usize,
    prepare: impl Fn(usize) -> Result<Box<dyn Explainer>>,
) -> Result<(usize, Box<dyn Explainer>)> {
    let mut size = most;
    let mut explainer = prepare(size)?;
    while size > 1 && explainer.memory_bytes() > budget {
        let each = explainer.memory_bytes().div_ceil(size).max(1);
        let fits = (budget / each).clamp(1, size - 1);
        // As many runs as that takes, and each of them as small as it can be.
        size = most.div_ceil(most.div_ceil(fits));
        explainer = prepare(size)?;
    }
    Ok((size, explainer))
}

/// A method made ready for inputs of certain shapes; see [`Method::prepare`].
pub trait Explainer: fmt::Debug + Send + Sync {
    /// Runs forward for these inputs, in the order of the shapes. Many targets may then be explained on that one forward
    /// pass, if the losses leave their filters open with [`Filters::Late`].
    ///
    /// # Errors
    /// If the inputs are not of the shapes and types that the explainer was made for.
    fn start<'e>(&'e self, inputs: &[Tensor]) -> Result<Box<dyn Started + 'e>>;

    /// The bytes of memory that a run needs beside inputs, outputs and weights.
    fn memory_bytes(&self) -> usize;
}

/// A forward pass that waits for what is to be explained; see [`Explainer::start`].
pub trait Started: fmt::Debug {
    /// The values of the tensors that the task asked for beside the attribution.
    fn also(&self) -> &[Tensor];

    /// The attribution for filters: one list for all samples, or one for each; `None` for losses that leave no filters
    /// open. May be called again for others.
    ///
    /// # Errors
    /// If the filters are not as many as the explainer was made for, if the layer does not have them, or if the
    /// attribution is not finite.
    fn explain(&mut self, filters: Option<Filters>) -> Result<Attribution>;

    /// How long each step has taken so far: those of the forward pass once, the others as often as was explained.
    fn timings(&self) -> Timings;
}

/// An explanation of several samples, made ready to run many times in parts; see [`Method::explanation`].
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{Method, Model, Saliency, Task, Tensor};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// # let pictures = Tensor::from(ndarray::ArrayD::<f32>::zeros(vec![5, 3, 128, 128]));
/// let model = Model::load(path)?;
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let shapes = [(model.main_input(), vec![5, 3, 128, 128])];
/// let task = Task { model: &model, losses: &losses, shapes: &shapes, also: &[] };
/// let explanation = Saliency::default().memory_bytes(1 << 20).explanation(&task)?;
/// assert!(explanation.samples_at_once() < 5);
/// let mut maps = Vec::new();
/// for (explainer, pictures) in explanation.parts(&[pictures])? {
///     maps.push(explainer.start(&pictures)?.explain(None)?);
/// }
/// assert_eq!(explanation.join(maps)?.raw.shape(), [5, 3, 128, 128]);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Debug)]
pub struct Explanation {
    /// For as many samples as are run at once.
    whole: Box<dyn Explainer>,
    /// For what is left over.
    rest: Option<Box<dyn Explainer>>,
    /// `None` if the samples are not told apart.
    cut: Option<Cut>,
    size: usize,
}

impl Explanation {
    /// How many samples are run at once.
    pub fn samples_at_once(&self) -> usize {
        self.size
    }

    /// The attribution of all samples, out of those of the parts in their order.
    ///
    /// # Errors
    /// As [`Attribution::join`].
    pub fn join(&self, parts: Vec<Attribution>) -> Result<Attribution> {
        let mut whole = Attribution::join(parts)?;
        if let Some(cut) = self.cut.as_ref().filter(|cut| cut.one_at_a_time) {
            whole.warnings.push(format!(
                "the network takes one sample at a time, so the {} samples were explained one after the other",
                cut.samples
            ));
        }
        Ok(whole)
    }

    /// The explainer and the inputs of each part, in the order of the samples. [`Explanation::join`] joins what comes out.
    ///
    /// # Errors
    /// If the inputs have another number of samples than the explanation was made for.
    pub fn parts(&self, inputs: &[Tensor]) -> Result<Vec<(&dyn Explainer, Vec<Tensor>)>> {
        let Some(cut) = &self.cut else { return Ok(vec![(&*self.whole, inputs.to_vec())]) };
        let starts = (0..cut.samples).step_by(self.size);
        let part = |start: usize| {
            let end = (start + self.size).min(cut.samples);
            let is_rest = end - start < self.size;
            let explainer = self.rest.as_deref().filter(|_| is_rest).unwrap_or(&*self.whole);
            Ok((explainer, cut.inputs(inputs, start..end)?))
        };
        starts.map(part).collect()
    }
}
