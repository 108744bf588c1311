//! `ouzel visualize`: pictures of what filters respond to, on a sheet, or as an animation of how they come about.

use crate::args::VisualizeArgs;
use crate::files;
use crate::input::{SIDE, preprocess_of, with_size};
use crate::job::{Goal, Pictures, Run, read_labels};
use crate::messages::{Messages, usage};
use crate::report;
use crate::target::Target;
use anyhow::{Context, Result, bail};
use ndarray::{Array3, ArrayD, Axis};
use ouzel::image::{Filter, Grid, Preprocess, Size, Tile, encode_gif, encode_png, resize_rgb8};
use ouzel::losses::{LpNorm, TotalVariation, WeightedLoss};
use ouzel::visualization::{
    FeatureVisualization, Jitter, Maximization, deprocess, visualize_activation_with_losses,
};
use ouzel::{Model, Precision, Region};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// So many filters are shown if nothing is said.
const MOST: usize = 16;

/// Milliseconds that a frame of an animation is shown for, and the last one.
const FRAME: u32 = 60;
const LAST_FRAME: u32 = 2500;

/// A picture that came out.
struct Made {
    filters: Vec<usize>,
    /// The picture at each of the steps that are kept; the last one is the result.
    frames: Vec<Array3<u8>>,
    first_score: f64,
    score: f64,
}

/// Makes the pictures.
pub fn run(typed: &VisualizeArgs) -> Result<()> {
    let is_animation = match typed.out.extension().map(|it| it.to_ascii_lowercase()) {
        Some(gif) if gif == "gif" => true,
        Some(png) if png == "png" => false,
        _ if files::is_stream(&typed.out) => false,
        _ => usage!("--out {}: expected a name that ends in .png or .gif", typed.out.display()),
    };
    check_profile(typed)?;
    files::check_parent("--out", &typed.out)?;
    if let Some(json) = &typed.json {
        files::check_parent("--json", json)?;
        files::check_streams("of the outputs", [&*typed.out, &**json])?;
    }
    let pictures = Pictures::new(&typed.pictures)?;
    let labels = read_labels(&typed.labels)?;
    let run = Run::new(&typed.run)?;
    let messages = Messages::new(typed.run.quiet);
    let model = files::read_model(&typed.model)?;
    let preprocess = preprocess_of(&model, &pictures, Size::new(SIDE, SIDE))?;
    let model = match preprocess.size {
        Some(size) if model.awaits_sizes() => with_size(&model, preprocess.layout, size)?,
        _ => model,
    };
    let goal = Goal::Target {
        layer: typed.layer.clone(),
        filters: None,
        channel_axis: typed.channel_axis,
        region: Region::All,
        keep_softmax: typed.keep_softmax,
    };
    let Some(target) = Target::new(&model, &goal, labels.as_ref())? else {
        bail!("there is nothing to visualize");
    };
    let wanted = wanted(&target, typed, &messages)?;
    if pictures.preset.is_none() && !model.metadata().contains_key("preprocess") && typed.profile == "ouzel" {
        messages.note(
            "note: black is 0 and white 255 to the network (--preprocess raw); if it was trained on other values, say \
             so: unit is 0..1, imagenet is torchvision's; also caffe, tf",
        );
    }
    let start = Instant::now();
    let progress = messages.progress();
    let mut made = Vec::new();
    for (index, filters) in wanted.iter().enumerate() {
        let done = |step: usize, steps: usize| progress.report(index * steps + step, wanted.len() * steps);
        let frames = if is_animation { typed.frames } else { 1 };
        let one = match &*typed.profile {
            "keras-vis" => maximized(&model, &target, filters, typed, &preprocess, frames, &done),
            _ => visualized(&model, &target, filters, typed, &preprocess, frames, &done),
        };
        let one = one.with_context(|| format!("filter {} of {}", shown(filters), target.layer))?;
        if one.score == one.first_score {
            messages.warning(format!(
                "filter {} of '{}' does not respond to anything that was tried",
                shown(filters),
                target.layer
            ));
        }
        made.push(one);
    }
    progress.report(1, 1);
    let bytes = match is_animation {
        true => {
            let count = made.iter().map(|made| made.frames.len()).max().unwrap_or(0);
            let sheets = (0..count).map(|frame| sheet(&made, &target, frame)).collect::<Result<Vec<_>>>()?;
            encode_gif(&sheets, FRAME, LAST_FRAME)?
        }
        false => encode_png(sheet(&made, &target, usize::MAX)?.view())?,
    };
    files::write(&typed.out, &bytes)?;
    let names: Vec<String> = made.iter().map(|made| caption(&target, &made.filters)).collect();
    messages.note(format!("{}: {} -> {}", target.layer, names.join(", "), typed.out.display()));
    if run.timings {
        messages.note(format!("  {:.0} ms", start.elapsed().as_secs_f64() * 1e3));
    }
    if let Some(path) = &typed.json {
        let text = report::text(&json(&model, &target, typed, &preprocess, &made));
        files::write(path, text.as_bytes())?;
    }
    Ok(())
}

/// Options of one profile say nothing to the other.
fn check_profile(typed: &VisualizeArgs) -> Result<()> {
    let of_keras = [
        ("--tv-weight", typed.tv_weight.is_some()),
        ("--lp-norm-weight", typed.lp_norm_weight.is_some()),
        ("--input-range", !typed.input_range.is_empty()),
    ];
    let of_ouzel = [
        ("--rotate", typed.rotate.is_some()),
        ("--scale", typed.scale.is_some()),
        ("--learning-rate", typed.learning_rate.is_some()),
        ("--decay", typed.decay.is_some()),
    ];
    let (others, profile) = match &*typed.profile {
        "keras-vis" => (&of_ouzel[..], "ouzel"),
        _ => (&of_keras[..], "keras-vis"),
    };
    if let Some((option, _)) = others.iter().find(|(_, is_typed)| *is_typed) {
        usage!("{option} is an option of --profile {profile}");
    }
    if !matches!(typed.input_range.len(), 0 | 2) {
        usage!("--input-range: expected two numbers, LO,HI");
    }
    Ok(())
}

/// The filters of each picture.
fn wanted(target: &Target<'_>, typed: &VisualizeArgs, messages: &Messages) -> Result<Vec<Vec<usize>>> {
    let count = target.count();
    let all = |most: usize| -> Result<Vec<Vec<usize>>> {
        let Some(count) = count else {
            bail!("'{}' does not say how many filters it has: name some with --filters", target.layer);
        };
        if count > most {
            messages.note(format!(
                "the first {most} of the {count} filters of '{}' are shown (--filters names others)",
                target.layer
            ));
        }
        Ok((0..count.min(most)).map(|filter| vec![filter]).collect())
    };
    match &typed.filters[..] {
        [] => all(MOST),
        [word] if word == "all" => all(crate::draw::MOST_TILES),
        typed => {
            let mut wanted = Vec::new();
            for text in typed {
                // A label may have a comma or a plus in it.
                let is_label = target.labels.as_ref().is_some_and(|labels| labels.index(text.trim()).is_ok());
                let parts: Vec<&str> = if is_label { vec![text] } else { text.split(',').collect() };
                for part in parts {
                    let together: Vec<String> = match is_label {
                        true => vec![part.to_owned()],
                        false => part.split('+').map(|text| text.trim().to_owned()).collect(),
                    };
                    wanted.push(target.listed(&together)?);
                }
            }
            Ok(wanted)
        }
    }
}

fn shown(filters: &[usize]) -> String {
    filters.iter().map(usize::to_string).collect::<Vec<_>>().join(" + ")
}

fn caption(target: &Target<'_>, filters: &[usize]) -> String {
    let name = |&filter: &usize| match target.label(filter) {
        Some(label) => format!("{label} ({filter})"),
        None => format!("filter {filter}"),
    };
    filters.iter().map(name).collect::<Vec<_>>().join(" + ")
}

/// The steps whose pictures are kept: more of the early ones, where more happens.
fn is_kept(step: usize, steps: usize, frames: usize) -> bool {
    let place = |frame: usize| (frame as f64 / frames as f64).powi(2) * steps as f64;
    frames > 1 && (0..frames).any(|frame| place(frame) as usize == step)
}

/// A picture as ouzel makes it.
fn visualized(
    model: &Model,
    target: &Target<'_>,
    filters: &[usize],
    typed: &VisualizeArgs,
    preprocess: &Preprocess,
    frames: usize,
    done: &dyn Fn(usize, usize),
) -> Result<Made> {
    let mut options = FeatureVisualization::new(preprocess.clone());
    options.steps = typed.steps.unwrap_or(options.steps);
    options.jitter = typed.jitter.unwrap_or(options.jitter);
    options.rotate = typed.rotate.unwrap_or(options.rotate);
    options.scale = typed.scale.unwrap_or(options.scale);
    options.learning_rate = typed.learning_rate.unwrap_or(options.learning_rate);
    options.decay = typed.decay.unwrap_or(options.decay);
    options.seed = typed.run.seed;
    options.precision = typed.run.precision;
    let steps = options.steps;
    let prepared =
        options.prepare(model, &[WeightedLoss::new(target.activation(filters.to_vec().into()), 1.0)])?;
    let mut kept = Vec::new();
    let made = prepared.run(None, |step| {
        if is_kept(step.index, steps, frames) {
            kept.push(step.picture());
        }
        done(step.index, steps);
    })?;
    kept.push(made.picture);
    Ok(Made { filters: filters.to_vec(), frames: kept, first_score: -made.first_loss, score: -made.loss })
}

/// A picture as keras-vis makes it.
fn maximized(
    model: &Model,
    target: &Target<'_>,
    filters: &[usize],
    typed: &VisualizeArgs,
    preprocess: &Preprocess,
    frames: usize,
    done: &dyn Fn(usize, usize),
) -> Result<Made> {
    let mut options = Maximization::default();
    options.max_iter = typed.steps.unwrap_or(options.max_iter);
    options.tv_weight = typed.tv_weight.unwrap_or(options.tv_weight);
    options.lp_norm_weight = typed.lp_norm_weight.unwrap_or(options.lp_norm_weight);
    if let [low, high] = typed.input_range[..] {
        options.input_range = (low, high);
    }
    options.seed = typed.run.seed;
    options.precision = match typed.run.precision {
        Precision::F32 => Precision::F32Direct,
        precision => precision,
    };
    let channel_axis = if preprocess.layout == ouzel::image::Layout::Nchw { 1 } else { 3 };
    options.shape = preprocess.size.map(|size| match channel_axis {
        1 => vec![preprocess.channel_order().count(), size.height, size.width],
        _ => vec![size.height, size.width, preprocess.channel_order().count()],
    });
    if let Some(jitter) = typed.jitter.filter(|&jitter| jitter > 0.0) {
        options.input_modifiers =
            vec![Arc::new(Jitter { most: vec![jitter], channel_axis: Some(channel_axis) })];
    }
    let range = options.input_range;
    let steps = options.max_iter;
    let (mut kept, mut scores) = (Vec::new(), Vec::new());
    let made = visualize_activation_with_losses(
        model,
        &[
            WeightedLoss::new(target.activation(filters.to_vec().into()), options.act_max_weight),
            WeightedLoss::new(LpNorm::default(), options.lp_norm_weight),
            WeightedLoss::new(TotalVariation::default(), options.tv_weight),
        ],
        None,
        &options,
        |it| {
            scores.push(-it.losses.first().map_or(0.0, |(_, value)| *value));
            if is_kept(it.index, steps, frames) {
                let mut frame = it.input.index_axis(Axis(0), 0).to_owned();
                if channel_axis == 1 {
                    frame = frame.permuted_axes(vec![1, 2, 0]);
                }
                kept.push(rgb8(&deprocess(frame, range), range));
            }
            done(it.index, steps);
        },
    )?;
    kept.push(rgb8(&made.picture, range));
    let (first, last) = (scores.first().copied(), scores.last().copied());
    Ok(Made {
        filters: filters.to_vec(),
        frames: kept,
        first_score: first.unwrap_or(0.0),
        score: last.unwrap_or(0.0),
    })
}

/// A picture `[height, width, channels]` within a range as 8-bit RGB.
fn rgb8(picture: &ArrayD<f64>, (low, high): (f64, f64)) -> Array3<u8> {
    let shape = picture.shape();
    Array3::from_shape_fn((shape[0], shape[1], 3), |(row, column, channel)| {
        let value = picture[[row, column, channel.min(shape[2] - 1)]];
        ((value - low) / (high - low) * 255.0).clamp(0.0, 255.0) as u8
    })
}

/// A frame of all pictures: one alone, or several with captions on a sheet.
fn sheet(made: &[Made], target: &Target<'_>, frame: usize) -> Result<Array3<u8>> {
    let picture = |made: &Made| -> Array3<u8> { made.frames[frame.min(made.frames.len() - 1)].clone() };
    if let [one] = made {
        let picture = picture(one);
        let (height, width, _) = picture.dim();
        // Small pictures are enlarged, so that they can be looked at.
        let factor = 256usize.div_ceil(height.max(width)).max(1);
        let size = Size::new(height * factor, width * factor);
        return Ok(resize_rgb8(picture.view(), size, Filter::Bicubic)?);
    }
    let tiles: Vec<Tile> = made
        .iter()
        .map(|made| {
            let note = format!("{} to {}", report::number(made.first_score), report::number(made.score));
            Tile::new(picture(made)).title(caption(target, &made.filters)).note(note)
        })
        .collect();
    let side = if made.len() > 9 { 160 } else { 224 };
    Ok(Grid::default().tile_width(side).title(target.layer.clone()).draw(&tiles)?)
}

/// What is known about the result, for programs.
fn json(
    model: &Model,
    target: &Target<'_>,
    typed: &VisualizeArgs,
    preprocess: &Preprocess,
    made: &[Made],
) -> Value {
    let picture = |made: &Made| {
        json!({
            "filters": made.filters,
            "labels": made.filters.iter().map(|&filter| target.label(filter)).collect::<Vec<_>>(),
            "first_score": made.first_score,
            "score": made.score,
        })
    };
    json!({
        "model": model.title(),
        "layer": target.layer,
        "channel_axis": target.channel_axis,
        "profile": typed.profile,
        "steps": typed.steps,
        "seed": typed.run.seed,
        "precision": typed.run.precision.to_string(),
        "preprocess": preprocess.preset.name(),
        "pictures": made.iter().map(picture).collect::<Vec<_>>(),
        "files": [typed.out.display().to_string()],
    })
}
