//! `ouzel export`: targets, sizes, pictures, methods that vary the input, and what is refused, with nothing left on disk.
#![allow(missing_docs)]

mod shell;

use ndarray::{Array4, ArrayD, Axis};
use ouzel::Model;
use shell::{Dir, values};

/// The names of a model's inputs and outputs, as `ouzel inspect` lists them.
fn ends(dir: &Dir, file: &str) -> (Vec<String>, Vec<String>) {
    let described = dir.ouzel(&format!("inspect {file} --json")).succeeds().json();
    let names = |key: &str| {
        let list = described[key].as_array().unwrap().iter();
        list.map(|end| end["name"].as_str().unwrap().to_owned()).collect()
    };
    (names("inputs"), names("outputs"))
}

/// An output of a file for the array `x.npy`, and for others.
fn output(dir: &Dir, file: &str, name: &str, others: &str) -> ArrayD<f32> {
    dir.ouzel(&format!("predict {file} x.npy {others} --output {name} --out-dir out --quiet")).succeeds();
    dir.read_npy(&format!("out/{name}.npy"))
}

fn assert_near(found: &ArrayD<f32>, expected: &ArrayD<f32>) {
    assert_eq!(found.shape(), expected.shape());
    let largest = expected.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    assert!(largest > 0.0 && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-5 * largest));
}

#[test]
fn targets() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[3, 3, 8, 8]));
    let own = |class: &str| {
        let line = format!("explain @classifier.onnx x.npy {class} --raw-npy raw.npy --npy map.npy --quiet");
        dir.ouzel(&line).succeeds();
        (dir.read_npy::<f32>("raw.npy"), dir.read_npy::<f32>("map.npy"))
    };
    for class in ["--class 1", "--class dog", "--class top", "", "--layer relu1 --filters 2", "--class all"] {
        let ran = dir.ouzel(&format!("export @classifier.onnx -o saved.onnx {class}")).succeeds();
        assert!(
            ran.stderr.contains("wrote saved.onnx: opset 17") && ran.stderr.contains("'heatmap'"),
            "{}",
            ran.stderr
        );
        let (inputs, outputs) = ends(&dir, "saved.onnx");
        assert_eq!(inputs, ["x"], "{class}");
        assert_eq!(outputs, ["probabilities", "attribution", "heatmap"], "{class}");
        let (raw, map) = own(class);
        assert_near(&output(&dir, "saved.onnx", "attribution", ""), &raw);
        assert_near(&output(&dir, "saved.onnx", "heatmap", ""), &map);
    }
    // A class for each sample, named when the file runs.
    dir.ouzel("export @classifier.onnx -o saved.onnx --class input --quiet").succeeds();
    assert_eq!(ends(&dir, "saved.onnx").0, ["x", "target"]);
    dir.write_npy("target.npy", &ndarray::array![2i64, 0, 2]);
    let found = output(&dir, "saved.onnx", "attribution", "--input target=target.npy");
    for (sample, class) in ["--class 2", "--class 0", "--class 2"].iter().enumerate() {
        let one = found.index_axis(Axis(0), sample).to_owned();
        assert_near(&one, &own(class).0.index_axis(Axis(0), sample).to_owned());
    }
    let metadata = Model::load(dir.path("saved.onnx")).unwrap().metadata().clone();
    for (key, value) in [
        ("ouzel.method", "saliency"),
        ("ouzel.target", "input"),
        ("ouzel.layer", "logits"),
        ("ouzel.version", env!("CARGO_PKG_VERSION")),
        ("labels.probabilities", "cat,dog,barn owl"),
    ] {
        assert_eq!(metadata.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert_eq!(metadata["ouzel.source_sha256"].len(), 64);
}

#[test]
fn noise_and_paths() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[2, 3, 8, 8]));
    for method in [
        "smoothgrad --samples 9 --seed 4",
        "vargrad --samples 3",
        "smoothgrad --samples 4 --inner input_x_gradient",
        "integrated-gradients --steps 5 --baseline zeros,0.5 --wrt relu1",
        "integrated-gradients --steps 20 --baseline mean",
    ] {
        for at_once in ["", "--samples-per-pass 2", "--samples-per-pass 32"] {
            let line = format!(
                "export @classifier.onnx -o saved.onnx --class 1 --method {method} {at_once} --quiet"
            );
            dir.ouzel(&line).succeeds();
            let line =
                format!("explain @classifier.onnx x.npy --class 1 --method {method} --npy map.npy --quiet");
            dir.ouzel(&line).succeeds();
            assert_near(&output(&dir, "saved.onnx", "heatmap", ""), &dir.read_npy("map.npy"));
        }
    }
    let metadata = Model::load(dir.path("saved.onnx")).unwrap().metadata().clone();
    assert_eq!(metadata["ouzel.option.steps"], "20");
    dir.ouzel("export @classifier.onnx -o other.onnx --samples-per-pass 4")
        .fails(2, &["--samples-per-pass", "saliency", "leave"]);
    dir.ouzel("export @classifier.onnx -o other.onnx --method smoothgrad --samples-per-pass 0")
        .fails(2, &["1 or more"]);
    assert!(!dir.files().contains(&"other.onnx".to_owned()));
}

#[test]
fn sizes_that_the_file_leaves_open() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[2, 1, 6, 7]));
    // A gradient takes any size; a map that is enlarged to the input's does not.
    dir.ouzel("explain @any_size.onnx x.npy --class 0 --npy map.npy --quiet").succeeds();
    for size in ["", "--size 6x7"] {
        dir.ouzel(&format!("export @any_size.onnx -o saved.onnx --class 0 {size} --quiet")).succeeds();
        assert_near(&output(&dir, "saved.onnx", "heatmap", ""), &dir.read_npy("map.npy"));
    }
    for method in ["grad-cam", "smoothgrad", "integrated-gradients --baseline blur"] {
        let line = format!("export @any_size.onnx -o other.onnx --class 0 --method {method}");
        dir.ouzel(&line).fails(1, &["--size"]);
        dir.ouzel(&format!("{line} --size 6x7 --quiet")).succeeds();
        std::fs::remove_file(dir.path("other.onnx")).unwrap();
    }
    dir.ouzel("export @classifier.onnx -o other.onnx --size 9x9").fails(1, &["--size", "8"]);
    dir.ouzel("export @vector.onnx -o other.onnx --size 9x9").fails(1, &["--size", "height"]);
}

#[test]
fn pictures() {
    let dir = Dir::new();
    let line = "export @classifier.onnx -o saved.onnx --class 0 --pictures --preprocess unit --alpha 0.5 --colormap jet --quiet";
    dir.ouzel(line).succeeds();
    let (inputs, outputs) = ends(&dir, "saved.onnx");
    assert_eq!(inputs, ["picture"]);
    assert_eq!(outputs, ["probabilities", "attribution", "heatmap", "overlay"]);
    let levels = Array4::from_shape_fn((2, 8, 8, 3), |(sample, row, column, channel)| {
        ((sample * 37 + row * 29 + column * (13 + channel * 7) + channel * 50) % 256) as u8
    });
    let x = levels.mapv(|level| f32::from(level) / 255.0).permuted_axes([0, 3, 1, 2]);
    dir.write_npy("levels.npy", &levels).write_npy("x.npy", &x.as_standard_layout().to_owned());
    dir.ouzel("predict saved.onnx levels.npy --out-dir out --quiet").succeeds();
    dir.ouzel("explain @classifier.onnx x.npy --class 0 --npy map.npy --quiet").succeeds();
    assert_near(&dir.read_npy("out/heatmap.npy"), &dir.read_npy("map.npy"));
    let overlay: ArrayD<u8> = dir.read_npy("out/overlay.npy");
    assert_eq!(overlay.shape(), [2, 8, 8, 3]);
    // Where the map is weakest, the picture's own shades are left; where it is strongest, half of the colormap's last color.
    let map: ArrayD<f32> = dir.read_npy("map.npy");
    let strongest = map.indexed_iter().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0;
    let place = |channel: usize| [strongest[0], strongest[1], strongest[2], channel];
    assert!(overlay[&place(0)[..]] >= 63 && overlay[&place(0)[..]] > overlay[&place(2)[..]]);
    dir.ouzel("export @vector.onnx -o other.onnx --class 0 --pictures").fails(1, &["4 axes"]);
    dir.ouzel("export @classifier.onnx -o other.onnx --alpha 0.5").fails(2, &["--pictures"]);
    dir.ouzel("export @classifier.onnx -o other.onnx --preprocess unit")
        .fails(2, &["--preprocess", "--pictures"]);
    assert!(!dir.files().contains(&"other.onnx".to_owned()));
}

/// LayerNormalization came with opset 17; before, it is written in ops that were there.
#[test]
fn older_operator_sets() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[4, 5]));
    dir.ouzel("explain @young.onnx x.npy --class 0 --npy map.npy --quiet").succeeds();
    for opset in [13, 14, 16, 17, 18, 20, 23] {
        dir.ouzel(&format!("export @young.onnx -o saved.onnx --class 0 --opset {opset} --quiet")).succeeds();
        assert_eq!(Model::load(dir.path("saved.onnx")).unwrap().opset(), opset);
        assert_near(&output(&dir, "saved.onnx", "heatmap", ""), &dir.read_npy("map.npy"));
    }
}

#[test]
fn what_is_refused_leaves_nothing() {
    let dir = Dir::new();
    for (method, part) in [
        ("rise", "saved"),
        ("score-cam", "saved"),
        ("occlusion", "saved"),
        ("xrai", "saved"),
        ("integrated-gradients --steps auto", "steps auto"),
        ("smoothgrad --samples 0", "samples"),
    ] {
        let ran =
            dir.ouzel(&format!("export @classifier.onnx -o saved.onnx --class 0 --method {method}")).run();
        assert!(matches!(ran.code, Some(1 | 2)) && ran.stderr.contains(part), "{method}: {}", ran.stderr);
    }
    // The gradient of a maximum pooling adds up what is scattered.
    for opset in ["13", "14", "15"] {
        dir.ouzel(&format!("export @@scene_fair.onnx -o saved.onnx --class 0 --opset {opset}"))
            .fails(1, &["ScatterElements", "from opset 16 on", opset, "--opset"]);
    }
    dir.ouzel("export @@scene_fair.onnx -o - --class 0 --opset 16").succeeds();
    dir.ouzel("export @classifier.onnx -o saved.onnx --opset 12").fails(1, &["13 to 23", "12"]);
    dir.ouzel("export @unsupported.onnx -o saved.onnx").fails(1, &["Sparkle"]);
    dir.ouzel("export @classifier.onnx -o saved.onnx --class 7").fails(1, &["7"]);
    dir.ouzel("export @classifier.onnx -o saved.onnx --class top2").fails(2, &["one class"]);
    dir.ouzel("export @classifier.onnx -o missing/saved.onnx").fails(1, &["missing"]);
    dir.ouzel("export missing.onnx -o saved.onnx").fails(1, &["missing.onnx"]);
    assert!(dir.files().is_empty(), "{:?}", dir.files());
    let model = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/classifier.onnx")).unwrap();
    dir.write("net.onnx", &model);
    dir.ouzel("export net.onnx -o net.onnx").fails(2, &["the model itself"]);
    assert_eq!(dir.read("net.onnx"), model);
}
