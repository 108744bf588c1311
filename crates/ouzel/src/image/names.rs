//! Names of choices: an enum whose variants parse from, print as and list their snake_case names, so that a command
//! line takes its choices from the library.

/// The form in which names are compared: trimmed, lower case, `-` as `_`.
pub(super) fn canonical(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace('-', "_")
}

/// Declares a fieldless enum with `NAMES`, `ALL`, `name()`, `Display` and `FromStr`.
macro_rules! named {
    (
        $(#[$meta:meta])*
        pub enum $Type:ident: $what:literal {
            $($(#[$variant_meta:meta])* $Variant:ident = $name:literal $(or $alias:literal)?,)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $Type { $($(#[$variant_meta])* $Variant,)* }

        impl $Type {
            /// The names, in the order of [`Self::ALL`].
            pub const NAMES: &'static [&'static str] = &[$($name,)*];
            /// The choices.
            pub const ALL: &'static [Self] = &[$(Self::$Variant,)*];

            /// The snake_case name, as parsed by `FromStr`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$Variant => $name,)* }
            }
        }

        impl std::fmt::Display for $Type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.name())
            }
        }

        impl std::str::FromStr for $Type {
            type Err = $crate::error::Error;

            fn from_str(text: &str) -> $crate::error::Result<Self> {
                match $crate::image::names::canonical(text).as_str() {
                    $($name $(| $alias)? => Ok(Self::$Variant),)*
                    _ => $crate::error::bail!(
                        option, concat!("unknown ", $what, " {:?}; use one of: {}"), text, Self::NAMES.join(", ")
                    ),
                }
            }
        }
    };
}
pub(super) use named;
