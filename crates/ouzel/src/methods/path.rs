//! What path methods share: where a path begins, at which points it is looked at, and whether the attributions add up.

use crate::attribution::Completeness;
use crate::builder::Var;
use crate::error::{Result, bail};
use crate::explanation::{VariedSample, Varying, along_axis};
use crate::image::{Border, gaussian_blur};
use crate::noise;
use crate::onnx::known_length;
use crate::ops::reduce::ReduceMin;
use crate::options::{MethodOption, OptionKind, OptionValue, Options};
use crate::tensor::Tensor;
use ndarray::{ArrayD, Axis};

/// Where the path begins.
pub(super) const BASELINE: MethodOption = MethodOption::new(
    "baseline",
    OptionKind::Input,
    "NAME|VALUE|FILE",
    "zeros",
    "what the input is compared with: zeros, mean (of each channel), blur, noise (uniform), minimum, maximum, a number, or a \
     picture, array or folder of them; several, separated by commas, are averaged over",
);

/// How many points of the path are looked at.
pub(super) const STEPS: MethodOption =
    MethodOption::new("steps", OptionKind::Text, "N", "50", "how many points of the path are evaluated");

/// What gap is tolerated.
pub(super) const TOLERANCE: MethodOption = MethodOption::new(
    "tolerance",
    OptionKind::Text,
    "F",
    "0.05",
    "how far the sum of the attributions may be from the change of the target, as a share of it, without a warning",
);

/// What an input is compared with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Baseline {
    /// This number everywhere.
    Constant(f64),
    /// The mean of each channel of the sample.
    Mean,
    /// The sample, blurred with a standard deviation of a tenth of its longest axis.
    Blur,
    /// Uniform random numbers between the least and the largest number of the sample.
    Noise,
    /// The least number of the sample: black, for a picture.
    Minimum,
    /// The largest number of the sample: white, for a picture.
    Maximum,
    /// An array like one sample, or several of them along the first axis, each of which is a baseline.
    Array(Tensor),
}

impl Baseline {
    /// What was typed, or read from a file.
    pub(super) fn list(options: &Options, default: &[Self]) -> Result<Vec<Self>> {
        if let Some(OptionValue::Array(_, array)) = options.value(BASELINE.name) {
            return Ok(vec![Self::Array(array.clone())]);
        }
        let named = |text: &str| {
            Ok(match text.to_ascii_lowercase().as_str() {
                "zeros" | "zero" => Self::Constant(0.0),
                "mean" => Self::Mean,
                "blur" => Self::Blur,
                "noise" => Self::Noise,
                "minimum" => Self::Minimum,
                "maximum" => Self::Maximum,
                number => match number.parse::<f64>() {
                    Ok(number) if number.is_finite() => Self::Constant(number),
                    _ => bail!(
                        option,
                        "baseline '{text}': expected zeros, mean, blur, noise, minimum, maximum, a number, or a file that \
                         exists"
                    ),
                },
            })
        };
        match options.list(BASELINE.name)? {
            typed if typed.is_empty() => Ok(default.to_vec()),
            typed => typed.into_iter().map(named).collect(),
        }
    }

    /// The baselines of a sample, in the shape of its input; `draws` of them where chance is involved.
    fn arrays(&self, sample: &VariedSample<'_>, draws: usize) -> Result<Vec<ArrayD<f64>>> {
        let x = &sample.input;
        let channel_axis = sample.input_channel_axis;
        let extremes = |row: &ndarray::ArrayViewD<'_, f64>| {
            row.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), &value| {
                (low.min(value), high.max(value))
            })
        };
        let each_row = |change: &dyn Fn(ndarray::ArrayViewMutD<'_, f64>)| {
            let mut changed = x.clone();
            changed.outer_iter_mut().for_each(change);
            changed
        };
        Ok(match self {
            Self::Constant(value) => vec![ArrayD::from_elem(x.raw_dim(), *value)],
            Self::Minimum => vec![each_row(&|mut row| {
                let (low, _) = extremes(&row.view());
                row.fill(low);
            })],
            Self::Maximum => vec![each_row(&|mut row| {
                let (_, high) = extremes(&row.view());
                row.fill(high);
            })],
            Self::Mean => vec![each_row(&|mut row| match channel_axis {
                Some(axis) => row.axis_iter_mut(Axis(axis - 1)).for_each(|mut channel| {
                    let mean = channel.mean().unwrap_or(0.0);
                    channel.fill(mean);
                }),
                None => {
                    let mean = row.mean().unwrap_or(0.0);
                    row.fill(mean);
                }
            })],
            Self::Blur => {
                let axes = spatial_axes(sample)?;
                let longest = axes.iter().map(|&axis| x.shape()[axis]).max().unwrap_or(1);
                vec![gaussian_blur(x.clone(), &axes, longest as f64 / 10.0, Border::Mirror)]
            }
            Self::Noise => (0..draws)
                .map(|draw| {
                    each_row(&|mut row| {
                        let (low, high) = extremes(&row.view());
                        let mut random = noise::stream(sample.seed(), BASELINE_STREAM + draw as u64);
                        let numbers = noise::uniform(&mut random, row.len());
                        row.iter_mut()
                            .zip(numbers)
                            .for_each(|(value, number)| *value = low + number * (high - low));
                    })
                })
                .collect(),
            Self::Array(array) => {
                let array = array.to_f64();
                let array = if array.ndim() + 1 == x.ndim() { array.insert_axis(Axis(0)) } else { array };
                let fits = array.ndim() == x.ndim()
                    && array.shape().first().is_some_and(|&count| count > 0)
                    && array.outer_iter().all(|one| one.broadcast(&x.shape()[1..]).is_some());
                if !fits {
                    bail!(
                        option,
                        "the baseline: expected an array like one sample, {:?}, or several of them, found {:?}",
                        &x.shape()[1..],
                        array.shape()
                    );
                }
                let like_x = |one: ndarray::ArrayViewD<'_, f64>| {
                    let whole = one.broadcast(x.raw_dim());
                    whole.expect("invariant: checked that it can be broadcast").to_owned()
                };
                array.outer_iter().map(like_x).collect()
            }
        })
    }
}

impl Baseline {
    /// How many baselines it stands for, for inputs of this rank.
    pub(super) fn count(&self, rank: usize) -> usize {
        match self {
            Self::Array(array) if array.shape().len() == rank => array.shape()[0],
            _ => 1,
        }
    }

    /// The baselines as nodes, each of a shape that broadcasts to that of the input; as [`Self::arrays`] makes them.
    pub(super) fn nodes<'b>(&self, sample: &Varying<'b>, seed: u64) -> Result<Vec<Var<'b>>> {
        let (x, builder) = (sample.x, sample.x.builder());
        let rank = x.rank();
        let lowest = || builder.apply(ReduceMin::over((1..rank as i64).collect::<Vec<_>>(), true), &[x]);
        let highest = || x.reduce_max(1..rank, true);
        let shape = x.shape();
        let one: Result<Vec<usize>> =
            shape.iter().enumerate().skip(1).map(|(axis, dim)| known_length(dim, axis)).collect();
        Ok(match self {
            Self::Constant(value) => vec![x.scalar_like(*value)],
            Self::Minimum => vec![lowest()],
            Self::Maximum => vec![highest()],
            Self::Mean => {
                vec![x.reduce_mean((1..rank).filter(|&axis| Some(axis) != sample.channel_axis), true)]
            }
            Self::Blur => {
                let axes: Vec<usize> = (1..rank).filter(|&axis| Some(axis) != sample.channel_axis).collect();
                let one = one?;
                let Some(longest) = axes.iter().map(|axis| one[axis - 1]).max() else {
                    bail!(
                        option,
                        "{} has no spatial axes, and blur needs some: use another baseline",
                        x.fact()
                    )
                };
                let blurred = |x: Var<'b>, axis: usize| {
                    let from = one[axis - 1];
                    let unit =
                        ArrayD::from_shape_fn(vec![from, from], |at| f64::from(u8::from(at[0] == at[1])));
                    along_axis(x, axis, gaussian_blur(unit, &[1], longest as f64 / 10.0, Border::Mirror))
                };
                vec![axes.into_iter().fold(x, blurred)]
            }
            Self::Noise => {
                let one = one?;
                let numbers = noise::uniform(&mut noise::stream(seed, BASELINE_STREAM), one.iter().product());
                let numbers = builder.constant(Tensor::from_shape_vec(&one, numbers)?.cast(x.dtype()));
                vec![lowest() + numbers * (highest() - lowest())]
            }
            Self::Array(array) => {
                let one = one?;
                let array = if array.shape().len() == rank {
                    array.to_f64()
                } else {
                    array.to_f64().insert_axis(Axis(0))
                };
                let fits = |entry: &ArrayD<f64>| entry.broadcast(&one[..]).is_some();
                let entries: Vec<ArrayD<f64>> = array.outer_iter().map(|entry| entry.to_owned()).collect();
                if entries.is_empty() || !entries.iter().all(fits) {
                    bail!(
                        option,
                        "the baseline: expected an array like one sample, {one:?}, or several of them, found {:?}",
                        array.shape()
                    );
                }
                entries
                    .into_iter()
                    .map(|entry| builder.constant(Tensor::from(entry).cast(x.dtype())))
                    .collect()
            }
        })
    }
}

/// The first stream of random numbers that baselines are drawn from; those before are for noise on inputs.
const BASELINE_STREAM: u64 = 1 << 32;

/// The axes of an input that are neither those of the samples nor of the channels.
///
/// # Errors
/// If there is none.
pub(super) fn spatial_axes(sample: &VariedSample<'_>) -> Result<Vec<usize>> {
    let axes: Vec<usize> =
        (1..sample.input.ndim()).filter(|&axis| Some(axis) != sample.input_channel_axis).collect();
    match axes.is_empty() {
        false => Ok(axes),
        true => bail!(
            option,
            "the input of shape {:?} has no spatial axes, and blur needs some: use another baseline or method",
            sample.input.shape()
        ),
    }
}

/// The beginnings of a sample's paths, as values of the varied tensor.
///
/// # Errors
/// If a baseline does not fit the input.
pub(super) fn starts(
    baselines: &[Baseline],
    sample: &mut VariedSample<'_>,
    draws: usize,
) -> Result<Vec<ArrayD<f64>>> {
    let mut starts = Vec::new();
    for baseline in baselines {
        for array in baseline.arrays(sample, draws)? {
            starts.push(sample.at(&array)?);
        }
    }
    if starts.is_empty() {
        bail!(option, "there is no baseline");
    }
    Ok(starts)
}

/// What the attributions of each sample add up to, beside the difference of the target, if that is known.
pub(super) fn completeness(
    raw: &ArrayD<f64>,
    differences: Option<Vec<f64>>,
    tolerance: f64,
) -> Option<Completeness> {
    let expected = differences?;
    let (expected, found) = match raw.shape().first() == Some(&expected.len()) {
        true => (expected, raw.outer_iter().map(|row| row.sum()).collect()),
        // An inner tensor whose first axis is not that of the samples.
        false => (vec![expected.iter().sum()], vec![raw.sum()]),
    };
    Some(Completeness { expected, found, tolerance, ..Completeness::default() })
}

/// `a - b`, if both are known.
pub(super) fn differences(a: Option<&Vec<f64>>, b: Option<&Vec<f64>>) -> Option<Vec<f64>> {
    Some(a?.iter().zip(b?).map(|(a, b)| a - b).collect())
}

/// Adds numbers to others, times a factor; nothing is known of the sum if one of them is not known.
pub(super) fn accumulate(sum: &mut Option<Vec<f64>>, more: Option<&Vec<f64>>, factor: f64) {
    match (sum.as_mut(), more) {
        (Some(sum), Some(more)) => sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += factor * more),
        _ => *sum = None,
    }
}

/// The tolerance that was typed.
pub(super) fn tolerance(options: &Options) -> Result<f64> {
    match options.parse(TOLERANCE.name, 0.05)? {
        tolerance if f64::is_finite(tolerance) && tolerance > 0.0 => Ok(tolerance),
        tolerance => bail!(option, "tolerance {tolerance}: expected a number above 0"),
    }
}
