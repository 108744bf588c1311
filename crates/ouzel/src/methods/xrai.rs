//! XRAI: regions of a picture, ranked by the integrated gradients that they hold.

use super::integrated_gradients::{Integral, IntegratedGradients, Quadrature, Steps, gradient};
use super::path::{self, BASELINE, Baseline, STEPS, TOLERANCE};
use crate::error::{Result, bail};
use crate::explanation::{
    Combine, Combined, Explainer, Method, Settings, Task, VariantExplainer, Varied, VariedSample,
};
use crate::grad_modifiers::GradModifier;
use crate::image::{Border, Filter, Neighbors, Size, gaussian_blur, resize_map};
use crate::methods::MethodEntry;
use crate::options::{GRAD_MODIFIER, MethodOption, OptionKind};
use ndarray::{Array2, Array3, ArrayView2, ArrayViewD, Axis};

const ALGORITHM: MethodOption = MethodOption::new(
    "algorithm",
    OptionKind::Name(|| vec!["full", "fast"]),
    "NAME",
    "full",
    "how regions are ranked: full takes in each turn what adds most, fast ranks all of them once",
);

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "xrai",
    about: "regions of the picture, ranked by the integrated gradients from black and from white that they hold",
    unit: "units of the target per pixel of the region",
    cost: "1 forward pass, and a forward and a backward pass for each step and baseline",
    source: "Kapishnikov et al. 2019, XRAI: better attributions through regions",
    criticism: "the borders that it shows are those of the segmentation, not of the network",
    options: &[
        MethodOption { default: "none", ..GRAD_MODIFIER },
        STEPS,
        MethodOption { default: "minimum,maximum", ..BASELINE },
        ALGORITHM,
        TOLERANCE,
    ],
    new: |options| {
        let default = Xrai::default();
        let pair = options.profile() == "pair";
        let algorithm = match options.text(ALGORITHM.name)?.map(str::to_ascii_lowercase).as_deref() {
            None | Some("full") => Ranking::Full,
            Some("fast") => Ranking::Fast,
            Some(other) => bail!(option, "algorithm '{other}': expected full or fast"),
        };
        Ok(Box::new(Xrai {
            algorithm,
            gradients: IntegratedGradients {
                steps: Steps::Fixed(options.count(STEPS.name, if pair { 100 } else { 50 })?),
                quadrature: if pair { Quadrature::BothEnds } else { Quadrature::Midpoint },
                baselines: Baseline::list(options, &default.gradients.baselines)?,
                tolerance: path::tolerance(options)?,
                settings: options.settings(GradModifier::None)?,
                ..default.gradients
            },
        }))
    },
};

/// Segments are looked for in the picture at this size, whatever its own is.
const SIDE: usize = 224;
/// The scales of the segmentation: the larger, the larger the segments. In the paper's units, which are for values 0…255.
const SCALES: [f64; 6] = [50.0, 100.0, 150.0, 250.0, 500.0, 1200.0];
const SCALE_UNIT: f64 = 255.0;
/// The blur before the segmentation, in pixels.
const SIGMA: f64 = 0.8;
/// Segments have at least so many pixels.
const LEAST_PIXELS: usize = 150;
/// By how many pixels segments are grown, so that they hold the edges around them.
const GROWTH: usize = 5;
/// Regions that would add fewer pixels than this are left out.
const LEAST_ADDED: usize = 50;

/// How regions are ranked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ranking {
    /// In each turn the segment whose new pixels have the highest mean attribution.
    #[default]
    Full,
    /// All segments once, by their mean attribution.
    Fast,
}

/// Regions of a picture, ranked by their integrated gradients.
///
/// **Formula.** The maximum over channels of the integrated gradients, averaged over the baselines, is averaged over segments
/// of six segmentations (Felzenszwalb and Huttenlocher 2004), grown by 5 pixels; segments are joined to a growing region in
/// the order of their mean, and every pixel gets the mean of the part with which it joined. What belongs to no segment gets
/// the mean of the rest.
///
/// **Shapes.** `[samples, height, width]`, without channels.
///
/// **Units.** Target units per pixel.
///
/// **Known criticism.** The borders are those of the segmentation.
///
/// **Source.** Kapishnikov et al. 2019, "XRAI: better attributions through regions".
///
/// **Errors.** Inputs that are no pictures, and inner tensors, have no such attribution.
///
/// ```
/// use ouzel::{Method, Xrai};
/// assert_eq!(Xrai::default().entry().name, "xrai");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Xrai {
    /// How regions are ranked.
    pub algorithm: Ranking,
    /// What is averaged over regions.
    pub gradients: IntegratedGradients,
}

impl Default for Xrai {
    fn default() -> Self {
        let baselines = vec![Baseline::Minimum, Baseline::Maximum];
        let mut gradients = IntegratedGradients { baselines, ..IntegratedGradients::default() };
        gradients.settings.grad_modifier = GradModifier::None;
        Self { algorithm: Ranking::Full, gradients }
    }
}

impl Method for Xrai {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn settings(&self) -> &Settings {
        &self.gradients.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.gradients.settings
    }

    fn prepare(&self, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        let integral = Integral::new(&self.gradients);
        let variants = integral.variants();
        let combine = Box::new(Regions { algorithm: self.algorithm, integral });
        VariantExplainer::boxed(task, &gradient(self.settings()), Varied::Explained, variants, combine)
    }
}

/// What is done with each sample.
#[derive(Debug)]
struct Regions {
    algorithm: Ranking,
    integral: Integral,
}

impl Combine for Regions {
    fn combine(&self, sample: &mut VariedSample<'_>) -> Result<Combined> {
        let axis = match sample.input_channel_axis {
            Some(axis) if !sample.is_inner() && sample.input.ndim() == 4 => axis - 1,
            _ => bail!(
                option,
                "xrai explains pictures, inputs with channels, height and width, and found the shape {:?}",
                sample.value.shape()
            ),
        };
        let combined = self.integral.combine(sample)?;
        let mut maps = Vec::new();
        for (attribution, picture) in combined.raw.outer_iter().zip(sample.input.outer_iter()) {
            let reduced = attribution.fold_axis(Axis(axis), f64::NEG_INFINITY, |a, b| a.max(*b));
            let Ok(reduced) = reduced.into_dimensionality::<ndarray::Ix2>() else {
                bail!(internal, "a map has other axes than height and width");
            };
            let segments = segments_of(&picture, axis)?;
            maps.push(xrai_regions(reduced.view(), &segments, self.algorithm)?.into_dyn());
        }
        let views: Vec<_> = maps.iter().map(|map| map.view()).collect();
        let raw = match ndarray::stack(Axis(0), &views) {
            Ok(raw) => raw,
            Err(error) => bail!(internal, "maps do not fit together: {error}"),
        };
        Ok(Combined { raw, has_channels: false, ..combined })
    }
}

/// The grown segments of a picture at all scales.
fn segments_of(picture: &ArrayViewD<'_, f64>, channel_axis: usize) -> Result<Vec<Array2<bool>>> {
    let low = picture.iter().copied().fold(f64::INFINITY, f64::min);
    let high = picture.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = if high > low { high - low } else { 1.0 };
    let channels: Vec<Array2<f32>> = picture
        .axis_iter(Axis(channel_axis))
        .map(|channel| {
            let channel = channel.mapv(|value| (2.0 * (value - low) / range - 1.0) as f32);
            let Ok(channel) = channel.into_dimensionality::<ndarray::Ix2>() else {
                bail!(internal, "a channel has other axes than height and width");
            };
            resize_map(channel.view(), Size::new(SIDE, SIDE), Filter::Bicubic)
        })
        .collect::<Result<_>>()?;
    let large = Array3::from_shape_fn((SIDE, SIDE, channels.len()), |(row, column, channel)| {
        f64::from(channels[channel][[row, column]])
    });
    let Ok(smooth) = gaussian_blur(large.into_dyn(), &[0, 1], SIGMA, Border::Mirror).into_dimensionality()
    else {
        bail!(internal, "blur changes no axes");
    };
    let neighbors = Neighbors::new(smooth.view());
    let sides: Vec<usize> =
        (0..3).filter(|&axis| axis != channel_axis).map(|axis| picture.shape()[axis]).collect();
    let (height, width) = (sides[0], sides[1]);
    let mut segments = Vec::new();
    for scale in SCALES {
        let numbers = neighbors.segments(scale / SCALE_UNIT, LEAST_PIXELS);
        let there = |place: usize, length: usize| (2 * place + 1) * SIDE / (2 * length);
        let small = Array2::from_shape_fn((height, width), |(row, column)| {
            numbers[[there(row, height), there(column, width)]]
        });
        let count = numbers.iter().max().map_or(0, |last| last + 1);
        for number in 0..count {
            let segment = small.mapv(|other| other == number);
            if segment.iter().any(|&is_inside| is_inside) {
                segments.push(grown(&segment));
            }
        }
    }
    Ok(segments)
}

/// A segment with all pixels that are near it.
fn grown(segment: &Array2<bool>) -> Array2<bool> {
    let (height, width) = segment.dim();
    let mut grown = Array2::from_elem((height, width), false);
    let reach = GROWTH as isize;
    for (row, pixels) in segment.outer_iter().enumerate() {
        if pixels.iter().all(|&is_inside| !is_inside) {
            continue;
        }
        for down in -reach..=reach {
            let there = row as isize + down;
            if !(0..height as isize).contains(&there) {
                continue;
            }
            let across = f64::from((reach * reach - down * down) as i32).sqrt() as usize;
            let mut target = grown.row_mut(there as usize);
            let mut filled = 0;
            for (column, _) in pixels.iter().enumerate().filter(|(_, is_inside)| **is_inside) {
                let end = (column + across + 1).min(width);
                for place in filled.max(column.saturating_sub(across))..end {
                    target[place] = true;
                }
                filled = filled.max(end);
            }
        }
    }
    grown
}

/// The mean attribution of the part of a ranked segment with which each pixel is taken in.
///
/// **Formula.** Segments are taken in the order of the mean attribution of the pixels that are new with them ([`Ranking::Full`]),
/// or of all their pixels ([`Ranking::Fast`]); those that bring fewer than 50 new pixels are left out. A pixel has the mean of
/// those that it came with; pixels that are left over have their own mean.
///
/// **Shapes.** `[height, width]` for the attribution, each segment and the result.
///
/// # Errors
/// If the shapes differ.
pub fn xrai_regions(
    attribution: ArrayView2<'_, f64>,
    segments: &[Array2<bool>],
    ranking: Ranking,
) -> Result<Array2<f64>> {
    if let Some(other) = segments.iter().find(|segment| segment.dim() != attribution.dim()) {
        bail!(
            shape,
            "the attribution has the shape {:?}, a segment {:?}",
            attribution.shape(),
            other.shape()
        );
    }
    let values: Vec<f64> = attribution.iter().copied().collect();
    let mut open: Vec<Vec<u32>> = segments
        .iter()
        .map(|segment| (0u32..).zip(segment).filter(|(_, is_inside)| **is_inside).map(|(at, _)| at).collect())
        .collect();
    let mean = |pixels: &[u32]| {
        pixels.iter().map(|&pixel| values[pixel as usize]).sum::<f64>() / pixels.len() as f64
    };
    let mut map: Vec<Option<f64>> = vec![None; values.len()];
    let take = |map: &mut Vec<Option<f64>>, pixels: &[u32]| {
        let mean = mean(pixels);
        pixels.iter().for_each(|&pixel| map[pixel as usize] = Some(mean));
    };
    match ranking {
        Ranking::Full => loop {
            for pixels in &mut open {
                pixels.retain(|&pixel| map[pixel as usize].is_none());
            }
            open.retain(|pixels| pixels.len() >= LEAST_ADDED);
            let mut best: Option<(usize, f64)> = None;
            for (number, pixels) in open.iter().enumerate() {
                let mean = mean(pixels);
                if best.is_none_or(|(_, most)| mean > most) {
                    best = Some((number, mean));
                }
            }
            let Some((number, _)) = best else { break };
            let pixels = open.remove(number);
            take(&mut map, &pixels);
        },
        Ranking::Fast => {
            open.retain(|pixels| !pixels.is_empty());
            let mut ranked: Vec<(f64, Vec<u32>)> =
                open.into_iter().map(|pixels| (mean(&pixels), pixels)).collect();
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
            for (_, mut pixels) in ranked {
                pixels.retain(|&pixel| map[pixel as usize].is_none());
                if pixels.len() >= LEAST_ADDED {
                    take(&mut map, &pixels);
                }
            }
        }
    }
    let rest: Vec<u32> = (0u32..).zip(&map).filter(|(_, value)| value.is_none()).map(|(at, _)| at).collect();
    if !rest.is_empty() {
        take(&mut map, &rest);
    }
    let values = map.into_iter().map(|value| value.unwrap_or_default()).collect();
    Ok(Array2::from_shape_vec(attribution.dim(), values).expect("invariant: one value for each pixel"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_have_the_mean_of_the_part_they_came_with() {
        let size = (20, 20);
        let attribution = Array2::from_shape_fn(size, |(row, _)| row as f64);
        let rows = |from: usize, to: usize| Array2::from_shape_fn(size, |(row, _)| (from..to).contains(&row));
        let segments = [rows(0, 15), rows(10, 18), rows(16, 18), rows(18, 20)];
        // Rows 18 and 19 have 40 pixels and are left out, and so are 16 and 17 by themselves.
        for ranking in [Ranking::Full, Ranking::Fast] {
            let map = xrai_regions(attribution.view(), &segments, ranking).unwrap();
            let expected = Array2::from_shape_fn(size, |(row, _)| match row {
                0..10 => 4.5,
                10..18 => 13.5,
                _ => 18.5,
            });
            assert_eq!(map, expected, "{ranking:?}");
        }
    }

    #[test]
    fn growth_is_a_disk() {
        let mut segment = Array2::from_elem((20, 30), false);
        segment[[8, 3]] = true;
        segment[[8, 4]] = true;
        let expected = Array2::from_shape_fn((20, 30), |(row, column)| {
            let near = |at: isize| {
                (row as isize - 8).pow(2) + (column as isize - at).pow(2) <= (GROWTH * GROWTH) as isize
            };
            near(3) || near(4)
        });
        assert_eq!(grown(&segment), expected);
    }
}
