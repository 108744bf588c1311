//! `ouzel compare`: one input, several methods, their maps side by side.

use crate::args::CompareArgs;
use crate::draw::draw;
use crate::explain::{announce, set_channel_axis};
use crate::files;
use crate::input::{self, Backdrop, Reader, Ready};
use crate::job::{Data, Goal, Method, Output, Run};
use crate::messages::{Messages, usage};
use crate::report::{self, Scored};
use crate::target::{Chosen, Scores, Target};
use anyhow::{Result, bail};
use ndarray::Array3;
use ouzel::image::{Grid, Tile, View, encode_png};
use ouzel::losses::WeightedLoss;
use ouzel::{Attribution, Model, Task, Tensor, ValueId};
use serde_json::{Value, json};
use std::time::Instant;

/// What all methods explain.
struct Subject<'s> {
    model: &'s Model,
    inputs: &'s [(ValueId, Tensor)],
    target: Option<&'s Target<'s>>,
    losses: &'s [WeightedLoss],
}

/// What one of them gave.
struct Explained {
    attribution: Attribution,
    chosen: Option<Chosen>,
    scores: Option<Scores>,
    milliseconds: f64,
}

/// Runs the verb; the exit code.
pub fn run(typed: &CompareArgs) -> Result<u8> {
    let goal = Goal::new(&typed.target)?;
    if goal.map_count() > 1 {
        usage!("--filters: expected indices, a label, top or all; methods are compared on one target");
    }
    let data = Data::new(&typed.data, &typed.pictures, &typed.labels)?;
    if data.sources.len() > 1 {
        usage!("there are {} inputs; methods are compared on one", data.sources.len());
    }
    if let Some(option) = typed.method.without_method() {
        usage!(
            "--{}: none of the methods {} has this option",
            option.replace('_', "-"),
            typed.method.methods.join(", ")
        );
    }
    files::check_parent("--out", &typed.out)?;
    if let Some(json) = &typed.json {
        files::check_parent("--json", json)?;
        files::check_streams("of the outputs", [&*typed.out, &**json])?;
    }
    let run = Run::new(&typed.run)?;
    let messages = Messages::new(typed.run.quiet);
    let model = input::sized(files::read_model(&data.model)?, &data)?;
    let reader = Reader::new(&model, &data, &messages)?;
    let mut methods = Vec::new();
    for name in &typed.method.methods {
        methods.push(Method::new(&typed.method.of(name), &typed.run, &|path| reader.others(path))?);
    }
    for method in &mut methods {
        set_channel_axis(&model, &data, method)?;
        method.method.settings_mut().progress = messages.progress();
    }
    let target = Target::new(&model, &goal, data.labels.as_ref())?;
    if let Some(target) = &target {
        announce(&model, &goal, target, &messages);
    }
    let ready = match data.sources.first() {
        Some(source) => reader.read(&source.path)?,
        None => reader.named_only(),
    };
    let inputs = ready.input.resolve(&model)?;
    let own;
    let losses = match (&target, &goal) {
        (Some(target), _) => {
            own = [target.loss()?];
            &own
        }
        (None, Goal::Losses(_, losses)) => &losses[..],
        (None, _) => unreachable!("a goal without losses has a target"),
    };
    let subject = Subject { model: &model, inputs: &inputs, target: target.as_ref(), losses };
    let output = Output {
        out: Some(typed.out.clone()),
        out_dir: None,
        has_picture: true,
        view: typed.look.view,
        colormap: typed.look.colormap.clone(),
        alpha: typed.look.alpha,
        force: true,
        npy: None,
        raw_npy: None,
        json: None,
    };
    let mut tiles = Vec::new();
    let mut reports = Vec::new();
    let mut title = None;
    let mut code = 0;
    for method in &methods {
        let name = method.method.entry().name;
        let found = subject.explain(method).and_then(|found| {
            let modifier = &method.method.settings().grad_modifier;
            let drawn = draw(&found.attribution, modifier, &output, &ready.backdrop, &[])?;
            Ok((found, drawn))
        });
        let (found, drawn) = match found {
            Ok(found) => found,
            // The others are worth seeing all the same.
            Err(error) => {
                messages.error(&error.context(name));
                code = 1;
                continue;
            }
        };
        let scored = subject.scored(&found);
        let what = || match &scored {
            Some(scored) => scored.summary(),
            None => report::loss_summary(&found.attribution),
        };
        title.get_or_insert_with(what);
        for warning in &found.attribution.warnings {
            messages.warning(format!("{name}: {warning}"));
        }
        tiles.push(Tile::new(drawn).title(name).note(note(method, &found)));
        reports.push(json(method, &goal, &run, &found, scored.as_ref()));
    }
    let Some(title) = title else { bail!("none of the methods has a map") };
    if let Some(picture) = picture(&ready, &output) {
        tiles.insert(0, Tile::new(picture).title("the input"));
    }
    files::write(&typed.out, &encode_png(sheet(&title, tiles)?.view())?)?;
    messages.note(format!("{title} -> {}", typed.out.display()));
    if let Some(path) = &typed.json {
        let json =
            json!({"model": model.title(), "methods": reports, "files": [typed.out.display().to_string()]});
        files::write(path, report::text(&json).as_bytes())?;
    }
    Ok(code)
}

impl Subject<'_> {
    /// Explains by one method.
    fn explain(&self, method: &Method) -> Result<Explained> {
        let start = Instant::now();
        let shapes: Vec<(ValueId, Vec<usize>)> =
            self.inputs.iter().map(|(id, tensor)| (*id, tensor.shape().to_vec())).collect();
        let tensors: Vec<Tensor> = self.inputs.iter().map(|(_, tensor)| tensor.clone()).collect();
        let also = self.target.map(Target::reported).unwrap_or_default();
        let task = Task { model: self.model, losses: self.losses, shapes: &shapes, also: &also };
        let explanation = method.method.explanation(&task)?;
        let (mut parts, mut scores, mut chosen) = (Vec::new(), Vec::new(), None);
        for (explainer, tensors) in explanation.parts(&tensors)? {
            let mut started = explainer.start(&tensors)?;
            let mut of_part = None;
            if let Some(target) = self.target {
                let found = target.scores(started.also())?;
                of_part = target.choose(&found)?.into_iter().next();
                scores.push(found);
            }
            parts.push(started.explain(of_part.as_ref().and_then(Chosen::filters))?);
            chosen = match (chosen, of_part) {
                (Some(Chosen::PerSample(mut lists)), Some(Chosen::PerSample(more))) => {
                    lists.extend(more);
                    Some(Chosen::PerSample(lists))
                }
                (_, of_part) => of_part,
            };
        }
        Ok(Explained {
            attribution: explanation.join(parts)?,
            chosen,
            scores: Scores::join(&scores)?,
            milliseconds: start.elapsed().as_secs_f64() * 1e3,
        })
    }

    fn scored<'f>(&'f self, found: &'f Explained) -> Option<Scored<'f>> {
        let (target, chosen, scores) = (self.target?, found.chosen.as_ref()?, found.scores.as_ref()?);
        Some(Scored::new(target, chosen, scores, &found.attribution))
    }
}

/// The line under a method's name: what was typed of it, and how long it took.
fn note(method: &Method, found: &Explained) -> String {
    let time = match found.milliseconds {
        time if time < 1000.0 => format!("{time:.0} ms"),
        time => format!("{:.1} s", time / 1e3),
    };
    let typed = method.typed.iter().map(|(option, typed)| format!("{} {typed}", option.replace('_', " ")));
    let counted = found.attribution.measures.iter().filter_map(|measure| {
        let value = measure.values.first()?;
        Some(format!("{} {}", measure.name.replace('_', " "), shortly(*value)))
    });
    typed.chain(counted).chain([time]).collect::<Vec<_>>().join(" · ")
}

/// A count as such, anything else with three digits.
fn shortly(value: f64) -> String {
    if value.fract() == 0.0 && value.abs() < 1e9 { format!("{value}") } else { format!("{value:.3}") }
}

/// What the methods explain, as it was given.
fn picture(ready: &Ready, output: &Output) -> Option<Array3<u8>> {
    if matches!(output.view, Some(View::SideBySide)) {
        return None;
    }
    match &ready.backdrop {
        Backdrop::Picture(picture, _) => Some(picture.rgb8().to_owned()),
        Backdrop::Samples(samples) if samples.len() == 1 => samples.first().cloned(),
        Backdrop::Samples(_) | Backdrop::None => None,
    }
}

/// All maps on one sheet; small ones are enlarged.
fn sheet(title: &str, tiles: Vec<Tile>) -> Result<Array3<u8>> {
    Ok(Grid::default().tile_width(256).title(title).draw(&tiles)?)
}

/// What is known of one method's map, for programs.
fn json(method: &Method, goal: &Goal, run: &Run, found: &Explained, scored: Option<&Scored<'_>>) -> Value {
    let attribution = &found.attribution;
    json!({
        "method": method.method.entry().name,
        "options": report::options(method, goal, run),
        "target": scored.map_or(Value::Null, Scored::json),
        "wrt": {"tensor": attribution.tensor, "shape": attribution.raw.shape()},
        "losses": report::losses(attribution),
        "measures": report::measures(attribution),
        "warnings": attribution.warnings,
        "run_ms": found.milliseconds,
    })
}
