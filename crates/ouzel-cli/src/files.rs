//! Files and standard streams: what '-' means, names of files, and how results come onto the disk.

use crate::messages::usage;
use anyhow::{Context, Result, bail};
use ouzel::Model;
use ouzel::image::save_whole;
use std::collections::HashSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// True for '-': standard input or output.
pub fn is_stream(path: &Path) -> bool {
    path.as_os_str() == "-"
}

/// The path as messages show it.
pub fn shown(path: &Path) -> String {
    if is_stream(path) { "standard input".into() } else { path.display().to_string() }
}

/// Reads a file or standard input.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    match is_stream(path) {
        true => std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ()),
        false => std::fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map(|_| ()),
    }
    .with_context(|| format!("cannot read {}", shown(path)))?;
    Ok(bytes)
}

/// Reads a text file or standard input.
pub fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).with_context(|| format!("{} is not UTF-8 text", shown(path)))
}

/// Reads a model from a file or standard input.
pub fn read_model(path: &Path) -> Result<Model> {
    Ok(match is_stream(path) {
        true => Model::from_reader(std::io::stdin().lock()).context("standard input")?,
        false => Model::load(path)?,
    })
}

/// Writes a whole file, or to standard output.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    match is_stream(path) {
        true => print(bytes),
        false => Ok(save_whole(path, bytes)?),
    }
}

/// Writes to standard output.
pub fn print(bytes: &[u8]) -> Result<()> {
    let mut output = std::io::stdout().lock();
    output.write_all(bytes).and_then(|()| output.flush()).context("cannot write to standard output")
}

/// Creates a folder that is to hold results.
pub fn create_folder(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("--out-dir: cannot create the folder {}", folder.display()))
}

/// An error if several of these are standard input, or standard output.
pub fn check_streams<'a>(what: &str, paths: impl IntoIterator<Item = &'a Path>) -> Result<()> {
    if paths.into_iter().filter(|path| is_stream(path)).count() > 1 {
        usage!("only one {what} can be '-'; give a file for the others");
    }
    Ok(())
}

/// An error if the folder of a result does not exist, so that nobody waits in vain.
pub fn check_parent(option: &str, path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    match folder {
        _ if is_stream(path) => Ok(()),
        Some(folder) if !folder.is_dir() => {
            bail!("{option} {}: the folder {} does not exist; create it first", path.display(), folder.display())
        }
        _ if path.is_dir() => bail!("{option} {}: it is a folder; expected a file's name", path.display()),
        _ => Ok(()),
    }
}

/// `maps/cat.png` as `maps/cat_2.png`.
pub fn numbered(path: &Path, number: usize) -> PathBuf {
    if is_stream(path) {
        return path.to_owned();
    }
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let name = match path.extension() {
        Some(extension) => format!("{stem}_{number}.{}", extension.to_string_lossy()),
        None => format!("{stem}_{number}"),
    };
    path.with_file_name(name)
}

/// What an input is called in the names of results: its file name without extension.
pub fn stem(path: &Path) -> String {
    match path.file_stem() {
        Some(stem) if !is_stream(path) => stem.to_string_lossy().into_owned(),
        _ => "stdin".into(),
    }
}

/// Names made different from each other: colliding ones get `_2`, `_3`, ….
#[derive(Debug, Default)]
pub struct Names(HashSet<String>);

impl Names {
    /// The name, or the first numbered one that is free.
    pub fn distinct(&mut self, name: &str) -> String {
        let candidates = std::iter::once(name.to_owned()).chain((2..).map(|number| format!("{name}_{number}")));
        let free = candidates.into_iter().find(|candidate| !self.0.contains(candidate));
        let free = free.expect("invariant: there is no end of numbers");
        self.0.insert(free.clone());
        free
    }
}

/// A name for a file: characters other than letters, digits, '.', '_' and '-' become '_'.
pub fn safe(name: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
    name.chars().map(keep).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files() {
        assert_eq!(numbered(Path::new("maps/cat.ouzel.png"), 2), Path::new("maps/cat.ouzel_2.png"));
        assert_eq!(numbered(Path::new("map"), 1), Path::new("map_1"));
        assert_eq!(numbered(Path::new("-"), 1), Path::new("-"));
        assert_eq!((stem(Path::new("a/cat.jpg")), stem(Path::new("-"))), ("cat".into(), "stdin".into()));
        assert_eq!(safe("a/b:0 é"), "a_b_0__");
        let mut names = Names::default();
        let distinct = ["a", "a", "a_2", "a"].map(|name| names.distinct(name));
        assert_eq!(distinct, ["a", "a_2", "a_2_2", "a_3"]);
    }
}
