//! How near to the speed of copying memory the kernels come that do little arithmetic.
//!
//! `cargo run --release -p ouzel-kernels --example bandwidth [threads]`; bytes read and written each count once. The best time of many is shown.

use ouzel_kernels::*;
use std::hint::black_box;
use std::time::Instant;

fn best_seconds(mut work: impl FnMut()) -> f64 {
    work();
    let mut times: Vec<f64> = Vec::new();
    let start = Instant::now();
    while times.len() < 9 || start.elapsed().as_secs_f64() < 0.2 {
        let begin = Instant::now();
        work();
        times.push(begin.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[0]
}

fn report(name: &str, bytes: usize, work: impl FnMut()) {
    let seconds = best_seconds(work);
    println!("{name:44} {:8.3} ms {:8.1} GB/s", seconds * 1e3, bytes as f64 / seconds / 1e9);
}

fn main() {
    let threads: usize =
        std::env::args().nth(1).map_or(1, |threads| threads.parse().expect("a number of threads"));
    let level = Level::detect().expect("a level of this machine");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build_global();
    pool.expect("a pool");
    println!("{} with {threads} threads", level.name());
    for (size, channels, kernel, stride) in
        [(112, 32, 3, 1), (112, 96, 3, 2), (56, 144, 3, 1), (28, 240, 5, 1), (14, 576, 3, 1), (7, 960, 3, 1)]
    {
        let out = size / stride;
        let mut shape = ConvolutionShape::new(channels, channels, [1, kernel, kernel]);
        shape.groups = channels;
        shape.stride = [1, stride, stride];
        shape.padding = [0, kernel / 2, kernel / 2];
        let weights = vec![0.1; channels * kernel * kernel];
        let (inner, outer) =
            (View::packed(1, [1, size, size], channels), View::packed(1, [1, out, out], channels));
        let (x, mut y) = (vec![1.0; inner.len()], vec![1.0; outer.len()]);
        let (g, mut dx) = (vec![1.0; outer.len()], vec![1.0; inner.len()]);
        let bytes = 4 * (inner.len() + outer.len());
        println!("{size}x{size}x{channels}, {kernel}x{kernel}/{stride}");
        report("  copy of as many bytes", bytes, || {
            black_box(&mut y[..]).copy_from_slice(black_box(&x[..outer.len()]));
            black_box(&mut dx[outer.len()..]).copy_from_slice(&x[outer.len()..]);
        });
        let (forward, gradient) =
            (Convolution::forward(&shape, &weights), Convolution::input_gradient(&shape, &weights));
        report("  depthwise", bytes, || forward.run(level, &x, &inner, &mut y, &outer, Epilogue::default()));
        report("  depthwise gradient", bytes, || {
            gradient.run(level, &g, &outer, &mut dx, &inner, Epilogue::default())
        });
        let window =
            Window { stride: [1, stride, stride], padding: shape.padding, ..Window::new(shape.kernel) };
        let mut positions = vec![0; outer.len()];
        report("  max pool", bytes, || {
            max_pool(level, &window, &x, &inner, &mut y, &outer, Some(&mut positions), Epilogue::default());
        });
        report("  max pool gradient", bytes, || {
            max_pool_gradient(level, &window, &g, &outer, &positions, &mut dx, &inner, Epilogue::default());
        });
        report("  average pool", bytes, || {
            average_pool(
                level,
                &window,
                AverageCount::Inside,
                &x,
                &inner,
                &mut y,
                &outer,
                Epilogue::default(),
            );
        });
        report("  average pool gradient", bytes, || {
            average_pool_gradient(
                level,
                &window,
                AverageCount::Inside,
                &g,
                &outer,
                &mut dx,
                &inner,
                Epilogue::default(),
            );
        });
        let silu = Program::new(vec![
            Instruction::Load { to: 0, operand: 0 },
            Instruction::Unary { to: 1, function: Unary::Sigmoid, a: 0 },
            Instruction::Binary { to: 0, function: Binary::Multiply, a: 0, b: 1 },
            Instruction::Store { result: 0, from: 0 },
        ]);
        report("  x * sigmoid(x)", 8 * inner.len(), || {
            silu.run(level, &inner, &[Operand::Full(&x, inner)], &mut [Target::Full(&mut dx, inner)]);
        });
        let mut first = vec![0.0; inner.len()];
        report("  to channels first", 8 * inner.len(), || to_channels_first(&x, &inner, &mut first));
        report("  to channels last", 8 * inner.len(), || to_channels_last(&first, &mut dx, &inner));
    }
    println!("dense, bytes of the weights");
    for (inputs, outputs) in [(2048, 1000), (4096, 4096), (25088, 4096)] {
        let layer = Dense::from_fn(inputs, outputs, |_, _| 0.01);
        let (x, mut y) = (vec![1.0; inputs], vec![0.0; outputs]);
        let (g, mut dx) = (vec![1.0; outputs], vec![0.0; inputs]);
        let bytes = 4 * inputs * outputs;
        report(&format!("  {inputs} to {outputs}"), bytes, || {
            layer.forward(level, 1, &x, &mut y, Epilogue::default())
        });
        report(&format!("  {inputs} to {outputs}, gradient"), bytes, || {
            layer.input_gradient(level, 1, &g, &mut dx, Epilogue::default());
        });
    }
}
