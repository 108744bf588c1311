//! What is explained: which filters of a layer, and how the highest-scoring ones are found.

mod region;

pub use region::Region;

use crate::dim::Dim;
use crate::error::{Result, bail};
use crate::graph::Fact;
use crate::op::resolve_axis;
use crate::tensor::Tensor;
use ndarray::{Array2, ArrayD, Axis};
use std::fmt;

/// The filters of a layer: classes of a dense layer, channels of a convolution.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Filters {
    /// The sum over these filters of the mean over positions.
    List(Vec<usize>),
    /// The mean over the whole tensor: keras-vis's `None`.
    All,
    /// A list for each sample of the batch.
    PerSample(Vec<Vec<usize>>),
    /// So many filters for each sample, which are named only when a plan has run forward: one plan serves any of them.
    /// See [`Explainer::start`](crate::Explainer::start).
    Late(usize),
}

impl From<usize> for Filters {
    fn from(filter: usize) -> Self {
        Self::List(vec![filter])
    }
}

impl<const N: usize> From<[usize; N]> for Filters {
    fn from(filters: [usize; N]) -> Self {
        Self::List(filters.to_vec())
    }
}

impl From<Vec<usize>> for Filters {
    fn from(filters: Vec<usize>) -> Self {
        Self::List(filters)
    }
}

impl fmt::Display for Filters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |list: &[usize]| list.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::List(list) => f.write_str(&join(list)),
            Self::All => f.write_str("all"),
            Self::PerSample(lists) => {
                f.write_str(&lists.iter().map(|list| join(list)).collect::<Vec<_>>().join("; "))
            }
            Self::Late(count) => write!(f, "{count} to be named"),
        }
    }
}

impl Filters {
    /// The filters of each of `samples`, `count` each, as the int64 input `[samples, count]` of a plan.
    ///
    /// # Errors
    /// If they are not as many.
    pub(crate) fn indices(&self, samples: usize, count: usize) -> Result<Tensor> {
        let lists: Vec<&[usize]> = match self {
            Self::List(list) => vec![list; samples],
            Self::PerSample(lists) => lists.iter().map(Vec::as_slice).collect(),
            Self::All | Self::Late(_) => {
                bail!(target, "expected the indices of {count} filters, found '{self}'")
            }
        };
        if lists.len() != samples {
            bail!(target, "expected filters for each of {samples} samples, found them for {}", lists.len());
        }
        if let Some(list) = lists.iter().find(|list| list.len() != count) {
            bail!(target, "the plan was made for {count} filters a sample, found {}", list.len());
        }
        let indices: Vec<i64> = lists.into_iter().flatten().map(|&filter| filter as i64).collect();
        Tensor::from_shape_vec(&[samples, count], indices)
    }
}

/// Where batch, channels and positions are in a target tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetAxes {
    /// The batch axis; `None` if the tensor belongs to a single sample and has no batch axis.
    pub(crate) batch: Option<usize>,
    /// The channel axis; `None` if there is one number a sample.
    pub(crate) channel: Option<usize>,
    /// All other axes.
    pub(crate) positions: Vec<usize>,
}

impl TargetAxes {
    /// Reads the axes off a shape. `batch` is the batch dimension of the model's input.
    pub(crate) fn new(fact: &Fact, channel_axis: i64, batch: Option<&Dim>) -> Result<Self> {
        let rank = fact.rank();
        Ok(match rank {
            0 => Self { batch: None, channel: None, positions: vec![] },
            1 if Some(&fact.shape[0]) == batch => Self { batch: Some(0), channel: None, positions: vec![] },
            1 => Self { batch: None, channel: Some(0), positions: vec![] },
            _ => {
                let channel = resolve_axis(channel_axis, rank)?;
                if channel == 0 {
                    bail!(option, "channel axis {channel_axis}: axis 0 is the batch axis");
                }
                let positions = (1..rank).filter(|&axis| axis != channel).collect();
                Self { batch: Some(0), channel: Some(channel), positions }
            }
        })
    }

    /// The mean over the positions of a region of each filter of each sample: `[samples, filters]`.
    pub(crate) fn scores(&self, y: ArrayD<f64>, region: &Region) -> Result<Array2<f64>> {
        let mut y = region.mean_of(self, y)?;
        for &axis in self.positions.iter().rev() {
            y = y.index_axis_move(Axis(axis), 0);
        }
        // The channel axis is now 1 where there is a batch axis, whatever it was before.
        let (samples, filters) = match (self.batch, self.channel) {
            (Some(_), Some(_)) => (y.shape()[0], y.shape()[1]),
            (Some(_), None) => (y.len(), 1),
            (None, _) => (1, y.len()),
        };
        let elements = y.as_standard_layout().iter().copied().collect();
        Ok(Array2::from_shape_vec((samples, filters), elements)
            .expect("invariant: as many elements as the axes say"))
    }
}

/// The `count` highest-scoring filters of each sample, best first; of equal scores the lower index.
///
/// ```
/// let scores = ndarray::arr2(&[[0.1, 0.7, 0.2]]);
/// assert_eq!(ouzel::top(&scores, 2), [[1, 2]]);
/// ```
pub fn top(scores: &Array2<f64>, count: usize) -> Vec<Vec<usize>> {
    let best = |scores: ndarray::ArrayView1<f64>| {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        order.truncate(count);
        order
    };
    scores.rows().into_iter().map(best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;
    use ndarray::Array;

    #[test]
    fn the_score_of_a_filter_is_its_mean_over_positions() {
        let shape = vec![Dim::symbol("n"), 2.into(), 2.into(), 2.into()];
        let axes = TargetAxes::new(&Fact::new(DType::F32, shape.clone()), 1, None).unwrap();
        let y = Array::from_shape_vec((1, 2, 2, 2), (0..8).map(f64::from).collect()).unwrap().into_dyn();
        assert_eq!(axes.scores(y.clone(), &Region::All).unwrap().as_slice().unwrap(), [1.5, 5.5]);
        let last = TargetAxes::new(&Fact::new(DType::F32, shape), -1, None).unwrap();
        assert_eq!(last.scores(y, &Region::All).unwrap().as_slice().unwrap(), [3.0, 4.0]);
    }

    #[test]
    fn the_score_of_a_region() {
        let fact = Fact::new(DType::F32, vec![Dim::symbol("n"), 2.into(), 2.into(), 2.into()]);
        let axes = TargetAxes::new(&fact, 1, None).unwrap();
        let y: Vec<f64> = vec![0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 0.0, -1.0];
        let y = Array::from_shape_vec((1, 2, 2, 2), y).unwrap().into_dyn();
        let of =
            |region: Region| axes.scores(y.clone(), &region).map(|scores| scores.into_raw_vec_and_offset().0);
        assert_eq!(of("1:2,0:2".parse().unwrap()).unwrap(), [2.5, -0.5]);
        assert_eq!(of("0,1".parse().unwrap()).unwrap(), [1.0, 0.0]);
        assert_eq!(of(Region::Predicted).unwrap(), [2.0, 4.0]);
        let mask = Tensor::from(ndarray::arr2(&[[1u8, 0], [0, 1]]).into_dyn());
        assert_eq!(of(Region::Mask(mask)).unwrap(), [1.5, 1.5]);
        assert!(of("1".parse().unwrap()).unwrap_err().to_string().contains("expected 2 ranges"));
        assert!(of("0:3,0:1".parse().unwrap()).unwrap_err().is_target());
        for wrong in ["", "3:1", "a:b", "1:2:3", "-1"] {
            assert!(wrong.parse::<Region>().unwrap_err().is_option(), "{wrong}");
        }
        assert_eq!("4:9, 2".parse::<Region>().unwrap().to_string(), "4:9,2:3");
    }

    #[test]
    fn the_first_of_equal_scores_is_on_top() {
        let scores = ndarray::arr2(&[[1.0, 3.0, 3.0], [0.5, f64::NEG_INFINITY, 0.0]]);
        assert_eq!(top(&scores, 2), [[1, 2], [0, 2]]);
    }
}
