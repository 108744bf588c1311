//! Layer-wise relevance propagation: rules that re-emit a node on modified inputs and weights and share out relevance.

use super::kind::{Linear, additive, gate, is_elementwise, is_nonnegative, moved_input, signal_of_self_gate};
use super::{Outcome, Rule};
use crate::backprop::{Back, Cotangent, Cotangents};
use crate::builder::Var;
use crate::error::{Result, bail};
use crate::graph::{Graph, ValueId};
use crate::op::{Op, OpDef};
use crate::tensor::Tensor;
use std::fmt;

/// What is put in the place of an input, a weight or a bias when a node is emitted again.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// It stays as it is.
    Same,
    /// All zeros; a bias is left out.
    Zero,
    /// All ones.
    One,
    /// `max(v, 0)`.
    Positive,
    /// `min(v, 0)`.
    Negative,
    /// `v²`.
    Square,
    /// `v + γ · max(v, 0)`.
    FavorPositive(f64),
    /// `v + γ · min(v, 0)`.
    FavorNegative(f64),
    /// These numbers: one, or one for each channel.
    Constant(Vec<f64>),
}

impl Change {
    /// The changed value; `channel_axis` is where numbers for each channel belong.
    fn apply<'b>(&self, v: Var<'b>, channel_axis: usize) -> Result<Var<'b>> {
        Ok(match self {
            Self::Same => v,
            Self::Zero => filled(v, 0.0),
            Self::One => filled(v, 1.0),
            Self::Positive => v.relu(),
            Self::Negative => v.minimum(0.0),
            Self::Square => v * v,
            Self::FavorPositive(gamma) => v + v.relu() * *gamma,
            Self::FavorNegative(gamma) => v + v.minimum(0.0) * *gamma,
            Self::Constant(values) => match values[..] {
                [value] => filled(v, value),
                _ => {
                    let shape = v.shape();
                    let channels = shape.get(channel_axis).and_then(|dim| dim.known());
                    if channels != Some(values.len() as i64) {
                        bail!(
                            option,
                            "there are bounds for {} channels, and {} is {}",
                            values.len(),
                            "what they bound",
                            v.fact()
                        );
                    }
                    let mut widened = vec![1; shape.len()];
                    widened[channel_axis] = values.len();
                    let constant = Tensor::from_shape_vec(&widened, values.clone())?.cast(v.dtype());
                    v.builder().constant(constant).expand_like(v)
                }
            },
        })
    }
}

/// A value of the shape of `v`, all elements equal.
fn filled(v: Var, value: f64) -> Var {
    match crate::dim::known_shape(&v.shape()) {
        // Weights: a constant, however large, so that what depends on it is one too.
        Some(shape) if v.id().is_ok_and(|id| v.builder().graph().constant(id).is_some()) => {
            let count = shape.iter().product();
            match Tensor::from_shape_vec(&shape, vec![value; count]) {
                Ok(tensor) => v.builder().constant(tensor.cast(v.dtype())),
                Err(_) => v.scalar_like(value).expand_like(v),
            }
        }
        _ => v.scalar_like(value).expand_like(v),
    }
}

/// The node on changed inputs, as one summand of a share of relevance.
#[derive(Clone, Debug, PartialEq)]
pub struct Term {
    /// The factor of the summand.
    pub sign: f64,
    /// What takes the place of the inputs that vary.
    pub input: Change,
    /// What takes the place of the weights.
    pub weight: Change,
    /// What takes the place of the bias.
    pub bias: Change,
}

impl Term {
    /// A summand with factor 1.
    pub fn new(input: Change, weight: Change, bias: Change) -> Self {
        Self { sign: 1.0, input, weight, bias }
    }

    fn minus(self) -> Self {
        Self { sign: -self.sign, ..self }
    }

    fn is_plain(&self) -> bool {
        self.weight == Change::Same && self.bias == Change::Same
    }
}

/// The outputs whose relevance a share is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Where {
    /// All.
    Everywhere,
    /// Those that are positive.
    Positive,
    /// Those that are not positive.
    Negative,
}

/// Which sign the sum of a share's terms has, wherever the share applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// Either.
    Any,
    /// It is not negative.
    Positive,
    /// It is not positive.
    Negative,
}

/// A part of the relevance of each output, given to the inputs in proportion to the sum of terms.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// The part.
    pub factor: f64,
    /// For which outputs.
    pub outputs: Where,
    /// The sign of the sum of terms, if that is known: what rounding makes of the other sign counts as 0.
    pub sign: Sign,
    /// What it is given in proportion to.
    pub terms: Vec<Term>,
}

impl Share {
    /// A part of the relevance of all outputs.
    pub fn new(factor: f64, terms: impl IntoIterator<Item = Term>) -> Self {
        Self { factor, outputs: Where::Everywhere, sign: Sign::Any, terms: terms.into_iter().collect() }
    }

    fn only(self, outputs: Where) -> Self {
        Self { outputs, ..self }
    }

    fn of_sign(self, sign: Sign) -> Self {
        Self { sign, ..self }
    }
}

/// A rule of layer-wise relevance propagation, as data.
///
/// **Formula.** With `z = Σ over terms of sign · node(x', w', b')`, each share gives
/// `Rᵢ += Σ over terms of sign · x'ᵢ · ∂node(x', w', b')/∂xᵢ · (factor · R / stabilized(z))`, where
/// `stabilized(z) = z + stabilizer · sign(z)` and `sign(0) = 1`; without a stabilizer nothing flows where `z = 0`.
/// The bias's own part, `b' · ∂node/∂b · …`, is recorded as absorbed; what the stabilizer takes, and what no contribution
/// takes because `z = 0`, as lost.
///
/// A rule of one's own takes a few lines:
///
/// ```
/// use ouzel::rules::{Change, Relevance, Share, Term};
/// // The square of each contribution's weight, by the input itself.
/// let rule = Relevance::new("x_w2", 1e-6, [Share::new(1.0, [
///     Term::new(Change::Same, Change::Square, Change::Zero),
/// ])]);
/// # let _ = rule;
/// ```
///
/// **Errors.** If weights or bias are to be changed, and the node is not linear in one input with others as weights.
///
/// **Source.** Bach et al. 2015, "On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance
/// propagation"; Montavon et al. 2019, "Layer-wise relevance propagation: an overview".
#[derive(Clone, Debug, PartialEq)]
pub struct Relevance {
    name: String,
    stabilizer: f64,
    shares: Vec<Share>,
}

impl Relevance {
    /// A rule by its shares.
    pub fn new(name: impl Into<String>, stabilizer: f64, shares: impl IntoIterator<Item = Share>) -> Self {
        Self { name: name.into(), stabilizer, shares: shares.into_iter().collect() }
    }

    /// LRP-ε: in proportion to each contribution `xᵢ · wᵢ`; `ε` of 0 is LRP-0.
    ///
    /// It suits every op: the contributions are those of the linear part at the input.
    ///
    /// **Source.** Bach et al. 2015, equation 58.
    pub fn epsilon(epsilon: f64) -> Self {
        use Change::Same;
        let name = format!("epsilon({epsilon})");
        Self::new(name, epsilon, [Share::new(1.0, [Term::new(Same, Same, Same)])])
    }

    /// In proportion to the summands of a sum: LRP-ε for what has no weights.
    ///
    /// **Source.** Bach et al. 2015.
    pub fn norm(stabilizer: f64) -> Self {
        Self { name: "norm".into(), ..Self::epsilon(stabilizer) }
    }

    /// LRP-γ, for inputs of any sign: contributions of the output's own sign weigh `1 + γ`.
    ///
    /// **Source.** Montavon et al. 2019; for negative inputs Andéol et al. 2021, "Learning domain invariant
    /// representations by joint Wasserstein distance minimization".
    pub fn gamma(gamma: f64, stabilizer: f64) -> Self {
        use Change::{FavorNegative, FavorPositive, Negative, Positive, Zero};
        let (up, down) = (FavorPositive(gamma), FavorNegative(gamma));
        let positive = [Term::new(Positive, up.clone(), up.clone()), Term::new(Negative, down.clone(), Zero)];
        let negative = [Term::new(Positive, down.clone(), down), Term::new(Negative, up, Zero)];
        let shares = [
            Share::new(1.0, positive).only(Where::Positive).of_sign(Sign::Positive),
            Share::new(1.0, negative).only(Where::Negative).of_sign(Sign::Negative),
        ];
        Self::new(format!("gamma({gamma})"), stabilizer, shares)
    }

    /// LRP-αβ: positive contributions get `α` times the relevance, negative ones `-β` times, with `α - β = 1`.
    ///
    /// **Source.** Bach et al. 2015, equation 60.
    ///
    /// # Errors
    /// If `α - β` is not 1 or one of them is negative.
    pub fn alpha_beta(alpha: f64, beta: f64, stabilizer: f64) -> Result<Self> {
        use Change::{Negative, Positive, Zero};
        if (alpha - beta - 1.0).abs() > 1e-9 || alpha < 0.0 || beta < 0.0 {
            bail!(
                option,
                "alpha - beta must be 1 and neither negative, or relevance would not be conserved; found {alpha} \
                 and {beta}"
            );
        }
        let supporting = [Term::new(Positive, Positive, Positive), Term::new(Negative, Negative, Zero)];
        let opposing = [Term::new(Positive, Negative, Negative), Term::new(Negative, Positive, Zero)];
        let mut shares = vec![Share::new(alpha, supporting).of_sign(Sign::Positive)];
        if beta > 0.0 {
            shares.push(Share::new(-beta, opposing).of_sign(Sign::Negative));
        }
        Ok(Self::new(format!("alpha_beta({alpha}, {beta})"), stabilizer, shares))
    }

    /// The z⁺-rule: positive contributions only, the bias's among them.
    ///
    /// **Source.** Montavon et al. 2017, "Explaining nonlinear classification decisions with deep Taylor decomposition".
    pub fn z_plus(stabilizer: f64) -> Self {
        use Change::{Negative, Positive, Zero};
        let terms = [Term::new(Positive, Positive, Positive), Term::new(Negative, Negative, Zero)];
        Self::new("z_plus", stabilizer, [Share::new(1.0, terms).of_sign(Sign::Positive)])
    }

    /// Excitation backprop: the probability that a winner's winner is reached, through positive weights from the
    /// positive part of the input, without biases.
    ///
    /// **Source.** Zhang et al. 2018, "Top-down neural attention by excitation backprop".
    pub fn excitation(stabilizer: f64) -> Self {
        use Change::{Positive, Zero};
        let terms = [Term::new(Positive, Positive, Zero)];
        Self::new("excitation", stabilizer, [Share::new(1.0, terms).of_sign(Sign::Positive)])
    }

    /// The zᴮ-rule, for pixels: contributions relative to the lowest and highest values that a pixel can have.
    ///
    /// Bounds are one number, or one for each channel.
    ///
    /// **Formula.** `zᵢ = xᵢ wᵢ - lᵢ max(wᵢ, 0) - hᵢ min(wᵢ, 0)`.
    ///
    /// **Source.** Montavon et al. 2017, "Explaining nonlinear classification decisions with deep Taylor decomposition".
    pub fn z_box(low: &[f64], high: &[f64], stabilizer: f64) -> Self {
        use Change::{Constant, Negative, Positive, Same, Zero};
        let terms = [
            Term::new(Same, Same, Zero),
            Term::new(Constant(low.to_vec()), Positive, Zero).minus(),
            Term::new(Constant(high.to_vec()), Negative, Zero).minus(),
        ];
        Self::new("z_box", stabilizer, [Share::new(1.0, terms)])
    }

    /// The w²-rule: in proportion to the squared weights, whatever the input.
    ///
    /// **Source.** Montavon et al. 2017, "Explaining nonlinear classification decisions with deep Taylor decomposition".
    pub fn w_square(stabilizer: f64) -> Self {
        use Change::{One, Square, Zero};
        let share = Share::new(1.0, [Term::new(One, Square, Zero)]);
        Self::new("w_square", stabilizer, [share.of_sign(Sign::Positive)])
    }

    /// The flat rule: evenly over what an output sees.
    ///
    /// **Source.** Lapuschkin et al. 2019, "Unmasking Clever Hans predictors and assessing what machines really learn".
    pub fn flat(stabilizer: f64) -> Self {
        use Change::{One, Zero};
        let share = Share::new(1.0, [Term::new(One, One, Zero)]);
        Self::new("flat", stabilizer, [share.of_sign(Sign::Positive)])
    }
}

impl fmt::Display for Relevance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// `r / (z + stabilizer · sign(z))`, and the sum of how much of `r` this times `z` falls short.
fn quotient<'b>(r: Var<'b>, z: Var<'b>, sign: Sign, stabilizer: f64) -> (Var<'b>, Var<'b>) {
    let (z, away) = match sign {
        _ if stabilizer == 0.0 => {
            let is_zero = z.equal(0.0);
            return ((r / z).select_where(!is_zero), r.select_where(is_zero).sum());
        }
        Sign::Positive => (z.relu(), stabilizer),
        Sign::Negative => (z.minimum(0.0), -stabilizer),
        Sign::Any => {
            let away = z.scalar_like(stabilizer).select(z.greater_or_equal(0.0), -stabilizer);
            let per_unit = r / (z + away);
            return (per_unit, (per_unit * away).sum());
        }
    };
    let per_unit = r / (z + away);
    (per_unit, per_unit.sum() * away)
}

/// The sum of what reaches each input, as far as it was asked for.
struct Sums<'b>(Vec<Option<Var<'b>>>);

impl<'b> Sums<'b> {
    fn add(&mut self, index: usize, value: Var<'b>, sign: f64) {
        self.0[index] = Some(match (self.0[index], sign) {
            (None, 1.0) => value,
            (None, sign) => value * sign,
            (Some(sum), 1.0) => sum + value,
            (Some(sum), -1.0) => sum - value,
            (Some(sum), sign) => sum + value * sign,
        });
    }

    fn cotangents(self, back: &Back<'b>) -> Cotangents<'b> {
        (self.0.into_iter().enumerate())
            .map(|(index, sum)| match (sum, back.wants(index)) {
                (Some(sum), true) => Cotangent::Flows(sum),
                (None, true) => Cotangent::Stops("the rule gives it no relevance"),
                (_, false) => Cotangent::Unwanted,
            })
            .collect()
    }
}

impl Rule for Relevance {
    fn name(&self) -> &str {
        &self.name
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        let plain = self.shares.iter().flat_map(|share| &share.terms).all(Term::is_plain);
        let linear = Linear::of(back.op(), |index| back.varies(index));
        if !plain && linear.is_none() {
            bail!(
                option,
                "the rule '{}' changes weights, and {} has no input that is linear in weights which are parameters; \
                 use 'epsilon', 'pass' or 'product' for it",
                self.name,
                back.op().name()
            );
        }
        if (1..).map_while(|index| back.optional_g(index)).next().is_some() {
            bail!(
                option,
                "the rule '{}' shares out the relevance of one output, and {} has more that the target depends on",
                self.name,
                back.op().name()
            );
        }
        let (x, y) = (back.x(0), back.y(0));
        // A convolution has its channels on axis 1, a dense layer on the last.
        let channel_axis = if matches!(back.op(), Op::Conv(_) | Op::ConvTranspose(_)) {
            1
        } else {
            x.rank().saturating_sub(1)
        };
        let additive: Vec<usize> = (additive(back.op(), back.arity()).into_iter())
            .filter(|&index| !back.varies(index) && back.optional_x(index).is_some())
            .collect();
        let mut wanted: Vec<bool> = (0..back.arity()).map(|index| back.wants(index)).collect();
        let mut sums = Sums(vec![None; back.arity()]);
        for share in &self.shares {
            let terms = self.nodes(share, back, linear.as_ref(), channel_axis)?;
            let z = (terms.iter()).map(|(sign, node)| (*sign, node.y(0))).fold(None, |sum, (sign, z)| {
                Some(match (sum, sign) {
                    (None, 1.0) => z,
                    (None, sign) => z * sign,
                    (Some(sum), -1.0) => sum - z,
                    (Some(sum), 1.0) => sum + z,
                    (Some(sum), sign) => sum + z * sign,
                })
            });
            let Some(z) = z else { continue };
            let r = match share.outputs {
                Where::Everywhere => back.g(0),
                Where::Positive => back.g(0).select_where(y.greater(0.0)),
                Where::Negative => back.g(0).select_where(y.less_or_equal(0.0)),
            };
            let r = if share.factor == 1.0 { r } else { r * share.factor };
            let (per_unit, lost) = quotient(r, z, share.sign, self.stabilizer);
            back.lose(lost);
            for (sign, node) in &terms {
                for &index in &additive {
                    wanted[index] = node.optional_x(index).is_some();
                }
                let cotangents = node.wanting(wanted.clone()).vjp_of(vec![Some(per_unit)])?;
                for (index, cotangent) in cotangents.into_iter().enumerate() {
                    let Cotangent::Flows(cotangent) = cotangent else { continue };
                    let part = node.x(index) * cotangent;
                    match back.wants(index) {
                        true => sums.add(index, part, *sign),
                        false if wanted[index] => {
                            let total = part.sum();
                            back.absorb(if *sign == 1.0 { total } else { total * *sign });
                        }
                        false => {}
                    }
                }
            }
        }
        Ok(Outcome::Applied(sums.cotangents(back)))
    }
}

impl Relevance {
    /// The node on the inputs of each term of a share that is not zero altogether, with the term's sign.
    fn nodes<'b>(
        &self,
        share: &Share,
        back: &Back<'b>,
        linear: Option<&Linear>,
        channel_axis: usize,
    ) -> Result<Vec<(f64, Back<'b>)>> {
        let of_inputs = |holds: &dyn Fn(&Graph, ValueId) -> bool| -> Vec<bool> {
            let graph = back.builder().graph();
            let ids = (0..back.arity()).map(|index| back.optional_x(index).and_then(|x| x.id().ok()));
            ids.map(|id| id.is_some_and(|id| holds(&graph, id))).collect()
        };
        let nonnegative = of_inputs(&|graph, id| is_nonnegative(graph, id, 8));
        let is_input_of_network = of_inputs(&moved_input);
        let mut nodes = Vec::new();
        'terms: for term in &share.terms {
            let mut x = Vec::new();
            for index in 0..back.arity() {
                let Some(value) = back.optional_x(index) else {
                    x.push(None);
                    continue;
                };
                let change = match linear {
                    Some(linear) if index == linear.weight => &term.weight,
                    Some(linear) if Some(index) == linear.bias => &term.bias,
                    _ if back.varies(index) => &term.input,
                    _ => &Change::Same,
                };
                let is_input = back.varies(index);
                if is_input && matches!(change, Change::Constant(_)) && !is_input_of_network[index] {
                    bail!(
                        option,
                        "the rule '{}' knows the bounds of the network's input, and {} reads what is computed from \
                         it: use 'w_square' or 'flat' there",
                        self.name,
                        back.op().name()
                    );
                }
                x.push(match change {
                    Change::Zero if !is_input => None,
                    Change::Negative if is_input && nonnegative[index] => continue 'terms,
                    Change::Positive if is_input && nonnegative[index] => Some(value),
                    change => Some(change.apply(value, channel_axis)?),
                });
            }
            let unchanged = (0..back.arity()).all(|index| {
                let id = |value: Option<Var>| value.and_then(|value| value.id().ok());
                id(x[index]) == id(back.optional_x(index))
            });
            let node = if unchanged { back.wanting(vec![]) } else { back.at(x) };
            nodes.push((term.sign, node));
        }
        Ok(nodes)
    }
}

/// Passes the cotangent on as if the node were not there, through the input that carries the signal.
///
/// **Errors.** If the node mixes elements and its input has another shape than its output.
///
/// **Source.** For relevance Bach et al. 2015: functions of single elements pass it on unchanged.
#[derive(Clone, Copy, Debug)]
pub struct Pass;

impl Rule for Pass {
    fn name(&self) -> &str {
        "pass"
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        let signal = {
            let graph = back.builder().graph();
            let of_gate = match back.op() {
                Op::Mul(_) => signal_of_self_gate(&graph, back.node()),
                _ => None,
            };
            of_gate.or_else(|| (0..back.arity()).find(|&index| back.varies(index))).unwrap_or(0)
        };
        if !is_elementwise(back.op()) && back.x(signal).shape() != back.y(0).shape() {
            bail!(
                option,
                "the rule 'pass' needs an op whose input and output have one shape, found {} and {}",
                back.x(signal).fact(),
                back.y(0).fact()
            );
        }
        Ok(give(back, signal))
    }
}

/// All of the relevance for one input of the output's shape, or one that was repeated to it.
fn give<'b>(back: &Back<'b>, signal: usize) -> Outcome<'b> {
    let cotangent = |index| match (index == signal, back.wants(index)) {
        (true, true) => Cotangent::Flows(back.g(0)),
        (false, true) => Cotangent::Stops("the rule gives all relevance to another input"),
        (_, false) => Cotangent::Unwanted,
    };
    Outcome::Applied((0..back.arity()).map(cotangent).collect())
}

/// How the factors of a product share its relevance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Product {
    /// Evenly, each factor's part in proportion to its contributions.
    ///
    /// **Source.** Achtibat et al. 2024, "AttnLRP: attention-aware layer-wise relevance propagation for transformers".
    Even,
    /// The gate, which a sigmoid or softmax made, gets nothing: it says how much passes, not what. Without a gate: evenly.
    ///
    /// **Source.** Arras et al. 2017, "Explaining recurrent neural network predictions in sentiment analysis"; for
    /// attention Ali et al. 2022, "XAI for transformers: better explanations through conservative propagation".
    Signal,
}

impl Rule for Product {
    fn name(&self) -> &str {
        match self {
            Self::Even => "product",
            Self::Signal => "signal",
        }
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        let factors: Vec<usize> = (0..back.arity()).filter(|&index| back.varies(index)).collect();
        let gate = match self {
            Self::Even => None,
            Self::Signal => gate(&back.builder().graph(), back.node()),
        };
        let takers: Vec<usize> = factors.into_iter().filter(|&index| Some(index) != gate).collect();
        let part = 1.0 / takers.len().max(1) as f64;
        let r = if part == 1.0 { back.g(0) } else { back.g(0) * part };
        // Of a single element's product every factor is the whole contribution.
        let single = matches!(back.op(), Op::Mul(_));
        let cotangents = match single {
            true => vec![],
            false => {
                let (per_unit, lost) = quotient(r, back.y(0), Sign::Any, Relevance::STABILIZER);
                back.lose(lost * takers.len() as f64);
                back.vjp_of(vec![Some(per_unit)])?
            }
        };
        let mut sums = Sums(vec![None; back.arity()]);
        for index in takers {
            match cotangents.get(index) {
                _ if single => sums.add(index, r, 1.0),
                Some(Cotangent::Flows(cotangent)) => sums.add(index, back.x(index) * *cotangent, 1.0),
                _ => {}
            }
        }
        Ok(Outcome::Applied(sums.cotangents(back)))
    }
}

impl Relevance {
    /// Keeps divisions apart from zero where a rule has no parameter for it.
    pub const STABILIZER: f64 = 1e-6;
}

/// All relevance to the numerator: the denominator of a normalization counts as a constant.
///
/// **Source.** Ali et al. 2022, "XAI for transformers: better explanations through conservative propagation".
#[derive(Clone, Copy, Debug)]
pub struct Numerator;

impl Rule for Numerator {
    fn name(&self) -> &str {
        "numerator"
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        Ok(give(back, 0))
    }
}

/// The deep Taylor decomposition of softmax: `Rᵢ = Rᵢ' - yᵢ · Σⱼ Rⱼ'`, times `xᵢ`, with `R' = R / y` of each output.
///
/// **Formula.** `Rᵢ = xᵢ · (Rᵢ - yᵢ · Σⱼ Rⱼ)`. The rest of the sum belongs to the constant of the decomposition, and is recorded
/// as absorbed.
///
/// **Source.** Achtibat et al. 2024, "AttnLRP: attention-aware layer-wise relevance propagation for transformers".
#[derive(Clone, Copy, Debug)]
pub struct SoftmaxTaylor;

impl Rule for SoftmaxTaylor {
    fn name(&self) -> &str {
        "softmax_taylor"
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        let (per_unit, _) = quotient(back.g(0), back.y(0), Sign::Any, 0.0);
        let mut sums = Sums(vec![None; back.arity()]);
        if let Some(Cotangent::Flows(cotangent)) = back.vjp_of(vec![Some(per_unit)])?.first() {
            let relevance = back.x(0) * *cotangent;
            back.absorb(back.g(0).sum() - relevance.sum());
            sums.add(0, relevance, 1.0);
        }
        Ok(Outcome::Applied(sums.cotangents(back)))
    }
}

/// Relevance follows elements that are moved, copied or chosen; what belongs to parameters ends in them.
#[derive(Clone, Copy, Debug)]
pub struct Move;

impl Rule for Move {
    fn name(&self) -> &str {
        "move"
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        let parameters: Vec<usize> = (additive(back.op(), back.arity()).into_iter())
            .filter(|&index| !back.varies(index) && back.optional_x(index).is_some())
            .collect();
        if parameters.is_empty() {
            return Ok(Outcome::Applied(back.vjp()?));
        }
        let wanted =
            (0..back.arity()).map(|index| back.wants(index) || parameters.contains(&index)).collect();
        let mut cotangents = back.wanting(wanted).vjp()?;
        for index in parameters {
            if let Cotangent::Flows(cotangent) = cotangents[index] {
                back.absorb(cotangent.sum());
            }
            cotangents[index] = Cotangent::Unwanted;
        }
        Ok(Outcome::Applied(cotangents))
    }
}

/// BetaSmooth: the gradient of softplus with this steepness in the place of that of Relu.
///
/// **Formula.** `g · sigmoid(β · x)`.
///
/// **Source.** Dombrowski et al. 2019, "Explanations can be manipulated and geometry is to blame".
#[derive(Clone, Copy, Debug)]
pub struct BetaSmooth(pub f64);

impl Rule for BetaSmooth {
    fn name(&self) -> &str {
        "beta_smooth"
    }

    fn apply<'b>(&self, back: &Back<'b>) -> Result<Outcome<'b>> {
        Ok(Outcome::Applied(back.only_first(back.g(0) * (back.x(0) * self.0).sigmoid())))
    }
}
