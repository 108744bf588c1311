//! Poolings and their gradients against naive loops, at every SIMD level, exactly.

mod random;

use ouzel_kernels::*;
use random::{Random, equal_bits, rounds, same_for_all_threads};

struct Case {
    window: Window,
    batch: usize,
    channels: usize,
    input: [usize; 3],
    output: [usize; 3],
}

fn random_case(random: &mut Random, axes: usize) -> Case {
    let mut window = Window::new([1; 3]);
    let (mut input, mut output) = ([1; 3], [1; 3]);
    for axis in 3 - axes..3 {
        window.kernel[axis] = random.between(1, 4);
        window.stride[axis] = random.between(1, 3);
        window.dilation[axis] = random.choose(&[1, 1, 2]);
        let reach = (window.kernel[axis] - 1) * window.dilation[axis] + 1;
        window.padding[axis] = random.between(0, reach / 2);
        window.padding_end[axis] = random.between(0, reach / 2);
        input[axis] = random.between(1, 9) + reach;
        let moves = input[axis] + window.padding[axis] + window.padding_end[axis] - reach;
        // Both floor and ceiling.
        output[axis] =
            if random.coin() { moves / window.stride[axis] } else { moves.div_ceil(window.stride[axis]) } + 1;
        if (output[axis] - 1) * window.stride[axis] >= input[axis] + window.padding[axis] {
            output[axis] -= 1;
        }
    }
    Case {
        window,
        batch: random.between(1, 2),
        channels: random.choose(&[1, 3, 16, 37, 64, 130]),
        input,
        output,
    }
}

/// The window's elements at an output position: (index in the window, input position or nothing if in the padding).
fn elements(case: &Case, at: [usize; 3]) -> Vec<(usize, Option<[usize; 3]>)> {
    let Window { kernel, stride, dilation, padding, padding_end } = &case.window;
    let mut found = Vec::new();
    for index in 0..kernel.iter().product() {
        let tap = [index / kernel[2] / kernel[1], index / kernel[2] % kernel[1], index % kernel[2]];
        let place = [0, 1, 2].map(|axis| at[axis] * stride[axis] + tap[axis] * dilation[axis]);
        if (0..3).any(|axis| place[axis] >= case.input[axis] + padding[axis] + padding_end[axis]) {
            continue;
        }
        let from = [0, 1, 2].map(|axis| place[axis].wrapping_sub(padding[axis]));
        found.push((index, (0..3).all(|axis| from[axis] < case.input[axis]).then_some(from)));
    }
    found
}

fn positions(size: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    (0..size[0]).flat_map(move |z| (0..size[1]).flat_map(move |y| (0..size[2]).map(move |x| [z, y, x])))
}

#[test]
fn random_windows_equal_naive_loops() {
    let mut random = Random(1);
    for round in 0..rounds(100) {
        let case = random_case(&mut random, [2, 2, 1, 3][round % 4]);
        let Case { window, batch, channels, input, output } = &case;
        let offset = random.choose(&[0, 5]);
        let inner = View::packed(*batch, *input, *channels).within(channels + offset, offset);
        let outer = View::packed(*batch, *output, *channels).within(channels + 2, 1);
        let packed = View::packed(*batch, *output, *channels);
        // Multiples of 3600 can be divided by all counts without rounding; few different values, so that there are ties.
        let x = random.integers(inner.len()).iter().map(|x| x * 3600.0).collect::<Vec<_>>();
        let g = random.integers(outer.len()).iter().map(|g| g * 3600.0).collect::<Vec<_>>();
        let mut maxima = vec![f32::NAN; outer.len()];
        let mut places = vec![0; packed.len()];
        let mut max_gradient = vec![0.0; inner.len()];
        let mut averages = [vec![0.0; outer.len()], vec![0.0; outer.len()]];
        let mut average_gradients = [vec![0.0; inner.len()], vec![0.0; inner.len()]];
        for sample in 0..*batch {
            for at in positions(*output) {
                let elements = elements(&case, at);
                for channel in 0..*channels {
                    let to = outer.index(sample, at, channel);
                    let mut best = (f32::NEG_INFINITY, NO_POSITION, None);
                    for (index, from) in &elements {
                        let Some(from) = from else { continue };
                        let from = inner.index(sample, *from, channel);
                        if x[from] > best.0 {
                            best = (x[from], *index as u16, Some(from));
                        }
                    }
                    maxima[to] = best.0;
                    places[packed.index(sample, at, channel)] = best.1;
                    if let Some(from) = best.2 {
                        max_gradient[from] += g[to];
                    }
                    let inside: Vec<usize> = elements
                        .iter()
                        .filter_map(|(_, from)| from.map(|from| inner.index(sample, from, channel)))
                        .collect();
                    for (mode, count) in [inside.len(), elements.len()].into_iter().enumerate() {
                        let count = count.max(1) as f32;
                        averages[mode][to] = inside.iter().map(|from| x[*from]).sum::<f32>() / count;
                        for from in &inside {
                            average_gradients[mode][*from] += g[to] / count;
                        }
                    }
                }
            }
        }
        let compare = |name: &str, level: Level, view: &View, result: &[f32], expected: &[f32]| {
            for pixel in 0..view.pixels() {
                let range = pixel * view.pixel_stride + view.channel_offset..;
                let (result, expected) = (&result[range.clone()][..*channels], &expected[range][..*channels]);
                for (result, expected) in result.iter().zip(expected) {
                    let same =
                        result == expected || (result - expected).abs() <= expected.abs() * 1e-6 + 1e-3;
                    assert!(same, "{name} of {window:?} at {}: {result} for {expected}", level.name());
                }
            }
        };
        for level in Level::available() {
            let none = Epilogue::default;
            let mut result = vec![0.0; outer.len()];
            let mut found = vec![0; packed.len()];
            max_pool(level, window, &x, &inner, &mut result, &outer, Some(&mut found), none());
            compare("maximum", level, &outer, &result, &maxima);
            assert_eq!(found, places);
            let mut result = vec![0.0; inner.len()];
            max_pool_gradient(level, window, &g, &outer, &places, &mut result, &inner, none());
            compare("gradient of maximum", level, &inner, &result, &max_gradient);
            for (mode, count) in [AverageCount::Inside, AverageCount::WithPadding].into_iter().enumerate() {
                let mut result = vec![0.0; outer.len()];
                average_pool(level, window, count, &x, &inner, &mut result, &outer, none());
                compare("average", level, &outer, &result, &averages[mode]);
                let mut result = vec![0.0; inner.len()];
                average_pool_gradient(level, window, count, &g, &outer, &mut result, &inner, none());
                compare("gradient of average", level, &inner, &result, &average_gradients[mode]);
            }
        }
    }
}

#[test]
fn not_a_number_is_the_maximum() {
    let (from, to) = (View::packed(1, [1, 1, 3], 1), View::packed(1, [1, 1, 1], 1));
    for level in Level::available() {
        let (mut output, mut positions) = ([0.0], [0]);
        let input = [1.0, f32::NAN, 5.0];
        let window = Window::new([1, 1, 3]);
        max_pool(level, &window, &input, &from, &mut output, &to, Some(&mut positions), Epilogue::default());
        assert!(output[0].is_nan() && positions[0] == 1);
    }
}

#[test]
fn minus_infinity_has_a_position() {
    let (from, to) = (View::packed(1, [1, 1, 2], 1), View::packed(1, [1, 1, 1], 1));
    let (mut output, mut positions) = ([0.0], [9]);
    let input = [f32::NEG_INFINITY; 2];
    let window = Window::new([1, 1, 2]);
    max_pool(
        Level::portable(),
        &window,
        &input,
        &from,
        &mut output,
        &to,
        Some(&mut positions),
        Epilogue::default(),
    );
    assert_eq!((output, positions), ([f32::NEG_INFINITY], [0]));
}

#[test]
fn results_do_not_depend_on_threads_or_batch() {
    let mut random = Random(2);
    for (window, size, out, channels) in [
        (Window { stride: [1, 2, 2], padding: [0, 1, 1], ..Window::new([1, 3, 3]) }, 57, 29, 70),
        (Window::new([1, 9, 9]), 9, 1, 700),
    ] {
        let (inner, outer) =
            (View::packed(2, [1, size, size], channels), View::packed(2, [1, out, out], channels));
        let (x, g) = (random.floats(inner.len()), random.floats(outer.len()));
        for level in Level::available() {
            let run = |x: &[f32], g: &[f32], batch: usize| {
                let (inner, outer) = (View { batch, ..inner }, View { batch, ..outer });
                let mut positions = vec![0; outer.len()];
                let mut results = [
                    vec![0.0; outer.len()],
                    vec![0.0; inner.len()],
                    vec![0.0; outer.len()],
                    vec![0.0; inner.len()],
                ];
                let [a, b, c, d] = &mut results;
                max_pool(level, &window, x, &inner, a, &outer, Some(&mut positions), Epilogue::default());
                max_pool_gradient(level, &window, g, &outer, &positions, b, &inner, Epilogue::default());
                average_pool(level, &window, AverageCount::Inside, x, &inner, c, &outer, Epilogue::default());
                average_pool_gradient(
                    level,
                    &window,
                    AverageCount::Inside,
                    g,
                    &outer,
                    d,
                    &inner,
                    Epilogue::default(),
                );
                results
            };
            same_for_all_threads(|| run(&x, &g, 2).concat());
            let whole = run(&x, &g, 2);
            let (first, second) = (
                run(&x[..inner.len() / 2], &g[..outer.len() / 2], 1),
                run(&x[inner.len() / 2..], &g[outer.len() / 2..], 1),
            );
            for index in 0..4 {
                assert!(equal_bits(&whole[index], &[&first[index][..], &second[index][..]].concat()));
            }
        }
    }
}
