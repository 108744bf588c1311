//! Laws of class activation maps, on networks whose maps can be told by hand.

use super::{Cam, CamProfile};
use crate::attribution::Attribution;
use crate::builder::{Builder, Var};
use crate::compile::Precision;
use crate::dim::Dim;
use crate::explanation::Method;
use crate::grad_modifiers::GradModifier;
use crate::graph::{Fact, Graph};
use crate::image::{Upsampling, min_max};
use crate::input::Input;
use crate::losses::{ActivationMaximization, WeightedLoss};
use crate::methods::{METHODS, method};
use crate::model::Model;
use crate::ops::convolution::Conv;
use crate::ops::window::Window;
use crate::options::Options;
use crate::tensor::{DType, Tensor};
use crate::{AblationCam, EigenCam};
use ndarray::{ArrayD, Axis};

/// The methods of the family.
const FAMILY: &[&str] = &[
    "grad_cam",
    "grad_cam_plus_plus",
    "hires_cam",
    "xgrad_cam",
    "layer_cam",
    "eigen_cam",
    "score_cam",
    "ablation_cam",
    "full_grad",
    "guided_grad_cam",
];

/// Numbers between -1 and 1 that are neither regular nor random.
fn numbers(seed: u32, shape: &[usize]) -> ArrayD<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    ArrayD::from_shape_simple_fn(shape, &mut next)
}

/// A graph under construction, whose values get names.
#[derive(Default)]
struct Network {
    builder: Builder,
}

impl Network {
    fn input(&self, shape: &[i64]) -> Var<'_> {
        let dims = [Dim::symbol("batch")].into_iter().chain(shape.iter().map(|&length| length.into()));
        self.builder.input("x", Fact::new(DType::F32, dims.collect()))
    }

    fn weights(&self, seed: u32, shape: &[usize]) -> Var<'_> {
        self.builder.constant(numbers(seed, shape))
    }

    /// A convolution with a bias.
    fn convolution<'b>(
        &'b self,
        x: Var<'b>,
        seed: u32,
        channels: usize,
        kernel: usize,
        stride: i64,
    ) -> Var<'b> {
        let rank = x.rank() - 2;
        let inputs = x.shape()[1].known().unwrap() as usize;
        let shape: Vec<usize> = [channels, inputs].into_iter().chain(vec![kernel; rank]).collect();
        let window = Window::plain(rank).with_strides(vec![stride; rank]);
        let (weights, bias) = (self.weights(seed, &shape), self.weights(seed + 1, &[channels]));
        self.builder.apply(Conv { window, group: 1 }, &[x, weights, bias])
    }

    fn finish(self, names: &[(crate::graph::ValueId, &str)]) -> Model {
        let mut graph: Graph = self.builder.finish().unwrap();
        for (id, name) in names {
            graph.set_name(*id, name);
        }
        graph.outputs = names.last().map(|(id, _)| *id).into_iter().collect();
        Model::of_graph(graph)
    }
}

const CHANNELS: usize = 5;
const CLASSES: usize = 3;
const HEAD: u32 = 77;

/// Convolution, ReLU `features`, global average pooling, a dense layer `logits` without bias: a network that CAM (Zhou et
/// al. 2016) was made for. `rank` is the number of spatial axes.
fn cam_network(rank: usize) -> Model {
    let network = Network::default();
    let x = network.input(&[&[2], &vec![6; rank][..]].concat());
    let features = network.convolution(x, 1, CHANNELS, 3, 1).relu();
    let pooled = features.reduce_mean(2..2 + rank, false);
    let logits = pooled.matmul(network.weights(HEAD, &[CHANNELS, CLASSES]));
    let names = [(features.id().unwrap(), "features"), (logits.id().unwrap(), "logits")];
    network.finish(&names)
}

fn losses(class: usize) -> [WeightedLoss; 1] {
    [WeightedLoss::new(ActivationMaximization::new("logits", class), -1.0)]
}

fn attribute(method: &dyn Method, model: &Model, class: usize, input: &ArrayD<f32>) -> Attribution {
    method.attribute(model, &losses(class), &input.clone().into()).unwrap()
}

fn features(model: &Model, input: &ArrayD<f32>) -> ArrayD<f64> {
    let tensor = model.find("features").unwrap();
    model.run(&input.clone().into(), &[tensor], Precision::F64).unwrap()[0].to_f64()
}

fn assert_close(found: &ArrayD<f64>, expected: &ArrayD<f64>, what: &str) {
    assert_eq!(found.shape(), expected.shape(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-6 + 1e-5 * expected.abs(), "{what}: {found} {expected}");
    }
}

/// `max(0, Σₖ wₖ · Aₖ)` for each sample.
fn weighted(features: &ArrayD<f64>, weights: impl Fn(usize, usize) -> f64) -> ArrayD<f64> {
    let maps = features.outer_iter().enumerate().map(|(sample, channels)| {
        let mut map = ArrayD::zeros(&channels.shape()[1..]);
        for (channel, values) in channels.outer_iter().enumerate() {
            map.scaled_add(weights(sample, channel), &values);
        }
        map.mapv_into(|value| value.max(0.0))
    });
    let maps: Vec<ArrayD<f64>> = maps.collect();
    ndarray::stack(Axis(0), &maps.iter().map(|map| map.view()).collect::<Vec<_>>()).unwrap()
}

#[test]
fn on_a_network_for_cam_they_are_cam_in_one_two_and_three_dimensions() {
    let head = numbers(HEAD, &[CHANNELS, CLASSES]);
    for rank in 1..=3 {
        let model = cam_network(rank);
        let layer = model.cam_layer(model.find("logits").unwrap()).unwrap();
        assert_eq!(layer.value, model.find("features").unwrap());
        assert_eq!((layer.channel_axis, layer.grid), (1, None));
        let input = numbers(5, &[&[2, 2], &vec![6; rank][..]].concat());
        let features = features(&model, &input);
        let positions = features.len() / 2 / CHANNELS;
        for class in 0..CLASSES {
            let weight = |channel: usize| f64::from(head[[channel, class]]);
            let cam = weighted(&features, |_, channel| weight(channel) / positions as f64);
            for method in [Cam::grad_cam(), Cam::hires_cam(), Cam::xgrad_cam()] {
                let found = attribute(&method, &model, class, &input);
                assert_close(&found.raw.to_f64(), &cam, method.entry().name);
                assert!(found.notes[0].contains("'features'"), "{:?}", found.notes);
                let maps = found.maps(&method.settings.grad_modifier, false).unwrap();
                assert_eq!(maps.shape(), [&[2], &vec![6; rank][..]].concat());
            }
            let positive = weighted(&features, |_, channel| weight(channel).max(0.0) / positions as f64);
            let found = attribute(&Cam::layer_cam(), &model, class, &input).raw.to_f64();
            assert_close(&found, &positive, "layer_cam");
            // Without a channel the score drops by its weight times its mean.
            let ablated = weighted(&features, |sample, channel| {
                let of_sample = features.index_axis(Axis(0), sample);
                weight(channel) * of_sample.index_axis(Axis(0), channel).sum() / positions as f64
            });
            let found = attribute(&AblationCam::default(), &model, class, &input).raw.to_f64();
            assert_close(&found, &ablated, "ablation_cam");
        }
    }
}

#[test]
fn every_method_takes_one_two_and_three_dimensions_and_two_samples_are_as_two_of_one() {
    for name in FAMILY {
        for rank in 1..=3 {
            let model = cam_network(rank);
            let input = numbers(9, &[&[2, 2], &vec![6; rank][..]].concat());
            let method = method(name, &Options::new()).unwrap();
            let both = attribute(&*method, &model, 1, &input);
            let maps = both.maps(&method.settings().grad_modifier, false).unwrap();
            assert_eq!(maps.shape(), [&[2], &vec![6; rank][..]].concat(), "{name}");
            for sample in 0..2 {
                let one = input.index_axis(Axis(0), sample).insert_axis(Axis(0)).to_owned();
                let one = attribute(&*method, &model, 1, &one);
                assert_eq!(one.raw, both.raw.outer(sample..sample + 1), "{name}, {rank}, {sample}");
            }
        }
    }
    let described: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
    assert!(FAMILY.iter().all(|name| described.contains(name)));
}

#[test]
fn grad_cam_plus_plus_is_the_papers_formula() {
    let model = cam_network(2);
    let input = numbers(3, &[1, 2, 6, 6]);
    let (features, head) = (features(&model, &input), numbers(HEAD, &[CHANNELS, CLASSES]));
    let positions = (features.len() / CHANNELS) as f64;
    let expected = weighted(&features, |sample, channel| {
        let gradient = f64::from(head[[channel, 0]]) / positions;
        let sum = features.index_axis(Axis(0), sample).index_axis(Axis(0), channel).sum();
        let share = gradient.powi(2) / (2.0 * gradient.powi(2) + sum * gradient.powi(3));
        positions * share * gradient.max(0.0)
    });
    let found = attribute(&Cam::grad_cam_plus_plus(), &model, 0, &input).raw.to_f64();
    assert_close(&found, &expected, "grad_cam_plus_plus");
}

#[test]
fn several_layers_are_scaled_enlarged_and_averaged() {
    let model = cam_network(2);
    let input = numbers(4, &[2, 2, 6, 6]);
    let two = ["features", "features"];
    for upsampling in [Upsampling::Linear, Upsampling::AlignedLinear, Upsampling::Nearest] {
        let one = attribute(&Cam::grad_cam().upsampling(upsampling), &model, 2, &input);
        let raw = one.raw.to_f64();
        let scaled: Vec<ArrayD<f64>> =
            raw.outer_iter().map(|map| min_max(map).unwrap().mapv(f64::from)).collect();
        let scaled = ndarray::stack(Axis(0), &scaled.iter().map(|map| map.view()).collect::<Vec<_>>());
        let expected = upsampling.apply(scaled.unwrap(), &[6, 6]).unwrap();
        let method = Cam::grad_cam().layers(two).upsampling(upsampling);
        let average = attribute(&method, &model, 2, &input);
        assert_close(&average.raw.to_f64(), &expected, upsampling.name());
        assert_eq!(average.layer_map.unwrap().layers, two);
    }
    // The same on arrays.
    let one = attribute(&EigenCam::default(), &model, 2, &input);
    let average = attribute(&EigenCam::default().layers(two), &model, 2, &input);
    let maps = |attribution: &Attribution| {
        let maps = attribution.maps(&GradModifier::Absolute, false).unwrap();
        maps.mapv(f64::from)
    };
    for (a, b) in maps(&one).iter().zip(&maps(&average)) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    let error = Cam::grad_cam()
        .layers(two)
        .profile(CamProfile::KerasVis)
        .attribute(&model, &losses(0), &input.into())
        .unwrap_err();
    assert!(error.is_option() && error.to_string().contains("cubic_spline"), "{error}");
}

#[test]
fn the_parts_of_full_grad_add_up_to_the_score() {
    let network = Network::default();
    let x = network.input(&[2, 8, 8]);
    let hidden = network.convolution(x, 1, 4, 3, 1).relu();
    let features = network.convolution(hidden, 11, 5, 3, 2).relu();
    let flat = features.reshape([-1, 20]);
    let dense = (flat.matmul(network.weights(21, &[20, 6])) + network.weights(22, &[6])).relu();
    let logits = dense.matmul(network.weights(23, &[6, 3])) + network.weights(24, &[3]);
    let names = [(features.id().unwrap(), "features"), (logits.id().unwrap(), "logits")];
    let model = network.finish(&names);
    let (sums, scores) =
        crate::methods::full_grad::sums_and_scores(&model, &losses(1), &numbers(2, &[3, 2, 8, 8]));
    for (sum, score) in sums.iter().zip(&scores) {
        assert!((sum - score).abs() < 1e-9 * score.abs().max(1.0), "{sum} {score}");
    }
    let full =
        attribute(&*method("full_grad", &Options::new()).unwrap(), &model, 1, &numbers(2, &[1, 2, 8, 8]));
    assert!(full.warnings.is_empty(), "{:?}", full.warnings);
    assert_eq!(full.raw.shape(), [1, 8, 8]);
}

/// A transformer on patches: a class token before them, one attention, and a head that reads the class token or the mean
/// of all tokens.
fn transformer(reads_class_token: bool) -> Model {
    const WIDTH: usize = 6;
    let network = Network::default();
    let x = network.input(&[3, 8, 12]);
    let patches = network.convolution(x, 1, WIDTH, 4, 4);
    let tokens = patches.reshape([-1, WIDTH as i64, 6]).transpose([0, 2, 1]);
    let class = tokens.slice(1, 0, 1) * 0.0 + network.weights(2, &[1, 1, WIDTH]);
    let tokens = network.builder.concat(&[class, tokens], 1) + network.weights(3, &[1, 7, WIDTH]);
    let project = |seed: u32| tokens.matmul(network.weights(seed, &[WIDTH, WIDTH]));
    let attention = project(4).matmul(project(5).transpose_last_two()).softmax(2);
    let mixed = tokens + attention.matmul(project(6));
    let last = mixed + mixed.matmul(network.weights(7, &[WIDTH, WIDTH])).relu();
    let read = match reads_class_token {
        true => last.gather(1, vec![0]).squeeze([1]),
        false => last.reduce_mean([1], false),
    };
    let logits = read.matmul(network.weights(8, &[WIDTH, CLASSES]));
    let names =
        [(tokens.id().unwrap(), "tokens"), (last.id().unwrap(), "last"), (logits.id().unwrap(), "logits")];
    network.finish(&names)
}

#[test]
fn tokens_are_a_grid_of_patches_and_the_layer_is_one_that_the_head_listens_to() {
    for (reads_class_token, expected) in [(true, "tokens"), (false, "last")] {
        let model = transformer(reads_class_token);
        let layer = model.cam_layer(model.find("logits").unwrap()).unwrap();
        assert_eq!(layer.value, model.find(expected).unwrap(), "expected '{expected}'");
        assert_eq!((layer.channel_axis, &layer.positions[..]), (2, &[1][..]));
        let grid = layer.grid.unwrap();
        assert_eq!((grid.extra, &grid.sides[..]), (1, &[2, 3][..]));
        let input = numbers(6, &[2, 3, 8, 12]);
        for name in FAMILY {
            let method = method(name, &Options::new()).unwrap();
            let found = attribute(&*method, &model, 0, &input);
            assert!(found.raw.to_f64().iter().any(|&value| value != 0.0), "{name}");
            let maps = found.maps(&method.settings().grad_modifier, false).unwrap();
            assert_eq!(maps.shape(), [2, 8, 12], "{name}");
            if !matches!(*name, "full_grad" | "guided_grad_cam") {
                assert_eq!(found.raw.shape(), [2, 2, 3], "{name}");
                assert!(found.notes.iter().any(|note| note.contains("2×3")), "{name}: {:?}", found.notes);
            }
        }
    }
}

#[test]
fn layers_with_channels_last() {
    let network = Network::default();
    let x = network.input(&[3, 4, 4]);
    let patches = network.convolution(x, 1, 4, 1, 1).transpose([0, 2, 3, 1]);
    let mixed = patches.matmul(network.weights(2, &[4, 5])).relu();
    let logits = mixed.reduce_mean([1, 2], false).matmul(network.weights(3, &[5, CLASSES]));
    let names = [(mixed.id().unwrap(), "features"), (logits.id().unwrap(), "logits")];
    let model = network.finish(&names);
    let layer = model.cam_layer(model.find("logits").unwrap()).unwrap();
    assert_eq!((layer.channel_axis, &layer.positions[..]), (3, &[1, 2][..]));
    let input = numbers(6, &[1, 3, 4, 4]);
    let features = features(&model, &input).permuted_axes(vec![0, 3, 1, 2]);
    let head = numbers(3, &[5, CLASSES]);
    let cam = weighted(&features, |_, channel| f64::from(head[[channel, 1]]) / 16.0);
    assert_close(&attribute(&Cam::grad_cam(), &model, 1, &input).raw.to_f64(), &cam, "grad_cam");
}

#[test]
fn the_modifier_acts_on_the_gradient_of_the_layer() {
    let model = cam_network(2);
    let input = numbers(8, &[1, 2, 6, 6]);
    let negated = attribute(&Cam::grad_cam().grad_modifier(GradModifier::Negate), &model, 0, &input).raw;
    let own = GradModifier::custom("turned", |gradient| -gradient);
    assert_eq!(attribute(&Cam::grad_cam().grad_modifier(own), &model, 0, &input).raw, negated);
    let head = numbers(HEAD, &[CHANNELS, CLASSES]);
    let features = features(&model, &input);
    let expected = weighted(&features, |_, channel| -f64::from(head[[channel, 0]]) / 16.0);
    assert_close(&negated.to_f64(), &expected, "negate");
}

#[test]
fn what_cannot_be_mapped_is_said() {
    let network = Network::default();
    let x = network.input(&[7]);
    let logits = x.matmul(network.weights(1, &[7, CLASSES]));
    let names = [(logits.id().unwrap(), "logits")];
    let model = network.finish(&names);
    for name in FAMILY {
        let error = method(name, &Options::new()).unwrap().attribute(
            &model,
            &losses(0),
            &Input::from(Tensor::from(numbers(1, &[1, 7]))),
        );
        let error = error.unwrap_err().to_string();
        assert!(error.contains("position"), "{name}: {error}");
    }
    let model = cam_network(2);
    let error =
        Cam::grad_cam().layers(["logits"]).attribute(&model, &losses(0), &numbers(1, &[1, 2, 6, 6]).into());
    assert!(error.unwrap_err().is_target());
    let error = Cam::grad_cam().wrt_tensor("features").attribute(
        &model,
        &losses(0),
        &numbers(1, &[1, 2, 6, 6]).into(),
    );
    assert!(error.unwrap_err().to_string().contains("cam_layer"));
}
