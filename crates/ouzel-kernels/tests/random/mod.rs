//! Seeded random numbers for the tests.

/// A generator of reproducible random numbers (SplitMix64).
pub struct Random(pub u64);

#[allow(dead_code, reason = "shared by test files that each use a part of it")]
impl Random {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `low..=high`.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + (self.bits() % (high - low + 1) as u64) as usize
    }

    /// One of the choices.
    pub fn choose<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.between(0, choices.len() - 1)]
    }

    /// Whether a coin fell on its head.
    pub fn coin(&mut self) -> bool {
        self.bits() & 1 == 1
    }

    /// Small integers as floats, so that sums of products are exact.
    pub fn integers(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.between(0, 8) as f32 - 4.0).collect()
    }

    /// Floats in -1..1.
    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }
}

/// Runs `work` in pools of 1, 2 and 3 threads, with and without a crew, and asserts that the results have equal bits.
#[allow(dead_code, reason = "shared by test files that each use a part of it")]
pub fn same_for_all_threads(work: impl Fn() -> Vec<f32> + Send + Sync) -> Vec<f32> {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        [pool.install(&work), pool.install(|| ouzel_kernels::together(&work))]
    };
    let [one, _] = run(1);
    for threads in [1, 2, 3] {
        for many in run(threads) {
            assert!(equal_bits(&one, &many), "{threads} threads differ from one");
        }
    }
    one
}

/// Whether two slices have the same bits.
#[allow(dead_code, reason = "shared by test files that each use a part of it")]
pub fn equal_bits(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
}

/// How many of so many rounds to run: few under Miri, which is a thousand times slower.
#[allow(dead_code, reason = "shared by test files that each use a part of it")]
pub fn rounds(count: usize) -> usize {
    if cfg!(miri) { count.div_ceil(40) } else { count }
}
