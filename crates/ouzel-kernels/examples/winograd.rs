//! Times direct convolution and Winograd's over the shapes of known networks: where `suits_winograd` draws its line.
//!
//! `cargo run --release -p ouzel-kernels --example winograd`

use ouzel_kernels::{Convolution, ConvolutionShape, Epilogue, Level, View};
use std::time::Instant;

/// Height and width, input channels, output channels.
const SHAPES: [(usize, usize, usize); 23] = [
    (224, 64, 64),
    (112, 64, 128),
    (112, 128, 64),
    (112, 128, 128),
    (56, 64, 64),
    (56, 128, 32),
    (56, 32, 128),
    (56, 16, 64),
    (56, 64, 16),
    (56, 128, 256),
    (56, 256, 256),
    (28, 128, 128),
    (28, 128, 32),
    (28, 32, 128),
    (28, 256, 512),
    (28, 512, 512),
    (14, 128, 32),
    (14, 32, 128),
    (14, 256, 256),
    (14, 512, 512),
    (7, 128, 32),
    (7, 32, 128),
    (7, 512, 512),
];

fn main() -> Result<(), ouzel_kernels::LevelError> {
    let level = Level::detect()?;
    let threads = rayon::current_num_threads();
    println!("{} with {threads} threads; least of some runs", level.name());
    println!("{:>20} {:>10} {:>12} {:>6}", "size inputs outputs", "direct ms", "Winograd ms", "ratio");
    for (size, inputs, outputs) in SHAPES {
        let shape =
            ConvolutionShape { padding: [0, 1, 1], ..ConvolutionShape::new(inputs, outputs, [1, 3, 3]) };
        let weights = vec![0.01; inputs * outputs * 9];
        let convolutions =
            [Convolution::forward(&shape, &weights), Convolution::forward_by_winograd(&shape, &weights)];
        let (from, to) =
            (View::packed(1, [1, size, size], inputs), View::packed(1, [1, size, size], outputs));
        let (x, mut y) = (vec![1.0; from.len()], vec![0.0; to.len()]);
        // Layers that a network runs in between push weights out of the cache.
        let mut other = vec![0u8; 32 << 20];
        let mut least = [f64::INFINITY; 2];
        for _ in 0..15 {
            for (convolution, least) in convolutions.iter().zip(&mut least) {
                other.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
                let start = Instant::now();
                convolution.run(level, &x, &from, &mut y, &to, Epilogue::default());
                *least = least.min(start.elapsed().as_secs_f64() * 1000.0);
            }
        }
        let [direct, winograd] = least;
        println!(
            "{size:>8} {inputs:>5} {outputs:>5} {direct:>10.3} {winograd:>12.3} {:>6.2}",
            direct / winograd
        );
    }
    Ok(())
}
