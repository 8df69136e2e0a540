//! Block sums: BLAKE3 over every 16 KiB of a piece, truncated to 16 bytes.
//!
//! A sums file is a magic, a version (u32, little-endian), four zero bytes and the save id, then
//! the sums of the rank's data files in plan order, piece by piece.

use crate::error::Result;
use crate::layout::SaveId;
use crate::manifest::{BLOCK_BYTES, SUM_BYTES, SUMS_HEADER_BYTES, hash16, sums_of, truncated};
use crate::memory::reserved;

const MAGIC: &[u8; 8] = b"TCHSUMS\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;

pub(super) const BLOCK: usize = 16 * 1024;
const _: () = assert!(BLOCK as u64 == BLOCK_BYTES);
const _: () = assert!(SUM_BYTES == 16 && SUMS_HEADER_BYTES == HEADER_BYTES as u64);

/// The sum of one block (at most [`BLOCK_BYTES`] long).
#[must_use]
pub fn sum(block: &[u8]) -> [u8; 16] {
    hash16(block)
}

/// How a sums file of this save begins.
pub(super) fn sums_header(save_id: &SaveId) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..].copy_from_slice(save_id.as_bytes());
    header
}

/// The content of a sums file, growing with the bytes that pass by.
pub(super) struct SumsContent {
    bytes: Vec<u8>,
    /// A block that did not arrive in one part.
    open_block: blake3::Hasher,
    open_bytes: usize,
}

impl SumsContent {
    /// Has room for the sums of pieces of these sizes, and needs no more memory then.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`](crate::ErrorKind::Storage) if memory is short.
    pub(super) fn new(save_id: &SaveId, pieces: impl Iterator<Item = u64>) -> Result<Self> {
        let blocks = pieces.fold(0u64, |sum, bytes| sum.saturating_add(sums_of(bytes)));
        let len = blocks.saturating_mul(SUM_BYTES).saturating_add(SUMS_HEADER_BYTES);
        let mut bytes = reserved(len)?;
        bytes.extend_from_slice(&sums_header(save_id));
        Ok(Self { bytes, open_block: blake3::Hasher::new(), open_bytes: 0 })
    }

    /// Takes the next bytes of the current piece.
    pub(super) fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let take = bytes.len().min(BLOCK - self.open_bytes);
            let (head, rest) = bytes.split_at(take);
            if take == BLOCK {
                self.bytes.extend_from_slice(&sum(head));
            } else {
                self.open_block.update(head);
                self.open_bytes += take;
                if self.open_bytes == BLOCK {
                    self.end_piece();
                }
            }
            bytes = rest;
        }
    }

    /// Ends the current piece: its last block may be short.
    pub(super) fn end_piece(&mut self) {
        if self.open_bytes > 0 {
            self.bytes.extend_from_slice(&truncated(&self.open_block.finalize()));
            self.open_block.reset();
            self.open_bytes = 0;
        }
    }

    /// Nothing yet: for the sums of bytes from the middle of the files, which are
    /// [joined](Self::join) later.
    pub(super) fn part() -> Self {
        Self { bytes: Vec::new(), open_block: blake3::Hasher::new(), open_bytes: 0 }
    }

    /// Takes the sums of what follows: `head` is the rest of the block that was open here, which
    /// ends with it if that is said, and `part` has the sums of everything behind it.
    pub(super) fn join(&mut self, head: &[u8], ends: bool, part: Self) {
        self.open_block.update(head);
        self.open_bytes += head.len();
        if ends {
            self.end_piece();
        }
        self.bytes.extend_from_slice(&part.bytes);
        if part.open_bytes > 0 {
            (self.open_block, self.open_bytes) = (part.open_block, part.open_bytes);
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The sums alone, without the header of a sums file.
    pub(super) fn into_sums(mut self) -> Vec<u8> {
        self.bytes.drain(..HEADER_BYTES.min(self.bytes.len()));
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However a piece is cut up on its way, its sums are those of its blocks.
        #[test]
        fn sums_do_not_depend_on_the_cuts(
            len in 0usize..200_000,
            cuts in prop::collection::vec(1usize..100_000, 1..6),
        ) {
            let piece: Vec<u8> = (0..=250).cycle().take(len).collect();
            let content = SumsContent::new(&SaveId::from_bytes([7; 16]), std::iter::once(len as u64));
            let mut content = content.unwrap();
            let (mut rest, mut cuts) = (piece.as_slice(), cuts.iter().cycle());
            while !rest.is_empty() {
                let (part, after) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                content.update(part);
                rest = after;
            }
            content.end_piece();
            let expected: Vec<u8> = piece.chunks(BLOCK).flat_map(sum).collect();
            prop_assert_eq!(&content.bytes()[HEADER_BYTES..], expected);
            prop_assert_eq!(content.bytes().len() as u64, SUMS_HEADER_BYTES + 16 * sums_of(len as u64));
        }
    }
}
