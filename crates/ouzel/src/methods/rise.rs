//! RISE: what the target scores where a place is kept, over random masks.

use crate::error::{Result, bail};
use crate::explanation::{
    Explainer, FILL_VALUE, Fill, Masked, Method, Perturbation, PerturbationExplainer, Perturbed, Sample,
    SampleShape, Scorer, Settings, Task,
};
use crate::grad_modifiers::GradModifier;
use crate::methods::MethodEntry;
use crate::options::{
    GRAD_MODIFIER_RELU, KEEPDIMS, MethodOption, OptionKind, Options, WRT, WRT_CHANNEL_AXIS,
};
use ndarray::{ArrayD, Axis, IxDyn};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

/// What lists of methods say of this one.
pub(super) const ENTRY: MethodEntry = MethodEntry {
    name: "rise",
    about: "random masks: how much more the target scores when a place is kept than when it is covered",
    unit: "units of the target",
    cost: "1 forward pass a mask, at most 4000 if nothing is said, fewer where the map settles sooner; for each target",
    source: "Petsiuk et al. 2018, RISE: randomized input sampling for explanation of black-box models",
    criticism: "a blurred map at the scale of the grid, noisy where few masks are used; masked pictures are like nothing \
                that the network has seen",
    options: &[MASKS, GRID, P_KEEP, SETTLED, FILL_VALUE, GRAD_MODIFIER_RELU, WRT, WRT_CHANNEL_AXIS, KEEPDIMS],
    new: |options| Ok(Box::new(Rise::of(options)?)),
};

const MASKS: MethodOption =
    MethodOption::new("masks", OptionKind::Text, "N", "4000", "how many random masks there are at most");

const GRID: MethodOption = MethodOption::new(
    "grid",
    OptionKind::Text,
    "N",
    "7",
    "into how many cells of a mask each side is divided",
);

const P_KEEP: MethodOption =
    MethodOption::new("p_keep", OptionKind::Text, "P", "0.5", "how probable it is that a cell is kept");

const SETTLED: MethodOption = MethodOption::new(
    "settled",
    OptionKind::Text,
    "R",
    "0.98",
    "stop once the maps of two halves of the masks say that the whole is so reliable (Spearman-Brown); 1: never",
);

/// After so many masks, and as many again, it is asked whether the map has settled.
const ROUND: usize = 256;

/// How much more the target scores where a place is kept, over random masks.
///
/// **Formula.** `rᵢ = Σ over masks (f(x⊙M + fill⊙(1-M)) - mean f) · Mᵢ / (N · v)`: the covariance of score and mask over the
/// variance `v` of the mask, so that a linear `f` gets its contributions, spread over a cell. The paper's `Σ f·M / (N·p)` has the same
/// expectation up to a factor and a constant, and so the same map, but needs more masks the farther the scores are
/// from 0.
///
/// **Masks.** A lattice of cells, each kept with probability `p_keep`, is shifted by a random part of a cell and
/// interpolated linearly, so that every place is treated alike; channels are masked together. The mask of each number
/// follows from the seed, and is the same for every sample.
///
/// **Early stop.** After every 256 masks the correlation `c` of the maps of odd and even masks gives the reliability
/// of the whole, `2c / (1+c)`; at `settled` it stops. The count is among the measures.
///
/// **Shapes.** The attribution has the shape of the tensor, batch axis included.
///
/// **Known criticism.** Masked pictures are like nothing that the network has seen.
///
/// **Source.** Petsiuk et al. 2018, "RISE: randomized input sampling for explanation of black-box models".
///
/// ```
/// use ouzel::losses::{ActivationMaximization, WeightedLoss};
/// use ouzel::{Method, Model, Rise};
/// # let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
/// let model = Model::load(path)?;
/// let picture = ndarray::ArrayD::<f32>::from_elem(vec![1, 3, 128, 128], 0.5);
/// let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 2), -1.0)];
/// let attribution = Rise::default().masks(64).attribute(&model, &losses, &picture.into())?;
/// assert_eq!(attribution.raw.shape(), [1, 3, 128, 128]);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Rise {
    /// How many masks there are at most; default 4000.
    pub masks: usize,
    /// The cells of a mask along each axis of positions; default 7.
    pub grid: usize,
    /// How probable it is that a cell is kept; default 0.5.
    pub p_keep: f64,
    /// The reliability of the map at which it stops; default 0.98. At 1 it never does.
    pub settled: f64,
    /// What covered elements become.
    pub fill: Fill,
    /// What it shares with other methods.
    pub settings: Settings,
}

impl Default for Rise {
    fn default() -> Self {
        let settings = Settings { grad_modifier: GradModifier::Relu, ..Settings::default() };
        Self { masks: 4000, grid: 7, p_keep: 0.5, settled: 0.98, fill: Fill::default(), settings }
    }
}

impl Rise {
    fn of(options: &Options) -> Result<Self> {
        let usual = Self::default();
        let rise = Self {
            masks: options.count("masks", usual.masks)?,
            grid: options.count("grid", usual.grid)?,
            p_keep: options.parse("p_keep", usual.p_keep)?,
            settled: options.parse("settled", usual.settled)?,
            fill: options.parse("fill_value", usual.fill)?,
            settings: options.settings(GradModifier::Relu)?,
        };
        rise.check()?;
        Ok(rise)
    }

    fn check(&self) -> Result<()> {
        if !(self.p_keep > 0.0 && self.p_keep < 1.0) {
            bail!(option, "p_keep {}: expected a number between 0 and 1", self.p_keep);
        }
        if !(self.settled > 0.0 && self.settled <= 1.0) {
            bail!(option, "settled {}: expected a number above 0, at most 1", self.settled);
        }
        if self.masks < 2 || self.grid == 0 {
            bail!(option, "expected at least 2 masks and 1 cell, found {} and {}", self.masks, self.grid);
        }
        Ok(())
    }

    /// How many masks there are at most.
    #[must_use]
    pub fn masks(mut self, masks: usize) -> Self {
        self.masks = masks;
        self
    }

    /// The cells of a mask along each axis of positions.
    #[must_use]
    pub fn grid(mut self, grid: usize) -> Self {
        self.grid = grid;
        self
    }

    /// How probable it is that a cell is kept.
    #[must_use]
    pub fn p_keep(mut self, p_keep: f64) -> Self {
        self.p_keep = p_keep;
        self
    }

    /// The reliability of the map at which it stops.
    #[must_use]
    pub fn settled(mut self, settled: f64) -> Self {
        self.settled = settled;
        self
    }

    /// What covered elements become.
    #[must_use]
    pub fn fill(mut self, fill: Fill) -> Self {
        self.fill = fill;
        self
    }

    /// The elements of a cell along an axis.
    fn cell(&self, length: usize) -> usize {
        length.div_ceil(self.grid).max(1)
    }

    /// The variance of an element of a mask.
    fn variance(&self, shape: &SampleShape) -> f64 {
        let of_axis = |axis: usize| {
            let cell = self.cell(shape.lengths[axis]);
            let squares = (0..cell).map(|part| {
                let part = part as f64 / cell as f64;
                part * part + (1.0 - part) * (1.0 - part)
            });
            squares.sum::<f64>() / cell as f64
        };
        self.p_keep * (1.0 - self.p_keep) * shape.spatial().into_iter().map(of_axis).product::<f64>()
    }

    /// The mask of this number, with channels of length 1.
    fn mask(&self, seed: u64, index: usize, shape: &SampleShape) -> ArrayD<f64> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(index as u64);
        let spatial = shape.spatial();
        let mut lengths = vec![1; shape.lengths.len()];
        let mut shifts = vec![0; shape.lengths.len()];
        for &axis in &spatial {
            let cell = self.cell(shape.lengths[axis]);
            lengths[axis] = shape.lengths[axis].div_ceil(cell) + 2;
            shifts[axis] = random.random_range(0..cell);
        }
        let lattice: usize = lengths.iter().product();
        let kept = (0..lattice).map(|_| f64::from(u8::from(random.random::<f64>() < self.p_keep)));
        let mut mask = ArrayD::from_shape_vec(IxDyn(&lengths), kept.collect())
            .expect("invariant: as many cells as the lattice has");
        for &axis in &spatial {
            let (length, cell) = (shape.lengths[axis], self.cell(shape.lengths[axis]));
            let mut longer = mask.raw_dim();
            longer[axis] = length;
            let mut finer = ArrayD::zeros(longer);
            for (place, mut line) in finer.axis_iter_mut(Axis(axis)).enumerate() {
                let (before, part) = ((place + shifts[axis]) / cell, (place + shifts[axis]) % cell);
                let part = part as f64 / cell as f64;
                line.assign(&mask.index_axis(Axis(axis), before));
                line.zip_mut_with(&mask.index_axis(Axis(axis), before + 1), |value, next| {
                    *value = *value * (1.0 - part) + next * part;
                });
            }
            mask = finer;
        }
        mask
    }
}

impl Method for Rise {
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
        PerturbationExplainer::boxed(self, self.clone(), task)
    }
}

/// Sums over some of the masks.
struct Sums {
    count: f64,
    scores: f64,
    masks: ArrayD<f64>,
    products: ArrayD<f64>,
}

impl Sums {
    fn new(mask: &ArrayD<f64>) -> Self {
        Self {
            count: 0.0,
            scores: 0.0,
            masks: ArrayD::zeros(mask.raw_dim()),
            products: ArrayD::zeros(mask.raw_dim()),
        }
    }

    fn add(&mut self, mask: &ArrayD<f64>, score: f64) {
        self.count += 1.0;
        self.scores += score;
        self.masks += mask;
        self.products.scaled_add(score, mask);
    }

    /// The covariance of score and mask.
    fn covariance(&self) -> ArrayD<f64> {
        (&self.products - &self.masks * (self.scores / self.count)) / self.count
    }

    /// The sums over these masks and others.
    fn with(&self, other: &Self) -> Self {
        Self {
            count: self.count + other.count,
            scores: self.scores + other.scores,
            masks: &self.masks + &other.masks,
            products: &self.products + &other.products,
        }
    }
}

/// How well two maps agree: the correlation of their elements; 1 for equal maps.
fn correlation(a: &ArrayD<f64>, b: &ArrayD<f64>) -> f64 {
    if a == b {
        return 1.0;
    }
    let center = |map: &ArrayD<f64>| map - map.mean().unwrap_or(0.0);
    let (a, b) = (center(a), center(b));
    let dot = |a: &ArrayD<f64>, b: &ArrayD<f64>| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let scale = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if scale > 0.0 { dot(&a, &b) / scale } else { 0.0 }
}

impl Perturbation for Rise {
    fn count(&self, shape: &SampleShape) -> Result<usize> {
        self.check()?;
        if shape.spatial().is_empty() {
            bail!(option, "there is nothing to mask: a sample is one number");
        }
        Ok(self.masks)
    }

    fn explain(&self, sample: &Sample<'_>, scorer: &mut Scorer<'_>) -> Result<Perturbed> {
        let masked = Masked::new(&sample.elements, &self.fill.sample(sample), sample.shape.channels);
        let mask = |index: usize| self.mask(sample.seed, index, sample.shape);
        let mut halves = [Sums::new(&mask(0)), Sums::new(&mask(0))];
        let mut done = 0;
        let mut reliability = 0.0;
        while done < self.masks {
            let end = (done + scorer.at_once()).min((done / ROUND + 1) * ROUND).min(self.masks);
            let masks: Vec<ArrayD<f64>> = (done..end).into_par_iter().map(mask).collect();
            let scores = scorer.scores(done..end, &|index, elements| {
                let mask = masks[index - done].as_slice();
                masked.see(mask.expect("invariant: a mask is made in order"), elements);
            })?;
            halves.par_iter_mut().enumerate().for_each(|(half, sums)| {
                let of_half = masks.iter().zip(&scores).skip((half + done) % 2).step_by(2);
                // Relative to the sample's score, so that what does not change leaves no rounding behind.
                of_half.for_each(|(mask, score)| sums.add(mask, score - sample.score));
            });
            done = end;
            if done % ROUND == 0 || done == self.masks {
                let agreement = correlation(&halves[0].covariance(), &halves[1].covariance());
                reliability = (2.0 * agreement / (1.0 + agreement)).max(0.0);
                if self.settled < 1.0 && reliability >= self.settled {
                    break;
                }
            }
        }
        let map = halves[0].with(&halves[1]).covariance() / self.variance(sample.shape);
        let raw = map.broadcast(sample.elements.raw_dim()).map_or(map.clone(), |map| map.to_owned());
        Ok(Perturbed { raw, measures: vec![("masks", done as f64), ("reliability", reliability)] })
    }
}
