//! Maps of few positions made as large as the input, over any number of axes.

use super::names::named;
use crate::error::{Result, bail};
use ndarray::{ArrayD, Axis, IxDyn};

named! {
    /// How the values between the positions of a layer are found, one axis after the other.
    pub enum Upsampling: "upsampling" {
        /// Linear between centers; elements are as wide in the map as in the input, so that edges lie on edges. As
        /// PyTorch's and OpenCV's bilinear.
        Linear = "linear" or "bilinear",
        /// Linear with the first and the last element of both grids on each other. As SciPy's `zoom` of order 1.
        AlignedLinear = "aligned_linear",
        /// Cubic spline through all values, the first and last on each other; it may overshoot. As SciPy's `zoom` of
        /// order 3.
        CubicSpline = "cubic_spline",
        /// The element that covers the position.
        Nearest = "nearest",
    }
}

/// The elements that one element of the output is summed from, with their weights.
type Row = Vec<(usize, f64)>;

impl Upsampling {
    /// The map with other lengths of its last axes, as many as `lengths` has; the others stay.
    ///
    /// An axis that keeps its length keeps its values.
    ///
    /// ```
    /// use ouzel::image::Upsampling;
    /// let map = ndarray::arr2(&[[0.0, 1.0]]).into_dyn();
    /// let larger = Upsampling::Linear.apply(map, &[4])?;
    /// assert_eq!(larger, ndarray::arr2(&[[0.0, 0.25, 0.75, 1.0]]).into_dyn());
    /// # Ok::<(), ouzel::Error>(())
    /// ```
    ///
    /// # Errors
    /// If there are more lengths than axes, or an axis is empty.
    pub fn apply(self, map: ArrayD<f64>, lengths: &[usize]) -> Result<ArrayD<f64>> {
        let shape = map.shape().to_vec();
        let Some(first) = shape.len().checked_sub(lengths.len()) else {
            bail!(shape, "a map of shape {shape:?} cannot become {lengths:?} long: it has fewer axes");
        };
        if shape[first..].contains(&0) {
            bail!(shape, "a map of shape {shape:?} is empty: there is nothing to make larger");
        }
        Ok(lengths.iter().enumerate().fold(map, |map, (place, &to)| self.along(map, Axis(first + place), to)))
    }

    fn along(self, map: ArrayD<f64>, axis: Axis, to: usize) -> ArrayD<f64> {
        let from = map.len_of(axis);
        if from == to {
            return map;
        }
        let rows: Vec<Row> = (0..to).map(|index| self.row(index, from, to)).collect();
        let mut shape = map.shape().to_vec();
        shape[axis.index()] = to;
        let mut larger = ArrayD::zeros(IxDyn(&shape));
        for (lane, mut out) in map.lanes(axis).into_iter().zip(larger.lanes_mut(axis)) {
            let mut values = lane.to_vec();
            if self == Self::CubicSpline {
                to_spline(&mut values);
            }
            for (value, row) in out.iter_mut().zip(&rows) {
                *value = row.iter().map(|&(place, weight)| values[place] * weight).sum();
            }
        }
        larger
    }

    fn row(self, index: usize, from: usize, to: usize) -> Row {
        let last = from - 1;
        let aligned = || if to > 1 { (index * last) as f64 / (to - 1) as f64 } else { 0.0 };
        let linear = |place: f64| {
            let before = (place.floor() as usize).min(last);
            let weight = place - before as f64;
            vec![(before, 1.0 - weight), ((before + 1).min(last), weight)]
        };
        match self {
            Self::Linear => {
                let place = (index as f64 + 0.5) * from as f64 / to as f64 - 0.5;
                linear(place.clamp(0.0, last as f64))
            }
            Self::AlignedLinear => linear(aligned()),
            Self::Nearest => vec![(index * from / to, 1.0)],
            Self::CubicSpline => {
                let place = aligned();
                let before = place.floor();
                let t = place - before;
                let weights = [
                    (1.0 - t).powi(3) / 6.0,
                    (4.0 - 6.0 * t.powi(2) + 3.0 * t.powi(3)) / 6.0,
                    (1.0 + 3.0 * t + 3.0 * t.powi(2) - 3.0 * t.powi(3)) / 6.0,
                    t.powi(3) / 6.0,
                ];
                let places = before as i64 - 1..before as i64 + 3;
                places.map(|place| mirrored(place, from)).zip(weights).collect()
            }
        }
    }
}

/// The element that lies at a place beyond an edge when the axis is mirrored at the centers of its ends.
fn mirrored(place: i64, length: usize) -> usize {
    let last = length as i64 - 1;
    if last == 0 {
        return 0;
    }
    let place = place.rem_euclid(2 * last);
    (if place > last { 2 * last - place } else { place }) as usize
}

/// The coefficients of the cubic B-spline that goes through values, mirrored at both ends.
///
/// Unser, Aldroubi and Eden 1991, "Fast B-spline transforms for continuous image representation and interpolation".
fn to_spline(values: &mut [f64]) {
    let length = values.len();
    if length < 2 {
        return;
    }
    let pole = 3.0f64.sqrt() - 2.0;
    values.iter_mut().for_each(|value| *value *= 6.0);
    let end = pole.powi(length as i32 - 1);
    let mut start = values[0] + end * values[length - 1];
    let mut power = pole;
    for place in 1..length - 1 {
        start += power * (values[place] + end * values[length - 1 - place]);
        power *= pole;
    }
    values[0] = start / (1.0 - end * end);
    for place in 1..length {
        values[place] += pole * values[place - 1];
    }
    values[length - 1] = pole / (pole * pole - 1.0) * (pole * values[length - 2] + values[length - 1]);
    for place in (0..length - 1).rev() {
        values[place] = pole * (values[place + 1] - values[place]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, arr2};

    fn assert_close(found: &ArrayD<f64>, expected: &Array2<f64>) {
        assert_eq!(found.shape(), expected.shape());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-6, "found {found}, expected {expected}");
        }
    }

    /// Reference: `scipy.ndimage.zoom(map, 2, order=…)`, SciPy 1.17.
    #[test]
    fn equals_scipy() {
        let map = arr2(&[[0.0, 1.0], [2.0, 0.0]]).into_dyn();
        let spline = Upsampling::CubicSpline.apply(map.clone(), &[4, 4]).unwrap();
        let expected = arr2(&[
            [0.0, 0.259259, 0.740741, 1.0],
            [0.518519, 0.576132, 0.683128, 0.740741],
            [1.481481, 1.164609, 0.576132, 0.259259],
            [2.0, 1.481481, 0.518519, 0.0],
        ]);
        for (found, expected) in spline.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-6, "found {spline}");
        }
        let linear = Upsampling::AlignedLinear.apply(map, &[4, 4]).unwrap();
        assert_close(
            &linear.slice_axis(Axis(0), (0..2).into()).to_owned(),
            &arr2(&[[0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0], [2.0 / 3.0; 4]]),
        );
    }

    #[test]
    fn a_spline_overshoots_and_goes_through_the_values() {
        let map = arr2(&[[0.0, 0.0, 1.0], [0.0, 4.0, 0.0], [2.0, 0.0, 0.0]]).into_dyn();
        let larger = Upsampling::CubicSpline.apply(map.clone(), &[5, 5]).unwrap();
        let lowest = larger.iter().copied().fold(f64::INFINITY, f64::min);
        assert!((lowest + 0.1875).abs() < 1e-9, "{lowest}");
        for ((place, value), step) in map.indexed_iter().zip(std::iter::repeat(2)) {
            assert!((larger[[place[0] * step, place[1] * step]] - value).abs() < 1e-12);
        }
    }

    #[test]
    fn one_axis_or_three_and_leading_axes_stay() {
        let map = arr2(&[[1.0, 3.0], [5.0, 5.0]]).into_dyn();
        for upsampling in Upsampling::ALL {
            let larger = upsampling.apply(map.clone(), &[6]).unwrap();
            assert_eq!(larger.shape(), [2, 6]);
            assert!((larger[[0, 0]] - 1.0).abs() < 1e-12 && (larger[[0, 5]] - 3.0).abs() < 1e-12, "{larger}");
            assert!(larger.index_axis(Axis(0), 1).iter().all(|value| (value - 5.0).abs() < 1e-12));
        }
        let volume = ArrayD::from_shape_fn(vec![1, 2, 2, 2], |place| (place[1] * 4 + place[3]) as f64);
        let larger = Upsampling::Nearest.apply(volume, &[4, 4, 6]).unwrap();
        assert_eq!(larger.shape(), [1, 4, 4, 6]);
        assert_eq!((larger[[0, 1, 3, 2]], larger[[0, 2, 0, 3]]), (0.0, 5.0));
        let one = ArrayD::from_elem(vec![1, 1], 7.0);
        for upsampling in Upsampling::ALL {
            let larger = upsampling.apply(one.clone(), &[1, 3]).unwrap();
            assert_eq!(larger.shape(), [1, 3]);
            assert!(larger.iter().all(|value| (value - 7.0).abs() < 1e-12), "{larger}");
        }
        assert!(Upsampling::Linear.apply(one, &[1, 1, 1]).is_err());
    }
}
