//! What an op sees of a file's node when it reads its attributes; an attribute that nobody reads is an error.

use crate::error::{Result, bail};
use crate::graph::{Constant, Fact, Graph, ValueId};
use crate::tensor::Tensor;
use std::collections::BTreeMap;

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
        Self { graph, opset, attributes, inputs, outputs }
    }

    /// The version of the operator set.
    pub fn opset(&self) -> i64 {
        self.opset
    }

    /// The number of outputs that the file names.
    pub fn output_count(&self) -> usize {
        self.outputs
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
