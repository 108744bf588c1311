//! Pictures as sums of waves in decorrelated colors: what an optimizer changes instead of pixels.

use ndarray::{Array2, Array3, Axis};
use rand::{Rng, RngExt};

/// The main axes of the colors of natural pictures, as rows of red, green and blue, with how much they vary:
/// lightness, blue against yellow, red against green (Ruderman et al. 1998).
const COLORS: [([f32; 3], f32); 3] = [
    ([0.577_350_3, 0.577_350_3, 0.577_350_3], 1.0),
    ([std::f32::consts::FRAC_1_SQRT_2, 0.0, -std::f32::consts::FRAC_1_SQRT_2], 0.3),
    ([0.408_248_3, -0.816_496_6, 0.408_248_3], 0.15),
];

/// From coefficients of waves to a picture of values 0…1, and back for gradients.
///
/// **Formula.** `picture = sigmoid(colors · H (scale ⊙ coefficients) Hᵀ)`, where `H` is the orthonormal Hartley matrix, the real
/// form of the Fourier transform, and a wave of `f` periods a pixel has the scale `1 / max(f, 1/side)`, which is how natural pictures
/// are made up: steps along coefficients change all frequencies alike, so that the optimizer is not drawn to noise.
#[derive(Debug)]
pub(super) struct Waves {
    rows: Array2<f32>,
    columns: Array2<f32>,
    scale: Array2<f32>,
    channels: usize,
}

/// `√(1/n) · (cos + sin)(2πij/n)`: symmetric, and its own inverse.
fn hartley(length: usize) -> Array2<f32> {
    Array2::from_shape_fn((length, length), |(i, j)| {
        // Whole turns are left out in whole numbers, where nothing is rounded.
        let angle = (i * j % length) as f64 / length as f64 * std::f64::consts::TAU;
        ((angle.cos() + angle.sin()) / (length as f64).sqrt()) as f32
    })
}

impl Waves {
    /// For pictures `[channels, height, width]`.
    pub(super) fn new(channels: usize, height: usize, width: usize, decay: f64) -> Self {
        let frequency = |index: usize, length: usize| index.min(length - index) as f64 / length as f64;
        let lowest = 1.0 / height.max(width) as f64;
        // Such that a step of 0.05 along the mean changes a pixel by about a hundredth.
        let unit = lowest.powf(decay - 1.0) * 0.25;
        let scale = Array2::from_shape_fn((height, width), |(row, column)| {
            let (y, x) = (frequency(row, height), frequency(column, width));
            (unit / y.hypot(x).max(lowest).powf(decay)) as f32
        });
        Self { rows: hartley(height), columns: hartley(width), scale, channels }
    }

    /// Coefficients to start from.
    pub(super) fn start(&self, random: &mut impl Rng, deviation: f64) -> Array3<f32> {
        let (height, width) = self.scale.dim();
        Array3::from_shape_simple_fn((self.channels, height, width), || {
            // Box and Muller.
            let (a, b): (f64, f64) = (random.random(), random.random());
            ((-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos() * deviation) as f32
        })
    }

    /// Mixes channels: decorrelated colors to red, green and blue, or the other way for gradients.
    fn mix(&self, channels: &Array3<f32>, back: bool) -> Array3<f32> {
        if self.channels != 3 {
            return channels.clone();
        }
        let mut mixed = Array3::zeros(channels.raw_dim());
        for (color, (axis, weight)) in COLORS.iter().enumerate() {
            for (channel, &share) in axis.iter().enumerate() {
                let (from, to) = if back { (channel, color) } else { (color, channel) };
                let share = share * weight;
                mixed.index_axis_mut(Axis(0), to).scaled_add(share, &channels.index_axis(Axis(0), from));
            }
        }
        mixed
    }

    /// Coefficients to pixels or, as the matrix is its own transpose, gradients of pixels to those of coefficients.
    fn transform(&self, plane: ndarray::ArrayView2<'_, f32>) -> Array2<f32> {
        self.rows.dot(&plane).dot(&self.columns)
    }

    /// The picture of these coefficients.
    pub(super) fn picture(&self, coefficients: &Array3<f32>) -> Array3<f32> {
        let mut planes = Array3::zeros(coefficients.raw_dim());
        for (mut plane, coefficients) in planes.outer_iter_mut().zip(coefficients.outer_iter()) {
            plane.assign(&self.transform((&coefficients * &self.scale).view()));
        }
        self.mix(&planes, false).mapv(|value| 1.0 / (1.0 + (-value).exp()))
    }

    /// The gradient of the coefficients, from that of the picture.
    pub(super) fn gradient(&self, picture: &Array3<f32>, gradient: &Array3<f32>) -> Array3<f32> {
        let inner = gradient * &picture.mapv(|value| value * (1.0 - value));
        let mut planes = self.mix(&inner, true);
        for mut plane in planes.outer_iter_mut() {
            let transformed = self.transform(plane.view()) * &self.scale;
            plane.assign(&transformed);
        }
        planes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn the_transform_is_its_own_inverse() {
        for length in [1, 2, 7, 32] {
            let h = hartley(length);
            let unit = h.dot(&h);
            for ((i, j), value) in unit.indexed_iter() {
                assert!((value - f32::from(u8::from(i == j))).abs() < 1e-5, "{length}: {value}");
            }
        }
    }

    #[test]
    fn gradients_are_those_of_finite_differences() {
        let mut random = ChaCha8Rng::seed_from_u64(4);
        for channels in [1, 3] {
            let waves = Waves::new(channels, 6, 5, 1.0);
            let c = waves.start(&mut random, 0.5);
            let weights = waves.start(&mut random, 1.0);
            let f = |c: &Array3<f32>| {
                let picture = waves.picture(c);
                picture.iter().zip(&weights).map(|(p, w)| f64::from(p * w)).sum::<f64>()
            };
            let gradient = waves.gradient(&waves.picture(&c), &weights);
            for place in [[0, 0, 0], [channels - 1, 3, 2], [0, 5, 4]] {
                let (mut up, mut down) = (c.clone(), c.clone());
                up[place] += 0.02;
                down[place] -= 0.02;
                let slope = (f(&up) - f(&down)) / 0.04;
                assert!((slope - f64::from(gradient[place])).abs() < 2e-3 * (1.0 + slope.abs()), "{place:?}");
            }
        }
    }

    #[test]
    fn the_colors_are_orthogonal() {
        for (a, (first, _)) in COLORS.iter().enumerate() {
            for (b, (second, _)) in COLORS.iter().enumerate() {
                let dot: f32 = first.iter().zip(second).map(|(x, y)| x * y).sum();
                assert!((dot - f32::from(u8::from(a == b))).abs() < 1e-6);
            }
        }
    }
}
