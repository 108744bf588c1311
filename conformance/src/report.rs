//! How a run came out: a table of folders and methods, and the details of what failed.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::ops::AddAssign;

/// How a case came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every comparison held.
    Passed,
    /// What did not hold.
    Failed(Vec<String>),
    /// The method is not compared yet.
    NotCovered,
}

/// One call of a peer, repeated.
#[derive(Clone, Debug)]
pub struct CaseReport {
    /// The case's name in its folder.
    pub id: String,
    /// The library that was asked.
    pub peer: String,
    /// The function that was called.
    pub method: String,
    /// How it came out.
    pub outcome: Outcome,
}

/// All cases of a folder.
#[derive(Clone, Debug)]
pub struct FolderReport {
    /// The folder's name.
    pub name: String,
    /// Its cases, in the order of the file.
    pub cases: Vec<CaseReport>,
}

/// Cases by outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Cases where every comparison held.
    pub passed: usize,
    /// Cases where one did not.
    pub failed: usize,
    /// Cases of methods that are not compared yet.
    pub not_covered: usize,
}

impl Counts {
    fn add(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::Passed => self.passed += 1,
            Outcome::Failed(_) => self.failed += 1,
            Outcome::NotCovered => self.not_covered += 1,
        }
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.not_covered += other.not_covered;
    }
}

impl FolderReport {
    /// How many cases passed, failed, and are not covered.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.cases.iter().for_each(|case| counts.add(&case.outcome));
        counts
    }

    /// What failed, a line for each comparison: folder, case, call, reason.
    pub fn failures(&self) -> impl Iterator<Item = String> {
        self.cases.iter().flat_map(move |case| {
            let reasons = match &case.outcome {
                Outcome::Failed(reasons) => reasons.as_slice(),
                _ => &[],
            };
            reasons.iter().map(move |why| {
                format!("{} {} ({}): {why}", self.name, case.id, call(&case.peer, &case.method))
            })
        })
    }
}

/// A peer's function, as reports name it.
fn call(peer: &str, method: &str) -> String {
    if method.starts_with(peer) { method.to_owned() } else { format!("{peer} {method}") }
}

impl Display for FolderReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut methods: BTreeMap<String, Counts> = BTreeMap::new();
        for case in &self.cases {
            methods.entry(call(&case.peer, &case.method)).or_default().add(&case.outcome);
        }
        writeln!(f, "{:<58} {:>7} {:>7} {:>12}", self.name, "passed", "failed", "not covered")?;
        for (method, Counts { passed, failed, not_covered }) in methods {
            writeln!(f, "  {method:<56} {passed:>7} {failed:>7} {not_covered:>12}")?;
        }
        Ok(())
    }
}
