//! What an op is, and the list of all ops: the one place besides its family file that an op is named in.

use crate::backprop::{Back, Cotangents};
use crate::builder::{Builder, Var};
use crate::error::{Error, Result, bail};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::ops;
use crate::tensor::Tensor;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

/// The inputs of an op: facts when it is inferred, tensors when it runs. Inputs that are left out are `None`.
#[derive(Debug)]
pub struct Inputs<'a, T>(pub(crate) &'a [Option<&'a T>]);

impl<'a, T> Inputs<'a, T> {
    /// The number of inputs, those left out included.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there is no input.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An input that must be there.
    ///
    /// # Errors
    /// If it is left out.
    pub fn get(&self, index: usize) -> Result<&'a T> {
        match self.optional(index) {
            Some(input) => Ok(input),
            None => bail!(shape, "input {index} is missing"),
        }
    }

    /// An input that may be left out.
    pub fn optional(&self, index: usize) -> Option<&'a T> {
        self.0.get(index).copied().flatten()
    }

    /// The inputs that are there.
    pub fn present(&self) -> impl Iterator<Item = &'a T> {
        self.0.iter().copied().flatten()
    }
}

/// What every op can do. In the op's family file, next to its attributes.
///
/// Inside `ops/` and `rules/`, `x` is an input, `y` an output and `g` the cotangent of an output.
pub trait OpDef: fmt::Debug + Send + Sync {
    /// The ONNX name, or a name of our own for private ops.
    fn name(&self) -> &str;

    /// The facts of the outputs.
    ///
    /// # Errors
    /// If the op does not accept the inputs.
    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>>;

    /// Reference evaluation, in float32 or float64 as the inputs are. Slow and exact: the oracle of the engine.
    ///
    /// # Errors
    /// If the op does not accept the inputs.
    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>>;

    /// The true gradient: emits ops that compute the cotangent of each input from those of the outputs.
    ///
    /// # Errors
    /// If the gradient needs a size that is not known yet, or does not exist.
    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>>;

    /// Writes the attributes of a node of an ONNX file; its inputs are there already.
    ///
    /// # Errors
    /// If the file's operator set does not have the op, or not with these attributes.
    fn write(&self, _node: &mut NodeWriter) -> Result<()> {
        Ok(())
    }

    /// The same in other ops, where ONNX does not have this one, or not in the operator set of the file.
    ///
    /// # Errors
    /// If it cannot be said in other ops.
    fn lower<'b>(&self, _node: &Lowering<'b>) -> Result<Lowered<'b>> {
        Ok(None)
    }

    /// The inputs whose elements appear in the outputs unchanged, for ops that do nothing but move elements.
    fn moved_inputs(&self, _count: usize) -> Range<usize> {
        0..0
    }

    /// The outputs of the nodes that the op stands for, if it is not one for a graph.
    fn stands_for<'b>(&self, _: &'b Builder, _: &[Option<Var<'b>>]) -> Option<Vec<Var<'b>>> {
        None
    }

    /// The op that computes in float64 what this one computes in float32, where an attribute names the type.
    fn in_float64(&self) -> Option<Op> {
        None
    }
}

/// What the op list needs to know of an op that can be read from a file.
pub(crate) trait Listed: Sized {
    /// The names under which ONNX files have it; empty for private ops.
    const ONNX: &'static [&'static str];

    /// Reads the attributes.
    fn read(node: &mut NodeReader) -> Result<Self>;

    /// Inputs that the registry's gradient check runs the op on.
    #[cfg(test)]
    fn samples() -> Vec<crate::gradient_check::Sample>;
}

/// Reads a node's attributes into an op.
pub(crate) type Reader = fn(&mut NodeReader) -> Result<Op>;

macro_rules! op_list {
    ($($family:ident: $($Name:ident),+;)+) => {
        /// An op of a graph's node: one of the list, or a user's own.
        #[derive(Clone, PartialEq, Eq, Hash)]
        #[allow(missing_docs, reason = "each op is documented at its struct")]
        #[non_exhaustive]
        pub enum Op {
            $($($Name(ops::$family::$Name),)+)+
            /// An op that is not on the list, compared by pointer.
            Custom(Custom),
        }

        impl Op {
            fn def(&self) -> &dyn OpDef {
                match self {
                    $($(Self::$Name(op) => op,)+)+
                    Self::Custom(op) => &*op.0,
                }
            }

            /// The op's family: the file that it is defined in.
            pub fn family(&self) -> &'static str {
                match self {
                    $($(Self::$Name(_) => stringify!($family),)+)+
                    Self::Custom(_) => "custom",
                }
            }
        }

        $($(impl From<ops::$family::$Name> for Op {
            fn from(op: ops::$family::$Name) -> Self {
                Self::$Name(op)
            }
        })+)+

        /// The names that ONNX files use, each with the function that reads such a node.
        pub(crate) const READERS: &[(&[&str], Reader)] = &[
            $($((
                <ops::$family::$Name as Listed>::ONNX,
                |node| Ok(Op::$Name(<ops::$family::$Name as Listed>::read(node)?)),
            ),)+)+
        ];

        /// The samples of every op on the list, by the op's name.
        #[cfg(test)]
        pub(crate) fn samples() -> Vec<(&'static str, Vec<crate::gradient_check::Sample>)> {
            vec![$($((stringify!($Name), <ops::$family::$Name as Listed>::samples()),)+)+]
        }
    };
}

op_list! {
    activation: Relu, LeakyRelu, PRelu, ThresholdedRelu, Clip, Elu, Selu, Celu, Gelu, Sigmoid, HardSigmoid, HardSwish,
        Swish, Mish, Softplus, Softsign, Tanh;
    elementwise: Neg, Abs, Exp, Log, Sqrt, Reciprocal, Erf, Sin, Cos, Tan, Asin, Acos, Atan, Sinh, Cosh, Asinh, Acosh,
        Atanh, Floor, Ceil, Round, Sign, Add, Sub, Mul, Div, Pow, Mod, Max, Min, Sum, Mean;
    bits: BitShift, BitwiseAnd, BitwiseOr, BitwiseXor, BitwiseNot;
    quantize: RoundThrough, RoundTo;
    linalg: Det, MatrixInverse;
    logic: Equal, Greater, GreaterOrEqual, Less, LessOrEqual, And, Or, Xor, Not, Where, IsNaN, IsInf;
    layout: Identity, Cast, CastLike, Reshape, Flatten, Transpose, Squeeze, Unsqueeze, Expand, Shape, Size, Dropout,
        ConstantOfShape;
    reduce: ReduceSum, ReduceMean, ReduceMax, ReduceMin, ReduceProd, ReduceL1, ReduceL2, ReduceSumSquare, ReduceLogSum,
        ReduceLogSumExp;
    matmul: MatMul, Gemm;
    einsum: Einsum;
    softmax: Softmax, LogSoftmax, Hardmax;
    slice: Slice, SliceTranspose, Split, Concat;
    pad: Pad, PadTranspose, Tile;
    gather: Gather, GatherTranspose;
    convolution: Conv, ConvTranspose, ConvWeightGradient;
    pool: MaxPool, MaxPoolTranspose, MaxPoolGather, AveragePool, AveragePoolTranspose, LpPool, GlobalAveragePool,
        GlobalMaxPool, GlobalLpPool;
    norm: BatchNormalization, InstanceNormalization, LayerNormalization, GroupNormalization, LRN, ChannelWindowSum,
        LpNormalization, MeanVarianceNormalization;
    resize: Resize, Upsample, ResizeTranspose;
    scatter: GatherElements, ScatterElements, GatherND, GatherNDTranspose, ScatterND;
    rearrange: DepthToSpace, SpaceToDepth, Trilu, ReverseSequence;
    select: ArgMax, ArgMin, TopK, OneHot, Range, CumSum, EyeLike;
}

impl OpDef for Op {
    fn name(&self) -> &str {
        self.def().name()
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        self.def().infer(x)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        self.def().run(x)
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        self.def().vjp(back)
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        self.def().write(node)
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        self.def().lower(node)
    }

    fn moved_inputs(&self, count: usize) -> Range<usize> {
        self.def().moved_inputs(count)
    }

    fn stands_for<'b>(&self, builder: &'b Builder, x: &[Option<Var<'b>>]) -> Option<Vec<Var<'b>>> {
        self.def().stands_for(builder, x)
    }

    fn in_float64(&self) -> Option<Op> {
        self.def().in_float64()
    }
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.def(), f)
    }
}

/// An op that a user brings.
#[derive(Clone, Debug)]
pub struct Custom(pub Arc<dyn OpDef>);

impl PartialEq for Custom {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Custom {}

impl Hash for Custom {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.0).cast::<()>().hash(state);
    }
}

/// A floating point attribute, compared by its bits so that equal ops can be shared.
#[derive(Clone, Copy)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, other: &Self) -> bool {
        self.0.to_bits() == other.0.to_bits()
    }
}

impl Eq for Real {}

impl Hash for Real {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

impl fmt::Debug for Real {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// An axis counted from the front.
///
/// # Errors
/// If `axis` is not in `-rank..rank`.
pub(crate) fn resolve_axis(axis: i64, rank: usize) -> Result<usize> {
    let resolved = if axis < 0 { axis + rank as i64 } else { axis };
    if resolved < 0 || resolved >= rank as i64 {
        return Err(Error::shape(format!("axis {axis} is out of range for a tensor of rank {rank}")));
    }
    Ok(resolved as usize)
}
