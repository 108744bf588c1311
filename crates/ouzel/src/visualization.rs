//! Activation maximization: pictures that raise the activation of filters, made from the network alone.

mod fourier;
mod maximize;
mod modern;
mod warp;

pub use maximize::{
    InputModifier, Iteration, Jitter, Maximization, MaximizedActivation, deprocess, visualize_activation,
    visualize_activation_with_losses,
};
pub use modern::{FeatureVisualization, PreparedVisualization, Step, Visualized};
