//! The ways in which exporters write units, and what the backward walk makes of them.

use super::recognize;
use crate::graph::{Fact, Graph, ValueId};
use crate::op::Op;
use crate::ops::activation::{Clip, HardSigmoid, Softplus};
use crate::ops::einsum::Einsum;
use crate::ops::logic::IsNaN;
use crate::ops::norm::InstanceNormalization;
use crate::rules::{BackpropModifier, Matcher, RuleSet, TrueGradient};
use crate::rules::{Outcome, rule};
use crate::{Builder, DType, Dim, Real, Tensor, Var, evaluate, gradient};
use ndarray::ArrayD;
use std::f64::consts::{FRAC_1_SQRT_2, SQRT_2};
use std::sync::Arc;

type Make = for<'b> fn(Var<'b>) -> Var<'b>;

/// A network that starts with what `make` adds to an input of this shape, in float64, and its input and output.
fn network(shape: &[i64], make: Make) -> (Graph, ValueId, ValueId) {
    let builder = Builder::new(Graph::default());
    let shape = shape.iter().map(|&length| if length == 0 { Dim::symbol("batch") } else { length.into() });
    let x = builder.input("x", Fact::new(DType::F64, shape.collect()));
    let y = make(x);
    let ids = (x.id().unwrap(), y.id().unwrap());
    (builder.finish().unwrap(), ids.0, ids.1)
}

fn weights<'b>(x: Var<'b>, shape: &[usize]) -> Var<'b> {
    let mut value = 0.3;
    let next = || {
        value = (value * 7.3 + 0.31) % 1.7;
        value
    };
    x.builder().constant(ArrayD::from_shape_simple_fn(shape, next))
}

fn clip<'b>(x: Var<'b>, low: f64, high: f64) -> Var<'b> {
    x.builder().apply(Clip, &[x, x.scalar_like(low), x.scalar_like(high)])
}

/// `(x - mean) / √(variance + ε)`, as PyTorch writes it before opset 17.
fn centered<'b>(x: Var<'b>, axes: &[usize]) -> Var<'b> {
    let centered = x - x.reduce_mean(axes.iter().copied(), true);
    centered / (centered.powf(2.0).reduce_mean(axes.iter().copied(), true) + 1e-5).sqrt()
}

/// `x · inverse + (bias - mean · inverse)`, as Keras writes it.
fn keras_norm<'b>(x: Var<'b>, axes: &[usize]) -> Var<'b> {
    let mean = x.reduce_mean(axes.iter().copied(), true);
    let variance = (x * x).reduce_mean(axes.iter().copied(), true) - mean * mean;
    let inverse = (variance + 1e-3).sqrt().reciprocal() * weights(x, &[6]);
    x * inverse + (weights(x, &[6]) - mean * inverse)
}

/// Query, key and value from projections of tokens.
fn projections<'b>(x: Var<'b>) -> [Var<'b>; 3] {
    [0, 1, 2].map(|part| {
        let joined = x.matmul(weights(x, &[6, 18]));
        joined.slice(2, part * 6, part * 6 + 6)
    })
}

fn attention<'b>(x: Var<'b>, scores: impl Fn(Var<'b>) -> Var<'b>) -> Var<'b> {
    let [query, key, value] = projections(x);
    scores(query.matmul(key.transpose_last_two())).softmax(2).matmul(value)
}

fn group_norm<'b>(x: Var<'b>) -> Var<'b> {
    let grouped = x.reshape([-1, 2, 6]);
    let (ones, zeros) = (weights(x, &[2]), weights(x, &[2]));
    let op = InstanceNormalization { epsilon: Real(1e-5) };
    x.builder().apply(op, &[grouped, ones, zeros]).reshape_like(x)
}

fn einsum<'b>(equation: &str, a: Var<'b>, b: Var<'b>) -> Var<'b> {
    a.builder().apply(Einsum { equation: equation.into() }, &[a, b])
}

/// What is written, the unit that it is, the number of its nodes and inputs, and the shape of the network's input.
type Case = (&'static str, &'static str, usize, usize, &'static [i64], Make);

const CASES: &[Case] = &[
    ("PyTorch's GELU", "Gelu", 5, 1, &[0, 4], |x| x * ((x / SQRT_2).erf() + 1.0) * 0.5),
    ("Keras's GELU", "Gelu", 5, 1, &[0, 4], |x| x * 0.5 * ((x * FRAC_1_SQRT_2).erf() + 1.0)),
    ("PyTorch's tanh GELU", "Gelu", 9, 1, &[0, 4], |x| {
        x * 0.5 * (((x + x * x * x * 0.044_715) * 0.797_884_56).tanh() + 1.0)
    }),
    ("TensorFlow's tanh GELU", "Gelu", 8, 1, &[0, 4], |x| {
        x * 0.5 * (((x + x.powf(3.0) * 0.044_715) * 0.797_884_56).tanh() + 1.0)
    }),
    ("the factored tanh GELU", "Gelu", 9, 1, &[0, 4], |x| {
        x * 0.5 * ((x * 0.797_884_56 * (x * 0.044_715 * x + 1.0)).tanh() + 1.0)
    }),
    ("SiLU", "Swish", 2, 1, &[0, 4], |x| x * x.sigmoid()),
    ("SiLU, the gate first", "Swish", 2, 1, &[0, 4], |x| x.sigmoid() * x),
    ("SiLU by its exponential", "Swish", 4, 1, &[0, 4], |x| x / ((-x).exp() + 1.0)),
    ("the quick GELU", "Swish", 3, 1, &[0, 4], |x| x * (x * 1.702).sigmoid()),
    ("HardSwish", "HardSwish", 4, 1, &[0, 4], |x| x * clip(x + 3.0, 0.0, 6.0) / 6.0),
    ("HardSwish, divided first", "HardSwish", 4, 1, &[0, 4], |x| x * (clip(x + 3.0, 0.0, 6.0) * (1.0 / 6.0))),
    ("HardSwish by a Relu", "HardSwish", 5, 1, &[0, 4], |x| x * (x + 3.0).relu().minimum(6.0) / 6.0),
    ("HardSwish by HardSigmoid", "HardSwish", 2, 1, &[0, 4], |x| {
        let gate = HardSigmoid { alpha: Real(1.0 / 6.0), beta: Real(0.5) };
        x.builder().apply(gate, &[x]) * x
    }),
    ("HardSigmoid", "HardSigmoid", 3, 1, &[0, 4], |x| clip(x + 3.0, 0.0, 6.0) / 6.0),
    ("Keras's HardSigmoid", "HardSigmoid", 3, 1, &[0, 4], |x| clip(x * 0.2 + 0.5, 0.0, 1.0)),
    ("Mish", "Mish", 3, 1, &[0, 4], |x| x * x.builder().apply(Softplus, &[x]).tanh()),
    ("Mish by its logarithm", "Mish", 5, 1, &[0, 4], |x| x * (x.exp() + 1.0).ln().tanh()),
    ("Softplus", "Softplus", 3, 1, &[0, 4], |x| (x.exp() + 1.0).ln()),
    ("the stable Softplus", "Softplus", 7, 1, &[0, 4], |x| x.relu() + ((-x.abs()).exp() + 1.0).ln()),
    ("PyTorch's Softplus", "Softplus", 3, 1, &[0, 4], |x| {
        x.select(x.greater(20.0), x.builder().apply(Softplus, &[x]))
    }),
    ("Keras's PReLU", "PRelu", 5, 2, &[0, 4], |x| x.relu() - weights(x, &[4]) * (-x).relu()),
    ("LeakyRelu by its maximum", "LeakyRelu", 2, 1, &[0, 4], |x| (x * 0.1).maximum(x)),
    ("PyTorch's LayerNorm", "LayerNormalization", 9, 3, &[0, 5, 6], |x| {
        centered(x, &[2]) * weights(x, &[6]) + weights(x, &[6])
    }),
    ("LayerNorm without a bias", "LayerNormalization", 8, 2, &[0, 5, 6], |x| {
        centered(x, &[2]) * weights(x, &[6])
    }),
    ("LayerNorm without weights", "LayerNormalization", 7, 1, &[0, 5, 6], |x| centered(x, &[2])),
    ("LayerNorm over channels", "LayerNormalization", 9, 3, &[0, 6, 2, 2], |x| {
        weights(x, &[6, 1, 1]) * centered(x, &[1]) + weights(x, &[6, 1, 1])
    }),
    ("Keras's LayerNorm", "LayerNormalization", 13, 3, &[0, 5, 6], |x| keras_norm(x, &[2])),
    ("InstanceNorm", "InstanceNormalization", 9, 3, &[0, 6, 2, 2], |x| {
        centered(x, &[2, 3]) * weights(x, &[6, 1, 1]) + weights(x, &[6, 1, 1])
    }),
    ("RMSNorm", "RMSNormalization", 7, 2, &[0, 5, 6], |x| {
        x * (x.powf(2.0).reduce_mean([2], true) + 1e-6).sqrt().reciprocal() * weights(x, &[6])
    }),
    ("PyTorch's GroupNorm", "GroupNormalization", 5, 3, &[0, 4, 3], |x| {
        group_norm(x) * weights(x, &[4, 1]) + weights(x, &[4, 1])
    }),
    ("GroupNorm without weights", "GroupNormalization", 3, 1, &[0, 4, 3], group_norm),
    ("Keras's GroupNorm", "GroupNormalization", 15, 3, &[0, 4, 3], |x| {
        keras_norm(x.reshape([-1, 2, 6]), &[2]).reshape_like(x)
    }),
    ("attention", "Attention", 4, 3, &[0, 5, 6], |x| attention(x, |scores| scores / 2.449)),
    ("attention without a scale", "Attention", 3, 3, &[0, 5, 6], |x| attention(x, |scores| scores)),
    ("attention with a mask", "Attention", 5, 4, &[0, 5, 6], |x| {
        attention(x, |scores| scores * 0.4 + weights(scores, &[5, 5]))
    }),
    ("attention with a filled mask", "Attention", 5, 4, &[0, 5, 6], |x| {
        attention(x, |scores| {
            let mask = weights(scores, &[5, 5]).greater(0.8);
            (scores * 0.4).select(mask, -1e9)
        })
    }),
    ("attention with learned temperatures", "Attention", 5, 5, &[0, 5, 6], |x| {
        attention(x, |scores| scores * weights(scores, &[5, 1]) + weights(scores, &[5, 5]))
    }),
    ("attention that scales both sides", "Attention", 5, 3, &[0, 5, 6], |x| {
        let [query, key, value] = projections(x);
        (query * 0.6).matmul(key.transpose_last_two() * 0.6).softmax(2).matmul(value)
    }),
    ("attention that guards rows without a key", "Attention", 6, 3, &[0, 5, 6], |x| {
        let [query, key, value] = projections(x);
        let soft = (query.matmul(key.transpose_last_two()) * 0.4).softmax(2);
        let none = x.builder().apply(IsNaN {}, &[soft]);
        soft.scalar_like(0.0).select(none, soft).matmul(value)
    }),
    ("attention of shifted windows", "Attention", 8, 5, &[0, 5, 6], |x| {
        attention(x, |scores| {
            let biased = (scores * 0.4 + weights(scores, &[5, 5])).reshape([-1, 1, 5, 5]);
            (biased + weights(scores, &[1, 5, 5])).reshape([-1, 5, 5])
        })
    }),
    ("Keras's attention", "Attention", 4, 3, &[0, 5, 6], |x| {
        let [query, key, value] = projections(x);
        let weights = einsum("bik,bjk->bij", query * 0.4, key).softmax(2);
        einsum("bij,bjk->bik", weights, value)
    }),
];

#[test]
fn what_exporters_write_is_recognised() {
    for (title, name, nodes, inputs, shape, make) in CASES {
        let (graph, _, y) = network(shape, *make);
        let units = recognize(&graph, &[y]);
        let found: Vec<_> =
            units.iter().map(|unit| (unit.name, unit.nodes.len(), unit.inputs.len())).collect();
        assert_eq!(found, [(*name, *nodes, *inputs)], "{title}:\n{graph}");
        assert_eq!(units[0].output, y, "{title}");
    }
}

#[test]
fn what_is_nearly_a_unit_is_none() {
    let cases: &[(&str, &[i64], Make)] = &[
        ("another number", &[0, 4], |x| x * ((x / 1.5).erf() + 1.0) * 0.5),
        ("another factor", &[0, 4], |x| x * ((x / SQRT_2).erf() + 1.0)),
        ("another gate", &[0, 4], |x| x * (x + 1.0).sigmoid()),
        ("a slope above one half", &[0, 4], |x| (x * 2.0).maximum(x)),
        ("moments of different axes", &[0, 5, 6], |x| {
            let centered = x - x.reduce_mean([2], true);
            centered / (centered.powf(2.0).reduce_mean([1], true) + 1e-5).sqrt()
        }),
        ("no ε", &[0, 5, 6], |x| x / x.powf(2.0).reduce_mean([2], true).sqrt()),
        ("a softmax over queries", &[0, 5, 6], |x| {
            let [query, key, value] = projections(x);
            query.matmul(key.transpose_last_two()).softmax(1).matmul(value)
        }),
    ];
    for (title, shape, make) in cases {
        let (graph, _, y) = network(shape, *make);
        assert_eq!(recognize(&graph, &[y]), [], "{title}:\n{graph}");
    }
}

#[test]
fn a_value_that_others_read_or_that_is_asked_for_is_not_inside_a_unit() {
    let builder = Builder::new(Graph::default());
    let x = builder.input("x", Fact::new(DType::F32, vec![4.into()]));
    let gate = x.sigmoid();
    let y = x * gate;
    let (gate, y) = (gate.id().unwrap(), y.id().unwrap());
    let graph = builder.finish().unwrap();
    assert_eq!(recognize(&graph, &[y]).len(), 1);
    assert!(recognize(&graph, &[y, gate]).is_empty());
    let mut with_output = graph.clone();
    with_output.outputs = vec![gate];
    assert!(recognize(&with_output, &[]).is_empty());
    let builder = Builder::new(graph);
    builder.var(gate).relu();
    assert!(recognize(&builder.finish().unwrap(), &[]).is_empty());
}

#[test]
fn a_layer_norm_between_reshapes_is_no_group_norm() {
    let (graph, _, _) = network(&[0, 5, 6], |x| {
        let norm = centered(x.reshape([-1, 6]), &[1]) * weights(x, &[6]) + weights(x, &[6]);
        norm.reshape_like(x)
    });
    let names: Vec<&str> = recognize(&graph, &[]).iter().map(|unit| unit.name).collect();
    assert_eq!(names, ["LayerNormalization"]);
}

#[test]
fn no_node_is_in_two_units() {
    let (graph, _, _) = network(&[0, 5, 6], |x| {
        let norm = centered(x, &[2]) * weights(x, &[6]) + weights(x, &[6]);
        let mixed = x + attention(norm, |scores| scores * 0.4);
        let hidden = mixed * ((mixed / SQRT_2).erf() + 1.0) * 0.5;
        mixed + hidden * hidden.sigmoid()
    });
    let units = recognize(&graph, &[]);
    let names: Vec<&str> = units.iter().map(|unit| unit.name).collect();
    assert_eq!(names, ["LayerNormalization", "Attention", "Gelu", "Swish"]);
    let mut nodes: Vec<_> = units.iter().flat_map(|unit| unit.nodes.clone()).collect();
    let count = nodes.len();
    nodes.sort_unstable();
    nodes.dedup();
    assert_eq!(nodes.len(), count);
}

/// The gradient of the sum of sines of a network's output.
fn slope(case: (&[i64], Make), rules: &RuleSet) -> (Tensor, Vec<String>) {
    let (graph, x, y) = network(case.0, case.1);
    let builder = Builder::new(graph);
    let loss = builder.var(y).sin().sum().id().unwrap();
    let made = gradient(builder.finish().unwrap(), loss, &[x], rules).unwrap();
    let titles = made.coverage.matched.iter().map(|(id, _)| made.coverage.title(&made.graph, *id));
    let titles = titles.collect();
    (at_sample(&made.graph, case.0, x, made.values[0]), titles)
}

/// A value of a network for some input.
fn at_sample(graph: &Graph, shape: &[i64], x: ValueId, wanted: ValueId) -> Tensor {
    let shape: Vec<usize> = shape.iter().map(|&length| length.max(2) as usize).collect();
    let mut value = 0.4;
    let next = || {
        value = (value * 5.7 + 0.77) % 2.9;
        value - 1.3
    };
    let input = Tensor::from(ArrayD::from_shape_simple_fn(shape, next));
    evaluate(graph, &[(x, input)], &[wanted]).unwrap().remove(0)
}

fn assert_near(found: &Tensor, expected: &Tensor, title: &str) {
    for (found, expected) in found.to_f64().iter().zip(&expected.to_f64()) {
        assert!((found - expected).abs() <= 1e-12 * expected.abs().max(1.0), "{title}: {found} {expected}");
    }
}

#[test]
fn the_gradient_of_a_unit_as_one_node_is_that_of_its_nodes() {
    for (title, name, _, _, shape, make) in CASES {
        let (expected, _) = slope((shape, *make), &RuleSet::new());
        assert!(expected.to_f64().iter().any(|value| value.abs() > 1e-3), "{title}");
        let own = rule("own", |back| Ok(Outcome::Applied(back.vjp()?)));
        // At other values of the inputs, which are the same numbers here, the unit is written down once more.
        let again = rule("again", |back| {
            let x: Vec<Option<Var>> = (0..back.arity())
                .map(|index| back.optional_x(index).map(|x| if x.dtype().is_float() { x * 1.0 } else { x }))
                .collect();
            let y = back.again(&x);
            let gap = back.y(0) - y[0];
            Ok(Outcome::Applied(back.vjp_of(vec![Some(back.g(0) + gap * 1e6)])?))
        });
        for rule in [own, again] {
            let (found, titles) = slope((shape, *make), &RuleSet::new().with(Matcher::op(*name), rule));
            assert_eq!(titles, [*name], "{title}");
            assert_near(&found, &expected, title);
        }
    }
}

#[test]
fn a_unit_is_an_op_like_others() {
    for (title, _, _, _, shape, make) in CASES {
        let (expected, _) = slope((shape, *make), &RuleSet::new());
        let (graph, x, y) = network(shape, *make);
        let unit = recognize(&graph, &[y]).remove(0);
        let node = unit.as_node(&graph).unwrap();
        let builder = Builder::new(graph);
        let inputs: Vec<Option<Var>> = (node.inputs.iter())
            .map(|input| input.map(|id| builder.var(id)))
            .map(|input| input.map(|x| if x.dtype().is_float() { x * 1.0 } else { x }))
            .collect();
        let again = builder.apply_all(node.op, &inputs)[0];
        assert_eq!(again.fact(), builder.var(y).fact(), "{title}");
        let loss = again.sin().sum().id().unwrap();
        let made = gradient(builder.finish().unwrap(), loss, &[x], &RuleSet::new()).unwrap();
        assert_near(&at_sample(&made.graph, shape, x, made.values[0]), &expected, title);
    }
}

#[test]
fn a_rule_for_a_unit_hides_its_nodes_and_the_others_do_not() {
    let silu: (&[i64], Make) = (&[3], |x| x * x.sigmoid());
    let (plain, _) = slope(silu, &RuleSet::new());
    let twice = || rule("twice", |back| Ok(Outcome::Applied(back.vjp_of(vec![Some(back.g(0) * 2.0)])?)));
    for matcher in [
        Matcher::op("Swish"),
        Matcher::op("SiLU"),
        Matcher::family("activation"),
        Matcher::family("activation").first(),
        Matcher::op("Swish").and(Matcher::name("*")).last(),
    ] {
        let title = matcher.to_string();
        let (found, titles) = slope(silu, &RuleSet::new().with(matcher, twice()));
        assert_eq!(titles, ["Swish"], "{title}");
        let expected = Tensor::from(plain.to_f64() * 2.0);
        assert_near(&found, &expected, &title);
    }
    // Ops, names and predicates that the unit does not have are about the nodes.
    for matcher in
        [Matcher::op("Sigmoid"), Matcher::predicate("sigmoid", |_, node| matches!(node.op, Op::Sigmoid(_)))]
    {
        let (_, titles) = slope(silu, &RuleSet::new().with(matcher, twice()));
        assert_eq!(titles, ["Sigmoid"]);
    }
    let (_, titles) = slope(silu, &RuleSet::new().with(Matcher::Any, twice()));
    assert_eq!(titles, ["ReduceSum", "Sin", "Mul", "Sigmoid"]);
    let exempt = RuleSet::new()
        .with(Matcher::op("Swish"), Arc::new(TrueGradient))
        .with(Matcher::family("activation"), twice());
    let (found, titles) = slope(silu, &exempt);
    assert!(titles.is_empty());
    assert_near(&found, &plain, "exempt");
}

#[test]
fn modifiers_act_on_units_as_on_the_ops() {
    use crate::ops::activation::{Gelu, HardSwish, Mish, Swish};
    let pairs: [(&str, &str, Make, Make); 4] = [
        (
            "gelu",
            "Gelu",
            |x| x * ((x / SQRT_2).erf() + 1.0) * 0.5,
            |x| x.builder().apply(Gelu { tanh: false }, &[x]),
        ),
        ("silu", "Swish", |x| x * x.sigmoid(), |x| x.builder().apply(Swish { alpha: Real(1.0) }, &[x])),
        (
            "hard_swish",
            "HardSwish",
            |x| x * clip(x + 3.0, 0.0, 6.0) / 6.0,
            |x| x.builder().apply(HardSwish, &[x]),
        ),
        ("mish", "Mish", |x| x * x.builder().apply(Softplus, &[x]).tanh(), |x| x.builder().apply(Mish, &[x])),
    ];
    for (rectifier, name, spelled, op) in pairs {
        let (plain, _) = slope((&[9], op), &RuleSet::new());
        for modifier in ["guided", "rectified"] {
            let modifier = BackpropModifier::named(modifier, &[rectifier]).unwrap();
            let (expected, titles) = slope((&[9], op), modifier.rules());
            assert_eq!(titles, [name]);
            assert_ne!(expected, plain);
            let (found, titles) = slope((&[9], spelled), modifier.rules());
            assert_eq!(titles, [name]);
            assert_near(&found, &expected, rectifier);
        }
    }
}

#[test]
fn units_are_walked_as_one_only_if_a_rule_asks() {
    let (graph, x, y) = network(&[3], |x| x * x.sigmoid());
    let builder = Builder::new(graph);
    let loss = builder.var(y).sum().id().unwrap();
    let rules = BackpropModifier::guided();
    let made = gradient(builder.finish().unwrap(), loss, &[x], rules.rules()).unwrap();
    assert_eq!(made.coverage.units.len(), 1);
    assert!(made.coverage.matched.is_empty());
    assert!(made.coverage.whole.is_empty());
    assert_eq!(made.coverage.default.len(), 3);
}

#[test]
fn a_long_graph_is_searched_in_little_time() {
    let builder = Builder::new(Graph::default());
    let x = builder.input("x", Fact::new(DType::F32, vec![4.into()]));
    let mut value = x;
    for step in 0..4_000 {
        value = match step % 8 {
            0 => value * value.sigmoid(),
            1 => value * value,
            2 | 3 => value * 0.5 + 1.0,
            4 => (value * 0.9) * 0.9 * 0.9,
            5 => value - value.erf(),
            6 => value.tanh() * value,
            _ => value.exp() + 1.0,
        };
    }
    let graph = builder.finish().unwrap();
    let start = std::time::Instant::now();
    let units = recognize(&graph, &[]);
    assert_eq!(units.len(), 500);
    assert!(start.elapsed().as_secs_f64() < 5.0, "{:?}", start.elapsed());
}
