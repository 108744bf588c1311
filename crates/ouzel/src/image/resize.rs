//! Resampling of heatmaps and pictures: one place that decides what a pixel of another size is.

use super::preprocess::{Region, Size};
use crate::error::{Error, Result, bail};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{F32, F32x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};
use ndarray::{Array, Array2, Array3, ArrayView2, ArrayView3, ArrayViewMut, Dimension, Slice};
use std::ops::Range;

use super::names::named;

named! {
    /// How values between pixels are found.
    ///
    /// Pixel centers lie at half-integers, as in Pillow and torchvision. When shrinking, the filter is widened by the
    /// scale (antialiasing), so that every source pixel counts.
    pub enum Filter: "filter" {
        /// The pixel that covers the position.
        Nearest = "nearest",
        /// Linear between centers.
        Bilinear = "bilinear",
        /// Catmull-Rom cubic, `a = -1/2`, as Pillow's `BICUBIC`.
        Bicubic = "bicubic",
    }
}

impl Filter {
    fn algorithm(self) -> ResizeAlg {
        match self {
            Self::Nearest => ResizeAlg::Nearest,
            Self::Bilinear => ResizeAlg::Convolution(FilterType::Bilinear),
            Self::Bicubic => ResizeAlg::Convolution(FilterType::CatmullRom),
        }
    }
}

/// A heatmap `[h, w]` at another size; the result stays within the range of the values given.
///
/// # Errors
/// If either size has no pixels, or the new one is too large.
///
/// ```
/// use ouzel::image::{Filter, Size, resize_map};
/// let map = ndarray::array![[0.0, 1.0]];
/// assert_eq!(resize_map(map.view(), Size::new(1, 4), Filter::Bilinear)?, ndarray::array![[0.0, 0.25, 0.75, 1.0]]);
/// # Ok::<(), ouzel::Error>(())
/// ```
pub fn resize_map(map: ArrayView2<'_, f32>, size: Size, filter: Filter) -> Result<Array2<f32>> {
    resize_map_region(map, Region::whole(map.dim()), size, filter)
}

/// An 8-bit RGB picture `[h, w, 3]` at another size, rounded.
///
/// # Errors
/// If either size has no pixels, the new one is too large, or the last axis is not 3.
pub fn resize_rgb8(rgb: ArrayView3<'_, u8>, size: Size, filter: Filter) -> Result<Array3<u8>> {
    let (height, width, channels) = rgb.dim();
    check_channels(height, width, channels)?;
    size.check()?;
    if (height, width) == (size.height, size.width) {
        return Ok(rgb.as_standard_layout().into_owned());
    }
    let resized =
        resize_rgb_region(rgb.mapv(f32::from).view(), Region::whole((height, width)), size, filter)?;
    Ok(resized.mapv(|value| value.round() as u8))
}

pub(super) fn resize_map_region(
    map: ArrayView2<'_, f32>,
    region: Region,
    size: Size,
    filter: Filter,
) -> Result<Array2<f32>> {
    let (low, high) =
        map.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)));
    let pixels: Vec<F32> = map.iter().map(|&value| F32::new(value)).collect();
    let resized = resize(&pixels, map.dim(), region, size, filter)?;
    let values = resized.iter().map(|pixel| pixel.0.max(low).min(high)).collect();
    Ok(Array2::from_shape_vec((size.height, size.width), values)
        .expect("invariant: one value for each pixel"))
}

/// The part `region` of RGB values 0..=255 as a picture of `size`, unrounded.
pub(super) fn resize_rgb_region(
    rgb: ArrayView3<'_, f32>,
    region: Region,
    size: Size,
    filter: Filter,
) -> Result<Array3<f32>> {
    let (height, width, channels) = rgb.dim();
    check_channels(height, width, channels)?;
    let rgb = rgb.as_standard_layout();
    let values = rgb.as_slice().expect("invariant: standard layout is contiguous");
    let pixels: Vec<F32x3> = values.chunks_exact(3).map(|c| F32x3::new([c[0], c[1], c[2]])).collect();
    let resized = resize(&pixels, (height, width), region, size, filter)?;
    let values = resized.iter().flat_map(|pixel| pixel.0).map(|value| value.clamp(0.0, 255.0)).collect();
    Ok(Array3::from_shape_vec((size.height, size.width, 3), values)
        .expect("invariant: three values for each pixel"))
}

fn check_channels(height: usize, width: usize, channels: usize) -> Result<()> {
    if channels != 3 {
        bail!(shape, "expected a picture of shape [height, width, 3], found [{height}, {width}, {channels}]");
    }
    Ok(())
}

fn resize<P: PixelTrait>(
    pixels: &[P],
    (height, width): (usize, usize),
    region: Region,
    size: Size,
    filter: Filter,
) -> Result<Vec<P>> {
    size.check()?;
    if height == 0 || width == 0 {
        bail!(shape, "cannot resize a picture of {height} x {width} pixels: it is empty");
    }
    if region == Region::whole((height, width)) && (height, width) == (size.height, size.width) {
        return Ok(pixels.to_vec());
    }
    let failed = |error: &dyn std::fmt::Display| {
        Error::shape(format!("cannot resize a picture of {height} x {width} pixels to {size}: {error}"))
    };
    let side = |length: usize| u32::try_from(length).map_err(|error| failed(&error));
    let source = TypedImageRef::new(side(width)?, side(height)?, pixels).map_err(|error| failed(&error))?;
    let mut resized = TypedImage::<P>::new(side(size.width)?, side(size.height)?);
    // Rounding may put an edge of the region a hair outside of the picture.
    let (left, top) = (region.left.max(0.0), region.top.max(0.0));
    let options = ResizeOptions::new().use_alpha(false).resize_alg(filter.algorithm()).crop(
        left,
        top,
        region.width.min(width as f64 - left),
        region.height.min(height as f64 - top),
    );
    Resizer::new().resize_typed(&source, &mut resized, &options).map_err(|error| failed(&error))?;
    Ok(resized.pixels().to_vec())
}

/// The part of an array with the given rows and columns, to be written.
pub(super) fn part_mut<T, D: Dimension>(
    array: &mut Array<T, D>,
    rows: Range<usize>,
    columns: Range<usize>,
) -> ArrayViewMut<'_, T, D> {
    array.slice_each_axis_mut(|description| match description.axis.index() {
        0 => Slice::from(rows.clone()),
        1 => Slice::from(columns.clone()),
        _ => Slice::from(..),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn sample() -> Array2<f32> {
        Array2::from_shape_fn((5, 7), |(r, c)| ((r * 37 + c * 23 + (r * c * 11) % 19) % 256) as f32)
    }

    fn assert_close(found: &Array2<f32>, expected: &Array2<f32>) {
        assert_eq!(found.dim(), expected.dim());
        for (found_value, expected_value) in found.iter().zip(expected) {
            assert!((found_value - expected_value).abs() < 1e-3, "found {found:?}, expected {expected:?}");
        }
    }

    /// Reference: `PIL.Image.fromarray(sample, mode='F').resize(size, filter, box)`, Pillow 13.0.
    #[test]
    fn equals_pillow() {
        let shrunk = array![
            [29.98639, 66.98857, 110.49143, 147.07483],
            [89.42857, 128.92444, 175.92, 184.37038],
            [148.7415, 190.8, 204.27429, 73.77551]
        ];
        assert_close(&resize_map(sample().view(), Size::new(3, 4), Filter::Bilinear).unwrap(), &shrunk);
        let region = Region { top: 0.0, left: 1.0, height: 5.0, width: 5.0 };
        let part = array![
            [47.44643, 89.04762, 130.19643],
            [108.61111, 152.0, 189.86111],
            [169.625, 212.53969, 147.78572]
        ];
        assert_close(
            &resize_map_region(sample().view(), region, Size::new(3, 3), Filter::Bilinear).unwrap(),
            &part,
        );
        let region = Region { top: 0.75, left: 0.0, height: 3.5, width: 7.0 };
        let part =
            array![[54.97334, 93.5408, 138.8416, 176.90096], [124.49905, 164.5952, 200.0224, 128.39429]];
        assert_close(
            &resize_map_region(sample().view(), region, Size::new(2, 4), Filter::Bilinear).unwrap(),
            &part,
        );
        let grown = resize_map(sample().view(), Size::new(8, 9), Filter::Bicubic).unwrap();
        let row = array![[
            84.20525, 103.28534, 125.39848, 143.52402, 161.36218, 185.04948, 215.37234, 208.41586, 166.95842
        ]];
        assert_close(&grown.row(4).to_owned().insert_axis(ndarray::Axis(0)), &row);
        assert_eq!(grown[[0, 0]], 0.0, "Pillow gives -3.71; a heatmap stays within its range");
    }

    #[test]
    fn colors_are_resized_alike() {
        let gray = sample();
        let rgb = Array3::from_shape_fn((5, 7, 3), |(r, c, channel)| gray[[r, c]] / (channel + 1) as f32);
        let size = Size::new(3, 4);
        let resized = resize_rgb_region(rgb.view(), Region::whole((5, 7)), size, Filter::Bilinear).unwrap();
        let map = resize_map(gray.view(), size, Filter::Bilinear).unwrap();
        for ((row, column, channel), value) in resized.indexed_iter() {
            assert!((value - map[[row, column]] / (channel + 1) as f32).abs() < 1e-3);
        }
    }

    #[test]
    fn nearest_repeats_pixels() {
        let rgb = Array3::from_shape_fn((2, 2, 3), |(r, c, channel)| (r * 100 + c * 10 + channel) as u8);
        let grown = resize_rgb8(rgb.view(), Size::new(6, 6), Filter::Nearest).unwrap();
        assert!(grown.indexed_iter().all(|((r, c, channel), &value)| value == rgb[[r / 3, c / 3, channel]]));
    }

    #[test]
    fn empty_and_absurd_sizes_are_errors() {
        let map = array![[1.0]];
        assert!(resize_map(map.view(), Size::new(0, 3), Filter::Nearest).is_err());
        assert!(resize_map(map.view(), Size::new(1 << 20, 1 << 20), Filter::Nearest).is_err());
        assert!(resize_map(Array2::zeros((0, 3)).view(), Size::new(2, 2), Filter::Bilinear).is_err());
        assert_eq!(
            resize_map(map.view(), Size::new(2, 2), Filter::Bicubic).unwrap(),
            Array2::<f32>::ones((2, 2))
        );
    }
}
