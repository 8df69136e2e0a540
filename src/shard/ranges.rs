//! Writing the share of one rank into a file that several ranks fill.

use super::cut::Cut;
use super::image::STEP;
use super::stream::{Out, write_stream};
use super::sums::SumsContent;
use crate::error::Result;
use crate::layout::SaveId;
use crate::plan::PlannedPiece;
use crate::state::StateDict;
use crate::storage::WriteFile;

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
    write_stream(file, total, progress, &mut |out| fill(&cuts, &mut sums, out))?;
    Ok(sums.into_sums())
}

/// Copies and hashes all cuts, into one buffer after the other.
fn fill(cuts: &[(u64, Cut<'_>)], sums: &mut SumsContent, out: &mut Out<'_>) -> Result<()> {
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
    Ok(())
}
