//! Grad-CAM++: channels of a layer weighed by those of their gradients that raise the target.

use crate::builder::Var;
use crate::methods::MethodEntry;
use crate::methods::cam::{CAM_LAYER, Cam, CamProfile, GRAD_MODIFIER, Kind, LayerGradient, UPSAMPLING};
use crate::options::{BACKPROP_MODIFIER, RECTIFIERS};

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "grad_cam_plus_plus",
    about: "as grad_cam, with weights that let several objects of one class count alike",
    unit: "units of the target by a factor; only their ratio matters",
    cost: "1 forward pass, and 1 backward pass from the target to the layer",
    source: "Chattopadhay et al. 2018, Grad-CAM++: generalized gradient-based visual explanations for deep convolutional networks",
    criticism: "its weights are in practice those of the positive gradients, in other proportions (Lerma and Lucas 2022), so that what lowers the target is not seen",
    options: &[CAM_LAYER, UPSAMPLING, BACKPROP_MODIFIER, RECTIFIERS, GRAD_MODIFIER],
    new: |options| Cam::boxed(&KIND, options),
};

const KIND: Kind = Kind { entry: &ENTRY, weights };

impl Cam {
    /// Grad-CAM++: channels weighed by their positive gradients, each of them by its share of the channel.
    ///
    /// **Formula.** `wₖ = Σ α · max(0, g)` over positions with `α = g² / (2·g² + g³·ΣA) = 1 / (2 + g·ΣA)`.
    ///
    /// **Shapes.** `A`, `g = ∂ target / ∂ A`: `[samples, channels, positions…]`; the map: `[samples, positions…]`.
    ///
    /// **Units.** Only the ratio of values matters.
    ///
    /// **Conventions.** The paper differentiates the exponential of the score, which multiplies the map by a positive
    /// number that scaling takes out again, and overflows; it is left out. Where `2 + g·ΣA` is not positive, which is
    /// possible for layers with negative values only, `α` is 0. [`CamProfile::TfKerasVis`] has the exponential, and
    /// divides `α` by its sum over the channel; [`CamProfile::PytorchGradCam`] adds 1e-6 to the denominator.
    ///
    /// **Known criticism.** Close to weights by positive gradients alone (Lerma and Lucas 2022).
    ///
    /// **Source.** Chattopadhay et al. 2018, "Grad-CAM++".
    pub fn grad_cam_plus_plus() -> Self {
        Self::of(&KIND)
    }
}

fn weights<'b>(layer: &LayerGradient<'b>) -> Var<'b> {
    let (g, sum) = (layer.gradient, layer.activation.reduce_sum(layer.positions(), true));
    let shares = match layer.profile {
        CamProfile::TfKerasVis => return exponential(layer, sum),
        CamProfile::PytorchGradCam => {
            let squared = g * g;
            squared / (squared * 2.0 + sum * squared * g + 1e-6)
        }
        _ => {
            let denominator = g * sum + 2.0;
            denominator.reciprocal().select_where(denominator.greater(0.0))
        }
    };
    (g.relu() * shares).reduce_sum(layer.positions(), true)
}

/// As tf-keras-vis computes it: of the exponential of the score, with shares that add up to 1 in each channel.
fn exponential<'b>(layer: &LayerGradient<'b>, sum: Var<'b>) -> Var<'b> {
    let first = layer.score.exp() * layer.gradient;
    let second = first * layer.gradient;
    let third = second * layer.gradient;
    let denominator = second * 2.0 + third * sum;
    let one_if_zero = |x: Var<'b>| x.scalar_like(1.0).select(x.equal(0.0), x);
    let shares = second / (denominator + second.scalar_like(1.0).select_where(second.equal(0.0)));
    let shares = shares / one_if_zero(shares.reduce_sum(layer.positions(), true));
    (first.relu() * shares).reduce_sum(layer.positions(), true)
}
