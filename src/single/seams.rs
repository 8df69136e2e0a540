//! Where the bytes of one rank meet those of another.

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{BLOCK_BYTES, SUM_BYTES, sums_of};
use crate::memory::zeroed;
use crate::rank::Rank;
use crate::shard::{RangePiece, sum};
use crate::storage::ReadFile;
use crate::sweep::Pace;

/// Reads back the blocks on both sides of each place where bytes of two ranks meet, and at both
/// ends of the data: what a rank wrote must be seen here, and on network file systems a write may
/// spoil its neighbours' bytes in the same page.
pub(super) fn check_seams(
    file: &dyn ReadFile,
    pieces: &[(usize, RangePiece)],
    sums: &[u8],
    pace: &Pace,
) -> Result<()> {
    let mut rest = sums;
    let mut previous: Option<End<'_>> = None;
    for (rank, placed) in pieces {
        let count = sums_of(placed.piece.size_bytes());
        let own = usize::try_from(count * SUM_BYTES).ok().and_then(|len| rest.split_off(..len));
        let blocks = own.unwrap_or_default().as_chunks::<16>().0;
        let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { continue };
        if previous.as_ref().is_none_or(|end| end.rank != *rank) {
            previous.map_or(Ok(()), |end| end.check(file, pace))?;
            End::new(*rank, placed, 0, first).check(file, pace)?;
        }
        previous = Some(End::new(*rank, placed, count - 1, last));
    }
    previous.map_or(Ok(()), |end| end.check(file, pace))
}

/// The first or the last block of a piece.
struct End<'a> {
    rank: usize,
    begin: u64,
    len: u64,
    sum: &'a [u8; 16],
}

impl<'a> End<'a> {
    fn new(rank: usize, placed: &RangePiece, block: u64, sum: &'a [u8; 16]) -> Self {
        let inside = block * BLOCK_BYTES;
        let len = (placed.piece.size_bytes() - inside).min(BLOCK_BYTES);
        Self { rank, begin: placed.begin + inside, len, sum }
    }

    fn check(&self, file: &dyn ReadFile, pace: &Pace) -> Result<()> {
        let mut bytes = zeroed(self.len)?;
        let read = file.read_at(self.begin, &mut bytes);
        pace.progress.add(self.len);
        match read {
            Ok(()) if sum(&bytes) == *self.sum => Ok(()),
            Err(e) if e.kind() == ErrorKind::Storage => Err(e),
            _ => Err(Error::new(
                ErrorKind::NotShared,
                "bytes that a rank wrote are not what the coordinator reads",
            )
            .with_offset(self.begin)
            .at_rank(Rank::new(u32::try_from(self.rank).unwrap_or(u32::MAX)))
            .with_help("can ranks of several hosts write into one file on this file system?")),
        }
    }
}
