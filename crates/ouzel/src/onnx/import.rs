//! From the messages of a file to a graph that keeps every node and tensor name.

use super::proto::{
    AttributeProto, DimensionValue, GraphProto, NodeProto, TensorProto, TypeValue, ValueInfoProto,
    attribute_type,
};
use super::reader::{Attribute, NodeReader};
use super::stored::dtype_of_code;
use super::wire::ParsedModel;
use crate::dim::Dim;
use crate::error::{Context, Error, Result, bail};
use crate::graph::{Constant, Fact, Graph, ValueId};
use crate::op::{READERS, Reader};
use crate::tensor::Tensor;
use std::collections::{BTreeMap, HashMap, HashSet};

/// The operator set versions that can be read.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=23;

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
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) graph: Graph,
    /// The nodes of the file, `Constant` nodes excepted, in the file's order.
    pub(crate) layers: Vec<Layer>,
    /// The names of the graph's outputs, those that could not be read included.
    pub(crate) outputs: Vec<String>,
    /// Values by tensor name.
    pub(crate) values: HashMap<String, ValueId>,
    pub(crate) opset: i64,
    pub(crate) producer: String,
    pub(crate) metadata: BTreeMap<String, String>,
}

/// Builds the graph. Nodes that are not supported, and those that depend on them, are kept aside as layers.
pub(crate) fn import(parsed: &ParsedModel) -> Result<Imported> {
    let model = &parsed.model;
    let Some(file) = &model.graph else {
        bail!(model, "the file has no graph: it is not an ONNX model, or it is damaged");
    };
    let opset = opset(parsed)?;
    let mut importer = Importer { parsed, opset, graph: Graph::default(), values: HashMap::new() };
    importer.add_initializers(file)?;
    importer.add_inputs(file)?;
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
        opset,
        producer: format!("{} {}", model.producer_name, model.producer_version).trim().to_owned(),
        metadata: model.metadata_props.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect(),
    })
}

fn is_standard(domain: &str) -> bool {
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

struct Importer<'a> {
    parsed: &'a ParsedModel,
    opset: i64,
    graph: Graph,
    values: HashMap<String, ValueId>,
}

impl Importer<'_> {
    fn name_value(&mut self, name: &str, id: ValueId) -> Result<()> {
        if self.values.insert(name.to_owned(), id).is_some() {
            bail!(model, "two tensors are called '{name}'");
        }
        self.graph.set_name(id, name);
        Ok(())
    }

    fn constant(&self, tensor: &TensorProto) -> Result<Constant> {
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

    fn add_inputs(&mut self, file: &GraphProto) -> Result<()> {
        // Old files list initializers as inputs too.
        let constants: HashSet<&str> = file.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        for input in file.input.iter().filter(|input| !constants.contains(input.name.as_str())) {
            let fact = input_fact(input).context(|| format!("input '{}'", input.name))?;
            let id = self.graph.add_input("", fact);
            self.name_value(&input.name, id)?;
        }
        Ok(())
    }

    fn add_nodes(&mut self, nodes: &[NodeProto]) -> Result<Vec<Layer>> {
        let readers: HashMap<&str, Reader> =
            READERS.iter().flat_map(|(names, reader)| names.iter().map(|name| (*name, *reader))).collect();
        let mut layers: Vec<Option<Layer>> = nodes.iter().map(|_| None).collect();
        let mut blocked: HashSet<&str> = HashSet::new();
        for index in topological_order(nodes, &self.values)? {
            let node = &nodes[index];
            if node.op_type == "Constant" && is_standard(&node.domain) {
                let constant = self.constant_node(node).context(|| title(node))?;
                let id = self.graph.add_constant("", constant);
                let Some(name) = node.output.first() else { bail!(model, "{} has no output", title(node)) };
                self.name_value(name, id)?;
                continue;
            }
            let is_blocked = node.input.iter().any(|input| blocked.contains(input.as_str()));
            let state = match find_reader(node, &readers) {
                // An op that is missing is told even where others before it are, so that all are told at once.
                Err(error) => LayerState::Missing(error.to_string()),
                Ok(_) if is_blocked => LayerState::Blocked,
                Ok(read) => match self.add_node(node, read) {
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

    fn add_node(&mut self, node: &NodeProto, read: Reader) -> Result<()> {
        let mut attributes = BTreeMap::new();
        for attribute in &node.attribute {
            attributes.insert(attribute.name.clone(), self.attribute(attribute)?);
        }
        let inputs: Vec<Option<ValueId>> =
            node.input.iter().map(|name| self.values.get(name).copied()).collect();
        let outputs = node.output.iter().rposition(|name| !name.is_empty()).map_or(0, |last| last + 1);
        let mut reader = NodeReader::new(&mut self.graph, self.opset, attributes, inputs, outputs);
        let op = read(&mut reader)?;
        let inputs = reader.finish()?;
        let id = self.graph.add_node(&node.name, op, &inputs)?;
        let made = self.graph.node(id).outputs.clone();
        for (position, name) in node.output.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
            match made.get(position) {
                Some(&value) => self.name_value(name, value)?,
                None => {
                    bail!(unsupported, "output {position} ('{name}') of {} is not supported", node.op_type)
                }
            }
        }
        Ok(())
    }

    fn attribute(&self, attribute: &AttributeProto) -> Result<Attribute> {
        let text = |bytes: &bytes::Bytes| String::from_utf8_lossy(bytes).into_owned();
        Ok(match attribute.r#type {
            attribute_type::FLOAT => Attribute::Float(attribute.f.unwrap_or_default()),
            attribute_type::INT => Attribute::Int(attribute.i.unwrap_or_default()),
            attribute_type::STRING => Attribute::String(attribute.s.as_ref().map(text).unwrap_or_default()),
            attribute_type::FLOATS => Attribute::Floats(attribute.floats.clone()),
            attribute_type::INTS => Attribute::Ints(attribute.ints.clone()),
            attribute_type::STRINGS => Attribute::Other("a list of texts"),
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

/// The function that reads nodes of this op.
fn find_reader(node: &NodeProto, readers: &HashMap<&str, Reader>) -> Result<Reader> {
    if !is_standard(&node.domain) {
        bail!(unsupported, "op {}.{} is not supported", node.domain, node.op_type);
    }
    match readers.get(node.op_type.as_str()) {
        Some(read) => Ok(*read),
        None => bail!(unsupported, "op {} is not supported", node.op_type),
    }
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
