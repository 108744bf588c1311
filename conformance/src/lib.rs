//! Compares Ouzel with reference arrays that other attribution libraries produced.
//!
//! A folder of golden data holds a network, inputs, and what peers return for them; its `cases.json` says which call
//! gave which array. [`Folder::run`] repeats every call through Ouzel's public API and compares. `golden/README.md`
//! describes the data; `golden` is the binary that prints the outcome.
#![forbid(unsafe_code)]

mod activation;
mod cam;
mod checks;
mod folder;
mod keras;
mod nodes;
mod paths;
mod perturbation;
mod report;
mod torch;

pub use folder::Folder;
pub use nodes::{NodeCase, NodeReport, node_cases};
pub use report::{CaseReport, Counts, FolderReport, Outcome};
