//! keras-vis's activation maximization, step by step as it computes it.

use crate::compile::Precision;
use crate::error::{Context, Result, bail};
use crate::explanation::{Explainer, Method, Task, channel_axis_of};
use crate::grad_modifiers::GradModifier;
use crate::losses::{ActivationMaximization, LpNorm, TotalVariation, WeightedLoss};
use crate::methods::saliency::Saliency;
use crate::model::{Model, TensorRef};
use crate::rules::BackpropModifier;
use crate::target::Filters;
use crate::tensor::Tensor;
use ndarray::{ArrayD, Axis, IxDyn};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::fmt;
use std::sync::Arc;

/// keras-vis's small constant.
const EPSILON: f64 = 1e-7;

/// What is done to the input before and after each iteration.
pub trait InputModifier: fmt::Debug + Send + Sync {
    /// Before the losses are computed: the input `[1, …]` as it will be from then on.
    fn before(&self, input: ArrayD<f64>, random: &mut ChaCha8Rng) -> ArrayD<f64>;

    /// After the input has been changed.
    fn after(&self, input: ArrayD<f64>) -> ArrayD<f64> {
        input
    }
}

/// Moves the input by a random number of places along each axis of positions.
///
/// **Conventions.** As keras-vis: nothing is moved back, numbers below 1 are shares of the axis, rounded down, and what
/// leaves on one side enters on the other as in SciPy's `shift` with mode `wrap`, whose period is one less than the
/// length. The random numbers are not keras-vis's.
#[derive(Clone, Debug, PartialEq)]
pub struct Jitter {
    /// The most places: one number for all axes of positions, or one for each.
    pub most: Vec<f64>,
    /// The channel axis of the input, which is not moved.
    pub channel_axis: Option<usize>,
}

impl InputModifier for Jitter {
    fn before(&self, input: ArrayD<f64>, random: &mut ChaCha8Rng) -> ArrayD<f64> {
        let axes = (1..input.ndim()).filter(|&axis| Some(axis) != self.channel_axis);
        let mut moved = input;
        for (place, axis) in axes.enumerate() {
            let length = moved.len_of(Axis(axis));
            let Some(&most) = self.most.get(place).or(self.most.last()) else { return moved };
            let most = if most < 1.0 { most * length as f64 } else { most } as i64;
            let by = random.random_range(-most..=most);
            let places: Vec<usize> = (0..length).map(|place| wrapped(place as i64 - by, length)).collect();
            moved = moved.select(Axis(axis), &places);
        }
        moved
    }
}

/// Where SciPy's `shift` with mode `wrap` reads: the first and the last element count as one.
fn wrapped(place: i64, length: usize) -> usize {
    let period = length as i64 - 1;
    match place {
        _ if period <= 0 => 0,
        _ if place < 0 => (place + period * (-place / period + 1)) as usize,
        _ if place > period => (place - period * (place / period)) as usize,
        _ => place as usize,
    }
}

/// An iteration of [`visualize_activation`], before the input is changed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Iteration<'i> {
    /// Its number, from 0 on.
    pub index: usize,
    /// The losses: name and weighted value.
    pub losses: &'i [(String, f64)],
    /// Their sum.
    pub total: f64,
    /// The gradient of the sum, divided by its L2 norm, and modified.
    pub gradient: &'i ArrayD<f64>,
    /// The input, batch axis included.
    pub input: &'i ArrayD<f64>,
}

/// How an activation is maximized; the defaults are keras-vis's.
///
/// **Iteration.** `g` is the gradient of the losses over its L2 norm, modified; then
/// `cache ← 0.95 cache + 0.05 g²`, `x ← x - g / √(cache + 1e-7)`: RMSProp without a learning rate.
///
/// **Result.** The input *after* the step from the iteration with the lowest losses, as in keras-vis, made a picture
/// by [`deprocess`].
///
/// **Known criticism.** Without strong priors the result is high-frequency noise that raises the activation and looks
/// like nothing; [`FeatureVisualization`](crate::visualization::FeatureVisualization) has better ones.
///
/// **Source.** Erhan et al. 2009, "Visualizing higher-layer features of a deep network"; Simonyan et al. 2014, "Deep
/// inside convolutional networks"; Mahendran and Vedaldi 2015 for the total variation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Maximization {
    /// What the result is stretched to, and the mean and spread of random seeds; default 0 to 255.
    pub input_range: (f64, f64),
    /// How the backward pass treats activation functions.
    pub backprop_modifier: BackpropModifier,
    /// What is done to the normalized gradient; default nothing.
    pub grad_modifier: GradModifier,
    /// The weight of the activation; default 1.
    pub act_max_weight: f64,
    /// The weight of [`LpNorm`]; default 10.
    pub lp_norm_weight: f64,
    /// The weight of [`TotalVariation`]; default 10.
    pub tv_weight: f64,
    /// How many iterations; default 200.
    pub max_iter: usize,
    /// What is done to the input before and after each iteration, in order before and in reverse order after; default
    /// nothing.
    pub input_modifiers: Vec<Arc<dyn InputModifier>>,
    /// The shape of the input without the batch axis, for models that leave it open.
    pub shape: Option<Vec<usize>>,
    /// The seed of random inputs and of modifiers.
    pub seed: u64,
    /// What is computed in; default float32 with the direct convolution.
    pub precision: Precision,
}

impl Default for Maximization {
    fn default() -> Self {
        Self {
            input_range: (0.0, 255.0),
            backprop_modifier: BackpropModifier::none(),
            grad_modifier: GradModifier::None,
            act_max_weight: 1.0,
            lp_norm_weight: 10.0,
            tv_weight: 10.0,
            max_iter: 200,
            input_modifiers: Vec::new(),
            shape: None,
            seed: 0,
            precision: Precision::F32Direct,
        }
    }
}

/// What [`visualize_activation`] gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MaximizedActivation {
    /// The picture within the input range: channels last, without batch axis.
    pub picture: ArrayD<f64>,
    /// The input that it was made of, batch axis included.
    pub input: ArrayD<f64>,
    /// The sum of the losses in the iteration before it.
    pub loss: f64,
    /// The gradient of the last iteration.
    pub gradient: ArrayD<f64>,
}

/// keras-vis's `visualize_activation`: an input that raises the activation of filters of a layer.
///
/// Without a seed input it starts from noise around the middle of the input range. `watch` sees every iteration.
///
/// # Errors
/// If a layer or filter does not exist, if an op on the way is not supported or has no gradient, if the shape of the
/// input is not known, or if the losses are not finite.
///
/// ```
/// use ouzel::Model;
/// use ouzel::visualization::{Maximization, visualize_activation};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let mut options = Maximization::default();
/// options.max_iter = 3;
/// options.input_range = (0.0, 1.0);
/// let mut losses = Vec::new();
/// let made = visualize_activation(&model, "animal_logits", 2, None, &options, |it| losses.push(it.total))?;
/// assert_eq!((made.picture.shape(), losses.len()), (&[128, 128, 3][..], 3));
/// # Ok::<(), ouzel::Error>(())
/// ```
pub fn visualize_activation(
    model: &Model,
    layer: impl Into<TensorRef>,
    filters: impl Into<Filters>,
    seed_input: Option<ArrayD<f64>>,
    options: &Maximization,
    watch: impl FnMut(&Iteration<'_>),
) -> Result<MaximizedActivation> {
    let losses = [
        WeightedLoss::new(ActivationMaximization::new(layer, filters), options.act_max_weight),
        WeightedLoss::new(LpNorm::default(), options.lp_norm_weight),
        WeightedLoss::new(TotalVariation::default(), options.tv_weight),
    ];
    visualize_activation_with_losses(model, &losses, seed_input, options, watch)
}

/// keras-vis's `visualize_activation_with_losses`: an input that lowers a weighted sum of losses.
///
/// # Errors
/// As [`visualize_activation`].
pub fn visualize_activation_with_losses(
    model: &Model,
    losses: &[WeightedLoss],
    seed_input: Option<ArrayD<f64>>,
    options: &Maximization,
    mut watch: impl FnMut(&Iteration<'_>),
) -> Result<MaximizedActivation> {
    let input = model.main_input();
    let fact = model.graph().fact(input);
    let rank = fact.rank();
    let channel_axis = channel_axis_of(fact, None, true)?;
    let mut random = ChaCha8Rng::seed_from_u64(options.seed);
    let mut x = match seed_input {
        Some(given) => seeded(given, rank, channel_axis, &known_lengths(model, options))?,
        None => {
            let shape = input_shape(model, options)?;
            noise(&shape, options.input_range, &mut random)
        }
    };
    if options.max_iter == 0 {
        bail!(option, "max_iter 0: expected 1 or more");
    }
    let saliency =
        Saliency::default().backprop_modifier(options.backprop_modifier.clone()).precision(options.precision);
    let shapes = [(input, x.shape().to_vec())];
    let explainer: Box<dyn Explainer> =
        saliency.prepare(&Task { model, losses, shapes: &shapes, also: &[] })?;
    let mut cache = ArrayD::<f64>::zeros(x.raw_dim());
    let mut gradient = cache.clone();
    let mut best: Option<(f64, ArrayD<f64>)> = None;
    for index in 0..options.max_iter {
        for modifier in &options.input_modifiers {
            x = modifier.before(x, &mut random);
        }
        let given = Tensor::from(x.clone()).cast(fact.dtype);
        let attribution =
            explainer.start(&[given])?.explain(None).context(|| format!("iteration {index}"))?;
        let values: Vec<(String, f64)> =
            (attribution.losses.iter()).map(|loss| (loss.name.clone(), loss.weighted.iter().sum())).collect();
        let total: f64 = values.iter().map(|(_, value)| value).sum();
        let raw = attribution.raw.to_f64();
        let norm = raw.iter().map(|value| value * value).sum::<f64>().max(1e-12).sqrt();
        gradient = options.grad_modifier.apply(raw / norm);
        watch(&Iteration { index, losses: &values, total, gradient: &gradient, input: &x });
        cache.zip_mut_with(&gradient, |cache, g| *cache = 0.95 * *cache + 0.05 * g * g);
        ndarray::azip!((x in &mut x, &g in &gradient, &cache in &cache) *x -= g / (cache + EPSILON).sqrt());
        for modifier in options.input_modifiers.iter().rev() {
            x = modifier.after(x);
        }
        if best.as_ref().is_none_or(|(lowest, _)| total < *lowest) {
            best = Some((total, x.clone()));
        }
    }
    let Some((loss, input)) = best else { bail!(internal, "no iteration has a loss") };
    let mut picture = deprocess(input.index_axis(Axis(0), 0).to_owned(), options.input_range);
    if let Some(axis) = channel_axis.filter(|&axis| axis + 1 < rank) {
        let axes: Vec<usize> = (0..rank - 1).filter(|&other| other + 1 != axis).chain([axis - 1]).collect();
        picture = picture.permuted_axes(axes).as_standard_layout().into_owned();
    }
    Ok(MaximizedActivation { picture, input, loss, gradient })
}

/// keras-vis's `deprocess_input`: a picture of usual contrast.
///
/// **Formula.** `(x - mean) / (std + 1e-7) · 0.1 + 0.5`, clipped to 0…1, and stretched to the range. The values are not
/// those that the network saw.
///
/// ```
/// let x = ndarray::arr1(&[0.0, 1.0, 2.0, 3.0]).into_dyn();
/// let picture = ouzel::visualization::deprocess(x, (0.0, 255.0));
/// assert!((picture[[0]] - 93.288).abs() < 1e-3 && (picture[[3]] - 161.712).abs() < 1e-3);
/// ```
pub fn deprocess(x: ArrayD<f64>, (low, high): (f64, f64)) -> ArrayD<f64> {
    let mean = x.mean().unwrap_or(0.0);
    let std = x.std(0.0);
    x.mapv(|value| ((value - mean) / (std + EPSILON) * 0.1 + 0.5).clamp(0.0, 1.0) * (high - low) + low)
}

/// keras-vis's random seed: uniform noise with the middle of the range as mean and 5 % of its width as deviation.
fn noise(shape: &[usize], (low, high): (f64, f64), random: &mut ChaCha8Rng) -> ArrayD<f64> {
    let x = ArrayD::from_shape_simple_fn(IxDyn(shape), || random.random::<f64>());
    let (mean, std) = (x.mean().unwrap_or(0.0), x.std(0.0));
    x.mapv(|value| (value - mean) / (std + EPSILON) * 0.05 * (high - low) + (low + high) / 2.0)
}

/// A seed input with a batch axis, channels where the model has them.
fn seeded(
    given: ArrayD<f64>,
    rank: usize,
    channel_axis: Option<usize>,
    lengths: &[Option<usize>],
) -> Result<ArrayD<f64>> {
    let mut x = if given.ndim() + 1 == rank { given.insert_axis(Axis(0)) } else { given };
    if x.ndim() != rank || x.len_of(Axis(0)) != 1 {
        bail!(input, "expected a seed input of one sample with {rank} axes, found {:?}", x.shape());
    }
    // keras-vis takes channels-last pictures for channels-first models.
    if let Some(axis) = channel_axis
        && axis + 1 < rank
        && lengths[axis].is_some_and(|length| length != x.shape()[axis] && length == x.shape()[rank - 1])
    {
        let axes: Vec<usize> = (0..axis).chain([rank - 1]).chain(axis..rank - 1).collect();
        x = x.permuted_axes(axes).as_standard_layout().into_owned();
    }
    Ok(x)
}

/// The lengths of the axes of the input, as far as they are known.
fn known_lengths(model: &Model, options: &Maximization) -> Vec<Option<usize>> {
    let shape = &model.graph().fact(model.main_input()).shape;
    let mut lengths: Vec<Option<usize>> =
        shape.iter().map(|dim| dim.known().and_then(|length| usize::try_from(length).ok())).collect();
    if let Some(given) = options.shape.as_ref().filter(|given| given.len() + 1 == lengths.len()) {
        for (length, &given) in lengths.iter_mut().skip(1).zip(given) {
            length.get_or_insert(given);
        }
    }
    lengths
}

/// The shape of an input of one sample.
fn input_shape(model: &Model, options: &Maximization) -> Result<Vec<usize>> {
    let mut lengths = known_lengths(model, options);
    if let Some(batch) = lengths.first_mut() {
        *batch = Some(1);
    }
    let fact = model.graph().fact(model.main_input());
    match lengths.iter().copied().collect::<Option<Vec<usize>>>() {
        Some(shape) => Ok(shape),
        None => bail!(option, "the size of the input is open, {fact}: say it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leaves_on_one_side_enters_on_the_other_as_in_scipy() {
        let by_two: Vec<usize> = (0..5).map(|place| wrapped(place - 2, 5)).collect();
        assert_eq!(by_two, [2, 3, 0, 1, 2]);
        let back: Vec<usize> = (0..5).map(|place| wrapped(place + 2, 5)).collect();
        assert_eq!(back, [2, 3, 4, 1, 2]);
        assert_eq!(wrapped(3, 1), 0);
        let x = ArrayD::from_shape_fn(vec![1, 28, 28, 1], |place| (place[1] * 28 + place[2]) as f64);
        let jitter = Jitter { most: vec![0.05], channel_axis: Some(3) };
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..50 {
            let moved = jitter.before(x.clone(), &mut random);
            seen.insert((x[[0, 9, 9, 0]] - moved[[0, 9, 9, 0]]) as i64);
        }
        // A share of 0.05 of 28 is one place.
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [-29, -28, -27, -1, 0, 1, 27, 28, 29]);
    }

    #[test]
    fn first_steps_are_as_long_as_in_keras_vis() {
        let cache = 0.05f64;
        assert!((1.0 / (cache + EPSILON).sqrt() - 4.4721).abs() < 1e-4);
        assert!((1.0 / (0.95 * cache + 0.05 + EPSILON).sqrt() - 3.2026).abs() < 1e-4);
    }

    #[test]
    fn noise_has_the_mean_and_deviation_that_were_asked_for() {
        let x = noise(&[1, 3, 20, 20], (0.0, 255.0), &mut ChaCha8Rng::seed_from_u64(3));
        assert!((x.mean().unwrap() - 127.5).abs() < 1e-6);
        assert!((x.std(0.0) - 12.75).abs() < 1e-3);
    }
}
