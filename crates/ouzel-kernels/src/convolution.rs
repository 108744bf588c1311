//! Convolution, its input gradient and transposed convolution: one indirect matrix product on channels-last tensors.

use crate::aligned::Aligned;
use crate::columns;
use crate::depthwise;
use crate::epilogue::{Epilogue, Finish, WORD};
use crate::few;
use crate::level::Level;
use crate::tile::{BLOCK, COLUMN, packed_width};
use crate::view::View;
use crate::winograd::{self, TAPS};
use rayon::prelude::*;

/// The attributes of a convolution, seen from its forward direction.
///
/// Axes are depth, height, width; a convolution with fewer axes sets the first ones to a kernel of 1. The padding at the ends of the
/// axes is not stated: it follows from the sizes of the tensors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvolutionShape {
    /// Channels of the input.
    pub input_channels: usize,
    /// Channels of the output.
    pub output_channels: usize,
    /// Number of groups; divides both numbers of channels.
    pub groups: usize,
    /// Size of the kernel.
    pub kernel: [usize; 3],
    /// Step of the output in the input.
    pub stride: [usize; 3],
    /// Distance of neighbouring taps in the input.
    pub dilation: [usize; 3],
    /// Padding at the beginning of the axes.
    pub padding: [usize; 3],
}

impl ConvolutionShape {
    /// A convolution with stride 1, no padding, one group.
    pub fn new(input_channels: usize, output_channels: usize, kernel: [usize; 3]) -> ConvolutionShape {
        ConvolutionShape {
            input_channels,
            output_channels,
            groups: 1,
            kernel,
            stride: [1; 3],
            dilation: [1; 3],
            padding: [0; 3],
        }
    }

    /// Whether the convolution, forward and transposed, can be computed by Winograd's algorithm: 3×3, one group, no stride, no dilation.
    pub fn has_winograd(&self) -> bool {
        winograd::fits(self)
    }

    /// Whether Winograd's algorithm is the faster one where the result has this size. Depends on the shapes of one sample alone, so
    /// that neither batch nor threads change the bits of a result.
    pub fn suits_winograd(&self, size: [usize; 3]) -> bool {
        winograd::fits(self) && winograd::is_faster(self.input_channels, self.output_channels, size)
    }

    /// Number of taps of the kernel.
    pub(crate) fn taps(&self) -> usize {
        self.kernel.iter().product()
    }

    pub(crate) fn check(&self) {
        let limit = i32::MAX as usize / 2;
        assert!(self.groups > 0, "a convolution needs a group: {self:?}");
        assert!(
            self.input_channels.is_multiple_of(self.groups)
                && self.output_channels.is_multiple_of(self.groups),
            "groups do not divide the channels of {self:?}"
        );
        for axis in 0..3 {
            let reach = self.kernel[axis].checked_mul(self.dilation[axis]);
            assert!(self.kernel[axis] > 0 && self.dilation[axis] > 0, "a kernel of {self:?} is empty");
            assert!(reach.is_some_and(|reach| reach <= limit), "a kernel of {self:?} is too long");
            assert!(
                self.stride[axis] > 0 && self.stride[axis] <= limit,
                "a stride of {self:?} is not usable"
            );
            assert!(self.padding[axis] <= limit, "a padding of {self:?} is too long");
        }
        let elements = [self.kernel[0], self.kernel[1], self.kernel[2], self.input_channels]
            .iter()
            .try_fold(self.output_channels + BLOCK * self.groups, |product, size| product.checked_mul(*size));
        assert!(
            elements.is_some_and(|elements| elements <= isize::MAX as usize / 4),
            "the weights of {self:?} are too many"
        );
    }
}

/// The taps of one axis that reach a given phase of the output: (index in the kernel, offset in the input), by rising offset.
pub(crate) fn forward_taps(shape: &ConvolutionShape, axis: usize) -> Vec<(usize, isize)> {
    (0..shape.kernel[axis])
        .map(|tap| (tap, (tap * shape.dilation[axis]) as isize - shape.padding[axis] as isize))
        .collect()
}

/// The same for the input gradient at the positions `phase + n * stride`: (index in the kernel, offset in the output gradient).
pub(crate) fn gradient_taps(shape: &ConvolutionShape, axis: usize, phase: usize) -> Vec<(usize, isize)> {
    let stride = shape.stride[axis] as isize;
    (0..shape.kernel[axis])
        .rev()
        .map(|tap| (tap, (phase + shape.padding[axis]) as isize - (tap * shape.dilation[axis]) as isize))
        .filter(|(_, distance)| distance.rem_euclid(stride) == 0)
        .map(|(tap, distance)| (tap, distance.div_euclid(stride)))
        .collect()
}

/// The order of packed weights, and with it the kernel that reads them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// `[group][column of outputs][tap][input][output within the column]`, absent outputs zero.
    Columns,
    /// As the module `few` says, for very few outputs.
    FewOutputs,
    /// `[tap][channel]`, where each channel is convolved by itself.
    Depthwise,
    /// As the module `winograd` says.
    Winograd,
}

impl Packing {
    /// The best order for so many inputs and outputs of a group.
    fn best(shape: &ConvolutionShape, inputs: usize, outputs: usize, is_gradient: bool) -> Packing {
        if shape.groups > 1 && inputs == 1 && outputs == 1 {
            Packing::Depthwise
        } else if few::suits(shape, inputs, outputs, is_gradient) {
            Packing::FewOutputs
        } else {
            Packing::Columns
        }
    }

    /// How many floats the weights of one group take.
    fn len(self, depth: usize, inputs: usize, outputs: usize) -> usize {
        match self {
            Packing::Columns => packed_width(outputs) * depth,
            Packing::FewOutputs => few::weights_len(depth / inputs, inputs, outputs),
            Packing::Depthwise => depth,
            Packing::Winograd => winograd::weights_len(inputs, outputs),
        }
    }
}

/// One pass over the output: the positions `start + n * step` with their taps.
pub(crate) struct Pass {
    pub(crate) start: [usize; 3],
    /// Offsets in the input, for each axis.
    pub(crate) taps: [Vec<isize>; 3],
    /// Where the weights of the pass begin.
    pub(crate) weights: usize,
}

impl Pass {
    /// Whether the taps of the last axis lie next to each other.
    pub(crate) fn has_whole_lines(&self) -> bool {
        self.taps[2].is_sorted_by(|a, b| a + 1 == *b)
    }
}

/// A convolution, or the gradient of one with respect to its input, with its weights packed for the micro-kernel.
///
/// The gradient of a strided convolution falls into one pass for each phase of the stride; each is a small convolution without a
/// stride that writes every so many pixels. A transposed convolution is the gradient of a convolution, see
/// [`Convolution::transposed`].
///
/// Every output element is added up over the taps in row-major order (in falling order for the gradient) and over the input channels,
/// in chains of multiply-adds of at most 256, whatever the batch, the number of threads and the position. Convolutions to very few channels
/// begin a chain for each tap. At the level `amx`, larger convolutions are added up in steps of 32 products, by a unit that multiplies
/// numbers in three parts; what is smaller than 2⁻¹²⁶ counts as zero there.
///
/// ```
/// use ouzel_kernels::{Convolution, ConvolutionShape, Epilogue, Level, View};
/// // Two input channels, one output channel, a 1×2 kernel: y[x] = Σ w[c][k] · x[x + k][c].
/// let shape = ConvolutionShape::new(2, 1, [1, 1, 2]);
/// let convolution = Convolution::forward(&shape, &[1.0, 10.0, 100.0, 1000.0]);
/// let input = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]; // three pixels of two channels
/// let mut output = [0.0; 2];
/// let (from, to) = (View::packed(1, [1, 1, 3], 2), View::packed(1, [1, 1, 2], 1));
/// convolution.run(Level::portable(), &input, &from, &mut output, &to, Epilogue::default());
/// assert_eq!(output, [4231.0, 6453.0]);
/// ```
pub struct Convolution {
    pub(crate) input_channels: usize,
    pub(crate) output_channels: usize,
    groups: usize,
    packing: Packing,
    /// Step of the input from one output position of a pass to the next.
    pub(crate) input_step: [usize; 3],
    /// Step of the output within a pass.
    pub(crate) output_step: [usize; 3],
    pub(crate) passes: Vec<Pass>,
    weights: Aligned,
}

impl Convolution {
    /// The convolution itself; weights in ONNX's order `[output channel][input channel / groups][depth][height][width]`.
    ///
    /// # Panics
    /// If the shape is not usable or the weights are not as many as it says.
    pub fn forward(shape: &ConvolutionShape, weights: &[f32]) -> Convolution {
        shape.check();
        check_weights(shape, weights);
        let (inputs, outputs) = (shape.input_channels / shape.groups, shape.output_channels / shape.groups);
        let count = shape.taps();
        let packing = Packing::best(shape, inputs, outputs, false);
        Convolution::with_weights(shape, packing, |group, output, input, tap| {
            weights[((group * outputs + output) * inputs + input) * count + tap]
        })
    }

    /// A convolution whose weights are given by a function of (group, output of the group, input of the group, tap).
    pub(crate) fn with_weights(
        shape: &ConvolutionShape,
        packing: Packing,
        weight: impl Fn(usize, usize, usize, usize) -> f32 + Sync,
    ) -> Convolution {
        let taps = [0, 1, 2].map(|axis| forward_taps(shape, axis));
        let (inputs, outputs) = (shape.input_channels / shape.groups, shape.output_channels / shape.groups);
        let mut convolution = Convolution::without_weights(shape);
        convolution.packing = packing;
        if packing == Packing::FewOutputs {
            convolution.passes[0].taps = [0, 1, 2].map(|axis| few::offsets(shape, axis, false));
        }
        let length = shape.groups * packing.len(shape.taps() * inputs, inputs.max(1), outputs);
        convolution.weights = Aligned::zeros(length);
        pack(&mut convolution.weights, packing, shape, &taps, inputs, outputs, weight);
        convolution
    }

    /// A convolution of single pixels whose weights are given output by output: `fill(first, rows)` writes those of some outputs from
    /// `first` on, `[output][input]`.
    pub(crate) fn with_rows(
        input_channels: usize,
        output_channels: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) -> Convolution {
        let shape = ConvolutionShape::new(input_channels, output_channels, [1; 3]);
        shape.check();
        let mut convolution = Convolution::without_weights(&shape);
        convolution.weights = Aligned::zeros(packed_width(output_channels) * input_channels);
        if input_channels == 0 {
            return convolution;
        }
        let columns = convolution.weights.par_chunks_mut(COLUMN * input_channels).enumerate();
        columns.for_each_init(Vec::new, |rows, (column, packed)| {
            let first = column * COLUMN;
            let count = COLUMN.min(output_channels - first);
            rows.resize(count * input_channels, 0.0);
            fill(first, rows);
            interleave(packed, count, |lane, input| rows[lane * input_channels + input]);
        });
        convolution
    }

    /// A convolution that can only be run with the weights of others.
    pub(crate) fn without_weights(shape: &ConvolutionShape) -> Convolution {
        let taps = [0, 1, 2].map(|axis| offsets(forward_taps(shape, axis)));
        Convolution {
            input_channels: shape.input_channels,
            output_channels: shape.output_channels,
            groups: shape.groups,
            packing: Packing::Columns,
            input_step: shape.stride,
            output_step: [1; 3],
            passes: vec![Pass { start: [0; 3], taps, weights: 0 }],
            weights: Aligned::zeros(0),
        }
    }

    /// The input and output channels of a group.
    pub(crate) fn of_group(&self) -> (usize, usize) {
        (self.input_channels / self.groups, self.output_channels / self.groups)
    }

    /// The packed weights.
    pub(crate) fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// The gradient with respect to the input of the convolution that `shape` describes: `run` takes the gradient of the output (as its
    /// input) to that of the input. Weights as for [`Convolution::forward`].
    ///
    /// # Panics
    /// If the shape is not usable or the weights are not as many as it says.
    pub fn input_gradient(shape: &ConvolutionShape, weights: &[f32]) -> Convolution {
        shape.check();
        check_weights(shape, weights);
        // The gradient maps the output channels of the convolution to its input channels.
        let (inputs, outputs) = (shape.output_channels / shape.groups, shape.input_channels / shape.groups);
        let count = shape.taps();
        let packing = Packing::best(shape, inputs, outputs, true);
        let weight = |group: usize, output: usize, input: usize, tap: usize| {
            weights[((group * inputs + input) * outputs + output) * count + tap]
        };
        if packing == Packing::FewOutputs {
            let mut packed = Aligned::zeros(packing.len(count * inputs, inputs, outputs));
            let taps = [0, 1, 2].map(|axis| forward_taps(shape, axis));
            pack(&mut packed, packing, shape, &taps, inputs, outputs, weight);
            let taps = [0, 1, 2].map(|axis| few::offsets(shape, axis, true));
            return Convolution {
                input_channels: shape.output_channels,
                output_channels: shape.input_channels,
                groups: 1,
                packing,
                input_step: [1; 3],
                output_step: shape.stride,
                passes: vec![Pass { start: [0; 3], taps, weights: 0 }],
                weights: packed,
            };
        }
        let length = shape.groups * packing.len(count * inputs, inputs, outputs);
        let mut packed = Aligned::zeros(length);
        let mut begin = 0;
        let mut passes = Vec::new();
        let phases = shape.stride;
        for start in (0..phases[0])
            .flat_map(|z| (0..phases[1]).flat_map(move |y| (0..phases[2]).map(move |x| [z, y, x])))
        {
            let taps = [0, 1, 2].map(|axis| gradient_taps(shape, axis, start[axis]));
            let depth = taps.iter().map(|taps| taps.len()).product::<usize>() * inputs;
            let end = begin + shape.groups * packing.len(depth, inputs.max(1), outputs);
            let part = &mut packed[begin..end];
            pack(part, packing, shape, &taps, inputs, outputs, weight);
            passes.push(Pass { start, taps: taps.map(offsets), weights: begin });
            begin = end;
        }
        Convolution {
            input_channels: shape.output_channels,
            output_channels: shape.input_channels,
            groups: shape.groups,
            packing,
            input_step: [1; 3],
            output_step: shape.stride,
            passes,
            weights: packed,
        }
    }

    /// A transposed convolution; weights in ONNX's order `[input channel][output channel / groups][depth][height][width]`, and
    /// `shape` with the channels, padding and stride of the ConvTranspose node. This is the input gradient of the convolution that
    /// goes the other way.
    ///
    /// # Panics
    /// If the shape is not usable or the weights are not as many as it says.
    pub fn transposed(shape: &ConvolutionShape, weights: &[f32]) -> Convolution {
        Convolution::input_gradient(&shape.reversed(), weights)
    }

    /// The gradient of a transposed convolution with respect to its input: a convolution. Arguments as for
    /// [`Convolution::transposed`].
    ///
    /// # Panics
    /// If the shape is not usable or the weights are not as many as it says.
    pub fn transposed_input_gradient(shape: &ConvolutionShape, weights: &[f32]) -> Convolution {
        Convolution::forward(&shape.reversed(), weights)
    }

    /// As [`Convolution::forward`], by Winograd's algorithm, which rounds a little differently and takes up to 2.25 times less work.
    ///
    /// # Panics
    /// If the shape is not usable, the weights are not as many as it says, or [`ConvolutionShape::has_winograd`] does not hold.
    pub fn forward_by_winograd(shape: &ConvolutionShape, weights: &[f32]) -> Convolution {
        assert!(shape.has_winograd(), "no Winograd convolution for {shape:?}");
        shape.check();
        check_weights(shape, weights);
        let inputs = shape.input_channels;
        Convolution::with_weights(shape, Packing::Winograd, |_, output, input, tap| {
            weights[(output * inputs + input) * TAPS + tap]
        })
    }

    /// As [`Convolution::transposed`], by Winograd's algorithm.
    ///
    /// # Panics
    /// As [`Convolution::forward_by_winograd`].
    pub fn transposed_by_winograd(shape: &ConvolutionShape, weights: &[f32]) -> Convolution {
        assert!(shape.has_winograd(), "no Winograd convolution for {shape:?}");
        shape.check();
        check_weights(shape, weights);
        let outputs = shape.output_channels;
        // Without a stride, this is a convolution with turned weights.
        let [_, height, width] = shape.padding;
        let turned = ConvolutionShape { padding: [0, 2 - height, 2 - width], ..shape.clone() };
        Convolution::with_weights(&turned, Packing::Winograd, |_, output, input, tap| {
            weights[(input * outputs + output) * TAPS + TAPS - 1 - tap]
        })
    }

    /// The multiplications and additions for an output of this shape; taps that reach into the padding count too.
    pub fn flops(&self, output: &View) -> f64 {
        let of_pass = |pass: &Pass| {
            let axis = |axis: usize| {
                let left = output.size[axis].saturating_sub(pass.start[axis]);
                left.div_ceil(self.output_step[axis]) * pass.taps[axis].len()
            };
            (0..3).map(|index| axis(index) as f64).product::<f64>()
        };
        let positions: f64 = self.passes.iter().map(of_pass).sum();
        let products = self.input_channels as f64 / self.groups as f64 * self.output_channels as f64;
        2.0 * positions * products * output.batch as f64
    }

    /// Computes the output.
    ///
    /// Output positions may be as many as the caller likes: the input counts as zero outside of its view, which is how the padding at
    /// the ends works.
    ///
    /// # Panics
    /// If a view does not fit its slice, the channels or batches do not fit, or the epilogue does not fit the output.
    pub fn run(
        &self,
        level: Level,
        input: &[f32],
        input_view: &View,
        output: &mut [f32],
        output_view: &View,
        epilogue: Epilogue,
    ) {
        self.run_with(self.weights(), level, input, input_view, output, output_view, epilogue);
    }

    /// Computes the output with other weights than its own, packed in the same way.
    pub(crate) fn run_with(
        &self,
        weights: &[f32],
        level: Level,
        input: &[f32],
        input_view: &View,
        output: &mut [f32],
        output_view: &View,
        epilogue: Epilogue,
    ) {
        input_view.check(input.len(), "input");
        assert_eq!(input_view.channels, self.input_channels, "channels of the input");
        assert_eq!(output_view.channels, self.output_channels, "channels of the output");
        assert_eq!(input_view.batch, output_view.batch, "batches of input and output");
        let finish = Finish::new(level, epilogue, output, output_view);
        if output_view.pixels() == 0 || self.output_channels == 0 {
            return;
        }
        let threads = rayon::current_num_threads();
        let work =
            Work { convolution: self, weights, level, input, input_view, output_view, finish, threads };
        match self.packing {
            Packing::Columns => columns::run(&work),
            Packing::FewOutputs => few::run(&work),
            Packing::Depthwise => depthwise::run(&work),
            Packing::Winograd => winograd::run(&work),
        }
    }
}

impl ConvolutionShape {
    /// The convolution with input and output exchanged.
    fn reversed(&self) -> ConvolutionShape {
        ConvolutionShape {
            input_channels: self.output_channels,
            output_channels: self.input_channels,
            ..self.clone()
        }
    }
}

fn offsets(taps: Vec<(usize, isize)>) -> Vec<isize> {
    taps.into_iter().map(|(_, offset)| offset).collect()
}

fn check_weights(shape: &ConvolutionShape, weights: &[f32]) {
    let expected = shape.output_channels * (shape.input_channels / shape.groups) * shape.taps();
    assert_eq!(weights.len(), expected, "number of weights of {shape:?}");
}

/// Packs the weights of one pass.
fn pack(
    packed: &mut [f32],
    packing: Packing,
    shape: &ConvolutionShape,
    taps: &[Vec<(usize, isize)>; 3],
    inputs: usize,
    outputs: usize,
    weight: impl Fn(usize, usize, usize, usize) -> f32 + Sync,
) {
    let kernel = shape.kernel;
    let order: Vec<usize> = taps[0]
        .iter()
        .flat_map(|z| taps[1].iter().map(move |y| (z, y)))
        .flat_map(|(z, y)| taps[2].iter().map(move |x| (z.0 * kernel[1] + y.0) * kernel[2] + x.0))
        .collect();
    let depth = order.len() * inputs;
    if packed.is_empty() || depth == 0 {
        return;
    }
    match packing {
        Packing::Depthwise => {
            for (tap, row) in order.iter().zip(packed.chunks_exact_mut(shape.groups)) {
                for (group, value) in row.iter_mut().enumerate() {
                    *value = weight(group, 0, 0, *tap);
                }
            }
            return;
        }
        Packing::FewOutputs => {
            let lanes = few::lanes(order.len(), outputs);
            let mut places = vec![None; lanes];
            for (index, tap) in order.iter().enumerate() {
                for output in 0..outputs {
                    places[few::lane(index, output, outputs)] = Some((output, *tap));
                }
            }
            for (packed, places) in packed.chunks_mut(COLUMN * inputs).zip(places.chunks(COLUMN)) {
                interleave(packed, places.len(), |lane, input| {
                    places[lane].map_or(0.0, |(output, tap)| weight(0, output, input, tap))
                });
            }
            return;
        }
        Packing::Winograd => {
            let weight = |output, input, tap| weight(0, output, input, tap);
            return winograd::pack(packed, inputs, outputs, weight);
        }
        Packing::Columns => {}
    }
    let places: Vec<(usize, usize)> =
        order.iter().flat_map(|tap| (0..inputs).map(move |input| (input, *tap))).collect();
    let groups = packed.par_chunks_mut(packed_width(outputs) * depth).enumerate();
    groups.for_each(|(group, packed)| {
        packed.par_chunks_mut(COLUMN * depth).enumerate().for_each(|(column, packed)| {
            let first = column * COLUMN;
            let count = COLUMN.min(outputs - first);
            interleave(packed, count, |lane, position| {
                let (input, tap) = places[position];
                weight(group, first + lane, input, tap)
            });
        });
    });
}

/// Writes `count` lanes of a column, some rows at a time, so that both what is read and what is written stays in the cache.
#[inline(always)]
fn interleave(packed: &mut [f32], count: usize, value: impl Fn(usize, usize) -> f32) {
    const ROWS: usize = 64;
    for (chunk, rows) in packed.chunks_mut(ROWS * COLUMN).enumerate() {
        for lane in 0..count {
            for (row, values) in rows.chunks_exact_mut(COLUMN).enumerate() {
                values[lane] = value(lane, chunk * ROWS + row);
            }
        }
    }
}

/// One call of `Convolution::run`.
pub(crate) struct Work<'a> {
    pub(crate) convolution: &'a Convolution,
    pub(crate) weights: &'a [f32],
    pub(crate) level: Level,
    pub(crate) input: &'a [f32],
    pub(crate) input_view: &'a View,
    pub(crate) output_view: &'a View,
    pub(crate) finish: Finish<'a>,
    /// Asked for once, because all threads must cut the work in the same way.
    pub(crate) threads: usize,
}

impl<'a> Work<'a> {
    /// Whether different blocks of channels share words of the recorded mask, so that one thread must do all of them.
    pub(crate) fn shares_words(&self) -> bool {
        let outputs = self.convolution.output_channels / self.convolution.groups;
        self.finish.records() && self.convolution.groups > 1 && !outputs.is_multiple_of(WORD)
    }

    /// Blocks of output channels, over all groups.
    pub(crate) fn blocks(&self) -> usize {
        let outputs = self.convolution.output_channels / self.convolution.groups;
        self.convolution.groups * outputs.div_ceil(BLOCK)
    }

    /// Output positions of a pass on each axis.
    pub(crate) fn counts(&self, pass: &Pass) -> [usize; 3] {
        let (size, step) = (self.output_view.size, self.convolution.output_step);
        [0, 1, 2].map(|axis| size[axis].saturating_sub(pass.start[axis]).div_ceil(step[axis]))
    }

    /// Elements of the input from one position to the next on each axis.
    #[inline(always)]
    pub(crate) fn steps(&self) -> [usize; 3] {
        let View { size, pixel_stride, .. } = *self.input_view;
        [
            size[1].wrapping_mul(size[2]).wrapping_mul(pixel_stride),
            size[2].wrapping_mul(pixel_stride),
            pixel_stride,
        ]
    }
}
