//! Convolutions in both directions against naive loops, at every SIMD level, exactly.

mod random;

use ouzel_kernels::*;
use random::{Random, equal_bits, rounds, same_for_all_threads};

struct Case {
    shape: ConvolutionShape,
    batch: usize,
    input: [usize; 3],
    output: [usize; 3],
}

fn random_case(random: &mut Random, axes: usize) -> Case {
    let groups = random.choose(&[1, 1, 1, 2, 3, 5]);
    let most = if random.coin() { 5 } else { 45 };
    let mut shape =
        ConvolutionShape::new(groups * random.between(1, most), groups * random.between(1, most), [1; 3]);
    shape.groups = groups;
    let (mut input, mut output) = ([1; 3], [1; 3]);
    for axis in 3 - axes..3 {
        shape.kernel[axis] = random.choose(&[1, 1, 2, 3, 3, 5]);
        shape.stride[axis] = random.choose(&[1, 1, 2, 3]);
        shape.dilation[axis] = random.choose(&[1, 1, 2]);
        let reach = (shape.kernel[axis] - 1) * shape.dilation[axis] + 1;
        let (begin, end) = (random.between(0, reach), random.between(0, reach));
        shape.padding[axis] = begin;
        input[axis] = random.between(1, 11) + reach.saturating_sub(begin + end + 1);
        output[axis] = (input[axis] + begin + end - reach) / shape.stride[axis] + 1;
    }
    Case { shape, batch: random.between(1, 3), input, output }
}

/// Calls `each(batch, output position, output channel, input position, input channel, weight index)` for each product.
fn for_each_product(case: &Case, mut each: impl FnMut(usize, [usize; 3], usize, [usize; 3], usize, usize)) {
    let shape = &case.shape;
    let (inputs, outputs) = (shape.input_channels / shape.groups, shape.output_channels / shape.groups);
    let positions = |size: [usize; 3]| {
        (0..size[0]).flat_map(move |z| (0..size[1]).flat_map(move |y| (0..size[2]).map(move |x| [z, y, x])))
    };
    for batch in 0..case.batch {
        for at in positions(case.output) {
            for (index, tap) in positions(shape.kernel).enumerate() {
                let from = [0, 1, 2].map(|axis| {
                    (at[axis] * shape.stride[axis] + tap[axis] * shape.dilation[axis])
                        .wrapping_sub(shape.padding[axis])
                });
                if (0..3).any(|axis| from[axis] >= case.input[axis]) {
                    continue;
                }
                for output in 0..shape.output_channels {
                    for input in 0..inputs {
                        let weight = (output * inputs + input) * shape.taps_for_test() + index;
                        each(batch, at, output, from, output / outputs * inputs + input, weight);
                    }
                }
            }
        }
    }
}

trait Taps {
    fn taps_for_test(&self) -> usize;
}

impl Taps for ConvolutionShape {
    fn taps_for_test(&self) -> usize {
        self.kernel.iter().product()
    }
}

fn random_view(random: &mut Random, batch: usize, size: [usize; 3], channels: usize) -> View {
    let offset = random.choose(&[0, 0, 3, 16]);
    let after = random.choose(&[0, 0, 1, 7]);
    View::packed(batch, size, channels).within(offset + channels + after, offset)
}

/// The elements of a view, packed.
fn gather(data: &[f32], view: &View) -> Vec<f32> {
    (0..view.pixels())
        .flat_map(|pixel| &data[pixel * view.pixel_stride + view.channel_offset..][..view.channels])
        .copied()
        .collect()
}

fn bit(mask: &[u16], channels: usize, pixel: usize, channel: usize) -> bool {
    mask[pixel * mask_words(channels) + channel / 16] >> (channel % 16) & 1 == 1
}

fn finish_naively(
    value: f32,
    bias: Option<f32>,
    addend: Option<f32>,
    activation: Option<Activation>,
    gate: Option<(GateRule, bool, bool)>,
) -> (f32, f32) {
    let apply_gate = |value: f32, rule: GateRule, set: bool| match rule {
        GateRule::Gradient if set => value,
        GateRule::Guided if set && value > 0.0 => value,
        GateRule::Rectified if value > 0.0 => value,
        GateRule::Leaky(slope) => {
            if set {
                value
            } else {
                slope * value
            }
        }
        _ => 0.0,
    };
    let mut value = value + bias.unwrap_or(0.0);
    if let Some((rule, set, true)) = gate {
        value = apply_gate(value, rule, set);
    }
    value += addend.unwrap_or(0.0);
    let before = value;
    value = match activation {
        None => value,
        Some(Activation::Relu) => value.max(0.0),
        Some(Activation::Clip { low, high }) => value.max(low).min(high),
        Some(Activation::LeakyRelu(slope)) => {
            if value > 0.0 {
                value
            } else {
                value * slope
            }
        }
    };
    if let Some((rule, set, false)) = gate {
        value = apply_gate(value, rule, set);
    }
    (before, value)
}

/// Runs one convolution with a random epilogue at each level and compares it with `expected`, the bare sums, packed.
fn check(
    random: &mut Random,
    name: &str,
    convolution: &Convolution,
    from: (&[f32], &View),
    to: &View,
    expected: &[f32],
) {
    let before = random.integers(to.len());
    let bias = random.coin().then(|| random.integers(to.channels));
    let addend_view = random_view(random, to.batch, to.size, to.channels);
    let other = random.integers(addend_view.len());
    let addend = match random.between(0, 3) {
        0 => Some(Addend::Output),
        1 => Some(Addend::Tensor(&other, addend_view)),
        _ => None,
    };
    let activation = match random.between(0, 5) {
        0 => Some(Activation::Relu),
        1 => Some(Activation::Clip { low: -3.0, high: 5.0 }),
        2 => Some(Activation::LeakyRelu(0.25)),
        _ => None,
    };
    let words = to.pixels() * mask_words(to.channels);
    let mask: Vec<u16> = (0..words).map(|_| random.bits() as u16).collect();
    let rule =
        random.choose(&[GateRule::Gradient, GateRule::Guided, GateRule::Rectified, GateRule::Leaky(0.5)]);
    let gate = random.coin().then(|| Gate { rule, mask: &mask, before_addend: random.coin() });
    let record = random.coin().then(|| {
        random.choose(&[RecordRule::Positive, RecordRule::Between(-2.0, 6.0), RecordRule::Within(-2.0, 6.0)])
    });
    let packed_before = gather(&before, to);
    let packed_other = gather(&other, &addend_view);
    let finished: Vec<(f32, f32)> = (0..expected.len())
        .map(|index| {
            let (pixel, channel) = (index / to.channels, index % to.channels);
            let addend = match addend {
                None => None,
                Some(Addend::Output) => Some(packed_before[index]),
                Some(Addend::Tensor(..)) => Some(packed_other[index]),
            };
            let gate =
                gate.map(|gate| (gate.rule, bit(&mask, to.channels, pixel, channel), gate.before_addend));
            finish_naively(expected[index], bias.as_ref().map(|bias| bias[channel]), addend, activation, gate)
        })
        .collect();
    // A tail multiplies by a factor of the sample and channel, adds a tensor, selects, and hands on what it began with.
    use Instruction::{Binary as Two, Load, Select, Store};
    let program = Program::new(vec![
        Load { to: 0, operand: 0 },
        Load { to: 1, operand: 1 },
        Two { to: 2, function: Binary::Multiply, a: 0, b: 1 },
        Load { to: 1, operand: 2 },
        Two { to: 2, function: Binary::Add, a: 2, b: 1 },
        Load { to: 3, operand: 3 },
        Load { to: 1, operand: 4 },
        Select { to: 2, condition: 3, a: 2, b: 1 },
        Store { result: 0, from: 2 },
        Store { result: 1, from: 0 },
    ]);
    let factors = random.integers(to.batch * to.channels);
    let operands = [
        Operand::Before,
        Operand::PerSampleChannel(&factors),
        Operand::Full(&other, addend_view),
        Operand::Bits(&mask),
        Operand::Scalar(0.5),
    ];
    let with_tail = random.coin();
    for level in Level::available() {
        let mut recorded = vec![u16::MAX; words];
        let mut output = before.clone();
        let mut second = vec![f32::NAN; addend_view.len()];
        let tail = with_tail.then(|| Tail {
            program: &program,
            shape: *to,
            operands: &operands,
            second: Some((&mut second, addend_view)),
        });
        let epilogue = Epilogue {
            tail,
            bias: bias.as_deref(),
            addend,
            record: record.map(|rule| (&mut recorded[..], rule)),
            activation,
            gate,
        };
        convolution.run(level, from.0, from.1, &mut output, to, epilogue);
        let result = gather(&output, to);
        for (index, (pre, value)) in finished.iter().enumerate() {
            let (pixel, channel) = (index / to.channels, index % to.channels);
            let factor = factors[pixel / (to.pixels() / to.batch) * to.channels + channel];
            let expected = match with_tail {
                false => *value,
                true if bit(&mask, to.channels, pixel, channel) => value * factor + packed_other[index],
                true => 0.5,
            };
            assert_eq!(
                result[index],
                expected,
                "{name} at {}: pixel {pixel}, channel {channel}, tail {with_tail}",
                level.name()
            );
            if let Some(rule) = record {
                let set = match rule {
                    RecordRule::Positive => *pre > 0.0,
                    RecordRule::Between(low, high) => low < *pre && *pre < high,
                    RecordRule::Within(low, high) => low <= *pre && *pre <= high,
                };
                assert_eq!(
                    bit(&recorded, to.channels, pixel, channel),
                    set,
                    "{name} at {}: bit of pixel {pixel}, channel {channel}",
                    level.name()
                );
            }
        }
        if with_tail {
            let values: Vec<f32> = finished.iter().map(|(_, value)| *value).collect();
            assert_eq!(gather(&second, &addend_view), values, "{name} at {}: second result", level.name());
        }
        // Nothing outside of the view is touched.
        for (index, (value, before)) in output.iter().zip(&before).enumerate() {
            let channel = index % to.pixel_stride;
            if channel < to.channel_offset || channel >= to.channel_offset + to.channels {
                assert_eq!(value, before, "{name} at {} wrote outside of its view", level.name());
            }
        }
    }
}

fn check_case(random: &mut Random, case: &Case) {
    let shape = &case.shape;
    let name = format!("{shape:?} batch {} input {:?} output {:?}", case.batch, case.input, case.output);
    let weights =
        random.integers(shape.output_channels * shape.input_channels / shape.groups * shape.taps_for_test());
    let inner = random_view(random, case.batch, case.input, shape.input_channels);
    let outer = random_view(random, case.batch, case.output, shape.output_channels);
    let (x, g) = (random.integers(inner.len()), random.integers(outer.len()));
    let (packed_inner, packed_outer) = (
        View::packed(case.batch, case.input, shape.input_channels),
        View::packed(case.batch, case.output, shape.output_channels),
    );
    let (mut forward, mut gradient) = (vec![0.0f32; packed_outer.len()], vec![0.0f32; packed_inner.len()]);
    for_each_product(case, |batch, at, output, from, input, weight| {
        forward[packed_outer.index(batch, at, output)] +=
            x[inner.index(batch, from, input)] * weights[weight];
        gradient[packed_inner.index(batch, from, input)] +=
            g[outer.index(batch, at, output)] * weights[weight];
    });
    check(
        random,
        &format!("forward {name}"),
        &Convolution::forward(shape, &weights),
        (&x, &inner),
        &outer,
        &forward,
    );
    check(
        random,
        &format!("gradient {name}"),
        &Convolution::input_gradient(shape, &weights),
        (&g, &outer),
        &inner,
        &gradient,
    );

    // The transposed convolution has the attributes of the other side.
    let mut transposed = shape.clone();
    std::mem::swap(&mut transposed.input_channels, &mut transposed.output_channels);
    let there = Convolution::transposed(&transposed, &weights);
    check(random, &format!("transposed {name}"), &there, (&g, &outer), &inner, &gradient);
    let back = Convolution::transposed_input_gradient(&transposed, &weights);
    check(random, &format!("transposed gradient {name}"), &back, (&x, &inner), &outer, &forward);

    if shape.has_winograd() {
        // Small integers stay exact: the transformation of the weights divides by no more than 4.
        let there = Convolution::forward_by_winograd(shape, &weights);
        check(random, &format!("Winograd {name}"), &there, (&x, &inner), &outer, &forward);
        let back = Convolution::transposed_by_winograd(&transposed, &weights);
        check(random, &format!("transposed Winograd {name}"), &back, (&g, &outer), &inner, &gradient);
    }
}

#[test]
fn random_shapes_equal_naive_loops() {
    let mut random = Random(1);
    for round in 0..rounds(120) {
        let axes = [2, 2, 1, 3][round % 4];
        let case = random_case(&mut random, axes);
        check_case(&mut random, &case);
    }
}

/// Sums that are made in several passes, for several blocks of channels.
#[test]
fn long_sums_equal_naive_loops() {
    let mut random = Random(9);
    for _ in 0..rounds(20) {
        let kernel = random.choose(&[1, 3, 3, 5]);
        let taps = kernel * kernel;
        let groups = random.choose(&[1, 1, 2]);
        let (inputs, outputs) = (1050 / taps + random.between(0, 1300 / taps), random.between(1, 80));
        let mut shape = ConvolutionShape::new(groups * inputs, groups * outputs, [1, kernel, kernel]);
        shape.groups = groups;
        let (mut input, mut output) = ([1; 3], [1; 3]);
        for axis in 1..3 {
            shape.stride[axis] = random.choose(&[1, 1, 2]);
            shape.padding[axis] = random.between(0, kernel / 2);
            input[axis] = kernel + random.between(0, 3);
            output[axis] = (input[axis] + 2 * shape.padding[axis] - kernel) / shape.stride[axis] + 1;
        }
        let case = Case { shape, batch: random.between(1, 2), input, output };
        check_case(&mut random, &case);
    }
}

/// Enough channels and pixels for a matrix unit, or a large kernel and few channels on one side.
#[test]
fn large_products_equal_naive_loops() {
    let mut random = Random(10);
    for round in 0..rounds(48) {
        let is_large = round % 4 != 0;
        let kernel = if is_large { random.choose(&[1, 1, 3]) } else { random.choose(&[5, 7]) };
        let groups = if is_large { random.choose(&[1, 1, 2]) } else { 1 };
        // Mostly as many as fill steps and blocks of 32.
        let channels = |random: &mut Random| match random.between(0, 3) {
            0 => random.between(16, 95),
            _ => random.choose(&[32, 64]) - random.choose(&[0, 0, 1, 3]),
        };
        let inputs = if is_large { channels(&mut random) } else { random.choose(&[3, 4, 6, 10]) };
        let outputs = channels(&mut random);
        let mut shape = ConvolutionShape::new(groups * inputs, groups * outputs, [1, kernel, kernel]);
        shape.groups = groups;
        let (mut input, mut output) = ([1; 3], [1; 3]);
        if random.choose(&[false, false, true]) {
            (shape.kernel[0], shape.padding[0], input[0], output[0]) = (2, 1, 3, 4);
        }
        for axis in 1..3 {
            shape.stride[axis] = random.choose(&[1, 1, 2, 3]);
            shape.dilation[axis] = if kernel == 3 { random.choose(&[1, 1, 2]) } else { 1 };
            let reach = (kernel - 1) * shape.dilation[axis];
            shape.padding[axis] = random.between(0, reach / 2);
            output[axis] = match (is_large, axis) {
                (true, _) => random.between(10, 19),
                // Long lines, of which those of the gradient's few outputs are made by themselves.
                (false, 1) => random.between(3, 6),
                (false, _) => random.between(40, 60),
            };
            input[axis] = (output[axis] - 1) * shape.stride[axis] + reach + 1 - 2 * shape.padding[axis];
        }
        let case = Case { shape, batch: random.between(1, 2), input, output };
        check_case(&mut random, &case);
    }
}

/// A product with 1 has all bits of the other factor, whatever the level does with factors; sums are as exact as those of a chain of
/// multiply-adds.
#[test]
fn large_products_are_exact() {
    let mut random = Random(11);
    let (inputs, outputs, pixels) = (320, 64, 144);
    let (from, to) = (View::packed(1, [1, 12, 12], inputs), View::packed(1, [1, 12, 12], outputs));
    let shape = ConvolutionShape::new(inputs, outputs, [1; 3]);
    let run = |level: Level, x: &[f32], weights: &[f32]| {
        let mut y = vec![f32::NAN; to.len()];
        Convolution::forward(&shape, weights).run(level, x, &from, &mut y, &to, Epilogue::default());
        y
    };
    let numbers = |random: &mut Random, count: usize| -> Vec<f32> {
        (random.floats(count).into_iter())
            .map(|x| x * f32::powi(2.0, random.between(0, 60) as i32 - 30))
            .collect()
    };
    let (x, weights) = (numbers(&mut random, from.len()), numbers(&mut random, inputs * outputs));
    let picks: Vec<f32> = (0..outputs * inputs).map(|n| f32::from(n / inputs * 5 == n % inputs)).collect();
    let units: Vec<f32> = (0..pixels * inputs).map(|n| f32::from(n / inputs * 2 == n % inputs)).collect();
    let (even_x, even_weights) = (random.floats(from.len()), random.floats(inputs * outputs));
    for level in Level::available() {
        for (n, y) in run(level, &x, &picks).iter().enumerate() {
            let expected = x[n / outputs * inputs + n % outputs * 5];
            assert_eq!(*y, expected, "a row times 1 at {}", level.name());
        }
        for (n, y) in run(level, &units, &weights).iter().enumerate() {
            assert_eq!(
                *y,
                weights[n % outputs * inputs + n / outputs * 2],
                "1 times a weight at {}",
                level.name()
            );
        }
        let (mut error, mut size) = (0.0, 0.0);
        for (n, y) in run(level, &even_x, &even_weights).iter().enumerate() {
            let row = &even_x[n / outputs * inputs..][..inputs];
            let terms = row.iter().zip(&even_weights[n % outputs * inputs..]);
            let sum: f64 = terms.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            error += (f64::from(*y) - sum).powi(2);
            size += sum.powi(2);
        }
        let error = (error / size).sqrt();
        assert!(error < 5e-7, "an error of {error:e} at {}", level.name());
    }
}

/// What is not finite, or nearly so, stays what it is in ordinary arithmetic.
#[test]
fn large_products_of_what_is_not_finite() {
    let mut random = Random(12);
    let channels = 64;
    let view = View::packed(1, [1, 12, 12], channels);
    let shape = ConvolutionShape::new(channels, channels, [1; 3]);
    let mut x = random.floats(view.len());
    for (pixel, value) in
        [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, -f32::MAX].into_iter().enumerate()
    {
        x[(7 * pixel + 3) * channels + 2 * pixel] = value;
    }
    let mut weights = random.floats(channels * channels);
    weights.iter_mut().for_each(|weight| *weight = 0.25 + 0.5 * weight.abs());
    for special in [None, Some(f32::INFINITY), Some(f32::NAN)] {
        let mut weights = weights.clone();
        if let Some(special) = special {
            weights[5 * channels + 9] = special;
        }
        let convolution = Convolution::forward(&shape, &weights);
        let run = |level: Level| {
            let mut y = vec![0.0; view.len()];
            convolution.run(level, &x, &view, &mut y, &view, Epilogue::default());
            y
        };
        let expected = run(Level::portable());
        let large = expected.iter().filter(|y| y.is_finite() && y.abs() > 1e37).count();
        assert_eq!(
            large,
            2 * (channels - usize::from(special.is_some())),
            "of numbers that are nearly infinite"
        );
        for level in Level::available() {
            for (n, (y, expected)) in run(level).iter().zip(&expected).enumerate() {
                let is_same = match expected.is_finite() {
                    true => (y - expected).abs() <= expected.abs() * 1e-2,
                    false => y == expected || y.is_nan() && expected.is_nan(),
                };
                assert!(is_same, "{y} instead of {expected} at {n} with {}", level.name());
            }
        }
    }
}

#[test]
fn winograd_equals_naive_loops() {
    let mut random = Random(7);
    for _ in 0..rounds(60) {
        let most = if random.coin() { 5 } else { 70 };
        let (inputs, outputs) = (random.between(1, most), random.between(1, most));
        let mut shape = ConvolutionShape::new(inputs, outputs, [1, 3, 3]);
        let (mut input, mut output) = ([random.between(1, 2); 3], [1; 3]);
        output[0] = input[0];
        for axis in 1..3 {
            let (begin, end) = (random.between(0, 2), random.between(0, 2));
            shape.padding[axis] = begin;
            input[axis] = random.between(1, 25) + 3usize.saturating_sub(begin + end + 1);
            output[axis] = input[axis] + begin + end - 2;
        }
        let case = Case { shape, batch: random.between(1, 3), input, output };
        assert!(case.shape.has_winograd());
        check_case(&mut random, &case);
    }
}

#[test]
fn random_depthwise_shapes_equal_naive_loops() {
    let mut random = Random(5);
    for round in 0..rounds(120) {
        let mut case = random_case(&mut random, [2, 2, 1, 3][round % 4]);
        let channels = random.between(2, 50);
        case.shape.groups = channels;
        case.shape.input_channels = channels;
        case.shape.output_channels = channels;
        check_case(&mut random, &case);
    }
}

#[test]
fn very_few_outputs_equal_naive_loops() {
    let mut random = Random(6);
    for round in 0..rounds(60) {
        let mut case = random_case(&mut random, [2, 2, 1, 3][round % 4]);
        case.shape.groups = 1;
        case.shape.input_channels = random.between(15, 50);
        case.shape.output_channels = random.between(1, 5);
        if random.coin() {
            std::mem::swap(&mut case.shape.input_channels, &mut case.shape.output_channels);
        }
        check_case(&mut random, &case);
    }
}

#[test]
fn padded_input_with_more_channels_than_a_row_of_zeros() {
    let mut random = Random(2);
    let shape = ConvolutionShape { padding: [0, 0, 1], ..ConvolutionShape::new(5000, 3, [1, 1, 3]) };
    check_case(&mut random, &Case { shape, batch: 1, input: [1, 1, 3], output: [1, 1, 3] });
}

#[test]
fn results_do_not_depend_on_threads_or_batch() {
    let mut random = Random(3);
    for (channels, outputs, groups, size, stride, kernel, padding) in [
        (40, 72, 1, 13, 1, 3, 1),
        (3, 72, 1, 30, 2, 7, 3),
        (3, 64, 1, 30, 2, 7, 3),
        (64, 72, 1, 7, 1, 1, 0),
        (56, 56, 56, 14, 2, 3, 1),
        (72, 64, 1, 14, 1, 1, 0),
        (64, 128, 2, 25, 2, 3, 1),
    ] {
        let mut shape = ConvolutionShape::new(channels, outputs, [1, kernel, kernel]);
        shape.groups = groups;
        shape.stride = [1, stride, stride];
        shape.padding = [0, padding, padding];
        let out = (size + 2 * padding - kernel) / stride + 1;
        let weights = random.floats(outputs * channels / groups * kernel * kernel);
        let x = random.floats(3 * size * size * channels);
        let g = random.floats(3 * out * out * outputs);
        let inner = View::packed(3, [1, size, size], channels);
        let outer = View::packed(3, [1, out, out], outputs);
        let mut runs = vec![
            (Convolution::forward(&shape, &weights), &x, inner, outer),
            (Convolution::input_gradient(&shape, &weights), &g, outer, inner),
        ];
        if shape.has_winograd() {
            let mut transposed = shape.clone();
            std::mem::swap(&mut transposed.input_channels, &mut transposed.output_channels);
            runs.push((Convolution::forward_by_winograd(&shape, &weights), &x, inner, outer));
            runs.push((Convolution::transposed_by_winograd(&transposed, &weights), &g, outer, inner));
        }
        for level in Level::available() {
            for &(ref convolution, data, from, to) in &runs {
                let run = |data: &[f32], batch: usize| {
                    let (from, to) = (View { batch, ..from }, View { batch, ..to });
                    let mut output = vec![f32::NAN; to.len()];
                    convolution.run(level, data, &from, &mut output, &to, Epilogue::default());
                    output
                };
                let whole = same_for_all_threads(|| run(data, 3));
                let parts: Vec<f32> = data.chunks(data.len() / 3).flat_map(|sample| run(sample, 1)).collect();
                assert!(equal_bits(&whole, &parts), "batch changes bits at {}", level.name());
            }
        }
    }
}

#[test]
fn equal_patches_give_equal_bits() {
    // Winograd's tiles hold four positions each, which round alike only where the whole neighbourhood is even.
    let mut random = Random(4);
    for (inputs, outputs) in [(19, 33), (32, 64)] {
        let shape =
            ConvolutionShape { padding: [0, 1, 1], ..ConvolutionShape::new(inputs, outputs, [1, 3, 3]) };
        let weights = random.floats(inputs * outputs * 9);
        let pixel = random.floats(inputs);
        let view = View::packed(1, [1, 17, 23], inputs);
        let x: Vec<f32> = pixel.iter().copied().cycle().take(view.len()).collect();
        let to = View::packed(1, [1, 17, 23], outputs);
        for convolution in
            [Convolution::forward(&shape, &weights), Convolution::forward_by_winograd(&shape, &weights)]
        {
            for level in Level::available() {
                let mut y = vec![0.0; to.len()];
                convolution.run(level, &x, &view, &mut y, &to, Epilogue::default());
                let of = |row: usize, column: usize| &y[to.index(0, [0, row, column], 0)..][..outputs];
                for row in 1..16 {
                    for column in 1..22 {
                        assert!(equal_bits(of(1, 1), of(row, column)), "{row} {column} at {}", level.name());
                    }
                }
            }
        }
    }
}

#[test]
fn gates_select_and_never_multiply() {
    let shape = ConvolutionShape::new(1, 1, [1, 1, 1]);
    let convolution = Convolution::forward(&shape, &[1.0]);
    let view = View::packed(1, [1, 1, 4], 1);
    let mask = [0, 1, 0, 1];
    for level in Level::available() {
        let mut output = [7.0; 4];
        let gate = Some(Gate { rule: GateRule::Gradient, mask: &mask, before_addend: false });
        let input = [f32::INFINITY, 2.0, f32::NAN, -3.0];
        convolution.run(level, &input, &view, &mut output, &view, Epilogue { gate, ..Epilogue::default() });
        assert_eq!(output, [0.0, 2.0, 0.0, -3.0]);
    }
}

#[test]
#[should_panic(expected = "needs 12 elements")]
fn short_slices_panic() {
    let convolution = Convolution::forward(&ConvolutionShape::new(3, 3, [1; 3]), &[0.0; 9]);
    let view = View::packed(1, [1, 2, 2], 3);
    convolution.run(Level::portable(), &[0.0; 11], &view, &mut [0.0; 12], &view, Epilogue::default());
}
