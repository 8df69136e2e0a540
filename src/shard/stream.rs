//! One file filled and written at once: buffers that this thread fills are written by another one.

use super::header::DATA_ALIGNMENT;
use super::pacing::Pacing;
use super::pipeline::{BUFFERS, Progress, beside};
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::buffers::{BUFFER_BYTES, Buffer};
use crate::storage::WriteFile;
use crate::sync::{self, Mutex, unbounded};

/// Takes a full buffer with the place of its bytes in the file, if there is one, for another.
type Swap<'a> = dyn FnMut(Option<(u64, Buffer)>) -> Result<Buffer> + 'a;
/// Puts everything where it belongs in the file.
type Fill<'a> = dyn FnMut(&mut Out<'_>) -> Result<()> + 'a;

/// Writes what `fill` puts into its buffers, `total` bytes, from another thread where there are
/// many. The caller makes the file durable. `progress` is called with the bytes of each finished
/// write.
///
/// # Errors
/// That of `fill`, or that of the storage (with its path).
pub(crate) fn write_stream(
    file: &dyn WriteFile,
    total: u64,
    progress: Progress<'_>,
    fill: &mut Fill<'_>,
) -> Result<()> {
    let pacing = Mutex::new(Pacing::new());
    let write =
        |begin: u64, buffer: &Buffer| pacing.lock().write(file, begin, buffer.bytes(), progress);
    let is_in_turn = clock::is_simulated() || total <= BUFFER_BYTES as u64;
    let beside = if is_in_turn { None } else { fill_beside(fill, &write) };
    beside.unwrap_or_else(|| {
        let mut swap = |full: Option<(u64, Buffer)>| {
            let Some((begin, buffer)) = full else { return Buffer::new() };
            write(begin, &buffer)?;
            Ok(buffer)
        };
        fill_all(fill, &mut swap)
    })
}

/// Fills while another thread writes; `None`, with nothing done, where there is none to be had.
fn fill_beside(
    fill: &mut Fill<'_>,
    write: &(impl Fn(u64, &Buffer) -> Result<()> + Sync),
) -> Option<Result<()>> {
    let (jobs, todo) = unbounded::<(u64, Buffer)>();
    let (give_back, free) = unbounded();
    for _ in 0..BUFFERS {
        let _ = give_back.send(None);
    }
    let mut filled = Ok(());
    let outcome = &mut filled;
    let written = sync::scope(|scope| {
        let write_all = move || {
            while let Ok((begin, buffer)) = todo.recv() {
                write(begin, &buffer)?;
                // Fails when nothing more is to be filled.
                let _ = give_back.send(Some(buffer));
            }
            Ok(())
        };
        let send = move || {
            let mut swap = |full: Option<(u64, Buffer)>| {
                full.map_or(Ok(()), |full| jobs.send(full).map_err(|_| gone()))?;
                free.recv().map_err(|_| gone())?.map_or_else(Buffer::new, Ok)
            };
            *outcome = fill_all(fill, &mut swap);
        };
        beside(scope, write_all, send)
    });
    // An error of the writer is why nothing more could be filled.
    written.map(|written| written.and(filled))
}

fn gone() -> Error {
    Error::new(ErrorKind::Panic, "the writer thread ended before its work was done")
}

fn fill_all(fill: &mut Fill<'_>, swap: &mut Swap<'_>) -> Result<()> {
    let mut out = Out { swap, buffer: None, begin: 0 };
    fill(&mut out)?;
    out.turn(0)
}

/// Joins what lies next to each other into large writes.
pub(crate) struct Out<'a> {
    swap: &'a mut Swap<'a>,
    buffer: Option<Buffer>,
    /// Where the buffer goes in the file.
    begin: u64,
}

impl Out<'_> {
    /// Room for bytes at `begin` of the file: at least one, at most `wanted`. All of it is written.
    ///
    /// # Errors
    /// As [`write_stream`].
    pub(crate) fn room(&mut self, begin: u64, wanted: u64) -> Result<&mut [u8]> {
        self.ready(begin)?;
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        Ok(self.buffer.as_mut().map_or(&mut [], |buffer| buffer.take(wanted)))
    }

    /// How much room there is at `begin` of the file, in one piece: at least one byte.
    ///
    /// # Errors
    /// As [`write_stream`].
    pub(crate) fn ready(&mut self, begin: u64) -> Result<u64> {
        let is_next = |buffer: &Buffer| self.begin + buffer.bytes().len() as u64 == begin;
        if !self.buffer.as_ref().is_some_and(|buffer| is_next(buffer) && buffer.room() > 0) {
            self.turn(begin)?;
        }
        Ok(self.buffer.as_ref().map_or(0, |buffer| buffer.room() as u64))
    }

    /// Puts `bytes` at `begin` of the file; returns where they end.
    ///
    /// # Errors
    /// As [`write_stream`].
    pub(crate) fn put(&mut self, begin: u64, bytes: &[u8]) -> Result<u64> {
        let (mut at, mut rest) = (begin, bytes);
        while !rest.is_empty() {
            let room = self.room(at, rest.len() as u64)?;
            let (part, after) = rest.split_at(room.len());
            room.copy_from_slice(part);
            (at, rest) = (at + part.len() as u64, after);
        }
        Ok(at)
    }

    /// Gives away what is filled, and goes on at `begin`.
    fn turn(&mut self, begin: u64) -> Result<()> {
        let full = self.buffer.take().map(|buffer| (self.begin, buffer));
        let mut buffer = (self.swap)(full)?;
        // As in the file, for direct I/O.
        buffer.clear_to(usize::try_from(begin % DATA_ALIGNMENT).unwrap_or_default());
        (self.buffer, self.begin) = (Some(buffer), begin);
        Ok(())
    }
}
