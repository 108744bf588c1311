//! Grad-CAM: channels of a layer weighed by the mean of their gradient.

use crate::builder::Var;
use crate::methods::MethodEntry;
use crate::methods::cam::{CAM_LAYER, Cam, CamProfile, GRAD_MODIFIER, Kind, LayerGradient, UPSAMPLING};
use crate::options::{BACKPROP_MODIFIER, RECTIFIERS};

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "grad_cam",
    about: "the channels of a layer, weighed by the mean of their gradient: where the network sees what speaks for the target",
    unit: "units of the target, as far as the layer is linear in it; only their ratio matters",
    cost: "1 forward pass, and 1 backward pass from the target to the layer",
    source: "Selvaraju et al. 2017, Grad-CAM: visual explanations from deep networks via gradient-based localization",
    criticism: "as coarse as the layer; the mean moves weight to places that do not contribute (Draelos and Carin 2020), and only layers near the output are reliable",
    options: &[CAM_LAYER, UPSAMPLING, BACKPROP_MODIFIER, RECTIFIERS, GRAD_MODIFIER],
    new: |options| Cam::boxed(&KIND, options),
};

const KIND: Kind = Kind { entry: &ENTRY, weights };

impl Cam {
    /// Grad-CAM: channels weighed by the mean of their gradient.
    ///
    /// **Formula.** `max(0, Σₖ mean(gₖ) · Aₖ)`, the mean over positions.
    ///
    /// **Shapes.** `A`, `g = ∂ target / ∂ A`: `[samples, channels, positions…]`; the map: `[samples, positions…]`.
    ///
    /// **Units.** Target units per position, as far as the layer is linear in the target.
    ///
    /// **Conventions.** [`CamProfile::KerasVis`] divides the gradient by its signed maximum (plus 1e-7), so that the map
    /// turns around where every gradient is negative.
    ///
    /// **Known criticism.** The mean moves weight to positions that do not contribute (Draelos and Carin 2020).
    ///
    /// **Source.** Selvaraju et al. 2017, "Grad-CAM".
    pub fn grad_cam() -> Self {
        Self::of(&KIND)
    }
}

/// keras-vis's small constant.
const EPSILON: f64 = 1e-7;

fn weights<'b>(layer: &LayerGradient<'b>) -> Var<'b> {
    let gradient = layer.gradient;
    let gradient = match layer.profile {
        CamProfile::KerasVis => gradient / (gradient.reduce_max(1..gradient.rank(), true) + EPSILON),
        _ => gradient,
    };
    gradient.reduce_mean(layer.positions(), true)
}
