//! Options of methods: the tables that front ends show, and the values that they pass on.

use crate::error::{Context, Error, Result, bail};
use crate::explanation::Settings;
use crate::grad_modifiers::GradModifier;
use crate::model::TensorRef;
use crate::rules::{BackpropModifier, RuleSet};
use crate::tensor::Tensor;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

/// The conventions that can be asked for where those of the field's tools differ; the first is the default.
pub const PROFILES: &[&str] =
    &["ouzel", "keras-vis", "tf-keras-vis", "captum", "pytorch-grad-cam", "pair", "zennit"];

/// Something that can be chosen about a method.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MethodOption {
    /// The name in snake_case; on the command line with two dashes before it, and `-` for `_`.
    pub name: &'static str,
    /// What kind of value it takes.
    pub kind: OptionKind,
    /// How the value is spelled in help texts.
    pub placeholder: &'static str,
    /// What is used if nothing is said.
    pub default: &'static str,
    /// One line: what it does.
    pub about: &'static str,
}

/// What an option's value is.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum OptionKind {
    /// Said or not said.
    Flag,
    /// A number, a name, or whatever else can be typed.
    Text,
    /// One of these names; `-` and `_` are equal, and so are upper and lower case.
    Name(fn() -> Vec<&'static str>),
    /// Some of these names.
    Names(fn() -> Vec<&'static str>),
    /// A tensor, by name or by a layer's index.
    Tensor,
    /// Some tensors.
    Tensors,
    /// A name, or a TOML file.
    Toml,
    /// A name or number, or a picture or array that is prepared as the model's input is.
    Input,
    /// A `.npy` array that is used as it is.
    Array,
}

impl MethodOption {
    /// A row of a method's table.
    pub(crate) const fn new(
        name: &'static str,
        kind: OptionKind,
        placeholder: &'static str,
        default: &'static str,
        about: &'static str,
    ) -> Self {
        Self { name, kind, placeholder, default, about }
    }
}

/// The rule of the backward pass at activation functions.
pub(crate) const BACKPROP_MODIFIER: MethodOption = MethodOption::new(
    "backprop_modifier",
    OptionKind::Toml,
    "NAME|FILE.toml",
    "none",
    "another backward rule for activation functions: none, guided, rectified (also relu, deconv), or the [[rule]] rows \
     of a TOML file",
);

/// Where that rule is used.
pub(crate) const RECTIFIERS: MethodOption = MethodOption::new(
    "rectifiers",
    OptionKind::Names(|| BackpropModifier::rectifiers().collect()),
    "LIST",
    "relu",
    "the activation functions that the backprop modifier acts on",
);

/// What becomes of the attribution before it is a map.
pub(crate) const GRAD_MODIFIER: MethodOption = MethodOption::new(
    "grad_modifier",
    OptionKind::Name(|| GradModifier::names().collect()),
    "NAME",
    "absolute",
    "what is done to the attribution before it becomes a map: absolute (what matters either way), none (signed), relu \
     (what raises the target), negate (what lowers it), small_values (what keeps it), invert",
);

/// The same for methods whose attribution is signed and speaks for or against the target by itself.
pub(crate) const GRAD_MODIFIER_RELU: MethodOption = MethodOption { default: "relu", ..GRAD_MODIFIER };

/// What the target is attributed to.
pub(crate) const WRT: MethodOption = MethodOption::new(
    "wrt",
    OptionKind::Tensor,
    "TENSOR",
    "the model's input",
    "the tensor that the map is made for",
);

/// Its channels.
pub(crate) const WRT_CHANNEL_AXIS: MethodOption = MethodOption::new(
    "wrt_channel_axis",
    OptionKind::Text,
    "N",
    "1; of an input, as --layout says",
    "the channel axis of that tensor",
);

/// Whether channels are kept apart.
pub(crate) const KEEPDIMS: MethodOption = MethodOption::new(
    "keepdims",
    OptionKind::Flag,
    "",
    "no",
    "keep the channel axis instead of taking the maximum over it",
);

/// The value of an option.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum OptionValue {
    /// What was typed; a flag that is set is `yes`.
    Text(String),
    /// A text file: its name and what is in it.
    Toml(String, String),
    /// An array: the name of its file, and its elements.
    Array(String, Tensor),
}

/// The options of a method as they were chosen.
///
/// ```
/// use ouzel::{Options, method};
/// let options = Options::new().with("backprop_modifier", "guided").with("grad_modifier", "negate");
/// let saliency = method("saliency", &options)?;
/// assert_eq!(saliency.entry().name, "saliency");
/// assert!(method("saliency", &options.with("steps", "50")).is_err());
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Options {
    values: BTreeMap<String, OptionValue>,
    profile: Option<String>,
}

impl Options {
    /// Nothing is chosen.
    pub fn new() -> Self {
        Self::default()
    }

    /// Chooses a value that was typed.
    #[must_use]
    pub fn with(self, name: &str, value: &str) -> Self {
        self.with_value(name, OptionValue::Text(value.to_owned()))
    }

    /// Chooses a value.
    #[must_use]
    pub fn with_value(mut self, name: &str, value: OptionValue) -> Self {
        self.values.insert(name.replace('-', "_"), value);
        self
    }

    /// The same without one of the options.
    #[must_use]
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.values.remove(name);
        self
    }

    /// Chooses whose conventions hold: one of [`PROFILES`].
    #[must_use]
    pub fn with_profile(mut self, profile: &str) -> Self {
        self.profile = Some(profile.to_owned());
        self
    }

    /// Whose conventions hold.
    pub fn profile(&self) -> &str {
        self.profile.as_deref().unwrap_or(PROFILES[0])
    }

    /// The names of the chosen options.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.values.keys().map(String::as_str)
    }

    /// The value of an option, if it was chosen.
    pub(crate) fn value(&self, name: &str) -> Option<&OptionValue> {
        self.values.get(name)
    }

    /// What was typed for an option, if it was chosen.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.value(name) {
            None => Ok(None),
            Some(OptionValue::Text(text)) => Ok(Some(text.trim())),
            Some(OptionValue::Toml(file, _) | OptionValue::Array(file, _)) => {
                bail!(option, "{name}: expected a name or number, found the file {file}")
            }
        }
    }

    /// The value of an option as something that can be read from text.
    pub(crate) fn parse<T>(&self, name: &str, default: T) -> Result<T>
    where
        T: FromStr,
        T::Err: Display,
    {
        match self.text(name)? {
            None => Ok(default),
            Some(text) => text.parse().map_err(|error| Error::option(format!("{name} '{text}': {error}"))),
        }
    }

    /// A whole number, 1 or more.
    pub(crate) fn count(&self, name: &str, default: usize) -> Result<usize> {
        match self.parse(name, default)? {
            0 => bail!(option, "{name} 0: expected 1 or more"),
            count => Ok(count),
        }
    }

    /// Whether a flag is set.
    pub(crate) fn flag(&self, name: &str) -> Result<bool> {
        match self.text(name)? {
            None | Some("no" | "false") => Ok(false),
            Some("yes" | "true") => Ok(true),
            Some(other) => bail!(option, "{name} '{other}': expected yes or no"),
        }
    }

    /// A list of texts, separated by commas.
    pub(crate) fn list(&self, name: &str) -> Result<Vec<&str>> {
        Ok(self.text(name)?.map_or(Vec::new(), |text| text.split(',').map(str::trim).collect()))
    }

    /// The choices that every method shares; `modifier` is the method's own default.
    pub(crate) fn settings(&self, modifier: GradModifier) -> Result<Settings> {
        Ok(Settings {
            grad_modifier: self.parse("grad_modifier", modifier)?,
            wrt_tensor: self.text("wrt")?.map(TensorRef::from),
            wrt_channel_axis: match self.text("wrt_channel_axis")? {
                None => None,
                Some(_) => Some(self.parse("wrt_channel_axis", 1)?),
            },
            keep_dims: self.flag("keepdims")?,
            ..Settings::default()
        })
    }

    /// The backprop modifier, and the activation functions that it acts on.
    pub(crate) fn backprop_modifier(&self) -> Result<BackpropModifier> {
        if let Some(OptionValue::Toml(file, text)) = self.value("backprop_modifier") {
            let rules = RuleSet::from_toml(text).context(|| format!("backprop_modifier {file}"))?;
            return Ok(BackpropModifier::custom(file, rules));
        }
        let name = self.text("backprop_modifier")?.unwrap_or("none").to_ascii_lowercase();
        BackpropModifier::named(&name, &self.list("rectifiers")?)
    }
}
