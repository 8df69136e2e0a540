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
    queues: Vec<(Arc<dyn Device>, Box<dyn Queue>)>,
    patience: Duration,
}

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
        if self.queues.iter().all(|(known, _)| known.name() != device.name()) {
            let mut queue = device.open_queue()?;
            queue.wait_for_compute()?;
            self.queues.push((Arc::clone(device), queue));
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

    fn queue(
        &mut self,
        region: &mut Region,
        part: &Part,
        marks: &mut Vec<(usize, Mark, u64)>,
    ) -> Result<()> {
        let name = part.from.device.name();
        let number = self.queues.iter().position(|(device, _)| device.name() == name);
        let number = number.ok_or_else(unknown)?;
        let (_, queue) = self.queues.get_mut(number).ok_or_else(unknown)?;
        let place = region.bytes_mut().get_mut(part.to.clone()).ok_or_else(misfit)?;
        let mut offset = part.offset;
        for place in place.chunks_mut(STEP) {
            let address = part.from.at(offset, place.len())?;
            // SAFETY: the address was checked, and the source keeps its memory until this has
            // returned; the region is given back only when all marks are reached, and else never
            // freed. Parts do not overlap (the plan's pieces are apart).
            #[allow(unsafe_code)]
            unsafe {
                queue.to_host(address, place.as_mut_ptr(), place.len())?;
            }
            marks.push((number, queue.mark()?, place.len() as u64));
            offset += place.len() as u64;
        }
        Ok(())
    }

    fn wait_all(&mut self, marks: &[(usize, Mark, u64)], progress: &Progress) -> Result<()> {
        for (number, mark, bytes) in marks {
            let (_, queue) = self.queues.get_mut(*number).ok_or_else(unknown)?;
            wait(queue.as_mut(), *mark, self.patience)?;
            progress.add(*bytes);
        }
        Ok(())
    }

    /// Whether all that was queued is done; what was refused was not queued.
    fn is_idle(&mut self) -> bool {
        let patience = self.patience;
        self.queues.iter_mut().all(|(_, queue)| {
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
