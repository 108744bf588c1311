//! Saved explanations: the file, read again and run, gives what the method gives; and what cannot be saved says so.
#![allow(missing_docs)]

mod shared;

use ndarray::ArrayD;
use ouzel::losses::{ActivationMaximization, WeightedLoss};
use ouzel::{
    Baseline, Export, Filters, GradModifier, Input, IntegratedGradients, Method, Model, NamedBy, Noise,
    OnnxFile, Options, Plan, Precision, Quadrature, Saliency, Smoothing, Steps, Tensor, ValueId, method,
};
use shared::{model, values};

fn losses(filters: impl Into<Filters>) -> [WeightedLoss; 1] {
    [WeightedLoss::new(ActivationMaximization::new("logits", filters), -1.0)]
}

/// An output of a file for these inputs, in float64.
fn run(file: &OnnxFile, output: &str, inputs: &[(&str, Tensor)]) -> Tensor {
    let model = Model::from_bytes(file.to_bytes().unwrap()).unwrap();
    let find = |name: &str| model.find(name).unwrap();
    let shapes: Vec<(ValueId, Vec<usize>)> =
        inputs.iter().map(|(name, tensor)| (find(name), tensor.shape().to_vec())).collect();
    let plan = Plan::new(model.graph(), &shapes, &[find(output)], Precision::F64).unwrap();
    let tensors: Vec<Tensor> = inputs.iter().map(|(_, tensor)| tensor.clone()).collect();
    plan.run(&tensors).unwrap().remove(0)
}

fn assert_near(found: &Tensor, expected: &Tensor, title: &str) {
    assert_eq!(found.shape(), expected.shape(), "{title}");
    let (found, expected) = (found.to_f64(), expected.to_f64());
    let size = expected.iter().map(|x| x * x).sum::<f64>().sqrt();
    let error = (&found - &expected).iter().map(|x| x * x).sum::<f64>().sqrt() / size;
    assert!(size > 0.0 && error < 1e-5, "{title}: {error:e} of {size:e}");
}

/// Everything that varies the input and can be saved, in few variants.
fn varying() -> Vec<(&'static str, Box<dyn Method>)> {
    let noise = Noise::Array(values(&[5, 3, 8, 8], 9).into());
    let several = vec![
        Baseline::Mean,
        Baseline::Blur,
        Baseline::Noise,
        Baseline::Minimum,
        Baseline::Maximum,
        Baseline::Constant(0.25),
        Baseline::Array(values(&[2, 3, 8, 8], 11).into()),
    ];
    let mut averaged = IntegratedGradients::default().steps(3).quadrature(Quadrature::Trapezoid);
    averaged.baselines = several;
    let mut mean = IntegratedGradients::default().steps(4).baseline(Baseline::Blur);
    mean.multiply_by_inputs = false;
    let named = |name: &str, inner: &str| {
        method(name, &Options::new().with("inner", inner).with("samples", "5")).unwrap()
    };
    let profile = Options::new().with_profile("tf-keras-vis").with("samples", "5");
    vec![
        ("smoothgrad", Box::new(Smoothing::smoothgrad(Saliency::default()).samples(5).seed(3))),
        (
            "squared",
            Box::new(Smoothing::smoothgrad_squared(Saliency::default()).samples(5).noise(Noise::Sigma(0.3))),
        ),
        ("vargrad", Box::new(Smoothing::vargrad(Saliency::default()).samples(5).noise(noise))),
        ("of input x gradient", named("smoothgrad", "input_x_gradient")),
        ("of tf-keras-vis", method("smoothgrad", &profile).unwrap()),
        (
            "of zennit",
            method("smoothgrad", &Options::new().with_profile("zennit").with("samples", "5")).unwrap(),
        ),
        ("integrated gradients", Box::new(IntegratedGradients::default().steps(5))),
        ("mean gradient", Box::new(mean)),
        ("over baselines", Box::new(averaged)),
    ]
}

#[test]
fn variants_at_once_and_in_rounds_are_those_of_the_method() {
    let model = model("classifier");
    let x = values(&[3, 3, 8, 8], 5);
    for (title, mut method) in varying() {
        method.settings_mut().precision = Precision::F64;
        let expected = method.attribute(&model, &losses(1), &Input::from(x.clone())).unwrap();
        for at_once in [1, 2, 3, 64] {
            let title = format!("{title}, {at_once} at once");
            let export = Export::default().samples_per_pass(at_once);
            let file = method
                .to_onnx(&model, &losses(1), &export)
                .unwrap_or_else(|error| panic!("{title}: {error}"));
            let found = run(&file, "attribution", &[("x", x.clone().into())]);
            assert_near(&found, &expected.raw, &title);
            assert_eq!(file.ops().get("Loop").copied().unwrap_or(0), usize::from(at_once < 5), "{title}");
            let maps = Tensor::from(expected.maps(&method.settings().grad_modifier, false).unwrap());
            assert_near(&run(&file, "heatmap", &[("x", x.clone().into())]), &maps, &title);
        }
    }
}

#[test]
fn variants_keep_the_target_of_the_input_as_it_is() {
    let model = model("classifier");
    let x = values(&[4, 3, 8, 8], 6);
    let mut method = Smoothing::smoothgrad(Saliency::default()).samples(6).noise(Noise::Sigma(2.0)).seed(1);
    method.settings_mut().precision = Precision::F64;
    let late = losses(Filters::Late(1));
    let named = [2i64, 0, 1, 1];
    let by_input = losses(Filters::PerSample(named.iter().map(|&filter| vec![filter as usize]).collect()));
    let expected = method.attribute(&model, &by_input, &Input::from(x.clone())).unwrap();
    for at_once in [2, 8] {
        let export = Export::default().samples_per_pass(at_once).named_by(NamedBy::Input);
        let file = method.to_onnx(&model, &late, &export).unwrap();
        let target = Tensor::vector(named.to_vec());
        let inputs = [("x", Tensor::from(x.clone())), ("target", target)];
        assert_near(&run(&file, "attribution", &inputs), &expected.raw, "input");
        let export = Export::default().samples_per_pass(at_once);
        let file = method.to_onnx(&model, &late, &export).unwrap();
        let scores = run(&file, "logits", &[("x", x.clone().into())]).to_f64();
        let highest = scores.outer_iter().map(|row| {
            let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
            vec![best.0]
        });
        let top = losses(Filters::PerSample(highest.collect()));
        let expected = method.attribute(&model, &top, &Input::from(x.clone())).unwrap();
        assert_near(&run(&file, "attribution", &[("x", x.clone().into())]), &expected.raw, "top");
    }
}

#[test]
fn a_literal_batch_is_explained_one_variant_after_the_other() {
    let one = model("one_sample");
    let x = values(&[1, 3, 8, 8], 7);
    let mut method = Smoothing::smoothgrad(Saliency::default()).samples(3);
    method.settings_mut().precision = Precision::F64;
    let expected = method.attribute(&one, &losses(0), &Input::from(x.clone())).unwrap();
    let file = method.to_onnx(&one, &losses(0), &Export::default()).unwrap();
    assert_eq!(file.ops().get("Loop"), Some(&1));
    assert_near(&run(&file, "attribution", &[("x", x.into())]), &expected.raw, "one");
}

#[test]
fn rounds_share_the_weights() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
    let model = Model::load(path).unwrap();
    let losses = [WeightedLoss::new(ActivationMaximization::new("animal_logits", 0), -1.0)];
    let size = |method: &dyn Method| {
        method.to_onnx(&model, &losses, &Export::default()).unwrap().to_bytes().unwrap().len() as i64
    };
    let own = std::fs::metadata(path).unwrap().len() as i64;
    let grown = size(&IntegratedGradients::default()) - own;
    assert!(grown < 64 << 10, "{grown} bytes");
    let noise = 20 * 3 * 128 * 128 * 4;
    let grown = size(&Smoothing::smoothgrad(Saliency::default()).samples(20)) - own;
    assert!((noise..noise + (64 << 10)).contains(&grown), "{grown} bytes");
}

#[test]
fn what_cannot_be_saved_says_why() {
    let model = model("classifier");
    let refused = |method: &dyn Method, losses: &[WeightedLoss], parts: &[&str]| {
        let error = method.to_onnx(&model, losses, &Export::default()).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    for name in ["rise", "score_cam", "occlusion", "xrai", "guided_ig", "eigen_cam"] {
        refused(&*method(name, &Options::new()).unwrap(), &losses(0), &[name, "saved"]);
    }
    let mut auto = IntegratedGradients::default();
    auto.steps = Steps::Auto;
    refused(&auto, &losses(0), &["steps auto", "expected"]);
    let per_sample = losses(Filters::PerSample(vec![vec![0], vec![1]]));
    refused(&Smoothing::default(), &per_sample, &["filters", "when the file runs"]);
    let closure = GradModifier::Custom("mine".into(), std::sync::Arc::new(|gradient: ArrayD<f64>| gradient));
    refused(&Saliency::default().grad_modifier(closure), &losses(0), &["saved"]);
}

#[test]
fn nothing_is_left_of_a_file_whose_weights_are_gone() {
    let data = format!("{}/../ouzel-cli/tests/data", env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::temp_dir().join(format!("ouzel_saved_{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["outside.onnx", "outside.bin"] {
        std::fs::copy(format!("{data}/{name}"), folder.join(name)).unwrap();
    }
    let model = Model::load(folder.join("outside.onnx")).unwrap();
    let file = Saliency::default().to_onnx(&model, &losses(0), &Export::default()).unwrap();
    std::fs::remove_file(folder.join("outside.bin")).unwrap();
    let error = file.save(folder.join("saved.onnx")).unwrap_err().to_string();
    assert!(error.contains("outside.bin"), "{error}");
    assert!(!folder.join("saved.onnx").exists());
    std::fs::copy(format!("{data}/outside.bin"), folder.join("outside.bin")).unwrap();
    file.save(folder.join("saved.onnx")).unwrap();
    let x = values(&[2, 3, 8, 8], 8);
    let expected = Saliency::default().attribute(&model, &losses(0), &Input::from(x.clone())).unwrap();
    let saved = run(&file, "attribution", &[("x", x.into())]);
    assert_near(&saved, &expected.raw, "weights in a file of their own");
    std::fs::remove_dir_all(&folder).unwrap();
}
