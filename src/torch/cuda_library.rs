//! CUDA for programs that were built without it.
//!
//! A program that was built against a libtorch for CPUs needs `libtorch_cpu` alone. Run with a
//! libtorch that has CUDA, it would not see it: nothing asks the loader for `libtorch_cuda`. So it
//! is loaded here, before libtorch is first asked for devices, since what it finds then it keeps.

use std::path::Path;
use std::sync::OnceLock;

use super::ffi;
use crate::mapped::{self, CudaHalf};

/// How many CUDA devices this process sees; 0 without any, without a driver, or with a libtorch
/// without CUDA.
///
/// Ask this in place of [`tch::Cuda::device_count`] and [`tch::Cuda::is_available`], and before
/// anything else of libtorch (seeding counts): where the libtorch in use has CUDA and the program
/// was built against one without, this loads its `libtorch_cuda.so` first, which works once in a
/// process and only before libtorch has looked for it. [`NNHandler`](crate::NNHandler) does so
/// itself. A library that does not load is one warning.
///
/// Any rank, any thread.
///
/// ```
/// use tch::Device;
///
/// let has_cuda = tch_checkpoint::torch::cuda_devices() > 0;
/// let device = if has_cuda { Device::Cuda(0) } else { Device::Cpu };
/// # drop(device);
/// ```
#[must_use]
pub fn cuda_devices() -> usize {
    half();
    // Counting without asking whether there are any is an error in some versions.
    let count = if tch::Cuda::is_available() { tch::Cuda::device_count() } else { 0 };
    usize::try_from(count).unwrap_or(0)
}

/// What has come of libtorch's half for CUDA.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Half {
    Loaded,
    /// In the loader's words.
    Fails(String),
    Absent,
}

/// Loads it, the first time.
fn half() -> &'static Half {
    static HALF: OnceLock<Half> = OnceLock::new();
    HALF.get_or_init(|| {
        let maps = std::fs::read_to_string(mapped::OWN).unwrap_or_default();
        match mapped::cuda_half(&maps, Path::exists) {
            CudaHalf::Loaded => Half::Loaded,
            CudaHalf::Beside(path) => load(&path),
            CudaHalf::None | CudaHalf::NoLibtorch => Half::Absent,
        }
    })
}

/// Why there is no CUDA device, in the words of libtorch or the loader; `None` where there is one.
/// Any rank, any thread.
///
/// ```
/// use tch_checkpoint::torch::{cuda_devices, why_no_cuda};
///
/// assert_eq!(why_no_cuda().is_none(), cuda_devices() > 0);
/// ```
#[must_use]
pub fn why_no_cuda() -> Option<String> {
    static WHY: OnceLock<Option<String>> = OnceLock::new();
    let why = || {
        (cuda_devices() == 0).then(|| match half() {
            Half::Absent => "this libtorch is for CPUs".to_owned(),
            Half::Fails(reason) => reason.clone(),
            Half::Loaded => match ffi::rng_state(Some(0)) {
                Err(error) => first_sentence(error.message()).to_owned(),
                Ok(_) => "libtorch counts none".to_owned(),
            },
        })
    };
    WHY.get_or_init(why).clone()
}

/// Of what was said when its random state was asked for. The rest is advice on Python packages.
fn first_sentence(text: &str) -> &str {
    let text = text.split_once(": ").map_or(text, |(_, said)| said);
    text.find(". ").and_then(|end| text.get(..end)).unwrap_or(text)
}

#[cfg(unix)]
fn load(path: &Path) -> Half {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

    // Global, as if the program had been linked with it: its own libraries look for its symbols.
    // SAFETY: runs initialisers of libtorch, which register its CUDA operators; it is of the same
    // installation as the half that is loaded, and is never unloaded.
    #[allow(unsafe_code)]
    let opened = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    match opened {
        Ok(library) => {
            std::mem::forget(library);
            tracing::debug!(path = %path.display(), "loaded libtorch's half for CUDA");
            Half::Loaded
        }
        Err(error) => {
            let reason = std::error::Error::source(&error).map(ToString::to_string);
            let reason = reason.unwrap_or_else(|| error.to_string());
            tracing::warn!(reason, "libtorch's half for CUDA does not load; training is on CPUs");
            Half::Fails(reason)
        }
    }
}

#[cfg(not(unix))]
fn load(_path: &Path) -> Half {
    Half::Absent
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_where_there_is_no_device() {
        match (cuda_devices(), why_no_cuda()) {
            (0, Some(reason)) => assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}"),
            (devices, reason) => assert_eq!((devices > 0, reason), (true, None)),
        }
        assert_eq!(first_sentence("asking: No driver. Get 1.2."), "No driver");
        assert_eq!(first_sentence("No driver"), "No driver");
    }

    #[test]
    fn a_half_that_does_not_load_is_told_in_the_words_of_the_loader() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libtorch_cuda.so");
        std::fs::write(&path, "no library").unwrap();
        let Half::Fails(reason) = load(&path) else { panic!("loaded") };
        assert!(reason.contains("libtorch_cuda.so"), "{reason}");
    }
}
