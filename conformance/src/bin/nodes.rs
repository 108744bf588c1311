//! Runs the test cases that come with ONNX, and compares what passes with the lists of what is supported and excluded.

use anyhow::{Context, Result};
use clap::Parser;
use ouzel_conformance::{NodeReport, node_cases};
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs the test cases that come with ONNX, and compares what passes with the lists of what is supported and excluded
#[derive(Parser)]
struct Arguments {
    /// Folders of cases: node, simple, pytorch-converted, pytorch-operator and real of the package onnx
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Only cases whose name contains this text; the lists are left alone
    #[arg(long)]
    filter: Option<String>,
    /// Write the list of what is supported anew
    #[arg(long, conflicts_with = "filter")]
    update: bool,
    /// Print the cases that are neither supported nor excluded, and why they fail
    #[arg(long)]
    missing: bool,
    /// The list of what is supported
    #[arg(long, default_value = "conformance/onnx_supported.txt")]
    supported: PathBuf,
    /// The list of what is excluded, with reasons
    #[arg(long, default_value = "conformance/onnx_excluded.txt")]
    excluded: PathBuf,
}

fn main() -> Result<ExitCode> {
    let typed = Arguments::parse();
    let mut cases = Vec::new();
    for folder in &typed.folders {
        cases.extend(node_cases(folder)?);
    }
    if let Some(filter) = &typed.filter {
        cases.retain(|case| case.name.contains(filter));
    }
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
    };
    let report = NodeReport::new(&cases, &read(&typed.supported)?, &read(&typed.excluded)?)?;
    if typed.missing || typed.filter.is_some() {
        report.missing().for_each(|(name, reason)| println!("{name}: {reason}"));
    }
    println!("{}", report.summary());
    if typed.update {
        std::fs::write(&typed.supported, report.supported())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut lines = report.disagreements();
    if typed.filter.is_some() {
        lines.retain(|line| line.contains("and fails"));
    }
    lines.iter().for_each(|line| println!("{line}"));
    Ok(if lines.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
