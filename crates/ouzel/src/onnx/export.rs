//! From a graph to the bytes of an ONNX file, whose weights are copied from where they lie, one after the other.

use super::lower::lower;
use super::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, TypeValue,
    ValueInfoProto, attribute_type,
};
use super::rounds::Rounds;
use super::writer::{NEWEST, NodeWriter, OLDEST, WrittenInput, data_type_of, little_endian};
use crate::dim::known_shape;
use crate::error::{Context, Error, Result, bail};
use crate::graph::{Constant, Fact, Graph, Node, Source, ValueId};
use crate::op::OpDef;
use crate::tensor::Tensor;
use prost::Message;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// Files beyond this many bytes have their weights in a file of their own: protobuf messages end at 2^31.
const MESSAGE_LIMIT: u64 = (1 << 31) - 1;

/// Tensors of fewer bytes stay in the file when the weights leave it.
const SMALL: u64 = 1024;

/// Where tensors begin in a file of weights.
const ALIGNMENT: u64 = 64;

/// An ONNX file that is ready to be written.
pub struct OnnxFile {
    model: ModelProto,
    weights: Vec<(String, Constant)>,
}

impl OnnxFile {
    /// Writes a graph: its inputs, and these outputs under their names. Inputs that `rounds` compute are none of the file; inputs and
    /// outputs named in `narrow` are of that type outside, and float32 inside.
    ///
    /// # Errors
    /// If an op cannot be written for this opset; the message names the node.
    pub(crate) fn new(
        graph: &Graph,
        outputs: &[(String, ValueId)],
        narrow: &HashMap<String, i32>,
        rounds: Option<&Rounds>,
        opset: i64,
    ) -> Result<Self> {
        if !(OLDEST..=NEWEST).contains(&opset) {
            bail!(option, "expected an opset from {OLDEST} to {NEWEST}, found {opset}");
        }
        let mut wanted: Vec<ValueId> = outputs.iter().map(|(_, id)| *id).collect();
        wanted.extend(rounds.iter().flat_map(|rounds| rounds.captured.iter().map(|(_, outside)| *outside)));
        let lowered = lower(graph, &wanted, opset)?;
        let outputs = outputs
            .iter()
            .map(|(name, id)| Ok((name.as_str(), lowered.kept(*id)?)))
            .collect::<Result<Vec<_>>>()?;
        let mut writer = GraphWriter::new(&lowered.graph, opset);
        writer.narrow = narrow.clone();
        writer.name_all(&outputs)?;
        let results = match rounds {
            Some(rounds) => rounds.results(&lowered)?,
            None => Vec::new(),
        };
        writer.add_inputs(&results);
        let later = dependent(&lowered.graph, &results);
        let is_later = |node: &Node| node.outputs.iter().any(|output| later[output.index()]);
        for node in lowered.graph.nodes().iter().filter(|node| !is_later(node)) {
            writer.add_node(node).context(|| node.title())?;
        }
        if let Some(rounds) = rounds {
            rounds.write(&lowered, &mut writer)?;
        }
        for node in lowered.graph.nodes().iter().filter(|node| is_later(node)) {
            writer.add_node(node).context(|| node.title())?;
        }
        writer.add_outputs(&outputs);
        let GraphWriter { mut graph, whole: Whole { mut weights, widened, .. }, .. } = writer;
        graph.node.splice(0..0, widened);
        // Constants of ours that have become attributes; those of the network stay.
        let mut kept: HashSet<&str> = lowered.graph.values().map(|(_, value)| &*value.name).collect();
        add_read(&graph, &mut kept);
        weights.retain(|(name, _)| kept.contains(name.as_str()));
        let model = ModelProto {
            ir_version: ir_version(opset),
            producer_name: "ouzel".into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset }],
            ..Default::default()
        };
        Ok(Self { model, weights })
    }

    /// Adds metadata; an entry of the same name is replaced.
    pub(crate) fn set_metadata(&mut self, metadata: &BTreeMap<String, String>) {
        for (key, value) in metadata {
            self.model.metadata_props.retain(|entry| entry.key != *key);
            self.model.metadata_props.push(StringStringEntryProto::new(key, value));
        }
    }

    /// Names the graph, which some programs show.
    pub(crate) fn set_name(&mut self, name: &str) {
        if let Some(graph) = &mut self.model.graph {
            graph.name = name.into();
        }
    }

    /// The version of the ONNX operators.
    pub fn opset(&self) -> i64 {
        self.model.opset_import.first().map_or(0, |entry| entry.version)
    }

    /// What the file says about itself.
    pub fn metadata(&self) -> BTreeMap<String, String> {
        self.model.metadata_props.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect()
    }

    /// The names of the inputs.
    pub fn input_names(&self) -> impl Iterator<Item = &str> {
        self.model.graph.iter().flat_map(|graph| &graph.input).map(|input| input.name.as_str())
    }

    /// The names of the outputs.
    pub fn output_names(&self) -> impl Iterator<Item = &str> {
        self.model.graph.iter().flat_map(|graph| &graph.output).map(|output| output.name.as_str())
    }

    /// How many nodes of each op there are.
    pub fn ops(&self) -> BTreeMap<&str, usize> {
        let mut ops = BTreeMap::new();
        for node in self.model.graph.iter().flat_map(|graph| &graph.node) {
            *ops.entry(node.op_type.as_str()).or_default() += 1;
        }
        ops
    }

    /// The bytes of the file.
    ///
    /// # Errors
    /// If weights cannot be read any more, or the file would be larger than 2 GiB: save it then.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let layout = Layout::new(self, None)?;
        if layout.total() > MESSAGE_LIMIT {
            bail!(
                unsupported,
                "{} bytes do not fit into one ONNX file of at most 2 GiB: save it, so that the weights get a file of \
                 their own",
                layout.total()
            );
        }
        let mut bytes = Vec::with_capacity(layout.total() as usize);
        layout.write(self, &mut bytes, None)?;
        Ok(bytes)
    }

    /// Writes the file; weights beyond 2 GiB go to a file beside it, whose name has `.data` at its end.
    ///
    /// # Errors
    /// If weights cannot be read any more, or a file cannot be written. Nothing is left of the file then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_within(path.as_ref(), MESSAGE_LIMIT)
    }

    pub(super) fn save_within(&self, path: &Path, limit: u64) -> Result<()> {
        let mut begun = Vec::new();
        let saved = self.save_parts(path, limit, &mut begun);
        if saved.is_err() {
            // What is no file, such as a device, is nothing that was begun here.
            for path in begun.iter().filter(|path| path.is_file()) {
                let _ = std::fs::remove_file(path);
            }
        }
        saved
    }

    /// Writes one file or two; `begun` are those that are there by now, whole or not.
    fn save_parts(&self, path: &Path, limit: u64, begun: &mut Vec<PathBuf>) -> Result<()> {
        let mut create = |path: &Path| {
            let file = File::create(path).map_err(|error| Error::io("write", path, error))?;
            begun.push(path.to_owned());
            Ok::<_, Error>(BufWriter::new(file))
        };
        let flushed = |mut out: BufWriter<File>, path: &Path| {
            out.flush().map_err(|error| Error::io("write", path, error))
        };
        let layout = Layout::new(self, None)?;
        if layout.total() <= limit {
            let mut out = create(path)?;
            layout.write(self, &mut out, None).context(|| path.display())?;
            return flushed(out, path);
        }
        let Some(name) = path.file_name() else {
            bail!(option, "{} is not the name of a file", path.display())
        };
        let beside = format!("{}.data", name.to_string_lossy());
        let data_path = path.with_file_name(&beside);
        let layout = Layout::new(self, Some(&beside))?;
        let (mut out, mut data) = (create(path)?, create(&data_path)?);
        layout.write(self, &mut out, Some(&mut data)).context(|| path.display())?;
        flushed(out, path)?;
        flushed(data, &data_path)
    }
}

impl std::fmt::Debug for OnnxFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OnnxFile(opset {}, {} weights)", self.opset(), self.weights.len())
    }
}

/// The version of the file format that came with an operator set.
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..15 => 7,
        15..19 => 8,
        19..21 => 9,
        21..23 => 10,
        _ => 11,
    }
}

/// The messages of a file, all but the elements of weights.
struct Layout {
    head: Vec<u8>,
    graph: Vec<u8>,
    /// Each weight's message without its elements, their number of bytes, and where they begin in the file beside.
    tensors: Vec<(Vec<u8>, u64, Option<u64>)>,
}

/// Keys of the fields `ModelProto.graph`, `GraphProto.initializer` and `TensorProto.raw_data`: number and wire type.
const GRAPH: u8 = 7 << 3 | 2;
const INITIALIZER: u8 = 5 << 3 | 2;
const RAW_DATA: u8 = 9 << 3 | 2;

impl Layout {
    fn new(file: &OnnxFile, beside: Option<&str>) -> Result<Self> {
        let Some(graph) = &file.model.graph else { bail!(internal, "a file has no graph") };
        let head = ModelProto { graph: None, ..file.model.clone() }.encode_to_vec();
        let mut end = 0u64;
        let tensors = file.weights.iter().map(|(name, constant)| {
            let fact = constant.fact();
            let Some(shape) = known_shape(&fact.shape) else { bail!(internal, "a constant has no shape") };
            let halves = constant.halves();
            let each = if halves.is_some() { 2 } else { fact.dtype.size() };
            let bytes = shape.iter().product::<usize>() as u64 * each as u64;
            let mut tensor = TensorProto {
                name: name.clone(),
                dims: shape.iter().map(|&length| length as i64).collect(),
                data_type: halves.unwrap_or(data_type_of(fact.dtype)),
                ..Default::default()
            };
            let place = beside.filter(|_| bytes >= SMALL).map(|location| {
                let start = end.next_multiple_of(ALIGNMENT);
                end = start + bytes;
                tensor.data_location = TensorProto::EXTERNAL;
                tensor.external_data = vec![
                    StringStringEntryProto::new("location", location),
                    StringStringEntryProto::new("offset", start.to_string()),
                    StringStringEntryProto::new("length", bytes.to_string()),
                ];
                start
            });
            Ok((tensor.encode_to_vec(), bytes, place))
        });
        let tensors = tensors.collect::<Result<_>>()?;
        Ok(Self { head, graph: graph.encode_to_vec(), tensors })
    }

    /// The length of a weight's message.
    fn tensor_length((message, bytes, place): &(Vec<u8>, u64, Option<u64>)) -> u64 {
        message.len() as u64 + if place.is_some() { 0 } else { field_length(*bytes) }
    }

    fn graph_length(&self) -> u64 {
        let tensors = self.tensors.iter().map(|tensor| field_length(Self::tensor_length(tensor)));
        self.graph.len() as u64 + tensors.sum::<u64>()
    }

    fn total(&self) -> u64 {
        self.head.len() as u64 + field_length(self.graph_length())
    }

    fn write(&self, file: &OnnxFile, out: &mut impl Write, beside: Option<&mut dyn Write>) -> Result<()> {
        let failed = |error: std::io::Error| Error::io("write", "the file", error);
        let mut beside = beside;
        let mut end = 0u64;
        let mut start = self.head.clone();
        put_field(&mut start, GRAPH, self.graph_length());
        start.extend_from_slice(&self.graph);
        out.write_all(&start).map_err(failed)?;
        for (tensor, (name, constant)) in self.tensors.iter().zip(&file.weights) {
            let (message, bytes, place) = tensor;
            let mut header = Vec::new();
            put_field(&mut header, INITIALIZER, Self::tensor_length(tensor));
            header.extend_from_slice(message);
            if place.is_none() {
                put_field(&mut header, RAW_DATA, *bytes);
            }
            out.write_all(&header).map_err(failed)?;
            let elements = match constant.halves() {
                Some(_) => constant.read_halves(),
                None => constant.read().map(|tensor| little_endian(&tensor)),
            };
            let elements = elements.context(|| format!("the weights '{name}'"))?;
            if elements.len() as u64 != *bytes {
                bail!(internal, "the weights '{name}' have changed");
            }
            match (place, &mut beside) {
                (Some(start), Some(data)) => {
                    data.write_all(&vec![0; (start - end) as usize]).map_err(failed)?;
                    data.write_all(&elements).map_err(failed)?;
                    end = start + bytes;
                }
                _ => out.write_all(&elements).map_err(failed)?,
            }
        }
        Ok(())
    }
}

/// The length of a field of so many bytes, its key included.
fn field_length(bytes: u64) -> u64 {
    1 + prost::length_delimiter_len(bytes as usize) as u64 + bytes
}

fn put_field(out: &mut Vec<u8>, key: u8, length: u64) {
    out.push(key);
    prost::encode_length_delimiter(length as usize, out).expect("invariant: a vector grows");
}

/// Adds the names of what a graph reads, inner graphs included.
fn add_read<'g>(graph: &'g GraphProto, names: &mut HashSet<&'g str>) {
    names.extend(graph.output.iter().map(|output| output.name.as_str()));
    for node in &graph.node {
        names.extend(node.input.iter().map(String::as_str));
        node.attribute
            .iter()
            .filter_map(|attribute| attribute.g.as_deref())
            .for_each(|body| add_read(body, names));
    }
}

/// For each value, whether it is one of `from` or depends on one.
pub(super) fn dependent(graph: &Graph, from: &[ValueId]) -> Vec<bool> {
    let mut dependent = vec![false; graph.values().len()];
    from.iter().for_each(|id| dependent[id.index()] = true);
    for node in graph.nodes() {
        if node.inputs.iter().flatten().any(|input| dependent[input.index()]) {
            node.outputs.iter().for_each(|output| dependent[output.index()] = true);
        }
    }
    dependent
}

/// A graph that is being written.
pub(super) struct GraphWriter<'g> {
    pub(super) source: &'g Graph,
    pub(super) opset: i64,
    pub(super) graph: GraphProto,
    pub(super) names: Vec<String>,
    /// Whether a node reads the value, or it is an output.
    pub(super) read: Vec<bool>,
    /// The element types of inputs and outputs that differ from those inside.
    narrow: HashMap<String, i32>,
    pub(super) whole: Whole,
}

/// What the graphs of one file have in common.
#[derive(Default)]
pub(super) struct Whole {
    pub(super) weights: Vec<(String, Constant)>,
    pub(super) taken: HashSet<String>,
    /// The names of nodes, of which ONNX Runtime takes no two alike.
    nodes: HashSet<String>,
    /// Constants that stand for attributes, by element type, shape and bytes.
    attributes: HashMap<(i32, Vec<usize>, Vec<u8>), String>,
    /// The names of constants that are stored, by their identity.
    constants: HashMap<usize, String>,
    /// What makes float32 of weights that are stored in 16 bits; runtimes do it when they load the file.
    widened: Vec<NodeProto>,
}

impl Whole {
    /// A name that nothing has.
    pub(super) fn fresh(&mut self, stem: &str) -> String {
        let mut name = stem.to_owned();
        let mut number = 2;
        while self.taken.contains(&name) {
            name = format!("{stem}_{number}");
            number += 1;
        }
        self.taken.insert(name.clone());
        name
    }

    /// A name that no node has: this one, or with a number behind it.
    fn node(&mut self, stem: String) -> String {
        let mut name = stem.clone();
        let mut number = 2;
        while !self.nodes.insert(name.clone()) {
            name = format!("{stem}_{number}");
            number += 1;
        }
        name
    }

    /// The name under which a constant is stored, once for all graphs of the file.
    pub(super) fn stored(&mut self, constant: &Constant, stem: &str) -> String {
        if let Some(name) = self.constants.get(&constant.identity()) {
            return name.clone();
        }
        let name = self.fresh(stem);
        self.store(constant, &name)
    }

    /// Stores a constant under its name; gives the name of the tensor to compute with.
    fn store(&mut self, constant: &Constant, name: &str) -> String {
        self.weights.push((name.to_owned(), constant.clone()));
        let mut usable = name.to_owned();
        if constant.halves().is_some() {
            usable = self.fresh(&format!("{name}_float"));
            let wide = data_type_of(constant.fact().dtype);
            self.widened.push(cast(format!("widened/{name}"), name, &usable, wide));
        }
        self.constants.entry(constant.identity()).or_insert_with(|| usable.clone());
        usable
    }
}

impl<'g> GraphWriter<'g> {
    pub(super) fn new(source: &'g Graph, opset: i64) -> Self {
        let taken = source.values().map(|(_, value)| value.name.to_string()).collect();
        let whole = Whole { taken, ..Whole::default() };
        let names = vec![String::new(); source.values().len()];
        let graph = GraphProto { name: "explanation".into(), ..Default::default() };
        let mut read = vec![false; names.len()];
        for input in source.nodes().iter().flat_map(|node| node.inputs.iter().flatten()) {
            read[input.index()] = true;
        }
        Self { source, opset, graph, names, read, narrow: HashMap::new(), whole }
    }

    /// Every value gets a name: its own, that of an output that it is, or a new one.
    fn name_all(&mut self, outputs: &[(&str, ValueId)]) -> Result<()> {
        for (place, (name, _)) in outputs.iter().enumerate() {
            if outputs[..place].iter().any(|(other, _)| other == name) {
                bail!(internal, "two outputs are called '{name}'");
            }
        }
        for (name, id) in outputs {
            let value = self.source.value(*id);
            self.read[id.index()] = true;
            let free = value.name.is_empty() && self.names[id.index()].is_empty();
            if free && self.source.producer(*id).is_some() && self.whole.taken.insert((*name).to_owned()) {
                self.names[id.index()] = (*name).to_owned();
            }
        }
        for (id, value) in self.source.values() {
            if !self.names[id.index()].is_empty() {
                continue;
            }
            let name = match (&*value.name, &value.source) {
                ("", Source::Node(_)) => self.whole.fresh(&format!("ouzel_{}", id.index())),
                ("", _) => self.whole.fresh(&format!("ouzel_constant_{}", id.index())),
                (name, _) if self.narrow.contains_key(name) => self.whole.fresh(&format!("{name}_wide")),
                (name, _) => name.to_owned(),
            };
            self.names[id.index()] = name;
        }
        Ok(())
    }

    /// Inputs, but for those that the file computes, and constants.
    fn add_inputs(&mut self, computed: &[ValueId]) {
        for (id, value) in self.source.values() {
            let name = &self.names[id.index()];
            match &value.source {
                Source::Input if computed.contains(&id) => {}
                Source::Input => {
                    if let Some(&narrow) = self.narrow.get(&*value.name) {
                        self.graph.input.push(typed_info(&value.name, &value.fact, narrow));
                        let wide = data_type_of(value.fact.dtype);
                        self.graph.node.push(cast(format!("input/{}", value.name), &value.name, name, wide));
                    } else {
                        self.graph.input.push(value_info(name, &value.fact));
                    }
                }
                Source::Constant(constant) => self.names[id.index()] = self.whole.store(constant, name),
                Source::Node(_) => {}
            }
        }
    }

    /// Outputs. Shapes between inputs and outputs are left for runtimes to find: written with symbols, they keep some from
    /// binding the batch.
    fn add_outputs(&mut self, outputs: &[(&str, ValueId)]) {
        for (name, id) in outputs {
            let own = &self.names[id.index()];
            if let Some(&narrow) = self.narrow.get(*name) {
                self.graph.output.push(typed_info(name, self.source.fact(*id), narrow));
                self.graph.node.push(cast(format!("output/{name}"), own, name, narrow));
                continue;
            }
            self.graph.output.push(value_info(name, self.source.fact(*id)));
            if own != name {
                self.graph.node.push(NodeProto {
                    op_type: "Identity".into(),
                    name: format!("output/{name}"),
                    input: vec![own.clone()],
                    output: vec![(*name).to_owned()],
                    ..Default::default()
                });
            }
        }
    }

    pub(super) fn add_node(&mut self, node: &Node) -> Result<()> {
        let facts = node.inputs.iter().map(|input| input.map(|id| self.source.fact(id))).collect();
        let written = NodeWriter::new(self.opset, &node.op, facts).written()?;
        let (attribute, inputs, narrow) = (written.attributes, written.inputs, written.narrow);
        let mut input: Vec<String> = Vec::new();
        for given in inputs {
            input.push(match given {
                WrittenInput::Given(index) => {
                    node.inputs[index].map(|id| self.names[id.index()].clone()).unwrap_or_default()
                }
                WrittenInput::Absent => String::new(),
                WrittenInput::Constant(tensor) => self.attribute_constant(&tensor),
            });
        }
        while input.last().is_some_and(String::is_empty) {
            input.pop();
        }
        let used = |id: &ValueId| !self.source.value(*id).name.is_empty() || self.read[id.index()];
        let count = node.outputs.iter().rposition(used).map_or(1, |last| last + 1);
        let name = self.node_name(node);
        let name = self.whole.node(name);
        let output: Vec<String> =
            node.outputs[..count].iter().map(|id| self.names[id.index()].clone()).collect();
        if let Some(code) = narrow {
            // Saturation is an attribute of casts to 8 bits alone.
            let there = attribute.into_iter().filter(|it| code > 16 || it.name != "saturate").collect();
            let between = self.whole.fresh(&format!("{}_narrow", output[0]));
            self.graph.node.push(NodeProto {
                op_type: "Cast".into(),
                name: format!("{name}/narrow"),
                input,
                output: vec![between.clone()],
                attribute: there,
                ..Default::default()
            });
            let wide = data_type_of(self.source.fact(node.outputs[0]).dtype);
            self.graph.node.push(cast(name, &between, &output[0], wide));
            return Ok(());
        }
        let op_type = node.op.name().to_owned();
        self.graph.node.push(NodeProto { op_type, name, input, output, attribute, ..Default::default() });
        Ok(())
    }

    /// What a node is called: as in the network, or after the node and the rule that it is there for.
    fn node_name(&self, node: &Node) -> String {
        let number = node.outputs.first().map_or(0, |id| id.index());
        match (&node.provenance, &*node.name) {
            (None, "") => format!("{}_{number}", node.op.name()),
            (None, name) => name.to_owned(),
            (Some(provenance), _) => {
                let of = provenance.node.split('\'').nth(1).unwrap_or(&provenance.node);
                format!("{}/{of}/{}_{number}", provenance.rule, node.op.name())
            }
        }
    }

    fn attribute_constant(&mut self, tensor: &Tensor) -> String {
        let key = (data_type_of(tensor.dtype()), tensor.shape().to_vec(), little_endian(tensor));
        if let Some(name) = self.whole.attributes.get(&key) {
            return name.clone();
        }
        let name = self.whole.fresh(&format!("ouzel_attribute_{}", self.whole.attributes.len()));
        self.whole.attributes.insert(key, name.clone());
        self.whole.weights.push((name.clone(), Constant::new(tensor.clone())));
        name
    }
}

/// A conversion to another element type.
fn cast(name: String, from: &str, to: &str, element_type: i32) -> NodeProto {
    let target = AttributeProto {
        name: "to".into(),
        r#type: attribute_type::INT,
        i: Some(element_type.into()),
        ..Default::default()
    };
    NodeProto {
        op_type: "Cast".into(),
        name,
        input: vec![from.to_owned()],
        output: vec![to.to_owned()],
        attribute: vec![target],
        ..Default::default()
    }
}

/// A value's name, element type and shape, as far as files can say it: a number or a symbol for each axis.
pub(super) fn value_info(name: &str, fact: &Fact) -> ValueInfoProto {
    typed_info(name, fact, data_type_of(fact.dtype))
}

/// As `value_info`, with elements that are of another type in the file.
pub(super) fn typed_info(name: &str, fact: &Fact, elem_type: i32) -> ValueInfoProto {
    let dim = fact.shape.iter().map(|dim| {
        let symbol = || dim.as_symbol().map(|symbol| DimensionValue::Name(symbol.to_string()));
        let value = dim.known().map(DimensionValue::Number).or_else(symbol);
        DimensionProto { value, ..Default::default() }
    });
    let shape = TensorShapeProto { dim: dim.collect() };
    let tensor = TensorTypeProto { elem_type, shape: Some(shape) };
    let r#type = TypeProto { value: Some(TypeValue::Tensor(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..Default::default() }
}
