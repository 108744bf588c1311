//! The graph: nodes that apply ops to values, append-only and in topological order; facts are inferred on construction.

use crate::builder::{Builder, Var};
use crate::dim::{Bindings, Dim, Shape, display_shape, known_shape};
use crate::error::{Context, Result, bail};
use crate::op::{Inputs, Op, OpDef};
use crate::tensor::{DType, Tensor};
use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock};

/// A value of one [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub(crate) u32);

/// A node of one [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(crate) u32);

impl ValueId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl NodeId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The elements of a small tensor, as far as they are known before anything runs.
///
/// This is how shapes that a network computes (`Shape`, `Gather`, `Concat`, …) reach `Reshape` and its kin.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// Elements of an integer tensor; they may be symbolic.
    Integers(Arc<[Dim]>),
    /// The bits of the elements of a floating point tensor, as `f64`.
    Floats(Arc<[u64]>),
}

/// Tensors with more elements than this have no [`Content`].
const CONTENT_LIMIT: usize = 64;

/// What is known of a value before anything runs: element type, shape, and the elements of small constants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fact {
    /// Element type.
    pub dtype: DType,
    /// Length of each axis.
    pub shape: Shape,
    /// The elements, where they are few and known.
    pub content: Option<Content>,
}

impl Fact {
    /// A fact of a value whose elements are not known.
    pub fn new(dtype: DType, shape: Shape) -> Self {
        Self { dtype, shape, content: None }
    }

    /// The fact of a tensor, with its content if it is small.
    pub fn of(tensor: &Tensor) -> Self {
        let shape = tensor.shape().iter().map(|&length| Dim::from(length)).collect();
        let mut fact = Self::new(tensor.dtype(), shape);
        if tensor.len() <= CONTENT_LIMIT {
            fact.content = match tensor.dtype() {
                DType::U64
                    if tensor.to_integers().is_ok_and(|values| values.iter().any(|value| *value < 0)) =>
                {
                    None
                }
                dtype if dtype.is_integer() => tensor
                    .to_integers()
                    .ok()
                    .map(|values| Content::Integers(values.into_iter().map(Dim::from).collect())),
                _ => Some(Content::Floats(tensor.to_f64().iter().map(|value| value.to_bits()).collect())),
            };
        }
        fact
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The same fact with the elements given as integer expressions, if they are few.
    pub fn with_integers(mut self, content: Vec<Dim>) -> Self {
        if content.len() <= CONTENT_LIMIT {
            self.content = Some(Content::Integers(content.into()));
        }
        self
    }

    /// The elements as integer expressions.
    pub fn integers(&self) -> Option<&[Dim]> {
        match &self.content {
            Some(Content::Integers(dims)) => Some(dims),
            _ => None,
        }
    }

    /// The elements as numbers, where every one is known.
    pub fn known_integers(&self) -> Option<Vec<i64>> {
        self.integers()?.iter().map(Dim::known).collect()
    }

    /// The elements of a small floating point constant.
    pub fn floats(&self) -> Option<Vec<f64>> {
        match &self.content {
            Some(Content::Floats(bits)) => Some(bits.iter().map(|&bits| f64::from_bits(bits)).collect()),
            _ => None,
        }
    }

    /// The tensor, where every element is known.
    pub(crate) fn known_tensor(&self) -> Option<Tensor> {
        let shape = known_shape(&self.shape)?;
        let tensor = match &self.content {
            Some(Content::Floats(_)) => Tensor::from_shape_vec(&shape, self.floats()?),
            Some(Content::Integers(_)) => Tensor::from_shape_vec(&shape, self.known_integers()?),
            None => return None,
        };
        Some(tensor.ok()?.cast(self.dtype))
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, display_shape(&self.shape))
    }
}

/// Where the elements of a constant come from when they are not in memory.
pub(crate) trait Stored: Send + Sync {
    /// Reads the elements.
    fn load(&self) -> Result<Tensor>;

    /// The number that files have for the elements' type, if they are stored as floating point numbers of 16 bits.
    fn halves(&self) -> Option<i32> {
        None
    }

    /// The bytes of such elements as they are stored.
    fn read_halves(&self) -> Result<Vec<u8>> {
        bail!(internal, "a tensor is not stored in 16 bits")
    }

    /// Reads float32 elements from `first` on; false if they are not stored as such.
    fn read_floats(&self, _first: usize, _out: &mut [f32]) -> Result<bool> {
        Ok(false)
    }
}

/// A tensor that is part of the graph; it may still lie in the model's file.
///
/// Cheap to clone. Two constants are the same if they are clones of one.
#[derive(Clone)]
pub struct Constant(Arc<ConstantInner>);

struct ConstantInner {
    fact: Fact,
    tensor: OnceLock<Tensor>,
    stored: Option<Box<dyn Stored>>,
    /// The number that a scalar was rounded from.
    exact: Option<f64>,
    /// Forms of the elements that kernels read, made once for all plans.
    forms: Mutex<HashMap<Vec<u64>, Arc<dyn Any + Send + Sync>>>,
}

impl Constant {
    /// A constant that is in memory.
    pub fn new(tensor: Tensor) -> Self {
        let fact = Fact::of(&tensor);
        Self(Arc::new(ConstantInner {
            fact,
            tensor: OnceLock::from(tensor),
            stored: None,
            exact: None,
            forms: Mutex::default(),
        }))
    }

    /// A constant of rank 0, which keeps the number that it is rounded from.
    pub fn scalar(value: f64, dtype: DType) -> Self {
        let tensor = Tensor::scalar(value).cast(dtype);
        let (fact, tensor) = (Fact::of(&tensor), OnceLock::from(tensor));
        Self(Arc::new(ConstantInner {
            fact,
            tensor,
            stored: None,
            exact: Some(value),
            forms: Mutex::default(),
        }))
    }

    /// The same constant in float64, if it is in float32: a scalar as it was before it was rounded.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub(crate) fn in_float64(&self) -> Result<Self> {
        Ok(match (self.fact().dtype, self.0.exact) {
            (DType::F32, Some(exact)) => Self::scalar(exact, DType::F64),
            (DType::F32, None) => Self::new(self.read()?.cast(DType::F64)),
            _ => self.clone(),
        })
    }

    /// A constant that is read when it is needed; small ones are read at once.
    pub(crate) fn stored(dtype: DType, shape: &[usize], stored: Box<dyn Stored>) -> Result<Self> {
        let count = shape.iter().try_fold(1usize, |product, &length| product.checked_mul(length));
        if count.is_some_and(|count| count <= CONTENT_LIMIT) {
            return Ok(Self::new(stored.load()?));
        }
        let fact = Fact::new(dtype, shape.iter().map(|&length| length.into()).collect());
        let (tensor, forms) = (OnceLock::new(), Mutex::default());
        Ok(Self(Arc::new(ConstantInner { fact, tensor, stored: Some(stored), exact: None, forms })))
    }

    /// Element type, shape and content.
    pub fn fact(&self) -> &Fact {
        &self.0.fact
    }

    /// The elements; read once and kept.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn tensor(&self) -> Result<Tensor> {
        if let Some(tensor) = self.0.tensor.get() {
            return Ok(tensor.clone());
        }
        let tensor = self.read()?;
        Ok(self.0.tensor.get_or_init(|| tensor).clone())
    }

    /// The elements, without keeping them: for callers that keep them in a form of their own.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub(crate) fn read(&self) -> Result<Tensor> {
        match (self.0.tensor.get(), &self.0.stored) {
            (Some(tensor), _) => Ok(tensor.clone()),
            (None, Some(stored)) => stored.load(),
            (None, None) => bail!(internal, "a constant has neither elements nor a place to read them from"),
        }
    }

    /// Reads float32 elements from `first` on, straight from where they are stored; false if that cannot be done.
    ///
    /// The answer never changes, whatever other threads have read meanwhile.
    pub(crate) fn read_floats(&self, first: usize, out: &mut [f32]) -> Result<bool> {
        match &self.0.stored {
            Some(stored) => stored.read_floats(first, out),
            None => Ok(false),
        }
    }

    /// As [`Stored::halves`].
    pub(crate) fn halves(&self) -> Option<i32> {
        self.0.stored.as_ref().and_then(|stored| stored.halves())
    }

    /// As [`Stored::read_halves`].
    pub(crate) fn read_halves(&self) -> Result<Vec<u8>> {
        match &self.0.stored {
            Some(stored) => stored.read_halves(),
            None => bail!(internal, "a tensor is not stored in 16 bits"),
        }
    }

    /// A form of the elements that was kept under this key.
    pub(crate) fn form(&self, key: &[u64]) -> Option<Arc<dyn Any + Send + Sync>> {
        self.0.forms.lock().ok()?.get(key).cloned()
    }

    /// Keeps a form of the elements for as long as the constant lives.
    pub(crate) fn keep_form(&self, key: Vec<u64>, form: Arc<dyn Any + Send + Sync>) {
        if let Ok(mut forms) = self.0.forms.lock() {
            forms.insert(key, form);
        }
    }

    /// True if both are clones of one constant.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A number that tells constants apart for as long as they live.
    pub(crate) fn identity(&self) -> usize {
        Arc::as_ptr(&self.0).addr()
    }
}

impl fmt::Debug for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Constant({})", self.0.fact)
    }
}

/// Where a value comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Given when the graph runs.
    Input,
    /// Part of the graph.
    Constant(Constant),
    /// An output of a node.
    Node(NodeId),
}

/// What flows between nodes.
#[derive(Clone, Debug)]
pub struct Value {
    /// The tensor's name; unique in its graph, except that values without a name have an empty one.
    pub name: Arc<str>,
    /// What is known of it.
    pub fact: Fact,
    /// Where it comes from.
    pub source: Source,
}

/// Why a node of a backward graph is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The title of the forward node whose rule made it.
    pub node: Arc<str>,
    /// The rule's name.
    pub rule: Arc<str>,
}

/// An op applied to values.
#[derive(Clone, Debug)]
pub struct Node {
    /// The node's name in the model; empty for nodes without one.
    pub name: Arc<str>,
    /// What it computes.
    pub op: Op,
    /// Its inputs; an optional input that is left out is `None`.
    pub inputs: Vec<Option<ValueId>>,
    /// Its outputs.
    pub outputs: Vec<ValueId>,
    /// Set on nodes that a backward pass added.
    pub provenance: Option<Provenance>,
}

impl Node {
    /// How messages speak of the node: its op and name.
    pub fn title(&self) -> String {
        match &*self.name {
            "" => self.op.name().to_owned(),
            name => format!("{} '{name}'", self.op.name()),
        }
    }
}

/// A network, a loss, a gradient: nodes in topological order over values.
///
/// A graph only grows: passes over it return new graphs. Facts are inferred when a node is added, so a graph whose
/// shapes or types do not fit cannot be built.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    values: Vec<Value>,
    inputs: Vec<ValueId>,
    /// The values that the graph is computed for.
    pub outputs: Vec<ValueId>,
}

impl Graph {
    /// All nodes, each after the nodes it depends on.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All nodes with their ids.
    pub fn nodes_with_ids(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> + ExactSizeIterator {
        self.nodes.iter().enumerate().map(|(index, node)| (NodeId(index as u32), node))
    }

    /// All values with their ids.
    pub fn values(&self) -> impl DoubleEndedIterator<Item = (ValueId, &Value)> + ExactSizeIterator {
        self.values.iter().enumerate().map(|(index, value)| (ValueId(index as u32), value))
    }

    /// The values that are given when the graph runs.
    pub fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// A value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.index()]
    }

    /// What is known of a value.
    pub fn fact(&self, id: ValueId) -> &Fact {
        &self.values[id.index()].fact
    }

    /// The node that computes a value, unless it is an input or a constant.
    pub fn producer(&self, id: ValueId) -> Option<NodeId> {
        match self.value(id).source {
            Source::Node(node) => Some(node),
            _ => None,
        }
    }

    /// The constant behind a value, if it is one.
    pub fn constant(&self, id: ValueId) -> Option<&Constant> {
        match &self.value(id).source {
            Source::Constant(constant) => Some(constant),
            _ => None,
        }
    }

    /// How messages speak of a value: its name, else its producer.
    pub fn title(&self, id: ValueId) -> String {
        let value = self.value(id);
        match (&*value.name, &value.source) {
            ("", Source::Node(node)) => format!("the output of {}", self.node(*node).title()),
            ("", _) => format!("value {}", id.0),
            (name, _) => format!("'{name}'"),
        }
    }

    fn add_value(&mut self, name: &str, fact: Fact, source: Source) -> ValueId {
        let id = ValueId(u32::try_from(self.values.len()).expect("invariant: fewer than 2^32 values"));
        self.values.push(Value { name: name.into(), fact, source });
        id
    }

    /// Adds an input.
    pub fn add_input(&mut self, name: &str, fact: Fact) -> ValueId {
        let id = self.add_value(name, fact, Source::Input);
        self.inputs.push(id);
        id
    }

    /// Adds a constant.
    pub fn add_constant(&mut self, name: &str, constant: Constant) -> ValueId {
        let fact = constant.fact().clone();
        self.add_value(name, fact, Source::Constant(constant))
    }

    /// Adds a node and infers the facts of its outputs.
    ///
    /// # Errors
    /// If the op does not accept the inputs; the message names the node.
    pub fn add_node(&mut self, name: &str, op: Op, inputs: &[Option<ValueId>]) -> Result<NodeId> {
        let facts = {
            let facts: Vec<Option<&Fact>> =
                inputs.iter().map(|input| input.map(|id| self.fact(id))).collect();
            infer(&op, &facts).context(|| match name {
                "" => op.name().to_owned(),
                name => format!("{} '{name}'", op.name()),
            })?
        };
        let id = NodeId(u32::try_from(self.nodes.len()).expect("invariant: fewer than 2^32 nodes"));
        let outputs = facts.into_iter().map(|fact| self.add_value("", fact, Source::Node(id))).collect();
        self.nodes.push(Node { name: name.into(), op, inputs: inputs.to_vec(), outputs, provenance: None });
        Ok(id)
    }

    /// The same graph with symbols bound; values keep their ids.
    ///
    /// # Errors
    /// If shapes do not fit once symbols are bound; the message names the node.
    pub(crate) fn bound(&self, bindings: &Bindings) -> Result<Self> {
        let shape = |fact: &Fact| fact.shape.iter().map(|dim| dim.bind(bindings)).collect();
        self.mapped(|constant| Ok(constant.clone()), |fact| Fact::new(fact.dtype, shape(fact)), Op::clone)
    }

    /// Names a value.
    pub(crate) fn set_name(&mut self, id: ValueId, name: &str) {
        self.values[id.index()].name = name.into();
    }

    /// Names the nodes from the one of this index on.
    pub(crate) fn name_nodes_from(&mut self, first: usize, name: &str) {
        for node in &mut self.nodes[first..] {
            node.name = name.into();
        }
    }

    /// Says why a node is there.
    pub(crate) fn set_provenance(&mut self, id: NodeId, provenance: Provenance) {
        self.nodes[id.index()].provenance = Some(provenance);
    }

    /// The same graph with other nodes in the place of some; values keep their ids.
    ///
    /// `replace` is asked for each node. It may add nodes, of which the last has to give the node's first output; nobody
    /// may read the others.
    pub(crate) fn replacing(
        &self,
        mut replace: impl for<'b> FnMut(&'b Builder, &Node) -> Result<Option<Var<'b>>>,
    ) -> Result<Self> {
        let start = Self { nodes: Vec::new(), ..self.clone() };
        let mut builder = Builder::new(start);
        for node in &self.nodes {
            let other = replace(&builder, node)?.map(Var::id).transpose()?;
            let mut graph = builder.finish()?;
            match other {
                Some(new) => graph.take_over(node, new)?,
                None => graph.push_again(node.clone()),
            }
            builder = Builder::new(graph);
        }
        builder.finish()
    }

    /// The same graph with other constants, facts of inputs and ops; ids stay the same, and all other facts are inferred anew.
    ///
    /// # Errors
    /// The first error of `constant`; or if an op does not accept what its inputs have become: the message names the node.
    pub(crate) fn mapped(
        &self,
        constant: impl Fn(&Constant) -> Result<Constant>,
        input: impl Fn(&Fact) -> Fact,
        op: impl Fn(&Op) -> Op,
    ) -> Result<Self> {
        let mut graph = Self { nodes: Vec::new(), ..self.clone() };
        for value in &mut graph.values {
            match &value.source {
                Source::Input => value.fact = input(&value.fact),
                Source::Constant(old) => {
                    let new = constant(old)?;
                    value.fact = new.fact().clone();
                    value.source = Source::Constant(new);
                }
                Source::Node(_) => {}
            }
        }
        for node in &self.nodes {
            let op = op(&node.op);
            let facts: Vec<Option<&Fact>> =
                node.inputs.iter().map(|input| input.map(|id| graph.fact(id))).collect();
            let facts = infer(&op, &facts).context(|| node.title())?;
            for (&output, fact) in node.outputs.iter().zip(facts) {
                graph.values[output.index()].fact = fact;
            }
            graph.push_again(Node { op, ..node.clone() });
        }
        Ok(graph)
    }

    /// Adds a node whose outputs are values of the graph already.
    fn push_again(&mut self, node: Node) {
        let id = NodeId(u32::try_from(self.nodes.len()).expect("invariant: fewer than 2^32 nodes"));
        for output in &node.outputs {
            self.values[output.index()].source = Source::Node(id);
        }
        self.nodes.push(node);
    }

    /// Lets the node that was added last give the output of another, in the place of its own output `new`.
    fn take_over(&mut self, old: &Node, new: ValueId) -> Result<()> {
        let same = |fact: &Fact, other: &Fact| fact.dtype == other.dtype && fact.rank() == other.rank();
        match (self.nodes.pop(), self.values.pop()) {
            (Some(node), Some(value))
                if node.outputs[..] == [new]
                    && new.index() == self.values.len()
                    && same(&value.fact, self.fact(old.outputs[0])) =>
            {
                self.values[old.outputs[0].index()].fact = value.fact;
                let outputs = vec![old.outputs[0]];
                self.push_again(Node { outputs, name: old.name.clone(), ..node });
                Ok(())
            }
            _ => bail!(internal, "what takes the place of {} does not fit", old.title()),
        }
    }

    /// The consumers of each value: pairs of node and input position.
    pub fn consumers(&self) -> Vec<Vec<(NodeId, usize)>> {
        let mut consumers = vec![Vec::new(); self.values.len()];
        for (id, node) in self.nodes_with_ids() {
            for (position, input) in node.inputs.iter().enumerate() {
                if let Some(input) = input {
                    consumers[input.index()].push((id, position));
                }
            }
        }
        consumers
    }
}

/// The facts of an op's outputs, with the content of small outputs where it can be known.
fn infer(op: &Op, facts: &[Option<&Fact>]) -> Result<Vec<Fact>> {
    let mut outputs = op.infer(&Inputs(facts))?;
    if outputs.iter().any(|fact| fact.content.is_none() && is_small(fact))
        && let Some(contents) = contents_by_running(op, facts).or_else(|| contents_by_moving(op, facts))
    {
        for (fact, content) in outputs.iter_mut().zip(contents) {
            // Of a symbol it is not known whether it is true.
            if fact.content.is_none() && (fact.dtype != DType::Bool || is_truth(&content)) {
                fact.content = content;
            }
        }
    }
    Ok(outputs)
}

/// True for the truth values 0 and 1.
fn is_truth(content: &Option<Content>) -> bool {
    matches!(content, Some(Content::Integers(dims)) if dims.iter().all(|dim| dim.is(0) || dim.is(1)))
}

fn is_small(fact: &Fact) -> bool {
    let count = |shape: Vec<usize>| shape.iter().try_fold(1usize, |count, &length| count.checked_mul(length));
    known_shape(&fact.shape).and_then(count).is_some_and(|count| count <= CONTENT_LIMIT)
}

/// Runs the op where every element of every input is known.
fn contents_by_running(op: &Op, facts: &[Option<&Fact>]) -> Option<Vec<Option<Content>>> {
    let tensors: Vec<Option<Tensor>> = facts
        .iter()
        .map(|fact| fact.map(|fact| fact.known_tensor().ok_or(())).transpose())
        .collect::<Result<_, _>>()
        .ok()?;
    if tensors.is_empty() {
        return None;
    }
    let inputs: Vec<Option<&Tensor>> = tensors.iter().map(Option::as_ref).collect();
    let outputs = op.run(&Inputs(&inputs)).ok()?;
    Some(outputs.iter().map(|tensor| Fact::of(tensor).content).collect())
}

/// Finds where an op that only moves elements puts the symbolic ones: runs it on their positions.
fn contents_by_moving(op: &Op, facts: &[Option<&Fact>]) -> Option<Vec<Option<Content>>> {
    let moved = op.moved_inputs(facts.len());
    if moved.is_empty() {
        return None;
    }
    let mut elements: Vec<Dim> = Vec::new();
    let mut tensors = Vec::new();
    for (position, fact) in facts.iter().enumerate() {
        let Some(fact) = fact else {
            tensors.push(None);
            continue;
        };
        if moved.contains(&position) {
            let start = elements.len() as i64;
            elements.extend_from_slice(fact.integers()?);
            let places = (start..elements.len() as i64).collect();
            tensors.push(Some(Tensor::from_shape_vec(&known_shape(&fact.shape)?, places).ok()?));
        } else {
            tensors.push(Some(fact.known_tensor()?));
        }
    }
    let inputs: Vec<Option<&Tensor>> = tensors.iter().map(Option::as_ref).collect();
    let outputs = op.run(&Inputs(&inputs)).ok()?;
    let content = |tensor: &Tensor| -> Option<Content> {
        let places = tensor.to_integers().ok()?;
        let dims: Option<Vec<Dim>> =
            places.iter().map(|&place| elements.get(usize::try_from(place).ok()?).cloned()).collect();
        Some(Content::Integers(dims?.into()))
    };
    Some(outputs.iter().map(content).collect())
}
