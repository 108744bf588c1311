//! Feature ablation: how much the target falls when a group of elements is removed.

use super::occlusion::lengths;
use crate::error::{Result, bail};
use crate::explanation::{
    Explainer, FILL_VALUE, Fill, Method, Perturbation, PerturbationExplainer, Perturbed, Sample, SampleShape,
    Scorer, Settings, Task,
};
use crate::grad_modifiers::GradModifier;
use crate::methods::MethodEntry;
use crate::options::{
    GRAD_MODIFIER_RELU, KEEPDIMS, MethodOption, OptionKind, OptionValue, Options, WRT, WRT_CHANNEL_AXIS,
};
use crate::tensor::Tensor;
use ndarray::{ArrayD, Axis, IxDyn};
use std::collections::BTreeMap;

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "feature_ablation",
    about: "how much the target falls when a group of elements is removed: segments of a picture, columns of a table",
    unit: "units of the target",
    cost: "1 forward pass a group, for each target",
    source: "Zeiler and Fergus 2014, Visualizing and understanding convolutional networks; groups: Kokhlikyan et al. \
             2020, Captum",
    criticism: "groups that can stand in for one another get nothing, because they are removed one at a time; a sample \
                with a hole is like nothing that the network has seen",
    options: &[FEATURE_MASK, PATCHES, FILL_VALUE, GRAD_MODIFIER_RELU, WRT, WRT_CHANNEL_AXIS, KEEPDIMS],
    new: |options| Ok(Box::new(FeatureAblation::of(options)?)),
};

const FEATURE_MASK: MethodOption = MethodOption::new(
    "feature_mask",
    OptionKind::Array,
    "FILE.npy",
    "none",
    "the group of each element, as whole numbers: the shape of a sample, or of its positions alone",
);

const PATCHES: MethodOption = MethodOption::new(
    "patches",
    OptionKind::Text,
    "N|HxW",
    "16 a side; of vectors, every element",
    "without a mask: into how many patches, channels together, the axes of positions are divided",
);

/// The fall of the target when the elements of a group are filled.
///
/// **Formula.** `rᵢ = f(x) - f(x with the group of i filled)`.
///
/// **Shapes.** The attribution has the shape of the tensor, batch axis included; all elements of a group have the same
/// number.
///
/// **Units.** Units of the target.
///
/// **Conventions.** Without a mask, pictures are divided into patches with all channels; profile `captum` makes every
/// element a group of its own.
///
/// **Known criticism.** Groups that can stand in for one another get nothing, because they are removed one at a time.
///
/// **Source.** Kokhlikyan et al. 2020, "Captum: a unified and generic model interpretability library for PyTorch".
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{FeatureAblation, Method, Model, Tensor};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// // The left half and the right half.
/// let halves = ndarray::Array2::from_shape_fn((128, 128), |(_, column)| i64::from(column >= 64));
/// let ablation = FeatureAblation::default().mask(Tensor::from(halves.into_dyn()));
/// let attribution = ablation.attribute(&model, &losses, &picture.into())?;
/// assert_eq!(attribution.measures[0].values, [2.0]); // groups
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FeatureAblation {
    /// The group of each element, as whole numbers: in the shape of a sample, or of its axes of positions.
    pub mask: Option<Tensor>,
    /// Without a mask: into how many patches the axes of positions are divided, one number for all or one for each;
    /// default: 16 if there are several, else as many as there are elements.
    pub patches: Option<Vec<usize>>,
    /// Without a mask: every element is a group of its own.
    pub single: bool,
    /// What removed elements become.
    pub fill: Fill,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for FeatureAblation {
    fn default() -> Self {
        let settings = Settings { grad_modifier: GradModifier::Relu, ..Settings::default() };
        Self { mask: None, patches: None, single: false, fill: Fill::default(), settings }
    }
}

impl FeatureAblation {
    fn of(options: &Options) -> Result<Self> {
        let mask = match options.value("feature_mask") {
            None => None,
            Some(OptionValue::Array(_, mask)) => Some(mask.clone()),
            Some(_) => bail!(option, "feature_mask: expected an array"),
        };
        let patches = lengths(options, "patches")?;
        if mask.is_some() && patches.is_some() {
            bail!(option, "feature_mask and patches both say what the groups are: leave one out");
        }
        Ok(Self {
            single: options.profile() == "captum" && patches.is_none(),
            mask,
            patches,
            fill: options.parse("fill_value", Fill::default())?,
            settings: options.settings(GradModifier::Relu)?,
        })
    }

    /// The group of each element.
    #[must_use]
    pub fn mask(mut self, mask: Tensor) -> Self {
        self.mask = Some(mask);
        self
    }

    /// Into how many patches the axes of positions are divided.
    #[must_use]
    pub fn patches(mut self, patches: impl Into<Vec<usize>>) -> Self {
        self.patches = Some(patches.into());
        self
    }

    /// What removed elements become.
    #[must_use]
    pub fn fill(mut self, fill: Fill) -> Self {
        self.fill = fill;
        self
    }

    /// The group of each element of a sample, and how many there are.
    fn groups(&self, shape: &SampleShape) -> Result<(ArrayD<usize>, usize)> {
        let lengths = IxDyn(&shape.lengths);
        let spatial = shape.spatial();
        if let Some(mask) = &self.mask {
            return groups_of_mask(mask, shape);
        }
        if self.single {
            let len = shape.lengths.iter().product();
            let single = ArrayD::from_shape_vec(lengths, (0..len).collect());
            return Ok((single.expect("invariant: as many as there are elements"), len));
        }
        let patches: Vec<usize> = match &self.patches {
            None if spatial.len() < 2 => spatial.iter().map(|&axis| shape.lengths[axis]).collect(),
            None => vec![16; spatial.len()],
            Some(given) if given.len() == 1 => vec![given[0]; spatial.len()],
            Some(given) if given.len() == spatial.len() => given.clone(),
            Some(given) => {
                bail!(
                    option,
                    "patches {given:?}: expected 1 number, or {} for the axes of positions",
                    spatial.len()
                )
            }
        };
        let mut counts = Vec::new();
        for (&axis, &patches) in spatial.iter().zip(&patches) {
            counts.push(patches.clamp(1, shape.lengths[axis].max(1)));
        }
        let groups = ArrayD::from_shape_fn(lengths, |place| {
            (spatial.iter().zip(&counts))
                .fold(0, |group, (&axis, &count)| group * count + place[axis] * count / shape.lengths[axis])
        });
        Ok((groups, counts.iter().product()))
    }
}

/// Groups as a mask numbers them, from 0 on and without gaps.
fn groups_of_mask(mask: &Tensor, shape: &SampleShape) -> Result<(ArrayD<usize>, usize)> {
    let numbers = mask.to_f64();
    if let Some(odd) = numbers.iter().find(|number| number.fract() != 0.0 || !number.is_finite()) {
        bail!(option, "feature_mask: expected whole numbers, found {odd}");
    }
    let mut spread = numbers.clone();
    if spread.ndim() == shape.lengths.len() + 1 && spread.len_of(Axis(0)) == 1 {
        spread = spread.index_axis_move(Axis(0), 0);
    }
    if let Some(channels) = shape.channels
        && spread.ndim() + 1 == shape.lengths.len()
    {
        spread = spread.insert_axis(Axis(channels));
    }
    let Some(spread) = spread.broadcast(IxDyn(&shape.lengths)) else {
        bail!(
            option,
            "feature_mask: expected the shape of a sample, {:?}, or of its positions, found {:?}",
            shape.lengths,
            mask.shape()
        );
    };
    let mut known: BTreeMap<i64, usize> = spread.iter().map(|&number| (number as i64, 0)).collect();
    known.values_mut().enumerate().for_each(|(place, group)| *group = place);
    Ok((spread.mapv(|number| known[&(number as i64)]), known.len()))
}

impl Method for FeatureAblation {
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
        PerturbationExplainer::boxed(self, self.clone(), task)
    }
}

impl Perturbation for FeatureAblation {
    fn count(&self, shape: &SampleShape) -> Result<usize> {
        Ok(self.groups(shape)?.1)
    }

    fn explain(&self, sample: &Sample<'_>, scorer: &mut Scorer<'_>) -> Result<Perturbed> {
        let (groups, count) = self.groups(sample.shape)?;
        let fill = self.fill.sample(sample);
        let scores = scorer.scores(0..count, &|removed, elements| {
            let given = sample.elements.iter().zip(&fill).zip(&groups);
            for (element, ((&given, &fill), &group)) in elements.iter_mut().zip(given) {
                *element = if group == removed { fill } else { given };
            }
        })?;
        let raw = groups.mapv(|group| sample.score - scores[group]);
        Ok(Perturbed { raw, measures: vec![("groups", count as f64)] })
    }
}
