//! Random numbers that depend on a seed and on what they are for, and on nothing else.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The random numbers of one purpose: those of the stream `number` of a seed.
pub(crate) fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.set_stream(number);
    random
}

/// So many numbers of 0…1, 1 excluded.
pub(crate) fn uniform(random: &mut ChaCha8Rng, count: usize) -> Vec<f64> {
    (0..count).map(|_| random.random()).collect()
}

/// So many numbers of the normal distribution with mean 0 and standard deviation 1 (Marsaglia's polar method).
pub(crate) fn normal(random: &mut ChaCha8Rng, count: usize) -> Vec<f64> {
    let mut numbers = Vec::with_capacity(count + 1);
    while numbers.len() < count {
        let (a, b) = (2.0 * random.random::<f64>() - 1.0, 2.0 * random.random::<f64>() - 1.0);
        let square = a * a + b * b;
        if square > 0.0 && square < 1.0 {
            let factor = (-2.0 * libm::log(square) / square).sqrt();
            numbers.extend([a * factor, b * factor]);
        }
    }
    numbers.truncate(count);
    numbers
}

/// The numbers 0…count in a random order.
pub(crate) fn permutation(random: &mut ChaCha8Rng, count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        places.swap(last, random.random_range(0..=last));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_of_the_distributions() {
        let moment = |numbers: &[f64], power: i32| {
            numbers.iter().map(|number| number.powi(power)).sum::<f64>() / numbers.len() as f64
        };
        let numbers = normal(&mut stream(1, 2), 100_001);
        assert_eq!(numbers.len(), 100_001);
        for (power, expected) in [(1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)] {
            assert!(
                (moment(&numbers, power) - expected).abs() < 0.06,
                "{power}: {}",
                moment(&numbers, power)
            );
        }
        let numbers = uniform(&mut stream(1, 2), 100_000);
        assert!((moment(&numbers, 1) - 0.5).abs() < 0.005 && (moment(&numbers, 2) - 1.0 / 3.0).abs() < 0.005);
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
    }

    #[test]
    fn streams_differ_and_repeat() {
        let first = normal(&mut stream(7, 0), 5);
        assert_eq!(first, normal(&mut stream(7, 0), 5));
        assert_eq!(first[..3], normal(&mut stream(7, 0), 3));
        assert_ne!(first, normal(&mut stream(7, 1), 5));
        assert_ne!(first, normal(&mut stream(8, 0), 5));
        let mut places = permutation(&mut stream(7, 0), 100);
        assert!(!places.is_sorted());
        places.sort_unstable();
        assert_eq!(places, (0..100).collect::<Vec<_>>());
    }
}
