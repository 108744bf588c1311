//! Pooling: the maximum, mean or norm under a sliding window, and over all spatial axes.

use super::convolution::elements;
use super::layout::Size;
use super::window::{Axis, Padding, Window, check_sizes, output_shapes};
use crate::backprop::{Back, Cotangent, Cotangents};
use crate::builder::Var;
use crate::dim::{Dim, Shape, known_shape, product};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter, known_length};
use crate::op::{Inputs, Listed, Op, OpDef, Real};
use crate::ops::convolution::{Conv, ConvTranspose};
use crate::ops::gather::Gather;
use crate::ops::layout::{ConstantOfShape, Expand, Reshape};
use crate::ops::pad::Pad;
use crate::ops::reduce::ReduceProd;
use crate::ops::scatter::{ScatterElements, ScatterReduction};
use crate::tensor::{DType, Element, Float, Tensor, each_float};
use rayon::prelude::*;

/// A window of a given size that slides over the spatial axes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pooling {
    /// The taps of the window on each spatial axis.
    pub kernel: Vec<i64>,
    /// How the window moves.
    pub window: Window,
    /// The last window may reach beyond the padded input, if it starts inside the input or the padding before it.
    pub ceil_mode: bool,
}

impl Pooling {
    /// A window of this size that moves by one.
    pub fn plain(kernel: impl Into<Vec<i64>>) -> Self {
        let kernel = kernel.into();
        Self { window: Window::plain(kernel.len()), kernel, ceil_mode: false }
    }

    fn read(node: &mut NodeReader) -> Result<Self> {
        let window = Window::read(node)?;
        let Some(kernel) = node.ints("kernel_shape")? else {
            bail!(model, "the attribute 'kernel_shape' is missing");
        };
        check_sizes("kernel_shape", &kernel, window.strides.len(), 1)?;
        Ok(Self { kernel, window, ceil_mode: node.flag_or("ceil_mode", false)? })
    }

    fn write(&self, node: &mut NodeWriter) {
        self.window.write(node);
        node.ints("kernel_shape", &self.kernel);
        node.flag("ceil_mode", self.ceil_mode, false);
    }

    /// The sum of `x` under the window at each place, as a convolution of each plane by ones.
    fn summed<'b>(&self, x: Var<'b>, y: &Fact) -> Result<Var<'b>> {
        let (lengths, places) = (known_lengths(x)?, &y.shape[2..]);
        let rank = lengths.len();
        let mut pads = self.window.pads(&x.shape()[2..], &self.kernel)?;
        for axis in 0..rank {
            // As far as the last window reaches.
            let place = known_length(&places[axis], axis + 2)? as i64 - 1;
            let end = place * self.window.strides[axis] + self.window.span(axis, self.kernel[axis]);
            pads[rank + axis] = end - pads[axis] - lengths[axis] as i64;
        }
        let ones = ones(&self.kernel, x.dtype());
        let conv = Conv { window: self.window.clone().with_pads(pads), group: 1 };
        let planes = as_planes(x)?;
        let sums = x.builder().apply(conv, &[planes, x.builder().constant(ones)]);
        from_planes(sums, x)
    }

    /// What [`Self::summed`] undoes, for an output whose spatial axes have these lengths.
    fn spread<'b>(&self, g: Var<'b>, lengths: &[usize]) -> Result<Var<'b>> {
        let rank = lengths.len();
        let dims: Vec<Dim> = lengths.iter().map(|&length| length.into()).collect();
        let pads = self.window.pads(&dims, &self.kernel)?;
        let short = known_lengths(g)?;
        let apart =
            |axis: usize| self.window.dilations[axis] == 1 && self.window.strides[axis] == self.kernel[axis];
        if (0..rank).all(|axis| apart(axis) && pads[axis] == 0) {
            // Windows that touch each other without overlapping: each element is repeated.
            let split: Vec<i64> = short.iter().flat_map(|&length| [length as i64, 1]).collect();
            let wide: Vec<i64> = (0..rank).flat_map(|axis| [short[axis] as i64, self.kernel[axis]]).collect();
            let long: Vec<i64> = (0..rank).map(|axis| short[axis] as i64 * self.kernel[axis]).collect();
            let builder = g.builder();
            let with_first = |rest: Vec<i64>| [-1].into_iter().chain(rest);
            let target = builder.integers([1].into_iter().chain(wide));
            let repeated = builder.apply(Expand, &[g.reshape(with_first(split)), target]);
            let planes = repeated.reshape([-1, 1].into_iter().chain(long.iter().copied()));
            let whole = from_planes(planes, g)?;
            let cut: Vec<i64> = (0..rank).map(|axis| lengths[axis] as i64 - long[axis]).collect();
            return Ok(Pad::zeros(
                whole,
                [0; 2].into_iter().chain(vec![0; rank]).chain([0; 2]).chain(cut).collect(),
            ));
        }
        let mut around = vec![0; 2 * rank];
        let mut ends = vec![0; 2 * (rank + 2)];
        for axis in 0..rank {
            around[axis] = pads[axis].max(0);
            ends[axis + 2] = (-pads[axis]).max(0);
            let reach = (short[axis] as i64 - 1) * self.window.strides[axis]
                + self.window.span(axis, self.kernel[axis]);
            let missing = lengths[axis] as i64 - (reach - pads[axis]);
            around[rank + axis] = (-missing).max(0);
            ends[rank + 4 + axis] = missing.max(0);
        }
        let op = ConvTranspose {
            window: self.window.clone().with_pads(around),
            group: 1,
            output_padding: vec![0; rank],
            output_shape: None,
        };
        let planes = as_planes(g)?;
        let spread = g.builder().apply(op, &[planes, g.builder().constant(ones(&self.kernel, g.dtype()))]);
        from_planes(Pad::zeros(spread, ends), g)
    }

    /// The shape of the output.
    fn infer(&self, x: &Fact) -> Result<Shape> {
        let rank = x.rank().saturating_sub(2);
        self.window.check(rank)?;
        check_sizes("kernel_shape", &self.kernel, rank, 1)?;
        let outputs = self.window.output_lengths(&x.shape[2..], &self.kernel, self.ceil_mode)?;
        Ok([x.shape[..2].to_vec(), outputs].concat())
    }

    /// The geometry on an input and an output whose shapes are known.
    fn axes(&self, x: &[usize], y: &[usize]) -> Result<[Axis; 3]> {
        let lengths: Vec<Dim> = x[2..].iter().map(|&length| length.into()).collect();
        let kernel: Vec<usize> = self.kernel.iter().map(|&length| length as usize).collect();
        let pads = self.window.pads(&lengths, &self.kernel)?;
        Ok(Axis::triple(&self.window, &pads, &kernel, &x[2..], &y[2..]))
    }
}

/// Calls `visit(place)` with each place of a plane that the window at `short` touches, in row-major order.
fn visit_window(axes: &[Axis; 3], short: usize, mut visit: impl FnMut(usize)) {
    let [a, b, c] = axes;
    let (short_a, short_b, short_c) =
        (short / (b.short * c.short), short / c.short % b.short, short % c.short);
    let taps = c.taps(short_c);
    let Some(first) = c.position(short_c, taps.start) else { return };
    for place_a in a.taps(short_a).filter_map(|tap| a.position(short_a, tap)) {
        for place_b in b.taps(short_b).filter_map(|tap| b.position(short_b, tap)) {
            let line = (place_a * b.long + place_b) * c.long;
            for step in 0..taps.len() {
                visit(line + first + step * c.dilation);
            }
        }
    }
}

fn short_count(axes: &[Axis; 3]) -> usize {
    axes.iter().map(|axis| axis.short).product()
}

fn long_count(axes: &[Axis; 3]) -> usize {
    axes.iter().map(|axis| axis.long).product()
}

/// A kernel of ones for planes.
fn ones(kernel: &[i64], dtype: DType) -> Tensor {
    let shape: Vec<usize> = [1, 1].into_iter().chain(kernel.iter().map(|&length| length as usize)).collect();
    Tensor::from(ndarray::ArrayD::from_elem(shape, 1.0f64)).cast(dtype)
}

/// `[N, C, …]` as `[N·C, 1, …]`.
fn as_planes(x: Var<'_>) -> Result<Var<'_>> {
    Ok(x.reshape([-1, 1].into_iter().chain(known_lengths(x)?.iter().map(|&length| length as i64))))
}

/// `[N·C, 1, …]` as `[N, C, …]`, with batch and channels of `like`.
fn from_planes<'b>(planes: Var<'b>, like: Var<'b>) -> Result<Var<'b>> {
    let lengths = known_lengths(planes)?.into_iter().map(|length| length as i64);
    Ok(match like.shape()[1].known() {
        Some(channels) => planes.reshape([-1, channels].into_iter().chain(lengths)),
        None => {
            let builder = like.builder();
            let target = builder.concat(&[like.dimensions().slice(0, 0, 2), builder.integers(lengths)], 0);
            builder.apply(Reshape { allow_zero: true }, &[planes, target])
        }
    })
}

/// The lengths of the spatial axes, which the transpose of a pooling needs.
fn known_lengths(x: Var) -> Result<Vec<usize>> {
    match known_shape(&x.shape()[2..]) {
        Some(lengths) => Ok(lengths),
        None => bail!(
            shape,
            "the gradient of pooling needs the spatial size of its input, which is {}; give it with --size",
            x.fact()
        ),
    }
}

/// The shape of `g` with other lengths of the spatial axes.
fn with_lengths(g: &Fact, lengths: &[usize]) -> Result<Shape> {
    if g.rank() != lengths.len() + 2 {
        bail!(shape, "expected a tensor of {} axes, found {g}", lengths.len() + 2);
    }
    Ok(g.shape[..2].iter().cloned().chain(lengths.iter().map(|&length| length.into())).collect())
}

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

/// Windows of all kinds, with the shape of an input for each.
#[cfg(test)]
fn windows() -> impl Iterator<Item = (&'static [usize], Pooling)> {
    let over = |kernel: &[i64], window: Window, ceil_mode: bool| Pooling {
        kernel: kernel.to_vec(),
        window,
        ceil_mode,
    };
    let plane = || Window::plain(2);
    let same = |padding: Padding| plane().with_strides([2, 2]).with_padding(padding);
    let pools: [(&[usize], Pooling); 7] = [
        (&[2, 3, 4, 6], over(&[2, 2], plane().with_strides([2, 2]), false)),
        (&[2, 2, 5, 6], over(&[3, 3], plane().with_strides([2, 2]).with_pads([1, 0, 1, 2]), false)),
        (&[2, 2, 6, 5], over(&[3, 2], plane().with_strides([2, 2]).with_pads([0, 1, 0, 0]), true)),
        (&[2, 2, 6, 6], over(&[2, 3], plane().with_dilations([2, 2]), false)),
        (&[2, 2, 5, 5], over(&[3, 3], same(Padding::SameLower), false)),
        (&[2, 2, 9], over(&[3], Window::plain(1).with_strides([3]), false)),
        (&[2, 2, 3, 4, 3], over(&[2, 3, 1], Window::plain(3), false)),
    ];
    pools.into_iter()
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

/// What the sum under a window is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Divisor {
    /// The number of elements under the window, padding excluded.
    Inside,
    /// The number of elements under the window, padding included; not what lies beyond the padding.
    Padded,
    /// Nothing: the result is the sum.
    One,
}

/// `y[o]` is the mean of `x` under the window at `o`. ONNX 1, 7, 10, 11, 19, 22.
///
/// A window that touches nothing gives 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AveragePool {
    /// The window.
    pub pooling: Pooling,
    /// What the sum is divided by: ONNX `count_include_pad`.
    pub divisor: Divisor,
}

impl AveragePool {
    /// `1 / divisor` for the window at each place.
    fn weights<T: Float>(&self, axes: &[Axis; 3]) -> Vec<T> {
        let [a, b, c] = axes;
        let count = |axis: &Axis, short: usize| match self.divisor {
            Divisor::Inside => axis.taps(short).len(),
            Divisor::Padded => axis.padded_taps(short),
            Divisor::One => 1,
        };
        let mut weights = Vec::with_capacity(short_count(axes));
        for short_a in 0..a.short {
            for short_b in 0..b.short {
                for short_c in 0..c.short {
                    let count = count(a, short_a) * count(b, short_b) * count(c, short_c);
                    weights.push(T::of(1.0 / count.max(1) as f64));
                }
            }
        }
        weights
    }

    fn average<T: Float>(&self, x: &[T], x_shape: &[usize], shape: &[usize]) -> Result<Tensor> {
        let axes = self.pooling.axes(x_shape, shape)?;
        let (short, long) = (short_count(&axes), long_count(&axes));
        let weights: Vec<T> = self.weights(&axes);
        let mut y = vec![T::zero(); shape.iter().product()];
        y.par_chunks_mut(short).enumerate().for_each(|(plane, y)| {
            let x = &x[plane * long..(plane + 1) * long];
            for (o, (y, weight)) in y.iter_mut().zip(&weights).enumerate() {
                let mut sum = T::zero();
                visit_window(&axes, o, |place| sum += x[place]);
                *y = sum * *weight;
            }
        });
        Tensor::from_shape_vec(shape, y)
    }

    fn spread<T: Float>(&self, g: &[T], g_shape: &[usize], shape: &[usize]) -> Result<Tensor> {
        let axes = self.pooling.axes(shape, g_shape)?;
        let (short, long) = (short_count(&axes), long_count(&axes));
        let weights: Vec<T> = self.weights(&axes);
        let mut y = vec![T::zero(); shape.iter().product()];
        y.par_chunks_mut(long.max(1)).enumerate().for_each(|(plane, y)| {
            let g = &g[plane * short..(plane + 1) * short];
            for (o, (g, weight)) in g.iter().zip(&weights).enumerate() {
                let share = *g * *weight;
                visit_window(&axes, o, |place| y[place] += share);
            }
        });
        Tensor::from_shape_vec(shape, y)
    }

    /// The transpose, for an input with the spatial size of `like`.
    fn transposed<'b>(&self, g: Var<'b>, like: Var<'b>) -> Result<Var<'b>> {
        let op = AveragePoolTranspose { average: self.clone(), lengths: known_lengths(like)? };
        Ok(g.builder().apply(op, &[g]))
    }
}

impl OpDef for AveragePool {
    fn name(&self) -> &str {
        "AveragePool"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        check_float(x)?;
        Ok(vec![Fact::new(x.dtype, self.pooling.infer(x)?)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        Ok(vec![each_float!(x.get(0)?, x => self.average(elements(x).slice(), x.shape(), &shape)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(self.transposed(back.g(0), back.x(0))?))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        self.pooling.write(node);
        node.flag("count_include_pad", self.divisor == Divisor::Padded, false);
        if self.pooling.window.dilations.iter().any(|&dilation| dilation != 1) {
            node.since(19, "a dilated AveragePool")?;
        }
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        match self.divisor {
            Divisor::One => node.one(self.pooling.summed(node.x(0), node.y(0))?),
            _ => Ok(None),
        }
    }
}

impl Listed for AveragePool {
    const ONNX: &'static [&'static str] = &["AveragePool"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        let padded = node.flag_or("count_include_pad", false)?;
        let divisor = if padded { Divisor::Padded } else { Divisor::Inside };
        Ok(Self { pooling: Pooling::read(node)?, divisor })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let divisors = [Divisor::Inside, Divisor::Padded, Divisor::One];
        let sample = |(shape, pooling): (&[usize], Pooling), divisor: Divisor| {
            Sample::new(AveragePool { pooling, divisor }, [floats(-1.0, 1.0).input(shape)])
        };
        windows().flat_map(|window| divisors.map(|divisor| sample(window.clone(), divisor))).collect()
    }
}

/// Spreads each `g` over the window at its place, divided as in the mean: the transpose of [`AveragePool`].
///
/// Private. Input: `g` `[N, C, …]`; output `[N, C, …lengths]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AveragePoolTranspose {
    /// The pooling that this transposes.
    pub average: AveragePool,
    /// The lengths of the spatial axes of the output.
    pub lengths: Vec<usize>,
}

impl OpDef for AveragePoolTranspose {
    fn name(&self) -> &str {
        "AveragePoolTranspose"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let g = x.get(0)?;
        check_float(g)?;
        let y = Fact::new(g.dtype, with_lengths(g, &self.lengths)?);
        let pooled = self.average.pooling.infer(&y)?;
        if pooled[2..] != g.shape[2..] {
            bail!(shape, "a pooling of {y} does not have the shape of its cotangent {g}");
        }
        Ok(vec![y])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        Ok(vec![each_float!(x.get(0)?, g => self.average.spread(elements(g).slice(), g.shape(), &shape)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(back.builder().apply(self.average.clone(), &[back.g(0)])))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        let g = node.x(0);
        let (shape, short) = (&self.lengths, known_lengths(g)?);
        let whole = |lengths: &[usize]| [&[1, 1], lengths].concat();
        let weights: Vec<f64> =
            self.average.weights(&self.average.pooling.axes(&whole(shape), &whole(&short))?);
        let first = weights.first().copied().unwrap_or(1.0);
        let shared = if weights.iter().all(|&weight| weight == first) {
            if first == 1.0 { g } else { g * first }
        } else {
            g * node.builder().constant(Tensor::from_shape_vec(&short, weights)?.cast(g.dtype()))
        };
        node.one(self.average.pooling.spread(shared, shape)?)
    }
}

impl Listed for AveragePoolTranspose {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(unsupported, "AveragePoolTranspose is not an ONNX op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let pooling = Pooling {
            window: Window::plain(2).with_strides([2, 2]).with_pads([1, 0, 1, 2]),
            ..Pooling::plain([3, 3])
        };
        let average = AveragePool { pooling, divisor: Divisor::Padded };
        let op = AveragePoolTranspose { average, lengths: vec![5, 6] };
        vec![Sample::new(op, [floats(-1.0, 1.0).input(&[2, 2, 3, 3])])]
    }
}

/// `y[o]` is the p-norm of `x` under the window at `o`: `(Σ |x|ᵖ)^(1/p)`. ONNX 1, 2, 11, 18, 22.
///
/// Where the norm is 0 its derivative is 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LpPool {
    /// The window.
    pub pooling: Pooling,
    /// The exponent.
    pub p: i64,
}

impl OpDef for LpPool {
    fn name(&self) -> &str {
        "LpPool"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        check_float(x)?;
        check_exponent(self.p)?;
        Ok(vec![Fact::new(x.dtype, self.pooling.infer(x)?)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn run<T: Float>(op: &LpPool, x: &crate::tensor::Array<T>, shape: &[usize]) -> Result<Tensor> {
            let powers = x.mapv(|x| T::of(x.wide().abs().powf(op.p as f64)));
            let sums = AveragePool { pooling: op.pooling.clone(), divisor: Divisor::One }.average(
                elements(&powers.into_shared()).slice(),
                x.shape(),
                shape,
            )?;
            Ok(T::wrap(
                sums.array::<T>()?.mapv(|sum| T::of(sum.wide().powf(1.0 / op.p as f64))).into_shared(),
            ))
        }
        let shape = output_shapes(self, x)?.remove(0);
        Ok(vec![each_float!(x.get(0)?, x => run(self, x, &shape)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, y, g) = (back.x(0), back.y(0), back.g(0));
        let sum = AveragePool { pooling: self.pooling.clone(), divisor: Divisor::One };
        Ok(back.only_first(match self.p {
            1 => sum.transposed(g, x)? * x.sign(),
            p => {
                let share = (g * y.powf(1.0 - p as f64)).select_where(y.greater(0.0));
                sum.transposed(share, x)? * x.sign() * x.abs().powf(p as f64 - 1.0)
            }
        }))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        self.pooling.write(node);
        node.int("p", self.p);
        if self.pooling.ceil_mode || self.pooling.window.dilations.iter().any(|&dilation| dilation != 1) {
            node.since(18, "an LpPool with dilations or ceil_mode")?;
        }
        Ok(())
    }
}

impl Listed for LpPool {
    const ONNX: &'static [&'static str] = &["LpPool"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { p: exponent(node)?, pooling: Pooling::read(node)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = |shape: &[usize]| floats(-1.0, 1.0).away_from(0.0, 0.1).input(shape);
        let pools = windows().zip([1, 2, 3, 2, 2, 2, 2]);
        pools.map(|((shape, pooling), p)| Sample::new(LpPool { pooling, p }, [x(shape)])).collect()
    }
}

/// The exponent `p`: an integer, in the first opset a float.
fn exponent(node: &mut NodeReader) -> Result<i64> {
    if node.opset() >= 2 {
        return node.int_or("p", 2);
    }
    let p = node.float_or("p", 2.0)?;
    if p.fract() != 0.0 {
        bail!(unsupported, "attribute 'p': expected a whole number, found {p}");
    }
    Ok(p as i64)
}

fn check_exponent(p: i64) -> Result<()> {
    if !(1..=64).contains(&p) {
        bail!(unsupported, "attribute 'p': expected a number from 1 to 64, found {p}");
    }
    Ok(())
}

fn check_float(x: &Fact) -> Result<()> {
    if !x.dtype.is_float() {
        bail!(shape, "expected floating point elements, found {x}");
    }
    Ok(())
}

/// `[N, C, 1, …]` from `[N, C, …]`.
fn infer_global(x: &Fact) -> Result<Vec<Fact>> {
    check_float(x)?;
    if x.rank() < 3 {
        bail!(shape, "expected an input with spatial axes after batch and channel, found {x}");
    }
    let one = |axis: usize| if axis < 2 { x.shape[axis].clone() } else { 1.into() };
    Ok(vec![Fact::new(x.dtype, (0..x.rank()).map(one).collect())])
}

/// Reduces each plane of an input that [`infer_global`] accepts.
fn run_global<T: Float>(x: &crate::tensor::Array<T>, reduce: impl Fn(&[T]) -> T) -> Result<Tensor> {
    let plane: usize = x.shape()[2..].iter().product();
    let planes = x.shape()[0] * x.shape()[1];
    let x_elements = elements(x);
    let y =
        (0..planes).map(|index| reduce(&x_elements.slice()[index * plane..(index + 1) * plane])).collect();
    let one = |(axis, &length): (usize, &usize)| if axis < 2 { length } else { 1 };
    let shape: Vec<usize> = x.shape().iter().enumerate().map(one).collect();
    Tensor::from_shape_vec(&shape, y)
}

/// The number of elements of `x` for each element of `y`, in the element type of `x`.
pub(crate) fn elements_per<'b>(x: Var<'b>, y: Var<'b>) -> Var<'b> {
    let ratio = product(&x.shape()).divide(&product(&y.shape()));
    match ratio.known() {
        Some(count) => x.scalar_like(count as f64),
        None => {
            let size = |of: Var<'b>| of.builder().apply(Size, &[of]);
            (size(x) / size(y)).cast(x.dtype())
        }
    }
}

/// The mean over all spatial axes, which stay with length 1. ONNX 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GlobalAveragePool;

impl OpDef for GlobalAveragePool {
    fn name(&self) -> &str {
        "GlobalAveragePool"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        infer_global(x.get(0)?)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn mean<T: Float>(values: &[T]) -> T {
            values.iter().copied().sum::<T>() / T::of(values.len() as f64)
        }
        output_shapes(self, x)?;
        Ok(vec![each_float!(x.get(0)?, x => run_global(x, mean)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, g) = (back.x(0), back.g(0));
        Ok(back.only_first((g / elements_per(x, g)).expand_like(x)))
    }
}

impl Listed for GlobalAveragePool {
    const ONNX: &'static [&'static str] = &["GlobalAveragePool"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(GlobalAveragePool, [floats(-1.0, 1.0).input(&[2, 3, 4, 2])])]
    }
}

/// The maximum over all spatial axes, which stay with length 1. Tied maxima share the gradient evenly. ONNX 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GlobalMaxPool;

impl OpDef for GlobalMaxPool {
    fn name(&self) -> &str {
        "GlobalMaxPool"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        infer_global(x.get(0)?)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn largest<T: Float>(values: &[T]) -> T {
            let larger = |max: T, &value: &T| if value > max || value.is_nan() { value } else { max };
            values.iter().fold(T::neg_infinity(), larger)
        }
        output_shapes(self, x)?;
        Ok(vec![each_float!(x.get(0)?, x => run_global(x, largest)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, g) = (back.x(0), back.g(0));
        let attains = x.equal(back.y(0));
        let count = attains.cast(x.dtype()).reduce_sum(2..x.rank(), true);
        Ok(back.only_first((g / count).select_where(attains)))
    }
}

impl Listed for GlobalMaxPool {
    const ONNX: &'static [&'static str] = &["GlobalMaxPool"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(GlobalMaxPool, [floats(-1.0, 1.0).distinct().input(&[2, 3, 4, 2])])]
    }
}

/// The p-norm over all spatial axes, which stay with length 1. Its gradient at 0 is 0. ONNX 1, 2.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GlobalLpPool {
    /// The exponent.
    pub p: i64,
}

impl OpDef for GlobalLpPool {
    fn name(&self) -> &str {
        "GlobalLpPool"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        check_exponent(self.p)?;
        infer_global(x.get(0)?)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn norm<T: Float>(values: &[T], p: f64) -> T {
            T::of(values.iter().map(|value| value.wide().abs().powf(p)).sum::<f64>().powf(1.0 / p))
        }
        output_shapes(self, x)?;
        Ok(vec![each_float!(x.get(0)?, x => run_global(x, |values| norm(values, self.p as f64))?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, y, g) = (back.x(0), back.y(0), back.g(0));
        let cotangent = match self.p {
            1 => g * x.sign(),
            p => {
                let power = p as f64 - 1.0;
                (g * x.sign() * (x.abs() / y).powf(power)).select_where(y.greater(0.0))
            }
        };
        Ok(vec![Cotangent::Flows(cotangent)])
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("p", self.p);
        Ok(())
    }
}

impl Listed for GlobalLpPool {
    const ONNX: &'static [&'static str] = &["GlobalLpPool"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { p: exponent(node)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).away_from(0.0, 0.1).input(&[2, 3, 4, 2]);
        [1, 2, 3].map(|p| Sample::new(GlobalLpPool { p }, [x()])).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(kernel: i64, stride: i64, pads: [i64; 2]) -> Pooling {
        let window = Window::plain(1).with_strides([stride]).with_pads(pads);
        Pooling { window, ceil_mode: true, ..Pooling::plain([kernel]) }
    }

    fn run(op: &dyn OpDef, x: Tensor) -> Vec<Tensor> {
        op.run(&Inputs(&[Some(&x)])).unwrap()
    }

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

    /// Checked against ONNX Runtime 1.32: what lies beyond the padding does not count.
    #[test]
    fn the_mean_of_a_window_that_reaches_beyond_the_padding() {
        let x = || Tensor::from_shape_vec(&[1, 1, 6], vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let average = |divisor| run(&AveragePool { pooling: line(3, 2, [1, 1]), divisor }, x()).remove(0);
        let expected = |values: [f32; 4]| Tensor::from_shape_vec(&[1, 1, 4], values.to_vec()).unwrap();
        assert_eq!(average(Divisor::Padded), expected([1.0, 3.0, 5.0, 3.0]));
        assert_eq!(average(Divisor::Inside), expected([1.5, 3.0, 5.0, 6.0]));
    }

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn the_norm_of_a_window() {
        let x = Tensor::from_shape_vec(&[1, 1, 4], vec![-1.0, 0.0, 1.0, 2.0]).unwrap();
        let y = run(&LpPool { pooling: Pooling::plain([2]), p: 3 }, x).remove(0).to_f64();
        let expected = [1.0, 1.0, 2.0800838470458984];
        assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6), "{y}");
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
