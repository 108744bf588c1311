//! How a resize computes its output, as the attributes of an ONNX node say it.

use crate::error::{Result, bail};
use crate::onnx::{NodeReader, NodeWriter};
use crate::op::Real;

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
    pub(super) fn read_old(node: &mut NodeReader, rounding: Rounding) -> Result<Self> {
        let interpolation = match node.string_or("mode", "nearest")?.as_str() {
            "nearest" => Interpolation::Nearest(rounding),
            "linear" | "bilinear" => Interpolation::Linear,
            other => bail!(unsupported, "attribute 'mode': expected nearest or linear, found '{other}'"),
        };
        Ok(Self::new(interpolation, Coordinates::Asymmetric))
    }

    pub(super) fn read(node: &mut NodeReader) -> Result<Self> {
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

    pub(super) fn write(&self, node: &mut NodeWriter) -> Result<()> {
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
}
