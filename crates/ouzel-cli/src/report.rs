//! What is told about a result: to programs as JSON, to people as a line.

use crate::files;
use crate::input::Ready;
use crate::job::{Data, Goal, Method, Run, Source};
use crate::target::{Chosen, Scores, Target};
use ouzel::{Attribution, Completeness, Dim, Model, OptionKind};
use serde_json::{Value, json};

/// JSON as text. Numbers that are not finite, which JSON lacks, are null.
pub fn text(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("invariant: a JSON value can be written");
    text.push('\n');
    text
}

/// One value for one sample, a list for several: as the arrays have a batch axis for several samples only.
fn per_sample(mut values: Vec<Value>) -> Value {
    if values.len() == 1 { values.remove(0) } else { Value::Array(values) }
}

/// A dimension: a number, or the text of a symbolic one.
pub fn dimension(dimension: &Dim) -> Value {
    dimension.known().map_or_else(|| dimension.to_string().into(), Value::from)
}

/// A shape as a list of dimensions.
pub fn shape(shape: &[Dim]) -> Value {
    shape.iter().map(dimension).collect()
}

/// The chosen filters of each sample, with their scores.
pub struct Scored<'t> {
    target: &'t Target<'t>,
    chosen: &'t Chosen,
    samples: Vec<Sample>,
}

struct Sample {
    filters: Vec<usize>,
    scores: Vec<f64>,
    probabilities: Option<Vec<f64>>,
}

impl<'t> Scored<'t> {
    /// Looks the chosen filters up in the scores.
    pub fn new(
        target: &'t Target<'t>,
        chosen: &'t Chosen,
        scores: &Scores,
        attribution: &Attribution,
    ) -> Self {
        let Scores { values, probabilities } = scores;
        let samples = values.rows().into_iter().enumerate().map(|(index, row)| {
            let filters = chosen.of_sample(index).to_vec();
            let of = |row: ndarray::ArrayView1<'_, f64>| {
                filters.iter().filter_map(|&filter| row.get(filter).copied()).collect::<Vec<f64>>()
            };
            let scores = match chosen {
                Chosen::All => {
                    attribution.losses.iter().filter_map(|loss| loss.weighted.get(index).copied()).collect()
                }
                _ => of(row),
            };
            let probabilities =
                probabilities.as_ref().map(|all| of(all.row(index))).filter(|all| !all.is_empty());
            Sample { filters, scores, probabilities }
        });
        Self { target, chosen, samples: samples.collect() }
    }

    fn names(&self, sample: &Sample) -> String {
        let name = |filter: &usize| match self.target.label(*filter) {
            Some(label) => format!("{label} ({filter})"),
            None => format!("filter {filter} of {}", self.target.layer),
        };
        match self.chosen {
            Chosen::All => format!("the mean over {}", self.target.layer),
            _ => sample.filters.iter().map(name).collect::<Vec<_>>().join(" + "),
        }
    }

    /// A line for people.
    pub fn summary(&self) -> String {
        let Some(sample) = self.samples.first() else { return "nothing".into() };
        let numbers =
            |values: &[f64]| values.iter().map(|value| number(*value)).collect::<Vec<_>>().join(", ");
        let mut line = format!("{}, score {}", self.names(sample), numbers(&sample.scores));
        if let Some(probabilities) = &sample.probabilities {
            line += &format!(", probability {}", numbers(probabilities));
        }
        if self.samples.len() > 1 {
            line += &format!("; and {} more samples", self.samples.len() - 1);
        }
        line
    }

    /// What to write under the map of each sample.
    pub fn captions(&self) -> Vec<String> {
        self.samples.iter().map(|sample| self.names(sample)).collect()
    }

    /// The target for programs.
    pub fn json(&self) -> Value {
        let each = |value: &dyn Fn(&Sample) -> Value| per_sample(self.samples.iter().map(value).collect());
        let mut json = json!({
            "layer": self.target.layer,
            "channel_axis": self.target.channel_axis,
            "region": self.target.region.to_string(),
            "softmax_skipped": self.target.instead_of.is_some(),
            "filters": match self.chosen {
                Chosen::All => "all".into(),
                _ => each(&|sample| json!(sample.filters)),
            },
            "scores": each(&|sample| json!(sample.scores)),
        });
        if self.target.labels.is_some() && *self.chosen != Chosen::All {
            let labels =
                |sample: &Sample| sample.filters.iter().map(|&filter| self.target.label(filter)).collect();
            json["labels"] = each(&labels);
        }
        if self.samples.iter().any(|sample| sample.probabilities.is_some()) {
            json["probabilities"] = each(&|sample| json!(sample.probabilities));
        }
        json
    }
}

/// A number with four significant digits.
pub fn number(value: f64) -> String {
    match value.abs() {
        size if size != 0.0 && !(1e-3..1e5).contains(&size) => format!("{value:.3e}"),
        size if size >= 1000.0 => format!("{value:.1}"),
        size if size >= 10.0 => format!("{value:.2}"),
        size if size >= 1.0 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// The input that was read.
pub fn input(source: &Source, ready: &Ready, data: &Data) -> Value {
    let mut json = json!({"shape": ready.shape});
    if !source.path.as_os_str().is_empty() {
        json["file"] = files::shown(&source.path).into();
    }
    if !data.named.is_empty() {
        json["named"] = json!(data.named);
    }
    if let Some(preprocess) = &ready.preprocess {
        let mut chosen = json!({
            "preset": preprocess.preset.name(),
            "channels": preprocess.channel_order().name(),
            "layout": preprocess.layout.name(),
            "size": preprocess.size.map(|size| [size.height, size.width]),
            "fit": preprocess.fit.name(),
        });
        for (name, values) in [("mean", &preprocess.mean), ("std", &preprocess.std)] {
            if let Some(values) = values {
                chosen[name] = json!(values);
            }
        }
        json["preprocess"] = chosen;
    }
    json
}

/// The options of the method: all that it has, as typed or by default.
pub fn options(method: &Method, goal: &Goal, run: &Run) -> Value {
    let settings = method.method.settings();
    let mut json = serde_json::Map::new();
    for option in method.options() {
        let typed = method.typed.get(option.name).map(String::as_str);
        let value = match option.kind {
            OptionKind::Flag => typed.is_some().into(),
            OptionKind::Names(_) => typed.unwrap_or(option.default).split(',').collect(),
            OptionKind::Tensor => json!(typed),
            OptionKind::Tensors => typed.map(|typed| typed.split(',').collect::<Value>()).into(),
            _ => typed.unwrap_or(option.default).into(),
        };
        json.insert(option.name.into(), value);
    }
    if json.contains_key("wrt_channel_axis") {
        json.insert("wrt_channel_axis".into(), json!(settings.wrt_channel_axis));
    }
    json.insert("profile".into(), method.profile.as_str().into());
    json.insert("precision".into(), settings.precision.to_string().into());
    json.insert("threads".into(), rayon::current_num_threads().into());
    json.insert("seed".into(), run.seed.into());
    let mut json = Value::Object(json);
    match goal {
        Goal::Target { keep_softmax, .. } => json["keep_softmax"] = (*keep_softmax).into(),
        Goal::Losses(path, _) => json["losses"] = path.display().to_string().into(),
    }
    json
}

/// The losses with their weighted values.
pub fn losses(attribution: &Attribution) -> Value {
    let loss = |loss: &ouzel::LossValue| {
        let values = loss.weighted.iter().map(|&value| json!(value)).collect();
        json!({"name": loss.name, "weight": loss.weight, "value": per_sample(values)})
    };
    attribution.losses.iter().map(loss).collect()
}

/// The losses for people.
pub fn loss_summary(attribution: &Attribution) -> String {
    let loss = |loss: &ouzel::LossValue| {
        format!("{} {}", loss.name, loss.weighted.first().map_or_else(String::new, |&value| number(value)))
    };
    attribution.losses.iter().map(loss).collect::<Vec<_>>().join(", ")
}

/// What the method counted or measured.
pub fn measures(attribution: &Attribution) -> Value {
    let measures = attribution.measures.iter().map(|measure| {
        let values = measure.values.iter().map(|&value| json!(value)).collect();
        (measure.name.to_owned(), per_sample(values))
    });
    Value::Object(measures.collect())
}

/// What a class activation map was made of; null for other maps.
pub fn layer_map(attribution: &Attribution) -> Value {
    attribution.layer_map.as_ref().map_or(Value::Null, |map| {
        json!({
            "layers": map.layers,
            "upsampling": map.upsampling.map(|upsampling| upsampling.name()),
            "rectified_before": map.rectify,
            "size": map.size,
        })
    })
}

/// Which nodes a backprop modifier was used on.
pub fn rules(attribution: &Attribution) -> Value {
    let matched: Vec<Value> =
        attribution.matched.iter().map(|(node, rule)| json!({"node": node, "rule": rule})).collect();
    let rewritten: Vec<Value> =
        attribution.rewritten.iter().map(|(node, form)| json!({"node": node, "form": form})).collect();
    json!({"canonical": rewritten, "matched": matched, "true_gradient": attribution.default_gradient})
}

/// What the map adds up to, for methods that say what it has to.
pub fn completeness(attribution: &Attribution) -> Value {
    let Some(sums) = &attribution.completeness else { return Value::Null };
    let each = |values: &[f64]| match values {
        [] => Value::Null,
        values => per_sample(values.iter().map(|&value| json!(value)).collect()),
    };
    let layers: Vec<Value> = (sums.layers.iter())
        .map(|(node, rule, sum)| json!({"node": node, "rule": rule, "sum": each(sum)}))
        .collect();
    json!({
        "expected": each(&sums.expected),
        "found": each(&sums.found),
        "absorbed": each(&sums.absorbed),
        "lost": each(&sums.lost),
        "gap": each(&sums.gaps()),
        "relative_gap": each(&sums.relative_gaps()),
        "tolerance": sums.tolerance,
        "holds": sums.holds(),
        "layers": layers,
    })
}

/// The same for people.
pub fn completeness_text(sums: &Completeness) -> String {
    let total = |values: &[f64]| number(values.iter().sum());
    let absorbed = match sums.absorbed.iter().any(|&sum| sum != 0.0) {
        false => String::new(),
        true => format!(", {} ended in biases and other constants", total(&sums.absorbed)),
    };
    let gap = sums.relative_gaps().into_iter().fold(0.0, f64::max);
    let lost = match sums.holds() || sums.lost.iter().all(|&sum| sum == 0.0) {
        true => String::new(),
        false => format!(
            ", {} was lost where no contribution has the sign that its rule follows or a stabilizer outweighs them",
            total(&sums.lost)
        ),
    };
    format!(
        "adds up to {} of {}{absorbed}{lost} (gap {:.2} %)",
        total(&sums.found),
        total(&sums.expected),
        100.0 * gap
    )
}

/// The sum of relevance behind each node, for people: where it is lost.
pub fn layer_sums_text(sums: &Completeness) -> String {
    let lines = sums.layers.iter().map(|(node, rule, sums)| {
        let sums: Vec<String> = sums.iter().map(|&sum| number(sum)).collect();
        format!("  {:>12}  {rule:<20} {node}", sums.join(", "))
    });
    std::iter::once("relevance behind each node:".to_owned()).chain(lines).collect::<Vec<_>>().join("\n")
}

/// The rule of each node, for people.
pub fn rules_text(attribution: &Attribution) -> String {
    let rewritten = attribution.rewritten.iter().map(|(node, form)| format!("  {form:<20} {node}"));
    let heading = (!attribution.rewritten.is_empty()).then(|| "canonical forms:".to_owned());
    let matched = attribution.matched.iter().map(|(node, rule)| format!("  {rule:<20} {node}"));
    let rest = attribution.default_gradient.iter().map(|node| format!("  {:<20} {node}", "gradient"));
    (heading.into_iter())
        .chain(rewritten)
        .chain(["rules on the way back:".to_owned()])
        .chain(matched)
        .chain(rest)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Milliseconds by phase; `run` is the forward and the backward pass together.
pub fn timings(phases: &[(&'static str, f64)]) -> Value {
    let passes = phases.iter().filter(|(phase, _)| matches!(*phase, "forward" | "backward" | "run"));
    let run = ("run", passes.map(|(_, time)| time).sum());
    let others = phases.iter().filter(|(phase, _)| *phase != "run");
    others
        .chain([&run])
        .map(|(phase, time)| (format!("{phase}_ms"), json!(time)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Milliseconds by phase, for people.
pub fn timings_text(steps: &[(&'static str, f64)]) -> String {
    let total: f64 = steps.iter().map(|(_, time)| time).sum();
    let lines = steps.iter().copied().chain([("total", total)]);
    lines.map(|(step, time)| format!("  {step:<8} {time:10.2} ms")).collect::<Vec<_>>().join("\n")
}

/// What becomes of gradients where a network rounds.
pub fn roundings_text(model: &Model) -> String {
    format!(
        "gradients pass straight through where it rounds ({} times), and stop where a number was clipped",
        model.roundings()
    )
}
