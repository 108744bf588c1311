//! Fourier transforms as products with constant matrices, and the windows and filters that go with them.

use super::{NodeReader, Result, ValueId, bail, known_lengths, one_integer, one_number, read_dtype};
use crate::builder::Var;
#[cfg(test)]
use crate::gradient_check::{FunctionSample, floats};
#[cfg(test)]
use crate::onnx::Attribute;
use crate::op::resolve_axis;
use crate::ops::gather::Gather;
use crate::tensor::{DType, Tensor};
use std::f64::consts::PI;

/// Matrices of more elements than this would not be the way to transform.
const LIMIT: i64 = 1 << 24;

/// The cosines and sines of a transform of `length`, from the first `from` elements to the first `to` frequencies.
fn waves(x: Var<'_>, from: i64, to: i64, length: i64, inverse: bool) -> Result<(Var<'_>, Var<'_>)> {
    if from.checked_mul(to).is_none_or(|count| count > LIMIT) || length < 1 {
        bail!(unsupported, "a Fourier transform of length {length} is not supported");
    }
    let scale = if inverse { 1.0 / length as f64 } else { 1.0 };
    let turn = if inverse { 2.0 * PI } else { -2.0 * PI };
    let matrix = |wave: fn(f64) -> f64| {
        let element = |index: i64| {
            // Reduced first: large angles lose digits.
            let phase = (index / to) * (index % to) % length;
            scale * wave(turn * phase as f64 / length as f64)
        };
        let elements = (0..from * to).map(element).collect();
        let tensor = Tensor::from_shape_vec(&[from as usize, to as usize], elements)?;
        Ok(x.builder().constant(tensor.cast(x.dtype())))
    };
    Ok((matrix(f64::cos)?, matrix(f64::sin)?))
}

/// The transform along the axis before the last, whose elements are real numbers or pairs of real and imaginary part.
fn transform(x: Var<'_>, length: Option<i64>, inverse: bool, onesided: bool) -> Result<Var<'_>> {
    let rank = x.rank();
    let shape = x.shape();
    let lengths = known_lengths(&shape[rank - 2..], "what is transformed")?;
    let (own, parts) = (lengths[0], lengths[1]);
    let length = length.unwrap_or(own);
    let used = own.min(length);
    let bins = if onesided { length / 2 + 1 } else { length };
    let (cos, sin) = waves(x, used, bins, length, inverse)?;
    let part = |index: i64| {
        let part = x.slice(rank - 1, index, index + 1).squeeze([rank - 1]);
        if used < own { part.slice(rank - 2, 0, used) } else { part }
    };
    let real = part(0);
    let (mut re, mut im) = (real.matmul(cos), real.matmul(sin));
    if parts == 2 {
        let imaginary = part(1);
        re = re - imaginary.matmul(sin);
        im = im + imaginary.matmul(cos);
    }
    Ok(x.builder().concat(&[re.unsqueeze([rank - 1]), im.unsqueeze([rank - 1])], rank - 1))
}

/// The discrete Fourier transform along an axis. ONNX `DFT` 17, 20.
pub(super) fn dft(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let inverse = node.flag_or("inverse", false)?;
    let onesided = node.flag_or("onesided", false)?;
    let length =
        node.constant(1, "the length")?.map(|length| one_integer(&length, "the length")).transpose()?;
    let axis = match node.opset() {
        ..20 => node.int_or("axis", 1)?,
        _ => node.constant(2, "the axis")?.map_or(Ok(-2), |axis| one_integer(&axis, "the axis"))?,
    };
    if inverse && onesided {
        bail!(unsupported, "the inverse of a transform that gave one side is not supported");
    }
    node.build(|_, x| {
        let [Some(x), ..] = x else { bail!(model, "the input is missing") };
        let rank = x.rank();
        let axis = resolve_axis(axis, rank)?;
        if rank < 2 || axis == rank - 1 {
            bail!(shape, "axis {axis} of {} cannot be transformed", x.fact());
        }
        let mut order: Vec<usize> = (0..rank).filter(|&other| other != axis && other != rank - 1).collect();
        order.extend([axis, rank - 1]);
        // Frequencies that are absent are sums that cancel, so float64 adds them up.
        let wide = x.transpose(order.iter().copied()).cast(DType::F64);
        let y = transform(wide, length, inverse, onesided)?.cast(x.dtype());
        let back = (0..rank).map(|axis| order.iter().position(|&other| other == axis).unwrap_or(axis));
        Ok(vec![y.transpose(back)])
    })
}

/// The Fourier transforms of frames of a signal. ONNX `STFT` 17.
pub(super) fn stft(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let onesided = node.flag_or("onesided", true)?;
    let step = one_integer(&node.required_constant(1, "the step")?, "the step")?;
    let frame = node.constant(3, "the length of a frame")?;
    let frame = frame.map(|frame| one_integer(&frame, "the length of a frame")).transpose()?;
    let step = step.max(1);
    node.build(|builder, x| {
        let [Some(signal), _, rest @ ..] = x else { bail!(model, "the signal is missing") };
        let window = rest.first().copied().flatten();
        let own = window.map(|window| known_lengths(&window.shape(), "the window")).transpose()?;
        let Some(frame) = frame.or(own.and_then(|own| own.first().copied())) else {
            bail!(model, "neither a window nor the length of a frame is given");
        };
        if signal.rank() != 3 {
            bail!(shape, "expected a signal of rank 3, found {}", signal.fact());
        }
        let length = known_lengths(&signal.shape()[1..2], "the signal")?[0];
        let frames = if length < frame { 0 } else { 1 + (length - frame) / step };
        if frames < 1 || frame < 1 || frames.saturating_mul(frame) > LIMIT {
            bail!(unsupported, "frames of {frame} of a signal of {length} elements are not supported");
        }
        let places =
            (0..frames).flat_map(|index| (0..frame).map(move |place| index * step + place)).collect();
        let places = Tensor::from_shape_vec::<i64>(&[frames as usize, frame as usize], places)?;
        let mut framed = builder.apply(Gather { axis: 1 }, &[*signal, builder.constant(places)]);
        if let Some(window) = window {
            framed = framed * window.unsqueeze([1]);
        }
        Ok(vec![transform(framed, None, false, onesided)?])
    })
}

/// A window of cosines: `Σ (-1)ᵏ aₖ cos(2πkn / N)`.
fn window(node: &mut NodeReader, terms: &[f64]) -> Result<Vec<ValueId>> {
    let dtype = read_dtype(node, "output_datatype")?;
    let periodic = node.flag_or("periodic", true)?;
    let size = one_integer(&node.required_constant(0, "the size")?, "the size")?;
    if !(0..=LIMIT).contains(&size) {
        bail!(shape, "a window of {size} elements is out of bounds");
    }
    let period = if periodic { size } else { size - 1 }.max(1) as f64;
    let value = |n: i64| {
        let term = |(k, a): (usize, &f64)| {
            let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
            sign * a * (2.0 * PI * k as f64 * n as f64 / period).cos()
        };
        terms.iter().enumerate().map(term).sum::<f64>()
    };
    let tensor = Tensor::vector((0..size).map(value)).cast(dtype);
    node.build(|builder, _| Ok(vec![builder.constant(tensor)]))
}

/// ONNX `HannWindow` 17.
pub(super) fn hann_window(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    window(node, &[0.5, 0.5])
}

/// ONNX `HammingWindow` 17.
pub(super) fn hamming_window(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    window(node, &[25.0 / 46.0, 21.0 / 46.0])
}

/// ONNX `BlackmanWindow` 17.
pub(super) fn blackman_window(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    window(node, &[0.42, 0.5, 0.08])
}

/// Triangular filters at equal distances on the mel scale. ONNX `MelWeightMatrix` 17.
pub(super) fn mel_weight_matrix(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let dtype = read_dtype(node, "output_datatype")?;
    let given = ["the bins", "the length", "the rate", "the lower edge", "the upper edge"];
    let mut numbers = [0.0; 5];
    for (index, (number, what)) in numbers.iter_mut().zip(given).enumerate() {
        *number = one_number(&node.required_constant(index, what)?, what)?;
    }
    let [bins, length, rate, low, high] = numbers;
    if !(1.0..=65536.0).contains(&bins) || !(1.0..=65536.0).contains(&length) || rate < 1.0 {
        bail!(shape, "{bins} bins of a transform of length {length} are out of bounds");
    }
    let (bins, rows) = (bins as usize, (length / 2.0).floor() as usize + 1);
    let mel = |hertz: f64| 2595.0 * (1.0 + hertz / 700.0).log10();
    let step = (mel(high) - mel(low)) / (bins + 2) as f64;
    let place = |index: usize| {
        let hertz = 700.0 * (10f64.powf((mel(low) + index as f64 * step) / 2595.0) - 1.0);
        (((length + 1.0) * hertz) / rate).floor().max(0.0) as usize
    };
    let mut weights = vec![0.0; rows * bins];
    let mut set = |row: usize, column: usize, weight: f64| {
        if row < rows {
            weights[row * bins + column] = weight;
        }
    };
    for column in 0..bins {
        let (left, center, right) = (place(column), place(column + 1), place(column + 2));
        match center - left.min(center) {
            0 => set(center, column, 1.0),
            width => (left..=center).for_each(|row| set(row, column, (row - left) as f64 / width as f64)),
        }
        let width = right - center.min(right);
        (center..right).for_each(|row| set(row, column, (right - row) as f64 / width as f64));
    }
    let tensor = Tensor::from_shape_vec(&[rows, bins], weights)?.cast(dtype);
    debug_assert!(dtype != DType::Bool);
    node.build(|builder, _| Ok(vec![builder.constant(tensor)]))
}

#[cfg(test)]
pub(super) fn samples() -> Vec<FunctionSample> {
    let signal = |parts: usize| floats(-1.0, 1.0).input(&[2, 5, parts]);
    let number = |value: i64| Tensor::scalar(value).into();
    vec![
        FunctionSample::new("DFT", [signal(1)]).with("onesided", Attribute::Int(1)),
        FunctionSample::new("DFT", [signal(2), number(7), number(1)]),
        FunctionSample::new("DFT", [signal(2), number(4)]).with("inverse", Attribute::Int(1)),
        FunctionSample::new("STFT", [signal(1), number(2), floats(0.5, 1.0).input(&[3])]),
    ]
}
