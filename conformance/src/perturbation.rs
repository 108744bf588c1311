//! Captum and PAIR saliency: methods that cover or remove parts of the input.

use crate::checks::{Checks, Tolerance};
use crate::folder::Folder;
use anyhow::{Context, Result};
use ndarray::Axis;
use ouzel::losses::{ActivationMaximization, WeightedLoss};
use ouzel::{OptionValue, Options, Tensor, method};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
struct Arguments {
    window: Option<Vec<usize>>,
    strides: Option<Vec<usize>>,
    #[serde(alias = "value")]
    baseline: f64,
    feature_mask: Option<String>,
    size: Option<usize>,
}

#[derive(Debug, Deserialize)]
struct Call {
    arguments: Arguments,
    input: String,
    target_output: String,
    target_index: usize,
    result: String,
    tolerance: Tolerance,
}

fn compare(folder: &Folder, case: &Value, name: &str, profile: &str) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let Arguments { window, strides, baseline, feature_mask, size } = &call.arguments;
    let spelled = |lengths: &[usize]| lengths.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
    let mut options = Options::new().with_profile(profile).with("fill_value", &baseline.to_string());
    if let Some(window) = window.clone().or(size.map(|size| vec![size])) {
        options = options.with("window", &spelled(&window));
    }
    if let Some(strides) = strides {
        options = options.with("stride", &spelled(strides));
    }
    if let Some(file) = feature_mask {
        let mask = Tensor::from(folder.array(file)?.mapv(|group| group as i64));
        options = options.with_value("feature_mask", OptionValue::Array(file.clone(), mask));
    }
    let loss = ActivationMaximization::new(call.target_output.as_str(), call.target_index);
    let losses = [WeightedLoss::new(loss, -1.0)];
    let method = method(name, &options)?;
    let mut ours = method.attribute(folder.model(), &losses, &folder.input(&call.input)?)?.raw.to_f64();
    if profile == "pair" {
        ours = ours.index_axis_move(Axis(0), 0).permuted_axes(vec![1, 2, 0]);
    }
    let limits = call.tolerance.limits().context("the case has no elementwise tolerance")?;
    let mut checks = Checks::default();
    checks.close("result", &ours, &folder.array(&call.result)?, limits);
    Ok(checks)
}

/// Captum's `Occlusion`.
pub(crate) fn captum_occlusion(folder: &Folder, case: &Value) -> Result<Checks> {
    compare(folder, case, "occlusion", "captum")
}

/// PAIR saliency's `Occlusion.GetMask`: one sample, channels last.
pub(crate) fn pair_occlusion(folder: &Folder, case: &Value) -> Result<Checks> {
    compare(folder, case, "occlusion", "pair")
}

/// Captum's `FeatureAblation`.
pub(crate) fn captum_feature_ablation(folder: &Folder, case: &Value) -> Result<Checks> {
    compare(folder, case, "feature_ablation", "captum")
}
