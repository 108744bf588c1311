//! `ouzel methods`: the library's list of explanation methods.

use crate::args::MethodsArgs;
use crate::{files, report};
use anyhow::Result;
use ouzel::METHODS;
use serde_json::{Value, json};
use std::fmt::Write;

/// Prints the list.
pub fn run(typed: &MethodsArgs) -> Result<()> {
    let text = if typed.json { report::text(&list()) } else { table() };
    files::print(text.as_bytes())
}

fn list() -> Value {
    let method = |method: &ouzel::MethodEntry| {
        let options: Vec<Value> = (method.options.iter())
            .map(|option| json!({"name": option.name, "default": option.default, "about": option.about}))
            .collect();
        json!({
            "name": method.name,
            "about": method.about,
            "unit": method.unit,
            "cost": method.cost,
            "source": method.source,
            "criticism": method.criticism,
            "options": options,
        })
    };
    METHODS.iter().map(method).collect()
}

fn table() -> String {
    let mut text = String::new();
    for method in METHODS {
        let _ = writeln!(text, "{}", method.name);
        for (heading, line) in [
            ("shows", method.about),
            ("unit", method.unit),
            ("cost", method.cost),
            ("papers", method.source),
            ("criticism", method.criticism),
        ] {
            paragraph(&mut text, heading, line);
        }
        for option in method.options {
            let name = format!("--{}", option.name.replace('_', "-"));
            paragraph(&mut text, &name, &format!("{} (default: {})", option.about, option.default));
        }
    }
    text
}

/// A heading and its text beside it, in lines of at most 100 characters.
fn paragraph(text: &mut String, heading: &str, line: &str) {
    let mut column = 0;
    let _ = write!(text, "  {heading:<20} ");
    for word in line.split(' ') {
        if column > 0 && column + word.len() > 76 {
            let _ = write!(text, "\n{:23}", "");
            column = 0;
        }
        let space = if column > 0 { " " } else { "" };
        let _ = write!(text, "{space}{word}");
        column += word.len() + space.len();
    }
    text.push('\n');
}
