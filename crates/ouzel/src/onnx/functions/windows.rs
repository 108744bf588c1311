//! What undoes the windows of pooling and convolution, and cropping to a size.

use super::{NodeReader, Result, ValueId, bail, known_lengths};
#[cfg(test)]
use crate::gradient_check::{FunctionSample, floats};
#[cfg(test)]
use crate::onnx::Attribute;
use crate::op::resolve_axis;
use crate::ops::convolution::ConvTranspose;
use crate::ops::pad::Pad;
use crate::ops::scatter::{ScatterElements, ScatterReduction};
use crate::ops::window::Window;
use crate::tensor::{DType, Tensor};

/// Crops or pads axes around their center to the lengths of input 1. ONNX `CenterCropPad` 18.
pub(super) fn center_crop_pad(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let axes = node.ints("axes")?;
    let wanted = node.required_constant(1, "the shape")?.to_integers()?;
    node.build(|_, x| {
        let [Some(x), ..] = x else { bail!(model, "the input is missing") };
        let rank = x.rank();
        let axes = axes.unwrap_or_else(|| (0..rank as i64).collect());
        if axes.len() != wanted.len() {
            bail!(shape, "expected {} lengths, found {}", axes.len(), wanted.len());
        }
        let (mut y, mut pads) = (*x, vec![0; 2 * rank]);
        for (&axis, &wanted) in axes.iter().zip(&wanted) {
            let axis = resolve_axis(axis, rank)?;
            let length = known_lengths(&x.shape()[axis..=axis], "what is cropped")?[0];
            if wanted < length {
                let start = (length - wanted) / 2;
                y = y.slice(axis, start, start + wanted);
            } else {
                pads[axis] = (wanted - length) / 2;
                pads[rank + axis] = wanted - length - pads[axis];
            }
        }
        Ok(vec![Pad::zeros(y, pads)])
    })
}

/// Adds up blocks that were cut out of a picture: the transpose of cutting them out. ONNX `Col2Im` 18.
///
/// That is a transposed convolution whose kernel puts each column of a block at its place.
pub(super) fn col2im(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let picture = node.required_constant(1, "the shape of the picture")?.to_integers()?;
    let block = node.required_constant(2, "the shape of a block")?.to_integers()?;
    let rank = picture.len();
    let mut window = Window::plain(rank);
    if let Some(strides) = node.ints("strides")? {
        window = window.with_strides(strides);
    }
    if let Some(dilations) = node.ints("dilations")? {
        window = window.with_dilations(dilations);
    }
    let pads = node.ints("pads")?.unwrap_or_else(|| vec![0; 2 * rank]);
    window = window.with_pads(pads.clone());
    window.check(rank)?;
    let volume = block.iter().try_fold(1i64, |volume, &length| volume.checked_mul(length));
    let Some(volume) = volume.filter(|volume| (1..=4096).contains(volume) && block.len() == rank) else {
        bail!(shape, "blocks of shape {block:?} do not fit a picture of shape {picture:?}");
    };
    node.build(|builder, x| {
        let [Some(x), ..] = x else { bail!(model, "the input is missing") };
        if x.rank() != 3 {
            bail!(shape, "expected an input of rank 3, found {}", x.fact());
        }
        let columns = known_lengths(&x.shape()[1..2], "the columns")?[0];
        let places = (0..rank).map(|axis| {
            let reach = (block[axis] - 1) * window.dilations[axis] + 1;
            (picture[axis] + pads[axis] + pads[rank + axis] - reach) / window.strides[axis] + 1
        });
        let places: Vec<i64> = places.collect();
        let channels = columns / volume;
        let count = volume as usize;
        let identity = (0..columns as usize * count)
            .map(|index| if index / count % count == index % count { 1.0 } else { 0.0f64 });
        let mut shape = vec![columns as usize, 1];
        shape.extend(block.iter().map(|&length| length as usize));
        let kernel = Tensor::from_shape_vec(&shape, identity.collect())?.cast(x.dtype());
        let blocks = x.reshape([-1, columns].into_iter().chain(places));
        let op = ConvTranspose {
            window: Window { padding: Window::plain(rank).padding, ..window },
            group: channels,
            output_padding: vec![0; rank],
            output_shape: None,
        };
        let mut y = builder.apply(op, &[blocks, builder.constant(kernel)]);
        // What the padding added is cropped, and what no block reaches is zero.
        let whole = known_lengths(&y.shape()[2..], "the picture")?;
        let mut crop = vec![0; 2 * (rank + 2)];
        for axis in 0..rank {
            crop[2 + axis] = -pads[axis];
            crop[rank + 4 + axis] = picture[axis] + pads[axis] - whole[axis];
        }
        y = Pad::zeros(y, crop);
        Ok(vec![y])
    })
}

/// Puts each element where a max pooling found it, and zeros elsewhere. ONNX `MaxUnpool` 9, 11, 22.
pub(super) fn max_unpool(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let Some(kernel) = node.ints("kernel_shape")? else {
        bail!(model, "the attribute 'kernel_shape' is missing")
    };
    let rank = kernel.len();
    let strides = node.ints("strides")?.unwrap_or_else(|| vec![1; rank]);
    let pads = node.ints("pads")?.unwrap_or_else(|| vec![0; 2 * rank]);
    let wanted = node.constant(2, "the output's shape")?.map(|shape| shape.to_integers()).transpose()?;
    if strides.len() != rank || pads.len() != 2 * rank {
        bail!(model, "attributes 'strides' and 'pads' do not fit the kernel {kernel:?}");
    }
    node.build(|builder, x| {
        let [Some(x), Some(places), ..] = x else { bail!(model, "an input is missing") };
        if x.rank() != rank + 2 {
            bail!(shape, "expected an input of rank {}, found {}", rank + 2, x.fact());
        }
        let lengths = known_lengths(&x.shape(), "the input")?;
        let mut shape = lengths.clone();
        for axis in 0..rank {
            shape[2 + axis] =
                (lengths[2 + axis] - 1) * strides[axis] - pads[axis] - pads[rank + axis] + kernel[axis];
        }
        let count: i64 = shape.iter().product();
        if shape.iter().any(|&length| length < 0) || count > 1 << 31 {
            bail!(shape, "an output of shape {shape:?} is out of bounds");
        }
        let zeros = x.scalar_like(0.0).expand_like(
            builder.constant(Tensor::from_shape_vec(&[count as usize], vec![0u8; count as usize])?),
        );
        let op = ScatterElements { axis: 0, reduction: ScatterReduction::None };
        let mut y = builder
            .apply(op, &[zeros, places.cast(DType::I64).reshape([-1]), x.reshape([-1])])
            .reshape(shape.iter().copied());
        if let Some(wanted) = wanted {
            if wanted.len() != shape.len() {
                bail!(shape, "expected {} lengths of the output, found {}", shape.len(), wanted.len());
            }
            let more = wanted.iter().zip(&shape).map(|(wanted, length)| wanted - length);
            y = Pad::zeros(y, vec![0; rank + 2].into_iter().chain(more).collect());
        }
        Ok(vec![y])
    })
}

#[cfg(test)]
pub(super) fn samples() -> Vec<FunctionSample> {
    let x = || floats(-1.0, 1.0).input(&[2, 4, 3]);
    let vector = |values: &[i64]| Tensor::vector(values.to_vec()).into();
    let places = Tensor::from(ndarray::array![[[[0i64, 3], [9, 14]]]].into_dyn());
    vec![
        FunctionSample::new("CenterCropPad", [x(), vector(&[2, 6])])
            .with("axes", Attribute::Ints(vec![1, -1])),
        FunctionSample::new(
            "Col2Im",
            [floats(-1.0, 1.0).input(&[2, 8, 4]), vector(&[3, 3]), vector(&[2, 2])],
        ),
        FunctionSample::new(
            "Col2Im",
            [floats(-1.0, 1.0).input(&[2, 4, 4]), vector(&[3, 3]), vector(&[2, 2])],
        )
        .with("strides", Attribute::Ints(vec![2, 2]))
        .with("pads", Attribute::Ints(vec![0, 1, 1, 0])),
        FunctionSample::new("MaxUnpool", [floats(-1.0, 1.0).input(&[1, 1, 2, 2]), places.into()])
            .with("kernel_shape", Attribute::Ints(vec![2, 2]))
            .with("strides", Attribute::Ints(vec![2, 2]))
            .of_known_size(),
    ]
}
