//! The losses alone, run forward: for the samples as they are, and for many variants of one sample.

use super::{
    AttributionGraph, Explainer, ExplanationGraph, GraphExplainer, GraphMethod, LossGraph, Method, Settings,
    Task,
};
use crate::attribution::Attribution;
use crate::compile::{Plan, Precision};
use crate::error::{Context, Result, bail};
use crate::graph::ValueId;
use crate::methods::MethodEntry;
use crate::rewrite::with_input;
use crate::target::Filters;
use crate::tensor::{DType, Tensor};
use rayon::prelude::*;
use std::ops::Range;

/// More variants than this in one run make none of them faster.
const MOST_AT_ONCE: usize = 64;

/// What is left of a method without its attribution: the losses, and the tensor itself in place of a map.
#[derive(Clone, Debug)]
struct LossesAlone {
    entry: &'static MethodEntry,
    settings: Settings,
}

impl LossesAlone {
    fn of(method: &dyn Method) -> Self {
        Self { entry: method.entry(), settings: method.settings().clone() }
    }
}

impl Method for LossesAlone {
    fn entry(&self) -> &'static MethodEntry {
        self.entry
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn prepare(&self, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        GraphExplainer::boxed(self, task)
    }
}

impl GraphMethod for LossesAlone {
    fn build(&self, losses: LossGraph<'_>) -> Result<AttributionGraph> {
        Ok(AttributionGraph::new(losses.graph, losses.explained, losses.explained, losses.channel_axis))
    }
}

/// The samples of a task as they are: an explainer whose attribution is the tensor that is explained, with the values of
/// the losses beside it.
///
/// # Errors
/// If a layer or filter does not exist, or if an op on the way is not supported.
pub(crate) fn unchanged(method: &dyn Method, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
    LossesAlone::of(method).prepare(task)
}

/// As [`unchanged`], with another tensor of the network in place of the one that is explained.
///
/// # Errors
/// As [`unchanged`].
pub(crate) fn value_of(method: &dyn Method, task: &Task<'_>, tensor: ValueId) -> Result<Box<dyn Explainer>> {
    let mut method = LossesAlone::of(method);
    let name = &*task.model.graph().value(tensor).name;
    method.settings.wrt_tensor = Some(name.into());
    method.settings.wrt_channel_axis = None;
    method.prepare(task)
}

/// The filters of each of `samples`, if losses left them open.
///
/// # Errors
/// If they are not as many.
pub(crate) fn filters_of_samples(
    filters: Option<&Filters>,
    samples: usize,
) -> Result<Option<Vec<Vec<usize>>>> {
    Ok(match filters {
        None => None,
        Some(Filters::List(list)) => Some(vec![list.clone(); samples]),
        Some(Filters::PerSample(lists)) if lists.len() == samples => Some(lists.clone()),
        Some(other) => bail!(target, "expected the filters of {samples} samples, found '{other}'"),
    })
}

/// A network and its losses made ready for variants of one sample, as many at once as fit into the memory budget.
///
/// What a variant scores does not depend on how many run at once.
#[derive(Debug)]
pub(crate) struct Forward {
    plan: Plan,
    /// How many variants run at once.
    size: usize,
    /// How many filters are named late.
    filters: Option<usize>,
    /// For each input of the task, whether its first axis is that of the samples.
    has_samples: Vec<bool>,
    /// Which input the variants are; the one behind the task's own for a tensor inside the network.
    varied: usize,
    /// The elements of a variant.
    shape: Vec<usize>,
    dtype: DType,
}

impl Forward {
    /// Makes ready to vary the tensor `varied`, an input or a tensor inside the network, whose samples have this shape; there
    /// will be at most `most` variants.
    ///
    /// # Errors
    /// If a layer or filter does not exist, if an op on the way is not supported, if the first axis of the tensor is not that of the
    /// samples, or if a loss names its filters for each sample.
    pub(crate) fn new(
        method: &dyn Method,
        task: &Task<'_>,
        varied: ValueId,
        shape: &[usize],
        most: usize,
    ) -> Result<Self> {
        if task.losses.iter().any(|loss| loss.weight != 0.0 && loss.loss.needs_all_samples()) {
            bail!(
                target,
                "a method that varies one sample after the other cannot run with filters that a loss names for each \
                 sample: leave them open (Filters::Late) and name them when it is explained"
            );
        }
        let network = task.model.graph();
        let main = task.model.main_input();
        let batch = network.fact(main).shape.first();
        if batch.is_none() || network.fact(varied).shape.first() != batch {
            bail!(
                option,
                "'{}' cannot be varied: its first axis is not that of the samples, its shape is {}",
                network.value(varied).name,
                network.fact(varied)
            );
        }
        let has_samples: Vec<bool> =
            task.shapes.iter().map(|(id, _)| network.fact(*id).shape.first() == batch).collect();
        // A batch dimension with a meaning elsewhere, or a fixed one, stays as it is.
        let given = task.shapes.iter().find(|(id, _)| *id == main).and_then(|(_, shape)| shape.first());
        let is_free = batch.is_some_and(|batch| {
            let rests = task.shapes.iter().flat_map(|(id, _)| network.fact(*id).shape.iter().skip(1));
            batch.as_symbol().is_some() && !rests.into_iter().any(|dim| dim == batch)
        });
        let make = |size| Self::sized(method, task, varied, shape, &has_samples, size);
        if !is_free {
            return make(given.copied().unwrap_or(1));
        }
        let one = make(1)?;
        let room = method.settings().budget() / one.plan.memory_bytes().max(1);
        let size = room.min(most).clamp(1, MOST_AT_ONCE);
        // A power of two, so that it divides the round numbers after which methods look at what they have.
        match 1 << size.ilog2() {
            1 => Ok(one),
            size => make(size),
        }
    }

    fn sized(
        method: &dyn Method,
        task: &Task<'_>,
        varied: ValueId,
        shape: &[usize],
        has_samples: &[bool],
        size: usize,
    ) -> Result<Self> {
        let explanation = ExplanationGraph::new(task.model, task.losses, &LossesAlone::of(method))?;
        let wanted: Vec<ValueId> = explanation.losses.iter().map(|(_, _, value)| *value).collect();
        let rewritten = with_input(&explanation.graph, varied, &wanted)?;
        let kept = |id: &ValueId| rewritten.kept(*id);
        let mut shapes: Vec<(ValueId, Vec<usize>)> = Vec::new();
        for ((id, shape), has_samples) in task.shapes.iter().zip(has_samples) {
            let mut shape = shape.clone();
            if *has_samples {
                shape[0] = size;
            }
            shapes.push((kept(id)?, shape));
        }
        let variants: Vec<usize> = std::iter::once(size).chain(shape.iter().copied()).collect();
        let place = match task.shapes.iter().position(|(id, _)| *id == varied) {
            Some(place) => {
                shapes[place].1.clone_from(&variants);
                place
            }
            None => {
                shapes.push((kept(&varied)?, variants));
                shapes.len() - 1
            }
        };
        if let Some(target) = &explanation.target {
            shapes.push((kept(&target.input)?, vec![size, target.count]));
        }
        let wanted = wanted.iter().map(kept).collect::<Result<Vec<_>>>()?;
        let settings = method.settings();
        let dtype = match settings.precision {
            Precision::F64 => DType::F64,
            _ => rewritten.graph.fact(shapes[place].0).dtype,
        };
        Ok(Self {
            plan: Plan::new(&rewritten.graph, &shapes, &wanted, settings.arithmetic())?,
            size,
            filters: explanation.target.map(|target| target.count),
            has_samples: has_samples.to_vec(),
            varied: place,
            shape: shape.to_vec(),
            dtype,
        })
    }

    /// What variants are computed in.
    pub(crate) fn dtype(&self) -> DType {
        self.dtype
    }

    /// The bytes of memory that a run needs beside inputs, outputs and weights.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.plan.memory_bytes()
    }

    /// The sample at place `sample` of the task's inputs, whose variants are to be scored for these filters.
    ///
    /// # Errors
    /// If the filters are not as many as the losses ask for.
    pub(crate) fn sample(
        &self,
        inputs: &[Tensor],
        sample: usize,
        filters: Option<&[usize]>,
    ) -> Result<ForwardSample<'_>> {
        let repeated = |tensor: &Tensor| Tensor::join(&vec![tensor.outer(sample..sample + 1); self.size]);
        let given = inputs.iter().zip(&self.has_samples);
        let mut inputs: Vec<Tensor> = given
            .enumerate()
            .map(|(place, (tensor, has_samples))| match has_samples {
                // Its place is taken by the variants.
                true if place == self.varied => Ok(tensor.clone()),
                true => repeated(tensor),
                false => Ok(tensor.clone()),
            })
            .collect::<Result<_>>()?;
        if self.varied == inputs.len() {
            inputs.push(Tensor::scalar(0.0f32));
        }
        match (self.filters, filters) {
            (None, None) => {}
            (Some(count), Some(list)) => {
                inputs.push(Filters::List(list.to_vec()).indices(self.size, count)?);
            }
            (Some(_), None) => bail!(target, "the filters have yet to be named"),
            (None, Some(_)) => {
                bail!(target, "the explanation was made for certain filters, and cannot explain others")
            }
        }
        Ok(ForwardSample { forward: self, inputs })
    }
}

/// A sample whose variants are scored.
#[derive(Debug)]
pub(crate) struct ForwardSample<'f> {
    forward: &'f Forward,
    /// The inputs of a run; the place of the variants is filled for each.
    inputs: Vec<Tensor>,
}

impl ForwardSample<'_> {
    /// How many variants run at once.
    pub(crate) fn at_once(&self) -> usize {
        self.forward.size
    }

    /// The weighted sum of the losses for each of these variants, in their order; `write` writes the elements of a variant.
    ///
    /// # Errors
    /// If a score is not finite.
    pub(crate) fn scores(
        &mut self,
        variants: Range<usize>,
        write: &(dyn Fn(usize, &mut [f64]) + Sync),
    ) -> Result<Vec<f64>> {
        let size = self.forward.size;
        let mut scores = Vec::with_capacity(variants.len());
        let last = variants.end.saturating_sub(1);
        for start in variants.clone().step_by(size) {
            // The last run is filled up with repetitions.
            self.inputs[self.forward.varied] = self.batch(&|place| (start + place).min(last), write)?;
            let losses = self.forward.plan.run(&self.inputs)?;
            let mut sums = vec![0.0; size];
            for loss in &losses {
                let loss = loss.to_f64();
                if loss.len() != size {
                    bail!(
                        target,
                        "the layer has {} samples where the input has {size}, so what they score cannot be told apart",
                        loss.len()
                    );
                }
                sums.iter_mut().zip(&loss).for_each(|(sum, value)| *sum += value);
            }
            scores.extend(sums.into_iter().take(variants.end - start));
        }
        match scores.iter().position(|score| !score.is_finite()) {
            None => Ok(scores),
            Some(place) => bail!(
                input,
                "variant {} of the input scores {}: the network overflows for it",
                variants.start + place,
                scores[place]
            ),
        }
    }

    fn batch(
        &self,
        variant: &(dyn Fn(usize) -> usize + Sync),
        write: &(dyn Fn(usize, &mut [f64]) + Sync),
    ) -> Result<Tensor> {
        let Forward { size, shape, dtype, .. } = self.forward;
        let len: usize = shape.iter().product();
        let shape: Vec<usize> = std::iter::once(*size).chain(shape.iter().copied()).collect();
        if *dtype == DType::F64 {
            let mut batch = vec![0.0f64; size * len];
            let parts = batch.par_chunks_mut(len.max(1)).enumerate();
            parts.for_each(|(place, part)| write(variant(place), part));
            return Tensor::from_shape_vec(&shape, batch);
        }
        let mut batch = vec![0.0f32; size * len];
        batch.par_chunks_mut(len.max(1)).enumerate().for_each_init(
            || vec![0.0; len],
            |wide, (place, part)| {
                write(variant(place), wide);
                part.iter_mut().zip(wide).for_each(|(narrow, wide)| *narrow = *wide as f32);
            },
        );
        Ok(Tensor::from_shape_vec(&shape, batch)?.cast(*dtype))
    }
}

/// The explained tensor and the weighted sum of the losses of each sample, out of what [`unchanged`] gives.
///
/// # Errors
/// If the samples of losses and tensor are not as many.
pub(crate) fn scores_of_samples(attribution: &Attribution) -> Result<Vec<f64>> {
    let samples = attribution.raw.shape().first().copied().unwrap_or(1);
    let mut sums = vec![0.0; samples];
    for loss in &attribution.losses {
        if loss.weighted.len() != samples {
            return Err(crate::Error::target(format!(
                "there are {samples} samples, and the loss has {} values",
                loss.weighted.len()
            )))
            .context(|| loss.name.clone());
        }
        sums.iter_mut().zip(&loss.weighted).for_each(|(sum, value)| *sum += value);
    }
    Ok(sums)
}
