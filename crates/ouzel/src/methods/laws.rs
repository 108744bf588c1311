//! Laws of methods that vary the input, on networks where the answer is known.

use super::{Options, method};
use crate::losses::{ActivationMaximization, WeightedLoss};
use crate::onnx::proto::{
    AttributeProto, DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, TypeValue, ValueInfoProto, attribute_type,
    data_type,
};
use crate::{Attribution, Fill, Filters, Method, Model, Precision, Rise, Settings, Task};
use ndarray::{Array2, ArrayD, Axis, IxDyn};
use prost::Message;

/// The shape of a sample.
const SAMPLE: [usize; 3] = [2, 6, 5];
const ELEMENTS: usize = 60;

/// Numbers that are neither regular nor random.
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The weights of a linear network; those of the last row of each channel are 0.
fn weights() -> Vec<f32> {
    let mut weights = numbers(ELEMENTS * 3, 1);
    for (index, weight) in weights.iter_mut().enumerate() {
        if index / 3 / SAMPLE[2] % SAMPLE[1] == SAMPLE[1] - 1 {
            *weight = 0.0;
        }
    }
    weights
}

fn value(name: &str, batch: Option<i64>, rest: &[usize]) -> ValueInfoProto {
    let batch = match batch {
        Some(number) => DimensionValue::Number(number),
        None => DimensionValue::Name("batch".into()),
    };
    let dims = std::iter::once(batch).chain(rest.iter().map(|&length| DimensionValue::Number(length as i64)));
    let dim = dims.map(|value| DimensionProto { value: Some(value), ..Default::default() }).collect();
    let tensor = TensorTypeProto { elem_type: data_type::FLOAT, shape: Some(TensorShapeProto { dim }) };
    let r#type = Some(TypeProto { value: Some(TypeValue::Tensor(tensor)), ..Default::default() });
    ValueInfoProto { name: name.into(), r#type, ..Default::default() }
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    let input = inputs.iter().map(|&name| name.to_owned()).collect();
    NodeProto { op_type: op.into(), input, output: vec![output.into()], ..Default::default() }
}

/// `y = flatten(2 x) · W + b`.
fn linear(batch: Option<i64>) -> Model {
    let floats = |name: &str, dims: &[usize], float_data: Vec<f32>| TensorProto {
        name: name.into(),
        data_type: data_type::FLOAT,
        dims: dims.iter().map(|&length| length as i64).collect(),
        float_data,
        ..Default::default()
    };
    let mut flatten = node("Flatten", &["doubled"], "flat");
    flatten.attribute = vec![AttributeProto {
        name: "axis".into(),
        i: Some(1),
        r#type: attribute_type::INT,
        ..Default::default()
    }];
    let graph = GraphProto {
        node: vec![node("Mul", &["x", "two"], "doubled"), flatten, node("Gemm", &["flat", "w", "b"], "y")],
        initializer: vec![
            floats("two", &[], vec![2.0]),
            floats("w", &[ELEMENTS, 3], weights()),
            floats("b", &[3], vec![0.25, -7.0, 100.0]),
        ],
        input: vec![value("x", batch, &SAMPLE)],
        output: vec![value("y", batch, &[3])],
        ..Default::default()
    };
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
    let model = ModelProto { graph: Some(graph), opset_import, ..Default::default() };
    Model::from_bytes(model.encode_to_vec()).unwrap()
}

fn samples(count: usize) -> ArrayD<f32> {
    let shape: Vec<usize> = std::iter::once(count).chain(SAMPLE).collect();
    ArrayD::from_shape_vec(shape, numbers(count * ELEMENTS, 5)).unwrap()
}

/// What each element of a sample contributes to an output.
fn contributions(sample: &ArrayD<f32>, output: usize) -> ArrayD<f64> {
    let weights = Array2::from_shape_vec((ELEMENTS, 3), weights()).unwrap();
    let weights: Vec<f64> = weights.column(output).iter().map(|&weight| 2.0 * f64::from(weight)).collect();
    ArrayD::from_shape_vec(IxDyn(&SAMPLE), weights).unwrap() * sample.mapv(f64::from)
}

fn losses(layer: &str, filters: impl Into<Filters>) -> [WeightedLoss; 1] {
    [WeightedLoss::new(ActivationMaximization::new(layer, filters), -1.0)]
}

/// The attribution of the second output for one sample.
fn attribute(method: &dyn Method, model: &Model, samples: ArrayD<f32>) -> Attribution {
    method.attribute(model, &losses("y", 1), &samples.into()).unwrap()
}

fn close(found: &ArrayD<f64>, expected: &ArrayD<f64>, tolerance: f64) {
    assert_eq!(found.shape(), expected.shape());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= tolerance, "{found} for {expected}");
    }
}

fn named(name: &str, profile: &str, options: &[(&str, &str)]) -> Box<dyn Method> {
    let options = options.iter().fold(Options::new(), |all, (name, value)| all.with(name, value));
    let mut method = method(name, &options.with_profile(profile)).unwrap();
    method.settings_mut().precision = Precision::F64;
    method
}

#[test]
fn a_linear_network_gets_its_contributions() {
    let sample = samples(1);
    let exact = contributions(&sample.index_axis(Axis(0), 0).to_owned(), 1);
    let both =
        (&exact.sum_axis(Axis(0)).insert_axis(Axis(0)) + &ArrayD::<f64>::zeros(exact.raw_dim())).into_dyn();
    for batch in [None, Some(1)] {
        let model = linear(batch);
        let of = |method: Box<dyn Method>| {
            attribute(&*method, &model, sample.clone()).raw.to_f64().index_axis_move(Axis(0), 0)
        };
        // The file's weights are float32, and so is the input: what is left is the order of sums.
        close(&of(named("feature_ablation", "captum", &[])), &exact, 1e-9);
        close(&of(named("feature_ablation", "ouzel", &[("patches", "6x5")])), &both, 1e-9);
        close(&of(named("occlusion", "ouzel", &[("window", "1"), ("stride", "1")])), &both, 1e-9);
        close(&of(named("occlusion", "ouzel", &[("window", "1x1x1"), ("stride", "1x1x1")])), &exact, 1e-9);
        // A window of 2×2 that moves by 1: the average of the windows over a place; of 3 in a corner less are left out.
        let wide = of(named("occlusion", "ouzel", &[("window", "2"), ("stride", "1")]));
        let at = |row: usize, column: usize| both[[0, row, column]];
        let window = |row: usize, column: usize| {
            at(row, column) + at(row + 1, column) + at(row, column + 1) + at(row + 1, column + 1)
        };
        assert!((wide[[0, 0, 0]] - window(0, 0)).abs() < 1e-9);
        let middle = (window(1, 1) + window(1, 2) + window(2, 1) + window(2, 2)) / 4.0;
        assert!((wide[[1, 2, 2]] - middle).abs() < 1e-9);
        let summed = of(named("occlusion", "pair", &[("window", "2"), ("stride", "1")]));
        assert!((summed[[1, 2, 2]] - 4.0 * middle).abs() < 1e-9);
    }
}

#[test]
fn masks_find_the_contributions_of_a_linear_network() {
    let sample = samples(1);
    let exact = contributions(&sample.index_axis(Axis(0), 0).to_owned(), 1).sum_axis(Axis(0));
    let model = linear(None);
    // Cells of one element are independent of each other.
    let fine =
        named("rise", "ouzel", &[("masks", "30000"), ("grid", "6"), ("settled", "1"), ("p_keep", "0.3")]);
    let found = attribute(&*fine, &model, sample).raw.to_f64().index_axis_move(Axis(0), 0);
    assert_eq!(found.index_axis(Axis(0), 0), found.index_axis(Axis(0), 1));
    let spread = exact.mapv(|value| value * value).sum().sqrt();
    // Two standard deviations of the noise would be 2 · spread / √30000.
    close(&found.index_axis_move(Axis(0), 0), &exact.into_dyn(), 5.0 * spread / 30000f64.sqrt());
}

#[test]
fn dead_inputs_get_exactly_zero() {
    let sample = samples(1);
    for batch in [None, Some(1)] {
        let model = linear(batch);
        for (name, options) in [
            ("occlusion", &[("window", "1x5"), ("stride", "1x2")][..]),
            ("feature_ablation", &[("patches", "6x2")]),
        ] {
            let mut method = named(name, "ouzel", options);
            method.settings_mut().precision = Precision::F32;
            let raw = attribute(&*method, &model, sample.clone()).raw.to_f64();
            let last = raw.slice_axis(Axis(2), (SAMPLE[1] - 1..).into());
            assert!(last.iter().all(|&value| value == 0.0), "{name}");
            assert!(raw.iter().any(|&value| value != 0.0), "{name}");
        }
    }
}

#[test]
fn what_is_filled_in_can_be_chosen() {
    let sample = samples(1);
    let model = linear(None);
    let of = |fill: &str| {
        let method = named("feature_ablation", "captum", &[("fill_value", fill)]);
        attribute(&*method, &model, sample.clone()).raw.to_f64().index_axis_move(Axis(0), 0)
    };
    let inner = sample.index_axis(Axis(0), 0).to_owned();
    let half = inner.mapv(|value| value - 0.5);
    close(&of("0.5"), &contributions(&half, 1), 1e-9);
    let mean = |channel: usize| inner.index_axis(Axis(0), channel).mapv(f64::from).mean().unwrap();
    let means = [mean(0), mean(1)];
    let centered =
        ArrayD::from_shape_fn(IxDyn(&SAMPLE), |place| (f64::from(inner[&place]) - means[place[0]]) as f32);
    close(&of("mean"), &contributions(&centered, 1), 1e-6);
    assert!("loud".parse::<Fill>().is_err() && "inf".parse::<Fill>().is_err());
}

#[test]
fn a_tensor_inside_the_network_can_be_varied() {
    let sample = samples(2);
    for (name, options) in [("occlusion", &[("window", "2x2")][..]), ("rise", &[("masks", "40")])] {
        let outer = named(name, "ouzel", options);
        let mut inner = named(name, "ouzel", options);
        inner.settings_mut().wrt_tensor = Some("doubled".into());
        let model = linear(None);
        let expected = attribute(&*outer, &model, sample.clone());
        let found = attribute(&*inner, &model, sample.clone());
        assert_eq!(found.tensor, "doubled");
        close(&found.raw.to_f64(), &expected.raw.to_f64(), 1e-9);
        // A file that takes one sample at a time has the same answers.
        let one = attribute(&*inner, &linear(Some(1)), sample.clone());
        close(&one.raw.to_f64(), &expected.raw.to_f64(), 1e-9);
        assert!(one.warnings[0].contains("one sample at a time"), "{:?}", one.warnings);
    }
}

/// The methods with few passes.
fn quick() -> Vec<(&'static str, Box<dyn Method>)> {
    let quick = |name: &'static str, options: &[(&str, &str)]| {
        let mut method = named(name, "ouzel", options);
        method.settings_mut().precision = Precision::F32;
        (name, method)
    };
    vec![
        quick("occlusion", &[("window", "40"), ("stride", "30")]),
        quick("feature_ablation", &[("patches", "3")]),
        quick("rise", &[("masks", "21")]),
    ]
}

#[test]
fn neither_batches_nor_memory_nor_threads_matter() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/scene_fair.onnx");
    let model = Model::load(path).unwrap();
    let pictures = ArrayD::from_shape_vec(vec![2, 3, 128, 128], numbers(2 * 3 * 128 * 128, 9)).unwrap();
    let losses = losses("animal_logits", 2);
    for (name, mut method) in quick() {
        let mut of = |pictures: ArrayD<f32>, bytes: usize, threads: usize| {
            method.settings_mut().memory_bytes = Some(bytes);
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| method.attribute(&model, &losses, &pictures.into()).unwrap())
        };
        let both = of(pictures.clone(), usize::MAX, 2);
        for (bytes, threads) in [(usize::MAX, 1), (1, 3), (20 << 20, 2)] {
            let again = of(pictures.clone(), bytes, threads);
            assert_eq!(again.raw, both.raw, "{name} {bytes} {threads}");
            assert_eq!(again.measures, both.measures, "{name}");
        }
        let raw = both.raw.to_f64();
        for sample in 0..2 {
            let one = pictures.index_axis(Axis(0), sample).to_owned().insert_axis(Axis(0));
            let one = of(one, usize::MAX, 2).raw.to_f64();
            assert_eq!(one.index_axis(Axis(0), 0), raw.index_axis(Axis(0), sample), "{name} {sample}");
        }
    }
}

#[test]
fn the_target_may_be_named_late_and_for_each_sample() {
    let model = linear(None);
    let input = samples(2);
    for (name, options) in
        [("occlusion", &[("window", "3")][..]), ("rise", &[("masks", "9")]), ("feature_ablation", &[])]
    {
        let method = named(name, "ouzel", options);
        let late = losses("y", Filters::Late(1));
        let shapes = [(model.main_input(), input.shape().to_vec())];
        let also = [model.find("y").unwrap()];
        let task = Task { model: &model, losses: &late, shapes: &shapes, also: &also };
        let explainer = method.prepare(&task).unwrap();
        let mut started = explainer.start(&[input.clone().into()]).unwrap();
        assert_eq!(started.also()[0].shape(), [2, 3]);
        let own = started.explain(Some(Filters::PerSample(vec![vec![2], vec![0]]))).unwrap().raw.to_f64();
        for (sample, output) in [(0, 2), (1, 0)] {
            let expected = method.attribute(&model, &losses("y", output), &input.clone().into()).unwrap();
            let expected = expected.raw.to_f64();
            assert_eq!(own.index_axis(Axis(0), sample), expected.index_axis(Axis(0), sample), "{name}");
        }
        assert!(started.explain(None).unwrap_err().is_target());
        assert!(started.explain(Some(Filters::PerSample(vec![vec![2]]))).unwrap_err().is_target());
    }
}

#[test]
fn masks_follow_from_the_seed_and_stop_when_the_map_has_settled() {
    let model = linear(None);
    let mut sample = ArrayD::zeros(vec![1, 2, 6, 5]);
    sample[[0, 1, 2, 3]] = 4.0;
    let of = |seed: u64| {
        let rise = Rise { settings: Settings { seed, ..Settings::default() }, ..Rise::default() };
        attribute(&rise, &model, sample.clone())
    };
    let first = of(0);
    assert_eq!(first.raw, of(0).raw);
    assert_ne!(first.raw, of(1).raw);
    assert_eq!(first.measures[0].name, "masks");
    let masks = first.measures[0].values[0];
    assert!(masks < 4000.0 && masks % 256.0 == 0.0, "{masks}");
    assert!(first.measures[1].values[0] >= 0.98);
    let never = Rise::default().settled(1.0).masks(1000);
    assert_eq!(attribute(&never, &model, sample.clone()).measures[0].values, [1000.0]);
}

#[test]
fn impossible_options_say_what_is_possible() {
    let model = linear(None);
    let wrong = |name: &str, options: &[(&str, &str)]| {
        let options = options.iter().fold(Options::new(), |all, (name, value)| all.with(name, value));
        let made = method(name, &options);
        let found =
            made.and_then(|method| method.attribute(&model, &losses("y", 1), &samples(1).into()).map(drop));
        let error = found.unwrap_err();
        assert!(error.is_option(), "{error}");
        error.to_string()
    };
    assert!(wrong("occlusion", &[("window", "0x3")]).contains("1 or more"));
    assert!(wrong("occlusion", &[("window", "1x2x3x4")]).contains("[2, 6, 5]"));
    assert!(wrong("occlusion", &[("fill_value", "red")]).contains("mean"));
    assert!(wrong("rise", &[("p_keep", "1")]).contains("between 0 and 1"));
    assert!(wrong("rise", &[("settled", "2")]).contains("at most 1"));
    assert!(wrong("feature_ablation", &[("patches", "1x1x1")]).contains("2 for the axes"));
}
