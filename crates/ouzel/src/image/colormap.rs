//! Colors for heatmaps: one table of colormaps, each a line of data, and the same language for a user's own.

use super::names::canonical;
use crate::error::{Error, Result, bail};
use ndarray::{Array3, ArrayView2};
use std::fmt;
use std::str::FromStr;

/// What the order of a colormap's colors means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColormapKind {
    /// For 0..=1; lightness rises, so that more looks like more, in print and for the color-blind too.
    Sequential,
    /// For 0..=1, ordered by hue; lightness rises and falls, so that edges appear where the map has none.
    Rainbow,
    /// For -1..=1; neutral at 0, one hue for each sign.
    Diverging,
}

/// A row of [`COLORMAPS`].
#[derive(Clone, Copy, Debug)]
pub struct ColormapEntry {
    /// The snake_case name.
    pub name: &'static str,
    /// Sequential, rainbow or diverging.
    pub kind: ColormapKind,
    /// What it looks like and where it comes from.
    pub about: &'static str,
    /// The colors, as [`Colormap`] parses them.
    pub source: &'static str,
}

/// The colormaps that have a name.
///
/// A name borrowed from matplotlib has matplotlib's table of 256 colors; `conformance/colormaps.py` writes and checks
/// them. viridis, magma and inferno are by Nathaniel J. Smith, Stéfan van der Walt and Eric Firing (CC0); turbo is by
/// Anton Mikhailov, Google (Apache-2.0); coolwarm is by Kenneth Moreland; RdBu is by Cynthia Brewer, ColorBrewer
/// (Apache-2.0 style); jet and seismic are matplotlib's (matplotlib license).
pub const COLORMAPS: &[ColormapEntry] = {
    use ColormapKind::{Diverging, Rainbow, Sequential};
    &[
        row("viridis", Sequential, "blue, green, yellow (matplotlib)", include_str!("colormaps/viridis.hex")),
        row("magma", Sequential, "black, purple, cream (matplotlib)", include_str!("colormaps/magma.hex")),
        row("inferno", Sequential, "black, red, yellow (matplotlib)", include_str!("colormaps/inferno.hex")),
        row("grey", Sequential, "black to white", "000,fff"),
        row("hot", Sequential, "black, red, yellow, white, at equal distances", "000,f00,ff0,fff"),
        row(
            "jet",
            Rainbow,
            "blue, cyan, yellow, red (matplotlib); keras-vis's",
            include_str!("colormaps/jet.hex"),
        ),
        row("turbo", Rainbow, "a smoother jet (Google)", include_str!("colormaps/turbo.hex")),
        row("coolwarm", Diverging, "soft blue, grey, red (Moreland)", include_str!("colormaps/coolwarm.hex")),
        row("seismic", Diverging, "blue, white, red (matplotlib)", include_str!("colormaps/seismic.hex")),
        row(
            "rdbu",
            Diverging,
            "red for negative, white, blue (ColorBrewer)",
            include_str!("colormaps/rdbu.hex"),
        ),
    ]
};

const fn row(
    name: &'static str,
    kind: ColormapKind,
    about: &'static str,
    source: &'static str,
) -> ColormapEntry {
    ColormapEntry { name, kind, about, source }
}

/// Colors for the values of a heatmap.
///
/// Parses from a name of [`COLORMAPS`] (`-` equals `_`), a name with `_r` for the reversed map, or colors in hexadecimal
/// at equal distances, `000,f00,ff0,fff`, with `diverging:` before them if they are for -1..=1.
///
/// **Formula**: the position `p = v · (n - 1)` for `v` in 0..=1, `(v + 1)/2` taken for diverging maps, among `n` colors;
/// linear in between. So a table of 256 colors is met exactly at k/255, and 0 of a diverging map is its very middle.
///
/// **Known criticism**: jet and turbo are ordered by hue. Their lightness is not monotone, so they draw contours that
/// the map does not have, exaggerate cyan and yellow, and mislead the color-blind; jet is here because many papers and
/// keras-vis use it (Borland and Taylor, *Rainbow Color Map (Still) Considered Harmful*, 2007).
///
/// ```
/// use ouzel::image::Colormap;
/// let jet: Colormap = "jet".parse()?;
/// assert_eq!(jet.color(0.0), [0, 0, 128]);
/// let own: Colormap = "000,f00,ff0".parse()?;
/// assert_eq!(own.color(0.25), [128, 0, 0]);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Colormap {
    name: String,
    kind: ColormapKind,
    stops: Vec<[u8; 3]>,
}

impl Colormap {
    /// The names of [`COLORMAPS`], in its order.
    pub fn names() -> impl Iterator<Item = &'static str> {
        COLORMAPS.iter().map(|entry| entry.name)
    }

    /// The name, or the source text of a colormap without one.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sequential, rainbow or diverging.
    pub fn kind(&self) -> ColormapKind {
        self.kind
    }

    /// True if the colors are for -1..=1 rather than 0..=1.
    pub fn is_diverging(&self) -> bool {
        self.kind == ColormapKind::Diverging
    }

    /// The colors that values between are interpolated from; 256 for borrowed tables.
    pub fn stops(&self) -> &[[u8; 3]] {
        &self.stops
    }

    /// The color of a value in 0..=1, or -1..=1 for diverging maps, before rounding; values outside are clamped and NaN
    /// is taken as 0.
    pub fn shade(&self, value: f32) -> [f32; 3] {
        let value = if value.is_nan() { 0.0 } else { value };
        let share = if self.is_diverging() { (value + 1.0) / 2.0 } else { value };
        let position = share.clamp(0.0, 1.0) * (self.stops.len() - 1) as f32;
        let below = position as usize;
        let above = (below + 1).min(self.stops.len() - 1);
        let mix = position - below as f32;
        let (low, high) = (self.stops[below].map(f32::from), self.stops[above].map(f32::from));
        std::array::from_fn(|channel| low[channel] + mix * (high[channel] - low[channel]))
    }

    /// [`Self::shade`], rounded.
    pub fn color(&self, value: f32) -> [u8; 3] {
        self.shade(value).map(|channel| channel.round() as u8)
    }

    /// The 8-bit RGB picture `[h, w, 3]` of a heatmap `[h, w]`.
    pub fn apply(&self, heatmap: ArrayView2<'_, f32>) -> Array3<u8> {
        let (height, width) = heatmap.dim();
        let colors = heatmap.iter().flat_map(|&value| self.color(value)).collect();
        Array3::from_shape_vec((height, width, 3), colors).expect("invariant: three values for each pixel")
    }
}

impl fmt::Display for Colormap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

impl FromStr for Colormap {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let name = canonical(text);
        let named = |name: &str| COLORMAPS.iter().find(|entry| entry.name == name);
        let plain = match name.as_str() {
            "gray" | "gray_r" => name.replace('a', "e"),
            _ => name.clone(),
        };
        if let Some(entry) = named(&plain) {
            return Ok(Self { name: plain, kind: entry.kind, stops: stops(entry.source)? });
        }
        if let Some(entry) = plain.strip_suffix("_r").and_then(named) {
            let mut stops = stops(entry.source)?;
            stops.reverse();
            return Ok(Self { name: plain, kind: entry.kind, stops });
        }
        if !text.contains(',') {
            let names: Vec<_> = Self::names().collect();
            bail!(
                option,
                "unknown colormap {text:?}; use one of: {} (_r behind a name reverses it), \
                 or colors in hexadecimal as in 000,f00,ff0,fff",
                names.join(", ")
            );
        }
        let (kind, colors) = match name.strip_prefix("diverging:") {
            Some(colors) => (ColormapKind::Diverging, colors),
            None => (ColormapKind::Sequential, name.as_str()),
        };
        Ok(Self { stops: stops(colors)?, kind, name })
    }
}

/// The colors of a source text: at least two, `fff` or `ffffff`, `#` before them allowed, separated by commas.
fn stops(source: &str) -> Result<Vec<[u8; 3]>> {
    let texts = source.split(',').map(str::trim).filter(|text| !text.is_empty());
    let colors: Vec<[u8; 3]> = texts
        .map(|text| {
            let digits: Option<Vec<u8>> =
                text.trim_start_matches('#').chars().map(|digit| Some(digit.to_digit(16)? as u8)).collect();
            match digits.as_deref() {
                Some(&[r, g, b]) => Ok([r * 17, g * 17, b * 17]),
                Some(&[r, s, g, h, b, c]) => Ok([r * 16 + s, g * 16 + h, b * 16 + c]),
                _ => bail!(
                    option,
                    "cannot read the color {text:?}; expected 3 or 6 hexadecimal digits, as in f80"
                ),
            }
        })
        .collect::<Result<_>>()?;
    if colors.len() < 2 {
        bail!(option, "a colormap needs at least 2 colors, found {} in {source:?}", colors.len());
    }
    Ok(colors)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Colormap> {
        Colormap::names().map(|name| name.parse().unwrap())
    }

    /// CIE L* of an sRGB color.
    fn lightness(color: [u8; 3]) -> f64 {
        let linear = color.map(|value| {
            let value = f64::from(value) / 255.0;
            if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
        });
        let luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
        if luminance > 0.008856 { 116.0 * luminance.cbrt() - 16.0 } else { 903.3 * luminance }
    }

    #[test]
    fn borrowed_tables_are_whole() {
        for colormap in all().filter(|colormap| !["grey", "hot"].contains(&colormap.name())) {
            assert_eq!(colormap.stops().len(), 256, "{colormap}");
        }
    }

    /// Reference: `matplotlib.colors.to_hex(matplotlib.colormaps[name](index))`, matplotlib 3.11.
    #[test]
    fn spot_values_are_matplotlibs() {
        let cases = [
            ("viridis", ["440154", "414487", "21908d", "21918c", "7ad151", "fde725"]),
            ("magma", ["000004", "3b0f70", "b5367a", "b73779", "fe9f6d", "fcfdbf"]),
            ("inferno", ["000004", "420a68", "ba3655", "bc3754", "fca50a", "fcffa4"]),
            ("turbo", ["30123b", "3e9bfe", "a1fd3d", "a4fc3c", "f05b12", "7a0403"]),
            ("jet", ["000080", "004cff", "7aff7d", "7dff7a", "ff6800", "800000"]),
            ("coolwarm", ["3b4cc0", "7b9ff9", "dcdddd", "dddcdc", "ee8468", "b40426"]),
            ("seismic", ["00004c", "0000db", "fdfdff", "fffdfd", "e60000", "800000"]),
            ("rdbu", ["67001f", "d6604d", "f7f6f6", "f6f7f7", "4393c3", "053061"]),
        ];
        for (name, colors) in cases {
            let colormap: Colormap = name.parse().unwrap();
            for (index, expected) in [0, 51, 127, 128, 204, 255].into_iter().zip(colors) {
                let share = index as f32 / 255.0;
                let [r, g, b] =
                    colormap.color(if colormap.is_diverging() { 2.0 * share - 1.0 } else { share });
                assert_eq!(format!("{r:02x}{g:02x}{b:02x}"), expected, "{name} at {index}");
            }
        }
    }

    #[test]
    fn endpoints_and_values_outside() {
        for colormap in all() {
            let low = if colormap.is_diverging() { -1.0 } else { 0.0 };
            let (first, last) = (colormap.stops()[0], *colormap.stops().last().unwrap());
            assert_eq!((colormap.color(low), colormap.color(1.0)), (first, last), "{colormap}");
            assert_eq!((colormap.color(-9.0), colormap.color(f32::INFINITY)), (first, last), "{colormap}");
            assert_eq!(colormap.color(f32::NAN), colormap.color(0.0), "{colormap}");
        }
    }

    #[test]
    fn lightness_rises_in_sequential_maps_only() {
        for colormap in all().filter(|colormap| !colormap.is_diverging()) {
            let levels: Vec<f64> =
                (0..=255).map(|index| lightness(colormap.color(index as f32 / 255.0))).collect();
            // Rounding to 8 bits may take a step back.
            let rises = levels.windows(2).all(|pair| pair[1] > pair[0] - 0.2);
            assert_eq!(rises, colormap.kind() == ColormapKind::Sequential, "{colormap}");
        }
    }

    #[test]
    fn the_middle_of_diverging_maps_is_neutral_and_lightest() {
        for colormap in all().filter(Colormap::is_diverging) {
            let middle = colormap.color(0.0);
            let (low, high) = (middle.iter().min().unwrap(), middle.iter().max().unwrap());
            assert!(high - low <= 2, "{colormap}: {middle:?}");
            for value in [-1.0, -0.5, 0.5, 1.0] {
                assert!(lightness(colormap.color(value)) < lightness(middle) - 5.0, "{colormap} at {value}");
            }
        }
    }

    #[test]
    fn names_reversed_names_and_source_text() {
        let parse = |text: &str| text.parse::<Colormap>();
        assert_eq!(parse(" Viridis ").unwrap(), parse("viridis").unwrap());
        assert_eq!(parse("gray").unwrap().name(), "grey");
        assert_eq!(parse("RdBu-r").unwrap().color(1.0), [0x67, 0, 0x1f]);
        assert_eq!(parse("#000, F00,ff8000").unwrap().color(1.0), [255, 128, 0]);
        let signed = parse("diverging:00f,fff,f00").unwrap();
        assert_eq!((signed.color(-1.0), signed.color(0.0)), ([0, 0, 255], [255, 255, 255]));
        for wrong in ["", "jett", "000", "000,", "12,fff", "000,ggg", "diverging:", "000,\u{e9}\u{e9}\u{e9}"]
        {
            assert!(parse(wrong).unwrap_err().is_option(), "{wrong}");
        }
        assert!(parse("jett").unwrap_err().to_string().contains("viridis, magma, inferno"));
    }

    #[test]
    fn names_are_unique_and_canonical() {
        let mut names: Vec<_> = Colormap::names().collect();
        assert!(names.iter().all(|name| canonical(name) == *name && !name.ends_with("_r")));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), COLORMAPS.len());
    }
}
