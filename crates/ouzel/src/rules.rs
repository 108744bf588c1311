//! Rules replace the true gradient of some nodes and units; a rule set says which rule goes where.

mod array;
mod canonical;
mod catalog;
pub mod deeplift;
mod file;
mod kind;
mod matcher;
mod modifier;
mod pattern;
mod presets;
mod relevance;
mod reveal_cancel;

#[cfg(test)]
mod tests;

pub use array::ArrayRule;
pub use canonical::Canonical;
pub use catalog::InputBounds;
pub(crate) use catalog::Known;
pub use file::{Preset, Start};
pub use kind::Kind;
pub use matcher::{Matcher, Predicate};
pub(crate) use modifier::activations_left_alone;
pub use modifier::{BackpropModifier, Guided, Rectified, TrueGradient, Zero};
pub use pattern::{Estimator, Pattern, Patterns};
pub use relevance::{
    BetaSmooth, Change, Move, Numerator, Pass, Product, Relevance, Share, Sign, SoftmaxTaylor, Term, Where,
};

use crate::backprop::{Back, Cotangents};
use crate::error::Result;
use crate::graph::Graph;
use crate::units::Unit;
use matcher::Spot;
use std::fmt;
use std::sync::Arc;

/// What a rule did with a node.
#[derive(Debug)]
pub enum Outcome<'b> {
    /// It returns these cotangents.
    Applied(Cotangents<'b>),
    /// It leaves the node to its true gradient.
    Default,
}

/// A backward rule: how the cotangents of a node's outputs become those of its inputs.
///
/// Any function of a [`Back`] is a rule through [`rule`].
pub trait Rule: fmt::Debug + Send + Sync {
    /// The name that reports show.
    fn name(&self) -> &str;

    /// The cotangents of the inputs, as new nodes of the graph.
    ///
    /// # Errors
    /// If the rule's assumptions about the node do not hold.
    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>>;
}

/// Makes a rule of a closure over the graph builder.
///
/// ```
/// use ouzel::rules::{Matcher, Outcome, RuleSet, rule};
/// // Halves the gradient at every Relu.
/// let halve = rule("halve", |back| {
///     let halves = vec![Some(back.g(0) * 0.5)];
///     Ok(Outcome::Applied(back.vjp_of(halves)?))
/// });
/// let rules = RuleSet::new().with(Matcher::op("Relu"), halve);
/// assert_eq!(rules.len(), 1);
/// ```
pub fn rule<F>(name: &str, apply: F) -> Arc<dyn Rule>
where
    F: for<'b> Fn(&Back<'b>) -> Result<Outcome<'b>> + Send + Sync + 'static,
{
    Arc::new(Closure { name: name.to_owned(), apply })
}

struct Closure<F> {
    name: String,
    apply: F,
}

impl<F> fmt::Debug for Closure<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl<F> Rule for Closure<F>
where
    F: for<'b> Fn(&Back<'b>) -> Result<Outcome<'b>> + Send + Sync,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        (self.apply)(back)
    }
}

/// Ordered rows of (matcher, rule): the first row that matches a node is used, else the true gradient.
#[derive(Clone, Debug, Default)]
pub struct RuleSet {
    rows: Vec<(Matcher, Arc<dyn Rule>)>,
}

impl RuleSet {
    /// No rows: the true gradient everywhere.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row after the others.
    #[must_use]
    pub fn with(mut self, matcher: Matcher, rule: Arc<dyn Rule>) -> Self {
        self.rows.push((matcher, rule));
        self
    }

    /// Adds the rows of another set after these.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.rows.extend(other.rows);
        self
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// True if there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The rows in order.
    pub fn rows(&self) -> impl Iterator<Item = (&Matcher, &Arc<dyn Rule>)> {
        self.rows.iter().map(|(matcher, rule)| (matcher, rule))
    }

    /// The rule of each node and of each unit.
    ///
    /// A unit that has a rule is one node to it, whatever its nodes have.
    pub(crate) fn select(&self, graph: &Graph, units: &[Unit]) -> Selection<'_> {
        let spots = Spot::all(graph, units);
        let mut selected: Vec<Option<&dyn Rule>> = vec![None; spots.len()];
        for (matcher, rule) in &self.rows {
            let units = matcher.names_units();
            let verdicts = matcher.verdicts(graph, &spots);
            for ((place, spot), matches) in selected.iter_mut().zip(&spots).zip(verdicts) {
                if matches && place.is_none() && (units || spot.unit.is_none()) {
                    *place = Some(&**rule);
                }
            }
        }
        let (mut of_nodes, mut of_units) = (Vec::new(), Vec::new());
        for (spot, rule) in spots.iter().zip(selected) {
            if spot.unit.is_some() { of_units.push(rule) } else { of_nodes.push(rule) }
        }
        Selection { of_nodes, of_units }
    }
}

/// The rules that a rule set has for a graph; `None` where the true gradient is meant.
pub(crate) struct Selection<'r> {
    /// For each node.
    pub(crate) of_nodes: Vec<Option<&'r dyn Rule>>,
    /// For each unit.
    pub(crate) of_units: Vec<Option<&'r dyn Rule>>,
}

impl fmt::Display for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (matcher, rule) in &self.rows {
            writeln!(f, "{matcher} -> {}", rule.name())?;
        }
        f.write_str("anything else -> gradient")
    }
}
