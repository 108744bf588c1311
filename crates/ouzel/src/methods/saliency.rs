//! Saliency: the gradient of a target with respect to the input, or to an inner tensor.

use crate::attribution::Attribution;
use crate::backprop::{Gradient, gradient};
use crate::compile::Precision;
use crate::error::Result;
use crate::explanation::{
    AttributionGraph, Explainer, GraphExplainer, GraphMethod, LossGraph, Method, Settings, Task,
};
use crate::input::Input;
use crate::losses::{ActivationMaximization, WeightedLoss};
use crate::methods::MethodEntry;
use crate::model::{Model, TensorRef};
use crate::options::{BACKPROP_MODIFIER, GRAD_MODIFIER, KEEPDIMS, RECTIFIERS, WRT, WRT_CHANNEL_AXIS};
use crate::rules::BackpropModifier;
use crate::target::Filters;
use ndarray::{ArrayD, Axis};

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "saliency",
    about: "the gradient of the target: where a small change of the input changes the score most",
    unit: "units of the target per unit of the preprocessed input",
    cost: "1 forward and 1 backward pass",
    source: "Simonyan et al. 2014, Deep inside convolutional networks; \
             guided: Springenberg et al. 2015, Striving for simplicity; \
             rectified: Zeiler and Fergus 2014, Visualizing and understanding convolutional networks",
    criticism: "plain gradients are noisy, and vanish where the score is saturated although the input matters \
                (Sundararajan et al. 2017); guided and rectified maps resemble edge detectors and depend little on the \
                class (Adebayo et al. 2018, Nie et al. 2018)",
    options: &[BACKPROP_MODIFIER, RECTIFIERS, GRAD_MODIFIER, WRT, WRT_CHANNEL_AXIS, KEEPDIMS],
    new: |options| {
        Ok(Box::new(Saliency {
            backprop_modifier: options.backprop_modifier()?,
            settings: options.settings(Settings::default().grad_modifier)?,
        }))
    },
};

/// The gradient of the weighted sum of losses; the defaults are keras-vis's.
///
/// **Formula.** `∂ Σ weightᵢ · lossᵢ / ∂ tensor`, for each sample on its own.
///
/// **Shapes.** The attribution has the shape of the tensor, batch axis included.
///
/// **Units.** Target units per unit of the tensor (of the preprocessed input).
///
/// **Known criticism.** Plain gradients are noisy, and saturate where the target does not change locally although the
/// input matters (Sundararajan et al. 2017). Bright means that the target would change, not that the pixel speaks for
/// it.
///
/// **Source.** Simonyan et al. 2014, "Deep inside convolutional networks".
///
/// ```
/// use ouzel::{GradModifier, Method, Saliency, rules::BackpropModifier};
/// let what_lowers_it = Saliency::default()
///     .backprop_modifier(BackpropModifier::guided())
///     .grad_modifier(GradModifier::Negate);
/// # let _ = what_lowers_it;
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Saliency {
    /// How the backward pass treats activation functions; default: their true gradient.
    pub backprop_modifier: BackpropModifier,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Saliency {
    /// How the backward pass treats activation functions.
    #[must_use]
    pub fn backprop_modifier(mut self, modifier: BackpropModifier) -> Self {
        self.backprop_modifier = modifier;
        self
    }
}

impl Method for Saliency {
    fn entry(&self) -> &'static MethodEntry {
        &ENTRY
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn settings_mut(&mut self) -> &mut Settings {
        &mut self.settings
    }

    fn as_graph(&self) -> Option<&dyn GraphMethod> {
        Some(self)
    }

    fn prepare(&self, task: &Task<'_>) -> Result<Box<dyn Explainer>> {
        GraphExplainer::boxed(self, task)
    }
}

impl GraphMethod for Saliency {
    fn build(&self, losses: LossGraph<'_>) -> Result<AttributionGraph> {
        let LossGraph { graph, total, explained, channel_axis, .. } = losses;
        let rules = self.backprop_modifier.rules();
        let Gradient { graph, values, coverage, .. } = gradient(graph, total, &[explained], rules)?;
        let warnings = self.backprop_modifier.left_alone(&graph, &coverage);
        let known = AttributionGraph::new(graph, values[0], explained, channel_axis);
        Ok(AttributionGraph { coverage, warnings, ..known })
    }
}

/// A saliency map as keras-vis returns it, and the attribution behind it.
#[derive(Clone, Debug)]
pub struct SaliencyMap {
    /// The map, scaled to 0…1: spatial axes alone for one sample, with a leading axis for several.
    pub map: ArrayD<f32>,
    /// The raw gradient and what is known about it.
    pub attribution: Attribution,
}

/// keras-vis's `visualize_saliency`: which parts of the input change the activation of filters of a layer.
///
/// A positive gradient raises the activation. Without a modifier of the gradient, its absolute value is shown.
///
/// ```no_run
/// use ouzel::{Model, Saliency, visualize_saliency};
/// let model = Model::load("network.onnx")?;
/// let picture = ndarray::Array4::<f32>::zeros((1, 3, 224, 224));
/// let saliency = visualize_saliency(&model, "logits", 20, &picture.into(), &Saliency::default())?;
/// println!("{:?}", saliency.map.shape()); // [224, 224]
/// # Ok::<(), ouzel::Error>(())
/// ```
///
/// # Errors
/// As [`Method::attribute`].
pub fn visualize_saliency(
    model: &Model,
    layer_idx: impl Into<TensorRef>,
    filter_indices: impl Into<Filters>,
    seed_input: &Input,
    options: &Saliency,
) -> Result<SaliencyMap> {
    let losses = [WeightedLoss::new(ActivationMaximization::new(layer_idx, filter_indices), -1.0)];
    visualize_saliency_with_losses(model, &losses, seed_input, options)
}

/// keras-vis's `visualize_saliency_with_losses`: which parts of the input change a weighted sum of losses.
///
/// As in keras-vis, convolutions are direct: `Precision::F32` means [`Precision::F32Direct`] here.
///
/// # Errors
/// As [`Method::attribute`].
pub fn visualize_saliency_with_losses(
    model: &Model,
    losses: &[WeightedLoss],
    seed_input: &Input,
    options: &Saliency,
) -> Result<SaliencyMap> {
    let mut options = options.clone();
    if options.settings.precision == Precision::F32 {
        options.settings.precision = Precision::F32Direct;
    }
    let attribution = options.attribute(model, losses, seed_input)?;
    let maps = attribution.maps(&options.settings.grad_modifier, options.settings.keep_dims)?;
    let map = if maps.ndim() > 0 && maps.shape()[0] == 1 { maps.index_axis_move(Axis(0), 0) } else { maps };
    Ok(SaliencyMap { map, attribution })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::dim::Dim;
    use crate::graph::{Fact, ValueId};
    use crate::ops::convolution::Conv;
    use crate::ops::window::Window;
    use crate::tensor::{DType, Tensor};

    const SCENE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");

    /// Pictures that are neither regular nor random.
    fn pictures(samples: usize) -> Tensor {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 24) as f32
        };
        Tensor::from(ArrayD::from_shape_simple_fn(vec![samples, 3, 128, 128], &mut next))
    }

    /// A saliency made ready.
    fn prepare(
        saliency: &Saliency,
        losses: &[WeightedLoss],
        samples: usize,
        also: &[ValueId],
    ) -> Box<dyn Explainer> {
        let model = Model::load(SCENE).unwrap();
        let shapes = [(model.main_input(), vec![samples, 3, 128, 128])];
        saliency.prepare(&Task { model: &model, losses, shapes: &shapes, also }).unwrap()
    }

    fn losses(layer: &str, filters: Filters) -> [WeightedLoss; 1] {
        [WeightedLoss::new(ActivationMaximization::new(layer, filters), -1.0)]
    }

    /// A strided convolution and a pooling of pictures of this height and width, and the mean over positions.
    fn strided(height: Dim, width: Dim) -> Model {
        let builder = Builder::default();
        let shape = [Dim::symbol("batch"), 2.into(), height, width];
        let x = builder.input("x", Fact::new(DType::F32, shape.into_iter().collect()));
        let weights = |shape: &[usize]| {
            let count = shape.iter().product();
            let values = (0..count).map(|index: usize| ((index * 37 % 11) as f32 - 5.0) / 7.0).collect();
            builder.constant(ArrayD::from_shape_vec(shape, values).unwrap())
        };
        let window = || Window::plain(2).with_strides([2, 2]);
        let y = builder.apply(Conv { window: window(), group: 1 }, &[x, weights(&[3, 2, 3, 3])]);
        let y = builder.apply(Conv { window: window(), group: 1 }, &[y * y, weights(&[4, 3, 2, 2])]);
        let y = y.reduce_mean([2, 3], false).id().unwrap();
        let mut graph = builder.finish().unwrap();
        graph.set_name(y, "y");
        graph.outputs = vec![y];
        Model::of_graph(graph)
    }

    #[test]
    fn lengths_that_the_file_leaves_open_are_those_of_the_input() {
        let open = strided(Dim::symbol("height"), Dim::symbol("width"));
        for (height, width) in [(9, 12), (10, 7), (8, 8)] {
            let fixed = strided((height as i64).into(), (width as i64).into());
            let x = ArrayD::from_shape_fn(vec![2, 2, height, width], |at| {
                (at[1] + at[2] * at[3]) as f32 / 50.0 - 0.4
            });
            let input = Input::from(x);
            for options in [Saliency::default(), Saliency::default().precision(Precision::F64)] {
                let of =
                    |model: &Model| options.attribute(model, &losses("y", 1.into()), &input).unwrap().raw;
                assert_eq!(of(&open), of(&fixed), "{height} x {width}");
            }
        }
    }

    #[test]
    fn filters_that_are_named_later_give_the_same_bits() {
        let model = Model::load(SCENE).unwrap();
        let input = pictures(2);
        let lists: [(&str, &[Filters]); 4] = [
            ("animal_logits", &[3.into(), 0.into(), Filters::PerSample(vec![vec![1], vec![4]])]),
            ("animal", &[5.into(), 2.into()]),
            ("conv3", &[[7, 7].into(), [0, 63].into()]),
            ("relu4", &[95.into()]),
        ];
        for modifier in [BackpropModifier::none(), BackpropModifier::guided()] {
            let saliency = Saliency::default().backprop_modifier(modifier);
            for (layer, each) in &lists {
                let count = match &each[0] {
                    Filters::List(list) => list.len(),
                    _ => unreachable!(),
                };
                let also = [model.find(*layer).unwrap()];
                let late = prepare(&saliency, &losses(layer, Filters::Late(count)), 2, &also);
                let mut forward = late.start(std::slice::from_ref(&input)).unwrap();
                for filters in *each {
                    let now = prepare(&saliency, &losses(layer, filters.clone()), 2, &also);
                    let mut now = now.start(std::slice::from_ref(&input)).unwrap();
                    let expected = now.explain(None).unwrap();
                    let found = forward.explain(Some(filters.clone())).unwrap();
                    assert_eq!(found.raw, expected.raw, "{layer} {filters}");
                    assert_eq!(forward.also(), now.also());
                    for (found, expected) in found.losses[0].weighted.iter().zip(&expected.losses[0].weighted)
                    {
                        assert!((found - expected).abs() <= 1e-5 * expected.abs(), "{layer} {filters}");
                    }
                }
            }
        }
    }

    #[test]
    fn filters_that_are_named_later_in_float64() {
        let model = Model::load(SCENE).unwrap();
        let saliency = Saliency::default().precision(Precision::F64);
        let also = [model.find("animal").unwrap()];
        let late = prepare(&saliency, &losses("animal_logits", Filters::Late(1)), 1, &also);
        let mut forward = late.start(&[pictures(1)]).unwrap();
        assert_eq!(forward.also()[0].shape(), [1, 6]);
        for class in [2, 4] {
            let now = prepare(&saliency, &losses("animal_logits", class.into()), 1, &also);
            let mut now = now.start(&[pictures(1)]).unwrap();
            let found = forward.explain(Some(class.into())).unwrap();
            assert_eq!(found.raw, now.explain(None).unwrap().raw);
            assert_eq!(forward.also(), now.also());
        }
    }

    #[test]
    fn the_result_does_not_depend_on_the_memory_budget() {
        let model = Model::load(SCENE).unwrap();
        let input = pictures(5);
        let shapes = [(model.main_input(), vec![5, 3, 128, 128])];
        let also = [model.find("animal").unwrap()];
        for precision in [Precision::F32, Precision::F64] {
            let saliency = Saliency::default().precision(precision);
            let whole = prepare(&saliency, &losses("animal_logits", 2.into()), 5, &also);
            let expected = whole.start(std::slice::from_ref(&input)).unwrap().explain(None).unwrap();
            let need = whole.memory_bytes();
            assert!(need > 5 * 16 * 64 * 64 * 4, "{need}");
            let mut sizes = Vec::new();
            for budget in [usize::MAX, need, need - 1, need / 2, need / 5, 1] {
                let saliency = saliency.clone().memory_bytes(budget);
                let losses = losses("animal_logits", 2.into());
                let task = Task { model: &model, losses: &losses, shapes: &shapes, also: &also };
                let explanation = saliency.explanation(&task).unwrap();
                let size = explanation.samples_at_once();
                let parts = explanation.parts(std::slice::from_ref(&input)).unwrap();
                assert!(size == 1 || parts[0].0.memory_bytes() <= budget, "{size} for {budget}");
                sizes.push(size);
                let found = saliency.attribute(&model, &losses, &input.clone().into()).unwrap();
                assert_eq!(found.raw, expected.raw, "{size} at once");
                assert_eq!(found.losses[0].weighted, expected.losses[0].weighted);
                assert_eq!(found.warnings, expected.warnings);
            }
            assert_eq!((sizes[0], sizes[1], sizes[5]), (5, 5, 1));
            assert!(sizes.is_sorted_by(|a, b| a >= b) && sizes.contains(&2), "{sizes:?}");
        }
        // Filters for each sample are not taken apart.
        let own =
            losses("animal_logits", Filters::PerSample(vec![vec![0], vec![1], vec![2], vec![3], vec![4]]));
        let saliency = Saliency::default();
        let expected = saliency.attribute(&model, &own, &input.clone().into()).unwrap();
        let found = saliency.memory_bytes(1).attribute(&model, &own, &input.into()).unwrap();
        assert_eq!(found.raw, expected.raw);
    }

    #[test]
    fn filters_that_do_not_fit_the_plan() {
        let plan =
            |filters: Filters| prepare(&Saliency::default(), &losses("animal_logits", filters), 2, &[]);
        let input = [pictures(2)];
        let late = plan(Filters::Late(1));
        let mut forward = late.start(&input).unwrap();
        assert!(forward.explain(None).unwrap_err().is_target());
        for wrong in [[0, 1].into(), Filters::All, Filters::PerSample(vec![vec![1]]), Filters::Late(1)] {
            assert!(forward.explain(Some(wrong.clone())).unwrap_err().is_target(), "{wrong}");
        }
        let error = forward.explain(Some(6.into())).unwrap_err().to_string();
        assert!(error.contains("filters 6") && error.contains("out of range"), "{error}");
        // A mistake does no harm to what comes after it.
        let now = plan(5.into());
        let mut now = now.start(&input).unwrap();
        let expected = now.explain(None).unwrap().raw;
        assert_eq!(forward.explain(Some(5.into())).unwrap().raw, expected);
        assert!(now.explain(Some(5.into())).is_err());
        assert_eq!(now.explain(None).unwrap().raw, expected);
    }
}
