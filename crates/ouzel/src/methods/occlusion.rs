//! Occlusion: how much the target falls when a window of the input is covered.

use crate::error::{Result, bail};
use crate::explanation::{
    Explainer, FILL_VALUE, Fill, Method, Perturbation, PerturbationExplainer, Perturbed, Sample, SampleShape,
    Scorer, Settings, Task,
};
use crate::grad_modifiers::GradModifier;
use crate::methods::MethodEntry;
use crate::options::{
    GRAD_MODIFIER_RELU, KEEPDIMS, MethodOption, OptionKind, Options, WRT, WRT_CHANNEL_AXIS,
};
use ndarray::{ArrayD, ArrayViewMutD, IxDyn, Slice};
use std::ops::Range;

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "occlusion",
    about: "how much the target falls when a window is covered, averaged over the windows that cover a place",
    unit: "units of the target",
    cost: "1 forward pass a window: about 850 if nothing is said, for each target",
    source: "Zeiler and Fergus 2014, Visualizing and understanding convolutional networks",
    criticism: "a covered picture is like nothing that the network has seen; what matters is found only if one window \
                covers enough of it, and windows may create evidence of their own",
    options: &[WINDOW, STRIDE, FILL_VALUE, GRAD_MODIFIER_RELU, WRT, WRT_CHANNEL_AXIS, KEEPDIMS],
    new: |options| Ok(Box::new(Occlusion::of(options)?)),
};

const WINDOW: MethodOption = MethodOption::new(
    "window",
    OptionKind::Text,
    "HxW",
    "an eighth of each side",
    "the size of the window, which covers all channels; with a number for every axis, channels included, it covers as many",
);

const STRIDE: MethodOption = MethodOption::new(
    "stride",
    OptionKind::Text,
    "HxW",
    "a quarter of the window",
    "how far the window moves; with a number for every axis where the window has one",
);

/// The fall of the target when a window is filled, averaged over the windows that cover an element.
///
/// **Formula.** `rᵢ = mean over windows w that cover i of (f(x) - f(x with w filled))`; 0 where no window is. Windows lie at
/// multiples of the stride from the first element on, and are clipped at the far edge.
///
/// **Shapes.** The attribution has the shape of the tensor, batch axis included.
///
/// **Units.** Units of the target: positive where the target needs what is there.
///
/// **Conventions.** The average over windows is Captum's, and leaves no border that is darker because fewer windows
/// reach it; profile `pair` sums, with windows of 15 that move by 1; profile `captum` moves by 1, and the window must be
/// named.
///
/// **Known criticism.** A covered picture is like nothing that the network has seen.
///
/// **Source.** Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks".
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{Method, Model, Occlusion};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let occlusion = Occlusion::default().window([64, 64]).stride([32, 32]);
/// let attribution = occlusion.attribute(&model, &losses, &picture.into())?;
/// assert_eq!(attribution.measures[0].values, [9.0]); // windows
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Occlusion {
    /// The size of the window: one number for all axes of positions, one for each of them, or one for each axis of a sample;
    /// default: an eighth of each axis of positions.
    pub window: Option<Vec<usize>>,
    /// How far it moves; default: a quarter of the window.
    pub stride: Option<Vec<usize>>,
    /// What it is filled with.
    pub fill: Fill,
    /// Add the windows that cover an element instead of averaging them.
    pub sum: bool,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for Occlusion {
    fn default() -> Self {
        let settings = Settings { grad_modifier: GradModifier::Relu, ..Settings::default() };
        Self { window: None, stride: None, fill: Fill::default(), sum: false, settings }
    }
}

impl Occlusion {
    fn of(options: &Options) -> Result<Self> {
        let (mut window, mut stride) = (lengths(options, "window")?, lengths(options, "stride")?);
        match options.profile() {
            "captum" => stride = stride.or(Some(vec![1])),
            "pair" => {
                window = window.or(Some(vec![15]));
                stride = stride.or(Some(vec![1]));
            }
            _ => {}
        }
        Ok(Self {
            window,
            stride,
            fill: options.parse("fill_value", Fill::default())?,
            sum: options.profile() == "pair",
            settings: options.settings(GradModifier::Relu)?,
        })
    }

    /// The size of the window.
    #[must_use]
    pub fn window(mut self, lengths: impl Into<Vec<usize>>) -> Self {
        self.window = Some(lengths.into());
        self
    }

    /// How far the window moves.
    #[must_use]
    pub fn stride(mut self, lengths: impl Into<Vec<usize>>) -> Self {
        self.stride = Some(lengths.into());
        self
    }

    /// What the window is filled with.
    #[must_use]
    pub fn fill(mut self, fill: Fill) -> Self {
        self.fill = fill;
        self
    }
}

/// Lengths that were typed as 8, 8x8, …
pub(super) fn lengths(options: &Options, name: &str) -> Result<Option<Vec<usize>>> {
    let Some(text) = options.text(name)? else { return Ok(None) };
    let lengths: Option<Vec<usize>> = (text.split(['x', 'X', '×', ',']))
        .map(|part| part.trim().parse().ok().filter(|&length| length > 0))
        .collect();
    match lengths {
        Some(lengths) => Ok(Some(lengths)),
        None => bail!(option, "{name} '{text}': expected whole numbers, 1 or more, such as 16 or 16x24"),
    }
}

impl Method for Occlusion {
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

/// Where windows lie along each axis of a sample.
#[derive(Debug)]
struct Windows {
    lengths: Vec<usize>,
    window: Vec<usize>,
    stride: Vec<usize>,
    counts: Vec<usize>,
}

impl Windows {
    fn new(occlusion: &Occlusion, shape: &SampleShape) -> Result<Self> {
        let lengths = shape.lengths.clone();
        let spatial = shape.spatial();
        if lengths.is_empty() {
            bail!(option, "there is nothing to cover: a sample is one number");
        }
        let spread = |name: &str, given: &[usize]| -> Result<Vec<usize>> {
            if given.len() == lengths.len() {
                return Ok(given.to_vec());
            }
            if given.len() != 1 && given.len() != spatial.len() {
                bail!(
                    option,
                    "{name} {given:?}: expected 1 number, {} for the axes of positions or {} for all axes of a sample, \
                     whose shape is {lengths:?}",
                    spatial.len(),
                    lengths.len()
                );
            }
            let mut all = lengths.clone();
            for (place, &axis) in spatial.iter().enumerate() {
                all[axis] = given[place.min(given.len() - 1)];
            }
            Ok(all)
        };
        let window = match &occlusion.window {
            Some(window) => spread("window", window)?,
            None => {
                let eighths: Vec<usize> =
                    spatial.iter().map(|&axis| ((lengths[axis] + 4) / 8).max(1)).collect();
                spread("window", &eighths)?
            }
        };
        let stride = match &occlusion.stride {
            Some(stride) => spread("stride", stride)?,
            None => window.iter().map(|&length| length.div_ceil(4)).collect(),
        };
        let counts = (lengths.iter().zip(&window).zip(&stride))
            .map(|((&length, &window), &stride)| length.saturating_sub(window).div_ceil(stride) + 1);
        let counts: Vec<usize> = counts.collect();
        if counts.iter().try_fold(1usize, |product, &count| product.checked_mul(count)).is_none() {
            bail!(option, "there are more windows than can be counted: {counts:?}");
        }
        Ok(Self { counts, lengths, window, stride })
    }

    fn count(&self) -> usize {
        self.counts.iter().product()
    }

    /// The places that a window covers along each axis.
    fn ranges(&self, index: usize) -> Vec<Range<usize>> {
        let mut rest = index;
        let mut ranges = vec![0..0; self.lengths.len()];
        for axis in (0..self.lengths.len()).rev() {
            let start = rest % self.counts[axis] * self.stride[axis];
            rest /= self.counts[axis];
            ranges[axis] = start..(start + self.window[axis]).min(self.lengths[axis]);
        }
        ranges
    }
}

/// Slices each axis.
fn within(ranges: &[Range<usize>]) -> impl FnMut(ndarray::AxisDescription) -> Slice + '_ {
    |axis| Slice::from(ranges[axis.axis.index()].clone())
}

impl Perturbation for Occlusion {
    fn count(&self, shape: &SampleShape) -> Result<usize> {
        Ok(Windows::new(self, shape)?.count())
    }

    fn explain(&self, sample: &Sample<'_>, scorer: &mut Scorer<'_>) -> Result<Perturbed> {
        let windows = Windows::new(self, sample.shape)?;
        let fill = self.fill.sample(sample);
        let scores = scorer.scores(0..windows.count(), &|index, elements| {
            let ranges = windows.ranges(index);
            let mut variant = ArrayViewMutD::from_shape(IxDyn(&windows.lengths), elements)
                .expect("invariant: a variant has the elements of a sample");
            variant.assign(&sample.elements);
            variant.slice_each_axis_mut(within(&ranges)).assign(&fill.slice_each_axis(within(&ranges)));
        })?;
        let mut falls = ArrayD::<f64>::zeros(sample.elements.raw_dim());
        let mut covers = falls.clone();
        for (index, score) in scores.iter().enumerate() {
            let ranges = windows.ranges(index);
            let fall = sample.score - score;
            falls.slice_each_axis_mut(within(&ranges)).mapv_inplace(|sum| sum + fall);
            covers.slice_each_axis_mut(within(&ranges)).mapv_inplace(|count| count + 1.0);
        }
        if !self.sum {
            falls.zip_mut_with(&covers, |fall, &count| *fall /= f64::max(count, 1.0));
        }
        Ok(Perturbed { raw: falls, measures: vec![("windows", scores.len() as f64)] })
    }
}
