//! Tests of writing: each op and each small network is written, read again and run, and must give the same numbers.

use super::export::{OnnxFile, typed_info};
use super::lower::lower;
use super::made;
use super::proto::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, data_type};
use super::writer::tensor_proto;
use crate::backprop::gradient;
use crate::builder::Builder;
use crate::dim::Dim;
use crate::error::Result;
use crate::evaluate::{evaluate, in_float64};
use crate::gradient_check::Sample;
use crate::graph::{Constant, Fact, Graph, ValueId};
use crate::model::Model;
use crate::op::samples;
use crate::rules::RuleSet;
use crate::tensor::{DType, Tensor};
use prost::Message;
use std::collections::HashMap;
use std::path::Path;

/// A node with its inputs, of which those that are drawn are inputs of the graph.
struct Case {
    graph: Graph,
    inputs: Vec<(ValueId, Tensor)>,
    outputs: Vec<(String, ValueId)>,
}

impl Case {
    fn new(sample: &Sample, symbolic: bool) -> Self {
        let (op, given) = sample.in_float32();
        let mut graph = Graph::default();
        let mut inputs = Vec::new();
        let batch = given.iter().flatten().find(|(_, drawn)| *drawn).and_then(|(x, _)| x.shape().first());
        let ids: Vec<Option<ValueId>> = given
            .iter()
            .map(|input| {
                let (tensor, drawn) = input.as_ref()?;
                if !drawn {
                    return Some(graph.add_constant("", Constant::new(tensor.clone())));
                }
                let mut fact = Fact::of(tensor);
                fact.content = None;
                let shape = tensor.shape();
                if symbolic && shape.len() > 1 && shape.first() == batch && batch != Some(&1) {
                    fact.shape[0] = Dim::symbol("batch");
                }
                let id = graph.add_input(&format!("x{}", inputs.len()), fact);
                inputs.push((id, tensor.clone()));
                Some(id)
            })
            .collect();
        let node = graph.add_node("the_node", op, &ids).unwrap();
        let outputs = graph.node(node).outputs.clone();
        let outputs = outputs.into_iter().enumerate().map(|(index, id)| (format!("y{index}"), id)).collect();
        Self { graph, inputs, outputs }
    }

    fn wanted(&self) -> Vec<ValueId> {
        self.outputs.iter().map(|(_, id)| *id).collect()
    }

    fn expected(&self) -> Vec<Tensor> {
        evaluate(&self.graph, &self.inputs, &self.wanted()).unwrap()
    }

    fn written(&self, opset: i64) -> Result<Vec<u8>> {
        OnnxFile::new(&self.graph, &self.outputs, &HashMap::new(), None, opset)?.to_bytes()
    }

    fn read_back(&self, bytes: Vec<u8>) -> Result<Vec<Tensor>> {
        let model = Model::from_bytes(bytes)?;
        let find = |name: &str| model.find(name);
        let inputs = self
            .inputs
            .iter()
            .map(|(id, tensor)| Ok((find(&self.graph.value(*id).name)?, tensor.clone())))
            .collect::<Result<Vec<_>>>()?;
        let outputs = self.outputs.iter().map(|(name, _)| find(name)).collect::<Result<Vec<_>>>()?;
        evaluate(model.graph(), &inputs, &outputs)
    }
}

fn assert_near(found: &[Tensor], expected: &[Tensor], tolerance: f64, title: &str) {
    assert_eq!(found.len(), expected.len(), "{title}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!((found.dtype(), found.shape()), (expected.dtype(), expected.shape()), "{title}");
        let largest = expected.to_f64().iter().fold(1.0f64, |largest, x| largest.max(x.abs()));
        for (a, b) in found.to_f64().iter().zip(expected.to_f64().iter()) {
            let same = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= tolerance * largest;
            assert!(same, "{title}: {a}, expected {b}");
        }
    }
}

/// What files of an opset cannot say, by the start of the message.
fn refused(opset: i64) -> Vec<String> {
    let mut refused = Vec::new();
    for (name, samples) in samples() {
        for (index, sample) in samples.iter().enumerate() {
            if let Err(error) = Case::new(sample, false).written(opset) {
                assert!(error.is_unsupported(), "{name} {index}: {error}");
                refused.push(format!("{name} {index}"));
            }
        }
    }
    refused
}

#[test]
fn every_op_is_written_and_read() {
    for opset in [17, 23] {
        let refused = refused(opset);
        for (name, samples) in samples() {
            for (index, sample) in samples.iter().enumerate() {
                for symbolic in [false, true] {
                    let title = format!("{name} {index} (opset {opset}, symbolic batch: {symbolic})");
                    let case = Case::new(sample, symbolic);
                    match case.written(opset) {
                        Ok(bytes) => {
                            let found =
                                case.read_back(bytes).unwrap_or_else(|error| panic!("{title}: {error}"));
                            assert_near(&found, &case.expected(), 2e-6, &title);
                        }
                        Err(error) => {
                            let known = refused.contains(&format!("{name} {index}"));
                            assert!(known || error.to_string().contains("--size"), "{title}: {error}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn no_two_nodes_have_the_same_name() {
    for opset in [13, 17] {
        for (name, samples) in samples() {
            for sample in &samples {
                let Ok(bytes) = Case::new(sample, true).written(opset) else { continue };
                let graph = ModelProto::decode(&bytes[..]).unwrap().graph.unwrap();
                let names: std::collections::HashSet<&str> =
                    graph.node.iter().map(|node| node.name.as_str()).collect();
                assert_eq!(names.len(), graph.node.len(), "{name}");
            }
        }
    }
}

#[test]
fn little_cannot_be_written() {
    assert_eq!(refused(23), ["MatrixInverse 0"]);
    let old = refused(13).len();
    let default = refused(17);
    assert!(old > default.len());
    let young = ["AveragePool 9", "AveragePool 10", "LpPool 2", "LpPool 3", "MatrixInverse 0"];
    for name in &default {
        let known = young.contains(&name.as_str())
            || ["Resize", "Pad", "Bitwise", "RoundTo"].iter().any(|op| name.starts_with(op));
        assert!(known, "{default:?}");
    }
}

#[test]
fn lowered_ops_compute_the_same() {
    for (name, samples) in samples() {
        for (index, sample) in samples.iter().enumerate() {
            for (opset, symbolic) in [(13, false), (18, true), (23, false)] {
                let title = format!("{name} {index} (opset {opset}, symbolic batch: {symbolic})");
                let case = Case::new(sample, symbolic);
                let graph = in_float64(&case.graph).unwrap();
                let inputs: Vec<_> = case
                    .inputs
                    .iter()
                    .map(|(id, tensor)| {
                        let wide = tensor.dtype().is_float();
                        (*id, if wide { tensor.cast(DType::F64) } else { tensor.clone() })
                    })
                    .collect();
                let expected = evaluate(&graph, &inputs, &case.wanted()).unwrap();
                let lowered = match lower(&graph, &case.wanted(), opset) {
                    Ok(lowered) => lowered,
                    Err(error) => {
                        assert!(symbolic && error.to_string().contains("--size"), "{title}: {error}");
                        continue;
                    }
                };
                let kept = |id: ValueId| lowered.kept(id).unwrap();
                let inputs: Vec<_> = inputs.into_iter().map(|(id, tensor)| (kept(id), tensor)).collect();
                let wanted: Vec<ValueId> = case.wanted().into_iter().map(kept).collect();
                let found = evaluate(&lowered.graph, &inputs, &wanted);
                let found = found.unwrap_or_else(|error| panic!("{title}: {error}"));
                let tolerance = if matches!(name, "Resize" | "Upsample") { 1e-6 } else { 1e-12 };
                assert_near(&found, &expected, tolerance, &title);
            }
        }
    }
}

const ASSETS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets");

/// A network with the gradient of one of its scores, which ends in an output `attribution`.
fn with_gradient(model: &Model, layer: &str) -> (Graph, Vec<(String, ValueId)>) {
    let builder = Builder::new(model.graph().clone());
    let score = builder.var(model.find(layer).unwrap()).gather(1, vec![0]).sum().id().unwrap();
    let graph = builder.finish().unwrap();
    let made = gradient(graph, score, &[model.main_input()], &RuleSet::new()).unwrap();
    let mut outputs: Vec<_> =
        model.output_names().iter().map(|name| (name.clone(), model.find(name.as_str()).unwrap())).collect();
    outputs.push(("attribution".into(), made.values[0]));
    (made.graph, outputs)
}

#[test]
fn gradients_of_small_networks_are_written_and_read() {
    for (file, layer) in
        [("scene_fair", "animal_logits"), ("scene_biased", "animal_logits"), ("steering", "-1")]
    {
        let path = format!("{ASSETS}/{file}.onnx");
        let model = Model::load(&path).unwrap();
        let (graph, outputs) = with_gradient(&model, layer);
        let shape: Vec<usize> = (model.graph().fact(model.main_input()).shape.iter())
            .map(|dim| dim.known().map_or(2, |length| length as usize))
            .collect();
        let count: usize = shape.iter().product();
        let x: Vec<f32> = (0..count).map(|index| (index as f32 * 0.7).sin() * 0.5 + 0.5).collect();
        let x = Tensor::from_shape_vec(&shape, x).unwrap();
        let wanted: Vec<ValueId> = outputs.iter().map(|(_, id)| *id).collect();
        let expected = evaluate(&graph, &[(model.main_input(), x.clone())], &wanted).unwrap();
        for opset in [16, 17, 21] {
            let written = OnnxFile::new(&graph, &outputs, &HashMap::new(), None, opset).unwrap();
            let bytes = written.to_bytes().unwrap();
            let grown = bytes.len() as i64 - std::fs::metadata(&path).unwrap().len() as i64;
            assert!(grown < 64 << 10, "{file} grew by {grown} bytes");
            let back = Model::from_bytes(bytes).unwrap();
            let dim = |model: &Model| model.graph().fact(model.main_input()).shape[0].to_string();
            assert_eq!(dim(&back), dim(&model));
            let wanted: Vec<ValueId> =
                outputs.iter().map(|(name, _)| back.find(name.as_str()).unwrap()).collect();
            let found = evaluate(back.graph(), &[(back.main_input(), x.clone())], &wanted).unwrap();
            assert_near(&found, &expected, 1e-6, &format!("{file}, opset {opset}"));
            // Every tensor of the network has kept its name.
            for (_, value) in model.graph().values().filter(|(_, value)| !value.name.is_empty()) {
                let needed = back.find(&*value.name).is_ok();
                assert!(needed, "{file} has lost '{}'", value.name);
            }
        }
    }
}

#[test]
fn large_files_keep_their_weights_beside() {
    let model = Model::load(format!("{ASSETS}/scene_fair.onnx")).unwrap();
    let (graph, outputs) = with_gradient(&model, "animal_logits");
    let written = OnnxFile::new(&graph, &outputs, &HashMap::new(), None, 17).unwrap();
    let folder = std::env::temp_dir().join(format!("ouzel_export_{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join("large.onnx");
    written.save_within(&path, 1000).unwrap();
    let small = std::fs::metadata(&path).unwrap().len();
    assert!(small < 100_000 && folder.join("large.onnx.data").exists());
    let back = Model::load(&path).unwrap();
    for (id, value) in model.graph().values() {
        if let Some(constant) = model.graph().constant(id) {
            let other = back.graph().constant(back.find(&*value.name).unwrap()).unwrap();
            assert_eq!(other.tensor().unwrap(), constant.tensor().unwrap());
        }
    }
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn gates_select_where_a_gradient_may_be_infinite() {
    for (op, gate, expected) in
        [("Sqrt", "Where", [0.0, 0.0, 0.25, 0.5]), ("Neg", "Mul", [0.0, 0.0, -1.0, -1.0])]
    {
        let nodes = vec![made::node("Relu", &["x"], &["positive"]), made::node(op, &["positive"], &["y"])];
        let model = Model::from_bytes(made::model(17, nodes, Vec::new()).encode_to_vec()).unwrap();
        let builder = Builder::new(model.graph().clone());
        let score = builder.var(model.find("y").unwrap()).sum().id().unwrap();
        let graph = builder.finish().unwrap();
        let made = gradient(graph, score, &[model.main_input()], &RuleSet::new()).unwrap();
        let file =
            OnnxFile::new(&made.graph, &[("gradient".to_owned(), made.values[0])], &HashMap::new(), None, 17)
                .unwrap();
        assert!(file.ops().contains_key(gate), "{op}: {:?}", file.ops());
        let back = Model::from_bytes(file.to_bytes().unwrap()).unwrap();
        let x = Tensor::vector([-1.0f32, 0.0, 4.0, 1.0]);
        let wanted = [back.find("gradient").unwrap()];
        let found = evaluate(back.graph(), &[(back.main_input(), x)], &wanted).unwrap();
        assert_eq!(found[0], Tensor::vector(expected.map(|number| number as f32)), "{op}");
    }
}

#[test]
fn what_has_16_bits_stays_so() {
    let info = |name: &str, shape: &[usize], element_type| {
        let shape = shape.iter().map(|&length| length.into()).collect();
        typed_info(name, &Fact::new(DType::F32, shape), element_type)
    };
    let count = 100 * 7;
    for (code, half, rounding) in [
        (data_type::FLOAT16, half::f16::from_f32(1.1).to_le_bytes(), half::f16::EPSILON.to_f64()),
        (data_type::BFLOAT16, half::bf16::from_f32(1.1).to_le_bytes(), half::bf16::EPSILON.to_f64()),
    ] {
        let weight = TensorProto {
            name: "weight".into(),
            dims: vec![100, 7],
            data_type: code,
            raw_data: Some(half.repeat(count).into()),
            ..Default::default()
        };
        let graph = GraphProto {
            node: vec![NodeProto {
                op_type: "MatMul".into(),
                input: vec!["x".into(), "weight".into()],
                output: vec!["y".into()],
                ..Default::default()
            }],
            initializer: vec![weight],
            input: vec![info("x", &[2, 100], code)],
            output: vec![info("y", &[2, 7], code)],
            ..Default::default()
        };
        let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
        let model = ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..Default::default() };
        let model = Model::from_bytes(model.encode_to_vec()).unwrap();
        let outputs = [("y".to_owned(), model.find("y").unwrap())];
        let file = OnnxFile::new(model.graph(), &outputs, model.narrow(), None, 17).unwrap();
        assert_eq!(
            (file.input_names().collect::<Vec<_>>(), file.output_names().collect()),
            (vec!["x"], vec!["y"])
        );
        assert_eq!(file.ops(), [("Cast", 3), ("MatMul", 1)].into());
        let bytes = file.to_bytes().unwrap();
        assert!(bytes.len() < 2 * count + 500, "{} bytes", bytes.len());
        let stored = ModelProto::decode(&bytes[..]).unwrap().graph.unwrap();
        assert_eq!((&*stored.initializer[0].name, stored.initializer[0].data_type), ("weight", code));
        let written = Model::from_bytes(bytes.clone()).unwrap();
        assert_eq!(*written.narrow(), [("x".to_owned(), code), ("y".to_owned(), code)].into());
        let x = Tensor::from_shape_vec(&[2, 100], vec![0.5f32; 200]).unwrap();
        let run = |model: &Model| {
            let y = model.find("y").unwrap();
            evaluate(model.graph(), &[(model.main_input(), x.clone())], &[y]).unwrap()
        };
        let expected = run(&model);
        // Only the last step, to the output's type, rounds.
        assert_near(&run(&written), &expected, rounding, "16 bits");
    }
}

/// Writes what `conformance/export.py` runs with ONNX Runtime: every sample of every op, with inputs and outputs.
#[test]
#[ignore = "writes files for another program"]
fn write_every_op_for_onnx_runtime() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/export/ops");
    let _ = std::fs::remove_dir_all(&folder);
    for opset in [17, 21] {
        for (name, samples) in samples() {
            for (index, sample) in samples.iter().enumerate() {
                let case = Case::new(sample, true);
                let Ok(bytes) = case.written(opset) else { continue };
                let folder = folder.join(format!("{name}_{index}_opset{opset}"));
                std::fs::create_dir_all(&folder).unwrap();
                std::fs::write(folder.join("model.onnx"), bytes).unwrap();
                for (id, tensor) in &case.inputs {
                    let name = &case.graph.value(*id).name;
                    let message = tensor_proto(name, tensor).encode_to_vec();
                    std::fs::write(folder.join(format!("input_{name}.pb")), message).unwrap();
                }
                for ((name, _), tensor) in case.outputs.iter().zip(case.expected()) {
                    let message = tensor_proto(name, &tensor).encode_to_vec();
                    std::fs::write(folder.join(format!("output_{name}.pb")), message).unwrap();
                }
            }
        }
    }
}
