//! Every call of the golden data in this repository gives what its peer returned.

use ouzel_conformance::Folder;
use std::path::{Path, PathBuf};
use std::process::Command;

fn folders() -> Vec<PathBuf> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let entries = golden.read_dir().expect("the folder of golden data").map(|entry| entry.unwrap().path());
    let mut folders: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    folders
}

#[test]
fn the_results_are_those_of_the_peers() {
    let folders = folders();
    assert_eq!(folders.len(), 11, "networks in the golden data");
    let mut failures = Vec::new();
    for path in &folders {
        // A process for each network: that several in one process disturb each other is a known defect, see ARCHITECTURE.md.
        let ran = Command::new(env!("CARGO_BIN_EXE_golden")).arg(path).output().expect("the program runs");
        let report = String::from_utf8_lossy(&ran.stdout).into_owned();
        if !ran.status.success() || !report.trim_end().ends_with(" passed, 0 failed, 0 skipped") {
            failures.push(report + &String::from_utf8_lossy(&ran.stderr));
        }
    }
    assert!(failures.is_empty(), "{} networks failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn a_filter_chooses_cases_by_method_and_id() {
    let path = folders().into_iter().find(|path| path.ends_with("keras_mlp_35")).unwrap();
    let folder = Folder::load(path).unwrap();
    let all = folder.run("").unwrap().cases.len();
    let one = folder.run("visualize_saliency k0").unwrap().cases.len();
    assert!((1..=all).contains(&one));
    assert_eq!(folder.run("captum").unwrap().cases.len(), 0);
}
