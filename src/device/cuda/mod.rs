//! CUDA devices through the driver, found at run time: one binary for machines with and without.
//!
//! The context is the device's primary one, which libtorch uses as well, so that its tensors'
//! addresses are good here. Programs of `tch` compute on the legacy default stream; queues are
//! streams that do not wait for it by themselves.

mod driver;
#[cfg(test)]
mod fake_driver;
mod fingerprint;
mod identity;
mod queue;

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use cudarc::driver::sys;
use parking_lot::Mutex;

use self::driver::{Context, check};
use self::fingerprint::{CudaFingerprinter, Kernel};
pub(crate) use self::identity::device_id;
use self::queue::CudaQueue;
use super::budget::{self, Budget};
use super::{Device, Fingerprinter, Locked, Queue, Rings};
use crate::error::{Error, ErrorKind, Result};

static DEVICES: Mutex<BTreeMap<usize, Arc<CudaDevice>>> = Mutex::new(BTreeMap::new());

/// What of this process is page-locked, for all devices together.
fn process_budget() -> &'static Arc<Budget> {
    static BUDGET: OnceLock<Arc<Budget>> = OnceLock::new();
    BUDGET.get_or_init(|| Budget::of_text(std::env::var(budget::VARIABLE).ok().as_deref()))
}

/// The CUDA device of this number, as libtorch counts them.
///
/// # Errors
/// [`ErrorKind::Device`] without a driver, or such a device: what was looked for, and where.
pub(crate) fn device(index: usize) -> Result<Arc<dyn Device>> {
    let mut devices = DEVICES.lock();
    if let Some(device) = devices.get(&index) {
        return Ok(device.clone());
    }
    let context = Context::primary(index)?;
    let name = format!("cuda:{index}");
    let (rings, kernel) = (Rings::within(process_budget()), OnceLock::new());
    let device = Arc::new(CudaDevice { name, index, context, rings, kernel });
    devices.insert(index, Arc::clone(&device));
    Ok(device)
}

#[derive(Debug)]
pub(crate) struct CudaDevice {
    name: String,
    index: usize,
    context: Context,
    rings: Rings,
    /// `None` if the driver does not take it.
    kernel: OnceLock<Option<Kernel>>,
}

impl CudaDevice {
    fn kernel(&self) -> Option<Kernel> {
        let load = || {
            let loaded = Kernel::load(self.context, self.index);
            loaded.inspect_err(|error| self.cannot_hash(error)).ok()
        };
        *self.kernel.get_or_init(load)
    }

    fn cannot_hash(&self, error: &Error) {
        let device = &self.name;
        tracing::warn!(%error, device, "replicas are copied to the host to be compared");
    }
}

impl Device for CudaDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn rings(&self) -> &Rings {
        &self.rings
    }

    fn enter(&self) -> Result<Box<dyn Any>> {
        Ok(Box::new(self.context.enter()?))
    }

    fn open_queue(&self) -> Result<Box<dyn Queue>> {
        Ok(Box::new(CudaQueue::open(&self.context)?))
    }

    #[allow(unsafe_code)]
    unsafe fn lock_pages(&self, begin: *mut u8, bytes: usize) -> Result<Locked> {
        let _current = self.context.enter()?;
        let pages = Pages { begin: begin.expose_provenance(), context: self.context };
        // SAFETY: the caller keeps the memory until the pages are unlocked.
        let locked = unsafe {
            sys::cuMemHostRegister_v2(begin.cast(), bytes, sys::CU_MEMHOSTREGISTER_PORTABLE)
        };
        if let Err(error) = check(locked, "locking pages of host memory") {
            // Nothing is locked, so nothing is to be unlocked.
            std::mem::forget(pages);
            return Err(error);
        }
        Ok(Box::new(pages))
    }

    fn fingerprinter(&self, ranges: usize) -> Option<Box<dyn Fingerprinter>> {
        let opened = CudaFingerprinter::open(self.context, self.kernel()?, ranges);
        let opened = opened.inspect_err(|error| self.cannot_hash(error));
        Some(Box::new(opened.ok()?))
    }
}

/// Locked until it is dropped.
struct Pages {
    begin: usize,
    context: Context,
}

impl Drop for Pages {
    fn drop(&mut self) {
        let Ok(_current) = self.context.enter() else { return };
        let begin = std::ptr::with_exposed_provenance_mut(self.begin);
        // SAFETY: these pages were locked, and are unlocked once.
        #[allow(unsafe_code)]
        let unlocked = unsafe { sys::cuMemHostUnregister(begin) };
        if let Err(error) = check(unlocked, "unlocking pages") {
            tracing::debug!(%error, "pages stay locked");
        }
    }
}

/// The error where a number stands for no device.
fn no_device(index: usize, count: i32) -> Error {
    Error::new(ErrorKind::Device, format!("no CUDA device {index}: the driver shows {count}"))
        .with_help("devices are counted from 0 among those of CUDA_VISIBLE_DEVICES")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_or_such_a_device_it_is_an_error_that_says_what_was_looked_for() {
        let error = device(4096).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Device);
        let message = error.to_string();
        assert!(message.contains("libcuda.so.1") || message.contains("4096"), "{message}");
    }
}
