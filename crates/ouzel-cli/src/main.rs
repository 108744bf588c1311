//! The `ouzel` command line: what was typed becomes a job, and a job is done.

mod args;
mod bench;
mod compare;
mod demo;
mod documents;
mod draw;
mod explain;
mod export;
mod files;
mod input;
mod inspect;
mod job;
mod messages;
mod methods;
mod npy;
mod predict;
mod report;
mod target;
mod visualize;

use args::{Arguments, Verb};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Explain(typed) => explain::run(&typed),
        Verb::Export(typed) => export::run(&typed).map(|()| 0),
        Verb::Inspect(typed) => inspect::run(&typed).map(|()| 0),
        Verb::Predict(typed) => predict::run(&typed).map(|()| 0),
        Verb::Compare(typed) => compare::run(&typed),
        Verb::Visualize(typed) => visualize::run(&typed).map(|()| 0),
        Verb::Methods(typed) => methods::run(&typed).map(|()| 0),
        Verb::Bench(typed) => bench::run(&typed).map(|()| 0),
        Verb::Demo(typed) => demo::run(&typed.out_dir).map(|()| 0),
        Verb::Completions(typed) => documents::completions(&typed).map(|()| 0),
        Verb::Man(typed) => documents::man(&typed).map(|()| 0),
    };
    done.unwrap_or_else(|error| {
        messages::Messages::new(false).error(&error);
        messages::exit_code(&error)
    })
    .into()
}
