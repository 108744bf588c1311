//! A folder of golden data: a network, its inputs, and the calls that other libraries answered.

use crate::checks::Checks;
use crate::report::{CaseReport, FolderReport, Outcome};
use crate::{activation, cam, keras, paths, perturbation, torch};
use anyhow::{Context, Result};
use ndarray::ArrayD;
use ndarray_npy::{ReadNpyError, read_npy};
use ouzel::{Input, Model};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// What is read of `cases.json`; the cases are looked into by the peer's own reader.
#[derive(Deserialize)]
struct Listing {
    model: String,
    #[serde(default)]
    operators: Vec<String>,
    #[serde(default)]
    layers: Vec<Layer>,
    cases: Vec<Value>,
}

/// A layer of the original network.
#[derive(Deserialize)]
struct Layer {
    #[serde(rename = "type")]
    kind: String,
}

impl Listing {
    /// True if numbers that the file stores in float32 and the original network does not enter the arithmetic.
    fn has_rounded_constants(&self) -> bool {
        let has = |op: &&str| self.operators.iter().any(|other| other == op);
        let attributes = ["BatchNormalization", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu"];
        let is_folded = self.layers.iter().any(|layer| layer.kind.starts_with("BatchNorm"))
            && !has(&"BatchNormalization");
        attributes.iter().any(has) || is_folded
    }
}

/// What every case says.
#[derive(Deserialize)]
struct Header {
    id: String,
    peer: String,
    method: String,
}

/// How a peer's call is repeated and compared.
type Compare = fn(&Folder, &Value) -> Result<Checks>;

/// The calls that are covered.
const METHODS: &[(&str, &str, Compare)] = &[
    ("PAIR saliency", "BlurIG.GetMask", paths::blur_ig),
    ("PAIR saliency", "GradientSaliency.GetMask", torch::pair_gradient),
    ("PAIR saliency", "GradientSaliency.GetSmoothedMask", paths::pair_smoothed),
    ("PAIR saliency", "GuidedIG.GetMask", paths::guided_ig),
    ("PAIR saliency", "IntegratedGradients.GetMask", paths::pair_integrated_gradients),
    ("PAIR saliency", "Occlusion.GetMask", perturbation::pair_occlusion),
    ("PAIR saliency", "XRAI.GetMask", paths::xrai),
    ("captum", "Deconvolution", torch::rectified),
    ("captum", "DeepLift", torch::deep_lift),
    ("captum", "FeatureAblation", perturbation::captum_feature_ablation),
    ("captum", "GuidedBackprop", torch::guided),
    ("captum", "GuidedGradCam", cam::captum_guided_grad_cam),
    ("captum", "InputXGradient", torch::captum_input_x_gradient),
    ("captum", "IntegratedGradients", paths::integrated_gradients),
    ("captum", "LayerActivation", torch::captum_layer_activation),
    ("captum", "LayerGradCam", cam::captum_grad_cam),
    ("captum", "LayerGradientXActivation", torch::captum_input_x_gradient),
    ("captum", "LayerIntegratedGradients", paths::integrated_gradients),
    ("captum", "NoiseTunnel", paths::noise_tunnel),
    ("captum", "LRP", torch::captum_lrp),
    ("captum", "Occlusion", perturbation::captum_occlusion),
    ("captum", "Saliency", torch::captum_saliency),
    ("deeplift", "Rescale", torch::rescale),
    ("deeplift", "RevealCancel", torch::reveal_cancel),
    ("formulas", "AttnLRP", torch::attention),
    ("formulas", "CP-LRP", torch::conservative),
    ("keras-vis", "visualize_activation", activation::visualize_activation),
    ("keras-vis", "visualize_cam", cam::visualize_cam),
    ("keras-vis", "visualize_saliency", keras::visualize_saliency),
    ("keras-vis", "visualize_saliency_with_losses", keras::visualize_saliency),
    ("pytorch-grad-cam", "AblationCAM", cam::ablation_cam),
    ("pytorch-grad-cam", "EigenCAM", cam::eigen_cam),
    ("pytorch-grad-cam", "GradCAM", cam::grad_cam),
    ("pytorch-grad-cam", "GradCAMPlusPlus", cam::grad_cam_plus_plus),
    ("pytorch-grad-cam", "HiResCAM", cam::hires_cam),
    ("pytorch-grad-cam", "LayerCAM", cam::layer_cam),
    ("pytorch-grad-cam", "ScoreCAM", cam::score_cam),
    ("pytorch-grad-cam", "XGradCAM", cam::xgrad_cam),
    ("tf-keras-vis", "tf-keras-vis Gradcam", cam::tf_grad_cam),
    ("tf-keras-vis", "tf-keras-vis GradcamPlusPlus", cam::tf_grad_cam_plus_plus),
    ("tf-keras-vis", "tf-keras-vis Layercam", cam::tf_layer_cam),
    ("tf-keras-vis", "tf-keras-vis Saliency", keras::saliency),
    ("tf-keras-vis", "tf-keras-vis Saliency (SmoothGrad)", paths::tf_smoothgrad),
    ("tf-keras-vis", "tf-keras-vis Saliency with GuidedBackpropagation", keras::guided_saliency),
    ("tf-keras-vis", "tf-keras-vis Scorecam", cam::tf_score_cam),
    ("zennit", "BetaSmooth", torch::beta_smooth),
    ("zennit", "DeconvNet", torch::rectified),
    ("zennit", "EpsilonAlpha2Beta1", |folder, case| torch::zennit(folder, case, "epsilon_alpha2_beta1")),
    ("zennit", "EpsilonAlpha2Beta1Flat", |folder, case| {
        torch::zennit(folder, case, "epsilon_alpha2_beta1_flat")
    }),
    ("zennit", "EpsilonGammaBox", |folder, case| torch::zennit(folder, case, "epsilon_gamma_box")),
    ("zennit", "EpsilonPlus", |folder, case| torch::zennit(folder, case, "epsilon_plus")),
    ("zennit", "EpsilonPlusFlat", |folder, case| torch::zennit(folder, case, "epsilon_plus_flat")),
    ("zennit", "ExcitationBackprop", |folder, case| torch::zennit(folder, case, "excitation_backprop")),
    ("zennit", "GuidedBackprop", torch::guided),
];

/// A folder of golden data.
#[derive(Debug)]
pub struct Folder {
    name: String,
    path: PathBuf,
    model: Model,
    cases: Vec<Value>,
    has_rounded_constants: bool,
}

impl Folder {
    /// Reads the network and the list of cases.
    ///
    /// # Errors
    /// If either cannot be read.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let list = path.join("cases.json");
        let text =
            std::fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let listing: Listing = serde_json::from_str(&text).with_context(|| list.display().to_string())?;
        let name = path.file_name().map_or_else(|| ".".into(), |name| name.to_string_lossy().into_owned());
        let model = Model::load(path.join(&listing.model))?;
        let has_rounded_constants = listing.has_rounded_constants();
        Ok(Self { name, path, model, cases: listing.cases, has_rounded_constants })
    }

    /// The network.
    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// An array of the folder.
    pub(crate) fn array(&self, file: &str) -> Result<ArrayD<f64>> {
        let path = self.path.join(file);
        let read = match read_npy::<_, ArrayD<f32>>(&path) {
            Ok(array) => Ok(array.mapv(f64::from)),
            Err(ReadNpyError::WrongDescriptor(_)) => read_npy::<_, ArrayD<f64>>(&path),
            Err(error) => Err(error),
        };
        read.with_context(|| format!("cannot read {}", path.display()))
    }

    /// An array of the folder, as input of the network.
    pub(crate) fn input(&self, file: &str) -> Result<Input> {
        Ok(self.array(file)?.mapv(|value| value as f32).into())
    }

    /// The largest relative error of a gradient in double precision.
    pub(crate) fn float64_limit(&self) -> f64 {
        if self.has_rounded_constants { 1e-6 } else { 1e-9 }
    }

    /// Repeats every call whose folder, peer, method or id contains `filter`.
    ///
    /// # Errors
    /// If a case does not say what it is; a call that fails is a failed case.
    pub fn run(&self, filter: &str) -> Result<FolderReport> {
        let run = |case: &Value| -> Result<Option<CaseReport>> {
            let Header { id, peer, method } = Header::deserialize(case)?;
            if !format!("{} {peer} {method} {id}", self.name).contains(filter) {
                return Ok(None);
            }
            let compare = METHODS.iter().find(|(p, m, _)| *p == peer && *m == method);
            let outcome = match compare.map(|(_, _, compare)| compare(self, case)) {
                None => Outcome::NotCovered,
                Some(Err(error)) => Outcome::Failed(vec![format!("{error:#}")]),
                Some(Ok(checks)) => match checks.into_failures() {
                    failures if failures.is_empty() => Outcome::Passed,
                    failures => Outcome::Failed(failures),
                },
            };
            Ok(Some(CaseReport { id, peer, method, outcome }))
        };
        let cases = self.cases.par_iter().filter_map(|case| run(case).transpose()).collect::<Result<_>>()?;
        Ok(FolderReport { name: self.name.clone(), cases })
    }
}
