//! The SIMD level: which vector and matrix instructions the kernels may use on this machine.

use crate::amx::Amx;
use crate::vector::{Portable, Simd};
#[cfg(target_arch = "x86_64")]
use crate::vector_x86::{Avx2, Avx512};

/// A set of vector and matrix instructions that this machine is known to have.
///
/// A value can only be obtained by asking for it ([`Level::detect`], [`Level::from_name`], [`Level::available`]), so holding one is
/// the proof that the instructions exist.
///
/// ```
/// use ouzel_kernels::Level;
/// let level = Level::from_name("portable")?;
/// assert_eq!(level.name(), "portable");
/// # Ok::<(), ouzel_kernels::LevelError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Level(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// AVX-512, and a matrix unit for large products.
    #[cfg(target_arch = "x86_64")]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Portable,
}

/// Why a SIMD level cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LevelError {
    /// The name is none of `amx`, `avx512`, `avx2`, `portable`.
    Unknown(String),
    /// The name is known, but this machine lacks the instructions.
    Unavailable(String),
}

impl std::fmt::Display for LevelError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            LevelError::Unknown(name) => {
                write!(f, "unknown SIMD level `{name}`, expected one of amx, avx512, avx2, portable")
            }
            LevelError::Unavailable(name) => {
                write!(f, "SIMD level `{name}` is not available on this machine")
            }
        }
    }
}

impl std::error::Error for LevelError {}

/// A computation that is compiled once for each level.
///
/// `run` must be `#[inline(always)]`, as must everything that it calls in its hot loops, because only code that is inlined into the
/// functions of [`Level::run`] may use the level's instructions.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

impl Level {
    /// The level named by the environment variable `OUZEL_SIMD` if that is set, else the best one of this machine.
    ///
    /// # Errors
    /// If the variable names a level that is unknown or unavailable.
    pub fn detect() -> Result<Level, LevelError> {
        match std::env::var("OUZEL_SIMD") {
            Ok(name) if !name.is_empty() => Level::from_name(&name),
            _ => Ok(Level::available()[0]),
        }
    }

    /// The level called `amx`, `avx512`, `avx2` or `portable`.
    ///
    /// # Errors
    /// If there is no such level or the machine lacks its instructions.
    pub fn from_name(name: &str) -> Result<Level, LevelError> {
        if let Some(level) = Level::available().into_iter().find(|level| level.name() == name) {
            return Ok(level);
        }
        match name {
            "amx" | "avx512" | "avx2" => Err(LevelError::Unavailable(name.to_owned())),
            _ => Err(LevelError::Unknown(name.to_owned())),
        }
    }

    /// All levels of this machine, the best first. There is always `portable`, the last.
    pub fn available() -> Vec<Level> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = avx2
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl");
            if avx512 && Amx::detect().is_some() {
                levels.push(Level(Kind::Amx));
            }
            if avx512 {
                levels.push(Level(Kind::Avx512));
            }
            if avx2 {
                levels.push(Level(Kind::Avx2));
            }
        }
        levels.push(Level(Kind::Portable));
        levels
    }

    /// The level that every machine has.
    pub fn portable() -> Level {
        Level(Kind::Portable)
    }

    /// The name of the level: `amx`, `avx512`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => "amx",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => "avx2",
            Kind::Portable => "portable",
        }
    }

    /// The matrix unit of this level.
    pub(crate) fn amx(self) -> Option<Amx> {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx => Amx::detect(),
            _ => None,
        }
    }

    /// How many pixels a tile of the convolution kernel has at most.
    pub(crate) fn tile_pixels(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx | Kind::Avx512 => Avx512::TILE,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => Avx2::TILE,
            Kind::Portable => Portable::TILE,
        }
    }

    /// How many floats a vector has.
    pub(crate) fn lanes(self) -> usize {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Kind::Amx | Kind::Avx512 => Avx512::LANES,
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => Avx2::LANES,
            Kind::Portable => Portable::LANES,
        }
    }

    /// Runs a kernel with the instructions of this level.
    ///
    /// Each kernel is one function a level, wherever it is called from: kernels call others, and copies of them in each tile
    /// would take minutes to compile.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        {
            #[inline(never)]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
            fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
                // SAFETY: this function can only be reached where its target features exist, which are those that the token asks for.
                kernel.run(unsafe { Avx512::assume() })
            }
            #[inline(never)]
            #[target_feature(enable = "avx2,fma")]
            fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
                // SAFETY: as above.
                kernel.run(unsafe { Avx2::assume() })
            }
            match self.0 {
                // SAFETY: `available` is the only maker of these variants, and it has asked the processor for these features.
                Kind::Amx | Kind::Avx512 => return unsafe { run_avx512(kernel) },
                // SAFETY: as above.
                Kind::Avx2 => return unsafe { run_avx2(kernel) },
                Kind::Portable => {}
            }
        }
        #[inline(never)]
        fn run_portable<K: Kernel>(kernel: K) -> K::Output {
            kernel.run(Portable)
        }
        run_portable(kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for level in Level::available() {
            assert_eq!(Level::from_name(level.name()), Ok(level));
        }
        assert_eq!(Level::available().last(), Some(&Level::portable()));
    }

    #[test]
    fn unknown_level_is_an_error() {
        assert_eq!(Level::from_name("mmx"), Err(LevelError::Unknown("mmx".to_owned())));
    }
}
