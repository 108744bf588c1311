//! Class activation maps: keras-vis, tf-keras-vis, Captum and pytorch-grad-cam.

use crate::checks::{Checks, Limits, Tolerance, largest};
use crate::folder::Folder;
use crate::keras::{self, Target};
use anyhow::{Context, Result, bail};
use ndarray::{ArrayD, Axis};
use ouzel::image::Upsampling;
use ouzel::losses::{ActivationMaximization, WeightedLoss, expression};
use ouzel::{
    AblationCam, Attribution, Cam, CamProfile, EigenCam, Filters, GuidedGradCam, Input, Method, Precision,
    SaliencyMap, ScoreCam, visualize_cam as explain,
};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
struct Layer {
    onnx_tensor: String,
}

#[derive(Debug, Deserialize)]
struct KerasArguments {
    backprop_modifier: Option<String>,
    grad_modifier: Option<String>,
    penultimate_layer_was_default: bool,
}

/// A call of keras-vis's `visualize_cam`.
#[derive(Debug, Deserialize)]
struct KerasCall {
    input: String,
    target: Target,
    arguments: KerasArguments,
    gradient_with_respect_to: Layer,
    heatmap_before_zoom: String,
    result: String,
    tolerance: Tolerance,
    rounding_sensitivity: Option<keras::Sensitivity>,
}

impl KerasCall {
    fn repeat(&self, folder: &Folder, precision: Precision) -> Result<SaliencyMap> {
        let cam = Cam::grad_cam()
            .backprop_modifier(keras::backprop_modifier(self.arguments.backprop_modifier.as_deref())?)
            .grad_modifier(keras::grad_modifier(self.arguments.grad_modifier.as_deref())?)
            .precision(precision);
        let input = folder.input(&self.input)?;
        let layer = (!self.arguments.penultimate_layer_was_default)
            .then_some(self.gradient_with_respect_to.onnx_tensor.as_str());
        let target = self.target.onnx_tensor.as_str();
        Ok(explain(folder.model(), target, self.target.filters(), &input, layer, &cam)?)
    }
}

/// keras-vis's `visualize_cam`: the layer that is found, the map before it is made larger, and the result.
pub(crate) fn visualize_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = KerasCall::deserialize(case)?;
    let mut checks = Checks::default();
    let limits = call.tolerance.limits().context("the case has no elementwise tolerance")?;
    let hangs_on_rounding =
        call.rounding_sensitivity.as_ref().is_some_and(|known| known.max_change_of_result > limits.atol);
    let precision = if hangs_on_rounding { Precision::F64 } else { Precision::F32 };
    let SaliencyMap { map, attribution } = call.repeat(folder, precision)?;
    let layers = attribution.layer_map.as_ref().map(|map| map.layers.clone()).unwrap_or_default();
    checks.equal("layer", layers, vec![call.gradient_with_respect_to.onnx_tensor.clone()]);
    let before = folder.array(&call.heatmap_before_zoom)?;
    let raw = attribution.raw.to_f64().index_axis_move(Axis(0), 0);
    let relative = if call.tolerance.is_ill_conditioned() { 1e-3 } else { limits.atol.max(5e-5) };
    let close = Limits { atol: relative * largest(&before), rtol: 1e-3 };
    checks.close("map before zoom", &raw, &before, close);
    checks.close("result", &map.mapv(f64::from), &folder.array(&call.result)?, limits);
    Ok(checks)
}

#[derive(Debug, Deserialize)]
struct TfArguments {
    expand_cam: bool,
    normalize_cam: bool,
    #[serde(default, rename = "max_N")]
    max_channels: Option<usize>,
}

/// A call of tf-keras-vis.
#[derive(Debug, Deserialize)]
struct TfCall {
    input: String,
    target: Target,
    arguments: TfArguments,
    gradient_with_respect_to: Layer,
    result: String,
    tolerance: Tolerance,
}

impl TfCall {
    fn compare(&self, folder: &Folder, attribution: &Attribution, method: &dyn Method) -> Result<Checks> {
        let modifier = &method.settings().grad_modifier;
        let ours = match (self.arguments.expand_cam, self.arguments.normalize_cam) {
            (true, true) => attribution.maps(modifier, false)?.mapv(f64::from),
            (false, false) => attribution.raw.to_f64(),
            (true, false) => attribution.modified(modifier, false)?,
            (false, true) => bail!("tf-keras-vis was not asked for scaled maps of the layer's size"),
        };
        let limits = self.tolerance.limits().context("the case has no elementwise tolerance")?;
        let mut checks = Checks::default();
        checks.close("result", &ours, &folder.array(&self.result)?, limits);
        Ok(checks)
    }

    fn gradient(folder: &Folder, case: &Value, cam: Cam) -> Result<Checks> {
        let call = Self::deserialize(case)?;
        let cam =
            cam.profile(CamProfile::TfKerasVis).layers([call.gradient_with_respect_to.onnx_tensor.as_str()]);
        let loss = ActivationMaximization::new(call.target.onnx_tensor.as_str(), call.target.filters());
        let losses = [WeightedLoss::new(loss, -1.0)];
        let attribution = cam.attribute(folder.model(), &losses, &folder.input(&call.input)?)?;
        call.compare(folder, &attribution, &cam)
    }
}

/// tf-keras-vis's `Gradcam`.
pub(crate) fn tf_grad_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    TfCall::gradient(folder, case, Cam::grad_cam())
}

/// tf-keras-vis's `GradcamPlusPlus`, in float64: where the denominator of a weight, `2 g² + g³ ΣA`, nearly vanishes, float32
/// is a matter of luck.
pub(crate) fn tf_grad_cam_plus_plus(folder: &Folder, case: &Value) -> Result<Checks> {
    TfCall::gradient(folder, case, Cam::grad_cam_plus_plus().precision(Precision::F64))
}

/// tf-keras-vis's `Layercam`.
pub(crate) fn tf_layer_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    TfCall::gradient(folder, case, Cam::layer_cam())
}

/// tf-keras-vis's `Scorecam`, which takes a softmax of the network's output, whatever that is.
pub(crate) fn tf_score_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = TfCall::deserialize(case)?;
    let mut method = ScoreCam::default()
        .profile(CamProfile::TfKerasVis)
        .layers([call.gradient_with_respect_to.onnx_tensor.as_str()]);
    method.max_channels = call.arguments.max_channels;
    let tensor = call.target.onnx_tensor.clone();
    let Filters::List(filters) = call.target.filters() else { bail!("the case names no filter") };
    let loss = expression("probability", move |context| {
        let indices = filters.iter().map(|&filter| filter as i64).collect();
        let probabilities = context.tensor(tensor.as_str())?.softmax(1);
        Ok(probabilities.gather(1, indices).reduce_mean([1], false))
    });
    let losses = [WeightedLoss { loss, weight: 1.0 }];
    let attribution = method.attribute(folder.model(), &losses, &folder.input(&call.input)?)?;
    call.compare(folder, &attribution, &method)
}

#[derive(Debug, Deserialize)]
struct TorchArguments {
    /// pytorch-grad-cam's.
    #[serde(default)]
    layer_tensors: Vec<String>,
    /// Captum's.
    layer_tensor: Option<String>,
    #[serde(default)]
    relu_attributions: bool,
    interpolate_mode: Option<String>,
}

/// A call on a PyTorch network.
#[derive(Debug, Deserialize)]
struct TorchCall {
    arguments: TorchArguments,
    input: String,
    target_output: String,
    target_index: usize,
    result: String,
    map_before_scaling_layer0: Option<String>,
    tolerance: Tolerance,
}

impl TorchCall {
    fn layers(&self) -> Vec<&str> {
        let tensors = self.arguments.layer_tensor.iter().chain(&self.arguments.layer_tensors);
        tensors.map(String::as_str).collect()
    }

    fn attribute(&self, folder: &Folder, method: &dyn Method) -> Result<Attribution> {
        let loss = ActivationMaximization::new(self.target_output.as_str(), self.target_index);
        let input: Input = folder.input(&self.input)?;
        Ok(method.attribute(folder.model(), &[WeightedLoss::new(loss, -1.0)], &input)?)
    }

    fn limits(&self) -> Result<Limits> {
        self.tolerance.limits().context("the case has no elementwise tolerance")
    }

    /// Compares with pytorch-grad-cam: the raw map of one layer, and the result. `flips` says that the sign is arbitrary.
    fn compare(&self, folder: &Folder, method: &dyn Method, flips: bool) -> Result<Checks> {
        let mut attribution = self.attribute(folder, method)?;
        let mut checks = Checks::default();
        if let (1, Some(file)) = (self.arguments.layer_tensors.len(), &self.map_before_scaling_layer0) {
            let theirs = folder.array(file)?;
            let mut ours = attribution.raw.to_f64();
            if flips && (&ours * &theirs).sum() < 0.0 {
                ours.mapv_inplace(|value| -value);
                attribution.raw = ours.clone().into();
            }
            let limits = Limits { atol: 1e-4 * largest(&theirs), rtol: 0.0 };
            checks.close("map before scaling", &ours, &theirs, limits);
        }
        let maps = attribution.maps(&method.settings().grad_modifier, false)?.mapv(f64::from);
        checks.close("result", &maps, &folder.array(&self.result)?, self.limits()?);
        Ok(checks)
    }
}

fn gradient(folder: &Folder, case: &Value, cam: Cam) -> Result<Checks> {
    let call = TorchCall::deserialize(case)?;
    let cam = cam.profile(CamProfile::PytorchGradCam).layers(call.layers());
    call.compare(folder, &cam, false)
}

/// pytorch-grad-cam's `GradCAM`.
pub(crate) fn grad_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    gradient(folder, case, Cam::grad_cam())
}

/// pytorch-grad-cam's `GradCAMPlusPlus`.
pub(crate) fn grad_cam_plus_plus(folder: &Folder, case: &Value) -> Result<Checks> {
    gradient(folder, case, Cam::grad_cam_plus_plus())
}

/// pytorch-grad-cam's `HiResCAM`.
pub(crate) fn hires_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    gradient(folder, case, Cam::hires_cam())
}

/// pytorch-grad-cam's `XGradCAM`.
pub(crate) fn xgrad_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    gradient(folder, case, Cam::xgrad_cam())
}

/// pytorch-grad-cam's `LayerCAM`.
pub(crate) fn layer_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    gradient(folder, case, Cam::layer_cam())
}

/// pytorch-grad-cam's `EigenCAM`.
pub(crate) fn eigen_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = TorchCall::deserialize(case)?;
    let method = EigenCam::default().profile(CamProfile::PytorchGradCam).layers(call.layers());
    call.compare(folder, &method, true)
}

/// pytorch-grad-cam's `ScoreCAM`.
pub(crate) fn score_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = TorchCall::deserialize(case)?;
    let method = ScoreCam::default().profile(CamProfile::PytorchGradCam).layers(call.layers());
    call.compare(folder, &method, false)
}

/// pytorch-grad-cam's `AblationCAM`.
pub(crate) fn ablation_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = TorchCall::deserialize(case)?;
    let method = AblationCam::default().profile(CamProfile::PytorchGradCam).layers(call.layers());
    call.compare(folder, &method, false)
}

/// Captum's `LayerGradCam`: not rectified unless asked for, with a channel axis of length 1.
pub(crate) fn captum_grad_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = TorchCall::deserialize(case)?;
    let cam = Cam::grad_cam().profile(CamProfile::Captum).layers(call.layers());
    let mut ours: ArrayD<f64> = call.attribute(folder, &cam)?.raw.to_f64();
    if call.arguments.relu_attributions {
        ours.mapv_inplace(|value| value.max(0.0));
    }
    let mut checks = Checks::default();
    checks.close("result", &ours, &folder.array(&call.result)?, call.limits()?);
    Ok(checks)
}

/// Captum's `GuidedGradCam`.
pub(crate) fn captum_guided_grad_cam(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = TorchCall::deserialize(case)?;
    let upsampling: Upsampling = call.arguments.interpolate_mode.as_deref().unwrap_or("nearest").parse()?;
    let method =
        GuidedGradCam::default().profile(CamProfile::Captum).layers(call.layers()).upsampling(upsampling);
    let ours = call.attribute(folder, &method)?.raw.to_f64();
    let mut checks = Checks::default();
    checks.close("result", &ours, &folder.array(&call.result)?, call.limits()?);
    Ok(checks)
}
