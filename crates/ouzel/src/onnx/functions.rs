//! Ops that other ops can say: reading a node of such an op adds the nodes that it stands for, so that rules and
//! gradients need to know nothing of it.

mod attention;
mod losses;
mod normalization;
mod quantized;
mod recurrent;
mod sampling;
mod selection;
mod sequences;
mod signal;
mod windows;

use super::NodeReader;
use crate::error::{Result, bail};
use crate::graph::ValueId;
use crate::tensor::{DType, Tensor};

/// Reads a node, adds what it stands for, and gives the values of its outputs.
pub(crate) type Function = fn(&mut NodeReader) -> Result<Vec<ValueId>>;

/// The functions by the name of the op.
pub(crate) const LIST: &[(&str, Function)] = &[
    ("AffineGrid", sampling::affine_grid),
    ("Attention", attention::attention),
    ("BlackmanWindow", signal::blackman_window),
    ("CenterCropPad", windows::center_crop_pad),
    ("Col2Im", windows::col2im),
    ("Compress", selection::compress),
    ("ConcatFromSequence", sequences::concat_from_sequence),
    ("ConvInteger", quantized::conv_integer),
    ("DFT", signal::dft),
    ("DeformConv", sampling::deform_conv),
    ("DequantizeLinear", quantized::dequantize_linear),
    ("DynamicQuantizeLinear", quantized::dynamic_quantize_linear),
    ("GRU", recurrent::gru),
    ("GridSample", sampling::grid_sample),
    ("HammingWindow", signal::hamming_window),
    ("HannWindow", signal::hann_window),
    ("LSTM", recurrent::lstm),
    ("MatMulInteger", quantized::matmul_integer),
    ("MaxUnpool", windows::max_unpool),
    ("MelWeightMatrix", signal::mel_weight_matrix),
    ("NegativeLogLikelihoodLoss", losses::negative_log_likelihood),
    ("NonMaxSuppression", selection::non_max_suppression),
    ("NonZero", selection::non_zero),
    ("QLinearConv", quantized::qlinear_conv),
    ("QLinearMatMul", quantized::qlinear_matmul),
    ("QuantizeLinear", quantized::quantize_linear),
    ("RMSNormalization", attention::rms_normalization),
    ("RNN", recurrent::rnn),
    ("RoiAlign", sampling::roi_align),
    ("RotaryEmbedding", attention::rotary_embedding),
    ("STFT", signal::stft),
    ("SequenceAt", sequences::sequence_at),
    ("SequenceConstruct", sequences::sequence_construct),
    ("Shrink", losses::shrink),
    ("SoftmaxCrossEntropyLoss", losses::softmax_cross_entropy),
    ("SplitToSequence", sequences::split_to_sequence),
    ("Unique", selection::unique),
];

/// True for an op whose output is a list of tensors.
pub(super) fn makes_a_list(op: &str) -> bool {
    sequences::MAKERS.contains(&op)
}

/// Inputs that the gradient check runs the functions on.
#[cfg(test)]
pub(crate) fn samples() -> Vec<crate::gradient_check::FunctionSample> {
    let families = [
        attention::samples(),
        losses::samples(),
        recurrent::samples(),
        sampling::samples(),
        selection::samples(),
        sequences::samples(),
        signal::samples(),
        windows::samples(),
    ];
    families.into_iter().flatten().collect()
}

/// What a cast to a type that is held in a wider one stands for.
pub(super) fn narrow_cast(op: &str) -> Function {
    if op == "Cast" { quantized::narrow_cast } else { quantized::narrow_cast_like }
}

/// What a batch normalization in training mode stands for.
pub(super) const BATCH_NORMALIZATION_IN_TRAINING: Function = normalization::batch_normalization_in_training;

/// The lengths of axes that must be known.
fn known_lengths(shape: &[crate::dim::Dim], what: &str) -> Result<Vec<i64>> {
    match shape.iter().map(crate::dim::Dim::known).collect() {
        Some(lengths) => Ok(lengths),
        None => bail!(
            unsupported,
            "{what} must be of known size, found {}: export the model with it",
            crate::dim::display_shape(shape)
        ),
    }
}

/// The only number of a tensor.
fn one_number(tensor: &Tensor, what: &str) -> Result<f64> {
    match (tensor.len(), tensor.to_f64().iter().next()) {
        (1, Some(value)) => Ok(*value),
        _ => bail!(shape, "expected {what} to be one number, found the shape {:?}", tensor.shape()),
    }
}

/// The only integer of a tensor.
fn one_integer(tensor: &Tensor, what: &str) -> Result<i64> {
    match tensor.cast(DType::I64).to_integers()?[..] {
        [value] => Ok(value),
        _ => bail!(shape, "expected {what} to be one integer, found the shape {:?}", tensor.shape()),
    }
}

/// The element type that an attribute names, float32 by default.
fn read_dtype(node: &mut NodeReader, name: &str) -> Result<DType> {
    match node.int(name)? {
        Some(code) => super::dtype_of_code(code),
        None => Ok(DType::F32),
    }
}
