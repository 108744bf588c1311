//! Class activation maps that are computed from the values of layers, one sample after the other, and by asking the network
//! more.

use super::{CamLayers, Chosen, LossGraphFacts, Rectified, SCALE_EPSILON};
use crate::attribution::{Attribution, LayerMap};
use crate::dim::{Bindings, evaluate_shape};
use crate::error::{Result, bail};
use crate::explanation::{
    Explainer, LossGraph, Method, Progress, Started, Task, filters_of_samples, scores_of_samples, value_of,
    zero_warning,
};
use crate::model::Model;
use crate::rewrite::bind;
use crate::spatial::SpatialLayer;
use crate::target::Filters;
use crate::tensor::Tensor;
use crate::timings::Timings;
use ndarray::{ArrayD, Axis, IxDyn, Slice};
use std::fmt;

/// How a map is made of the value of a layer.
pub(in crate::methods) trait Weigh: fmt::Debug + Send + Sync {
    /// How many passes through the network the map of one sample takes beside the one for the layer's value.
    fn passes(&self, layer: usize) -> usize;

    /// The map of one sample, `[positions…]`, with what speaks against the target still in it.
    ///
    /// # Errors
    /// If the network cannot be asked.
    fn map(&self, layer: usize, sample: &mut LayerSample<'_>) -> Result<ArrayD<f64>>;
}

/// A sample of a layer.
pub(in crate::methods) struct LayerSample<'s> {
    /// `[channels, positions…]`, without class and register tokens.
    pub(in crate::methods) activation: ArrayD<f64>,
    /// As the network has it, without the axis of the samples.
    pub(in crate::methods) value: ArrayD<f64>,
    /// What is explained.
    pub(in crate::methods) score: f64,
    /// The inputs of all samples.
    pub(in crate::methods) inputs: &'s [Tensor],
    /// Which sample it is.
    pub(in crate::methods) number: usize,
    /// Its filters, if the losses leave them open.
    pub(in crate::methods) filters: Option<&'s [usize]>,
    progress: &'s Progress,
    done: &'s mut usize,
    all: usize,
}

impl LayerSample<'_> {
    /// So many passes have been made.
    pub(in crate::methods) fn done_with(&mut self, count: usize) {
        *self.done += count;
        self.progress.report(*self.done, self.all);
    }
}

/// What a method is made ready with.
pub(in crate::methods) struct Preparation {
    /// The layers.
    pub(in crate::methods) layers: Vec<SpatialLayer>,
    /// The shape of each layer without the axis of the samples.
    pub(in crate::methods) shapes: Vec<Vec<usize>>,
    /// The channel axis of the input, and the lengths of its axes that are neither batch nor channels.
    pub(in crate::methods) channel_axis: Option<usize>,
    pub(in crate::methods) size: Vec<usize>,
}

/// The explainer of such methods.
#[derive(Debug)]
pub(in crate::methods) struct LayerExplainer {
    /// The value of each layer.
    values: Vec<Box<dyn Explainer>>,
    layers: Vec<SpatialLayer>,
    weigh: Box<dyn Weigh>,
    choice: CamLayers,
    layer_map: LayerMap,
    tensor: String,
    size: Vec<usize>,
    notes: Vec<String>,
    warnings: Vec<String>,
    progress: Progress,
}

impl LayerExplainer {
    /// Makes a method ready for a task.
    pub(in crate::methods) fn boxed(
        method: &dyn Method,
        choice: &CamLayers,
        task: &Task<'_>,
        weigh: impl FnOnce(&Preparation) -> Result<Box<dyn Weigh>>,
    ) -> Result<Box<dyn Explainer>> {
        let Task { model, shapes, .. } = *task;
        let losses = LossGraph::new(model, task.losses, method.settings())?;
        let chosen = choice.find(&losses)?;
        let facts = LossGraphFacts::new(&losses, &chosen);
        let (mut layer_map, warnings) = choice.layer_map(&facts, &chosen)?;
        let main = model.main_input();
        let Some((_, input)) = shapes.iter().find(|(id, _)| *id == main) else {
            bail!(input, "there is no array for the input '{}'", model.graph().value(main).name)
        };
        let size: Vec<usize> = facts.sides.iter().map(|&axis| input[axis]).collect();
        layer_map.size.clone_from(&size);
        let Chosen { layers, notes } = chosen;
        let inner = |layer: &SpatialLayer| Ok(shape_of(model, layer, shapes)?[1..].to_vec());
        let preparation = Preparation {
            shapes: layers.iter().map(inner).collect::<Result<_>>()?,
            layers,
            channel_axis: losses.channel_axis,
            size: size.clone(),
        };
        let value = |(place, layer): (usize, &SpatialLayer)| {
            let also = if place == 0 { task.also } else { &[] };
            value_of(method, &Task { also, ..*task }, layer.value)
        };
        let values = preparation.layers.iter().enumerate().map(value).collect::<Result<Vec<_>>>()?;
        let tensor = match (&layer_map.layers[..], layer_map.upsampling) {
            ([layer], _) => layer.clone(),
            _ => model.graph().value(main).name.to_string(),
        };
        Ok(Box::new(Self {
            values,
            weigh: weigh(&preparation)?,
            layers: preparation.layers,
            choice: choice.clone(),
            layer_map,
            tensor,
            size,
            notes,
            warnings,
            progress: method.settings().progress.clone(),
        }))
    }

    /// The map of all samples out of those of single layers, `[samples, positions…]`; as [`CamLayers::join`].
    fn join(&self, mut maps: Vec<ArrayD<f64>>) -> Result<ArrayD<f64>> {
        let rectified = self.choice.rectified();
        if maps.len() == 1 {
            let map = maps.remove(0);
            return Ok(if rectified == Rectified::Raw { map.mapv_into(|value| value.max(0.0)) } else { map });
        }
        let count = maps.len() as f64;
        let mut sum: Option<ArrayD<f64>> = None;
        for mut map in maps {
            for mut sample in map.outer_iter_mut() {
                if rectified != Rectified::Never {
                    sample.mapv_inplace(|value| value.max(0.0));
                    let lowest = sample.iter().copied().fold(f64::INFINITY, f64::min);
                    sample.mapv_inplace(|value| value - lowest);
                }
                let largest = sample.iter().fold(0.0f64, |most, value| most.max(value.abs()));
                sample.mapv_inplace(|value| value / (largest + SCALE_EPSILON));
            }
            let large = self.choice.upsampling().apply(map, &self.size)?;
            sum = Some(match sum {
                Some(sum) => sum + large,
                None => large,
            });
        }
        Ok(sum.expect("invariant: there are layers") / count)
    }
}

/// The shape of a layer for inputs of these shapes.
fn shape_of(
    model: &Model,
    layer: &SpatialLayer,
    shapes: &[(crate::graph::ValueId, Vec<usize>)],
) -> Result<Vec<usize>> {
    let graph = model.graph();
    let mut bindings = Bindings::new();
    for (id, shape) in shapes {
        bind(&graph.value(*id).name, graph.fact(*id), shape, &mut bindings)?;
    }
    evaluate_shape(&graph.fact(layer.value).shape, &bindings)
}

/// A sample of a layer as `[channels, positions…]`; as [`super::arranged`].
fn arranged(layer: &SpatialLayer, value: &ArrayD<f64>) -> Result<ArrayD<f64>> {
    let order: Vec<usize> =
        [layer.channel_axis].iter().chain(&layer.positions).map(|&axis| axis - 1).collect();
    let value = value.view().permuted_axes(order);
    let Some(grid) = &layer.grid else { return Ok(value.as_standard_layout().into_owned()) };
    let patches = value.slice_axis(Axis(1), Slice::from(grid.extra..));
    let shape: Vec<usize> = std::iter::once(patches.shape()[0]).chain(grid.sides.iter().copied()).collect();
    let elements = patches.iter().copied().collect();
    match ArrayD::from_shape_vec(IxDyn(&shape), elements) {
        Ok(array) => Ok(array),
        Err(_) => bail!(internal, "{} tokens do not fill the grid {shape:?}", patches.shape()[1]),
    }
}

impl Explainer for LayerExplainer {
    fn start<'e>(&'e self, inputs: &[Tensor]) -> Result<Box<dyn Started + 'e>> {
        let started = self.values.iter().map(|value| value.start(inputs)).collect::<Result<Vec<_>>>()?;
        Ok(Box::new(LayerStarted { explainer: self, started, inputs: inputs.to_vec() }))
    }

    /// What the values of the layers need: further passes have the memory budget to themselves.
    fn memory_bytes(&self) -> usize {
        self.values.iter().map(|value| value.memory_bytes()).max().unwrap_or(0)
    }
}

/// The values of the layers are there.
#[derive(Debug)]
struct LayerStarted<'e> {
    explainer: &'e LayerExplainer,
    started: Vec<Box<dyn Started + 'e>>,
    inputs: Vec<Tensor>,
}

impl Started for LayerStarted<'_> {
    fn also(&self) -> &[Tensor] {
        self.started[0].also()
    }

    fn explain(&mut self, filters: Option<Filters>) -> Result<Attribution> {
        let LayerExplainer { weigh, layers, progress, .. } = self.explainer;
        let mut found: Option<Attribution> = None;
        let mut maps = Vec::new();
        let mut done = 0;
        for (place, (layer, started)) in layers.iter().zip(&mut self.started).enumerate() {
            let attribution = started.explain(filters.clone())?;
            let values = attribution.raw.to_f64();
            let samples = values.shape()[0];
            let scores = scores_of_samples(&attribution)?;
            let filters = filters_of_samples(filters.as_ref(), samples)?;
            let all = (0..layers.len()).map(|layer| weigh.passes(layer)).sum::<usize>() * samples;
            let mut of_samples = Vec::new();
            for (number, value) in values.outer_iter().enumerate() {
                let value = value.to_owned();
                let mut sample = LayerSample {
                    activation: arranged(layer, &value)?,
                    value,
                    score: scores[number],
                    inputs: &self.inputs,
                    number,
                    filters: filters.as_ref().map(|lists| &lists[number][..]),
                    progress,
                    done: &mut done,
                    all,
                };
                of_samples.push(weigh.map(place, &mut sample)?);
            }
            let views: Vec<_> = of_samples.iter().map(|map| map.view()).collect();
            match ndarray::stack(Axis(0), &views) {
                Ok(map) => maps.push(map),
                Err(error) => bail!(internal, "the maps of the samples differ in shape: {error}"),
            }
            found.get_or_insert(attribution);
        }
        let mut attribution = found.expect("invariant: there are layers");
        let explainer = self.explainer;
        attribution.raw = Tensor::from(explainer.join(maps)?).cast(attribution.raw.dtype());
        attribution.tensor.clone_from(&explainer.tensor);
        attribution.channel_axis = None;
        attribution.layer_map = Some(explainer.layer_map.clone());
        attribution.notes.clone_from(&explainer.notes);
        attribution.warnings.clone_from(&explainer.warnings);
        attribution.warnings.extend(zero_warning(&attribution.raw, true));
        Ok(attribution)
    }

    fn timings(&self) -> Timings {
        self.started[0].timings()
    }
}
