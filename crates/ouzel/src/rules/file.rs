//! Rule sets as rows of a TOML file.

use super::modifier::{RULE_NAMES, by_name};
use super::{Matcher, RuleSet};
use crate::error::{Result, bail};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    rule: Vec<Row>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    op: Option<String>,
    family: Option<String>,
    name: Option<String>,
    #[serde(default)]
    first: bool,
    #[serde(default)]
    last: bool,
    rule: String,
}

impl RuleSet {
    /// The rows of a TOML file; the first row that matches a node is used.
    ///
    /// A `[[rule]]` says which nodes by any of `op` (ONNX name), `family` (such as `activation`) and `name` (of the
    /// node or its output; `*` stands for any text), all of which must hold; `first = true` or `last = true` keeps one
    /// of them. `rule` is `guided`, `rectified`, `gradient`, `pass` or `zero`.
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
        let file: File = match toml::from_str(text) {
            Ok(file) => file,
            Err(error) => bail!(option, "not a list of rules: {}", error.to_string().trim_end()),
        };
        if file.rule.is_empty() {
            bail!(option, "there is no [[rule]]");
        }
        let mut rules = Self::new();
        for row in file.rule {
            let Some(rule) = by_name(&row.rule.replace('-', "_")) else {
                bail!(option, "unknown rule '{}': expected one of {}", row.rule, RULE_NAMES.join(", "));
            };
            rules = rules.with(row.matcher()?, rule);
        }
        Ok(rules)
    }
}

impl Row {
    fn matcher(&self) -> Result<Matcher> {
        let op = self.op.as_deref().map(Matcher::op);
        let family = self.family.as_deref().map(Matcher::family);
        let name = self.name.as_deref().map(Matcher::name);
        let all = [op, family, name].into_iter().flatten().reduce(Matcher::and).unwrap_or(Matcher::Any);
        match (self.first, self.last) {
            (true, true) => bail!(option, "a rule cannot be both first and last"),
            (true, false) => Ok(all.first()),
            (false, true) => Ok(all.last()),
            (false, false) => Ok(all),
        }
    }
}
