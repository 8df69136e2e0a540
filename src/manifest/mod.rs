//! The commit record: what a checkpoint consists of.

use serde::{Deserialize, Serialize};

use crate::layout::SaveId;
use crate::slice::Slice;
use crate::tensor::{Component, TensorName, TensorSpec};

/// Bytes of a block over which one sum is taken, counted from the start of each piece.
pub const BLOCK_BYTES: u64 = 64 * 1024;
/// Bytes of one block sum: BLAKE3, truncated.
pub const SUM_BYTES: u64 = 16;

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorRecord {
    /// Its name.
    pub name: TensorName,
    /// The component whose files hold it.
    pub component: Component,
    /// Dtype and global shape.
    pub spec: TensorSpec,
    /// Disjoint boxes that cover it, in order of their offsets.
    pub pieces: Vec<Piece>,
}

/// Where one box of a tensor lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Index into the data files.
    pub file: u32,
    /// First byte in that file.
    pub begin: u64,
    /// The box.
    pub slice: Slice,
    /// Index of its first block sum among those of its file. Not stored: derived when parsed.
    #[serde(skip)]
    pub first_sum: u64,
}

/// One data file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// Its name.
    pub name: String,
    /// The component whose tensors it holds.
    pub component: Component,
    /// The save that wrote it.
    pub save_id: SaveId,
    /// Its length.
    pub len: u64,
    /// Where its data begins: 8 + header length, a multiple of 4096.
    pub data_start: u64,
    /// BLAKE3 of its first `data_start` bytes, first 16 bytes.
    pub header_hash: [u8; 16],
    /// Index of the sums file that holds its block sums.
    pub sums_file: u32,
    /// Where its block sums begin there.
    pub sums_begin: u64,
    /// How many block sums it has. Not stored: derived when parsed.
    #[serde(skip)]
    pub sums_count: u64,
    /// BLAKE3 of its block sums, first 16 bytes.
    pub sums_hash: [u8; 16],
}

/// Another file of a checkpoint, hashed whole: block sums, model source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OtherFile {
    /// Its name.
    pub name: String,
    /// Its length.
    pub len: u64,
    /// BLAKE3 of all of it, first 16 bytes.
    pub hash: [u8; 16],
}
