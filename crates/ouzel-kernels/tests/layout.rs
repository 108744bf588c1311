//! Changes of layout against their definitions.

mod random;

use ouzel_kernels::{StridedCopy, View, to_channels_first, to_channels_last};
use random::{Random, rounds};

#[test]
fn channels_first_and_last() {
    let mut random = Random(1);
    for (batch, size, channels) in [
        (1, [1, 7, 9], 3),
        (2, [1, 33, 17], 40),
        (3, [2, 3, 5], 1),
        (1, [1, 224, 224], 3),
        (2, [1, 60, 61], 130),
        (0, [1, 2, 2], 3),
    ] {
        let offset = random.choose(&[0, 4]);
        let view = View::packed(batch, size, channels).within(channels + 2 * offset, offset);
        let first: Vec<f32> = (0..view.pixels() * channels).map(|n| n as f32).collect();
        let mut last = vec![-1.0; view.len()];
        to_channels_last(&first, &mut last, &view);
        let pixels = size.iter().product::<usize>();
        for pixel in 0..view.pixels() {
            for channel in 0..view.pixel_stride {
                let expected = match channel.checked_sub(offset) {
                    Some(channel) if channel < channels => {
                        first[(pixel / pixels * channels + channel) * pixels + pixel % pixels]
                    }
                    _ => -1.0,
                };
                assert_eq!(last[pixel * view.pixel_stride + channel], expected);
            }
        }
        let mut back = vec![0.0; first.len()];
        to_channels_first(&last, &view, &mut back);
        assert_eq!(back, first);
    }
}

#[test]
fn random_transpositions() {
    let mut random = Random(2);
    for round in 0..rounds(200) {
        let axes = random.between(0, 6);
        let most =
            if round % 10 == 0 && axes > 0 { (300_000f64).powf(1.0 / axes as f64) as usize } else { 5 };
        let size: Vec<usize> = (0..axes).map(|_| random.between(usize::from(round % 7 != 0), most)).collect();
        // The input's axes are a permutation of the output's, some of them broadcast.
        let mut order: Vec<usize> = (0..axes).collect();
        for index in (1..axes).rev() {
            order.swap(index, random.between(0, index));
        }
        let (mut from, mut to) = (vec![0; axes], vec![0; axes]);
        let mut step = random.choose(&[1, 1, 2]);
        for axis in order.iter().rev() {
            if random.between(0, 5) > 0 {
                from[*axis] = step;
                step *= size[*axis].max(1) + random.choose(&[0, 0, 1]);
            }
        }
        let input = random.floats(step + 3);
        let mut step = random.choose(&[1, 1, 1, 2]);
        for axis in (0..axes).rev() {
            to[axis] = step;
            step *= size[axis].max(1) + random.choose(&[0, 0, 0, 1]);
        }
        let total: usize = size.iter().product();
        let mut expected = vec![9.0; step + 5];
        for index in 0..total {
            let (mut rest, mut read, mut write) = (index, 3, 5);
            for axis in (0..axes).rev() {
                read += rest % size[axis] * from[axis];
                write += rest % size[axis] * to[axis];
                rest /= size[axis];
            }
            expected[write] = input[read];
        }
        let mut output = vec![9.0; step + 5];
        StridedCopy::new(&size, &from, 3, &to, 5).run(&input, &mut output);
        assert_eq!(output, expected, "{size:?} {from:?} {to:?}");
    }
}

#[test]
#[should_panic(expected = "writes one place twice")]
fn overlapping_outputs_panic() {
    StridedCopy::new(&[2, 3], &[3, 1], 0, &[2, 1], 0);
}
