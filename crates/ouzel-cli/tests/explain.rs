//! `ouzel explain`: what is written, where, and what is said.
#![allow(missing_docs)]

mod shell;

use ndarray::{Array1, Axis, array};
use serde_json::json;
use shell::{Dir, npy, values};

/// The input of `vector.onnx`, for which y = 2·a - 3·b.
fn features() -> Array1<f32> {
    array![1.0, 2.0, 5.0, 5.0, 5.0]
}

#[test]
fn a_picture_is_written_beside_and_never_over_an_older_one() {
    let dir = Dir::new();
    dir.write_picture("photo.jpg.png", 20, 30);
    let ran = dir.ouzel("explain @classifier.onnx photo.jpg.png").succeeds();
    assert!(ran.stdout.is_empty());
    assert_eq!(dir.files(), ["photo.jpg.ouzel.png", "photo.jpg.png"]);
    assert_eq!(dir.picture_size("photo.jpg.ouzel.png"), (260, 390));
    assert!(ran.stderr.contains("--preprocess raw"), "{}", ran.stderr);
    assert!(ran.stderr.contains("logits"), "{}", ran.stderr);

    dir.ouzel("explain @classifier.onnx photo.jpg.png").fails(1, &["photo.jpg.ouzel.png", "--force"]);
    dir.ouzel("explain @classifier.onnx photo.jpg.png --force").succeeds();
    // A name that was spelled out is meant.
    dir.write("mine.png", "old");
    dir.ouzel("explain @classifier.onnx photo.jpg.png --out mine.png").succeeds();
    assert!(dir.read("mine.png").starts_with(b"\x89PNG"));
}

#[test]
fn the_arrays_of_a_network_whose_gradient_is_known() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &features());
    dir.ouzel("explain @vector.onnx x.npy --raw-npy raw.npy --npy map.npy").succeeds();
    assert_eq!(dir.read_npy::<f32>("raw.npy"), array![[2.0, -3.0, 0.0, 0.0, 0.0]].into_dyn());
    let map = dir.read_npy::<f32>("map.npy");
    assert_eq!(map.shape(), [5]);
    assert!((map[[0]] - 2.0 / 3.0).abs() < 1e-6 && (map[[1]] - 1.0).abs() < 1e-6 && map[[2]] == 0.0);
    assert_eq!(dir.files(), ["map.npy", "raw.npy", "x.npy"], "no picture was asked for");

    let map = |options: &str| {
        let ran = dir.ouzel("explain @vector.onnx x.npy --npy -").words(options).succeeds();
        ran.npy::<f32>()
    };
    let close = |found: ndarray::ArrayD<f32>, expected: [f32; 5]| {
        assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{found}");
    };
    close(map("--grad-modifier none"), [1.0, 0.0, 0.6, 0.6, 0.6]);
    close(map("--grad-modifier NEGATE"), [0.0, 1.0, 0.4, 0.4, 0.4]);
    close(map("--grad-modifier relu"), [1.0, 0.0, 0.0, 0.0, 0.0]);
    close(map("--grad-modifier small-values"), [0.0, 0.0, 1.0, 1.0, 1.0]);
    close(map("--keepdims"), [2.0 / 3.0, 1.0, 0.0, 0.0, 0.0]);
    close(map("--profile keras-vis --keepdims"), [2.0 / 3.0, 1.0, 0.0, 0.0, 0.0]);
    assert_eq!(map("--profile keras-vis"), array![0.0].into_dyn());
    assert_eq!(map("--wrt hidden").shape(), [2]);

    let wide = dir.ouzel("explain @vector.onnx x.npy --raw-npy - --precision f64").succeeds();
    assert_eq!(wide.npy::<f64>()[[0, 1]], -3.0);
}

#[test]
fn modifiers_on_activations_that_are_spelled_out() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &array![[0.5f32, -1.0, 2.0, 0.1, -0.3, 0.9]]);
    let explain = |options: &str| {
        dir.ouzel("explain @spelled_out.onnx x.npy --class 1 --backprop-modifier guided --raw-npy raw.npy --json out.json")
            .words(options)
            .succeeds();
        let json: serde_json::Value = serde_json::from_slice(&dir.read("out.json")).unwrap();
        (json, dir.read_npy::<f32>("raw.npy"))
    };
    let (json, plain) = explain("");
    let warnings = json["warnings"].to_string();
    for part in ["1 × Gelu alone", "add 'gelu'", "1 × Swish alone", "add 'silu'"] {
        assert!(warnings.contains(part), "{part:?} is missing in {warnings}");
    }
    assert!(!warnings.contains("Sigmoid") && !warnings.contains("Erf"), "{warnings}");
    let (json, guided) = explain("--rectifiers gelu,silu");
    let matched: Vec<&str> =
        json["rules"]["matched"].as_array().unwrap().iter().map(|it| it["node"].as_str().unwrap()).collect();
    assert_eq!(matched, ["Swish 'y'", "Gelu 'gelu'"]);
    assert!(!json["warnings"].to_string().contains("alone"), "{}", json["warnings"]);
    assert_ne!(plain, guided);
}

#[test]
fn shapes_of_arrays() {
    let dir = Dir::new();
    dir.write_npy("one.npy", &values(&[3, 8, 8])).write_npy("two.npy", &values(&[2, 3, 8, 8]));
    let shape = |options: &str| {
        dir.ouzel("explain @classifier.onnx --npy map.npy --raw-npy raw.npy").words(options).succeeds();
        (dir.read_npy::<f32>("map.npy").shape().to_vec(), dir.read_npy::<f32>("raw.npy").shape().to_vec())
    };
    assert_eq!(shape("one.npy"), (vec![8, 8], vec![1, 3, 8, 8]));
    assert_eq!(shape("one.npy --keepdims"), (vec![3, 8, 8], vec![1, 3, 8, 8]));
    assert_eq!(shape("two.npy"), (vec![2, 8, 8], vec![2, 3, 8, 8]));
    assert_eq!(shape("two.npy --keepdims"), (vec![2, 3, 8, 8], vec![2, 3, 8, 8]));
    assert_eq!(shape("two.npy --wrt relu1"), (vec![2, 8, 8], vec![2, 4, 8, 8]));
    assert_eq!(shape("two.npy --wrt 1 --wrt-channel-axis -1"), (vec![2, 4, 8], vec![2, 4, 8, 8]));
}

#[test]
fn samples_of_a_batch_are_explained_each_for_its_own_class() {
    let dir = Dir::new();
    let both = values(&[2, 3, 8, 8]) * 3.0;
    dir.write_npy("both.npy", &both);
    let report = dir.ouzel("explain @classifier.onnx both.npy --npy both_map.npy --json -").succeeds().json();
    let maps = dir.read_npy::<f32>("both_map.npy");
    for (index, sample) in both.outer_iter().enumerate() {
        let name = format!("sample{index}.npy");
        dir.write_npy(&name, &sample.to_owned());
        let one =
            dir.ouzel("explain @classifier.onnx --npy one_map.npy --json -").words(&name).succeeds().json();
        assert_eq!(one["target"]["filters"], report["target"]["filters"][index]);
        assert_eq!(one["target"]["scores"], report["target"]["scores"][index]);
        assert_eq!(dir.read_npy::<f32>("one_map.npy"), maps.index_axis(Axis(0), index).to_owned());
    }
    dir.ouzel("explain @classifier.onnx both.npy --out sheet.png").succeeds();
    assert!(dir.picture_size("sheet.png").1 > 640);
}

#[test]
fn networks_that_take_one_sample_at_a_time() {
    let dir = Dir::new();
    let three = values(&[3, 3, 8, 8]) * 3.0;
    dir.write_npy("three.npy", &three);
    let explain = |model: &str, options: &str| {
        let line = format!("explain {model} three.npy --raw-npy raw.npy --npy map.npy --json -");
        let ran = dir.ouzel(&line).words(options).succeeds();
        (ran.json(), ran.stderr.clone(), dir.read("raw.npy"), dir.read("map.npy"))
    };
    for options in ["", "--class 1", "--class 0,2", "--class all", "--precision f64"] {
        let (expected, _, raw, map) = explain("@classifier.onnx", options);
        let (report, said, found_raw, found_map) = explain("@one_sample.onnx", options);
        assert!(raw == found_raw && map == found_map, "{options}");
        assert_eq!(report["target"], expected["target"], "{options}");
        assert_eq!(report["losses"], expected["losses"], "{options}");
        assert!(said.contains("one sample at a time") && said.contains("3 samples"), "{said}");
    }
    dir.write_npy("one.npy", &three.index_axis_move(Axis(0), 0));
    let ran = dir.ouzel("explain @one_sample.onnx one.npy --class top2 --out-dir maps").succeeds();
    assert!(!ran.stderr.contains("one sample at a time"), "{}", ran.stderr);
    let ran =
        dir.ouzel("explain @one_sample.onnx three.npy --class top2 --raw-npy rank.npy --json -").succeeds();
    assert_eq!(ran.json()[1]["target"]["filters"].as_array().unwrap().len(), 3);
    assert_eq!(dir.read_npy::<f32>("rank_2.npy").shape(), [3, 3, 8, 8]);
}

#[test]
fn the_report() {
    let dir = Dir::new();
    dir.write_picture("photo.png", 8, 8);
    let ran =
        dir.ouzel("explain @classifier.onnx photo.png --preprocess unit --class dog --json -").succeeds();
    let report = ran.json();
    assert_eq!(report["method"], "saliency");
    assert_eq!(report["options"]["grad_modifier"], "absolute");
    assert_eq!(report["target"]["layer"], "logits");
    assert_eq!(report["target"]["filters"], json!([1]));
    assert_eq!(report["target"]["labels"], json!(["dog"]));
    assert_eq!(report["target"]["softmax_skipped"], true);
    assert_eq!(report["target"]["scores"][0], report["losses"][0]["value"]);
    let probability = report["target"]["probabilities"][0].as_f64().unwrap();
    assert!(0.0 < probability && probability < 1.0);
    assert_eq!(report["channel_axis"], 1);
    assert_eq!(report["wrt"], json!({"tensor": "x", "shape": [1, 3, 8, 8]}));
    assert_eq!(report["input"]["preprocess"]["preset"], "unit");
    assert_eq!(report["warnings"], json!([]));
    assert!(report["timings"]["run_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(dir.files(), ["photo.png"]);

    dir.ouzel("explain @classifier.onnx photo.png --keep-softmax --json report.json").succeeds();
    let report = dir.read_json("report.json");
    assert_eq!(report["target"]["layer"], "probabilities");
    assert_eq!(report["target"]["softmax_skipped"], false);
}

#[test]
fn filters_by_index_label_and_rank() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[1, 3, 8, 8]));
    let raw = |options: &str| {
        dir.ouzel("explain @classifier.onnx x.npy --raw-npy raw.npy").words(options).succeeds();
        dir.read_npy::<f32>("raw.npy")
    };
    let each = [raw("--class 0"), raw("--filters cat --filters dog"), raw("--class barn-owl")];
    assert_eq!(raw("--class 0,1"), each[1]);
    assert_eq!(raw("--class cat,1"), each[1]);
    assert_eq!(raw("--class 2"), each[2]);
    let sum = (&each[1] + &each[2]) / 3.0;
    let all = raw("--class all");
    assert!(all.iter().zip(&sum).all(|(a, b)| (a - b).abs() < 1e-6));

    let ran =
        dir.ouzel("explain @classifier.onnx x.npy --class top3 --out-dir maps --raw-npy rank.npy --json -");
    let reports = ran.succeeds().json();
    let scores: Vec<f64> =
        (0..3).map(|rank| reports[rank]["target"]["scores"][0].as_f64().unwrap()).collect();
    assert!(scores[0] >= scores[1] && scores[1] >= scores[2], "{scores:?}");
    assert_eq!(dir.read_npy::<f32>("rank_1.npy"), raw("--class top"));
    assert!(dir.path("rank_3.npy").exists() && dir.path("maps/x.ouzel_3.png").exists());
    assert!(!dir.path("rank.npy").exists() && !dir.path("maps/x.ouzel.png").exists());

    // A convolution's channels, and a layer by index.
    assert_eq!(raw("--layer conv1 --filters 3"), raw("--layer 0 --filters 3"));
    assert_eq!(raw("--layer -2 --filters 1"), raw("--class dog"));
}

#[test]
fn one_plan_serves_pictures_of_different_classes() {
    let dir = Dir::new();
    let pictures = ["scene_bird_in_tree", "scene_cat_fish", "scene_rabbit"];
    let all: Vec<String> = pictures.iter().map(|name| format!("@@pictures/{name}.png")).collect();
    let explain = |inputs: &str, options: &str| {
        let ran = dir.ouzel("explain @@scene_fair.onnx --preprocess unit --out-dir maps --force --json -");
        ran.words(inputs).words(options).succeeds().json()
    };
    let together = explain(&all.join(" "), "--class top2");
    let mut classes = Vec::new();
    for (place, input) in all.iter().enumerate() {
        let maps = [0, 1].map(|rank| dir.read(&format!("maps/{}.ouzel_{}.png", pictures[place], rank + 1)));
        for (rank, map) in maps.iter().enumerate() {
            let report = &together[2 * place + rank];
            let class = report["target"]["filters"][0].to_string();
            explain(input, &format!("--class {class}"));
            assert_eq!(
                dir.read(&format!("maps/{}.ouzel.png", pictures[place])),
                *map,
                "{input}, class {class}"
            );
            classes.push(class);
        }
    }
    classes.sort();
    classes.dedup();
    assert!(classes.len() > 2, "{classes:?}");
}

#[test]
fn one_output_needs_no_filter() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &features());
    let report = dir.ouzel("explain @vector.onnx x.npy --json -").succeeds().json();
    assert_eq!(report["target"]["filters"], json!([0]));
    assert_eq!(report["target"]["scores"], json!([-4.0]));
}

#[test]
fn several_inputs_of_a_model_by_name() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[1, 1, 2, 2]));
    dir.write_npy("speed=1.npy", &array![[1.0f64, 2.0]]);
    dir.write_npy("words.npy", &array![3i32]);
    let named = "--input a=b/speed:0=speed=1.npy --input words=words.npy";
    let ran = dir.ouzel("explain @several_inputs.onnx x.npy --class 1 --raw-npy -").words(named).succeeds();
    assert_eq!(ran.npy::<f32>(), array![[[[1.0, 3.0], [5.0, 7.0]]]].into_dyn());
    let ran =
        dir.ouzel("explain @several_inputs.onnx --input x=x.npy --wrt a=b/speed:0 --class 1 --raw-npy -");
    assert_eq!(ran.words(named).succeeds().npy::<f32>(), array![[9.0, 11.0]].into_dyn());
    dir.ouzel("explain @several_inputs.onnx x.npy").fails(1, &["a=b/speed:0", "not given"]);
    dir.ouzel("explain @several_inputs.onnx x.npy --input sped=x.npy").fails(1, &["sped", "a=b/speed:0"]);
}

#[test]
fn standard_streams() {
    let dir = Dir::new();
    let x = npy(&features());
    let ran = dir.ouzel("explain @vector.onnx - --raw-npy -").stdin(x.clone()).succeeds();
    assert_eq!(ran.npy::<f32>()[[0, 0]], 2.0);
    let ran = dir.ouzel("explain @vector.onnx - --out -").stdin(x.clone()).succeeds();
    assert!(ran.stdout.starts_with(b"\x89PNG"));
    dir.ouzel("explain @vector.onnx -").stdin(x).succeeds();
    assert_eq!(dir.files(), ["stdin.ouzel.png"]);
    dir.write_npy("x.npy", &features());
    let model = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/vector.onnx")).unwrap();
    let ran = dir.ouzel("explain - x.npy --raw-npy - --quiet").stdin(model).succeeds();
    assert_eq!(ran.npy::<f32>()[[0, 0]], 2.0);
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_failed_input_does_not_stop_the_others() {
    let dir = Dir::new();
    std::fs::create_dir(dir.path("other")).unwrap();
    dir.write_picture("a.png", 9, 9).write("b.png", "no picture").write_picture("other/a.png", 12, 8);
    let ran = dir.ouzel("explain @classifier.onnx a.png b.png other/a.png missing.png --out-dir new/maps");
    let ran = ran.fails(1, &["b.png", "missing.png"]);
    assert!(ran.stderr.matches("error:").count() == 2, "{}", ran.stderr);
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path("new/maps")).unwrap().map(|it| it.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["a.ouzel.png", "a_2.ouzel.png"]);
}

#[test]
fn layouts_and_sizes() {
    let dir = Dir::new();
    dir.write_picture("photo.png", 12, 10);
    let report = |line: &str| dir.ouzel("explain").words(line).words("--json -").succeeds().json();
    let keras = report("@channels_last.onnx photo.png");
    assert_eq!(keras["channel_axis"], 3);
    assert_eq!(keras["wrt"]["shape"], json!([1, 6, 6, 3]));
    assert_eq!(keras["result"]["shape"], json!([6, 6]));
    let own = report("@any_size.onnx photo.png");
    assert_eq!(own["wrt"]["shape"], json!([1, 1, 12, 10]));
    assert_eq!(own["input"]["preprocess"]["channels"], "grey");
    assert_eq!(report("@any_size.onnx photo.png --size 7x9 --fit pad")["wrt"]["shape"], json!([1, 1, 7, 9]));
    dir.ouzel("explain @classifier.onnx photo.png --size 9x9").fails(1, &["--size", "8"]);
    dir.ouzel("explain @any_size.onnx photo.png --channels bgr").fails(1, &["--channels", "one channel"]);
}

#[test]
fn losses_and_rules_from_files() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[1, 3, 8, 8]));
    dir.write(
        "losses.toml",
        "[[loss]]\nkind = 'activation_maximization'\nlayer = 'logits'\nfilters = 1\nweight = -1\n",
    );
    dir.write("guided.toml", "[[rule]]\nop = 'Relu'\nrule = 'guided'\n");
    let raw = |options: &str| {
        dir.ouzel("explain @classifier.onnx x.npy --raw-npy raw.npy").words(options).succeeds();
        dir.read_npy::<f32>("raw.npy")
    };
    assert_eq!(raw("--losses losses.toml"), raw("--class 1"));
    let guided = raw("--class 0 --backprop-modifier guided.toml");
    assert_eq!(guided, raw("--class 0 --backprop-modifier guided"));
    assert_ne!(guided, raw("--class 0"));
    assert_eq!(raw("--class 1 --backprop-modifier deconv"), raw("--class 1 --backprop-modifier Rectified"));
    let ran = dir
        .ouzel("explain @classifier.onnx x.npy --backprop-modifier guided --explain-rules --timings")
        .succeeds();
    assert!(
        ran.stderr.contains("guided               Relu 'relu1'") && ran.stderr.contains(" ms"),
        "{}",
        ran.stderr
    );
    let report = dir.ouzel("explain @classifier.onnx x.npy --losses losses.toml --json -").succeeds().json();
    assert_eq!(report["target"], json!(null));
    assert_eq!(report["losses"][0]["weight"], -1.0);
}

#[test]
fn what_a_modifier_leaves_alone_is_said() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[1, 1, 6, 6]));
    let ran = dir.ouzel("explain @any_size.onnx x.npy --backprop-modifier guided --json -").succeeds();
    assert!(ran.stderr.contains("warning: ") && ran.stderr.contains("leaky_relu"), "{}", ran.stderr);
    assert!(!ran.json()["warnings"].as_array().unwrap().is_empty());
    let line =
        "explain @any_size.onnx x.npy --backprop-modifier guided --rectifiers relu,leaky-relu --json -";
    assert_eq!(dir.ouzel(line).succeeds().json()["warnings"], json!([]));
}

#[test]
fn a_gradient_of_zero_is_an_answer() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[1, 1, 4, 4]).mapv(f32::abs));
    let ran = dir.ouzel("explain @dead.onnx x.npy --npy map.npy --json report.json --out map.png").succeeds();
    assert!(ran.stderr.contains("warning: the attribution is zero everywhere"), "{}", ran.stderr);
    assert!(dir.read_npy::<f32>("map.npy").iter().all(|&value| value == 0.0));
    assert_eq!(dir.read_json("report.json")["warnings"].as_array().unwrap().len(), 1);
}

#[test]
fn threads_do_not_change_bytes() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[1, 3, 8, 8]));
    let bytes = |threads: &str| {
        dir.ouzel("explain @classifier.onnx x.npy --raw-npy - --threads").words(threads).succeeds().stdout
    };
    assert_eq!(bytes("1"), bytes("3"));
}

#[test]
fn views_and_colors() {
    let dir = Dir::new();
    dir.write_picture("photo.png", 64, 64).write_npy("x.npy", &features());
    let size = |options: &str| {
        dir.ouzel("explain @classifier.onnx photo.png --out map.png").words(options).succeeds();
        dir.picture_size("map.png")
    };
    assert_eq!(size("--view heatmap --colormap jet"), (384, 384));
    assert!(size("--view side-by-side --alpha 0.5").1 > 3 * 384);
    assert_eq!(size("--grad-modifier none"), (384, 384));
    assert_eq!(size("--colormap 000,fff"), (384, 384));
    // A vector has no picture under it.
    dir.ouzel("explain @vector.onnx x.npy --out band.png").succeeds();
    dir.ouzel("explain @vector.onnx x.npy --out band.png --view overlay")
        .fails(1, &["--view overlay", "heatmap"]);
}

#[test]
fn the_networks_of_the_demo() {
    let dir = Dir::new();
    let line = "explain @@scene_fair.onnx @@pictures/scene_bird_in_tree.png --preprocess unit --json -";
    let report = dir.ouzel(line).succeeds().json();
    assert_eq!(report["target"]["labels"], json!(["bird"]));
    assert!(report["target"]["probabilities"][0].as_f64().unwrap() > 0.9);
    let line = "explain @@steering.onnx @@pictures/road_left.png --preprocess unit --grad-modifier none";
    let ran = dir.ouzel(line).words("--json report.json --out-dir .").succeeds();
    assert_eq!(dir.read_json("report.json")["target"]["layer"], "angle", "{}", ran.stderr);
    assert!(dir.path("road_left.ouzel.png").exists());
}

#[test]
fn relevance_and_contributions_add_up() {
    let dir = Dir::new();
    dir.write_picture("photo.png", 20, 30);
    let explain = |options: &str| {
        let line = "explain @classifier.onnx photo.png --preprocess unit --json - --force";
        dir.ouzel(line).words(options).succeeds().json()
    };
    for preset in ["epsilon-plus-flat", "epsilon_gamma_box", "epsilon", "attnlrp"] {
        let report = explain(&format!("--method lrp --rules {preset}"));
        assert_eq!(report["completeness"]["holds"], json!(true), "{preset}: {}", report["completeness"]);
        assert_eq!(report["rules"]["true_gradient"], json!([]), "{preset}");
    }
    let report = explain("--method lrp --profile zennit");
    assert_eq!(report["completeness"]["expected"], json!(1.0));
    let report = explain("--method deeplift --baseline 0.5");
    assert_eq!(report["completeness"]["holds"], json!(true), "{}", report["completeness"]);
    let report = explain("--method deeplift --baseline 0.5 --reveal-cancel");
    assert_eq!(report["completeness"]["holds"], json!(true), "{}", report["completeness"]);
    assert!(report["rules"]["matched"].to_string().contains("reveal_cancel"), "{}", report["rules"]);
    std::fs::create_dir(dir.path("many")).unwrap();
    for name in ["a", "b", "c"] {
        dir.write_picture(&format!("many/{name}.png"), 20, 30);
    }
    for preset in ["pattern_net", "pattern_attribution"] {
        let report = explain(&format!("--method lrp --rules {preset} --patterns many"));
        assert!(report["rules"]["matched"].to_string().contains(preset), "{}", report["rules"]);
        let line = "explain @classifier.onnx photo.png --preprocess unit --npy p.npy --method lrp --rules";
        dir.ouzel(line).words(preset).fails(1, &["--patterns"]);
    }
    assert_eq!(explain("--method saliency")["completeness"], json!(null));

    dir.write(
        "mine.toml",
        "then = 'epsilon_plus'\n[[rule]]\nkind = 'convolution'\nentry = true\nrule = 'w_square'\n",
    );
    let report = explain("--method lrp --rules mine.toml --layer-sums");
    assert!(report["rules"]["matched"].to_string().contains("w_square"), "{}", report["rules"]);
    assert!(report["completeness"]["layers"].as_array().unwrap().len() > 2);
    let sums = dir
        .ouzel("explain @classifier.onnx photo.png --preprocess unit --npy s.npy --method lrp --layer-sums");
    assert!(sums.succeeds().stderr.contains("relevance behind each node"));

    dir.write_npy("x.npy", &values(&[3, 8, 8]));
    dir.ouzel("explain @classifier.onnx x.npy --method lrp --rules epsilon_gamma_box --npy m.npy")
        .fails(1, &["--input-range"]);
    dir.ouzel("explain @classifier.onnx x.npy --method lrp --rules epsilon_gamma_box --npy m.npy")
        .words("--input-range -1,1")
        .succeeds();
    dir.ouzel("explain @classifier.onnx x.npy --method lrp --rules nothing").fails(2, &["epsilon_plus"]);
    dir.write("wrong.toml", "[[rule]]\nkind = 'dens'\nrule = 'flat'\n");
    dir.ouzel("explain @classifier.onnx x.npy --method lrp --rules wrong.toml")
        .fails(2, &["wrong.toml", "dense"]);
}
