//! Graphs as arithmetic: handles on values whose operators add nodes.

use crate::dim::{Dim, Shape, known_shape};
use crate::error::{Error, Result, bail};
use crate::graph::{Constant, Fact, Graph, NodeId, Provenance, ValueId};
use crate::op::Op;
use crate::ops::activation::{Relu, Sigmoid, Tanh};
use crate::ops::elementwise as el;
use crate::ops::gather::Gather;
use crate::ops::layout::{Cast, Expand, Reshape, Shape as ShapeOp, Squeeze, Transpose, Unsqueeze};
use crate::ops::logic;
use crate::ops::matmul::MatMul;
use crate::ops::reduce::{ReduceMax, ReduceMean, ReduceSum};
use crate::ops::slice::{Concat, Slice};
use crate::ops::softmax::Softmax;
use crate::tensor::{DType, Tensor};
use std::cell::{Ref, RefCell};
use std::ops::{Add, Div, Mul, Neg, Not, Sub};

/// Adds nodes to a graph through handles.
///
/// The first error is kept, and given back by [`Builder::finish`]; from then on handles are inert, so that
/// expressions need no `?`.
///
/// ```
/// use ouzel::{Builder, DType, Dim, Fact, Graph};
/// let builder = Builder::new(Graph::default());
/// let x = builder.input("x", Fact::new(DType::F32, vec![Dim::symbol("batch"), 3.into()]));
/// let y = (x * 2.0 + 1.0).relu();
/// assert_eq!(y.shape(), x.shape());
/// let graph = builder.finish()?;
/// assert_eq!(graph.nodes().len(), 3);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Builder {
    graph: RefCell<Graph>,
    error: RefCell<Option<Error>>,
    provenance: RefCell<Option<Provenance>>,
}

/// A value of the graph that a [`Builder`] builds.
#[derive(Clone, Copy, Debug)]
pub struct Var<'b> {
    builder: &'b Builder,
    id: Option<ValueId>,
}

impl Builder {
    /// Starts from a graph.
    pub fn new(graph: Graph) -> Self {
        Self { graph: RefCell::new(graph), ..Self::default() }
    }

    /// The graph, or the first error that happened.
    ///
    /// # Errors
    /// The first error of any expression.
    pub fn finish(self) -> Result<Graph> {
        match self.error.into_inner() {
            Some(error) => Err(error),
            None => Ok(self.graph.into_inner()),
        }
    }

    /// The first error so far.
    ///
    /// # Errors
    /// The first error of any expression.
    pub fn check(&self) -> Result<()> {
        match &*self.error.borrow() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    /// The graph as far as it came, whether an error happened or not.
    pub(crate) fn into_graph(self) -> Graph {
        self.graph.into_inner()
    }

    /// The graph as it is now.
    pub fn graph(&self) -> Ref<'_, Graph> {
        self.graph.borrow()
    }

    fn fail(&self, error: Error) -> Var<'_> {
        self.error.borrow_mut().get_or_insert(error);
        Var { builder: self, id: None }
    }

    /// Nodes that are added from now on carry this provenance.
    pub(crate) fn set_provenance(&self, provenance: Option<Provenance>) {
        *self.provenance.borrow_mut() = provenance;
    }

    /// A handle on a value of the graph.
    pub fn var(&self, id: ValueId) -> Var<'_> {
        Var { builder: self, id: Some(id) }
    }

    /// Adds an input.
    pub fn input(&self, name: &str, fact: Fact) -> Var<'_> {
        let id = self.graph.borrow_mut().add_input(name, fact);
        self.var(id)
    }

    /// Adds a constant.
    pub fn constant(&self, tensor: impl Into<Tensor>) -> Var<'_> {
        let id = self.graph.borrow_mut().add_constant("", Constant::new(tensor.into()));
        self.var(id)
    }

    /// Adds a constant as it is.
    pub(crate) fn add_constant(&self, name: &str, constant: Constant) -> ValueId {
        self.graph.borrow_mut().add_constant(name, constant)
    }

    /// Adds a node with a name.
    pub(crate) fn add_node(&self, name: &str, op: Op, inputs: &[Option<ValueId>]) -> Result<NodeId> {
        let mut graph = self.graph.borrow_mut();
        let node = graph.add_node(name, op, inputs)?;
        if let Some(provenance) = &*self.provenance.borrow() {
            graph.set_provenance(node, provenance.clone());
        }
        Ok(node)
    }

    /// Names a value.
    pub(crate) fn set_name(&self, id: ValueId, name: &str) {
        self.graph.borrow_mut().set_name(id, name);
    }

    /// Names the nodes from the one of this index on.
    pub(crate) fn name_nodes_from(&self, first: usize, name: &str) {
        self.graph.borrow_mut().name_nodes_from(first, name);
    }

    /// A constant of rank 0.
    pub fn scalar(&self, value: f64, dtype: DType) -> Var<'_> {
        let id = self.graph.borrow_mut().add_constant("", Constant::scalar(value, dtype));
        self.var(id)
    }

    /// A constant vector of int64.
    pub fn integers(&self, values: impl IntoIterator<Item = i64>) -> Var<'_> {
        self.constant(Tensor::vector(values))
    }

    /// Adds a node and gives all its outputs.
    pub fn apply_all<'b>(&'b self, op: impl Into<Op>, inputs: &[Option<Var<'b>>]) -> Vec<Var<'b>> {
        match self.try_apply(op.into(), inputs) {
            Some(Ok(node)) => {
                let graph = self.graph.borrow();
                graph.node(node).outputs.iter().map(|&id| self.var(id)).collect()
            }
            Some(Err(error)) => vec![self.fail(error)],
            None => vec![Var { builder: self, id: None }],
        }
    }

    /// Adds a node and gives its first output.
    pub fn apply<'b>(&'b self, op: impl Into<Op>, inputs: &[Var<'b>]) -> Var<'b> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.apply_all(op, &inputs)[0]
    }

    /// Joins values along an axis; they agree in the lengths of all other axes.
    pub fn concat<'b>(&'b self, parts: &[Var<'b>], axis: usize) -> Var<'b> {
        match parts {
            [part] => *part,
            _ => self.apply(Concat { axis: axis as i64 }, parts),
        }
    }

    /// `None` if an input is inert.
    fn try_apply(&self, op: Op, inputs: &[Option<Var>]) -> Option<Result<NodeId>> {
        let ids: Option<Vec<Option<ValueId>>> = inputs
            .iter()
            .map(|input| input.map(|var| var.id).map_or(Some(None), |id| id.map(Some)))
            .collect();
        let mut graph = self.graph.borrow_mut();
        let result = graph.add_node("", op, &ids?);
        if let (Ok(node), Some(provenance)) = (&result, &*self.provenance.borrow()) {
            graph.set_provenance(*node, provenance.clone());
        }
        Some(result)
    }

    /// A shape as an int64 vector in the graph: a constant where every axis but one is known.
    ///
    /// `like` must have that shape; it is asked for it at run time where more than one axis is symbolic.
    fn reshape_target<'b>(&'b self, like: Var<'b>) -> Var<'b> {
        let shape = like.shape();
        match shape.iter().filter(|dim| dim.known().is_none()).count() {
            0 => self.integers(shape.iter().filter_map(Dim::known)),
            1 if !shape.iter().any(|dim| dim.is(0)) => {
                self.integers(shape.iter().map(|dim| dim.known().unwrap_or(-1)))
            }
            _ => like.dimensions(),
        }
    }
}

impl<'b> Var<'b> {
    /// The value in the graph.
    ///
    /// # Errors
    /// The error that made the handle inert.
    pub fn id(self) -> Result<ValueId> {
        match self.id {
            Some(id) => Ok(id),
            None => {
                self.builder.check()?;
                bail!(internal, "a handle is inert without an error")
            }
        }
    }

    /// The builder.
    pub fn builder(self) -> &'b Builder {
        self.builder
    }

    /// What is known of the value; a float32 scalar if the handle is inert.
    pub fn fact(self) -> Fact {
        match self.id {
            Some(id) => self.builder.graph.borrow().fact(id).clone(),
            None => Fact::new(DType::F32, vec![]),
        }
    }

    /// The length of each axis.
    pub fn shape(self) -> Shape {
        self.fact().shape
    }

    /// The number of axes.
    pub fn rank(self) -> usize {
        self.fact().rank()
    }

    /// The element type.
    pub fn dtype(self) -> DType {
        self.fact().dtype
    }

    /// A constant scalar of the same element type.
    pub fn scalar_like(self, value: f64) -> Var<'b> {
        self.builder.scalar(value, self.dtype())
    }

    fn unary(self, op: impl Into<Op>) -> Var<'b> {
        self.builder.apply(op, &[self])
    }

    fn binary(self, op: impl Into<Op>, other: Var<'b>) -> Var<'b> {
        self.builder.apply(op, &[self, other])
    }

    /// The error function of each element.
    pub fn erf(self) -> Var<'b> {
        self.unary(el::Erf)
    }

    /// The absolute value of each element.
    pub fn abs(self) -> Var<'b> {
        self.unary(el::Abs)
    }

    /// The sign of each element: -1, 0 or 1.
    pub fn sign(self) -> Var<'b> {
        self.unary(el::Sign)
    }

    /// The exponential of each element.
    pub fn exp(self) -> Var<'b> {
        self.unary(el::Exp)
    }

    /// The natural logarithm of each element.
    pub fn ln(self) -> Var<'b> {
        self.unary(el::Log)
    }

    /// The square root of each element.
    pub fn sqrt(self) -> Var<'b> {
        self.unary(el::Sqrt)
    }

    /// `1 / x` of each element.
    pub fn reciprocal(self) -> Var<'b> {
        self.unary(el::Reciprocal)
    }

    /// The sine of each element.
    pub fn sin(self) -> Var<'b> {
        self.unary(el::Sin)
    }

    /// The cosine of each element.
    pub fn cos(self) -> Var<'b> {
        self.unary(el::Cos)
    }

    /// `max(x, 0)` of each element.
    pub fn relu(self) -> Var<'b> {
        self.unary(Relu)
    }

    /// The logistic function of each element.
    pub fn sigmoid(self) -> Var<'b> {
        self.unary(Sigmoid)
    }

    /// The hyperbolic tangent of each element.
    pub fn tanh(self) -> Var<'b> {
        self.unary(Tanh)
    }

    /// Each element to a constant power.
    pub fn powf(self, exponent: f64) -> Var<'b> {
        self.binary(el::Pow, self.scalar_like(exponent))
    }

    /// Each element to the power of the other's.
    pub fn pow(self, exponent: Var<'b>) -> Var<'b> {
        self.binary(el::Pow, exponent)
    }

    /// The larger of two elements.
    pub fn maximum(self, other: impl Operand<'b>) -> Var<'b> {
        self.binary(el::Max, other.operand(self))
    }

    /// The smaller of two elements.
    pub fn minimum(self, other: impl Operand<'b>) -> Var<'b> {
        self.binary(el::Min, other.operand(self))
    }

    /// Where `self > other`.
    pub fn greater(self, other: impl Operand<'b>) -> Var<'b> {
        self.binary(logic::Greater, other.operand(self))
    }

    /// Where `self >= other`.
    pub fn greater_or_equal(self, other: impl Operand<'b>) -> Var<'b> {
        self.binary(logic::GreaterOrEqual, other.operand(self))
    }

    /// Where `self < other`.
    pub fn less(self, other: impl Operand<'b>) -> Var<'b> {
        self.binary(logic::Less, other.operand(self))
    }

    /// Where `self <= other`.
    pub fn less_or_equal(self, other: impl Operand<'b>) -> Var<'b> {
        self.binary(logic::LessOrEqual, other.operand(self))
    }

    /// Where `self == other`.
    pub fn equal(self, other: impl Operand<'b>) -> Var<'b> {
        self.binary(logic::Equal, other.operand(self))
    }

    /// Both, of truth values.
    pub fn and(self, other: Var<'b>) -> Var<'b> {
        self.binary(logic::And, other)
    }

    /// Either, of truth values.
    pub fn or(self, other: Var<'b>) -> Var<'b> {
        self.binary(logic::Or, other)
    }

    /// `self` where `condition` holds, else `other`.
    pub fn select(self, condition: Var<'b>, other: impl Operand<'b>) -> Var<'b> {
        self.builder.apply(logic::Where, &[condition, self, other.operand(self)])
    }

    /// `self` where `condition` holds, else exactly 0, whatever `self` is there: gates select, they never multiply.
    pub fn select_where(self, condition: Var<'b>) -> Var<'b> {
        self.select(condition, 0.0)
    }

    /// The same numbers as another element type.
    pub fn cast(self, to: DType) -> Var<'b> {
        if self.dtype() == to { self } else { self.unary(Cast { to }) }
    }

    /// The shape as an int64 vector, asked for at run time.
    pub fn dimensions(self) -> Var<'b> {
        self.unary(ShapeOp::default())
    }

    /// The same elements in another shape; one length may be -1.
    pub fn reshape(self, shape: impl IntoIterator<Item = i64>) -> Var<'b> {
        let target = self.builder.integers(shape);
        self.binary(Reshape { allow_zero: true }, target)
    }

    /// The same elements in a shape of which any number of axes may be symbolic, if `like` has it.
    pub fn reshape_like(self, like: Var<'b>) -> Var<'b> {
        if self.shape() == like.shape() {
            return self;
        }
        self.binary(Reshape { allow_zero: true }, self.builder.reshape_target(like))
    }

    /// Repeats axes of length 1, and adds leading ones, until the shape is that of `like`.
    pub fn expand_like(self, like: Var<'b>) -> Var<'b> {
        if self.shape() == like.shape() {
            return self;
        }
        let target = match known_shape(&like.shape()) {
            Some(shape) => self.builder.integers(shape.into_iter().map(|length| length as i64)),
            None => like.dimensions(),
        };
        self.binary(Expand, target)
    }

    /// Repeats axes of length 1 until they have these lengths; 1 leaves an axis as it is.
    pub fn expand(self, lengths: impl IntoIterator<Item = i64>) -> Var<'b> {
        let target = self.builder.integers(lengths);
        self.binary(Expand, target)
    }

    /// Axis `i` of the result is axis `permutation[i]` of this.
    pub fn transpose(self, permutation: impl IntoIterator<Item = usize>) -> Var<'b> {
        let permutation: Vec<usize> = permutation.into_iter().collect();
        if permutation.iter().copied().eq(0..permutation.len()) {
            return self;
        }
        self.unary(Transpose { permutation: Some(permutation) })
    }

    /// Matrices transposed: the last two axes change places.
    pub fn transpose_last_two(self) -> Var<'b> {
        let rank = self.rank();
        if rank < 2 {
            return self.builder.fail(Error::shape(format!("expected matrices, found {}", self.fact())));
        }
        self.transpose((0..rank - 2).chain([rank - 1, rank - 2]))
    }

    /// The matrix product, with numpy's rules for stacks of matrices and for vectors.
    pub fn matmul(self, other: Var<'b>) -> Var<'b> {
        self.binary(MatMul, other)
    }

    /// The softmax along one axis.
    pub fn softmax(self, axis: usize) -> Var<'b> {
        self.unary(Softmax::over(axis))
    }

    /// The elements at constant places of an axis; negative places count from its end.
    pub fn gather(self, axis: usize, indices: Vec<i64>) -> Var<'b> {
        self.binary(Gather { axis: axis as i64 }, self.builder.integers(indices))
    }

    /// The entries of the first axis that an integer tensor names.
    pub fn gathered(self, indices: Var<'b>) -> Var<'b> {
        self.binary(Gather { axis: 0 }, indices)
    }

    /// The elements from `start` to before `end` of an axis; negative places count from its end.
    pub fn slice(self, axis: usize, start: i64, end: i64) -> Var<'b> {
        let vector = |value: i64| self.builder.integers([value]);
        self.builder.apply(Slice, &[self, vector(start), vector(end), vector(axis as i64)])
    }

    /// The elements of an axis from the last to the first.
    pub fn reversed(self, axis: usize) -> Var<'b> {
        let vector = |value: i64| self.builder.integers([value]);
        let far = i64::from(i32::MIN);
        self.builder.apply(Slice, &[self, vector(-1), vector(far), vector(axis as i64), vector(-1)])
    }

    /// Inserts axes of length 1 at these places of the result.
    pub fn unsqueeze(self, axes: impl IntoIterator<Item = usize>) -> Var<'b> {
        let axes: Vec<i64> = axes.into_iter().map(|axis| axis as i64).collect();
        if axes.is_empty() { self } else { self.unary(Unsqueeze { axes }) }
    }

    /// Removes axes of length 1.
    pub fn squeeze(self, axes: impl IntoIterator<Item = usize>) -> Var<'b> {
        let axes: Vec<i64> = axes.into_iter().map(|axis| axis as i64).collect();
        if axes.is_empty() { self } else { self.unary(Squeeze { axes: Some(axes) }) }
    }

    /// The sum over axes.
    pub fn reduce_sum(self, axes: impl IntoIterator<Item = usize>, keep_dims: bool) -> Var<'b> {
        let axes: Vec<i64> = axes.into_iter().map(|axis| axis as i64).collect();
        if axes.is_empty() { self } else { self.unary(ReduceSum::over(axes, keep_dims)) }
    }

    /// The mean over axes.
    pub fn reduce_mean(self, axes: impl IntoIterator<Item = usize>, keep_dims: bool) -> Var<'b> {
        let axes: Vec<i64> = axes.into_iter().map(|axis| axis as i64).collect();
        if axes.is_empty() { self } else { self.unary(ReduceMean::over(axes, keep_dims)) }
    }

    /// The maximum over axes.
    pub fn reduce_max(self, axes: impl IntoIterator<Item = usize>, keep_dims: bool) -> Var<'b> {
        let axes: Vec<i64> = axes.into_iter().map(|axis| axis as i64).collect();
        if axes.is_empty() { self } else { self.unary(ReduceMax::over(axes, keep_dims)) }
    }

    /// The sum of all elements, of rank 0.
    pub fn sum(self) -> Var<'b> {
        self.reduce_sum(0..self.rank(), false)
    }

    /// Undoes broadcasting: sums over the axes that were added or repeated to get from the shape of `like` to this.
    pub(crate) fn unbroadcast(self, like: Var<'b>) -> Var<'b> {
        let (from, to) = (self.shape(), like.shape());
        if from == to || from.len() < to.len() {
            return self;
        }
        let added = from.len() - to.len();
        let repeated = (0..to.len()).filter(|&axis| to[axis].is(1) && !from[added + axis].is(1));
        let axes: Vec<usize> = (0..added).chain(repeated.map(|axis| added + axis)).collect();
        self.reduce_sum(axes, true).squeeze(0..added)
    }
}

/// What can stand on the right of an operator: a handle, or a number of the left side's element type.
pub trait Operand<'b> {
    /// The handle.
    fn operand(self, left: Var<'b>) -> Var<'b>;
}

impl<'b> Operand<'b> for Var<'b> {
    fn operand(self, _: Var<'b>) -> Var<'b> {
        self
    }
}

impl<'b> Operand<'b> for f64 {
    fn operand(self, left: Var<'b>) -> Var<'b> {
        left.scalar_like(self)
    }
}

macro_rules! operators {
    ($($Trait:ident $method:ident),*) => { $(
        impl<'b, R: Operand<'b>> $Trait<R> for Var<'b> {
            type Output = Var<'b>;
            fn $method(self, other: R) -> Var<'b> {
                self.binary(el::$Trait, other.operand(self))
            }
        }
    )* };
}
operators!(Add add, Sub sub, Mul mul, Div div);

impl<'b> Neg for Var<'b> {
    type Output = Var<'b>;
    fn neg(self) -> Var<'b> {
        self.unary(el::Neg)
    }
}

impl<'b> Not for Var<'b> {
    type Output = Var<'b>;
    fn not(self) -> Var<'b> {
        self.unary(logic::Not)
    }
}
