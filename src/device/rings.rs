//! The rings of a device: made when they are needed, kept for the next who copies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::budget::Budget;
use super::ring::Ring;
use super::{Device, DeviceMemory, Mark};
use crate::error::{Error, ErrorKind, Result};

/// As many threads copy beside one another; others wait for one of them.
const RINGS_MAX: usize = 4;

/// The page-locked memory of one device that is used again and again: at most 64 MiB, and within
/// `TCH_CHECKPOINT_PINNED_MIB`.
#[derive(Debug)]
pub struct Rings {
    budget: Arc<Budget>,
    /// No pages could be locked, or no queue opened: that is not tried at every copy.
    is_refused: AtomicBool,
    rings: Mutex<Vec<Arc<Mutex<Slot>>>>,
}

/// A ring, or the place of one that is made at its first use.
#[derive(Default)]
struct Slot {
    ring: Option<Ring>,
    /// How many there were before: marks are those of one of them.
    number: u64,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("number", &self.number).finish_non_exhaustive()
    }
}

/// Bytes on their way to a device; they have arrived after [`Pending::settle`].
#[derive(Debug)]
#[must_use = "what is not settled may still be on its way"]
pub struct Pending {
    slot: Arc<Mutex<Slot>>,
    number: u64,
    mark: Mark,
}

impl Pending {
    /// Whether `later` is on the same way behind it.
    fn is_before(&self, later: &Self) -> bool {
        let is_same = Arc::ptr_eq(&self.slot, &later.slot) && self.number == later.number;
        is_same && self.mark <= later.mark
    }

    /// Returns when they have arrived.
    ///
    /// # Errors
    /// As [`DeviceMemory::read`].
    pub fn settle(self) -> Result<()> {
        let mut slot = self.slot.lock();
        let is_same = slot.number == self.number;
        match slot.ring.as_mut().filter(|_| is_same) {
            Some(ring) => ring.settle(self.mark),
            None => Err(Error::new(ErrorKind::Device, "a copy to the device was given up")),
        }
    }
}

/// Several of them, of which those that end together are one.
#[derive(Debug, Default)]
pub struct Uploads(Vec<Pending>);

impl Uploads {
    /// One more.
    pub fn add(&mut self, pending: Pending) {
        self.0.retain(|earlier| !earlier.is_before(&pending));
        self.0.push(pending);
    }

    /// Returns when all have arrived; after an error too none is on its way any more, or its ring
    /// has been given up.
    ///
    /// # Errors
    /// The first, as [`Pending::settle`].
    pub fn settle(&mut self) -> Result<()> {
        self.0.drain(..).map(Pending::settle).fold(Ok(()), Result::and)
    }
}

impl Rings {
    /// Of a device of one's own: not more than `bytes_max` of its copies are page-locked.
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self::within(&Budget::new(bytes_max))
    }

    /// Within a bound that others share.
    pub(crate) fn within(budget: &Arc<Budget>) -> Self {
        let (budget, is_refused) = (Arc::clone(budget), AtomicBool::new(false));
        Self { budget, is_refused, rings: Mutex::default() }
    }

    /// What else of the device's is page-locked counts as well.
    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// As [`Ring::read`]; `false`, with nothing done, where no memory may be locked for it.
    ///
    /// # Errors
    /// As [`Ring::read`].
    pub(crate) fn read(&self, from: &DeviceMemory, offset: u64, out: &mut [u8]) -> Result<bool> {
        let slot = self.free();
        let mut slot = slot.lock();
        match self.sound(&mut slot, from.device.as_ref()) {
            Some(ring) => ring.read(from, offset, out).map(|()| true),
            None => Ok(false),
        }
    }

    /// As [`Ring::write`]; `None`, with nothing done, where no memory may be locked for it.
    ///
    /// # Errors
    /// As [`Ring::read`].
    pub(crate) fn write(
        &self,
        to: &DeviceMemory,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Option<Pending>> {
        let free = self.free();
        let mut slot = free.lock();
        let Some(ring) = self.sound(&mut slot, to.device.as_ref()) else { return Ok(None) };
        let mark = ring.write(to, offset, bytes)?;
        let number = slot.number;
        drop(slot);
        Ok(Some(Pending { slot: free, number, mark }))
    }

    /// One that nobody uses now, if there is one or may be one more.
    fn free(&self) -> Arc<Mutex<Slot>> {
        let mut rings = self.rings.lock();
        let free = rings.iter().find(|ring| ring.try_lock().is_some());
        if let Some(ring) = free.or_else(|| rings.first().filter(|_| rings.len() >= RINGS_MAX)) {
            return Arc::clone(ring);
        }
        let ring = Arc::<Mutex<Slot>>::default();
        rings.push(Arc::clone(&ring));
        ring
    }

    /// The ring of `slot`, a new one if there is none that can be used; `None` where there can be
    /// none, so that the source copies by other means.
    fn sound<'s>(
        &self,
        slot: &'s mut MutexGuard<'_, Slot>,
        device: &dyn Device,
    ) -> Option<&'s mut Ring> {
        if !slot.ring.as_ref().is_some_and(Ring::is_sound) {
            // Its memory is given back before the next one takes some.
            slot.ring = None;
            slot.number += 1;
            slot.ring = self.new_ring(device);
        }
        slot.ring.as_mut()
    }

    fn new_ring(&self, device: &dyn Device) -> Option<Ring> {
        if self.is_refused.load(Ordering::Relaxed) {
            return None;
        }
        Ring::new(device, &self.budget).unwrap_or_else(|error| {
            self.is_refused.store(true, Ordering::Relaxed);
            let device = device.name();
            tracing::warn!(%error, device, "no page-locked memory: copies will be slow");
            None
        })
    }
}
