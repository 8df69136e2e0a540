//! Buffers for large I/O: aligned, counted, and used again by the next save, because the first touch
//! of a page costs more than the disk.

use rustix::mm::Advice;

use super::reserved;
use crate::error::Result;
use crate::sync::{Mutex, const_mutex};

/// Bytes of one buffer.
pub(crate) const BUFFER_BYTES: usize = 8 << 20;
/// The size of a huge page: a multiple of what direct I/O asks for.
const ALIGNMENT: usize = 2 << 20;
/// Buffers kept for the next save of this process: 48 MiB, as many as one save takes.
const KEPT_MAX: usize = 6;

static KEPT: Mutex<Vec<Memory>> = const_mutex(Vec::new());

/// Pages that have been touched, or will be when they are first filled.
struct Memory {
    bytes: Vec<u8>,
    start: usize,
}

/// [`BUFFER_BYTES`] of memory that begin on a page, filled from the front. Kept for the next one
/// who saves when it is dropped.
pub(crate) struct Buffer {
    memory: Option<Memory>,
    /// Bytes in front that are left out.
    lead: usize,
    filled: usize,
    #[cfg(test)]
    _held: super::held::Held,
}

impl Buffer {
    /// An empty buffer, used before if there is one.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`](crate::ErrorKind::Storage) where memory is short.
    pub(crate) fn new() -> Result<Self> {
        let kept = KEPT.lock().pop();
        let memory = match kept {
            Some(memory) => memory,
            None => Memory::new()?,
        };
        Ok(Self {
            memory: Some(memory),
            lead: 0,
            filled: 0,
            #[cfg(test)]
            _held: super::held::Held::new(&super::held::BUFFERS),
        })
    }

    pub(crate) fn room(&self) -> usize {
        BUFFER_BYTES - self.filled
    }

    /// The next `len` free bytes, at most all of the room, from now on counted as filled.
    pub(crate) fn take(&mut self, len: usize) -> &mut [u8] {
        let len = len.min(self.room());
        let begin = self.filled;
        self.filled += len;
        self.memory.as_mut().map_or(&mut [], |memory| memory.part(begin, len))
    }

    /// What is filled.
    pub(crate) fn bytes(&self) -> &[u8] {
        let range = |memory: &Memory| memory.start + self.lead..memory.start + self.filled;
        let memory = self.memory.as_ref();
        memory.and_then(|memory| memory.bytes.get(range(memory))).unwrap_or_default()
    }

    /// Empty again.
    pub(crate) fn clear(&mut self) {
        self.clear_to(0);
    }

    /// Empty again, to be filled from `lead` on: what begins in the middle of a page of a file has
    /// to begin there in memory as well, for direct I/O.
    pub(crate) fn clear_to(&mut self, lead: usize) {
        let lead = lead.min(BUFFER_BYTES);
        (self.lead, self.filled) = (lead, lead);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut kept = KEPT.lock();
        if kept.len() < KEPT_MAX {
            kept.extend(self.memory.take());
        }
    }
}

impl Memory {
    fn new() -> Result<Self> {
        // It grows within what is reserved: pages that no byte reaches cost nothing.
        let bytes = reserved((BUFFER_BYTES + ALIGNMENT) as u64)?;
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        let memory = Self { bytes, start };
        memory.wish_for_huge_pages();
        Ok(memory)
    }

    /// Fewer faults at the first touch, and fewer pages to hold for direct I/O. A wish: where it is
    /// not granted, everything is as without it.
    #[allow(unsafe_code)]
    fn wish_for_huge_pages(&self) {
        let start = self.bytes.as_ptr().wrapping_add(self.start).cast_mut().cast();
        // SAFETY: the range lies within what `bytes` has reserved, and the advice changes neither
        // what is in memory nor how it may be used.
        let _ = unsafe { rustix::mm::madvise(start, BUFFER_BYTES, Advice::LinuxHugepage) };
    }

    fn part(&mut self, begin: usize, len: usize) -> &mut [u8] {
        let begin = self.start + begin;
        if self.bytes.len() < begin + len {
            self.bytes.resize(begin + len, 0);
        }
        &mut self.bytes[begin..begin + len]
    }
}
