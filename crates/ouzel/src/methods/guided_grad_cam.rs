//! Guided Grad-CAM: guided backpropagation, kept where Grad-CAM says that the network sees what speaks for the target.

use crate::backprop::{Gradient, gradient};
use crate::builder::Builder;
use crate::error::{Result, bail};
use crate::explanation::{
    AttributionGraph, Explainer, GraphExplainer, GraphMethod, LossGraph, Method, Settings, Task,
};
use crate::image::Upsampling;
use crate::methods::MethodEntry;
use crate::methods::cam::{CAM_LAYER, Cam, CamLayers, CamProfile, UPSAMPLING, enlarged};
use crate::model::TensorRef;
use crate::options::{GRAD_MODIFIER, KEEPDIMS, RECTIFIERS};
use crate::rules::BackpropModifier;

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "guided_grad_cam",
    about: "guided backpropagation times grad_cam: fine detail, kept where the network sees what speaks for the target",
    unit: "none; only their ratio matters",
    cost: "1 forward and 1 backward pass, and 1 backward pass to the layer",
    source: "Selvaraju et al. 2017, Grad-CAM: visual explanations from deep networks via gradient-based localization",
    criticism: "its detail is that of guided backpropagation, which resembles an edge detector and depends little on the \
                class (Adebayo et al. 2018, Nie et al. 2018)",
    options: &[CAM_LAYER, UPSAMPLING, RECTIFIERS, GRAD_MODIFIER, KEEPDIMS],
    new: |options| {
        Ok(Box::new(GuidedGradCam {
            guided: BackpropModifier::named("guided", &options.list("rectifiers")?)?,
            layers: CamLayers::new(options)?,
            settings: options.settings(Settings::default().grad_modifier)?,
        }))
    },
};

/// Guided backpropagation times Grad-CAM.
///
/// **Formula.** `guided ∂ target / ∂ x · M`, with `M` the rectified Grad-CAM made as large as the input. What keras-vis calls
/// guided Grad-CAM is another thing: a Grad-CAM with guided gradients.
///
/// **Shapes.** The input's, batch axis included.
///
/// **Units.** Only the ratio of values matters.
///
/// **Conventions.** [`CamProfile::Captum`] makes the map larger by repeating its elements.
///
/// **Known criticism.** The detail is that of guided backpropagation, which depends little on the class.
///
/// **Source.** Selvaraju et al. 2017, "Grad-CAM".
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{GuidedGradCam, Method, Model};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let product = GuidedGradCam::default().attribute(&model, &losses, &picture.into())?;
/// assert_eq!(product.raw.shape(), [1, 3, 128, 128]);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GuidedGradCam {
    /// The rule of the backward pass to the input, and where it is used.
    pub guided: BackpropModifier,
    /// Which layers, and by whose conventions.
    pub layers: CamLayers,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for GuidedGradCam {
    fn default() -> Self {
        let (guided, layers) = (BackpropModifier::guided(), CamLayers::default());
        Self { guided, layers, settings: Settings::default() }
    }
}

impl GuidedGradCam {
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
        self
    }

    /// How the map becomes as large as the input.
    #[must_use]
    pub fn upsampling(mut self, upsampling: Upsampling) -> Self {
        self.layers.upsampling = Some(upsampling);
        self
    }
}

impl Method for GuidedGradCam {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn as_graph(&self) -> Option<&dyn GraphMethod> {
        Some(self)
    }

    fn prepare(&self, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        GraphExplainer::boxed(self, task)
    }
}

impl GraphMethod for GuidedGradCam {
    fn build(&self, losses: LossGraph<'_>) -> Result<AttributionGraph> {
        let (explained, channel_axis) = (losses.explained, losses.channel_axis);
        let total = losses.total;
        let rank = losses.graph.fact(explained).rank();
        let mut cam = Cam::grad_cam();
        cam.layers = self.layers.clone();
        let map = cam.build(losses)?;
        let Gradient { graph, values, coverage, .. } =
            gradient(map.graph, total, &[explained], self.guided.rules())?;
        let mut warnings = map.warnings;
        warnings.extend(self.guided.left_alone(&graph, &coverage));

        let builder = Builder::new(graph);
        let (input, mut large) = (builder.var(explained), builder.var(map.raw).relu());
        let sides: Vec<usize> = (1..rank).filter(|&axis| Some(axis) != channel_axis).collect();
        if map.channel_axis.is_some() {
            large = large.squeeze([1]);
        }
        if large.rank() != 1 + sides.len() {
            bail!(
                option,
                "the layer has {} axes of positions and the input {}, so they cannot be multiplied: name another layer",
                large.rank() - 1,
                sides.len()
            );
        }
        if map.layer_map.as_ref().is_some_and(|layer| layer.upsampling.is_some()) {
            large = enlarged(large, input, &sides, self.layers.upsampling())?;
        }
        let large = match channel_axis {
            Some(axis) => large.unsqueeze([axis]),
            None => large,
        };
        let raw = (builder.var(values[0]) * large).id()?;
        Ok(AttributionGraph {
            raw,
            tensor: explained,
            channel_axis,
            coverage,
            layer_map: map.layer_map.map(|mut layer| {
                (layer.upsampling, layer.rectify) = (None, false);
                layer
            }),
            notes: map.notes,
            warnings,
            sums: None,
            graph: builder.finish()?,
        })
    }
}
