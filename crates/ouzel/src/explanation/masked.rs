//! What is seen of a sample through masks of its positions.

use ndarray::ArrayD;

/// A sample, and what takes the place of what a mask covers.
#[derive(Debug)]
pub(crate) struct Masked {
    given: Vec<f64>,
    fill: Vec<f64>,
    channels: usize,
    /// How many elements of a channel follow each other.
    run: usize,
}

impl Masked {
    /// A sample and a fill of its shape; a mask covers all channels alike.
    pub(crate) fn new(sample: &ArrayD<f64>, fill: &ArrayD<f64>, channel_axis: Option<usize>) -> Self {
        let (channels, run) = match channel_axis {
            Some(axis) => (sample.len_of(ndarray::Axis(axis)), sample.shape()[axis + 1..].iter().product()),
            None => (1, sample.len()),
        };
        let elements = |array: &ArrayD<f64>| array.iter().copied().collect();
        Self { given: elements(sample), fill: elements(fill), channels, run }
    }

    /// Writes `fill + (given - fill) · mask`; the mask has an element for each position.
    pub(crate) fn see(&self, mask: &[f64], seen: &mut [f64]) {
        let run = self.run.max(1);
        let block = run * self.channels.max(1);
        let blocks = self.given.chunks_exact(block).zip(self.fill.chunks_exact(block));
        for (((given, fill), seen), mask) in
            blocks.zip(seen.chunks_exact_mut(block)).zip(mask.chunks_exact(run))
        {
            let runs = given.chunks_exact(run).zip(fill.chunks_exact(run)).zip(seen.chunks_exact_mut(run));
            for ((given, fill), seen) in runs {
                for (((given, fill), mask), seen) in given.iter().zip(fill).zip(mask).zip(seen) {
                    *seen = fill + (given - fill) * mask;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array, Axis};

    #[test]
    fn a_mask_covers_all_channels_alike_wherever_their_axis_is() {
        let mask = Array::from_shape_fn((2, 3), |(y, x)| (y * 3 + x) as f64 / 5.0);
        for axis in 0..3 {
            let mut shape = vec![2, 3];
            shape.insert(axis, 4);
            let numbers = |by: f64| {
                Array::from_shape_fn(shape.clone(), |place| {
                    (place[0] * 7 + place[1] * 3 + place[2]) as f64 * by
                })
            };
            let (given, fill) = (numbers(0.5), numbers(-0.25));
            let mut seen = vec![f64::NAN; given.len()];
            Masked::new(&given, &fill, Some(axis)).see(mask.as_slice().unwrap(), &mut seen);
            let mask = mask.clone().insert_axis(Axis(axis)).into_dyn();
            let expected = &fill + (&given - &fill) * mask;
            assert!(seen.iter().eq(expected.iter()), "axis {axis}: {seen:?}");
        }
        let alone = mask.clone().into_dyn();
        let mut seen = vec![f64::NAN; 6];
        Masked::new(&alone, &ArrayD::zeros(alone.raw_dim()), None).see(mask.as_slice().unwrap(), &mut seen);
        assert!(seen.iter().eq(alone.mapv(|value| value * value).iter()));
    }
}
