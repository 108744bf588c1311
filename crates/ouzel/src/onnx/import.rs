//! From the messages of a file to a graph that keeps every node and tensor name.

use super::functions::{self, Function};
use super::old;
use super::proto::{
    AttributeProto, DimensionValue, FunctionProto, GraphProto, NodeProto, TensorProto, TensorTypeProto,
    TypeValue, ValueInfoProto, attribute_type, data_type,
};
use super::reader::{Attribute, NodeReader};
use super::stored::{Source, dtype_of_code};
use super::wire::ParsedModel;
use crate::dim::{Bindings, Dim};
use crate::error::{Context, Error, Result, bail};
use crate::graph::{self, Constant, Fact, Graph, ValueId};
use crate::op::{READERS, Reader};
use crate::ops::layout::Identity;
use crate::ops::quantize::Format;
use crate::tensor::Tensor;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The operator set versions that can be read.
const OPSETS: std::ops::RangeInclusive<i64> = 1..=27;

/// A node of the file, whether it could be read or not.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// The node's name; may be empty.
    pub(crate) name: String,
    /// The ONNX op.
    pub(crate) op: String,
    /// The tensors that it reads; left-out inputs are empty.
    pub(crate) inputs: Vec<String>,
    /// The tensors that it computes.
    pub(crate) outputs: Vec<String>,
    /// What became of it.
    pub(crate) state: LayerState,
}

/// What became of a node of the file.
#[derive(Clone, Debug)]
pub(crate) enum LayerState {
    /// It is a node of the graph.
    Read,
    /// It is not supported, for this reason.
    Missing(String),
    /// It depends on a node that is not supported.
    Blocked,
}

/// What a file holds.
pub(crate) struct Imported {
    pub(crate) graph: Graph,
    /// The nodes of the file, `Constant` nodes excepted, in the file's order.
    pub(crate) layers: Vec<Layer>,
    /// The names of the graph's outputs, those that could not be read included.
    pub(crate) outputs: Vec<String>,
    /// Values by tensor name.
    pub(crate) values: HashMap<String, ValueId>,
    /// The inputs and outputs whose elements the file has in 16 bits, with ONNX's number of their type.
    pub(crate) narrow: HashMap<String, i32>,
    pub(crate) opset: i64,
    pub(crate) producer: String,
    pub(crate) metadata: BTreeMap<String, String>,
    /// The graph's name.
    pub(crate) name: String,
    /// The bytes that it was read from.
    pub(crate) source: Source,
}

/// Builds the graph. Nodes that are not supported, and those that depend on them, are kept aside as layers.
///
/// Inputs whose elements are given by `fixed` become constants; the symbols of the others are what `bindings` says.
pub(crate) fn import(
    parsed: &ParsedModel,
    fixed: &[(String, Tensor)],
    bindings: &Bindings,
) -> Result<Imported> {
    let model = &parsed.model;
    let Some(file) = &model.graph else {
        bail!(model, "the file has no graph: it is not an ONNX model, or it is damaged");
    };
    let opset = opset(parsed)?;
    let mut importer = Importer::new(parsed, opset);
    importer.add_initializers(file)?;
    importer.add_inputs(file, fixed, bindings)?;
    let layers = importer.add_nodes(&file.node)?;
    let outputs: Vec<String> = file.output.iter().map(|output| output.name.clone()).collect();
    if outputs.is_empty() {
        bail!(model, "the graph has no output");
    }
    for output in &outputs {
        let known = importer.values.contains_key(output);
        if !known && !layers.iter().any(|layer| layer.outputs.contains(output)) {
            bail!(model, "the output '{output}' is not computed by any node");
        }
    }
    importer.graph.outputs = outputs.iter().filter_map(|name| importer.values.get(name).copied()).collect();
    Ok(Imported {
        graph: importer.graph,
        layers,
        outputs,
        values: importer.values,
        narrow: file.input.iter().chain(&file.output).filter_map(narrow_type).collect(),
        opset,
        producer: format!("{} {}", model.producer_name, model.producer_version).trim().to_owned(),
        name: file.name.clone(),
        source: parsed.source.clone(),
        metadata: model.metadata_props.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect(),
    })
}

pub(super) fn is_standard(domain: &str) -> bool {
    matches!(domain, "" | "ai.onnx")
}

fn opset(parsed: &ParsedModel) -> Result<i64> {
    let standard = parsed.model.opset_import.iter().filter(|entry| is_standard(&entry.domain));
    let Some(version) = standard.map(|entry| entry.version).max() else {
        bail!(model, "the file does not say which version of the ONNX operators it uses");
    };
    if !OPSETS.contains(&version) {
        bail!(
            unsupported,
            "the model uses opset {version}; supported are {} to {}: convert it with onnx.version_converter",
            OPSETS.start(),
            OPSETS.end()
        );
    }
    Ok(version)
}

/// What an op of the file becomes.
#[derive(Clone, Copy)]
enum Meaning<'a> {
    /// A node.
    Node(Reader),
    /// Several nodes.
    Nodes(Function),
    /// The nodes of a graph that is an attribute of it: `If`, `Loop`, `Scan`.
    Body,
    /// The nodes of a function of the file.
    Call(&'a FunctionProto),
}

pub(super) struct Importer<'a> {
    parsed: &'a ParsedModel,
    pub(super) opset: i64,
    pub(super) graph: Graph,
    /// The values by name, as the nodes that are being read see them.
    pub(super) values: HashMap<String, ValueId>,
    /// The lists of tensors by name.
    lists: HashMap<String, Vec<ValueId>>,
    /// The element types of tensors as the file says them.
    declared: HashMap<&'a str, i64>,
    meanings: HashMap<&'static str, Meaning<'static>>,
    /// The functions of the file by domain, name and overload.
    functions: HashMap<(&'a str, &'a str, &'a str), &'a FunctionProto>,
    /// How many functions are being read one inside the other.
    pub(super) calls: usize,
    /// What names meant before the innermost bodies gave them to values of their own.
    shadowed: Vec<(String, Option<ValueId>)>,
    /// The nodes of bodies and functions that have been read, and how often bodies were gone through.
    unrolled: usize,
    /// How often the bodies of loops and scans have been gone through.
    rounds: usize,
    /// For each value so far, whether it depends on an input.
    varies: Vec<bool>,
}

impl<'a> Importer<'a> {
    fn new(parsed: &'a ParsedModel, opset: i64) -> Self {
        let nodes = READERS
            .iter()
            .flat_map(|(names, reader)| names.iter().map(|name| (*name, Meaning::Node(*reader))));
        let functions = functions::LIST.iter().map(|(name, function)| (*name, Meaning::Nodes(*function)));
        let bodies = ["If", "Loop", "Scan"].map(|name| (name, Meaning::Body));
        let meanings = nodes.chain(functions).chain(bodies).collect();
        let file = parsed.model.graph.as_ref();
        let initializers = file.into_iter().flat_map(|file| &file.initializer);
        let initializers = initializers.map(|tensor| (tensor.name.as_str(), i64::from(tensor.data_type)));
        let described = file.into_iter().flat_map(|file| file.input.iter().chain(&file.value_info));
        let described = described.filter_map(|value| match value.r#type.as_ref()?.value.as_ref()? {
            TypeValue::Tensor(tensor) => Some((value.name.as_str(), i64::from(tensor.elem_type))),
            _ => None,
        });
        let declared = described.chain(initializers).filter(|(_, code)| *code != 0).collect();
        let mut functions = HashMap::new();
        for function in &parsed.model.functions {
            let key = (function.domain.as_str(), function.name.as_str(), function.overload.as_str());
            functions.entry(key).or_insert(function);
        }
        Self {
            parsed,
            opset,
            graph: Graph::default(),
            values: HashMap::new(),
            lists: HashMap::new(),
            declared,
            meanings,
            functions,
            calls: 0,
            shadowed: Vec::new(),
            unrolled: 0,
            rounds: 0,
            varies: Vec::new(),
        }
    }

    /// From now on names are those of an inner graph, until the scope is closed.
    pub(super) fn open_scope(&self) -> usize {
        self.shadowed.len()
    }

    /// Names mean again what they meant when the scope was opened.
    pub(super) fn close_scope(&mut self, scope: usize) {
        for (name, before) in self.shadowed.drain(scope..).rev() {
            match before {
                Some(id) => self.values.insert(name, id),
                None => self.values.remove(&name),
            };
        }
    }

    /// Names a value inside the scope.
    pub(super) fn name_inside(&mut self, name: &str, id: ValueId) {
        let before = self.values.insert(name.to_owned(), id);
        self.shadowed.push((name.to_owned(), before));
    }

    /// Counts one more round of a loop or scan.
    pub(super) fn count_round(&mut self) -> Result<()> {
        /// Rounds that add no node take their time, too.
        const LIMIT: usize = 10_000;
        self.rounds += 1;
        if self.rounds > LIMIT {
            bail!(unsupported, "unrolling it takes more than {LIMIT} rounds");
        }
        Ok(())
    }

    /// True if a value depends on an input of the network.
    pub(super) fn varies(&mut self, id: ValueId) -> bool {
        // From the back, so that what is known is not gone through again.
        let new = self.graph.values().len() - self.varies.len();
        let mut sources: Vec<&graph::Source> =
            self.graph.values().rev().take(new).map(|(_, value)| &value.source).collect();
        sources.reverse();
        for source in sources {
            let varies = match source {
                graph::Source::Input => true,
                graph::Source::Constant(_) => false,
                graph::Source::Node(node) => {
                    let inputs = self.graph.node(*node).inputs.iter().flatten();
                    inputs.into_iter().any(|input| self.varies[input.index()])
                }
            };
            self.varies.push(varies);
        }
        self.varies[id.index()]
    }

    fn name_value(&mut self, name: &str, id: ValueId) -> Result<()> {
        if self.values.insert(name.to_owned(), id).is_some() {
            bail!(model, "two tensors are called '{name}'");
        }
        self.graph.set_name(id, name);
        Ok(())
    }

    pub(super) fn constant(&self, tensor: &TensorProto) -> Result<Constant> {
        let stored = self.parsed.stored(tensor)?;
        let (dtype, shape) = (stored.dtype(), stored.shape().to_vec());
        Constant::stored(dtype, &shape, Box::new(stored))
    }

    fn add_initializers(&mut self, file: &GraphProto) -> Result<()> {
        if let Some(sparse) = file.sparse_initializer.first() {
            let name = sparse.values.as_ref().map_or("", |values| &values.name);
            bail!(unsupported, "the initializer '{name}' is sparse; only dense tensors are supported");
        }
        for tensor in &file.initializer {
            let constant = self.constant(tensor)?;
            let id = self.graph.add_constant("", constant);
            self.name_value(&tensor.name, id)?;
        }
        Ok(())
    }

    fn add_inputs(
        &mut self,
        file: &GraphProto,
        fixed: &[(String, Tensor)],
        bindings: &Bindings,
    ) -> Result<()> {
        // Old files list initializers as inputs too.
        let constants: HashSet<&str> = file.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        if let Some((name, _)) =
            fixed.iter().find(|(name, _)| !file.input.iter().any(|input| input.name == *name))
        {
            bail!(input, "the model has no input '{name}' that could be fixed");
        }
        for input in file.input.iter().filter(|input| !constants.contains(input.name.as_str())) {
            if let Some((_, tensor)) = fixed.iter().find(|(name, _)| *name == input.name) {
                let id = self.graph.add_constant("", Constant::new(tensor.clone()));
                self.name_value(&input.name, id)?;
                continue;
            }
            let mut fact = input_fact(input).context(|| format!("input '{}'", input.name))?;
            fact.shape = fact.shape.iter().map(|dim| dim.bind(bindings)).collect();
            let id = self.graph.add_input("", fact);
            self.name_value(&input.name, id)?;
        }
        Ok(())
    }

    fn add_nodes(&mut self, nodes: &[NodeProto]) -> Result<Vec<Layer>> {
        let mut layers: Vec<Option<Layer>> = nodes.iter().map(|_| None).collect();
        let mut blocked: HashSet<&str> = HashSet::new();
        for index in topological_order(nodes, &self.values)? {
            let node = &nodes[index];
            if is_constant(node) {
                let constant = self.constant_node(node).context(|| title(node))?;
                let id = self.graph.add_constant("", constant);
                let Some(name) = node.output.first() else { bail!(model, "{} has no output", title(node)) };
                self.name_value(name, id)?;
                continue;
            }
            let is_blocked = node.input.iter().any(|input| blocked.contains(input.as_str()));
            let state = match self.meaning(node) {
                // An op that is missing is told even where others before it are, so that all are told at once.
                Err(error) => LayerState::Missing(error.to_string()),
                Ok(_) if is_blocked => LayerState::Blocked,
                Ok(meaning) => match self.add_named(node, meaning) {
                    Ok(()) => LayerState::Read,
                    Err(error) if error.is_unsupported() || error.is_shape() => {
                        LayerState::Missing(error.to_string())
                    }
                    Err(error) => return Err(error).context(|| title(node)),
                },
            };
            if !matches!(state, LayerState::Read) {
                blocked.extend(node.output.iter().map(String::as_str));
            }
            layers[index] = Some(Layer {
                name: node.name.clone(),
                op: node.op_type.clone(),
                inputs: node.input.clone(),
                outputs: node.output.clone(),
                state,
            });
        }
        Ok(layers.into_iter().flatten().collect())
    }

    /// Adds a node of the file, and names its outputs as the file does.
    fn add_named(&mut self, node: &NodeProto, meaning: Meaning) -> Result<()> {
        let first = self.graph.nodes().len();
        let mut made = self.add_node(node, meaning)?;
        let is_list = matches!(meaning, Meaning::Nodes(_)) && functions::makes_a_list(&node.op_type);
        if let (Some(name), true) = (node.output.first(), is_list) {
            self.graph.name_nodes_from(first, &node.name);
            self.lists.insert(name.clone(), made);
            return Ok(());
        }
        if !matches!(meaning, Meaning::Node(_)) {
            for position in 0..made.len() {
                // A value that something else has named, or that is an output twice, keeps its name.
                let id = made[position];
                let is_new = self.graph.producer(id).is_some_and(|node| node.index() >= first);
                if !is_new || made[..position].contains(&id) {
                    let copy = self.graph.add_node("", Identity.into(), &[Some(id)])?;
                    made[position] = self.graph.node(copy).outputs[0];
                }
            }
            self.graph.name_nodes_from(first, &node.name);
        }
        for (position, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            match made.get(position) {
                Some(&value) => self.name_value(name, value)?,
                None => bail!(internal, "an output has no value"),
            }
        }
        Ok(())
    }

    /// Adds the nodes that stand for one of the file, and gives the values of its outputs.
    fn add_node(&mut self, node: &NodeProto, meaning: Meaning) -> Result<Vec<ValueId>> {
        // A list is as many inputs as it has tensors.
        let mut inputs = Vec::new();
        let mut declared = Vec::new();
        for name in &node.input {
            let list = self.lists.get(name).into_iter().flatten().map(|id| (Some(*id), None));
            let one = (!self.lists.contains_key(name))
                .then(|| (self.values.get(name).copied(), self.declared.get(name.as_str()).copied()));
            for (value, code) in list.chain(one) {
                inputs.push(value);
                declared.push(code);
            }
        }
        let made = match meaning {
            Meaning::Body => self.add_body(node, &inputs)?,
            Meaning::Call(function) => self.add_call(function, node, &inputs)?,
            Meaning::Node(_) | Meaning::Nodes(_) => {
                let mut attributes = BTreeMap::new();
                for attribute in &node.attribute {
                    attributes.insert(attribute.name.clone(), self.attribute(attribute)?);
                }
                if self.opset < 7 {
                    old::modernize(&node.op_type, self.opset, &mut attributes, &mut self.graph, &mut inputs)?;
                }
                let outputs =
                    node.output.iter().rposition(|name| !name.is_empty()).map_or(0, |last| last + 1);
                let mut reader = NodeReader::new(&mut self.graph, self.opset, attributes, inputs, outputs)
                    .with_declared(declared);
                match meaning {
                    Meaning::Nodes(function) => {
                        let made = function(&mut reader)?;
                        reader.finish()?;
                        made
                    }
                    Meaning::Node(read) => {
                        let op = read(&mut reader)?;
                        let inputs = reader.finish()?;
                        let id = self.graph.add_node(&node.name, op, &inputs)?;
                        self.graph.node(id).outputs.clone()
                    }
                    Meaning::Body | Meaning::Call(_) => bail!(internal, "a body has no reader"),
                }
            }
        };
        let mut names = node.output.iter().enumerate().skip(made.len());
        if let Some((position, name)) = names.find(|(_, name)| !name.is_empty()) {
            bail!(unsupported, "output {position} ('{name}') of {} is not supported", node.op_type);
        }
        Ok(made)
    }

    /// Adds nodes inside a body or function, whose values nobody can name from outside.
    pub(super) fn add_inner(&mut self, nodes: &[NodeProto]) -> Result<()> {
        /// Unrolled loops can be too long for any machine.
        const LIMIT: usize = 200_000;
        self.unrolled += 1 + nodes.len();
        if self.unrolled > LIMIT {
            bail!(unsupported, "unrolling it makes more than {LIMIT} nodes");
        }
        let made_here: HashSet<&str> =
            nodes.iter().flat_map(|node| &node.output).map(String::as_str).collect();
        for node in nodes {
            let is_there =
                |input: &&String| self.values.contains_key(*input) || made_here.contains(input.as_str());
            if let Some(input) = node.input.iter().find(|input| !input.is_empty() && !is_there(input)) {
                bail!(
                    unsupported,
                    "{} reads '{input}', which is not there or depends on a node that is not supported",
                    title(node)
                );
            }
        }
        for index in topological_order(nodes, &self.values)? {
            let node = &nodes[index];
            let made = if is_constant(node) {
                let constant = self.constant_node(node).context(|| title(node))?;
                vec![self.graph.add_constant("", constant)]
            } else {
                let meaning = self.meaning(node)?;
                if matches!(meaning, Meaning::Nodes(_)) && functions::makes_a_list(&node.op_type) {
                    bail!(unsupported, "{} makes a list of tensors inside a body or function", title(node));
                }
                self.add_node(node, meaning).context(|| title(node))?
            };
            if self.graph.nodes().len() > LIMIT {
                bail!(unsupported, "unrolling it makes more than {LIMIT} nodes");
            }
            for (name, id) in node.output.iter().zip(made).filter(|(name, _)| !name.is_empty()) {
                self.name_inside(name, id);
            }
        }
        Ok(())
    }

    /// What a node of the file means.
    fn meaning(&self, node: &NodeProto) -> Result<Meaning<'a>> {
        let key = (node.domain.as_str(), node.op_type.as_str(), node.overload.as_str());
        if let Some(function) = self.functions.get(&key) {
            return Ok(Meaning::Call(function));
        }
        // Only a cast to a narrow type is more than one node.
        let target = match node.op_type.as_str() {
            "Cast" => node.attribute.iter().find(|attribute| attribute.name == "to").and_then(|to| to.i),
            "CastLike" => node.input.get(1).and_then(|name| self.declared.get(name.as_str()).copied()),
            _ => None,
        };
        if is_standard(&node.domain) && target.is_some_and(|code| Format::of_code(code).is_some()) {
            return Ok(Meaning::Nodes(functions::narrow_cast(&node.op_type)));
        }
        let in_training =
            |attribute: &AttributeProto| attribute.name == "training_mode" && attribute.i == Some(1);
        if is_standard(&node.domain)
            && node.op_type == "BatchNormalization"
            && node.attribute.iter().any(in_training)
        {
            return Ok(Meaning::Nodes(functions::BATCH_NORMALIZATION_IN_TRAINING));
        }
        match self.meanings.get(node.op_type.as_str()) {
            Some(meaning) if is_standard(&node.domain) => Ok(*meaning),
            _ if is_standard(&node.domain) => bail!(unsupported, "op {} is not supported", node.op_type),
            _ => bail!(unsupported, "op {}.{} is not supported", node.domain, node.op_type),
        }
    }

    fn attribute(&self, attribute: &AttributeProto) -> Result<Attribute> {
        let text = |bytes: &bytes::Bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(match attribute.r#type {
            attribute_type::FLOAT => Attribute::Float(attribute.f.unwrap_or_default()),
            attribute_type::INT => Attribute::Int(attribute.i.unwrap_or_default()),
            attribute_type::STRING => Attribute::String(attribute.s.as_ref().map(text).unwrap_or_default()),
            attribute_type::FLOATS => Attribute::Floats(attribute.floats.clone()),
            attribute_type::INTS => Attribute::Ints(attribute.ints.clone()),
            attribute_type::STRINGS => Attribute::Strings(attribute.strings.iter().map(text).collect()),
            attribute_type::TENSOR => match &attribute.t {
                Some(tensor) => Attribute::Tensor(self.constant(tensor)?),
                None => bail!(model, "attribute '{}' has no tensor", attribute.name),
            },
            attribute_type::GRAPH | attribute_type::GRAPHS => Attribute::Other("a graph"),
            attribute_type::SPARSE_TENSOR | attribute_type::SPARSE_TENSORS => {
                Attribute::Other("a sparse tensor")
            }
            _ => Attribute::Other("something else"),
        })
    }

    fn constant_node(&self, node: &NodeProto) -> Result<Constant> {
        let Some(attribute) = node.attribute.first() else { bail!(model, "the value is missing") };
        let tensor = match (attribute.name.as_str(), self.attribute(attribute)?) {
            (_, Attribute::Tensor(constant)) => return Ok(constant),
            (_, Attribute::Float(value)) => Tensor::scalar(value),
            (_, Attribute::Int(value)) => Tensor::scalar(value),
            (_, Attribute::Floats(values)) => Tensor::vector(values),
            (_, Attribute::Ints(values)) => Tensor::vector(values),
            (name, _) => bail!(unsupported, "a constant given by the attribute '{name}' is not supported"),
        };
        Ok(Constant::new(tensor))
    }
}

fn is_constant(node: &NodeProto) -> bool {
    node.op_type == "Constant" && is_standard(&node.domain)
}

/// How messages speak of a node of the file.
fn title(node: &NodeProto) -> String {
    match (node.name.as_str(), node.output.first()) {
        ("", Some(output)) => format!("{} (output '{output}')", node.op_type),
        (name, _) => format!("{} '{name}'", node.op_type),
    }
}

/// Orders the nodes so that each comes after those whose outputs it reads; files are usually in such an order already.
fn topological_order(nodes: &[NodeProto], given: &HashMap<String, ValueId>) -> Result<Vec<usize>> {
    let mut producers: HashMap<&str, usize> = HashMap::new();
    for (index, node) in nodes.iter().enumerate() {
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            if producers.insert(output, index).is_some() || given.contains_key(output) {
                bail!(model, "two tensors are called '{output}'");
            }
        }
    }
    let mut consumers: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut waiting = vec![0usize; nodes.len()];
    for (index, node) in nodes.iter().enumerate() {
        for input in node.input.iter().filter(|input| !input.is_empty()) {
            match producers.get(input.as_str()) {
                Some(&producer) => {
                    consumers[producer].push(index);
                    waiting[index] += 1;
                }
                None if given.contains_key(input) => {}
                None => bail!(model, "{} reads the tensor '{input}', which nothing computes", title(node)),
            }
        }
    }
    // The smallest ready index first keeps the file's own order where that is one.
    let mut ready: std::collections::BinaryHeap<std::cmp::Reverse<usize>> =
        (0..nodes.len()).filter(|&index| waiting[index] == 0).map(std::cmp::Reverse).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(std::cmp::Reverse(index)) = ready.pop() {
        order.push(index);
        for &consumer in &consumers[index] {
            waiting[consumer] -= 1;
            if waiting[consumer] == 0 {
                ready.push(std::cmp::Reverse(consumer));
            }
        }
    }
    match (0..nodes.len()).find(|&index| waiting[index] > 0) {
        Some(stuck) => bail!(model, "the graph has a cycle through {}", title(&nodes[stuck])),
        None => Ok(order),
    }
}

/// The name and element type of a tensor of floating point numbers of 16 bits.
fn narrow_type(info: &ValueInfoProto) -> Option<(String, i32)> {
    match info.r#type.as_ref()?.value.as_ref()? {
        TypeValue::Tensor(TensorTypeProto { elem_type, .. })
            if [data_type::FLOAT16, data_type::BFLOAT16].contains(elem_type) =>
        {
            Some((info.name.clone(), *elem_type))
        }
        _ => None,
    }
}

fn input_fact(input: &ValueInfoProto) -> Result<Fact> {
    let tensor = match input.r#type.as_ref().and_then(|r#type| r#type.value.as_ref()) {
        Some(TypeValue::Tensor(tensor)) => tensor,
        Some(other) => bail!(unsupported, "expected a tensor, found {}", other.name()),
        None => bail!(model, "its type is missing"),
    };
    let dtype = dtype_of_code(tensor.elem_type.into())?;
    let Some(shape) = &tensor.shape else {
        return Err(Error::unsupported(
            "its rank is not known: export the model with input shapes (single dimensions may be dynamic)",
        ));
    };
    let dims = shape.dim.iter().enumerate().map(|(axis, dim)| match &dim.value {
        Some(DimensionValue::Number(length)) if *length > 0 => Dim::from(*length),
        Some(DimensionValue::Name(name)) if !name.is_empty() => Dim::symbol(name),
        _ => Dim::symbol(&format!("{}_{axis}", input.name)),
    });
    Ok(Fact::new(dtype, dims.collect()))
}
