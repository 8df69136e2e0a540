//! The rings of a device: made when they are needed, kept for the next who copies.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use super::budget::Budget;
use super::ring::Ring;
use super::{Device, DeviceMemory, Mark};
use crate::error::Result;

/// As many threads copy beside one another; others wait for one of them.
const RINGS_MAX: usize = 4;

/// The page-locked memory of one device that is used again and again: at most 64 MiB, and within
/// `TCH_CHECKPOINT_PINNED_MIB`.
#[derive(Debug)]
pub struct Rings {
    budget: Arc<Budget>,
    rings: Mutex<Vec<Arc<Mutex<Slot>>>>,
}

/// A ring, or the place of one that is made at its first use.
#[derive(Default)]
struct Slot(Option<Ring>);

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Slot").field(&self.0.is_some()).finish()
    }
}

/// Bytes on their way to a device; they have arrived after [`Pending::settle`].
#[derive(Debug)]
#[must_use = "what is not settled may still be on its way"]
pub struct Pending {
    ring: Arc<Mutex<Slot>>,
    mark: Mark,
}

impl Pending {
    /// Returns when they have arrived.
    ///
    /// # Errors
    /// As [`DeviceMemory::read`].
    pub fn settle(self) -> Result<()> {
        match &mut self.ring.lock().0 {
            Some(ring) => ring.settle(self.mark),
            None => Ok(()),
        }
    }
}

impl Rings {
    pub(crate) fn new(budget: &Arc<Budget>) -> Self {
        Self { budget: Arc::clone(budget), rings: Mutex::default() }
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
        let ring = self.free();
        let mut slot = ring.lock();
        match self.sound(&mut slot, from.device.as_ref())? {
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
        let ring = self.free();
        let mut slot = ring.lock();
        let Some(used) = self.sound(&mut slot, to.device.as_ref())? else { return Ok(None) };
        let mark = used.write(to, offset, bytes)?;
        drop(slot);
        Ok(Some(Pending { ring, mark }))
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

    /// The ring of `slot`, a new one if there is none that can be used.
    fn sound<'s>(
        &self,
        slot: &'s mut MutexGuard<'_, Slot>,
        device: &dyn Device,
    ) -> Result<Option<&'s mut Ring>> {
        if !slot.0.as_ref().is_some_and(Ring::is_sound) {
            slot.0 = None;
            slot.0 = Ring::new(device, &self.budget)?;
        }
        Ok(slot.0.as_mut())
    }
}
