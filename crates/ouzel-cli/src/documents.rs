//! `ouzel completions` and `ouzel man`: what the command line knows of itself, in the words of shells and of man.

use crate::args::{Arguments, CompletionsArgs, ManArgs};
use crate::files;
use anyhow::{Context, Result};
use clap::CommandFactory;

/// Prints a completion script.
pub fn completions(typed: &CompletionsArgs) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(typed.shell, &mut Arguments::command(), "ouzel", &mut script);
    files::print(&script)
}

/// Prints the manual page, or writes all pages.
pub fn man(typed: &ManArgs) -> Result<()> {
    match &typed.out_dir {
        Some(folder) => {
            files::create_folder(folder)?;
            clap_mangen::generate_to(Arguments::command(), folder)
                .with_context(|| format!("cannot write to {}", folder.display()))
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut page).context("cannot make the page")?;
            files::print(&page)
        }
    }
}
