//! Ops that move elements between axes, mask them or turn their order around.

use super::layout::reshaped;
use crate::backprop::{Back, Cotangents};
use crate::dim::Dim;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter, known_length};
use crate::op::{Inputs, Listed, OpDef};
use crate::tensor::{Array, Element, Tensor, each_dtype};
use ndarray::{Axis, IxDyn};
use std::ops::Range;

/// In which order [`DepthToSpace`] reads the channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DepthOrder {
    /// Depth, column, row: the place in the block is the outer part of the channel.
    Dcr,
    /// Column, row, depth: the place in the block is the inner part of the channel.
    Crd,
}

fn check_block(shape: &[Dim], block: usize) -> Result<()> {
    if shape.len() != 4 {
        bail!(shape, "expected a tensor of rank 4, found rank {}", shape.len());
    }
    if block == 0 || block > 1 << 20 {
        bail!(shape, "a block of {block} is out of bounds");
    }
    Ok(())
}

/// A length divided by a factor that it must be a multiple of.
fn exact(length: &Dim, factor: usize, axis: usize) -> Result<Dim> {
    if length.known().is_some_and(|length| length % factor as i64 != 0) {
        bail!(shape, "axis {axis} has length {length}, which is no multiple of {factor}");
    }
    Ok(length.divide(&factor.into()))
}

/// Reads the attribute `blocksize`.
fn read_block(node: &mut NodeReader) -> Result<usize> {
    match node.int("blocksize")?.map(|block| (block, usize::try_from(block))) {
        Some((_, Ok(block))) if block > 0 => Ok(block),
        Some((block, _)) => bail!(model, "attribute 'blocksize': expected 1 or more, found {block}"),
        None => bail!(model, "the attribute 'blocksize' is missing"),
    }
}

/// Splits axes, orders the parts, joins them.
fn regroup(x: &Tensor, split: &[usize], order: &[usize], joined: &[usize]) -> Result<Tensor> {
    let parts = reshaped(x, split)?;
    let ordered =
        each_dtype!(parts, x => Tensor::from(x.permuted_axes(IxDyn(order)).as_standard_layout().to_shared()));
    reshaped(&ordered, joined)
}

/// Moves blocks of channels into space: `[n, c·b², h, w] → [n, c, h·b, w·b]`. ONNX `DepthToSpace` 1, 11, 13.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DepthToSpace {
    /// The block's side, `b`.
    pub block: usize,
    /// In which order the channels are read.
    pub order: DepthOrder,
}

impl OpDef for DepthToSpace {
    fn name(&self) -> &str {
        "DepthToSpace"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        check_block(&x.shape, self.block)?;
        let [n, c, h, w] = [0, 1, 2, 3].map(|axis| x.shape[axis].clone());
        let block = Dim::from(self.block);
        Ok(vec![Fact::new(
            x.dtype,
            vec![n, exact(&c, self.block * self.block, 1)?, &h * &block, &w * &block],
        )])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let x = x.get(0)?;
        self.infer(&Inputs(&[Some(&Fact::of(x))]))?;
        let (b, shape) = (self.block, x.shape());
        let (n, c, h, w) = (shape[0], shape[1] / (b * b), shape[2], shape[3]);
        let joined = [n, c, h * b, w * b];
        Ok(vec![match self.order {
            DepthOrder::Dcr => regroup(x, &[n, b, b, c, h, w], &[0, 3, 4, 1, 5, 2], &joined)?,
            DepthOrder::Crd => regroup(x, &[n, c, b, b, h, w], &[0, 1, 4, 2, 5, 3], &joined)?,
        }])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let op = SpaceToDepth { block: self.block, order: self.order };
        Ok(back.only_first(back.builder().apply(op, &[back.g(0)])))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("blocksize", self.block as i64);
        if self.order == DepthOrder::Crd {
            node.string("mode", "CRD");
        }
        Ok(())
    }
}

impl Listed for DepthToSpace {
    const ONNX: &'static [&'static str] = &["DepthToSpace"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        let order = match node.string_or("mode", "DCR")?.as_str() {
            "DCR" => DepthOrder::Dcr,
            "CRD" => DepthOrder::Crd,
            other => bail!(unsupported, "attribute 'mode': expected DCR or CRD, found '{other}'"),
        };
        Ok(Self { block: read_block(node)?, order })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        [DepthOrder::Dcr, DepthOrder::Crd]
            .map(|order| {
                Sample::new(DepthToSpace { block: 2, order }, [floats(-1.0, 1.0).input(&[2, 8, 2, 3])])
            })
            .to_vec()
    }
}

/// Moves blocks of space into channels: `[n, c, h·b, w·b] → [n, c·b², h, w]`, the inverse of [`DepthToSpace`]. ONNX
/// `SpaceToDepth` 1, 13 is the order [`DepthOrder::Dcr`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpaceToDepth {
    /// The block's side, `b`.
    pub block: usize,
    /// In which order the channels are written.
    pub order: DepthOrder,
}

impl OpDef for SpaceToDepth {
    fn name(&self) -> &str {
        "SpaceToDepth"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        check_block(&x.shape, self.block)?;
        let [n, c, h, w] = [0, 1, 2, 3].map(|axis| x.shape[axis].clone());
        let channels = &c * &Dim::from(self.block * self.block);
        Ok(vec![Fact::new(x.dtype, vec![n, channels, exact(&h, self.block, 2)?, exact(&w, self.block, 3)?])])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        let x = x.get(0)?;
        self.infer(&Inputs(&[Some(&Fact::of(x))]))?;
        let (b, shape) = (self.block, x.shape());
        let (n, c, h, w) = (shape[0], shape[1], shape[2] / b, shape[3] / b);
        let order = match self.order {
            DepthOrder::Dcr => [0, 3, 5, 1, 2, 4],
            DepthOrder::Crd => [0, 1, 3, 5, 2, 4],
        };
        Ok(vec![regroup(x, &[n, c, h, b, w, b], &order, &[n, c * b * b, h, w])?])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let op = DepthToSpace { block: self.block, order: self.order };
        Ok(back.only_first(back.builder().apply(op, &[back.g(0)])))
    }

    fn moved_inputs(&self, _: usize) -> Range<usize> {
        0..1
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("blocksize", self.block as i64);
        Ok(())
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        if self.order == DepthOrder::Dcr {
            return Ok(None);
        }
        // ONNX has the other order alone: the axes are split, exchanged and joined.
        let (x, b) = (node.x(0), self.block as i64);
        let [c, h, w] =
            [1, 2, 3].map(|axis| known_length(&x.shape()[axis], axis).map(|length| length as i64));
        let (c, h, w) = (c?, h?, w?);
        let split = x.reshape([-1, c, h / b, b, w / b, b]).transpose([0, 1, 3, 5, 2, 4]);
        node.one(split.reshape([-1, c * b * b, h / b, w / b]))
    }
}

impl Listed for SpaceToDepth {
    const ONNX: &'static [&'static str] = &["SpaceToDepth"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { block: read_block(node)?, order: DepthOrder::Dcr })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        [DepthOrder::Dcr, DepthOrder::Crd]
            .map(|order| {
                Sample::new(SpaceToDepth { block: 2, order }, [floats(-1.0, 1.0).input(&[2, 2, 4, 6])])
            })
            .to_vec()
    }
}

/// Keeps the upper or lower triangle of each matrix, from the diagonal `k` on; the rest is 0.
///
/// Inputs `x, k?`, where `k` counts diagonals above the main one. ONNX `Trilu` 14.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Trilu {
    /// Keeps the upper triangle instead of the lower one.
    pub upper: bool,
}

impl OpDef for Trilu {
    fn name(&self) -> &str {
        "Trilu"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        if x.rank() < 2 {
            bail!(shape, "expected matrices, found {x}");
        }
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn keep<T: Element>(x: &Array<T>, zero: T, kept: impl Fn(i64) -> bool) -> Tensor {
            let columns = x.shape()[x.ndim() - 1].max(1);
            let mut y = x.to_owned();
            for (row, mut lane) in y.lanes_mut(Axis(x.ndim() - 1)).into_iter().enumerate() {
                let row = (row % x.shape()[x.ndim() - 2].max(1)) as i64;
                for (column, value) in lane.iter_mut().enumerate().take(columns) {
                    if !kept(column as i64 - row) {
                        *value = zero;
                    }
                }
            }
            T::wrap(y.into_shared())
        }
        let (x, k) = (x.get(0)?, x.optional(1).map(Tensor::to_integers).transpose()?);
        let k = match k.as_deref() {
            None => 0,
            Some([k]) => *k,
            Some(other) => bail!(shape, "expected one diagonal k, found {other:?}"),
        };
        if x.shape().len() < 2 {
            bail!(shape, "expected matrices, found the shape {:?}", x.shape());
        }
        let kept = |diagonal: i64| if self.upper { diagonal >= k } else { diagonal <= k };
        let zero = Tensor::scalar(0u8).cast(x.dtype());
        Ok(vec![each_dtype!(x, x => {
            let Some(&zero) = zero.array()?.first() else { bail!(internal, "a scalar is empty") };
            keep(x, zero, kept)
        })])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let inputs = [Some(back.g(0)), back.optional_x(1)];
        Ok(back.only_first(back.builder().apply_all(self.clone(), &inputs)[0]))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.flag("upper", self.upper, true);
        Ok(())
    }
}

impl Listed for Trilu {
    const ONNX: &'static [&'static str] = &["Trilu"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { upper: node.flag_or("upper", true)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).input(&[2, 3, 4]);
        vec![
            Sample::new(Trilu { upper: true }, [x()]),
            Sample::new(Trilu { upper: false }, [x(), Tensor::scalar(-1i64).into()]),
        ]
    }
}

/// Turns the first `sequence_lens[b]` elements around along the time axis, for each place b of the batch axis.
///
/// Inputs `x, sequence_lens`. ONNX `ReverseSequence` 10.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ReverseSequence {
    /// The batch axis: 0 or 1.
    pub batch_axis: usize,
    /// The time axis: the other of both.
    pub time_axis: usize,
}

impl OpDef for ReverseSequence {
    fn name(&self) -> &str {
        "ReverseSequence"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (x, lengths) = (x.get(0)?, x.get(1)?);
        let axes = [self.batch_axis, self.time_axis];
        if x.rank() < 2 || !(axes == [0, 1] || axes == [1, 0]) {
            bail!(shape, "expected batch and time to be the first two axes of {x}, found {axes:?}");
        }
        if !lengths.dtype.is_integer() || lengths.rank() != 1 {
            bail!(shape, "expected a vector of integer lengths, found {lengths}");
        }
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn reverse<T: Element>(x: &Array<T>, lengths: &[usize], batch: usize) -> Tensor {
            let mut y = x.to_owned();
            for (place, &length) in lengths.iter().enumerate() {
                let mut sequence = y.index_axis_mut(Axis(batch), place);
                let from = x.index_axis(Axis(batch), place);
                for time in 0..length {
                    sequence
                        .index_axis_mut(Axis(0), time)
                        .assign(&from.index_axis(Axis(0), length - 1 - time));
                }
            }
            T::wrap(y.into_shared())
        }
        let (x, lengths) = (x.get(0)?, x.get(1)?.to_integers()?);
        let shape = x.shape();
        if shape.len() < 2 || !matches!((self.batch_axis, self.time_axis), (0, 1) | (1, 0)) {
            bail!(shape, "expected batch and time to be the first two axes of the shape {shape:?}");
        }
        let counts: Vec<usize> = lengths
            .iter()
            .filter_map(|&length| {
                usize::try_from(length).ok().filter(|&length| length <= shape[self.time_axis])
            })
            .collect();
        if counts.len() != shape[self.batch_axis] || counts.len() != lengths.len() {
            bail!(
                shape,
                "expected {} lengths from 0 to {}, found {lengths:?}",
                shape[self.batch_axis],
                shape[self.time_axis]
            );
        }
        Ok(vec![each_dtype!(x, x => reverse(x, &counts, self.batch_axis))])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.only_first(back.builder().apply(self.clone(), &[back.g(0), back.x(1)])))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("batch_axis", self.batch_axis as i64);
        node.int("time_axis", self.time_axis as i64);
        Ok(())
    }
}

impl Listed for ReverseSequence {
    const ONNX: &'static [&'static str] = &["ReverseSequence"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        let mut axis = |name: &str, default: i64| -> Result<usize> {
            match node.int_or(name, default)? {
                0 => Ok(0),
                1 => Ok(1),
                other => bail!(model, "attribute '{name}': expected 0 or 1, found {other}"),
            }
        };
        Ok(Self { batch_axis: axis("batch_axis", 1)?, time_axis: axis("time_axis", 0)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let lengths = |values: &[i64]| Tensor::vector(values.to_vec()).into();
        let x = || floats(-1.0, 1.0).input(&[2, 3, 2]);
        vec![
            Sample::new(ReverseSequence { batch_axis: 0, time_axis: 1 }, [x(), lengths(&[2, 3])]),
            Sample::new(ReverseSequence { batch_axis: 1, time_axis: 0 }, [x(), lengths(&[2, 1, 0])]),
        ]
    }
}

#[cfg(test)]
mod tests {
    //! Expected numbers: the reference evaluator of the Python package onnx 1.17.0, if nothing else is said.

    use super::*;
    use crate::gradient_check::outputs;

    /// 0, 1, 2, … in this shape.
    fn counting(shape: &[usize]) -> Tensor {
        Tensor::from_shape_vec(shape, (0..shape.iter().product::<usize>() as i64).collect()).unwrap()
    }

    fn integers(shape: &[usize], values: &[i64]) -> Tensor {
        Tensor::from_shape_vec(shape, values.to_vec()).unwrap()
    }

    #[test]
    fn depth_is_read_in_both_orders() {
        let x = counting(&[1, 8, 1, 2]);
        let dcr = outputs(DepthToSpace { block: 2, order: DepthOrder::Dcr }, std::slice::from_ref(&x));
        let crd = outputs(DepthToSpace { block: 2, order: DepthOrder::Crd }, std::slice::from_ref(&x));
        assert_eq!(dcr, [integers(&[1, 2, 2, 4], &[0, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15])]);
        assert_eq!(crd, [integers(&[1, 2, 2, 4], &[0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15])]);
        assert_eq!(
            outputs(SpaceToDepth { block: 2, order: DepthOrder::Dcr }, &dcr),
            std::slice::from_ref(&x)
        );
        assert_eq!(outputs(SpaceToDepth { block: 2, order: DepthOrder::Crd }, &crd), [x]);
    }

    #[test]
    fn triangles_begin_at_a_diagonal() {
        let y = outputs(Trilu { upper: true }, &[counting(&[2, 3]), Tensor::scalar(1i64)]);
        assert_eq!(y, [integers(&[2, 3], &[0, 1, 2, 0, 0, 5])]);
    }
}
