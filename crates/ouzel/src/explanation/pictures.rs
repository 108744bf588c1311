//! Pictures in, pictures out: preprocessing before a saved explanation, and colors behind it, as nodes.

use crate::builder::Var;
use crate::dim::Shape;
use crate::error::{Result, bail};
use crate::graph::Fact;
use crate::image::{Blend, Channels, Layout, Preprocess, Render};
use crate::tensor::{DType, Tensor};

/// The shape `[n, height, width, 3]` of pictures for an input.
pub(super) fn shape(input: &Fact, preprocess: &Preprocess) -> Result<Shape> {
    let [n, b, c, d] = &input.shape[..] else {
        bail!(
            option,
            "a picture needs an input of 4 axes (batch, channels, height and width), found {input}"
        );
    };
    let (channels, height, width) = match preprocess.layout {
        Layout::Nchw => (b, c, d),
        Layout::Nhwc => (d, b, c),
    };
    let count = preprocess.channel_order().count();
    if channels.known().is_some_and(|known| known != count as i64) {
        bail!(
            option,
            "the input takes {input}, which as {} has {channels} channels; pictures give {count}",
            preprocess.layout
        );
    }
    Ok(vec![n.clone(), height.clone(), width.clone(), 3.into()])
}

/// Constants along the last axis.
fn along<'b>(x: Var<'b>, values: impl IntoIterator<Item = f32>) -> Var<'b> {
    x.builder().constant(Tensor::vector(values).cast(x.dtype()))
}

/// The input of the network for 8-bit RGB pictures `[n, h, w, 3]` of its size, as [`Preprocess`] makes it.
pub(super) fn prepared<'b>(pictures: Var<'b>, preprocess: &Preprocess, dtype: DType) -> Result<Var<'b>> {
    let levels = pictures.cast(dtype);
    let levels = match preprocess.channel_order() {
        Channels::Rgb => levels,
        Channels::Bgr => levels.gather(3, vec![2, 1, 0]),
        Channels::Grey => (levels * along(levels, [0.299, 0.587, 0.114])).reduce_sum([3], true),
    };
    let scaling = preprocess.scaling()?;
    let mut values = levels;
    if scaling.divisor != 1.0 {
        values = values / f64::from(scaling.divisor);
    }
    if scaling.mean.iter().any(|&mean| mean != 0.0) {
        values = values - along(values, scaling.mean);
    }
    if scaling.std.iter().any(|&std| std != 1.0) {
        values = values / along(values, scaling.std);
    }
    Ok(match preprocess.layout {
        Layout::Nchw => values.transpose([0, 3, 1, 2]),
        Layout::Nhwc => values,
    })
}

/// The pictures `[n, h, w, 3]` under their heatmaps `[n, h, w]`, in their own size, by the formula of
/// [`Render::overlay`]; no outliers are clipped.
pub(super) fn overlay<'b>(pictures: Var<'b>, map: Var<'b>, render: &Render) -> Result<Var<'b>> {
    if render.colormap.is_diverging() {
        bail!(
            option,
            "a saved heatmap goes from 0 to 1, which the colors of {} are not for",
            render.colormap.name()
        );
    }
    if !(0.0..=1.0).contains(&render.alpha) {
        bail!(option, "impossible alpha {}; expected 0 (picture only) to 1 (heatmap only)", render.alpha);
    }
    let builder = map.builder();
    let value = map.maximum(0.0).minimum(1.0);
    let stops = render.colormap.stops();
    let table: Vec<f32> = stops.iter().flatten().map(|&level| level.into()).collect();
    let table = builder.constant(Tensor::from_shape_vec(&[stops.len(), 3], table)?.cast(map.dtype()));
    let position = value * (stops.len() - 1) as f64;
    let below = position.cast(DType::I64);
    let above = (below + 1.0).minimum((stops.len() - 1) as f64);
    let mix = (position - below.cast(map.dtype())).unsqueeze([3]);
    let (low, high) = (table.gathered(below), table.gathered(above));
    let color = low + mix * (high - low);
    let levels = pictures.cast(map.dtype());
    let (opacity, base) = match render.blend {
        Blend::Constant => (value * 0.0 + f64::from(render.alpha), levels),
        Blend::Weighted => {
            let alpha = f64::from(render.alpha);
            let away = -value + 1.0;
            let grey = (levels * along(levels, [0.299, 0.587, 0.114])).reduce_sum([3], true);
            let base = (levels + (grey - levels) * (0.6 * alpha)) * (1.0 - 0.35 * alpha);
            ((-(away * away) + 1.0) * alpha, base)
        }
    };
    let shown = base + opacity.unsqueeze([3]) * (color - base);
    Ok((shown + 0.5).cast(DType::U8))
}
