//! Names of classes: what a network's outputs are called, and which output a name means.

use crate::error::{Context, Error, Result, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// The names of a network's classes by index.
///
/// ```
/// use ouzel::image::Labels;
/// let labels = Labels::imagenet();
/// assert_eq!(labels.get(20), Some("water ouzel"));
/// assert_eq!(labels.index("Water-Ouzel")?, 20);
/// # Ok::<(), ouzel::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels(BTreeMap<usize, String>);

impl Labels {
    const MAX_FILE_BYTES: u64 = 1 << 26;

    /// The 1000 classes of ILSVRC 2012 in the usual order, by their short English names.
    ///
    /// **Source**: the category list in torchvision's weight metadata (`_IMAGENET_CATEGORIES`); the names are WordNet's.
    pub fn imagenet() -> Self {
        Self(include_str!("imagenet.txt").lines().map(str::to_owned).enumerate().collect())
    }

    /// The built-in labels `imagenet`, or those of a file: what the command line's `--labels` takes.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn named_or_open(name_or_path: &str) -> Result<Self> {
        match name_or_path {
            "imagenet" => Ok(Self::imagenet()),
            path => Self::open(path),
        }
    }

    /// The labels of the file at `path`, parsed as [`Self::parse`] does.
    ///
    /// # Errors
    /// If the file cannot be read, is larger than 64 MiB, is not UTF-8, or does not parse.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(Self::MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(|error| Error::io("read the labels", path, error))?;
        if bytes.len() as u64 > Self::MAX_FILE_BYTES {
            bail!(input, "{}: the file is larger than {} MiB", path.display(), Self::MAX_FILE_BYTES >> 20);
        }
        let text = String::from_utf8(bytes)
            .map_err(|error| {
                Error::input(format!("the labels are not UTF-8 text: {error}; save them as UTF-8"))
            })
            .context(|| path.display())?;
        Self::parse(&text).context(|| path.display())
    }

    /// Labels from text: one on each line, a JSON list `["a", "b"]`, or a JSON object `{"0": "a", "1": "b"}`.
    ///
    /// In a JSON object a value may also be a list, whose last text counts, as in Keras's class index. A WordNet number
    /// before a name (`n01440764 tench, Tinca tinca`) is dropped. Empty lines keep their index; those at the end do not.
    ///
    /// # Errors
    /// If there are no labels, JSON is malformed, or an object's key is not an index.
    pub fn parse(text: &str) -> Result<Self> {
        let text = text.trim_start_matches('\u{feff}');
        let labels: BTreeMap<usize, String> = if text.trim_start().starts_with(['[', '{']) {
            let json: Value = serde_json::from_str(text)
                .map_err(|error| Error::input(format!("the labels are not valid JSON: {error}")))?;
            match json {
                Value::Array(values) => values
                    .iter()
                    .enumerate()
                    .map(|(index, value)| Ok((index, label(value, &index)?)))
                    .collect::<Result<_>>()?,
                Value::Object(entries) => entries
                    .iter()
                    .map(|(key, value)| match key.trim().parse() {
                        Ok(index) => Ok((index, label(value, key)?)),
                        Err(_) => bail!(
                            input,
                            "expected an index as key of the labels, as in {{\"0\": \"cat\"}}, found {key:?}"
                        ),
                    })
                    .collect::<Result<_>>()?,
                _ => BTreeMap::new(),
            }
        } else {
            text.trim_end().lines().map(|line| without_wordnet(line.trim()).to_owned()).enumerate().collect()
        };
        if labels.values().all(String::is_empty) {
            bail!(
                input,
                "found no labels; expected one on each line, a JSON list, or a JSON object with indices"
            );
        }
        Ok(Self(labels))
    }

    /// The number of labels, one more than the largest index.
    pub fn len(&self) -> usize {
        self.0.last_key_value().map_or(0, |(&index, _)| index.saturating_add(1))
    }

    /// True if there are no labels; parsing never makes such.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The label of the class `index`, if it has one.
    pub fn get(&self, index: usize) -> Option<&str> {
        self.0.get(&index).map(String::as_str).filter(|label| !label.is_empty())
    }

    /// What to call the class `index`: its label, or `class 7` if it has none.
    pub fn name(&self, index: usize) -> String {
        self.get(index).map_or_else(|| format!("class {index}"), str::to_owned)
    }

    /// The class that is called `name`.
    ///
    /// Upper and lower case are equal, and so are `-`, `_` and spaces; of labels with several names, separated by
    /// commas, each is one. A name that is exactly a label's comes before those that equal it in this way.
    ///
    /// # Errors
    /// If no class is called so; the message names the nearest ones. If several are; the message names their indices.
    pub fn index(&self, name: &str) -> Result<usize> {
        let exact: Vec<usize> =
            self.0.iter().filter(|(_, label)| *label == name).map(|(&index, _)| index).collect();
        if let [index] = exact[..] {
            return Ok(index);
        }
        let wanted = folded(name);
        let found: Vec<usize> = self
            .0
            .iter()
            .filter(|(_, label)| {
                !wanted.is_empty()
                    && (folded(label) == wanted || label.split(',').any(|synonym| folded(synonym) == wanted))
            })
            .map(|(&index, _)| index)
            .collect();
        match found[..] {
            [index] => Ok(index),
            [] => {
                let near = self.near(&wanted);
                let advice =
                    if near.is_empty() { "use its index".to_owned() } else { format!("nearest: {near}") };
                bail!(target, "no class is called {name:?}; {advice}")
            }
            _ => {
                let indices: Vec<String> =
                    found.iter().map(|&index| format!("{index} ({})", self.name(index))).collect();
                bail!(
                    target,
                    "{} classes are called {name:?}: {}; use an index",
                    found.len(),
                    indices.join(", ")
                )
            }
        }
    }

    /// Up to five labels that resemble a folded name, with their indices.
    fn near(&self, wanted: &str) -> String {
        // Long texts are no names; comparing them would take long.
        if wanted.is_empty() || wanted.chars().count() > 100 {
            return String::new();
        }
        let mut candidates: Vec<(usize, usize, &str)> = Vec::new();
        for (&index, label) in &self.0 {
            let distance = label
                .split(',')
                .map(folded)
                .filter(|name| !name.is_empty() && name.chars().count() <= 100)
                .map(|name| {
                    let part = name.split(' ').any(|word| word == wanted)
                        || wanted.split(' ').any(|word| word == name);
                    if part { 0 } else { edits(&name, wanted) }
                })
                .min();
            let allowed = (wanted.chars().count() / 3).max(1);
            if let Some(distance) = distance.filter(|&distance| distance <= allowed) {
                candidates.push((distance, index, label));
            }
        }
        candidates.sort();
        let near: Vec<String> =
            candidates.iter().take(5).map(|(_, index, label)| format!("{label:?} ({index})")).collect();
        near.join(", ")
    }
}

fn label(value: &Value, key: &dyn std::fmt::Display) -> Result<String> {
    let text = match value {
        Value::Array(values) => values.last().and_then(Value::as_str),
        value => value.as_str(),
    };
    match text {
        Some(text) => Ok(without_wordnet(text.trim()).to_owned()),
        None => bail!(input, "expected a text as label {key}, found {value}"),
    }
}

fn without_wordnet(line: &str) -> &str {
    match line.split_once(' ') {
        Some((number, name)) if number.len() == 9 && number.starts_with('n') => {
            if number[1..].bytes().all(|digit| digit.is_ascii_digit()) { name.trim() } else { line }
        }
        _ => line,
    }
}

/// The form in which labels are compared: lower case, words separated by one space.
fn folded(label: &str) -> String {
    let words = label.to_lowercase().replace(['-', '_'], " ");
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Levenshtein's distance: insertions, deletions and replacements that turn one text into the other.
fn edits(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, letter) in from.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, &other) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imagenet_is_the_usual_list() {
        let labels = Labels::imagenet();
        assert_eq!(labels.len(), 1000);
        for (index, name) in [(0, "tench"), (20, "water ouzel"), (281, "tabby"), (999, "toilet tissue")] {
            assert_eq!(labels.get(index), Some(name));
            assert_eq!(labels.index(&name.to_uppercase().replace(' ', "_")).unwrap(), index);
        }
        assert_eq!(labels.get(1000), None);
        assert_eq!(labels.name(1000), "class 1000");
        for index in 0..1000 {
            assert_eq!(labels.index(labels.get(index).unwrap()).unwrap(), index);
        }
    }

    #[test]
    fn unknown_and_ambiguous_names() {
        let labels = Labels::imagenet();
        let message = |name: &str| labels.index(name).unwrap_err().to_string();
        assert!(message("water ousel").contains("\"water ouzel\" (20)"), "{}", message("water ousel"));
        assert!(message("ouzel").contains("\"water ouzel\" (20)"));
        assert!(message("xqzzkw").contains("use its index"));
        assert!(message("").contains("no class is called \"\""));
        assert!(message("CARDIGAN").contains("264"), "{}", message("CARDIGAN"));
        assert!(labels.index(&"long ".repeat(100_000)).unwrap_err().is_target());
    }

    #[test]
    fn texts() {
        let lines = Labels::parse("cat\r\n\r\n dog \n\n").unwrap();
        assert_eq!(
            (lines.len(), lines.get(0), lines.get(1), lines.get(2)),
            (3, Some("cat"), None, Some("dog"))
        );
        let synset =
            Labels::parse("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus").unwrap();
        assert_eq!(synset.get(0), Some("tench, Tinca tinca"));
        assert_eq!(synset.index("carassius auratus").unwrap(), 1);
    }

    #[test]
    fn json() {
        let list = Labels::parse("[\"cat\", \"dog\"]").unwrap();
        assert_eq!(list.index("dog").unwrap(), 1);
        let object = Labels::parse("{\"3\": \"cat\", \"10\": \"dog\"}").unwrap();
        assert_eq!((object.len(), object.get(3), object.get(4)), (11, Some("cat"), None));
        let keras = Labels::parse("{\"0\": [\"n01440764\", \"tench\"]}").unwrap();
        assert_eq!(keras.get(0), Some("tench"));
        for wrong in ["", "\n\n", "[", "[]", "{}", "[1]", "{\"a\": \"cat\"}", "{\"-1\": \"cat\"}", "[[]]"] {
            assert!(Labels::parse(wrong).unwrap_err().is_input(), "{wrong}");
        }
        let edge = format!("{{\"{}\": \"cat\"}}", usize::MAX);
        assert_eq!(Labels::parse(&edge).unwrap().len(), usize::MAX);
        assert!(Labels::open("no/such.txt").unwrap_err().to_string().contains("no/such.txt"));
    }
}
