//! Guided integrated gradients: a path that changes first what the target depends on least.

use super::integrated_gradients::gradient;
use super::path::{self, BASELINE, Baseline, STEPS, TOLERANCE};
use crate::error::{Result, bail};
use crate::explanation::{
    Combine, Combined, Explainer, Method, Settings, Task, VariantExplainer, Varied, VariedSample,
};
use crate::methods::MethodEntry;
use crate::options::{GRAD_MODIFIER, KEEPDIMS, MethodOption, OptionKind, WRT, WRT_CHANNEL_AXIS};
use ndarray::{ArrayD, Axis};

const FRACTION: MethodOption = MethodOption::new(
    "fraction",
    OptionKind::Text,
    "F",
    "0.25",
    "the share of the elements, those with the least gradients, that move at a time",
);

const MAX_DISTANCE: MethodOption = MethodOption::new(
    "max_distance",
    OptionKind::Text,
    "F",
    "0.02",
    "how far an element may be from the straight path, as a share of its way; 1 lets it go freely",
);

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "guided_ig",
    about: "integrated gradients on a path that changes first what the target depends on least, and so stays away from \
            noisy gradients",
    unit: "units of the target; they add up to its difference between input and baseline",
    cost: "1 forward pass, and a forward and a backward pass for each step, one after the other",
    source: "Kapishnikov et al. 2021, Guided integrated gradients: an adaptive path method for removing noise",
    criticism: "the path depends on the network, so two networks that compute the same may get different attributions; \
                elements that equal the baseline get nothing",
    options: &[
        GRAD_MODIFIER,
        WRT,
        WRT_CHANNEL_AXIS,
        KEEPDIMS,
        STEPS,
        BASELINE,
        FRACTION,
        MAX_DISTANCE,
        TOLERANCE,
    ],
    new: |options| {
        let default = GuidedIg::default();
        let share = |option: &MethodOption, default: f64| match options.parse(option.name, default)? {
            share if (0.0..=1.0).contains(&share) => Ok(share),
            share => bail!(option, "{} {share}: expected a number from 0 to 1", option.name),
        };
        Ok(Box::new(GuidedIg {
            steps: options
                .count(STEPS.name, if options.profile() == "pair" { 200 } else { default.steps })?,
            fraction: share(&FRACTION, default.fraction)?,
            max_distance: share(&MAX_DISTANCE, default.max_distance)?,
            baselines: Baseline::list(options, &default.baselines)?,
            tolerance: path::tolerance(options)?,
            settings: options.settings(default.settings.grad_modifier)?,
        }))
    },
};

/// Integrated gradients along a path that is chosen step by step.
///
/// **Formula.** `Σ ∂F/∂x (xₖ) · (xₖ₊₁ - xₖ)`; each step brings the sum of distances from the input down by the same amount, and
/// moves the elements with the least gradients for it, a `fraction` of them at a time, none of them further than
/// `max_distance` from the straight path.
///
/// **Shapes.** The attribution has the shape of the tensor, batch axis included.
///
/// **Units.** Target units: they add up to `F(x) - F(b)`, and
/// [`Attribution::completeness`](crate::Attribution::completeness) says how well.
///
/// **Known criticism.** The path depends on the network's inside, so that networks that compute the same may get different
/// attributions.
///
/// **Source.** Kapishnikov et al. 2021, "Guided integrated gradients: an adaptive path method for removing noise",
/// algorithm 1.
///
/// ```
/// use ouzel::{GuidedIg, Method};
/// let method = GuidedIg::default().steps(100).max_distance(1.0);
/// assert_eq!(method.entry().name, "guided_ig");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GuidedIg {
    /// How many steps the path has.
    pub steps: usize,
    /// The share of the elements that move at a time.
    pub fraction: f64,
    /// How far an element may be from the straight path, as a share of its way.
    pub max_distance: f64,
    /// What the input is compared with; the mean over several.
    pub baselines: Vec<Baseline>,
    /// How far the sum may be from the difference of the target, as a share of it.
    pub tolerance: f64,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for GuidedIg {
    fn default() -> Self {
        Self {
            steps: 50,
            fraction: 0.25,
            max_distance: 0.02,
            baselines: vec![Baseline::Constant(0.0)],
            tolerance: 0.05,
            settings: Settings::default(),
        }
    }
}

impl GuidedIg {
    /// How many steps the path has.
    #[must_use]
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// The share of the elements that move at a time.
    #[must_use]
    pub fn fraction(mut self, fraction: f64) -> Self {
        self.fraction = fraction;
        self
    }

    /// How far an element may be from the straight path, as a share of its way.
    #[must_use]
    pub fn max_distance(mut self, distance: f64) -> Self {
        self.max_distance = distance;
        self
    }

    /// What the input is compared with, instead of zeros.
    #[must_use]
    pub fn baseline(mut self, baseline: Baseline) -> Self {
        self.baselines = vec![baseline];
        self
    }
}

impl Method for GuidedIg {
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
        // Each step needs the gradient where the last one led.
        let combine = Box::new(Guided(self.clone()));
        VariantExplainer::boxed(task, &gradient(&self.settings), Varied::Explained, 1, combine)
    }
}

/// What is done with each sample.
#[derive(Debug)]
struct Guided(GuidedIg);

impl Combine for Guided {
    fn combine(&self, sample: &mut VariedSample<'_>) -> Result<Combined> {
        let GuidedIg { steps, tolerance, .. } = self.0;
        let starts = path::starts(&self.0.baselines, sample, 1)?;
        let input = sample.value.clone();
        let share = 1.0 / starts.len() as f64;
        let mut raw = ArrayD::zeros(input.raw_dim());
        let mut at_starts = sample.scores.as_ref().map(|scores| vec![0.0; scores.len()]);
        sample.expect(starts.len() * steps);
        for start in &starts {
            let mut x = start.clone();
            for step in 0..steps {
                let mut found = None;
                sample.explain(1, &|_| x.clone(), &mut |_, gradient, scores| {
                    found = Some((gradient, scores));
                })?;
                let Some((gradient, scores)) = found else { bail!(internal, "no variant was explained") };
                if step == 0 {
                    path::accumulate(&mut at_starts, scores.as_ref(), share);
                }
                let before = x.clone();
                // Each sample goes its own way, also where several are run together.
                for (row, mut x) in x.axis_iter_mut(Axis(0)).enumerate() {
                    let of = |array: &ArrayD<f64>| -> Vec<f64> {
                        array.index_axis(Axis(0), row).iter().copied().collect()
                    };
                    let mut moved = of(&before);
                    self.0.advance(&mut moved, &of(start), &of(&input), &of(&gradient), step);
                    x.iter_mut().zip(moved).for_each(|(value, moved)| *value = moved);
                }
                ndarray::Zip::from(&mut raw).and(&gradient).and(&x).and(&before).for_each(
                    |sum: &mut f64, gradient, after, before| *sum += share * gradient * (after - before),
                );
            }
        }
        let differences = path::differences(sample.scores.as_ref(), at_starts.as_ref());
        let completeness = path::completeness(&raw, differences, tolerance);
        Ok(Combined { raw, has_channels: true, completeness, steps: Some(steps) })
    }
}

impl GuidedIg {
    /// Moves `x` on the way from `start` to `input`, until the sum of the distances from the input is what it has to be after
    /// this step.
    fn advance(&self, x: &mut [f64], start: &[f64], input: &[f64], gradient: &[f64], step: usize) {
        let distance = |x: &[f64]| x.iter().zip(input).map(|(x, input)| (x - input).abs()).sum::<f64>();
        let whole = distance(start);
        if whole == 0.0 {
            return;
        }
        let share = (step + 1) as f64 / self.steps as f64;
        let wanted = whole * (1.0 - share);
        let (least, most) = ((share - self.max_distance).max(0.0), (share + self.max_distance).min(1.0));
        let at = |element: usize, share: f64| start[element] + share * (input[element] - start[element]);
        // Those that stayed behind are brought within reach, whatever their gradient.
        let mut free: Vec<usize> = Vec::with_capacity(x.len());
        for element in 0..x.len() {
            let way = input[element] - start[element];
            if way == 0.0 {
                continue;
            }
            if (x[element] - start[element]) / way < least {
                x[element] = at(element, least);
            }
            if (x[element] - at(element, most)).abs() > 0.0 && (x[element] - start[element]) / way < most {
                free.push(element);
            }
        }
        free.sort_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()));
        // The share is one of all elements; those that cannot move count among the largest gradients.
        let place = (self.fraction * (x.len() - 1) as f64).floor() as usize;
        let mut free = &free[..];
        loop {
            let left = distance(x) - wanted;
            if left <= 1e-9 * whole.max(1e-9) || free.is_empty() {
                return;
            }
            let limit = gradient[free[place.min(free.len() - 1)]].abs();
            let count = free.partition_point(|&element| gradient[element].abs() <= limit);
            let (moving, rest) = free.split_at(count);
            let reach: f64 = moving.iter().map(|&element| (at(element, most) - x[element]).abs()).sum();
            let part = if reach > left { left / reach } else { 1.0 };
            for &element in moving {
                x[element] += part * (at(element, most) - x[element]);
            }
            if part < 1.0 {
                return;
            }
            free = rest;
        }
    }
}
