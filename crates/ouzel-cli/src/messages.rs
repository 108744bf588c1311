//! What is said on standard error; and the two kinds of failure that the exit code tells apart.

use std::fmt;
use std::io::{ErrorKind, Write};

/// A failure that another command line would avoid: exit code 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Returns early with a [`Usage`] error.
macro_rules! usage {
    ($($message:tt)*) => {
        return Err($crate::messages::Usage(format!($($message)*)).into())
    };
}
pub(crate) use usage;

/// Turns an error of the library about an option into a [`Usage`] error that names the option.
pub fn wrong_option(option: &str, error: &ouzel::Error) -> anyhow::Error {
    Usage(format!("{option}: {}", in_full(error))).into()
}

/// An error of the library with its causes.
fn in_full(error: &ouzel::Error) -> String {
    format!("{error:?}")
}

/// The exit code that an error stands for; a reader who went away is no error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let is_broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|cause| cause.kind() == ErrorKind::BrokenPipe)
    };
    match () {
        () if error.chain().any(is_broken_pipe) => 0,
        () if error.is::<Usage>() => 2,
        () => 1,
    }
}

/// What may take so long without a sign of life.
const MOMENT: std::time::Duration = std::time::Duration::from_millis(700);

fn bar_style() -> indicatif::ProgressStyle {
    indicatif::ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta}")
        .expect("invariant: the template is well formed")
}

/// Where messages go: standard error, unless `--quiet`.
#[derive(Clone, Debug)]
pub struct Messages {
    quiet: bool,
    bar: Option<indicatif::ProgressBar>,
}

impl Messages {
    /// Says everything, or nothing but warnings and errors.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, bar: None }
    }

    /// Shows progress over `count` inputs from now on, if that is more than one and a person watches.
    pub fn expect(&mut self, count: usize) {
        use std::io::IsTerminal;
        if count > 1 && !self.quiet && std::io::stderr().is_terminal() {
            self.bar = Some(indicatif::ProgressBar::new(count as u64).with_style(bar_style()));
        }
    }

    /// Who is told how far one explanation has come: a bar, once it takes longer than a moment, if a person watches and there is
    /// no bar over the inputs.
    pub fn progress(&self) -> ouzel::Progress {
        use std::io::IsTerminal;
        if self.quiet || self.bar.is_some() || !std::io::stderr().is_terminal() {
            return ouzel::Progress::default();
        }
        let bar = indicatif::ProgressBar::hidden().with_style(bar_style());
        let start = std::sync::OnceLock::new();
        ouzel::Progress::new(move |done, all| {
            let start = start.get_or_init(std::time::Instant::now);
            if done >= all {
                bar.finish_and_clear();
            } else if start.elapsed() > MOMENT {
                if bar.is_hidden() {
                    bar.reset();
                    bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
                }
                bar.set_length(all as u64);
                bar.set_position(done as u64);
            }
        })
    }

    /// One input is done.
    pub fn advance(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// All inputs are done.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Something good to know.
    pub fn note(&self, text: impl fmt::Display) {
        if !self.quiet {
            self.line(&format!("{text}"));
        }
    }

    /// Something that may make the result misleading.
    pub fn warning(&self, text: impl fmt::Display) {
        self.line(&format!("warning: {text}"));
    }

    /// Why something was not done.
    pub fn error(&self, error: &anyhow::Error) {
        if exit_code(error) != 0 {
            self.line(&format!("error: {}", one_text(error)));
        }
    }

    fn line(&self, text: &str) {
        // Nobody is left to tell that standard error is closed.
        let write = || drop(writeln!(std::io::stderr(), "{text}"));
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

/// An error and its causes as one text, without what a cause only repeats.
pub fn one_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !cause.is_empty() && !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code(&anyhow!("no")), 1);
        assert_eq!(exit_code(&anyhow::Error::from(Usage("no".into())).context("more")), 2);
        let pipe = std::io::Error::from(ErrorKind::BrokenPipe);
        assert_eq!(exit_code(&anyhow::Error::from(pipe).context("cannot write")), 0);
    }

    #[test]
    fn causes_are_told_once() {
        let error = Err::<(), _>(anyhow!("b")).context("a: b").unwrap_err();
        assert_eq!(one_text(&error), "a: b");
        let error = Err::<(), _>(anyhow!("c")).context("a").unwrap_err();
        assert_eq!(one_text(&error), "a: c");
    }
}
