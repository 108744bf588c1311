//! The explanation methods, one a file, and the list of them that front ends show and choose from.

pub mod lrp;
pub mod saliency;

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
}

/// Something that can be chosen about a method.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct MethodOption {
    /// The name, as on the command line.
    pub name: &'static str,
    /// What is used if nothing is said.
    pub default: &'static str,
    /// One line: what it does.
    pub about: &'static str,
}

/// The methods, in the order in which they are shown; the first is the default.
///
/// ```
/// let names: Vec<&str> = ouzel::METHODS.iter().map(|method| method.name).collect();
/// assert!(names.contains(&"saliency"));
/// ```
pub const METHODS: &[MethodEntry] = &[saliency::ENTRY];

#[cfg(test)]
mod tests {
    use super::*;

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
}
