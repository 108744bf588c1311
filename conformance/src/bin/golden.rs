//! Repeats the calls of other attribution libraries that folders of golden data hold, and compares.

use anyhow::Result;
use clap::Parser;
use ouzel_conformance::{Counts, Folder};
use std::path::PathBuf;
use std::process::ExitCode;

/// Repeats the calls of other attribution libraries that folders of golden data hold, and compares
#[derive(Parser)]
struct Arguments {
    /// Folders with model.onnx, cases.json and arrays
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Only cases whose folder, peer, method or id contains this text
    #[arg(long, default_value = "")]
    filter: String,
}

fn main() -> Result<ExitCode> {
    let Arguments { folders, filter } = Arguments::parse();
    let mut total = Counts::default();
    for path in &folders {
        let report = Folder::load(path)?.run(&filter)?;
        if report.cases.is_empty() {
            continue;
        }
        println!("{report}");
        report.failures().for_each(|failure| println!("{failure}"));
        total += report.counts();
    }
    let Counts { passed, failed, not_covered } = total;
    println!("{passed} passed, {failed} failed, {not_covered} skipped");
    Ok(if failed == 0 && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
