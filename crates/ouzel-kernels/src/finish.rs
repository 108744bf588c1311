//! An epilogue without a product before it: bias, residual, activation and gates on a tensor that exists already.

use crate::crew::share_out;
use crate::epilogue::{Epilogue, Finish};
use crate::level::{Kernel, Level};
use crate::setting::Pixels;
use crate::vector::Simd;
use crate::view::View;

/// Elements below which the work is not worth sharing out.
const LEAST_WORK: usize = 32 * 1024;

/// Copies a tensor through an epilogue.
///
/// # Panics
/// If a view does not fit its slice or the tensors differ in size.
///
/// ```
/// use ouzel_kernels::{finish, Activation, Epilogue, Level, View};
/// let view = View::packed(1, [1, 1, 2], 2);
/// let mut output = [0.0; 4];
/// let epilogue = Epilogue { activation: Some(Activation::Relu), ..Epilogue::default() };
/// finish(Level::portable(), &[1.0, -1.0, -2.0, 2.0], &view, &mut output, &view, epilogue);
/// assert_eq!(output, [1.0, 0.0, 0.0, 2.0]);
/// ```
pub fn finish(
    level: Level,
    input: &[f32],
    input_view: &View,
    output: &mut [f32],
    output_view: &View,
    epilogue: Epilogue,
) {
    input_view.check(input.len(), "input");
    assert!(
        input_view.pixels() == output_view.pixels() && input_view.channels == output_view.channels,
        "input {input_view:?} differs from output {output_view:?}"
    );
    let finish = Finish::new(level, epilogue, output, output_view);
    let pixels = output_view.pixels();
    let pixels_per_task = (LEAST_WORK / output_view.channels.max(1)).clamp(1, pixels.max(1));
    let tasks = pixels.div_ceil(pixels_per_task);
    let run = |task: usize| {
        let (first, last) = (task * pixels_per_task, pixels.min((task + 1) * pixels_per_task));
        level.run(Span { input, view: input_view, finish, first, last });
    };
    share_out(tasks, run);
}

struct Span<'a> {
    input: &'a [f32],
    view: &'a View,
    finish: Finish<'a>,
    first: usize,
    last: usize,
}

impl Kernel for Span<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for pixel in self.first..self.last {
            let start = pixel * self.view.pixel_stride + self.view.channel_offset;
            let values = &self.input[start..start + self.view.channels];
            // SAFETY: each pixel belongs to one task.
            unsafe { self.finish.row(simd, values, pixel, 0) };
        }
        let pixels = Pixels::Row { first: self.first, step: 1, count: self.last - self.first };
        // SAFETY: as before.
        unsafe { self.finish.go_on(pixels, 0, self.view.channels) };
    }
}
