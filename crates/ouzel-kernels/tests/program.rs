//! Elementwise programs against the same instructions carried out one element at a time.

mod random;

use ouzel_kernels::*;
use random::{Random, equal_bits, rounds, same_for_all_threads};

#[test]
fn programs_equal_naive_loops() {
    let mut random = Random(1);
    for round in 0..rounds(60) {
        let channels = random.choose(&[1, 3, 16, 17, 100, 256, 300, 1000]);
        let size = [1, random.between(1, 9), random.between(1, 20)];
        let batch = random.between(1, 3);
        let shape = View::packed(batch, size, channels);
        let offset = if round % 2 == 0 { 0 } else { 5 };
        let strided = shape.within(channels + 2 * offset, offset);
        let pixels = shape.pixels();
        let full = random.floats(strided.len());
        let (per_channel, per_sample) = (random.floats(channels), random.floats(batch * channels));
        let per_pixel = random.floats(pixels);
        let words = pixels * mask_words(channels);
        let mask: Vec<u16> = (0..words).map(|_| random.bits() as u16).collect();
        let before = random.floats(strided.len());
        // ((x · channel + sample · pixel) max 0.25) where the bit is set, else what was there; and whether x > scalar.
        use Instruction::*;
        let program = Program::new(vec![
            Load { to: 0, operand: 0 },
            Load { to: 1, operand: 1 },
            Binary { to: 1, function: ouzel_kernels::Binary::Multiply, a: 0, b: 1 },
            Load { to: 2, operand: 2 },
            Load { to: 3, operand: 3 },
            Binary { to: 2, function: ouzel_kernels::Binary::Multiply, a: 2, b: 3 },
            Binary { to: 1, function: ouzel_kernels::Binary::Add, a: 1, b: 2 },
            Constant { to: 2, value: 0.25 },
            Binary { to: 1, function: ouzel_kernels::Binary::Maximum, a: 1, b: 2 },
            Load { to: 2, operand: 4 },
            LoadResult { to: 3, result: 0 },
            Select { to: 1, condition: 2, a: 1, b: 3 },
            Store { result: 0, from: 1 },
            Load { to: 4, operand: 5 },
            Binary { to: 4, function: ouzel_kernels::Binary::Greater, a: 0, b: 4 },
            Store { result: 1, from: 4 },
        ]);
        for level in Level::available() {
            let mut output = before.clone();
            let mut bits = vec![u16::MAX; words];
            program.run(
                level,
                &shape,
                &[
                    Operand::Full(&full, strided),
                    Operand::PerChannel(&per_channel),
                    Operand::PerSampleChannel(&per_sample),
                    Operand::PerPixel(&per_pixel),
                    Operand::Bits(&mask),
                    Operand::Scalar(0.1),
                ],
                &mut [Target::Full(&mut output, strided), Target::Bits(&mut bits)],
            );
            let bit = |mask: &[u16], pixel: usize, channel: usize| {
                mask[pixel * mask_words(channels) + channel / 16] >> (channel % 16) & 1 == 1
            };
            let mut expected = before.clone();
            for (pixel, per_pixel) in per_pixel.iter().enumerate() {
                let sample = pixel / (pixels / batch);
                for channel in 0..channels {
                    let index = pixel * strided.pixel_stride + offset + channel;
                    let x = full[index];
                    let sum = x * per_channel[channel] + per_sample[sample * channels + channel] * per_pixel;
                    if bit(&mask, pixel, channel) {
                        expected[index] = sum.max(0.25);
                    }
                    assert_eq!(bit(&bits, pixel, channel), x > 0.1);
                }
            }
            assert_eq!(output, expected, "{shape:?} at {}", level.name());
        }
    }
}

/// What an instruction list does to one element: `operands` are its numbers there, `results` what is there before and after.
fn interpret(instructions: &[Instruction], operands: &[f32], results: &mut [f32]) {
    let mut registers = [0f32; MOST_REGISTERS];
    for instruction in instructions {
        let register = |register: Register| registers[usize::from(register)];
        let (to, value) = match *instruction {
            Instruction::Load { to, operand } => (to, operands[operand]),
            Instruction::LoadResult { to, result } => (to, results[result]),
            Instruction::Constant { to, value } => (to, value),
            Instruction::Unary { to, function: Unary::Absolute, a } => (to, register(a).abs()),
            Instruction::Unary { to, a, .. } => (to, -register(a)),
            Instruction::Binary { to, function: Binary::Add, a, b } => (to, register(a) + register(b)),
            Instruction::Binary { to, function: Binary::Multiply, a, b } => (to, register(a) * register(b)),
            Instruction::Binary { to, a, b, .. } => (to, register(a) - register(b)),
            Instruction::Select { to, condition, a, b } => {
                (to, if register(condition) != 0.0 { register(a) } else { register(b) })
            }
            Instruction::Store { result, from } => {
                results[result] = register(from);
                continue;
            }
            _ => unreachable!("no other instruction is made"),
        };
        registers[usize::from(to)] = value;
    }
}

#[test]
fn random_programs_do_what_their_instructions_say() {
    let mut random = Random(9);
    for _ in 0..rounds(400) {
        let channels = random.choose(&[1, 3, 16, 32, 48, 64, 96, 512, 544, 1040]);
        let shape =
            View::packed(random.between(1, 2), [1, random.between(1, 4), random.between(1, 9)], channels);
        let (batch, pixels) = (shape.batch, shape.pixels());
        let views: Vec<View> = (0..4)
            .map(|_| match random.between(0, 2) {
                0 => shape.within(channels + 7, 3),
                _ => shape,
            })
            .collect();
        let full: Vec<Vec<f32>> = views.iter().map(|view| random.floats(view.len())).collect();
        let (per_channel, per_sample) = (random.floats(channels), random.floats(batch * channels));
        let per_pixel = random.floats(pixels);
        let operands = [
            Operand::Full(&full[0], views[0]),
            Operand::Full(&full[1], views[1]),
            Operand::PerChannel(&per_channel),
            Operand::PerSampleChannel(&per_sample),
            Operand::PerPixel(&per_pixel),
            Operand::Scalar(0.0),
        ];
        // Some registers are set first; then anything may follow.
        let mut instructions: Vec<Instruction> = (0..4)
            .map(|to| match random.between(0, 3) {
                0 => Instruction::LoadResult { to, result: random.between(0, 1) },
                _ => Instruction::Load { to, operand: random.between(0, operands.len() - 1) },
            })
            .collect();
        let length = random.between(1, 8);
        for _ in 0..length {
            let [to, a, b, condition] = [(); 4].map(|()| random.between(0, 3) as Register);
            instructions.push(match random.between(0, 9) {
                0 => Instruction::Load { to, operand: random.between(0, operands.len() - 1) },
                1 => Instruction::LoadResult { to, result: random.between(0, 1) },
                2 => Instruction::Constant { to, value: 0.5 },
                3 => Instruction::Unary { to, function: Unary::Negate, a },
                4 => Instruction::Unary { to, function: Unary::Absolute, a },
                5 => Instruction::Binary { to, function: Binary::Add, a, b },
                6 => Instruction::Binary { to, function: Binary::Subtract, a, b },
                7 => Instruction::Binary { to, function: Binary::Multiply, a, b },
                8 => Instruction::Select { to, condition, a, b },
                _ => Instruction::Store { result: random.between(0, 1), from: a },
            });
        }
        let [first, second] = [(); 2].map(|()| random.between(0, 3) as Register);
        instructions.push(Instruction::Store { result: 0, from: first });
        instructions.push(Instruction::Store { result: 1, from: second });

        let mut expected = [full[2].clone(), full[3].clone()];
        for (pixel, per_pixel) in per_pixel.iter().enumerate() {
            for channel in 0..channels {
                let at = |view: &View| pixel * view.pixel_stride + view.channel_offset + channel;
                let numbers = [
                    full[0][at(&views[0])],
                    full[1][at(&views[1])],
                    per_channel[channel],
                    per_sample[pixel / (pixels / batch) * channels + channel],
                    *per_pixel,
                    0.0,
                ];
                let mut results = [expected[0][at(&views[2])], expected[1][at(&views[3])]];
                interpret(&instructions, &numbers, &mut results);
                [expected[0][at(&views[2])], expected[1][at(&views[3])]] = results;
            }
        }
        let program = Program::new(instructions.clone());
        for level in Level::available() {
            let (mut first, mut second) = (full[2].clone(), full[3].clone());
            let targets = &mut [Target::Full(&mut first, views[2]), Target::Full(&mut second, views[3])];
            program.run(level, &shape, &operands, targets);
            let found = [first, second];
            assert!(found == expected, "{shape:?} {views:?} at {}: {instructions:?}", level.name());
        }
    }
}

#[test]
fn results_do_not_depend_on_threads_or_batch() {
    let view = View::packed(3, [1, 50, 60], 130);
    let x = Random(2).floats(view.len());
    let program = Program::new(vec![
        Instruction::Load { to: 0, operand: 0 },
        Instruction::Unary { to: 1, function: Unary::Silu, a: 0 },
        Instruction::Store { result: 0, from: 1 },
    ]);
    for level in Level::available() {
        let run = |x: &[f32], batch: usize| {
            let view = View { batch, ..view };
            let mut y = vec![0.0; view.len()];
            program.run(level, &view, &[Operand::Full(x, view)], &mut [Target::Full(&mut y, view)]);
            y
        };
        let whole = same_for_all_threads(|| run(&x, 3));
        let parts: Vec<f32> = x.chunks(x.len() / 3).flat_map(|x| run(x, 1)).collect();
        assert!(equal_bits(&whole, &parts), "batch changes bits at {}", level.name());
    }
}

#[test]
fn not_a_number_stays() {
    let program = Program::new(vec![
        Instruction::Load { to: 0, operand: 0 },
        Instruction::Constant { to: 1, value: 1.0 },
        Instruction::Binary { to: 2, function: Binary::Maximum, a: 0, b: 1 },
        Instruction::Binary { to: 3, function: Binary::Minimum, a: 1, b: 0 },
        Instruction::Binary { to: 2, function: Binary::Add, a: 2, b: 3 },
        Instruction::Store { result: 0, from: 2 },
    ]);
    let view = View::packed(1, [1, 1, 1], 2);
    for level in Level::available() {
        let mut output = [0.0; 2];
        program.run(
            level,
            &view,
            &[Operand::Full(&[f32::NAN, 3.0], view)],
            &mut [Target::Full(&mut output, view)],
        );
        assert!(output[0].is_nan());
        assert_eq!(output[1], 4.0);
    }
}

#[test]
#[should_panic(expected = "used before it is set")]
fn unset_registers_panic() {
    Program::new(vec![Instruction::Store { result: 0, from: 3 }]);
}

#[test]
fn sigmoid_linear_unit_and_its_slope() {
    let xs: Vec<f32> = (-400..=400).map(|n| n as f32 / 4.0).collect();
    let view = View::packed(1, [1, 1, xs.len()], 1);
    let exact = |x: f64| {
        let s = 1.0 / (1.0 + (-x).exp());
        (x * s, s * (1.0 + x * (1.0 - s)))
    };
    for level in Level::available() {
        for (function, slope) in [(Unary::Silu, false), (Unary::SiluSlope, true)] {
            let program = Program::new(vec![
                Instruction::Load { to: 0, operand: 0 },
                Instruction::Unary { to: 1, function, a: 0 },
                Instruction::Store { result: 0, from: 1 },
            ]);
            let mut ys = vec![0.0; xs.len()];
            program.run(level, &view, &[Operand::Full(&xs, view)], &mut [Target::Full(&mut ys, view)]);
            for (x, y) in xs.iter().zip(&ys) {
                let (value, derivative) = exact(f64::from(*x));
                let expected = if slope { derivative } else { value };
                let error = (f64::from(*y) - expected).abs();
                assert!(
                    error <= 1e-6 * expected.abs().max(0.01),
                    "{function:?} of {x}: {y}, expected {expected}"
                );
            }
        }
    }
}
