//! The rules that can be named in a file, with their parameters.

use super::modifier::{Guided, Rectified, TrueGradient, Zero};
use super::pattern::{Estimator, Pattern, Patterns};
use super::relevance::{BetaSmooth, Move, Numerator, Pass, Product, Relevance, SoftmaxTaylor};
use super::{Rule, RuleSet};
use crate::error::{Error, Result, bail};
use serde::Deserialize;
use std::str::FromStr;
use std::sync::Arc;

/// A number, or one for each channel.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub(super) enum Bound {
    One(f64),
    Each(Vec<f64>),
}

impl Bound {
    fn numbers(&self) -> Vec<f64> {
        match self {
            Self::One(value) => vec![*value],
            Self::Each(values) => values.clone(),
        }
    }
}

/// What the rules of a file can be told.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    pub(super) epsilon: Option<f64>,
    pub(super) stabilizer: Option<f64>,
    pub(super) gamma: Option<f64>,
    pub(super) alpha: Option<f64>,
    pub(super) beta: Option<f64>,
    pub(super) low: Option<Bound>,
    pub(super) high: Option<Bound>,
    pub(super) estimator: Option<Estimator>,
}

impl Parameters {
    /// The names of those that are given.
    fn given(&self) -> impl Iterator<Item = &'static str> {
        [
            ("epsilon", self.epsilon.is_some()),
            ("stabilizer", self.stabilizer.is_some()),
            ("gamma", self.gamma.is_some()),
            ("alpha", self.alpha.is_some()),
            ("beta", self.beta.is_some()),
            ("low", self.low.is_some()),
            ("high", self.high.is_some()),
            ("estimator", self.estimator.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
    }

    fn stabilizer(&self) -> f64 {
        self.stabilizer.unwrap_or(Relevance::STABILIZER)
    }
}

/// The lowest and highest values that the input of a network can have: one pair, or one for each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct InputBounds {
    /// The lowest values.
    pub low: Vec<f64>,
    /// The highest values.
    pub high: Vec<f64>,
}

impl InputBounds {
    /// The same bounds for all channels.
    pub fn new(low: f64, high: f64) -> Self {
        Self { low: vec![low], high: vec![high] }
    }
}

impl FromStr for InputBounds {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once(',').map(|(low, high)| (low.trim().parse(), high.trim().parse()));
        match numbers {
            Some((Ok(low), Ok(high))) if low < high => Ok(Self::new(low, high)),
            _ => bail!(option, "cannot read the range '{text}'; expected LOW,HIGH, as in 0,1"),
        }
    }
}

/// What rules know of the network's inputs.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Known<'k> {
    pub(crate) bounds: Option<&'k InputBounds>,
    pub(crate) patterns: Option<&'k Arc<Patterns>>,
}

type Build = fn(&Parameters, Known<'_>) -> Result<Arc<dyn Rule>>;

fn pattern(parameters: &Parameters, known: Known<'_>, attribution: bool) -> Result<Arc<dyn Rule>> {
    let Some(patterns) = known.patterns else {
        bail!(
            option,
            "rules of patterns need pictures to estimate them from, as many and as various as the network was trained \
             for: give --patterns FOLDER"
        );
    };
    let estimator = parameters.estimator.unwrap_or_default();
    Ok(Arc::new(Pattern { patterns: patterns.clone(), estimator, attribution }))
}

/// A rule that can be named.
pub(super) struct Named {
    /// The name, and others for it.
    names: &'static [&'static str],
    /// What can be said about it.
    parameters: &'static [&'static str],
    build: Build,
}

/// The parameter of rules that need patterns.
const ESTIMATOR: &str = "estimator";

const RULES: &[Named] = &[
    Named { names: &["gradient", "none"], parameters: &[], build: |_, _| Ok(Arc::new(TrueGradient)) },
    Named { names: &["pass"], parameters: &[], build: |_, _| Ok(Arc::new(Pass)) },
    Named { names: &["zero"], parameters: &[], build: |_, _| Ok(Arc::new(Zero)) },
    Named { names: &["guided"], parameters: &[], build: |_, _| Ok(Arc::new(Guided)) },
    Named { names: &["rectified", "relu", "deconv"], parameters: &[], build: |_, _| Ok(Arc::new(Rectified)) },
    Named {
        names: &["beta_smooth"],
        parameters: &["beta"],
        build: |parameters, _| Ok(Arc::new(BetaSmooth(parameters.beta.unwrap_or(10.0)))),
    },
    Named {
        names: &["epsilon"],
        parameters: &["epsilon"],
        build: |parameters, _| {
            Ok(Arc::new(Relevance::epsilon(parameters.epsilon.unwrap_or(Relevance::STABILIZER))))
        },
    },
    Named { names: &["lrp_0"], parameters: &[], build: |_, _| Ok(Arc::new(Relevance::epsilon(0.0))) },
    Named {
        names: &["norm"],
        parameters: &["stabilizer"],
        build: |parameters, _| Ok(Arc::new(Relevance::norm(parameters.stabilizer()))),
    },
    Named {
        names: &["gamma"],
        parameters: &["gamma", "stabilizer"],
        build: |parameters, _| {
            Ok(Arc::new(Relevance::gamma(parameters.gamma.unwrap_or(0.25), parameters.stabilizer())))
        },
    },
    Named {
        names: &["alpha_beta"],
        parameters: &["alpha", "beta", "stabilizer"],
        build: |parameters, _| {
            let (alpha, beta) = match (parameters.alpha, parameters.beta) {
                (None, None) => (2.0, 1.0),
                (Some(alpha), beta) => (alpha, beta.unwrap_or(alpha - 1.0)),
                (None, Some(beta)) => (1.0 + beta, beta),
            };
            Ok(Arc::new(Relevance::alpha_beta(alpha, beta, parameters.stabilizer())?))
        },
    },
    Named {
        names: &["z_plus"],
        parameters: &["stabilizer"],
        build: |parameters, _| Ok(Arc::new(Relevance::z_plus(parameters.stabilizer()))),
    },
    Named {
        names: &["excitation"],
        parameters: &["stabilizer"],
        build: |parameters, _| Ok(Arc::new(Relevance::excitation(parameters.stabilizer()))),
    },
    Named {
        names: &["z_box"],
        parameters: &["low", "high", "stabilizer"],
        build: |parameters, known| {
            let given = |own: &Option<Bound>, bound: fn(&InputBounds) -> &Vec<f64>| match own {
                Some(own) => Some(own.numbers()),
                None => known.bounds.map(|bounds| bound(bounds).clone()),
            };
            match (given(&parameters.low, |it| &it.low), given(&parameters.high, |it| &it.high)) {
                (Some(low), Some(high)) => {
                    let rule = Relevance::z_box(&low, &high, parameters.stabilizer());
                    Ok(Arc::new(rule))
                }
                _ => bail!(
                    option,
                    "the rule 'z_box' needs the lowest and highest value that the input can have, and they do not \
                     follow from its preprocessing: give --input-range LOW,HIGH"
                ),
            }
        },
    },
    Named {
        names: &["w_square"],
        parameters: &["stabilizer"],
        build: |parameters, _| Ok(Arc::new(Relevance::w_square(parameters.stabilizer()))),
    },
    Named {
        names: &["flat"],
        parameters: &["stabilizer"],
        build: |parameters, _| Ok(Arc::new(Relevance::flat(parameters.stabilizer()))),
    },
    Named {
        names: &["pattern_net"],
        parameters: &[ESTIMATOR],
        build: |parameters, known| pattern(parameters, known, false),
    },
    Named {
        names: &["pattern_attribution"],
        parameters: &[ESTIMATOR],
        build: |parameters, known| pattern(parameters, known, true),
    },
    Named { names: &["move"], parameters: &[], build: |_, _| Ok(Arc::new(Move)) },
    Named { names: &["product"], parameters: &[], build: |_, _| Ok(Arc::new(Product::Even)) },
    Named { names: &["signal"], parameters: &[], build: |_, _| Ok(Arc::new(Product::Signal)) },
    Named { names: &["numerator"], parameters: &[], build: |_, _| Ok(Arc::new(Numerator)) },
    Named { names: &["softmax_taylor"], parameters: &[], build: |_, _| Ok(Arc::new(SoftmaxTaylor)) },
];

impl Named {
    /// The rule of a name, if it takes the parameters that are given.
    pub(super) fn find(name: &str, parameters: &Parameters) -> Result<&'static Self> {
        let plain = name.replace('-', "_");
        let Some(rule) = RULES.iter().find(|rule| rule.names.contains(&plain.as_str())) else {
            bail!(option, "unknown rule '{name}': expected one of {}", RuleSet::rule_names().join(", "));
        };
        if let Some(other) = parameters.given().find(|given| !rule.parameters.contains(given)) {
            let takes = match rule.parameters {
                [] => "takes no parameters".to_owned(),
                known => format!("takes {}", known.join(", ")),
            };
            bail!(option, "the rule '{name}' has no parameter '{other}'; it {takes}");
        }
        Ok(rule)
    }

    /// The rule with these parameters.
    pub(super) fn build(&self, parameters: &Parameters, known: Known<'_>) -> Result<Arc<dyn Rule>> {
        (self.build)(parameters, known)
    }

    /// How patterns are to be estimated for the rule, if it needs them.
    pub(super) fn estimator(&self, parameters: &Parameters) -> Option<Estimator> {
        self.parameters.contains(&ESTIMATOR).then(|| parameters.estimator.unwrap_or_default())
    }
}

impl RuleSet {
    /// The names of the rules that files can use, without aliases.
    pub fn rule_names() -> Vec<&'static str> {
        RULES.iter().map(|rule| rule.names[0]).collect()
    }
}
