//! Dense layers and matrix products against naive loops, at every SIMD level.

mod random;

use ouzel_kernels::*;
use random::{Random, equal_bits, rounds, same_for_all_threads};

#[test]
fn dense_layers_equal_naive_loops() {
    let mut random = Random(1);
    for round in 0..rounds(80) {
        let (inputs, outputs, rows) = (random.between(1, 90), random.between(1, 140), random.between(1, 9));
        let weights = random.integers(inputs * outputs);
        // Both orders of the weights.
        let (input_stride, output_stride) = if round % 2 == 0 { (outputs, 1) } else { (1, inputs) };
        let layer = Dense::new(inputs, outputs, &weights, input_stride, output_stride);
        let (x, mut g) = (random.integers(rows * inputs), random.integers(rows * outputs));
        if random.coin() {
            // One output of each row alone is asked for.
            for g in g.chunks_mut(outputs) {
                let asked = random.between(0, outputs - 1);
                (0..outputs).filter(|n| *n != asked).for_each(|n| g[n] = 0.0);
            }
        }
        let (mut y, mut dx) = (vec![0.0; rows * outputs], vec![0.0; rows * inputs]);
        for row in 0..rows {
            for k in 0..inputs {
                for n in 0..outputs {
                    let w = weights[k * input_stride + n * output_stride];
                    y[row * outputs + n] += x[row * inputs + k] * w;
                    dx[row * inputs + k] += g[row * outputs + n] * w;
                }
            }
        }
        for level in Level::available() {
            let mut result = vec![f32::NAN; y.len()];
            layer.forward(level, rows, &x, &mut result, Epilogue::default());
            assert_eq!(result, y, "{inputs} {outputs} {rows} at {}", level.name());
            let mut result = vec![f32::NAN; dx.len()];
            layer.input_gradient(level, rows, &g, &mut result, Epilogue::default());
            assert_eq!(result, dx, "{inputs} {outputs} {rows} at {}", level.name());
            let relu = Epilogue {
                activation: Some(Activation::Relu),
                addend: Some(Addend::Output),
                ..Epilogue::default()
            };
            layer.input_gradient(level, rows, &g, &mut result, relu);
            assert!(result.iter().zip(&dx).all(|(result, dx)| *result == (2.0 * dx).max(0.0)));
        }
    }
}

#[test]
fn matrix_products_equal_naive_loops() {
    let mut random = Random(2);
    for _ in 0..rounds(80) {
        let (batch, rows, depth, columns) =
            (random.between(1, 4), random.between(1, 40), random.between(0, 50), random.between(1, 70));
        let (left, right) = (random.integers(batch * rows * depth), random.integers(batch * depth * columns));
        let (a, b) = match random.between(0, 3) {
            0 => (Matrices::packed(&left, rows, depth), Matrices::packed(&right, depth, columns)),
            1 => {
                (Matrices::packed(&left, depth, rows).transposed(), Matrices::packed(&right, depth, columns))
            }
            2 => {
                (Matrices::packed(&left, rows, depth), Matrices::packed(&right, columns, depth).transposed())
            }
            _ => (
                Matrices { batch_stride: 0, ..Matrices::packed(&left, depth, rows).transposed() },
                Matrices { batch_stride: 0, ..Matrices::packed(&right, columns, depth).transposed() },
            ),
        };
        let product = MatrixProduct::new(batch, rows, depth, columns);
        let mut scratch = vec![f32::NAN; product.scratch_len()];
        let before = random.integers(batch * rows * columns);
        for level in Level::available() {
            for accumulate in [false, true] {
                let mut output = before.clone();
                product.run(level, a, b, &mut output, accumulate, &mut scratch);
                for index in 0..output.len() {
                    let (i, row, column) = (index / columns / rows, index / columns % rows, index % columns);
                    let sum: f32 = (0..depth)
                        .map(|k| {
                            a.data[i * a.batch_stride + row * a.row_stride + k * a.column_stride]
                                * b.data[i * b.batch_stride + k * b.row_stride + column * b.column_stride]
                        })
                        .sum();
                    assert_eq!(output[index], sum + if accumulate { before[index] } else { 0.0 });
                }
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_threads_or_rows() {
    let mut random = Random(3);
    let (inputs, outputs, rows) = (517, 1003, 7);
    let weights = random.floats(inputs * outputs);
    let layer = Dense::new(inputs, outputs, &weights, outputs, 1);
    let (x, g) = (random.floats(rows * inputs), random.floats(rows * outputs));
    for level in Level::available() {
        let run = |x: &[f32], g: &[f32]| {
            let rows = x.len() / inputs;
            let (mut y, mut dx) = (vec![0.0; rows * outputs], vec![0.0; rows * inputs]);
            layer.forward(level, rows, x, &mut y, Epilogue::default());
            layer.input_gradient(level, rows, g, &mut dx, Epilogue::default());
            (y, dx)
        };
        let product = MatrixProduct::new(3, rows, inputs, 150);
        let left = Matrices { batch_stride: 0, ..Matrices::packed(&x, rows, inputs) };
        let right = Matrices { batch_stride: 100, ..Matrices::packed(&weights, inputs, 150) };
        same_for_all_threads(|| {
            let mut output = vec![0.0; 3 * rows * 150];
            let mut scratch = vec![f32::NAN; product.scratch_len()];
            product.run(level, left, right, &mut output, false, &mut scratch);
            output
        });
        let y = same_for_all_threads(|| run(&x, &g).0);
        let dx = same_for_all_threads(|| run(&x, &g).1);
        for row in 0..rows {
            let alone = run(&x[row * inputs..][..inputs], &g[row * outputs..][..outputs]);
            assert!(equal_bits(&alone.0, &y[row * outputs..][..outputs]), "at {}", level.name());
            assert!(equal_bits(&alone.1, &dx[row * inputs..][..inputs]), "at {}", level.name());
        }
    }
}
