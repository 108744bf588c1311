//! The explanation methods, one a file, and the list of them that front ends show and choose from.

pub mod ablation_cam;
pub mod blur_ig;
pub mod cam;
pub mod deeplift;
pub mod eigen_cam;
pub mod expected_gradients;
pub mod feature_ablation;
pub mod full_grad;
mod grad_cam;
mod grad_cam_plus_plus;
pub mod guided_grad_cam;
pub mod guided_ig;
mod hires_cam;
pub mod input_x_gradient;
pub mod integrated_gradients;
#[cfg(test)]
mod laws;
mod layer_cam;
pub mod lrp;
pub mod occlusion;
pub mod path;
pub mod rise;
pub mod saliency;
pub mod score_cam;
pub mod smoothgrad;
pub mod visualize_cam;
mod xgrad_cam;
pub mod xrai;

use crate::error::{Context, Result, bail};
use crate::explanation::Method;
use crate::options::{MethodOption, Options, PROFILES};

/// A row of [`METHODS`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MethodEntry {
    /// The snake_case name.
    pub name: &'static str,
    /// One line: what the map shows.
    pub about: &'static str,
    /// What a number of the raw map means.
    pub unit: &'static str,
    /// What it costs in passes through the network.
    pub cost: &'static str,
    /// The paper.
    pub source: &'static str,
    /// What is held against it.
    pub criticism: &'static str,
    /// What can be chosen.
    pub options: &'static [MethodOption],
    /// Makes the method of what was chosen; see [`method`].
    pub(crate) new: fn(&Options) -> Result<Box<dyn Method>>,
}

impl MethodEntry {
    /// True if it has an option of this name itself.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.iter().any(|known| known.name == option)
    }

    /// What can be chosen: its own options and, if it runs another method, those of `inner`, that method's name.
    pub fn options_with(&self, inner: Option<&str>) -> Vec<&'static MethodOption> {
        let mut options: Vec<&'static MethodOption> = self.options.iter().collect();
        if let Some(own) = self.options.iter().find(|option| option.name == smoothgrad::INNER.name) {
            let inner = inner.unwrap_or(own.default).replace('-', "_");
            let of_inner =
                METHODS.iter().filter(|method| method.name == inner).flat_map(|method| method.options);
            let others: Vec<_> =
                of_inner.filter(|option| options.iter().all(|known| known.name != option.name)).collect();
            options.extend(others);
        }
        options
    }
}

/// The methods, in the order in which they are shown; the first is the default.
///
/// ```
/// let names: Vec<&str> = ouzel::METHODS.iter().map(|method| method.name).collect();
/// assert!(names.contains(&"saliency"));
/// ```
pub const METHODS: &[MethodEntry] = &[
    saliency::ENTRY,
    input_x_gradient::ENTRY,
    smoothgrad::SMOOTHGRAD,
    smoothgrad::SMOOTHGRAD_SQUARED,
    smoothgrad::VARGRAD,
    integrated_gradients::ENTRY,
    expected_gradients::ENTRY,
    blur_ig::ENTRY,
    guided_ig::ENTRY,
    xrai::ENTRY,
    grad_cam::ENTRY,
    grad_cam_plus_plus::ENTRY,
    hires_cam::ENTRY,
    xgrad_cam::ENTRY,
    layer_cam::ENTRY,
    eigen_cam::ENTRY,
    score_cam::ENTRY,
    ablation_cam::ENTRY,
    full_grad::ENTRY,
    guided_grad_cam::ENTRY,
    lrp::ENTRY,
    deeplift::ENTRY,
    occlusion::ENTRY,
    rise::ENTRY,
    feature_ablation::ENTRY,
];

/// The method of this name, with these options.
///
/// # Errors
/// If there is no such method, if it has no such option, or if a value is impossible.
pub fn method(name: &str, options: &Options) -> Result<Box<dyn Method>> {
    let plain = name.replace('-', "_");
    let Some(entry) = METHODS.iter().find(|entry| entry.name == plain) else {
        let names: Vec<&str> = METHODS.iter().map(|entry| entry.name).collect();
        bail!(option, "unknown method '{name}': expected one of {}", names.join(", "));
    };
    if !PROFILES.contains(&options.profile()) {
        bail!(option, "unknown profile '{}': expected one of {}", options.profile(), PROFILES.join(", "));
    }
    let own = entry.options_with(options.text(smoothgrad::INNER.name)?);
    if let Some(other) = options.names().find(|name| own.iter().all(|known| known.name != *name)) {
        let names: Vec<&str> = own.iter().map(|option| option.name).collect();
        bail!(option, "the method {} has no option '{other}'; it has {}", entry.name, names.join(", "));
    }
    (entry.new)(options).context(|| entry.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::OptionKind;

    #[test]
    fn every_method_is_described() {
        for (index, method) in METHODS.iter().enumerate() {
            assert!(METHODS[..index].iter().all(|other| other.name != method.name), "{}", method.name);
            assert!(
                method.name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')),
                "{}",
                method.name
            );
            for text in [method.about, method.unit, method.cost, method.source, method.criticism] {
                assert!(!text.is_empty() && !text.ends_with('.'), "{}: {text:?}", method.name);
            }
            for option in method.options {
                assert!(!option.default.is_empty() && !option.about.is_empty(), "{}", option.name);
            }
        }
    }

    #[test]
    fn methods_are_made_of_their_entries_and_defaults_are_as_described() {
        for entry in METHODS {
            let made = method(entry.name, &Options::new()).unwrap();
            assert_eq!(made.entry().name, entry.name);
            let describable = |option: &&MethodOption| match option.kind {
                OptionKind::Name(names) | OptionKind::Names(names) => names().contains(&option.default),
                OptionKind::Flag | OptionKind::Toml => true,
                OptionKind::Text => option.default.parse::<f64>().is_ok(),
                OptionKind::Tensor | OptionKind::Tensors | OptionKind::Input | OptionKind::Array => false,
            };
            let spelled_out = (entry.options.iter().filter(describable))
                .fold(Options::new(), |options, option| options.with(option.name, option.default));
            let same = method(entry.name, &spelled_out).unwrap();
            assert_eq!(format!("{made:?}"), format!("{same:?}"), "{}", entry.name);
        }
    }

    #[test]
    fn options_of_other_methods_are_refused() {
        let error = method("saliency", &Options::new().with("samples", "5")).unwrap_err().to_string();
        assert!(error.contains("samples") && error.contains("backprop_modifier"), "{error}");
        let error = method("saliency", &Options::new().with("grad_modifier", "loud")).unwrap_err();
        assert!(error.is_option() && error.to_string().contains("small_values"), "{error}");
        assert!(method("salience", &Options::new()).unwrap_err().to_string().contains("saliency"));
    }
}
