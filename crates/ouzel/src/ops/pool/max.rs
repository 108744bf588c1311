//! The maximum under a window, and what carries its gradient back to the elements that attained it.

#[cfg(test)]
use super::windows;
use super::{Pooling, known_lengths, long_count, short_count, visit_window, with_lengths};
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, Op, OpDef, Real};
use crate::ops::convolution::elements;
use crate::ops::gather::Gather;
use crate::ops::layout::{ConstantOfShape, Reshape};
use crate::ops::reduce::ReduceProd;
use crate::ops::scatter::{ScatterElements, ScatterReduction};
use crate::ops::window::{Axis, Padding, output_shapes};
use crate::tensor::{DType, Element, Float, Tensor, each_float};
use rayon::prelude::*;

/// `y[o]` is the largest `x` under the window at `o`; the second output is its place. ONNX 1, 8, 10, 11, 12, 22.
///
/// The place counts all elements of `x` in row-major order; of equal elements it is the first. Padding is never the
/// maximum; a window that touches nothing else gives -∞ (for integers the smallest one) and the place -1. NaN wins over
/// numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MaxPool {
    /// The window.
    pub pooling: Pooling,
    /// Places count the elements of each plane in column-major order: ONNX `storage_order`.
    pub column_major: bool,
}

impl MaxPool {
    fn run_on<T: Element + PartialOrd>(
        &self,
        x: &crate::tensor::Array<T>,
        shape: &[usize],
        least: T,
    ) -> Result<Vec<Tensor>> {
        let axes = self.pooling.axes(x.shape(), shape)?;
        let (short, long) = (short_count(&axes), long_count(&axes));
        let x = elements(x);
        let x = x.slice();
        let count: usize = shape.iter().product();
        let mut values = vec![least; count];
        let mut places = vec![-1i64; count];
        let planes = values.par_chunks_mut(short).zip(places.par_chunks_mut(short)).enumerate();
        planes.for_each(|(plane, (values, places))| {
            let x = &x[plane * long..(plane + 1) * long];
            for (o, (value, best)) in values.iter_mut().zip(places).enumerate() {
                visit_window(&axes, o, |place| {
                    let new = x[place];
                    if *best < 0 || new > *value || (is_nan(&new) && !is_nan(value)) {
                        *value = new;
                        *best = (plane * long + place) as i64;
                    }
                });
                if self.column_major && *best >= 0 {
                    *best = (plane * long + column_major(&axes, *best as usize - plane * long)) as i64;
                }
            }
        });
        Ok(vec![Tensor::from_shape_vec(shape, values)?, Tensor::from_shape_vec(shape, places)?])
    }
}

/// The place in column-major order of one in row-major order.
fn column_major(axes: &[Axis; 3], place: usize) -> usize {
    let [a, b, c] = axes.map(|axis| axis.long);
    (place % c * b + place / c % b) * a + place / (b * c)
}

/// Only NaN is not comparable with itself.
fn is_nan<T: PartialOrd>(value: &T) -> bool {
    value.partial_cmp(value).is_none()
}

impl OpDef for MaxPool {
    fn name(&self) -> &str {
        "MaxPool"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        if x.dtype == DType::Bool {
            bail!(shape, "expected numbers, found {x}");
        }
        let shape = self.pooling.infer(x)?;
        Ok(vec![Fact::new(x.dtype, shape.clone()), Fact::new(DType::I64, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        match x.get(0)? {
            Tensor::F32(x) => self.run_on(x, &shape, f32::NEG_INFINITY),
            Tensor::F64(x) => self.run_on(x, &shape, f64::NEG_INFINITY),
            Tensor::I64(x) => self.run_on(x, &shape, i64::MIN),
            Tensor::I32(x) => self.run_on(x, &shape, i32::MIN),
            Tensor::I16(x) => self.run_on(x, &shape, i16::MIN),
            Tensor::I8(x) => self.run_on(x, &shape, i8::MIN),
            Tensor::U64(x) => self.run_on(x, &shape, u64::MIN),
            Tensor::U32(x) => self.run_on(x, &shape, u32::MIN),
            Tensor::U16(x) => self.run_on(x, &shape, u16::MIN),
            Tensor::U8(x) => self.run_on(x, &shape, u8::MIN),
            Tensor::Bool(_) => bail!(shape, "expected numbers, found bool"),
        }
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let op = MaxPoolTranspose { lengths: known_lengths(back.x(0))? };
        let places = match self.column_major {
            false => back.y(1),
            true => {
                let row_major = Self { pooling: self.pooling.clone(), column_major: false };
                match back.builder().apply_all(row_major, &[Some(back.x(0))])[..] {
                    [_, places] => places,
                    _ => back.y(1),
                }
            }
        };
        Ok(back.only_first(back.builder().apply(op, &[back.g(0), places])))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        self.pooling.write(node);
        node.flag("storage_order", self.column_major, false);
        Ok(())
    }
}

impl Listed for MaxPool {
    const ONNX: &'static [&'static str] = &["MaxPool"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        // Without the second output it makes no difference.
        let column_major = node.flag_or("storage_order", false)? && node.output_count() > 1;
        Ok(Self { pooling: Pooling::read(node)?, column_major })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = |shape: &[usize]| floats(-1.0, 1.0).distinct().input(shape);
        let pool = |(index, (shape, pooling)): (usize, (&[usize], Pooling))| {
            Sample::new(MaxPool { pooling, column_major: index == 1 }, [x(shape)])
        };
        windows().enumerate().map(pool).collect()
    }
}

/// True if the indices come from a max pooling none of whose windows lies in the padding alone.
fn always_names_one(indices: Var<'_>) -> bool {
    let graph = indices.builder().graph();
    let producer = indices.id().ok().and_then(|id| graph.producer(id));
    match producer.map(|node| &graph.node(node).op) {
        Some(Op::MaxPool(MaxPool { pooling: Pooling { kernel, window, ceil_mode: false }, .. })) => {
            let narrow = match &window.padding {
                Padding::Explicit(pads) => {
                    pads.iter().enumerate().all(|(place, &pad)| pad < kernel[place % kernel.len()])
                }
                _ => true,
            };
            narrow && window.dilations.iter().all(|&dilation| dilation == 1)
        }
        _ => false,
    }
}

/// Adds each `g` to the element that its index names, which is how the gradient of [`MaxPool`] spreads.
///
/// Private. Inputs: `g` and indices of one shape `[N, C, …]`; the output is `[N, C, …lengths]` and zero elsewhere. Indices
/// count all elements of the output in row-major order; negative ones name none.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MaxPoolTranspose {
    /// The lengths of the spatial axes of the output.
    pub lengths: Vec<usize>,
}

impl OpDef for MaxPoolTranspose {
    fn name(&self) -> &str {
        "MaxPoolTranspose"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (g, indices) = (x.get(0)?, x.get(1)?);
        check_indices(indices, g.rank())?;
        Ok(vec![Fact::new(g.dtype, with_lengths(g, &self.lengths)?)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        let indices = elements(x.get(1)?.array::<i64>()?);
        fn scatter<T: Float>(g: &[T], indices: &[i64], shape: &[usize]) -> Result<Tensor> {
            let mut y = vec![T::zero(); shape.iter().product()];
            for (&g, &index) in g.iter().zip(indices) {
                if let Some(index) = place(index, y.len())? {
                    y[index] += g;
                }
            }
            Tensor::from_shape_vec(shape, y)
        }
        Ok(vec![each_float!(x.get(0)?, g => scatter(elements(g).slice(), indices.slice(), &shape)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(back.builder().apply(MaxPoolGather, &[back.g(0), back.x(1)])))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        // Indices count all elements, so one scatter serves any batch.
        let (g, indices, builder) = (node.x(0), node.x(1), node.builder());
        let lengths = builder.integers(self.lengths.iter().map(|&length| length as i64));
        let shape = builder.concat(&[g.dimensions().slice(0, 0, 2), lengths], 0);
        let count = builder.apply(ReduceProd::over([0], true), &[shape]);
        let spare = !always_names_one(indices);
        let size = if spare { count + builder.integers([1]) } else { count };
        let zeros = builder.apply(ConstantOfShape { value: Real(0.0), dtype: g.dtype() }, &[size]);
        let op = ScatterElements { axis: 0, reduction: ScatterReduction::Add };
        let mut summed = builder.apply(op, &[zeros, indices.reshape([-1]), g.reshape([-1])]);
        if spare {
            // -1 names the last element, which is one too many.
            summed = summed.slice(0, 0, -1);
        }
        node.one(builder.apply(Reshape { allow_zero: true }, &[summed, shape]))
    }
}

impl Listed for MaxPoolTranspose {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(unsupported, "MaxPoolTranspose is not an ONNX op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let indices = Tensor::from_shape_vec(&[2, 1, 2, 2], vec![0i64, 0, 8, 4, 9, 12, -1, 17]).unwrap();
        let g = floats(-1.0, 1.0).input(&[2, 1, 2, 2]);
        vec![Sample::new(MaxPoolTranspose { lengths: vec![3, 3] }, [g, indices.into()])]
    }
}

/// The elements of `x` that indices name: the transpose of [`MaxPoolTranspose`].
///
/// Private. Inputs: `x` `[N, C, …]` and indices `[N, C, …]` that count all elements of `x` in row-major order; negative ones
/// give 0. The output has the shape of the indices.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct MaxPoolGather;

impl OpDef for MaxPoolGather {
    fn name(&self) -> &str {
        "MaxPoolGather"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (x, indices) = (x.get(0)?, x.get(1)?);
        check_indices(indices, x.rank())?;
        Ok(vec![Fact::new(x.dtype, indices.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let indices = x.get(1)?.array::<i64>()?;
        Ok(vec![each_float!(x.get(0)?, x => {
            let x = elements(x);
            let mut y = Vec::with_capacity(indices.len());
            for &index in elements(indices).slice() {
                let place = place(index, x.slice().len())?;
                y.push(place.map_or(num_traits::Zero::zero(), |place| x.slice()[place]));
            }
            Tensor::from_shape_vec(indices.shape(), y)?
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let op = MaxPoolTranspose { lengths: known_lengths(back.x(0))? };
        Ok(back.only_first(back.builder().apply(op, &[back.g(0), back.x(1)])))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        let (x, indices) = (node.x(0), node.x(1));
        let picked = node.builder().apply(Gather { axis: 0 }, &[x.reshape([-1]), indices]);
        node.one(picked.select_where(indices.greater_or_equal(0.0)))
    }
}

impl Listed for MaxPoolGather {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(unsupported, "MaxPoolGather is not an ONNX op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let indices = Tensor::from_shape_vec(&[2, 1, 2, 2], vec![0i64, 0, 8, 4, 9, 12, -1, 17]).unwrap();
        vec![Sample::new(MaxPoolGather, [floats(-1.0, 1.0).input(&[2, 1, 3, 3]), indices.into()])]
    }
}

fn check_indices(indices: &Fact, rank: usize) -> Result<()> {
    if indices.dtype != DType::I64 || indices.rank() != rank || rank < 3 {
        bail!(
            shape,
            "expected int64 indices of as many axes as the first input (3 at least), found {indices}"
        );
    }
    Ok(())
}

fn place(index: i64, count: usize) -> Result<Option<usize>> {
    match usize::try_from(index) {
        Ok(place) if place < count => Ok(Some(place)),
        Ok(place) => bail!(shape, "index {place} is out of range for {count} elements"),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{line, run};
    use super::*;

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn the_first_of_equal_maxima_is_taken() {
        let x = vec![3.0f32, 1.0, 2.0, 5.0, 5.0, 4.0, 1.0, 0.0, 0.0, 0.0, -1.0, 7.0, 7.0, 8.0];
        let x = Tensor::from_shape_vec(&[1, 2, 7], x).unwrap();
        let op = MaxPool { pooling: line(3, 2, [1, 0]), column_major: false };
        let y = run(&op, x);
        let values = vec![3.0f32, 5.0, 5.0, 4.0, 0.0, 0.0, 7.0, 8.0];
        assert_eq!(y[0], Tensor::from_shape_vec(&[1, 2, 4], values).unwrap());
        assert_eq!(y[1].to_integers().unwrap(), [0, 3, 3, 5, 7, 8, 11, 13]);
    }

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn places_in_column_major_order() {
        let x = Tensor::from_shape_vec(&[1, 1, 2, 3], vec![3u8, 1, 2, 5, 5, 4]).unwrap();
        let y = run(&MaxPool { pooling: Pooling::plain([1, 2]), column_major: true }, x);
        assert_eq!(y[0], Tensor::from_shape_vec(&[1, 1, 2, 2], vec![3u8, 2, 5, 5]).unwrap());
        assert_eq!(y[1].to_integers().unwrap(), [0, 4, 1, 3]);
    }

    #[test]
    fn nan_is_the_maximum_and_padding_never_is() {
        let x = Tensor::from_shape_vec(&[1, 1, 4], vec![f32::NAN, -2.0, f32::NEG_INFINITY, 3.0]).unwrap();
        let op = MaxPool { pooling: line(2, 1, [2, 0]), column_major: false };
        let y = run(&op, x);
        let values = y[0].to_f64().into_raw_vec_and_offset().0;
        assert_eq!(values[0], f64::NEG_INFINITY);
        assert!(values[1].is_nan() && values[2].is_nan());
        assert_eq!(values[3..], [-2.0, 3.0]);
        assert_eq!(y[1].to_integers().unwrap(), [-1, 0, 0, 1, 3]);
    }

    #[test]
    fn an_index_out_of_range_is_an_error() {
        let x = Tensor::from_shape_vec(&[1, 1, 1], vec![1.0]).unwrap();
        let index = Tensor::from_shape_vec(&[1, 1, 1], vec![4i64]).unwrap();
        let error =
            MaxPoolTranspose { lengths: vec![3] }.run(&Inputs(&[Some(&x), Some(&index)])).unwrap_err();
        assert!(error.is_shape(), "{error}");
    }
}
