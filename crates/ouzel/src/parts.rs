//! Samples in parts: how many are run at once, so that they fit into memory, or because a file takes one at a time.

use crate::error::{Result, bail};
use crate::graph::{Graph, ValueId};
use crate::model::Model;
use crate::tensor::Tensor;
use std::ops::Range;

/// How the samples of a model's inputs can be told apart.
#[derive(Clone, Debug)]
pub(crate) struct Cut {
    /// How many there are.
    pub(crate) samples: usize,
    /// True if the file takes one sample at a time.
    pub(crate) one_at_a_time: bool,
    /// For each input, whether its first axis is that of the samples; the others are the same for all samples.
    is_cut: Vec<bool>,
}

impl Cut {
    /// The samples of inputs of these shapes, for a map of `explained`; `None` if there is one, or nothing says where they
    /// are.
    pub(crate) fn new(model: &Model, explained: ValueId, shapes: &[(ValueId, Vec<usize>)]) -> Option<Self> {
        Self::of_any(model, explained, shapes).filter(|cut| cut.samples > 1)
    }

    /// As [`Cut::new`], also if there is one sample.
    pub(crate) fn of_any(
        model: &Model,
        explained: ValueId,
        shapes: &[(ValueId, Vec<usize>)],
    ) -> Option<Self> {
        let graph: &Graph = model.graph();
        let main = model.main_input();
        let batch = graph.fact(main).shape.first()?;
        let samples = *shapes.iter().find(|(id, _)| *id == main)?.1.first()?;
        let one_at_a_time = batch.is(1);
        let symbol_elsewhere = || {
            let rests = shapes.iter().flat_map(|(id, _)| graph.fact(*id).shape.iter().skip(1));
            rests.into_iter().any(|dim| dim == batch)
        };
        let is_known = !one_at_a_time && (batch.as_symbol().is_none() || symbol_elsewhere());
        if is_known || graph.fact(explained).shape.first() != Some(batch) {
            return None;
        }
        let is_cut = |(id, shape): &(ValueId, Vec<usize>)| {
            graph.fact(*id).shape.first() == Some(batch) && shape.first() == Some(&samples)
        };
        Some(Self { samples, one_at_a_time, is_cut: shapes.iter().map(is_cut).collect() })
    }

    /// The shapes of the inputs for so many samples.
    pub(crate) fn shapes(&self, shapes: &[(ValueId, Vec<usize>)], size: usize) -> Vec<(ValueId, Vec<usize>)> {
        let mut shapes = shapes.to_vec();
        for ((_, shape), _) in shapes.iter_mut().zip(&self.is_cut).filter(|(_, is_cut)| **is_cut) {
            shape[0] = size;
        }
        shapes
    }

    /// True if the first axis of this input is that of the samples.
    pub(crate) fn is_cut(&self, input: usize) -> bool {
        self.is_cut.get(input).copied().unwrap_or(false)
    }

    /// The inputs of some of the samples.
    ///
    /// # Errors
    /// If the inputs are not those that the samples were counted in.
    pub(crate) fn inputs(&self, inputs: &[Tensor], places: Range<usize>) -> Result<Vec<Tensor>> {
        if inputs.len() != self.is_cut.len() {
            bail!(input, "expected {} inputs, found {}", self.is_cut.len(), inputs.len());
        }
        let part = |(tensor, is_cut): (&Tensor, &bool)| match (is_cut, tensor.shape().first()) {
            (false, _) => Ok(tensor.clone()),
            (true, Some(&length)) if length == self.samples => Ok(tensor.outer(places.clone())),
            (true, _) => bail!(input, "expected {} samples, found {:?}", self.samples, tensor.shape()),
        };
        inputs.iter().zip(&self.is_cut).map(part).collect()
    }
}
