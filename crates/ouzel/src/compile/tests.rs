//! The engine gives what the reference evaluation gives, on small networks and their gradients.

use super::{Plan, Precision};
use crate::backprop::gradient;
use crate::builder::{Builder, Var};
use crate::error::Result;
use crate::graph::{Constant, Fact, Graph, ValueId};
use crate::op::{Op, Real};
use crate::ops::activation::{Clip, Gelu, HardSwish, LeakyRelu};
use crate::ops::convolution::{Conv, ConvTranspose};
use crate::ops::elementwise::Erf;
use crate::ops::gather::Gather;
use crate::ops::layout::Flatten;
use crate::ops::matmul::{Gemm, MatMul};
use crate::ops::norm::{BatchNormalization, LayerNormalization};
use crate::ops::pad::{Pad, PadMode};
use crate::ops::pool::{AveragePool, Divisor, GlobalAveragePool, MaxPool, Pooling};
use crate::ops::quantize::RoundThrough;
use crate::ops::slice::Split;
use crate::ops::softmax::Softmax;
use crate::ops::window::Window;
use crate::rules::{BackpropModifier, RuleSet};
use crate::tensor::{DType, Tensor};
use std::cell::Cell;

/// Numbers that look random and are the same every time.
struct Numbers(Cell<u64>);

impl Numbers {
    fn new() -> Self {
        Self(Cell::new(0x9e37_79b9_7f4a_7c15))
    }

    fn next(&self) -> f64 {
        let state =
            self.0.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0.set(state);
        (state >> 40) as f64 / f64::from(1u32 << 24) - 0.5
    }

    fn tensor(&self, shape: &[usize]) -> Tensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.next() as f32).collect();
        Tensor::from_shape_vec(shape, values).unwrap()
    }
}

/// Makes layers with weights of their own.
struct Net<'b> {
    builder: &'b Builder,
    numbers: Numbers,
}

impl<'b> Net<'b> {
    fn constant(&self, shape: &[usize]) -> Var<'b> {
        self.builder.constant(self.numbers.tensor(shape))
    }

    fn channels(x: Var) -> usize {
        x.shape()[1].known().unwrap() as usize
    }

    fn conv(&self, x: Var<'b>, outputs: usize, kernel: &[usize], window: Window, groups: usize) -> Var<'b> {
        let shape = [&[outputs, Self::channels(x) / groups], kernel].concat();
        let op = Conv { window, group: groups as i64 };
        self.builder.apply(op, &[x, self.constant(&shape), self.constant(&[outputs])])
    }

    fn plain(&self, x: Var<'b>, outputs: usize) -> Var<'b> {
        self.conv(x, outputs, &[3, 3], padded(1), 1)
    }

    fn norm(&self, x: Var<'b>) -> Var<'b> {
        let channels = [Self::channels(x)];
        let variance = self.builder.constant(Tensor::vector((0..channels[0]).map(|c| 0.5 + c as f32 / 8.0)));
        let inputs =
            [x, self.constant(&channels), self.constant(&channels), self.constant(&channels), variance];
        self.builder.apply(BatchNormalization { epsilon: Real(1e-5) }, &inputs)
    }

    fn clip(&self, x: Var<'b>, low: f64, high: f64) -> Var<'b> {
        self.builder.apply(Clip, &[x, x.scalar_like(low), x.scalar_like(high)])
    }

    fn linear(&self, x: Var<'b>, outputs: usize) -> Var<'b> {
        let gemm = Gemm { alpha: Real(1.0), beta: Real(1.0), transpose_a: false, transpose_b: true };
        let weight = self.constant(&[outputs, Self::channels(x)]);
        self.builder.apply(gemm, &[x, weight, self.constant(&[outputs])])
    }

    fn max_pool(&self, x: Var<'b>) -> Var<'b> {
        let window = padded(1).with_strides([2, 2]);
        let pooling = Pooling { window, ..Pooling::plain([3, 3]) };
        self.builder.apply(MaxPool { pooling, column_major: false }, &[x])
    }

    fn apply(&self, op: impl Into<Op>, x: Var<'b>) -> Var<'b> {
        self.builder.apply(op, &[x])
    }
}

fn padded(pad: i64) -> Window {
    Window::plain(2).with_pads([pad; 4])
}

fn strided() -> Window {
    padded(1).with_strides([2, 2])
}

/// A network with a gradient: the graph, its input, and what is asked for.
fn network(
    shape: &[usize],
    rules: &RuleSet,
    build: impl for<'b> Fn(&Net<'b>, Var<'b>) -> Var<'b>,
) -> (Graph, ValueId, Vec<ValueId>) {
    let builder = Builder::new(Graph::default());
    let dims = shape.iter().map(|&length| length.into()).collect();
    let x = builder.input("x", Fact::new(DType::F32, dims));
    let net = Net { builder: &builder, numbers: Numbers::new() };
    let y = build(&net, x);
    let lengths: Vec<usize> = y.shape().iter().skip(1).map(|dim| dim.known().unwrap() as usize).collect();
    let loss = (y * net.constant(&lengths)).id().unwrap();
    let (x, y) = (x.id().unwrap(), y.id().unwrap());
    let gradient = gradient(builder.finish().unwrap(), loss, &[x], rules).unwrap();
    (gradient.graph, x, vec![y, gradient.values[0]])
}

fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    let (found, expected) = (found.to_f64(), expected.to_f64());
    assert_eq!(found.shape(), expected.shape());
    let norm = |values: ndarray::ArrayD<f64>| values.iter().map(|v| v * v).sum::<f64>().sqrt();
    norm(&found - &expected) / norm(expected).max(1e-30)
}

/// Compares a network and its gradient with the reference in float64, batch by batch and on two threads. Gives the steps.
fn check_with(
    shape: &[usize],
    rules: &RuleSet,
    build: impl for<'b> Fn(&Net<'b>, Var<'b>) -> Var<'b>,
) -> String {
    let (graph, x, wanted) = network(shape, rules, &build);
    let input = Numbers::new().tensor(shape);
    let exact = Plan::new(&graph, &[(x, shape.to_vec())], &wanted, Precision::F64).unwrap();
    let expected = exact.run(std::slice::from_ref(&input)).unwrap();
    let plan = Plan::new(&graph, &[(x, shape.to_vec())], &wanted, Precision::F32).unwrap();
    let pool = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let found = pool(1).install(|| plan.run(std::slice::from_ref(&input)).unwrap());
    for (name, (found, expected)) in ["output", "gradient"].iter().zip(found.iter().zip(&expected)) {
        let error = relative_error(found, expected);
        assert!(error < 2e-5, "{name}: relative error {error:.1e} of\n{plan}\n{graph}");
    }
    // A second run finds the memory of the first, and other threads.
    assert_eq!(pool(3).install(|| plan.run(std::slice::from_ref(&input)).unwrap()), found);
    // One sample alone gives the same bits as in its batch.
    let single = [&[1], &shape[1..]].concat();
    let (graph, x, wanted) = network(&single, rules, &build);
    let one = Plan::new(&graph, &[(x, single)], &wanted, Precision::F32).unwrap();
    let last = |tensor: &Tensor| {
        let array = tensor.array::<f32>().unwrap();
        let row = array.slice_axis(ndarray::Axis(0), ndarray::Slice::from(-1..));
        Tensor::from(row.to_owned())
    };
    let alone = one.run(&[last(&input)]).unwrap();
    for (alone, batch) in alone.iter().zip(&found) {
        assert_eq!(alone, &last(batch), "a batch of one differs from a larger one in\n{plan}");
    }
    plan.to_string()
}

fn check(shape: &[usize], build: impl for<'b> Fn(&Net<'b>, Var<'b>) -> Var<'b>) -> String {
    check_with(shape, &RuleSet::new(), build)
}

fn residual<'b>(net: &Net<'b>, x: Var<'b>) -> Var<'b> {
    let x =
        net.norm(net.conv(x, 20, &[5, 5], Window::plain(2).with_pads([2; 4]).with_strides([2, 2]), 1)).relu();
    let x = net.max_pool(x);
    let branch = net.norm(net.conv(x, 12, &[1, 1], padded(0), 1)).relu();
    let branch = net.norm(net.plain(branch, 20)).relu();
    let x = (net.norm(net.conv(branch, 20, &[1, 1], padded(0), 1)) + x).relu();
    let branch = net.norm(net.conv(x, 36, &[3, 3], strided(), 1)).relu();
    let branch = net.norm(net.plain(branch, 36));
    let x = (branch + net.norm(net.conv(x, 36, &[1, 1], padded(0).with_strides([2, 2]), 1))).relu();
    let x = net.apply(Flatten { axis: 1 }, net.apply(GlobalAveragePool, x));
    net.linear(x, 10)
}

#[test]
fn residual_network() {
    let steps = check(&[2, 3, 37, 29], residual);
    assert!(!steps.contains("reference"), "{steps}");
    assert!(steps.contains("add + Relu"), "{steps}");
    assert!(steps.contains("add + gate"), "{steps}");
    assert!(!steps.contains("BatchNormalization"), "{steps}");
}

#[test]
fn guided_and_rectified() {
    for modifier in [BackpropModifier::guided(), BackpropModifier::rectified()] {
        let steps = check_with(&[2, 3, 24, 24], modifier.rules(), residual);
        assert!(!steps.contains("reference"), "{steps}");
    }
}

#[test]
fn depthwise_network_with_clips_and_gates() {
    let steps = check(&[2, 3, 16, 18], |net, x| {
        let x = net.clip(net.norm(net.conv(x, 16, &[3, 3], strided(), 1)), 0.0, 6.0);
        let x = net.clip(net.norm(net.conv(x, 16, &[3, 3], padded(1), 16)), 0.0, 0.75);
        let y = net.norm(net.conv(x, 24, &[1, 1], padded(0), 1));
        let x = y * y.sigmoid();
        let squeezed = net.apply(GlobalAveragePool, x);
        let squeezed = net.conv(squeezed, 6, &[1, 1], padded(0), 1);
        let squeezed = net.conv(squeezed * squeezed.sigmoid(), 24, &[1, 1], padded(0), 1).sigmoid();
        let x = x * squeezed;
        let x = net.apply(LeakyRelu { alpha: Real(0.1) }, net.conv(x, 24, &[3, 3], strided(), 4));
        let x = net.apply(HardSwish, net.conv(x, 17, &[1, 1], padded(0), 1));
        x.reduce_mean([2, 3], false)
    });
    assert!(steps.contains("Clip"), "{steps}");
}

#[test]
fn dense_blocks_share_one_buffer() {
    let steps = check(&[2, 3, 12, 12], |net, x| {
        let mut features = vec![net.norm(net.plain(x, 16)).relu()];
        for _ in 0..3 {
            let x = net.builder.concat(&features, 1);
            let x = net.conv(net.norm(x).relu(), 20, &[1, 1], padded(0), 1);
            features.push(net.plain(net.norm(x).relu(), 8));
        }
        let x = net.norm(net.builder.concat(&features, 1)).relu();
        let pooling = Pooling { window: Window::plain(2).with_strides([2, 2]), ..Pooling::plain([2, 2]) };
        net.apply(AveragePool { pooling, divisor: Divisor::Inside }, net.conv(x, 7, &[1, 1], padded(0), 1))
    });
    assert!(!steps.lines().any(|step| step.starts_with("Concat")), "{steps}");
}

#[test]
fn fire_modules() {
    check(&[2, 3, 15, 15], |net, x| {
        let pool = |x| {
            let window = Window::plain(2).with_strides([2, 2]);
            let pooling = Pooling { window, ceil_mode: true, ..Pooling::plain([3, 3]) };
            net.apply(MaxPool { pooling, column_major: false }, x)
        };
        let x = pool(net.conv(x, 16, &[3, 3], strided(), 1).relu());
        let squeezed = net.conv(x, 6, &[1, 1], padded(0), 1).relu();
        let a = net.conv(squeezed, 10, &[1, 1], padded(0), 1).relu();
        let b = net.plain(squeezed, 12).relu();
        let x = pool(net.builder.concat(&[a, b, squeezed], 1));
        let parts =
            net.builder.apply_all(Split { axis: 1, sizes: Some(vec![20, 8]), outputs: 2 }, &[Some(x)]);
        parts[1].relu() + net.conv(parts[0], 8, &[1, 1], padded(0), 1)
    });
}

#[test]
fn channels_last_files() {
    let steps = check(&[2, 14, 14, 3], |net, x| {
        let x = net.plain(x.transpose([0, 3, 1, 2]), 8).relu();
        let x = net.plain(x.transpose([0, 2, 3, 1]).relu().transpose([0, 3, 1, 2]), 6).relu();
        x.transpose([0, 2, 3, 1]).reshape([-1, 14 * 14 * 6])
    });
    assert!(!steps.contains("lay out"), "{steps}");
}

#[test]
fn attention() {
    check(&[2, 3, 8, 8], |net, x| {
        let x = net.conv(x, 12, &[4, 4], Window::plain(2).with_strides([4, 4]), 1);
        let x = x.reshape([-1, 12, 4]).transpose([0, 2, 1]);
        let mean = x.reduce_mean([2], true);
        let centered = x - mean;
        let variance = (centered * centered).reduce_mean([2], true);
        let x = centered / (variance + 1e-5).sqrt() * net.constant(&[12]) + net.constant(&[12]);
        let project = |x: Var<'_>| {
            let weight = net.constant(&[12, 12]);
            let y =
                net.builder.apply(MatMul, &[net.builder.var(x.id().unwrap()), weight]) + net.constant(&[12]);
            y.reshape([-1, 4, 3, 4]).transpose([0, 2, 1, 3])
        };
        let (q, k, v) = (project(x), project(x), project(x));
        let scores = net.builder.apply(MatMul, &[q, k.transpose([0, 1, 3, 2])]) * 0.5;
        let mixed = net.builder.apply(MatMul, &[net.apply(Softmax::over(3), scores), v]);
        let y = x + mixed.transpose([0, 2, 1, 3]).reshape([-1, 4, 12]);
        let hidden = net.builder.apply(MatMul, &[y, net.constant(&[12, 20])]);
        let gelu = hidden * 0.5 * ((hidden * std::f64::consts::FRAC_1_SQRT_2).erf() + 1.0);
        net.builder.apply(MatMul, &[gelu, net.constant(&[20, 1])])
    });
}

#[test]
fn matrices_with_a_leading_axis_of_length_one() {
    // As in halo attention: keys and values of a block are halves of one tensor, seen as [blocks, 1, window, channels].
    check(&[4, 12, 1, 9], |net, x| {
        let tokens = x.transpose([0, 2, 3, 1]);
        let split = Split { axis: 3, sizes: Some(vec![8, 4]), outputs: 2 };
        let parts = net.builder.apply_all(split, &[Some(tokens)]);
        let (keys, values) = (parts[0], parts[1]);
        let queries = net.builder.apply(MatMul, &[values, net.constant(&[1, 1, 4, 8])]);
        let scores = net.builder.apply(MatMul, &[queries, keys.transpose([0, 1, 3, 2])]);
        net.builder.apply(MatMul, &[net.apply(Softmax::over(3), scores), values])
    });
}

#[test]
fn single_channels() {
    check(&[2, 1, 9, 7], |net, x| {
        let x = net.plain(x, 1).relu();
        let x = net.norm(net.plain(x, 1)).relu() + net.constant(&[7]);
        let x = net.max_pool(x).relu();
        let x = net.builder.concat(&[x, x.relu()], 1);
        net.linear(net.apply(Flatten { axis: 1 }, x), 1).relu()
    });
}

#[test]
fn odd_windows_in_one_two_and_three_dimensions() {
    check(&[2, 4, 11], |net, x| {
        let window = Window::plain(1).with_strides([2]).with_dilations([2]).with_pads([3, 1]);
        net.conv(x, 6, &[3], window, 2).relu()
    });
    check(&[2, 2, 5, 6, 4], |net, x| {
        net.conv(x, 5, &[3, 2, 3], Window::plain(3).with_strides([2, 1, 1]).with_pads([1, 0, 1, 1, 1, 0]), 1)
            .relu()
    });
    check(&[2, 4, 6, 5], |net, x| {
        let window = Window::plain(2).with_strides([2, 3]).with_pads([1, 0, 0, 1]);
        let op = ConvTranspose { window, group: 2, output_padding: vec![1, 0], output_shape: None };
        let x = net.builder.apply(op, &[x, net.constant(&[4, 3, 3, 4]), net.constant(&[6])]).relu();
        net.conv(x, 3, &[2, 2], Window::plain(2).with_pads([-1, 0, 0, -2]), 1)
    });
}

#[test]
fn cuts_and_pads() {
    check(&[2, 6, 7, 7], |net, x| {
        let pads = net.builder.integers([0, 0, 1, 2, 0, 0, 2, 0]);
        let x = net.builder.apply(Pad { mode: PadMode::Constant }, &[x, pads]);
        let x = net.conv(x, 9, &[3, 3], padded(0), 1).relu();
        let x = x.slice(1, 2, 9).slice(2, 1, -1).relu();
        x.slice(0, 0, 2).reduce_max([2], false) + x.slice(3, 0, 1).reshape([-1, 7, 6]).reduce_sum([2], true)
    });
}

/// Asserts that all programs are parts of convolutions.
fn assert_joined(steps: &str) {
    assert!(steps.contains('['), "{steps}");
    for line in steps.lines().filter(|line| line.contains('[')) {
        assert!(line.starts_with("Conv"), "a step of its own: {line}\nin\n{steps}");
    }
}

#[test]
fn activations_join_the_convolutions_around_them() {
    type Function = for<'b> fn(&Net<'b>, Var<'b>) -> Var<'b>;
    let functions: [Function; 5] = [
        |_, x| x * x.sigmoid(),
        |net, x| {
            x * (net.apply(Erf, x * x.scalar_like(0.5f64.sqrt())) + x.scalar_like(1.0)) * x.scalar_like(0.5)
        },
        |net, x| net.apply(Gelu { tanh: false }, x),
        |net, x| net.apply(Gelu { tanh: true }, x),
        |net, x| net.apply(HardSwish, x),
    ];
    for function in functions {
        for outputs in [20, 32, 77] {
            let steps = check(&[2, 3, 9, 8], |net, x| {
                let x = function(net, net.plain(x, outputs));
                let x = function(net, net.conv(x, outputs, &[3, 3], strided(), outputs));
                net.conv(x, 18, &[1, 1], padded(0), 1)
            });
            assert_joined(&steps);
        }
    }
}

#[test]
fn squeeze_and_excitation() {
    check(&[3, 3, 9, 8], |net, x| {
        let x = net.norm(net.plain(x, 32));
        let x = x * x.sigmoid();
        let x = net.conv(x, 32, &[3, 3], padded(1), 32);
        let x = x * x.sigmoid();
        let pooled = net.apply(GlobalAveragePool, x);
        let share = net.conv(net.conv(pooled, 8, &[1, 1], padded(0), 1).relu(), 32, &[1, 1], padded(0), 1);
        let y = net.conv(x * share.sigmoid(), 20, &[1, 1], padded(0), 1);
        y + net.conv(x, 20, &[1, 1], padded(0), 1)
    });
}

#[test]
fn a_quantized_layer_before_a_mean_over_positions() {
    check(&[2, 3, 12, 12], |net, x| {
        let x = net.plain(x, 16).relu() / 0.05;
        let x = net.clip(net.apply(RoundThrough, x) + 3.0, 0.0, 40.0);
        net.linear(net.apply(Flatten { axis: 1 }, net.apply(GlobalAveragePool, (x - 3.0) * 0.05)), 5)
    });
}

#[test]
fn layer_normalization_needs_no_reference() {
    let steps = check(&[2, 3, 20], |net, x| {
        let op = LayerNormalization { axis: -1, epsilon: Real(1e-5) };
        let inputs = [x.relu(), net.constant(&[20]), net.constant(&[20])];
        let y = net.builder.apply_all(op, &inputs.map(Some))[0];
        net.builder.apply(MatMul, &[y, net.constant(&[20, 24])])
    });
    assert!(!steps.contains("reference"), "{steps}");
}

#[test]
fn single_slices_are_copied() {
    let steps = check(&[2, 4, 5, 6], |net, x| {
        let x = net.conv(x, 6, &[1, 1], padded(0), 1);
        let pick = |axis: usize, indices: &Tensor| {
            let indices = net.builder.constant(indices.clone());
            net.builder.apply(Gather { axis: axis as i64 }, &[x, indices])
        };
        let scalar = Tensor::from_shape_vec(&[], vec![-1i64]).unwrap();
        pick(1, &scalar) * pick(1, &Tensor::vector([2i64])).squeeze([1])
            + pick(2, &scalar).reduce_sum([1, 2], true)
    });
    assert!(!steps.contains("reference"), "{steps}");
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let (graph, x, wanted) = network(&[2, 3, 8, 8], &RuleSet::new(), |net, x| net.plain(x, 4));
    let plan = Plan::new(&graph, &[(x, vec![2, 3, 8, 8])], &wanted, Precision::F32).unwrap();
    let error = plan.run(&[Numbers::new().tensor(&[2, 3, 8, 7])]).unwrap_err();
    assert!(error.to_string().contains("'x'"), "{error}");
    assert!(plan.run(&[]).is_err());
}

#[test]
fn nothing_is_rounded_to_float32_on_the_way_to_float64() {
    let builder = Builder::default();
    let x = builder.input("x", Fact::new(DType::F32, vec![]));
    // Folded: a product of constants that float32 cannot hold.
    let third = x.scalar_like(1.0 / 3.0);
    let y = (x * (third * third)).id().unwrap();
    let graph = builder.finish().unwrap();
    let input = graph.inputs()[0];
    let run = |precision| {
        let plan = Plan::new(&graph, &[(input, vec![])], &[y], precision).unwrap();
        plan.run(&[Tensor::scalar(1.0f32)]).unwrap()[0].to_f64().sum()
    };
    assert_eq!(run(Precision::F64), (1.0 / 3.0) * (1.0 / 3.0));
    let third = 1.0f32 / 3.0;
    assert_eq!(run(Precision::F32), f64::from(third * third));
}

#[test]
fn targets_that_come_later_share_the_forward_pass() {
    let builder = Builder::new(Graph::default());
    let float = |shape: &[usize]| Fact::new(DType::F32, shape.iter().map(|&length| length.into()).collect());
    let x = builder.input("x", float(&[2, 3, 24, 24]));
    let target = builder.input("target", float(&[2, 10]));
    let net = Net { builder: &builder, numbers: Numbers::new() };
    let scores = residual(&net, x);
    let loss = (scores * target).id().unwrap();
    let (x, target) = (x.id().unwrap(), target.id().unwrap());
    let gradient = gradient(builder.finish().unwrap(), loss, &[x], &RuleSet::new()).unwrap();
    let shapes = [(x, vec![2, 3, 24, 24]), (target, vec![2, 10])];
    let wanted = [gradient.values[0], loss];
    let numbers = Numbers::new();
    let input = numbers.tensor(&[2, 3, 24, 24]);
    for precision in [Precision::F32, Precision::F64] {
        let plan = Plan::new(&gradient.graph, &shapes, &wanted, precision).unwrap();
        let staged = Plan::staged(&gradient.graph, &shapes, &[target], &wanted, precision).unwrap();
        let mut started = staged.start(std::slice::from_ref(&input)).unwrap();
        for _ in 0..3 {
            let weights = numbers.tensor(&[2, 10]);
            let expected = plan.run(&[input.clone(), weights.clone()]).unwrap();
            assert_eq!(started.finish(&[weights]).unwrap(), expected);
        }
        assert!(started.finish(&[]).is_err());
    }
}

/// The engine and the reference on what `add` adds and its gradient, with those drawn inputs as constants whose bit is
/// set.
fn check_nodes(
    title: &str,
    inputs: &[Option<(Tensor, bool)>],
    constants: usize,
    add: impl FnOnce(&mut Graph, &[Option<ValueId>]) -> Result<Vec<ValueId>>,
) {
    let mut graph = Graph::default();
    let mut given = Vec::new();
    let ids: Vec<Option<ValueId>> = (inputs.iter().enumerate())
        .map(|(index, input)| {
            let (tensor, drawn) = input.as_ref()?;
            Some(match *drawn && constants >> index & 1 == 0 {
                true => {
                    let dims = tensor.shape().iter().map(|&length| length.into()).collect();
                    let id = graph.add_input("x", Fact::new(tensor.dtype(), dims));
                    given.push((id, tensor.clone()));
                    id
                }
                false => graph.add_constant("", Constant::new(tensor.clone())),
            })
        })
        .collect();
    let Ok(mut wanted) = add(&mut graph, &ids) else { return };
    let builder = Builder::new(graph);
    let numbers = Numbers::new();
    let mut loss = None;
    for &output in &wanted {
        let y = builder.var(output);
        let shape: Option<Vec<usize>> = crate::dim::known_shape(&y.shape());
        if let (DType::F32, Some(shape)) = (y.dtype(), shape) {
            let term = (y * builder.constant(numbers.tensor(&shape))).sum();
            loss = Some(loss.map_or(term, |sum| sum + term));
        }
    }
    let wrt: Vec<ValueId> = given.iter().map(|(id, _)| *id).collect();
    let loss = loss.map(|loss| loss.id().unwrap());
    let mut graph = builder.finish().unwrap();
    if let Some(Ok(gradient)) = loss.map(|loss| gradient(graph.clone(), loss, &wrt, &RuleSet::new())) {
        graph = gradient.graph;
        wanted.extend(gradient.values);
    }
    let shapes: Vec<(ValueId, Vec<usize>)> =
        given.iter().map(|(id, tensor)| (*id, tensor.shape().to_vec())).collect();
    let tensors: Vec<Tensor> = given.into_iter().map(|(_, tensor)| tensor).collect();
    let run = |precision| {
        let plan = Plan::new(&graph, &shapes, &wanted, precision)
            .unwrap_or_else(|e| panic!("{title}: {e}\n{graph}"));
        let outputs = plan.run(&tensors).unwrap_or_else(|error| panic!("{title}: {error}\n{graph}"));
        (outputs, plan.to_string())
    };
    let ((found, steps), (expected, _)) = (run(Precision::F32), run(Precision::F64));
    for (place, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let error = relative_error(found, expected);
        // Not-a-number and infinity are where they are in the reference.
        let same = |a: f64, b: f64| a == b || (a.is_nan() && b.is_nan());
        let fits = match error.is_finite() {
            true => error < 1e-4,
            false => found
                .to_f64()
                .iter()
                .zip(&expected.to_f64())
                .all(|(&a, &b)| same(a, b) || (a - b).abs() <= 1e-4 * (1.0 + b.abs())),
        };
        assert!(fits, "{title}, result {place}: relative error {error:.1e}\n{steps}\n{graph}");
    }
}

#[test]
fn every_op_on_the_list_and_its_gradient() {
    let mut failed = Vec::new();
    for (name, samples) in crate::op::samples() {
        for sample in &samples {
            let (op, inputs) = sample.in_float32();
            for constants in [0, 0b10, 0b110, 0b1] {
                let title = format!("{name} {op:?}");
                let checked = || {
                    check_nodes(&title, &inputs, constants, |graph, ids| {
                        let node = graph.add_node("", op.clone(), ids)?;
                        Ok(graph.node(node).outputs.clone())
                    });
                };
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(checked)).is_err() {
                    failed.push(name);
                }
            }
        }
    }
    failed.dedup();
    assert!(failed.is_empty(), "{failed:?}");
}

#[test]
fn every_function_and_its_gradient() {
    for sample in crate::onnx::function_samples() {
        let (_, function) = crate::onnx::FUNCTIONS.iter().find(|(name, _)| *name == sample.op).unwrap();
        // Weights are constants in files.
        for constants in [0, !1] {
            let title = format!("{} {:?}", sample.op, sample.attributes);
            check_nodes(&title, &sample.in_float32(), constants, |graph, ids| {
                sample.add(*function, graph, ids)
            });
        }
    }
}

#[test]
fn a_dense_layer_adds_a_part_of_another_tensor() {
    check(&[3, 8], |net, x| {
        let all = net.linear(x, 12);
        net.linear(all.slice(1, 0, 4).tanh(), 4) + all.slice(1, 8, 12)
    });
}
