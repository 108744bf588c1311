//! Resizing: interpolation along each axis by a sparse matrix, and the transposed matrices for its gradient.

use super::convolution::elements;
use super::window::output_shapes;
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::{Dim, Shape, display_shape};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, SampleInput, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef, Real, resolve_axis};
use crate::ops::layout::Identity;
use crate::tensor::{DType, Float, Tensor};
use rayon::prelude::*;

/// Which element is the nearest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// The nearest, of two as near the one before: `round_prefer_floor`.
    PreferFloor,
    /// The nearest, of two as near the one after: `round_prefer_ceil`.
    PreferCeil,
    /// The one before.
    Floor,
    /// The one after.
    Ceil,
    /// The one before where an axis grows, the one after where it shrinks: opset 10, as ONNX Runtime reads it.
    Simple,
}

/// How values between the elements are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interpolation {
    /// The value of the nearest element.
    Nearest(Rounding),
    /// On the line between two elements.
    Linear,
    /// On the cubic convolution of four elements.
    Cubic {
        /// The coefficient `a` of the cubic kernel.
        a: Real,
    },
}

/// Which place `p` of the input an element `i` of the output belongs to, with `s` the scale, `n` the length of the input
/// and `m` that of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Coordinates {
    /// `p = (i + 1/2) / s - 1/2`.
    HalfPixel,
    /// As half pixel, with the centers of input and output on each other where `s · n` is not whole.
    HalfPixelSymmetric,
    /// As half pixel, and 0 for an output of length 1.
    PytorchHalfPixel,
    /// `p = i / s`.
    Asymmetric,
    /// `p = i · (n - 1) / (m - 1)`. Where scales are given `m` is `s · n`, whole or not, as the ONNX node tests have it.
    AlignCorners,
    /// The part of the input that the input `roi` names; what lies outside is the extrapolation value.
    TfCropAndResize,
}

/// What becomes of `sizes` that do not keep the ratio of the axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AspectRatio {
    /// Each axis gets its size.
    Stretch,
    /// All axes get the smallest of the scales.
    NotLarger,
    /// All axes get the largest of the scales.
    NotSmaller,
}

/// How a resize computes its output: the attributes of ONNX `Resize`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resampling {
    /// Between the elements.
    pub interpolation: Interpolation,
    /// From output to input.
    pub coordinates: Coordinates,
    /// Where an axis shrinks, the kernel grows with it.
    pub antialias: bool,
    /// Elements outside the input have no weight, instead of being those at the edge.
    pub exclude_outside: bool,
    /// The value outside the input for [`Coordinates::TfCropAndResize`].
    pub extrapolation_value: Real,
    /// For sizes.
    pub aspect_ratio: AspectRatio,
    /// The axes that scales, sizes and roi speak of; `None` is all of them.
    pub axes: Option<Vec<i64>>,
}

/// What an output is to become: a factor or a length for each axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Target<L> {
    Scales(Vec<Real>),
    Sizes(Vec<L>),
}

/// One axis of a resize whose lengths are known.
#[derive(Clone, Debug)]
struct AxisMap {
    /// Its place in the list of axes.
    place: usize,
    axis: usize,
    from: usize,
    to: usize,
    scale: f64,
    /// The length of the output before it was made whole.
    width: f64,
    roi: (f64, f64),
}

/// For each output element the input elements with their weights; an empty row lies outside.
type Rows = Vec<Vec<(usize, f64)>>;

impl Resampling {
    /// The defaults of ONNX, with another interpolation and other coordinates.
    pub fn new(interpolation: Interpolation, coordinates: Coordinates) -> Self {
        Self {
            interpolation,
            coordinates,
            antialias: false,
            exclude_outside: false,
            extrapolation_value: Real(0.0),
            aspect_ratio: AspectRatio::Stretch,
            axes: None,
        }
    }

    /// As it was before opset 11.
    fn read_old(node: &mut NodeReader, rounding: Rounding) -> Result<Self> {
        let interpolation = match node.string_or("mode", "nearest")?.as_str() {
            "nearest" => Interpolation::Nearest(rounding),
            "linear" | "bilinear" => Interpolation::Linear,
            other => bail!(unsupported, "attribute 'mode': expected nearest or linear, found '{other}'"),
        };
        Ok(Self::new(interpolation, Coordinates::Asymmetric))
    }

    fn read(node: &mut NodeReader) -> Result<Self> {
        let a = Real(node.float_or("cubic_coeff_a", -0.75)?);
        let rounding = match node.string_or("nearest_mode", "round_prefer_floor")?.as_str() {
            "round_prefer_floor" | "" => Rounding::PreferFloor,
            "round_prefer_ceil" => Rounding::PreferCeil,
            "floor" => Rounding::Floor,
            "ceil" => Rounding::Ceil,
            other => bail!(
                unsupported,
                "attribute 'nearest_mode': expected round_prefer_floor, round_prefer_ceil, floor or ceil, found \
                 '{other}'"
            ),
        };
        let interpolation = match node.string_or("mode", "nearest")?.as_str() {
            "nearest" => Interpolation::Nearest(rounding),
            "linear" => Interpolation::Linear,
            "cubic" => Interpolation::Cubic { a },
            other => {
                bail!(unsupported, "attribute 'mode': expected nearest, linear or cubic, found '{other}'")
            }
        };
        let coordinates = match node.string_or("coordinate_transformation_mode", "half_pixel")?.as_str() {
            "half_pixel" => Coordinates::HalfPixel,
            "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
            "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
            "asymmetric" => Coordinates::Asymmetric,
            "align_corners" => Coordinates::AlignCorners,
            "tf_crop_and_resize" => Coordinates::TfCropAndResize,
            other => bail!(
                unsupported,
                "attribute 'coordinate_transformation_mode': expected half_pixel, half_pixel_symmetric, \
                 pytorch_half_pixel, asymmetric, align_corners or tf_crop_and_resize, found '{other}'"
            ),
        };
        let aspect_ratio = match node.string_or("keep_aspect_ratio_policy", "stretch")?.as_str() {
            "stretch" => AspectRatio::Stretch,
            "not_larger" => AspectRatio::NotLarger,
            "not_smaller" => AspectRatio::NotSmaller,
            other => bail!(
                unsupported,
                "attribute 'keep_aspect_ratio_policy': expected stretch, not_larger or not_smaller, found '{other}'"
            ),
        };
        let antialias = node.flag_or("antialias", false)?;
        if antialias && matches!(interpolation, Interpolation::Nearest(_)) {
            bail!(unsupported, "attribute 'antialias': 1 is not defined for the mode nearest");
        }
        Ok(Self {
            antialias,
            exclude_outside: node.flag_or("exclude_outside", false)?,
            extrapolation_value: Real(node.float_or("extrapolation_value", 0.0)?),
            aspect_ratio,
            axes: node.ints("axes")?,
            ..Self::new(interpolation, coordinates)
        })
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        match self.interpolation {
            Interpolation::Nearest(rounding) => node.string(
                "nearest_mode",
                match rounding {
                    Rounding::PreferFloor => "round_prefer_floor",
                    Rounding::PreferCeil => "round_prefer_ceil",
                    Rounding::Floor | Rounding::Simple => "floor",
                    Rounding::Ceil => "ceil",
                },
            ),
            Interpolation::Linear => node.string("mode", "linear"),
            Interpolation::Cubic { a } => {
                node.string("mode", "cubic");
                node.float("cubic_coeff_a", a.0);
            }
        }
        let coordinates = match self.coordinates {
            Coordinates::HalfPixel => "half_pixel",
            Coordinates::HalfPixelSymmetric => "half_pixel_symmetric",
            Coordinates::PytorchHalfPixel => "pytorch_half_pixel",
            Coordinates::Asymmetric => "asymmetric",
            Coordinates::AlignCorners => "align_corners",
            Coordinates::TfCropAndResize => "tf_crop_and_resize",
        };
        node.string("coordinate_transformation_mode", coordinates);
        if self.coordinates == Coordinates::TfCropAndResize {
            node.float("extrapolation_value", self.extrapolation_value.0);
        }
        if self.coordinates == Coordinates::HalfPixelSymmetric {
            node.since(19, "the coordinates 'half_pixel_symmetric' of Resize")?;
        }
        node.flag("exclude_outside", self.exclude_outside, false);
        let young = self.antialias || self.axes.is_some() || self.aspect_ratio != AspectRatio::Stretch;
        if young {
            node.since(18, "a Resize with antialias, axes or keep_aspect_ratio_policy")?;
        }
        node.flag("antialias", self.antialias, false);
        if let Some(axes) = &self.axes {
            node.ints("axes", axes);
        }
        match self.aspect_ratio {
            AspectRatio::Stretch => {}
            AspectRatio::NotLarger => node.string("keep_aspect_ratio_policy", "not_larger"),
            AspectRatio::NotSmaller => node.string("keep_aspect_ratio_policy", "not_smaller"),
        }
        Ok(())
    }

    /// The axes in the order that scales, sizes and roi have.
    fn axes(&self, rank: usize) -> Result<Vec<usize>> {
        let Some(axes) = &self.axes else { return Ok((0..rank).collect()) };
        let axes: Vec<usize> = axes.iter().map(|&axis| resolve_axis(axis, rank)).collect::<Result<_>>()?;
        if (1..axes.len()).any(|index| axes[..index].contains(&axes[index])) {
            bail!(model, "attribute 'axes': {axes:?} names an axis twice");
        }
        Ok(axes)
    }

    /// The scale that all axes share, where the ratio of the axes is kept.
    fn shared_scale(&self, x: &[Dim], axes: &[usize], sizes: &[Dim]) -> Result<Option<f64>> {
        if self.aspect_ratio == AspectRatio::Stretch {
            return Ok(None);
        }
        let mut scale: Option<f64> = None;
        for (&axis, size) in axes.iter().zip(sizes) {
            let ratio = known(size, axis)? as f64 / known(&x[axis], axis)? as f64;
            scale = Some(match (scale, self.aspect_ratio) {
                (None, _) => ratio,
                (Some(scale), AspectRatio::NotLarger) => scale.min(ratio),
                (Some(scale), _) => scale.max(ratio),
            });
        }
        Ok(scale)
    }

    /// The shape of the output.
    fn output(&self, x: &[Dim], target: &Target<Dim>) -> Result<Shape> {
        let axes = self.axes(x.len())?;
        let (what, count) = match target {
            Target::Scales(scales) => ("scales", scales.len()),
            Target::Sizes(sizes) => ("sizes", sizes.len()),
        };
        if count != axes.len() {
            bail!(
                shape,
                "expected {} {what} for an input of shape {}, found {count}",
                axes.len(),
                display_shape(x)
            );
        }
        let mut shape = x.to_vec();
        match target {
            Target::Scales(scales) => {
                for (&axis, &Real(scale)) in axes.iter().zip(scales) {
                    shape[axis] = scaled(&x[axis], axis, scale)?;
                }
            }
            Target::Sizes(sizes) => {
                let shared = self.shared_scale(x, &axes, sizes)?;
                for (&axis, size) in axes.iter().zip(sizes) {
                    shape[axis] = match shared {
                        None => size.clone(),
                        Some(scale) => ((scale * known(&x[axis], axis)? as f64 + 0.5).floor() as i64).into(),
                    };
                }
            }
        }
        for &axis in &axes {
            if shape[axis].known().is_some_and(|length| length < 1 || length > i64::from(i32::MAX)) {
                bail!(shape, "axis {axis} of length {} would get the length {}", x[axis], shape[axis]);
            }
        }
        Ok(shape)
    }

    /// The axes that change, where all that matters is known.
    fn maps(&self, x: &[Dim], y: &[Dim], target: &Target<Dim>, roi: &[f64]) -> Result<Vec<AxisMap>> {
        let axes = self.axes(x.len())?;
        let crops = self.coordinates == Coordinates::TfCropAndResize;
        if crops && roi.len() != 2 * axes.len() {
            bail!(shape, "expected a roi of {} numbers, found {}", 2 * axes.len(), roi.len());
        }
        let shared = match target {
            Target::Sizes(sizes) => self.shared_scale(x, &axes, sizes)?,
            Target::Scales(_) => None,
        };
        let mut maps = Vec::new();
        for (place, &axis) in axes.iter().enumerate() {
            let roi = if crops { (roi[place], roi[axes.len() + place]) } else { (0.0, 1.0) };
            let scale = match target {
                Target::Scales(scales) => Some(scales[place].0),
                Target::Sizes(_) => shared,
            };
            if x[axis] == y[axis] && scale.is_none_or(|scale| scale == 1.0) && roi == (0.0, 1.0) {
                continue;
            }
            let (from, to) = (known(&x[axis], axis)?, known(&y[axis], axis)?);
            if from < 1 {
                bail!(shape, "axis {axis} of the input is empty");
            }
            let width = match target {
                Target::Scales(scales) => f64::from(scales[place].0 as f32 * from as f32),
                Target::Sizes(_) => to as f64,
            };
            let scale = scale.unwrap_or(to as f64 / from as f64);
            maps.push(AxisMap { place, axis, from: from as usize, to: to as usize, scale, width, roi });
        }
        Ok(maps)
    }

    /// The place of the input that belongs to an element of the output.
    fn place<T: Float>(&self, map: &AxisMap, index: usize) -> T {
        let of = |value: usize| T::of(value as f64);
        let (half, scale, index, width) = (T::of(0.5), T::of(map.scale), of(index), T::of(map.width));
        let last = of(map.from - 1);
        match self.coordinates {
            Coordinates::HalfPixel => (index + half) / scale - half,
            Coordinates::HalfPixelSymmetric => {
                let offset = of(map.from) * half * (T::one() - of(map.to) / width);
                offset + (index + half) / scale - half
            }
            Coordinates::PytorchHalfPixel if map.to == 1 => T::zero(),
            Coordinates::PytorchHalfPixel => (index + half) / scale - half,
            Coordinates::Asymmetric => index / scale,
            Coordinates::AlignCorners if map.to == 1 => T::zero(),
            Coordinates::AlignCorners => index * last / (width - T::one()),
            Coordinates::TfCropAndResize => {
                let (start, end) = (T::of(map.roi.0), T::of(map.roi.1));
                match map.to {
                    1 => half * (start + end) * last,
                    _ => start * last + index * (end - start) * last / of(map.to - 1),
                }
            }
        }
    }

    /// The rows of the matrix of one axis.
    fn rows(&self, map: &AxisMap) -> Rows {
        (0..map.to).map(|index| self.row(map, index)).collect()
    }

    fn row(&self, map: &AxisMap, index: usize) -> Vec<(usize, f64)> {
        let last = map.from as f64 - 1.0;
        let outside =
            |place: f64| self.coordinates == Coordinates::TfCropAndResize && !(0.0..=last).contains(&place);
        let clamped = |place: f64| place.clamp(0.0, last) as usize;
        let (reach, kernel): (f64, &dyn Fn(f64) -> f64) = match &self.interpolation {
            Interpolation::Nearest(rounding) => {
                // In float32 as other runtimes do: the last bit decides which element is taken.
                let place = self.place::<f32>(map, index);
                if outside(place.into()) {
                    return vec![];
                }
                let nearest = match rounding {
                    Rounding::PreferFloor => (place - 0.5).ceil(),
                    Rounding::PreferCeil => (place + 0.5).floor(),
                    Rounding::Ceil => place.ceil(),
                    Rounding::Simple if map.scale < 1.0 => place.ceil(),
                    Rounding::Floor | Rounding::Simple => place.floor(),
                };
                return vec![(clamped(nearest.into()), 1.0)];
            }
            Interpolation::Linear => (1.0, &|distance| (1.0 - distance).max(0.0)),
            Interpolation::Cubic { a } => (2.0, &|distance| cubic(distance, a.0)),
        };
        let place = self.place::<f64>(map, index);
        if outside(place) {
            return vec![];
        }
        let shrink = if self.antialias { map.scale.min(1.0) } else { 1.0 };
        // Of two elements as near, the one before counts as `base`.
        let base = place.ceil() - 1.0;
        let first = (-reach / shrink).floor() + 1.0;
        let taps = (2.0 - 2.0 * first) as usize;
        let mut row: Vec<(f64, f64)> = (0..taps)
            .map(|tap| base + first + tap as f64)
            .map(|element| (element, kernel((element - place).abs() * shrink)))
            .collect();
        if self.exclude_outside {
            row.retain(|(element, _)| (0.0..=last).contains(element));
        }
        if self.exclude_outside || self.antialias {
            let sum: f64 = row.iter().map(|(_, weight)| weight).sum();
            row.iter_mut().for_each(|(_, weight)| *weight /= sum);
        }
        row.retain(|(_, weight)| *weight != 0.0);
        row.into_iter().map(|(element, weight)| (clamped(element), weight)).collect()
    }

    /// Applies the matrix of each axis.
    fn run<T: Float>(&self, x: &[T], shape: &[usize], maps: &[AxisMap]) -> Vec<T> {
        let mut shape = shape.to_vec();
        let mut y = x.to_vec();
        let mut empty = Vec::new();
        for map in maps {
            let rows = self.rows(map);
            y = multiply(&y, &shape, map.axis, &rows);
            shape[map.axis] = map.to;
            empty.push((map.axis, (0..map.to).filter(|&row| rows[row].is_empty()).collect::<Vec<_>>()));
        }
        for (axis, rows) in empty.iter().filter(|(_, rows)| !rows.is_empty()) {
            let inner: usize = shape[axis + 1..].iter().product();
            for slab in y.chunks_exact_mut((shape[*axis] * inner).max(1)) {
                for row in rows {
                    slab[row * inner..(row + 1) * inner].fill(T::of(self.extrapolation_value.0));
                }
            }
        }
        y
    }

    /// Applies the transposed matrix of each axis.
    fn run_transposed<T: Float>(&self, g: &[T], shape: &[usize], maps: &[AxisMap]) -> Vec<T> {
        let mut shape = shape.to_vec();
        let mut y = g.to_vec();
        for map in maps.iter().rev() {
            let mut columns: Rows = vec![Vec::new(); map.from];
            for (row, taps) in self.rows(map).into_iter().enumerate() {
                for (element, weight) in taps {
                    columns[element].push((row, weight));
                }
            }
            y = multiply(&y, &shape, map.axis, &columns);
            shape[map.axis] = map.from;
        }
        y
    }
}

/// The cubic convolution kernel of Keys 1981.
fn cubic(distance: f64, a: f64) -> f64 {
    let d = distance;
    match d {
        d if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        d if d < 2.0 => a * (((d - 5.0) * d + 8.0) * d - 4.0),
        _ => 0.0,
    }
}

/// Multiplies every lane along an axis with a sparse matrix.
fn multiply<T: Float>(x: &[T], shape: &[usize], axis: usize, rows: &Rows) -> Vec<T> {
    let inner: usize = shape[axis + 1..].iter().product();
    let outer: usize = shape[..axis].iter().product();
    let (from, to) = (shape[axis], rows.len());
    let mut y = vec![T::zero(); outer * to * inner];
    y.par_chunks_mut((to * inner).max(1)).enumerate().for_each(|(slab, y)| {
        let x = &x[slab * from * inner..(slab + 1) * from * inner];
        for (row, y) in rows.iter().zip(y.chunks_exact_mut(inner.max(1))) {
            for &(element, weight) in row {
                let weight = T::of(weight);
                for (y, &x) in y.iter_mut().zip(&x[element * inner..(element + 1) * inner]) {
                    *y += weight * x;
                }
            }
        }
    });
    y
}

fn known(length: &Dim, axis: usize) -> Result<i64> {
    match length.known() {
        Some(length) => Ok(length),
        None => {
            bail!(shape, "resizing needs the length of axis {axis}, which is {length}; give it with --size")
        }
    }
}

/// The length of an axis after scaling, made whole downwards.
fn scaled(length: &Dim, axis: usize, scale: f64) -> Result<Dim> {
    if !scale.is_finite() || scale <= 0.0 {
        bail!(shape, "expected positive scales, found {scale} for axis {axis}");
    }
    // In float32 as other runtimes do: the last bit decides the length.
    let floor = |length: i64| Dim::from((length as f32 * scale as f32).floor() as i64);
    Ok(match length.known() {
        _ if scale == 1.0 => length.clone(),
        Some(length) => floor(length),
        None if scale.fract() == 0.0 && scale < 1e6 => length * &Dim::from(scale as i64),
        None if scale.recip().fract() == 0.0 && scale > 1e-6 => {
            length.divide(&Dim::from(scale.recip() as i64))
        }
        None => known(length, axis)?.into(),
    })
}

/// A resize by scales as old opsets have it: the axes that grow in one step, those that shrink in another.
fn lower_simple<'b>(node: &Lowering<'b>, resampling: &Resampling, scales: usize) -> Result<Lowered<'b>> {
    let Some(Target::Scales(factors)) =
        node.optional_x(scales).map(|x| scales_of(Some(&x.fact()))).transpose()?.flatten()
    else {
        return Ok(None);
    };
    let mut y = node.x(0);
    for (rounding, part) in [(Rounding::Floor, f64::max as fn(f64, f64) -> f64), (Rounding::Ceil, f64::min)] {
        let factors: Vec<f32> = factors.iter().map(|factor| part(factor.0, 1.0) as f32).collect();
        if factors.iter().all(|&factor| factor == 1.0) {
            continue;
        }
        let interpolation = match resampling.interpolation {
            Interpolation::Nearest(_) => Interpolation::Nearest(rounding),
            other => other,
        };
        let op = Resize { resampling: Resampling { interpolation, ..resampling.clone() } };
        y = node
            .builder()
            .apply_all(op, &[Some(y), None, Some(node.builder().constant(Tensor::vector(factors)))])[0];
    }
    node.one(node.builder().apply(Identity, &[y]))
}

/// Scales from what is known of an input; `None` if it is left out or empty.
fn scales_of(fact: Option<&Fact>) -> Result<Option<Target<Dim>>> {
    let Some(fact) = fact.filter(|fact| !is_empty(fact)) else { return Ok(None) };
    match fact.floats() {
        Some(scales) => Ok(Some(Target::Scales(scales.into_iter().map(Real).collect()))),
        None => bail!(
            unsupported,
            "the scales depend on a size of the network's input that is not known; give it with --size"
        ),
    }
}

fn sizes_of(fact: Option<&Fact>) -> Result<Option<Target<Dim>>> {
    let Some(fact) = fact.filter(|fact| !is_empty(fact)) else { return Ok(None) };
    match fact.integers() {
        Some(sizes) => Ok(Some(Target::Sizes(sizes.to_vec()))),
        None => bail!(
            unsupported,
            "the sizes depend on the values or, in a way that cannot be followed, on the size of the network's input; export \
             the network for inputs of one size"
        ),
    }
}

fn is_empty(fact: &Fact) -> bool {
    fact.shape.iter().any(|dim| dim.is(0))
}

/// What a resize node is to do, from what is known of its inputs.
struct Request {
    resampling: Resampling,
    target: Target<Dim>,
    roi: Vec<f64>,
}

impl Request {
    fn output(&self, x: &Fact) -> Result<Vec<Fact>> {
        if x.dtype == DType::Bool {
            bail!(shape, "expected numbers, found {x}");
        }
        Ok(vec![Fact::new(x.dtype, self.resampling.output(&x.shape, &self.target)?)])
    }

    fn run(&self, x: &Tensor, shape: &[usize]) -> Result<Vec<Tensor>> {
        let dims = |shape: &[usize]| -> Vec<Dim> { shape.iter().map(|&length| length.into()).collect() };
        let maps = self.resampling.maps(&dims(x.shape()), &dims(shape), &self.target, &self.roi)?;
        let y = match x {
            Tensor::F32(x) => {
                Tensor::from_shape_vec(shape, self.resampling.run(elements(x).slice(), x.shape(), &maps))
            }
            other => {
                let wide = other.cast(DType::F64);
                let x = wide.array::<f64>()?;
                Tensor::from_shape_vec(shape, self.resampling.run(elements(x).slice(), x.shape(), &maps))
            }
        }?;
        Ok(vec![y.cast(x.dtype())])
    }

    fn transposed<'b>(&self, back: &Back<'b>) -> Result<Var<'b>> {
        let (from, to, g) = (back.x(0).shape(), back.y(0).shape(), back.g(0));
        let maps = self.resampling.maps(&from, &to, &self.target, &self.roi)?;
        if maps.is_empty() {
            return Ok(g);
        }
        let all = self.resampling.axes(from.len())?;
        // Where the axes depend on each other all of them stay, else those that change.
        let places: Vec<usize> = match self.resampling.aspect_ratio {
            AspectRatio::Stretch => maps.iter().map(|map| map.place).collect(),
            _ => (0..all.len()).collect(),
        };
        let lengths =
            places.iter().map(|&place| known(&from[all[place]], all[place])).collect::<Result<_>>()?;
        let target = match &self.target {
            Target::Scales(scales) => Target::Scales(places.iter().map(|&place| scales[place]).collect()),
            Target::Sizes(sizes) => {
                let size = |&place: &usize| known(&sizes[place], all[place]);
                Target::Sizes(places.iter().map(size).collect::<Result<_>>()?)
            }
        };
        let roi = match self.roi.is_empty() {
            true => vec![],
            false => (places.iter().map(|&place| self.roi[place]))
                .chain(places.iter().map(|&place| self.roi[all.len() + place]))
                .map(Real)
                .collect(),
        };
        let axes = Some(places.iter().map(|&place| all[place] as i64).collect());
        let resampling = Resampling { axes, extrapolation_value: Real(0.0), ..self.resampling.clone() };
        let op = ResizeTranspose { resampling, roi, target: ResizeTarget(target), lengths };
        Ok(g.builder().apply(op, &[g]))
    }
}

/// The input with some axes longer or shorter, by interpolation along one axis after the other. ONNX 10, 11, 13, 18, 19.
///
/// Inputs: `x`, optional `roi`, and `scales` (the output is the input's length times the scale, made whole downwards) or
/// `sizes`. Nothing flows to the latter three.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resize {
    /// How.
    pub resampling: Resampling,
}

impl Resize {
    fn request(&self, x: &Inputs<Fact>) -> Result<Request> {
        let target = match (scales_of(x.optional(2))?, sizes_of(x.optional(3))?) {
            (Some(target), None) | (None, Some(target)) => target,
            (None, None) => bail!(shape, "neither scales nor sizes are given"),
            (Some(_), Some(_)) => bail!(shape, "both scales and sizes are given"),
        };
        let roi = match self.resampling.coordinates {
            Coordinates::TfCropAndResize => match x.get(1)?.floats() {
                Some(roi) => roi,
                None => bail!(unsupported, "the roi is computed while the network runs"),
            },
            _ => vec![],
        };
        Ok(Request { resampling: self.resampling.clone(), target, roi })
    }
}

impl OpDef for Resize {
    fn name(&self) -> &str {
        "Resize"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        self.request(x)?.output(x.get(0)?)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        let facts: Vec<Option<Fact>> = x.0.iter().map(|x| x.map(Fact::of)).collect();
        let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        self.request(&Inputs(&facts))?.run(x.get(0)?, &shape)
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let facts: Vec<Option<Fact>> =
            (0..back.arity()).map(|index| back.optional_x(index).map(Var::fact)).collect();
        let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
        let request = self.request(&Inputs(&facts))?;
        Ok(back.only_first(request.transposed(back)?))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        self.resampling.write(node)?;
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        match self.resampling.interpolation {
            Interpolation::Nearest(Rounding::Simple) => lower_simple(node, &self.resampling, 2),
            _ => Ok(None),
        }
    }
}

impl Listed for Resize {
    const ONNX: &'static [&'static str] = &["Resize"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        if node.opset() >= 11 {
            return Ok(Self { resampling: Resampling::read(node)? });
        }
        node.insert_absent(1);
        Ok(Self { resampling: Resampling::read_old(node, Rounding::Simple)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        use Coordinates::*;
        let nearest = Interpolation::Nearest(Rounding::PreferFloor);
        let cubic = Interpolation::Cubic { a: Real(-0.75) };
        let x = || floats(-1.0, 1.0).input(&[2, 2, 4, 5]);
        let scales = |h: f32, w: f32| -> SampleInput { Tensor::vector([1.0, 1.0, h, w]).into() };
        let by_scales = |resampling: Resampling, h: f32, w: f32| {
            Sample::new(Resize { resampling }, [x(), SampleInput::Absent, scales(h, w)])
        };
        let over = |resampling: Resampling| Resampling { axes: Some(vec![3, 2]), ..resampling };
        let sizes = |w: i64, h: i64| -> SampleInput { Tensor::vector([w, h]).into() };
        let crop = Resampling {
            extrapolation_value: Real(3.0),
            ..over(Resampling::new(Interpolation::Linear, TfCropAndResize))
        };
        let keep = |aspect_ratio| Resampling { aspect_ratio, ..over(Resampling::new(nearest, HalfPixel)) };
        let roi: SampleInput = Tensor::vector([0.1f32, -0.2, 0.9, 0.8]).into();
        let smooth = |interpolation| Resampling {
            antialias: true,
            exclude_outside: true,
            ..Resampling::new(interpolation, HalfPixel)
        };
        let absent = || SampleInput::Absent;
        vec![
            by_scales(Resampling::new(nearest, Asymmetric), 2.0, 3.0),
            by_scales(Resampling::new(nearest, HalfPixel), 0.6, 1.4),
            by_scales(Resampling::new(Interpolation::Linear, HalfPixel), 2.0, 0.5),
            by_scales(Resampling::new(Interpolation::Linear, HalfPixelSymmetric), 0.6, 1.5),
            by_scales(Resampling::new(Interpolation::Linear, AlignCorners), 2.0, 1.0),
            by_scales(Resampling::new(cubic, PytorchHalfPixel), 0.25, 1.7),
            by_scales(smooth(Interpolation::Linear), 0.5, 0.4),
            by_scales(smooth(cubic), 0.75, 1.2),
            Sample::new(
                Resize { resampling: over(Resampling::new(cubic, HalfPixel)) },
                [x(), absent(), absent(), sizes(7, 3)],
            ),
            Sample::new(Resize { resampling: crop }, [x(), roi, absent(), sizes(6, 3)]),
            Sample::new(
                Resize { resampling: keep(AspectRatio::NotLarger) },
                [x(), absent(), absent(), sizes(8, 8)],
            ),
            Sample::new(
                Resize { resampling: keep(AspectRatio::NotSmaller) },
                [x(), absent(), absent(), sizes(8, 8)],
            ),
        ]
    }
}

/// [`Resize`] before there was one: `p = i / scale`, nearest or linear. ONNX 7, 9.
///
/// Inputs: `x`, `scales`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upsample {
    /// How.
    pub resampling: Resampling,
}

impl Upsample {
    fn request(&self, scales: &Fact) -> Result<Request> {
        match scales_of(Some(scales))? {
            Some(target) => Ok(Request { resampling: self.resampling.clone(), target, roi: vec![] }),
            None => bail!(shape, "the scales are empty"),
        }
    }
}

impl OpDef for Upsample {
    fn name(&self) -> &str {
        "Upsample"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        self.request(x.get(1)?)?.output(x.get(0)?)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        self.request(&Fact::of(x.get(1)?))?.run(x.get(0)?, &shape)
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let request = self.request(&back.x(1).fact())?;
        Ok(back.only_first(request.transposed(back)?))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        lower_simple(node, &self.resampling, 1)
    }
}

impl Listed for Upsample {
    const ONNX: &'static [&'static str] = &["Upsample"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        if let Some(scales) = node.floats("scales")? {
            node.set_input(1, Tensor::vector(scales.into_iter().map(|scale| scale as f32)));
        }
        Ok(Self { resampling: Resampling::read_old(node, Rounding::Simple)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let sample = |interpolation| {
            let resampling = Resampling::new(interpolation, Coordinates::Asymmetric);
            let scales: SampleInput = Tensor::vector([1.0f32, 1.0, 2.0, 1.5]).into();
            Sample::new(Upsample { resampling }, [floats(-1.0, 1.0).input(&[2, 2, 3, 4]), scales])
        };
        vec![sample(Interpolation::Nearest(Rounding::Simple)), sample(Interpolation::Linear)]
    }
}

/// What a transposed resize undoes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResizeTarget(Target<i64>);

/// The transpose of [`Resize`], without its extrapolation.
///
/// Private. Input: `g` in the shape of the resize's output; the output has the shape of its input.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResizeTranspose {
    /// How the resize computes its output; its axes are given.
    pub resampling: Resampling,
    /// Begins and ends of the part that is taken, for [`Coordinates::TfCropAndResize`].
    pub roi: Vec<Real>,
    /// The scales or sizes of the axes.
    pub target: ResizeTarget,
    /// The lengths of the axes of this op's output.
    pub lengths: Vec<i64>,
}

impl ResizeTranspose {
    fn target(&self) -> Target<Dim> {
        match &self.target.0 {
            Target::Scales(scales) => Target::Scales(scales.clone()),
            Target::Sizes(sizes) => Target::Sizes(sizes.iter().map(|&size| size.into()).collect()),
        }
    }
}

impl OpDef for ResizeTranspose {
    fn name(&self) -> &str {
        "ResizeTranspose"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let g = x.get(0)?;
        if !g.dtype.is_float() {
            bail!(shape, "expected floating point elements, found {g}");
        }
        let axes = self.resampling.axes(g.rank())?;
        if axes.len() != self.lengths.len() {
            bail!(shape, "expected a length for each of the axes {axes:?}, found {:?}", self.lengths);
        }
        let mut shape = g.shape.clone();
        for (&axis, &length) in axes.iter().zip(&self.lengths) {
            shape[axis] = length.into();
        }
        if self.resampling.output(&shape, &self.target())? != g.shape {
            bail!(
                shape,
                "a resize of {} does not have the shape of its cotangent {g}",
                display_shape(&shape)
            );
        }
        Ok(vec![Fact::new(g.dtype, shape)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let shape = output_shapes(self, x)?.remove(0);
        let dims = |shape: &[usize]| -> Vec<Dim> { shape.iter().map(|&length| length.into()).collect() };
        let roi: Vec<f64> = self.roi.iter().map(|bound| bound.0).collect();
        let g = x.get(0)?;
        let maps = self.resampling.maps(&dims(&shape), &dims(g.shape()), &self.target(), &roi)?;
        Ok(vec![crate::tensor::each_float!(g, g => {
            Tensor::from_shape_vec(&shape, self.resampling.run_transposed(elements(g).slice(), g.shape(), &maps))?
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let builder = back.builder();
        let floats =
            |values: &[Real]| builder.constant(Tensor::vector(values.iter().map(|value| value.0 as f32)));
        let roi = (!self.roi.is_empty()).then(|| floats(&self.roi));
        let (scales, sizes) = match &self.target.0 {
            Target::Scales(scales) => (Some(floats(scales)), None),
            Target::Sizes(sizes) => (None, Some(builder.integers(sizes.iter().copied()))),
        };
        let op = Resize { resampling: self.resampling.clone() };
        let x = match sizes {
            Some(_) => builder.apply_all(op, &[Some(back.g(0)), roi, scales, sizes]),
            None => builder.apply_all(op, &[Some(back.g(0)), roi, scales]),
        };
        Ok(back.only_first(x[0]))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        // A product with the matrix of each axis.
        let g = node.x(0);
        let roi: Vec<f64> = self.roi.iter().map(|bound| bound.0).collect();
        let maps = self.resampling.maps(&node.y(0).shape, &g.shape(), &self.target(), &roi)?;
        let mut y = g;
        for map in maps.iter().rev() {
            let mut matrix = ndarray::ArrayD::<f64>::zeros(vec![map.to, map.from]);
            for (row, taps) in self.resampling.rows(map).into_iter().enumerate() {
                for (element, weight) in taps {
                    matrix[[row, element]] += weight;
                }
            }
            let rank = y.rank();
            let constant =
                |matrix: ndarray::ArrayD<f64>| node.builder().constant(Tensor::from(matrix).cast(g.dtype()));
            y = if map.axis + 2 == rank {
                constant(matrix.reversed_axes().as_standard_layout().into_owned()).matmul(y)
            } else {
                let exchange: Vec<usize> = (0..rank)
                    .map(|axis| {
                        if axis == map.axis {
                            rank - 1
                        } else if axis == rank - 1 {
                            map.axis
                        } else {
                            axis
                        }
                    })
                    .collect();
                y.transpose(exchange.clone()).matmul(constant(matrix)).transpose(exchange)
            };
        }
        node.one(y)
    }
}

impl Listed for ResizeTranspose {
    const ONNX: &'static [&'static str] = &[];

    fn read(_: &mut NodeReader) -> Result<Self> {
        bail!(unsupported, "ResizeTranspose is not an ONNX op")
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let resampling = Resampling {
            axes: Some(vec![2]),
            ..Resampling::new(Interpolation::Linear, Coordinates::HalfPixel)
        };
        let op = ResizeTranspose {
            resampling,
            roi: vec![],
            target: ResizeTarget(Target::Scales(vec![Real(0.6f32.into())])),
            lengths: vec![5],
        };
        vec![Sample::new(op, [floats(-1.0, 1.0).input(&[2, 2, 3])])]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Coordinates::*;

    /// Resizes 0, 1, 4, 9, 16, 25 on the last axis.
    fn resize(resampling: Resampling, scale: f32) -> Vec<f64> {
        let x = Tensor::from_shape_vec(&[1, 1, 1, 6], vec![0.0f64, 1.0, 4.0, 9.0, 16.0, 25.0]).unwrap();
        let scales = Tensor::vector([1.0, 1.0, 1.0, scale]);
        let y = Resize { resampling }.run(&Inputs(&[Some(&x), None, Some(&scales)])).unwrap().remove(0);
        y.to_f64().into_raw_vec_and_offset().0
    }

    fn assert_near(found: &[f64], expected: &[f64]) {
        let near =
            found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(near, "{found:?}, expected {expected:?}");
    }

    /// Checked against ONNX Runtime 1.32 and the reference evaluator of ONNX 1.17.
    #[test]
    fn interpolations() {
        let cubic = |a| Interpolation::Cubic { a: Real(a) };
        let smooth =
            |interpolation| Resampling { antialias: true, ..Resampling::new(interpolation, HalfPixel) };
        assert_near(&resize(Resampling::new(cubic(-0.75), HalfPixel), 0.6), &[0.1481481, 4.0, 13.0740728]);
        let outside = Resampling { exclude_outside: true, ..Resampling::new(cubic(-0.5), HalfPixel) };
        assert_near(&resize(outside, 0.6), &[0.1724138, 4.0, 13.4444437]);
        assert_near(&resize(smooth(Interpolation::Linear), 0.5), &[0.875, 7.0, 19.625]);
        assert_near(&resize(smooth(cubic(-0.75)), 0.6), &[0.0433735, 3.8476188, 14.1132517]);
        let symmetric = Resampling::new(Interpolation::Linear, HalfPixelSymmetric);
        assert_near(&resize(symmetric, 0.6), &[0.8333333, 6.5, 17.5]);
        let corners = Resampling::new(Interpolation::Linear, AlignCorners);
        let expected = [
            0.0, 0.4545455, 0.9090909, 2.0909090, 3.4545455, 5.3636365, 7.6363635, 10.2727270, 13.4545450,
            16.8181820, 20.9090900, 25.0,
        ];
        assert_near(&resize(corners, 2.0), &expected);
    }

    /// Checked against ONNX Runtime 1.32 and the reference evaluator of ONNX 1.17.
    #[test]
    fn halves_go_where_the_nearest_mode_says() {
        let nearest = |rounding| resize(Resampling::new(Interpolation::Nearest(rounding), HalfPixel), 0.5);
        for rounding in [Rounding::PreferFloor, Rounding::Floor] {
            assert_eq!(nearest(rounding), [0.0, 4.0, 16.0]);
        }
        for rounding in [Rounding::PreferCeil, Rounding::Ceil] {
            assert_eq!(nearest(rounding), [1.0, 9.0, 25.0]);
        }
    }

    /// Checked against ONNX Runtime 1.32; in float64 the fifth element would be 4.
    #[test]
    fn the_nearest_element_is_chosen_in_float32() {
        let nearest = |rounding| Resampling::new(Interpolation::Nearest(rounding), Asymmetric);
        let expected = [0.0, 0.0, 1.0, 4.0, 9.0, 9.0, 16.0, 25.0];
        assert_eq!(resize(nearest(Rounding::Floor), 1.333_333_4), expected);
        assert_eq!(resize(nearest(Rounding::Simple), 0.6), [0.0, 4.0, 16.0]);
    }

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn what_lies_outside_a_crop_is_extrapolated() {
        let x = Tensor::from_shape_vec(&[1, 6], vec![0.0f64, 1.0, 4.0, 9.0, 16.0, 25.0]).unwrap();
        let (roi, sizes) = (Tensor::vector([0.0f32, 0.2, 1.0, 1.2]), Tensor::vector([1i64, 4]));
        let resampling = Resampling {
            extrapolation_value: Real(10.0),
            ..Resampling::new(Interpolation::Linear, TfCropAndResize)
        };
        let inputs = [Some(&x), Some(&roi), None, Some(&sizes)];
        let y = Resize { resampling }.run(&Inputs(&inputs)).unwrap().remove(0).to_f64();
        assert_near(y.as_slice().unwrap(), &[1.0, 7.3333333, 19.0, 10.0]);
    }

    #[test]
    fn absurd_scales_are_errors() {
        let x = Tensor::from_shape_vec(&[2], vec![0.0f64, 1.0]).unwrap();
        let resampling = Resampling::new(Interpolation::Linear, HalfPixel);
        for scale in [0.0f32, -1.0, f32::NAN, f32::INFINITY, 1e30, 1e-3] {
            let scales = Tensor::vector([scale]);
            let op = Resize { resampling: resampling.clone() };
            assert!(op.run(&Inputs(&[Some(&x), None, Some(&scales)])).is_err(), "{scale}");
        }
        let error = Resize { resampling }.run(&Inputs(&[Some(&x)])).unwrap_err();
        assert!(error.to_string().contains("neither scales nor sizes"), "{error}");
    }
}
