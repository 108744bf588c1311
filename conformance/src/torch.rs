//! Captum, zennit and PAIR saliency: calls on PyTorch networks, explaining one logit.
//!
//! Captum's `GuidedBackprop` and `Deconvolution` and zennit's `GuidedBackprop` and `DeconvNet` hook modules of the
//! class `torch.nn.ReLU`, which ReLU6, SiLU and Hardswish are not: the same nodes as Ouzel's default, the Relu op.
//! zennit's canonizers merge batch normalization into convolutions, which changes no value, and replace the addition of
//! a residual network by a module that these two composites have no rule for.

use crate::checks::{Checks, Tolerance};
use crate::folder::Folder;
use anyhow::{Context, Result};
use ndarray::{ArrayD, Axis};
use ouzel::losses::{ActivationMaximization, WeightedLoss};
use ouzel::rules::deeplift::Maxima;
use ouzel::rules::{BackpropModifier, InputBounds, Matcher, Outcome, Preset, RuleSet, Start, rule};
use ouzel::{
    Attribution, Baseline, Completeness, DeepLift, InputXGradient, Lrp, Method, Precision, Saliency,
    visualize_saliency,
};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
struct Arguments {
    /// Captum's `abs`.
    #[serde(default)]
    abs: bool,
    /// The baseline of Captum's `DeepLift`: zeros, or a file.
    baseline: Option<String>,
    /// The layer of Captum's `LayerActivation` and `LayerGradientXActivation`.
    layer_tensor: Option<String>,
    /// What zennit rewrites first.
    canonizer: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Call {
    arguments: Arguments,
    input: String,
    target_output: String,
    target_index: usize,
    result: String,
    gradient_float64: Option<String>,
    tolerance: Tolerance,
}

impl Call {
    fn repeat(&self, folder: &Folder, options: &Saliency) -> Result<Attribution> {
        let input = folder.input(&self.input)?;
        let target = self.target_output.as_str();
        let map = visualize_saliency(folder.model(), target, self.target_index, &input, options)?;
        Ok(map.attribution)
    }

    /// The target's attribution by any method.
    fn explain(&self, folder: &Folder, method: &dyn Method) -> Result<Attribution> {
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

/// Captum's `Saliency`: the gradient, or its absolute value.
pub(crate) fn captum_saliency(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let mut checks = Checks::default();
    let mut gradient = call.repeat(folder, &Saliency::default())?.raw.to_f64();
    if call.arguments.abs {
        gradient.mapv_inplace(f64::abs);
    }
    call.compare(folder, &mut checks, &gradient)?;
    if let Some(file) = &call.gradient_float64 {
        let exact = call.repeat(folder, &Saliency::default().precision(Precision::F64))?.raw.to_f64();
        checks.relative("float64 gradient", &exact, &folder.array(file)?, folder.float64_limit());
    }
    Ok(checks)
}

/// Captum's `InputXGradient` and `LayerGradientXActivation`.
pub(crate) fn captum_input_x_gradient(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let mut method = InputXGradient::default();
    if let Some(layer) = &call.arguments.layer_tensor {
        method = method.wrt_tensor(layer.as_str());
    }
    let mut checks = Checks::default();
    let attribution = call.explain(folder, &method)?;
    call.compare(folder, &mut checks, &attribution.raw.to_f64())?;
    Ok(checks)
}

/// Captum's `LayerActivation`: the values of a layer.
pub(crate) fn captum_layer_activation(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let layer = call.arguments.layer_tensor.as_deref().context("the case names no layer")?;
    let (model, input) = (folder.model(), folder.input(&call.input)?);
    let values = model.run(&input, &[model.find(layer)?], Precision::F32)?;
    let mut checks = Checks::default();
    call.compare(folder, &mut checks, &values[0].to_f64())?;
    Ok(checks)
}

/// `GuidedBackprop`.
pub(crate) fn guided(folder: &Folder, case: &Value) -> Result<Checks> {
    modified(folder, case, BackpropModifier::guided())
}

/// `Deconvolution`, `DeconvNet`.
pub(crate) fn rectified(folder: &Folder, case: &Value) -> Result<Checks> {
    modified(folder, case, BackpropModifier::rectified())
}

fn modified(folder: &Folder, case: &Value, modifier: BackpropModifier) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let mut checks = Checks::default();
    let attribution = call.repeat(folder, &Saliency::default().backprop_modifier(modifier))?;
    call.compare(folder, &mut checks, &attribution.raw.to_f64())?;
    Ok(checks)
}

/// PAIR saliency's `GradientSaliency.GetMask`: the gradient of one sample, channels last.
pub(crate) fn pair_gradient(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let mut checks = Checks::default();
    let gradient = call.repeat(folder, &Saliency::default())?.raw.to_f64();
    let mask = gradient.index_axis_move(Axis(0), 0).permuted_axes(vec![1, 2, 0]);
    call.compare(folder, &mut checks, &mask)?;
    Ok(checks)
}

/// Captum's `LRP`: epsilon on every layer, from the target's value on.
pub(crate) fn captum_lrp(folder: &Folder, case: &Value) -> Result<Checks> {
    relevance(folder, case, Lrp::new(Preset::named("epsilon")?))
}

/// zennit's `BetaSmooth`.
///
/// Its canonizer for residual networks runs a block as torchvision's `BasicBlock` does, which calls one ReLU module twice,
/// also where the network has a module for each. The hook keeps the input of the last call, so that the gradient of the
/// first has the slope that belongs to the second. Nothing else in the peer looks at a module's stored input and meets
/// such a module.
pub(crate) fn beta_smooth(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let is_called_twice = call.arguments.canonizer.as_deref().is_some_and(|it| it.starts_with("ResNet"));
    if !is_called_twice {
        return relevance(folder, case, Lrp::new(Preset::named("beta_smooth")?));
    }
    let slope_of_last_call = rule("slope of the last call", |back| {
        let block = back.name().strip_suffix("/relu/Relu");
        let last = block.and_then(|block| {
            let graph = back.builder().graph();
            let input = format!("{block}/Add_output_0");
            graph.values().find(|(_, value)| *value.name == *input).map(|(id, _)| id)
        });
        let input = last.map_or(back.x(0), |id| back.builder().var(id));
        Ok(Outcome::Applied(back.only_first(back.g(0) * (input * 10.0).sigmoid())))
    });
    let rules = RuleSet::new().with(Matcher::op("Relu"), slope_of_last_call);
    modified(folder, case, BackpropModifier::custom("slope of the last call", rules))
}

/// A composite of zennit: from 1 on, for pixels between 0 and 1.
pub(crate) fn zennit(folder: &Folder, case: &Value, preset: &str) -> Result<Checks> {
    let method = Lrp::new(Preset::named(preset)?).start(Start::One).input_bounds(InputBounds::new(0.0, 1.0));
    relevance(folder, case, method)
}

fn relevance(folder: &Folder, case: &Value, method: Lrp) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let mut checks = Checks::default();
    let attribution = call.explain(folder, &method)?;
    call.compare(folder, &mut checks, &attribution.raw.to_f64())?;
    Ok(checks)
}

/// The formulas of AttnLRP, in NumPy.
pub(crate) fn attention(folder: &Folder, case: &Value) -> Result<Checks> {
    transformer(folder, case, "attnlrp")
}

/// The formulas of conservative propagation, in NumPy.
pub(crate) fn conservative(folder: &Folder, case: &Value) -> Result<Checks> {
    transformer(folder, case, "cp_lrp")
}

fn transformer(folder: &Folder, case: &Value, preset: &str) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let mut checks = Checks::default();
    for precision in [Precision::F32, Precision::F64] {
        let attribution = call.explain(folder, &Lrp::new(Preset::named(preset)?).precision(precision))?;
        checks.equal("adds up", attribution.completeness.as_ref().is_some_and(Completeness::holds), true);
        call.compare(folder, &mut checks, &attribution.raw.to_f64())?;
    }
    Ok(checks)
}

/// Captum's `DeepLift`, whose rule for max pooling has no effect; ours adds up.
pub(crate) fn deep_lift(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let mut method = DeepLift::default();
    if let Some(file) = call.arguments.baseline.as_deref().filter(|name| *name != "zeros") {
        method = method.baseline(Baseline::Array(folder.array(file)?.into()));
    }
    let mut checks = Checks::default();
    let complete = call.explain(folder, &method)?.completeness;
    let adds_up = complete.is_some_and(|it| it.relative_gaps().iter().all(|&gap| gap < 1e-4));
    checks.equal("adds up", adds_up, true);
    let attribution = call.explain(folder, &method.maxima(Maxima::Gradient))?;
    call.compare(folder, &mut checks, &attribution.raw.to_f64())?;
    Ok(checks)
}

/// The package `deeplift`, by the authors of the method: Rescale.
pub(crate) fn rescale(folder: &Folder, case: &Value) -> Result<Checks> {
    differences(folder, case, DeepLift::default())
}

/// The same with RevealCancel.
pub(crate) fn reveal_cancel(folder: &Folder, case: &Value) -> Result<Checks> {
    differences(folder, case, DeepLift::default().reveal_cancel(true))
}

fn differences(folder: &Folder, case: &Value, mut method: DeepLift) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    if let Some(file) = call.arguments.baseline.as_deref().filter(|name| *name != "zeros") {
        method = method.baseline(Baseline::Array(folder.array(file)?.into()));
    }
    let mut checks = Checks::default();
    for precision in [Precision::F32, Precision::F64] {
        let attribution = call.explain(folder, &method.clone().precision(precision))?;
        call.compare(folder, &mut checks, &attribution.raw.to_f64())?;
    }
    Ok(checks)
}
