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
    /// Colors; default `inferno`; `coolwarm` in [`Self::signed`].
    pub colormap: Colormap,
    /// Opacity of the heatmap where it is strongest, 0..=1; default 0.7.
    pub alpha: f32,
    /// Opacity elsewhere; default [`Blend::Weighted`].
    pub blend: Blend,
    /// Values beyond this percentile of the magnitudes are shown as if they were at it, so that a few outliers do not
    /// leave the rest dark; default 99, 100 for none.
    pub percentile: f64,
    /// Pictures whose longer side is smaller are enlarged; default 384, 0 for never.
    pub min_side: usize,
    /// Pictures whose longer side is larger are shrunk; default 1280.
    pub max_side: usize,
}

impl Default for Render {
    fn default() -> Self {
        Self {
            colormap: "inferno".parse().expect("invariant: inferno is a colormap"),
            alpha: 0.7,
            blend: Blend::Weighted,
            percentile: 99.0,
            min_side: 384,
            max_side: 1280,
        }
    }
}

impl Render {
    /// The default for signed heatmaps, -1..=1: blue for negative, red for positive.
    pub fn signed() -> Self {
        Self { colormap: "coolwarm".parse().expect("invariant: coolwarm is a colormap"), ..Self::default() }
    }

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

    /// Sets [`Self::percentile`].
    pub fn percentile(self, percentile: f64) -> Self {
        Self { percentile, ..self }
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
    /// If the heatmap is empty or the percentile is not in 0..=100.
    pub fn heatmap(&self, heatmap: ArrayView2<'_, f32>) -> Result<Array3<u8>> {
        let (height, width) = heatmap.dim();
        Ok(self.colormap.apply(self.spread(heatmap, self.display_size(height, width)?)?.view()))
    }

    /// The picture under its heatmap.
    ///
    /// **Formula**: `o·color + (1 - o)·base`. For [`Blend::Constant`] `o = alpha` and the base is the picture. For
    /// [`Blend::Weighted`] `o = alpha · (1 - (1 - |v|)²)` and the base is the picture with `0.6 · alpha` of its color and
    /// `0.35 · alpha` of its light taken away, so that even single bright pixels stand out.
    ///
    /// # Errors
    /// If picture or heatmap are empty, the picture is not RGB, or alpha or percentile are impossible.
    pub fn overlay(&self, picture: ArrayView3<'_, u8>, heatmap: ArrayView2<'_, f32>) -> Result<Array3<u8>> {
        if !(0.0..=1.0).contains(&self.alpha) {
            bail!(option, "impossible alpha {}; expected 0 (picture only) to 1 (heatmap only)", self.alpha);
        }
        let mut shown = self.shown(picture)?;
        let (height, width, _) = shown.dim();
        let heatmap = self.spread(heatmap, Size::new(height, width))?;
        Zip::from(shown.rows_mut()).and(&heatmap).for_each(|mut pixel, &value| {
            let color = self.colormap.shade(value);
            let (opacity, muted) = match self.blend {
                Blend::Constant => (self.alpha, 0.0),
                Blend::Weighted => {
                    let strength = if value.is_nan() { 0.0 } else { value.abs().min(1.0) };
                    (self.alpha * (1.0 - (1.0 - strength).powi(2)), self.alpha)
                }
            };
            let [red, green, blue] = [0, 1, 2].map(|channel| f32::from(pixel[channel]));
            let grey = 0.299 * red + 0.587 * green + 0.114 * blue;
            for (channel, level) in [red, green, blue].into_iter().enumerate() {
                let base = (level + 0.6 * muted * (grey - level)) * (1.0 - 0.35 * muted);
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

    /// The heatmap at the size at which it is shown, its strongest values made equal.
    fn spread(&self, heatmap: ArrayView2<'_, f32>, size: Size) -> Result<Array2<f32>> {
        if !(0.0..=100.0).contains(&self.percentile) {
            bail!(option, "impossible percentile {}; expected 0 to 100", self.percentile);
        }
        let mut magnitudes: Vec<f32> = heatmap.iter().map(|value| value.abs()).collect();
        let place = (self.percentile / 100.0 * magnitudes.len().saturating_sub(1) as f64).round() as usize;
        let bound = match magnitudes.len() {
            0 => 0.0,
            _ => *magnitudes.select_nth_unstable_by(place, f32::total_cmp).1,
        };
        let gain = if self.percentile < 100.0 && bound > 0.0 && bound < 1.0 { bound.recip() } else { 1.0 };
        let filter = if heatmap.nrows() > size.height { Filter::Bilinear } else { Filter::Bicubic };
        resize_map(heatmap.mapv(|value| (value * gain).clamp(-1.0, 1.0)).view(), size, filter)
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

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn picture(height: usize, width: usize) -> Array3<u8> {
        Array3::from_shape_fn((height, width, 3), |(r, c, channel)| {
            ((r * 5 + c * 3 + channel * 70) % 256) as u8
        })
    }

    /// Pictures at their own size, heatmaps as they are.
    fn plain() -> Render {
        Render::default().min_side(0).percentile(100.0)
    }

    #[test]
    fn alpha_goes_from_the_picture_to_the_heatmap() {
        let (picture, map) = (picture(70, 90), Array2::from_shape_fn((70, 90), |(r, _)| r as f32 / 69.0));
        for &blend in Blend::ALL {
            assert_eq!(plain().blend(blend).alpha(0.0).overlay(picture.view(), map.view()).unwrap(), picture);
        }
        let full = plain().blend(Blend::Constant).alpha(1.0).overlay(picture.view(), map.view()).unwrap();
        assert_eq!(full, plain().heatmap(map.view()).unwrap());
        // Where the heatmap is 0, a weighted overlay is the muted picture; where it is 1, opacity is alpha.
        let one = plain()
            .alpha(0.5)
            .overlay(Array3::from_elem((1, 1, 3), 100).view(), array![[0.0]].view())
            .unwrap();
        assert_eq!(one, array![[[83, 83, 83]]]);
        let white = Render { colormap: "fff,fff".parse().unwrap(), ..plain() };
        let one =
            white.alpha(0.5).overlay(Array3::from_elem((1, 1, 3), 100).view(), array![[1.0]].view()).unwrap();
        assert_eq!(one, array![[[169, 169, 169]]]);
    }

    #[test]
    fn pictures_are_shown_at_a_pleasant_size() {
        let size = |height, width| {
            let shown =
                Render::default().overlay(picture(height, width).view(), array![[0.5]].view()).unwrap();
            (shown.dim().0, shown.dim().1)
        };
        assert_eq!(size(28, 28), (392, 392));
        assert_eq!(size(96, 96), (384, 384));
        assert_eq!(size(400, 300), (400, 300));
        assert_eq!(size(10, 2560), (5, 1280));
        assert_eq!(size(1, 1), (384, 384));
    }

    #[test]
    fn small_pictures_keep_their_pixels() {
        let picture = picture(4, 4);
        let shown = Render::default().alpha(0.0).overlay(picture.view(), array![[0.0]].view()).unwrap();
        let factor = shown.dim().0 / 4;
        assert!(
            shown.indexed_iter().all(|((r, c, k), &value)| value == picture[[r / factor, c / factor, k]])
        );
    }

    #[test]
    fn outliers_do_not_darken_the_rest() {
        let mut map = Array2::from_elem((20, 20), 0.25f32);
        map[[0, 0]] = 1.0;
        let show =
            |percentile| Render::default().min_side(0).percentile(percentile).heatmap(map.view()).unwrap();
        let inferno = Render::default().colormap;
        assert_eq!([0, 1, 2].map(|channel| show(100.0)[[9, 9, channel]]), inferno.color(0.25));
        assert_eq!([0, 1, 2].map(|channel| show(99.0)[[9, 9, channel]]), inferno.color(1.0));
        let sparse = Array2::from_shape_fn((20, 20), |index| if index == (3, 3) { 1.0 } else { 0.0 });
        assert_eq!(
            plain().heatmap(sparse.view()).unwrap(),
            Render::default().min_side(0).heatmap(sparse.view()).unwrap()
        );
        assert!(Render::default().percentile(f64::NAN).heatmap(map.view()).unwrap_err().is_option());
    }

    #[test]
    fn signed_heatmaps() {
        let shown =
            Render::signed().min_side(0).percentile(100.0).heatmap(array![[-1.0, 0.0, 1.0]].view()).unwrap();
        assert!(shown[[0, 0, 2]] > shown[[0, 0, 0]] && shown[[0, 2, 0]] > shown[[0, 2, 2]]);
        assert!(shown[[0, 1, 0]].abs_diff(shown[[0, 1, 2]]) <= 2);
    }

    #[test]
    fn views() {
        let (picture, map) = (picture(64, 80), Array2::from_elem((4, 4), 0.5));
        let render = Render::default();
        let show = |view| render.view(view, picture.view(), map.view()).unwrap();
        assert_eq!(show(View::Heatmap).dim(), (320, 400, 3));
        assert_eq!(show(View::Overlay).dim(), (320, 400, 3));
        let row = show(View::SideBySide);
        assert_eq!(row.dim(), (360, 4 * 20 + 3 * 400, 3));
        assert_eq!(row[[180, 640, 0]], show(View::Heatmap)[[160, 200, 0]]);
    }

    #[test]
    fn impossible_requests_are_errors() {
        let (picture, map) = (picture(8, 8), Array2::zeros((2, 2)));
        for alpha in [-0.1, 1.1, f32::NAN] {
            assert!(plain().alpha(alpha).overlay(picture.view(), map.view()).unwrap_err().is_option());
        }
        assert!(plain().overlay(Array3::zeros((0, 8, 3)).view(), map.view()).is_err());
        assert!(plain().overlay(Array3::zeros((8, 8, 4)).view(), map.view()).is_err());
        for &view in View::ALL {
            assert!(plain().view(view, picture.view(), Array2::zeros((0, 0)).view()).is_err());
        }
        assert!(plain().heatmap(array![[f32::NAN, 1.0]].view()).is_ok());
    }

    #[test]
    fn keras_vis_overlay() {
        let (a, b) = (picture(3, 4), Array3::from_elem((3, 4, 3), 10));
        assert_eq!(overlay(a.view(), b.view(), 1.0).unwrap(), a);
        assert_eq!(overlay(a.view(), b.view(), 0.0).unwrap(), b);
        assert!(overlay(a.view(), picture(4, 3).view(), 0.5).unwrap_err().is_shape());
        assert!(overlay(a.view(), b.view(), 1.5).unwrap_err().is_option());
    }
}
