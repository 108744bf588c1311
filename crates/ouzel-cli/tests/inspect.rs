//! `ouzel inspect` and `ouzel methods`: what there is to explain, and how.
#![allow(missing_docs)]

mod shell;

use serde_json::json;
use shell::Dir;

#[test]
fn a_model_as_a_table() {
    let text = Dir::new().ouzel("inspect @classifier.onnx").succeeds().text();
    for part in ["x  float32[batch, 3, 8, 8]", "(cat, dog, barn owl)", "logits", "relu1", "Conv", "112"] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn a_model_as_json() {
    let model = Dir::new().ouzel("inspect @classifier.onnx --json").succeeds().json();
    assert_eq!(model["opset"], 17);
    assert_eq!(model["inputs"], json!([{"name": "x", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]));
    assert_eq!(model["outputs"][0]["labels"], json!(["cat", "dog", "barn owl"]));
    assert_eq!(model["default_target"], "logits");
    assert_eq!(model["softmax_skipped"], true);
    let layers = model["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 6);
    assert_eq!(layers[0]["index"], 0);
    assert_eq!(layers[0]["op"], "Conv");
    assert_eq!(layers[0]["output"], "conv1");
    assert_eq!(layers[0]["shape"], json!(["batch", 4, 8, 8]));
    assert_eq!(layers[0]["parameters"], 112);
    assert_eq!(layers[0]["target"], true);
}

#[test]
fn what_is_not_supported_is_listed() {
    let dir = Dir::new();
    let model = dir.ouzel("inspect @unsupported.onnx --json").succeeds().json();
    let missing = model["unsupported"].as_array().unwrap();
    assert_eq!(missing.len(), 2);
    assert_eq!(missing[0]["name"], "first_fancy");
    assert_eq!(model["layers"][0]["target"], true);
    assert_eq!(model["layers"][3]["target"], false);
    let text = dir.ouzel("inspect @unsupported.onnx").succeeds().text();
    assert!(text.contains("2 of 4 nodes are not supported"), "{text}");
}

#[test]
fn a_weight_that_is_listed_as_an_input_is_none() {
    let model = Dir::new().ouzel("inspect @several_inputs.onnx --json").succeeds().json();
    let names: Vec<&str> =
        model["inputs"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["x", "a=b/speed:0", "words"]);
}

#[test]
fn methods() {
    let dir = Dir::new();
    let methods = dir.ouzel("methods --json").succeeds().json();
    assert_eq!(methods[0]["name"], "saliency");
    assert!(methods[0]["options"].as_array().unwrap().iter().any(|option| option["name"] == "grad_modifier"));
    assert!(dir.ouzel("methods").succeeds().text().starts_with("saliency "));
}

#[test]
fn the_command_line_explains_itself() {
    let dir = Dir::new();
    let help = dir.ouzel("--help").succeeds().text();
    for verb in ["explain", "compare", "visualize", "inspect", "predict", "methods", "demo", "bench"] {
        assert!(help.contains(verb), "{help}");
    }
    let help = dir.ouzel("explain --help").succeeds().text();
    for part in ["--backprop-modifier", "Examples:", "small_values", "side_by_side", "-1..1"] {
        assert!(help.contains(part), "{part:?} is missing in:\n{help}");
    }
    assert!(dir.ouzel("completions bash").succeeds().text().contains("--grad-modifier"));
    assert!(dir.ouzel("man").succeeds().text().contains(".TH ouzel 1"));
    dir.ouzel("man --out-dir pages").succeeds();
    assert!(dir.path("pages/ouzel-explain.1").exists());
    assert!(dir.ouzel("--version").succeeds().text().starts_with("ouzel "));
}
