//! `ouzel predict` and `ouzel bench`.
#![allow(missing_docs)]

mod shell;

use ndarray::array;
use serde_json::json;
use shell::{Dir, values};

#[test]
fn classes_in_order_with_their_labels() {
    let dir = Dir::new();
    let text = dir
        .ouzel("predict @@scene_fair.onnx @@pictures/scene_rabbit.png --preprocess unit")
        .succeeds()
        .text();
    let first = text.lines().nth(1).unwrap();
    assert!(text.starts_with("animal float32[1, 6]") && first.ends_with("rabbit"), "{text}");
    dir.write_npy("x.npy", &array![1.0f32, 2.0, 5.0, 5.0, 5.0]);
    let report = dir.ouzel("predict @vector.onnx x.npy --json --output hidden,y").succeeds().json();
    assert_eq!(
        report["outputs"][0]["top"],
        json!([[{"index": 1, "value": 2.0}, {"index": 0, "value": 1.0}]])
    );
    assert_eq!(report["outputs"][1]["top"], json!([[{"index": 0, "value": -4.0}]]));
}

#[test]
fn outputs_as_arrays_under_safe_names() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[1, 1, 2, 2])).write_npy("s.npy", &array![[1.0f32, 2.0]]);
    dir.write_npy("w.npy", &array![3i64]);
    let line =
        "predict @several_inputs.onnx x.npy --input a=b/speed:0=s.npy --input words=w.npy --out-dir new/out";
    dir.ouzel(line).words("--output a=b/speed:0 --output words --output sum --output sum").succeeds();
    assert_eq!(dir.read_npy::<f32>("new/out/a_b_speed_0.npy"), array![[1.0, 2.0]].into_dyn());
    assert_eq!(dir.read_npy::<i64>("new/out/words.npy"), array![3].into_dyn());
    assert_eq!(dir.read_npy::<f32>("new/out/sum.npy"), dir.read_npy::<f32>("new/out/sum_2.npy"));
    dir.ouzel(line).words("--output nothing").fails(1, &["nothing"]);
    dir.ouzel("predict @vector.onnx x.npy x.npy").fails(2, &["one input"]);
}

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
    assert_eq!(figures["checksum"], bench("@classifier.onnx --threads 1")["checksum"]);
    assert_ne!(figures["checksum"], bench("@classifier.onnx --seed 1")["checksum"]);
    assert_ne!(figures["checksum"], bench("@classifier.onnx --batch 2")["checksum"]);
    assert_ne!(figures["checksum"], bench("@classifier.onnx --forward")["checksum"]);
    bench("@any_size.onnx --size 9x7 --class 1 --backprop-modifier guided");
    dir.ouzel("bench @classifier.onnx --size 9x7").fails(1, &["--size"]);
}
