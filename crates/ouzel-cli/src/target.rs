//! The target on a certain model: which tensor, which filters, what they are called and how they score.

use crate::job::{FilterChoice, Goal};
use anyhow::{Result, bail};
use ndarray::{Array2, ArrayView2, Axis};
use ouzel::image::Labels;
use ouzel::losses::{ActivationMaximization, WeightedLoss};
use ouzel::{Filters, Model, Region, Tensor, ValueId, top};

/// A target on a model.
pub struct Target<'m> {
    model: &'m Model,
    /// The tensor that is explained.
    pub value: ValueId,
    /// Its name.
    pub layer: String,
    /// Its channel axis as typed.
    pub channel_axis: i64,
    /// Which of its positions count.
    pub region: Region,
    /// The softmax output whose logits are explained in its place.
    pub instead_of: Option<ValueId>,
    /// What its filters are called.
    pub labels: Option<Labels>,
    filters: FilterChoice,
}

/// The filters of one map: a list for each sample, or one for all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// The mean over everything.
    All,
    /// The same filters for each sample.
    Same(Vec<usize>),
    /// Filters for each sample.
    PerSample(Vec<Vec<usize>>),
}

impl Chosen {
    /// The filters of a sample; empty for all of them.
    pub fn of_sample(&self, sample: usize) -> &[usize] {
        match self {
            Self::All => &[],
            Self::Same(filters) => filters,
            Self::PerSample(lists) => lists.get(sample).map_or(&[], Vec::as_slice),
        }
    }

    /// The same for the library; `None` where no filter has to be named.
    pub fn filters(&self) -> Option<Filters> {
        match self {
            Self::All => None,
            Self::Same(filters) => Some(Filters::List(filters.clone())),
            Self::PerSample(lists) => Some(Filters::PerSample(lists.clone())),
        }
    }
}

/// The scores `[samples, filters]` of a target, and the probabilities, if they are known.
#[derive(Clone, Debug)]
pub struct Scores {
    pub values: Array2<f64>,
    pub probabilities: Option<Array2<f64>>,
}

impl Scores {
    /// The scores of all samples, out of those of consecutive parts of them; `None` if there are none.
    pub fn join(parts: &[Self]) -> Result<Option<Self>> {
        if parts.is_empty() {
            return Ok(None);
        }
        let join = |parts: &[ArrayView2<'_, f64>]| ndarray::concatenate(Axis(0), parts);
        let values: Vec<_> = parts.iter().map(|part| part.values.view()).collect();
        let probabilities: Option<Vec<_>> =
            parts.iter().map(|part| Some(part.probabilities.as_ref()?.view())).collect();
        let probabilities = probabilities.map(|parts| join(&parts)).transpose()?;
        Ok(Some(Self { values: join(&values)?, probabilities }))
    }
}

impl<'m> Target<'m> {
    /// Finds the target of a goal; `None` if losses take its place.
    pub fn new(model: &'m Model, goal: &Goal, labels: Option<&Labels>) -> Result<Option<Self>> {
        let Goal::Target { layer, filters, channel_axis, region, keep_softmax } = goal else {
            return Ok(None);
        };
        let (value, instead_of) = match layer {
            Some(layer) => (model.find(layer.as_str())?, None),
            None => match model.default_target(*keep_softmax)? {
                (logits, true) => (logits, Some(model.default_target(true)?.0)),
                (output, false) => (output, None),
            },
        };
        let graph = model.graph();
        let name = graph.value(value).name.to_string();
        let labels = labels.cloned().or_else(|| labels_of(model, value));
        let mut target = Self {
            model,
            value,
            layer: if name.is_empty() { layer.clone().unwrap_or_default() } else { name },
            channel_axis: *channel_axis,
            region: region.clone(),
            instead_of,
            labels,
            filters: FilterChoice::All,
        };
        target.filters = match (filters, target.count()) {
            (None | Some(FilterChoice::Top(1)), Some(1)) => FilterChoice::Listed(vec!["0".into()]),
            (None, _) => FilterChoice::Top(1),
            (Some(filters), _) => filters.clone(),
        };
        Ok(Some(target))
    }

    /// The number of filters, if the model says it.
    pub fn count(&self) -> Option<usize> {
        let shape = &self.model.graph().fact(self.value).shape;
        let rank = shape.len() as i64;
        let dimension = match rank {
            0 => return Some(1),
            1 if shape.first() == self.batch() => return Some(1),
            1 => shape.first(),
            _ => {
                let axis = if self.channel_axis < 0 { self.channel_axis + rank } else { self.channel_axis };
                usize::try_from(axis).ok().and_then(|axis| shape.get(axis))
            }
        };
        dimension?.known().and_then(|count| usize::try_from(count).ok())
    }

    fn batch(&self) -> Option<&ouzel::Dim> {
        self.model.graph().fact(self.model.main_input()).shape.first()
    }

    /// The tensors whose values a report wants: the target, and the probabilities if there are any.
    pub fn reported(&self) -> Vec<ValueId> {
        std::iter::once(self.value).chain(self.instead_of).collect()
    }

    /// The scores, out of the tensors of [`Self::reported`].
    pub fn scores(&self, values: &[Tensor]) -> Result<Scores> {
        let scores = self.model.scores_in(self.value, self.channel_axis, &self.region, &values[0])?;
        let probabilities = self.instead_of.and_then(|output| {
            let found = self.model.scores_in(output, self.channel_axis, &self.region, values.get(1)?).ok()?;
            (found.dim() == scores.dim()).then_some(found)
        });
        Ok(Scores { values: scores, probabilities })
    }

    /// The filters of each map.
    pub fn choose(&self, scores: &Scores) -> Result<Vec<Chosen>> {
        match &self.filters {
            FilterChoice::All => Ok(vec![Chosen::All]),
            FilterChoice::Listed(typed) => Ok(vec![Chosen::Same(self.listed(typed)?)]),
            FilterChoice::Top(count) => {
                let found = scores.values.ncols();
                if *count > found {
                    bail!("top{count}: '{}' has {found} filters; expected at most top{found}", self.layer);
                }
                let best = top(&scores.values, *count);
                let of_rank = |rank: usize| best.iter().map(|list| vec![list[rank]]).collect();
                Ok((0..*count).map(|rank| Chosen::PerSample(of_rank(rank))).collect())
            }
        }
    }

    /// Indices from indices and labels.
    pub fn listed(&self, typed: &[String]) -> Result<Vec<usize>> {
        let mut filters = Vec::new();
        for text in typed {
            // A label may have a comma in it.
            match self.labels.as_ref().and_then(|labels| labels.index(text.trim()).ok()) {
                Some(index) if text.trim().parse::<usize>().is_err() => filters.push(index),
                _ => {
                    for part in text.split(',') {
                        filters.push(self.filter(part.trim())?);
                    }
                }
            }
        }
        for &filter in &filters {
            if let Some(count) = self.count().filter(|&count| filter >= count) {
                bail!(
                    "filter {filter} is out of range: '{}' has {count}, expected 0 to {}",
                    self.layer,
                    count.saturating_sub(1)
                );
            }
        }
        Ok(filters)
    }

    fn filter(&self, text: &str) -> Result<usize> {
        match (text.parse(), &self.labels) {
            (Ok(index), _) => Ok(index),
            (Err(_), Some(labels)) => Ok(labels.index(text)?),
            (Err(_), None) if text.bytes().all(|byte| byte.is_ascii_digit()) => {
                bail!("filter {text} is out of range: the number is too large")
            }
            (Err(_), None) => bail!(
                "filter '{text}' is no index, and the model has no labels for '{}': name them with --labels FILE",
                self.layer
            ),
        }
    }

    /// The loss that a map is the gradient of. Which filters are meant is said when it runs, so that one plan serves all
    /// maps of all inputs.
    pub fn loss(&self) -> Result<WeightedLoss> {
        let filters = match &self.filters {
            FilterChoice::All => Filters::All,
            FilterChoice::Listed(typed) => Filters::Late(self.listed(typed)?.len()),
            FilterChoice::Top(_) => Filters::Late(1),
        };
        Ok(WeightedLoss::new(self.activation(filters), -1.0))
    }

    /// The loss that a file explains: filters that were named are part of it, the highest-scoring one is not.
    pub fn saved_loss(&self) -> Result<WeightedLoss> {
        let filters = match &self.filters {
            FilterChoice::All => Filters::All,
            FilterChoice::Listed(typed) => Filters::List(self.listed(typed)?),
            FilterChoice::Top(_) => Filters::Late(1),
        };
        Ok(WeightedLoss::new(self.activation(filters), -1.0))
    }

    /// The activation of filters; its weight says whether it is raised or lowered.
    pub fn activation(&self, filters: Filters) -> ActivationMaximization {
        let mut activation =
            ActivationMaximization::new(self.layer.as_str(), filters).region(self.region.clone());
        activation.channel_axis = self.channel_axis;
        activation
    }

    /// What a filter is called, if it has a label.
    pub fn label(&self, filter: usize) -> Option<&str> {
        self.labels.as_ref()?.get(filter)
    }
}

/// The labels that a model's metadata has for a tensor, or for the output that it becomes: `labels.NAME`, separated by
/// commas.
pub fn labels_of(model: &Model, tensor: ValueId) -> Option<Labels> {
    let own = &*model.graph().value(tensor).name;
    let names = [Some(own), model.output_of(tensor)];
    let text =
        names.into_iter().flatten().find_map(|name| model.metadata().get(&format!("labels.{name}")))?;
    Labels::parse(&text.split(',').map(str::trim).collect::<Vec<_>>().join("\n")).ok()
}
