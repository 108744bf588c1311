//! Ablation-CAM: channels of a layer weighed by how much the score drops without them.

use crate::error::Result;
use crate::explanation::{Explainer, Forward, Method, Settings, Task};
use crate::methods::MethodEntry;
use crate::methods::cam::arrays::{LayerExplainer, LayerSample, Preparation, Weigh};
use crate::methods::cam::{CAM_LAYER, CamLayers, CamProfile, UPSAMPLING};
use crate::model::TensorRef;
use crate::spatial::SpatialLayer;
use ndarray::ArrayD;

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "ablation_cam",
    about: "the channels of a layer, weighed by how much the score drops if a channel is 0; no gradient",
    unit: "units of the target times those of the layer; only their ratio matters",
    cost: "1 forward pass, and 1 from the layer to the target for each of its channels",
    source: "Desai and Ramaswamy 2020, Ablation-CAM: visual explanations for deep convolutional network via gradient-free \
             localization",
    criticism: "channels that stand in for each other get no weight, as the score drops only without both",
    options: &[CAM_LAYER, UPSAMPLING],
    new: |options| {
        let layers = CamLayers::new(options)?;
        let settings = layers.settings();
        Ok(Box::new(AblationCam { layers, settings }))
    },
};

/// Channels weighed by how much the score drops without them.
///
/// **Formula.** `max(0, Σₖ (score - scoreₖ) · Aₖ)`, where `scoreₖ` is the score if channel `k` is 0 everywhere.
///
/// **Shapes.** `[samples, positions…]`.
///
/// **Units.** Target units times units of the layer; only the ratio of values matters.
///
/// **Conventions.** The paper divides the drop by the score, a factor that scaling takes out again, and that would turn the
/// map around for a negative score; it is left out. [`CamProfile::PytorchGradCam`] divides, and replaces the channels of
/// layers with values other than 0 at their minimum by very negative numbers.
///
/// **Known criticism.** Channels that stand in for each other get no weight.
///
/// **Source.** Desai and Ramaswamy 2020, "Ablation-CAM".
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{AblationCam, Method, Model};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let map = AblationCam::default().attribute(&model, &losses, &picture.into())?;
/// assert!(map.raw.to_f64().iter().all(|&value| value >= 0.0));
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AblationCam {
    /// Which layers, and by whose conventions.
    pub layers: CamLayers,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for AblationCam {
    fn default() -> Self {
        let layers = CamLayers::default();
        Self { settings: layers.settings(), layers }
    }
}

impl AblationCam {
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

impl Method for AblationCam {
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
        LayerExplainer::boxed(self, &self.layers, task, |preparation| self.ablations(task, preparation))
    }
}

impl AblationCam {
    fn ablations(&self, task: &Task<'_>, preparation: &Preparation) -> Result<Box<dyn Weigh>> {
        let each = preparation.layers.iter().zip(&preparation.shapes).map(|(layer, shape)| {
            let channels = shape[layer.channel_axis - 1];
            let forward = Forward::new(self, task, layer.value, shape, channels)?;
            Ok(Ablation { forward, channels, layer: layer.clone() })
        });
        Ok(Box::new(Ablations { each: each.collect::<Result<_>>()?, profile: self.layers.profile }))
    }
}

/// The network behind a layer.
#[derive(Debug)]
struct Ablation {
    forward: Forward,
    channels: usize,
    layer: SpatialLayer,
}

/// Scores layers without one channel.
#[derive(Debug)]
struct Ablations {
    each: Vec<Ablation>,
    profile: CamProfile,
}

impl Ablations {
    /// What a channel is replaced by.
    fn replacement(&self, channel: usize, lowest: f64) -> f64 {
        match self.profile {
            // Its minimum runs over the channels that have been replaced before, in groups of 32.
            CamProfile::PytorchGradCam if lowest != 0.0 => lowest - 1e7 * (channel % 32 + 1) as f64,
            _ => 0.0,
        }
    }
}

impl Weigh for Ablations {
    fn passes(&self, layer: usize) -> usize {
        self.each[layer].channels
    }

    fn map(&self, layer: usize, sample: &mut LayerSample<'_>) -> Result<ArrayD<f64>> {
        let Ablation { forward, channels, layer } = &self.each[layer];
        let axis = layer.channel_axis - 1;
        let elements: Vec<f64> = sample.value.iter().copied().collect();
        let lowest = elements.iter().copied().fold(f64::INFINITY, f64::min);
        // How many elements lie between two of the same channel, and how many of a channel follow each other.
        let run: usize = sample.value.shape()[axis + 1..].iter().product();
        let mut of_sample = forward.sample(sample.inputs, sample.number, sample.filters)?;
        let step = of_sample.at_once();
        let mut map = ArrayD::zeros(&sample.activation.shape()[1..]);
        for start in (0..*channels).step_by(step) {
            let end = (start + step).min(*channels);
            let scores = of_sample.scores(start..end, &|channel, out| {
                out.copy_from_slice(&elements);
                let replacement = self.replacement(channel, lowest);
                for block in out.chunks_exact_mut(run * channels) {
                    block[channel * run..(channel + 1) * run].fill(replacement);
                }
            })?;
            for (channel, score) in (start..end).zip(scores) {
                let drop = sample.score - score;
                let weight = match self.profile {
                    CamProfile::PytorchGradCam => drop / sample.score,
                    _ => drop,
                };
                map.scaled_add(weight, &sample.activation.index_axis(ndarray::Axis(0), channel));
            }
            sample.done_with(end - start);
        }
        Ok(map)
    }
}
