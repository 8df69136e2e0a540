//! A few page-locked slots through which bytes go between a device and any host memory: while the
//! device fills or empties one, the host works on another.

use std::collections::VecDeque;
use std::time::Duration;

use super::budget::Budget;
use super::wait::{PATIENCE, wait};
use super::{Device, DeviceMemory, Mark, Queue};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::region::Region;
use crate::memory::stream;

/// Bytes of a slot: long enough that a copy takes longer than to ask for it.
pub(crate) const SLOT_BYTES: usize = 4 << 20;
const SLOTS: usize = 4;
/// Where little may be locked.
const SLOT_BYTES_MIN: usize = 256 << 10;
const SLOTS_MIN: usize = 2;

/// One slot, and until when the device uses it.
struct Slot {
    memory: Region,
    busy: Option<Mark>,
}

/// Slots in turn, with the queue that fills and empties them.
pub(crate) struct Ring {
    slots: Vec<Slot>,
    slot_bytes: usize,
    next: usize,
    queue: Box<dyn Queue>,
    patience: Duration,
    /// After an error nobody knows what the device still does.
    broken: Option<Error>,
}

impl Ring {
    /// Slots within `budget`; smaller and fewer where little is left. `None` where nothing is.
    ///
    /// # Errors
    /// [`ErrorKind::Device`]; [`ErrorKind::Storage`] where memory is short.
    pub(crate) fn new(
        device: &dyn Device,
        budget: &std::sync::Arc<Budget>,
    ) -> Result<Option<Self>> {
        for (slots, slot_bytes) in [(SLOTS, SLOT_BYTES), (SLOTS_MIN, SLOT_BYTES_MIN)] {
            if let Some(slots) = slots_of(device, budget, slots, slot_bytes)? {
                let queue = device.open_queue()?;
                let (next, patience, broken) = (0, PATIENCE, None);
                return Ok(Some(Self { slots, slot_bytes, next, queue, patience, broken }));
            }
        }
        Ok(None)
    }

    #[cfg(test)]
    pub(crate) fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Whether it can be used again.
    pub(crate) fn is_sound(&self) -> bool {
        self.broken.is_none()
    }

    /// Fills `out` with what begins at byte `offset` of `from`, as the computing stream has left it
    /// by now. Returns when all of it is there.
    ///
    /// # Errors
    /// [`ErrorKind::Device`], [`ErrorKind::Deadline`], and [`ErrorKind::InvalidInput`] beyond the
    /// end.
    pub(crate) fn read(&mut self, from: &DeviceMemory, offset: u64, out: &mut [u8]) -> Result<()> {
        from.at(offset, out.len())?;
        self.guarded(|ring| ring.read_parts(from, offset, out))
    }

    fn read_parts(&mut self, from: &DeviceMemory, offset: u64, out: &mut [u8]) -> Result<()> {
        self.queue.wait_for_compute()?;
        let mut coming: VecDeque<(usize, &mut [u8])> = VecDeque::with_capacity(self.slots.len());
        let mut at = offset;
        for part in out.chunks_mut(self.slot_bytes) {
            if coming.len() == self.slots.len()
                && let Some((slot, part)) = coming.pop_front()
            {
                self.take_out(slot, part)?;
            }
            let slot = self.next_free()?;
            self.queue_read(slot, from.at(at, part.len())?, part.len())?;
            at += part.len() as u64;
            coming.push_back((slot, part));
        }
        coming.into_iter().try_for_each(|(slot, part)| self.take_out(slot, part))
    }

    /// Gives `bytes` their way to byte `offset` of `to`, after all that the computing stream does
    /// with that memory by now. Returns when `bytes` may change; they have arrived when the mark is
    /// [`settled`](Self::settle).
    ///
    /// # Errors
    /// As [`Ring::read`].
    pub(crate) fn write(&mut self, to: &DeviceMemory, offset: u64, bytes: &[u8]) -> Result<Mark> {
        to.at(offset, bytes.len())?;
        self.guarded(|ring| {
            ring.queue.wait_for_compute()?;
            let mut at = offset;
            for part in bytes.chunks(ring.slot_bytes) {
                let slot = ring.next_free()?;
                ring.queue_write(slot, part, to.at(at, part.len())?)?;
                at += part.len() as u64;
            }
            ring.queue.mark()
        })
    }

    /// Returns when all up to `mark` is done.
    ///
    /// # Errors
    /// As [`Ring::read`].
    pub(crate) fn settle(&mut self, mark: Mark) -> Result<()> {
        self.guarded(|ring| wait(ring.queue.as_mut(), mark, ring.patience))
    }

    fn guarded<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        work(self).inspect_err(|error| self.broken = Some(error.clone()))
    }

    /// The next slot in turn, once the device has done with it.
    fn next_free(&mut self) -> Result<usize> {
        let number = self.next;
        self.next = (number + 1) % self.slots.len().max(1);
        let busy = self.slots.get(number).and_then(|slot| slot.busy);
        if let Some(mark) = busy {
            wait(self.queue.as_mut(), mark, self.patience)?;
        }
        let slot = self.slots.get_mut(number).ok_or_else(no_slot)?;
        slot.busy = None;
        Ok(number)
    }

    #[allow(unsafe_code)]
    fn queue_read(&mut self, slot: usize, address: u64, bytes: usize) -> Result<()> {
        let slot = self.slots.get_mut(slot).ok_or_else(no_slot)?;
        let place = slot.memory.bytes_mut().get_mut(..bytes).ok_or_else(no_slot)?;
        slot.busy = Some(Mark(u64::MAX));
        // SAFETY: `address` and `bytes` lie inside memory that its giver keeps until this ring has
        // answered; `place` is used again only after `busy` was waited for, and is leaked if that
        // cannot be (`Drop`).
        unsafe { self.queue.to_host(address, place.as_mut_ptr(), bytes)? };
        slot.busy = Some(self.queue.mark()?);
        Ok(())
    }

    #[allow(unsafe_code)]
    fn queue_write(&mut self, slot: usize, part: &[u8], address: u64) -> Result<()> {
        let slot = self.slots.get_mut(slot).ok_or_else(no_slot)?;
        let place = slot.memory.bytes_mut().get_mut(..part.len()).ok_or_else(no_slot)?;
        stream::copy(part, place);
        slot.busy = Some(Mark(u64::MAX));
        // SAFETY: as in `queue_read`.
        unsafe { self.queue.to_device(place.as_ptr(), address, part.len())? };
        slot.busy = Some(self.queue.mark()?);
        Ok(())
    }

    /// Waits for what comes into a slot, and copies it out.
    fn take_out(&mut self, slot: usize, out: &mut [u8]) -> Result<()> {
        let slot = self.slots.get_mut(slot).ok_or_else(no_slot)?;
        if let Some(mark) = slot.busy {
            wait(self.queue.as_mut(), mark, self.patience)?;
        }
        slot.busy = None;
        stream::copy(slot.memory.bytes().get(..out.len()).ok_or_else(no_slot)?, out);
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for slot in self.slots.drain(..) {
            let is_free = match (slot.busy, &self.broken) {
                (None, _) => true,
                (Some(mark), None) => wait(self.queue.as_mut(), mark, self.patience).is_ok(),
                (Some(_), Some(_)) => false,
            };
            if !is_free {
                // The device may still write there, at any time: nobody may ever have it again.
                std::mem::forget(slot);
            }
        }
    }
}

/// So many slots, all page-locked; `None` if the budget has not as much.
fn slots_of(
    device: &dyn Device,
    budget: &std::sync::Arc<Budget>,
    count: usize,
    bytes: usize,
) -> Result<Option<Vec<Slot>>> {
    let mut slots = Vec::with_capacity(count);
    for _ in 0..count {
        let mut memory = Region::new(bytes as u64)?;
        if !memory.lock(device, budget)? {
            return Ok(None);
        }
        slots.push(Slot { memory, busy: None });
    }
    Ok(Some(slots))
}

fn no_slot() -> Error {
    Error::new(ErrorKind::Device, "a copy is longer than its slot")
}
