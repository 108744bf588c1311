//! Score-CAM: channels of a layer weighed by the score of the input seen through them.

use crate::error::{Result, bail};
use crate::explanation::{Explainer, Forward, Masked, Method, Settings, Task};
use crate::image::Upsampling;
use crate::methods::MethodEntry;
use crate::methods::cam::arrays::{LayerExplainer, LayerSample, Preparation, Weigh};
use crate::methods::cam::{CAM_LAYER, CamLayers, CamProfile, UPSAMPLING};
use crate::model::TensorRef;
use crate::options::{MethodOption, OptionKind};
use ndarray::{ArrayD, ArrayView, Axis, IxDyn};
use rayon::prelude::*;

/// Fewer passes for a coarser answer.
const MAX_CHANNELS: MethodOption = MethodOption::new(
    "max_channels",
    OptionKind::Text,
    "N",
    "all of them",
    "use the N channels alone that vary most over the positions (Faster Score-CAM)",
);

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "score_cam",
    about: "the channels of a layer, weighed by the score of the input seen through each of them; no gradient",
    unit: "units of the layer; only their ratio matters",
    cost: "1 forward pass, and 1 for each channel of the layer",
    source: "Wang et al. 2020, Score-CAM: score-weighted visual explanations for convolutional neural networks",
    criticism: "the softmax over channels lets few of them count, the fewer the larger the scores are; inputs seen through a \
                mask are unlike those that the network was trained on",
    options: &[CAM_LAYER, UPSAMPLING, MAX_CHANNELS],
    new: |options| {
        let layers = CamLayers::new(options)?;
        let settings = layers.settings();
        let max_channels = match options.text("max_channels")? {
            None => None,
            Some(_) => Some(options.count("max_channels", 1)?),
        };
        Ok(Box::new(ScoreCam { layers, max_channels, settings }))
    },
};

/// Channels weighed by the score of the input that is multiplied by them.
///
/// **Formula.** `max(0, Σₖ wₖ · Aₖ)` with `w = softmax over k of score(x · Mₖ)`; `Mₖ` is `Aₖ` made as large as the input and
/// scaled to 0…1. A channel that is the same everywhere gets no weight.
///
/// **Shapes.** `[samples, positions…]`.
///
/// **Units.** Units of the layer; only the ratio of values matters.
///
/// **Conventions.** The paper subtracts the score of a baseline from each score, which the softmax takes out again.
/// [`CamProfile::TfKerasVis`] takes the scores themselves as weights; tf-keras-vis has them from a softmax over the classes,
/// so the probabilities are to be explained. There and with [`CamProfile::PytorchGradCam`] masks are enlarged with corners
/// on corners, and channels that are the same everywhere take part.
///
/// **Known criticism.** The softmax over channels lets few of them count.
///
/// **Source.** Wang et al. 2020, "Score-CAM".
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{Method, Model, ScoreCam};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let mut method = ScoreCam::default();
/// method.max_channels = Some(8);
/// let map = method.attribute(&model, &losses, &picture.into())?;
/// assert!(map.raw.to_f64().iter().all(|&value| value >= 0.0));
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ScoreCam {
    /// Which layers, and by whose conventions.
    pub layers: CamLayers,
    /// So many channels alone, those that vary most over the positions.
    pub max_channels: Option<usize>,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for ScoreCam {
    fn default() -> Self {
        let layers = CamLayers::default();
        Self { settings: layers.settings(), layers, max_channels: None }
    }
}

impl ScoreCam {
    /// The layers that the map is made of.
    #[must_use]
    pub fn layers<L: Into<TensorRef>>(mut self, layers: impl IntoIterator<Item = L>) -> Self {
        self.layers.layers = layers.into_iter().map(Into::into).collect();
        self
    }

    /// Whose conventions hold.
    #[must_use]
    pub fn profile(mut self, profile: CamProfile) -> Self {
        self.layers.profile = profile;
        self.settings.grad_modifier = self.layers.settings().grad_modifier;
        self
    }
}

impl Method for ScoreCam {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn prepare(&self, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        LayerExplainer::boxed(self, &self.layers, task, |preparation| self.scores(task, preparation))
    }
}

impl ScoreCam {
    fn scores(&self, task: &Task<'_>, preparation: &Preparation) -> Result<Box<dyn Weigh>> {
        let Preparation { layers, shapes, channel_axis, size } = preparation;
        if let Some(layer) = layers.iter().find(|layer| layer.map_rank() != size.len()) {
            bail!(
                option,
                "'{}' has {} axes of positions and the input {}, so the input cannot be seen through it: name another layer",
                task.model.graph().value(layer.value).name,
                layer.map_rank(),
                size.len()
            );
        }
        let count = |(shape, layer): (&Vec<usize>, &crate::SpatialLayer)| shape[layer.channel_axis - 1];
        let channels: Vec<usize> = shapes.iter().zip(layers).map(count).collect();
        let used: Vec<usize> =
            channels.iter().map(|&count| self.max_channels.unwrap_or(count).min(count)).collect();
        let main = task.model.main_input();
        let place = task.shapes.iter().position(|(id, _)| *id == main);
        let (Some(place), Some(most)) = (place, used.iter().max()) else {
            bail!(internal, "a layer was chosen without an input");
        };
        let forward = Forward::new(self, task, main, &task.shapes[place].1[1..], *most)?;
        let profile = self.layers.profile;
        let masks = match profile {
            CamProfile::TfKerasVis | CamProfile::PytorchGradCam => Upsampling::AlignedLinear,
            _ => self.layers.upsampling(),
        };
        let channel_axis = channel_axis.map(|axis| axis - 1);
        Ok(Box::new(Scores { forward, input: place, channel_axis, size: size.clone(), masks, used, profile }))
    }
}

/// Scores inputs that are seen through channels.
#[derive(Debug)]
struct Scores {
    forward: Forward,
    /// Which of the inputs is seen through them.
    input: usize,
    /// The channel axis of a sample of it.
    channel_axis: Option<usize>,
    /// The lengths of its other axes.
    size: Vec<usize>,
    /// How a channel becomes as large.
    masks: Upsampling,
    /// How many channels of each layer are used.
    used: Vec<usize>,
    profile: CamProfile,
}

impl Scores {
    /// Whether channels that are the same everywhere take part, and what keeps their masks from being divided by zero.
    fn flat(&self) -> (bool, f64) {
        match self.profile {
            CamProfile::TfKerasVis => (true, 1e-7),
            CamProfile::PytorchGradCam => (true, 1e-8),
            _ => (false, 0.0),
        }
    }

    /// The weights of channels with these scores.
    fn weights(&self, scores: Vec<f64>) -> Vec<f64> {
        if self.profile == CamProfile::TfKerasVis {
            return scores;
        }
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = scores.into_iter().map(|score| (score - highest).exp()).collect();
        let sum: f64 = powers.iter().sum();
        powers.into_iter().map(|power| power / sum).collect()
    }
}

impl Weigh for Scores {
    fn passes(&self, layer: usize) -> usize {
        self.used[layer]
    }

    fn map(&self, layer: usize, sample: &mut LayerSample<'_>) -> Result<ArrayD<f64>> {
        let (flat_too, epsilon) = self.flat();
        let range = |channel: &ArrayView<'_, f64, IxDyn>| {
            channel
                .iter()
                .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)))
        };
        let activation = std::mem::take(&mut sample.activation);
        let channels: Vec<_> = activation.outer_iter().collect();
        let mut chosen: Vec<usize> = (0..channels.len())
            .filter(|&channel| flat_too || range(&channels[channel]).0 < range(&channels[channel]).1)
            .collect();
        if self.used[layer] < chosen.len() {
            let spread: Vec<f64> = channels.iter().map(|channel| channel.std(0.0)).collect();
            chosen.sort_by(|&a, &b| spread[b].total_cmp(&spread[a]));
            chosen.truncate(self.used[layer]);
            chosen.sort_unstable();
        }
        let mut map = ArrayD::zeros(&activation.shape()[1..]);
        let picture = sample.inputs[self.input]
            .outer(sample.number..sample.number + 1)
            .to_f64()
            .index_axis_move(Axis(0), 0);
        let masked = Masked::new(&picture, &ArrayD::zeros(picture.raw_dim()), self.channel_axis);
        let mut of_sample = self.forward.sample(sample.inputs, sample.number, sample.filters)?;
        let step = of_sample.at_once();
        let mut scores = Vec::new();
        for start in (0..chosen.len()).step_by(step) {
            let places = start..(start + step).min(chosen.len());
            let masks = chosen[places.clone()].par_iter().map(|&channel| {
                let mask = self.masks.apply(channels[channel].to_owned(), &self.size)?;
                let (low, high) = range(&mask.view());
                Ok(mask.iter().map(|value| (value - low) / (high - low + epsilon)).collect())
            });
            let masks = masks.collect::<Result<Vec<Vec<f64>>>>()?;
            scores.extend(
                of_sample
                    .scores(places.clone(), &|place, out| masked.see(&masks[place - places.start], out))?,
            );
            sample.done_with(places.len());
        }
        for (&channel, weight) in chosen.iter().zip(self.weights(scores)) {
            map.scaled_add(weight, &channels[channel]);
        }
        Ok(map)
    }
}
