//! Whether what is about to be written fits.

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{SUM_BYTES, sums_of};
use crate::plan::save::MergedPlan;
use crate::plan::{PlannedFile, PlannedPiece};
use crate::shown;
use crate::storage::{Directory, Space};

/// Files take whole blocks of this size on most file systems; headers are filled up to it too.
const BLOCK_BYTES: u64 = 4096;
/// What a piece, a dimension of it, and a letter of its tensor's name cost at most in the header
/// of the data file, in the manifest and in the index together.
const PIECE_BYTES: u64 = 640;
const DIMENSION_BYTES: u64 = 160;
const NAME_TIMES: u64 = 6;
/// Directory, lock, manifest, index.
const OWN_FILES: u64 = 4;

/// What a save should leave, and what happens if it does not fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Margin {
    /// Less than so many bytes left are a warning.
    pub(crate) reserve: u64,
    /// So is then what does not fit at all: the storage may tell wrong numbers.
    pub(crate) ignore_space: bool,
}

/// What a save is about to take, and what it should leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Need {
    bytes: u64,
    files: u64,
    margin: Margin,
}

/// What is to be said about a need.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Fits,
    /// So many bytes would remain, less than the reserve.
    Scarce(u64),
    TooLarge,
    TooManyFiles(u64),
}

impl Need {
    /// Of files of these lengths.
    pub(crate) fn of_files(lengths: impl IntoIterator<Item = u64>, margin: Margin) -> Self {
        let empty = Self { bytes: 0, files: OWN_FILES, margin };
        lengths.into_iter().fold(empty, |need, len| Self {
            bytes: need.bytes.saturating_add(in_blocks(len)),
            files: need.files + 1,
            margin,
        })
    }

    /// Of a checkpoint directory: a little more than it will take, never less.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the values cannot be encoded.
    pub(crate) fn of_plan(merged: &MergedPlan, margin: Margin) -> Result<Self> {
        let mut values = crate::codec::encode(&(&merged.values, &merged.rank_values))?.len() as u64;
        for (alias, target) in &merged.aliases {
            values += (alias.as_str().len() + target.as_str().len()) as u64 + 64;
        }
        let mut lengths = vec![values];
        for plan in &merged.plans {
            lengths.extend(plan.files.iter().map(file_bytes));
            let pieces = plan.files.iter().flat_map(|file| &file.pieces);
            lengths.extend(plan.sums_file.as_ref().map(|_| BLOCK_BYTES + sums_bytes(pieces)));
        }
        lengths.extend(merged.attached.iter().map(|file| file.len));
        Ok(Self::of_files(lengths, margin))
    }

    /// On the coordinator, after old debris was swept and before anything is written to `parent`.
    /// Warns if less than the reserve would be left. Where nothing is known about space, what is
    /// to be written is taken to fit.
    ///
    /// # Errors
    /// [`ErrorKind::NoSpace`].
    pub(crate) fn check(&self, parent: &dyn Directory) -> Result<()> {
        let Some(space) = known(parent) else { return Ok(()) };
        let error = match self.verdict(&space) {
            Verdict::Fits => return Ok(()),
            Verdict::Scarce(left) => {
                tracing::warn!(
                    path = %shown::path(parent.path()),
                    available = %mib(space.usable_bytes()),
                    needed = %mib(self.bytes),
                    left = %mib(left),
                    minimum = %mib(self.margin.reserve),
                    "space is getting scarce: this save leaves less than the minimum"
                );
                return Ok(());
            }
            Verdict::TooLarge => self.too_large(parent, &space),
            Verdict::TooManyFiles(available) => self.too_many(parent, available),
        };
        if self.margin.ignore_space {
            tracing::warn!(%error, "this save seems not to fit, and is tried all the same");
            return Ok(());
        }
        Err(error)
    }

    fn verdict(&self, space: &Space) -> Verdict {
        if let Some(available) = space.available_files.filter(|available| *available < self.files) {
            return Verdict::TooManyFiles(available);
        }
        match space.usable_bytes().checked_sub(self.bytes) {
            None => Verdict::TooLarge,
            Some(left) if left < self.margin.reserve => Verdict::Scarce(left),
            Some(_) => Verdict::Fits,
        }
    }

    fn too_large(&self, parent: &dyn Directory, space: &Space) -> Error {
        let (usable, needed) = (space.usable_bytes(), self.bytes);
        let by_quota = usable < space.available_bytes;
        let message = format!(
            "the checkpoint takes {} ({needed} bytes), and {} ({usable} bytes) are {}",
            mib(needed),
            mib(usable),
            if by_quota { "left within the quota" } else { "available" },
        );
        let missing = mib(needed.saturating_sub(usable));
        let also = if by_quota { ", raise the quota" } else { "" };
        Error::new(ErrorKind::NoSpace, message).with_path(parent.path()).with_help(format!(
            "free {missing} there (keep fewer checkpoints){also}, or choose another directory; \
             nothing was written, older checkpoints are untouched"
        ))
    }

    fn too_many(&self, parent: &dyn Directory, available: u64) -> Error {
        let message =
            format!("the checkpoint takes {} files, and {available} can be made", self.files);
        Error::new(ErrorKind::NoSpace, message).with_path(parent.path()).with_help(
            "remove files there (inodes are used up), or choose another directory; nothing was \
             written, older checkpoints are untouched",
        )
    }
}

/// On the coordinator, before training: warns if less than `minimum` bytes are left already, and if
/// what is left is not known, which is said once and not at every save.
pub(crate) fn look(parent: &dyn Directory, minimum: u64) {
    let path = parent.path();
    match known(parent).map(|space| space.usable_bytes()) {
        None => tracing::warn!(
            path = %shown::path(path),
            "free space is not known here: every save is taken to fit"
        ),
        Some(available) if available < minimum => tracing::warn!(
            path = %shown::path(path),
            available = %mib(available),
            minimum = %mib(minimum),
            "little space is left for checkpoints"
        ),
        Some(_) => {}
    }
}

fn known(parent: &dyn Directory) -> Option<Space> {
    parent.space().unwrap_or_else(|error| {
        tracing::debug!(path = %shown::path(parent.path()), %error, "asking for free space failed");
        None
    })
}

fn in_blocks(len: u64) -> u64 {
    len.checked_next_multiple_of(BLOCK_BYTES).unwrap_or(u64::MAX)
}

fn file_bytes(file: &PlannedFile) -> u64 {
    let described: u64 = file.pieces.iter().map(described_bytes).sum();
    let data = file.pieces.iter().fold(0u64, |sum, piece| sum.saturating_add(piece.size_bytes()));
    data.saturating_add(in_blocks(described + BLOCK_BYTES))
}

/// Of the words about a piece, wherever they are written.
fn described_bytes(piece: &PlannedPiece) -> u64 {
    let (name, rank) = (piece.name.as_str().len(), piece.spec.shape().len());
    PIECE_BYTES + NAME_TIMES * name as u64 + DIMENSION_BYTES * rank as u64
}

fn sums_bytes<'a>(pieces: impl Iterator<Item = &'a PlannedPiece>) -> u64 {
    let sums: u64 = pieces.map(|piece| sums_of(piece.size_bytes())).sum();
    sums.saturating_mul(SUM_BYTES)
}

/// In the unit of the reserve's setting, or the next one.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
fn mib(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 10_240.0 { format!("{mib:.2} MiB") } else { format!("{:.2} GiB", mib / 1024.0) }
}

#[cfg(test)]
mod tests;
