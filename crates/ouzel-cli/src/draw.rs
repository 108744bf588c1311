//! From an attribution to the picture that a person looks at.

use crate::input::Backdrop;
use crate::job::Output;
use anyhow::{Result, bail};
use ndarray::{Array2, Array3, ArrayD, Axis, IxDyn};
use ouzel::image::{Grid, Render, Tile, View, symmetric};
use ouzel::{Attribution, GradModifier};

/// Batches of more samples are cut off in pictures; arrays have all of them.
pub const MOST_TILES: usize = 64;

/// Draws the maps of all samples: one picture, or a sheet of captioned ones.
pub fn draw(
    attribution: &Attribution,
    modifier: &GradModifier,
    output: &Output,
    backdrop: &Backdrop,
    captions: &[String],
) -> Result<Array3<u8>> {
    let mut render = if modifier.is_signed() { Render::signed() } else { Render::default() };
    if let Some(colormap) = &output.colormap {
        render = render.colormap(colormap.clone());
    }
    if let Some(alpha) = output.alpha {
        render = render.alpha(alpha);
    }
    let maps = match modifier.is_signed() && render.colormap.is_diverging() {
        true => signed_maps(attribution, modifier)?,
        false => attribution.maps(modifier, false)?,
    };
    let maps = if maps.ndim() == 0 { maps.insert_axis(Axis(0)) } else { maps };
    let mut tiles = Vec::new();
    for (index, map) in maps.outer_iter().enumerate().take(MOST_TILES) {
        let is_flat = map.ndim() == 2;
        let map = flat(map.to_owned())?;
        let view = output.view.unwrap_or(View::Overlay);
        let drawn = match backdrop {
            Backdrop::Picture(picture, geometry) if is_flat => {
                let whole = geometry.project(map.view(), 0.0)?;
                render.view(view, picture.rgb8(), whole.view())?
            }
            Backdrop::Samples(samples) if is_flat && samples.len() == maps.shape()[0] => {
                render.view(view, samples[index].view(), map.view())?
            }
            _ if matches!(output.view, None | Some(View::Heatmap)) => render.heatmap(map.view())?,
            _ => bail!(
                "--view {view}: there is no picture under the map of '{}'; use --view heatmap",
                attribution.tensor
            ),
        };
        tiles.push(drawn);
    }
    match tiles.len() {
        0 => bail!("there is nothing to draw: the map of '{}' is empty", attribution.tensor),
        1 => Ok(tiles.remove(0)),
        _ => {
            let captions = captions.iter().cloned().chain(std::iter::repeat(String::new()));
            let tiles: Vec<Tile> =
                tiles.into_iter().zip(captions).map(|(tile, caption)| Tile::new(tile).title(caption)).collect();
            Ok(Grid::default().draw(&tiles)?)
        }
    }
}

/// The maps of each sample, -1..=1: of the channels, the value of the largest magnitude.
///
/// The plain maximum, which the arrays have, would hide that a pixel lowers the target as soon as one of its channels
/// raises it a little.
fn signed_maps(attribution: &Attribution, modifier: &GradModifier) -> Result<ArrayD<f32>> {
    let modified = attribution.modified(modifier, true)?;
    let reduced = match attribution.channel_axis {
        Some(axis) if modified.ndim() > 2 => modified
            .fold_axis(Axis(axis), 0.0, |&most, &value: &f64| if value.abs() > f64::abs(most) { value } else { most }),
        _ => modified,
    };
    let reduced = if reduced.ndim() == 0 { reduced.insert_axis(Axis(0)) } else { reduced };
    let mut maps = ArrayD::zeros(reduced.raw_dim());
    for (sample, mut map) in reduced.outer_iter().zip(maps.outer_iter_mut()) {
        map.assign(&symmetric(sample)?);
    }
    Ok(maps)
}

/// A map as rows and columns: a vector becomes a band.
fn flat(map: ArrayD<f32>) -> Result<Array2<f32>> {
    let shape = map.shape().to_vec();
    let map = match shape[..] {
        [] => map.insert_axis(Axis(0)).insert_axis(Axis(0)),
        [length] => {
            let band = IxDyn(&[length.div_ceil(8), length]);
            map.broadcast(band).expect("invariant: rows can be repeated").to_owned()
        }
        [_, _] => map,
        _ => bail!("a map of shape {shape:?} cannot be drawn; write it as an array with --npy FILE"),
    };
    Ok(map.into_dimensionality().expect("invariant: the map has two axes"))
}
