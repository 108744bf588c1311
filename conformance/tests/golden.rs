//! Every call of the golden data in this repository gives what its peer returned.

use ouzel_conformance::{Counts, Folder};
use std::path::{Path, PathBuf};

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
    assert_eq!(folders.len(), 13, "networks in the golden data");
    let mut failures = Vec::new();
    for path in &folders {
        // All in one process, so that networks that disturb each other would be seen.
        let report = Folder::load(path).unwrap().run("").unwrap();
        let Counts { passed, failed, not_covered } = report.counts();
        if passed == 0 || failed > 0 || not_covered > 0 {
            failures.push(report.to_string());
            failures.extend(report.failures());
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
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
