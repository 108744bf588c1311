//! Times the engine on a network and compares its input gradient with the reference evaluation's.

use anyhow::{Context, Result};
use clap::Parser;
use ndarray::ArrayD;
use ouzel::rules::RuleSet;
use ouzel::{Builder, DType, Model, Plan, Precision, Tensor, gradient};
use std::path::PathBuf;
use std::time::Instant;

/// Times forward and backward passes through a network.
#[derive(Parser)]
struct Arguments {
    /// The ONNX file.
    model: PathBuf,
    /// The input, a .npy file; else numbers made up.
    #[arg(long)]
    input: Option<PathBuf>,
    /// The class whose score is differentiated.
    #[arg(long, default_value_t = 0)]
    class: i64,
    /// Where to write the gradient.
    #[arg(long)]
    out: Option<PathBuf>,
    /// How often to run.
    #[arg(long, default_value_t = 20)]
    iterations: usize,
    /// Compute nothing but the output.
    #[arg(long)]
    forward: bool,
    /// Print the time of each step.
    #[arg(long)]
    timings: bool,
    /// Compute in float64 by the reference evaluation.
    #[arg(long)]
    exact: bool,
    /// Worker threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    #[arg(long, default_value_t = 1)]
    batch: usize,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    rayon::ThreadPoolBuilder::new().num_threads(arguments.threads).build_global()?;
    let start = Instant::now();
    let model = Model::load(&arguments.model)?;
    let x = model.main_input();
    let output = model.graph().fact(model.default_target(false)?.0).clone();
    let target = model.default_target(false)?.0;
    let loaded = start.elapsed();
    let input: ArrayD<f32> = match &arguments.input {
        Some(path) => ndarray_npy::read_npy(path).context("input")?,
        None => {
            let shape = [arguments.batch, 3, 224, 224];
            let mut state = 1u32;
            ArrayD::from_shape_simple_fn(&shape[..], || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 24) as f32 * 4.0 - 2.0
            })
        }
    };
    let shape = input.shape().to_vec();
    let start = Instant::now();
    let (graph, wanted) = if arguments.forward {
        (model.graph().clone(), target)
    } else {
        let builder = Builder::new(model.graph().clone());
        let scores = builder.var(target);
        let axis = output.rank() - 1;
        let loss = scores.slice(axis, arguments.class, arguments.class + 1).sum().id()?;
        let gradient = gradient(builder.finish()?, loss, &[x], &RuleSet::new())?;
        (gradient.graph, gradient.values[0])
    };
    let precision = if arguments.exact { Precision::F64 } else { Precision::F32 };
    let plan = Plan::new(&graph, &[(x, shape)], &[wanted], precision)?;
    let compiled = start.elapsed();
    let input = [Tensor::from(input)];
    let mut times = Vec::new();
    let mut result = None;
    let before = processor_time();
    for _ in 0..arguments.iterations {
        let start = Instant::now();
        result = Some(plan.run(&input)?);
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let processor = (processor_time() - before) / arguments.iterations as f64;
    let first = times.first().copied().unwrap_or_default();
    times.sort_by(f64::total_cmp);
    let result = result.context("no iterations")?.remove(0);
    let checksum: f64 = result.to_f64().iter().enumerate().map(|(i, v)| v * f64::from((i % 7) as u32)).sum();
    println!(
        "{}: load {:.1} ms, compile {:.1} ms, first {first:.1} ms, median {:.2} ms, least {:.2} ms, processor {processor:.2} ms, checksum {checksum:.9e}",
        arguments.model.display(),
        loaded.as_secs_f64() * 1e3,
        compiled.as_secs_f64() * 1e3,
        times[times.len() / 2],
        times[0],
    );
    if arguments.timings {
        // The least time of each step is what it takes on a machine that does nothing else.
        let (_, mut least) = plan.run_timed(&input)?;
        for _ in 1..arguments.iterations {
            least.keep_least(&plan.run_timed(&input)?.1);
        }
        println!("{least}");
    }
    if let Some(path) = &arguments.out {
        match result.dtype() {
            DType::F64 => ndarray_npy::write_npy(path, &result.to_f64())?,
            _ => ndarray_npy::write_npy(path, &result.to_f32())?,
        }
    }
    Ok(())
}

/// What all threads of this process have computed for, in milliseconds; 0 where the system does not say.
fn processor_time() -> f64 {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return 0.0 };
    let time = |task: std::fs::DirEntry| -> Option<f64> {
        std::fs::read_to_string(task.path().join("schedstat")).ok()?.split(' ').next()?.parse().ok()
    };
    tasks.flatten().filter_map(time).sum::<f64>() / 1e6
}
