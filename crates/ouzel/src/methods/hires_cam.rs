//! HiResCAM: a layer times its gradient, summed over channels.

use crate::builder::Var;
use crate::methods::MethodEntry;
use crate::methods::cam::{CAM_LAYER, Cam, GRAD_MODIFIER, Kind, LayerGradient, UPSAMPLING};
use crate::options::{BACKPROP_MODIFIER, RECTIFIERS};

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "hires_cam",
    about: "a layer times its gradient: what each position of the layer contributes to the target",
    unit: "units of the target; without the cut at 0, and from a layer that only linear ops follow, they add up to it",
    cost: "1 forward pass, and 1 backward pass from the target to the layer",
    source: "Draelos and Carin 2020, Use HiResCAM instead of Grad-CAM for faithful explanations of convolutional neural networks",
    criticism: "as coarse as the layer; noisier than grad_cam in layers far from the output",
    options: &[CAM_LAYER, UPSAMPLING, BACKPROP_MODIFIER, RECTIFIERS, GRAD_MODIFIER],
    new: |options| Cam::boxed(&KIND, options),
};

const KIND: Kind = Kind { entry: &ENTRY, weights };

impl Cam {
    /// HiResCAM: the layer times its gradient.
    ///
    /// **Formula.** `max(0, Σₖ gₖ · Aₖ)`; with global average pooling behind the layer it is Grad-CAM.
    ///
    /// **Shapes.** `A`, `g = ∂ target / ∂ A`: `[samples, channels, positions…]`; the map: `[samples, positions…]`.
    ///
    /// **Units.** Target units.
    ///
    /// **Known criticism.** Noisy for layers far from the output.
    ///
    /// **Source.** Draelos and Carin 2020, "Use HiResCAM instead of Grad-CAM".
    pub fn hires_cam() -> Self {
        Self::of(&KIND)
    }
}

fn weights<'b>(layer: &LayerGradient<'b>) -> Var<'b> {
    layer.gradient
}
