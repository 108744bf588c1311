//! How long the steps of a plan took, as a table.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// A step of a plan, and how long it took.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepTime {
    /// The node, and what was joined to it.
    pub title: String,
    /// What does the work: a kernel, or the reference evaluation of an op.
    pub kind: String,
    /// The shape of the result; empty where it is not known before the step runs.
    pub shape: Vec<usize>,
    /// Multiplications and additions of a run, for products; padding counts as if it were computed.
    pub flops: Option<f64>,
    /// Bytes of tensors that a run reads and writes, for what is no product.
    pub bytes: Option<f64>,
    /// How often it ran.
    pub runs: u32,
    /// The time of all runs.
    pub time: Duration,
}

/// How long each step of a plan took, in the order in which they run.
///
/// Printed, it is a table of the steps and a summary by kind.
#[derive(Clone, Debug, Default)]
pub struct Timings {
    pub(crate) steps: Vec<StepTime>,
}

impl Timings {
    /// The steps, in the order in which they run.
    pub fn steps(&self) -> &[StepTime] {
        &self.steps
    }

    /// The time of all steps.
    pub fn total(&self) -> Duration {
        self.steps.iter().map(|step| step.time).sum()
    }

    /// Adds the times of another run of the same plan.
    pub(crate) fn add(&mut self, other: &Self) {
        match self.steps.is_empty() {
            true => self.steps.clone_from(&other.steps),
            false => self.steps.iter_mut().zip(&other.steps).for_each(|(step, other)| {
                step.time += other.time;
                step.runs += other.runs;
            }),
        }
    }

    /// Keeps the lesser time of each step, out of these and those of another run of the same plan: what a step takes when
    /// nothing else runs.
    pub fn keep_least(&mut self, other: &Self) {
        for (step, other) in self.steps.iter_mut().zip(&other.steps) {
            step.time = step.time.min(other.time);
        }
    }
}

/// What a row of the table says, for one step or for all of a kind.
#[derive(Clone, Copy, Default)]
struct Row {
    time: Duration,
    flops: f64,
    bytes: f64,
}

impl Row {
    fn of(step: &StepTime) -> Self {
        let runs = f64::from(step.runs);
        Self {
            time: step.time,
            flops: step.flops.unwrap_or_default() * runs,
            bytes: step.bytes.unwrap_or_default() * runs,
        }
    }

    fn add(&mut self, other: Self) {
        self.time += other.time;
        self.flops += other.flops;
        self.bytes += other.bytes;
    }

    fn rate(&self) -> String {
        let seconds = self.time.as_secs_f64();
        let (amount, unit) = if self.flops > 0.0 { (self.flops, "GFLOP/s") } else { (self.bytes, "GB/s") };
        match amount > 0.0 && seconds > 0.0 {
            true => format!("{:.1} {unit:<7}", amount / seconds / 1e9),
            false => String::new(),
        }
    }

    /// Time, share of the total and rate.
    fn write(&self, f: &mut fmt::Formatter<'_>, total: Duration) -> fmt::Result {
        let share = 100.0 * self.time.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE);
        write!(f, "{:10.3} {share:6.1}% {:>15}", self.time.as_secs_f64() * 1e3, self.rate())
    }
}

impl fmt::Display for Timings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape = |step: &StepTime| step.shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x");
        let width = self.steps.iter().map(|step| shape(step).len()).max().unwrap_or(0).max("shape".len());
        let total = self.total();
        let (ms, share, rate) = ("ms", "share", "rate");
        writeln!(f, "{ms:>10} {share:>7} {rate:>15}  {:width$}  step", "shape")?;
        let mut kinds: BTreeMap<&str, (Row, usize)> = BTreeMap::new();
        let mut all = Row::default();
        for step in &self.steps {
            let row = Row::of(step);
            row.write(f, total)?;
            write!(f, "  {:width$}  {}", shape(step), step.title)?;
            match step.runs {
                1 => writeln!(f)?,
                runs => writeln!(f, " ({runs} runs)")?,
            }
            let kind = kinds.entry(&step.kind).or_default();
            kind.0.add(row);
            kind.1 += 1;
            all.add(Row { flops: 0.0, bytes: 0.0, ..row });
        }
        all.write(f, total)?;
        writeln!(f, "  {:width$}  total of {} steps", "", self.steps.len())?;
        writeln!(f)?;
        let mut kinds: Vec<(&str, (Row, usize))> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, (row, _))| std::cmp::Reverse(row.time));
        write!(f, "{ms:>10} {share:>7} {rate:>15}  {:>5}  kind", "steps")?;
        for (kind, (row, count)) in kinds {
            writeln!(f)?;
            row.write(f, total)?;
            write!(f, "  {count:>5}  {kind}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(title: &str, kind: &str, shape: &[usize], microseconds: u64, flops: Option<f64>) -> StepTime {
        StepTime {
            title: title.into(),
            kind: kind.into(),
            shape: shape.to_vec(),
            flops,
            bytes: None,
            runs: 1,
            time: Duration::from_micros(microseconds),
        }
    }

    #[test]
    fn the_table() {
        let mut timings = Timings {
            steps: vec![
                step("Conv 'a' + Relu", "convolution", &[1, 64, 7, 7], 3000, Some(3e8)),
                step("Shape 'b'", "Shape (reference)", &[], 1000, None),
                step("Conv: gradient of Conv 'a'", "convolution", &[1, 3, 7, 7], 4000, Some(2e8)),
            ],
        };
        timings.steps[2].runs = 2;
        let expected = [
            "        ms   share            rate  shape     step",
            "     3.000   37.5%   100.0 GFLOP/s  1x64x7x7  Conv 'a' + Relu",
            "     1.000   12.5%                            Shape 'b'",
            "     4.000   50.0%   100.0 GFLOP/s  1x3x7x7   Conv: gradient of Conv 'a' (2 runs)",
            "     8.000  100.0%                            total of 3 steps",
            "",
            "        ms   share            rate  steps  kind",
            "     7.000   87.5%   100.0 GFLOP/s      2  convolution",
            "     1.000   12.5%                      1  Shape (reference)",
        ];
        let expected = expected.join("\n");
        assert_eq!(timings.to_string(), expected);
        let mut least = timings.clone();
        timings.steps[0].time = Duration::from_micros(2000);
        timings.steps[1].time = Duration::from_micros(5000);
        least.keep_least(&timings);
        assert_eq!(least.total(), Duration::from_micros(7000));
    }
}
