//! Losses: what a map explains, as a few more nodes of the graph.

use crate::builder::{Builder, Var};
use crate::dim::Dim;
use crate::error::{Context, Result, bail};
use crate::graph::{Fact, ValueId};
use crate::model::{Model, TensorRef};
use crate::ops::layout::Size;
use crate::ops::scatter::GatherND;
use crate::target::{Filters, Region, TargetAxes};
use crate::tensor::DType;
use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

/// What a loss is built on.
#[derive(Debug)]
pub struct LossContext<'b> {
    model: &'b Model,
    builder: &'b Builder,
    input: Var<'b>,
    input_channel_axis: Option<usize>,
    target: RefCell<Option<LateTarget>>,
}

/// The input of a graph that names the filters.
#[derive(Clone, Debug)]
pub(crate) struct LateTarget {
    pub(crate) input: ValueId,
    /// How many samples, and how many filters for each.
    pub(crate) samples: Dim,
    pub(crate) count: usize,
}

impl<'b> LossContext<'b> {
    pub(crate) fn new(
        model: &'b Model,
        builder: &'b Builder,
        input: Var<'b>,
        input_channel_axis: Option<usize>,
    ) -> Self {
        Self { model, builder, input, input_channel_axis, target: RefCell::new(None) }
    }

    /// The filters that are named when a plan runs, `count` for each of `samples`: an int64 input `[samples, count]` of
    /// the graph.
    ///
    /// A loss that reads it is explained for many targets by one plan, on one forward pass: see
    /// [`Explainer::start`](crate::Explainer::start). Losses that are explained together share it.
    ///
    /// # Errors
    /// If another loss has asked for another number of filters or samples.
    pub fn target(&self, samples: Dim, count: usize) -> Result<Var<'b>> {
        let mut target = self.target.borrow_mut();
        match &*target {
            Some(known) if known.samples == samples && known.count == count => {
                Ok(self.builder.var(known.input))
            }
            Some(known) => bail!(
                target,
                "the losses ask for different targets: {count} filters for {samples} samples, and {} for {}",
                known.count,
                known.samples
            ),
            None => {
                let is_taken = |name: &str| self.builder.graph().values().any(|it| &*it.1.name == name);
                let mut name = "target".to_owned();
                while is_taken(&name) {
                    name.push('_');
                }
                let fact = Fact::new(DType::I64, vec![samples.clone(), count.into()]);
                let var = self.builder.input(&name, fact);
                *target = Some(LateTarget { input: var.id()?, samples, count });
                Ok(var)
            }
        }
    }

    /// The input that losses have asked for with [`Self::target`].
    pub(crate) fn late_target(&self) -> Option<LateTarget> {
        self.target.borrow().clone()
    }

    /// The input of the model that is explained.
    pub fn input(&self) -> Var<'b> {
        self.input
    }

    /// Where new nodes go.
    pub fn builder(&self) -> &'b Builder {
        self.builder
    }

    /// A tensor of the model.
    ///
    /// # Errors
    /// As [`Model::find`].
    pub fn tensor(&self, tensor: impl Into<TensorRef>) -> Result<Var<'b>> {
        Ok(self.builder.var(self.model.find(tensor)?))
    }

    /// The batch dimension of the input.
    fn batch(&self) -> Option<Dim> {
        self.input.shape().first().cloned()
    }

    /// The axes of the input that are neither batch nor channels.
    fn spatial_axes(&self) -> Vec<usize> {
        (1..self.input.rank()).filter(|&axis| Some(axis) != self.input_channel_axis).collect()
    }

    /// The number of elements of one sample of the input.
    fn elements(&self) -> Var<'b> {
        let per_sample =
            self.input.shape().iter().skip(1).fold(Dim::from(1i64), |product, dim| &product * dim);
        match per_sample.known() {
            Some(count) => self.input.scalar_like(count as f64),
            None => {
                let size = |of: Var<'b>| self.builder.apply(Size, &[of]);
                let samples = size(self.input.reduce_max(1..self.input.rank(), false));
                (size(self.input) / samples).cast(self.input.dtype())
            }
        }
    }
}

/// A number for each sample, to be raised or lowered; its gradient is the map.
pub trait Loss: fmt::Debug + Send + Sync {
    /// The name that reports show.
    fn name(&self) -> String;

    /// The loss of each sample: a value of shape `[samples]`.
    ///
    /// # Errors
    /// If the loss cannot be formed for this model.
    fn build<'b>(&self, context: &LossContext<'b>) -> Result<Var<'b>>;

    /// True if the loss names samples by their place, so that they cannot be explained in parts.
    fn needs_all_samples(&self) -> bool {
        false
    }
}

/// A loss and its factor in the sum.
#[derive(Clone, Debug)]
pub struct WeightedLoss {
    /// The loss.
    pub loss: Arc<dyn Loss>,
    /// Its factor; with keras-vis's signs -1 raises an activation. A weight of 0 leaves the loss out.
    pub weight: f64,
}

impl WeightedLoss {
    /// A loss with its factor.
    pub fn new(loss: impl Loss + 'static, weight: f64) -> Self {
        Self { loss: Arc::new(loss), weight }
    }
}

/// Raises the activation of filters when it is lowered.
///
/// **Formula.** `-Σ over filters of mean over positions of y`; for [`Filters::All`] the negated mean over the whole
/// tensor. The positions are those of the [`Region`].
///
/// **Shapes.** The layer is `[n]`, `[n, classes]` or `[n, …]` with channels on `channel_axis`.
///
/// **Conventions.** The sign is keras-vis's: a loss is lowered, so `visualize_saliency` weights it with -1 and a
/// positive gradient raises the activation.
///
/// **Source.** Erhan et al. 2009, "Visualizing higher-layer features of a deep network".
#[derive(Clone, Debug)]
pub struct ActivationMaximization {
    /// The layer.
    pub layer: TensorRef,
    /// Which of its filters.
    pub filters: Filters,
    /// The layer's channel axis.
    pub channel_axis: i64,
    /// Which of its positions.
    pub region: Region,
}

impl ActivationMaximization {
    /// Filters of a layer whose channel axis is 1.
    pub fn new(layer: impl Into<TensorRef>, filters: impl Into<Filters>) -> Self {
        Self { layer: layer.into(), filters: filters.into(), channel_axis: 1, region: Region::All }
    }

    /// Which of the layer's positions.
    #[must_use]
    pub fn region(mut self, region: Region) -> Self {
        self.region = region;
        self
    }
}

impl Loss for ActivationMaximization {
    fn name(&self) -> String {
        "ActivationMax Loss".into()
    }

    fn needs_all_samples(&self) -> bool {
        matches!(self.filters, Filters::PerSample(_))
    }

    fn build<'b>(&self, context: &LossContext<'b>) -> Result<Var<'b>> {
        let y = context.tensor(self.layer.clone())?;
        let fact = y.fact();
        let axes = TargetAxes::new(&fact, self.channel_axis, context.batch().as_ref())
            .context(|| format!("layer '{}'", self.layer))?;
        let count = axes.channel.map_or(Some(1), |axis| fact.shape[axis].known());
        let check = |filter: usize| match count {
            Some(count) if filter as i64 >= count => {
                bail!(
                    target,
                    "filter {filter} is out of range: layer '{}' has {count} (0 to {})",
                    self.layer,
                    count - 1
                )
            }
            _ => Ok(()),
        };
        let per_sample = |y: Var<'b>| if axes.batch.is_none() { y.unsqueeze([0]) } else { y };
        let raised = match &self.filters {
            Filters::All => {
                if self.region.is_all() {
                    let mut axes_of_sample = axes.positions.clone();
                    axes_of_sample.extend(axes.channel);
                    per_sample(y.reduce_mean(axes_of_sample, false))
                } else {
                    let mean = self.region.mean(&axes, y, y)?;
                    per_sample(mean.reduce_mean((axes.batch.map_or(0, |_| 1))..y.rank(), false))
                }
            }
            Filters::List(list) => {
                list.iter().try_for_each(|&filter| check(filter))?;
                if list.is_empty() {
                    bail!(target, "no filter is named for layer '{}'", self.layer);
                }
                match axes.channel {
                    None if self.region.is_all() => per_sample(y) * list.len() as f64,
                    None => bail!(
                        target,
                        "layer '{}' has no positions for the region {}",
                        self.layer,
                        self.region
                    ),
                    Some(channel) => {
                        let indices = list.iter().map(|&filter| filter as i64).collect();
                        let chosen = self.region.mean(&axes, y, y.gather(channel, indices))?;
                        per_sample(chosen.reduce_sum((axes.batch.map_or(0, |_| 1))..y.rank(), false))
                    }
                }
            }
            Filters::Late(count) => {
                let scores = match (axes.batch, axes.channel) {
                    (Some(_), Some(_)) if self.region.is_all() => {
                        y.reduce_mean(axes.positions.clone(), false)
                    }
                    (Some(_), Some(_)) => self.region.mean(&axes, y, y)?.squeeze(axes.positions.clone()),
                    _ if !self.region.is_all() => {
                        bail!(
                            target,
                            "layer '{}' has no positions for the region {}",
                            self.layer,
                            self.region
                        )
                    }
                    (Some(_), None) => y.unsqueeze([1]),
                    (None, Some(_)) => y.unsqueeze([0]),
                    (None, None) => y.unsqueeze([0, 1]),
                };
                let samples = scores.shape().first().cloned().unwrap_or(1.into());
                let indices = context.target(samples, *count)?.unsqueeze([2]);
                let chosen = context.builder().apply(GatherND { batch_dims: 1 }, &[scores, indices]);
                chosen.reduce_sum([1], false)
            }
            Filters::PerSample(lists) => {
                lists.iter().flatten().try_for_each(|&filter| check(filter))?;
                let (Some(channel), Some(count)) = (axes.channel, count) else {
                    bail!(target, "layer '{}' has no filters to choose for each sample", self.layer);
                };
                let mut shape = vec![1; y.rank()];
                shape[channel] = count as usize;
                if let Some(batch) = axes.batch {
                    shape[batch] = lists.len();
                }
                let mut chosen = ndarray::ArrayD::<f32>::zeros(shape);
                for (sample, list) in lists.iter().enumerate() {
                    for &filter in list {
                        let mut place = vec![0; y.rank()];
                        place[channel] = filter;
                        if let Some(batch) = axes.batch {
                            place[batch] = sample;
                        }
                        chosen[place.as_slice()] += 1.0;
                    }
                }
                let weights = context.builder().constant(chosen).cast(y.dtype());
                let weighted = self.region.mean(&axes, y, y)? * weights;
                per_sample(weighted.reduce_sum((axes.batch.map_or(0, |_| 1))..y.rank(), false))
            }
        };
        Ok(-raised)
    }
}

/// The L-p norm of the input, divided by the number of its elements: keeps intensities low.
///
/// **Formula.** `(Σ |x|ᵖ)^(1/p) / (C·S)` over channels and positions; for `p = ∞` it is `max(x) / (C·S)`, without the
/// absolute value, as keras-vis.
#[derive(Clone, Debug)]
pub struct LpNorm {
    /// The order; at least 1.
    pub p: f64,
}

impl Default for LpNorm {
    fn default() -> Self {
        Self { p: 6.0 }
    }
}

impl Loss for LpNorm {
    fn name(&self) -> String {
        format!("L-{:?} Norm Loss", self.p)
    }

    fn build<'b>(&self, context: &LossContext<'b>) -> Result<Var<'b>> {
        if self.p.is_nan() || self.p < 1.0 {
            bail!(option, "lp_norm: p must be at least 1, found {}", self.p);
        }
        let x = context.input();
        let of_sample = 1..x.rank();
        let norm = match self.p.is_infinite() {
            true => x.reduce_max(of_sample, false),
            false => x.abs().powf(self.p).reduce_sum(of_sample, false).powf(1.0 / self.p),
        };
        Ok(norm / context.elements())
    }
}

/// The total variation of the input, divided by the number of its elements: keeps it smooth.
///
/// **Formula.** `Σ (Σ over spatial axes of (forward difference)²)^(β/2) / (C·S)`, over the positions that have a
/// neighbour along every spatial axis.
///
/// **Source.** Mahendran and Vedaldi 2015, "Understanding deep image representations by inverting them".
#[derive(Clone, Debug)]
pub struct TotalVariation {
    /// Smoothness of the penalty; 1.5 to 3 is usual.
    pub beta: f64,
}

impl Default for TotalVariation {
    fn default() -> Self {
        Self { beta: 2.0 }
    }
}

impl Loss for TotalVariation {
    fn name(&self) -> String {
        format!("TV({:?}) Loss", self.beta)
    }

    fn build<'b>(&self, context: &LossContext<'b>) -> Result<Var<'b>> {
        let x = context.input();
        let spatial = context.spatial_axes();
        if spatial.is_empty() {
            bail!(option, "total_variation: the input {} has no spatial axes", x.fact());
        }
        let cropped = |x: Var<'b>, moved: Option<usize>| {
            spatial.iter().fold(x, |x, &axis| match moved == Some(axis) {
                true => x.slice(axis, 1, i64::MAX),
                false => x.slice(axis, 0, -1),
            })
        };
        let here = cropped(x, None);
        let mut squares: Option<Var<'b>> = None;
        for &axis in &spatial {
            let difference = cropped(x, Some(axis)) - here;
            let square = difference * difference;
            squares = Some(squares.map_or(square, |sum| sum + square));
        }
        let squares = squares.expect("invariant: there is a spatial axis");
        let variation = if self.beta == 2.0 { squares } else { squares.powf(self.beta / 2.0) };
        Ok(variation.reduce_sum(1..x.rank(), false) / context.elements())
    }
}

/// Makes a loss of a closure over the graph builder that gives one number a sample.
///
/// ```
/// use ouzel::losses::{WeightedLoss, expression};
/// // Cat rather than dog.
/// let difference = expression("cat - dog", |context| {
///     let logits = context.tensor("logits")?;
///     Ok(logits.gather(1, vec![0]).squeeze([1]) - logits.gather(1, vec![1]).squeeze([1]))
/// });
/// let losses = [WeightedLoss { loss: difference, weight: 1.0 }];
/// # assert_eq!(losses[0].loss.name(), "cat - dog");
/// ```
pub fn expression<F>(name: &str, build: F) -> Arc<dyn Loss>
where
    F: for<'b> Fn(&LossContext<'b>) -> Result<Var<'b>> + Send + Sync + 'static,
{
    Arc::new(Expression { name: name.to_owned(), build })
}

struct Expression<F> {
    name: String,
    build: F,
}

impl<F> fmt::Debug for Expression<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl<F> Loss for Expression<F>
where
    F: for<'b> Fn(&LossContext<'b>) -> Result<Var<'b>> + Send + Sync,
{
    fn name(&self) -> String {
        self.name.clone()
    }

    fn build<'b>(&self, context: &LossContext<'b>) -> Result<Var<'b>> {
        (self.build)(context)
    }
}

/// The weighted losses of a TOML file.
///
/// ```
/// let losses = ouzel::losses::from_toml(r#"
///     [[loss]]
///     kind = "activation_maximization"
///     layer = "conv1"
///     filters = [3]
///     weight = -1
///
///     [[loss]]
///     kind = "total_variation"
///     weight = 0.1
/// "#)?;
/// assert_eq!(losses.len(), 2);
/// # Ok::<(), ouzel::Error>(())
/// ```
///
/// Every `[[loss]]` has a `kind` and a `weight` (default 1; with keras-vis's signs -1 raises an activation).
/// `activation_maximization` has a `layer` (name or index), `filters` (one index, a list,
/// or `"all"`, which is the default), a `channel_axis` (default 1) and a `region` (`"predicted"`, or ranges such as
/// `"40:80,10:50"`; default all positions); `lp_norm` has `p` (default 6; `inf` is allowed); `total_variation` has
/// `beta` (default 2).
///
/// # Errors
/// If the text is not TOML of this form; the message says where.
pub fn from_toml(text: &str) -> Result<Vec<WeightedLoss>> {
    let file: file::File = match toml::from_str(text) {
        Ok(file) => file,
        Err(error) => bail!(option, "not a list of losses: {}", error.to_string().trim_end()),
    };
    if file.loss.is_empty() {
        bail!(option, "there is no [[loss]]");
    }
    Ok(file.loss.into_iter().map(file::Row::into_loss).collect())
}

/// The form of a file of losses.
mod file {
    use super::{ActivationMaximization, Filters, LpNorm, Region, TensorRef, TotalVariation, WeightedLoss};
    use serde::Deserialize;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    pub(super) struct File {
        #[serde(default)]
        pub(super) loss: Vec<Row>,
    }

    #[derive(Deserialize)]
    #[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
    pub(super) enum Row {
        ActivationMaximization {
            layer: Layer,
            #[serde(default)]
            filters: Option<Chosen>,
            #[serde(default = "one")]
            channel_axis: i64,
            #[serde(default)]
            region: Area,
            #[serde(default = "unit")]
            weight: f64,
        },
        LpNorm {
            #[serde(default = "six")]
            p: f64,
            #[serde(default = "unit")]
            weight: f64,
        },
        TotalVariation {
            #[serde(default = "two")]
            beta: f64,
            #[serde(default = "unit")]
            weight: f64,
        },
    }

    fn one() -> i64 {
        1
    }

    fn unit() -> f64 {
        1.0
    }

    fn two() -> f64 {
        2.0
    }

    fn six() -> f64 {
        6.0
    }

    /// `"predicted"`, or a text of ranges.
    #[derive(Default)]
    pub(super) struct Area(Region);

    impl<'de> Deserialize<'de> for Area {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            String::deserialize(deserializer)?.parse().map(Self).map_err(serde::de::Error::custom)
        }
    }

    #[derive(Deserialize)]
    #[serde(untagged)]
    pub(super) enum Layer {
        Index(i64),
        Name(String),
    }

    #[derive(Deserialize)]
    #[serde(untagged)]
    pub(super) enum Chosen {
        One(usize),
        Many(Vec<usize>),
        Word(All),
    }

    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub(super) enum All {
        All,
    }

    impl Row {
        pub(super) fn into_loss(self) -> WeightedLoss {
            match self {
                Self::ActivationMaximization { layer, filters, channel_axis, region, weight } => {
                    let layer = match layer {
                        Layer::Name(name) => TensorRef::Name(name),
                        Layer::Index(index) => TensorRef::Index(index),
                    };
                    let filters = match filters {
                        Some(Chosen::One(filter)) => filter.into(),
                        Some(Chosen::Many(filters)) => filters.into(),
                        Some(Chosen::Word(All::All)) | None => Filters::All,
                    };
                    let loss = ActivationMaximization { layer, filters, channel_axis, region: region.0 };
                    WeightedLoss::new(loss, weight)
                }
                Self::LpNorm { p, weight } => WeightedLoss::new(LpNorm { p }, weight),
                Self::TotalVariation { beta, weight } => WeightedLoss::new(TotalVariation { beta }, weight),
            }
        }
    }
}
