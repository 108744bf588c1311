//! DeepLIFT: the difference of the target from its value at a baseline, shared out over the input.

use crate::backprop::{Gradient, backward};
use crate::builder::Builder;
use crate::error::{Context, Result, bail};
use crate::explanation::{
    AttributionGraph, Explainer, GraphExplainer, GraphMethod, LossGraph, Method, Settings, Sums, Task,
};
use crate::methods::MethodEntry;
use crate::methods::lrp::canonical;
use crate::methods::path::Baseline;
use crate::options::{GRAD_MODIFIER, KEEPDIMS, MethodOption, OptionKind, WRT, WRT_CHANNEL_AXIS};
use crate::rules::Canonical;
use crate::rules::deeplift::{Maxima, Reference, rescale, reveal_cancel};

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "deeplift",
    about: "DeepLIFT (Rescale, or RevealCancel): what each element contributes to the target's difference from its value at a baseline",
    unit: "units of the target: the map adds up to that difference",
    cost: "2 forward passes and 1 backward pass",
    source: "Shrikumar et al. 2017, Learning important features through propagating activation differences; \
             Ancona et al. 2018, Towards better understanding of gradient-based attribution methods",
    criticism: "the map depends on the baseline, and is not the same for two networks that compute the same function \
                (Sundararajan et al. 2017)",
    options: &[BASELINE, REVEAL_CANCEL, GRAD_MODIFIER, WRT, WRT_CHANNEL_AXIS, KEEPDIMS],
    new: |options| {
        let baseline = match &Baseline::list(options, &[Baseline::Constant(0.0)])?[..] {
            [baseline @ (Baseline::Constant(_) | Baseline::Array(_))] => baseline.clone(),
            _ => bail!(option, "baseline: expected zeros, a number, or one array or picture"),
        };
        let maxima = match options.profile() {
            "captum" => Maxima::Gradient,
            _ => Maxima::Shared,
        };
        let settings = options.settings(Settings::default().grad_modifier)?;
        Ok(Box::new(DeepLift { baseline, maxima, reveal_cancel: options.flag("reveal_cancel")?, settings }))
    },
};

/// The baseline.
const BASELINE: MethodOption = MethodOption::new(
    "baseline",
    OptionKind::Input,
    "zeros|VALUE|FILE.npy",
    "zeros",
    "the input that the target is compared with: zeros, a number for all elements of the prepared input, or an array of \
     its shape",
);

/// The rule at activations.
const REVEAL_CANCEL: MethodOption = MethodOption::new(
    "reveal_cancel",
    OptionKind::Flag,
    "",
    "no",
    "the RevealCancel rule at activations instead of Rescale: what raised their input and what lowered it are told apart, so \
     that neither hides the other; about four times the work",
);

/// The difference of the target from its value at a baseline, shared out over the input by the Rescale or the RevealCancel
/// rule.
///
/// **Formula.** `m · (x - x⁰)`, with multipliers `m` of which each node's add up: see
/// [`rescale`](crate::rules::deeplift::rescale) and [`reveal_cancel`](crate::rules::deeplift::reveal_cancel).
///
/// **Shapes.** The attribution has the shape of the input, batch axis included.
///
/// **Units.** Target units; [`Attribution::completeness`](crate::Attribution::completeness) says whether the map adds up to
/// `f(x) - f(x⁰)`.
///
/// **Known criticism.** It depends on the baseline, and on how the network computes its function.
///
/// **Source.** Shrikumar et al. 2017, "Learning important features through propagating activation differences".
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{DeepLift, Method, Model};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let contributions = DeepLift::default().attribute(&model, &losses, &picture.into())?;
/// assert!(contributions.completeness.is_some_and(|it| it.holds()));
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeepLift {
    /// What the input is compared with, a number or an array; default: zeros.
    pub baseline: Baseline,
    /// What is done at max pooling.
    pub maxima: Maxima,
    /// RevealCancel at activations instead of Rescale.
    pub reveal_cancel: bool,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for DeepLift {
    fn default() -> Self {
        Self {
            baseline: Baseline::Constant(0.0),
            maxima: Maxima::Shared,
            reveal_cancel: false,
            settings: Settings::default(),
        }
    }
}

impl DeepLift {
    /// What the input is compared with.
    #[must_use]
    pub fn baseline(mut self, baseline: Baseline) -> Self {
        self.baseline = baseline;
        self
    }

    /// What is done at max pooling.
    #[must_use]
    pub fn maxima(mut self, maxima: Maxima) -> Self {
        self.maxima = maxima;
        self
    }

    /// RevealCancel at activations instead of Rescale.
    #[must_use]
    pub fn reveal_cancel(mut self, use_it: bool) -> Self {
        self.reveal_cancel = use_it;
        self
    }
}

impl Method for DeepLift {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn as_graph(&self) -> Option<&dyn GraphMethod> {
        Some(self)
    }

    fn prepare(&self, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        GraphExplainer::boxed(self, task)
    }
}

impl GraphMethod for DeepLift {
    fn build(&self, losses: LossGraph<'_>) -> Result<AttributionGraph> {
        let LossGraph { model, graph, losses, total, explained, channel_axis, .. } = losses;
        let own_nodes = graph.nodes().len() - model.graph().nodes().len();
        // The contributions to an activation are those to a layer with its batch normalization.
        let forms: &[Canonical] = match self.reveal_cancel {
            true => &[Canonical::Bias, Canonical::BatchNormalization, Canonical::Normalization],
            false => &[Canonical::Normalization],
        };
        let (graph, rewritten) = canonical(graph, forms, own_nodes)?;
        if graph.producer(explained).is_some() {
            bail!(
                option,
                "DeepLIFT compares inputs, and {} is computed from them: leave --wrt out",
                graph.title(explained)
            );
        }
        let builder = Builder::new(graph);
        let x = builder.var(explained);
        let baseline = match &self.baseline {
            Baseline::Constant(value) => x.scalar_like(*value).expand_like(x),
            Baseline::Array(array) => {
                let constant = builder.constant(array.cast(x.dtype()));
                let widened = match x.rank().checked_sub(constant.rank()) {
                    Some(missing) => constant.unsqueeze(0..missing),
                    None => constant,
                };
                let expanded = widened.expand_like(x);
                let fits = expanded.id().is_ok() && expanded.rank() == x.rank();
                if !fits {
                    bail!(
                        option,
                        "the baseline has shape {:?}, and the input {} is {}",
                        array.shape(),
                        builder.graph().title(explained),
                        x.fact()
                    );
                }
                expanded
            }
            other => bail!(option, "DeepLIFT compares with a number or an array, not with {other:?}"),
        };
        let reference = Reference::add(&builder, &[(explained, baseline.id()?)])?;
        let ones = builder.var(total).scalar_like(1.0).id()?;
        let mut difference = x.scalar_like(0.0);
        for loss in losses {
            difference = difference + (builder.var(loss) - reference.of(builder.var(loss))?);
        }
        let expected = difference.id()?;
        let rules = match self.reveal_cancel {
            true => reveal_cancel(&reference, self.maxima),
            false => rescale(&reference, self.maxima),
        };
        let Gradient { graph, values, mut coverage, .. } =
            backward(builder.finish()?, &[(total, ones)], &[explained], &rules).context(|| "DeepLIFT")?;
        coverage.rewritten = rewritten;
        let builder = Builder::new(graph);
        let multiplier = builder.var(values[0]);
        let x = builder.var(explained);
        let contribution = multiplier * (x - reference.of(x)?);
        let (raw, found) = (contribution.id()?, contribution.reduce_sum(1..x.rank(), false).id()?);
        let sums = Some(Sums { expected, found, absorbed: None, lost: None, layers: vec![] });
        let graph = builder.finish()?;
        let known = AttributionGraph::new(graph, raw, explained, channel_axis);
        Ok(AttributionGraph { coverage, sums, ..known })
    }
}
