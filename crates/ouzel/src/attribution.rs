//! What an explanation gives: raw signed numbers, what they are about, and how they become a map.

use crate::error::{Result, bail};
use crate::grad_modifiers::GradModifier;
use crate::image::{Upsampling, min_max};
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
    /// What the method counted or measured on the way, for each sample.
    pub measures: Vec<Measure>,
    /// The nodes that were brought into another form first: titles, and the form's name.
    pub rewritten: Vec<(String, String)>,
    /// The nodes that a backprop modifier or relevance rule was used on: titles and the rule's name.
    pub matched: Vec<(String, String)>,
    /// The nodes that got their true gradient.
    pub default_gradient: Vec<String>,
    /// For class activation maps: what the map was made of.
    pub layer_map: Option<LayerMap>,
    /// What was chosen for the reader.
    pub notes: Vec<String>,
    /// What the reader of the map should know.
    pub warnings: Vec<String>,
    /// Whether it adds up, for methods that say what it has to add up to.
    pub completeness: Option<Completeness>,
}

/// What the attribution of each sample adds up to, beside what its method says that it has to.
///
/// **Formula.** The gap is `expected - absorbed - found`; it is judged in proportion to the largest of these three.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Completeness {
    /// What is shared out: the target, or its difference from that of a baseline.
    pub expected: Vec<f64>,
    /// The sum of the attribution; of an input's also that of the other inputs.
    pub found: Vec<f64>,
    /// The sum that ended in biases and other parameters; empty for methods that let nothing end there.
    pub absorbed: Vec<f64>,
    /// The part of the gap that rules found nothing to give to: where no contribution to an element has the sign that its
    /// rule follows, or a stabilizer outweighs them all. Empty for methods without such rules, and if everything adds up.
    pub lost: Vec<f64>,
    /// The largest relative gap that is taken for rounding.
    pub tolerance: f64,
    /// The sum behind each node that was passed, for methods that were asked for it: title, rule, the sum of each sample.
    pub layers: Vec<(String, String, Vec<f64>)>,
}

impl Completeness {
    /// What is missing of each sample.
    pub fn gaps(&self) -> Vec<f64> {
        let absorbed = |sample: usize| self.absorbed.get(sample).copied().unwrap_or(0.0);
        let pairs = self.expected.iter().zip(&self.found).enumerate();
        pairs.map(|(sample, (expected, found))| expected - absorbed(sample) - found).collect()
    }

    /// The gap of each sample in proportion to the largest of the numbers that it is the difference of.
    pub fn relative_gaps(&self) -> Vec<f64> {
        self.relative(self.gaps())
    }

    /// True if no more of any sample is missing than is known to be lost, within the tolerance: nothing is left for rounding,
    /// or for nodes without a rule, to explain.
    pub fn is_accounted_for(&self) -> bool {
        let lost = |sample: usize| self.lost.get(sample).copied().unwrap_or(0.0);
        let rest = self.gaps().into_iter().enumerate().map(|(sample, gap)| gap - lost(sample)).collect();
        self.relative(rest).iter().all(|&rest| rest <= self.tolerance)
    }

    /// A difference of each sample in proportion to the largest of what is shared out, found and absorbed.
    fn relative(&self, differences: Vec<f64>) -> Vec<f64> {
        let relative = |(sample, difference): (usize, f64)| {
            let numbers = [self.expected.get(sample), self.found.get(sample), self.absorbed.get(sample)];
            let scale = numbers.into_iter().flatten().fold(0.0, |scale: f64, number| scale.max(number.abs()));
            if scale == 0.0 { 0.0 } else { difference.abs() / scale }
        };
        differences.into_iter().enumerate().map(relative).collect()
    }

    /// True if the attribution of every sample adds up, within the tolerance.
    pub fn holds(&self) -> bool {
        self.relative_gaps().iter().all(|&gap| gap <= self.tolerance)
    }

    /// That of other samples behind this.
    fn extend(&mut self, other: Self) {
        // Samples that add up have lost nothing.
        if !(self.lost.is_empty() && other.lost.is_empty()) {
            self.lost.resize(self.expected.len(), 0.0);
            self.lost.extend(other.lost);
            self.lost.resize(self.expected.len() + other.expected.len(), 0.0);
        }
        self.expected.extend(other.expected);
        self.found.extend(other.found);
        self.absorbed.extend(other.absorbed);
        for ((_, _, sums), (_, _, more)) in self.layers.iter_mut().zip(other.layers) {
            sums.extend(more);
        }
    }
}

/// What a class activation map was made of, and how it gets the size of the input.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerMap {
    /// The names of the layers.
    pub layers: Vec<String>,
    /// How the raw map is made as large as the input; `None` if it is that already.
    pub upsampling: Option<Upsampling>,
    /// Whether what is below 0 is cut off before that.
    pub rectify: bool,
    /// The lengths of the map's last axes after that: those of the input.
    pub size: Vec<usize>,
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

/// Something that a method counted or measured: how many masks it took, how far the parts are from the whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    /// What it is, in snake_case.
    pub name: &'static str,
    /// The number for each sample.
    pub values: Vec<f64>,
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
            if part.tensor != whole.tensor
                || part.losses.len() != whole.losses.len()
                || part.measures.len() != whole.measures.len()
            {
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
            for (measure, other) in whole.measures.iter_mut().zip(part.measures) {
                measure.values.extend(other.values);
            }
            whole.warnings.retain(|warning| part.warnings.contains(warning));
            if let (Some(sums), Some(more)) = (&mut whole.completeness, part.completeness) {
                sums.extend(more);
            }
            whole.notes.retain(|note| part.notes.contains(note));
        }
        whole.raw = Tensor::join(&raws)?;
        Ok(whole)
    }

    /// The map of each sample: modifier, then the maximum over channels (unless `keep_dims`), upsampling if it is that of
    /// a layer, then keras-vis's min–max scaling to 0…1.
    ///
    /// **Formula.** `(m - min m) / (max m - min m + 1e-7)` with `m = max over channels of modifier(raw)`, per sample.
    /// A constant map is all zeros.
    ///
    /// **Shapes.** `[samples, …]`: the tensor's shape without the channel axis, or all of it with `keep_dims`. Tensors
    /// of rank 2 keep their features. Class activation maps have the size of the input.
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

    /// The modified gradient with channels reduced to their maximum (unless `keep_dims`) and, for a class activation map,
    /// the size of the input; not scaled.
    ///
    /// # Errors
    /// If it has elements that are not finite.
    pub fn modified(&self, modifier: &GradModifier, keep_dims: bool) -> Result<ArrayD<f64>> {
        let shape = self.raw.shape().to_vec();
        let mut raw = self.raw.to_f64();
        if self.layer_map.as_ref().is_some_and(|layer| layer.rectify) {
            raw.mapv_inplace(|value| value.max(0.0));
        }
        let modified = modifier.apply(raw);
        if modified.shape() != shape {
            bail!(
                option,
                "the grad modifier '{modifier}' returned shape {:?}, expected {shape:?}",
                modified.shape()
            );
        }
        let reduced = match self.channel_axis {
            Some(axis) if !keep_dims && modified.ndim() > 2 => modified.fold_axis(
                Axis(axis),
                f64::NEG_INFINITY,
                |&max, &value| if value > max { value } else { max },
            ),
            _ => modified,
        };
        match &self.layer_map {
            Some(LayerMap { upsampling: Some(upsampling), size, .. }) => upsampling.apply(reduced, size),
            _ => Ok(reduced),
        }
    }
}
