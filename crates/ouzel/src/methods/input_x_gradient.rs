//! Input × gradient: how much each element of the input contributes to a target, to first order.

use crate::builder::Builder;
use crate::error::Result;
use crate::explanation::{
    AttributionGraph, Explainer, GraphExplainer, GraphMethod, LossGraph, Method, Settings, Task,
};
use crate::methods::MethodEntry;
use crate::methods::saliency::Saliency;
use crate::options::{BACKPROP_MODIFIER, GRAD_MODIFIER, KEEPDIMS, RECTIFIERS, WRT, WRT_CHANNEL_AXIS};

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "input_x_gradient",
    about: "the gradient times the input: how much each element contributes to the target, to first order",
    unit: "units of the target; with piecewise linear networks without biases they add up to it",
    cost: "1 forward and 1 backward pass",
    source: "Shrikumar et al. 2016, Not just a black box: learning important features through propagating activation \
             differences",
    criticism: "an element that is 0 gets nothing, so black is invisible where black is 0; as noisy as the gradient",
    options: &[BACKPROP_MODIFIER, RECTIFIERS, GRAD_MODIFIER, WRT, WRT_CHANNEL_AXIS, KEEPDIMS],
    new: |options| {
        Ok(Box::new(InputXGradient(Saliency {
            backprop_modifier: options.backprop_modifier()?,
            settings: options.settings(Settings::default().grad_modifier)?,
        })))
    },
};

/// The gradient times the input.
///
/// **Formula.** `x · ∂ Σ weightᵢ · lossᵢ / ∂ x`, for each sample on its own; `x` is the input, or the inner tensor of
/// [`Settings::wrt_tensor`].
///
/// **Shapes.** The attribution has the shape of the tensor, batch axis included.
///
/// **Units.** Target units.
///
/// **Known criticism.** An element that is 0 gets nothing, whatever it means.
///
/// **Source.** Shrikumar et al. 2016, "Not just a black box".
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{InputXGradient, Method, Model, Saliency};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let product = InputXGradient::default().attribute(&model, &losses, &picture.clone().into())?;
/// let gradient = Saliency::default().attribute(&model, &losses, &picture.into())?;
/// assert_eq!(product.raw.to_f64(), gradient.raw.to_f64() * 0.5);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct InputXGradient(
    /// How the gradient is made.
    pub Saliency,
);

impl Method for InputXGradient {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn settings(&self) -> &Settings {
        &self.0.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.0.settings
    }

    fn as_graph(&self) -> Option<&dyn GraphMethod> {
        Some(self)
    }

    fn prepare(&self, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        GraphExplainer::boxed(self, task)
    }
}

impl GraphMethod for InputXGradient {
    fn build(&self, losses: LossGraph<'_>) -> Result<AttributionGraph> {
        let gradient = self.0.build(losses)?;
        let builder = Builder::new(gradient.graph);
        let raw = (builder.var(gradient.tensor) * builder.var(gradient.raw)).id()?;
        Ok(AttributionGraph { graph: builder.finish()?, raw, ..gradient })
    }
}
