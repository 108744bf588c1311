//! From a graph and the shapes of its inputs to a plan that can run many times.

use crate::dim::Bindings;
use crate::error::{Result, bail};
use crate::evaluate::{evaluate, in_float64};
use crate::graph::{Graph, ValueId};
use crate::rewrite::{bind, simplify};
use crate::tensor::{DType, Tensor};
use std::fmt;
use std::str::FromStr;

/// What a graph is computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// 32-bit floating point, by the engine.
    #[default]
    F32,
    /// 64-bit floating point, by the reference evaluation: slow and exact.
    F64,
}

impl FromStr for Precision {
    type Err = crate::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f32" => Ok(Self::F32),
            "f64" => Ok(Self::F64),
            other => bail!(option, "unknown precision '{other}': expected f32 or f64"),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

/// The vector instructions that are computed with: `avx512`, `avx2` or `portable`.
///
/// # Errors
/// If the environment variable `OUZEL_SIMD` asks for others than this machine has.
pub fn simd_level() -> Result<&'static str> {
    match ouzel_kernels::Level::detect() {
        Ok(level) => Ok(level.name()),
        Err(error) => bail!(option, "OUZEL_SIMD: {error}"),
    }
}

/// A graph made ready for inputs of certain shapes.
#[derive(Debug)]
pub struct Plan {
    graph: Graph,
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    precision: Precision,
}

impl Plan {
    /// Prepares `graph` to compute `outputs` from inputs of these shapes.
    ///
    /// # Errors
    /// If the shapes do not fit the graph's inputs, or each other; the message names the input or node.
    pub fn new(
        graph: &Graph,
        inputs: &[(ValueId, Vec<usize>)],
        outputs: &[ValueId],
        precision: Precision,
    ) -> Result<Self> {
        let mut bindings = Bindings::new();
        for (id, shape) in inputs {
            bind(&graph.value(*id).name, graph.fact(*id), shape, &mut bindings)?;
        }
        // Widened before anything is folded, so that no constant is computed in float32.
        let simple = match precision {
            Precision::F32 => simplify(graph, outputs, &bindings)?,
            Precision::F64 => simplify(&in_float64(graph)?, outputs, &bindings)?,
        };
        let inputs = inputs.iter().map(|(id, _)| simple.kept(*id)).collect::<Result<Vec<_>>>()?;
        let outputs = outputs.iter().map(|id| simple.kept(*id)).collect::<Result<Vec<_>>>()?;
        Ok(Self { graph: simple.graph, inputs, outputs, precision })
    }

    /// The graph that runs.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Computes the outputs.
    ///
    /// # Errors
    /// If the inputs are not of the shapes and types that the plan was made for.
    pub fn run(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>> {
        let widened = |tensor: &Tensor| match (self.precision, tensor.dtype()) {
            (Precision::F64, DType::F32) => tensor.cast(DType::F64),
            _ => tensor.clone(),
        };
        let inputs: Vec<(ValueId, Tensor)> =
            self.inputs.iter().zip(inputs).map(|(&id, tensor)| (id, widened(tensor))).collect();
        evaluate(&self.graph, &inputs, &self.outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builder::Builder;
    use crate::graph::Fact;

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
}
