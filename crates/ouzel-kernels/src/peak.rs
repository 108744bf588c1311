//! The arithmetic peak of a core, the yardstick of the benchmarks.

use crate::level::{Kernel, Level};
use crate::vector::Simd;
use std::time::Instant;

/// Independent chains of multiply-adds, more than latency times ports of any known core.
const CHAINS: usize = 10;

struct Chains {
    rounds: usize,
}

impl Kernel for Chains {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (x, w) = (simd.splat(std::hint::black_box(0.5)), simd.splat(std::hint::black_box(1.0)));
        let mut sums = [simd.splat(0.0); CHAINS];
        for _ in 0..self.rounds {
            for sum in &mut sums {
                *sum = simd.multiply_add(*sum, x, w);
            }
        }
        let mut total = 0.0;
        for sum in sums {
            total += simd.sum(sum);
        }
        total
    }
}

/// Floating-point operations per second of a thread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// In the best moment, some ten microseconds.
    pub best: f64,
    /// Over the whole time: what the processor sustains, and other work leaves to it.
    pub mean: f64,
}

/// Multiply-adds without any memory, measured on this thread for about so many seconds.
///
/// Used by the benchmarks, which state what fraction of it a kernel reaches.
pub fn peak_flops(level: Level, seconds: f64) -> Peak {
    const ROUNDS: usize = 10_000;
    let flops = (ROUNDS * CHAINS * level.lanes() * 2) as f64;
    let start = Instant::now();
    let (mut best, mut total) = (0.0f64, 0.0);
    loop {
        let begin = Instant::now();
        std::hint::black_box(level.run(Chains { rounds: ROUNDS }));
        best = best.max(flops / begin.elapsed().as_secs_f64());
        total += flops;
        let elapsed = start.elapsed().as_secs_f64();
        if elapsed >= seconds {
            return Peak { best, mean: total / elapsed };
        }
    }
}
