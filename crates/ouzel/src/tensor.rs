//! Tensors: n-dimensional arrays of one of the element types that ONNX networks use.

use crate::error::{Error, Result};
use ndarray::{ArcArray, ArrayD, Axis, IxDyn};
use std::fmt;
use std::ops::Range;

/// The element type of a [`Tensor`].
///
/// Narrower types are read as wider ones that hold all their numbers: floating point types of 16 and 8 bits as
/// [`DType::F32`], integers of 4 bits as [`DType::I8`] and [`DType::U8`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// 32-bit floating point.
    F32,
    /// 64-bit floating point.
    F64,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 64-bit unsigned integer.
    U64,
    /// 32-bit unsigned integer.
    U32,
    /// 16-bit unsigned integer.
    U16,
    /// 8-bit unsigned integer.
    U8,
    /// Truth value.
    Bool,
}

impl DType {
    /// True for the types that gradients exist for.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64)
    }

    /// True for integers, truth values excluded.
    pub fn is_integer(self) -> bool {
        self.is_signed() || self.is_unsigned()
    }

    /// True for integers that can be negative.
    pub fn is_signed(self) -> bool {
        matches!(self, Self::I64 | Self::I32 | Self::I16 | Self::I8)
    }

    /// True for integers that cannot be negative, truth values excluded.
    pub fn is_unsigned(self) -> bool {
        matches!(self, Self::U64 | Self::U32 | Self::U16 | Self::U8)
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "float32",
            Self::F64 => "float64",
            Self::I64 => "int64",
            Self::I32 => "int32",
            Self::I16 => "int16",
            Self::I8 => "int8",
            Self::U64 => "uint64",
            Self::U32 => "uint32",
            Self::U16 => "uint16",
            Self::U8 => "uint8",
            Self::Bool => "bool",
        })
    }
}

/// An array that is cheap to clone: clones share the elements until one of them writes.
pub type Array<T> = ArcArray<T, IxDyn>;

/// An n-dimensional array of one element type.
///
/// ```
/// use ouzel::Tensor;
/// let x = Tensor::from(ndarray::arr2(&[[1.0f32, 2.0], [3.0, 4.0]]).into_dyn());
/// assert_eq!(x.shape(), [2, 2]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// 32-bit floating point.
    F32(Array<f32>),
    /// 64-bit floating point.
    F64(Array<f64>),
    /// 64-bit signed integer.
    I64(Array<i64>),
    /// 32-bit signed integer.
    I32(Array<i32>),
    /// 16-bit signed integer.
    I16(Array<i16>),
    /// 8-bit signed integer.
    I8(Array<i8>),
    /// 64-bit unsigned integer.
    U64(Array<u64>),
    /// 32-bit unsigned integer.
    U32(Array<u32>),
    /// 16-bit unsigned integer.
    U16(Array<u16>),
    /// 8-bit unsigned integer.
    U8(Array<u8>),
    /// Truth value.
    Bool(Array<bool>),
}

/// Runs `$body` with `$x` bound to the array inside `$tensor`, whatever its element type.
macro_rules! each_dtype {
    ($tensor:expr, $x:ident => $body:expr) => {
        match $tensor {
            $crate::tensor::Tensor::F32($x) => $body,
            $crate::tensor::Tensor::F64($x) => $body,
            $crate::tensor::Tensor::I64($x) => $body,
            $crate::tensor::Tensor::I32($x) => $body,
            $crate::tensor::Tensor::I16($x) => $body,
            $crate::tensor::Tensor::I8($x) => $body,
            $crate::tensor::Tensor::U64($x) => $body,
            $crate::tensor::Tensor::U32($x) => $body,
            $crate::tensor::Tensor::U16($x) => $body,
            $crate::tensor::Tensor::U8($x) => $body,
            $crate::tensor::Tensor::Bool($x) => $body,
        }
    };
}
pub(crate) use each_dtype;

/// A Rust type that can be the element of a [`Tensor`].
pub trait Element: Copy + Send + Sync + fmt::Debug + PartialEq + 'static {
    /// The matching element type.
    const DTYPE: DType;
    /// The array inside, if `tensor` has this element type.
    fn view(tensor: &Tensor) -> Option<&Array<Self>>;
    /// Wraps an array.
    fn wrap(array: Array<Self>) -> Tensor;
}

macro_rules! elements {
    ($($type:ty => $variant:ident),*) => { $(
        impl Element for $type {
            const DTYPE: DType = DType::$variant;
            fn view(tensor: &Tensor) -> Option<&Array<Self>> {
                match tensor { Tensor::$variant(x) => Some(x), _ => None }
            }
            fn wrap(array: Array<Self>) -> Tensor {
                Tensor::$variant(array)
            }
        }
        impl From<ArrayD<$type>> for Tensor {
            fn from(array: ArrayD<$type>) -> Self {
                Self::$variant(array.into_shared())
            }
        }
        impl From<Array<$type>> for Tensor {
            fn from(array: Array<$type>) -> Self {
                Self::$variant(array)
            }
        }
    )* };
}
elements!(f32 => F32, f64 => F64, i64 => I64, i32 => I32, i16 => I16, i8 => I8, u64 => U64, u32 => U32, u16 => U16, u8 => U8, bool => Bool);

impl Tensor {
    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Self::F32(_) => DType::F32,
            Self::F64(_) => DType::F64,
            Self::I64(_) => DType::I64,
            Self::I32(_) => DType::I32,
            Self::I16(_) => DType::I16,
            Self::I8(_) => DType::I8,
            Self::U64(_) => DType::U64,
            Self::U32(_) => DType::U32,
            Self::U16(_) => DType::U16,
            Self::U8(_) => DType::U8,
            Self::Bool(_) => DType::Bool,
        }
    }

    /// The length of each axis.
    pub fn shape(&self) -> &[usize] {
        each_dtype!(self, x => x.shape())
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        each_dtype!(self, x => x.len())
    }

    /// True if there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The array inside.
    ///
    /// # Errors
    /// If the elements are of another type.
    pub fn array<T: Element>(&self) -> Result<&Array<T>> {
        T::view(self)
            .ok_or_else(|| Error::shape(format!("expected a tensor of {}, found {}", T::DTYPE, self.dtype())))
    }

    /// A tensor of rank 0.
    pub fn scalar<T: Element>(value: T) -> Self {
        T::wrap(ArcArray::from_elem(IxDyn(&[]), value))
    }

    /// A tensor of rank 1.
    pub fn vector<T: Element>(values: impl IntoIterator<Item = T>) -> Self {
        T::wrap(ArcArray::from_vec(values.into_iter().collect()).into_dyn())
    }

    /// A tensor of the given shape from elements in row-major order.
    ///
    /// # Errors
    /// If the number of elements does not fit the shape.
    pub fn from_shape_vec<T: Element>(shape: &[usize], values: Vec<T>) -> Result<Self> {
        let found = values.len();
        ArcArray::from_shape_vec(IxDyn(shape), values)
            .map(T::wrap)
            .map_err(|_| Error::shape(format!("{found} elements do not fill the shape {shape:?}")))
    }

    /// The entries at these places of the first axis.
    pub(crate) fn outer(&self, places: Range<usize>) -> Self {
        fn cut<T: Element>(x: &Array<T>, places: Range<usize>) -> Tensor {
            let part = x.slice_axis(Axis(0), places.into());
            T::wrap(part.as_standard_layout().into_owned().into_shared())
        }
        each_dtype!(self, x => cut(x, places))
    }

    /// Tensors of one element type, one behind the other along the first axis.
    ///
    /// # Errors
    /// If there are none, or they do not fit; that is a bug.
    pub(crate) fn join(parts: &[Self]) -> Result<Self> {
        fn join<T: Element>(_: &Array<T>, parts: &[Tensor]) -> Result<Tensor> {
            let arrays = parts.iter().map(Tensor::array::<T>).collect::<Result<Vec<_>>>()?;
            let views: Vec<_> = arrays.iter().map(|array| array.view()).collect();
            match ndarray::concatenate(Axis(0), &views) {
                Ok(joined) => Ok(T::wrap(joined.into_shared())),
                Err(error) => Err(Error::internal(format!("parts do not fit together: {error}"))),
            }
        }
        match parts {
            [part] => Ok(part.clone()),
            [first, ..] => each_dtype!(first, x => join(x, parts)),
            [] => Err(Error::internal("there are no parts to join")),
        }
    }

    /// Reads ONNX's own message of a tensor, as its test data is stored, and the name that it carries, which may be
    /// empty.
    ///
    /// # Errors
    /// If the bytes are no such message, or its elements lie in another file.
    pub fn from_message(bytes: &[u8]) -> Result<(String, Self)> {
        crate::onnx::read_tensor(bytes)
    }

    /// The same numbers as another element type, as ONNX `Cast` converts: towards zero to integers
    /// (saturating), non-zero to `true`.
    pub fn cast(&self, to: DType) -> Self {
        if to == self.dtype() {
            return self.clone();
        }
        // Over slices, because there are so many pairs of types: what goes through an array costs several times the code.
        macro_rules! number {
            ($x:expr) => {{
                let array = $x;
                let array = array.as_standard_layout();
                let values = array.as_slice().expect("invariant: the standard layout is a slice");
                let values = values.iter().copied();
                match to {
                    DType::F32 => self.like(values.map(|v| v as f32).collect()),
                    DType::F64 => self.like(values.map(|v| v as f64).collect()),
                    DType::I64 => self.like(values.map(|v| v as i64).collect()),
                    DType::I32 => self.like(values.map(|v| v as i32).collect()),
                    DType::I16 => self.like(values.map(|v| v as i16).collect()),
                    DType::I8 => self.like(values.map(|v| v as i8).collect()),
                    DType::U64 => self.like(values.map(|v| v as u64).collect()),
                    DType::U32 => self.like(values.map(|v| v as u32).collect()),
                    DType::U16 => self.like(values.map(|v| v as u16).collect()),
                    DType::U8 => self.like(values.map(|v| v as u8).collect()),
                    DType::Bool => self.like(values.map(|v| v as f64 != 0.0).collect::<Vec<bool>>()),
                }
            }};
        }
        match self {
            Self::F32(x) => number!(x),
            Self::F64(x) => number!(x),
            Self::I64(x) => number!(x),
            Self::I32(x) => number!(x),
            Self::I16(x) => number!(x),
            Self::I8(x) => number!(x),
            Self::U64(x) => number!(x),
            Self::U32(x) => number!(x),
            Self::U16(x) => number!(x),
            Self::U8(x) => number!(x),
            Self::Bool(x) => number!(x.mapv(u8::from)),
        }
    }

    /// A tensor of the same shape.
    fn like<T: Element>(&self, elements: Vec<T>) -> Self {
        Self::from_shape_vec(self.shape(), elements).expect("invariant: as many elements as before")
    }

    /// The elements as `f64`, whatever their type.
    pub fn to_f64(&self) -> ArrayD<f64> {
        match self.cast(DType::F64) {
            Self::F64(x) => x.into_owned(),
            _ => unreachable!("cast to F64 gives F64"),
        }
    }

    /// The elements as `f32`, whatever their type.
    pub fn to_f32(&self) -> ArrayD<f32> {
        match self.cast(DType::F32) {
            Self::F32(x) => x.into_owned(),
            _ => unreachable!("cast to F32 gives F32"),
        }
    }

    /// The elements of an integer tensor in row-major order.
    ///
    /// # Errors
    /// If the elements are not integers.
    pub fn to_integers(&self) -> Result<Vec<i64>> {
        if !self.dtype().is_integer() {
            return Err(Error::shape(format!("expected integers, found {}", self.dtype())));
        }
        Ok(self.cast(DType::I64).array::<i64>()?.iter().copied().collect())
    }
}

/// The element types that the reference evaluation computes in.
pub trait Float:
    Element
    + num_traits::Float
    + num_traits::FloatConst
    + ndarray::LinalgScalar
    + ndarray::ScalarOperand
    + std::iter::Sum
    + std::ops::AddAssign
{
    /// The nearest value of this type.
    fn of(value: f64) -> Self;
    /// The value as `f64`.
    fn wide(self) -> f64;
    /// The error function.
    fn erf(self) -> Self;
}

impl Float for f32 {
    fn of(value: f64) -> Self {
        value as f32
    }
    fn wide(self) -> f64 {
        self.into()
    }
    fn erf(self) -> Self {
        libm::erff(self)
    }
}

impl Float for f64 {
    fn of(value: f64) -> Self {
        value
    }
    fn wide(self) -> f64 {
        self
    }
    fn erf(self) -> Self {
        libm::erf(self)
    }
}

/// Runs `$body` with `$x` bound to the array inside `$tensor`, whose elements must be floating point.
macro_rules! each_float {
    ($tensor:expr, $x:ident => $body:expr) => {
        match $tensor {
            $crate::tensor::Tensor::F32($x) => $body,
            $crate::tensor::Tensor::F64($x) => $body,
            other => {
                $crate::error::bail!(shape, "expected floating point elements, found {}", other.dtype())
            }
        }
    };
}
pub(crate) use each_float;
