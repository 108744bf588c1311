//! `ouzel bench`: how long an explanation, or a prediction, takes on this machine.

use crate::args::BenchArgs;
use crate::files;
use crate::input::SIDE;
use crate::job::{FilterChoice, Goal, Method, Run, array, read_labels};
use crate::messages::{Messages, usage};
use crate::report;
use crate::target::{Chosen, Target};
use anyhow::{Context, Result, bail};
use ouzel::image::{Layout, Size};
use ouzel::{Filters, Model, Plan, Task, Tensor, Timings, ValueId};
use rand::RngExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::time::Instant;

/// Something that can be run again and again.
type Work = Box<dyn Fn(&[Tensor]) -> ouzel::Result<(Vec<Tensor>, Timings)>>;

/// Measures, and prints the figures.
pub fn run(typed: &BenchArgs) -> Result<()> {
    let mut goal = Goal::new(&typed.target)?;
    if goal.map_count() > 1 {
        usage!("--filters: expected indices, a label, top or all; --targets N measures N maps");
    }
    if let (Some(targets), Goal::Target { filters, .. }) = (typed.targets, &mut goal) {
        *filters = Some(FilterChoice::Top(targets));
    }
    let labels = read_labels(&typed.labels)?;
    let run = Run::new(&typed.run)?;
    let mut method = Method::new(&typed.method, &typed.run, &array)?;
    let messages = Messages::new(typed.run.quiet);
    if let Some(path) = &typed.json {
        files::check_parent("--json", path)?;
    }
    let start = Instant::now();
    let model = files::read_model(&typed.model)?;
    let load = milliseconds(start);
    if let (Some(layout), None) = (typed.layout, method.wrt()) {
        let axis = if layout == Layout::Nchw { 1 } else { -1 };
        method.method.settings_mut().wrt_channel_axis.get_or_insert(axis);
    }
    let tensors = random_inputs(&model, typed, run.seed)?;
    let shapes = |model: &Model| -> Vec<(ValueId, Vec<usize>)> {
        model.inputs().iter().zip(&tensors).map(|(id, tensor)| (*id, tensor.shape().to_vec())).collect()
    };
    let model = model.for_inputs(&shapes(&model))?;
    let shapes = shapes(&model);

    let (compile, work) = match typed.forward {
        true => forward(&model, typed, &shapes)?,
        false => explanation(&model, &goal, labels.as_ref(), &method, &shapes, &tensors)?,
    };
    let mut times = Vec::with_capacity(typed.iterations);
    // The first run warms caches up, and is what the checksum is of.
    let start = Instant::now();
    let (result, mut steps) = work(&tensors)?;
    let first = milliseconds(start);
    for _ in 0..typed.iterations {
        let start = Instant::now();
        let (_, timings) = work(&tensors)?;
        times.push(milliseconds(start));
        steps.keep_least(&timings);
    }
    times.sort_by(f64::total_cmp);
    let median = (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0;
    let figures = json!({
        "median_ms": median,
        "min_ms": times.first(),
        "max_ms": times.last(),
        "first_ms": first,
        "load_ms": load,
        "compile_ms": compile,
        "targets": if typed.forward { 0 } else { goal.map_count() },
        "peak_memory_bytes": peak_memory(),
        "threads": rayon::current_num_threads(),
        "simd": ouzel::simd_level()?,
        "checksum": checksum(&result),
    });
    if run.timings {
        messages.note(report::timings_text(&[("load", load), ("compile", compile), ("run", median)]));
        messages.note(format!(
            "the steps of the plan, the least time of {} runs:\n{steps}",
            typed.iterations + 1
        ));
    }
    if let Some(path) = &typed.json {
        files::write(path, report::text(&figures).as_bytes())?;
    }
    if typed.json.as_deref().is_none_or(|path| !files::is_stream(path)) {
        let lines = figures.as_object().into_iter().flatten().map(|(key, value)| {
            let value = match value {
                Value::Number(number) if number.is_f64() => {
                    format!("{:.3}", number.as_f64().unwrap_or_default())
                }
                Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            format!("{key:<18} {value}\n")
        });
        files::print(lines.collect::<String>().as_bytes())?;
    } else {
        messages.note(format!("{median:.3} ms, the median of {} runs", typed.iterations));
    }
    Ok(())
}

/// The prediction: all outputs.
fn forward(model: &Model, typed: &BenchArgs, shapes: &[(ValueId, Vec<usize>)]) -> Result<(f64, Work)> {
    let names = model.output_names().iter();
    let outputs = names.map(|name| model.find(name.as_str())).collect::<ouzel::Result<Vec<ValueId>>>()?;
    let start = Instant::now();
    let plan = Plan::new(model.graph(), shapes, &outputs, typed.run.precision)?;
    let work = move |tensors: &[Tensor]| {
        let mut started = plan.start(tensors)?;
        Ok((started.finish(&[])?, started.timings()))
    };
    Ok((milliseconds(start), Box::new(work)))
}

/// The explanation, of several targets on one forward pass; the highest-scoring filters are looked for before time is taken.
fn explanation(
    model: &Model,
    goal: &Goal,
    labels: Option<&ouzel::image::Labels>,
    method: &Method,
    shapes: &[(ValueId, Vec<usize>)],
    tensors: &[Tensor],
) -> Result<(f64, Work)> {
    let target = Target::new(model, goal, labels)?;
    let also = target.as_ref().map(Target::reported).unwrap_or_default();
    let own;
    let losses = match (&target, goal) {
        (Some(target), _) => {
            own = [target.loss()?];
            &own
        }
        (None, Goal::Losses(_, losses)) => &losses[..],
        (None, _) => unreachable!("a goal without losses has a target"),
    };
    let start = Instant::now();
    let explainer = method.method.prepare(&Task { model, losses, shapes, also: &also })?;
    let compile = milliseconds(start);
    let chosen = match &target {
        Some(target) => target.choose(&target.scores(explainer.start(tensors)?.also())?)?,
        None => vec![Chosen::All],
    };
    let filters: Vec<Option<Filters>> = chosen.iter().map(Chosen::filters).collect();
    let work = move |tensors: &[Tensor]| {
        let mut started = explainer.start(tensors)?;
        let maps = filters.iter().map(|filters| Ok(started.explain(filters.clone())?.raw));
        let maps = maps.collect::<ouzel::Result<Vec<Tensor>>>()?;
        Ok((maps, started.timings()))
    };
    Ok((compile, Box::new(work)))
}

/// An input of the model's size: uniform random numbers of 0..1, zeros where integers are wanted.
fn random_inputs(model: &Model, typed: &BenchArgs, seed: u64) -> Result<Vec<Tensor>> {
    let graph = model.graph();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let size = typed.size.unwrap_or(Size::new(SIDE, SIDE));
    let main = model.main_input();
    let batch = graph.fact(main).shape.first().cloned();
    let mut tensors = Vec::new();
    for &id in model.inputs() {
        let fact = graph.fact(id);
        let layout = typed.layout.unwrap_or_else(|| model.input_layout(id));
        let first_spatial = if layout == Layout::Nchw { 2 } else { 1 };
        let mut shape = Vec::new();
        for (axis, dimension) in fact.shape.iter().enumerate() {
            let known = dimension.known().and_then(|length| usize::try_from(length).ok());
            let is_batch = axis == 0 || Some(dimension) == batch.as_ref();
            let asked = match axis {
                0 => typed.batch,
                _ if fact.rank() == 4 && axis == first_spatial => typed.size.map(|size| size.height),
                _ if fact.rank() == 4 && axis == first_spatial + 1 => typed.size.map(|size| size.width),
                _ => None,
            };
            shape.push(match known {
                Some(known) => {
                    if let Some(asked) = asked.filter(|&asked| asked != known && id == main) {
                        let option = if axis == 0 { "--batch" } else { "--size" };
                        bail!("{option}: axis {axis} of input {} is {known}, not {asked}", graph.title(id));
                    }
                    known
                }
                None if is_batch => typed.batch.unwrap_or(1),
                None if fact.rank() == 4 && axis == first_spatial => size.height,
                None if fact.rank() == 4 && axis == first_spatial + 1 => size.width,
                None => bail!(
                    "input {} has the shape {fact}, and nothing says how long '{dimension}' is; only batch, height and \
                     width can be chosen",
                    graph.title(id)
                ),
            });
        }
        let count = shape.iter().try_fold(1usize, |count, &length| count.checked_mul(length));
        let count = count
            .filter(|&count| count < 1 << 32)
            .with_context(|| format!("input {}: the shape {shape:?} is too large to try", graph.title(id)))?;
        let values: Vec<f32> = match fact.dtype.is_float() {
            true => (0..count).map(|_| random.random::<f32>()).collect(),
            false => vec![0.0; count],
        };
        tensors.push(Tensor::from_shape_vec(&shape, values)?.cast(fact.dtype));
    }
    Ok(tensors)
}

/// The most memory that the process has had, where the system says it.
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// FNV-1a, 64 bits, of the elements' bytes: equal for equal bytes, whatever the machine.
fn checksum(tensors: &[Tensor]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for tensor in tensors {
        match tensor {
            Tensor::F32(values) => values.iter().for_each(|value| add(&value.to_le_bytes())),
            other => other.to_f64().iter().for_each(|value| add(&value.to_le_bytes())),
        }
    }
    format!("{hash:016x}")
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
