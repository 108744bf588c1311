//! Pictures in and heatmaps out: everything between a file on disk and the array that a network takes, and between
//! an attribution and a picture that a person looks at.
//!
//! This module knows arrays only, no graph and no model. The way in is [`Picture`] → [`Preprocess`] →
//! [`Prepared::tensor`]; the way out is [`Normalize`] → [`Colormap`] → [`Render`] → [`save_png`].
//!
//! Pictures are RGB with values 0..=255, of shape `[height, width, 3]`; heatmaps are one channel, `[height, width]`,
//! 0..=1, or -1..=1 for signed ones. Sizes are always given height first.
//!
//! ```
//! use ouzel::image::{Colormap, Normalize, Picture, Preprocess, Preset, Render, Size};
//! # let folder = std::env::temp_dir().join(format!("ouzel-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! # let (photo, explained) = (folder.join("photo.png"), folder.join("explained.png"));
//! # ouzel::image::save_png(&photo, ndarray::Array3::from_elem((40, 60, 3), 90).view())?;
//! let picture = Picture::open(&photo)?;
//! let prepared = Preprocess::default().preset(Preset::Imagenet).size(Size::new(32, 32)).apply(&picture)?;
//! assert_eq!(prepared.tensor.shape(), [1, 3, 32, 32]);
//!
//! // The attribution of a network would stand here.
//! let attribution = ndarray::Array2::from_shape_fn((32, 32), |(row, column)| (row * column) as f32);
//! let heatmap = Normalize::default().apply(attribution.view())?;
//! let whole = prepared.geometry.project(heatmap.view(), 0.0)?;
//! let overlay = Render::default().colormap("viridis".parse()?).overlay(picture.rgb8(), whole.view())?;
//! ouzel::image::save_png(&explained, overlay.view())?;
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod blur;
mod colormap;
mod grid;
mod labels;
mod load;
mod names;
mod normalize;
mod preprocess;
mod render;
mod resize;
mod save;
mod segments;
mod text;
mod upsampling;

pub(crate) use blur::{Border, gaussian_blur};
pub use colormap::{COLORMAPS, Colormap, ColormapEntry, ColormapKind};
pub use grid::{Grid, Tile, stitch};
pub use labels::Labels;
pub use load::Picture;
pub use normalize::{EPSILON, Normalize, Scale, clip_percentile, min_max, per_sample, symmetric, within};
pub use preprocess::{Channels, Fit, Geometry, Layout, Prepared, Preprocess, Preset, Region, Size};
pub use render::{Blend, Render, View, overlay};
pub use resize::{Filter, resize_map, resize_rgb8};
pub use save::{encode_gif, encode_png, save_png, save_whole};
pub(crate) use segments::Neighbors;
pub use text::Text;
pub use upsampling::Upsampling;
