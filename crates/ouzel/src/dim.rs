//! Dimensions: numbers, or integer expressions over symbols that are bound when the input is known.

use crate::error::{Result, bail};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::{Add, Mul, Neg, Sub};
use std::sync::Arc;

/// The length of an axis: a number, or an expression over symbols such as `batch`.
///
/// Expressions are kept in a normal form (a polynomial with integer coefficients over symbols, quotients and
/// minima), so two dimensions are equal when their normal forms are.
///
/// ```
/// use ouzel::Dim;
/// let n = Dim::symbol("batch");
/// let flat = &n * &Dim::from(2304);
/// assert_eq!(flat.divide(&Dim::from(2304)), n);
/// assert_eq!((&n + &Dim::from(1)).to_string(), "batch + 1");
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Dim(Form);

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Form {
    Number(i64),
    /// Never a plain number.
    Sum(Arc<Polynomial>),
}

/// Coefficients by monomial; no coefficient is zero. A monomial is a sorted product of atoms; empty is one.
type Polynomial = BTreeMap<Vec<Atom>, i64>;

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Atom {
    Symbol(Arc<str>),
    /// Floor of the quotient.
    Quotient(Box<Dim>, Box<Dim>),
    Minimum(Box<Dim>, Box<Dim>),
}

/// What each symbol stands for.
pub type Bindings = BTreeMap<Arc<str>, i64>;

/// The shape of a tensor whose axes may be symbolic.
pub type Shape = Vec<Dim>;

/// Expressions of more parts than this are replaced by a symbol that nothing is known of: it takes no network that
/// people train to need one, and no network can make shapes costly. Numbers are not affected.
const LONGEST: usize = 512;

fn size(terms: &Polynomial) -> usize {
    terms.keys().map(|monomial| 1 + monomial.iter().map(Atom::size).sum::<usize>()).sum()
}

/// A name for an expression: equal expressions have equal ones, and others have others.
fn abbreviation(expression: impl Hash) -> String {
    let part = |seed: u64| {
        let mut hasher = DefaultHasher::new();
        (seed, &expression).hash(&mut hasher);
        hasher.finish()
    };
    format!("long expression {:016x}{:016x}", part(0), part(1))
}

impl From<i64> for Dim {
    fn from(value: i64) -> Self {
        Self(Form::Number(value))
    }
}

impl From<i32> for Dim {
    fn from(value: i32) -> Self {
        Self(Form::Number(value.into()))
    }
}

impl From<usize> for Dim {
    fn from(value: usize) -> Self {
        Self(Form::Number(i64::try_from(value).unwrap_or(i64::MAX)))
    }
}

impl Dim {
    /// A dimension that is known by name only.
    pub fn symbol(name: &str) -> Self {
        Self::from_polynomial(BTreeMap::from([(vec![Atom::Symbol(name.into())], 1)]))
    }

    fn from_polynomial(mut terms: Polynomial) -> Self {
        terms.retain(|_, coefficient| *coefficient != 0);
        match terms.len() {
            0 => Self::from(0i64),
            1 if terms.contains_key(&vec![]) => Self::from(terms[&vec![]]),
            _ if size(&terms) > LONGEST => Self::symbol(&abbreviation(&terms)),
            _ => Self(Form::Sum(Arc::new(terms))),
        }
    }

    /// The number of symbols, numbers and functions in the expression.
    fn size(&self) -> usize {
        match &self.0 {
            Form::Number(_) => 1,
            Form::Sum(terms) => size(terms),
        }
    }

    fn polynomial(&self) -> Polynomial {
        match &self.0 {
            Form::Number(0) => BTreeMap::new(),
            Form::Number(value) => BTreeMap::from([(vec![], *value)]),
            Form::Sum(terms) => (**terms).clone(),
        }
    }

    fn atom(atom: Atom) -> Self {
        Self::from_polynomial(BTreeMap::from([(vec![atom], 1)]))
    }

    /// The number, if the dimension is one.
    pub fn known(&self) -> Option<i64> {
        match self.0 {
            Form::Number(value) => Some(value),
            Form::Sum(_) => None,
        }
    }

    /// True if the dimension is literally `value`.
    pub fn is(&self, value: i64) -> bool {
        self.known() == Some(value)
    }

    /// Floor of the quotient; exact quotients of expressions are recognised.
    ///
    /// A quotient by zero stays symbolic and fails when it is evaluated.
    pub fn divide(&self, by: &Dim) -> Dim {
        match (self.known(), by.known()) {
            (Some(a), Some(b)) if b != 0 => return a.checked_div_euclid(b).unwrap_or(i64::MAX).into(),
            (_, Some(1)) => return self.clone(),
            _ => {}
        }
        if self == by {
            return 1.into();
        }
        self.exact_quotient(by)
            .unwrap_or_else(|| Self::atom(Atom::Quotient(Box::new(self.clone()), Box::new(by.clone()))))
    }

    /// The quotient if every term is divisible by the single term of `by`.
    fn exact_quotient(&self, by: &Dim) -> Option<Dim> {
        let divisor = by.polynomial();
        let (atoms, coefficient) = divisor.iter().next().filter(|_| divisor.len() == 1)?;
        let mut quotient = BTreeMap::new();
        for (monomial, value) in self.polynomial() {
            if value.checked_rem(*coefficient) != Some(0) {
                return None;
            }
            let mut left = monomial;
            for atom in atoms {
                left.remove(left.iter().position(|a| a == atom)?);
            }
            quotient.insert(left, value / coefficient);
        }
        Some(Self::from_polynomial(quotient))
    }

    /// The smaller of two dimensions.
    pub fn minimum(&self, other: &Dim) -> Dim {
        // A difference of one sign decides, whatever the symbols stand for: they are lengths.
        match (self - other).sign() {
            Some(sign) if sign <= 0 => self.clone(),
            Some(_) => other.clone(),
            None => Self::atom(Atom::Minimum(Box::new(self.clone()), Box::new(other.clone()))),
        }
    }

    /// How two dimensions compare, where that is the same whatever the symbols stand for.
    pub(crate) fn compare(&self, other: &Dim) -> Option<Ordering> {
        let difference = self - other;
        let certain = match &difference.0 {
            Form::Number(_) => true,
            // Symbols may be 0, so that only a number beside them tells for sure.
            Form::Sum(terms) => terms.contains_key(&vec![]),
        };
        difference.sign().filter(|_| certain).map(|sign| sign.cmp(&0))
    }

    /// The sign, where it is the same whatever the symbols stand for; symbols are never negative.
    fn sign(&self) -> Option<i64> {
        let terms = match &self.0 {
            Form::Number(value) => return Some(value.signum()),
            Form::Sum(terms) => terms,
        };
        let symbols = |monomial: &[Atom]| monomial.iter().all(|atom| matches!(atom, Atom::Symbol(_)));
        let first = terms.values().next()?.signum();
        terms
            .iter()
            .all(|(monomial, coefficient)| coefficient.signum() == first && symbols(monomial))
            .then_some(first)
    }

    /// The number that the dimension stands for.
    ///
    /// # Errors
    /// If a symbol is not bound, or a divisor is zero.
    pub fn evaluate(&self, bindings: &Bindings) -> Result<i64> {
        let terms = match &self.0 {
            Form::Number(value) => return Ok(*value),
            Form::Sum(terms) => terms,
        };
        let mut sum: i64 = 0;
        for (monomial, coefficient) in terms.iter() {
            let mut product = *coefficient;
            for atom in monomial {
                product = product.saturating_mul(atom.evaluate(bindings)?);
            }
            sum = sum.saturating_add(product);
        }
        Ok(sum)
    }

    /// The same expression with the bound symbols replaced by their numbers.
    pub fn bind(&self, bindings: &Bindings) -> Dim {
        let Form::Sum(terms) = &self.0 else { return self.clone() };
        let mut sum = Dim::from(0i64);
        for (monomial, coefficient) in terms.iter() {
            let product = monomial.iter().fold(Dim::from(*coefficient), |product, atom| {
                &product
                    * &match atom {
                        Atom::Symbol(name) => match bindings.get(name) {
                            Some(value) => Dim::from(*value),
                            None => Dim::atom(atom.clone()),
                        },
                        Atom::Quotient(a, b) => a.bind(bindings).divide(&b.bind(bindings)),
                        Atom::Minimum(a, b) => a.bind(bindings).minimum(&b.bind(bindings)),
                    }
            });
            sum = &sum + &product;
        }
        sum
    }

    /// The symbol, if the dimension is nothing but one.
    pub fn as_symbol(&self) -> Option<&Arc<str>> {
        let Form::Sum(terms) = &self.0 else { return None };
        match terms.iter().next() {
            Some((monomial, 1)) if terms.len() == 1 => match monomial.as_slice() {
                [Atom::Symbol(name)] => Some(name),
                _ => None,
            },
            _ => None,
        }
    }
}

impl Atom {
    fn size(&self) -> usize {
        match self {
            Self::Symbol(_) => 1,
            Self::Quotient(a, b) | Self::Minimum(a, b) => 1 + a.size() + b.size(),
        }
    }

    fn evaluate(&self, bindings: &Bindings) -> Result<i64> {
        match self {
            Self::Symbol(name) => match bindings.get(name) {
                Some(value) => Ok(*value),
                None => bail!(shape, "the size of the dimension '{name}' is not known"),
            },
            Self::Quotient(a, b) => match b.evaluate(bindings)? {
                0 => bail!(shape, "a dimension is divided by zero: {a} / {b}"),
                divisor => Ok(a.evaluate(bindings)?.checked_div_euclid(divisor).unwrap_or(i64::MAX)),
            },
            Self::Minimum(a, b) => Ok(a.evaluate(bindings)?.min(b.evaluate(bindings)?)),
        }
    }
}

impl Add for &Dim {
    type Output = Dim;
    fn add(self, other: Self) -> Dim {
        if let (Some(a), Some(b)) = (self.known(), other.known()) {
            return a.saturating_add(b).into();
        }
        let mut sum = self.polynomial();
        for (monomial, coefficient) in other.polynomial() {
            let entry = sum.entry(monomial).or_default();
            *entry = entry.saturating_add(coefficient);
        }
        Dim::from_polynomial(sum)
    }
}

impl Neg for &Dim {
    type Output = Dim;
    fn neg(self) -> Dim {
        self * &Dim::from(-1i64)
    }
}

impl Sub for &Dim {
    type Output = Dim;
    fn sub(self, other: Self) -> Dim {
        self + &-other
    }
}

impl Mul for &Dim {
    type Output = Dim;
    fn mul(self, other: Self) -> Dim {
        if let (Some(a), Some(b)) = (self.known(), other.known()) {
            return a.saturating_mul(b).into();
        }
        let mut product = Polynomial::new();
        let (left, right) = (self.polynomial(), other.polynomial());
        if left.len() * right.len() > LONGEST {
            let (first, second) = if self < other { (left, right) } else { (right, left) };
            return Dim::symbol(&abbreviation((first, second)));
        }
        for (a, m) in left {
            for (b, n) in &right {
                let mut monomial = a.clone();
                monomial.extend(b.iter().cloned());
                monomial.sort();
                let entry = product.entry(monomial).or_default();
                *entry = entry.saturating_add(m.saturating_mul(*n));
            }
        }
        Dim::from_polynomial(product)
    }
}

/// The product of all dimensions.
pub fn product<'a>(dims: impl IntoIterator<Item = &'a Dim>) -> Dim {
    dims.into_iter().fold(Dim::from(1i64), |product, dim| &product * dim)
}

/// The shape if every dimension is a number.
pub fn known_shape(shape: &[Dim]) -> Option<Vec<usize>> {
    shape.iter().map(|dim| dim.known().and_then(|value| usize::try_from(value).ok())).collect()
}

/// The number of elements of a tensor of this shape; the largest number if there are even more.
///
/// `None` if a dimension is not known.
pub(crate) fn element_count(shape: &[Dim]) -> Option<usize> {
    let shape = known_shape(shape)?;
    Some(if shape.contains(&0) { 0 } else { shape.into_iter().fold(1, usize::saturating_mul) })
}

/// The numbers that a shape stands for.
///
/// # Errors
/// If a symbol is not bound or a dimension is negative.
pub fn evaluate_shape(shape: &[Dim], bindings: &Bindings) -> Result<Vec<usize>> {
    let evaluate = |dim: &Dim| -> Result<usize> {
        let value = dim.evaluate(bindings)?;
        match usize::try_from(value) {
            Ok(value) => Ok(value),
            Err(_) => bail!(shape, "the dimension '{dim}' comes out as {value}"),
        }
    };
    shape.iter().map(evaluate).collect()
}

/// A shape in the form `[batch, 3, 224, 224]`.
pub fn display_shape(shape: &[Dim]) -> String {
    let dims: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", dims.join(", "))
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match &self.0 {
            Form::Number(value) => return write!(f, "{value}"),
            Form::Sum(terms) => terms,
        };
        // The constant term sorts first, and reads better last.
        let ordered = terms.iter().filter(|(monomial, _)| !monomial.is_empty());
        let constant = terms.get(&vec![]);
        for (index, (monomial, coefficient)) in ordered.enumerate() {
            let sign = if *coefficient < 0 { "-" } else { "+" };
            match (index, *coefficient < 0) {
                (0, false) => {}
                (0, true) => f.write_str("-")?,
                _ => write!(f, " {sign} ")?,
            }
            let mut factors: Vec<String> = monomial.iter().map(Atom::to_string).collect();
            if coefficient.unsigned_abs() != 1 {
                factors.insert(0, coefficient.unsigned_abs().to_string());
            }
            f.write_str(&factors.join("*"))?;
        }
        match constant {
            Some(value) if *value < 0 => write!(f, " - {}", value.unsigned_abs()),
            Some(value) => write!(f, " + {value}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symbol(name) => f.write_str(name),
            Self::Quotient(a, b) => write!(f, "floor(({a})/({b}))"),
            Self::Minimum(a, b) => write!(f, "min({a}, {b})"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n() -> Dim {
        Dim::symbol("n")
    }

    #[test]
    fn equal_expressions_have_one_form() {
        let three = Dim::from(3i64);
        let a = &(&n() * &three) + &n();
        assert_eq!(a, &n() * &Dim::from(4i64));
        assert_eq!(&a - &a, Dim::from(0i64));
        assert_eq!(a.divide(&n()), Dim::from(4i64));
        assert_eq!(a.to_string(), "4*n");
    }

    #[test]
    fn quotients_that_are_not_exact_wait_for_numbers() {
        let half = (&n() - &Dim::from(3i64)).divide(&Dim::from(2i64));
        let out = &half + &Dim::from(1i64);
        assert_eq!(out.to_string(), "floor((n - 3)/(2)) + 1");
        let bindings = Bindings::from([("n".into(), 224)]);
        assert_eq!(out.evaluate(&bindings).unwrap(), 111);
        assert_eq!(out.bind(&bindings), Dim::from(111i64));
        assert!(out.evaluate(&Bindings::new()).unwrap_err().to_string().contains("'n'"));
    }

    #[test]
    fn expressions_do_not_grow_without_end() {
        let one = Dim::from(1i64);
        let two = Dim::from(2i64);
        let (mut deep, mut wide, mut doubled) = (n(), n(), n());
        for step in 0..5_000i64 {
            deep = &(&deep - &one).divide(&two) + &one;
            wide = &wide + &Dim::symbol(&format!("n{step}"));
            doubled = &doubled * &(&doubled + &one);
        }
        let squared = &wide * &wide;
        for long in [&deep, &wide, &doubled, &squared] {
            assert!(long.size() <= LONGEST && long.to_string().len() < 100_000);
            assert!(long.evaluate(&Bindings::from([("n".into(), 1)])).is_err());
        }
        // The same steps lead to the same dimension, others to another.
        let steps = |by: i64| (0..1000).fold(n(), |dim, _| &(&dim - &Dim::from(by)).divide(&two) + &one);
        assert_eq!(steps(1), steps(1));
        assert_ne!(steps(1), steps(2));
    }

    #[test]
    fn the_ends_of_the_integers_do_not_overflow() {
        let (least, minus) = (Dim::from(i64::MIN), Dim::from(-1i64));
        assert_eq!(least.divide(&minus), Dim::from(i64::MAX));
        let by = &n() * &least;
        assert_eq!(by.to_string(), "-9223372036854775808*n");
        assert!(by.divide(&(&n() * &minus)).known().is_none());
        let bindings = Bindings::from([("n".into(), i64::MIN), ("m".into(), -1)]);
        assert_eq!(n().divide(&Dim::symbol("m")).evaluate(&bindings).unwrap(), i64::MAX);
    }

    #[test]
    fn minimum_is_decided_by_a_difference_of_one_sign() {
        let more = &n() + &Dim::from(2i64);
        assert_eq!(n().minimum(&more), n());
        assert_eq!(more.minimum(&n()), n());
        assert_eq!(n().minimum(&Dim::from(5i64)).to_string(), "min(n, 5)");
        assert_eq!((&n() + &Dim::symbol("m")).minimum(&n()), n());
        assert_eq!(n().minimum(&Dim::from(0i64)), Dim::from(0i64));
    }

    #[test]
    fn lengths_compare_where_they_always_do() {
        let more = &n() + &Dim::from(2i64);
        assert_eq!(n().compare(&Dim::from(-1i64)), Some(Ordering::Greater));
        assert_eq!(n().compare(&more), Some(Ordering::Less));
        assert_eq!(more.compare(&more), Some(Ordering::Equal));
        assert_eq!(n().compare(&Dim::from(0i64)), None);
        assert_eq!(n().compare(&Dim::from(5i64)), None);
    }
}
