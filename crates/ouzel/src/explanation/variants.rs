//! What methods share that vary a tensor: the explainer of another method, run on batches of variants of each sample.

use super::forward::unchanged;
use super::graph::check_finite;
use super::{Explainer, GraphExplainer, Method, Settings, Started, Task, fitting, zero_warning};
use crate::attribution::{Attribution, Completeness, Measure};
use crate::compile::Precision;
use crate::dim::{Bindings, evaluate_shape};
use crate::error::{Result, bail};
use crate::graph::{Source, ValueId};
use crate::model::{Model, is_channels_last};
use crate::parts::Cut;
use crate::rewrite::bind;
use crate::target::Filters;
use crate::tensor::{DType, Tensor};
use crate::timings::Timings;
use ndarray::ArrayD;
use rayon::prelude::*;
use std::fmt;

/// Which tensor a method varies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Varied {
    /// The input, whatever tensor is explained.
    Input,
    /// The tensor that is explained: the input, or what an inner tensor would be if the network were cut there.
    Explained,
}

/// How the attributions of a sample's variants become one.
pub(crate) trait Combine: fmt::Debug + Send + Sync {
    /// The attribution of a sample.
    ///
    /// # Errors
    /// If the sample has no such attribution; the message names the option.
    fn combine(&self, sample: &mut VariedSample<'_>) -> Result<Combined>;
}

/// What has become of a sample's variants.
#[derive(Debug)]
pub(crate) struct Combined {
    /// The raw attribution, with the axis of the samples.
    pub(crate) raw: ArrayD<f64>,
    /// Whether it has the channel axis of the explained tensor.
    pub(crate) has_channels: bool,
    /// What it adds up to, if it has to add up to something.
    pub(crate) completeness: Option<Completeness>,
    /// How many points of a path there were, if that is to be told.
    pub(crate) steps: Option<usize>,
}

impl From<ArrayD<f64>> for Combined {
    fn from(raw: ArrayD<f64>) -> Self {
        Self { raw, has_channels: true, completeness: None, steps: None }
    }
}

/// An explainer that runs another one on variants of each sample.
///
/// Samples come one after the other, their variants in batches that fit into the memory budget, so memory does not grow
/// with the number of either, and no result depends on the size of a batch. If a file does not say where the samples are,
/// all of them are varied together, one variant at a time.
#[derive(Debug)]
pub(crate) struct VariantExplainer {
    model: Model,
    settings: Settings,
    combine: Box<dyn Combine>,
    /// The samples as they are.
    clean: Box<dyn Explainer>,
    /// One sample as it is, if an inner tensor is varied: what that is for other inputs.
    elsewhere: Option<Box<dyn Explainer>>,
    /// The method whose attributions are combined, for `size` variants.
    inner: Box<dyn Explainer>,
    size: usize,
    /// `None` if the samples are not told apart.
    cut: Option<Cut>,
    /// Which of the inputs is varied; the one behind the task's own for an inner tensor.
    varied: usize,
    /// Which of the inputs other inputs take the place of.
    input: usize,
}

impl VariantExplainer {
    /// Makes `inner`, and `combine` for what it gives for some `variants` of each sample, ready for a task.
    ///
    /// # Errors
    /// As [`Method::prepare`]; also if an inner tensor is to be varied and `inner` is no [`GraphMethod`].
    pub(crate) fn boxed(
        task: &Task<'_>,
        inner: &dyn Method,
        varied: Varied,
        variants: usize,
        combine: Box<dyn Combine>,
    ) -> Result<Box<dyn Explainer>> {
        let Task { model, losses, shapes, .. } = *task;
        let settings = inner.settings();
        let explained = settings.explained(model)?;
        let place_of = |id: ValueId| shapes.iter().position(|(other, _)| *other == id);
        let main = if place_of(explained).is_some() { explained } else { model.main_input() };
        let Some(input) = place_of(main) else {
            bail!(input, "there is no array for the input '{}'", model.graph().value(main).name)
        };
        let is_inner = varied == Varied::Explained && place_of(explained).is_none();
        if is_inner && matches!(model.graph().value(explained).source, Source::Constant(_)) {
            bail!(
                option,
                "'{}' is a constant: there is nothing to vary",
                model.graph().value(explained).name
            );
        }
        let names_samples = losses.iter().any(|loss| loss.weight != 0.0 && loss.loss.needs_all_samples());
        let cut = if names_samples { None } else { Cut::of_any(model, explained, shapes) };
        let clean = unchanged(inner, task)?;
        let one = |size: usize| match &cut {
            Some(cut) => cut.shapes(shapes, size),
            None => shapes.to_vec(),
        };
        let prepare = |size: usize| {
            let shapes = one(size);
            let task = Task { model, losses, shapes: &shapes, also: &[] };
            match (is_inner, inner.as_graph()) {
                (false, _) => inner.prepare(&task),
                (true, Some(graph)) => {
                    let shape = shape_of(model, explained, &shapes)?;
                    GraphExplainer::with_given(graph, &task, explained, &shape)
                }
                (true, None) => bail!(option, "{} cannot vary an inner tensor", inner.entry().name),
            }
        };
        let most = match &cut {
            Some(cut) if !cut.one_at_a_time => variants.max(1),
            _ => 1,
        };
        let budget = settings.budget().saturating_sub(clean.memory_bytes());
        let (size, inner_explainer) = match fitting(most, budget, prepare) {
            Ok(fits) => fits,
            // Some files take one sample at a time and do not say so.
            Err(_) if most > 1 => (1, prepare(1)?),
            Err(error) => return Err(error),
        };
        let elsewhere = match is_inner {
            true => Some(unchanged(inner, &Task { model, losses, shapes: &one(1), also: &[] })?),
            false => None,
        };
        Ok(Box::new(Self {
            model: model.clone(),
            settings: settings.clone(),
            combine,
            clean,
            elsewhere,
            inner: inner_explainer,
            size,
            cut,
            varied: if is_inner { shapes.len() } else { input },
            input,
        }))
    }

    /// The element type of variants.
    fn dtype(&self, like: &Tensor) -> DType {
        if self.settings.precision == Precision::F64 { DType::F64 } else { like.dtype() }
    }
}

/// The shape of a tensor inside the network, for inputs of these shapes.
fn shape_of(model: &Model, tensor: ValueId, shapes: &[(ValueId, Vec<usize>)]) -> Result<Vec<usize>> {
    let graph = model.graph();
    let mut bindings = Bindings::new();
    for (id, shape) in shapes {
        bind(&graph.value(*id).name, graph.fact(*id), shape, &mut bindings)?;
    }
    evaluate_shape(&graph.fact(tensor).shape, &bindings)
}

impl Explainer for VariantExplainer {
    fn start<'e>(&'e self, inputs: &[Tensor]) -> Result<Box<dyn Started + 'e>> {
        let clean = self.clean.start(inputs)?;
        let timings = Timings::default();
        Ok(Box::new(VariantStarted { explainer: self, clean, inputs: inputs.to_vec(), timings }))
    }

    fn memory_bytes(&self) -> usize {
        let elsewhere = self.elsewhere.as_ref().map_or(0, |explainer| explainer.memory_bytes());
        self.clean.memory_bytes() + elsewhere + self.inner.memory_bytes()
    }
}

/// The samples as they are have run forward.
#[derive(Debug)]
struct VariantStarted<'e> {
    explainer: &'e VariantExplainer,
    clean: Box<dyn Started + 'e>,
    inputs: Vec<Tensor>,
    /// Those of the variants.
    timings: Timings,
}

impl Started for VariantStarted<'_> {
    fn also(&self) -> &[Tensor] {
        self.clean.also()
    }

    fn explain(&mut self, filters: Option<Filters>) -> Result<Attribution> {
        let explainer = self.explainer;
        let clean = self.clean.explain(filters.clone())?;
        let samples = explainer.cut.as_ref().map_or(1, |cut| cut.samples);
        let mut parts = Vec::new();
        for number in 0..samples {
            let mut sample =
                VariedSample::new(explainer, &self.inputs, &clean, filters.as_ref(), number, samples)?;
            let Combined { raw, has_channels, completeness, steps } =
                explainer.combine.combine(&mut sample)?;
            let VariedSample { template, evaluations, timings, rows, .. } = sample;
            self.timings.add(&timings);
            let Some(mut part) = template else {
                bail!(internal, "no variant was explained");
            };
            part.raw = Tensor::from(raw);
            if explainer.settings.precision != Precision::F64 {
                part.raw = part.raw.cast(DType::F32);
            }
            if !has_channels {
                part.channel_axis = None;
            }
            part.losses.clear();
            // One variant may be dark, and the whole not.
            let dark = zero_warning(&Tensor::scalar(0.0f32), part.layer_map.is_some());
            part.warnings.retain(|warning| Some(warning) != dark.as_ref());
            let each = |name, number: usize| Measure { name, values: vec![number as f64; rows] };
            part.measures = vec![each("evaluations", evaluations / rows)];
            part.measures.extend(steps.map(|steps| each("steps", steps)));
            part.completeness = completeness;
            parts.push(part);
        }
        let mut whole = Attribution::join(parts)?;
        whole.losses = clean.losses;
        check_finite(&whole.raw, explainer.model.graph())?;
        whole.warnings.extend(zero_warning(&whole.raw, whole.layer_map.is_some()));
        Ok(whole)
    }

    fn timings(&self) -> Timings {
        let mut timings = self.clean.timings();
        timings.steps.extend(self.timings.steps.iter().cloned());
        timings
    }
}

/// A sample whose variants are explained; or all samples together, where they are not told apart.
#[derive(Debug)]
pub(crate) struct VariedSample<'e> {
    explainer: &'e VariantExplainer,
    /// The inputs of a run of the inner method; the varied one is replaced.
    inputs: Vec<Tensor>,
    /// The inputs of the sample as they are.
    own: Vec<Tensor>,
    filters: Option<Filters>,
    number: usize,
    samples: usize,
    /// The input: what baselines are like.
    pub(crate) input: ArrayD<f64>,
    /// The channel axis of the input.
    pub(crate) input_channel_axis: Option<usize>,
    /// The varied tensor: the input, or an inner tensor.
    pub(crate) value: ArrayD<f64>,
    /// The weighted sum of the losses for each sample, as far as the losses tell samples apart.
    pub(crate) scores: Option<Vec<f64>>,
    /// What is the same for all variants.
    template: Option<Attribution>,
    /// How many samples are varied together.
    rows: usize,
    /// How many samples and variants were run through the network.
    evaluations: usize,
    expected: usize,
    timings: Timings,
}

impl<'e> VariedSample<'e> {
    fn new(
        explainer: &'e VariantExplainer,
        inputs: &[Tensor],
        clean: &Attribution,
        filters: Option<&Filters>,
        number: usize,
        samples: usize,
    ) -> Result<Self> {
        let size = explainer.size;
        let rows = clean.raw.shape().first().copied().unwrap_or(1);
        let scores = scores(clean, rows);
        let (own, clean_value, scores, rows) = match &explainer.cut {
            Some(cut) => (
                cut.inputs(inputs, number..number + 1)?,
                clean.raw.outer(number..number + 1),
                scores.map(|scores| vec![scores[number]]),
                1,
            ),
            None => (inputs.to_vec(), clean.raw.clone(), scores, rows),
        };
        let repeated = |(place, tensor): (usize, &Tensor)| match &explainer.cut {
            Some(cut) if cut.is_cut(place) => Tensor::join(&vec![tensor.clone(); size]),
            _ => Ok(tensor.clone()),
        };
        let mut repeated = own.iter().enumerate().map(repeated).collect::<Result<Vec<Tensor>>>()?;
        let is_inner = explainer.varied == own.len();
        if is_inner {
            repeated.push(clean_value.clone());
        }
        let filters = match (filters, &explainer.cut) {
            (Some(Filters::PerSample(lists)), Some(_)) => match lists.get(number) {
                Some(list) => Some(Filters::PerSample(vec![list.clone(); size])),
                None => bail!(target, "there are {samples} samples, and filters for {}", lists.len()),
            },
            (filters, _) => filters.cloned(),
        };
        let input = own[explainer.input].to_f64();
        let shape: Vec<_> = input.shape().iter().map(|&length| length.into()).collect();
        let input_channel_axis = match (explainer.varied == explainer.input, input.ndim()) {
            (_, 0 | 1) => None,
            (true, _) if clean.raw.shape().len() == input.ndim() => clean.channel_axis,
            (_, rank) if is_channels_last(&shape) => Some(rank - 1),
            _ => Some(1),
        };
        Ok(Self {
            explainer,
            filters,
            number,
            samples,
            value: if is_inner { clean_value.to_f64() } else { input.clone() },
            input,
            input_channel_axis,
            scores,
            inputs: repeated,
            rows: rows.max(1),
            evaluations: rows,
            own,
            template: None,
            expected: rows,
            timings: Timings::default(),
        })
    }

    /// The seed of whatever is random: the same for every sample, so that a batch gives what its samples give alone.
    pub(crate) fn seed(&self) -> u64 {
        self.explainer.settings.seed
    }

    /// True if an inner tensor is varied.
    pub(crate) fn is_inner(&self) -> bool {
        self.explainer.elsewhere.is_some()
    }

    /// Says that so many more variants are to come.
    pub(crate) fn expect(&mut self, variants: usize) {
        self.expected += variants;
    }

    /// What the varied tensor is for another input.
    ///
    /// # Errors
    /// If the network does not take it.
    pub(crate) fn at(&mut self, input: &ArrayD<f64>) -> Result<ArrayD<f64>> {
        let Some(elsewhere) = &self.explainer.elsewhere else { return Ok(input.clone()) };
        let mut inputs = self.own.clone();
        let place = self.explainer.input;
        inputs[place] = Tensor::from(input.clone()).cast(self.explainer.dtype(&inputs[place]));
        self.evaluations += input.shape().first().copied().unwrap_or(1);
        let mut started = elsewhere.start(&inputs)?;
        // Filters do not change the tensor, but their number is that of one sample.
        let filters = match &self.filters {
            Some(Filters::PerSample(lists)) if self.explainer.cut.is_some() => {
                lists.first().map(|list| Filters::List(list.clone()))
            }
            filters => filters.clone(),
        };
        Ok(started.explain(filters)?.raw.to_f64())
    }

    /// Runs the inner method on `count` variants, and hands `each` the number of a variant, its attribution, and the weighted
    /// sum of its losses for each sample, in their order.
    ///
    /// # Errors
    /// As the inner method.
    pub(crate) fn explain(
        &mut self,
        count: usize,
        variant: &(dyn Fn(usize) -> ArrayD<f64> + Sync),
        each: &mut dyn FnMut(usize, ArrayD<f64>, Option<Vec<f64>>),
    ) -> Result<()> {
        let VariantExplainer { size, varied, inner, settings, .. } = self.explainer;
        let dtype = self.explainer.dtype(&self.inputs[*varied]);
        let rows = self.rows;
        for start in (0..count).step_by(*size) {
            let end = (start + size).min(count);
            let made = |number: usize| Tensor::from(variant(number)).cast(dtype);
            let mut variants: Vec<Tensor> = (start..end).into_par_iter().map(made).collect();
            // The last run is filled up with repetitions.
            variants.resize(*size, variants[0].clone());
            self.inputs[*varied] = Tensor::join(&variants)?;
            let mut started = inner.start(&self.inputs)?;
            let attribution = started.explain(self.filters.clone())?;
            self.timings.add(&started.timings());
            let scores = scores(&attribution, rows * size);
            for number in start..end {
                let part = match *size {
                    1 => attribution.raw.clone(),
                    _ => attribution.raw.outer((number - start) * rows..(number - start + 1) * rows),
                };
                let scores = scores.as_ref().map(|all| all[(number - start) * rows..][..rows].to_vec());
                each(number, part.to_f64(), scores);
            }
            self.evaluations += (end - start) * rows;
            match &mut self.template {
                Some(known) => known.warnings.retain(|warning| attribution.warnings.contains(warning)),
                None => self.template = Some(attribution),
            }
            let each = self.expected.max(self.evaluations);
            settings.progress.report(self.number * each + self.evaluations, self.samples * each);
        }
        Ok(())
    }
}

/// The weighted sum of the losses of each sample, if there are so many.
fn scores(attribution: &Attribution, samples: usize) -> Option<Vec<f64>> {
    let mut sums = vec![0.0; samples];
    for loss in &attribution.losses {
        if loss.weighted.len() != samples {
            return None;
        }
        sums.iter_mut().zip(&loss.weighted).for_each(|(sum, value)| *sum += value);
    }
    Some(sums)
}
