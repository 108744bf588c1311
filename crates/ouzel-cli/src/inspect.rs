//! `ouzel inspect`: inputs, outputs and layers of a model, what can be explained and what is not supported.

use crate::args::InspectArgs;
use crate::target::labels_of;
use crate::{files, report};
use anyhow::Result;
use ouzel::{LayerSummary, Model, ValueId};
use serde_json::{Value, json};
use std::fmt::Write;

/// Prints what a model is made of.
pub fn run(typed: &InspectArgs) -> Result<()> {
    let model = files::read_model(&typed.model)?;
    let text = if typed.json { report::text(&description(&model)) } else { table(&model) };
    files::print(text.as_bytes())
}

/// For each value, whether it depends on a floating point input.
fn depends_on_input(model: &Model) -> Vec<ValueId> {
    let graph = model.graph();
    let mut found: Vec<ValueId> =
        model.inputs().iter().copied().filter(|&id| graph.fact(id).dtype.is_float()).collect();
    let mut known: std::collections::HashSet<ValueId> = found.iter().copied().collect();
    for node in graph.nodes() {
        if node.inputs.iter().flatten().any(|input| known.contains(input)) {
            known.extend(&node.outputs);
            found.extend(&node.outputs);
        }
    }
    found
}

/// Why a layer cannot be a target; `None` if it can.
fn obstacle(model: &Model, layer: &LayerSummary<'_>, dependent: &[ValueId]) -> Option<String> {
    match (layer.value, layer.missing) {
        (_, Some(reason)) => Some(format!("not supported: {reason}")),
        (None, None) if layer.blocked => Some("depends on a node that is not supported".into()),
        (None, None) => Some("has no output".into()),
        (Some(value), None) => {
            let fact = model.graph().fact(value);
            match () {
                () if !fact.dtype.is_float() => Some(format!("holds {}", fact.dtype)),
                () if !dependent.contains(&value) => Some("does not depend on the input".into()),
                () => None,
            }
        }
    }
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

fn description(model: &Model) -> Value {
    let dependent = depends_on_input(model);
    let layer = |layer: LayerSummary<'_>| {
        let obstacle = obstacle(model, &layer, &dependent);
        let fact = layer.value.map(|value| model.graph().fact(value));
        json!({
            "index": layer.index,
            "name": layer.name,
            "op": layer.op,
            "output": layer.output,
            "dtype": fact.map(|fact| fact.dtype.to_string()),
            "shape": fact.map(|fact| report::shape(&fact.shape)),
            "parameters": layer.parameters,
            "supported": layer.missing.is_none(),
            "target": obstacle.is_none(),
            "problem": obstacle,
        })
    };
    let default = model.default_target(false);
    json!({
        "model": model.title(),
        "opset": model.opset(),
        "producer": model.producer(),
        "parameters": model.parameter_count(),
        "inputs": model.inputs().iter().map(|&id| tensor(model, id)).collect::<Value>(),
        "outputs": outputs(model),
        "default_target": match &default {
            Ok((id, _)) => json!(&*model.graph().value(*id).name),
            Err(_) => Value::Null,
        },
        "softmax_skipped": default.as_ref().is_ok_and(|(_, skipped)| *skipped),
        "metadata": model.metadata(),
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

fn table(model: &Model) -> String {
    let graph = model.graph();
    let mut text = String::new();
    let producer = if model.producer().is_empty() { String::new() } else { format!(", by {}", model.producer()) };
    let _ = writeln!(text, "{}: opset {}{producer}", model.title(), model.opset());
    let _ = writeln!(text, "{} parameters", grouped(model.parameter_count()));
    for &id in model.inputs() {
        let _ = writeln!(text, "input   {}  {}", graph.value(id).name, graph.fact(id));
    }
    for name in model.output_names() {
        let described = match model.find(name.as_str()) {
            Ok(id) => {
                let labels = labels_of(model, id).map(|labels| {
                    let names: Vec<String> = (0..labels.len().min(12)).map(|index| labels.name(index)).collect();
                    format!("  ({}{})", names.join(", "), if labels.len() > 12 { ", …" } else { "" })
                });
                format!("{}{}", graph.fact(id), labels.unwrap_or_default())
            }
            Err(_) => "depends on nodes that are not supported".into(),
        };
        let _ = writeln!(text, "output  {name}  {described}");
    }
    if let Ok((target, skipped)) = model.default_target(false) {
        let why = if skipped { ", the logits before the softmax" } else { "" };
        let _ = writeln!(text, "explained by default: {}{why}", graph.value(target).name);
    }
    text.push('\n');

    let dependent = depends_on_input(model);
    let mut rows = vec![["index", "name", "op", "output", "shape", "parameters", "target"].map(str::to_owned)];
    for layer in model.layers() {
        let shape = layer.value.map(|value| graph.fact(value).to_string());
        let target = obstacle(model, &layer, &dependent).map_or_else(|| "yes".into(), |why| format!("no: {why}"));
        rows.push([
            layer.index.to_string(),
            layer.name.to_owned(),
            layer.op.to_owned(),
            layer.output.to_owned(),
            shape.unwrap_or_else(|| "?".into()),
            if layer.parameters == 0 { String::new() } else { grouped(layer.parameters) },
            target,
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..7).map(width).collect();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let fill = " ".repeat(widths[column].saturating_sub(cell.chars().count()));
            line += &if column == 5 { format!("{fill}{cell}  ") } else { format!("{cell}{fill}  ") };
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let missing = model.layers().filter(|layer| layer.missing.is_some()).count();
    if missing > 0 {
        let _ = writeln!(text, "\n{missing} of {} nodes are not supported.", model.layers().len());
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
