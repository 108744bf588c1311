//! A model: the graph of an ONNX file, and how its tensors are named.

use crate::compile::{Plan, Precision};
use crate::dim::{Bindings, Dim, element_count};
use crate::error::{Context, Error, Result, bail};
use crate::graph::{Graph, NodeId, Source, ValueId};
use crate::image::Layout;
use crate::input::Input;
use crate::onnx::{self, Imported, Layer, LayerState, ModelSource, ParsedModel};
use crate::op::{Op, OpDef};
use crate::parts::Cut;
use crate::rewrite;
use crate::target::{Region, TargetAxes};
use crate::tensor::{DType, Tensor};
use crate::units::{self, Unit};
use ndarray::Array2;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Names a tensor of a model: by tensor name, by node name, or by layer index as `ouzel inspect` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorRef {
    /// A tensor's name, else a node's name (its first output), else a layer index written as a number.
    Name(String),
    /// A layer's index; negative counts from the end.
    Index(i64),
}

impl From<&str> for TensorRef {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl From<String> for TensorRef {
    fn from(name: String) -> Self {
        Self::Name(name)
    }
}

impl From<i64> for TensorRef {
    fn from(index: i64) -> Self {
        Self::Index(index)
    }
}

impl From<i32> for TensorRef {
    fn from(index: i32) -> Self {
        Self::Index(index.into())
    }
}

impl fmt::Display for TensorRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Index(index) => write!(f, "{index}"),
        }
    }
}

/// A network read from an ONNX file.
///
/// Cheap to clone; never changed by an explanation.
///
/// Ops that are not supported do not prevent loading: they matter only if what is asked for depends on them, and then
/// one error lists all of them.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    title: String,
    graph: Graph,
    layers: Vec<Layer>,
    outputs: Vec<String>,
    values: HashMap<String, ValueId>,
    narrow: HashMap<String, i32>,
    nodes: HashMap<String, usize>,
    opset: i64,
    producer: String,
    metadata: BTreeMap<String, String>,
    name: String,
    source: ModelSource,
    units: OnceLock<Units>,
    unread: Option<Arc<Unread>>,
}

/// What a model was read from, kept where it has nodes that could not be read as long as sizes are open.
struct Unread {
    parsed: ParsedModel,
    fixed: Vec<(String, Tensor)>,
}

/// The units of a graph, and where they are.
struct Units {
    units: Vec<Unit>,
    /// Places in `units`.
    of_node: HashMap<NodeId, usize>,
}

/// What `inspect` says of a node of the file.
#[derive(Clone, Debug)]
pub struct LayerSummary<'a> {
    /// The place in the file; the index by which the layer can be named.
    pub index: usize,
    /// The node's name; may be empty.
    pub name: &'a str,
    /// The ONNX op.
    pub op: &'a str,
    /// The name of the first output.
    pub output: &'a str,
    /// The value behind the first output, if the node is supported.
    pub value: Option<ValueId>,
    /// The elements of the constants that the node reads.
    pub parameters: usize,
    /// Why the node is not supported, if it is not.
    pub missing: Option<&'a str>,
    /// True if the node depends on one that is not supported.
    pub blocked: bool,
}

impl Model {
    /// Reads a file.
    ///
    /// Weights stay in the file until they are needed.
    ///
    /// # Errors
    /// If the file cannot be read or is not an ONNX model of opset 1 to 27.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        Self::load_fixed(path, &[])
    }

    /// Reads a file and makes constants of some inputs.
    ///
    /// This is for inputs that say how the network computes, such as a shape, a number of repetitions or a condition:
    /// shapes that depend on them are known from then on, and loops are unrolled.
    ///
    /// # Errors
    /// As [`Model::load`]; also if there is no input of such a name.
    pub fn load_fixed(path: impl AsRef<Path>, fixed: &[(&str, Tensor)]) -> Result<Self> {
        let path = path.as_ref();
        let title = path.display().to_string();
        let fixed = fixed.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone())).collect();
        let unread = Unread { parsed: onnx::read_path(path)?, fixed };
        Self::new(title.clone(), Arc::new(unread), &Bindings::new()).context(|| title)
    }

    /// Reads a model that is in memory.
    ///
    /// # Errors
    /// As [`Model::load`]; weights in external files cannot be found this way.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        Self::of_parsed(onnx::read_bytes(bytes.into().into())?)
    }

    /// Reads a model from a stream.
    ///
    /// # Errors
    /// As [`Model::from_bytes`].
    pub fn from_reader(reader: impl std::io::Read) -> Result<Self> {
        Self::of_parsed(onnx::read_reader(reader)?)
    }

    fn of_parsed(parsed: ParsedModel) -> Result<Self> {
        Self::new("the model".into(), Arc::new(Unread { parsed, fixed: vec![] }), &Bindings::new())
    }

    fn new(title: String, unread: Arc<Unread>, bindings: &Bindings) -> Result<Self> {
        let Imported { graph, layers, outputs, values, narrow, opset, producer, metadata, name, source } =
            onnx::import(&unread.parsed, &unread.fixed, bindings)?;
        if graph.values().len() == 0 {
            bail!(model, "the model has neither inputs nor constants");
        }
        let mut nodes = HashMap::new();
        for (index, layer) in layers.iter().enumerate().filter(|(_, layer)| !layer.name.is_empty()) {
            nodes.entry(layer.name.clone()).or_insert(index);
        }
        // The number of samples stays open, so nothing waits for it.
        let is_open = |id: &ValueId| graph.fact(*id).shape.iter().skip(1).any(|dim| dim.known().is_none());
        let may_be_read = layers.iter().any(|layer| matches!(layer.state, LayerState::Missing(_)))
            && graph.inputs().iter().any(is_open);
        let inner = Inner {
            unread: may_be_read.then_some(unread),
            title,
            graph,
            layers,
            outputs,
            values,
            narrow,
            nodes,
            opset,
            producer,
            metadata,
            name,
            source,
            units: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A model whose tensors are the named values of a graph.
    #[cfg(test)]
    pub(crate) fn of_graph(graph: Graph) -> Self {
        let values = graph.values().map(|(id, value)| (value.name.to_string(), id)).collect();
        let outputs = graph.outputs.iter().map(|id| graph.value(*id).name.to_string()).collect();
        let inner = Inner {
            title: "a graph".into(),
            graph,
            layers: vec![],
            outputs,
            values,
            narrow: HashMap::new(),
            nodes: HashMap::new(),
            opset: 0,
            producer: String::new(),
            metadata: BTreeMap::new(),
            name: String::new(),
            source: ModelSource::empty(),
            units: OnceLock::new(),
            unread: None,
        };
        Self { inner: Arc::new(inner) }
    }

    /// How messages speak of the model: its path.
    pub fn title(&self) -> &str {
        &self.inner.title
    }

    /// The inputs and outputs whose elements the file has in 16 bits, with ONNX's number of their type.
    pub(crate) fn narrow(&self) -> &HashMap<String, i32> {
        &self.inner.narrow
    }

    /// The graph, as far as it is supported.
    pub fn graph(&self) -> &Graph {
        &self.inner.graph
    }

    /// The version of the ONNX operators.
    pub fn opset(&self) -> i64 {
        self.inner.opset
    }

    /// The program that wrote the file.
    pub fn producer(&self) -> &str {
        &self.inner.producer
    }

    /// The file's metadata.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.inner.metadata
    }

    /// The name that the file gives the graph.
    pub fn graph_name(&self) -> &str {
        &self.inner.name
    }

    /// The SHA-256 of the model's file, in hexadecimal; of weights in other files nothing is known by it.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn sha256(&self) -> Result<String> {
        self.inner.source.sha256()
    }

    /// The inputs, without initializers.
    pub fn inputs(&self) -> &[ValueId] {
        self.inner.graph.inputs()
    }

    /// The first floating point input: what maps are made for by default.
    ///
    /// A model without one can only be run: its first input, or else its first value, stands in, and nothing can be
    /// differentiated for it.
    pub fn main_input(&self) -> ValueId {
        let graph = self.graph();
        let is_float = |id: &&ValueId| graph.fact(**id).dtype.is_float();
        let first = || self.inputs().first().copied().or_else(|| graph.values().next().map(|(id, _)| id));
        let main = self.inputs().iter().find(is_float).copied().or_else(first);
        main.expect("invariant: checked on loading that there is a value")
    }

    /// The order of an input's axes as its shape suggests it: channels last if the rank is at least 3 and the last
    /// dimension is smaller than dimension 1, both being known; else channels first.
    pub fn input_layout(&self, input: ValueId) -> Layout {
        if is_channels_last(&self.graph().fact(input).shape) { Layout::Nhwc } else { Layout::Nchw }
    }

    /// The names of the outputs.
    pub fn output_names(&self) -> &[String] {
        &self.inner.outputs
    }

    /// The input of this name.
    ///
    /// # Errors
    /// If there is none; the message lists the inputs.
    pub fn input(&self, name: &str) -> Result<ValueId> {
        let graph = self.graph();
        match self.inputs().iter().find(|&&id| &*graph.value(id).name == name) {
            Some(&id) => Ok(id),
            None => {
                let names: Vec<&str> = self.inputs().iter().map(|&id| &*graph.value(id).name).collect();
                bail!(input, "the model has no input '{name}'; its inputs are '{}'", names.join("', '"))
            }
        }
    }

    /// The nodes of the file, `Constant` nodes excepted.
    pub fn layers(&self) -> impl ExactSizeIterator<Item = LayerSummary<'_>> {
        self.inner.layers.iter().enumerate().map(|(index, layer)| {
            let output = layer.outputs.first().map_or("", String::as_str);
            LayerSummary {
                index,
                name: &layer.name,
                op: &layer.op,
                output,
                value: self.inner.values.get(output).copied(),
                parameters: self.parameters(layer),
                missing: match &layer.state {
                    LayerState::Missing(reason) => Some(reason),
                    _ => None,
                },
                blocked: matches!(layer.state, LayerState::Blocked),
            }
        })
    }

    fn recognized(&self) -> &Units {
        self.inner.units.get_or_init(|| {
            let units = units::recognize(self.graph(), &[]);
            let mut of_node = HashMap::new();
            for (place, unit) in units.iter().enumerate() {
                of_node.extend(unit.nodes.iter().map(|node| (*node, place)));
            }
            Units { units, of_node }
        })
    }

    /// The operations that the file spells out in primitives, in the order of the graph; found when first asked for.
    pub fn units(&self) -> &[Unit] {
        &self.recognized().units
    }

    /// How many times the network rounds numbers on its way, as quantized ones do. Rounding has no derivative: gradients pass straight
    /// through, and stop where a number was clipped to what its type can hold.
    pub fn roundings(&self) -> usize {
        let rounds = |op: &Op| matches!(op, Op::RoundThrough(_) | Op::RoundTo(_));
        self.graph().nodes().iter().filter(|node| rounds(&node.op)).count()
    }

    /// The place among [`Model::units`] of the unit that a value is computed in.
    pub fn unit_of(&self, value: ValueId) -> Option<usize> {
        self.recognized().of_node.get(&self.graph().producer(value)?).copied()
    }

    fn parameters(&self, layer: &Layer) -> usize {
        let graph = self.graph();
        let constants = layer.inputs.iter().filter_map(|name| self.inner.values.get(name));
        constants
            .filter_map(|&id| graph.constant(id))
            .filter(|constant| is_weight(constant.fact().dtype))
            .filter_map(|constant| element_count(&constant.fact().shape))
            .fold(0, usize::saturating_add)
    }

    /// The number of elements of all constants that are weights: floating point numbers, and narrow integers that stand for such.
    pub fn parameter_count(&self) -> usize {
        let constants = self.graph().values().filter_map(|(_, value)| match &value.source {
            Source::Constant(constant) if is_weight(constant.fact().dtype) => Some(constant.fact()),
            _ => None,
        });
        constants.filter_map(|fact| element_count(&fact.shape)).fold(0, usize::saturating_add)
    }

    /// Finds a tensor.
    ///
    /// # Errors
    /// If nothing has that name or index, or if it depends on ops that are not supported; the message lists them.
    pub fn find(&self, tensor: impl Into<TensorRef>) -> Result<ValueId> {
        match tensor.into() {
            TensorRef::Index(index) => self.layer_output(index),
            TensorRef::Name(name) => {
                if let Some(&id) = self.inner.values.get(&name) {
                    return Ok(id);
                }
                if self.inner.layers.iter().any(|layer| layer.outputs.contains(&name)) {
                    return Err(self.missing_ops(&name));
                }
                if let Some(&index) = self.inner.nodes.get(&name) {
                    return self.layer_output(index as i64);
                }
                match name.parse() {
                    Ok(index) => self.layer_output(index),
                    Err(_) => Err(self.unknown_tensor(&name)),
                }
            }
        }
    }

    fn layer_output(&self, index: i64) -> Result<ValueId> {
        let count = self.inner.layers.len() as i64;
        let resolved = if index < 0 { index + count } else { index };
        let Some(layer) = usize::try_from(resolved).ok().and_then(|place| self.inner.layers.get(place))
        else {
            bail!(target, "there is no layer {index}: the model has {count} layers, 0 to {}", count - 1);
        };
        match layer.outputs.iter().find(|name| !name.is_empty()) {
            Some(name) => match self.inner.values.get(name) {
                Some(&id) => Ok(id),
                None => Err(self.missing_ops(name)),
            },
            None => bail!(target, "layer {index} ({}) has no output", layer.op),
        }
    }

    /// Which ops must be supported for `tensor`, and are not.
    fn missing_ops(&self, tensor: &str) -> Error {
        let mut producers: HashMap<&str, &Layer> = HashMap::new();
        for layer in &self.inner.layers {
            for output in &layer.outputs {
                producers.insert(output, layer);
            }
        }
        let mut seen = HashSet::new();
        let mut queue = VecDeque::from([tensor]);
        let mut missing = Vec::new();
        while let Some(name) = queue.pop_front() {
            let Some(layer) = producers.get(name).filter(|_| seen.insert(name)) else { continue };
            if let LayerState::Missing(reason) = &layer.state {
                let named = if layer.name.is_empty() { name } else { layer.name.as_str() };
                missing.push(format!("\n  {} '{named}': {reason}", layer.op));
            }
            queue.extend(layer.inputs.iter().map(String::as_str));
        }
        missing.sort();
        missing.dedup();
        let hint = match self.inner.unread {
            Some(_) => {
                "\nThe file leaves the size of its input open; where a node depends on that, \
                 Model::for_inputs, or --size of 'ouzel export', says it"
            }
            None => "",
        };
        Error::unsupported(format!(
            "'{tensor}' depends on {} that cannot be used:{}{hint}",
            if missing.len() == 1 { "a node" } else { "nodes" },
            missing.concat()
        ))
    }

    fn unknown_tensor(&self, name: &str) -> Error {
        let wanted = name.to_lowercase();
        let known = self.inner.values.keys().chain(self.inner.nodes.keys());
        let mut near: Vec<&String> = known.filter(|known| known.to_lowercase().contains(&wanted)).collect();
        near.sort();
        near.truncate(5);
        let hint = match near.is_empty() {
            true => "'ouzel inspect' lists the layers".to_owned(),
            false => {
                let near: Vec<&str> = near.iter().map(|name| name.as_str()).collect();
                format!("did you mean '{}'?", near.join("', '"))
            }
        };
        Error::target(format!("the model has no tensor or layer '{name}'; {hint}"))
    }

    /// The tensor that is explained when no layer is named: the first floating point output, or, if that is a Softmax
    /// or LogSoftmax and `keep_softmax` is false, what goes into it. The second value is true in that case.
    ///
    /// # Errors
    /// If the model has no floating point output, or it depends on ops that are not supported.
    pub fn default_target(&self, keep_softmax: bool) -> Result<(ValueId, bool)> {
        let graph = self.graph();
        let mut first_problem = None;
        for name in &self.inner.outputs {
            match self.inner.values.get(name) {
                Some(&id) if graph.fact(id).dtype.is_float() => {
                    return Ok(match before_softmax(graph, id).filter(|_| !keep_softmax) {
                        Some(logits) => (logits, true),
                        None => (id, false),
                    });
                }
                Some(_) => {}
                None => {
                    first_problem.get_or_insert_with(|| self.missing_ops(name));
                }
            }
        }
        Err(first_problem
            .unwrap_or_else(|| Error::target("the model has no floating point output to explain")))
    }
}

/// True for the types of weights; shapes and indices are wide integers.
fn is_weight(dtype: DType) -> bool {
    dtype.is_float() || matches!(dtype, DType::I16 | DType::I8 | DType::U16 | DType::U8)
}

/// Sizes that the file leaves open.
impl Model {
    /// The same model for inputs whose axes have these lengths, where they are not known already; `None` leaves an axis
    /// open.
    ///
    /// Nodes that could not be read because they depend on a length that was open are read now. Tensors have other ids in
    /// the new model: find them again.
    ///
    /// # Errors
    /// If an axis has another length, or shapes inside the network do not fit; the message names the node.
    pub fn with_lengths(&self, input: ValueId, lengths: &[Option<usize>]) -> Result<Self> {
        let graph = self.graph();
        let fact = graph.fact(input);
        let mut bindings = Bindings::new();
        for (axis, (dim, length)) in fact.shape.iter().zip(lengths).enumerate() {
            let Some(length) = length.map(|length| length as i64) else { continue };
            match (dim.known(), dim.as_symbol()) {
                (Some(known), _) if known != length => bail!(
                    input,
                    "axis {axis} of the input {} has the length {known}, not {length}",
                    graph.title(input)
                ),
                (None, Some(symbol)) => {
                    bindings.insert(symbol.clone(), length);
                }
                _ => {}
            }
        }
        match &self.inner.unread {
            Some(unread) => self.read_again(unread, &bindings),
            None => self.bound(&bindings),
        }
    }

    /// True if there are nodes that may be readable once the sizes of the inputs are known, by [`Model::for_inputs`].
    pub fn awaits_sizes(&self) -> bool {
        self.inner.unread.is_some()
    }

    /// The model for inputs of these shapes, if it has nodes that can be read only when sizes are known, such as a Pad by what
    /// is missing to a multiple of the stride, or a Range over the rows; else the same model. How many samples there are
    /// stays open, if that is a symbol of its own.
    ///
    /// Tensors may have other ids in the new model: find them again.
    ///
    /// # Errors
    /// If the shapes do not fit the inputs; the message names the input.
    pub fn for_inputs(&self, shapes: &[(ValueId, Vec<usize>)]) -> Result<Self> {
        match &self.inner.unread {
            Some(unread) => self.read_again(unread, &self.bindings(shapes)?),
            None => Ok(self.clone()),
        }
    }

    fn read_again(&self, unread: &Arc<Unread>, bindings: &Bindings) -> Result<Self> {
        let title = self.title();
        Self::new(title.to_owned(), unread.clone(), bindings).context(|| title.to_owned())
    }

    /// The same model for inputs of these shapes. How many samples there are stays open, if that is a symbol of its own; values
    /// keep their ids.
    ///
    /// # Errors
    /// If the shapes do not fit the inputs, or shapes inside the network do not fit; the message names the node.
    pub(crate) fn for_shapes(&self, shapes: &[(ValueId, Vec<usize>)]) -> Result<Self> {
        let bindings = self.bindings(shapes)?;
        if bindings.is_empty() { Ok(self.clone()) } else { self.bound(&bindings) }
    }

    /// What the symbols are for inputs of these shapes, but for the number of samples.
    fn bindings(&self, shapes: &[(ValueId, Vec<usize>)]) -> Result<Bindings> {
        let graph = self.graph();
        let mut bindings = Bindings::new();
        for (id, shape) in shapes {
            rewrite::bind(&graph.value(*id).name, graph.fact(*id), shape, &mut bindings)?;
        }
        let mut other_axes = self.inputs().iter().flat_map(|id| graph.fact(*id).shape.iter().skip(1));
        let batch = graph.fact(self.main_input()).shape.first();
        if let Some((batch, symbol)) = batch.and_then(|batch| Some((batch, batch.as_symbol()?)))
            && other_axes.all(|dim| dim != batch)
        {
            bindings.remove(symbol);
        }
        Ok(bindings)
    }

    fn bound(&self, bindings: &Bindings) -> Result<Self> {
        let old = &*self.inner;
        let inner = Inner {
            graph: old.graph.bound(bindings).context(|| self.title().to_owned())?,
            values: old.values.clone(),
            narrow: old.narrow.clone(),
            title: old.title.clone(),
            layers: old.layers.clone(),
            outputs: old.outputs.clone(),
            nodes: old.nodes.clone(),
            opset: old.opset,
            producer: old.producer.clone(),
            metadata: old.metadata.clone(),
            name: old.name.clone(),
            source: old.source.clone(),
            units: OnceLock::new(),
            unread: old.unread.clone(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

/// The prediction.
impl Model {
    /// Computes tensors of the model.
    ///
    /// If the file takes one sample at a time, several samples are computed one after the other.
    ///
    /// # Errors
    /// If the input does not fit the model.
    pub fn run(&self, input: &Input, tensors: &[ValueId], precision: Precision) -> Result<Vec<Tensor>> {
        let inputs = input.resolve(self)?;
        let shapes: Vec<(ValueId, Vec<usize>)> =
            inputs.iter().map(|(id, tensor)| (*id, tensor.shape().to_vec())).collect();
        let tensors_in: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
        let has_batch_axis = |id: &ValueId| self.graph().fact(*id).shape.first().is_some_and(|dim| dim.is(1));
        match Cut::new(self, self.main_input(), &shapes) {
            Some(cut) if cut.one_at_a_time && tensors.iter().all(has_batch_axis) => {
                let plan = Plan::new(self.graph(), &cut.shapes(&shapes, 1), tensors, precision)?;
                let samples: Vec<Vec<Tensor>> = (0..cut.samples)
                    .map(|sample| plan.run(&cut.inputs(&tensors_in, sample..sample + 1)?))
                    .collect::<Result<_>>()?;
                let of_all =
                    |index: usize| samples.iter().map(|sample| sample[index].clone()).collect::<Vec<_>>();
                (0..tensors.len()).map(|index| Tensor::join(&of_all(index))).collect()
            }
            _ => Plan::new(self.graph(), &shapes, tensors, precision)?.run(&tensors_in),
        }
    }

    /// The score of each filter of a tensor for each sample, `[samples, filters]`: the mean over positions.
    ///
    /// # Errors
    /// As [`Model::run`]; also if `channel_axis` does not exist.
    pub fn scores(
        &self,
        tensor: ValueId,
        channel_axis: i64,
        input: &Input,
        precision: Precision,
    ) -> Result<Array2<f64>> {
        let values = self.run(input, &[tensor], precision)?;
        self.scores_of(tensor, channel_axis, &values[0])
    }

    /// The same scores, where the tensor's values are already there.
    ///
    /// # Errors
    /// If `channel_axis` does not exist.
    pub fn scores_of(&self, tensor: ValueId, channel_axis: i64, values: &Tensor) -> Result<Array2<f64>> {
        self.scores_in(tensor, channel_axis, &Region::All, values)
    }

    /// The same scores, as means over the positions of a region.
    ///
    /// # Errors
    /// If `channel_axis` does not exist, or the tensor has no such positions.
    pub fn scores_in(
        &self,
        tensor: ValueId,
        channel_axis: i64,
        region: &Region,
        values: &Tensor,
    ) -> Result<Array2<f64>> {
        let batch = self.graph().fact(self.main_input()).shape.first().cloned();
        let axes = TargetAxes::new(self.graph().fact(tensor), channel_axis, batch.as_ref())?;
        axes.scores(values.to_f64(), region)
    }

    /// The output that a tensor becomes without its elements losing their meaning: the tensor itself, or what an
    /// activation at the end (Softmax, LogSoftmax, Sigmoid, Tanh) makes of it.
    pub fn output_of(&self, tensor: ValueId) -> Option<&str> {
        let graph = self.graph();
        let leads_here = |name: &&String| {
            let mut value = self.inner.values.get(*name).copied();
            while let Some(id) = value {
                if id == tensor {
                    return true;
                }
                value = graph.producer(id).and_then(|node| {
                    let node = graph.node(node);
                    let keeps = [&["Softmax", "LogSoftmax", "Sigmoid", "Tanh"][..], SAME_ELEMENTS].concat();
                    node.inputs.first().copied().flatten().filter(|_| keeps.contains(&node.op.name()))
                });
            }
            false
        };
        self.inner.outputs.iter().find(leads_here).map(String::as_str)
    }
}

/// True for a shape such as `[n, 224, 224, 3]`: rank at least 3, and the last dimension smaller than dimension 1.
pub(crate) fn is_channels_last(shape: &[Dim]) -> bool {
    match (shape.get(1).and_then(Dim::known), shape.last().and_then(Dim::known)) {
        (Some(second), Some(last)) => shape.len() >= 3 && last < second,
        _ => false,
    }
}

/// Ops that keep the elements of their first input, and their order.
const SAME_ELEMENTS: &[&str] = &["Identity", "Cast", "RoundTo", "Reshape", "Squeeze"];

/// The input of a Softmax or LogSoftmax at the end, seen through ops that keep the elements.
fn before_softmax(graph: &Graph, output: ValueId) -> Option<ValueId> {
    let mut value = output;
    loop {
        let node = graph.node(graph.producer(value)?);
        let input = node.inputs.first().copied().flatten()?;
        match node.op.name() {
            "Softmax" | "LogSoftmax" => return Some(input),
            op if SAME_ELEMENTS.contains(&op) => value = input,
            _ => return None,
        }
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Model({}, {} layers)", self.inner.title, self.inner.layers.len())
    }
}
