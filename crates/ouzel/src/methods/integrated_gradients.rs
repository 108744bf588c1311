//! Integrated gradients: the gradient averaged over the way from a baseline to the input, times that way.

use super::path::{self, BASELINE, Baseline, STEPS, TOLERANCE};
use crate::builder::Var;
use crate::error::{Result, bail};
use crate::explanation::{
    Combine, Combined, Explainer, ExplanationGraph, Method, Settings, Task, There, VariantExplainer,
    VariantMethod, Varied, VariedSample, Varying,
};
use crate::graph::{Fact, Source, ValueId};
use crate::losses::WeightedLoss;
use crate::methods::MethodEntry;
use crate::methods::saliency::Saliency;
use crate::model::Model;
use crate::options::{GRAD_MODIFIER, KEEPDIMS, MethodOption, OptionKind, Options, WRT, WRT_CHANNEL_AXIS};
use crate::tensor::Tensor;
use ndarray::{ArrayD, Zip};

/// How the points of the path are chosen.
const QUADRATURE: MethodOption = MethodOption::new(
    "quadrature",
    OptionKind::Name(|| Quadrature::names().collect()),
    "NAME",
    "midpoint",
    "where on the path the gradient is taken, and with which weights: midpoint, trapezoid, left, right, gauss_legendre",
);

/// How many points there are.
const AUTO_STEPS: MethodOption = MethodOption::new(
    STEPS.name,
    STEPS.kind,
    "N|auto",
    STEPS.default,
    "how many points of the path are evaluated; auto doubles them until the attributions add up (integrated_gradients)",
);

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "integrated_gradients",
    about: "how much each element contributes to the change of the target on the straight way from a baseline to the input",
    unit: "units of the target; they add up to its difference between input and baseline",
    cost: "1 forward pass, and a forward and a backward pass for each step and baseline",
    source: "Sundararajan, Taly and Yan 2017, Axiomatic attribution for deep networks",
    criticism: "what is shown depends on the baseline: an element that equals it gets nothing; on the way the network sees \
                inputs that it was not trained on (Sturmfels et al. 2020)",
    options: &[GRAD_MODIFIER, WRT, WRT_CHANNEL_AXIS, KEEPDIMS, AUTO_STEPS, QUADRATURE, BASELINE, TOLERANCE],
    new: |options| Ok(Box::new(IntegratedGradients::from_options(options)?)),
};

/// Where on the path from 0 to 1 the gradient is taken, and with which weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quadrature {
    /// The middles of equal parts: of all rules with equal weights the one that is best at kinks, of which ReLUs make many.
    #[default]
    Midpoint,
    /// The ends of equal parts, the first and last point with half the weight.
    Trapezoid,
    /// The beginnings of equal parts.
    Left,
    /// The ends of equal parts.
    Right,
    /// The points and weights of Gauss and Legendre: best where the target is smooth.
    GaussLegendre,
    /// The trapezoid of Captum: `n` points with both ends, weights `1/n`, half of that at the ends; they add up to `(n-1)/n`.
    CaptumTrapezoid,
    /// The rule of PAIR saliency: `n` points with both ends, all with the weight `1/n`.
    BothEnds,
}

/// The rules that can be named; the last two are those of profiles.
const QUADRATURES: [(&str, Quadrature); 5] = [
    ("midpoint", Quadrature::Midpoint),
    ("trapezoid", Quadrature::Trapezoid),
    ("left", Quadrature::Left),
    ("right", Quadrature::Right),
    ("gauss_legendre", Quadrature::GaussLegendre),
];

impl Quadrature {
    /// The names of the rules.
    pub fn names() -> impl Iterator<Item = &'static str> {
        QUADRATURES.iter().map(|(name, _)| *name)
    }

    /// Points and weights for so many steps.
    fn points(self, steps: usize) -> Vec<(f64, f64)> {
        let n = steps as f64;
        let equal = |shift: f64| (0..steps).map(|step| ((step as f64 + shift) / n, 1.0 / n)).collect();
        let both_ends = |end: f64| {
            let at = |step: usize| if steps == 1 { 0.0 } else { step as f64 / (n - 1.0) };
            let weight = |step: usize| if step == 0 || step + 1 == steps { end } else { 1.0 };
            (0..steps).map(|step| (at(step), weight(step) / n)).collect::<Vec<_>>()
        };
        match self {
            Self::Midpoint => equal(0.5),
            Self::Left => equal(0.0),
            Self::Right => equal(1.0),
            Self::Trapezoid if steps == 1 => equal(0.5),
            Self::Trapezoid => {
                let scale = n / (n - 1.0);
                both_ends(0.5).into_iter().map(|(point, weight)| (point, weight * scale)).collect()
            }
            Self::CaptumTrapezoid => both_ends(0.5),
            Self::BothEnds => both_ends(1.0),
            Self::GaussLegendre => gauss_legendre(steps),
        }
    }
}

/// The points and weights of Gauss and Legendre on 0…1: the roots of a Legendre polynomial, found by Newton's method.
fn gauss_legendre(count: usize) -> Vec<(f64, f64)> {
    let n = count as f64;
    // The polynomial and its derivative.
    let legendre = |x: f64| {
        let (mut before, mut now) = (1.0, x);
        for degree in 2..=count {
            let k = degree as f64;
            (before, now) = (now, ((2.0 * k - 1.0) * x * now - (k - 1.0) * before) / k);
        }
        (now, n * (x * now - before) / (x * x - 1.0))
    };
    if count == 1 {
        return vec![(0.5, 1.0)];
    }
    let root = |index: usize| {
        let mut x = -((index as f64 + 0.75) / (n + 0.5) * std::f64::consts::PI).cos();
        for _ in 0..100 {
            let (value, slope) = legendre(x);
            x -= value / slope;
            if (value / slope).abs() < 1e-16 {
                break;
            }
        }
        let slope = legendre(x).1;
        (0.5 * (1.0 + x), 1.0 / ((1.0 - x * x) * slope * slope))
    };
    (0..count).map(root).collect()
}

/// How many points of the path are evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steps {
    /// So many.
    Fixed(usize),
    /// Twice as many again and again, from 16 on, until the attributions add up within the tolerance, and at most 1024.
    Auto,
}

const AUTO: std::ops::RangeInclusive<usize> = 16..=1024;

impl Steps {
    fn named(options: &Options, default: usize) -> Result<Self> {
        match options.text(STEPS.name)? {
            Some(text) if text.eq_ignore_ascii_case("auto") => Ok(Self::Auto),
            _ => Ok(Self::Fixed(options.count(STEPS.name, default)?)),
        }
    }
}

/// The gradient averaged over the straight way from a baseline to the input, times that way.
///
/// **Formula.** `(x - b) · ∫₀¹ ∂F/∂x (b + α (x - b)) dα`, the integral by a [`Quadrature`]; the mean over several baselines
/// `b`. For an inner tensor ([`Settings::wrt_tensor`]) `x` and `b` are its values for the input and for the baselines, and
/// the network behind it is followed along the straight line between them.
///
/// **Shapes.** The attribution has the shape of the tensor, batch axis included.
///
/// **Units.** Target units: they add up to `F(x) - F(b)` up to the error of the quadrature, which
/// [`Attribution::completeness`](crate::Attribution::completeness) states and judges. A single baseline and 20 to 300 steps
/// are usual; 5 % is the gap that the paper speaks of.
///
/// **Known criticism.** Elements that equal the baseline get nothing, so the choice of the baseline shows (Sturmfels et al.
/// 2020).
///
/// **Source.** Sundararajan, Taly and Yan 2017, "Axiomatic attribution for deep networks".
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{IntegratedGradients, Method, Model};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let attribution = IntegratedGradients::default().attribute(&model, &losses, &picture.into())?;
/// let sums = attribution.completeness.expect("integrated gradients add up");
/// assert!((sums.found[0] - attribution.raw.to_f64().sum()).abs() < 1e-3);
/// println!("a gap of {} %", 100.0 * sums.relative_gaps()[0]);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct IntegratedGradients {
    /// How many points of the path are evaluated.
    pub steps: Steps,
    /// Which points, and with which weights.
    pub quadrature: Quadrature,
    /// What the input is compared with.
    pub baselines: Vec<Baseline>,
    /// False for the mean gradient alone, as Captum's `multiply_by_inputs`.
    pub multiply_by_inputs: bool,
    /// How far the sum may be from the difference of the target, as a share of it.
    pub tolerance: f64,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for IntegratedGradients {
    fn default() -> Self {
        Self {
            steps: Steps::Fixed(50),
            quadrature: Quadrature::Midpoint,
            baselines: vec![Baseline::Constant(0.0)],
            multiply_by_inputs: true,
            tolerance: 0.05,
            settings: Settings::default(),
        }
    }
}

impl IntegratedGradients {
    fn from_options(options: &Options) -> Result<Self> {
        let (steps, quadrature) = match options.profile() {
            "captum" => (50, Quadrature::GaussLegendre),
            "pair" => (25, Quadrature::BothEnds),
            "zennit" => (20, Quadrature::Right),
            _ => (50, Quadrature::Midpoint),
        };
        let named = options.text(QUADRATURE.name)?.map(|name| name.replace('-', "_").to_ascii_lowercase());
        let known = |name: &String| QUADRATURES.iter().find(|(known, _)| known == name).map(|(_, it)| *it);
        let quadrature = match (&named, named.as_ref().map(known)) {
            (_, Some(Some(Quadrature::Trapezoid))) if options.profile() == "captum" => {
                Quadrature::CaptumTrapezoid
            }
            (_, Some(Some(quadrature))) => quadrature,
            (Some(name), _) => {
                let names: Vec<&str> = Quadrature::names().collect();
                bail!(option, "unknown quadrature '{name}': expected one of {}", names.join(", "))
            }
            (None, _) => quadrature,
        };
        let default = Self::default();
        Ok(Self {
            steps: Steps::named(options, steps)?,
            quadrature,
            baselines: Baseline::list(options, &default.baselines)?,
            tolerance: path::tolerance(options)?,
            settings: options.settings(default.settings.grad_modifier)?,
            ..Self::default()
        })
    }

    /// How many points of the path are evaluated.
    #[must_use]
    pub fn steps(mut self, steps: usize) -> Self {
        self.steps = Steps::Fixed(steps);
        self
    }

    /// Which points of the path, and with which weights.
    #[must_use]
    pub fn quadrature(mut self, quadrature: Quadrature) -> Self {
        self.quadrature = quadrature;
        self
    }

    /// What the input is compared with, instead of zeros.
    #[must_use]
    pub fn baseline(mut self, baseline: Baseline) -> Self {
        self.baselines = vec![baseline];
        self
    }
}

impl Method for IntegratedGradients {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn as_variants(&self) -> Option<&dyn VariantMethod> {
        Some(self)
    }

    fn prepare(&self, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        let integral = Integral::new(self);
        let variants = integral.variants();
        VariantExplainer::boxed(
            task,
            &gradient(&self.settings),
            Varied::Explained,
            variants,
            Box::new(integral),
        )
    }
}

impl IntegratedGradients {
    /// Where the path of each variant begins.
    fn start<'b>(sample: &Varying<'b>) -> Var<'b> {
        match sample.differences.get(2) {
            Some(&number) => sample.shared[0].gathered(number),
            None => sample.shared[0],
        }
    }
}

impl VariantMethod for IntegratedGradients {
    fn inner(&self, model: &Model, losses: &[WeightedLoss]) -> Result<ExplanationGraph> {
        ExplanationGraph::new(model, losses, &gradient(&self.settings))
    }

    fn varied(&self, model: &Model) -> Result<Option<ValueId>> {
        let explained = self.settings.explained(model)?;
        Ok((!matches!(model.graph().value(explained).source, Source::Input)).then_some(explained))
    }

    fn differences(&self, input: &Fact) -> Result<Vec<Tensor>> {
        let steps = match self.steps {
            Steps::Fixed(0) => bail!(option, "steps 0: expected 1 or more"),
            Steps::Fixed(steps) => steps,
            Steps::Auto => bail!(
                unsupported,
                "steps auto: how many there are follows from what comes out, and a file has a fixed number; expected one"
            ),
        };
        let starts: usize = self.baselines.iter().map(|baseline| baseline.count(input.rank())).sum();
        if starts == 0 {
            bail!(option, "there is no baseline");
        }
        let points = self.quadrature.points(steps);
        let each = |number: &dyn Fn(&(f64, f64)) -> f64| {
            let numbers: Vec<f64> = (0..starts).flat_map(|_| points.iter().map(number)).collect();
            Tensor::vector(numbers).cast(input.dtype)
        };
        let mut differences = vec![each(&|(_, weight)| weight / starts as f64), each(&|(point, _)| *point)];
        if starts > 1 {
            let numbers = (0..starts as i64).flat_map(|start| vec![start; points.len()]);
            differences.push(Tensor::vector(numbers.collect::<Vec<i64>>()));
        }
        Ok(differences)
    }

    fn shared<'b>(&self, sample: &Varying<'b>, there: &There<'_, 'b>) -> Result<Vec<Var<'b>>> {
        let mut starts = Vec::new();
        for baseline in &self.baselines {
            starts.extend(baseline.nodes(sample, self.settings.seed)?);
        }
        if let [start] = starts[..] {
            return Ok(vec![there(start)?]);
        }
        let mut alike = Vec::new();
        for start in starts {
            alike.push(there(start.expand_like(sample.x))?.unsqueeze([0]));
        }
        Ok(vec![sample.x.builder().concat(&alike, 0)])
    }

    fn vary<'b>(&self, sample: &Varying<'b>) -> Var<'b> {
        let start = Self::start(sample);
        let way = (sample.x - start).unsqueeze(if sample.differences.len() > 2 { None } else { Some(0) });
        way * sample.number(1, way) + start
    }

    fn summands<'b>(&self, attribution: Var<'b>, sample: &Varying<'b>) -> Vec<Var<'b>> {
        match self.multiply_by_inputs {
            true => vec![attribution * (sample.x - Self::start(sample))],
            false => vec![attribution],
        }
    }

    fn total<'b>(&self, sums: &[Var<'b>]) -> Var<'b> {
        sums[0]
    }
}

/// The method whose attributions are integrated.
pub(super) fn gradient(settings: &Settings) -> Saliency {
    Saliency { settings: settings.clone(), ..Saliency::default() }
}

/// What is done with each sample.
#[derive(Clone, Debug)]
pub(super) struct Integral {
    steps: Steps,
    quadrature: Quadrature,
    baselines: Vec<Baseline>,
    multiply_by_inputs: bool,
    tolerance: f64,
}

impl Integral {
    pub(super) fn new(method: &IntegratedGradients) -> Self {
        let IntegratedGradients { steps, quadrature, multiply_by_inputs, tolerance, .. } = *method;
        Self { steps, quadrature, baselines: method.baselines.clone(), multiply_by_inputs, tolerance }
    }

    /// How many variants a sample has, or begins with.
    pub(super) fn variants(&self) -> usize {
        match self.steps {
            Steps::Fixed(steps) => steps + 1,
            Steps::Auto => *AUTO.start() + 1,
        }
    }

    /// The attribution with so many steps.
    fn with_steps(
        &self,
        sample: &mut VariedSample<'_>,
        starts: &[ArrayD<f64>],
        steps: usize,
    ) -> Result<Combined> {
        let x = sample.value.clone();
        let mut points = self.quadrature.points(steps);
        // What the target is at the baseline has to be known.
        if points[0].0 != 0.0 {
            points.insert(0, (0.0, 0.0));
        }
        let count = points.len();
        let variant = |number: usize| {
            let (start, (alpha, _)) = (&starts[number / count], points[number % count]);
            let mut between = start.clone();
            Zip::from(&mut between).and(&x).for_each(|value, x| *value += alpha * (x - *value));
            between
        };
        let mut raw = ArrayD::zeros(x.raw_dim());
        let mut mean = ArrayD::zeros(x.raw_dim());
        let mut attributed = ArrayD::zeros(x.raw_dim());
        let mut at_starts = sample.scores.as_ref().map(|scores| vec![0.0; scores.len()]);
        let share = 1.0 / starts.len() as f64;
        let mut each = |number: usize, gradient: ArrayD<f64>, scores: Option<Vec<f64>>| {
            let (start, (_, weight)) = (&starts[number / count], points[number % count]);
            if number.is_multiple_of(count) {
                path::accumulate(&mut at_starts, scores.as_ref(), share);
            }
            mean.scaled_add(weight, &gradient);
            if (number + 1).is_multiple_of(count) {
                Zip::from(&mut attributed)
                    .and(&mean)
                    .and(&x)
                    .and(start)
                    .for_each(|sum: &mut f64, mean: &f64, x, start| *sum += share * mean * (x - start));
                raw.scaled_add(share, &mean);
                mean.fill(0.0);
            }
        };
        let variants = starts.len() * count;
        sample.expect(variants);
        sample.explain(variants, &variant, &mut each)?;
        let differences = path::differences(sample.scores.as_ref(), at_starts.as_ref());
        let completeness = path::completeness(&attributed, differences, self.tolerance);
        let raw = if self.multiply_by_inputs { attributed } else { raw };
        Ok(Combined { raw, has_channels: true, completeness, steps: Some(steps) })
    }
}

impl Combine for Integral {
    fn combine(&self, sample: &mut VariedSample<'_>) -> Result<Combined> {
        let starts = path::starts(&self.baselines, sample, 1)?;
        let mut steps = match self.steps {
            Steps::Fixed(0) => bail!(option, "steps 0: expected 1 or more"),
            Steps::Fixed(steps) => return self.with_steps(sample, &starts, steps),
            Steps::Auto => *AUTO.start(),
        };
        loop {
            let combined = self.with_steps(sample, &starts, steps)?;
            if combined.completeness.as_ref().is_none_or(|sums| sums.holds()) || steps >= *AUTO.end() {
                return Ok(combined);
            }
            steps *= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_exact_for_what_they_are_exact_for() {
        let integral = |rule: Quadrature, steps: usize, power: i32| -> f64 {
            rule.points(steps).iter().map(|(point, weight)| weight * point.powi(power)).sum()
        };
        for steps in [1, 2, 3, 20, 50] {
            for rule in [
                Quadrature::Midpoint,
                Quadrature::Trapezoid,
                Quadrature::Left,
                Quadrature::Right,
                Quadrature::GaussLegendre,
            ] {
                assert!((integral(rule, steps, 0) - 1.0).abs() < 1e-12, "{rule:?} {steps}");
            }
            for rule in [Quadrature::Midpoint, Quadrature::Trapezoid, Quadrature::GaussLegendre] {
                assert!((integral(rule, steps, 1) - 0.5).abs() < 1e-12, "{rule:?} {steps}");
            }
            for power in 2..(2 * steps as i32).min(30) {
                let exact = 1.0 / f64::from(power + 1);
                assert!(
                    (integral(Quadrature::GaussLegendre, steps, power) - exact).abs() < 1e-12,
                    "{steps} {power}"
                );
            }
        }
        // The errors that a kink or slope of one half leaves.
        assert!((integral(Quadrature::Left, 50, 1) - 0.49).abs() < 1e-12);
        assert!((integral(Quadrature::Right, 50, 1) - 0.51).abs() < 1e-12);
        assert!((integral(Quadrature::CaptumTrapezoid, 50, 0) - 0.98).abs() < 1e-12);
        assert!((integral(Quadrature::BothEnds, 25, 0) - 1.0).abs() < 1e-12);
    }
}
