//! Which positions of a layer count: the pixels of a class, a box, one of many detections.

use super::TargetAxes;
use crate::builder::Var;
use crate::error::{Error, Result, bail};
use crate::tensor::Tensor;
use ndarray::{ArrayD, Axis};
use std::fmt;
use std::str::FromStr;

/// The positions of a layer over which a filter's activation is averaged.
///
/// Positions are all axes but those of samples and channels: rows and columns of a segmentation, the boxes of a
/// detector, the steps of a sequence.
///
/// ```
/// use ouzel::Region;
/// use ouzel::losses::ActivationMaximization;
/// // The class 3, where the network sees it.
/// let pixels = ActivationMaximization::new("segmentation", 3).region(Region::Predicted);
/// // The class 3 of the seventh of many boxes `[samples, boxes, classes]`.
/// let mut box_score = ActivationMaximization::new("scores", 3).region("7".parse()?);
/// box_score.channel_axis = -1;
/// # let _ = pixels;
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Region {
    /// All positions.
    #[default]
    All,
    /// For each axis of positions, in their order, the places from the first number to before the second.
    Ranges(Vec<(usize, usize)>),
    /// The positions at which this array, of the shape of the axes of positions, is not 0.
    Mask(Tensor),
    /// For each filter the positions at which it is the highest of all; 0 if there are none.
    Predicted,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Predicted => f.write_str("predicted"),
            Self::Mask(mask) => write!(f, "mask {:?}", mask.shape()),
            Self::Ranges(ranges) => {
                let ranges: Vec<String> =
                    ranges.iter().map(|(start, end)| format!("{start}:{end}")).collect();
                f.write_str(&ranges.join(","))
            }
        }
    }
}

impl FromStr for Region {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.trim() {
            "all" => return Ok(Self::All),
            "predicted" => return Ok(Self::Predicted),
            _ => {}
        }
        let range = |text: &str| -> Option<(usize, usize)> {
            match text.split_once(':') {
                Some((start, end)) => Some((start.trim().parse().ok()?, end.trim().parse().ok()?)),
                None => text.trim().parse().ok().map(|place: usize| (place, place.saturating_add(1))),
            }
        };
        match text.split(',').map(range).collect::<Option<Vec<_>>>() {
            Some(ranges) if ranges.iter().all(|(start, end)| start < end) => Ok(Self::Ranges(ranges)),
            _ => bail!(
                option,
                "region '{text}': expected all, predicted, or a place or range for each axis of positions, such as \
                 40:80,10:50"
            ),
        }
    }
}

impl Region {
    /// True if every position counts.
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }

    /// The ranges, one for each axis of positions, if they lie within the layer.
    fn ranges_of(&self, ranges: &[(usize, usize)], lengths: &[Option<usize>]) -> Result<()> {
        if ranges.len() != lengths.len() {
            bail!(
                target,
                "region {self}: expected {} ranges, for as many axes of positions, found {}",
                lengths.len(),
                ranges.len()
            );
        }
        for ((_, end), length) in ranges.iter().zip(lengths) {
            if let Some(length) = length.filter(|length| end > length) {
                bail!(
                    target,
                    "region {self} is out of range: the axis has {length} places, 0 to {}",
                    length - 1
                );
            }
        }
        Ok(())
    }

    /// The mask with axes of length 1 for samples and channels, and how many positions it has.
    fn mask_of(
        &self,
        mask: &Tensor,
        axes: &TargetAxes,
        lengths: &[Option<usize>],
    ) -> Result<(ArrayD<bool>, f64)> {
        let mask = mask.to_f64().mapv(|value| value != 0.0);
        let fits = mask.ndim() == lengths.len()
            && mask.shape().iter().zip(lengths).all(|(found, length)| length.is_none_or(|it| it == *found));
        if !fits {
            let expected: Vec<String> =
                lengths.iter().map(|length| length.map_or("?".into(), |it| it.to_string())).collect();
            bail!(
                target,
                "the mask of the region: expected the shape of the positions, [{}], found {:?}",
                expected.join(", "),
                mask.shape()
            );
        }
        let count = mask.iter().filter(|is_in| **is_in).count();
        if count == 0 {
            bail!(target, "the mask of the region is empty");
        }
        let mut spread = mask;
        for axis in axes.batch.into_iter().chain(axes.channel).collect::<std::collections::BTreeSet<_>>() {
            spread = spread.insert_axis(Axis(axis));
        }
        Ok((spread, count as f64))
    }

    fn check_positions(&self, axes: &TargetAxes) -> Result<()> {
        if axes.positions.is_empty() || (*self == Self::Predicted && axes.channel.is_none()) {
            bail!(target, "region {self}: the layer has no positions, or no channels to compare");
        }
        Ok(())
    }

    /// The mean over the region of `chosen`, which are some of the channels of `y`. The axes of positions are kept with
    /// length 1.
    pub(crate) fn mean<'b>(&self, axes: &TargetAxes, y: Var<'b>, chosen: Var<'b>) -> Result<Var<'b>> {
        let positions = || axes.positions.clone();
        if self.is_all() {
            return Ok(chosen.reduce_mean(positions(), true));
        }
        self.check_positions(axes)?;
        let shape = y.shape();
        let known = |&axis: &usize| shape[axis].known().and_then(|length| usize::try_from(length).ok());
        let lengths: Vec<Option<usize>> = axes.positions.iter().map(known).collect();
        Ok(match self {
            Self::All => chosen,
            Self::Ranges(ranges) => {
                self.ranges_of(ranges, &lengths)?;
                let within = axes
                    .positions
                    .iter()
                    .zip(ranges)
                    .fold(chosen, |y, (&axis, &(start, end))| y.slice(axis, start as i64, end as i64));
                within.reduce_mean(positions(), true)
            }
            Self::Mask(mask) => {
                let (mask, count) = self.mask_of(mask, axes, &lengths)?;
                chosen.select_where(y.builder().constant(mask)).reduce_sum(positions(), true) / count
            }
            Self::Predicted => {
                let highest = y.reduce_max(axes.channel, true);
                let is_highest = chosen.greater_or_equal(highest);
                let count = is_highest.cast(y.dtype()).reduce_sum(positions(), true).maximum(1.0);
                chosen.select_where(is_highest).reduce_sum(positions(), true) / count
            }
        })
    }

    /// The same of an array, for all channels.
    ///
    /// # Errors
    /// If the layer has no such positions.
    pub(crate) fn mean_of(&self, axes: &TargetAxes, y: ArrayD<f64>) -> Result<ArrayD<f64>> {
        if !self.is_all() {
            self.check_positions(axes)?;
        }
        let lengths: Vec<Option<usize>> =
            axes.positions.iter().map(|&axis| Some(y.len_of(Axis(axis)))).collect();
        let sum = |y: ArrayD<f64>| {
            axes.positions.iter().fold(y, |y, &axis| y.sum_axis(Axis(axis)).insert_axis(Axis(axis)))
        };
        let shape = y.raw_dim();
        let spread = |mask: ArrayD<bool>| mask.broadcast(shape.clone()).map(|mask| mask.to_owned());
        let (is_in, count) = match self {
            Self::All => {
                let count: usize = lengths.iter().flatten().product();
                return Ok(sum(y) / count as f64);
            }
            Self::Ranges(ranges) => {
                self.ranges_of(ranges, &lengths)?;
                let mut within = y;
                for (&axis, &(start, end)) in axes.positions.iter().zip(ranges) {
                    within.slice_axis_inplace(Axis(axis), (start..end).into());
                }
                let count: usize = ranges.iter().map(|(start, end)| end - start).product();
                return Ok(sum(within) / count as f64);
            }
            Self::Mask(mask) => {
                let (mask, count) = self.mask_of(mask, axes, &lengths)?;
                (spread(mask), Some(count))
            }
            Self::Predicted => {
                let Some(channel) = axes.channel else { bail!(target, "the layer has no channels") };
                let highest = y
                    .fold_axis(Axis(channel), f64::NEG_INFINITY, |&a, &b| a.max(b))
                    .insert_axis(Axis(channel));
                let highest = highest.broadcast(shape.clone()).map(|highest| highest.to_owned());
                (highest.map(|highest| ndarray::Zip::from(&y).and(&highest).map_collect(|a, b| a >= b)), None)
            }
        };
        let Some(is_in) = is_in else { bail!(internal, "a region has another shape than its layer") };
        let inside_count = sum(is_in.mapv(|is_in| f64::from(u8::from(is_in))));
        let counts = inside_count.mapv(|found| count.unwrap_or(found).max(1.0));
        let inside = ndarray::Zip::from(&y).and(&is_in).map_collect(|&y, &is_in| if is_in { y } else { 0.0 });
        Ok(sum(inside) / counts)
    }
}
