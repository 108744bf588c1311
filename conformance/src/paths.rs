//! Calls that run a network on many variants of its input: noise, paths, and what is made of them.
//!
//! Noise is replayed from the data. PAIR saliency explains one sample at a time, channels last.

use crate::checks::{Checks, Limits, Tolerance};
use crate::folder::Folder;
use crate::keras::{Target, grad_modifier};
use anyhow::{Context, Result, bail};
use ndarray::{Array2, ArrayD, Axis, Ix2};
use ouzel::losses::{ActivationMaximization, WeightedLoss};
use ouzel::{
    Attribution, Baseline, BlurIg, BlurPath, GuidedIg, IntegratedGradients, Method, Noise, Precision,
    Quadrature, Ranking, Saliency, Smoothing, Tensor, Xrai, xrai_regions,
};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
struct Call {
    arguments: Value,
    input: String,
    target_output: String,
    target_index: usize,
    result: String,
    noise: Option<String>,
    segments: Option<String>,
    base_attribution: Option<String>,
    convergence_delta: Option<Vec<f64>>,
    tolerance: Tolerance,
}

impl Call {
    fn number(&self, name: &str) -> Result<f64> {
        self.arguments[name].as_f64().with_context(|| format!("the call has no number '{name}'"))
    }

    fn count(&self, name: &str) -> Result<usize> {
        Ok(self.number(name)? as usize)
    }

    fn text(&self, name: &str) -> &str {
        self.arguments[name].as_str().unwrap_or_default()
    }

    fn flag(&self, name: &str) -> Result<bool> {
        self.arguments[name].as_bool().with_context(|| format!("the call has no flag '{name}'"))
    }

    fn attribution(&self, folder: &Folder, method: &dyn Method) -> Result<Attribution> {
        let loss = ActivationMaximization::new(self.target_output.as_str(), self.target_index);
        let losses = [WeightedLoss::new(loss, -1.0)];
        Ok(method.attribute(folder.model(), &losses, &folder.input(&self.input)?)?)
    }

    fn compare(&self, folder: &Folder, checks: &mut Checks, ours: &ArrayD<f64>) -> Result<()> {
        let limits = self.tolerance.limits().context("the case has no elementwise tolerance")?;
        checks.close("result", ours, &folder.array(&self.result)?, limits);
        Ok(())
    }
}

/// One sample as PAIR saliency lays it out.
fn channels_last(attribution: &Attribution) -> ArrayD<f64> {
    attribution.raw.to_f64().index_axis_move(Axis(0), 0).permuted_axes(vec![1, 2, 0])
}

/// Captum's `NoiseTunnel` around `Saliency`.
pub(crate) fn noise_tunnel(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let made = match call.text("nt_type") {
        "smoothgrad" => Smoothing::smoothgrad(Saliency::default()),
        "smoothgrad_sq" => Smoothing::smoothgrad_squared(Saliency::default()),
        "vargrad" => Smoothing::vargrad(Saliency::default()),
        other => bail!("unknown kind of noise tunnel '{other}'"),
    };
    let noise = folder.array(call.noise.as_ref().context("the case has no noise")?)?;
    let attribution = call.attribution(folder, &made.noise(Noise::Array(Tensor::from(noise))))?;
    let mut checks = Checks::default();
    call.compare(folder, &mut checks, &attribution.raw.to_f64())?;
    Ok(checks)
}

/// PAIR saliency's `GetSmoothedMask`.
pub(crate) fn pair_smoothed(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let made = match call.flag("magnitude")? {
        true => Smoothing::smoothgrad_squared(Saliency::default()),
        false => Smoothing::smoothgrad(Saliency::default()),
    };
    let noise = folder.array(call.noise.as_ref().context("the case has no noise")?)?;
    let noise = noise.permuted_axes(vec![0, 3, 1, 2]).as_standard_layout().into_owned();
    let attribution = call.attribution(folder, &made.noise(Noise::Array(Tensor::from(noise))))?;
    let mut checks = Checks::default();
    call.compare(folder, &mut checks, &channels_last(&attribution))?;
    Ok(checks)
}

/// Captum's `IntegratedGradients` and `LayerIntegratedGradients`.
pub(crate) fn integrated_gradients(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let quadrature = match call.text("method") {
        "gausslegendre" => Quadrature::GaussLegendre,
        "riemann_left" => Quadrature::Left,
        "riemann_right" => Quadrature::Right,
        "riemann_middle" => Quadrature::Midpoint,
        "riemann_trapezoid" => Quadrature::CaptumTrapezoid,
        other => bail!("unknown quadrature '{other}'"),
    };
    let mut method = IntegratedGradients::default().steps(call.count("n_steps")?).quadrature(quadrature);
    if call.text("baseline") != "zeros" {
        method = method.baseline(Baseline::Array(folder.array(call.text("baseline"))?.into()));
    }
    if let Some(multiply) = call.arguments["multiply_by_inputs"].as_bool() {
        method.multiply_by_inputs = multiply;
    }
    if let Some(layer) = call.arguments["layer_tensor"].as_str() {
        method = method.wrt_tensor(layer);
    }
    // On a path of many points, one is near a tie that float32 may decide either way.
    let attribution = call.attribution(folder, &method.precision(Precision::F64))?;
    let mut checks = Checks::default();
    call.compare(folder, &mut checks, &attribution.raw.to_f64())?;
    if let (Some(theirs), Some(sums)) = (&call.convergence_delta, &attribution.completeness) {
        let array = |value: f64| ndarray::arr1(&[value]).into_dyn();
        let limits = Limits { atol: 1e-4 * sums.expected[0].abs().max(1.0), rtol: 0.0 };
        checks.close("convergence delta", &array(-sums.gaps()[0]), &array(theirs[0]), limits);
    }
    Ok(checks)
}

/// PAIR saliency's `IntegratedGradients.GetMask`.
pub(crate) fn pair_integrated_gradients(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let method =
        IntegratedGradients::default().steps(call.count("x_steps")?).quadrature(Quadrature::BothEnds);
    let mut checks = Checks::default();
    call.compare(folder, &mut checks, &channels_last(&call.attribution(folder, &method)?))?;
    Ok(checks)
}

/// PAIR saliency's `BlurIG.GetMask`.
pub(crate) fn blur_ig(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let path = BlurPath::Pair { grad_step: call.number("grad_step")?, sqrt: call.flag("sqrt")? };
    let method = BlurIg::pair().max_sigma(call.number("max_sigma")?).steps(call.count("steps")?).path(path);
    let mut checks = Checks::default();
    call.compare(folder, &mut checks, &channels_last(&call.attribution(folder, &method)?))?;
    Ok(checks)
}

/// PAIR saliency's `GuidedIG.GetMask`: which elements move hangs on the last digits of gradients.
pub(crate) fn guided_ig(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let method = GuidedIg::default()
        .steps(call.count("x_steps")?)
        .fraction(call.number("fraction")?)
        .max_distance(call.number("max_dist")?);
    let ours = channels_last(&call.attribution(folder, &method)?);
    let theirs = folder.array(&call.result)?;
    let mut checks = Checks::default();
    checks.correlated("result", &ours, &theirs, 0.99);
    let sum = |array: &ArrayD<f64>| ndarray::arr1(&[array.sum()]).into_dyn();
    let size: f64 = theirs.iter().map(|value| value.abs()).sum();
    let limits = Limits { atol: 1e-3 * size, rtol: 1e-2 };
    checks.close("sum of the attributions", &sum(&ours), &sum(&theirs), limits);
    Ok(checks)
}

/// PAIR saliency's `XRAI.GetMask`, with its own segments, or with ours, which its segmentation library's resemble.
pub(crate) fn xrai(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let algorithm = if call.text("algorithm") == "fast" { Ranking::Fast } else { Ranking::Full };
    let mut checks = Checks::default();
    match (&call.segments, &call.base_attribution) {
        (Some(segments), Some(base)) => {
            let base = folder.array(base)?.fold_axis(Axis(2), f64::NEG_INFINITY, |a, b| a.max(*b));
            let segments: Vec<Array2<bool>> = folder
                .array(segments)?
                .outer_iter()
                .map(|segment| Ok(segment.mapv(|value| value != 0.0).into_dimensionality::<Ix2>()?))
                .collect::<Result<_>>()?;
            let map = xrai_regions(base.into_dimensionality::<Ix2>()?.view(), &segments, algorithm)?;
            call.compare(folder, &mut checks, &map.into_dyn())?;
        }
        _ => {
            let mut method = Xrai::default();
            method.algorithm = algorithm;
            method.gradients.steps = ouzel::Steps::Fixed(call.count("steps")?);
            method.gradients.quadrature = Quadrature::BothEnds;
            let ours = call.attribution(folder, &method)?.raw.to_f64().index_axis_move(Axis(0), 0);
            let (ours, theirs) = (ranks(&ours), ranks(&folder.array(&call.result)?));
            checks.correlated("ranks of the result", &ours, &theirs, 0.8);
        }
    }
    Ok(checks)
}

/// The place of each element among all of them; equal ones share theirs.
fn ranks(values: &ArrayD<f64>) -> ArrayD<f64> {
    let mut sorted: Vec<f64> = values.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    values.mapv(|value| {
        let below = sorted.partition_point(|&other| other < value);
        let up_to = sorted.partition_point(|&other| other <= value);
        (below + up_to) as f64 / 2.0
    })
}

#[derive(Debug, Deserialize)]
struct TfArguments {
    gradient_modifier: Option<String>,
    keepdims: bool,
}

#[derive(Debug, Deserialize)]
struct TfCall {
    input: String,
    target: Target,
    arguments: TfArguments,
    noise: String,
    result: String,
    tolerance: Tolerance,
}

/// tf-keras-vis's `Saliency` with `smooth_samples`: the modifier comes before the mean.
pub(crate) fn tf_smoothgrad(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = TfCall::deserialize(case)?;
    let modifier = grad_modifier(call.arguments.gradient_modifier.as_deref())?;
    let noise = Noise::Array(Tensor::from(folder.array(&call.noise)?));
    let method = Smoothing::smoothgrad(Saliency::default()).noise(noise).modify_each(modifier);
    let loss = ActivationMaximization::new(call.target.onnx_tensor.as_str(), call.target.filters());
    let losses = [WeightedLoss::new(loss, -1.0)];
    let method = method.precision(Precision::F32Direct);
    let attribution = method.attribute(folder.model(), &losses, &folder.input(&call.input)?)?;
    let map = attribution.maps(&ouzel::GradModifier::None, call.arguments.keepdims)?;
    let limits = call.tolerance.limits().context("the case has no elementwise tolerance")?;
    let mut checks = Checks::default();
    checks.close("result", &map.mapv(f64::from), &folder.array(&call.result)?, limits);
    Ok(checks)
}
