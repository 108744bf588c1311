//! How a window slides over spatial axes: the geometry that convolution and pooling share.

use crate::dim::{Dim, evaluate_shape, known_shape};
use crate::error::{Context, Result, bail};
use crate::graph::Fact;
use crate::onnx::{NodeReader, NodeWriter};
use crate::op::{Inputs, OpDef};
use crate::tensor::Tensor;
use std::ops::Range;

/// Strides, dilations, pads and kernel sizes beyond this are refused: no real network has them.
const LIMIT: i64 = 1 << 24;

/// Tensors with more elements than this are refused before they are allocated.
const MAX_ELEMENTS: usize = 1 << 30;

/// How far the spatial axes are padded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Padding {
    /// At the begin of each spatial axis, then at the end of each. Negative pads crop.
    Explicit(Vec<i64>),
    /// As far as an output of `length / stride`, rounded up, needs; an odd one goes to the end.
    SameUpper,
    /// As far as an output of `length / stride`, rounded up, needs; an odd one goes to the begin.
    SameLower,
    /// Not at all.
    Valid,
}

/// How a window moves over the spatial axes: ONNX `strides`, `dilations`, `pads` and `auto_pad`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// The step of each spatial axis.
    pub strides: Vec<i64>,
    /// The distance between two taps of the window on each spatial axis.
    pub dilations: Vec<i64>,
    /// The padding.
    pub padding: Padding,
}

impl Window {
    /// A window that moves by one over `rank` spatial axes, without padding.
    pub fn plain(rank: usize) -> Self {
        Self {
            strides: vec![1; rank],
            dilations: vec![1; rank],
            padding: Padding::Explicit(vec![0; 2 * rank]),
        }
    }

    /// The same window with other strides.
    pub fn with_strides(self, strides: impl Into<Vec<i64>>) -> Self {
        Self { strides: strides.into(), ..self }
    }

    /// The same window with other dilations.
    pub fn with_dilations(self, dilations: impl Into<Vec<i64>>) -> Self {
        Self { dilations: dilations.into(), ..self }
    }

    /// The same window with other padding.
    pub fn with_padding(self, padding: Padding) -> Self {
        Self { padding, ..self }
    }

    /// The same window with these pads: the begin of each spatial axis, then the end of each.
    pub fn with_pads(self, pads: impl Into<Vec<i64>>) -> Self {
        self.with_padding(Padding::Explicit(pads.into()))
    }

    /// Reads the attributes of a node whose first input has two axes before the spatial ones.
    pub(crate) fn read(node: &mut NodeReader) -> Result<Self> {
        let rank = node.required_input(0)?.rank().saturating_sub(2);
        let plain = Self::plain(rank);
        let pads = node.ints("pads")?;
        let padding = match node.string_or("auto_pad", "NOTSET")?.as_str() {
            "NOTSET" | "" => pads.map_or(plain.padding, Padding::Explicit),
            "SAME_UPPER" => Padding::SameUpper,
            "SAME_LOWER" => Padding::SameLower,
            "VALID" => Padding::Valid,
            other => {
                bail!(
                    model,
                    "attribute 'auto_pad': expected NOTSET, SAME_UPPER, SAME_LOWER or VALID, found '{other}'"
                )
            }
        };
        let window = Self {
            strides: node.ints("strides")?.unwrap_or(plain.strides),
            dilations: node.ints("dilations")?.unwrap_or(plain.dilations),
            padding,
        };
        window.check(rank)?;
        Ok(window)
    }

    /// Writes the attributes that are not ONNX's defaults.
    pub(crate) fn write(&self, node: &mut NodeWriter) {
        for (name, values) in [("strides", &self.strides), ("dilations", &self.dilations)] {
            if values.iter().any(|&value| value != 1) {
                node.ints(name, values);
            }
        }
        match &self.padding {
            Padding::Explicit(pads) if pads.iter().all(|&pad| pad == 0) => {}
            Padding::Explicit(pads) => node.ints("pads", pads),
            Padding::SameUpper => node.string("auto_pad", "SAME_UPPER"),
            Padding::SameLower => node.string("auto_pad", "SAME_LOWER"),
            Padding::Valid => node.string("auto_pad", "VALID"),
        }
    }

    /// Negative pads, which many runtimes refuse, as pads of the whole tensor, and the window with the others.
    pub(crate) fn split_negative(&self) -> Option<(Vec<i64>, Self)> {
        let Padding::Explicit(pads) = &self.padding else { return None };
        if pads.iter().all(|&pad| pad >= 0) {
            return None;
        }
        let (begin, end) = pads.split_at(pads.len() / 2);
        let cropped =
            |pads: &[i64]| [0, 0].into_iter().chain(pads.iter().map(|&pad| pad.min(0))).collect::<Vec<_>>();
        let rest: Vec<i64> = pads.iter().map(|&pad| pad.max(0)).collect();
        Some(([cropped(begin), cropped(end)].concat(), self.clone().with_pads(rest)))
    }

    /// Verifies that the attributes fit `rank` spatial axes and are sensible.
    pub(crate) fn check(&self, rank: usize) -> Result<()> {
        if rank == 0 || rank > 3 {
            bail!(
                unsupported,
                "expected an input of 1 to 3 spatial axes after batch and channel, found {rank} spatial axes"
            );
        }
        check_sizes("strides", &self.strides, rank, 1)?;
        check_sizes("dilations", &self.dilations, rank, 1)?;
        match &self.padding {
            Padding::Explicit(pads) => check_sizes("pads", pads, 2 * rank, -LIMIT),
            _ => Ok(()),
        }
    }

    /// The pads, where they can be told from what is known of the lengths of the spatial axes.
    ///
    /// # Errors
    /// If they depend on a length that is not known.
    pub(crate) fn pads(&self, lengths: &[Dim], kernel: &[i64]) -> Result<Vec<i64>> {
        let rank = lengths.len();
        let mut pads = vec![0; 2 * rank];
        match &self.padding {
            Padding::Explicit(explicit) => pads.clone_from(explicit),
            Padding::Valid => {}
            Padding::SameUpper | Padding::SameLower => {
                for axis in 0..rank {
                    let (stride, span) = (self.strides[axis], self.span(axis, kernel[axis]));
                    let total = match (stride, lengths[axis].known()) {
                        (1, _) => span - 1,
                        (_, Some(length)) => {
                            ((length - 1).div_euclid(stride) * stride + span - length).max(0)
                        }
                        (_, None) => bail!(
                            shape,
                            "auto_pad needs the length of spatial axis {axis}, which is {}; give it with --size",
                            lengths[axis]
                        ),
                    };
                    let smaller = total / 2;
                    let upper = self.padding == Padding::SameUpper;
                    pads[axis] = if upper { smaller } else { total - smaller };
                    pads[rank + axis] = total - pads[axis];
                }
            }
        }
        Ok(pads)
    }

    /// The length that a window covers, its gaps included.
    pub(crate) fn span(&self, axis: usize, kernel: i64) -> i64 {
        self.dilations[axis] * (kernel - 1) + 1
    }

    /// The number of places that the window takes on each spatial axis.
    ///
    /// With `ceil_mode` the last window may reach beyond the padded input, if it starts inside the input or the
    /// padding at its begin.
    pub(crate) fn output_lengths(
        &self,
        lengths: &[Dim],
        kernel: &[i64],
        ceil_mode: bool,
    ) -> Result<Vec<Dim>> {
        let rank = lengths.len();
        let one = Dim::from(1i64);
        let mut outputs = Vec::with_capacity(rank);
        for (axis, length) in lengths.iter().enumerate() {
            if length.known().is_some_and(|length| length > i64::from(i32::MAX)) {
                bail!(unsupported, "spatial axis {axis} has the length {length}");
            }
            let stride = Dim::from(self.strides[axis]);
            let up = Dim::from(self.strides[axis] - 1);
            let span = Dim::from(self.span(axis, kernel[axis]));
            let output = match &self.padding {
                Padding::SameUpper | Padding::SameLower => (length + &up).divide(&stride),
                Padding::Valid => &(length - &span).divide(&stride) + &one,
                Padding::Explicit(pads) => {
                    let begun = length + &Dim::from(pads[axis]);
                    let room = &(&begun + &Dim::from(pads[rank + axis])) - &span;
                    match ceil_mode {
                        false => &room.divide(&stride) + &one,
                        true => {
                            let all = &(&room + &up).divide(&stride) + &one;
                            all.minimum(&(&begun + &up).divide(&stride))
                        }
                    }
                }
            };
            if output.known().is_some_and(|output| output < 1) {
                bail!(
                    shape,
                    "a window of {span} (kernel {}, dilation {}) does not fit into spatial axis {axis} of length \
                     {length} with padding {:?}",
                    kernel[axis],
                    self.dilations[axis],
                    self.padding
                );
            }
            outputs.push(output);
        }
        Ok(outputs)
    }
}

/// Verifies the number and the range of an attribute's values.
pub(crate) fn check_sizes(name: &str, values: &[i64], count: usize, least: i64) -> Result<()> {
    if values.len() != count {
        bail!(model, "attribute '{name}': expected {count} numbers, found {values:?}");
    }
    if values.iter().any(|value| !(least..=LIMIT).contains(value)) {
        bail!(model, "attribute '{name}': expected numbers from {least} to {LIMIT}, found {values:?}");
    }
    Ok(())
}

/// The shapes that an op infers for the outputs it gives on these inputs; also verifies the inputs.
pub(crate) fn output_shapes(op: &dyn OpDef, x: &Inputs<Tensor>) -> Result<Vec<Vec<usize>>> {
    let facts: Vec<Option<Fact>> = x.0.iter().map(|x| x.map(Fact::of)).collect();
    let facts: Vec<Option<&Fact>> = facts.iter().map(Option::as_ref).collect();
    let shapes: Vec<Vec<usize>> = (op.infer(&Inputs(&facts))?.iter())
        .map(|fact| match known_shape(&fact.shape) {
            Some(shape) => Ok(shape),
            None => evaluate_shape(&fact.shape, &Default::default()).context(|| "output"),
        })
        .collect::<Result<_>>()?;
    for shape in &shapes {
        let count = shape.iter().try_fold(1usize, |count, &length| count.checked_mul(length.max(1)));
        if count.is_none_or(|count| count > MAX_ELEMENTS) {
            bail!(unsupported, "an output of shape {shape:?} is too large");
        }
    }
    Ok(shapes)
}

/// One spatial axis on which a window slides: tap `t` of the window at place `o` of the short side touches
/// place `o · stride + t · dilation - begin` of the long side, if there is one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Axis {
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) dilation: usize,
    /// The padding before the long side.
    pub(crate) begin: i64,
    /// The padding after the long side.
    pub(crate) end: i64,
    /// The length of the side that the window slides over.
    pub(crate) long: usize,
    /// The number of places that the window takes.
    pub(crate) short: usize,
}

impl Axis {
    /// An axis of length 1.
    pub(crate) const UNIT: Self =
        Self { kernel: 1, stride: 1, dilation: 1, begin: 0, end: 0, long: 1, short: 1 };

    /// Three spatial axes, the first ones of length 1 where there are fewer.
    pub(crate) fn triple(
        window: &Window,
        pads: &[i64],
        kernel: &[usize],
        long: &[usize],
        short: &[usize],
    ) -> [Self; 3] {
        let rank = kernel.len();
        let mut axes = [Self::UNIT; 3];
        for axis in 0..rank {
            axes[3 - rank + axis] = Self {
                kernel: kernel[axis],
                stride: window.strides[axis] as usize,
                dilation: window.dilations[axis] as usize,
                begin: pads[axis],
                end: pads[rank + axis],
                long: long[axis],
                short: short[axis],
            };
        }
        axes
    }

    fn place(&self, short: usize, tap: usize) -> i64 {
        (short * self.stride) as i64 + (tap * self.dilation) as i64 - self.begin
    }

    /// The place on the long side.
    pub(crate) fn position(&self, short: usize, tap: usize) -> Option<usize> {
        usize::try_from(self.place(short, tap)).ok().filter(|&place| place < self.long)
    }

    /// The taps of the window at `short` that touch places from `low` up to, but not including, `high`.
    fn taps_between(&self, short: usize, low: i64, high: i64) -> Range<usize> {
        let (start, dilation) = (self.place(short, 0), self.dilation as i64);
        let up = |distance: i64| (distance.max(0) + dilation - 1) / dilation;
        let last = up(high - start).min(self.kernel as i64);
        up(low - start).min(last) as usize..last as usize
    }

    /// The taps of the window at `short` that touch the long side.
    pub(crate) fn taps(&self, short: usize) -> Range<usize> {
        self.taps_between(short, 0, self.long as i64)
    }

    /// The number of taps of the window at `short` that touch the long side or its padding.
    pub(crate) fn padded_taps(&self, short: usize) -> usize {
        self.taps_between(short, -self.begin, self.long as i64 + self.end).len()
    }

    /// The places on the short side from which `tap` touches the long side.
    pub(crate) fn shorts(&self, tap: usize) -> Range<usize> {
        let (start, stride) = (self.place(0, tap), self.stride as i64);
        let up = |distance: i64| (distance.max(0) + stride - 1) / stride;
        let last = up(self.long as i64 - start).min(self.short as i64);
        up(-start).min(last) as usize..last as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_and_places_agree_on_what_lies_inside() {
        for (kernel, stride, dilation, begin, end, long) in
            [(3, 2, 1, 1, 0, 7), (3, 1, 2, 4, 4, 5), (2, 3, 4, -1, 2, 9), (5, 1, 1, 6, 6, 2)]
        {
            let axis = Axis { kernel, stride, dilation, begin, end, long, short: 4 };
            for short in 0..4 {
                let inside: Vec<usize> =
                    (0..kernel).filter(|&tap| axis.position(short, tap).is_some()).collect();
                assert_eq!(axis.taps(short).collect::<Vec<_>>(), inside);
                for tap in 0..kernel {
                    assert_eq!(axis.shorts(tap).contains(&short), axis.position(short, tap).is_some());
                }
            }
        }
    }

    #[test]
    fn a_window_in_ceil_mode_starts_inside_the_input() {
        let window = Window::plain(1).with_strides([2]).with_pads([0, 1]);
        let lengths = window.output_lengths(&[4.into()], &[1], true).unwrap();
        assert_eq!(lengths, [Dim::from(2i64)]);
        let lengths = window.output_lengths(&[5.into()], &[3], true).unwrap();
        assert_eq!(lengths, [Dim::from(3i64)]);
    }

    #[test]
    fn a_window_that_does_not_fit_is_an_error() {
        let error = Window::plain(1).output_lengths(&[2.into()], &[3], false).unwrap_err();
        assert!(error.is_shape() && error.to_string().contains("does not fit"), "{error}");
        let error = Window::plain(2).with_strides([1, 0]).check(2).unwrap_err();
        assert!(error.to_string().contains("'strides'"), "{error}");
    }
}
