//! `ouzel compare`, `ouzel visualize`, and the methods that vary the input: what is drawn, and what is said.
#![allow(missing_docs)]

mod shell;

use ndarray::{Array1, array};
use ouzel::image::Picture;
use shell::Dir;

/// The input of `vector.onnx`, for which y = 2·a - 3·b.
fn features() -> Array1<f32> {
    array![1.0, 2.0, 5.0, 5.0, 5.0]
}

#[test]
fn what_is_removed_from_a_network_whose_answer_is_known() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &features());
    let raw = |options: &str| {
        dir.ouzel("explain @vector.onnx x.npy --raw-npy -").words(options).succeeds().npy::<f32>()
    };
    let exact = array![[2.0, -6.0, 0.0, 0.0, 0.0]].into_dyn();
    assert_eq!(raw("--method occlusion"), exact);
    assert_eq!(raw("--method feature_ablation --precision f64").mapv(|it: f32| it), exact);
    assert_eq!(raw("--method occlusion --fill-value 1"), array![[0.0, -3.0, 0.0, 0.0, 0.0]].into_dyn());
    dir.write_npy("groups.npy", &array![7i64, 7, 3, 3, 3]);
    let grouped = array![[-4.0, -4.0, 0.0, 0.0, 0.0]].into_dyn();
    assert_eq!(raw("--method feature-ablation --feature-mask groups.npy"), grouped);
    let report = dir.ouzel("explain @vector.onnx x.npy --method rise --masks 30 --json -").succeeds().json();
    assert_eq!(report["measures"]["masks"], 30.0);
    assert_eq!(report["options"]["grid"], "7");
    dir.ouzel("explain @vector.onnx x.npy --method occlusion --masks 5").fails(2, &["masks", "window"]);
    dir.ouzel("explain @vector.onnx x.npy --method rise --p-keep 2").fails(2, &["p_keep", "between 0 and 1"]);
    dir.write_npy("groups.npy", &array![0i64, 1]);
    dir.ouzel("explain @vector.onnx x.npy --method feature_ablation --feature-mask groups.npy")
        .fails(2, &["feature_mask", "[5]"]);
}

#[test]
fn maps_side_by_side() {
    let dir = Dir::new();
    dir.write_picture("photo.png", 20, 30);
    let ran = dir
        .ouzel(
            "compare @classifier.onnx photo.png --methods saliency,occlusion,input-x-gradient --out all.png",
        )
        .words("--backprop-modifier guided --window 2 --json all.json --seed 4")
        .succeeds();
    assert!(ran.stdout.is_empty() && ran.stderr.contains("all.png"), "{}", ran.stderr);
    let (height, width) = dir.picture_size("all.png");
    assert!(height > 200 && width > 500, "{height} x {width}");
    let report = dir.read_json("all.json");
    let methods = report["methods"].as_array().unwrap();
    let of = |index: usize, option: &str| methods[index]["options"][option].clone();
    assert_eq!(methods.len(), 3);
    assert_eq!((of(0, "backprop_modifier"), of(2, "backprop_modifier")), ("guided".into(), "guided".into()));
    assert_eq!(of(1, "window"), "2");
    assert!(of(0, "window").is_null() && of(1, "backprop_modifier").is_null());
    assert_eq!(methods[0]["target"], methods[1]["target"]);
    dir.ouzel("compare @classifier.onnx photo.png --methods saliency --masks 3 --out all.png")
        .fails(2, &["--masks", "saliency"]);
    dir.ouzel("compare @classifier.onnx photo.png --methods salience --out all.png").fails(2, &["salience"]);
    dir.ouzel("compare @classifier.onnx photo.png --methods saliency --filters top2 --out all.png")
        .fails(2, &["one target"]);
    // A method that cannot explain this network does not stop the others.
    dir.ouzel(
        "compare @classifier.onnx photo.png --methods saliency,occlusion --window 1x2x3x4 --out some.png",
    )
    .fails(1, &["occlusion", "window"]);
    assert!(dir.picture_size("some.png").0 > 0);
}

#[test]
fn pictures_of_filters() {
    let dir = Dir::new();
    let ran = dir.ouzel("visualize @classifier.onnx --out made.png --steps 4 --json made.json").succeeds();
    assert!(ran.stderr.contains("made.png"), "{}", ran.stderr);
    let report = dir.read_json("made.json");
    assert!(report["pictures"].as_array().unwrap().len() > 1);
    dir.ouzel("visualize @classifier.onnx --filters 1 --steps 4 --out one.png").succeeds();
    dir.ouzel("visualize @classifier.onnx --filters 1 --steps 4 --out again.png --threads 1").succeeds();
    assert_eq!(dir.read("one.png"), dir.read("again.png"));
    dir.ouzel("visualize @classifier.onnx --filters 1 --steps 4 --out other.png --seed 1").succeeds();
    assert_ne!(dir.read("one.png"), dir.read("other.png"));
    dir.ouzel("visualize @classifier.onnx --filters 0+1 --steps 9 --frames 3 --out both.gif").succeeds();
    assert!(dir.read("both.gif").starts_with(b"GIF89a"));
    assert!(Picture::open(dir.path("both.gif")).is_ok());
    let keras = "--profile keras-vis --steps 3 --input-range 0,1 --tv-weight 1 --jitter 0.05";
    dir.ouzel("visualize @classifier.onnx --filters 0,1 --out keras.png").words(keras).succeeds();
    dir.ouzel("visualize @classifier.onnx --out made.jpg").fails(2, &["made.jpg", ".png or .gif"]);
    dir.ouzel("visualize @classifier.onnx --out made.png --tv-weight 1").fails(2, &["keras-vis"]);
    dir.ouzel("visualize @classifier.onnx --out made.png --filters 99").fails(1, &["99", "out of range"]);
    dir.ouzel("visualize @vector.onnx --out made.png").fails(1, &["4 axes"]);
}

#[test]
fn a_region_of_a_layer_is_explained() {
    let dir = Dir::new();
    dir.write_picture("photo.png", 20, 30);
    let raw = |options: &str| {
        dir.ouzel("explain @@scene_fair.onnx photo.png --layer relu4 --filters 5 --raw-npy -")
            .words(options)
            .succeeds()
            .npy::<f32>()
    };
    let all = raw("");
    // relu4 has 16 × 16 positions: halves add up to twice the whole, because each is a mean.
    let (upper, lower) = (raw("--region 0:8,0:16"), raw("--region 8:16,0:16"));
    let difference = (&upper + &lower - 2.0 * &all).mapv(f32::abs).fold(0.0, |most, &it| f32::max(most, it));
    let largest = all.iter().fold(0.0, |most, it| f32::max(most, it.abs()));
    assert!(difference < 1e-4 * largest, "{difference} of {largest}");
    let mask = ndarray::Array2::from_shape_fn((16, 16), |(row, _)| u8::from(row < 8));
    dir.write_npy("mask.npy", &mask);
    let masked = raw("--region mask.npy");
    let difference = (&masked - &upper).mapv(f32::abs).fold(0.0, |most, &it| f32::max(most, it));
    assert!(difference < 1e-4 * largest, "{difference} of {largest}");
    dir.ouzel(
        "explain @@scene_fair.onnx photo.png --layer relu4 --region predicted --json report.json --out o.png",
    )
    .succeeds();
    assert_eq!(dir.read_json("report.json")["target"]["region"], "predicted");
    dir.ouzel("explain @@scene_fair.onnx photo.png --layer relu4 --region 3:2")
        .fails(2, &["--region", "3:2"]);
    dir.ouzel("explain @@scene_fair.onnx photo.png --region 1:2").fails(1, &["positions"]);
}

#[test]
fn one_method_is_described() {
    let dir = Dir::new();
    let text = dir.ouzel("methods occlusion").succeeds().text();
    for part in ["--window HxW", "Zeiler", "criticism", "[default: 0]"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json = dir.ouzel("methods rise --json").succeeds().json();
    assert_eq!(json["name"], "rise");
    assert_eq!(json["options"][0]["option"], "--masks");
    let modifiers = dir.ouzel("methods saliency --json").succeeds().json()["options"][2]["choices"].clone();
    assert!(modifiers.as_array().unwrap().contains(&"small_values".into()));
    assert!(dir.ouzel("methods --markdown").succeeds().text().starts_with("| method |"));
    dir.ouzel("methods occlusions").fails(2, &["occlusion"]);
}
