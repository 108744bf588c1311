//! Dense layers: one packed copy of the weights that serves both directions.

use crate::convolution::{Convolution, ConvolutionShape, Packing};
use crate::crew::share_out;
use crate::epilogue::{Epilogue, Finish};
use crate::level::{Kernel, Level};
use crate::setting::Pixels;
use crate::tile::COLUMN;
use crate::vector::Simd;
use crate::view::View;

/// A dense layer `y[row][n] = Σ_k x[row][k] · w[k][n]` with its weights packed as `[column of n][k][n within the column]`.
///
/// Forward, every element is the sum of chains of at most 256 multiply-adds over k. In the gradient, every lane is one chain over its columns of n, and the
/// lanes are then added pairwise; columns of n in which all of g is 0 are left out. Both orders depend on the sizes of the layer alone (and on the SIMD level).
///
/// ```
/// use ouzel_kernels::{Dense, Epilogue, Level};
/// // Two inputs, three outputs, weights [k][n].
/// let layer = Dense::new(2, 3, &[1.0, 2.0, 3.0, 10.0, 20.0, 30.0], 3, 1);
/// let (mut y, mut gradient) = ([0.0; 3], [0.0; 2]);
/// layer.forward(Level::portable(), 1, &[1.0, 2.0], &mut y, Epilogue::default());
/// assert_eq!(y, [21.0, 42.0, 63.0]);
/// layer.input_gradient(Level::portable(), 1, &[1.0, 1.0, 0.0], &mut gradient, Epilogue::default());
/// assert_eq!(gradient, [3.0, 30.0]);
/// ```
pub struct Dense {
    inputs: usize,
    outputs: usize,
    convolution: Convolution,
}

/// Inputs (k) of which the gradient is computed at once.
const INPUTS: usize = 16;

/// How many columns ahead the gradient asks for weights.
const COLUMNS_AHEAD: usize = 4;

/// Products below which a task is not worth sharing out.
const LEAST_WORK: usize = 256 * 1024;

impl Dense {
    /// Packs a layer; the weight from input k to output n lies at `weights[k * input_stride + n * output_stride]`.
    ///
    /// # Panics
    /// If a weight lies outside of the slice or the sizes are too large.
    pub fn new(
        inputs: usize,
        outputs: usize,
        weights: &[f32],
        input_stride: usize,
        output_stride: usize,
    ) -> Dense {
        Dense::from_fn(inputs, outputs, |input, output| {
            weights[input * input_stride + output * output_stride]
        })
    }

    /// Packs a layer whose weights are given by a function of (input, output).
    ///
    /// A layer behind a Flatten needs this: in a channels-last buffer the input `(y * width + x) * channels + c` of the layer is what
    /// ONNX calls `(c * height + y) * width + x`.
    ///
    /// # Panics
    /// If the sizes are too large.
    pub fn from_fn(inputs: usize, outputs: usize, weight: impl Fn(usize, usize) -> f32 + Sync) -> Dense {
        let shape = ConvolutionShape::new(inputs, outputs, [1; 3]);
        shape.check();
        let convolution =
            Convolution::with_weights(&shape, Packing::Columns, |_, output, input, _| weight(input, output));
        Dense { inputs, outputs, convolution }
    }

    /// Packs a layer whose weights are given output by output: `fill(first, rows)` writes those of some outputs from `first` on, as
    /// `[output][input]`. No more than a few outputs are asked for at a time, so that a large layer can be read from a file piece by
    /// piece; several threads ask at once.
    ///
    /// # Panics
    /// If the sizes are too large.
    pub fn from_rows(inputs: usize, outputs: usize, fill: impl Fn(usize, &mut [f32]) + Sync) -> Dense {
        Dense { inputs, outputs, convolution: Convolution::with_rows(inputs, outputs, fill) }
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.outputs
    }

    /// `output[row][n] = Σ_k input[row][k] · w[k][n]`, finished.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn forward(&self, level: Level, rows: usize, input: &[f32], output: &mut [f32], epilogue: Epilogue) {
        // Samples of one pixel: how many rows there are must not matter to their bits.
        let (from, to) = (View::packed(rows, [1; 3], self.inputs), View::packed(rows, [1; 3], self.outputs));
        self.convolution.run(level, input, &from, output, &to, epilogue);
    }

    /// `input_gradient[row][k] = Σ_n gradient[row][n] · w[k][n]`, finished.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn input_gradient(
        &self,
        level: Level,
        rows: usize,
        gradient: &[f32],
        input_gradient: &mut [f32],
        epilogue: Epilogue,
    ) {
        let (from, to) =
            (View::packed(1, [1, 1, rows], self.outputs), View::packed(1, [1, 1, rows], self.inputs));
        from.check(gradient.len(), "gradient");
        let finish = Finish::new(level, epilogue, input_gradient, &to);
        if rows == 0 || self.inputs == 0 {
            return;
        }
        let tiles = self.inputs.div_ceil(INPUTS);
        let work = INPUTS * rows.saturating_mul(self.outputs.max(1));
        let tiles_per_task =
            LEAST_WORK.div_ceil(work).max(tiles / (8 * rayon::current_num_threads())).clamp(1, tiles);
        let tasks = tiles.div_ceil(tiles_per_task);
        let run = |task: usize| {
            let (first, last) = (task * tiles_per_task, tiles.min((task + 1) * tiles_per_task));
            level.run(Gradient { layer: self, gradient, rows, finish, first, last });
        };
        share_out(tasks, run);
    }
}

/// The gradient with respect to some tiles of inputs.
struct Gradient<'a> {
    layer: &'a Dense,
    gradient: &'a [f32],
    rows: usize,
    finish: Finish<'a>,
    first: usize,
    last: usize,
}

/// Most rows of a tile.
const MOST_ROWS: usize = 3;

type Sums = [[f32; INPUTS]; MOST_ROWS];

impl Kernel for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Gradient { layer, gradient, rows, finish, first, last } = self;
        for tile in first..last {
            let input = tile * INPUTS;
            let count = INPUTS.min(layer.inputs - input);
            let most = if S::LANES == 16 { MOST_ROWS } else { 1 };
            let mut row = 0;
            while row < rows {
                let now = most.min(rows - row);
                let gradient = &gradient[row * layer.outputs..(row + now) * layer.outputs];
                let mut sums: Sums = [[0.0; INPUTS]; MOST_ROWS];
                match now {
                    1 if S::LANES == 16 => tiles::<S, 16, 1>(simd, layer, gradient, input, count, &mut sums),
                    1 if !S::PORTABLE => tiles::<S, 8, 1>(simd, layer, gradient, input, count, &mut sums),
                    1 => tiles::<S, 4, 1>(simd, layer, gradient, input, count, &mut sums),
                    2 => tiles::<S, 8, 2>(simd, layer, gradient, input, count, &mut sums),
                    _ => tiles::<S, 8, 3>(simd, layer, gradient, input, count, &mut sums),
                }
                for (n, sums) in sums.iter().enumerate().take(now) {
                    // SAFETY: a task has its tiles of inputs for itself, and they begin at multiples of 16.
                    unsafe { finish.row(simd, &sums[..count], row + n, input) };
                }
                // SAFETY: as before.
                unsafe { finish.go_on(Pixels::Row { first: row, step: 1, count: now }, input, count) };
                row += now;
            }
        }
    }
}

/// The sums of B rows for `count` inputs, K of them at a time; each weight is loaded once for all rows.
#[inline(always)]
fn tiles<S: Simd, const K: usize, const B: usize>(
    simd: S,
    layer: &Dense,
    gradient: &[f32],
    input: usize,
    count: usize,
    sums: &mut Sums,
) {
    let mut done = 0;
    while done < count {
        if count - done >= K {
            tile::<S, K, B>(simd, layer, gradient, input + done, done, sums);
            done += K;
        } else {
            tile::<S, 1, B>(simd, layer, gradient, input + done, done, sums);
            done += 1;
        }
    }
}

#[inline(always)]
fn tile<S: Simd, const K: usize, const B: usize>(
    simd: S,
    layer: &Dense,
    gradient: &[f32],
    input: usize,
    place: usize,
    sums: &mut Sums,
) {
    let weights = layer.convolution.weights();
    let (inputs, outputs) = (layer.inputs, layer.outputs);
    assert!(input + K <= inputs && gradient.len() >= B * outputs, "invariant: a tile lies within its layer");
    let mut acc = [[simd.splat(0.0); B]; K];
    for first in (0..outputs).step_by(COLUMN) {
        let column = &weights[first * inputs + input * COLUMN..][..K * COLUMN];
        let filled = COLUMN.min(outputs - first);
        // Mostly one output alone is explained, and the time goes into reading weights.
        let is_zero = |b: usize| gradient[b * outputs + first..][..filled].iter().all(|g| *g == 0.0);
        if (0..B).all(is_zero) {
            continue;
        }
        // The columns lie far apart, where the processor does not look ahead by itself.
        let ahead = match first + COLUMNS_AHEAD * COLUMN < outputs {
            true => COLUMNS_AHEAD * COLUMN * inputs,
            false => 0,
        };
        for lane in (0..filled).step_by(S::LANES) {
            let mut g = [simd.splat(0.0); B];
            for b in 0..B {
                let from = &gradient[b * outputs + first + lane..b * outputs + first + filled];
                g[b] = if from.len() >= S::LANES { simd.load(from) } else { simd.load_partial(from) };
            }
            for k in 0..K {
                let w = if S::PORTABLE {
                    simd.load(&column[k * COLUMN + lane..])
                } else {
                    simd.prefetch(column.as_ptr().wrapping_add(k * COLUMN + lane + ahead));
                    // SAFETY: `column` holds K rows of COLUMN floats; lane is a multiple of LANES below COLUMN, itself a multiple.
                    unsafe { simd.load_pointer(column.as_ptr().add(k * COLUMN + lane)) }
                };
                for b in 0..B {
                    acc[k][b] = simd.multiply_add(w, g[b], acc[k][b]);
                }
            }
        }
    }
    for b in 0..B {
        for k in 0..K {
            sums[b][place + k] = simd.sum(acc[k][b]);
        }
    }
}
