//! Files that nobody should make, and what becomes of them: an error or a result, in little time and memory, never a panic.

use super::made::{
    float, graph, integer, integers, length, model, node, number, numbers, scalar, shaped, symbol, text,
    value,
};
use super::proto::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, data_type,
};
use crate::rules::{BackpropModifier, RuleSet};
use crate::{Model, Plan, Precision, Result, Tensor, gradient};
use prost::Message;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::time::{Duration, Instant};

/// Elements and bytes beyond which a mutated network is not run.
const MOST_ELEMENTS: usize = 1 << 17;
const MOST_BYTES: usize = 1 << 28;

/// Does with a file what people do: looks at it, and explains it.
fn use_model(bytes: Vec<u8>, precision: Precision) -> Result<()> {
    let model = Model::from_bytes(bytes)?;
    let graph = model.graph();
    assert!(model.layers().map(|layer| layer.parameters).max().unwrap_or(0) <= model.parameter_count());
    drop((model.units(), model.preparation()));
    assert!(graph.to_string().len() > graph.nodes().len());
    for name in model.output_names() {
        let _ = model.find(name.as_str());
    }
    let (target, _) = model.default_target(false)?;
    let _ = model.cam_layer(target);
    let guided = BackpropModifier::named("guided", &["relu", "silu", "gelu"])?;
    let rules = if graph.nodes().len().is_multiple_of(2) { RuleSet::new() } else { guided.rules().clone() };
    let made = gradient(graph.clone(), target, &[model.main_input()], &rules)?;
    let mut shapes = Vec::new();
    let mut tensors = Vec::new();
    for &input in model.inputs() {
        let fact = graph.fact(input);
        let shape: Vec<usize> =
            fact.shape.iter().map(|dim| dim.known().map_or(2, |length| length.max(0) as usize)).collect();
        if shape.iter().copied().fold(1, usize::saturating_mul) > MOST_ELEMENTS {
            return Ok(());
        }
        tensors.push(Tensor::from(ndarray::ArrayD::<f32>::from_elem(shape.clone(), 0.5)).cast(fact.dtype));
        shapes.push((input, shape));
    }
    let wanted = [made.values[0], target];
    let plan = Plan::new(&made.graph, &shapes, &wanted, precision)?;
    if plan.memory_bytes() <= MOST_BYTES {
        plan.run(&tensors)?;
    }
    Ok(())
}

/// What is said of a file; an empty text if all is well.
fn outcome(model: &ModelProto) -> String {
    let start = Instant::now();
    let said = use_model(model.encode_to_vec(), Precision::F32)
        .err()
        .map_or(String::new(), |error| error.to_string());
    assert!(start.elapsed() < Duration::from_secs(20), "it took {:?}: {said}", start.elapsed());
    said
}

fn with(mut node: NodeProto, attributes: Vec<AttributeProto>) -> NodeProto {
    node.attribute = attributes;
    node
}

/// A node that makes `y` of `x`.
fn one(op: &str, attributes: Vec<AttributeProto>) -> ModelProto {
    model(17, vec![with(node(op, &["x"], &["y"]), attributes)], vec![])
}

/// The same with an input of another shape.
fn on(shape: &[i64], mut model: ModelProto) -> ModelProto {
    let graph = model.graph.as_mut().unwrap();
    graph.input = vec![shaped(
        "x",
        shape.iter().map(|&dim| if dim < 0 { symbol(&format!("n{dim}")) } else { length(dim) }).collect(),
    )];
    model
}

#[test]
fn attributes_of_the_wrong_type() {
    let cases = [
        ("LeakyRelu", text("alpha", "steep")),
        ("LeakyRelu", integers("alpha", &[1])),
        ("Softmax", text("axis", "last")),
        ("Softmax", float("axis", 1.0)),
        ("Transpose", integer("perm", 0)),
        ("Concat", text("axis", "0")),
        ("Flatten", float("axis", 0.0)),
        ("Gelu", integer("approximate", 1)),
        ("Elu", graph("alpha", GraphProto::default())),
        ("LpNormalization", text("p", "2")),
    ];
    for (op, attribute) in cases {
        let name = attribute.name.clone();
        let mut file = one(op, vec![attribute]);
        file.opset_import[0].version = 20;
        let said = outcome(&file);
        assert!(said.contains(op), "{op} {name}: {said}");
        assert!(said.contains(&format!("'{name}'")), "{op} {name}: {said}");
    }
    let said = outcome(&one("Relu", vec![integer("surprise", 1)]));
    assert!(said.contains("unknown attribute 'surprise'"), "{said}");
}

#[test]
fn axes_that_do_not_exist() {
    for axis in [i64::MIN, -9, -2, 1, 9, i64::MAX] {
        for (op, attribute) in [
            ("Softmax", integer("axis", axis)),
            ("LogSoftmax", integer("axis", axis)),
            ("Concat", integer("axis", axis)),
            ("ArgMax", integer("axis", axis)),
            ("ReduceMean", integers("axes", &[axis])),
            ("LpNormalization", integer("axis", axis)),
            ("Transpose", integers("perm", &[axis])),
            ("Hardmax", integer("axis", axis)),
        ] {
            let said = outcome(&one(op, vec![attribute]));
            assert!(said.contains(op), "{op} {axis}: {said}");
        }
        for op in ["Unsqueeze", "Squeeze", "ReduceSum"] {
            let file = model(17, vec![node(op, &["x", "axes"], &["y"])], vec![numbers("axes", &[axis])]);
            // Unsqueeze makes one more axis.
            if (op, axis) != ("Unsqueeze", 1) && (op, axis) != ("Unsqueeze", -2) {
                assert!(outcome(&file).contains(op), "{op} {axis}: {}", outcome(&file));
            }
        }
        let gather = with(node("Gather", &["x", "index"], &["y"]), vec![integer("axis", axis)]);
        assert!(outcome(&model(17, vec![gather], vec![numbers("index", &[0])])).contains("Gather"));
    }
    let twice = on(&[2, 2], one("Transpose", vec![integers("perm", &[0, 0])]));
    assert!(outcome(&twice).contains("Transpose"));
    // Those that do exist count from the end.
    for op in ["Softmax", "LogSoftmax", "LpNormalization"] {
        assert_eq!(outcome(&on(&[2, 3], one(op, vec![integer("axis", -2)]))), "", "{op}");
    }
}

#[test]
fn shapes_that_do_not_fit() {
    let three = TensorProto { dims: vec![3], float_data: vec![1.0; 3], ..scalar("w", 0.0) };
    for op in ["Add", "Sub", "Mul", "Div", "Pow", "Max", "MatMul", "PRelu", "Where"] {
        let inputs: &[&str] = if op == "Where" { &["x", "x", "w"] } else { &["x", "w"] };
        let said = outcome(&model(17, vec![node(op, inputs, &["y"])], vec![three.clone()]));
        assert!(said.contains(op), "{op}: {said}");
    }
    let said = outcome(&model(17, vec![node("Conv", &["x", "w"], &["y"])], vec![three]));
    assert!(said.contains("Conv"), "{said}");
}

#[test]
fn tensors_without_elements() {
    let empty = || TensorProto { dims: vec![0], ..TensorProto { float_data: vec![], ..scalar("w", 0.0) } };
    for op in ["Add", "Mul", "MatMul", "Concat", "Max", "Conv", "PRelu", "Expand", "Gather", "Clip"] {
        let attributes = if op == "Concat" { vec![integer("axis", 0)] } else { vec![] };
        outcome(&model(17, vec![with(node(op, &["x", "w"], &["y"]), attributes)], vec![empty()]));
    }
    // Nothing is left of x, and then something is done with that.
    let constants =
        || vec![numbers("none", &[0]), numbers("zero", &[0]), numbers("axes", &[1]), scalar("half", 0.5)];
    let ops: &[(&str, Vec<AttributeProto>)] = &[
        ("Relu", vec![]),
        ("Softmax", vec![integer("axis", 1)]),
        ("LogSoftmax", vec![integer("axis", 0)]),
        ("ReduceMax", vec![]),
        ("ReduceMean", vec![]),
        ("ReduceProd", vec![integers("axes", &[1])]),
        ("ReduceLogSumExp", vec![integers("axes", &[1])]),
        ("ArgMax", vec![integer("axis", 1)]),
        ("Flatten", vec![]),
        ("Transpose", vec![]),
        ("MaxPool", vec![integers("kernel_shape", &[1])]),
        ("AveragePool", vec![integers("kernel_shape", &[1])]),
        ("GlobalAveragePool", vec![]),
        ("GlobalMaxPool", vec![]),
        ("LRN", vec![integer("size", 3)]),
        ("LpNormalization", vec![]),
        ("MeanVarianceNormalization", vec![integers("axes", &[0, 2])]),
        ("DepthToSpace", vec![integer("blocksize", 1)]),
        ("CumSum", vec![]),
    ];
    for shape in [&[2, 4][..], &[1, 4, 3], &[1, 4, 2, 2]] {
        for (op, attributes) in ops {
            let inputs: &[&str] = if *op == "CumSum" { &["part", "axes"] } else { &["part"] };
            let nodes = vec![
                node("Slice", &["x", "zero", "none", "axes"], &["part"]),
                with(node(op, inputs, &["y"]), attributes.clone()),
            ];
            let file = on(shape, model(13, nodes, constants()));
            outcome(&file);
            let _ = use_model(file.encode_to_vec(), Precision::F64);
        }
    }
}

#[test]
fn graphs_that_are_none() {
    let cases: Vec<(Vec<NodeProto>, Vec<TensorProto>, &str)> = vec![
        (
            vec![node("Relu", &["b"], &["a"]), node("Relu", &["a"], &["b"]), node("Relu", &["b"], &["y"])],
            vec![],
            "cycle",
        ),
        (vec![node("Relu", &["y"], &["y"])], vec![], "cycle"),
        (
            vec![node("Relu", &["x"], &["y"]), node("Relu", &["x"], &["y"])],
            vec![],
            "two tensors are called 'y'",
        ),
        (
            vec![node("Relu", &["x"], &["x"]), node("Relu", &["x"], &["y"])],
            vec![],
            "two tensors are called 'x'",
        ),
        (
            vec![node("Relu", &["x"], &["y"])],
            vec![scalar("w", 1.0), scalar("w", 2.0)],
            "two tensors are called 'w'",
        ),
        (vec![node("Relu", &["x"], &["w"])], vec![scalar("w", 1.0)], "two tensors are called 'w'"),
        (vec![node("Relu", &["gone"], &["y"])], vec![], "'gone'"),
        (vec![node("Relu", &["x"], &["other"])], vec![], "'y' is not computed"),
        (vec![node("Relu", &[], &["y"])], vec![], "Relu"),
        (vec![node("Add", &["x", ""], &["y"])], vec![], "Add"),
        (vec![node("Relu", &["x"], &[])], vec![], "'y' is not computed"),
        (vec![node("Split", &["x"], &["y", "", "", "z", "u", "v", "w"])], vec![], "Split"),
        (vec![node("", &["x"], &["y"])], vec![], "not supported"),
        (vec![], vec![], "'y' is not computed"),
    ];
    for (nodes, constants, expected) in cases {
        let said = outcome(&model(17, nodes, constants));
        assert!(said.contains(expected), "expected {expected:?}, found {said:?}");
    }
}

#[test]
fn sizes_that_no_machine_has() {
    let huge = 1i64 << 40;
    let vector = |values: &[i64]| numbers("n", values);
    let cases: Vec<(&str, ModelProto)> = vec![
        ("an input", on(&[huge, huge], one("Relu", vec![]))),
        (
            "a weight",
            model(
                17,
                vec![node("Add", &["x", "w"], &["y"])],
                vec![TensorProto { dims: vec![huge, huge], float_data: vec![], ..scalar("w", 0.0) }],
            ),
        ),
        (
            "a weight without elements",
            model(
                17,
                vec![node("Add", &["x", "w"], &["y"])],
                vec![TensorProto { dims: vec![huge, huge, 0], float_data: vec![], ..scalar("w", 0.0) }],
            ),
        ),
        (
            "a negative weight",
            model(
                17,
                vec![node("Add", &["x", "w"], &["y"])],
                vec![TensorProto { dims: vec![-4], float_data: vec![1.0], ..scalar("w", 0.0) }],
            ),
        ),
        ("Expand", model(17, vec![node("Expand", &["x", "n"], &["y"])], vec![vector(&[huge, huge, 4])])),
        ("Tile", model(17, vec![node("Tile", &["x", "n"], &["y"])], vec![vector(&[i64::MAX])])),
        ("Tile", model(17, vec![node("Tile", &["x", "n"], &["y"])], vec![vector(&[huge])])),
        ("Pad", model(17, vec![node("Pad", &["x", "n"], &["y"])], vec![vector(&[huge, huge])])),
        ("Pad", model(17, vec![node("Pad", &["x", "n"], &["y"])], vec![vector(&[i64::MAX, i64::MAX])])),
        ("Pad", model(17, vec![node("Pad", &["x", "n"], &["y"])], vec![vector(&[i64::MIN, 0])])),
        ("Reshape", model(17, vec![node("Reshape", &["x", "n"], &["y"])], vec![vector(&[i64::MAX, -1])])),
        ("Reshape", model(17, vec![node("Reshape", &["x", "n"], &["y"])], vec![vector(&[-1, -1])])),
        ("Reshape", model(17, vec![node("Reshape", &["x", "n"], &["y"])], vec![vector(&[-7])])),
        (
            "ConstantOfShape",
            model(
                17,
                vec![node("ConstantOfShape", &["n"], &["c"]), node("Add", &["x", "c"], &["y"])],
                vec![vector(&[huge, 4])],
            ),
        ),
        ("Resize", model(17, vec![node("Resize", &["x", "", "", "n"], &["y"])], vec![vector(&[huge])])),
        (
            "OneHot",
            model(
                17,
                vec![
                    node("ArgMax", &["x"], &["i"]),
                    node("OneHot", &["i", "n", "v"], &["o"]),
                    node("Add", &["x", "o"], &["y"]),
                ],
                vec![
                    vector(&[huge]),
                    TensorProto { dims: vec![2], float_data: vec![0.0, 1.0], ..scalar("v", 0.0) },
                ],
            ),
        ),
        ("TopK", model(17, vec![node("TopK", &["x", "n"], &["y", "i"])], vec![vector(&[huge])])),
        ("Gather", model(17, vec![node("Gather", &["x", "n"], &["y"])], vec![vector(&[i64::MIN])])),
        ("Slice", model(17, vec![node("Slice", &["x", "n", "n"], &["y"])], vec![vector(&[i64::MIN])])),
        ("Split", model(17, vec![node("Split", &["x", "n"], &["y", "z"])], vec![vector(&[i64::MAX, 1])])),
        ("DepthToSpace", on(&[1, 4, 2, 2], one("DepthToSpace", vec![integer("blocksize", 1 << 31)]))),
        ("SpaceToDepth", on(&[1, 4, 2, 2], one("SpaceToDepth", vec![integer("blocksize", 0)]))),
        ("MaxPool", on(&[1, 1, 8], one("MaxPool", vec![integers("kernel_shape", &[i64::MAX])]))),
        ("MaxPool", on(&[1, 1, 8], one("MaxPool", vec![integers("kernel_shape", &[0])]))),
        (
            "MaxPool",
            on(&[1, 1, 8], one("MaxPool", vec![integers("kernel_shape", &[2]), integers("strides", &[0])])),
        ),
        ("LRN", on(&[1, 1, 8], one("LRN", vec![integer("size", i64::MAX)]))),
    ];
    for (title, file) in cases {
        let start = Instant::now();
        let said = outcome(&file);
        assert!(start.elapsed() < Duration::from_secs(5), "{title}");
        let may_be_fine = ["a weight without elements", "Slice", "an input", "LRN"];
        assert!(!said.is_empty() || may_be_fine.contains(&title), "{title}: nothing was said");
        let _ = use_model(file.encode_to_vec(), Precision::F64);
    }
    // Each step doubles the length.
    let mut nodes: Vec<NodeProto> = Vec::new();
    for step in 0..200 {
        let (from, to) =
            (if step == 0 { "x".to_owned() } else { format!("v{step}") }, format!("v{}", step + 1));
        nodes.push(with(node("Concat", &[&from, &from], &[&to]), vec![integer("axis", 0)]));
    }
    nodes.push(node("Relu", &["v200"], &["y"]));
    let said = outcome(&model(17, nodes, vec![]));
    assert!(said.contains("memory"), "{said}");
}

/// A loop around `nodes`, which carries one state.
fn looped(trips: i64, nodes: Vec<NodeProto>, carried: &str, start: &str) -> NodeProto {
    let body = GraphProto {
        node: nodes,
        input: ["round", "goes", "state"].map(|name| value(name, 4)).into(),
        output: ["goes", carried].map(|name| value(name, 4)).into(),
        ..Default::default()
    };
    let trips = if trips == i64::MAX { "endless" } else { "trips" };
    with(node("Loop", &[trips, "", start], &["y"]), vec![graph("body", body)])
}

#[test]
fn loops_without_an_end() {
    let constants = || {
        vec![
            number("endless", data_type::INT64, i64::MAX),
            number("trips", data_type::INT64, 100_000),
            scalar("one", 1.0),
            TensorProto { dims: vec![100], float_data: vec![1.0; 100], ..scalar("many", 0.0) },
        ]
    };
    let add = |other: &str| node("Add", &["state", other], &["next"]);
    for trips in [i64::MAX, 100_000] {
        for (nodes, carried, start) in
            [(vec![], "state", "x"), (vec![add("one")], "next", "x"), (vec![add("many")], "next", "many")]
        {
            let is_short = trips < i64::MAX && (nodes.is_empty() || start == "many");
            let mut file = model(21, vec![looped(trips, nodes, carried, start)], constants());
            if start == "many" {
                file.graph.as_mut().unwrap().node.push(node("Mul", &["x", "y"], &["z"]));
            }
            let said = outcome(&file);
            assert!(said.contains("more than") || is_short, "{trips}: {said}");
        }
    }
    // A loop in a loop.
    let inner = with(
        node("Loop", &["trips", "", "state"], &["next"]),
        looped(2, vec![add("one")], "next", "x").attribute,
    );
    let said = outcome(&model(21, vec![looped(100_000, vec![inner], "next", "x")], constants()));
    assert!(said.contains("two tensors") || said.contains("more than"), "{said}");
    // A scan over more places than there are.
    let body = GraphProto {
        node: vec![node("Add", &["state", "place"], &["next"]), node("Identity", &["next"], &["out"])],
        input: ["state", "place"].map(|name| value(name, 1)).into(),
        output: ["next", "out"].map(|name| value(name, 1)).into(),
        ..Default::default()
    };
    let scan = with(
        node("Scan", &["one", "x"], &["last", "y"]),
        vec![graph("body", body), integer("num_scan_inputs", 1)],
    );
    let said = outcome(&on(&[i64::MAX], model(21, vec![scan], constants())));
    assert!(said.contains("more than"), "{said}");
}

#[test]
fn functions_that_call_themselves_or_too_many() {
    let function = |name: &str, node: Vec<NodeProto>| FunctionProto {
        name: name.into(),
        domain: "own".into(),
        input: vec!["a".into()],
        output: vec!["b".into()],
        node,
        ..Default::default()
    };
    let call =
        |name: &str, from: &str, to: &str| NodeProto { domain: "own".into(), ..node(name, &[from], &[to]) };
    let file = |functions: Vec<FunctionProto>, name: &str| ModelProto {
        functions,
        ..model(21, vec![call(name, "x", "y")], vec![])
    };
    let said = outcome(&file(vec![function("F", vec![call("F", "a", "b")])], "F"));
    assert!(said.contains("does it call itself?"), "{said}");
    let said = outcome(&file(
        vec![function("F", vec![call("G", "a", "b")]), function("G", vec![call("F", "a", "b")])],
        "F",
    ));
    assert!(said.contains("does it call itself?"), "{said}");
    // Each calls the next one twice; the last one does nothing.
    let mut functions = vec![function("F30", vec![node("Identity", &["a"], &["b"])])];
    for level in 0..30 {
        let next = format!("F{}", level + 1);
        functions.push(function(&format!("F{level}"), vec![call(&next, "a", "m"), call(&next, "m", "b")]));
    }
    let said = outcome(&file(functions, "F0"));
    assert!(said.contains("more than"), "{said}");
}

#[test]
fn weights_that_are_no_numbers() {
    for weight in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE / 4.0] {
        let nodes = vec![
            node("Mul", &["x", "w"], &["a"]),
            node("Sigmoid", &["a"], &["b"]),
            node("Mul", &["a", "b"], &["y"]),
        ];
        assert_eq!(outcome(&model(17, nodes, vec![scalar("w", weight)])), "");
    }
}

/// A chain in which each step is given by `step`: number, from, to.
fn chain(count: usize, step: impl Fn(usize, &str, &str) -> NodeProto) -> ModelProto {
    let name = |place: usize| match place {
        0 => "x".to_owned(),
        place if place == count => "y".to_owned(),
        place => format!("v{place}"),
    };
    let nodes = (0..count).map(|place| step(place, &name(place), &name(place + 1))).collect();
    model(
        17,
        nodes,
        vec![scalar("one", 1.0), scalar("less", 0.999), numbers("shape", &[2, 2]), numbers("flat", &[4])],
    )
}

/// Chains of the ops that are treated in different ways.
fn chains(count: usize) -> Vec<(&'static str, ModelProto)> {
    let pool = || vec![integers("kernel_shape", &[2]), integers("strides", &[1]), integers("pads", &[1, 0])];
    vec![
        ("activations", chain(count, |_, from, to| node("Relu", &[from], &[to]))),
        ("sums", chain(count, |_, from, to| node("Add", &[from, "one"], &[to]))),
        ("products with itself", chain(count, |_, from, to| node("Mul", &[from, from], &[to]))),
        ("sums with the input", chain(count, |_, from, to| node("Add", &[from, "x"], &[to]))),
        (
            "many kinds",
            chain(count, |place, from, to| match place % 7 {
                0 => node("Sigmoid", &[from], &[to]),
                1 => node("Mul", &[from, "less"], &[to]),
                2 => node("Softmax", &[from], &[to]),
                3 => node("Sub", &["one", from], &[to]),
                4 => node("Erf", &[from], &[to]),
                5 => node("Identity", &[from], &[to]),
                _ => node("Tanh", &[from], &[to]),
            }),
        ),
        (
            "reshapes",
            chain(count / 2 * 2, |place, from, to| {
                node("Reshape", &[from, if place % 2 == 0 { "shape" } else { "flat" }], &[to])
            }),
        ),
        (
            "pooling of any length",
            on(&[1, 1, -1], chain(count, |_, from, to| with(node("AveragePool", &[from], &[to]), pool()))),
        ),
        (
            "strides over any length",
            on(
                &[1, 1, -1],
                chain(count, |_, from, to| {
                    let attributes = vec![
                        integers("kernel_shape", &[2]),
                        integers("strides", &[2]),
                        integers("pads", &[1, 1]),
                    ];
                    with(node("MaxPool", &[from], &[to]), attributes)
                }),
            ),
        ),
        ("transpositions", on(&[2, 2], chain(count, |_, from, to| node("Transpose", &[from], &[to])))),
        ("matrix products", on(&[2, 2], chain(count, |_, from, to| node("MatMul", &[from, from], &[to])))),
    ]
}

#[test]
fn deep_chains() {
    for (title, file) in chains(20_000) {
        let start = Instant::now();
        let said = use_model(file.encode_to_vec(), Precision::F32)
            .err()
            .map_or(String::new(), |error| error.to_string());
        println!("{title}: {:?} {said}", start.elapsed());
        assert!(said.is_empty() || title.contains("any length"), "{title}: {said}");
        // A busy machine keeps this, and quadratic work does not.
        assert!(start.elapsed() < Duration::from_secs(180), "{title}: {:?}", start.elapsed());
    }
}

#[test]
fn a_graph_of_ten_thousand_nodes_loads_at_once() {
    for (title, file) in chains(10_000) {
        let bytes = file.encode_to_vec();
        let start = Instant::now();
        let model = Model::from_bytes(bytes).unwrap();
        println!("{title}: {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(15), "{title}: {:?}", start.elapsed());
        assert!(model.layers().len() >= 10_000);
    }
}

/// The peak of the process's memory in bytes, where the system tells it.
fn peak() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? << 10)
}

/// Changes a few bytes: other values, the ends of integers, parts left out, twice or elsewhere.
fn mutated(bytes: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..=rng.next_u32() % 3 {
        if bytes.len() < 4 {
            break;
        }
        // Weights make up most of a file, but what is interesting stands around them.
        let span = if rng.next_u32().is_multiple_of(2) { bytes.len() } else { bytes.len().min(600) };
        let at = rng.next_u64() as usize % span;
        let end = (at + 1 + rng.next_u64() as usize % 12).min(bytes.len());
        match rng.next_u32() % 8 {
            0 => bytes[at] = rng.next_u32() as u8,
            1 => bytes[at] ^= 1 << (rng.next_u32() % 8),
            2 => bytes[at] = bytes[at].wrapping_add(1),
            3 => bytes[at..end].fill(0xff),
            4 => drop(bytes.drain(at..end)),
            5 => {
                let part = bytes[at..end].to_vec();
                bytes.splice(at..at, part);
            }
            6 => bytes.truncate(at),
            _ => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][rng.next_u32() as usize % 5],
        }
    }
    bytes
}

#[test]
fn mutated_files() {
    let folder = |path: &str| format!("{}/../../{path}", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<std::path::PathBuf> = Vec::new();
    for path in ["crates/ouzel-cli/tests/data", "assets"] {
        let entries = std::fs::read_dir(folder(path)).unwrap().map(|entry| entry.unwrap().path());
        files.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "onnx")));
    }
    files.sort();
    assert!(files.len() > 10);
    let mut rng = ChaCha8Rng::seed_from_u64(20);
    let (mut fine, mut refused) = (0, 0);
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let rounds = if bytes.len() < 10_000 { 400 } else { 40 };
        for round in 0..rounds {
            let changed = mutated(&bytes, &mut rng);
            let start = Instant::now();
            match use_model(changed, Precision::F32) {
                Ok(()) => fine += 1,
                Err(_) => refused += 1,
            }
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "{} {round}: {:?}",
                file.display(),
                start.elapsed()
            );
        }
    }
    println!("{fine} mutated files are used, {refused} are refused");
    assert!(fine > 100 && refused > 100, "{fine} {refused}");
    assert!(peak().is_none_or(|peak| peak < 4 << 30), "{:?}", peak());
}
