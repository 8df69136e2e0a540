//! Buffers for large I/O: aligned, counted, and used again by the next save or load, because the
//! first touch of a page costs more than the disk.

use parking_lot::Mutex;

use super::reserved;
use crate::error::Result;

/// Bytes of one buffer.
pub(crate) const BUFFER_BYTES: usize = 8 << 20;
/// The size of a huge page: a multiple of what direct I/O asks for.
const ALIGNMENT: usize = 2 << 20;
/// Buffers kept for the next save or load of this process: 32 MiB.
const KEPT_MAX: usize = 4;

static KEPT: Mutex<Vec<Memory>> = Mutex::new(Vec::new());

/// Pages that have been touched, or will be when they are first filled.
struct Memory {
    bytes: Vec<u8>,
    start: usize,
}

/// [`BUFFER_BYTES`] of memory that begin on a page, filled from the front. Kept for the next one
/// who needs it when it is dropped.
pub(crate) struct Buffer {
    memory: Option<Memory>,
    filled: usize,
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
        Ok(Self { memory: Some(memory), filled: 0 })
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
        let range = |memory: &Memory| memory.start..memory.start + self.filled;
        let memory = self.memory.as_ref();
        memory.and_then(|memory| memory.bytes.get(range(memory))).unwrap_or_default()
    }

    /// Empty again.
    pub(crate) fn clear(&mut self) {
        self.filled = 0;
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
        Ok(Self { bytes, start })
    }

    fn part(&mut self, begin: usize, len: usize) -> &mut [u8] {
        let begin = self.start + begin;
        if self.bytes.len() < begin + len {
            self.bytes.resize(begin + len, 0);
        }
        &mut self.bytes[begin..begin + len]
    }
}
