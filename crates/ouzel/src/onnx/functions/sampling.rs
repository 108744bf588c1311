//! Ops that read a picture between its pixels: where they read may itself be computed, and the gradient flows to both.

use super::{NodeReader, Result, ValueId, bail, known_lengths};
use crate::builder::Var;
#[cfg(test)]
use crate::gradient_check::{FunctionSample, floats};
#[cfg(test)]
use crate::onnx::Attribute;
use crate::ops::activation::Clip;
use crate::ops::elementwise::{Floor, Round};
use crate::ops::gather::Gather;
use crate::ops::layout::Expand;
use crate::ops::scatter::GatherND;
use crate::tensor::{DType, Tensor};

/// What lies beyond the edges.
#[derive(Clone, Copy, PartialEq)]
enum Beyond {
    Zeros,
    Border,
    Reflection,
}

/// How pixels are weighted.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// Pixels with their channels last, and how to find one by its number.
struct Pixels<'b> {
    /// `[N, S, C]`, or `[N · S, C]` if each place says its sample itself.
    elements: Var<'b>,
    /// For each place, the number of its sample's first pixel; shape `[R, 1]`.
    first: Option<Var<'b>>,
    lengths: Vec<i64>,
}

impl<'b> Pixels<'b> {
    /// The pixels of `x` `[N, C, …]`.
    fn new(x: Var<'b>) -> Result<Self> {
        let shape = x.shape();
        if shape.len() < 3 {
            bail!(shape, "expected a picture, found {}", x.fact());
        }
        let known = known_lengths(&shape[1..], "the picture")?;
        let lengths = known[1..].to_vec();
        let elements = x.reshape([-1, known[0], lengths.iter().product()]).transpose([0, 2, 1]);
        Ok(Self { elements, first: None, lengths })
    }

    /// The pixels of `x`, each place of which is in the sample that `samples` `[R]` names.
    fn of_samples(x: Var<'b>, samples: Var<'b>) -> Result<Self> {
        let Self { elements, lengths, .. } = Self::new(x)?;
        let count: i64 = lengths.iter().product();
        let channels = known_lengths(&x.shape()[1..2], "the channels")?[0];
        let first = samples.cast(DType::I64) * x.builder().constant(Tensor::scalar(count));
        Ok(Self { elements: elements.reshape([-1, channels]), first: Some(first.unsqueeze([1])), lengths })
    }

    /// The pixels at whole coordinates within bounds, one tensor `[N, P]` an axis; `[N, P, C]`.
    fn at(&self, places: &[Var<'b>]) -> Var<'b> {
        let builder = self.elements.builder();
        let integer = |value: i64| builder.constant(Tensor::scalar(value));
        let mut index = integer(0);
        for (place, &length) in places.iter().zip(&self.lengths) {
            index = index * integer(length) + place.cast(DType::I64);
        }
        match self.first {
            Some(first) => builder.apply(Gather { axis: 0 }, &[self.elements, index + first]),
            None => builder.apply(GatherND { batch_dims: 1 }, &[self.elements, index.unsqueeze([2])]),
        }
    }
}

fn clamp(x: Var<'_>, low: f64, high: f64) -> Var<'_> {
    x.builder().apply(Clip, &[x, x.scalar_like(low), x.scalar_like(high)])
}

fn floor(x: Var<'_>) -> Var<'_> {
    x.builder().apply(Floor, &[x])
}

/// Mirrors coordinates at two bounds until they are between them.
fn reflect(x: Var<'_>, low: f64, high: f64) -> Var<'_> {
    let range = high - low;
    if range <= 0.0 {
        return x.scalar_like(low).expand_like(x);
    }
    let from = (x - low).abs();
    let round = from - floor(from / (2.0 * range)) * (2.0 * range);
    round.minimum(-round + 2.0 * range) + low
}

/// Where a whole coordinate reads, and whether it reads anything.
fn within(place: Var<'_>, length: i64, beyond: Beyond, bounds: (f64, f64)) -> (Var<'_>, Option<Var<'_>>) {
    let last = (length - 1) as f64;
    match beyond {
        Beyond::Zeros => {
            let inside = place.greater_or_equal(0.0).and(place.less_or_equal(last));
            (clamp(place, 0.0, last), Some(inside))
        }
        Beyond::Border => (clamp(place, 0.0, last), None),
        Beyond::Reflection => (clamp(reflect(place, bounds.0, bounds.1), 0.0, last), None),
    }
}

/// The offsets of the pixels around a coordinate and their weights, `t` being how far it is from the pixel below.
fn taps(mode: Mode, t: Var<'_>) -> Vec<(f64, Var<'_>)> {
    const A: f64 = -0.75;
    match mode {
        Mode::Nearest => vec![(0.0, t.scalar_like(1.0).expand_like(t))],
        Mode::Linear => vec![(0.0, -t + 1.0), (1.0, t)],
        Mode::Cubic => {
            let near = |d| near_weight(d, A);
            let far = |d| far_weight(d, A);
            vec![(-1.0, far(t + 1.0)), (0.0, near(t)), (1.0, near(-t + 1.0)), (2.0, far(-t + 2.0))]
        }
    }
}

/// Keys's cubic within a distance of 1.
fn near_weight(d: Var<'_>, a: f64) -> Var<'_> {
    (d * (a + 2.0) - (a + 3.0)) * d * d + 1.0
}

/// Keys's cubic at a distance of 1 to 2.
fn far_weight(d: Var<'_>, a: f64) -> Var<'_> {
    ((d * a - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a
}

/// The picture at any coordinates, one tensor `[N, P]` an axis; `[N, P, C]`.
fn sample<'b>(
    pixels: &Pixels<'b>,
    coordinates: &[Var<'b>],
    mode: Mode,
    beyond: Beyond,
    bounds: &[(f64, f64)],
) -> Var<'b> {
    /// What one pixel around each coordinate contributes: its place on each axis so far, and its weight.
    struct Tap<'b> {
        places: Vec<Var<'b>>,
        weight: Option<Var<'b>>,
        inside: Option<Var<'b>>,
    }
    let mut all = vec![Tap { places: Vec::new(), weight: None, inside: None }];
    for (axis, &coordinate) in coordinates.iter().enumerate() {
        let below = match mode {
            Mode::Nearest => coordinate.builder().apply(Round, &[coordinate]),
            _ => floor(coordinate),
        };
        let mut next = Vec::new();
        for (offset, weight) in taps(mode, coordinate - below) {
            let (place, inside) = within(below + offset, pixels.lengths[axis], beyond, bounds[axis]);
            for tap in &all {
                let mut places = tap.places.clone();
                places.push(place);
                next.push(Tap {
                    places,
                    weight: match mode {
                        Mode::Nearest => None,
                        _ => Some(tap.weight.map_or(weight, |other| other * weight)),
                    },
                    inside: match (tap.inside, inside) {
                        (Some(a), Some(b)) => Some(a.and(b)),
                        (a, b) => a.or(b),
                    },
                });
            }
        }
        all = next;
    }
    let value = |tap: &Tap<'b>| {
        let read = pixels.at(&tap.places);
        let read = tap.inside.map_or(read, |inside| read.select_where(inside.unsqueeze([2])));
        tap.weight.map_or(read, |weight| read * weight.unsqueeze([2]))
    };
    let first = value(&all[0]);
    all[1..].iter().fold(first, |sum, tap| sum + value(tap))
}

/// A picture where a grid of normalized coordinates says. ONNX `GridSample` 16, 20, 22.
pub(super) fn grid_sample(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let aligned = node.flag_or("align_corners", false)?;
    let mode = match node.string_or("mode", "linear")?.as_str() {
        "linear" | "bilinear" => Mode::Linear,
        "cubic" | "bicubic" => Mode::Cubic,
        "nearest" => Mode::Nearest,
        other => bail!(model, "attribute 'mode': '{other}' is not known"),
    };
    let beyond = match node.string_or("padding_mode", "zeros")?.as_str() {
        "zeros" => Beyond::Zeros,
        "border" => Beyond::Border,
        "reflection" => Beyond::Reflection,
        other => bail!(model, "attribute 'padding_mode': '{other}' is not known"),
    };
    node.build(|_, x| {
        let [Some(x), Some(grid)] = x else { bail!(model, "expected a picture and a grid") };
        let pixels = Pixels::new(*x)?;
        let axes = pixels.lengths.len();
        if grid.rank() != axes + 2 || !grid.shape()[axes + 1].is(axes as i64) {
            bail!(shape, "the grid {} does not fit the picture {}", grid.fact(), x.fact());
        }
        let places = known_lengths(&grid.shape()[1..=axes], "the grid")?;
        let flat = grid.cast(x.dtype()).reshape([-1, places.iter().product(), axes as i64]);
        let (mut coordinates, mut bounds) = (Vec::new(), Vec::new());
        for (axis, &length) in pixels.lengths.iter().enumerate() {
            // The grid names the last axis first.
            let own = (axes - 1 - axis) as i64;
            let normal = flat.slice(2, own, own + 1).squeeze([2]) + 1.0;
            let length = length as f64;
            let (place, low, high) = match aligned {
                true => (normal * ((length - 1.0) / 2.0), 0.0, length - 1.0),
                false => ((normal * length - 1.0) * 0.5, -0.5, length - 0.5),
            };
            let place = if mode == Mode::Nearest { place.builder().apply(Round, &[place]) } else { place };
            let outside = place.less(low).or(place.greater(high));
            coordinates.push(match beyond {
                Beyond::Zeros => place,
                Beyond::Border => clamp(place, 0.0, length - 1.0).select(outside, place),
                Beyond::Reflection => reflect(place, low, high).select(outside, place),
            });
            bounds.push((low, high));
        }
        let y = sample(&pixels, &coordinates, mode, beyond, &bounds);
        let channels = known_lengths(&x.shape()[1..2], "the channels")?[0];
        Ok(vec![y.transpose([0, 2, 1]).reshape([-1, channels].into_iter().chain(places))])
    })
}

/// The grid of an affine map. ONNX `AffineGrid` 20.
pub(super) fn affine_grid(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let aligned = node.flag_or("align_corners", false)?;
    let size = node.required_constant(1, "the size")?.to_integers()?;
    let Some((lengths, axes)) = size.get(2..).map(|lengths| (lengths, lengths.len())) else {
        bail!(shape, "expected the size of a picture, found {size:?}");
    };
    let count = lengths.iter().try_fold(1i64, |count, &length| count.checked_mul(length.max(0)));
    let Some(count) = count.filter(|count| *count < 1 << 28) else {
        bail!(shape, "a grid for {size:?} is out of bounds");
    };
    let mut base = Vec::new();
    for index in 0..count {
        let mut rest = index;
        // The last axis comes first.
        for &length in lengths.iter().rev() {
            let place = (rest % length) as f64;
            rest /= length;
            base.push(match aligned {
                true => -1.0 + 2.0 * place / (length - 1).max(1) as f64,
                false => (2.0 * place + 1.0) / length as f64 - 1.0,
            });
        }
        base.push(1.0);
    }
    let base = Tensor::from_shape_vec(&[count as usize, axes + 1], base)?;
    let lengths = lengths.to_vec();
    node.build(|builder, x| {
        let [Some(theta), ..] = x else { bail!(model, "the map is missing") };
        let base = builder.constant(base.cast(theta.dtype()));
        let y = base.matmul(theta.transpose_last_two());
        Ok(vec![y.reshape([-1].into_iter().chain(lengths).chain([axes as i64]))])
    })
}

/// Pools regions of a picture, each cut into bins with several points. ONNX `RoiAlign` 10, 16, 22.
pub(super) fn roi_align(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let default = if node.opset() < 16 { "output_half_pixel" } else { "half_pixel" };
    let half = match node.string_or("coordinate_transformation_mode", default)?.as_str() {
        "half_pixel" => true,
        "output_half_pixel" => false,
        other => bail!(model, "attribute 'coordinate_transformation_mode': '{other}' is not known"),
    };
    let largest = match node.string_or("mode", "avg")?.as_str() {
        "avg" => false,
        "max" => true,
        other => bail!(model, "attribute 'mode': '{other}' is not known"),
    };
    let (rows, columns) = (node.int_or("output_height", 1)?, node.int_or("output_width", 1)?);
    let points = node.int_or("sampling_ratio", 0)?;
    let scale = node.float_or("spatial_scale", 1.0)?;
    if !(1..=64).contains(&points) {
        bail!(
            unsupported,
            "attribute 'sampling_ratio': {points}; a known number of points is supported only"
        );
    }
    if !(1..=4096).contains(&rows) || !(1..=4096).contains(&columns) {
        bail!(model, "an output of {rows} by {columns} is out of bounds");
    }
    node.build(|builder, x| {
        let [Some(x), Some(regions), Some(samples)] = x else { bail!(model, "an input is missing") };
        if x.rank() != 4 {
            bail!(shape, "expected a picture of rank 4, found {}", x.fact());
        }
        let pixels = Pixels::of_samples(*x, *samples)?;
        let edges = *regions * scale - if half { 0.5 } else { 0.0 };
        let edge = |index: i64| edges.slice(1, index, index + 1);
        // The coordinates of all points of an axis, and which of them are near enough to the picture.
        let along = |first: i64, count: i64, length: i64| {
            let start = edge(first);
            let size = edge(first + 2) - start;
            let size = if half { size } else { size.maximum(1.0) };
            let parts = (0..count * points).map(|index| (index as f64 + 0.5) / (count * points) as f64);
            let place = start + size * builder.constant(Tensor::vector(parts).cast(x.dtype())).unsqueeze([0]);
            let near = place.greater_or_equal(-1.0).and(place.less_or_equal(length as f64));
            (clamp(place, 0.0, (length - 1) as f64), near)
        };
        let (y, near_y) = along(1, rows, pixels.lengths[0]);
        let (x_place, near_x) = along(0, columns, pixels.lengths[1]);
        let (height, width) = (rows * points, columns * points);
        let shape = builder.integers([1, height, width]);
        let flatten = |v| builder.apply(Expand, &[v, shape]).reshape([-1, height * width]);
        let near = near_y.unsqueeze([2]).and(near_x.unsqueeze([1])).reshape([-1, height * width]);
        let places = [flatten(y.unsqueeze([2])), flatten(x_place.unsqueeze([1]))];
        let values = corners(&pixels, &places).map(|value| value.select_where(near.unsqueeze([2])));
        let channels = known_lengths(&x.shape()[1..2], "the channels")?[0];
        let bins = [-1, rows, points, columns, points, channels];
        let y = match largest {
            // The largest of the four weighted pixels around each point, as the standard has it.
            true => {
                let value = values[1..].iter().fold(values[0], |most, value| most.maximum(*value));
                value.reshape(bins).reduce_max([2, 4], false)
            }
            false => {
                let value = values[1..].iter().fold(values[0], |sum, value| sum + *value);
                value.reshape(bins).reduce_mean([2, 4], false)
            }
        };
        Ok(vec![y.transpose([0, 3, 1, 2])])
    })
}

/// The four pixels around each coordinate, which lies within the picture, each times its weight.
fn corners<'b>(pixels: &Pixels<'b>, coordinates: &[Var<'b>; 2]) -> [Var<'b>; 4] {
    let [y, x] = *coordinates;
    let last = |axis: usize| (pixels.lengths[axis] - 1) as f64;
    let (top, left) = (floor(y), floor(x));
    let (bottom, right) = ((top + 1.0).minimum(last(0)), (left + 1.0).minimum(last(1)));
    let (low, near) = (y - top, x - left);
    let value = |row, column, weight: Var<'b>| pixels.at(&[row, column]) * weight.unsqueeze([2]);
    [
        value(top, left, (-low + 1.0) * (-near + 1.0)),
        value(top, right, (-low + 1.0) * near),
        value(bottom, left, low * (-near + 1.0)),
        value(bottom, right, low * near),
    ]
}

/// A convolution whose kernel reads the picture with computed offsets. ONNX `DeformConv` 19, 22.
pub(super) fn deform_conv(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let group = node.int_or("group", 1)?;
    let offset_groups = node.int_or("offset_group", 1)?;
    node.ignore("kernel_shape");
    let pair = |values: Option<Vec<i64>>, default: i64| values.unwrap_or_else(|| vec![default; 2]);
    let strides = pair(node.ints("strides")?, 1);
    let dilations = pair(node.ints("dilations")?, 1);
    let pads = node.ints("pads")?.unwrap_or_else(|| vec![0; 4]);
    if strides.len() != 2 || dilations.len() != 2 || pads.len() != 4 || group < 1 || offset_groups < 1 {
        bail!(unsupported, "only pictures of two axes are supported");
    }
    node.build(|builder, x| {
        let [Some(x), Some(weight), Some(offset), rest @ ..] = x else { bail!(model, "an input is missing") };
        if x.rank() != 4 || weight.rank() != 4 || offset.rank() != 4 {
            bail!(unsupported, "only pictures of two axes are supported");
        }
        let w = known_lengths(&weight.shape(), "the weight")?;
        let channels = known_lengths(&x.shape()[1..2], "the channels")?[0];
        let places = known_lengths(&offset.shape()[2..], "the offsets")?;
        let (rows, columns, taps) = (places[0], places[1], w[2] * w[3]);
        let points = rows * columns;
        if channels % offset_groups != 0 || w[0] % group != 0 || w[1] * group != channels {
            bail!(shape, "weight {} and {offset_groups} groups do not fit {}", weight.fact(), x.fact());
        }
        // Where each tap of each output reads without offset.
        let regular = |axis: usize| {
            let (w, strides, pads, dilations) = (&w, &strides, &pads, &dilations);
            let place = move |index: i64| {
                let (tap, point) = (index / points, index % points);
                let (tap, point) = match axis {
                    0 => (tap / w[3], point / columns),
                    _ => (tap % w[3], point % columns),
                };
                (point * strides[axis] - pads[axis] + tap * dilations[axis]) as f64
            };
            builder.constant(Tensor::vector((0..taps * points).map(place)).cast(x.dtype())).unsqueeze([0])
        };
        let regular = [regular(0), regular(1)];
        let offset = offset.reshape([-1, offset_groups, taps, 2, points]);
        let mask = rest.get(1).copied().flatten();
        let mask = mask.map(|mask| mask.reshape([-1, offset_groups, taps * points]));
        let per_group = channels / offset_groups;
        let mut sampled = Vec::new();
        for own in 0..offset_groups {
            let part = x.slice(1, own * per_group, (own + 1) * per_group);
            let pixels = Pixels::new(part)?;
            let moved = |axis: i64| {
                let own = offset.slice(1, own, own + 1).slice(3, axis, axis + 1);
                own.reshape([-1, taps * points]) + regular[axis as usize]
            };
            let mut value =
                sample(&pixels, &[moved(0), moved(1)], Mode::Linear, Beyond::Zeros, &[(0.0, 0.0); 2]);
            if let Some(mask) = mask {
                value = value * mask.slice(1, own, own + 1).squeeze([1]).unsqueeze([2]);
            }
            sampled.push(value.reshape([-1, taps, points, per_group]));
        }
        // [N, taps, points, C]
        let columns_of = builder.concat(&sampled, 3);
        let mut outputs = Vec::new();
        for own in 0..group {
            let read = columns_of.slice(3, own * w[1], (own + 1) * w[1]).transpose([0, 2, 3, 1]);
            let filters = weight.slice(0, own * w[0] / group, (own + 1) * w[0] / group);
            let matrix = filters.reshape([w[0] / group, w[1] * taps]).transpose([1, 0]);
            outputs.push(read.reshape([-1, points, w[1] * taps]).matmul(matrix));
        }
        let mut y = builder.concat(&outputs, 2);
        if let Some(bias) = rest.first().copied().flatten() {
            y = y + bias;
        }
        Ok(vec![y.transpose([0, 2, 1]).reshape([-1, w[0], rows, columns])])
    })
}

#[cfg(test)]
pub(super) fn samples() -> Vec<FunctionSample> {
    let picture = || floats(-1.0, 1.0).input(&[2, 3, 4, 3]);
    // Away from where the pixels around a coordinate change.
    let off = |lengths: [usize; 2]| {
        let values = [0.13, -0.41, 0.62, -1.37, 0.29, 0.81, 1.22, -0.57, -0.23, 0.47, 0.07, -0.87];
        let count: usize = 2 * lengths[0] * lengths[1] * 2;
        let values = (0..count).map(|index| values[index % values.len()] + 0.003 * index as f64).collect();
        Tensor::from_shape_vec::<f64>(&[2, lengths[0], lengths[1], 2], values).unwrap()
    };
    let text = |value: &str| Attribute::String(value.into());
    let mut samples = Vec::new();
    for (mode, beyond) in
        [("linear", "zeros"), ("linear", "reflection"), ("cubic", "border"), ("nearest", "zeros")]
    {
        let sample = FunctionSample::new("GridSample", [picture(), off([2, 3]).into()]);
        samples.push(sample.with("mode", text(mode)).with("padding_mode", text(beyond)));
    }
    let grid = floats(0.05, 0.25).input(&[2, 2, 3, 2]);
    samples.push(FunctionSample::new("GridSample", [picture(), grid]));
    let size = Tensor::vector([2i64, 1, 3, 4]);
    samples.push(FunctionSample::new("AffineGrid", [floats(-1.0, 1.0).input(&[2, 2, 3]), size.into()]));
    let regions = Tensor::from(ndarray::array![[0.1f64, 0.2, 2.3, 2.9], [0.4, 0.3, 1.7, 1.9]].into_dyn());
    for mode in ["avg", "max"] {
        let inputs = [picture(), regions.clone().into(), Tensor::vector([1i64, 0]).into()];
        let sample = FunctionSample::new("RoiAlign", inputs).with("mode", text(mode));
        let sample =
            sample.with("sampling_ratio", Attribute::Int(2)).with("output_height", Attribute::Int(2));
        samples.push(sample);
    }
    let inputs = [
        picture(),
        floats(-1.0, 1.0).input(&[4, 3, 2, 2]),
        floats(0.1, 0.4).input(&[2, 8, 3, 2]),
        floats(-1.0, 1.0).input(&[4]),
        floats(0.5, 1.0).input(&[2, 4, 3, 2]),
    ];
    samples.push(FunctionSample::new("DeformConv", inputs));
    samples
}
