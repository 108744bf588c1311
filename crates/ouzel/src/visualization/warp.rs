//! A picture shifted, turned and scaled by a little, and the way back for gradients.

use ndarray::Array3;

/// `[channels, height, width]` seen through a camera that has moved: where each pixel is read, and with which weights.
#[derive(Debug)]
pub(super) struct Warp {
    width: usize,
    /// For each pixel the four neighbors it is read from, and their weights.
    reads: Vec<[(usize, f32); 4]>,
}

/// Reflects a place at the borders, so that nothing outside is needed.
fn reflected(place: i64, length: usize) -> usize {
    let period = 2 * length as i64;
    let place = place.rem_euclid(period);
    if place < length as i64 { place as usize } else { (period - 1 - place) as usize }
}

impl Warp {
    /// Turns by `angle` in radians and scales by `scale` around the middle, then shifts by rows and columns.
    pub(super) fn new(
        (height, width): (usize, usize),
        angle: f64,
        scale: f64,
        (rows, columns): (f64, f64),
    ) -> Self {
        let (middle_row, middle_column) = ((height as f64 - 1.0) / 2.0, (width as f64 - 1.0) / 2.0);
        let (sin, cos) = angle.sin_cos();
        let mut reads = Vec::with_capacity(height * width);
        for row in 0..height {
            for column in 0..width {
                let (y, x) = (row as f64 - middle_row, column as f64 - middle_column);
                let source_row = (cos * y + sin * x) / scale + middle_row + rows;
                let source_column = (cos * x - sin * y) / scale + middle_column + columns;
                let (top, left) = (source_row.floor(), source_column.floor());
                let (down, right) = (source_row - top, source_column - left);
                let at = |below: i64, beside: i64| {
                    let row = reflected(top as i64 + below, height);
                    row * width + reflected(left as i64 + beside, width)
                };
                reads.push([
                    (at(0, 0), ((1.0 - down) * (1.0 - right)) as f32),
                    (at(0, 1), ((1.0 - down) * right) as f32),
                    (at(1, 0), (down * (1.0 - right)) as f32),
                    (at(1, 1), (down * right) as f32),
                ]);
            }
        }
        Self { width, reads }
    }

    /// The picture as it is seen.
    pub(super) fn apply(&self, picture: &Array3<f32>) -> Array3<f32> {
        let mut seen = Array3::zeros(picture.raw_dim());
        for (mut to, from) in seen.outer_iter_mut().zip(picture.outer_iter()) {
            for (pixel, reads) in to.iter_mut().zip(&self.reads) {
                *pixel = reads.iter().map(|&(place, weight)| from[self.place(place)] * weight).sum();
            }
        }
        seen
    }

    /// The gradient of the picture, from that of what is seen.
    pub(super) fn gradient(&self, seen: &Array3<f32>) -> Array3<f32> {
        let mut gradient = Array3::zeros(seen.raw_dim());
        for (mut to, from) in gradient.outer_iter_mut().zip(seen.outer_iter()) {
            for (pixel, reads) in from.iter().zip(&self.reads) {
                for &(place, weight) in reads {
                    to[self.place(place)] += pixel * weight;
                }
            }
        }
        gradient
    }

    fn place(&self, place: usize) -> [usize; 2] {
        [place / self.width, place % self.width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(seed: u32) -> Array3<f32> {
        let mut state = seed;
        Array3::from_shape_simple_fn((2, 6, 9), || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 24) as f32
        })
    }

    #[test]
    fn nothing_moved_is_nothing_changed() {
        let picture = numbers(1);
        assert_eq!(Warp::new((6, 9), 0.0, 1.0, (0.0, 0.0)).apply(&picture), picture);
        let moved = Warp::new((6, 9), 0.0, 1.0, (1.0, -2.0)).apply(&picture);
        assert_eq!(moved[[1, 2, 5]], picture[[1, 3, 3]]);
        assert_eq!(moved[[0, 5, 0]], picture[[0, 5, 1]], "reflected at the border");
    }

    #[test]
    fn the_gradient_is_the_transpose() {
        let (x, y) = (numbers(1), numbers(2));
        let warp = Warp::new((6, 9), 0.3, 1.2, (0.7, -1.4));
        let dot =
            |a: &Array3<f32>, b: &Array3<f32>| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
        let (there, back) = (dot(&warp.apply(&x), &y), dot(&x, &warp.gradient(&y)));
        assert!((there - back).abs() < 1e-4 * there.abs(), "{there} {back}");
    }
}
