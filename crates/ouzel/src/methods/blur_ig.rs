//! Blur integrated gradients: the gradient followed along the way from a blurred picture to the sharp one.

use super::integrated_gradients::gradient;
use super::path::{self, STEPS, TOLERANCE};
use crate::error::{Result, bail};
use crate::explanation::{
    Combine, Combined, Explainer, Method, Settings, Task, VariantExplainer, Varied, VariedSample,
};
use crate::image::{Border, gaussian_blur};
use crate::methods::MethodEntry;
use crate::options::{GRAD_MODIFIER, KEEPDIMS, MethodOption, OptionKind, WRT, WRT_CHANNEL_AXIS};
use ndarray::{ArrayD, Zip};

const MAX_SIGMA: MethodOption = MethodOption::new(
    "max_sigma",
    OptionKind::Text,
    "PIXELS",
    "a quarter of the longest axis",
    "the standard deviation of the blur where the path begins",
);

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "blur_ig",
    about: "how much each element contributes while the picture comes into focus: integrated gradients from a blurred \
            picture, through less and less blurred ones",
    unit: "units of the target; they add up to its difference between the picture and the blurred one",
    cost: "1 forward pass, and a forward and a backward pass for each step",
    source: "Xu, Venugopalan and Sundararajan 2020, Attribution in scale and space",
    criticism: "a blurred picture is no absence of information: large uniform parts stay what they are and get nothing",
    options: &[GRAD_MODIFIER, WRT, WRT_CHANNEL_AXIS, KEEPDIMS, STEPS, MAX_SIGMA, TOLERANCE],
    new: |options| {
        let is_pair = options.profile() == "pair";
        let default = if is_pair { BlurIg::pair() } else { BlurIg::default() };
        let max_sigma = match options.text(MAX_SIGMA.name)? {
            None => default.max_sigma,
            Some(_) => match options.parse(MAX_SIGMA.name, 0.0)? {
                sigma if f64::is_finite(sigma) && sigma > 0.0 => Some(sigma),
                sigma => bail!(option, "max_sigma {sigma}: expected a number above 0"),
            },
        };
        Ok(Box::new(BlurIg {
            steps: options.count(STEPS.name, default.steps)?,
            max_sigma,
            tolerance: path::tolerance(options)?,
            settings: options.settings(default.settings.grad_modifier.clone())?,
            ..default
        }))
    },
};

/// How the path is cut into steps.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum BlurPath {
    /// Strengths of blur that grow with the square of the step, for most changes while there is little blur; the gradient in the
    /// middle of each step, times what the step changes; the picture is continued by its mirror image.
    #[default]
    Squared,
    /// PAIR saliency's: strengths that grow linearly, or with the root of the step; the gradient at the sharper end of each step,
    /// times a difference quotient; zeros around the picture.
    Pair {
        /// The step of the difference quotient, in pixels.
        grad_step: f64,
        /// With the root of the step.
        sqrt: bool,
    },
}

/// The gradient along the way from a blurred input to the input itself.
///
/// **Formula.** `-∫₀^σ ∂F/∂x (x_s) · ∂x_s/∂s ds`, where `x_s` is the input blurred by a Gaussian of standard deviation `s`,
/// along all axes but those of samples and channels.
///
/// **Shapes.** The attribution has the shape of the input, batch axis included.
///
/// **Units.** Target units: they add up to `F(x) - F(x_σ)`, and
/// [`Attribution::completeness`](crate::Attribution::completeness) says how well.
///
/// **Known criticism.** Uniform parts of a picture do not change on the way and get nothing.
///
/// **Source.** Xu, Venugopalan and Sundararajan 2020, "Attribution in scale and space".
///
/// **Errors.** Inputs without spatial axes, and inner tensors, have no such attribution.
///
/// ```
/// use ouzel::{BlurIg, Method};
/// let method = BlurIg::default().max_sigma(20.0);
/// assert_eq!(method.entry().name, "blur_ig");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BlurIg {
    /// The standard deviation where the path begins, in elements; default: a quarter of the longest spatial axis.
    pub max_sigma: Option<f64>,
    /// How many steps the path has.
    pub steps: usize,
    /// How they are chosen.
    pub path: BlurPath,
    /// How far the sum may be from the difference of the target, as a share of it.
    pub tolerance: f64,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for BlurIg {
    fn default() -> Self {
        Self {
            max_sigma: None,
            steps: 50,
            path: BlurPath::Squared,
            tolerance: 0.05,
            settings: Settings::default(),
        }
    }
}

impl BlurIg {
    /// The defaults of PAIR saliency.
    pub fn pair() -> Self {
        Self {
            max_sigma: Some(50.0),
            steps: 100,
            path: BlurPath::Pair { grad_step: 0.01, sqrt: false },
            ..Self::default()
        }
    }

    /// The standard deviation where the path begins, in elements.
    #[must_use]
    pub fn max_sigma(mut self, sigma: f64) -> Self {
        self.max_sigma = Some(sigma);
        self
    }

    /// How many steps the path has.
    #[must_use]
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// How the steps are chosen.
    #[must_use]
    pub fn path(mut self, path: BlurPath) -> Self {
        self.path = path;
        self
    }
}

impl Method for BlurIg {
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
        if self.steps == 0 {
            bail!(option, "steps 0: expected 1 or more");
        }
        let combine = Box::new(Focus(self.clone()));
        VariantExplainer::boxed(task, &gradient(&self.settings), Varied::Explained, self.steps + 1, combine)
    }
}

/// What is done with each sample.
#[derive(Debug)]
struct Focus(BlurIg);

impl Focus {
    /// The strength of the blur at a place of the path, 0 for the sharp picture and `steps` for its beginning.
    fn sigma(&self, place: f64, max_sigma: f64) -> f64 {
        let share = place / self.0.steps as f64;
        match self.0.path {
            BlurPath::Squared => max_sigma * share * share,
            BlurPath::Pair { sqrt: false, .. } => max_sigma * share,
            BlurPath::Pair { sqrt: true, .. } => (max_sigma * share).sqrt(),
        }
    }
}

impl Combine for Focus {
    fn combine(&self, sample: &mut VariedSample<'_>) -> Result<Combined> {
        if sample.is_inner() {
            bail!(option, "blur_ig explains inputs, not inner tensors: leave wrt out");
        }
        let BlurIg { steps, tolerance, .. } = self.0;
        let axes = path::spatial_axes(sample)?;
        let x = sample.input.clone();
        let longest = axes.iter().map(|&axis| x.shape()[axis]).max().unwrap_or(1);
        let max_sigma = self.0.max_sigma.unwrap_or(longest as f64 / 4.0);
        let (border, inside) = match self.0.path {
            BlurPath::Squared => (Border::Mirror, 0.5),
            BlurPath::Pair { .. } => (Border::Zero, 0.0),
        };
        let blurred = |sigma: f64| gaussian_blur(x.clone(), &axes, sigma, border);
        let at = |place: f64| self.sigma(place, max_sigma);
        // The beginning of the path comes first, for what the target is there.
        let variant = |number: usize| match number {
            0 => blurred(at(steps as f64)),
            number => blurred(at((number - 1) as f64 + inside)),
        };
        let mut raw = ArrayD::zeros(x.raw_dim());
        let mut at_start = None;
        let mut sharper = x.clone();
        let mut each = |number: usize, gradient: ArrayD<f64>, scores: Option<Vec<f64>>| {
            let Some(step) = number.checked_sub(1) else {
                at_start = scores;
                return;
            };
            let (low, high) = (at(step as f64), at((step + 1) as f64));
            match self.0.path {
                BlurPath::Squared => {
                    let less_sharp = blurred(high);
                    Zip::from(&mut raw).and(&gradient).and(&sharper).and(&less_sharp).for_each(
                        |sum: &mut f64, gradient, sharper, less| *sum += gradient * (sharper - less),
                    );
                    sharper = less_sharp;
                }
                BlurPath::Pair { grad_step, .. } => {
                    let factor = (high - low) / grad_step;
                    Zip::from(&mut raw)
                        .and(&gradient)
                        .and(&blurred(low))
                        .and(&blurred(low + grad_step))
                        .for_each(|sum: &mut f64, gradient, here, there| {
                            *sum += factor * gradient * (here - there);
                        });
                }
            }
        };
        sample.expect(steps + 1);
        sample.explain(steps + 1, &variant, &mut each)?;
        let differences = path::differences(sample.scores.as_ref(), at_start.as_ref());
        let completeness = path::completeness(&raw, differences, tolerance);
        Ok(Combined { raw, has_channels: true, completeness, steps: Some(steps) })
    }
}
