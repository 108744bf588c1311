//! Backprop modifiers: named rules for rectifiers (guided, rectified), and the small rules that users combine.

use super::{Matcher, Outcome, Rule, RuleSet};
use crate::backprop::{Back, Cotangent, Coverage};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, NodeId};
use crate::op::{Op, OpDef};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Guided backpropagation: only positive gradients, and only where the rectifier's output is positive.
///
/// **Formula.** `g · [g > 0] · [y > 0]` at a Relu; at a wider rectifier its true gradient takes the place of 1.
///
/// **Known criticism.** The map looks like an edge detector and changes little when the upper layers are randomised
/// (Adebayo et al. 2018, "Sanity checks for saliency maps").
///
/// **Source.** Springenberg et al. 2015, "Striving for simplicity: the all convolutional net".
#[derive(Debug)]
pub struct Guided;

impl Rule for Guided {
    fn name(&self) -> &str {
        "guided"
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        let mut cotangents = back.vjp_of(vec![Some(back.g(0).relu())])?;
        if !matches!(back.op(), Op::Relu(_))
            && let Some(Cotangent::Flows(x)) = cotangents.first_mut()
        {
            *x = x.select_where(back.y(0).greater(0.0));
        }
        Ok(Outcome::Applied(cotangents))
    }
}

/// The deconvnet rule: only positive gradients, whatever the rectifier let through on the way forward.
///
/// **Formula.** `g · [g > 0]`.
///
/// **Known criticism.** It ignores the forward pass but for the pooling switches, so maps of different classes look
/// much alike (Nie et al. 2018, "A theoretical explanation for perplexing behaviors of backpropagation-based
/// visualizations").
///
/// **Source.** Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks".
#[derive(Debug)]
pub struct Rectified;

impl Rule for Rectified {
    fn name(&self) -> &str {
        "rectified"
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        Ok(Outcome::Applied(back.only_first(back.g(0).relu())))
    }
}

/// The true gradient, spelled out: exempts nodes from the rows that follow.
#[derive(Debug)]
pub struct TrueGradient;

impl Rule for TrueGradient {
    fn name(&self) -> &str {
        "gradient"
    }

    fn apply<'b>(&self, _: &Back<'b>) -> Result<Outcome<'b>> {
        Ok(Outcome::Default)
    }
}

/// Lets nothing through: the map shows what reaches the target without these nodes.
#[derive(Debug)]
pub struct Zero;

impl Rule for Zero {
    fn name(&self) -> &str {
        "zero"
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        let zeros = |index| back.x(index).scalar_like(0.0).expand_like(back.x(index));
        Ok(Outcome::Applied(back.each_wanted(zeros)))
    }
}

/// How an activation function can be named as a rectifier: the name, the op, and perhaps a condition on the node.
struct Rectifier {
    name: &'static str,
    op: &'static str,
    applies: Option<fn(&Graph, &Node) -> bool>,
}

/// The activation functions that behave like a rectifier: near zero on the left, growing on the right.
const RECTIFIERS: &[Rectifier] = &[
    Rectifier { name: "relu", op: "Relu", applies: None },
    Rectifier { name: "clip", op: "Clip", applies: Some(clips_at_zero) },
    Rectifier { name: "leaky_relu", op: "LeakyRelu", applies: None },
    Rectifier { name: "prelu", op: "PRelu", applies: None },
    Rectifier { name: "thresholded_relu", op: "ThresholdedRelu", applies: None },
    Rectifier { name: "elu", op: "Elu", applies: None },
    Rectifier { name: "selu", op: "Selu", applies: None },
    Rectifier { name: "celu", op: "Celu", applies: None },
    Rectifier { name: "gelu", op: "Gelu", applies: None },
    Rectifier { name: "silu", op: "Swish", applies: None },
    Rectifier { name: "mish", op: "Mish", applies: None },
    Rectifier { name: "hard_swish", op: "HardSwish", applies: None },
    Rectifier { name: "softplus", op: "Softplus", applies: None },
];

fn clips_at_zero(graph: &Graph, node: &Node) -> bool {
    let lower = node.inputs.get(1).copied().flatten();
    lower.and_then(|id| graph.fact(id).floats()).is_some_and(|values| values == [0.0])
}

/// How the backward pass treats the activation functions.
///
/// ```
/// use ouzel::rules::BackpropModifier;
/// let modifier = BackpropModifier::named("guided", &["relu", "clip"])?;
/// assert_eq!(modifier.name(), "guided");
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct BackpropModifier {
    name: String,
    rules: RuleSet,
}

impl Default for BackpropModifier {
    fn default() -> Self {
        Self::none()
    }
}

impl BackpropModifier {
    /// The names of the modifiers, aliases included.
    pub const NAMES: &'static [&'static str] = &["none", "guided", "rectified", "relu", "deconv"];

    /// The names of the activation functions that a modifier can be widened to.
    pub fn rectifiers() -> impl Iterator<Item = &'static str> {
        RECTIFIERS.iter().map(|rectifier| rectifier.name)
    }

    /// The true gradient.
    pub fn none() -> Self {
        Self { name: "none".into(), rules: RuleSet::new() }
    }

    /// [`Guided`] at every Relu, as keras-vis.
    pub fn guided() -> Self {
        Self::at(Arc::new(Guided), &[&RECTIFIERS[0]])
    }

    /// [`Rectified`] at every Relu, as keras-vis.
    pub fn rectified() -> Self {
        Self::at(Arc::new(Rectified), &[&RECTIFIERS[0]])
    }

    /// The user's own rules.
    pub fn custom(name: &str, rules: RuleSet) -> Self {
        Self { name: name.into(), rules }
    }

    fn at(rule: Arc<dyn Rule>, rectifiers: &[&'static Rectifier]) -> Self {
        let rows = rectifiers.iter().fold(RuleSet::new(), |rules, rectifier| {
            let op = Matcher::op(rectifier.op);
            let matcher = match rectifier.applies {
                Some(applies) => op.and(Matcher::predicate(rectifier.name, applies)),
                None => op,
            };
            rules.with(matcher, rule.clone())
        });
        Self { name: rule.name().to_owned(), rules: rows }
    }

    /// A modifier by name, at the named activation functions (`relu` alone if none is named).
    ///
    /// `-` and `_` are equal, and so are `rectified`, `relu` and `deconv`.
    ///
    /// # Errors
    /// If a name is unknown; the message lists the known ones.
    pub fn named(name: &str, rectifiers: &[&str]) -> Result<Self> {
        let name = name.replace('-', "_");
        if name == "none" {
            return Ok(Self::none());
        }
        let rule: Arc<dyn Rule> = match name.as_str() {
            "guided" => Arc::new(Guided),
            "rectified" | "relu" | "deconv" => Arc::new(Rectified),
            _ => {
                return Err(Error::option(format!(
                    "unknown backprop modifier '{name}': expected one of {}",
                    Self::NAMES.join(", ")
                )));
            }
        };
        let found: Result<Vec<&Rectifier>> = rectifiers
            .iter()
            .map(|wanted| {
                let plain = wanted.replace('-', "_");
                RECTIFIERS.iter().find(|known| known.name == plain).ok_or_else(|| {
                    let known: Vec<&str> = Self::rectifiers().collect();
                    Error::option(format!(
                        "unknown rectifier '{wanted}': expected one of {}",
                        known.join(", ")
                    ))
                })
            })
            .collect();
        let mut found = found?;
        if found.is_empty() {
            found.push(&RECTIFIERS[0]);
        }
        Ok(Self::at(rule, &found))
    }

    /// The modifier's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The rules that it stands for.
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// True for the true gradient.
    pub fn is_none(&self) -> bool {
        self.rules.is_empty()
    }

    /// Says which activation functions the modifier did not touch.
    pub(crate) fn left_alone(&self, graph: &Graph, coverage: &Coverage) -> Vec<String> {
        if self.is_none() {
            return Vec::new();
        }
        let hint = |rectifier: &str| format!("; to include it, add '{rectifier}' to the rectifiers");
        activations_left_alone(&format!("the backprop modifier '{}'", self.name()), graph, coverage, &hint)
    }

    /// The name under which an activation function can be added to the rectifiers: that of an op or unit, of which
    /// `meets` says whether it meets a rectifier's condition.
    fn rectifier_name(op: &str, meets: impl Fn(fn(&Graph, &Node) -> bool) -> bool) -> Option<&'static str> {
        let matches = |known: &&Rectifier| known.op == op && known.applies.is_none_or(&meets);
        RECTIFIERS.iter().find(matches).map(|known| known.name)
    }
}

/// Says which activation functions `rules` did not touch, and gives a hint where one is known as a rectifier.
pub(crate) fn activations_left_alone(
    rules: &str,
    graph: &Graph,
    coverage: &Coverage,
    hint: &dyn Fn(&str) -> String,
) -> Vec<String> {
    let mut warnings = Vec::new();
    if coverage.matched.is_empty() {
        warnings.push(format!("{rules} matched no node on the way: the map is the plain gradient"));
    }
    let mut kinds: BTreeMap<&str, (usize, Option<&'static str>)> = BTreeMap::new();
    let mut unit_of: HashMap<NodeId, usize> = HashMap::new();
    for (index, unit) in coverage.units.iter().enumerate() {
        unit_of.extend(unit.nodes.iter().map(|node| (*node, index)));
    }
    let mut told = HashSet::new();
    for id in &coverage.default {
        // The nodes of a unit are told by its name, once.
        let (op, family, rectifier) = match unit_of.get(id) {
            Some(index) if !told.insert(index) => continue,
            Some(&index) => {
                let unit = &coverage.units[index];
                (unit.name, unit.family, BackpropModifier::rectifier_name(unit.name, |_| false))
            }
            None => {
                let node = graph.node(*id);
                let meets = |condition: fn(&Graph, &Node) -> bool| condition(graph, node);
                let op = node.op.name();
                (op, node.op.family(), BackpropModifier::rectifier_name(op, meets))
            }
        };
        // A lone Erf is part of a GELU that was not recognised.
        if family == "activation" || op == "Erf" {
            kinds.entry(op).or_insert((0, rectifier)).0 += 1;
        }
    }
    for (op, (count, rectifier)) in kinds {
        let hint = rectifier.map(hint).unwrap_or_default();
        warnings.push(format!("{rules} left {count} × {op} alone{hint}"));
    }
    warnings
}
