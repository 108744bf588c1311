//! keras-vis's `visualize_activation`: every iteration, and the picture that comes out.

use crate::checks::{Checks, Limits, Tolerance, largest};
use crate::folder::Folder;
use crate::keras::{Target, backprop_modifier, grad_modifier};
use anyhow::{Context, Result};
use ndarray::{ArrayD, Axis};
use ouzel::losses::{ActivationMaximization, LpNorm, TotalVariation, WeightedLoss};
use ouzel::visualization::{Maximization, visualize_activation_with_losses};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Deserialize)]
struct Arguments {
    backprop_modifier: Option<String>,
    grad_modifier: Option<String>,
    act_max_weight: f64,
    lp_norm_weight: f64,
    tv_weight: f64,
    max_iter: usize,
    input_range: (f64, f64),
    lp_p: f64,
    tv_beta: f64,
}

#[derive(Debug, Deserialize)]
struct Call {
    target: Target,
    arguments: Arguments,
    loss_names: Vec<String>,
    weighted_losses_per_iteration: Vec<Vec<f64>>,
    overall_loss_per_iteration: Vec<f64>,
    result_is_uint8: bool,
    seed_input: String,
    result: String,
    input_per_iteration: Option<String>,
    gradient_per_iteration: Option<String>,
    gradient_of_first_iteration: Option<String>,
    tolerance: Tolerance,
}

/// The numbers of an optimizer's loop drift apart: the first iteration is compared as tightly as the data asks for,
/// later ones within what the peer's own single and double precision differ by at most.
const FIRST: f64 = 1e-4;
const LATER: f64 = 2e-3;

/// keras-vis's `visualize_activation`.
pub(crate) fn visualize_activation(folder: &Folder, case: &Value) -> Result<Checks> {
    let call = Call::deserialize(case)?;
    let given = &call.arguments;
    let layer = ActivationMaximization::new(call.target.onnx_tensor.as_str(), call.target.filters());
    let losses = [
        WeightedLoss::new(layer, given.act_max_weight),
        WeightedLoss::new(LpNorm { p: given.lp_p }, given.lp_norm_weight),
        WeightedLoss::new(TotalVariation { beta: given.tv_beta }, given.tv_weight),
    ];
    let mut options = Maximization::default();
    options.input_range = given.input_range;
    options.backprop_modifier = backprop_modifier(given.backprop_modifier.as_deref())?;
    options.grad_modifier = grad_modifier(given.grad_modifier.as_deref())?;
    options.max_iter = given.max_iter;
    let seed = folder.array(&call.seed_input)?;
    let (mut names, mut values, mut totals) = (Vec::new(), Vec::new(), Vec::new());
    let (mut inputs, mut gradients): (Vec<ArrayD<f64>>, Vec<ArrayD<f64>>) = (Vec::new(), Vec::new());
    let made = visualize_activation_with_losses(folder.model(), &losses, Some(seed), &options, |it| {
        names = it.losses.iter().map(|(name, _)| name.clone()).collect();
        values.push(it.losses.iter().map(|(_, value)| *value).collect::<Vec<f64>>());
        totals.push(it.total);
        inputs.push(it.input.index_axis(Axis(0), 0).to_owned());
        gradients.push(it.gradient.index_axis(Axis(0), 0).to_owned());
    })?;

    let mut checks = Checks::default();
    checks.equal("names of the losses", &names, &call.loss_names);
    checks.equal("iterations", totals.len(), call.overall_loss_per_iteration.len());
    let expected = call.weighted_losses_per_iteration.iter().zip(&call.overall_loss_per_iteration);
    for (index, ((ours, total), (theirs, overall))) in values.iter().zip(&totals).zip(expected).enumerate() {
        let rtol = if index == 0 { FIRST } else { LATER };
        let row = |values: &[f64], total: f64| {
            ArrayD::from_shape_vec(vec![values.len() + 1], [values, &[total]].concat())
        };
        let theirs = row(theirs, *overall)?;
        let limits = Limits { atol: rtol * 1e-2 * largest(&theirs), rtol };
        checks.close(&format!("losses of iteration {index}"), &row(ours, *total)?, &theirs, limits);
    }
    let mut compare = |what: &str, file: &Option<String>, ours: &[ArrayD<f64>]| -> Result<()> {
        let Some(file) = file else { return Ok(()) };
        let theirs = folder.array(file)?;
        let of_iterations = match theirs.ndim() == ours[0].ndim() + 1 && theirs.shape()[0] == ours.len() {
            true => theirs,
            false => theirs.into_shape_with_order([&[1], ours[0].shape()].concat())?,
        };
        for (index, theirs) in of_iterations.outer_iter().enumerate() {
            let relative = if index == 0 { FIRST } else { 10.0 * LATER };
            let (ours, theirs) = (&ours[index], theirs.to_owned());
            checks.relative(&format!("{what} of iteration {index}"), ours, &theirs, relative);
        }
        Ok(())
    };
    compare("input", &call.input_per_iteration, &inputs)?;
    compare("gradient", &call.gradient_per_iteration, &gradients)?;
    compare("gradient", &call.gradient_of_first_iteration, &gradients)?;
    let limits = call.tolerance.limits().context("the case has no elementwise tolerance")?;
    let picture = if call.result_is_uint8 { made.picture.mapv(f64::trunc) } else { made.picture };
    checks.close("result", &picture, &folder.array(&call.result)?, limits);
    Ok(checks)
}
