//! FullGrad: the gradient of the input and of every bias, laid over each other.

use crate::backprop::{Coverage, Gradient, gradient};
use crate::builder::{Builder, Var};
use crate::error::Result;
use crate::explanation::{
    AttributionGraph, Explainer, GraphExplainer, GraphMethod, LossGraph, Method, Settings, Task,
};
use crate::graph::{Graph, Node, ValueId};
use crate::image::Upsampling;
use crate::methods::MethodEntry;
use crate::methods::cam::{SCALE_EPSILON, UPSAMPLING, arranged, enlarged};
use crate::op::{Op, OpDef};
use crate::rules::RuleSet;
use crate::spatial::SpatialLayer;
use std::collections::BTreeMap;

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "full_grad",
    about: "what the input and every bias contribute to the target, laid over each other",
    unit: "none; every layer is scaled to 0…1 before the layers are added",
    cost: "1 forward and 1 backward pass",
    source: "Srinivas and Fleuret 2019, Full-gradient representation for neural network visualization",
    criticism: "the parts add up to the target, the map does not: each layer is scaled by itself and signs are dropped; it \
                depends little on the class",
    options: &[UPSAMPLING],
    new: |options| {
        Ok(Box::new(FullGrad {
            upsampling: options.parse("upsampling", Upsampling::Linear)?,
            settings: Settings::default(),
        }))
    },
};

/// The full gradient: that of the input times the input, and that of every bias times the bias.
///
/// **Formula.** `ψ(x · ∂f/∂x) + Σ over layers of ψ(b · ∂f/∂b)` with `ψ` the absolute value, scaled to 0…1 for each layer and
/// sample, summed over channels, and made as large as the input. For networks of linear ops, ReLUs and maxima the parts
/// without `ψ` add up to `f`.
///
/// **Shapes.** The raw attribution has the size of the input, `[samples, positions…]`.
///
/// **Units.** None.
///
/// **Conventions.** A bias is what an op gives for an input of zeros: the bias of a convolution or a batch normalization, or
/// a constant that is added. Layers without positions are left out of the map, and so is what other ops than those above add
/// to the target: a warning names them.
///
/// **Known criticism.** Scaling and absolute values give up that the parts add up to the target.
///
/// **Source.** Srinivas and Fleuret 2019, "Full-gradient representation for neural network visualization".
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{FullGrad, Method, Model};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let map = FullGrad::default().attribute(&model, &losses, &picture.into())?;
/// assert_eq!(map.raw.shape(), [1, 128, 128]);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FullGrad {
    /// How the map of a layer becomes as large as the input.
    pub upsampling: Upsampling,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for FullGrad {
    fn default() -> Self {
        Self { upsampling: Upsampling::Linear, settings: Settings::default() }
    }
}

impl Method for FullGrad {
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

/// The parts of the full gradient, in the shapes of their tensors.
struct Parts {
    graph: Graph,
    coverage: Coverage,
    /// The tensor that a part is about, and the part.
    parts: Vec<(ValueId, ValueId)>,
    /// Ops that are neither linear nor homogeneous, and how many there are of each.
    others: BTreeMap<String, usize>,
}

impl Parts {
    /// Adds the parts of the losses to their graph.
    fn new(losses: LossGraph<'_>) -> Result<Self> {
        let LossGraph { model, graph, total, explained, .. } = losses;
        let depends = reaches(&graph, explained, total);
        let count = model.graph().nodes().len();
        let nodes: Vec<Node> = graph.nodes()[..count].to_vec();
        let is_varied = |input: &Option<ValueId>| input.is_some_and(|id| depends[id.index()]);
        let on_the_way = |node: &&Node| depends[node.outputs[0].index()] && node.inputs.iter().any(is_varied);
        let mut others = BTreeMap::new();
        let mut biased: Vec<&Node> = Vec::new();
        for node in nodes.iter().filter(on_the_way) {
            let varied = node.inputs.iter().filter(|input| is_varied(input)).count();
            match kind(&node.op) {
                Kind::Affine if bias_inputs(&node.op, &node.inputs, &depends) => biased.push(node),
                Kind::Affine | Kind::Homogeneous => {}
                Kind::Scaled if varied == 1 => {}
                Kind::Scaled | Kind::Other => *others.entry(node.op.name().to_owned()).or_default() += 1,
            }
        }
        let mut wanted = vec![explained];
        wanted.extend(biased.iter().map(|node| node.outputs[0]));
        let Gradient { graph, values, coverage, .. } = gradient(graph, total, &wanted, &RuleSet::new())?;
        let builder = Builder::new(graph);
        let mut parts = vec![(explained, (builder.var(explained) * builder.var(values[0])).id()?)];
        for (node, &gradient) in biased.iter().zip(&values[1..]) {
            let part = bias(&builder, node, &depends) * builder.var(gradient);
            parts.push((node.outputs[0], part.id()?));
        }
        Ok(Self { graph: builder.finish()?, coverage, parts, others })
    }
}

/// What an op does to the sum of the parts.
enum Kind {
    /// Linear, with a bias if it has constant inputs.
    Affine,
    /// Of degree one: its gradient times its input is its output.
    Homogeneous,
    /// So where a single factor is varied.
    Scaled,
    Other,
}

fn kind(op: &Op) -> Kind {
    match op {
        Op::Conv(_)
        | Op::ConvTranspose(_)
        | Op::Gemm(_)
        | Op::BatchNormalization(_)
        | Op::Add(_)
        | Op::Sub(_) => Kind::Affine,
        Op::MatMul(_) | Op::Mul(_) | Op::Div(_) | Op::Einsum(_) => Kind::Scaled,
        Op::Relu(_)
        | Op::LeakyRelu(_)
        | Op::PRelu(_)
        | Op::Neg(_)
        | Op::Abs(_)
        | Op::Sum(_)
        | Op::Mean(_) => Kind::Homogeneous,
        Op::ReduceSum(_) | Op::ReduceMean(_) | Op::ReduceMax(_) | Op::ReduceMin(_) => Kind::Homogeneous,
        _ if matches!(
            op.family(),
            "layout" | "pool" | "slice" | "pad" | "gather" | "resize" | "rearrange"
        ) =>
        {
            Kind::Homogeneous
        }
        _ => Kind::Other,
    }
}

/// True if an affine op has something to add to an input of zeros.
fn bias_inputs(op: &Op, inputs: &[Option<ValueId>], depends: &[bool]) -> bool {
    match op {
        Op::Add(_) | Op::Sub(_) => inputs.iter().flatten().any(|id| !depends[id.index()]),
        Op::BatchNormalization(_) => true,
        _ => inputs.get(2).copied().flatten().is_some(),
    }
}

/// What an affine op gives for an input of zeros, in a shape that broadcasts to that of its output.
fn bias<'b>(builder: &'b Builder, node: &Node, depends: &[bool]) -> Var<'b> {
    let rank = builder.graph().fact(node.outputs[0]).rank();
    let var = |place: usize| node.inputs.get(place).copied().flatten().map(|id| builder.var(id));
    match (&node.op, var(2)) {
        (Op::Conv(_) | Op::ConvTranspose(_), Some(bias)) => bias.unsqueeze(1..rank - 1),
        (Op::Gemm(gemm), Some(bias)) => bias * gemm.beta.0,
        _ => {
            let zero = |(place, id): (usize, ValueId)| {
                let value = builder.var(id);
                match &node.op {
                    Op::BatchNormalization(_) if place == 0 => {
                        let scale = builder.var(node.inputs[1].unwrap_or(id));
                        (scale * 0.0).unsqueeze((0..rank).filter(|&axis| axis != 1))
                    }
                    _ if depends[id.index()] => value.scalar_like(0.0),
                    _ => value,
                }
            };
            let inputs: Vec<Option<Var<'b>>> = (node.inputs.iter().enumerate())
                .map(|(place, input)| input.map(|id| zero((place, id))))
                .collect();
            builder.apply_all(node.op.clone(), &inputs)[0]
        }
    }
}

/// For each value, whether it depends on `from` through floating point values and `to` on it.
fn reaches(graph: &Graph, from: ValueId, to: ValueId) -> Vec<bool> {
    let mut after = vec![false; graph.values().len()];
    let mut before = after.clone();
    after[from.index()] = true;
    before[to.index()] = true;
    for node in graph.nodes() {
        if node.inputs.iter().flatten().any(|id| after[id.index()]) {
            node.outputs.iter().for_each(|id| after[id.index()] = graph.fact(*id).dtype.is_float());
        }
    }
    for node in graph.nodes().iter().rev() {
        if node.outputs.iter().any(|id| before[id.index()] && after[id.index()]) {
            node.inputs.iter().flatten().for_each(|id| before[id.index()] = true);
        }
    }
    after.iter().zip(before).map(|(after, before)| *after && before).collect()
}

impl GraphMethod for FullGrad {
    fn build(&self, losses: LossGraph<'_>) -> Result<AttributionGraph> {
        let (model, explained, channel_axis) = (losses.model, losses.explained, losses.channel_axis);
        let Parts { graph, coverage, parts, others } = Parts::new(losses)?;
        let rank = graph.fact(explained).rank();
        let sides: Vec<usize> = (1..rank).filter(|&axis| Some(axis) != channel_axis).collect();
        let of_input = SpatialLayer::of_input(explained, channel_axis, &sides);
        let builder = Builder::new(graph);
        let input = builder.var(explained);
        let mut sum: Option<Var<'_>> = None;
        for (tensor, part) in parts {
            let layer = match tensor == explained {
                true => of_input.clone(),
                false => model.spatial_with(tensor, channel_axis).ok(),
            };
            let Some(layer) = layer.filter(|layer| layer.map_rank() == sides.len()) else { continue };
            let size = arranged(&layer, builder.var(part))?.abs();
            let axes = || 1..size.rank();
            let lowest = -(-size).reduce_max(axes(), true);
            let scaled = (size - lowest) / (size.reduce_max(axes(), true) - lowest + SCALE_EPSILON);
            let large = enlarged(scaled.reduce_sum([1], false), input, &sides, self.upsampling)?;
            sum = Some(sum.map_or(large, |sum| sum + large));
        }
        let Some(sum) = sum else {
            crate::error::bail!(
                option,
                "neither the input nor a layer has positions: full_grad needs an input [samples, channels, …]"
            );
        };
        let raw = sum.id()?;
        let mut warnings = Vec::new();
        if !others.is_empty() {
            let list: Vec<String> = others.iter().map(|(op, count)| format!("{count} × {op}")).collect();
            warnings.push(format!(
                "full_grad leaves out what {} add to the target: they are not piecewise linear in the input",
                list.join(", ")
            ));
        }
        let known = AttributionGraph::new(builder.finish()?, raw, explained, None);
        Ok(AttributionGraph { coverage, warnings, ..known })
    }
}

/// The sum of all parts for each sample, and what is explained, in float64.
#[cfg(test)]
pub(super) fn sums_and_scores(
    model: &crate::Model,
    losses: &[crate::losses::WeightedLoss],
    input: &ndarray::ArrayD<f32>,
) -> (Vec<f64>, Vec<f64>) {
    let losses = LossGraph::new(model, losses, &Settings::default()).unwrap();
    let score = losses.losses[0];
    let Parts { graph, parts, others, .. } = Parts::new(losses).unwrap();
    assert!(others.is_empty(), "{others:?}");
    let builder = Builder::new(graph);
    let sums = parts.iter().map(|(_, part)| {
        let part = builder.var(*part);
        part.reduce_sum(1..part.rank(), false)
    });
    let sum = sums.reduce(|sum, part| sum + part).unwrap().id().unwrap();
    let graph = builder.finish().unwrap();
    let shapes = [(model.main_input(), input.shape().to_vec())];
    let plan = crate::Plan::new(&graph, &shapes, &[sum, score], crate::Precision::F64).unwrap();
    let outputs = plan.run(&[input.clone().into()]).unwrap();
    let values = |place: usize| outputs[place].to_f64().iter().copied().collect();
    (values(0), values(1))
}
