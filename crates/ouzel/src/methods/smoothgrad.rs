//! SmoothGrad, SmoothGrad-squared and VarGrad: what is left of an attribution when noise is added to the input.

use crate::builder::Var;
use crate::error::{Result, bail};
use crate::explanation::{
    Combine, Combined, Explainer, ExplanationGraph, Method, Settings, Task, There, VariantExplainer,
    VariantMethod, Varied, VariedSample, Varying,
};
use crate::grad_modifiers::GradModifier;
use crate::graph::Fact;
use crate::losses::WeightedLoss;
use crate::methods::saliency::Saliency;
use crate::methods::{METHODS, MethodEntry, method};
use crate::model::Model;
use crate::noise;
use crate::onnx::known_length;
use crate::ops::reduce::ReduceMin;
use crate::options::{
    BACKPROP_MODIFIER, GRAD_MODIFIER, KEEPDIMS, MethodOption, OptionKind, Options, RECTIFIERS, WRT,
    WRT_CHANNEL_AXIS,
};
use crate::tensor::{DType, Tensor};
use ndarray::{ArrayD, Zip};

/// The method that is run on the noisy inputs.
pub(super) const INNER: MethodOption = MethodOption::new(
    "inner",
    OptionKind::Name(inner_methods),
    "NAME",
    "saliency",
    "the method that is run on each noisy input; its options may be given too",
);

/// How many noisy inputs there are.
const SAMPLES: MethodOption =
    MethodOption::new("samples", OptionKind::Text, "N", "50", "how many noisy inputs are explained");

/// How strong the noise is, of the input's range.
const NOISE_LEVEL: MethodOption = MethodOption::new(
    "noise_level",
    OptionKind::Text,
    "F",
    "0.15",
    "the standard deviation of the noise, as a share of the range of the sample's values",
);

/// How strong the noise is.
const NOISE_SIGMA: MethodOption = MethodOption::new(
    "noise_sigma",
    OptionKind::Text,
    "F",
    "as --noise-level says",
    "the standard deviation of the noise, in units of the preprocessed input",
);

/// What the three have in common.
const OPTIONS: &[MethodOption] = &[
    BACKPROP_MODIFIER,
    RECTIFIERS,
    GRAD_MODIFIER,
    WRT,
    WRT_CHANNEL_AXIS,
    KEEPDIMS,
    SAMPLES,
    NOISE_LEVEL,
    NOISE_SIGMA,
    INNER,
];

const COST: &str = "1 forward pass, and a forward and a backward pass for each noisy input";

/// What lists of methods say of SmoothGrad.
pub(super) const SMOOTHGRAD: MethodEntry = MethodEntry {
    name: "smoothgrad",
    about: "the mean of the gradients at noisy copies of the input: what matters there wherever exactly one stands",
    unit: "as the inner method; for saliency units of the target per unit of the preprocessed input",
    cost: COST,
    source: "Smilkov et al. 2017, SmoothGrad: removing noise by adding noise",
    criticism: "explains a blurred network rather than this one; what is shown depends on the strength of the noise; \
                insensitive to parameters in some tests (Adebayo et al. 2018)",
    options: OPTIONS,
    new: |options| smoothing(&SMOOTHGRAD, Statistic::Mean, options),
};

/// What lists of methods say of SmoothGrad-squared.
pub(super) const SMOOTHGRAD_SQUARED: MethodEntry = MethodEntry {
    name: "smoothgrad_squared",
    about: "the mean of the squared gradients at noisy copies of the input: where the target is sensitive either way",
    unit: "the square of the inner method's unit",
    cost: COST,
    source: "Hooker et al. 2019, A benchmark for interpretability methods in deep neural networks",
    criticism: "has no sign; squares make few elements outshine all others",
    options: OPTIONS,
    new: |options| smoothing(&SMOOTHGRAD_SQUARED, Statistic::Square, options),
};

/// What lists of methods say of VarGrad.
pub(super) const VARGRAD: MethodEntry = MethodEntry {
    name: "vargrad",
    about: "the variance of the gradients at noisy copies of the input: where the gradient hangs on details",
    unit: "the square of the inner method's unit",
    cost: COST,
    source: "Adebayo et al. 2018, Local explanation methods for deep neural networks lack sensitivity to parameter values",
    criticism: "independent of the gradient itself, so where the network is linear it shows nothing (Seo et al. 2018)",
    options: OPTIONS,
    new: |options| smoothing(&VARGRAD, Statistic::Variance, options),
};

/// All methods but these three.
fn inner_methods() -> Vec<&'static str> {
    let is_own = |entry: &MethodEntry| entry.options.iter().any(|option| option.name == INNER.name);
    METHODS.iter().filter(|entry| !is_own(entry)).map(|entry| entry.name).collect()
}

/// The method of what was chosen; profiles have defaults of their own.
fn smoothing(
    entry: &'static MethodEntry,
    statistic: Statistic,
    options: &Options,
) -> Result<Box<dyn Method>> {
    let profile = options.profile();
    let (samples, noise) = match profile {
        "captum" => (5, Noise::Sigma(1.0)),
        "pair" => (25, Noise::Level(0.15)),
        "tf-keras-vis" => (50, Noise::Level(0.2)),
        "zennit" => (20, Noise::Level(0.1)),
        _ => (50, Noise::Level(0.15)),
    };
    let positive = |name: &str| match options.parse(name, 0.0)? {
        strength if f64::is_finite(strength) && strength >= 0.0 => Ok(strength),
        strength => bail!(option, "{name} {strength}: expected a number, 0 or more"),
    };
    let noise = match (options.text("noise_level")?, options.text("noise_sigma")?) {
        (None, None) => noise,
        (Some(_), None) => Noise::Level(positive("noise_level")?),
        (None, Some(_)) => Noise::Sigma(positive("noise_sigma")?),
        (Some(_), Some(_)) => bail!(option, "noise_level and noise_sigma: expected one of the two"),
    };
    let name = options.text(INNER.name)?.unwrap_or(INNER.default).to_ascii_lowercase().replace('-', "_");
    let Some(inner) =
        METHODS.iter().find(|entry| entry.name == name && inner_methods().contains(&entry.name))
    else {
        bail!(option, "unknown inner method '{name}': expected one of {}", inner_methods().join(", "));
    };
    let own = [&SAMPLES, &NOISE_LEVEL, &NOISE_SIGMA, &INNER].map(|option| option.name);
    let others = options.names().filter(|name| own.contains(name) || !inner.has(name));
    let inner_options = others.fold(options.clone(), |options, option| options.without(option));
    let inner = method(inner.name, &inner_options)?;
    let mut made = Smoothing {
        samples: options.count("samples", samples)?,
        noise,
        last_is_clean: profile == "zennit",
        modify_each: None,
        ..Smoothing::of(entry, statistic, inner)
    };
    if profile == "tf-keras-vis" {
        let settings = made.settings_mut();
        let modifier = settings.grad_modifier.clone();
        // What was modified once stays as it is.
        settings.grad_modifier =
            if modifier.is_signed() { GradModifier::None } else { GradModifier::Absolute };
        made.modify_each = Some(modifier);
    }
    Ok(Box::new(made))
}

/// What becomes of the attributions of noisy inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Statistic {
    /// Their mean: SmoothGrad.
    Mean,
    /// The mean of their squares: SmoothGrad-squared.
    Square,
    /// Their variance, the mean of the squares minus the square of the mean: VarGrad.
    Variance,
}

/// The noise that is added to the input.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Noise {
    /// Normal, with this standard deviation as a share of the range (maximum minus minimum) of the sample's values.
    Level(f64),
    /// Normal, with this standard deviation.
    Sigma(f64),
    /// What is added, one entry of the first axis for each noisy input; it is the same for all samples.
    Array(Tensor),
}

/// A statistic of another method's attributions at noisy copies of the input.
///
/// **Formula.** For [`Statistic::Mean`] `1/n · Σ A(x + εᵢ)`, with `εᵢ` normal with mean 0, and `A` the inner method. The noise
/// is added to the input, also where an inner tensor is explained, and it is the same for every sample of a batch, apart
/// from its strength. The target stays that of the input without noise.
///
/// **Shapes.** As the inner method.
///
/// **Units.** As the inner method; their square for the other statistics.
///
/// **Known criticism.** What is shown depends on the strength of the noise, and is an explanation of a smoother network.
///
/// **Source.** Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise".
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{Method, Model, Saliency, Smoothing};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let smooth = Smoothing::smoothgrad(Saliency::default()).samples(4).seed(7);
/// let attribution = smooth.attribute(&model, &losses, &picture.into())?;
/// assert_eq!(attribution.raw.shape(), [1, 3, 128, 128]);
/// assert_eq!(attribution.measures[0].values, [5.0]); // evaluations
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct Smoothing {
    entry: &'static MethodEntry,
    /// The method that is run on the noisy inputs; its settings are those of the whole.
    pub inner: Box<dyn Method>,
    /// What becomes of its attributions.
    pub statistic: Statistic,
    /// How many noisy inputs there are; an array of noise has a number of its own.
    pub samples: usize,
    /// What is added.
    pub noise: Noise,
    /// The last of the noisy inputs gets no noise, as in zennit.
    pub last_is_clean: bool,
    /// What is done to each attribution before anything else, as in tf-keras-vis.
    pub modify_each: Option<GradModifier>,
}

impl Smoothing {
    fn of(entry: &'static MethodEntry, statistic: Statistic, inner: Box<dyn Method>) -> Self {
        let noise = Noise::Level(0.15);
        Self { entry, inner, statistic, samples: 50, noise, last_is_clean: false, modify_each: None }
    }

    /// The mean of another method's attributions.
    pub fn smoothgrad(inner: impl Method + 'static) -> Self {
        Self::of(&SMOOTHGRAD, Statistic::Mean, Box::new(inner))
    }

    /// The mean of the squares of another method's attributions.
    pub fn smoothgrad_squared(inner: impl Method + 'static) -> Self {
        Self::of(&SMOOTHGRAD_SQUARED, Statistic::Square, Box::new(inner))
    }

    /// The variance of another method's attributions.
    pub fn vargrad(inner: impl Method + 'static) -> Self {
        Self::of(&VARGRAD, Statistic::Variance, Box::new(inner))
    }

    /// How many noisy inputs there are.
    #[must_use]
    pub fn samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// What is added.
    #[must_use]
    pub fn noise(mut self, noise: Noise) -> Self {
        self.noise = noise;
        self
    }

    /// What is done to each attribution before anything else.
    #[must_use]
    pub fn modify_each(mut self, modifier: GradModifier) -> Self {
        self.modify_each = Some(modifier);
        self
    }
}

impl Smoothing {
    /// How many noisy inputs there are.
    fn count(&self) -> Result<usize> {
        let samples = match &self.noise {
            Noise::Array(array) => array.shape().first().copied().unwrap_or(0),
            _ => self.samples,
        };
        if samples == 0 {
            bail!(option, "samples 0: expected 1 or more noisy inputs");
        }
        Ok(samples)
    }
}

impl Default for Smoothing {
    fn default() -> Self {
        Self::smoothgrad(Saliency::default())
    }
}

impl Method for Smoothing {
    fn entry(&self) -> &'static MethodEntry {
        self.entry
    }

    fn settings(&self) -> &Settings {
        self.inner.settings()
    }

    fn settings_mut(&mut self) -> &mut Settings {
        self.inner.settings_mut()
    }

    fn as_variants(&self) -> Option<&dyn VariantMethod> {
        Some(self)
    }

    fn prepare(&self, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        let samples = self.count()?;
        let combine = Smooth {
            statistic: self.statistic,
            samples,
            noise: self.noise.clone(),
            last_is_clean: self.last_is_clean,
            modify_each: self.modify_each.clone(),
        };
        VariantExplainer::boxed(task, &*self.inner, Varied::Input, samples, Box::new(combine))
    }
}

impl VariantMethod for Smoothing {
    fn inner(&self, model: &Model, losses: &[WeightedLoss]) -> Result<ExplanationGraph> {
        match self.inner.as_graph() {
            Some(method) => ExplanationGraph::new(model, losses, method),
            None => bail!(
                unsupported,
                "the inner method {} is more than a graph of ops, so that it cannot be saved as an ONNX file",
                self.inner.entry().name
            ),
        }
    }

    fn differences(&self, input: &Fact) -> Result<Vec<Tensor>> {
        let samples = self.count()?;
        let mut shape = vec![samples, 1];
        for (axis, dim) in input.shape.iter().enumerate().skip(1) {
            shape.push(known_length(dim, axis)?);
        }
        let len: usize = shape[2..].iter().product();
        let mut noise: Vec<f64> = match &self.noise {
            Noise::Array(array) => array.to_f64().into_iter().collect(),
            _ => {
                let seed = self.settings().seed;
                let drawn = |number| noise::normal(&mut noise::stream(seed, number), len);
                (0..samples as u64).flat_map(drawn).collect()
            }
        };
        if noise.len() != samples * len {
            bail!(
                option,
                "the noise: expected {} numbers for each of the {samples} noisy inputs, found {}",
                len,
                noise.len() / samples
            );
        }
        if self.last_is_clean {
            noise[(samples - 1) * len..].fill(0.0);
        }
        let noise = Tensor::from_shape_vec(&shape, noise)?.cast(input.dtype);
        Ok(vec![Tensor::vector(vec![1.0 / samples as f64; samples]).cast(input.dtype), noise])
    }

    fn shared<'b>(&self, sample: &Varying<'b>, _there: &There<'_, 'b>) -> Result<Vec<Var<'b>>> {
        let x = sample.x;
        let axes = 1..x.rank();
        Ok(match self.noise {
            Noise::Level(level) => {
                let least = ReduceMin::over(axes.clone().map(|axis| axis as i64).collect::<Vec<_>>(), true);
                let range = x.reduce_max(axes, true) - x.builder().apply(least, &[x]);
                vec![range * level]
            }
            Noise::Sigma(sigma) => vec![x.scalar_like(sigma)],
            Noise::Array(_) => vec![x.scalar_like(1.0)],
        })
    }

    fn vary<'b>(&self, sample: &Varying<'b>) -> Var<'b> {
        sample.differences[1] * sample.shared[0] + sample.x
    }

    fn summands<'b>(&self, attribution: Var<'b>, _: &Varying<'b>) -> Vec<Var<'b>> {
        let attribution = match &self.modify_each {
            Some(modifier) => modifier.nodes(attribution),
            None => attribution,
        };
        // The difference of two sums that may be nearly equal needs more digits.
        let wide = || attribution.cast(DType::F64);
        match self.statistic {
            Statistic::Mean => vec![attribution],
            Statistic::Square => vec![attribution * attribution],
            Statistic::Variance => vec![wide(), wide() * wide()],
        }
    }

    fn total<'b>(&self, sums: &[Var<'b>]) -> Var<'b> {
        match sums {
            [mean, squares] => (*squares - *mean * *mean).maximum(0.0).cast(DType::F32),
            _ => sums[0],
        }
    }
}

/// What is done with each sample.
#[derive(Debug)]
struct Smooth {
    statistic: Statistic,
    samples: usize,
    noise: Noise,
    last_is_clean: bool,
    modify_each: Option<GradModifier>,
}

impl Combine for Smooth {
    fn combine(&self, sample: &mut VariedSample<'_>) -> Result<Combined> {
        let x = sample.input.clone();
        let one = &x.shape()[1.min(x.ndim())..];
        let len: usize = one.iter().product();
        let given = match &self.noise {
            Noise::Array(array) => {
                let noise = array.to_f64();
                if noise.len() != self.samples * len {
                    bail!(
                        option,
                        "the noise: expected an array of shape [{}, {one:?}], found {:?}",
                        self.samples,
                        array.shape()
                    );
                }
                noise.iter().copied().collect()
            }
            _ => Vec::new(),
        };
        let seed = sample.seed();
        let noisy = |number: usize| {
            let mut noisy = x.clone();
            if self.last_is_clean && number + 1 == self.samples {
                return noisy;
            }
            let drawn;
            let noise = match &self.noise {
                Noise::Array(_) => &given[number * len..][..len],
                _ => {
                    drawn = noise::normal(&mut noise::stream(seed, number as u64), len);
                    &drawn[..]
                }
            };
            for mut row in noisy.outer_iter_mut() {
                let sigma = match self.noise {
                    Noise::Array(_) => 1.0,
                    Noise::Sigma(sigma) => sigma,
                    Noise::Level(level) => {
                        let low = row.iter().copied().fold(f64::INFINITY, f64::min);
                        let high = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        level * (high - low)
                    }
                };
                row.iter_mut().zip(noise).for_each(|(value, noise)| *value += sigma * noise);
            }
            noisy
        };
        let (mut sum, mut squares): (Option<ArrayD<f64>>, Option<ArrayD<f64>>) = (None, None);
        let needs_squares = self.statistic != Statistic::Mean;
        let mut add = |_: usize, attribution: ArrayD<f64>, _: Option<Vec<f64>>| {
            let attribution = match &self.modify_each {
                Some(modifier) => modifier.apply(attribution),
                None => attribution,
            };
            if needs_squares {
                let squares = squares.get_or_insert_with(|| ArrayD::zeros(attribution.raw_dim()));
                Zip::from(squares).and(&attribution).for_each(|sum, value| *sum += value * value);
            }
            let sum = sum.get_or_insert_with(|| ArrayD::zeros(attribution.raw_dim()));
            *sum += &attribution;
        };
        sample.expect(self.samples);
        sample.explain(self.samples, &noisy, &mut add)?;
        let count = self.samples as f64;
        let mean = sum.unwrap_or_else(|| ArrayD::zeros(x.raw_dim())) / count;
        Ok(match (self.statistic, squares) {
            (Statistic::Square, Some(squares)) => squares / count,
            (Statistic::Variance, Some(squares)) => {
                let mut variance = squares / count;
                // Rounding must not make a variance negative.
                Zip::from(&mut variance)
                    .and(&mean)
                    .for_each(|square, mean| *square = (*square - mean * mean).max(0.0));
                variance
            }
            _ => mean,
        }
        .into())
    }
}
