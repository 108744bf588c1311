//! What holds for every method that varies the input, whatever the network: laws, and closed forms on linear networks.
#![allow(missing_docs)]

mod shared;

use ndarray::{ArrayD, Axis};
use ouzel::losses::{ActivationMaximization, WeightedLoss};
use ouzel::{
    Attribution, Baseline, BlurIg, ExpectedGradients, Explainer, Filters, GuidedIg, Input,
    IntegratedGradients, Method, Options, Precision, Progress, Quadrature, Saliency, Smoothing, Steps, Task,
    Tensor, Xrai, method,
};
use shared::{model, values};
use std::sync::{Arc, Mutex};

fn losses(layer: &str, filters: impl Into<Filters>) -> [WeightedLoss; 1] {
    [WeightedLoss::new(ActivationMaximization::new(layer, filters), -1.0)]
}

fn explain(method: &dyn Method, name: &str, layer: &str, input: &ArrayD<f32>) -> Attribution {
    let losses = losses(layer, 0);
    method.attribute(&model(name), &losses, &Input::from(input.clone())).unwrap()
}

/// Every method of this kind that explains a picture, with few steps.
fn all() -> Vec<Box<dyn Method>> {
    let named = ["smoothgrad", "smoothgrad_squared", "vargrad", "expected_gradients"];
    let mut all: Vec<Box<dyn Method>> =
        named.iter().map(|name| method(name, &Options::new().with("samples", "7")).unwrap()).collect();
    for name in ["integrated_gradients", "blur_ig", "guided_ig", "xrai"] {
        all.push(method(name, &Options::new().with("steps", "6")).unwrap());
    }
    for baseline in ["noise", "mean", "blur", "0.3,maximum"] {
        let options = Options::new().with("steps", "5").with("baseline", baseline);
        all.push(method("integrated_gradients", &options).unwrap());
    }
    all.push(
        method("smoothgrad", &Options::new().with("noise_sigma", "0.4").with("inner", "input_x_gradient"))
            .unwrap(),
    );
    all
}

fn close(found: &Attribution, expected: &ArrayD<f64>, what: &str) {
    let found = found.raw.to_f64();
    assert_eq!(found.shape(), expected.shape(), "{what}");
    let largest = expected.iter().fold(1e-12, |largest: f64, value| largest.max(value.abs()));
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-9 * largest, "{what}: found {found}, expected {expected}");
    }
}

/// What is missing of each sample, and how much that is of it.
fn gaps(found: &Attribution) -> Vec<f64> {
    found.completeness.as_ref().unwrap().gaps().iter().map(|gap| gap.abs()).collect()
}

fn relative_gaps(found: &Attribution) -> Vec<f64> {
    found.completeness.as_ref().unwrap().relative_gaps()
}

fn measure(found: &Attribution, name: &str) -> f64 {
    found.measures.iter().find(|measure| measure.name == name).unwrap().values[0]
}

#[test]
fn closed_forms_on_a_linear_network() {
    for (name, layer, shape) in
        [("channels_last", "scores", vec![1, 6, 6, 3]), ("classifier", "conv1", vec![1, 3, 8, 8])]
    {
        let x = values(&shape, 1);
        let wide = x.mapv(f64::from);
        let in_f64 = |mut method: Box<dyn Method>| {
            method.settings_mut().precision = Precision::F64;
            explain(&*method, name, layer, &x)
        };
        let gradient = in_f64(Box::<Saliency>::default()).raw.to_f64();
        close(&in_f64(Box::<Smoothing>::default()), &gradient, "SmoothGrad");
        let squared = Smoothing::smoothgrad_squared(Saliency::default());
        close(&in_f64(Box::new(squared)), &(&gradient * &gradient), "SmoothGrad-squared");
        let variance = in_f64(Box::new(Smoothing::vargrad(Saliency::default()))).raw.to_f64();
        assert!(variance.iter().all(|variance| *variance < 1e-15), "{variance}");

        let expected = |baseline: f64| (&wide - baseline) * &gradient;
        for rule in ["midpoint", "trapezoid", "left", "right", "gauss_legendre"] {
            let options = Options::new().with("steps", "3").with("quadrature", rule).with("baseline", "0.25");
            let found = in_f64(method("integrated_gradients", &options).unwrap());
            close(&found, &expected(0.25), rule);
            assert!(gaps(&found)[0] < 1e-9 && found.completeness.unwrap().holds());
        }
        let averaged = Options::new().with("steps", "3").with("baseline", "zeros,1");
        close(&in_f64(method("integrated_gradients", &averaged).unwrap()), &expected(0.5), "two baselines");
        for name in ["expected_gradients", "guided_ig"] {
            let found = in_f64(method(name, &Options::new().with("baseline", "0.25")).unwrap());
            close(&found, &expected(0.25), name);
            assert!(gaps(&found)[0] < 1e-9, "{name}");
        }
        // A path that begins elsewhere ends at the same difference.
        for method in [
            Box::new(BlurIg::default().steps(4)) as Box<dyn Method>,
            Box::new(BlurIg::default().max_sigma(2.0)),
        ] {
            let found = in_f64(method);
            assert!(gaps(&found)[0] < 1e-9 && found.completeness.unwrap().expected[0].abs() > 1e-4);
        }
        // All elements of a channel have the same mean.
        let options = Options::new().with("baseline", "mean").with("steps", "2");
        let found = in_f64(method("integrated_gradients", &options).unwrap()).raw.to_f64();
        let channel_axis = if name == "classifier" { 1 } else { 3 };
        let mut expected = wide.clone();
        for mut channel in expected.axis_iter_mut(Axis(channel_axis)) {
            let mean = channel.mean().unwrap();
            channel -= mean;
        }
        assert!((found - expected * &gradient).iter().all(|difference| difference.abs() < 1e-9));
    }
}

#[test]
fn what_does_not_matter_gets_nothing() {
    let x = values(&[1, 1, 4, 4], 3).mapv(f32::abs);
    for method in all() {
        let found = explain(&*method, "dead", "scores", &x);
        assert!(found.raw.to_f64().iter().all(|value| *value == 0.0), "{:?}", method);
        let warning = found.warnings.iter().filter(|warning| warning.contains("zero everywhere")).count();
        assert_eq!(warning, 1, "{:?}: {:?}", method.entry().name, found.warnings);
    }
    let features = values(&[1, 5], 4).mapv(f32::abs);
    for name in [
        "smoothgrad",
        "smoothgrad_squared",
        "vargrad",
        "integrated_gradients",
        "expected_gradients",
        "guided_ig",
    ] {
        let found = explain(&*method(name, &Options::new()).unwrap(), "vector", "y", &features).raw.to_f64();
        assert!((2..5).all(|feature| found[[0, feature]] == 0.0), "{name}: {found}");
    }
}

#[test]
fn features_that_can_be_exchanged_get_equal_shares() {
    let x = ndarray::arr2(&[[0.7f32, 0.7, 0.4]]).into_dyn();
    for name in ["integrated_gradients", "guided_ig", "expected_gradients"] {
        for baseline in ["zeros", "-1"] {
            let method = method(name, &Options::new().with("baseline", baseline)).unwrap();
            let found = explain(&*method, "symmetric", "y", &x).raw.to_f64();
            assert!((found[[0, 0]] - found[[0, 1]]).abs() < 1e-6 && found[[0, 0]] > 0.5, "{name}: {found}");
        }
    }
}

#[test]
fn attributions_add_up_the_better_the_more_steps() {
    let x = values(&[2, 3, 8, 8], 5);
    let gap = |found: &Attribution| {
        let sums = found.completeness.as_ref().unwrap();
        assert_eq!(sums.found.len(), 2);
        for (sum, raw) in sums.found.iter().zip(found.raw.to_f64().outer_iter()) {
            assert!((sum - raw.sum()).abs() < 1e-5);
        }
        gaps(found).into_iter().fold(0.0, f64::max)
    };
    let ways: [&dyn Fn(usize) -> Box<dyn Method>; 4] = [
        &|steps| Box::new(IntegratedGradients::default().steps(steps).precision(Precision::F64)),
        &|steps| {
            let method = IntegratedGradients::default().quadrature(Quadrature::GaussLegendre);
            Box::new(method.steps(steps).precision(Precision::F64))
        },
        &|steps| Box::new(BlurIg::default().steps(steps).precision(Precision::F64)),
        &|steps| Box::new(GuidedIg::default().steps(steps).precision(Precision::F64)),
    ];
    for way in ways {
        let few = gap(&explain(&*way(4), "classifier", "logits", &x));
        let many = gap(&explain(&*way(256), "classifier", "logits", &x));
        assert!(many < 2e-3 && many < few / 4.0, "{:?}: {few:e} with 4 steps, {many:e} with 256", way(4));
    }
    // The difference is that of the scores.
    let scores =
        |x: &ArrayD<f32>| explain(&Saliency::default(), "classifier", "logits", x).losses[0].weighted.clone();
    let found = explain(&IntegratedGradients::default(), "classifier", "logits", &x);
    let expected = found.completeness.unwrap().expected;
    for ((expected, score), zero) in expected.iter().zip(scores(&x)).zip(scores(&(&x * 0.0))) {
        assert!((expected - (score - zero)).abs() < 1e-6);
    }
}

#[test]
fn steps_double_until_the_sum_is_right() {
    let x = values(&[1, 3, 8, 8], 6);
    let mut method = IntegratedGradients::default();
    method.steps = Steps::Auto;
    method.quadrature = Quadrature::Right;
    for (tolerance, least) in [(0.2, 16.0), (0.02, 64.0)] {
        method.tolerance = tolerance;
        let found = explain(&method, "classifier", "logits", &x);
        let steps = measure(&found, "steps");
        assert!(relative_gaps(&found)[0] <= tolerance && (least..=1024.0).contains(&steps), "{steps}");
        let half = IntegratedGradients::default().quadrature(Quadrature::Right).steps(steps as usize / 2);
        let half = explain(&half, "classifier", "logits", &x);
        assert!(steps == 16.0 || relative_gaps(&half)[0] > tolerance, "{steps}");
    }
    let mut coarse = IntegratedGradients::default().steps(1).quadrature(Quadrature::Left);
    coarse.tolerance = 1e-6;
    let found = explain(&coarse, "classifier", "logits", &x);
    assert!(!found.completeness.unwrap().holds());
}

#[test]
fn a_batch_gives_what_its_samples_give_whatever_the_memory() {
    let x = values(&[3, 3, 8, 8], 7);
    for mut method in all() {
        let name = method.entry().name;
        let whole = explain(&*method, "classifier", "logits", &x);
        for (sample, one) in x.axis_iter(Axis(0)).enumerate() {
            let one = explain(&*method, "classifier", "logits", &one.to_owned().insert_axis(Axis(0)));
            let expected = whole.raw.to_f64().index_axis_move(Axis(0), sample).insert_axis(Axis(0));
            assert_eq!(one.raw.to_f64(), expected, "{name}");
        }
        for budget in [1, 20_000, 100_000] {
            method.settings_mut().memory_bytes = Some(budget);
            let found = explain(&*method, "classifier", "logits", &x);
            assert_eq!(found.raw, whole.raw, "{name}, {budget} bytes");
            assert_eq!(found.completeness, whole.completeness, "{name}, {budget} bytes");
            assert_eq!(found.measures, whole.measures, "{name}");
        }
    }
}

#[test]
fn a_file_that_takes_one_sample_gives_the_same() {
    let x = values(&[2, 3, 8, 8], 8);
    for method in all() {
        let expected = explain(&*method, "classifier", "logits", &x).raw.to_f64();
        let found = explain(&*method, "one_sample", "logits", &x).raw.to_f64();
        assert!(
            (found - expected).iter().all(|difference| difference.abs() < 1e-6),
            "{}",
            method.entry().name
        );
    }
}

#[test]
fn the_seed_alone_decides_what_is_random() {
    let x = values(&[1, 3, 8, 8], 9);
    for mut method in all() {
        let mut with_seed = |seed: u64| {
            method.settings_mut().seed = seed;
            explain(&*method, "classifier", "logits", &x).raw
        };
        let (first, again, other) = (with_seed(1), with_seed(1), with_seed(2));
        assert_eq!(first, again);
        let name = method.entry().name;
        let is_random =
            name.contains("grad") && name != "integrated_gradients" || name == "expected_gradients";
        if is_random {
            assert_ne!(first, other, "{name}");
        }
    }
}

#[test]
fn inner_tensors_as_if_the_network_were_cut_there() {
    let x = values(&[2, 3, 8, 8], 10);
    let model = model("classifier");
    let relu = model.find("relu1").unwrap();
    let at = |x: &ArrayD<f32>| model.run(&x.clone().into(), &[relu], Precision::F64).unwrap()[0].to_f64();
    let wide = |method: &dyn Fn() -> Box<dyn Method>| {
        let mut method = method();
        method.settings_mut().wrt_tensor = Some("relu1".into());
        method.settings_mut().precision = Precision::F64;
        explain(&*method, "classifier", "logits", &x)
    };
    // Behind the Relu the network is linear.
    let gradient = wide(&|| Box::<Saliency>::default()).raw.to_f64();
    let baseline = ArrayD::from_elem(vec![1, 3, 8, 8], 0.5f32);
    let both = ndarray::concatenate(Axis(0), &[baseline.view(), baseline.view()]).unwrap();
    let expected = (at(&x) - at(&both)) * &gradient;
    let start = || vec![Baseline::Array(Tensor::from(baseline.clone()))];
    let found = wide(&|| {
        let mut method = IntegratedGradients::default().steps(3);
        method.baselines = start();
        Box::new(method)
    });
    close(&found, &expected, "integrated gradients");
    assert!(gaps(&found).iter().all(|gap| *gap < 1e-9));
    assert_eq!((found.tensor.as_str(), found.channel_axis), ("relu1", Some(1)));
    close(
        &wide(&|| Box::new(ExpectedGradients::default().baselines(start()))),
        &expected,
        "expected gradients",
    );
    close(&wide(&|| Box::new(GuidedIg::default().baseline(start().remove(0)))), &expected, "guided");
    close(&wide(&|| Box::<Smoothing>::default()), &gradient, "SmoothGrad");
    // Through the convolution and the Relu.
    let through = IntegratedGradients::default().steps(200).wrt_tensor("conv1").precision(Precision::F64);
    let found = explain(&through, "classifier", "logits", &x);
    assert!(relative_gaps(&found).iter().all(|gap| *gap < 0.02), "{:?}", found.completeness);

    for method in [Box::new(BlurIg::default()) as Box<dyn Method>, Box::new(Xrai::default())] {
        let mut method = method;
        method.settings_mut().wrt_tensor = Some("relu1".into());
        let input = Input::from(x.clone());
        let error = method.attribute(&model, &losses("logits", 0), &input).unwrap_err();
        assert!(error.is_option() && error.to_string().contains(method.entry().name), "{error}");
    }
}

#[test]
fn targets_that_are_named_later_and_tensors_beside() {
    let x = values(&[2, 3, 8, 8], 11);
    let model = model("classifier");
    let shapes = [(model.main_input(), vec![2, 3, 8, 8])];
    let also = [model.find("logits").unwrap()];
    let late = losses("logits", Filters::Late(1));
    let task = Task { model: &model, losses: &late, shapes: &shapes, also: &also };
    for method in all() {
        let explainer: Box<dyn Explainer> = method.prepare(&task).unwrap();
        let mut started = explainer.start(&[Tensor::from(x.clone())]).unwrap();
        let scores = started.also()[0].clone();
        assert_eq!(scores, model.run(&x.clone().into(), &also, Precision::F32).unwrap()[0]);
        let found = started.explain(Some(Filters::PerSample(vec![vec![2], vec![1]]))).unwrap();
        for (sample, filter) in [(0, 2), (1, 1)] {
            let one = Input::from(x.index_axis(Axis(0), sample).insert_axis(Axis(0)).to_owned());
            let expected = method.attribute(&model, &losses("logits", filter), &one).unwrap();
            let part = found.raw.to_f64().index_axis_move(Axis(0), sample).insert_axis(Axis(0));
            let difference =
                (part - expected.raw.to_f64()).iter().fold(0.0, |most: f64, value| most.max(value.abs()));
            assert!(difference < 1e-6, "{}: {difference:e}", method.entry().name);
        }
        assert!(started.explain(None).is_err());
        assert!(!started.timings().steps().is_empty());
    }
}

#[test]
fn several_inputs_of_which_one_varies() {
    let model = model("several_inputs");
    let input = Input::named("x", values(&[2, 1, 2, 2], 12))
        .and("a=b/speed:0", values(&[2, 2], 13))
        .and_tensor("words", Tensor::vector([1i64, 3]));
    let losses = losses("sum", 1);
    let gradient = Saliency::default().attribute(&model, &losses, &input).unwrap().raw.to_f64();
    let found = Smoothing::default().attribute(&model, &losses, &input).unwrap().raw.to_f64();
    assert!((&found - &gradient).iter().all(|difference| difference.abs() < 1e-5));
    let found = IntegratedGradients::default().attribute(&model, &losses, &input).unwrap();
    assert!(relative_gaps(&found).iter().all(|gap| *gap < 1e-4), "{:?}", found.completeness);
    // The other floating point input.
    let speed = IntegratedGradients::default().wrt_tensor("a=b/speed:0");
    let found = speed.attribute(&model, &losses, &input).unwrap();
    assert_eq!(found.raw.shape(), [2, 2]);
    assert!(relative_gaps(&found).iter().all(|gap| *gap < 1e-4), "{:?}", found.completeness);
}

#[test]
fn evaluations_and_progress_are_reported() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut method = IntegratedGradients::default().steps(9).memory_bytes(1);
    let list = told.clone();
    method.settings.progress = Progress::new(move |done, all| list.lock().unwrap().push((done, all)));
    let found = explain(&method, "classifier", "logits", &values(&[1, 3, 8, 8], 14));
    // Nine points, the baseline, and the input itself.
    assert_eq!(measure(&found, "evaluations"), 11.0);
    let told = told.lock().unwrap();
    assert_eq!(told.last(), Some(&(11, 11)));
    assert!(told.len() == 10 && told.is_sorted(), "{told:?}");
}

#[test]
fn impossible_options_are_errors_that_name_them() {
    let x = Input::from(values(&[1, 3, 8, 8], 15));
    let wrong = [
        ("integrated_gradients", "baseline", "nowhere.png", "nowhere.png"),
        ("integrated_gradients", "quadrature", "simpson", "simpson"),
        ("integrated_gradients", "steps", "0", "steps"),
        ("integrated_gradients", "steps", "many", "many"),
        ("integrated_gradients", "tolerance", "0", "tolerance"),
        ("smoothgrad", "samples", "0", "samples"),
        ("smoothgrad", "noise_level", "-1", "noise_level"),
        ("smoothgrad", "inner", "vargrad", "vargrad"),
        ("guided_ig", "fraction", "1.5", "fraction"),
        ("blur_ig", "max_sigma", "0", "max_sigma"),
        ("xrai", "algorithm", "slow", "slow"),
    ];
    for (name, option, value, part) in wrong {
        let error = method(name, &Options::new().with(option, value)).err();
        let error = error.unwrap_or_else(|| panic!("{name} takes {option} {value}"));
        assert!(error.is_option() && format!("{error:?}").contains(part), "{error:?}");
    }
    let mut shaped = IntegratedGradients::default();
    shaped.baselines = vec![Baseline::Array(Tensor::from(values(&[1, 3, 7, 8], 1)))];
    let error = shaped.attribute(&model("classifier"), &losses("logits", 0), &x).unwrap_err();
    assert!(error.to_string().contains("[3, 8, 8]") && error.to_string().contains("[1, 3, 7, 8]"), "{error}");
    let features = Input::from(values(&[1, 5], 1));
    let error = BlurIg::default().attribute(&model("vector"), &losses("y", 0), &features).unwrap_err();
    assert!(error.to_string().contains("spatial"), "{error}");
}
