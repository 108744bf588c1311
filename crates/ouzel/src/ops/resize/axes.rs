//! Which axes a resize changes, and how long they become.

use super::{AspectRatio, Coordinates, Resampling};
use crate::dim::{Dim, Shape, display_shape};
use crate::error::{Result, bail};
use crate::op::{Real, resolve_axis};

/// What an output is to become: a factor or a length for each axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Target<L> {
    Scales(Vec<Real>),
    Sizes(Vec<L>),
}

/// One axis of a resize whose lengths are known.
#[derive(Clone, Debug)]
pub(super) struct AxisMap {
    /// Its place in the list of axes.
    pub(super) place: usize,
    pub(super) axis: usize,
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) scale: f64,
    /// The length of the output before it was made whole.
    pub(super) width: f64,
    pub(super) roi: (f64, f64),
}

impl Resampling {
    /// The axes in the order that scales, sizes and roi have.
    pub(super) fn axes(&self, rank: usize) -> Result<Vec<usize>> {
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
    pub(super) fn output(&self, x: &[Dim], target: &Target<Dim>) -> Result<Shape> {
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
    pub(super) fn maps(
        &self,
        x: &[Dim],
        y: &[Dim],
        target: &Target<Dim>,
        roi: &[f64],
    ) -> Result<Vec<AxisMap>> {
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
}

pub(super) fn known(length: &Dim, axis: usize) -> Result<i64> {
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
