//! The test cases that come with ONNX itself: small networks with their inputs and the outputs that the standard asks
//! for.

use crate::checks::{Checks, Limits};
use anyhow::{Context, Result, bail, ensure};
use ndarray::ArrayD;
use ouzel::{DType, Model, Plan, Precision, Tensor, ValueId};
use rayon::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// How close ONNX's own test runner wants floating point outputs, unless a case says otherwise.
const LIMITS: Limits = Limits { atol: 1e-7, rtol: 1e-3 };

/// A test case of ONNX.
#[derive(Clone, Debug)]
pub struct NodeCase {
    /// Its name, such as `test_relu`.
    pub name: String,
    model: PathBuf,
    sets: Vec<DataSet>,
    limits: Limits,
}

/// Inputs and the outputs that they lead to.
#[derive(Clone, Debug)]
enum DataSet {
    /// A folder of `input_0.pb`, …, `output_0.pb`, ….
    Folder(PathBuf),
    /// Inputs that count up from 0 to 1, and files of outputs.
    Counting(Vec<PathBuf>),
}

/// What the file beside a case without a network says.
#[derive(Deserialize)]
struct Elsewhere {
    url: String,
    rtol: Option<f64>,
    atol: Option<f64>,
}

/// Finds the cases in a folder, each a folder of its own.
///
/// # Errors
/// If a folder cannot be read.
pub fn node_cases(folder: &Path) -> Result<Vec<NodeCase>> {
    let mut cases = Vec::new();
    for path in sorted(folder)? {
        if path.is_dir() {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            cases.extend(node_case(&path, name).with_context(|| path.display().to_string())?);
        }
    }
    Ok(cases)
}

fn node_case(path: &Path, name: String) -> Result<Option<NodeCase>> {
    let model = path.join("model.onnx");
    let described = std::fs::read_to_string(path.join("data.json")).ok();
    let described: Option<Elsewhere> = described.map(|text| serde_json::from_str(&text)).transpose()?;
    let limits = described.as_ref().map_or(LIMITS, |described| Limits {
        rtol: described.rtol.unwrap_or(LIMITS.rtol),
        atol: described.atol.unwrap_or(LIMITS.atol),
    });
    if model.is_file() {
        let is_set = |path: &PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("test_data_set"))
        };
        let sets = sorted(path)?.into_iter().filter(is_set).map(DataSet::Folder).collect();
        return Ok(Some(NodeCase { name, model, sets, limits }));
    }
    let Some(Elsewhere { url, .. }) = described else { return Ok(None) };
    // The package's own networks lie in a folder beside the cases'.
    let file = url.rsplit('/').next().unwrap_or_default();
    let beside = path.ancestors().nth(2).unwrap_or(path);
    let model = beside.join("light").join(file);
    let outputs = (0..)
        .map(|index| model.with_file_name(file.replace(".onnx", &format!("_output_{index}.pb"))))
        .take_while(|output| output.is_file());
    let sets = vec![DataSet::Counting(outputs.collect())];
    Ok(Some(NodeCase { name, model, sets, limits }))
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// `input_0.pb`, `input_1.pb`, …: the name that each carries, and its tensor.
fn numbered(folder: &Path, prefix: &str) -> Result<Vec<(String, Tensor)>> {
    let paths = (0..).map(|index| folder.join(format!("{prefix}_{index}.pb")));
    paths.take_while(|path| path.is_file()).map(|path| message(&path)).collect()
}

fn message(path: &Path) -> Result<(String, Tensor)> {
    Tensor::from_message(&std::fs::read(path)?).with_context(|| path.display().to_string())
}

/// Which inputs a case needs as constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fixed {
    None,
    /// All that are not floating point.
    Integers,
    /// All but the first.
    Others,
    All,
}

impl NodeCase {
    /// Runs the case, in float32 by the engine and in float64 by the reference evaluation. Where the network cannot be
    /// run because shapes depend on the elements of inputs, those are made constants: first all that are not floating
    /// point, then all but the first, then all. The result names them.
    ///
    /// # Errors
    /// If the network cannot be run, or gives other outputs than expected.
    pub fn run(&self) -> Result<Vec<String>> {
        let mut constants: Vec<String> = Vec::new();
        for set in &self.sets {
            for name in self.run_set(set)? {
                if !constants.contains(&name) {
                    constants.push(name);
                }
            }
        }
        ensure!(!self.sets.is_empty(), "there are no inputs");
        Ok(constants)
    }

    fn run_set(&self, set: &DataSet) -> Result<Vec<String>> {
        let (mut inputs, outputs) = match set {
            DataSet::Folder(folder) => (numbered(folder, "input")?, numbered(folder, "output")?),
            DataSet::Counting(outputs) => {
                (Vec::new(), outputs.iter().map(|path| message(path)).collect::<Result<_>>()?)
            }
        };
        if let Ok(model) = Model::load(&self.model) {
            let graph = model.graph();
            if let DataSet::Counting(_) = set {
                inputs = model.inputs().iter().map(|&id| counting(&model, id)).collect::<Result<_>>()?;
            }
            for ((name, tensor), &id) in inputs.iter_mut().zip(model.inputs()) {
                name.clone_from(&graph.value(id).name.to_string());
                if graph.fact(id).dtype == DType::F32 {
                    *tensor = from_bfloat16(tensor);
                }
            }
        }
        let mut problem = None;
        for fixed in [Fixed::None, Fixed::Integers, Fixed::Others, Fixed::All] {
            let is_fixed = |index: usize, tensor: &Tensor| match fixed {
                Fixed::None => false,
                Fixed::Integers => !tensor.dtype().is_float(),
                Fixed::Others => index > 0,
                Fixed::All => true,
            };
            let constants: Vec<(&str, Tensor)> = (inputs.iter().enumerate())
                .filter(|(index, (_, tensor))| is_fixed(*index, tensor))
                .map(|(_, (name, tensor))| (name.as_str(), tensor.clone()))
                .collect();
            if constants.is_empty() && fixed != Fixed::None {
                continue;
            }
            match self.compare(&inputs, &constants, &outputs) {
                Ok(()) => return Ok(constants.iter().map(|(name, _)| (*name).to_owned()).collect()),
                Err(Problem::Unsupported(error)) => problem = Some(error),
                Err(Problem::Wrong(error)) => return Err(error),
            }
        }
        problem.map_or(Ok(Vec::new()), Err)
    }

    fn compare(
        &self,
        inputs: &[(String, Tensor)],
        constants: &[(&str, Tensor)],
        outputs: &[(String, Tensor)],
    ) -> Result<(), Problem> {
        let model = Model::load_fixed(&self.model, constants).map_err(unsupported)?;
        let wanted = (model.output_names().iter().take(outputs.len()))
            .map(|name| model.find(name.as_str()))
            .collect::<ouzel::Result<Vec<ValueId>>>()
            .map_err(unsupported)?;
        let given: Vec<&Tensor> = (inputs.iter())
            .filter(|(name, _)| !constants.iter().any(|(constant, _)| constant == name))
            .map(|(_, tensor)| tensor)
            .collect();
        if given.len() != model.inputs().len() {
            return Err(unsupported(format!(
                "{} inputs are given, not {}",
                given.len(),
                model.inputs().len()
            )));
        }
        let shapes: Vec<(ValueId, Vec<usize>)> =
            model.inputs().iter().zip(&given).map(|(&id, tensor)| (id, tensor.shape().to_vec())).collect();
        for precision in [Precision::F32, Precision::F64] {
            let plan = Plan::new(model.graph(), &shapes, &wanted, precision).map_err(unsupported)?;
            let tensors: Vec<Tensor> = given.iter().map(|&tensor| tensor.clone()).collect();
            let found = plan.run(&tensors).map_err(unsupported)?;
            self.check(&found, outputs, precision).map_err(Problem::Wrong)?;
        }
        Ok(())
    }

    fn check(&self, found: &[Tensor], expected: &[(String, Tensor)], precision: Precision) -> Result<()> {
        let mut checks = Checks::default();
        for (index, (found, (_, expected))) in found.iter().zip(expected).enumerate() {
            let what = format!("output {index} in {precision}");
            let expected = &if found.dtype().is_float() { from_bfloat16(expected) } else { expected.clone() };
            let widened = precision == Precision::F64 && expected.dtype().is_float();
            let dtype = if widened { DType::F64 } else { expected.dtype() };
            checks.equal(&format!("{what}: element type"), found.dtype(), dtype);
            if expected.dtype().is_float() {
                let (ours, theirs) = (found.to_f64(), expected.to_f64());
                checks.equal(&format!("{what}: where there is NaN"), nan(&ours), nan(&theirs));
                let number =
                    |values: ArrayD<f64>| values.mapv(|value| if value.is_nan() { 0.0 } else { value });
                checks.close(&what, &number(ours), &number(theirs), self.limits);
            } else if is_near_tie(precision, &found.to_f64(), &expected.to_f64()) {
                checks.equal(&format!("{what}: shape"), found.shape(), expected.shape());
            } else {
                checks.equal(&what, found, expected);
            }
        }
        let failures = checks.into_failures();
        ensure!(failures.is_empty(), "{}", failures.join("; "));
        Ok(())
    }
}

/// Why a case does not pass.
enum Problem {
    Unsupported(anyhow::Error),
    Wrong(anyhow::Error),
}

fn unsupported(error: impl std::fmt::Display) -> Problem {
    Problem::Unsupported(anyhow::anyhow!("{error}"))
}

fn nan(values: &ArrayD<f64>) -> Vec<usize> {
    values.iter().enumerate().filter(|(_, value)| value.is_nan()).map(|(place, _)| place).collect()
}

/// True for integers that differ by one at most where they were rounded from other floating point numbers than
/// expected: a tie in float32 is none in float64.
fn is_near_tie(precision: Precision, ours: &ArrayD<f64>, theirs: &ArrayD<f64>) -> bool {
    precision == Precision::F64
        && ours.shape() == theirs.shape()
        && ours.iter().zip(theirs).all(|(a, b)| (a - b).abs() <= 1.0)
}

/// NumPy has no bfloat16: data of that type are stored as its bits.
fn from_bfloat16(tensor: &Tensor) -> Tensor {
    match tensor {
        Tensor::U16(bits) => bits.mapv(|bits| f32::from_bits(u32::from(bits) << 16)).into(),
        other => other.clone(),
    }
}

/// The input that ONNX's test runner makes up: `i / n` for each of n elements.
fn counting(model: &Model, id: ValueId) -> Result<(String, Tensor)> {
    let value = model.graph().value(id);
    let lengths = value.fact.shape.iter().map(|dim| dim.known().unwrap_or(1) as usize);
    let shape: Vec<usize> = lengths.collect();
    let count: usize = shape.iter().product();
    let elements = (0..count).map(|index| (index as f64 / count as f64) as f32).collect();
    Ok((value.name.to_string(), Tensor::from_shape_vec(&shape, elements)?))
}

/// How all cases came out, beside what two lists say of them.
#[derive(Debug)]
pub struct NodeReport {
    passed: BTreeMap<String, Vec<String>>,
    failed: BTreeMap<String, String>,
    supported: BTreeMap<String, String>,
    excluded: BTreeMap<String, String>,
}

impl NodeReport {
    /// Runs all cases that are not excluded.
    ///
    /// `supported` and `excluded` are the texts of the two lists: a name a line, then what there is to say of it.
    ///
    /// # Errors
    /// If a list names a case twice, or both do.
    pub fn new(cases: &[NodeCase], supported: &str, excluded: &str) -> Result<Self> {
        let (supported, excluded) = (manifest(supported)?, manifest(excluded)?);
        if let Some(both) = supported.keys().find(|name| excluded.contains_key(*name)) {
            bail!("{both} is on both lists");
        }
        if let Some((name, _)) = excluded.iter().find(|(_, reason)| reason.is_empty()) {
            bail!("{name} is excluded without a reason");
        }
        let run = |case: &NodeCase| {
            let outcome = catch_unwind(|| case.run()).unwrap_or_else(|_| bail!("it panicked"));
            (case.name.clone(), outcome)
        };
        let considered: Vec<&NodeCase> =
            cases.iter().filter(|case| !excluded.contains_key(&case.name)).collect();
        let outcomes: Vec<_> = considered.into_par_iter().map(run).collect();
        let mut report = Self { passed: BTreeMap::new(), failed: BTreeMap::new(), supported, excluded };
        for (name, outcome) in outcomes {
            match outcome {
                Ok(constants) => {
                    report.passed.insert(name, constants);
                }
                Err(error) => {
                    report.failed.insert(name, format!("{error:#}"));
                }
            }
        }
        Ok(report)
    }

    /// The list of what passes, as a file has it.
    pub fn supported(&self) -> String {
        let line = |(name, constants): (&String, &Vec<String>)| match constants.is_empty() {
            true => format!("{name}\n"),
            false => format!("{name}  constant: {}\n", constants.join(", ")),
        };
        self.passed.iter().map(line).collect()
    }

    /// Where the lists and the cases disagree.
    pub fn disagreements(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for name in self.supported.keys() {
            if let Some(reason) = self.failed.get(name) {
                lines.push(format!("{name} is listed as supported, and fails: {reason}"));
            } else if !self.passed.contains_key(name) {
                lines.push(format!("{name} is listed as supported, and there is no such case"));
            }
        }
        for (name, constants) in &self.passed {
            let found = if constants.is_empty() {
                String::new()
            } else {
                format!("constant: {}", constants.join(", "))
            };
            match self.supported.get(name) {
                None => lines.push(format!("{name} passes, and is not listed as supported")),
                Some(listed) if *listed != found => {
                    lines.push(format!("{name} passes with '{found}', and is listed with '{listed}'"));
                }
                Some(_) => {}
            }
        }
        lines
    }

    /// The cases that are neither supported nor excluded, and why they fail.
    pub fn missing(&self) -> impl Iterator<Item = (&str, &str)> {
        let missing = self.failed.iter().filter(|(name, _)| !self.supported.contains_key(*name));
        missing.map(|(name, reason)| (name.as_str(), reason.as_str()))
    }

    /// A line that says how many cases pass.
    pub fn summary(&self) -> String {
        let (passed, failed) = (self.passed.len(), self.failed.len());
        let mut text = String::new();
        let share = 100.0 * passed as f64 / (passed + failed).max(1) as f64;
        let _ = write!(text, "{passed} of {} cases pass ({share:.1} %)", passed + failed);
        let constant = self.passed.values().filter(|constants| !constants.is_empty()).count();
        let _ = write!(text, ", {constant} of them with constant inputs; {} excluded", self.excluded.len());
        text
    }
}

fn manifest(text: &str) -> Result<BTreeMap<String, String>> {
    let mut entries = BTreeMap::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let (name, note) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        if entries.insert(name.to_owned(), note.trim().to_owned()).is_some() {
            bail!("{name} is listed twice");
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(passed: &[&str], failed: &[&str], supported: &str) -> NodeReport {
        NodeReport {
            passed: passed.iter().map(|name| ((*name).to_owned(), Vec::new())).collect(),
            failed: failed.iter().map(|name| ((*name).to_owned(), "no".to_owned())).collect(),
            supported: manifest(supported).unwrap(),
            excluded: BTreeMap::new(),
        }
    }

    #[test]
    fn every_disagreement_with_the_list_is_told() {
        assert!(report(&["a"], &["b"], "a\n").disagreements().is_empty());
        let lines = report(&["a"], &["b"], "b\nc\n").disagreements().join("\n");
        for expected in
            ["b is listed as supported, and fails", "c is listed as supported, and there", "a passes"]
        {
            assert!(lines.contains(expected), "{lines}");
        }
        assert!(report(&["a"], &[], "a  constant: shape").disagreements()[0].contains("with ''"));
    }

    #[test]
    fn lists_are_names_with_notes() {
        let list = manifest("# of ours\na\nb  a reason\n\n").unwrap();
        assert_eq!(list["b"], "a reason");
        assert_eq!(list.len(), 2);
        assert!(manifest("a\na\n").is_err());
    }
}
