//! From a device straight into a page-locked region: everything is queued at once, and the device
//! is never idle in between.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::wait::{PATIENCE, wait};
use super::{Device, DeviceMemory, Mark, Queue};
use crate::error::{Error, ErrorKind, Result};
use crate::group::Progress;
use crate::memory::region::Region;

/// Bytes between two signs of progress.
const STEP: usize = 16 << 20;

/// A range of device memory, and where in the region it goes.
pub(crate) struct Part {
    pub(crate) from: DeviceMemory,
    pub(crate) offset: u64,
    pub(crate) to: Range<usize>,
}

/// A queue for each device of a state.
pub(crate) struct Queues {
    queues: Vec<Open>,
    patience: Duration,
}

struct Open {
    device: Arc<dyn Device>,
    queue: Box<dyn Queue>,
    /// Bytes queued since the last mark: thousands of small tensors share one.
    unmarked: u64,
}

/// A mark of the queue of this number, and how many bytes it stands for.
type Marked = (usize, Mark, u64);

impl Default for Queues {
    fn default() -> Self {
        Self { queues: Vec::new(), patience: PATIENCE }
    }
}

impl Queues {
    /// Opens one for `device`, unless it has one. What it copies is what the computing stream has
    /// left by the time of this call, as long as nobody changes it later.
    ///
    /// # Errors
    /// [`ErrorKind::Device`].
    pub(crate) fn open(&mut self, device: &Arc<dyn Device>) -> Result<()> {
        if self.queues.iter().all(|open| open.device.name() != device.name()) {
            let mut queue = device.open_queue()?;
            queue.wait_for_compute()?;
            self.queues.push(Open { device: Arc::clone(device), queue, unmarked: 0 });
        }
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Copies `parts` into `region`, which is page-locked, and returns when all are there.
    ///
    /// # Errors
    /// [`ErrorKind::Device`], [`ErrorKind::Deadline`]; [`ErrorKind::InvalidInput`] for a part that
    /// does not fit. The region is gone then.
    pub(crate) fn fill(
        &mut self,
        mut region: Region,
        parts: &[Part],
        progress: &Progress,
    ) -> Result<Region> {
        let mut marks = Vec::new();
        let queued = parts.iter().try_for_each(|part| self.queue(&mut region, part, &mut marks));
        let queued = queued.and_then(|()| self.mark_all(&mut marks, 1));
        let done = self.wait_all(&marks, progress);
        match (queued, done) {
            (Ok(()), Ok(())) => Ok(region),
            (Err(error), Ok(())) if self.is_idle() => Err(error),
            (queued, done) => {
                // The device may still write there, at any time: nobody may ever have it again.
                std::mem::forget(region);
                Err(queued.and(done).err().unwrap_or_else(unknown))
            }
        }
    }

    fn queue(&mut self, region: &mut Region, part: &Part, marks: &mut Vec<Marked>) -> Result<()> {
        let name = part.from.device.name();
        let number = self.queues.iter().position(|open| open.device.name() == name);
        let number = number.ok_or_else(unknown)?;
        let place = region.bytes_mut().get_mut(part.to.clone()).ok_or_else(misfit)?;
        let mut offset = part.offset;
        for place in place.chunks_mut(STEP) {
            let address = part.from.at(offset, place.len())?;
            let open = self.queues.get_mut(number).ok_or_else(unknown)?;
            // SAFETY: the address was checked, and the source keeps its memory until this has
            // returned; the region is given back only when all marks are reached, and else never
            // freed. Parts do not overlap (the plan's pieces are apart).
            #[allow(unsafe_code)]
            unsafe {
                open.queue.to_host(address, place.as_mut_ptr(), place.len())?;
            }
            open.unmarked += place.len() as u64;
            offset += place.len() as u64;
            self.mark_all(marks, STEP as u64)?;
        }
        Ok(())
    }

    /// Marks every queue with at least so many bytes since its last mark.
    fn mark_all(&mut self, marks: &mut Vec<Marked>, at_least: u64) -> Result<()> {
        for (number, open) in self.queues.iter_mut().enumerate() {
            if open.unmarked >= at_least {
                marks.push((number, open.queue.mark()?, open.unmarked));
                open.unmarked = 0;
            }
        }
        Ok(())
    }

    fn wait_all(&mut self, marks: &[Marked], progress: &Progress) -> Result<()> {
        for (number, mark, bytes) in marks {
            let open = self.queues.get_mut(*number).ok_or_else(unknown)?;
            wait(open.queue.as_mut(), *mark, self.patience)?;
            progress.add(*bytes);
        }
        Ok(())
    }

    /// Whether all that was queued is done; what was refused was not queued.
    fn is_idle(&mut self) -> bool {
        let patience = self.patience;
        self.queues.iter_mut().all(|Open { queue, .. }| {
            queue.mark().and_then(|mark| wait(queue.as_mut(), mark, patience)).is_ok()
        })
    }
}

fn unknown() -> Error {
    Error::new(ErrorKind::Device, "a copy from a device without a queue")
}

fn misfit() -> Error {
    Error::new(ErrorKind::InvalidInput, "a part of device memory has no place in the region")
}
