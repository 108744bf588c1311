//! `ouzel predict`: classes, tables, arrays.
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
fn networks_that_take_one_sample_at_a_time() {
    let dir = Dir::new();
    dir.write_npy("three.npy", &values(&[3, 3, 8, 8]));
    let predict = |model: &str| {
        let line = format!("predict {model} three.npy --output logits --output probabilities --out-dir out");
        let ran = dir.ouzel(&line).succeeds();
        (
            ran.stderr.clone(),
            dir.read_npy::<f32>("out/logits.npy"),
            dir.read_npy::<f32>("out/probabilities.npy"),
        )
    };
    let (said, logits, probabilities) = predict("@one_sample.onnx");
    assert!(said.contains("one sample at a time"), "{said}");
    let (said, expected, expected_probabilities) = predict("@classifier.onnx");
    assert!(!said.contains("one sample at a time"), "{said}");
    assert_eq!((logits, probabilities), (expected, expected_probabilities));
}

#[test]
fn a_network_whose_pads_depend_on_the_size_is_read_for_the_size_of_the_picture() {
    let dir = Dir::new();
    dir.write_npy("seven.npy", &values(&[2, 1, 7, 8])).write_npy("eight.npy", &{
        let mut padded = ndarray::Array4::<f32>::zeros((2, 1, 8, 8));
        padded.slice_mut(ndarray::s![.., .., ..7, ..]).assign(&values(&[2, 1, 7, 8]));
        padded
    });
    let predict = |file: &str| {
        let line = format!("predict @multiple_of_four.onnx {file}.npy --out-dir {file} --quiet");
        dir.ouzel(&line).succeeds();
        dir.read_npy::<f32>(&format!("{file}/scores.npy"))
    };
    assert_eq!(predict("seven"), predict("eight"));
    dir.write_picture("photo.png", 9, 10);
    let explained = dir.ouzel("explain @multiple_of_four.onnx photo.png --size 9x10 --json -").succeeds();
    assert_eq!(explained.json()["wrt"]["shape"], json!([1, 1, 9, 10]));
    dir.ouzel("compare @multiple_of_four.onnx photo.png --methods saliency,input_x_gradient --out c.png")
        .succeeds();
    dir.ouzel("bench @multiple_of_four.onnx --size 9x10 --iterations 1").succeeds();
    dir.ouzel("visualize @multiple_of_four.onnx --size 9x10 --steps 1 --out v.png").succeeds();
    dir.ouzel("export @multiple_of_four.onnx -o saved.onnx").fails(1, &["Pad", "--size"]);
    dir.ouzel("export @multiple_of_four.onnx -o saved.onnx --size 9x10").succeeds();
}
