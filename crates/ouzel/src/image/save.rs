//! Files that are whole or not there: what is written goes to a temporary neighbor first and is renamed at the end.

use crate::error::{Context, Error, Result, bail};
use ::image::codecs::gif::{GifEncoder, Repeat};
use ::image::codecs::png::PngEncoder;
use ::image::{Delay, ExtendedColorType, Frame, ImageEncoder, RgbaImage};
use ndarray::{Array3, ArrayView3};
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes of a PNG file with the 8-bit RGB picture `[height, width, 3]`.
///
/// # Errors
/// If the last axis is not 3, or the picture has no pixels.
pub fn encode_png(rgb: ArrayView3<'_, u8>) -> Result<Vec<u8>> {
    let (height, width, channels) = rgb.dim();
    let size = u32::try_from(width).ok().zip(u32::try_from(height).ok());
    let Some((columns, rows)) = size.filter(|_| channels == 3 && height > 0 && width > 0) else {
        bail!(shape, "expected a picture of shape [height, width, 3], found [{height}, {width}, {channels}]");
    };
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(
            rgb.as_standard_layout().as_slice().expect("invariant: standard layout is contiguous"),
            columns,
            rows,
            ExtendedColorType::Rgb8,
        )
        .map_err(|error| Error::internal(format!("cannot encode the picture: {error}")))?;
    Ok(bytes)
}

/// The bytes of an animated GIF file that shows 8-bit RGB pictures `[height, width, 3]` of one size, each for `delay`
/// milliseconds and the last one for `rest`, again and again.
///
/// # Errors
/// If there are no pictures, or they are not of one size.
///
/// ```
/// let frames = [ndarray::Array3::zeros((4, 6, 3)), ndarray::Array3::from_elem((4, 6, 3), 255)];
/// let bytes = ouzel::image::encode_gif(&frames, 50, 1000)?;
/// assert!(bytes.starts_with(b"GIF89a"));
/// # Ok::<(), ouzel::Error>(())
/// ```
pub fn encode_gif(frames: &[Array3<u8>], delay: u32, rest: u32) -> Result<Vec<u8>> {
    let failed = |error| Error::internal(format!("cannot encode the animation: {error}"));
    let Some((last, first)) = frames.split_last() else {
        bail!(input, "there are no pictures to animate; give at least one");
    };
    let shape = last.dim();
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, 10);
    encoder.set_repeat(Repeat::Infinite).map_err(failed)?;
    for (frame, delay) in first.iter().map(|frame| (frame, delay)).chain([(last, rest)]) {
        if frame.dim() != shape || shape.2 != 3 {
            bail!(shape, "expected pictures of one shape [h, w, 3], found {:?} and {shape:?}", frame.dim());
        }
        let pixels = frame
            .exact_chunks((1, 1, 3))
            .into_iter()
            .flat_map(|p| [p[[0, 0, 0]], p[[0, 0, 1]], p[[0, 0, 2]], 255]);
        let (rows, columns) = (u32::try_from(shape.0), u32::try_from(shape.1));
        let buffer = match (rows, columns) {
            (Ok(rows), Ok(columns)) => RgbaImage::from_raw(columns, rows, pixels.collect()),
            _ => None,
        };
        let Some(buffer) = buffer else { bail!(shape, "a picture of {shape:?} is too large for a GIF") };
        let delay = Delay::from_numer_denom_ms(delay, 1);
        encoder.encode_frame(Frame::from_parts(buffer, 0, 0, delay)).map_err(failed)?;
    }
    drop(encoder);
    Ok(bytes)
}

/// Writes the 8-bit RGB picture `[height, width, 3]` to the PNG file `path`.
///
/// The file is replaced if it exists; after an error it is as it was (see [`save_whole`]).
///
/// # Errors
/// If the folder of `path` does not exist, the file cannot be written, or the array is no picture.
///
/// ```
/// let path = std::env::temp_dir().join(format!("ouzel-doc-{}.png", std::process::id()));
/// ouzel::image::save_png(&path, ndarray::Array3::zeros((4, 6, 3)).view())?;
/// assert_eq!(ouzel::image::Picture::open(&path)?.width(), 6);
/// # std::fs::remove_file(&path).unwrap();
/// # Ok::<(), ouzel::Error>(())
/// ```
pub fn save_png(path: impl AsRef<Path>, rgb: ArrayView3<'_, u8>) -> Result<()> {
    let path = path.as_ref();
    save_whole(path, &encode_png(rgb).context(|| path.display())?)
}

/// Writes `bytes` to the file `path`, wholly or not at all.
///
/// The bytes go to a temporary file in the same folder, which is then renamed. A link is followed; a path that is no
/// plain file, such as a pipe, is written directly.
///
/// # Errors
/// If the folder of `path` does not exist (it is not created), `path` is a folder, or writing fails.
pub fn save_whole(path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
    let path = path.as_ref();
    let failed = |error: io::Error| Error::io("write", path, error);
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        let error = io::Error::new(
            io::ErrorKind::NotFound,
            format!("the folder {} does not exist; create it first", folder.display()),
        );
        return Err(failed(error));
    }
    let target = match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(failed(io::Error::new(
                io::ErrorKind::IsADirectory,
                "it is a folder; name a file inside it",
            )));
        }
        Ok(found) if !found.is_file() => {
            let written =
                OpenOptions::new().write(true).open(path).and_then(|mut file| file.write_all(bytes));
            return written.map_err(failed);
        }
        Ok(_) => fs::canonicalize(path).map_err(failed)?,
        Err(_) => path.to_owned(),
    };
    let temporary = neighbor(&target);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&temporary)
        .and_then(|mut file| file.write_all(bytes))
        .and_then(|()| fs::rename(&temporary, &target));
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        failed(error)
    })
}

/// A name in the folder of `target` that nobody else uses.
fn neighbor(target: &Path) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    target.with_file_name(format!(".ouzel-{}-{count}.part", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("ouzel-save-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn a_picture_comes_back_and_nothing_else_stays() {
        let folder = folder("round");
        let path = folder.join("picture.png");
        let rgb = Array3::from_shape_fn((3, 5, 3), |(row, column, channel)| {
            (row * 50 + column * 9 + channel) as u8
        });
        for _ in 0..2 {
            save_png(&path, rgb.view()).unwrap();
            assert_eq!(crate::image::Picture::open(&path).unwrap().rgb8(), rgb);
        }
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn errors_name_the_path_and_leave_the_file() {
        let folder = folder("errors");
        let missing = folder.join("missing").join("picture.png");
        let error = save_whole(&missing, b"x").unwrap_err();
        assert!(error.is_io() && format!("{error:?}").contains("create it first"), "{error:?}");
        let error = save_whole(&folder, b"x").unwrap_err();
        assert!(format!("{error:?}").contains("it is a folder"), "{error:?}");
        let path = folder.join("old.png");
        fs::write(&path, b"old").unwrap();
        assert!(save_png(&path, Array3::zeros((0, 0, 3)).view()).unwrap_err().is_shape());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        fs::remove_dir_all(folder).unwrap();
    }
}
