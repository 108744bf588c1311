//! `ouzel predict`: the forward direction alone, as a table of classes, as JSON, or as arrays.

use crate::args::PredictArgs;
use crate::files;
use crate::input::{self, Reader};
use crate::job::{Data, set_threads};
use crate::messages::{Messages, usage};
use crate::npy;
use crate::report::{self, number};
use crate::target::labels_of;
use anyhow::{Context, Result};
use ouzel::image::Labels;
use ouzel::{Model, Precision, Tensor, ValueId};
use serde_json::{Value, json};
use std::fmt::Write;

/// An output as it was asked for.
struct Wanted {
    name: String,
    value: ValueId,
}

/// Runs the model.
pub fn run(typed: &PredictArgs) -> Result<()> {
    let data = Data::new(&typed.data, &typed.pictures, &typed.labels)?;
    if data.sources.len() > 1 {
        usage!("predict takes one input, found {}; an array may hold several samples", data.sources.len());
    }
    set_threads(typed.threads)?;
    let messages = Messages::new(typed.quiet);
    let model = input::sized(files::read_model(&data.model)?, &data)?;
    let wanted = wanted(&model, &typed.outputs)?;
    let reader = Reader::new(&model, &data, &messages)?;
    let ready = match data.sources.first() {
        Some(source) => reader.read(&source.path)?,
        None => reader.named_only(),
    };
    let batch = model.graph().fact(model.main_input()).shape.clone();
    let samples = ready.shape.first().copied().unwrap_or(1);
    if batch.first().is_some_and(|dim| dim.is(1)) && ready.shape.len() == batch.len() && samples > 1 {
        messages.note(format!(
            "the network takes one sample at a time, so the {samples} samples are computed one after the other"
        ));
    }
    let values: Vec<ValueId> = wanted.iter().map(|wanted| wanted.value).collect();
    let name = data.sources.first().map(|source| files::shown(&source.path));
    let tensors = model
        .run(&ready.input, &values, Precision::F32)
        .with_context(|| name.unwrap_or_else(|| data.named.join(" ")))?;

    let mut written = Vec::new();
    if let Some(folder) = &typed.out_dir {
        files::create_folder(folder)?;
        let mut names = files::Names::default();
        for (wanted, tensor) in wanted.iter().zip(&tensors) {
            let path = folder.join(format!("{}.npy", names.distinct(&files::safe(&wanted.name))));
            files::write(&path, &npy::tensor_bytes(tensor)?)?;
            messages.note(format!("{} {:?} -> {}", wanted.name, tensor.shape(), path.display()));
            written.push(path.display().to_string());
        }
    }
    let labels = |wanted: &Wanted| data.labels.clone().or_else(|| labels_of(&model, wanted.value));
    if typed.json {
        let outputs: Vec<Value> = (wanted.iter().zip(&tensors))
            .map(|(wanted, tensor)| output(wanted, tensor, labels(wanted).as_ref(), typed.top))
            .collect();
        let report = json!({
            "model": model.title(),
            "input": data.sources.first().map(|source| report::input(source, &ready, &data)),
            "outputs": outputs,
            "files": written,
        });
        return files::print(report::text(&report).as_bytes());
    }
    if typed.out_dir.is_none() {
        let mut text = String::new();
        for (wanted, tensor) in wanted.iter().zip(&tensors) {
            table(&mut text, wanted, tensor, labels(wanted).as_ref(), typed.top);
        }
        files::print(text.as_bytes())?;
    }
    Ok(())
}

/// The tensors that are asked for; a text that is none may be several with commas between.
fn wanted(model: &Model, typed: &[String]) -> Result<Vec<Wanted>> {
    let find = |name: &str| Ok(Wanted { name: name.to_owned(), value: model.find(name)? });
    if typed.is_empty() {
        return model.output_names().iter().map(|name| find(name)).collect();
    }
    let mut wanted = Vec::new();
    for text in typed {
        match find(text) {
            Ok(found) => wanted.push(found),
            Err(_) if text.contains(',') => {
                for part in text.split(',') {
                    wanted.push(find(part.trim()).context("--output")?);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(wanted)
}

/// A tensor of one vector a sample, as classes have: the samples.
fn samples(tensor: &Tensor) -> Option<Vec<Vec<f64>>> {
    let values = tensor.to_f64();
    match tensor.shape() {
        [_, _] => Some(values.outer_iter().map(|sample| sample.iter().copied().collect()).collect()),
        [_] => Some(values.iter().map(|&value| vec![value]).collect()),
        [] => Some(vec![values.iter().copied().collect()]),
        _ => None,
    }
}

/// The indices of the largest values, largest first.
fn best(sample: &[f64], count: usize) -> Vec<usize> {
    let scores = ndarray::ArrayView2::from_shape((1, sample.len()), sample).expect("invariant: one row");
    ouzel::top(&scores.to_owned(), count).remove(0)
}

fn output(wanted: &Wanted, tensor: &Tensor, labels: Option<&Labels>, count: usize) -> Value {
    let mut json = json!({"name": wanted.name, "dtype": tensor.dtype().to_string(), "shape": tensor.shape()});
    if let Some(samples) = samples(tensor) {
        let top = |sample: &Vec<f64>| {
            let entry = |index: usize| {
                let mut entry = json!({"index": index, "value": sample[index]});
                if let Some(label) = labels.and_then(|labels| labels.get(index)) {
                    entry["label"] = label.into();
                }
                entry
            };
            best(sample, count).into_iter().map(entry).collect::<Value>()
        };
        json["top"] = samples.iter().map(top).collect();
    }
    json
}

fn table(text: &mut String, wanted: &Wanted, tensor: &Tensor, labels: Option<&Labels>, count: usize) {
    let _ = writeln!(text, "{} {}{:?}", wanted.name, tensor.dtype(), tensor.shape());
    let Some(samples) = samples(tensor) else {
        let values = tensor.to_f64();
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for &value in &values {
            (low, high) = (low.min(value), high.max(value));
        }
        let mean = values.mean().unwrap_or(f64::NAN);
        let _ = writeln!(
            text,
            "  {} to {}, mean {}; --out-dir DIR writes it as an array",
            number(low),
            number(high),
            number(mean)
        );
        return;
    };
    for (place, sample) in samples.iter().enumerate() {
        if samples.len() > 1 {
            let _ = writeln!(text, "  sample {place}");
        }
        for index in best(sample, count) {
            let name = labels.and_then(|labels| labels.get(index)).unwrap_or_default();
            let _ = writeln!(
                text,
                "{}",
                format!("  {:>10}  {index:>5}  {name}", number(sample[index])).trim_end()
            );
        }
    }
}
