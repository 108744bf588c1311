//! Bad input: one clear message that says what, where, expected, found and what to do; never a panic or a rest of a file.
#![allow(missing_docs)]

mod shell;

use ndarray::{Array2, array};
use shell::{Dir, values};

fn data(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Bytes without a meaning.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 7u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(length).collect()
}

#[test]
fn models_that_are_none() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &array![1.0f32, 1.0, 1.0, 1.0, 1.0]);
    dir.ouzel("explain missing.onnx x.npy").fails(1, &["missing.onnx"]);
    let whole = data("vector.onnx");
    for length in [0, 1, 10, whole.len() / 2, whole.len() - 1] {
        dir.write("cut.onnx", &whole[..length]);
        let ran = dir.ouzel("explain cut.onnx x.npy --npy map.npy").fails(1, &["cut.onnx"]);
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
    dir.write("noise.onnx", noise(5000));
    dir.ouzel("explain noise.onnx x.npy").fails(1, &["noise.onnx"]);
    dir.ouzel("inspect noise.onnx").fails(1, &["noise.onnx"]);
    dir.ouzel("explain @no_input.onnx x.npy").fails(1, &["input"]);
    dir.ouzel("explain . x.npy").fails(1, &["."]);
    assert_eq!(dir.files(), ["cut.onnx", "noise.onnx", "x.npy"]);
}

#[test]
fn pictures_and_arrays_that_are_none() {
    let dir = Dir::new();
    dir.write_picture("whole.png", 16, 16);
    let whole = dir.read("whole.png");
    for length in [0, 4, 40, whole.len() - 20] {
        dir.write("cut.png", &whole[..length]);
        dir.ouzel("explain @classifier.onnx cut.png").fails(1, &["cut.png"]);
    }
    dir.write("noise.png", noise(1000)).write("noise.npy", noise(1000));
    dir.ouzel("explain @classifier.onnx noise.png").fails(1, &["noise.png", "PNG"]);
    dir.ouzel("explain @classifier.onnx noise.npy").fails(1, &["noise.npy", ".npy"]);
    dir.write_npy("x.npy", &values(&[1, 3, 8, 8]));
    let whole = dir.read("x.npy");
    for length in [6, 20, 100, whole.len() - 1] {
        dir.write("cut.npy", &whole[..length]);
        dir.ouzel("explain @classifier.onnx cut.npy").fails(1, &["cut.npy"]);
    }
    dir.write(
        "huge.npy",
        String::from_utf8_lossy(&whole[..128]).replace("(1, 3, 8, 8)", "(99999999, 9999999, 8)"),
    );
    dir.ouzel("explain @classifier.onnx huge.npy").fails(1, &["huge.npy"]);
    dir.ouzel("explain @classifier.onnx .").fails(1, &["."]);
    assert!(
        !dir.files().iter().any(|name| name.contains("ouzel") || name.contains("part")),
        "{:?}",
        dir.files()
    );
}

#[test]
fn inputs_that_do_not_fit() {
    let dir = Dir::new();
    dir.write_npy("rank.npy", &values(&[8, 8]));
    dir.ouzel("explain @classifier.onnx rank.npy")
        .fails(1, &["rank.npy", "'x'", "[batch, 3, 8, 8]", "[8, 8]"]);
    dir.write_npy("size.npy", &values(&[1, 3, 8, 9]));
    dir.ouzel("explain @classifier.onnx size.npy").fails(1, &["'x'", "[batch, 3, 8, 8]", "9"]);
    dir.write_npy("bool.npy", &Array2::from_elem((1, 5), true));
    dir.ouzel("explain @vector.onnx bool.npy").fails(1, &["bool.npy", "float32", "bool"]);
    dir.write_npy("nan.npy", &array![[1.0f32, f32::NAN, 1.0, f32::INFINITY, 1.0]]);
    dir.ouzel("explain @vector.onnx nan.npy").fails(1, &["nan.npy", "'x'", "2 of 5", "NaN"]);
    dir.write_npy("empty.npy", &Array2::<f32>::zeros((0, 5)));
    dir.ouzel("explain @vector.onnx empty.npy").fails(1, &["empty"]);
    dir.write_npy("x.npy", &array![[1.0f32, 1.0, 1.0, 1.0, 1.0]]);
    dir.ouzel("explain @nan_weight.onnx x.npy").fails(1, &["broken", "NaN"]);
    dir.write_picture("photo.png", 8, 8);
    dir.ouzel("explain @vector.onnx photo.png").fails(1, &["photo.png", "'x'", ".npy"]);
    // Whole numbers are as good as floating point ones.
    dir.write_npy("whole.npy", &array![[1i64, 1, 1, 1, 1]]);
    dir.ouzel("explain @vector.onnx whole.npy --npy -").succeeds();
}

#[test]
fn targets_that_do_not_exist() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &values(&[3, 8, 8]));
    let explain = |options: &str| dir.ouzel("explain @classifier.onnx x.npy").words(options);
    explain("--layer conv9").fails(1, &["conv9", "inspect"]);
    explain("--layer logit").fails(1, &["logit", "'logits'"]);
    explain("--layer 99").fails(1, &["99"]);
    explain("--class 3").fails(1, &["filter 3", "0 to 2"]);
    explain("--class 99999999999999999999999").fails(1, &["99999999999999999999999"]);
    explain("--class doc").fails(1, &["doc", "dog"]);
    explain("--class top4").fails(1, &["top4", "3"]);
    explain("--class -1").fails(2, &["-1"]);
    explain("--layer conv1 --filters 4").fails(1, &["filter 4", "0 to 3"]);
    explain("--channel-axis 2").fails(1, &["axis"]);
    explain("--wrt nothing").fails(1, &["nothing"]);
    explain("--wrt logits --class 0 --layer conv1").fails(1, &["logits"]);
    dir.write_npy("v.npy", &array![1.0f32, 1.0, 1.0, 1.0, 1.0]);
    dir.ouzel("explain @vector.onnx v.npy --class bird").fails(1, &["bird", "--labels"]);
    dir.ouzel("explain @vector.onnx v.npy --class 1").fails(1, &["filter 1", "has 1"]);
    assert_eq!(dir.files(), ["v.npy", "x.npy"]);
}

#[test]
fn ops_that_are_not_supported() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &array![[1.0f32, -1.0]]);
    dir.ouzel("explain @unsupported.onnx x.npy --layer after")
        .fails(1, &["first_fancy", "second_fancy", "Sparkle"]);
    // What is not needed does no harm.
    let ran = dir.ouzel("explain @unsupported.onnx x.npy --layer known --class 0 --raw-npy -").succeeds();
    assert_eq!(ran.npy::<f32>(), array![[1.0, 0.0]].into_dyn());
    // By default the first output is explained; if that cannot be, the choice of another one is told.
    let ran = dir.ouzel("explain @unsupported.onnx x.npy --class 0 --npy -").succeeds();
    assert!(ran.stderr.contains("second_fancy") && ran.stderr.contains("'known'"), "{}", ran.stderr);
}

#[test]
fn wrong_commands() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &array![1.0f32, 1.0, 1.0, 1.0, 1.0]).write_picture("photo.png", 8, 8);
    let wrong = |line: &str, parts: &[&str]| drop(dir.ouzel(line).fails(2, parts));
    wrong("compare", &["compare"]);
    wrong("explain @vector.onnx", &["nothing to run"]);
    wrong("explain @vector.onnx x.npy --samples 3", &["--samples"]);
    wrong("explain @vector.onnx x.npy --method lime", &["lime", "saliency"]);
    wrong("explain @vector.onnx x.npy --grad-modifier loud", &["loud", "small_values"]);
    wrong("explain @vector.onnx x.npy --backprop-modifier loud", &["loud", "guided"]);
    wrong("explain @vector.onnx x.npy --rectifiers tanh", &["tanh", "leaky_relu"]);
    wrong("explain @vector.onnx x.npy --colormap mauve", &["mauve", "inferno"]);
    wrong("explain @vector.onnx x.npy --alpha 2", &["--alpha"]);
    wrong("explain @vector.onnx x.npy --threads 0", &["--threads"]);
    wrong("explain @vector.onnx x.npy --preprocess unit", &["--preprocess", "x.npy"]);
    wrong("explain @vector.onnx x.npy --size 8x8", &["--size", "x.npy"]);
    wrong("explain @classifier.onnx photo.png --size 0x8", &["--size"]);
    wrong("explain @classifier.onnx photo.png --std 0", &["--std"]);
    wrong("explain @vector.onnx x.npy photo.png --npy map.npy", &["--npy", "--out-dir"]);
    wrong("explain @vector.onnx x.npy photo.png --json r.json", &["--json", "--out-dir"]);
    wrong("explain @vector.onnx x.npy --out a.png --out-dir b", &["--out"]);
    wrong("explain @vector.onnx x.npy --npy - --out -", &["'-'"]);
    wrong("explain @vector.onnx x.npy --npy a --raw-npy a", &["another output"]);
    wrong("explain - -", &["'-'"]);
    wrong("explain @vector.onnx --input x.npy", &["NAME=FILE"]);
    wrong("explain @vector.onnx x.npy --losses l.toml --class 1", &["--losses"]);
    dir.write("wrong.toml", "[[loss]]\nkind = 'speed'\n").write("rules.toml", "[[rule]]\nrule = 'loud'\n");
    wrong("explain @vector.onnx x.npy --losses wrong.toml", &["wrong.toml", "speed"]);
    wrong("explain @vector.onnx x.npy --backprop-modifier rules.toml", &["rules.toml", "loud"]);
    dir.ouzel("explain @vector.onnx x.npy --backprop-modifier gone.toml").fails(1, &["gone.toml"]);
}

#[test]
fn results_that_have_no_place() {
    let dir = Dir::new();
    dir.write_npy("x.npy", &array![1.0f32, 1.0, 1.0, 1.0, 1.0]).write("file", "");
    dir.ouzel("explain @vector.onnx x.npy --npy no/map.npy").fails(1, &["--npy", "no", "create it first"]);
    dir.ouzel("explain @vector.onnx x.npy --out-dir file").fails(1, &["file"]);
    dir.ouzel("explain @vector.onnx x.npy --json .").fails(1, &["folder"]);
    assert_eq!(dir.files(), ["file", "x.npy"]);
}

#[test]
fn readers_who_go_away() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_ouzel"))
        .args(["completions", "zsh"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}
