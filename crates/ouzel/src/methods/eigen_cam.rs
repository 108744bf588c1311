//! Eigen-CAM: the first principal component of a layer, whatever the target.

use crate::error::Result;
use crate::explanation::{Explainer, Method, Settings, Task};
use crate::methods::MethodEntry;
use crate::methods::cam::arrays::{LayerExplainer, LayerSample, Weigh};
use crate::methods::cam::{CAM_LAYER, CamLayers, CamProfile, UPSAMPLING};
use crate::model::TensorRef;
use ndarray::{Array1, Array2, ArrayD, Axis, IxDyn};

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "eigen_cam",
    about: "what a layer shows most of: its first principal component, the same for every target",
    unit: "units of the layer; only their ratio matters",
    cost: "1 forward pass",
    source: "Muhammad and Yeasin 2020, Eigen-CAM: class activation map using principal components",
    criticism: "it does not know the target; the sign of a principal component means nothing",
    options: &[CAM_LAYER, UPSAMPLING],
    new: |options| {
        let layers = CamLayers::new(options)?;
        let settings = layers.settings();
        Ok(Box::new(EigenCam { layers, settings }))
    },
};

/// The first principal component of a layer.
///
/// **Formula.** `(A - mean A) · v` at each position, with `v` the direction in the space of the channels in which the
/// positions of `A` differ most; what is below 0 is cut off.
///
/// **Shapes.** `[samples, positions…]`.
///
/// **Units.** Units of the layer; only the ratio of values matters.
///
/// **Conventions.** The sign of `v` is chosen so that the value of largest magnitude is positive.
///
/// **Known criticism.** It does not know the target.
///
/// **Source.** Muhammad and Yeasin 2020, "Eigen-CAM".
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{EigenCam, Method, Model};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let map = EigenCam::default().layers(["relu4"]).attribute(&model, &losses, &picture.into())?;
/// assert_eq!(map.layer_map.unwrap().layers, ["relu4"]);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EigenCam {
    /// Which layers, and by whose conventions.
    pub layers: CamLayers,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for EigenCam {
    fn default() -> Self {
        let layers = CamLayers::default();
        Self { settings: layers.settings(), layers }
    }
}

impl EigenCam {
    /// The layers that the map is made of.
    #[must_use]
    pub fn layers<L: Into<TensorRef>>(mut self, layers: impl IntoIterator<Item = L>) -> Self {
        self.layers.layers = layers.into_iter().map(Into::into).collect();
        self
    }

    /// Whose conventions hold.
    #[must_use]
    pub fn profile(mut self, profile: CamProfile) -> Self {
        self.layers.profile = profile;
        self.settings.grad_modifier = self.layers.settings().grad_modifier;
        self
    }
}

impl Method for EigenCam {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn prepare(&self, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        LayerExplainer::boxed(self, &self.layers, task, |_| Ok(Box::new(PrincipalComponent)))
    }
}

#[derive(Debug)]
struct PrincipalComponent;

impl Weigh for PrincipalComponent {
    fn passes(&self, _: usize) -> usize {
        0
    }

    fn map(&self, _: usize, sample: &mut LayerSample<'_>) -> Result<ArrayD<f64>> {
        let shape = sample.activation.shape().to_vec();
        let count = shape[1..].iter().product();
        let elements = sample.activation.iter().copied().collect();
        let channels = Array2::from_shape_vec((shape[0], count), elements)
            .expect("invariant: as many elements as the shape says");
        let component = first_component(channels);
        Ok(component
            .into_shape_with_order(IxDyn(&shape[1..]))
            .expect("invariant: a number for each position"))
    }
}

/// The positions of `[channels, positions]` along the direction in which they differ most.
fn first_component(channels: Array2<f64>) -> Array1<f64> {
    let Some(means) = channels.mean_axis(Axis(1)) else { return Array1::zeros(channels.ncols()) };
    let centered = channels - means.insert_axis(Axis(1));
    // Of the two matrices of products that have the same largest eigenvalue, the smaller one.
    let by_position = centered.ncols() <= centered.nrows();
    let component = match by_position {
        true => {
            let products = centered.t().dot(&centered);
            let direction = first_eigenvector(&products);
            let variance = direction.dot(&products.dot(&direction));
            direction * variance.max(0.0).sqrt()
        }
        false => first_eigenvector(&centered.dot(&centered.t())).dot(&centered),
    };
    let most =
        component.iter().fold(0.0f64, |most, &value| if value.abs() > most.abs() { value } else { most });
    if most < 0.0 { -component } else { component }
}

/// The eigenvector of the largest eigenvalue of a symmetric matrix without negative eigenvalues: squared again and again,
/// the matrix becomes the product of that vector with itself.
fn first_eigenvector(matrix: &Array2<f64>) -> Array1<f64> {
    let scaled = |matrix: Array2<f64>| {
        let trace = matrix.diag().sum();
        if trace > 0.0 { matrix / trace } else { matrix }
    };
    let mut power = scaled(matrix.clone());
    for _ in 0..64 {
        let squared = scaled(power.dot(&power));
        let change = squared.iter().zip(&power).fold(0.0f64, |most, (a, b)| most.max((a - b).abs()));
        power = squared;
        if change < 1e-15 {
            break;
        }
    }
    let norm = |column: &ndarray::ArrayView1<'_, f64>| column.dot(column);
    let longest = power.columns().into_iter().max_by(|a, b| norm(a).total_cmp(&norm(b)));
    match longest {
        Some(column) if norm(&column) > 0.0 => &column / norm(&column).sqrt(),
        _ => Array1::zeros(matrix.nrows()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr2;

    #[test]
    fn a_matrix_of_one_direction_is_that_direction() {
        // Positions 1, 2 and 6 times (3, -4), whose mean is 3 times it.
        let channels = arr2(&[[3.0, 6.0, 18.0], [-4.0, -8.0, -24.0]]);
        let expected = [-10.0, -5.0, 15.0];
        for (found, expected) in first_component(channels).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-9, "found {found}, expected {expected}");
        }
        let constant = Array2::from_elem((3, 2), 7.0);
        assert_eq!(first_component(constant), Array1::<f64>::zeros(2));
    }

    #[test]
    fn more_channels_than_positions_give_the_same() {
        let wide = Array2::from_shape_fn((3, 8), |(row, column)| {
            ((3 * row * row + 2 * column * column + row * column) % 13) as f64
        });
        // Channels that are zero change nothing, but make the other product the smaller one.
        let mut tall = Array2::zeros((12, 8));
        tall.outer_iter_mut().zip(wide.outer_iter()).for_each(|(mut row, other)| row.assign(&other));
        for (a, b) in first_component(wide).iter().zip(&first_component(tall)) {
            assert!((a - b).abs() < 1e-9, "{a} {b}");
        }
    }
}
