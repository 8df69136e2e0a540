//! Plans as data. [`save`] decides which rank writes what, [`load`] which bytes a rank reads.
//! Both are pure: same input, same plan, no I/O.

pub(crate) mod cover;
pub mod load;
pub(crate) mod names;
mod pieces;
pub(crate) mod reuse;
pub mod save;
pub(crate) mod unchanged;

use serde::{Deserialize, Serialize};

pub use self::pieces::Pieces;
pub use self::unchanged::LinkedComponent;
use crate::layout::SaveId;
use crate::manifest::{OtherFile, SUM_BYTES, SUMS_HEADER_BYTES, sums_of};
pub use crate::report::WriteTimes;
use crate::slice::Slice;
use crate::state::Values;
use crate::tensor::{Component, TensorName, TensorSpec};

/// One box that a rank holds and could write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriteItem {
    /// Tensor it belongs to.
    pub name: TensorName,
    /// Which files it goes to.
    pub component: Component,
    /// Dtype and global shape.
    pub spec: TensorSpec,
    /// The box held.
    pub slice: Slice,
}

/// Everything one rank tells the coordinator before a save. Small: no tensor bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LocalPlan {
    /// What it wants saved under which name; must agree between ranks.
    pub target: SaveTarget,
    /// The boxes it holds, in order of tensor name.
    pub items: Vec<WriteItem>,
    /// Second names of tensors; must agree between ranks.
    pub aliases: Vec<(TensorName, TensorName)>,
    /// Values of the job; must agree between ranks.
    pub values: Values,
    /// Values of this rank.
    pub rank_values: Values,
    /// Attached files, by name, without their content; must agree between ranks.
    pub attached: Vec<OtherFile>,
}

/// What to do about an existing checkpoint of the same name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnExisting {
    /// The save fails with [`AlreadyExists`](crate::ErrorKind::AlreadyExists), before anything is
    /// written.
    #[default]
    Refuse,
    /// The new one is committed, then the old one removed.
    Replace,
    /// The new one gets `-v1`, `-v2`, … appended.
    Number,
}

/// Where and as what a save goes; the same on every rank or the save is refused.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveTarget {
    /// Directory that holds the checkpoints, as the caller wrote it.
    pub directory: String,
    /// Name of the checkpoint in it.
    pub name: String,
    /// Training steps completed.
    pub step: u64,
    /// Epochs completed.
    pub epoch: u64,
    /// What happens to an existing checkpoint of that name.
    pub on_existing: OnExisting,
    /// Bytes below which what is left after the save is worth a warning.
    pub space_reserve: u64,
    /// Whether a save that seems not to fit is tried all the same.
    pub ignore_space: bool,
    /// Whether what has not changed is written all the same.
    pub copy_unchanged: bool,
    /// Version of libtorch, for the record.
    pub libtorch_version: String,
}

/// What one rank writes: the coordinator's answer in phase "plan".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavePlan {
    /// Identity of this attempt.
    pub save_id: SaveId,
    /// Data files of this rank, one per component (more when it writes two boxes of a tensor).
    pub files: Vec<PlannedFile>,
    /// Name of the file with their block sums; absent when there are no data files.
    pub sums_file: Option<String>,
}

/// One data file to be written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedFile {
    /// Its name.
    pub name: String,
    /// The component whose tensors it holds.
    pub component: Component,
    /// Its pieces in file order: larger element sizes first, then by tensor name.
    pub pieces: Pieces,
}

/// One piece to be written: part of a box that the rank declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedPiece {
    /// Tensor it belongs to.
    pub name: TensorName,
    /// Dtype and global shape.
    pub spec: TensorSpec,
    /// The declared box out of which it is cut.
    pub held: Slice,
    /// The piece itself, inside `held`, contiguous in its row-major order.
    pub slice: Slice,
}

impl PlannedPiece {
    /// Bytes of the piece.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.slice.elements() * self.spec.dtype().size_bytes()
    }
}

/// What one rank has written: its vote in phase "commit".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// Its data files, in plan order.
    pub files: Vec<FileReceipt>,
    /// The file with their block sums.
    pub sums_file: Option<SumsReceipt>,
    /// Where the time went.
    pub times: WriteTimes,
}

impl Receipt {
    /// Bytes of all its files.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        let sums = self.sums_file.as_ref().map_or(0, |sums| sums.len);
        self.files.iter().map(|file| file.len).sum::<u64>() + sums
    }

    /// What a rank reports that has done as planned, with hashes that are made up: for what is
    /// tested or timed without files.
    #[doc(hidden)]
    #[must_use]
    pub fn as_planned(plan: &SavePlan) -> Self {
        let mut end = SUMS_HEADER_BYTES;
        let file = |file: &PlannedFile| {
            let (data_start, sums_begin) = (4096, end);
            let piece_bytes: Vec<u64> = file.pieces.iter().map(PlannedPiece::size_bytes).collect();
            end += piece_bytes.iter().map(|bytes| sums_of(*bytes) * SUM_BYTES).sum::<u64>();
            FileReceipt {
                name: file.name.clone(),
                len: data_start + piece_bytes.iter().sum::<u64>(),
                data_start,
                header_hash: [1; 16],
                piece_bytes,
                sums_begin,
                sums_hash: [2; 16],
            }
        };
        let files = plan.files.iter().map(file).collect();
        let sums = |name: &String| SumsReceipt { name: name.clone(), len: end, hash: [3; 16] };
        Self { files, sums_file: plan.sums_file.as_ref().map(sums), times: WriteTimes::default() }
    }
}

/// Proof of one written data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReceipt {
    /// Its name.
    pub name: String,
    /// Length of the whole file.
    pub len: u64,
    /// Where the data of the pieces begins (8 + header length); a multiple of 4096.
    pub data_start: u64,
    /// BLAKE3 of the first `data_start` bytes, first 16 bytes.
    pub header_hash: [u8; 16],
    /// Bytes of each piece, in file order.
    pub piece_bytes: Vec<u64>,
    /// Where its block sums begin in the rank's sums file.
    pub sums_begin: u64,
    /// BLAKE3 of its block sums, first 16 bytes.
    pub sums_hash: [u8; 16],
}

/// Proof of a written sums file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SumsReceipt {
    /// Its name.
    pub name: String,
    /// Its length.
    pub len: u64,
    /// BLAKE3 of all of it, first 16 bytes.
    pub hash: [u8; 16],
}
