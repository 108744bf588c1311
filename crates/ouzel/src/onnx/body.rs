//! Ops that hold graphs of their own, and functions of the file: their nodes take the place of the op. Loops are
//! unrolled, so how often they run must be known before the network does.

use super::import::{Importer, is_standard};
use super::proto::{AttributeProto, FunctionProto, GraphProto, NodeProto, attribute_type};
use crate::error::{Context, Error, Result, bail};
use crate::evaluate::constant_value;
use crate::graph::{Constant, ValueId};
use crate::op::Op;
use crate::ops::gather::Gather;
use crate::ops::layout::Unsqueeze;
use crate::ops::slice::Concat;
use crate::tensor::{DType, Tensor};

/// A graph among the attributes.
fn body<'n>(node: &'n NodeProto, name: &str) -> Result<&'n GraphProto> {
    match node.attribute.iter().find(|attribute| attribute.name == name).and_then(|found| found.g.as_deref())
    {
        Some(graph) => Ok(graph),
        None => bail!(model, "the attribute '{name}' is missing"),
    }
}

/// A list of integers among the attributes, one for each of `count` things; zeros if it is left out.
fn per_item(node: &NodeProto, name: &str, count: usize) -> Result<Vec<i64>> {
    match node.attribute.iter().find(|attribute| attribute.name == name) {
        None => Ok(vec![0; count]),
        Some(found) if found.ints.len() == count => Ok(found.ints.clone()),
        Some(found) => bail!(model, "attribute '{name}': expected {count} integers, found {:?}", found.ints),
    }
}

impl Importer<'_> {
    /// The outputs of `If`, `Loop` or `Scan`.
    pub(super) fn add_body(&mut self, node: &NodeProto, inputs: &[Option<ValueId>]) -> Result<Vec<ValueId>> {
        match node.op_type.as_str() {
            "If" => self.add_branch(node, inputs),
            "Loop" => self.add_loop(node, inputs),
            _ if self.opset < 9 => self.add_scans(node, inputs),
            _ => self.add_scan(node, inputs),
        }
    }

    fn apply(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId> {
        let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
        let node = self.graph.add_node("", op.into(), &inputs)?;
        Ok(self.graph.node(node).outputs[0])
    }

    fn tensor(&mut self, tensor: Tensor) -> ValueId {
        self.graph.add_constant("", Constant::new(tensor))
    }

    /// The elements of a value that does not depend on the network's inputs.
    fn known_tensor(&mut self, id: ValueId) -> Result<Option<Tensor>> {
        if self.varies(id) { Ok(None) } else { constant_value(&self.graph, id) }
    }

    /// A number or truth value that does not depend on the network's inputs.
    fn known(&mut self, id: ValueId, what: &str) -> Result<i64> {
        let value = self.known_tensor(id)?.map(|tensor| tensor.cast(DType::I64).to_integers());
        match value.transpose()?.as_deref() {
            Some([value]) => Ok(*value),
            Some(_) => bail!(model, "expected {what} to be one value"),
            None => bail!(
                unsupported,
                "{what} depends on the values of the network's input; it is supported as a constant only"
            ),
        }
    }

    /// The outputs of a body, its inputs being given.
    fn add_graph(&mut self, graph: &GraphProto, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        if graph.input.len() != inputs.len() {
            bail!(model, "expected a graph of {} inputs, found one of {}", inputs.len(), graph.input.len());
        }
        let scope = self.open_scope();
        let outputs = self.add_in_scope(graph, inputs);
        self.close_scope(scope);
        outputs
    }

    fn add_in_scope(&mut self, graph: &GraphProto, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        for tensor in &graph.initializer {
            let constant = self.constant(tensor)?;
            let id = self.graph.add_constant("", constant);
            self.name_inside(&tensor.name, id);
        }
        for (input, &id) in graph.input.iter().zip(inputs) {
            self.name_inside(&input.name, id);
        }
        self.add_inner(&graph.node)?;
        let outputs = graph.output.iter().map(|output| self.values.get(&output.name).copied());
        outputs
            .collect::<Option<Vec<ValueId>>>()
            .ok_or_else(|| Error::model("an output of the inner graph is not computed by any of its nodes"))
    }

    /// `If`: the branch that the condition selects.
    fn add_branch(&mut self, node: &NodeProto, inputs: &[Option<ValueId>]) -> Result<Vec<ValueId>> {
        let [Some(condition)] = inputs else { bail!(model, "expected one input, the condition") };
        let branch =
            if self.known(*condition, "the condition")? != 0 { "then_branch" } else { "else_branch" };
        self.add_graph(body(node, branch)?, &[]).context(|| branch)
    }

    /// `Loop`: the body as often as the trip count and the condition say.
    fn add_loop(&mut self, node: &NodeProto, inputs: &[Option<ValueId>]) -> Result<Vec<ValueId>> {
        let body = body(node, "body")?;
        let trips = match inputs.first().copied().flatten() {
            Some(id) => self.known(id, "the trip count")?,
            None => i64::MAX,
        };
        let given = inputs.get(1).copied().flatten();
        let mut holds = match given {
            Some(id) => self.known(id, "the condition")? != 0,
            None => true,
        };
        let states: Option<Vec<ValueId>> = inputs.iter().skip(2).copied().collect();
        let Some(mut states) = states else { bail!(unsupported, "an initial state is missing") };
        let Some(scans) = body.output.len().checked_sub(1 + states.len()) else {
            bail!(model, "the body has too few outputs");
        };
        let mut collected: Vec<Vec<ValueId>> = vec![Vec::new(); scans];
        let mut condition = match given {
            Some(id) => id,
            None => self.tensor(Tensor::scalar(true)),
        };
        let mut trip = 0;
        while trip < trips && holds {
            let mut inner = vec![self.tensor(Tensor::scalar(trip)), condition];
            inner.extend(&states);
            self.count_round()?;
            let outputs = self.add_graph(body, &inner).context(|| format!("round {trip}"))?;
            trip += 1;
            holds = self.known(outputs[0], "the condition at the end of the body")? != 0;
            // A constant, so that the next round need not find out again.
            condition = self.tensor(Tensor::scalar(holds));
            let Some((next, scanned)) = outputs[1..].split_at_checked(states.len()) else {
                bail!(model, "the body has too few outputs");
            };
            states = next.to_vec();
            for state in &mut states {
                // Likewise: what does not depend on the network's inputs is computed once, not in every round.
                if let Some(tensor) = self.known_tensor(*state)? {
                    *state = self.tensor(tensor);
                }
            }
            for (list, value) in collected.iter_mut().zip(scanned) {
                list.push(*value);
            }
        }
        for list in &collected {
            states.push(self.stack(list, 0)?);
        }
        Ok(states)
    }

    /// Joins values along a new axis.
    fn stack(&mut self, values: &[ValueId], axis: i64) -> Result<ValueId> {
        if values.is_empty() {
            bail!(unsupported, "a loop that never runs has no results to join");
        }
        let parts = values
            .iter()
            .map(|&value| self.apply(Unsqueeze { axes: vec![axis] }, &[value]))
            .collect::<Result<Vec<_>>>()?;
        self.apply(Concat { axis }, &parts)
    }

    /// The elements at one place of an axis, without the axis.
    fn at(&mut self, value: ValueId, axis: i64, place: i64) -> Result<ValueId> {
        let place = self.tensor(Tensor::scalar(place));
        self.apply(Gather { axis }, &[value, place])
    }

    fn length(&self, value: ValueId, axis: i64) -> Result<i64> {
        let fact = self.graph.fact(value);
        let axis = crate::op::resolve_axis(axis, fact.rank())?;
        match fact.shape[axis].known() {
            Some(length) => Ok(length),
            None => bail!(
                unsupported,
                "axis {axis} of {fact}, which is looped over, must have a known length: export the model with it"
            ),
        }
    }

    /// `Scan` since opset 9.
    fn add_scan(&mut self, node: &NodeProto, inputs: &[Option<ValueId>]) -> Result<Vec<ValueId>> {
        let body = body(node, "body")?;
        let count = node.attribute.iter().find(|attribute| attribute.name == "num_scan_inputs");
        let count = count.and_then(|found| found.i).and_then(|count| usize::try_from(count).ok());
        let inputs: Option<Vec<ValueId>> = inputs.iter().copied().collect();
        let (Some(count), Some(inputs)) = (count, inputs) else {
            bail!(model, "the attribute 'num_scan_inputs' or an input is missing");
        };
        let Some(states) = inputs.len().checked_sub(count) else { bail!(model, "there are too few inputs") };
        let scans = body.output.len().saturating_sub(states);
        let axes = per_item(node, "scan_input_axes", count)?;
        let backwards = per_item(node, "scan_input_directions", count)?;
        let out_axes = per_item(node, "scan_output_axes", scans)?;
        let out_backwards = per_item(node, "scan_output_directions", scans)?;
        let (mut states, scanned) = (inputs[..states].to_vec(), &inputs[states..]);
        let Some((&first, &axis)) = scanned.first().zip(axes.first()) else {
            bail!(model, "there is nothing to scan");
        };
        let length = self.length(first, axis)?;
        let mut collected: Vec<Vec<ValueId>> = vec![Vec::new(); scans];
        for step in 0..length {
            self.count_round()?;
            let mut inner = states.clone();
            for (index, &value) in scanned.iter().enumerate() {
                let place = if backwards[index] == 0 { step } else { length - 1 - step };
                inner.push(self.at(value, axes[index], place)?);
            }
            let outputs = self.add_graph(body, &inner).context(|| format!("round {step}"))?;
            if outputs.len() != states.len() + scans {
                bail!(model, "the body has too few outputs");
            }
            states = outputs[..states.len()].to_vec();
            for (list, value) in collected.iter_mut().zip(&outputs[states.len()..]) {
                list.push(*value);
            }
        }
        for (index, list) in collected.iter_mut().enumerate() {
            if out_backwards[index] != 0 {
                list.reverse();
            }
            let joined = self.stack(list, out_axes[index])?;
            states.push(joined);
        }
        Ok(states)
    }

    /// `Scan` of opset 8: every tensor has a batch axis first, and the first input may hold lengths.
    fn add_scans(&mut self, node: &NodeProto, inputs: &[Option<ValueId>]) -> Result<Vec<ValueId>> {
        let Some((None, rest)) = inputs.split_first() else {
            bail!(unsupported, "sequences of several lengths (input 0) are not supported");
        };
        let rest: Option<Vec<ValueId>> = rest.iter().copied().collect();
        let Some((rest, &first)) = rest.as_ref().and_then(|rest| Some((rest, rest.first()?))) else {
            bail!(model, "an input is missing");
        };
        let mut node = node.clone();
        for attribute in &mut node.attribute {
            if attribute.name == "directions" {
                attribute.name = "scan_input_directions".into();
            }
        }
        let samples = self.length(first, 0)?;
        let mut results: Vec<Vec<ValueId>> = Vec::new();
        for sample in 0..samples {
            let own =
                rest.iter().map(|&value| self.at(value, 0, sample).map(Some)).collect::<Result<Vec<_>>>()?;
            let outputs = self.add_scan(&node, &own)?;
            results.resize(outputs.len(), Vec::new());
            results.iter_mut().zip(outputs).for_each(|(list, value)| list.push(value));
        }
        results.iter().map(|list| self.stack(list, 0)).collect()
    }

    /// The outputs of a function of the file.
    pub(super) fn add_call(
        &mut self,
        function: &FunctionProto,
        call: &NodeProto,
        inputs: &[Option<ValueId>],
    ) -> Result<Vec<ValueId>> {
        /// Functions that call each other deeper than this call each other in a circle, or might as well.
        const DEEPEST: usize = 40;
        if self.calls >= DEEPEST {
            bail!(
                unsupported,
                "function {}: calls are nested deeper than {DEEPEST}; does it call itself?",
                function.name
            );
        }
        let outside = std::mem::take(&mut self.values);
        let scope = self.open_scope();
        self.calls += 1;
        let opset = self.opset;
        let own = function.opset_import.iter().filter(|entry| is_standard(&entry.domain));
        self.opset = own.map(|entry| entry.version).max().unwrap_or(opset);
        let given = function.input.iter().zip(inputs);
        self.values.extend(given.filter_map(|(name, id)| Some((name.clone(), (*id)?))));
        let mut nodes = function.node.clone();
        nodes.iter_mut().for_each(|node| {
            fill_attributes(node, &call.attribute, &function.attribute_proto);
            // A parameter that the call leaves out is an input that is left out.
            for name in &mut node.input {
                if function.input.contains(name) && !self.values.contains_key(name) {
                    name.clear();
                }
            }
        });
        let outputs = self.add_inner(&nodes).and_then(|()| {
            let outputs = function.output.iter().map(|name| self.values.get(name).copied());
            outputs
                .collect::<Option<Vec<ValueId>>>()
                .ok_or_else(|| Error::model("an output of the function is not computed by any of its nodes"))
        });
        self.close_scope(scope);
        self.calls -= 1;
        (self.values, self.opset) = (outside, opset);
        outputs.context(|| format!("function {}", function.name))
    }
}

/// Gives attributes that refer to those of the call their values; those that have none are left out.
fn fill_attributes(node: &mut NodeProto, given: &[AttributeProto], defaults: &[AttributeProto]) {
    let value = |name: &str| given.iter().chain(defaults).find(|attribute| attribute.name == name);
    node.attribute = std::mem::take(&mut node.attribute)
        .into_iter()
        .filter_map(|mut attribute| {
            if !attribute.ref_attr_name.is_empty() {
                let found = value(&attribute.ref_attr_name)?;
                return Some(AttributeProto { name: attribute.name, ..found.clone() });
            }
            if attribute.r#type == attribute_type::GRAPH
                && let Some(graph) = &mut attribute.g
            {
                graph.node.iter_mut().for_each(|node| fill_attributes(node, given, defaults));
            }
            Some(attribute)
        })
        .collect();
}

#[cfg(test)]
mod tests {
    use super::super::made::{float, graph, integer, integers, model, node, number, scalar, value};
    use super::super::proto::{AttributeProto, ModelProto, TensorProto, data_type};
    use super::*;
    use crate::{Builder, Model, Precision, gradient};
    use prost::Message;

    fn run(model: &ModelProto, x: [f32; 4]) -> Vec<f64> {
        let model = Model::from_bytes(model.encode_to_vec()).unwrap();
        let y = model.find("y").unwrap();
        let x = ndarray::Array1::from(x.to_vec());
        model.run(&x.into(), &[y], Precision::F64).unwrap()[0].to_f64().into_iter().collect()
    }

    /// `x · 2³`, by a loop whose body sees the factor outside of it.
    fn looped(trips: i64) -> ModelProto {
        let inner = GraphProto {
            node: vec![node("Mul", &["state", "two"], &["next"]), node("Identity", &["goes"], &["on"])],
            input: ["round", "goes", "state"].map(|name| value(name, 4)).into(),
            output: ["on", "next"].map(|name| value(name, 4)).into(),
            ..Default::default()
        };
        let mut loops = node("Loop", &["trips", "", "x"], &["y"]);
        loops.attribute = vec![graph("body", inner)];
        model(21, vec![loops], vec![number("trips", data_type::INT64, trips), scalar("two", 2.0)])
    }

    #[test]
    fn loops_are_unrolled() {
        assert_eq!(run(&looped(3), [1.0, 2.0, 3.0, 4.0]), [8.0, 16.0, 24.0, 32.0]);
        assert_eq!(run(&looped(0), [1.0, 2.0, 3.0, 4.0]), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn a_loop_that_is_too_long_is_refused() {
        let model = Model::from_bytes(looped(i64::MAX).encode_to_vec()).unwrap();
        assert!(model.find("y").unwrap_err().to_string().contains("more than"));
    }

    #[test]
    fn a_constant_condition_selects_a_branch() {
        for (condition, expected) in [(1, 3.0), (0, 1.0)] {
            let branch = |op: &str| GraphProto {
                node: vec![node(op, &["x", "two"], &["out"])],
                output: vec![value("out", 4)],
                ..Default::default()
            };
            let mut choice = node("If", &["condition"], &["y"]);
            choice.attribute = vec![graph("then_branch", branch("Add")), graph("else_branch", branch("Pow"))];
            let constants = vec![number("condition", data_type::BOOL, condition), scalar("two", 2.0)];
            assert_eq!(run(&model(21, vec![choice], constants), [1.0; 4]), [expected; 4]);
        }
    }

    #[test]
    fn a_function_of_the_file_takes_the_attributes_of_its_call() {
        let mut leaky = node("LeakyRelu", &["a"], &["b"]);
        leaky.attribute = vec![AttributeProto { ref_attr_name: "slope".into(), ..float("alpha", 0.0) }];
        let function = FunctionProto {
            name: "Leak".into(),
            domain: "own".into(),
            input: vec!["a".into(), "absent".into()],
            output: vec!["b".into()],
            node: vec![leaky],
            attribute_proto: vec![float("slope", 0.25)],
            ..Default::default()
        };
        let call = |attribute: Vec<AttributeProto>| {
            let call = NodeProto { domain: "own".into(), attribute, ..node("Leak", &["x"], &["y"]) };
            ModelProto { functions: vec![function.clone()], ..model(21, vec![call], vec![]) }
        };
        assert_eq!(run(&call(vec![]), [-1.0, 1.0, 0.0, -2.0]), [-0.25, 1.0, 0.0, -0.5]);
        assert_eq!(run(&call(vec![float("slope", 0.5)]), [-1.0, 1.0, 0.0, -2.0]), [-0.5, 1.0, 0.0, -1.0]);
    }

    #[test]
    fn the_gradient_passes_quantization_except_where_it_clips() {
        let nodes = vec![
            node("QuantizeLinear", &["x", "scale", "zero"], &["q"]),
            node("DequantizeLinear", &["q", "scale", "zero"], &["y"]),
        ];
        let constants = vec![scalar("scale", 0.5), number("zero", data_type::INT8, 10)];
        let model = model(21, nodes, constants);
        assert_eq!(run(&model, [0.3, -0.8, 100.0, -100.0]), [0.5, -1.0, 58.5, -69.0]);
        let model = Model::from_bytes(model.encode_to_vec()).unwrap();
        let builder = Builder::new(model.graph().clone());
        let loss = builder.var(model.find("y").unwrap()).sum().id().unwrap();
        let x = model.main_input();
        let made = gradient(builder.finish().unwrap(), loss, &[x], &crate::rules::RuleSet::new()).unwrap();
        let input = Tensor::vector([0.3f32, -0.8, 100.0, -100.0]);
        let found = crate::evaluate(&made.graph, &[(x, input)], &made.values).unwrap();
        assert_eq!(found[0], Tensor::vector([1.0f32, 1.0, 0.0, 0.0]));
    }

    #[test]
    fn old_files_align_the_second_operand_with_an_axis() {
        let mut shape = node("Reshape", &["x"], &["matrix"]);
        shape.attribute = vec![integers("shape", &[2, 2])];
        let mut add = node("Add", &["matrix", "rows"], &["y"]);
        add.attribute = vec![integer("broadcast", 1), integer("axis", 0), integer("consumed_inputs", 0)];
        let rows = TensorProto { dims: vec![2], float_data: vec![10.0, 20.0], ..scalar("rows", 0.0) };
        assert_eq!(
            run(&model(4, vec![shape, add], vec![rows]), [1.0, 2.0, 3.0, 4.0]),
            [11.0, 12.0, 23.0, 24.0]
        );
    }
}
