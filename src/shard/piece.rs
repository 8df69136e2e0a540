//! Where a piece lies.

use std::ops::Range;

use crate::manifest::{Piece, TensorRecord};

/// Where a piece lies, as the manifest says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PieceAt {
    /// Index of its data file.
    pub file: usize,
    /// Its first byte in that file, counted from the start of the file.
    pub begin: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// Index of its first block sum among those of its file.
    pub first_sum: u64,
}

impl PieceAt {
    /// A piece of `tensor`, as the manifest records it.
    pub(crate) fn of(tensor: &TensorRecord, piece: &Piece) -> Self {
        Self {
            // No file has an index that is none of `usize`; one that had it would not be there.
            file: usize::try_from(piece.file).unwrap_or(usize::MAX),
            begin: piece.begin,
            bytes: tensor.piece_bytes(piece),
            first_sum: piece.first_sum,
        }
    }

    /// The whole blocks of so many bytes that `range` of the piece touches.
    pub(super) fn blocks(&self, range: &Range<u64>, block: u64) -> Range<u64> {
        let end = range.end.div_ceil(block).saturating_mul(block).min(self.bytes);
        range.start - range.start % block..end
    }
}
