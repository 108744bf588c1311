//! Sheets of pictures: captioned tiles for comparing methods, and keras-vis's plain stitching.

use super::preprocess::Size;
use super::resize::{Filter, part_mut, resize_rgb8};
use super::text::Text;
use crate::error::{Result, bail};
use ndarray::{Array3, ArrayView3};

/// A picture of a [`Grid`] with its caption.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Tile {
    /// 8-bit RGB, `[h, w, 3]`.
    pub picture: Array3<u8>,
    /// A bold line under the picture; empty for none.
    pub title: String,
    /// A smaller line under the title; empty for none.
    pub note: String,
}

impl Tile {
    /// A tile without caption.
    pub fn new(picture: Array3<u8>) -> Self {
        Self { picture, title: String::new(), note: String::new() }
    }

    /// Sets [`Self::title`].
    pub fn title(self, title: impl Into<String>) -> Self {
        Self { title: title.into(), ..self }
    }

    /// Sets [`Self::note`].
    pub fn note(self, note: impl Into<String>) -> Self {
        Self { note: note.into(), ..self }
    }
}

/// How tiles are laid out: row by row, captions below, corners rounded, on white.
///
/// ```
/// use ouzel::image::{Grid, Tile};
/// let picture = ndarray::Array3::from_elem((64, 64, 3), 90);
/// let tiles = [Tile::new(picture.clone()).title("saliency"), Tile::new(picture).title("grad_cam").note("12 ms")];
/// let sheet = Grid::default().title("water ouzel").draw(&tiles)?;
/// assert!(sheet.dim().1 > 2 * 64);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Grid {
    /// Tiles in a row; default 0: as many as make the sheet about one and a half times as wide as high.
    pub columns: usize,
    /// Width of each picture in pixels; default 320.
    pub tile_width: usize,
    /// Pixels between and around the tiles; default 20.
    pub margin: usize,
    /// Color behind the tiles; default white.
    pub background: [u8; 3],
    /// A heading above the tiles; default none.
    pub title: String,
}

impl Default for Grid {
    fn default() -> Self {
        Self { columns: 0, tile_width: 320, margin: 20, background: [255; 3], title: String::new() }
    }
}

impl Grid {
    /// Sets [`Self::columns`].
    pub fn columns(self, columns: usize) -> Self {
        Self { columns, ..self }
    }

    /// Sets [`Self::tile_width`].
    pub fn tile_width(self, tile_width: usize) -> Self {
        Self { tile_width, ..self }
    }

    /// Sets [`Self::margin`].
    pub fn margin(self, margin: usize) -> Self {
        Self { margin, ..self }
    }

    /// Sets [`Self::background`].
    pub fn background(self, background: [u8; 3]) -> Self {
        Self { background, ..self }
    }

    /// Sets [`Self::title`].
    pub fn title(self, title: impl Into<String>) -> Self {
        Self { title: title.into(), ..self }
    }

    /// The sheet, 8-bit RGB `[h, w, 3]`.
    ///
    /// Pictures are scaled to the tile's width, keeping their proportions; captions that are too long end in `…`.
    ///
    /// # Errors
    /// If there are no tiles, a picture is empty, or the sheet would be too large.
    pub fn draw(&self, tiles: &[Tile]) -> Result<Array3<u8>> {
        if tiles.is_empty() {
            bail!(input, "there are no pictures to lay out; give at least one");
        }
        Size::new(1, self.tile_width.max(1)).check()?;
        let mut pictures = Vec::with_capacity(tiles.len());
        for tile in tiles {
            let (height, width, _) = tile.picture.dim();
            let scaled = (height as f64 * self.tile_width as f64 / width.max(1) as f64).round() as usize;
            let size = Size::new(scaled.max(1), self.tile_width);
            let filter = match height.max(width) {
                0..64 => Filter::Nearest,
                _ if self.tile_width > width => Filter::Bicubic,
                _ => Filter::Bilinear,
            };
            pictures.push(resize_rgb8(tile.picture.view(), size, filter)?);
        }
        let columns = self.column_count(&pictures);
        let dark = self.background.iter().map(|&value| u32::from(value)).sum::<u32>() < 3 * 128;
        let (ink, soft) = if dark { ([240; 3], [170; 3]) } else { ([30, 32, 36], [110, 114, 120]) };
        let heading = Text::new(17.5).bold().color(ink);
        let title = Text::new(12.0).bold().color(ink);
        let note = Text::new(10.5).color(soft);
        let lines = |text: &Text, used: bool| if used { text.height() + 7 } else { 0 };

        // The height of each row: its tallest picture and the caption lines that one of its tiles has.
        let rows: Vec<(usize, usize, usize)> = pictures
            .chunks(columns)
            .zip(tiles.chunks(columns))
            .map(|(pictures, tiles)| {
                let picture = pictures.iter().map(|picture| picture.dim().0).max().unwrap_or(0);
                let titles = lines(&title, tiles.iter().any(|tile| !tile.title.is_empty()));
                (picture, titles, lines(&note, tiles.iter().any(|tile| !tile.note.is_empty())))
            })
            .collect();
        let top = self.margin + if self.title.is_empty() { 0 } else { heading.height() + 14 };
        let height =
            rows.iter().fold(top, |height, (a, b, c)| height.saturating_add(a + b + c + self.margin));
        let width =
            columns.saturating_mul(self.tile_width.saturating_add(self.margin)).saturating_add(self.margin);
        Size::new(height, width).check()?;

        let mut sheet = filled(height, width, self.background);
        let left = self.margin as i64;
        if !self.title.is_empty() {
            let line = heading.shortened(&self.title, width - 2 * self.margin);
            heading.draw(&mut sheet, &line, (left, left));
        }
        let mut row_top = top;
        for (row, &(picture_height, title_height, note_height)) in rows.iter().enumerate() {
            for column in 0..columns.min(tiles.len() - row * columns) {
                let (tile, picture) = (&tiles[row * columns + column], &pictures[row * columns + column]);
                let left = self.margin + column * (self.tile_width + self.margin);
                self.place(&mut sheet, picture, row_top, left);
                let mut line_top = row_top + picture_height + 8;
                for (style, text, line_height) in
                    [(&title, &tile.title, title_height), (&note, &tile.note, note_height)]
                {
                    let line = style.shortened(text, self.tile_width);
                    style.draw(&mut sheet, &line, (line_top as i64, left as i64 + 2));
                    line_top += line_height;
                }
            }
            row_top += picture_height + title_height + note_height + self.margin;
        }
        Ok(sheet)
    }

    fn column_count(&self, pictures: &[Array3<u8>]) -> usize {
        if self.columns > 0 {
            return self.columns.min(pictures.len());
        }
        let tallest = pictures.iter().map(|picture| picture.dim().0).max().unwrap_or(1) as f64;
        let shape = |columns: usize| {
            let rows = pictures.len().div_ceil(columns);
            (columns as f64 * self.tile_width as f64 / (rows as f64 * tallest) / 1.5).ln().abs()
        };
        (1..=pictures.len().min(64)).min_by(|&a, &b| shape(a).total_cmp(&shape(b))).unwrap_or(1)
    }

    /// Copies a picture onto the sheet, its corners rounded.
    fn place(&self, sheet: &mut Array3<u8>, picture: &Array3<u8>, top: usize, left: usize) {
        let (height, width, _) = picture.dim();
        let mut area = part_mut(sheet, top..top + height, left..left + width);
        area.assign(picture);
        let radius = 6.min(height / 2).min(width / 2);
        for row in 0..radius {
            for column in 0..radius {
                let (dy, dx) = ((radius - row) as f32 - 0.5, (radius - column) as f32 - 0.5);
                let outside = (dx.hypot(dy) - radius as f32 + 0.5).clamp(0.0, 1.0);
                for (row, column) in [
                    (row, column),
                    (row, width - 1 - column),
                    (height - 1 - row, column),
                    (height - 1 - row, width - 1 - column),
                ] {
                    for (channel, &behind) in self.background.iter().enumerate() {
                        let value = f32::from(area[[row, column, channel]]);
                        area[[row, column, channel]] =
                            (value + outside * (f32::from(behind) - value)).round() as u8;
                    }
                }
            }
        }
    }
}

/// keras-vis's `stitch_images`: pictures of one shape, row by row, with black gaps of `margin` pixels between them.
///
/// # Errors
/// If there are no pictures, they differ in shape, `columns` is 0, or the result would be too large.
pub fn stitch(pictures: &[ArrayView3<'_, u8>], margin: usize, columns: usize) -> Result<Array3<u8>> {
    let Some(first) = pictures.first() else {
        bail!(input, "there are no pictures to stitch; give at least one");
    };
    if columns == 0 {
        bail!(option, "cannot stitch pictures in 0 columns; expected at least 1");
    }
    if let Some(other) = pictures.iter().find(|picture| picture.dim() != first.dim() || picture.dim().2 != 3)
    {
        bail!(
            shape,
            "expected pictures of one shape [h, w, 3], found {:?} and {:?}",
            first.shape(),
            other.shape()
        );
    }
    let (height, width, _) = first.dim();
    let columns = columns.min(pictures.len());
    let rows = pictures.len().div_ceil(columns);
    let length =
        |count: usize, side: usize| count.saturating_mul(side.saturating_add(margin)).saturating_sub(margin);
    let size = Size::new(length(rows, height), length(columns, width));
    size.check()?;
    let mut sheet = filled(size.height, size.width, [0; 3]);
    for (index, picture) in pictures.iter().enumerate() {
        let (top, left) = (index / columns * (height + margin), index % columns * (width + margin));
        part_mut(&mut sheet, top..top + height, left..left + width).assign(picture);
    }
    Ok(sheet)
}

fn filled(height: usize, width: usize, color: [u8; 3]) -> Array3<u8> {
    Array3::from_shape_fn((height, width, 3), |(_, _, channel)| color[channel])
}
