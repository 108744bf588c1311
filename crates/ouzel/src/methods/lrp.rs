//! Layer-wise relevance propagation: the target's value shared out over the input, layer by layer.

use crate::backprop::{Coverage, Ending, Gradient, depends_on, walk};
use crate::builder::{Builder, Var};
use crate::error::{Context, Result, bail};
use crate::explanation::{
    AttributionGraph, Explainer, GraphExplainer, GraphMethod, LossGraph, Method, Settings, Sums, Task,
};
use crate::graph::{Graph, NodeId, ValueId};
use crate::methods::MethodEntry;
use crate::op::OpDef;
use crate::options::{GRAD_MODIFIER, KEEPDIMS, MethodOption, OptionKind, OptionValue, WRT, WRT_CHANNEL_AXIS};
use crate::rules::{
    Canonical, InputBounds, Kind, Known, Patterns, Preset, RuleSet, Start, activations_left_alone,
};
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "lrp",
    about: "layer-wise relevance propagation: the target's value, shared out layer by layer until the input has it",
    unit: "units of the target: the map adds up to its value, less what ends in biases (with --start one, parts of 1)",
    cost: "1 forward and 1 backward pass, and for most rules as much again",
    source: "Bach et al. 2015, On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance \
             propagation; the presets name theirs",
    criticism: "the rules are chosen by hand, and z-plus-like rules converge to one vector whatever the target is \
                (Sixt et al. 2020, When explanations lie)",
    options: &[
        RULES,
        START,
        INPUT_RANGE,
        PATTERNS,
        LAYER_SUMS,
        GRAD_MODIFIER,
        WRT,
        WRT_CHANNEL_AXIS,
        KEEPDIMS,
    ],
    new: |options| {
        let preset = match options.value("rules") {
            Some(OptionValue::Toml(file, text)) => Preset::from_toml(file, text).context(|| file.clone())?,
            _ => Preset::named(options.text("rules")?.unwrap_or(match options.profile() {
                "captum" => "epsilon",
                _ => RULES.default,
            }))?,
        };
        let start = match options.text("start")? {
            Some(name) => Some(start(name)?),
            None if options.profile() == "zennit" => Some(Start::One),
            None => None,
        };
        let mut settings = options.settings(Settings::default().grad_modifier)?;
        settings.input_bounds = match options.text("input_range")? {
            Some(text) => Some(text.parse()?),
            None if options.profile() == "zennit" => Some(InputBounds::new(0.0, 1.0)),
            None => None,
        };
        let patterns = match options.value("patterns") {
            Some(OptionValue::Array(_, samples)) => Some(samples.clone()),
            Some(_) => {
                bail!(option, "patterns: expected a folder of pictures or an array of samples that exists")
            }
            None => None,
        };
        Ok(Box::new(Lrp { preset, start, patterns, layer_sums: options.flag("layer_sums")?, settings }))
    },
};

/// The rules.
const RULES: MethodOption = MethodOption::new(
    "rules",
    OptionKind::Toml,
    "NAME|FILE.toml",
    "epsilon_plus_flat",
    "which rule goes to which layer: epsilon_plus_flat, epsilon_plus, epsilon_alpha2_beta1, epsilon_alpha2_beta1_flat, \
     epsilon_gamma_box, epsilon, deep_taylor, excitation_backprop, attnlrp and cp_lrp for transformers, \
     pattern_net, pattern_attribution, guided_backprop, deconvnet, beta_smooth, or the rows of a TOML file",
);

/// What relevance starts from.
const START: MethodOption = MethodOption::new(
    "start",
    OptionKind::Name(|| vec!["value", "one"]),
    "NAME",
    "as the preset says, else value",
    "what is shared out: the target's value, as Captum does, or 1 (one), as zennit does",
);

/// The box rule's bounds.
const INPUT_RANGE: MethodOption = MethodOption::new(
    "input_range",
    OptionKind::Text,
    "LOW,HIGH",
    "as the preprocessing says",
    "the lowest and highest values that the input can have, for the box rule",
);

/// What patterns are estimated from.
const PATTERNS: MethodOption = MethodOption::new(
    "patterns",
    OptionKind::Input,
    "FOLDER|FILE",
    "none",
    "the pictures, or an array of samples, that the rules pattern_net and pattern_attribution estimate signals from: the \
     more and the more like those of the training, the better",
);

/// Relevance by layer.
const LAYER_SUMS: MethodOption = MethodOption::new(
    "layer_sums",
    OptionKind::Flag,
    "",
    "no",
    "report the sum of relevance behind each node: where it is lost",
);

fn start(name: &str) -> Result<Start> {
    match name.to_ascii_lowercase().as_str() {
        "value" => Ok(Start::Value),
        "one" => Ok(Start::One),
        _ => bail!(option, "unknown start '{name}': expected one of value, one"),
    }
}

/// The target's value, shared out over the input by rules.
///
/// **Formula.** From the target on, each node hands what it has received to its inputs, as its rule says; see
/// [`Relevance`](crate::rules::Relevance). The walk starts with the part that each element has in the losses, times the
/// element itself; with [`Start::One`] with the former alone.
///
/// **Shapes.** The attribution has the shape of the tensor, batch axis included.
///
/// **Units.** Target units. [`Attribution::completeness`](crate::Attribution::completeness) says what the map adds up to,
/// and what biases took.
///
/// **Known criticism.** The rules are chosen by hand; z-plus-like rules converge to one vector whatever the target is
/// (Sixt et al. 2020, "When explanations lie").
///
/// **Source.** Bach et al. 2015, "On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance
/// propagation"; each [`Preset`] names its own.
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{Lrp, Method, Model, rules::Preset};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let lrp = Lrp::new(Preset::named("epsilon_plus")?);
/// let relevance = lrp.attribute(&model, &losses, &picture.into())?;
/// assert!(relevance.completeness.is_some_and(|it| it.holds()));
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Lrp {
    /// The rules, and the form of the network that they are for.
    pub preset: Preset,
    /// What the walk starts from; default: what the preset says, else the target's value.
    pub start: Option<Start>,
    /// The samples that patterns are estimated from, along the first axis, for rules that need them.
    pub patterns: Option<Tensor>,
    /// Report the sum of relevance behind each node.
    pub layer_sums: bool,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Lrp {
    /// With a preset's rules.
    pub fn new(preset: Preset) -> Self {
        Self { preset, start: None, patterns: None, layer_sums: false, settings: Settings::default() }
    }

    /// What the walk starts from.
    #[must_use]
    pub fn start(mut self, start: Start) -> Self {
        self.start = Some(start);
        self
    }

    /// The lowest and highest values that the input can have: one pair, or one for each channel.
    #[must_use]
    pub fn input_bounds(mut self, bounds: InputBounds) -> Self {
        self.settings.input_bounds = Some(bounds);
        self
    }

    /// The samples that patterns are estimated from, along the first axis, prepared as inputs are.
    #[must_use]
    pub fn patterns(mut self, samples: Tensor) -> Self {
        self.patterns = Some(samples);
        self
    }

    /// Report the sum of relevance behind each node.
    #[must_use]
    pub fn layer_sums(mut self, report: bool) -> Self {
        self.layer_sums = report;
        self
    }
}

impl Method for Lrp {
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

    fn tells_samples_apart_only_alone(&self) -> bool {
        // What biases take is summed over a batch where it is computed, and inner tensors may have samples on any axis.
        self.preset.start.is_none()
    }

    fn prepare(&self, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        GraphExplainer::boxed(self, task)
    }
}

impl GraphMethod for Lrp {
    fn build(&self, losses: LossGraph<'_>) -> Result<AttributionGraph> {
        let LossGraph { model, graph, total, explained, channel_axis, .. } = losses;
        let own_nodes = graph.nodes().len() - model.graph().nodes().len();
        let (graph, rewritten) = canonical(graph, &self.preset.canonical, own_nodes)?;
        let first_loss_node = graph.nodes().len() - own_nodes;
        let estimators = self.preset.estimators();
        let patterns = match &self.patterns {
            Some(samples) if !estimators.is_empty() => {
                let (network, _) = canonical(model.graph().clone(), &self.preset.canonical, 0)?;
                let precision = self.settings.precision;
                Some(Arc::new(Patterns::estimate(
                    &network,
                    model.main_input(),
                    samples,
                    &estimators,
                    precision,
                )?))
            }
            Some(_) => bail!(option, "patterns: no rule of '{}' uses them", self.preset.name),
            None => None,
        };
        let bounds = self.settings.input_bounds.as_ref();
        let rules = self.preset.rules_knowing(Known { bounds, patterns: patterns.as_ref() })?;
        let start = self.preset.start.or(self.start).unwrap_or_default();
        let Propagated { gradient, relevance, start, arrived, absorbed, lost } =
            propagate(graph, first_loss_node, total, explained, &rules, start)?;
        let Gradient { graph, cotangents, mut coverage, .. } = gradient;
        coverage.rewritten = rewritten;
        let mut warnings = match self.preset.start {
            Some(Start::One) => {
                let rules = format!("the rules '{}'", self.preset.name);
                activations_left_alone(&rules, &graph, &coverage, &|_| String::new())
            }
            _ => fallen_through(&graph, &coverage),
        };
        warnings.extend(patterns.and_then(|patterns| patterns.warning()));
        // Presets that fix the start are gradients, which add up to nothing in particular; and relevance may get past an
        // inner tensor.
        let conserves = self.preset.start.is_none() && graph.producer(explained).is_none();
        let builder = Builder::new(graph);
        let mut layers = Vec::new();
        if self.layer_sums {
            let rule_of: BTreeMap<NodeId, &str> =
                coverage.matched.iter().map(|(node, rule)| (*node, &**rule)).collect();
            let passed =
                coverage.matched.iter().map(|(node, _)| *node).chain(coverage.default.iter().copied());
            let mut passed: Vec<NodeId> = passed.collect();
            passed.sort_unstable_by(|a, b| b.cmp(a));
            for id in passed {
                let node = builder.graph().node(id).clone();
                let behind: Vec<Var> = (node.outputs.iter())
                    .filter_map(|output| cotangents.get(output.index()).copied().flatten())
                    .map(|cotangent| builder.var(cotangent))
                    .collect();
                let rule = rule_of.get(&id).copied().unwrap_or("gradient").to_owned();
                let title = coverage.title(&builder.graph(), id);
                layers.push((title, rule, sum(&builder, &behind).id()?));
            }
        }
        let (absorbed, lost) = (Some(absorbed), Some(lost));
        let sums = conserves.then_some(Sums { expected: start, found: arrived, absorbed, lost, layers });
        let known = AttributionGraph::new(builder.finish()?, relevance, explained, channel_axis);
        Ok(AttributionGraph { coverage, warnings, sums, ..known })
    }
}

/// Brings all nodes but the last `own_nodes`, which are those of the losses, into canonical forms; says what was done.
pub(super) fn canonical(
    mut graph: Graph,
    forms: &[Canonical],
    own_nodes: usize,
) -> Result<(Graph, Vec<(String, String)>)> {
    let mut rewritten = Vec::new();
    for form in forms {
        let (next, done) = form.apply(&graph, graph.nodes().len() - own_nodes)?;
        rewritten.extend(done.into_iter().map(|title| (title, form.to_string())));
        graph = next;
    }
    Ok((graph, rewritten))
}

/// Says which nodes got their plain gradient although they do more than move elements.
fn fallen_through(graph: &Graph, coverage: &Coverage) -> Vec<String> {
    let kinds = Kind::of_nodes(graph);
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for id in coverage.default.iter().filter(|id| kinds[id.index()] == Kind::Other) {
        *counts.entry(graph.node(*id).op.name()).or_default() += 1;
    }
    let warn = |(op, count)| format!("no rule for {count} × {op}: relevance passed by the plain gradient");
    counts.into_iter().map(warn).collect()
}

/// A graph with the relevance of a tensor, and the sums that say whether relevance was conserved.
#[derive(Debug)]
struct Propagated {
    gradient: Gradient,
    /// The relevance of the tensor.
    relevance: ValueId,
    /// The sum that the walk started from.
    start: ValueId,
    /// The sum that arrived at the tensor, and at other inputs of the graph.
    arrived: ValueId,
    /// The sum that ended in biases and other parameters.
    absorbed: ValueId,
    /// The sum that rules found nothing to give to.
    lost: ValueId,
}

/// Adds the relevance of `explained` for the sum `total` of losses, whose nodes begin at `first_loss_node`.
///
/// The losses say how much of each element of a target counts; that times the element is what the walk starts from, or
/// with [`Start::One`] the former alone.
fn propagate(
    graph: Graph,
    first_loss_node: usize,
    total: ValueId,
    explained: ValueId,
    rules: &RuleSet,
    start: Start,
) -> Result<Propagated> {
    // What the losses read of the model.
    let depends = depends_on(&graph, &[explained]);
    let is_of_model = |id: ValueId| {
        graph.constant(id).is_none() && graph.producer(id).is_none_or(|node| node.index() < first_loss_node)
    };
    let mut targets: Vec<ValueId> = (graph.nodes()[first_loss_node..].iter())
        .flat_map(|node| node.inputs.iter().flatten().copied())
        .filter(|&id| depends[id.index()] && is_of_model(id))
        .collect();
    targets.sort_unstable();
    targets.dedup();
    let inputs: Vec<ValueId> = (graph.inputs().iter().copied())
        .filter(|&input| input != explained && graph.fact(input).dtype.is_float())
        .collect();
    let explains_input = graph.producer(explained).is_none();

    let builder = Builder::new(graph);
    let loss = builder.var(total);
    let ones = loss.scalar_like(1.0).expand_like(loss).id()?;
    let counted = walk(builder.finish()?, &[(total, ones)], &targets, &RuleSet::new(), first_loss_node)?;
    let builder = Builder::new(counted.graph);
    let mut seeds = Vec::new();
    let mut started: Vec<Var> = Vec::new();
    for target in targets {
        let Some(counts) = counted.cotangents[target.index()] else { continue };
        let seed = match start {
            Start::Value => builder.var(counts) * builder.var(target),
            Start::One => builder.var(counts),
        };
        seeds.push((target, seed.id()?));
        started.push(seed);
    }
    if seeds.is_empty() {
        bail!(target, "the losses do not depend on the tensor that is explained");
    }
    let start = sum(&builder, &started).id()?;
    let others = if explains_input { inputs } else { vec![] };
    let wrt: Vec<ValueId> = std::iter::once(explained).chain(others).collect();
    let mut gradient = walk(builder.finish()?, &seeds, &wrt, rules, 0)?;
    let Some(relevance) = gradient.cotangents[explained.index()] else {
        bail!(target, "no relevance reaches {}", gradient.graph.title(explained));
    };
    let builder = Builder::new(std::mem::take(&mut gradient.graph));
    let arrived: Vec<Var> = gradient.values.iter().map(|&value| builder.var(value)).collect();
    let arrived = sum(&builder, &arrived).id()?;
    let ended = |ending: Ending| {
        let of_this = gradient.coverage.ended.iter().filter(|it| it.1 == ending);
        let shares: Vec<Var> = of_this.map(|it| builder.var(it.2)).collect();
        match shares.is_empty() {
            true => builder.var(start).scalar_like(0.0).id(),
            false => sum(&builder, &shares).id(),
        }
    };
    let (absorbed, lost) = (ended(Ending::Absorbed)?, ended(Ending::Lost)?);
    gradient.graph = builder.finish()?;
    Ok(Propagated { gradient, relevance, start, arrived, absorbed, lost })
}

/// The sum of all elements of all values.
fn sum<'b>(builder: &'b Builder, values: &[Var<'b>]) -> Var<'b> {
    let sums: Vec<Var> = values.iter().map(|value| value.sum()).collect();
    match sums[..] {
        [one] => one,
        _ => builder.apply(crate::ops::elementwise::Sum, &sums),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Precision;
    use crate::graph::Fact;
    use crate::losses::{ActivationMaximization, WeightedLoss};
    use crate::methods::deeplift::DeepLift;
    use crate::methods::path::Baseline;
    use crate::model::Model;
    use crate::tensor::DType;
    use ndarray::ArrayD;

    fn asset(name: &str) -> Model {
        Model::load(format!("{}/../../assets/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    fn picture(model: &Model) -> Tensor {
        let shape = &model.graph().fact(model.main_input()).shape;
        let shape: Vec<usize> = shape.iter().map(|dim| dim.known().unwrap_or(1) as usize).collect();
        let mut place = 0u64;
        Tensor::from(ArrayD::from_shape_simple_fn(shape, || {
            place += 1;
            ((place * place * 31 + place * 17) % 1009) as f32 / 1009.0
        }))
    }

    fn losses(layer: &str, filters: usize) -> [WeightedLoss; 1] {
        [WeightedLoss::new(ActivationMaximization::new(layer, filters), -1.0)]
    }

    fn is_relevance(name: &str) -> bool {
        name != "common" && Preset::named(name).unwrap().start.is_none()
    }

    #[test]
    fn every_preset_adds_up_on_every_network_and_names_a_rule_for_every_node() {
        for (file, layer) in [("scene_fair.onnx", "animal_logits"), ("steering.onnx", "-1")] {
            let model = asset(file);
            let layer = if layer == "-1" { model.output_names()[0].clone() } else { layer.to_owned() };
            let input = picture(&model);
            for name in Preset::names().filter(|name| is_relevance(name)) {
                let lrp = Lrp::new(Preset::named(name).unwrap()).input_bounds(InputBounds::new(0.0, 1.0));
                let lrp = lrp.layer_sums(true);
                let found = lrp.attribute(&model, &losses(&layer, 0), &input.clone().into()).unwrap();
                let sums = found.completeness.unwrap();
                assert!(sums.holds(), "{name} on {file}: {sums:?}");
                assert!(sums.expected != [0.0] && sums.found != [0.0], "{name} on {file}: {sums:?}");
                assert!(found.warnings.is_empty(), "{name} on {file}: {:?}", found.warnings);
                let own: Vec<&String> =
                    found.default_gradient.iter().filter(|title| !title.is_empty()).collect();
                assert!(own.is_empty(), "{name} on {file} has no rule for {own:?}");
                assert!(found.matched.len() > 8 && sums.layers.len() >= found.matched.len(), "{name}");
            }
        }
    }

    #[test]
    fn float64_and_the_engine_agree_and_samples_do_not_meet() {
        let model = asset("scene_fair.onnx");
        let one = picture(&model);
        let two = Tensor::join(&[
            picture(&model),
            Tensor::from(picture(&model).to_f64().mapv(|v| (1.0 - v) as f32)),
        ])
        .unwrap();
        for name in ["epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat"] {
            let lrp = Lrp::new(Preset::named(name).unwrap()).input_bounds(InputBounds::new(0.0, 1.0));
            let run = |lrp: &Lrp, input: &Tensor| {
                lrp.attribute(&model, &losses("animal_logits", 2), &input.clone().into())
                    .unwrap()
                    .raw
                    .to_f64()
            };
            let found = run(&lrp, &one);
            let exact = run(&lrp.clone().precision(Precision::F64), &one);
            let norm = |x: &ArrayD<f64>| x.iter().map(|v| v * v).sum::<f64>().sqrt();
            assert!(norm(&(&found - &exact)) <= 1e-3 * norm(&exact), "{name}");
            let both = run(&lrp, &two);
            assert_eq!(both.index_axis(ndarray::Axis(0), 0), found.index_axis(ndarray::Axis(0), 0), "{name}");
            // So do the sums.
            let sums = |input: &Tensor| {
                let lrp = lrp.clone().layer_sums(true);
                let found =
                    lrp.attribute(&model, &losses("animal_logits", 2), &input.clone().into()).unwrap();
                found.completeness.unwrap()
            };
            let (of_one, of_two) = (sums(&one), sums(&two));
            assert_eq!((of_two.expected.len(), of_two.relative_gaps().len()), (2, 2), "{name}");
            assert!(of_two.holds() && of_two.expected[0] != of_two.expected[1], "{name}: {of_two:?}");
            assert_eq!(
                (of_two.expected[0], of_two.found[0]),
                (of_one.expected[0], of_one.found[0]),
                "{name}"
            );
            assert_eq!(of_two.absorbed[0], of_one.absorbed[0], "{name}");
            for ((node, _, both), (_, _, one)) in of_two.layers.iter().zip(&of_one.layers) {
                assert_eq!((both.len(), both[0]), (2, one[0]), "{name} at {node}");
            }
        }
    }

    #[test]
    fn the_start_scales_relevance_and_gradients_ignore_it() {
        let model = asset("scene_fair.onnx");
        let run =
            |lrp: &Lrp| lrp.attribute(&model, &losses("animal_logits", 2), &picture(&model).into()).unwrap();
        let lrp = Lrp::new(Preset::named("epsilon_plus").unwrap());
        let (of_value, of_one) = (run(&lrp), run(&lrp.clone().start(Start::One)));
        let value = of_value.losses[0].weighted[0];
        assert!((of_one.completeness.unwrap().expected[0] - 1.0).abs() < 1e-6);
        for (a, b) in of_value.raw.to_f64().iter().zip(&of_one.raw.to_f64()) {
            assert!((a - b * value).abs() <= 1e-5 * value.abs(), "{a} for {b}");
        }
        let guided = run(&Lrp::new(Preset::named("guided_backprop").unwrap()));
        let saliency = crate::Saliency::default()
            .backprop_modifier(crate::rules::BackpropModifier::guided())
            .attribute(&model, &losses("animal_logits", 2), &picture(&model).into())
            .unwrap();
        assert_eq!(guided.raw, saliency.raw);
        assert!(guided.completeness.is_none());
    }

    /// What a preset makes of a small network of three inputs, for two samples of halves.
    fn of_small(preset: &str, network: for<'b> fn(Var<'b>) -> Var<'b>) -> crate::Attribution {
        let builder = Builder::default();
        let x = builder.input("x", Fact::new(DType::F32, vec![2.into(), 3.into()]));
        let y = network(x).id().unwrap();
        let mut graph = builder.finish().unwrap();
        graph.set_name(y, "y");
        graph.outputs = vec![y];
        let model = Model::of_graph(graph);
        let input = Tensor::from(ArrayD::from_elem(vec![2, 3], 0.5f32));
        let lrp = Lrp::new(Preset::named(preset).unwrap());
        lrp.attribute(&model, &losses("y", 0), &input.into()).unwrap()
    }

    #[test]
    fn what_rules_find_nothing_to_give_to_is_said_to_be_lost() {
        // The inputs are positive, so contributions have the sign of the weights.
        let opposed = of_small("excitation_backprop", |x| {
            let weights = Tensor::from(ArrayD::from_elem(vec![3, 1], -2f32));
            x.matmul(x.builder().constant(weights))
        });
        let sums = opposed.completeness.unwrap();
        assert!(sums.lost == sums.expected && sums.found == [0.0], "{sums:?}");
        assert!(!sums.holds() && sums.is_accounted_for(), "{sums:?}");
        let favored = of_small("excitation_backprop", |x| {
            let weights = Tensor::from(ArrayD::from_elem(vec![3, 1], 2f32));
            x.matmul(x.builder().constant(weights))
        });
        let sums = favored.completeness.unwrap();
        assert!(sums.holds() && sums.is_accounted_for() && sums.lost.is_empty(), "{sums:?}");
    }

    #[test]
    fn presets_that_are_gradients_say_what_they_left_alone() {
        let warnings = |network| of_small("guided_backprop", network).warnings;
        assert_eq!(warnings(|x| x.relu()), [""; 0]);
        assert_eq!(warnings(|x| x.relu().tanh()), ["the rules 'guided_backprop' left 1 × Tanh alone"]);
        let none = "the rules 'guided_backprop' matched no node on the way: the map is the plain gradient";
        assert_eq!(warnings(|x| x * 2.0), [none]);
    }

    #[test]
    fn deeplift_adds_up_and_depends_on_its_baseline() {
        for (file, layer) in [("scene_fair.onnx", "animal_logits"), ("steering.onnx", "-1")] {
            let model = asset(file);
            let layer = if layer == "-1" { model.output_names()[0].clone() } else { layer.to_owned() };
            let input = picture(&model);
            let single = Tensor::from(input.to_f64().mapv(|v| v as f32 * 0.5));
            let baselines = [Baseline::Constant(0.0), Baseline::Constant(0.3), Baseline::Array(single)];
            for (baseline, reveal) in baselines.into_iter().flat_map(|it| [(it.clone(), false), (it, true)]) {
                let title = format!("{file} {baseline:?} {reveal}");
                let method = DeepLift::default().baseline(baseline).reveal_cancel(reveal);
                let found = method.attribute(&model, &losses(&layer, 0), &input.clone().into()).unwrap();
                let sums = found.completeness.unwrap();
                assert!(sums.relative_gaps()[0] < 1e-3, "{title}: {sums:?}");
                assert!((found.raw.to_f64().sum() - sums.found[0]).abs() < 1e-4, "{title}: {sums:?}");
            }
            let wrong = Baseline::Array(Tensor::from(ArrayD::<f32>::zeros(vec![7, 7])));
            let error = DeepLift::default()
                .baseline(wrong)
                .attribute(&model, &losses(&layer, 0), &input.clone().into())
                .unwrap_err();
            assert!(error.to_string().contains("[7, 7]"), "{error}");
            let inner = model.graph().value(model.graph().nodes()[1].outputs[0]).name.to_string();
            let error = DeepLift::default()
                .wrt_tensor(inner.as_str())
                .attribute(&model, &losses(&layer, 0), &input.into())
                .unwrap_err();
            assert!(error.to_string().contains("--wrt"), "{error}");
        }
    }

    #[test]
    fn what_is_compiled_has_no_step_by_the_reference() {
        let model = asset("scene_fair.onnx");
        for name in Preset::names().filter(|name| is_relevance(name)) {
            let lrp = Lrp::new(Preset::named(name).unwrap()).input_bounds(InputBounds::new(0.0, 1.0));
            let graph = crate::ExplanationGraph::new(&model, &losses("animal_logits", 2), &lrp).unwrap();
            let shapes = [(model.main_input(), vec![1, 3, 128, 128])];
            let plan = crate::Plan::new(&graph.graph, &shapes, &[graph.raw], Precision::F32).unwrap();
            let (_, timings) = plan.run_timed(&[picture(&model)]).unwrap();
            let slow = timings.to_string();
            assert!(!slow.contains("(reference)"), "{name}: {slow}");
        }
    }
}
