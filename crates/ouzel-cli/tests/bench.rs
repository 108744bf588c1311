//! `ouzel bench`: what is measured, and that it is what `explain` computes.
#![allow(missing_docs)]

mod shell;

use shell::{Dir, values};

#[test]
fn figures_of_a_benchmark() {
    let dir = Dir::new();
    let keys = [
        "median_ms",
        "min_ms",
        "max_ms",
        "first_ms",
        "load_ms",
        "compile_ms",
        "targets",
        "peak_memory_bytes",
        "threads",
        "simd",
        "checksum",
    ];
    let bench =
        |line: &str| dir.ouzel("bench").words(line).words("--json - --iterations 3").succeeds().json();
    let figures = bench("@classifier.onnx --threads 2");
    assert_eq!(figures.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>(), keys);
    assert!(figures["min_ms"].as_f64() <= figures["median_ms"].as_f64());
    assert_eq!(figures["threads"], 2);
    assert_eq!(figures["targets"], 1);
    assert_eq!(bench("@classifier.onnx --forward")["targets"], 0);
    assert_eq!(figures["checksum"], bench("@classifier.onnx --threads 1")["checksum"]);
    assert_ne!(figures["checksum"], bench("@classifier.onnx --seed 1")["checksum"]);
    assert_ne!(figures["checksum"], bench("@classifier.onnx --batch 2")["checksum"]);
    assert_ne!(figures["checksum"], bench("@classifier.onnx --forward")["checksum"]);
    bench("@any_size.onnx --size 9x7 --class 1 --backprop-modifier guided");
    dir.ouzel("bench @classifier.onnx --size 9x7").fails(1, &["--size"]);
}

#[test]
fn the_time_of_each_step() {
    let dir = Dir::new();
    let ran = dir.ouzel("bench @classifier.onnx --targets 2 --iterations 2 --timings --json -").succeeds();
    ran.json();
    let table = ran.stderr;
    for part in [
        "share",
        "GFLOP/s",
        "1x4x8x8",
        "Conv 'conv1' + Relu + mask",
        "ConvTranspose: gradient of Conv 'conv1' (2 runs)",
        "100.0%",
        "total of",
        "  convolution",
    ] {
        assert!(table.contains(part), "{part:?} is missing in: {table}");
    }
    assert!(!dir.ouzel("bench @classifier.onnx --json -").succeeds().stderr.contains("share"));
    dir.write_npy("x.npy", &values(&[1, 3, 8, 8]));
    let ran = dir.ouzel("explain @classifier.onnx x.npy --npy - --timings").succeeds();
    assert!(ran.stderr.contains("backward") && ran.stderr.contains("Conv 'conv1'"), "{}", ran.stderr);
    let ran = dir.ouzel("explain @classifier.onnx x.npy --npy - --timings --precision f64").succeeds();
    assert!(ran.stderr.contains("reference evaluation"), "{}", ran.stderr);
}

#[test]
fn several_targets_on_one_forward_pass() {
    let dir = Dir::new();
    let bench = |options: &str| {
        dir.ouzel("bench @classifier.onnx --iterations 1 --json -").words(options).succeeds().json()
    };
    let three = bench("--targets 3");
    assert_eq!(three["targets"], 3);
    assert_eq!(bench("--targets 1")["checksum"], bench("")["checksum"]);
    assert_ne!(three["checksum"], bench("")["checksum"]);
    assert_eq!(three["checksum"], bench("--targets 3 --threads 1")["checksum"]);
    dir.ouzel("bench @classifier.onnx --targets 4").fails(1, &["top4", "has 3"]);
    dir.ouzel("bench @classifier.onnx --targets 0").fails(2, &["--targets"]);
    dir.ouzel("bench @classifier.onnx --targets 2 --class 1").fails(2, &["--targets"]);
    dir.ouzel("bench @classifier.onnx --targets 2 --forward").fails(2, &["--targets"]);
    dir.ouzel("bench @classifier.onnx --class top2").fails(2, &["--targets"]);
}
