//! Finding `libnccl.so.2`: where the user says, else where PyTorch's wheels and systems have it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::abi::Functions;
use super::api::{Api, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::mapped;

/// A path of the library, or `off`.
pub(super) const VARIABLE: &str = "TCH_CHECKPOINT_NCCL";
const NAME: &str = "libnccl.so.2";
/// From `torch/lib` of a wheel to the wheel of NCCL beside it.
const BESIDE_TORCH: &str = "../../nvidia/nccl/lib/libnccl.so.2";
/// glibc's flag: only what is loaded already.
const RTLD_NOLOAD: i32 = 4;

/// A place to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Candidate {
    /// In this process, by that name.
    Loaded(&'static str),
    /// By the system's loader, which knows its own folders and `LD_LIBRARY_PATH`.
    Named(&'static str),
    /// This file.
    File(PathBuf),
}

impl std::fmt::Display for Candidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Loaded(name) => write!(f, "{name}, loaded already"),
            Self::Named(name) => write!(f, "{name}, by the system's loader"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What is known about this process.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    /// [`VARIABLE`].
    pub(super) variable: Option<PathBuf>,
    /// `LIBTORCH`.
    pub(super) libtorch: Option<PathBuf>,
    /// Where the loaded libtorch lies.
    pub(super) torch_folder: Option<PathBuf>,
}

impl Known {
    fn now() -> Self {
        let path = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let maps = std::fs::read_to_string(mapped::OWN).unwrap_or_default();
        let torch = mapped::library(&maps, "libtorch_cpu.so");
        Self {
            variable: path(VARIABLE),
            libtorch: path("LIBTORCH"),
            torch_folder: torch.and_then(Path::parent).map(Path::to_path_buf),
        }
    }
}

/// Whether the user wants none.
pub(super) fn is_off(variable: Option<&OsStr>) -> bool {
    variable.is_some_and(|value| value.eq_ignore_ascii_case("off"))
}

/// Where to look, in order. What the user names is looked at alone.
pub(super) fn candidates(known: &Known) -> Vec<Candidate> {
    if let Some(path) = &known.variable {
        return vec![Candidate::File(path.clone())];
    }
    let mut all = vec![Candidate::Loaded(NAME), Candidate::Named(NAME)];
    let libtorch = known.libtorch.as_ref().map(|root| root.join("lib"));
    for folder in known.torch_folder.iter().chain(&libtorch) {
        for file in [folder.join(BESIDE_TORCH), folder.join(NAME)] {
            let file = Candidate::File(file);
            if !all.contains(&file) {
                all.push(file);
            }
        }
    }
    all.push(Candidate::Named("libnccl.so"));
    all
}

/// A library that was found and can do what is asked of it.
#[derive(Clone, Copy)]
pub(super) struct Found {
    pub(super) functions: Functions,
    pub(super) version: Version,
}

/// The first of all candidates that is an NCCL of at least [`Version::OLDEST`].
///
/// # Errors
/// [`ErrorKind::NotFound`], with every place and what was wrong with it.
pub(super) fn find() -> Result<Found> {
    find_among(&candidates(&Known::now()))
}

fn find_among(candidates: &[Candidate]) -> Result<Found> {
    let mut reasons = Vec::new();
    for candidate in candidates {
        match open(candidate).and_then(usable) {
            Ok(found) => {
                tracing::info!(version = %found.version, from = %candidate, "NCCL is loaded");
                return Ok(found);
            }
            Err(error) => reasons.push(format!("{candidate}: {}", error.message())),
        }
    }
    let message = format!("no NCCL found; looked for\n  {}", reasons.join("\n  "));
    Err(Error::new(ErrorKind::NotFound, message).with_help(format!(
        "install libnccl2, or `pip install nvidia-nccl-cu13`; {VARIABLE} names a file, and \
         {VARIABLE}=off sends gradients by way of the hosts"
    )))
}

fn open(candidate: &Candidate) -> Result<Library> {
    let (name, flags) = match candidate {
        Candidate::Loaded(name) => (OsStr::new(name), RTLD_NOLOAD),
        Candidate::Named(name) => (OsStr::new(name), 0),
        Candidate::File(path) => (path.as_os_str(), 0),
    };
    // SAFETY: its initialisers are those of a library that the user, the system or PyTorch brings.
    #[allow(unsafe_code)]
    let opened = unsafe { Library::open(Some(name), flags | RTLD_NOW | RTLD_LOCAL) };
    opened.map_err(|error| {
        let why = match candidate {
            Candidate::Loaded(_) => "it is not".to_owned(),
            _ => error.to_string(),
        };
        Error::new(ErrorKind::NotFound, why)
    })
}

fn usable(library: Library) -> Result<Found> {
    let library = libloading::Library::from(library);
    let functions = Functions::of(&library)?;
    let version = functions.version()?;
    if version < Version::OLDEST {
        let message = format!("it is NCCL {version}; {} or newer is needed", Version::OLDEST);
        return Err(Error::new(ErrorKind::Unsupported, message));
    }
    // NCCL has threads of its own: it is never unloaded.
    std::mem::forget(library);
    Ok(Found { functions, version })
}

#[cfg(test)]
mod tests;
