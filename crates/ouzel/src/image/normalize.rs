//! From attributions of any scale to heatmaps in 0..=1 or -1..=1, with a defined outcome for every map.

use super::names::named;
use crate::error::{Context, Error, Result, bail};
use ndarray::{Array, ArrayView, Axis, Dimension, RemoveAxis};

/// keras-vis's epsilon (Keras's `K.epsilon()`); absolute, in the unit of the map.
pub const EPSILON: f64 = 1e-7;

named! {
    /// Which interval a map is brought to.
    pub enum Scale: "scale" {
        /// The smallest value to 0, the largest to 1: [`min_max`].
        MinMax = "min_max",
        /// 0 stays 0, the largest magnitude becomes 1 or -1: [`symmetric`]; for signed maps.
        Symmetric = "symmetric",
    }
}

/// How a map becomes a heatmap: first clip outliers, then scale.
///
/// ```
/// use ouzel::image::{Normalize, Scale};
/// let map = ndarray::array![[-1.0f32, 0.0], [0.5, 2.0]];
/// let signed = Normalize::default().scale(Scale::Symmetric).apply(map.view())?;
/// assert_eq!(signed, ndarray::array![[-0.5, 0.0], [0.25, 1.0]]);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Normalize {
    /// The interval; default [`Scale::MinMax`].
    pub scale: Scale,
    /// Values beyond this percentile, 0..=100, are lowered to it: [`clip_percentile`]; default 100, nothing is clipped.
    pub percentile: f64,
}

impl Default for Normalize {
    fn default() -> Self {
        Self { scale: Scale::MinMax, percentile: 100.0 }
    }
}

impl Normalize {
    /// Sets [`Self::scale`].
    pub fn scale(self, scale: Scale) -> Self {
        Self { scale, ..self }
    }

    /// Sets [`Self::percentile`].
    pub fn percentile(self, percentile: f64) -> Self {
        Self { percentile, ..self }
    }

    /// The heatmap of one sample, in the map's shape.
    ///
    /// # Errors
    /// If a value is NaN or infinite, or the percentile is not in 0..=100.
    pub fn apply<T: Into<f64> + Copy, D: Dimension>(
        &self,
        map: ArrayView<'_, T, D>,
    ) -> Result<Array<f32, D>> {
        let clipped = clip_percentile(map, self.percentile, self.scale == Scale::Symmetric)?;
        match self.scale {
            Scale::MinMax => min_max(clipped.view()),
            Scale::Symmetric => symmetric(clipped.view()),
        }
    }
}

/// keras-vis's normalization of one sample to 0..=1.
///
/// **Formula**: `(v - min) / (max - min + ε)` with ε = [`EPSILON`].
///
/// **Conventions**: a constant map becomes all zeros, an empty one stays empty. ε is absolute, so a map whose range is
/// near 1e-7 does not reach 1: (0, 1e-8, 2e-8) becomes (0, 0.083, 0.167), as in keras-vis. Computed in float64.
///
/// # Errors
/// If a value is NaN or infinite: such a map has no meaningful scale, and hiding it would show a wrong picture.
pub fn min_max<T: Into<f64> + Copy, D: Dimension>(map: ArrayView<'_, T, D>) -> Result<Array<f32, D>> {
    let (low, high) = extremes(&map)?;
    let range = high - low + EPSILON;
    Ok(map.mapv(|value| ((value.into() - low) / range) as f32))
}

/// Signed normalization of one sample to -1..=1.
///
/// **Formula**: `v / max |v|`.
///
/// **Conventions**: 0 stays 0, signs are kept; a map of zeros stays zeros.
///
/// # Errors
/// If a value is NaN or infinite.
pub fn symmetric<T: Into<f64> + Copy, D: Dimension>(map: ArrayView<'_, T, D>) -> Result<Array<f32, D>> {
    let (low, high) = extremes(&map)?;
    let largest = high.max(-low);
    Ok(map.mapv(|value| if largest > 0.0 { (value.into() / largest) as f32 } else { 0.0 }))
}

/// One sample between fixed bounds: `low` becomes 0, `high` 1, values outside are clamped; for maps that are compared.
///
/// # Errors
/// If a value is NaN or infinite, or `low < high` does not hold.
pub fn within<T: Into<f64> + Copy, D: Dimension>(
    map: ArrayView<'_, T, D>,
    low: f64,
    high: f64,
) -> Result<Array<f32, D>> {
    if !(low < high && (high - low).is_finite()) {
        bail!(option, "impossible bounds {low},{high}; expected two finite numbers, the lower first");
    }
    extremes(&map)?;
    Ok(map.mapv(|value| ((value.into() - low) / (high - low)).clamp(0.0, 1.0) as f32))
}

/// One sample with its outliers lowered to the `percentile`-th percentile, 0..=100.
///
/// Percentiles are interpolated linearly, as NumPy's. If `signed`, the percentile is that of the magnitudes, and both
/// large positive and large negative values are brought to it; else only values above it change.
///
/// # Errors
/// If a value is NaN or infinite, or the percentile is not in 0..=100.
pub fn clip_percentile<T: Into<f64> + Copy, D: Dimension>(
    map: ArrayView<'_, T, D>,
    percentile: f64,
    signed: bool,
) -> Result<Array<f64, D>> {
    if !(0.0..=100.0).contains(&percentile) {
        bail!(option, "impossible percentile {percentile}; expected 0 to 100");
    }
    extremes(&map)?;
    let map = map.mapv(Into::into);
    if map.is_empty() || percentile == 100.0 {
        return Ok(map);
    }
    let mut sorted: Vec<f64> = map.iter().map(|&value| if signed { value.abs() } else { value }).collect();
    sorted.sort_by(f64::total_cmp);
    let position = percentile / 100.0 * (sorted.len() - 1) as f64;
    let (below, share) = (position.floor() as usize, position.fract());
    let above = (below + 1).min(sorted.len() - 1);
    let bound = sorted[below] + share * (sorted[above] - sorted[below]);
    Ok(map.mapv_into(|value| if signed { value.clamp(-bound, bound) } else { value.min(bound) }))
}

/// A function of one sample applied to each along the leading batch axis: `[n, ...]` becomes `[n, ...]`.
///
/// ```
/// use ouzel::image::{min_max, per_sample};
/// let maps = ndarray::array![[0.0f32, 10.0], [5.0, 5.0]];
/// let heatmaps = per_sample(maps.view(), |map| min_max(map))?;
/// assert_eq!(heatmaps, ndarray::array![[0.0, 1.0], [0.0, 0.0]]);
/// # Ok::<(), ouzel::Error>(())
/// ```
///
/// # Errors
/// The first error of a sample, with its index; or if a sample's shape changes.
pub fn per_sample<T, D: RemoveAxis>(
    maps: ArrayView<'_, T, D>,
    mut sample: impl FnMut(ArrayView<'_, T, D::Smaller>) -> Result<Array<f32, D::Smaller>>,
) -> Result<Array<f32, D>> {
    let mut results = Array::zeros(maps.raw_dim());
    for (index, (map, mut result)) in maps.axis_iter(Axis(0)).zip(results.axis_iter_mut(Axis(0))).enumerate()
    {
        let found = sample(map).context(|| format!("sample {index}"))?;
        if found.shape() != result.shape() {
            bail!(
                shape,
                "sample {index}: expected the shape {:?}, found {:?}",
                result.shape(),
                found.shape()
            );
        }
        result.assign(&found);
    }
    Ok(results)
}

/// The smallest and the largest value, (0, 0) if there is none; an error if one is not finite.
fn extremes<T: Into<f64> + Copy, D: Dimension>(map: &ArrayView<'_, T, D>) -> Result<(f64, f64)> {
    let mut extremes: Option<(f64, f64)> = None;
    for (index, &value) in map.iter().enumerate() {
        let value = value.into();
        if !value.is_finite() {
            return Err(not_finite(map, index, value));
        }
        extremes = Some(extremes.map_or((value, value), |(low, high)| (low.min(value), high.max(value))));
    }
    let (low, high) = extremes.unwrap_or_default();
    if !(high - low).is_finite() {
        bail!(
            input,
            "the map's values span {low} to {high}, too far to be scaled; divide the map by a large number"
        );
    }
    Ok((low, high))
}

/// The error of a map whose `index`-th element is the first that is not finite.
fn not_finite<T: Into<f64> + Copy, D: Dimension>(
    map: &ArrayView<'_, T, D>,
    index: usize,
    value: f64,
) -> Error {
    let bad = map.iter().filter(|&&value| !value.into().is_finite()).count();
    let mut rest = index;
    let mut position: Vec<usize> = Vec::new();
    for &length in map.shape().iter().rev() {
        position.insert(0, rest % length);
        rest /= length;
    }
    Error::input(format!(
        "{bad} of the map's {} values are not finite, the first is {value} at {position:?}; \
         look for overflow in the network, or for NaN in its weights or input",
        map.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, Array2, array};

    fn assert_close<T: Into<f64> + Copy>(found: &Array1<T>, expected: &Array1<f64>) {
        assert_eq!(found.dim(), expected.dim());
        for (&value, &wanted) in found.iter().zip(expected) {
            let value = value.into();
            assert!((value - wanted).abs() < 1e-6, "found {value}, expected {wanted}");
        }
    }

    #[test]
    fn keras_vis_golden_vectors() {
        // Channel maxima of a worked gradient and their min-max, from keras-vis's formula.
        let found = min_max(array![2.0f32, 0.5, 0.0, 4.0].view()).unwrap();
        assert_close(&found, &array![0.5, 0.125, 0.0, 1.0]);
        let found = min_max(array![1.0f32, 1e7, 1e7, 1.0].view()).unwrap();
        assert_close(&found, &array![0.0, 1.0, 1.0, 0.0]);
        let tiny = min_max(array![0.0f64, 1e-8, 2e-8].view()).unwrap();
        assert_close(&tiny, &array![0.0, 0.083_333, 0.166_667]);
    }

    #[test]
    fn constant_map() {
        for value in [0.0f32, -3.0, f32::MAX] {
            assert_eq!(
                min_max(Array2::from_elem((2, 3), value).view()).unwrap(),
                Array2::<f32>::zeros((2, 3))
            );
        }
        assert_eq!(symmetric(Array1::<f32>::zeros(3).view()).unwrap(), Array1::<f32>::zeros(3));
        assert_eq!(symmetric(array![-2.0f32].view()).unwrap(), array![-1.0f32]);
        assert!(min_max(Array1::<f32>::zeros(0).view()).unwrap().is_empty());
    }

    #[test]
    fn not_finite_values() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let map = array![[0.0, 1.0, 2.0], [3.0, bad, bad]];
            for scale in [Scale::MinMax, Scale::Symmetric] {
                let error = Normalize::default().scale(scale).apply(map.view()).unwrap_err();
                assert!(error.is_input());
                assert!(error.to_string().contains("2 of the map's 6 values"), "{error}");
                assert!(error.to_string().contains("at [1, 1]"), "{error}");
            }
        }
        assert!(min_max(array![-1e308, 1e308f64].view()).unwrap_err().is_input());
    }

    #[test]
    fn extreme_values_stay_in_range() {
        let map = array![f32::MIN, 0.0, f32::MAX];
        assert_eq!(min_max(map.view()).unwrap(), array![0.0, 0.5, 1.0]);
        assert_eq!(symmetric(map.view()).unwrap(), array![-1.0, 0.0, 1.0]);
        assert_eq!(symmetric(array![f32::from_bits(1), 0.0].view()).unwrap(), array![1.0, 0.0]);
    }

    #[test]
    fn percentiles_are_numpys() {
        // numpy.percentile([0, 1, 2, 3, 10], 90) = 7.2.
        let map = array![10.0f32, 0.0, 2.0, 1.0, 3.0];
        let clipped = clip_percentile(map.view(), 90.0, false).unwrap();
        assert_close(&clipped, &array![7.2, 0.0, 2.0, 1.0, 3.0]);
        let signed = clip_percentile(array![-10.0f32, 0.0, 2.0, -1.0, 3.0].view(), 90.0, true).unwrap();
        assert_close(&signed, &array![-7.2, 0.0, 2.0, -1.0, 3.0]);
        assert_eq!(clip_percentile(map.view(), 100.0, false).unwrap(), map.mapv(f64::from));
        assert!(clip_percentile(map.view(), 101.0, false).unwrap_err().is_option());
        assert!(clip_percentile(map.view(), f64::NAN, false).unwrap_err().is_option());
        let options = Normalize::default().percentile(50.0);
        assert_close(&options.apply(map.view()).unwrap(), &array![1.0, 0.0, 1.0, 0.5, 1.0]);
    }

    #[test]
    fn fixed_bounds() {
        assert_eq!(within(array![-1.0f32, 1.0, 5.0].view(), 0.0, 2.0).unwrap(), array![0.0, 0.5, 1.0]);
        assert!(within(array![1.0f32].view(), 1.0, 1.0).unwrap_err().is_option());
    }

    #[test]
    fn a_batch_is_its_samples() {
        let maps = array![[[1.0f32, 2.0], [3.0, 4.0]], [[7.0, 7.0], [7.0, 7.0]], [[0.0, 0.0], [0.0, -9.0]]];
        let batch = per_sample(maps.view(), |map| min_max(map)).unwrap();
        for (index, map) in maps.outer_iter().enumerate() {
            assert_eq!(batch.index_axis(Axis(0), index), min_max(map).unwrap());
        }
        let bad = array![[0.0f32], [f32::NAN]];
        assert!(
            per_sample(bad.view(), |map| min_max(map)).unwrap_err().to_string().starts_with("sample 1: ")
        );
    }
}
