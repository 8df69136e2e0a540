//! From a device straight into a page-locked region: copies are queued ahead, so that the device is
//! never idle in between.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::wait::{PATIENCE, wait};
use super::{Device, DeviceMemory, Mark, Queue};
use crate::error::{Error, ErrorKind, Result};
use crate::group::Progress;
use crate::memory::region::Region;

/// Bytes, and copies, between two signs of progress.
const STEP: usize = if cfg!(test) { 64 << 10 } else { 16 << 20 };
const COPIES_MAX: u32 = 128;
/// A stream takes about a thousand copies; who gives it more waits inside the driver, where nothing
/// ends a wait for a device that hangs.
const MARKS_MAX: usize = 4;

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
    /// Bytes and copies queued since the last mark: many small tensors share one.
    unmarked: (u64, u32),
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
            self.queues.push(Open { device: Arc::clone(device), queue, unmarked: (0, 0) });
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
        let mut marks = VecDeque::new();
        let mut each = parts.iter();
        let queued = each.try_for_each(|part| self.queue(&mut region, part, &mut marks, progress));
        let queued = queued.and_then(|()| self.mark_all(&mut marks, |_| true));
        let done = self.wait_until(0, &mut marks, progress);
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
        marks: &mut VecDeque<Marked>,
        progress: &Progress,
    ) -> Result<()> {
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
            open.unmarked.0 += place.len() as u64;
            open.unmarked.1 += 1;
            offset += place.len() as u64;
            self.mark_all(marks, |(bytes, copies)| bytes >= STEP as u64 || copies >= COPIES_MAX)?;
            self.wait_until(MARKS_MAX, marks, progress)?;
        }
        Ok(())
    }

    /// Marks every queue that was given something since its last mark, if that `is_enough`.
    fn mark_all(
        &mut self,
        marks: &mut VecDeque<Marked>,
        is_enough: impl Fn((u64, u32)) -> bool,
    ) -> Result<()> {
        for (number, open) in self.queues.iter_mut().enumerate() {
            if open.unmarked.1 > 0 && is_enough(open.unmarked) {
                marks.push_back((number, open.queue.mark()?, open.unmarked.0));
                open.unmarked = (0, 0);
            }
        }
        Ok(())
    }

    /// Waits until no more than `count` marks are left.
    fn wait_until(
        &mut self,
        count: usize,
        marks: &mut VecDeque<Marked>,
        progress: &Progress,
    ) -> Result<()> {
        while marks.len() > count
            && let Some((number, mark, bytes)) = marks.pop_front()
        {
            let open = self.queues.get_mut(number).ok_or_else(unknown)?;
            wait(open.queue.as_mut(), mark, self.patience)?;
            progress.add(bytes);
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
