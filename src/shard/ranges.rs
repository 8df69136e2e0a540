//! Writing the share of one rank into a file that several ranks fill.

use super::cut::Cut;
use super::header::DATA_ALIGNMENT;
use super::image::STEP;
use super::pacing::Pacing;
use super::pipeline::{BUFFERS, beside};
use super::sums::SumsContent;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::SaveId;
use crate::memory::buffers::{BUFFER_BYTES, Buffer};
use crate::plan::PlannedPiece;
use crate::state::StateDict;
use crate::storage::WriteFile;
use crate::sync::{self, Mutex, unbounded};

/// A piece and where it goes.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct RangePiece {
    pub(crate) piece: PlannedPiece,
    /// First byte in the file.
    pub(crate) begin: u64,
}

/// Writes `pieces`, which are in file order, and returns their block sums in that order. The
/// caller makes the file durable. `progress` is called with the bytes of each finished write.
///
/// # Errors
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) if the pieces do not fit `state`, the error of
/// a source (with its tensor), or that of the storage (with its path).
pub(crate) fn write_ranges(
    file: &dyn WriteFile,
    pieces: &[RangePiece],
    state: &StateDict,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<u8>> {
    let cuts = pieces.iter().map(|placed| {
        let name = placed.piece.name.as_str();
        let cut = Cut::new(&placed.piece, state).map_err(|e| e.with_tensor(name))?;
        Ok((placed.begin, cut))
    });
    let cuts = cuts.collect::<Result<Vec<_>>>()?;
    let mut sums =
        SumsContent::new(&SaveId::from_bytes([0; 16]), cuts.iter().map(|(_, c)| c.bytes))?;
    let total = cuts.iter().fold(0u64, |sum, (_, cut)| sum.saturating_add(cut.bytes));
    let pacing = Mutex::new(Pacing::new());
    let write =
        |begin: u64, buffer: &Buffer| pacing.lock().write(file, begin, buffer.bytes(), progress);
    let is_in_turn = clock::is_simulated() || total <= BUFFER_BYTES as u64;
    let beside = if is_in_turn { None } else { fill_beside(&cuts, &mut sums, &write) };
    beside.unwrap_or_else(|| {
        let mut swap = |full: Option<(u64, Buffer)>| {
            let Some((begin, buffer)) = full else { return Buffer::new() };
            write(begin, &buffer)?;
            Ok(buffer)
        };
        fill(&cuts, &mut sums, &mut swap)
    })?;
    Ok(sums.into_sums())
}

/// Fills while another thread writes; `None`, with nothing done, where there is none to be had.
fn fill_beside(
    cuts: &[(u64, Cut<'_>)],
    sums: &mut SumsContent,
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
            *outcome = fill(cuts, sums, &mut swap);
        };
        beside(scope, write_all, send)
    });
    // An error of the writer is why nothing more could be filled.
    written.map(|written| written.and(filled))
}

fn gone() -> Error {
    Error::new(ErrorKind::Panic, "the writer thread ended before its work was done")
}

/// Takes a full buffer with the place of its bytes in the file, if there is one, for another.
type Swap<'a> = dyn FnMut(Option<(u64, Buffer)>) -> Result<Buffer> + 'a;

/// Copies and hashes all cuts, into one buffer after the other.
fn fill(cuts: &[(u64, Cut<'_>)], sums: &mut SumsContent, swap: &mut Swap<'_>) -> Result<()> {
    let mut out = Out { swap, buffer: None, begin: 0 };
    for (begin, cut) in cuts {
        let mut done = 0;
        while done < cut.bytes {
            let room = out.room(begin + done, (cut.bytes - done).min(STEP as u64))?;
            cut.fill(done, room)?;
            // From the copy, not the source: what is hashed is what is written.
            sums.update(room);
            done += room.len() as u64;
        }
        sums.end_piece();
    }
    out.turn(0)
}

/// Joins pieces that lie next to each other into large writes.
struct Out<'a, 'b> {
    swap: &'a mut Swap<'b>,
    buffer: Option<Buffer>,
    /// Where the buffer goes in the file.
    begin: u64,
}

impl Out<'_, '_> {
    /// Room for bytes at `begin`: at least one, at most `wanted`. All of it is written.
    fn room(&mut self, begin: u64, wanted: u64) -> Result<&mut [u8]> {
        let is_next = |buffer: &Buffer| self.begin + buffer.bytes().len() as u64 == begin;
        if !self.buffer.as_ref().is_some_and(|buffer| is_next(buffer) && buffer.room() > 0) {
            self.turn(begin)?;
        }
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        Ok(self.buffer.as_mut().map_or(&mut [], |buffer| buffer.take(wanted)))
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
