//! From a picture to the tensor that a network was trained on, and the way back for its heatmaps.

use super::load::Picture;
use super::names::named;
use super::resize::{Filter, part_mut, resize_map_region, resize_rgb_region};
use crate::error::{Error, Result, bail};
use ndarray::{Array2, Array3, ArrayD, ArrayView2, ArrayViewD, Axis};
use std::fmt;
use std::str::FromStr;

named! {
    /// How values 0..=255 become what the network was trained on: `(v / divisor - mean) / std`.
    pub enum Preset: "preset" {
        /// 0..255 as they are: divisor 1, mean 0, std 1.
        Raw = "raw",
        /// 0..1: divisor 255, mean 0, std 1.
        Unit = "unit",
        /// torchvision's ImageNet networks: divisor 255, mean (0.485, 0.456, 0.406), std (0.229, 0.224, 0.225).
        Imagenet = "imagenet",
        /// Caffe's networks and Keras's VGG and ResNet: divisor 1, blue first, mean (103.939, 116.779, 123.68), std 1.
        Caffe = "caffe",
        /// -1..1, Keras's Inception and MobileNet: divisor 127.5, mean 1, std 1.
        Tf = "tf",
    }
}

named! {
    /// The channels that the network takes.
    pub enum Channels: "channel order" {
        /// Red, green, blue.
        Rgb = "rgb",
        /// Blue, green, red.
        Bgr = "bgr",
        /// One channel, the luminance `0.299 R + 0.587 G + 0.114 B` (ITU-R 601, as Pillow's `L`).
        Grey = "grey" or "gray",
    }
}

impl Channels {
    /// The number of channels: 3, or 1 for grey.
    pub fn count(self) -> usize {
        if self == Self::Grey { 1 } else { 3 }
    }

    /// Values given for red, green and blue in the order of these channels; grey takes their average.
    fn arrange(self, [red, green, blue]: [f64; 3]) -> Vec<f64> {
        match self {
            Self::Rgb => vec![red, green, blue],
            Self::Bgr => vec![blue, green, red],
            Self::Grey => vec![(red + green + blue) / 3.0],
        }
    }
}

named! {
    /// The order of the tensor's axes.
    pub enum Layout: "layout" {
        /// Channels before height and width: `[1, c, h, w]`.
        Nchw = "nchw",
        /// Channels last: `[1, h, w, c]`.
        Nhwc = "nhwc",
    }
}

named! {
    /// How a picture of another shape is brought to the network's size.
    pub enum Fit: "fit" {
        /// Height and width are scaled independently; the proportions change.
        Stretch = "stretch",
        /// The largest centered part with the network's proportions is taken; the rest is not seen.
        Crop = "crop",
        /// The whole picture, centered; what it does not fill is 0 after normalizing.
        Pad = "pad",
    }
}

/// Height and width in pixels; parses from `HxW` or from one number for a square.
///
/// ```
/// use ouzel::image::Size;
/// assert_eq!("70x180".parse::<Size>()?, Size::new(70, 180));
/// assert_eq!("224".parse::<Size>()?, Size::new(224, 224));
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Size {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl Size {
    /// `height` rows of `width` pixels.
    pub fn new(height: usize, width: usize) -> Self {
        Self { height, width }
    }

    /// An error if there are no pixels or more than a picture may have.
    pub(super) fn check(self) -> Result<()> {
        let pixels = (self.height as u64).saturating_mul(self.width as u64);
        if !(1..=Picture::MAX_PIXELS).contains(&pixels) {
            bail!(option, "impossible size {self}; expected 1 to {} pixels", Picture::MAX_PIXELS);
        }
        Ok(())
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.height, self.width)
    }
}

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.trim().parse::<usize>().ok();
        let size = match text.split_once(['x', 'X', '×']) {
            Some((height, width)) => number(height).zip(number(width)),
            None => number(text).map(|side| (side, side)),
        };
        let Some((height, width)) = size else {
            bail!(option, "cannot read the size {text:?}; expected HEIGHTxWIDTH, as in 224x224");
        };
        let size = Self { height, width };
        size.check()?;
        Ok(size)
    }
}

/// How a picture becomes a network's input.
///
/// **Formula**: `x = (v / divisor - mean) / std` for a value `v` in 0..=255 of the resized, unrounded picture.
///
/// **Conventions**: resizing comes before normalizing and is bilinear with antialiasing, equal to Pillow's and
/// torchvision's (`antialias=True`) up to rounding; values are not rounded to 8 bits in between.
///
/// ```
/// use ouzel::image::{Picture, Preprocess, Preset, Size};
/// let picture = Picture::from_rgb8(ndarray::Array3::from_elem((90, 120, 3), 255))?;
/// let prepared = Preprocess::default().preset(Preset::Unit).size(Size::new(32, 32)).apply(&picture)?;
/// assert_eq!(prepared.tensor.shape(), [1, 3, 32, 32]);
/// assert_eq!(prepared.tensor[[0, 0, 0, 0]], 1.0);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Preprocess {
    /// Scale and offset of the values; default [`Preset::Raw`].
    pub preset: Preset,
    /// Replaces the preset's mean: one value, or one for each channel, in the network's order and the unit after
    /// dividing (0..1 for `imagenet`).
    pub mean: Option<Vec<f32>>,
    /// Replaces the preset's std; as [`Self::mean`], not 0.
    pub std: Option<Vec<f32>>,
    /// The channels that the network takes; by default blue first for [`Preset::Caffe`], else red first.
    pub channels: Option<Channels>,
    /// The order of the tensor's axes; default [`Layout::Nchw`].
    pub layout: Layout,
    /// The network's height and width; by default the picture's own.
    pub size: Option<Size>,
    /// What happens to pictures of other proportions; default [`Fit::Stretch`].
    pub fit: Fit,
}

impl Default for Preprocess {
    fn default() -> Self {
        Self {
            preset: Preset::Raw,
            mean: None,
            std: None,
            channels: None,
            layout: Layout::Nchw,
            size: None,
            fit: Fit::Stretch,
        }
    }
}

/// A picture made ready for a network.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Prepared {
    /// The network's input: `[1, c, h, w]` or `[1, h, w, c]`.
    pub tensor: ArrayD<f32>,
    /// What the network sees, to be shown under its heatmap: 8-bit RGB `[h, w, 3]` at the network's size, in color
    /// even for grey networks.
    pub picture: Array3<u8>,
    /// Where the network's pixels lie in the picture.
    pub geometry: Geometry,
}

impl Preprocess {
    /// Sets [`Self::preset`].
    pub fn preset(self, preset: Preset) -> Self {
        Self { preset, ..self }
    }

    /// Sets [`Self::mean`].
    pub fn mean(self, mean: impl Into<Vec<f32>>) -> Self {
        Self { mean: Some(mean.into()), ..self }
    }

    /// Sets [`Self::std`].
    pub fn std(self, std: impl Into<Vec<f32>>) -> Self {
        Self { std: Some(std.into()), ..self }
    }

    /// Sets [`Self::channels`].
    pub fn channels(self, channels: Channels) -> Self {
        Self { channels: Some(channels), ..self }
    }

    /// Sets [`Self::layout`].
    pub fn layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }

    /// Sets [`Self::size`].
    pub fn size(self, size: Size) -> Self {
        Self { size: Some(size), ..self }
    }

    /// Sets [`Self::fit`].
    pub fn fit(self, fit: Fit) -> Self {
        Self { fit, ..self }
    }

    /// The channels that the tensor will have: [`Self::channels`] or the preset's own.
    pub fn channel_order(&self) -> Channels {
        self.channels.unwrap_or(if self.preset == Preset::Caffe { Channels::Bgr } else { Channels::Rgb })
    }

    /// The network's input for `picture`, what it sees, and where that lies in the picture.
    ///
    /// # Errors
    /// If [`Self::mean`] or [`Self::std`] has a wrong number of values, a std is 0, or the size is impossible.
    pub fn apply(&self, picture: &Picture) -> Result<Prepared> {
        let scaling = self.scaling()?;
        let geometry = self.geometry(picture)?;
        let size = Size::new(geometry.network.height, geometry.network.width);
        let Inner { top, left, height, width } = geometry.inner;
        let inner = resize_rgb_region(
            picture.rgb().view(),
            geometry.seen,
            Size::new(height, width),
            Filter::Bilinear,
        )?;

        let (rows, columns) = (top..top + height, left..left + width);
        let channels = self.channel_order();
        let mut tensor = Array3::zeros((size.height, size.width, channels.count()));
        let mut shown = Array3::from_shape_fn((size.height, size.width, 3), |(_, _, channel)| {
            let channel = match channels {
                Channels::Rgb => channel,
                Channels::Bgr => 2 - channel,
                Channels::Grey => 0,
            };
            scaling.level(0.0, channel)
        });
        part_mut(&mut shown, rows.clone(), columns.clone()).assign(&inner.mapv(|value| value.round() as u8));
        let mut filled = part_mut(&mut tensor, rows, columns);
        for (mut pixel, color) in filled.rows_mut().into_iter().zip(inner.rows()) {
            let (red, green, blue) = (color[0], color[1], color[2]);
            match channels {
                Channels::Rgb => pixel.assign(&ndarray::aview1(&[red, green, blue])),
                Channels::Bgr => pixel.assign(&ndarray::aview1(&[blue, green, red])),
                Channels::Grey => pixel[0] = 0.299 * red + 0.587 * green + 0.114 * blue,
            }
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = scaling.value(*value, channel);
            }
        }
        let tensor = match self.layout {
            Layout::Nhwc => tensor,
            Layout::Nchw => tensor.permuted_axes([2, 0, 1]).as_standard_layout().into_owned(),
        };
        Ok(Prepared { tensor: tensor.insert_axis(Axis(0)).into_dyn(), picture: shown, geometry })
    }

    /// The interval in which the values of each channel lie, in the network's channel order: where 0 and 255 go.
    ///
    /// # Errors
    /// If [`Self::mean`] or [`Self::std`] does not fit.
    ///
    /// ```
    /// use ouzel::image::{Preprocess, Preset};
    /// assert_eq!(Preprocess::default().preset(Preset::Tf).input_range()?, [(-1.0, 1.0); 3]);
    /// # Ok::<(), ouzel::Error>(())
    /// ```
    pub fn input_range(&self) -> Result<Vec<(f32, f32)>> {
        let scaling = self.scaling()?;
        let bounds = |channel| {
            let (a, b) = (scaling.value(0.0, channel), scaling.value(255.0, channel));
            (a.min(b), a.max(b))
        };
        Ok((0..self.channel_order().count()).map(bounds).collect())
    }

    /// The 8-bit RGB picture `[h, w, 3]` that a tensor of the network's input shows: normalizing undone, rounded.
    ///
    /// The tensor has the axes of [`Self::layout`] and a batch axis of 1.
    ///
    /// # Errors
    /// If the tensor has another shape, or the options are impossible.
    pub fn to_rgb8(&self, tensor: ArrayViewD<'_, f32>) -> Result<Array3<u8>> {
        let scaling = self.scaling()?;
        let channels = self.channel_order();
        let channel_axis = if self.layout == Layout::Nchw { 1 } else { 3 };
        if tensor.ndim() != 4 || tensor.shape()[0] != 1 || tensor.shape()[channel_axis] != channels.count() {
            bail!(
                shape,
                "expected a tensor of one {channels} picture in the layout {}, found the shape {:?}",
                self.layout,
                tensor.shape()
            );
        }
        let mut pixels = tensor.index_axis_move(Axis(0), 0);
        pixels.swap_axes(channel_axis - 1, 2);
        if self.layout == Layout::Nchw {
            // (c, h, w) became (w, h, c).
            pixels.swap_axes(0, 1);
        }
        let (height, width) = (pixels.shape()[0], pixels.shape()[1]);
        Ok(Array3::from_shape_fn((height, width, 3), |(row, column, channel)| {
            let channel = match channels {
                Channels::Rgb => channel,
                Channels::Bgr => 2 - channel,
                Channels::Grey => 0,
            };
            scaling.level(pixels[[row, column, channel]], channel)
        }))
    }

    fn geometry(&self, picture: &Picture) -> Result<Geometry> {
        let source = Size::new(picture.height(), picture.width());
        let network = self.size.unwrap_or(source);
        network.check()?;
        let (rows, columns) = (source.height as f64, source.width as f64);
        let (height, width) = (network.height as f64, network.width as f64);
        let mut seen = Region::whole((source.height, source.width));
        let mut inner = Inner { top: 0, left: 0, height: network.height, width: network.width };
        match self.fit {
            Fit::Stretch => {}
            Fit::Crop => {
                let scale = f64::max(height / rows, width / columns);
                seen.height = f64::min(height / scale, rows);
                seen.width = f64::min(width / scale, columns);
                seen.top = (rows - seen.height) / 2.0;
                seen.left = (columns - seen.width) / 2.0;
            }
            Fit::Pad => {
                let scale = f64::min(height / rows, width / columns);
                inner.height = ((rows * scale).round() as usize).clamp(1, network.height);
                inner.width = ((columns * scale).round() as usize).clamp(1, network.width);
                inner.top = (network.height - inner.height) / 2;
                inner.left = (network.width - inner.width) / 2;
            }
        }
        Ok(Geometry { picture: source, network, seen, inner })
    }

    pub(crate) fn scaling(&self) -> Result<Scaling> {
        let (divisor, mean, std) = match self.preset {
            Preset::Raw => (1.0, [0.0; 3], [1.0; 3]),
            Preset::Unit => (255.0, [0.0; 3], [1.0; 3]),
            Preset::Imagenet => (255.0, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            Preset::Caffe => (1.0, [123.68, 116.779, 103.939], [1.0; 3]),
            Preset::Tf => (127.5, [1.0; 3], [1.0; 3]),
        };
        let channels = self.channel_order();
        let values = |name: &str, given: &Option<Vec<f32>>, preset: [f64; 3]| {
            let values = match given {
                None => channels.arrange(preset).into_iter().map(|value| value as f32).collect(),
                Some(one) if one.len() == 1 => vec![one[0]; channels.count()],
                Some(all) if all.len() == channels.count() => all.clone(),
                Some(all) => bail!(
                    option,
                    "expected 1 or {} values of {name} for {channels} pictures, found {}",
                    channels.count(),
                    all.len()
                ),
            };
            match values.iter().find(|value| !value.is_finite() || (name == "std" && **value == 0.0)) {
                Some(value) => bail!(option, "impossible {name} {value}; expected finite numbers, std not 0"),
                None => Ok(values),
            }
        };
        Ok(Scaling { divisor, mean: values("mean", &self.mean, mean)?, std: values("std", &self.std, std)? })
    }
}

/// The affine map between values 0..=255 and the network's, a channel at a time.
pub(crate) struct Scaling {
    pub(crate) divisor: f32,
    pub(crate) mean: Vec<f32>,
    pub(crate) std: Vec<f32>,
}

impl Scaling {
    fn value(&self, level: f32, channel: usize) -> f32 {
        (level / self.divisor - self.mean[channel]) / self.std[channel]
    }

    fn level(&self, value: f32, channel: usize) -> u8 {
        ((value * self.std[channel] + self.mean[channel]) * self.divisor).round().clamp(0.0, 255.0) as u8
    }
}

/// A rectangle in continuous pixel coordinates: the pixel (0, 0) covers the square from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    /// Rows above it.
    pub top: f64,
    /// Columns left of it.
    pub left: f64,
    /// Its height in rows.
    pub height: f64,
    /// Its width in columns.
    pub width: f64,
}

impl Region {
    /// All of a picture with (height, width) pixels.
    pub fn whole((height, width): (usize, usize)) -> Self {
        Self { top: 0.0, left: 0.0, height: height as f64, width: width as f64 }
    }
}

/// A rectangle of whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inner {
    top: usize,
    left: usize,
    height: usize,
    width: usize,
}

/// Where the pixels of the network's input lie in the picture.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Geometry {
    /// The picture's size.
    pub picture: Size,
    /// The network's size.
    pub network: Size,
    /// The part of the picture that the network sees, in the picture's pixels.
    pub seen: Region,
    /// The part of the network's input that the picture fills; the rest is padding.
    inner: Inner,
}

impl Geometry {
    /// The point (row, column) of the picture that lies at a point of the network's input, in continuous coordinates
    /// where the pixel (0, 0) covers the square from 0 to 1.
    ///
    /// Points in the padding lie outside of the picture.
    pub fn to_picture(&self, (row, column): (f64, f64)) -> (f64, f64) {
        let (seen, inner) = (self.seen, self.inner);
        (
            seen.top + (row - inner.top as f64) * seen.height / inner.height as f64,
            seen.left + (column - inner.left as f64) * seen.width / inner.width as f64,
        )
    }

    /// The point (row, column) of the network's input at a point of the picture; inverse of [`Self::to_picture`].
    ///
    /// Points that are cropped away lie outside of the input.
    pub fn to_network(&self, (row, column): (f64, f64)) -> (f64, f64) {
        let (seen, inner) = (self.seen, self.inner);
        (
            inner.top as f64 + (row - seen.top) * inner.height as f64 / seen.height,
            inner.left as f64 + (column - seen.left) * inner.width as f64 / seen.width,
        )
    }

    /// A heatmap laid over the picture: `[h, w]` that spans the network's input, at any resolution, becomes
    /// `[picture height, picture width]`.
    ///
    /// Padding is dropped; pixels that the network did not see are `fill`. Bicubic, within the heatmap's range.
    ///
    /// # Errors
    /// If the heatmap is empty.
    pub fn project(&self, heatmap: ArrayView2<'_, f32>, fill: f32) -> Result<Array2<f32>> {
        let mut laid = Array2::from_elem((self.picture.height, self.picture.width), fill);
        // The picture's pixels whose centers the network sees.
        let pixels = |start: f64, length: f64, side: usize| {
            let first = ((start - 0.5).ceil().max(0.0) as usize).min(side - 1);
            let end = ((start + length - 0.5).ceil().max(0.0) as usize).clamp(first + 1, side);
            (first, end)
        };
        let (top, bottom) = pixels(self.seen.top, self.seen.height, self.picture.height);
        let (left, right) = pixels(self.seen.left, self.seen.width, self.picture.width);
        let (grid_height, grid_width) = (heatmap.nrows() as f64, heatmap.ncols() as f64);
        let to_grid = |corner: (usize, usize)| {
            let (row, column) = self.to_network((corner.0 as f64, corner.1 as f64));
            (
                (row * grid_height / self.network.height as f64).clamp(0.0, grid_height),
                (column * grid_width / self.network.width as f64).clamp(0.0, grid_width),
            )
        };
        let (start, end) = (to_grid((top, left)), to_grid((bottom, right)));
        let region = Region { top: start.0, left: start.1, height: end.0 - start.0, width: end.1 - start.1 };
        let part =
            resize_map_region(heatmap, region, Size::new(bottom - top, right - left), Filter::Bicubic)?;
        part_mut(&mut laid, top..bottom, left..right).assign(&part);
        Ok(laid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    fn picture(height: usize, width: usize) -> Picture {
        let rgb = Array3::from_shape_fn((height, width, 3), |(r, c, channel)| {
            ((r * 37 + c * 23 + (r * c * 11) % 19 + channel * 60) % 256) as u8
        });
        Picture::from_rgb8(rgb).unwrap()
    }

    #[test]
    fn presets() {
        let one = Picture::from_rgb8(array![[[10, 100, 200]]]).unwrap();
        let values = |options: Preprocess| options.apply(&one).unwrap().tensor.into_raw_vec_and_offset().0;
        let preset = |preset| Preprocess::default().preset(preset);
        assert_eq!(values(preset(Preset::Raw)), [10.0, 100.0, 200.0]);
        assert_eq!(values(preset(Preset::Unit)), [10.0 / 255.0, 100.0 / 255.0, 200.0 / 255.0]);
        assert_eq!(values(preset(Preset::Caffe)), [200.0 - 103.939, 100.0 - 116.779, 10.0 - 123.68]);
        assert_eq!(
            values(preset(Preset::Tf)),
            [10.0 / 127.5 - 1.0, 100.0 / 127.5 - 1.0, 200.0 / 127.5 - 1.0]
        );
        let expected = [
            (10.0 / 255.0 - 0.485) / 0.229,
            (100.0 / 255.0 - 0.456) / 0.224,
            (200.0 / 255.0f32 - 0.406) / 0.225,
        ];
        assert_eq!(values(preset(Preset::Imagenet)), expected);
        // The preset's mean goes with its color; a given mean is in the network's order.
        let bgr = preset(Preset::Imagenet).channels(Channels::Bgr);
        assert_eq!(values(bgr.clone()), [expected[2], expected[1], expected[0]]);
        assert_eq!(
            values(preset(Preset::Raw).channels(Channels::Bgr).mean([1.0, 2.0, 3.0])),
            [199.0, 98.0, 7.0]
        );
        assert_eq!(values(preset(Preset::Raw).std([2.0])), [5.0, 50.0, 100.0]);
        let grey = values(preset(Preset::Raw).channels(Channels::Grey));
        assert!((grey[0] - 84.49).abs() < 1e-4 && grey.len() == 1);
    }

    #[test]
    fn input_range_is_where_black_and_white_go() {
        for &preset in Preset::ALL {
            for &channels in Channels::ALL {
                let options = Preprocess::default().preset(preset).channels(channels);
                let range = options.input_range().unwrap();
                for level in [0, 255] {
                    let flat = Picture::from_rgb8(Array3::from_elem((1, 1, 3), level)).unwrap();
                    let tensor = options.apply(&flat).unwrap().tensor;
                    assert_eq!(tensor.len(), range.len());
                    for (value, (low, high)) in tensor.iter().zip(&range) {
                        let expected = if level == 0 { low } else { high };
                        assert!((value - expected).abs() < 1e-4, "{preset} {channels} {value} {expected}");
                    }
                }
            }
        }
        let negative = Preprocess::default().std([-1.0]);
        assert_eq!(negative.input_range().unwrap()[0], (-255.0, 0.0));
    }

    #[test]
    fn layouts_and_back() {
        let picture = picture(4, 6);
        for &preset in Preset::ALL {
            for channels in [Channels::Rgb, Channels::Bgr] {
                let options = Preprocess::default().preset(preset).channels(channels);
                let first = options.apply(&picture).unwrap().tensor;
                assert_eq!(first.shape(), [1, 3, 4, 6]);
                let options = options.layout(Layout::Nhwc);
                let last = options.apply(&picture).unwrap().tensor;
                assert_eq!(last, first.clone().permuted_axes(vec![0, 2, 3, 1]));
                assert_eq!(options.to_rgb8(last.view()).unwrap(), picture.rgb8());
                let options = options.layout(Layout::Nchw);
                assert_eq!(options.to_rgb8(first.view()).unwrap(), picture.rgb8());
                assert!(options.to_rgb8(last.view()).unwrap_err().is_shape());
            }
        }
    }

    #[test]
    fn fits() {
        let picture = picture(10, 30);
        let fit = |fit| {
            Preprocess::default().size(Size::new(12, 12)).fit(fit).mean([100.0]).apply(&picture).unwrap()
        };
        let stretched = fit(Fit::Stretch);
        assert_eq!(stretched.geometry.seen, Region::whole((10, 30)));
        let cropped = fit(Fit::Crop);
        assert_eq!(cropped.geometry.seen, Region { top: 0.0, left: 10.0, height: 10.0, width: 10.0 });
        assert_eq!(cropped.geometry.to_picture((6.0, 12.0)), (5.0, 20.0));
        let padded = fit(Fit::Pad);
        assert_eq!(padded.geometry.inner, Inner { top: 4, left: 0, height: 4, width: 12 });
        assert_eq!(padded.tensor[[0, 0, 0, 5]], 0.0);
        assert_eq!(padded.picture[[0, 5, 0]], 100, "padding shows as the value that normalizes to 0");
        assert_eq!(padded.geometry.to_network((5.0, 15.0)), (6.0, 6.0));
        for prepared in [stretched, cropped, padded] {
            let point = (3.25, 7.5);
            let there = prepared.geometry.to_network(prepared.geometry.to_picture(point));
            assert!((there.0 - point.0).abs() < 1e-12 && (there.1 - point.1).abs() < 1e-12);
        }
    }

    #[test]
    fn heatmaps_lie_where_the_network_looked() {
        let picture = picture(20, 60);
        for (fit, fill) in [(Fit::Stretch, 1.0), (Fit::Crop, -1.0), (Fit::Pad, 1.0)] {
            let geometry =
                Preprocess::default().size(Size::new(10, 10)).fit(fit).apply(&picture).unwrap().geometry;
            // Columns hold their own position; so the projected map holds the position in the network.
            let ramp = Array2::from_shape_fn((10, 10), |(_, column)| column as f32 + 0.5);
            let laid = geometry.project(ramp.view(), -1.0).unwrap();
            assert_eq!(laid.dim(), (20, 60));
            assert_eq!(laid[[0, 0]] < 0.0, fill < 0.0, "{fit}");
            for column in 25..35 {
                let (_, expected) = geometry.to_network((10.0, column as f64 + 0.5));
                assert!((f64::from(laid[[10, column]]) - expected).abs() < 0.05, "{fit} {column}");
            }
        }
    }

    #[test]
    fn impossible_options_are_errors() {
        let picture = picture(2, 2);
        let fails = |options: Preprocess| options.apply(&picture).unwrap_err().is_option();
        assert!(fails(Preprocess::default().mean([1.0, 2.0])));
        assert!(fails(Preprocess::default().std([0.0])));
        assert!(fails(Preprocess::default().std([f32::NAN])));
        assert!(fails(Preprocess::default().size(Size::new(0, 5))));
        assert!(fails(Preprocess::default().size(Size::new(usize::MAX, usize::MAX))));
        assert!(
            "4x".parse::<Size>().is_err() && "0x3".parse::<Size>().is_err() && "-3".parse::<Size>().is_err()
        );
        let error = "imgnet".parse::<Preset>().unwrap_err().to_string();
        assert!(error.contains("raw, unit, imagenet, caffe, tf"), "{error}");
        for name in Preset::NAMES {
            assert_eq!(name.to_uppercase().parse::<Preset>().unwrap().name(), *name);
        }
    }

    #[test]
    fn extreme_proportions() {
        let thin = picture(1, 500);
        for &fit in Fit::ALL {
            let prepared = Preprocess::default().size(Size::new(7, 3)).fit(fit).apply(&thin).unwrap();
            assert_eq!(prepared.tensor.shape(), [1, 3, 7, 3]);
            let laid = prepared.geometry.project(Array2::ones((2, 2)).view(), 0.0).unwrap();
            assert_eq!(laid.dim(), (1, 500));
            assert!(laid.iter().any(|&value| value == 1.0), "{fit}");
        }
    }
}
