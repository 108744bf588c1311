//! Gaussian blur of arrays of any number of axes.

use ndarray::{ArrayD, Axis};
use rayon::prelude::*;

/// Weights further than this many standard deviations away are left out.
const CUT_OFF: f64 = 4.0;

/// What lies beyond the edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Border {
    /// Zeros.
    Zero,
    /// The array again, turned over at its edge: `c b a | a b c | c b a`.
    Mirror,
}

/// The array blurred along some axes, with a standard deviation in elements.
///
/// **Formula.** Along each axis the mean of the elements with weights `exp(-d² / 2σ²)`, up to a distance of 4 σ.
pub(crate) fn gaussian_blur(mut x: ArrayD<f64>, axes: &[usize], sigma: f64, border: Border) -> ArrayD<f64> {
    let radius = (CUT_OFF * sigma + 0.5) as usize;
    if radius == 0 {
        return x;
    }
    let weight = |distance: usize| (-0.5 * (distance as f64 / sigma).powi(2)).exp();
    let mut weights: Vec<f64> = (0..=radius).map(weight).collect();
    let sum = weights[0] + 2.0 * weights[1..].iter().sum::<f64>();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    for &axis in axes {
        let lanes: Vec<_> = x.lanes_mut(Axis(axis)).into_iter().collect();
        lanes.into_par_iter().for_each_init(Vec::new, |padded: &mut Vec<f64>, mut lane| {
            let length = lane.len() as isize;
            padded.clear();
            padded.extend((-(radius as isize)..length + radius as isize).map(|place| match border {
                Border::Zero if !(0..length).contains(&place) => 0.0,
                Border::Zero => lane[place as usize],
                Border::Mirror => {
                    let turned = place.rem_euclid(2 * length);
                    lane[turned.min(2 * length - 1 - turned) as usize]
                }
            }));
            let length = lane.len();
            let mut sums: Vec<f64> =
                padded[radius..][..length].iter().map(|value| weights[0] * value).collect();
            for (distance, weight) in weights.iter().enumerate().skip(1) {
                let (before, after) = (&padded[radius - distance..], &padded[radius + distance..]);
                for ((sum, before), after) in sums.iter_mut().zip(before).zip(after) {
                    *sum += weight * (before + after);
                }
            }
            lane.iter_mut().zip(sums).for_each(|(value, sum)| *value = sum);
        });
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr1;

    /// Reference: NumPy's `convolve(pad(x, 6, mode), weights, 'valid')`, with the modes `constant` and `symmetric`.
    #[test]
    fn equals_a_convolution_of_the_padded_array() {
        let x = arr1(&[1.0, 0.0, 0.0, 2.0, -1.0, 0.5, 0.0]).into_dyn();
        let close = |border: Border, expected: [f64; 7]| {
            let found = gaussian_blur(x.clone(), &[0], 1.5, border);
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found}");
        };
        let zero =
            [0.330869649, 0.399454231, 0.443932231, 0.409625921, 0.274051966, 0.139725147, 0.069220507];
        close(Border::Zero, zero);
        let mirror =
            [0.558048396, 0.510762579, 0.480149632, 0.417648201, 0.27802911, 0.152270533, 0.10309155];
        close(Border::Mirror, mirror);
    }

    #[test]
    fn a_mirror_keeps_the_mean_and_other_axes_are_left_alone() {
        let x = ArrayD::from_shape_fn(vec![2, 3, 4], |place| (place[0] * 7 + place[1] * place[2]) as f64);
        let blurred = gaussian_blur(x.clone(), &[1, 2], 9.0, Border::Mirror);
        for (before, after) in x.outer_iter().zip(blurred.outer_iter()) {
            assert!((before.mean().unwrap() - after.mean().unwrap()).abs() < 1e-9);
            assert!(after.iter().all(|value| (value - after.mean().unwrap()).abs() < 1e-2));
        }
        assert_eq!(gaussian_blur(x.clone(), &[1], 0.0, Border::Zero), x);
    }
}
