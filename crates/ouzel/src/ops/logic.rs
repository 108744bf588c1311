//! Comparisons, truth values, and selection by them.

use super::broadcast::{broadcast_facts, broadcast_lengths, broadcast_shapes, map, repeated, wrap, zip};
use super::elementwise::combine_contents;
use crate::backprop::{Back, Cotangents};
use crate::builder::Var;
use crate::dim::Dim;
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::{Fact, Node};
use crate::onnx::{Lowered, Lowering, NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, Op, OpDef};
use crate::tensor::{Array, DType, Element, Tensor, each_dtype, each_float};

macro_rules! comparisons {
    ($($(#[$doc:meta])* $Name:ident: $operator:tt;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $Name;

        impl OpDef for $Name {
            fn name(&self) -> &str {
                stringify!($Name)
            }

            fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
                let (a, b) = (x.get(0)?, x.get(1)?);
                let (_, shape) = broadcast_facts(x)?;
                let compare = |a: &Dim, b: &Dim| Some(Dim::from(i64::from((a.compare(b)? as i8) $operator 0)));
                let truths = combine_contents(a, b, &shape, compare);
                let fact = Fact::new(DType::Bool, shape);
                Ok(vec![match truths {
                    Some(truths) => fact.with_integers(truths),
                    None => fact,
                }])
            }

            fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
                let (a, b) = (x.get(0)?, x.get(1)?);
                Ok(vec![match a {
                    Tensor::F32(a) => zip(a, b.array()?, &|a, b| a $operator b)?,
                    Tensor::F64(a) => zip(a, b.array()?, &|a, b| a $operator b)?,
                    other => {
                        let (a, b) = (other.cast(DType::I64), b.cast(DType::I64));
                        zip(a.array::<i64>()?, b.array::<i64>()?, &|a, b| a $operator b)?
                    }
                }])
            }

            fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
                Ok(back.stops("its output is a truth value"))
            }
        }

        impl Listed for $Name {
            const ONNX: &'static [&'static str] = &[stringify!($Name)];

            fn read(_: &mut NodeReader) -> Result<Self> {
                Ok(Self)
            }

            #[cfg(test)]
            fn samples() -> Vec<Sample> {
                vec![Sample::new($Name, [floats(-1.0, 1.0).input(&[2, 3]), floats(-1.0, 1.0).input(&[3])])]
            }
        }
    )* };
}

comparisons! {
    /// `a == b`, with broadcasting.
    Equal: ==;
    /// `a > b`, with broadcasting.
    Greater: >;
    /// `a >= b`, with broadcasting.
    GreaterOrEqual: >=;
    /// `a < b`, with broadcasting.
    Less: <;
    /// `a <= b`, with broadcasting.
    LessOrEqual: <=;
}

macro_rules! connectives {
    ($($(#[$doc:meta])* $Name:ident: $operator:tt;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $Name;

        impl OpDef for $Name {
            fn name(&self) -> &str {
                stringify!($Name)
            }

            fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
                x.get(1)?;
                let (dtype, shape) = broadcast_facts(x)?;
                if dtype != DType::Bool {
                    bail!(shape, "expected truth values, found {dtype}");
                }
                Ok(vec![Fact::new(dtype, shape)])
            }

            fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
                let (a, b) = (x.get(0)?.array::<bool>()?, x.get(1)?.array::<bool>()?);
                Ok(vec![zip(a, b, &|a, b| a $operator b)?])
            }

            fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
                Ok(back.stops("its output is a truth value"))
            }
        }

        impl Listed for $Name {
            const ONNX: &'static [&'static str] = &[stringify!($Name)];

            fn read(_: &mut NodeReader) -> Result<Self> {
                Ok(Self)
            }

            #[cfg(test)]
            fn samples() -> Vec<Sample> {
                let truths = || Tensor::vector([true, false, true]).into();
                vec![Sample::new($Name, [truths(), truths()])]
            }
        }
    )* };
}

connectives! {
    /// Both, with broadcasting.
    And: &;
    /// Either, with broadcasting.
    Or: |;
    /// Just one of both, with broadcasting.
    Xor: ^;
}

/// The opposite truth value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Not;

impl OpDef for Not {
    fn name(&self) -> &str {
        "Not"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        if x.dtype != DType::Bool {
            bail!(shape, "expected truth values, found {}", x.dtype);
        }
        Ok(vec![Fact::new(x.dtype, x.shape.clone())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        Ok(vec![map(x.get(0)?.array::<bool>()?, &|x: bool| !x)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        Ok(back.stops("its output is a truth value"))
    }
}

impl Listed for Not {
    const ONNX: &'static [&'static str] = &["Not"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        vec![Sample::new(Not, [Tensor::vector([true, false]).into()])]
    }
}

macro_rules! float_tests {
    ($($(#[$doc:meta])* $Name:ident { $($field:ident),* } $self:ident, $x:ident => $test:expr;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub struct $Name {
            $(#[doc = concat!("The attribute ", stringify!($field), ".")] pub $field: bool,)*
        }

        impl OpDef for $Name {
            fn name(&self) -> &str {
                stringify!($Name)
            }

            fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
                Ok(vec![Fact::new(DType::Bool, x.get(0)?.shape.clone())])
            }

            fn run(&$self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
                Ok(vec![each_float!(x.get(0)?, x => map(x, &|$x| $test))])
            }

            fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
                Ok(back.stops("its output is a truth value"))
            }

            fn write(&self, _node: &mut NodeWriter) -> Result<()> {
                $(_node.flag(stringify!($field), self.$field, true);)*
                Ok(())
            }
        }

        impl Listed for $Name {
            const ONNX: &'static [&'static str] = &[stringify!($Name)];

            fn read(_node: &mut NodeReader) -> Result<Self> {
                Ok(Self { $($field: _node.flag_or(stringify!($field), true)?,)* })
            }

            #[cfg(test)]
            fn samples() -> Vec<Sample> {
                vec![Sample::new($Name { $($field: true),* }, [floats(-1.0, 1.0).input(&[2, 3])])]
            }
        }
    )* };
}

float_tests! {
    /// Where x is not a number.
    IsNaN {} self, x => x.is_nan();
    /// Where x is infinite, on the sides that the attributes name.
    IsInf { detect_negative, detect_positive } self, x =>
        x.is_infinite() && if x.is_sign_negative() { self.detect_negative } else { self.detect_positive };
}

/// `y = a` where the condition holds, else `b`, with broadcasting.
///
/// Selects rather than multiplies: what is not selected does not matter, be it infinite or not a number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Where;

impl OpDef for Where {
    fn name(&self) -> &str {
        "Where"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let (condition, a, b) = (x.get(0)?, x.get(1)?, x.get(2)?);
        if condition.dtype != DType::Bool {
            bail!(shape, "expected a condition of bool, found {}", condition.dtype);
        }
        if a.dtype != b.dtype {
            bail!(shape, "expected inputs of one element type, found {} and {}", a.dtype, b.dtype);
        }
        let shape = broadcast_shapes(&broadcast_shapes(&a.shape, &b.shape)?, &condition.shape)?;
        // Of one condition and one alternative at a time, the expressions are known.
        let chosen = combine_contents(a, b, &shape, |a, b| Some((a.clone(), b.clone())));
        let chosen = chosen.zip(condition.known_integers()).and_then(|(pairs, truths)| {
            let truth = |index: usize| truths.get(if truths.len() == 1 { 0 } else { index });
            let pairs = pairs.into_iter().enumerate();
            pairs.map(|(index, (a, b))| Some(if *truth(index)? == 0 { b } else { a })).collect()
        });
        let fact = Fact::new(a.dtype, shape);
        Ok(vec![match chosen {
            Some(chosen) => fact.with_integers(chosen),
            None => fact,
        }])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn select<T: Element>(condition: &Array<bool>, a: &Array<T>, b: &Array<T>) -> Result<Tensor> {
            let shape = broadcast_lengths(&broadcast_lengths(a.shape(), b.shape())?, condition.shape())?;
            let condition = repeated(condition, &shape);
            let (a, b) = (repeated(a, &shape), repeated(b, &shape));
            let choose = |place: usize| if condition[place] { a[place] } else { b[place] };
            Ok(wrap(&shape, (0..condition.len()).map(choose).collect()))
        }
        let condition = x.get(0)?.array::<bool>()?;
        let b = x.get(2)?;
        Ok(vec![each_dtype!(x.get(1)?, a => select(condition, a, b.array()?)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (condition, g) = (back.x(0), back.g(0));
        Ok(back.each_wanted(|index| match index {
            1 => g.select_where(condition),
            _ => g.scalar_like(0.0).select(condition, g),
        }))
    }

    fn lower<'b>(&self, node: &Lowering<'b>) -> Result<Lowered<'b>> {
        // Runtimes are slow to select. Of a rectifier's cotangent that is finite, a product or a rectifier says the same.
        let (condition, a, b) = (node.x(0), node.x(1), node.x(2));
        let is_zero = b.fact().floats().is_some_and(|values| values.iter().all(|&value| value == 0.0));
        if !is_zero || !node.is_backward_of(&["Relu", "Clip", "ThresholdedRelu"]) {
            return Ok(None);
        }
        match is_positive_part(condition, a) {
            true => node.one(a.relu()),
            // 0 times infinity is no number.
            false if node.may_be_infinite(1) => Ok(None),
            false => node.one(a * condition.cast(a.dtype())),
        }
    }
}

/// True if `condition` is `a > 0`.
fn is_positive_part(condition: Var<'_>, a: Var<'_>) -> bool {
    let graph = a.builder().graph();
    let (Ok(condition), Ok(a)) = (condition.id(), a.id()) else { return false };
    match graph.producer(condition).map(|node| graph.node(node)) {
        Some(Node { op: Op::Greater(_), inputs, .. }) => {
            let zero = inputs[1].and_then(|id| graph.fact(id).floats());
            inputs[0] == Some(a) && zero.is_some_and(|values| values == [0.0])
        }
        _ => false,
    }
}

impl Listed for Where {
    const ONNX: &'static [&'static str] = &["Where"];

    fn read(_: &mut NodeReader) -> Result<Self> {
        Ok(Self)
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let condition = || Tensor::vector([true, false, true]).into();
        let x = |shape: &[usize]| floats(-1.0, 1.0).input(shape);
        vec![
            Sample::new(Where, [condition(), x(&[2, 3]), x(&[2, 3])]),
            Sample::new(Where, [condition(), x(&[2, 1]), x(&[3])]),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Constant, Graph, ValueId};
    use crate::op::Op;
    use crate::ops::layout::{Expand, Shape};

    /// What exporters write for `expand(n, -1, -1)`.
    #[test]
    fn lengths_that_are_left_alone_are_found() {
        let mut graph = Graph::default();
        let x = graph.add_input("x", Fact::new(DType::F32, vec![1.into(), Dim::symbol("n"), 3.into()]));
        let integers = |graph: &mut Graph, values: &[i64]| {
            graph.add_constant("", Constant::new(Tensor::vector(values.iter().copied())))
        };
        let add = |graph: &mut Graph, op: Op, inputs: &[ValueId]| -> ValueId {
            let inputs: Vec<Option<ValueId>> = inputs.iter().copied().map(Some).collect();
            let node = graph.add_node("", op, &inputs).unwrap();
            graph.node(node).outputs[0]
        };
        let length = add(&mut graph, Shape::default().into(), &[x]);
        let negative = integers(&mut graph, &[-1, -1, -1]);
        let wanted = integers(&mut graph, &[4, -1, 3]);
        let ones = integers(&mut graph, &[1, 1, 1]);
        let is_left = add(&mut graph, Equal.into(), &[wanted, negative]);
        let target = add(&mut graph, Where.into(), &[is_left, ones, wanted]);
        let y = add(&mut graph, Expand.into(), &[x, target]);
        assert_eq!(graph.fact(y).shape, [4.into(), Dim::symbol("n"), 3.into()]);
        // The lengths of another tensor are never -1.
        let is_left = add(&mut graph, Equal.into(), &[length, negative]);
        let target = add(&mut graph, Where.into(), &[is_left, ones, length]);
        assert_eq!(graph.fact(target).integers(), Some(&graph.fact(x).shape[..]));
    }
}
