//! Heatmaps as pictures: alone, over the picture they explain, or beside it.

use super::colormap::Colormap;
use super::grid::{Grid, Tile};
use super::names::named;
use super::preprocess::Size;
use super::resize::{Filter, resize_map, resize_rgb8};
use crate::error::{Result, bail};
use ndarray::{Array2, Array3, ArrayView2, ArrayView3, Zip};

named! {
    /// What is shown.
    pub enum View: "view" {
        /// The heatmap over the picture.
        Overlay = "overlay",
        /// The heatmap alone.
        Heatmap = "heatmap",
        /// Picture, heatmap and overlay in a row.
        SideBySide = "side_by_side",
    }
}

named! {
    /// How opaque the heatmap is in an overlay.
    pub enum Blend: "blend" {
        /// More where the heatmap is stronger: the picture stays visible where the network does not look.
        Weighted = "weighted",
        /// The same everywhere: `alpha · heatmap + (1 - alpha) · picture`.
        Constant = "constant",
    }
}

/// How heatmaps become pictures.
///
/// Heatmaps are `[h, w]` with values 0..=1, or -1..=1 if the colormap is diverging; pictures are 8-bit RGB `[h, w, 3]`.
///
/// **Conventions**: a heatmap spans the whole picture, whatever its own size. Small pictures are enlarged by a whole
/// factor until the longer side is [`Self::min_side`], large ones shrunk to [`Self::max_side`]. Pictures of less than
/// 64 pixels keep their pixels as squares; heatmaps and larger pictures are interpolated (bicubic).
///
/// ```
/// use ouzel::image::Render;
/// let picture = ndarray::Array3::from_elem((20, 30, 3), 128);
/// let heatmap = ndarray::Array2::from_shape_fn((10, 15), |(row, _)| row as f32 / 9.0);
/// let overlay = Render::default().overlay(picture.view(), heatmap.view())?;
/// assert_eq!(overlay.dim(), (260, 390, 3));
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Render {
    /// Colors; default `turbo`.
    pub colormap: Colormap,
    /// Opacity of the heatmap where it is strongest, 0..=1; default 0.75.
    pub alpha: f32,
    /// Opacity elsewhere; default [`Blend::Weighted`].
    pub blend: Blend,
    /// Pictures whose longer side is smaller are enlarged; default 384, 0 for never.
    pub min_side: usize,
    /// Pictures whose longer side is larger are shrunk; default 1280.
    pub max_side: usize,
}

impl Default for Render {
    fn default() -> Self {
        Self {
            colormap: "turbo".parse().expect("invariant: turbo is a colormap"),
            alpha: 0.75,
            blend: Blend::Weighted,
            min_side: 384,
            max_side: 1280,
        }
    }
}

impl Render {
    /// Sets [`Self::colormap`].
    pub fn colormap(self, colormap: Colormap) -> Self {
        Self { colormap, ..self }
    }

    /// Sets [`Self::alpha`].
    pub fn alpha(self, alpha: f32) -> Self {
        Self { alpha, ..self }
    }

    /// Sets [`Self::blend`].
    pub fn blend(self, blend: Blend) -> Self {
        Self { blend, ..self }
    }

    /// Sets [`Self::min_side`].
    pub fn min_side(self, min_side: usize) -> Self {
        Self { min_side, ..self }
    }

    /// Sets [`Self::max_side`].
    pub fn max_side(self, max_side: usize) -> Self {
        Self { max_side, ..self }
    }

    /// The view named by `view`.
    ///
    /// # Errors
    /// As [`Self::overlay`].
    pub fn view(
        &self,
        view: View,
        picture: ArrayView3<'_, u8>,
        heatmap: ArrayView2<'_, f32>,
    ) -> Result<Array3<u8>> {
        match view {
            View::Overlay => self.overlay(picture, heatmap),
            View::Heatmap => {
                let (height, width, _) = picture.dim();
                Ok(self.colormap.apply(self.spread(heatmap, self.display_size(height, width)?)?.view()))
            }
            View::SideBySide => self.side_by_side(picture, heatmap),
        }
    }

    /// The heatmap alone, in color.
    ///
    /// # Errors
    /// If the heatmap is empty.
    pub fn heatmap(&self, heatmap: ArrayView2<'_, f32>) -> Result<Array3<u8>> {
        let (height, width) = heatmap.dim();
        Ok(self.colormap.apply(self.spread(heatmap, self.display_size(height, width)?)?.view()))
    }

    /// The picture under its heatmap.
    ///
    /// **Formula**: `o·color + (1 - o)·picture` with `o = alpha` for [`Blend::Constant`], and
    /// `o = alpha · (1 - (1 - |v|)²)` for [`Blend::Weighted`], where the picture is also drained of half its color.
    ///
    /// # Errors
    /// If picture or heatmap are empty or no picture, or alpha is not in 0..=1.
    pub fn overlay(&self, picture: ArrayView3<'_, u8>, heatmap: ArrayView2<'_, f32>) -> Result<Array3<u8>> {
        if !(0.0..=1.0).contains(&self.alpha) {
            bail!(option, "impossible alpha {}; expected 0 (picture only) to 1 (heatmap only)", self.alpha);
        }
        let mut shown = self.shown(picture)?;
        let (height, width, _) = shown.dim();
        let heatmap = self.spread(heatmap, Size::new(height, width))?;
        Zip::from(shown.rows_mut()).and(&heatmap).for_each(|mut pixel, &value| {
            let color = self.colormap.shade(value);
            let (opacity, drained) = match self.blend {
                Blend::Constant => (self.alpha, 0.0),
                Blend::Weighted => {
                    let strength = if value.is_nan() { 0.0 } else { value.abs().min(1.0) };
                    (self.alpha * (1.0 - (1.0 - strength).powi(2)), 0.5 * self.alpha)
                }
            };
            let [red, green, blue] = [0, 1, 2].map(|channel| f32::from(pixel[channel]));
            let grey = 0.299 * red + 0.587 * green + 0.114 * blue;
            for (channel, level) in [red, green, blue].into_iter().enumerate() {
                let base = level + drained * (grey - level);
                pixel[channel] = (base + opacity * (color[channel] - base)).round() as u8;
            }
        });
        Ok(shown)
    }

    /// Picture, heatmap and overlay in a row on white.
    ///
    /// # Errors
    /// As [`Self::overlay`].
    pub fn side_by_side(
        &self,
        picture: ArrayView3<'_, u8>,
        heatmap: ArrayView2<'_, f32>,
    ) -> Result<Array3<u8>> {
        let shown = self.shown(picture)?;
        let tile_width = shown.dim().1;
        let tiles = [
            Tile::new(shown),
            Tile::new(self.view(View::Heatmap, picture, heatmap)?),
            Tile::new(self.overlay(picture, heatmap)?),
        ];
        Grid::default().columns(3).tile_width(tile_width).draw(&tiles)
    }

    /// The size at which a picture is shown.
    fn display_size(&self, height: usize, width: usize) -> Result<Size> {
        let long = height.max(width);
        if height == 0 || width == 0 {
            bail!(shape, "there is nothing to show: the size is {height} x {width}");
        }
        let max_side = self.max_side.clamp(1, 1 << 14);
        if long > max_side {
            let side =
                |length: usize| ((length as f64 * max_side as f64 / long as f64).round() as usize).max(1);
            return Ok(Size::new(side(height), side(width)));
        }
        let factor = self.min_side.min(max_side).div_ceil(long).max(1);
        Ok(Size::new(height * factor, width * factor))
    }

    /// The picture at the size at which it is shown.
    fn shown(&self, picture: ArrayView3<'_, u8>) -> Result<Array3<u8>> {
        let (height, width, _) = picture.dim();
        let size = self.display_size(height, width)?;
        let filter = match height.max(width) {
            0..64 => Filter::Nearest,
            _ if size.height > height => Filter::Bicubic,
            _ => Filter::Bilinear,
        };
        resize_rgb8(picture, size, filter)
    }

    fn spread(&self, heatmap: ArrayView2<'_, f32>, size: Size) -> Result<Array2<f32>> {
        let filter = if heatmap.nrows() > size.height { Filter::Bilinear } else { Filter::Bicubic };
        resize_map(heatmap, size, filter)
    }
}

/// keras-vis's `overlay`: `a·alpha + b·(1 - alpha)`, cut off to whole numbers, for pictures of equal shape.
///
/// # Errors
/// If the shapes differ or alpha is not in 0..=1.
///
/// ```
/// let (a, b) = (ndarray::Array3::from_elem((1, 1, 3), 200), ndarray::Array3::from_elem((1, 1, 3), 101));
/// assert_eq!(ouzel::image::overlay(a.view(), b.view(), 0.5)?[[0, 0, 0]], 150);
/// # Ok::<(), ouzel::Error>(())
/// ```
pub fn overlay(a: ArrayView3<'_, u8>, b: ArrayView3<'_, u8>, alpha: f64) -> Result<Array3<u8>> {
    if a.dim() != b.dim() {
        bail!(
            shape,
            "expected pictures of equal shape, found {:?} and {:?}; resize one",
            a.shape(),
            b.shape()
        );
    }
    if !(0.0..=1.0).contains(&alpha) {
        bail!(option, "impossible alpha {alpha}; expected 0 (second picture only) to 1 (first picture only)");
    }
    Ok(Zip::from(a).and(b).map_collect(|&a, &b| (f64::from(a) * alpha + f64::from(b) * (1.0 - alpha)) as u8))
}
