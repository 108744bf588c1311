//! XGrad-CAM: channels of a layer weighed by the mean of their gradient where they are active.

use crate::builder::Var;
use crate::methods::MethodEntry;
use crate::methods::cam::{CAM_LAYER, Cam, CamProfile, GRAD_MODIFIER, Kind, LayerGradient, UPSAMPLING};
use crate::options::{BACKPROP_MODIFIER, RECTIFIERS};

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "xgrad_cam",
    about: "as grad_cam, with the mean of the gradient taken where the channel is active",
    unit: "units of the target; only their ratio matters",
    cost: "1 forward pass, and 1 backward pass from the target to the layer",
    source: "Fu et al. 2020, Axiom-based Grad-CAM: towards accurate visualization and explanation of CNNs",
    criticism: "as coarse as the layer; its axioms hold approximately, and for networks of ReLUs",
    options: &[CAM_LAYER, UPSAMPLING, BACKPROP_MODIFIER, RECTIFIERS, GRAD_MODIFIER],
    new: |options| Cam::boxed(&KIND, options),
};

const KIND: Kind = Kind { entry: &ENTRY, weights };

impl Cam {
    /// XGrad-CAM: channels weighed by their gradient where they are active.
    ///
    /// **Formula.** `wₖ = Σ (Aₖ / ΣAₖ) · gₖ` over positions; 0 for a channel whose sum is 0.
    ///
    /// **Shapes.** `A`, `g = ∂ target / ∂ A`: `[samples, channels, positions…]`; the map: `[samples, positions…]`.
    ///
    /// **Units.** Target units per position.
    ///
    /// **Conventions.** [`CamProfile::PytorchGradCam`] adds 1e-7 to the sum.
    ///
    /// **Known criticism.** Where a channel has both signs its sum may be near 0, and the weight large.
    ///
    /// **Source.** Fu et al. 2020, "Axiom-based Grad-CAM".
    pub fn xgrad_cam() -> Self {
        Self::of(&KIND)
    }
}

fn weights<'b>(layer: &LayerGradient<'b>) -> Var<'b> {
    let positions = || layer.positions();
    let sum = layer.activation.reduce_sum(positions(), true);
    let share = match layer.profile {
        CamProfile::PytorchGradCam => layer.activation / (sum + 1e-7),
        _ => (layer.activation / sum).select_where(!sum.equal(0.0)),
    };
    (layer.gradient * share).reduce_sum(positions(), true)
}
