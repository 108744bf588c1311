//! The language that units are described in: arithmetic over ops, kept in a normal form.
//!
//! A pattern is an expression such as `0.5 * x * (1 + Erf(x / 1.41421))`. Sums and products are matched whatever their
//! order, nesting and spelling: `x / 2` is `x * 0.5`, `x * x` is `x^2`, `1 / Sqrt(x)` is `x^-0.5`, `a - b` is
//! `a + -1 * b`. A name that occurs twice is one value. `~` is some number (1 or 0 where there is none), `ε` a small
//! positive one, `_` anything. Brackets after an op hold a condition on its attributes.

/// What a number in a pattern may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Exactly(f64),
    /// Above 0, at most 0.5.
    Small,
    Some,
}

impl Number {
    /// Exporters round numbers to the type of the network, at worst to the 8 bits of bfloat16.
    const TOLERANCE: f64 = 2e-3;

    pub(super) fn accepts(self, value: f64) -> bool {
        match self {
            Self::Exactly(expected) => (value - expected).abs() <= Self::TOLERANCE * expected.abs(),
            Self::Small => value > 0.0 && value <= 0.5,
            Self::Some => value.is_finite(),
        }
    }

    pub(super) fn negated(self) -> Self {
        match self {
            Self::Exactly(value) => Self::Exactly(-value),
            other => other,
        }
    }

    fn combined(self, other: Self, neutral: f64, combine: impl Fn(f64, f64) -> f64) -> Self {
        match (self, other) {
            (Self::Exactly(a), Self::Exactly(b)) => Self::Exactly(combine(a, b)),
            (Self::Exactly(a), b) if a == neutral => b,
            (a, Self::Exactly(b)) if b == neutral => a,
            _ => Self::Some,
        }
    }
}

/// An expression that a value of a graph may be.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Pattern {
    /// What the unit is a function of, by its place among the declared inputs.
    Input(usize),
    Anything,
    /// Terms with their coefficients, and a number; no term is a sum, none has a coefficient of its own.
    Sum(Vec<(Number, Pattern)>, Number),
    /// A number times factors with exponents; no factor is a product.
    Product(Number, Vec<(Pattern, f64)>),
    /// An op, a condition on it, and its inputs.
    Call(String, Option<String>, Vec<Pattern>),
}

const ONE: Number = Number::Exactly(1.0);
const ZERO: Number = Number::Exactly(0.0);

impl Pattern {
    fn number(number: Number) -> Self {
        Self::Product(number, Vec::new())
    }

    fn terms(self) -> (Vec<(Number, Self)>, Number) {
        match self {
            Self::Sum(terms, offset) => (terms, offset),
            Self::Product(number, factors) if factors.is_empty() => (Vec::new(), number),
            Self::Product(Number::Exactly(-1.0), mut factors)
                if matches!(factors[..], [(Self::Sum(..), 1.0)]) =>
            {
                let (terms, offset) = factors.remove(0).0.terms();
                let terms = terms.into_iter().map(|(number, term)| (number.negated(), term)).collect();
                (terms, offset.negated())
            }
            Self::Product(number, factors) => (vec![(number, Self::of_factors(ONE, factors))], ZERO),
            other => (vec![(ONE, other)], ZERO),
        }
    }

    fn factors(self) -> (Number, Vec<(Self, f64)>) {
        match self {
            Self::Product(number, factors) => (number, factors),
            other => (ONE, vec![(other, 1.0)]),
        }
    }

    fn of_factors(number: Number, mut factors: Vec<(Self, f64)>) -> Self {
        match (number, &factors[..]) {
            (ONE, [(_, 1.0)]) => factors.remove(0).0,
            _ => Self::Product(number, factors),
        }
    }

    fn plus(self, other: Self) -> Self {
        let ((mut terms, a), (more, b)) = (self.terms(), other.terms());
        terms.extend(more);
        Self::Sum(terms, a.combined(b, 0.0, |a, b| a + b))
    }

    fn times(self, other: Self) -> Self {
        let ((a, mut factors), (b, more)) = (self.factors(), other.factors());
        for (factor, exponent) in more {
            match factors.iter_mut().find(|(known, _)| *known == factor) {
                Some((_, sum)) => *sum += exponent,
                None => factors.push((factor, exponent)),
            }
        }
        Self::of_factors(a.combined(b, 1.0, |a, b| a * b), factors)
    }

    fn power(self, exponent: f64) -> Self {
        let (number, mut factors) = self.factors();
        factors.iter_mut().for_each(|(_, own)| *own *= exponent);
        let number = match number {
            Number::Exactly(value) => Number::Exactly(value.powf(exponent)),
            other => other,
        };
        Self::of_factors(number, factors)
    }

    /// The ops that a graph must have for the pattern to be in it.
    pub(super) fn ops(&self) -> Vec<&str> {
        match self {
            Self::Input(_) | Self::Anything => Vec::new(),
            Self::Sum(terms, _) => terms.iter().flat_map(|(_, term)| term.ops()).collect(),
            Self::Product(_, factors) => factors.iter().flat_map(|(factor, _)| factor.ops()).collect(),
            Self::Call(op, _, arguments) => {
                std::iter::once(op.as_str()).chain(arguments.iter().flat_map(Self::ops)).collect()
            }
        }
    }
}

/// Reads a pattern over declared inputs. Where a definition has alternatives, separated by `|`, all combinations are
/// given.
///
/// # Errors
/// If the text is not a pattern; a bug of the table.
pub(super) fn read(
    text: &str,
    inputs: &[&str],
    definitions: &[(&str, &str)],
) -> Result<Vec<Pattern>, String> {
    let counts: Vec<usize> = definitions.iter().map(|(_, text)| text.split('|').count()).collect();
    let mut found: Vec<Pattern> = Vec::new();
    for combination in 0..counts.iter().product::<usize>() {
        let mut rest = combination;
        let mut chosen = Vec::new();
        for (count, (name, text)) in counts.iter().zip(definitions) {
            chosen.push((*name, text.split('|').nth(rest % count).unwrap_or_default()));
            rest /= count;
        }
        let mut reader = Reader { text, inputs, definitions: &chosen };
        let pattern = reader.sum()?;
        if !reader.text.trim().is_empty() {
            return Err(format!("left over: {}", reader.text));
        }
        if !found.contains(&pattern) {
            found.push(pattern);
        }
    }
    Ok(found)
}

struct Reader<'t> {
    text: &'t str,
    inputs: &'t [&'t str],
    definitions: &'t [(&'t str, &'t str)],
}

impl<'t> Reader<'t> {
    /// Steps over a text if it comes next.
    fn skip(&mut self, text: &str) -> bool {
        let found = self.text.trim_start().strip_prefix(text);
        self.text = found.unwrap_or(self.text);
        found.is_some()
    }

    fn expect(&mut self, text: &str) -> Result<(), String> {
        match self.skip(text) {
            true => Ok(()),
            false => Err(format!("expected '{text}' before: {}", self.text)),
        }
    }

    /// The characters that come next and fit.
    fn take(&mut self, fits: impl Fn(char) -> bool) -> &'t str {
        let text = self.text.trim_start();
        let end = text.find(|character| !fits(character)).unwrap_or(text.len());
        self.text = &text[end..];
        &text[..end]
    }

    fn sum(&mut self) -> Result<Pattern, String> {
        let mut sum = self.product()?;
        loop {
            if self.skip("+") {
                sum = sum.plus(self.product()?);
            } else if self.skip("-") {
                let minus = Pattern::number(Number::Exactly(-1.0));
                sum = sum.plus(minus.times(self.product()?));
            } else {
                return Ok(sum);
            }
        }
    }

    fn product(&mut self) -> Result<Pattern, String> {
        let mut product = self.power()?;
        loop {
            if self.skip("*") {
                product = product.times(self.power()?);
            } else if self.skip("/") {
                product = product.times(self.power()?.power(-1.0));
            } else {
                return Ok(product);
            }
        }
    }

    fn power(&mut self) -> Result<Pattern, String> {
        let base = self.base()?;
        match self.skip("^") {
            true => Ok(base.power(self.number()?)),
            false => Ok(base),
        }
    }

    fn number(&mut self) -> Result<f64, String> {
        let sign = if self.skip("-") { -1.0 } else { 1.0 };
        let digits = self.take(|character| character.is_ascii_digit() || character == '.');
        digits.parse::<f64>().map(|value| sign * value).map_err(|_| format!("a number before: {}", self.text))
    }

    fn base(&mut self) -> Result<Pattern, String> {
        if self.skip("(") {
            let inner = self.sum()?;
            self.expect(")")?;
            return Ok(inner);
        }
        for (sign, pattern) in [
            ("~", Pattern::number(Number::Some)),
            ("ε", Pattern::number(Number::Small)),
            ("_", Pattern::Anything),
        ] {
            if self.skip(sign) {
                return Ok(pattern);
            }
        }
        if self
            .text
            .trim_start()
            .starts_with(|character: char| character.is_ascii_digit() || character == '-')
        {
            return Ok(Pattern::number(Number::Exactly(self.number()?)));
        }
        let name = self.take(|character| character.is_ascii_alphanumeric());
        let condition = match self.skip("[") {
            true => {
                let condition = self.take(|character| character.is_ascii_alphanumeric());
                self.expect("]")?;
                Some(condition.to_owned())
            }
            false => None,
        };
        if self.skip("(") {
            let mut arguments = vec![self.sum()?];
            while self.skip(",") {
                arguments.push(self.sum()?);
            }
            self.expect(")")?;
            return Ok(Pattern::Call(name.to_owned(), condition, arguments));
        }
        if let Some(place) = self.inputs.iter().position(|input| input.trim_start_matches(['#', '!']) == name)
        {
            return Ok(Pattern::Input(place));
        }
        match self.definitions.iter().find(|(defined, _)| *defined == name) {
            Some((_, text)) => {
                let mut inner = Reader { text, ..*self };
                let pattern = inner.sum()?;
                match inner.text.trim().is_empty() {
                    true => Ok(pattern),
                    false => Err(format!("left over: {}", inner.text)),
                }
            }
            None => Err(format!("'{name}' is not defined, before: {}", self.text)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Pattern {
        let mut read = read(text, &["x", "y"], &[("both", "x + y")]).unwrap();
        assert_eq!(read.len(), 1);
        read.remove(0)
    }

    #[test]
    fn equal_expressions_have_one_form() {
        for (a, b) in [
            ("x / 2", "0.5 * x"),
            ("x * x", "x^2"),
            ("1 / x", "x^-1"),
            ("2 * (x * y)", "2 * x * y"),
            ("x - (x + 1)", "x - x - 1"),
            ("both * 3", "(x + y) * 3"),
            ("(x^2)^0.5", "x"),
            ("(2 * x)^2", "4 * x^2"),
        ] {
            assert_eq!(one(a), one(b), "{a}");
        }
        assert_ne!(one("x + y"), one("x * y"));
    }

    #[test]
    fn alternatives_are_chosen_once_for_a_pattern() {
        let read = read("f * f + g", &["x"], &[("f", "Exp(x) | Log(x)"), ("g", "Abs(f) | x")]).unwrap();
        assert_eq!(read.len(), 4);
        assert!(
            read.iter().all(|pattern| !(pattern.ops().contains(&"Exp") && pattern.ops().contains(&"Log")))
        );
    }

    #[test]
    fn mistakes_are_errors() {
        for text in ["x +", "(x", "Exp(x", "z", "x y", "x^", ""] {
            assert!(read(text, &["x"], &[]).is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_may_be_rounded_to_narrow_types() {
        assert!(Number::Exactly(0.797_884_56).accepts(0.796_875));
        assert!(!Number::Exactly(1.0).accepts(1.1));
        assert!(Number::Exactly(0.0).accepts(0.0));
        assert!(Number::Small.accepts(1e-5) && !Number::Small.accepts(0.0) && !Number::Small.accepts(1.0));
    }
}
