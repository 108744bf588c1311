//! keras-vis's class activation maps, as keras-vis is called.

use crate::compile::Precision;
use crate::error::{Result, bail};
use crate::explanation::Method;
use crate::input::Input;
use crate::losses::{ActivationMaximization, WeightedLoss};
use crate::methods::cam::{Cam, CamProfile};
use crate::methods::saliency::SaliencyMap;
use crate::model::{Model, TensorRef};
use crate::target::Filters;
use ndarray::Axis;

/// keras-vis's `visualize_cam`: Grad-CAM with the gradient divided by its signed maximum and a cubic spline to the size of
/// the input, scaled to 0…1.
///
/// If `penultimate_layer` is `None`, it is the nearest convolution or pooling layer before the target, as keras-vis looks
/// for it: the layer directly before the target is never considered, and global pooling is no pooling.
///
/// ```no_run
/// use ouzel::{Cam, Model, visualize_cam};
/// let model = Model::load("network.onnx")?;
/// let picture = ndarray::Array4::<f32>::zeros((1, 3, 224, 224));
/// let cam = visualize_cam(&model, "logits", 20, &picture.into(), None::<&str>, &Cam::grad_cam())?;
/// println!("{:?}", cam.map.shape()); // [224, 224]
/// # Ok::<(), ouzel::Error>(())
/// ```
///
/// # Errors
/// As [`Method::attribute`]; also if there is no such layer.
pub fn visualize_cam(
    model: &Model,
    layer_idx: impl Into<TensorRef>,
    filter_indices: impl Into<Filters>,
    seed_input: &Input,
    penultimate_layer: Option<impl Into<TensorRef>>,
    options: &Cam,
) -> Result<SaliencyMap> {
    let losses = [WeightedLoss::new(ActivationMaximization::new(layer_idx, filter_indices), -1.0)];
    let options = match penultimate_layer {
        Some(layer) => options.clone().layers([layer]),
        None => options.clone(),
    };
    cam_map(model, &losses, seed_input, options)
}

/// keras-vis's `visualize_cam_with_losses`: the same for a weighted sum of losses.
///
/// # Errors
/// As [`Method::attribute`].
pub fn visualize_cam_with_losses(
    model: &Model,
    losses: &[WeightedLoss],
    seed_input: &Input,
    penultimate_layer: impl Into<TensorRef>,
    options: &Cam,
) -> Result<SaliencyMap> {
    cam_map(model, losses, seed_input, options.clone().layers([penultimate_layer]))
}

/// As in keras-vis, convolutions are direct.
fn cam_map(model: &Model, losses: &[WeightedLoss], input: &Input, options: Cam) -> Result<SaliencyMap> {
    let mut options = options.profile(CamProfile::KerasVis);
    if options.layers.layers.len() > 1 {
        bail!(option, "keras-vis makes the map of one layer, found {}", options.layers.layers.len());
    }
    if options.settings.precision == Precision::F32 {
        options.settings.precision = Precision::F32Direct;
    }
    let attribution = options.attribute(model, losses, input)?;
    let maps = attribution.maps(&options.settings.grad_modifier, false)?;
    let map = if maps.shape()[0] == 1 { maps.index_axis_move(Axis(0), 0) } else { maps };
    Ok(SaliencyMap { map, attribution })
}
