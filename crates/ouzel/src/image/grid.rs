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
        let top = self.margin.saturating_add(if self.title.is_empty() { 0 } else { heading.height() + 14 });
        let height = rows
            .iter()
            .fold(top, |height, (a, b, c)| height.saturating_add(a + b + c).saturating_add(self.margin));
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
        let count = pictures.len();
        // A sheet one and a half times as wide as it is high, with few empty places.
        let ugliness = |columns: usize| {
            let rows = count.div_ceil(columns);
            let shape = (columns as f64 * self.tile_width as f64 / (rows as f64 * tallest) / 1.5).ln().abs();
            shape + (columns * rows - count) as f64 / count as f64
        };
        (1..=count.min(64)).min_by(|&a, &b| ugliness(a).total_cmp(&ugliness(b))).unwrap_or(1)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(height: usize, width: usize, value: u8) -> Array3<u8> {
        Array3::from_elem((height, width, 3), value)
    }

    #[test]
    fn tiles_stand_in_rows() {
        let tiles: Vec<Tile> = (1..=3).map(|index| Tile::new(flat(100, 200, 40 * index))).collect();
        let sheet = Grid::default().columns(2).tile_width(200).margin(10).draw(&tiles).unwrap();
        assert_eq!(sheet.dim(), (230, 430, 3));
        for ((row, column), value) in [((60, 110), 40), ((60, 320), 80), ((170, 110), 120), ((170, 320), 255)]
        {
            assert_eq!(sheet[[row, column, 0]], value, "at {row}, {column}");
        }
        assert_eq!(sheet[[10, 10, 0]], 255, "corners are rounded");
    }

    #[test]
    fn captions_and_heading_have_room() {
        let long = "a caption that is much too long for its tile and must be shortened";
        let tile = Tile::new(flat(90, 90, 128)).title(long).note(long);
        let bare = Grid::default().tile_width(90).draw(&[Tile::new(flat(90, 90, 128))]).unwrap();
        let sheet = Grid::default().tile_width(90).title(long).draw(&[tile.clone(), tile]).unwrap();
        assert!(sheet.dim().0 > bare.dim().0 + 50);
        // Nothing is written into the margins.
        let (height, width, _) = sheet.dim();
        for row in 0..height {
            for column in [0, 18, width - 18, width - 1] {
                assert_eq!(sheet[[row, column, 0]], 255, "at {row}, {column}");
            }
        }
        let dark = Grid::default().background([20; 3]).title("x").draw(&[Tile::new(flat(9, 9, 0))]).unwrap();
        assert!(dark.iter().any(|&value| value > 200), "text on a dark background is light");
    }

    #[test]
    fn sheets_are_wider_than_high() {
        for count in [1, 2, 4, 6, 9, 25] {
            let tiles = vec![Tile::new(flat(64, 64, 0)); count];
            let (height, width, _) = Grid::default().tile_width(64).margin(2).draw(&tiles).unwrap().dim();
            assert!(width * 10 >= height * 9 && width < height * 3, "{count} tiles: {height} x {width}");
        }
    }

    #[test]
    fn stitching_is_keras_viss() {
        let pictures = [flat(2, 3, 1), flat(2, 3, 2), flat(2, 3, 3)];
        let views: Vec<_> = pictures.iter().map(|picture| picture.view()).collect();
        let sheet = stitch(&views, 1, 2).unwrap();
        let rows: Vec<Vec<u8>> =
            (0..5).map(|row| (0..7).map(|column| sheet[[row, column, 0]]).collect()).collect();
        assert_eq!(rows[0], [1, 1, 1, 0, 2, 2, 2]);
        assert_eq!(rows[2], [0; 7]);
        assert_eq!(rows[4], [3, 3, 3, 0, 0, 0, 0]);
        assert_eq!(stitch(&views, 5, 9).unwrap().dim(), (2, 19, 3));
    }

    #[test]
    fn impossible_sheets_are_errors() {
        let picture = flat(2, 2, 0);
        assert!(Grid::default().draw(&[]).unwrap_err().is_input());
        assert!(Grid::default().draw(&[Tile::new(flat(0, 4, 0))]).is_err());
        assert!(Grid::default().tile_width(usize::MAX).draw(&[Tile::new(picture.clone())]).is_err());
        assert!(Grid::default().margin(usize::MAX).draw(&[Tile::new(picture.clone())]).is_err());
        assert!(Grid::default().tile_width(0).draw(&[Tile::new(picture.clone())]).is_err());
        assert!(stitch(&[], 1, 1).is_err());
        assert!(stitch(&[picture.view()], 1, 0).unwrap_err().is_option());
        assert!(stitch(&[picture.view(), flat(3, 2, 0).view()], 1, 1).unwrap_err().is_shape());
        assert!(stitch(&[picture.view(), picture.view()], usize::MAX, 1).is_err());
    }
}
