//! How near to the arithmetic peak of a core the convolutions of ResNet-50, VGG-16 and MobileNet-V2 come, in both directions.
//!
//! `cargo run --release -p ouzel-kernels --example peak [threads] [filter]`; `OUZEL_SIMD` chooses the level. The first line has the peak
//! of all threads together, in the best moment and in the mean of half a second; with a filter that is no convolution's name, it stays the only figure. Where Winograd's algorithm is faster,
//! a second line has its times. For the fractions the peak is measured in the same moment as each convolution, because other work on the
//! machine changes both.

use ouzel_kernels::{Aligned, Convolution, ConvolutionShape, Epilogue, Level, Peak, View, peak_flops};
use std::time::Instant;

/// (name, size of the input, input channels, output channels, kernel, stride, groups)
const SHAPES: &[(&str, usize, usize, usize, usize, usize, usize)] = &[
    ("vgg 1_1", 224, 3, 64, 3, 1, 1),
    ("vgg 1_2", 224, 64, 64, 3, 1, 1),
    ("vgg 2_1", 112, 64, 128, 3, 1, 1),
    ("vgg 2_2", 112, 128, 128, 3, 1, 1),
    ("vgg 3_1", 56, 128, 256, 3, 1, 1),
    ("vgg 3_2", 56, 256, 256, 3, 1, 1),
    ("vgg 4_1", 28, 256, 512, 3, 1, 1),
    ("vgg 4_2", 28, 512, 512, 3, 1, 1),
    ("vgg 5_1", 14, 512, 512, 3, 1, 1),
    ("resnet stem", 224, 3, 64, 7, 2, 1),
    ("resnet 2 reduce", 56, 256, 64, 1, 1, 1),
    ("resnet 2 3x3", 56, 64, 64, 3, 1, 1),
    ("resnet 2 expand", 56, 64, 256, 1, 1, 1),
    ("resnet 3 3x3/2", 56, 128, 128, 3, 2, 1),
    ("resnet 3 short/2", 56, 256, 512, 1, 2, 1),
    ("resnet 3 reduce", 28, 512, 128, 1, 1, 1),
    ("resnet 3 3x3", 28, 128, 128, 3, 1, 1),
    ("resnet 3 expand", 28, 128, 512, 1, 1, 1),
    ("resnet 4 3x3/2", 28, 256, 256, 3, 2, 1),
    ("resnet 4 reduce", 14, 1024, 256, 1, 1, 1),
    ("resnet 4 3x3", 14, 256, 256, 3, 1, 1),
    ("resnet 4 expand", 14, 256, 1024, 1, 1, 1),
    ("resnet 5 3x3/2", 14, 512, 512, 3, 2, 1),
    ("resnet 5 reduce", 7, 2048, 512, 1, 1, 1),
    ("resnet 5 3x3", 7, 512, 512, 3, 1, 1),
    ("resnet 5 expand", 7, 512, 2048, 1, 1, 1),
    ("squeeze 16", 55, 128, 16, 1, 1, 1),
    ("mobile stem", 224, 3, 32, 3, 2, 1),
    ("mobile 112 expand", 112, 16, 96, 1, 1, 1),
    ("mobile 28 expand", 28, 16, 96, 1, 1, 1),
    ("mobile 14 expand", 14, 16, 96, 1, 1, 1),
    ("mobile expand", 56, 24, 144, 1, 1, 1),
    ("mobile project", 56, 144, 24, 1, 1, 1),
    ("depthwise 112", 112, 32, 32, 3, 1, 32),
    ("depthwise 112/2", 112, 96, 96, 3, 2, 96),
    ("depthwise 56", 56, 144, 144, 3, 1, 144),
    ("depthwise 14", 14, 576, 576, 3, 1, 576),
    ("depthwise 28 5x5", 28, 240, 240, 5, 1, 240),
];

/// Processor time of this thread where the system tells it, which does not count the times when other programs have the core.
#[cfg(target_os = "linux")]
fn thread_seconds() -> Option<f64> {
    #[repr(C)]
    struct Timespec {
        seconds: std::ffi::c_long,
        nanoseconds: std::ffi::c_long,
    }
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut Timespec) -> i32;
    }
    const CLOCK_THREAD_CPUTIME_ID: i32 = 3;
    let mut time = Timespec { seconds: 0, nanoseconds: 0 };
    // SAFETY: the function of the C library that the standard library links, with a valid place to write to.
    let status = unsafe { clock_gettime(CLOCK_THREAD_CPUTIME_ID, &mut time) };
    (status == 0).then_some(time.seconds as f64 + time.nanoseconds as f64 * 1e-9)
}

#[cfg(not(target_os = "linux"))]
fn thread_seconds() -> Option<f64> {
    None
}

/// Seconds that `work` takes: of the processor if one thread does all of it, else of the clock on the wall.
fn seconds(threads: usize, mut work: impl FnMut()) -> f64 {
    let (start, thread_start) = (Instant::now(), thread_seconds());
    work();
    match (threads, thread_start, thread_seconds()) {
        (1, Some(start), Some(end)) => end - start,
        _ => start.elapsed().as_secs_f64(),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let threads: usize = arguments.next().map_or(1, |threads| threads.parse().expect("a number of threads"));
    let filter = arguments.next().unwrap_or_default();
    let level = Level::detect().expect("a level of this machine");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global();
    pool.expect("a pool");
    let peaks = rayon::broadcast(|_| peak_flops(level, 0.5));
    let [best, mean] =
        [|peak: &Peak| peak.best, |peak: &Peak| peak.mean].map(|of| peaks.iter().map(of).sum::<f64>() / 1e9);
    println!(
        "{} with {threads} threads, together {best:.1} GFLOP/s at most, {mean:.1} GFLOP/s in the mean",
        level.name()
    );
    println!(
        "{:26} {:>9} {:>9} {:>6}   {:>9} {:>9} {:>6}",
        "", "fwd ms", "GFLOP/s", "peak", "grad ms", "GFLOP/s", "peak"
    );
    for (name, size, inputs, outputs, kernel, stride, groups) in
        SHAPES.iter().filter(|shape| shape.0.contains(&filter))
    {
        let out = (size + 2 * (kernel / 2) - kernel) / stride + 1;
        let shape = ConvolutionShape {
            stride: [1, *stride, *stride],
            padding: [0, kernel / 2, kernel / 2],
            groups: *groups,
            ..ConvolutionShape::new(*inputs, *outputs, [1, *kernel, *kernel])
        };
        let weights: Vec<f32> =
            (0..outputs * inputs / groups * kernel * kernel).map(|n| (n % 17) as f32 / 17.0 - 0.5).collect();
        let inner = View::packed(1, [1, *size, *size], *inputs);
        let outer = View::packed(1, [1, out, out], *outputs);
        let (mut x, mut g) = (Aligned::zeros(inner.len()), Aligned::zeros(outer.len()));
        x.iter_mut().enumerate().for_each(|(n, x)| *x = (n % 23) as f32 / 23.0);
        g.iter_mut().enumerate().for_each(|(n, g)| *g = (n % 29) as f32 / 29.0);
        let flops = 2.0 * (out * out * outputs * inputs / groups * kernel * kernel) as f64;
        let direct = [Convolution::forward(&shape, &weights), Convolution::input_gradient(&shape, &weights)];
        let winograd = shape.suits_winograd([1, out, out]).then(|| {
            let transposed =
                ConvolutionShape { input_channels: *outputs, output_channels: *inputs, ..shape.clone() };
            [
                Convolution::forward_by_winograd(&shape, &weights),
                Convolution::transposed_by_winograd(&transposed, &weights),
            ]
        });
        for (number, [forward, gradient]) in std::iter::once(direct).chain(winograd).enumerate() {
            print!("{:26}", if number == 0 { (*name).to_owned() } else { format!("{name} Winograd") });
            for (convolution, from, from_view, to_view) in
                [(forward, &x, &inner, &outer), (gradient, &g, &outer, &inner)]
            {
                let mut output = Aligned::zeros(to_view.len());
                let mut run =
                    || convolution.run(level, from, from_view, &mut output, to_view, Epilogue::default());
                run();
                let (mut times, mut fractions) = (Vec::new(), Vec::new());
                let start = Instant::now();
                while times.len() < 5 || start.elapsed().as_secs_f64() < 0.4 {
                    let before = peak_flops(level, 0.001).best;
                    let time = seconds(threads, &mut run);
                    let after = peak_flops(level, 0.001).best;
                    times.push(time);
                    fractions.push(flops / time / before.max(after) / threads as f64);
                }
                let time = median(times);
                print!(" {:9.3} {:9.1} {:5.1}%  ", time * 1e3, flops / time / 1e9, 100.0 * median(fractions));
            }
            println!();
        }
    }
}
