//! What can be saved from a damaged checkpoint, and what not.
//!
//! Nothing is ever changed or removed: what is whole is written as a new checkpoint elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use crate::catalog::{CheckpointPath, Found};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::manifest::{ASIDE, Form, LOST, Piece, TensorRecord};
use crate::reshard::{ReshardOptions, attach, is_attached, rewrite, state_of};
use crate::save::Checkpoint;
use crate::shard::{PieceAt, ShardReader};
use crate::state::Value;
use crate::storage::Storage;
use crate::tensor::TensorName;
use crate::verify::check_other;

/// Of how many bad blocks of a piece each is told; the rest of the piece is not looked at then.
const TOLD_MAX: usize = 8;

/// What is left of a checkpoint.
#[derive(Debug, Clone, Default)]
pub struct Assessment {
    /// Tensors of which every byte is as it was committed, by name.
    pub whole: Vec<TensorName>,
    /// The others, each with the first thing that is wrong with it.
    pub lost: BTreeMap<TensorName, Error>,
    /// Second names of lost tensors, by name, each with the tensor.
    pub lost_aliases: BTreeMap<TensorName, TensorName>,
    /// Attached files that cannot be had, each with why.
    pub lost_files: BTreeMap<String, Error>,
    /// Every damaged place that was found: of files, with path; of blocks, with tensor and offset.
    /// Of a piece with many of them the first ones.
    pub damage: Vec<Error>,
    /// Bytes of whole tensors, and of all.
    pub whole_bytes: u64,
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
}

impl Assessment {
    /// Whether something cannot be had any more.
    #[must_use]
    pub fn has_lost(&self) -> bool {
        !self.lost.is_empty() || !self.lost_files.is_empty()
    }

    /// Whether every byte of every file is as it was committed, as loads want it.
    #[must_use]
    pub fn is_intact(&self) -> bool {
        self.damage.is_empty() && !self.has_lost()
    }

    /// Everything that cannot be had any more: tensors, their second names, files.
    fn lost_names(&self) -> Vec<&str> {
        let tensors = self.lost.keys().chain(self.lost_aliases.keys()).map(TensorName::as_str);
        tensors.chain(self.lost_files.keys().map(String::as_str)).collect()
    }
}

/// Reads all of a checkpoint whose manifest has been parsed, block by block, and says which tensors
/// are whole: also those in files that are cut short, too long, or whose header is damaged, since
/// the manifest says where every tensor lies and the sums what it was. Changes nothing. `progress`
/// is called with the bytes of tensors that were found as they were.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for files of other tools, which have no sums; [`ErrorKind::Storage`]
/// if memory is short. Damage is no error, nor is a file that cannot be read.
pub fn assess(found: &Found, progress: &mut dyn FnMut(u64)) -> Result<Assessment> {
    let manifest = &found.manifest;
    if *manifest.form() == Form::Plain {
        let message = "a file of another tool has no checksums";
        return Err(Error::new(ErrorKind::Unsupported, message).with_path(found.path()));
    }
    let mut assessment =
        Assessment { tensor_bytes: manifest.tensor_bytes(), ..Assessment::default() };
    assessment.look_at_files(found)?;
    let reader = reader_of(found);
    for (index, file) in manifest.data_files().iter().enumerate() {
        for (tensor, piece) in manifest.pieces_of_file(index) {
            assessment.look_at_piece(&reader, &file.name, (tensor, piece), progress)?;
        }
        reader.forget_sums(index);
    }
    for tensor in manifest.tensors() {
        if !assessment.lost.contains_key(&tensor.name) {
            assessment.whole.push(tensor.name.clone());
            assessment.whole_bytes += tensor.spec.elements() * tensor.spec.dtype().size_bytes();
        }
    }
    let aliases = manifest.aliases().iter().filter(|(_, of)| assessment.lost.contains_key(of));
    assessment.lost_aliases = aliases.cloned().collect();
    assessment.look_at_other_files(found)?;
    Ok(assessment)
}

/// Data files are taken as they are: the manifest and the sums tell what of them is right.
fn reader_of(found: &Found) -> ShardReader {
    let reader = ShardReader::of(found.dir.clone(), &found.manifest);
    match found.manifest.form() {
        Form::Directory => reader.with_lengths_found(),
        _ => reader,
    }
}

impl Assessment {
    /// Lengths, headers, sums: what says something of a file as a whole.
    fn look_at_files(&mut self, found: &Found) -> Result<()> {
        let strict = ShardReader::of(found.dir.clone(), &found.manifest);
        for index in 0..found.manifest.data_files().len() {
            self.note(strict.verify_header(index))?;
        }
        for index in 0..found.manifest.sums_files().len() {
            self.note(strict.verify_sums_file(index))?;
        }
        Ok(())
    }

    /// An index is made anew; of attached files it is said which are lost.
    fn look_at_other_files(&mut self, found: &Found) -> Result<()> {
        for record in found.manifest.other_files() {
            let looked = check_other(found, record);
            if let (Err(error), true) = (&looked, is_attached(record)) {
                self.lost_files.insert(record.name.clone(), error.clone());
            }
            self.note(looked)?;
        }
        Ok(())
    }

    fn note(&mut self, looked: Result<()>) -> Result<()> {
        match looked {
            Err(short) if short.is_no_memory() => Err(short),
            Err(error) => {
                self.damage.push(error);
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    fn look_at_piece(
        &mut self,
        reader: &ShardReader,
        file: &str,
        (tensor, piece): (&TensorRecord, &Piece),
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let bytes = tensor.piece_bytes(piece);
        let at = PieceAt::of(tensor, piece);
        let (mut next, mut told, mut scratch) = (0, 0, Vec::new());
        while next < bytes && told < TOLD_MAX {
            let mut took = |_, part: &[u8]| {
                progress(part.len() as u64);
                Ok(())
            };
            let Err(error) = reader.read_range(at, next..bytes, &mut scratch, &mut took) else {
                return Ok(());
            };
            if error.is_no_memory() {
                return Err(error);
            }
            let error = told_better(error, &at).with_tensor(tensor.name.as_str());
            let of_data = error.path().is_some_and(|path| path.ends_with(file));
            let place = error.offset().and_then(|offset| offset.checked_sub(piece.begin));
            self.lost.entry(tensor.name.clone()).or_insert_with(|| error.clone());
            // Without a place it is the file, of which that was said already.
            let Some(place) = place.filter(|place| of_data && (next..bytes).contains(place)) else {
                return Ok(());
            };
            self.damage.push(error);
            told += 1;
            next = (place / reader.block_bytes() + 1) * reader.block_bytes();
        }
        Ok(())
    }
}

/// Of a piece that is not all in its file, which is taken to be as long as it is.
fn told_better(error: Error, piece: &PieceAt) -> Error {
    if error.offset() != Some(piece.begin) || !error.message().ends_with("lies outside") {
        return error;
    }
    let told = Error::new(error.kind(), "the file ends before the tensor does");
    let path = error.path().unwrap_or_default().to_owned();
    told.with_path(path).with_offset(piece.begin)
}

/// Writes what is whole to `to`, as `options` say, as a new checkpoint: step, epoch, values, second
/// names and attached files that are whole, and every whole tensor, verified once more.
///
/// Where tensors are missing, value `repair.lost` names them, and the checkpoint counts as one that
/// was saved aside: it is older than everything else in its directory, and no rule removes it. A
/// strict load refuses it, naming what is missing.
///
/// Not collective: one process does it; `group` is [solo](ProcessGroup::solo) and counts what was
/// written.
///
/// # Errors
/// [`ErrorKind::NotFound`] if nothing is left to be saved; as [`reshard`](crate::reshard::reshard()).
pub fn salvage(
    group: &ProcessGroup,
    storage: &dyn Storage,
    found: &Found,
    assessment: &Assessment,
    to: &CheckpointPath,
    options: &ReshardOptions,
) -> Result<Checkpoint> {
    if assessment.whole.is_empty() && !assessment.lost.is_empty() {
        return Err(Error::new(ErrorKind::NotFound, "no tensor is whole; nothing was written")
            .with_path(found.path()));
    }
    let whole: BTreeSet<&TensorName> = assessment.whole.iter().collect();
    let mut wanted = |tensor: &TensorRecord| whole.contains(&tensor.name);
    let mut state = state_of(found, reader_of(found), &mut wanted)?;
    attach(found, &mut state, &mut |_, _| Ok(()))?;
    if assessment.has_lost() {
        state.values.set(LOST, Value::json(&assessment.lost_names())?);
        state.values.set(ASIDE, true);
    }
    rewrite(group, storage, found, state, to, options)
}
