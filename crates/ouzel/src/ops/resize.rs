//! Resizing: interpolation along each axis by a sparse matrix, and the transposed matrices for its gradient.

mod attributes;
mod axes;
mod sampling;
mod transpose;

pub use attributes::{AspectRatio, Coordinates, Interpolation, Resampling, Rounding};
use axes::{Target, known};
pub use transpose::{ResizeTarget, ResizeTranspose};

use super::convolution::elements;
use super::window::output_shapes;
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::Dim;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, SampleInput, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef, Real};
use crate::ops::layout::Identity;
use crate::tensor::{DType, Tensor};

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
