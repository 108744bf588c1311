//! See what a neural network looks at: saliency maps and attributions for any network that travels as an ONNX file.
#![forbid(unsafe_code)]

mod attribution;
mod backprop;
mod builder;
mod compile;
mod dim;
mod error;
mod evaluate;
mod explanation;
mod grad_modifiers;
#[cfg(test)]
mod gradient_check;
mod graph;
pub mod image;
mod input;
pub mod losses;
mod methods;
mod model;
mod noise;
mod onnx;
mod op;
mod ops;
mod options;
mod parts;
mod preparation;
mod print;
mod rewrite;
pub mod rules;
mod run;
mod spatial;
mod target;
mod tensor;
mod timings;
pub mod units;
pub mod visualization;

pub use attribution::{Attribution, Completeness, LayerMap, LossValue, Measure};
pub use backprop::{Back, Cotangent, Cotangents, Coverage, Gradient, backward, gradient};
pub use builder::{Builder, Operand, Var};
pub use compile::{Plan, Precision, Started as StartedPlan, simd_level};
pub use dim::{Bindings, Dim, Shape};
pub use error::{Error, Result};
pub use evaluate::{evaluate, in_float64};
pub use explanation::{
    AttributionGraph, Explainer, Explanation, ExplanationGraph, Export, Fill, GraphMethod, LossGraph, Method,
    NamedBy, Pictures, Progress, Settings, Started, Sums, Task, There, VariantMethod, Varying,
};
pub use grad_modifiers::GradModifier;
pub use graph::{Constant, Content, Fact, Graph, Node, NodeId, Provenance, Source, Value, ValueId};
pub use input::Input;
pub use methods::ablation_cam::AblationCam;
pub use methods::blur_ig::{BlurIg, BlurPath};
pub use methods::cam::{Cam, CamLayers, CamProfile};
pub use methods::deeplift::DeepLift;
pub use methods::eigen_cam::EigenCam;
pub use methods::expected_gradients::ExpectedGradients;
pub use methods::feature_ablation::FeatureAblation;
pub use methods::full_grad::FullGrad;
pub use methods::guided_grad_cam::GuidedGradCam;
pub use methods::guided_ig::GuidedIg;
pub use methods::input_x_gradient::InputXGradient;
pub use methods::integrated_gradients::{IntegratedGradients, Quadrature, Steps};
pub use methods::lrp::Lrp;
pub use methods::occlusion::Occlusion;
pub use methods::path::Baseline;
pub use methods::rise::Rise;
pub use methods::saliency::{Saliency, SaliencyMap, visualize_saliency, visualize_saliency_with_losses};
pub use methods::score_cam::ScoreCam;
pub use methods::smoothgrad::{Noise, Smoothing, Statistic};
pub use methods::visualize_cam::{visualize_cam, visualize_cam_with_losses};
pub use methods::xrai::{Ranking, Xrai, xrai_regions};
pub use methods::{METHODS, MethodEntry, method};
pub use model::{LayerSummary, Model, TensorRef};
pub use onnx::{Lowered, Lowering, NodeWriter, OnnxFile};
pub use op::{Custom, Inputs, Op, OpDef, Real};
pub use options::{MethodOption, OptionKind, OptionValue, Options, PROFILES};
pub use preparation::{Preparation, Suggestion, Sureness};
pub use rewrite::{Rewritten, prune, simplify, verify};
pub use spatial::{SpatialLayer, TokenGrid};
pub use target::{Filters, Region, top};
pub use tensor::{Array, DType, Element, Float, Tensor};
pub use timings::{StepTime, Timings};
