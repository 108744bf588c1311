//! Attention as one op, and the normalization and rotation that come before it.

use super::{NodeReader, Result, ValueId, bail};
use crate::builder::Var;
#[cfg(test)]
use crate::gradient_check::{FunctionSample, floats};
#[cfg(test)]
use crate::onnx::Attribute;
use crate::op::resolve_axis;
use crate::ops::gather::Gather;
use crate::ops::layout::Reshape;
use crate::ops::rearrange::Trilu;
use crate::tensor::DType;
#[cfg(test)]
use crate::tensor::Tensor;

/// The same elements in another shape, in which 0 copies a length and -1 is what is left over.
fn reshaped<'b, const N: usize>(x: Var<'b>, shape: [i64; N]) -> Var<'b> {
    x.builder().apply(Reshape { allow_zero: false }, &[x, x.builder().integers(shape)])
}

/// `[batch, length, heads · size]` as `[batch, heads, length, size]`, which other inputs have already.
fn split_heads<'b>(x: Var<'b>, heads: Option<i64>, attribute: &str) -> Result<Var<'b>> {
    match (x.rank(), heads) {
        (4, _) => Ok(x),
        (3, Some(heads)) if heads > 0 => Ok(reshaped(x, [0, 0, heads, -1]).transpose([0, 2, 1, 3])),
        (3, _) => bail!(model, "attribute '{attribute}': the number of heads is missing"),
        _ => bail!(shape, "expected a tensor of rank 3 or 4, found {}", x.fact()),
    }
}

/// `[batch, heads, length, size]` in the rank that it came in.
fn join_heads(x: Var<'_>, rank: usize) -> Var<'_> {
    if rank == 4 { x } else { reshaped(x.transpose([0, 2, 1, 3]), [0, 0, -1]) }
}

/// `softmax(scale · Q Kᵀ + mask) V` for each head. ONNX `Attention` 23, 24, 25.
///
/// A query that may look at nothing gives 0.
pub(super) fn attention(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let causal = node.flag_or("is_causal", false)?;
    let (query_heads, key_heads) = (node.int("q_num_heads")?, node.int("kv_num_heads")?);
    let (scale, cap) = (node.float("scale")?, node.float_or("softcap", 0.0)?);
    let mode = node.int_or("qk_matmul_output_mode", 0)?;
    node.ignore("softmax_precision");
    node.build(|builder, x| {
        let [Some(query), Some(key), Some(value), rest @ ..] = x else {
            bail!(model, "expected a query, a key and a value");
        };
        let given = |index: usize| rest.get(index).copied().flatten();
        if given(3).is_some() {
            bail!(unsupported, "keys and values of several lengths are not supported");
        }
        let rank = query.rank();
        let query = split_heads(*query, query_heads, "q_num_heads")?;
        let mut key = split_heads(*key, key_heads, "kv_num_heads")?;
        let mut value = split_heads(*value, key_heads, "kv_num_heads")?;
        let mut past = 0;
        if let (Some(past_key), Some(past_value)) = (given(1), given(2)) {
            past = super::known_lengths(&past_key.shape()[2..3], "the past")?[0];
            key = builder.concat(&[past_key, key], 2);
            value = builder.concat(&[past_value, value], 2);
        }
        let present = [key, value];
        let heads = super::known_lengths(&[query.shape()[1].clone(), key.shape()[1].clone()], "heads")?;
        if heads[1] < 1 || heads[0] % heads[1] != 0 {
            bail!(shape, "{} heads of the query cannot share {} of the key", heads[0], heads[1]);
        }
        if heads[0] != heads[1] {
            let shared: Vec<i64> = (0..heads[0]).map(|head| head / (heads[0] / heads[1])).collect();
            (key, value) = (key.gather(1, shared.clone()), value.gather(1, shared));
        }
        let size = super::known_lengths(&query.shape()[3..], "a head")?[0];
        let root = scale.unwrap_or(1.0 / (size as f64).sqrt()).sqrt();
        let products = (query * root).matmul((key * root).transpose_last_two());
        let capped = if cap > 0.0 { (products / cap).tanh() * cap } else { products };
        let nothing = capped.scalar_like(f64::NEG_INFINITY);
        let mut masked = capped;
        match given(0) {
            Some(mask) if mask.dtype() == DType::Bool => masked = masked.select(mask, nothing),
            Some(mask) => masked = masked + mask,
            None => {}
        }
        if causal {
            let all = masked.scalar_like(1.0).expand_like(masked);
            let seen = builder.apply(Trilu { upper: false }, &[all, builder.integers([past]).reshape([])]);
            masked = masked.select(seen.greater(0.0), nothing);
        }
        let weights = if given(0).is_some() {
            let sees = masked.reduce_max([3], true).greater(f64::NEG_INFINITY);
            masked.select(sees, 0.0).softmax(3).select_where(sees)
        } else {
            masked.softmax(3)
        };
        let told = match mode {
            0 => products,
            1 => capped,
            2 => masked,
            3 => weights,
            other => bail!(model, "attribute 'qk_matmul_output_mode': expected 0 to 3, found {other}"),
        };
        Ok(vec![join_heads(weights.matmul(value), rank), present[0], present[1], told])
    })
}

/// Turns pairs of elements by angles whose cosines and sines are given. ONNX `RotaryEmbedding` 23.
pub(super) fn rotary_embedding(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let (heads, turned) = (node.int("num_heads")?, node.int_or("rotary_embedding_dim", 0)?);
    let interleaved = node.flag_or("interleaved", false)?;
    node.build(|builder, x| {
        let [Some(x), Some(cos), Some(sin), rest @ ..] = x else {
            bail!(model, "expected an input, cosines and sines");
        };
        let rank = x.rank();
        let x = split_heads(*x, heads.filter(|&heads| heads > 0), "num_heads")?;
        let size = super::known_lengths(&x.shape()[3..], "a head")?[0];
        let turned = if turned == 0 { size } else { turned };
        if turned % 2 != 0 || !(0..=size).contains(&turned) {
            bail!(shape, "{turned} of {size} elements cannot be turned in pairs");
        }
        let positions = rest.first().copied().flatten();
        let [cos, sin] = [*cos, *sin].map(|table| match positions {
            Some(positions) => builder.apply(Gather { axis: 0 }, &[table, positions]).unsqueeze([1]),
            None => table.unsqueeze([1]),
        });
        let half = turned / 2;
        let places = |part: i64| -> Vec<i64> {
            (0..half).map(|place| if interleaved { 2 * place + part } else { part * half + place }).collect()
        };
        let (a, b) = (x.gather(3, places(0)), x.gather(3, places(1)));
        let (real, imaginary) = (cos * a - sin * b, sin * a + cos * b);
        let mut parts = vec![real, imaginary];
        if turned < size {
            parts.push(x.slice(3, turned, size));
        }
        let joined = builder.concat(&parts, 3);
        let order = (0..size).map(|place| match interleaved && place < turned {
            true => place % 2 * half + place / 2,
            false => place,
        });
        let y = if interleaved { joined.gather(3, order.collect()) } else { joined };
        Ok(vec![join_heads(y, rank)])
    })
}

/// `x / √(mean x² + ε) · scale`, the mean over the axes from `axis` on. ONNX `RMSNormalization` 23.
pub(super) fn rms_normalization(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let (axis, epsilon) = (node.int_or("axis", -1)?, node.float_or("epsilon", 1e-5)?);
    node.ignore("stash_type");
    node.build(|_, x| {
        let [Some(x), Some(scale)] = x else { bail!(model, "expected an input and a scale") };
        let axis = resolve_axis(axis, x.rank())?;
        let mean = (*x * *x).reduce_mean(axis..x.rank(), true);
        Ok(vec![*x / (mean + epsilon).sqrt() * *scale])
    })
}

#[cfg(test)]
pub(super) fn samples() -> Vec<FunctionSample> {
    let x = |shape: &[usize]| floats(-1.0, 1.0).input(shape);
    let heads = |count| Attribute::Int(count);
    let three = || FunctionSample::new("Attention", [x(&[2, 3, 8]), x(&[2, 5, 4]), x(&[2, 5, 6])]);
    let four = [x(&[2, 2, 3, 4]), x(&[2, 2, 5, 4]), x(&[2, 2, 5, 3]), x(&[3, 5])];
    let angles = || floats(-1.0, 1.0).input(&[7, 2]);
    let positions = || Tensor::from(ndarray::array![[1i64, 0, 4], [2, 6, 6]].into_dyn()).into();
    let rotated =
        || FunctionSample::new("RotaryEmbedding", [x(&[2, 3, 10]), angles(), angles(), positions()]);
    vec![
        three().with("q_num_heads", heads(4)).with("kv_num_heads", heads(2)),
        three()
            .with("q_num_heads", heads(4))
            .with("kv_num_heads", heads(2))
            .with("is_causal", Attribute::Int(1))
            .with("softcap", Attribute::Float(1.5)),
        FunctionSample::new("Attention", four).with("scale", Attribute::Float(0.7)),
        rotated().with("num_heads", heads(2)).with("rotary_embedding_dim", Attribute::Int(4)),
        rotated()
            .with("num_heads", heads(2))
            .with("rotary_embedding_dim", Attribute::Int(4))
            .with("interleaved", Attribute::Int(1)),
        FunctionSample::new("RMSNormalization", [x(&[2, 3, 4]), x(&[3, 4])]).with("axis", Attribute::Int(1)),
    ]
}
