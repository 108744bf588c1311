//! `ouzel inspect` and `ouzel methods`: what there is to explain, and how.
#![allow(missing_docs)]

mod shell;

use serde_json::json;
use shell::{Dir, values};

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
fn how_a_model_is_fed_and_where_a_map_is_made() {
    let dir = Dir::new();
    let model = dir.ouzel("inspect @classifier.onnx --json").succeeds().json();
    assert_eq!(
        model["cam_layer"],
        json!({"name": "relu1", "dtype": "float32", "shape": ["batch", 4, 8, 8], "channel_axis": 1, "grid": null})
    );
    let preparation = &model["preparation"];
    assert_eq!(preparation["layout"]["value"], "nchw");
    assert_eq!(preparation["layout"]["sureness"], "certain");
    assert_eq!(preparation["size"]["value"], "8x8");
    assert_eq!(
        preparation["preprocess"],
        json!({
            "value": "imagenet",
            "sureness": "a guess",
            "reason": preparation["preprocess"]["reason"],
        })
    );
    assert_eq!(preparation["options"], json!(["--preprocess imagenet"]));
    let command = model["command"].as_str().unwrap();
    assert!(
        command.starts_with("ouzel explain ") && command.ends_with("PICTURE --preprocess imagenet"),
        "{command}"
    );
    assert_eq!(model["problem"], json!(null));

    let text = dir.ouzel("inspect @classifier.onnx").succeeds().text();
    for part in ["CAM layer  relu1  ", "pictures   nchw", "a guess: ", "try        ouzel explain"] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
    assert!(!text.contains("\nunits "), "{text}");
}

#[test]
fn sizes_and_features() {
    let dir = Dir::new();
    let model = dir.ouzel("inspect @any_size.onnx --json").succeeds().json();
    assert_eq!(model["preparation"]["any_size"], true);
    assert!(model["command"].as_str().unwrap().contains(" --size "), "{}", model["command"]);
    let model = dir.ouzel("inspect @any_size.onnx --size 9x7 --json").succeeds().json();
    assert_eq!(model["inputs"][0]["shape"], json!(["batch", 1, 9, 7]));
    let model = dir.ouzel("inspect @multiple_of_four.onnx --json").succeeds().json();
    assert_eq!((&model["unsupported"], &model["read_for_size"]), (&json!([]), &json!("224x224")));
    assert_eq!(model["preparation"]["any_size"], true);
    assert_eq!(model["default_target"], "scores");
    let text = dir.ouzel("inspect @multiple_of_four.onnx --size 9x7").succeeds().text();
    assert!(text.contains("read for   pictures of 9x7"), "{text}");
    let model = dir.ouzel("inspect @channels_last.onnx --json").succeeds().json();
    assert_eq!(model["preparation"]["layout"]["value"], "nhwc");
    let model = dir.ouzel("inspect @vector.onnx --json").succeeds().json();
    assert!(
        model["preparation"]["problem"].as_str().unwrap().contains("features"),
        "{}",
        model["preparation"]
    );
    assert!(model["cam_layer"]["problem"].as_str().unwrap().contains("more than one position"));
    assert!(model["command"].as_str().unwrap().contains("ARRAY.npy"), "{}", model["command"]);
}

#[test]
fn units_are_listed() {
    let dir = Dir::new();
    let model = dir.ouzel("inspect @spelled_out.onnx --json").succeeds().json();
    let names: Vec<&str> =
        model["units"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["LayerNormalization", "Gelu", "Swish"]);
    assert_eq!(model["units"][1]["family"], "activation");
    assert_eq!(model["units"][1]["output"], "gelu");
    assert_eq!(model["units"][1]["inputs"], json!(["norm"]));
    let layers = model["layers"].as_array().unwrap();
    let gelu: Vec<&str> =
        (layers.iter().filter(|it| it["unit"] == 1)).map(|it| it["op"].as_str().unwrap()).collect();
    assert_eq!(gelu, ["Div", "Erf", "Add", "Mul", "Mul"]);
    let text = dir.ouzel("inspect @spelled_out.onnx").succeeds().text();
    for part in ["units      1 × LayerNormalization, 1 × Gelu, 1 × Swish", "1 Gelu", "2 Swish"] {
        assert!(text.contains(part), "{part:?} is missing in:\n{text}");
    }
}

#[test]
fn what_a_quantized_network_does_to_gradients_is_said() {
    let dir = Dir::new();
    let said =
        "gradients pass straight through where it rounds (2 times), and stop where a number was clipped";
    let text = dir.ouzel("inspect @quantized.onnx").succeeds().text();
    assert!(text.contains(&format!("quantized  {said}")), "{text}");
    let roundings =
        |name: &str| dir.ouzel(&format!("inspect @{name} --json")).succeeds().json()["roundings"].clone();
    assert_eq!((roundings("quantized.onnx"), roundings("classifier.onnx")), (json!(2), json!(0)));
    dir.write_npy("x.npy", &values(&[1, 3, 8, 8]));
    let ran = dir.ouzel("explain @quantized.onnx x.npy").succeeds();
    assert!(ran.stderr.contains(&format!("the network is quantized: {said}")), "{}", ran.stderr);
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
