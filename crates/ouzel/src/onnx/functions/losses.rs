//! Losses that files carry along, and the shrinkage.

use super::{NodeReader, Result, ValueId, bail};
use crate::builder::Var;
#[cfg(test)]
use crate::gradient_check::{FunctionSample, floats};
#[cfg(test)]
use crate::onnx::Attribute;
use crate::ops::gather::Gather;
use crate::ops::scatter::GatherElements;
use crate::ops::softmax::{LogSoftmax, Normalized};
use crate::tensor::{DType, Tensor};

/// How the losses of all elements become one.
enum Reduction {
    None,
    Sum,
    Mean,
}

struct Loss {
    reduction: Reduction,
    ignored: Option<i64>,
}

impl Loss {
    fn read(node: &mut NodeReader) -> Result<Self> {
        let reduction = match node.string_or("reduction", "mean")?.as_str() {
            "none" => Reduction::None,
            "sum" => Reduction::Sum,
            "mean" => Reduction::Mean,
            other => bail!(model, "attribute 'reduction': expected none, sum or mean, found '{other}'"),
        };
        Ok(Self { reduction, ignored: node.int("ignore_index")? })
    }

    /// `-w[target] · x[target]`; with a mean, over the sum of all `w[target]`.
    fn apply<'b>(&self, x: Var<'b>, target: Var<'b>, weight: Option<Var<'b>>) -> Var<'b> {
        let builder = x.builder();
        let target = target.cast(DType::I64);
        let integer = |value: i64| builder.constant(Tensor::scalar(value));
        let counts = self.ignored.map(|ignored| !target.equal(integer(ignored)));
        let place = counts.map_or(target, |counts| target.select(counts, integer(0)));
        let chosen = builder.apply(GatherElements { axis: 1 }, &[x, place.unsqueeze([1])]).squeeze([1]);
        let mut weight = weight.map(|weight| builder.apply(Gather { axis: 0 }, &[weight, place]));
        if let Some(counts) = counts {
            let whole = weight.unwrap_or_else(|| chosen.scalar_like(1.0).expand_like(chosen));
            weight = Some(whole.select_where(counts));
        }
        let loss = match weight {
            Some(weight) => -(chosen * weight),
            None => -chosen,
        };
        match (&self.reduction, weight) {
            (Reduction::None, _) => loss,
            (Reduction::Sum, _) => loss.sum(),
            (Reduction::Mean, Some(weight)) => loss.sum() / weight.sum(),
            (Reduction::Mean, None) => loss.reduce_mean(0..loss.rank(), false),
        }
    }
}

/// ONNX `NegativeLogLikelihoodLoss` 12, 13, 22.
pub(super) fn negative_log_likelihood(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let loss = Loss::read(node)?;
    node.build(|_, x| match x {
        [Some(scores), Some(target), rest @ ..] => {
            Ok(vec![loss.apply(*scores, *target, rest.first().copied().flatten())])
        }
        _ => bail!(model, "expected scores and a target"),
    })
}

/// The same of the logarithm of the softmax, which is the second output. ONNX `SoftmaxCrossEntropyLoss` 12, 13.
pub(super) fn softmax_cross_entropy(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let loss = Loss::read(node)?;
    node.build(|builder, x| match x {
        [Some(scores), Some(target), rest @ ..] => {
            let log = builder.apply(LogSoftmax(Normalized { axis: 1, flattened: false }), &[*scores]);
            Ok(vec![loss.apply(log, *target, rest.first().copied().flatten()), log])
        }
        _ => bail!(model, "expected scores and a target"),
    })
}

/// `x + bias` below `-lambd`, `x - bias` above `lambd`, 0 between. ONNX `Shrink` 9.
pub(super) fn shrink(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let (bias, bound) = (node.float_or("bias", 0.0)?, node.float_or("lambd", 0.5)?);
    node.build(|_, x| match x {
        [Some(x)] => {
            let dtype = x.dtype();
            let wide = if dtype.is_float() { *x } else { x.cast(DType::F64) };
            let inner = (wide - bias).select_where(wide.greater(bound));
            Ok(vec![(wide + bias).select(wide.less(-bound), inner).cast(dtype)])
        }
        _ => bail!(model, "expected one input"),
    })
}

#[cfg(test)]
pub(super) fn samples() -> Vec<FunctionSample> {
    let scores = || floats(-1.0, 1.0).input(&[3, 4, 2]);
    let target = || Tensor::from(ndarray::array![[0i64, 3], [1, 2], [2, 2]].into_dyn()).into();
    let weight = || Tensor::vector([0.5f64, 1.0, 2.0, 0.7]).into();
    let text = |value: &str| Attribute::String(value.into());
    let mut samples = vec![
        FunctionSample::new(
            "Shrink",
            [floats(-2.0, 2.0).away_from(0.5, 0.1).away_from(-0.5, 0.1).input(&[2, 3])],
        )
        .with("bias", Attribute::Float(0.25)),
    ];
    for op in ["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"] {
        for reduction in ["none", "sum", "mean"] {
            let sample = FunctionSample::new(op, [scores(), target(), weight()]);
            samples.push(sample.with("reduction", text(reduction)).with("ignore_index", Attribute::Int(3)));
        }
        samples.push(FunctionSample::new(op, [scores(), target()]));
    }
    samples
}
