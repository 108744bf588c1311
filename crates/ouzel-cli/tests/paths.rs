//! `ouzel explain` with methods that vary the input: baselines from files, and whether attributions add up.
#![allow(missing_docs)]

mod shell;

use ndarray::{Array4, ArrayD};
use shell::{Dir, values};

#[test]
fn baselines_are_names_numbers_pictures_arrays_and_folders() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[1, 3, 8, 8]))
        .write_npy("half.npy", &Array4::<f32>::from_elem((1, 3, 8, 8), 0.5));
    std::fs::create_dir(dir.path("others")).unwrap();
    dir.write_picture("photo.png", 8, 8).write_picture("others/a.png", 9, 12).write_picture(
        "others/b.png",
        20,
        16,
    );
    let raw = |options: &str| -> ArrayD<f32> {
        let line = "explain @classifier.onnx --method integrated_gradients --class 1 --steps 4 --raw-npy -";
        dir.ouzel(line).words(options).succeeds().npy::<f32>()
    };
    assert_eq!(raw("x.npy --baseline half.npy"), raw("x.npy --baseline 0.5"));
    assert_ne!(raw("x.npy --baseline half.npy"), raw("x.npy"));
    // The picture itself, prepared in the same way, leaves nothing.
    let same = raw("photo.png --preprocess unit --baseline photo.png");
    assert!(same.iter().all(|value| *value == 0.0), "{same}");
    let of_folder = raw("photo.png --preprocess unit --baseline others");
    let (a, b) = (
        raw("photo.png --preprocess unit --baseline others/a.png"),
        raw("photo.png --preprocess unit --baseline others/b.png"),
    );
    assert!((of_folder - (a + b) / 2.0).iter().all(|difference| difference.abs() < 1e-6));

    dir.ouzel("explain @classifier.onnx x.npy --method integrated_gradients --baseline nowhere.npy")
        .fails(2, &["nowhere.npy", "zeros"]);
    dir.ouzel("explain @classifier.onnx x.npy --baseline zeros").fails(2, &["baseline", "saliency"]);
}

#[test]
fn whether_attributions_add_up_is_said() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[1, 3, 8, 8])).write_npy("two.npy", &values(&[2, 3, 8, 8]));
    let line = "explain @classifier.onnx --method integrated_gradients --class 1 --json -";
    let ran = dir.ouzel(line).words("x.npy --steps auto").succeeds();
    let json = ran.json();
    let found = &json["completeness"];
    assert_eq!(found["holds"], true);
    assert!(found["relative_gap"].as_f64().unwrap() <= 0.05);
    let measured = |name: &str| json["measures"][name].as_f64().unwrap();
    assert!(measured("steps") >= 16.0 && measured("evaluations") >= 18.0);
    assert_eq!(json["options"]["steps"], "auto");
    assert!(ran.stderr.contains("adds up to") && ran.stderr.contains("gap"), "{}", ran.stderr);

    let ran = dir.ouzel(line).words("two.npy --steps 1 --quadrature left --tolerance 1e-6").succeeds();
    assert_eq!(ran.json()["completeness"]["found"].as_array().unwrap().len(), 2);
    assert_eq!(ran.json()["completeness"]["holds"], false);
    assert!(
        ran.stderr.contains("warning: the map adds up to") && ran.stderr.contains("--steps"),
        "{}",
        ran.stderr
    );

    let ran = dir.ouzel("explain @classifier.onnx x.npy --json -").succeeds();
    assert!(ran.json()["completeness"].is_null());
}

#[test]
fn any_method_can_be_smoothed_with_its_own_options() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[1, 3, 8, 8]));
    let raw = |options: &str| -> ArrayD<f32> {
        let line = "explain @classifier.onnx x.npy --class 1 --raw-npy -";
        dir.ouzel(line).words(options).succeeds().npy::<f32>()
    };
    // Without noise, the mean is what the inner method gives.
    let smooth = "--method smoothgrad --samples 2 --noise-sigma 0 --inner";
    for inner in ["lrp --rules epsilon_plus", "integrated-gradients --steps 3", "occlusion --window 4x4"] {
        let (alone, smooth) = (raw(&format!("--method {inner}")), raw(&format!("{smooth} {inner}")));
        assert!(alone.iter().any(|value| *value != 0.0), "{inner}");
        assert!((&smooth - &alone).iter().all(|difference| difference.abs() < 1e-5), "{inner}");
    }
    let line = "explain @classifier.onnx x.npy --method smoothgrad";
    dir.ouzel(line).words("--inner vargrad").fails(2, &["inner", "vargrad", "lrp"]);
    dir.ouzel(line).words("--steps 3").fails(2, &["--steps", "smoothgrad"]);
    dir.ouzel(line).words("--inner lrp --steps 3").fails(2, &["--steps", "--rules"]);
}
