//! Sums of products over named axes: the general form of matrix products, transposes, diagonals and traces.

use super::broadcast::broadcast_shapes;
use super::matmul::product;
use super::slice::allocatable;
use crate::backprop::{Back, Cotangent, Cotangents};
use crate::dim::{Dim, known_shape};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef};
use crate::tensor::{Array, DType, Float, Tensor};
use ndarray::{ArrayD, Axis, IxDyn};

/// Sums of products, as the equation says: `ij,jk->ik` is the matrix product.
///
/// Each letter names an axis; letters that the output leaves out are summed over. `...` stands for leading axes that
/// broadcast. Without `->` the output has the letters that occur once, in alphabetical order. A letter that a term
/// repeats takes the diagonal, through which no gradient is supported. ONNX `Einsum` 12.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Einsum {
    /// The equation, as in the file.
    pub equation: String,
}

/// The name of an axis: its letter.
type Letter = char;

/// An equation for inputs of known ranks, without ellipses: each of their axes has a letter of its own.
#[derive(Debug)]
struct Terms {
    inputs: Vec<Vec<Letter>>,
    output: Vec<Letter>,
}

/// Letters for axes that an ellipsis stands for: beyond those that equations are written in.
fn hidden(axis: usize) -> Letter {
    char::from_u32(0x3b1 + axis as u32).unwrap_or('?')
}

impl Einsum {
    /// Gives each axis of inputs of these ranks its letter.
    fn terms(&self, ranks: &[usize]) -> Result<Terms> {
        let equation: String = self.equation.chars().filter(|c| !c.is_whitespace()).collect();
        let (left, right) = match equation.split_once("->") {
            Some((left, right)) => (left, Some(right)),
            None => (equation.as_str(), None),
        };
        let written: Vec<&str> = left.split(',').collect();
        if written.len() != ranks.len() {
            bail!(
                shape,
                "the equation '{}' is for {} inputs, found {}",
                self.equation,
                written.len(),
                ranks.len()
            );
        }
        let mut inputs = Vec::new();
        let mut widest = 0;
        for (index, (term, &rank)) in written.iter().zip(ranks).enumerate() {
            let letters = term.replacen("...", "", 1);
            if !letters.chars().all(|c| c.is_alphabetic() && !('\u{3b1}'..'\u{400}').contains(&c)) {
                bail!(
                    model,
                    "the term '{term}' of the equation '{}' has other signs than letters",
                    self.equation
                );
            }
            let named = letters.chars().count();
            let ellipsis = term.contains("...");
            if named > rank || (!ellipsis && named != rank) || rank > 64 {
                bail!(
                    shape,
                    "the term '{term}' of '{}' does not fit input {index} of rank {rank}",
                    self.equation
                );
            }
            widest = widest.max(rank - named);
            inputs.push((term, rank - named));
        }
        // Axes of an ellipsis are aligned at their ends.
        let expand = |term: &str, count: usize| -> Vec<Letter> {
            let stands_for: String = (widest - count..widest).map(hidden).collect();
            term.replacen("...", &stands_for, 1).chars().collect()
        };
        let inputs: Vec<Vec<Letter>> = inputs.iter().map(|(term, count)| expand(term, *count)).collect();
        let output = match right {
            Some(right) => expand(right, widest),
            None => {
                let all: Vec<Letter> = inputs.iter().flatten().copied().collect();
                let mut once: Vec<Letter> = all
                    .iter()
                    .copied()
                    .filter(|letter| {
                        letter.is_ascii() && all.iter().filter(|other| *other == letter).count() == 1
                    })
                    .collect();
                once.sort_unstable();
                (0..widest).map(hidden).chain(once).collect()
            }
        };
        for (place, letter) in output.iter().enumerate() {
            if output[..place].contains(letter) || !inputs.iter().any(|term| term.contains(letter)) {
                bail!(
                    model,
                    "the output of the equation '{}' has '{letter}' twice or from no input",
                    self.equation
                );
            }
        }
        Ok(Terms { inputs, output })
    }
}

impl Terms {
    /// An op with these terms, written in letters alone.
    fn equation(inputs: &[&[Letter]], output: &[Letter]) -> Einsum {
        let mut used: Vec<Letter> = Vec::new();
        let mut write = |letters: &[Letter]| -> String {
            letters
                .iter()
                .map(|letter| {
                    let place = used.iter().position(|other| other == letter).unwrap_or_else(|| {
                        used.push(*letter);
                        used.len() - 1
                    });
                    ('a'..='z').chain('A'..='Z').chain('\u{4e00}'..='\u{9fff}').nth(place).unwrap_or('?')
                })
                .collect()
        };
        let left: Vec<String> = inputs.iter().map(|letters| write(letters)).collect();
        Einsum { equation: format!("{}->{}", left.join(","), write(output)) }
    }

    /// The length of each letter, with broadcasting, in the order of their first occurrence.
    fn lengths<'a>(&self, shapes: impl Iterator<Item = &'a [Dim]>) -> Result<Vec<(Letter, Dim)>> {
        let mut lengths: Vec<(Letter, Dim)> = Vec::new();
        for (letters, shape) in self.inputs.iter().zip(shapes) {
            for (letter, dim) in letters.iter().zip(shape) {
                match lengths.iter_mut().find(|(other, _)| other == letter) {
                    Some((_, length)) => {
                        *length = broadcast_shapes(std::slice::from_ref(length), std::slice::from_ref(dim))?
                            [0]
                        .clone();
                    }
                    None => lengths.push((*letter, dim.clone())),
                }
            }
        }
        Ok(lengths)
    }
}

/// An array whose axes have distinct letters.
struct Named<T> {
    letters: Vec<Letter>,
    array: ArrayD<T>,
}

impl<T: Float> Named<T> {
    /// Takes diagonals where a letter is repeated, and broadcasts each axis to its length.
    fn new(letters: &[Letter], x: &Array<T>, length: &dyn Fn(Letter) -> usize) -> Result<Self> {
        let shape: Vec<usize> = letters.iter().map(|&letter| length(letter)).collect();
        allocatable(&shape)?;
        let mut named = Self {
            letters: letters.to_vec(),
            array: super::broadcast::broadcast_view(x, &shape)?.to_owned(),
        };
        while let Some((first, second)) = named.repeated() {
            let length = named.array.shape()[first];
            let mut shape = named.array.shape().to_vec();
            shape.remove(second);
            let mut diagonal = ArrayD::from_elem(IxDyn(&shape), T::zero());
            for place in 0..length {
                let from = named.array.index_axis(Axis(second), place);
                diagonal.index_axis_mut(Axis(first), place).assign(&from.index_axis(Axis(first), place));
            }
            named.array = diagonal;
            named.letters.remove(second);
        }
        Ok(named)
    }

    fn repeated(&self) -> Option<(usize, usize)> {
        (0..self.letters.len()).find_map(|second| {
            let first = self.letters[..second].iter().position(|letter| *letter == self.letters[second])?;
            Some((first, second))
        })
    }

    /// Sums over the axes that nobody keeps.
    fn summed(mut self, keeps: &dyn Fn(Letter) -> bool) -> Self {
        for axis in (0..self.letters.len()).rev() {
            if !keeps(self.letters[axis]) {
                self.array = self.array.sum_axis(Axis(axis));
                self.letters.remove(axis);
            }
        }
        self
    }

    /// The axes in this order, then joined as the groups say.
    fn grouped(&self, groups: [&[Letter]; 3]) -> Result<Array<T>> {
        let place =
            |letter: &Letter| self.letters.iter().position(|other| other == letter).unwrap_or_default();
        let order: Vec<usize> = groups.iter().flat_map(|group| group.iter().map(place)).collect();
        let shape: Vec<usize> = groups
            .iter()
            .map(|group| group.iter().map(|letter| self.array.shape()[place(letter)]).product())
            .collect();
        let sorted = self.array.view().permuted_axes(IxDyn(&order)).as_standard_layout().into_owned();
        match sorted.into_shape_with_order(IxDyn(&shape)) {
            Ok(grouped) => Ok(grouped.into_shared()),
            Err(error) => bail!(internal, "the axes of a term cannot be joined: {error}"),
        }
    }

    /// The product of two, summed over the letters that nobody keeps: a stack of matrix products.
    fn times(
        self,
        other: Self,
        keeps: &dyn Fn(Letter) -> bool,
        length: &dyn Fn(Letter) -> usize,
    ) -> Result<Self> {
        let a = {
            let shared = |letter| keeps(letter) || other.letters.contains(&letter);
            self.summed(&shared)
        };
        let b = {
            let shared = |letter| keeps(letter) || a.letters.contains(&letter);
            other.summed(&shared)
        };
        let select = |from: &Self, wanted: &dyn Fn(Letter) -> bool| -> Vec<Letter> {
            from.letters.iter().copied().filter(|&letter| wanted(letter)).collect()
        };
        let stack = select(&a, &|letter| b.letters.contains(&letter) && keeps(letter));
        let inner = select(&a, &|letter| b.letters.contains(&letter) && !keeps(letter));
        let rows = select(&a, &|letter| !b.letters.contains(&letter));
        let columns = select(&b, &|letter| !a.letters.contains(&letter));
        let y = product(&a.grouped([&stack, &rows, &inner])?, &b.grouped([&stack, &inner, &columns])?)?;
        let letters = [stack, rows, columns].concat();
        let shape: Vec<usize> = letters.iter().map(|&letter| length(letter)).collect();
        match y.into_shape_with_order(IxDyn(&shape)) {
            Ok(array) => Ok(Self { letters, array }),
            Err(error) => bail!(internal, "a product of terms has a wrong number of elements: {error}"),
        }
    }
}

impl Einsum {
    fn run_on<T: Float>(&self, x: &[&Array<T>]) -> Result<ArrayD<T>> {
        let ranks: Vec<usize> = x.iter().map(|x| x.ndim()).collect();
        let terms = self.terms(&ranks)?;
        let shapes: Vec<Vec<Dim>> =
            x.iter().map(|x| x.shape().iter().map(|&length| length.into()).collect()).collect();
        let lengths = terms.lengths(shapes.iter().map(Vec::as_slice))?;
        let (letters, dims): (Vec<Letter>, Vec<Dim>) = lengths.into_iter().unzip();
        let Some(numbers) = known_shape(&dims) else { bail!(internal, "an array has an unknown length") };
        let length = |letter: Letter| {
            letters.iter().position(|other| *other == letter).map_or(1, |place| numbers[place])
        };
        let mut total: Option<Named<T>> = None;
        for (index, (term, x)) in terms.inputs.iter().zip(x).enumerate() {
            let keeps = |letter: Letter| {
                terms.output.contains(&letter)
                    || terms.inputs[index + 1..].iter().any(|term| term.contains(&letter))
            };
            let named = Named::new(term, x, &length)?;
            total = Some(match total {
                None => named.summed(&keeps),
                Some(total) => total.times(named, &keeps, &length)?,
            });
        }
        let Some(total) = total else { bail!(shape, "expected at least one input") };
        let order: Vec<usize> = terms
            .output
            .iter()
            .map(|letter| total.letters.iter().position(|other| other == letter).unwrap_or_default())
            .collect();
        Ok(total.array.permuted_axes(IxDyn(&order)).as_standard_layout().into_owned())
    }
}

impl OpDef for Einsum {
    fn name(&self) -> &str {
        "Einsum"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let dtype = x.get(0)?.dtype;
        let mut ranks = Vec::new();
        for index in 0..x.len() {
            let fact = x.get(index)?;
            if fact.dtype != dtype || dtype == DType::Bool {
                bail!(shape, "expected numbers of one element type, found {dtype} and {}", fact.dtype);
            }
            ranks.push(fact.rank());
        }
        let terms = self.terms(&ranks)?;
        let lengths = terms.lengths(x.present().map(|fact| fact.shape.as_slice()))?;
        let length = |letter: &Letter| {
            lengths.iter().find(|(other, _)| other == letter).map_or(Dim::from(1i64), |(_, dim)| dim.clone())
        };
        Ok(vec![Fact::new(dtype, terms.output.iter().map(length).collect())])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn all<'a, T: Float>(x: &Inputs<'a, Tensor>) -> Result<Vec<&'a Array<T>>> {
            x.present().map(Tensor::array).collect()
        }
        Ok(vec![match x.get(0)? {
            Tensor::F32(_) => self.run_on(&all::<f32>(x)?)?.into(),
            Tensor::F64(_) => self.run_on(&all::<f64>(x)?)?.into(),
            // Integers up to 2^53 are exact in float64.
            other => {
                let wide: Vec<Array<f64>> = x.present().map(|x| x.to_f64().into_shared()).collect();
                Tensor::from(self.run_on(&wide.iter().collect::<Vec<_>>())?).cast(other.dtype())
            }
        }])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let ranks: Vec<usize> = (0..back.arity()).map(|index| back.x(index).rank()).collect();
        let terms = self.terms(&ranks)?;
        let mut cotangents = vec![Cotangent::Unwanted; back.arity()];
        for (index, term) in terms.inputs.iter().enumerate().filter(|(index, _)| back.wants(*index)) {
            if (0..term.len()).any(|place| term[..place].contains(&term[place])) {
                bail!(
                    unsupported,
                    "the gradient of a diagonal (equation '{}') is not supported",
                    self.equation
                );
            }
            // The cotangent stands where the output was, the output where the input was.
            let others: Vec<usize> = (0..back.arity()).filter(|&other| other != index).collect();
            let mut left: Vec<&[Letter]> = vec![&terms.output];
            left.extend(others.iter().map(|&other| terms.inputs[other].as_slice()));
            let found: Vec<Letter> =
                term.iter().copied().filter(|letter| left.iter().any(|term| term.contains(letter))).collect();
            let x: Vec<_> =
                [back.g(0)].into_iter().chain(others.iter().map(|&other| back.x(other))).collect();
            let sum = back.builder().apply(Terms::equation(&left, &found), &x);
            // Letters that are in this input alone are summed over: their cotangent is the same everywhere.
            let missing = (0..term.len()).filter(|&axis| !found.contains(&term[axis]));
            let cotangent = sum.unsqueeze(missing).unbroadcast(back.x(index)).expand_like(back.x(index));
            cotangents[index] = Cotangent::Flows(cotangent);
        }
        Ok(cotangents)
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.string("equation", &self.equation);
        Ok(())
    }
}

impl Listed for Einsum {
    const ONNX: &'static [&'static str] = &["Einsum"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        match node.string("equation")? {
            Some(equation) => Ok(Self { equation }),
            None => bail!(model, "the attribute 'equation' is missing"),
        }
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = |shape: &[usize]| floats(-1.0, 1.0).input(shape);
        let op = |equation: &str| Einsum { equation: equation.to_owned() };
        vec![
            Sample::new(op("ij,jk->ik"), [x(&[2, 3]), x(&[3, 4])]),
            Sample::new(op("bhid, bhjd -> bhij"), [x(&[2, 3, 4, 5]), x(&[2, 3, 2, 5])]),
            Sample::new(op("bij,kj"), [x(&[2, 3, 4]), x(&[5, 4])]),
            Sample::new(op("bij->bj"), [x(&[2, 3, 4])]),
            Sample::new(op("bi,bj,bk->ijk"), [x(&[2, 3]), x(&[2, 2]), x(&[2, 4])]),
            Sample::new(op("b...i,...ij->b...j"), [x(&[2, 3, 4]), x(&[3, 4, 2])]),
            Sample::new(op("...i,...i->..."), [x(&[2, 1, 3]), x(&[4, 3])]),
            Sample::new(op("bi,bj->"), [x(&[2, 3]), x(&[2, 4])]),
        ]
    }
}

#[cfg(test)]
mod tests {
    //! Expected numbers: the reference evaluator of the Python package onnx 1.17.0, if nothing else is said.

    use super::*;
    use crate::gradient_check::outputs;

    /// 0, 1, 2, … in this shape.
    fn counting(shape: &[usize]) -> Tensor {
        Tensor::from_shape_vec(shape, (0..shape.iter().product::<usize>() as i64).collect()).unwrap()
    }

    fn integers(shape: &[usize], values: &[i64]) -> Tensor {
        Tensor::from_shape_vec(shape, values.to_vec()).unwrap()
    }

    fn einsum(equation: &str, x: &[Tensor]) -> Tensor {
        outputs(Einsum { equation: equation.to_owned() }, x).remove(0)
    }

    #[test]
    fn equations_multiply_sum_and_transpose() {
        let y = einsum("ij,jk->ki", &[counting(&[2, 3]), counting(&[3, 2])]);
        assert_eq!(y, integers(&[2, 2], &[10, 28, 13, 40]));
        assert_eq!(einsum("ii->i", &[counting(&[3, 3])]), integers(&[3], &[0, 4, 8]));
        let y = einsum("bij,bjk", &[counting(&[2, 2, 2]), counting(&[2, 2, 2])]);
        assert_eq!(y, integers(&[2, 2], &[48, 58, 72, 90]));
        let y = einsum("...ij,...j->...i", &[counting(&[2, 2, 3]), counting(&[2, 3])]);
        assert_eq!(y, integers(&[2, 2], &[5, 14, 86, 122]));
    }

    #[test]
    fn impossible_equations_are_refused() {
        for equation in ["ij->k", "i", "ij,jk->ik", "ij->ii", "i1->i", "ijk->i", "->"] {
            let op = Einsum { equation: equation.to_owned() };
            assert!(op.run(&Inputs(&[Some(&counting(&[2, 2]))])).is_err(), "{equation}");
        }
    }
}
