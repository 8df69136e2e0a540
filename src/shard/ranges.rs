//! Writing the share of one rank into a file that several ranks fill.

use super::sums::SumsContent;
use super::writer::Cut;
use crate::error::Result;
use crate::layout::SaveId;
use crate::memory::zeroed;
use crate::plan::PlannedPiece;
use crate::state::StateDict;
use crate::storage::WriteFile;

/// Bytes held at once.
const BUFFER_BYTES: usize = 8 << 20;

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
    let buffer = zeroed(total.min(BUFFER_BYTES as u64))?;
    let mut out = Out { file, progress, buffer, filled: 0, begin: 0 };
    for (begin, cut) in &cuts {
        let mut done = 0;
        while done < cut.bytes {
            let room = out.room(begin + done, cut.bytes - done)?;
            let read = cut.entry.source.read_into(cut.begin + done, room);
            read.map_err(|e| e.with_tensor(cut.tensor))?;
            // From the copy, not the source: what is hashed is what is written.
            sums.update(room);
            done += room.len() as u64;
        }
        sums.end_piece();
    }
    out.flush()?;
    Ok(sums.into_sums())
}

/// Joins pieces that lie next to each other into large writes.
struct Out<'a> {
    file: &'a dyn WriteFile,
    progress: &'a (dyn Fn(u64) + Sync),
    buffer: Vec<u8>,
    filled: usize,
    /// Where the buffer goes in the file.
    begin: u64,
}

impl Out<'_> {
    /// Room for bytes at `begin`: at least one, at most `wanted`. All of it is written.
    fn room(&mut self, begin: u64, wanted: u64) -> Result<&mut [u8]> {
        let is_next = self.begin + self.filled as u64 == begin;
        if !is_next || self.filled == self.buffer.len() {
            self.flush()?;
            self.begin = begin;
        }
        let free = self.buffer.len() - self.filled;
        let len = usize::try_from(wanted).unwrap_or(usize::MAX).min(free);
        let start = self.filled;
        self.filled += len;
        Ok(&mut self.buffer[start..start + len])
    }

    fn flush(&mut self) -> Result<()> {
        if self.filled > 0 {
            self.file.write_at(self.begin, &self.buffer[..self.filled])?;
            (self.progress)(self.filled as u64);
            self.filled = 0;
        }
        Ok(())
    }
}
