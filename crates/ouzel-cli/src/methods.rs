//! `ouzel methods`: the library's list of explanation methods, as a table, one by one, or for programs.

use crate::args::MethodsArgs;
use crate::{files, report};
use anyhow::Result;
use ouzel::{METHODS, MethodEntry, OptionKind, PROFILES};
use serde_json::{Value, json};
use std::fmt::Write;

/// The width of a line.
const WIDTH: usize = 100;

/// Prints the list, or one of it.
pub fn run(typed: &MethodsArgs) -> Result<()> {
    let one = typed.name.as_deref().and_then(|name| METHODS.iter().find(|method| method.name == name));
    let shown: Vec<&MethodEntry> = one.map_or_else(|| METHODS.iter().collect(), |one| vec![one]);
    let text = match one {
        Some(one) if typed.json => report::text(&entry(one)),
        _ if typed.json => report::text(&shown.into_iter().map(entry).collect()),
        _ if typed.markdown => markdown(&shown),
        Some(one) => description(one),
        None => table(),
    };
    files::print(text.as_bytes())
}

fn kind(kind: OptionKind) -> &'static str {
    match kind {
        OptionKind::Flag => "flag",
        OptionKind::Text => "text",
        OptionKind::Name(_) => "name",
        OptionKind::Names(_) => "names",
        OptionKind::Tensor => "tensor",
        OptionKind::Tensors => "tensors",
        OptionKind::Toml => "name or TOML file",
        OptionKind::Input => "name, picture or array",
        OptionKind::Array => "array",
        _ => "other",
    }
}

/// The names that an option knows.
fn choices(kind: OptionKind) -> Option<Vec<&'static str>> {
    match kind {
        OptionKind::Name(names) | OptionKind::Names(names) => Some(names()),
        _ => None,
    }
}

fn entry(method: &MethodEntry) -> Value {
    let options = method.options.iter().map(|option| {
        json!({
            "name": option.name,
            "option": long(option.name),
            "kind": kind(option.kind),
            "placeholder": option.placeholder,
            "choices": choices(option.kind),
            "default": option.default,
            "about": option.about,
        })
    });
    json!({
        "name": method.name,
        "about": method.about,
        "unit": method.unit,
        "cost": method.cost,
        "source": method.source,
        "criticism": method.criticism,
        "options": options.collect::<Vec<_>>(),
        "profiles": PROFILES,
    })
}

fn long(name: &str) -> String {
    format!("--{}", name.replace('_', "-"))
}

/// A line or more for each method.
fn table() -> String {
    let width = METHODS.iter().map(|method| method.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for method in METHODS {
        paragraph(&mut text, "", method.name, width, method.about);
    }
    text += "\nouzel methods NAME describes one: its options, what it costs, where it comes from, what is held against it.\n";
    text
}

/// Everything about a method.
fn description(method: &MethodEntry) -> String {
    let mut text = format!("{}\n\n", method.name);
    for (heading, line) in [
        ("shows", method.about),
        ("unit", method.unit),
        ("cost", method.cost),
        ("papers", method.source),
        ("criticism", method.criticism),
    ] {
        paragraph(&mut text, "  ", heading, 10, line);
    }
    if !method.options.is_empty() {
        text += "\noptions of ouzel explain\n\n";
    }
    let spelled = |name: &str, placeholder: &str| match placeholder {
        "" => long(name),
        _ => format!("{} {placeholder}", long(name)),
    };
    let width = method.options.iter().map(|option| spelled(option.name, option.placeholder).len()).max();
    for option in method.options {
        let heading = spelled(option.name, option.placeholder);
        let mut about = option.about.to_owned();
        if let Some(names) = choices(option.kind)
            && !names.iter().all(|name| about.contains(name))
        {
            let _ = write!(about, " ({})", names.join(", "));
        }
        let _ = write!(about, " [default: {}]", option.default);
        paragraph(&mut text, "  ", &heading, width.unwrap_or(0).min(34), &about);
    }
    text
}

/// Papers without their titles: "Zeiler and Fergus 2014".
fn papers(source: &str) -> String {
    let is_year = |word: &str| word.len() == 4 && word.bytes().all(|byte| byte.is_ascii_digit());
    let paper = |paper: &str| {
        let words: Vec<&str> = paper.split(' ').collect();
        let end = words
            .iter()
            .position(|word| is_year(word.trim_end_matches(',')))
            .map_or(words.len(), |at| at + 1);
        words[..end].join(" ").trim_end_matches(',').to_owned()
    };
    source.split("; ").map(paper).collect::<Vec<_>>().join("; ")
}

/// The table of the README.
fn markdown(methods: &[&MethodEntry]) -> String {
    let mut text = "| method | what it shows | cost | source |\n|---|---|---|---|\n".to_owned();
    for method in methods {
        let cell = |line: &str| line.replace('|', "\\|");
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} |",
            method.name,
            cell(method.about),
            cell(method.cost),
            cell(&papers(method.source))
        );
    }
    text
}

/// A heading and its text beside it, in lines of at most [`WIDTH`] characters.
fn paragraph(text: &mut String, indent: &str, heading: &str, width: usize, line: &str) {
    let left = indent.len() + width + 2;
    let _ = write!(text, "{indent}{heading:<width$}  ");
    let mut column = left;
    if heading.len() > width {
        let _ = write!(text, "\n{:left$}", "");
    }
    for word in line.split(' ') {
        let length = word.chars().count();
        if column > left && column + 1 + length > WIDTH {
            let _ = write!(text, "\n{:left$}", "");
            column = left;
        }
        if column > left {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_the_table_of_the_registry() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
        let readme = std::fs::read_to_string(path).unwrap();
        let table = markdown(&METHODS.iter().collect::<Vec<_>>());
        assert!(
            readme.contains(&table),
            "the table of methods in README.md is stale: put the output of 'cargo run -- methods --markdown' in its place"
        );
    }

    #[test]
    fn lines_are_not_too_long() {
        let mut all = table();
        METHODS.iter().for_each(|method| all += &description(method));
        let longest = all.lines().max_by_key(|line| line.chars().count()).unwrap();
        assert!(longest.chars().count() <= WIDTH + 12, "{longest}");
        for method in METHODS {
            let json = entry(method);
            assert_eq!(json["options"].as_array().unwrap().len(), method.options.len());
        }
    }
}
