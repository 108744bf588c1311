//! `ouzel export`: the explanation as an ONNX file, for whatever runtime the network already runs on.

use crate::args::{ExportArgs, RunArgs};
use crate::files;
use crate::input::with_size;
use crate::job::{FilterChoice, Goal, Method, Pictures, array, read_labels};
use crate::messages::{Messages, usage};
use crate::target::Target;
use anyhow::{Context, Result, bail};
use ouzel::image::{Channels, Layout, Preset, Render};
use ouzel::{Dim, Export, Model, NamedBy, Precision};
use std::path::Path;
use std::str::FromStr;

/// Writes the file.
pub fn run(typed: &ExportArgs) -> Result<()> {
    let mut goal = Goal::new(&typed.target)?;
    let named_by = named_by(&mut goal);
    if goal.map_count() > 1 {
        usage!("--class: a file explains one class a sample; expected indices, a label, top, input or all");
    }
    let labels = read_labels(&typed.labels)?;
    let run = RunArgs {
        precision: Precision::F32,
        threads: None,
        seed: typed.seed,
        quiet: typed.quiet,
        timings: false,
        explain_rules: false,
    };
    let mut method = Method::new(&typed.method, &run, &array)?;
    if typed.samples_per_pass.is_some() && method.method.as_variants().is_none() {
        usage!(
            "--samples-per-pass: the method {} does not vary the input as a graph; leave the option out",
            typed.method.method
        );
    }
    let messages = Messages::new(typed.quiet);
    files::check_parent("--out", &typed.out)?;
    let same = |a: &Path, b: &Path| matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b);
    if same(&typed.model, &typed.out) {
        usage!("--out {}: that is the model itself; expected another file", typed.out.display());
    }
    let prepared = Pictures::new(&typed.prepared)?;
    let unused = |option: &&&str| **option == "--fit" || (!typed.pictures && **option != "--size");
    if let Some(option) = prepared.typed.iter().find(unused) {
        usage!(
            "{option}: the file does not prepare pictures so; leave the option out{}",
            match *option {
                "--fit" => "",
                _ => ", or add --pictures",
            }
        );
    }
    let mut model = files::read_model(&typed.model)?;
    let layout = typed.prepared.layout.unwrap_or_else(|| model.input_layout(model.main_input()));
    if let Some(size) = typed.prepared.size {
        model = with_size(&model, layout, size)?;
    }
    if typed.prepared.layout.is_some() && method.wrt().is_none() {
        let axis = if layout == Layout::Nchw { 1 } else { -1 };
        method.method.settings_mut().wrt_channel_axis.get_or_insert(axis);
    }
    let target = Target::new(&model, &goal, labels.as_ref())?;
    let losses = match (&target, &goal) {
        (Some(target), _) => vec![target.saved_loss()?],
        (None, Goal::Losses(_, losses)) => losses.clone(),
        (None, Goal::Target { .. }) => bail!("there is nothing to explain"),
    };
    let mut export = Export::default().named_by(named_by);
    export.opset = typed.opset;
    export.samples_per_pass = typed.samples_per_pass;
    if typed.pictures {
        export = export.pictures(ends(&model, &prepared, layout, typed)?);
    }
    for (name, value) in &method.typed {
        export = export.metadata(&format!("ouzel.option.{name}"), value);
    }
    if let Some(target) = &target {
        export = export.metadata("ouzel.layer", &target.layer);
    }
    let file = method.method.to_onnx(&model, &losses, &export)?;
    match files::is_stream(&typed.out) {
        true => files::print(&file.to_bytes()?)?,
        false => file.save(&typed.out).with_context(|| files::shown(&typed.out))?,
    }
    let names = |names: Vec<&str>| names.join("', '");
    messages.note(format!(
        "wrote {}: opset {}, inputs '{}', outputs '{}'",
        files::shown(&typed.out),
        file.opset(),
        names(file.input_names().collect()),
        names(file.output_names().collect())
    ));
    Ok(())
}

/// How the file takes and gives pictures.
fn ends(model: &Model, prepared: &Pictures, layout: Layout, typed: &ExportArgs) -> Result<ouzel::Pictures> {
    let in_metadata = model.metadata().get("preprocess").and_then(|name| Preset::from_str(name).ok());
    let preset = prepared.preset.or(in_metadata).unwrap_or(Preset::Raw);
    let mut preprocess = prepared.preprocess().preset(preset).layout(layout);
    let shape = &model.graph().fact(model.main_input()).shape;
    let channels = shape.get(if layout == Layout::Nchw { 1 } else { 3 }).and_then(Dim::known);
    if channels == Some(1) {
        preprocess.channels = Some(Channels::Grey);
    }
    let mut render = Render::default();
    if let Some(colormap) = &typed.colormap {
        render = render.colormap(colormap.clone());
    }
    render.alpha = typed.alpha.unwrap_or(render.alpha);
    Ok(ouzel::Pictures { preprocess, render })
}

/// Who names the class; the word `input` stands for whoever runs the file.
fn named_by(goal: &mut Goal) -> NamedBy {
    if let Goal::Target { filters, .. } = goal
        && matches!(filters, Some(FilterChoice::Listed(typed)) if typed.len() == 1 && typed[0].trim() == "input")
    {
        *filters = Some(FilterChoice::Top(1));
        return NamedBy::Input;
    }
    NamedBy::Top
}
