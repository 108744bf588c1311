//! What class activation maps share: whose conventions, which layers, the weighted sum over channels, and the size of the map.

pub(super) mod arrays;
#[cfg(test)]
mod tests;

use crate::attribution::LayerMap;
use crate::backprop::{Gradient, gradient};
use crate::builder::{Builder, Var};
use crate::compile::Precision;
use crate::dim::display_shape;
use crate::error::{Result, bail};
use crate::explanation::{
    AttributionGraph, Explainer, GraphExplainer, GraphMethod, LossGraph, Method, Settings, Task,
};
use crate::grad_modifiers::GradModifier;
use crate::graph::ValueId;
use crate::image::Upsampling;
use crate::methods::MethodEntry;
use crate::model::TensorRef;
use crate::ops::resize::{Coordinates, Interpolation, Resampling, Resize, Rounding};
use crate::options::{MethodOption, OptionKind, Options};
use crate::rules::BackpropModifier;
use crate::spatial::SpatialLayer;
use std::fmt;

/// The layers that the map is made of.
pub(super) const CAM_LAYER: MethodOption = MethodOption::new(
    "cam_layer",
    OptionKind::Tensors,
    "TENSOR[,...]",
    "the last one with more than one position",
    "the layers that the class activation map is made of; the maps of several are averaged",
);

/// How the map gets the size of the input.
pub(super) const UPSAMPLING: MethodOption = MethodOption::new(
    "upsampling",
    OptionKind::Name(|| Upsampling::NAMES.to_vec()),
    "NAME",
    "linear",
    "how the map of a layer becomes as large as the input: linear (pixel centers, as PyTorch and OpenCV), aligned_linear \
     (corners, as SciPy's zoom of order 1), cubic_spline (of order 3), nearest; the default is the profile's",
);

/// What is done to the gradient of the layer.
pub(super) const GRAD_MODIFIER: MethodOption = MethodOption::new(
    "grad_modifier",
    OptionKind::Name(|| GradModifier::names().collect()),
    "NAME",
    "none",
    "what is done to the gradient of the layer before it weighs the channels: none, absolute, relu, negate (what lowers \
     the target), small_values (what keeps it), invert",
);

/// Whose conventions hold for a class activation map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum CamProfile {
    /// Our own: the paper's formula, rectified where the paper's is; half-pixel linear upsampling, so that edges of the
    /// layer's positions lie on the edges of what they see.
    #[default]
    Ouzel,
    /// keras-vis: its search for the layer, the gradient divided by its signed maximum, SciPy's cubic spline.
    KerasVis,
    /// tf-keras-vis: SciPy's linear zoom; its own Grad-CAM++ and Score-CAM.
    TfKerasVis,
    /// Captum: not rectified, with a channel axis of length 1; nearest upsampling.
    Captum,
    /// pytorch-grad-cam: rectified after the weighted sum; its own Grad-CAM++, XGrad-CAM, Score-CAM and Ablation-CAM.
    PytorchGradCam,
}

/// When what speaks against the target is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rectified {
    /// The raw map has no negative values.
    Raw,
    /// When the raw map is made as large as the input.
    Later,
    Never,
}

/// The profiles by name, with what they decide for all methods.
const CONVENTIONS: &[(&str, CamProfile, Upsampling, Rectified)] = &[
    ("ouzel", CamProfile::Ouzel, Upsampling::Linear, Rectified::Raw),
    ("keras-vis", CamProfile::KerasVis, Upsampling::CubicSpline, Rectified::Raw),
    ("tf-keras-vis", CamProfile::TfKerasVis, Upsampling::AlignedLinear, Rectified::Raw),
    ("captum", CamProfile::Captum, Upsampling::Nearest, Rectified::Never),
    ("pytorch-grad-cam", CamProfile::PytorchGradCam, Upsampling::Linear, Rectified::Later),
];

impl CamProfile {
    /// The profile of this name; our own for tools that have no class activation maps.
    fn named(name: &str) -> Self {
        CONVENTIONS.iter().find(|(known, ..)| *known == name).map_or(Self::Ouzel, |row| row.1)
    }

    fn conventions(self) -> (Upsampling, Rectified) {
        let row = CONVENTIONS.iter().find(|row| row.1 == self);
        row.map(|row| (row.2, row.3)).expect("invariant: every profile has its row")
    }
}

/// Which layers a class activation map is made of, and by whose conventions.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CamLayers {
    /// The layers; if none is named, the last one with more than one position ([`Model::cam_layer`]).
    ///
    /// The maps of several are rectified, scaled to 0…1 for each sample, made as large as the input, and averaged.
    ///
    /// [`Model::cam_layer`]: crate::Model::cam_layer
    pub layers: Vec<TensorRef>,
    /// Whose conventions hold.
    pub profile: CamProfile,
    /// How the map becomes as large as the input; default: as the profile does it.
    pub upsampling: Option<Upsampling>,
}

/// The layers that were found, and how that is told.
pub(super) struct Chosen {
    pub(super) layers: Vec<SpatialLayer>,
    pub(super) notes: Vec<String>,
}

impl CamLayers {
    /// The options of that name.
    pub(super) fn new(options: &Options) -> Result<Self> {
        let chosen = options.text("upsampling")?.map(|_| options.parse("upsampling", Upsampling::Linear));
        let profile = CamProfile::named(options.profile());
        let own = profile.conventions().0;
        Ok(Self {
            layers: options.list("cam_layer")?.into_iter().map(TensorRef::from).collect(),
            profile,
            upsampling: chosen.transpose()?.filter(|chosen| *chosen != own),
        })
    }

    /// How the map becomes as large as the input.
    pub(super) fn upsampling(&self) -> Upsampling {
        self.upsampling.unwrap_or(self.profile.conventions().0)
    }

    fn rectified(&self) -> Rectified {
        self.profile.conventions().1
    }

    /// Nothing is done to the finished map before it is drawn; `absolute` says that it has no negative values.
    fn map_modifier(&self) -> GradModifier {
        if self.rectified() == Rectified::Never { GradModifier::None } else { GradModifier::Absolute }
    }

    /// The settings of methods that make such a map.
    pub(super) fn settings(&self) -> Settings {
        Settings { grad_modifier: self.map_modifier(), ..Settings::default() }
    }

    /// Finds the layers for some losses.
    pub(super) fn find(&self, losses: &LossGraph<'_>) -> Result<Chosen> {
        let (model, channels) = (losses.model, losses.channel_axis);
        if losses.explained != model.main_input() {
            bail!(option, "a class activation map is made of layers: name them as cam_layer, not as wrt");
        }
        let named = self.layers.iter().map(|layer| model.spatial_with(model.find(layer.clone())?, channels));
        let mut layers = named.collect::<Result<Vec<SpatialLayer>>>()?;
        let mut notes = Vec::new();
        let graph = model.graph();
        if layers.is_empty() {
            let targets = targets(losses);
            let layer = match (self.profile, &targets[..]) {
                (CamProfile::KerasVis, [target]) => {
                    model.spatial_with(model.keras_penultimate(*target)?, channels)?
                }
                (CamProfile::KerasVis, _) => {
                    bail!(option, "keras-vis looks for the layer of one target: name the layer as cam_layer")
                }
                _ => model.last_spatial(&targets, channels)?,
            };
            notes.push(format!(
                "the class activation map is made of '{}' {} (--cam-layer names another)",
                graph.value(layer.value).name,
                display_shape(&graph.fact(layer.value).shape)
            ));
            layers.push(layer);
        }
        for layer in &layers {
            if let Some(grid) = &layer.grid {
                let sides: Vec<String> = grid.sides.iter().map(usize::to_string).collect();
                let extra = match grid.extra {
                    0 => String::new(),
                    1 => ", after 1 token for the class".to_owned(),
                    extra => format!(", after {extra} tokens for the class and as registers"),
                };
                notes.push(format!(
                    "the tokens of '{}' are read as a grid of {}{extra}",
                    graph.value(layer.value).name,
                    sides.join("×")
                ));
            }
        }
        Ok(Chosen { layers, notes })
    }

    /// What a map of these layers is made of and how it becomes as large as the input: an average of several is that
    /// already.
    fn layer_map(&self, losses: &LossGraphFacts, chosen: &Chosen) -> Result<(LayerMap, Vec<String>)> {
        let (rank, sides) = (chosen.layers[0].map_rank(), losses.sides.len());
        let can_grow = chosen.layers.iter().all(|layer| layer.map_rank() == sides);
        let is_one = chosen.layers.len() == 1;
        if !can_grow && !is_one {
            bail!(option, "layers whose positions are not those of the input cannot be averaged: name one");
        }
        let layer_map = LayerMap {
            layers: losses.names.clone(),
            upsampling: (can_grow && is_one).then(|| self.upsampling()),
            rectify: is_one && self.rectified() == Rectified::Later,
            size: vec![],
        };
        let warning = format!(
            "the layer has {rank} axes of positions and the input {sides}, so the map keeps the layer's size"
        );
        Ok((layer_map, if can_grow { vec![] } else { vec![warning] }))
    }

    /// The raw map out of those of single layers, each `[samples, positions…]`, or with a channel axis of length 1.
    pub(super) fn join<'b>(
        &self,
        losses: &LossGraphFacts,
        chosen: &Chosen,
        maps: Vec<Var<'b>>,
        input: Var<'b>,
    ) -> Result<(Var<'b>, LayerMap, Vec<String>)> {
        let rectified = self.rectified();
        let (layer_map, warnings) = self.layer_map(losses, chosen)?;
        if let [map] = maps[..] {
            let raw = if rectified == Rectified::Raw { map.relu() } else { map };
            return Ok((raw, layer_map, warnings));
        }
        let count = maps.len() as f64;
        let mut sum: Option<Var<'b>> = None;
        for map in maps {
            let axes = || 1..map.rank();
            let scaled = match rectified {
                Rectified::Never => map / (map.abs().reduce_max(axes(), true) + SCALE_EPSILON),
                Rectified::Raw | Rectified::Later => {
                    let map = map.relu();
                    let lowest = -(-map).reduce_max(axes(), true);
                    (map - lowest) / (map.reduce_max(axes(), true) - lowest + SCALE_EPSILON)
                }
            };
            let large = enlarged(scaled, input, &losses.sides, self.upsampling())?;
            sum = Some(sum.map_or(large, |sum| sum + large));
        }
        Ok((sum.expect("invariant: there are layers") / count, layer_map, warnings))
    }
}

/// Keeps a map that is zero everywhere from being divided by zero.
pub(super) const SCALE_EPSILON: f64 = 1e-7;

/// What is left of a [`LossGraph`] when its graph has been taken to be built on.
pub(super) struct LossGraphFacts {
    /// The axes of the input that are neither batch nor channels.
    pub(super) sides: Vec<usize>,
    /// The names of the layers.
    pub(super) names: Vec<String>,
}

impl LossGraphFacts {
    pub(super) fn new(losses: &LossGraph<'_>, chosen: &Chosen) -> Self {
        let rank = losses.graph.fact(losses.explained).rank();
        let name = |layer: &SpatialLayer| losses.graph.value(layer.value).name.to_string();
        Self {
            sides: (1..rank).filter(|&axis| Some(axis) != losses.channel_axis).collect(),
            names: chosen.layers.iter().map(name).collect(),
        }
    }
}

/// The tensors of the model that the losses are made of.
fn targets(losses: &LossGraph<'_>) -> Vec<ValueId> {
    let model = losses.model.graph();
    let of_losses = &losses.graph.nodes()[model.nodes().len()..];
    let mut read: Vec<ValueId> = of_losses
        .iter()
        .flat_map(|node| node.inputs.iter().flatten().copied())
        .filter(|id| id.index() < model.values().len() && model.producer(*id).is_some())
        .collect();
    read.sort_unstable();
    read.dedup();
    read
}

/// A value of a layer, or its gradient, as `[samples, channels, positions…]`, without class and register tokens.
pub(super) fn arranged<'b>(layer: &SpatialLayer, value: Var<'b>) -> Result<Var<'b>> {
    let order = [0, layer.channel_axis].into_iter().chain(layer.positions.iter().copied());
    let value = value.transpose(order);
    let Some(grid) = &layer.grid else { return Ok(value) };
    let patches = if grid.extra == 0 { value } else { value.slice(2, grid.extra as i64, i64::MAX) };
    let Some(channels) = patches.shape()[1].known() else {
        bail!(target, "a layer of tokens has {} channels: expected a number", patches.shape()[1]);
    };
    let sides = grid.sides.iter().map(|&side| side as i64);
    Ok(patches.reshape([-1, channels].into_iter().chain(sides)))
}

/// A map whose last axes become as long as some axes of the input, as nodes of a graph.
pub(super) fn enlarged<'b>(
    map: Var<'b>,
    input: Var<'b>,
    sides: &[usize],
    upsampling: Upsampling,
) -> Result<Var<'b>> {
    let (interpolation, coordinates) = match upsampling {
        Upsampling::Linear => (Interpolation::Linear, Coordinates::HalfPixel),
        Upsampling::AlignedLinear => (Interpolation::Linear, Coordinates::AlignCorners),
        Upsampling::Nearest => (Interpolation::Nearest(Rounding::Floor), Coordinates::Asymmetric),
        Upsampling::CubicSpline => bail!(
            option,
            "upsampling cubic_spline: a spline cannot be part of the graph, as averages of layers and products with the \
             input need it; choose linear, aligned_linear or nearest"
        ),
    };
    let shape = input.shape();
    let sizes = match sides.iter().map(|&axis| shape[axis].known()).collect::<Option<Vec<i64>>>() {
        Some(sizes) => map.builder().integers(sizes),
        None => input.dimensions().gather(0, sides.iter().map(|&axis| axis as i64).collect()),
    };
    let axes = (map.rank() - sides.len()..map.rank()).map(|axis| axis as i64).collect();
    let resampling = Resampling { axes: Some(axes), ..Resampling::new(interpolation, coordinates) };
    Ok(map.builder().apply_all(Resize { resampling }, &[Some(map), None, None, Some(sizes)])[0])
}

/// A layer with its gradient, as a formula sees them: `[samples, channels, positions…]`.
pub(super) struct LayerGradient<'b> {
    pub(super) activation: Var<'b>,
    pub(super) gradient: Var<'b>,
    /// What is explained, of the same rank.
    pub(super) score: Var<'b>,
    pub(super) profile: CamProfile,
}

impl<'b> LayerGradient<'b> {
    /// The axes of the positions.
    pub(super) fn positions(&self) -> std::ops::Range<usize> {
        2..self.activation.rank()
    }
}

/// How much each channel counts, everywhere or at each position.
pub(super) type Weights = for<'b> fn(&LayerGradient<'b>) -> Var<'b>;

/// What a method of the family is: its description, and its formula.
pub(super) struct Kind {
    pub(super) entry: &'static MethodEntry,
    pub(super) weights: Weights,
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.entry.name)
    }
}

/// A class activation map that weighs channels by their gradient; see [`Cam::grad_cam`] and the others.
///
/// **Formula.** `max(0, Σₖ wₖ · Aₖ)` over the channels `k` of a layer `A`; the methods differ in their weights `w`.
///
/// **Shapes.** The raw attribution has the layer's resolution, `[samples, positions…]`; [`Attribution::maps`] makes it as
/// large as the input. Layers of any number of spatial axes will do, and rows of tokens that are a grid of patches.
///
/// **Conventions.** [`CamProfile`]; the modifier of the gradient acts before the channels are weighed, as in keras-vis.
///
/// **Errors.** If no layer before the target has more than one position.
///
/// [`Attribution::maps`]: crate::Attribution::maps
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{Cam, Method, Model};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let cam = Cam::grad_cam();
/// let attribution = cam.attribute(&model, &losses, &picture.into())?;
/// assert!(attribution.raw.shape()[1] < 128);
/// let map = attribution.maps(&cam.settings.grad_modifier, false)?;
/// assert_eq!(map.shape(), [1, 128, 128]);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Cam {
    kind: &'static Kind,
    /// Which layers, and by whose conventions.
    pub layers: CamLayers,
    /// How the backward pass from the target to the layer treats activation functions; default: their true gradient.
    pub backprop_modifier: BackpropModifier,
    /// What is done to the gradient of the layer before it weighs the channels; default: nothing.
    pub grad_modifier: GradModifier,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Cam {
    pub(super) fn of(kind: &'static Kind) -> Self {
        Self::with(kind, CamLayers::default())
    }

    fn with(kind: &'static Kind, layers: CamLayers) -> Self {
        Self {
            kind,
            settings: layers.settings(),
            layers,
            backprop_modifier: BackpropModifier::none(),
            grad_modifier: GradModifier::None,
        }
    }

    /// The method as it was chosen.
    pub(super) fn boxed(kind: &'static Kind, options: &Options) -> Result<Box<dyn Method>> {
        let mut cam = Self::with(kind, CamLayers::new(options)?);
        cam.backprop_modifier = options.backprop_modifier()?;
        cam.grad_modifier = options.parse("grad_modifier", GradModifier::None)?;
        Ok(Box::new(cam))
    }

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
        self.settings.grad_modifier = self.layers.map_modifier();
        self
    }

    /// How the map becomes as large as the input.
    #[must_use]
    pub fn upsampling(mut self, upsampling: Upsampling) -> Self {
        self.layers.upsampling = Some(upsampling);
        self
    }

    /// How the backward pass from the target to the layer treats activation functions.
    #[must_use]
    pub fn backprop_modifier(mut self, modifier: BackpropModifier) -> Self {
        self.backprop_modifier = modifier;
        self
    }

    /// What is done to the gradient of the layer before it weighs the channels.
    #[must_use]
    pub fn grad_modifier(mut self, modifier: GradModifier) -> Self {
        self.grad_modifier = modifier;
        self
    }
}

impl Method for Cam {
    fn entry(&self) -> &'static MethodEntry {
        self.kind.entry
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
        if self.grad_modifier.has_pole() && self.settings.precision == Precision::F32 {
            let mut direct = self.clone();
            direct.settings.precision = Precision::F32Direct;
            return GraphExplainer::boxed(&direct, task);
        }
        GraphExplainer::boxed(self, task)
    }
}

impl GraphMethod for Cam {
    fn build(&self, losses: LossGraph<'_>) -> Result<AttributionGraph> {
        let chosen = self.layers.find(&losses)?;
        let facts = LossGraphFacts::new(&losses, &chosen);
        let LossGraph { graph, losses: scores, total, explained, .. } = losses;
        let wanted: Vec<ValueId> = chosen.layers.iter().map(|layer| layer.value).collect();
        let rules = self.backprop_modifier.rules();
        let Gradient { graph, values, coverage, .. } = gradient(graph, total, &wanted, rules)?;
        let mut warnings = self.backprop_modifier.left_alone(&graph, &coverage);

        let builder = Builder::new(graph);
        let score = scores.iter().map(|&id| builder.var(id)).reduce(|sum, score| sum + score);
        let score = score.expect("invariant: there is a loss");
        let mut maps = Vec::new();
        for (layer, &gradient) in chosen.layers.iter().zip(&values) {
            let modified = self.grad_modifier.nodes(builder.var(gradient));
            let activation = arranged(layer, builder.var(layer.value))?;
            let layer = LayerGradient {
                activation,
                gradient: arranged(layer, modified)?,
                score: score.unsqueeze(1..activation.rank()),
                profile: self.layers.profile,
            };
            let keep_channel = self.layers.profile == CamProfile::Captum;
            maps.push(((self.kind.weights)(&layer) * activation).reduce_sum([1], keep_channel));
        }
        let (raw, layer_map, more) = self.layers.join(&facts, &chosen, maps, builder.var(explained))?;
        warnings.extend(more);
        let raw = raw.id()?;
        let is_large = layer_map.upsampling.is_none() && chosen.layers.len() > 1;
        Ok(AttributionGraph {
            graph: builder.finish()?,
            raw,
            tensor: if is_large { explained } else { chosen.layers[0].value },
            channel_axis: (self.layers.profile == CamProfile::Captum).then_some(1),
            coverage,
            layer_map: Some(layer_map),
            notes: chosen.notes,
            warnings,
            sums: None,
        })
    }
}
