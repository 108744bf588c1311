//! keras-vis and tf-keras-vis: calls on Keras networks, whose arrays are channels-last.

use crate::checks::{Checks, Limits, Tolerance, largest};
use crate::folder::Folder;
use anyhow::{Context, Result};
use ndarray::{ArrayD, Axis};
use ouzel::losses::{ActivationMaximization, LpNorm, TotalVariation, WeightedLoss};
use ouzel::rules::BackpropModifier;
use ouzel::{
    Filters, GradModifier, Method, Precision, Saliency, SaliencyMap, Tensor, visualize_saliency as explain,
    visualize_saliency_with_losses as explain_losses,
};
use serde::Deserialize;
use serde_json::Value;

/// How the ONNX tensor of a Keras layer is laid out.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
enum Layout {
    #[serde(rename = "NHWC")]
    ChannelsLast,
    #[serde(rename = "NCHW")]
    ChannelsFirst,
    #[serde(rename = "NC")]
    Features,
}

impl Layout {
    /// An array with batch and channel axes as Keras lays it out.
    fn to_keras(self, array: ArrayD<f64>) -> ArrayD<f64> {
        match self {
            Self::ChannelsFirst => {
                let axes: Vec<usize> = (0..array.ndim()).filter(|&axis| axis != 1).chain([1]).collect();
                array.permuted_axes(axes)
            }
            Self::ChannelsLast | Self::Features => array,
        }
    }
}

#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) onnx_tensor: String,
    filter_indices: Option<Vec<usize>>,
}

impl Target {
    pub(crate) fn filters(&self) -> Filters {
        filters(self.filter_indices.as_ref())
    }
}

/// keras-vis's None is the whole layer.
fn filters(indices: Option<&Vec<usize>>) -> Filters {
    indices.map_or(Filters::All, |indices| Filters::List(indices.clone()))
}

#[derive(Debug, Deserialize)]
struct WithRespectTo {
    layer: String,
    onnx_tensor: String,
    onnx_layout: Layout,
}

#[derive(Debug, Deserialize)]
struct Term {
    weight: f64,
    #[serde(flatten)]
    loss: Loss,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "loss")]
enum Loss {
    ActivationMaximization { onnx_tensor: String, filter_indices: Option<Vec<usize>> },
    LPNorm { p: Order },
    TotalVariation { beta: f64 },
}

/// The order of a norm: JSON has no infinity.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Order {
    Finite(f64),
    Named(String),
}

impl Term {
    fn weighted(&self) -> Result<WeightedLoss> {
        Ok(match &self.loss {
            Loss::ActivationMaximization { onnx_tensor, filter_indices } => {
                let loss =
                    ActivationMaximization::new(onnx_tensor.as_str(), filters(filter_indices.as_ref()));
                WeightedLoss::new(loss, self.weight)
            }
            Loss::LPNorm { p } => {
                let p = match p {
                    Order::Finite(p) => *p,
                    Order::Named(name) => name.parse().with_context(|| format!("the order '{name}'"))?,
                };
                WeightedLoss::new(LpNorm { p }, self.weight)
            }
            Loss::TotalVariation { beta } => WeightedLoss::new(TotalVariation { beta: *beta }, self.weight),
        })
    }
}

#[derive(Debug, Deserialize)]
struct LossValues {
    names: Vec<String>,
    values: Vec<f64>,
    overall: f64,
}

#[derive(Debug, Deserialize)]
struct Arguments {
    backprop_modifier: Option<String>,
    grad_modifier: Option<String>,
    keepdims: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Sensitivity {
    pub(crate) max_change_of_result: f64,
}

/// A call of keras-vis's `visualize_saliency` or `visualize_saliency_with_losses`.
#[derive(Debug, Deserialize)]
struct Call {
    input: String,
    target: Option<Target>,
    losses: Option<Vec<Term>>,
    weighted_loss_values: Option<LossValues>,
    arguments: Arguments,
    gradient_with_respect_to: WithRespectTo,
    raw_gradient: String,
    raw_gradient_float64: Option<String>,
    result: String,
    tolerance: Tolerance,
    rounding_sensitivity: Option<Sensitivity>,
}

impl Call {
    /// The same call of Ouzel.
    fn repeat(&self, folder: &Folder, precision: Precision) -> Result<SaliencyMap> {
        let mut options = Saliency::default()
            .backprop_modifier(backprop_modifier(self.arguments.backprop_modifier.as_deref())?)
            .grad_modifier(grad_modifier(self.arguments.grad_modifier.as_deref())?)
            .keep_dims(self.arguments.keepdims)
            .precision(precision);
        if self.gradient_with_respect_to.layer != "input" {
            options = options.wrt_tensor(self.gradient_with_respect_to.onnx_tensor.as_str());
        }
        let input = folder.input(&self.input)?;
        Ok(match (&self.losses, &self.target) {
            (Some(terms), _) => {
                let losses = terms.iter().map(Term::weighted).collect::<Result<Vec<_>>>()?;
                explain_losses(folder.model(), &losses, &input, &options)?
            }
            (None, Some(target)) => {
                explain(folder.model(), target.onnx_tensor.as_str(), target.filters(), &input, &options)?
            }
            (None, None) => anyhow::bail!("the case has neither target nor losses"),
        })
    }

    /// True if the result is not determined to within the tolerance in single precision, but is in double.
    fn hangs_on_rounding(&self) -> bool {
        match (&self.rounding_sensitivity, self.tolerance.limits()) {
            (Some(sensitivity), Some(limits)) => {
                self.raw_gradient_float64.is_some() && sensitivity.max_change_of_result > limits.atol
            }
            _ => false,
        }
    }
}

pub(crate) fn backprop_modifier(name: Option<&str>) -> Result<BackpropModifier> {
    Ok(BackpropModifier::named(name.unwrap_or("none"), &[])?)
}

pub(crate) fn grad_modifier(name: Option<&str>) -> Result<GradModifier> {
    Ok(name.unwrap_or("none").parse()?)
}

/// keras-vis's `visualize_saliency` and `visualize_saliency_with_losses`.
pub(crate) fn visualize_saliency(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let mut checks = Checks::default();
    let layout = call.gradient_with_respect_to.onnx_layout;
    let SaliencyMap { map, mut attribution } = call.repeat(folder, Precision::F32)?;
    let raw = layout.to_keras(attribution.raw.to_f64());
    let theirs = folder.array(&call.raw_gradient)?;

    if let Some(values) = &call.weighted_loss_values {
        let names = attribution.losses.iter().map(|loss| loss.name.clone()).collect();
        checks.equal("names of the losses", names, values.names.clone());
        let ours: Vec<f64> = attribution.losses.iter().flat_map(|loss| loss.weighted.clone()).collect();
        let overall = ours.iter().sum();
        let limits = Limits { atol: 1e-6, rtol: 1e-5 };
        let array = |values: Vec<f64>| ndarray::Array1::from(values).into_dyn();
        checks.close("values of the losses", &array(ours), &array(values.values.clone()), limits);
        checks.close("sum of the losses", &array(vec![overall]), &array(vec![values.overall]), limits);
    }

    if let Some(file) = &call.raw_gradient_float64 {
        let exact = call.repeat(folder, Precision::F64)?.attribution.raw.to_f64();
        let (ours, theirs) = (layout.to_keras(exact), folder.array(file)?);
        match call.tolerance.raw_gradient_atol {
            Some(atol) => {
                checks.close("float64 gradient", &ours, &theirs, Limits { atol, rtol: 0.0 });
            }
            None => checks.relative("float64 gradient", &ours, &theirs, folder.float64_limit()),
        }
    }

    if let Some(atol) = call.tolerance.raw_gradient_atol {
        checks.close("raw gradient", &raw, &theirs, Limits { atol, rtol: 0.0 });
        return Ok(checks);
    }
    let Some(limits) = call.tolerance.limits() else {
        anyhow::bail!("the case has no elementwise tolerance, and nothing is known to be compared instead")
    };

    let expected = folder.array(&call.result)?;
    let result = map.mapv(f64::from);
    let result = match call.arguments.keepdims {
        true => layout.to_keras(result.insert_axis(Axis(0))).index_axis_move(Axis(0), 0),
        false => result,
    };
    // keras-vis reduces the features of a vector to their maximum and scales that one number to 0.
    let is_lost = layout == Layout::Features && !call.arguments.keepdims;
    if is_lost {
        checks.equal("result of a vector", expected.iter().copied().collect(), vec![0.0]);
        checks.equal("shape of the map", result.shape(), &theirs.shape()[1..]);
    } else if !call.hangs_on_rounding() {
        checks.close("result", &result, &expected, limits);
    }
    if call.hangs_on_rounding() {
        checks.relative("raw gradient", &raw, &theirs, 5e-2);
    } else {
        let relative = if call.tolerance.is_ill_conditioned() { 5e-5 } else { limits.atol.max(5e-5) };
        let limits = Limits { atol: relative * largest(&theirs), rtol: 1e-3 };
        checks.close("raw gradient", &raw, &theirs, limits);
    }

    // What follows the gradient, on its own: modifier, maximum over channels, scaling.
    if !is_lost {
        attribution.channel_axis = attribution.channel_axis.map(|_| theirs.ndim() - 1);
        attribution.raw = Tensor::from(theirs.mapv(|value| value as f32));
        let maps = attribution
            .maps(&grad_modifier(call.arguments.grad_modifier.as_deref())?, call.arguments.keepdims)?;
        let ours = maps.index_axis_move(Axis(0), 0).mapv(f64::from);
        checks.close("result from the peer's gradient", &ours, &expected, Limits { atol: 1e-5, rtol: 0.0 });
    }
    Ok(checks)
}

#[derive(Debug, Deserialize)]
struct TfArguments {
    gradient_modifier: Option<String>,
    keepdims: bool,
    normalize_map: bool,
}

/// A call of tf-keras-vis's `Saliency`.
#[derive(Debug, Deserialize)]
struct TfCall {
    input: String,
    target: Target,
    arguments: TfArguments,
    result: String,
    tolerance: Tolerance,
}

/// tf-keras-vis's `Saliency`; its score is the plain output.
pub(crate) fn saliency(folder: &Folder, case: &Value) -> Result<Checks> {
    tf_saliency(folder, case, BackpropModifier::none())
}

/// tf-keras-vis's `Saliency` of a network changed by its `GuidedBackpropagation`.
pub(crate) fn guided_saliency(folder: &Folder, case: &Value) -> Result<Checks> {
    tf_saliency(folder, case, BackpropModifier::guided())
}

fn tf_saliency(folder: &Folder, case: &Value, modifier: BackpropModifier) -> Result<Checks> {
    let call = TfCall::deserialize(case)?;
    let options = Saliency::default().backprop_modifier(modifier);
    let input = folder.input(&call.input)?;
    let target = &call.target;
    let attribution =
        explain(folder.model(), target.onnx_tensor.as_str(), target.filters(), &input, &options)?.attribution;
    let modifier = grad_modifier(call.arguments.gradient_modifier.as_deref())?;
    let ours = match call.arguments.normalize_map {
        true => attribution.maps(&modifier, call.arguments.keepdims)?.mapv(f64::from),
        false => attribution.modified(&modifier, call.arguments.keepdims)?,
    };
    let limits = call.tolerance.limits().context("the case has no elementwise tolerance")?;
    let mut checks = Checks::default();
    checks.close("result", &ours, &folder.array(&call.result)?, limits);
    Ok(checks)
}
