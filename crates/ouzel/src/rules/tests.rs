//! Each relevance rule as dense matrix algebra in float64, straight from the papers' formulas.

use super::*;
use crate::backprop::{Ending, Gradient, backward};
use crate::builder::{Builder, Var};
use crate::evaluate::evaluate;
use crate::graph::{Fact, ValueId};
use crate::op::{Op, OpDef, Real};
use crate::ops::convolution::{Conv, ConvTranspose};
use crate::ops::einsum::Einsum;
use crate::ops::matmul::{Gemm, MatMul};
use crate::ops::norm::{BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization};
use crate::ops::pool::{GlobalAveragePool, MaxPool, Pooling};
use crate::ops::window::Window;
use crate::tensor::{DType, Tensor};
use ndarray::{Array2, ArrayD, IxDyn};

/// Numbers that are neither regular nor random.
fn numbers(shape: &[usize], seed: u32, low: f64, high: f64) -> ArrayD<f64> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    ArrayD::from_shape_simple_fn(IxDyn(shape), || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        low + (high - low) * f64::from(state >> 8) / f64::from(1u32 << 24)
    })
}

fn fact(shape: &[usize]) -> Fact {
    Fact::new(DType::F64, shape.iter().map(|&length| length.into()).collect())
}

/// A layer: op, shape of the input, weights, and bias.
struct Layer {
    title: &'static str,
    op: Op,
    x: Vec<usize>,
    w: Vec<usize>,
    b: Option<Vec<usize>>,
}

fn layers() -> Vec<Layer> {
    let gemm = |transpose_b| Gemm { alpha: Real(1.0), beta: Real(1.0), transpose_a: false, transpose_b };
    let strided = Window::plain(2).with_strides([2, 1]).with_pads([1, 0, 0, 1]);
    let layer = |title, op: Op, x: &[usize], w: &[usize], b: Option<usize>| Layer {
        title,
        op,
        x: x.to_vec(),
        w: w.to_vec(),
        b: b.map(|b| vec![b]),
    };
    let transpose = ConvTranspose {
        window: Window::plain(2).with_strides([2, 2]),
        group: 1,
        output_padding: vec![0, 0],
        output_shape: None,
    };
    vec![
        layer("dense", gemm(false).into(), &[2, 5], &[5, 3], Some(3)),
        layer("dense, transposed", gemm(true).into(), &[2, 5], &[3, 5], Some(3)),
        layer("matrix product", MatMul.into(), &[2, 2, 5], &[5, 3], None),
        layer("equation", Einsum { equation: "abc,bdc->abd".into() }.into(), &[2, 2, 5], &[2, 3, 5], None),
        layer(
            "convolution",
            Conv { window: strided.clone(), group: 1 }.into(),
            &[2, 3, 4, 5],
            &[4, 3, 3, 2],
            Some(4),
        ),
        layer("groups", Conv { window: strided, group: 2 }.into(), &[1, 4, 4, 5], &[6, 2, 3, 2], None),
        layer("transposed convolution", transpose.into(), &[1, 3, 2, 3], &[3, 2, 2, 2], Some(2)),
    ]
}

/// A layer's relevance by a rule, and the sum that its bias absorbed.
fn relevance(layer: &Layer, values: &Values, rule: Arc<dyn Rule>) -> (ArrayD<f64>, f64) {
    let builder = Builder::default();
    let x = builder.input("x", fact(&layer.x));
    let w = builder.constant(Tensor::from(values.w.clone()));
    let b = values.b.as_ref().map(|b| builder.constant(Tensor::from(b.clone())));
    // A rectifier before the layer is how a rule knows that its input is not negative.
    let read = if values.rectified { x.relu() } else { x };
    let inputs: Vec<Option<Var>> = [read, w].into_iter().chain(b).map(Some).collect();
    let y = builder.apply_all(layer.op.clone(), &inputs)[0];
    let r = builder.constant(Tensor::from(values.r.clone()));
    let [x, read, y, r] = [x, read, y, r].map(|var| var.id().unwrap());
    let rules = RuleSet::new()
        .with(Matcher::kind([Kind::Convolution, Kind::Dense]), rule)
        .with(Matcher::Any, Arc::new(Pass));
    let Gradient { graph, values: found, coverage, .. } =
        backward(builder.finish().unwrap(), &[(y, r)], &[read], &rules).unwrap();
    let wanted: Vec<ValueId> = found.into_iter().chain(coverage.ended.iter().map(|it| it.2)).collect();
    let mut out = evaluate(&graph, &[(x, Tensor::from(values.x.clone()))], &wanted).unwrap().into_iter();
    let relevance = out.next().unwrap().to_f64();
    let sums: Vec<f64> = out.map(|sum| sum.to_f64().sum()).collect();
    let absorbed = coverage.ended.iter().zip(&sums).filter(|(ended, _)| ended.1 == Ending::Absorbed);
    let absorbed = absorbed.map(|(_, sum)| sum).sum();
    // Whatever the rule, no relevance goes unaccounted for.
    let (given, accounted) = (values.r.sum(), relevance.sum() + sums.iter().sum::<f64>());
    assert!((given - accounted).abs() < 1e-9, "{}: {accounted} of {given}", layer.title);
    (relevance, absorbed)
}

/// The numbers that a layer is tried on.
struct Values {
    x: ArrayD<f64>,
    w: ArrayD<f64>,
    b: Option<ArrayD<f64>>,
    r: ArrayD<f64>,
    rectified: bool,
}

/// The layer as a matrix: `y = a · x + b`, all flat.
struct Dense {
    a: Array2<f64>,
    b: Vec<f64>,
}

fn run(layer: &Layer, x: &ArrayD<f64>, w: &ArrayD<f64>, b: Option<&ArrayD<f64>>) -> ArrayD<f64> {
    let builder = Builder::default();
    let constant = |array: &ArrayD<f64>| Some(builder.constant(Tensor::from(array.clone())));
    let inputs: Vec<Option<Var>> = [x, w].into_iter().chain(b).map(constant).collect();
    let y = builder.apply_all(layer.op.clone(), &inputs)[0].id().unwrap();
    evaluate(&builder.finish().unwrap(), &[], &[y]).unwrap()[0].to_f64()
}

fn dense(layer: &Layer, values: &Values) -> Dense {
    let zeros = ArrayD::zeros(IxDyn(&layer.x));
    let columns: Vec<Vec<f64>> = (0..zeros.len())
        .map(|place| {
            let mut unit = zeros.clone();
            unit.as_slice_mut().unwrap()[place] = 1.0;
            run(layer, &unit, &values.w, None).into_iter().collect()
        })
        .collect();
    let a = Array2::from_shape_fn((columns[0].len(), columns.len()), |(j, i)| columns[i][j]);
    let b = match &values.b {
        Some(b) => run(layer, &zeros, &values.w, Some(b)).into_iter().collect(),
        None => vec![0.0; columns[0].len()],
    };
    Dense { a, b }
}

/// What a paper says of a rule: the contribution of an input through a weight, and of the bias, to what is shared out,
/// for each part of the relevance: `(factor, contribution, bias)`, by the output's sign.
type Formula = Box<dyn Fn(bool) -> Vec<Part>>;

struct Part {
    factor: f64,
    contribution: Box<dyn Fn(f64, f64) -> f64>,
    bias: Box<dyn Fn(f64) -> f64>,
}

fn part(
    factor: f64,
    contribution: impl Fn(f64, f64) -> f64 + 'static,
    bias: impl Fn(f64) -> f64 + 'static,
) -> Part {
    Part { factor, contribution: Box::new(contribution), bias: Box::new(bias) }
}

fn plus(v: f64) -> f64 {
    v.max(0.0)
}

fn minus(v: f64) -> f64 {
    v.min(0.0)
}

const STABILIZER: f64 = 1e-3;

/// The rules with their formulas.
fn rules() -> Vec<(Arc<dyn Rule>, Formula)> {
    let none = |_: f64| 0.0;
    let plain = |_: bool| vec![part(1.0, |x, a| x * a, |b| b)];
    let mut all: Vec<(Arc<dyn Rule>, Formula)> = vec![
        (Arc::new(Relevance::epsilon(STABILIZER)), Box::new(plain)),
        (Arc::new(Relevance::norm(STABILIZER)), Box::new(plain)),
        (Arc::new(Relevance::z_plus(STABILIZER)), Box::new(|_| vec![part(1.0, |x, a| plus(x * a), plus)])),
        (
            Arc::new(Relevance::excitation(STABILIZER)),
            Box::new(move |_| vec![part(1.0, |x, a| plus(x) * plus(a), none)]),
        ),
        (
            Arc::new(Relevance::z_box(&[-0.75], &[1.25], STABILIZER)),
            Box::new(move |_| vec![part(1.0, |x, a| x * a + 0.75 * plus(a) - 1.25 * minus(a), none)]),
        ),
        (Arc::new(Relevance::w_square(STABILIZER)), Box::new(move |_| vec![part(1.0, |_, a| a * a, none)])),
        (
            Arc::new(Relevance::flat(STABILIZER)),
            Box::new(move |_| vec![part(1.0, |_, a| f64::from(a != 0.0), none)]),
        ),
    ];
    for (alpha, beta) in [(1.0, 0.0), (2.0, 1.0)] {
        let formula = move |_: bool| {
            vec![part(alpha, |x, a| plus(x * a), plus), part(-beta, |x, a| minus(x * a), minus)]
        };
        let rule = Relevance::alpha_beta(alpha, beta, STABILIZER).unwrap();
        all.push((Arc::new(rule), Box::new(formula)));
    }
    for gamma in [0.25, 2.0] {
        // Contributions of the output's own sign weigh more.
        let formula = move |positive: bool| {
            vec![match positive {
                true => part(1.0, move |x, a| x * a + gamma * plus(x * a), move |b| b + gamma * plus(b)),
                false => part(1.0, move |x, a| x * a + gamma * minus(x * a), move |b| b + gamma * minus(b)),
            }]
        };
        all.push((Arc::new(Relevance::gamma(gamma, STABILIZER)), Box::new(formula)));
    }
    all
}

fn expected(dense: &Dense, x: &[f64], r: &[f64], formula: &Formula) -> (Vec<f64>, f64) {
    let mut relevance = vec![0.0; x.len()];
    let mut absorbed = 0.0;
    for (j, &r) in r.iter().enumerate() {
        let row = dense.a.row(j);
        let y: f64 = row.iter().zip(x).map(|(a, x)| a * x).sum::<f64>() + dense.b[j];
        for part in formula(y > 0.0) {
            let contributions: Vec<f64> =
                row.iter().zip(x).map(|(&a, &x)| (part.contribution)(x, a)).collect();
            let bias = (part.bias)(dense.b[j]);
            let z = contributions.iter().sum::<f64>() + bias;
            let per_unit = part.factor * r / (z + if z >= 0.0 { STABILIZER } else { -STABILIZER });
            for (relevance, contribution) in relevance.iter_mut().zip(contributions) {
                *relevance += contribution * per_unit;
            }
            absorbed += bias * per_unit;
        }
    }
    (relevance, absorbed)
}

fn assert_close(found: &[f64], expected: &[f64], title: &str) {
    assert_eq!(found.len(), expected.len(), "{title}");
    let scale = expected.iter().fold(1.0f64, |max, value| max.max(value.abs()));
    for (place, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert!((found - expected).abs() <= 1e-11 * scale, "{title} at {place}: {found} for {expected}");
    }
}

#[test]
fn rules_are_the_formulas_of_the_papers() {
    for layer in layers() {
        for (seed, low, has_bias) in [(1, -1.0, true), (2, 0.0, true), (3, -1.0, false)] {
            if has_bias && layer.b.is_none() {
                continue;
            }
            let x = numbers(&layer.x, seed, low, 1.0);
            let w = numbers(&layer.w, seed + 10, -1.0, 1.0);
            let b = layer.b.as_ref().filter(|_| has_bias).map(|b| numbers(b, seed + 20, -1.0, 1.0));
            let shape = run(&layer, &x, &w, None).shape().to_vec();
            let r = numbers(&shape, seed + 30, -1.0, 2.0);
            let values = Values { x, w, b, r, rectified: low == 0.0 };
            let dense = dense(&layer, &values);
            let flat = |array: &ArrayD<f64>| array.iter().copied().collect::<Vec<f64>>();
            for (rule, formula) in rules() {
                // What a rectifier computes is no input of the network, whose bounds this rule knows.
                if values.rectified && rule.name() == "z_box" {
                    continue;
                }
                let title = format!("{} of {} ({seed})", rule.name(), layer.title);
                let (expected, absorbs) = expected(&dense, &flat(&values.x), &flat(&values.r), &formula);
                let (found, absorbed) = relevance(&layer, &values, rule);
                assert_close(&flat(&found), &expected, &title);
                assert!((absorbed - absorbs).abs() < 1e-9, "{title}: absorbed {absorbed} for {absorbs}");
            }
        }
    }
}

/// The relevance of inputs of a small graph, in float64.
fn small(
    inputs: &[(&str, ArrayD<f64>)],
    r: ArrayD<f64>,
    build: impl for<'b> Fn(&'b Builder, &[Var<'b>]) -> Var<'b>,
    rules: &RuleSet,
) -> Vec<ArrayD<f64>> {
    let builder = Builder::default();
    let vars: Vec<Var> = inputs.iter().map(|(name, x)| builder.input(name, fact(x.shape()))).collect();
    let y = build(&builder, &vars).id().unwrap();
    let r = builder.constant(Tensor::from(r)).id().unwrap();
    let ids: Vec<ValueId> = vars.iter().map(|var| var.id().unwrap()).collect();
    let Gradient { graph, values, .. } = backward(builder.finish().unwrap(), &[(y, r)], &ids, rules).unwrap();
    let given: Vec<(ValueId, Tensor)> =
        ids.into_iter().zip(inputs).map(|(id, (_, x))| (id, Tensor::from(x.clone()))).collect();
    evaluate(&graph, &given, &values).unwrap().iter().map(|tensor| tensor.to_f64()).collect()
}

fn common() -> RuleSet {
    Preset::named("common").unwrap().rules(None).unwrap()
}

#[test]
fn sums_share_in_proportion_to_their_summands() {
    let (a, b) = (numbers(&[2, 3], 1, 0.5, 1.0), numbers(&[3], 2, 0.5, 1.0));
    let r = numbers(&[2, 3], 3, -1.0, 1.0);
    let found = small(&[("a", a.clone()), ("b", b.clone())], r.clone(), |_, x| x[0] + x[1], &common());
    let sum = &a + &b;
    let part = |v: &ArrayD<f64>| v * &r / sum.mapv(|z| z + 1e-6);
    assert_close(found[0].as_slice().unwrap(), part(&a).as_slice().unwrap(), "a");
    let of_b = part(&b.broadcast(IxDyn(&[2, 3])).unwrap().to_owned()).sum_axis(ndarray::Axis(0));
    assert_close(found[1].as_slice().unwrap(), of_b.as_slice().unwrap(), "b");
}

#[test]
fn gates_pass_relevance_to_the_signal_and_products_share_it() {
    let (a, b) = (numbers(&[4], 1, 0.5, 1.0), numbers(&[4], 2, -1.0, 1.0));
    let r = numbers(&[4], 3, -1.0, 1.0);
    // The gate gets nothing, so that its input has no relevance to ask for.
    let gated = small(
        &[("a", a.clone())],
        r.clone(),
        |builder, x| x[0] * builder.constant(Tensor::from(numbers(&[4], 9, -1.0, 1.0))).sigmoid(),
        &common(),
    );
    assert_eq!(gated[0], r);
    let halves = small(&[("a", a.clone()), ("b", b)], r.clone(), |_, x| x[0] * x[1], &common());
    assert_close(halves[0].as_slice().unwrap(), (&r * 0.5).as_slice().unwrap(), "a");
    assert_close(halves[1].as_slice().unwrap(), (&r * 0.5).as_slice().unwrap(), "b");
    // SiLU, GELU and its cousin by tanh, spelled out, are functions of one element.
    type Spelled = for<'b> fn(&'b Builder, &[Var<'b>]) -> Var<'b>;
    let spelled: [Spelled; 4] = [
        |_, x| x[0] * x[0].sigmoid(),
        |_, x| x[0].sigmoid() * x[0],
        |_, x| x[0] * ((x[0] / 2f64.sqrt()).erf() + 1.0) * 0.5,
        |_, x| (x[0] * 0.5) * (((x[0] + x[0].powf(3.0) * 0.044715) * 0.7978845608).tanh() + 1.0),
    ];
    for build in spelled {
        let found = small(&[("a", a.clone())], r.clone(), build, &common());
        assert_close(found[0].as_slice().unwrap(), r.as_slice().unwrap(), "spelled out");
    }
}

#[test]
fn softmax_is_shared_by_its_taylor_decomposition() {
    let (x, r) = (numbers(&[2, 4], 1, -1.0, 1.0), numbers(&[2, 4], 2, -1.0, 1.0));
    let found = small(&[("x", x.clone())], r.clone(), |_, x| x[0].softmax(1), &common());
    let mut expected = x.clone();
    for ((mut row, x), r) in expected.outer_iter_mut().zip(x.outer_iter()).zip(r.outer_iter()) {
        let e = x.mapv(f64::exp);
        let y = &e / e.sum();
        row.assign(&(&x * &(&r - &(&y * r.sum()))));
    }
    assert_close(found[0].as_slice().unwrap(), expected.as_slice().unwrap(), "softmax");
}

/// A graph with one input, its output, and the numbers to run it on.
fn value_of(graph: &Graph, x: ValueId, at: &ArrayD<f64>, wanted: ValueId) -> ArrayD<f64> {
    evaluate(graph, &[(x, Tensor::from(at.clone()))], &[wanted]).unwrap()[0].to_f64()
}

#[test]
fn canonical_forms_compute_the_same() {
    let builder = Builder::default();
    let x = builder.input("x", fact(&[2, 3, 5, 5]));
    let constant =
        |shape: &[usize], seed, low| builder.constant(Tensor::from(numbers(shape, seed, low, 1.0)));
    let norm = |x: Var<'_>, channels: usize, seed| {
        let inputs = [
            x.id().unwrap(),
            constant(&[channels], seed, -1.0).id().unwrap(),
            constant(&[channels], seed + 1, -1.0).id().unwrap(),
            constant(&[channels], seed + 2, -1.0).id().unwrap(),
            constant(&[channels], seed + 3, 0.5).id().unwrap(),
        ];
        let inputs = inputs.map(|id| builder.var(id));
        builder.apply(BatchNormalization { epsilon: Real(0.1) }, &inputs)
    };
    let conv = Conv { window: Window::plain(2), group: 1 };
    let y = builder.apply(conv, &[x, constant(&[4, 3, 3, 3], 1, -1.0)]);
    let y = norm(y + constant(&[4, 1, 1], 2, -1.0), 4, 10).relu();
    let transpose =
        ConvTranspose { window: Window::plain(2), group: 1, output_padding: vec![0, 0], output_shape: None };
    let y = norm(
        builder.apply(transpose, &[y, constant(&[4, 2, 2, 2], 3, -1.0), constant(&[2], 4, -1.0)]),
        2,
        20,
    );
    let y = y.relu().reshape([2, 32]);
    let y = norm(y.matmul(constant(&[32, 6], 5, -1.0)) + constant(&[6], 6, -1.0), 6, 30);
    let inputs = [y, constant(&[6], 7, -1.0), constant(&[6], 8, -1.0)];
    let y = builder.apply(LayerNormalization { axis: -1, epsilon: Real(1e-3) }, &inputs);
    let vector = |length: usize, seed| constant(&[length], seed, -1.0);
    let group = |scale_per_group| GroupNormalization { groups: 3, epsilon: Real(1e-3), scale_per_group };
    let y = builder.apply(group(false), &[y, vector(6, 41), vector(6, 42)]);
    let y = builder.apply(group(true), &[y, vector(3, 43), vector(3, 44)]).reshape([2, 2, 3]);
    let y = builder.apply(InstanceNormalization { epsilon: Real(1e-3) }, &[y, vector(2, 45), vector(2, 46)]);
    let [x, y] = [x, y].map(|var| var.id().unwrap());
    let graph = builder.finish().unwrap();
    let at = numbers(&[2, 3, 5, 5], 40, -1.0, 1.0);
    let expected = value_of(&graph, x, &at, y);
    let nodes = graph.nodes().len();
    let (merged, biases) = Canonical::Bias.apply(&graph, nodes).unwrap();
    assert_eq!(biases.len(), 2, "{biases:?}");
    let (merged, norms) = Canonical::BatchNormalization.apply(&merged, merged.nodes().len()).unwrap();
    assert_eq!(norms.len(), 3, "{norms:?}");
    let (merged, spelled) = Canonical::Normalization.apply(&merged, merged.nodes().len()).unwrap();
    assert_eq!(spelled.len(), 4, "{spelled:?}");
    assert_close(
        value_of(&merged, x, &at, y).as_slice().unwrap(),
        expected.as_slice().unwrap(),
        "the canonical form",
    );
    let needed = crate::rewrite::prune(&merged, &[y]).unwrap().graph;
    let left = |name: &str| needed.nodes().iter().filter(|node| node.op.name() == name).count();
    let rewritten =
        ["BatchNormalization", "LayerNormalization", "GroupNormalization", "InstanceNormalization"];
    assert_eq!(rewritten.map(left), [0; 4]);
    assert_eq!(left("MatMul"), 0);
}

#[test]
fn relevance_is_conserved_without_biases_and_equals_input_times_gradient() {
    let builder = Builder::default();
    let x = builder.input("x", fact(&[1, 2, 6, 6]));
    let constant = |shape: &[usize], seed| builder.constant(Tensor::from(numbers(shape, seed, -1.0, 1.0)));
    let conv = |x: Var<'_>, w: Var<'_>| {
        let window = Window::plain(2).with_pads([1, 1, 1, 1]);
        let inputs = [x.id().unwrap(), w.id().unwrap()].map(|id| builder.var(id));
        builder.apply(Conv { window, group: 1 }, &inputs)
    };
    let a = conv(x, constant(&[4, 2, 3, 3], 1)).relu();
    let b = (conv(a, constant(&[4, 4, 3, 3], 2)) + a).relu();
    let pooling =
        Pooling { kernel: vec![2, 2], window: Window::plain(2).with_strides([2, 2]), ceil_mode: false };
    let b = builder.apply(MaxPool { pooling, column_major: false }, &[b]);
    let c = builder.apply(GlobalAveragePool, &[b]).reshape([1, 4]);
    let y = c.matmul(constant(&[4, 3], 3)).gather(1, vec![1]);
    let [x, y] = [x, y].map(|var| var.id().unwrap());
    let graph = builder.finish().unwrap();
    let at = numbers(&[1, 2, 6, 6], 9, -1.0, 1.0);
    let value = value_of(&graph, x, &at, y).sum();
    let relevance = |name: &str| {
        let bounds = InputBounds { low: vec![-1.0], high: vec![1.0] };
        let rules = Preset::named(name).unwrap().rules(Some(&bounds)).unwrap();
        let back = backward(graph.clone(), &[(y, y)], &[x], &rules).unwrap();
        assert!(back.coverage.default.is_empty(), "{name}: {:?}", back.coverage.default);
        value_of(&back.graph, x, &at, back.values[0])
    };
    let exact = crate::backprop::gradient(graph.clone(), y, &[x], &RuleSet::new()).unwrap();
    let product = value_of(&exact.graph, x, &at, exact.values[0]) * &at;
    let found = relevance("epsilon");
    for (found, expected) in found.iter().zip(&product) {
        assert!((found - expected).abs() < 1e-5 * value.abs(), "{found} for {expected}");
    }
    for name in Preset::names() {
        // Those that fix the start are no relevance.
        if name == "common" || Preset::named(name).unwrap().start.is_some() {
            continue;
        }
        let sum = relevance(name).sum();
        assert!((sum - value).abs() < 2e-3 * value.abs(), "{name}: {sum} for {value}");
    }
}

#[test]
fn rules_refuse_what_they_are_not_made_for() {
    let refuse = |build: &dyn for<'b> Fn(&'b Builder, Var<'b>) -> Var<'b>, rule: Arc<dyn Rule>| {
        let builder = Builder::default();
        let x = builder.input("x", fact(&[2, 3]));
        let y = build(&builder, x);
        let [x, y] = [x, y].map(|var| var.id().unwrap());
        let rules = RuleSet::new().with(Matcher::kind([Kind::Softmax, Kind::Dense, Kind::Sum]), rule);
        let error = backward(builder.finish().unwrap(), &[(y, y)], &[x], &rules).unwrap_err();
        assert!(error.is_option(), "{error}");
        error.to_string()
    };
    let softmax = refuse(&|_, x| x.softmax(1), Arc::new(Relevance::z_plus(1e-6)));
    assert!(softmax.contains("Softmax") && softmax.contains("z_plus"), "{softmax}");
    let inner = refuse(
        &|builder, x| x.relu().matmul(builder.constant(Tensor::from(numbers(&[3, 2], 1, -1.0, 1.0)))),
        Arc::new(Relevance::z_box(&[0.0], &[1.0], 1e-6)),
    );
    assert!(inner.contains("bounds") && inner.contains("MatMul"), "{inner}");
    let channels = refuse(
        &|builder, x| x.matmul(builder.constant(Tensor::from(numbers(&[3, 2], 1, -1.0, 1.0)))),
        Arc::new(Relevance::z_box(&[0.0, 0.0], &[1.0, 1.0], 1e-6)),
    );
    assert!(channels.contains("2 channels"), "{channels}");
    assert!(Relevance::alpha_beta(2.0, 2.0, 1e-6).unwrap_err().is_option());
}

#[test]
fn files_of_rules_say_what_is_wrong_with_them() {
    let error = |text: &str| Preset::from_toml("mine", text).unwrap_err().to_string();
    assert!(error("").contains("no [[rule]]"));
    assert!(error("[[rule]]\nkind = 'densee'\nrule = 'epsilon'").contains("convolution, dense"));
    assert!(error("[[rule]]\nrule = 'epsilonn'").contains("z_plus"));
    assert!(error("[[rule]]\nrule = 'flat'\ngamma = 1.0").contains("stabilizer"));
    assert!(error("[[rule]]\nrule = 'flat'\ncolour = 1.0").contains("colour"));
    assert!(error("then = 'epsilon_minus'").contains("epsilon_plus"));
    assert!(error("canonical = ['cannon']\nthen = 'epsilon'").contains("batch_normalization"));
    let bounds = Preset::named("epsilon_gamma_box").unwrap().rules(None).unwrap_err().to_string();
    assert!(bounds.contains("--input-range"), "{bounds}");
    for name in Preset::names() {
        let preset = Preset::named(name).unwrap();
        assert!(!preset.about.is_empty() && !preset.source.is_empty(), "{name}");
    }
    let rules = RuleSet::from_toml("then = 'epsilon_plus'").unwrap_err().to_string();
    assert!(rules.contains("--method lrp"), "{rules}");
}

#[test]
fn entries_depend_on_no_other_entry() {
    let builder = Builder::default();
    let x = builder.input("x", fact(&[2, 3]));
    let w = |seed| builder.constant(Tensor::from(numbers(&[3, 3], seed, -1.0, 1.0)));
    let (a, b) = (x.matmul(w(1)), x.relu().matmul(w(2)));
    let y = (a + b).matmul(w(3));
    let ids = [a, b, y].map(|var| var.id().unwrap());
    let graph = builder.finish().unwrap();
    let entries = Matcher::kind([Kind::Dense]).entry().matches(&graph);
    let is_entry = ids.map(|id| entries[graph.producer(id).unwrap().index()]);
    assert_eq!(is_entry, [true, true, false]);
}
