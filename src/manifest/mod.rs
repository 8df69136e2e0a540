//! The commit record: what a checkpoint consists of.
//!
//! A [`Manifest`] that exists is valid: [`Manifest::seal`] makes one from what was written,
//! [`Manifest::parse`] from bytes that nobody vouches for, and both go through the same checks.

mod check;
mod fill;
mod format;
mod info;
mod parse;
mod seal;
mod single;

use serde::{Deserialize, Serialize};

use self::fill::PiecePlace;
pub use self::format::FORMAT_VERSION;
use self::format::Format;
pub use self::info::{
    ASIDE, AUTOMATIC, CheckpointInfo, CheckpointState, GENERATION, LINE, LOST, METRICS, PINNED,
    RESHARDED_FROM,
};
pub(crate) use self::info::{count_of, floats_of, save_metrics};
pub use self::parse::MANIFEST_BYTES_MAX;
pub(crate) use self::parse::{HEAD_BYTES, check_head};
pub use self::seal::SealInfo;
pub(crate) use self::single::{FileParts, PlainParts, PlainTensor, SingleParts, place_in};
use crate::error::Result;
use crate::layout::SaveId;
use crate::rank::{Rank, WorldSize};
use crate::slice::Slice;
use crate::state::Values;
use crate::tensor::{Component, TensorName, TensorSpec};

/// Bytes of a block over which one sum is taken, counted from the start of each piece.
///
/// Small, so that a rank that loads a slice reads little beyond it. That of other files may differ:
/// [`Manifest::block_bytes`].
pub const BLOCK_BYTES: u64 = 16 * 1024;
/// Bytes of one block sum: BLAKE3, truncated.
pub const SUM_BYTES: u64 = 16;
/// Bytes of a sums file before its first sum: magic, version, four zero bytes, save id.
pub const SUMS_HEADER_BYTES: u64 = 32;

/// BLAKE3 of `bytes`, first 16 bytes: every hash and sum of the format.
#[must_use]
pub fn hash16(bytes: &[u8]) -> [u8; 16] {
    truncated(&blake3::hash(bytes))
}

/// As [`hash16`], of `len` bytes, which `read` gives from any place on; `scratch` is not empty.
///
/// # Errors
/// Those of `read`.
pub(crate) fn hash16_of(
    len: u64,
    scratch: &mut [u8],
    mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<[u8; 16]> {
    let (mut hasher, mut at) = (blake3::Hasher::new(), 0);
    while at < len && !scratch.is_empty() {
        let count = usize::try_from(len - at).unwrap_or(usize::MAX).min(scratch.len());
        let part = &mut scratch[..count];
        read(at, part)?;
        hasher.update(part);
        at += count as u64;
    }
    Ok(truncated(&hasher.finalize()))
}

/// First 16 bytes of a BLAKE3 hash.
pub(crate) fn truncated(hash: &blake3::Hash) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&hash.as_bytes()[..16]);
    short
}

/// Alignment of the data of a data file, for direct I/O.
pub const DATA_ALIGNMENT: u64 = 4096;
/// Longest header of a data file, in bytes, without the 8 that state its length.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

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
    /// Index of the sums file that holds its block sums; 0 where its own header does.
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

impl TensorRecord {
    /// Bytes of one of its pieces.
    #[must_use]
    pub fn piece_bytes(&self, piece: &Piece) -> u64 {
        piece.slice.elements() * self.spec.dtype().size_bytes()
    }
}

/// How many block sums a piece of so many bytes has in what is written today.
#[must_use]
pub const fn sums_of(piece_bytes: u64) -> u64 {
    piece_bytes.div_ceil(BLOCK_BYTES)
}

/// The content of a manifest, in the order in which it is encoded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Body {
    save_id: SaveId,
    step: u64,
    epoch: u64,
    world_size: u32,
    created_unix_ms: u64,
    library_version: String,
    libtorch_version: String,
    data_files: Vec<DataFile>,
    sums_files: Vec<OtherFile>,
    other_files: Vec<OtherFile>,
    tensors: Vec<TensorRecord>,
    aliases: Vec<(TensorName, TensorName)>,
    values: Values,
    rank_values: Vec<Values>,
}

/// How the files of a checkpoint hold what its manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Form {
    /// A directory with a manifest, and data files and sums files by rank.
    Directory,
    /// Safetensors files that carry manifest and block sums in their headers, and whole tensors.
    Single {
        /// The components that lie in files of their own beside this one.
        siblings: Vec<Component>,
    },
    /// Files of other tools: no manifest, and no sums that this would know of.
    Plain,
}

/// Everything a checkpoint consists of; valid by construction.
///
/// What holds for every one: each tensor is covered by its pieces exactly, each data file is
/// filled by its pieces exactly, every index and range is within bounds, names are unique, and
/// names of files are harmless.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    format: Format,
    body: Body,
    form: Form,
    world_size: WorldSize,
    /// Per data file its pieces in file order.
    file_pieces: Vec<Vec<PiecePlace>>,
    total_bytes: u64,
}

impl Manifest {
    /// Identity of the save that committed it.
    #[must_use]
    pub fn save_id(&self) -> SaveId {
        self.body.save_id
    }

    /// How its files hold it.
    #[must_use]
    pub fn form(&self) -> &Form {
        &self.form
    }

    /// Training steps completed.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.body.step
    }

    /// Epochs completed.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.body.epoch
    }

    /// How many ranks saved it.
    #[must_use]
    pub fn world_size(&self) -> WorldSize {
        self.world_size
    }

    /// When it was sealed, in milliseconds since 1970, by the coordinator's clock.
    #[must_use]
    pub fn created_unix_ms(&self) -> u64 {
        self.body.created_unix_ms
    }

    /// Every tensor, by name.
    #[must_use]
    pub fn tensors(&self) -> &[TensorRecord] {
        &self.body.tensors
    }

    /// A tensor by its name or by an alias.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorRecord> {
        self.tensor_index(name).and_then(|index| self.body.tensors.get(index))
    }

    /// As [`Manifest::tensor_index`], which `guess` may spare: who asks by name in order guesses
    /// what comes next.
    pub(crate) fn tensor_index_near(&self, guess: usize, name: &str) -> Option<usize> {
        let is_it = self.body.tensors.get(guess).is_some_and(|t| t.name.as_str() == name);
        if is_it { Some(guess) } else { self.tensor_index(name) }
    }

    pub(crate) fn tensor_index(&self, name: &str) -> Option<usize> {
        let find =
            |name: &str| self.body.tensors.binary_search_by(|t| t.name.as_str().cmp(name)).ok();
        find(name).or_else(|| {
            let aliases = &self.body.aliases;
            let place = aliases.binary_search_by(|(alias, _)| alias.as_str().cmp(name)).ok()?;
            aliases.get(place).and_then(|(_, target)| find(target.as_str()))
        })
    }

    /// Second names of tensors, by name, with the name under which the tensor is stored.
    #[must_use]
    pub fn aliases(&self) -> &[(TensorName, TensorName)] {
        &self.body.aliases
    }

    /// The files that hold tensors.
    #[must_use]
    pub fn data_files(&self) -> &[DataFile] {
        &self.body.data_files
    }

    /// The files that hold the block sums of the data files.
    #[must_use]
    pub fn sums_files(&self) -> &[OtherFile] {
        &self.body.sums_files
    }

    /// All further files.
    #[must_use]
    pub fn other_files(&self) -> &[OtherFile] {
        &self.body.other_files
    }

    /// Values of the job.
    #[must_use]
    pub fn values(&self) -> &Values {
        &self.body.values
    }

    /// Values of one rank of the job that saved.
    #[must_use]
    pub fn rank_values(&self, rank: Rank) -> Option<&Values> {
        self.body.rank_values.get(rank.index())
    }

    /// Whether it was written anew as by another number of ranks, so that what ranks have of their
    /// own is not complete.
    pub(crate) fn is_resharded(&self) -> bool {
        self.values().find(RESHARDED_FROM).is_some()
    }

    /// Version of this library that wrote it.
    #[must_use]
    pub fn library_version(&self) -> &str {
        &self.body.library_version
    }

    /// Version of libtorch of the job that saved; may be empty.
    #[must_use]
    pub fn libtorch_version(&self) -> &str {
        &self.body.libtorch_version
    }

    /// Bytes of a block over which one sum is taken, counted from the start of each piece.
    #[must_use]
    pub fn block_bytes(&self) -> u64 {
        self.format.block_bytes()
    }

    /// Bytes of all tensors, each counted once.
    #[must_use]
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors().iter().map(|tensor| tensor.spec.size_bytes()).sum()
    }

    /// Bytes of all files that it lists; the manifest itself comes on top.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    /// The pieces in a data file, in file order; none for an index that is out of range.
    pub fn pieces_of_file(&self, file: usize) -> impl Iterator<Item = (&TensorRecord, &Piece)> {
        let places = self.file_pieces.get(file).map_or(&[][..], Vec::as_slice);
        places.iter().filter_map(|place| {
            let record = self.body.tensors.get(place.tensor as usize)?;
            Some((record, record.pieces.get(place.piece as usize)?))
        })
    }
}

#[cfg(test)]
pub(crate) mod tests;
