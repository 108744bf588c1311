//! What an op sees of a file's node when it reads its attributes; an attribute that nobody reads is an error.

use crate::builder::{Builder, Var};
use crate::error::{Result, bail};
use crate::evaluate::constant_value;
use crate::graph::{Constant, Fact, Graph, Source, ValueId};
use crate::tensor::{DType, Tensor};
use std::collections::{BTreeMap, HashSet};

/// An attribute's value.
#[derive(Clone, Debug)]
pub enum Attribute {
    /// A floating point number.
    Float(f32),
    /// An integer.
    Int(i64),
    /// A text.
    String(String),
    /// A tensor.
    Tensor(Constant),
    /// Floating point numbers.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
    /// Texts.
    Strings(Vec<String>),
    /// Something else, by the name of its type.
    Other(&'static str),
}

impl Attribute {
    fn kind(&self) -> &'static str {
        match self {
            Self::Float(_) => "a float",
            Self::Int(_) => "an integer",
            Self::String(_) => "a text",
            Self::Tensor(_) => "a tensor",
            Self::Floats(_) => "a list of floats",
            Self::Ints(_) => "a list of integers",
            Self::Strings(_) => "a list of texts",
            Self::Other(kind) => kind,
        }
    }
}

/// A node of a file while its op reads it.
pub struct NodeReader<'a> {
    graph: &'a mut Graph,
    opset: i64,
    attributes: BTreeMap<String, (Attribute, bool)>,
    inputs: Vec<Option<ValueId>>,
    /// The element types of the inputs as the file says them, where it does.
    declared: Vec<Option<i64>>,
    outputs: usize,
}

macro_rules! getters {
    ($($(#[$doc:meta])* $name:ident: $variant:ident => $type:ty, $expected:literal, |$value:ident| $convert:expr;)*) => { $(
        $(#[$doc])*
        pub fn $name(&mut self, name: &str) -> Result<Option<$type>> {
            match self.attributes.get_mut(name) {
                None => Ok(None),
                Some((Attribute::$variant($value), used)) => {
                    *used = true;
                    Ok(Some($convert))
                }
                Some((other, _)) => {
                    bail!(model, "attribute '{name}': expected {}, found {}", $expected, other.kind())
                }
            }
        }
    )* };
}

impl<'a> NodeReader<'a> {
    /// A node of a file of the given opset.
    pub fn new(
        graph: &'a mut Graph,
        opset: i64,
        attributes: BTreeMap<String, Attribute>,
        inputs: Vec<Option<ValueId>>,
        outputs: usize,
    ) -> Self {
        let attributes = attributes.into_iter().map(|(name, value)| (name, (value, false))).collect();
        Self { graph, opset, attributes, inputs, declared: Vec::new(), outputs }
    }

    /// The same node, whose inputs have these element types in the file.
    pub(super) fn with_declared(self, declared: Vec<Option<i64>>) -> Self {
        Self { declared, ..self }
    }

    /// The number of an input's element type, which may be narrower than the type that it is read as.
    pub(crate) fn declared(&self, index: usize) -> Option<i64> {
        let fact = self.input(index)?;
        let read = match fact.dtype {
            DType::F32 => 1,
            DType::U8 => 2,
            DType::I8 => 3,
            DType::U16 => 4,
            DType::I16 => 5,
            DType::I32 => 6,
            DType::I64 => 7,
            DType::Bool => 9,
            DType::F64 => 11,
            DType::U32 => 12,
            DType::U64 => 13,
        };
        Some(self.declared.get(index).copied().flatten().unwrap_or(read))
    }

    /// The version of the operator set.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// The number of outputs that the file names.
    pub fn output_count(&self) -> usize {
        self.outputs
    }

    /// The number of inputs, those left out included.
    pub fn input_count(&self) -> usize {
        self.inputs.len()
    }

    /// What is known of an input that is there.
    pub fn input(&self, index: usize) -> Option<&Fact> {
        self.inputs.get(index).copied().flatten().map(|id| self.graph.fact(id))
    }

    /// What is known of an input.
    ///
    /// # Errors
    /// If it is left out.
    pub fn required_input(&self, index: usize) -> Result<&Fact> {
        match self.input(index) {
            Some(fact) => Ok(fact),
            None => bail!(model, "input {index} is missing"),
        }
    }

    getters! {
        /// An integer attribute.
        int: Int => i64, "an integer", |value| *value;
        /// A floating point attribute.
        float: Float => f64, "a float", |value| f64::from(*value);
        /// A text attribute.
        string: String => String, "a text", |value| value.clone();
        /// A tensor attribute.
        tensor: Tensor => Constant, "a tensor", |value| value.clone();
        /// A list of integers.
        ints: Ints => Vec<i64>, "a list of integers", |value| value.clone();
        /// A list of texts.
        strings: Strings => Vec<String>, "a list of texts", |value| value.clone();
        /// A list of floats.
        floats: Floats => Vec<f64>, "a list of floats", |value| value.iter().copied().map(f64::from).collect();
    }

    /// An integer attribute with a default.
    pub fn int_or(&mut self, name: &str, default: i64) -> Result<i64> {
        Ok(self.int(name)?.unwrap_or(default))
    }

    /// A floating point attribute with a default.
    pub fn float_or(&mut self, name: &str, default: f64) -> Result<f64> {
        Ok(self.float(name)?.unwrap_or(default))
    }

    /// A text attribute with a default.
    pub fn string_or(&mut self, name: &str, default: &str) -> Result<String> {
        Ok(self.string(name)?.unwrap_or_else(|| default.to_owned()))
    }

    /// An attribute that is 0 or 1.
    pub fn flag_or(&mut self, name: &str, default: bool) -> Result<bool> {
        Ok(self.int_or(name, default.into())? != 0)
    }

    /// A list of non-negative integers.
    pub fn sizes(&mut self, name: &str) -> Result<Option<Vec<usize>>> {
        let Some(values) = self.ints(name)? else { return Ok(None) };
        let sizes: Result<Vec<usize>, _> = values.iter().map(|&value| usize::try_from(value)).collect();
        match sizes {
            Ok(sizes) => Ok(Some(sizes)),
            Err(_) => bail!(model, "attribute '{name}': expected non-negative integers, found {values:?}"),
        }
    }

    /// Reads an attribute that does not change what is computed.
    pub fn ignore(&mut self, name: &str) {
        if let Some((_, used)) = self.attributes.get_mut(name) {
            *used = true;
        }
    }

    /// The elements of an input that does not depend on the network's inputs; `None` if it is left out.
    ///
    /// # Errors
    /// If it does depend on them.
    pub(crate) fn constant(&self, index: usize, what: &str) -> Result<Option<Tensor>> {
        let Some(id) = self.inputs.get(index).copied().flatten() else { return Ok(None) };
        match constant_value(self.graph, id)? {
            Some(tensor) => Ok(Some(tensor)),
            None => bail!(
                unsupported,
                "{what} (input {index}) depends on the values of the network's input; it is supported as a constant only"
            ),
        }
    }

    /// The elements of an input that must be there and not depend on the network's inputs.
    ///
    /// # Errors
    /// If it is left out, or does depend on them.
    pub(crate) fn required_constant(&self, index: usize, what: &str) -> Result<Tensor> {
        match self.constant(index, what)? {
            Some(tensor) => Ok(tensor),
            None => bail!(model, "input {index} is missing"),
        }
    }

    /// Adds the nodes that stand for this one: `make` is given handles on the inputs, and gives the outputs.
    ///
    /// # Errors
    /// The first error of any expression.
    pub(crate) fn build(
        &mut self,
        make: impl for<'b> FnOnce(&'b Builder, &[Option<Var<'b>>]) -> Result<Vec<Var<'b>>>,
    ) -> Result<Vec<ValueId>> {
        let builder = Builder::new(std::mem::take(self.graph));
        let inputs: Vec<Option<Var>> = self.inputs.iter().map(|id| id.map(|id| builder.var(id))).collect();
        let made = make(&builder, &inputs).and_then(|vars| vars.into_iter().map(Var::id).collect());
        let checked = builder.check();
        *self.graph = builder.into_graph();
        checked.and(made)
    }

    /// True if no input of the network goes into the input of this index.
    pub(crate) fn is_made_of_constants(&self, index: usize) -> bool {
        let mut waiting: Vec<ValueId> = self.inputs.get(index).copied().flatten().into_iter().collect();
        let mut seen = HashSet::new();
        while let Some(id) = waiting.pop() {
            match self.graph.value(id).source {
                Source::Input => return false,
                Source::Node(node) if seen.insert(node) => {
                    waiting.extend(self.graph.node(node).inputs.iter().flatten());
                }
                Source::Node(_) | Source::Constant(_) => {}
            }
        }
        true
    }

    /// Puts a constant at an input that later opset versions have where earlier ones had an attribute.
    pub fn set_input(&mut self, index: usize, tensor: Tensor) {
        let id = self.graph.add_constant("", Constant::new(tensor));
        while self.inputs.len() <= index {
            self.inputs.push(None);
        }
        self.inputs[index] = Some(id);
    }

    /// An integer list that older opset versions have as the attribute `name` and newer ones as a constant input.
    /// The input is removed.
    ///
    /// # Errors
    /// If the input is computed from the network's input.
    pub fn ints_or_input(&mut self, name: &str, index: usize) -> Result<Option<Vec<i64>>> {
        if let Some(values) = self.ints(name)? {
            return Ok(Some(values));
        }
        let Some(id) = self.inputs.get(index).copied().flatten() else { return Ok(None) };
        let known = match (self.graph.fact(id).known_integers(), self.graph.constant(id)) {
            (Some(known), _) => known,
            (None, Some(constant)) => constant.read()?.to_integers()?,
            (None, None) => bail!(
                unsupported,
                "input {index} ('{name}') is computed while the network runs; it is supported as a constant only"
            ),
        };
        self.inputs.truncate(index);
        Ok(Some(known))
    }

    /// Makes room for an input that later opset versions have and that is left out here.
    pub fn insert_absent(&mut self, index: usize) {
        if index <= self.inputs.len() {
            self.inputs.insert(index, None);
        }
    }

    /// Leaves `count` inputs.
    pub fn keep_inputs(&mut self, count: usize) {
        self.inputs.truncate(count);
    }

    /// The inputs of the node, once everything is read.
    ///
    /// # Errors
    /// If an attribute was left unread.
    pub fn finish(self) -> Result<Vec<Option<ValueId>>> {
        let unread: Vec<&str> =
            self.attributes.iter().filter(|(_, (_, used))| !used).map(|(name, _)| name.as_str()).collect();
        if !unread.is_empty() {
            bail!(unsupported, "unknown attribute '{}' (opset {})", unread.join("', '"), self.opset);
        }
        Ok(self.inputs)
    }
}
