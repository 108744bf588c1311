//! `ouzel inspect`: what a model is made of, how it is probably fed, what can be explained and what cannot, and why.

use crate::args::InspectArgs;
use crate::input::{SIDE, with_size};
use crate::target::labels_of;
use crate::{files, report};
use anyhow::Result;
use ouzel::image::Size;
use ouzel::rules::RuleSet;
use ouzel::{
    Bindings, LayerSummary, Model, Preparation, SpatialLayer, Suggestion, ValueId, gradient, simplify,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::fmt::{Display, Write};

/// Prints what a model is made of.
pub fn run(typed: &InspectArgs) -> Result<()> {
    let in_file = files::read_model(&typed.model)?;
    let layout = in_file.input_layout(in_file.main_input());
    let (model, size) = match typed.size {
        Some(size) => (with_size(&in_file, layout, size)?, Some(size)),
        None if in_file.awaits_sizes() => {
            let size = Size::new(SIDE, SIDE);
            match with_size(&in_file, layout, size) {
                Ok(model) => (model, Some(size)),
                // What is no picture has no such size.
                Err(_) => (in_file.clone(), None),
            }
        }
        None => (in_file.clone(), None),
    };
    let findings = Findings::new(&model, &in_file, size);
    let text = if typed.json { report::text(&description(&findings)) } else { page(&findings) };
    files::print(text.as_bytes())
}

/// What has been found out about a model.
struct Findings<'m> {
    model: &'m Model,
    /// The size of pictures for which the model was read, if the file leaves it open.
    size: Option<Size>,
    /// The values that depend on a floating point input.
    dependent: HashSet<ValueId>,
    /// What is explained by default, and whether it is the logits before a softmax; or why nothing is.
    target: Result<(ValueId, bool), String>,
    /// Why the default target has no gradient.
    obstacle: Option<String>,
    /// Where a class activation map is made, or why nowhere.
    cam_layer: Option<Result<SpatialLayer, String>>,
    /// How pictures are prepared, or why there are none.
    preparation: Result<Preparation, String>,
}

impl<'m> Findings<'m> {
    fn new(model: &'m Model, in_file: &Model, size: Option<Size>) -> Self {
        let target = model.default_target(false).map_err(|error| error.to_string());
        let preparation = in_file.preparation().map_err(|error| error.to_string());
        let value = target.as_ref().ok().map(|(value, _)| *value);
        let obstacle = match (value, &target) {
            (Some(value), _) => no_gradient(model, value, preparation.as_ref().ok()),
            (None, Ok(_)) => None,
            (None, Err(error)) => Some(error.clone()),
        };
        Self {
            model,
            size,
            dependent: dependent(model),
            cam_layer: value.map(|value| model.cam_layer(value).map_err(|error| error.to_string())),
            target,
            obstacle,
            preparation,
        }
    }

    /// Why a layer cannot be a target; `None` if it can.
    fn layer_obstacle(&self, layer: &LayerSummary<'_>) -> Option<String> {
        match (layer.value, layer.missing) {
            (_, Some(reason)) => Some(format!("not supported: {reason}")),
            (None, None) if layer.blocked => Some("depends on a node that is not supported".into()),
            (None, None) => Some("has no output".into()),
            (Some(value), None) => {
                let fact = self.model.graph().fact(value);
                match () {
                    () if !fact.dtype.is_float() => Some(format!("holds {}", fact.dtype)),
                    () if !self.dependent.contains(&value) => Some("does not depend on the input".into()),
                    () => None,
                }
            }
        }
    }

    /// A command that explains something with this model.
    fn command(&self) -> Option<String> {
        if self.obstacle.is_some() {
            return None;
        }
        let model = self.model;
        let others = model.inputs().iter().filter(|&&input| input != model.main_input());
        let others = others.map(|&input| format!(" --input {}=FILE.npy", model.graph().value(input).name));
        let others: String = others.collect();
        Some(match &self.preparation {
            Ok(preparation) => {
                format!(
                    "ouzel explain {} PICTURE{others} {}",
                    model.title(),
                    preparation.options(model).join(" ")
                )
            }
            Err(_) => format!("ouzel explain {} ARRAY.npy{others}", model.title()),
        })
    }
}

/// The values that depend on a floating point input.
fn dependent(model: &Model) -> HashSet<ValueId> {
    let graph = model.graph();
    let inputs = model.inputs().iter().copied();
    let mut found: HashSet<ValueId> = inputs.filter(|&id| graph.fact(id).dtype.is_float()).collect();
    for node in graph.nodes() {
        if node.inputs.iter().flatten().any(|input| found.contains(input)) {
            found.extend(&node.outputs);
        }
    }
    found
}

/// Why a target has no gradient, once the size of pictures is known.
fn no_gradient(model: &Model, target: ValueId, preparation: Option<&Preparation>) -> Option<String> {
    let (graph, input) = (model.graph(), model.main_input());
    let error = gradient(graph.clone(), target, &[input], &RuleSet::new()).err()?;
    let Some(preparation) = preparation else { return Some(error.to_string()) };
    let shape = &graph.fact(input).shape;
    let size = preparation.size.value;
    let first = if preparation.layout.value == ouzel::image::Layout::Nchw { 2 } else { 1 };
    let mut bindings = Bindings::new();
    for (dimension, length) in shape[first..].iter().zip([size.height, size.width]) {
        if let Some(symbol) = dimension.as_symbol() {
            bindings.insert(symbol.clone(), length as i64);
        }
    }
    let bound = simplify(graph, &[target, input], &bindings).and_then(|bound| {
        let (target, input) = (bound.kept(target)?, bound.kept(input)?);
        gradient(bound.graph, target, &[input], &RuleSet::new())
    });
    bound.err().map(|error| error.to_string())
}

fn tensor(model: &Model, id: ValueId) -> Value {
    let value = model.graph().value(id);
    json!({"name": &*value.name, "dtype": value.fact.dtype.to_string(), "shape": report::shape(&value.fact.shape)})
}

/// The outputs; of those that depend on something unsupported, the name alone.
fn outputs(model: &Model) -> Vec<Value> {
    let output = |name: &String| match model.find(name.as_str()) {
        Ok(id) => {
            let mut json = tensor(model, id);
            json["name"] = name.as_str().into();
            if let Some(labels) = labels_of(model, id) {
                json["labels"] = (0..labels.len()).map(|index| labels.name(index)).collect();
            }
            json
        }
        Err(error) => json!({"name": name, "problem": error.to_string()}),
    };
    model.output_names().iter().map(output).collect()
}

fn suggestion<T: Display>(suggestion: &Suggestion<T>) -> Value {
    json!({
        "value": suggestion.value.to_string(),
        "sureness": suggestion.sureness.to_string(),
        "reason": suggestion.reason,
    })
}

fn preparation(findings: &Findings) -> Value {
    match &findings.preparation {
        Err(problem) => json!({"problem": problem}),
        Ok(found) => json!({
            "input": &*findings.model.graph().value(found.input).name,
            "layout": suggestion(&found.layout),
            "size": suggestion(&found.size),
            "any_size": found.any_size,
            "channels": suggestion(&found.channels),
            "preprocess": suggestion(&found.preset),
            "options": found.options(findings.model),
        }),
    }
}

fn description(findings: &Findings) -> Value {
    let model = findings.model;
    let layer = |layer: LayerSummary<'_>| {
        let obstacle = findings.layer_obstacle(&layer);
        let fact = layer.value.map(|value| model.graph().fact(value));
        json!({
            "index": layer.index,
            "name": layer.name,
            "op": layer.op,
            "output": layer.output,
            "dtype": fact.map(|fact| fact.dtype.to_string()),
            "shape": fact.map(|fact| report::shape(&fact.shape)),
            "parameters": layer.parameters,
            "unit": layer.value.and_then(|value| model.unit_of(value)),
            "supported": layer.missing.is_none(),
            "target": obstacle.is_none(),
            "problem": obstacle,
        })
    };
    let graph = model.graph();
    let name = |id: &ValueId| (*graph.value(*id).name).to_owned();
    let unit = |unit: &ouzel::units::Unit| {
        json!({
            "name": unit.name,
            "family": unit.family,
            "nodes": unit.nodes.iter().map(|&node| graph.node(node).title()).collect::<Vec<_>>(),
            "inputs": unit.inputs.iter().map(name).collect::<Vec<_>>(),
            "output": name(&unit.output),
        })
    };
    let cam_layer = findings.cam_layer.as_ref().map(|found| match found {
        Ok(layer) => {
            let mut json = tensor(model, layer.value);
            json["channel_axis"] = layer.channel_axis.into();
            json["grid"] = json!(layer.grid.as_ref().map(|grid| &grid.sides));
            json
        }
        Err(problem) => json!({"problem": problem}),
    });
    json!({
        "model": model.title(),
        "opset": model.opset(),
        "producer": model.producer(),
        "read_for_size": findings.size.map(|size| size.to_string()),
        "parameters": model.parameter_count(),
        "inputs": model.inputs().iter().map(|&id| tensor(model, id)).collect::<Value>(),
        "outputs": outputs(model),
        "default_target": findings.target.as_ref().ok().map(|(id, _)| name(id)),
        "softmax_skipped": findings.target.as_ref().is_ok_and(|(_, skipped)| *skipped),
        "problem": findings.obstacle,
        "cam_layer": cam_layer,
        "preparation": preparation(findings),
        "command": findings.command(),
        "metadata": model.metadata(),
        "units": model.units().iter().map(unit).collect::<Value>(),
        "roundings": model.roundings(),
        "layers": model.layers().map(layer).collect::<Value>(),
        "unsupported": unsupported(model),
    })
}

/// The nodes that are not supported.
fn unsupported(model: &Model) -> Value {
    let layer = |layer: LayerSummary<'_>| {
        let reason = layer.missing?;
        Some(json!({"index": layer.index, "name": layer.name, "op": layer.op, "reason": reason}))
    };
    model.layers().filter_map(layer).collect()
}

/// How often each of some things occurs, the first first: `12 × Gelu, 1 × Softplus`.
fn counted<'t>(things: impl Iterator<Item = &'t str>) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for thing in things {
        let place = *places.entry(thing).or_insert(counts.len());
        if place == counts.len() {
            counts.push((thing, 0));
        }
        counts[place].1 += 1;
    }
    let each = counts.into_iter().map(|(thing, count)| format!("{count} × {thing}"));
    each.collect::<Vec<_>>().join(", ")
}

/// The findings for people.
fn page(findings: &Findings) -> String {
    let mut text = heading(findings);
    text.push('\n');
    text += &table(findings);
    let layers = findings.model.layers();
    let (missing, all) =
        (findings.model.layers().filter(|layer| layer.missing.is_some()).count(), layers.len());
    if missing > 0 {
        let _ = writeln!(text, "\n{missing} of {all} nodes are not supported.");
    }
    text
}

fn heading(findings: &Findings) -> String {
    let model = findings.model;
    let graph = model.graph();
    let by = if model.producer().is_empty() { String::new() } else { format!(", by {}", model.producer()) };
    let mut text = format!(
        "{}: opset {}{by}, {} parameters\n\n",
        model.title(),
        model.opset(),
        grouped(model.parameter_count())
    );
    let mut line = |what: &str, said: &str| {
        for (number, part) in said.lines().enumerate() {
            let _ = writeln!(text, "{:<10} {part}", if number == 0 { what } else { "" });
        }
    };
    for &id in model.inputs() {
        line("input", &format!("{}  {}", graph.value(id).name, graph.fact(id)));
    }
    if let Some(size) = findings.size {
        line("read for", &format!("pictures of {size} (--size reads it for others)"));
    }
    for name in model.output_names() {
        let described = match model.find(name.as_str()) {
            Ok(id) => {
                let labels = labels_of(model, id).map(|labels| {
                    let names: Vec<String> =
                        (0..labels.len().min(12)).map(|index| labels.name(index)).collect();
                    format!("  ({}{})", names.join(", "), if labels.len() > 12 { ", …" } else { "" })
                });
                format!("{}{}", graph.fact(id), labels.unwrap_or_default())
            }
            Err(_) => "depends on nodes that are not supported".into(),
        };
        line("output", &format!("{name}  {described}"));
    }
    if let Ok((target, skipped)) = findings.target {
        let why = if skipped { ", the logits before the softmax" } else { "" };
        line("explains", &format!("{}{why}", graph.value(target).name));
    }
    if let Some(obstacle) = &findings.obstacle {
        line("cannot", obstacle);
    }
    match &findings.cam_layer {
        Some(Ok(layer)) => {
            let grid = layer.grid.as_ref().map(|grid| {
                let sides: Vec<String> = grid.sides.iter().map(usize::to_string).collect();
                format!(", tokens as {}", sides.join("x"))
            });
            let (name, fact) = (&graph.value(layer.value).name, graph.fact(layer.value));
            line("CAM layer", &format!("{name}  {fact}{}", grid.unwrap_or_default()));
        }
        Some(Err(problem)) => line("CAM layer", &format!("none: {problem}")),
        None => {}
    }
    if !model.units().is_empty() {
        line("units", &counted(model.units().iter().map(|unit| unit.name)));
    }
    if model.roundings() > 0 {
        line("quantized", &report::roundings_text(model));
    }
    match &findings.preparation {
        Err(problem) => line("pictures", &format!("none: {problem}")),
        Ok(found) => {
            let row = |value: String, sureness: ouzel::Sureness, reason: &str| {
                format!("{value:<8}  {sureness}: {reason}\n")
            };
            let rows = row(found.layout.value.to_string(), found.layout.sureness, &found.layout.reason)
                + &row(found.size.value.to_string(), found.size.sureness, &found.size.reason)
                + &row(found.channels.value.to_string(), found.channels.sureness, &found.channels.reason)
                + &row(found.preset.value.to_string(), found.preset.sureness, &found.preset.reason);
            line("pictures", &rows);
        }
    }
    if let Some(command) = findings.command() {
        line("try", &command);
    }
    text
}

/// The layers, one a line.
fn table(findings: &Findings) -> String {
    let model = findings.model;
    let has_units = !model.units().is_empty();
    let titles = ["index", "name", "op", "unit", "output", "shape", "parameters", "target"];
    let mut rows = vec![titles.map(str::to_owned)];
    for layer in model.layers() {
        let shape = layer.value.map(|value| model.graph().fact(value).to_string());
        let unit = layer.value.and_then(|value| model.unit_of(value));
        rows.push([
            layer.index.to_string(),
            layer.name.to_owned(),
            layer.op.to_owned(),
            unit.map_or_else(String::new, |unit| format!("{} {}", unit, model.units()[unit].name)),
            layer.output.to_owned(),
            shape.unwrap_or_else(|| "?".into()),
            if layer.parameters == 0 { String::new() } else { grouped(layer.parameters) },
            findings.layer_obstacle(&layer).map_or_else(|| "yes".into(), |why| format!("no: {why}")),
        ]);
    }
    let shown: Vec<usize> =
        (0..titles.len()).filter(|&column| has_units || titles[column] != "unit").collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for &column in &shown {
            let cell = &row[column];
            let fill = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            let is_number = titles[column] == "parameters";
            line += &if is_number { format!("{fill}{cell}  ") } else { format!("{cell}{fill}  ") };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// 1234567 as 1,234,567.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
