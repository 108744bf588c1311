//! LayerCAM: a layer times its positive gradient, summed over channels.

use crate::builder::Var;
use crate::methods::MethodEntry;
use crate::methods::cam::{CAM_LAYER, Cam, GRAD_MODIFIER, Kind, LayerGradient, UPSAMPLING};
use crate::options::{BACKPROP_MODIFIER, RECTIFIERS};

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "layer_cam",
    about: "a layer times its positive gradient: sharp in layers far from the output too",
    unit: "units of the target; only their ratio matters",
    cost: "1 forward pass, and 1 backward pass from the target to the layer",
    source: "Jiang et al. 2021, LayerCAM: exploring hierarchical class activation maps for localization",
    criticism: "what lowers the target is not seen, so that maps of different classes look alike",
    options: &[CAM_LAYER, UPSAMPLING, BACKPROP_MODIFIER, RECTIFIERS, GRAD_MODIFIER],
    new: |options| Cam::boxed(&KIND, options),
};

const KIND: Kind = Kind { entry: &ENTRY, weights };

impl Cam {
    /// LayerCAM: the layer times its positive gradient.
    ///
    /// **Formula.** `max(0, Σₖ max(0, gₖ) · Aₖ)`.
    ///
    /// **Shapes.** `A`, `g = ∂ target / ∂ A`: `[samples, channels, positions…]`; the map: `[samples, positions…]`.
    ///
    /// **Units.** Target units, of what raises the target alone.
    ///
    /// **Known criticism.** What lowers the target is not seen.
    ///
    /// **Source.** Jiang et al. 2021, "LayerCAM".
    pub fn layer_cam() -> Self {
        Self::of(&KIND)
    }
}

fn weights<'b>(layer: &LayerGradient<'b>) -> Var<'b> {
    layer.gradient.relu()
}
