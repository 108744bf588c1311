//! Explanations that vary one sample after the other and look at what the variants score.

use super::forward::{Forward, ForwardSample, filters_of_samples, scores_of_samples, unchanged};
use super::{Explainer, Method, Progress, Started, Task};
use crate::attribution::{Attribution, Measure};
use crate::dim::known_shape;
use crate::error::{Context, Result, bail};
use crate::explanation::channel_axis_of;
use crate::graph::Source;
use crate::target::Filters;
use crate::tensor::{DType, Tensor};
use crate::timings::Timings;
use ndarray::{ArrayD, Axis};
use std::fmt;

/// A sample without its batch axis.
#[derive(Clone, Debug)]
pub(crate) struct SampleShape {
    /// The length of each axis.
    pub(crate) lengths: Vec<usize>,
    /// The axis of the channels, if there is one beside axes of positions.
    pub(crate) channels: Option<usize>,
}

impl SampleShape {
    fn new(shape: &[usize], channel_axis: Option<usize>) -> Self {
        let lengths = shape.get(1..).unwrap_or_default().to_vec();
        let channels = channel_axis.and_then(|axis| axis.checked_sub(1)).filter(|_| lengths.len() > 1);
        Self { lengths, channels }
    }

    /// The axes of positions: all but that of the channels.
    pub(crate) fn spatial(&self) -> Vec<usize> {
        (0..self.lengths.len()).filter(|&axis| Some(axis) != self.channels).collect()
    }
}

/// A sample that is being explained, and what it scores.
#[derive(Debug)]
pub(crate) struct Sample<'s> {
    /// Its elements.
    pub(crate) elements: ArrayD<f64>,
    /// What they mean.
    pub(crate) shape: &'s SampleShape,
    /// What it scores as it is.
    pub(crate) score: f64,
    pub(crate) seed: u64,
}

/// The attribution of a sample, and what was counted on the way.
pub(crate) struct Perturbed {
    pub(crate) raw: ArrayD<f64>,
    pub(crate) measures: Vec<(&'static str, f64)>,
}

/// What a method does to one sample.
pub(crate) trait Perturbation: fmt::Debug + Send + Sync {
    /// How many variants there are at most.
    fn count(&self, shape: &SampleShape) -> Result<usize>;

    /// The attribution of a sample, from the scores of its variants.
    fn explain(&self, sample: &Sample<'_>, scorer: &mut Scorer<'_>) -> Result<Perturbed>;
}

/// Scores variants of a sample, and says how far it has come.
#[derive(Debug)]
pub(crate) struct Scorer<'s> {
    sample: ForwardSample<'s>,
    progress: &'s Progress,
    done: usize,
    all: usize,
}

impl Scorer<'_> {
    /// How many variants run at once.
    pub(crate) fn at_once(&self) -> usize {
        self.sample.at_once()
    }

    /// What each of so many variants scores; `write(index, elements)` writes one.
    pub(crate) fn scores(
        &mut self,
        variants: std::ops::Range<usize>,
        write: &(dyn Fn(usize, &mut [f64]) + Sync),
    ) -> Result<Vec<f64>> {
        let mut scores = Vec::with_capacity(variants.len());
        for start in variants.clone().step_by(self.sample.at_once()) {
            let end = (start + self.sample.at_once()).min(variants.end);
            scores.extend(self.sample.scores(start..end, write)?);
            self.progress.report(self.done + end, self.all);
        }
        Ok(scores)
    }
}

/// A perturbation made ready.
#[derive(Debug)]
pub(crate) struct PerturbationExplainer<P> {
    perturbation: P,
    unchanged: Box<dyn Explainer>,
    forward: Forward,
    shape: SampleShape,
    count: usize,
    dtype: DType,
    seed: u64,
    progress: Progress,
}

impl<P: Perturbation + 'static> PerturbationExplainer<P> {
    /// Makes a method ready for a task.
    pub(crate) fn boxed(method: &dyn Method, perturbation: P, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        let settings = method.settings();
        let graph = task.model.graph();
        let varied = settings.explained(task.model)?;
        let fact = graph.fact(varied);
        let is_input = matches!(graph.value(varied).source, Source::Input);
        if !fact.dtype.is_float() {
            bail!(option, "'{}' cannot be varied: its elements are {}", graph.value(varied).name, fact.dtype);
        }
        let unchanged = unchanged(method, task)?;
        let shape = match task.shapes.iter().find(|(id, _)| *id == varied) {
            Some((_, shape)) => shape.clone(),
            None => inner_shape(task, varied)?,
        };
        let axis = channel_axis_of(fact, settings.wrt_channel_axis, is_input)?;
        let sample = SampleShape::new(&shape, axis);
        let count = perturbation.count(&sample)?;
        Ok(Box::new(Self {
            perturbation,
            unchanged,
            forward: Forward::new(method, task, varied, &sample.lengths, count)?,
            shape: sample,
            count,
            dtype: fact.dtype,
            seed: settings.seed,
            progress: settings.progress.clone(),
        }))
    }
}

/// The shape of a tensor inside the network for inputs of these shapes.
fn inner_shape(task: &Task<'_>, value: crate::graph::ValueId) -> Result<Vec<usize>> {
    let graph = task.model.graph();
    let mut bindings = crate::dim::Bindings::new();
    for (id, shape) in task.shapes {
        crate::rewrite::bind(&graph.value(*id).name, graph.fact(*id), shape, &mut bindings)?;
    }
    let simple = crate::rewrite::simplify(graph, &[value], &bindings)?;
    let fact = simple.graph.fact(simple.kept(value)?);
    match known_shape(&fact.shape) {
        Some(shape) => Ok(shape),
        None => bail!(option, "the shape of '{}' is not known: {fact}", graph.value(value).name),
    }
}

impl<P: Perturbation + 'static> Explainer for PerturbationExplainer<P> {
    fn start<'e>(&'e self, inputs: &[Tensor]) -> Result<Box<dyn Started + 'e>> {
        let unchanged = self.unchanged.start(inputs)?;
        Ok(Box::new(PerturbationStarted { explainer: self, unchanged, inputs: inputs.to_vec() }))
    }

    fn memory_bytes(&self) -> usize {
        self.unchanged.memory_bytes().max(self.forward.memory_bytes())
    }
}

/// Samples that have run forward as they are.
#[derive(Debug)]
struct PerturbationStarted<'e, P> {
    explainer: &'e PerturbationExplainer<P>,
    unchanged: Box<dyn Started + 'e>,
    inputs: Vec<Tensor>,
}

impl<P: Perturbation + 'static> Started for PerturbationStarted<'_, P> {
    fn also(&self) -> &[Tensor] {
        self.unchanged.also()
    }

    fn explain(&mut self, filters: Option<Filters>) -> Result<Attribution> {
        let PerturbationExplainer { perturbation, forward, shape, count, dtype, seed, progress, .. } =
            self.explainer;
        let mut attribution = self.unchanged.explain(filters.clone())?;
        attribution.warnings.clear();
        let scores = scores_of_samples(&attribution)?;
        let filters = filters_of_samples(filters.as_ref(), scores.len())?;
        let elements = attribution.raw.to_f64();
        let mut raw = ArrayD::zeros(elements.raw_dim());
        let mut measures: Vec<Measure> = Vec::new();
        for (place, &score) in scores.iter().enumerate() {
            let sample = Sample {
                elements: elements.index_axis(Axis(0), place).to_owned(),
                shape,
                score,
                seed: *seed,
            };
            let of_sample = filters.as_ref().map(|lists| lists[place].as_slice());
            let mut scorer = Scorer {
                sample: forward.sample(&self.inputs, place, of_sample)?,
                progress,
                done: place * count,
                all: scores.len() * count,
            };
            let found = perturbation.explain(&sample, &mut scorer).context(|| match scores.len() {
                1 => attribution.tensor.clone(),
                _ => format!("{}, sample {place}", attribution.tensor),
            })?;
            raw.index_axis_mut(Axis(0), place).assign(&found.raw);
            for (name, value) in found.measures {
                match measures.iter_mut().find(|measure| measure.name == name) {
                    Some(measure) => measure.values.push(value),
                    None => measures.push(Measure { name, values: vec![value] }),
                }
            }
        }
        progress.report(1, 1);
        if raw.iter().all(|&value| value == 0.0) {
            attribution.warnings.push(
                "the attribution is zero everywhere: no variant of the input scores anything else".into(),
            );
        }
        attribution.raw = match forward.dtype() {
            DType::F64 => Tensor::from(raw),
            _ => Tensor::from(raw).cast(*dtype),
        };
        attribution.measures = measures;
        Ok(attribution)
    }

    fn timings(&self) -> Timings {
        self.unchanged.timings()
    }
}

/// What takes the place of elements that are removed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// This number.
    Value(f64),
    /// The mean of the channel over the positions of the sample.
    Mean,
}

impl Default for Fill {
    fn default() -> Self {
        Self::Value(0.0)
    }
}

impl std::str::FromStr for Fill {
    type Err = crate::Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse()) {
            ("mean", _) => Ok(Self::Mean),
            (_, Ok(value)) if f64::is_finite(value) => Ok(Self::Value(value)),
            _ => bail!(option, "expected a number, or 'mean'"),
        }
    }
}

impl Fill {
    /// A sample of which everything is removed.
    pub(crate) fn sample(self, sample: &Sample<'_>) -> ArrayD<f64> {
        let elements = &sample.elements;
        match self {
            Self::Value(value) => ArrayD::from_elem(elements.raw_dim(), value),
            Self::Mean => {
                let mut mean = elements.clone();
                for axis in sample.shape.spatial() {
                    let sum = mean.sum_axis(Axis(axis)).insert_axis(Axis(axis));
                    mean = sum / elements.len_of(Axis(axis)) as f64;
                }
                mean.broadcast(elements.raw_dim()).map_or(mean.clone(), |mean| mean.to_owned())
            }
        }
    }
}

/// The option that says so.
pub(crate) const FILL_VALUE: crate::options::MethodOption = crate::options::MethodOption::new(
    "fill_value",
    crate::options::OptionKind::Text,
    "V|mean",
    "0",
    "what takes the place of what is removed, as the network takes it (after preprocessing); mean: the mean of each \
     channel",
);
