//! The norm under a window, and over all spatial axes.

use super::average::{AveragePool, Divisor};
use super::global::{infer_global, run_global};
#[cfg(test)]
use super::windows;
use super::{Pooling, check_float};
use crate::backprop::{Back, Cotangent, Cotangents};
use crate::error::{Result, bail};
#[cfg(test)]
use crate::gradient_check::{Sample, floats};
use crate::graph::Fact;
use crate::onnx::{NodeReader, NodeWriter};
use crate::op::{Inputs, Listed, OpDef};
use crate::ops::convolution::elements;
use crate::ops::window::output_shapes;
use crate::tensor::{Float, Tensor, each_float};

/// `y[o]` is the p-norm of `x` under the window at `o`: `(Σ |x|ᵖ)^(1/p)`. ONNX 1, 2, 11, 18, 22.
///
/// Where the norm is 0 its derivative is 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LpPool {
    /// The window.
    pub pooling: Pooling,
    /// The exponent.
    pub p: i64,
}

impl OpDef for LpPool {
    fn name(&self) -> &str {
        "LpPool"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        let x = x.get(0)?;
        check_float(x)?;
        check_exponent(self.p)?;
        Ok(vec![Fact::new(x.dtype, self.pooling.infer(x)?)])
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn run<T: Float>(op: &LpPool, x: &crate::tensor::Array<T>, shape: &[usize]) -> Result<Tensor> {
            let powers = x.mapv(|x| T::of(x.wide().abs().powf(op.p as f64)));
            let sums = AveragePool { pooling: op.pooling.clone(), divisor: Divisor::One }.average(
                elements(&powers.into_shared()).slice(),
                x.shape(),
                shape,
            )?;
            Ok(T::wrap(
                sums.array::<T>()?.mapv(|sum| T::of(sum.wide().powf(1.0 / op.p as f64))).into_shared(),
            ))
        }
        let shape = output_shapes(self, x)?.remove(0);
        Ok(vec![each_float!(x.get(0)?, x => run(self, x, &shape)?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, y, g) = (back.x(0), back.y(0), back.g(0));
        let sum = AveragePool { pooling: self.pooling.clone(), divisor: Divisor::One };
        Ok(back.only_first(match self.p {
            1 => sum.transposed(g, x)? * x.sign(),
            p => {
                let share = (g * y.powf(1.0 - p as f64)).select_where(y.greater(0.0));
                sum.transposed(share, x)? * x.sign() * x.abs().powf(p as f64 - 1.0)
            }
        }))
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        self.pooling.write(node);
        node.int("p", self.p);
        if self.pooling.ceil_mode || self.pooling.window.dilations.iter().any(|&dilation| dilation != 1) {
            node.since(18, "an LpPool with dilations or ceil_mode")?;
        }
        Ok(())
    }
}

impl Listed for LpPool {
    const ONNX: &'static [&'static str] = &["LpPool"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { p: exponent(node)?, pooling: Pooling::read(node)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = |shape: &[usize]| floats(-1.0, 1.0).away_from(0.0, 0.1).input(shape);
        let pools = windows().zip([1, 2, 3, 2, 2, 2, 2]);
        pools.map(|((shape, pooling), p)| Sample::new(LpPool { pooling, p }, [x(shape)])).collect()
    }
}

/// The exponent `p`: an integer, in the first opset a float.
fn exponent(node: &mut NodeReader) -> Result<i64> {
    if node.opset() >= 2 {
        return node.int_or("p", 2);
    }
    let p = node.float_or("p", 2.0)?;
    if p.fract() != 0.0 {
        bail!(unsupported, "attribute 'p': expected a whole number, found {p}");
    }
    Ok(p as i64)
}

fn check_exponent(p: i64) -> Result<()> {
    if !(1..=64).contains(&p) {
        bail!(unsupported, "attribute 'p': expected a number from 1 to 64, found {p}");
    }
    Ok(())
}

/// The p-norm over all spatial axes, which stay with length 1. Its gradient at 0 is 0. ONNX 1, 2.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GlobalLpPool {
    /// The exponent.
    pub p: i64,
}

impl OpDef for GlobalLpPool {
    fn name(&self) -> &str {
        "GlobalLpPool"
    }

    fn infer(&self, x: &Inputs<Fact>) -> Result<Vec<Fact>> {
        check_exponent(self.p)?;
        infer_global(x.get(0)?)
    }

    fn run(&self, x: &Inputs<Tensor>) -> Result<Vec<Tensor>> {
        fn norm<T: Float>(values: &[T], p: f64) -> T {
            T::of(values.iter().map(|value| value.wide().abs().powf(p)).sum::<f64>().powf(1.0 / p))
        }
        output_shapes(self, x)?;
        Ok(vec![each_float!(x.get(0)?, x => run_global(x, |values| norm(values, self.p as f64))?)])
    }

    fn vjp<'b>(&self, back: &Back<'b>) -> Result<Cotangents<'b>> {
        let (x, y, g) = (back.x(0), back.y(0), back.g(0));
        let cotangent = match self.p {
            1 => g * x.sign(),
            p => {
                let power = p as f64 - 1.0;
                (g * x.sign() * (x.abs() / y).powf(power)).select_where(y.greater(0.0))
            }
        };
        Ok(vec![Cotangent::Flows(cotangent)])
    }

    fn write(&self, node: &mut NodeWriter) -> Result<()> {
        node.int("p", self.p);
        Ok(())
    }
}

impl Listed for GlobalLpPool {
    const ONNX: &'static [&'static str] = &["GlobalLpPool"];

    fn read(node: &mut NodeReader) -> Result<Self> {
        Ok(Self { p: exponent(node)? })
    }

    #[cfg(test)]
    fn samples() -> Vec<Sample> {
        let x = || floats(-1.0, 1.0).away_from(0.0, 0.1).input(&[2, 3, 4, 2]);
        [1, 2, 3].map(|p| Sample::new(GlobalLpPool { p }, [x()])).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::super::run;
    use super::*;

    /// Checked against ONNX Runtime 1.32.
    #[test]
    fn the_norm_of_a_window() {
        let x = Tensor::from_shape_vec(&[1, 1, 4], vec![-1.0, 0.0, 1.0, 2.0]).unwrap();
        let y = run(&LpPool { pooling: Pooling::plain([2]), p: 3 }, x).remove(0).to_f64();
        let expected = [1.0, 1.0, 2.0800838470458984];
        assert!(y.iter().zip(expected).all(|(y, e)| (y - e).abs() < 1e-6), "{y}");
    }
}
