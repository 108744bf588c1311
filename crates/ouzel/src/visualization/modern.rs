//! Feature visualization: pictures of what filters respond to, from waves in decorrelated colors and many points of view.

use super::fourier::Waves;
use super::warp::Warp;
use crate::compile::Precision;
use crate::error::{Context, Result, bail};
use crate::explanation::{Explainer, Method, Task};
use crate::image::{Channels, Layout, Preprocess};
use crate::losses::WeightedLoss;
use crate::methods::saliency::Saliency;
use crate::model::Model;
use crate::target::Filters;
use crate::tensor::{DType, Tensor};
use ndarray::{Array3, ArrayD, Axis, Zip};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How deviations of the coefficients at the start grow while nothing responds.
const STARTS: [f64; 6] = [0.01, 0.1, 0.3, 1.0, 2.0, 4.0];

/// A picture that lowers losses, such as one that raises the activation of a filter.
///
/// **Formula.** The picture is a sum of waves in decorrelated colors, squashed to 0…1 by a sigmoid; Adam changes the
/// coefficients. In each step the network sees the picture shifted, turned and scaled at random, so that only what
/// survives that is worth drawing. The borders are reflected.
///
/// **Units.** Scores are those of the losses, for the untransformed picture.
///
/// **Known criticism.** One picture is one local optimum, not all that a filter responds to; priors as these decide
/// what it looks like (Olah et al. 2017). Such pictures help less to predict responses than natural examples do
/// (Borowski et al. 2021, "Exemplary natural images explain CNN activations better").
///
/// **Source.** Olah et al. 2017, "Feature visualization"; Mordvintsev et al. 2018, "Differentiable image
/// parameterizations"; Kingma and Ba 2015, "Adam".
///
/// ```
/// use ouzel::image::{Preprocess, Preset};
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::visualization::FeatureVisualization;
/// use ouzel::Model;
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let mut options = FeatureVisualization::new(Preprocess::default().preset(Preset::Unit));
/// options.steps = 3;
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), 1.0)];
/// let made = options.prepare(&model, &losses)?.run(None, |_| {})?;
/// assert_eq!(made.picture.dim(), (128, 128, 3));
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FeatureVisualization {
    /// What a picture of 0…255 is to the network; its size is that of the picture for models that leave it open.
    pub preprocess: Preprocess,
    /// How often the picture is changed; default 400.
    pub steps: usize,
    /// The length of Adam's steps; default 0.05.
    pub learning_rate: f64,
    /// How much weaker waves are the shorter they are, as the power of their frequency; default 1.
    pub decay: f64,
    /// The largest shift, as a share of the sides; default 1/12.
    pub jitter: f64,
    /// The largest change of scale; default 0.15.
    pub scale: f64,
    /// The largest turn in degrees; default 12.
    pub rotate: f64,
    /// The seed of the start and of the views.
    pub seed: u64,
    /// What is computed in.
    pub precision: Precision,
}

/// A step, before the picture is changed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Step<'s> {
    /// Its number, from 0 on.
    pub index: usize,
    /// The weighted sum of the losses for the picture as it was seen.
    pub loss: f64,
    /// The picture, `[channels, height, width]` of 0…1.
    picture: &'s Array3<f32>,
    order: Channels,
}

impl Step<'_> {
    /// The picture as it is now, 8-bit RGB `[height, width, 3]`.
    pub fn picture(&self) -> Array3<u8> {
        rgb8(self.picture, self.order)
    }
}

/// What came out.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Visualized {
    /// 8-bit RGB, `[height, width, 3]`.
    pub picture: Array3<u8>,
    /// The same as the network takes it.
    pub input: Tensor,
    /// The weighted sum of the losses for it.
    pub loss: f64,
    /// The same for the picture at the start.
    pub first_loss: f64,
}

/// A picture `[channels, height, width]` of 0…1 as 8-bit RGB.
fn rgb8(picture: &Array3<f32>, order: Channels) -> Array3<u8> {
    let (_, height, width) = picture.dim();
    Array3::from_shape_fn((height, width, 3), |(row, column, color)| {
        let channel = match order {
            Channels::Rgb => color,
            Channels::Bgr => 2 - color,
            Channels::Grey => 0,
        };
        (picture[[channel, row, column]] * 255.0).round() as u8
    })
}

/// A visualization made ready for a network and its losses.
#[derive(Debug)]
pub struct PreparedVisualization {
    options: FeatureVisualization,
    explainer: Box<dyn Explainer>,
    waves: Waves,
    size: (usize, usize),
    ranges: Vec<(f32, f32)>,
    order: Channels,
    dtype: DType,
}

impl FeatureVisualization {
    /// The defaults, for a network that takes pictures in this way.
    pub fn new(preprocess: Preprocess) -> Self {
        Self {
            preprocess,
            steps: 400,
            learning_rate: 0.05,
            decay: 1.0,
            jitter: 1.0 / 12.0,
            scale: 0.15,
            rotate: 12.0,
            seed: 0,
            precision: Precision::F32,
        }
    }

    /// Makes ready for losses, which are lowered: [`ActivationMaximization`](crate::losses::ActivationMaximization) with
    /// weight 1 raises an activation.
    ///
    /// # Errors
    /// If the network's input is no picture of 1 or 3 channels, if its size is not known, if a layer or filter does not exist, or
    /// if an op on the way is not supported or has no gradient.
    pub fn prepare(&self, model: &Model, losses: &[WeightedLoss]) -> Result<PreparedVisualization> {
        let input = model.main_input();
        let fact = model.graph().fact(input);
        let layout = self.preprocess.layout;
        if fact.rank() != 4 || !fact.dtype.is_float() {
            bail!(input, "expected a network that takes pictures, with 4 axes, found {fact}");
        }
        let (channel_axis, spatial) = match layout {
            Layout::Nchw => (1, [2, 3]),
            Layout::Nhwc => (3, [1, 2]),
        };
        let order = self.preprocess.channel_order();
        let length = |axis: usize| fact.shape[axis].known().and_then(|length| usize::try_from(length).ok());
        if let Some(found) = length(channel_axis).filter(|&found| found != order.count()) {
            bail!(input, "the network takes {found} channels, and {order} pictures have {}", order.count());
        }
        let given = self.preprocess.size.map(|size| [size.height, size.width]);
        let sides = [0, 1].map(|side| length(spatial[side]).or(given.map(|given| given[side])));
        let [Some(height), Some(width)] = sides else {
            bail!(option, "the network takes pictures of any size, {fact}: say which");
        };
        if height == 0 || width == 0 {
            bail!(input, "the pictures of {height} x {width} pixels are empty");
        }
        if self.steps == 0 {
            bail!(option, "steps 0: expected 1 or more");
        }
        for (name, value) in [
            ("learning rate", self.learning_rate),
            ("decay", self.decay),
            ("jitter", self.jitter),
            ("scale", self.scale),
            ("rotate", self.rotate),
        ] {
            if !value.is_finite() || value < 0.0 || (name == "scale" && value >= 1.0) {
                bail!(option, "{name} {value}: expected a number of 0 or more, for the scale below 1");
            }
        }
        let mut shape = vec![1; 4];
        shape[channel_axis] = order.count();
        shape[spatial[0]] = height;
        shape[spatial[1]] = width;
        let saliency = Saliency::default().precision(self.precision);
        let task = Task { model, losses, shapes: &[(input, shape)], also: &[] };
        Ok(PreparedVisualization {
            explainer: saliency.prepare(&task)?,
            waves: Waves::new(order.count(), height, width, self.decay),
            size: (height, width),
            ranges: self.preprocess.input_range()?,
            order,
            dtype: fact.dtype,
            options: self.clone(),
        })
    }
}

impl PreparedVisualization {
    /// Makes the picture for filters, if losses left them open; `watch` sees every step.
    ///
    /// # Errors
    /// If the filters do not fit the losses, or the gradient is not finite.
    pub fn run(&self, filters: Option<Filters>, mut watch: impl FnMut(&Step<'_>)) -> Result<Visualized> {
        let FeatureVisualization { steps, learning_rate, jitter, scale, rotate, seed, .. } = self.options;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut starts = STARTS.iter();
        let mut coefficients = self.waves.start(&mut random, *starts.next().unwrap_or(&0.01));
        let mut mean = Array3::<f32>::zeros(coefficients.raw_dim());
        let mut square = mean.clone();
        let (mut step, mut age) = (0, 0);
        let mut first_loss = None;
        while step < steps {
            let picture = self.waves.picture(&coefficients);
            let mut around = |most: f64| most * random.random_range(-1.0..=1.0);
            let angle = around(rotate).to_radians();
            let factor = 1.0 + around(scale);
            let shift = (around(jitter * self.size.0 as f64), around(jitter * self.size.1 as f64));
            let warp = Warp::new(self.size, angle, factor, shift);
            let (loss, seen) =
                self.gradient(&warp.apply(&picture), &filters).context(|| format!("step {step}"))?;
            first_loss.get_or_insert(loss);
            // Nothing responds to a grey picture: start from a louder one.
            if age == 0
                && seen.iter().all(|&value| value == 0.0)
                && let Some(&louder) = starts.next()
            {
                coefficients = self.waves.start(&mut random, louder);
                continue;
            }
            watch(&Step { index: step, loss, picture: &picture, order: self.order });
            let gradient = self.waves.gradient(&picture, &warp.gradient(&seen));
            (step, age) = (step + 1, age + 1);
            let (first, second) = (1.0 - 0.9f64.powi(age), 1.0 - 0.999f64.powi(age));
            let rate = (learning_rate * second.sqrt() / first) as f32;
            Zip::from(&mut coefficients).and(&mut mean).and(&mut square).and(&gradient).for_each(
                |coefficient, mean, square, &gradient| {
                    *mean = 0.9 * *mean + 0.1 * gradient;
                    *square = 0.999 * *square + 0.001 * gradient * gradient;
                    // A scale of its own for gradients that are tiny everywhere.
                    *coefficient -= rate * *mean / (square.sqrt() + f32::MIN_POSITIVE);
                },
            );
        }
        let picture = self.waves.picture(&coefficients);
        let (loss, _) = self.gradient(&picture, &filters)?;
        Ok(Visualized {
            picture: rgb8(&picture, self.order),
            input: self.tensor(&picture),
            loss,
            first_loss: first_loss.unwrap_or(loss),
        })
    }

    /// A picture of 0…1 as the network takes it.
    fn tensor(&self, picture: &Array3<f32>) -> Tensor {
        let mut input = picture.clone();
        for (mut channel, &(low, high)) in input.outer_iter_mut().zip(&self.ranges) {
            channel.mapv_inplace(|value| low + value * (high - low));
        }
        let input = match self.options.preprocess.layout {
            Layout::Nchw => input,
            Layout::Nhwc => input.permuted_axes([1, 2, 0]).as_standard_layout().into_owned(),
        };
        Tensor::from(input.insert_axis(Axis(0)).into_dyn()).cast(self.dtype)
    }

    /// The losses, and their gradient with respect to a picture of 0…1.
    fn gradient(&self, picture: &Array3<f32>, filters: &Option<Filters>) -> Result<(f64, Array3<f32>)> {
        let attribution = self.explainer.start(&[self.tensor(picture)])?.explain(filters.clone())?;
        let loss = attribution.losses.iter().flat_map(|loss| &loss.weighted).sum();
        let raw: ArrayD<f32> = attribution.raw.to_f32().index_axis_move(Axis(0), 0);
        let mut gradient: Array3<f32> =
            raw.into_dimensionality().expect("invariant: a gradient has the shape of its input");
        if self.options.preprocess.layout == Layout::Nhwc {
            gradient = gradient.permuted_axes([2, 0, 1]).as_standard_layout().into_owned();
        }
        for (mut channel, &(low, high)) in gradient.outer_iter_mut().zip(&self.ranges) {
            channel.mapv_inplace(|value| value * (high - low));
        }
        Ok((loss, gradient))
    }
}
