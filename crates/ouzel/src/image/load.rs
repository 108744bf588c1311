//! Pictures from files: PNG, JPEG, WebP, BMP, TIFF and GIF become RGB, upright, at full precision.

use crate::error::{Context, Error, Result, bail};
use ::image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};
use ndarray::{Array3, ArrayView3, CowArray, Ix3};
use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

/// A picture: RGB, `[height, width, 3]`, values 0..=255.
///
/// It keeps the 8-bit values, for showing, and the unrounded ones where they differ (16-bit and floating-point files,
/// translucent pixels), for networks.
///
/// ```
/// use ouzel::image::Picture;
/// let picture = Picture::from_rgb8(ndarray::Array3::from_elem((2, 4, 3), 255))?;
/// assert_eq!((picture.height(), picture.width()), (2, 4));
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    rgb8: Array3<u8>,
    exact: Option<Array3<f32>>,
}

impl Picture {
    /// The most pixels that a picture may have, 2²⁷: above it loading is an error, so that memory stays bounded.
    pub const MAX_PIXELS: u64 = 1 << 27;
    const MAX_FILE_BYTES: u64 = 1 << 30;
    const MAX_DECODED_BYTES: u64 = 1 << 30;

    /// Reads the picture at `path`; the format is recognized by content, not by the file's name.
    ///
    /// Conventions: the orientation of the EXIF data is applied; grey becomes R = G = B; translucent pixels are laid
    /// over white (`v = a·c + (1 - a)·255`); 16-bit values are divided by 257; floating-point values 0..1 are
    /// multiplied by 255 and clamped; of an animation the first frame is taken; color profiles are ignored.
    ///
    /// # Errors
    /// If the file cannot be read, is in no known format, is damaged or truncated, or has no pixels or more than
    /// [`Self::MAX_PIXELS`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(Self::MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|error| Error::io("read", path, error))?;
        Self::from_bytes(&bytes).context(|| path.display())
    }

    /// Reads a picture from the bytes of a file; conventions and errors as [`Self::open`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 > Self::MAX_FILE_BYTES {
            bail!(input, "the file is larger than {} MiB; use a smaller picture", Self::MAX_FILE_BYTES >> 20);
        }
        let mut reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(|error| Error::input(format!("cannot read the picture: {error}")))?;
        if reader.format().is_none() {
            bail!(
                input,
                "not a picture in a known format; expected PNG, JPEG, WebP, BMP, TIFF or GIF, found {}",
                match bytes {
                    [] => "an empty file".to_owned(),
                    _ if bytes.starts_with(b"\x93NUMPY") => "a .npy array".to_owned(),
                    _ =>
                        format!("a file that starts with \"{}\"", bytes[..bytes.len().min(8)].escape_ascii()),
                }
            );
        }
        let mut limits = Limits::default();
        limits.max_alloc = Some(Self::MAX_DECODED_BYTES);
        reader.limits(limits);
        let mut decoder = reader.into_decoder().map_err(undecodable)?;
        let (width, height) = decoder.dimensions();
        check_size(height.into(), width.into())?;
        if decoder.total_bytes() > Self::MAX_DECODED_BYTES {
            bail!(
                input,
                "the picture of {height} x {width} pixels takes {} MiB, more than {}; use a smaller one",
                decoder.total_bytes() >> 20,
                Self::MAX_DECODED_BYTES >> 20
            );
        }
        // A damaged orientation is no reason to refuse a readable picture.
        let orientation = decoder.orientation().ok();
        let mut image = DynamicImage::from_decoder(decoder).map_err(undecodable)?;
        if let Some(orientation) = orientation {
            image.apply_orientation(orientation);
        }
        from_decoded(image)
    }

    /// A picture from 8-bit RGB values `[height, width, 3]`.
    ///
    /// # Errors
    /// If the last axis is not 3, or there are no pixels or more than [`Self::MAX_PIXELS`].
    pub fn from_rgb8(rgb: Array3<u8>) -> Result<Self> {
        check_shape(rgb.dim())?;
        Ok(Self { rgb8: rgb.as_standard_layout().into_owned(), exact: None })
    }

    /// A picture from unrounded RGB values 0..=255, `[height, width, 3]`; values outside are clamped.
    ///
    /// # Errors
    /// As [`Self::from_rgb8`], and if a value is not finite.
    pub fn from_rgb(rgb: Array3<f32>) -> Result<Self> {
        check_shape(rgb.dim())?;
        if let Some((index, value)) = rgb.indexed_iter().find(|(_, value)| !value.is_finite()) {
            bail!(input, "the picture's value at {index:?} is {value}; expected finite values 0 to 255");
        }
        let exact = rgb.as_standard_layout().mapv(|value| value.clamp(0.0, 255.0));
        let rgb8 = exact.mapv(|value| value.round() as u8);
        let rounded = exact.iter().zip(&rgb8).any(|(&value, &rounded)| value != f32::from(rounded));
        Ok(Self { rgb8, exact: rounded.then_some(exact) })
    }

    /// Rows of pixels; at least 1.
    pub fn height(&self) -> usize {
        self.rgb8.dim().0
    }

    /// Columns of pixels; at least 1.
    pub fn width(&self) -> usize {
        self.rgb8.dim().1
    }

    /// The values rounded to 8 bits, `[height, width, 3]`.
    pub fn rgb8(&self) -> ArrayView3<'_, u8> {
        self.rgb8.view()
    }

    /// The unrounded values, 0..=255, `[height, width, 3]`.
    pub fn rgb(&self) -> CowArray<'_, f32, Ix3> {
        match &self.exact {
            Some(exact) => exact.view().into(),
            None => self.rgb8.mapv(f32::from).into(),
        }
    }
}

fn check_shape((height, width, channels): (usize, usize, usize)) -> Result<()> {
    if channels != 3 {
        bail!(
            shape,
            "expected a picture of shape [height, width, 3], found [{height}, {width}, {channels}]; \
             repeat a grey channel three times, drop an alpha channel"
        );
    }
    check_size(height as u64, width as u64)
}

fn check_size(height: u64, width: u64) -> Result<()> {
    if height == 0 || width == 0 {
        bail!(input, "the picture has no pixels: its size is {height} x {width}");
    }
    if height.saturating_mul(width) > Picture::MAX_PIXELS {
        bail!(
            input,
            "the picture is too large: {height} x {width} pixels, expected at most {}; shrink it first",
            Picture::MAX_PIXELS
        );
    }
    Ok(())
}

fn undecodable(error: ImageError) -> Error {
    let advice = match &error {
        ImageError::Limits(_) => "use a smaller picture",
        ImageError::Unsupported(_) => "save it again as PNG or JPEG",
        _ => "the file may be damaged or cut short",
    };
    Error::input(format!("cannot decode the picture: {error}; {advice}"))
}

fn from_decoded(image: DynamicImage) -> Result<Picture> {
    let shape = (image.height() as usize, image.width() as usize, 3);
    let channels = image.color().channel_count() as usize;
    let array8 =
        |values| Array3::from_shape_vec(shape, values).expect("invariant: three values for each pixel");
    let array =
        |values| Array3::from_shape_vec(shape, values).expect("invariant: three values for each pixel");
    match image {
        DynamicImage::ImageRgb8(pixels) => Picture::from_rgb8(array8(pixels.into_raw())),
        DynamicImage::ImageLuma8(pixels) => {
            Picture::from_rgb8(array8(pixels.into_raw().into_iter().flat_map(|value| [value; 3]).collect()))
        }
        DynamicImage::ImageLumaA8(_) | DynamicImage::ImageRgba8(_) => {
            let values = image.as_bytes();
            if values.chunks_exact(channels).all(|pixel| pixel[channels - 1] == 255) {
                Picture::from_rgb8(array8(image.into_rgb8().into_raw()))
            } else {
                Picture::from_rgb(array(over_white(values, channels, f32::from)))
            }
        }
        DynamicImage::ImageLuma16(pixels) => {
            Picture::from_rgb(array(over_white(&pixels, channels, from_16_bits)))
        }
        DynamicImage::ImageLumaA16(pixels) => {
            Picture::from_rgb(array(over_white(&pixels, channels, from_16_bits)))
        }
        DynamicImage::ImageRgb16(pixels) => {
            Picture::from_rgb(array(over_white(&pixels, channels, from_16_bits)))
        }
        DynamicImage::ImageRgba16(pixels) => {
            Picture::from_rgb(array(over_white(&pixels, channels, from_16_bits)))
        }
        DynamicImage::ImageRgb32F(pixels) => {
            Picture::from_rgb(array(over_white(&pixels, channels, from_unit)))
        }
        DynamicImage::ImageRgba32F(pixels) => {
            Picture::from_rgb(array(over_white(&pixels, channels, from_unit)))
        }
        other => Picture::from_rgb8(array8(other.into_rgb8().into_raw())),
    }
}

fn from_16_bits(value: u16) -> f32 {
    f32::from(value) / 257.0
}

fn from_unit(value: f32) -> f32 {
    value.clamp(0.0, 1.0) * 255.0
}

/// RGB from pixels of 1 (grey), 2 (grey, alpha), 3 (RGB) or 4 (RGB, alpha) samples; `level` maps a sample to 0..=255.
fn over_white<T: Copy>(samples: &[T], channels: usize, level: impl Fn(T) -> f32) -> Vec<f32> {
    let mut rgb = Vec::with_capacity(samples.len() / channels * 3);
    for pixel in samples.chunks_exact(channels) {
        let color = if channels < 3 { [pixel[0]; 3] } else { [pixel[0], pixel[1], pixel[2]] };
        let alpha = if channels.is_multiple_of(2) { level(pixel[channels - 1]) / 255.0 } else { 1.0 };
        rgb.extend(color.map(|sample| alpha * level(sample) + (1.0 - alpha) * 255.0));
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::{ExtendedColorType, ImageFormat};
    use ndarray::array;

    fn encode(
        bytes: &[u8],
        width: u32,
        height: u32,
        color: ExtendedColorType,
        format: ImageFormat,
    ) -> Vec<u8> {
        let mut file = Cursor::new(Vec::new());
        ::image::write_buffer_with_format(&mut file, bytes, width, height, color, format).unwrap();
        file.into_inner()
    }

    /// Red, green, blue and black, each a 2 x 2 block, clockwise from the top left.
    fn quadrants() -> Vec<u8> {
        let (red, green, blue, black) = ([250, 0, 0], [0, 250, 0], [0, 0, 250], [0, 0, 0]);
        let row = |left: [u8; 3], right: [u8; 3]| [left, left, right, right].concat();
        [row(red, green), row(red, green), row(black, blue), row(black, blue)].concat()
    }

    #[test]
    fn every_format_is_read_by_content() {
        let rgb = quadrants();
        for format in
            [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Gif]
        {
            let picture = if format == ImageFormat::Gif {
                let rgba: Vec<u8> = rgb.chunks(3).flat_map(|c| [c[0], c[1], c[2], 255]).collect();
                Picture::from_bytes(&encode(&rgba, 4, 4, ExtendedColorType::Rgba8, format)).unwrap()
            } else {
                Picture::from_bytes(&encode(&rgb, 4, 4, ExtendedColorType::Rgb8, format)).unwrap()
            };
            assert_eq!(picture.rgb8().as_slice().unwrap(), rgb, "{format:?}");
        }
        let jpeg = encode(&[200; 48], 4, 4, ExtendedColorType::Rgb8, ImageFormat::Jpeg);
        let picture = Picture::from_bytes(&jpeg).unwrap();
        assert!(picture.rgb8().iter().all(|&value| value.abs_diff(200) <= 1));
    }

    #[test]
    fn exif_orientation_is_applied() {
        let jpeg = encode(&quadrants(), 4, 4, ExtendedColorType::Rgb8, ImageFormat::Jpeg);
        // An APP1 segment whose only entry is orientation 6: the camera was turned, rotate by 90° clockwise.
        let mut exif =
            b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0".to_vec();
        exif.extend([0, 0, 0, 0]);
        let turned = [&jpeg[..2], &exif, &jpeg[2..]].concat();
        let upright = Picture::from_bytes(&jpeg).unwrap();
        let turned = Picture::from_bytes(&turned).unwrap();
        for row in 0..4 {
            for column in 0..4 {
                for channel in 0..3 {
                    assert_eq!(
                        turned.rgb8()[[row, column, channel]],
                        upright.rgb8()[[3 - column, row, channel]]
                    );
                }
            }
        }
    }

    #[test]
    fn grey_alpha_and_16_bits() {
        let png = |bytes: &[u8], width, color| {
            Picture::from_bytes(&encode(bytes, width, 1, color, ImageFormat::Png)).unwrap()
        };
        assert_eq!(png(&[7, 9], 2, ExtendedColorType::L8).rgb8(), array![[[7, 7, 7], [9, 9, 9]]]);
        let translucent = png(&[0, 100, 200, 51, 1, 2, 3, 255], 2, ExtendedColorType::Rgba8);
        assert_eq!(translucent.rgb8(), array![[[204, 224, 244], [1, 2, 3]]]);
        assert!((translucent.rgb()[[0, 0, 1]] - 224.0).abs() < 1e-4);
        let half = png(&0x8000u16.to_ne_bytes(), 1, ExtendedColorType::L16);
        assert_eq!(half.rgb()[[0, 0, 0]], 32768.0 / 257.0);
        assert_eq!(half.rgb8()[[0, 0, 0]], 128);
    }

    #[test]
    fn damaged_files_are_errors() {
        let png = encode(&quadrants(), 4, 4, ExtendedColorType::Rgb8, ImageFormat::Png);
        for format in
            [ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::Jpeg]
        {
            let file = encode(&quadrants(), 4, 4, ExtendedColorType::Rgb8, format);
            for length in 0..file.len() {
                // Some formats tolerate a missing tail; what matters is an answer without a panic.
                if let Err(error) = Picture::from_bytes(&file[..length]) {
                    assert!(error.is_input(), "{error}");
                }
            }
        }
        // The width in the header chunk becomes 2³¹ - 1, with the checksum made to fit.
        let mut huge = png.clone();
        huge[16..20].copy_from_slice(&0x7fff_ffffu32.to_be_bytes());
        let checksum = crc32(&huge[12..29]).to_be_bytes();
        huge[29..33].copy_from_slice(&checksum);
        let error = Picture::from_bytes(&huge).unwrap_err().to_string();
        assert!(error.contains("too large") || error.contains("limit"), "{error}");
        assert!(Picture::from_bytes(b"\x93NUMPY").unwrap_err().to_string().contains(".npy"));
        assert!(Picture::from_bytes(b"").unwrap_err().to_string().contains("empty"));
        let error = Picture::open("no/such.png").unwrap_err();
        assert!(error.is_io() && error.to_string().contains("no/such.png"));
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, &byte| {
            (0..8).fold(
                crc ^ u32::from(byte),
                |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
            )
        })
    }

    #[test]
    fn arrays_are_checked() {
        assert!(Picture::from_rgb8(Array3::zeros((0, 4, 3))).unwrap_err().is_input());
        assert!(Picture::from_rgb8(Array3::zeros((4, 4, 1))).unwrap_err().is_shape());
        assert!(Picture::from_rgb(Array3::from_elem((1, 1, 3), f32::NAN)).unwrap_err().is_input());
        let picture = Picture::from_rgb(array![[[-3.0, 300.0, 127.5]]]).unwrap();
        assert_eq!(picture.rgb(), array![[[0.0, 255.0, 127.5]]]);
        assert_eq!(Picture::from_rgb(array![[[1.0, 2.0, 3.0]]]).unwrap().exact, None);
    }
}
