//! What an explanation gives: raw signed numbers, what they are about, and how they become a map.

use crate::error::{Result, bail};
use crate::grad_modifiers::GradModifier;
use crate::image::min_max;
use crate::tensor::Tensor;
use ndarray::{ArrayD, Axis};

/// A raw, signed attribution of a target to a tensor, and what is known about how it came about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Attribution {
    /// One number for each element of the tensor, batch axis included, before any modifier, reduction or scaling.
    pub raw: Tensor,
    /// The name of the tensor that the target is attributed to.
    pub tensor: String,
    /// Its channel axis; `None` if it has none.
    pub channel_axis: Option<usize>,
    /// The losses with their weighted values.
    pub losses: Vec<LossValue>,
    /// The nodes that were brought into another form first: titles, and the form's name.
    pub rewritten: Vec<(String, String)>,
    /// The nodes that a backprop modifier or relevance rule was used on: titles and the rule's name.
    pub matched: Vec<(String, String)>,
    /// The nodes that got their true gradient.
    pub default_gradient: Vec<String>,
    /// What the reader of the map should know.
    pub warnings: Vec<String>,
    /// Whether it adds up, for methods that say what it has to add up to.
    pub completeness: Option<Completeness>,
}

/// What an attribution adds up to, over all samples, beside what its method says that it has to.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Completeness {
    /// What is shared out.
    pub expected: f64,
    /// The sum of the attribution; of an input's also that of the other inputs.
    pub found: f64,
    /// The sum that ended in biases and other parameters.
    pub absorbed: f64,
    /// The sum behind each node that was passed, for methods that were asked for it: title, rule, sum.
    pub layers: Vec<(String, String, f64)>,
}

impl Completeness {
    /// The largest relative gap that rounding and stabilized divisions explain.
    pub const TOLERANCE: f64 = 1e-2;

    /// What is missing.
    pub fn gap(&self) -> f64 {
        self.expected - self.absorbed - self.found
    }

    /// The gap in proportion to the largest of the numbers that it is the difference of.
    pub fn relative_gap(&self) -> f64 {
        let scale = self.expected.abs().max(self.absorbed.abs()).max(self.found.abs());
        if scale == 0.0 { 0.0 } else { self.gap().abs() / scale }
    }

    /// True if the attribution adds up, within [`Self::TOLERANCE`].
    pub fn holds(&self) -> bool {
        self.relative_gap() <= Self::TOLERANCE
    }

    /// That of other samples added to this.
    fn add(&mut self, other: &Self) {
        self.expected += other.expected;
        self.found += other.found;
        self.absorbed += other.absorbed;
        for ((_, _, sum), (_, _, more)) in self.layers.iter_mut().zip(&other.layers) {
            *sum += more;
        }
    }
}

/// A loss as it came out.
#[derive(Clone, Debug)]
pub struct LossValue {
    /// The loss's name.
    pub name: String,
    /// Its factor in the sum.
    pub weight: f64,
    /// The value for each sample, times the weight.
    pub weighted: Vec<f64>,
}

impl Attribution {
    /// The attribution of all samples, out of those of consecutive parts of them.
    ///
    /// A warning is kept if it holds for every part.
    ///
    /// # Errors
    /// If there is no part, or they do not fit together.
    pub fn join(parts: Vec<Self>) -> Result<Self> {
        let raws: Vec<Tensor> = parts.iter().map(|part| part.raw.clone()).collect();
        let mut parts = parts.into_iter();
        let Some(mut whole) = parts.next() else { bail!(option, "there are no parts to join") };
        for part in parts {
            if part.tensor != whole.tensor || part.losses.len() != whole.losses.len() {
                bail!(
                    option,
                    "expected parts of one attribution, found '{}' and '{}'",
                    whole.tensor,
                    part.tensor
                );
            }
            for (loss, other) in whole.losses.iter_mut().zip(part.losses) {
                loss.weighted.extend(other.weighted);
            }
            whole.warnings.retain(|warning| part.warnings.contains(warning));
            if let (Some(sums), Some(more)) = (&mut whole.completeness, &part.completeness) {
                sums.add(more);
            }
        }
        whole.raw = Tensor::join(&raws)?;
        Ok(whole)
    }

    /// The map of each sample: modifier, then the maximum over channels (unless `keep_dims`), then keras-vis's
    /// min–max scaling to 0…1.
    ///
    /// **Formula.** `(m - min m) / (max m - min m + 1e-7)` with `m = max over channels of modifier(raw)`, per sample.
    /// A constant map is all zeros.
    ///
    /// **Shapes.** `[samples, …]`: the tensor's shape without the channel axis, or all of it with `keep_dims`. Tensors
    /// of rank 2 keep their features.
    ///
    /// # Errors
    /// If the modified gradient has elements that are not finite.
    pub fn maps(&self, modifier: &GradModifier, keep_dims: bool) -> Result<ArrayD<f32>> {
        let modified = self.modified(modifier, keep_dims)?;
        let mut maps = ArrayD::<f32>::zeros(modified.raw_dim());
        for (sample, mut map) in modified.outer_iter().zip(maps.outer_iter_mut()) {
            map.assign(&min_max(sample)?);
        }
        Ok(maps)
    }

    /// The modified gradient with channels reduced to their maximum (unless `keep_dims`), not scaled.
    ///
    /// # Errors
    /// If it has elements that are not finite.
    pub fn modified(&self, modifier: &GradModifier, keep_dims: bool) -> Result<ArrayD<f64>> {
        let shape = self.raw.shape().to_vec();
        let modified = modifier.apply(self.raw.to_f64());
        if modified.shape() != shape {
            bail!(
                option,
                "the grad modifier '{modifier}' returned shape {:?}, expected {shape:?}",
                modified.shape()
            );
        }
        Ok(match self.channel_axis {
            Some(axis) if !keep_dims && modified.ndim() > 2 => modified.fold_axis(
                Axis(axis),
                f64::NEG_INFINITY,
                |&max, &value| if value > max { value } else { max },
            ),
            _ => modified,
        })
    }
}
