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
    /// The nodes that a backprop modifier was used on: titles and the rule's name.
    pub matched: Vec<(String, String)>,
    /// The nodes that got their true gradient.
    pub default_gradient: Vec<String>,
    /// What the reader of the map should know.
    pub warnings: Vec<String>,
    /// How many samples and variants of samples were run through the network.
    pub evaluations: usize,
    /// For methods whose attributions have to add up to a difference of the target, whether they do, for each sample.
    pub completeness: Vec<Completeness>,
}

/// Whether the attributions of a sample add up to what they share out.
///
/// **Formula.** The gap is `Σ raw - (F(input) - F(baseline))`, where `F` is the weighted sum of the losses, for several
/// baselines their mean.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Completeness {
    /// The sum of the attributions.
    pub attributed: f64,
    /// How much the target differs between the input and the baseline.
    pub difference: f64,
    /// The gap that is tolerated.
    pub allowed: f64,
    /// How many points of the path were evaluated for each baseline.
    pub steps: usize,
}

impl Completeness {
    /// What the attributions add up to too much.
    pub fn gap(&self) -> f64 {
        self.attributed - self.difference
    }

    /// The size of the gap, as a share of the difference.
    pub fn relative_gap(&self) -> f64 {
        let gap = self.gap().abs();
        if gap == 0.0 { 0.0 } else { gap / self.difference.abs() }
    }

    /// True if the gap is tolerated.
    pub fn holds(&self) -> bool {
        self.gap().abs() <= self.allowed
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

/// How the warning begins that attributions do not add up.
const INCOMPLETE: &str = "the attributions do not add up";

/// What is said if attributions do not add up.
fn incomplete(completeness: &[Completeness]) -> Option<String> {
    let failed: Vec<&Completeness> = completeness.iter().filter(|sample| !sample.holds()).collect();
    let worst = failed.iter().max_by(|a, b| a.relative_gap().total_cmp(&b.relative_gap()))?;
    let of = match completeness.len() {
        1 => String::new(),
        all => format!(" for {} of {all} samples; the worst", failed.len()),
    };
    Some(format!(
        "{INCOMPLETE}{of}: their sum is {:.4}, the target differs from the baseline's by {:.4}, so the gap is {:.1} % \
         ({:.1} % is tolerated); more steps or samples make it smaller",
        worst.attributed,
        worst.difference,
        100.0 * worst.relative_gap(),
        100.0 * worst.allowed / worst.difference.abs(),
    ))
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
            whole.evaluations += part.evaluations;
            whole.completeness.extend(part.completeness);
        }
        whole.raw = Tensor::join(&raws)?;
        whole.warnings.retain(|warning| !warning.starts_with(INCOMPLETE));
        whole.warnings.extend(incomplete(&whole.completeness));
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
