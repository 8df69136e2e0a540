//! Devices with memory of their own, as copies see them: the seam between what decides about copies
//! and the calls that make them.
//!
//! Copies between a device and the host run at full speed, and beside the computation, only out of
//! and into page-locked host memory, on a queue of their own. What is decided about them lies
//! here and knows no CUDA: `ring` goes through a few page-locked slots, for any host memory;
//! `direct` fills a page-locked region; `budget` bounds what is locked; `rings` keeps rings for
//! the next who copies. `cuda` is the device of production, `fake` that of tests, with
//! failures, delays and hangs at will. `placement` says whether each rank has a GPU of its own.
//!
//! # Order
//! A computing stream and a queue know nothing of one another but for two calls:
//! [`Queue::wait_for_compute`] before memory is read or written that the computation may still
//! use, and a wait of the host, or [`Queue::hold_compute`], before the computation uses it again.

pub(crate) mod budget;
pub(crate) mod direct;
#[cfg(test)]
pub(crate) mod fake;
#[cfg(any(test, feature = "torch"))]
pub(crate) mod placement;
pub(crate) mod ring;
pub(crate) mod rings;
#[cfg(test)]
mod tests;
pub(crate) mod wait;

#[cfg(feature = "torch")]
pub(crate) mod cuda;

use std::any::Any;
use std::ffi::c_void;
use std::fmt::Debug;
use std::sync::Arc;

pub use self::rings::{Pending, Rings, Uploads};
use crate::error::{Error, ErrorKind, Result};

/// A device with memory of its own.
pub trait Device: Send + Sync + Debug {
    /// How messages call it, such as `cuda:0`. Devices of one name are one device.
    fn name(&self) -> &str;

    /// Its rings, one set per device.
    fn rings(&self) -> &Rings;

    /// Makes this the current device of the calling thread until what is returned is dropped, for
    /// libraries that ask which one is. Default: there is no such thing.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    fn enter(&self) -> Result<Box<dyn Any>> {
        Ok(Box::new(()))
    }

    /// A new queue of work, beside what the device computes.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    fn open_queue(&self) -> Result<Box<dyn Queue>>;

    /// Locks pages of host memory, so that copies from and to them need no other memory and no
    /// waiting host. They are unlocked when what is returned is dropped.
    ///
    /// # Safety
    /// The memory stays allocated until then.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    #[allow(unsafe_code)]
    unsafe fn lock_pages(&self, begin: *mut u8, bytes: usize) -> Result<Locked>;

    /// What hashes at most `ranges` ranges of this device's memory where they lie, as the computing
    /// stream has left them by now. `None` where it cannot, which it says once in the log: the
    /// bytes are then copied to the host. Default: `None`.
    fn fingerprinter(&self, ranges: usize) -> Option<Box<dyn Fingerprinter>> {
        let _ = ranges;
        None
    }
}

/// Hashes memory of a device for an audit of replicas, at the speed of that memory. Dropping it waits
/// for what is queued.
pub trait Fingerprinter: Send {
    /// Queues one range: the sums over its blocks, as [`audit::fingerprint`](crate::audit::fingerprint)
    /// sums them up.
    ///
    /// # Safety
    /// The range stays allocated until [`Fingerprinter::collect`] has returned, or this is dropped.
    ///
    /// # Errors
    /// [`ErrorKind::Device`]; [`ErrorKind::InvalidInput`] for more ranges than were announced.
    #[allow(unsafe_code)]
    unsafe fn queue(&mut self, address: u64, bytes: u64) -> Result<()>;

    /// Waits, and returns both sums of each range, in the order in which they were queued.
    ///
    /// # Errors
    /// [`ErrorKind::Device`]; [`ErrorKind::Deadline`] of a device that does not answer.
    fn collect(&mut self) -> Result<Vec<[u64; 2]>>;
}

/// Page-locked as long as it is there.
pub type Locked = Box<dyn Any + Send + Sync>;

/// Everything that was queued until [`Queue::mark`] returned it. Later marks are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mark(pub u64);

/// Work for a device, done in order, beside what it computes: a CUDA stream.
///
/// Dropping it waits for nothing: what is queued goes on.
pub trait Queue: Send {
    /// What is queued from here on begins after all that the computing stream was given so far.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    fn wait_for_compute(&mut self) -> Result<()>;

    /// What the computing stream is given from here on begins after all that is queued here.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    fn hold_compute(&mut self) -> Result<()>;

    /// Queues a copy from the device to the host.
    ///
    /// # Safety
    /// Both ranges stay allocated, and nobody writes to or reads from the host's, until a mark
    /// made afterwards is reached.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    #[allow(unsafe_code)]
    unsafe fn to_host(&mut self, from: u64, to: *mut u8, bytes: usize) -> Result<()>;

    /// Queues a copy from the host to the device.
    ///
    /// # Safety
    /// Both ranges stay allocated, and nobody writes to the host's, until a mark made afterwards is
    /// reached.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    #[allow(unsafe_code)]
    unsafe fn to_device(&mut self, from: *const u8, to: u64, bytes: usize) -> Result<()>;

    /// Marks all that is queued so far.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    fn mark(&mut self) -> Result<Mark>;

    /// Whether the device has done all up to `mark`.
    ///
    /// # Errors
    /// [`ErrorKind::Device`], also for what went wrong in work that was queued before.
    fn reached(&mut self, mark: Mark) -> Result<bool>;

    /// The handle of the stream, for libraries that queue work of their own.
    fn raw(&self) -> *mut c_void;
}

/// Contiguous memory of a device, which stays allocated as long as this is there.
#[derive(Debug, Clone)]
pub struct DeviceMemory {
    device: Arc<dyn Device>,
    address: u64,
    bytes: u64,
    _kept: Kept,
}

/// What keeps memory of a device allocated.
#[derive(Clone)]
struct Kept(#[allow(dead_code, reason = "held, not read")] Arc<dyn Any + Send + Sync>);

impl Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Kept")
    }
}

impl DeviceMemory {
    /// `bytes` bytes of `device` that begin at its `address`.
    ///
    /// # Safety
    /// They are memory of that device, which stays allocated as long as `kept` is there, and which
    /// nobody changes while it is read, or reads while it is written.
    #[allow(unsafe_code)]
    pub unsafe fn new(
        device: Arc<dyn Device>,
        address: u64,
        bytes: u64,
        kept: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self { device, address, bytes, _kept: Kept(kept) }
    }

    #[cfg(test)]
    pub(crate) fn with_device(self, device: Arc<dyn Device>) -> Self {
        Self { device, ..self }
    }

    /// Where it lies.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// How many bytes it has.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.bytes
    }

    /// The device's address of its first byte.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Fills `out` with what begins at byte `offset`, as the computing stream has left it by now,
    /// through a ring of page-locked memory; `false`, with nothing done, where no memory may be
    /// locked (`TCH_CHECKPOINT_PINNED_MIB`).
    ///
    /// # Errors
    /// [`ErrorKind::Device`]; [`ErrorKind::Deadline`] of a device that does not answer;
    /// [`ErrorKind::InvalidInput`] beyond the end.
    pub fn read(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        self.device.rings().read(self, offset, out)
    }

    /// Gives `bytes` their way to byte `offset`, after all that the computing stream does there by
    /// now, and returns when `bytes` may change. They have arrived when what is returned is settled;
    /// `None`, with nothing done, as [`DeviceMemory::read`].
    ///
    /// # Errors
    /// As [`DeviceMemory::read`].
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<Option<Pending>> {
        self.device.rings().write(self, offset, bytes)
    }

    /// The address of byte `offset`, of which `bytes` follow.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if they do not all lie inside.
    pub(crate) fn at(&self, offset: u64, bytes: usize) -> Result<u64> {
        let end = offset.checked_add(bytes as u64);
        let address = self.address.checked_add(offset);
        match (address, end.is_some_and(|end| end <= self.bytes)) {
            (Some(address), true) => Ok(address),
            _ => {
                let have = self.bytes;
                let message = format!("device memory of {have} bytes, not {offset} + {bytes}");
                Err(Error::new(ErrorKind::InvalidInput, message))
            }
        }
    }
}
