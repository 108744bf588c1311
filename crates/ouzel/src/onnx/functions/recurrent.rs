//! Recurrent layers, unrolled over time: the sequence must have a known length.

use super::{NodeReader, Result, ValueId, bail, known_lengths};
use crate::builder::{Builder, Var};
#[cfg(test)]
use crate::gradient_check::{FunctionSample, floats};
#[cfg(test)]
use crate::onnx::Attribute;
use crate::op::Real;
use crate::ops::activation::{Clip, Elu, HardSigmoid, LeakyRelu, Softplus, Softsign, ThresholdedRelu};
use crate::ops::layout::Expand;
use crate::ops::rearrange::ReverseSequence;
use crate::tensor::{DType, Tensor};

/// A nonlinearity of a cell.
struct Activation {
    name: String,
    alpha: Option<f64>,
    beta: Option<f64>,
}

impl Activation {
    fn apply<'b>(&self, x: Var<'b>) -> Result<Var<'b>> {
        let builder = x.builder();
        let alpha = |default: f64| self.alpha.unwrap_or(default);
        let beta = |default: f64| self.beta.unwrap_or(default);
        Ok(match self.name.to_lowercase().as_str() {
            "sigmoid" => x.sigmoid(),
            "tanh" => x.tanh(),
            "relu" => x.relu(),
            "affine" => x * alpha(1.0) + beta(0.0),
            "scaledtanh" => (x * beta(1.0)).tanh() * alpha(1.0),
            "leakyrelu" => builder.apply(LeakyRelu { alpha: Real(alpha(0.01)) }, &[x]),
            "thresholdedrelu" => builder.apply(ThresholdedRelu { alpha: Real(alpha(1.0)) }, &[x]),
            "elu" => builder.apply(Elu { alpha: Real(alpha(1.0)) }, &[x]),
            "hardsigmoid" => {
                builder.apply(HardSigmoid { alpha: Real(alpha(0.2)), beta: Real(beta(0.5)) }, &[x])
            }
            "softsign" => builder.apply(Softsign, &[x]),
            "softplus" => builder.apply(Softplus, &[x]),
            other => bail!(unsupported, "the activation '{other}' is not supported"),
        })
    }
}

/// Which way a layer goes through time.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Forward,
    Backward,
}

/// What all recurrent layers have in common.
struct Layer {
    directions: Vec<Direction>,
    /// Those of each direction, one after the other.
    activations: Vec<Activation>,
    clip: Option<f64>,
    batch_first: bool,
    hidden: i64,
    gates: i64,
}

/// The weights of one direction, transposed where that makes a product of them.
struct Weights<'b> {
    input: Var<'b>,
    state: Var<'b>,
    input_bias: Option<Var<'b>>,
    state_bias: Option<Var<'b>>,
    peepholes: Option<Var<'b>>,
}

impl Layer {
    fn read(node: &mut NodeReader, gates: i64, defaults: &[&str]) -> Result<Self> {
        let directions = match node.string_or("direction", "forward")?.to_lowercase().as_str() {
            "forward" => vec![Direction::Forward],
            "reverse" => vec![Direction::Backward],
            "bidirectional" => vec![Direction::Forward, Direction::Backward],
            other => bail!(model, "attribute 'direction': '{other}' is not known"),
        };
        let names = node.strings("activations")?;
        let names = names.unwrap_or_else(|| {
            let names = defaults.repeat(directions.len());
            names.into_iter().map(str::to_owned).collect()
        });
        if names.len() != defaults.len() * directions.len() {
            bail!(model, "attribute 'activations': expected {} of each direction", defaults.len());
        }
        // Numbers are listed for those activations alone that have any.
        let (mut alphas, mut betas) = (
            node.floats("activation_alpha")?.unwrap_or_default().into_iter(),
            node.floats("activation_beta")?.unwrap_or_default().into_iter(),
        );
        let has = |name: &str, list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(name));
        const ALPHA: &[&str] =
            &["affine", "scaledtanh", "leakyrelu", "thresholdedrelu", "elu", "hardsigmoid"];
        const BETA: &[&str] = &["affine", "scaledtanh", "hardsigmoid"];
        let activations = names.into_iter().map(|name| Activation {
            alpha: has(&name, ALPHA).then(|| alphas.next()).flatten(),
            beta: has(&name, BETA).then(|| betas.next()).flatten(),
            name,
        });
        let state = node.required_input(2)?.clone();
        let Some(hidden) = state.shape.last().and_then(crate::dim::Dim::known) else {
            bail!(unsupported, "the size of the state is not known");
        };
        let layer = Self {
            activations: activations.collect(),
            clip: node.float("clip")?,
            batch_first: node.flag_or("layout", false)?,
            hidden: node.int_or("hidden_size", hidden)?,
            directions,
            gates,
        };
        if layer.hidden != hidden {
            bail!(model, "attribute 'hidden_size': {} does not fit the weights {state}", layer.hidden);
        }
        Ok(layer)
    }

    /// The activation of a direction.
    fn activate<'b>(&self, direction: usize, index: usize, x: Var<'b>) -> Result<Var<'b>> {
        let count = self.activations.len() / self.directions.len();
        let clipped = match self.clip {
            Some(clip) => x.builder().apply(Clip, &[x, x.scalar_like(-clip), x.scalar_like(clip)]),
            None => x,
        };
        self.activations[direction * count + index].apply(clipped)
    }

    fn weights<'b>(&self, x: &[Option<Var<'b>>], direction: usize) -> Result<Weights<'b>> {
        let place = direction as i64;
        let own = |index: usize| {
            let whole = x.get(index).copied().flatten()?;
            Some(whole.slice(0, place, place + 1).squeeze([0]))
        };
        let (Some(input), Some(state)) = (own(1), own(2)) else { bail!(model, "the weights are missing") };
        let rows = self.gates * self.hidden;
        let bias = own(3);
        Ok(Weights {
            input: input.transpose([1, 0]),
            state: state.transpose([1, 0]),
            input_bias: bias.map(|bias| bias.slice(0, 0, rows)),
            state_bias: bias.map(|bias| bias.slice(0, rows, 2 * rows)),
            peepholes: own(7),
        })
    }

    /// One gate's part of the columns, or of a bias.
    fn gate<'b>(&self, x: Var<'b>, gate: i64) -> Var<'b> {
        x.slice(x.rank() - 1, gate * self.hidden, (gate + 1) * self.hidden)
    }

    /// What the state adds to one gate.
    fn recurrent<'b>(&self, weights: &Weights<'b>, state: Var<'b>, gate: i64) -> Var<'b> {
        let product = state.matmul(self.gate(weights.state, gate));
        add(product, weights.state_bias.map(|bias| self.gate(bias, gate)))
    }

    /// A gate that sees the memory too.
    fn peep<'b>(&self, weights: &Weights<'b>, gate: Var<'b>, memory: Var<'b>, index: i64) -> Var<'b> {
        match weights.peepholes {
            Some(peepholes) => gate + memory * self.gate(peepholes, index),
            None => gate,
        }
    }

    /// Runs the layer. `step` gets the direction, the weights, what the input adds to each gate, and the states; it
    /// gives the new states, the first being what the layer puts out.
    fn run<'b>(
        &self,
        builder: &'b Builder,
        x: &[Option<Var<'b>>],
        states: usize,
        step: impl Fn(usize, &Weights<'b>, Var<'b>, &[Var<'b>]) -> Result<Vec<Var<'b>>>,
    ) -> Result<Vec<Var<'b>>> {
        let Some(input) = x.first().copied().flatten() else { bail!(model, "the input is missing") };
        if input.rank() != 3 {
            bail!(shape, "expected an input of rank 3, found {}", input.fact());
        }
        let input = if self.batch_first { input.transpose([1, 0, 2]) } else { input };
        let length = known_lengths(&input.shape()[..1], "the length of the sequence")?[0];
        let lengths = x.get(4).copied().flatten().map(|lengths| lengths.cast(DType::I64));
        let flip = |x: Var<'b>| match lengths {
            Some(lengths) => builder.apply(ReverseSequence { batch_axis: 1, time_axis: 0 }, &[x, lengths]),
            None => x.gather(0, (0..length).rev().collect()),
        };
        let zeros = || {
            let batch = input.dimensions().slice(0, 1, 2);
            let shape = builder.concat(&[batch, builder.integers([self.hidden])], 0);
            builder.apply(Expand, &[input.scalar_like(0.0), shape])
        };
        let (mut outputs, mut finals) = (Vec::new(), vec![Vec::new(); states]);
        for (direction, way) in self.directions.iter().enumerate() {
            let weights = self.weights(x, direction)?;
            let place = direction as i64;
            let mut state: Vec<Var> = (0..states)
                .map(|index| match x.get(5 + index).copied().flatten() {
                    Some(whole) => {
                        let whole = if self.batch_first { whole.transpose([1, 0, 2]) } else { whole };
                        whole.slice(0, place, place + 1).squeeze([0])
                    }
                    None => zeros(),
                })
                .collect();
            let own = if *way == Direction::Backward { flip(input) } else { input };
            // One product for all steps.
            let mut driven = own.matmul(weights.input);
            if let Some(bias) = weights.input_bias {
                driven = driven + bias;
            }
            let mut steps = Vec::new();
            for time in 0..length {
                let driven = driven.slice(0, time, time + 1).squeeze([0]);
                let mut next = step(direction, &weights, driven, &state)?;
                let mut output = next[0];
                if let Some(lengths) = lengths {
                    let runs = lengths.greater(builder.constant(Tensor::scalar(time))).unsqueeze([1]);
                    output = output.select_where(runs);
                    for (new, old) in next.iter_mut().zip(&state) {
                        *new = new.select(runs, *old);
                    }
                }
                state = next;
                steps.push(output.unsqueeze([0]));
            }
            if steps.is_empty() {
                bail!(unsupported, "a sequence without elements is not supported");
            }
            let whole = builder.concat(&steps, 0);
            outputs.push(if *way == Direction::Backward { flip(whole) } else { whole }.unsqueeze([1]));
            finals.iter_mut().zip(state).for_each(|(list, state)| list.push(state.unsqueeze([0])));
        }
        let mut results = vec![builder.concat(&outputs, 1)];
        results.extend(finals.iter().map(|list| builder.concat(list, 0)));
        if self.batch_first {
            results[0] = results[0].transpose([2, 0, 1, 3]);
            results[1..].iter_mut().for_each(|state| *state = state.transpose([1, 0, 2]));
        }
        Ok(results)
    }
}

fn add<'b>(x: Var<'b>, bias: Option<Var<'b>>) -> Var<'b> {
    match bias {
        Some(bias) => x + bias,
        None => x,
    }
}

/// `h = f(x W + h R + b)`. ONNX `RNN` 7, 14, 22.
pub(super) fn rnn(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let layer = Layer::read(node, 1, &["Tanh"])?;
    node.build(|builder, x| {
        layer.run(builder, x, 1, |direction, weights, driven, state| {
            let sum = add(driven + state[0].matmul(weights.state), weights.state_bias);
            Ok(vec![layer.activate(direction, 0, sum)?])
        })
    })
}

/// Gated recurrent unit: gates z, r, h. ONNX `GRU` 7, 14, 22.
pub(super) fn gru(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let layer = Layer::read(node, 3, &["Sigmoid", "Tanh"])?;
    let reset_after = node.flag_or("linear_before_reset", false)?;
    node.build(|builder, x| {
        layer.run(builder, x, 1, |direction, weights, driven, state| {
            let h = state[0];
            let z = layer.activate(direction, 0, layer.gate(driven, 0) + layer.recurrent(weights, h, 0))?;
            let r = layer.activate(direction, 0, layer.gate(driven, 1) + layer.recurrent(weights, h, 1))?;
            let inner = match reset_after {
                true => r * layer.recurrent(weights, h, 2),
                false => layer.recurrent(weights, r * h, 2),
            };
            let new = layer.activate(direction, 1, layer.gate(driven, 2) + inner)?;
            Ok(vec![(-z + 1.0) * new + z * h])
        })
    })
}

/// Long short-term memory: gates i, o, f, c. ONNX `LSTM` 7, 14, 22.
pub(super) fn lstm(node: &mut NodeReader) -> Result<Vec<ValueId>> {
    let layer = Layer::read(node, 4, &["Sigmoid", "Tanh", "Tanh"])?;
    let coupled = node.flag_or("input_forget", false)?;
    node.build(|builder, x| {
        layer.run(builder, x, 2, |direction, weights, driven, state| {
            let (h, c) = (state[0], state[1]);
            let all = add(driven + h.matmul(weights.state), weights.state_bias);
            let i = layer.activate(direction, 0, layer.peep(weights, layer.gate(all, 0), c, 0))?;
            let f = match coupled {
                true => -i + 1.0,
                false => layer.activate(direction, 0, layer.peep(weights, layer.gate(all, 2), c, 2))?,
            };
            let c = f * c + i * layer.activate(direction, 1, layer.gate(all, 3))?;
            let o = layer.activate(direction, 0, layer.peep(weights, layer.gate(all, 1), c, 1))?;
            // The clip bounds what enters the gates, not the memory.
            let shown = layer.activations[direction * 3 + 2].apply(c)?;
            Ok(vec![o * shown, c])
        })
    })
}

#[cfg(test)]
pub(super) fn samples() -> Vec<FunctionSample> {
    let x = |shape: &[usize]| floats(-1.0, 1.0).input(shape);
    let lengths = || Tensor::vector([3i32, 2]).into();
    let text = |value: &str| Attribute::String(value.into());
    // Three steps of two samples of three numbers; a state of two.
    let layer = |op: &'static str, directions: usize, gates: usize| {
        let bias = x(&[directions, 4 * gates]);
        let weights = [x(&[directions, 2 * gates, 3]), x(&[directions, 2 * gates, 2])];
        let [input, state] = weights;
        FunctionSample::new(op, [x(&[3, 2, 3]), input, state, bias, lengths(), x(&[directions, 2, 2])])
            .of_known_size()
    };
    let both = || text("bidirectional");
    let activations = Attribute::Strings(["Softsign", "Affine"].map(str::to_owned).into());
    let mut peepholes = layer("LSTM", 1, 4);
    peepholes.inputs.extend([x(&[1, 2, 2]), x(&[1, 6])]);
    let plain = FunctionSample::new("RNN", [x(&[3, 2, 3]), x(&[1, 2, 3]), x(&[1, 2, 2])]).of_known_size();
    vec![
        plain.with("clip", Attribute::Float(5.0)),
        layer("RNN", 2, 1)
            .with("direction", both())
            .with("activations", activations)
            .with("activation_alpha", Attribute::Floats(vec![0.8])),
        layer("GRU", 1, 3).with("direction", text("reverse")),
        layer("GRU", 2, 3).with("direction", both()).with("linear_before_reset", Attribute::Int(1)),
        peepholes,
        layer("LSTM", 2, 4).with("direction", both()).with("input_forget", Attribute::Int(1)),
    ]
}
