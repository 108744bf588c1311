//! The one error of the library: what is wrong, where, and what to do about it.

use std::fmt;
use std::sync::Arc;

/// Result with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request could not be answered.
///
/// The message names the file, node, tensor or option at fault, what was expected, what was found, and what to do.
/// The enclosing circumstances (the node, then the file) are added on the way up.
///
/// Cheap to clone; the cause, if there is one, is reachable through [`std::error::Error::source`].
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    kind: Kind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What an [`Error`] is about; asked through the `is_…` predicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The file is not a readable model.
    Model,
    /// The model needs an op, attribute or type that is not supported.
    Unsupported,
    /// Shapes or types do not fit.
    Shape,
    /// The target layer, filter or label does not exist.
    Target,
    /// The input array or picture does not fit the model.
    Input,
    /// An option has an impossible value.
    Option,
    /// Reading or writing a file failed.
    Io,
    /// A bug of this library.
    Internal,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident => $kind:ident),* $(,)?) => { $(
        $(#[$doc])*
        pub(crate) fn $name(message: impl Into<String>) -> Self {
            Self::new(Kind::$kind, message)
        }
    )* };
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner { kind, message: message.into(), source: None }))
    }

    constructors! {
        model => Model,
        unsupported => Unsupported,
        shape => Shape,
        target => Target,
        input => Input,
        option => Option,
        internal => Internal,
    }

    /// A failed file operation on `path`.
    pub(crate) fn io(
        action: &str,
        path: impl AsRef<std::path::Path>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        let message = format!("cannot {action} {}", path.as_ref().display());
        Self(Arc::new(Inner { kind: Kind::Io, message, source: Some(Box::new(source)) }))
    }

    /// True if the file is not a readable model.
    pub fn is_model(&self) -> bool {
        self.kind() == Kind::Model
    }

    /// True if the model needs an op, attribute or type that is not supported.
    pub fn is_unsupported(&self) -> bool {
        self.kind() == Kind::Unsupported
    }

    /// True if shapes or types do not fit together.
    pub fn is_shape(&self) -> bool {
        self.kind() == Kind::Shape
    }

    /// True if the target layer, filter or label does not exist.
    pub fn is_target(&self) -> bool {
        self.kind() == Kind::Target
    }

    /// True if the input array or picture does not fit the model.
    pub fn is_input(&self) -> bool {
        self.kind() == Kind::Input
    }

    /// True if an option has an impossible value.
    pub fn is_option(&self) -> bool {
        self.kind() == Kind::Option
    }

    /// True if reading or writing a file failed.
    pub fn is_io(&self) -> bool {
        self.kind() == Kind::Io
    }

    fn kind(&self) -> Kind {
        self.0.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.message)?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// Adds the circumstances to an error: `"{context}: {message}"`.
pub(crate) trait Context<T> {
    /// Puts `context()` before the message of an error.
    fn context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<C: fmt::Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| {
            let message = format!("{}: {}", context(), error.0.message);
            let source = error.0.source.is_some().then(|| Box::new(Cause(error.clone())) as _);
            Error(Arc::new(Inner { kind: error.0.kind, message, source }))
        })
    }
}

/// The cause of an error that got a context: shows what caused it, not its message again.
#[derive(Debug)]
struct Cause(Error);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.0.source {
            Some(source) => source.fmt(f),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.0.source.as_ref().and_then(|source| source.source())
    }
}

/// Returns early with an error of the named kind: `bail!(shape, "expected {} axes, found {}", a, b)`.
macro_rules! bail {
    ($kind:ident, $($message:tt)*) => {
        return Err($crate::error::Error::$kind(format!($($message)*)))
    };
}
pub(crate) use bail;
