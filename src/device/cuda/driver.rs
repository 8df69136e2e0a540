//! The driver's own words: whether it is there, its errors, its contexts.

use std::ffi::{CStr, c_char};
use std::ptr;
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUresult};

use super::no_device;
use crate::error::{Error, ErrorKind, Result};

/// Everything that is called. One that were missing would end the process in `cudarc`.
const SYMBOLS: [&str; 29] = [
    "cuCtxPopCurrent_v2",
    "cuCtxPushCurrent_v2",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetUuid_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventQuery",
    "cuEventRecord",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuInit",
    "cuLaunchKernel",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostRegister_v2",
    "cuMemHostUnregister",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD32Async",
    "cuModuleGetFunction",
    "cuModuleLoadData",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamWaitEvent",
];

/// Whether there is a driver that works, once asked.
///
/// # Errors
/// [`ErrorKind::Device`].
pub(super) fn ready() -> Result<()> {
    static READY: OnceLock<Result<()>> = OnceLock::new();
    READY.get_or_init(init).clone()
}

fn init() -> Result<()> {
    // SAFETY: loading the driver runs its initialisers, as CUDA programs do at their start.
    #[allow(unsafe_code)]
    let is_there = unsafe { sys::is_culib_present() };
    if !is_there {
        let message = "no CUDA driver: the loader finds no libcuda.so.1 (nor libcuda.so)";
        return Err(Error::new(ErrorKind::Device, message).with_help(
            "it comes with NVIDIA's kernel driver; in a container, with the container toolkit",
        ));
    }
    for name in SYMBOLS {
        // SAFETY: the library is there, so that this does not panic; the symbol is not used.
        #[allow(unsafe_code)]
        let found = unsafe { sys::culib().get::<*const ()>(name.as_bytes()).is_ok() };
        if !found {
            let message = format!("libcuda has no `{name}`: this driver is too old, or a stub");
            return Err(Error::new(ErrorKind::Device, message));
        }
    }
    // SAFETY: takes nothing but flags, which must be 0.
    #[allow(unsafe_code)]
    check(unsafe { sys::cuInit(0) }, "starting the CUDA driver").map_err(|error| {
        error.with_help("a `stubs` folder of a CUDA toolkit in LD_LIBRARY_PATH hides the driver")
    })
}

/// What the driver answered, with its own name and words for an error.
///
/// # Errors
/// [`ErrorKind::Device`].
pub(super) fn check(result: CUresult, what: &str) -> Result<()> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let code = result as u32;
    let name = text(|at| {
        // SAFETY: writes one pointer to `at`.
        #[allow(unsafe_code)]
        unsafe {
            sys::cuGetErrorName(result, at)
        }
    });
    let said = text(|at| {
        // SAFETY: writes one pointer to `at`.
        #[allow(unsafe_code)]
        unsafe {
            sys::cuGetErrorString(result, at)
        }
    });
    Err(Error::new(ErrorKind::Device, describe(what, code, &name, &said)))
}

fn describe(what: &str, code: u32, name: &str, said: &str) -> String {
    match (name, said) {
        ("", "") => format!("{what}: CUDA error {code}"),
        ("", said) => format!("{what}: CUDA error {code}: {said}"),
        (name, "") => format!("{what}: {name} ({code})"),
        (name, said) => format!("{what}: {said} ({name}, {code})"),
    }
}

/// A text that `ask` points to, which lives as long as the driver.
fn text(ask: impl FnOnce(*mut *const c_char) -> CUresult) -> String {
    let mut found: *const c_char = ptr::null();
    if ask(&raw mut found) != CUresult::CUDA_SUCCESS || found.is_null() {
        return String::new();
    }
    // SAFETY: the driver's texts are constants that end with a zero.
    #[allow(unsafe_code)]
    let text = unsafe { CStr::from_ptr(found) };
    text.to_string_lossy().into_owned()
}

/// The primary context of a device, as long as the process lives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Context(sys::CUcontext);

// SAFETY: the driver takes a context from any thread; this is only its handle, never dereferenced.
#[allow(unsafe_code)]
unsafe impl Send for Context {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Sync for Context {}

impl Context {
    /// # Errors
    /// [`ErrorKind::Device`] without a driver or such a device.
    pub(super) fn primary(index: usize) -> Result<Self> {
        let device = number(index)?;
        let mut context = ptr::null_mut();
        // SAFETY: the driver is there, and writes one handle. It is never released: libtorch holds
        // it as well, until the end.
        #[allow(unsafe_code)]
        let retained = unsafe { sys::cuDevicePrimaryCtxRetain(&raw mut context, device) };
        check(retained, &format!("taking the context of cuda:{index}"))?;
        Ok(Self(context))
    }

    /// Current on this thread until the guard is dropped; then the one that was is again.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    pub(super) fn enter(self) -> Result<Entered> {
        // SAFETY: a context that was retained and never released.
        #[allow(unsafe_code)]
        check(unsafe { sys::cuCtxPushCurrent_v2(self.0) }, "entering a CUDA context")?;
        Ok(Entered(std::marker::PhantomData))
    }
}

/// A context is current on this thread, and only there.
pub(super) struct Entered(std::marker::PhantomData<*const ()>);

impl Drop for Entered {
    fn drop(&mut self) {
        let mut context = ptr::null_mut();
        // SAFETY: takes off what this thread has put there.
        #[allow(unsafe_code)]
        let left = unsafe { sys::cuCtxPopCurrent_v2(&raw mut context) };
        if let Err(error) = check(left, "leaving a CUDA context") {
            tracing::warn!(%error, "another context stays current on this thread");
        }
    }
}

/// The driver's own number of a visible device.
///
/// # Errors
/// [`ErrorKind::Device`].
pub(super) fn number(index: usize) -> Result<sys::CUdevice> {
    ready()?;
    let mut count = 0;
    // SAFETY: writes one number.
    #[allow(unsafe_code)]
    check(unsafe { sys::cuDeviceGetCount(&raw mut count) }, "counting CUDA devices")?;
    let ordinal = i32::try_from(index).ok().filter(|index| *index < count);
    let ordinal = ordinal.ok_or_else(|| no_device(index, count))?;
    let mut device = 0;
    // SAFETY: writes one number.
    #[allow(unsafe_code)]
    check(unsafe { sys::cuDeviceGet(&raw mut device, ordinal) }, "finding a CUDA device")?;
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_has_the_driver_s_name_and_words_where_it_has_any() {
        assert_eq!(
            describe("copying", 2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
            "copying: out of memory (CUDA_ERROR_OUT_OF_MEMORY, 2)"
        );
        assert_eq!(describe("copying", 9, "", ""), "copying: CUDA error 9");
    }

    #[test]
    fn every_call_is_in_the_list_of_symbols() {
        let sources = [
            include_str!("driver.rs"),
            include_str!("identity.rs"),
            include_str!("fingerprint.rs"),
            include_str!("mod.rs"),
            include_str!("queue.rs"),
        ];
        let calls = sources.iter().flat_map(|text| text.split("sys::cu").skip(1));
        let mut seen = 0;
        for call in calls {
            let name: String =
                call.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if name.starts_with(char::is_uppercase) && call[name.len()..].starts_with('(') {
                let name = format!("cu{name}");
                assert!(SYMBOLS.contains(&name.as_str()), "{name} is not looked for");
                seen += 1;
            }
        }
        assert!(seen >= SYMBOLS.len() - 3, "{seen} calls");
    }
}
