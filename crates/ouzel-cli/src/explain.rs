//! `ouzel explain`: maps, pictures and reports for one input after the other.

use crate::args::ExplainArgs;
use crate::draw::{MOST_TILES, draw};
use crate::files;
use crate::input::{self, Reader, Ready};
use crate::job::{Data, Goal, Method, Output, Run, Source};
use crate::messages::{Messages, Usage, exit_code, one_text};
use crate::npy;
use crate::report;
use crate::target::{Chosen, Scores, Target};
use anyhow::{Context, Result, bail};
use ndarray::{ArrayD, Axis};
use ouzel::image::{Layout, encode_png};
use ouzel::{
    Attribution, Explanation, GradModifier, Model, Precision, Source as ValueSource, Started, Task, Tensor,
    ValueId,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

/// Everything about a run that does not change from input to input.
struct Session<'m> {
    model: &'m Model,
    reader: Reader<'m>,
    target: Option<Target<'m>>,
    goal: &'m Goal,
    method: &'m Method,
    data: &'m Data,
    output: &'m Output,
    run: &'m Run,
    messages: Messages,
    load_ms: f64,
    /// The last plan: it serves the next input too if that has the same shapes, whatever its highest-scoring classes are.
    plan: Option<Rc<Planned>>,
    /// How often each warning came up.
    warned: BTreeMap<String, usize>,
    /// What has been said of what was chosen.
    noted: BTreeSet<String>,
}

/// A plan, and what it is for.
struct Planned {
    shapes: Vec<(ValueId, Vec<usize>)>,
    explanation: Explanation,
}

/// A map as it came out.
struct Explained {
    chosen: Option<Chosen>,
    attribution: Attribution,
    /// The scores of the target, if there is one.
    scores: Option<Scores>,
    timings: Vec<(&'static str, f64)>,
}

/// A map on its way: the samples may come in parts.
#[derive(Default)]
struct Map {
    chosen: Option<Chosen>,
    parts: Vec<Attribution>,
    backward_ms: f64,
}

impl Map {
    /// Explains one part.
    fn add(&mut self, started: &mut dyn Started, chosen: Option<Chosen>) -> Result<()> {
        let start = Instant::now();
        self.parts.push(started.explain(chosen.as_ref().and_then(Chosen::filters))?);
        self.backward_ms += milliseconds(start);
        self.chosen = match (self.chosen.take(), chosen) {
            (Some(Chosen::PerSample(mut lists)), Some(Chosen::PerSample(more))) => {
                lists.extend(more);
                Some(Chosen::PerSample(lists))
            }
            (_, chosen) => chosen,
        };
        Ok(())
    }
}

/// Runs the verb; the exit code.
pub fn run(typed: &ExplainArgs) -> Result<u8> {
    let goal = Goal::new(&typed.target)?;
    let data = Data::new(&typed.data, &typed.pictures, &typed.labels)?;
    let output = Output::new(&typed.output, &data.sources, goal.map_count())?;
    let run = Run::new(&typed.run)?;
    let mut messages = Messages::new(typed.run.quiet);
    let start = Instant::now();
    let model = input::sized(files::read_model(&data.model)?, &data)?;
    let load_ms = milliseconds(start);
    let reader = Reader::new(&model, &data, &messages)?;
    let mut method = Method::new(&typed.method, &typed.run, &|path| reader.others(path))?;
    set_channel_axis(&model, &data, &mut method)?;
    let target = Target::new(&model, &goal, data.labels.as_ref())?;
    let settings = method.method.settings_mut();
    if settings.input_bounds.is_none() {
        settings.input_bounds = reader.input_bounds(&data)?;
    }
    if let Some(folder) = &output.out_dir {
        files::create_folder(folder)?;
    }
    if let Some(target) = &target {
        announce(&model, &goal, target, &messages);
    }
    messages.expect(data.sources.len());
    method.method.settings_mut().progress = messages.progress();
    let mut session = Session {
        model: &model,
        reader,
        target,
        goal: &goal,
        method: &method,
        data: &data,
        output: &output,
        run: &run,
        messages,
        load_ms,
        plan: None,
        warned: BTreeMap::new(),
        noted: BTreeSet::new(),
    };
    let (code, reports) = session.all()?;
    session.messages.finish();
    session.repeat_warnings();
    if output.json.as_deref().is_some_and(files::is_stream) {
        let is_one = data.sources.len() <= 1 && goal.map_count() == 1;
        let text = match reports {
            // A failed input has no report.
            reports if reports.is_empty() && is_one => String::new(),
            mut reports if is_one => report::text(&reports.remove(0)),
            reports => report::text(&Value::Array(reports)),
        };
        files::print(text.as_bytes())?;
    }
    Ok(code)
}

/// The channel axis of a model's input follows from `--layout`.
pub fn set_channel_axis(model: &Model, data: &Data, method: &mut Method) -> Result<()> {
    let tensor = match method.wrt() {
        Some(name) => model.find(name)?,
        None => model.main_input(),
    };
    let is_input = matches!(model.graph().value(tensor).source, ValueSource::Input);
    let has_channels = is_input && model.graph().fact(tensor).rank() >= 2;
    if let (Some(layout), true) = (data.pictures.layout, has_channels) {
        let axis = if layout == Layout::Nchw { 1 } else { -1 };
        method.method.settings_mut().wrt_channel_axis.get_or_insert(axis);
    }
    Ok(())
}

/// Says what is explained where that is not what was typed.
pub fn announce(model: &Model, goal: &Goal, target: &Target<'_>, messages: &Messages) {
    if let (Goal::Target { layer: None, .. }, Some(first)) = (goal, model.output_names().first())
        && let Err(error) = model.find(first.as_str())
    {
        messages.warning(format!("{error}\nso another output is explained: '{}'", target.layer));
    }
    if let Some(output) = target.instead_of {
        messages.note(format!(
            "explaining the logits '{}' before the softmax '{}' (--keep-softmax explains the probabilities)",
            target.layer,
            model.graph().value(output).name
        ));
    }
    if model.roundings() > 0 {
        messages.note(format!("the network is quantized: {}", report::roundings_text(model)));
    }
    if let (Some(labels), Some(count)) = (&target.labels, target.count())
        && labels.len() != count
    {
        messages.warning(format!(
            "there are {} labels for the {count} filters of '{}'; names may be wrong",
            labels.len(),
            target.layer
        ));
    }
}

impl Session<'_> {
    /// Explains all inputs; the exit code and the reports for standard output.
    fn all(&mut self) -> Result<(u8, Vec<Value>)> {
        let mut code = 0;
        let mut reports = Vec::new();
        let named_only = Source { path: PathBuf::new(), stem: "input".into() };
        let sources: Vec<&Source> = match self.data.sources.is_empty() {
            true => vec![&named_only],
            false => self.data.sources.iter().collect(),
        };
        for source in sources {
            match self.one(source) {
                Ok(found) => reports.extend(found),
                Err(error) if exit_code(&error) == 0 => return Err(error),
                Err(error) => {
                    let name = files::shown(&source.path);
                    let error = match name.is_empty() || one_text(&error).contains(&name) {
                        true => error,
                        false if error.is::<Usage>() => error,
                        false => error.context(name),
                    };
                    self.messages.error(&error);
                    code = code.max(exit_code(&error));
                }
            }
            self.messages.advance();
        }
        Ok((code, reports))
    }

    /// Explains one input: every map of it.
    fn one(&mut self, source: &Source) -> Result<Vec<Value>> {
        let picture = self.output.picture(&source.stem);
        let count = self.goal.map_count();
        let numbered = |path: &PathBuf, map: usize| {
            if count > 1 { files::numbered(path, map + 1) } else { path.clone() }
        };
        if self.output.is_careful() {
            let pictures = picture.iter().flat_map(|path| (0..count).map(|map| numbered(path, map)));
            if let Some(path) = pictures.into_iter().find(|path| path.exists()) {
                bail!("{} exists already: use --force to replace it, or --out FILE", path.display());
            }
        }
        let start = Instant::now();
        let ready = match source.path.as_os_str().is_empty() {
            true => self.reader.named_only(),
            false => self.reader.read(&source.path)?,
        };
        let read_ms = milliseconds(start);
        let start = Instant::now();
        let inputs = ready.input.resolve(self.model)?;
        let planned = self.planned(&inputs)?;
        let compile_ms = milliseconds(start);
        let mut start = Instant::now();
        let tensors: Vec<Tensor> = inputs.into_iter().map(|(_, tensor)| tensor).collect();
        let parts = planned.explanation.parts(&tensors)?;
        let (mut scores, mut forward_ms) = (Vec::new(), 0.0);
        let mut maps: Vec<Map> = (0..count).map(|_| Map::default()).collect();
        let mut reports = Vec::new();
        for (place, (explainer, tensors)) in parts.iter().enumerate() {
            let mut forward = explainer.start(tensors)?;
            let mut chosen = vec![None];
            if let Some(target) = &self.target {
                let found = target.scores(forward.also())?;
                chosen = target.choose(&found)?.into_iter().map(Some).collect();
                scores.push(found);
            }
            forward_ms += milliseconds(start);
            for (index, (map, chosen)) in maps.iter_mut().zip(chosen).enumerate() {
                map.add(&mut *forward, chosen)?;
                if place + 1 < parts.len() {
                    continue;
                }
                let Map { chosen, parts, backward_ms } = std::mem::take(map);
                let mut timings = vec![("load", self.load_ms), ("read", read_ms), ("compile", compile_ms)];
                match chosen.as_ref().and_then(Chosen::filters) {
                    Some(_) => timings.extend([("forward", forward_ms), ("backward", backward_ms)]),
                    None => timings.push(("run", forward_ms + backward_ms)),
                }
                let scores = Scores::join(&scores)?;
                let explained =
                    Explained { chosen, attribution: planned.explanation.join(parts)?, scores, timings };
                let file = |path: &Option<PathBuf>| path.as_ref().map(|path| numbered(path, index));
                let report = self.write(source, &ready, &explained, file(&picture), &file)?;
                reports.push(report);
            }
            if self.run.timings && place == 0 {
                let (stem, timings) = (&source.stem, forward.timings());
                let of = if parts.len() > 1 { format!(", part 1 of {}", parts.len()) } else { String::new() };
                self.messages.note(format!("{stem}: the steps of the plan{of}\n{timings}"));
            }
            start = Instant::now();
        }
        Ok(reports)
    }

    /// The plan for inputs of these shapes.
    fn planned(&mut self, inputs: &[(ValueId, Tensor)]) -> Result<Rc<Planned>> {
        let shapes: Vec<(ValueId, Vec<usize>)> =
            inputs.iter().map(|(id, tensor)| (*id, tensor.shape().to_vec())).collect();
        if let Some(planned) = self.plan.as_ref().filter(|planned| planned.shapes == shapes) {
            return Ok(planned.clone());
        }
        let also = self.target.as_ref().map(Target::reported).unwrap_or_default();
        let own;
        let losses = match (&self.target, self.goal) {
            (Some(target), _) => {
                own = [target.loss()?];
                &own
            }
            (None, Goal::Losses(_, losses)) => &losses[..],
            (None, _) => unreachable!("a goal without losses has a target"),
        };
        let task = Task { model: self.model, losses, shapes: &shapes, also: &also };
        let explanation = self.method.method.explanation(&task)?;
        let planned = Rc::new(Planned { shapes, explanation });
        self.plan = Some(planned.clone());
        Ok(planned)
    }

    /// Writes what was asked for; the report.
    fn write(
        &mut self,
        source: &Source,
        ready: &Ready,
        explained: &Explained,
        picture: Option<PathBuf>,
        file: &dyn Fn(&Option<PathBuf>) -> Option<PathBuf>,
    ) -> Result<Value> {
        let start = Instant::now();
        let Explained { chosen, attribution, scores, timings } = explained;
        let modifier = &self.method.method.settings().grad_modifier;
        let (npy_file, raw_file) = (file(&self.output.npy), file(&self.output.raw_npy));
        let mut written = Vec::new();
        let result = result_map(attribution, modifier, self.method)?;
        let scored = match (&self.target, chosen, scores) {
            (Some(target), Some(chosen), Some(scores)) => {
                Some(report::Scored::new(target, chosen, scores, attribution))
            }
            _ => None,
        };
        let captions = scored.as_ref().map(report::Scored::captions).unwrap_or_default();
        if let Some(path) = &picture {
            let drawn = draw(attribution, modifier, self.output, &ready.backdrop, &captions)?;
            files::write(path, &encode_png(drawn.view())?)?;
            written.push(path);
            let samples = attribution.raw.shape().first().copied().unwrap_or(1);
            if samples > MOST_TILES {
                self.messages.note(format!("the picture shows the first {MOST_TILES} of {samples} samples"));
            }
        }
        if let Some(path) = &npy_file {
            files::write(path, &npy::bytes(result.view()))?;
            written.push(path);
        }
        if let Some(path) = &raw_file {
            files::write(path, &npy::tensor_bytes(&attribution.raw)?)?;
            written.push(path);
        }
        let mut timings = timings.clone();
        timings.push(("write", milliseconds(start)));
        let mut report = serde_json::Map::new();
        report.insert("model".into(), self.model.title().into());
        report.insert("input".into(), report::input(source, ready, self.data));
        report.insert("method".into(), self.method.method.entry().name.into());
        report.insert("options".into(), report::options(self.method, self.goal, self.run));
        report.insert("target".into(), scored.as_ref().map_or(Value::Null, report::Scored::json));
        report.insert("channel_axis".into(), json!(attribution.channel_axis));
        report.insert("wrt".into(), json!({"tensor": attribution.tensor, "shape": attribution.raw.shape()}));
        report.insert("result".into(), json!({"shape": result.shape()}));
        report.insert("losses".into(), report::losses(attribution));
        report.insert("measures".into(), report::measures(attribution));
        report.insert("rules".into(), report::rules(attribution));
        report.insert("cam".into(), report::layer_map(attribution));
        report.insert("notes".into(), json!(attribution.notes));
        report.insert("completeness".into(), report::completeness(attribution));
        report.insert("warnings".into(), json!(attribution.warnings));
        let names: Vec<String> = written.iter().map(|path| path.display().to_string()).collect();
        report.insert("files".into(), json!(names));
        report.insert("timings".into(), report::timings(&timings));
        let report = Value::Object(report);
        let json_file = file(&self.output.json).filter(|path| !files::is_stream(path));
        if let Some(path) = &json_file {
            files::write(path, report::text(&report).as_bytes())?;
        }
        let mut warnings = attribution.warnings.clone();
        if let Some(sums) = attribution.completeness.as_ref().filter(|sums| !sums.holds()) {
            let has = |name: &str| self.method.options().iter().any(|it| it.name == name);
            let hint = match (has("layer_sums"), has("steps"), has("samples")) {
                (true, ..) if sums.is_accounted_for() => "; --layer-sums says where",
                (true, ..) if self.method.method.settings().precision == Precision::F64 => {
                    "; --layer-sums says where the rest went"
                }
                (true, ..) => {
                    "; --layer-sums says where the rest went, --precision f64 whether it is rounding"
                }
                (_, true, _) => "; more --steps bring the two together",
                (.., true) => "; more --samples bring the two together",
                _ => "",
            };
            warnings.push(format!("the map {}{hint}", report::completeness_text(sums)));
        }
        let files: Vec<String> = picture
            .iter()
            .chain(&npy_file)
            .chain(&raw_file)
            .chain(&json_file)
            .filter(|path| !files::is_stream(path))
            .map(|path| path.display().to_string())
            .collect();
        let arrow = if files.is_empty() { String::new() } else { format!(" -> {}", files.join(", ")) };
        let mut what = match &scored {
            Some(scored) => scored.summary(),
            None => report::loss_summary(attribution),
        };
        if let Some(sums) = &attribution.completeness {
            what += &format!("; {}", report::completeness_text(sums));
        }
        self.messages.note(format!("{}: {what}{arrow}", source.stem));
        if let Some(sums) = attribution.completeness.as_ref().filter(|sums| !sums.layers.is_empty()) {
            self.messages.note(report::layer_sums_text(sums));
        }
        if self.run.explain_rules {
            self.messages.note(report::rules_text(attribution));
        }
        if self.run.timings {
            self.messages.note(report::timings_text(&timings));
        }
        for note in &attribution.notes {
            if self.noted.insert(note.clone()) {
                self.messages.note(note.clone());
            }
        }
        for warning in warnings {
            self.warn(source, warning);
        }
        Ok(report)
    }

    /// Gives each warning once, whatever the number of inputs.
    fn warn(&mut self, source: &Source, warning: String) {
        let count = self.warned.entry(warning.clone()).or_default();
        *count += 1;
        match (*count, self.data.sources.len()) {
            (1, 0 | 1) => self.messages.warning(warning),
            (1, _) => self.messages.warning(format!("{}: {warning}", source.stem)),
            _ => {}
        }
    }

    fn repeat_warnings(&self) {
        for (warning, count) in self.warned.iter().filter(|(_, count)| **count > 1) {
            let short: String = warning.chars().take(60).collect();
            self.messages.warning(format!("the same {} more times: {short}…", count - 1));
        }
    }
}

/// What `--npy` holds: for one sample without the batch axis.
fn result_map(attribution: &Attribution, modifier: &GradModifier, method: &Method) -> Result<ArrayD<f32>> {
    let keep_dims = method.method.settings().keep_dims;
    let mut maps = attribution.maps(modifier, keep_dims).with_context(|| {
        format!("the map of '{}' after the grad modifier '{modifier}'", attribution.tensor)
    })?;
    if method.profile == "keras-vis" && !keep_dims && attribution.raw.shape().len() == 2 {
        // The maximum over the features alone is one number, and that is 0 after scaling.
        maps = ArrayD::zeros(vec![maps.shape()[0], 1]);
    }
    Ok(if maps.ndim() > 0 && maps.shape()[0] == 1 { maps.index_axis_move(Axis(0), 0) } else { maps })
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
