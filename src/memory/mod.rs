//! Memory whose size comes from outside. Whatever may be large is asked for in a way that can be
//! refused: a process out of memory is to report an error, with its checkpoint untouched, and not
//! to be ended by its allocator.

pub(crate) mod buffers;
#[cfg(test)]
pub(crate) mod held;
pub(crate) mod region;
pub(crate) mod stream;

use std::io;

use crate::error::{Error, ErrorKind, Result};

fn short(len: u64) -> Error {
    Error::no_memory(len)
}

/// An empty buffer with room for `len` bytes, or an error where memory is short.
pub(crate) fn reserved(len: u64) -> Result<Vec<u8>> {
    room_for(usize::try_from(len).map_err(|_| short(len))?)
}

/// An empty list with room for so many items, or an error where memory is short.
pub(crate) fn room_for<T>(items: usize) -> Result<Vec<T>> {
    let (mut list, bytes) = (Vec::new(), items.saturating_mul(size_of::<T>()));
    list.try_reserve_exact(items).map_err(|_| short(bytes as u64))?;
    Ok(list)
}

/// A zeroed buffer, or an error where memory is short. A large one costs nothing before it is
/// filled: the operating system gives zeroed pages.
pub(crate) fn zeroed(len: u64) -> Result<Vec<u8>> {
    let fit = usize::try_from(len).map_err(|_| short(len))?;
    bytemuck::allocation::try_zeroed_vec(fit).map_err(|()| short(len))
}

/// A zeroed buffer whose pages are there already: the first touch is no part of what is measured.
#[cfg(feature = "cli")]
pub(crate) fn touched(len: u64) -> Result<Vec<u8>> {
    let mut bytes = reserved(len)?;
    // It fits: the buffer was made.
    bytes.resize(usize::try_from(len).unwrap_or_default(), 0);
    Ok(bytes)
}

/// Makes `bytes` at least `len` long, or an error where memory is short.
pub(crate) fn grow(bytes: &mut Vec<u8>, len: usize) -> Result<()> {
    let more = len.saturating_sub(bytes.len());
    bytes.try_reserve_exact(more).map_err(|_| short(len as u64))?;
    bytes.resize(bytes.len() + more, 0);
    Ok(())
}

/// Makes room for `more` bytes, or an error where memory is short.
pub(crate) fn reserve(bytes: &mut Vec<u8>, more: usize) -> Result<()> {
    let len = bytes.len().saturating_add(more);
    bytes.try_reserve(more).map_err(|_| short(len as u64))
}

/// A copy, or an error where memory is short.
pub(crate) fn copied(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut copy = reserved(bytes.len() as u64)?;
    copy.extend_from_slice(bytes);
    Ok(copy)
}

/// Whether there is room for `len` bytes, before much is made of many small parts, each of which
/// ends the process if there is none. It cannot promise that the room is still there then.
pub(crate) fn probe(len: u64) -> Result<()> {
    reserved(len).map(drop)
}

/// A buffer that is written to, of at most so many bytes.
#[derive(Debug)]
pub(crate) struct Growing {
    pub(crate) bytes: Vec<u8>,
    max: usize,
    failed: Option<Error>,
}

impl Growing {
    pub(crate) fn new(max: usize) -> Self {
        Self { bytes: Vec::new(), max, failed: None }
    }

    /// Why it took no more: memory was short, or it is full.
    pub(crate) fn failed(&mut self) -> Option<Error> {
        self.failed.take()
    }

    /// # Errors
    /// [`ErrorKind::Storage`] where memory is short, [`ErrorKind::InvalidInput`] beyond the most.
    pub(crate) fn put(&mut self, part: &[u8]) -> Result<()> {
        let len = self.bytes.len().saturating_add(part.len());
        if len > self.max {
            let message = format!("{len} bytes, at most {} are allowed", self.max);
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        reserve(&mut self.bytes, part.len())?;
        self.bytes.extend_from_slice(part);
        Ok(())
    }
}

impl io::Write for Growing {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        self.put(part).map_err(|error| {
            self.failed = Some(error);
            io::Error::from(io::ErrorKind::OutOfMemory)
        })?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
