//! Rows of rules as a TOML file, and the presets, which are such files.

use super::canonical::Canonical;
use super::catalog::{InputBounds, Known, Named, Parameters};
use super::kind::Kind;
use super::pattern::Estimator;
use super::presets::PRESETS;
use super::{Matcher, RuleSet};
use crate::error::{Context, Result, bail};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    about: Option<String>,
    source: Option<String>,
    #[serde(default)]
    canonical: Vec<String>,
    start: Option<Start>,
    then: Option<String>,
    #[serde(default)]
    rule: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    op: Option<String>,
    family: Option<String>,
    kind: Option<OneOrMore>,
    name: Option<String>,
    #[serde(default)]
    first: bool,
    #[serde(default)]
    last: bool,
    #[serde(default)]
    entry: bool,
    rule: String,
    /// What the rule is told.
    #[serde(flatten)]
    rest: toml::Table,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// What a backward pass starts from at the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// The target's value, so that relevance adds up to it: Captum's convention.
    #[default]
    Value,
    /// The number 1 for each target: zennit's convention, and that of gradients.
    One,
}

/// Rules by name, with the forms that the network is brought into before they apply.
///
/// ```
/// use ouzel::rules::Preset;
/// let preset = Preset::named("epsilon_plus")?;
/// println!("{}: {}\n{}", preset.name, preset.about, preset.rules(None)?);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Preset {
    /// The name, as users type it.
    pub name: String,
    /// One line: what it is for.
    pub about: String,
    /// The paper.
    pub source: String,
    /// The forms that the network is brought into first, in this order.
    pub canonical: Vec<Canonical>,
    /// What the walk has to start from; `None` leaves it open.
    pub start: Option<Start>,
    rows: Vec<(Matcher, &'static Named, Parameters)>,
}

impl std::fmt::Debug for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("rule")
    }
}

impl Preset {
    /// The names of the presets.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _)| *name)
    }

    /// A preset by name; `-` and `_` are equal.
    ///
    /// # Errors
    /// If there is none of this name; the message lists them.
    pub fn named(name: &str) -> Result<Self> {
        let plain = name.replace('-', "_");
        match PRESETS.iter().find(|(known, _)| *known == plain) {
            Some((name, text)) => Self::parse(name, text, 0),
            None => {
                let known: Vec<&str> = Self::names().collect();
                bail!(option, "unknown preset '{name}': expected one of {}, or a TOML file", known.join(", "))
            }
        }
    }

    /// The presets of a TOML file.
    ///
    /// A `[[rule]]` says which nodes by any of `op` (ONNX name), `family` (such as `activation`), `kind` (the part that
    /// they play, or a list: see [`Kind`]) and `name` (of the node or its output; `*` stands for any text), all of which
    /// must hold. `first = true` or `last = true` keeps one of them, `entry = true` those that depend on no other of
    /// them. `rule` is a name of [`RuleSet::rule_names`], with its parameters beside it.
    ///
    /// Before the rows may stand `canonical`, a list of [`Canonical`] forms; `start`, `"value"` or `"one"`; and `then`, a
    /// preset whose forms come before these and whose rows come after.
    ///
    /// ```
    /// use ouzel::rules::Preset;
    /// let preset = Preset::from_toml("mine", r#"
    ///     then = "epsilon_plus"
    ///
    ///     [[rule]]
    ///     kind = "convolution"
    ///     name = "block1*"
    ///     rule = "gamma"
    ///     gamma = 0.5
    /// "#)?;
    /// assert!(preset.rules(None)?.to_string().starts_with("convolution and name block1* -> gamma(0.5)\n"));
    /// # Ok::<(), ouzel::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the text is not TOML of this form, or names an unknown rule, kind, form or preset.
    pub fn from_toml(name: &str, text: &str) -> Result<Self> {
        Self::parse(name, text, 0)
    }

    fn parse(name: &str, text: &str, depth: usize) -> Result<Self> {
        let file: File = match toml::from_str(text) {
            Ok(file) => file,
            Err(error) => bail!(option, "not a list of rules: {}", error.to_string().trim_end()),
        };
        if file.rule.is_empty() && file.then.is_none() {
            bail!(option, "there is no [[rule]]");
        }
        let mut preset = Self {
            name: name.to_owned(),
            about: file.about.unwrap_or_default(),
            source: file.source.unwrap_or_default(),
            canonical: vec![],
            start: file.start,
            rows: vec![],
        };
        let then = match &file.then {
            Some(then) if depth < 8 => Some(
                PRESETS
                    .iter()
                    .find(|(known, _)| *known == then.replace('-', "_"))
                    .map_or_else(|| Self::named(then), |(name, text)| Self::parse(name, text, depth + 1))
                    .context(|| "then")?,
            ),
            _ => None,
        };
        let forms = then.iter().flat_map(|then| then.canonical.clone()).map(Ok);
        let forms = forms.chain(file.canonical.iter().map(|name| Canonical::named(name)));
        for form in forms {
            let form = form?;
            if !preset.canonical.contains(&form) {
                preset.canonical.push(form);
            }
        }
        for row in file.rule {
            let matcher = row.matcher().context(|| format!("the row of '{}'", row.rule))?;
            let parameters: Parameters = match row.rest.try_into() {
                Ok(parameters) => parameters,
                Err(error) => bail!(option, "the row of '{}': {}", row.rule, error.to_string().trim_end()),
            };
            let rule = Named::find(&row.rule, &parameters)?;
            preset.rows.push((matcher, rule, parameters));
        }
        if let Some(then) = then {
            preset.start = preset.start.or(then.start);
            preset.rows.extend(then.rows);
        }
        Ok(preset)
    }

    /// The rows as rules; `bounds` are what the box rule needs unless the preset says it.
    ///
    /// # Errors
    /// If a parameter does not fit its rule, or bounds are needed and not known.
    pub fn rules(&self, bounds: Option<&InputBounds>) -> Result<RuleSet> {
        self.rules_knowing(Known { bounds, patterns: None })
    }

    /// The rows as rules.
    pub(crate) fn rules_knowing(&self, known: Known<'_>) -> Result<RuleSet> {
        self.rows.iter().try_fold(RuleSet::new(), |rules, (matcher, rule, parameters)| {
            Ok(rules.with(matcher.clone(), rule.build(parameters, known)?))
        })
    }

    /// How the patterns that rows need are to be estimated.
    pub(crate) fn estimators(&self) -> Vec<Estimator> {
        let mut all: Vec<Estimator> = Vec::new();
        for estimator in self.rows.iter().filter_map(|(_, rule, parameters)| rule.estimator(parameters)) {
            if !all.contains(&estimator) {
                all.push(estimator);
            }
        }
        all
    }
}

impl RuleSet {
    /// The rows of a TOML file; the first row that matches a node is used.
    ///
    /// The form of the file is that of [`Preset::from_toml`], without what stands before the rows.
    ///
    /// ```
    /// use ouzel::rules::RuleSet;
    /// let rules = RuleSet::from_toml(r#"
    ///     [[rule]]
    ///     op = "Relu"
    ///     first = true
    ///     rule = "gradient"
    ///
    ///     [[rule]]
    ///     op = "Relu"
    ///     rule = "guided"
    /// "#)?;
    /// assert_eq!(rules.to_string(), "first Relu -> gradient\nRelu -> guided\nanything else -> gradient");
    /// # Ok::<(), ouzel::Error>(())
    /// ```
    ///
    /// # Errors
    /// If the text is not TOML of this form or names an unknown rule.
    pub fn from_toml(text: &str) -> Result<Self> {
        let preset = Preset::from_toml("", text)?;
        if !preset.canonical.is_empty() || preset.start.is_some() {
            bail!(
                option,
                "'canonical', 'start' and 'then' are for relevance (--method lrp --rules FILE.toml)"
            );
        }
        preset.rules(None)
    }
}

impl Row {
    fn matcher(&self) -> Result<Matcher> {
        let op = self.op.as_deref().map(Matcher::op);
        let family = self.family.as_deref().map(Matcher::family);
        let name = self.name.as_deref().map(Matcher::name);
        let names: Vec<&String> = match &self.kind {
            None => vec![],
            Some(OneOrMore::One(name)) => vec![name],
            Some(OneOrMore::More(names)) => names.iter().collect(),
        };
        let kinds: Result<Vec<Kind>> = names
            .into_iter()
            .map(|name| match Kind::named(name) {
                Some(kind) => Ok(kind),
                None => {
                    let known: Vec<&str> = Kind::NAMES.iter().map(|(name, _)| *name).collect();
                    bail!(option, "unknown kind '{name}': expected one of {}", known.join(", "))
                }
            })
            .collect();
        let kinds = kinds?;
        let kind = (!kinds.is_empty()).then_some(Matcher::Kind(kinds));
        let all = [op, family, kind, name].into_iter().flatten().reduce(Matcher::and).unwrap_or(Matcher::Any);
        match (self.first, self.last, self.entry) {
            (false, false, false) => Ok(all),
            (true, false, false) => Ok(all.first()),
            (false, true, false) => Ok(all.last()),
            (false, false, true) => Ok(all.entry()),
            _ => bail!(option, "a rule can be one of first, last and entry, not several"),
        }
    }
}
