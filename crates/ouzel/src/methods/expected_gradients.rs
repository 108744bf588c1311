//! Expected gradients: integrated gradients averaged over many baselines, a random point of each path (GradientSHAP).

use super::integrated_gradients::gradient;
use super::path::{self, BASELINE, Baseline, TOLERANCE};
use crate::error::{Result, bail};
use crate::explanation::{
    Combine, Combined, Explainer, Method, Settings, Task, VariantExplainer, Varied, VariedSample,
};
use crate::methods::MethodEntry;
use crate::noise;
use crate::options::{GRAD_MODIFIER, KEEPDIMS, MethodOption, OptionKind, WRT, WRT_CHANNEL_AXIS};
use ndarray::{ArrayD, Zip};

const SAMPLES: MethodOption = MethodOption::new(
    "samples",
    OptionKind::Text,
    "N",
    "50",
    "how many points on ways from baselines are explained",
);

/// How many baselines are drawn where they are noise.
const DRAWS: usize = 10;

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "expected_gradients",
    about: "integrated gradients averaged over many baselines: how much each element contributes compared with what it \
            usually is (GradientSHAP)",
    unit: "units of the target; on average they add up to its difference between the input and the baselines",
    cost: "1 forward pass, and a forward and a backward pass for each sample and baseline",
    source: "Erion et al. 2021, Improving performance of deep learning models with axiomatic attribution priors and \
             expected gradients; Lundberg and Lee 2017, A unified approach to interpreting model predictions",
    criticism: "a random estimate, noisy for few samples; what is shown depends on the baselines",
    options: &[
        GRAD_MODIFIER,
        WRT,
        WRT_CHANNEL_AXIS,
        KEEPDIMS,
        SAMPLES,
        MethodOption { default: "noise", ..BASELINE },
        TOLERANCE,
    ],
    new: |options| {
        let default = ExpectedGradients::default();
        Ok(Box::new(ExpectedGradients {
            samples: options
                .count("samples", if options.profile() == "captum" { 5 } else { default.samples })?,
            baselines: Baseline::list(options, &default.baselines)?,
            tolerance: path::tolerance(options)?,
            settings: options.settings(default.settings.grad_modifier)?,
        }))
    },
};

/// Integrated gradients averaged over baselines, with one random point on each way.
///
/// **Formula.** `1/n · Σ (x - bᵢ) · ∂F/∂x (bᵢ + αᵢ (x - bᵢ))`; the baselines take turns, and the `αᵢ` are random, one in each
/// of `n` equal parts of 0…1, in random order.
///
/// **Shapes.** The attribution has the shape of the tensor, batch axis included.
///
/// **Units.** Target units: on average they add up to `F(x)` minus the mean of `F(b)`; how far they do is stated in
/// [`Attribution::completeness`](crate::Attribution::completeness).
///
/// **Known criticism.** A random estimate.
///
/// **Source.** Erion et al. 2021, "Improving performance of deep learning models with axiomatic attribution priors and
/// expected gradients".
///
/// ```
/// use ouzel::{Baseline, ExpectedGradients};
/// let others = ndarray::ArrayD::<f32>::zeros(vec![20, 3, 224, 224]);
/// let method = ExpectedGradients::default().baselines(vec![Baseline::Array(others.into())]);
/// # let _ = method;
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExpectedGradients {
    /// How many points are explained.
    pub samples: usize,
    /// What the input is compared with; of noise 10 arrays are drawn.
    pub baselines: Vec<Baseline>,
    /// How far the sum may be from the difference of the target, as a share of it.
    pub tolerance: f64,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for ExpectedGradients {
    fn default() -> Self {
        Self { samples: 50, baselines: vec![Baseline::Noise], tolerance: 0.05, settings: Settings::default() }
    }
}

impl ExpectedGradients {
    /// How many points are explained.
    #[must_use]
    pub fn samples(mut self, samples: usize) -> Self {
        self.samples = samples;
        self
    }

    /// What the input is compared with.
    #[must_use]
    pub fn baselines(mut self, baselines: Vec<Baseline>) -> Self {
        self.baselines = baselines;
        self
    }
}

impl Method for ExpectedGradients {
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
        if self.samples == 0 {
            bail!(option, "samples 0: expected 1 or more");
        }
        let Self { samples, baselines, tolerance, .. } = self.clone();
        let combine = Box::new(Expectation { samples, baselines, tolerance });
        VariantExplainer::boxed(task, &gradient(&self.settings), Varied::Explained, samples, combine)
    }
}

/// What is done with each sample.
#[derive(Debug)]
struct Expectation {
    samples: usize,
    baselines: Vec<Baseline>,
    tolerance: f64,
}

impl Combine for Expectation {
    fn combine(&self, sample: &mut VariedSample<'_>) -> Result<Combined> {
        let starts = path::starts(&self.baselines, sample, DRAWS)?;
        let x = sample.value.clone();
        let mut random = noise::stream(sample.seed(), 0);
        let part = noise::permutation(&mut random, self.samples);
        let inside = noise::uniform(&mut random, self.samples);
        let count = self.samples as f64;
        let used = starts.len().min(self.samples);
        // The baselines themselves come first, for what the target is there.
        let variant = |number: usize| match number.checked_sub(used) {
            None => starts[number].clone(),
            Some(number) => {
                let alpha = (part[number] as f64 + inside[number]) / count;
                let mut between = starts[number % used].clone();
                Zip::from(&mut between).and(&x).for_each(|value, x| *value += alpha * (x - *value));
                between
            }
        };
        let mut raw = ArrayD::zeros(x.raw_dim());
        let mut at_starts = sample.scores.as_ref().map(|scores| vec![0.0; scores.len()]);
        let mut each =
            |number: usize, gradient: ArrayD<f64>, scores: Option<Vec<f64>>| match number.checked_sub(used) {
                None => {
                    let turns = (number..self.samples).step_by(used).count() as f64;
                    path::accumulate(&mut at_starts, scores.as_ref(), turns / count);
                }
                Some(number) => Zip::from(&mut raw)
                    .and(&gradient)
                    .and(&x)
                    .and(&starts[number % used])
                    .for_each(|sum: &mut f64, gradient, x, start| *sum += gradient * (x - start) / count),
            };
        sample.expect(used + self.samples);
        sample.explain(used + self.samples, &variant, &mut each)?;
        let differences = path::differences(sample.scores.as_ref(), at_starts.as_ref());
        let completeness = path::completeness(&raw, differences, self.tolerance);
        Ok(Combined { raw, has_channels: true, completeness, steps: None })
    }
}
