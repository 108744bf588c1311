//! Ops that find places or make patterns of them: the largest elements, one-hot codes, ranges, running sums.

use super::gather::check_indices;
use super::scatter::{GatherElements, ScatterElements, ScatterReduction};
use super::slice::allocatable;
use crate::backprop::{Back, Cotangents};
use crate::dim::{Dim, Shape};
use crate::error::{Context, Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, Op, OpDef, resolve_axis};
use crate::tensor::{Array, DType, Element, Tensor, each_dtype};
use ndarray::{ArrayD, ArrayView1, Axis, IxDyn};
use std::cmp::Ordering;

/// Numbers in the order of the elements: equal ones for equal elements, NaN above all.
fn order_of(x: &Tensor) -> Result<ArrayD<u64>> {
    const SIGN: u64 = 1 << 63;
    Ok(match x.dtype() {
        DType::F32 | DType::F64 => x.to_f64().mapv(|value| {
            // Both zeros are the same.
            let bits = (value + 0.0).to_bits();
            match bits & SIGN {
                _ if value.is_nan() => u64::MAX,
                0 => bits | SIGN,
                _ => !bits,
            }
        }),
        DType::U64 => x.array::<u64>()?.to_owned(),
        _ => x.cast(DType::I64).array::<i64>()?.mapv(|value| value as u64 ^ SIGN),
    })
}

macro_rules! arg_ops {
    ($($(#[$doc:meta])* $Name:ident: $wins:ident;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $Name {
            /// The axis; negative counts from the end.
            pub axis: i64,
            /// The axis stays, with length 1.
            pub keep_dims: bool,
            /// The last of tied elements, instead of the first.
            pub select_last_index: bool,
        }

        impl OpDef for $Name {
            fn name(&self) -> &str {
                stringify!($Name)
            }

            fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
                let x = x.get(0)?;
                let axis = resolve_axis(self.axis, x.rank()).context(|| "attribute 'axis'")?;
                let mut shape = x.shape.clone();
                if shape[axis].is(0) {
                    bail!(shape, "axis {axis} of {x} has no elements to choose from");
                }
                shape[axis] = 1.into();
                if !self.keep_dims {
                    shape.remove(axis);
                }
                Ok(vec![Fact::new(DType::I64, shape)])
            }

            fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
                let x = x.get(0)?;
                let axis = resolve_axis(self.axis, x.shape().len())?;
                if x.shape()[axis] == 0 {
                    bail!(shape, "axis {axis} of the shape {:?} has no elements to choose from", x.shape());
                }
                let place = |lane: ArrayView1<u64>| {
                    let mut best = 0;
                    for place in 1..lane.len() {
                        best = match lane[place].cmp(&lane[best]) {
                            Ordering::$wins => place,
                            Ordering::Equal if self.select_last_index => place,
                            _ => best,
                        };
                    }
                    best as i64
                };
                let y = order_of(x)?.map_axis(Axis(axis), place);
                Ok(vec![if self.keep_dims { y.insert_axis(Axis(axis)) } else { y }.into()])
            }

            fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
                Ok(back.stops("its output is a place"))
            }

            fn write(&self, node: &mut NodeWriter) -> Result<()> {
                node.int("axis", self.axis);
                node.flag("keepdims", self.keep_dims, true);
                node.flag("select_last_index", self.select_last_index, false);
                Ok(())
            }
        }

        impl Listed for $Name {
            const ONNX: &'static [&'static str] = &[stringify!($Name)];

            fn read(node: &mut NodeReader) -> Result<Self> {
                Ok(Self {
                    axis: node.int_or("axis", 0)?,
                    keep_dims: node.flag_or("keepdims", true)?,
                    select_last_index: node.flag_or("select_last_index", false)?,
                })
            }

            #[cfg(test)]
            fn samples() -> Vec<Sample> {
                let x = || floats(-1.0, 1.0).input(&[2, 3]);
                vec![
                    Sample::new($Name { axis: 1, keep_dims: true, select_last_index: false }, [x()]),
                    Sample::new($Name { axis: -2, keep_dims: false, select_last_index: true }, [x()]),
                ]
            }
        }
    )* };
}

arg_ops! {
    /// The place of the largest element along an axis. ONNX `ArgMax` 1, 11, 12, 13.
    ArgMax: Greater;
    /// The place of the smallest element along an axis. ONNX `ArgMin` 1, 11, 12, 13.
    ArgMin: Less;
}

/// The `k` largest or smallest elements along an axis, and their places; of tied elements the first counts.
///
/// Inputs `x, k`. The gradient flows to the elements that were chosen. ONNX `TopK` 1, 10, 11.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TopK {
    /// The axis; negative counts from the end.
    pub axis: i64,
    /// The largest elements, instead of the smallest.
    pub largest: bool,
    /// In the order of the elements; else in the order of their places.
    pub sorted: bool,
}

impl TopK {
    fn count(k: &[i64], length: usize) -> Result<usize> {
        match k {
            [k] if *k >= 0 && *k <= length as i64 => Ok(*k as usize),
            _ => bail!(shape, "expected one number k from 0 to {length}, found {k:?}"),
        }
    }

    /// The places of the chosen elements of a lane.
    fn choose(&self, lane: ArrayView1<u64>, count: usize) -> Vec<usize> {
        let mut places: Vec<usize> = (0..lane.len()).collect();
        places.sort_by_key(|&place| if self.largest { !lane[place] } else { lane[place] });
        places.truncate(count);
        if !self.sorted {
            places.sort_unstable();
        }
        places
    }
}

impl OpDef for TopK {
    fn name(&self) -> &str {
        "TopK"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (x, k) = (x.get(0)?, x.get(1)?);
        let axis = resolve_axis(self.axis, x.rank()).context(|| "attribute 'axis'")?;
        let mut shape = x.shape.clone();
        shape[axis] = match k.integers() {
            Some([k]) => k.clone(),
            Some(_) => bail!(shape, "expected one number k, found {k}"),
            None => bail!(unsupported, "k (input 1) depends on the values of the network's input"),
        };
        if let (Some(k), Some(length)) = (shape[axis].known(), x.shape[axis].known()) {
            Self::count(&[k], length.max(0) as usize)?;
        }
        Ok(vec![Fact::new(x.dtype, shape.clone()), Fact::new(DType::I64, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let (x, k) = (x.get(0)?, x.get(1)?.to_integers()?);
        let axis = resolve_axis(self.axis, x.shape().len())?;
        let count = Self::count(&k, x.shape()[axis])?;
        let mut shape = x.shape().to_vec();
        shape[axis] = count;
        let mut places = ArrayD::from_elem(IxDyn(&shape), 0i64);
        for (lane, mut chosen) in order_of(x)?.lanes(Axis(axis)).into_iter().zip(places.lanes_mut(Axis(axis)))
        {
            for (chosen, place) in chosen.iter_mut().zip(self.choose(lane, count)) {
                *chosen = place as i64;
            }
        }
        let places = Tensor::from(places);
        let values = GatherElements { axis: self.axis }.run(&Inputs(&[Some(x), Some(&places)]))?;
        Ok(values.into_iter().chain([places]).collect())
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let x = back.x(0);
        let op = ScatterElements { axis: self.axis, reduction: ScatterReduction::Add };
        let zeros = x.scalar_like(0.0).expand_like(x);
        Ok(back.only_first(back.builder().apply(op, &[zeros, back.y(1), back.g(0)])))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.axis);
        node.flag("largest", self.largest, true);
        node.flag("sorted", self.sorted, true);
        Ok(())
    }
}

impl Listed for TopK {
    const ONNX: &'static [&'static str] = &["TopK"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        if let Some(k) = node.int("k")? {
            node.set_input(1, Tensor::vector([k]));
        }
        Ok(Self {
            axis: node.int_or("axis", -1)?,
            largest: node.flag_or("largest", true)?,
            sorted: node.flag_or("sorted", true)?,
        })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).distinct().input(&[2, 4, 3]);
        let k = |k: i64| Tensor::vector([k]).into();
        vec![
            Sample::new(TopK { axis: 1, largest: true, sorted: true }, [x(), k(2)]),
            Sample::new(TopK { axis: -1, largest: false, sorted: false }, [x(), k(2)]),
            Sample::new(TopK { axis: 1, largest: true, sorted: true }, [x(), k(0)]),
        ]
    }
}

/// Codes each index as a vector of `depth` elements: `on` at the index, `off` elsewhere; all `off` for an index that
/// is out of range.
///
/// Inputs `indices, depth, [off, on]`. ONNX `OneHot` 9, 11.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OneHot {
    /// Where the new axis lies in the output; negative counts from the end.
    pub axis: i64,
}

/// A scalar that may be floating point or an integer, as an expression.
fn scalar_expression(x: &Inputs<Fact>, index: usize, what: &str) -> Result<Dim> {
    let fact = x.get(index)?;
    match (fact.integers(), fact.floats().as_deref()) {
        (Some([dim]), _) => Ok(dim.clone()),
        (_, Some([value])) if value.is_finite() => Ok(Dim::from(*value as i64)),
        (None, None) => {
            bail!(unsupported, "{what} (input {index}) depends on the values of the network's input")
        }
        _ => bail!(shape, "expected {what} (input {index}) to be one number, found {fact}"),
    }
}

impl OpDef for OneHot {
    fn name(&self) -> &str {
        "OneHot"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (indices, values) = (x.get(0)?, x.get(2)?);
        let depth = scalar_expression(x, 1, "the depth")?;
        if depth.known().is_some_and(|depth| depth < 0) {
            bail!(shape, "a depth of {depth} is out of bounds");
        }
        let mut shape = indices.shape.clone();
        let axis = resolve_axis(self.axis, indices.rank() + 1).context(|| "attribute 'axis'")?;
        shape.insert(axis, depth);
        Ok(vec![Fact::new(values.dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn code<T: Element>(
            values: &Array<T>,
            indices: &Array<i64>,
            depth: usize,
            axis: usize,
        ) -> Result<Tensor> {
            let (Some(&off), Some(&on), 2) = (values.iter().next(), values.iter().nth(1), values.len())
            else {
                bail!(shape, "expected two values, off and on, found the shape {:?}", values.shape())
            };
            let mut shape = indices.shape().to_vec();
            shape.insert(axis, depth);
            allocatable(&shape)?;
            let mut y = ArrayD::from_elem(IxDyn(&shape), off);
            for (mut lane, &index) in y.lanes_mut(Axis(axis)).into_iter().zip(indices.iter()) {
                let place = if index < 0 { index.saturating_add(depth as i64) } else { index };
                if let Some(element) = usize::try_from(place).ok().and_then(|place| lane.get_mut(place)) {
                    *element = on;
                }
            }
            Ok(T::wrap(y.into_shared()))
        }
        let (indices, depth, values) = (x.get(0)?, x.get(1)?.cast(DType::I64).to_integers()?, x.get(2)?);
        let [depth] = depth[..] else { bail!(shape, "expected one depth, found {depth:?}") };
        let Ok(depth) = usize::try_from(depth) else { bail!(shape, "a depth of {depth} is out of bounds") };
        let axis = resolve_axis(self.axis, indices.shape().len() + 1)?;
        let indices = indices.cast(DType::I64);
        Ok(vec![each_dtype!(values, values => code(values, indices.array::<i64>()?, depth, axis)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        if back.wants(2) {
            bail!(unsupported, "the gradient with respect to the values of the code is not supported");
        }
        Ok(back.stops("its input is a place"))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("axis", self.axis);
        Ok(())
    }
}

impl Listed for OneHot {
    const ONNX: &'static [&'static str] = &["OneHot"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { axis: node.int_or("axis", -1)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let indices = Tensor::vector([0i64, -1, 5]);
        let values = Tensor::vector([0.0f64, 2.0]);
        vec![Sample::new(OneHot { axis: 0 }, [indices.into(), Tensor::scalar(3i64).into(), values.into()])]
    }
}

/// `y[i] = start + i · delta`, as long as that does not reach `limit`. Inputs `start, limit, delta`. ONNX `Range` 11.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Range;

impl Range {
    /// How many numbers there are, where a float's rounding is that of `f64`.
    fn float_count(start: f64, limit: f64, delta: f64) -> Result<usize> {
        let count = ((limit - start) / delta).ceil();
        if delta == 0.0 || !count.is_finite() {
            bail!(shape, "a range from {start} to {limit} in steps of {delta} does not end");
        }
        allocatable(&[count.max(0.0) as usize])
    }

    fn integer_count(start: i64, limit: i64, delta: i64) -> Result<usize> {
        if delta == 0 {
            bail!(shape, "a range from {start} to {limit} in steps of 0 does not end");
        }
        let distance = (i128::from(limit) - i128::from(start)) * i128::from(delta.signum());
        let size = i128::from(delta.unsigned_abs());
        let count = if distance <= 0 { 0 } else { (distance - 1) / size + 1 };
        allocatable(&[usize::try_from(count).unwrap_or(usize::MAX)])
    }

    /// The length as an expression, and the elements where they are few.
    fn symbolic(start: &Dim, limit: &Dim, delta: i64) -> (Dim, Option<Vec<Dim>>) {
        let distance = if delta > 0 { limit - start } else { start - limit };
        let size = delta.saturating_abs();
        let length = (&distance + &Dim::from(size - 1)).divide(&size.into());
        let elements = length
            .known()
            .filter(|length| (0..=64).contains(length))
            .map(|length| (0..length).map(|place| start + &Dim::from(place.saturating_mul(delta))).collect());
        (length, elements)
    }
}

impl OpDef for Range {
    fn name(&self) -> &str {
        "Range"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (start, limit, delta) = (x.get(0)?, x.get(1)?, x.get(2)?);
        let dtype = start.dtype;
        if limit.dtype != dtype || delta.dtype != dtype || dtype == DType::Bool {
            bail!(shape, "expected numbers of one element type, found {start}, {limit} and {delta}");
        }
        if let (Some([start]), Some([limit]), Some([delta])) =
            (start.integers(), limit.integers(), delta.integers())
        {
            return match (start.known(), limit.known(), delta.known()) {
                (Some(start), Some(limit), Some(delta)) => {
                    Ok(vec![Fact::new(dtype, vec![Self::integer_count(start, limit, delta)?.into()])])
                }
                (_, _, Some(delta)) if delta != 0 => {
                    let (length, elements) = Self::symbolic(start, limit, delta);
                    let fact = Fact::new(dtype, vec![length]);
                    Ok(vec![match elements {
                        Some(elements) => fact.with_integers(elements),
                        None => fact,
                    }])
                }
                _ => bail!(unsupported, "the step must be constant and not 0, found {delta}"),
            };
        }
        let one = |fact: &Fact| fact.floats().filter(|values| values.len() == 1).map(|values| values[0]);
        match (one(start), one(limit), one(delta)) {
            (Some(start), Some(limit), Some(delta)) => {
                Ok(vec![Fact::new(dtype, vec![Self::float_count(start, limit, delta)?.into()])])
            }
            _ => bail!(unsupported, "the shape of the output depends on the values of the network's input"),
        }
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let dtype = x.get(0)?.dtype();
        let scalar = |index: usize| -> Result<Tensor> {
            let value = x.get(index)?;
            if value.len() != 1 || value.dtype() != dtype {
                bail!(shape, "expected one {dtype} at input {index}, found the shape {:?}", value.shape());
            }
            Ok(value.clone())
        };
        let [start, limit, delta] = [scalar(0)?, scalar(1)?, scalar(2)?];
        if dtype.is_integer() {
            let one = |value: &Tensor| -> Result<i64> {
                Ok(value.to_integers()?.first().copied().unwrap_or_default())
            };
            let (start, limit, delta) = (one(&start)?, one(&limit)?, one(&delta)?);
            let count = Self::integer_count(start, limit, delta)?;
            let values = (0..count as i64).map(|place| start.wrapping_add(place.wrapping_mul(delta)));
            return Ok(vec![Tensor::vector(values).cast(dtype)]);
        }
        let one = |value: &Tensor| value.to_f64().first().copied().unwrap_or_default();
        let (start, limit, delta) = (one(&start), one(&limit), one(&delta));
        let count = Self::float_count(start, limit, delta)?;
        Ok(vec![Tensor::vector((0..count).map(|place| start + place as f64 * delta)).cast(dtype)])
    }

    fn vjp<'b>(&self, _: &Back<'b>) -> Result<Cotangents<'b>> {
        bail!(unsupported, "the gradient with respect to the ends of a range is not supported")
    }
}

impl Listed for Range {
    const ONNX: &'static [&'static str] = &["Range"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let numbers = |values: [i64; 3]| values.map(|value| Tensor::scalar(value).into());
        vec![Sample::new(Range, numbers([1, 8, 3])), Sample::new(Range, numbers([5, 0, -2]))]
    }
}

/// The running sum along an axis. Inputs `x, axis`. ONNX `CumSum` 11, 14.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CumSum {
    /// Each sum leaves its own element out.
    pub exclusive: bool,
    /// From the end to the beginning.
    pub reverse: bool,
}

impl OpDef for CumSum {
    fn name(&self) -> &str {
        "CumSum"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (x, axis) = (x.get(0)?, x.get(1)?);
        if x.dtype == DType::Bool {
            bail!(shape, "expected numbers, found {x}");
        }
        check_indices(axis).context(|| "the axis (input 1)")?;
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        macro_rules! accumulate {
            ($x:expr, $axis:expr, |$sum:ident, $value:ident| $add:expr) => {{
                let mut y = $x.to_owned();
                for mut lane in y.lanes_mut(Axis($axis)) {
                    if self.reverse {
                        lane.invert_axis(Axis(0));
                    }
                    let mut $sum = Default::default();
                    for element in lane.iter_mut() {
                        let $value = *element;
                        let next = $add;
                        *element = if self.exclusive { $sum } else { next };
                        $sum = next;
                    }
                }
                Tensor::from(y)
            }};
        }
        let (x, axis) = (x.get(0)?, x.get(1)?.to_integers()?);
        let [axis] = axis[..] else { bail!(shape, "expected one axis, found {axis:?}") };
        let axis = resolve_axis(axis, x.shape().len())?;
        Ok(vec![match x {
            Tensor::F32(x) => accumulate!(x, axis, |sum, value| sum + value),
            Tensor::F64(x) => accumulate!(x, axis, |sum, value| sum + value),
            other => {
                let wide = other.cast(DType::I64);
                let wide = wide.array::<i64>()?;
                accumulate!(wide, axis, |sum, value| i64::wrapping_add(sum, value)).cast(other.dtype())
            }
        }])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let op = Self { reverse: !self.reverse, ..self.clone() };
        Ok(back.only_first(back.builder().apply(op, &[back.g(0), back.x(1)])))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.flag("exclusive", self.exclusive, false);
        node.flag("reverse", self.reverse, false);
        Ok(())
    }
}

impl Listed for CumSum {
    const ONNX: &'static [&'static str] = &["CumSum"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { exclusive: node.flag_or("exclusive", false)?, reverse: node.flag_or("reverse", false)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let mut samples = Vec::new();
        for (exclusive, reverse) in [(false, false), (false, true), (true, false), (true, true)] {
            let x = floats(-1.0, 1.0).input(&[2, 3, 2]);
            samples.push(Sample::new(CumSum { exclusive, reverse }, [x, Tensor::scalar(-2i64).into()]));
        }
        samples
    }
}

/// A matrix of the shape of x with ones on the diagonal `k`, zeros elsewhere. ONNX `EyeLike` 9.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EyeLike {
    /// The element type; `None` is that of x.
    pub dtype: Option<DType>,
    /// Which diagonal, counted upwards from the main one.
    pub k: i64,
}

impl OpDef for EyeLike {
    fn name(&self) -> &str {
        "EyeLike"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        if x.rank() != 2 {
            bail!(shape, "expected a matrix, found {x}");
        }
        let shape: Shape = x.shape.clone();
        Ok(vec![Fact::new(self.dtype.unwrap_or(x.dtype), shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let x = x.get(0)?;
        if x.shape().len() != 2 {
            bail!(shape, "expected a matrix, found the shape {:?}", x.shape());
        }
        let on = |place: IxDyn| u8::from(place[1] as i64 - place[0] as i64 == self.k);
        let y = ArrayD::from_shape_fn(IxDyn(x.shape()), on);
        Ok(vec![Tensor::from(y).cast(self.dtype.unwrap_or(x.dtype()))])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.stops("its output is a constant"))
    }

    fn in_float64(&self) -> Option<Op> {
        (self.dtype == Some(DType::F32)).then(|| Self { dtype: Some(DType::F64), ..self.clone() }.into())
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        if let Some(dtype) = self.dtype {
            node.dtype("dtype", dtype);
        }
        node.int("k", self.k);
        Ok(())
    }
}

impl Listed for EyeLike {
    const ONNX: &'static [&'static str] = &["EyeLike"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        let dtype = node.int("dtype")?.map(crate::onnx::dtype_of_code).transpose()?;
        Ok(Self { dtype, k: node.int_or("k", 0)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(EyeLike { dtype: None, k: 1 }, [floats(-1.0, 1.0).input(&[2, 3])])]
    }
}

#[cfg(test)]
mod tests {
    //! Expected numbers: the reference evaluator of the Python package onnx 1.17.0, if nothing else is said.

    use super::*;
    use crate::gradient_check::outputs;

    /// 0, 1, 2, … in this shape.
    fn counting(shape: &[usize]) -> Tensor {
        Tensor::from_shape_vec(shape, (0..shape.iter().product::<usize>() as i64).collect()).unwrap()
    }

    fn integers(shape: &[usize], values: &[i64]) -> Tensor {
        Tensor::from_shape_vec(shape, values.to_vec()).unwrap()
    }

    #[test]
    fn the_first_of_tied_elements_is_chosen() {
        let x = [integers(&[2, 4], &[3, 1, 2, 3, 0, 5, 5, 4]), integers(&[1], &[2])];
        let y = outputs(TopK { axis: 1, largest: true, sorted: true }, &x);
        assert_eq!(y, [integers(&[2, 2], &[3, 3, 5, 5]), integers(&[2, 2], &[0, 3, 1, 2])]);
        let y = outputs(TopK { axis: 1, largest: false, sorted: true }, &x);
        assert_eq!(y, [integers(&[2, 2], &[1, 2, 0, 4]), integers(&[2, 2], &[1, 2, 0, 3])]);
        let last = ArgMax { axis: 1, keep_dims: true, select_last_index: true };
        assert_eq!(outputs(last, &[integers(&[2, 2], &[2, 2, 3, 10])]), [integers(&[2, 1], &[1, 1])]);
    }

    /// The reference evaluator wraps what is out of range (7 here); the standard's text does not.
    #[test]
    fn indices_out_of_range_are_coded_as_off() {
        let x = [integers(&[3], &[0, -1, 7]), Tensor::scalar(3i64), integers(&[2], &[2, 5])];
        let y = outputs(OneHot { axis: 0 }, &x);
        assert_eq!(y, [integers(&[3, 3], &[5, 2, 2, 2, 2, 2, 2, 5, 2])]);
    }

    #[test]
    fn running_sums_and_ranges_go_backwards() {
        let y = outputs(CumSum { exclusive: true, reverse: true }, &[counting(&[4]), Tensor::scalar(0i64)]);
        assert_eq!(y, [integers(&[4], &[6, 5, 3, 0])]);
        let y = outputs(Range, &[10i64, 4, -3].map(Tensor::scalar));
        assert_eq!(y, [integers(&[2], &[10, 7])]);
    }

    #[test]
    fn absurd_ranges_end_in_an_error() {
        for numbers in [[0, i64::MAX, 1], [i64::MIN, i64::MAX, 1], [0, 5, 0]] {
            let x = numbers.map(Tensor::scalar::<i64>);
            assert!(Range.run(&Inputs(&[Some(&x[0]), Some(&x[1]), Some(&x[2])])).is_err(), "{numbers:?}");
        }
    }
}
