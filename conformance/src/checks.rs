//! Comparisons of one case, and why those that fail do.

use ndarray::ArrayD;
use serde::Deserialize;
use std::fmt::Display;

/// How close is close enough: `|ours - theirs| <= atol + rtol · |theirs|`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) atol: f64,
    pub(crate) rtol: f64,
}

/// A case's own tolerance, and what its data says about how well the answer is determined.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct Tolerance {
    atol: Option<f64>,
    rtol: Option<f64>,
    #[serde(default)]
    advice: String,
    /// For cases whose exact gradient is zero, and whose result is therefore noise.
    pub(crate) raw_gradient_atol: Option<f64>,
}

impl Tolerance {
    /// The elementwise limits, unless elementwise comparison makes no sense.
    pub(crate) fn limits(&self) -> Option<Limits> {
        self.atol.map(|atol| Limits { atol, rtol: self.rtol.unwrap_or(0.0) })
    }

    /// True if a modifier such as `1 / (g + ε)` makes much of the last digits of the gradient.
    pub(crate) fn is_ill_conditioned(&self) -> bool {
        self.advice.contains("ill-conditioned")
    }
}

/// The comparisons made for one case.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    failures: Vec<String>,
}

impl Checks {
    /// Every element within the limits.
    pub(crate) fn close(&mut self, what: &str, ours: &ArrayD<f64>, theirs: &ArrayD<f64>, limits: Limits) {
        if !self.same_shape(what, ours, theirs) {
            return;
        }
        let allowed = |theirs: f64| limits.atol + limits.rtol * theirs.abs();
        let mut beyond = 0;
        let mut worst = (0.0, String::new());
        for ((place, &a), &b) in ours.indexed_iter().zip(theirs) {
            let excess = (a - b).abs() / allowed(b);
            if excess <= 1.0 || a == b {
                continue;
            }
            beyond += 1;
            if excess.is_nan() || excess > worst.0 {
                let place = ndarray::Dimension::slice(&place);
                worst =
                    (excess, format!("at {place:?} found {a:e}, expected {b:e} within {:.1e}", allowed(b)));
            }
        }
        if beyond > 0 {
            self.fail(format!("{what}: {beyond} of {} elements differ; worst {}", ours.len(), worst.1));
        }
    }

    /// `‖ours - theirs‖ / ‖theirs‖` within the limit.
    pub(crate) fn relative(&mut self, what: &str, ours: &ArrayD<f64>, theirs: &ArrayD<f64>, limit: f64) {
        if !self.same_shape(what, ours, theirs) {
            return;
        }
        let error = relative_error(ours, theirs);
        if error > limit || error.is_nan() {
            self.fail(format!("{what}: relative error {error:.2e}, expected at most {limit:.0e}"));
        }
    }

    /// Pearson's correlation at least the limit.
    pub(crate) fn correlated(&mut self, what: &str, ours: &ArrayD<f64>, theirs: &ArrayD<f64>, limit: f64) {
        if !self.same_shape(what, ours, theirs) {
            return;
        }
        let around_mean = |x: &ArrayD<f64>| x - x.mean().unwrap_or(0.0);
        let (a, b) = (around_mean(ours), around_mean(theirs));
        let product = |a: &ArrayD<f64>, b: &ArrayD<f64>| (a * b).sum();
        let correlation = product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt();
        if correlation < limit || correlation.is_nan() {
            self.fail(format!("{what}: correlation {correlation:.4}, expected at least {limit}"));
        }
    }

    /// Two things that must be equal.
    pub(crate) fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, ours: T, theirs: T) {
        if ours != theirs {
            self.fail(format!("{what}: found {ours:?}, expected {theirs:?}"));
        }
    }

    fn same_shape(&mut self, what: &str, ours: &ArrayD<f64>, theirs: &ArrayD<f64>) -> bool {
        let same = ours.shape() == theirs.shape();
        if !same {
            self.fail(format!("{what}: found shape {:?}, expected {:?}", ours.shape(), theirs.shape()));
        }
        same
    }

    fn fail(&mut self, message: impl Display) {
        self.failures.push(message.to_string());
    }

    pub(crate) fn into_failures(self) -> Vec<String> {
        self.failures
    }
}

/// `‖ours - theirs‖ / ‖theirs‖`; 0 if both are all zeros.
pub(crate) fn relative_error(ours: &ArrayD<f64>, theirs: &ArrayD<f64>) -> f64 {
    let norm = |x: &ArrayD<f64>| x.iter().map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&(ours - theirs));
    if difference == 0.0 { 0.0 } else { difference / norm(theirs) }
}

/// The largest magnitude.
pub(crate) fn largest(x: &ArrayD<f64>) -> f64 {
    x.iter().fold(0.0, |max, v| max.max(v.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::arr1;

    fn failures(run: impl Fn(&mut Checks)) -> String {
        let mut checks = Checks::default();
        run(&mut checks);
        checks.into_failures().join("\n")
    }

    #[test]
    fn an_element_beyond_the_limits_is_reported_with_its_place() {
        let (ours, theirs) = (arr1(&[1.0, 2.0]).into_dyn(), arr1(&[1.0, 2.1]).into_dyn());
        let limits = |atol| Limits { atol, rtol: 0.0 };
        assert_eq!(failures(|checks| checks.close("map", &ours, &theirs, limits(0.2))), "");
        let message = failures(|checks| checks.close("map", &ours, &theirs, limits(0.01)));
        assert!(message.starts_with("map: 1 of 2 elements differ; worst at [1] found 2e0"), "{message}");
    }

    #[test]
    fn nan_and_other_shapes_never_pass() {
        let nan = arr1(&[f64::NAN]).into_dyn();
        let zero = arr1(&[0.0]).into_dyn();
        let wide = Limits { atol: 1e9, rtol: 0.0 };
        assert!(failures(|checks| checks.close("map", &nan, &zero, wide)).contains("NaN"));
        assert!(failures(|checks| checks.relative("map", &nan, &zero, 1.0)).contains("NaN"));
        let two = arr1(&[0.0, 0.0]).into_dyn();
        assert!(failures(|checks| checks.close("map", &two, &zero, wide)).contains("shape [2]"));
    }

    #[test]
    fn zeros_equal_zeros() {
        let zero = arr1(&[0.0]).into_dyn();
        assert_eq!(failures(|checks| checks.relative("map", &zero, &zero, 0.0)), "");
        assert_eq!(failures(|checks| checks.close("map", &zero, &zero, Limits { atol: 0.0, rtol: 0.0 })), "");
    }
}
