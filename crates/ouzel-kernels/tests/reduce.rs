//! Reductions, softmax and matrices along an axis against naive loops.

mod random;

use ouzel_kernels::*;
use random::{Random, equal_bits, rounds, same_for_all_threads};

fn element(data: &[f32], view: &View, pixel: usize, channel: usize) -> f32 {
    data[pixel * view.pixel_stride + view.channel_offset + channel]
}

#[test]
fn reductions_equal_naive_loops() {
    let mut random = Random(1);
    for _ in 0..rounds(60) {
        let channels = random.choose(&[1, 3, 16, 17, 64, 100, 257]);
        let size = [1, random.between(1, 20), random.between(1, 20)];
        let view = View::packed(random.between(1, 3), size, channels).within(channels + 4, 2);
        let x = random.integers(view.len());
        let pixels = view.pixels() / view.batch;
        for level in Level::available() {
            for reduction in [Reduction::Sum, Reduction::Mean, Reduction::Maximum, Reduction::Minimum] {
                let reduce = |values: Vec<f32>| {
                    let count = values.len() as f32;
                    match reduction {
                        Reduction::Sum => values.iter().sum::<f32>(),
                        Reduction::Mean => values.iter().sum::<f32>() / count,
                        Reduction::Maximum => values.into_iter().fold(f32::NEG_INFINITY, f32::max),
                        Reduction::Minimum => values.into_iter().fold(f32::INFINITY, f32::min),
                    }
                };
                let mut by_pixel = vec![0.0; view.pixels()];
                reduce_channels(level, reduction, &x, &view, &mut by_pixel);
                for (pixel, value) in by_pixel.iter().enumerate() {
                    assert_eq!(*value, reduce((0..channels).map(|c| element(&x, &view, pixel, c)).collect()));
                }
                let mut by_channel = vec![0.0; view.batch * channels];
                reduce_pixels(level, reduction, &x, &view, &mut by_channel);
                for (index, value) in by_channel.iter().enumerate() {
                    let (batch, channel) = (index / channels, index % channels);
                    let values =
                        (0..pixels).map(|p| element(&x, &view, batch * pixels + p, channel)).collect();
                    assert_eq!(*value, reduce(values));
                }
            }
        }
    }
}

#[test]
fn softmax_and_its_gradient() {
    let mut random = Random(2);
    for channels in [1, 2, 7, 16, 100, 1000] {
        let view = View::packed(1, [1, 1, 5], channels);
        let x: Vec<f32> = random.floats(view.len()).iter().map(|x| x * 20.0).collect();
        let g = random.floats(view.len());
        for level in Level::available() {
            let (mut y, mut logs) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            softmax(level, SoftmaxKind::Probability, &x, &view, &mut y, &view);
            softmax(level, SoftmaxKind::Logarithm, &x, &view, &mut logs, &view);
            let (mut dy, mut dlogs) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            softmax_gradient(level, SoftmaxKind::Probability, (&y, &view), (&g, &view), &mut dy, &view);
            softmax_gradient(level, SoftmaxKind::Logarithm, (&logs, &view), (&g, &view), &mut dlogs, &view);
            for row in 0..5 {
                let range = row * channels..(row + 1) * channels;
                let exps: Vec<f64> = x[range.clone()].iter().map(|x| f64::from(*x).exp()).collect();
                let sum: f64 = exps.iter().sum();
                let g: Vec<f64> = g[range.clone()].iter().map(|g| f64::from(*g)).collect();
                let dot: f64 = exps.iter().zip(&g).map(|(e, g)| e / sum * g).sum();
                let total: f64 = g.iter().sum();
                for (index, n) in range.enumerate() {
                    let p = exps[index] / sum;
                    let close = |value: f32, expected: f64, scale: f64| {
                        let error = (f64::from(value) - expected).abs();
                        assert!(
                            error <= 6e-6 * scale.max(1e-30),
                            "{value} for {expected} at {}",
                            level.name()
                        );
                    };
                    close(y[n], p, p + 1e-20);
                    close(logs[n], p.ln(), p.ln().abs() + 4.0);
                    close(dy[n], p * (g[index] - dot), 4.0 * p + 1e-20);
                    close(dlogs[n], g[index] - p * total, 1.0 + p * total.abs() + p * channels as f64);
                }
            }
        }
    }
}

#[test]
fn matrices_along_an_axis_equal_naive_loops() {
    let mut random = Random(3);
    for _ in 0..rounds(60) {
        let (outer, inner) = (random.between(1, 4), random.choose(&[1, 3, 64, 100, 1000]));
        let (columns, count) = (random.between(1, 9), random.between(0, 9));
        let rows: Vec<Vec<(usize, f32)>> = (0..count)
            .map(|_| {
                (0..random.between(0, 4))
                    .map(|_| (random.between(0, columns - 1), random.integers(1)[0]))
                    .collect()
            })
            .collect();
        let matrix = AxisMatrix::new(columns, &rows);
        let x = random.integers(outer * columns * inner);
        let g = random.integers(outer * count * inner);
        let (mut y, mut dx) = (vec![0.0; g.len()], vec![0.0; x.len()]);
        for o in 0..outer {
            for (row, entries) in rows.iter().enumerate() {
                for (column, weight) in entries {
                    for i in 0..inner {
                        y[(o * count + row) * inner + i] += weight * x[(o * columns + column) * inner + i];
                        dx[(o * columns + column) * inner + i] += weight * g[(o * count + row) * inner + i];
                    }
                }
            }
        }
        for level in Level::available() {
            let mut result = vec![f32::NAN; y.len()];
            matrix.apply(level, outer, inner, &x, &mut result, false);
            assert_eq!(result, y);
            let mut result = dx.clone();
            matrix.transposed().apply(level, outer, inner, &g, &mut result, true);
            assert!(result.iter().zip(&dx).all(|(result, dx)| *result == 2.0 * dx));
        }
    }
}

#[test]
fn results_do_not_depend_on_threads_or_batch() {
    let mut random = Random(4);
    let view = View::packed(3, [1, 50, 60], 130);
    let x = random.floats(view.len());
    for level in Level::available() {
        let run = |x: &[f32], batch: usize| {
            let view = View { batch, ..view };
            let mut results = [vec![0.0; view.pixels()], vec![0.0; batch * 130], vec![0.0; view.len()]];
            let [a, b, c] = &mut results;
            reduce_channels(level, Reduction::Sum, x, &view, a);
            reduce_pixels(level, Reduction::Mean, x, &view, b);
            softmax(level, SoftmaxKind::Probability, x, &view, c, &view);
            results
        };
        same_for_all_threads(|| run(&x, 3).concat());
        let rows: Vec<Vec<(usize, f32)>> = (0..40).map(|row| vec![(row, 0.3), (row + 1, 0.7)]).collect();
        let matrix = AxisMatrix::new(50, &rows);
        same_for_all_threads(|| {
            let mut output = vec![0.0; 3 * 40 * 60 * 130];
            matrix.apply(level, 3, 60 * 130, &x, &mut output, false);
            output
        });
        let whole = run(&x, 3);
        let parts: Vec<_> = x.chunks(x.len() / 3).map(|x| run(x, 1)).collect();
        for index in 0..3 {
            let joined: Vec<f32> = parts.iter().flat_map(|part| part[index].clone()).collect();
            assert!(equal_bits(&whole[index], &joined));
        }
    }
}
